"""Attachments are taken for what their bytes are, and for nothing else."""

from __future__ import annotations

import base64

import pytest

from session_http.attachments import AttachmentLimits, accepted, sniff
from session_http.problems import InvalidRequest
from session_http.schemas import PIXEL_EXAMPLE, AttachmentRequest

PNG = base64.b64decode(PIXEL_EXAMPLE)
FILES = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "image/gif": b"GIF89a\x01\x00\x01\x00",
    "image/webp": b"RIFF\x1a\x00\x00\x00WEBPVP8 ",
    "application/pdf": b"%PDF-1.7\n%%EOF",
}


def given(data: bytes, **fields: str) -> AttachmentRequest:
    return AttachmentRequest(data=base64.b64encode(data).decode(), **fields)


def problem(*attachments: AttachmentRequest, **limits: int) -> str:
    with pytest.raises(InvalidRequest) as caught:
        accepted(attachments, AttachmentLimits(**limits))
    return caught.value.problem.detail


@pytest.mark.parametrize(("media_type", "data"), FILES.items())
def test_a_type_is_found_out(media_type: str, data: bytes) -> None:
    (found,) = accepted([given(data, name="a")], AttachmentLimits())
    assert (found.media_type, found.name) == (media_type, "a")
    assert base64.b64decode(found.data) == data


@pytest.mark.parametrize(("media_type", "data"), FILES.items())
def test_who_says_the_type_must_be_right(media_type: str, data: bytes) -> None:
    accepted([given(data, media_type=media_type.upper())], AttachmentLimits())
    lie = "image/png" if media_type != "image/png" else "image/jpeg"
    detail = problem(given(PNG), given(data, media_type=lie))
    assert detail == (
        f"attachments[1].media_type: is said to be {lie!r}, but its bytes are {media_type}"
    )


def test_a_name_that_is_in_use_for_a_type_is_no_lie() -> None:
    accepted([given(FILES["image/jpeg"], media_type="image/jpg")], AttachmentLimits())


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"PNG",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x00\x00\x00\x00WAVE",
        b"BM",
        b" %PDF-1.7",
    ],
)
def test_what_the_model_cannot_look_at_is_refused(data: bytes) -> None:
    assert sniff(data) is None
    assert "attachments[0].data: is of none of the types" in problem(given(data))


@pytest.mark.parametrize(
    "data",
    ["a", "aGk", "aG k=", "aGk=\n", "aGk-", "é", "====", "aGk=aGk=", "JVBERi0x====", "JVBERi0===="],
)
def test_what_is_no_base64_is_refused(data: str) -> None:
    assert "attachments[0].data: is not base64" in problem(AttachmentRequest(data=data))


def test_a_limit_is_the_number_of_bytes_exactly() -> None:
    accepted([given(PNG)], AttachmentLimits(size=len(PNG)))
    for size in (1, len(PNG) - 1):
        assert f"has more than {size} bytes" in problem(given(PNG), size=size)


def test_there_are_only_so_many() -> None:
    accepted([given(PNG)] * 2, AttachmentLimits(count=2))
    detail = problem(*[given(PNG)] * 3, count=2)
    assert detail == "attachments: holds 3 attachments, and may hold 2"


def test_none_are_none() -> None:
    assert accepted(None, AttachmentLimits(count=0)) == ()
    assert accepted((), AttachmentLimits(count=0)) == ()
