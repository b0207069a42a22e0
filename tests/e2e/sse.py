"""A client as strict as the contract: what it does not expect, it does not accept."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx

TERMINAL = ("done", "error")
PATIENCE = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of a stream.

    Attributes:
        id: Its id; None if it has none.
        data: The JSON object.
        at: When it arrived, monotonic seconds.
    """

    id: int | None
    data: dict[str, Any]
    at: float

    @property
    def type(self) -> str:
        kind: str = self.data["type"]
        return kind


class Parser:
    """Turns lines into events, and accepts nothing that the contract does not have."""

    def __init__(self) -> None:
        self.comments = 0
        self.retry: int | None = None
        self._id: int | None = None
        self._data: str | None = None
        self._last = 0

    def feed(self, line: str) -> Event | None:
        if not line:
            return self._event()
        if line.startswith(":"):
            self.comments += 1
            return None
        field, separator, value = line.partition(": ")
        assert separator, f"not a line of Server-Sent Events: {line!r}"
        match field:
            case "id":
                self._id = int(value)
            case "retry":
                self.retry = int(value)
            case "data":
                assert self._data is None, "one JSON object stands in one data line"
                self._data = value
            case _:
                raise AssertionError(f"no such field may be sent: {line!r}")
        return None

    def _event(self) -> Event | None:
        number, data = self._id, self._data
        self._id = self._data = None
        if data is None:
            return None
        body: dict[str, Any] = json.loads(data)
        if number is not None and body["type"] not in ("bye", "gap"):
            assert number > self._last, f"ids increase: {number} comes after {self._last}"
            self._last = number
        return Event(id=number, data=body, at=time.monotonic())


def parse(lines: Iterable[str]) -> Iterator[Event]:
    """Yield events as they arrive."""
    parser = Parser()
    for line in lines:
        event = parser.feed(line)
        if event is not None:
            yield event


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """All events of one turn's stream, which has ended."""

    events: tuple[Event, ...]

    def __post_init__(self) -> None:
        terminal = [event.type for event in self.events if event.type in TERMINAL]
        assert len(terminal) == 1, f"exactly one terminal event, not {terminal}"
        assert self.events[-1].type in TERMINAL, "the terminal event is the last"

    @property
    def end(self) -> dict[str, Any]:
        return self.events[-1].data

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.type == kind]

    @property
    def text(self) -> str:
        """What a reader has in the end: all text less what was discarded."""
        return text_of(self.events)


def text_of(events: Iterable[Event]) -> str:
    """Return all text less what was discarded."""
    pieces: list[tuple[int, str]] = []
    for event in events:
        if event.type == "text":
            assert event.id is not None
            pieces.append((event.id, event.data["content"]))
        elif event.type == "discard":
            pieces = [piece for piece in pieces if piece[0] <= event.data["after"]]
    return "".join(content for _, content in pieces)


class Client:
    """The API from the caller's side."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, *, expect: int = 200) -> dict[str, Any]:
        return answer(self.http.get(path), expect)

    def post(self, path: str, *, expect: int = 200, **fields: Any) -> dict[str, Any]:
        return answer(self.http.post(path, json=fields), expect)

    def delete(self, path: str, *, expect: int = 200) -> dict[str, Any]:
        return answer(self.http.delete(path), expect)

    @contextmanager
    def session(self, **fields: Any) -> Generator[str]:
        """Have a session for a while; yields its path."""
        path = f"/session/{self.post('/session/start', **fields)['session_id']}"
        try:
            yield path
        finally:
            self.http.delete(path)

    def ask(self, path: str, prompt: str, **fields: Any) -> str:
        """Return the response to a prompt."""
        response: str = self.post(f"{path}/query", prompt=prompt, **fields)["response"]
        return response

    @contextmanager
    def open(self, path: str, prompt: str, **fields: Any) -> Generator[Iterator[Event]]:
        """Ask for a stream; yields its events as they arrive."""
        body = {"prompt": prompt, "stream": True, **fields}
        with self.http.stream("POST", f"{path}/query", json=body) as response:
            yield streamed(response)

    def stream(self, path: str, prompt: str, **fields: Any) -> Streamed:
        """Ask for a stream and read it to its end."""
        with self.open(path, prompt, **fields) as events:
            return Streamed(events=tuple(events))

    def turn(self, of: dict[str, Any], *, expect: int = 200) -> dict[str, Any]:
        """Look up the turn that an answer or an event names."""
        return self.get(f"/session/{of['session_id']}/turns/{of['turn_id']}", expect=expect)


def streamed(response: httpx.Response) -> Iterator[Event]:
    """Yield the events of a response."""
    if response.status_code != 200:
        response.read()
        raise AssertionError(f"no stream but {response.status_code}: {response.text}")
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    return parse(lines(response.iter_bytes()))


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield lines as they arrive; not by `iter_lines`, for which text has more ends of lines."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode()
    assert not rest, f"the stream ends within a line: {rest[:200]!r}"


def answer(response: httpx.Response, expect: int) -> dict[str, Any]:
    """Return a JSON answer of the status that is expected; an error has the shape of one."""
    body: dict[str, Any] = response.json()
    assert response.status_code == expect, f"{response.status_code} instead of {expect}: {body}"
    if expect >= 400:
        assert isinstance(body["detail"], str), body
        assert body["detail"], body
        assert "Traceback" not in body["detail"]
        assert not {"response", "initial_response"} & set(body), "an error is never an answer"
        assert set(body) <= {"detail", "code", "retry_after", "errors", "session_id", "turn_id"}
    return body
