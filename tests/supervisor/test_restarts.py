from hypothesis import given
from hypothesis import strategies as st

from session_supervisor.config import RestartPolicy
from session_supervisor.restarts import RestartBudget


def test_the_delay_doubles_up_to_its_maximum() -> None:
    policy = RestartPolicy(
        max_restarts=6, window_s=60.0, base_delay_s=1.0, max_delay_s=10.0, jitter=0.0
    )
    budget = RestartBudget(policy, lambda: 0.9)
    assert [budget.spend(0.0) for _ in range(7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, None]


def test_crashes_that_left_the_window_are_forgiven() -> None:
    policy = RestartPolicy(max_restarts=1, window_s=10.0, base_delay_s=1.0, jitter=0.0)
    budget = RestartBudget(policy, lambda: 0.0)
    assert budget.spend(0.0) == 1.0
    assert budget.spend(9.9) is None
    assert budget.spend(10.0) == 1.0
    assert budget.total == 2


def test_the_time_of_starts_that_failed_does_not_move_the_window_on() -> None:
    policy = RestartPolicy(max_restarts=2, window_s=10.0, base_delay_s=1.0, jitter=0.0)
    budget = RestartBudget(policy, lambda: 0.0)
    assert budget.spend(60.0, starting_s=60.0) == 1.0
    assert budget.spend(121.0, starting_s=60.0) == 2.0
    assert budget.spend(183.0, starting_s=60.0) is None
    assert budget.spend(190.5) == 2.0, "one of the two was more than ten seconds ago"


def test_no_restarts_may_be_allowed_at_all() -> None:
    assert RestartBudget(RestartPolicy(max_restarts=0), lambda: 0.0).spend(0.0) is None


@given(
    st.lists(st.floats(0.0, 5.0), max_size=50),
    st.integers(0, 5),
    st.floats(0.1, 20.0),
    st.floats(0.0, 0.999),
)
def test_never_more_than_the_intensity_and_never_later_than_the_maximum(
    gaps: list[float], max_restarts: int, window_s: float, roll: float
) -> None:
    policy = RestartPolicy(max_restarts=max_restarts, window_s=window_s)
    budget = RestartBudget(policy, lambda: roll)
    now, allowed = 0.0, list[float]()
    for gap in gaps:
        now += gap
        recent = [at for at in allowed if at > now - window_s]
        delay = budget.spend(now)
        assert (delay is None) == (len(recent) >= max_restarts)
        if delay is not None:
            allowed.append(now)
            assert policy.base_delay_s <= delay <= policy.max_delay_s * (1 + policy.jitter)
