"""What a tool was given or gave back, cut to a length that every reader can bear.

The shape stays: an object is an object, with its first members, and a text its beginning. So who
shows events shows these in the same way, and who needs all of it asks for the event by its id.
"""

from __future__ import annotations

from pydantic import JsonValue

_PART = 16
"""What a part that is no text counts as, and the name of a member besides its length."""


def cut(value: JsonValue, most: int) -> tuple[JsonValue, bool]:
    """Return as much of a value as has about so many bytes, and whether that is not all.

    Args:
        value: Any JSON.
        most: Bytes of text, in UTF-8; what is no text counts by the part.
    """
    knife = _Knife(most)
    return knife.cut(value), knife.used


class _Knife:
    """What is left of the bytes that a value may have."""

    def __init__(self, most: int) -> None:
        self._left = most
        self.used = False

    def cut(self, value: JsonValue) -> JsonValue:
        match value:
            case str():
                return self._text(value)
            case dict():
                members: dict[str, JsonValue] = {}
                for name, inner in value.items():
                    if not self._take(_PART + len(name)):
                        break
                    members[name] = self.cut(inner)
                return members
            case list():
                items: list[JsonValue] = []
                for inner in value:
                    if not self._take(_PART):
                        break
                    items.append(self.cut(inner))
                return items
            case _:
                return value

    def _take(self, size: int) -> bool:
        if size > self._left:
            self.used = True
            return False
        self._left -= size
        return True

    def _text(self, text: str) -> str:
        # A character has a byte at least, so no more of them need a look.
        begin = text[: self._left]
        raw = begin.encode(errors="surrogatepass")
        if len(begin) == len(text) and len(raw) <= self._left:
            self._left -= len(raw)
            return text
        kept = raw[: self._left].decode(errors="ignore")
        self.used = True
        self._left = 0
        return kept
