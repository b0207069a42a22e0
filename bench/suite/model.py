"""The offline model as a process, whose words say when they were said.

`session_http.offline` answers with numbered words; here each gets its time as it is sent, so that
lag can be told from the model to the client, whatever is between them. The first also says when the
model was asked: what passed until then is the server's time and Claude Code's, not the model's.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from typing import Any, cast

import anyio

from bench.suite.stamps import word
from session_http.offline import OfflineModel, Pacing
from session_http.serve import run

_DELTA = re.compile(rb'"text":\s*" ?w(\d+) ?"')


class Stamping:
    """An ASGI application whose deltas say when they are sent, and the first when it was asked."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked_ns = time.monotonic_ns()

        def said(found: re.Match[bytes]) -> bytes:
            number = int(found[1])
            text = word(number, asked_ns=None if number else asked_ns)
            return b'"text":"%s"' % text.encode()

        async def stamped(message: Any) -> None:
            if message["type"] == "http.response.body" and message.get("body"):
                message["body"] = _DELTA.sub(said, message["body"])
            await send(message)

        await self._app(scope, receive, stamped)


async def _serve(model: OfflineModel) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with model:
            print(model.base_url, flush=True)
            async for _ in signals:
                break


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m bench.suite.model")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args(arguments)

    async def serve() -> None:
        pacing = Pacing(tokens=options.tokens, delay_s=options.delay_ms / 1000)
        model = OfflineModel(pacing=pacing)
        if not options.plain:
            model.app = cast("Any", Stamping(model.app))
        await _serve(model)

    run(serve())


if __name__ == "__main__":
    main(sys.argv[1:])
