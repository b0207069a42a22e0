"""Servers that tests share, started before any test looks for what it leaves behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.e2e.server import SHARED, Server, running_server
from tests.e2e.sse import Client

collect_ignore = [] if sys.platform == "linux" else ["test_process_failures.py"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    with running_server(
        tmp_path_factory.mktemp("server"), *SHARED, env={"CLAUDE_CODE_MAX_RETRIES": "1"}
    ) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def conversation(server: Server) -> Iterator[str]:
    """Path of a session that a module's tests share: none may depend on what others said in it."""
    with server.client() as client, client.session(initial_prompt="[[say Ready.]]") as path:
        yield path
