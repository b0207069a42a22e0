"""The clients of a run of `bench.chaos`: they talk, vanish, dawdle and come back.

Each has one conversation after the other. With every prompt it tells a word that nobody else uses,
so that in the end the model, which quotes what it was told, shows whether the context is whole,
and whether any prompt was run twice.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from bench import chaos_retry
from bench.chaos_client import Answer, Api, Broken, Heard, Silent
from bench.chaos_conversation import REFUSALS, Bag, Conversation, Told
from bench.chaos_record import Reading, Record, Witness
from bench.chaos_retry import Retrying
from bench.chaos_visits import Running, Visitor

UPSTREAM: Mapping[str, str] = {
    "upstream 429": "[[fail status=429 retry_after=0.1 times=1]]",
    "upstream 500": "[[fail status=500 times=1]]",
    "upstream 529": "[[fail status=529 times=1]]",
    "upstream 529 in mid-stream": "[[fail status=529 after=4 times=1]]",
    "upstream 401": "[[fail status=401]]",
    "upstream 529 for ever": "[[fail status=529]]",
    "upstream cut": "[[cut after=4 times=1]]",
    "upstream silent for a while": "[[hang before ms=1500 times=1]]",
    "upstream hangs": "[[hang before]]",
    "upstream hangs in mid-stream": "[[hang mid after=4]]",
}
"""What goes wrong behind Claude Code, and the directive that asks for it."""

MANNERS = (
    "client vanishes and comes back",
    "client reads slowly",
    "client does not wait for its answer",
    "client interrupts",
    "client asks twice at once",
    "client asks again under its key",
    "client reads the transcript",
    "client has it wake and hibernate",
    "client closes it in the middle",
    "client asks one-offs meanwhile",
    "another owner tries its id",
)
"""What clients do that they need not."""

TURN_S = 180.0
"""Seconds within which a turn must be seen to end, whatever happens. It has 45, but for one that
waits these begin anew with each server, and servers come and go every 20."""


class Talker:
    """A client, with all its conversations.

    Args:
        name: Begins its words.
        owner: Whose sessions it has.
        api: The server, as that owner reaches it.
        record: The run's.
        everybody: All conversations of all clients.
        running: Tells which processes run.
        upstream: Draws what the upstream does; shared by all.
        manners: Draws what clients do; shared by all.
        seed: Of its own choices.
    """

    def __init__(
        self,
        *,
        name: str,
        owner: str,
        api: Api,
        record: Record,
        everybody: list[Conversation],
        running: Running,
        upstream: Bag,
        manners: Bag,
        seed: str,
    ) -> None:
        self.owner = owner
        self.conversations: list[Conversation] = []
        self._name = name
        self._everybody = everybody
        self.api = api
        self._record = record
        self._upstream = upstream
        self._manners = manners
        self._chance = random.Random(seed)
        self._visitor = Visitor(record, everybody, running, self._chance)
        self._over = asyncio.Event()
        self._words = 0

    def stop(self) -> None:
        """Begin no more turns."""
        self._over.set()

    async def talk(self) -> None:
        """Have conversations until told to stop; the last turn is heard to its end."""
        while not self._over.is_set():
            conversation = await self._begin()
            if conversation is None:
                await self._pause(0.2, 0.5)
                continue
            self.conversations.append(conversation)
            self._everybody.append(conversation)
            for _ in range(self._chance.randint(4, 14)):
                if self._over.is_set() or conversation.over:
                    break
                await self._turn(conversation)
                if self._chance.random() < 0.3 and not conversation.over:
                    await self._ask_oneoffs(conversation)
                await self._pause(0.0, 0.3)
                if self._chance.random() < 0.08:
                    await self._pause(4.0, 6.0)  # long enough for it to be hibernated

    async def ask(self, conversation: Conversation, prompt: str) -> Answer | None:
        """Ask without a stream, again and again while the server is away; None: in vain."""
        path = f"{conversation.path}/query"
        for _ in range(40):
            try:
                answer = await self.api.call("POST", path, {"prompt": prompt})
            except (Broken, Silent):
                answer = None
            if answer is not None:
                self._record.answered(answer.status, answer.body, "a query")
                if answer.status not in REFUSALS:
                    return answer
            await asyncio.sleep(0.25)
        return None

    # -- conversations ---------------------------------------------------------------------

    async def _begin(self) -> Conversation | None:
        session_id = await (self._start() if self._chance.random() < 0.5 else self._start_again())
        if not session_id:
            return None
        return Conversation(
            session_id=session_id,
            owner=self.owner,
            api=self.api,
            witness=Witness(self._record, session_id),
        )

    async def _start(self) -> str:
        """Start a session, once; return its id, or nothing."""
        try:
            answer = await self.api.call("POST", "/session/start", {})
        except Broken:
            self._record.unanswered_starts += 1
            return ""
        except Silent:
            self._record.violate("everybody is answered", "POST /session/start was not")
            return ""
        self._record.answered(answer.status, answer.body, "POST /session/start")
        if answer.status != 200:
            self._expect(answer, "POST /session/start", REFUSALS)
            return ""
        return str(answer.body["session_id"])

    async def _start_again(self) -> str:
        """Start one under a key, until it is there."""
        self._words += 1
        key = chaos_retry.key_for(f"{self._name} start {self._words}", self._chance)
        session_id = await chaos_retry.start(self.api, self._record, key, self._chance)
        if not session_id:
            self._record.unanswered_starts += 1
        return session_id

    async def _ask_oneoffs(self, conversation: Conversation) -> None:
        try:
            await self._visitor.ask_oneoffs(conversation)
        except Silent:
            self._record.violate("everybody is answered", "POST /query was not")

    async def _turn(self, conversation: Conversation) -> None:
        told, prompt = self._prompt(conversation)
        manner = self._manners.draw() if self._chance.random() < 0.5 else ""
        if manner == "client closes it in the middle":
            self._record.inject(manner)  # survived by all others
        elif manner:
            self._record.inject(manner, conversation.session_id)
        try:
            async with asyncio.timeout(TURN_S):
                await self._in_a_manner(conversation, told, prompt, manner)
        except TimeoutError:
            self._record.violate(
                "every turn is seen to end",
                f"session {conversation.session_id}, turn {told.turn_id}: not in {TURN_S:g} s",
            )
            conversation.finish("it hangs")

    async def _in_a_manner(
        self, conversation: Conversation, told: Told, prompt: str, manner: str
    ) -> None:
        visits = {
            "client reads the transcript": self._visitor.read_transcript,
            "client has it wake and hibernate": self._visitor.hint,
            "client closes it in the middle": self._visitor.close,
            "client asks one-offs meanwhile": self._visitor.ask_oneoffs,
            "another owner tries its id": self._visitor.pry,
        }
        if manner == "client does not wait for its answer":
            await self._leave(conversation, told, prompt)
        elif manner == "client asks twice at once":
            other, further = self._prompt(conversation)
            await asyncio.gather(
                self._stream(conversation, told, prompt),
                self._stream(conversation, other, further),
            )
        elif manner == "client asks again under its key":
            began = time.monotonic()
            await Retrying(conversation, told, prompt, self._chance).ask()
            self._completed(conversation, told, began)
        elif manner in visits:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._stream(conversation, told, prompt))
                await asyncio.sleep(self._chance.uniform(0.0, 1.0))
                try:
                    await visits[manner](conversation)
                except Silent:
                    self._record.violate("everybody is answered", f"{manner}: was not")
        elif not manner and self._chance.random() < 0.3:
            await self._wait(conversation, told, prompt)
        else:
            await self._stream(conversation, told, prompt, manner)

    def _prompt(self, conversation: Conversation) -> tuple[Told, str]:
        self._words += 1
        told = Told(word=f"{self._name}x{self._words}")
        conversation.told.append(told)
        tokens, delay_ms = self._chance.randint(5, 40), self._chance.choice((5, 20, 40))
        fault = ""
        if self._chance.random() < 0.3:
            kind = self._upstream.draw()
            self._record.inject(kind, conversation.session_id)
            fault = UPSTREAM[kind]
        blocks = "[[say First this.]]" if self._chance.random() < 0.3 else ""
        pace = f"[[slow tokens={tokens} delay_ms={delay_ms}]]"
        return told, f"Remember {told.word}. {blocks}{pace}{fault}"

    async def _wait(self, conversation: Conversation, told: Told, prompt: str) -> None:
        """Ask without a stream."""
        began = time.monotonic()
        body = {"prompt": prompt}
        try:
            answer = await self.api.call("POST", f"{conversation.path}/query", body)
        except Broken:
            await self._pause(0.3, 0.8)
            return
        except Silent:
            self._record.violate("everybody is answered", f"{conversation.path}/query was not")
            return
        conversation.note(answer, "a query")
        if "turn_id" in answer.body:
            conversation.begun(told, str(answer.body["turn_id"]))
        if answer.status == 200:
            conversation.ended(told, str(answer.body["outcome"]), str(answer.body["response"]))
            self._completed(conversation, told, began)

    async def _leave(self, conversation: Conversation, told: Told, prompt: str) -> None:
        """Ask, and be gone before there is an answer."""
        try:
            async with asyncio.timeout(self._chance.uniform(0.02, 0.6)):
                await self._wait(conversation, told, prompt)
        except TimeoutError:
            pass

    async def _stream(
        self, conversation: Conversation, told: Told, prompt: str, manner: str = ""
    ) -> None:
        """Ask with a stream, and come back until the turn has ended."""
        began = time.monotonic()
        reading = Reading(conversation.witness)
        body = {"prompt": prompt, "stream": True}
        slow = manner == "client reads slowly"
        try:
            async with self.api.open(
                "POST", f"{conversation.path}/query", body, narrow=slow
            ) as opened:
                conversation.note(opened.answer, "a query with a stream")
                if opened.answer.status != 200:
                    return
                await self._read(conversation, reading, opened.events, told, manner)
        except Broken:
            pass
        except Silent:
            self._record.violate("streams show that they live", f"{conversation.path}/query")
        if not reading.turn_id:
            await self._pause(0.3, 0.8)
        else:
            await self._follow(conversation, reading)
            self._check(conversation, reading, told)
            if reading.end is not None and self._chance.random() < 0.4:
                await self._read_again(conversation, reading)
            self._completed(conversation, told, began)

    async def _read(
        self,
        conversation: Conversation,
        reading: Reading,
        heard: AsyncIterator[Heard],
        told: Told,
        manner: str,
    ) -> None:
        """Read a stream, in one manner or another."""
        until = self._chance.randint(1, 12)
        count = 0
        async for one in heard:
            reading.take(one)
            if reading.turn_id:
                conversation.begun(told, reading.turn_id)
            count += 1
            if manner == "client reads slowly":
                await asyncio.sleep(self._chance.uniform(0.02, 0.15))
            if count == until and reading.end is None:
                if manner == "client vanishes and comes back":
                    return
                if manner == "client interrupts":
                    answer = await self.api.call("POST", f"{conversation.path}/interrupt", {})
                    conversation.note(answer, "an interrupt")

    async def _follow(self, conversation: Conversation, reading: Reading) -> None:
        """Come back until the turn's end was read."""
        while reading.end is None:
            await self._pause(0.0, 0.4)
            try:
                async with self._come_back(conversation, reading) as opened:
                    status = opened.answer.status
                    conversation.note(opened.answer, "coming back")
                    self._record.resumed += 1
                    if status == 204:
                        return  # nothing is left to read: the turn's record must know the end
                    if status == 404:
                        return
                    if status == 400:
                        self._record.violate(
                            "an id that was sent can be come back with",
                            f"{conversation.path}, {reading.last_id}: {opened.answer.body}",
                        )
                        return
                    await self._read_on(reading, opened.events)
            except Broken:
                continue
            except Silent:
                self._record.violate("streams show that they live", f"{conversation.path}/events")

    async def _read_on(self, reading: Reading, heard: AsyncIterator[Heard]) -> None:
        """Read to the turn's end, or hang up before."""
        until = self._chance.randint(1, 40) if self._chance.random() < 0.3 else 0
        async for one in heard:
            reading.take(one)
            until -= 1
            if reading.end is not None or until == 0:
                return

    def _come_back(self, conversation: Conversation, reading: Reading) -> Any:
        path = f"{conversation.path}/events"
        if self._chance.random() < 0.5:
            return self.api.open("GET", f"{path}?after={reading.last_id}")
        return self.api.open("GET", path, headers={"last-event-id": str(reading.last_id)})

    async def _read_again(self, conversation: Conversation, reading: Reading) -> None:
        """Read a turn that has ended from one of its ids on: nothing may be otherwise."""
        if len(reading.ids) < 2 or reading.gap:
            return
        again = reading.again_from(self._chance.choice(reading.ids[:-1]))
        begun_at = again.last_id
        try:
            async with self._come_back(conversation, again) as opened:
                conversation.note(opened.answer, "reading again")
                if opened.answer.status != 200:
                    return
                async for heard in opened.events:
                    again.take(heard)
                    if again.end is not None:
                        break
        except Broken:
            return
        except Silent:
            self._record.violate("streams show that they live", f"{conversation.path}/events")
            return
        if not again.gap and (again.end, again.raw) != (reading.end, reading.raw):
            self._record.violate(
                "reading again gives the same",
                f"{conversation.path}, turn {reading.turn_id}, from {begun_at}: "
                f"{again.raw[-80:]!r} {again.end} and before {reading.raw[-80:]!r} {reading.end}",
            )

    # -- what is found ---------------------------------------------------------------------

    def _check(self, conversation: Conversation, reading: Reading, told: Told) -> None:
        """Compare what was read with the answer that the end gave."""
        if reading.gap:
            self._record.gaps += 1
        if reading.end is None:
            return
        conversation.ended(told, str(reading.end["outcome"]), str(reading.end["response"]))
        if not reading.gap and reading.text != told.response:
            self._record.violate(
                "text less discard is the answer",
                f"{conversation.path}, turn {reading.turn_id} ({told.outcome}): read "
                f"{reading.text!r}, answered {told.response!r}",
            )
        if reading.end.get("code") == "internal":
            self._record.violate(
                "no turn ends by our mistake",
                f"{conversation.path}, turn {reading.turn_id}: {reading.end['message']}",
            )

    def _completed(self, conversation: Conversation, told: Told, began: float) -> None:
        if told.outcome is not None:
            self._record.outcomes[told.outcome] = self._record.outcomes.get(told.outcome, 0) + 1
        if told.outcome == "completed":
            self._record.completed(conversation.session_id, began)

    def _expect(self, answer: Answer, to: str, allowed: frozenset[int]) -> None:
        if answer.status not in allowed and answer.status != 500:
            self._record.violate("answers are those of the API", f"{to}: {answer}")

    async def _pause(self, least: float, most: float) -> None:
        seconds = self._chance.uniform(least, most)
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            pass
