"""Holds every answer that a test gets against the description of the API."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import Any

import httpx
from openapi_schema_validator import OAS31Validator

from session_http.openapi import document
from session_http.operations import OPERATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One event of a stream."""

    id: int | None
    data: dict[str, Any]

    @property
    def type(self) -> str:
        kind: str = self.data["type"]
        return kind


def parse_stream(raw: bytes) -> list[Said]:
    """Return the events of a stream that was read to its end, or to the end of an event."""
    found: list[Said] = []
    for block in raw.decode().split("\n\n")[:-1]:
        fields = [line.partition(": ") for line in block.split("\n") if not line.startswith(":")]
        names = [name for name, _, _ in fields]
        if "data" not in names:
            assert names in ([], ["retry"]), block
            continue
        assert names in (["id", "data"], ["data"]), block
        values = {name: value for name, _, value in fields}
        found.append(
            Said(id=int(values["id"]) if "id" in values else None, data=json.loads(values["data"]))
        )
    return found


class Contract:
    """The description of the API, as a judge of answers."""

    def __init__(self) -> None:
        self.document = document(OPERATIONS)
        self._schemas = self.document["components"]["schemas"]
        self._paths = [
            (re.compile(re.sub(r"{\w+}", "[^/]+", path.replace("{path}", ".+")) + "$"), methods)
            for path, methods in self.document["paths"].items()
        ]

    def check(self, method: str, path: str, response: httpx.Response) -> None:
        """Fail unless an answer is one that the description has."""
        described = next((methods for form, methods in self._paths if form.match(path)), None)
        if described is None or method.lower() not in described:
            # No operation of the API: an error of the common shape, or a page.
            if response.status_code >= 400:
                self.check_value(response.json(), "ProblemReply")
            return
        responses = described[method.lower()]["responses"]
        status = str(response.status_code)
        assert status in responses, f"{method} {path} does not document {status}: {response.text}"
        if status in ("204", "304"):
            assert not response.content
            return
        content = responses[status]["content"]
        if "*/*" in content:  # a file, of any kind
            return
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in content, f"{method} {path} does not document {media_type}"
        if media_type == "text/event-stream":
            for said in parse_stream(response.content):
                self.check_value(said.data, "SessionEvent")
        else:
            reference = content[media_type]["schema"]["$ref"].rpartition("/")[2]
            self.check_value(response.json(), reference)
            if int(status) >= 400:
                code = response.json()["code"]
                assert f"`{code}`" in responses[status]["description"], (
                    f"{method} {path} does not document {code}"
                )

    def check_value(self, value: Any, schema: str) -> None:
        """Fail unless a value is valid under a schema of the description."""
        root = {"$ref": f"#/components/schemas/{schema}", "components": {"schemas": self._schemas}}
        errors = [error.message for error in OAS31Validator(root).iter_errors(value)]
        assert not errors, f"{value} is no {schema}: {errors}"


@functools.cache
def the_contract() -> Contract:
    """Return the judge; it takes a moment to make one."""
    return Contract()


def judged() -> dict[str, list[Any]]:
    """Return hooks for a client, with which it checks every answer."""

    async def check(response: httpx.Response) -> None:
        await response.aread()
        request = response.request
        if request.method not in ("HEAD", "OPTIONS"):
            the_contract().check(request.method, request.url.path, response)

    return {"response": [check]}
