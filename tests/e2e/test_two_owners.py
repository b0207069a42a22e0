"""Two owners on one server: neither reaches the other's files, nor the server's own, by file tools.

Ben has secrets wherever a session leaves something: in a private directory, in a directory that he
chose, in his transcripts. Ada tries to get at them, and at the server's key file and state, with
every file tool, in every permission mode, in a subagent, and by every name that she can think of.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import JsonValue
from starlette.requests import HTTPConnection

from session_http.app import create_app
from session_http.keys import Principal
from session_http.listen import open_sockets
from session_http.serve import Stop, StopTimes, serve
from session_http.settings import HttpSettings
from session_supervisor import Supervisor, SupervisorConfig
from session_supervisor.agents.claude import ClaudeAgent, sandbox
from session_supervisor.lifecycle import State
from session_supervisor.spec import PermissionMode
from tests.e2e.offline import offline_model
from tests.e2e.sse import Client, Event, Streamed
from tests.support.trees import below

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

SECRET = "marzipan"
"""Stands in every file of Ben's and of the server's, and in the name of one beside it."""

MODES: tuple[PermissionMode, ...] = ("default", "acceptEdits", "bypassPermissions")
TOOLS = ["Read", "Write", "Edit", "NotebookEdit", "Glob", "Grep", "Task"]
BOOK = json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})

Call = tuple[str, dict[str, JsonValue]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estate:
    """A server with two owners, and all directories that it knows."""

    folder: Path
    url: str
    supervisor: Supervisor
    portal: BlockingPortal

    @property
    def work(self) -> Path:
        return self.folder / "yard"

    def owner(self, name: str) -> Client:
        client = Client(self.url)
        client.http.headers["x-owner"] = name
        return client

    def pid(self, path: str) -> int:
        session = self.supervisor.get(path.rpartition("/")[2])
        pid = self.portal.call(session.inspect).pid
        assert pid is not None
        return pid

    def cwd(self, path: str) -> Path:
        return Path(os.readlink(f"/proc/{self.pid(path)}/cwd"))


def who(request: HTTPConnection) -> Principal:
    return Principal(owner=request.headers["x-owner"])


@asynccontextmanager
async def an_estate(
    portal: BlockingPortal, folder: Path, env: Mapping[str, str], *, sandboxed: bool
) -> AsyncGenerator[Estate]:
    state, private = folder / "state", folder / "private"
    agent = ClaudeAgent(
        env={**env, "IS_SANDBOX": "1", "CLAUDE_CODE_MAX_RETRIES": "1"},
        allow_bypass_permissions=True,
        config_dir=lambda owner: state / "owners" / owner / "claude",
        hidden_dirs=[state, private, folder / "keys.toml"],
        sandbox=sandboxed,
    )
    config = SupervisorConfig(workspace=private)
    async with Supervisor(agent, config=config) as supervisor:
        settings = HttpSettings(cwd_root=folder / "yard" / "{owner}")
        app = create_app(supervisor, settings=settings, authenticate=who)
        sockets = open_sockets("127.0.0.1", 0)
        stop = Stop()
        served = asyncio.create_task(
            serve(app, supervisor, sockets, stop=stop, times=StopTimes(drain_s=0.0))
        )
        try:
            yield Estate(
                folder=folder,
                url=f"http://127.0.0.1:{sockets[0].getsockname()[1]}",
                supervisor=supervisor,
                portal=portal,
            )
        finally:
            stop.ask()
            await served


def estate_in(folder: Path, *, sandboxed: bool) -> Iterator[Estate]:
    for owner in ("ada", "ben"):
        (folder / "yard" / owner / "project").mkdir(parents=True)
    (folder / "state").mkdir()
    for secret in ("keys.toml", "state/sessions.db", "yard/ben/project/notes"):
        (folder / secret).write_text(f"{SECRET} of {secret}\n")
    with (
        offline_model() as env,
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(
            an_estate(portal, folder, env, sandboxed=sandboxed)
        ) as estate,
    ):
        # So that it has opened by now whatever it opens for good: its workspace, for one.
        with estate.owner("ada") as client, client.session():
            client.get("/health")
        yield estate


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    yield from estate_in(tmp_path_factory.mktemp("estate"), sandboxed=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ben:
    """What Ben has, and where."""

    private: str
    chosen: str
    files: tuple[Path, ...]

    def contents(self) -> dict[Path, bytes]:
        """Everything beside his secrets, so that nothing was changed or added."""
        return {
            path: path.read_bytes()
            for file in self.files
            for path in file.parent.iterdir()
            if path.is_file() and not path.name.endswith(".jsonl")
        }


def ben_in(estate: Estate) -> Iterator[Ben]:
    with (
        estate.owner("ben") as client,
        client.session(initial_prompt=f"[[say {SECRET} of a transcript]]") as private,
        client.session(initial_prompt=f"[[say {SECRET}]]", cwd="project") as chosen,
    ):
        alone = estate.cwd(private)
        assert alone.parent == estate.folder / "private"
        assert estate.cwd(chosen) == estate.work / "ben/project"
        (alone / "notes").write_text(f"{SECRET} of a private directory\n")
        (transcript, *_) = below(estate.folder / "state/owners/ben/claude/projects", "*.jsonl")
        assert SECRET in transcript.read_text()
        files = (
            alone / "notes",
            estate.work / "ben/project/notes",
            transcript,
            estate.folder / "keys.toml",
            estate.folder / "state/sessions.db",
        )
        for file in files[:3]:
            (file.parent / f"{SECRET}.ipynb").write_text(BOOK)
        yield Ben(private=private, chosen=chosen, files=files)


@pytest.fixture(scope="module")
def ben(estate: Estate) -> Iterator[Ben]:
    yield from ben_in(estate)


def names_of(file: Path, cwd: Path, pids: list[int]) -> Iterator[str]:
    """Other names for a file: all that lead there, and some that an unwary check takes for it."""
    path, folder = str(file), str(file.parent)
    yield path
    yield os.path.relpath(path, cwd)
    yield f"{cwd}/{os.path.relpath(path, cwd)}"
    yield f"./x/../{os.path.relpath(path, cwd)}"
    yield f"/{path}"
    yield f" {path} "
    yield f"{folder}/./{file.name}"
    yield f"{folder}//{file.name}/"
    yield path.upper()
    yield f"link-{abs(hash(folder))}/{file.name}"
    yield f"link-{abs(hash(path))}"
    yield f"/proc/self/root{path}"
    yield f"/proc/self/cwd/{os.path.relpath(path, cwd)}"
    yield f"/proc/thread-self/root{path}"
    for pid in pids:
        yield f"/proc/{pid}/root{path}"
        yield f"/proc/{pid}/cwd/{file.name}"


def tries(file: Path, cwd: Path, pids: list[int]) -> Iterator[Call]:
    """Every file tool on a file and on what is beside it; a few of them on its other names."""
    for number, name in enumerate(names_of(file, cwd, pids)):
        folder = os.path.dirname(name.strip().rstrip("/"))
        if not folder:  # a link to the file itself, beside which there is nothing
            folder = f"link-{abs(hash(str(file.parent)))}"
        yield "Read", {"file_path": name}
        yield "Edit", {"file_path": name, "old_string": SECRET, "new_string": "nougat"}
        yield "Grep", {"pattern": SECRET, "path": folder, "output_mode": "content"}
        if number > 1 and "link" not in name:
            continue
        yield "Write", {"file_path": name, "content": "nougat"}
        yield "Grep", {"pattern": SECRET, "path": name, "output_mode": "content"}
        yield "Write", {"file_path": f"{folder}/new", "content": "nougat"}
        yield "Glob", {"pattern": "*", "path": folder}
        yield "Glob", {"pattern": f"{folder}/*"}
        yield (
            "NotebookEdit",
            {
                "notebook_path": f"{folder}/{SECRET}.ipynb",
                "new_source": "nougat",
                "edit_mode": "insert",
                "cell_type": "code",
            },
        )


def prompt_of(calls: list[Call]) -> str:
    """All calls in one message of the model."""
    (tool, given), *more = calls
    return f"[[tool {tool} {json.dumps(given)}]]" + "".join(
        f"[[and {tool} {json.dumps(given)}]]" for tool, given in more
    )


def outcomes(client: Client, path: str, prompt: str) -> list[tuple[str, bool, str]]:
    """Make the model call tools; return their inputs, whether they failed, and what they said.

    A human is there who allows everything that is asked.
    """
    with client.open(path, prompt) as events:
        stream = Streamed(events=tuple(_allowing(client, path, events)))
    assert stream.end["type"] == "done", stream.end
    calls = {one.data["tool_use_id"]: one.data for one in stream.of("tool_use")}
    return [
        (
            json.dumps({**calls[result["tool_use_id"]]["input"], "tool": name}),
            bool(result["is_error"]),
            json.dumps(result["content"]),
        )
        for result in (one.data for one in stream.of("tool_result"))
        if (name := calls[result["tool_use_id"]]["name"]) not in ("Task", "Agent")
    ]


def _allowing(client: Client, path: str, events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
        if event.type == "permission_request":
            client.post(f"{path}/permissions/{event.data['request_id']}", decision="allow")
        yield event


def links(cwd: Path, ben: Ben) -> Iterator[Path]:
    """Links in a session's directory, such as its shell can make."""
    for file in ben.files:
        for target in (file, file.parent):
            link = cwd / f"link-{abs(hash(str(target)))}"
            if not link.is_symlink():
                link.symlink_to(target)
                yield link


def nothing_came_of_it(found: list[tuple[str, bool, str]]) -> None:
    for call, failed, said in found:
        assert failed, (call, said)
        # An error may name the file that was asked for.
        assert f"{SECRET} of" not in said, (call, said)
        assert f"{SECRET}.ipynb" not in said or f"{SECRET}.ipynb" in call, (call, said)


@pytest.mark.parametrize("mode", MODES)
def test_no_file_tool_reaches_what_is_another_s_or_the_server_s(
    estate: Estate, ben: Ben, mode: PermissionMode
) -> None:
    before = ben.contents()
    with (
        estate.owner("ada") as client,
        client.session(allowed_tools=TOOLS, permission_mode=mode, cwd="project") as path,
    ):
        client.ask(path, "[[say Hello.]]")
        cwd = estate.cwd(path)
        assert cwd == estate.work / "ada/project"
        pids = [os.getpid(), estate.pid(ben.private), estate.pid(ben.chosen)]
        made = list(links(cwd, ben))
        for file in ben.files:
            calls = list(tries(file, cwd, pids))
            found = outcomes(client, path, prompt_of(calls))
            assert len(found) == len(calls)
            nothing_came_of_it(found)
        for link in made:
            link.unlink()
        # The same tools on what is hers: it is not that nothing works.
        (cwd / "own").write_text("own\n")
        ((_, failed, said),) = outcomes(client, path, prompt_of([("Read", {"file_path": "own"})]))
        assert not failed
        assert "own" in said
        assert sorted(os.listdir(cwd)) == ["own"]
    assert ben.contents() == before


@pytest.mark.parametrize("mode", MODES)
def test_no_subagent_does_either(estate: Estate, ben: Ben, mode: PermissionMode) -> None:
    before = ben.contents()
    with (
        estate.owner("ada") as client,
        client.session(allowed_tools=TOOLS, permission_mode=mode, cwd="project") as path,
    ):
        client.ask(path, "[[say Hello.]]")
        calls = [one for file in ben.files for one in list(tries(file, estate.cwd(path), []))[:9]]
        task: dict[str, JsonValue] = {
            "description": "d",
            "subagent_type": "general-purpose",
            "run_in_background": False,
            "prompt": prompt_of(calls),
        }
        found = outcomes(client, path, prompt_of([("Task", task)]))
        assert len(found) == len(calls)
        nothing_came_of_it(found)
    assert ben.contents() == before


def test_a_search_of_one_s_own_directory_finds_nothing_of_others(estate: Estate, ben: Ben) -> None:
    with (
        estate.owner("ada") as client,
        client.session(allowed_tools=TOOLS, cwd=".") as path,
    ):
        client.ask(path, "[[say Hello.]]")
        cwd = estate.cwd(path)
        made = list(links(cwd, ben))
        calls: list[Call] = [
            ("Grep", {"pattern": SECRET, "output_mode": "content"}),
            ("Grep", {"pattern": SECRET, "glob": "../**"}),
            ("Glob", {"pattern": "**/*"}),
            ("Glob", {"pattern": "link*/*"}),
            ("Glob", {"pattern": "*/../../../**"}),
            ("Glob", {"pattern": "{project,..}/../ben/**"}),
            ("Glob", {"pattern": f"{{{cwd},{estate.folder}}}/**"}),
        ]
        for call, failed, said in outcomes(client, path, prompt_of(calls)):
            assert f"{SECRET} of" not in said, (call, failed, said)
            assert ".ipynb" not in said, (call, failed, said)
        for link in made:
            link.unlink()


@pytest.mark.parametrize(
    "cwd",
    [
        "{folder}/yard/ben",
        "{folder}/yard/ben/project",
        "{folder}/yard",
        "{folder}/state/owners/ada/claude",
        "{folder}/private",
        "/",
        "/etc",
        "/proc/self/cwd",
        "to-ben",
        "to-ben/project",
        "to-root/etc",
        "loop",
        "file",
        "not-there",
        "{folder}/yard/ben/not-there",
        "{folder}/yard/ada-not",
    ],
)
def test_nobody_works_in_a_directory_that_is_not_his(estate: Estate, cwd: str) -> None:
    mine = estate.work / "ada"
    for name, target in {"to-ben": "../ben", "to-root": "/", "loop": "loop"}.items():
        if not (mine / name).is_symlink():
            (mine / name).symlink_to(target)
    (mine / "file").touch()
    with estate.owner("ada") as client:
        for operation in ({"path": "/session/start"}, {"path": "/query", "prompt": "x"}):
            answer = client.post(**operation, cwd=cwd.format(folder=estate.folder), expect=403)
            assert answer["code"] == "not_allowed"
            # Whatever the reason is, the answer is the same: it tells nothing of the machine.
            assert "no such directory below the one" in answer["detail"]
            assert str(estate.folder) not in answer["detail"]
    for name in ("to-ben", "to-root", "loop", "file"):
        (mine / name).unlink()


def test_conversations_of_two_owners_are_kept_apart_and_resumed(estate: Estate) -> None:
    for name in ("ada", "ben"):
        with estate.owner(name) as client, client.session() as path:
            client.ask(path, f"[[say {name} was here]]")
            pid = estate.pid(path)
            os.kill(pid, 9)
            estate.portal.call(_restarted, estate, path, pid)
            client.ask(path, "[[say And again.]]")
            kept = estate.folder / "state/owners" / name / "claude"
            texts = [file.read_text() for file in below(kept, "*.jsonl")]
            (whole,) = [one for one in texts if "And again." in one]
            assert f"{name} was here" in whole
            assert kept.stat().st_mode & 0o777 == 0o700
            assert kept.parent.stat().st_mode & 0o777 == 0o700


async def _restarted(estate: Estate, path: str, pid: int) -> None:
    session = estate.supervisor.get(path.rpartition("/")[2])
    async with asyncio.timeout(60):
        while (await session.inspect()).pid in (None, pid):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _failed(estate: Estate, path: str) -> None:
    session = estate.supervisor.get(path.rpartition("/")[2])
    async with asyncio.timeout(60):
        while session.state is not State.FAILED:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.02)


def test_a_restart_in_a_directory_that_was_swapped_for_a_link_does_not_happen(
    estate: Estate,
) -> None:
    mine = estate.work / "ada"
    (mine / "there").mkdir()
    with estate.owner("ada") as client, client.session(cwd="there") as path:
        client.ask(path, "[[say Hello.]]")
        (mine / "there").rename(mine / "moved")
        (mine / "there").symlink_to("../ben")
        os.kill(estate.pid(path), 9)
        estate.portal.call(_failed, estate, path)
        failure = client.post(f"{path}/query", prompt="[[say Hello.]]", expect=409)
        assert "leads elsewhere now" in failure["detail"]
        assert str(estate.folder) not in failure["detail"]
    (mine / "there").unlink()
    (mine / "moved").rmdir()


def shell(command: str) -> str:
    return prompt_of([("Bash", {"command": command, "description": "d"})])


def test_bash_without_a_sandbox_reaches_all_that_the_server_s_user_does(
    estate: Estate, ben: Ben
) -> None:
    # Not what anybody wants, but what the documentation says.
    with estate.owner("ada") as client, client.session(allowed_tools=["Bash"]) as path:
        for file in ben.files:
            ((_, _, said),) = outcomes(client, path, shell(f"cat {file}"))
            assert SECRET in said


@pytest.fixture(scope="module")
def sandboxed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    if any(shutil.which(name) is None for name in sandbox.NEEDED):
        pytest.skip("SANDBOX NOT TESTED: bubblewrap or socat is not installed")
    yield from estate_in(tmp_path_factory.mktemp("sandboxed"), sandboxed=True)


@pytest.mark.parametrize("mode", ["default", "bypassPermissions"])
def test_bash_in_the_sandbox_neither_reads_the_server_s_files_nor_changes_another_s(
    sandboxed: Estate, mode: PermissionMode
) -> None:
    for ben in ben_in(sandboxed):
        before = ben.contents()
        private, chosen, *others = ben.files
        with (
            sandboxed.owner("ada") as client,
            client.session(
                allowed_tools=[*TOOLS, "Bash"], permission_mode=mode, cwd="project"
            ) as path,
        ):
            client.ask(path, "[[say Hello.]]")
            cwd = sandboxed.cwd(path)
            commands = ["echo works"]
            for file in (private, *others):
                commands += [
                    f"ln -sf {file} soft; ln {file} hard",
                    f"cat {file} soft hard /proc/self/root{file} {cwd}/../../../{file}",
                    f"ls {file.parent}",
                ]
            for pid in (os.getpid(), sandboxed.pid(ben.private), sandboxed.pid(ben.chosen)):
                commands.append(f"cat /proc/{pid}/cwd/notes /proc/{pid}/root{private}")
                commands.append(f"cat /proc/{pid}/environ | tr '\\0' ' '")
            for file in (*ben.files, private.parent / "new", chosen.parent / "new"):
                commands.append(f"echo nougat >> {file}; rm -f {file}; touch {file}")
            ((_, _, said),) = outcomes(client, path, shell(f"({'; '.join(commands)}) 2>/dev/null"))
            assert "works" in said
            assert SECRET not in said
            assert "ANTHROPIC_API_KEY" not in said
            nothing_came_of_it(outcomes(client, path, prompt_of([("Read", {"file_path": "soft"})])))
            # It is no wall around reading: what is not hidden can be read.
            ((_, _, said),) = outcomes(client, path, shell(f"(cat {chosen}; rm -f soft hard)"))
            assert SECRET in said
        assert ben.contents() == before
        for file in ben.files:
            (file.parent / f"{SECRET}.ipynb").unlink(missing_ok=True)


def test_bash_in_the_sandbox_does_not_see_what_another_s_prints(sandboxed: Estate) -> None:
    with (
        sandboxed.owner("ben") as his,
        his.session(allowed_tools=["Bash"]) as running,
        sandboxed.owner("ada") as client,
        client.session(allowed_tools=[*TOOLS, "Bash"]) as path,
        his.open(running, shell(f"echo {SECRET} of a command; sleep 60")) as events,
    ):
        next(event for event in events if event.type == "tool_use")
        folder = Path(scratch_of(sandboxed.pid(running))).parent
        while not any(SECRET in file.read_text() for file in below(folder, "*.output")):
            time.sleep(0.05)
        ((_, _, said),) = outcomes(
            client, path, shell(f"echo works; cd {folder}; ls -d */; cat */*/*/*/tasks/*.output")
        )
        assert "works" in said
        assert SECRET not in said
        # Its own is there, and no other.
        own = Path(scratch_of(sandboxed.pid(path))).name
        assert [one for one in os.listdir(folder) if one in said] == [own]
        found = outcomes(
            client, path, prompt_of([("Glob", {"pattern": "**", "path": str(folder)})])
        )
        nothing_came_of_it(found)
        his.post(f"{running}/interrupt")


def scratch_of(pid: int) -> str:
    """Where a process keeps what its commands print."""
    variables = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    (given,) = (one for one in variables if one.startswith(b"CLAUDE_CODE_TMPDIR="))
    return given.partition(b"=")[2].decode()
