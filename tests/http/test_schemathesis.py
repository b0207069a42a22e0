"""The API does what its description says, also for requests that nobody thought of.

In-process, on a scripted agent: some thousand requests in a few seconds, each judged by every check
that Schemathesis has (no mistake of ours, no undocumented status, media type, header or body, bad
requests refused, good ones taken, unknown methods a 405 with `Allow`, no operation without a key,
no session after its end) and each event of each stream by ours.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from schemathesis.python import asgi
from starlette.types import Message, Receive, Scope, Send

from session_http.frames import PING
from session_http.keys import Authenticate, anybody
from session_http.openapi import document
from session_http.operations import OPERATIONS
from session_http.settings import HttpSettings
from session_http.sse import StreamSettings
from session_supervisor import SupervisorConfig
from session_supervisor.agents.scripted import Conversation, Say, Step, UseTool
from session_supervisor.spec import Prompt
from tests.http.explore import Report, examples, explore
from tests.http.keyring import Keys
from tests.http.servers import World, world

pytestmark = pytest.mark.timeout(900)  # of all that is explored, at once, on a busy machine

TOOLS = ("Bash", "Edit", "Glob", "Grep", "Read", "Write")
SETTINGS = HttpSettings(streams=StreamSettings(heartbeat_s=0.05))
DESCRIBED = [f"{row.method} {row.path}" for row in OPERATIONS if row.described]
OF_A_MOMENT = (
    # What there is only while somebody is asked, while a turn waits, or after a failure.
    "{request_id}",
    "DELETE /session/{session_id}/turns/{turn_id}",
    "POST /session/{session_id}/restart",
    "POST /session/{session_id}/fork",
    # And what needs an id or a name that no answer has told.
    "{event_id}",
    "/files/{path}",
)


def script(prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
    """Answer in every way that there is, by the prompt's length."""
    yield Say("I see. ", deltas=2)
    if len(prompt.text) % 3 == 1:
        yield UseTool("Read", input={"path": "a"}, result="what is in it")
    yield Say(f"You said {prompt.text!r}.")


class Application:
    """The application and its supervisor, opened and closed by the lifespan that it is given."""

    def __init__(self, authenticate: Authenticate) -> None:
        self._authenticate = authenticate
        self.world: World | None = None
        self.left: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            config = SupervisorConfig(max_sessions=100_000, max_live=100_000)
            async with world(
                script, config=config, settings=SETTINGS, authenticate=self._authenticate
            ) as self.world:
                await send({"type": "lifespan.startup.complete"})
                await receive()
                app = self.world.app
                self.left = {"requests": app.open_requests, "streams": app.open_streams}
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await self._until_silence(scope, receive, send)

    async def _until_silence(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and end a stream with its first heartbeat: nothing more will be said on it."""
        silent = False

        async def hear(message: Message) -> None:
            nonlocal silent
            if not silent:
                silent = message.get("body") == PING
                await send({**message, "more_body": False} if silent else message)

        assert self.world is not None
        await self.world.app(scope, receive, hear)


class Explored:
    """One exploration, which the tests look at from all sides."""

    def __init__(self, *, keys: Keys | None) -> None:
        authenticate: Authenticate = anybody
        token: str | None = None
        described, most = document(OPERATIONS, open_paths=None), examples()
        if keys is not None:
            authenticate, token = (
                keys.ring.authenticate,
                keys.add("somebody", roles=("user", "admin")).token,
            )
            # What differs is found by the first good request of each operation.
            described, most = document(OPERATIONS), most // 2
        self.keys = keys is not None
        self.app = Application(authenticate)
        try:
            self.report: Report = explore(
                described, app=self.app, token=token, tools=TOOLS, most=most
            )
        finally:
            asgi.shutdown_lifespans()


@pytest.fixture(scope="module", params=["anybody", "keys"])
def explored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Explored:
    keys = Keys(tmp_path_factory.mktemp("keys")) if request.param == "keys" else None
    return Explored(keys=keys)


def test_no_answer_is_other_than_described(explored: Explored) -> None:
    failures = explored.report.failures
    assert not failures, f"{len(failures)} failures, the first:\n" + "\n\n".join(failures[:5])


def test_every_phase_asked_something(explored: Explored) -> None:
    assert explored.report.phases >= {"examples", "coverage", "fuzzing", "stateful"}


@pytest.mark.parametrize("label", DESCRIBED)
def test_every_operation_was_asked_well_and_badly(explored: Explored, label: str) -> None:
    statuses = explored.report.statuses(label)
    found = 200 in statuses or any(part in label for part in OF_A_MOMENT)
    assert found, "it was never asked for anything that it has"
    takes = "{" in label or label.startswith("POST")
    assert statuses & {400, 404} or not takes, "it was never asked badly"


@pytest.mark.parametrize("path", sorted({label.partition(" ")[2] for label in DESCRIBED}))
def test_every_path_was_asked_in_methods_that_it_does_not_have(
    explored: Explored, path: str
) -> None:
    answers = explored.report.answers
    assert any(label.endswith(f" {path}") and status == 405 for label, status in answers)


def test_without_a_key_nothing_is_told(explored: Explored) -> None:
    unauthorized = {label for label, status in explored.report.answers if status == 401}
    assert bool(unauthorized) is explored.keys


def test_nothing_is_left(explored: Explored) -> None:
    assert explored.app.left == {"requests": 0, "streams": 0}
