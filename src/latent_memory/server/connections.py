"""Connections before there is a request: how many, how long, and how much may come of one without any.

uvicorn hands a request on when its headers are there, and waits for them without an end. What is in here comes before
that, so it counts for those who have no key as well. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from uvicorn.protocols.http.h11_impl import H11Protocol

from latent_memory.server.settings import Settings

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    HttpToolsProtocol = None  # type: ignore[assignment, misc]

# Of a request's first line and its headers, which no client needs; h11 has the same limit.
MOST_HEAD_BYTES = 1 << 16
# A request at work has one connection; clients keep some more open.
_LEAST_CONNECTIONS = 512
_CONNECTIONS_FOR_EACH = 4
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 24\r\nConnection: close\r\n\r\nheaders: larger than 64K"
)

if TYPE_CHECKING:
    _Protocol = HttpToolsProtocol
else:
    _Protocol = asyncio.Protocol


def most_connections(settings: Settings) -> int:
    """Return how many connections may be open at a time."""
    most = max(_LEAST_CONNECTIONS, _CONNECTIONS_FOR_EACH * settings.most_at_once)
    try:
        import resource
    except ImportError:
        # Windows has no such limit.
        return most
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The memory needs some itself; beyond the limit of the process, nobody's connection would be taken.
    return most if files in (resource.RLIM_INFINITY, math.inf) else max(1, min(most, files * 3 // 4))


def protocol(settings: Settings) -> type[asyncio.Protocol]:
    """Return what reads requests from connections, within the limits of the settings."""
    bases = (_Timed, H11Protocol) if HttpToolsProtocol is None else (_Measured, _Timed, HttpToolsProtocol)
    limits = {"seconds": settings.head_seconds, "most_open": most_connections(settings)}
    made: type[asyncio.Protocol] = type("Protocol", bases, limits)
    return made


class _Timed(_Protocol):
    """Closes connections on which no request comes, and does not take more than it may."""

    seconds: float
    most_open: int
    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_open:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        # Also what comes of a body after its request was refused: that need not end.
        self._watch()
        super().data_received(data)
        if not self._is_idle():
            self._unwatch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _is_idle(self) -> bool:
        """Whether there is no request that is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if self._closing is None and self._is_idle():
            self._closing = self.loop.call_later(self.seconds, self._overdue)

    def _unwatch(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _overdue(self) -> None:
        self._closing = None
        # What comes of the next request while one is answered is watched when more of it comes.
        if self._is_idle():
            self._close()

    def _close(self) -> None:
        """Close the connection, also if the client does not read the rest of its answer."""
        if not self.transport.is_closing():
            self.transport.close()
            self._closing = self.loop.call_later(self.seconds, self.transport.abort)


class _HeadTooLargeError(Exception):
    """Headers are larger than they may be."""


class _Measured(_Protocol):
    """Counts what comes between two things that can be handed on: headers, pieces of bodies, the lines between them."""

    _unseen = 0
    _is_too_large = False

    def data_received(self, data: bytes) -> None:
        self._unseen += len(data)
        super().data_received(data)
        if self._unseen > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        self._unseen = 0
        # With the four bytes that stand around a name and a value.
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MOST_HEAD_BYTES:
            self._is_too_large = True
            raise _HeadTooLargeError
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unseen = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unseen = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._is_too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        # Where an answer is being sent already, another one cannot be.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_TOO_LARGE)
        self.transport.close()
