"""Three applications that answer alike, on three servers: what a stream of events costs each.

`ours` is the supervisor with a scripted agent behind the API; `starlette` the least that can be
done, a generator of prepared bytes; `fastapi` the framework's own Server-Sent Events. All say
numbered words at the same pace. It prints its URL and serves until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bench.ports import listens, unused_port
from bench.suite.changes import CHANGES
from bench.suite.stamps import plain_word, word
from session_http import collector
from session_http.accept import Acceptor
from session_http.app import create_app
from session_http.listen import open_sockets
from session_http.serve import raise_file_limit, run
from session_http.wire import ConnectionLimits, hypercorn_settings
from session_supervisor import Supervisor, SupervisorConfig
from session_supervisor.agents.port import TextBlock, TextDelta
from session_supervisor.agents.scripted import Conversation, Pause, ScriptedAgent, Step
from session_supervisor.spec import Prompt
from session_supervisor.stores.sqlite import SqliteStore

APPS = ("ours", "starlette", "fastapi")
SERVERS = ("hypercorn", "uvicorn", "granian")
MOST = 20_000
"""Sessions and connections that there may be."""


class Speech:
    """What is said, and when.

    A word is due at its time, however far the speaker is behind: a server that is too slow to be
    spoken to shows as late, not as less to do. The first word tells when it was due, and by that
    and the pace it is known of the others, which can so be prepared.

    Args:
        tokens: Words of an answer.
        delay_s: Seconds before each.
        size: Bytes that a word has at least.
    """

    def __init__(self, tokens: int, delay_s: float, *, size: int = 0) -> None:
        self._tokens = tokens
        self._delay_ns = round(delay_s * 1e9)
        self._words = [plain_word(n, size) for n in range(tokens)]
        self._prepared = [_frame(one) for one in self._words]

    def script(self, _prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
        """Say it as an agent."""
        said: list[str] = []
        for number, due_ns in self._due():
            wait_s = (due_ns - time.monotonic_ns()) / 1e9
            if wait_s > 0:
                yield Pause(wait_s)
            said.append(self._word(number, due_ns))
            yield TextDelta(said[-1])
        yield TextBlock("".join(said))

    async def frames(self) -> AsyncGenerator[bytes]:
        """Say it as prepared events."""
        for number, due_ns in self._due():
            await _until(due_ns)
            yield self._prepared[number] if number else _frame(word(number, due_ns))
        yield b'data: {"type":"done"}\n\n'

    async def values(self) -> AsyncGenerator[dict[str, str]]:
        """Say it as values that a framework makes events of."""
        for number, due_ns in self._due():
            await _until(due_ns)
            yield {"type": "text", "content": self._word(number, due_ns)}
        yield {"type": "done"}

    def _due(self) -> Iterator[tuple[int, int]]:
        began = time.monotonic_ns()
        return ((n, began + (n + 1) * self._delay_ns) for n in range(self._tokens))

    def _word(self, number: int, due_ns: int) -> str:
        return self._words[number] if number else word(number, due_ns)


async def _until(due_ns: int) -> None:
    wait_s = (due_ns - time.monotonic_ns()) / 1e9
    if wait_s > 0:
        await asyncio.sleep(wait_s)


def _frame(content: str) -> bytes:
    # As ours are, with an id and without blanks; a word has nothing that JSON escapes.
    return b'data: {"type":"text","content":"%s"}\n\n' % content.encode()


def starlette_app(speech: Speech) -> Starlette:
    """Return the least that can be done."""

    async def query(request: Request) -> Response:
        json.loads(await request.body())
        return StreamingResponse(speech.frames(), media_type="text/event-stream")

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "healthy"})

    return Starlette(routes=[Route("/query", query, methods=["POST"]), Route("/health", health)])


def fastapi_app(speech: Speech) -> FastAPI:
    """Return the framework's own way."""
    app = FastAPI()

    @app.post("/query", response_class=EventSourceResponse)
    async def query(_body: dict[str, Any]) -> AsyncIterable[dict[str, str]]:  # pyright: ignore[reportUnusedFunction] # the framework calls it
        async for value in speech.values():
            yield value

    return app


@asynccontextmanager
async def application(name: str, speech: Speech, *, stored: bool = False) -> AsyncGenerator[Any]:
    """Open an application; ours may keep its sessions in SQLite."""
    match name:
        case "ours":
            config = SupervisorConfig(
                max_sessions=MOST, max_live=MOST, max_waiting=MOST, max_starting=MOST
            )
            agent = ScriptedAgent(speech.script, history=0)
            async with AsyncExitStack() as stack:
                store = None
                if stored:
                    folder = stack.enter_context(tempfile.TemporaryDirectory())
                    store = SqliteStore(Path(folder, "sessions.db"), config.retention)
                    stack.push_async_callback(store.aclose)
                supervisor = await stack.enter_async_context(
                    Supervisor(agent, store=store, config=config)
                )
                yield create_app(supervisor)
                await supervisor.drain(0.0)
        case "starlette":
            yield starlette_app(speech)
        case _:
            yield fastapi_app(speech)


# -- the servers -----------------------------------------------------------------------------------


async def on_hypercorn(app: Any, stop: asyncio.Event, *, http2: bool = False) -> None:
    """Serve on what the command serves on."""
    sockets = open_sockets("127.0.0.1", 0)
    acceptor = Acceptor(
        app, hypercorn_settings(), ConnectionLimits(), most=MOST, tls=None, http2=http2
    )
    announce(sockets[0].getsockname()[1])
    async with asyncio.TaskGroup() as tasks:
        accepting = [tasks.create_task(acceptor.accept(one, tasks)) for one in sockets]
        await stop.wait()
        for task in accepting:
            task.cancel()
        await acceptor.close(0.5)
    for one in sockets:
        one.close()


async def on_uvicorn(app: Any, stop: asyncio.Event) -> None:
    """Serve on uvicorn with httptools."""
    import uvicorn

    class Quiet(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield  # signals are ours

    (listener, *_) = open_sockets("127.0.0.1", 0)
    config = uvicorn.Config(
        app, lifespan="off", log_level="warning", http="httptools", timeout_graceful_shutdown=1
    )
    server = Quiet(config)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listener]))
        announce(listener.getsockname()[1])
        await stop.wait()
        server.should_exit = True


async def on_granian(app: Any, stop: asyncio.Event) -> None:
    """Serve on granian."""
    from granian.constants import Interfaces
    from granian.server.embed import Server

    port = unused_port()
    server = Server(
        app,
        address="127.0.0.1",
        port=port,
        interface=Interfaces.ASGINL,
        log_enabled=False,
        websockets=False,
    )
    serving = asyncio.create_task(server.serve())
    await listens(port)
    announce(port)
    try:
        await stop.wait()
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await serving


def announce(port: int) -> None:
    """Say where it listens."""
    print(f"http://127.0.0.1:{port}", flush=True)


async def _main(app: str, server: str, speech: Speech, *, stored: bool, http2: bool) -> None:
    raise_file_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers: Mapping[str, Callable[[Any, asyncio.Event], Any]] = {
        "hypercorn": partial(on_hypercorn, http2=http2),
        "uvicorn": on_uvicorn,
        "granian": on_granian,
    }
    async with application(app, speech, stored=stored) as opened:
        with collector.calm_collector():
            await servers[server](opened, stop)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.suite.layer_server")
    parser.add_argument("--app", choices=APPS, default="ours")
    parser.add_argument("--on", choices=SERVERS, default="hypercorn")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--word-bytes", type=int, default=0, help="of a word, at least")
    parser.add_argument("--stored", action="store_true", help="ours: sessions are in SQLite")
    parser.add_argument("--http2", action="store_true", help="hypercorn: it may be HTTP/2")
    parser.add_argument("--change", choices=CHANGES, help="ours: one setting is another")
    options = parser.parse_args()
    if options.change is not None:
        CHANGES[options.change].make()
    run(
        _main(
            options.app,
            options.on,
            Speech(options.tokens, options.delay_ms / 1000, size=options.word_bytes),
            stored=options.stored,
            http2=options.http2,
        )
    )
