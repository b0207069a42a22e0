"""The bench suite as a user runs it, and the baseline that every report compares with."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench.processes import clean_surroundings, serving
from bench.suite.results import Results
from bench.suite.targets import model_environment

pytestmark = [pytest.mark.e2e]

ROOT = Path(__file__).parent.parent.parent
CLIENT = ROOT / "examples" / "client" / "test_server.py"


@pytest.mark.anyio
async def test_the_baseline_passes_the_client_that_was_written_from_the_reference() -> None:
    with clean_surroundings():
        async with (
            serving("session_http.offline", ("--delay-ms", "10")) as model,
            serving(
                "bench.baselines.fastapi_server", ("--port", "0"), env=model_environment(model)
            ) as baseline,
        ):
            checking = await asyncio.create_subprocess_exec(
                *(sys.executable, str(CLIENT), "--base-url", baseline.url),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await checking.communicate()
    assert checking.returncode == 0, said.decode()
    assert b"GET /sessions lists it no more" in said


def _environment(home: Path) -> dict[str, str]:
    roots = os.pathsep.join(str(ROOT / name) for name in (".", "supervisor", "http"))
    return {**os.environ, "PYTHONPATH": roots, "HOME": str(home), "LANG": "C.UTF-8"}


@contextmanager
def _as_a_shell_begins(*, in_background: bool) -> Generator[None]:
    """Have programs that are started meanwhile ignore Ctrl-C, or not, whatever we do."""
    handler = signal.SIG_IGN if in_background else signal.default_int_handler
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ignored", [False, True], ids=["in front", "in the background"])
def test_a_run_that_is_stopped_ends_what_it_started_and_keeps_what_it_measured(
    tmp_path: Path, number: signal.Signals, *, ignored: bool
) -> None:
    with (
        _as_a_shell_begins(in_background=ignored),
        subprocess.Popen(
            [
                *(sys.executable, "-m", "bench", "oneoff"),
                *("--seconds", "1", "--warmup", "0", "--ramp", "0", "--no-bare", "--no-baseline"),
                *("--users", "1", "2", "--rounds", "1", "--out", str(tmp_path / "run.1")),
            ],
            cwd=tmp_path,
            env=_environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as bench,
    ):
        assert bench.stdout is not None
        said: list[str] = []
        try:
            for line in bench.stdout:
                said.append(line)
                if line.startswith("oneoff"):
                    bench.send_signal(number)
                    break
            rest, _ = bench.communicate(timeout=200)
        finally:
            bench.kill()
    told = "".join(said) + rest
    assert bench.returncode == 130, told
    assert "The run was stopped before its end." in told
    assert "which were killed" not in told  # nothing had to be
    results = Results.load(tmp_path / "run.1.json")
    assert results.cells[0].completed >= 1
    assert results.notes == ["The run was stopped before its end."]
    assert "The run was stopped" in (tmp_path / "run.1.html").read_text()


def test_the_suite_measures_ours_the_baseline_and_a_bare_client(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "--quick", "--seconds", "1"),
            *("oneoff", "interrupts", "wake", "--out", str(tmp_path / "run")),
        ],
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = Results.load(tmp_path / "run.json")
    assert results.targets == ["ours", "baseline", "bare SDK"]
    measured = {(cell.scenario, cell.target) for cell in results.cells}
    assert measured == {
        *(("oneoff", target) for target in results.targets),
        *(("interrupts", target) for target in ("ours", "baseline")),
        ("wake", "ours"),
    }
    assert set(results.left_out) == {"wake, baseline"}
    for cell in results.cells:
        assert cell.errors == {}
        assert cell.completed >= 1
        if cell.target != "bare SDK":
            assert min(cell.cpu_s) > 0.01
            assert min(cell.memory) > 50_000_000
            assert cell.times["lag"].count > 0
            if cell.scenario == "oneoff":
                asked, first = cell.times["model asked"], cell.times["first text"]
                assert 0 < asked.p50 < first.p50
    assert "oneoff" in (tmp_path / "run.html").read_text()
    assert "one-off: first text at least 4 x as soon" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "run.html",
        "run.json",
    ]
