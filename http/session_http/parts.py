"""Settings become parts: what `serve` runs and what `check` looks at, made once for both."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from session_http import keyfile
from session_http.guard import LOOPBACK_NAMES
from session_http.keys import KeyRing
from session_http.listen import CannotListen, addresses, is_loopback
from session_http.settings import HttpSettings
from session_http.sources import Configuration
from session_http.sse import StreamSettings
from session_http.tls import BadCertificate, Tls
from session_supervisor import Retention, SupervisorConfig, Watchdogs
from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.agents.claude.models import DEFAULT_ALIASES, DEFAULT_MODEL

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
        streams=StreamSettings(
            max_streams=settings.max_streams,
            heartbeat_s=settings.heartbeat,
            send_timeout_s=settings.send_timeout,
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
        max_starting=settings.max_starting,
        max_queued=settings.max_queued,
        max_agent_turns=settings.max_agent_turns,
        idle_timeout_s=settings.idle_timeout,
        turn_timeout_s=settings.turn_timeout,
        workspace=workspace,
        watchdogs=Watchdogs(
            start_s=settings.start_timeout,
            first_byte_s=settings.first_byte_timeout,
            progress_s=settings.progress_timeout,
        ),
        retention=Retention(
            events=settings.keep_events,
            event_bytes=int(settings.keep_event_bytes),
            turns=settings.keep_turns,
            turn_bytes=int(settings.keep_turn_bytes),
            ended_s=settings.keep_ended,
            ended_sessions=settings.keep_ended_sessions,
        ),
    )


# -- directories ---------------------------------------------------------------------------------


def workspace(configuration: Configuration, stack: ExitStack) -> Path:
    """Return the directory that sessions get theirs in; a temporary one goes with the stack.

    Raises:
        CannotServe: None can be made there.
    """
    given = configuration.settings.workspace
    if given is not None:
        require_writable(configuration, "workspace", given)
        return given
    made = tempfile.TemporaryDirectory(prefix="session-supervisor-", ignore_cleanup_errors=True)
    # Links resolved, as the place of every session must be.
    return Path(stack.enter_context(made)).resolve()


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
class Offline:
    """What replaces the way to a real model.

    Attributes:
        env: The environment that leads the CLI to the offline model.
        config_dir: For the CLI's own files, so that no login plays a part.
    """

    env: dict[str, str]
    config_dir: Path


def agent(
    configuration: Configuration,
    *,
    workspace: Path,
    offline: Offline | None = None,
    state_dir: Path | None = None,
) -> ClaudeAgent:
    """Return what answers prompts.

    Args:
        configuration: The settings.
        workspace: What holds the private directories of all sessions.
        offline: The offline model; None: a real one.
        state_dir: In place of the one that is set.

    Raises:
        CannotServe: The settings name what there is not.
    """
    settings = configuration.settings
    state = state_dir or settings.state_dir
    if offline is not None:
        state = offline.config_dir
    # One user, one login: the CLI's own place. With keys a place for each owner.
    config_dir = None if offline is None else offline.config_dir
    try:
        return ClaudeAgent(
            model=settings.model or DEFAULT_MODEL,
            model_aliases={**DEFAULT_ALIASES, **settings.model_aliases},
            extra_tools=settings.extra_tools,
            forbidden_tools=settings.forbidden_tools,
            env={} if offline is None else offline.env,
            env_passthrough=settings.env_passthrough,
            config_dir=partial(owners_directory, state) if settings.has_keys else config_dir,
            allow_bypass_permissions=settings.allow_bypass_permissions,
            confine_files=settings.confine_files,
            extra_dirs=settings.extra_dirs,
            hidden_dirs=(*_own_files(configuration, workspace, state), *settings.hidden_dirs),
            sandbox=settings.sandbox,
        )
    except ValueError as error:
        raise CannotServe(str(error)) from error


def owners_directory(state_dir: Path, owner: str) -> Path:
    """Return where Claude Code keeps what it keeps for an owner."""
    return state_dir / "owners" / owner / "claude"


def leave_the_network() -> None:
    """Take out of our environment whatever would lead a session to a real model, or around ours."""
    for name in tuple(os.environ):
        if name.startswith(_ONLINE) or name.lower() in _PROXIES:
            del os.environ[name]


def _own_files(configuration: Configuration, workspace: Path, state: Path) -> list[Path]:
    """Return what no session may look at."""
    settings = configuration.settings
    found = [workspace]
    if settings.has_keys:
        # Owners have theirs in `state`, which is another one for the offline model.
        found += [settings.state_dir, state]
    if settings.keys is not None:
        found += [settings.keys, settings.keys.with_name(keyfile.FIRST_KEY_FILE)]
    if settings.tls_key is not None:
        found.append(settings.tls_key)
    if configuration.file is not None:
        found.append(configuration.file.absolute())
    return found
