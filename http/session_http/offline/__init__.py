"""The offline model: the Messages API on loopback, for the real Claude Code CLI without network.

`OfflineModel` serves it in the running event loop, `python -m session_http.offline` as a process,
and `create_offline_app` gives the plain ASGI application. By default it answers with what it was
told in the conversation, which proves memory; `directives` documents the language in which a
prompt asks for tools, slow answers and faults, and `Scenario` lets them happen by chance.

Rooms: `conversation` reads a request, `script` plans the `reply` in `prose`, `wire` turns the plan
into bytes, `app` and `server` carry it out.
"""

from session_http.offline.app import OfflineApp, RequestRecord, create_offline_app
from session_http.offline.conversation import Kind
from session_http.offline.directives import DirectiveError
from session_http.offline.reply import Pacing
from session_http.offline.scenario import Scenario
from session_http.offline.server import OfflineModel

__all__ = [
    "DirectiveError",
    "Kind",
    "OfflineApp",
    "OfflineModel",
    "Pacing",
    "RequestRecord",
    "Scenario",
    "create_offline_app",
]
