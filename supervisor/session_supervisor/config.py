"""What can be set: small frozen values, each about one thing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from session_supervisor.spec import OnPermission


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a crashed process is started again, and when its session is given up.

    The rule is OTP's restart intensity: more than `max_restarts` crashes within `window_s`
    fail the session. The n-th restart in the window waits
    `min(max_delay_s, base_delay_s * 2**n) * (1 + jitter * r)` for a random r in [0, 1).

    Attributes:
        max_restarts: Restarts allowed within the window.
        window_s: Length of the sliding window, seconds, without those for which a process was
            starting that did not come up.
        base_delay_s: Delay before the first restart, seconds.
        max_delay_s: Longest delay before jitter, seconds.
        jitter: Largest random addition, as a share of the delay.
    """

    max_restarts: int = 3
    window_s: float = 60.0
    base_delay_s: float = 0.25
    max_delay_s: float = 15.0
    jitter: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchdogs:
    """How long silence is believed, in seconds.

    A running tool and an awaited human are exempt from `first_byte_s` and `progress_s`: they
    may take as long as they like. A process that does not answer a probe is dead in any case.

    Attributes:
        start_s: From the start of a process until it is ready.
        first_byte_s: From a prompt until the model's first sign.
        progress_s: Between two signs of the model.
        silence_s: Silence of the process after which it is probed.
        probe_s: For the answer to a probe.
        interrupt_s: From an interrupt until the turn has come to rest.
        store_s: For the store to take events; a session cannot go on without it.
    """

    start_s: float = 60.0
    first_byte_s: float = 120.0
    progress_s: float = 180.0
    silence_s: float = 10.0
    probe_s: float = 10.0
    interrupt_s: float = 5.0
    store_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How much of the past is kept.

    What is dropped is always the oldest, and a reader that misses it is told. What is not ended is
    never dropped.

    Attributes:
        events: Events of one session.
        event_bytes: Size of the text in those events, bytes (characters, for the count).
        turns: Ended turns of one session.
        turn_bytes: Size of the text in those turns.
        requests: Requests to a human of one session that are over.
        request_bytes: Size of what was asked in those requests.
        ended_s: How long a session that ended by itself stays readable, seconds.
        ended_sessions: Most such sessions.
        closed_s: How long what a session said stays readable for its owner after it was closed,
            seconds; 0: it is erased before that is acknowledged.
        age_s: How long events and ended turns of any session are kept, and how long a session that
            has ended is, seconds; None: as long as the other bounds allow.
        state_bytes: Most that all sessions together take in the store, bytes; None: no limit. For
            more, the oldest events and ended turns go, those of the sessions first that were used
            least recently.
    """

    events: int = 50_000
    event_bytes: int = 16 * 2**20
    turns: int = 1_000
    turn_bytes: int = 16 * 2**20
    requests: int = 1_000
    request_bytes: int = 4 * 2**20
    ended_s: float = 3600.0
    ended_sessions: int = 1_000
    closed_s: float = 0.0
    age_s: float | None = None
    state_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPolicy:
    """How much memory agent processes may take together, with all that they start.

    For one more than fits, sessions that rest give up their process; when none rests, whoever wants
    to begin something is refused.

    Attributes:
        budget_bytes: Most of it; None: a share of what this machine, or a control group around us,
            has.
        share: That share.
        process_bytes: What a process counts as until it was measured.
        interval_s: Seconds between two measurements.
    """

    budget_bytes: int | None = None
    share: float = 0.8
    process_bytes: int = 128 * 2**20
    interval_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """How many processes stand ready before anybody needs them, and how long one is used.

    Attributes:
        max_pooled: Most processes that stand ready, or come up to do so; half of what `max_live`
            and the memory budget allow, if that is less. They give way to sessions at once.
        recycle: Whether the process of a one-off is used for the next one of the same owner, once
            it is proven to be as it was when it came up.
        max_uses: One-offs that a process serves at the most. Claude Code compiles what it does
            often: from its sixtieth on a one-off takes two thirds of what its first thirty do.
        max_age_s: Seconds after its start until which a process is handed out.
        max_growth_bytes: Memory that a process may take beyond what it took when it was new. It
            is about 85 MB more after thirty one-offs, and 140 MB after 250.
        probe_s: Seconds without a sign of life after which a process that stands ready is probed.
        answer_s: Seconds that it has to answer, then and where it is handed out.
        renew_s: Seconds in which a process must be as it was.
    """

    max_pooled: int = 16
    recycle: bool = True
    max_uses: int = 250
    max_age_s: float = 600.0
    max_growth_bytes: int = 192 * 2**20
    probe_s: float = 10.0
    answer_s: float = 2.0
    renew_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorConfig:
    """Limits and policies of one supervisor.

    Attributes:
        max_sessions: Most conversations that have not ended; one-offs do not count.
        max_live: Most processes at once, one-offs included. Each live Claude Code process
            takes about 100 MB. For one more, the session that rests longest gives up its own.
        memory: How much memory processes may take together; None: nobody looks.
        pool: How many processes stand ready before anybody needs them; None: none do.
        max_waiting: Most sessions that wait for a process because all of them are busy.
        max_starting: Most processes that come up at the same time. Starting is bound by the
            processor: more at once than there are cores makes all of them late.
        max_queued: Queries that may wait in one session.
        max_control: Control messages that may wait in one session.
        max_agent_turns: Turns in a row that an agent may begin by itself.
        idle_timeout_s: Seconds without work after which a session gives up its process, to have
            another one with the next message; None: only where others need the room.
        expiry_s: Seconds without work after which a session is closed; None never.
        turn_timeout_s: Seconds a turn may take, queueing included, where the caller does not
            say; None sets no limit.
        on_permission: What happens in conversations to tool calls that need a permission, and to
            questions, where their spec does not say; in one-offs they are denied.
        permission_timeout_s: Seconds that a human has to answer, where the spec does not say;
            None: any time.
        claim_s: Seconds that a caller's key stands for the work it was used for.
        max_copy_bytes: Most that the files of a session may hold for a fork to begin with them.
        max_copy_files: Most of those files.
        workspace: Directory below which sessions get private directories; None makes a
            temporary one that goes with the supervisor.
        restarts: When crashed processes are started again.
        watchdogs: How long silence is believed.
        retention: How much of the past is kept.
    """

    max_sessions: int = 1_000
    max_live: int = 32
    memory: MemoryPolicy | None = None
    pool: PoolPolicy | None = None
    max_waiting: int = 256
    max_starting: int = field(default_factory=lambda: max(1, os.cpu_count() or 1))
    max_queued: int = 16
    max_control: int = 256
    max_agent_turns: int = 16
    idle_timeout_s: float | None = None
    expiry_s: float | None = None
    turn_timeout_s: float | None = None
    on_permission: OnPermission = "deny"
    permission_timeout_s: float | None = 600.0
    claim_s: float = 86_400.0
    max_copy_bytes: int = 2**30
    max_copy_files: int = 100_000
    workspace: Path | None = None
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    watchdogs: Watchdogs = field(default_factory=Watchdogs)
    retention: Retention = field(default_factory=Retention)
