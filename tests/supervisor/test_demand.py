"""How many processes are wanted, against the definition in plain words."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from session_supervisor.demand import BURST_S, MOST_KINDS, WINDOW_S, Demand, shares

pauses = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0, 100.0, 300.0]), max_size=30)


def wanted_of(times: list[float], now: float) -> int:
    bursts = [
        sum(at - BURST_S < one <= at for one in times[: index + 1])
        for index, at in enumerate(times)
        if at + WINDOW_S > now and index > 0 and at - times[index - 1] < WINDOW_S
    ]
    return max(bursts, default=0)


@given(pauses=pauses, later=st.sampled_from([0.0, 1.0, 299.0, 300.0, 1000.0]))
def test_as_many_are_wanted_as_the_greatest_burst_in_the_window(
    pauses: list[float], later: float
) -> None:
    demand, times, now = Demand(), list[float](), 1000.0
    for pause in pauses:
        now += pause
        times.append(now)
        demand.note("kind", now)
        assert demand.wanted(now).get("kind", 0) == wanted_of(times, now)
    assert demand.wanted(now + later).get("kind", 0) == wanted_of(times, now + later)


@given(uses=st.lists(st.tuples(st.sampled_from([0.0, 10.0, 200.0]), st.integers(1, 9)), min_size=1))
def test_of_what_comes_back_as_many_are_wanted_as_were_in_use(
    uses: list[tuple[float, int]],
) -> None:
    demand, now, most, seen = Demand(), 0.0, 0, list[tuple[float, int]]()
    for pause, count in uses:
        now += pause
        seen.append((now, count))
        demand.note("kind", now, in_use=count)
        most = max(count for at, count in seen if at + WINDOW_S > now)
        assert demand.wanted(now) == {"kind": most}
    change = demand.next_change()
    assert change is not None
    assert demand.wanted(change).get("kind", 0) < most


def test_only_so_many_kinds_are_remembered_the_latest() -> None:
    demand = Demand()
    for number in range(MOST_KINDS + 10):
        demand.note(str(number), float(number) / 100, in_use=1)
    wanted = demand.wanted(3.0)
    assert len(wanted) == MOST_KINDS
    assert next(iter(wanted)) == str(MOST_KINDS + 9), "the latest is served first"


@given(wanted=st.lists(st.integers(0, 6), max_size=8), most=st.integers(0, 12))
def test_each_gets_its_first_before_any_gets_its_second(wanted: list[int], most: int) -> None:
    kinds = {str(number): count for number, count in enumerate(wanted)}
    given_ = shares(kinds, most, dict.fromkeys(kinds, "ann"))
    assert sum(given_.values()) == min(most, sum(wanted))
    for kind, count in given_.items():
        assert count <= kinds[kind]
        for later, other in given_.items():
            if int(later) > int(kind):
                assert count >= min(other, kinds[kind])
                assert other >= min(count - 1, kinds[later])


def test_what_may_never_come_again_is_not_wanted_until_it_does() -> None:
    demand = Demand()
    demand.note("kind", 0.0)
    assert demand.wanted(1.0) == {}
    demand.note("kind", 200.0)
    assert demand.wanted(201.0) == {"kind": 1}
    assert demand.wanted(501.0) == {}
    demand.note("kind", 502.0)
    assert demand.wanted(503.0) == {}, "that it once came again was forgotten"


def test_what_came_again_is_served_before_what_came_once() -> None:
    demand = Demand()
    for kind in ("steady", "steady", "new", "newer"):
        demand.note(kind, 0.0, in_use=1)
    assert list(demand.wanted(1.0)) == ["steady", "newer", "new"]


@given(
    wanted=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=8),
    most=st.integers(0, 12),
)
def test_owners_share_alike(wanted: list[tuple[str, int]], most: int) -> None:
    kinds = {str(number): count for number, (_, count) in enumerate(wanted)}
    owners = {str(number): owner for number, (owner, _) in enumerate(wanted)}
    given_ = shares(kinds, most, owners)
    assert sum(given_.values()) == min(most, sum(kinds.values()))
    has, wants = Counter[str](), Counter[str]()
    for kind, owner in owners.items():
        has[owner] += given_[kind]
        wants[owner] += kinds[kind]
    for one in wants:
        for other in wants:
            assert has[one] >= min(has[other] - 1, wants[one])
