"""Which files a session's file tools may touch: those below its directory, and no others.

The decision is asked for by a `PreToolUse` hook, before every call of a file tool and whatever the
permission mode is. It looks at the file system but changes nothing, and it confines the file tools
only: a session that has Bash reaches whatever the server's user does, unless Bash is sandboxed.

Where a human can be asked, a file outside is a question and not a refusal, unless it is hidden.
That is so only for sessions that can have a shell which nothing confines: there a human who allows
a file gives no more than by allowing a command. Otherwise the limits are a wall, for humans too.

What it relies on, all of it measured: the hook gets the path mostly made absolute by the CLI, but
that of a search as the model wrote it; a relative one counts from the CLI's own current directory;
searches do not follow links that they come across, and their `..` leads nowhere; `~name` is a name.

The CLI checks a call before it asks, and says what it found: Edit would tell whether a file outside
exists, and under bypassPermissions whether a text occurs in it. No hook can help that, so the CLI
is told the limits as well, by a setting that it looks at first. It is meant for programs that start
the CLI and may change with it, so nothing but that rests on it.

A path can be made to lead elsewhere between this decision and the use of it, by a process of the
session's own. One that runs such processes has no need to: it has Bash.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from session_supervisor.agents.claude import configdir
from session_supervisor.spec import JsonObject

PATH_OF = {
    "Read": "file_path",
    "Write": "file_path",
    "Edit": "file_path",
    "NotebookEdit": "notebook_path",
}
"""The file tools that take one file, and where they take it from."""

_SEARCHES = ("Glob", "Grep")
"""Those that look through a directory, by default the current one."""

CHANGES = frozenset(PATH_OF) - {"Read"}
"""Those that change files."""

TOOLS = (*PATH_OF, *_SEARCHES)
"""The names of the tools that are confined."""

READS = frozenset(TOOLS) - CHANGES
"""Those that do not."""

_NEVER = ("/proc", "/dev", "/sys")
"""What lies there is not the same for the CLI as for us, so that we cannot say what it is."""

_WILD = re.compile(r"[*?\[{]")
_ABSOLUTE_ALTERNATIVE = re.compile(r"[{,]\s*[/~]")


class _Refused(Exception):
    """Carries the reason."""


class _Outside(Exception):
    """Carries what can be asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """The limits of one process. Made with `of`; the paths have no links in them.

    Attributes:
        home: What `~` means.
        roots: Where files may be used; the last is the CLI's own scratch directory.
        hidden: Where they may not, even below a root; of several the innermost counts.
        shared: Where several owners have directories: nobody is asked about what lies there.
        asks: Whether a human is asked about files outside that are not hidden.
    """

    home: str
    roots: tuple[str, ...]
    hidden: tuple[str, ...]
    shared: tuple[str, ...] = ()
    asks: bool = False

    @classmethod
    def of(
        cls,
        env: Mapping[str, str],
        *,
        cwd: str,
        scratch: str,
        extra_dirs: Sequence[str] = (),
        hidden_dirs: Sequence[str] = (),
        shared_dirs: Sequence[str] = (),
        asks: bool = False,
    ) -> Confinement:
        """Return the limits of a process that is about to start.

        Args:
            env: Its environment, which says where the CLI keeps its login and what all sessions
                said: nothing for any of them to read.
            cwd: Its working directory, known to have no links in it. It is not looked at again:
                somebody could have put one there by now.
            scratch: Its directory for temporary files.
            extra_dirs: Where else it may use files.
            hidden_dirs: Where else it may not; files, too.
            shared_dirs: Where nobody is asked about what is not its own.
            asks: Whether a human is asked about files outside.
        """
        home = env.get("HOME") or os.path.expanduser("~")
        return cls(
            home=home,
            roots=(
                os.path.normpath(cwd),
                *(os.path.realpath(one) for one in (*extra_dirs, scratch)),
            ),
            hidden=tuple(
                os.path.realpath(one)
                for one in (configdir.used(env), os.path.join(home, ".claude.json"), *hidden_dirs)
            ),
            shared=(*map(os.path.realpath, shared_dirs), *_NEVER),
            asks=asks,
        )

    def settings(self) -> JsonObject:
        """Return the settings of permissions by which the CLI's own checks keep to the limits.

        There are none where somebody may lift them.
        """
        if self.asks:
            return {}
        return {
            "blockFileToolReadsOutsideWorkingDirectories": True,
            "workingDirectoriesExclude": list(self.hidden),
        }

    def refusal(self, call: Mapping[str, JsonValue]) -> str | None:
        """Return why a tool may not run, for the model to read, or None if it may.

        Args:
            call: What the hook got: the tool's name and input, the CLI's current directory and
                the conversation.
        """
        try:
            self._judge(call)
        except _Outside as outside:
            return None if self.asks else self._refused(call, outside)
        except _Refused as refused:
            return self._refused(call, refused)
        except ValueError as error:
            return self._refused(call, f"it names what cannot be a path ({error}).")
        return None

    def outside(self, call: Mapping[str, JsonValue]) -> str | None:
        """Return why a human must be asked for a tool to run that is not refused, or None.

        Args:
            call: As for `refusal`.
        """
        try:
            self._judge(call)
        except _Outside as outside:
            return self._refused(call, outside)
        except (_Refused, ValueError):
            pass
        return None

    @staticmethod
    def _refused(call: Mapping[str, JsonValue], reason: object) -> str:
        return f"{call.get('tool_name')} was not allowed: {reason}"

    def _judge(self, call: Mapping[str, JsonValue]) -> None:
        """Return if a call may run.

        Raises:
            _Refused: It may not.
            _Outside: It reaches a file outside; nothing that it reaches is worse.
            ValueError: It names what cannot be a path.
        """
        tool, given = call.get("tool_name"), call.get("tool_input")
        if not isinstance(tool, str) or tool not in TOOLS:
            return
        if not isinstance(given, dict):
            raise _Refused("its input is not an object.")
        outside: _Outside | None = None
        for path in _paths(tool, given):
            for real in self._readings(path, call.get("cwd")):
                try:
                    self._check(tool, path, real, _results_of(call))
                except _Outside as raised:
                    outside = raised
        if outside is not None:
            raise outside

    def _check(self, tool: str, path: str, real: str, results: str | None) -> None:
        inside = max((len(one) for one in self.roots if is_in(real, one)), default=-1)
        behind = max((len(one) for one in self.hidden if is_in(real, one)), default=-1)
        if tool in READS and results is not None and is_in(real, results):
            return
        if inside <= behind:
            allowed = " and ".join(map(repr, self.roots[:-1]))
            reason = f"{path!r} is outside of the session's directory. Use files in {allowed} only."
            shut = self._is_shut(tool, real) or self._is_shut(tool, os.path.normpath(path))
            raise _Refused(reason) if shut else _Outside(reason)
        if tool in _SEARCHES and any(is_in(one, real) for one in self.hidden):
            raise _Refused(
                f"{path!r} holds Claude Code's own files, which are not the session's. "
                "Search a directory further down."
            )

    def _is_shut(self, tool: str, real: str) -> bool:
        """Whether nobody is asked about a path outside."""
        shut = (*self.hidden, *self.shared)
        if any(is_in(real, one) for one in shut):
            return True
        return tool in _SEARCHES and any(is_in(one, real) for one in shut)

    def _readings(self, path: str, cwd: JsonValue) -> Iterator[str]:
        """Yield, links resolved, all that a path may mean: the CLI tidies some of them up."""
        if not isinstance(cwd, str):
            raise _Refused("it is not known in which directory.")
        for one in {path, path.strip(), unicodedata.normalize("NFC", path.strip())}:
            expanded = self.home + one[1:] if one == "~" or one.startswith("~/") else one
            whole = os.path.join(cwd, expanded)
            # The kernel follows a link before it goes up from there, the CLI crosses out both.
            yield os.path.realpath(whole)
            yield os.path.realpath(os.path.normpath(whole))


def _paths(tool: str, given: Mapping[str, JsonValue]) -> Iterator[str]:
    """Yield the paths that a call names."""
    if tool in PATH_OF:
        path = given.get(PATH_OF[tool])
        if not isinstance(path, str):
            raise _Refused(f"its {PATH_OF[tool]} is missing.")
        yield path
        return
    path = given.get("path")
    if not isinstance(path, str | None):
        raise _Refused("its path is not a string.")
    yield path or "."
    if tool == "Glob":
        pattern = given.get("pattern")
        if not isinstance(pattern, str):
            raise _Refused("its pattern is missing.")
        yield os.path.join(path or ".", _beginning(pattern))


def _beginning(pattern: str) -> str:
    """Return the directory that a pattern looks through, which may be an absolute one."""
    if ".." in re.split(r"[/{},]", pattern):
        raise _Refused("its pattern has '..' in it: give the directory as its path instead.")
    if pattern.startswith("{") and _ABSOLUTE_ALTERNATIVE.search(pattern):
        raise _Refused("its pattern names several directories: ask for each of them.")
    wild = _WILD.search(pattern)
    return os.path.dirname(pattern[: wild.start()]) if wild else pattern


def _results_of(call: Mapping[str, JsonValue]) -> str | None:
    """Return where the CLI keeps results that were too long, which it tells the model to read."""
    session, transcript = call.get("session_id"), call.get("transcript_path")
    if not isinstance(session, str) or not isinstance(transcript, str) or "/" in session:
        return None
    project = os.path.realpath(os.path.dirname(transcript))
    return os.path.join(project, session, "tool-results") if session.strip(".") else None


def is_in(path: str, folder: str) -> bool:
    """Whether a path is another, or below it; both have no links in them."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
