"""The factory of scripted processes."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from session_supervisor.agents.port import Fingerprint
from session_supervisor.agents.scripted.life import TOOLS, Life, Manners, Memory
from session_supervisor.agents.scripted.process import ScriptedProcess
from session_supervisor.agents.scripted.script import Script, echo
from session_supervisor.errors import AgentError, InvalidSpec, ResumeNotFound
from session_supervisor.spec import SessionSpec
from session_supervisor.timers import WOKEN_AT_ONCE, Gate

__all__ = ["TOOLS", "Manners", "ScriptedAgent", "Start"]

SPEAKING_AT_ONCE = WOKEN_AT_ONCE // 2
"""Processes that speak in one step of the event loop. Fewer than the sessions that hear in it, or
under load what has waited to be said would wait as long again to be heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a process comes up.

    Attributes:
        delay_s: Seconds that it takes.
        error: What goes wrong after them: `AgentMissing`, `AgentStartFailed`, `ResumeNotFound`.
        hangs: Whether it never comes up.
    """

    delay_s: float = 0.0
    error: AgentError | None = None
    hangs: bool = False


class ScriptedAgent:
    """An agent that follows a script.

    Args:
        script: Answers prompts.
        start: How processes come up; None: at once.
        manners: How they behave then, whatever the script; None: as `Manners()` says.
        history: How many processes `processes` keeps.

    Attributes:
        start: How processes come up; may be changed at any time.
        starts: How the next ones come up, first to last; after them `start` holds again.
        processes: Those that came up, oldest first, ended ones included.
        spawned: How often `spawn` was called.
        most_live: The greatest that `live` has been.
        surroundings: Stands for all that a process is started with besides its fingerprint.
        forks: How often a conversation was resumed while another process had it: with the
            real program, a loss of data. Not those that were asked for.
    """

    def __init__(
        self,
        script: Script = echo,
        *,
        start: Start | None = None,
        manners: Manners | None = None,
        history: int = 1000,
    ) -> None:
        self.start = start or Start()
        self.starts = deque[Start]()
        self.processes = deque[ScriptedProcess](maxlen=history)
        self.spawned = 0
        self.most_live = 0
        self.forks = 0
        self.surroundings = "as ever"
        self._script = script
        self._manners = manners or Manners()
        self._live = 0
        self._conversations: dict[str, Memory] = {}
        self._begun = 0
        self._gate = Gate(SPEAKING_AT_ONCE)
        self._gate_loop: asyncio.AbstractEventLoop | None = None

    @property
    def live(self) -> int:
        """Processes that have not ended, those that are coming up included."""
        return self._live

    def check(self, spec: SessionSpec) -> None:
        """Refuse tools that do not exist.

        Raises:
            InvalidSpec: One does not.
        """
        known = self._manners.tools
        for name in spec.allowed_tools or ():
            if name not in known:
                raise InvalidSpec(
                    "allowed_tools", f"there is no tool {name!r}; there are {', '.join(known)}."
                )

    async def spawn(
        self, fingerprint: Fingerprint, *, resume: str | None = None
    ) -> ScriptedProcess:
        """Start a process, as `starts` and `start` say.

        Args:
            fingerprint: What it is started with.
            resume: `agent_session_id` of the conversation to go on with; None begins one.

        Raises:
            AgentMissing: The start says so.
            AgentStartFailed: The start says so.
            ResumeNotFound: The start says so, or there is no such conversation.
        """
        start = self.starts.popleft() if self.starts else self.start
        memory = Memory() if resume is None else self._conversations.get(resume)
        self.spawned += 1
        self._enter(memory)
        try:
            if start.hangs:
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(start.delay_s)
            if start.error is not None:
                raise start.error.with_traceback(None)
            if memory is None:
                raise ResumeNotFound(f"There is no conversation {resume!r} to resume.")
        except BaseException:
            self._leave(memory)
            del start  # or its error and this frame, in the error's traceback, held each other
            raise
        return self._process(fingerprint, memory, resume)

    def can_be_told(self, model: str) -> bool:
        """See the port."""
        return model != "unheard-of"

    def spelled_out(self, fingerprint: Fingerprint) -> Fingerprint:
        """Return the fingerprint: it chooses nothing."""
        return fingerprint

    async def circumstances(self, fingerprint: Fingerprint) -> str:
        """Return `surroundings`, whatever the fingerprint."""
        del fingerprint
        await asyncio.sleep(0)
        return self.surroundings

    async def fork(
        self,
        fingerprint: Fingerprint,
        agent_session_id: str,
        *,
        into: Fingerprint,
        anchor: str | None = None,
    ) -> str:
        """Copy a conversation, up to the end of a turn.

        Raises:
            ResumeNotFound: There is no such conversation, or no such turn in it.
        """
        del fingerprint, into
        memory = self._conversations.get(agent_session_id)
        if memory is None:
            raise ResumeNotFound(f"There is no conversation {agent_session_id!r} to fork.")
        if anchor is not None and anchor not in memory.anchors:
            raise ResumeNotFound(f"The conversation has no place {anchor!r} to fork at.")
        self._begun += 1
        copy = f"conversation-{self._begun}"
        self._conversations[copy] = memory.copy(anchor)
        return copy

    async def forget(self, fingerprint: Fingerprint, agent_session_id: str) -> None:
        """Erase a conversation."""
        del fingerprint
        self.lose(agent_session_id)

    def lose(self, agent_session_id: str) -> None:
        """Lose a conversation, so that it cannot be resumed any more."""
        self._conversations.pop(agent_session_id, None)

    def _process(
        self, fingerprint: Fingerprint, memory: Memory, resumed: str | None
    ) -> ScriptedProcess:
        agent_session_id = resumed
        if agent_session_id is None or self._manners.new_id_on_resume:
            agent_session_id = self._new_id()
        current, current_id = memory, agent_session_id

        def begin_anew() -> tuple[Life, str]:
            nonlocal current, current_id
            self._conversations.pop(current_id, None)
            current.writers -= 1
            current, current_id = Memory(writers=1), self._new_id()
            return self._life(fingerprint, current, current_id), current_id

        loop = asyncio.get_running_loop()
        if loop is not self._gate_loop:
            self._gate, self._gate_loop = Gate(SPEAKING_AT_ONCE), loop
        process = ScriptedProcess(
            self._life(fingerprint, memory, agent_session_id),
            fingerprint=fingerprint,
            agent_session_id=agent_session_id,
            stop_s=self._manners.stop_s,
            on_exit=lambda: self._leave(current),
            begin_anew=begin_anew,
            gate=self._gate,
        )
        self.processes.append(process)
        return process

    def _life(self, fingerprint: Fingerprint, memory: Memory, agent_session_id: str) -> Life:
        return Life(
            script=self._script,
            manners=self._manners,
            fingerprint=fingerprint,
            agent_session_id=agent_session_id,
            memory=memory,
            conversations=self._conversations,
            now=asyncio.get_running_loop().time,
        )

    def _new_id(self) -> str:
        self._begun += 1
        return f"conversation-{self._begun}"

    def _enter(self, memory: Memory | None) -> None:
        self._live += 1
        self.most_live = max(self.most_live, self._live)
        if memory is not None:
            self.forks += memory.writers > 0
            memory.writers += 1

    def _leave(self, memory: Memory | None) -> None:
        self._live -= 1
        if memory is not None:
            memory.writers -= 1
