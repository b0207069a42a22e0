"""What a session may ask for: checked before anything is begun, in the words of its caller."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from session_supervisor.agents.claude import models, schemas, tools, workdir
from session_supervisor.agents.claude.confinement import is_in
from session_supervisor.errors import InvalidSpec, NotAllowed
from session_supervisor.spec import SessionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the operator allows.

    Attributes:
        extra_tools: Tools besides the known ones.
        forbidden_tools: Those that never exist, as `tools.checked` returns them.
        hidden_dirs: Where no session may choose to work.
        allow_bypass_permissions: Whether sessions may have `bypassPermissions`.
        mcp_servers: Names of the MCP servers that sessions may have.
        env: The operator's variables, one of which may say that this is a sandbox.
    """

    extra_tools: tuple[str, ...]
    forbidden_tools: tuple[str, ...]
    hidden_dirs: tuple[str, ...]
    allow_bypass_permissions: bool
    mcp_servers: tuple[str, ...]
    env: Mapping[str, str]

    @property
    def may_bypass(self) -> bool:
        """Whether a process may be started so that it can bypass permissions."""
        return self.allow_bypass_permissions and not self._is_root_at_large()

    def check(self, spec: SessionSpec) -> None:
        """Refuse what could not be done.

        Raises:
            NotAllowed: The operator has not allowed it.
            InvalidSpec: It names the field and says why.
        """
        if spec.model is not None and not models.is_name(spec.model):
            raise InvalidSpec("model", f"{spec.model[:100]!r} cannot be the name of a model.")
        if spec.cwd is not None:
            self._check_cwd(spec.cwd)
        self._check_servers(spec.mcp_servers)
        self._check_tools(spec.allowed_tools or (), spec.mcp_servers)
        if spec.permission_mode == "bypassPermissions":
            self._check_bypass()
        if spec.max_turns is not None and spec.max_turns < 1:
            raise InvalidSpec("max_turns", "it must be at least 1.")
        if spec.system_prompt is not None and not _is_text(spec.system_prompt):
            raise InvalidSpec("system_prompt", "it holds half a surrogate pair, which is no text.")
        budget = spec.max_budget_usd
        if budget is not None and not 0 < budget < inf:
            raise InvalidSpec("max_budget_usd", "it must be more than 0.")
        if spec.output_schema is not None:
            fault = schemas.fault(spec.output_schema)
            if fault is not None:
                raise InvalidSpec("output_schema", fault)

    def _check_cwd(self, cwd: str) -> None:
        if not os.path.isabs(cwd):
            raise InvalidSpec("cwd", f"{cwd!r} is not an absolute path.")
        if not os.path.isdir(cwd):
            raise InvalidSpec("cwd", f"{cwd!r} is not a directory on this machine.")
        if not workdir.is_resolved(cwd):
            raise InvalidSpec(
                "cwd", f"{cwd!r} leads through a symbolic link. Give the path where that leads."
            )
        if any(is_in(cwd, os.path.realpath(one)) for one in self.hidden_dirs):
            raise NotAllowed("cwd", "that directory holds files of the server. Choose another.")

    def _check_servers(self, requested: Sequence[str]) -> None:
        strange = [one for one in requested if one not in self.mcp_servers]
        if strange:
            there = ", ".join(self.mcp_servers) or "none"
            raise InvalidSpec(
                "mcp_servers",
                f"the operator has set up no server {', '.join(map(repr, strange))}. "
                f"There are: {there}.",
            )

    def _check_tools(self, requested: Sequence[str], servers: Sequence[str]) -> None:
        there = ", ".join(tools.known(extra=self.extra_tools, forbidden=self.forbidden_tools))
        forbidden = [one for one in requested if tools.documented_name(one) in self.forbidden_tools]
        if forbidden:
            raise NotAllowed(
                "allowed_tools",
                f"the operator of this server has forbidden {', '.join(map(repr, forbidden))}. "
                f"There are: {there}.",
            )
        strange = tools.unknown(requested, extra=self.extra_tools, servers=servers)
        if strange:
            raise InvalidSpec(
                "allowed_tools",
                f"there is no tool {', '.join(map(repr, strange))}. There are: {there}.",
            )

    def _check_bypass(self) -> None:
        if not self.allow_bypass_permissions:
            raise NotAllowed(
                "permission_mode", "the operator of this server has not allowed bypassPermissions."
            )
        if self._is_root_at_large():
            raise NotAllowed(
                "permission_mode",
                "Claude Code refuses bypassPermissions to root. The operator must run the server "
                "as another user or, if it is in a sandbox, set IS_SANDBOX=1.",
            )

    def _is_root_at_large(self) -> bool:
        sandboxed = {**os.environ, **self.env}.get("IS_SANDBOX")
        return os.geteuid() == 0 and not sandboxed


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
