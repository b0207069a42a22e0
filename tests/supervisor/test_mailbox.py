"""The mailbox against a model: two lanes, bounds, and one answer to every message."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from session_supervisor.errors import MailboxFull, SessionClosed, SessionFailed
from session_supervisor.mailbox import AlreadySettled, Mailbox, Reply
from session_supervisor.messages import Close, Control, Inspect, Interrupt, Query
from session_supervisor.spec import Prompt
from tests.support.virtual_time import virtual

MAX_WORK, MAX_CONTROL = 3, 4


@dataclass
class Model:
    """What a mailbox holds, said plainly."""

    control: list[Control] = field(default_factory=list[Control])
    new: list[Query] = field(default_factory=list[Query])
    acknowledged: list[Query] = field(default_factory=list[Query])
    outside: list[Control | Query] = field(default_factory=list["Control | Query"])
    offers: int = 0


class MailboxMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.rings = 0
        self.work_shut = False
        self.mailbox = Mailbox[Control, Query](
            max_work=MAX_WORK, max_control=MAX_CONTROL, on_offer=self._ring
        )

    def _ring(self) -> None:
        self.rings += 1

    @rule(kind=st.sampled_from([Interrupt, Inspect, Close]))
    def offer_control(self, kind: type[Interrupt | Inspect | Close]) -> None:
        message = kind()
        if len(self.model.control) >= MAX_CONTROL:
            with pytest.raises(MailboxFull):
                self.mailbox.offer_control(message)
        else:
            self.mailbox.offer_control(message)
            self.model.control.append(message)
            self.model.offers += 1

    @rule()
    def offer_always(self) -> None:
        message = Close()
        self.mailbox.offer_control(message, always=True)
        self.model.control.append(message)
        self.model.offers += 1

    @rule()
    def offer_work(self) -> None:
        message = Query(prompt=Prompt(prompt_id=f"turn {self.model.offers}", text="x"))
        if self.work_shut:
            with pytest.raises(SessionFailed):
                self.mailbox.offer_work(message)
        elif len(self.model.new) + len(self.model.acknowledged) >= MAX_WORK:
            with pytest.raises(MailboxFull):
                self.mailbox.offer_work(message)
        else:
            self.mailbox.offer_work(message)
            self.model.new.append(message)
            self.model.offers += 1

    @rule()
    def next_control(self) -> None:
        message = self.mailbox.next_control()
        if not self.model.control:
            assert message is None
            return
        assert message is not None
        most_urgent = max(message.urgency for message in self.model.control)
        expected = next(each for each in self.model.control if each.urgency == most_urgent)
        assert message is expected
        self.model.control.remove(message)
        self.model.outside.append(message)

    @rule()
    def acknowledge(self) -> None:
        message = self.mailbox.acknowledge()
        assert message is (self.model.new[0] if self.model.new else None)
        if message is not None:
            self.model.acknowledged.append(self.model.new.pop(0))

    @rule()
    def take(self) -> None:
        message = self.mailbox.take()
        assert message is (self.model.acknowledged[0] if self.model.acknowledged else None)
        if message is not None:
            self.model.outside.append(self.model.acknowledged.pop(0))

    def _taken(self) -> list[Query]:
        return [
            message
            for message in self.model.outside
            if isinstance(message, Query) and not message.settled
        ]

    @precondition(lambda self: self._taken())
    @rule()
    def put_back(self) -> None:
        message = self._taken()[-1]
        self.model.outside.remove(message)
        self.mailbox.put_back(message)
        self.model.acknowledged.insert(0, message)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        waiting = [*self.model.acknowledged, *self.model.new]
        if not waiting:
            assert self.mailbox.withdraw("nobody") is None
            return
        chosen = data.draw(st.sampled_from(waiting))
        taken = self.mailbox.withdraw(chosen.key)
        if chosen in self.model.acknowledged:
            assert taken is chosen
            self.model.acknowledged.remove(chosen)
            self.model.outside.append(chosen)
        else:
            assert taken is None, "a message that was not acknowledged cannot be withdrawn"

    @rule(data=st.data())
    def prefer(self, data: st.DataObject) -> None:
        waiting = [*self.model.acknowledged, *self.model.new]
        if not waiting:
            self.mailbox.prefer("nobody")
            return
        chosen = data.draw(st.sampled_from(waiting))
        self.mailbox.prefer(chosen.key)
        if chosen in self.model.acknowledged:
            self.model.acknowledged.remove(chosen)
            self.model.acknowledged.insert(0, chosen)

    @precondition(lambda self: self.model.outside)
    @rule()
    def answer(self) -> None:
        self.model.outside.pop(0).refuse(SessionClosed("x"))

    @rule()
    def shut_work(self) -> None:
        self.work_shut = True
        self.mailbox.shut_work(lambda: SessionFailed("x", "it crashed."))

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        model = self.model
        assert self.mailbox.waiting_control == len(model.control)
        assert self.mailbox.waiting_work == len(model.new) + len(model.acknowledged)
        open_outside = [message for message in model.outside if not message.settled]
        assert self.mailbox.unanswered == (
            len(model.control) + len(model.new) + len(model.acknowledged) + len(open_outside)
        )
        assert self.rings == model.offers

    def teardown(self) -> None:
        everyone = [
            *self.model.control,
            *self.model.new,
            *self.model.acknowledged,
            *self.model.outside,
        ]
        self.mailbox.shut(lambda: SessionClosed("x"))
        assert all(message.settled for message in everyone)
        assert self.mailbox.unanswered == 0
        assert (self.mailbox.waiting_work, self.mailbox.waiting_control) == (0, 0)
        assert (self.mailbox.take(), self.mailbox.acknowledge()) == (None, None)
        assert self.mailbox.next_control() is None
        for message in (Interrupt(), Close()):
            with pytest.raises(SessionClosed):
                self.mailbox.offer_control(message)


TestMailbox = MailboxMachine.TestCase
TestMailbox.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@virtual()
async def test_a_reply_is_written_once() -> None:
    reply = Reply[int]()
    reply.settle(1)
    with pytest.raises(AlreadySettled):
        reply.settle(2)
    with pytest.raises(AlreadySettled):
        reply.refuse(ValueError())
    assert await reply.wait() == 1
    assert await reply.wait() == 1


@virtual()
async def test_a_refused_reply_raises_for_everybody_who_waits() -> None:
    reply = Reply[int]()
    reply.refuse(SessionClosed("x"))
    for _ in range(2):
        with pytest.raises(SessionClosed):
            await reply.wait()
