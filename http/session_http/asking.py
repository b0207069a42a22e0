"""What a human does for an agent: allow tool calls, or not, and answer questions."""

from __future__ import annotations

from collections.abc import Sequence

from session_http.asked import (
    AnswersRequest,
    DecisionRequest,
    PendingParameters,
    PermissionReply,
    PermissionsReply,
    QuestionReply,
    QuestionsReply,
    permission_reply,
    question_reply,
)
from session_http.call import Answer, Call
from session_http.problems import FieldError, InvalidRequest
from session_http.schemas import NoParameters
from session_http.work import own_session
from session_supervisor import Session
from session_supervisor.asks import Allow, Answers, Decision, Deny, Request, RequestKind, Rule
from session_supervisor.errors import RequestNotFound, RequestOver


async def list_permissions(call: Call, request: PendingParameters) -> Answer:
    """List tool calls that need a permission."""
    session = own_session(call)
    found = await _requests(session, RequestKind.PERMISSION, pending=request.pending)
    return PermissionsReply(
        session_id=session.session_id,
        permissions=tuple(permission_reply(one) for one in found),
        count=len(found),
    )


async def get_permission(call: Call, _request: NoParameters) -> PermissionReply:
    """Look up a permission request."""
    return permission_reply(await _request_of(call, own_session(call), RequestKind.PERMISSION))


async def decide_permission(call: Call, request: DecisionRequest) -> PermissionReply:
    """Allow a tool call, or do not."""
    session = own_session(call)
    asked = await _waiting(call, session, RequestKind.PERMISSION)
    decided = await session.decide(asked.request_id, _decision(asked, request))
    return permission_reply(decided)


async def list_questions(call: Call, request: PendingParameters) -> Answer:
    """List what the agent wants to know."""
    session = own_session(call)
    found = await _requests(session, RequestKind.QUESTION, pending=request.pending)
    return QuestionsReply(
        session_id=session.session_id,
        questions=tuple(question_reply(one) for one in found),
        count=len(found),
    )


async def get_question(call: Call, _request: NoParameters) -> QuestionReply:
    """Look up a question."""
    return question_reply(await _request_of(call, own_session(call), RequestKind.QUESTION))


async def answer_question(call: Call, request: AnswersRequest) -> QuestionReply:
    """Answer a question, or leave it without an answer."""
    session = own_session(call)
    asked = await _waiting(call, session, RequestKind.QUESTION)
    decided = await session.decide(asked.request_id, _answers(request))
    return question_reply(decided)


async def _requests(session: Session, kind: RequestKind, *, pending: bool) -> Sequence[Request]:
    return [one for one in await session.requests(pending=pending) if one.kind is kind]


async def _request_of(call: Call, session: Session, kind: RequestKind) -> Request:
    request_id = call.path["request_id"]
    found = await session.request(request_id)
    if found.kind is not kind:
        raise RequestNotFound(request_id)
    return found


async def _waiting(call: Call, session: Session, kind: RequestKind) -> Request:
    """Return a request that can be answered; who is second is told first what became of it."""
    found = await _request_of(call, session, kind)
    if found.resolution is not None:
        raise RequestOver(found)
    return found


def _decision(asked: Request, given: DecisionRequest) -> Decision:
    if given.decision == "deny":
        return Deny(message=given.message, end_turn=bool(given.end_turn))
    return Allow(
        updated_input=None if given.updated_input is None else dict(given.updated_input),
        remember=_rules(asked, given),
    )


def _rules(asked: Request, given: DecisionRequest) -> tuple[Rule, ...]:
    if given.remember is True:
        if not asked.suggestions:
            problem = (
                "Claude Code suggests nothing to remember; name the rules, such as "
                f'[{{"tool": "{asked.tool}"}}]'
            )
            raise InvalidRequest([FieldError(field="remember", message=problem)])
        return asked.suggestions
    return tuple(Rule(tool=rule.tool, content=rule.content) for rule in given.remember or ())


def _answers(given: AnswersRequest) -> Decision:
    if given.answers is None:
        return Deny(message=given.message, end_turn=bool(given.end_turn))
    return Answers(
        answers={
            question: (answer,) if isinstance(answer, str) else answer
            for question, answer in given.answers.items()
        }
    )
