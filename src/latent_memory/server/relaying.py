"""Answers that are handed on while they are made, to a client that may leave meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from latent_memory.server.copying import Copy
from latent_memory.server.problems import ProblemError
from latent_memory.server.service import Service
from latent_memory.server.upstream import Answering

T = TypeVar("T")


async def pass_on(answering: Answering, copy: Copy | None, send: Send) -> bytes:
    """Send what comes; return what completes an answer of a known length, which waits until the exchange is kept."""
    lengths = [value for name, value in answering.headers if name == b"content-length"]
    waits = copy is not None and not copy.is_stream and lengths and lengths[0].isdigit()
    left = int(lengths[0]) if waits else None
    async for chunk in answering.chunks():
        if left is not None:
            left -= len(chunk)
            if left <= 0:
                assert copy is not None
                copy.feed(chunk)
                return chunk
        try:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            if copy is not None:
                copy.feed(chunk)
    return b""


class Relay(Response):
    """An answer that is being made; when its client leaves, the making is cancelled.

    Args:
        service: waits for it before it stops.
        work: makes and sends it.
    """

    def __init__(self, service: Service, work: Callable[[dict[str, Any], Send], Awaitable[None]]) -> None:
        super().__init__()
        self._service = service
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        told: dict[str, Any] = scope["state"].setdefault("told", {})
        working = asyncio.ensure_future(self._work(told, send))
        leaving = asyncio.ensure_future(_left(receive))
        with self._service.relaying(working):
            try:
                await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                leaving.cancel()
                if not working.done():
                    told["left"] = True
                    working.cancel()
                await asyncio.wait((working, leaving))
        if not working.cancelled():
            working.result()


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do what a client waits for, and only as long as it does; its request was read.

    Raises:
        ProblemError: if it leaves before.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait((working, leaving))
    if working.cancelled():
        # Nobody is there to read this.
        raise ProblemError(499, "the client has left before its request was answered")
    return working.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
