"""What a session is, apart from its process: it outlives any number of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from session_supervisor.clock import Clock
from session_supervisor.latch import Latch
from session_supervisor.lifecycle import INITIAL, State
from session_supervisor.log import EventLog
from session_supervisor.mailbox import Mailbox
from session_supervisor.messages import Closed, Control, Query
from session_supervisor.quotas import Account
from session_supervisor.restarts import RestartBudget
from session_supervisor.spec import SessionKind, SessionSpec
from session_supervisor.timers import Wakeup
from session_supervisor.turns import Ledger


@dataclass(slots=True, kw_only=True, eq=False)
class SessionCore:
    """One session. Its actor alone writes to it; handles and the supervisor read.

    Attributes:
        session_id: Ours; the agent's own id is `agent_session_id`.
        owner: Whose session it is.
        account: What that owner has.
        kind: What it is for.
        spec: What was asked for.
        cwd: Where its processes run.
        created_at: When it was started, UTC.
        mailbox: What it was asked.
        ledger: Its turns.
        log: Its events.
        restarts: Its restarts, against the policy.
        wakeup: What its actor sleeps by.
        clock: What time it is.
        state: Where it is in its life.
        agent_session_id: What to resume the conversation with.
        has_context: Whether the conversation holds anything that a fresh one would not.
        failure: Why it failed, once it has.
        closed: Why and how it ended, once it has.
        ended: Set when it has ended and nothing of it runs any more.
    """

    session_id: str
    owner: str
    account: Account
    kind: SessionKind
    spec: SessionSpec
    cwd: str
    created_at: datetime
    mailbox: Mailbox[Control, Query]
    ledger: Ledger
    log: EventLog
    restarts: RestartBudget
    wakeup: Wakeup
    clock: Clock
    state: State = INITIAL
    agent_session_id: str | None = None
    has_context: bool = False
    failure: str | None = None
    closed: Closed | None = None
    ended: Latch = field(default_factory=Latch)
