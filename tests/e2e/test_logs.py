"""The log of a real server at its default level holds nothing of what its callers say and hear."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import httpx
import pytest

from session_http import keyfile
from tests.e2e.server import OFFLINE, eventually, running_server

pytestmark = pytest.mark.e2e

CANARY = "Canary-7f3a"
PROMPT = f"{CANARY}-prompt"
ANSWER = f"{CANARY}-answer"


def converse(client: httpx.Client) -> None:
    """Say and hear it in every way: answered, streamed, refused, failed, by tools, in pieces."""

    def post(path: str, status: int, **fields: object) -> httpx.Response:
        response = client.post(path, json=fields)
        assert response.status_code == status, response.text
        return response

    assert ANSWER in post("/query", 200, prompt=f"{PROMPT} [[say {ANSWER}]]").text
    command = {"command": f"echo {ANSWER}; echo {ANSWER} >&2; exit 1", "description": PROMPT}
    post(
        "/query",
        200,
        prompt=f"{PROMPT} [[tool Bash {json.dumps(command)}]] [[result]]",
        allowed_tools=["Bash"],
    )
    with client.stream(
        "POST", "/query", json={"prompt": f"[[say {ANSWER}]]", "stream": True}
    ) as one:
        assert ANSWER in one.read().decode()
    post("/query", 400, prompt=3, canary=PROMPT)
    post("/query", 400, prompt=PROMPT, model=f"{PROMPT} \x00")
    post("/query", 502, prompt=f'{PROMPT} [[fail status=400 message="{ANSWER}"]]')
    assert client.post("/query", content=PROMPT, headers={"x-canary": PROMPT}).status_code >= 400
    broken = {"content-type": "application/json"}
    assert client.post("/query", content=f'{{"{PROMPT}', headers=broken).status_code == 400
    assert client.get(f"/{PROMPT}", params={PROMPT: PROMPT}).status_code == 404
    assert client.get(f"/session/{PROMPT}").status_code == 404


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_of_the_log_holds_a_prompt_an_answer_or_a_key(tmp_path: Path, form: str) -> None:
    made = keyfile.new_key("ann")
    wrong = f"ssk_{CANARY.lower()}_{'x' * 43}"
    environment = {
        "SESSION_SUPERVISOR_API_KEYS": keyfile.render(made.key),
        "CLAUDE_CODE_MAX_RETRIES": "1",
    }
    with running_server(
        tmp_path / "server", *OFFLINE, f"--log-format={form}", env=environment
    ) as server:
        headers = {"Authorization": f"Bearer {made.token}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
            converse(client)
            started = client.post("/session/start", json={"initial_prompt": PROMPT})
            session = started.json()["session_id"]
            slow = f"{PROMPT} [[say {ANSWER}]] [[slow tokens=400 delay_ms=50]]"
            with client.stream(
                "POST", f"/session/{session}/query", json={"prompt": slow, "stream": True}
            ) as streamed:
                lines = streamed.iter_lines()
                assert any(ANSWER in line for line in lines)
                for pid in server.clis():
                    os.kill(pid, signal.SIGKILL)
                assert any('"type": "error"' in line for line in lines)
            again = client.post(f"/session/{session}/query", json={"prompt": f"[[say {ANSWER}]]"})
            assert ANSWER in again.text
            refused = httpx.get(
                f"{server.url}/sessions",
                headers={"X-API-Key": wrong, "X-Request-Id": "mine-1"},
                timeout=60,
            )
            assert refused.status_code == 401
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "SIGHUP" in server.log(), "the keys are read")
        server.stop()
        log = server.log()
        printed = "" if server.process.stdout is None else server.process.stdout.read()
    secrets = (CANARY, CANARY.lower(), made.token, made.token.rpartition("_")[2], made.key.hash)
    for text in (log, printed):
        assert not [secret for secret in secrets if secret in text]
    assert "crashed" in log
    assert len(re.findall(r"POST /query", log)) >= 7
    if form == "json":
        records = [json.loads(line) for line in log.splitlines()]
        (line,) = (record for record in records if record.get("request_id") == "mine-1")
        assert (line["method"], line["path"], line["status"]) == ("GET", "/sessions", 401)
        (crash,) = (record for record in records if "crashed" in record["event"])
        assert crash["session_id"] == session
        asked = [one for one in records if one.get("path") == "/session/{session_id}/query"]
        assert {one["session_id"] for one in asked} == {session}
        assert {one["owner"] for one in asked} == {"ann"}
        assert len({one["turn_id"] for one in asked}) == 2
