"""Two owners with two keys on the real command: neither sees, counts, steers or reads the other's.

The keys are made by `keys new`, the server is run by `serve`, and everything goes over HTTP. The
model calls the file tools with what `test_two_owners` has them try, but for links.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from session_supervisor.spec import PermissionMode
from tests.e2e.server import ROOT, SHARED, Server, running_server
from tests.e2e.sse import Client
from tests.e2e.test_two_owners import (
    BOOK,
    MODES,
    SECRET,
    TOOLS,
    nothing_came_of_it,
    outcomes,
    prompt_of,
    tries,
)
from tests.support.trees import below

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

NOBODY_S = "00000000-0000-4000-8000-000000000000"
LONG = "[[slow tokens=200 delay_ms=50]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A server and the keys that were made for it."""

    server: Server
    folder: Path
    tokens: dict[str, str]

    @contextmanager
    def caller(self, name: str) -> Generator[Client]:
        with self.server.client() as client:
            client.http.headers["authorization"] = f"Bearer {self.tokens[name]}"
            yield client

    def owned(self, owner: str) -> Path:
        """Where Claude Code keeps what it keeps for an owner."""
        return self.server.folder / "state" / "offline" / "owners" / owner


def new_key(file: Path, *arguments: str) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "session_http", "keys", "new", "--keys", file, *arguments],
        env={"PYTHONPATH": f"{ROOT / 'http'}:{ROOT / 'supervisor'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    keys = folder / "keys.toml"
    tokens = {
        "ada": new_key(keys, "--owner", "ada", "--max-sessions", "5"),
        "ben": new_key(keys, "--owner", "ben"),
        "eve": new_key(keys, "--owner", "eve", "--role", "admin"),
    }
    for owner in ("ada", "ben"):
        (folder / "yard" / owner / "project").mkdir(parents=True)
    (folder / "yard/ben/project/notes").write_text(f"{SECRET} of a project\n")
    (folder / "private").mkdir(mode=0o700)
    with running_server(
        folder / "server",
        *SHARED,
        f"--keys={keys}",
        f"--workspace={folder / 'private'}",
        f"--cwd-root={folder / 'yard'}/{{owner}}",
        # With it even what lies in the server's temporary directory is not out of the question.
        f"--extra-dir={folder / 'server' / 'tmp'}",
        "--allow-bypass-permissions",
        "--env-passthrough=IS_SANDBOX",  # else Claude Code refuses that to root
        env={"IS_SANDBOX": "1"},
    ) as server:
        yield Shared(server=server, folder=folder, tokens=tokens)


def operations(session_id: str, turn_id: str) -> list[tuple[str, str, dict[str, Any] | None]]:
    """All that can be done with a session."""
    path = f"/session/{session_id}"
    return [
        ("GET", path, None),
        ("GET", f"{path}/turns", None),
        ("GET", f"{path}/turns/{turn_id}", None),
        ("GET", f"{path}/events", None),
        ("GET", f"{path}/events?after=1", None),
        ("POST", f"{path}/query", {"prompt": "[[say Mine now.]]"}),
        ("POST", f"{path}/query", {"prompt": "[[say Mine now.]]", "stream": True}),
        ("POST", f"{path}/interrupt", {}),
        ("POST", f"{path}/interrupt", {"queued": True}),
        ("POST", f"{path}/interrupt", {"turn_id": turn_id}),
        ("DELETE", path, None),
    ]


def refusals(client: Client, session_id: str, turn_id: str) -> list[tuple[int, str]]:
    """Try all of it; return the answers, with the id taken out."""
    answers = [
        client.http.request(method, path, json=body)
        for method, path, body in operations(session_id, turn_id)
    ]
    return [(answer.status_code, answer.text.replace(session_id, "ID")) for answer in answers]


def test_neither_sees_counts_or_steers_what_is_the_other_s(shared: Shared) -> None:
    with shared.caller("ada") as ada, shared.caller("ben") as ben, ada.session() as path:
        session_id = path.rpartition("/")[2]
        with ada.open(path, LONG) as events:
            turn_id = next(events).data["turn_id"]
            next(event for event in events if event.type == "text")
            found = refusals(ben, session_id, turn_id)
            # To the letter what he hears of a session that never was.
            assert found == refusals(ben, NOBODY_S, turn_id)
            assert {status for status, _ in found} == {404}
            assert ben.get("/sessions")["active_sessions"] == []
            assert ben.get("/health")["active_sessions"] == 0
            for name in ("ada", "*"):
                assert ben.get(f"/sessions?owner={name}", expect=403)["code"] == "not_allowed"
            assert ada.get("/sessions")["active_sessions"] == [session_id]
            assert ada.get("/health")["active_sessions"] == 1
            # Nothing of it touched her turn.
            assert ada.get(path)["state"] == "running"
            assert ada.post(f"{path}/interrupt")["turn_ids"] == [turn_id]
            assert list(events)[-1].data["outcome"] == "interrupted"
        assert ada.get(f"{path}/turns")["count"] == 1


def test_a_query_without_a_session_is_its_caller_s_alone_too(shared: Shared) -> None:
    with shared.caller("ada") as ada, shared.caller("ben") as ben:
        asked = ada.post("/query", prompt=f"[[say {SECRET}]]")
        assert ada.turn(asked)["response"] == SECRET
        found = refusals(ben, asked["session_id"], asked["turn_id"])
        assert found == refusals(ben, NOBODY_S, asked["turn_id"])
        assert not any(SECRET in text for _, text in found)


def test_without_a_key_or_with_a_wrong_one_nobody_learns_anything(shared: Shared) -> None:
    with shared.caller("ada") as ada, ada.session() as path, shared.server.client() as nobody:
        session_id = path.rpartition("/")[2]
        assert nobody.get("/health")["active_sessions"] == 0
        for key in ("", shared.tokens["ada"][:-1] + "!", shared.tokens["ada"] + "x"):
            if key:
                nobody.http.headers["x-api-key"] = key
            answers = refusals(nobody, session_id, NOBODY_S)
            assert {status for status, _ in answers} == {401}
            assert len({text for _, text in answers}) == 1
            nobody.get("/sessions", expect=401)
            nobody.get("/not-there", expect=401)


def test_an_admin_finds_and_ends_but_does_not_read_or_ask(shared: Shared) -> None:
    with shared.caller("ada") as ada, shared.caller("eve") as eve:
        started = ada.post("/session/start", initial_prompt=f"[[say {SECRET}]]")
        path = f"/session/{started['session_id']}"
        assert eve.get("/sessions")["count"] == 0
        assert started["session_id"] in eve.get("/sessions?owner=*")["active_sessions"]
        assert eve.get(path)["owner"] == "ada"
        for method, given, body in operations(started["session_id"], started["turn_id"]):
            if "turns" in given or "events" in given or "query" in given:
                answer = eve.http.request(method, given, json=body)
                assert answer.status_code == 403
                assert SECRET not in answer.text
        assert eve.post(f"{path}/interrupt")["outcome"] == "nothing_running"
        eve.delete(path)
        ada.get(path, expect=404)


def test_neither_works_where_the_other_does(shared: Shared) -> None:
    with shared.caller("ada") as ada, shared.caller("ben") as ben:
        ada.post("/query", prompt="[[say Hello.]]", cwd="project")
        for cwd in (f"{shared.folder}/yard/ada/project", f"{shared.folder}/yard/ada", "/etc"):
            refused = ben.post("/query", prompt="x", cwd=cwd, expect=403)
            assert refused == ben.post("/query", prompt="x", cwd="not-there", expect=403)


@pytest.mark.parametrize(
    ("mode", "on_permission"), [*((mode, "deny") for mode in MODES), ("default", "ask")]
)
def test_no_file_tool_reads_or_changes_what_is_the_other_s(
    shared: Shared, mode: PermissionMode, on_permission: str
) -> None:
    """Not even if a human allows it, who is the caller's and not the operator's."""
    private = shared.folder / "private"
    before = set(private.iterdir())
    with (
        shared.caller("ben") as ben,
        ben.session(initial_prompt=f"[[say {SECRET} of a transcript]]") as his,
        shared.caller("ada") as ada,
    ):
        (alone,) = set(private.iterdir()) - before
        (alone / "notes").write_text(f"{SECRET} of a private directory\n")
        # Claude Code names what it keeps by the directory.
        (transcript,) = below(shared.owned("ben"), f"*{alone.name}/*.jsonl")
        assert SECRET in transcript.read_text()
        files = [
            alone / "notes",
            transcript,
            shared.folder / "yard/ben/project/notes",
            shared.folder / "keys.toml",
        ]
        for file in files:
            (file.parent / f"{SECRET}.ipynb").write_text(BOOK)
        contents = {file: file.read_bytes() for file in files}
        with ada.session(
            allowed_tools=TOOLS,
            permission_mode=mode,
            on_permission=on_permission,
            cwd="project",
        ) as path:
            cwd = shared.folder / "yard/ada/project"
            for file in files:
                calls = [
                    (tool, given)
                    for tool, given in tries(file, cwd, [])
                    if "link-" not in str(given)
                    # What is beside the keys is hidden from nobody, if a human allows it.
                    and (file.name != "keys.toml" or file.name in str(given))
                ]
                found = outcomes(ada, path, prompt_of(calls))
                assert len(found) == len(calls)
                nothing_came_of_it(found)
            (cwd / "own").write_text("own\n")
            ((_, failed, said),) = outcomes(ada, path, prompt_of([("Read", {"file_path": "own"})]))
            assert (failed, "own" in said) == (False, True)
        assert {file: file.read_bytes() for file in files} == contents
        for file in files:
            assert not (file.parent / "new").exists()
            (file.parent / f"{SECRET}.ipynb").unlink()
        ben.get(his)
