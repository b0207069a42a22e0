"""Settings become parts: what `serve` runs and what `check` looks at, made once for both."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from session_http import keyfile, mcpfile
from session_http.attachments import AttachmentLimits
from session_http.guard import LOOPBACK_NAMES
from session_http.keys import KeyRing
from session_http.listen import CannotListen, addresses, is_loopback
from session_http.settings import HttpSettings
from session_http.sources import Configuration
from session_http.sse import StreamSettings
from session_http.statedir import StateDir, StateError
from session_http.tls import BadCertificate, Tls
from session_supervisor import MemoryPolicy, PoolPolicy, Retention, SupervisorConfig, Watchdogs
from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.agents.claude.launch import SCRATCH
from session_supervisor.agents.claude.models import DEFAULT_ALIASES, DEFAULT_MODEL
from session_supervisor.errors import StoreError
from session_supervisor.spec import JsonObject
from session_supervisor.stores.sqlite import SqliteStore

_ONLINE = ("ANTHROPIC_", "CLAUDE_CODE_USE_", "CLAUDE_CODE_OAUTH")
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})


class CannotServe(Exception):
    """The server cannot be started so; the message says why and what to do."""


# -- who may call --------------------------------------------------------------------------------


def is_local(configuration: Configuration) -> bool:
    """Return whether only this machine can reach the server.

    Raises:
        CannotServe: Others can, and nobody would be asked for a key; or nobody knows the host.
    """
    settings = configuration.settings
    try:
        local = is_loopback(addresses(settings.host))
    except CannotListen as error:
        raise CannotServe(f"{configuration.named('host')}: {error}") from error
    if not (local or settings.has_keys or settings.no_auth):
        raise CannotServe(
            f"{settings.host} can be reached from other machines, and there are no keys: anybody "
            "could run commands here. Make a key with `session-supervisor keys new --owner NAME "
            "--keys FILE` and give `--keys FILE` here too; or listen on localhost; or say "
            "--no-auth if something in front of the server keeps others out."
        )
    return local


def first_key(configuration: Configuration) -> keyfile.FirstKey | None:
    """Make the first key, if that is wanted and there is no key file; return where it is.

    Raises:
        CannotServe: It cannot be made.
    """
    settings = configuration.settings
    if settings.keys is None or not settings.make_key:
        return None
    try:
        return keyfile.make_first(settings.keys)
    except keyfile.KeyFileError as error:
        raise CannotServe(f"{configuration.named('keys')}: {error}") from error


def key_ring(configuration: Configuration) -> KeyRing | None:
    """Return the keys; None where nobody needs one.

    Raises:
        CannotServe: They cannot be read, or used.
    """
    settings = configuration.settings
    if not settings.has_keys:
        return None
    inline = settings.api_keys
    try:
        return KeyRing(
            file=settings.keys, inline=None if inline is None else inline.get_secret_value()
        )
    except keyfile.KeyFileError as error:
        raise CannotServe(str(error)) from error


def tls(configuration: Configuration) -> Tls | None:
    """Return the certificate, read; None where connections are not encrypted.

    Raises:
        CannotServe: It cannot be used.
    """
    settings = configuration.settings
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    made = Tls(settings.tls_cert, settings.tls_key)
    try:
        made.load()
    except BadCertificate as error:
        raise CannotServe(str(error)) from error
    return made


# -- the application -----------------------------------------------------------------------------


def http_settings(configuration: Configuration, *, local: bool) -> HttpSettings:
    """Return the limits and policies of the application.

    Args:
        configuration: The settings.
        local: Whether only this machine can reach the server. Then it is served under the names of
            this machine alone, also with keys: no page that is led here by another name has one.
    """
    settings = configuration.settings
    trusted = frozenset(settings.trusted_hosts)
    guarded = local or bool(trusted)
    return HttpSettings(
        default_model=settings.model or DEFAULT_MODEL,
        max_body_bytes=int(settings.max_body),
        body_timeout_s=settings.body_timeout,
        trusted_hosts=(trusted | LOOPBACK_NAMES | {settings.host.lower()}) if guarded else None,
        open_paths=frozenset(settings.open_paths),
        cors_origins=frozenset(settings.cors_origins),
        cwd_root=settings.cwd_root,
        attachments=AttachmentLimits(
            count=settings.max_attachments, size=int(settings.max_attachment)
        ),
        streams=StreamSettings(
            max_streams=settings.max_streams,
            heartbeat_s=settings.heartbeat,
            send_timeout_s=settings.send_timeout,
            max_tool_output_bytes=int(settings.max_tool_output),
        ),
    )


def supervisor_config(configuration: Configuration, *, workspace: Path) -> SupervisorConfig:
    """Return the limits and policies of the supervisor.

    Args:
        configuration: The settings.
        workspace: Where sessions get their private directories.
    """
    settings = configuration.settings
    return SupervisorConfig(
        max_sessions=settings.max_sessions,
        max_live=settings.max_live,
        max_waiting=settings.max_waiting,
        max_starting=settings.max_starting,
        max_queued=settings.max_queued,
        max_agent_turns=settings.max_agent_turns,
        memory=MemoryPolicy(
            budget_bytes=None if settings.memory_budget is None else int(settings.memory_budget)
        ),
        pool=PoolPolicy(
            max_pooled=settings.max_pooled,
            recycle=settings.recycle,
            max_uses=settings.pool_max_uses,
            max_age_s=settings.pool_max_age,
        )
        if settings.pool
        else None,
        idle_timeout_s=settings.idle_timeout,
        expiry_s=settings.expiry,
        turn_timeout_s=settings.turn_timeout,
        on_permission=settings.on_permission,
        permission_timeout_s=settings.permission_timeout,
        claim_s=settings.keep_idempotency_keys,
        workspace=workspace,
        watchdogs=Watchdogs(
            start_s=settings.start_timeout,
            first_byte_s=settings.first_byte_timeout,
            progress_s=settings.progress_timeout,
        ),
        retention=_retention(configuration),
    )


def _retention(configuration: Configuration) -> Retention:
    settings = configuration.settings
    return Retention(
        events=settings.keep_events,
        event_bytes=int(settings.keep_event_bytes),
        turns=settings.keep_turns,
        turn_bytes=int(settings.keep_turn_bytes),
        ended_s=settings.keep_ended,
        ended_sessions=settings.keep_ended_sessions,
        closed_s=settings.keep_closed,
        age_s=settings.retention_age,
        state_bytes=None if settings.max_state_size is None else int(settings.max_state_size),
    )


# -- what is kept --------------------------------------------------------------------------------


def state_path(configuration: Configuration) -> Path | None:
    """Return where the state directory is; None: its content ends with the server.

    What the offline model said never comes among the sessions of a real one.
    """
    settings = configuration.settings
    if settings.store == "memory":
        return None
    if not settings.offline:
        return settings.state_dir
    return settings.state_dir / "offline" if "state_dir" in configuration.origins else None


def store(configuration: Configuration, state: StateDir) -> SqliteStore | None:
    """Return what keeps sessions, open; None: memory does.

    Raises:
        CannotServe: The database cannot be used.
    """
    if configuration.settings.store == "memory":
        return None
    try:
        return SqliteStore(state.make_database(), _retention(configuration))
    except (StateError, StoreError) as error:
        raise CannotServe(str(error)) from error


# -- directories ---------------------------------------------------------------------------------


def workspace(configuration: Configuration, state: StateDir) -> Path:
    """Return the directory that sessions get theirs in.

    Raises:
        CannotServe: None can be made there.
    """
    given = configuration.settings.workspace
    if given is None:
        return state.workspaces
    require_writable(configuration, "workspace", given)
    return given


def require_writable(configuration: Configuration, name: str, directory: Path) -> None:
    """Make a directory of the server's, for this user alone, or see that one can be used.

    Args:
        configuration: The settings.
        name: The setting that names it.
        directory: Which.

    Raises:
        CannotServe: It cannot.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise CannotServe(
            f"{configuration.named(name)}: {directory} cannot be used: {error.strerror}. Name a "
            "directory that the server's user may write to."
        ) from error


def require_cwd_root(configuration: Configuration) -> None:
    """See that callers can choose a directory, if they are to.

    Raises:
        CannotServe: There is no such directory.
    """
    given = configuration.settings.cwd_root
    if given is None:
        return
    before, placeholder, _ = str(given).partition("{owner}")
    base = os.path.dirname(before) if placeholder else before
    if not os.path.isdir(base):
        raise CannotServe(f"{configuration.named('cwd_root')}: there is no directory {base}.")


# -- the agent -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things are.

    Attributes:
        state: What this server alone has.
        workspace: What holds the private directories of all sessions.
        owners: What holds the directories of owners, for Claude Code's own files.
    """

    state: StateDir
    workspace: Path
    owners: Path


def places(configuration: Configuration, state: StateDir) -> Places:
    """Return where things are, for the state directory that this server has.

    Raises:
        CannotServe: A directory cannot be made.
    """
    settings = configuration.settings
    owners = state.path if settings.offline else settings.state_dir
    if settings.has_keys:
        require_writable(configuration, "state_dir", owners)
    return Places(state=state, workspace=workspace(configuration, state), owners=owners)


def agent(
    configuration: Configuration,
    places: Places,
    *,
    store: SqliteStore | None = None,
    offline: Mapping[str, str] | None = None,
) -> ClaudeAgent:
    """Return what answers prompts.

    Args:
        configuration: The settings.
        places: Where things are.
        store: Keeps a copy of transcripts; None: there is none.
        offline: The environment that leads to the offline model; None: a real one.

    Raises:
        CannotServe: The settings name what there is not.
    """
    settings = configuration.settings
    # One user, one login: the CLI's own place. With keys a place for each owner.
    config_dir = None if offline is None else places.state.claude
    try:
        return ClaudeAgent(
            model=settings.model or DEFAULT_MODEL,
            model_aliases={**DEFAULT_ALIASES, **settings.model_aliases},
            extra_tools=settings.extra_tools,
            forbidden_tools=settings.forbidden_tools,
            env={SCRATCH: str(places.state.scratch), **(offline or {})},
            env_passthrough=settings.env_passthrough,
            config_dir=partial(owners_directory, places.owners)
            if settings.has_keys
            else config_dir,
            allow_bypass_permissions=settings.allow_bypass_permissions,
            confine_files=settings.confine_files,
            extra_dirs=settings.extra_dirs,
            hidden_dirs=(*_own_files(configuration, places), *settings.hidden_dirs),
            shared_dirs=_shared_by_owners(settings.cwd_root),
            sandbox=settings.sandbox,
            mcp_servers=mcp_servers(configuration),
            niceness=settings.niceness,
            transcripts=None if store is None else store.transcripts,
            manifest=places.state.processes,
        )
    except ValueError as error:
        raise CannotServe(str(error)) from error


def mcp_servers(configuration: Configuration) -> Mapping[str, JsonObject]:
    """Return the MCP servers that sessions may ask for, by name.

    Raises:
        CannotServe: Their file cannot be used.
    """
    file = configuration.settings.mcp_config
    try:
        return {} if file is None else mcpfile.load(file)
    except mcpfile.McpFileError as error:
        raise CannotServe(f"{configuration.named('mcp_config')}: {error}") from error


def owners_directory(base: Path, owner: str) -> Path:
    """Return where Claude Code keeps what it keeps for an owner."""
    return base / "owners" / owner / "claude"


def leave_the_network() -> None:
    """Take out of our environment whatever would lead a session to a real model, or around ours."""
    for name in tuple(os.environ):
        if name.startswith(_ONLINE) or name.lower() in _PROXIES:
            del os.environ[name]


def _shared_by_owners(cwd_root: Path | None) -> list[str]:
    """Return the directory that holds those of all owners, if each has one of its own there."""
    before, placeholder, _ = str(cwd_root or "").partition("{owner}")
    return [os.path.dirname(before)] if placeholder else []


def _own_files(configuration: Configuration, places: Places) -> list[Path]:
    """Return what no session may look at."""
    settings = configuration.settings
    found = [places.workspace, places.state.path, settings.state_dir]
    if settings.keys is not None:
        found += [settings.keys, settings.keys.with_name(keyfile.FIRST_KEY_FILE)]
    if settings.tls_key is not None:
        found.append(settings.tls_key)
    if settings.mcp_config is not None:
        found.append(settings.mcp_config)
    if configuration.file is not None:
        found.append(configuration.file.absolute())
    return found
