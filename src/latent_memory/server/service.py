"""One memory for all doors: the threads that work on it, and the work that goes on when a request is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.keys import KeyInfo, KeyRing
from latent_memory.memory import LatentMemory
from latent_memory.recording import Recorder
from latent_memory.server.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

# Reading conversations waits for the disk more than it computes.
_READING_THREADS = 8
# Writing may wait for another process for a minute; whoever reads does not wait behind it.
_WRITING_THREADS = 4
_KEY_THREADS = 2


class Service:
    """What every door works with. It is started once, and not again after it was stopped.

    Args:
        memory: the memory; whoever opened it closes it, after the service.
        settings: see there.
        keys: who may come in; None for a memory that has no room for keys.

    Attributes:
        recorder: adds exchanges to the memory.
        ready: whether everything that a first request needs is loaded.
    """

    def __init__(self, memory: LatentMemory, settings: Settings, keys: KeyRing | None = None) -> None:
        self.memory = memory
        self.settings = settings
        self.keys = keys
        self.recorder = Recorder.of(memory)
        self.ready = False
        # A search computes: more threads than cores would only make each of them slower.
        cores = os.cpu_count() or 1
        self._searching = ThreadPoolExecutor(cores, "recall")
        # Vectors for others are no reason for a chat to wait.
        self._embedding = ThreadPoolExecutor(max(1, cores // 2), "embedding")
        self._reading = ThreadPoolExecutor(_READING_THREADS, "reading")
        self._writing = ThreadPoolExecutor(_WRITING_THREADS, "writing")
        self._of_keys = ThreadPoolExecutor(_KEY_THREADS, "keys")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._relays: set[asyncio.Future[Any]] = set()
        if not settings.is_local and (keys is None or not keys.required):
            raise InputError(
                f"host: {settings.host} can be reached from other machines, and there are no keys. Create one "
                "(latent-memory keys create --help), or listen on 127.0.0.1"
            )

    @property
    def needs_key(self) -> bool:
        """Whether a request needs a key: where others can reach the server, and once there ever was one."""
        return not self.settings.is_local or (self.keys is not None and self.keys.required)

    async def search(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what computes (recall, context) in a thread; it does not begin if the caller was cancelled before."""
        return await self._in(self._searching, lambda: work(*args, **kwargs))

    async def embed(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what computes vectors for a client in a thread; as `search`, and beside it."""
        return await self._in(self._embedding, lambda: work(*args, **kwargs))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what reads the memory, or a request, in a thread."""
        return await self._in(self._reading, lambda: work(*args, **kwargs))

    async def write(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what writes to the memory in a thread; it is finished, whatever becomes of the caller."""
        return await asyncio.shield(self._in(self._writing, lambda: work(*args, **kwargs)))

    def _in(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(pool, work)

    async def verify(self, shown: str) -> KeyInfo | None:
        """Return what a key opens; see `KeyRing.verify`. In a thread: where the file is busy, it waits."""
        if self.keys is None:
            return None
        return await self._in(self._of_keys, lambda: self.keys.verify(shown) if self.keys is not None else None)

    def touch(self, key_id: str) -> None:
        """Note in a thread that a key was used."""
        if self.keys is not None:
            self._of_keys.submit(self._touched, key_id)

    def _touched(self, key_id: str) -> None:
        assert self.keys is not None
        try:
            self.keys.touch(key_id)
        except LatentMemoryError as error:
            # When a key was last used is not worth a request.
            log.warning("cannot note the use of a key", extra={"told": {"error": str(error)}})

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start what goes on though the client may leave; it is finished before the server stops."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def behind(self) -> int:
        """How much was begun that goes on though nobody may wait for it."""
        return len(self._tasks)

    @contextlib.contextmanager
    def relaying(self, work: asyncio.Future[Any]) -> Iterator[None]:
        """Know of an answer that is being made, so that it ends before what it is made with."""
        self._relays.add(work)
        try:
            yield
        finally:
            self._relays.discard(work)

    async def end_relays(self) -> None:
        """End the answers that are still being made; what has come of them is kept."""
        while relays := list(self._relays):
            for each in relays:
                each.cancel()
            await asyncio.wait(relays)
            self._relays.difference_update(relays)

    async def start(self) -> None:
        """Load what the first request would wait for."""
        began = time.perf_counter()
        await self.search(self._warm)
        self.ready = True
        log.info("ready", extra={"told": {"seconds": round(time.perf_counter() - began, 2)}})

    def _warm(self) -> None:
        self.memory.embedder.embed(["hello"], query=True)
        # A question to every scope would read every index; the one that unnamed requests ask is enough.
        self.memory.recall("hello", 1, scope=self.settings.scope)

    async def stop(self) -> None:
        """Finish what was begun; nothing is left to do if it is called again."""
        await self.end_relays()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in (self._searching, self._embedding, self._reading, self._writing, self._of_keys):
            await asyncio.to_thread(pool.shutdown)
