"""Words that say when they were said: by them, lag is the server's and not the client's.

A word is its number and the time on the machine's monotonic clock, which all processes share. A
text of such words shows by itself whether it is whole, and how many deltas went into one event. The
first word of an answer also says when the model was asked for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"w(\d+)(?:@(\d+)(?:\^(\d+))?)? +")


@dataclass(frozen=True, slots=True)
class Word:
    """A word that was read.

    Attributes:
        number: Its place in the text, from 0.
        said_ns: When it was said; None: it does not tell.
        asked_ns: When the model was asked for the answer; None: it does not tell.
    """

    number: int
    said_ns: int | None
    asked_ns: int | None = None


def word(number: int, said_ns: int | None = None, *, asked_ns: int | None = None) -> str:
    """Return a word that was said, or due to be said, at a time; None: now.

    Args:
        number: Its place in the text.
        said_ns: The time.
        asked_ns: When the answer that it begins was asked for; None: it does not tell.
    """
    said = f"w{number}@{time.monotonic_ns() if said_ns is None else said_ns}"
    return f"{said} " if asked_ns is None else f"{said}^{asked_ns} "


def plain_word(number: int, size: int = 0) -> str:
    """Return a word that does not tell when it was said, filled up to a size."""
    return f"w{number} ".ljust(size)


def words(text: str) -> Sequence[Word]:
    """Return the words of a text that has any."""
    return [
        Word(
            int(number), None if said is None else int(said), None if asked is None else int(asked)
        )
        for number, said, asked in (found.groups() for found in _WORD.finditer(text))
    ]


def asked_ns(text: str) -> int | None:
    """Return when the model was asked for a text; None: it does not tell."""
    first = _WORD.match(text)
    return None if first is None or first[3] is None else int(first[3])


def is_whole(text: str, number: int) -> bool:
    """Whether a text is so many words, in order, each once, and nothing else."""
    return [one.number for one in words(text)] == list(range(number)) and _WORD.sub("", text) == ""
