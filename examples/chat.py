#!/usr/bin/env python3
"""A terminal to talk with an agent session in: a whole client in one file.

    pip install httpx
    python examples/chat.py                          # http://localhost:3000, a new session
    python examples/chat.py --session 6f0e...        # go on with one
    CHAT_KEY=ssk_... python examples/chat.py --url https://agents.example

It needs the standard library and httpx, and a POSIX terminal. What it shows of the API:

- A prompt is posted with `?wait=false` and an `Idempotency-Key`. It may so be posted again after a
  broken connection, and is asked once.
- One stream of the session's events is read for as long as the client runs. When the connection or
  the server goes away it comes back with `Last-Event-ID`, and misses nothing.
- Permission requests and questions are events; their answers are posted. Ctrl-C interrupts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import select
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, TypeAlias, cast
from urllib.parse import quote

import httpx

Json: TypeAlias = dict[str, Any]

CONNECT_S, ANSWER_S = 10.0, 30.0
SILENCE_S = 45.0
"""Seconds after which a stream without any event or heartbeat is taken for dead."""
LONGEST_WAIT_S = 15.0
"""Most seconds between two attempts to come back."""
SHOWN_LINES = 6
"""Lines of a tool's input and result that are shown."""

HELP = """\
/model NAME     another model, from its next step on      /cost      what it has cost so far
/mode NAME      default, acceptEdits, plan, ...           /compact   sum the conversation up
/fork           go on in a copy of this conversation      /files     list what the session made
/session        which session this is                     /files PATH    save one of them here
/quit           leave; the session stays                  /help      this

A line that ends with \\ goes on in the next. Ctrl-C stops the running turn; twice, this program.
"""


class Leave(Exception):
    """The conversation is over for us; the message says why, if there is more to say."""


# -- the server ------------------------------------------------------------------------------------


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, response: httpx.Response) -> None:
        try:
            self.body: Json = response.json()
        except ValueError:
            self.body = {}
        self.status = response.status_code
        self.code = str(self.body.get("code", ""))
        super().__init__(str(self.body.get("detail") or f"The server answered {self.status}."))


def passing(error: Exception) -> bool:
    """Return whether the same request may well succeed in a while."""
    if isinstance(error, Refused):
        return error.status in (502, 503, 504) and error.code in (
            *("", "draining", "at_capacity", "store_unavailable"),
            *("too_many_streams", "too_many_connections"),
        )
    return isinstance(error, httpx.TransportError)


def pauses() -> Iterator[float]:
    """Yield seconds to wait between attempts: longer each time, and never all clients at once."""
    for attempt in itertools.count():
        yield min(LONGEST_WAIT_S, 0.25 * 2**attempt) * random.uniform(0.7, 1.3)


class Server:
    """The API; every request is sent again until the server has answered it."""

    def __init__(self, url: str, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        self.http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
        )
        self.on_trouble: Callable[[str], None] = lambda _text: None

    def get(self, path: str, **params: Any) -> Json:
        return self.call("GET", path, params=params)

    def post(self, path: str, body: Json | None = None, **params: Any) -> Json:
        """Post something; where it begins work, work is begun once however often it is sent."""
        key = {"Idempotency-Key": str(uuid.uuid4())}
        return self.call("POST", path, json=body or {}, params=params, headers=key)

    def call(self, method: str, path: str, **options: Any) -> Json:
        """Send a request, again and again where that helps, and return what it is answered with.

        Raises:
            Refused: The server answered with an error.
        """
        waits, told = pauses(), False
        while True:
            try:
                response = self.http.request(method, path, **options)
                if response.is_error:
                    raise Refused(response)
                answer: Json = response.json()
                return answer
            except (Refused, httpx.TransportError) as error:
                if not passing(error):
                    raise
                if not told:
                    self.on_trouble(f"{reason(error)}; trying again (Ctrl-C gives up)")
                    told = True
            time.sleep(next(waits))


def reason(error: Exception) -> str:
    """Say in a few words what went wrong with a connection."""
    if isinstance(error, Refused):
        return str(error).rstrip(".")
    if isinstance(error, httpx.ConnectError):
        return "the server cannot be reached"
    return "the connection was lost"


# -- the stream of events --------------------------------------------------------------------------

INTERRUPT, CONNECTED = "interrupt", "connected"


@dataclass(frozen=True)
class Event:
    """One event of the session, with its id."""

    id: int
    data: Json

    @property
    def type(self) -> str:
        return str(self.data["type"])

    @property
    def turn_id(self) -> str | None:
        return self.data.get("turn_id")


Item: TypeAlias = Event | str | Exception


class Inbox:
    """What has happened, for the one thread that shows it; `fd` is readable when there is more."""

    def __init__(self) -> None:
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._put_back: list[Item] = []
        self.fd, self._wake = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._wake, False)

    def close(self) -> None:
        """Give its descriptors back; nothing can be put in any more."""
        os.close(self.fd)
        os.close(self._wake)

    def put(self, item: Item) -> None:
        """Add something, from any thread or signal handler."""
        self._items.put(item)
        with suppress(BlockingIOError):  # it is readable enough
            os.write(self._wake, b".")

    def get(self) -> Item:
        """Wait for the next thing."""
        while (item := self.get_nowait()) is None:
            select.select([self.fd], [], [])
        return item

    def get_nowait(self) -> Item | None:
        """Return the next thing, if there is one."""
        if self._put_back:
            return self._put_back.pop(0)
        return self.get_new()

    def get_new(self) -> Item | None:
        """Return the next thing that was not put back."""
        with suppress(BlockingIOError):
            os.read(self.fd, 4096)
        try:
            return self._items.get_nowait()
        except Empty:
            return None

    def put_back(self, items: Sequence[Item]) -> None:
        """Have things that are for later come first."""
        self._put_back = [*items, *self._put_back]


class _SessionOver(Exception):
    """The session has ended, and we have had all of it."""


class Follower(threading.Thread):
    """Reads a session's events into the inbox, from an id on, whatever happens to connections."""

    def __init__(self, server: Server, session_id: str, after: int, inbox: Inbox) -> None:
        super().__init__(daemon=True)
        self.session_id = session_id
        self.after = after
        self._server = server
        self._inbox = inbox
        self._over = threading.Event()

    def stop(self) -> None:
        """Let it end; nothing of it comes any more."""
        self._over.set()

    def run(self) -> None:
        """Read until the session ends, or there is no more use in trying."""
        waits, lost = pauses(), False
        while not self._over.is_set():
            try:
                for connected in self._read():
                    if connected and lost:
                        self._put(CONNECTED)
                        lost = False
                    if not connected:
                        waits = pauses()  # it works again: something has arrived
                if not lost:
                    self._put(ConnectionError("the server ended the stream"))
            except (Refused, httpx.TransportError) as error:
                if isinstance(error, Refused) and not passing(error):
                    self._put(error)
                    return
                if not lost:
                    self._put(ConnectionError(reason(error)))
            except _SessionOver:
                self._put(Leave("The session has ended."))
                return
            lost = True
            self._over.wait(next(waits))

    def _put(self, item: Item) -> None:
        if not self._over.is_set():
            self._inbox.put(item)

    def _read(self) -> Generator[bool]:
        """Read one connection to its end; yields True once it stands, False for every event."""
        timeout = httpx.Timeout(CONNECT_S, read=SILENCE_S)
        headers = {"Last-Event-ID": str(self.after)}
        path = f"/session/{self.session_id}/events"
        with self._server.http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
                raise Refused(response)
            if response.status_code == 204:
                raise _SessionOver
            yield True
            event_id = None
            for line in response.iter_lines():
                name, _, value = line.partition(":")
                if name == "id":
                    event_id = int(value)
                elif name == "data":
                    event = Event(event_id or self.after, json.loads(value))
                    # Nothing twice, whatever is sent.
                    if event_id is None or event_id > self.after:
                        self.after = event.id
                        self._put(event)
                        yield False
                    event_id = None


# -- the terminal ----------------------------------------------------------------------------------


class Terminal:
    """Writes in colours where there are any, and reads lines."""

    def __init__(self) -> None:
        self.is_tty = sys.stdin.isatty() and sys.stdout.isatty()
        self._colours = self.is_tty and "NO_COLOR" not in os.environ
        self._at_start = True
        self._typed = b""
        if self.is_tty:
            with suppress(ImportError):
                import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]  # input() can then edit

    def write(self, text: str, style: str = "") -> None:
        """Write as it is; only what could drive the terminal is left out."""
        text = printable(text)
        if text:
            self._at_start = text.endswith("\n")
            sys.stdout.write(f"\033[{style}m{text}\033[0m" if style and self._colours else text)
            sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Write a line, on a line of its own."""
        self.fresh()
        self.write(text, style)
        self.write("\n")

    def fresh(self) -> None:
        """Go to the beginning of a line."""
        if not self._at_start:
            self.write("\n")

    def dim(self, text: str) -> None:
        self.line(text, "2")

    def bad(self, text: str) -> None:
        self.line(text, "31")

    def prompt(self, text: str) -> str:
        """Read a line, with editing and a history where there is a keyboard.

        Raises:
            EOFError: There are no more.
        """
        self.fresh()
        if self.is_tty:
            self._at_start = True
            return input(text)
        return self.ask(text, lambda: False, None) or ""

    def ask(self, text: str, is_over: Callable[[], bool], wake: int | None) -> str | None:
        """Read a line, unless it is not wanted any more; then return None.

        Args:
            text: What to ask.
            is_over: Says whether it is not wanted any more.
            wake: Descriptor that is readable when that may have changed.

        Raises:
            EOFError: There are no more lines.
        """
        self.fresh()
        self.write(text, "1")
        stdin = sys.stdin.fileno()
        while b"\n" not in self._typed:
            if is_over():
                return None
            ready, _, _ = select.select([stdin, *([] if wake is None else [wake])], [], [])
            if stdin in ready:
                piece = os.read(stdin, 65536)
                if not piece:
                    raise EOFError
                self._typed += piece
        line, _, self._typed = self._typed.partition(b"\n")
        self._at_start = True  # whoever typed has ended the line
        return line.decode(errors="replace").strip()


def printable(text: str) -> str:
    """Return a text without what could drive the terminal: it may come from anywhere."""
    text = text.replace("\r\n", "\n")
    return "".join(char for char in text if char in "\n\t" or not is_control(char))


def is_control(char: str) -> bool:
    # Also what has a line read from right to left, so that it looks like another.
    return (
        char < " "
        or "\x7f" <= char <= "\x9f"
        or "\u202a" <= char <= "\u202e"
        or "\u2066" <= char <= "\u2069"
    )


def few_lines(text: str, most: int = SHOWN_LINES) -> str:
    """Return the first lines of a text, indented."""
    lines = text.strip("\n").split("\n")
    shown = [line if len(line) <= 300 else f"{line[:297]}..." for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"... and {len(lines) - most} more lines")
    return "\n".join(f"    {line}" for line in shown)


def in_words(given: Mapping[str, Any]) -> str:
    """Return the input of a tool for people."""
    if len(given) == 1 or "command" in given:
        return str(given.get("command") or next(iter(given.values())))
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in given.items()
    )


def in_full(given: Mapping[str, Any]) -> str:
    """Return all of a tool's input: nobody is to allow what he has not seen."""
    shown = in_words(given) if len(given) == 1 else ""
    for name, value in given.items() if len(given) > 1 else ():
        shown += f"{name}: {value if isinstance(value, str) else json.dumps(value)}\n"
    visible = "".join(
        f"\\u{ord(char):04x}" if is_control(char) and char not in "\n\t" else char
        for char in shown.rstrip("\n")
    )
    return "\n".join(f"    {line}" for line in visible.split("\n"))


# -- the conversation ------------------------------------------------------------------------------


@dataclass
class Chat:
    """One conversation, in one terminal."""

    server: Server
    terminal: Terminal
    inbox: Inbox
    follower: Follower
    turn_id: str | None = None
    """Ours, while it runs."""
    interrupted: bool = False
    typing: bool = False
    """Whether somebody is being asked: Ctrl-C then raises instead of waiting its turn."""
    texts: dict[str, list[tuple[int, str]]] = field(
        default_factory=dict[str, list[tuple[int, str]]]
    )
    """The text events of every turn that we have had from its beginning."""
    prints: str = ""

    @property
    def path(self) -> str:
        """Where the session is."""
        return f"/session/{self.follower.session_id}"

    def follow(self, session_id: str, after: int) -> None:
        """Go on with another session."""
        self.follower.stop()
        self.texts.clear()
        self.follower = Follower(self.server, session_id, after, self.inbox)
        self.follower.start()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-C was typed."""
        if self.typing or self.turn_id is None or self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.inbox.put(INTERRUPT)

    # -- turns

    def say(self, prompt: str) -> None:
        """Ask, and show all that happens until the turn has ended."""
        self.wait_for(self.server.post(f"{self.path}/query", {"prompt": prompt}, wait="false"))

    def wait_for(self, accepted: Json) -> None:
        """Show all that happens until a turn has ended."""
        self.turn_id = accepted["turn_id"]
        self.interrupted = False
        if accepted.get("position"):
            self.terminal.dim(f"(waits behind {accepted['position']} other turns)")
        try:
            while self.turn_id is not None:
                self.take(self.inbox.get())
        except KeyboardInterrupt:  # the second one: the turn goes on without us
            raise Leave from None
        finally:
            self.turn_id = None

    def catch_up(self) -> None:
        """Show what has happened while nobody looked."""
        while (item := self.inbox.get_nowait()) is not None:
            self.take(item)

    def take(self, item: Item) -> None:
        """Show one thing that has happened."""
        if isinstance(item, Event):
            self.show(item)
        elif isinstance(item, Leave):
            raise item
        elif isinstance(item, Refused):
            raise Leave(str(item))
        elif isinstance(item, Exception):
            self.terminal.dim(f"({item}; coming back)")
        elif item == CONNECTED:
            self.terminal.dim("(connected again)")
        elif item == INTERRUPT and self.turn_id is not None:
            self.terminal.dim("(interrupting; Ctrl-C again leaves)")
            body = {"turn_id": self.turn_id}
            post = threading.Thread(target=self._interrupt, args=(f"{self.path}/interrupt", body))
            post.daemon = True
            post.start()

    def _interrupt(self, path: str, body: Json) -> None:
        with suppress(Refused, httpx.HTTPError):  # the stream tells how the turn ends
            self.server.post(path, body)

    # -- events

    def show(self, event: Event) -> None:
        """Show an event."""
        data, terminal = event.data, self.terminal
        match event.type:
            case "turn":
                self._on_turn(event)
            case "text":
                self._text(event)
            case "thinking":
                self._switch("thinking")
                terminal.write(data["content"], "2;3")
            case "discard":
                self._discard(event)
            case "tool_use":
                self._switch("")
                terminal.line(f"* {data['name']}", "2;36")
                terminal.dim(few_lines(in_words(data["input"])))
            case "tool_result":
                self._switch("")
                style = "31" if data.get("is_error") else "2"
                terminal.line(few_lines(as_text(data["content"])), style)
            case "permission_request":
                self._switch("")
                self.ask_permission(str(data["request_id"]))
            case "question":
                self._switch("")
                self.ask_questions(str(data["request_id"]))
            case "resolved":
                if data["resolution"] in ("expired", "cancelled", "lost"):
                    terminal.dim(f"(the request is over: {data['resolution']})")
            case "retrying":
                terminal.dim(f"(the model's provider fails; attempt {data['attempt']})")
            case "rate_limit" if data.get("rejected"):
                terminal.dim(f"(the rate limit is used up until {data.get('resets_at')})")
            case "status" if data["state"] == "closed":
                raise Leave("The session has ended.")
            case "status" if data["state"] in ("restarting", "failed"):
                terminal.dim(f"(the session is {data['state']}: {data.get('reason') or ''})")
            case "gap":
                self._on_gap()
            case "done" | "error":
                self._on_end(event)
            case _:
                pass  # types that we do not know, and what is not for people

    def _on_turn(self, event: Event) -> None:
        if event.turn_id is not None and event.data["phase"] == "accepted":
            self.texts[event.turn_id] = []
        if event.data["phase"] == "started":
            self.prints = ""
            if event.data["origin"] == "agent":
                self.terminal.dim("(the agent goes on by itself)")
            elif event.turn_id != self.turn_id:
                self.terminal.dim("(another query of this session)")

    def _switch(self, kind: str) -> None:
        """Begin something else than what was printed before."""
        if self.prints not in (kind, ""):
            self.terminal.fresh()
        self.prints = kind

    def _text(self, event: Event) -> None:
        content = str(event.data["content"])
        if self.prints != "text":  # the blank line between blocks is there already
            self._switch("text")
            self.terminal.fresh()
            self.terminal.write(content.lstrip("\n"))
        else:
            self.terminal.write(content)
        if event.turn_id in self.texts:
            self.texts[event.turn_id].append((event.id, content))

    def _discard(self, event: Event) -> None:
        """Withdraw what the model had said when it broke off; on paper it cannot be unsaid."""
        self.terminal.dim("(the model broke off and begins again; what follows replaces the end)")
        self.prints = ""
        if event.turn_id in self.texts:
            kept = [one for one in self.texts[event.turn_id] if one[0] <= event.data["after"]]
            self.texts[event.turn_id] = kept

    def _on_gap(self) -> None:
        """Events are gone; the turn that we wait for may have ended among them."""
        self.terminal.dim("(some of what happened is no longer kept)")
        self.texts.clear()
        if self.turn_id is not None:
            with suppress(Refused):
                turn = self.server.get(f"{self.path}/turns/{self.turn_id}")
                if turn["phase"] == "ended":
                    self.texts[self.turn_id] = []
                    self._on_end(Event(0, {**(turn["error"] or {}), **turn, "type": "done"}))

    def _on_end(self, event: Event) -> None:
        data, terminal = event.data, self.terminal
        if "outcome" not in data:  # only the stream has ended, which comes back by itself
            terminal.bad(str(data.get("message")))
            return
        had = self.texts.pop(event.turn_id or "", None)
        whole = str(data.get("response") or "")
        is_shown = had is not None and "".join(text for _, text in had) == whole
        if event.turn_id == self.turn_id and whole and not is_shown:
            terminal.dim("(the whole answer:)")
            terminal.line(whole)
        terminal.fresh()
        self.prints = ""
        if data["outcome"] in ("failed", "lost"):
            terminal.bad(f"{data.get('message')} [{data.get('code')}]")
            if data.get("retryable"):
                terminal.dim("(asking again may help)")
        else:
            spent = f"{data['duration_ms'] / 1000:.1f} s, ${data['total_cost_usd'] or 0:.4f}"
            terminal.dim(f"({data['outcome']}, {spent})")
        if event.turn_id == self.turn_id:
            self.turn_id = None

    # -- what the agent asks

    def ask_permission(self, request_id: str) -> None:
        """Ask whether a tool call may run, and tell the server."""
        path = f"{self.path}/permissions/{request_id}"
        asked = self._waiting(path)
        if asked is None:
            return
        terminal, rules = self.terminal, asked["suggestions"] or [{"tool": asked["tool"]}]
        always = ", ".join(in_rule(rule) for rule in rules)
        terminal.line(f"{asked['tool']} needs your permission{until(asked)}:", "1;33")
        terminal.line(in_full(asked["input"]))
        terminal.dim(
            f"  [a]llow  [s]ession: always allow {always}  [e]dit  [d]eny  deny and [q]uit"
        )
        with self._asking(request_id) as ask:
            while True:
                match ((ask("allow? [a/s/e/d/q] ")) or "").lower():
                    case "a" | "allow" | "y" | "yes":
                        body: Json = {"decision": "allow"}
                    case "s" | "session" | "always":
                        remember = True if asked["suggestions"] else rules
                        body = {"decision": "allow", "remember": remember}
                    case "e" | "edit":
                        edited = self._edited(ask, asked["input"])
                        if edited is None:
                            continue
                        body = {"decision": "allow", "updated_input": edited}
                    case "d" | "deny" | "n" | "no" | "q" | "quit" as choice:
                        body = {"decision": "deny", "end_turn": choice.startswith("q")}
                        if message := ask("why? (for the model, may be empty) "):
                            body["message"] = message
                    case _:
                        continue
                break
            self._answer(path, body)

    def _edited(self, ask: Callable[[str], str], given: Json) -> Json | None:
        """Ask for another input of a tool; None if there is none."""
        line = ask("command: " if "command" in given else "input, as JSON: ")
        if not line:
            return None
        if "command" in given and not line.startswith("{"):
            return {**given, "command": line}
        try:
            edited = json.loads(line)
        except ValueError as error:
            self.terminal.bad(f"That is no JSON: {error}")
            return None
        return cast(Json, edited) if isinstance(edited, dict) else None

    def ask_questions(self, request_id: str) -> None:
        """Ask what the agent wants to know, and tell the server."""
        path = f"{self.path}/questions/{request_id}"
        asked = self._waiting(path)
        if asked is None:
            return
        terminal = self.terminal
        answers: dict[str, str | list[str]] = {}
        with self._asking(request_id) as ask:
            for question in asked["questions"]:
                options: list[Json] = question["options"]
                several: bool = question["multi_select"]
                terminal.line(f"{question['question']}{until(asked)}", "1;33")
                for number, option in enumerate(options, 1):
                    terminal.write(f"  {number}. {option['label']}")
                    about = option.get("description")
                    terminal.write(f"  {about}\n" if about else "\n", "2")
                how = "numbers with commas between" if several else "a number"
                terminal.dim(f"  {how}, or your own words; empty: no answer")
                chosen = picked(ask("answer: "), [str(one["label"]) for one in options], several)
                if chosen:
                    answers[question["question"]] = chosen if several else chosen[0]
            if len(answers) == len(asked["questions"]):
                self._answer(path, {"answers": answers})
            else:
                self._answer(path, {"decision": "deny", "message": "The user gave no answer."})

    def _waiting(self, path: str) -> Json | None:
        """Look a request up, whole; None if it is over."""
        with suppress(Refused):
            asked = self.server.get(path)
            if asked["resolution"] is None:
                return asked
        return None

    @contextmanager
    def _asking(self, request_id: str) -> Generator[Callable[[str], str]]:
        """Have somebody asked, until the request is over in another way.

        Ctrl-C interrupts the turn.
        """
        later: list[Item] = []

        def is_over() -> bool:
            while (item := self.inbox.get_new()) is not None:
                later.append(item)
            return any(
                isinstance(item, Event)
                and item.type == "resolved"
                and item.data["request_id"] == request_id
                for item in later
            )

        def ask(text: str) -> str:
            line = self.terminal.ask(text, is_over, self.inbox.fd)
            if line is None:
                raise _OverError
            return line

        self.typing = True
        try:
            yield ask
        except _OverError:
            self.terminal.dim("(no answer is needed any more)")
        except KeyboardInterrupt:
            self.terminal.fresh()
            if self.turn_id is None:
                raise
            self.interrupted = True
            later.insert(0, INTERRUPT)
        finally:
            self.typing = False
            self.inbox.put_back(later)

    def _answer(self, path: str, body: Json) -> None:
        try:
            self.server.post(path, body)
        except Refused as error:
            over: Json = error.body.get("request") or {}
            resolution = over.get("resolution")
            self.terminal.dim(f"(it was {resolution} before)" if resolution else f"({error})")

    # -- commands

    def command(self, line: str) -> None:
        """Carry out a line that begins with a slash.

        Raises:
            Leave: That was wanted.
            Refused: The server did not do it.
        """
        name, _, rest = line.partition(" ")
        rest, terminal = rest.strip(), self.terminal
        match name:
            case "/quit" | "/exit":
                raise Leave
            case "/help":
                terminal.dim(HELP.rstrip())
            case "/session":
                found = self.server.get(self.path)
                terminal.line(
                    f"{found['session_id']}, {found['state']}, since {found['created_at']}"
                )
            case "/model" | "/mode":
                what = "model" if name == "/model" else "permission_mode"
                if rest:
                    found = self.server.call("PATCH", self.path, json={what: rest})
                else:
                    found = self.server.get(self.path)
                terminal.line(f"{what}: {found[what]}")
            case "/fork":
                body = {"title": rest} if rest else {}
                forked = self.server.post(f"{self.path}/fork", body)["session_id"]
                terminal.line(f"This is now {forked}; the other one is as it was.")
                self.follow(forked, self.server.get(f"/session/{forked}/inspect")["last_event_id"])
            case "/compact":
                body = {"instructions": rest} if rest else {}
                self.wait_for(self.server.post(f"{self.path}/compact", body, wait="false"))
            case "/cost":
                self._show_cost()
            case "/files":
                self._save(rest) if rest else self._list_files()
            case _:
                terminal.bad(f"There is no {name}. /help says what there is.")

    def _show_cost(self) -> None:
        found = self.server.get(self.path)
        context = self.server.get(f"{self.path}/inspect").get("context")
        line = f"${found['total_cost_usd']:.4f}"
        if context:
            line += f"; the context holds {context['tokens']} of {context['max_tokens']} tokens"
        self.terminal.line(line)

    def _list_files(self) -> None:
        found = self.server.get(f"{self.path}/files")
        for one in found["files"]:
            size = "" if one["size"] is None else f"{one['size']} bytes"
            mark = {"directory": "/", "link": " ->", "other": " ?"}.get(one["kind"], "")
            self.terminal.line(f"  {one['path']}{mark}  {size}".rstrip())
        if found["truncated"]:
            self.terminal.dim("  ... and more")
        if not found["files"]:
            self.terminal.dim("(none)")

    def _save(self, path: str) -> None:
        """Save a file of the session's in this directory, in no place of another's."""
        target = Path(path.rpartition("/")[2])
        address = f"{self.path}/files/{quote(path)}"
        try:
            with self.server.http.stream("GET", address) as response, target.open("xb") as file:
                if response.is_error:
                    response.read()
                    target.unlink()
                    raise Refused(response)
                for piece in response.iter_bytes():
                    file.write(piece)
        except FileExistsError:
            self.terminal.bad(f"There is a {target} here already.")
        except (OSError, httpx.TransportError) as error:
            self.terminal.bad(f"It was not saved: {error}")
        else:
            self.terminal.line(f"saved as {target}")


class _OverError(Exception):
    """What was asked is over."""


def as_text(content: object) -> str:
    """Return what a tool gave back for people."""
    if isinstance(content, str):
        return content or "(nothing)"
    if isinstance(content, list):
        blocks = cast(list[Json], content)
        return "\n".join(str(block.get("text", f"[{block.get('type')}]")) for block in blocks)
    return json.dumps(content)


def in_rule(rule: Mapping[str, Any]) -> str:
    """Return a remembered rule as Claude Code writes it."""
    return f"{rule['tool']}({rule['content']})" if rule.get("content") else str(rule["tool"])


def until(asked: Mapping[str, Any]) -> str:
    """Say by when something has to be answered."""
    if not asked.get("expires_at"):
        return ""
    moment = datetime.fromisoformat(asked["expires_at"]).astimezone()
    return f" (until {moment:%H:%M:%S})"


def picked(line: str, labels: Sequence[str], several: bool) -> list[str]:
    """Return the answers that a line names, by number or in words; none if it is empty."""
    parts = [part.strip() for part in line.split(",")] if several else [line.strip()]
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if numbers and len(numbers) == len(parts) and all(0 < one <= len(labels) for one in numbers):
        return [labels[number - 1] for number in dict.fromkeys(numbers)]
    return [line.strip()] if line.strip() else []


# -- the program -----------------------------------------------------------------------------------


def begin(server: Server, terminal: Terminal, options: argparse.Namespace) -> Chat:
    """Start a session, or go on with one."""
    health = server.get("/health")
    if health.get("offline"):
        terminal.dim("(the offline model answers, not Claude)")
    session_id: str | None = options.session
    inbox, after, running = Inbox(), 0, None
    if session_id is None:
        wanted = {"model": options.model, "permission_mode": options.mode, "cwd": options.cwd}
        body = {name: value for name, value in wanted.items() if value is not None}
        session_id = str(server.post("/session/start", body)["session_id"])
    else:
        path = f"/session/{session_id}"
        inside = server.get(f"{path}/inspect")
        after, running = inside["last_event_id"], inside["turn_id"]
        turns: list[Json] = server.get(f"{path}/turns")["turns"]
        ended = [turn for turn in turns if turn["phase"] == "ended"]
        if ended:
            last = server.get(f"{path}/turns/{ended[-1]['turn_id']}")
            terminal.dim(f"> {last['prompt']}")
            terminal.dim(last["response"] or "(no answer)")
        for turn in turns:
            if turn["turn_id"] == running:
                after = turn["first_event_id"] - 1
                terminal.dim(f"> {server.get(f'{path}/turns/{running}')['prompt']}")
    follower = Follower(server, session_id, after, inbox)
    follower.start()
    chat = Chat(server=server, terminal=terminal, inbox=inbox, follower=follower)
    if running is not None:
        signal.signal(signal.SIGINT, chat.on_signal)
        chat.wait_for({"turn_id": running})
    return chat


def talk(chat: Chat) -> None:
    """Read prompts and commands until there are no more.

    Raises:
        Leave: It is over.
    """
    left = False
    while True:
        try:
            chat.catch_up()
            line = chat.terminal.prompt("> ")
            while line.endswith("\\"):
                line = f"{line[:-1]}\n{chat.terminal.prompt('. ')}"
            left = False
            if line.startswith("/"):
                chat.command(line)
            elif line.strip():
                chat.say(line)
        except Refused as error:
            chat.terminal.bad(str(error))
        except EOFError:
            raise Leave from None
        except KeyboardInterrupt:
            if left:
                raise Leave from None
            left = True
            chat.terminal.fresh()
            chat.terminal.dim("(Ctrl-C again, or /quit, leaves)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    environment = os.environ
    parser = argparse.ArgumentParser(description="Talk with an agent session in a terminal.")
    url = environment.get("CHAT_URL", "http://localhost:3000")
    parser.add_argument(
        "--url", default=url, help="of the server; else $CHAT_URL, else %(default)s"
    )
    key = environment.get("CHAT_KEY")
    parser.add_argument(
        "--key", default=key, help="API key; better in $CHAT_KEY: others see options"
    )
    parser.add_argument("--session", metavar="ID", help="session to go on with")
    parser.add_argument("--model", help="of a new session")
    parser.add_argument("--mode", help="permission mode of a new session")
    parser.add_argument("--cwd", help="directory of a new session, where the operator allows it")
    options = parser.parse_args(arguments)
    terminal = Terminal()
    server = Server(options.url, options.key)
    server.on_trouble = lambda text: terminal.dim(f"({text})")
    chat = None
    # A shell may have started us with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        chat = begin(server, terminal, options)
        terminal.dim("/help says what can be typed.")
        signal.signal(signal.SIGINT, chat.on_signal)
        talk(chat)
    except (Leave, KeyboardInterrupt) as leave:
        if str(leave):
            terminal.line(str(leave))
        if chat is not None and not str(leave):
            terminal.dim(
                f"Go on with: {Path(sys.argv[0]).name} --session {chat.follower.session_id}"
            )
        return 0 if isinstance(leave, Leave) and not str(leave) else 1
    except (Refused, httpx.HTTPError, httpx.InvalidURL) as error:
        terminal.bad(f"{server.url}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
