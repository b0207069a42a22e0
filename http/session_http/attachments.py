"""Attachments are what their bytes say that they are, and not longer than the operator allows."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from session_http.problems import FieldError, InvalidRequest
from session_http.schemas import AttachmentRequest
from session_supervisor.spec import Attachment

_ALIASES = {"image/jpg": "image/jpeg", "application/x-pdf": "application/pdf"}
"""Names that are in use for a type besides its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentLimits:
    """How much may go with one prompt.

    Attributes:
        count: Attachments.
        size: Of each, bytes.
    """

    count: int = 16
    size: int = 5 * 2**20


def accepted(
    given: Sequence[AttachmentRequest] | None, limits: AttachmentLimits
) -> tuple[Attachment, ...]:
    """Return attachments as the agent takes them.

    Raises:
        InvalidRequest: There are too many, or one is too long, is not base64, or not of a type
            that the model can look at, or not of the type that it is said to be.
    """
    if not given:
        return ()
    if len(given) > limits.count:
        problem = f"holds {len(given)} attachments, and may hold {limits.count}"
        raise InvalidRequest([FieldError(field="attachments", message=problem)])
    return tuple(_accepted(f"attachments[{n}]", one, limits) for n, one in enumerate(given))


def sniff(data: bytes) -> str | None:
    """Return the media type that the first bytes of a file show; None: none that is taken."""
    for media_type, marks in _MARKS:
        if all(data[at : at + len(mark)] == mark for at, mark in marks):
            return media_type
    return None


_MARKS: Sequence[tuple[str, Iterable[tuple[int, bytes]]]] = (
    # A signature, and behind it what any such file has: the signature alone is no picture.
    ("image/png", ((0, b"\x89PNG\r\n\x1a\n"), (12, b"IHDR"))),
    ("image/jpeg", ((0, b"\xff\xd8\xff"),)),
    ("image/gif", ((0, b"GIF87a"),)),
    ("image/gif", ((0, b"GIF89a"),)),
    ("image/webp", ((0, b"RIFF"), (8, b"WEBP"))),
    ("application/pdf", ((0, b"%PDF-"),)),
)

_TYPES = ", ".join(dict.fromkeys(media_type for media_type, _ in _MARKS))


def _accepted(where: str, given: AttachmentRequest, limits: AttachmentLimits) -> Attachment:
    # Three bytes are four characters; what is too long is not even decoded.
    if len(given.data) > 4 * -(-limits.size // 3):
        raise _invalid(where, f"has more than {limits.size} bytes, the most that is allowed")
    try:
        data = base64.b64decode(given.data.encode("ascii"), validate=True)
        if given.data.endswith("==="):  # which is decoded, but not by everybody
            raise binascii.Error
    except (binascii.Error, UnicodeEncodeError):
        raise _invalid(
            where, "is not base64: use the standard alphabet, with padding and no line breaks"
        ) from None
    if len(data) > limits.size:
        raise _invalid(where, f"has more than {limits.size} bytes, the most that is allowed")
    found = sniff(data)
    if found is None:
        raise _invalid(where, f"is of none of the types that there are: {_TYPES}")
    if given.media_type is not None:
        said = given.media_type.strip().lower()
        if _ALIASES.get(said, said) != found:
            problem = f"is said to be {given.media_type[:100]!r}, but its bytes are {found}"
            raise InvalidRequest([FieldError(field=f"{where}.media_type", message=problem)])
    return Attachment(media_type=found, data=given.data, name=given.name)


def _invalid(where: str, problem: str) -> InvalidRequest:
    return InvalidRequest([FieldError(field=f"{where}.data", message=problem)])
