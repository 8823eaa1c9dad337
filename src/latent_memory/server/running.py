"""Listening: sockets, signals, and an end that finishes what was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from latent_memory.errors import InputError
from latent_memory.server.connections import MOST_HEAD_BYTES, protocol
from latent_memory.server.settings import Settings


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens where the settings say.

    Raises:
        InputError: if it cannot.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot listen on {settings.host}:{settings.port} ({getattr(error, 'strerror', None) or error}); "
            "name another with --host and --port"
        ) from None


def address(settings: Settings, listening: socket.socket) -> str:
    """Return the base URL of a server."""
    host, port = listening.getsockname()[:2]
    scheme = "https" if settings.certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: ASGIApp, settings: Settings, listening: socket.socket, started: Callable[[], None]) -> None:
    """Answer requests until the process is told to end (Ctrl-C, SIGTERM).

    Then no new ones are taken; those that were are given `shutdown_seconds`, and what was accepted is written. A second
    Ctrl-C ends them at once; what was accepted is written all the same.

    Args:
        app: the application.
        settings: see there.
        listening: from `listen`; it is closed.
        started: called when the server is up.

    Raises:
        InputError: if the certificate cannot be used.
    """
    server = server_of(app, settings, started)
    with _ending_quietly():
        server.run(sockets=[listening])


def server_of(app: ASGIApp, settings: Settings, started: Callable[[], None]) -> uvicorn.Server:
    """Return what answers requests, for `serve`; see there."""
    try:
        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=int(settings.shutdown_seconds),
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.private_key,
            # What a client says of itself is not taken for true; put the server behind a proxy for that.
            proxy_headers=False,
            ws="none",
            lifespan="on",
            http=protocol(settings),
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        )
        config.load()
    except OSError as error:
        raise InputError(
            f"{settings.certificate}, {settings.private_key}: cannot be used for TLS ({error.strerror or error}); "
            "give a certificate and its private key, as PEM"
        ) from None
    return _Server(config, started)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._when_started = started

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with _telling_no_ends():
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._when_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            # Who is in a hurry does not want answers to be finished, but what was accepted to be written.
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()


class _NoEnds(logging.Filter):
    """Leaves out that requests were cancelled: of those that were when the server stops, one line tells."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or not issubclass(kind, asyncio.CancelledError)


@contextlib.contextmanager
def _telling_no_ends() -> Iterator[None]:
    logger, quiet = logging.getLogger("uvicorn.error"), _NoEnds()
    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)


@contextlib.contextmanager
def _ending_quietly() -> Iterator[None]:
    """Take the signals that uvicorn raises once more after it has ended because of them."""
    ours = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
