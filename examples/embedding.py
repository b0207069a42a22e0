"""Asks one question of a Claude session, without the HTTP server.

    python examples/embedding.py

It needs a Claude credential: docs/authentication.md.
"""

import asyncio
from pathlib import Path

from session_supervisor import SessionSpec, Supervisor
from session_supervisor.agents.claude import ClaudeAgent


async def main() -> None:
    async with Supervisor(ClaudeAgent()) as supervisor:
        session = await supervisor.start(SessionSpec(model="sonnet", cwd=str(Path.cwd())))
        turn = await session.query("What is Docker?")
        async for event in turn:
            print(event)
        print((await turn.result()).text)


if __name__ == "__main__":
    asyncio.run(main())
