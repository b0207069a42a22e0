"""Server, supervisor and offline model in the test's own process, in a thread with its own loop.

For failures that the command has no options for: short time limits, another CLI. The test is the
client, in its own thread, and can look at the supervisor and the model from behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from anyio.from_thread import BlockingPortal, start_blocking_portal

from session_http.app import create_app
from session_http.listen import open_sockets
from session_http.offline import OfflineModel
from session_http.serve import Stop, StopTimes, serve
from session_supervisor import (
    Inspection,
    RestartPolicy,
    SessionSnapshot,
    Supervisor,
    SupervisorConfig,
    Watchdogs,
)
from session_supervisor.agents.claude import ClaudeAgent
from tests.e2e.sse import Client

UPSTREAM_HANGS = Watchdogs(start_s=60.0, first_byte_s=10.0, progress_s=5.0, interrupt_s=20.0)
PROCESS_HANGS = Watchdogs(start_s=60.0, silence_s=1.0, probe_s=4.0, interrupt_s=20.0)
"""Watchdogs that are impatient in one way each, but believe a busy machine in every other; and even
in that one way they leave a process the time that it takes where others run."""

QUICK = RestartPolicy(base_delay_s=0.05, max_restarts=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything from the upstream to the server.

    Attributes:
        url: Where the server listens.
        model: What the CLIs talk to.
        supervisor: The sessions.
        portal: The way into the loop that all of it runs in.
    """

    url: str
    model: OfflineModel
    supervisor: Supervisor
    portal: BlockingPortal

    def client(self) -> Client:
        """Return a client; use it as a context manager."""
        return Client(self.url)

    def inspect(self, path: str) -> Inspection:
        """Look into the session at a path."""
        return self.portal.call(self.supervisor.get(path.rpartition("/")[2]).inspect)

    def snapshot(self, path: str) -> SessionSnapshot:
        """Return what the session at a path looks like, whatever its state."""
        return self.portal.call(self.supervisor.get(path.rpartition("/")[2]).snapshot)

    def pid(self, path: str) -> int:
        """Return the id of its process."""
        pid = self.inspect(path).pid
        assert pid is not None
        return pid


@contextmanager
def running_world(
    folder: Path,
    *,
    watchdogs: Watchdogs,
    restarts: RestartPolicy = QUICK,
    cli_path: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Generator[World]:
    """Run all of it for a while.

    Args:
        folder: For the CLI's configuration and transcripts.
        watchdogs: How long silence is believed.
        restarts: How often a crashed process is started again.
        cli_path: The CLI; None for the real one.
        env: Further environment of the CLI.
    """
    config = SupervisorConfig(watchdogs=watchdogs, restarts=restarts)
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(
            _world(portal, folder, config, cli_path, env or {})
        ) as world,
    ):
        yield world


@asynccontextmanager
async def _world(
    portal: BlockingPortal,
    folder: Path,
    config: SupervisorConfig,
    cli_path: Path | None,
    env: Mapping[str, str],
) -> AsyncGenerator[World]:
    async with OfflineModel() as model:
        agent = ClaudeAgent(
            cli_path=cli_path,
            env={**model.environment(), "CLAUDE_CODE_MAX_RETRIES": "1", **env},
            config_dir=folder / "config",
        )
        async with Supervisor(agent, config=config) as supervisor:
            sockets = open_sockets("127.0.0.1", 0)
            stop = Stop()
            times = StopTimes(drain_s=0.0)
            server = asyncio.create_task(
                serve(create_app(supervisor), supervisor, sockets, stop=stop, times=times)
            )
            # It opens files at once, which are its own, and not those of the test that comes next.
            await asyncio.sleep(0)
            try:
                port = sockets[0].getsockname()[1]
                yield World(
                    url=f"http://127.0.0.1:{port}",
                    model=model,
                    supervisor=supervisor,
                    portal=portal,
                )
            finally:
                stop.ask()
                await server
