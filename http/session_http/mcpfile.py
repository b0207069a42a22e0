"""The MCP servers that an operator lets sessions ask for by name: a file in Claude Code's own form.

{"mcpServers": {"tickets": {"command": "tickets-mcp", "args": ["--read-only"]}}}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from session_supervisor.spec import JsonObject


class McpFileError(ValueError):
    """The file cannot be used; the message says why, and nothing that it holds."""


class _File(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, strict=True)

    servers: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], JsonObject] = Field(
        alias="mcpServers"
    )

    @field_validator("servers")
    @classmethod
    def _can_be_reached(cls, servers: dict[str, JsonObject]) -> dict[str, JsonObject]:
        for name, one in servers.items():
            if isinstance(one.get("command"), str) is isinstance(one.get("url"), str):
                raise ValueError(f"{name} needs a `command` or a `url`, a text")
        return servers


def load(path: Path) -> Mapping[str, JsonObject]:
    """Return the servers of a file, by name.

    Raises:
        McpFileError: It cannot be read, or is none.
    """
    try:
        return _File.model_validate_json(path.read_bytes()).servers
    except OSError as error:
        raise McpFileError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_input=False)
        where = ".".join(str(part) for part in first["loc"])
        raise McpFileError(
            f"{path} is no list of MCP servers: {where + ': ' if where else ''}{first['msg']}."
        ) from None
