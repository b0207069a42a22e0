"""The `check` command: would `serve` with the same settings work, and how well?

It makes the same parts as `serve` does, starts Claude Code once, and leaves nothing behind: what
`serve` would make, it only looks whether that could be made.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from session_http import parts, version
from session_http.accept import connections_for
from session_http.findings import Finding, as_json_text, failed, table
from session_http.listen import CannotListen, close_all, open_sockets
from session_http.memory import available_memory
from session_http.parts import CannotServe, Places
from session_http.program import connected_agent
from session_http.serve import raise_file_limit, run
from session_http.sources import Configuration
from session_http.statedir import StateDir, StateError, holder_in, is_locked, temporary
from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.agents.claude.credentials import in_environment
from session_supervisor.agents.claude.launch import find_cli
from session_supervisor.agents.port import Fingerprint
from session_supervisor.errors import AgentError, StoreError
from session_supervisor.spec import LOCAL_OWNER
from session_supervisor.stores.sqlite.facts import inspect_database

PROCESS_BYTES = 100 * 10**6
"""What a live Claude Code process takes after a turn, as it was measured."""

PROCESS_FILES = 8
"""File descriptors of ours that one takes."""

_PACKAGES = ("claude-agent-sdk", "hypercorn", "uvloop")


def run_checks(configuration: Configuration, *, as_json: bool = False) -> int:
    """Look at everything, print what was found, and return the program's exit status.

    Args:
        configuration: The settings that `serve` would have.
        as_json: Whether to print it for programs.
    """
    # What the parts log is what they also say in their findings.
    logging.getLogger().addHandler(logging.NullHandler())
    findings = list(_findings(configuration))
    columns = shutil.get_terminal_size().columns
    sys.stdout.write(as_json_text(findings) if as_json else table(findings, columns))
    return 1 if failed(findings) else 0


def _findings(configuration: Configuration) -> Iterator[Finding]:
    looks: tuple[Callable[[Configuration], Iterable[Finding]], ...] = (
        versions,
        claude,
        programs,
        callers,
        address,
        directories,
        state,
        files,
        memory,
        user,
    )
    for look in looks:
        yield from look(configuration)


# -- the looks -----------------------------------------------------------------------------------


def versions(_: Configuration) -> Iterator[Finding]:
    """Tell what runs."""
    found = [f"session-supervisor {version()}", f"Python {platform.python_version()}"]
    missing: list[str] = []
    for name in _PACKAGES:
        try:
            found += [f"{name} {importlib.metadata.version(name)}"]
        except importlib.metadata.PackageNotFoundError:
            missing += [name]
    yield Finding(name="versions", status="ok", detail=", ".join([*found, platform.platform()]))
    if missing:
        yield Finding(
            name="packages",
            status="warn",
            detail=f"not installed: {', '.join(missing)}",
            advice="Install the extra `http` of claude-session-supervisor.",
        )


def claude(configuration: Configuration) -> Iterator[Finding]:
    """Start Claude Code, and look for a credential."""
    yield from run(_started(configuration))


async def _started(configuration: Configuration) -> list[Finding]:
    """Start Claude Code as a session would, in directories of its own."""
    async with AsyncExitStack() as stack:
        try:
            places, cwd = _scratch(stack)
            agent, _ = await stack.enter_async_context(connected_agent(configuration, places))
        except (CannotServe, StateError) as error:
            return [Finding(name="Claude Code", status="fail", detail=str(error))]
        return [
            await _start(configuration, agent, cwd),
            await _credential(configuration, agent),
        ]


def _scratch(stack: AsyncExitStack) -> tuple[Places, Path]:
    """Make directories that go with the stack, and one in them to start Claude Code in."""
    state = stack.enter_context(temporary())
    state.prepare()
    cwd = state.workspaces / "cwd"
    cwd.mkdir()
    return Places(state=state, workspace=state.workspaces, owners=state.path), cwd


async def _start(configuration: Configuration, agent: ClaudeAgent, cwd: Path) -> Finding:
    timeout_s = configuration.settings.start_timeout
    try:
        await agent.warm_up()
        program = find_cli()
        began = time.perf_counter()
        async with asyncio.timeout(timeout_s):
            process = await agent.spawn(Fingerprint(owner=LOCAL_OWNER, cwd=str(cwd)))
        took_s = time.perf_counter() - began
        await process.stop()
    except TimeoutError:
        return Finding(
            name="Claude Code",
            status="fail",
            detail=f"it was not ready within {timeout_s:g} s",
            advice=f"Look at the machine's load, or raise {configuration.named('start_timeout')}.",
        )
    except (AgentError, ImportError, OSError) as error:
        return Finding(name="Claude Code", status="fail", detail=str(error))
    return Finding(
        name="Claude Code",
        status="ok",
        detail=f"{await _cli_version(program)} started in {took_s:.2f} s: {program}",
    )


async def _cli_version(program: str) -> str:
    asked = await asyncio.create_subprocess_exec(
        program,
        "--version",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    printed, _ = await asked.communicate()
    return printed.decode(errors="replace").strip() or "an unknown version"


async def _credential(configuration: Configuration, agent: ClaudeAgent) -> Finding:
    settings = configuration.settings
    if settings.offline:
        return Finding(name="credential", status="ok", detail="none is needed: the offline model")
    if not settings.has_keys:
        found = await agent.find_credential(LOCAL_OWNER)
        return Finding(
            name="credential", status="ok" if found.found else "fail", detail=found.detail
        )
    common = in_environment(os.environ)
    if common is not None:
        return Finding(name="credential", status="ok", detail=common.detail)
    place = parts.owners_directory(settings.state_dir, "OWNER")
    return Finding(
        name="credential",
        status="warn",
        detail="none in the environment; with keys, a login of the server's user does not count",
        advice="Set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN, or let each owner log in: "
        f"CLAUDE_CONFIG_DIR={place} claude auth login",
    )


def programs(configuration: Configuration) -> Iterator[Finding]:
    """Look for programs of the system that sessions need."""
    if sys.platform == "linux":
        found = shutil.which("setpriv")
        yield Finding(
            name="setpriv",
            status="ok" if found else "warn",
            detail=found or "not found: sessions outlive a kill -9 of the server for a while",
            advice="" if found else "Install util-linux.",
        )
    if configuration.settings.sandbox:
        yield _sandbox()


def _sandbox() -> Finding:
    missing = [name for name in ("bwrap", "socat") if shutil.which(name) is None]
    if missing:
        return Finding(
            name="sandbox",
            status="fail",
            detail=f"not found: {', '.join(missing)}",
            advice="Install bubblewrap and socat, or turn the sandbox off.",
        )
    tried = subprocess.run(
        ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=20,
        check=False,
    )
    if tried.returncode:
        return Finding(
            name="sandbox",
            status="fail",
            detail=f"bubblewrap cannot make one: {tried.stderr.strip()}",
            advice="Allow this user, or this container, to make user namespaces, or turn the "
            "sandbox off.",
        )
    return Finding(name="sandbox", status="ok", detail="bubblewrap and socat work")


def callers(configuration: Configuration) -> Iterator[Finding]:
    """Look at who could call, and at the keys."""
    settings = configuration.settings
    try:
        local = parts.is_local(configuration)
    except CannotServe as error:
        yield Finding(name="callers", status="fail", detail=str(error))
        return
    if not settings.has_keys:
        yield Finding(
            name="callers",
            status="ok" if local else "warn",
            detail="no keys: only this machine can reach the server"
            if local
            else f"no keys, and others can reach {settings.host}: whoever does may run commands",
            advice="" if local else "Use keys, unless something in front keeps others out.",
        )
        return
    if settings.keys is not None and settings.make_key and not settings.keys.exists():
        yield Finding(
            name="keys", status="ok", detail=f"{settings.keys} is made by the first start"
        )
        return
    try:
        ring = parts.key_ring(configuration)
    except CannotServe as error:
        yield Finding(name="keys", status="fail", detail=str(error))
        return
    count = 0 if ring is None else len(ring)
    yield Finding(
        name="keys",
        status="ok" if count else "warn",
        detail=f"there {'is 1' if count == 1 else f'are {count}'}",
        advice="" if count else "Make one: session-supervisor keys new --owner NAME.",
    )
    if settings.keys is not None and (mode := settings.keys.stat().st_mode & 0o777) & 0o077:
        yield Finding(
            name="key file",
            status="warn",
            detail=f"{settings.keys} has the mode {mode:04o}: others may read or change it",
            advice=f"chmod 600 {settings.keys}",
        )


def address(configuration: Configuration) -> Iterator[Finding]:
    """Look whether the address can be listened on."""
    settings = configuration.settings
    try:
        parts.tls(configuration)
        sockets = open_sockets(settings.host, settings.port)
    except (CannotListen, CannotServe) as error:
        yield Finding(name="address", status="fail", detail=str(error))
        return
    close_all(sockets)
    port = settings.port or "any"
    yield Finding(
        name="address",
        status="ok",
        detail=f"{settings.host}, port {port}, can be listened on"
        + (" with TLS" if settings.tls_cert else ""),
    )


def directories(configuration: Configuration) -> Iterator[Finding]:
    """Look whether directories can be written to."""
    settings = configuration.settings
    wanted = [("workspace", settings.workspace)]
    if settings.has_keys and not settings.offline:
        wanted.append(("state_dir", settings.state_dir))
    elif (kept := parts.state_path(configuration)) is not None:
        wanted.append(("state_dir", kept))
    for name, directory in wanted:
        if directory is not None:
            yield _directory(configuration, name, directory)
    try:
        parts.require_cwd_root(configuration)
    except CannotServe as error:
        yield Finding(name="cwd_root", status="fail", detail=str(error))
    temporary = Path(tempfile.gettempdir())
    free = shutil.disk_usage(temporary).free
    yield Finding(
        name="temporary files",
        status="ok" if free > 10**9 else "warn",
        detail=f"{temporary} has {_size(free)} left",
        advice="" if free > 10**9 else "Claude Code and its tools write there: make room.",
    )


def _directory(configuration: Configuration, name: str, directory: Path) -> Finding:
    there = next(one for one in (directory, *directory.parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            name=name,
            status="fail",
            detail=f"{configuration.named(name)}: {there} cannot be written to by this user",
            advice="Name a directory that the server's user may write to.",
        )
    state = "can be written to" if there == directory else "is made when it is needed"
    return Finding(name=name, status="ok", detail=f"{directory} {state}")


def state(configuration: Configuration) -> Iterator[Finding]:
    """Look at what the state directory holds, and who has it."""
    path = parts.state_path(configuration)
    if path is None:
        yield Finding(name="sessions", status="ok", detail="they end with the server")
        return
    try:
        taken = is_locked(path)
    except OSError as error:
        yield Finding(
            name="state lock",
            status="fail",
            detail=f"{path}: {error.strerror}",
            advice="Give it to the user that runs the server.",
        )
        return
    if taken:
        yield Finding(
            name="state lock",
            status="warn",
            detail=f"a running server has {path}: {holder_in(path)}",
            advice="Another one would wait for its end, and then give up: name another directory "
            "if that one is to go on.",
        )
    database = StateDir(path).database
    try:
        found = inspect_database(database)
    except StoreError as error:
        yield Finding(name="sessions", status="fail", detail=str(error))
        return
    yield Finding(
        name="sessions",
        status="ok",
        detail="there are none yet: the first start makes the database"
        if found is None
        else f"{found.sessions} are in {database} ({_size(found.size)}), schema {found.schema}"
        + (f", which the start makes {found.known}" if found.schema < found.known else ""),
    )
    there = next(one for one in (path, *path.parents) if one.exists())
    free = shutil.disk_usage(there).free
    yield Finding(
        name="state space",
        status="ok" if free > 10**9 else "warn",
        detail=f"{there} has {_size(free)} left",
        advice="" if free > 10**9 else "Sessions are refused when it is full: make room.",
    )


def files(configuration: Configuration) -> Iterator[Finding]:
    """Look whether so many files may be open."""
    settings = configuration.settings
    limit = raise_file_limit()
    if limit is None:
        return
    connections = settings.max_connections or connections_for(limit)
    needed = settings.max_live * PROCESS_FILES + connections + 64
    enough = needed <= limit
    yield Finding(
        name="open files",
        status="ok" if enough else "warn",
        detail=f"{limit} may be open: {connections} connections and {settings.max_live} processes "
        f"need {needed}",
        advice="" if enough else "Raise the limit (ulimit -n, LimitNOFILE), or lower the others.",
    )


def memory(configuration: Configuration) -> Iterator[Finding]:
    """Look whether so many processes have room."""
    available = available_memory()
    if available is None:
        return
    most = configuration.settings.max_live
    needed = most * PROCESS_BYTES
    enough = needed <= available
    yield Finding(
        name="memory",
        status="ok" if enough else "warn",
        detail=f"{_size(available)} can be had: {most} processes take some {_size(needed)}",
        advice="" if enough else f"Lower {configuration.named('max_live')}.",
    )


def user(_: Configuration) -> Iterator[Finding]:
    """Look who runs it."""
    if sys.platform != "win32" and os.geteuid() == 0:
        yield Finding(
            name="user",
            status="warn",
            detail="root: what sessions run with Bash, they run as root",
            advice="Run the server as a user of its own.",
        )


def _size(count: int) -> str:
    return f"{count / 10**9:.1f} GB"
