"""The names of the tools: which exist, and which a session gets that names none."""

from __future__ import annotations

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

OTHER_TOOLS = ("Agent", "NotebookEdit", "Skill", "TaskStop", "ToolSearch")
"""Further names that a session may use; `Agent` is another one of `Task`."""

_TASK = "Task"
_OTHER_NAME_OF_TASK = "Agent"


def resolve(
    requested: Sequence[str] | None, *, extra: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which tools exist, and which of these run without asking.

    Args:
        requested: The tools that the session names; None for the default set.
        extra: The operator's additions to the default set.
    """
    if requested is None:
        return tuple(dict.fromkeys((*DEFAULT_TOOLS, *extra))), ()
    tools = tuple(dict.fromkeys(map(documented_name, requested)))
    return tools, tools


def documented_name(name: str) -> str:
    """Return the name that the documentation has for a tool: the CLI has two for subagents."""
    return _TASK if name == _OTHER_NAME_OF_TASK else name


def unknown(requested: Sequence[str], *, extra: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names that no tool has: the CLI would silently give nothing for them."""
    names = known(extra=extra)
    return tuple(name for name in requested if name not in names)


def known(*, extra: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names of all tools that a session may ask for."""
    return tuple(dict.fromkeys((*DEFAULT_TOOLS, *OTHER_TOOLS, *extra)))
