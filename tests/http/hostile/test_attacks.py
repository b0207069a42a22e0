"""Every attack of the table gets its answer within a bounded time, and the server goes on."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.http.contract import the_contract
from tests.http.hostile.attacks import ATTACKS, Attack
from tests.http.hostile.client import HEALTH, connected
from tests.http.hostile.siege import Siege

pytestmark = pytest.mark.anyio


IN_STEP = HEALTH.replace(b"localhost\r\n", b"localhost\r\nX-Request-Id: in-step\r\n")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_an_attack_gets_its_answer_and_the_server_goes_on(
    siege: Siege, attack: Attack
) -> None:
    async with connected(siege.address) as line, asyncio.TaskGroup() as tasks:
        tasks.create_task(line.pour(attack.data))
        answer = await line.answer()
        assert answer.status == attack.status, answer
        if answer.status >= 400:
            assert answer.json["code"] == attack.code
            the_contract().check_value(answer.json, "ProblemReply")
        assert ("allow" in answer.fields) is (answer.status == 405)
        assert len(answer.body) < 10_000 or attack.status == 200
        if attack.closes:
            assert answer.fields["connection"] == "close"
            assert await line.ended()
        else:
            line.say(IN_STEP)
            assert (await line.answer()).fields["x-request-id"] == "in-step"
    await siege.goes_on()


def test_every_attack_is_named_once() -> None:
    assert not [name for name, count in Counter(one.name for one in ATTACKS).items() if count > 1]
