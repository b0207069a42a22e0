"""The proxies' configurations of `deploy/` do what docs/operations.md says of them.

Each proxy that is installed here stands in front of a real server, with its file as it is
committed: only addresses and paths are put in. What takes minutes (silence beyond every usual
time-out) is proved by running this module: `python -m tests.e2e.test_proxies`.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from bench.ports import unused_port

from tests.conftest import MARKER
from tests.e2e.server import OFFLINE, ROOT, SHARED, Server, eventually, running_server
from tests.e2e.sse import Event, Parser

NAME = "agents.example"
CONFIGURATIONS = ROOT / "deploy" / "proxies"
TRUSTED = f"--trusted-host={NAME}"
ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a proxy is put up.

    Attributes:
        folder: For its files.
        port: To listen on.
        upstream: `host:port` of the server.
        certificate: Chain, PEM.
        key: Its key, PEM.
        both: The two in one file.
    """

    folder: Path
    port: int
    upstream: str
    certificate: Path
    key: Path
    both: Path

    def fill(self, text: str) -> str:
        """Put this place's addresses and paths into a configuration."""
        return (
            text.replace("127.0.0.1:3000", self.upstream)
            .replace("/etc/ssl/agents.example.key", str(self.key))
            .replace(":443", f":{self.port}")
            .replace("listen 443", f"listen {self.port}")
        )


def nginx(place: Place) -> list[str]:
    site = place.fill((CONFIGURATIONS / "nginx.conf").read_text())
    site = site.replace("/etc/ssl/agents.example.pem", str(place.certificate))
    paths = " ".join(
        f"{kind}_temp_path {place.folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = place.folder / "nginx.conf"
    config.write_text(
        f"user {getpass.getuser()}; daemon off; pid {place.folder}/pid; events {{}}\n"
        f"http {{ access_log {place.folder}/access.log; {paths}\n{site}}}\n"
    )
    return ["nginx", "-c", str(config), "-e", "stderr", "-p", str(place.folder)]


def haproxy(place: Place) -> list[str]:
    config = place.folder / "haproxy.cfg"
    text = place.fill((CONFIGURATIONS / "haproxy.cfg").read_text())
    config.write_text(text.replace("/etc/ssl/agents.example.pem", str(place.both)))
    return ["haproxy", "-db", "-f", str(config)]


def caddy(place: Place) -> list[str]:
    config = place.folder / "Caddyfile"
    text = place.fill((CONFIGURATIONS / "Caddyfile").read_text())
    text = text.replace(
        f"{NAME} {{", f"{NAME}:{place.port} {{\n\ttls {place.certificate} {place.key}"
    )
    config.write_text(
        "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n" + text
    )
    return ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]


def apache2(place: Place) -> list[str]:
    site = place.fill((CONFIGURATIONS / "apache.conf").read_text())
    site = site.replace("/etc/ssl/agents.example.pem", str(place.certificate))
    modules = "mpm_event authz_core ssl http2 headers proxy proxy_http unique_id socache_shmcb"
    loaded = "\n".join(
        f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so"
        for name in modules.split()
    )
    config = place.folder / "apache.conf"
    config.write_text(
        f"ServerRoot {place.folder}\nPidFile {place.folder}/pid\nServerName {NAME}\n"
        f"DefaultRuntimeDir {place.folder}\nErrorLog {place.folder}/error.log\n{loaded}\n"
        f"User nobody\nGroup nogroup\nListen {place.port}\n{site}"
    )
    return ["apache2", "-D", "FOREGROUND", "-f", str(config)]


PROXIES: dict[str, Callable[[Place], list[str]]] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "caddy": caddy,
    "apache2": apache2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxied:
    """A server behind a proxy.

    Attributes:
        url: Of the proxy.
        context: What trusts its certificate.
        port: Where it listens.
    """

    url: str
    context: ssl.SSLContext
    port: int

    def client(self, *, http2: bool) -> httpx.Client:
        """Return a client that reaches the proxy under its name."""
        return httpx.Client(
            base_url=self.url,
            http2=http2,
            verify=self.context,
            headers={"Host": NAME},
            timeout=120.0,
            trust_env=False,
        )


@contextmanager
def running_proxy(name: str, upstream: str, folder: Path) -> Generator[Proxied]:
    """Run a proxy in front of a server for a while."""
    authority = trustme.CA()
    issued = authority.issue_cert(NAME, "127.0.0.1")
    both = folder / "both.pem"
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(both))
    issued.private_key_pem.write_to_path(str(key))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(certificate), append=True)
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    port = unused_port()
    place = Place(
        folder=folder, port=port, upstream=upstream, certificate=certificate, key=key, both=both
    )
    command = PROXIES[name](place)
    env = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=folder) as process,
    ):
        try:

            def listens() -> bool:
                assert process.poll() is None, (folder / "log").read_text()
                with closing(socket.socket()) as one:
                    return one.connect_ex(("127.0.0.1", port)) == 0

            eventually(listens, f"{name} listens")
            yield Proxied(url=f"https://127.0.0.1:{port}", context=context, port=port)
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("upstream"), *SHARED, TRUSTED) as server:
        yield server


@pytest.fixture(scope="module", params=PROXIES)
def proxied(
    request: pytest.FixtureRequest, upstream: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp(name)
    with running_proxy(name, upstream.url.removeprefix("http://"), folder) as proxy:
        yield proxy


@pytest.fixture(params=[False, True], ids=["http1", "http2"])
def client(request: pytest.FixtureRequest, proxied: Proxied) -> Iterator[httpx.Client]:
    with proxied.client(http2=request.param) as client:
        response = client.get("/health")
        assert response.status_code == 200, response.text
        assert response.http_version == ("HTTP/2" if request.param else "HTTP/1.1")
        yield client


def started(client: httpx.Client) -> str:
    """Start a session, and return its path."""
    answer = client.post("/session/start", json={"initial_prompt": "[[say Ready.]]"})
    return f"/session/{answer.json()['session_id']}"


def test_what_is_said_arrives_before_there_is_more(client: httpx.Client) -> None:
    """Held back until there is a bufferful, it would never come: the turn waits for our answer."""
    path = started(client)
    call = json.dumps({"command": "touch it", "description": "It makes a file."})
    body = {"prompt": f"[[tool Bash {call}]]" * ROUNDS + " [[say Done.]]", "stream": True}
    parser, asked = Parser(), list[str]()
    with client.stream("POST", f"{path}/query", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            event = parser.feed(line)
            if event is not None and event.type == "permission_request":
                asked.append(event.data["request_id"])
                told = client.post(f"{path}/permissions/{asked[-1]}", json={"decision": "allow"})
                assert told.status_code == 200, told.text
    assert len(set(asked)) == ROUNDS
    assert client.delete(path).status_code == 200


def test_words_arrive_while_others_are_said(client: httpx.Client) -> None:
    path = started(client)
    body = {"prompt": "Count. [[slow tokens=40 delay_ms=100]]", "stream": True}
    parser, seen = Parser(), list[Event]()
    with client.stream("POST", f"{path}/query", json=body) as response:
        for line in response.iter_lines():
            event = parser.feed(line)
            if event is not None and event.type == "text":
                if not seen:
                    turn = client.get(f"{path}/turns/{event.data['turn_id']}").json()
                    assert turn["phase"] == "running"
                seen.append(event)
    assert len(seen) > 1
    assert client.delete(path).status_code == 200


def test_a_stream_goes_on_where_it_broke_off(client: httpx.Client) -> None:
    path = started(client)
    parser = Parser()
    with client.stream("GET", f"{path}/events", headers={"Last-Event-ID": "3"}) as response:
        for line in response.iter_lines():
            if (event := parser.feed(line)) is not None:
                assert event.id == 4
                break
    assert client.delete(path).status_code == 200


def test_ids_of_requests_and_errors_of_the_server_come_back(client: httpx.Client) -> None:
    response = client.get("/nowhere")
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"
    assert len(response.headers["x-request-id"]) >= 16


def test_a_prompt_of_many_megabytes_passes(client: httpx.Client) -> None:
    # Refused by the server, for what it says, and not by the proxy, for its size.
    response = client.post("/query", json={"prompt": "x" * 9_000_000, "nonsense": True})
    assert response.status_code == 400
    assert "nonsense" in response.json()["detail"]


# By hand: what takes minutes


def silence(name: str, upstream: str, folder: Path, seconds: float) -> str:
    """Prove that a proxy cuts nothing off while nothing is said; takes twice that long."""
    folder.mkdir()
    with running_proxy(name, upstream, folder) as proxy, proxy.client(http2=True) as client:
        parser = Parser()
        path = started(client)
        begun = time.monotonic()
        with client.stream("GET", f"{path}/events") as response:
            for line in response.iter_lines():
                parser.feed(line)
                if time.monotonic() - begun > seconds:
                    break
        client.delete(path)
        begun = time.monotonic()
        prompt = f"[[slow tokens={seconds:.0f} delay_ms=1000]]"
        answer = client.post("/query", json={"prompt": prompt}, timeout=seconds + 60)
        answer.raise_for_status()
        took = time.monotonic() - begun
    return (
        f"{name}: a stream with {parser.comments} comments and no event in {seconds:.0f} s, and an "
        f"answer that came after {took:.0f} s of nothing at all"
    )


def main() -> None:
    """Prove it for each proxy that is installed."""
    os.environ.setdefault(MARKER, "by hand")
    names = [name for name in PROXIES if shutil.which(name)]
    with (
        tempfile.TemporaryDirectory() as base,
        running_server(Path(base, "server"), *OFFLINE, TRUSTED) as server,
        ThreadPoolExecutor(len(names)) as pool,
    ):
        os.chmod(base, 0o755)  # Apache's workers are another user
        upstream = server.url.removeprefix("http://")
        proofs = [pool.submit(silence, name, upstream, Path(base, name), 130.0) for name in names]
        for proof in proofs:
            sys.stdout.write(f"{proof.result()}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
