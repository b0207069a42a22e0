"""The server with a `ScriptedAgent` in place of Claude Code: the layer alone, as a process.

It prints its URL and serves until SIGTERM. The answer has as many deltas as it is told, with no
time between them or with some.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from session_http.app import create_app
from session_http.listen import close_all, open_sockets, urls
from session_http.serve import Stop, StopTimes, raise_file_limit, run, serve, stopped_by_signals
from session_supervisor import Supervisor, SupervisorConfig
from session_supervisor.agents.scripted import Conversation, Say, ScriptedAgent, Step
from session_supervisor.spec import Prompt


def agent_of(*, tokens: int, delay_s: float = 0.0) -> ScriptedAgent:
    """Return an agent that answers everything with numbered words.

    Args:
        tokens: How many, a delta each.
        delay_s: Seconds before each delta.
    """
    said = Say(" ".join(f"w{n:03}" for n in range(tokens)), deltas=tokens, every_s=delay_s)

    def script(_prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
        return (said,)

    return ScriptedAgent(script, history=0)


async def _main(tokens: int, delay_s: float, max_sessions: int) -> None:
    stop = Stop()
    agent = agent_of(tokens=tokens, delay_s=delay_s)
    config = SupervisorConfig(max_sessions=max_sessions, max_live=max_sessions)
    raise_file_limit()
    sockets = open_sockets("127.0.0.1", 0)
    try:
        with stopped_by_signals(stop):
            async with Supervisor(agent, config=config) as supervisor:
                print(*urls("127.0.0.1", sockets), flush=True)
                times = StopTimes(drain_s=0.0)
                await serve(create_app(supervisor), supervisor, sockets, stop=stop, times=times)
    finally:
        close_all(sockets)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.scripted_server")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--max-sessions", type=int, default=SupervisorConfig().max_sessions)
    options = parser.parse_args()
    run(_main(options.tokens, options.delay_ms / 1000, options.max_sessions))
