"""Processes of a run."""

from __future__ import annotations

import os
import sys

import pytest
from bench.processes import GOES_AFTER_US, serving

pytestmark = pytest.mark.anyio


@pytest.mark.skipif(sys.platform == "win32", reason="niceness is Unix's")
async def test_what_is_measured_goes_after_who_measures() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    async with serving("bench.suite.model") as server:
        assert os.getpriority(os.PRIO_PROCESS, server.pid) == min(ours + GOES_AFTER_US, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours
