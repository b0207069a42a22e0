"""A short exploration of the real server: over TCP, on the real CLI and the offline model."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.e2e.server import OFFLINE, running_server
from tests.http.explore import explore

pytestmark = pytest.mark.e2e

TOOLS = ("Read", "Write")


def test_the_real_server_does_what_its_description_says(tmp_path: Path) -> None:
    """With room for few sessions, for each is a process: the others are told to come back."""
    with running_server(tmp_path, *OFFLINE, "--max-live=3", "--log-level=warning") as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            document = client.get("/openapi.json").json()
        report = explore(
            document,
            url=server.url,
            tools=TOOLS,
            models="^[a-z]+$",
            answer={"type": "object", "properties": {"answer": {"type": "integer"}}},
            servers=0,
            most=4,
            boundaries=False,
            listen_s=1.0,
        )
    assert not report.failures, "\n\n".join(report.failures[:5])
    assert report.phases >= {"examples", "fuzzing", "stateful"}
    for label in ("POST /query", "POST /session/start", "GET /session/{session_id}"):
        assert 200 in report.statuses(label), label
