"""What goes with a prompt to the real CLI, and what its answers may look like and cost."""

from __future__ import annotations

import base64
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from claude_agent_sdk import InMemorySessionStore, project_key_for_directory

from session_http.offline import OfflineModel
from session_supervisor.agents.claude.launch import SCRATCH
from session_supervisor.agents.port import (
    Initialized,
    PermissionAsked,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
)
from session_supervisor.asks import Allow
from session_supervisor.errors import AgentError, FailureCode, InvalidSpec, ResumeNotFound
from session_supervisor.spec import Attachment, JsonObject, Prompt, SessionSpec
from tests.e2e.test_claude_agent import World, bash, talking
from tests.support.trees import below, holding

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)
PDF = base64.b64encode(b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<</Root 1 0 R>>\n").decode()

SERVER = """
import json, sys
for line in sys.stdin:
    ask = json.loads(line)
    if "id" not in ask:
        continue
    match ask["method"]:
        case "initialize":
            answer = {"protocolVersion": ask["params"]["protocolVersion"],
                      "capabilities": {"tools": {}},
                      "serverInfo": {"name": "words", "version": "1"}}
        case "tools/list":
            schema = {"type": "object", "properties": {}}
            answer = {"tools": [{"name": "word", "description": "d", "inputSchema": schema}]}
        case "tools/call":
            answer = {"content": [{"type": "text", "text": "marzipan"}]}
        case _:
            answer = {}
    print(json.dumps({"jsonrpc": "2.0", "id": ask["id"], "result": answer}), flush=True)
"""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with OfflineModel() as model:
        yield World(model, tmp_path)


async def test_images_and_documents_go_to_the_model_along_with_the_text(world: World) -> None:
    attachments = (
        Attachment(media_type="image/png", data=PNG),
        Attachment(media_type="application/pdf", data=PDF, name="paper.pdf"),
    )
    async with talking(world.agent(), world.fingerprint()) as talk:
        prompt_id = str(uuid.uuid4())
        prompt = Prompt(prompt_id=prompt_id, text="Look /here.", attachments=attachments)
        await talk.process.send(prompt)
        (answer,) = (await talk.answer_to(prompt_id)).blocks
        assert 'You said: "Look /here."' in answer
        assert "It came with: image, document." in answer
        (answer,) = (await talk.ask("And now?")).blocks
        assert "It came with" not in answer


@pytest.mark.parametrize("thinking", [None, True, False])
async def test_thinking_is_told_unless_it_is_not_wanted(
    world: World, thinking: bool | None
) -> None:
    async with talking(world.agent(), replace(world.fingerprint(), thinking=thinking)) as talk:
        turn = await talk.ask("[[think Let me see.]] [[say So.]]")
        assert turn.blocks == ["So."]
        if thinking:
            assert "".join(one.text for one in turn.of(ThinkingDelta)) == "Let me see."


async def test_a_session_has_the_tools_of_the_servers_that_it_names_and_they_ask(
    world: World,
) -> None:
    scratch = world.folder / "scratch"
    scratch.mkdir()
    config: JsonObject = {"command": sys.executable, "args": ["-c", SERVER]}
    agent = world.agent(
        {SCRATCH: str(scratch)}, mcp_servers={"words": config, "other": {"command": "/nowhere"}}
    )
    tool = "mcp__words__word"
    for allowed in (None, ("Read", "mcp__words"), ("Read", tool)):
        spec = SessionSpec(mcp_servers=("words",), allowed_tools=allowed)
        agent.check(spec)
        fingerprint = replace(
            world.fingerprint(*(allowed or ())), mcp_servers=spec.mcp_servers, asks=True
        )
        async with talking(agent, fingerprint) as talk:
            prompt_id = await talk.send(f"[[tool {tool} {{}}]]")
            if allowed is None:
                await talk.heard_one(PermissionAsked)
                (asked,) = [one for one in talk.heard if isinstance(one, PermissionAsked)]
                assert asked.tool == tool
                await talk.process.answer(asked.request_id, Allow())
            turn = await talk.answer_to(prompt_id)
            assert "marzipan" in str(turn.of(ToolFinished)[0].content)
            told = [one for one in talk.heard if isinstance(one, Initialized)][-1].tools
            assert tool in told
            assert not any(name.startswith("mcp__other") for name in told)
            # What a server is given may be a secret: neither all nor the session may see it.
            arguments = Path(f"/proc/{talk.process.pid}/cmdline").read_bytes()  # noqa: ASYNC240
            assert b"marzipan" not in arguments
            assert not holding(scratch, b"marzipan")


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (SessionSpec(mcp_servers=("words", "strange")), "mcp_servers", "'strange'"),
        (SessionSpec(allowed_tools=("mcp__words__word",)), "allowed_tools", "mcp__words__word"),
        (
            SessionSpec(mcp_servers=("words",), allowed_tools=("mcp__words__a,Bash",)),
            "allowed_tools",
            "Bash",
        ),
        (SessionSpec(output_schema={"type": "strin"}), "output_schema", "object"),
        (SessionSpec(max_budget_usd=0.0), "max_budget_usd", "more than 0"),
        (SessionSpec(max_budget_usd=float("inf")), "max_budget_usd", "more than 0"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_name(
    world: World, spec: SessionSpec, field: str, words: str
) -> None:
    agent = world.agent(mcp_servers={"words": {"command": "true"}})
    with pytest.raises(InvalidSpec, match=words) as refusal:
        agent.check(spec)
    assert refusal.value.field == field


async def test_a_schema_holds_in_every_turn_and_the_tool_by_which_it_is_met_needs_no_permission(
    world: World,
) -> None:
    schema: JsonObject = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"answer": {"$ref": "#/$defs/text"}},
        "required": ["answer"],
        "$defs": {"text": {"type": "string"}},
    }
    agent, fingerprint = world.agent(), world.fingerprint("Bash")
    agent.check(SessionSpec(output_schema=schema))
    async with talking(agent, replace(fingerprint, output_schema=schema, asks=True)) as talk:
        for prompt in ("one", bash("echo two")):
            turn = await talk.ask(prompt)
            assert turn.end.failure is None
            assert isinstance(turn.end.structured_output, dict)
            assert isinstance(turn.end.structured_output["answer"], str)
        assert not [one for one in talk.heard if isinstance(one, PermissionAsked)]


async def test_a_budget_ends_a_turn_in_the_middle_and_counts_what_was_spent_before_a_resume(
    world: World,
) -> None:
    agent = world.agent()
    async with talking(agent, world.fingerprint("Bash")) as talk:
        spent = (await talk.ask("one")).end.cost_usd
    (transcript,) = below(world.folder / "config", "*.jsonl")
    fingerprint = replace(world.fingerprint("Bash"), max_budget_usd=spent * 2.5)
    async with talking(agent, fingerprint, resume=transcript.stem) as talk:
        turn = await talk.ask("".join(bash(f"echo {n}") for n in range(8)))
        assert turn.end.failure is not None
        assert turn.end.failure.code is FailureCode.BUDGET
        assert 0 < len(turn.of(ToolStarted)) < 8


async def test_a_refusal_of_the_model_is_told_as_one(world: World) -> None:
    async with talking(world.agent(), world.fingerprint()) as talk:
        turn = await talk.ask("[[say no]] [[stop reason=refusal]]")
        assert turn.end.failure is not None
        assert turn.end.failure.code is FailureCode.REFUSED


async def test_a_fork_is_in_the_store_as_well_and_goes_on_where_files_are_gone(
    world: World,
) -> None:
    store = InMemorySessionStore()
    agent, fingerprint = world.agent(transcripts=store), world.fingerprint()
    async with talking(agent, fingerprint) as talk:
        await talk.ask("The word is marzipan.")
    (transcript,) = below(world.folder / "config", "*.jsonl")
    original = transcript.read_bytes()
    into = replace(fingerprint, cwd=str(world.folder))
    copies = [await agent.fork(fingerprint, transcript.stem, into=into)]
    assert transcript.read_bytes() == original
    transcript.unlink()
    copies.append(await agent.fork(fingerprint, transcript.stem, into=into))
    for path in below(world.folder / "config", "*.jsonl"):
        path.unlink()
    for copy in copies:
        async with talking(agent, into, resume=copy) as talk:
            assert "marzipan" in (await talk.ask("What did I say?")).blocks[0]
    with pytest.raises(ResumeNotFound):
        await agent.fork(into, transcript.stem, into=into)


@pytest.mark.parametrize("how", ["file", "store"])
async def test_a_fork_that_cannot_be_written_is_none(world: World, how: str) -> None:
    store = InMemorySessionStore()
    agent, fingerprint = world.agent(transcripts=store), world.fingerprint()
    async with talking(agent, fingerprint) as talk:
        await talk.ask("The word is marzipan.")
    (transcript,) = below(world.folder / "config", "*.jsonl")
    elsewhere = replace(fingerprint, cwd=str(world.folder))
    projects = transcript.parent.parent
    before = below(projects)
    blocked = projects / project_key_for_directory(elsewhere.cwd)
    with ExitStack() as stack:
        if how == "file":
            blocked.write_text("in the way")
            stack.callback(blocked.unlink)
        else:
            stack.enter_context(patch.object(store, "append", side_effect=OSError("It is full.")))
        with pytest.raises(AgentError, match="cannot be copied"):
            await agent.fork(fingerprint, transcript.stem, into=elsewhere)
    assert below(projects) == before
    assert len(await store.list_sessions(project_key_for_directory(elsewhere.cwd))) == 0
