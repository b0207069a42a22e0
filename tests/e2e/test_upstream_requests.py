"""What the upstream gets of what a caller asks: the model and the tools, told by the upstream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from session_http.offline.app import RequestRecord
from tests.e2e.sse import Client
from tests.e2e.world import UPSTREAM_HANGS, World, running_world

pytestmark = pytest.mark.e2e

RETIRED = "claude-3-5-haiku-20241022"
SCHEDULING = {"CronCreate", "CronDelete", "CronList", "ScheduleWakeup", "SendMessage", "Monitor"}
DOCUMENTED = {"Read", "Write", "Edit", "Bash", "Glob", "Grep", "WebFetch", "WebSearch"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    env = {"ENABLE_TOOL_SEARCH": "false"}  # else the CLI defers tools that it could name
    folder = tmp_path_factory.mktemp("world")
    with running_world(folder, watchdogs=UPSTREAM_HANGS, env=env) as world:
        yield world


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with world.client() as client:
        yield client


def request(world: World, client: Client, prompt: str, **fields: Any) -> RequestRecord:
    """Ask once; return the one request that this made of the upstream."""
    client.post("/query", prompt=prompt, **fields)
    (record,) = (record for record in world.model.requests if record.prompt == prompt)
    return record


def test_a_retired_model_of_the_reference_is_a_current_one_upstream(
    world: World, client: Client
) -> None:
    record = request(world, client, "By its old name?", model=RETIRED)
    assert "haiku" in record.model
    assert record.model != RETIRED


def test_other_names_of_models_are_passed_on_as_they_are(world: World, client: Client) -> None:
    record = request(
        world, client, "A name?", model="claude-nobody-knows-9", allowed_tools=["Read"]
    )
    assert record.model == "claude-nobody-knows-9"
    assert record.tools == ("Read",), "only the named tools exist"


@pytest.mark.parametrize("tools", [None, []])
def test_all_documented_tools_exist_by_default_and_no_scheduling_ones(
    world: World, client: Client, tools: list[str] | None
) -> None:
    record = request(world, client, f"With {tools}?", allowed_tools=tools)
    assert set(record.tools) >= DOCUMENTED
    assert set(record.tools) & {"Task", "Agent"}, "it has two names"
    assert not set(record.tools) & SCHEDULING
    assert "sonnet" in record.model, "the default"
