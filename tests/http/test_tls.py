"""TLS: what is offered, what is refused, and how long a handshake may take."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trustme

from session_http.tls import BadCertificate, Tls
from session_http.wire import ConnectionLimits
from tests.http.contract import parse_stream
from tests.http.h2_client import http2
from tests.http.servers import (
    BOTH_LOOPS,
    PATIENCE_S,
    Address,
    World,
    eventually,
    on_hypercorn,
    world,
)
from tests.http.test_serve import is_idle, script

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BOTH_LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Both loops: each has a TLS of its own."""
    return request.param


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def issue(authority: trustme.CA, directory: Path, name: str = "localhost") -> Tls:
    """Return a certificate from this authority, in files of this directory."""
    issued = authority.issue_cert(name, "127.0.0.1")
    tls = Tls(directory / "cert.pem", directory / "key.pem")
    tls.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    tls.key.write_bytes(issued.private_key_pem.bytes())
    return tls


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> Tls:
    made = issue(authority, tmp_path)
    made.load()
    return made


def trusting(authority: trustme.CA, *protocols: str) -> ssl.SSLContext:
    """Return what a client connects with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    cast(Any, authority).configure_trust(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


@asynccontextmanager
async def serving(tls: Tls, **options: Any) -> AsyncGenerator[tuple[World, Address]]:
    async with world(script) as one, on_hypercorn(one, tls=tls, **options) as address:
        yield one, address


@asynccontextmanager
async def httpx_client(
    address: Address, authority: trustme.CA, *, http2: bool
) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{address.port}",
        verify=trusting(authority),
        http2=http2,
        timeout=PATIENCE_S,
    ) as client:
        yield client


@pytest.mark.parametrize("http2", [True, False])
async def test_a_client_asks_streams_and_resumes(
    http2: bool, tls: Tls, authority: trustme.CA
) -> None:
    async with serving(tls) as (one, address):
        async with httpx_client(address, authority, http2=http2) as client:
            answer = await client.post("/query", json={"prompt": "hi"})
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            assert answer.json()["response"] == "You said: hi"
            session = f"/session/{answer.json()['session_id']}"
            await one.supervisor.close(answer.json()["session_id"])
            started = (await client.post("/session/start", json={})).json()
            session = f"/session/{started['session_id']}"
            stream = await client.post(f"{session}/query", json={"prompt": "hi", "stream": True})
            events = parse_stream(stream.content)
            assert events[-1].data["response"] == "You said: hi"
            had = events[0].id
            async with client.stream(
                "GET", f"{session}/events", headers={"last-event-id": str(had)}
            ) as rest:
                first = b""
                async for piece in rest.aiter_bytes():
                    first += piece
                    if b'"done"' in first:
                        break
            assert parse_stream(first)[0].id == events[1].id
            await client.delete(session)
        await is_idle(one)


async def test_http_2_is_only_offered_where_it_may_be(tls: Tls, authority: trustme.CA) -> None:
    async with (
        serving(tls, http2=False) as (_, address),
        httpx_client(address, authority, http2=True) as client,
    ):
        assert (await client.get("/health")).http_version == "HTTP/1.1"


async def test_many_streams_share_an_encrypted_connection(tls: Tls, authority: trustme.CA) -> None:
    context = trusting(authority, "h2")
    async with serving(tls) as (one, address), http2(address, tls=context) as client:
        session = await one.supervisor.start()
        path = f"/session/{session.session_id}/events"
        numbers = [client.request(path) for _ in range(50)]
        await client.until(lambda: all(client.streams[one].body for one in numbers))
        await (await session.query("hi")).result()
        await client.until(lambda: all(b'"done"' in client.streams[one].body for one in numbers))


async def test_a_stop_ends_encrypted_connections_too(tls: Tls, authority: trustme.CA) -> None:
    async with world(script) as one, asyncio.timeout(PATIENCE_S):
        async with on_hypercorn(one, tls=tls) as address:
            clients = [
                await asyncio.open_connection(
                    address.host, address.port, ssl=trusting(authority, protocol)
                )
                for protocol in ("h2", "http/1.1")
            ]
        for reader, writer in clients:
            await reader.read()
            assert reader.at_eof()
            writer.close()


# -- clients without manners -------------------------------------------------------------------


async def test_a_handshake_that_does_not_end_is_ended(tls: Tls) -> None:
    limits = ConnectionLimits(handshake_s=0.3)
    async with serving(tls, limits=limits) as (one, address):
        async with asyncio.timeout(PATIENCE_S):
            for data in (b"", b"\x16\x03\x01\x02\x00\x01"):
                reader, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(data)
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
                writer.close()
        await is_idle(one)


async def test_handshakes_count_as_connections(tls: Tls, authority: trustme.CA) -> None:
    limits = ConnectionLimits(handshake_s=1.0)
    async with serving(tls, limits=limits, max_connections=5) as (_, address):
        silent = [await asyncio.open_connection(address.host, address.port) for _ in range(5)]
        async with httpx_client(address, authority, http2=True) as client:
            with pytest.raises(httpx.TransportError):
                await client.get("/health")

            async def served() -> bool:
                try:
                    return (await client.get("/health")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(served)
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 500])
async def test_what_is_no_tls_is_closed(
    data: bytes, tls: Tls, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tls) as (one, address):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionResetError):
                await reader.read()
        writer.close()
        async with httpx_client(address, authority, http2=True) as client:
            assert (await client.get("/health")).status_code == 200
        await is_idle(one)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_old_versions_are_refused(tls: Tls, authority: trustme.CA) -> None:
    context = trusting(authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(tls) as (_, address):
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection(address.host, address.port, ssl=context)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
async def test_openssl_agrees(tls: Tls) -> None:
    async with serving(tls) as (_, address):
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{address.port}", "-alpn", "h2"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
    assert b"ALPN protocol: h2" in said
    assert b"TLSv1.3" in said


# -- the files ---------------------------------------------------------------------------------


async def test_new_files_are_shown_to_new_connections(
    tls: Tls, authority: trustme.CA, tmp_path: Path
) -> None:
    async def serial(address: Address) -> str:
        _, writer = await asyncio.open_connection(
            address.host, address.port, ssl=trusting(authority)
        )
        shown: dict[str, Any] = writer.get_extra_info("peercert")
        writer.close()
        return str(shown["serialNumber"])

    async with serving(tls) as (_, address):
        first = await serial(address)
        issue(authority, tmp_path)
        assert await serial(address) == first
        tls.load()
        second = await serial(address)
        assert second != first
        key = tls.key.read_bytes()
        issue(authority, tmp_path)
        tls.key.write_bytes(key)  # which belongs to the certificate before
        with pytest.raises(BadCertificate):
            tls.load()
        assert await serial(address) == second


def test_files_that_cannot_be_used_are_named(tmp_path: Path, authority: trustme.CA) -> None:
    tls = issue(authority, tmp_path)
    key = tls.key.read_bytes()

    def fails(message: str) -> None:
        with pytest.raises(BadCertificate, match=message):
            tls.load()

    tls.key.write_bytes(issue(authority, tmp_path).key.read_bytes())
    tls.load()
    tls.key.write_bytes(key)
    fails("do not belong together")
    tls.key.write_text("nonsense")
    fails(r"key\.pem cannot be used: one of them is no PEM file")
    tls.key.unlink()
    fails(r"The TLS key .*key\.pem cannot be read: No such file")
    tls.key.write_bytes(key)
    tls.cert.write_text("")
    fails(r"cert\.pem .*cannot be used")
    tls.cert.unlink()
    fails(r"The TLS certificate .*cert\.pem cannot be read")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_a_key_with_a_passphrase_is_said_so_and_nobody_is_asked(
    tmp_path: Path, authority: trustme.CA
) -> None:
    tls = issue(authority, tmp_path)
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", tls.key, "-aes128", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    with pytest.raises(BadCertificate, match=r"locked\.pem has a passphrase"):
        Tls(tls.cert, locked).load()
