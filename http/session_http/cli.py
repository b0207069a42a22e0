"""The command `session-supervisor`: its arguments, and what becomes of them.

Options, their help and their types come from the settings model. What takes a second to import, the
server and the SDK, is imported by the command that needs it: `--help` does not.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from session_http import version
from session_http.configuration import GROUPS, PREFIX
from session_http.options import Setting, settings
from session_http.sources import CONFIG_VARIABLE, Configuration, ConfigurationError, load, meant

USAGE = 2
"""Exit status: the arguments or the settings make no sense."""

FAILED = 1
"""Exit status: they do, and what they ask for cannot be done."""

_SOURCES = (
    "--[no-]offline stands for --offline and its opposite --no-offline. Every option is also an "
    "environment variable, SESSION_SUPERVISOR_MAX_LIVE for --max-live, and a key of the TOML file, "
    "max_live. An option wins over a variable, and that over the file."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    command: Callable[[argparse.Namespace], int] | None = getattr(options, "run", None)
    if unknown:
        chosen: argparse.ArgumentParser = getattr(options, "parser", parser)
        chosen.error(_unknown(unknown[0], chosen))
    if command is None:
        getattr(options, "parser", parser).print_help()
        return USAGE
    try:
        return command(options)
    except ConfigurationError as error:
        for problem in error.problems:
            _complain(problem)
        return USAGE


# -- the commands --------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    configuration = _load(options)

    from session_http.parts import CannotServe
    from session_http.program import run_server

    try:
        return run_server(configuration)
    except CannotServe as error:
        _complain(str(error))
        return FAILED


def _check(options: argparse.Namespace) -> int:
    configuration = _load(options)

    from session_http.check import run_checks

    return run_checks(configuration, as_json=options.json)


def _config(options: argparse.Namespace) -> int:
    from session_http.toml import effective

    sys.stdout.write(effective(_load(options)))
    return 0


def _new_key(options: argparse.Namespace) -> int:
    from session_http import keyfile

    file = _load(options).settings.keys
    if file is None:
        raise ConfigurationError(
            f"Into which file? Name it with --keys FILE, {PREFIX}KEYS or `keys` in --config FILE."
        )
    try:
        made = keyfile.new_key(
            options.owner,
            roles=tuple(options.role or ("user",)),
            max_sessions=options.max_sessions,
            max_turns=options.max_turns,
            budget_usd=options.budget_usd,
            requests_per_minute=options.requests_per_minute,
        )
    except keyfile.KeyFileError as error:
        _complain(str(error))
        return USAGE
    try:
        keyfile.append(file, made.key)
    except keyfile.KeyFileError as error:
        _complain(str(error))
        return FAILED
    # The key alone on standard output, so that a program can take it from there.
    print(made.token)
    print(
        f"This key of {made.key.owner} is shown once; {file} holds only its hash. Send it as "
        "`Authorization: Bearer <key>`. A running server reads the file anew upon SIGHUP.",
        file=sys.stderr,
    )
    return 0


def _load(options: argparse.Namespace) -> Configuration:
    given = {name: getattr(options, name) for name in options.of_settings if hasattr(options, name)}
    return load(given, config=options.config)


def _complain(problem: str) -> None:
    print(f"session-supervisor: {problem}", file=sys.stderr)


# -- the parser ----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="session-supervisor",
        description="Claude agent sessions as supervised actors, with a REST and SSE API.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    _add(
        commands,
        "serve",
        _serve,
        help="run the server",
        description="Run the server until SIGTERM or SIGINT (Ctrl-C). It needs a Claude "
        "credential: ANTHROPIC_API_KEY, CLAUDE_CODE_OAUTH_TOKEN, a `claude auth login`, or a cloud "
        "provider's; ANTHROPIC_BASE_URL is honoured. With --offline it needs none.",
    )
    check = _add(
        commands,
        "check",
        _check,
        help="look whether the server could run, with the same options as serve",
        description="Look whether `serve` with the same options would work: start Claude Code "
        "once, look for a credential, limits, keys and directories. Exits with 1 if something is "
        "wrong.",
    )
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    _add(
        commands,
        "config",
        _config,
        help="print the settings that are in force, and where each comes from",
        description="Print the settings that `serve` with the same options would have, as TOML, "
        "with where each comes from. Secrets are not shown.",
    )
    keys = commands.add_parser("keys", help="make keys for callers", allow_abbrev=False)
    keys.set_defaults(parser=keys)
    _add_new_key(keys.add_subparsers(metavar="COMMAND", title="commands"))
    return parser


def _add(commands: Any, name: str, run: Any, **words: str) -> argparse.ArgumentParser:
    """Add a command that takes every setting as an option."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        formatter_class=_Formatter,
        usage=f"session-supervisor {name} [OPTION ...]",
        epilog=_SOURCES,
        allow_abbrev=False,
        **words,
    )
    known = settings()
    parser.set_defaults(run=run, parser=parser, of_settings=frozenset(known))
    _add_config(parser)
    for group in GROUPS:
        section = parser.add_argument_group(group)
        for one in known.values():
            if one.about.group == group and one.flag:
                _add_option(section, one)
    return parser


def _add_new_key(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "new",
        formatter_class=_Formatter,
        help="make a key, and add it to the key file",
        description="Make a key, print it, and add its hash to the key file, which is made if "
        "there is none.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=_new_key, parser=parser, of_settings=frozenset({"keys"}))
    parser.add_argument("--owner", required=True, metavar="NAME", help="whose sessions it is for")
    parser.add_argument(
        "--role",
        action="append",
        choices=("user", "admin"),
        help="user: sessions of its own (the default); admin: sees and closes everybody's. "
        "Repeatable",
    )
    parser.add_argument("--max-sessions", type=int, metavar="N", help="most open sessions")
    parser.add_argument("--max-turns", type=int, metavar="N", help="most turns at once")
    parser.add_argument(
        "--budget-usd", type=float, metavar="USD", help="most that all turns may ever cost"
    )
    parser.add_argument("--requests-per-minute", type=int, metavar="N", help="most requests")
    _add_option(parser, settings()["keys"])
    _add_config(parser)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"TOML file of settings ({CONFIG_VARIABLE})",
    )


def _add_option(section: Any, one: Setting) -> None:
    """Add the option of a setting: without default or type, which `sources.load` sees to."""
    text = one.help.replace("%", "%%")
    if not one.is_switch:
        section.add_argument(
            one.flag,
            dest=one.name,
            metavar=one.about.metavar,
            action="append" if one.repeatable else "store",
            default=argparse.SUPPRESS,
            help=text,
        )
        return
    section.add_argument(
        one.flag,
        dest=one.name,
        action="store_true",
        default=argparse.SUPPRESS,
        help=text,
    )
    section.add_argument(
        one.opposite,
        dest=one.name,
        action="store_false",
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    flag = argument.partition("=")[0]
    if not flag.startswith("-"):
        # Not quoted: it may be a secret, after an option that takes none.
        return "there is an argument that belongs to no option"
    known = [known for action in parser._actions for known in action.option_strings]
    return f"there is no option {flag}{meant(flag, known)}"


class _Formatter(argparse.HelpFormatter):
    """Help that fits a terminal of 80 columns, with a switch and its opposite in one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.fill(
            text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = super()._format_action_invocation(action)
        is_switch = action.nargs == 0 and action.const is True and action.dest in settings()
        return shown.replace("--", "--[no-]", 1) if is_switch and "--no-" not in shown else shown
