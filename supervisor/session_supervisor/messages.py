"""What a mailbox holds: the messages that a session understands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeAlias, TypeVar

from session_supervisor.agents.port import ContextUsage, Exit, Tree
from session_supervisor.asks import Decision, Request
from session_supervisor.latch import Latch
from session_supervisor.lifecycle import State
from session_supervisor.mailbox import Reply
from session_supervisor.quotas import Place
from session_supervisor.results import Origin
from session_supervisor.spec import OnPermission, PermissionMode, Prompt
from session_supervisor.stores.records import Claim

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Answer to `Query`: the turn is in the ledger.

    Attributes:
        turn_id: The turn.
        seq: Number of its first event.
        position: Turns in front of it, the running one included.
    """

    turn_id: str
    seq: int
    position: int


class InterruptOutcome(StrEnum):
    """What an interrupt found."""

    INTERRUPTED = "interrupted"
    """A turn was stopped, and its end is in the log."""

    NOTHING_RUNNING = "nothing_running"
    """There was nothing to stop, or it ended by itself just before."""

    ESCALATED = "escalated"
    """The agent did not stop in time; its process was ended, and will be resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """Answer to `Interrupt`.

    Attributes:
        outcome: What the interrupt found.
        turn_ids: The turns that it ended.
    """

    outcome: InterruptOutcome
    turn_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Answer to `Configure`: what is in force from the next request to the model on.

    Attributes:
        model: Name or alias; None: the agent's default.
        permission_mode: What happens to tools that are not allowed outright.
        title: What the owner calls the session.
        metadata: What the owner notes about it.
    """

    model: str | None
    permission_mode: PermissionMode
    title: str | None
    metadata: Mapping[str, str]


class OnBusy(StrEnum):
    """What a query does where a turn runs or waits already."""

    QUEUE = "queue"
    """Wait for its turn."""

    REJECT = "reject"
    """Be refused."""

    INTERRUPT = "interrupt"
    """Stop the running turn, and come next."""


class CloseReason(StrEnum):
    """Why a session ends."""

    REQUESTED = "requested"
    """Somebody closed it."""

    FINISHED = "finished"
    """A one-off whose turn has ended."""

    EXPIRED = "expired"
    """Nobody used it for too long."""

    DRAINED = "drained"
    """The supervisor is going away; where the store outlives it, the session does too."""

    FAULT = "fault"
    """A bug of ours, or a store that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """Answer to `Close`: the session has ended and its process is gone.

    Attributes:
        reason: Why it ended.
        exit: How its last process ended; None if it never had one, or had given it up.
    """

    reason: CloseReason
    exit: Exit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a session is doing, looked at in the middle of it.

    Attributes:
        session_id: Which session.
        state: Where it is in its life.
        turn_id: The running turn, if any.
        turn_origin: Who began that turn.
        queued: Turns that wait, which is what its work lane holds.
        waiting_control: What else its control lane holds.
        waiting_for: What the session waits for, in words; None when idle.
        last_message_s: Seconds since its process last said anything; None without a process.
        pid: Its process, if that is one of its own.
        tree: That and all that it started, looked at right after the rest.
        agent_session_id: The id that its conversation would be resumed with.
        background: Tasks that the agent has running in the background.
        restarts: How often its process was restarted after a crash.
        next_timer: Name of the next deadline and seconds until then.
        last_seq: Number of the last event.
        requests: Ids of what waits for a human, oldest first.
        context: How full the model's context is, where that was asked for and is known.
    """

    session_id: str
    state: State
    turn_id: str | None
    turn_origin: Origin | None
    queued: int
    waiting_control: int
    waiting_for: str | None
    last_message_s: float | None
    pid: int | None
    agent_session_id: str | None
    background: int
    restarts: int
    next_timer: tuple[str, float] | None
    last_seq: int
    requests: tuple[str, ...] = ()
    context: ContextUsage | None = None
    tree: Tree = field(default_factory=Tree)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Message(Generic[T]):
    """What all messages have: a reply."""

    reply: Reply[T] = field(default_factory=Reply[T])

    def refuse(self, error: Exception) -> None:
        self.reply.refuse(error)

    @property
    def settled(self) -> bool:
        return self.reply.settled

    def on_settled(self, listener: Callable[[], None]) -> None:
        self.reply.on_settled(listener)


@dataclass(frozen=True, kw_only=True, eq=False)
class Query(_Message[Accepted]):
    """Run a prompt when its turn comes.

    Attributes:
        prompt: What is asked, with the id that the turn will have.
        timeout_s: Seconds from acceptance after which the turn is given up; None never.
        place: What it counts as, of what its owner may have; given back if it is refused, else
            with the turn's end.
        claim: Stored along with the turn, if its caller has a key for it.
        budget_usd: What its owner may spend, in US dollars; it counts when its turn comes, too.
        on_busy: Whether it stops the running turn and comes next; or was it refused before.
        on_permission: What happens to tool calls that need a permission.
        permission_timeout_s: Seconds that a human has to answer; None: any time.
    """

    prompt: Prompt
    timeout_s: float | None = None
    place: Place | None = None
    claim: Claim | None = None
    budget_usd: float | None = None
    on_busy: OnBusy = OnBusy.QUEUE
    on_permission: OnPermission = "deny"
    permission_timeout_s: float | None = None

    @property
    def key(self) -> str:
        """The turn's id."""
        return self.prompt.prompt_id

    def refuse(self, error: Exception) -> None:
        """Answer with an error; there will be no turn."""
        if self.place is not None:
            self.place.release()
        super().refuse(error)


@dataclass(frozen=True, kw_only=True, eq=False)
class Interrupt(_Message[Interrupted]):
    """Stop a turn.

    Attributes:
        turn_id: Only this one, running or queued, else it is refused; None for the one that is
            next to end.
        queued: Take every queued turn out as well.
        ended: Whether that turn is known to have ended, so that only the queued ones are left.
    """

    turn_id: str | None = None
    queued: bool = False
    ended: bool = False
    urgency: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Decide(_Message[Request]):
    """Answer what the agent asked a human; answered with the request as it is then.

    Attributes:
        request_id: Which.
        decision: The answer.
    """

    request_id: str
    decision: Decision
    urgency: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Withdraw(_Message[None]):
    """Take a turn out that waits.

    Attributes:
        turn_id: Which.
    """

    turn_id: str
    urgency: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Configure(_Message[Settings]):
    """Change what can change in a session; None leaves a thing as it is.

    Attributes:
        model: Name or alias of the model.
        permission_mode: What happens to tools that are not allowed outright.
        title: What its owner calls it; empty: nothing.
        metadata: What its owner notes about it, in place of what was noted.
    """

    model: str | None = None
    permission_mode: PermissionMode | None = None
    title: str | None = None
    metadata: Mapping[str, str] | None = None
    urgency: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Restart(_Message[State]):
    """Try again with a session that failed; answered with the state that follows.

    Attributes:
        place: What it counts as from then on, of what its owner may have; given back if it is
            refused.
    """

    place: Place | None = None
    urgency: int = 0

    def refuse(self, error: Exception) -> None:
        """Answer with an error; it stays as it is."""
        if self.place is not None:
            self.place.release()
        super().refuse(error)


@dataclass(frozen=True, kw_only=True, eq=False)
class KeepStill(_Message[None]):
    """Have no process for a while; answered once there is none, refused where one is needed.

    Attributes:
        over: Set when the while is over; the session's bell is to be rung then.
    """

    over: Latch
    urgency: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspect(_Message[Inspection]):
    """Say what is going on.

    Attributes:
        context: Whether the process is asked how full the model's context is, which may take
            two seconds.
    """

    context: bool = False
    urgency: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Close(_Message[Closed]):
    """End the session.

    Attributes:
        reason: Why.
        grace_s: Seconds that the running turn may still take; queued ones end at once.
    """

    reason: CloseReason = CloseReason.REQUESTED
    grace_s: float = 0.0
    urgency: int = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Hibernate(_Message[State]):
    """Give the process up, if it has nothing to do; answered with the state that follows."""

    urgency: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Wake(_Message[State]):
    """Have a process again, before it is needed; answered with the state that follows."""

    urgency: int = 0


Control: TypeAlias = (
    Interrupt
    | Decide
    | Withdraw
    | Configure
    | Restart
    | KeepStill
    | Inspect
    | Hibernate
    | Wake
    | Close
)
"""Messages of the control lane."""
