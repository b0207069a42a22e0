from hypothesis import given
from hypothesis import strategies as st

from session_supervisor.config import Retention
from session_supervisor.events import weight
from session_supervisor.stores.memory import MemoryStore
from session_supervisor.stores.port import Store
from session_supervisor.window import Window
from tests.supervisor.stores.conformance import StoreConformance, run_of


class TestMemoryStore(StoreConformance):
    async def make_store(self, retention: Retention | None = None) -> Store:
        return MemoryStore(retention)


@given(
    st.lists(st.integers(0, 200), max_size=20),
    st.integers(1, 150),
    st.integers(1, 200_000),
    st.integers(0, 3_000),
    st.integers(1, 100),
)
def test_a_window_is_the_end_of_the_whole_log(
    batches: list[int], max_events: int, max_weight: int, after: int, limit: int
) -> None:
    window = Window(max_events=max_events, max_weight=max_weight)
    whole = run_of(1, 0)
    for count in batches:
        batch = run_of(len(whole) + 1, count)
        window.extend(batch)
        whole += batch
    held = whole[len(whole) - len(window) :]
    assert len(held) <= max_events
    assert len(held) == 1 or sum(map(weight, held)) <= max_weight
    assert bool(held) == bool(whole)
    assert window.first_seq == (held[0].seq if held else None)
    wanted = [event for event in held if event.seq > after][:limit]
    assert list(window.read(after=after, limit=limit)) == wanted
