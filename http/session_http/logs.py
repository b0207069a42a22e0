"""Logs: everything that this program and its libraries log, as lines for people or as JSON.

The code logs through the standard library; structlog renders it here, in one place, so that one
rule holds for all of it: above the level `debug` no line holds a prompt, an answer or a secret.
Messages are written so that they do not. What cannot be written beforehand is the text of an
exception, which may quote what was being read when it was raised: of a traceback the places and the
types are shown, and the words only where the operating system speaks, or at `debug`.

Records carry `request_id` and `owner` of the request that they belong to, and `session_id` and
`turn_id` where whoever logs passes them as `extra`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, TextIO, TypeAlias, cast

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

Format: TypeAlias = Literal["auto", "console", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]

FIELDS = (
    *("request_id", "owner", "key_id", "session_id", "turn_id"),
    *("method", "path", "status", "ms"),
)
"""What `extra` may add to a record. Anything else that a library attaches is not shown."""

_OURS = ("session_http", "session_supervisor")
"""The loggers that the level is for. Those of libraries show addresses at `info`, and headers with
keys in them at `debug`: of them there are warnings and worse, at any level."""


access = logging.getLogger("session_http.access")
"""Says one line of every request, when it has been answered."""

_PROBES = frozenset({"/health", "/ready"})
"""What is asked every few seconds, and only worth a line above `debug` when all is not well."""

GONE = 499
"""Status, in the log, of a request whose client did not wait for the answer."""

_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"}
)
_ID = re.compile(r"[0-9a-f-]{36}")


@dataclass(slots=True, kw_only=True)
class Request:
    """The request that is being answered: what its line in the log will say.

    Attributes:
        request_id: Its id.
        method: As it was sent.
        path: The path of its operation, with the names of parameters in their places: never what
            was sent, which may be anything. Empty if there is no such operation.
        status: What was answered; 0: nothing.
        owner: Who makes it; empty until that is known.
        key_id: The key that was shown, by its public part.
        session_id: The session that it is about.
        turn_id: The turn that it is about.
        began: When, on the clock of `time.perf_counter`.
        open: Whether it is still being answered. A task that it started, such as a session, has
            it in its context for ever, and must not speak for it later.
    """

    request_id: str
    method: str
    path: str = ""
    status: int = 0
    owner: str = ""
    key_id: str | None = None
    session_id: str = ""
    turn_id: str = ""
    began: float = field(default_factory=time.perf_counter)
    open: bool = True

    def about(self, *, session_id: object = None, turn_id: object = None) -> None:
        """Note which session and turn it is about; what cannot be the id of one is passed over."""
        if isinstance(session_id, str) and _ID.fullmatch(session_id):
            self.session_id = session_id
        if isinstance(turn_id, str) and _ID.fullmatch(turn_id):
            self.turn_id = turn_id

    def tell(self) -> None:
        """Log its line."""
        is_probe = self.path in _PROBES and self.status == 200
        level = logging.DEBUG if is_probe else logging.INFO
        if not access.isEnabledFor(level):
            return
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "method": self.method if self.method in _METHODS else "other",
            "path": self.path or "none",
            "status": self.status or GONE,
            "ms": round((time.perf_counter() - self.began) * 1000, 1),
        }
        for name in ("owner", "key_id", "session_id", "turn_id"):
            if value := getattr(self, name):
                fields[name] = value
        access.log(
            level, "%s %s %s", fields["method"], fields["path"], fields["status"], extra=fields
        )


_REQUEST: ContextVar[Request | None] = ContextVar("request", default=None)


@contextmanager
def request(request_id: str, method: str) -> Generator[Request]:
    """Let what is logged belong to a request while the context is open, and log it in the end."""
    one = Request(request_id=request_id, method=method)
    token = _REQUEST.set(one)
    try:
        yield one
    finally:
        one.open = False
        _REQUEST.reset(token)
        one.tell()


def configure(
    *, form: Format = "auto", level: Level = "info", stream: TextIO | None = None
) -> logging.Handler:
    """Render what this process logs from now on; return what does it.

    Args:
        form: For people or for programs; `auto`: for people on a terminal.
        level: The least that is shown.
        stream: Where to; None: standard error.
    """
    stream = stream or sys.stderr
    is_terminal = stream is not None and stream.isatty()
    words = level == "debug"
    as_json = form == "json" or (form == "auto" and not is_terminal)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(allow=FIELDS),
                _add_request,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[
                *(() if words else (_first_line_of_asyncio,)),
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _Tracebacks(words=words),
                _renderer(as_json=as_json, colours=is_terminal and "NO_COLOR" not in os.environ),
            ],
        )
    )
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(number, logging.WARNING))
    for name in _OURS:
        logging.getLogger(name).setLevel(number)
    logging.captureWarnings(True)
    # Else a record that cannot be rendered, or written, is printed with all that it holds.
    logging.raiseExceptions = False
    return handler


def _renderer(*, as_json: bool, colours: bool) -> Processor:
    if as_json:
        return structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    return structlog.dev.ConsoleRenderer(
        colors=colours, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
    )


def _add_request(_logger: WrappedLogger, _name: str, record: EventDict) -> EventDict:
    one = _REQUEST.get()
    if one is not None and one.open:
        record.setdefault("request_id", one.request_id)
        if one.owner:
            record.setdefault("owner", one.owner)
    return record


def _first_line_of_asyncio(_logger: WrappedLogger, _name: str, record: EventDict) -> EventDict:
    """Drop the objects that asyncio quotes below its messages, with the texts of exceptions."""
    if record.get("logger") == "asyncio":
        record["event"] = str(record["event"]).partition("\n")[0]
    return record


class _Tracebacks:
    """Renders the exception of a record, without the values of variables.

    Args:
        words: Whether with what the exceptions say.
    """

    def __init__(self, *, words: bool) -> None:
        self._words = words

    def __call__(self, _logger: WrappedLogger, _name: str, record: EventDict) -> EventDict:
        given = record.pop("exc_info", None)
        error = cast("object", given[1] if isinstance(given, tuple) else given)
        if isinstance(error, BaseException):
            if self._words:
                record["exception"] = "".join(traceback.format_exception(error)).rstrip()
            else:
                record["exception"] = "\n".join(_traceback(error, set()))
        return record


def _traceback(error: BaseException, seen: set[int]) -> Iterator[str]:
    """Yield the lines of a traceback with only those words that say nothing of a request."""
    seen.add(id(error))
    before = error.__cause__
    if before is None and not error.__suppress_context__:
        before = error.__context__
    if before is not None and id(before) not in seen:
        yield from _traceback(before, seen)
        yield ""
        yield "Which led to:" if before is error.__cause__ else "While that was handled:"
        yield ""
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):"
        for entry in traceback.format_tb(error.__traceback__):
            yield from entry.rstrip().splitlines()
    yield f"{type(error).__module__}.{type(error).__qualname__}{_words(error)}"
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        for one in group.exceptions:
            if id(one) not in seen:
                yield from (f"  | {line}" for line in _traceback(one, seen))


def _words(error: BaseException) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    where = f": {error.filename!r}" if error.filename is not None else ""
    return f": [Errno {error.errno}] {error.strerror}{where}"
