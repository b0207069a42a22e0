"""`ClaudeAgent`: starts Claude Code processes."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import json
import logging
import os
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from session_supervisor.agents.claude import (
    configdir,
    launch,
    models,
    sandbox,
    tools,
    variables,
    workdir,
)
from session_supervisor.agents.claude.asking import Rules
from session_supervisor.agents.claude.configdir import ConfigDir
from session_supervisor.agents.claude.confinement import Confinement
from session_supervisor.agents.claude.credentials import (
    Credential,
    CredentialProvider,
    find_credential,
)
from session_supervisor.agents.claude.orphans import Sweeper
from session_supervisor.agents.claude.process import ClaudeProcess, StopTimes
from session_supervisor.agents.claude.program import Program, require_descriptors
from session_supervisor.agents.claude.scratch import Scratches, written
from session_supervisor.agents.claude.translate import Translator
from session_supervisor.agents.port import Exit, Fingerprint
from session_supervisor.errors import (
    AgentError,
    AgentGone,
    AgentMissing,
    AgentStartFailed,
    ResumeNotFound,
)
from session_supervisor.spec import LOCAL_OWNER, JsonObject, SessionSpec

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
        forbidden_tools: Sequence[str] = (),
        env: Mapping[str, str] = MappingProxyType({}),
        env_passthrough: Sequence[str] = (),
        config_dir: ConfigDir = None,
        credentials: CredentialProvider | None = None,
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
            forbidden_tools: Tools that never exist in any session, nor in its subagents. Whoever
                has Bash can do much of what others do.
            env: Further environment variables of every process, such as `ANTHROPIC_BASE_URL`.
                A session's shell can print them.
            env_passthrough: Names, and beginnings of names with a `*` behind, of variables of
                ours that processes get besides those that `variables` lists: what the CLI needs
                to run, to log in and to reach the model.
            config_dir: Where the CLI keeps transcripts and login (`CLAUDE_CONFIG_DIR`), made when
                it is needed; None: where it always does, so that the login of this user is found.
                A function is given a session's owner and returns that owner's: always the same
                one, or conversations cannot be resumed. Have what holds them all in `hidden_dirs`.
            credentials: Says for each process with which credential it reaches the model, in
                place of whatever our own environment holds; None: with that.
            allow_bypass_permissions: Whether sessions may have `bypassPermissions`.
            setting_sources: Settings files that count: `user`, `project`, `local`. A project's
                settings can run programs: list it only where every directory is trusted.
            verbatim_prompts: Whether a prompt is mere text. Otherwise its slash commands are
                carried out, and the files that it names with `@` are read, without asking.
            confine_files: Whether Read, Write, Edit, NotebookEdit, Glob and Grep reach only a
                session's own directory, in every permission mode. It says nothing about Bash.
            extra_dirs: Further directories that the file tools of every session may use.
            hidden_dirs: Directories and files that no session may read, even where they lie in
                its own, but for what lies further down and is its own: the server's files, and
                the directory that holds those of all sessions. The CLI's own are always among
                them. No session may choose to work in one.
            sandbox: Whether Bash runs in the CLI's sandbox (Linux, needs bubblewrap and
                socat): it writes only where the file tools may, reads nothing that is hidden,
                and has neither a network nor our credentials.
            max_line: Longest message of the CLI, bytes. The SDK's own limit, 1 MiB, is less than
                one picture.
            stderr_lines: How much of a process's standard error to keep, lines.
            stop_times: How long stopping a process may take.

        Raises:
            ValueError: `env_passthrough` holds what cannot be a name, or `forbidden_tools` what
                is no tool.
        """
        self._cli_path = cli_path
        self._model = model
        self._aliases = dict(model_aliases)
        self._extra_tools = tuple(extra_tools)
        self._forbidden = tools.checked(forbidden_tools, extra=self._extra_tools)
        self._env = dict(env)
        self._env_passthrough = variables.checked(env_passthrough)
        self._config_dir = config_dir
        self._credentials = credentials
        self._setting_sources = tuple(setting_sources)
        self._verbatim = verbatim_prompts
        self._confine_files = confine_files
        self._extra_dirs = tuple(os.path.abspath(one) for one in extra_dirs)
        self._hidden_dirs = tuple(os.path.abspath(one) for one in hidden_dirs)
        self._sandbox = sandbox
        self._rules = Rules(
            extra_tools=self._extra_tools,
            forbidden_tools=self._forbidden,
            hidden_dirs=self._hidden_dirs,
            allow_bypass_permissions=allow_bypass_permissions,
            env=self._env,
        )
        self._max_line = max_line
        self._stderr_lines = stderr_lines
        self._stop_times = stop_times or StopTimes()
        self._sweeper = Sweeper()
        self._processes: set[ClaudeProcess] = set()
        self._scratches = Scratches()
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
        self._rules.check(spec)

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
            cli = self._find_cli()
            await self._scratches.remove()
            provided = await self._provided(fingerprint.owner)
            scratch = self._scratches.make(self._env.get(launch.SCRATCH))
            try:
                env = self._environment(fingerprint, marker, scratch, provided)
                if self._sandbox:
                    sandbox.require(env.get("PATH"))
                limits = Confinement.of(
                    env,
                    cwd=fingerprint.cwd,
                    scratch=scratch,
                    extra_dirs=self._extra_dirs,
                    hidden_dirs=(*self._hidden_dirs, os.path.dirname(scratch)),
                )
                given = self._arguments(fingerprint, env, scratch, limits, resume, provided)
                with workdir.held(fingerprint.cwd) as inside:
                    program = await Program.start(
                        launch.tied_to_us([cli, *given]),
                        cwd=inside,
                        env=env,
                        stderr_lines=self._stderr_lines,
                    )
            except BaseException:
                self._scratches.remove_now(scratch)
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

    async def find_credential(self, owner: str = LOCAL_OWNER) -> Credential:
        """Find out how the sessions of an owner would log in.

        Args:
            owner: Whose; it matters where each has a `config_dir` or credentials of its own.

        Raises:
            AgentStartFailed: The provider of credentials failed.
            OSError: The owner's `config_dir` cannot be made.
        """
        fingerprint = Fingerprint(owner=owner, cwd="/")
        env = self._environment(fingerprint, "", "", await self._provided(owner))
        del env[launch.MARKER], env[launch.SCRATCH]
        return await find_credential(env, cli_path=self._cli_path)

    async def aclose(self) -> None:
        """Stop every process that nobody has stopped, and whatever others have left."""
        try:
            await asyncio.gather(*(process.stop() for process in tuple(self._processes)))
            await self._sweeper.sweep_rest()
        finally:
            await self._scratches.remove()

    async def _clean_up(self, marker: str, scratch: str) -> None:
        try:
            await self._sweeper.sweep(marker)
        except OSError as error:
            _log.warning("what a Claude Code process left is looked for later: %s", error.strerror)
        finally:
            await self._scratches.remove(scratch)

    def _find_cli(self) -> str:
        try:
            return launch.find_cli(self._cli_path)
        except AgentMissing:
            if self._cli_path is None:
                raise
            # Callers are told, and where this machine has its programs is not for them.
            _log.exception("Claude Code cannot be started")
            raise AgentMissing(
                "Claude Code is not where this server was told to find it. Its operator must look; "
                "the server's log says more."
            ) from None

    async def _provided(self, owner: str) -> Mapping[str, str] | None:
        if self._credentials is None:
            return None
        try:
            return dict(await self._credentials.variables(owner=owner))
        except Exception:
            # The provider's failure, whose words may hold a secret: no caller gets them.
            _log.exception("There is no credential for sessions of %r", owner)
            raise AgentStartFailed(
                "The server could not get the credential with which this session would reach the "
                "model. Try again later; its operator finds the reason in the log."
            ) from None

    def _arguments(
        self,
        fingerprint: Fingerprint,
        env: Mapping[str, str],
        scratch: str,
        limits: Confinement,
        resume: str | None,
        provided: Mapping[str, str] | None,
    ) -> list[str]:
        model = fingerprint.model or self._model
        exist, allowed = tools.resolve(
            fingerprint.allowed_tools, extra=self._extra_tools, forbidden=self._forbidden
        )
        return launch.arguments(
            fingerprint,
            model=self._aliases.get(model, model),
            tools=exist,
            allowed=allowed,
            forbidden=tools.every_name(self._forbidden),
            setting_sources=self._setting_sources,
            extra_dirs=self._extra_dirs,
            settings=self._settings(limits, env, provided),
            system_prompt_file=written(fingerprint.system_prompt, scratch, "system-prompt"),
            session_id=str(uuid.uuid4()),
            resume=resume,
        )

    def _settings(
        self, limits: Confinement, env: Mapping[str, str], provided: Mapping[str, str] | None
    ) -> str | None:
        settings: JsonObject = {}
        if self._confine_files:
            settings |= limits.settings()
        if self._sandbox:
            settings |= sandbox.settings(limits, env, secret=provided or ())
        return json.dumps(settings) if settings else None

    def _environment(
        self,
        fingerprint: Fingerprint,
        marker: str,
        scratch: str,
        provided: Mapping[str, str] | None,
    ) -> dict[str, str]:
        config_dir = configdir.of(self._config_dir, fingerprint.owner)
        if config_dir is not None:
            configdir.make(config_dir)
        return launch.environment(
            os.environ,
            self._env,
            marker=marker,
            scratch=scratch,
            cwd=fingerprint.cwd,
            sdk_version=importlib.metadata.version("claude-agent-sdk"),
            config_dir=config_dir,
            background=fingerprint.background,
            passthrough=self._env_passthrough,
            provided=provided,
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
