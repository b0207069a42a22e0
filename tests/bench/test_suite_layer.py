"""The layer's benchmark: words are due whatever happens, and every way says all of them."""

from __future__ import annotations

import json
import time

import pytest
from bench.processes import clean_surroundings
from bench.quantiles import quantile
from bench.suite import layer
from bench.suite.display import Display
from bench.suite.layer_server import Speech
from bench.suite.stamps import is_whole, word, words
from bench.suite.wire import Exchange
from rich.console import Console

from session_supervisor.agents.port import TextBlock, TextDelta
from session_supervisor.agents.scripted import Conversation, Pause
from session_supervisor.spec import Prompt

NOTHING: tuple[Prompt, Conversation] = (None, None)  # type: ignore[assignment] # pyright: ignore[reportAssignmentType] # it reads neither


def test_a_speaker_that_is_behind_neither_waits_nor_hides_it() -> None:
    speech = Speech(20, 0.005)
    steps = iter(speech.script(*NOTHING))
    assert isinstance(next(steps), Pause)
    time.sleep(0.06)  # the layer did not come back for so long
    behind: list[str] = []
    for step in steps:
        if isinstance(step, Pause):
            break
        assert isinstance(step, TextDelta)
        behind.append(step.text)
    assert len(behind) >= 10
    assert [one.number for one in words("".join(behind))] == list(range(len(behind)))
    first = words(behind[0])[0].said_ns
    assert first is not None
    assert time.monotonic_ns() - first > 0.05e9


@pytest.mark.anyio
async def test_all_three_say_the_same_and_the_first_word_tells_when_it_was_due() -> None:
    speech = Speech(3, 0.0)
    as_agent = [step for step in speech.script(*NOTHING) if isinstance(step, TextBlock)]
    as_values = [value async for value in speech.values()]
    as_frames = b"".join([frame async for frame in speech.frames()]).decode()
    assert is_whole(as_agent[0].text, 3)
    assert is_whole("".join(value.get("content", "") for value in as_values), 3)
    assert [one.number for one in words(as_frames)] == [0, 1, 2]
    assert (as_values[-1], as_frames.endswith('{"type":"done"}\n\n')) == ({"type": "done"}, True)
    for text in (as_agent[0].text, as_frames):
        assert [one.said_ns is not None for one in words(text)] == [True, False, False]


@pytest.mark.anyio
async def test_every_way_is_measured_and_every_stream_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layer, "LATE_S", 6.0)  # on a busy machine, too; each way lasts as long
    load = layer.Load(streams=8, offered=400.0)
    with clean_surroundings():
        cells = await layer.measure(
            layer.WAYS, [load], Display(Console(quiet=True)), rounds=1, window_s=0.4
        )
    assert [cell.server for cell in cells] == [way.name for way in layer.WAYS]
    for cell in cells:
        assert cell.errors == {}
        assert (cell.whole, cell.expected) == (8, 8)
        # How much comes in the window is the machine's; what counts as that is looked at below.
        assert cell.delivered >= cell.events > 0
        assert cell.lag is not None
        # Never before it is due, and each about when it came: they are due 20 ms apart.
        assert 0 < cell.lag.p50 < cell.lag.longest < 5_000
        (p99,) = cell.lag_p99
        assert cell.lag.p50 <= p99 <= cell.lag.longest
        assert min(cell.cpu_us) > 0
        assert 0 < cell.client_cpu_us < 2_000


def test_a_load_outlasts_what_is_measured_at_the_pace_that_is_offered() -> None:
    load = layer.Load(streams=8, offered=400.0)
    assert load.delay_s == 0.02
    told = layer.arguments(layer.WAYS[0], load, 0.4)
    pace = dict(zip(told[::2], told[1::2], strict=False))
    assert float(pace["--delay-ms"]) == 20.0
    least_s = layer.LATE_S + 2 * layer.SETTLE_S + 0.4
    assert least_s < int(pace["--tokens"]) * load.delay_s < least_s + 1


def exchange(*pieces: tuple[float, str]) -> Exchange:
    """A stream of which some words came together at some seconds."""
    made = Exchange(status=200)
    for at_s, said in pieces:
        data = json.dumps({"type": "text", "content": said}).encode()
        made.pieces.append((round(at_s * 1e9), b"data: " + data + b"\n\n"))
    return made


def test_words_count_that_come_in_the_window_each_with_its_own_lag() -> None:
    load = layer.Load(streams=3, offered=30.0)  # each says a word every tenth of a second
    first, second, third, fourth = word(0, round(1e9)), *(word(n) for n in range(1, 4))
    answers = [
        # From 1.15 to 1.35 s; one event of two words, and one on each side of the window.
        exchange((1.0, first), (1.25, second + third), (1.4, fourth)),
        exchange((1.15, first), (1.2, second), (1.35, third), (1.5, fourth)),
        exchange((1.2, first), (1.3, second + fourth), (1.3, third)),
    ]
    done = layer.Round(window_s=0.2, server_cpu_s=0.3, client_cpu_s=0.06)
    for answer in answers:
        layer.take(done, answer, load, round(1.15e9), round(1.35e9), 4)
    assert (done.events, done.deltas, done.whole) == (6, 8, 2)
    assert sorted(done.lags) == pytest.approx([0, 50, 100, 100, 150, 150, 200, 200], abs=1e-6)
    cell = layer._cell(layer.WAYS[0], load, [done, done])  # pyright: ignore[reportPrivateUsage]
    assert [cell.events, cell.delivered] == pytest.approx([30, 40])
    assert cell.cpu_us == pytest.approx([50_000, 50_000])
    assert (cell.whole, cell.expected) == (4, 6)
    assert cell.client_cpu_share == pytest.approx(0.3)
    assert cell.lag_p99 == [quantile(sorted(done.lags), 0.99)] * 2
