"""Many who want to be looked at, and one timer."""

from __future__ import annotations

from asyncio import get_running_loop, sleep

from session_http.wheel import SPOKE_S, Wheel
from tests.support.virtual_time import virtual


@virtual()
async def test_each_is_looked_at_when_it_wants_to_be() -> None:
    wheel, now = Wheel(), get_running_loop().time
    seen: list[tuple[str, float]] = []

    def often(at: float) -> float:
        seen.append(("often", at))
        return at + 2.0

    def seldom(at: float) -> float:
        seen.append(("seldom", at))
        return at + 100.0

    wheel.add(often, now() + 1.0)
    wheel.add(seldom, now() + 2.9)
    await sleep(5.5)
    assert seen == [("often", 1.0), ("seldom", 3.0), ("often", 3.0), ("often", 5.0)] or seen == [
        ("often", 1.0),
        ("often", 3.0),
        ("seldom", 3.0),
        ("often", 5.0),
    ]
    wheel.remove(often)
    wheel.remove(often)
    await sleep(50)
    assert len(seen) == 4
    wheel.remove(seldom)
    assert len(wheel) == 0


@virtual()
async def test_nobody_is_looked_at_too_early_or_much_too_late() -> None:
    wheel, now = Wheel(), get_running_loop().time
    late: list[float] = []

    def looks(due: float) -> None:
        def look(at: float) -> float:
            late.append(at - due)
            wheel.remove(look)
            return at

        wheel.add(look, due)

    for n in range(200):
        looks(now() + 10 - n * 0.037)
    await sleep(11)
    assert len(late) == 200
    assert all(-0.002 <= one <= SPOKE_S for one in late)
    assert len(wheel) == 0


@virtual()
async def test_one_that_is_removed_in_its_own_turn_or_by_another_is_not_looked_at_again() -> None:
    wheel = Wheel()
    seen: list[str] = []

    def first(at: float) -> float:
        seen.append("first")
        wheel.remove(second)
        return at + 1

    def second(at: float) -> float:
        seen.append("second")
        wheel.remove(first)
        return at + 1

    wheel.add(first, 1.0)
    wheel.add(second, 1.0)
    await sleep(3.1)
    assert seen == ["first"] * 3
    wheel.remove(first)
