"""Claude agent sessions as supervised actors, on pure asyncio.

    async with Supervisor(ClaudeAgent()) as supervisor:
        session = await supervisor.start(SessionSpec(model="sonnet", cwd="/srv/work"))
        turn = await session.query("What is Docker?")
        async for event in turn:
            print(event)
        print((await turn.result()).text)

`ClaudeAgent` is in `session_supervisor.agents.claude`, `ScriptedAgent` in
`session_supervisor.agents.scripted`; errors are in `session_supervisor.errors`, and what a
session says in `session_supervisor.events`.
"""

from session_supervisor.actor import Restarted
from session_supervisor.agents.port import Agent
from session_supervisor.claims import ClaimKey
from session_supervisor.config import (
    MemoryPolicy,
    PoolPolicy,
    RestartPolicy,
    Retention,
    SupervisorConfig,
    Watchdogs,
)
from session_supervisor.events import Event
from session_supervisor.lifecycle import State
from session_supervisor.log import Cursor
from session_supervisor.messages import (
    Closed,
    CloseReason,
    Inspection,
    Interrupted,
    InterruptOutcome,
    OnBusy,
    Settings,
)
from session_supervisor.monitors import Down, Missed, Monitor, Notice
from session_supervisor.quotas import Quota, Usage
from session_supervisor.results import Origin, Outcome, TurnRecord, TurnResult
from session_supervisor.session import Session, SessionSnapshot, TurnHandle
from session_supervisor.spares import PoolSnapshot
from session_supervisor.spec import SessionKind, SessionSpec
from session_supervisor.supervisor import Supervisor, SupervisorSnapshot

__all__ = [
    "Agent",
    "ClaimKey",
    "CloseReason",
    "Closed",
    "Cursor",
    "Down",
    "Event",
    "Inspection",
    "InterruptOutcome",
    "Interrupted",
    "MemoryPolicy",
    "Missed",
    "Monitor",
    "Notice",
    "OnBusy",
    "Origin",
    "Outcome",
    "PoolPolicy",
    "PoolSnapshot",
    "Quota",
    "RestartPolicy",
    "Restarted",
    "Retention",
    "Session",
    "SessionKind",
    "SessionSnapshot",
    "SessionSpec",
    "Settings",
    "State",
    "Supervisor",
    "SupervisorConfig",
    "SupervisorSnapshot",
    "TurnHandle",
    "TurnRecord",
    "TurnResult",
    "Usage",
    "Watchdogs",
]
