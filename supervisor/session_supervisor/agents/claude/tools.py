"""The names of the tools: which exist, and which a session gets that names none."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

DEFAULT_TOOLS = (
    "Read",
    "Write",
    "Edit",
    "Bash",
    "Glob",
    "Grep",
    "WebFetch",
    "WebSearch",
    "Task",
)
"""What the API reference lists. The CLI's own default set lacks Glob and Grep, and has tools
that schedule work or reach other sessions, which must not outlive an HTTP request."""

ASKING_TOOL = "AskUserQuestion"
"""By which the model asks a human: there is none where nobody answers."""

OTHER_TOOLS = ("Agent", ASKING_TOOL, "NotebookEdit", "Skill", "TaskStop", "ToolSearch")
"""Further names that a session may use; `Agent` is another one of `Task`."""

_OF_A_SERVER = re.compile(r"mcp__[\w-]+", re.ASCII)
"""A tool of an MCP server, or the server, which means all of its tools."""

_TASK = "Task"
_OTHER_NAME_OF_TASK = "Agent"


def resolve(
    requested: Sequence[str] | None,
    *,
    extra: Sequence[str] = (),
    forbidden: Collection[str] = (),
    asks: bool = False,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which tools exist, and which of these run without asking.

    Args:
        requested: The tools that the session names; None for the default set.
        extra: The operator's additions to the default set.
        forbidden: What no session gets, as `checked` returns it.
        asks: Whether a human answers the session.
    """
    named = (*DEFAULT_TOOLS, ASKING_TOOL, *extra) if requested is None else requested
    tools = tuple(
        name
        for name in _documented(named)
        if name not in forbidden and (asks or name != ASKING_TOOL)
    )
    # Without asking, a question would be answered by nobody, and at once.
    allowed = tuple(name for name in tools if name != ASKING_TOOL)
    return tools, () if requested is None else allowed


def documented_name(name: str) -> str:
    """Return the name that the documentation has for a tool: the CLI has two for subagents."""
    return _TASK if name == _OTHER_NAME_OF_TASK else name


def every_name(tools: Collection[str]) -> tuple[str, ...]:
    """Return the documented names of tools, and the others that the CLI has for them."""
    return (*tools, _OTHER_NAME_OF_TASK) if _TASK in tools else tuple(tools)


def checked(forbidden: Sequence[str], *, extra: Collection[str] = ()) -> tuple[str, ...]:
    """Return the documented names of what the operator forbids.

    Raises:
        ValueError: One is no tool's name, so that forbidding it would forbid nothing.
    """
    strange = unknown(forbidden, extra=extra)
    if strange:
        raise ValueError(
            f"forbidden_tools: there is no tool {', '.join(map(repr, strange))}. "
            f"There are: {', '.join(known(extra=extra))}."
        )
    return _documented(forbidden)


def unknown(
    requested: Sequence[str], *, extra: Collection[str] = (), servers: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the names that no tool has: the CLI would silently give nothing for them.

    Args:
        requested: The names.
        extra: The operator's additions.
        servers: MCP servers, whose tools are not known before they run.
    """
    names = known(extra=extra)
    return tuple(name for name in requested if name not in names and not _is_of(name, servers))


def _is_of(name: str, servers: Collection[str]) -> bool:
    return _OF_A_SERVER.fullmatch(name) is not None and any(
        name == f"mcp__{one}" or name.startswith(f"mcp__{one}__") for one in servers
    )


def known(*, extra: Collection[str] = (), forbidden: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names of all tools that a session may ask for."""
    names = dict.fromkeys((*DEFAULT_TOOLS, *OTHER_TOOLS, *extra))
    return tuple(name for name in names if documented_name(name) not in forbidden)


def _documented(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(documented_name, names)))
