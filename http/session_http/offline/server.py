"""Serve the offline model on loopback, in the running event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import cast

import anyio

from session_http.accept import MOST_CONNECTIONS, Acceptor
from session_http.inbox import Application
from session_http.listen import BACKLOG
from session_http.offline.app import OfflineApp, RequestRecord, create_offline_app
from session_http.offline.reply import Pacing
from session_http.offline.scenario import Scenario
from session_http.wire import ConnectionLimits, hypercorn_settings

__all__ = ["OfflineModel"]

CLOSE_S = 1.0
"""Seconds for answers that were broken off to be read, before their connections are cut."""


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
        self._listener: socket.socket | None = None
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
        self._listener = _listening(*self._address)
        acceptor = Acceptor(
            cast(Application, self.app),
            hypercorn_settings(),
            ConnectionLimits(idle_s=300.0),
            most=MOST_CONNECTIONS,
            tls=None,
            http2=False,
        )
        self._task = asyncio.create_task(
            self._serve(self._listener, acceptor), name="offline model"
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

    async def _serve(self, listener: socket.socket, acceptor: Acceptor) -> None:
        async with asyncio.TaskGroup() as group:
            accepting = group.create_task(acceptor.accept(listener, group))
            await self._stop.wait()
            accepting.cancel()
            self.app.close()
            await acceptor.close(CLOSE_S)

    async def _end(self) -> None:
        if self._task is None or self._listener is None:
            return
        self._stop.set()
        try:
            await self._task
        finally:
            self._listener.close()
            self._listener = self._task = None


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
