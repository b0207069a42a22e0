"""What one process asks a human: its requests translated, and the answers on their way back.

The CLI asks by a control request, once the hook that confines file tools has let the call pass, and
waits. It says so if it needs the answer no more. What a human allows is judged by the hook's limits
once more, for the input that the call will have: the CLI does not ask the hook again.

A rule that is remembered while the process lives is told to the CLI along with the answer, for this
process alone: what the CLI remembers by itself is gone with a resume.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from uuid import uuid4

from pydantic import JsonValue

from session_supervisor.agents.claude.confinement import PATH_OF, READS, TOOLS, Confinement
from session_supervisor.agents.claude.tools import ASKING_TOOL, documented_name
from session_supervisor.agents.port import AskWithdrawn, PermissionAsked, QuestionAsked
from session_supervisor.asks import Allow, Answers, Choice, Decision, Deny, Question, Rule
from session_supervisor.spec import JsonObject

_log = logging.getLogger(__name__)

NOT_ALLOWED = "This was not allowed."
NOT_ANSWERED = "The question was not answered."
"""What the model is told where nobody says more."""

_SEEN = 200
"""Calls of which it is known for a moment where they were made: those between hook and request."""

_MOST_OF_RULES = 64 * 1024
"""Bytes. They are an argument of the CLI, and the longest that Linux takes is 128 KiB."""

_TOOL = re.compile(r"[A-Za-z_][\w-]*(?:\*)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    cli_id: str
    tool: str
    input: JsonObject
    call: JsonObject
    questions: tuple[Question, ...] = ()


class Permissions:
    """The requests of one process, and what it may do without one."""

    def __init__(
        self, *, asks: bool, rules: Iterable[Rule] = (), confinement: Confinement | None = None
    ) -> None:
        """Begin with no request.

        Args:
            asks: Whether a human is asked at all.
            rules: What the process was told at its start to allow.
            confinement: What file tools may reach; None: all.
        """
        self._asks = asks
        self._rules = set(rules)
        self._remembered = False
        self._confinement = confinement
        self._calls = OrderedDict[str, JsonObject]()
        self._open: dict[str, _Open] = {}

    @property
    def stain(self) -> str | None:
        """Why another session may not have the process; None: nothing of this one is left here."""
        if self._open:
            return "asks"
        return "rules" if self._remembered else None

    def begin_anew(self) -> None:
        """Forget the calls that were noted: another session has the process now."""
        self._calls.clear()

    # The hook

    def judge(self, call: JsonObject) -> JsonObject:
        """Return what the hook says to a call of a file tool, before anybody is asked. It blocks.

        Args:
            call: What the hook got.
        """
        if self._confinement is None:
            return {}
        refusal = self._confinement.refusal(call)
        if refusal is not None:
            return _said("deny", refusal)
        outside = self._confinement.outside(call)
        if outside is None:
            return {}
        # Who bypasses permissions is asked nothing, and no more is open to them for it.
        if not self._asks or call.get("permission_mode") == "bypassPermissions":
            return _said("deny", outside)
        # With a rule the CLI compares paths itself, and asks where none fits.
        return {} if self._has_rule_for(call.get("tool_name")) else _said("ask", outside)

    def note(self, call: JsonObject, tool_use_id: str | None) -> None:
        """Remember for a moment where a call is made."""
        if tool_use_id is not None:
            self._calls[tool_use_id] = {
                name: call[name]
                for name in ("cwd", "session_id", "transcript_path")
                if name in call
            }
            if len(self._calls) > _SEEN:
                self._calls.popitem(last=False)

    def _has_rule_for(self, tool: JsonValue) -> bool:
        alike = READS if tool in READS else frozenset(TOOLS) - READS
        return any(rule.tool in alike for rule in self._rules)

    # What it asks

    def asked(self, frame: JsonObject) -> PermissionAsked | QuestionAsked | None:
        """Take a control request; None if it is none of these, or nobody is asked here."""
        if not self._asks:
            return None
        cli_id, request = frame.get("request_id"), frame.get("request")
        if not isinstance(cli_id, str) or not isinstance(request, dict):
            return None
        tool, given = request.get("tool_name"), request.get("input")
        if request.get("subtype") != "can_use_tool" or not isinstance(given, dict):
            return None
        if not isinstance(tool, str):
            return None
        call_id = request.get("tool_use_id")
        tool_use_id = call_id if isinstance(call_id, str) else ""
        call = self._calls.pop(tool_use_id, {})
        request_id = str(uuid4())
        waiting = _Open(cli_id=cli_id, tool=tool, input=given, call=call)
        if tool == ASKING_TOOL and _questions(given):
            questions = _questions(given)
            self._open[request_id] = replace(waiting, questions=questions)
            return QuestionAsked(
                request_id=request_id,
                tool=tool,
                tool_use_id=tool_use_id,
                questions=questions,
            )
        self._open[request_id] = waiting
        return PermissionAsked(
            request_id=request_id,
            tool=documented_name(tool),
            tool_use_id=tool_use_id,
            input=given,
            suggestions=_suggestions(request.get("permission_suggestions")) or _own(tool, given),
        )

    def withdrawn(self, frame: JsonObject) -> AskWithdrawn | None:
        """Take a control message that cancels a request; None if it is not one of these."""
        for request_id, waiting in self._open.items():
            if waiting.cli_id == frame.get("request_id"):
                del self._open[request_id]
                return AskWithdrawn(request_id)
        return None

    async def answer(self, request_id: str, decision: Decision) -> JsonObject | None:
        """Return what the CLI is told of a decision; None if the request is over.

        Raises:
            ValueError: A question was allowed, or a permission was answered.
        """
        waiting = self._open.get(request_id)
        if waiting is None:
            return None
        match decision:
            case Deny():
                message = NOT_ANSWERED if waiting.questions else NOT_ALLOWED
                told = _denial(decision, message)
            case Answers() if waiting.questions:
                told = _answered(waiting, decision)
            case Allow() if not waiting.questions:
                told = await asyncio.to_thread(self._allowed, waiting, decision)
            case _:
                raise ValueError(f"a request for {waiting.tool} cannot be answered by {decision!r}")
        if self._open.pop(request_id, None) is None:
            return None
        if told.get("behavior") == "allow" and isinstance(decision, Allow):
            self._rules.update(decision.remember)
            self._remembered |= bool(decision.remember)
        return _response(waiting.cli_id, told)

    def _allowed(self, waiting: _Open, decision: Allow) -> JsonObject:
        given = waiting.input if decision.updated_input is None else decision.updated_input
        if self._confinement is not None and waiting.tool in TOOLS:
            call: JsonObject = {**waiting.call, "tool_name": waiting.tool, "tool_input": given}
            refusal = self._confinement.refusal(call)
            if refusal is not None:
                return _denial(Deny(message=refusal))
        told: JsonObject = {"behavior": "allow", "updatedInput": given}
        rules = usable(decision.remember)
        if rules:
            told["updatedPermissions"] = [
                {
                    "type": "addRules",
                    "rules": [_wire(rule) for rule in rules],
                    "behavior": "allow",
                    "destination": "session",
                }
            ]
        return told


def usable(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return those rules that the CLI can understand; others say nothing."""
    kept = tuple(rule for rule in rules if _is_rule(rule))
    if strange := set(rules) - set(kept):
        _log.warning("Rules that Claude Code would not understand are left out: %s", strange)
    return kept


def _is_rule(rule: Rule) -> bool:
    content = rule.content
    return _TOOL.fullmatch(rule.tool) is not None and (
        content is None or (bool(content.strip()) and "\0" not in content)
    )


def fitting(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return as many rules as fit into an argument of a program, the newest; the others ask."""
    kept: list[Rule] = []
    left = _MOST_OF_RULES
    for rule in reversed(tuple(rules)):
        left -= len(json.dumps(spelled(rule)))
        if left < 0:
            _log.warning("The oldest rules of a session are too many, and left out")
            break
        kept.append(rule)
    return tuple(reversed(kept))


def spelled(rule: Rule) -> str:
    """Return a rule as settings have it."""
    if rule.content is None:
        return rule.tool
    content = re.sub(r"([\\()])", r"\\\1", rule.content)
    return f"{rule.tool}({content})"


def below(folder: str) -> str:
    """Return the content of a rule for all that lies in a directory."""
    return "/" + re.sub(r"([\\*?\[\]{}!# ])", r"\\\1", folder.rstrip("/")) + "/**"


def _said(decision: str, reason: str) -> JsonObject:
    return {
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            "permissionDecision": decision,
            "permissionDecisionReason": reason,
        }
    }


def _response(cli_id: str, told: JsonObject) -> JsonObject:
    return {
        "type": "control_response",
        "response": {"subtype": "success", "request_id": cli_id, "response": told},
    }


def _denial(decision: Deny, otherwise: str = NOT_ALLOWED) -> JsonObject:
    told: JsonObject = {"behavior": "deny", "message": decision.message or otherwise}
    return {**told, "interrupt": True} if decision.end_turn else told


def _answered(waiting: _Open, decision: Answers) -> JsonObject:
    answers: JsonObject = {
        one.question: ", ".join(decision.answers.get(one.question, ())) for one in waiting.questions
    }
    return {"behavior": "allow", "updatedInput": {**waiting.input, "answers": answers}}


def _wire(rule: Rule) -> JsonObject:
    wire: JsonObject = {"toolName": rule.tool}
    return wire if rule.content is None else {**wire, "ruleContent": rule.content}


def _suggestions(given: JsonValue) -> tuple[Rule, ...]:
    """Return the rules among what the CLI proposes: it also proposes modes and directories."""
    rules: list[Rule] = []
    for one in given if isinstance(given, list) else ():
        match one:
            case {"type": "addRules", "behavior": "allow", "rules": list(proposed)}:
                rules += (rule for each in proposed if (rule := _rule(each)) is not None)
            case _:
                pass
    return tuple(dict.fromkeys(rules))


def _rule(proposed: JsonValue) -> Rule | None:
    match proposed:
        case {"toolName": str(tool), "ruleContent": str(content)}:
            return Rule(tool=tool, content=content)
        case {"toolName": str(tool)}:
            return Rule(tool=tool)
        case _:
            return None


def _own(tool: str, given: Mapping[str, JsonValue]) -> tuple[Rule, ...]:
    """Return what may be remembered where the CLI proposes no rule."""
    if tool not in TOOLS:
        # Of Bash there is no more to remember than what the CLI would.
        return () if tool == "Bash" else (Rule(tool=documented_name(tool)),)
    path = given.get(PATH_OF.get(tool, "path"))
    if not isinstance(path, str) or not os.path.isabs(path):
        return ()
    folder = os.path.dirname(path) if tool in PATH_OF else path
    # The CLI has two kinds of rules for all file tools.
    return (Rule(tool="Read" if tool in READS else "Edit", content=below(folder)),)


def _questions(given: Mapping[str, JsonValue]) -> tuple[Question, ...]:
    questions: dict[str, Question] = {}
    for one in _objects(given.get("questions")):
        text = _text(one, "question")
        options = [
            Choice(label=_text(each, "label"), description=_text(each, "description"))
            for each in _objects(one.get("options"))
        ]
        if text:
            questions[text] = Question(
                question=text,
                header=_text(one, "header"),
                options=tuple(options),
                multi_select=one.get("multiSelect") is True,
            )
    return tuple(questions.values())


def _objects(value: JsonValue) -> list[JsonObject]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(given: Mapping[str, JsonValue], name: str) -> str:
    value = given.get(name)
    return value if isinstance(value, str) else ""
