"""The one conformance suite of the port `Agent`: what every adapter is held to.

To use it, say in an `AgentHarness` how to bring about what the tests need, and derive:

    class TestMyAgent(AgentConformance):
        @pytest.fixture
        def harness(self) -> AgentHarness:
            return MyHarness()

In every test one task reads all that a process says; at its end the stream is checked against the
grammar of the port, the process is stopped, and no process may be left.
"""

from tests.supervisor.agents.conformance.asks import Asking, Changing, Forking
from tests.supervisor.agents.conformance.ends import Ends, Interrupts, Resumption
from tests.supervisor.agents.conformance.harness import AgentHarness, Prompts
from tests.supervisor.agents.conformance.talk import HeardTurn, Talk, heard_turns, talking
from tests.supervisor.agents.conformance.turns import Starting, Turns

__all__ = [
    "AgentConformance",
    "AgentHarness",
    "HeardTurn",
    "Prompts",
    "Talk",
    "heard_turns",
    "talking",
]


class AgentConformance(Starting, Turns, Asking, Changing, Interrupts, Ends, Resumption, Forking):
    """All of it. A subclass provides the fixture `harness`."""
