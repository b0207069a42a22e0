"""Chats for the users of a FastAPI application, streamed; jobs behind its requests; and the API.

    uvicorn --factory examples.fastapi_app:create --timeout-graceful-shutdown 10

It needs a Claude credential: docs/authentication.md.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.responses import Response

from session_http.app import create_app
from session_http.keys import Principal
from session_http.problems import problem_of
from session_http.sse import EventStream, EventStreamResponse, is_over
from session_supervisor import Agent, Session, SessionSpec, Supervisor, TurnHandle
from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.errors import SupervisorError

USERS = {"token-of-ada": "ada", "token-of-bob": "bob"}


# -- what endpoints depend on ----------------------------------------------------------------------


def user_of(connection: HTTPConnection) -> str:
    """Stands for your own way to tell who calls."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or token not in USERS:
        raise HTTPException(401, "Send `Authorization: Bearer TOKEN`.")
    return USERS[token]


User = Annotated[str, Depends(user_of)]


def supervisor_of(request: Request) -> Supervisor:
    supervisor: Supervisor = request.app.state.supervisor
    return supervisor


Supervised = Annotated[Supervisor, Depends(supervisor_of)]


def chat_of(chat_id: str, user: User, supervisor: Supervised) -> Session:
    return supervisor.get(chat_id, owner=user)  # or `SessionNotFound`, a 404


Chat = Annotated[Session, Depends(chat_of)]


# -- endpoints -------------------------------------------------------------------------------------

router = APIRouter()


class Message(BaseModel):
    text: str


class Job(BaseModel):
    session_id: str
    turn_id: str


@router.post("/chats", status_code=201)
async def begin(user: User, supervisor: Supervised) -> dict[str, str]:
    spec = SessionSpec(allowed_tools=("Read", "Grep"))
    session = await supervisor.start(spec, owner=user)
    return {"chat_id": session.session_id}


@router.post("/chats/{chat_id}/messages", response_class=EventStreamResponse)
async def say(message: Message, chat: Chat) -> EventStreamResponse:
    """Stream the answer. A client that goes away does not stop it."""
    turn = await chat.query(message.text, timeout_s=600.0)
    return EventStreamResponse(EventStream(session=chat, cursor=turn.cursor(), turn=turn))


@router.get("/chats/{chat_id}/events", response_class=EventStreamResponse)
async def follow(chat: Chat, last_event_id: Annotated[int, Header(ge=0)] = 0) -> Response:
    """Stream the whole chat; a browser's `EventSource` comes back by itself to where it was."""
    if await is_over(chat, last_event_id):
        return Response(status_code=204)  # it need not come back any more
    return EventStreamResponse(EventStream(session=chat, cursor=chat.events(last_event_id)))


@router.post("/reports", status_code=202)
async def order(
    message: Message, user: User, supervisor: Supervised, tasks: BackgroundTasks
) -> Job:
    """Answer at once, and go on when the report is written."""
    turn = await supervisor.query(message.text, owner=user)  # refused now, if at all
    tasks.add_task(deliver, user, turn)
    return Job(session_id=turn.session_id, turn_id=turn.turn_id)


async def deliver(user: str, turn: TurnHandle) -> None:
    """Stands for a mail, a row, a webhook. The turn does not need anybody to wait for it."""
    result = await turn.wait()
    print(f"report for {user}: {result.outcome}: {result.text}")


# -- the application -------------------------------------------------------------------------------


async def refused(_request: Request, error: Exception) -> Response:
    """Answer what the library refuses as the API does: status, `detail`, `code`, `Retry-After`."""
    problem = problem_of(error)
    if problem is None:
        raise error
    return problem.response()


def caller(connection: HTTPConnection) -> Principal:
    return Principal(owner=user_of(connection))


def create(agent: Agent | None = None) -> FastAPI:
    """Return the application. A supervisor is opened once, so each has its own."""
    supervisor = Supervisor(agent or ClaudeAgent())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with supervisor:
            app.state.supervisor = supervisor
            yield
            await supervisor.drain(10.0)  # turns may still end; leaving would interrupt them

    app = FastAPI(lifespan=lifespan, exception_handlers={SupervisorError: refused})
    app.include_router(router)
    app.mount("/agents", create_app(supervisor, authenticate=caller))
    return app
