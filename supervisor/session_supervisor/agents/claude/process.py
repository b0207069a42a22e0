"""One live Claude Code process: the port `AgentProcess`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from pydantic import JsonValue

from session_supervisor.agents.claude.mirror import Mirror
from session_supervisor.agents.claude.permissions import Permissions
from session_supervisor.agents.claude.program import Garbled, Program
from session_supervisor.agents.claude.renewal import Origin, Witness, is_empty
from session_supervisor.agents.claude.translate import Translator
from session_supervisor.agents.port import (
    AgentMessage,
    Alive,
    BackgroundWork,
    Binding,
    ContextUsage,
    Exit,
    Tree,
    TurnBegan,
    TurnEnded,
)
from session_supervisor.asks import Decision
from session_supervisor.errors import AgentGone, CannotChange, CannotRenew
from session_supervisor.spec import Attachment, JsonObject, PermissionMode, Prompt

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_STOPPED = "It was stopped."

_FOR_THE_SDK = frozenset({"control_request", "control_response", "control_cancel_request"})

_AHEAD = 1000
"""Messages that may wait for the reader; then the CLI waits."""

_TAKE_UP_S = 60.0
"""Seconds that an interrupt waits for the CLI to take up a prompt that it was just handed, which it
may be slow to do on a busy machine. Who asked for it gives up sooner, and ends the process."""

_CATCH_UP_S = 0.5
"""Seconds after the end that the reader has to take what is left."""

_STORE_S = 2.0
"""Seconds that the announcement of a turn's end waits for its transcript to be stored."""

_REFUSED_S = 8.0
"""The same for a store that refuses it: its disk may be full, and so the CLI's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTimes:
    """How long each step of stopping a process may take, in seconds.

    Attributes:
        interrupt: Until its turn has come to rest.
        leave: Until it has left by itself when its input ends; an idle CLI takes 0.05.
        terminate: From SIGTERM to SIGKILL.
    """

    interrupt: float = 1.0
    leave: float = 1.0
    terminate: float = 1.5


class _NotKept(Exception):
    """What was said in a turn is nowhere from where a conversation could go on."""


class Client(Protocol):
    """What is used of `ClaudeSDKClient`."""

    async def connect(self) -> None:
        """Shake hands."""
        ...

    async def query(self, prompt: AsyncIterator[dict[str, Any]]) -> None:
        """Send messages of the user."""
        ...

    async def interrupt(self) -> None:
        """Stop the running turn."""
        ...

    async def set_model(self, model: str) -> None:
        """Have the next requests to the model made to another one."""
        ...

    async def set_permission_mode(self, mode: PermissionMode) -> None:
        """Change what happens to tools that are not allowed outright."""
        ...

    async def get_context_usage(self) -> Any:
        """Say what takes how much of the model's context."""
        ...

    async def get_mcp_status(self) -> Any:
        """Answer, which is all that matters here."""
        ...

    async def disconnect(self) -> None:
        """Let go of the program."""
        ...


class ClaudeProcess:
    """A Claude Code process, from its start to its end. Made by `ClaudeAgent.spawn`."""

    def __init__(
        self,
        program: Program,
        *,
        translator: Translator,
        permissions: Permissions,
        model_named: Callable[[str], str],
        may_bypass: bool,
        take_stock: Callable[[int | None], Awaitable[Tree]],
        look_around: Callable[[], Awaitable[Tree]],
        clean_up: Callable[[], Awaitable[None]],
        mirror: Mirror | None,
        max_line: int,
        times: StopTimes,
        on_stopped: Callable[[ClaudeProcess], None],
        origin: Origin,
        new_translator: Callable[[], Translator],
        wipe: Callable[[str | None], Awaitable[None]],
    ) -> None:
        """Take a program that was started; then `connect`.

        Args:
            program: The running CLI.
            translator: A fresh one.
            permissions: What it asks humans; fresh as well.
            model_named: Says what a session's name for a model is for the program.
            may_bypass: Whether it was started so that it can be told to bypass permissions.
            take_stock: Says what there is of the program, whose id it gets while it runs, and of
                what that started.
            look_around: Says the same while the program runs, for what is not meant to be there.
            clean_up: Ends what the program started, and removes what it left.
            mirror: Takes what the program says of its transcripts, if it says so.
            max_line: Longest line that it may print, bytes.
            times: How long stopping may take.
            on_stopped: Hears that there is nothing left to stop.
            origin: How it was started.
            new_translator: Makes a fresh one for the next session that it works for.
            wipe: Erases what the program has written, but for its conversations, and of these the
                one that is named. Raises CannotRenew.
        """
        self._program = program
        self._translator = translator
        self._permissions = permissions
        self._model_named = model_named
        self._may_bypass = may_bypass
        self._take_stock = take_stock
        self._look_around = look_around
        self._clean_up = clean_up
        self._mirror = mirror
        self._max_line = max_line
        self._times = times
        self._on_stopped = on_stopped
        self._origin = origin
        self._new_translator = new_translator
        self._wipe = wipe
        self._witness = Witness(origin)
        self._is_read = False
        self._client: Client | None = None
        self._pump: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[Exit] | None = None
        self._cause = ""
        self._asked_to_leave = False
        self._handed: set[str] = set()
        self._background = 0
        self._boundary = asyncio.Event()
        self._outbox: asyncio.Queue[AgentMessage | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._reader_left = False
        self._told_model = False
        self._empties = False
        """Whether a reset is known to leave nothing in its context."""

    async def connect(self, client: Client, accept: Callable[[JsonObject | None], None]) -> None:
        """Shake hands.

        Args:
            client: Speaks the control protocol with the program.
            accept: Takes the frames that are for the client, and at their end None.

        Raises:
            AgentGone: The program ended meanwhile.
            Exception: It did not answer, or said no.
        """
        self._client = client
        self._pump = asyncio.create_task(self._pump_frames(accept), name="claude pump")
        await self._unless_gone(client.connect())

    # The port

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._program.pid

    @property
    def exit(self) -> Exit | None:
        """How it ended, or None while it lives."""
        code = self._program.returncode
        if code is None:
            return None
        # It may have been killed by somebody else before it heard of us.
        stopped = self._asked_to_leave and (code >= 0 or -code in self._program.sent)
        cause = self._cause or (_STOPPED if stopped else _described(code))
        return Exit(returncode=code, cause=cause, stderr=self._program.stderr)

    def bind(self, binding: Binding) -> None:
        """Tie it to a session."""
        self._program.on_stderr = binding.on_stderr

    async def messages(self) -> AsyncIterator[AgentMessage]:
        """Yield what it says, until it ends or is renewed."""
        self._is_read = True
        outbox = self._outbox
        try:
            while (message := await outbox.get()) is not None:
                if outbox.qsize() < _AHEAD:
                    self._room.set()
                yield message
        finally:
            if outbox is self._outbox:
                self._reader_left = True
            self._room.set()

    async def send(self, prompt: Prompt) -> None:
        """Hand over a prompt.

        Raises:
            AgentGone: The process has ended.
        """
        self._handed.add(prompt.prompt_id)
        if prompt.command:
            self._translator.expect_command(prompt.prompt_id)
            # The SDK would have it taken for text, as it does with all that people write.
            line = json.dumps(_user_message(prompt)).encode() + b"\n"
            await self._unless_gone(self._program.write(line))
        else:
            self._witness.prompted()
            if self._mirror is not None:
                self._mirror.handed(prompt.prompt_id, _message(prompt))
            await self._unless_gone(self._connected.query(_one_user_message(prompt)))

    async def interrupt(self) -> None:
        """Stop what it does: the running turn, and a prompt that it has not taken up yet.

        Raises:
            AgentGone: The process has ended.
        """
        self._witness.mark("interrupted")
        if not self._handed:
            await self._ask(self._connected.interrupt())
            return
        # The CLI acknowledges an interrupt of a prompt that it has not taken up, and then runs
        # the whole turn: it has to be told again. If it takes one up while it is being told, what
        # that has stopped is not known.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKE_UP_S):
                while self._handed:
                    if self._translator.in_turn:  # a turn of its own
                        await self._ask(self._connected.interrupt())
                    if self._handed:
                        await self._pass_boundary()
        if self._translator.in_turn:
            await self._ask(self._connected.interrupt())

    async def answer(self, request_id: str, decision: Decision) -> None:
        """Answer what it asked; nothing happens if it is over already.

        An input that a human has changed is judged as the model's was: what is hidden from the
        session's file tools stays so, and then the call is denied.

        Raises:
            AgentGone: The process has ended.
            ValueError: A question was allowed, or a permission was answered.
        """
        if self._program.returncode is not None:
            raise self._gone()
        told = await self._permissions.answer(request_id, decision)
        if told is not None:
            await self._unless_gone(self._program.write(json.dumps(told).encode() + b"\n"))

    async def configure(
        self, *, model: str | None = None, permission_mode: PermissionMode | None = None
    ) -> None:
        """Change what can change while it lives, from the next request to the model on.

        Raises:
            AgentGone: The process has ended.
            CannotChange: It has to be started anew for that.
        """
        if permission_mode == "bypassPermissions" and not self._may_bypass:
            raise CannotChange("Claude Code has to be started anew to bypass permissions.")
        if model is not None:
            self._told_model = True
            await self._tell(self._connected.set_model(self._model_named(model)))
        if permission_mode is not None:
            self._witness.told_mode(permission_mode)
            await self._tell(self._connected.set_permission_mode(permission_mode))

    @property
    def untouched(self) -> bool:
        """Whether it lives, and has said and been told nothing since it came up or was renewed."""
        idle = not (self._translator.in_turn or self._handed or self._background or self._is_read)
        alive = self._program.returncode is None and self._stopping is None
        if not (alive and idle and self._outbox.empty() and self._witness.stain is None):
            return False
        return self._program.is_at_work()

    @property
    def stain(self) -> str | None:
        """Why it cannot be renewed, as far as is known."""
        if self._stopping is not None:
            return "stopped"
        if self._translator.in_turn or self._handed:
            return "busy"
        if self._background:
            return "background"
        return self._permissions.stain or self._witness.stain

    @property
    def conversation(self) -> str | None:
        """Id of its conversation, as soon as there is one."""
        return self._witness.conversation

    async def leftovers(self) -> Tree:
        """Look what there is of it and of what it started, shared memory left out.

        Raises:
            OSError: It cannot be looked for just now.
        """
        return await self._look_around()

    async def renew(self) -> None:
        """Bring it back to how it came up, and prove it; `renewal` says what is a proof.

        Raises:
            CannotRenew: It is not proven.
            AgentGone: It has ended.
        """
        if self._program.returncode is not None:
            raise self._gone()
        self._refuse_stains()
        await self._settle_transcript()
        before = self._witness.conversation
        # First: what is remembered of the directory, the CLI reads again as it begins anew.
        await self._wipe(None)
        await self._clear()
        # Also what a tool of the CLI's own has changed, which it told nobody.
        try:
            await self.configure(permission_mode=self._origin.permission_mode)
            if self._told_model:
                await self._tell(self._connected.set_model(self._origin.model))
        except CannotChange as error:
            raise CannotRenew("model or mode", "it keeps its model or mode") from error
        if not self._empties:
            # The most expensive of the proofs, and about the program: a process gives it once.
            usage = await self._unless_gone(self._connected.get_context_usage())
            if not is_empty(usage):
                raise CannotRenew("context", "its context is not empty")
            self._empties = True
        # What is stored after the copy was erased would be there for good.
        await self._settle_transcript()
        await self._wipe(before)
        self._refuse_stains()
        self._begin_anew()

    async def _settle_transcript(self) -> None:
        """See that nothing of a transcript is still on its way to the store.

        Raises:
            CannotRenew: Something is.
        """
        if self._mirror is not None:
            _ = await self._mirror.flush(_STORE_S)
            if not self._mirror.is_settled:
                raise CannotRenew("transcript", "its transcript could not be stored")

    def _refuse_stains(self) -> None:
        if (stain := self.stain) is not None:
            raise CannotRenew(stain)

    async def _clear(self) -> None:
        """Have the conversation begin anew.

        Raises:
            CannotRenew: It was not.
        """
        command = Prompt(prompt_id=str(uuid4()), text="/clear", command=True)
        proven = self._witness.expect_reset(command.prompt_id)
        try:
            await self.send(command)
            reason = await self._unless_gone(_result_of(proven))
        finally:
            self._witness.settle()
        if reason is not None:
            raise CannotRenew(reason)

    def _begin_anew(self) -> None:
        """Let who reads go, and nothing of them be left."""
        before, self._outbox = self._outbox, asyncio.Queue()
        self._translator = self._new_translator()
        self._program.forget_stderr()
        self._permissions.begin_anew()
        if self._mirror is not None:
            self._mirror.begin_anew()
        self._handed.clear()
        self._told_model = self._is_read = self._reader_left = False
        self._room.set()
        before.put_nowait(None)

    async def context(self) -> ContextUsage | None:
        """Return how full the model's context is.

        Raises:
            AgentGone: The process has ended.
        """
        try:
            usage = await self._unless_gone(self._connected.get_context_usage())
        except AgentGone:
            raise
        except Exception as error:  # the SDK raises a plain one where the answer is no
            if self._program.returncode is not None:
                raise self._gone() from error
            _log.debug("Claude Code does not say how full its context is: %s", error)
            return None
        match usage:
            case {"totalTokens": int(tokens), "maxTokens": int(most)}:
                return ContextUsage(tokens=tokens, max_tokens=most)
            case _:
                return None

    async def probe(self) -> None:
        """Return once it has answered a request.

        Raises:
            AgentGone: The process has ended.
        """
        await self._ask(self._connected.get_mcp_status())

    async def tree(self) -> Tree:
        """Look what there is of it and of what it started."""
        return await self._take_stock(self.pid if self._program.returncode is None else None)

    async def stop(self) -> Exit:
        """End it and all that it started."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="claude stop")
        # A caller that is cancelled must not leave half a process: the task goes on, it is bounded.
        return await asyncio.shield(self._stopping)

    # Stopping

    async def _stop(self) -> Exit:
        program = self._program
        if program.returncode is None:
            self._asked_to_leave = True
            await self._leave()
        # A stopped one (SIGSTOP) would take a gentler signal only when somebody lets it go on.
        if not program.is_stopped():
            program.signal(signal.SIGTERM)
            await program.wait(self._times.terminate)
        await program.kill()
        await self._end_pump()
        if program.returncode != 0:  # it need not have written all that it would have in the end
            self._lose()
        if self._client is not None:
            await self._client.disconnect()
        await self._clean_up()
        self._on_stopped(self)
        return self.exit or Exit(cause="It cannot be killed.", stderr=program.stderr)

    async def _leave(self) -> None:
        """Ask it to leave, if it is still able to listen."""
        if self._program.is_stopped():
            return
        try:
            async with asyncio.timeout(self._times.interrupt):
                if self._translator.in_turn or self._handed or self._background:
                    # Also for work in the background, for which it would not leave otherwise.
                    await self.interrupt()
                while self._translator.in_turn:
                    await self._pass_boundary()
        except (TimeoutError, AgentGone):
            return
        self._program.close_input()
        await self._program.wait(self._times.leave)

    async def _end_pump(self) -> None:
        if self._pump is not None:
            await asyncio.wait({self._pump}, timeout=_CATCH_UP_S)
            if not self._pump.done():
                self._lose()
            self._pump.cancel()  # nobody reads
            await asyncio.wait({self._pump})
        self._outbox.put_nowait(None)

    # What the program prints

    async def _pump_frames(self, accept: Callable[[JsonObject | None], None]) -> None:
        """Read the program to its end, and see to it that the end of what it says is its end."""
        try:
            async for frame in self._program.frames(limit=self._max_line):
                kind = frame.get("type")
                if kind in _FOR_THE_SDK:
                    asked = self._asked(frame)
                    if asked is None:
                        accept(frame)
                    else:
                        await self._put(asked)
                elif kind != "transcript_mirror":
                    await self._deliver(frame)
                elif self._mirror is not None:
                    self._mirror.accept(frame)
        except Garbled as error:
            self._cause = f"It cannot be understood any more. {error}"
            self._lose()
        except _NotKept as error:
            self._cause = str(error)
            self._lose()
        except Exception as error:
            # Contains a mistake in our translation: nobody would read the program any more.
            _log.exception("The output of Claude Code could not be handled")
            self._cause = f"Its output could not be handled: {error!r}"
            self._lose()
        else:
            if not await self._program.wait(self._times.terminate) and not self._asked_to_leave:
                self._cause = self._cause or "It closed its output."
        finally:
            await self._program.kill()
            accept(None)
            self._outbox.put_nowait(None)

    def _asked(self, frame: JsonObject) -> AgentMessage | None:
        """Return what a control frame asks of a human, or takes back; None if it does neither."""
        if frame.get("type") == "control_request":
            return self._permissions.asked(frame)
        if frame.get("type") == "control_cancel_request":
            return self._permissions.withdrawn(frame)
        return None

    async def _put(self, message: AgentMessage) -> None:
        """Pass a message on, as fast as they are read."""
        await self._room.wait()
        if self._reader_left:
            return
        if isinstance(message, Alive) and not self._is_read:
            return  # nobody wonders
        self._outbox.put_nowait(message)
        if self._outbox.qsize() >= _AHEAD:
            self._room.clear()

    async def _deliver(self, frame: JsonObject) -> None:
        self._witness.feed(frame)
        messages = self._translator.feed(frame)
        await self._keep(frame, messages)
        for message in messages:
            match message:
                case TurnBegan() | TurnEnded():
                    self._handed.difference_update(message.prompt_ids)
                    self._boundary.set()
                    self._boundary = asyncio.Event()
                case BackgroundWork():
                    self._background = message.pending
                case _:
                    pass
            await self._put(message)

    async def _keep(self, frame: JsonObject, messages: Sequence[AgentMessage]) -> None:
        """See to it that a turn whose end is told next can be gone on from, whatever happens.

        Raises:
            _NotKept: It cannot.
        """
        if self._mirror is None:
            return
        self._mirror.hear(frame)
        if frame.get("type") != "result":
            return
        ends = [one for one in messages if isinstance(one, TurnEnded)]
        completed = any(one.failure is None and not one.interrupted for one in ends)
        await self._mirror.make_up(str(frame.get("session_id")), completed=completed)
        await self._mirror.flush(_STORE_S, refused_s=_REFUSED_S)
        if completed and self._mirror.owes:
            raise _NotKept("It could not write down what was said, and neither could we.")

    def _lose(self) -> None:
        """Note that something that it printed was not read."""
        if self._mirror is not None:
            self._mirror.lose()

    async def _pass_boundary(self) -> None:
        """Wait until a turn begins or ends, or the process does."""
        await self._unless_gone(self._boundary.wait())

    # Asking

    @property
    def _connected(self) -> Client:
        assert self._client is not None, "connected by ClaudeAgent.spawn"
        return self._client

    async def _ask(self, asked: Coroutine[Any, Any, object]) -> None:
        """Make a request whose answer does not matter, only that there is one."""
        try:
            await self._unless_gone(asked)
        except AgentGone:
            raise
        except Exception as error:
            # The SDK raises a plain exception where the answer is no, and where none came.
            if self._program.returncode is not None:
                raise self._gone() from error
            if isinstance(error.__cause__, TimeoutError):
                raise TimeoutError(str(error)) from error
            _log.debug("Claude Code refused a request: %s", error)

    async def _tell(self, asked: Coroutine[Any, Any, object]) -> None:
        """Make a request that may be refused.

        Raises:
            AgentGone: The process has ended.
            CannotChange: The answer is no.
        """
        try:
            await self._unless_gone(asked)
        except AgentGone:
            raise
        except Exception as error:
            if self._program.returncode is not None:
                raise self._gone() from error
            raise CannotChange(
                f"Claude Code does not change that while it lives: {error}"
            ) from error

    async def _unless_gone(self, asked: Coroutine[Any, Any, _T]) -> _T:
        """Await what only a live process can answer: the SDK would go on waiting for a dead one.

        Raises:
            AgentGone: The process has ended, or ends meanwhile.
        """
        if self._program.returncode is not None:
            asked.close()
            raise self._gone()
        answer = asyncio.ensure_future(asked)
        end = asyncio.ensure_future(self._program.wait())
        try:
            await asyncio.wait({answer, end}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answer.cancel()
            end.cancel()
            await asyncio.gather(answer, end, return_exceptions=True)
        if answer.cancelled() or isinstance(answer.exception(), AgentGone):
            raise self._gone()
        return answer.result()

    def _gone(self) -> AgentGone:
        ended = self.exit
        return AgentGone(f"Claude Code has ended. {ended.cause if ended else self._cause}".rstrip())


async def _result_of(future: asyncio.Future[_T]) -> _T:
    return await future


async def _one_user_message(prompt: Prompt) -> AsyncIterator[dict[str, Any]]:
    yield _user_message(prompt)


def _user_message(prompt: Prompt) -> dict[str, Any]:
    return {
        "type": "user",
        "uuid": prompt.prompt_id,
        "message": _message(prompt),
        "parent_tool_use_id": None,
    }


def _message(prompt: Prompt) -> JsonObject:
    return {"role": "user", "content": _content(prompt)}


def _content(prompt: Prompt) -> JsonValue:
    if not prompt.attachments:
        return prompt.text
    blocks: list[JsonValue] = [_block(one) for one in prompt.attachments]
    return [*blocks, {"type": "text", "text": prompt.text}]


def _block(attachment: Attachment) -> JsonObject:
    source: JsonObject = {
        "type": "base64",
        "media_type": attachment.media_type,
        "data": attachment.data,
    }
    if attachment.media_type.startswith("image/"):
        return {"type": "image", "source": source}
    named: JsonObject = {} if attachment.name is None else {"title": attachment.name}
    return {"type": "document", "source": source, **named}


def _described(code: int) -> str:
    if code < 0:
        return f"It was killed by signal {-code} ({signal.strsignal(-code)})."
    if code == 128 + signal.SIGTERM:
        return "It ended upon SIGTERM."
    if code == 0:
        return "It ended by itself, though nobody asked it to."
    return f"It ended with exit status {code}."
