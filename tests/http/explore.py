"""Schemathesis on our own description of the API: it makes the requests and judges the answers.

Its engine is what its command line runs: examples, then every boundary of every field, then random
requests good and bad, then chains of operations along the links. Everything is seeded, so a run
finds the same every time; `--hypothesis-profile=long` looks further.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import schemathesis
from hypothesis import settings
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.openapi.checks import RejectedPositiveData
from schemathesis.specs.openapi import _caches
from starlette.types import ASGIApp

from session_http.schemas import PIXEL_EXAMPLE
from tests.http.contract import parse_stream, the_contract

Json = dict[str, Any]

EXPECTED = ["2xx", "3xx", "4xx", "502", "503", "504"]
"""Everything but a mistake of ours; whether an operation documents it is another check."""

REFUSED = ["400", "401", "404", "409", "415"]
"""How a bad request is answered: 401 and 404 where the key or the id is, and 409 where another was
sent under the same `Idempotency-Key`."""

PATIENCE_S = 60.0
"""Seconds in which every answer must be there."""

LISTEN_S = 20.0
"""Seconds to listen to a session that may say nothing more."""


def examples() -> int:
    """Return how many random requests to make of each operation."""
    return settings().max_examples // 4


@dataclass(slots=True, kw_only=True)
class Report:
    """What was asked and answered.

    Attributes:
        answers: How often each operation, by method and path, answered with which status.
        phases: In which phases of the engine something was asked.
        failures: What no answer should have been, with how to ask for it again.
    """

    answers: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    phases: set[str] = field(default_factory=set[str])
    failures: list[str] = field(default_factory=list[str])

    def note(self, phase: str, recorder: ScenarioRecorder) -> None:
        """Take in what was asked for one scenario."""
        for case_id, interaction in recorder.interactions.items():
            label = _case(recorder, case_id).operation.label
            response = interaction.response
            if response is None:
                self.failures.append(f"{label} was not answered")
                continue
            self.phases.add(phase)
            self.answers[label, response.status_code] += 1
            mistakes = (*_undocumented(recorder, case_id), *_mistakes_of_stream(response))
            self.failures += (f"{label}: {mistake}" for mistake in mistakes)
        for case_id, checks in recorder.checks.items():
            for check in checks:
                failed = check.failure_info
                if failed is not None and not _is_contradiction(failed.failure, recorder, case_id):
                    self._fail(failed.failure, recorder, case_id)

    def _fail(self, failure: Failure, recorder: ScenarioRecorder, case_id: str) -> None:
        case, response = _case(recorder, case_id), recorder.interactions[case_id].response
        said = b"" if response is None else response.content[:500]
        self.failures.append(
            f"{type(failure).__name__}: {failure.operation}: {failure.message}\n"
            f"{case.as_curl_command()}\n{said!r}"
        )

    def statuses(self, label: str) -> set[int]:
        """Return with what an operation answered."""
        return {status for one, status in self.answers if one == label}


def explore(
    document: Mapping[str, Any],
    *,
    app: ASGIApp | None = None,
    url: str | None = None,
    token: str | None = None,
    tools: Iterable[str],
    models: str | None = None,
    answer: Json | None = None,
    servers: int = 32,
    most: int,
    boundaries: bool = True,
    listen_s: float = LISTEN_S,
) -> Report:
    """Ask everything that the description of an API lets one ask.

    Args:
        document: The description.
        app: The application, or
        url: where it is served.
        token: The key to send where one is needed.
        tools: Names of tools that the server has.
        models: Pattern of the names that its agent takes for a model's; None: it takes any.
        answer: A schema that its agent takes for an answer's; None: it takes any.
        servers: How many MCP servers it has.
        most: Random requests of each operation, and chains of operations.
        boundaries: Whether to try every boundary of every field, some hundred requests.
        listen_s: Seconds to listen to a session that may say nothing more.
    """
    configuration: Json = {
        "seed": 1,
        "continue-on-failure": True,
        "max-stream-events": 50,
        "request-timeout": PATIENCE_S,
        "generation": {"max-examples": most, "deterministic": True, "database": "none"},
        "phases": {
            "coverage": {"enabled": boundaries},
            # Of a chain most requests are bad, so only few get to its end.
            "stateful": {"generation": {"max-examples": 3 * most}},
        },
        "checks": {
            "not_a_server_error": {"expected-statuses": EXPECTED},
            "negative_data_rejection": {"expected-statuses": REFUSED},
        },
        "operations": [
            # Only the server knows which ids and cursors it has given.
            {
                "include-operation-id": name,
                "checks": {"positive_data_acceptance": {"expected-statuses": EXPECTED}},
                **({"request-timeout": listen_s} if name == "session_events" else {}),
            }
            for name in ("session_events", "list_messages", "list_sessions")
        ],
    }
    if url is not None:
        configuration["base-url"] = url
    if token is not None:
        configuration["auth"] = {"openapi": {"bearer": {"bearer": token}}}
    schema = schemathesis.openapi.from_dict(
        _with_what_only_the_operator_knows(document, tools, models, answer, servers),
        config=cast(Any, schemathesis.Config).from_dict(configuration),
    )
    if app is not None:
        schema.app = app
    report = Report()
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished():
                report.note(event.phase.value, event.recorder)
            case events.NonFatalError():
                report.failures.append(f"{event.label}: {event.value!r}")
            case events.FatalError():
                report.failures.append(repr(event.exception))
            case events.PhaseFinished():
                # It puts a field's length into its pattern, keeps each compiled for ever, and one
                # of a hundred thousand characters takes a hundred megabytes and more.
                _caches.clear_all()
            case _:
                pass
    return report


def _case(recorder: ScenarioRecorder, case_id: str) -> Any:
    """Return what was asked; only the description tells which type its operation has."""
    return cast(Any, recorder.cases[case_id]).value


def _is_contradiction(failure: Failure, recorder: ScenarioRecorder, case_id: str) -> bool:
    """Whether a request was refused because it wants a stream, and not to wait for it.

    OpenAPI has no way to say that a parameter means nothing with a field of the body. And one of
    the headers of chance may be `Origin`: then it is refused as that of a page that nobody knows.
    """
    case, response = _case(recorder, case_id), recorder.interactions[case_id].response
    if response is None:
        return False
    if response.status_code == 403 and "Origin" in (case.headers or ()):
        return b'"untrusted_origin"' in response.content
    if not isinstance(failure, RejectedPositiveData):
        return False
    refused = [error["field"] for error in response.json().get("errors", ())]
    if refused != ["wait"]:
        return False
    return case.body["stream"] is True and case.query["wait"] in (False, "false")


def _with_what_only_the_operator_knows(
    document: Mapping[str, Any],
    tools: Iterable[str],
    models: str | None,
    answer: Json | None,
    servers: int,
) -> Json:
    """Return a description in which what the agent takes is named, and streams are left to us.

    Schemathesis takes the schema of a stream for that of each of its events.
    """
    found = copy.deepcopy(dict(document))
    for schema in found["components"]["schemas"].values():
        for option in schema.get("properties", {}).get("allowed_tools", {}).get("anyOf", ()):
            if "items" in option:
                option["items"]["enum"] = list(tools)
        for option in schema.get("properties", {}).get("model", {}).get("anyOf", ()):
            if models is not None and option["type"] == "string":
                option["pattern"] = models
        for option in schema.get("properties", {}).get("output_schema", {}).get("anyOf", ()):
            if answer is not None and option["type"] == "object":
                option["enum"] = [answer]
        for option in schema.get("properties", {}).get("mcp_servers", {}).get("anyOf", ()):
            if "items" in option:
                option["maxItems"] = min(servers, option["maxItems"])
        for option in schema.get("properties", {}).get("attachments", {}).get("anyOf", ()):
            if "items" in option:
                option["maxItems"] = 16
    attachment = found["components"]["schemas"]["AttachmentRequest"]["properties"]
    attachment["data"]["enum"] = [PIXEL_EXAMPLE]
    attachment["media_type"] = {"enum": [None, "image/png"]}
    for methods in found["paths"].values():
        for operation in methods.values():
            stream = operation["responses"]["200"]["content"].get("text/event-stream", {})
            stream.pop("schema", None)
            if "requestBody" in operation:
                # Only who has had events of a turn can go on behind one.
                operation["parameters"] = [
                    parameter
                    for parameter in operation.get("parameters", ())
                    if parameter["name"] not in ("after", "Last-Event-ID")
                ]
    return found


def _undocumented(recorder: ScenarioRecorder, case_id: str) -> list[str]:
    """Say if an answer is none that the operation has; Schemathesis lets some of them pass.

    So it does with those to content types of its own choice, and it does not know our codes.
    """
    case, response = _case(recorder, case_id), recorder.interactions[case_id].response
    assert response is not None
    operation = case.operation
    if response.request.method != operation.method.upper():
        return []
    status = response.status_code
    documented = operation.definition.raw["responses"].get(str(status))
    if documented is None:
        return [f"{status} is not documented: {response.content[:200]!r}"]
    code = response.json()["code"] if status >= 400 else None
    if code is not None and f"`{code}`" not in documented["description"]:
        return [f"{status} with the code {code} is not documented"]
    return []


def _mistakes_of_stream(response: Response) -> list[str]:
    if not response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        return []
    try:
        for said in parse_stream(response.content):
            the_contract().check_value(said.data, "SessionEvent")
    except (AssertionError, ValueError) as error:
        return [str(error)]
    return []
