"""What the offline model answers: a pure function from a conversation to a planned reply."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from session_http.offline.conversation import Conversation, Kind
from session_http.offline.directives import (
    And,
    Big,
    Cut,
    Directive,
    DirectiveError,
    Fail,
    Fault,
    Hang,
    Header,
    Result,
    Say,
    Slow,
    Stop,
    Think,
    Tool,
    Usage,
    parse_directives,
)
from session_http.offline.prose import (
    bulk,
    filled,
    numbered,
    quoted_notice,
    quoted_results,
    recall,
    summary,
    words,
)
from session_http.offline.reply import Block, Pacing, Reply, Text, Thinking, ToolUse

__all__ = ["plan"]


def plan(
    conversation: Conversation,
    *,
    attempt: int = 0,
    pacing: Pacing | None = None,
    chance: Sequence[Directive] = (),
) -> Reply:
    """Decide on the answer.

    Args:
        conversation: the request.
        attempt: how many times the same request was tried before.
        pacing: the pace where the prompt sets none.
        chance: directives of a scenario; they act on this request, as if the prompt, which
            then has none of its own, said them here.
    """
    pacing = pacing or Pacing()
    reply = _plain(conversation, pacing)
    if reply is None:
        try:
            directives = parse_directives(conversation.prompt)
        except DirectiveError as error:
            message = f"The offline model does not understand the prompt: {error}"
            return Reply(fault=Fail(status=400, message=message))
        reply = _scripted(conversation, directives, attempt, pacing)
        if not directives:
            reply = _with_chance(conversation, reply, chance, pacing)
    return _counted(conversation, reply)


def _plain(conversation: Conversation, pacing: Pacing) -> Reply | None:
    """The answer to what no user asked; None for a prompt."""
    match conversation.kind:
        case Kind.PROBE:
            return Reply(blocks=(Text(pieces=("OK",)),), stop_reason="max_tokens")
        case Kind.FORM:
            form = json.dumps(filled(conversation.schema, conversation.prompt))
            return Reply(blocks=(Text(pieces=(form,)),))
        case Kind.SUMMARY:
            return Reply(blocks=(Text(pieces=words(summary(conversation.turns))),))
        case Kind.NOTICE:
            text = quoted_notice(conversation.notice)
            return Reply(blocks=(Text(pieces=words(text)),), delay_s=pacing.delay_s)
        case Kind.PROMPT:
            return None


@dataclass(kw_only=True, slots=True)
class _Step:
    """What the directives say about one request of the turn."""

    delay_s: float
    blocks: list[Block] = field(default_factory=list[Block])
    faults: list[Fault] = field(default_factory=list[Fault])
    stop: Stop | None = None
    usage: Usage | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])

    def calls(self) -> bool:
        return any(isinstance(block, ToolUse) for block in self.blocks)

    def stops(self, attempt: int) -> Stop | None:
        """Its own end, if this try has one."""
        due = self.stop and (self.stop.times is None or attempt < self.stop.times)
        return self.stop if due else None

    def speaks(self) -> bool:
        return any(not isinstance(block, Thinking) for block in self.blocks)


def _scripted(
    conversation: Conversation, directives: Sequence[Directive], attempt: int, pacing: Pacing
) -> Reply:
    steps = _steps(conversation, directives, pacing)
    # More results than calls: the last step again, which is where the turn ends.
    step = steps[min(conversation.step, len(steps) - 1)]
    blocks = list(step.blocks)
    if not step.speaks():
        blocks.append(_default(conversation, pacing, scripted=bool(directives)))
    blocks = _rest(blocks, "".join(conversation.said))
    if step is steps[-1] and not step.stop and _form_is_due(conversation):
        blocks.append(_form(conversation))
    blocks = blocks or [Text(pieces=words("That is all."))]
    stop = step.stops(attempt)
    if stop and stop.after is not None:
        blocks = _shortened(blocks, stop.after)
    usage = step.usage or Usage()
    return Reply(
        blocks=tuple(blocks),
        stop_reason=_stop_reason(stop, blocks),
        delay_s=step.delay_s,
        input_tokens=usage.input,
        output_tokens=usage.output,
        cache_read=usage.cache_read,
        cache_write=usage.cache_write,
        headers=tuple(step.headers.items()),
        fault=_fault(step.faults, attempt),
    )


def _steps(
    conversation: Conversation, directives: Sequence[Directive], pacing: Pacing
) -> list[_Step]:
    step = _Step(delay_s=pacing.delay_s)
    steps = [step]
    for directive in directives:
        if step.calls() and not isinstance(directive, And):
            step = _Step(delay_s=step.delay_s)
            steps.append(step)
        match directive:
            case Say(text=text):
                step.blocks.append(Text(pieces=words(text)))
            case Think(text=text):
                step.blocks.append(Thinking(pieces=words(text)))
            case Tool():
                step.blocks.append(ToolUse(name=directive.name, input=directive.input))
            case Result():
                step.blocks.append(Text(pieces=words(quoted_results(conversation.results))))
            case Slow(tokens=tokens, delay_ms=delay_ms):
                step.delay_s = delay_ms / 1000
                if tokens is not None:
                    step.blocks.append(Text(pieces=numbered(tokens)))
            case Big(bytes=size):
                step.blocks.append(Text(pieces=bulk(size)))
            case Stop():
                step.stop = directive
            case Usage():
                step.usage = directive
            case Header(headers=headers):
                step.headers.update(headers)
            case Fail() | Hang() | Cut():
                step.faults.append(directive)
    if step.calls():
        steps.append(_Step(delay_s=step.delay_s))
    return steps


def _fault(faults: Sequence[Fault], attempt: int) -> Fault | None:
    """The fault that meets this try: each takes its `times` tries, in order."""
    for fault in faults:
        if fault.times is None or attempt < fault.times:
            return fault
        attempt -= fault.times
    return None


def _with_chance(
    conversation: Conversation, reply: Reply, chance: Sequence[Directive], pacing: Pacing
) -> Reply:
    if not chance:
        return reply
    drawn = _steps(conversation, chance, pacing)[0]
    if drawn.speaks() and not conversation.step and not conversation.said:
        stop = _stop_reason(drawn.stop, drawn.blocks)
        reply = replace(reply, blocks=tuple(drawn.blocks), stop_reason=stop)
    elif drawn.blocks and not drawn.speaks():
        reply = replace(reply, blocks=(*drawn.blocks, *reply.blocks))
    return replace(reply, delay_s=drawn.delay_s, fault=_fault(drawn.faults, 0))


def _stop_reason(stop: Stop | None, blocks: Sequence[Block]) -> str:
    if stop:
        return stop.reason
    return "tool_use" if any(isinstance(block, ToolUse) for block in blocks) else "end_turn"


def _rest(blocks: Sequence[Block], said: str) -> list[Block]:
    """What remains of an answer of which `said` has arrived."""
    rest: list[Block] = []
    for block in blocks:
        text = "" if isinstance(block, ToolUse) else "".join(block.pieces)
        if not said or isinstance(block, ToolUse):
            rest.append(block)
        elif isinstance(block, Thinking):
            continue
        elif said.startswith(text):
            said = said[len(text) :]
        elif text.startswith(said):
            rest.append(Text(pieces=_from(block.pieces, len(said))))
            said = ""
        else:
            # Not what this script would have said: the prompt was answered by chance.
            return list(blocks)
    return rest


def _from(pieces: Sequence[str], start: int) -> tuple[str, ...]:
    """The pieces from a character on."""
    rest: list[str] = []
    for piece in pieces:
        if start < len(piece):
            rest.append(piece[max(0, start) :])
        start -= len(piece)
    return tuple(rest)


def _form_is_due(conversation: Conversation) -> bool:
    given = any(result.name == "StructuredOutput" for result in conversation.results)
    return conversation.schema is not None and not given


def _form(conversation: Conversation) -> ToolUse:
    form = filled(conversation.schema, conversation.prompt)
    return ToolUse(name="StructuredOutput", input=form if isinstance(form, dict) else {})


def _shortened(blocks: Sequence[Block], deltas: int) -> list[Block]:
    shortened: list[Block] = []
    for block in blocks:
        if deltas <= 0:
            break
        if isinstance(block, ToolUse):
            shortened.append(block)
            deltas -= 1
        else:
            shortened.append(replace(block, pieces=block.pieces[:deltas]))
            deltas -= len(block.pieces)
    return shortened


def _default(conversation: Conversation, pacing: Pacing, *, scripted: bool) -> Text:
    parts = [quoted_results(conversation.results)] if conversation.results else []
    if not (scripted and conversation.results):
        # A tool that was called by chance must not hide what the model remembers.
        parts.append(recall(conversation))
    pieces = words("\n\n".join(parts))
    if pacing.tokens is not None:
        filler = numbered(max(0, pacing.tokens - len(pieces)))
        pieces = (*pieces[: pacing.tokens], *filler)
    return Text(pieces=pieces)


def _counted(conversation: Conversation, reply: Reply) -> Reply:
    """Fill in the token counts that nothing has set: about four characters are one token."""
    written = sum(
        len(json.dumps(block.input)) if isinstance(block, ToolUse) else sum(map(len, block.pieces))
        for block in reply.blocks
    )
    read, said = reply.input_tokens, reply.output_tokens
    return replace(
        reply,
        input_tokens=conversation.size // 4 if read is None else read,
        output_tokens=max(1, written // 4) if said is None else said,
    )
