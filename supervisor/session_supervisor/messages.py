"""What a mailbox holds: the messages that a session understands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeAlias, TypeVar

from session_supervisor.agents.port import Exit, Tree
from session_supervisor.lifecycle import State
from session_supervisor.mailbox import Reply
from session_supervisor.quotas import Place
from session_supervisor.results import Origin
from session_supervisor.spec import Prompt
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
    """

    prompt: Prompt
    timeout_s: float | None = None
    place: Place | None = None
    claim: Claim | None = None

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
class Inspect(_Message[Inspection]):
    """Say what is going on."""

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


Control: TypeAlias = Interrupt | Inspect | Hibernate | Wake | Close
"""Messages of the control lane."""
