import pytest

from session_supervisor.lifecycle import (
    INITIAL,
    TRANSITIONS,
    IllegalTransition,
    State,
    Trigger,
    advance,
    mermaid,
)


def _reachable(start: State) -> set[State]:
    seen, todo = {start}, [start]
    while todo:
        for target in TRANSITIONS[todo.pop()].values():
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def test_every_state_has_a_row_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(State)
    assert _reachable(INITIAL) == set(State)


def test_every_trigger_is_used() -> None:
    assert {trigger for row in TRANSITIONS.values() for trigger in row} == set(Trigger)


@pytest.mark.parametrize("state", State)
def test_every_state_leads_to_the_end(state: State) -> None:
    assert State.CLOSED in _reachable(state)


@pytest.mark.parametrize("state", sorted(set(State) - {State.CLOSING, State.CLOSED}))
def test_a_session_can_be_closed_in_every_state(state: State) -> None:
    assert advance(state, Trigger.CLOSE) is State.CLOSING


def test_there_is_no_way_back_from_the_end() -> None:
    assert not TRANSITIONS[State.CLOSED]
    assert _reachable(State.CLOSING) == {State.CLOSING, State.CLOSED}


def test_a_session_that_failed_works_again_only_if_somebody_wants_that() -> None:
    assert set(TRANSITIONS[State.FAILED]) == {Trigger.RETRY, Trigger.CLOSE}
    assert advance(State.FAILED, Trigger.RETRY) is State.STARTING


def test_only_a_running_turn_waits_for_a_human_and_goes_on_after_it() -> None:
    to = [state for state, row in TRANSITIONS.items() if State.WAITING in row.values()]
    assert to == [State.RUNNING]
    assert advance(State.WAITING, Trigger.ANSWERED) is State.RUNNING
    assert set(TRANSITIONS[State.WAITING]) - {Trigger.ANSWERED} == (
        set(TRANSITIONS[State.RUNNING]) - {Trigger.ASKED}
    )


def test_a_step_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(IllegalTransition, match="'turn_began' cannot happen in state 'failed'"):
        advance(State.FAILED, Trigger.TURN_BEGAN)


def test_the_diagram_shows_every_transition() -> None:
    diagram = mermaid()
    for state, row in TRANSITIONS.items():
        for trigger, target in row.items():
            (line,) = [
                line
                for line in diagram.splitlines()
                if line.strip().startswith(f"{state.value} --> {target.value}:")
            ]
            assert trigger.value in line
