"""Where settings come from: options, environment variables, a TOML file, in this order.

The first that gives a field decides it, whole: lists and tables of two sources are not joined. What
none of them gives has its default; for `port`, the variable `PORT` comes before that. Nothing is
ignored: a name that nobody knows is refused, with the one that may have been meant.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from session_http.configuration import CONTRADICTION, PREFIX, ServerSettings
from session_http.options import Setting, settings
from session_http.values import SECRET

CONFIG_VARIABLE = f"{PREFIX}CONFIG"
"""Names the file, where the option `--config` does not."""

PORT_VARIABLE = "PORT"
"""Where hosting platforms say which port they want."""

_NOT_OURS = frozenset(
    {
        f"{PREFIX}MARKER",  # what a session's shell has, from which a server may be started too
        f"{PREFIX}TEST_RUN",
    }
)

_PATHS = ("tls_cert", "tls_key", "keys", "mcp_config", "workspace", "cwd_root", "state_dir")
_PATH_LISTS = ("extra_dirs", "hidden_dirs")


class ConfigurationError(Exception):
    """Settings that make no sense.

    Attributes:
        problems: What is wrong: each a sentence that names where it comes from.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Settings, and where each of them comes from.

    Attributes:
        settings: The settings.
        origins: Where a field was given, for people; a field that is missing has its default.
        file: The file that was read; None: none.
    """

    settings: ServerSettings
    origins: Mapping[str, str]
    file: Path | None = None

    def named(self, field: str) -> str:
        """Return how to call a field in a message: as it was given, or as its option."""
        return _named(field, self.origins)


def load(options: Mapping[str, object], *, config: Path | None = None) -> Configuration:
    """Read all sources.

    Args:
        options: What was given on the command line, by field.
        config: The file that was named there; None: the environment may name one.

    Raises:
        ConfigurationError: A file cannot be read, a name is unknown, a value makes no sense, or
            two contradict each other.
    """
    file = config if config is not None else _named_file()
    known = settings()
    toml = _TomlFile(file)
    unknown = [*_unknown_variables(known), *toml.unknown(known)]
    if unknown:
        raise ConfigurationError(*unknown)
    environment = EnvSettingsSource(ServerSettings, env_prefix=PREFIX, env_ignore_empty=True)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    layers: tuple[tuple[Mapping[str, Any], Callable[[Setting], str]], ...] = (
        (options, lambda one: one.flag),
        (environment(), lambda one: one.variable),
        (toml(), lambda one: f"{one.name} in {file}"),
        (_port_variable(), lambda _: PORT_VARIABLE),
    )
    for given, origin in layers:
        for name, value in given.items():
            if name not in values:
                values[name], origins[name] = value, origin(known[name])
    try:
        made = ServerSettings(**values)
    except ValidationError as error:
        raise ConfigurationError(*_problems(error, known, origins)) from None
    return Configuration(settings=made, origins=origins, file=file)


# -- the sources ---------------------------------------------------------------------------------


class _TomlFile(TomlConfigSettingsSource):
    """The file, with its paths relative to where it lies."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        try:
            if file is not None:
                with file.open("rb"):  # what is not there, the library passes over
                    pass
            super().__init__(ServerSettings, toml_file=file)
        except OSError as error:
            raise ConfigurationError(
                f"The configuration file {file} cannot be read: {error.strerror}."
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{file} is not TOML: {error}.") from error

    def unknown(self, known: Mapping[str, Setting]) -> list[str]:
        allowed = {name for name, one in known.items() if one.flag}
        found = [name for name in self.toml_data if name not in allowed]
        return [
            f"{name} in {self._file}: there is no such key{meant(name.replace('-', '_'), allowed)}"
            if name not in known
            else f"{name} in {self._file}: it is only taken from {known[name].variable}."
            for name in found
        ]

    def __call__(self) -> dict[str, Any]:
        values = dict(super().__call__())
        for name in _PATHS:
            if name in values:
                values[name] = self._beside(values[name])
        for name in _PATH_LISTS:
            if isinstance(values.get(name), list):
                values[name] = [self._beside(one) for one in cast("list[object]", values[name])]
        return values

    def _beside(self, value: object) -> object:
        if self._file is None or not isinstance(value, str) or not value:
            return value
        return os.path.join(self._file.absolute().parent, os.path.expanduser(value))


def _named_file() -> Path | None:
    given = os.environ.get(CONFIG_VARIABLE, "")
    return Path(given) if given else None


def _port_variable() -> dict[str, str]:
    given = os.environ.get(PORT_VARIABLE, "")
    return {"port": given} if given else {}


def _unknown_variables(known: Mapping[str, Setting]) -> list[str]:
    variables = {one.variable for one in known.values()} | {CONFIG_VARIABLE}
    return [
        f"{name}: there is no such variable{meant(name.upper(), variables)}"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX) and name not in variables | _NOT_OURS
    ]


# -- what is wrong -------------------------------------------------------------------------------


def meant(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: which one may have been meant."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else "."


def _problems(
    error: ValidationError, known: Mapping[str, Setting], origins: Mapping[str, str]
) -> list[str]:
    problems: list[str] = []
    for one in error.errors(include_url=False):
        context = one.get("ctx", {})
        if one["type"] == CONTRADICTION:
            problems.append(_contradiction(context, origins))
            continue
        name = str(one["loc"][0])
        where = _named(name, origins)
        if one["type"] == SECRET or not known[name].flag:
            problems.append(f"{where}: {one['msg']}.")
        elif isinstance(reason := context.get("error"), ValueError):
            problems.append(f"{where}: {reason}.")
        elif len(one["loc"]) > 1:  # something in a list or table
            problems.append(f"{where}: {one['input']!r}: {_begun_small(one['msg'])}.")
        else:
            problems.append(f"{where}: {one['input']!r} is not {known[name].expects}.")
    return list(dict.fromkeys(problems))


def _begun_small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _contradiction(context: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    names = {name: _named(name, origins) for name in context if name != "template"}
    return f"{str(context['template']).format_map(names)}."


def _named(name: str, origins: Mapping[str, str]) -> str:
    one = settings()[name]
    return origins.get(name) or one.flag or one.variable
