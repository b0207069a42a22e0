"""The command: what it takes, what it refuses, and a server's life from banner to exit."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from bench.ports import unused_port

from session_http import keyfile, version
from session_http.cli import main
from session_http.sources import load

ROOT = Path(__file__).parents[2]
END_S = 60.0
"""Seconds that a server has to end its sessions' processes."""

NO_CREDENTIAL = {"CLAUDE_CONFIG_DIR": "nowhere"}


@contextmanager
def running(
    tmp_path: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
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
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        # Not killed: a Claude Code process that is just starting would take its time to notice.
        process.terminate()
        try:
            process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
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


def ends(process: subprocess.Popen[str], *, within_s: float = 60.0) -> tuple[int, str]:
    printed, _ = process.communicate(timeout=within_s)
    return process.returncode, printed


def says(process: subprocess.Popen[str], text: str) -> str:
    """Wait for a line with a text in it, and return it."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"it ended without saying {text!r}")


def status_of(arguments: tuple[str, ...]) -> int | str | None:
    try:
        return main(arguments)
    except SystemExit as ended:  # how argparse does it
        return ended.code


def test_the_offline_server_says_so_and_ends_with_sigterm(tmp_path: Path) -> None:
    with running(tmp_path, "serve", "--offline", "--port", "0") as process:
        address, printed = listens(process)
        assert "OFFLINE MODEL" in printed
        assert address.startswith("http://localhost:")
        for host in ("localhost", "127.0.0.1"):
            health = httpx.get(f"{address.replace('localhost', host)}/health", timeout=60).json()
            assert health["offline"] is True
            assert health["authenticated"] is True
        foreign = httpx.get(f"{address}/health", headers={"Host": "evil.example"}, timeout=60)
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
        health = httpx.get(f"{address}/health", timeout=60).json()
        assert (health["authenticated"], health["offline"]) == (False, False)
        refused = httpx.post(f"{address}/query", json={"prompt": "hi"}, timeout=60)
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
        assert httpx.get(f"{address}/health", timeout=60).json()["authenticated"] is True
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
        with httpx.Client(base_url=address, timeout=60) as client:
            session = client.post("/session/start", json={}).json()["session_id"]
            assert client.get(f"/session/{session}").json()["model"] == "opus"
            renamed = client.post("/query", json={"prompt": "hi", "model": "fast"})
            assert (renamed.status_code, renamed.json()["code"]) == (502, "model_not_found")
            bypass = {"prompt": "hi", "permission_mode": "bypassPermissions"}
            assert client.post("/query", json=bypass).status_code == 403


def test_the_port_comes_from_the_environment_unless_it_is_given(tmp_path: Path) -> None:
    port = unused_port()
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
            f"http://127.0.0.1:{port}/health", headers={"Host": "any.name"}, timeout=60
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
    assert status_of(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert arguments[-1].partition("=")[0] in said


def test_a_port_variable_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "many")
    assert status_of(("serve", "--offline")) == 2
    assert (
        capsys.readouterr().err == "session-supervisor: PORT: 'many' is not a port, 0 to 65535.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--max-liv", "3"), "no option --max-liv; did you mean --max-live?"),
        (("check", "--max-liv=secret"), "no option --max-liv; did you mean --max-live?"),
        (("keys", "new", "--owner", "a", "--kes", "x"), "no option --kes; did you mean --keys?"),
    ],
)
def test_an_option_that_nobody_knows_is_told_from_its_neighbour(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "secret" not in err


def test_all_that_is_wrong_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.toml").write_text("max_queued = true")
    monkeypatch.setenv("SESSION_SUPERVISOR_MAX_SESSIONS", "many")
    assert status_of(("serve", "--port", "x", "--config", str(tmp_path / "a.toml"))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(":")[1].strip() for line in lines) == [
        "--port",
        "SESSION_SUPERVISOR_MAX_SESSIONS",
        f"max_queued in {tmp_path / 'a.toml'}",
    ]


# Keys


def test_a_key_is_printed_once_and_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.toml"
    assert main(("keys", "new", "--owner", "ann", "--max-turns", "2", "--keys", str(file))) == 0
    first = capsys.readouterr()
    monkeypatch.setenv("SESSION_SUPERVISOR_KEYS", str(file))
    assert main(("keys", "new", "--owner", "bob", "--role", "admin", "--role", "user")) == 0
    second = capsys.readouterr()
    keys = {key.owner: key for key in keyfile.load(file)}
    assert first.out.count("\n") == second.out.count("\n") == 1
    for owner, printed in (("ann", first), ("bob", second)):
        token = printed.out.strip()
        assert keyfile.id_of(token) == keys[owner].id
        assert token not in printed.err + file.read_text()
    assert keys["ann"].max_turns == 2
    assert keys["ann"].roles == ("user",)
    assert set(keys["bob"].roles) == {"admin", "user"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--owner", "ann"), 2),  # into which file?
        (("--owner", "Ann Smith", "--keys", "keys.toml"), 2),
        (("--owner", "ann", "--keys", "nowhere/keys.toml"), 1),
        (("--owner", "ann", "--max-turns", "x", "--keys", "keys.toml"), 2),
    ],
)
def test_a_key_that_cannot_be_made_is_not_printed(
    arguments: tuple[str, ...],
    expected: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of(("keys", "new", *arguments)) == expected
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err
    assert not (tmp_path / "keys.toml").exists()


def test_a_first_start_makes_a_key_and_says_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "state" / "keys.toml"
    given = ("serve", "--offline", "--port", "0", "--host", "0.0.0.0")
    with running(tmp_path, *given, "--keys", str(file), "--make-key") as process:
        address, _ = listens(process)
        (key,) = (tmp_path / "state").glob("first-key")
        assert process.stdout is not None
        printed = "".join(process.stdout.readline() for _ in range(2))
        assert str(key) in printed
        token = key.read_text().strip()
        assert token not in printed
        port = address.rpartition(":")[2]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert client.get("/sessions").status_code == 401
            headers = {"Authorization": f"Bearer {token}"}
            assert client.get("/sessions", headers=headers).status_code == 200
        process.terminate()
        status, printed = ends(process)
    assert status == 0
    assert token not in printed


def test_a_hangup_has_the_keys_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    given = ("serve", "--offline", "--port", "0", "--keys", str(file), "--make-key")
    with running(tmp_path, *given) as process:
        address, _ = listens(process)
        token = (tmp_path / "first-key").read_text().strip()
        good = file.read_text()

        def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.get(f"{address}/sessions", headers=headers, timeout=60).status_code

        made = keyfile.new_key("ann")
        assert (status(token), status(made.token)) == (200, 401)
        file.write_text(f"{good}\n{keyfile.render(made.key)}")
        process.send_signal(signal.SIGHUP)
        says(process, "there are 2")
        assert (status(token), status(made.token)) == (200, 200)
        file.write_text("[[keys]]\nowner = 3\n")
        process.send_signal(signal.SIGHUP)
        assert "go on to hold" in says(process, "SIGHUP")
        assert (status(token), status(made.token)) == (200, 200)
        file.write_text(keyfile.render(made.key))
        process.send_signal(signal.SIGHUP)
        says(process, "there are 1")
        assert (status(token), status(made.token)) == (401, 200)
        process.terminate()
        assert ends(process)[0] == 0


def test_a_hangup_stops_it_only_where_its_terminal_is_gone(tmp_path: Path) -> None:
    shown, terminal = os.openpty()
    with running(tmp_path, "serve", "--offline", "--port", "0", stdin=terminal) as process:
        os.close(terminal)
        listens(process)
        process.send_signal(signal.SIGHUP)
        assert "neither keys nor a certificate" in says(process, "SIGHUP")
        os.close(shown)
        process.send_signal(signal.SIGHUP)
        status, printed = ends(process)
    assert status == 0
    assert "Traceback" not in printed


def test_a_hangup_has_the_certificate_read_anew(tmp_path: Path) -> None:
    authority = trustme.CA()
    trusting = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def issue(name: str) -> None:
        issued = authority.issue_cert("localhost", common_name=name)
        cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())

    def shown(address: str) -> str:
        port = int(address.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as encrypted,
        ):
            return str(dict(encrypted.getpeercert() or {})["subject"])

    issue("first")
    given = ("--tls-cert", str(cert), "--tls-key", str(key))
    with running(tmp_path, "serve", "--offline", "--port", "0", *given) as process:
        address, _ = listens(process)
        assert address.startswith("https://localhost:")
        assert "first" in shown(address)
        issue("second")
        process.send_signal(signal.SIGHUP)
        says(process, "certificate was read anew")
        assert "second" in shown(address)
        key.write_text("none")
        process.send_signal(signal.SIGHUP)
        says(process, "is used on")
        assert "second" in shown(address)
        process.terminate()
        assert ends(process)[0] == 0


def test_a_certificate_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    given = ("serve", "--offline", "--port", "0", "--tls-cert", "c.pem", "--tls-key", "k.pem")
    with running(tmp_path, *given) as process:
        status, printed = ends(process)
    assert status == 1
    assert "c.pem cannot be read" in printed
    assert "Traceback" not in printed


def test_a_key_file_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    with running(tmp_path, "serve", "--offline", "--port", "0", "--keys", "nowhere") as process:
        status, printed = ends(process)
    assert status == 1
    assert "nowhere" in printed
    assert "keys new" in printed
    assert "Traceback" not in printed


def test_with_keys_each_owner_has_a_directory_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    ann, bob = keyfile.new_key("ann"), keyfile.new_key("bob")
    for made in (ann, bob):
        keyfile.append(file, made.key)
    environment = {
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }
    state = tmp_path / "state"
    given = ("serve", "--port", "0", "--keys", str(file), "--state-dir", str(state))
    with running(tmp_path, *given, env=environment) as process:
        address, _ = listens(process)
        for path in ("/health", "/ready"):
            assert httpx.get(f"{address}{path}", timeout=60).status_code == 200
        for made in (ann, bob):
            asked = httpx.post(
                f"{address}/session/start",
                json={},
                headers={"X-API-Key": made.token},
                timeout=60,
            )
            assert asked.status_code == 200, asked.text
        process.terminate()
        assert ends(process)[0] == 0
    assert sorted(os.listdir(state / "owners")) == ["ann", "bob"]
    for owner in ("ann", "bob"):
        directory = state / "owners" / owner / "claude"
        assert directory.is_dir()
        for one in (directory, directory.parent, directory.parent.parent, state):
            assert one.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / ".claude").exists()


def test_with_keys_a_credential_is_looked_for_without_making_directories(tmp_path: Path) -> None:
    file, state = tmp_path / "keys.toml", tmp_path / "state"
    ann = keyfile.new_key("ann")
    keyfile.append(file, ann.key)
    given = ("serve", "--port", "0", "--keys", str(file), "--state-dir", str(state))
    with running(tmp_path, *given) as process:
        address, _ = listens(process)
        assert httpx.get(f"{address}/health", timeout=60).json()["authenticated"] is False
        refused = httpx.post(
            f"{address}/query", json={"prompt": "x"}, headers={"X-API-Key": ann.token}, timeout=60
        )
        assert (refused.status_code, refused.json()["code"]) == (503, "not_authenticated")
        assert "for this owner" in refused.json()["detail"]
        assert str(tmp_path) not in refused.json()["detail"]
        process.terminate()
        assert ends(process)[0] == 0
    assert not (state / "owners").exists()


# Settings


def test_the_settings_are_printed_with_where_they_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.toml"
    file.write_text('max_live = 7\nmodel_aliases = { "a.b" = "c\\"d" }\nworkspace = "w"\n')
    monkeypatch.setenv("SESSION_SUPERVISOR_API_KEYS", "CANARY")
    monkeypatch.setenv("SESSION_SUPERVISOR_TURN_TIMEOUT", "none")
    given = ("--config", str(file), "--trusted-host", "a.example", "--no-http2")
    assert main(("config", *given)) == 0
    printed = capsys.readouterr().out
    assert "CANARY" not in printed
    assert f"max_live = 7  # max_live in {file}\n" in printed
    assert 'trusted_hosts = ["a.example"]  # --trusted-host\n' in printed
    assert 'turn_timeout = "none"  # SESSION_SUPERVISOR_TURN_TIMEOUT\n' in printed
    again = tmp_path / "elsewhere" / "b.toml"
    again.parent.mkdir()
    again.write_text(printed)
    before = load({"trusted_hosts": ["a.example"], "http2": False}, config=file)
    assert load({}, config=again).settings == before.settings


def test_a_server_takes_its_settings_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "a.toml").write_text('offline = true\nport = 0\nworkspace = "work"\n')
    with running(tmp_path, "serve", "--config", "conf/a.toml") as process:
        address, _ = listens(process)
        assert httpx.get(f"{address}/health", timeout=60).json()["offline"] is True
        assert (tmp_path / "conf" / "work").is_dir()
        process.terminate()
        assert ends(process)[0] == 0


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(("--version",))
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == version()


def test_without_a_command_it_tells_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(()) == 2
    assert "serve" in capsys.readouterr().out


@pytest.mark.parametrize("command", [("serve",), ("check",), ("config",), ("keys", "new")])
def test_help_fits_a_terminal(
    command: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert status_of((*command, "--help")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  --keys FILE") for line in lines)


def test_help_loads_nothing_that_takes_long() -> None:
    """It imports neither the SDK nor the server, which take a second."""
    code = (
        "import sys; from session_http.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    path = f"{ROOT / 'http'}:{ROOT / 'supervisor'}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "--offline" in done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"hypercorn", "starlette", "claude_agent_sdk", "uvloop", "structlog"}
