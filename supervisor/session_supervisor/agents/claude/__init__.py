"""Claude Code as an agent: the adapter of the `Agent` port on claude-agent-sdk.

Importing it does not import the SDK, which takes a second; starting the first process does.

Rooms: `agent` starts processes, `asking` says what sessions may ask for, `launch` how the CLI is
started, `variables` what it inherits, `workdir`, `configdir` and `scratch` where it works and keeps
its files, `confinement` which files it may touch, `sandbox` what Bash may, `program` is the running
program, `process` the port's view of it, `transport` the SDK's, `translate` turns what it prints
into the port's messages, `failures` says what an error means, `orphans` ends what it left behind,
`manifest` what our predecessor left, `census` counts what there is, all by what `proc` reads,
`mirror` copies transcripts to a store and `transcripts` writes them back and erases them,
`tools` and `models` know names, `credentials` tells how the CLI would log in.
"""

from session_supervisor.agents.claude.agent import ClaudeAgent
from session_supervisor.agents.claude.credentials import (
    Credential,
    CredentialProvider,
    find_credential,
)
from session_supervisor.agents.claude.process import ClaudeProcess, StopTimes

__all__ = [
    "ClaudeAgent",
    "ClaudeProcess",
    "Credential",
    "CredentialProvider",
    "StopTimes",
    "find_credential",
]
