"""A parent that starts a Claude Code process, has it busy, and waits to be killed."""

from __future__ import annotations

import asyncio
import json
import sys

from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.agents.port import Fingerprint, ToolFinished
from session_supervisor.spec import Prompt


async def main(url: str, config: str, cwd: str, manifest: str, command: str) -> None:
    env = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "offline"}
    agent = ClaudeAgent(env=env, config_dir=config, manifest=manifest)
    process = await agent.spawn(
        Fingerprint(owner="local", cwd=cwd, allowed_tools=("Bash",), permission_mode="default")
    )
    call = json.dumps({"command": command, "description": "d"})
    await process.send(Prompt(prompt_id="p", text=f"[[tool Bash {call}]] [[hang before]]"))
    async for message in process.messages():
        if isinstance(message, ToolFinished):
            print(process.pid, flush=True)  # noqa: T201


asyncio.run(main(*sys.argv[1:]))
