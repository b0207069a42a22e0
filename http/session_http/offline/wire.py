"""From a planned reply to the bytes of the Messages API, as steps that a server carries out.

Everything that can be seen from outside is decided here, so the server behind it only sends and
waits, and the whole protocol is tested without one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from session_http.offline.directives import Cut, Fail, Fault, Hang
from session_http.offline.reply import Reply, Text, Thinking, ToolUse

__all__ = ["Body", "Drop", "Head", "Pause", "Step", "error_body", "steps"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Send the status and the headers."""

    status: int
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """Send a part of the body."""

    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """Wait for so many seconds, or until the client goes away (None)."""

    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """Close the connection, with the response unfinished."""


Step = Head | Body | Pause | Drop


class _Api:
    """Words of the API."""

    error_types: ClassVar[Mapping[int, str]] = {
        400: "invalid_request_error",
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        408: "timeout_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        504: "timeout_error",
        529: "overloaded_error",
    }
    messages: ClassVar[Mapping[int, str]] = {
        401: "invalid x-api-key",
        404: "not found",
        429: "This request would exceed your rate limit.",
        500: "Internal server error",
        529: "Overloaded",
    }


def steps(
    reply: Reply, *, model: str, stream: bool, message_id: str, request_id: str
) -> Iterator[Step]:
    """Carry out `reply`: yields what to send, and when.

    Args:
        reply: the plan.
        model: the name under which the model answers.
        stream: as an event stream, else as one JSON document.
        message_id: the message's id; CLIs merge messages of the same id, so never use one twice.
        request_id: goes out in the `request-id` header and in errors.
    """
    common = (("request-id", request_id), *reply.headers)
    fault = reply.fault
    if isinstance(fault, Hang) and fault.where == "before":
        yield Pause(seconds=_seconds(fault.ms))
    if isinstance(fault, Fail) and fault.after is None and fault.block is None:
        yield from _refused(fault, request_id, common)
    elif stream:
        # The client reads the stream's framing, so the response has no length.
        yield Head(status=200, headers=(("content-type", "text/event-stream"), *common))
        yield from _Stream(reply, model, message_id, request_id).steps()
    else:
        yield from _document(reply, model, message_id, request_id, common)


def error_body(status: int, message: str | None, request_id: str) -> bytes:
    """The API's JSON for an error of this HTTP status."""
    return _dumped(_error(status, message, request_id))


def _error(status: int, message: str | None, request_id: str) -> dict[str, object]:
    kind = _Api.error_types.get(status, "api_error" if status >= 500 else "invalid_request_error")
    text = message or _Api.messages.get(status, kind.replace("_", " "))
    return {
        "type": "error",
        "error": {"type": kind, "message": text},
        "request_id": request_id,
    }


def _refused(fault: Fail, request_id: str, common: tuple[tuple[str, str], ...]) -> Iterator[Step]:
    wait = fault.retry_after
    if wait is None and fault.status == 429:
        wait = 1
    headers = common if wait is None else (*common, ("retry-after", f"{wait:g}"))
    body = error_body(fault.status, fault.message, request_id)
    yield from _json(fault.status, body, headers)


def _json(
    status: int, body: bytes, headers: tuple[tuple[str, str], ...], *, sent: int | None = None
) -> Iterator[Step]:
    described = (("content-type", "application/json"), ("content-length", str(len(body))))
    yield Head(status=status, headers=(*described, *headers))
    yield Body(data=body[:sent])


def _document(
    reply: Reply,
    model: str,
    message_id: str,
    request_id: str,
    common: tuple[tuple[str, str], ...],
) -> Iterator[Step]:
    """The reply as one JSON document. What would happen in mid-stream happens before or in it."""
    content: list[dict[str, object]] = []
    deltas = 0
    for index, block in enumerate(reply.blocks):
        match block:
            case Text(pieces=pieces):
                content.append({"type": "text", "text": "".join(pieces)})
                deltas += len(pieces)
            case Thinking(pieces=pieces):
                content.append(
                    {"type": "thinking", "thinking": "".join(pieces), "signature": message_id}
                )
                deltas += len(pieces)
            case ToolUse(name=name, input=arguments):
                content.append(
                    {
                        "type": "tool_use",
                        "id": _tool_id(message_id, index),
                        "name": name,
                        "input": arguments,
                    }
                )
    message = _message(reply, model, message_id) | {
        "content": content,
        "stop_reason": reply.stop_reason,
        "usage": _usage(reply, output=reply.output_tokens or 0),
    }
    body = _dumped(message)
    yield Pause(seconds=reply.delay_s * deltas)
    match reply.fault:
        case Fail() as fault:
            yield from _refused(fault, request_id, common)
        case Hang(where="mid", ms=ms):
            yield Pause(seconds=_seconds(ms))
            yield from _json(200, body, common)
        case Cut():
            yield from _json(200, body, common, sent=len(body) // 2)
            yield Drop()
        case _:
            yield from _json(200, body, common)


class _Stream:
    """Walks through the reply's deltas, and lets its fault happen at its point."""

    def __init__(self, reply: Reply, model: str, message_id: str, request_id: str) -> None:
        self._reply = reply
        self._model = model
        self._message_id = message_id
        self._request_id = request_id
        self._point = _point(reply.fault)
        self._deltas = 0
        self._over = False

    def steps(self) -> Iterator[Step]:
        """The body, from `message_start` to `message_stop` or to the fault."""
        message = _message(self._reply, self._model, self._message_id)
        yield self._event("message_start", message=message)
        yield self._event("ping")
        yield from self._fault_at(block=0)
        for index, block in enumerate(self._reply.blocks):
            if not self._over:
                yield from self._block(index, block)
        if self._point is not None and not self._over:
            yield from self._fault_now()
        if not self._over:
            usage = _usage(self._reply, output=self._reply.output_tokens or 0)
            delta = {"stop_reason": self._reply.stop_reason, "stop_sequence": None}
            yield self._event("message_delta", delta=delta, usage=usage)
            yield self._event("message_stop")

    def _block(self, index: int, block: Text | Thinking | ToolUse) -> Iterator[Step]:
        start, deltas = _opened(block, _tool_id(self._message_id, index))
        yield self._event("content_block_start", index=index, content_block=start)
        in_block = 0
        yield from self._fault_at(block=index + 1, in_block=in_block)
        for delta in deltas:
            if self._over:
                return
            if self._reply.delay_s and self._deltas:
                yield Pause(seconds=self._reply.delay_s)
            yield self._event("content_block_delta", index=index, delta=delta)
            self._deltas += 1
            in_block += 1
            yield from self._fault_at(block=index + 1, in_block=in_block)
        if self._over:
            return
        if isinstance(block, Thinking):
            signature = {"type": "signature_delta", "signature": self._message_id}
            yield self._event("content_block_delta", index=index, delta=signature)
        yield self._event("content_block_stop", index=index)

    def _fault_at(self, *, block: int, in_block: int = 0) -> Iterator[Step]:
        if self._point is None:
            return
        wanted_block, after = self._point
        if wanted_block is None:
            due = self._deltas >= after
        else:
            due = (block, in_block) >= (wanted_block, after)
        if due:
            yield from self._fault_now()

    def _fault_now(self) -> Iterator[Step]:
        self._point = None
        match self._reply.fault:
            case Fail(status=status, message=message):
                self._over = True
                error = _error(status, message, self._request_id)
                yield Body(data=b"event: error\ndata: " + _dumped(error) + b"\n\n")
            case Hang(ms=ms, ping_ms=ping_ms):
                yield from self._silence(_seconds(ms), _seconds(ping_ms))
            case Cut():
                self._over = True
                # The CLI loses deltas that arrive together with the end of the connection.
                yield Pause(seconds=0.05)
                yield Drop()
            case None:
                pass

    def _silence(self, seconds: float | None, ping: float | None) -> Iterator[Step]:
        if ping is not None:
            waited = 0.0
            while seconds is None or waited + ping < seconds:
                yield Pause(seconds=ping)
                yield self._event("ping")
                waited += ping
            seconds -= waited
        yield Pause(seconds=seconds)

    def _event(self, name: str, **fields: object) -> Body:
        data = _dumped({"type": name, **fields})
        return Body(data=b"event: " + name.encode() + b"\ndata: " + data + b"\n\n")


def _opened(
    block: Text | Thinking | ToolUse, tool_id: str
) -> tuple[dict[str, object], Iterator[dict[str, object]]]:
    """How a block starts, and its deltas."""
    match block:
        case Text(pieces=pieces):
            texts: Iterator[dict[str, object]] = (
                {"type": "text_delta", "text": piece} for piece in pieces
            )
            return {"type": "text", "text": ""}, texts
        case Thinking(pieces=pieces):
            thoughts: Iterator[dict[str, object]] = (
                {"type": "thinking_delta", "thinking": piece} for piece in pieces
            )
            return {"type": "thinking", "thinking": "", "signature": ""}, thoughts
        case ToolUse(name=name, input=arguments):
            text = json.dumps(arguments)
            parts: Iterator[dict[str, object]] = (
                {"type": "input_json_delta", "partial_json": text[at : at + 32]}
                for at in range(0, len(text), 32)
            )
            return {"type": "tool_use", "id": tool_id, "name": name, "input": {}}, parts


def _point(fault: Fault | None) -> tuple[int | None, int] | None:
    """The block and the number of deltas at which a fault happens in mid-stream, if it does."""
    match fault:
        case Cut(block=block, after=after) | Hang(where="mid", block=block, after=after):
            return block, after
        case Fail(block=block, after=after) if block is not None or after is not None:
            return block, 1 if after is None else after
        case _:
            return None


def _message(reply: Reply, model: str, message_id: str) -> dict[str, object]:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(reply, output=1),
    }


def _usage(reply: Reply, *, output: int) -> dict[str, object]:
    return {
        "input_tokens": reply.input_tokens or 0,
        "cache_creation_input_tokens": reply.cache_write,
        "cache_read_input_tokens": reply.cache_read,
        "output_tokens": output,
        "service_tier": "standard",
    }


def _tool_id(message_id: str, index: int) -> str:
    return f"toolu_{message_id.removeprefix('msg_')}{index}"


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _dumped(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
