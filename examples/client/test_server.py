#!/usr/bin/env python3
"""Goes through the whole API of a running server and checks every answer.

    python examples/client/test_server.py [--base-url http://localhost:3000]

It needs `requests` and nothing else. Every line that it prints is a check that passed. At the
first answer that is not as documented it says what it expected and what it got, and exits with 1.
Against a real Claude account it asks about fifteen short questions.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import requests

Json = dict[str, Any]

CONNECT_S, READ_S = 5, 300
CODE_WORD = "heron-42"
NOBODY = "550e8400-e29b-41d4-a716-446655440000"
TOOLS = ["Read", "Write", "Edit", "Bash", "Glob", "Grep", "WebFetch", "WebSearch", "Task"]


# -- what the reference says --------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What a field of an answer must be."""

    name: str
    holds: Callable[[Any], bool]


def exactly(value: object) -> Kind:
    return Kind(json.dumps(value), lambda got: type(got) is type(value) and got == value)


def is_uuid(value: object) -> bool:
    with suppress(ValueError):
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    return False


def is_time(value: object) -> bool:
    with suppress(ValueError):
        return isinstance(value, str) and datetime.fromisoformat(value).year > 2000
    return False


def are_strings(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, str) for one in cast(list[object], value)
    )


TEXT = Kind("a string that is not empty", lambda got: isinstance(got, str) and got.strip() != "")
TEXT_OR_NULL = Kind("a string or null", lambda got: got is None or isinstance(got, str))
FLAG = Kind("true or false", lambda got: isinstance(got, bool))
COUNT = Kind("a whole number of at least 0", lambda got: type(got) is int and got >= 0)
PRICE = Kind("a number of at least 0", lambda got: type(got) in (int, float) and got >= 0)
UUID = Kind("a UUID", is_uuid)
TIME = Kind("a time, ISO 8601", is_time)
STRINGS = Kind("a list of strings", are_strings)

SHAPES: Mapping[str, Mapping[str, Kind]] = {
    "GET /health": {
        "status": exactly("healthy"),
        "authenticated": FLAG,
        "active_sessions": COUNT,
        "timestamp": TIME,
    },
    "GET /": {"name": TEXT, "version": TEXT, "endpoints": STRINGS},
    "POST /query": {
        "response": TEXT,
        "duration_ms": COUNT,
        "num_turns": COUNT,
        "total_cost_usd": PRICE,
    },
    "POST /session/start": {
        "session_id": UUID,
        "status": exactly("started"),
        "initial_response": TEXT_OR_NULL,
        "created_at": TIME,
    },
    "POST /session/{session_id}/query": {
        "session_id": UUID,
        "response": TEXT,
        "duration_ms": COUNT,
    },
    "POST /session/{session_id}/interrupt": {
        "status": exactly("interrupted"),
        "session_id": UUID,
    },
    "GET /session/{session_id}": {
        "session_id": UUID,
        "created_at": TIME,
        "active": FLAG,
        "model": TEXT,
    },
    "GET /sessions": {"active_sessions": STRINGS, "count": COUNT},
    "DELETE /session/{session_id}": {"status": exactly("closed"), "session_id": UUID},
}
"""The documented fields of each operation's answer; there may be more."""

ERROR = {"detail": TEXT}


class Mismatch(Exception):
    """An answer is not as documented."""

    def __init__(self, what: str, *, expected: object, got: object) -> None:
        super().__init__(what)
        self.expected = expected
        self.got = got


def expect(holds: bool, what: str, *, expected: object, got: object) -> None:
    if not holds:
        raise Mismatch(what, expected=expected, got=got)


def has_fields(answer: Json, what: str, kinds: Mapping[str, Kind]) -> None:
    for name, kind in kinds.items():
        holds = name in answer and kind.holds(answer[name])
        got = json.dumps(answer.get(name)) if name in answer else f"none, in {answer}"
        expect(holds, f"{what}: field {name!r}", expected=kind.name, got=got)


def mentions(text: str, wanted: str, what: str) -> None:
    expect(wanted.lower() in text.lower(), what, expected=f"a text with {wanted!r}", got=text)


# -- the server, and its streams ----------------------------------------------------------------


class Server:
    """The server that is checked, and the report on it."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self.offline = False
        self.checks = 0
        self._http = requests.Session()
        self._http.trust_env = False  # a proxy has no part in this
        self._started: list[str] = []

    def ok(self, what: str) -> None:
        self.checks += 1
        print(f"  ok  {what}", flush=True)

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        timeout = (CONNECT_S, READ_S)
        return self._http.request(method, self.base_url + path, timeout=timeout, **options)

    def call(
        self,
        operation: str,
        body: object = None,
        *,
        session: str = "",
        status: int = 200,
        **options: Any,
    ) -> Json:
        """Carry out an operation, and return the JSON object that it is answered with.

        Its status and its documented fields are checked, whichever operation it is.
        """
        method, _, path = operation.partition(" ")
        if body is not None:
            options["json"] = body
        response = self.send(method, path.replace("{session_id}", session), **options)
        if response.status_code != status:
            got = f"{response.status_code} {response.text[:500]}"
            raise Mismatch(f"{operation}: status", expected=status, got=got)
        media = response.headers.get("content-type", "")
        expected = "application/json"
        expect(media.startswith(expected), f"{operation}: media type", expected=expected, got=media)
        answer = response.json()
        expect(isinstance(answer, dict), operation, expected="a JSON object", got=answer)
        has_fields(answer, operation, SHAPES.get(operation, {}) if status == 200 else ERROR)
        if session and status == 200:
            has_fields(answer, operation, {"session_id": exactly(session)})
        return dict(answer)

    def start(self, body: Json) -> Json:
        """Start a session, which is closed in the end whatever happens."""
        answer = self.call("POST /session/start", body)
        self._started.append(answer["session_id"])
        return answer

    def stream(self, operation: str, body: Json, *, session: str = "") -> Stream:
        path = operation.partition(" ")[2].replace("{session_id}", session)
        response = self.send("POST", path, json={**body, "stream": True}, stream=True)
        what = f"{operation}, streaming"
        if response.status_code != 200:  # only then: asking for the text would wait for all of it
            got = f"{response.status_code} {response.text[:500]}"
            raise Mismatch(f"{what}: status", expected=200, got=got)
        media, expected = response.headers.get("content-type", ""), "text/event-stream"
        expect(media.startswith(expected), f"{what}: media type", expected=expected, got=media)
        return Stream(what, response)

    def clean_up(self) -> None:
        for session_id in self._started:
            with suppress(requests.RequestException):
                self.send("DELETE", f"/session/{session_id}")
        self._http.close()


@dataclass
class Stream:
    """One stream of Server-Sent Events, read line by line."""

    what: str
    response: requests.Response
    texts: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    first_text_at: float = 0.0

    def __post_init__(self) -> None:
        self.events = self._read()

    @property
    def text(self) -> str:
        return "".join(content for _, content in self.texts)

    def _read(self) -> Iterator[Json]:
        """Yield the object of every `data:` line; take text in, and out again where discarded."""
        last_id = 0
        for raw in self.response.iter_lines(chunk_size=None):
            line = raw.decode()
            name, _, value = line.partition(":")
            if name in ("", "retry"):  # a blank line, a comment, how soon browsers come back
                continue
            if name == "id":
                last_id = int(value)
                continue
            expect(name == "data", self.what, expected="`data:` lines", got=line)
            event: Json = json.loads(value)
            has_fields(event, f"{self.what}: an event", {"type": TEXT})
            if event["type"] == "text":
                is_text = Kind("a string", lambda got: isinstance(got, str))
                has_fields(event, f"{self.what}: a text event", {"content": is_text})
                self.first_text_at = self.first_text_at or time.monotonic()
                self.texts.append((last_id, event["content"]))
            elif event["type"] == "discard":  # the model broke off and began again
                self.texts = [(seq, text) for seq, text in self.texts if seq <= event["after"]]
            yield event

    def finish(self) -> Json:
        """Read on to the end, which must be one `done` event, and return that."""
        events = list(self.events)
        ends = [event for event in events if event["type"] in ("done", "error")]
        is_end = bool(events) and ends == events[-1:] and ends[0]["type"] == "done"
        what = f"{self.what}: the end"
        expect(is_end, what, expected='one {"type": "done"}, the last event', got=events[-1:])
        response = ends[0].get("response", self.text)
        what = f"{self.what}: the text of all events"
        expect(self.text == response, what, expected=response, got=self.text)
        return ends[0]


# -- the checks, chapter by chapter -------------------------------------------------------------


def check_status(server: Server) -> None:
    print("\nHealth and status")
    health = server.call("GET /health")
    server.offline = health.get("offline") is True
    server.ok("GET /health: status, authenticated, active_sessions, timestamp")
    expect(
        health["authenticated"],
        "GET /health: authenticated",
        expected="true: without a Claude credential nothing else can be checked. "
        "docs/authentication.md says how to give the server one; with --offline it needs none",
        got=health["authenticated"],
    )
    server.ok(f"{'the offline model' if server.offline else 'a Claude account'} answers")
    endpoints = server.call("GET /")["endpoints"]
    missing = {operation.partition(" ")[2] for operation in SHAPES} - set(endpoints)
    expect(not missing, "GET /: endpoints", expected=f"also {missing}", got=endpoints)
    server.ok("GET /: name, version, endpoints")


def check_documentation(server: Server) -> None:
    print("\nDocumentation")
    for path in ("/docs", "/redoc"):
        page = server.send("GET", path)
        got = f"{page.status_code} {page.headers.get('content-type', '')}"
        expect(got.startswith("200 text/html"), f"GET {path}", expected="200 text/html", got=got)
        server.ok(f"GET {path}: a page")
    described = server.call("GET /openapi.json")
    has_fields(described, "GET /openapi.json", {"openapi": TEXT})
    paths = described.get("paths", {})
    for operation in SHAPES:
        method, _, path = operation.partition(" ")
        known = method.lower() in paths.get(path, {})
        expect(known, "GET /openapi.json: paths", expected=operation, got=list(paths))
    server.ok(f"GET /openapi.json: OpenAPI {described['openapi']}, with every operation")


def check_query(server: Server) -> None:
    print("\nOne-off queries")
    began = time.monotonic()
    answer = server.call("POST /query", {"prompt": "What is 2+2?"})
    took_ms = round((time.monotonic() - began) * 1000) + 1
    what, got = "POST /query: duration_ms", answer["duration_ms"]
    expect(got <= took_ms, what, expected=f"at most {took_ms}, as measured here", got=got)
    if server.offline:
        mentions(answer["response"], "What is 2+2?", "POST /query: the offline model's answer")
    server.ok("POST /query: response, duration_ms, num_turns, total_cost_usd")

    server.call(
        "POST /query",
        {
            "prompt": "What is Python? Answer in one sentence.",
            "model": "claude-3-5-sonnet-20241022",
            "allowed_tools": ["Read", "Write"],
            "permission_mode": "acceptEdits",
            "stream": False,
        },
    )
    server.ok("POST /query: model, allowed_tools, permission_mode and stream are taken")

    prompt = "Create a Python script that prints Hello World"
    if server.offline:
        prompt += ' [[tool Write {"file_path": "hello.py", "content": "print()"}]]'
    body = {"prompt": prompt, "allowed_tools": ["Write"], "permission_mode": "acceptEdits"}
    answer = server.call("POST /query", body)
    if server.offline:
        mentions(answer["response"], "created", "POST /query: what the tool said")
    server.ok("POST /query: a file operation with the tool Write and acceptEdits")

    body = {"prompt": "What is 3+3?", "permission_mode": "bypassPermissions"}
    response = server.send("POST", "/query", json=body)
    expect(
        response.status_code in (200, 403),
        "POST /query: permission_mode bypassPermissions",
        expected="200, or 403 where the operator has not allowed it",
        got=f"{response.status_code} {response.text[:500]}",
    )
    found = "allowed" if response.status_code == 200 else "refused with 403"
    server.ok(f"POST /query: permission_mode bypassPermissions is {found} here")


def check_streaming(server: Server) -> None:
    print("\nStreaming")
    body = {
        "prompt": "Count from 1 to 10",
        "model": "claude-3-opus-20240229",
        "allowed_tools": TOOLS,
        "permission_mode": "plan",
    }
    streamed = server.stream("POST /query", body)
    streamed.finish()
    expect(streamed.text != "", streamed.what, expected="text events", got="none")
    server.ok(f"POST /query: {len(streamed.texts)} text events make up the answer, then done")
    if not server.offline:
        return
    whole = server.call("POST /query", body)["response"]
    expect(streamed.text == whole, "POST /query, streaming", expected=whole, got=streamed.text)
    server.ok("POST /query: the answer is the same, streamed or not")


def check_sessions(server: Server) -> None:
    print("\nConversation sessions")
    started = server.start(
        {
            "initial_prompt": f"The code word is {CODE_WORD}. Remember it, and answer with OK.",
            "model": "claude-3-5-haiku-20241022",
            "allowed_tools": ["Read"],
            "permission_mode": "default",
        }
    )
    has_fields(started, "POST /session/start", {"initial_response": TEXT})
    server.ok("POST /session/start: session_id, status, initial_response, created_at")
    session = started["session_id"]

    query = "POST /session/{session_id}/query"
    ask = {"prompt": "What is the code word? Answer with nothing else."}
    mentions(server.call(query, ask, session=session)["response"], CODE_WORD, f"{query}: memory")
    server.ok(f"{query}: session_id, response, duration_ms; it remembers")
    streamed = server.stream(query, ask, session=session)
    streamed.finish()
    mentions(streamed.text, CODE_WORD, f"{query}, streaming: memory")
    server.ok(f"{query}: streaming, it remembers too")

    found = server.call("GET /session/{session_id}", session=session)
    same = {"created_at": exactly(started["created_at"]), "active": exactly(True)}
    has_fields(found, "GET /session/{session_id}", same)
    server.ok("GET /session/{session_id}: session_id, created_at, active, model")

    other = server.start({})["session_id"]
    server.ok("POST /session/start: without initial_prompt it takes its first from /query")
    listed = server.call("GET /sessions")
    ids, count = listed["active_sessions"], listed["count"]
    expect({session, other} <= set(ids), "GET /sessions", expected=[session, other], got=ids)
    expect(count == len(ids), "GET /sessions: count", expected=len(ids), got=count)
    active = server.call("GET /health")["active_sessions"]
    expect(active >= 2, "GET /health: active_sessions", expected="at least 2", got=active)
    server.ok("GET /sessions: active_sessions, count; GET /health counts them too")

    unknown = {"prompt": "Which code word did I tell you? Answer NONE if I told you none."}
    with ThreadPoolExecutor(max_workers=2) as pool:
        here = pool.submit(server.call, query, ask, session=session)
        there = pool.submit(server.call, query, unknown, session=other)
        mentions(here.result()["response"], CODE_WORD, f"{query}, two at once: the first")
        told = there.result()["response"]
    what = f"{query}, two at once: the other session's answer"
    expect(CODE_WORD not in told.lower(), what, expected=f"no {CODE_WORD!r}", got=told)
    server.ok("two sessions answer at the same time, and neither knows of the other")

    if server.offline:
        check_offline(server, other)
    check_interrupt(server, session)
    after = server.call(query, ask, session=session)["response"]
    mentions(after, CODE_WORD, f"{query}: memory after an interrupt")
    server.ok(f"{query}: after the interrupt the session goes on, with its memory")

    for session_id in (session, other):
        server.call("DELETE /session/{session_id}", session=session_id)
    ids = server.call("GET /sessions")["active_sessions"]
    left = {session, other} & set(ids)
    expect(not left, "GET /sessions after DELETE", expected="neither session", got=ids)
    server.ok("DELETE /session/{session_id}: status, session_id; GET /sessions lists it no more")
    check_unknown(server, session, "a closed session")


def check_offline(server: Server, session: str) -> None:
    """Check what only a model that does as it is told can show."""
    query = "POST /session/{session_id}/query"
    slow = server.stream(query, {"prompt": "[[slow tokens=40 delay_ms=25]]"}, session=session)
    slow.finish()
    early = time.monotonic() - slow.first_text_at
    what = f"{query}, streaming: the first text, before the end"
    expect(early > 0.2, what, expected="most of a second", got=f"{early:.3f} s")
    server.ok(f"{query}: text arrives as the model writes it")
    broken = {"prompt": "[[fail status=400]]"}
    server.call(query, broken, session=session, status=502)
    last = list(server.stream(query, broken, session=session).events)[-1]
    has_fields(last, "the last event of a turn that failed", {"type": exactly("error")})
    server.ok("a model that fails is an error, in an answer (502) and in a stream; never text")


def check_interrupt(server: Server, session: str) -> None:
    operation = "POST /session/{session_id}/interrupt"
    server.call(operation, session=session)
    server.ok(f"{operation}: status, session_id; 200 also when nothing runs")

    prompt = "Count from 1 to 1000, one number on each line."
    if server.offline:
        prompt += " [[slow tokens=2000 delay_ms=25]]"
    query = "POST /session/{session_id}/query"
    running = server.stream(query, {"prompt": prompt}, session=session)
    for event in running.events:
        if event["type"] == "text":
            break
    answer = server.call(operation, session=session)
    done = running.finish()
    if server.offline:
        has_fields(answer, operation, {"outcome": exactly("interrupted")})
        has_fields(done, f"{operation}: done", {"outcome": exactly("interrupted")})
    server.ok(f"{operation}: the running turn ends, its stream with done")


def check_unknown(server: Server, session: str, which: str) -> None:
    for operation in SHAPES:
        if "{session_id}" in operation:
            body = {"prompt": "Are you there?"} if operation.endswith("/query") else None
            server.call(operation, body, session=session, status=404)
    server.ok(f"404 for {which}: GET, query, interrupt, DELETE")


def check_errors(server: Server) -> None:
    print("\nErrors")
    check_unknown(server, NOBODY, "an unknown session")
    server.call("GET /no/such/path", status=404)
    server.ok("404 for an unknown path")
    server.call("PUT /query", {"prompt": "Hello"}, status=405)
    server.ok("405 for a wrong method")

    hello = {"prompt": "Hello"}
    for operation, name, body in (
        ("POST /query", "prompt", {}),
        ("POST /query", "prompt", {"prompt": ""}),
        ("POST /query", "prompt", {"prompt": 42}),
        ("POST /query", "model", {**hello, "model": 42}),
        ("POST /query", "allowed_tools", {**hello, "allowed_tools": "Read"}),
        ("POST /query", "allowed_tools", {**hello, "allowed_tools": ["NoSuchTool"]}),
        ("POST /query", "permission_mode", {**hello, "permission_mode": "sometimes"}),
        ("POST /query", "stream", {**hello, "stream": "yes"}),
        ("POST /query", "no_such_field", {**hello, "no_such_field": 1}),
        ("POST /session/start", "initial_prompt", {"initial_prompt": 42}),
    ):
        detail = server.call(operation, body, status=400)["detail"]
        mentions(detail, name, f"{operation} with {body}: detail")
    server.ok("400 for a field that is missing, of the wrong type, not possible, or unknown")
    as_json = {"content-type": "application/json"}
    server.call("POST /query", status=400, data="{", headers=as_json)
    server.ok("400 for a body that is not JSON")
    server.ok("no key was needed: nothing was answered with 401")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Goes through the whole API of a running server and checks every answer."
    )
    parser.add_argument(
        "--base-url",
        default=os.environ.get("BASE_URL") or "http://localhost:3000",
        help="where the server is (the BASE_URL variable, else http://localhost:3000)",
    )
    server = Server(parser.parse_args(arguments).base_url)
    print(f"Checking {server.base_url}")
    began = time.monotonic()
    try:
        check_status(server)
        check_documentation(server)
        check_query(server)
        check_streaming(server)
        check_sessions(server)
        check_errors(server)
    except Mismatch as mismatch:
        print(
            f"\nMISMATCH  {mismatch}\n  expected: {mismatch.expected}\n  got:      {mismatch.got}"
        )
        return 1
    except requests.ConnectionError as error:
        print(f"\nFAILED  {server.base_url} does not answer. Is it running? (make demo)\n  {error}")
        return 1
    except (requests.RequestException, ValueError) as error:
        print(f"\nFAILED  {type(error).__name__}: {error}")
        return 1
    finally:
        server.clean_up()
    print(f"\nAll {server.checks} checks passed in {time.monotonic() - began:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
