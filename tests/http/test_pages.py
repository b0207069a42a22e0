"""The documentation pages show the API in a real browser that can reach nothing but the server."""

from __future__ import annotations

import asyncio
import html
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from session_http.app import App
from session_http.operations import OPERATIONS
from tests.http.keyring import Keys
from tests.http.servers import on_uvicorn, world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.chromium,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="NO CHROMIUM: nobody checks that /docs and /redoc work; apt-get install chromium",
    ),
]


async def browse(url: str, profile: Path) -> tuple[str, list[str]]:
    """Return what a page looks like in the end, as HTML, and what it wrote to the console."""
    assert CHROMIUM is not None
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--enable-logging=stderr",
        "--virtual-time-budget=10000",
        "--dump-dom",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            page, log = await browser.communicate()
    finally:
        if browser.returncode is None:
            browser.kill()
            await browser.wait()
    console = re.findall(r"CONSOLE.*", log.decode(errors="replace"))
    return html.unescape(page.decode()).replace("\u200b", ""), console


@pytest.mark.parametrize("page", ["docs", "redoc"])
async def test_a_page_shows_every_operation_also_below_a_mount_point(
    page: str, tmp_path: Path
) -> None:
    async with world() as one:
        outer = Starlette(routes=[Mount("/claude", app=one.app)])
        async with on_uvicorn(replace(one, app=cast(App, outer))) as address:
            shown, console = await browse(f"{address.url}/claude/{page}", tmp_path)
    for row in OPERATIONS:
        if row.described:
            assert row.path in shown, f"{page} does not show {row.path}"
            assert row.summary in shown, f"{page} does not show {row.summary!r}"
    problems = [line for line in console if re.search("refused|failed|error", line, re.IGNORECASE)]
    assert not problems


async def test_with_keys_the_page_to_try_things_out_takes_one(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.add("ann")
    shown: dict[bool, str] = {}
    async with (
        world() as open_to_all,
        world(authenticate=keys.ring.authenticate) as with_keys,
        on_uvicorn(open_to_all) as without,
        on_uvicorn(with_keys) as address,
    ):
        for where in (without, address):
            profile = tmp_path / str(where.port)
            shown[where is address], _ = await browse(f"{where.url}/docs", profile)
    assert {name: "Authorize" in page for name, page in shown.items()} == {True: True, False: False}
