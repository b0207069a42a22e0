"""Room for processes by number and by memory, with a meter that says what it likes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from session_supervisor import MemoryPolicy
from session_supervisor.agents.port import Fingerprint, Member, Tree
from session_supervisor.agents.scripted import Say, ScriptedAgent, ScriptedProcess, by_prompt
from session_supervisor.errors import AtCapacity, MemoryFull
from session_supervisor.lifecycle import State
from session_supervisor.memory import Memory, machine_limit, memory_of
from session_supervisor.slots import Slots
from tests.support.sessions import supervising
from tests.support.virtual_time import VirtualWorld, virtual

MIB = 2**20


def tree_of(size: int) -> Tree:
    """Return a process alone that takes so many bytes."""
    return Tree(members=(Member(pid=1, parent=0, name="one", pss_bytes=size),))


class Room(RuleBasedStateMachine):
    """Sessions that want a process, have one, rest, are asked to leave and do, or work again."""

    @initialize(bound=st.integers(1, 4), budget=st.integers(1, 12))
    def open(self, bound: int, budget: int) -> None:
        self.world = VirtualWorld()
        self.bound, self.budget = bound, budget
        self.slots = Slots(bound, Memory(budget, process_bytes=2))
        self.names = 0
        self.sizes: dict[str, int] = {}
        self.wanting: dict[str, asyncio.Task[None]] = {}
        self.resting: list[str] = []
        self.asked: list[str] = []

    @property
    def holding(self) -> list[str]:
        return [one for one, task in self.wanting.items() if task.done()]

    def pick(self, index: int) -> str:
        return self.holding[index % len(self.holding)]

    def used(self) -> int:
        return sum(self.sizes.get(one, 2) for one in self.holding)

    @rule(owner=st.sampled_from("abc"))
    def want(self, owner: str) -> None:
        self.names += 1
        name = f"{owner}{self.names}"
        before = len(self.holding), self.used()
        self.wanting[name] = self.world.start(self.slots.take(name, owner=owner))
        self.world.settle()
        if self.wanting[name].done():
            assert before[0] < self.bound
            assert not before[0] or before[1] + 2 <= self.budget
            self.slots.lives(name, lambda: self.look(name))

    async def look(self, name: str) -> Tree:
        await asyncio.sleep(0)
        return tree_of(self.sizes[name]) if name in self.sizes else Tree()

    @precondition(lambda self: self.holding)
    @rule(index=st.integers(0, 9))
    def rest(self, index: int) -> None:
        name = self.pick(index)
        if name not in self.resting:
            self.resting.append(name)
            self.slots.rests(name, lambda: self.asked.append(name))

    @precondition(lambda self: self.holding)
    @rule(index=st.integers(0, 9))
    def work(self, index: int) -> None:
        name = self.pick(index)
        self.slots.works(name)
        for names in (self.resting, self.asked):
            if name in names:
                names.remove(name)

    @precondition(lambda self: self.asked)
    @rule(index=st.integers(0, 9))
    def leave(self, index: int) -> None:
        self.end(self.asked[index % len(self.asked)])

    @precondition(lambda self: self.holding)
    @rule(index=st.integers(0, 9))
    def crash(self, index: int) -> None:
        self.end(self.pick(index))

    def end(self, name: str) -> None:
        del self.wanting[name]
        self.sizes.pop(name, None)
        for names in (self.resting, self.asked):
            if name in names:
                names.remove(name)
        self.slots.give_back(name)
        self.world.settle()
        for one in self.holding:
            self.slots.lives(one, lambda one=one: self.look(one))  # type: ignore[misc]

    @precondition(lambda self: len(self.wanting) > len(self.holding))
    @rule(index=st.integers(0, 9))
    def give_up_waiting(self, index: int) -> None:
        waiting = [one for one, task in self.wanting.items() if not task.done()]
        name = waiting[index % len(waiting)]
        self.wanting.pop(name).cancel()
        self.world.settle()

    @rule(sizes=st.lists(st.integers(0, 9), min_size=4, max_size=4))
    def measure(self, sizes: list[int]) -> None:
        self.sizes = dict(zip(self.holding, sizes, strict=False))
        self.world.run(self.slots.measure())
        self.world.settle()
        for one in self.holding:
            self.slots.lives(one, lambda one=one: self.look(one))  # type: ignore[misc]

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if not hasattr(self, "world"):
            return
        holding = self.holding
        waiting = len(self.wanting) - len(holding)
        assert self.slots.taken == len(holding) <= self.bound
        assert self.slots.waiting == waiting
        assert self.slots.memory_bytes == self.used()
        rested = [one for one in self.resting if one not in self.asked]
        free = len(holding) < self.bound
        fits = not holding or self.used() + 2 <= self.budget
        if waiting:
            assert not (free and fits), "there is room, and somebody waits"
        stay = [one for one in holding if one not in self.asked]
        stays = sum(self.sizes.get(one, 2) for one in stay)
        too_many = len(stay) + waiting > self.bound
        too_much = len(stay) + waiting > 1 and stays + 2 * waiting > self.budget
        if rested:
            assert not too_many, "somebody rests who could make room"
            assert not too_much, "somebody rests who could make memory"

    def teardown(self) -> None:
        if hasattr(self, "world"):
            with self.world:
                for name in tuple(self.wanting):
                    self.wanting.pop(name).cancel()
                self.world.settle()


TestRoom = Room.TestCase
TestRoom.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


class GrowingAgent(ScriptedAgent):
    """An agent whose processes take what they are told to, of one session at least."""

    sizes: dict[str, int]

    async def spawn(
        self, fingerprint: Fingerprint, *, resume: str | None = None
    ) -> ScriptedProcess:
        process = await super().spawn(fingerprint, resume=resume)

        async def tree() -> Tree:
            assert process.binding is not None
            size = self.sizes.get(process.binding.session_id, 100 * MIB)
            return tree_of(size)

        process.tree = tree  # type: ignore[method-assign]
        return process


def growing_agent() -> GrowingAgent:
    agent = GrowingAgent(by_prompt({"slow": [Say("a b", deltas=2, every_s=50.0)]}))
    agent.sizes = {}
    return agent


@virtual()
async def test_whoever_rests_makes_room_and_where_all_are_busy_the_next_is_refused() -> None:
    agent = growing_agent()
    policy = MemoryPolicy(budget_bytes=400 * MIB, process_bytes=100 * MIB, interval_s=1.0)
    async with supervising(agent, memory=policy) as supervisor:
        first, second = await supervisor.start(), await supervisor.start()
        busy = await second.query("slow")
        await asyncio.sleep(5)
        assert supervisor.snapshot().memory_bytes == 200 * MIB
        assert supervisor.snapshot().memory_budget_bytes == 400 * MIB
        agent.sizes[second.session_id] = 350 * MIB
        await asyncio.sleep(2)
        assert first.state is State.HIBERNATED, "450 of 400 MiB"
        assert supervisor.snapshot().memory_bytes == 350 * MIB
        with pytest.raises(MemoryFull, match="350 of the 400 MiB") as caught:
            await supervisor.start()
        assert isinstance(caught.value, AtCapacity)
        assert (caught.value.code, bool(caught.value.retry_after)) == ("at_capacity", True)
        waiting = await first.query("x")
        assert first.snapshot().state is State.STARTING, "a session that there is waits"
        await busy.result()
        await waiting.result()
        assert second.state is State.HIBERNATED
        assert agent.most_live == 2


@virtual()
async def test_one_process_may_live_however_little_memory_there_is() -> None:
    agent = growing_agent()
    async with supervising(agent, memory=MemoryPolicy(budget_bytes=1)) as supervisor:
        sessions = [await supervisor.start() for _ in range(3)]
        for session in sessions:
            await (await session.query("x")).result()
        assert agent.most_live == 1


def test_the_limit_is_the_smallest_of_all_that_there_are(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert machine_limit(tmp_path) is None
    write("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 5 kB\n")
    assert machine_limit(tmp_path) == 1_024_000
    write("proc/self/cgroup", "0::/outer/inner\n")
    write("sys/fs/cgroup/outer/inner/memory.max", "max\n")
    assert machine_limit(tmp_path) == 1_024_000
    write("sys/fs/cgroup/outer/memory.max", "900000\n")
    assert machine_limit(tmp_path) == 900_000
    write("sys/fs/cgroup/memory.max", "800000\n")
    assert machine_limit(tmp_path) == 800_000
    write("proc/self/cgroup", "9:cpu:/x\n5:memory:/docker/7\n")
    write("sys/fs/cgroup/memory/docker/7/memory.limit_in_bytes", "9223372036854771712\n")
    assert machine_limit(tmp_path) == 1_024_000
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "700000\n")
    assert machine_limit(tmp_path) == 700_000


def test_the_budget_is_a_share_of_this_machine_where_nobody_says_more() -> None:
    limit = machine_limit()
    assert limit is not None
    memory = memory_of(MemoryPolicy(share=0.5))
    assert memory is not None
    assert memory.budget_bytes == limit // 2
    memory = memory_of(MemoryPolicy(budget_bytes=7))
    assert memory is not None
    assert memory.budget_bytes == 7
