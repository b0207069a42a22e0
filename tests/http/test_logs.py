"""Logs: what a line holds, to which request it belongs, and what no line may ever hold."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from starlette.types import Message

from session_http import logs
from session_http.credentials import CredentialState
from tests.http.exchange import Exchange
from tests.http.servers import World, in_process, world

SECRET = "CAN" + "ARY"
"""What no line may hold; its own source is in tracebacks."""

ours = logging.getLogger("session_http.anything")
theirs = logging.getLogger("h2.anything")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Whoever configures logs does so for the whole process, so undo it."""
    root = logging.getLogger()
    named = [logging.getLogger(name) for name in ("session_http", "session_supervisor")]
    before = root.handlers[:], root.level, [one.level for one in named], logging.raiseExceptions
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level, levels, logging.raiseExceptions = before
    for one, level in zip(named, levels, strict=True):
        one.setLevel(level)


def written(level: logs.Level = "info", form: logs.Format = "json") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(form=form, level=level, stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def raises(error: BaseException) -> NoReturn:
    local = "CANARY"
    assert local
    raise error


def log_failure(raised: Callable[[], BaseException]) -> None:
    try:
        raises(raised())
    except BaseException:  # whatever a test wants to see logged
        ours.exception("it failed")


# What a line holds


def test_a_record_is_one_line_of_json() -> None:
    stream = written()
    ours.warning("more\nthan one %s", "line", extra={"session_id": "s", "turn_id": "t"})
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "more\nthan one line",
        "level": "warning",
        "logger": "session_http.anything",
        "session_id": "s",
        "turn_id": "t",
    }


def test_people_get_a_line_too() -> None:
    stream = written(form="console")
    ours.info("so it is", extra={"session_id": "s"})
    (line,) = stream.getvalue().splitlines()
    assert "so it is" in line
    assert "session_id=s" in line
    assert "\x1b" not in line


def test_what_a_library_attaches_is_not_shown() -> None:
    stream = written()
    theirs.warning("hm", extra={"headers": "CANARY"})
    assert "CANARY" not in stream.getvalue()


def test_debug_is_for_us_and_not_for_libraries() -> None:
    stream = written("debug")
    ours.debug("ours")
    theirs.debug("authorization: CANARY")
    theirs.info("GET /CANARY")
    theirs.warning("theirs")
    assert [line["event"] for line in lines(stream)] == ["ours", "theirs"]


def test_the_level_holds() -> None:
    stream = written("warning")
    ours.info("no")
    theirs.info("no")
    ours.warning("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


def test_a_terminal_gets_what_people_read_and_everything_else_json() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, is_json in ((Terminal(), False), (io.StringIO(), True)):
        logs.configure(form="auto", stream=stream)
        ours.info("hello")
        assert stream.getvalue().startswith("{") is is_json


def test_a_warning_of_python_is_a_record() -> None:
    stream = written()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("deprecated", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = lines(stream)
    assert "deprecated" in line["event"]


def test_a_record_that_cannot_be_rendered_is_not_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    written()
    ours.info("%d", "CANARY")
    assert "CANARY" not in capsys.readouterr().err


# Tracebacks


def with_a_note() -> BaseException:
    error = ValueError("CANARY")
    error.add_note("CANARY")
    return error


def with_a_cause() -> BaseException:
    try:
        raise KeyError("CANARY") from ValueError("CANARY")
    except KeyError as error:
        return RuntimeError("CANARY", error)


def in_a_group() -> BaseException:
    return ExceptionGroup("CANARY", [ValueError("CANARY"), ExceptionGroup("CANARY", [KeyError()])])


class Quotes(Exception):
    def __repr__(self) -> str:
        return "CANARY"

    __str__ = __repr__


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("raised", [with_a_note, with_a_cause, in_a_group, Quotes])
def test_a_traceback_shows_places_and_types_and_no_words(
    raised: Callable[[], BaseException], form: logs.Format
) -> None:
    stream = written(form=form)
    log_failure(raised)
    said = stream.getvalue()
    assert "in raises" in said
    assert type(raised()).__qualname__ in said
    # The line of the source that made the local variable is not among the places.
    assert "CANARY" not in said


def test_causes_and_groups_are_all_there() -> None:
    stream = written()

    def group() -> BaseException:
        try:
            raise KeyError from OSError(2, "No such file", "/x")
        except KeyError as error:
            return ExceptionGroup("", [error, TypeError()])

    log_failure(group)
    (line,) = lines(stream)
    text = line["exception"]
    for part in ("ExceptionGroup", "  | builtins.TypeError", "  | builtins.KeyError", "Which led"):
        assert part in text
    assert "FileNotFoundError: [Errno 2] No such file: '/x'" in text


def test_at_debug_a_traceback_has_words() -> None:
    stream = written("debug")
    log_failure(with_a_note)
    assert stream.getvalue().count("CANARY") == 2


def test_a_cycle_of_causes_ends() -> None:
    stream = written()

    def cycle() -> BaseException:
        one, two = ValueError(), KeyError()
        one.__cause__, two.__cause__ = two, one
        return one

    log_failure(cycle)
    assert stream.getvalue().count("builtins.") == 2


def test_what_asyncio_quotes_is_not_shown() -> None:
    stream = written()

    async def fails() -> None:
        raise ValueError(SECRET)

    async def main() -> None:
        task = asyncio.create_task(fails())
        await asyncio.wait({task})
        del task
        gc.collect()

    asyncio.run(main())
    (line,) = lines(stream)
    assert line["event"] == "Task exception was never retrieved"
    assert "CANARY" not in stream.getvalue()


# Requests


def test_a_record_belongs_to_the_request_that_is_being_answered() -> None:
    stream = written()

    async def main() -> None:
        later = asyncio.Event()

        async def session() -> None:
            ours.info("during")
            await later.wait()
            ours.info("after")

        with logs.request("r-1", "GET") as noted:
            noted.owner = "ann"
            task = asyncio.create_task(session())
            await asyncio.sleep(0)
        later.set()
        await task

    asyncio.run(main())
    during, access, after = lines(stream)
    assert (during["request_id"], during["owner"]) == ("r-1", "ann")
    assert (access["logger"], access["request_id"]) == ("session_http.access", "r-1")
    assert "request_id" not in after
    assert "owner" not in after


class Broken:
    """Credentials that fail with what a client has sent."""

    async def state(self, owner: str = "") -> CredentialState:
        raise ValueError(SECRET)


async def access_lines(
    stream: io.StringIO, one: World, method: str, path: str, **request: Any
) -> dict[str, Any]:
    before = len(lines(stream))
    async with in_process(one.app) as client:
        answer = await client.request(method, path, **request)
    *_, line = lines(stream)[before:]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["status"] == answer.status_code
    assert line["ms"] >= 0
    return line


@pytest.mark.anyio
async def test_a_request_has_one_line() -> None:
    stream = written()
    async with world() as one:
        line = await access_lines(stream, one, "POST", "/query", json={"prompt": "CANARY"})
        assert (line["method"], line["path"], line["owner"]) == ("POST", "/query", "local")
        session, turn = line["session_id"], line["turn_id"]
        assert session == str(uuid.UUID(session))
        assert turn == str(uuid.UUID(turn))
        started = await access_lines(stream, one, "POST", "/session/start", json={})
        session = started["session_id"]
        asked = await access_lines(
            stream, one, "POST", f"/session/{session}/query", json={"prompt": "CANARY"}
        )
        assert (asked["path"], asked["session_id"]) == ("/session/{session_id}/query", session)
        streamed = await access_lines(
            stream,
            one,
            "POST",
            f"/session/{session}/query",
            json={"prompt": "CANARY", "stream": True},
        )
        assert streamed["turn_id"] != asked["turn_id"]
    assert len(lines(stream)) == 4
    assert "CANARY" not in stream.getvalue()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "request_", "expected"),
    [
        ("GET", "/CANARY?x=CANARY", {}, ("GET", "none", 404)),
        ("GET", "/session/CANARY", {}, ("GET", "/session/{session_id}", 404)),
        ("CANARY", "/query", {}, ("other", "/query", 405)),
        ("POST", "/query?x=CANARY", {"content": "CANARY"}, ("POST", "/query", 415)),
        ("POST", "/query", {"json": {"prompt": 3, "CANARY": "CANARY"}}, ("POST", "/query", 400)),
        ("HEAD", "/docs", {"headers": {"x-other": "CANARY"}}, ("HEAD", "/docs", 200)),
    ],
)
async def test_what_a_client_sends_is_not_logged(
    method: str, path: str, request_: dict[str, Any], expected: tuple[str, str, int]
) -> None:
    stream = written()
    async with world() as one:
        line = await access_lines(stream, one, method, path, **request_)
    assert (line["method"], line["path"], line["status"]) == expected
    assert "CANARY" not in stream.getvalue()


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_a_probe_has_a_line_only_when_something_is_wrong(path: str) -> None:
    quiet, all_ = written(), written("debug")
    async with world() as one:
        line = await access_lines(all_, one, "GET", path)
        assert (line["path"], line["status"], line["level"]) == (path, 200, "debug")
        logs.configure(form="json", stream=quiet)
        async with in_process(one.app) as client:
            assert (await client.get(path)).status_code == 200
            assert not lines(quiet)
        line = await access_lines(quiet, one, "POST", path)
    assert (line["status"], line["level"]) == (405, "info")


@pytest.mark.anyio
async def test_a_failure_of_ours_is_logged_with_its_request_and_without_its_words() -> None:
    stream = written()
    async with world(credentials=Broken()) as one:
        line = await access_lines(stream, one, "POST", "/query", json={"prompt": "CANARY"})
    assert line["status"] == 500
    failure, access = lines(stream)
    assert failure["request_id"] == access["request_id"]
    assert failure["exception"].endswith("builtins.ValueError")
    assert "CANARY" not in stream.getvalue()


@pytest.mark.anyio
async def test_a_client_that_does_not_wait_is_told_apart() -> None:
    stream = written()

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async with world() as one:
        exchange = Exchange("POST", "/query", {"prompt": "CANARY"})
        await one.app(exchange.scope, gone, exchange.send)
    (line,) = lines(stream)
    assert (line["status"], exchange.sent) == (logs.GONE, [])


@pytest.mark.anyio
async def test_whoever_does_not_want_these_lines_pays_nothing() -> None:
    stream = written()
    logs.access.setLevel(logging.WARNING)
    try:
        async with world() as one, in_process(one.app) as client:
            await client.get("/health")
    finally:
        logs.access.setLevel(logging.NOTSET)
    assert stream.getvalue() == ""
