"""Whether the CLI would find a credential, without showing or reading one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import pytest

from session_supervisor.agents.claude import ClaudeAgent, credentials
from session_supervisor.agents.claude.credentials import find_credential, in_environment
from session_supervisor.errors import AgentStartFailed
from tests.support.own_time import OwnTime

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
    spent = OwnTime()
    hanging = script(tmp_path, "exec sleep 60")
    assert not (await find_credential({}, cli_path=hanging, timeout_s=0.2)).found
    assert not (await find_credential({}, cli_path="/does/not/exist")).found
    assert spent.seconds < 5


async def test_what_must_be_done_first_is_said_alone() -> None:
    with patch.object(
        credentials, "require_descriptors", side_effect=AgentStartFailed("None left.")
    ):
        found = await find_credential({}, cli_path="/bin/true")
    assert (found.found, found.detail) == (False, "None left.")


class Purse:
    """A credential for each owner but one."""

    async def variables(self, *, owner: str) -> Mapping[str, str]:
        if owner == "nobody":
            raise KeyError("sk-secret")
        return {"ANTHROPIC_API_KEY": f"sk-{owner}"} if owner == "ada" else {}


async def test_an_owner_s_credential_is_looked_for_where_its_sessions_have_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ours")
    cli = script(tmp_path, """test -e "$CLAUDE_CONFIG_DIR/login" && echo '{"loggedIn": true}'""")

    def config_dir(owner: str) -> Path:
        return tmp_path / "owners" / owner

    agent = ClaudeAgent(cli_path=cli, config_dir=config_dir, credentials=Purse())
    assert (await agent.find_credential("ada")).source == "ANTHROPIC_API_KEY"
    assert (await agent.find_credential("ben")).source == "none"
    (config_dir("ben") / "login").touch()
    assert (await agent.find_credential("ben")).source == "login"
    assert (await agent.find_credential("cleo")).source == "none"
    assert config_dir("cleo").stat().st_mode & 0o777 == 0o700
    with pytest.raises(AgentStartFailed, match="operator finds the reason") as failure:
        await agent.find_credential("nobody")
    assert "sk-secret" not in str(failure.value)
    assert "sk-secret" in caplog.text
    agent = ClaudeAgent(cli_path=cli, config_dir=config_dir)
    assert (await agent.find_credential("cleo")).source == "ANTHROPIC_API_KEY"


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform == "win32", reason="no Windows")
async def test_the_real_cli_of_a_user_who_never_logged_in_says_so(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    credential = await find_credential(env)
    assert (credential.found, credential.source) == (False, "none")
    assert "Nobody is logged in" in credential.detail
