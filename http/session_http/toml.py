"""Settings written as TOML: what is set and where from, and the example of the documentation.

The standard library reads TOML and does not write it. Settings are flat, and their values are
written in JSON as in TOML, but for tables.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ByteSize

from session_http.configuration import GROUPS
from session_http.options import Setting, settings
from session_http.sources import Configuration

_WIDTH = 96


def effective(configuration: Configuration) -> str:
    """Return what is set, with where it comes from; a file of it gives the same settings again.

    What has no value stands there as a comment, and so does what may not be shown.
    """
    lines: list[str] = []
    if configuration.file is not None:
        lines += [f"# The file {configuration.file} was read.", ""]
    for group, members in _grouped():
        lines.append(f"# -- {group}")
        for one in members:
            value = getattr(configuration.settings, one.name)
            origin = configuration.origins.get(one.name, "default")
            if not one.flag:
                shown = "not set" if value is None else "set, and not shown"
                lines.append(f"# {one.variable}: {shown}")
            elif value is None:
                line = f'{one.name} = "none"' if one.takes_none else f"# {one.name} = not set"
                lines.append(f"{line}  # {origin}")
            else:
                lines.append(f"{one.name} = {_value(value)}  # {origin}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def example() -> str:
    """Return a file with every key, as a comment, with its meaning and its default.

    A line that holds a key begins with `#` and no blank, so that removing the `#` puts it in force.
    """
    lines: list[str] = []
    for group, members in _grouped():
        lines += [f"# -- {group} {'-' * (_WIDTH - len(group) - 6)}", ""]
        for one in members:
            if not one.flag:
                continue
            words = f"{one.description} Default: {one.default}."
            lines += textwrap.wrap(
                words, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
            )
            value = one.value if one.about.example is None else one.about.example
            lines += [f"#{one.name} = {_value(value)}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _grouped() -> Iterator[tuple[str, list[Setting]]]:
    known = settings().values()
    for group in GROUPS:
        yield group, [one for one in known if one.about.group == group]


def _value(value: object) -> str:
    match value:
        case Path():
            return _text(str(value))
        case str():
            return _text(value)
        case Mapping():
            pairs = cast("Mapping[str, Any]", value).items()
            inside = ", ".join(f"{_text(name)} = {_value(one)}" for name, one in pairs)
            return f"{{ {inside} }}" if inside else "{}"
        case list() | tuple():
            return f"[{', '.join(map(_value, cast('list[object]', value)))}]"
        case ByteSize():
            return str(int(value))
        case _:
            return json.dumps(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
