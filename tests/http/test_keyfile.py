"""Key files: what is refused and how it is said, and that adding a key loses nothing."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from session_http import keyfile
from session_http.keyfile import KeyFileError, append, load, make_first, new_key, parse

HASH = f"sha256:{'ab' * 32}"


def entry(**fields: object) -> str:
    values = {"id": "k1", "owner": "ann", "hash": HASH, **fields}
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    return "\n".join(["[[keys]]", *lines, ""])


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def test_an_entry_may_say_everything_or_the_least() -> None:
    full = entry(
        roles=["user", "admin"], max_sessions=0, max_turns=2, requests_per_minute=30, id="full"
    )
    least, whole = parse(entry() + full.replace("ab", "cd"), source="keys.toml")
    assert (least.owner, least.roles, least.max_sessions) == ("ann", ("user",), None)
    assert (whole.roles, whole.max_sessions, whole.max_turns) == (("user", "admin"), 0, 2)
    assert whole.requests_per_minute == 30
    assert parse("", source="keys.toml") == ()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("keys = [", ("keys.toml", "TOML")),
        ("[[key]]\n", ("keys.toml", "unknown: key")),
        ("keys = 1\n", ("keys.toml", "[[keys]]")),
        ("keys = [1]\n", ("keys.toml: key 1",)),
        (entry(limit=3), ("keys.toml: key 1 ('k1')", "limit: unknown", "max_sessions")),
        (entry(owner=None), ("key 1 ('k1')", "owner: is required")),
        (entry(hash=None), ("hash: is required",)),
        (entry(id=None), ("keys.toml: key 1:", "id: is required")),
        (entry(id="a_b"), ("id: must be",)),
        (entry(id=""), ("id: must be",)),
        (entry(owner="Ann"), ("owner: must be",)),
        (entry(owner="../etc"), ("owner: must be",)),
        (entry(owner="a..b"), ("owner: must be",)),
        (entry(owner="a" * 65), ("owner: must be",)),
        (entry(owner="ann\n"), ("owner: must be",)),
        (entry(hash="sha256:abc"), ("hash: must be",)),
        (entry(hash="md5:" + "a" * 64), ("hash: must be",)),
        (entry(roles=[]), ("roles",)),
        (entry(roles=["root"]), ("roles.0",)),
        (entry(roles="user"), ("roles",)),
        (entry(roles=["user", "user"]), ("roles: names a role twice",)),
        (entry(max_sessions=-1), ("max_sessions",)),
        (entry(max_sessions="3"), ("max_sessions",)),
        (entry(max_turns=True), ("max_turns",)),
        (entry(max_turns=1.5), ("max_turns",)),
        (entry(requests_per_minute=0), ("requests_per_minute",)),
        (entry(requests_per_minute=10**9), ("requests_per_minute",)),
        (entry() + entry(), ("keys.toml", "two keys", "'k1'")),
        (entry() + entry(id="k2"), ("keys.toml", "'k1' and 'k2'", "same hash")),
    ],
)
def test_a_mistake_is_named_with_its_file_entry_and_field(
    text: str, names: tuple[str, ...]
) -> None:
    with pytest.raises(KeyFileError) as caught:
        parse(text, source="keys.toml")
    for name in names:
        assert name in str(caught.value)


def test_no_message_holds_a_hash() -> None:
    for text in (entry(owner="Ann"), entry(limit=1), entry(hash=f"{HASH}cc")):
        with pytest.raises(KeyFileError) as caught:
            parse(text, source="keys.toml")
        assert "abab" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_a_file_that_cannot_be_read_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"keys\.toml: .*keys new"):
        load(tmp_path / "keys.toml")
    (tmp_path / "keys.toml").write_bytes(b"\xff")
    for path, why in ((tmp_path / "keys.toml", "UTF-8"), (tmp_path, "directory")):
        with pytest.raises(KeyFileError, match=why) as caught:
            load(path)
        # It is there, and nothing could make it.
        assert "keys new" not in str(caught.value)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True)])
def test_a_file_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry())
    file.chmod(mode)
    with caplog.at_level(logging.WARNING):
        load(file)
    assert ("chmod 600" in caplog.text) is warned


# -- making ----------------------------------------------------------------------------------


def test_a_new_key_is_found_again_by_its_id_and_its_hash() -> None:
    made = new_key("ann", roles=("admin",), max_turns=3)
    assert keyfile.id_of(made.token) == made.key.id
    assert keyfile.digest_of(made.token) == made.key.digest
    assert (made.key.owner, made.key.roles, made.key.max_turns) == ("ann", ("admin",), 3)
    assert len({new_key("ann").token for _ in range(100)}) == 100


def test_a_key_shows_in_no_repr() -> None:
    made = new_key("ann")
    secret = made.token.rpartition("_")[2][:20]
    for text in (repr(made), str(made), repr(made.key), f"{made.key}"):
        assert secret not in text
        assert made.key.hash[10:] not in text


def test_a_key_for_nobody_cannot_be_made() -> None:
    with pytest.raises(KeyFileError, match="owner"):
        new_key("No One")
    with pytest.raises(KeyFileError, match="requests_per_minute"):
        new_key("ann", requests_per_minute=0)


def test_an_entry_reads_as_it_was_written() -> None:
    key = new_key("a.n-n_2", roles=("user", "admin"), max_sessions=1, requests_per_minute=9).key
    assert parse(keyfile.render(key), source="x") == (key,)


def test_a_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    first, second = new_key("ann").key, new_key("bob").key
    append(file, first)
    append(file, second)
    assert load(file) == (first, second)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["keys.toml"]


def test_adding_keeps_comments_mode_and_link(tmp_path: Path) -> None:
    real, file = tmp_path / "real.toml", tmp_path / "keys.toml"
    real.write_text(f"# Ann's laptop, 2026\n{entry()}# the end")
    real.chmod(0o640)
    file.symlink_to(real)
    append(file, new_key("bob").key)
    assert file.is_symlink()
    text = real.read_text()
    assert text.startswith("# Ann's laptop, 2026\n[[keys]]")
    assert "# the end" in text
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert [key.owner for key in load(file)] == ["ann", "bob"]


def test_nothing_is_added_to_a_file_that_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("[[keys]]\nowner = ")
    with pytest.raises(KeyFileError):
        append(file, new_key("ann").key)
    assert file.read_text() == "[[keys]]\nowner = "
    file.write_bytes(b"\xff")
    with pytest.raises(KeyFileError, match="UTF-8"):
        append(file, new_key("ann").key)
    assert file.read_bytes() == b"\xff"
    with pytest.raises(KeyFileError, match="cannot be added"):
        append(tmp_path / "missing" / "keys.toml", new_key("ann").key)


def test_a_file_that_cannot_be_replaced_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry())

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        append(file, new_key("bob").key)
    assert file.read_text() == entry()
    assert [one.name for one in tmp_path.iterdir()] == ["keys.toml"]


ADD = """
import sys
from pathlib import Path
from session_http.keyfile import append, new_key
for _ in range(10):
    append(Path(sys.argv[1]), new_key(sys.argv[2]).key)
"""


def test_several_programs_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    adding = [
        subprocess.Popen([sys.executable, "-c", ADD, str(file), f"owner{number}"])
        for number in range(4)
    ]
    assert [one.wait(100) for one in adding] == [0] * 4
    keys = load(file)
    assert len(keys) == 40
    assert len({key.owner for key in keys}) == 4


def test_a_first_start_makes_a_key_and_says_where(tmp_path: Path) -> None:
    file = tmp_path / "state" / "keys.toml"
    made = make_first(file)
    assert made is not None
    assert made.keys == file
    (key,) = load(file)
    assert (key.owner, key.roles) == ("admin", ("user", "admin"))
    assert keyfile.digest_of(made.secret.read_text().strip()) == key.digest
    for one in (file, made.secret):
        assert stat.S_IMODE(one.stat().st_mode) == 0o600
    assert make_first(file) is None
    assert load(file) == (key,)


def test_a_first_start_that_was_cut_short_is_repeated(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    (tmp_path / keyfile.FIRST_KEY_FILE).write_text("left over")
    (tmp_path / keyfile.FIRST_KEY_FILE).chmod(0o644)
    made = make_first(file)
    assert made is not None
    assert stat.S_IMODE(made.secret.stat().st_mode) == 0o600
    assert keyfile.digest_of(made.secret.read_text().strip()) == load(file)[0].digest


def test_a_first_key_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="first key"):
        make_first(tmp_path / "file" / "keys.toml")
