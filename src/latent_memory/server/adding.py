"""Conversations that come in: one, several, or a stream of any length, one a line.

A stream is added as it comes, a batch at a time, and answered while it does: what a line of the answer reports is on
disk. Neither side may have to wait for the other: a client that reads nothing before it has sent everything, as most
do, must not stop the server from reading. So reading goes on beside the answering, which tells the latest state only.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from latent_memory import generated
from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.importers import jsonl
from latent_memory.importers.base import OnSkip
from latent_memory.ingest import BATCH_CHARACTERS, BATCH_CONVERSATIONS
from latent_memory.memory import LatentMemory
from latent_memory.messages import kind
from latent_memory.records import AddReport, Conversation
from latent_memory.server.bodies import NDJSON, parsed
from latent_memory.server.problems import ProblemError
from latent_memory.server.service import Service

# When nothing more comes for so long, what is there is added: a client may wait for that.
_IDLE_SECONDS = 0.5
# Bad lines are reported one by one up to here; then they are only counted.
_MOST_ERRORS = 1_000


def conversation_of(value: object, on_skip: OnSkip, *, where: str = "") -> Conversation | None:
    """Return the conversation that a JSON value is; None for one that says nothing to us.

    Args:
        value: as JSON reads it.
        on_skip: told what is left out of it.
        where: its place, for the message.

    Raises:
        ProblemError: if it is none, or has a field that is not known.
    """
    try:
        if isinstance(value, dict) and (unknown := next((key for key in value if key not in jsonl.FIELDS), None)):
            raise InputError(
                f"{unknown[:100]!r}: unknown; a conversation has {', '.join(jsonl.FIELDS)}. Put into its metadata what "
                "else is to be kept"
            )
        return jsonl.conversation_of(value, on_skip=on_skip)
    except InputError as error:
        raise ProblemError(422, f"{where}{error}", code="input") from None


@dataclass(slots=True)
class Incoming:
    """The conversations of one request, and what was left out of them."""

    scope: str | None = None
    conversations: list[Conversation] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, body: object) -> Incoming:
        """Read a body: one conversation, or `{"conversations": [...]}`; each with `scope` beside it or not.

        Raises:
            ProblemError: if one of them cannot be used.
        """
        if not isinstance(body, dict) or "conversations" not in body:
            return cls.one(body)
        found = cls(scope_in(body))
        unknown = next((key for key in body if key not in ("conversations", "scope")), None)
        if unknown is not None:
            told = f"{unknown[:100]!r}: unknown beside conversations; only scope may be there"
            raise ProblemError(422, told, code="input")
        several = body["conversations"]
        if not isinstance(several, list):
            raise ProblemError(422, f"conversations: a list was expected, not {kind(several)}", code="input")
        for number, value in enumerate(several):
            found.take(value, f"conversations[{number}]: ")
        return found

    @classmethod
    def one(cls, body: object) -> Incoming:
        """Read a body that is one conversation, with `scope` beside it or not.

        Raises:
            ProblemError: if it cannot be used.
        """
        if not isinstance(body, dict):
            raise ProblemError(422, f"body: an object was expected, not {kind(body)}", code="input")
        found = cls(scope_in(body))
        found.take({key: value for key, value in body.items() if key != "scope"})
        return found

    def take(self, value: object, where: str = "") -> None:
        """Read one more conversation."""
        conversation = conversation_of(value, self.on_skip, where=where)
        if conversation is not None:
            self.conversations.append(conversation)

    def on_skip(self, what: str) -> None:
        """Count what is left out."""
        self.skipped[what] += 1

    def add(self, memory: LatentMemory, scope: str) -> dict[str, Any]:
        """Add them, and return the report."""
        report = memory.add(self.conversations, scope)
        ids = [generated.id_of(conversation) for conversation in self.conversations]
        return asdict(report) | {"conversation_ids": ids, "skipped": dict(self.skipped)}


def scope_in(body: dict[str, Any]) -> str | None:
    """Return the scope that a body names.

    Raises:
        ProblemError: if it is no text.
    """
    scope = body.get("scope")
    if scope is not None and not isinstance(scope, str):
        raise ProblemError(422, f"scope: a text was expected, not {kind(scope)}", code="input")
    return scope


class _GoneError(Exception):
    """The client has left."""


class StreamedAdd(Response):
    """The answer to a stream of conversations; reads the request while it is sent.

    Args:
        request: whose body was not read yet.
        service: see there.
        scope: where they are added to.
        skip_bad: leave out lines that cannot be used, and report each; otherwise the first one ends it.
    """

    media_type = NDJSON

    def __init__(self, request: Request, service: Service, scope: str, *, skip_bad: bool) -> None:
        # Behind a proxy that waits for the whole answer, nobody would see it grow.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._receive = request.receive
        self._service = service
        self._scope = scope
        self._skip_bad = skip_bad
        self._most_bytes = service.settings.most_bytes
        self._state = _State()
        self._news = asyncio.Event()
        self._over = False
        self._problem: ProblemError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, add and answer."""
        del scope, receive
        reading = asyncio.create_task(self._read(), name="adding a stream")
        begun = False
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                over = self._over
                if over:
                    # Raises if the client has left, or there is a bug in it.
                    await reading
                if self._problem is not None and not begun and not self._state.line:
                    raise self._problem
                lines = self._state.told(over=over, problem=self._problem)
                if not begun:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    begun = True
                data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
                await send({"type": "http.response.body", "body": data, "more_body": not over})
                if over:
                    return
        except _GoneError:
            return
        finally:
            reading.cancel()

    async def _read(self) -> None:
        """Read the request and add what it holds."""
        try:
            pending: list[_Line] = []
            size = 0
            async for line in self._lines():
                if line is not None and (line.data is None or line.data.strip()):
                    pending.append(line)
                    size += len(line.data or b"")
                if pending and (line is None or size >= BATCH_CHARACTERS or len(pending) >= BATCH_CONVERSATIONS):
                    await self._add(pending)
                    pending, size = [], 0
            if pending:
                await self._add(pending)
        except ProblemError as problem:
            self._problem = problem
        finally:
            self._over = True
            self._news.set()

    async def _add(self, lines: Sequence[_Line]) -> None:
        """Add a batch of lines.

        Raises:
            ProblemError: if a line cannot be used, or nothing can be added at all; what came before is on disk.
        """
        batch = await self._service.write(self._added, lines)
        self._state.take(batch)
        if batch.problem is not None:
            raise batch.problem
        self._news.set()

    def _added(self, lines: Sequence[_Line]) -> _Batch:
        """Add a batch, in a thread."""
        incoming, batch = Incoming(), _Batch(lines[-1].number)
        for line in lines:
            try:
                if line.data is None:
                    told = f"longer than {self._most_bytes:,} bytes; send it in several conversations"
                    raise ProblemError(413, told, code="size")
                incoming.take(self._parsed(line.data))
            except ProblemError as problem:
                problem = ProblemError(problem.status, f"line {line.number}: {problem.detail}", code=problem.code)
                if not self._skip_bad:
                    batch.line, batch.problem = line.number - 1, problem
                    break
                batch.errors.append((line.number, problem.detail))
        try:
            batch.report = self._service.memory.add(incoming.conversations, self._scope)
            batch.skipped = incoming.skipped
        except LatentMemoryError as error:
            batch.line, batch.problem = lines[0].number - 1, ProblemError.of(error)
        return batch

    def _parsed(self, line: bytes) -> Any:
        try:
            return parsed(line, self._service.settings.most_depth)
        except ProblemError as problem:
            raise ProblemError(422, problem.detail.removeprefix("body: "), code=problem.code) from None

    async def _lines(self) -> AsyncIterator[_Line | None]:
        """Yield lines as they come, and None when none comes for a while.

        Raises:
            _GoneError: if the client leaves.
        """
        number, parts, size = 1, list[bytes](), 0
        waiting: asyncio.Task[Message] | None = None
        try:
            while True:
                waiting = waiting or asyncio.create_task(_received(self._receive))
                done, _ = await asyncio.wait({waiting}, timeout=_IDLE_SECONDS)
                if not done:
                    yield None
                    continue
                message, waiting = waiting.result(), None
                if message["type"] == "http.disconnect":
                    raise _GoneError
                chunk = message.get("body", b"")
                if number == 1 and not size:
                    chunk = chunk.removeprefix(b"\xef\xbb\xbf")
                *whole, last = chunk.split(b"\n")
                for end in whole:
                    yield self._line(number, parts, size, end)
                    number, parts, size = number + 1, [], 0
                size += len(last)
                if size > self._most_bytes:
                    # What is too long is not kept; only its end is waited for.
                    parts = []
                else:
                    parts.append(last)
                if not message.get("more_body", False):
                    if size:
                        yield self._line(number, parts, size, b"")
                    return
        finally:
            if waiting is not None:
                waiting.cancel()

    def _line(self, number: int, parts: list[bytes], size: int, end: bytes) -> _Line:
        return _Line(number, None if size + len(end) > self._most_bytes else b"".join([*parts, end]))


async def _received(receive: Receive) -> Message:
    return await receive()


class _Line(NamedTuple):
    """A line, and its number from 1; it is None if it is too long."""

    number: int
    data: bytes | None


@dataclass(slots=True)
class _Batch:
    """What became of a batch of lines; up to `line`, everything is on disk."""

    line: int
    report: AddReport = field(default_factory=AddReport)
    skipped: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[int, str]] = field(default_factory=list)
    problem: ProblemError | None = None


@dataclass(slots=True)
class _State:
    """How far a stream is, and what was not told of it yet."""

    line: int = 0
    report: AddReport = field(default_factory=AddReport)
    skipped: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)

    def take(self, batch: _Batch) -> None:
        self.line = max(self.line, batch.line)
        self.report += batch.report
        self.skipped += batch.skipped
        self.errors += batch.errors[: max(0, _MOST_ERRORS - self.bad)]
        self.bad += len(batch.errors)

    def told(self, *, over: bool, problem: ProblemError | None) -> Iterator[dict[str, Any]]:
        """Yield what is to be told now; each bad line once."""
        errors, self.errors = self.errors, []
        counts = asdict(self.report) | {"bad": self.bad, "skipped": dict(self.skipped)}
        for number, error in errors:
            yield {"line": number, "error": error}
        if not over:
            yield {"line": self.line} | counts
        elif problem is None:
            yield {"line": self.line} | counts | {"done": True}
        else:
            yield {"line": self.line} | counts | {"error": problem.detail, "done": False}
