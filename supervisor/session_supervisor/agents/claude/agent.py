"""`ClaudeAgent`: starts Claude Code processes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import signal
import stat
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from session_supervisor.agents.claude import (
    configdir,
    launch,
    models,
    proc,
    sandbox,
    tools,
    variables,
    workdir,
)
from session_supervisor.agents.claude.asking import Rules
from session_supervisor.agents.claude.census import Census
from session_supervisor.agents.claude.chains import whole
from session_supervisor.agents.claude.configdir import ConfigDir
from session_supervisor.agents.claude.confinement import CHANGES, TOOLS, Confinement
from session_supervisor.agents.claude.credentials import (
    Credential,
    CredentialProvider,
    find_credential,
)
from session_supervisor.agents.claude.manifest import Manifest
from session_supervisor.agents.claude.mirror import Mirror, Transcripts
from session_supervisor.agents.claude.orphans import Sweeper
from session_supervisor.agents.claude.permissions import (
    Permissions,
    below,
    fitting,
    spelled,
    usable,
)
from session_supervisor.agents.claude.process import ClaudeProcess, StopTimes
from session_supervisor.agents.claude.program import Program, require_descriptors
from session_supervisor.agents.claude.renewal import Origin
from session_supervisor.agents.claude.scratch import (
    Listing,
    Scratches,
    listing,
    restore,
    written,
)
from session_supervisor.agents.claude.translate import Translator
from session_supervisor.agents.port import Exit, Fingerprint
from session_supervisor.asks import Rule
from session_supervisor.errors import (
    AgentError,
    AgentGone,
    AgentMissing,
    AgentStartFailed,
    CannotRenew,
    ResumeNotFound,
)
from session_supervisor.spec import LOCAL_OWNER, JsonObject, SessionSpec

if TYPE_CHECKING:
    from types import ModuleType

    from session_supervisor.agents.claude.transcripts import Conversation

_log = logging.getLogger(__name__)

_TRANSPORT = "session_supervisor.agents.claude.transport"
_TRANSCRIPTS = "session_supervisor.agents.claude.transcripts"
"""The modules that import the SDK."""

_PAUSES_S = (0.02, 0.1, 0.3, 1.0)
"""Seconds between tries to have a scratch directory as it was."""

_COMPLETE = 10_000
"""Most conversations of which it is remembered that their copy is complete."""

_SERVERS = "mcp-servers.json"
"""Name of a file in a process's scratch directory."""

_LOGIN = (".credentials.json", "settings.json")
"""Files in the CLI's configuration directory that it looks at as it starts."""

_MANAGED = "/etc/claude-code/managed-settings"
"""Where the machine's settings are: in a file (`.json`), and in those of a directory (`.d`)."""

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
        mcp_servers: Mapping[str, JsonObject] = MappingProxyType({}),
        shared_dirs: Sequence[str | os.PathLike[str]] = (),
        transcripts: Transcripts | None = None,
        manifest: str | os.PathLike[str] | None = None,
        max_line: int = 64 * 2**20,
        stderr_lines: int = 100,
        niceness: int = 0,
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
                session's own directory, in every permission mode. It says nothing about Bash. Where
                sessions can have Bash, and no sandbox holds it, a human who is asked can allow a
                file outside that is not hidden.
            extra_dirs: Further directories that the file tools of every session may use.
            hidden_dirs: Directories and files that no session may read, even where they lie in
                its own, but for what lies further down and is its own: the server's files, and
                the directory that holds those of all sessions. The CLI's own are always among
                them. No session may choose to work in one.
            sandbox: Whether Bash runs in the CLI's sandbox (Linux, needs bubblewrap and
                socat): it writes only where the file tools may, reads nothing that is hidden,
                and has neither a network nor our credentials.
            mcp_servers: MCP servers that sessions may ask for, by name: each as the CLI has it in
                `mcpServers`, with a `command` or a `url`. They run with the session's environment.
            shared_dirs: Directories that hold those of several owners, such as the one below which
                callers choose where to work. Of what lies there and is not a session's own, nobody
                is asked.
            transcripts: Gets a copy of every transcript as it grows, from which a conversation goes
                on where the CLI's own files are gone, or lack what it could not write: any
                `SessionStore` of the SDK's, such as `SqliteStore.transcripts`. None: there are
                only the files, as the CLI left them.
            manifest: Directory that lists the processes that run, so that `recover` can end those
                that a killed predecessor left. One agent at a time may use it. None: no list.
            max_line: Longest message of the CLI, bytes. The SDK's own limit, 1 MiB, is less than
                one picture.
            stderr_lines: How much of a process's standard error to keep, lines.
            niceness: By how much processes go after ours for the processor, 0 to 19, as far as the
                system lets us; ours stays as it is. 3 keeps a program answering in milliseconds
                while its processes have all cores; they go after every other program as well.
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
        self._mcp_servers = {name: dict(one) for name, one in mcp_servers.items()}
        self._shared_dirs = tuple(os.path.abspath(one) for one in shared_dirs)
        # Where a human can allow a command, allowing a file gives no more.
        self._asks_outside = not sandbox and "Bash" not in self._forbidden
        self._rules = Rules(
            extra_tools=self._extra_tools,
            forbidden_tools=self._forbidden,
            hidden_dirs=self._hidden_dirs,
            allow_bypass_permissions=allow_bypass_permissions,
            mcp_servers=tuple(self._mcp_servers),
            env=self._env,
        )
        self._max_line = max_line
        self._stderr_lines = stderr_lines
        self._niceness = niceness
        self._stop_times = stop_times or StopTimes()
        self._transcripts = transcripts
        self._complete: dict[str, None] = {}
        self._manifest = None if manifest is None else Manifest(manifest)
        self._census = Census()
        self._sweeper = Sweeper()
        self._processes: set[ClaudeProcess] = set()
        self._scratches = Scratches()
        self._late: dict[str, ModuleType] = {}
        self._secret = os.urandom(32)
        """So that nobody finds a credential by guessing what `circumstances` was made of."""

    async def warm_up(self) -> None:
        """Import the SDK, which takes a second, so that the first session need not wait for it."""
        await self._import(_TRANSPORT)
        await self._import(_TRANSCRIPTS)

    async def recover(self) -> int:
        """End what a killed predecessor left running, if there is a manifest of it.

        Call it before the first `spawn`, and before any session goes on: two processes at work on
        one conversation spoil it.

        Returns:
            How many processes that were.

        Raises:
            OSError: The manifest cannot be read.
        """
        return 0 if self._manifest is None else await self._manifest.recover()

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
        bypasses = fingerprint.permission_mode == "bypassPermissions"
        if bypasses and not self._rules.allow_bypass_permissions:  # any more
            raise AgentStartFailed(
                "The operator of this server has not allowed bypassPermissions. Change the "
                "session's permission_mode, and restart it."
            )
        marker = str(uuid.uuid4()) if self._manifest is None else self._manifest.new_marker()
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
                    shared_dirs=self._shared_dirs,
                    asks=self._asks_outside
                    and fingerprint.asks
                    and fingerprint.permission_mode != "bypassPermissions",
                )
                mirror = await self._mirror(env, fingerprint.cwd, resume)
                given = self._arguments(fingerprint, env, scratch, limits, resume, provided)
                if self._manifest is not None:
                    await self._manifest.enter(marker, scratch=scratch)
                with workdir.held(fingerprint.cwd) as inside:
                    program = await Program.start(
                        launch.tied_to_us([cli, *given]),
                        cwd=inside,
                        env=env,
                        stderr_lines=self._stderr_lines,
                    )
            except BaseException:
                self._scratches.remove_now(scratch)
                if self._manifest is not None:
                    self._manifest.leave_now(marker)
                raise
        except (OSError, ValueError) as error:
            # The caller is told why, and only the operator where on this machine.
            _log.warning("Claude Code cannot be started in %r", fingerprint.cwd, exc_info=True)
            reason = _without_paths(error)
            raise AgentStartFailed(
                f"Claude Code cannot be started in the session's directory: {reason}."
            ) from error
        program.go_after_us(self._niceness)
        if not proc.tag(program.pid, marker):
            _log.debug("A process of Claude Code carries its marker in its environment alone")
        new_translator = partial(
            Translator, now=time.time, structured=fingerprint.output_schema is not None
        )
        translator = new_translator()
        scratch_files: Listing = frozenset()

        async def wipe(conversation: str | None) -> None:
            try:
                await self._wipe(fingerprint, conversation)
                if conversation is not None:
                    await _restored(scratch, scratch_files)
            except (OSError, AgentError) as error:
                raise CannotRenew("files", "what it has written cannot be erased") from error

        permissions = Permissions(
            asks=fingerprint.asks,
            rules=fingerprint.rules,
            confinement=limits if self._confine_files else None,
        )
        process = ClaudeProcess(
            program,
            translator=translator,
            permissions=permissions,
            model_named=self._model_named,
            may_bypass=self._rules.may_bypass,
            take_stock=partial(self._census.tree, marker),
            look_around=partial(self._census.leftovers, marker, program.pid),
            clean_up=partial(self._clean_up, marker, scratch, mirror),
            mirror=mirror,
            max_line=self._max_line,
            times=self._stop_times,
            on_stopped=self._processes.discard,
            origin=Origin(
                model=self._model_named(fingerprint.model or self._model),
                permission_mode=fingerprint.permission_mode,
                confined=self._confine_files,
                verbatim=self._verbatim,
            ),
            new_translator=new_translator,
            wipe=wipe,
        )
        self._processes.add(process)
        try:
            if self._manifest is not None:
                await self._manifest.enter(marker, scratch=scratch, pid=program.pid)
            # The import, if it is the first, runs while the CLI comes up.
            transports = await self._import(_TRANSPORT)
            transport = transports.ControlTransport(program)
            client = transports.client_for(
                transport,
                verbatim_prompts=self._verbatim,
                guard=permissions if self._confine_files else None,
            )
            await process.connect(client, transport.accept)
            # It has been read, and the session's file tools may read what lies there.
            scratch_files = await asyncio.to_thread(_settled, scratch)
        except BaseException as error:
            program.signal(signal.SIGKILL)
            ended = await process.stop()
            if isinstance(error, Exception):
                raise _start_error(error, ended, translator.complaint, resume) from error
            raise
        return process

    def spelled_out(self, fingerprint: Fingerprint) -> Fingerprint:
        """Return the fingerprint with a model in any case: a process can be told of one."""
        return replace(fingerprint, model=fingerprint.model or self._model)

    def can_be_told(self, model: str) -> bool:
        """Whether the CLI takes a model's name, as it runs, without a request upstream."""
        return self._model_named(model) in models.FAMILIES

    async def circumstances(self, fingerprint: Fingerprint) -> str:
        """Return a name for all that a process is started with besides its fingerprint.

        It is another one when the program is, our environment, the credential, or the owner's
        configuration directory with the login in it.

        Args:
            fingerprint: What it is, or would be, started with.

        Raises:
            AgentMissing: There is no Claude Code on this machine.
            AgentStartFailed: The provider of credentials failed.
        """
        cli = self._find_cli()
        provided = await self._provided(fingerprint.owner)
        try:
            env = self._environment(replace(fingerprint, cwd="/"), "", "", provided)
        except OSError as error:
            raise AgentStartFailed(f"The configuration directory: {error.strerror}.") from error
        config = configdir.used(env)
        files = [cli, config, *(os.path.join(config, name) for name in _LOGIN), *_managed()]
        told = json.dumps([sorted(env.items()), [[path, *_looks(path)] for path in files]])
        return hashlib.blake2b(told.encode(), key=self._secret, digest_size=16).hexdigest()

    async def fork(
        self,
        fingerprint: Fingerprint,
        agent_session_id: str,
        *,
        into: Fingerprint,
        anchor: str | None = None,
    ) -> str:
        """Copy a conversation, without its subagents'; the original is untouched.

        Args:
            fingerprint: What the processes of its session were started with. None may be at work.
            agent_session_id: Which.
            into: What the processes of the copy will be started with.
            anchor: `TurnEnded.anchor` of the last turn to copy; None copies all.

        Returns:
            The id to resume the copy with.

        Raises:
            ResumeNotFound: It is not known, or has no such place.
            AgentError: It could not be copied. Nothing was.
        """
        try:
            source = await self._conversation(
                self._config_of(fingerprint), fingerprint.cwd, agent_session_id
            )
            transcripts = self._transcripts
            if (
                transcripts is not None
                and agent_session_id not in self._complete
                and await asyncio.to_thread(source.is_here)
            ):
                await self._mend(source, transcripts)
            entries = await asyncio.to_thread(source.read)
            if not entries and transcripts is not None and source.can_be_here:
                entries = whole(await transcripts.load(source.key) or ())
            if not entries:
                raise _unknown(agent_session_id)
            module = await self._import(_TRANSCRIPTS)
            try:
                copy, lines = await module.forked(
                    entries, source.key, cwd=fingerprint.cwd, anchor=anchor
                )
            except (ValueError, FileNotFoundError) as error:
                raise ResumeNotFound(
                    f"The conversation cannot be forked there: {error}."
                ) from error
            target = await self._conversation(self._config_of(into), into.cwd, copy)
            await asyncio.to_thread(target.write, lines, {})
            try:
                if self._transcripts is not None:
                    await self._transcripts.append(target.key, lines)
            except BaseException:
                await asyncio.to_thread(target.erase)
                raise
        except AgentError:
            raise
        except Exception as error:
            _log.exception("The conversation %s cannot be copied", agent_session_id)
            raise AgentError(
                "The conversation cannot be copied. Try again later; the server's operator finds "
                "the reason in the log."
            ) from error
        if self._transcripts is not None:
            self._note_complete([copy])
        return str(copy)

    async def forget(self, fingerprint: Fingerprint, agent_session_id: str) -> None:
        """Erase a conversation: the CLI's files of it, and their copy.

        Args:
            fingerprint: What the processes of its session were started with. None may run.
            agent_session_id: Which; one that is not known is erased already.

        Raises:
            AgentError: Something of it is still there.
        """
        self._complete.pop(agent_session_id, None)
        config = self._config_of(fingerprint)
        try:
            conversation = await self._conversation(config, fingerprint.cwd, agent_session_id)
            await asyncio.to_thread(conversation.erase)
            if self._transcripts is not None:
                with contextlib.suppress(NotImplementedError):  # one that only ever grows
                    await self._transcripts.delete(conversation.key)
        except Exception as error:
            _log.error(
                "The conversation %s cannot be erased: %s",
                agent_session_id,
                error,
                exc_info=not isinstance(error, OSError),  # what the system refuses says it all
            )
            raise AgentError(
                "Something of the conversation cannot be erased. Try again later; the server's "
                "operator finds the reason in the log."
            ) from error

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

    async def _clean_up(self, marker: str, scratch: str, mirror: Mirror | None) -> None:
        try:
            if mirror is not None:
                self._note_complete(await mirror.aclose())
            await self._sweeper.sweep(marker)
            if self._manifest is not None:
                await self._manifest.leave(marker)
        except OSError as error:
            _log.warning("what a Claude Code process left is looked for later: %s", error.strerror)
        finally:
            await self._scratches.remove(scratch)

    # Conversations

    async def _wipe(self, fingerprint: Fingerprint, conversation: str | None) -> None:
        """Erase what is remembered of a directory, whose process lives on, and a conversation.

        Raises:
            AgentError: Something of the conversation is still there.
            OSError: Something of what is remembered is.
        """
        if conversation is not None:
            await self.forget(fingerprint, conversation)
        any_one = conversation or str(uuid.uuid4())
        known = await self._conversation(self._config_of(fingerprint), fingerprint.cwd, any_one)
        await asyncio.to_thread(known.erase_memory)

    async def _mirror(self, env: Mapping[str, str], cwd: str, resume: str | None) -> Mirror | None:
        """Return what copies a process's transcripts, and see to it that it finds its own."""
        if self._transcripts is None:
            return None
        config = configdir.used(env)

        async def path_of(agent_session_id: str) -> str:
            return (await self._conversation(config, cwd, agent_session_id)).path

        mirror = Mirror(
            self._transcripts,
            projects=configdir.projects(config),
            path_of=path_of,
            conversation=resume,
        )
        if resume is None:
            return mirror
        conversation = await self._conversation(config, cwd, resume)
        if not await asyncio.to_thread(conversation.is_here):
            await self._bring_back(conversation, self._transcripts)
        elif resume not in self._complete:
            await self._mend(conversation, self._transcripts)
            # Its last lines may not have reached the store before the server was killed.
            mirror.catch_up(await asyncio.to_thread(conversation.files))
        self._complete.pop(resume, None)
        return mirror

    async def _mend(self, conversation: Conversation, transcripts: Transcripts) -> None:
        """Write the CLI's file of a conversation anew if the CLI would not come to all of it.

        Raises:
            AgentStartFailed: That cannot be said, or done.
        """
        try:
            copied = await transcripts.load(conversation.key) or ()
            if await asyncio.to_thread(conversation.mend, copied):
                _log.warning("The transcript %s was mended", conversation.key)
        except ValueError:  # it will be no better later, and the file may well be complete
            _log.exception("The copy of the transcript %s cannot be read", conversation.key)
        except Exception as error:
            # What is said next would follow on what is there, and leave the rest aside for good.
            raise _not_brought_back(conversation) from error

    async def _bring_back(self, conversation: Conversation, transcripts: Transcripts) -> None:
        """Write the CLI's files of a conversation, if there is a copy of them."""
        if not conversation.can_be_here:
            return
        try:
            entries = await transcripts.load(conversation.key)
            if not entries:
                return
            subagents: dict[str, list[Any]] = {}
            with contextlib.suppress(NotImplementedError):  # it keeps none of them
                for subpath in await transcripts.list_subkeys(conversation.key):
                    key = {**conversation.key, "subpath": subpath}
                    subagents[subpath] = await transcripts.load(key) or []
            await asyncio.to_thread(conversation.write, entries, subagents)
        except Exception as error:
            # To say that it is not known would have the session begin anew, without its memory.
            raise _not_brought_back(conversation) from error
        _log.info("The transcript %s was brought back", conversation.key)

    def _config_of(self, fingerprint: Fingerprint) -> str:
        return configdir.used(self._variables(fingerprint, "", "", None))

    async def _conversation(self, config: str, cwd: str, agent_session_id: str) -> Conversation:
        module = await self._import(_TRANSCRIPTS)
        conversation: Conversation = await asyncio.to_thread(
            module.Conversation, config, cwd=cwd, agent_session_id=agent_session_id
        )
        return conversation

    def _note_complete(self, conversations: Iterable[str]) -> None:
        self._complete.update(dict.fromkeys(conversations))
        while len(self._complete) > _COMPLETE:
            del self._complete[next(iter(self._complete))]

    # Starting

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
        exist, allowed = tools.resolve(
            fingerprint.allowed_tools,
            extra=self._extra_tools,
            forbidden=self._forbidden,
            asks=fingerprint.asks,
        )
        rules = [*map(spelled, fitting(usable(fingerprint.rules)))]
        if self._confine_files and limits.asks:
            # By their names they could be used outside, too, without a question.
            rules += _inside(allowed, limits)
            allowed = tuple(name for name in allowed if name not in TOOLS)
        return launch.arguments(
            fingerprint,
            model=self._model_named(fingerprint.model or self._model),
            tools=exist,
            allowed=allowed,
            forbidden=tools.every_name(self._forbidden),
            setting_sources=self._setting_sources,
            extra_dirs=self._extra_dirs,
            settings=self._settings(limits, rules, env, provided),
            system_prompt_file=written(fingerprint.system_prompt, scratch, "system-prompt"),
            mcp_config_file=written(self._mcp_config(fingerprint), scratch, _SERVERS),
            may_bypass=self._rules.may_bypass,
            session_id=str(uuid.uuid4()),
            resume=resume,
            mirrored=self._transcripts is not None,
        )

    def _model_named(self, model: str) -> str:
        return self._aliases.get(model, model)

    def _mcp_config(self, fingerprint: Fingerprint) -> str | None:
        if not fingerprint.mcp_servers:
            return None
        missing = [name for name in fingerprint.mcp_servers if name not in self._mcp_servers]
        if missing:
            raise AgentStartFailed(
                f"The operator has no MCP server {', '.join(map(repr, missing))} any more."
            )
        return json.dumps(
            {"mcpServers": {name: self._mcp_servers[name] for name in fingerprint.mcp_servers}}
        )

    def _settings(
        self,
        limits: Confinement,
        rules: Sequence[str],
        env: Mapping[str, str],
        provided: Mapping[str, str] | None,
    ) -> str | None:
        settings: JsonObject = {}
        permissions: JsonObject = limits.settings() if self._confine_files else {}
        if rules:
            # Not by --allowedTools, which would have to be taken apart again.
            permissions["allow"] = list(dict.fromkeys(rules))
        if permissions:
            settings["permissions"] = permissions
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
        return self._variables(fingerprint, marker, scratch, provided)

    def _variables(
        self,
        fingerprint: Fingerprint,
        marker: str,
        scratch: str,
        provided: Mapping[str, str] | None,
    ) -> dict[str, str]:
        return launch.environment(
            os.environ,
            self._env,
            marker=marker,
            scratch=scratch,
            cwd=fingerprint.cwd,
            sdk_version=self._sdk_version,
            config_dir=configdir.of(self._config_dir, fingerprint.owner),
            background=fingerprint.background,
            passthrough=self._env_passthrough,
            provided=provided,
        )

    @cached_property
    def _sdk_version(self) -> str:
        # It is read from a file each time.
        return importlib.metadata.version("claude-agent-sdk")

    async def _import(self, name: str) -> ModuleType:
        if name not in self._late:
            # In a thread, where a lock is waited for while another one imports it as well.
            self._late[name] = await asyncio.to_thread(importlib.import_module, name)
        return self._late[name]


async def _restored(scratch: str, before: Listing) -> None:
    """Remove from a scratch directory what was not there before.

    Raises:
        OSError: It cannot be.
    """
    for pause_s in _PAUSES_S:
        try:
            await asyncio.to_thread(restore, scratch, before)
        except OSError:
            # The CLI tries the file system out in the first seconds, and tidies up by itself.
            await asyncio.sleep(pause_s)
        else:
            return
    await asyncio.to_thread(restore, scratch, before)


def _settled(scratch: str) -> Listing:
    """Remove from a scratch directory what was only for the start; return what stays."""
    Path(scratch, _SERVERS).unlink(missing_ok=True)
    return listing(scratch)


def _managed() -> list[str]:
    """Return the files of the machine's settings, the one that is always looked for included."""
    return [f"{_MANAGED}.json", *sorted(map(str, Path(f"{_MANAGED}.d").glob("*")))]


def _looks(path: str) -> tuple[int, ...]:
    """Return what changes when a file or a directory is another one, or a file is written to."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    if stat.S_ISDIR(found.st_mode):
        return found.st_dev, found.st_ino
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _inside(allowed: Sequence[str], limits: Confinement) -> list[str]:
    """Return the rules by which file tools that are allowed run in the session's directories.

    The CLI lets them read there anyway, and has one kind of rule for all that change files.
    """
    if not any(name in CHANGES for name in allowed):
        return []
    return [spelled(Rule(tool="Edit", content=below(one))) for one in limits.roots[:-1]]


def _unknown(agent_session_id: str) -> ResumeNotFound:
    return ResumeNotFound(
        f"Claude Code does not know the conversation {agent_session_id!r}. Begin a new one."
    )


def _not_brought_back(conversation: Conversation) -> AgentStartFailed:
    _log.exception("The transcript %s cannot be brought back", conversation.key)
    return AgentStartFailed(
        "The stored transcript of the conversation cannot be read or written back. Try again "
        "later; the server's operator finds the reason in the log."
    )


def _start_error(
    error: Exception, ended: Exit, complaint: str | None, resume: str | None
) -> AgentError:
    words = complaint or ended.stderr
    if resume is not None and _UNKNOWN_CONVERSATION in f"{complaint} {ended.stderr}":
        return _unknown(resume)
    reason = ended.cause if isinstance(error, AgentGone) else f"{error}."
    return AgentStartFailed(
        f"Claude Code did not start. {reason} {words}".rstrip(), stderr=ended.stderr
    )


def _without_paths(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
