"""The load client: it understands HTTP however it is cut, and says what went wrong."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from bench.suite.reading import read
from bench.suite.stamps import is_whole, plain_word, word, words
from bench.suite.wire import Chunks, Client, Failed, events
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.tiny import Asked, chunk, json_answer, saying, stream_answer, tiny

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TEXT = b'{"type":"text","content":"%s"}'
DONE = b'{"type":"done"}'


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.data())
def test_chunks_are_taken_apart_wherever_they_are_cut(
    contents: list[bytes], data: st.DataObject
) -> None:
    coded = b"".join(map(chunk, contents)) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=6)))
    chunks = Chunks()
    found = b""
    for begin, end in zip([0, *cuts], [*cuts, len(coded)], strict=True):
        assert not chunks.over or begin == len(coded)
        found += chunks.feed(coded[begin:end])
    assert found == b"".join(contents)
    assert chunks.over


def test_a_trailer_belongs_to_the_end() -> None:
    chunks = Chunks()
    assert chunks.feed(b"2;name=value\r\nab\r\n0\r\nx: y\r\n") == b"ab"
    assert not chunks.over
    chunks.feed(b"\r\n")
    assert chunks.over


async def test_a_connection_is_used_again() -> None:
    async with tiny(saying(json_answer(b'{"a": 1}'))) as server:
        client = server.client()
        answers = [(await client.ask("POST", "/x", {"b": 2})).json() for _ in range(3)]
        client.close()
    assert answers == [{"a": 1}] * 3
    assert server.connections == 1
    assert [(one.method, one.path, json.loads(one.body)) for one in server.asked] == [
        ("POST", "/x", {"b": 2})
    ] * 3


async def test_what_is_asked_at_the_same_time_has_connections_of_its_own() -> None:
    async with tiny(saying(json_answer(b"{}"))) as server:
        client = server.client()
        await asyncio.gather(*(client.ask("GET", "/") for _ in range(3)))
        client.close()
    assert server.connections == 3


@pytest.mark.parametrize(
    "pieces",
    [
        (json_answer(b'{"a": 1}'),),
        (b"HTTP/1.1 200 OK\r\ncontent-le", b'ngth: 8\r\n\r\n{"a"', b": 1}"),
        (HEAD + chunk(b'{"a"'), chunk(b": 1}") + b"0\r\n\r", b"\n"),
        (HEAD, b"8\r", b'\n{"a": 1}\r\n0\r\n\r\n'),
    ],
    ids=["at once", "in pieces", "end cut", "chunk cut"],
)
async def test_an_answer_is_whole_however_it_comes(pieces: tuple[bytes, ...]) -> None:
    async with tiny(saying(*pieces)) as server:
        client = server.client()
        for _ in range(2):  # the second one shows that nothing was left over
            assert (await client.ask("GET", "/")).json() == {"a": 1}
        client.close()
    assert server.connections == 1


async def test_an_answer_may_end_with_its_connection() -> None:
    answer = b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{"a": 1}'
    async with tiny(saying(answer, close=True)) as server:
        client = server.client()
        assert (await client.ask("GET", "/")).json() == {"a": 1}
        assert (await client.ask("GET", "/")).json() == {"a": 1}
        client.close()
    assert server.connections == 2


async def test_events_have_the_time_at_which_they_came() -> None:
    first, second = chunk(b"data: " + TEXT % b"a" + b"\n\n"), chunk(b"data: " + DONE + b"\n\n")
    came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def respond(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + first)
        await came
        await asyncio.sleep(0.1)
        writer.write(second + b"0\r\n\r\n")

    async with tiny(respond) as server:
        client = server.client()
        exchange = await client.ask("POST", "/query", {}, text=came)
        client.close()
    (early, text), (late, done) = events(exchange)
    assert (text["type"], done["type"]) == ("text", "done")
    assert late - early > 0.08e9
    said = read(exchange)
    assert said.first_text_ns == early
    assert said.text == "a"


async def test_the_first_text_is_told_while_the_stream_goes_on() -> None:
    go_on = asyncio.Event()

    async def respond(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(b'data: {"type": "text", "content": "a"}\n\n'))
        await go_on.wait()
        writer.write(chunk(b"data: " + DONE + b"\n\n") + b"0\r\n\r\n")

    async with tiny(respond) as server:
        client = server.client()
        text: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer = asyncio.ensure_future(client.ask("POST", "/query", {}, text=text))
        await asyncio.wait_for(text, 60.0)
        assert not answer.done()
        go_on.set()
        assert read(await answer).text == "a"
        client.close()


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ((json_answer(b'{"detail": "no", "code": "queue_full"}', "429 Too"),), "429 queue_full"),
        ((json_answer(b'{"detail": "no"}', "500 Oh"),), "500"),
        ((b"HTTP/1.1 502 Bad\r\ncontent-length: 4\r\n\r\noops",), "502"),
        ((json_answer(b"[]"),), "not a JSON object"),
        ((json_answer(b"{"),), "not JSON"),
        ((b"SSH-2.0\r\n\r\n",), "not HTTP"),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab",), "connection lost"),
        ((HEAD + b"zz\r\n\r\n",), "not HTTP"),
    ],
)
async def test_failures_are_counted_by_what_they_are(pieces: tuple[bytes, ...], code: str) -> None:
    async with tiny(saying(*pieces, close=True)) as server:
        client = server.client()
        with pytest.raises(Failed) as failure:
            (await client.ask("GET", "/")).json()
        client.close()
    assert failure.value.code == code


async def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    async with tiny(saying(b"HTTP/1.1 200 OK\r\n")) as server:
        client = server.client(timeout_s=0.1)
        with pytest.raises(Failed, match="no answer in time"):
            await client.ask("GET", "/")
        client.close()


async def test_a_server_that_is_not_there_is_said_to_be_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # so that nobody else can come to listen there
        port = taken.getsockname()[1]
        with pytest.raises(Failed, match="no connection"):
            await Client(f"http://127.0.0.1:{port}").ask("GET", "/")


async def test_a_path_of_the_url_and_headers_go_with_each_request() -> None:
    async with tiny(saying(json_answer(b"{}"))) as server:
        client = Client(f"{server.url}/agents/", headers={"authorization": "Bearer k"})
        await client.ask("GET", "/health")
        client.close()
    (asked,) = server.asked
    assert (asked.path, asked.headers["authorization"]) == ("/agents/health", "Bearer k")


@pytest.mark.parametrize("url", ["localhost:3000", "ftp://localhost", "http://"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL of a server"):
        Client(url)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([TEXT % b"a"], "stream without end"),
        ([TEXT % b"a", b'{"type":"error","code":"upstream"}'], "error upstream"),
        ([b'{"type":"error","error":"x"}'], "error without a code"),
        ([TEXT % b"a", b'{"type":"discard","after":0}', DONE], "text withdrawn"),
        ([b"{", DONE], "broken event"),
    ],
)
async def test_a_stream_that_did_not_go_well_is_a_failure(sent: list[bytes], code: str) -> None:
    async with tiny(saying(stream_answer(sent))) as server:
        client = server.client()
        exchange = await client.ask("POST", "/query", {})
        client.close()
    with pytest.raises(Failed) as failure:
        read(exchange)
    assert failure.value.code == code


async def test_lag_is_from_when_a_word_was_said_and_each_word_of_an_event_counts() -> None:
    said = (word(0) + word(1)).encode()
    async with tiny(saying(stream_answer([TEXT % said, DONE]))) as server:
        client = server.client()
        await asyncio.sleep(0.05)
        result = read(await client.ask("POST", "/query", {}))
        client.close()
    assert (result.events, result.deltas, len(result.lags_ns)) == (2, 2, 2)
    assert all(0.05e9 < lag < 60e9 for lag in result.lags_ns)


def test_a_text_of_words_shows_what_is_missing() -> None:
    text = "".join(map(word, range(4)))
    assert is_whole(text, 4)
    assert is_whole(plain_word(0) + plain_word(1), 2)
    assert [one.number for one in words(text)] == [0, 1, 2, 3]
    assert not is_whole(text, 5)
    assert not is_whole(word(0) + word(2), 2)
    assert not is_whole(word(0) + word(0) + word(1), 2)
    assert not is_whole(word(1) + word(0), 2)
    assert not is_whole(word(0) + "?" + word(1), 2)
