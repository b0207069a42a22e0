"""A supervisor on virtual time, with directories that do not exist."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Collection, Coroutine, Hashable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from session_supervisor import Event, Supervisor, SupervisorConfig
from session_supervisor.agents.port import Agent
from session_supervisor.clock import Clock
from session_supervisor.events import Body, Discard, Done, Error, Text
from session_supervisor.stores.port import Store
from session_supervisor.workspaces import SPARE

T = TypeVar("T")


class ImaginaryDirectories:
    """Workspaces for agents that touch no file."""

    def __init__(self) -> None:
        self.held: set[Path] = set()
        self.files: dict[Path, set[str]] = {}

    async def allot(self, session_id: str) -> Path:
        directory = Path("/nowhere") / session_id
        self.held.add(directory)
        return directory

    async def restore(self, directory: Path) -> None:
        assert directory in self.held

    async def release(self, directory: Path) -> None:
        self.held.discard(directory)
        self.files.pop(directory, None)

    def sign(self, directory: Path) -> Hashable:
        if directory not in self.held or self.files.get(directory):
            raise OSError(errno.ENOTEMPTY, "it is not as it was", str(directory))
        return directory

    async def empty(self, directory: Path, into: Path) -> None:
        assert into in self.held
        assert not self.files.get(into)
        self.files[into] = self.files.pop(directory, set())

    def move(self, directory: Path, into: Path) -> None:
        self.files.setdefault(into, set()).update(self.files.pop(directory, set()))
        self.discard(directory)

    def discard(self, directory: Path) -> None:
        if not self.files.get(directory):
            self.held.discard(directory)

    async def sweep(self, known: Collection[Path]) -> None:
        for directory in self.held - set(known):
            if directory.name.startswith(SPARE):
                await self.release(directory)

    async def aclose(self) -> None:
        assert not self.held, "directories were not released"


def supervisor_of(
    agent: Agent,
    *,
    clock: Clock | None = None,
    store: Store | None = None,
    directories: ImaginaryDirectories | None = None,
    **config: Any,
) -> Supervisor:
    """Return a supervisor without randomness and without a file system."""
    return Supervisor(
        agent,
        store=store,
        config=SupervisorConfig(**config),
        workspaces=directories or ImaginaryDirectories(),
        clock=clock,
        random=lambda: 0.0,
    )


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise AssertionError("it waits for something")


@asynccontextmanager
async def supervising(agent: Agent, **config: Any) -> AsyncGenerator[Supervisor, None]:
    """Run a supervisor for a while."""
    async with supervisor_of(agent, **config) as supervisor:
        yield supervisor


def bodies(events: Sequence[Event]) -> list[Body]:
    """Return what events say."""
    return [event.body for event in events]


def text_of(events: Sequence[Event]) -> str:
    """Return the answer that a client puts together from a turn's events."""
    kept: list[tuple[int, str]] = []
    for event in events:
        match event.body:
            case Text():
                kept.append((event.seq, event.body.content))
            case Discard():
                after = event.body.after
                kept = [(seq, text) for seq, text in kept if seq <= after]
            case _:
                pass
    return "".join(text for _, text in kept)


def check_log(events: Sequence[Event]) -> None:
    """Fail unless a whole log is as the documentation promises."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    by_turn: dict[str, list[Event]] = {}
    for event in events:
        if event.turn_id is not None:
            by_turn.setdefault(event.turn_id, []).append(event)
    for turn_id, own in by_turn.items():
        terminals = [event for event in own if event.is_terminal]
        assert len(terminals) <= 1, f"turn {turn_id} ended twice: {terminals}"
        if terminals:
            assert own[-1] is terminals[0], f"turn {turn_id} went on after its end"
            body = terminals[0].body
            assert isinstance(body, (Done, Error))
            assert text_of(own) == body.response
