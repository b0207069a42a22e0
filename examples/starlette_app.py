"""The API within a Starlette application, below a path and behind that application's own login.

    uvicorn --factory examples.starlette_app:create --timeout-graceful-shutdown 10

It needs a Claude credential: docs/authentication.md.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
)
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from session_http.app import create_app
from session_http.keys import Principal
from session_supervisor import Agent, Supervisor
from session_supervisor.agents.claude import ClaudeAgent

USERS = {"token-of-ada": "ada", "token-of-bob": "bob"}


class Login(AuthenticationBackend):
    """Stands for yours: a cookie, a token of your identity provider, a header of your proxy."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token not in USERS:
            raise AuthenticationError("Send `Authorization: Bearer TOKEN`.")
        return AuthCredentials(), SimpleUser(USERS[token])


def refuse(_connection: HTTPConnection, error: AuthenticationError) -> Response:
    return JSONResponse({"detail": str(error), "code": "unauthorized"}, status_code=401)


def caller(connection: HTTPConnection) -> Principal:
    """Everybody has sessions of their own; somebody else's do not exist for them."""
    return Principal(owner=connection.user.display_name)


async def usage(request: Request) -> Response:
    """An endpoint of the application itself, which looks at the same sessions."""
    supervisor: Supervisor = request.app.state.supervisor
    own = [session.snapshot() for session in supervisor.list(owner=request.user.display_name)]
    return JSONResponse(
        {"sessions": len(own), "cost_usd": sum(session.total_cost_usd for session in own)}
    )


def create(agent: Agent | None = None) -> Starlette:
    """Return the application. A supervisor is opened once, so each has its own."""
    supervisor = Supervisor(agent or ClaudeAgent())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with supervisor:
            app.state.supervisor = supervisor
            yield
            await supervisor.drain(10.0)  # turns may still end; leaving would interrupt them

    return Starlette(
        routes=[
            Route("/usage", usage),
            Mount("/agents", app=create_app(supervisor, authenticate=caller)),
        ],
        middleware=[Middleware(AuthenticationMiddleware, backend=Login(), on_error=refuse)],
        lifespan=lifespan,
    )
