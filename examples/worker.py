"""Works jobs off a queue, without any HTTP.

    cat jobs.jsonl | python examples/worker.py

A line of standard input is a job: {"id": "1", "prompt": "What is Docker?", "repeatable": true}.
A line of standard output is what became of one. SIGTERM stops it: what runs may end, and what does
not in time goes back. It needs a Claude credential: docs/authentication.md.
"""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from session_supervisor import (
    Agent,
    Down,
    Outcome,
    Restarted,
    SessionSpec,
    Supervisor,
    SupervisorConfig,
    TurnResult,
)
from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.errors import FailureCode, InvalidSpec, Refused

T = TypeVar("T")

SPEC = SessionSpec(allowed_tools=("Read", "Grep", "Glob"))
MOST_ATTEMPTS = 3
RETRY_S = 5.0
NEVER_RAN = {FailureCode.DRAINED, FailureCode.START_FAILED, FailureCode.SESSION_FAILED}
logger = logging.getLogger("worker")


@dataclass(frozen=True, kw_only=True)
class Job:
    id: str
    prompt: str
    repeatable: bool = False
    """Whether it does no harm to run it twice: its tools may have had effects the first time."""
    attempts: int = 0


class Queue(Protocol):
    """What is needed of yours. Whoever takes a job calls one of the other three, once."""

    async def take(self) -> Job | None: ...
    async def done(self, job: Job, text: str) -> None: ...
    async def failed(self, job: Job, reason: str) -> None: ...
    async def put_back(self, job: Job, delay_s: float) -> None: ...


# -- the worker ------------------------------------------------------------------------------------


async def run(
    queue: Queue, agent: Agent, *, at_once: int, stop: asyncio.Event, grace_s: float = 30.0
) -> None:
    """Work until there are no more jobs, or `stop` is set; no job is left undecided then.

    Args:
        queue: Where the jobs are.
        agent: Does them.
        at_once: Jobs at the same time, each with a process of its own.
        stop: Set from outside, or when processes cannot be kept running.
        grace_s: Seconds that running jobs may still take after `stop`.
    """
    config = SupervisorConfig(max_live=at_once)
    async with Supervisor(agent, config=config) as supervisor, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch(supervisor, stop))
        draining = tasks.create_task(drain_on(stop, supervisor, grace_s))
        working = [tasks.create_task(work(queue, supervisor, stop)) for _ in range(at_once)]
        await asyncio.wait(working)
        watching.cancel()
        draining.cancel()


async def work(queue: Queue, supervisor: Supervisor, stop: asyncio.Event) -> None:
    while not stop.is_set() and (job := await unless(stop, queue.take())) is not None:
        try:
            turn = await supervisor.query(job.prompt, SPEC, timeout_s=600.0)
        except InvalidSpec as error:
            await queue.failed(job, str(error))
        except Refused as error:  # nothing was begun: draining, for one
            await queue.put_back(job, error.retry_after or 0.0)
        else:
            result = await turn.wait()
            # Forgets the session, and returns when its process is gone: then there is room again.
            await supervisor.close(turn.session_id)
            await decide(job, result, queue)


async def decide(job: Job, result: TurnResult, queue: Queue) -> None:
    """Hand a job back by how its turn ended."""
    failure = result.failure
    if result.outcome is Outcome.COMPLETED:
        await queue.done(job, result.text)
    elif result.outcome is Outcome.FAILED and failure is not None and failure.code in NEVER_RAN:
        await queue.put_back(job, failure.retry_after or 0.0)
    elif (
        job.repeatable
        and job.attempts + 1 < MOST_ATTEMPTS
        # Without a failure it was interrupted, which only our drain does.
        and (failure is None or failure.retryable)
    ):
        delay_s = RETRY_S if failure is None else failure.retry_after or RETRY_S
        await queue.put_back(replace(job, attempts=job.attempts + 1), delay_s)
    else:
        reason = "it was interrupted" if failure is None else failure.message
        await queue.failed(job, f"{result.outcome}: {reason}")


async def drain_on(stop: asyncio.Event, supervisor: Supervisor, grace_s: float) -> None:
    await stop.wait()
    await supervisor.drain(grace_s)


async def watch(supervisor: Supervisor, stop: asyncio.Event) -> None:
    """Take no more jobs when processes cannot be kept running: each would only fail."""
    async with supervisor.monitor() as monitor:
        async for notice in monitor:
            match notice:
                case Restarted():
                    logger.warning("a process crashed: %s", notice.cause)
                case Down(reason=None):
                    logger.error("given up: %s", notice.failure)
                    stop.set()
                case _:
                    pass


async def unless(stop: asyncio.Event, taking: Coroutine[Any, Any, T]) -> T | None:
    """Return what is taken, or None if `stop` is set before."""
    taken, stopped = asyncio.ensure_future(taking), asyncio.ensure_future(stop.wait())
    await asyncio.wait({taken, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if taken.done():
        return taken.result()
    taken.cancel()
    return None


# -- a queue, to try it ----------------------------------------------------------------------------


class Lines:
    """Standard input and output in the place of a queue."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._back: list[Job] = []

    async def take(self) -> Job | None:
        if line := await self._reader.readline():
            return Job(**json.loads(line))
        return self._back.pop(0) if self._back else None

    async def done(self, job: Job, text: str) -> None:
        print(json.dumps({"id": job.id, "done": text}), flush=True)

    async def failed(self, job: Job, reason: str) -> None:
        print(json.dumps({"id": job.id, "failed": reason}), flush=True)

    async def put_back(self, job: Job, delay_s: float) -> None:
        print(json.dumps({"id": job.id, "put_back": job.attempts}), flush=True)
        self._back.append(job)


async def main() -> None:
    logging.basicConfig(level=logging.INFO)
    loop, stop, reader = asyncio.get_running_loop(), asyncio.Event(), asyncio.StreamReader()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await run(Lines(reader), ClaudeAgent(), at_once=2, stop=stop)


if __name__ == "__main__":
    asyncio.run(main())
