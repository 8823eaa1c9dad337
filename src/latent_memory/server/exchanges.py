"""What a chat has of the memory: it is asked before the chat goes on, and given the exchange when the answer is there.

Neither is in the way of the chat: where the memory fails, that is told, and the chat goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latent_memory import enrichment
from latent_memory.enrichment import Api
from latent_memory.errors import LatentMemoryError
from latent_memory.records import Context, Turn
from latent_memory.server.copying import Copy
from latent_memory.server.observing import Observer
from latent_memory.server.problems import ProblemError
from latent_memory.server.service import Service
from latent_memory.server.upstream import Upstream
from latent_memory.server.wishes import Wishes

log = logging.getLogger(__name__)

# A memory of fewer tokens has no room for one turn beside its fence.
_LEAST_BUDGET = 48
# What was said longer ago than this is not compared with what is recalled: 400,000 characters would cost 20 ms.
_LIVE_CHARACTERS = 200_000
# A chat waits so long for the memory, and then goes on without it.
_RECALL_SECONDS = 15.0
# A client that has left before its exchange was on disk may be back at once; it waits so long to find it there.
_SETTLING_SECONDS = 1.0
_NOTHING = Context("", (), 0, 0)


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the memory gave for a chat."""

    context: Context = _NOTHING
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is to be added to the memory when the answer is there.

    Attributes:
        conversation_id: None if it is to be found by what was said.
        live: what the request says.
        continues: it says nothing of what went before, since the upstream has it.
    """

    api: Api
    scope: str
    conversation_id: str | None
    live: Sequence[Turn]
    continues: bool = False


class Exchanges:
    """Recalls for chats, and keeps what is said in them.

    Args:
        service: has the memory.
        observer: is told how long it took, and what became of it.
    """

    def __init__(self, service: Service, observer: Observer) -> None:
        self._service = service
        self._observer = observer
        # By scope: exchanges that are being added.
        self._settling: dict[str, set[asyncio.Task[None]]] = {}

    async def recall(
        self, upstream: Upstream, body: Mapping[str, Any], live: Sequence[Turn], wishes: Wishes
    ) -> Recalled:
        """Ask the memory; a chat goes on without it if that fails."""
        assert wishes.scope is not None
        if settling := self._settling.get(wishes.scope):
            await asyncio.wait(settling, timeout=_SETTLING_SECONDS)
        began = time.perf_counter()
        context, error = _NOTHING, None
        try:
            async with asyncio.timeout(_RECALL_SECONDS):
                context = await self._service.search(self._context, upstream, body, live, wishes)
        except TimeoutError:
            error = f"not within {_RECALL_SECONDS:g} s"
            log.warning("cannot recall", extra={"told": {"error": error}})
        except LatentMemoryError as failure:
            error = ProblemError.of(failure).detail
            log.warning("cannot recall", extra={"told": {"error": f"{type(failure).__name__}: {failure}"}})
        except ProblemError:
            # The request itself cannot be answered.
            raise
        except Exception as failure:
            error = "a bug; the server's log tells more"
            log.error("a bug in recall, please report it", exc_info=failure)
        seconds = time.perf_counter() - began
        self._observer.recall_seconds.observe(seconds)
        return Recalled(context, seconds, error)

    def _context(self, upstream: Upstream, body: Mapping[str, Any], live: Sequence[Turn], wishes: Wishes) -> Context:
        assert wishes.scope is not None
        budget = upstream.room(body, wishes.budget)
        if budget < _LEAST_BUDGET:
            return _NOTHING
        memory = self._service.memory
        before: Sequence[Turn] = ()
        if wishes.continues and wishes.conversation_id is not None:
            # The upstream has it already.
            stored = memory.get(wishes.conversation_id, scope=wishes.scope)
            before = stored.turns if stored else ()
        return memory.context(_latest([*before, *live]), budget, scope=wishes.scope, tokenizer=upstream.tokenizer)

    def keep(self, exchange: Exchange, copy: Copy) -> asyncio.Task[None] | None:
        """Begin to add an exchange to the memory; return None where there is nothing to add."""
        copy.end()
        if copy.unreadable is not None:
            self._observer.recorded.labels("unreadable").inc()
            log.warning("cannot read an answer", extra={"told": {"error": copy.unreadable}})
            return None
        if not copy.text.strip() and copy.response_id is None:
            return None
        task = self._service.spawn(self._kept(exchange, copy), "keeping")
        self._settle(exchange.scope, task)
        return task

    async def _kept(self, exchange: Exchange, copy: Copy) -> None:
        recorder = self._service.recorder
        answer = list(enrichment.turns("assistant", copy.text))
        try:
            name = await self._service.write(
                recorder.keep,
                exchange.live,
                answer,
                scope=exchange.scope,
                conversation_id=exchange.conversation_id,
                continues=exchange.continues,
                answer_id=copy.response_id,
            )
        except LatentMemoryError as failure:
            # The answer is not taken away for it.
            self._observer.recorded.labels("failed").inc()
            log.error("cannot add an exchange", extra={"told": {"error": f"{type(failure).__name__}: {failure}"}})
            return
        except Exception as failure:
            self._observer.recorded.labels("failed").inc()
            log.error("a bug in adding an exchange, please report it", exc_info=failure)
            return
        if name is not None:
            self._observer.recorded.labels("kept").inc()

    def _settle(self, scope: str, task: asyncio.Task[None]) -> None:
        """Let the next recall wait for an exchange, whose client may not; not longer than that takes where it can."""
        tasks = self._settling.setdefault(scope, set())
        tasks.add(task)

        def settled(_: object = None) -> None:
            giving_up.cancel()
            tasks.discard(task)
            if not tasks and self._settling.get(scope) is tasks:
                del self._settling[scope]

        giving_up = asyncio.get_running_loop().call_later(_SETTLING_SECONDS, settled)
        task.add_done_callback(settled)


def _latest(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Return the end of a conversation: what is compared with what is recalled."""
    left = _LIVE_CHARACTERS
    for at in range(len(turns) - 1, -1, -1):
        left -= len(turns[at].text)
        if left < 0 and at < len(turns) - 1:
            asked = next((i for i in range(at, -1, -1) if turns[i].role == "user"), None)
            has_asked = any(turn.role == "user" for turn in turns[at + 1 :])
            return turns[at + 1 :] if has_asked or asked is None else turns[asked:]
    return turns
