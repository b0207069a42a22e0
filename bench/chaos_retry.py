"""The client of `bench.chaos` that sends everything again, under an `Idempotency-Key`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping

from bench.chaos_client import Answer, Api, Broken, Heard, Silent
from bench.chaos_conversation import REFUSALS, Conversation, Told
from bench.chaos_record import Reading, Record

TRIES = 60
PAUSE_S = 0.25


def key_for(word: str, chance: random.Random) -> Mapping[str, str]:
    """Return the header with a key that nobody else uses."""
    return {"idempotency-key": f"{word} {chance.getrandbits(64):x}"}


async def start(api: Api, record: Record, key: Mapping[str, str], chance: random.Random) -> str:
    """Start a session under a key, more than once; return its id, or nothing if it was in vain."""
    found: set[str] = set()
    for _ in range(TRIES):
        many = chance.choice((1, 1, 2))
        asked = [api.call("POST", "/session/start", {}, headers=key) for _ in range(many)]
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, Answer):
                record.answered(answer.status, answer.body, "POST /session/start")
                if answer.status == 200:
                    found.add(str(answer.body["session_id"]))
            elif isinstance(answer, Silent):
                record.violate("everybody is answered", "POST /session/start was not")
            elif not isinstance(answer, Broken):
                raise answer
        if len(found) > 1:
            record.violate("a key stands for one session", f"{key}: {sorted(found)}")
        if found and chance.random() < 0.5:
            return min(found)
        await asyncio.sleep(PAUSE_S)
    return min(found, default="")


class Retrying:
    """Asks until it is answered, in whatever form, and then once more.

    Args:
        conversation: Where.
        told: What is asked.
        prompt: In full.
        chance: Decides.
    """

    def __init__(
        self, conversation: Conversation, told: Told, prompt: str, chance: random.Random
    ) -> None:
        self._conversation = conversation
        self._record = conversation.witness.record
        self._told = told
        self._prompt = prompt
        self._chance = chance
        self._key = key_for(told.word, chance)
        self._reading = Reading(conversation.witness)
        self._failed: str | None = None

    async def ask(self) -> None:
        """Ask until the turn's end is known; then everything that is asked again agrees."""
        for tried in range(TRIES):
            hangs_up = tried < 4 and self._chance.random() < 0.6
            many = 2 if self._chance.random() < 0.2 else 1
            await asyncio.gather(*(self._once(hangs_up=hangs_up) for _ in range(many)))
            if self._known or self._conversation.over:
                break
            await asyncio.sleep(self._chance.uniform(0.0, 2 * PAUSE_S))
        if self._known and not self._conversation.over:
            await self._once(hangs_up=False)
            await self._another_body()

    @property
    def _known(self) -> bool:
        return self._told.outcome is not None or self._failed is not None

    async def _once(self, *, hangs_up: bool) -> None:
        """Send it, in one form or another."""
        try:
            async with asyncio.timeout(self._chance.uniform(0.02, 1.0) if hangs_up else None):
                if self._chance.random() < 0.5:
                    await self._stream()
                else:
                    await self._wait()
        except Broken:
            pass
        except Silent:
            self._record.violate("everybody is answered", f"{self._conversation.path}/query")
        except TimeoutError:  # hung up
            pass

    async def _wait(self) -> None:
        path = f"{self._conversation.path}/query"
        answer = await self._conversation.api.call(
            "POST", path, {"prompt": self._prompt}, headers=self._key
        )
        self._note(answer)
        if answer.status == 200:
            self._conversation.begun(self._told, str(answer.body["turn_id"]))
            self._conversation.ended(
                self._told, str(answer.body["outcome"]), str(answer.body["response"])
            )

    def _note(self, answer: Answer) -> None:
        self._conversation.note(answer, "a query under a key")
        code = str(answer.body.get("code"))
        if "turn_id" in answer.body:
            self._conversation.begun(self._told, str(answer.body["turn_id"]))
            if answer.status not in (200, 503):
                self._failed = code
        if code == "idempotency_conflict":
            self._record.violate(
                "a key stands for one turn", f"{self._conversation.path}: {answer.body}"
            )
        elif answer.status not in (200, 204, 404, 500, *REFUSALS):
            self._record.violate(
                "answers are those of the API", f"{self._conversation.path}/query: {answer}"
            )

    async def _stream(self) -> None:
        """Ask for the events, from the beginning or behind what was read of them."""
        reading, after = Reading(self._conversation.witness), dict[str, str]()
        if self._reading.last_id and self._reading.end is None and self._chance.random() < 0.8:
            reading = self._reading.onward()
            after = {"last-event-id": str(reading.last_id)}
        path = f"{self._conversation.path}/query"
        body = {"prompt": self._prompt, "stream": True}
        async with self._conversation.api.open(
            "POST", path, body, headers={**self._key, **after}
        ) as opened:
            self._note(opened.answer)
            if opened.answer.status == 200:
                await self._read(reading, opened.events)

    async def _read(self, reading: Reading, events: AsyncIterator[Heard]) -> None:
        try:
            async for heard in events:
                reading.take(heard)
                if reading.turn_id:
                    self._conversation.begun(self._told, reading.turn_id)
        finally:
            if reading.last_id > self._reading.last_id:
                self._reading = reading
        if reading.end is not None:
            response = str(reading.end["response"])
            self._conversation.ended(self._told, str(reading.end["outcome"]), response)
            if not reading.gap and reading.text != response:
                self._record.violate(
                    "text less discard is the answer",
                    f"{self._conversation.path}, turn {reading.turn_id}: read {reading.text!r}, "
                    f"answered {response!r}",
                )

    async def _another_body(self) -> None:
        """Under the same key something else is refused."""
        path = f"{self._conversation.path}/query"
        body = {"prompt": f"Not what was said first. Remember {self._told.word}."}
        try:
            answer = await self._conversation.api.call("POST", path, body, headers=self._key)
        except (Broken, Silent):
            return
        self._conversation.note(answer, "another body under a key")
        if answer.status not in (409, 503):
            self._record.violate(
                "a key stands for one turn", f"{self._conversation.path}: another body: {answer}"
            )
