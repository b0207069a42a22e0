"""What a session is, apart from its process: it outlives any number of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from session_supervisor.agents.port import Tree
from session_supervisor.asks import Rule
from session_supervisor.budgets import Spending, check_budget
from session_supervisor.claims import Claims
from session_supervisor.clock import Clock
from session_supervisor.latch import Latch
from session_supervisor.lifecycle import INITIAL, State
from session_supervisor.log import EventLog
from session_supervisor.mailbox import Mailbox
from session_supervisor.messages import Closed, CloseReason, Control, Query
from session_supervisor.pacing import Pacing
from session_supervisor.quotas import Account
from session_supervisor.requests import Requests
from session_supervisor.restarts import RestartBudget
from session_supervisor.spec import SessionKind, SessionSpec
from session_supervisor.stores.port import Store
from session_supervisor.stores.records import SessionRecord
from session_supervisor.timers import Wakeup
from session_supervisor.turns import Ledger


def nothing() -> None:
    """Do nothing, where nobody wants to be called."""


@dataclass(slots=True, kw_only=True, eq=False)
class SessionCore:
    """One session. Its actor alone writes to it; handles and the supervisor read.

    Attributes:
        session_id: Ours; the agent's own id is `agent_session_id`.
        owner: Whose session it is.
        account: What that owner has.
        spending: What owners have spent.
        pacing: Which owners wait for their upstream.
        kind: What it is for.
        spec: What was asked for, as it was changed since.
        cwd: Where its processes run.
        private: Whether that was allotted to it.
        created_at: When it was started, UTC.
        active_at: When it last had something to do, UTC.
        mailbox: What it was asked.
        ledger: Its turns.
        requests: What of it waits for a human.
        log: Its events.
        store: What keeps them, and the turns that have ended.
        claims: Callers' keys for their work.
        restarts: Its restarts, against the policy.
        wakeup: What its actor sleeps by.
        clock: What time it is.
        state: Where it is in its life, to its actor.
        agent_session_id: What to resume the conversation with.
        has_context: Whether the conversation holds anything that a fresh one would not.
        failure: Why it failed, once it has.
        title: What its owner calls it.
        metadata: What its owner notes about it.
        rules: Tool calls that need no further permission in it.
        forked_from: The session and the turn whose context it began with.
        stills: While any of them is not set, it has no process.
        look: Says what processes it has; None without one.
        stored: What the store knows of it.
        closed: Why and how it ended, once it has.
        ended: Set when it has ended and nothing of it runs any more.
        deleted_at: When its owner closed it, if what it said is still to be read; set by the
            supervisor, after its end.
        moved: Called whenever `state` or `closed` was changed.
    """

    session_id: str
    owner: str
    account: Account
    spending: Spending
    pacing: Pacing
    kind: SessionKind
    spec: SessionSpec
    cwd: str
    private: bool
    created_at: datetime
    active_at: datetime
    mailbox: Mailbox[Control, Query]
    ledger: Ledger
    requests: Requests
    log: EventLog
    store: Store
    claims: Claims
    restarts: RestartBudget
    wakeup: Wakeup
    clock: Clock
    state: State = INITIAL
    agent_session_id: str | None = None
    has_context: bool = False
    failure: str | None = None
    title: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    rules: tuple[Rule, ...] = ()
    forked_from: tuple[str, str | None] | None = None
    stills: list[Latch] = field(default_factory=list[Latch])
    look: Callable[[], Awaitable[Tree]] | None = None
    stored: SessionRecord | None = None
    closed: Closed | None = None
    ended: Latch = field(default_factory=Latch)
    deleted_at: datetime | None = None
    moved: Callable[[], None] = nothing

    def move(self, state: State, closed: Closed | None = None) -> None:
        """Be somewhere else in its life; the one way to change `state` and `closed`.

        Args:
            state: Where it is now.
            closed: Why and how it has ended, if it has.
        """
        self.state = state
        if closed is not None:
            self.closed = closed
        self.moved()

    @property
    def goes_on(self) -> bool:
        """Whether it has ended here alone: the next supervisor on its store goes on with it."""
        drained = self.closed is not None and self.closed.reason is CloseReason.DRAINED
        return drained and self.store.durable

    @property
    def standing(self) -> State:
        """Where it is, to others: one that goes on is not closed but asleep."""
        return self.record().state if self.goes_on else self.state

    def check_budgets(self, owner_usd: float | None) -> None:
        """Refuse a further turn where all that may be spent has been.

        Args:
            owner_usd: What its owner may spend, in US dollars; None: any amount.

        Raises:
            BudgetExceeded: Nothing is left.
        """
        check_budget("The session", self.spec.max_budget_usd, self.ledger.total_cost_usd)
        check_budget("You", owner_usd, self.spending.of(self.owner))

    def record(self, *, closed: bool = False) -> SessionRecord:
        """Return what must be known to go on with it in another process of ours.

        Args:
            closed: Whether it has ended for good.
        """
        failed = self.failure is not None
        return SessionRecord(
            session_id=self.session_id,
            owner=self.owner,
            kind=self.kind,
            spec=self.spec,
            cwd=self.cwd,
            private=self.private,
            created_at=self.created_at,
            active_at=self.active_at,
            state=State.CLOSED if closed else State.FAILED if failed else State.HIBERNATED,
            agent_session_id=self.agent_session_id,
            has_context=self.has_context,
            failure=self.failure,
            total_cost_usd=self.ledger.total_cost_usd,
            conversation_cost_usd=self.ledger.conversation_cost_usd,
            title=self.title,
            metadata=self.metadata,
            rules=self.rules,
            forked_from=self.forked_from,
            deleted_at=self.deleted_at,
        )
