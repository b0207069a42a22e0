"""A soak tells growth from noise, and ends when its server does; a profile is read as it is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bench.processes import Server, clean_surroundings
from bench.suite.display import Display
from bench.suite.load import Times
from bench.suite.observed import TASKS_FILE
from bench.suite.options import choice_of, parser, settings_of
from bench.suite.profile import NoProfile, read
from bench.suite.results import Minute, Sample, Soak
from bench.suite.runner import Outcome, Plan, Settings, carry_out
from bench.suite.scenarios import SCENARIOS, Asking
from bench.suite.soak import Soaking, Wanted
from bench.suite.stages import Measured, measure
from bench.suite.targets import NoTarget, Target, found, lost, ours
from bench.suite.trend import slope_of, trends
from rich.console import Console

from tests.bench.tiny import Asked, json_answer, tiny

QUIET = Display(Console(quiet=True))
HALF_AN_HOUR = 1_800.0


def soak_of(own: Callable[[float], float], *, seconds: float = HALF_AN_HOUR) -> Soak:
    """Return a soak whose server had so many bytes at each second."""
    samples = [
        Sample(
            at_s=at,
            own=round(own(at)),
            pss=round(own(at)),
            tree_pss=round(own(at)),
            processes=4,
            descriptors=40,
            threads=6,
            tasks=None,
        )
        for at in (n * 5.0 for n in range(int(seconds / 5)))
    ]
    return Soak(
        target="ours",
        rate=0.5,
        seconds=seconds,
        settled_s=seconds / 6,
        visits=900,
        completed=900,
        errors={},
        times={},
        cpu_share=0.3,
        samples=samples,
        minutes=[Minute(at_s=0.0, completed=30, failed=0, p50=40.0, p99=60.0)],
    )


def verdict(soak: Soak) -> str:
    return next(one.verdict for one in trends(soak) if one.what.startswith("server, own memory"))


def test_noise_is_flat_and_what_grows_at_first_does_not_count() -> None:
    chance = random.Random(1)

    def size(at: float) -> float:
        return 130e6 + min(at, 200) * 1e5 + chance.gauss(0, 0.3e6)

    assert verdict(soak_of(size)) == "flat"


def test_a_leak_is_found_under_noise_and_single_peaks_are_not_one() -> None:
    chance = random.Random(1)

    def leaks(at: float) -> float:
        return 130e6 + at * 6e3 + chance.gauss(0, 2e6)  # 10.8 MB in half an hour

    def peaks(at: float) -> float:
        return 130e6 + (80e6 if chance.random() < 0.05 else chance.gauss(0, 0.3e6))

    assert verdict(soak_of(leaks)) == "grows"
    assert verdict(soak_of(peaks)) == "flat"


def test_a_soak_that_is_too_restless_tells_nothing() -> None:
    chance = random.Random(3)
    assert verdict(soak_of(lambda _at: 130e6 + chance.gauss(0, 30e6), seconds=240)) == "cannot tell"


def test_a_short_soak_has_no_trend() -> None:
    assert trends(soak_of(lambda _at: 1e6, seconds=20)) == []


def test_a_slope_and_its_interval_are_those_of_the_points() -> None:
    assert slope_of([(n, 3.0 * n) for n in range(20)]) == pytest.approx((3, 3, 3))
    chance = random.Random(1)
    slope, low, high = slope_of([(n, 3.0 * n + chance.gauss(0, 2)) for n in range(20)])
    assert low < 3.0 < high
    assert high - low < 1
    assert slope == pytest.approx(3, abs=0.2)


def test_what_is_counted_has_a_trend_of_its_own() -> None:
    whats = {one.what: one for one in trends(soak_of(lambda _at: 130e6))}
    assert (whats["descriptors"].level, whats["descriptors"].verdict) == (40, "flat")
    assert "tasks" not in whats  # the server did not tell


# -- against servers -------------------------------------------------------------------------------


async def healthy(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(json_answer(b'{"endpoints": [], "count": 0}'))


@pytest.mark.anyio
async def test_a_soak_of_a_server_that_goes_away_ends_and_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.suite.soak.EVERY_S", 0.05)
    async with tiny(healthy) as server:
        target = await found("it", server.url)
    wanted = Wanted(seconds=60.0, rate=20.0, asking=Asking())
    soaking = Soaking(wanted, target, None)
    async with asyncio.timeout(50):  # less than it would last
        await soaking.run(QUIET)
    assert soaking.gone is not None
    assert "does not answer any more (no connection" in soaking.gone
    done = soaking.result()
    assert done.seconds < 50
    assert done.samples == []


@pytest.mark.anyio
async def test_a_target_that_goes_away_is_given_up_and_the_others_go_on() -> None:
    times = Times(ramp_s=0.0, warmup_s=0.0, measured_s=0.1)
    settings = Settings(times=times, rounds=3, asking=Asking(), probe_hz=0.0)
    plan = Plan(scenario=SCENARIOS["oneoff"], mode="closed", level=1)
    async with tiny(healthy) as stays:
        async with tiny(healthy) as goes:
            targets = [await found("stays", stays.url), await found("goes", goes.url)]
        outcome = Outcome()
        await carry_out([plan, plan], targets, settings, QUIET, outcome)
    assert set(outcome.gone) == {"goes"}
    assert [(cell.target, cell.rounds) for cell in outcome.cells] == [
        ("stays", 3),
        ("goes", 1),
        ("stays", 3),
    ]
    assert "goes was given up in oneoff" in outcome.notes[0]


@pytest.mark.anyio
async def test_what_was_measured_is_there_when_a_run_is_cancelled() -> None:
    times = Times(ramp_s=0.0, warmup_s=0.0, measured_s=0.3)
    settings = Settings(times=times, rounds=50, asking=Asking(), probe_hz=0.0)
    plan = Plan(scenario=SCENARIOS["oneoff"], mode="closed", level=1)
    outcome = Outcome()
    async with tiny(healthy) as server:
        target = await found("it", server.url)
        one_is_over = asyncio.Event()

        class Watching(Display):
            def step(self) -> None:
                one_is_over.set()

        display = Watching(Console(quiet=True))
        running = asyncio.create_task(carry_out([plan], [target], settings, display, outcome))
        await one_is_over.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    (cell,) = outcome.cells
    assert 1 <= cell.rounds < settings.rounds


@pytest.mark.anyio
async def test_our_server_tells_its_tasks_without_being_stopped(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    with clean_surroundings():
        env = {TASKS_FILE: str(tasks)}
        async with ours(tmp_path / "state", ("--offline", "--no-pool"), env) as server:
            target = await found("ours", server.url, pid=server.pid)
            soaking = Soaking(Wanted(seconds=1.0, asking=Asking()), target, tasks)
            sample = soaking._sample(0.0)  # pyright: ignore[reportPrivateUsage]
            async with asyncio.timeout(60):
                while sample.tasks is None:
                    await asyncio.sleep(0.05)
                    sample = await asyncio.to_thread(soaking._sample, 0.0)  # pyright: ignore[reportPrivateUsage]
            assert await lost(target) is None
    assert sample.tasks is not None
    assert 1 <= sample.tasks < 200
    assert sample.descriptors > 5
    assert 10e6 < sample.own <= sample.pss
    gone = Target(name="x", url=target.url, pid=target.pid, paths=frozenset(), headers={})
    assert await lost(gone) == "its process has ended"


@pytest.mark.anyio
async def test_a_soak_is_of_a_server_with_the_options_that_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Sequence[str]] = []

    @asynccontextmanager
    async def model(*_told: object) -> AsyncGenerator[Server]:
        yield Server(pid=0, url="http://127.0.0.1:1")

    def server(_state: Path, options: Sequence[str], _env: Mapping[str, str]) -> None:
        given.append(options)
        raise NoTarget("that is all")

    monkeypatch.setattr("bench.suite.stages.serving", model)
    monkeypatch.setattr("bench.suite.stages.ours", server)
    told = parser()
    options = told.parse_args(["soak", "--server", "ours=--keep-ended-sessions 60"])
    choice = choice_of(told, options)
    with pytest.raises(NoTarget, match="that is all"):
        await measure(choice, settings_of(options), tmp_path, {}, QUIET, Measured())
    assert given == [["--keep-ended-sessions", "60"]]


# -- profiles --------------------------------------------------------------------------------------


def test_a_profile_adds_up_what_ran_and_what_it_called() -> None:
    stack = "main (/x/bench/a.py);step (/x/supervisor/session_supervisor/actor.py)"
    found = read([f"{stack} 30", f"{stack};dumps (/usr/lib/json/__init__.py) 10"], 2.0, "some load")
    assert (found.samples, found.load) == (40, "some load")
    by_name = {one.name: one for one in found.functions}
    assert (by_name["step"].own, by_name["step"].total) == (0.75, 1.0)
    assert by_name["step"].where == "session_supervisor/actor.py"
    assert (by_name["dumps"].own, by_name["dumps"].where) == (0.25, "json/__init__.py")
    assert found.functions[0].name == "step"


def test_a_server_that_never_ran_has_no_profile() -> None:
    with pytest.raises(NoProfile, match="never seen running"):
        read(["garbage"], 1.0, "some load")


def test_servers_with_options_of_their_own_take_part_in_techniques_and_scale() -> None:
    told = parser()
    options = told.parse_args(
        ["techniques", "scale", "--server", "ours=--niceness 0", "--server", "few=--max-pooled 1"]
    )
    choice = choice_of(told, options)
    assert choice.servers == {"ours": "--niceness 0", "few": "--max-pooled 1"}
    assert choice.with_and_without == {
        "ours": "--niceness 0",
        "without recycling": "--niceness 0 --no-recycle",
        "without the pool": "--niceness 0 --no-pool",
        "few": "--max-pooled 1",
    }
