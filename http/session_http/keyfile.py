"""API keys as an operator keeps them: a TOML file, or the same text in the environment.

A key is `ssk_<id>_<secret>`. Its id is no secret: it finds the entry, and names the key in logs.
What is kept is the SHA-256 of the whole key. A slow hash, as for passwords, would protect nothing:
the secret is 256 random bits, which nobody can try out, however fast the hash; and it would be paid
for with every request.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from session_http import replacing

logger = logging.getLogger(__name__)

Role: TypeAlias = Literal["user", "admin"]
"""`user` has sessions of its own; `admin` sees, interrupts and closes everybody's."""

MOST_PER_MINUTE = 100_000
"""Highest limit of requests per minute: each request of the last minute takes some memory."""

FIRST_OWNER = "admin"
FIRST_KEY_FILE = "first-key"
"""Whose the key is that a first start makes, and the file beside the key file that holds it."""

_TOKEN = re.compile(r"ssk_([A-Za-z0-9-]{1,32})_[A-Za-z0-9_-]{43}")
_KEY_ID = re.compile(r"[A-Za-z0-9-]{1,32}")
_OWNER = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")

_HEADER = """\
# API keys of session-supervisor. `session-supervisor keys new --owner NAME --keys FILE` adds one.
# Send the server SIGHUP after a change. To revoke a key, remove its entry.
"""


class KeyFileError(ValueError):
    """Keys cannot be used; the message says which file, entry and field, and why."""


def _key_id(text: str) -> str:
    if not _KEY_ID.fullmatch(text):
        raise ValueError("must be 1 to 32 letters, digits and hyphens")
    return text


def check_owner(text: str) -> str:
    """Return the name of an owner, which can also name a directory.

    Raises:
        ValueError: It cannot.
    """
    if not _OWNER.fullmatch(text) or ".." in text:
        raise ValueError(
            "must be 1 to 64 small letters, digits and any of . _ - between them, without '..'"
        )
    return text


def _hash(text: str) -> str:
    if not _HASH.fullmatch(text):
        raise ValueError("must be `sha256:` and 64 hexadecimal digits")
    return text


def _roles(roles: tuple[Role, ...]) -> tuple[Role, ...]:
    if len(set(roles)) != len(roles):
        raise ValueError("names a role twice")
    return roles


def _number(value: object) -> object:
    # In TOML, 5 is no 5.0.
    return float(value) if type(value) is int else value


Count: TypeAlias = Annotated[int, Field(ge=0)]


class Key(BaseModel):
    """One entry: a key, less its secret.

    Attributes:
        id: The part of the key that is no secret.
        owner: Whose sessions it is for.
        hash: `sha256:` and the hash of the whole key, hexadecimal.
        roles: What it is for.
        max_sessions: Most conversations of its owner; None: no limit of its own.
        max_turns: Most turns of its owner that have not ended.
        budget_usd: Most that all turns of its owner may ever cost, in US dollars.
        requests_per_minute: Most requests with this key in any 60 seconds.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Annotated[str, AfterValidator(_key_id)]
    owner: Annotated[str, AfterValidator(check_owner)]
    hash: Annotated[str, AfterValidator(_hash), Field(repr=False)]
    # TOML has lists only.
    roles: Annotated[
        tuple[Role, ...], Field(strict=False, min_length=1), AfterValidator(_roles)
    ] = ("user",)
    max_sessions: Count | None = None
    max_turns: Count | None = None
    budget_usd: (
        Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)] | None
    ) = None
    requests_per_minute: Annotated[int, Field(ge=1, le=MOST_PER_MINUTE)] | None = None

    @property
    def digest(self) -> bytes:
        """The hash, as bytes."""
        return bytes.fromhex(self.hash.removeprefix("sha256:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that was just made; the only time that anybody sees it.

    Attributes:
        token: The key itself.
        key: Its entry.
    """

    token: str = field(repr=False)
    key: Key


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstKey:
    """What a first start has made.

    Attributes:
        keys: The key file.
        secret: The file that holds the key itself; to be deleted once it was read.
    """

    keys: Path
    secret: Path


def id_of(token: str) -> str | None:
    """Return the id in a key; None if it is not of the form of one."""
    found = _TOKEN.fullmatch(token)
    return None if found is None else found[1]


def digest_of(token: str) -> bytes:
    """Return the hash of a key."""
    return hashlib.sha256(token.encode()).digest()


# -- reading ---------------------------------------------------------------------------------


def parse(text: str, *, source: str) -> tuple[Key, ...]:
    """Return the keys of a text in TOML.

    Args:
        text: What to read.
        source: Where it is from, for messages.

    Raises:
        KeyFileError: It cannot be used.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise KeyFileError(f"{source}: not TOML: {error}.") from error
    entries = tables.pop("keys", [])
    if tables:
        unknown = ", ".join(sorted(tables))
        raise KeyFileError(f"{source}: unknown: {unknown}. There are only [[keys]] entries.")
    if not isinstance(entries, list):
        raise KeyFileError(f"{source}: `keys` must be [[keys]] entries, one for each key.")
    keys = tuple(
        _entry(entry, f"{source}: key {number}{_named(entry)}")
        for number, entry in enumerate(cast(list[object], entries), 1)
    )
    refuse_duplicates(keys, source=source)
    return keys


def load(path: Path) -> tuple[Key, ...]:
    """Return the keys of a file; warn if others than its owner may read or change it.

    Raises:
        KeyFileError: It cannot be read, or cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError as error:
        raise KeyFileError(
            f"{path}: the keys cannot be read: {error.strerror}. `session-supervisor keys new "
            f"--owner NAME --keys {path}` makes the file."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: the keys cannot be read: {_why(error)}.") from error
    if mode & 0o077:
        logger.warning(
            "%s has the mode %04o, so others may read or change the keys; chmod 600 it.", path, mode
        )
    return parse(text, source=str(path))


def _why(error: OSError | UnicodeDecodeError) -> str | None:
    return error.strerror if isinstance(error, OSError) else "it is not UTF-8"


def refuse_duplicates(keys: Iterable[Key], *, source: str) -> None:
    """Refuse keys of which two are the same.

    Raises:
        KeyFileError: Two have the same id, or the same hash.
    """
    ids: set[str] = set()
    hashes: dict[str, str] = {}
    for key in keys:
        if key.id in ids:
            raise KeyFileError(f"{source}: there are two keys with the id {key.id!r}.")
        if key.hash in hashes:
            raise KeyFileError(
                f"{source}: the keys {hashes[key.hash]!r} and {key.id!r} have the same hash."
            )
        ids.add(key.id)
        hashes[key.hash] = key.id


def _entry(entry: object, where: str) -> Key:
    try:
        return Key.model_validate(entry)
    except ValidationError as error:
        found = "; ".join(map(_mistake, error.errors(include_url=False)))
        # Not `from error`: a traceback with its input would show the hash.
        raise KeyFileError(f"{where}: {found}.") from None


def _named(entry: object) -> str:
    key_id = cast(dict[str, object], entry).get("id") if isinstance(entry, dict) else None
    return f" ({key_id!r})" if isinstance(key_id, str) else ""


def _mistake(error: ErrorDetails) -> str:
    field_name = ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "extra_forbidden":
            message = f"unknown; there are: {', '.join(Key.model_fields)}"
        case "missing":
            message = "is required"
        case "value_error":
            message = str(error.get("ctx", {}).get("error", error["msg"]))
        case _:
            message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{field_name}: {message}" if field_name else message


# -- making ----------------------------------------------------------------------------------


def new_key(
    owner: str,
    *,
    roles: tuple[Role, ...] = ("user",),
    max_sessions: int | None = None,
    max_turns: int | None = None,
    budget_usd: float | None = None,
    requests_per_minute: int | None = None,
) -> NewKey:
    """Make a key.

    Args:
        owner: Whose sessions it is for.
        roles: What it is for.
        max_sessions: Most conversations of its owner; None: no limit of its own.
        max_turns: Most turns of its owner that have not ended.
        budget_usd: Most that all turns of its owner may ever cost, in US dollars.
        requests_per_minute: Most requests with it in any 60 seconds.

    Raises:
        KeyFileError: A value cannot be used.
    """
    key_id = secrets.token_hex(6)
    token = f"ssk_{key_id}_{secrets.token_urlsafe(32)}"
    entry = {
        "id": key_id,
        "owner": owner,
        "hash": f"sha256:{digest_of(token).hex()}",
        "roles": roles,
        "max_sessions": max_sessions,
        "max_turns": max_turns,
        "budget_usd": budget_usd,
        "requests_per_minute": requests_per_minute,
    }
    return NewKey(token=token, key=_entry(entry, "the new key"))


def render(key: Key) -> str:
    """Return an entry as it stands in the file."""
    lines = ["[[keys]]"]
    for name, value in key.model_dump(mode="json", exclude_none=True).items():
        lines.append(f"{name} = {json.dumps(value)}")  # of these values, TOML is JSON
    return "\n".join(lines) + "\n"


def append(path: Path, key: Key) -> None:
    """Add an entry to a file, which is made if there is none; comments stay.

    A reader sees the file as it was or as it is, and two at once lose nothing. A file that was
    there keeps its owner and mode; a new one is for its owner alone.

    Raises:
        KeyFileError: What the file holds cannot be used, or the file cannot be written.
    """
    path = path.resolve()
    try:
        with replacing.locked(path.parent):
            old = path.read_text(encoding="utf-8") if path.exists() else _HEADER
            text = f"{old.rstrip()}\n\n{render(key)}"
            parse(text, source=str(path))
            replacing.replace(path, text)
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: the key cannot be added: {_why(error)}.") from error


def make_first(path: Path) -> FirstKey | None:
    """Make a key file with one key, for whoever starts the server for the first time.

    The key, of the owner `admin` with both roles, is written to a file beside it, which only the
    server's user can read.

    Returns:
        What was made; None if there was a key file.

    Raises:
        KeyFileError: The files cannot be written.
    """
    secret = path.with_name(FIRST_KEY_FILE)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing.locked(path.parent):
            if path.exists():
                return None
            made = new_key(FIRST_OWNER, roles=("user", "admin"))
            # First the secret: a start that is cut short here is repeated, not left without one.
            replacing.replace(secret, f"{made.token}\n", private=True)
            replacing.replace(path, f"{_HEADER}\n{render(made.key)}")
    except OSError as error:
        raise KeyFileError(f"{path}: a first key cannot be made: {error.strerror}.") from error
    return FirstKey(keys=path, secret=secret)
