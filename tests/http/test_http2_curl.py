"""curl over HTTP/2, in each of the ways to come by it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trustme

from session_http.tls import Tls
from tests.http.contract import parse_stream
from tests.http.servers import Address, World, on_hypercorn, world
from tests.http.test_serve import script
from tests.http.test_tls import issue


def curl_has_http2() -> bool:
    if shutil.which("curl") is None:
        return False
    return b"HTTP2" in subprocess.run(["curl", "--version"], capture_output=True, check=True).stdout


pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not curl_has_http2(), reason="needs a curl with HTTP/2"),
]


@pytest.fixture
def anyio_backend() -> object:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(params=["--http2-prior-knowledge", "tls"])
async def server(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncGenerator[tuple[World, list[str]]]:
    """A server, and the beginning of a command that asks it."""
    way: str = request.param
    tls: Tls | None = None
    options = [way]
    if way == "tls":
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "authority.pem")
        tls = issue(authority, tmp_path)
        tls.load()
        options = ["--http2", "--cacert", str(tmp_path / "authority.pem")]
    async with world(script) as one, on_hypercorn(one, tls=tls) as address:
        yield one, ["curl", "-sS", "--max-time", "90", *options, url(address, tls)]


def url(address: Address, tls: Tls | None) -> str:
    return f"{'http' if tls is None else 'https'}://{address.host}:{address.port}"


async def run(command: list[str]) -> bytes:
    """Return what a command prints."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err
    return out


VERSION = ["--output", "/dev/null", "--write-out", "%{http_version} %{http_code}"]


async def test_curl_asks(server: tuple[World, list[str]]) -> None:
    _, command = server
    command[-1] += "/health"
    assert await run([*command, *VERSION]) == b"2 200"
    assert await run([*command, *VERSION, "--head"]) == b"2 200"


async def test_curl_streams(server: tuple[World, list[str]]) -> None:
    one, command = server
    session = await one.supervisor.start()
    command[-1] += f"/session/{session.session_id}/query"
    json_ = ["-H", "content-type: application/json", "-d", '{"prompt": "hi", "stream": true}']
    events = parse_stream(await run([*command, *json_]))
    assert events[-1].data["response"] == "You said: hi"


async def test_curl_sends_much(server: tuple[World, list[str]], tmp_path: Path) -> None:
    _, command = server
    command[-1] += "/query"
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"prompt": "x" * 3_000_000}))
    json_ = ["-H", "content-type: application/json", "--data-binary", f"@{body}"]
    said = await run([*command, *json_])
    assert len(said) > 3_000_000
