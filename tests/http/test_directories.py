"""Where callers may have a session work: on real directories and links, and in the API."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from session_http.directories import resolve_cwd
from session_http.settings import HttpSettings
from session_supervisor.errors import InvalidSpec, NotAllowed
from tests.http.servers import eventually, in_process, world


@dataclass(frozen=True)
class Tree:
    """Ada's directory is the root of the paths; everything else is none of hers."""

    top: Path

    @property
    def root(self) -> str:
        return f"{self.top}/by-link/{{owner}}"

    @property
    def base(self) -> Path:
        return self.top / "yard" / "ada"

    def resolve(self, given: str, owner: str = "ada") -> str:
        return resolve_cwd(self.root, owner, given)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    top = tmp_path_factory.mktemp("tree").resolve()
    for folder in ("yard/ada/a/b", "yard/ada/~", "yard/ben/a", "yard/ada-too", "private"):
        (top / folder).mkdir(parents=True)
    (top / "yard/ada/file").touch()
    for link, target in {
        "by-link": "yard",
        "yard/ada/in": "a/b",
        "yard/ada/out": "../ben",
        "yard/ada/up": "..",
        "yard/ada/root": "/",
        "yard/ada/round": "../ben/back",
        "yard/ada/loop": "loop",
        "yard/ada/gone": "nowhere",
        "yard/ada/to-file": "file",
        "yard/ben/back": "../ada/a",
    }.items():
        (top / link).symlink_to(target)
    return Tree(top)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (".", "."),
        ("a", "a"),
        ("a/b/", "a/b"),
        ("./a//b/.", "a/b"),
        ("in", "a/b"),
        ("round", "a"),
        ("round/b", "a/b"),
        ("~", "~"),
        ("{top}/by-link/ada/a", "a"),
        ("{top}/yard/ada/in", "a/b"),
        ("{top}/yard/ada", "."),
    ],
)
def test_what_lies_below_is_given_with_links_resolved(tree: Tree, given: str, found: str) -> None:
    expected = os.path.normpath(tree.base / found)
    assert tree.resolve(given.format(top=tree.top)) == expected
    assert os.path.realpath(expected) == expected


OUTSIDE = (
    *("out", "out/a", "up", "up/ben", "root/etc", "loop", "gone", "file", "to-file", "nowhere"),
    *("", "../ben", "a/../../ben", "/", "/etc", "/nowhere", "{top}/yard/ben", "{top}/private"),
    *("{top}/yard/ada-too", "{top}/yard/ada/../ben", "{top}/yard/nobody", "file/x", "x" * 300),
)


@pytest.mark.parametrize("given", OUTSIDE)
def test_every_other_path_gets_the_same_answer(tree: Tree, given: str) -> None:
    if given == "":  # is the directory itself
        assert tree.resolve(given) == str(tree.base)
        return
    with pytest.raises(NotAllowed) as refusal:
        tree.resolve(given.format(top=tree.top))
    with pytest.raises(NotAllowed) as other:
        tree.resolve("/does/not/exist")
    assert str(refusal.value) == str(other.value)
    assert str(tree.top) not in str(refusal.value)


def where(path: str) -> str | None:
    """Where the kernel gets to, if that is a directory."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


PARTS = (
    *("a", "b", "in", "out", "up", "root", "round", "loop", "gone", "file", "back", "ada", "ben"),
    *("..", ".", "", "~", "yard", "by-link", "ada-too", "private", "etc", "proc", "self", "cwd"),
)
STARTS = ("", "/", "{top}/", "{top}/yard/ada/", "{top}/by-link/ada/", "{top}/yard/ada")


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc where the kernel got to")
@example(start="", parts=["in", "..", "..", "..", "ben"])
@example(start="", parts=["out", "..", "ada", "a"])
@example(start="{top}/yard/ada/", parts=["round", "..", "ada"])
@given(start=st.sampled_from(STARTS), parts=st.lists(st.sampled_from(PARTS), max_size=6))
def test_no_path_leads_out(tree: Tree, start: str, parts: list[str]) -> None:
    given_path = start.format(top=tree.top) + "/".join(parts)
    try:
        found = tree.resolve(given_path)
    except NotAllowed:
        return
    assert Path(found).is_relative_to(tree.base)
    # It is where the kernel gets to, and leads there for whoever comes next.
    assert found == where(os.path.join(tree.root.format(owner="ada"), given_path)) == where(found)


@given(owner=st.text(max_size=5) | st.sampled_from([".", "..", "", "a/b", "../ada", "\0"]))
def test_no_owner_s_name_leads_out(tree: Tree, owner: str) -> None:
    try:
        found = tree.resolve(".", owner=owner)
    except (NotAllowed, InvalidSpec, UnicodeEncodeError, ValueError):
        return
    assert Path(found).parent == tree.top / "yard"


def test_what_lies_outside_is_not_looked_at(tree: Tree) -> None:
    with (
        patch.object(os.path, "realpath", wraps=os.path.realpath) as looks,
        pytest.raises(NotAllowed),
    ):
        tree.resolve("/etc/ssl")
    looks.assert_called_once_with(f"{tree.top}/by-link/ada")


def test_all_owners_share_a_root_that_does_not_tell_them_apart(tree: Tree) -> None:
    shared = tree.top / "yard"
    assert resolve_cwd(shared, "ada", "ben/a") == str(tree.top / "yard/ben/a")


def test_a_directory_that_nobody_may_enter_is_refused_like_one_that_is_not_there(
    tree: Tree,
) -> None:
    with patch.object(os, "access", return_value=False), pytest.raises(NotAllowed, match="no such"):
        tree.resolve("a")


@pytest.mark.parametrize("given", ["a\0b", "\ud800"])
def test_what_can_be_no_path_is_said(tree: Tree, given: str) -> None:
    with pytest.raises(InvalidSpec) as refusal:
        tree.resolve(given)
    assert refusal.value.field == "cwd"
    assert not isinstance(refusal.value, NotAllowed)


# In the API

WORK = ({"path": "/session/start"}, {"path": "/query", "prompt": "x"})


async def ask(client: httpx.AsyncClient, work: dict[str, str], cwd: object) -> httpx.Response:
    body = {**work, "cwd": cwd}
    return await client.post(body.pop("path"), json=body)  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize("work", WORK)
async def test_without_a_root_nobody_chooses_and_is_told_what_the_operator_must_set(
    work: dict[str, str],
) -> None:
    async with world() as here, in_process(here.app) as client:
        answer = await ask(client, work, ".")
        assert answer.status_code == 403
        assert answer.json()["code"] == "not_allowed"
        assert "cwd_root" in answer.json()["detail"]
        assert (await ask(client, work, None)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("work", WORK)
async def test_a_session_works_where_its_caller_says(work: dict[str, str], tree: Tree) -> None:
    settings = HttpSettings(cwd_root=tree.top / "yard")
    async with world(settings=settings) as here, in_process(here.app) as client:
        answer = await ask(client, work, "ada/in")
        assert answer.status_code == 200
        session = here.supervisor.get(answer.json()["session_id"])
        assert session.spec.cwd == str(tree.base / "a/b")


@pytest.mark.anyio
@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize(
    ("cwd", "told"),
    [
        ("../ben", "must not have '..' in it"),
        ("a/..", "must not have '..' in it"),
        ("a\0", "must not hold a NUL"),
        ("", "at least 1"),
        ("x" * 4097, "at most 4096"),
        (1, "string"),
        (["a"], "string"),
    ],
)
async def test_what_is_no_path_is_a_mistake_of_the_request(
    work: dict[str, str], cwd: object, told: str, tree: Tree
) -> None:
    settings = HttpSettings(cwd_root=tree.top / "yard")
    async with world(settings=settings) as here, in_process(here.app) as client:
        answer = await ask(client, work, cwd)
        assert answer.status_code == 400
        (error,) = answer.json()["errors"]
        assert error["field"] == "cwd"
        assert told in error["message"]


@pytest.mark.anyio
async def test_a_file_system_that_does_not_answer_holds_up_nobody_else(tree: Tree) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow(*_: object) -> str:
        asked.set()
        assert answer.wait(60)
        return str(tree.base)

    settings = HttpSettings(cwd_root=tree.top / "yard")
    async with world(settings=settings) as here, in_process(here.app) as client:
        with patch("session_http.work.resolve_cwd", slow):
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(ask(client, WORK[0], "ada"))
                await eventually(asked.is_set)
                assert (await client.get("/health")).status_code == 200
                answer.set()
                assert (await waiting).status_code == 200
