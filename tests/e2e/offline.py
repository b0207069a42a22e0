"""The offline model as a process of its own, for tests that run their own event loops."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def offline_model() -> Generator[dict[str, str]]:
    """Run it for a while; yields the environment that leads the CLI to it."""
    command = [sys.executable, "-m", "session_http.offline"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as model:
        try:
            assert model.stdout is not None
            url = model.stdout.readline().strip()
            assert url, "the offline model did not start"
            yield {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "offline"}
        finally:
            model.terminate()
