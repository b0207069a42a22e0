"""`python -m session_http.offline`: the offline model as a process.

It prints its base URL on one line and serves until SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import signal
import sys

import anyio

from session_http.offline.directives import DirectiveError
from session_http.offline.reply import Pacing
from session_http.offline.scenario import Scenario
from session_http.offline.server import OfflineModel


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m session_http.offline",
        description="Answer the Messages API on loopback, without network or key.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="port, 0 for a free one (0)")
    parser.add_argument("--seed", type=int, help="let things go wrong by chance with this seed")
    parser.add_argument(
        "--fault",
        nargs=2,
        action="append",
        default=[],
        metavar=("SHARE", "DIRECTIVE"),
        help="with --seed: what goes wrong, and for which share of requests, e.g. "
        "--fault 0.1 '[[cut after=3]]'; repeatable; without it a mixture of everything",
    )
    parser.add_argument("--delay-ms", type=float, default=0, help="time between two deltas (0)")
    parser.add_argument("--tokens", type=int, help="length of the default answer, in deltas")
    options = parser.parse_args(arguments)
    try:
        scenario = _scenario(options.seed, options.fault)
    except (ValueError, DirectiveError) as error:
        parser.error(str(error))
    pacing = Pacing(tokens=options.tokens, delay_s=options.delay_ms / 1000)
    model = OfflineModel(options.host, options.port, scenario, pacing=pacing)
    try:
        anyio.run(_serve, model)
    except OSError as error:
        parser.exit(1, f"{options.host}:{options.port} cannot be listened on: {error}\n")
    return 0


async def _serve(model: OfflineModel) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with model:
            sys.stdout.write(f"{model.base_url}\n")
            sys.stdout.flush()
            async for _ in signals:
                break


def _scenario(seed: int | None, faults: list[list[str]]) -> Scenario | None:
    if seed is None:
        if faults:
            raise ValueError("--fault needs --seed")
        return None
    if not faults:
        return Scenario.chaos(seed)
    return Scenario(seed=seed, faults={text: float(share) for share, text in faults})


if __name__ == "__main__":
    sys.exit(main())
