"""Tools, models, arguments, environment: the pure parts of starting a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from session_supervisor.agents.claude import ClaudeAgent, launch, models, tools
from session_supervisor.agents.port import Fingerprint
from session_supervisor.errors import AgentMissing, InvalidSpec, NotAllowed
from session_supervisor.spec import SessionSpec

PLAIN = Fingerprint(owner="local", cwd="/tmp")


def test_importing_the_adapter_does_not_import_the_sdk() -> None:
    code = (
        "import sys, session_supervisor.agents.claude as claude; claude.ClaudeAgent();"
        "sys.exit('claude_agent_sdk' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_a_session_that_names_no_tools_gets_the_documented_ones_and_asks_for_each() -> None:
    exist, allowed = tools.resolve(None, extra=("NotebookEdit", "Read"))
    assert exist == (*tools.DEFAULT_TOOLS, "NotebookEdit")
    assert allowed == ()


def test_a_session_that_names_tools_gets_these_and_they_run_without_asking() -> None:
    assert tools.resolve(("Read", "Agent", "Read")) == (("Read", "Task"), ("Read", "Task"))


@pytest.mark.parametrize("name", ["Nope", "read", "CronCreate", "SendMessage", "Bash(git:*)", ""])
def test_an_unknown_tool_is_refused_by_name_and_the_known_ones_are_listed(name: str) -> None:
    with pytest.raises(InvalidSpec, match="WebSearch") as refusal:
        ClaudeAgent().check(SessionSpec(allowed_tools=("Read", name)))
    assert refusal.value.field == "allowed_tools"
    assert repr(name) in str(refusal.value)
    assert "'Read'" not in str(refusal.value)


@pytest.mark.parametrize("name", ["Task", "Agent"])
def test_a_forbidden_tool_never_exists_under_either_name(name: str) -> None:
    forbidden = tools.checked([name, "Bash"])
    assert tools.resolve(None, extra=("Bash",), forbidden=forbidden) == (
        ("Read", "Write", "Edit", "Glob", "Grep", "WebFetch", "WebSearch"),
        (),
    )
    assert tools.resolve(("Read", "Agent", "Task"), forbidden=forbidden) == (("Read",), ("Read",))
    assert set(tools.every_name(forbidden)) == {"Task", "Agent", "Bash"}


@pytest.mark.parametrize("asked", ["Task", "Agent", "Bash"])
def test_who_names_a_forbidden_tool_is_told_so_and_what_there_is(asked: str) -> None:
    agent = ClaudeAgent(forbidden_tools=["Agent", "Bash"])
    with pytest.raises(NotAllowed, match=f"has forbidden '{asked}'") as refusal:
        agent.check(SessionSpec(allowed_tools=("Read", asked)))
    there = refusal.value.reason.partition("There are: ")[2]
    assert "WebSearch" in there
    assert not {"Task", "Agent", "Bash"} & set(there.rstrip(".").split(", "))
    agent.check(SessionSpec(allowed_tools=("Read",)))
    agent.check(SessionSpec())


def test_forbidding_what_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"there is no tool 'bash'.*Bash"):
        ClaudeAgent(forbidden_tools=["bash"])
    ClaudeAgent(extra_tools=["CronCreate"], forbidden_tools=["CronCreate"])


def test_a_directory_is_given_without_links_and_is_not_the_server_s(tmp_path: Path) -> None:
    top = tmp_path.resolve()
    (top / "state/inner").mkdir(parents=True)
    (top / "work").mkdir()
    (top / "link").symlink_to("work")
    agent = ClaudeAgent(hidden_dirs=[top / "state", top / "keys"])
    agent.check(SessionSpec(cwd=str(top / "work")))
    agent.check(SessionSpec(cwd=f"{top}/work/"))
    with pytest.raises(InvalidSpec, match="symbolic link") as refusal:
        agent.check(SessionSpec(cwd=str(top / "link")))
    assert str(top / "work") not in str(refusal.value)
    for hidden in ("state", "state/inner"):
        with pytest.raises(NotAllowed, match="files of the server"):
            agent.check(SessionSpec(cwd=str(top / hidden)))


def test_the_operators_tools_may_be_named() -> None:
    ClaudeAgent(extra_tools=["CronCreate"]).check(SessionSpec(allowed_tools=("CronCreate",)))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (SessionSpec(model=""), "model"),
        (SessionSpec(model="--dangerous"), "model"),
        (SessionSpec(model="a b"), "model"),
        (SessionSpec(model="x" * 300), "model"),
        (SessionSpec(cwd="relative"), "cwd"),
        (SessionSpec(cwd="/does/not/exist"), "cwd"),
        (SessionSpec(cwd="/etc/passwd"), "cwd"),
        (SessionSpec(max_turns=0), "max_turns"),
        (SessionSpec(system_prompt="\ud800"), "system_prompt"),
    ],
)
def test_what_the_cli_could_not_do_is_refused(spec: SessionSpec, field: str) -> None:
    with pytest.raises(InvalidSpec) as refusal:
        ClaudeAgent().check(spec)
    assert refusal.value.field == field
    assert not isinstance(refusal.value, NotAllowed)


@pytest.mark.parametrize(
    "model",
    [
        "sonnet",
        "opus[1m]",
        "claude-3-5-sonnet-20241022",
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-opus-4",
        "claude-opus-4@20250514",
    ],
)
def test_every_provider_s_names_of_models_are_names(model: str) -> None:
    assert models.is_name(model)


def test_bypassing_permissions_is_for_the_operator_to_allow() -> None:
    spec = SessionSpec(permission_mode="bypassPermissions")
    with pytest.raises(NotAllowed) as refusal:
        ClaudeAgent().check(spec)
    assert refusal.value.field == "permission_mode"
    ClaudeAgent(allow_bypass_permissions=True, env={"IS_SANDBOX": "1"}).check(spec)


def test_root_is_told_why_it_cannot_bypass_permissions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IS_SANDBOX", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(NotAllowed, match="root"):
        ClaudeAgent(allow_bypass_permissions=True).check(
            SessionSpec(permission_mode="bypassPermissions")
        )
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ClaudeAgent(allow_bypass_permissions=True).check(
        SessionSpec(permission_mode="bypassPermissions")
    )


def given(fingerprint: Fingerprint, **more: Any) -> list[str]:
    return launch.arguments(fingerprint, model="m", tools=("Read",), allowed=(), **more)


def test_a_new_conversation_has_an_id_of_ours_and_a_resumed_one_its_own() -> None:
    assert "--session-id=new" in given(PLAIN, session_id="new")
    resumed = given(PLAIN, session_id="new", resume="old")
    assert "--resume=old" in resumed
    assert "--session-id=new" not in resumed


def test_values_are_bound_to_their_flags() -> None:
    fingerprint = Fingerprint(owner="local", cwd="/tmp", system_prompt="Secret.", max_turns=3)
    arguments = given(fingerprint, system_prompt_file="/scratch/x", resume="--help")
    assert {"--system-prompt-file=/scratch/x", "--resume=--help"} <= set(arguments)
    assert "Secret." not in str(arguments)
    assert "--max-turns=3" in arguments
    assert all(argument.startswith("--") for argument in arguments)


def test_neither_settings_nor_servers_of_the_user_count_unless_the_operator_says_so() -> None:
    assert {"--setting-sources=", "--strict-mcp-config"} <= set(given(PLAIN))
    trusting = launch.arguments(
        PLAIN, model="m", tools=(), allowed=("Read", "Bash"), setting_sources=("user", "project")
    )
    assert "--setting-sources=user,project" in trusting
    assert "--allowedTools=Read,Bash" in trusting
    assert "--strict-mcp-config" not in trusting


def test_further_directories_and_settings_are_told_to_the_cli() -> None:
    arguments = launch.arguments(
        PLAIN,
        model="m",
        tools=(),
        allowed=(),
        forbidden=("Bash", "Task"),
        extra_dirs=("/a", "/b"),
        settings="{}",
    )
    wanted = {"--add-dir=/a", "--add-dir=/b", "--settings={}", "--disallowedTools=Bash,Task"}
    assert wanted <= set(arguments)
    assert not [one for one in given(PLAIN) if one.startswith("--disallowedTools")]


def environment(
    ours: dict[str, str], given: dict[str, str], provided: dict[str, str] | None = None
) -> dict[str, str]:
    return launch.environment(
        ours,
        given,
        marker="m",
        scratch="/s",
        cwd="/w",
        sdk_version="1",
        provided=provided,
    )


def test_who_has_a_provider_of_credentials_gets_none_of_the_server_s() -> None:
    ours = {"PATH": "/bin", "ANTHROPIC_API_KEY": "ours", "CLAUDE_CODE_OAUTH_TOKEN": "ours"}
    without = environment(ours, {})
    assert without["ANTHROPIC_API_KEY"] == without["CLAUDE_CODE_OAUTH_TOKEN"] == "ours"
    env = environment(ours, {"A": "1", "B": "1"}, {"A": "2", "TOKEN": "t"})
    assert "ours" not in env.values()
    assert (env["PATH"], env["A"], env["B"], env["TOKEN"]) == ("/bin", "2", "1", "t")
    assert environment({}, {}, {launch.MARKER: "x"})[launch.MARKER] == "m"
    assert "ours" not in environment(ours, {}, {}).values()


def test_the_environment_is_ours_without_another_session_s_and_with_the_operators() -> None:
    env = launch.environment(
        {"PATH": "/bin", "CLAUDECODE": "1", "DISABLE_TELEMETRY": "0", launch.MARKER: "outer"},
        {"ANTHROPIC_BASE_URL": "http://[::1]:1", "DISABLE_AUTOUPDATER": "0"},
        marker="inner",
        scratch="/scratch",
        cwd="/work",
        sdk_version="1.2.3",
        config_dir="/config",
    )
    assert env == {
        "PATH": "/bin",
        "ANTHROPIC_BASE_URL": "http://[::1]:1",
        "CLAUDE_AGENT_SDK_VERSION": "1.2.3",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
        "CLAUDE_CODE_TMPDIR": "/scratch",
        "CLAUDE_CONFIG_DIR": "/config",
        "DISABLE_AUTOUPDATER": "0",
        "DISABLE_TELEMETRY": "1",
        "PWD": "/work",
        launch.MARKER: "inner",
    }


def test_the_cli_is_the_given_one_or_the_sdk_s_own() -> None:
    assert launch.find_cli("/bin/sh") == "/bin/sh"
    assert launch.find_cli().endswith("_bundled/claude")


def test_a_missing_cli_is_missing_whatever_the_reason(tmp_path: Path) -> None:
    plain_file = tmp_path / "claude"
    plain_file.write_text("#!/bin/sh\n")
    for path in ("/does/not/exist", tmp_path, plain_file):
        with pytest.raises(AgentMissing, match=str(path)):
            launch.find_cli(path)
