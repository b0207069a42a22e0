"""One server for each file of attacks: what one of them breaks, those after it find."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.http.hostile.siege import Siege, besieged


@pytest.fixture(scope="module")
def anyio_backend() -> object:
    """The loop that the command runs on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="module")
async def siege(anyio_backend: object) -> AsyncGenerator[Siege]:
    """A server that all attacks of a file are made on, one after another."""
    async with besieged() as one:
        yield one
