"""Which files the file tools may touch: the decision alone, on real files and links."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import JsonValue

from session_supervisor.agents.claude.confinement import TOOLS, Confinement

FILE_TOOLS = ("Read", "Write", "Edit", "NotebookEdit")


@dataclass(frozen=True)
class Tree:
    """cwd and extra are a session's own, config is hidden, everything else is others'."""

    top: Path

    @property
    def cwd(self) -> Path:
        return self.top / "cwd"

    @property
    def confinement(self) -> Confinement:
        return Confinement.of(
            {"HOME": str(self.top), "CLAUDE_CONFIG_DIR": str(self.cwd / "config")},
            cwd=str(self.cwd),
            scratch=str(self.top / "scratch"),
            extra_dirs=[str(self.top / "extra")],
        )

    def refusal(self, tool: str, cwd: Path | None = None, **given: JsonValue) -> str | None:
        return self.confinement.refusal(
            {
                "tool_name": tool,
                "tool_input": given,
                "cwd": str(cwd or self.cwd),
                "session_id": "mine",
                "transcript_path": f"{self.cwd}/config/projects/p/mine.jsonl",
            }
        )

    def refusal_of(self, path: JsonValue, tool: str = "Read") -> str | None:
        if tool == "NotebookEdit":
            return self.refusal(tool, notebook_path=path)
        return self.refusal(tool, file_path=path)

    def allows(self, path: str, tool: str = "Read") -> bool:
        return self.refusal_of(path, tool) is None


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    top = tmp_path_factory.mktemp("tree").resolve()
    for folder in ("cwd/b/c", "cwd/~name", "out/d", "extra", "scratch", "cwdx"):
        (top / folder).mkdir(parents=True)
    for session in ("mine", "other"):
        (top / "cwd/config/projects/p" / session / "tool-results").mkdir(parents=True)
        (top / "cwd/config/projects/p" / session / "tool-results/r.txt").touch()
        (top / f"cwd/config/projects/p/{session}.jsonl").touch()
    for file in ("cwd/a", "cwd/b/a", "cwd/b/c/a", "out/a", "out/d/a", "extra/a", "scratch/a"):
        (top / file).touch()
    for link, target in {
        "cwd/in": "b/c",
        "cwd/leaf": "b/c/a",
        "cwd/leak": "../out/a",
        "cwd/up": "..",
        "cwd/out": str(top / "out"),
        "cwd/far": "in/../../../out",
        "cwd/loop": "loop",
        "cwd/gone": "../out/gone",
        "cwd/root": "/",
        "out/back": "../cwd",
        "same": "cwd",
    }.items():
        (top / link).symlink_to(target)
    return Tree(top)


def inside(tree: Tree, path: Path) -> bool:
    own = any(path.is_relative_to(tree.top / one) for one in ("cwd", "extra", "scratch"))
    results = tree.cwd / "config/projects/p/mine/tool-results"
    return own and (not path.is_relative_to(tree.cwd / "config") or path.is_relative_to(results))


def where(path: str) -> Path | None:
    """Where the kernel gets to, the last step of which need not exist."""
    for whole, rest in ((path, ""), os.path.split(path)):
        try:
            fd = os.open(whole, os.O_PATH)
        except OSError:
            if os.path.islink(whole):
                return None  # a link to nowhere, or to itself
            continue
        try:
            return Path(os.readlink(f"/proc/self/fd/{fd}"), rest)
        finally:
            os.close(fd)
    return None


PARTS = (
    *("a", "b", "c", "d", "in", "leaf", "leak", "up", "out", "far", "loop", "gone", "root", "back"),
    *("..", ".", "", "same", "cwd", "cwdx", "extra", "scratch", "config", "projects", "p", "mine"),
    *("tool-results", "r.txt", "mine.jsonl", "other", "new", "~name", "tmp", "etc", "passwd"),
)
STARTS = ("", "{top}/", "{cwd}/", "{cwd}/b/", "{top}/out/", "{top}/cwd", "/", "~/", "~")


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc where the kernel got to")
@example(start="", parts=["in", "..", "..", "..", "out", "a"])
@example(start="", parts=["far", "a"])
@example(start="", parts=["gone"])
@given(start=st.sampled_from(STARTS), parts=st.lists(st.sampled_from(PARTS), max_size=7))
def test_a_file_is_allowed_if_and_only_if_it_lies_inside(
    tree: Tree, start: str, parts: list[str]
) -> None:
    path = start.format(top=tree.top, cwd=tree.cwd) + "/".join(parts)
    expanded = str(tree.top) + path[1:] if path == "~" or path.startswith("~/") else path
    whole = os.path.join(tree.cwd, expanded)
    if os.path.normpath(whole).startswith("//"):
        return
    readings = [where(whole), where(os.path.normpath(whole))]
    if tree.allows(path):
        assert all(one is None or inside(tree, one) for one in readings)
    elif None not in readings:
        assert not all(one is not None and inside(tree, one) for one in readings)


@given(st.text())
def test_any_text_gets_an_answer_and_none_a_file_outside(tree: Tree, text: str) -> None:
    if tree.allows(text):
        for reading in (text, text.strip()):
            assert inside(tree, Path(os.path.realpath(tree.cwd / reading)))


def test_every_reading_of_a_path_counts(tree: Tree) -> None:
    (tree.cwd / " leak").touch()
    (tree.cwd / "leak ").touch()
    assert not tree.allows(" leak")
    assert not tree.allows("leak ")
    (tree.cwd / "\u00e9").symlink_to("/etc/passwd")
    (tree.cwd / "e\u0301").touch()
    assert not tree.allows("e\u0301")


@pytest.mark.parametrize("tool", FILE_TOOLS)
def test_a_refusal_tells_the_model_what_to_do(tree: Tree, tool: str) -> None:
    refusal = tree.refusal_of("/etc/passwd", tool)
    assert refusal is not None
    assert f"{tool} was not allowed: '/etc/passwd' is outside of the session's dir" in refusal
    assert f"'{tree.cwd}' and '{tree.top}/extra' only" in refusal


@pytest.mark.parametrize("tool", FILE_TOOLS)
@pytest.mark.parametrize("path", [None, 1, ["a"], {"a": "a"}, "a\0b", "/etc/passwd\0", "\ud800"])
def test_what_is_no_path_is_refused(tree: Tree, tool: str, path: JsonValue) -> None:
    assert tree.refusal_of(path, tool)
    assert tree.refusal(tool)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_call_that_cannot_be_understood_is_refused(tree: Tree, tool: str) -> None:
    confinement = Confinement(home="/nowhere", roots=(str(tree.cwd), "/nowhere"), hidden=())
    given: dict[str, JsonValue] = {"file_path": "a", "notebook_path": "a", "pattern": "a"}
    call: dict[str, JsonValue] = {"tool_name": tool, "tool_input": given, "cwd": str(tree.cwd)}
    assert confinement.refusal(call) is None
    assert confinement.refusal({**call, "cwd": None})
    assert confinement.refusal({**call, "tool_input": "a"})
    if tool != "Grep":  # which looks through the current directory then
        assert confinement.refusal({**call, "tool_input": {"__unparsedToolInput": {}}})


def test_other_tools_are_not_confined(tree: Tree) -> None:
    assert tree.refusal("Bash", command="cat /etc/passwd") is None
    assert tree.confinement.refusal({}) is None


def test_relative_paths_count_from_where_the_cli_is(tree: Tree) -> None:
    assert tree.refusal("Read", cwd=tree.cwd / "b", file_path="../a") is None
    assert tree.refusal("Read", file_path="../a")
    assert tree.refusal("Grep", cwd=tree.top, pattern="x")
    assert tree.refusal("Grep", cwd=tree.top, pattern="x", path="cwd/b") is None


@pytest.mark.parametrize("tool", ["Glob", "Grep"])
def test_a_search_stays_inside(tree: Tree, tool: str) -> None:
    for path in ("b", "./b", str(tree.cwd / "b"), "in", "~/extra", "leaf"):
        assert tree.refusal(tool, pattern="x", path=path) is None
    for path in ("..", "out", "up", "leak", "/", "~", "/etc", "in/../../../out"):
        assert tree.refusal(tool, pattern="x", path=path)
    assert tree.refusal(tool, pattern="x", path=1)


def search(tree: Tree, pattern: str) -> str | None:
    """Ask where nothing is hidden."""
    confinement = Confinement(home="/nowhere", roots=(str(tree.cwd), "/nowhere"), hidden=())
    asked: dict[str, JsonValue] = {"pattern": pattern.replace("TOP", str(tree.top))}
    return confinement.refusal({"tool_name": "Glob", "cwd": str(tree.cwd), "tool_input": {**asked}})


@pytest.mark.parametrize(
    "pattern",
    [
        *("/etc/*", "/*", "/etc/passwd", "TOP/out/*", "TOP/cw*", "TOP/*/a", "out/*", "up/*"),
        *("../out/*", "b/../../out/*", "*/../../out", "{..,b}/*", "{/etc,b}/*", "{b,/etc}/*"),
        *("{b,~/out}/*", "leak", "far/*", "a\0"),
    ],
)
def test_a_pattern_that_leads_outside_is_refused(tree: Tree, pattern: str) -> None:
    assert search(tree, pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "**/*.py",
        "b/*",
        "TOP/cwd/b/*",
        "src/**/*.{ts,tsx}",
        "a{,/index}.ts",
        "in/*",
        "x..y",
        "",
    ],
)
def test_a_pattern_that_stays_inside_is_not(tree: Tree, pattern: str) -> None:
    assert search(tree, pattern) is None


def test_what_the_cli_keeps_of_other_sessions_is_hidden_even_inside(tree: Tree) -> None:
    projects = tree.cwd / "config" / "projects" / "p"
    for path in ("other/tool-results/r.txt", "other.jsonl", "mine.jsonl", "../../.credentials"):
        assert not tree.allows(str(projects / path))
    own = str(projects / "mine" / "tool-results" / "r.txt")
    assert tree.allows(own)
    assert not tree.allows(own, "Write")
    assert not tree.allows(own, "Edit")
    assert tree.refusal("Grep", pattern="x", path=str(projects / "mine" / "tool-results")) is None
    # A search would come across it.
    assert "further down" in str(tree.refusal("Grep", pattern="x"))
    assert tree.refusal("Grep", pattern="x", path="b") is None


@pytest.mark.parametrize("session", ["..", ".", "", "../p/other", None, 1])
def test_only_a_session_s_own_results_are_its_own(tree: Tree, session: JsonValue) -> None:
    path = str(tree.cwd / "config/projects/p/other/tool-results/r.txt")
    call: dict[str, JsonValue] = {
        "tool_name": "Read",
        "tool_input": {"file_path": path},
        "cwd": str(tree.cwd),
        "session_id": session,
        "transcript_path": f"{tree.cwd}/config/projects/p/x.jsonl",
    }
    assert tree.confinement.refusal(call)


def test_a_directory_inside_the_hidden_one_can_be_a_session_s(tree: Tree) -> None:
    confinement = Confinement.of(
        {"HOME": str(tree.top), "CLAUDE_CONFIG_DIR": str(tree.top)},
        cwd=str(tree.cwd),
        scratch=str(tree.top / "scratch"),
    )
    call: dict[str, JsonValue] = {"tool_name": "Read", "cwd": str(tree.cwd)}
    assert confinement.refusal({**call, "tool_input": {"file_path": "a"}}) is None
    assert confinement.refusal({**call, "tool_input": {"file_path": "../a"}})


def test_the_cli_is_told_the_same_limits(tree: Tree) -> None:
    told = tree.confinement.settings()
    assert told["blockFileToolReadsOutsideWorkingDirectories"] is True
    excluded = told["workingDirectoriesExclude"]
    assert isinstance(excluded, list)
    assert str(tree.cwd / "config") in excluded


def test_where_it_works_is_not_looked_up_again(tree: Tree) -> None:
    # What has become a link since it was looked at must not move the limits.
    limits = Confinement.of({"HOME": "/"}, cwd=str(tree.top / "same"), scratch="/nowhere")
    assert limits.roots[0] == str(tree.top / "same")


def test_a_single_file_can_be_hidden(tree: Tree) -> None:
    limits = Confinement.of(
        {"HOME": "/"},
        cwd=str(tree.cwd),
        scratch="/nowhere",
        hidden_dirs=[str(tree.cwd / "b/a")],
    )
    for path, refused in {"b/a": True, "b/c/a": False, "a": False}.items():
        call: dict[str, JsonValue] = {
            "tool_name": "Read",
            "tool_input": {"file_path": path},
            "cwd": str(tree.cwd),
        }
        assert bool(limits.refusal(call)) is refused
