"""A server under attack, and the one property that every attack is held against: it goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

from session_http.settings import HttpSettings
from session_http.sse import StreamSettings
from session_http.wire import ConnectionLimits
from session_supervisor.agents.scripted import Conversation, Hang, Pause, Say, Step
from session_supervisor.spec import Prompt
from tests.http.hostile.client import HEALTH, ask
from tests.http.servers import Address, World, eventually, on_hypercorn, world
from tests.support.own_time import OwnTime

ANSWER_S = 0.4
"""Seconds of our own in which a polite request must be answered, whatever else goes on: far more
than the milliseconds that it takes, and less than any rude one may take: it waits for none."""

GONE_S = 60.0
"""Seconds after which nothing may be left of a client that is gone."""

QUICK = HttpSettings(
    max_body_bytes=1_500_000,
    body_timeout_s=0.6,
    streams=StreamSettings(heartbeat_s=0.2, send_timeout_s=1.0),
)
CALM = ConnectionLimits(head_s=5.0, idle_s=10.0, unread_s=5.0, linger_s=0.2)
HASTY = ConnectionLimits(head_s=0.5, idle_s=1.0, unread_s=1.0, linger_s=0.2)
"""Waits as short as tests need them: the second for those that wait for their end."""


def script(prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
    """Answer, after a while where the prompt says `wait SECONDS`, or never where it says `hang`."""
    match prompt.text.split():
        case ["hang"]:
            yield Say("Partial", confirmed=False)
            yield Hang()
        case ["wait", seconds]:
            yield Pause(float(seconds))
            yield Say("Done.")
        case _:
            yield Say(f"You said {len(prompt.text)} characters.")


class Siege:
    """A server, and what it holds while nobody does anything to it."""

    def __init__(self, world: World, address: Address) -> None:
        self.world = world
        self.address = address
        self._descriptors = 0
        self._tasks = 0

    async def begin(self) -> None:
        """Take stock, once everything that stays is there."""
        await ask(self.address, HEALTH)
        await eventually(lambda: _connections() == 0)
        self._descriptors = _descriptors()
        self._tasks = _tasks()

    async def goes_on(self) -> None:
        """Fail unless a polite request is answered at once, and nothing is left of any other."""
        spent = OwnTime()
        health = await ask(self.address, HEALTH)
        assert spent.seconds < ANSWER_S
        assert health.status == 200
        assert health.json["active_sessions"] == 0
        try:
            await eventually(lambda: not self.left(), within_s=GONE_S)
        except TimeoutError:
            raise AssertionError(f"left of clients that are gone: {self.left()}") from None

    def left(self) -> dict[str, int]:
        """Return how much more there is of what than at the beginning."""
        app, supervisor = self.world.app, self.world.supervisor
        found = {
            "requests": app.open_requests,
            "streams": app.open_streams,
            "sessions": len(supervisor.list()),
            "processes": self.world.agent.live,
            "connections": _connections(),
            "tasks": _tasks() - self._tasks,
            "descriptors": _descriptors() - self._descriptors,
        }
        return {name: count for name, count in found.items() if count > 0}


@asynccontextmanager
async def besieged(
    settings: HttpSettings = QUICK, limits: ConnectionLimits = CALM
) -> AsyncGenerator[Siege]:
    """Serve as the command does, in the test's own loop; what is left in the end fails the test."""
    async with (
        world(script, settings=settings) as one,
        on_hypercorn(one, limits=limits) as address,
    ):
        siege = Siege(one, address)
        await siege.begin()
        yield siege
        await siege.goes_on()


def _connections() -> int:
    return sum("Acceptor._serve" in repr(task) for task in asyncio.all_tasks())


def _tasks() -> int:
    return len(asyncio.all_tasks() - {asyncio.current_task()})


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
