"""The `serve` command: agent, supervisor and application put together, from the settings."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from session_http import TITLE, logs, parts, version
from session_http.app import create_app
from session_http.beforehand import make_room_for_names, share_one_heap, start_threads
from session_http.collector import calm_collector
from session_http.credentials import Assumed, Credentials, CredentialState, Watched
from session_http.hiding import hide_environment
from session_http.keyfile import FIRST_OWNER, FirstKey, KeyFileError
from session_http.keys import KeyRing, anybody
from session_http.listen import CannotListen, open_sockets, urls
from session_http.parts import CannotServe, Places
from session_http.serve import (
    Stop,
    StopTimes,
    raise_file_limit,
    run,
    serve,
    stopped_by_signals,
)
from session_http.sources import Configuration
from session_http.statedir import Lock, StateDir, StateError, remove_all, temporary, unusable
from session_http.tls import BadCertificate, Tls
from session_supervisor import Down, Missed, Restarted, Supervisor
from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.agents.claude.credentials import in_environment
from session_supervisor.errors import StoreError
from session_supervisor.messages import CloseReason
from session_supervisor.stores.sqlite import SqliteStore

logger = logging.getLogger(__name__)

_STDIN = 0

NO_CREDENTIAL = (
    "There is no Claude credential for this owner. The operator must set ANTHROPIC_API_KEY or "
    "CLAUDE_CODE_OAUTH_TOKEN, or log in with the CLAUDE_CONFIG_DIR that the owner's sessions have."
)
TRY_OFFLINE = "To try the server without one: session-supervisor serve --offline."


def run_server(configuration: Configuration) -> int:
    """Run the server until it is told to stop; return the program's exit status.

    Raises:
        CannotServe: It cannot be started so.
    """
    settings = configuration.settings
    logs.configure(form=settings.log_format, level=settings.log_level)
    hide_environment()
    share_one_heap()
    try:
        local = parts.is_local(configuration)
        parts.require_cwd_root(configuration)
        made = parts.first_key(configuration)
        ring = parts.key_ring(configuration)
        tls = parts.tls(configuration)
        raise_file_limit()
        run(_serve(configuration, ring, tls, made, local=local))
    except (CannotListen, StateError, StoreError) as error:
        raise CannotServe(str(error)) from error
    except CannotServe:
        raise
    except Exception:  # anything: Python would print it with all that it says
        logger.critical("the server failed", exc_info=True)
        return 1
    return 0


async def _serve(
    configuration: Configuration,
    ring: KeyRing | None,
    tls: Tls | None,
    made: FirstKey | None,
    *,
    local: bool,
) -> None:
    settings = configuration.settings
    stop = Stop()
    start_threads()
    async with AsyncExitStack() as stack:
        stack.enter_context(stopped_by_signals(stop))
        stack.enter_context(_reloaded_by_hangup(ring, tls, stop))
        # The lock comes first and goes last: the server before has let go of the port by then, and
        # neither processes nor sessions are touched while anybody else may have them.
        state = await _state_directory(configuration, stack, stop)
        if state is None:
            return
        places = parts.places(configuration, state)
        sockets = open_sockets(settings.host, settings.port, unread_s=settings.send_timeout)
        for one in sockets:
            stack.callback(one.close)
        _keep_workspaces(state)
        store = parts.store(configuration, state)
        if store is not None:
            stack.push_async_callback(store.aclose)
        agent, credentials = await stack.enter_async_context(
            connected_agent(configuration, places, store)
        )
        await _tidy_up(agent, state)
        supervisor = await stack.enter_async_context(
            Supervisor(
                agent,
                store=store,
                config=parts.supervisor_config(configuration, workspace=places.workspace),
            )
        )
        if ring is not None:
            # Who cannot call any more needs no process that stands ready.
            ring.on_owner_gone = supervisor.forget_owner
        unknown = _unknown_workspaces(state, supervisor)
        app = create_app(
            supervisor,
            credentials=credentials,
            settings=parts.http_settings(configuration, local=local),
            authenticate=anybody if ring is None else ring.authenticate,
        )
        stack.enter_context(calm_collector())
        addresses = urls(settings.host, sockets, encrypted=tls is not None)
        _say(_banner(addresses, configuration, state, made))
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(_warm_up(agent, credentials, configuration), name="warm up"),
                tasks.create_task(tell_of_crashes(supervisor), name="notices"),
                tasks.create_task(asyncio.to_thread(remove_all, unknown), name="tidy"),
            ]
            await serve(
                app,
                supervisor,
                sockets,
                stop=stop,
                times=StopTimes(drain_s=settings.drain_timeout),
                tls=tls,
                http2=settings.http2,
                max_connections=settings.max_connections,
            )
            for task in beside:
                task.cancel()


async def _state_directory(
    configuration: Configuration, stack: AsyncExitStack, stop: Stop
) -> StateDir | None:
    """Return the state directory, which is ours until the stack ends; None: we are to stop.

    Raises:
        StateError: It cannot be used, or another server has it.
    """
    path = parts.state_path(configuration)
    if path is None:
        state = stack.enter_context(temporary())
        state.prepare()
        return state
    state, lock = StateDir(path), Lock(path)
    state.prepare()
    stack.callback(lock.release)
    had = await lock.acquire(configuration.settings.lock_wait, stop.wanted)
    return state if had else None


async def _tidy_up(agent: ClaudeAgent, state: StateDir) -> None:
    """End and remove what a killed server left, before any session goes on.

    Raises:
        StateError: What it left cannot be looked at.
    """
    try:
        count = await agent.recover()
    except OSError as error:
        raise unusable(state.processes, error) from error
    if count:
        logger.warning("%d processes of a server that was killed were ended", count)
    await asyncio.to_thread(state.empty_scratch)


def _keep_workspaces(state: StateDir) -> None:
    """Keep what sessions wrote whose database is gone.

    Raises:
        StateError: It cannot be moved out of the way.
    """
    aside = state.set_workspaces_aside()
    if aside is not None:
        logger.warning(
            "there is no database at %s, and so none of the sessions there were; their private "
            "directories are kept as %s: with a backup of the database, name it %s again",
            state.database,
            aside,
            state.workspaces,
        )


def _unknown_workspaces(state: StateDir, supervisor: Supervisor) -> list[Path]:
    """Return what a crash has left between a directory and its session."""
    tree = supervisor.snapshot()
    found = [*(one.session_id for one in tree.sessions), *tree.damaged]
    if found:
        logger.info("%d sessions are there from before", len(found))
    return state.unknown_workspaces(frozenset(found))


@asynccontextmanager
async def connected_agent(
    configuration: Configuration, places: Places, store: SqliteStore | None = None
) -> AsyncGenerator[tuple[ClaudeAgent, Credentials]]:
    """Give what answers prompts, and whether it can; with the offline model, if it is that.

    Args:
        configuration: The settings.
        places: Where things are.
        store: Keeps a copy of transcripts; None: there is none.

    Raises:
        CannotServe: The settings name what there is not.
    """
    if not configuration.settings.offline:
        agent = parts.agent(configuration, places, store=store)
        async with aclosing(agent):
            yield agent, Watched(partial(_look, agent, configuration))
        return

    from session_http.offline import OfflineModel

    parts.leave_the_network()
    async with OfflineModel() as model:
        agent = parts.agent(configuration, places, store=store, offline=model.environment())
        async with aclosing(agent):
            yield agent, Assumed(offline=True)


async def _look(agent: ClaudeAgent, configuration: Configuration, owner: str) -> CredentialState:
    settings = configuration.settings
    if settings.has_keys and not parts.owners_directory(settings.state_dir, owner).is_dir():
        # Nobody can have logged in there. To ask Claude Code would make it, even for a name that
        # is no owner's.
        common = in_environment(os.environ)
        if common is None:
            return CredentialState(authenticated=False, hint=f"{NO_CREDENTIAL} {TRY_OFFLINE}")
        return CredentialState(authenticated=True, source=common.detail)
    found = await agent.find_credential(owner)
    return CredentialState(
        authenticated=found.found,
        hint=f"{found.detail} {TRY_OFFLINE}",
        source=found.detail if found.found else "",
    )


# -- beside the serving --------------------------------------------------------------------------


@contextmanager
def _reloaded_by_hangup(ring: KeyRing | None, tls: Tls | None, stop: Stop) -> Generator[None]:
    """Let SIGHUP read keys and certificate anew, while the context is open.

    What cannot be used changes nothing: the log says why, and what was read before goes on to hold.
    Where the server was started at a terminal that is gone now, the signal means what it always
    did: it stops.
    """
    if sys.platform == "win32":
        yield
        return

    at_terminal = os.isatty(_STDIN)

    def reload() -> None:
        if at_terminal and not os.isatty(_STDIN):
            if not stop.wanted.is_set():  # the shell may say it as well as the kernel
                stop.ask()
            return
        if ring is not None:
            try:
                ring.reload()
            except KeyFileError as error:
                # Its words say where the mistake is, and quote no key.
                logger.error("SIGHUP: the keys that were read before go on to hold: %s", error)
            else:
                logger.info("SIGHUP: the keys were read anew, there are %d", len(ring))
        if tls is not None:
            try:
                tls.load()
            except BadCertificate as error:
                logger.error("SIGHUP: the certificate that was read before is used on: %s", error)
            else:
                logger.info("SIGHUP: the certificate was read anew")
        if ring is None and tls is None:
            logger.info("SIGHUP: there are neither keys nor a certificate to read anew")

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _warm_up(
    agent: ClaudeAgent, credentials: Credentials, configuration: Configuration
) -> None:
    """Do beforehand what the first caller would have to wait for."""
    settings = configuration.settings
    if settings.offline:
        pass
    elif not settings.has_keys:
        state = await credentials.state()
        if not state.authenticated:
            logger.warning("no Claude credential, so all work is refused. %s", state.hint)
        else:
            logger.info("Claude credential: %s", state.source)
    elif (found := in_environment(os.environ)) is not None:
        logger.info("Claude credential: %s", found.detail)
    else:
        logger.warning(
            "no Claude credential for all owners: set ANTHROPIC_API_KEY or "
            "CLAUDE_CODE_OAUTH_TOKEN, or let each log in with CLAUDE_CONFIG_DIR=%s",
            parts.owners_directory(settings.state_dir, "OWNER"),
        )
    try:
        await agent.warm_up()
    except Exception:  # the first session runs into the same, and says so to its caller
        logger.exception("claude-agent-sdk cannot be imported")
    await asyncio.to_thread(make_room_for_names)


async def tell_of_crashes(supervisor: Supervisor) -> None:
    """Log what the operator may want to look into; what processes said is not for logs."""
    async with supervisor.monitor() as monitor:
        async for notice in monitor:
            match notice:
                case Restarted():
                    logger.warning(
                        "a Claude Code process crashed; restart %d in %.1f s",
                        notice.attempt,
                        notice.delay_s,
                        extra={"session_id": notice.session_id},
                    )
                    logger.debug("it crashed: %s", notice.cause)
                # Not again when a session that had failed is closed.
                case Down(reason=None | CloseReason.FAULT, failure=str() as failure):
                    logger.error(
                        "a session failed",
                        extra={"session_id": notice.session_id, "owner": notice.owner},
                    )
                    logger.debug("it failed: %s", failure)
                case Missed():
                    logger.warning("%d notices of sessions were missed", notice.count)
                case _:
                    pass


# -- what is printed -----------------------------------------------------------------------------


def _banner(
    addresses: Sequence[str],
    configuration: Configuration,
    state: StateDir,
    made: FirstKey | None,
) -> str:
    settings = configuration.settings
    lines = [f"{TITLE} {version()}"]
    if settings.offline:
        lines += [
            "",
            "  *** OFFLINE MODEL ***  Nothing here comes from Claude: the built-in offline model",
            "  answers, without network or key. Run without --offline for the real thing.",
            "",
        ]
    for address in addresses:
        lines.append(f"Listening on {address}  (API documentation: {address}/docs)")
    if parts.state_path(configuration) is None:
        lines.append("Sessions end with the server; nothing of them is kept.")
    else:
        lines.append(f"Sessions are kept in {state.path}.")
    if made is not None:
        lines += [
            f"A first key was made, of the owner {FIRST_OWNER}: {made.secret} holds it.",
            f"Read it, and delete that file; {made.keys} holds only its hash.",
        ]
    lines.append("Ctrl-C stops it; running turns may end first, a second Ctrl-C does not wait.")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
