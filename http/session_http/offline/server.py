"""Serve the offline model on loopback, in the running event loop."""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, cast

import anyio
from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config, Sockets

from session_http.offline.app import OfflineApp, RequestRecord, create_offline_app
from session_http.offline.reply import Pacing
from session_http.offline.scenario import Scenario

__all__ = ["OfflineModel"]


class OfflineModel:
    """The offline model as a server, for as long as the context lasts.

    It needs asyncio. Leaving the context breaks off every answer and takes at most about two
    seconds, whatever clients do; no task and no socket is left.

    Example:
        >>> async with OfflineModel() as model:
        ...     options = ClaudeAgentOptions(env=model.environment())
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        scenario: Scenario | None = None,
        *,
        pacing: Pacing | None = None,
        unknown_models: str = "no-such-model",
    ) -> None:
        """Prepare a server; see `create_offline_app` for what it answers.

        Args:
            host: the address to listen on.
            port: the port; 0: any free one.
            scenario: chance for prompts without directives.
            pacing: the pace where the prompt sets none.
            unknown_models: regular expression for the names of models that do not exist.
        """
        self._address = (host, port)
        self.app: OfflineApp = create_offline_app(
            scenario=scenario, pacing=pacing, unknown_models=unknown_models
        )
        self._listener: _Listener | None = None
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def base_url(self) -> str:
        """What `ANTHROPIC_BASE_URL` must be; a path may be added to it.

        Raises:
            RuntimeError: the server does not run.
        """
        if self._listener is None:
            raise RuntimeError("the offline model does not run; enter its context first")
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """The newest requests for messages, oldest first."""
        return self.app.requests

    def environment(self) -> Mapping[str, str]:
        """Variables with which the Claude Code CLI talks to this server and to nothing else.

        Raises:
            RuntimeError: the server does not run.
        """
        return {
            "ANTHROPIC_BASE_URL": self.base_url,
            "ANTHROPIC_API_KEY": "offline",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_AUTOUPDATER": "1",
        }

    async def __aenter__(self) -> OfflineModel:
        """Start.

        Raises:
            OSError: the address cannot be listened on.
            RuntimeError: this model was started before; make a new one, on the same port if needed.
        """
        if self._stop.is_set() or self._task:
            raise RuntimeError("an offline model can be started once; make a new one")
        self._listener = _Listener.open(*self._address)
        # Hypercorn's `serve` may end with CancelledError, which only a task of its own contains.
        self._task = asyncio.create_task(
            serve(
                cast(Any, self.app),
                _configured(self._listener),
                shutdown_trigger=self._stop.wait,
            ),
            name="offline model",
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, within about two seconds."""
        with anyio.CancelScope(shield=True):
            await self._end()

    async def _end(self) -> None:
        task, listener = self._task, self._listener
        if task is None or listener is None:
            return
        self.app.close()
        self._stop.set()
        # Answers end first: on Python 3.12 and newer, Hypercorn waits for connections without end.
        await _until(task, 0.1)
        for _ in range(2):
            listener.drop_connections()
            await _until(task, 0.7)
        task.cancel()
        await _until(task, 0.5)
        listener.close()
        self._listener = self._task = None
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error


async def _until(task: asyncio.Task[None], seconds: float) -> None:
    if not task.done():
        await asyncio.wait({task}, timeout=seconds)


class _Listener(socket.socket):
    """A listening socket that knows its connections, so that it can drop them."""

    @classmethod
    def open(cls, host: str, port: int) -> _Listener:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Named, because asyncio sets TCP_NODELAY only where the protocol is; else an answer waits
        # 40 ms for an acknowledgement.
        listener = cls(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(2048)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self._connections.add(connection)
        return connection, address

    def drop_connections(self) -> None:
        """Shut down what is open: a client that does not read would hold its answer for ever."""
        for connection in tuple(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # already closed


def _configured(listener: socket.socket) -> Config:
    class Configuration(Config):
        def create_sockets(self) -> Sockets:
            return Sockets([], [listener], [])

    config = Configuration()
    config.errorlog = None
    config.accesslog = None
    config.backlog = 2048
    config.graceful_timeout = 0.5
    # The defaults end connections that live long.
    config.keep_alive_max_requests = 1 << 31
    config.keep_alive_timeout = 300
    return config
