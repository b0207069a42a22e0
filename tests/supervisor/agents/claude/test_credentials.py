"""Whether the CLI would find a credential, without showing or reading one."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from session_supervisor.agents.claude.credentials import find_credential, in_environment

pytestmark = pytest.mark.anyio


def script(folder: Path, body: str) -> Path:
    path = folder / "claude"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "name", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"]
)
async def test_a_variable_that_holds_a_secret_is_named_and_its_value_is_not(name: str) -> None:
    credential = await find_credential({name: "sk-secret"}, cli_path="/does/not/exist")
    assert (credential.found, credential.source) == (True, name)
    assert "sk-secret" not in repr(credential)


def test_a_cloud_provider_counts_unless_it_is_switched_off() -> None:
    credential = in_environment({"CLAUDE_CODE_USE_BEDROCK": "1"})
    assert credential is not None
    assert credential.source == "CLAUDE_CODE_USE_BEDROCK"
    for off in ("", "0", "false"):
        assert in_environment({"CLAUDE_CODE_USE_BEDROCK": off, "ANTHROPIC_API_KEY": ""}) is None


async def test_a_login_is_what_the_cli_says_it_is(tmp_path: Path) -> None:
    answer = """echo '{"loggedIn": true, "authMethod": "claude.ai", "email": "who@example.com"}'"""
    credential = await find_credential({}, cli_path=script(tmp_path, answer))
    assert (credential.found, credential.source) == (True, "login")
    assert "who@example.com" not in credential.detail


@pytest.mark.parametrize(
    "body", ["""echo '{"loggedIn": false}'; exit 1""", "echo nonsense", "echo '[]'", "exit 3"]
)
async def test_without_one_the_operator_is_told_what_to_do(tmp_path: Path, body: str) -> None:
    credential = await find_credential({}, cli_path=script(tmp_path, body))
    assert (credential.found, credential.source) == (False, "none")
    assert "ANTHROPIC_API_KEY" in credential.detail


async def test_a_cli_that_hangs_or_is_missing_finds_nothing_and_takes_no_longer(
    tmp_path: Path,
) -> None:
    began = time.monotonic()
    hanging = script(tmp_path, "exec sleep 60")
    assert not (await find_credential({}, cli_path=hanging, timeout_s=0.2)).found
    assert not (await find_credential({}, cli_path="/does/not/exist")).found
    assert time.monotonic() - began < 5


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform == "win32", reason="no Windows")
async def test_the_real_cli_of_a_user_who_never_logged_in_says_so(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    credential = await find_credential(env)
    assert (credential.found, credential.source) == (False, "none")
    assert "Nobody is logged in" in credential.detail
