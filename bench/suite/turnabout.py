"""Turn about: what the machine does meanwhile meets all alike, and nobody has a fixed place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TypeVar

from bench.processes import Server, serving

K = TypeVar("K")
R = TypeVar("R")


def turns(names: Sequence[K], rounds: int) -> Iterator[tuple[int, K]]:
    """Yield whose turn it is, and in which round; the order turns round with each."""
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield number, name


async def measured(
    arguments: Mapping[K, Sequence[str]],
    one_round: Callable[[K, Server], Awaitable[R]],
    *,
    rounds: int,
) -> Mapping[K, Sequence[R]]:
    """Measure servers without a CLI, which all run for as long as any is measured.

    Args:
        arguments: What `layer_server` is told, for each.
        one_round: Measures one.
        rounds: How often each.

    Raises:
        NotReady: One did not come up.
    """
    taken: dict[K, list[R]] = {name: [] for name in arguments}
    async with AsyncExitStack() as stack:
        servers = {
            name: await stack.enter_async_context(serving("bench.suite.layer_server", told))
            for name, told in arguments.items()
        }
        for _, name in turns(list(arguments), rounds):
            taken[name].append(await one_round(name, servers[name]))
    return taken
