"""A session's mailbox: two lanes, bounds, and replies that are written once.

Control messages are served at once, also in the middle of a turn, and the most urgent first.
Work waits its turn: a message stays in its lane until the actor takes it to run it, so what
the bound counts is what really waits. Offering never blocks: a message is taken or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from session_supervisor.errors import MailboxFull, Refused
from session_supervisor.latch import Latch

T = TypeVar("T")


class AlreadySettled(Exception):
    """A reply was written twice: two parts of the program each believe they answered."""


class Reply(Generic[T]):
    """The one answer to one message: a value or an error, written once.

    Anyone may wait for it, and giving up waiting does not harm it.
    """

    __slots__ = ("_done", "_error", "_listeners", "_value")

    def __init__(self) -> None:
        self._value: T | None = None
        self._error: Exception | None = None
        self._done = Latch()
        self._listeners: list[Callable[[], None]] = []

    @property
    def settled(self) -> bool:
        """Whether it was written."""
        return self._done.is_set()

    def settle(self, value: T) -> None:
        """Answer with a value.

        Raises:
            AlreadySettled: It was answered before.
        """
        self._write(value, None)

    def refuse(self, error: Exception) -> None:
        """Answer with an error, which `wait` raises.

        Raises:
            AlreadySettled: It was answered before.
        """
        self._write(None, error)

    async def wait(self) -> T:
        """Return the value, or raise the error, once there is one."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # T may be None itself

    def on_settled(self, listener: Callable[[], None]) -> None:
        """Call `listener` when it is written."""
        self._listeners.append(listener)

    def _write(self, value: T | None, error: Exception | None) -> None:
        if self.settled:
            raise AlreadySettled(f"already answered with {self._error or self._value!r}")
        self._value, self._error = value, error
        self._done.set()
        for listener in self._listeners:
            listener()
        self._listeners.clear()


class Answerable(Protocol):
    """What every message has."""

    def refuse(self, error: Exception) -> None:
        """Answer with an error."""
        ...

    @property
    def settled(self) -> bool:
        """Whether it was answered."""
        ...

    def on_settled(self, listener: Callable[[], None]) -> None:
        """Call `listener` when it is answered."""
        ...


class Control(Answerable, Protocol):
    """A message that is served at once."""

    @property
    def urgency(self) -> int:
        """Greater is served before smaller."""
        ...


class Work(Answerable, Protocol):
    """A message that waits its turn."""

    @property
    def key(self) -> str:
        """Its id."""
        ...


W = TypeVar("W", bound=Work)
C = TypeVar("C", bound=Control)


class Mailbox(Generic[C, W]):
    """What one session has been asked and has not yet served.

    Args:
        max_work: Most messages in the work lane.
        max_control: Most messages in the control lane.
        on_offer: Called after each message that was taken, to wake the actor.
    """

    def __init__(self, *, max_work: int, max_control: int, on_offer: Callable[[], None]) -> None:
        self._max_work = max_work
        self._max_control = max_control
        self._on_offer = on_offer
        # Lists, not deques: both are short, and an empty deque takes 760 bytes.
        self._control: list[C] = []
        self._work: list[W] = []
        self._acknowledged = 0
        self._unanswered: dict[int, C | W] = {}
        # Made anew for everybody: an exception that is raised twice drags both tracebacks along.
        self._refuse_work: Callable[[], Refused] | None = None
        self._refuse_all: Callable[[], Refused] | None = None

    @property
    def waiting_work(self) -> int:
        """Messages in the work lane."""
        return len(self._work)

    @property
    def waiting_control(self) -> int:
        """Messages in the control lane."""
        return len(self._control)

    @property
    def has_new_work(self) -> bool:
        """Whether there is work that was not acknowledged."""
        return self._acknowledged < len(self._work)

    @property
    def unanswered(self) -> int:
        """Messages that were taken in and have no answer yet, wherever they are."""
        return len(self._unanswered)

    def offer_control(self, message: C, *, always: bool = False) -> None:
        """Put a message into the control lane.

        Args:
            message: What to put in.
            always: Whether to take it though the lane is full.

        Raises:
            MailboxFull: The lane is full.
            Refused: The mailbox is shut; the error says why.
        """
        if self._refuse_all is not None:
            raise self._refuse_all()
        if len(self._control) >= self._max_control and not always:
            raise MailboxFull(self._max_control, lane="control")
        self._control.append(message)
        self._take_in(message)

    def offer_work(self, message: W) -> None:
        """Put a message into the work lane.

        Raises:
            MailboxFull: The lane is full.
            Refused: The mailbox is shut; the error says why.
        """
        refusal = self._refuse_all or self._refuse_work
        if refusal is not None:
            raise refusal()
        if len(self._work) >= self._max_work:
            raise MailboxFull(self._max_work)
        self._work.append(message)
        self._take_in(message)

    def next_control(self) -> C | None:
        """Remove and return the most urgent control message, the oldest of equals."""
        if not self._control:
            return None
        message = max(self._control, key=lambda message: message.urgency)
        self._control.remove(message)
        return message

    def acknowledge(self) -> W | None:
        """Return the oldest work message not returned by this before; it stays in its lane."""
        if self._acknowledged == len(self._work):
            return None
        self._acknowledged += 1
        return self._work[self._acknowledged - 1]

    def take(self) -> W | None:
        """Remove and return the oldest acknowledged work message, to run it."""
        if not self._acknowledged:
            return None
        self._acknowledged -= 1
        return self._work.pop(0)

    def withdraw(self, key: str) -> W | None:
        """Remove and return an acknowledged work message by its id, if it still waits."""
        for index in range(self._acknowledged):
            message = self._work[index]
            if message.key == key:
                del self._work[index]
                self._acknowledged -= 1
                return message
        return None

    def put_back(self, message: W) -> None:
        """Let a message that was taken wait again, in front of all others."""
        self._work.insert(0, message)
        self._acknowledged += 1

    def prefer(self, key: str) -> None:
        """Let an acknowledged work message come before all others."""
        message = self.withdraw(key)
        if message is not None:
            self.put_back(message)

    def waits(self, key: str) -> bool:
        """Return whether a message with this id is in the work lane."""
        return any(message.key == key for message in self._work)

    def shut_work(self, reason: Callable[[], Refused]) -> None:
        """Refuse further work with what `reason` makes; what waits stays."""
        self._refuse_work = reason

    def shut(self, reason: Callable[[], Refused]) -> list[C | W]:
        """Refuse everything from now on, and answer so all that has no answer.

        Returns:
            What was answered so.
        """
        self._refuse_all = reason
        self._control.clear()
        self._work.clear()
        self._acknowledged = 0
        unanswered = list(self._unanswered.values())
        for message in unanswered:
            message.refuse(reason())
        return unanswered

    def reopen(self) -> None:
        """Take everything again."""
        self._refuse_work = self._refuse_all = None

    def _take_in(self, message: C | W) -> None:
        def answered() -> None:
            self._unanswered.pop(id(message), None)

        self._unanswered[id(message)] = message
        message.on_settled(answered)
        self._on_offer()
