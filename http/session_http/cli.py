"""The command `session-supervisor`.

Only what parses arguments is imported here; the rest takes a second, which `--help` need not.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from session_http import version

DEFAULT_PORT = 3000

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    port = options.port if options.port is not None else _port_from_environment(parser)

    from session_http.program import CannotServe, ServeOptions, run_server

    try:
        return run_server(
            ServeOptions(
                host=options.host,
                port=port,
                offline=options.offline,
                no_auth=options.no_auth,
                trusted_hosts=tuple(options.trusted_host),
                model=options.model,
                model_aliases=dict(options.model_alias),
                extra_tools=tuple(options.extra_tool),
                allow_bypass_permissions=options.allow_bypass_permissions,
                workspace=options.workspace,
                max_sessions=options.max_sessions,
                max_live=options.max_live,
                idle_timeout_s=options.idle_timeout,
                turn_timeout_s=options.turn_timeout,
                drain_timeout_s=options.drain_timeout,
            )
        )
    except CannotServe as error:
        parser.exit(1, f"session-supervisor: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="session-supervisor",
        description="Claude agent sessions as supervised actors, with a REST and SSE API.",
    )
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="run the server",
        description="Run the server until SIGTERM or SIGINT (Ctrl-C). It needs a Claude "
        "credential: ANTHROPIC_API_KEY, CLAUDE_CODE_OAUTH_TOKEN, a `claude auth login`, or a cloud "
        "provider's; ANTHROPIC_BASE_URL is honoured. With --offline it needs none.",
    )
    serve.add_argument(
        "--host",
        default="localhost",
        help="name or address to listen on; localhost: 127.0.0.1 and ::1 (localhost)",
    )
    serve.add_argument(
        "--port",
        type=_port,
        help=f"port to listen on, 0 for a free one (the PORT variable, else {DEFAULT_PORT})",
    )
    serve.add_argument(
        "--offline",
        action="store_true",
        help="answer with the built-in offline model, without network or key; for trying and tests",
    )
    serve.add_argument(
        "--no-auth",
        action="store_true",
        help="listen beyond this machine although anybody who reaches the server may use it",
    )
    serve.add_argument(
        "--trusted-host",
        action="append",
        default=[],
        type=_host_name,
        metavar="NAME",
        help="further host name under which browsers may use the server; repeatable",
    )
    serve.add_argument(
        "--model", metavar="NAME", help="model of sessions that name none (sonnet: the newest one)"
    )
    serve.add_argument(
        "--model-alias",
        action="append",
        default=[],
        type=_alias,
        metavar="NAME=MODEL",
        help="let sessions use one name for another model; repeatable. The names of October 2025 "
        "mean the newest model of their family unless this says otherwise",
    )
    serve.add_argument(
        "--extra-tool",
        action="append",
        default=[],
        metavar="NAME",
        help="further tool of Claude Code that sessions have; repeatable",
    )
    serve.add_argument(
        "--allow-bypass-permissions",
        action="store_true",
        help="let sessions ask for bypassPermissions, in which every tool runs unasked",
    )
    serve.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="where sessions get their private directories (a temporary one)",
    )
    serve.add_argument("--max-sessions", type=_count, metavar="N", help="most open sessions (1000)")
    serve.add_argument(
        "--max-live",
        type=_count,
        metavar="N",
        help="most Claude Code processes at once, about 100 MB each (32)",
    )
    serve.add_argument(
        "--idle-timeout",
        type=_seconds,
        metavar="S",
        help="seconds without work after which a session is closed (never)",
    )
    serve.add_argument(
        "--turn-timeout",
        type=_seconds,
        metavar="S",
        help="seconds that a turn may take, queueing included (no limit)",
    )
    serve.add_argument(
        "--drain-timeout",
        type=_seconds_or_none,
        default=10.0,
        metavar="S",
        help="seconds that running turns may take when the server is told to stop (10)",
    )
    return parser


def _port_from_environment(parser: argparse.ArgumentParser) -> int:
    given = os.environ.get("PORT", "")
    if not given:
        return DEFAULT_PORT
    try:
        return _port(given)
    except argparse.ArgumentTypeError as error:
        parser.error(f"the PORT variable: {error}")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a number from 0 to 65535")
    return int(text)


def _host_name(text: str) -> str:
    if not _HOST_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a host name; give it alone, without scheme, port and brackets"
        )
    return text


def _alias(text: str) -> tuple[str, str]:
    name, _, model = (part.strip() for part in text.partition("="))
    if not name or not model:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=MODEL")
    return name, model


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    seconds = _seconds_or_none(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds greater than 0")
    return seconds


def _seconds_or_none(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
