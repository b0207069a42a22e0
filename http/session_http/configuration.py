"""What an operator can set: one typed model, from which options, variables and keys all follow.

A field here is at once an option of the command (`--max-live`), an environment variable
(`SESSION_SUPERVISOR_MAX_LIVE`) and a key of the TOML file (`max_live`). Help, documentation and
error messages are made from it too, so there is no second place to keep true. `sources` reads them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import ByteSize, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from session_http.values import (
    Aliases,
    Bytes,
    Count,
    HostNames,
    KeyFile,
    LogFormat,
    LogLevel,
    Niceness,
    OnPermission,
    OpenPaths,
    Origins,
    OrNone,
    PathsTo,
    PathTo,
    Port,
    Seconds,
    SecondsOrNone,
    StoreKind,
    Switch,
    Text,
    Texts,
    Variables,
    Wait,
)

PREFIX = "SESSION_SUPERVISOR_"
"""What the names of our environment variables begin with."""

LISTENING = "Where it listens"
CALLERS = "Who may call it"
CLAUDE = "Claude"
RIGHTS = "What sessions may do"
FILES = "Where files are"
LIMITS = "Limits"
TIMES = "Times"
KEPT = "What is kept"
LOGS = "Logs"

GROUPS = (LISTENING, CALLERS, CLAUDE, RIGHTS, FILES, LIMITS, TIMES, KEPT, LOGS)
"""The order of the groups in help and documentation."""


@dataclass(frozen=True, slots=True)
class About:
    """What help and documentation say of a field besides its description.

    Attributes:
        group: Where it is listed, one of `GROUPS`.
        metavar: What stands for its value; empty for a switch.
        default: The default in words, where the value itself would not say it.
        flag: Its option, where that does not follow from its name; empty: it has none.
        example: A value for the example file, where there is no default to show.
    """

    group: str
    metavar: str = ""
    default: str = ""
    flag: str | None = None
    example: Any = None


def _state_dir() -> Path:
    given = os.environ.get("XDG_STATE_HOME", "")
    base = given if os.path.isabs(given) else os.path.expanduser("~/.local/state")
    return Path(base, "session-supervisor")


def _cores() -> int:
    return max(1, os.cpu_count() or 1)


class ServerSettings(BaseSettings):
    """Everything that the command `session-supervisor serve` can be told.

    Made directly, it holds what it is given and the defaults, and looks at nothing else;
    `sources.load` reads options, environment and file.

    Raises:
        ValidationError: A value makes no sense, or two of them contradict each other.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: Annotated[Text, About(LISTENING, "NAME")] = Field(
        default="localhost",
        description="Name or address to listen on. localhost is 127.0.0.1 and ::1; an address that "
        "other machines can reach needs keys, or no_auth.",
    )
    port: Annotated[Port, About(LISTENING, "PORT", "PORT variable, else 3000")] = Field(
        default=3000, description="Port to listen on; 0 takes a free one."
    )
    tls_cert: Annotated[PathTo | None, About(LISTENING, "FILE", example="tls/cert.pem")] = Field(
        default=None, description="Certificate chain, PEM: speak HTTPS instead of HTTP."
    )
    tls_key: Annotated[PathTo | None, About(LISTENING, "FILE", example="tls/key.pem")] = Field(
        default=None, description="The certificate's private key, PEM, without a passphrase."
    )
    http2: Annotated[Switch, About(LISTENING)] = Field(
        default=True, description="Offer HTTP/2 besides HTTP/1.1."
    )
    max_connections: Annotated[
        Count | None,
        OrNone,
        About(LISTENING, "N", "what the file descriptors allow", example=10_000),
    ] = Field(default=None, description="Most connections at once; further ones are turned away.")

    keys: Annotated[KeyFile | None, About(CALLERS, "FILE", example="keys.toml")] = Field(
        default=None,
        description="File of API keys, as `session-supervisor keys new` writes it; every caller "
        "then needs one. Read anew upon SIGHUP.",
    )
    api_keys: Annotated[SecretStr | None, About(CALLERS, "TEXT", flag="")] = Field(
        default=None,
        description="The content of a key file, besides one or in its place. Only as a variable, "
        "and never shown.",
    )
    make_key: Annotated[Switch, About(CALLERS)] = Field(
        default=False,
        description="If the key file does not exist, make it with one key, and say where it is.",
    )
    no_auth: Annotated[Switch, About(CALLERS)] = Field(
        default=False,
        description="Listen beyond this machine without keys: whoever reaches the server may use "
        "it, and run commands on it.",
    )
    open_paths: Annotated[OpenPaths, About(CALLERS, "NAME")] = Field(
        default=("health", "docs"),
        description="What needs no key all the same: health (/health, /ready), docs (the "
        "documentation).",
    )
    trusted_hosts: Annotated[HostNames, About(CALLERS, "NAME", example=["agents.example"])] = Field(
        default=(),
        description="Further host name under which browsers may use the server. Where any are "
        "given, or it listens on this machine only, others are refused.",
    )
    cors_origins: Annotated[Origins, About(CALLERS, "ORIGIN", example=["https://app.example"])] = (
        Field(
            default=(),
            description="Origin whose pages may call the server from a browser (CORS), such as "
            "https://app.example.",
        )
    )

    offline: Annotated[Switch, About(CLAUDE)] = Field(
        default=False,
        description="Answer with the built-in offline model, without network or credential; for "
        "trying and tests.",
    )
    model: Annotated[Text | None, About(CLAUDE, "NAME", "sonnet: the newest", example="sonnet")] = (
        Field(default=None, description="Model of sessions that name none.")
    )
    model_aliases: Annotated[Aliases, About(CLAUDE, "NAME=MODEL", example={"fast": "haiku"})] = (
        Field(
            default={},
            description="Name that sessions may use for another model. The names of October 2025 "
            "mean the newest of their family unless this says otherwise.",
        )
    )

    extra_tools: Annotated[Texts, About(RIGHTS, "NAME", example=["NotebookEdit"])] = Field(
        default=(), description="Further tool of Claude Code that sessions have."
    )
    forbidden_tools: Annotated[Texts, About(RIGHTS, "NAME", example=["Bash"])] = Field(
        default=(), description="Tool that no session has, whatever it asks for."
    )
    allow_bypass_permissions: Annotated[Switch, About(RIGHTS)] = Field(
        default=False,
        description="Let sessions ask for bypassPermissions, in which every tool runs unasked.",
    )
    env_passthrough: Annotated[Variables, About(RIGHTS, "NAME", example=["GIT_*"])] = Field(
        default=(),
        description="Further variable of the server that sessions inherit, or the beginning of "
        "names with a * behind.",
    )
    mcp_config: Annotated[PathTo | None, About(RIGHTS, "FILE", example="mcp.json")] = Field(
        default=None,
        description="File of the MCP servers that sessions may ask for by name: JSON with "
        "`mcpServers`, as Claude Code's .mcp.json. Without it there are none.",
    )
    on_permission: Annotated[OnPermission, About(RIGHTS, "POLICY")] = Field(
        default="ask",
        description="What happens in sessions to tool calls that need a permission, and to "
        "questions, where the request does not say: ask waits for a human, deny goes on without. "
        "One-off queries deny.",
    )
    extra_dirs: Annotated[PathsTo, About(RIGHTS, "DIR", example=["/srv/data"])] = Field(
        default=(),
        description="Further directory that the file tools of every session may read and write.",
    )
    hidden_dirs: Annotated[PathsTo, About(RIGHTS, "PATH", example=["/srv/data/secret"])] = Field(
        default=(),
        description="Directory or file that no file tool may touch, even in a session's own "
        "directory. The server's own files are always hidden.",
    )
    confine_files: Annotated[Switch, About(RIGHTS)] = Field(
        default=True,
        description="Keep file tools to a session's own directory and extra_dirs. Says nothing "
        "about Bash.",
    )
    sandbox: Annotated[Switch, About(RIGHTS)] = Field(
        default=False,
        description="Run Bash in Claude Code's sandbox (Linux; needs bubblewrap and socat).",
    )

    store: Annotated[StoreKind, About(FILES, "KIND")] = Field(
        default="sqlite",
        description="sqlite: sessions are kept in the state directory, and outlive the server; "
        "memory: they end with it.",
    )
    workspace: Annotated[
        PathTo | None, About(FILES, "DIR", "in the state directory", example="workspace")
    ] = Field(default=None, description="Where sessions get their private directories.")
    cwd_root: Annotated[
        PathTo | None, About(FILES, "DIR", "callers choose none", example="/srv/projects/{owner}")
    ] = Field(
        default=None,
        description="Directory below which callers may choose a session's cwd; {owner} stands for "
        "the caller's name.",
    )
    state_dir: Annotated[
        PathTo,
        About(
            FILES,
            "DIR",
            "$XDG_STATE_HOME/session-supervisor, else ~/.local/state/session-supervisor",
            example="/var/lib/session-supervisor",
        ),
    ] = Field(
        default_factory=_state_dir,
        description="What outlives the server: the database of sessions, their private "
        "directories and, with keys, Claude Code's own files for each owner. One server at a time "
        "has it.",
    )
    lock_wait: Annotated[Wait, About(FILES, "S")] = Field(
        default=30.0,
        description="Seconds to wait for another server to let go of the state directory.",
    )

    max_sessions: Annotated[Count, About(LIMITS, "N")] = Field(
        default=1_000, description="Most open sessions; one-off queries do not count."
    )
    max_live: Annotated[Count, About(LIMITS, "N")] = Field(
        default=32, description="Most Claude Code processes at once, about 100 MB each."
    )
    memory_budget: Annotated[
        Bytes | None,
        OrNone,
        About(LIMITS, "BYTES", "four fifths of what the machine or container has", example="4GiB"),
    ] = Field(
        default=None,
        description="Most memory of all processes together, with what they start: for more, "
        "sessions that rest give up theirs, and then work is refused.",
    )
    pool: Annotated[Switch, About(LIMITS)] = Field(
        default=True,
        description="Start Claude Code processes before they are needed, as many as were lately, "
        "and have sessions and one-off queries take them.",
    )
    max_pooled: Annotated[Count, About(LIMITS, "N")] = Field(
        default=16,
        description="Most processes that stand ready so; half of what `max_live` and "
        "`memory_budget` allow, if that is less. They count as live, and give way to sessions at "
        "once.",
    )
    recycle: Annotated[Switch, About(LIMITS)] = Field(
        default=True,
        description="Use the process of a one-off query for the next one of the same owner, if it "
        "is proven to be as it was when it came up.",
    )
    pool_max_uses: Annotated[Count, About(LIMITS, "N")] = Field(
        default=250, description="Most one-off queries that a process answers."
    )
    pool_max_age: Annotated[Seconds, About(LIMITS, "S")] = Field(
        default=600.0,
        description="Seconds after its start until which a process that stands ready is used.",
    )
    max_waiting: Annotated[Count, About(LIMITS, "N")] = Field(
        default=256,
        description="Most sessions that may wait for a process, because all are busy; new sessions "
        "and one-off queries are refused then.",
    )
    max_starting: Annotated[Count, About(LIMITS, "N", "the number of cores")] = Field(
        default_factory=_cores,
        description="Most processes that start at the same time; more than cores makes all late.",
    )
    niceness: Annotated[Niceness, About(LIMITS, "N")] = Field(
        default=5,
        description="By how much Claude Code's processes go after the server for the processor, 0 "
        "to 19. They go after the machine's other programs as well: 0 where those keep it busy.",
    )
    max_queued: Annotated[Count, About(LIMITS, "N")] = Field(
        default=16, description="Most queries that may wait in one session."
    )
    max_agent_turns: Annotated[Count, About(LIMITS, "N")] = Field(
        default=16, description="Most turns in a row that a session may begin by itself."
    )
    max_streams: Annotated[Count, About(LIMITS, "N")] = Field(
        default=4_096, description="Most open event streams."
    )
    max_body: Annotated[Bytes, About(LIMITS, "BYTES")] = Field(
        default=ByteSize(10 * 2**20), description="Longest request body, in bytes, or as in 10MiB."
    )

    max_attachments: Annotated[Count, About(LIMITS, "N")] = Field(
        default=16, description="Most attachments of one prompt."
    )
    max_attachment: Annotated[Bytes, About(LIMITS, "BYTES")] = Field(
        default=ByteSize(5 * 2**20),
        description="Longest attachment; in a request's body it takes four thirds of that.",
    )
    max_tool_output: Annotated[Bytes, About(LIMITS, "BYTES")] = Field(
        default=ByteSize(16 * 2**10),
        description="Longest input and result of a tool in an event; longer ones are cut there, "
        "and can be had whole.",
    )

    idle_timeout: Annotated[SecondsOrNone, About(TIMES, "S")] = Field(
        default=900.0,
        description="Seconds without work after which a session gives up its process; the next "
        'query starts another, with the conversation. "none": only when others need the room.',
    )
    expiry: Annotated[SecondsOrNone, About(TIMES, "S", "never", example=604_800)] = Field(
        default=None, description="Seconds without work after which a session is closed."
    )
    turn_timeout: Annotated[SecondsOrNone, About(TIMES, "S")] = Field(
        default=3600.0,
        description="Seconds that a turn may take, queueing included, where the request does not "
        'say; "none" sets no limit.',
    )
    permission_timeout: Annotated[SecondsOrNone, About(TIMES, "S")] = Field(
        default=600.0,
        description="Seconds that a human has to answer a permission request or a question, where "
        'the request does not say; then it is denied. "none" sets no limit.',
    )
    drain_timeout: Annotated[Wait, About(TIMES, "S")] = Field(
        default=10.0,
        description="Seconds that running turns may take when the server is told to stop.",
    )
    start_timeout: Annotated[Seconds, About(TIMES, "S")] = Field(
        default=60.0, description="Seconds in which a Claude Code process must be ready."
    )
    first_byte_timeout: Annotated[Seconds, About(TIMES, "S")] = Field(
        default=120.0, description="Seconds from a prompt until the model's first sign."
    )
    progress_timeout: Annotated[Seconds, About(TIMES, "S")] = Field(
        default=180.0,
        description="Seconds between two signs of the model, while no tool runs and nobody is "
        "asked.",
    )
    body_timeout: Annotated[Seconds, About(TIMES, "S")] = Field(
        default=60.0, description="Seconds in which a request's body must have arrived."
    )
    send_timeout: Annotated[Seconds, About(TIMES, "S")] = Field(
        default=60.0,
        description="Seconds that a client may read nothing before its stream is dropped.",
    )
    heartbeat: Annotated[Seconds, About(TIMES, "S")] = Field(
        default=15.0,
        description="Seconds of silence after which a stream sends a comment; less than the "
        "time-out of a proxy.",
    )

    keep_events: Annotated[Count, About(KEPT, "N")] = Field(
        default=50_000, description="Most events of one session."
    )
    keep_event_bytes: Annotated[Bytes, About(KEPT, "BYTES")] = Field(
        default=ByteSize(16 * 2**20), description="Most text in the events of one session."
    )
    keep_turns: Annotated[Count, About(KEPT, "N")] = Field(
        default=1_000, description="Most ended turns of one session."
    )
    keep_turn_bytes: Annotated[Bytes, About(KEPT, "BYTES")] = Field(
        default=ByteSize(16 * 2**20), description="Most text in the ended turns of one session."
    )
    keep_ended: Annotated[Wait, About(KEPT, "S")] = Field(
        default=3600.0, description="Seconds that a session that ended by itself stays readable."
    )
    keep_ended_sessions: Annotated[Count, About(KEPT, "N")] = Field(
        default=1_000, description="Most such sessions."
    )
    keep_closed: Annotated[Wait, About(KEPT, "S", example=86_400)] = Field(
        default=0.0,
        description="Seconds that turns, messages and events of a session can still be read by "
        "its owner after a DELETE; 0: they are erased before it is answered.",
    )
    retention_age: Annotated[SecondsOrNone, About(KEPT, "S", "no limit", example=2_592_000)] = (
        Field(
            default=None,
            description="Seconds that ended turns and events are kept, of any session, and "
            "sessions that have ended.",
        )
    )
    max_state_size: Annotated[
        Bytes | None, OrNone, About(KEPT, "BYTES", "no limit", example="10GiB")
    ] = Field(
        default=None,
        description="Most that the database may hold: for more, the oldest ended turns and events "
        "go, of the sessions first that were used least recently.",
    )
    keep_idempotency_keys: Annotated[Seconds, About(KEPT, "S")] = Field(
        default=86_400.0,
        description="Seconds that an Idempotency-Key stands for the work that it began.",
    )

    log_level: Annotated[LogLevel, About(LOGS, "LEVEL")] = Field(
        default="info",
        description="debug, info, warning or error. Only debug may show what a session says.",
    )
    log_format: Annotated[LogFormat, About(LOGS, "FORMAT")] = Field(
        default="auto",
        description="console, json, or auto: console on a terminal, else json.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is passed and nothing else; see the class."""
        return (init_settings,)

    @model_validator(mode="after")
    def _agree(self) -> ServerSettings:
        if self.tls_cert is not None and self.tls_key is None:
            raise _clash("{tls_cert} needs {tls_key}: a certificate is no use without its key")
        if self.tls_key is not None and self.tls_cert is None:
            raise _clash("{tls_key} needs {tls_cert}: a key is no use without its certificate")
        if self.no_auth and self.has_keys:
            given = "{keys}" if self.keys is not None else "{api_keys}"
            raise _clash(
                f"{{no_auth}} contradicts {given}: callers are asked for a key, or they are not"
            )
        if self.make_key and not (self.has_keys or self.no_auth):
            raise _clash("{make_key} needs {keys}: the file that is to be made")
        if "*" in self.cors_origins and not self.has_keys:
            raise _clash(
                "{cors_origins} holds *, which would let any web page run commands here: name the "
                "origins, or use {keys}"
            )
        if self.cwd_root is not None:
            root = Path(str(self.cwd_root).partition("{owner}")[0])
            for name in ("workspace", "state_dir"):
                private: Path | None = getattr(self, name)
                if private is not None and root.is_relative_to(private):
                    raise _clash(
                        f"{{cwd_root}} lies in {{{name}}}, where no caller may choose a directory"
                    )
        both = set(self.extra_tools) & set(self.forbidden_tools)
        if both:
            names = ", ".join(sorted(both)).replace("{", "{{").replace("}", "}}")
            raise _clash(f"{{extra_tools}} and {{forbidden_tools}} both name {names}")
        return self

    @property
    def has_keys(self) -> bool:
        """Whether callers need a key."""
        return self.keys is not None or self.api_keys is not None


CONTRADICTION = "contradiction"
"""Type of the error when fields contradict each other. Its context holds its template, in which
the names of fields stand in braces."""


def _clash(template: str) -> PydanticCustomError:
    fields = {name: name for name in re.findall(r"\{(\w+)\}", template)}
    return PydanticCustomError(CONTRADICTION, cast(Any, template), {**fields, "template": template})
