"""Results in a file, judged, compared and shown: the same numbers everywhere, and no network."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bench.suite.command import main
from bench.suite.compare import compared
from bench.suite.goals import AHEAD, Goal, goals
from bench.suite.histogram import Distribution
from bench.suite.judge import gains, ratios, summary
from bench.suite.markdown import into, markdown
from bench.suite.page import page
from bench.suite.plots import pictures
from bench.suite.results import (
    Cell,
    Hot,
    LayerCell,
    Looks,
    NoResults,
    Profile,
    Results,
    Scale,
    together,
)

from tests.bench.test_suite_soak import soak_of


def cell(target: str, first_ms: float, **changed: Any) -> Cell:
    """Return one-off queries by one user whose first text took about so long."""
    rounds = [first_ms, first_ms * 1.02, first_ms * 1.01]
    times = {
        "first text": Distribution.of([ms * (1 + n / 400) for ms in rounds for n in range(40)]),
        "total": Distribution.of([ms + 400 for ms in rounds for _ in range(40)]),
        "GET /health": Distribution.of([3.0] * 30),
    }
    fields: dict[str, Any] = {
        "scenario": "oneoff",
        "target": target,
        "mode": "closed",
        "level": 1.0,
        "rounds": 3,
        "seconds": 24.0,
        "visits": 120,
        "completed": 120,
        "rate": 1000 / (first_ms + 400),
        "errors": {},
        "times": times,
        "medians": {"first text": rounds},
        "rates": [1000 / (ms + 400) for ms in rounds],
        "cpu_s": [first_ms / 1000] * 3,
        "memory": [200_000_000] * 3,
        "memory_idle": [80_000_000] * 3,
        "sessions": 0,
        "events": 2400,
        "deltas": 2400,
        "client_cpu_us": 25.0,
        "client_cpu_share": 0.02,
        "client_late": Distribution.of([0.1] * 120),
    }
    return Cell(**{**fields, **changed})


def layer_cell(
    server: str,
    *,
    offered: float,
    lag_ms: float | None,
    cpu_us: float,
    delivered: float | None = None,
) -> LayerCell:
    return LayerCell(
        server=server,
        streams=10 if lag_ms is None else 1_000,
        offered=offered,
        rounds=2,
        delivered=offered if delivered is None else delivered,
        events=offered,
        cpu_us=[cpu_us, cpu_us * 1.1],
        cpu_us_delta=[cpu_us, cpu_us * 1.1],
        server_cpu=[0.5, 0.5],
        lag=None if lag_ms is None else Distribution.of([lag_ms] * 1000),
        lag_p99=[] if lag_ms is None else [lag_ms] * 2,
        whole=2_000,
        expected=2_000,
        errors={},
        client_cpu_us=16.0,
        client_cpu_share=0.4,
    )


def results(*cells: Cell, layer: tuple[LayerCell, ...] = (), **changed: Any) -> Results:
    fields: dict[str, Any] = {
        "date": datetime(2026, 11, 22, 12, 0, tzinfo=UTC),
        "machine": {"cores": 2, "processor": "<Some> processor", "memory_mb": 1, "load": 0.1},
        "versions": {"starlette": "1.10.0"},
        "settings": {"rounds": 3},
        "targets": list(dict.fromkeys(one.target for one in cells)),
        "left_out": {},
        "cells": list(cells),
        "layer": list(layer),
    }
    return Results(**{**fields, **changed})


def storm(target: str, sessions: int, megabytes: float) -> Cell:
    return cell(
        target,
        500.0,
        scenario="storm",
        mode="burst",
        level=float(sessions),
        sessions=sessions,
        memory=[round(megabytes * 1e6)] * 3,
        times={"start": Distribution.of([500.0] * 10)},
        medians={"start": [500.0] * 3},
    )


SCALE = Scale(
    target="ours",
    sessions=10_050,
    made=11_500.0,
    found=9_000.0,
    file=8_800.0,
    start_s=1.2,
    start_empty_s=0.6,
    looks=[
        Looks(
            load="one-off queries, 4 users",
            times={"GET /sessions": Distribution.of([9.0] * 120)},
            done="12.5 queries/s",
            errors={},
        )
    ],
)

UNANSWERED = Looks(
    load="too much", times={}, done="", errors={"GET /health: no answer in time": 120}
)

PROFILE = Profile(
    load="oneoff, closed 1",
    samples=1234,
    seconds=8.0,
    functions=[Hot(name="Actor.<step>", where="session_supervisor/actor.py", own=0.25, total=0.5)],
)

FAST = results(
    cell("ours", 40.0),
    cell("baseline", 800.0),
    cell("bare SDK", 36.0, cpu_s=[], memory=[], client_late=None),
    cell("ours", 50.0, mode="open", level=1.0),
    cell("ours", 60.0, mode="open", level=2.0),
    storm("ours", 2, 250),
    storm("ours", 4, 420),
    left_out={"wake, baseline": "it does not offer <that>"},
    layer=(
        layer_cell("ours on hypercorn", offered=500.0, lag_ms=None, cpu_us=50.0),
        layer_cell("starlette on hypercorn", offered=500.0, lag_ms=None, cpu_us=45.0),
        layer_cell("ours on hypercorn", offered=30_000.0, lag_ms=20.0, cpu_us=10.0),
        layer_cell("fastapi on uvicorn", offered=30_000.0, lag_ms=900.0, cpu_us=40.0),
    ),
)


@pytest.fixture(scope="module", autouse=True)
def fast_page() -> str:
    """The report of it, made before any test counts what is open: fonts stay so."""
    page(FAST.model_copy(update={"soak": [soak_of(lambda _at: 130e6)]}))
    return page(FAST)


def test_results_are_the_same_when_they_were_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    FAST.write(file)
    assert Results.load(file) == FAST
    assert json.loads(file.read_text())["format"] == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "does not hold results"), ("{}", "does not hold results"), (None, "cannot be read")],
)
def test_a_file_that_holds_something_else_is_refused(
    tmp_path: Path, text: str | None, why: str
) -> None:
    file = tmp_path / "a.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(NoResults, match=why):
        Results.load(file)


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(FAST.model_copy(update={"format": 2}).model_dump_json())
    with pytest.raises(NoResults, match="has format 2; this program reads 1"):
        Results.load(file)


def test_a_ratio_is_taken_round_by_round() -> None:
    found = {(one.of, one.what): one for one in ratios(FAST)}
    first = found["baseline", "first text"]
    assert (first.value, first.low, first.high) == pytest.approx((20, 20, 20))
    assert found["baseline", "CPU of a visit"].value == pytest.approx(20)
    assert found["bare SDK", "first text"].value == pytest.approx(0.9)
    assert ("bare SDK", "CPU of a visit") not in found


def test_goals_that_were_met_are_said_to_be() -> None:
    verdicts = {one.text: one.met for one in goals(FAST)}
    unknown = [text for text, met in verdicts.items() if met is None]
    assert len(unknown) == 5  # session starts, many sessions, and the soak
    # The rate: 2.3/s against 0.8/s is not four times as much.
    missed = [text for text, met in verdicts.items() if met is False]
    assert len(missed) == 1
    assert "the baseline's rate" in missed[0]


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        (results(cell("ours", 50.0), cell("bare SDK", 36.0)), "1.15 x"),
        (results(cell("ours", 300.0), cell("baseline", 800.0)), "4 x as soon"),
        (results(cell("ours", 300.0), cell("baseline", 800.0)), "1/4 of the baseline's"),
        (
            results(
                layer=(layer_cell("ours on hypercorn", offered=30_000.0, lag_ms=200.0, cpu_us=9),)
            ),
            "30,000 deltas/s",
        ),
        (
            results(
                layer=(
                    layer_cell("ours on hypercorn", offered=500.0, lag_ms=None, cpu_us=90.0),
                    layer_cell("starlette on hypercorn", offered=500.0, lag_ms=None, cpu_us=45.0),
                )
            ),
            "1.3 x",
        ),
    ],
)
def test_a_goal_that_was_missed_is_said_to_be(changed: Results, missed: str) -> None:
    (goal,) = [one for one in goals(changed) if missed in one.text]
    assert goal.met is False
    assert "MISSED" in summary(changed)


def test_our_server_is_judged_against_another_under_each_load_that_both_had() -> None:
    def cells(ours_ms: float, theirs_ms: float, offered: float, **theirs: float) -> list[LayerCell]:
        return [
            layer_cell("ours on hypercorn", offered=offered, lag_ms=ours_ms, cpu_us=10.0),
            layer_cell(
                "fastapi on uvicorn", offered=offered, lag_ms=theirs_ms, cpu_us=40.0, **theirs
            ),
        ]

    layer = [
        *cells(90.0, 900.0, 30_000.0, delivered=7_000.0),
        *cells(5.0, 4.0, 3_000.0),
        *cells(1.0, 2.0, 500.0),
    ]
    few, even, most = [one for one in goals(results(layer=tuple(layer))) if AHEAD in one.text]
    assert [few.met, even.met, most.met] == [True, False, True]
    assert few.text.endswith("1,000 streams, 500/s")
    assert even.measured == "10.5 against 42.0 us; p99 5.0 against 4.0 ms"
    assert most.measured.endswith("overrun: of 30,000 deltas/s it delivers 7,000")


def test_lag_that_was_not_measured_is_judged_as_nothing() -> None:
    both = [
        layer_cell(server, offered=500.0, lag_ms=None, cpu_us=10.0)
        for server in ("ours on hypercorn", "fastapi on uvicorn")
    ]
    (goal,) = [one for one in goals(results(layer=tuple(both))) if AHEAD in one.text]
    assert (goal.met, "lag was not measured" in goal.measured) == (None, True)


def _goal(changed: Results, part: str) -> Goal:
    (found,) = [one for one in goals(changed) if part in one.text]
    return found


def test_every_goal_is_in_the_table_also_where_nothing_was_measured() -> None:
    assert len(goals(results(cell("ours", 40.0)))) == len(goals(FAST)) == 12
    assert goals(results(cell("target 1", 40.0))) == []


@pytest.mark.parametrize(
    ("scale", "kilobytes", "looks"),
    [
        (SCALE, True, True),
        (SCALE.model_copy(update={"found": 21_000.0}), False, True),
        (SCALE.model_copy(update={"sessions": 500}), None, None),
        (
            SCALE.model_copy(
                update={
                    "looks": [
                        SCALE.looks[0].model_copy(
                            update={"errors": {"GET /health: no answer in time": 1}}
                        )
                    ]
                }
            ),
            True,
            False,
        ),
    ],
)
def test_many_sessions_are_judged_by_memory_and_by_looks(
    scale: Scale, kilobytes: bool | None, looks: bool | None
) -> None:
    run = results(scale=[scale], targets=["ours"])
    assert _goal(run, "20 kB each").met is kilobytes
    assert _goal(run, "p99 of GET /sessions").met is looks


def test_a_start_is_judged_by_when_the_model_was_asked() -> None:
    times = {
        "start": Distribution.of([6.0] * 10),
        "start to model asked": Distribution.of([40.0] * 10),
    }
    starts = cell("ours", 6.0, scenario="starts", times=times)
    bare = cell("bare SDK", 36.0, times={"model asked": Distribution.of([33.0] * 10)})
    run = results(starts, bare)
    assert _goal(run, "no question").met is True
    asked = _goal(run, "and a question")
    assert asked.met is False
    assert "40 ms; a bare, warm SDK client asks it after 33 ms" in asked.measured


def test_a_soak_is_judged_only_if_it_was_long_enough() -> None:
    short = soak_of(lambda _at: 130e6, seconds=600)
    assert _goal(results(soak=[short], targets=["ours"]), "soak").met is None
    whole = soak_of(lambda _at: 130e6)
    assert _goal(results(soak=[whole], targets=["ours"]), "soak").met is True
    grows = soak_of(lambda at: 130e6 + at * 1e4)
    assert _goal(results(soak=[grows], targets=["ours"]), "soak").met is False


def test_several_runs_are_one_and_the_last_of_the_same_counts() -> None:
    first = results(
        cell("ours", 40.0), cell("baseline", 800.0), cell("ours", 70.0, mode="open", level=2.0)
    )
    second = results(
        cell("ours", 50.0), scale=[SCALE], notes=["a note"], settings={"rounds": 5, "x": 1}
    )
    both = together([first, second])
    assert [(one.target, one.medians["first text"][0]) for one in both.cells] == [
        ("ours", 50.0),  # and not the baseline of another moment beside it
        ("ours", 70.0),
    ]
    assert (both.scale, both.notes, both.settings) == ([SCALE], ["a note"], {"rounds": 3})
    assert both.others["2026-11-22 12:00 UTC"]["x"] == 1


def test_rounds_that_one_of_the_two_does_not_have_are_not_compared() -> None:
    gone = cell("baseline", 800.0, medians={"first text": [800.0]}, rates=[1.0], cpu_s=[0.8])
    found = {one.what: one for one in ratios(results(cell("ours", 40.0), gone))}
    assert set(found) == {"first text", "rate"}
    assert (found["first text"].value, found["first text"].rounds) == (20, 1)


def test_what_a_technique_gives_is_how_much_more_it_takes_without() -> None:
    run = results(
        techniques=[cell("ours", 40.0), cell("without the pool", 600.0)], targets=["ours"]
    )
    found = {one.what: one for one in gains(run)}
    assert found["first text"].value == pytest.approx(15)
    assert (found["first text"].first, found["first text"].other) == pytest.approx((40.4, 606))
    assert "without the pool" in summary(run)


def test_tables_for_the_documentation_have_all_that_was_measured() -> None:
    run = FAST.model_copy(
        update={
            "scale": [SCALE.model_copy(update={"looks": [*SCALE.looks, UNANSWERED]})],
            "profiles": [PROFILE],
            "soak": [soak_of(lambda _at: 130e6)],
            "techniques": [cell("ours", 40.0), cell("without the pool", 600.0)],
            "notes": ["The run was stopped before its end."],
        }
    )
    for text in (markdown(run), page(run)):
        for part in (
            *("none was answered", "no answer in time (120)"),
            *("11.5 kB", "12.5 queries/s", "130.0", "without the pool", "40.4 ms"),
            *("session_supervisor/actor.py", "The run was stopped", "20.00 x", "9.0"),
        ):
            assert part in text, part
    lines = [line for line in markdown(run).splitlines() if line.startswith("|")]
    assert len(lines) > 40
    assert all(line.endswith("|") for line in lines)


def test_marked_parts_of_a_text_are_made_anew_and_the_rest_stays(tmp_path: Path) -> None:
    text = (
        "a\n<!-- bench: goals -->\nold\n<!-- end -->\nb\n<!-- bench: soak -->\nkept\n<!-- end -->\n"
    )
    made = into(text, FAST)
    assert made.startswith("a\n<!-- bench: goals -->\n| goal | measured |")
    assert "old" not in made
    assert made.endswith("|\n<!-- end -->\nb\n<!-- bench: soak -->\nkept\n<!-- end -->\n")
    assert into(made, FAST) == made


def test_pictures_of_a_run_are_small_and_stand_by_themselves() -> None:
    run = FAST.model_copy(update={"soak": [soak_of(lambda _at: 130e6)]})
    found = pictures(run)
    assert set(found) == {
        *("latency-oneoff", "throughput", "memory", "cost", "layer-lag", "layer-cost", "soak"),
    }
    for svg in found.values():
        assert svg.startswith("<svg")
        assert 'xmlns="http://www.w3.org/2000/svg"' in svg
        assert len(svg) < 100_000


def test_a_difference_is_claimed_only_where_rounds_do_not_overlap() -> None:
    before = results(cell("ours", 100.0), cell("baseline", 800.0))
    after = results(cell("ours", 50.0), cell("baseline", 805.0), settings={"rounds": 4})
    text = compared(before, after)
    lines = {line.split(" ")[2]: line for line in text.splitlines() if "first text" in line}
    assert "0.50 x" in lines["user,"] or "0.50 x" in text
    ours = next(line for line in text.splitlines() if "user, ours" in line)
    theirs = next(line for line in text.splitlines() if "user, baseline" in line)
    assert ours.endswith("less")
    assert theirs.endswith("the same")
    assert "Different settings: rounds: 3 -> 4" in text
    assert "Different machine" not in text


def test_many_sessions_are_compared_too() -> None:
    less = SCALE.model_copy(update={"made": 23_000.0})
    text = compared(results(scale=[SCALE]), results(scale=[less]))
    assert "2.00 x" in next(line for line in text.splitlines() if "kB a session" in line)
    assert "GET /sessions p99, ms, one-off queries, 4 users" in text


def test_one_round_shows_no_difference() -> None:
    before = results(cell("ours", 100.0, medians={"first text": [100.0]}))
    after = results(cell("ours", 50.0, medians={"first text": [50.0]}))
    line = next(line for line in compared(before, after).splitlines() if "first text" in line)
    assert line.endswith("one round")


def test_runs_of_other_things_have_nothing_in_common() -> None:
    other = results(cell("ours", 100.0, level=8.0))
    assert "nothing in common" in compared(FAST, other)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.svgs = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.svgs += tag == "svg"
        self.fetched += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#")
        ]
        assert tag not in ("script", "link", "iframe")


def test_the_report_is_one_page_that_fetches_nothing(fast_page: str) -> None:
    text = fast_page
    parsed = _Page()
    parsed.feed(text)
    assert parsed.fetched == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    # latencies and throughput, of storm latencies; cost, memory; lag and cost of the layer
    assert parsed.svgs == 7
    assert len(text) < 2_000_000


def test_the_report_says_what_the_results_say(fast_page: str) -> None:
    text = fast_page
    assert "&lt;Some&gt; processor" in text
    assert "it does not offer &lt;that&gt;" in text
    assert "starlette" in text
    assert "120" in text
    assert "as due" in text  # the legend of the open load: text is text
    for goal in goals(FAST):
        assert goal.measured in text


def test_results_of_nothing_make_a_page_too() -> None:
    assert "Circumstances" in page(results())
    assert summary(results()) == "Nothing to compare."


# -- the command -----------------------------------------------------------------------------------


def test_the_command_compares_and_makes_the_same_report_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fast_page: str
) -> None:
    file = tmp_path / "a.json"
    FAST.write(file)
    assert main(["compare", str(file), str(file)]) == 0
    assert "the same" in capsys.readouterr().out
    assert main(["report", str(file)]) == 0
    assert (tmp_path / "a.html").read_text() == fast_page


def test_the_command_says_which_file_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "none.json")]) == 1
    assert "none.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nosuch"], "there is no scenario 'nosuch'"),
        (["--target", "http://a", "--target", "http://b", "--target", "http://c"], "twice"),
        (["--target", "x=http://a", "--target", "x=http://b"], "different names"),
        (["layer", "--target", "http://a"], "about servers that run"),
        (["--server", "nopool"], "give it a name and its options"),
        (["--server", "nopool='--a"], "No closing quotation"),
        (["soak", "--server", "nopool=--no-pool"], "a soak is of one server"),
        (["--target", "localhost:3000"], "not the URL of a server"),
        (["--users", "0"], "not a whole number"),
        (["--rate", "0"], "not a number above 0"),
        (["oneoff", "--out", "/proc/none/a"], "--out /proc/none/a: No such file"),
        (["compare", "a.json"], "the following arguments are required: after"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    told = capsys.readouterr().err
    assert why in told
    assert len(told.splitlines()) == 1
