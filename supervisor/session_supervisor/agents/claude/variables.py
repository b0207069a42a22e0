"""Which of our environment variables a session's process inherits.

The CLI hands its environment on to every shell that it starts, so what it gets, a session can
print: only what is listed here, and what the operator adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

_USER = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "XDG_*"),
    *("LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "COLORTERM", "NO_COLOR"),
)
"""Where and who one is, and in which language."""

_NETWORK = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"),
)
"""The way out of the machine, and whom to trust there."""

_CLI = (
    *("ANTHROPIC_*", "CLAUDE_*", "API_TIMEOUT_MS", "IS_SANDBOX"),
    *("DISABLE_*", "DO_NOT_TRACK", "ENABLE_TOOL_SEARCH", "USE_BUILTIN_RIPGREP"),
    *("BASH_DEFAULT_TIMEOUT_MS", "BASH_MAX_TIMEOUT_MS", "BASH_MAX_OUTPUT_LENGTH"),
    *("MAX_THINKING_TOKENS", "MAX_MCP_OUTPUT_TOKENS", "MCP_TIMEOUT", "MCP_TOOL_TIMEOUT"),
    *("MAX_STRUCTURED_OUTPUT_RETRIES", "TASK_MAX_OUTPUT_LENGTH", "SLASH_COMMAND_TOOL_CHAR_BUDGET"),
)
"""The CLI's own settings and its credentials, as its documentation lists them."""

_OURS = ("SESSION_SUPERVISOR_TEST_RUN",)
"""By which our tests find what they leave behind; the other variables with our name are the
server's, its keys among them."""

_AMAZON = ("AWS_*",)
_GOOGLE = (
    *("GOOGLE_*", "CLOUD_ML_REGION", "VERTEX_*", "GCLOUD_PROJECT", "CLOUDSDK_*"),
    *("GCE_METADATA_HOST", "GCE_METADATA_IP"),
)
_MICROSOFT = ("AZURE_*", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_*")

_CLOUDS = {
    "CLAUDE_CODE_USE_BEDROCK": _AMAZON,
    "CLAUDE_CODE_USE_MANTLE": _AMAZON,
    "CLAUDE_CODE_USE_ANTHROPIC_AWS": _AMAZON,
    "CLAUDE_CODE_USE_VERTEX": _GOOGLE,
    "CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD": _GOOGLE,
    "CLAUDE_CODE_USE_FOUNDRY": _MICROSOFT,
}
"""What reaches a model in a cloud. Where none is, the same variables are the server's own keys
to its buckets and databases, so each list counts only along with its switch."""

_CREDENTIALS = ("ANTHROPIC_*", "CLAUDE_*TOKEN*", "CLAUDE_*KEY*", *_AMAZON, *_GOOGLE, *_MICROSOFT)
"""Where secrets for reaching the model may be, which no shell needs."""

_OF_ANOTHER_SESSION = frozenset(
    {"CLAUDECODE", "CLAUDE_CODE_SESSION_ID", "CLAUDE_CODE_SSE_PORT", "CLAUDE_CODE_CHILD_SESSION"}
)
"""What a Claude Code that we were started from has told us, and its child must not believe."""

_FALSE = frozenset({"", "0", "false", "no", "off"})

_PATTERN = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*)?\*|[A-Za-z_][A-Za-z0-9_]*")


def inherited(
    ours: Mapping[str, str], given: Mapping[str, str], *, passthrough: Iterable[str] = ()
) -> dict[str, str]:
    """Return those of our variables that a process inherits.

    Args:
        ours: Our environment.
        given: What the operator sets besides, which may choose a cloud.
        passthrough: Further names, or beginnings of names with a `*` behind.
    """
    patterns = [*_USER, *_NETWORK, *_CLI, *_OURS, *passthrough]
    for switch, needed in _CLOUDS.items():
        if is_on({**ours, **given}, switch):
            patterns += needed
    return {
        name: value
        for name, value in ours.items()
        if name not in _OF_ANOTHER_SESSION
        and any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def credentials(env: Mapping[str, str]) -> list[str]:
    """Return the names of those variables that may hold a secret of the CLI's."""
    return [name for name in env if any(fnmatchcase(name, pattern) for pattern in _CREDENTIALS)]


def is_on(env: Mapping[str, str], name: str) -> bool:
    """Whether a variable that is a switch is on, as the CLI sees it."""
    return env.get(name, "").lower() not in _FALSE


def checked(passthrough: Sequence[str]) -> tuple[str, ...]:
    """Return the operator's names and patterns.

    Raises:
        ValueError: One is neither.
    """
    for pattern in passthrough:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(
                f"env_passthrough: {pattern!r} is neither a variable's name nor the beginning of "
                "one with a * behind, such as GIT_*."
            )
    return tuple(passthrough)
