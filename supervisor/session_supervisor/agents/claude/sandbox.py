"""The CLI's own sandbox for Bash: what it is told, and whether the machine has what it needs.

In it a command reads everything but what is hidden, writes only below the session's directories,
sees no process but its own, no network, and no credential in its environment.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping

from session_supervisor.agents.claude import variables
from session_supervisor.agents.claude.confinement import Confinement
from session_supervisor.errors import AgentMissing
from session_supervisor.spec import JsonObject

NEEDED = ("bwrap", "socat")
"""The programs that it is made of, from the packages bubblewrap and socat."""


def require(path: str | None) -> None:
    """Return if the sandbox can be had on this machine.

    Args:
        path: Where to look for programs: the `PATH` of the process.

    Raises:
        AgentMissing: A program that it needs is missing.
    """
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        raise AgentMissing(
            f"The sandbox needs {' and '.join(missing)}, which this machine does not have. "
            "Install bubblewrap and socat, or turn the sandbox off."
        )


def settings(
    limits: Confinement, env: Mapping[str, str], *, secret: Collection[str] = ()
) -> JsonObject:
    """Return the settings that turn it on.

    Args:
        limits: What the file tools may reach.
        env: The environment of the process.
        secret: Names of variables that commands must not see, besides those known to be so.
    """
    withheld = sorted({*variables.credentials(env), *secret})
    sandbox: JsonObject = {
        "enabled": True,
        "failIfUnavailable": True,
        # A sandbox is no permission: whether Bash runs at all is decided as without one.
        "autoAllowBashIfSandboxed": False,
        # Else the model may ask for a command to be run outside.
        "allowUnsandboxedCommands": False,
        "filesystem": {
            "denyRead": list(limits.hidden),
            "allowRead": list(limits.roots),
            "allowWrite": list(limits.roots),
        },
        # Not CLAUDE_CODE_SUBPROCESS_ENV_SCRUB, which also lets commands write to all of /tmp.
        "credentials": {"envVars": [{"name": name, "mode": "deny"} for name in withheld]},
    }
    return {"sandbox": sandbox}
