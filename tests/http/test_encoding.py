from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel

from session_http.encoding import dump, dump_model


class Said(BaseModel):
    text: str
    at: datetime


@pytest.mark.parametrize("text", ["plain", "grün", "a\u2028b\x85c", "half \ud83d", '\x00"\\/\n'])
def test_a_model_is_encoded_as_any_other_value(text: str) -> None:
    said = Said(text=text, at=datetime(2026, 1, 1, tzinfo=UTC))
    encoded = dump_model(said)
    assert json.loads(encoded) == json.loads(dump(said.model_dump(mode="json")))
    assert json.loads(encoded)["text"] == text
    assert len(encoded.decode().splitlines()) == 1
