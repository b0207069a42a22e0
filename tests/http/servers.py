"""The application on real servers and real sockets, in the test's own event loop.

In-process, so that a test sees both ends: what a client gets, and what the supervisor, the
application and the loop hold at that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from bench.ports import listens, unused_port
from hypercorn.config import Config
from starlette.types import ASGIApp, Receive, Scope, Send

from session_http.accept import Acceptor
from session_http.app import App, create_app
from session_http.credentials import Credentials
from session_http.keys import Authenticate, anybody
from session_http.listen import open_sockets
from session_http.serve import Stop, StopTimes, serve
from session_http.settings import HttpSettings
from session_http.wire import ConnectionLimits
from session_supervisor import Supervisor, SupervisorConfig
from session_supervisor.agents.scripted import Script, ScriptedAgent, echo
from session_supervisor.stores.port import Store

PATIENCE_S = 60.0
"""Seconds in which whatever must happen has happened, on a machine that has other work too."""

BOTH_LOOPS = (
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
)
"""For `anyio_backend`: the command runs on uvloop where there is one, and they differ in much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything between a client and a scripted agent."""

    agent: ScriptedAgent
    supervisor: Supervisor
    app: App


@asynccontextmanager
async def world(
    script: Script = echo,
    *,
    agent: ScriptedAgent | None = None,
    config: SupervisorConfig | None = None,
    store: Store | None = None,
    settings: HttpSettings | None = None,
    credentials: Credentials | None = None,
    authenticate: Authenticate = anybody,
) -> AsyncGenerator[World]:
    """Open a supervisor of a scripted agent, and the application on it."""
    agent = agent or ScriptedAgent(script)
    async with Supervisor(agent, config=config, store=store) as supervisor:
        app = create_app(
            supervisor, credentials=credentials, settings=settings, authenticate=authenticate
        )
        yield World(agent=agent, supervisor=supervisor, app=app)


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], *, within_s: float = PATIENCE_S
) -> None:
    """Wait until something holds that nobody announces."""
    async with asyncio.timeout(within_s):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def in_process(app: Any, *, hooks: Any = None) -> AsyncGenerator[httpx.AsyncClient]:
    """Return a client that calls the application without any socket."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://test",
        event_hooks=hooks,
        timeout=PATIENCE_S,
    ) as client:
        yield client


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@asynccontextmanager
async def on_hypercorn(
    world: World,
    *,
    times: StopTimes | None = None,
    unread_s: float | None = None,
    **options: Any,
) -> AsyncGenerator[Address]:
    """Serve as the command does; options are those of `serve`."""
    sockets = open_sockets("127.0.0.1", 0, unread_s=unread_s)
    stop = Stop()
    times = times or StopTimes(drain_s=0.0)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(
            serve(world.app, world.supervisor, sockets, stop=stop, times=times, **options)
        )
        try:
            yield Address(host="127.0.0.1", port=sockets[0].getsockname()[1])
        finally:
            stop.wanted.set()


@asynccontextmanager
async def accepting(app: Any, **options: Any) -> AsyncGenerator[Address]:
    """Serve any ASGI application on our connections; options are those of `Acceptor`."""
    (listener,) = open_sockets("127.0.0.1", 0)
    config = Config()
    config.accesslog = config.errorlog = None
    limits = options.pop("limits", ConnectionLimits())
    options = {"most": 100, "tls": None, "http2": True, **options}
    acceptor = Acceptor(app, config, limits, **options)
    with listener:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(acceptor.accept(listener, tasks))
            try:
                yield Address(host="127.0.0.1", port=listener.getsockname()[1])
            finally:
                task.cancel()
                await acceptor.close(0.2)


@asynccontextmanager
async def on_uvicorn(world: World) -> AsyncGenerator[Address]:
    """Serve on uvicorn."""
    import uvicorn

    class InTheTest(uvicorn.Server):
        def install_signal_handlers(self) -> None:
            pass

    (listener,) = open_sockets("127.0.0.1", 0)
    server = InTheTest(
        uvicorn.Config(world.app, lifespan="off", log_level="warning", timeout_graceful_shutdown=2)
    )

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listener]))
        try:
            yield Address(host="127.0.0.1", port=listener.getsockname()[1])
        finally:
            await world.supervisor.drain(0.0)
            server.should_exit = True


class Switch:
    """An application that is another one from test to test."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None, "no test uses it now"
        await self.app(scope, receive, send)


class Granian:
    """One granian for several tests: in-process, each leaves its runtime's sockets behind."""

    def __init__(self, switch: Switch, port: int) -> None:
        self._switch = switch
        self._port = port

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncGenerator[Granian]:
        from granian.constants import Interfaces
        from granian.server.embed import Server

        switch, port = Switch(), unused_port()
        server = Server(
            switch,
            address="127.0.0.1",
            port=port,
            interface=Interfaces.ASGINL,
            log_enabled=False,
            websockets=False,
        )
        serving = asyncio.create_task(server.serve())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await listens(port)
            yield cls(switch, port)
        finally:
            server.stop()  # type: ignore[no-untyped-call]
            await serving

    @asynccontextmanager
    async def serving(self, world: World) -> AsyncGenerator[Address]:
        """Serve this world, until the context ends."""
        self._switch.app = world.app
        try:
            yield Address(host="127.0.0.1", port=self._port)
        finally:
            await world.supervisor.drain(0.0)
            async with asyncio.timeout(PATIENCE_S):
                await world.app.all_answered()
            self._switch.app = None
