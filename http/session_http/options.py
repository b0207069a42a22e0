"""Settings in words: option, variable and meaning of each, for help, errors and documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, cast, get_args

from pydantic import ByteSize

from session_http.configuration import PREFIX, About, ServerSettings
from session_http.values import Expects, OrNone


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field, in the words of help and documentation.

    Attributes:
        name: The field, which is also its key in the file.
        flag: Its option; empty if it has none.
        variable: Its environment variable.
        about: Group, metavar and the like.
        expects: What a value must be; empty where there is no more to say than its type.
        description: What it means.
        default: Its default, for people.
        value: The default itself.
        repeatable: Whether the option may be given several times.
        takes_none: Whether the word `none` stands for no value.
    """

    name: str
    flag: str
    variable: str
    about: About
    expects: str
    description: str
    default: str
    value: Any
    repeatable: bool
    takes_none: bool

    @property
    def is_switch(self) -> bool:
        """Whether the option takes no value."""
        return not self.about.metavar

    @property
    def help(self) -> str:
        """What the option's help says."""
        notes = ["repeatable"] if self.repeatable else []
        if self.default not in ("none", "off"):
            notes.append(f"default: {self.default}")
        return f"{self.description} ({'; '.join(notes)})" if notes else self.description

    @property
    def opposite(self) -> str:
        """The option that turns a switch off; for one that says `no`, the one without it."""
        return f"--{self.flag[5:]}" if self.flag.startswith("--no-") else f"--no-{self.flag[2:]}"


@cache
def settings() -> Mapping[str, Setting]:
    """Return every field, by name, in the order of the model."""
    return MappingProxyType({name: _setting(name) for name in ServerSettings.model_fields})


def _setting(name: str) -> Setting:
    field = ServerSettings.model_fields[name]
    (about,) = (one for one in field.metadata if isinstance(one, About))
    kinds = [*_metadata(*field.metadata), *_metadata(field.annotation)]
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    repeatable = isinstance(value, (tuple, dict))
    flag = about.flag
    if flag is None:
        flag = f"--{_singular(name) if repeatable else name}".replace("_", "-")
    return Setting(
        name=name,
        flag=flag,
        variable=f"{PREFIX}{name.upper()}",
        about=about,
        expects=next((one.words for one in kinds if isinstance(one, Expects)), ""),
        description=field.description or "",
        default=about.default or _shown(value),
        value=value,
        repeatable=repeatable,
        takes_none=OrNone in kinds,
    )


def _metadata(*found: Any) -> Iterator[Any]:
    """Yield what annotations say besides types, also where a value may be left out."""
    for one in found:
        yield one
        yield from _metadata(*get_args(one))


def _singular(name: str) -> str:
    return name.removesuffix("es") if name.endswith("aliases") else name.removesuffix("s")


def _shown(value: object) -> str:
    match value:
        case None | () | {}:
            return "none"
        case bool():
            return "on" if value else "off"
        case tuple():
            return ", ".join(map(str, cast("tuple[object, ...]", value)))
        case ByteSize() if value % 2**20 == 0:
            return f"{value // 2**20}MiB"
        case float():
            return f"{value:g}"
        case _:
            return str(value)
