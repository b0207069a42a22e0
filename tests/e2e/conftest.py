"""What tests share: servers, started before any looks for what it leaves behind; agents' worlds."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from session_http.offline import OfflineModel
from session_supervisor.stores.sqlite import SqliteStore
from tests.e2e.server import SHARED, Server, running_server
from tests.e2e.sse import Client
from tests.e2e.test_claude_agent import World

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


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with OfflineModel() as model:
        yield World(model, tmp_path)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "sessions.db")
    yield store
    await store.aclose()
