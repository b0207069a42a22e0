"""The text of one turn, as it grows and is corrected.

The agent streams provisional deltas and confirms each block with its whole text. The upstream
may break off in between and begin again, so readers may have to be told that text which
they have had is void. This keeps the one promise they rely on: the text events of a turn,
less what `discard` events withdrew, concatenate to `text`.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_SEPARATOR = "\n\n"


@dataclass(frozen=True, slots=True)
class Correction:
    """What readers must be told, in this order.

    Attributes:
        discard_after: Withdraw the text events after this number; None withdraws nothing.
        content: Then append this; empty appends nothing.
    """

    discard_after: int | None = None
    content: str = ""


@dataclass(frozen=True, slots=True)
class _Block:
    text: str
    mark: int
    """Number of the last event before the block's first text event."""


class Answer:
    """The text of one turn."""

    def __init__(self) -> None:
        self._confirmed: list[_Block] = []
        self._partial: list[str] = []
        self._mark = 0

    @property
    def text(self) -> str:
        """All text of the turn so far: blocks joined by a blank line."""
        blocks = [block.text for block in self._confirmed]
        if self._partial:
            blocks.append("".join(self._partial))
        return BLOCK_SEPARATOR.join(blocks)

    def delta(self, text: str, *, last_seq: int) -> str:
        """Add a provisional piece of the current block.

        Args:
            text: The piece.
            last_seq: Number of the last event in the log.

        Returns:
            What to publish, the separator of blocks included; empty publishes nothing.
        """
        if not text:
            return ""
        if self._partial:
            self._partial.append(text)
            return text
        self._mark = last_seq
        self._partial.append(text)
        return self._lead() + text

    def confirm(self, text: str, *, last_seq: int) -> Correction:
        """Complete the current block with its true text.

        Args:
            text: All of the block.
            last_seq: Number of the last event in the log.
        """
        streamed = "".join(self._partial)
        mark = self._mark if self._partial else last_seq
        self._partial.clear()
        lead = self._lead()
        if text:
            self._confirmed.append(_Block(text, mark))
        if text == streamed:
            return Correction()
        if streamed and text.startswith(streamed):
            return Correction(content=text[len(streamed) :])
        return Correction(
            discard_after=mark if streamed else None, content=lead + text if text else ""
        )

    def withdraw(self, blocks: int = 0) -> Correction:
        """Void the provisional text, and the last confirmed blocks.

        Args:
            blocks: How many confirmed blocks to void.
        """
        marks = [self._mark] if self._partial else []
        self._partial.clear()
        if blocks:
            marks += [block.mark for block in self._confirmed[-blocks:]]
            del self._confirmed[-blocks:]
        return Correction(discard_after=min(marks, default=None))

    def _lead(self) -> str:
        return BLOCK_SEPARATOR if self._confirmed else ""
