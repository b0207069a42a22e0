"""A server with as many sessions as a database holds, and a scripted agent: the layer with a past.

It prints its URL and serves until SIGTERM. What it is asked beside is a one-off query, whose words
are due at a fixed pace.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.suite.layer_server import MOST, Speech
from session_http.app import create_app
from session_http.collector import calm_collector
from session_http.listen import close_all, open_sockets, urls
from session_http.serve import (
    Stop,
    StopTimes,
    raise_file_limit,
    run,
    serve,
    stopped_by_signals,
)
from session_supervisor import Supervisor, SupervisorConfig
from session_supervisor.agents.scripted import ScriptedAgent
from session_supervisor.stores.sqlite import SqliteStore


async def _main(database: Path, speech: Speech) -> None:
    stop = Stop()
    agent = ScriptedAgent(speech.script, history=0)
    config = SupervisorConfig(max_sessions=MOST, max_live=MOST, max_waiting=MOST, max_starting=MOST)
    raise_file_limit()
    sockets = open_sockets("127.0.0.1", 0)
    store = SqliteStore(database, config.retention)
    try:
        with stopped_by_signals(stop):
            async with Supervisor(agent, store=store, config=config) as supervisor:
                print(*urls("127.0.0.1", sockets), flush=True)
                times = StopTimes(drain_s=0.0)
                with calm_collector():
                    await serve(create_app(supervisor), supervisor, sockets, stop=stop, times=times)
    finally:
        close_all(sockets)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.suite.scale_server")
    parser.add_argument("database", type=Path)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    options = parser.parse_args()
    speech = Speech(options.tokens, options.delay_ms / 1000)
    run(_main(options.database, speech))
