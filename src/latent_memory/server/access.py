"""Who may come in: hosts, origins, keys, rates, and how large and how many requests may be. Before any door.

Plain ASGI: it costs a few microseconds, and streams pass through it as they come.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.keys import PREFIX as KEY_PREFIX
from latent_memory.keys import KeyInfo
from latent_memory.query import check_scope
from latent_memory.server import problems
from latent_memory.server.bodies import NDJSON, media_type
from latent_memory.server.observing import Observer
from latent_memory.server.problems import ProblemError
from latent_memory.server.service import Service

log = logging.getLogger(__name__)

KEY_HEADER = "Memory-Key"
SCOPE_HEADER = "Memory-Scope"
# Anybody may ask whether the server is up, and what it can do.
_OPEN = ("/healthz", "/readyz", "/openapi.json")
# Those who watch the server are answered also while it is busy.
_UNCOUNTED = (*_OPEN, "/metrics")
# Bodies that are read line by line have no size as a whole, and may come slowly.
_STREAMED_PATH = "/v1/memory/add"
# Of those, of each caller, for each of the requests that are answered at a time.
_STREAMS = 1 / 16
# Those who are refused, all of them together: so many a second are told why, and logged.
_REFUSED_RATE = 20.0
# What a browser that talks to this machine calls it.
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and what that opens.

    Attributes:
        key: the key that was shown; None where none is needed.
        scope: of what names none.
    """

    key: KeyInfo | None
    scope: str

    @property
    def name(self) -> str:
        """What logs and limits know it by."""
        return self.key.key_id if self.key else "local"

    def opens(self, scope: str) -> bool:
        """Tell whether a scope is open to it."""
        return self.key is None or self.key.opens(scope)

    def scope_of(self, named: str | None) -> str:
        """Return the scope that a request is for.

        Raises:
            ProblemError: if it is none, or not open to the caller.
        """
        scope = self.scope if named is None else named
        try:
            check_scope(scope)
        except InputError as error:
            raise ProblemError.of(error) from None
        if not self.opens(scope):
            hint = "name one that it opens" if named is None else "name another, or use another key"
            raise ProblemError(403, f"scope: {scope!r} is not open to this key; {hint}", code="scope")
        return scope

    def check_may_write(self) -> None:
        """Raise ProblemError if it may only read."""
        if self.key is not None and self.key.read_only:
            raise ProblemError(403, "this key may only read; use another to add or forget", code="read_only")

    @property
    def may_write(self) -> bool:
        """Whether it may add and forget."""
        return self.key is None or not self.key.read_only


def caller_of(connection: HTTPConnection) -> Caller:
    """Return who sent a request; every door asks this, and nothing else."""
    caller: Caller = connection.scope["state"]["caller"]
    return caller


def header(headers: Headers, name: str) -> str | None:
    """Return a header's value; what is not ASCII is sent percent-encoded."""
    value = headers.get(name)
    return None if value is None else unquote(value, errors="surrogateescape")


def own_key(headers: Headers) -> str | None:
    """Return the key for this server that a request shows.

    It is in a header of its own where `Authorization` holds the key for the upstream server.
    """
    given = headers.get(KEY_HEADER)
    return given.strip() if given is not None else _bearer(headers)


def upstream_key(headers: Headers) -> str | None:
    """Return the `Authorization` that a request brings for the upstream server, if no key for this one is in it."""
    value = headers.get("authorization")
    return None if value is None or KEY_PREFIX in value or KEY_PREFIX in _basic(value) else value


def _bearer(headers: Headers) -> str | None:
    kind, _, value = headers.get("authorization", "").replace("\t", " ").strip().partition(" ")
    value = value.strip()
    return value if kind.lower() == "bearer" and value.startswith(KEY_PREFIX) else None


def _basic(value: str) -> str:
    """Return the name and the password in an `Authorization`, which clients make of https://name:password@host."""
    kind, _, encoded = value.replace("\t", " ").strip().partition(" ")
    try:
        return base64.b64decode(encoded.strip()).decode("latin-1") if kind.lower() == "basic" else ""
    except (binascii.Error, ValueError):
        return ""


class Access:
    """Lets in who may come in; everything else is refused here.

    Args:
        app: what is behind it.
        service: whose keys and settings count.
        observer: is told of each request.
    """

    def __init__(self, app: ASGIApp, service: Service, observer: Observer) -> None:
        self._app = app
        self._service = service
        self._observer = observer
        self._settings = service.settings
        self._hosts = {host.lower() for host in (*service.settings.hosts, *_own_names(service.settings.host))}
        self._origins = {origin.lower().rstrip("/") for origin in service.settings.origins}
        # By key: there are as many as keys were used.
        self._buckets: dict[str, _Bucket] = {}
        self._refused = _Bucket(2 * _REFUSED_RATE, time.monotonic())
        # By caller, and what counts them: requests that are being answered, and streams among them.
        self._open_requests: Counter[str] = Counter()
        self._open_streams: Counter[str] = Counter()
        most = service.settings.most_at_once
        self._most_of_one = max(1, most // 2)
        self._most_streams = max(1, int(most * _STREAMS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                # There is no door for it.
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        path: str = scope["path"]
        scope.setdefault("state", {})["request_id"] = request_id
        begun = False
        told = 0

        async def sending(message: Message) -> None:
            nonlocal begun, told
            if message["type"] == "http.response.start":
                begun = True
                watched.begins(message["status"])
                marked = MutableHeaders(scope=message)
                # An upstream's own id is what its makers can look up.
                marked.setdefault("X-Request-ID", request_id)
                marked.setdefault("X-Content-Type-Options", "nosniff")
                self._allow_origin(headers, marked)
            elif message["type"] == "http.response.body":
                told += len(message.get("body", b""))
            await send(message)

        with self._observer.watching(scope, request_id) as watched:
            try:
                self._check_host(headers)
                if await self._preflight(scope, headers, sending):
                    return
                self._check_origin(headers)
                caller = await self._let_in(path, headers)
                scope["state"]["caller"] = caller
                watched.caller = caller.name
                if path not in _OPEN:
                    self._check_rate(caller)
                streamed = path == _STREAMED_PATH and media_type(headers) == NDJSON
                with self._counted(caller, path, streamed=streamed):
                    await self._app(scope, receive if streamed else self._limited(headers, receive), sending)
            except ProblemError as problem:
                if begun:
                    raise
                told_to = problem
                if "caller" not in scope["state"] and self._refused.take(_REFUSED_RATE, time.monotonic()):
                    # Whoever tries keys, or has a wrong one, must not fill the log.
                    watched.is_quiet = True
                    told_to = ProblemError(
                        429,
                        "too many requests were refused; come back later",
                        code="rate",
                        headers={"Retry-After": "1"},
                    )
                await problems.response(told_to, path, request_id)(scope, receive, sending)
            finally:
                watched.bytes = told

    # -- hosts and origins --------------------------------------------------------------------------------

    def _check_host(self, headers: Headers) -> None:
        """Refuse a request that was meant for another name: a web page may point its own at this machine."""
        host = headers.get("host", "")
        if _without_port(host).lower() not in self._hosts:
            raise ProblemError(
                421,
                f"host: this server does not answer to {host[:100]!r}; start it with --allow-host NAME if it should",
                code="host",
            )

    def _check_origin(self, headers: Headers) -> None:
        """Refuse what a web page of somebody else's sends: browsers send some requests without asking first."""
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers) and origin.lower() not in self._origins:
            raise ProblemError(
                403,
                f"origin: pages of {origin[:100]!r} may not use this server; start it with --allow-origin ORIGIN if "
                "they should",
                code="origin",
            )

    def _is_own(self, origin: str, headers: Headers) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return bool(parts.netloc) and parts.netloc.lower() == headers.get("host", "").lower()

    async def _preflight(self, scope: Scope, headers: Headers, send: Send) -> bool:
        """Answer a browser that asks whether a page may send something; tell whether it was that."""
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            return False
        self._check_origin(headers)
        await send(
            {
                "type": "http.response.start",
                "status": 204,
                "headers": [
                    (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
                    (b"access-control-allow-headers", headers.get("access-control-request-headers", "").encode()),
                    (b"access-control-max-age", b"600"),
                ],
            }
        )
        await send({"type": "http.response.body"})
        return True

    def _allow_origin(self, headers: Headers, marked: MutableHeaders) -> None:
        origin = headers.get("origin")
        if origin is not None and origin.lower() in self._origins:
            marked["Access-Control-Allow-Origin"] = origin
            marked["Access-Control-Expose-Headers"] = "*"
            marked.add_vary_header("Origin")

    # -- keys and limits ----------------------------------------------------------------------------------

    async def _let_in(self, path: str, headers: Headers) -> Caller:
        """Return who asks.

        Raises:
            ProblemError: if a key is needed and none is shown, or one that opens nothing; or if keys cannot be read.
        """
        shown = own_key(headers)
        default = self._settings.scope
        try:
            if shown is None:
                if path in _OPEN or not self._service.needs_key:
                    return Caller(None, default)
                raise _no_key(f"a key is needed: send it as Authorization: Bearer {KEY_PREFIX}…, or as {KEY_HEADER}")
            key = await self._service.verify(shown)
        except LatentMemoryError as error:
            log.error("cannot read the keys", extra={"told": {"error": f"{type(error).__name__}: {error}"}})
            raise ProblemError.of(error) from None
        if key is None:
            raise _no_key("the key is unknown, expired or revoked; use another, or send none where none is needed")
        self._service.touch(key.key_id)
        return Caller(key, key.only_scope or default)

    def _check_rate(self, caller: Caller) -> None:
        rate = self._settings.rate
        if not rate:
            return
        bucket = self._buckets.get(caller.name)
        if bucket is None:
            bucket = self._buckets[caller.name] = _Bucket(_capacity(rate), time.monotonic())
        wait = bucket.take(rate, time.monotonic())
        if wait:
            raise ProblemError(
                429,
                f"more than {rate:g} requests a second; come back in {wait:.2f} s",
                code="rate",
                headers={"Retry-After": str(int(wait) + 1)},
            )

    @contextmanager
    def _counted(self, caller: Caller, path: str, *, streamed: bool) -> Iterator[None]:
        """Count a request as long as it is answered.

        Raises:
            ProblemError: if there are too many; one key does not take the places of all others.
        """
        if path in _UNCOUNTED:
            yield
            return
        most, name = self._settings.most_at_once, caller.name
        if self._open_requests.total() >= most:
            raise _busy(f"{most} requests are being answered")
        if caller.key is not None and self._open_requests[name] >= self._most_of_one:
            raise _busy(f"{self._most_of_one} requests of this key are being answered")
        if streamed and self._open_streams[name] >= self._most_streams:
            raise _busy(f"{self._most_streams} streams of conversations are being read")
        counts = (self._open_requests, self._open_streams) if streamed else (self._open_requests,)
        for count in counts:
            count[name] += 1
        try:
            yield
        finally:
            for count in counts:
                count[name] -= 1
                if not count[name]:
                    del count[name]

    def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """Return what receives a body that is not larger than it may be, and does not stop coming.

        Raises:
            ProblemError: if its size is told, and too large; when it is received, as soon as it is.
        """
        most, seconds = self._settings.most_bytes, self._settings.body_seconds
        too_large = ProblemError(413, f"body: larger than {most:,} bytes; send it in several", code="size")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise too_large
        received = 0
        is_whole = False

        async def receiving() -> Message:
            nonlocal received, is_whole
            if is_whole:
                # What comes now is that the client has left.
                return await receive()
            try:
                async with asyncio.timeout(seconds):
                    message = await receive()
            except TimeoutError:
                told = f"body: nothing came of it for {seconds:g} s; send the request again"
                raise ProblemError(408, told, code="slow", headers={"Connection": "close"}) from None
            is_whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > most:
                raise too_large
            return message

        return receiving


@dataclass(slots=True)
class _Bucket:
    """What a caller may still send at once; it fills again with time."""

    tokens: float
    at: float

    def take(self, rate: float, now: float) -> float:
        """Take one; return 0, or in how many seconds there is one."""
        self.tokens = min(_capacity(rate), self.tokens + (now - self.at) * rate)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / rate
        self.tokens -= 1
        return 0.0


def _capacity(rate: float) -> float:
    # With less than one, no request would ever be answered.
    return max(1.0, 2 * rate)


def _busy(what: str) -> ProblemError:
    return ProblemError(503, f"{what}; come back in a second", code="busy", headers={"Retry-After": "1"})


def _no_key(told: str) -> ProblemError:
    return ProblemError(401, told, code="key", headers={"WWW-Authenticate": "Bearer"})


def _own_names(host: str) -> Iterable[str]:
    yield from _LOOPBACK
    if host not in ("0.0.0.0", "::", ""):
        yield f"[{host}]" if ":" in host else host


def _without_port(host: str) -> str:
    """Return a Host header's name."""
    name, _, port = host.rpartition(":")
    return name if name and port.isdecimal() and not (host.startswith("[") and host.endswith("]")) else host


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    # It is logged, and sent on.
    return given if _REQUEST_ID.fullmatch(given) and KEY_PREFIX not in given else secrets.token_hex(12)
