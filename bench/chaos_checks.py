"""What must hold when a run of `bench.chaos` is over: asked of a server that was just started."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from bench.chaos_client import Answer, Api, Broken, Heard, Silent
from bench.chaos_conversation import Conversation, Told, transcript, words
from bench.chaos_record import TERMINAL, Record
from bench.chaos_talk import Talker
from bench.chaos_visits import INTRUDER
from bench.chaos_world import Vitals

AT_ONCE = 4
"""Conversations that are asked at the same time what they know."""

SETTLE_S = 60.0
"""Seconds in which what was queued must have run."""

CLOSED_S = 10.0
"""Seconds in which what belonged to closed sessions must be gone."""

MORE_TASKS, MORE_DESCRIPTORS, MORE_MEMORY = 4, 6, 48 * 2**20
"""What a server may have more than when it was new, with no session left; memory in bytes."""

ROUND = 8
"""Sessions that come and go in the end, to see what each leaves."""

LEFT_MEMORY = 16 * 2**20
"""Bytes that they may leave together; of tasks and descriptors half as many as there were."""

PER_SESSION_TASKS, PER_CLI_DESCRIPTORS = 6, 12


class Checks:
    """Asks the server about everything that was ever said to it.

    Args:
        admin: The server, as somebody reaches it who sees all sessions.
        vitals: Tells what its process takes.
        record: Where violations are noted.
        talkers: The clients, who have stopped.
    """

    def __init__(
        self,
        admin: Api,
        vitals: Callable[[], Awaitable[Vitals]],
        record: Record,
        talkers: Sequence[Talker],
    ) -> None:
        self._admin = admin
        self._vitals = vitals
        self._record = record
        self.talkers = talkers
        self.prompts = 0
        self.acknowledged = 0
        self.contexts = 0

    @property
    def conversations(self) -> list[Conversation]:
        """All sessions of the run."""
        return [one for talker in self.talkers for one in talker.conversations]

    async def of_turns(self) -> None:
        """Every acknowledged prompt has one recorded end, and the log says the same."""
        for talker in self.talkers:
            for conversation in talker.conversations:
                if conversation.closing:
                    await self._of_closed(conversation)
                else:
                    await self._of_conversation(conversation)

    async def of_contexts(self) -> None:
        """Every conversation that goes on knows what it was told in turns that completed."""
        due = [
            (talker, conversation)
            for talker in self.talkers
            for conversation in talker.conversations
            if conversation.over is None
        ]

        async def some() -> None:
            while due:
                await self._of_context(*due.pop())

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())

    def of_vitals(self, now: Vitals, new: Vitals, *, when: str, sessions: int) -> None:
        """Nothing is kept that belongs to nobody.

        Args:
            now: What the server takes.
            new: What it took when it was new.
            when: For the message.
            sessions: How many there are.
        """
        tasks = new.tasks + MORE_TASKS + PER_SESSION_TASKS * (sessions + now.pooled)
        descriptors = new.descriptors + MORE_DESCRIPTORS + PER_CLI_DESCRIPTORS * now.clis
        if now.tasks > tasks:
            self._record.violate("no task leaks", f"{when}: {now.tasks}, at first {new.tasks}")
        if now.descriptors > descriptors:
            self._record.violate(
                "no descriptor leaks", f"{when}: {now.descriptors}, at first {new.descriptors}"
            )
        if now.uss > new.uss + MORE_MEMORY:
            self._record.violate(
                "no memory leaks", f"{when}: {now.uss >> 20} MB, at first {new.uss >> 20} MB"
            )

    async def of_the_end(self, new: Vitals) -> None:
        """Sessions that are closed are gone, with all that they had."""
        listed = (await self._get("/sessions?owner=*")).body.get("active_sessions", ())
        known = {one.session_id for talker in self.talkers for one in talker.conversations}
        if len(unknown := set(listed) - known) > self._record.unanswered_starts:
            self._record.violate(
                "a key stands for one session",
                f"nobody knows {sorted(unknown)}, though only {self._record.unanswered_starts} "
                "starts were not answered",
            )
        for session_id in {*listed, *known}:
            await self._close(session_id)
        for session_id in sorted(known):
            answer = await self._get(f"/session/{session_id}")
            if answer.status != 404:
                self._record.violate("closed is gone", f"{session_id}: {answer}")
        before = await self._settled()
        if before.clis > before.pooled or await self.sessions():
            self._record.violate(
                "closed is gone",
                f"{await self.sessions()} sessions and {before.clis} processes are left, though "
                f"all were closed and {before.pooled} stand ready",
            )
        self.of_vitals(before, new, when="all sessions closed", sessions=0)
        await self._come_and_go()
        self.of_what_is_left(await self._settled(), before)

    def of_what_is_left(self, now: Vitals, before: Vitals) -> None:
        """A session that comes and goes leaves nothing.

        Args:
            now: What the server takes after some did.
            before: What it took just before.
        """
        ready = max(0, now.pooled - before.pooled)
        tasks, descriptors = PER_SESSION_TASKS * ready, PER_CLI_DESCRIPTORS * ready
        for promise, left, most in (
            ("no process is left", now.clis - now.pooled, 0),
            ("no task leaks", now.tasks - before.tasks, ROUND // 2 + tasks),
            (
                "no descriptor leaks",
                now.descriptors - before.descriptors,
                ROUND // 2 + descriptors,
            ),
            ("no memory leaks", now.uss - before.uss, LEFT_MEMORY),
        ):
            if left > most:
                self._record.violate(promise, f"{ROUND} sessions that came and went left {left}")

    async def sessions(self) -> int:
        """Return how many sessions are listed."""
        return int((await self._get("/sessions?owner=*")).body["count"])

    async def _settled(self) -> Vitals:
        """Return what the server takes once no process is left but those that stand ready."""
        until = time.monotonic() + CLOSED_S
        while True:
            now = await self._vitals()
            gone = now.clis == now.pooled and not await self.sessions()
            if gone or time.monotonic() > until:
                return now
            await asyncio.sleep(0.2)

    async def _come_and_go(self) -> None:
        waiting = [self.talkers[number % len(self.talkers)] for number in range(ROUND)]

        async def some() -> None:
            while waiting:
                talker = waiting.pop()
                started = await talker.api.call("POST", "/session/start", {"initial_prompt": "Hi"})
                self._record.answered(started.status, started.body, "POST /session/start")
                if started.status != 200:
                    self._record.violate("new sessions are served in the end", f"{started}")
                else:
                    await self._close(str(started.body["session_id"]))

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())

    # -- one conversation ------------------------------------------------------------------

    async def _of_closed(self, conversation: Conversation) -> None:
        """What was closed in the middle stays closed, also under the next server."""
        self.prompts += len(conversation.told)
        answer = await conversation.api.call("GET", conversation.path)
        if conversation.closed and answer.status != 404:
            self._violate("closed is gone", conversation, f"{answer}")

    async def _of_transcript(
        self, conversation: Conversation, turns: Sequence[Mapping[str, Any]]
    ) -> None:
        """The messages are what the turns say, and what was read of them before."""
        _, found = await transcript(conversation, 7)
        conversation.read([(str(one["id"]), str(one["content"])) for one in found])
        said = [(one["turn_id"], one["role"], one["content"], one["outcome"]) for one in found]
        due: list[tuple[Any, ...]] = []
        # One that was taken out before its turn came, the model never saw.
        ran = [turn for turn in turns if turn["started_at"] is not None]
        for turn in sorted(ran, key=lambda turn: str(turn["started_at"])):
            if turn["origin"] == "user":
                due.append((turn["turn_id"], "user", turn["prompt"], None))
            due.append((turn["turn_id"], "assistant", turn["response"], turn["outcome"]))
        if said != due:
            self._violate("messages are the turns", conversation, f"{said}, though due are {due}")

    async def _of_conversation(self, conversation: Conversation) -> None:
        turns = await self._turns(conversation)
        if turns is None:
            return
        listed = Counter(str(turn["turn_id"]) for turn in turns)
        prompts = Counter(word for turn in turns for word in words(str(turn["prompt"])))
        if prompts[INTRUDER]:
            self._violate("others see nothing", conversation, "and somebody else told it something")
        await self._of_transcript(conversation, turns)
        log = await self._log(conversation, [str(turn["turn_id"]) for turn in turns])
        ends = Counter(str(heard.data["turn_id"]) for heard in log if heard.type in TERMINAL)
        for told in conversation.told:
            self.prompts += 1
            if prompts[told.word] > 1:
                self._violate("no prompt runs twice", conversation, f"{told.word}")
            if told.turn_id is None:
                continue
            self.acknowledged += 1
            if listed[told.turn_id] != 1:
                self._violate(
                    "an acknowledged prompt has one recorded end",
                    conversation,
                    f"turn {told.turn_id} is recorded {listed[told.turn_id]} times",
                )
        by_id = {told.turn_id: told for told in conversation.told if told.turn_id}
        for turn in turns:
            turn_id = str(turn["turn_id"])
            if ends[turn_id] != 1:
                self._violate(
                    "an acknowledged prompt has one recorded end",
                    conversation,
                    f"turn {turn_id} has {ends[turn_id]} ends in the log, record {_short(turn)}",
                )
            self._of_turn(conversation, turn, by_id.get(turn_id), log)

    def _of_turn(
        self,
        conversation: Conversation,
        turn: Mapping[str, Any],
        told: Told | None,
        log: Sequence[Heard],
    ) -> None:
        mine = [heard for heard in log if heard.data.get("turn_id") == turn["turn_id"]]
        pieces: list[tuple[int, str]] = []
        gap = False
        for heard in log:
            if heard.type == "gap":
                gap = True
            if heard.data.get("turn_id") != turn["turn_id"]:
                continue
            if heard.type == "text":
                assert heard.id is not None
                pieces.append((heard.id, str(heard.data["content"])))
            elif heard.type == "discard":
                pieces = [piece for piece in pieces if piece[0] <= heard.data["after"]]
        text = "".join(content for _, content in pieces)
        end = next((heard.data for heard in mine if heard.type in TERMINAL), None)
        if text != turn["response"]:
            self._violate(
                "the log is the answer",
                conversation,
                f"turn {turn['turn_id']}: log {text!r}, record {_short(turn)}, gap {gap}",
            )
        if end is not None and (end["outcome"], end["response"]) != (
            turn["outcome"],
            turn["response"],
        ):
            self._violate(
                "the log is the answer", conversation, f"end {end}, record {_short(turn)}"
            )
        if told is None:
            return
        announced = (told.outcome, told.response)
        if told.outcome is not None and announced != (turn["outcome"], turn["response"]):
            self._violate(
                "what was announced stays",
                conversation,
                f"turn {turn['turn_id']}: announced {announced}, record {_short(turn)}",
            )
        told.outcome = str(turn["outcome"])

    async def _turns(self, conversation: Conversation) -> Sequence[Mapping[str, Any]] | None:
        """Return the turns of a conversation, all ended."""
        path = f"{conversation.path}/turns"
        try:
            async with asyncio.timeout(SETTLE_S):
                while True:
                    answer = await self._get(path, conversation.api)
                    if answer.status != 200:
                        self._violate(
                            "a session stays until it is closed",
                            conversation,
                            f"{answer} (over: {conversation.over})",
                        )
                        return None
                    turns = answer.body["turns"]
                    if all(turn["phase"] == "ended" for turn in turns):
                        break
                    await asyncio.sleep(0.3)
        except TimeoutError:
            self._violate("every turn ends", conversation, f"not within {SETTLE_S:g} s")
            return None
        return [
            (await self._get(f"{path}/{turn['turn_id']}", conversation.api)).body for turn in turns
        ]

    async def _log(self, conversation: Conversation, turns: Sequence[str]) -> Sequence[Heard]:
        """Return the whole log, up to the ends of these turns."""
        missing, found = set(turns), list[Heard]()
        try:
            async with (
                asyncio.timeout(60.0),
                conversation.api.open("GET", f"{conversation.path}/events") as opened,
            ):
                self._record.answered(opened.answer.status, opened.answer.body, "the whole log")
                if not missing:
                    return found
                async for heard in opened.events:
                    found.append(heard)
                    if heard.id is not None and heard.type not in ("gap", "text"):
                        conversation.witness.hear(
                            heard.id, json.dumps(dict(heard.data), sort_keys=True)
                        )
                    if heard.type in TERMINAL:
                        missing.discard(str(heard.data["turn_id"]))
                        if not missing:
                            break
        except (TimeoutError, Broken, Silent) as error:
            self._violate(
                "the log has every end", conversation, f"{type(error).__name__}, without {missing}"
            )
        return found

    async def _of_context(self, talker: Talker, conversation: Conversation) -> None:
        asked_at = time.monotonic()
        answer = await talker.ask(conversation, "What did I say?")
        if answer is None or answer.status != 200:
            self._violate("a session goes on", conversation, f"asked in the end: {answer}")
            return
        self.contexts += 1
        self._record.completed(conversation.session_id, asked_at)
        known = set(words(str(answer.body["response"])))
        due = {told.word for told in conversation.told if told.outcome == "completed"}
        if missing := sorted(due - known):
            self._violate("contexts are whole", conversation, f"it does not know {missing}")
        if strange := sorted(known - {told.word for told in conversation.told}):
            self._violate("contexts are apart", conversation, f"it knows {strange}")

    async def _close(self, session_id: str) -> None:
        answer = await self._admin.call("DELETE", f"/session/{session_id}")
        self._record.answered(answer.status, answer.body, "DELETE")

    async def _get(self, path: str, api: Api | None = None) -> Answer:
        answer = await (api or self._admin).call("GET", path)
        self._record.answered(answer.status, answer.body, path)
        return answer

    def _violate(self, promise: str, conversation: Conversation, what: str) -> None:
        self._record.violate(promise, f"{conversation.path}: {what}")


def _short(turn: Mapping[str, Any]) -> str:
    return str({key: turn.get(key) for key in ("turn_id", "outcome", "error", "response")})
