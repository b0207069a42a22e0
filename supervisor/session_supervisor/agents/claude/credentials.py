"""How the CLI would log in, told without reading or showing a secret."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from session_supervisor.agents.claude.launch import find_cli
from session_supervisor.agents.claude.program import require_descriptors
from session_supervisor.agents.claude.variables import is_on
from session_supervisor.errors import AgentMissing, AgentStartFailed
from session_supervisor.spec import JsonObject

_CLOUDS = {
    "CLAUDE_CODE_USE_BEDROCK": "Amazon Bedrock",
    "CLAUDE_CODE_USE_VERTEX": "Google Vertex AI",
    "CLAUDE_CODE_USE_FOUNDRY": "Microsoft Foundry",
    "CLAUDE_CODE_USE_ANTHROPIC_AWS": "Claude on AWS",
    "CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD": "Claude on Google Cloud",
}
"""Variables that send the CLI to a cloud provider, which has credentials of its own."""

_SECRETS = {
    "ANTHROPIC_AUTH_TOKEN": "a bearer token",
    "ANTHROPIC_API_KEY": "an API key",
    "CLAUDE_CODE_OAUTH_TOKEN": "an OAuth token of a Claude subscription",
}
"""Variables that hold a secret, in the order in which the CLI prefers them."""


_HOW = (
    "Set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN, or run `claude auth login` as the user that "
    "runs the server, with the CLAUDE_CONFIG_DIR that its sessions have."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What was found of a credential. That it exists does not mean that it is valid.

    Attributes:
        found: Whether there is one.
        source: Where: the name of a variable, `login`, or `none`.
        detail: The same in words, with what to do if there is none.
    """

    found: bool
    source: str
    detail: str


class CredentialProvider(Protocol):
    """Says what a process needs in its environment to reach the model, owner by owner.

    Not session by session: a process may be started before it is known whose session it serves.
    """

    async def variables(self, *, owner: str) -> Mapping[str, str]:
        """Return the environment variables for one process of an owner.

        It is asked before each start, so that what it returns may change. None of the server's
        own credentials comes to them. A session's shell can print them, unless it is sandboxed.
        """
        ...


async def find_credential(
    env: Mapping[str, str],
    *,
    cli_path: str | os.PathLike[str] | None = None,
    timeout_s: float = 10.0,
) -> Credential:
    """Find out how a CLI with this environment would log in.

    Variables are looked at; for a login, the CLI itself is asked.

    Args:
        env: The whole environment that it would have.
        cli_path: The CLI; None for the one that comes with the SDK, or on the PATH.
        timeout_s: How long the CLI may take to answer, seconds.
    """
    return in_environment(env) or await _login(env, cli_path=cli_path, timeout_s=timeout_s)


def in_environment(env: Mapping[str, str]) -> Credential | None:
    """Return the credential that environment variables give, if they do."""
    for name, provider in _CLOUDS.items():
        if is_on(env, name):
            return Credential(
                found=True,
                source=name,
                detail=f"{provider}, because {name} is set. Its own credentials were not checked.",
            )
    for name, kind in _SECRETS.items():
        if env.get(name):
            return Credential(found=True, source=name, detail=f"{name} holds {kind}.")
    return None


async def _login(
    env: Mapping[str, str], *, cli_path: str | os.PathLike[str] | None, timeout_s: float
) -> Credential:
    try:
        cli = find_cli(cli_path)
        answer = await _answer(cli, env, timeout_s)
    except (AgentMissing, OSError) as error:
        return _none(f"{error} {_HOW}")
    except AgentStartFailed as error:
        # It may well be there: what must be done first is something else.
        return _none(str(error))
    if answer is None:
        return _none(f"`claude auth status` did not say whether somebody is logged in. {_HOW}")
    if answer.get("loggedIn") is not True:
        return _none(f"Nobody is logged in. {_HOW}")
    method = answer.get("authMethod")
    detail = f"Claude Code is logged in ({method})." if method else "Claude Code is logged in."
    return Credential(found=True, source="login", detail=detail)


async def _answer(cli: str, env: Mapping[str, str], timeout_s: float) -> JsonObject | None:
    require_descriptors()
    asked = await asyncio.create_subprocess_exec(
        cli,
        # Sessions read no settings files either, so a key helper in one would be none of theirs.
        "--setting-sources=",
        "auth",
        "status",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**env, "DISABLE_AUTOUPDATER": "1", "DISABLE_TELEMETRY": "1"},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            printed, _ = await asked.communicate()
    except TimeoutError:
        return None
    finally:
        if asked.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                asked.kill()
            await asked.wait()
    try:
        answer: JsonValue = json.loads(printed)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _none(why: str) -> Credential:
    return Credential(found=False, source="none", detail=why)
