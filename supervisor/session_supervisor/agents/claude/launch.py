"""How the CLI is started: where it is, with which arguments, in which environment.

Everything here is a pure function of its arguments, but for looking at the file system.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from session_supervisor.agents.claude import schemas, variables
from session_supervisor.agents.port import Fingerprint
from session_supervisor.errors import AgentMissing

MARKER = "SESSION_SUPERVISOR_MARKER"
"""Environment variable by which a process and all that it starts can be found."""

SCRATCH = "CLAUDE_CODE_TMPDIR"
"""Environment variable that tells the CLI where to put its temporary files."""

_QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",  # else an extra request to name the session
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
}


def find_cli(cli_path: str | os.PathLike[str] | None = None) -> str:
    """Return the path of the CLI: the given one, the SDK's own, or that on the PATH.

    Raises:
        AgentMissing: There is none, or it is not a program.
    """
    if cli_path is not None:
        path = shutil.which(cli_path) or os.fspath(cli_path)
        if not os.path.isfile(path):
            raise AgentMissing(
                f"There is no Claude Code at {path!r}. Give the path of its program, or none "
                "to use the one that comes with claude-agent-sdk."
            )
        if not os.access(path, os.X_OK):
            raise AgentMissing(f"{path!r} is not a program: it cannot be executed.")
        return os.path.abspath(path)
    bundled = _bundled()
    if bundled is not None:
        return bundled
    found = shutil.which("claude")
    if found is None:
        raise AgentMissing(
            "Claude Code is not installed. Install a claude-agent-sdk wheel for this platform, "
            "which brings it, or put `claude` on the PATH."
        )
    return found


def _bundled() -> str | None:
    # Found without importing the SDK, which takes a second.
    spec = importlib.util.find_spec("claude_agent_sdk")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "_bundled", "claude")
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return None


def tied_to_us(command: Sequence[str]) -> list[str]:
    """Return a command that runs another, which gets a SIGTERM when we die, however we die.

    Where `setpriv` (util-linux) is missing it is the same command. A busy CLI then goes on for
    as long as its turn takes after a kill -9 of the server.

    The kernel sends the signal when the *thread* that started the process ends: start it from the
    event loop's, not from a worker's.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--", *command] if setpriv else list(command)


def arguments(
    fingerprint: Fingerprint,
    *,
    model: str,
    tools: Sequence[str],
    allowed: Sequence[str],
    forbidden: Sequence[str] = (),
    setting_sources: Sequence[str] = (),
    extra_dirs: Sequence[str] = (),
    settings: str | None = None,
    system_prompt_file: str | None = None,
    session_id: str | None = None,
    mcp_config_file: str | None = None,
    may_bypass: bool = False,
    resume: str | None = None,
    mirrored: bool = False,
) -> list[str]:
    """Return the CLI's arguments for one process.

    Every value stands behind an equals sign, so that none can be taken for a flag.

    Args:
        fingerprint: What the session asks for.
        model: The model's name, aliases resolved.
        tools: The tools that exist.
        allowed: Those that run without asking.
        forbidden: Those that never exist, whatever else would bring them.
        setting_sources: Settings files to read: `user`, `project`, `local`.
        extra_dirs: Where file tools may be used as they are in the working directory.
        settings: Further settings of ours, as JSON.
        system_prompt_file: Holds what replaces the CLI's own system prompt. Not an argument of
            its own: those have a limit, and every user of the machine can read them.
        session_id: The id of a new conversation.
        mcp_config_file: Holds the MCP servers, of which it may have secrets.
        may_bypass: Whether it may be told later to bypass permissions.
        resume: The id of one to go on with.
        mirrored: Whether it prints what it writes to its transcripts.
    """
    given = [
        "--input-format=stream-json",
        "--output-format=stream-json",
        "--include-partial-messages",
        "--verbose",
        f"--setting-sources={','.join(setting_sources)}",
        f"--model={model}",
        f"--permission-mode={fingerprint.permission_mode}",
        f"--tools={','.join(tools)}",
    ]
    if allowed:
        given.append(f"--allowedTools={','.join(allowed)}")
    if forbidden:
        given.append(f"--disallowedTools={','.join(forbidden)}")
    given += (f"--add-dir={path}" for path in extra_dirs)
    if not setting_sources:
        # Otherwise the servers of the user's own configuration are started for every session.
        given.append("--strict-mcp-config")
    if may_bypass or fingerprint.permission_mode == "bypassPermissions":
        given.append("--allow-dangerously-skip-permissions")
    if settings is not None:
        given.append(f"--settings={settings}")
    if system_prompt_file is not None:
        given.append(f"--system-prompt-file={system_prompt_file}")
    if fingerprint.asks:
        given.append("--permission-prompt-tool=stdio")
    if fingerprint.max_turns is not None:
        given.append(f"--max-turns={fingerprint.max_turns}")
    if fingerprint.max_budget_usd is not None:
        given.append(f"--max-budget-usd={fingerprint.max_budget_usd:.6f}")
    if fingerprint.output_schema is not None:
        given.append(f"--json-schema={schemas.spelled(fingerprint.output_schema)}")
    if fingerprint.thinking is not None:
        given.append(f"--thinking={'adaptive' if fingerprint.thinking else 'disabled'}")
    if fingerprint.thinking:
        given.append("--thinking-display=summarized")
    if mcp_config_file is not None:
        given.append(f"--mcp-config={mcp_config_file}")
    if mirrored:
        given.append("--session-mirror")
    if resume is not None:
        given.append(f"--resume={resume}")
    elif session_id is not None:
        given.append(f"--session-id={session_id}")
    return given


def environment(
    inherited: Mapping[str, str],
    given: Mapping[str, str],
    *,
    marker: str,
    scratch: str,
    cwd: str,
    sdk_version: str,
    config_dir: str | None = None,
    background: bool = True,
    passthrough: Sequence[str] = (),
    provided: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment of one process.

    Args:
        inherited: Ours, of which `variables` says what it gets.
        given: The operator's variables; they win over all but what is provided and the next two.
        marker: Unique value by which the process's children are found.
        scratch: Directory for what the CLI writes for as long as it lives: the output of work in
            the background, and the socket at which other sessions could reach it.
        cwd: Its working directory.
        sdk_version: The version of claude-agent-sdk that talks to it.
        config_dir: Where the CLI keeps its transcripts and its login; None: where it always does.
        background: Whether subagents and shells may go on after the turn that began them. The
            CLI lets subagents do so unless they are told not to.
        passthrough: Names and patterns of further variables of ours that it gets.
        provided: What a provider of credentials gave; None: there is no provider, so that our own
            credentials are the session's.
    """
    given = {**given, **(provided or {})}
    kept = variables.inherited(inherited, given, passthrough=passthrough)
    if provided is not None:
        for name in variables.credentials(kept):
            del kept[name]
    own = {
        "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
        "CLAUDE_AGENT_SDK_VERSION": sdk_version,
        "PWD": cwd,
    }
    if config_dir is not None:
        own["CLAUDE_CONFIG_DIR"] = config_dir
    if not background:
        own["CLAUDE_CODE_DISABLE_BACKGROUND_TASKS"] = "1"
    return {**kept, **_QUIET, **own, **given, SCRATCH: scratch, MARKER: marker}
