"""How lines of transcripts follow on each other once they are mended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from session_supervisor.agents.claude.chains import BEFORE, whole
from session_supervisor.spec import JsonObject


def line(uuid: str, parent: str | None) -> JsonObject:
    return {"type": "attachment", "uuid": uuid, "parentUuid": parent, "sessionId": "c"}


def made(names: str, before: str | None) -> list[JsonObject]:
    return [{"type": "user", "uuid": one, "sessionId": "c", BEFORE: before} for one in names]


def chain(lines: Sequence[Any]) -> str:
    """Return names in order, each of which follows on the one before it; else fail."""
    named = [one for one in lines if "uuid" in one]
    parents = [None, *(one["uuid"] for one in named[:-1])]
    assert [one["parentUuid"] for one in named] == parents
    return "".join(one["uuid"] for one in named)


@pytest.mark.parametrize(
    ("copied", "here"),
    [
        # nothing is missing
        ([line("a", None), line("b", "a")], [line("a", None), line("b", "a")]),
        # at the end, and the next turn follows on it
        ([line("a", None), *made("bc", None), line("d", "c")], [line("a", None), line("d", "c")]),
        # in the middle: the CLI has its line follow on what it believes to have written
        ([line("a", None), line("c", "b"), *made("b", "c")], [line("a", None), line("c", "b")]),
        # the first lines of all
        ([line("c", "x"), *made("ab", "c")], [line("c", "x")]),
        ([*made("ab", None)], []),
        # one of each, and the file is gone
        ([line("a", None), line("c", "b"), *made("b", "c"), *made("d", None)], []),
        # what follows on it was written: the CLI's own lines know where it belongs
        ([line("a", None), line("c", "b"), line("d", "c"), *made("b", "d")], []),
        ([line("a", None), line("d", "c"), line("e", "d"), *made("bc", "d")], []),
        # a line that stands behind a broken one was caught up with later, and its prompt never
        ([line("a", None), line("d", "c"), line("c", "b"), *made("b", "c")], [line("a", None)]),
        ([line("a", None), line("d", "c"), line("c", "x"), *made("b", "c")], [line("a", None)]),
        # it was written after all, though the CLI could not say so
        (
            [line("a", None), line("b", "a"), line("d", "x"), *made("c", "d")],
            [line("a", None), line("b", "a"), line("c", "b")],
        ),
        (
            [line("a", None), line("b", "x"), *made("cd", None)],
            [line("a", None), line("b", "x"), line("d", "b")],
        ),
        # the copy has not all that was written
        ([line("b", "a"), *made("c", None)], [line("a", None), line("b", "a"), line("d", "c")]),
        # what is in the file already stays there, and may be written once more
        (
            [line("a", None), line("c", "b"), *made("b", "c"), *made("d", None)],
            [line("a", None), {**made("b", "c")[0], "parentUuid": "a"}, line("c", "b")],
        ),
    ],
)
def test_every_line_is_there_once_and_follows_on_the_one_before(
    copied: list[Any], here: list[Any]
) -> None:
    names = chain(whole(copied, here))
    assert names == "".join(sorted({one["uuid"] for one in [*copied, *here]}))
    assert chain(whole(copied, whole(copied, here))) == names


def test_lines_without_an_id_stay_where_they_are() -> None:
    mode, title = {"type": "mode"}, {"type": "title"}
    copied = [line("a", None), mode, line("b", "a"), title, *made("c", None)]
    here = [line("a", None), mode, mode, line("b", "a")]
    assert [one.get("uuid", one["type"]) for one in whole(copied, here)] == [
        *("a", "mode", "mode", "b", "title", "c")
    ]


def test_what_follows_on_nothing_that_is_known_is_left_as_it_is() -> None:
    side = {**line("s", "nowhere"), "isSidechain": True}
    boundary = {**line("k", None), "logicalParentUuid": "a"}
    lines = [line("a", None), side, boundary]
    assert whole(lines, lines) == lines
    assert [one["parentUuid"] for one in whole([*lines, *made("m", None)])][-1] == "k"


@pytest.mark.parametrize("lost", ["x", "xyz"])
def test_what_follows_on_what_is_lost_follows_on_what_is_there(lost: str) -> None:
    here = [line("a", None), line("b", "a"), {"type": "mode"}, line("c", lost[-1]), line("d", "c")]
    mended = whole([], here)
    assert chain(mended) == "abcd"
    assert whole([], mended) == mended


def checkpoint(leaf: str | None, **more: str) -> JsonObject:
    return {"type": "last-prompt", "leafUuid": leaf, "sessionId": "c", **more}


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        ([], False),  # there is none, and no branch either
        ([checkpoint("d")], False),
        ([checkpoint("b")], False),  # what came since follows on it
        ([checkpoint("side"), checkpoint("d", lastPrompt="p")], False),
        ([checkpoint("d"), checkpoint("side")], True),
        ([checkpoint("side")], True),
        ([checkpoint("lost")], True),
        ([checkpoint(None)], True),
        ([{"type": "last-prompt", "sessionId": "c"}], False),  # which says nothing of it
    ],
)
def test_a_checkpoint_on_another_branch_is_replaced(said: list[JsonObject], needed: bool) -> None:
    lines = [
        *(line("a", None), line("b", "a"), line("side", "b")),
        *said,
        *(line("d", "b"), {**line("s", "nowhere"), "isSidechain": True}, {"type": "mode"}),
    ]
    assert whole([], lines) == [*lines, *([checkpoint("d")] if needed else [])]


def test_lines_that_follow_on_each_other_are_left_as_they_are() -> None:
    lines = [line("z", None), line("a", "b"), line("b", "a"), line("s", "s"), checkpoint("z")]
    left = {one["uuid"]: one["parentUuid"] for one in whole(lines, lines) if "uuid" in one}
    assert left == {"z": None, "a": "b", "b": "a", "s": "s"}
    assert whole(lines, lines)[-1]["type"] == "last-prompt"


def test_a_thousand_lines_of_each_kind_take_no_time() -> None:
    lines: list[Any] = []
    for n in range(3_000):
        lines += [line(f"u{n}", f"u{n - 1}" if n else None), {"type": "mode", "n": n % 7}]
    assert whole(lines[:4_000], lines) == lines
