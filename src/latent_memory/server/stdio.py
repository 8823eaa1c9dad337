"""MCP over standard input and output: one process for one client, one memory and one scope.

The SDK's own transport waits for a line in a thread that nothing interrupts, so that a signal cannot end it in good
order, and drops what is being answered when the input ends. This one does neither.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.server.mcp import Asked, Reach, make_server

if TYPE_CHECKING:
    from latent_memory.memory import LatentMemory

T = TypeVar("T")
Opening = Callable[[], AbstractContextManager["LatentMemory"]]

log = logging.getLogger(__name__)

# When the input has ended: how long what was asked may take to be answered, and answers to be read.
_ANSWER_SECONDS = 30.0
_WRITE_SECONDS = 5.0
_OTHER_THREADS = 4
_CHUNK = 1 << 16


def serve(opening: Opening, scope: str, *, read_only: bool = False) -> None:
    """Answer a client on standard input and output until the input ends, or SIGTERM or Ctrl-C comes.

    Args:
        opening: opens the memory; called in a thread, so that the client need not wait for it.
        scope: the only one that the client sees.
        read_only: there is neither `add` nor `forget`.

    Raises:
        LatentMemoryError: if the memory cannot be opened.
    """
    with _wire() as (source, sink), ExitStack() as stack:
        asyncio.run(_serve(stack, opening, Reach(scope, not read_only), source, sink))


async def _serve(stack: ExitStack, opening: Opening, reach: Reach, source: int, sink: int) -> None:
    desk = _Desk(reach)
    server = make_server(desk)
    connection = _Connection(source, sink)
    into, read = anyio.create_memory_object_stream[SessionMessage | Exception]()
    write, out = anyio.create_memory_object_stream[SessionMessage]()
    with _stopping(connection.stop):
        try:
            async with anyio.create_task_group() as loading:
                loading.start_soon(desk.open, stack, opening, connection.end)
                async with anyio.create_task_group() as talking:
                    talking.start_soon(connection.receive, into)
                    talking.start_soon(connection.send, out)
                    await server.run(read, write, server.create_initialization_options())
                # Whether it could be opened is told even if nobody has asked; what is loaded beyond that can wait.
                await desk.opened()
                loading.cancel_scope.cancel()
        finally:
            connection.close()
            # What was begun is finished before the memory is closed.
            desk.close()
    if desk.failed is not None:
        raise desk.failed


class _Desk:
    """The memory of this process, as soon as it is open, and the threads that work on it."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._searching = ThreadPoolExecutor(os.cpu_count() or 1, "recall")
        self._other = ThreadPoolExecutor(_OTHER_THREADS, "memory")
        self._memory: asyncio.Future[LatentMemory] = asyncio.get_running_loop().create_future()
        self.failed: LatentMemoryError | None = None

    async def open(self, stack: ExitStack, opening: Opening, give_up: Callable[[], None]) -> None:
        """Open the memory and load what a first recall needs."""
        loop = asyncio.get_running_loop()
        try:
            memory = await loop.run_in_executor(self._other, lambda: stack.enter_context(opening()))
        except LatentMemoryError as error:
            self.failed = error
            self._memory.set_exception(error)
            # It may be that nobody asks.
            self._memory.exception()
            give_up()
            return
        self._memory.set_result(memory)
        try:
            await self.search(self._warm)
        except LatentMemoryError as error:
            # Whoever recalls is told; those who add and list need not know.
            log.warning("cannot make ready: %s", error)

    async def opened(self) -> None:
        """Wait until the memory is open, or cannot be."""
        await asyncio.wait([self._memory])

    def _warm(self, memory: LatentMemory) -> None:
        memory.warm()
        memory.recall("hello", 1, scope=self._reach.scope)

    def reach(self, _: Asked) -> Reach:
        return self._reach

    async def search(self, work: Callable[[LatentMemory], T]) -> T:
        return await self._in(self._searching, work)

    async def run(self, work: Callable[[LatentMemory], T]) -> T:
        return await self._in(self._other, work)

    async def write(self, work: Callable[[LatentMemory], T]) -> T:
        return await self._in(self._other, work)

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[LatentMemory], T]) -> T:
        memory = await asyncio.shield(self._memory)
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(pool, work, memory))

    def told(self, error: LatentMemoryError) -> str:
        return str(error)

    def close(self) -> None:
        self._other.shutdown()
        self._searching.shutdown()


class _Connection:
    """Messages, a line of JSON each, from one descriptor and to another.

    Both are used in threads of their own that die with the process: a read that waits, and a write that nobody takes,
    cannot be interrupted.
    """

    def __init__(self, source: int, sink: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._written: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._unanswered: set[types.RequestId] = set()
        # Whether the input has ended, and whether nothing is to be waited for any more.
        self._ended = False
        self._done = asyncio.Event()
        self._reader = threading.Thread(target=self._read, args=(source,), name="stdin", daemon=True)
        self._writer = threading.Thread(target=self._write, args=(sink,), name="stdout", daemon=True)
        self._reader.start()
        self._writer.start()

    def end(self) -> None:
        """Read no more; what was asked is answered."""
        self._lines.put_nowait(None)

    def stop(self) -> None:
        """Read no more, and do not wait for answers."""
        self._done.set()
        self.end()

    def close(self) -> None:
        """Wait until what was sent is written, if it is read at all."""
        self._written.put(None)
        self._writer.join(_WRITE_SECONDS)

    async def receive(self, into: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        """Hand on what is read, until the input ends and what was asked is answered."""
        async with into:
            while (line := await self._lines.get()) is not None:
                if not line.strip():
                    continue
                try:
                    message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValidationError:
                    log.warning("a line of %d bytes is no message of JSON-RPC", len(line))
                    error = types.ErrorData(
                        code=types.PARSE_ERROR, message="a line was read that is no JSON-RPC message"
                    )
                    self._put(types.JSONRPCError(jsonrpc="2.0", id=None, error=error))
                    continue
                if isinstance(message, types.JSONRPCRequest):
                    self._unanswered.add(message.id)
                elif isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
                    # It is not answered any more.
                    self._unanswered.discard((message.params or {}).get("requestId", ""))
                await into.send(SessionMessage(message))
            self._ended = True
            if self._unanswered:
                with anyio.move_on_after(_ANSWER_SECONDS):
                    await self._done.wait()

    async def send(self, out: MemoryObjectReceiveStream[SessionMessage]) -> None:
        """Write what is to be sent, until there is no more."""
        async with out:
            async for each in out:
                message = each.message
                self._put(message)
                if isinstance(message, types.JSONRPCResponse | types.JSONRPCError) and message.id is not None:
                    self._unanswered.discard(message.id)
                    if self._ended and not self._unanswered:
                        self._done.set()

    def _put(self, message: types.JSONRPCMessage) -> None:
        self._written.put(message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")

    def _read(self, source: int) -> None:
        parts: list[bytes] = []
        while chunk := _read_some(source):
            first, *others = chunk.split(b"\n")
            parts.append(first)
            for other in others:
                self._tell(self._lines.put_nowait, b"".join(parts))
                parts = [other]
        self._tell(self._lines.put_nowait, b"".join(parts))
        self._tell(self.end)

    def _write(self, sink: int) -> None:
        try:
            while (line := self._written.get()) is not None:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(sink, rest) :]
        except OSError:
            # The client has gone.
            self._tell(self.stop)

    def _tell(self, told: Callable[..., None], *arguments: object) -> None:
        # The loop may have ended before the input.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(told, *arguments)


def _read_some(source: int) -> bytes:
    try:
        return os.read(source, _CHUNK)
    except OSError:
        return b""


@contextmanager
def _wire() -> Iterator[tuple[int, int]]:
    """Take standard input and output for the protocol alone; whatever prints to it meanwhile goes to standard error."""
    try:
        inputs, outputs, errors = (stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr))
    except OSError:
        raise InputError("standard input and output are no files here; a client starts this command") from None
    sys.stdout.flush()
    source, sink = os.dup(inputs), os.dup(outputs)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        os.dup2(nothing, inputs)
        os.dup2(errors, outputs)
        yield source, sink
    finally:
        os.close(nothing)
        sys.stdout.flush()
        os.dup2(source, inputs)
        os.dup2(sink, outputs)


@contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Call something in the loop when the process is told to end."""
    loop = asyncio.get_running_loop()
    ours = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop)) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
