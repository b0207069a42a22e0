"""What is left for the collector of cycles, which is in no hurry."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Generator[Counter[str]]:
    """Count what of ours is left in cycles meanwhile, by type."""
    found = Counter[str]()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(
            type(one).__qualname__
            for one in gc.garbage
            if type(one).__module__.startswith(("session_supervisor", "session_http"))
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
