"""`ClaudeAgent`: starts Claude Code processes."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import logging
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from session_supervisor.agents.claude import launch, models, sandbox, tools, variables
from session_supervisor.agents.claude.confinement import Confinement
from session_supervisor.agents.claude.orphans import Sweeper
from session_supervisor.agents.claude.process import ClaudeProcess, StopTimes
from session_supervisor.agents.claude.program import Program, require_descriptors
from session_supervisor.agents.claude.translate import Translator
from session_supervisor.agents.port import Exit, Fingerprint
from session_supervisor.errors import (
    AgentError,
    AgentGone,
    AgentStartFailed,
    InvalidSpec,
    NotAllowed,
    ResumeNotFound,
)
from session_supervisor.spec import SessionSpec

if TYPE_CHECKING:
    from types import ModuleType

_log = logging.getLogger(__name__)

_TRANSPORT = "session_supervisor.agents.claude.transport"

_UNKNOWN_CONVERSATION = "No conversation found"


class ClaudeAgent:
    """Starts Claude Code processes: the port `Agent` on the claude-agent-sdk.

    Example:
        >>> async with Supervisor(ClaudeAgent()) as supervisor:
        ...     session = await supervisor.start(SessionSpec(model="sonnet"))
    """

    def __init__(
        self,
        *,
        cli_path: str | os.PathLike[str] | None = None,
        model: str = models.DEFAULT_MODEL,
        model_aliases: Mapping[str, str] = models.DEFAULT_ALIASES,
        extra_tools: Sequence[str] = (),
        env: Mapping[str, str] = MappingProxyType({}),
        env_passthrough: Sequence[str] = (),
        config_dir: str | os.PathLike[str] | None = None,
        allow_bypass_permissions: bool = False,
        setting_sources: Sequence[str] = (),
        verbatim_prompts: bool = True,
        confine_files: bool = True,
        extra_dirs: Sequence[str | os.PathLike[str]] = (),
        hidden_dirs: Sequence[str | os.PathLike[str]] = (),
        sandbox: bool = False,
        max_line: int = 64 * 2**20,
        stderr_lines: int = 100,
        stop_times: StopTimes | None = None,
    ) -> None:
        """Set up a factory; nothing is started, read or imported yet.

        Args:
            cli_path: The program; None takes the one that comes with the SDK, or on the PATH.
            model: The model of sessions that name none; a family's name means its newest.
            model_aliases: Names that sessions may use for other names.
            extra_tools: Further tools of sessions that name none; sessions may name them too.
                If they reach files, no `confine_files` confines them.
            env: Further environment variables of every process, such as `ANTHROPIC_BASE_URL`.
                A session's shell can print them.
            env_passthrough: Names, and beginnings of names with a `*` behind, of variables of
                ours that processes get besides those that `variables` lists: what the CLI needs
                to run, to log in and to reach the model.
            config_dir: Where the CLI keeps transcripts and login (`CLAUDE_CONFIG_DIR`); None:
                where it always does, so that the login of this user is found.
            allow_bypass_permissions: Whether sessions may have `bypassPermissions`.
            setting_sources: Settings files that count: `user`, `project`, `local`. A project's
                settings can run programs: list it only where every directory is trusted.
            verbatim_prompts: Whether a prompt is mere text. Otherwise its slash commands are
                carried out, and the files that it names with `@` are read, without asking.
            confine_files: Whether Read, Write, Edit, NotebookEdit, Glob and Grep reach only a
                session's own directory, in every permission mode. It says nothing about Bash.
            extra_dirs: Further directories that the file tools of every session may use.
            hidden_dirs: Directories that no session may read, even where they lie in its own, but
                for what lies further down and is its own: the server's files, and the directory
                that holds those of all sessions. The CLI's own are always among them.
            sandbox: Whether Bash runs in the CLI's sandbox (Linux, needs bubblewrap and
                socat): it writes only where the file tools may, reads nothing that is hidden,
                and has neither a network nor our credentials.
            max_line: Longest message of the CLI, bytes. The SDK's own limit, 1 MiB, is less than
                one picture.
            stderr_lines: How much of a process's standard error to keep, lines.
            stop_times: How long stopping a process may take.

        Raises:
            ValueError: `env_passthrough` holds what cannot be a name.
        """
        self._cli_path = cli_path
        self._model = model
        self._aliases = dict(model_aliases)
        self._extra_tools = tuple(extra_tools)
        self._env = dict(env)
        self._env_passthrough = variables.checked(env_passthrough)
        self._config_dir = None if config_dir is None else os.fspath(config_dir)
        self._allow_bypass = allow_bypass_permissions
        self._setting_sources = tuple(setting_sources)
        self._verbatim = verbatim_prompts
        self._confine_files = confine_files
        self._extra_dirs = tuple(os.path.abspath(one) for one in extra_dirs)
        self._hidden_dirs = tuple(os.path.abspath(one) for one in hidden_dirs)
        self._sandbox = sandbox
        self._max_line = max_line
        self._stderr_lines = stderr_lines
        self._stop_times = stop_times or StopTimes()
        self._sweeper = Sweeper()
        self._processes: set[ClaudeProcess] = set()
        self._litter: set[str] = set()
        self._transport_module: ModuleType | None = None

    async def warm_up(self) -> None:
        """Import the SDK, which takes a second, so that the first session need not wait for it."""
        await self._transports()

    def check(self, spec: SessionSpec) -> None:
        """Refuse what this agent could not do.

        Raises:
            NotAllowed: The operator has not allowed it.
            InvalidSpec: It names the field and says why.
        """
        if spec.model is not None and not models.is_name(spec.model):
            raise InvalidSpec("model", f"{spec.model[:100]!r} cannot be the name of a model.")
        if spec.cwd is not None and not os.path.isabs(spec.cwd):
            raise InvalidSpec("cwd", f"{spec.cwd!r} is not an absolute path.")
        if spec.cwd is not None and not os.path.isdir(spec.cwd):
            raise InvalidSpec("cwd", f"{spec.cwd!r} is not a directory on this machine.")
        strange = tools.unknown(spec.allowed_tools or (), extra=self._extra_tools)
        if strange:
            raise InvalidSpec(
                "allowed_tools",
                f"there is no tool {', '.join(map(repr, strange))}. "
                f"There are: {', '.join(tools.known(extra=self._extra_tools))}.",
            )
        if spec.permission_mode == "bypassPermissions":
            self._check_bypass()
        if spec.max_turns is not None and spec.max_turns < 1:
            raise InvalidSpec("max_turns", "it must be at least 1.")
        if spec.system_prompt is not None and not _is_text(spec.system_prompt):
            raise InvalidSpec("system_prompt", "it holds half a surrogate pair, which is no text.")

    def _check_bypass(self) -> None:
        if not self._allow_bypass:
            raise NotAllowed(
                "permission_mode", "the operator of this server has not allowed bypassPermissions."
            )
        sandboxed = {**os.environ, **self._env}.get("IS_SANDBOX")
        if os.geteuid() == 0 and not sandboxed:
            raise NotAllowed(
                "permission_mode",
                "Claude Code refuses bypassPermissions to root. The operator must run the server "
                "as another user or, if it is in a sandbox, set IS_SANDBOX=1.",
            )

    async def spawn(self, fingerprint: Fingerprint, *, resume: str | None = None) -> ClaudeProcess:
        """Start a process and return when it is ready for a prompt.

        It takes as long as it takes; the caller sets the limit. Cancelled, it leaves nothing.

        Args:
            fingerprint: What it is started with.
            resume: Id of the conversation to go on with; None begins one.

        Raises:
            AgentMissing: There is no Claude Code on this machine, or no sandbox for it.
            AgentStartFailed: It did not come up; the error has its last words.
            ResumeNotFound: It does not know the conversation.
        """
        marker = str(uuid.uuid4())
        try:
            # Also here, because much of what comes before the program opens files as well.
            require_descriptors()
            cli = launch.find_cli(self._cli_path)
            if self._litter:
                await asyncio.to_thread(self._remove, *self._litter)
            scratch = tempfile.mkdtemp(prefix="claude-", dir=self._env.get(launch.SCRATCH))
            try:
                env = self._environment(fingerprint, marker, scratch)
                if self._sandbox:
                    sandbox.require(env.get("PATH"))
                limits = Confinement.of(
                    env,
                    cwd=fingerprint.cwd,
                    scratch=scratch,
                    extra_dirs=self._extra_dirs,
                    hidden_dirs=self._hidden_dirs,
                )
                program = await self._start(cli, fingerprint, env, scratch, limits, resume)
            except BaseException:
                self._remove(scratch)
                raise
        except (OSError, ValueError) as error:
            # The caller is told why, and only the operator where on this machine.
            _log.warning("Claude Code cannot be started in %r", fingerprint.cwd, exc_info=True)
            reason = _without_paths(error)
            raise AgentStartFailed(
                f"Claude Code cannot be started in the session's directory: {reason}."
            ) from error
        translator = Translator(now=time.time)
        process = ClaudeProcess(
            program,
            translator=translator,
            clean_up=partial(self._clean_up, marker, scratch),
            max_line=self._max_line,
            times=self._stop_times,
            on_stopped=self._processes.discard,
        )
        self._processes.add(process)
        try:
            # The import, if it is the first, runs while the CLI comes up.
            transports = await self._transports()
            transport = transports.ControlTransport(program)
            client = transports.client_for(
                transport,
                verbatim_prompts=self._verbatim,
                confinement=limits if self._confine_files else None,
            )
            await process.connect(client, transport.accept)
        except BaseException as error:
            program.signal(signal.SIGKILL)
            ended = await process.stop()
            if isinstance(error, Exception):
                raise _start_error(error, ended, translator.complaint, resume) from error
            raise
        return process

    async def aclose(self) -> None:
        """Stop every process that nobody has stopped."""
        try:
            await asyncio.gather(*(process.stop() for process in tuple(self._processes)))
        finally:
            await asyncio.to_thread(self._remove, *self._litter)

    async def _clean_up(self, marker: str, scratch: str) -> None:
        try:
            await self._sweeper.sweep(marker)
        finally:
            await asyncio.to_thread(self._remove, scratch, *self._litter)

    def _remove(self, *scratches: str) -> None:
        """Remove scratch directories; those that stay are remembered, to be tried again."""
        for scratch in scratches:
            # It takes a descriptor, and there may be none just now.
            shutil.rmtree(scratch, ignore_errors=True)
            if os.path.lexists(scratch):
                self._litter.add(scratch)
            else:
                self._litter.discard(scratch)

    async def _start(
        self,
        cli: str,
        fingerprint: Fingerprint,
        env: Mapping[str, str],
        scratch: str,
        limits: Confinement,
        resume: str | None,
    ) -> Program:
        model = fingerprint.model or self._model
        exist, allowed = tools.resolve(fingerprint.allowed_tools, extra=self._extra_tools)
        given = launch.arguments(
            fingerprint,
            model=self._aliases.get(model, model),
            tools=exist,
            allowed=allowed,
            setting_sources=self._setting_sources,
            extra_dirs=self._extra_dirs,
            settings=sandbox.settings(limits, env) if self._sandbox else None,
            system_prompt_file=_written(fingerprint.system_prompt, scratch),
            session_id=str(uuid.uuid4()),
            resume=resume,
        )
        return await Program.start(
            launch.tied_to_us([cli, *given]),
            cwd=fingerprint.cwd,
            env=env,
            stderr_lines=self._stderr_lines,
        )

    def _environment(self, fingerprint: Fingerprint, marker: str, scratch: str) -> dict[str, str]:
        return launch.environment(
            os.environ,
            self._env,
            marker=marker,
            scratch=scratch,
            cwd=fingerprint.cwd,
            sdk_version=importlib.metadata.version("claude-agent-sdk"),
            config_dir=self._config_dir,
            background=fingerprint.background,
            passthrough=self._env_passthrough,
        )

    async def _transports(self) -> ModuleType:
        if self._transport_module is None:
            # In a thread, where a lock is waited for while another one imports it as well.
            self._transport_module = await asyncio.to_thread(importlib.import_module, _TRANSPORT)
        return self._transport_module


def _start_error(
    error: Exception, ended: Exit, complaint: str | None, resume: str | None
) -> AgentError:
    words = complaint or ended.stderr
    if resume is not None and _UNKNOWN_CONVERSATION in f"{complaint} {ended.stderr}":
        return ResumeNotFound(
            f"Claude Code does not know the conversation {resume!r}. Begin a new one."
        )
    reason = ended.cause if isinstance(error, AgentGone) else f"{error}."
    return AgentStartFailed(
        f"Claude Code did not start. {reason} {words}".rstrip(), stderr=ended.stderr
    )


def _without_paths(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


def _written(system_prompt: str | None, scratch: str) -> str | None:
    if system_prompt is None:
        return None
    path = Path(scratch, "system-prompt")
    path.write_text(system_prompt, encoding="utf-8")
    return str(path)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
