"""The kinds of values that settings have: how each is read from text, and what it must be.

Options and environment variables give text, the TOML file gives values of its own types; both end
here. Every kind says in `Expects` what it wants, for the error that says that it did not get it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, cast

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, StringConstraints
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

SECRET = "secret"
"""Type of the error about a value that must not be quoted."""


@dataclass(frozen=True, slots=True)
class Expects:
    """What a value must be, for the error that says that it is not."""

    words: str


def _no_bool(value: object) -> object:
    if isinstance(value, bool):  # which would count as 0 or 1
        raise ValueError("a number is wanted, not true or false")
    return value


def _or_none(value: object) -> object:
    return None if value == "none" else value


def _items(value: object) -> object:
    """Read a list from one string: with commas between, or as JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _json(value, "an array")
    return [item for part in value.split(",") if (item := part.strip())]


def _pairs(value: object) -> object:
    """Read a table from one string, as `A=B,C=D` or JSON, or from several such pairs."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return _json(value, "an object")
    found = _items(value)
    if not isinstance(found, (list, tuple)):
        return found
    table: dict[str, str] = {}
    for pair in cast("Sequence[object]", found):
        name, _, target = (part.strip() for part in str(pair).partition("="))
        if not name or not target:
            raise ValueError(f"{pair!r} is not of the form NAME=MODEL")
        table[name] = target
    return table


def _json(text: str, kind: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"begins like {kind} in JSON, but is none ({error})") from None


def _path(value: object) -> object:
    if isinstance(value, (str, os.PathLike)):
        given = os.fspath(cast("str | os.PathLike[str]", value))
        if not given or "\0" in given:
            raise ValueError(f"{given!r} is not a path")
        return Path(os.path.abspath(os.path.expanduser(given)))
    return value


def _no_keys(value: object) -> object:
    if isinstance(value, str) and _KEYS.search(value):
        # Not quoted, because it is what nobody may see.
        raise PydanticCustomError(
            SECRET,
            "it holds keys, and should name the file that does; keys themselves go to api_keys",
        )
    if isinstance(value, list):  # as it stands in a key file
        raise PydanticCustomError(SECRET, "it should be the path of a key file, not the keys")
    return value


_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_ORIGIN = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?|\*")
_KEYS = re.compile(r"\n|\[\[keys\]\]|sha256:|ssk_[A-Za-z0-9-]+_")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?|\*")


def _host_name(text: str) -> str:
    if not (_HOST_NAME.fullmatch(text) or _is_ipv6(text)):
        raise ValueError(
            f"{text!r} is not a host name; give it alone, without scheme, port and brackets"
        )
    return text.lower()


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise ValueError(
            f"{text!r} is not an origin such as https://app.example:8443, without a path, or *"
        )
    # As browsers write it.
    origin = text.lower()
    return origin.removesuffix(":443" if origin.startswith("https:") else ":80")


def _variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError(
            f"{text!r} is neither the name of a variable nor the beginning of one with a * behind"
        )
    return text


_Number = BeforeValidator(_no_bool)
OrNone = BeforeValidator(_or_none)
"""Lets the word `none` stand for no value, where leaving it out means something else."""

Text: TypeAlias = Annotated[str, MinLen(1), Expects("a text that is not empty")]
Port: TypeAlias = Annotated[int, _Number, Ge(0), Le(65_535), Expects("a port, 0 to 65535")]
Count: TypeAlias = Annotated[int, _Number, Ge(1), Expects("a whole number of at least 1")]
Niceness: TypeAlias = Annotated[int, _Number, Ge(0), Le(19), Expects("a whole number from 0 to 19")]
Bytes: TypeAlias = Annotated[
    ByteSize, _Number, Ge(1), Expects("a number of bytes, such as 1000000 or 10MiB")
]
Seconds: TypeAlias = Annotated[
    float,
    _Number,
    Gt(0),
    Field(allow_inf_nan=False),
    Expects("a number of seconds greater than 0"),
]
SecondsOrNone: TypeAlias = Annotated[
    Seconds | None, OrNone, Expects('a number of seconds greater than 0, or "none"')
]
Wait: TypeAlias = Annotated[
    float, _Number, Ge(0), Field(allow_inf_nan=False), Expects("a number of seconds")
]
PathTo: TypeAlias = Annotated[Path, BeforeValidator(_path), Expects("a path")]
Switch: TypeAlias = Annotated[bool, Expects("true or false")]

_List = (NoDecode, BeforeValidator(_items), Expects("a list of texts"))
Texts: TypeAlias = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)], ...], *_List
]
HostNames: TypeAlias = Annotated[tuple[Annotated[str, AfterValidator(_host_name)], ...], *_List]
Origins: TypeAlias = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], *_List]
Variables: TypeAlias = Annotated[tuple[Annotated[str, AfterValidator(_variable)], ...], *_List]
PathsTo: TypeAlias = Annotated[tuple[PathTo, ...], *_List]
Aliases: TypeAlias = Annotated[
    dict[str, str],
    NoDecode,
    BeforeValidator(_pairs),
    Expects("a table of names and models"),
]
OpenPaths: TypeAlias = Annotated[
    tuple[Literal["health", "docs"], ...],
    NoDecode,
    BeforeValidator(_items),
    Expects("a list of `health` and `docs`"),
]
KeyFile: TypeAlias = Annotated[PathTo, BeforeValidator(_no_keys)]
StoreKind: TypeAlias = Annotated[Literal["sqlite", "memory"], Expects("sqlite or memory")]
OnPermission: TypeAlias = Annotated[Literal["ask", "deny"], Expects("ask or deny")]
LogLevel: TypeAlias = Annotated[
    Literal["debug", "info", "warning", "error"], Expects("debug, info, warning or error")
]
LogFormat: TypeAlias = Annotated[
    Literal["auto", "console", "json"], Expects("auto, console or json")
]
