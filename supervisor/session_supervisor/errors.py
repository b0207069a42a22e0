"""Everything that can go wrong, as one tree.

SupervisorError
├── Refused                    nothing was begun
│   ├── InvalidSpec            a value cannot be used: which, and why
│   │   └── NotAllowed         the operator has not allowed it
│   ├── SessionNotFound
│   ├── TurnNotFound
│   ├── SessionClosed          it ended; start another
│   ├── SessionFailed          it gave up restarting; close it
│   ├── SessionSpoiled         what is stored of it is damaged; close it
│   ├── Busy                   a turn runs, and the caller would not wait
│   ├── NotQueued              the turn has begun, or ended: it does not wait
│   ├── RequestNotFound        nobody asked for that permission or answer
│   ├── RequestOver            it was answered before, or is over; shows how
│   ├── NothingToFork          there is no context yet
│   ├── NotFailed              only a session that failed can be restarted
│   ├── BudgetExceeded         all that may be spent has been
│   ├── UpstreamLimited        the upstream takes no requests for a while
│   ├── MailboxFull            too much waits already; retry later
│   ├── AtCapacity             too many sessions or processes; retry later
│   │   └── MemoryFull         the processes take as much memory as they may
│   ├── QuotaExceeded          the owner has as much as it may have; end something
│   ├── ClaimConflict          the key stands for something else
│   ├── Unavailable            the store fails; retry later
│   ├── NoWorkspace            no directory can be made; the operator must look
│   └── Draining               the supervisor is going away
├── TurnFailed                 a turn ended without an answer: its code says why
├── AgentError                 raised by adapters of the Agent port
│   ├── AgentStartFailed       the process did not come up
│   │   └── AgentMissing       there is no program to start: retrying is pointless
│   ├── ResumeNotFound         the agent does not know the conversation
│   ├── CannotChange           a live process cannot change that
│   ├── CannotRenew            a process is not as it was when it came up
│   └── AgentGone              the process has ended
└── StoreError                 raised by adapters of the Store port
    ├── Fenced                 another writer took the session over
    ├── SequenceConflict       the log is not where the writer believes
    ├── UnknownSession         there is no such session, or it was erased
    ├── AlreadyExists          there is a session with that id
    ├── Spoiled                what is stored cannot be understood
    └── ClaimTaken             the key stands for other work already
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_supervisor.asks import Request


class SupervisorError(Exception):
    """Base of every error that this library raises on purpose."""


class Refused(SupervisorError):
    """The request was not taken; nothing was begun and nothing will happen.

    Attributes:
        code: Stable name of the reason, for programs.
        retry_after: Seconds after which trying again makes sense, or None where it never does.
    """

    code: str = "refused"
    retry_after: float | None = None


class InvalidSpec(Refused):
    """A value of the request cannot be used.

    Attributes:
        field: Name of the offending field.
    """

    code = "invalid_request"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class NotAllowed(InvalidSpec):
    """A value of the request asks for what the operator has not allowed."""

    code = "not_allowed"


class SessionSpoiled(Refused):
    """What is stored of the session is damaged, so that it cannot go on. It can be closed."""

    code = "session_spoiled"

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"What is stored of session {session_id} is damaged. The server's operator can restore "
            "a backup; or delete the session."
        )


class SessionNotFound(Refused):
    """There is no such session, or it is somebody else's."""

    code = "session_not_found"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"There is no session {session_id!r}. It may have been closed.")


class TurnNotFound(Refused):
    """The session has no such turn, or has forgotten it."""

    code = "turn_not_found"

    def __init__(self, turn_id: str) -> None:
        super().__init__(f"The session has no turn {turn_id!r}, or no longer keeps it.")


class SessionClosed(Refused):
    """The session has ended."""

    code = "session_closed"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session {session_id!r} is closed. Start a new one.")


class SessionFailed(Refused):
    """The session's agent crashed too often, and the session gave up on it."""

    code = "session_failed"

    def __init__(self, session_id: str, cause: str) -> None:
        super().__init__(
            f"Session {session_id!r} has failed: {cause} Close it and start a new one."
        )


class Busy(Refused):
    """A turn is running, and the caller asked not to wait."""

    code = "busy"


class NotQueued(Refused):
    """A turn does not wait any more, so that it cannot be taken out."""

    code = "not_queued"

    def __init__(self, turn_id: str, *, running: bool) -> None:
        reason = "It runs: interrupt it instead." if running else "It has ended."
        super().__init__(f"Turn {turn_id!r} does not wait any more. {reason}")


class RequestNotFound(Refused):
    """The agent asked nothing under that id, or it is forgotten."""

    code = "request_not_found"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"The session has no request {request_id!r}, or no longer keeps it.")


class RequestOver(Refused):
    """A request was answered before, or is over without an answer.

    Attributes:
        request: What became of it.
    """

    code = "request_over"

    def __init__(self, request: Request) -> None:
        super().__init__(
            f"Request {request.request_id!r} is over already: it was {request.resolution}."
        )
        self.request = request


class NothingToFork(Refused):
    """A session has no context that another could begin with."""

    code = "nothing_to_fork"

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"Session {session_id!r} has no context yet, or none is kept of that turn. Start a new "
            "session instead, or fork after another turn."
        )


class NotFailed(Refused):
    """Only a session that failed can be restarted."""

    code = "not_failed"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session {session_id!r} has not failed: it needs no restart.")


class BudgetExceeded(Refused):
    """All that may be spent has been.

    Attributes:
        budget_usd: That much, in US dollars.
        spent_usd: What was spent.
    """

    code = "budget_exceeded"

    def __init__(self, whose: str, budget_usd: float, spent_usd: float) -> None:
        super().__init__(
            f"{whose} may spend {budget_usd:g} US dollars, and {spent_usd:.4f} are spent. No "
            "further turn is begun."
        )
        self.budget_usd = budget_usd
        self.spent_usd = spent_usd


class UpstreamLimited(Refused):
    """The upstream takes no requests for a while."""

    code = "rate_limited"

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            f"The model's provider takes no more requests for {retry_after:.0f} s. Try again then."
        )
        self.retry_after = retry_after


class MailboxFull(Refused):
    """As much waits in the session as it may hold."""

    code = "queue_full"

    def __init__(self, bound: int, *, lane: str = "work", retry_after: float = 1.0) -> None:
        super().__init__(
            f"The session's {lane} lane already holds {bound} messages, as many as it may. "
            "Wait for some of them to end and try again."
        )
        self.retry_after = retry_after


class AtCapacity(Refused):
    """No further session or process is allowed."""

    code = "at_capacity"

    def __init__(self, what: str, bound: int, *, retry_after: float = 5.0) -> None:
        super().__init__(f"All {bound} {what} are in use. Close one, or try again later.")
        self.retry_after = retry_after


class MemoryFull(AtCapacity):
    """The agent processes take as much memory as they may, and none of them rests."""

    def __init__(self, used_bytes: int, budget_bytes: int, *, retry_after: float = 5.0) -> None:
        Refused.__init__(
            self,
            f"The agents' processes take {used_bytes >> 20} of the {budget_bytes >> 20} MiB of "
            "memory that they may, and all of them are busy. Try again later.",
        )
        self.retry_after = retry_after


class QuotaExceeded(Refused):
    """The owner has as much as it may have at once."""

    code = "quota_exceeded"

    def __init__(self, what: str, bound: int, *, retry_after: float = 1.0) -> None:
        super().__init__(
            f"You may have {bound} {what} at once, and have as many. End one, or wait until one "
            "ends, and try again."
        )
        self.retry_after = retry_after


class ClaimConflict(Refused):
    """The caller's key stands for other work than what is asked now."""

    code = "idempotency_conflict"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The key {key!r} was used for another request. Repeat that one, or choose a new key."
        )


class Unavailable(Refused):
    """What a session is kept in fails."""

    code = "store_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The server cannot store anything at the moment. What was acknowledged is safe. Try "
            "again later."
        )
        self.retry_after = 5.0


class NoWorkspace(Refused):
    """No directory can be made for a session."""

    code = "no_workspace"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The server cannot make a directory for the session: {reason}. Its operator must look."
        )
        self.retry_after = 30.0


class Draining(Refused):
    """The supervisor is shutting down and takes no new work."""

    code = "draining"

    def __init__(self) -> None:
        super().__init__("The server is shutting down and takes no new work. Try again later.")
        self.retry_after = 5.0


class FailureCode(StrEnum):
    """Why a turn ended without an answer."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    UPSTREAM_ERROR = "upstream_error"
    AUTHENTICATION_FAILED = "authentication_failed"
    BILLING = "billing"
    UPSTREAM_REFUSED = "upstream_invalid_request"
    MODEL_NOT_FOUND = "model_not_found"
    CONTEXT_FULL = "context_full"
    REFUSED = "refused"
    NO_STRUCTURED_OUTPUT = "no_structured_output"
    MAX_TURNS = "max_turns"
    BUDGET = "budget_exceeded"
    START_FAILED = "start_failed"
    CRASHED = "crashed"
    STALLED = "stalled"
    TIMEOUT = "timeout"
    CLOSED = "closed"
    DRAINED = "drained"
    SESSION_FAILED = "session_failed"
    AGENT_TURN_LIMIT = "agent_turn_limit"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a turn ended without an answer.

    Attributes:
        code: The kind of failure, for programs.
        message: What happened and what to do, for people.
        retryable: Whether asking the same again may help.
        retry_after: Seconds to wait first, where known.
        cause: Finer name of the cause, e.g. which watchdog fired.
    """

    code: FailureCode
    message: str
    retryable: bool = False
    retry_after: float | None = None
    cause: str | None = None


class TurnFailed(SupervisorError):
    """A turn ended without an answer.

    Attributes:
        failure: Why.
        session_id: Whose turn it was.
        turn_id: Which turn; it can still be looked up.
    """

    def __init__(self, failure: Failure, *, session_id: str, turn_id: str) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.session_id = session_id
        self.turn_id = turn_id


class AgentError(SupervisorError):
    """Something that an adapter of the Agent port reports."""


class AgentStartFailed(AgentError):
    """The agent's process did not come up.

    Attributes:
        stderr: The last of what it printed to standard error.
    """

    def __init__(self, message: str, *, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


class AgentMissing(AgentStartFailed):
    """There is no program to start, so starting again is pointless."""


class ResumeNotFound(AgentError):
    """The agent does not know the conversation that it was to resume."""


class CannotChange(AgentError):
    """A live process cannot change that; another one has to be started."""


class CannotRenew(AgentError):
    """It is not proven that a process is as it was when it came up, so nobody else may have it.

    Attributes:
        reason: Why, in a word or two that are the same each time.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"The process cannot be used again: {detail or reason}.")
        self.reason = reason


class AgentGone(AgentError):
    """The agent's process has ended, so nothing can be asked of it."""


class StoreError(SupervisorError):
    """Something that an adapter of the Store port reports."""


class Fenced(StoreError):
    """A newer writer has taken the session over; this one must stop."""


class SequenceConflict(StoreError):
    """The stored log does not end where the writer believes it does."""


class UnknownSession(StoreError):
    """The store has no such session."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"The store has no session {session_id!r}.")


class AlreadyExists(StoreError):
    """The store has a session with that id."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"The store has a session {session_id!r} already.")


class Spoiled(StoreError):
    """Something that is stored is damaged, so that nobody can tell what it said."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(
            f"{what} is damaged in the store ({reason}). Restore a backup, or delete the session."
        )


class ClaimTaken(StoreError):
    """The key stands for work that was begun before."""

    def __init__(self, key: str) -> None:
        super().__init__(f"The key {key!r} has been used for other work.")
