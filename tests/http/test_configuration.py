"""Settings: which source counts, what is refused and how, and what is never shown."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from session_http.configuration import GROUPS, ServerSettings
from session_http.options import Setting, settings
from session_http.sources import Configuration, ConfigurationError, load
from session_http.toml import effective

SECRET = '[[keys]]\nid = "x"\nhash = "sha256:CANARY"'


@contextmanager
def environment(variables: Mapping[str, str]) -> Generator[None]:
    """Have these variables and none else, also where a fixture would live too long."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({"HOME": before.get("HOME", "/"), **variables})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def loaded(
    tmp_path: Path,
    options: Mapping[str, object] | None = None,
    variables: Mapping[str, str] | None = None,
    file: str | None = None,
) -> Configuration:
    config = None
    if file is not None:
        config = tmp_path / "server.toml"
        config.write_text(file)
    with environment(variables or {}):
        return load(options or {}, config=config)


def refused(
    tmp_path: Path,
    options: Mapping[str, object] | None = None,
    variables: Mapping[str, str] | None = None,
    file: str | None = None,
) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, options, variables, file)
    return caught.value.problems


def variable(name: str) -> str:
    return f"SESSION_SUPERVISOR_{name.upper()}"


# Which source counts

COUNTS = ("max_sessions", "max_live", "max_queued", "port")
SOURCES = ("option", "variable", "file", "PORT")


@st.composite
def givens(draw: st.DrawFn) -> dict[str, dict[str, int]]:
    """For each source, what it gives to which field."""
    found: dict[str, dict[str, int]] = {}
    for source in SOURCES:
        names = ("port",) if source == "PORT" else COUNTS
        found[source] = draw(st.dictionaries(st.sampled_from(names), st.integers(1, 60_000)))
    return found


@given(givens())
def test_the_first_source_that_gives_a_setting_decides_it(
    tmp_path_factory: pytest.TempPathFactory, given: dict[str, dict[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("precedence")
    variables = {variable(name): str(value) for name, value in given["variable"].items()}
    if "port" in given["PORT"]:
        variables["PORT"] = str(given["PORT"]["port"])
    configuration = loaded(
        folder,
        {name: str(value) for name, value in given["option"].items()},
        variables,
        "".join(f"{name} = {value}\n" for name, value in given["file"].items()),
    )
    defaults = ServerSettings()
    for name in COUNTS:
        first = next((source for source in SOURCES if name in given[source]), None)
        expected = getattr(defaults, name) if first is None else given[first][name]
        assert getattr(configuration.settings, name) == expected
        assert configuration.origins.get(name) == {
            None: None,
            "option": settings()[name].flag,
            "variable": variable(name),
            "file": f"{name} in {folder / 'server.toml'}",
            "PORT": "PORT",
        }.get(first)


def test_a_list_or_table_replaces_that_of_another_source(tmp_path: Path) -> None:
    file = 'extra_tools = ["A", "B"]\nmodel_aliases = { a = "b", c = "d" }\n'
    configuration = loaded(
        tmp_path, {"extra_tools": ["C"]}, {variable("model_aliases"): "e=f"}, file
    )
    assert configuration.settings.extra_tools == ("C",)
    assert configuration.settings.model_aliases == {"e": "f"}


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    configuration = loaded(
        tmp_path, {}, {variable("host"): "", "PORT": "", variable("config"): ""}, 'host = "::1"'
    )
    assert configuration.settings.host == "::1"
    assert configuration.settings.port == 3000


def test_a_switch_can_be_turned_off_by_what_counts_more(tmp_path: Path) -> None:
    configuration = loaded(
        tmp_path, {"http2": True}, {variable("offline"): "off"}, "offline = true\nhttp2 = false"
    )
    assert configuration.settings.offline is False
    assert configuration.settings.http2 is True


def test_the_environment_may_name_the_file_and_the_option_wins(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("max_live = 1")
    (tmp_path / "b.toml").write_text("max_live = 2")
    with environment({variable("config"): str(tmp_path / "a.toml")}):
        assert load({}).settings.max_live == 1
        assert load({}, config=tmp_path / "b.toml").settings.max_live == 2


# How values are written


def written(value: object) -> str:
    """Return a value as an option or a variable has it."""
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case _:
            return json.dumps(value)


def an_example(one: Setting) -> Any:
    if one.about.example is not None:
        return one.about.example
    match one.value:
        case bool():
            return not one.value
        case tuple():
            return ["health"]
        case str():
            return {
                "host": "::1",
                "store": "memory",
                "on_permission": "deny",
                "log_level": "error",
                "log_format": "json",
            }[one.name]
        case _:
            return int(one.value) + 1


@pytest.mark.parametrize("name", [name for name, one in settings().items() if one.flag])
def test_every_setting_can_be_given_in_every_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # so that relative paths mean the same
    value = an_example(settings()[name])
    # What another setting must be beside it.
    beside = {"tls_cert": "tls_key", "tls_key": "tls_cert", "make_key": "keys"}
    other = {beside[name]: "x"} if name in beside else {}
    as_option: object = str(value)
    table = json.dumps(value)
    match value:
        case dict():
            pairs = cast("dict[str, str]", value).items()
            as_option = [f"{key}={one}" for key, one in pairs]
            table = "{ " + ", ".join(f'"{key}" = "{one}"' for key, one in pairs) + " }"
        case list() | bool():
            as_option = cast("object", value)
        case _:
            pass
    by_option = loaded(tmp_path, {name: as_option, **other})
    given: dict[str, object] = {name: value, **other}
    by_variable = loaded(tmp_path, {}, {variable(key): written(given[key]) for key in given})
    file = f"{name} = {table}\n" + "".join(f'{key} = "{one}"\n' for key, one in other.items())
    by_file = loaded(tmp_path, {}, {}, file)
    assert by_option.settings == by_variable.settings == by_file.settings
    assert getattr(by_option.settings, name) != getattr(ServerSettings(), name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A,B", ("A", "B")), (" A , B ,", ("A", "B")), ('["A", "B,C"]', ("A", "B,C")), ("[]", ())],
)
def test_a_variable_may_hold_a_list(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    configuration = loaded(tmp_path, {}, {variable("extra_tools"): text})
    assert configuration.settings.extra_tools == expected


@pytest.mark.parametrize("text", ["a=b,c=d", '{"a": "b", "c": "d"}', '["a=b", "c = d"]'])
def test_a_variable_may_hold_a_table(tmp_path: Path, text: str) -> None:
    configuration = loaded(tmp_path, {}, {variable("model_aliases"): text})
    assert configuration.settings.model_aliases == {"a": "b", "c": "d"}


def test_bytes_have_units(tmp_path: Path) -> None:
    configuration = loaded(
        tmp_path, {"max_body": "20MB"}, {variable("keep_turn_bytes"): "3 KiB"}, "keep_event_bytes=9"
    )
    given = configuration.settings
    assert (given.max_body, given.keep_turn_bytes, given.keep_event_bytes) == (20 * 10**6, 3072, 9)


def test_none_is_a_value_where_there_may_be_none(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"turn_timeout": "none"}).settings.turn_timeout is None
    assert loaded(tmp_path, {}, {}, 'turn_timeout = "none"').settings.turn_timeout is None
    assert refused(tmp_path, {"drain_timeout": "none"})


def test_a_path_in_the_file_is_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, conf = tmp_path / "elsewhere", tmp_path / "conf"
    for folder in (elsewhere, conf):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    file = 'workspace = "../w"\nextra_dirs = ["a", "/b", "~/c"]\n'
    (conf / "server.toml").write_text(file)
    with environment({"HOME": str(tmp_path), variable("state_dir"): "s"}):
        given = load({"keys": "k"}, config=Path("../conf/server.toml")).settings
    assert given.workspace == tmp_path / "w"
    assert given.extra_dirs == (conf / "a", Path("/b"), tmp_path / "c")
    assert given.state_dir == elsewhere / "s"
    assert given.keys == elsewhere / "k"


def test_state_is_kept_where_the_system_has_it(tmp_path: Path) -> None:
    with environment({"HOME": str(tmp_path)}):
        assert load({}).settings.state_dir == tmp_path / ".local/state/session-supervisor"
    with environment({"XDG_STATE_HOME": "/var/state"}):
        assert load({}).settings.state_dir == Path("/var/state/session-supervisor")


def test_an_origin_is_as_browsers_write_it(tmp_path: Path) -> None:
    given = ["https://App.example:443", "http://localhost:5173", "http://[::1]:80"]
    configuration = loaded(tmp_path, {"cors_origins": given})
    assert configuration.settings.cors_origins == (
        "https://app.example",
        "http://localhost:5173",
        "http://[::1]",
    )


# What is refused


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("max_lives = 3", "max_lives in FILE: there is no such key; did you mean max_live?"),
        ("max-live = 3", "max-live in FILE: there is no such key; did you mean max_live?"),
        ("Max_Live = 3", "Max_Live in FILE: there is no such key; did you mean max_live?"),
        ("[server]\nport = 1", "server in FILE: there is no such key."),
        ("api_keys = 'x'", f"api_keys in FILE: it is only taken from {variable('api_keys')}."),
        ("max_live = true", "max_live in FILE: a number is wanted, not true or false."),
        ("max_live = 0", "max_live in FILE: 0 is not a whole number of at least 1."),
        ("niceness = -1", "niceness in FILE: -1 is not a whole number from 0 to 19."),
        ("niceness = 20", "niceness in FILE: 20 is not a whole number from 0 to 19."),
        ("port = 65536", "port in FILE: 65536 is not a port, 0 to 65535."),
        ("idle_timeout = inf", "idle_timeout in FILE: inf is not a number of seconds greater"),
        ("host = ''", "host in FILE: '' is not a text that is not empty."),
        ("trusted_hosts = ['a.example', 'fe80::1', '[::1]']", "trusted_hosts in FILE: '[::1]' is"),
        ("host = 3", "host in FILE: 3 is not a text that is not empty."),
        ("offline = 'perhaps'", "offline in FILE: 'perhaps' is not true or false."),
        ("keys = 3", "keys in FILE: 3 is not a path."),
        ("[[keys]]\nid = 'a'", "keys in FILE: it should be the path of a key file, not the keys."),
        ("keys = ''", "keys in FILE: '' is not a path."),
        ("extra_tools = 'a'\nextra_dirs = [3]", "extra_dirs in FILE: 3: input is not a valid path"),
        ("open_paths = ['x']", "open_paths in FILE: 'x': input should be 'health' or 'docs'."),
        ("log_level = 'loud'", "log_level in FILE: 'loud' is not debug, info, warning or error."),
        ("model_aliases = { a = 1 }", "model_aliases in FILE: 1: input should be a valid string."),
        ("cors_origins = ['https://a/b']", "cors_origins in FILE: 'https://a/b' is not an origin"),
        ("env_passthrough = ['A=B']", "env_passthrough in FILE: 'A=B' is neither the name of a"),
        ("trusted_hosts = ['a:1']", "trusted_hosts in FILE: 'a:1' is not a host name;"),
        ("max_body = 'huge'", "max_body in FILE: 'huge' is not a number of bytes, such as"),
    ],
)
def test_the_error_names_the_file_and_key(tmp_path: Path, file: str, said: str) -> None:
    (problem,) = refused(tmp_path, {}, {}, file)
    assert problem.startswith(said.replace("FILE", str(tmp_path / "server.toml")))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SESSION_SUPERVISOR_MAX_LIV", "; did you mean SESSION_SUPERVISOR_MAX_LIVE?"),
        ("session_supervisor_max_live", "; did you mean SESSION_SUPERVISOR_MAX_LIVE?"),
        ("SESSION_SUPERVISOR_EXTRA_TOOL", "; did you mean SESSION_SUPERVISOR_EXTRA_TOOLS?"),
        ("SESSION_SUPERVISOR_ZZZZ_QQQQ_XXXX_YYYY", "."),
    ],
)
def test_a_variable_that_nobody_knows_is_refused(tmp_path: Path, name: str, said: str) -> None:
    assert refused(tmp_path, {}, {name: "CANARY"}) == (f"{name}: there is no such variable{said}",)


def test_the_variables_that_our_processes_have_are_no_settings(tmp_path: Path) -> None:
    variables = {"SESSION_SUPERVISOR_TEST_RUN": "1", "SESSION_SUPERVISOR_MARKER": "1"}
    assert loaded(tmp_path, {}, variables).origins == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tls_cert": "c"}, "--tls-cert needs --tls-key"),
        ({"tls_key": "k"}, "--tls-key needs --tls-cert"),
        ({"no_auth": True, "keys": "k"}, "--no-auth contradicts --keys"),
        ({"make_key": True}, "--make-key needs --keys"),
        ({"cors_origins": ["*"]}, "--cors-origin holds *"),
        ({"extra_tools": ["A", "B"], "forbidden_tools": ["B"]}, "both name B."),
        ({"workspace": "/w", "cwd_root": "/w/x/{owner}"}, "--cwd-root lies in --workspace"),
        ({"state_dir": "/w", "cwd_root": "/w"}, "--cwd-root lies in --state-dir"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, options: dict[str, object], said: str
) -> None:
    (problem,) = refused(tmp_path, options)
    assert said in problem
    with pytest.raises(ValidationError):
        ServerSettings(**options)  # type: ignore[arg-type]  # as an embedder would, by any names


def test_a_contradiction_names_where_both_come_from(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, {}, {variable("api_keys"): SECRET}, "no_auth = true")
    assert problem.startswith(
        f"no_auth in {tmp_path / 'server.toml'} contradicts {variable('api_keys')}"
    )


@pytest.mark.parametrize("name", ["nowhere.toml", "."])
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"The configuration file .* cannot be read: "):
        load({}, config=tmp_path / name)


@pytest.mark.parametrize("content", [b"port = ", b"\xff", b"port = 1\nport = 2"])
def test_a_file_that_is_no_toml_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"a\.toml is not TOML: "):
        load({}, config=tmp_path / "a.toml")


# What is never shown


@pytest.mark.parametrize(
    ("options", "variables", "file"),
    [
        ({}, {variable("keys"): SECRET}, None),
        ({"keys": "ssk_0123456789ab_CANARY"}, {}, None),
        ({}, {}, 'keys = "sha256:CANARY"'),
        ({}, {}, "api_keys = 'CANARY'"),
        ({}, {variable("api_keys"): "CANARY", variable("no_auth"): "1"}, None),
        ({}, {variable("api_keyz"): "CANARY"}, None),
    ],
)
def test_no_error_shows_a_key(
    tmp_path: Path, options: dict[str, object], variables: dict[str, str], file: str | None
) -> None:
    problems = refused(tmp_path, options, variables, file)
    assert problems
    assert "CANARY" not in "".join(problems)


def test_the_settings_do_not_show_the_keys(tmp_path: Path) -> None:
    configuration = loaded(tmp_path, {}, {variable("api_keys"): SECRET})
    assert configuration.settings.api_keys is not None
    assert configuration.settings.api_keys.get_secret_value() == SECRET
    for shown in (repr(configuration), str(configuration.settings), effective(configuration)):
        assert "CANARY" not in shown


# The model itself


def test_made_directly_it_looks_at_nothing_else() -> None:
    with environment({variable("max_live"): "3", "PORT": "1"}):
        assert ServerSettings().max_live == 32
        assert ServerSettings(max_live=2).max_live == 2


def test_every_setting_is_described() -> None:
    for one in settings().values():
        assert one.about.group in GROUPS
        assert one.description.endswith("."), one.name
        assert one.expects or not one.flag, one.name
        assert one.is_switch == isinstance(one.value, bool), one.name
    flags = [one.flag for one in settings().values() if one.flag]
    assert len(set(flags)) == len(flags)
