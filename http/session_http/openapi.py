"""The description of the API, OpenAPI 3.1, made from the table of operations."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias, cast

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from session_http import TITLE, version
from session_http.examples import examples
from session_http.frames import BODIES, LONG, WITH_SESSION, StreamFailed
from session_http.idempotency import HEADER, PATTERN
from session_http.operations import ONE_OFF, Operation
from session_http.problems import KINDS
from session_http.reading import Source
from session_http.refusals import ProblemReply
from session_http.schemas import AcceptedReply, EventReply
from session_http.settings import OPEN_PATHS, OpenPaths
from session_supervisor import asks

Json: TypeAlias = dict[str, Any]

REFS = "#/components/schemas/{model}"
EVENT = "SessionEvent"
"""Name of the union of all events among the schemas."""

ASKED = "AskedQuestion"
"""Name of a question of an event among the schemas."""

NAMES = {
    "session_supervisor__asks__Question": ASKED,
    "session_supervisor__events__Question": "Question",
}

ANY_OPERATION = ("invalid_request", "untrusted_origin", "internal")
WITH_BODY = (
    "malformed_json",
    "request_timeout",
    "payload_too_large",
    "unsupported_media_type",
)
"""Codes that every operation, and every one with a body, can answer with."""
WITH_KEYS = ("unauthorized", "too_many_requests")
"""Codes that every operation can answer with where callers need a key."""

SCHEMES: Json = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, from the operator. Not beside another one in `X-API-Key`.",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same, where `Authorization` is taken.",
    },
}
SECURITY: list[Json] = [{name: []} for name in SCHEMES]

STATUS_NAMES: Mapping[int, str] = {
    400: "Invalid request",
    401: "A key is needed",
    403: "Not allowed",
    404: "Not found",
    408: "The request did not arrive in time",
    409: "The session's state does not permit it, or ended the turn",
    413: "The body is too large",
    415: "The body is not JSON",
    416: "No such part of the file",
    429: "Too much or too often",
    500: "Server error",
    502: "The upstream or the agent failed",
    503: "Not now",
    504: "The turn took too long",
}

PARAMETERS: Mapping[str, str] = {
    "session_id": "Session ID, from `/session/start`.",
    "turn_id": "Turn ID, from any answer or event of the turn.",
    "request_id": "Request ID, from its event or its list.",
    "event_id": "Event ID, from the stream.",
    "path": "Path of the file, from the list; with slashes.",
}

DESCRIPTION = """\
Claude agent sessions over REST and Server-Sent Events.

Every error is `{"detail": "...", "code": "..."}`. In a stream, each `data:` line is one JSON \
object whose `type` says what it is; each turn has exactly one terminal event, `done` or `error`. \
Ignore types that you do not know.
"""


def document(
    operations: Iterable[Operation], *, open_paths: Collection[OpenPaths] | None = OPEN_PATHS
) -> Json:
    """Return the description.

    Args:
        operations: The table.
        open_paths: What callers without a key may look at; None: nobody needs a key.
    """
    described = [row for row in operations if row.described]
    schemas, references = _schemas(described)
    paths: Json = {}
    for row in described:
        operation = _operation(row, references, open_paths)
        if links := _links(row, described):
            operation["responses"]["200"]["links"] = links
        paths.setdefault(row.path, {})[row.method.lower()] = operation
    components: Json = {"schemas": schemas}
    if open_paths is not None:
        components["securitySchemes"] = SCHEMES
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": version(), "description": DESCRIPTION},
        # Relative to this document, so that it holds below any mount point and behind any proxy.
        "servers": [{"url": "./"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(row.tag for row in described)],
        "paths": paths,
        "components": components,
    }


# -- operations ------------------------------------------------------------------------------


def _operation(
    row: Operation, references: Mapping[type, Json], open_paths: Collection[OpenPaths] | None
) -> Json:
    described: Json = {
        "operationId": row.name,
        "summary": row.summary,
        "tags": [row.tag],
        "responses": _responses(row, references, keys=open_paths is not None),
    }
    if open_paths is not None:
        described["security"] = [*SECURITY, {}] if row.open in open_paths else SECURITY
    if row.notes:
        described["description"] = row.notes
    if parameters := _parameters(row):
        described["parameters"] = parameters
    if row.source is not Source.QUERY:
        described["requestBody"] = {
            "required": row.source is Source.BODY,
            "content": _json(row.takes, references),
        }
    return described


def _links(row: Operation, others: Iterable[Operation]) -> Json:
    """Return what can be done next with the ids in an answer that something was begun with."""
    if row.gives is None or row.method != "POST":
        return {}
    given = {name for name, field in row.gives.model_fields.items() if field.is_required()}
    links: Json = {}
    for other in others:
        needed = re.findall(r"{(\w+)}", other.path)
        # The session of a one-off question can be looked at, and no more.
        possible = other.method == "GET" or row.tag != ONE_OFF
        if needed and given.issuperset(needed) and possible:
            parameters = {name: f"$response.body#/{name}" for name in needed}
            links[other.name] = {"operationId": other.name, "parameters": parameters}
    return links


def _parameters(row: Operation) -> list[Json]:
    parameters: list[Json] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in re.findall(r"{(\w+)}", row.path)
    ]
    if row.source is Source.QUERY:
        properties: Json = row.takes.model_json_schema(ref_template=REFS).get("properties", {})
        for name, schema in properties.items():
            plain = {key: value for key, value in schema.items() if key not in ("title", "default")}
            parameters.append(
                {
                    "name": name,
                    "in": "query",
                    "description": plain.pop("description", ""),
                    "schema": _without_null(plain),
                }
            )
    if row.downloads:
        parameters.append(
            {
                "name": "Range",
                "in": "header",
                "description": "`bytes=` and the first and the last byte wanted, from 0. Anything "
                "else asks for all.",
                "schema": {"type": "string"},
            }
        )
    if row.begins:
        parameters.append(
            {
                "name": HEADER,
                "in": "header",
                "description": "Names the work, so that it can be asked for again and is begun "
                "only once.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": PATTERN},
            }
        )
    if row.waits:
        parameters.append(
            {
                "name": "wait",
                "in": "query",
                "description": "`false`: answer 202 as soon as the turn is accepted, with its ids."
                + (" Not with `stream`." if row.streams else ""),
                "schema": {"type": "boolean", "default": True},
            }
        )
    if row.begins and row.streams:
        parameters.append(
            {
                "name": "after",
                "in": "query",
                "description": f"Id of the last event already had, where an `{HEADER}` is sent "
                "again to go on with its stream.",
                "schema": {"type": "integer", "minimum": 0},
            }
        )
    if row.streams:
        parameters.append(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "As `after`, and stronger; browsers send it when they come back.",
                # Empty, as a browser's is before any event, it is as if it were not there.
                "schema": {"anyOf": [{"type": "integer", "minimum": 0}, {"const": ""}]},
            }
        )
    return parameters


def _without_null(schema: Json) -> Json:
    options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    return options[0] if len(options) == 1 else schema


def _responses(row: Operation, references: Mapping[type, Json], *, keys: bool) -> Json:
    content: Json = {}
    if row.gives is not None:
        content |= _json(row.gives, references)
    if row.streams:
        content["text/event-stream"] = {
            "schema": {"type": "string"},
            # OpenAPI 3.1 cannot say what the items of a stream are.
            "x-event-schema": {"$ref": REFS.format(model=EVENT)},
        }
    responses: Json = {"200": {"description": row.answered, "content": content}}
    if row.waits:
        responses["202"] = {
            "description": "Accepted; nobody waits for the answer. It can be looked up.",
            "content": _json(AcceptedReply, references),
        }
    if row.downloads:
        content["*/*"] = {}
        responses["206"] = {"description": "A part of the file.", "content": {"*/*": {}}}
        responses["304"] = {"description": "The file is still what `If-None-Match` names."}
    if row.streams:
        what = "session" if row.gives is None else "turn"
        responses["204"] = {"description": f"The {what} has ended, and nothing is left to read."}
    codes = (*ANY_OPERATION, *row.refuses)
    if row.source is not Source.QUERY:
        codes += WITH_BODY
    if keys:
        codes += WITH_KEYS
        if row.role is not None:
            codes += ("not_allowed",)
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        kind = KINDS[code]
        for status in (kind.status, kind.refused):
            if status is not None:
                by_status.setdefault(status, []).append(code)
    for status in sorted(by_status):
        responses[str(status)] = _refusal(status, by_status[status], references)
    return responses


def _json(model: type[BaseModel], references: Mapping[type, Json]) -> Json:
    """Return how a body of JSON is described."""
    return {"application/json": {"schema": references[model], "example": examples()[model]}}


def _refusal(status: int, codes: Iterable[str], references: Mapping[type, Json]) -> Json:
    meanings = "\n".join(f"- `{code}`: {KINDS[code].meaning}" for code in codes)
    described: Json = {
        "description": f"{STATUS_NAMES[status]}\n\n{meanings}",
        "content": {"application/json": {"schema": references[ProblemReply]}},
    }
    if "request_over" in codes:
        described["content"] = _json(ProblemReply, references)
    if status == 401:
        described["headers"] = {
            "WWW-Authenticate": {
                "description": "How a key can be sent.",
                "schema": {"type": "string", "const": "Bearer"},
            }
        }
    if status in (429, 503):
        described["headers"] = {
            "Retry-After": {
                "description": "Seconds after which trying again makes sense.",
                "schema": {"type": "integer"},
            }
        }
    return described


# -- schemas ---------------------------------------------------------------------------------


def _schemas(operations: Iterable[Operation]) -> tuple[Json, Mapping[type, Json]]:
    """Return all schemas by name, and the reference to each model's."""
    taken = {row.takes for row in operations if row.source is not Source.QUERY}
    given = {row.gives for row in operations if row.gives is not None}
    given |= {AcceptedReply, ProblemReply}
    inputs: list[tuple[type, JsonSchemaMode, TypeAdapter[Any]]] = [
        *((model, "validation", TypeAdapter(model)) for model in _by_name(taken)),
        *((model, "serialization", TypeAdapter(model)) for model in _by_name(given)),
        *((body, "serialization", TypeAdapter(body)) for body in BODIES),
    ]
    found, definitions = TypeAdapter.json_schemas(inputs, ref_template=REFS)
    references = {model: dict(found[model, mode]) for model, mode, _ in inputs}
    schemas: Json = _named(definitions["$defs"])
    references = _named(references)
    for body in BODIES:
        name = str(references[body]["$ref"]).rpartition("/")[2]
        _describe_event(schemas[name], body)
    for value in (asks.Rule, asks.Choice):
        _describe(schemas[value.__name__], value)
    _describe(schemas[ASKED], asks.Question)
    one_event = schemas[EventReply.__name__]["properties"]["event"]
    schemas[EventReply.__name__]["properties"]["event"] = {
        "$ref": REFS.format(model=EVENT),
        "description": one_event["description"],
    }
    schemas[EVENT] = {
        "description": "What one `data:` line of a stream holds; `type` tells them apart.",
        "anyOf": [references[body] for body in BODIES],
    }
    return dict(sorted(schemas.items())), references


def _by_name(models: Iterable[type[BaseModel]]) -> list[type[BaseModel]]:
    return sorted(models, key=lambda model: model.__name__)


def _named(schemas: Mapping[Any, Json]) -> dict[Any, Json]:
    """Return schemas under names for readers, where two types have one name."""

    def renamed(value: object) -> object:
        match value:
            case str():
                for name, better in NAMES.items():
                    value = value.replace(name, better)
                return value
            case Mapping():
                members = cast(Mapping[object, object], value)
                return {renamed(name): renamed(inner) for name, inner in members.items()}
            case list():
                return [renamed(inner) for inner in cast(list[object], value)]
            case _:
                return value

    return cast(dict[Any, Json], renamed(schemas))


def _describe(schema: Json, value: type) -> None:
    """Say of a schema what its type's docstring says."""
    text, _, attributes = (value.__doc__ or "").partition("Attributes:")
    schema["description"] = _one_line(text)
    properties: Json = schema["properties"]
    for name, meaning in re.findall(
        r"^ +(\w+): (.*?)(?=^ +\w+: |\Z)", attributes, re.MULTILINE | re.DOTALL
    ):
        if name in properties and "$ref" not in properties[name]:
            properties[name]["description"] = _one_line(meaning)


def _describe_event(schema: Json, body: type) -> None:
    """Say of an event's schema what its docstring says, and what is added when it is sent."""
    _describe(schema, body)
    properties: Json = schema["properties"]
    schema["required"] = sorted({*schema.get("required", ()), "type"})
    if body in WITH_SESSION:
        properties["session_id"] = {"type": "string", "description": "Whose event it is."}
        schema["required"].append("session_id")
    properties["turn_id"] = {
        "type": "string",
        "description": "The turn that it belongs to; absent from the session's own events.",
    }
    if body in LONG:
        properties["truncated"] = {
            "type": "boolean",
            "const": True,
            "description": "Something was cut off because it is long; absent otherwise.",
        }
        properties["full"] = {
            "type": "string",
            "description": "Path of the whole event, where something was cut off.",
        }
    if body is not StreamFailed:
        schema["title"] = f"{body.__name__} event"


def _one_line(text: str) -> str:
    return " ".join(text.split())
