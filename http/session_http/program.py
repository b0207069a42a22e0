"""The `serve` command: agent, supervisor and application put together, from its options."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from session_http import TITLE, version
from session_http.app import create_app
from session_http.credentials import Assumed, Credentials, CredentialState, Watched
from session_http.guard import LOOPBACK_NAMES
from session_http.listen import CannotListen, addresses, is_loopback, open_sockets, urls
from session_http.serve import Stop, StopTimes, raise_file_limit, run, serve, stopped_by_signals
from session_http.settings import HttpSettings
from session_supervisor import Supervisor, SupervisorConfig
from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.agents.claude.credentials import find_credential
from session_supervisor.agents.claude.models import DEFAULT_ALIASES, DEFAULT_MODEL

logger = logging.getLogger(__name__)

TRY_OFFLINE = "To try the server without one: session-supervisor serve --offline."

_ONLINE = ("ANTHROPIC_", "CLAUDE_CODE_USE_", "CLAUDE_CODE_OAUTH")
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})


class CannotServe(Exception):
    """The server cannot be started so; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What the command was told; see its help.

    Attributes:
        host: Name or address to listen on.
        port: Port to listen on; 0 takes a free one.
        offline: Whether the offline model answers.
        no_auth: Whether to listen beyond this machine without keys.
        trusted_hosts: Further host names under which browsers may use the server.
        model: Model of sessions that name none; None: the agent's default.
        model_aliases: Names that sessions may use for other models, besides the agent's own.
        extra_tools: Further tools that sessions have.
        allow_bypass_permissions: Whether sessions may ask for `bypassPermissions`.
        workspace: Where sessions get their private directories; None: a temporary one.
        max_sessions: Most open sessions; None: the library's default, also below.
        max_live: Most Claude Code processes.
        idle_timeout_s: Seconds without work after which a session is closed; None: never.
        turn_timeout_s: Seconds that a turn may take; None: no limit.
        drain_timeout_s: Seconds that running turns may take when the server is to stop.
    """

    host: str = "localhost"
    port: int = 3000
    offline: bool = False
    no_auth: bool = False
    trusted_hosts: tuple[str, ...] = ()
    model: str | None = None
    model_aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    extra_tools: tuple[str, ...] = ()
    allow_bypass_permissions: bool = False
    workspace: Path | None = None
    max_sessions: int | None = None
    max_live: int | None = None
    idle_timeout_s: float | None = None
    turn_timeout_s: float | None = None
    drain_timeout_s: float = 10.0


def run_server(options: ServeOptions) -> int:
    """Run the server until it is told to stop; return the program's exit status.

    Raises:
        CannotServe: It cannot be started so.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        local = is_loopback(addresses(options.host))
        if not local and not options.no_auth:
            raise CannotServe(
                f"{options.host} can be reached from other machines, and there are no keys yet: "
                "anybody could run commands here. Listen on localhost, or say --no-auth if "
                "something in front of the server keeps others out."
            )
        if options.workspace is not None:
            _check_workspace(options.workspace)
        raise_file_limit()
        # Sessions hold many objects and leave no cycles: a full collection stops every stream for a
        # tenth of a second and finds next to nothing, so it comes a hundred times less often.
        gc.set_threshold(700, 10, 1_000)
        run(_serve(options, local=local))
    except CannotListen as error:
        raise CannotServe(str(error)) from error
    return 0


def _check_workspace(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise CannotServe(
            f"--workspace {directory}: sessions cannot get directories there ({error.strerror})."
        ) from error


async def _serve(options: ServeOptions, *, local: bool) -> None:
    settings = _settings(options, local=local)
    stop = Stop()
    async with AsyncExitStack() as stack:
        stack.enter_context(stopped_by_signals(stop))
        sockets = open_sockets(options.host, options.port, unread_s=settings.streams.send_timeout_s)
        for one in sockets:
            stack.callback(one.close)
        agent, credentials = await _agent(options, stack)
        supervisor = await stack.enter_async_context(
            Supervisor(agent, config=_configuration(options))
        )
        app = create_app(supervisor, credentials=credentials, settings=settings)
        _say(_banner(urls(options.host, sockets), offline=options.offline))
        async with asyncio.TaskGroup() as tasks:
            warming = tasks.create_task(_warm_up(agent, credentials))
            await serve(
                app,
                supervisor,
                sockets,
                stop=stop,
                times=StopTimes(drain_s=options.drain_timeout_s),
            )
            warming.cancel()


async def _agent(options: ServeOptions, stack: AsyncExitStack) -> tuple[ClaudeAgent, Credentials]:
    """Return what answers prompts, and whether it can."""
    make = partial(
        ClaudeAgent,
        model=options.model or DEFAULT_MODEL,
        model_aliases={**DEFAULT_ALIASES, **options.model_aliases},
        extra_tools=options.extra_tools,
        allow_bypass_permissions=options.allow_bypass_permissions,
    )
    if not options.offline:
        return make(), Watched(_look)

    from session_http.offline import OfflineModel

    # Whatever of this process's environment would lead a session to a real model, or around ours.
    for name in tuple(os.environ):
        if name.startswith(_ONLINE) or name.lower() in _PROXIES:
            del os.environ[name]
    model = await stack.enter_async_context(OfflineModel())
    # A directory of its own, so that neither the user's login nor settings play a part.
    config_dir = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="session-supervisor-offline-")
    )
    return make(env=model.environment(), config_dir=config_dir), Assumed(offline=True)


async def _look() -> CredentialState:
    found = await find_credential(os.environ)
    return CredentialState(
        authenticated=found.found,
        hint=f"{found.detail} {TRY_OFFLINE}",
        source=found.detail if found.found else "",
    )


async def _warm_up(agent: ClaudeAgent, credentials: Credentials) -> None:
    """Do beforehand what the first caller would have to wait for."""
    state = await credentials.state()
    if not state.authenticated:
        _say(f"WARNING: no Claude credential, so all work is refused. {state.hint}")
    elif state.source:
        _say(f"Claude credential: {state.source}")
    try:
        await agent.warm_up()
    except Exception:  # the first session runs into the same, and says so to its caller
        logger.exception("claude-agent-sdk cannot be imported")


def _settings(options: ServeOptions, *, local: bool) -> HttpSettings:
    trusted = {name.lower() for name in options.trusted_hosts}
    guarded = local or bool(trusted)
    return HttpSettings(
        default_model=options.model or DEFAULT_MODEL,
        trusted_hosts=(
            frozenset({*LOOPBACK_NAMES, options.host.lower(), *trusted}) if guarded else None
        ),
    )


def _configuration(options: ServeOptions) -> SupervisorConfig:
    config = SupervisorConfig(
        workspace=options.workspace,
        idle_timeout_s=options.idle_timeout_s,
        turn_timeout_s=options.turn_timeout_s,
    )
    if options.max_sessions is not None:
        config = replace(config, max_sessions=options.max_sessions)
    if options.max_live is not None:
        config = replace(config, max_live=options.max_live)
    return config


def _banner(addresses: Sequence[str], *, offline: bool) -> str:
    lines = [f"{TITLE} {version()}"]
    if offline:
        lines += [
            "",
            "  *** OFFLINE MODEL ***  Nothing here comes from Claude: the built-in offline model",
            "  answers, without network or key. Run without --offline for the real thing.",
            "",
        ]
    for address in addresses:
        lines.append(f"Listening on {address}  (API documentation: {address}/docs)")
    lines.append("Ctrl-C stops it; running turns may end first, a second Ctrl-C does not wait.")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
