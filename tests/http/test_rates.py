"""At most so many in any minute, and the wait that is told is the true one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from session_http.rates import WINDOW_S, Rate


class Clock:
    """Time that stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_limit_holds_and_what_was_refused_does_not_count() -> None:
    clock = Clock()
    rate = Rate(2, clock=clock)
    assert rate.take() == 0.0
    clock.now += 10
    assert rate.take() == 0.0
    clock.now += 10
    assert [rate.take() for _ in range(3)] == [40.0] * 3
    clock.now += 40
    assert rate.take() == 0.0
    assert rate.take() == 10.0


def test_another_limit_holds_for_what_was_counted_before() -> None:
    clock = Clock()
    rate = Rate(3, clock=clock)
    for _ in range(3):
        assert rate.take() == 0.0
        clock.now += 1
    rate.limit = 1
    assert rate.take() == WINDOW_S - 1
    rate.limit = 4
    assert rate.take() == 0.0


@given(
    limit=st.integers(1, 4),
    steps=st.lists(st.integers(0, 30), max_size=60),
)
def test_no_minute_has_more_and_whoever_waits_as_told_is_served(
    limit: int, steps: list[int]
) -> None:
    clock = Clock()
    rate = Rate(limit, clock=clock)
    served: list[float] = []
    for step in steps:
        clock.now += step
        wait_s = rate.take()
        if wait_s:
            assert 0 < wait_s <= WINDOW_S
            clock.now += wait_s
            assert rate.take() == 0.0
        served.append(clock.now)
    for moment in served:
        assert sum(moment - WINDOW_S < other <= moment for other in served) <= limit
