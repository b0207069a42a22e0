"""What all tests of the server need."""

from __future__ import annotations

import pytest
import uvloop


@pytest.fixture(scope="session", autouse=True)
def uvloop_has_its_pipe() -> None:
    """Its first loop opens a pipe for the whole process, which no test is to be blamed for."""
    uvloop.new_event_loop().close()
