"""What is kept of one-offs that had one process after another, and what becomes of that process.

Each has its own numbers, ids, directory and transcript, and the words of the one before are in none
of them. A process that stands ready and fails costs nobody an answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from session_supervisor import Event, Session, SessionSpec, State, TurnResult
from session_supervisor.agents.claude import launch
from session_supervisor.agents.claude import process as claude_process
from session_supervisor.agents.claude.renewal import is_empty
from session_supervisor.agents.port import Fingerprint
from session_supervisor.asks import Allow
from session_supervisor.events import Status
from session_supervisor.spec import JsonObject
from tests.e2e.test_recycling import EDITS, SECRET, World, pooled_world, tool
from tests.support.trees import holding

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

PLANNING = b"Plan mode is active"

LEFT = b"Exited Plan Mode"

PLANT = tool("Write", file_path="a.txt", content=SECRET) + tool(
    "Edit", file_path="a.txt", old_string=SECRET, new_string=f"{SECRET} again"
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with pooled_world(tmp_path) as world:
        yield world


def recycled(world: World, times: int) -> Callable[[], bool]:
    return lambda: world.pool.recycled >= times


def waits(session: Session) -> Callable[[], bool]:
    return lambda: session.state is State.WAITING


def scratch_of(pid: int) -> Path:
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (found,) = [one for one in environ if one.startswith(f"{launch.SCRATCH}=".encode())]
    return Path(found.partition(b"=")[2].decode())


async def test_nothing_is_left_on_disk_of_what_was_said_and_written(world: World) -> None:
    await world.ask(f"{SECRET} {PLANT} [[say {SECRET}]]", spec=EDITS)
    world.was_recycled()
    (cli,) = world.clis()
    assert not holding(world.folder / "config", SECRET.encode())
    assert not holding(scratch_of(cli), SECRET.encode())
    assert os.listdir(os.readlink(f"/proc/{cli}/cwd")) == []
    await world.hears_nothing(spec=EDITS)
    assert not holding(world.folder / "config", SECRET.encode())


class Shelf:
    """A store of transcripts that can be looked into."""

    def __init__(self) -> None:
        self.lines: dict[str, list[Any]] = {}
        self.refuses = False

    async def append(self, key: Any, entries: list[Any]) -> None:
        if self.refuses:
            raise OSError("no")
        self.lines.setdefault(json.dumps(key), []).extend(entries)

    async def load(self, key: Any) -> list[Any] | None:
        return self.lines.get(json.dumps(key))

    async def list_subkeys(self, key: Any) -> list[str]:
        return []

    async def delete(self, key: Any) -> None:
        self.lines.pop(json.dumps(key), None)

    def holds(self, word: str) -> int:
        """Return how many transcripts have a word in them."""
        return sum(word in json.dumps(lines) for lines in self.lines.values())


async def test_what_is_put_where_the_process_keeps_its_own_files_is_gone(world: World) -> None:
    turn = await world.supervisor.query("[[slow tokens=20 delay_ms=50]]")
    await world.until(lambda: world.tap.heard)
    (cli,) = world.clis()
    scratch = scratch_of(cli)
    (scratch / "sub").mkdir()
    for path in (scratch / "output", scratch / "sub" / "more"):
        path.write_text(SECRET)
    await turn.result()
    await world.until(lambda: world.pool.ready)
    world.was_recycled()
    assert world.clis() == [cli]
    assert not (scratch / "sub").exists()
    assert not holding(scratch, SECRET.encode())


async def test_one_whose_transcript_is_not_stored_is_not_used_again(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.refuses = True
    async with pooled_world(tmp_path, transcripts=shelf) as world:
        await world.ask(f"I am {SECRET}.")
        assert world.pool.retired == {"transcript": 1}
        assert world.pool.recycled == 0


async def test_each_conversation_is_stored_by_itself_and_erased(tmp_path: Path) -> None:
    shelf = Shelf()
    slow = "[[slow tokens=20 delay_ms=50]]"
    async with pooled_world(tmp_path, transcripts=shelf) as world:
        turn = await world.supervisor.query(f"{SECRET} {slow}")
        await world.until(lambda: shelf.holds(SECRET) == 1)
        await turn.result()
        await world.until(lambda: world.pool.ready)
        assert not shelf.holds(SECRET)
        for number in range(3):
            turn = await world.supervisor.query(f"Tell {number}, please. {slow}")
            await world.until(partial(shelf.holds, f"Tell {number}"))
            assert shelf.holds("Tell") == 1
            assert not shelf.holds(SECRET)
            assert len(shelf.lines) == 1
            await turn.result()
            await world.until(lambda: world.pool.ready)
            assert not shelf.holds("Tell")
        world.was_recycled()
    assert not shelf.lines, "what nobody asked for is left"


async def test_numbers_and_ids_are_each_one_s_own(world: World) -> None:
    turns: list[tuple[Session, TurnResult, list[Event]]] = []
    for number in range(4):
        turn = await world.supervisor.query(f"Tell {number}, please.")
        session = world.supervisor.get(turn.session_id)
        events = [event async for event in turn]
        result = await turn.result()
        inside = await session.inspect()
        turns.append((session, result, events))
        await world.until(recycled(world, number + 1))
        assert inside.agent_session_id is not None
    world.was_recycled()
    first = turns[0][1].accounting
    assert first.total_cost_usd > 0
    second = turns[1][1].accounting
    # What is new begins with a word about the reset, of some tens of tokens.
    assert second.total_cost_usd == pytest.approx(first.total_cost_usd, rel=0.05)
    for session, result, events in turns:
        assert result.accounting.num_turns == 1
        total = session.snapshot().total_cost_usd
        assert total == pytest.approx(result.accounting.total_cost_usd)
        if result is not turns[0][1]:
            assert total == pytest.approx(second.total_cost_usd)
            assert result.accounting.usage == second.usage
        numbers = [event.seq for event in events]
        assert numbers == sorted(numbers)
        log = await session.events().read(1_000)
        assert [event.seq for event in log] == [*range(1, len(log) + 1)], "each counts its own"
        # What is before them is no more than that its process is up.
        before = [type(event.body) for event in log if event.seq < numbers[0]]
        assert before in ([], [Status])
    assert len({session.session_id for session, *_ in turns}) == 4
    assert len({str(session.workspace) for session, *_ in turns}) == 4


async def test_each_has_its_whole_budget(world: World) -> None:
    price = (await world.ask("How much?")).accounting.total_cost_usd
    spec = SessionSpec(max_budget_usd=1.5 * price)
    await world.ask("How much?", spec=spec)
    for _ in range(3):
        result = await world.hears_nothing("How much?", spec=spec)
        assert result.accounting.total_cost_usd == pytest.approx(price, rel=0.05)
    world.was_recycled()


async def test_plan_mode_ends_with_its_query(world: World) -> None:
    plan = replace(EDITS, permission_mode="plan")
    await world.ask("First", spec=EDITS)
    await world.ask("Second", spec=plan)
    assert PLANNING in world.tap.heard
    write = tool("Write", file_path="made.txt", content="x") + "[[say Well.]]"
    result = await world.hears_nothing(write, spec=EDITS)
    assert PLANNING not in world.tap.heard
    assert LEFT not in world.tap.heard
    assert not result.accounting.permission_denials
    await world.hears_nothing("Again", spec=plan)
    assert PLANNING in world.tap.heard, "it has a process of its own, told anew"
    assert LEFT not in world.tap.heard
    world.was_recycled()


async def test_who_left_plan_mode_leaves_no_process(world: World) -> None:
    turn = await world.supervisor.query("[[slow tokens=40 delay_ms=50]]", EDITS)
    session = world.supervisor.get(turn.session_id)
    await world.until(lambda: session.state is State.RUNNING)
    await session.configure(permission_mode="plan")
    await session.configure(permission_mode="acceptEdits")
    _ = await turn.result()
    await world.until(lambda: world.pool.retired)
    assert world.pool.retired == {"changed plan mode": 1}
    world.tap.heard.clear()
    await world.ask("Next", spec=EDITS)
    assert LEFT not in world.tap.heard


async def test_where_prompts_can_be_commands_no_process_is_used_again(tmp_path: Path) -> None:
    async with pooled_world(tmp_path, verbatim_prompts=False) as world:
        _ = await (await world.supervisor.query("/effort low")).wait()
        await world.until(lambda: world.pool.retired)
        assert world.pool.retired == {"may have run commands": 1}
        assert world.pool.recycled == 0


async def test_what_a_human_allowed_once_is_asked_again(world: World) -> None:
    asks = SessionSpec(on_permission="ask")
    write = tool("Write", file_path="made.txt", content="x") + "[[say Well.]]"
    for _ in range(2):
        before = world.pool.recycled
        turn = await world.supervisor.query(write, asks)
        session = world.supervisor.get(turn.session_id)
        await world.until(waits(session))
        (request,) = await session.requests()
        await session.decide(request.request_id, Allow())
        assert not (await turn.result()).accounting.permission_denials
        await world.until(recycled(world, before + 1))
    assert world.pool.hits == 1
    world.was_recycled()


async def test_what_is_in_the_context_is_looked_at_when_it_is_renewed_for_the_first_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[JsonObject] = []

    def look(usage: JsonObject) -> bool:
        looks.append(usage)
        return is_empty(usage)

    monkeypatch.setattr(claude_process, "is_empty", look)
    for _ in range(3):
        await world.ask("One")
    world.was_recycled()
    assert len(looks) == 1


async def test_one_whose_context_is_not_empty_is_not_used_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claude_process, "is_empty", lambda _usage: False)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    await world.ask(f"I am {SECRET}.")
    assert world.pool.retired == {"context": 1}
    assert world.pool.recycled == 0
    # With the process, which takes a moment to stop.
    await world.until(lambda: not holding(world.folder / "config", SECRET.encode()))


async def test_what_was_printed_before_explains_no_later_failure(tmp_path: Path) -> None:
    wrapper = tmp_path / "claude"
    wrapper.write_text(f'#!/bin/sh\necho {SECRET} >&2\nexec "{launch.find_cli(None)}" "$@"\n')
    wrapper.chmod(0o700)
    async with pooled_world(tmp_path, cli_path=wrapper) as world:
        (tmp_path / "cwd").mkdir()
        wanted = Fingerprint(owner="o", cwd=str(tmp_path / "cwd"), background=False)

        async def last_words(*, renewed: bool) -> str:
            process = await world.agent.spawn(wanted)
            if renewed:
                await process.renew()
            os.kill(process.pid, signal.SIGKILL)
            return (await process.stop()).stderr

        assert SECRET in await last_words(renewed=False)
        assert SECRET not in await last_words(renewed=True)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
async def test_one_that_fails_as_it_stands_ready_costs_nobody_an_answer(
    world: World, how: signal.Signals
) -> None:
    await world.ask("One")
    (cli,) = world.clis()
    os.kill(cli, how)
    # As the kernel has it: until then it is as good as ever.
    await world.until(lambda: _state(cli) in "TZX")
    async with asyncio.timeout(60):
        result = await world.ask("Two")
    assert "the first thing you said" in result.text
    pool = world.pool
    assert (pool.hits, pool.misses) == (0, 2)
    assert set(pool.retired) <= {"touched", "died"}
    assert cli not in world.clis()


def _state(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "X"
    return stat.rpartition(")")[2].split()[0]


async def test_a_session_has_a_process_that_stood_ready_and_goes_on_after_it(world: World) -> None:
    one, other = [await world.supervisor.start() for _ in range(2)]
    await (await one.query(f"I am {SECRET}.")).result()
    await world.until(lambda: world.pool.ready and not world.pool.starting)
    stood_ready = world.clis()
    two = await world.supervisor.start()
    result = await (await two.query("Remember marzipan.")).result()
    assert world.pool.hits == 1
    assert (await two.inspect()).pid in stood_ready
    assert SECRET not in result.text
    await two.hibernate()
    result = await (await two.query("What did I say before?")).result()
    assert "marzipan" in result.text
    assert SECRET not in result.text
    assert one.workspace != two.workspace
    for session in (one, other, two):
        await world.supervisor.close(session.session_id)
    await world.until(lambda: len(world.clis()) <= world.pool.ready + world.pool.starting)
