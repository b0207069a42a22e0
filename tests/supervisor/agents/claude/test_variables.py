"""Which of our environment variables a session's process inherits."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.agents.claude.variables import credentials, inherited

NEEDED = (
    *("PATH", "HOME", "USER", "LC_ALL", "XDG_RUNTIME_DIR", "TMPDIR", "TZ"),
    *("HTTPS_PROXY", "no_proxy", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"),
    *("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "API_TIMEOUT_MS", "IS_SANDBOX"),
)
SECRET = (
    *("DATABASE_URL", "SESSION_SUPERVISOR_KEYS", "SESSION_SUPERVISOR_DATABASE", "PGPASSWORD"),
    *("GITHUB_TOKEN", "SSH_AUTH_SOCK", "BASH_ENV", "LD_PRELOAD", "PYTHONPATH", "NODE_OPTIONS"),
    *("AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_SECRET"),
    *("CLAUDECODE", "CLAUDE_CODE_SESSION_ID", "OTEL_EXPORTER_OTLP_HEADERS"),
)
OURS = dict.fromkeys((*NEEDED, *SECRET), "x")


def test_a_process_gets_what_the_cli_needs_and_nothing_else() -> None:
    assert set(inherited(OURS, {})) == set(NEEDED)


@pytest.mark.parametrize(
    ("switch", "name"),
    [
        ("CLAUDE_CODE_USE_BEDROCK", "AWS_SECRET_ACCESS_KEY"),
        ("CLAUDE_CODE_USE_ANTHROPIC_AWS", "AWS_SECRET_ACCESS_KEY"),
        ("CLAUDE_CODE_USE_VERTEX", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("CLAUDE_CODE_USE_FOUNDRY", "AZURE_CLIENT_SECRET"),
    ],
)
def test_a_cloud_s_credentials_go_only_to_sessions_that_use_it(switch: str, name: str) -> None:
    assert set(inherited(OURS, {switch: "1"})) == {*NEEDED, name}
    assert set(inherited({**OURS, switch: "true"}, {})) == {*NEEDED, name, switch}
    assert set(inherited({**OURS, switch: "1"}, {switch: "0"})) == {*NEEDED, switch}


def test_the_operator_adds_names_and_beginnings_of_names() -> None:
    ours = {**OURS, "GIT_DIR": "x", "GITHUB_TOKEN": "x", "PGPASSFILE": "x"}
    added = inherited(ours, {}, passthrough=["GIT_*", "PGPASSWORD"])
    assert set(added) == {*NEEDED, "GIT_DIR", "PGPASSWORD"}


def test_not_even_the_operator_makes_a_session_believe_that_it_is_another() -> None:
    everything = inherited(OURS, {}, passthrough=["*"])
    assert set(OURS) - set(everything) == {"CLAUDECODE", "CLAUDE_CODE_SESSION_ID"}


@pytest.mark.parametrize("pattern", ["", "A-B", "A=B", "*_KEY", "A*B", "A**", "1A", "[A]*", "A?"])
def test_what_cannot_be_a_name_is_refused_at_once(pattern: str) -> None:
    with pytest.raises(ValueError, match="env_passthrough"):
        ClaudeAgent(env_passthrough=[pattern])


@given(st.text(string.ascii_letters + string.digits + "_", min_size=1))
def test_a_variable_with_our_name_never_reaches_a_session(name: str) -> None:
    assert inherited({f"SESSION_SUPERVISOR_X{name}": "secret"}, {}) == {}


def test_what_may_hold_a_credential_of_the_cli_s_is_known() -> None:
    env = inherited({**OURS, "CLAUDE_CODE_USE_BEDROCK": "1", "CLAUDE_CONFIG_DIR": "x"}, {})
    assert set(credentials(env)) == {
        "ANTHROPIC_API_KEY",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
    }
