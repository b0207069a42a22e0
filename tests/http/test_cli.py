"""The command: what it takes, what it refuses, and a server's life from banner to exit."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from session_http import version
from session_http.cli import main

ROOT = Path(__file__).parents[2]
NO_CREDENTIAL = {"CLAUDE_CONFIG_DIR": "nowhere"}


@contextmanager
def running(
    tmp_path: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> Generator[subprocess.Popen[str]]:
    """Run the command in an environment of its own; whatever happens, it does not stay."""
    clean = {name: value for name, value in os.environ.items() if "SUPERVISOR" in name}
    process = subprocess.Popen(
        [sys.executable, "-m", "session_http", *arguments],
        cwd=tmp_path,
        env={
            **clean,
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "PYTHONPATH": f"{ROOT / 'http'}:{ROOT / 'supervisor'}",
            **(env or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def listens(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for the banner; return the server's address and all that was printed until then."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if found := re.search(r"Listening on (\S+)", line):
            return found.group(1), printed
    raise AssertionError(f"it ended: {printed}")


def ends(process: subprocess.Popen[str], *, within_s: float = 10.0) -> tuple[int, str]:
    printed, _ = process.communicate(timeout=within_s)
    return process.returncode, printed


def test_the_offline_server_says_so_and_ends_with_sigterm(tmp_path: Path) -> None:
    with running(tmp_path, "serve", "--offline", "--port", "0") as process:
        address, printed = listens(process)
        assert "OFFLINE MODEL" in printed
        assert address.startswith("http://localhost:")
        for host in ("localhost", "127.0.0.1"):
            health = httpx.get(f"{address.replace('localhost', host)}/health", timeout=20).json()
            assert health["offline"] is True
            assert health["authenticated"] is True
        foreign = httpx.get(f"{address}/health", headers={"Host": "evil.example"}, timeout=20)
        assert foreign.status_code == 403
        process.send_signal(signal.SIGTERM)
        status, _ = ends(process)
        assert status == 0
    assert not list(tmp_path.rglob("session-supervisor*"))


def test_a_ctrl_c_ends_it_too(tmp_path: Path) -> None:
    with running(tmp_path, "serve", "--offline", "--port", "0") as process:
        listens(process)
        process.send_signal(signal.SIGINT)
        status, printed = ends(process)
        assert (status, "Traceback" in printed) == (0, False)


def test_without_a_credential_it_serves_and_refuses_work(tmp_path: Path) -> None:
    with running(tmp_path, "serve", "--port", "0", env=NO_CREDENTIAL) as process:
        address, printed = listens(process)
        assert "OFFLINE" not in printed
        health = httpx.get(f"{address}/health", timeout=30).json()
        assert (health["authenticated"], health["offline"]) == (False, False)
        refused = httpx.post(f"{address}/query", json={"prompt": "hi"}, timeout=20)
        assert refused.status_code == 503
        assert refused.json()["code"] == "not_authenticated"
        assert "claude auth login" in refused.json()["detail"]
        assert "--offline" in refused.json()["detail"]
        process.send_signal(signal.SIGTERM)
        status, printed = ends(process)
        assert status == 0
        assert "no Claude credential" in printed


def test_the_start_says_which_credential_it_found_and_never_what_it_is(tmp_path: Path) -> None:
    secret = "sk-ant-nobody-may-see-this"  # not one, of course
    with running(tmp_path, "serve", "--port", "0", env={"ANTHROPIC_API_KEY": secret}) as process:
        address, printed = listens(process)
        assert process.stdout is not None
        for line in process.stdout:
            printed += line
            if "credential" in line:
                break
        assert httpx.get(f"{address}/health", timeout=30).json()["authenticated"] is True
        process.terminate()
        printed += ends(process)[1]
    assert "Claude credential: ANTHROPIC_API_KEY" in printed
    assert secret not in printed


def test_the_operator_decides_on_models_and_modes(tmp_path: Path) -> None:
    given = (
        "--model",
        "opus",
        "--model-alias",
        "fast=no-such-model",
        "--extra-tool",
        "NotebookEdit",
    )
    with running(tmp_path, "serve", "--offline", "--port", "0", *given) as process:
        address, _ = listens(process)
        with httpx.Client(base_url=address, timeout=30) as client:
            session = client.post("/session/start", json={}).json()["session_id"]
            assert client.get(f"/session/{session}").json()["model"] == "opus"
            renamed = client.post("/query", json={"prompt": "hi", "model": "fast"})
            assert (renamed.status_code, renamed.json()["code"]) == (502, "model_not_found")
            bypass = {"prompt": "hi", "permission_mode": "bypassPermissions"}
            assert client.post("/query", json=bypass).status_code == 403


def test_the_port_comes_from_the_environment_unless_it_is_given(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with running(tmp_path, "serve", "--offline", env={"PORT": str(port)}) as process:
        assert listens(process)[0] == f"http://localhost:{port}"


def test_a_port_in_use_is_said_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running(tmp_path, "serve", "--offline", "--port", port) as process:
            status, printed = ends(process)
    assert status == 1
    assert f"Port {port} of 127.0.0.1 is in use" in printed
    assert "Traceback" not in printed


def test_a_workspace_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    given = ("serve", "--offline", "--port", "0", "--workspace", str(tmp_path / "file"))
    with running(tmp_path, *given) as process:
        status, printed = ends(process)
    assert status == 1
    assert "--workspace" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_does_not_listen_beyond_this_machine_unasked(tmp_path: Path, host: str) -> None:
    with running(tmp_path, "serve", "--offline", "--host", host, "--port", "0") as process:
        status, printed = ends(process)
    assert status == 1
    assert "--no-auth" in printed


def test_told_so_it_listens_beyond_this_machine(tmp_path: Path) -> None:
    arguments = ("serve", "--offline", "--no-auth", "--host", "0.0.0.0", "--port", "0")
    with running(tmp_path, *arguments) as process:
        address, _ = listens(process)
        port = address.rpartition(":")[2]
        named = httpx.get(
            f"http://127.0.0.1:{port}/health", headers={"Host": "any.name"}, timeout=20
        )
        assert named.status_code == 200


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--port", "x"),
        ("serve", "--port", "70000"),
        ("serve", "--trusted-host", ""),
        ("serve", "--trusted-host", "https://a.example"),
        ("serve", "--trusted-host", "a.example:80"),
        ("serve", "--trusted-host", "*"),
        ("serve", "--model-alias", "x"),
        ("serve", "--model-alias", "=x"),
        ("serve", "--max-live", "0"),
        ("serve", "--turn-timeout", "0"),
        ("serve", "--idle-timeout", "-1"),
        ("serve", "--drain-timeout", "inf"),
        ("serve", "--drain-timeout", "nan"),
        ("sing",),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_port_variable_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "many")
    with pytest.raises(SystemExit):
        main(("serve", "--offline"))
    assert "PORT" in capsys.readouterr().err


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(("--version",))
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == version()


def test_without_a_command_it_tells_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(()) == 2
    assert "serve" in capsys.readouterr().out


def test_help_is_there_at_once() -> None:
    """It imports neither the SDK nor the server, which take a second."""
    code = (
        "import sys; from session_http.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    path = f"{ROOT / 'http'}:{ROOT / 'supervisor'}"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert time.monotonic() - began < 5
    assert "--offline" in done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"hypercorn", "starlette", "pydantic", "claude_agent_sdk", "uvloop"}
