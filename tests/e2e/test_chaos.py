"""Ten seconds of everything that can go wrong: `bench.chaos`, whose promises must all be kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MARKER as RUN

ROOT = Path(__file__).parents[2]
SEED = 2
LIMIT_S = 280.0


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_what_was_acknowledged_survives_ten_seconds_of_chaos(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    run = subprocess.run(
        [
            *(sys.executable, "-m", "bench.chaos", "--seed", str(SEED), "--seconds", "10"),
            *("--talkers", "4", "--json", str(results)),
        ],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "TMPDIR": str(temporary),
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "http", ROOT / "supervisor"))),
            RUN: os.environ[RUN],
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(results.read_text())["results"]
    assert found["violations"] == []
    assert found["acknowledged"] > 0, "somebody was served"
    assert found["contexts"] > 0, "and asked in the end what it had been told"
    injected = {one["kind"]: one["injected"] for one in found["survived"]}
    assert sum(injected.values()) >= 5, "there was chaos"
