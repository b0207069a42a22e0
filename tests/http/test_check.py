"""`check`: what it finds, what it says to do about it, and that it leaves nothing behind."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from bench.ports import unused_port

from session_http import check, keyfile
from session_http.cli import main
from session_http.findings import Finding, failed, table
from session_http.sources import Configuration, load
from tests.http.test_cli import NO_CREDENTIAL, ends, running


def configuration(**options: object) -> Configuration:
    return load(options)


def found(*findings: Finding) -> dict[str, Finding]:
    return {one.name: one for one in findings}


# The command, which really starts Claude Code


@pytest.mark.e2e
def test_it_starts_claude_code_and_says_all_is_well(tmp_path: Path) -> None:
    with running(tmp_path, "check", "--offline", "--port", "0", "--json") as process:
        status, printed = ends(process, within_s=60)
    report = json.loads(printed)
    names: dict[str, Any] = {one["name"]: one for one in report["checks"]}
    assert (status, report["ok"]) == (0, True)
    assert "started in" in names["Claude Code"]["detail"]
    assert "claude-agent-sdk" in names["versions"]["detail"]
    assert {"credential", "callers", "address", "temporary files"} <= set(names)
    assert {one["status"] for one in report["checks"]} <= {"ok", "warn"}
    assert not list(tmp_path.glob("session-supervisor*"))


@pytest.mark.e2e
def test_without_a_credential_it_fails_and_says_what_to_do(tmp_path: Path) -> None:
    with running(tmp_path, "check", "--port", "0", env=NO_CREDENTIAL) as process:
        status, printed = ends(process, within_s=60)
    assert status == 1
    assert "fail  credential" in printed
    assert "ANTHROPIC_API_KEY" in printed
    assert "would not work so: 1 failed" in printed
    assert "Traceback" not in printed


@pytest.mark.e2e
def test_it_makes_nothing_that_serve_would_make(tmp_path: Path) -> None:
    keys, state, work = (tmp_path / name for name in ("k/keys.toml", "state", "work"))
    given = ("--keys", str(keys), "--make-key", "--state-dir", str(state), "--workspace", str(work))
    # Where nobody answers, Claude Code does not wait for the network.
    environment = {"ANTHROPIC_API_KEY": "CANARY", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}
    with running(tmp_path, "check", "--port", "0", *given, env=environment) as process:
        status, printed = ends(process, within_s=60)
    assert status == 0, printed
    assert "is made by the first start" in printed
    assert printed.count("is made when it is needed") == 2
    assert "CANARY" not in printed
    assert not any(one.exists() for one in (keys.parent, state, work))


def test_settings_that_make_no_sense_are_not_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("check", "--offline", "--max-live", "0")) == 2
    assert "--max-live" in capsys.readouterr().err


# Each look


def test_an_open_server_without_keys_fails_and_one_that_is_meant_to_be_open_is_warned_of() -> None:
    (refused,) = check.callers(configuration(host="0.0.0.0"))
    assert refused.status == "fail"
    assert "keys new" in refused.detail
    (open_,) = check.callers(configuration(host="0.0.0.0", no_auth=True))
    assert open_.status == "warn"
    (local,) = check.callers(configuration())
    assert local.status == "ok"


def test_the_keys_are_read_and_their_permissions_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    keyfile.append(file, keyfile.new_key("ann").key)
    (fine,) = check.callers(configuration(keys=str(file)))
    assert (fine.status, fine.detail) == ("ok", "there is 1")
    file.chmod(0o644)
    looks = found(*check.callers(configuration(keys=str(file))))
    assert looks["key file"].status == "warn"
    assert looks["key file"].advice == f"chmod 600 {file}"
    file.write_text("[[keys]]\nid = 3\nhash = 'CANARY'\n")
    (broken,) = check.callers(configuration(keys=str(file)))
    assert broken.status == "fail"
    assert str(file) in broken.detail
    assert "CANARY" not in broken.detail
    file.write_text("")
    looks = found(*check.callers(configuration(keys=str(file))))
    assert looks["keys"].status == "warn"


def test_a_port_in_use_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (one,) = check.address(configuration(host="127.0.0.1", port=port))
        assert one.status == "fail"
        assert f"Port {port}" in one.detail
    (one,) = check.address(configuration(host="127.0.0.1", port=unused_port()))
    assert one.status == "ok"


def test_a_certificate_that_cannot_be_used_is_found(tmp_path: Path) -> None:
    (one,) = check.address(configuration(port=0, tls_cert=str(tmp_path), tls_key=str(tmp_path)))
    assert one.status == "fail"
    assert str(tmp_path) in one.detail


def test_directories_that_cannot_be_used_are_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    given = configuration(workspace=str(tmp_path / "file" / "x"), cwd_root=str(tmp_path / "none"))
    looks = found(*check.directories(given))
    assert looks["workspace"].status == "fail"
    assert "--workspace" in looks["workspace"].detail
    assert looks["cwd_root"].status == "fail"
    (tmp_path / "work").mkdir()
    good = configuration(
        workspace=str(tmp_path / "work"),
        state_dir=str(tmp_path / "state"),
        cwd_root=str(tmp_path / "{owner}"),
    )
    assert {one.name: one.status for one in check.directories(good)} == {
        "workspace": "ok",
        "state_dir": "ok",
        "temporary files": "ok",
    }
    in_memory = configuration(store="memory")
    assert [one.name for one in check.directories(in_memory)] == ["temporary files"]


def test_limits_that_the_machine_cannot_hold_are_warned_of() -> None:
    (files,) = check.files(configuration(max_connections=10**7))
    assert files.status == "warn"
    (memory,) = check.memory(configuration(max_live=10**6))
    assert (memory.status, memory.advice) == ("warn", "Lower --max-live.")
    (files,), (memory,) = (
        look(configuration(max_live=1, max_connections=10)) for look in (check.files, check.memory)
    )
    assert (files.status, memory.status) == ("ok", "ok")


def test_the_memory_of_the_container_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "available_memory", lambda: 10**9)
    (few,), (many,) = (check.memory(configuration(max_live=count)) for count in (10, 11))
    assert (few.status, many.status) == ("ok", "warn")
    assert many.detail.startswith("1.0 GB can be had: 11 processes")


def test_a_sandbox_is_only_looked_for_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    looks = found(*check.programs(configuration(sandbox=True)))
    assert looks["sandbox"].status == "fail"
    assert "bwrap, socat" in looks["sandbox"].detail
    assert "sandbox" not in found(*check.programs(configuration()))


# What is printed


@pytest.mark.parametrize("columns", [20, 80, 300])
def test_the_table_fits(columns: int) -> None:
    findings = (
        Finding(name="a", status="ok", detail="words " * 60),
        Finding(name="a longer name", status="warn", detail="x", advice="advice " * 30),
    )
    lines = table(findings, columns).splitlines()
    assert max(map(len, lines)) <= max(60, min(100, columns))
    assert lines[-1] == "The server can run so: 0 failed, 1 to be looked at."
    assert not failed(findings)
