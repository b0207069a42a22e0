"""The table of attacks: what is sent, and what must come back.

Two kinds. After what is no HTTP the connection is closed, for nobody can tell where the next
request begins. After what is HTTP, though the API may refuse it, the connection must be in step:
the next request on it is answered as if nothing had been.

`/session/x/interrupt` is where most bodies go: it takes one, starts nothing, and its 404 shows
that the body was read to its end and understood.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from tests.http.hostile.client import HOST, JSON, chunk, chunked, get, head, post

INTERRUPT = b"/session/x/interrupt"
CHUNKED = (b"Transfer-Encoding", b"chunked")


@dataclass(frozen=True, slots=True)
class Attack:
    """One request, or what shall pass for one.

    Attributes:
        name: What is wrong with it.
        data: Its bytes.
        status: What it is answered with.
        code: The error's code; None: the answer has none.
        closes: Whether the connection is closed after the answer.
    """

    name: str
    data: bytes
    status: int
    code: str | None = None
    closes: bool = False


def refused(name: str, data: bytes) -> Attack:
    """Return an attack that is no HTTP."""
    return Attack(name, data, 400, "malformed_http", closes=True)


def too_long(name: str, data: bytes) -> Attack:
    """Return an attack with more of a head than anybody needs."""
    return Attack(name, data, 431, "headers_too_large", closes=True)


def understood(name: str, data: bytes) -> Attack:
    """Return an attack that is none: it is unusual, and served."""
    return Attack(name, data, 404, "session_not_found")


def told(*fields: tuple[bytes, bytes], body: bytes = b"{}") -> bytes:
    """Return a request that says in its own words where its body ends."""
    return head(b"POST", INTERRUPT, HOST, JSON, *fields) + body


# -- where a body ends -------------------------------------------------------------------------

SMUGGLED = b"0\r\n\r\nDELETE /session/victim HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""An empty body and a request to one reader, a body of some length to another."""

LENGTHS = (b"-1", b"+2", b"0x2", b"2.0", b"", b"2_0", b"1e1", b"\xb2", b"2, 3", b"2 2", b"9" * 30)
CODINGS = (b"gzip", b"gzip, chunked", b"identity", b"chunked, chunked", b"xchunked", b"chunked;q=1")
NOT_CHUNKS = (
    b"z\r\n{}\r\n0\r\n\r\n",
    b"-2\r\n{}\r\n0\r\n\r\n",
    b"+2\r\n{}\r\n0\r\n\r\n",
    b"0x2\r\n{}\r\n0\r\n\r\n",
    b"2\r\n{}0\r\n\r\n",
    b"2\r\n{}XX0\r\n\r\n",
    b"2\r\n{}\n0\r\n\r\n",
    b"\r\n{}\r\n0\r\n\r\n",
    b"1" * 21 + b"\r\n{}",
    b"2\r\n{}\r\n0\r\nX\0: y\r\n\r\n",
    b"2\r\n{}\r\n0\r\nno colon\r\n\r\n",
)


def framings() -> Iterator[Attack]:
    """Yield lengths, codings and chunks that are wrong, or that two readers read differently."""
    for length in LENGTHS:
        yield refused(f"length {length[:10]!r}", told((b"Content-Length", length)))
    two, three = (b"Content-Length", b"2"), (b"Content-Length", b"3")
    yield refused("lengths that differ", told(two, three))
    yield understood("lengths that agree", told(two, two))
    yield understood("lengths that agree in one field", told((b"Content-Length", b"2, 2")))
    for coding in CODINGS:
        body = b"2\r\n{}\r\n0\r\n\r\n"
        yield refused(f"coding {coding!r}", told((b"Transfer-Encoding", coding), body=body))
    yield refused("two codings", told(CHUNKED, (b"Transfer-Encoding", b"identity")))
    yield refused("a space before the colon", told((b"Transfer-Encoding ", b"chunked"), two))
    yield refused("a coding behind a control", told((b"Transfer-Encoding", b"\x0bchunked"), two))
    whole = (b"Content-Length", b"%d" % len(SMUGGLED))
    for name, fields in (
        ("a length and chunks", (whole, CHUNKED)),
        ("chunks and a length", (CHUNKED, whole)),
        ("a short length and chunks", ((b"Content-Length", b"5"), CHUNKED)),
    ):
        data = told(*fields, body=SMUGGLED)
        yield Attack(name, data, 400, "invalid_request", closes=True)
        elsewhere = data.replace(INTERRUPT, b"/nowhere")
        yield Attack(f"{name}, elsewhere", elsewhere, 400, "invalid_request", closes=True)
    old = chunked(INTERRUPT, b"{}").replace(b"HTTP/1.1", b"HTTP/1.0")
    yield Attack("chunks in HTTP/1.0", old, 404, "session_not_found", closes=True)
    yield understood(
        "a folded coding",
        told((b"Transfer-Encoding", b"\r\n chunked"), body=b"2\r\n{}\r\n0\r\n\r\n"),
    )
    for body in NOT_CHUNKS:
        yield refused(f"chunk {body[:16]!r}", told(CHUNKED, body=body))
    for body in (b"2\n{}\n0\n\n", b"f" * 17 + b"\r\n{}", b"2\r\n{}", chunk(b"{}")):
        data = told(CHUNKED, body=body)
        yield Attack(f"no end {body[:10]!r}", data, 408, "request_timeout", closes=True)
    for body in (
        b"02\r\n{}\r\n0\r\n\r\n",
        b"2 \r\n{}\r\n0\r\n\r\n",
        b"2;a=b\r\n{}\r\n0\r\n\r\n",
        b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX: y\r\n\r\n",
    ):
        yield understood(f"chunk {body[:12]!r}", told(CHUNKED, body=body))
    for name, body in (
        ("a long extension", b"2;" + b"a" * 70_000 + b"\r\n{}\r\n0\r\n\r\n"),
        ("long trailers", b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n"),
    ):
        yield too_long(name, told(CHUNKED, body=body))
    short = post(INTERRUPT, b"{", length=99)
    yield Attack("shorter than its length", short, 408, "request_timeout", closes=True)
    yield Attack(
        "a body where none belongs", get(b"/health", (b"Content-Length", b"2")) + b"{}", 200
    )


# -- heads ---------------------------------------------------------------------------------------

VERSIONS = (b"HTTP/11", b"http/1.1", b"HTTP/1.1.1", b"HTTP/1", b"", b"FOO/1.1", b"HTTP/1.1 x")
METHODS = (b"PUT", b"PATCH", b"TRACE", b"CONNECT", b"PROPFIND", b"X" * 5_000)
NOT_METHODS = (b"", b"G T", b"G\0T", b"G(T", b"\xff")


def heads() -> Iterator[Attack]:
    """Yield request lines and header fields that are wrong, or more than anybody needs."""
    for method in METHODS:
        data = head(method, b"/health", HOST)
        yield Attack(f"method {method[:10]!r}", data, 405, "method_not_allowed")
    for method in NOT_METHODS:
        yield refused(f"method {method!r}", head(method, b"/health", HOST))
    for version in VERSIONS:
        data = b"GET /health %s\r\nHost: localhost\r\n\r\n" % version
        yield refused(f"version {version!r}", data)
    old = b"GET /health HTTP/1.0\r\n\r\n"
    yield Attack("HTTP/1.0 without a host", old, 200, closes=True)
    yield refused("HTTP/0.9", b"GET /health\r\n\r\n")
    yield refused("noise", b"\0\1\2\3" * 10 + b"\r\n\r\n")
    yield refused("a TLS greeting", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n")
    for name, fields in (
        ("no host", ()),
        ("two hosts", (HOST, HOST)),
        ("NUL in a value", (HOST, (b"X", b"a\0b"))),
        ("NUL in a name", (HOST, (b"X\0", b"ab"))),
        ("a return in a value", (HOST, (b"X", b"a\rb"))),
        ("no name", (HOST, (b"", b"ab"))),
        ("a space in a name", (HOST, (b"X Y", b"ab"))),
        ("a name of other letters", (HOST, (b"\xc3\xa9", b"ab"))),
    ):
        yield refused(name, head(b"GET", b"/health", *fields))
    yield refused("no colon", b"GET /health HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n")
    yield refused("a fold before any field", b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n")
    yield Attack("a folded field", get(b"/health", (b"X", b"a\r\n b")), 200)
    yield Attack("bare line feeds", b"GET /health HTTP/1.1\nHost: localhost\n\n", 200)
    yield Attack("bytes that are no text", get(b"/health", (b"X", b"\xff\xfe")), 200)
    yield Attack("some hundred fields", get(b"/health", *([(b"X", b"y")] * 300)), 200)
    yield too_long("10,000 fields", get(b"/health", *([(b"X-Some", b"y")] * 10_000)))
    yield too_long("a value of 1 MB", get(b"/health", (b"X", b"y" * 1_000_000)))
    yield too_long("a name of 1 MB", get(b"/health", (b"X" * 1_000_000, b"y")))
    yield too_long("a target of 1 MB", get(b"/" + b"a" * 1_000_000))
    yield too_long("a method of 1 MB", head(b"X" * 1_000_000, b"/health", HOST))
    yield Attack(
        "an expectation",
        post(INTERRUPT, b"{}", (b"Expect", b"100-continue")),
        404,
        "session_not_found",
    )
    yield understood("an expectation of nothing", post(INTERRUPT, b"{}", (b"Expect", b"x")))
    upgrade = ((b"Connection", b"Upgrade"), (b"Upgrade", b"TLS/1.0"))
    yield Attack("another protocol offered", get(b"/health", *upgrade), 200)
    socket = (
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Version", b"13"),
        (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    )
    for some in (2, 3, 4):
        yield Attack(f"a WebSocket, {some} fields", get(b"/health", *socket[:some]), 200)
    data = get(b"/health", *socket, (b"Content-Length", b"2")) + b"{}"
    yield Attack("a WebSocket with a body", data, 200)
    yield Attack("nonsense about the connection", get(b"/health", (b"Connection", b"\xff,,x")), 200)


# -- targets ---------------------------------------------------------------------------------------

NOWHERE = (
    b"ftp://localhost/health",
    b"http://localhost/nowhere",
    b"localhost:3000",
    b"*",
    b"health",
    b"?a",
    b"//health",
    b"/health/",
    b"/health;x",
    b"/health#x",
    b"/health%0d%0aX:%20y",
    b"/%",
    b"/%zz",
    b"/%00",
    b"/%ff",
    b"/%252e",
    b"/..",
    b"/./health",
    b"/../health",
    b"/%2e%2e/health",
    b"/\\health",
    b"/assets/../health",
    b"/assets/..%2f..%2fpyproject.toml",
    b"/assets/%2e%2e",
    b"/" + b"a" * 5_000,
)
IDS = (
    b"..",
    b".",
    b"%2e%2e",
    b"%2F",
    b"..%2F..%2Fetc%2Fpasswd",
    b"%00",
    b"a%00b",
    b"%0d%0aSet-Cookie:%20a=b",
    b"%ff%fe",
    b"%F0%9F%98%80",
    b"%E2%80%AE",
    b"%25s%25n",
    b"null",
    b"-1",
    b"{session_id}",
    b"$(id)",
    b"'%20OR%201=1--",
    b"x" * 5_000,
)


def targets() -> Iterator[Attack]:
    """Yield paths, ids and parameters of things that are not there."""
    for target in (b"", b"/a b", b"/\xff", b"/\x7f", b"/\t"):
        yield refused(f"target {target!r}", head(b"GET", target, HOST))
    for target in NOWHERE:
        yield Attack(f"target {target[:40]!r}", get(target), 404, "not_found")
    yield Attack("options of everything", head(b"OPTIONS", b"*", HOST), 404, "not_found")
    for one in IDS:
        code = "not_found" if b"%2F" in one else "session_not_found"
        for path in (b"/session/%s", b"/session/%s/turns", b"/session/%s/events"):
            yield Attack(f"{path!r} {one[:20]!r}", get(path.replace(b"%s", one)), 404, code)
        data = post(b"/session/" + one + b"/query", b'{"prompt": "hi"}')
        yield Attack(f"query of {one[:20]!r}", data, 404, code)
    for query in (b"a=1", b"=", b"%00=1", b"%ff", b"&".join([b"a=1"] * 1_000)):
        data = get(b"/health?" + query)
        yield Attack(f"parameters {query[:10]!r}", data, 400, "invalid_request")
    for target in (b"http://localhost/health", b"HTTP://LOCALHOST:80/health?"):
        yield Attack(f"the target {target!r}", get(target), 200)
    yield Attack("no parameters", get(b"/health?&&&"), 200)


# -- what a body says that it is -------------------------------------------------------------------

NOT_JSON_TYPES = (
    b"",
    b"text/plain",
    b"text/json",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data; boundary=x",
    b"application/jsonp",
    b"application/json, text/plain",
    b"json",
    b"\xff",
    b"a" * 5_000,
)


def types() -> Iterator[Attack]:
    """Yield content types and encodings other than plain JSON."""
    length = (b"Content-Length", b"2")
    for kind in NOT_JSON_TYPES:
        data = head(b"POST", INTERRUPT, HOST, (b"Content-Type", kind), length) + b"{}"
        yield Attack(f"type {kind[:30]!r}", data, 415, "unsupported_media_type")
    data = head(b"POST", INTERRUPT, HOST, length) + b"{}"
    yield Attack("no type", data, 415, "unsupported_media_type")
    for coding in (b"gzip", b"br", b"deflate", b"x", b"gzip, identity"):
        data = post(INTERRUPT, b"{}", (b"Content-Encoding", coding))
        yield Attack(f"encoding {coding!r}", data, 415, "unsupported_media_type")
    yield understood("no encoding", post(INTERRUPT, b"{}", (b"Content-Encoding", b"identity")))


# -- bodies ----------------------------------------------------------------------------------------

NOT_JSON = (
    b"",
    b" ",
    b"{",
    b"}",
    b"[",
    b'{"prompt": "hi"',
    b'{"prompt": "hi",}',
    b'{"prompt": "hi"} x',
    b'{"prompt": "hi"}{"prompt": "hi"}',
    b'{"prompt": "hi"}\0',
    b"{'prompt': 'hi'}",
    b'{prompt: "hi"}',
    b'{"prompt": undefined}',
    b'{"prompt": 01}',
    b'{"prompt": 0x1}',
    b'{"prompt": .5}',
    b'{"prompt": "a\nb"}',
    b'{"prompt": "a\0b"}',
    b'{"prompt": "\\x41"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\\udc00\\ud800"}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "\xc0\xaf"}',
    b'{"prompt": "\xed\xa0\x80"}',
    b'{"prompt": "hi"} // why',
    b"prompt=hi",
    b"<prompt>hi</prompt>",
    b"\xef\xbb\xbf" + b'{"prompt": "hi"}',
    '{"prompt": "hi"}'.encode("utf-16"),
    '{"prompt": "hi"}'.encode("utf-16-be"),
    '{"prompt": "hi"}'.encode("utf-32"),
    b"\x1f\x8b\x08\0",
    b"9" * 10_000,
    b"[" * 1_000_000,
    b'{"a":' * 200_000,
)
NOT_A_REQUEST = (
    b"[]",
    b"null",
    b"true",
    b"NaN",
    b"1e999999",
    b'"hi"',
    b"{}",
    b'{"prompt": NaN}',
    b'{"prompt": null}',
    b'{"prompt": ""}',
    b'{"prompt": " \\n\\t\\u00a0"}',
    b'{"prompt": "\\ufeff"}',
    b'{"prompt": {"prompt": "hi"}}',
    b'{"prompt": "hi", "timeout_s": NaN}',
    b'{"prompt": "hi", "timeout_s": 1e999}',
    b'{"prompt": "hi", "timeout_s": -Infinity}',
    b'{"prompt": "hi", "prompt": "ho"}',
    b'{"prompt": "hi", "pro\\u006dpt": "ho"}',
    b'{"prompt": "hi", "stream": false, "stream": true}',
    b'{"prompt": "hi", "": 1}',
    b'{"prompt": "hi", "__proto__": {}}',
    b'{"Prompt": "hi"}',
    b'{"prompt": "hi", "permission_mode": "root"}',
    b'{"prompt": "hi", "allowed_tools": ["Nope"]}',
    b'{"prompt": "hi", "x": ' + b"[" * 100 + b"]" * 100 + b"}",
    b'{"prompt": "hi", "x": [' + b"1," * 500_000 + b"1]}",
    b"{" + b",".join(b'"%d":1' % n for n in range(100_000)) + b"}",
)


def bodies() -> Iterator[Attack]:
    """Yield bodies that are no JSON, or JSON that is no request."""
    for body in NOT_JSON:
        yield Attack(f"body {body[:30]!r}", post(b"/query", body), 400, "malformed_json")
    for body in NOT_A_REQUEST:
        yield Attack(f"body {body[:50]!r}", post(b"/query", body), 400, "invalid_request")
    long = json.dumps({"prompt": "a" * 1_000_000}).encode()
    yield Attack("a prompt of 1 MB", post(b"/query", long), 200)
    yield Attack("a prompt of 1 MB in chunks", chunked(b"/query", long), 200)
    huge = json.dumps({"prompt": "a" * 20_000_000}).encode()
    yield Attack("a prompt of 20 MB", post(b"/query", huge), 413, "payload_too_large")
    yield Attack("20 MB in chunks", chunked(b"/query", huge), 413, "payload_too_large")
    yield Attack("20 MB to nobody", post(b"/nowhere", huge), 404, "not_found")
    yield Attack(
        "20 MB to a page",
        get(b"/health", (b"Content-Length", b"20000000")) + huge[:20_000_000],
        200,
    )


ATTACKS = (*framings(), *heads(), *targets(), *types(), *bodies())
