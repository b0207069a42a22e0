"""A request's bytes become its model, or an error that says which field and why."""

from __future__ import annotations

import asyncio
import json
import time
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json
from starlette.types import Message

from session_http import reading
from session_http.problems import ProblemError
from session_http.reading import MOST_PARTS, SMALL, Body, ClientGone, Source, read_model
from session_http.schemas import (
    EventsParameters,
    InterruptRequest,
    NoParameters,
    QueryRequest,
    StartRequest,
)


def refusal(raw: bytes, source: Source = Source.BODY) -> tuple[str, str]:
    with pytest.raises(ProblemError) as caught:
        read_model(QueryRequest, raw, source)
    return caught.value.problem.code, caught.value.problem.detail


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"prompt": ""}', "prompt: "),
        (b'{"prompt": "  \\n "}', "prompt: must not be empty"),
        (b"{}", "prompt: is required"),
        (b'{"prompt": null}', "prompt: "),
        (b'{"prompt": "a", "allowed_tools": ["Read", 1]}', "allowed_tools[1]: "),
        (b'{"prompt": "a", "permission_mode": "yolo"}', "permission_mode: input should be"),
        (b'{"prompt": "a", "timeout_s": 0}', "timeout_s: "),
        (b'{"prompt": "a", "timeout_s": -1}', "timeout_s: "),
        (b'{"prompt": "a", "timeout_s": true}', "timeout_s: "),
        (b'{"prompt": "a", "timeout_s": Infinity}', "timeout_s: "),
        (b'{"prompt": "a", "stream": 1}', "stream: "),
        (b'{"prompt": "a", "promt": "b"}', "promt: unknown field; there are: prompt, model, "),
        (b"[]", "the body must be a JSON object"),
        (b'"prompt"', "the body must be a JSON object"),
        (b"null", "the body must be a JSON object"),
    ],
)
def test_what_does_not_fit_is_named_with_its_reason(raw: bytes, says: str) -> None:
    code, detail = refusal(raw)
    assert code == "invalid_request"
    assert says in detail
    assert "pydantic" not in detail


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"prompt=a", b'{"prompt": "a"} x', b"\xff", b'{"prompt": "\\ud800"}']
)
def test_what_is_not_json_is_called_so(raw: bytes) -> None:
    code, detail = refusal(raw)
    assert code == "malformed_json"
    assert detail.startswith("The body is not JSON: ")


@given(st.binary(max_size=40))
def test_any_bytes_are_a_request_or_a_clean_refusal(raw: bytes) -> None:
    status = 200
    try:
        read_model(StartRequest, raw, Source.OPTIONAL_BODY)
    except ProblemError as error:
        status = error.problem.status
    assert status in (200, 400)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a", "\\u0070rompt": "b"}',
        b'{"prompt": "a", "stream": true, "prompt": "a"}',
    ],
)
def test_a_field_given_twice_is_named(raw: bytes) -> None:
    assert refusal(raw) == ("invalid_request", "prompt: is given more than once")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_called_one(encoding: str) -> None:
    code, detail = refusal('{"prompt": "a"}'.encode(encoding))
    assert code == "malformed_json"
    assert "byte order mark" in detail


def test_an_optional_body_may_be_missing() -> None:
    assert read_model(InterruptRequest, b"", Source.OPTIONAL_BODY) == InterruptRequest()
    assert read_model(InterruptRequest, b" \r\n\t", Source.OPTIONAL_BODY) == InterruptRequest()
    for raw in (b"\x0b", b"\x0c", b"\0", b"\xa0"):
        with pytest.raises(ProblemError):
            read_model(InterruptRequest, raw, Source.OPTIONAL_BODY)


def test_null_is_as_if_the_field_were_not_there() -> None:
    raw = b'{"prompt": "a", "model": null, "allowed_tools": null, "stream": null}'
    assert read_model(QueryRequest, raw, Source.BODY) == QueryRequest(prompt="a")


def test_parameters_are_read_from_the_query_string() -> None:
    assert read_model(EventsParameters, b"after=7", Source.QUERY).after == 7


@pytest.mark.parametrize("raw", [b"after=x", b"after=-1", b"after=1&after=2", b"befor=1", b"after"])
def test_wrong_parameters_are_refused(raw: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        read_model(EventsParameters, raw, Source.QUERY)
    assert caught.value.problem.status == 400


def test_parameters_where_there_are_none_are_refused() -> None:
    with pytest.raises(ProblemError) as caught:
        read_model(NoParameters, b"limit=1", Source.QUERY)
    assert "limit: unknown field" in caught.value.problem.detail


# Bodies


class Pieces:
    """Gives a body piece by piece, as a server does; nothing more arrives after the last."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)

    async def __call__(self) -> Message:
        if not self._messages:
            await asyncio.get_running_loop().create_future()
        return self._messages.pop(0)


def piece(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def body(*messages: Message, headers: dict[str, str], timeout_s: float = 5.0) -> Body:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "headers": raw}
    return Body(scope, Pieces(*messages), max_bytes=10, timeout_s=timeout_s)


JSON = {"content-type": "application/json", "transfer-encoding": "chunked"}


@pytest.mark.anyio
async def test_a_body_is_joined_from_its_pieces() -> None:
    one = body(piece(b'{"a":', more=True), piece(b"1}", more=False), headers=JSON)
    assert await one.read() == b'{"a":1}'
    assert not one.pending


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-length": "5"}, "unsupported_media_type"),
        ({"content-length": "5", "content-type": "text/plain"}, "unsupported_media_type"),
        (
            {"content-length": "5", "content-type": "application/x-www-form-urlencoded"},
            "unsupported_media_type",
        ),
        ({"content-length": "11", "content-type": "application/json"}, "payload_too_large"),
        ({**JSON, "content-encoding": "gzip"}, "unsupported_media_type"),
    ],
)
async def test_a_body_that_will_not_do_is_refused_unread(
    headers: dict[str, str], code: str
) -> None:
    with pytest.raises(ProblemError) as caught:
        await body(headers=headers).read()
    assert caught.value.problem.code == code


@pytest.mark.anyio
@pytest.mark.parametrize(
    "media_type",
    ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"],
)
async def test_json_may_be_declared_in_any_of_its_ways(media_type: str) -> None:
    headers = {**JSON, "content-type": media_type}
    assert await body(piece(b"{}", more=False), headers=headers).read() == b"{}"


@pytest.mark.anyio
async def test_a_body_of_unknown_length_is_cut_off_when_it_is_too_long() -> None:
    one = body(piece(b"123456", more=True), piece(b"789012", more=True), headers=JSON)
    with pytest.raises(ProblemError) as caught:
        await one.read()
    assert caught.value.problem.code == "payload_too_large"


@pytest.mark.parametrize("second", [{}, {"content-length": "2"}])
def test_a_body_may_not_end_in_two_ways(second: dict[str, str]) -> None:
    one = body(headers={**JSON, **second})
    if not second:
        one.check_framing()
        return
    with pytest.raises(ProblemError) as caught:
        one.check_framing()
    assert caught.value.problem.code == "invalid_request"
    # Nothing more may be read from such a connection.
    assert caught.value.problem.headers == {"connection": "close"}


@pytest.mark.anyio
async def test_a_body_that_stops_arriving_is_given_up() -> None:
    with pytest.raises(ProblemError) as caught:
        await body(piece(b"{", more=True), headers=JSON, timeout_s=0.01).read()
    assert caught.value.problem.code == "request_timeout"


@pytest.mark.anyio
async def test_a_body_whose_client_went_away_is_no_request() -> None:
    one = body(piece(b"{", more=True), {"type": "http.disconnect"}, headers=JSON)
    with pytest.raises(ClientGone):
        await one.read()


@pytest.mark.anyio
async def test_a_request_without_a_body_waits_for_nothing() -> None:
    one = body(headers={"content-length": "0"})
    await one.skip()
    assert await one.read() == b""


# What is wrong in a million places must not take the server's time.


@pytest.mark.parametrize(
    "raw",
    [
        b"{" + b",".join(b'"a%d":1' % n for n in range(500_000)) + b"}",
        b'{"prompt":"a","allowed_tools":[' + b",".join([b"1"] * 1_000_000) + b"]}",
        b'{"prompt":"a","allowed_tools":[' + b",".join([b'"a"'] * 1_000_000) + b"]}",
        b'{"prompt":' + b"[" * 1_000_000,
        b'{"prompt":"a","' + b"a" * 5_000_000 + b'":1}',
    ],
    ids=["fields", "wrong items", "items", "nesting", "name"],
)
def test_a_long_body_full_of_mistakes_is_refused_quickly_and_briefly(raw: bytes) -> None:
    began = time.process_time()
    with pytest.raises(ProblemError) as caught:
        read_model(QueryRequest, raw, Source.BODY)
    assert time.process_time() - began < 2
    assert len(bytes(caught.value.problem.response().body)) < 5_000


def test_a_long_prompt_is_just_that() -> None:
    raw = b'{"prompt":"' + b"a" * 5_000_000 + b'"}'
    assert len(read_model(QueryRequest, raw, Source.BODY).prompt) == 5_000_000


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes were parsed, call by call."""
    calls: list[int] = []

    def look(raw: bytes, *, allow_partial: bool) -> object:
        calls.append(len(raw))
        return from_json(raw, allow_partial=allow_partial)

    original = QueryRequest.model_validate_json

    def validate(raw: bytes) -> QueryRequest:
        calls.append(len(raw))
        return original(raw)

    monkeypatch.setattr(reading, "from_json", look)
    monkeypatch.setattr(QueryRequest, "model_validate_json", validate)
    return calls


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt":"x","z":[' + (b"[" * 50 + b"]" * 50 + b",") * 98_000 + b"1]}",
        b'{"prompt":"x","z":[' + b"[]," * 3_000_000 + b"1]}",
        b'{"prompt":"x","allowed_tools":[' + b"[]," * 3_000_000 + b"1]}",
        b'{"prompt":"x","z":[' + b'{"a":1},' * 1_200_000 + b"1]}",
        b'{"prompt":"x","z":[' + b"1," * 4_900_000 + b"1]}",
        b'{"prompt":"x","z":[' + b'"",' * 3_300_000 + b"1]}",
        b'{"prompt":"x","z":[' + rb'"\\","\"",' * 1_000_000 + b"1]}",
        b"{" + b",".join(b'"k%d":1' % n for n in range(600_000)) + b"}",
        b"[" + b"[]," * 3_000_000 + b"1]",
    ],
    ids=["nested", "lists", "tools", "objects", "numbers", "strings", "escapes", "fields", "list"],
)
def test_a_body_of_very_many_parts_is_refused_unparsed(raw: bytes, parsed: list[int]) -> None:
    code, detail = refusal(raw)
    assert code == "invalid_request"
    assert "the body has more than 2000 lists, objects, fields and items" in detail
    assert parsed == [SMALL]


@pytest.mark.parametrize(
    "prompt", ["[{,:", '"', "\\", '\\"[', '"\\', "[],\n", 'a"],["', '\\\\"{,', "é,日本"]
)
def test_nothing_within_a_string_is_counted(prompt: str, parsed: list[int]) -> None:
    raw = json.dumps({"prompt": prompt * 100_000, "allowed_tools": ["a"] * 200}).encode()
    assert read_model(QueryRequest, raw, Source.BODY).prompt == prompt * 100_000
    assert parsed == [len(raw)]


@pytest.mark.parametrize("item", ["[]", "{}", '"["', '"\\\\"', '"\\""', "1"])
def test_as_many_parts_as_are_allowed_are_parsed_and_not_one_more(item: str) -> None:
    # The object, the comma before `z`, and its list are three.
    own = 2 if item in ("[]", "{}") else 1
    items = (MOST_PARTS - 3 + 1) // own
    most = '{"prompt":"x","z":[' + ",".join([item] * items) + "]}" + " " * SMALL
    more = most.replace("]}  ", "," + item + "]}")
    assert "z: unknown field" in refusal(most.encode())[1]
    assert "the body has more than" in refusal(more.encode())[1]


@given(
    st.recursive(
        st.none() | st.integers() | st.text('"\\[]{},:a'),
        lambda inner: st.lists(inner) | st.dictionaries(st.text('"\\[]{},:a'), inner),
    )
)
def test_the_count_is_that_of_the_lists_objects_fields_and_items(value: object) -> None:
    def marks(one: object) -> int:
        if isinstance(one, dict):
            inner = list(cast("dict[str, object]", one).values())
        elif isinstance(one, list):
            inner = cast("list[object]", one)
        else:
            return 0
        return 1 + max(0, len(inner) - 1) + sum(marks(each) for each in inner)

    assert reading.count_parts(json.dumps(value).encode()) == marks(value)


def test_the_count_is_right_for_as_many_strings_as_there_can_be() -> None:
    raw = json.dumps({f"[{n}": "[" for n in range(MOST_PARTS)}).encode()
    assert reading.count_parts(raw) == MOST_PARTS


@pytest.mark.parametrize(
    "raw",
    [b"Hello, world, " * 1_000_000, b"[" * 1_000_000, b'"' * 1_000_000, b"{" * 1_000_000],
    ids=["text", "lists", "quotes", "objects"],
)
def test_what_is_not_json_is_called_so_however_long(raw: bytes) -> None:
    assert refusal(raw)[0] == "malformed_json"
