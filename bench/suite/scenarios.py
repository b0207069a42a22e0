"""What visitors do: each scenario needs the reference's API only, or says what more."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from bench.suite.load import SECOND_NS, Visit, Visiting
from bench.suite.reading import Said, read
from bench.suite.stamps import asked_ns, is_whole
from bench.suite.wire import Client, Exchange, Failed

Mode: TypeAlias = Literal["closed", "open", "burst"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What is asked.

    Attributes:
        prompt: The question.
        long_prompt: One whose answer takes long enough to be interrupted.
        words: How many numbered words the answer must be; None: whatever it is.
        model: Its name; None: the server's.
        tools: All that a session has; None: the server's.
        turns: Questions of a chat, after its first.
    """

    prompt: str = "What is an actor?"
    long_prompt: str = "Count from 1 to 1000, one number on each line."
    words: int | None = None
    model: str | None = None
    tools: tuple[str, ...] | None = None
    turns: int = 3

    def body(self, **more: object) -> Mapping[str, object]:
        """Return what is fixed when work starts, and more."""
        fixed = {
            "model": self.model,
            "allowed_tools": None if self.tools is None else list(self.tools),
        }
        return {**{name: value for name, value in fixed.items() if value is not None}, **more}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of visits.

    Attributes:
        name: Under which it is asked for.
        about: What a visit is.
        mode: The load that it is for where none is chosen; `burst` takes no other.
        main: The time that it is about.
        visiting: Makes what visitors do, from what is asked and a number: the seed of chance,
            and for `readers` how many there are.
        needs: Path of the API beyond the reference that it cannot do without.
    """

    name: str
    about: str
    mode: Mode
    main: str
    visiting: Callable[[Asking, int], Visiting]
    needs: str | None = None


# -- the pieces ----------------------------------------------------------------------------------


async def ask(
    visit: Visit,
    path: str,
    body: Mapping[str, object],
    asking: Asking,
    *,
    since_ns: int | None = None,
    first: str = "first text",
) -> Said:
    """Have a question answered as a stream, and take in its times.

    Args:
        visit: Whose.
        path: Where to post it.
        body: The request, without `stream`.
        asking: What the answer must be.
        since_ns: When its times begin; None: when it is sent.
        first: What the time to the first text is called.
    """
    exchange = await visit.client.ask("POST", path, {**body, "stream": True})
    said = read(exchange)
    if said.first_text_ns is None:
        raise Failed("no text")
    if asking.words is not None and not is_whole(said.text, asking.words):
        raise Failed("text not whole")
    begin = exchange.sent_ns if since_ns is None else since_ns
    visit.note(first, said.first_text_ns - begin)
    visit.note("total", said.ended_ns - begin)
    if said.asked_ns is not None:
        visit.note("model asked", said.asked_ns - begin)
    visit.heard(said)
    return said


async def start(
    visit: Visit,
    asking: Asking,
    *,
    since_ns: int | None = None,
    question: bool = True,
    what: str = "start",
) -> str:
    """Start a session, and return its id.

    Args:
        visit: Whose.
        asking: What is asked.
        since_ns: When its times begin; None: when it is sent.
        question: Whether it starts with its first question.
        what: What its time is called.
    """
    first = {"initial_prompt": asking.prompt} if question else {}
    exchange = await visit.client.ask("POST", "/session/start", asking.body(**first))
    answer = exchange.json()
    begin = exchange.sent_ns if since_ns is None else since_ns
    visit.note(what, exchange.ended_ns - begin)
    asked = asked_ns(str(answer.get("initial_response") or ""))
    if asked is not None:
        visit.note("start to model asked", asked - begin)
    session_id = answer.get("session_id")
    if not isinstance(session_id, str):
        raise Failed("no session id")
    return session_id


async def close(client: Client, session_id: str) -> None:
    """Close a session, also when the visit is being given up."""
    with suppress(Failed):
        await asyncio.shield(client.ask("DELETE", f"/session/{session_id}"))


# -- the scenarios -------------------------------------------------------------------------------


def oneoff(asking: Asking, _seed: int) -> Visiting:
    """Ask one question without a session."""

    async def visiting(visit: Visit) -> None:
        body = asking.body(prompt=asking.prompt)
        await ask(visit, "/query", body, asking, since_ns=visit.due_ns)

    return visiting


def chat(asking: Asking, _seed: int) -> Visiting:
    """Start a session with a question, ask more in it, and close it."""

    async def visiting(visit: Visit) -> None:
        session_id = await start(visit, asking, since_ns=visit.due_ns)
        try:
            for _ in range(asking.turns):
                path = f"/session/{session_id}/query"
                await ask(visit, path, {"prompt": asking.prompt}, asking)
        finally:
            await close(visit.client, session_id)

    return visiting


THINK_S = 1.5
"""Seconds between two sessions of one who comes now and then: a pool has had time by then."""


def starts(asking: Asking, _seed: int) -> Visiting:
    """Start a session, ask in it, and start one with a question: what is there before the model."""

    async def visiting(visit: Visit) -> None:
        await asyncio.sleep(THINK_S)
        session_id = await start(visit, asking, question=False)
        try:
            await ask(visit, f"/session/{session_id}/query", {"prompt": asking.prompt}, asking)
        finally:
            await close(visit.client, session_id)
        await asyncio.sleep(THINK_S)
        session_id = await start(visit, asking, what="start with a question")
        await close(visit.client, session_id)

    return visiting


def interrupts(asking: Asking, _seed: int) -> Visiting:
    """Start a session, interrupt a long answer at its first text, and close it."""

    async def visiting(visit: Visit) -> None:
        session_id = await start(visit, asking)
        try:
            await _interrupt(visit, session_id, asking)
        finally:
            await close(visit.client, session_id)

    return visiting


async def _interrupt(visit: Visit, session_id: str, asking: Asking) -> None:
    text: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    body = {"prompt": asking.long_prompt, "stream": True}
    path = f"/session/{session_id}"
    answer = asyncio.ensure_future(visit.client.ask("POST", f"{path}/query", body, text=text))
    try:
        waited: set[asyncio.Future[Any]] = {answer, text}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            read(answer.result())  # which says what went wrong, if anything
            raise Failed("nothing to interrupt: the answer was over")
        stopped = await visit.client.ask("POST", f"{path}/interrupt")
        stopped.json()
        said = read(await answer)
    finally:
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
    visit.note("interrupt answered", stopped.ended_ns - stopped.sent_ns)
    visit.note("stream ended", max(said.ended_ns - stopped.sent_ns, 0))
    visit.heard(said)


def wake(asking: Asking, _seed: int) -> Visiting:
    """Start a session, hibernate it, and ask: its process has to come back."""

    async def visiting(visit: Visit) -> None:
        session_id = await start(visit, asking)
        path = f"/session/{session_id}"
        try:
            (await visit.client.ask("POST", f"{path}/hibernate")).json()
            body = {"prompt": asking.prompt}
            await ask(visit, f"{path}/query", body, asking, first="first text after waking")
        finally:
            await close(visit.client, session_id)

    return visiting


def storm(asking: Asking, _seed: int) -> Visiting:
    """Start a session at the same moment as everybody else, and leave it open."""

    async def visiting(visit: Visit) -> None:
        visit.leave_open(await start(visit, asking, since_ns=visit.due_ns))

    return visiting


def mixed(asking: Asking, seed: int) -> Visiting:
    """Do any of it: half one-off queries, a third chats, the rest interrupts."""
    chance = random.Random(seed)
    kinds = (oneoff(asking, seed), chat(asking, seed), interrupts(asking, seed))

    async def visiting(visit: Visit) -> None:
        (kind,) = chance.choices(kinds, weights=(50, 33, 17))
        await kind(visit)

    return visiting


SETTLE_S = 0.3
"""Seconds in which readers catch up, before the session is closed and their streams end."""


def readers(asking: Asking, number: int) -> Visiting:
    """Have so many readers follow one session while it answers."""

    async def visiting(visit: Visit) -> None:
        await _follow(visit, asking, number)

    return visiting


async def _follow(visit: Visit, asking: Asking, number: int) -> None:
    """Ask in a session that many read.

    Raises:
        Failed: The session could not be started, or its answer is not one.
    """
    client = visit.client
    exchange = await client.ask("POST", "/session/start", asking.body())
    session_id = exchange.json()["session_id"]
    path = f"/session/{session_id}"
    following: list[asyncio.Future[Exchange]] = []
    try:
        following += [
            asyncio.ensure_future(client.ask("GET", f"{path}/events")) for _ in range(number)
        ]
        await asyncio.sleep(0.5 + number / 1000)
        texts: list[str] = []
        for _ in range(asking.turns):
            said = await ask(visit, f"{path}/query", {"prompt": asking.prompt}, asking)
            texts.append(said.text)
        await asyncio.sleep(SETTLE_S)
    finally:
        await close(client, session_id)
        for one in following:
            if not one.done():
                await asyncio.wait([one], timeout=5.0)
            one.cancel()
        ends = await asyncio.gather(*following, return_exceptions=True)
    for end in ends:
        if isinstance(end, Failed):
            raise end
        if isinstance(end, BaseException):
            raise Failed("a reader's stream did not end")
        said = read(end, ends=False)
        visit.heard(said, lags="lag of readers")
        if said.text != "".join(texts):
            raise Failed("a reader's text is not whole")


SCENARIOS: Mapping[str, Scenario] = {
    one.name: one
    for one in (
        Scenario(
            name="oneoff",
            about="one question without a session",
            mode="closed",
            main="first text",
            visiting=oneoff,
        ),
        Scenario(
            name="chat",
            about="a session: its first question, more questions, its end",
            mode="closed",
            main="first text",
            visiting=chat,
        ),
        Scenario(
            name="starts",
            about="a session that is started now and then, asked, and closed; and one that is "
            "started with a question",
            mode="closed",
            main="start",
            visiting=starts,
        ),
        Scenario(
            name="readers",
            about="many readers of one session's events",
            mode="burst",
            main="lag of readers",
            visiting=readers,
            needs="/session/{session_id}/events",
        ),
        Scenario(
            name="wake",
            about="a question to a session whose process was given up",
            mode="closed",
            main="first text after waking",
            visiting=wake,
            needs="/session/{session_id}/hibernate",
        ),
        Scenario(
            name="storm",
            about="many sessions that start at the same moment, and what they hold",
            mode="burst",
            main="start",
            visiting=storm,
        ),
        Scenario(
            name="interrupts",
            about="a long answer that is interrupted at its first text",
            mode="closed",
            main="stream ended",
            visiting=interrupts,
        ),
        Scenario(
            name="mixed",
            about="one-off queries, chats and interrupts, by chance",
            mode="open",
            main="first text",
            visiting=mixed,
        ),
    )
}
"""All of them, by name."""


LOOKS = (("/health", "GET /health"), ("/sessions", "GET /sessions"))
"""What is looked at, and what its time is called."""


async def probe(visit_of: Callable[[int], Visit], hz: float, over: asyncio.Event) -> None:
    """Look at health and at the list of sessions, so often a second, until it is over.

    It is an open load: a look that is late counts from when it was due, and those that are under
    way in the end are waited for. The slowest would be left out otherwise.

    Args:
        visit_of: Makes a visit that is due at a time.
        hz: Looks of each kind in a second.
        over: Says when to end.
    """
    due = time.monotonic_ns()
    async with asyncio.TaskGroup() as looks:
        while not over.is_set():
            for path, name in LOOKS:
                looks.create_task(_look(visit_of(due), path, name))
            due += round(SECOND_NS / hz)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(due - time.monotonic_ns(), 0) / SECOND_NS):
                    await over.wait()


async def _look(visit: Visit, path: str, name: str) -> None:
    try:
        exchange = await visit.client.ask("GET", path)
        exchange.json()
    except Failed as failure:
        visit.failed(f"{name}: {failure.code}")
    else:
        visit.note(name, exchange.ended_ns - visit.due_ns)
