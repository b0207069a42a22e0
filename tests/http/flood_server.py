"""A server, as a process, whose application says more than any client reads.

`--plain` serves it with Hypercorn alone, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any, cast

import hypercorn.asyncio
from hypercorn.config import Config

from session_http.accept import Acceptor
from session_http.listen import open_sockets
from session_http.serve import run
from session_http.wire import ConnectionLimits

PIECE = b"x" * 65_536


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Send without end, until the client is gone."""
    if scope["type"] != "http":
        return

    async def flood() -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await asyncio.sleep(0)

    flooding = asyncio.create_task(flood())
    while (await receive())["type"] != "http.disconnect":
        pass
    flooding.cancel()


def say(port: int) -> None:
    """Tell where it listens."""
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


async def _main(*, plain: bool) -> None:
    (listener,) = open_sockets("127.0.0.1", 0)
    port = listener.getsockname()[1]
    config = Config()
    config.accesslog = config.errorlog = None
    if plain:
        listener.close()
        config.bind = [f"127.0.0.1:{port}"]
        say(port)
        await cast(Any, hypercorn.asyncio).serve(app, config)
        return
    acceptor = Acceptor(app, config, ConnectionLimits(), most=10, tls=None, http2=True)
    async with asyncio.TaskGroup() as tasks:
        say(port)
        await acceptor.accept(listener, tasks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain", action="store_true")
    run(_main(plain=parser.parse_args().plain))
