"""The life of a session: its states and the one table of transitions.

Everything that decides what a session may do next is in this file. The actor asks `advance`
for every change of state, so a step that is not in the table cannot happen; the diagram in
the documentation is generated from the table by `mermaid`.

The shape is that of h11's `_state.py`: data first, and no state kept anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Where a session is."""

    STARTING = "starting"
    """A process is coming up."""
    IDLE = "idle"
    """A process is up and no turn runs."""
    RUNNING = "running"
    """A turn runs."""
    WAITING = "waiting"
    """The running turn waits for a human."""
    INTERRUPTING = "interrupting"
    """The running turn was told to stop, or was given up, and has yet to come to rest."""
    HIBERNATING = "hibernating"
    """Idle for long, or others need the room: the process is being stopped."""
    HIBERNATED = "hibernated"
    """No process; the next message wakes it, with its context."""
    RESTARTING = "restarting"
    """The process is gone; the next one starts after a delay."""
    DRAINING = "draining"
    """The running turn may end; nothing comes after it."""
    CLOSING = "closing"
    """The process is being stopped for good."""
    FAILED = "failed"
    """Crashed too often: no process, and no more work, unless somebody has it tried again."""
    CLOSED = "closed"
    """The end."""


class Trigger(StrEnum):
    """What moves a session from one state to another."""

    STARTED = "started"
    """The process is up."""
    TURN_BEGAN = "turn_began"
    """A prompt was handed over, or the agent began a turn by itself."""
    ASKED = "asked"
    """The agent needs a human to go on."""
    ANSWERED = "answered"
    """It has all the answers that it needs."""
    TURN_ENDED = "turn_ended"
    """The agent came to rest."""
    INTERRUPT = "interrupt"
    """Somebody wants the turn stopped, or a watchdog gave it up."""
    STOPPED = "stopped"
    """A process that we stopped on purpose is gone."""
    CRASHED = "crashed"
    """The process went away by itself, or did not come up."""
    HIBERNATE = "hibernate"
    """The session is to give up its process, and nothing else."""
    WAKE = "wake"
    """There is something to do again, and room for a process."""
    RETRY = "retry"
    """The delay before the next start is over, or somebody wants another try."""
    GAVE_UP = "gave_up"
    """Too many crashes in the window, or one that no restart can mend."""
    DRAIN = "drain"
    """The session is to end after its running turn."""
    CLOSE = "close"
    """The session is to end now."""


TRANSITIONS: Mapping[State, Mapping[Trigger, State]] = MappingProxyType(
    {
        State.STARTING: {
            Trigger.STARTED: State.IDLE,
            Trigger.CRASHED: State.RESTARTING,
            Trigger.GAVE_UP: State.FAILED,
            Trigger.CLOSE: State.CLOSING,
        },
        State.IDLE: {
            Trigger.TURN_BEGAN: State.RUNNING,
            Trigger.HIBERNATE: State.HIBERNATING,
            Trigger.CRASHED: State.RESTARTING,
            Trigger.GAVE_UP: State.FAILED,
            Trigger.CLOSE: State.CLOSING,
        },
        State.RUNNING: {
            Trigger.ASKED: State.WAITING,
            Trigger.TURN_ENDED: State.IDLE,
            Trigger.INTERRUPT: State.INTERRUPTING,
            Trigger.CRASHED: State.RESTARTING,
            Trigger.GAVE_UP: State.FAILED,
            Trigger.DRAIN: State.DRAINING,
            Trigger.CLOSE: State.CLOSING,
        },
        State.WAITING: {
            Trigger.ANSWERED: State.RUNNING,
            Trigger.TURN_ENDED: State.IDLE,
            Trigger.INTERRUPT: State.INTERRUPTING,
            Trigger.CRASHED: State.RESTARTING,
            Trigger.GAVE_UP: State.FAILED,
            Trigger.DRAIN: State.DRAINING,
            Trigger.CLOSE: State.CLOSING,
        },
        State.INTERRUPTING: {
            Trigger.TURN_ENDED: State.IDLE,
            Trigger.STOPPED: State.STARTING,
            Trigger.CRASHED: State.RESTARTING,
            Trigger.GAVE_UP: State.FAILED,
            Trigger.CLOSE: State.CLOSING,
        },
        State.HIBERNATING: {
            Trigger.STOPPED: State.HIBERNATED,
            Trigger.CLOSE: State.CLOSING,
        },
        State.HIBERNATED: {
            Trigger.WAKE: State.STARTING,
            Trigger.CLOSE: State.CLOSING,
        },
        State.RESTARTING: {
            Trigger.RETRY: State.STARTING,
            Trigger.CLOSE: State.CLOSING,
        },
        State.DRAINING: {
            Trigger.CLOSE: State.CLOSING,
        },
        State.FAILED: {
            Trigger.RETRY: State.STARTING,
            Trigger.CLOSE: State.CLOSING,
        },
        State.CLOSING: {
            Trigger.STOPPED: State.CLOSED,
        },
        State.CLOSED: {},
    }
)
"""`TRANSITIONS[state][trigger]` is the next state; a missing entry is a bug in the caller."""

INITIAL = State.STARTING
ACTIVE = frozenset(State) - {State.CLOSING, State.CLOSED, State.FAILED}
"""States of a session that takes queries or will again."""


class IllegalTransition(Exception):
    """The table has no such step: the actor is wrong about where it is."""


def advance(state: State, trigger: Trigger) -> State:
    """Return the state that follows.

    Args:
        state: Where the session is.
        trigger: What happened.

    Raises:
        IllegalTransition: The table has no entry for it.
    """
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise IllegalTransition(
            f"{trigger.value!r} cannot happen in state {state.value!r}"
        ) from None


def mermaid() -> str:
    """Return the table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {INITIAL.value}"]
    for state, row in TRANSITIONS.items():
        by_target: dict[State, list[str]] = {}
        for trigger, target in row.items():
            by_target.setdefault(target, []).append(trigger.value)
        lines += [
            f"    {state.value} --> {target.value}: {' / '.join(triggers)}"
            for target, triggers in by_target.items()
        ]
    return "\n".join([*lines, f"    {State.CLOSED.value} --> [*]", ""])
