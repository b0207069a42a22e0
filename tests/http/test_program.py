"""What the running server tells its operator of sessions."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from session_http.program import tell_of_crashes
from session_supervisor import Down, Notice, Supervisor
from session_supervisor.messages import CloseReason


class Notices:
    """A supervisor of which only the notices matter."""

    def __init__(self, *notices: Notice) -> None:
        self._notices = notices

    @asynccontextmanager
    async def monitor(self) -> AsyncGenerator[AsyncIterator[Notice]]:
        async def all_() -> AsyncIterator[Notice]:
            for notice in self._notices:
                yield notice

        yield all_()


def down(session_id: str, reason: CloseReason | None, failure: str | None) -> Down:
    return Down(session_id=session_id, owner="ann", reason=reason, failure=failure)


@pytest.mark.anyio
async def test_a_failure_is_told_once_and_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notices = Notices(
        down("a", None, "CANARY"),
        down("a", CloseReason.DRAINED, "CANARY"),
        down("b", CloseReason.FAULT, "CANARY"),
        down("c", CloseReason.REQUESTED, None),
    )
    caplog.set_level(logging.INFO, "session_http")
    await tell_of_crashes(cast("Supervisor", notices))
    told = [(one.levelname, one.__dict__["session_id"]) for one in caplog.records]
    assert told == [("ERROR", "a"), ("ERROR", "b")]
    assert "CANARY" not in caplog.text
