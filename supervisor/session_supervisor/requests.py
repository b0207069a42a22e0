"""What a session's agent waits for a human for: every request has exactly one resolution.

The bookkeeping behind `asks`, as the ledger is behind turns. What is entered here is shown to
others, and told to the agent, only once it is stored; that is up to the actor.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from session_supervisor import events
from session_supervisor.agents.port import PermissionAsked, QuestionAsked
from session_supervisor.asks import (
    Allow,
    Answers,
    Decision,
    Deny,
    Request,
    RequestKind,
    Resolution,
    Rule,
)
from session_supervisor.clock import Clock
from session_supervisor.config import SupervisorConfig
from session_supervisor.errors import InvalidSpec
from session_supervisor.spec import OnPermission, SessionKind, SessionSpec

NOBODY_THERE = Deny(
    message="Nobody can be asked here: what needs a permission is denied, and questions have no "
    "answer. Go on without, or say what you would need."
)
"""What an agent is told where nobody is to be asked."""

STOPPED = Deny(message="The turn was stopped before anybody had answered.")
"""What an agent is told whose turn was stopped, or is over."""


MOST_RULES = 1_000
"""That a session remembers; they are stored with it again and again."""


class SecondResolution(Exception):
    """A request was resolved twice: the actor has lost count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingPolicy:
    """What happens to what needs a human.

    Attributes:
        on_permission: Whether a human is asked.
        timeout_s: Seconds that a human has to answer; None: any time.
    """

    on_permission: OnPermission
    timeout_s: float | None

    @classmethod
    def of(cls, spec: SessionSpec, *, kind: SessionKind, config: SupervisorConfig) -> AskingPolicy:
        """Return what holds in a session where a query does not say otherwise."""
        otherwise = config.on_permission if kind is SessionKind.CONVERSATION else "deny"
        timeout_s = spec.permission_timeout_s
        return cls(
            on_permission=spec.on_permission or otherwise,
            timeout_s=config.permission_timeout_s if timeout_s is None else timeout_s,
        )


def expired(timeout_s: float) -> Deny:
    """Return what an agent is told where a human did not answer in time.

    Args:
        timeout_s: Seconds that there were.
    """
    return Deny(message=f"Nobody answered within {timeout_s:g} s, so it was denied.")


def check_decision(request: Request, decision: Decision) -> None:
    """Refuse what is no answer to a request.

    Raises:
        InvalidSpec: It answers another kind of request, or not all of its questions.
    """
    match decision:
        case Deny():
            return
        case Allow():
            if request.kind is not RequestKind.PERMISSION:
                raise InvalidSpec("decision", "a question is answered, or denied; not allowed.")
        case Answers():
            if request.kind is not RequestKind.QUESTION:
                raise InvalidSpec("decision", "a permission is allowed or denied; not answered.")
            _check_answers(request, decision)


def _check_answers(request: Request, decision: Answers) -> None:
    questions = {one.question: one for one in request.questions}
    strange = [text for text in decision.answers if text not in questions]
    if strange:
        raise InvalidSpec("answers", f"there is no question {strange[0]!r}.")
    for text, question in questions.items():
        given = decision.answers.get(text, ())
        if not given or not all(one.strip() for one in given):
            raise InvalidSpec("answers", f"there is none to {text!r}, or an empty one.")
        if len(set(given)) < len(given):
            raise InvalidSpec("answers", f"one to {text!r} is given twice.")
        if len(given) > 1 and not question.multi_select:
            raise InvalidSpec("answers", f"there can be only one to {text!r}.")


class Requests:
    """What of a session waits for a human; the store has what did.

    Args:
        session_id: Whose.
        clock: What time it is.
    """

    def __init__(self, session_id: str, *, clock: Clock) -> None:
        self._session_id = session_id
        self._clock = clock
        self._open: dict[str, Request] = {}
        self._changed: dict[str, Request] = {}
        self._shown: dict[str, Request] = {}

    @property
    def open(self) -> tuple[Request, ...]:
        """Those without a resolution, oldest first, also if they are not stored yet."""
        return tuple(self._open.values())

    @property
    def any_open(self) -> bool:
        """Whether there is one without a resolution."""
        return bool(self._open)

    @property
    def shown(self) -> tuple[Request, ...]:
        """Those that wait, oldest first, as the store knows them."""
        return tuple(self._shown.values())

    def of(self, turn_ids: Collection[str | None]) -> tuple[Request, ...]:
        """Return those of some turns that have no resolution, oldest first."""
        return tuple(one for one in self._open.values() if one.turn_id in turn_ids)

    def find(self, request_id: str) -> Request | None:
        """Return one that has no resolution, or None."""
        return self._open.get(request_id)

    def ask(
        self,
        asked: PermissionAsked | QuestionAsked,
        *,
        turn_id: str | None,
        timeout_s: float | None,
    ) -> Request:
        """Enter what the agent asks.

        Args:
            asked: What.
            turn_id: In which turn.
            timeout_s: Seconds that a human has to answer; None: any time.
        """
        now = self._clock.now()
        permission = isinstance(asked, PermissionAsked)
        request = Request(
            request_id=asked.request_id,
            session_id=self._session_id,
            turn_id=turn_id,
            kind=RequestKind.PERMISSION if permission else RequestKind.QUESTION,
            tool=asked.tool,
            tool_use_id=asked.tool_use_id,
            input=asked.input if isinstance(asked, PermissionAsked) else {},
            suggestions=asked.suggestions if isinstance(asked, PermissionAsked) else (),
            questions=asked.questions if isinstance(asked, QuestionAsked) else (),
            asked_at=now,
            expires_at=_later(now, timeout_s),
        )
        self._open[request.request_id] = self._changed[request.request_id] = request
        return request

    def resolve(
        self, request: Request, resolution: Resolution, decision: Decision | None = None
    ) -> Request:
        """Give a request its one resolution.

        Args:
            request: Which.
            resolution: What became of it.
            decision: The answer, if it had one.

        Raises:
            SecondResolution: It has one.
        """
        if self._open.pop(request.request_id, None) is None:
            raise SecondResolution(f"request {request.request_id} was resolved before")
        over = replace(
            request, resolution=resolution, decision=decision, resolved_at=self._clock.now()
        )
        self._changed[request.request_id] = over
        return over

    def take_changed(self) -> tuple[Request, ...]:
        """Return what the store must be told: each that is not as it was the last time."""
        changed = tuple(self._changed.values())
        self._changed.clear()
        return changed

    def show(self, changed: Sequence[Request]) -> None:
        """Let others see what is stored by now."""
        for request in changed:
            if request.resolution is None:
                self._shown[request.request_id] = request
            else:
                self._shown.pop(request.request_id, None)

    def restore(self, stored: Sequence[Request]) -> None:
        """Be what is stored, and nothing else.

        Args:
            stored: What has no resolution there, oldest first.
        """
        self._changed.clear()
        self._open = {request.request_id: request for request in stored}
        self._shown = dict(self._open)


def _later(now: datetime, after_s: float | None) -> datetime | None:
    """Return a time of the day; None: never, or after all the days that there are."""
    if after_s is None:
        return None
    try:
        return now + timedelta(seconds=after_s)
    except OverflowError:
        return None


def asked_event(request: Request) -> events.PermissionRequest | events.Question:
    """Return the event that tells of a request."""
    if request.kind is RequestKind.QUESTION:
        return events.Question(
            request_id=request.request_id,
            tool_use_id=request.tool_use_id,
            questions=request.questions,
            expires_at=request.expires_at,
        )
    return events.PermissionRequest(
        request_id=request.request_id,
        tool=request.tool,
        tool_use_id=request.tool_use_id,
        input=request.input,
        suggestions=request.suggestions,
        expires_at=request.expires_at,
    )


def resolved_event(request: Request, message: str | None = None) -> events.Resolved:
    """Return the event that tells what became of a request.

    Args:
        request: Which.
        message: Why, where there is more to say.
    """
    assert request.resolution is not None, "it waits still"
    return events.Resolved(
        request_id=request.request_id, resolution=request.resolution, message=message
    )


def resolution_of(decision: Decision) -> Resolution:
    """Return what becomes of a request that is answered so."""
    match decision:
        case Allow():
            return Resolution.ALLOWED
        case Deny():
            return Resolution.DENIED
        case Answers():
            return Resolution.ANSWERED


def with_rules(rules: tuple[Rule, ...], more: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return rules and more of them, each once, the older first; of too many the newest."""
    return tuple(dict.fromkeys((*rules, *more)))[-MOST_RULES:]
