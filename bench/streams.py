"""Many readers of live turns: what arrives, how soon, how evenly, and what one costs.

`python -m bench.streams`; see `README.md`. The server is a process of its own with a scripted
agent, so the load is the layer's alone. The readers share another process, which does as little as
it can for each event: it notes the time, and hangs up at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bench.arguments import amount, count
from bench.processes import Memory, Server, clean_surroundings, cpu_s, serving
from bench.quantiles import Summary, quantile
from bench.report import Run, table
from bench.sse_client import SseClient
from session_http.serve import raise_file_limit, run

LIMIT_S = 300.0
"""Seconds after which a run is given up."""

AT_ONCE = 64
"""Connections that are made at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run was told.

    Attributes:
        streams: Readers at the same time, each of a turn of its own.
        tokens: Deltas of a turn.
        delay_ms: Time between two deltas, milliseconds.
        slow: Share of readers that read nothing for as long as a turn lasts, in the second part.
    """

    streams: int = 1_000
    tokens: int = 60
    delay_ms: float = 250.0
    slow: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """All readers at once.

    Attributes:
        readers: Those that read as fast as they can; everything below is about them, but memory.
        slow: Those that did not read.
        events: Deltas that arrived, and how many were sent as events of their own or with others.
        rate: Deltas that arrived in a second, all readers together, while all of them read.
        wanted: The rate at which the agents spoke.
        first_text: From the request to the first text, milliseconds.
        gaps: Between two arrivals of text on one stream, milliseconds.
        server_cpu: Share of one processor that the server took.
        client_cpu: Share of one that the readers took: near 1, the times are theirs.
        per_stream: What the server's own memory grew by for one reader and its session, bytes.
        whole: Readers whose text was the whole answer.
    """

    readers: int
    slow: int
    events: int
    rate: float
    wanted: float
    first_text: Summary
    gaps: Summary
    server_cpu: float
    client_cpu: float
    per_stream: float
    whole: int


@dataclass(slots=True)
class Reader:
    """One stream being read, by a protocol instead of a task: it must cost little."""

    asked_at: float = 0.0
    arrivals: list[float] = dataclasses.field(default_factory=list[float])
    content: bytearray = dataclasses.field(default_factory=bytearray)


class _Protocol(asyncio.Protocol):
    def __init__(self, reader: Reader, request: bytes, over: asyncio.Future[None]) -> None:
        self._reader = reader
        self._request = request
        self._over = over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it
        self._reader.asked_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if b'"type":"text"' in data or b'"type": "text"' in data:
            self._reader.arrivals.append(time.perf_counter())
        self._reader.content += data
        if self._reader.content.endswith(b"\r\n0\r\n\r\n"):
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over.done():
            self._over.set_result(None)


async def measure(settings: Settings) -> Sequence[Part]:
    """Read with readers that are all fast, and then with some that are slow."""
    arguments = (
        *("--tokens", str(settings.tokens), "--delay-ms", str(settings.delay_ms)),
        *("--max-sessions", str(settings.streams)),
    )
    parts: list[Part] = []
    async with asyncio.timeout(LIMIT_S):
        for share in (0.0, settings.slow):
            async with serving("bench.scripted_server", arguments) as server:
                parts.append(await _part(server, settings, slow=int(settings.streams * share)))
    return parts


async def _part(server: Server, settings: Settings, *, slow: int) -> Part:
    paths = await _sessions(server, settings.streams)
    before = Memory.of(server.pid).uss
    spent, own = cpu_s(server.pid), time.process_time()
    began = time.perf_counter()
    readers = [Reader() for _ in range(settings.streams - slow)]
    loop = asyncio.get_running_loop()
    ends = [loop.create_future() for _ in readers]
    stuck = [await _ask_and_do_not_read(server, path) for path in paths[len(readers) :]]
    try:
        for first in range(0, len(readers), AT_ONCE):
            await asyncio.gather(
                *(
                    loop.create_connection(
                        lambda n=n: _Protocol(readers[n], _request(server, paths[n]), ends[n]),  # type: ignore[misc]
                        *server.address,
                    )
                    for n in range(first, min(first + AT_ONCE, len(readers)))
                )
            )
        asked_s = time.perf_counter() - began
        await asyncio.sleep(settings.tokens * settings.delay_ms / 1000 / 2)
        grown = Memory.of(server.pid).uss - before
        await asyncio.gather(*ends)
    finally:
        for one in stuck:
            one.close()
    took = time.perf_counter() - began
    return _result(
        readers,
        settings,
        slow=slow,
        grown=grown,
        asked_s=asked_s,
        server_cpu=(cpu_s(server.pid) - spent) / took,
        client_cpu=(time.process_time() - own) / took,
    )


def _result(
    readers: Sequence[Reader],
    settings: Settings,
    *,
    slow: int,
    grown: int,
    asked_s: float,
    server_cpu: float,
    client_cpu: float,
) -> Part:
    texts = [_text(reader.content) for reader in readers]
    whole = " ".join(f"w{n:03}" for n in range(settings.tokens))
    gaps = [
        (later - earlier) * 1000
        for reader in readers
        for earlier, later in zip(reader.arrivals, reader.arrivals[1:], strict=False)
    ]
    arrivals = sorted(at for reader in readers for at in reader.arrivals)
    # While all of them read: between the last first text and the first last one.
    begin = max(reader.arrivals[0] for reader in readers)
    end = min(reader.arrivals[-1] for reader in readers)
    if end <= begin:
        begin, end = quantile(arrivals, 0.1), quantile(arrivals, 0.9)
    deltas = settings.tokens * len(readers)
    share = deltas / len(arrivals)  # deltas that one arrival carries
    within = sum(1 for at in arrivals if begin <= at < end)
    return Part(
        readers=len(readers),
        slow=slow,
        events=sum(text[1] for text in texts),
        rate=within * share / (end - begin),
        wanted=len(readers) * 1000 / settings.delay_ms,
        first_text=Summary.of(
            [(reader.arrivals[0] - reader.asked_at) * 1000 for reader in readers]
        ),
        gaps=Summary.of(gaps),
        server_cpu=server_cpu,
        client_cpu=client_cpu,
        per_stream=grown / (len(readers) + slow),
        whole=sum(text[0] == whole for text in texts),
    )


def _text(content: bytes | bytearray) -> tuple[str, int]:
    """Return the text of a stream, and the events that it came in."""
    pieces = [
        json.loads(line[5:])["content"]
        for line in content.split(b"\n")
        if line.startswith(b"data:") and b'"text"' in line[:24]
    ]
    return "".join(pieces), len(pieces)


async def _sessions(server: Server, number: int) -> Sequence[str]:
    async with SseClient(*server.address) as client:
        return [
            f"/session/{(await client.post('/session/start', {}))['session_id']}/query"
            for _ in range(number)
        ]


def _request(server: Server, path: str) -> bytes:
    content = json.dumps({"prompt": "ping", "stream": True}).encode()
    host, port = server.address
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _ask_and_do_not_read(server: Server, path: str) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    one.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(one, server.address)
    await loop.sock_sendall(one, _request(server, path))
    return one


def text_of(parts: Sequence[Part]) -> str:
    """Return the report for people."""
    return table(
        (
            "readers",
            "slow",
            "deltas/s",
            "spoken/s",
            "first p50",
            "p99",
            "gap p50",
            "p99",
            "longest",
            "CPU server",
            "client",
            "kB/stream",
            "whole",
        ),
        [
            (
                str(part.readers),
                str(part.slow),
                f"{part.rate:,.0f}",
                f"{part.wanted:,.0f}",
                f"{part.first_text.p50:,.0f}",
                f"{part.first_text.p99:,.0f}",
                f"{part.gaps.p50:,.0f}",
                f"{part.gaps.p99:,.0f}",
                f"{part.gaps.greatest:,.0f}",
                f"{part.server_cpu:.2f}",
                f"{part.client_cpu:.2f}",
                f"{part.per_stream / 1000:.1f}",
                str(part.whole),
            )
            for part in parts
        ],
    )


def main() -> None:
    """Run the benchmark."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m bench.streams", description="Read many live turns at the same time."
    )
    parser.add_argument("--streams", type=count, default=default.streams, help="readers at once")
    parser.add_argument("--tokens", type=count, default=default.tokens, help="deltas of a turn")
    parser.add_argument("--delay-ms", type=amount, default=default.delay_ms, help="between deltas")
    parser.add_argument("--slow", type=amount, default=default.slow, help="share that is slow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    settings = Settings(
        streams=options.streams,
        tokens=options.tokens,
        delay_ms=options.delay_ms,
        slow=options.slow,
    )
    raise_file_limit()
    circumstances = Run.begin("streams", dataclasses.asdict(settings))
    print(circumstances.heading(), end="\n\n", flush=True)
    with clean_surroundings():
        parts = run(measure(settings))
    print("Times in milliseconds, shares of one processor\n" + text_of(parts))
    if options.json is not None:
        circumstances.write(options.json, parts)


if __name__ == "__main__":
    main()
