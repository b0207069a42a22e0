"""What is measured: servers that are started here, and such as run already.

Servers of our own share one offline model, are asked for the same, and are started only on
loopback. Of a server that runs already nothing but its API is known, so its processor time and
memory are not reported.
"""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Server, serving
from bench.suite.tree import has_ended
from bench.suite.wire import Client, Failed

OURS, BASELINE, BARE = "ours", "baseline", "bare SDK"


class NoTarget(Exception):
    """A target cannot be measured; the message says why."""


MEANING: Mapping[str, str] = {
    "not HTTP": "what is there does not speak HTTP/1.1; perhaps it is https:// and not http://",
    "connection lost": "it hangs up; perhaps it is https:// and not http://",
    "not JSON": "it answers with something other than JSON, so it is another kind of server",
    "not a JSON object": "it answers with other JSON, so it is another kind of server",
    "no answer in time": "it takes the connection and does not answer",
    "401": "it wants an API key: put one in a variable, and name that with --key-from",
    "403": "the API key may not do that",
    "404": "it does not know the reference's paths, so it is another kind of server, or the API is "
    "below a path that the URL must have",
}
"""What a failure of the first look at a server means, by the beginning of its code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server to measure.

    Attributes:
        name: What the report calls it.
        url: Where it is.
        pid: Its process, if it was started here.
        paths: Those of its API, as it lists them at `GET /`.
        headers: Sent with each request.
    """

    name: str
    url: str
    pid: int | None
    paths: frozenset[str]
    headers: Mapping[str, str]

    def client(self, *, timeout_s: float = 60.0) -> Client:
        """Return a client of it."""
        return Client(self.url, headers=self.headers, timeout_s=timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How the offline model writes.

    Attributes:
        tokens: Deltas of an answer.
        delay_ms: Milliseconds between two.
    """

    tokens: int = 20
    delay_ms: float = 20.0


def model_environment(model: Server) -> Mapping[str, str]:
    """Return what makes Claude Code talk to the offline model, and to nothing else."""
    return {
        "ANTHROPIC_BASE_URL": model.url,
        "ANTHROPIC_API_KEY": "offline",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_AUTOUPDATER": "1",
    }


@asynccontextmanager
async def own(
    names: Mapping[str, str], home: Path, env: Mapping[str, str]
) -> AsyncGenerator[Sequence[Target]]:
    """Start servers of our own, until the context ends.

    Args:
        names: For each, its further options for `session-supervisor serve`; the baseline has none.
        home: Where they may write.
        env: What they need to reach the model.
    """
    async with AsyncExitStack() as stack:
        targets: list[Target] = []
        for name, options in names.items():
            state = home / f"state-{uuid.uuid4().hex[:8]}"
            server = await stack.enter_async_context(
                serving("bench.baselines.fastapi_server", ("--port", "0"), env=env)
                if name == BASELINE
                else ours(state, shlex.split(options), env)
            )
            targets.append(await found(name, server.url, pid=server.pid))
        yield targets


def ours(
    state: Path, options: Sequence[str], env: Mapping[str, str]
) -> AbstractAsyncContextManager[Server]:
    """Start our server, until the context ends.

    Args:
        state: Its state directory.
        options: Further ones of `session-supervisor serve`.
        env: What it needs to reach the model.
    """
    told = ("serve", "--host", "127.0.0.1", "--port", "0", "--state-dir", str(state), *options)
    return serving("bench.suite.observed", told, env=env)


def headers_from(variable: str | None) -> Mapping[str, str]:
    """Return the header with the API key that a variable of the environment holds.

    Raises:
        NoTarget: There is no such variable.
    """
    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise NoTarget(f"The variable {variable} has no API key. Set it, or leave --key-from out.")
    return {"authorization": f"Bearer {key}"}


def meaning(code: str) -> str:
    """Return what a failure says about a server, in words."""
    means = next((what for start, what in MEANING.items() if code.startswith(start)), None)
    return code if means is None else f"{code}: {means}"


async def lost(target: Target) -> str | None:
    """Return why a target cannot be measured any more; None: it can."""
    if target.pid is not None and has_ended(target.pid):
        return "its process has ended"
    client = target.client(timeout_s=10.0)
    try:
        (await client.ask("GET", "/health")).must_be_good()
    except Failed as failure:
        return f"it does not answer any more ({failure.code})"
    finally:
        client.close()
    return None


async def found(
    name: str, url: str, *, pid: int | None = None, headers: Mapping[str, str] | None = None
) -> Target:
    """Look at a server that runs, and at what it says that it can do.

    Raises:
        NoTarget: It does not answer as the reference says, or wants a key.
    """
    target = Target(name=name, url=url, pid=pid, paths=frozenset(), headers=headers or {})
    try:
        client = target.client(timeout_s=10.0)
    except ValueError as error:
        raise NoTarget(str(error)) from None
    try:
        (await client.ask("GET", "/health")).json()
        answer = (await client.ask("GET", "/")).json()
        (await client.ask("GET", "/sessions")).json()  # which needs the key, if anything does
    except Failed as failure:
        raise NoTarget(f"{url} cannot be measured: {meaning(failure.code)}.") from None
    finally:
        client.close()
    endpoints = answer.get("endpoints")
    paths = frozenset(map(str, endpoints)) if isinstance(endpoints, list) else frozenset[str]()  # pyright: ignore[reportUnknownArgumentType]
    return Target(name=name, url=url, pid=pid, paths=paths, headers=headers or {})
