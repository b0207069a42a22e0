"""`ScriptedAgent`: the `Agent` port without a program behind it, for tests, load and embedders.

What it answers comes from a script: a function that is given a prompt and its conversation and
returns steps. Steps are the values in `script`, and any message of the port, said as it is:

    def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
        yield ThinkingDelta("hm")
        yield UseTool("Bash", input={"command": "make"}, result="ok", seconds=3.0)
        yield UseTool("Write", input={"file_path": "a"}, asks=True)  # waits for a human
        yield Say("It is built.", deltas=4, every_s=0.05)

    agent = ScriptedAgent(script)
    agent = ScriptedAgent(by_prompt({"die": [Say("I w", confirmed=False), Crash()]}))
    agent.starts.append(Start(hangs=True))  # the next process does not come up
    agent.processes[-1].crash()             # and the latest one dies

It has the manners of the Claude Code CLI where they matter to who drives it: it resumes and forks
conversations, queues prompts, begins turns by itself, skips a prompt id it has seen, asks and
remembers what it is told, and its cost accumulates. It knows one command, `/compact`.

Everything is deterministic, and all delays are timers of the event loop, so it is at home on
virtual time. It has no tasks at all: the script runs inside the one reader that the port promises,
which is what makes ten thousand of these processes cheap. So a process that nobody reads does
not get on, and one whose messages are read slowly speaks slowly.
"""

from session_supervisor.agents.scripted.agent import TOOLS, Manners, ScriptedAgent, Start
from session_supervisor.agents.scripted.process import ScriptedProcess
from session_supervisor.agents.scripted.script import (
    Absorb,
    AskQuestions,
    BeginAlone,
    Complain,
    Conversation,
    Crash,
    Fail,
    Freeze,
    Give,
    Hang,
    IgnoreInterrupts,
    Pause,
    Say,
    Script,
    Step,
    UseTool,
    by_prompt,
    echo,
)

__all__ = [
    "TOOLS",
    "Absorb",
    "AskQuestions",
    "BeginAlone",
    "Complain",
    "Conversation",
    "Crash",
    "Fail",
    "Freeze",
    "Give",
    "Hang",
    "IgnoreInterrupts",
    "Manners",
    "Pause",
    "Say",
    "Script",
    "ScriptedAgent",
    "ScriptedProcess",
    "Start",
    "Step",
    "UseTool",
    "by_prompt",
    "echo",
]
