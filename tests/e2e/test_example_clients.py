"""The examples, as a stranger runs them: programs of their own, against a server of its own.

The clients are tests of a server, so they must also be able to fail. A small server that follows
the reference, and knows nothing of ours, passes both of them; with any one thing wrong it does not.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.offline import offline_model

pytestmark = [pytest.mark.e2e]

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
README = ROOT / "README.md"
PYTHON_CLIENT = (sys.executable, str(EXAMPLES / "client" / "test_server.py"), "--base-url")
SHELL_CLIENT = ("bash", str(EXAMPLES / "client" / "test_server.sh"))
CLIENTS = (PYTHON_CLIENT, SHELL_CLIENT)
TAG = "EXAMPLE_CLIENTS_TEST"

missing = [name for name in ("bash", "curl", "jq") if shutil.which(name) is None]
needs_curl = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
EITHER_CLIENT = [
    pytest.param(PYTHON_CLIENT, id="python"),
    pytest.param(SHELL_CLIENT, id="shell", marks=needs_curl),
]


def clean_environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a program gets: nothing of this machine's but where programs are."""
    roots = os.pathsep.join([str(ROOT / "supervisor"), str(ROOT / "http")])
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "SESSION_SUPERVISOR_TEST_RUN") or name.startswith("COVERAGE")
    }
    home.mkdir(exist_ok=True)
    return {**kept, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": roots, **(more or {})}


def run(
    command: Sequence[str], home: Path, env: Mapping[str, str] | None = None, timeout_s: float = 200
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=home.parent,
        env=clean_environment(home, env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextmanager
def serving(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Generator[str]:
    """Run the server; yields its address, and checks that it ends as it should."""
    tag = f"{TAG}={uuid.uuid4()}"
    name, _, value = tag.partition("=")
    said, logged = folder / "stdout", folder / "stderr"
    with said.open("w") as stdout, logged.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-m", "session_http", "serve", "--port", "0", *arguments],
            cwd=folder,
            env=clean_environment(folder / "home", {**(env or {}), name: value}),
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield address_in(said, server)
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 0, logged.read_text()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    deadline = time.monotonic() + 60
    while (left := processes_with(tag)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"the server leaves processes behind: {left}"
    assert "Traceback" not in logged.read_text()


def address_in(said: Path, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        found = re.search(r"Listening on (http://\S+)", said.read_text())
        if found is not None:
            return found[1]
        time.sleep(0.02)
    raise AssertionError(f"the server did not start: {said.with_name('stderr').read_text()}")


def processes_with(tag: str) -> list[int]:
    """Everything that the server has started, however far it ran, has its environment."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone in the meantime, or another user's
            if tag.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


# -- against the server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offline_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    # What stands ready in a pool would outlive the test that it was started in.
    with serving(tmp_path_factory.mktemp("offline"), "--offline", "--no-pool") as url:
        yield url


@pytest.mark.parametrize("client", EITHER_CLIENT)
def test_a_client_finds_the_offline_server_as_documented(
    client: Sequence[str], offline_server: str, tmp_path: Path
) -> None:
    done = run([*client, offline_server], tmp_path / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.search(r"\nAll (\d+ )?checks passed", done.stdout)


def test_the_client_finds_a_server_with_a_credential_as_documented(tmp_path: Path) -> None:
    # The credential is for the offline model, but neither server nor client know of that.
    with offline_model() as env, serving(tmp_path, env=env) as url:
        done = run([*PYTHON_CLIENT, url], tmp_path / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a Claude account answers" in done.stdout


@pytest.mark.parametrize("client", EITHER_CLIENT)
def test_a_client_says_so_where_nothing_answers(client: Sequence[str], tmp_path: Path) -> None:
    done = run([*client, "http://127.0.0.1:9"], tmp_path / "home")
    assert done.returncode != 0
    assert "FAILED" in done.stdout + done.stderr


@needs_curl
def test_the_clients_say_so_where_there_is_no_credential(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        for client in CLIENTS:
            done = run([*client, url], tmp_path / "home")
            assert done.returncode == 1, done.stdout + done.stderr
            assert "docs/authentication.md" in done.stdout


@needs_curl
def test_the_tour_in_the_readme_is_what_one_sees(offline_server: str, tmp_path: Path) -> None:
    steps = tour(README.read_text())
    assert len(steps) > 5
    edge = "a step of the tour ends here"
    commands = [command.replace("http://localhost:3000", offline_server) for command, _ in steps]
    script = "\n".join(f"{command}\necho; echo {shlex.quote(edge)}" for command in commands)
    done = run(["bash", "-euo", "pipefail", "-c", script], tmp_path / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    seen = done.stdout.split(edge)
    for (command, documented), got in zip(steps, seen, strict=False):
        pattern = ".*".join(map(re.escape, masked(documented).split("...")))
        assert re.fullmatch(pattern, masked(got), re.DOTALL), f"$ {command}\n{got}"


def tour(page: str) -> list[tuple[str, str]]:
    """The commands of a page's `console` blocks, each with what is printed below it.

    In what is printed, three dots stand for anything.
    """
    steps: list[tuple[str, str]] = []
    for found in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        parts = re.split(r"^\$ ", found, flags=re.MULTILINE)[1:]
        for part in parts:
            command = re.match(r"(?:.*\\\n)*.*\n", part)
            assert command is not None
            steps.append((command[0].strip(), part[command.end() :]))
    return steps


def masked(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r'("(?:duration_ms|total_cost_usd)": )[\d.e-]+', r"\1NUMBER", text)
    text = re.sub(r'("version": )"[^"]*"', r"\1VERSION", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def test_the_embedding_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "embedding.py")]
    with offline_model() as env:
        done = run(command, tmp_path / "home", env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "body=Done(outcome=<Outcome.COMPLETED" in done.stdout
    assert '\nYou said: "What is Docker?"\n' in done.stdout


# -- against wrong servers ------------------------------------------------------------------------

TYPES = {
    "prompt": str,
    "initial_prompt": str,
    "model": str,
    "allowed_tools": list,
    "permission_mode": str,
    "stream": bool,
}
MODES = ("default", "acceptEdits", "plan", "bypassPermissions")


class Reference(ThreadingHTTPServer):
    """A server that follows the reference as a stranger reads it, but for one defect."""

    daemon_threads = False

    def __init__(self, defect: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.defect = defect
        self.sessions: dict[str, list[str]] = {}
        self.interrupted = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Reference  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = 20

    disable_nagle_algorithm = True  # head and body are written one by one

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass

    def has(self, defect: str) -> bool:
        return self.server.defect == defect

    # -- requests ---------------------------------------------------------------------------

    def do_GET(self) -> None:
        sessions = self.server.sessions
        match self.path.split("/")[1:]:
            case ["health"]:
                self.answer(
                    status="sick" if self.has("ill") else "healthy",
                    authenticated=True,
                    active_sessions=0 if self.has("sessions uncounted") else len(sessions),
                    timestamp="2025-10-14T10:30:00",
                )
            case [""]:
                self.answer(name="Reference", version="1.0.0", endpoints=PATHS)
            case ["docs" | "redoc"]:
                self.send(200, b"<html></html>", "text/html")
            case ["openapi.json"]:
                described = PATHS[:-1] if self.has("path not described") else PATHS
                methods = {"get": "...", "post": "...", "delete": "..."}
                self.answer(openapi="3.1.0", paths=dict.fromkeys(described, methods))
            case ["sessions"]:
                listed = [] if self.has("sessions unlisted") else list(sessions)
                self.answer(active_sessions=listed, count=len(listed))
            case ["session", one] if one in sessions:
                model = {} if self.has("model missing") else {"model": "claude-3-opus-20240229"}
                self.answer(session_id=one, created_at="2025-10-14T10:30:00", active=True, **model)
            case _:
                self.refuse(404, "Not found")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        sessions = self.server.sessions
        match self.path.split("/")[1:]:
            case ["query"]:
                body = self.body(raw, required="prompt")
                if body is not None:
                    self.reply(body, [body["prompt"]])
            case ["session", "start"]:
                body = self.body(raw, required=None)
                if body is not None:
                    self.start(body)
            case ["session", one, "query"] if one in sessions:
                body = self.body(raw, required="prompt")
                if body is not None:
                    sessions[one].append(body["prompt"])
                    known = [body["prompt"]] if self.has("no memory") else sessions[one]
                    self.reply(body, known, session_id=one)
            case ["session", one, "interrupt"] if one in sessions:
                self.server.interrupted.set()
                status = "stopped" if self.has("interrupt misnamed") else "interrupted"
                self.answer(status=status, session_id=one)
            case _:
                self.refuse(404, "Not found")

    def do_DELETE(self) -> None:
        one = self.path.rpartition("/")[2]
        if one not in self.server.sessions:
            self.refuse(404, "Not found")
            return
        if not self.has("close without effect"):
            del self.server.sessions[one]
        self.answer(status="closed", session_id=one)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.refuse(404 if self.has("wrong method unknown") else 405, "Method not allowed")

    def body(self, raw: bytes, *, required: str | None) -> dict[str, Any] | None:
        """What was sent; None if it was refused."""
        try:
            body: dict[str, Any] = json.loads(raw or b"{}")
        except ValueError:
            self.refuse(400, "not JSON")
            return None
        wrong = {name for name, value in body.items() if type(value) is not TYPES.get(name)}
        wrong |= {name for name in ("prompt", required) if name and body.get(name, "-") == ""}
        if required is not None and required not in body:
            wrong.add(required)
        if body.get("permission_mode", "default") not in MODES:
            wrong.add("permission_mode")
        if "NoSuchTool" in body.get("allowed_tools", ()) and not self.has("any tool taken"):
            wrong.add("allowed_tools")
        if wrong:
            self.refuse(422 if self.has("422 for 400") else 400, f"cannot use {sorted(wrong)}")
            return None
        return body

    def start(self, body: dict[str, Any]) -> None:
        one = "no-uuid" if self.has("id no uuid") else str(uuid.uuid4())
        asked = [body["initial_prompt"]] if "initial_prompt" in body else []
        self.server.sessions[one] = list(asked)
        if self.has("memory shared") and not asked:
            self.server.sessions[one] = [
                told for other in self.server.sessions.values() for told in other
            ]
        created = {} if self.has("creation untold") else {"created_at": "2025-10-14T10:30:00"}
        response = words(asked) if asked else None
        self.answer(session_id=one, status="started", initial_response=response, **created)

    # -- answers ----------------------------------------------------------------------------

    def reply(self, body: dict[str, Any], prompts: Sequence[str], **more: Any) -> None:
        if body.get("stream"):
            self.stream(prompts)
            return
        duration: Any = "fast" if self.has("duration no number") else 0
        self.answer(
            response="" if self.has("response empty") else words(prompts),
            duration_ms=duration,
            num_turns=1,
            total_cost_usd=0.001234,
            **more,
        )

    def stream(self, prompts: Sequence[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.server.interrupted.clear()
        endless = "1 to 1000" in prompts[-1]
        for number, word in enumerate(re.findall(r"\s*\S+", words(prompts))):
            if not self.has("stream without text"):
                self.event({"type": "text", "content": word})
            if endless and number == 0:
                self.server.interrupted.wait(5)
        if self.has("stream with an error"):
            self.event({"type": "error", "message": "?"})
        done = {"response": "else"} if self.has("response not the text") else {}
        if not self.has("stream without done"):
            self.event({"type": "done", **done})
        if self.has("stream with two ends"):
            self.event({"type": "done", **done})
        self.wfile.write(b"0\r\n\r\n")

    def event(self, event: dict[str, Any]) -> None:
        name = f"event: {event['type']}\n" if self.has("stream with named events") else ""
        data = f"{name}data: {json.dumps(event)}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def answer(self, **body: Any) -> None:
        self.send(200, json.dumps(body).encode(), "application/json")

    def refuse(self, status: int, detail: str) -> None:
        if self.has("errors as pages"):
            self.send(status, b"<h1>Error</h1>", "text/html")
            return
        named = {"error" if self.has("detail misnamed") else "detail": detail}
        status = 200 if self.has("errors as 200") else status
        self.send(status, json.dumps(named).encode(), "application/json")

    def send(self, status: int, content: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


PATHS = [
    "/health",
    "/",
    "/query",
    "/session/start",
    "/session/{session_id}/query",
    "/session/{session_id}/interrupt",
    "/session/{session_id}",
    "/sessions",
]


def words(prompts: Sequence[str]) -> str:
    return " ".join(f"You said: {prompt}" for prompt in prompts)


@contextmanager
def reference(defect: str = "") -> Generator[str]:
    with Reference(defect) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("client", EITHER_CLIENT)
def test_a_client_accepts_any_server_that_follows_the_reference(
    client: Sequence[str], tmp_path: Path
) -> None:
    with reference() as url:
        done = run([*client, url], tmp_path / "home")
    assert done.returncode == 0, done.stdout + done.stderr


PYTHON_SEES = (
    "ill",
    "path not described",
    "response empty",
    "duration no number",
    "stream without text",
    "stream without done",
    "stream with two ends",
    "stream with an error",
    "stream with named events",
    "response not the text",
    "id no uuid",
    "creation untold",
    "no memory",
    "memory shared",
    "sessions unlisted",
    "sessions uncounted",
    "model missing",
    "interrupt misnamed",
    "close without effect",
    "errors as 200",
    "errors as pages",
    "detail misnamed",
    "wrong method unknown",
    "any tool taken",
    "422 for 400",
)
SHELL_SEES = (
    "ill",
    "path not described",
    "duration no number",
    "stream without done",
    "stream with named events",
    "no memory",
    "sessions unlisted",
    "interrupt misnamed",
    "close without effect",
    "errors as pages",
    "422 for 400",
)


@pytest.mark.parametrize("defect", PYTHON_SEES)
def test_the_python_client_fails_where_anything_is_wrong(defect: str, tmp_path: Path) -> None:
    with reference(defect) as url:
        done = run([*PYTHON_CLIENT, url], tmp_path / "home")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "MISMATCH" in done.stdout
    assert "expected: " in done.stdout
    assert "got: " in done.stdout


@needs_curl
@pytest.mark.parametrize("defect", SHELL_SEES)
def test_the_shell_client_fails_where_anything_is_wrong(defect: str, tmp_path: Path) -> None:
    with reference(defect) as url:
        done = run([*SHELL_CLIENT, url], tmp_path / "home")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "MISMATCH" in done.stdout
