"""The documentation says what the code does.

Its examples are run, its tables compared with what they are about, and its links lead somewhere.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from docs.generate import ROOT, block, generated, main, pages
from pydantic import BaseModel

from session_http.cli import main as command
from session_http.configuration import GROUPS, ServerSettings
from session_http.operations import OPERATIONS, Operation
from session_http.options import settings
from session_http.reading import Source
from session_http.sources import load

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in pages()}
TEXTS = {**PAGES, "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text()}


# Generated parts


@pytest.mark.parametrize("page", PAGES)
def test_the_generated_parts_are_up_to_date(page: str) -> None:
    assert generated(PAGES[page]) == PAGES[page], "run `python docs/generate.py`"


def test_the_diagram_is_where_one_looks_for_it() -> None:
    for page in ("README.md", "docs/architecture.md"):
        assert f"<!-- generated: lifecycle -->\n{block('lifecycle')}<!-- end -->" in PAGES[page]


def test_every_operation_model_and_event_is_described() -> None:
    described = PAGES["docs/api.md"]
    models = {row.takes for row in OPERATIONS if row.source is not Source.QUERY}
    models |= {row.gives for row in OPERATIONS if row.gives is not None}
    for model in models:
        assert f"### {model.__name__}\n\n<!-- generated: fields {model.__name__} -->" in described


def test_the_generator_finds_what_is_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- generated: lifecycle -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr("docs.generate.ROOT", tmp_path)
    assert main(["--check"]) == 1
    assert "old" in page.read_text()
    assert main([]) == 0
    assert "README.md is out of date" in capsys.readouterr().out
    assert page.read_text() == (
        f"before\n<!-- generated: lifecycle -->\n{block('lifecycle')}<!-- end -->\nafter\n"
    )
    assert main(["--check"]) == 0


# Links


def anchors(text: str) -> set[str]:
    """The names that headings get on the pages of a code host."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        while name in found:
            name += "-1"
        found.add(name)
    return found


@pytest.mark.parametrize("page", TEXTS)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    here = ROOT / page
    links = re.findall(r"\]\(([^()\s]+)\)", TEXTS[page].replace("\n", " "))
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (here.parent / path).resolve() if path else here
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", TEXTS)
def test_a_page_keeps_to_what_is_in_the_project(page: str) -> None:
    assert not re.search(r"#\d+\b|\bissue \d|\.\./\.\./|/work/", TEXTS[page])


# Requests


class Request(NamedTuple):
    """A request of an example, as curl would send it."""

    method: str
    path: str
    body: str | None


def requests_in(text: str) -> Iterator[Request]:
    for found in re.findall(r"^```(?:sh|console|bash)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n", " ", found).splitlines():
            for words in commands(line):
                if "curl" in words:
                    yield request_of(words)


def commands(line: str) -> Iterator[list[str]]:
    """Split a line of shell where one command ends and another begins."""
    words = shlex.shlex(line, posix=True, punctuation_chars="();&|<>")
    words.whitespace_split = True
    command: list[str] = []
    try:
        for word in words:
            if set(word) <= set("();&|<>"):
                yield command
                command = []
            else:
                command.append(word)
    except ValueError:  # not a command, but what one has printed
        return
    yield command


def request_of(words: list[str]) -> Request:
    (url,) = [word for word in words if word.startswith("http")]
    body = words[words.index("-d") + 1] if "-d" in words else None
    method = words[words.index("-X") + 1] if "-X" in words else "GET"
    assert method != "GET" or body is None, words
    path = re.fullmatch(r"http://localhost:3000(/[^?]*)(\?.*)?", url)
    assert path is not None, url
    return Request(method, path[1], body)


EXAMPLES = [request for text in PAGES.values() for request in requests_in(text)]


def operation(request: Request) -> Operation:
    for row in OPERATIONS:
        pattern = re.sub(r"{\w+}", r"[^/]+", row.path.replace("{path}", ".+"))
        if row.method == request.method and re.fullmatch(pattern, request.path):
            return row
    raise AssertionError(f"there is no {request.method} {request.path}")


def test_the_tour_has_every_operation_of_a_session() -> None:
    seen = {(row.method, row.path) for row in map(operation, EXAMPLES)}
    assert {("POST", "/query"), ("POST", "/session/start"), ("GET", "/health")} <= seen
    session = "/session/{session_id}"
    assert {("POST", f"{session}/query"), ("POST", f"{session}/interrupt")} <= seen
    assert ("DELETE", session) in seen
    assert ("POST", f"{session}/permissions/{{request_id}}") in seen


@pytest.mark.parametrize("request_", EXAMPLES, ids=lambda one: f"{one.method} {one.path}")
def test_every_request_of_an_example_is_one_that_the_server_takes(request_: Request) -> None:
    row = operation(request_)
    if request_.body is None:
        assert row.source is not Source.BODY
        return
    body = json.loads(request_.body)
    if "promt" in body:  # the tour shows what becomes of a mistake
        body["prompt"] = body.pop("promt")
    assert isinstance(row.takes.model_validate_json(json.dumps(body)), BaseModel)


# Options


def flags(capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        command(["serve", "--help"])
    return set(re.findall(r"^  (--\S+)", capsys.readouterr().out, re.MULTILINE))


def test_every_option_of_the_server_is_on_the_page_of_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = {flag.replace("[no-]", "") for flag in flags(capsys)}
    assert len(there) > 40
    page = PAGES["docs/configuration.md"]
    described = set(re.findall(r"^\| `\w+` \| `(--[a-z0-9-]+)", page, re.MULTILINE))
    assert described == there - {"--config"}
    assert "`--config FILE`" in page
    for group in GROUPS:
        assert f"<!-- generated: options {group} -->" in page


def test_the_options_in_the_readme_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    there = flags(capsys)
    table = PAGES["README.md"].partition("## Configuration")[2].partition("## Development")[0]
    rows = re.findall(r"^\| `(--[a-z-]+)` \| `(\w+)` \|", table, re.MULTILINE)
    assert len(rows) >= 8
    for flag, variable in rows:
        assert flag in there or f"--[no-]{flag[2:]}" in there
        assert variable == f"SESSION_SUPERVISOR_{flag[2:].replace('-', '_').upper()}"


def example_file() -> str:
    """The file of the page, with every key in force."""
    page = PAGES["docs/configuration.md"]
    (found,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return re.sub(r"^#(?=\w)", "", found, flags=re.MULTILINE)


def test_the_example_file_has_every_key_and_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "server.toml"
    file.write_text(example_file())
    loaded = load({}, config=file)
    assert set(loaded.origins) == set(ServerSettings.model_fields) - {"api_keys"}
    defaults = ServerSettings()
    for name, one in settings().items():
        if one.flag and one.about.example is None:
            assert getattr(loaded.settings, name) == getattr(defaults, name), name


# Examples


def code_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def test_the_embedding_example_is_the_one_of_the_pages() -> None:
    # Which is run as a program, on the real CLI, in tests/e2e.
    source = (ROOT / "examples" / "embedding.py").read_text()
    for page in ("README.md", "docs/embedding.md"):
        assert source.endswith(code_blocks(page)[0])


QUOTED = re.findall(r"<!-- generated: example (\S+) -->", PAGES["docs/embedding.md"])
OF_THE_PAGE = [
    code
    for code in code_blocks("docs/embedding.md")
    if not any((ROOT / "examples" / name).read_text().endswith(code) for name in QUOTED)
]


def test_every_example_of_embedding_is_quoted() -> None:
    # And each of them is run as a program, on the real CLI, in tests/e2e.
    there = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert set(QUOTED) == there - {"chat.py"}, "all but the client"
    assert len(OF_THE_PAGE) == len(code_blocks("docs/embedding.md")) - len(QUOTED) > 0


@pytest.mark.parametrize("number", range(len(OF_THE_PAGE)))
def test_the_examples_of_embedding_run(number: int) -> None:
    code = OF_THE_PAGE[number]
    assert "ScriptedAgent" in code
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, f"docs/embedding.md, block {number}", "exec", dont_inherit=True), names)


# Rooms


def rows_of_rooms(package: str) -> dict[str, int]:
    """The row in which each room stands in the architecture's table of a package."""
    text = PAGES["docs/architecture.md"].partition(f"Rooms of `{package}`:\n")[2]
    table = text.strip().split("\n\n")[0].splitlines()[2:]
    return {
        room: number
        for number, line in enumerate(table)
        for room in re.findall(r"`(\w+)`", line.split("|")[1])
    }


@pytest.mark.parametrize(
    ("package", "folder"),
    [("session_supervisor", "supervisor"), ("session_http", "http")],
)
def test_rooms_import_only_from_rows_above(package: str, folder: str) -> None:
    rows = rows_of_rooms(package)
    base = ROOT / folder / package
    modules = [path for path in base.rglob("*.py") if not path.name.startswith("__")]
    assert set(rows) == {room_of(path, base) for path in modules}
    wrong = [
        f"{path.relative_to(base)} imports {imported}"
        for path in modules
        for imported in imports(path, package)
        if rows[imported] > rows[room_of(path, base)]
    ]
    assert not wrong


def room_of(path: Path, base: Path) -> str:
    return path.relative_to(base).parts[0].removesuffix(".py")


def imports(path: Path, package: str) -> set[str]:
    """The rooms of the package that a module imports from."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    # Not what the package itself offers: that is for its users, and no room.
    rooms = rows_of_rooms(package)
    return {name.split(".")[1] for name in names if name.startswith(f"{package}.")} & set(rooms)
