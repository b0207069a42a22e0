"""What every adapter of the Store port must do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from session_supervisor.errors import Fenced, SequenceConflict
from session_supervisor.events import Event, Text
from session_supervisor.stores.port import Store

AT = datetime(2026, 1, 1, tzinfo=UTC)


def run_of(first: int, count: int) -> list[Event]:
    return [
        Event(seq, "turn", AT, Text(content=f"piece {seq}")) for seq in range(first, first + count)
    ]


@pytest.mark.anyio
class StoreConformance:
    """Subclass it with a `make_store` that returns a store without retention to speak of."""

    async def make_store(self) -> Store:
        raise NotImplementedError

    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        store = await self.make_store()
        yield store
        await store.aclose()

    async def test_what_was_appended_is_read_in_order(self, store: Store) -> None:
        fence = await store.acquire("a")
        await store.append("a", fence=fence, expected_seq=0, events=run_of(1, 3))
        await store.append("a", fence=fence, expected_seq=3, events=run_of(4, 2))
        assert list(await store.read("a", after=0, limit=100)) == run_of(1, 5)

    async def test_reading_begins_behind_a_number_and_keeps_a_limit(self, store: Store) -> None:
        fence = await store.acquire("a")
        await store.append("a", fence=fence, expected_seq=0, events=run_of(1, 10))
        assert list(await store.read("a", after=4, limit=3)) == run_of(5, 3)
        assert list(await store.read("a", after=10, limit=3)) == []

    async def test_an_unknown_session_is_empty(self, store: Store) -> None:
        assert list(await store.read("nobody", after=0, limit=10)) == []

    async def test_sessions_do_not_mix(self, store: Store) -> None:
        for session in ("a", "b"):
            fence = await store.acquire(session)
            await store.append(session, fence=fence, expected_seq=0, events=run_of(1, 1))
        await store.erase("a")
        assert list(await store.read("a", after=0, limit=10)) == []
        assert list(await store.read("b", after=0, limit=10)) == run_of(1, 1)

    async def test_an_older_fence_cannot_write(self, store: Store) -> None:
        old = await store.acquire("a")
        await store.append("a", fence=old, expected_seq=0, events=run_of(1, 1))
        new = await store.acquire("a")
        assert new > old
        with pytest.raises(Fenced):
            await store.append("a", fence=old, expected_seq=1, events=run_of(2, 1))
        await store.append("a", fence=new, expected_seq=1, events=run_of(2, 1))
        assert list(await store.read("a", after=0, limit=10)) == run_of(1, 2)

    async def test_an_erased_session_cannot_be_written(self, store: Store) -> None:
        fence = await store.acquire("a")
        await store.erase("a")
        with pytest.raises(Fenced):
            await store.append("a", fence=fence, expected_seq=0, events=run_of(1, 1))

    @pytest.mark.parametrize(
        ("expected_seq", "first"), [(0, 1), (1, 2), (3, 4), (2, 4), (2, 2), (2, 1)]
    )
    async def test_a_log_is_only_extended_from_its_end(
        self, store: Store, expected_seq: int, first: int
    ) -> None:
        fence = await store.acquire("a")
        await store.append("a", fence=fence, expected_seq=0, events=run_of(1, 2))
        with pytest.raises(SequenceConflict):
            await store.append("a", fence=fence, expected_seq=expected_seq, events=run_of(first, 2))
        assert list(await store.read("a", after=0, limit=10)) == run_of(1, 2)
