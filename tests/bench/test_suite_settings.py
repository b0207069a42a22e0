"""The server's own settings: each change is made, and measured against the server as it is."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence

import pytest
from bench.processes import clean_surroundings
from bench.suite import changes, layer, tuning
from bench.suite.changes import CHANGES, LoadName
from bench.suite.display import Display
from bench.suite.results import Tuned
from bench.suite.tables import tuned_table
from rich.console import Console

from session_http import accept, collector, listen


def tuned(change: str, cpu_us: list[float], *, p99: list[float]) -> Tuned:
    return Tuned(load="a request", change=change, cpu_us=cpu_us, p50=[1.0, 1.0], p99=p99, errors={})


def test_a_change_is_compared_round_by_round_with_the_server_as_it_is() -> None:
    table = tuned_table(
        [
            tuned("as it is", [100.0, 200.0], p99=[10.0, 10.0]),
            tuned("another", [150.0, 300.0], p99=[20.0, 20.0]),
        ]
    )
    first, other = table.rows
    assert (first[4], first[7], first[9]) == ("", "", "")
    assert (other[4], other[5], other[7], other[9]) == (
        "1.50 x",
        "1.50 to 1.50",
        "1.00 x",
        "2.00 x",
    )


@pytest.mark.parametrize(
    ("name", "module", "setting", "value"),
    [("1 accepted in a step", accept, "AT_ONCE", 1), ("backlog 128", listen, "BACKLOG", 128)],
)
def test_a_change_is_made_to_what_the_server_reads(
    name: str, module: object, setting: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, setting, getattr(module, setting))  # put back afterwards
    assert getattr(module, setting) != value
    CHANGES[name].make()
    assert getattr(module, setting) == value


def test_pythons_own_collector_is_put_in_place_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "calm_collector", collector.calm_collector)
    before = gc.get_threshold()
    frozen = gc.get_freeze_count()  # some versions of Python freeze what they start with
    CHANGES["collector: Python's own"].make()
    with collector.calm_collector():
        assert gc.get_threshold() == before
        assert gc.get_freeze_count() == frozen
    assert gc.get_threshold() == before


def test_a_setting_that_the_server_does_not_have_any_more_is_noticed() -> None:
    with pytest.raises(AttributeError, match="has no GONE"):
        changes.setting(accept, "GONE", 1)


def test_a_load_that_came_to_nothing_is_said_to_and_why() -> None:
    failed = Counter({"no answer in time": 4})
    one = tuning.Round(errors=failed)
    line = tuning.line_of(tuning.tuned("a stream", "as it is", [one]))
    assert "nothing was done in its time  no answer in time x4" in line


@pytest.mark.anyio
async def test_every_load_is_measured_on_a_server_with_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything = tuning.names_of
    assert {one for load in tuning.LOADS for one in everything(load)} == {
        tuning.AS_IT_IS,
        *CHANGES,
    }

    def last_of(load: LoadName) -> Sequence[str]:
        return everything(load)[-1:]

    # A server for each would take half a minute to start.
    monkeypatch.setattr(tuning, "names_of", last_of)
    few = layer.Load(streams=4, offered=200.0)
    for name in ("STREAMS", "SLOW", "STORED"):
        monkeypatch.setattr(tuning, name, few)
    for name, value in {"STORM": 20, "USERS": 2, "HOLD_S": 0.2}.items():
        monkeypatch.setattr(tuning, name, value)
    found: list[Tuned] = []
    with clean_surroundings():
        await tuning.measure(Display(Console(quiet=True)), found, rounds=1, window_s=1.0)
    assert len(found) == len(tuning.LOADS) == tuning.steps(1)
    assert {one.change for one in found} < {*CHANGES}
    for one in found:
        assert one.errors == {}
        assert min(*one.cpu_us, *one.p50, *one.p99) > 0
