"""A stand-in for the CLI that misbehaves: what the real one cannot be brought to do.

Run as `fake_cli.py MANNERS...`; the rest of the arguments are the CLI's, and ignored.
"""

import json
import os
import signal
import sys
import time
from typing import Any

TOLD: dict[str, Any] = {}
"""The prompt that it was told last."""


def say(frame: object) -> None:
    sys.stdout.write(json.dumps(frame) + "\n")
    sys.stdout.flush()


def answer(request: dict[str, Any], subtype: str = "success", *, hooks: bool = True) -> None:
    reply = {
        "subtype": subtype,
        "request_id": request["request_id"],
        "error": "No, I will not.",
        "response": {"hook_on_failure_supported": True} if hooks else {},
    }
    say({"type": "control_response", "response": reply})


def main(manners: set[str]) -> None:
    if "complains" in manners:
        sys.stderr.write("I cannot work like this.\n")
        sys.stderr.flush()
    if "exits" in manners:
        sys.exit(0)
    if "fails" in manners:
        sys.exit(3)
    if "ignores-term" in manners:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin:
        frame = json.loads(line)
        if frame["type"] == "control_request":
            control(frame, manners)
        elif frame["type"] == "user":
            turn(frame["uuid"], manners)
    if "ignores-eof" in manners:
        time.sleep(60)


def control(frame: dict[str, Any], manners: set[str]) -> None:
    match frame["request"]["subtype"]:
        case "initialize":
            if "silent" in manners:
                return
            if "leaves" in manners:
                sys.exit(0)
            if "garbles" in manners:
                say("")
                sys.stdout.write('{"type": "control_resp\n')
                sys.stdout.flush()
                return
            how = "error" if "refuses" in manners else "success"
            answer(frame, how, hooks="old" not in manners)
            if "begins-alone" in manners:
                begin([])
        case "interrupt" if "deaf" in manners:
            return
        case "interrupt" if "begins-alone" in manners:
            # The turn of its own is over; it has the next one in hand before it says so.
            manners.discard("begins-alone")
            say({"type": "result", "is_error": False, "user_message_uuids": []})
            begin(TOLD["user_message_uuids"])
            answer(frame)
        case "interrupt" if "heeds" in manners:
            answer(frame)
            say(
                {"type": "result", "is_error": True, "terminal_reason": "aborted_streaming", **TOLD}
            )
        case _:
            answer(frame, "error" if "grumbles" in manners else "success")


def begin(prompt_ids: list[str]) -> None:
    ids = {"user_message_uuids": prompt_ids}
    say({"type": "system", "subtype": "init", "session_id": "s", "model": "m", **ids})


def turn(prompt_id: str, manners: set[str]) -> None:
    ids = {"user_message_uuids": [prompt_id]}
    TOLD.update(ids)
    if "mute" in manners or "begins-alone" in manners:
        return
    if "begins-late" in manners:
        time.sleep(2.5)
    begin([prompt_id])
    say({"type": "never_heard_of", "what": {"is": ["this"]}})
    say({"type": "assistant", "message": {"content": "not a list"}})
    if "stays" in manners:
        return
    if "floods" in manners:
        for _ in range(5000):
            say({"type": "system", "subtype": "status", "status": "x" * 1000})
    if "shouts" in manners:
        say({"type": "system", "subtype": "shout", "text": "x" * 100_000})
    if "garbles-later" in manners:
        sys.stdout.write("{oops}\n")
        sys.stdout.flush()
        time.sleep(60)
    if "closes" in manners:
        os.close(1)
        time.sleep(60)
    say({"type": "result", "is_error": False, **ids})


if __name__ == "__main__":
    main(set(sys.argv[1].split(",")))
