"""An example of every body that the API takes and gives, for its description.

They are values of the models themselves, so none can be other than what the server takes and gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from session_http.asked import (
    REQUEST_EXAMPLE,
    AnswersRequest,
    DecisionRequest,
    PermissionReply,
    PermissionsReply,
    QuestionReply,
    QuestionsReply,
    RuleRequest,
)
from session_http.files import FileKind
from session_http.refusals import ProblemReply
from session_http.schemas import (
    PIXEL_EXAMPLE,
    TURN_EXAMPLE,
    UUID_EXAMPLE,
    AcceptedReply,
    AttachmentRequest,
    CloseReply,
    CompactReply,
    CompactRequest,
    ContextReply,
    EventReply,
    FilesReply,
    ForkReply,
    ForkRequest,
    Health,
    Index,
    InspectReply,
    InterruptReply,
    InterruptRequest,
    Lanes,
    Message,
    MessagesReply,
    PatchRequest,
    PoolReply,
    ProcessExit,
    QueryReply,
    QueryRequest,
    Ready,
    RestReply,
    SessionFile,
    SessionQueryReply,
    SessionQueryRequest,
    SessionReply,
    SessionsReply,
    StartReply,
    StartRequest,
    SupervisedSession,
    SupervisorReply,
    TreeProcess,
    TurnReply,
    TurnsReply,
    TurnSummary,
    WithdrawReply,
)
from session_supervisor.asks import Choice, Question, Resolution, Rule
from session_supervisor.lifecycle import State
from session_supervisor.messages import InterruptOutcome, OnBusy
from session_supervisor.results import Origin, Outcome, Phase
from session_supervisor.spec import JsonObject, SessionKind

_ASKED = datetime(2025, 10, 14, 10, 30, tzinfo=UTC)
_LATER = datetime(2025, 10, 14, 10, 30, 4, tzinfo=UTC)
_EXPIRES = datetime(2025, 10, 14, 10, 40, tzinfo=UTC)
_OTHER = "1f0e6f9c-93a5-4f0e-8d5b-5d0a7a1b9c33"
_SCHEMA: JsonObject = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
}
_USAGE = {"input_tokens": 1200, "output_tokens": 64}


@cache
def examples() -> Mapping[type[BaseModel], Any]:
    """Return an example for each model, as JSON."""
    return MappingProxyType(
        {type(value): _json(value) for value in (*_requests(), *_answers(), *_humans())}
    )


def _json(value: BaseModel) -> Any:
    # What a request or a problem leaves out is left out here, too; other answers hold everything.
    terse = type(value).__name__.endswith("Request") or isinstance(value, ProblemReply)
    return value.model_dump(mode="json", exclude_none=terse)


def _requests() -> tuple[BaseModel, ...]:
    return (
        QueryRequest(
            prompt="What is six times seven?", output_schema=_SCHEMA, max_turns=3, timeout_s=120
        ),
        StartRequest(
            initial_prompt="What is Docker?",
            model="sonnet",
            permission_mode="default",
            on_permission="ask",
            max_budget_usd=2.5,
            title="Migration to Docker",
            metadata={"ticket": "OPS-7"},
        ),
        SessionQueryRequest(
            prompt="What is in this picture?",
            attachments=(AttachmentRequest(data=PIXEL_EXAMPLE, name="pixel.png"),),
            on_busy=OnBusy.QUEUE,
        ),
        InterruptRequest(queued=True),
        PatchRequest(model="haiku", permission_mode="acceptEdits", title="Migration"),
        ForkRequest(title="Another way", copy_workspace=True),
        CompactRequest(instructions="Keep the names of all files."),
        DecisionRequest(
            decision="allow",
            updated_input={"command": "npm test"},
            remember=(RuleRequest(tool="Bash", content="npm test"),),
        ),
        AnswersRequest(answers={"Which database?": "PostgreSQL"}),
    )


def _answers() -> tuple[BaseModel, ...]:
    turn = TurnSummary(
        turn_id=TURN_EXAMPLE,
        session_id=UUID_EXAMPLE,
        origin=Origin.USER,
        phase=Phase.ENDED,
        outcome=Outcome.COMPLETED,
        accepted_at=_ASKED,
        started_at=_ASKED,
        ended_at=_LATER,
        duration_ms=4000,
        first_event_id=1,
        error=None,
    )
    return (
        Health(authenticated=True, active_sessions=2, timestamp=_ASKED, offline=False),
        Ready(),
        Index(name="Claude sessions", version="0.1.0", endpoints=("/health", "/query")),
        QueryReply(
            response='{"answer": 42}',
            duration_ms=2150,
            num_turns=2,
            total_cost_usd=0.0031,
            session_id=UUID_EXAMPLE,
            turn_id=TURN_EXAMPLE,
            outcome="completed",
            structured_output={"answer": 42},
        ),
        StartReply(
            session_id=UUID_EXAMPLE,
            initial_response="Docker is a platform for containerization...",
            created_at=_ASKED,
            turn_id=TURN_EXAMPLE,
            outcome="completed",
        ),
        SessionQueryReply(
            session_id=UUID_EXAMPLE,
            response="To install Docker, you can...",
            duration_ms=3120,
            turn_id=TURN_EXAMPLE,
            outcome="completed",
            num_turns=1,
            total_cost_usd=0.0021,
        ),
        AcceptedReply(session_id=UUID_EXAMPLE, turn_id=TURN_EXAMPLE, position=0),
        InterruptReply(
            session_id=UUID_EXAMPLE,
            outcome=InterruptOutcome.INTERRUPTED,
            turn_ids=(TURN_EXAMPLE,),
        ),
        SessionReply(
            session_id=UUID_EXAMPLE,
            created_at=_ASKED,
            active=True,
            model="sonnet",
            state="waiting",
            owner="local",
            permission_mode="default",
            title="Migration to Docker",
            metadata={"ticket": "OPS-7"},
            total_cost_usd=0.012,
            pending=1,
        ),
        SessionsReply(active_sessions=(UUID_EXAMPLE,), count=1),
        RestReply(session_id=UUID_EXAMPLE, state=State.STARTING),
        CloseReply(
            session_id=UUID_EXAMPLE, exit=ProcessExit(code=0, signal=None, cause="It was stopped.")
        ),
        ForkReply(
            session_id=_OTHER,
            created_at=_ASKED,
            forked_from=UUID_EXAMPLE,
            forked_after=TURN_EXAMPLE,
        ),
        CompactReply(
            session_id=UUID_EXAMPLE,
            turn_id=TURN_EXAMPLE,
            outcome="completed",
            duration_ms=5200,
            total_cost_usd=0.02,
        ),
        WithdrawReply(session_id=UUID_EXAMPLE, turn_id=TURN_EXAMPLE),
        InspectReply(
            session_id=UUID_EXAMPLE,
            state=State.WAITING,
            turn_id=TURN_EXAMPLE,
            turn_origin=Origin.USER,
            queued=0,
            lanes=Lanes(control=0, work=0),
            waiting_for="somebody to answer",
            last_message_s=12.5,
            pid=4711,
            agent_session_id=_OTHER,
            background=0,
            restarts=0,
            next_timer="permission",
            next_timer_s=587.5,
            last_event_id=9,
            processes=(TreeProcess(pid=4711, parent=4000, name="claude", pss_bytes=104_857_600),),
            pss_bytes=104_857_600,
            pending=(REQUEST_EXAMPLE,),
            context=ContextReply(tokens=12_000, max_tokens=200_000),
        ),
        SupervisorReply(
            active=1,
            live=1,
            waiting=0,
            max_sessions=1000,
            max_live=32,
            draining=False,
            memory_bytes=104_857_600,
            memory_budget_bytes=4_294_967_296,
            pool=PoolReply(
                ready=2,
                starting=0,
                hits=118,
                misses=3,
                started=4,
                recycled=96,
                retired={"age": 2, "used Bash": 19},
            ),
            sessions=(
                SupervisedSession(
                    session_id=UUID_EXAMPLE,
                    owner="local",
                    kind=SessionKind.CONVERSATION,
                    state=State.IDLE,
                    model="sonnet",
                    created_at=_ASKED,
                    queued=0,
                    restarts=0,
                    last_event_id=9,
                    total_cost_usd=0.012,
                    inside=None,
                ),
            ),
        ),
        FilesReply(
            session_id=UUID_EXAMPLE,
            files=(
                SessionFile(path="out", kind=FileKind.DIRECTORY, size=None, modified_at=_LATER),
                SessionFile(
                    path="out/report.md", kind=FileKind.FILE, size=1234, modified_at=_LATER
                ),
            ),
            count=2,
            truncated=False,
        ),
        MessagesReply(
            session_id=UUID_EXAMPLE,
            messages=(
                Message(
                    id=f"{TURN_EXAMPLE}.user",
                    turn_id=TURN_EXAMPLE,
                    role="user",
                    content="What is Docker?",
                    at=_ASKED,
                    outcome=None,
                ),
            ),
            has_more=False,
        ),
        TurnsReply(session_id=UUID_EXAMPLE, turns=(turn,), count=1),
        TurnReply(
            **dict(turn),
            prompt="What is Docker?",
            response="Docker is a platform for containerization...",
            num_turns=1,
            total_cost_usd=0.0021,
            usage=_USAGE,
            stop_reason="end_turn",
            permission_denials=(),
            structured_output=None,
            attachments=(),
            on_permission="ask",
        ),
        EventReply(
            session_id=UUID_EXAMPLE,
            id=17,
            at=_ASKED,
            event={
                "type": "tool_result",
                "tool_use_id": "toolu_01",
                "content": "everything that the tool said",
                "is_error": False,
                "parent_tool_use_id": None,
                "turn_id": TURN_EXAMPLE,
            },
        ),
    )


def _humans() -> tuple[BaseModel, ...]:
    permission = PermissionReply(
        session_id=UUID_EXAMPLE,
        request_id=REQUEST_EXAMPLE,
        turn_id=TURN_EXAMPLE,
        tool="Bash",
        tool_use_id="toolu_01",
        asked_at=_ASKED,
        expires_at=_EXPIRES,
        resolution=Resolution.ALLOWED,
        resolved_at=_LATER,
        message=None,
        input={"command": "rm -r build && npm test"},
        suggestions=(Rule(tool="Bash", content="npm test"),),
        updated_input={"command": "npm test"},
        remembered=(Rule(tool="Bash", content="npm test"),),
    )
    question = QuestionReply(
        session_id=UUID_EXAMPLE,
        request_id=REQUEST_EXAMPLE,
        turn_id=TURN_EXAMPLE,
        tool="AskUserQuestion",
        tool_use_id="toolu_02",
        asked_at=_ASKED,
        expires_at=_EXPIRES,
        resolution=Resolution.ANSWERED,
        resolved_at=_LATER,
        message=None,
        questions=(
            Question(
                question="Which database?",
                header="Database",
                options=(
                    Choice(label="PostgreSQL", description="A server of its own."),
                    Choice(label="SQLite", description="A file."),
                ),
            ),
        ),
        answers={"Which database?": ("PostgreSQL",)},
    )
    waiting = {"resolution": None, "resolved_at": None}
    return (
        permission,
        question,
        PermissionsReply(
            session_id=UUID_EXAMPLE,
            permissions=(
                permission.model_copy(update={**waiting, "updated_input": None, "remembered": ()}),
            ),
            count=1,
        ),
        QuestionsReply(
            session_id=UUID_EXAMPLE,
            questions=(question.model_copy(update={**waiting, "answers": None}),),
            count=1,
        ),
        ProblemReply(
            detail="Request '7d3c…' is over already: it was allowed.",
            code="request_over",
            request=permission,
        ),
    )
