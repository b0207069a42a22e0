"""What runs in the container, without an engine: what its files say, and what their commands do.

`deploy/smoke.sh` tries the image itself, where there is an engine.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
import yaml
from bench.ports import unused_port

from session_http.configuration import PREFIX, ServerSettings
from session_http.serve import StopTimes
from tests.conftest import MARKER
from tests.e2e.server import OFFLINE, eventually, running_server

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "deploy" / "session-supervisor.service"
USER = 10001
BIN = Path(sys.executable).parent


# The Dockerfile, read


class Instruction(NamedTuple):
    """One instruction of a stage: `RUN`, its flags, and what follows them."""

    name: str
    flags: tuple[str, ...]
    rest: str

    @property
    def words(self) -> list[str]:
        """The words of the exec form (`["a", "b"]`), or those between spaces."""
        if self.rest.startswith("["):
            words: list[str] = json.loads(self.rest)
            return words
        return self.rest.split()


def stages() -> dict[str, list[Instruction]]:
    """The instructions of each stage; the last one, which is what runs, is called `runtime`."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        name, _, after = line.strip().partition(" ")
        if not name:
            continue
        flags = tuple(itertools.takewhile(lambda word: word.startswith("--"), after.split()))
        rest = after.removeprefix(" ".join(flags)).strip()
        if name == "FROM":
            current = found.setdefault(rest.partition(" AS ")[2] or "runtime", [])
        current.append(Instruction(name, flags, rest))
    return found


STAGES = stages()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def last(name: str) -> Instruction:
    """The instruction of this name that holds in the end."""
    return [one for one in STAGES["runtime"] if one.name == name][-1]


def environment() -> dict[str, str]:
    """The variables of the image; $PATH in them is left as it is."""
    return dict(
        word.split("=", 1) for one in STAGES["runtime"] if one.name == "ENV" for word in one.words
    )


def copies(stage: str) -> list[tuple[Instruction, list[str], str]]:
    """What a stage copies: the instruction, its sources, and where they go."""
    return [(one, one.words[:-1], one.words[-1]) for one in STAGES[stage] if one.name == "COPY"]


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# What the files say


def test_the_dockerfile_is_clean() -> None:
    assert run(str(BIN / "hadolint"), "Dockerfile") == ""


def test_the_composition_is_one_by_the_specification() -> None:
    pytest.importorskip("check_jsonschema", reason="it has the schema of the specification")
    schema = "--builtin-schema=vendor.compose-spec"
    assert "done" in run(sys.executable, "-m", "check_jsonschema", schema, "compose.yaml")


def test_the_builder_is_sent_what_is_copied_and_no_more() -> None:
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for stage in STAGES
        for one, sources, _ in copies(stage)
        if not any(flag.startswith("--from=") for flag in one.flags)
        for source in sources
    }
    assert allowed == copied
    assert all((ROOT / name).exists() for name in copied)


def test_what_changes_seldom_has_layers_of_its_own_below_what_changes_often() -> None:
    layers = [(one.flags, sources) for one, sources, _ in copies("runtime")]
    assert layers == [
        (("--link", "--from=packages"), ["/opt/claude"]),
        (("--link", "--from=packages"), ["/opt/venv"]),
        (("--link", "--from=project"), ["/opt/session-supervisor"]),
    ]


def test_the_image_runs_as_a_user_who_owns_what_may_change() -> None:
    assert last("USER").rest == f"{USER}:{USER}"
    (made,) = [one.rest for one in STAGES["runtime"] if one.name == "RUN"]
    assert f"useradd --uid {USER} " in made
    owned = re.search(rf"install --directory --owner={USER} --group={USER} --mode=0700 (.*)$", made)
    assert owned is not None
    volumes = {mount.partition(":")[2] for mount in SERVICES["server"]["volumes"]}
    assert set(owned[1].split()) == volumes
    variables = environment()
    for name in ("HOME", f"{PREFIX}STATE_DIR", f"{PREFIX}WORKSPACE", f"{PREFIX}KEYS"):
        assert any(Path(variables[name]).is_relative_to(volume) for volume in volumes), name


def test_the_image_and_the_composition_set_what_can_be_set() -> None:
    known = {f"{PREFIX}{field}".upper() for field in ServerSettings.model_fields}
    given = set(environment())
    for service in SERVICES.values():
        given |= set(service.get("environment", {}))
    assert {name for name in given if name.startswith(PREFIX)} <= known


@pytest.mark.parametrize("name", ["server", "offline"])
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["ports"] == ["127.0.0.1:${PORT:-3000}:3000"]
    assert environment()[f"{PREFIX}PORT"] == last("EXPOSE").rest == "3000"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert service["mem_limit"]
    assert service["pids_limit"] > 0


def test_no_credential_is_needed_or_kept() -> None:
    assert SERVICES["server"]["env_file"] == [{"path": "claude.env", "required": False}]
    assert "environment" not in SERVICES["server"]
    assert SERVICES["offline"]["env_file"] == []
    assert SERVICES["offline"]["profiles"] == ["offline"]


def longest_stop() -> float:
    """Seconds that the server may take to stop, as it is set here: a second signal never comes."""
    times = StopTimes()
    drain = ServerSettings().drain_timeout
    return drain + times.flush_s + times.close_s + times.hurry_s


def test_nobody_kills_the_server_while_it_stops() -> None:
    for service in SERVICES.values():
        assert float(service["stop_grace_period"].removesuffix("s")) > longest_stop()
    unit = UNIT.read_text()
    waits = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert waits is not None
    assert float(waits[1]) > longest_stop()
    # Or systemd signals the sessions' processes too, in the middle of their turns.
    assert "\nKillMode=mixed\n" in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/session-supervisor/bin/", f"{BIN}/"))
    assert run("systemd-analyze", "verify", str(unit)) == ""


# What the commands do


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What the Dockerfile makes, below a folder instead of `/`.

    Attributes:
        base: The folder. All absolute paths of the Dockerfile are put below it.
        path: The `PATH` of the base image.
    """

    base: Path
    path: str

    def put(self, text: str) -> str:
        """Put the absolute paths in a text below the folder."""
        return re.sub(
            r"(?<![\w/.-])/(?=(opt|src|tmp|usr/local|var|workspace)\b)", f"{self.base}/", text
        )

    @property
    def variables(self) -> dict[str, str]:
        """The environment of what runs in it."""
        path = f"{self.base}/usr/local/bin:{self.path}"
        return {
            name: self.put(value).replace("$PATH", path) for name, value in environment().items()
        } | {"TMPDIR": f"{self.base}/tmp", MARKER: os.environ[MARKER]}


BUILT = {"PIP_NO_INPUT": "1", "PIP_RETRIES": "1", "LANG": "C.UTF-8"}
NO_INDEX = (
    "NewConnectionError",
    "NameResolutionError",
    "No matching distribution",
    "ConnectTimeout",
)


def build(image: Image, stage: str) -> None:
    """Carry out the commands of one of the stages that build."""
    base, env = image.base, {"PATH": image.path, "HOME": str(image.base / "tmp"), **BUILT}
    folder = base
    for one in STAGES[stage]:
        if one.name == "WORKDIR":
            folder = Path(image.put(one.rest))
            folder.mkdir(exist_ok=True)
        elif one.name == "COPY":
            *sources, to = one.words
            for source in sources:
                copy(ROOT / source, folder / image.put(to), into=to.endswith(("/", ".")))
        elif one.name == "RUN":
            done = subprocess.run(
                ["sh", "-c", image.put(one.rest)],
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                timeout=400,
            )
            if done.returncode and any(word in done.stderr for word in NO_INDEX):
                pytest.skip(f"there is no package index here: {done.stderr[-200:]}")
            assert done.returncode == 0, done.stderr


def copy(source: Path, to: Path, *, into: bool) -> None:
    """Copy as `COPY` does: into a folder, or under another name."""
    if source.is_dir():
        shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
        return
    if into:
        to.mkdir(exist_ok=True)
        to = to / source.name
    shutil.copyfile(source, to)
    to.chmod(0o755)


@pytest.fixture(scope="module", params=["this environment", "built"])
def image(request: pytest.FixtureRequest) -> Iterator[Image]:
    # Not pytest's own folder, into which the user of the image could not look.
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        base = Path(folder)
        base.chmod(0o755)
        for name in ("src", "tmp", "opt", "usr/local/bin", "var/lib", "var/cache"):
            (base / name).mkdir(parents=True)
        (base / "tmp").chmod(0o1777)
        if request.param == "built":
            run(sys.executable, "-m", "venv", str(base / "python"))
            image = Image(base=base, path=f"{base}/python/bin:/usr/bin:/bin")
            build(image, "packages")
            build(image, "project")
            for _, sources, to in copies("runtime"):
                if sources != [to]:
                    shutil.move(image.put(sources[0]), image.put(to))
        else:
            image = Image(base=base, path=f"{BIN}:/usr/bin:/bin")
            commands = base / "opt" / "session-supervisor" / "bin"
            commands.mkdir(parents=True)
            shutil.copy(ROOT / "deploy" / "healthcheck.py", commands / "healthcheck")
        for mount in SERVICES["server"]["volumes"]:
            volume = Path(image.put(mount.partition(":")[2]))
            volume.mkdir(mode=0o700)
            if os.geteuid() == 0:
                os.chown(volume, USER, USER)
        yield image


def unprivileged(command: list[str]) -> list[str]:
    """Run a command as the user of the image, without any capability, if we may."""
    if os.geteuid() != 0:
        return command
    rights = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", *rights, "--", *command]


@contextmanager
def container(image: Image, port: int, variables: Mapping[str, str]) -> Generator[Path]:
    """Run what the image runs; yields its log. It must end well, and in time."""
    env = image.variables | {f"{PREFIX}PORT": str(port), **variables}
    log = image.base / "log"
    program, *arguments = last("CMD").words
    found = shutil.which(program, path=env["PATH"])
    assert found is not None, f"{program} is not on the PATH of the image"
    with (
        log.open("w") as output,
        subprocess.Popen(
            unprivileged([found, *arguments]),
            cwd=image.put(last("WORKDIR").rest),
            env=env,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            eventually(
                lambda: process.poll() is not None or healthy(image, env) == 0,
                "it is healthy",
            )
            assert process.poll() is None, log.read_text()
            yield log
            process.send_signal(getattr(signal, last("STOPSIGNAL").rest))
            assert process.wait(longest_stop()) == 0, log.read_text()
        finally:
            with suppress(ProcessLookupError):
                process.kill()


def healthy(image: Image, env: Mapping[str, str]) -> int:
    """The status of the image's check of health."""
    name: str
    (name,) = json.loads(last("HEALTHCHECK").rest.partition("CMD ")[2])
    found = shutil.which(name, path=env["PATH"])
    assert found is not None
    return subprocess.run(
        unprivileged([found]), env=dict(env), capture_output=True, timeout=60
    ).returncode


def ask(port: int, path: str, key: str, body: dict[str, str]) -> dict[str, Any]:
    """Send a request with a key."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


@pytest.mark.e2e
@pytest.mark.timeout(600)  # fetches and installs what the lock names
def test_the_first_start_makes_a_key_and_the_second_keeps_it(image: Image) -> None:
    port = unused_port()
    offline = SERVICES["offline"]["environment"]
    with container(image, port, offline) as log:
        told = re.search(r"(\S+/first-key)\b", log.read_text())
        assert told is not None, log.read_text()
        key = Path(told[1]).read_text().strip()
        answer = ask(port, "/query", key, {"prompt": "[[say Ready.]]"})
        assert answer["response"] == "Ready."
    with container(image, port, offline) as log:
        answer = ask(port, "/session/start", key, {"initial_prompt": "[[say Again.]]"})
        assert answer["initial_response"] == "Again."
        assert "first-key" not in log.read_text()
    if os.geteuid() == 0:
        state = Path(image.put(environment()[f"{PREFIX}STATE_DIR"]))
        assert {path.stat().st_uid for path in state.rglob("*")} == {USER}


def test_the_check_of_health_fails_where_nobody_answers() -> None:
    check = ROOT / "deploy" / "healthcheck.py"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # so that nobody else can come to listen there
        port: int = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, str(check)],
            env={"PATH": "/usr/bin", f"{PREFIX}PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert f"port {port}" in done.stdout


def test_the_check_of_health_goes_over_tls_where_the_server_does(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("agents.example")
    both = tmp_path / "both.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(both))
    tls = (f"--tls-cert={both}", f"--tls-key={both}")
    said: list[str] = []

    def answers() -> bool:
        done = subprocess.run(
            [sys.executable, str(ROOT / "deploy" / "healthcheck.py")],
            env={
                "PATH": "/usr/bin",
                "PORT": server.url.rpartition(":")[2],
                f"{PREFIX}TLS_CERT": str(both),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        said.append(done.stdout)
        return done.returncode == 0

    with running_server(tmp_path / "server", *OFFLINE, *tls) as server:
        eventually(answers, "the check has its answer, for which it waits only four seconds")
    assert said[-1] == "/health: 200\n"
