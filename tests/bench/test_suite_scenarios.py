"""Scenarios against the real application with a scripted agent, and a server that is at fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import pytest
from bench.suite import scale, soak
from bench.suite.display import Display
from bench.suite.load import Books, Times, Visit
from bench.suite.results import Cell
from bench.suite.runner import Outcome, Plan, Settings, carry_out
from bench.suite.scenarios import SCENARIOS, Asking, Mode, probe
from bench.suite.stamps import word
from bench.suite.targets import NoTarget, Target, found, headers_from
from rich.console import Console

from session_supervisor.agents.port import TextBlock, TextDelta
from session_supervisor.agents.scripted import Conversation, Pause, Step
from session_supervisor.spec import Prompt
from tests.bench.tiny import Asked, json_answer, stream_answer, tiny
from tests.http.servers import on_hypercorn, world

pytestmark = pytest.mark.anyio

WORDS = 5
ASKING = Asking(prompt="speak", long_prompt="speak long", words=WORDS, turns=2)
SHORT = Settings(
    times=Times(ramp_s=0.0, warmup_s=0.0, measured_s=0.4), rounds=2, asking=ASKING, probe_hz=10.0
)


def script(prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
    said: list[str] = []
    for number in range(5_000 if "long" in prompt.text else WORDS):
        yield Pause(0.005)
        said.append(word(number))
        yield TextDelta(said[-1])
    yield TextBlock("".join(said))


@asynccontextmanager
async def ours() -> AsyncGenerator[Target]:
    async with world(script) as it, on_hypercorn(it) as address:
        yield await found("ours", address.url)


async def run(target: Target, name: str, mode: Mode, level: float) -> tuple[Outcome, list[Cell]]:
    plan = Plan(scenario=SCENARIOS[name], mode=mode, level=level)
    outcome = Outcome()
    await carry_out([plan], [target], SHORT, Display(Console(quiet=True)), outcome)
    return outcome, outcome.cells


@pytest.mark.parametrize(
    ("name", "mode", "level", "timed"),
    [
        ("oneoff", "closed", 2, {"first text", "total", "lag"}),
        ("oneoff", "open", 20, {"first text", "total", "lag"}),
        ("chat", "closed", 1, {"start", "first text", "total", "lag"}),
        ("starts", "closed", 1, {"start", "start with a question", "first text", "total", "lag"}),
        ("readers", "burst", 20, {"lag of readers", "lag", "first text", "total"}),
        ("wake", "closed", 1, {"start", "first text after waking", "total", "lag"}),
        ("storm", "burst", 10, {"start"}),
        ("interrupts", "closed", 1, {"start", "interrupt answered", "stream ended", "lag"}),
        ("mixed", "open", 20, {"start", "first text", "total", "lag", "interrupt answered"}),
    ],
)
async def test_a_scenario_runs_without_errors_and_leaves_nothing(
    name: str, mode: Mode, level: float, timed: set[str]
) -> None:
    async with ours() as target:
        _, (cell,) = await run(target, name, mode, level)
        client = target.client()
        left = (await client.ask("GET", "/sessions")).json()["active_sessions"]
        client.close()
    assert left == []
    assert cell.errors == {}
    assert cell.completed == cell.visits > 0
    looks = {"GET /health", "GET /sessions"}
    assert timed <= set(cell.times) <= timed | looks | {"stream ended"}
    assert all(one.count > 0 and one.p50 > 0 for one in cell.times.values())
    assert (cell.rate > 0) is (mode != "burst")
    assert cell.client_late is not None
    if name == "readers":
        assert cell.times["lag of readers"].count == 20 * WORDS * ASKING.turns * SHORT.rounds
    if name == "storm":
        assert (cell.sessions, cell.visits) == (10, 20)


async def test_what_a_server_does_not_offer_is_left_out_and_said() -> None:
    async with tiny(reference) as server:
        target = await found("other", server.url)
        outcome, cells = await run(target, "wake", "closed", 1)
    assert cells == []
    assert outcome.left_out == {"wake, other": "it does not offer /session/{session_id}/hibernate"}


async def reference(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Answer as a server does that knows the reference alone, and loses a word now and then."""
    match asked.method, asked.path:
        case "GET", "/":
            answer = json_answer(b'{"endpoints": ["/health", "/query"]}')
        case "POST", "/query":
            texts = [f'{{"type":"text","content":"w{n} "}}'.encode() for n in (0, 1, 2, 4)]
            answer = stream_answer([*texts, b'{"type":"done"}'])
        case _:
            answer = json_answer(b'{"active_sessions": []}')
    writer.write(answer)


async def test_a_text_that_is_not_whole_is_an_error() -> None:
    async with tiny(reference) as server:
        target = await found("other", server.url)
        _, (cell,) = await run(target, "oneoff", "closed", 1)
    assert cell.completed == 0
    assert set(cell.errors) == {"text not whole"}
    assert "first text" not in cell.times


async def test_two_targets_take_turns_and_the_order_turns_round() -> None:
    async with tiny(reference) as one, tiny(reference) as two:
        order: list[str] = []
        display = Display(Console(quiet=True))
        display.doing = lambda what: order.append(what.rpartition(" ")[2])  # type: ignore[method-assign]
        targets = [await found("a", one.url), await found("b", two.url)]
        plan = Plan(scenario=SCENARIOS["oneoff"], mode="closed", level=1)
        await carry_out([plan], targets, SHORT, display, Outcome())
    assert order == ["a", "b", "b", "a"]


async def test_a_target_that_is_no_such_server_is_refused() -> None:
    async def respond(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(b"{}", "404 Not Found"))

    async with tiny(respond) as server:
        with pytest.raises(NoTarget, match="404: it does not know the reference's paths"):
            await found("x", server.url)
    with pytest.raises(NoTarget, match="not the URL of a server"):
        await found("x", "localhost")


def test_a_key_comes_from_a_variable_and_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "k1")
    assert headers_from("SOME_KEY") == {"authorization": "Bearer k1"}
    assert headers_from(None) == {}
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(NoTarget, match="SOME_KEY has no API key"):
        headers_from("SOME_KEY")


async def test_scale_and_soak_work_on_a_server_of_which_only_the_api_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.suite.soak.EVERY_S", 0.2)
    display = Display(Console(quiet=True))
    async with ours() as target:
        wanted = scale.Wanted(sessions=1, seconds=0.5, asking=ASKING)
        many = await scale.on_target(wanted, target, display)
        soaking = soak.Soaking(soak.Wanted(seconds=1.5, rate=8.0, asking=ASKING), target, None)
        await soaking.run(display)
        assert await scale.sessions_of(target) == 0
    assert (many.sessions, many.made) == (0, None)
    assert [one.load for one in many.looks] == ["no load", "one-off queries, 4 users"]
    for one in many.looks:
        assert one.errors == {}
        assert one.times["GET /health"].count >= 2
    done = soaking.result()
    assert soaking.gone is None
    assert done.errors == {}
    assert done.completed == done.visits >= 5
    assert {"first text", "first text after waking", "GET /health"} <= set(done.times)
    assert sum(part.completed for part in done.minutes) >= 3
    assert done.samples == []


async def test_looks_that_are_under_way_at_the_end_are_waited_for() -> None:
    over = asyncio.Event()

    async def respond(asked: Asked, writer: asyncio.StreamWriter) -> None:
        over.set()
        await asyncio.sleep(0.3)
        if asked.path == "/health":
            writer.write(json_answer(b"{}"))
        else:
            writer.write(json_answer(b"{}", "503 Service Unavailable"))

    books = Books()
    async with tiny(respond) as server:
        client = server.client()
        await probe(lambda due_ns: Visit(client, books, due_ns, counts=True), 5.0, over)
        client.close()
    assert len(books.times["GET /health"]) == 1
    assert books.times["GET /health"][0] > 290
    assert books.errors == {"GET /sessions: 503": 1}
