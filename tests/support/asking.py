"""Agents that ask, whose answers are compared with what is stored, and messages to sessions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from session_supervisor import Session, TurnHandle
from session_supervisor.agents.port import Fingerprint
from session_supervisor.agents.scripted import Manners, Script, ScriptedAgent, ScriptedProcess
from session_supervisor.asks import (
    Allow,
    Answers,
    Decision,
    Deny,
    Question,
    Request,
    RequestKind,
    Resolution,
)
from session_supervisor.core import SessionCore
from session_supervisor.events import Event, PermissionRequest, Resolved
from session_supervisor.events import Question as Asked
from session_supervisor.messages import Configure, Query, Restart, Withdraw
from session_supervisor.quotas import Quota
from session_supervisor.session import submit
from session_supervisor.spec import Prompt
from session_supervisor.stores.port import Store
from tests.support.sessions import at_once

COLOUR = Question(question="Which colour?")

TOLD = {
    Allow: {Resolution.ALLOWED},
    Answers: {Resolution.ANSWERED},
    Deny: {Resolution.DENIED, Resolution.EXPIRED, Resolution.CANCELLED},
}
"""What must be stored of a request when its agent is told so."""


class WatchedAgent(ScriptedAgent):
    """Notes what its processes are told that the store does not know, or that they know already."""

    def __init__(self, script: Script, *, store: Store, manners: Manners) -> None:
        super().__init__(script, manners=manners)
        self.store = store
        self.wrongs: list[str] = []
        self.told = Counter[str]()

    async def spawn(
        self, fingerprint: Fingerprint, *, resume: str | None = None
    ) -> ScriptedProcess:
        process = await super().spawn(fingerprint, resume=resume)
        answer = process.answer

        async def watched(request_id: str, decision: Decision) -> None:
            self.told[request_id] += 1
            assert process.binding is not None
            stored = at_once(self.store.request(process.binding.session_id, request_id))
            # What nobody was asked is not stored, and denied.
            fits = (
                isinstance(decision, Deny)
                if stored is None
                else (stored.resolution in TOLD[type(decision)])
            )
            if not fits:
                self.wrongs.append(f"{decision} was told where the store has {stored}")
            await answer(request_id, decision)

        setattr(process, "answer", watched)  # noqa: B010  (the types know it as a method)
        return process

    def check_told(self) -> None:
        """Fail if it was told what is not so, or twice."""
        assert not self.wrongs, self.wrongs
        twice = [request_id for request_id, times in self.told.items() if times > 1]
        assert not twice, f"the agent was told twice: {twice}"


def decision_on(request: Request, what: str) -> Decision:
    """Return an answer to a request: `deny`, `end`, or whatever is favourable to it."""
    if what == "deny":
        return Deny(message="no")
    if what == "end":
        return Deny(end_turn=True)
    if request.kind is RequestKind.QUESTION:
        return Answers(answers={one.question: ("red",) for one in request.questions})
    return Allow()


def resolutions_of(events: Sequence[Event]) -> dict[str, list[Resolution]]:
    """Return what was said of each request that was told of; at most one thing, if all is well."""
    found: dict[str, list[Resolution]] = {}
    for event in events:
        match event.body:
            case PermissionRequest() | Asked():
                assert event.body.request_id not in found, "it was asked twice"
                found[event.body.request_id] = []
            case Resolved():
                found.setdefault(event.body.request_id, []).append(event.body.resolution)
            case _:
                pass
    return found


def core_of(session: Session) -> SessionCore:
    """Return what is behind a handle, for messages that no handle sends."""
    return session._core  # pyright: ignore[reportPrivateUsage]


async def offer(
    session: Session, prompt: str | Prompt, *, quota: Quota | None = None, **more: Any
) -> TurnHandle:
    """Put a query to a session as it is, without what handles add."""
    if isinstance(prompt, str):
        prompt = Prompt(prompt_id=str(uuid4()), text=prompt)
    core = core_of(session)
    return await submit(core, Query(prompt=prompt, place=core.account.take_turn(quota), **more))


async def tell(session: Session, message: Withdraw | Configure | Restart) -> Any:
    """Send a session a control message as it is, and return the answer."""
    core_of(session).mailbox.offer_control(message)
    return await message.reply.wait()
