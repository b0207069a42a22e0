"""The server starts and ends cleanly, whatever its clients do."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import anyio
import httpx
import pytest

from session_http.offline import OfflineModel
from session_http.offline.__main__ import main
from tests.http.offline.bodies import request
from tests.support.own_time import OwnTime

pytestmark = pytest.mark.anyio

ENDED_S = 2.0
"""Seconds of our own, in which the model ends too, for it to end."""


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    if request.param:
        uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed here")
        # The first loop opens a pipe that lives as long as the process: not before a test counts.
        uvloop.new_event_loop().close()
    return "asyncio", {"use_uvloop": request.param}


def open_sockets() -> int:
    gc.collect()
    links: list[str] = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except OSError:
            continue  # the descriptor that lists the others
    return sum(link.startswith("socket:") for link in links)


async def raw_request(model: OfflineModel, prompt: str) -> asyncio.StreamWriter:
    """Send a request and do not read the answer."""
    address = httpx.URL(model.base_url)
    _, writer = await asyncio.open_connection(address.host, address.port, limit=1024)
    body = json.dumps(request(prompt, stream=True)).encode()
    writer.write(
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    await writer.drain()
    return writer


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "prompt",
    [
        "hello",
        "[[hang before]]",
        "[[hang mid]]",
        "[[hang mid ping_ms=10]]",
        "[[slow tokens=100000 delay_ms=10]]",
        "[[big bytes=20000000]]",
    ],
)
async def test_it_ends_while_clients_hang(prompt: str) -> None:
    tasks, sockets = len(asyncio.all_tasks()), open_sockets()
    async with OfflineModel() as model:
        writers = [await raw_request(model, prompt) for _ in range(5)]
        with anyio.fail_after(60):
            while len(model.requests) < 5:  # noqa: ASYNC110 - the number has no event
                await anyio.sleep(0.01)
        await anyio.sleep(0.1)
        spent = OwnTime()
    assert spent.seconds < ENDED_S
    assert model.app.running == 0
    assert len(asyncio.all_tasks()) == tasks
    for writer in writers:
        writer.transport.abort()
    with anyio.fail_after(60):
        while open_sockets() > sockets:  # noqa: ASYNC110 - nor has this one
            await anyio.sleep(0.01)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/mess",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ],
)
async def test_it_ends_while_requests_are_unfinished(sent: bytes) -> None:
    tasks = len(asyncio.all_tasks())
    async with OfflineModel() as model:
        address = httpx.URL(model.base_url)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(sent)
        await anyio.sleep(0.1)
        spent = OwnTime()
    assert spent.seconds < ENDED_S
    with anyio.fail_after(60):
        await reader.read()
    writer.close()
    await writer.wait_closed()
    assert len(asyncio.all_tasks()) == tasks


async def test_it_ends_when_its_owner_is_cancelled() -> None:
    port = None
    with anyio.CancelScope() as owner:
        async with OfflineModel() as model:
            port = httpx.URL(model.base_url).port
            owner.cancel()
            await anyio.sleep_forever()
    assert port
    async with OfflineModel(port=port) as again:
        assert httpx.URL(again.base_url).port == port


async def test_its_address_is_known_only_while_it_runs() -> None:
    model = OfflineModel()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = model.base_url
    async with model:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", model.base_url)
        assert model.environment()["ANTHROPIC_BASE_URL"] == model.base_url
    with pytest.raises(RuntimeError, match="does not run"):
        model.environment()
    with pytest.raises(RuntimeError, match="started once"):
        await model.__aenter__()


async def test_a_port_in_use_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            async with OfflineModel(port=port):
                pass


async def test_it_listens_on_ipv6_too() -> None:
    try:
        model = OfflineModel("::1")
        await model.__aenter__()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        assert (await client.get(f"{model.base_url}/api/hello")).status_code == 200
    await model.__aexit__(None, None, None)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
async def test_as_a_process_it_prints_its_url_and_ends_on_a_signal(by: signal.Signals) -> None:
    root = Path(__file__).parents[3]
    process = await anyio.open_process(
        [sys.executable, "-m", "session_http.offline", "--port", "0", "--tokens", "3"],
        cwd=root,
        env={"PYTHONPATH": str(root / "http"), "PATH": os.environ["PATH"]},
    )
    async with process:
        try:
            assert process.stdout
            assert process.stderr
            line = ""
            with anyio.fail_after(60):
                while not line.endswith("\n"):
                    line += (await process.stdout.receive()).decode()
            async with httpx.AsyncClient(
                base_url=line.strip(), trust_env=False, timeout=60
            ) as client:
                response = await client.post("/v1/messages", json=request("hello"))
                assert response.json()["content"][0]["text"] == 'You said: "hello"'
                with anyio.move_on_after(0.3):
                    await client.post("/v1/messages", json=request("[[hang before]]"))
            process.send_signal(by)
            with anyio.fail_after(60):
                assert await process.wait() == 0
            errors = b"".join([chunk async for chunk in process.stderr])
            assert errors == b""
        finally:
            if process.returncode is None:
                process.kill()


@pytest.mark.parametrize(
    "arguments", [["--fault", "0.1", "[[cut]]"], ["--seed", "1", "--fault", "2", "[[cut]]"]]
)
def test_wrong_arguments_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
