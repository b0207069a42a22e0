from __future__ import annotations

from collections import Counter

import pytest

from session_http.offline.directives import Cut, Fail
from session_http.offline.scenario import Dice, Scenario


def test_the_same_seed_gives_the_same_choices() -> None:
    first, again, other = (
        [dice.roll() for _ in range(200)]
        for dice in (Dice(Scenario.chaos(seed)) for seed in (7, 7, 8))
    )
    assert first == again
    assert first != other


def test_shares_are_kept() -> None:
    dice = Dice(Scenario(seed=1, faults={"[[cut]]": 0.25, "[[fail status=500]]": 0.5}))
    drawn = Counter(dice.roll() for _ in range(4000))
    assert drawn[(Cut(),)] == pytest.approx(1000, rel=0.1)
    assert drawn[(Fail(status=500),)] == pytest.approx(2000, rel=0.1)
    assert drawn[()] == pytest.approx(1000, rel=0.1)


def test_chaos_shows_each_of_its_faults_in_a_few_hundred_requests() -> None:
    scenario = Scenario.chaos(1)
    dice = Dice(scenario)
    assert len({repr(dice.roll()) for _ in range(600)}) == len(scenario.faults) + 1


@pytest.mark.parametrize(
    "faults",
    [{"[[cut]]": -0.1}, {"[[cut]]": 0.6, "[[say x]]": 0.6}, {"cut": 0.1}, {"[[slow x=1]]": 0.1}],
)
def test_what_cannot_be_drawn_from_is_refused(faults: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Scenario(seed=1, faults=faults)
