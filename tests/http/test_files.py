"""What a session made, and nothing else: on real directories, links, pipes and races."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from session_http import files
from session_http.downloads import Span, disposition_of, media_type_of, span_of
from session_http.files import FileKind, NoSuchFile, listed, open_file, parts_of
from session_http.problems import ProblemError
from session_http.settings import HttpSettings
from session_supervisor.agents.scripted import ScriptedAgent
from tests.http.contract import judged
from tests.http.exchange import exchanging
from tests.http.keyring import Keys
from tests.http.servers import World, in_process, on_hypercorn, world

SECRET = "what nobody may have"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A directory with a session's own in it, `own`, and what is none of its business beside it."""
    own = tmp_path / "own"
    (own / "a" / "b").mkdir(parents=True)
    (own / "one.txt").write_text("one")
    (own / "a" / "two.txt").write_text("two!")
    (own / "a" / "b" / "three.txt").write_text("three")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_text(SECRET)
    (tmp_path / "secret").write_text(SECRET)
    for link, target in {
        "to-file": "one.txt",
        "to-secret": "../secret",
        "to-other": "../other",
        "to-a": "a",
        "to-root": "/",
        "loop": "loop",
        "gone": "nowhere",
    }.items():
        (own / link).symlink_to(target)
    os.mkfifo(own / "pipe")
    return tmp_path


def read(root: Path, path: str) -> str:
    opened = open_file(str(root), parts_of(path))
    with os.fdopen(opened.fd) as file:
        text = file.read()
    assert len(text) == opened.size
    return text


@contextmanager
def no_descriptor_stays() -> Generator[None]:
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set[str]()
    yield
    if sys.platform == "linux":
        assert set(os.listdir("/proc/self/fd")) == before


# -- lists -------------------------------------------------------------------------------------


def test_a_list_has_everything_once_those_higher_up_first(top: Path) -> None:
    with no_descriptor_stays():
        found = listed(str(top / "own"), (), limit=100)
    assert not found.truncated
    assert [(one.path, one.kind.value, one.size) for one in found.found] == [
        ("a", "directory", None),
        ("gone", "link", None),
        ("loop", "link", None),
        ("one.txt", "file", 3),
        ("pipe", "other", None),
        ("to-a", "link", None),
        ("to-file", "link", None),
        ("to-other", "link", None),
        ("to-root", "link", None),
        ("to-secret", "link", None),
        ("a/b", "directory", None),
        ("a/two.txt", "file", 4),
        ("a/b/three.txt", "file", 5),
    ]


def test_a_directory_is_listed_alone_with_paths_from_the_top(top: Path) -> None:
    found = listed(str(top / "own"), ("a",), limit=100)
    assert [one.path for one in found.found] == ["a/b", "a/two.txt", "a/b/three.txt"]


@pytest.mark.parametrize("path", ["to-a", "to-other", "to-root", "loop", "one.txt", "pipe", "x"])
def test_what_is_no_directory_is_not_listed(top: Path, path: str) -> None:
    with no_descriptor_stays(), pytest.raises(NoSuchFile):
        listed(str(top / "own"), (path,), limit=100)


def test_a_directory_that_is_gone_is_empty_and_a_link_in_its_place_is_none(top: Path) -> None:
    assert listed(str(top / "nowhere"), (), limit=10).found == ()
    (top / "link").symlink_to("other")
    with pytest.raises(NoSuchFile):
        listed(str(top / "link"), (), limit=10)
    with pytest.raises(NoSuchFile):
        open_file(str(top / "link"), ("secret",))


def test_a_list_is_cut_where_it_is_long_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (tmp_path / f"{number:02}").touch()
    assert not listed(str(tmp_path), (), limit=50).truncated
    cut = listed(str(tmp_path), (), limit=49)
    assert cut.truncated
    assert [one.path for one in cut.found] == [f"{number:02}" for number in range(49)]
    monkeypatch.setattr(files, "MOST_SEEN", 10)
    cut = listed(str(tmp_path), (), limit=50)
    assert (cut.truncated, len(cut.found)) == (True, 10)
    monkeypatch.setattr(files, "MOST_SEEN", 50)
    assert not listed(str(tmp_path), (), limit=50).truncated
    monkeypatch.setattr(files, "MOST_TEXT", 20)
    cut = listed(str(tmp_path), (), limit=50)
    assert (cut.truncated, len(cut.found)) == (True, 10)


def test_directories_within_one_another_end_somewhere(tmp_path: Path) -> None:
    folder, fd = "d" * 200, os.open(tmp_path, os.O_RDONLY)
    for _ in range(files.DEEPEST + 20):  # their path is longer than the kernel takes
        os.mkdir(folder, dir_fd=fd)
        below = os.open(folder, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with no_descriptor_stays():
        found = listed(str(tmp_path), (), limit=1000)
    assert (found.truncated, len(found.found)) == (True, files.DEEPEST)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_names_that_are_no_text_are_shown_and_cannot_be_had(tmp_path: Path) -> None:
    for name in (b"\xff.txt", b"new\nline", b"bell\x07", b"\xed\xa0\x80"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    found = listed(str(tmp_path), (), limit=10).found
    assert {one.kind for one in found} == {FileKind.OTHER}
    assert all(one.path.isprintable() and one.path.encode() for one in found)
    assert "\ufffd.txt" in {one.path for one in found}


@pytest.mark.parametrize("seconds", [-(2**33), 2**33, 10**12])
def test_any_time_of_change_is_listed(tmp_path: Path, seconds: int) -> None:
    (tmp_path / "file").touch()
    try:
        os.utime(tmp_path / "file", (seconds, seconds))
    except OverflowError:
        pytest.skip("the file system has no such time")
    (found,) = listed(str(tmp_path), (), limit=1).found
    year = None if found.modified_at is None else found.modified_at.year
    assert year is None or 1600 < year < 2500


# -- files -------------------------------------------------------------------------------------


def test_files_are_read_wherever_they_are(top: Path) -> None:
    with no_descriptor_stays():
        assert read(top / "own", "one.txt") == "one"
        assert read(top / "own", "a/b/three.txt") == "three"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("a", "is a directory"),
        ("to-file", "is a symbolic link"),
        ("to-secret", "is a symbolic link"),
        ("loop", "is a symbolic link"),
        ("pipe", "is no regular file"),
        ("to-other/secret", "There is no file"),
        ("to-root/etc/passwd", "There is no file"),
        ("to-a/two.txt", "There is no file"),
        ("one.txt/x", "There is no file"),
        ("pipe/x", "There is no file"),
        ("x" * 256, "There is no file"),
        *(
            (path, "is no path of a file")
            for path in (
                *("", "/", ".", "..", "../secret", "a/../one.txt", "./one.txt", "a//two.txt"),
                *("/etc/passwd", "one.txt/", "one.txt\0", "\0", "a\n", "\udcff", "\ud800"),
            )
        ),
    ],
)
def test_what_is_no_file_of_its_own_is_not_read(top: Path, path: str, why: str) -> None:
    with no_descriptor_stays(), pytest.raises(NoSuchFile, match=why):
        read(top / "own", path)


def test_a_socket_and_what_nobody_may_read_are_not_read(top: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(top / "own", os.O_RDONLY)
        try:
            listening.bind(f"/proc/self/fd/{here}/sock" if sys.platform == "linux" else "sock")
        finally:
            os.close(here)
        with pytest.raises(NoSuchFile, match="no regular file"):
            read(top / "own", "sock")
    if os.geteuid() != 0:
        (top / "own" / "one.txt").chmod(0)
        with no_descriptor_stays(), pytest.raises(NoSuchFile):
            read(top / "own", "one.txt")


def test_a_pipe_is_not_opened_even_for_a_moment(top: Path) -> None:
    with suppress(NoSuchFile):
        read(top / "own", "pipe")
    listed(str(top / "own"), (), limit=10)
    # Whoever writes to a pipe that nobody reads cannot open it; one that was would have let it.
    with pytest.raises(OSError, match="No such device"):
        os.open(top / "own" / "pipe", os.O_WRONLY | os.O_NONBLOCK)


def test_swapping_links_and_files_in_a_race_leads_nowhere(top: Path) -> None:
    """A file and a link, and a directory and a link, change places as fast as they can."""
    own, over = top / "own", threading.Event()
    (own / "file").write_text("mine")
    (own / "dir").mkdir()
    (own / "dir" / "secret").write_text("mine")
    (own / "file-link").symlink_to("../secret")
    (own / "dir-link").symlink_to("../other")

    def swap() -> None:
        while not over.is_set():
            for one, other in (("file", "file-link"), ("dir", "dir-link")):
                os.rename(own / one, own / "third")
                os.rename(own / other, own / one)
                os.rename(own / "third", own / other)

    swapping = threading.Thread(target=swap)
    swapping.start()
    had: dict[str, int] = {}
    try:
        with no_descriptor_stays():
            for _ in range(4000):
                for path in ("file", "dir/secret"):
                    try:
                        text = read(own, path)
                    except NoSuchFile as error:
                        text = str(error)[:24]
                    assert text != SECRET
                    had[text] = had.get(text, 0) + 1
            for _ in range(200):
                found = listed(str(own), (), limit=100).found
                assert not any("secret" in one.path and one.size == len(SECRET) for one in found)
    finally:
        over.set()
        swapping.join()
    assert len(had) > 1, "nothing was swapped while we looked"
    assert had["mine"]


PARTS = ("a", "b", "..", ".", "", "to-a", "to-other", "to-root", "own", "one.txt", "secret", "pipe")


@example(parts=["to-other", "secret"])
@example(parts=["a", "..", "..", "secret"])
@given(parts=st.lists(st.sampled_from(PARTS), max_size=5))
def test_no_path_leads_out(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    own = tmp_path_factory.getbasetemp() / "led-out" / "own"
    if not own.exists():
        (own / "a" / "b").mkdir(parents=True)
        (own / "one.txt").write_text("mine")
        (own.parent / "other").mkdir()
        (own.parent / "other" / "secret").write_text(SECRET)
        (own.parent / "secret").write_text(SECRET)
        for link, target in (("to-a", "a"), ("to-other", "../other"), ("to-root", "/")):
            (own / link).symlink_to(target)
        os.mkfifo(own / "pipe")
    with suppress(NoSuchFile):
        assert read(own, "/".join(parts)) == "mine"
        assert parts == ["one.txt"]


# -- how they are sent ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", None),
        ("bytes=0-0", Span(0, 1)),
        ("bytes=2-5", Span(2, 6)),
        ("bytes=2-500", Span(2, 10)),
        ("bytes=9-", Span(9, 10)),
        ("bytes=-3", Span(7, 10)),
        ("bytes=-30", Span(0, 10)),
        *((header, None) for header in ("bytes=5-2", "bytes=-", "bytes=1-2,4-5", "lines=1-2")),
        *((header, None) for header in ("bytes=1", "bytes=a-b", f"bytes={'9' * 50}-")),
    ],
)
def test_a_range_of_bytes_is_what_it_says_and_all_if_it_says_nothing(
    header: str, found: Span | None
) -> None:
    assert span_of(header, 10) == found


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(header: str) -> None:
    with pytest.raises(ProblemError) as refusal:
        span_of(header, 10)
    assert refusal.value.problem.status == 416
    assert refusal.value.problem.headers == {"content-range": "bytes */10"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("report.md", 'attachment; filename="report.md"'),
        ('a"b.txt', "attachment; filename*=UTF-8''a%22b.txt"),
        ("\U0001f980.txt", "attachment; filename*=UTF-8''%F0%9F%A6%80.txt"),
        ("a\\b;c", "attachment; filename*=UTF-8''a%5Cb%3Bc"),
    ],
)
def test_a_file_is_saved_under_its_name(name: str, value: str) -> None:
    assert disposition_of(name) == value


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("page.html", "text/html"),
        ("data:text/html,x", "application/octet-stream"),
        ("a.tar.gz", "application/octet-stream"),
        ("Makefile", "application/octet-stream"),
        ("http://x/y.png", "image/png"),
    ],
)
def test_a_file_is_what_its_name_says(name: str, media_type: str) -> None:
    assert media_type_of(name) == media_type


# -- in the API ----------------------------------------------------------------------------------


@asynccontextmanager
async def served(**options: Any) -> AsyncGenerator[tuple[World, httpx.AsyncClient]]:
    async with (
        world(agent=ScriptedAgent(), **options) as one,
        in_process(one.app, hooks=judged()) as client,
    ):
        yield one, client


async def started(one: World, client: httpx.AsyncClient, **body: Any) -> tuple[str, Path]:
    reply = (await client.post("/session/start", json=body)).json()
    session_id = reply["session_id"]
    workspace = one.supervisor.get(session_id).workspace
    assert workspace is not None
    return f"/session/{session_id}/files", workspace


@pytest.mark.anyio
async def test_files_are_listed_and_downloaded() -> None:
    async with served() as (one, client):
        path, own = await started(one, client)
        assert (await client.get(path)).json()["files"] == []
        (own / "out").mkdir()
        (own / "out" / "über uns.html").write_text("<script>alert(1)</script>")
        reply = (await client.get(path)).json()
        assert (reply["count"], reply["truncated"]) == (2, False)
        found = reply["files"][1]
        assert (found["path"], found["kind"], found["size"]) == ("out/über uns.html", "file", 25)
        assert found["modified_at"].endswith("Z")
        below = (await client.get(path, params={"path": "out/"})).json()["files"]
        assert below == [found]
        cut = (await client.get(path, params={"limit": 1})).json()
        assert (cut["count"], cut["truncated"]) == (1, True)

        got = await client.get(f"{path}/out/über uns.html")
        assert got.text == "<script>alert(1)</script>"
        assert got.headers["content-type"] == "text/html"
        assert got.headers["content-disposition"] == (
            "attachment; filename*=UTF-8''%C3%BCber%20uns.html"
        )
        assert got.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in got.headers["content-security-policy"]
        head = await client.head(f"{path}/out/über uns.html")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == "25"


@pytest.mark.anyio
async def test_a_part_of_a_file_and_an_unchanged_one() -> None:
    async with served() as (one, client):
        path, own = await started(one, client)
        (own / "digits").write_text("0123456789" * 100_000)
        path += "/digits"
        whole = await client.get(path)
        assert (whole.status_code, len(whole.content)) == (200, 1_000_000)
        part = await client.get(path, headers={"Range": "bytes=12-14"})
        assert (part.status_code, part.text) == (206, "234")
        assert part.headers["content-range"] == "bytes 12-14/1000000"
        behind = await client.get(path, headers={"Range": "bytes=1000000-"})
        assert (behind.status_code, behind.json()["code"]) == (416, "range_not_satisfiable")
        assert behind.headers["content-range"] == "bytes */1000000"

        etag = whole.headers["etag"]
        resumed = {"Range": "bytes=999999-", "If-Range": etag}
        assert (await client.get(path, headers=resumed)).text == "9"
        assert (await client.get(path, headers={"If-None-Match": etag})).status_code == 304
        (own / "digits").write_text("other")
        assert (await client.get(path, headers=resumed)).text == "other", "not a part of another"
        assert (await client.get(path, headers={"If-None-Match": etag})).text == "other"


@pytest.mark.anyio
async def test_every_path_that_is_none_is_a_404(top: Path) -> None:
    async with served() as (one, client):
        path, own = await started(one, client)
        (own.parent / "secret").write_text(SECRET)
        (own / "dir").mkdir()
        (own / "link").symlink_to("../secret")
        os.mkfifo(own / "pipe")
        names = ("dir", "link", "pipe", "nothing", "x" * 300, "dir/", "", "%00", "a%00b", "%ff")
        outs = ("%2e%2e/secret", "..%2fsecret", "%2e%2e%2fsecret", "dir/%2e%2e/%2e%2e/secret")
        more = ("/etc/passwd", "%2fetc%2fpasswd", "dir//x", "%2e", "..%5csecret", "%252e%252e")
        for name in (*names, *outs, *more):
            got = await client.get(f"{path}/{name}")
            assert (got.status_code, got.json()["code"]) == (404, "file_not_found"), name
            assert str(own) not in got.text
        for name in ("..", "link", "pipe", "nothing", "/", "/etc", "dir/../..", "a\0"):
            got = await client.get(path, params={"path": name})
            assert (got.status_code, got.json()["code"]) == (404, "file_not_found"), name
        assert (await client.get(f"{path}/a%2Fb")).status_code == 404
        (own / "a").mkdir()
        (own / "a" / "b").write_text("a slash is a slash")
        assert (await client.get(f"{path}/a%2Fb")).text == "a slash is a slash"


@pytest.mark.anyio
async def test_no_address_leads_out_of_a_real_server() -> None:
    """By a raw socket: clients tidy what they are given."""
    async with served() as (one, client), on_hypercorn(one) as address:
        path, own = await started(one, client)
        (own.parent / "secret").write_text(SECRET)
        (own / "dir").mkdir()
        (own / "file").write_text("mine")

        async def ask(target: str) -> bytes:
            reader, writer = await asyncio.open_connection(address.host, address.port)
            head = f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            writer.write(head.encode("latin-1"))
            got = await reader.read()
            writer.close()
            return got

        assert (await ask(f"{path}/file")).endswith(b"\r\n\r\nmine")
        ups = (
            "..",
            "%2e%2e",
            ".%2e",
            "%2E%2E",
            "..%00",
            "%c0%ae%c0%ae",
            "..;",
            "..%2f.",
            "dir/../..",
        )
        for up in ups:
            for slash in ("/", "%2f", "//", "%5c", "/./"):
                got = await ask(f"{path}/{up}{slash}secret")
                assert got.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), up
                assert SECRET.encode() not in got
        listed = await ask(f"{path}?path=%2e%2e")
        assert listed.startswith(b"HTTP/1.1 404")
        with (own / "long").open("wb") as file:
            file.truncate(50_000_000)
        head, _, rest = (await ask(f"{path}/long")).partition(b"\r\n\r\n")
        assert (b"content-length: 50000000" in head.lower(), len(rest)) == (True, 50_000_000)


@pytest.mark.anyio
async def test_a_directory_of_the_callers_choice_is_not_given_out(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "secret").write_text(SECRET)
    async with served(settings=HttpSettings(cwd_root=tmp_path)) as (_, client):
        reply = (await client.post("/session/start", json={"cwd": "work"})).json()
        for path in ("files", "files/secret", "files/nothing"):
            got = await client.get(f"/session/{reply['session_id']}/{path}")
            assert (got.status_code, got.json()["code"]) == (409, "no_private_files")


@pytest.mark.anyio
async def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.add("ada")
    keys.add("ben")
    keys.add("root", roles=("user", "admin"))
    async with served(authenticate=keys.ring.authenticate) as (one, client):
        client.headers = httpx.Headers(keys.of("ada"))
        path, own = await started(one, client)
        (own / "mine").write_text("mine")
        assert (await client.get(f"{path}/mine")).text == "mine"
        for name in ("ben", "root"):
            for there in (path, f"{path}/mine", f"{path}/nothing"):
                got = await client.get(there, headers=keys.of(name))
                assert (got.status_code, got.json()["code"]) == (404, "session_not_found")


@pytest.mark.anyio
async def test_files_go_with_their_session() -> None:
    async with served() as (one, client):
        path, own = await started(one, client)
        (own / "mine").write_text("mine")
        await client.delete(path.removesuffix("/files"))
        assert (await client.get(path)).status_code == 404
        assert (await client.get(f"{path}/mine")).status_code == 404
        once = (await client.post("/query", json={"prompt": "Hi."})).json()
        got = await client.get(f"/session/{once['session_id']}/files")
        assert (got.status_code, got.json()["code"]) == (409, "session_closed")


@pytest.mark.anyio
async def test_a_client_that_goes_away_or_reads_nothing_ends_a_download() -> None:
    async with served() as (one, client):
        path, own = await started(one, client)
        with (own / "huge").open("wb") as file:
            file.truncate(1 << 40)
        for leave in ("disconnect", "fails"):
            async with exchanging(one.app, "GET", f"{path}/huge") as exchange:
                while len(exchange.raw) < 1_000_000:
                    await asyncio_turn()
                if leave == "disconnect":
                    exchange.disconnect()
                else:
                    exchange.fails = OSError("gone")
            assert not exchange.complete


@pytest.mark.anyio
async def test_a_file_that_becomes_shorter_is_not_taken_for_whole() -> None:
    async with served() as (one, client):
        path, own = await started(one, client)
        with (own / "shrinks").open("wb") as file:
            file.truncate(1 << 40)
        async with exchanging(one.app, "GET", f"{path}/shrinks") as exchange:
            while len(exchange.raw) < 1_000_000:
                await asyncio_turn()
            os.truncate(own / "shrinks", 10)
            while one.app.open_requests:
                await asyncio_turn()
            assert not exchange.complete


async def asyncio_turn() -> None:
    await asyncio.sleep(0.005)
