"""Writes the parts of the documentation that the code already says.

    python docs/generate.py            # write them anew
    python docs/generate.py --check    # only say what is out of date; exits with 1 if anything is

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`. `BLOCKS` makes each
from the code that decides it, so the two cannot come to disagree unnoticed: a test runs the check.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from session_http import options, toml
from session_http.frames import BODIES
from session_http.openapi import document
from session_http.operations import OPERATIONS, Operation
from session_http.problems import KINDS
from session_http.reading import Source
from session_supervisor import actor, config, errors, lifecycle

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/*.md")

_BLOCK = re.compile(r"(<!-- generated: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return every page of the documentation."""
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


def generated(text: str) -> str:
    """Return a page with every generated part made anew.

    Raises:
        KeyError: It has a part that nothing here makes.
    """
    return _BLOCK.sub(lambda found: found[1] + block(found["name"]) + found[3], text)


def block(name: str) -> str:
    """Return one generated part, with blank lines around it as Markdown wants them.

    Args:
        name: One of `BLOCKS`, and behind a blank what it is to be made of, if it is made of
            something.
    """
    kind, _, subject = name.partition(" ")
    return f"\n{BLOCKS[kind](subject).strip()}\n\n"


# -- the library ---------------------------------------------------------------------------------


def _diagram(_subject: str) -> str:
    return f"```mermaid\n{lifecycle.mermaid()}```"


def _members(subject: str) -> str:
    """Tell the members of an enumeration of `lifecycle`, as the strings behind them do."""
    (made,) = ast.parse(inspect.getsource(getattr(lifecycle, subject))).body
    assert isinstance(made, ast.ClassDef)
    rows: list[tuple[str, str]] = []
    for before, node in zip(made.body, made.body[1:], strict=False):
        if isinstance(before, ast.Assign) and isinstance(node, ast.Expr):
            rows.append((f"`{ast.literal_eval(before.value)}`", ast.literal_eval(node.value)))
    return _table((subject, "Meaning"), rows)


def _rules(_subject: str) -> str:
    """Quote the rules that the actor's module sets for itself."""
    text = inspect.getdoc(actor) or ""
    return text[text.index("\n1. ") :].replace("\n   ", " ")


def _settings(subject: str) -> str:
    made = getattr(config, subject)
    meanings = dict(_attributes(made))
    rows = [
        (f"`{one.name}`", _default(one), meanings[one.name]) for one in dataclasses.fields(made)
    ]
    return _table((f"`{subject}`", "Default", "Meaning"), rows)


def _default(one: dataclasses.Field[Any]) -> str:
    if one.default is not dataclasses.MISSING:
        return f"`{one.default:_}`" if isinstance(one.default, int) else f"`{one.default}`"
    # Made when it is needed: another of these values, or what depends on the machine.
    factory = one.default_factory
    return f"`{factory.__name__}()`" if inspect.isclass(factory) else "depends on the machine"


def _error_tree(_subject: str) -> str:
    text = inspect.getdoc(errors) or ""
    return f"```text\n{text[text.index('SupervisorError') :]}\n```"


def _example(subject: str) -> str:
    """Quote a file of `examples/`, less the docstring that says how to run it."""
    source = (ROOT / "examples" / subject).read_text()
    return "```python\n" + re.sub(r'\A(#!.*\n)?""".*?"""\n+', "", source, flags=re.DOTALL) + "```"


# -- the API -------------------------------------------------------------------------------------


def _endpoints(_subject: str) -> str:
    rows = [
        (
            f"`{row.method} {row.path}`",
            f"{row.summary}. {row.notes}".strip(),
            _taken(row),
            _given(row),
        )
        for row in OPERATIONS
    ]
    return _table(("Operation", "What it does", "Takes", "Answers with"), rows)


def _taken(row: Operation) -> str:
    if row.source is not Source.QUERY:
        optional = "" if row.source is Source.BODY else ", or no body"
        return f"[`{row.takes.__name__}`](#{row.takes.__name__.lower()}){optional}"
    return ", ".join(f"`?{name}=`" for name in row.takes.model_fields)


def _given(row: Operation) -> str:
    given = (
        [] if row.gives is None else [f"[`{row.gives.__name__}`](#{row.gives.__name__.lower()})"]
    )
    given += ["[a stream](#server-sent-events)"] if row.streams else []
    return " or ".join(given) or "a file"


def _fields(subject: str) -> str:
    return _table(("Field", "Type", "Meaning"), _field_rows(_schemas()[subject]))


def _events(_subject: str) -> str:
    parts: list[str] = []
    for body in BODIES:
        schema = _schemas()[body.__name__]
        name = schema["properties"]["type"]["const"]
        title = f"#### `{name}`"
        rows = [row for row in _field_rows(schema) if row[0] not in ("`type`", "`turn_id`")]
        parts += [f"{title} of the stream" if title in parts else title, schema["description"]]
        parts += [_table(("Field", "Type", "Meaning"), rows)] if rows else []
    return "\n\n".join(parts)


@cache
def _schemas() -> Mapping[str, Any]:
    schemas: Mapping[str, Any] = document(OPERATIONS)["components"]["schemas"]
    return schemas


def _field_rows(schema: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    # Of what is sent, every field is always there: only of what is taken are some optional.
    required = schema.get("required", ()) if str(schema["title"]).endswith("Request") else ()
    return [
        (
            f"`{name}`, required" if name in required else f"`{name}`",
            _type(one),
            one.get("description", ""),
        )
        for name, one in schema["properties"].items()
    ]


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return _type(_schemas()[name]) if "enum" in _schemas()[name] else _type_named(name)
    if "const" in schema or "enum" in schema:
        values: Sequence[object] = schema.get("enum") or [schema["const"]]
        return " or ".join(f'`"{value}"`' for value in values)
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {_type(schema['items'])}"
    if schema.get("format") == "date-time":
        return "time, RFC 3339"
    return str(schema.get("type", "any JSON"))


def _type_named(name: str) -> str:
    match name:
        case "JsonValue":
            return "any JSON"
        case "SessionEvent":
            return "[an event](#events)"
        case _:
            return f"[`{name}`](#{name.lower()})"


def _problems(_subject: str) -> str:
    ends = {code.value for code in errors.FailureCode}
    rows: list[tuple[str, ...]] = []
    for code, kind in sorted((str(code), kind) for code, kind in KINDS.items()):
        statuses = f"{kind.status}" if kind.refused is None else f"{kind.status}, {kind.refused}"
        again = "no" if kind.again is None else f"yes: {kind.again}"
        rows.append((f"`{code}`", statuses, "yes" if code in ends else "", kind.meaning, again))
    return _table(("Code", "Status", "Ends a turn", "Meaning", "Does asking again help"), rows)


# -- the command ---------------------------------------------------------------------------------


def _options(subject: str) -> str:
    """Tell the settings of one group."""
    rows = [
        (
            f"`{one.name}`" if one.flag else "none",
            _flags(one),
            f"`{one.variable}`",
            one.default,
            one.description,
        )
        for one in options.settings().values()
        if one.about.group == subject
    ]
    return _table(("Key", "Option", "Variable", "Default", "Meaning"), rows)


def _flags(one: options.Setting) -> str:
    if not one.flag:
        return "none"
    if one.is_switch:
        return f"`{one.flag}`, `{one.opposite}`"
    value = f"`{one.flag} {one.about.metavar}`"
    return f"{value}, repeatable" if one.repeatable else value


def _config_example(_subject: str) -> str:
    return f"```toml\n{toml.example()}```"


BLOCKS: Mapping[str, Callable[[str], str]] = {
    "lifecycle": _diagram,
    "members": _members,
    "rules": _rules,
    "settings": _settings,
    "error-tree": _error_tree,
    "example": _example,
    "endpoints": _endpoints,
    "fields": _fields,
    "events": _events,
    "problems": _problems,
    "options": _options,
    "config-example": _config_example,
}
"""What makes each part, by the first word of its name."""


# -- Markdown, and docstrings --------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ([_one_line(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _attributes(made: type) -> list[tuple[str, str]]:
    """Return name and meaning of everything under `Attributes:` in a docstring."""
    text = inspect.getdoc(made) or ""
    found = re.findall(
        r"^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)",
        text.partition("Attributes:\n")[2],
        re.MULTILINE | re.DOTALL,
    )
    return [(name, _one_line(meaning)) for name, meaning in found]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Writes the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    check: bool = parser.parse_args(arguments).check
    stale = [path for path in pages() if generated(path.read_text()) != path.read_text()]
    for path in stale:
        if not check:
            path.write_text(generated(path.read_text()))
        state = "is out of date: run `python docs/generate.py`" if check else "was written anew"
        sys.stdout.write(f"{path.relative_to(ROOT)} {state}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
