"""The roster against a look at every session."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from session_supervisor import Session, SessionKind, State
from session_supervisor.core import SessionCore
from session_supervisor.lifecycle import ACTIVE
from session_supervisor.roster import Roster

AT = datetime(2026, 1, 1, tzinfo=UTC)
OWNERS = ("alice", "bob")


@dataclass
class Core:
    """What a roster looks at."""

    session_id: str
    owner: str
    created_at: datetime
    state: State = State.STARTING
    kind: SessionKind = SessionKind.CONVERSATION
    closed: object = None
    session: Any = field(default_factory=object)


sessions = st.tuples(st.sampled_from(OWNERS), st.integers(0, 5))
moves = st.tuples(st.integers(0, 20), st.sampled_from([*State, None]))


@given(st.lists(sessions, min_size=1, max_size=12), st.lists(moves, max_size=60))
def test_the_roster_is_what_a_look_at_all_sessions_would_find(
    made: list[tuple[str, int]], moved: list[tuple[int, State | None]]
) -> None:
    """They come in any order, at equal times too, move to and fro, and are forgotten."""
    roster = Roster()
    cores = [
        Core(f"s{number}", owner, AT + timedelta(seconds=age))
        for number, (owner, age) in enumerate(made)
    ]
    there = dict[str, Core]()
    for number, state in [*((n, State.STARTING) for n in range(len(cores))), *moved]:
        core = cores[number % len(cores)]
        if state is None:
            there.pop(core.session_id, None)
            roster.drop(cast("SessionCore", core))
        else:
            core.state = state
            there[core.session_id] = core
            roster.look(cast("SessionCore", core), cast("Session", core.session))
        for owner in (None, *OWNERS, "carol"):
            found = [
                one for one in there.values() if one.state in ACTIVE and owner in (None, one.owner)
            ]
            found.sort(key=lambda one: (one.created_at, one.session_id))
            assert roster.list(owner) == tuple(one.session for one in found)
            assert roster.ids(owner) == tuple(one.session_id for one in found)
            assert roster.count(owner) == len(found)
