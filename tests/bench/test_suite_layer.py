"""The layer's benchmark: words are due whatever happens, and every way says all of them."""

from __future__ import annotations

import time

import pytest
from bench.processes import clean_surroundings
from bench.suite import layer
from bench.suite.display import Display
from bench.suite.layer_server import Speech
from bench.suite.stamps import is_whole, words
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
        # Fewer on a busy machine, and a few more where those that were late come together.
        assert 40 <= cell.delivered <= 600
        assert cell.lag is not None
        # Never before it is due, and each about when it came: they are due 20 ms apart.
        assert 0 < cell.lag.p50 < cell.lag.longest < 5_000
        assert cell.lag_p99 == pytest.approx([cell.lag.p99], rel=0.05)
        assert min(cell.cpu_us) > 0
        assert 0 < cell.client_cpu_us < 2_000
