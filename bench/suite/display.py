"""How far a run is, on the terminal; elsewhere only the lines that stay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY_S = 1.0
"""Seconds between two pictures: each takes a millisecond of the process that is the load client."""


class Display:
    """A bar of each stage, what is being done, and lines that stay.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("[bold]{task.fields[stage]:10}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.description}"),
            console=console,
            auto_refresh=False,  # its thread would take the interpreter from the load client
            transient=True,
        )
        self._console = console
        self._task = self._progress.add_task("", total=None, stage="begin")

    @asynccontextmanager
    async def shown(self) -> AsyncGenerator[None]:
        """Show it."""
        with self._progress:
            painting = asyncio.create_task(self._paint())
            try:
                yield
            finally:
                painting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await painting

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of so many steps."""
        before = self._progress.tasks[-1]
        if before.total is None:
            self._progress.remove_task(before.id)
        else:
            self._progress.update(before.id, completed=before.total, description="")
        self._task = self._progress.add_task("", total=total, stage=name)

    def doing(self, what: str) -> None:
        """Say what is being done now."""
        self._progress.update(self._task, description=what)

    def step(self) -> None:
        """A step is done."""
        self._progress.advance(self._task)

    def at(self, done: float) -> None:
        """So much is done of the stage: of what goes on by itself."""
        self._progress.update(self._task, completed=done)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    async def _paint(self) -> None:
        while True:
            self._progress.refresh()
            await asyncio.sleep(EVERY_S)
