"""The server that chats are sent on to: any that speaks the OpenAI API. Knows nothing of memories.

What comes back is handed on as it comes: raw bytes, one piece at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote, unquote_to_bytes, urlsplit

import httpx2

from latent_memory import __version__
from latent_memory.context import Tokenizer
from latent_memory.errors import InputError
from latent_memory.keys import PREFIX as KEY_PREFIX
from latent_memory.records import Context
from latent_memory.server.problems import ProblemError

Headers = list[tuple[bytes, bytes]]

CONNECT_SECONDS = 10.0
# Before each further attempt to connect, where none could be made; of the request nothing was sent by then.
_PAUSES = (0.2, 0.6)
_IDLE_CONNECTIONS = 64
_IDLE_SECONDS = 30.0
# A server named without a path has its API there, as all of them do.
_USUAL_PATH = "/v1"
_IN_QUERIES = "%&=+,;:/?@!$'()*[]"


class UpstreamLostError(Exception):
    """An answer ended before its end."""


@dataclass(frozen=True, slots=True)
class Sending:
    """What is sent on.

    Attributes:
        method, path: the path is below the upstream's base URL, as in "/chat/completions".
        headers: as the client sent them; the upstream takes what is meant for it.
        content: the body, with what was recalled in it.
        query: of the URL.
        key: the `Authorization` for it; None for none.
        request_id: by which logs here know it.
        body: what the client sent, for a model that takes what was recalled in another way than as text.
        context: what was recalled.
        scope: whose memory that is.
        way: in which it should get into the model; None for the usual one.
    """

    method: str
    path: str
    headers: Headers = field(default_factory=list)
    content: bytes | None = None
    query: bytes = b""
    key: str | None = None
    request_id: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    context: Context | None = None
    scope: str = ""
    way: str | None = None


class Answering(Protocol):
    """An answer that has begun."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Headers:
        """Headers for the client."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield its bytes as they come; raises UpstreamLostError if it breaks off."""

    async def close(self) -> None:
        """Let it end, if it has not."""


class Upstream(Protocol):
    """What answers chats."""

    @property
    def ways(self) -> Sequence[str]:
        """The ways in which it takes what was recalled, by name; the first is the usual one."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Counts tokens as its model does; None if that is not known."""

    async def ready(self, path: str) -> None:
        """Wait until it can answer there; raises ProblemError if it never will."""

    def room(self, body: Mapping[str, Any], budget: int) -> int:
        """Return how many tokens of memory a request has room for, `budget` at most."""

    async def send(self, sending: Sending) -> Answering:
        """Send a request; return when its answer begins. Raises ProblemError if none does."""

    async def __aenter__(self) -> Self:
        """Begin."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is going on."""


class HttpUpstream:
    """A server on the network.

    Args:
        base_url: such as "https://api.openai.com/v1"; one without a path has its API below /v1.
        seconds: how long it may be silent.

    Raises:
        InputError: if the URL is none.
    """

    ways: Sequence[str] = ("prompt",)
    tokenizer: Tokenizer | None = None

    def __init__(self, base_url: str, seconds: float) -> None:
        try:
            parts = urlsplit(base_url)
            # Also refuses a port that is none.
            host, port = parts.hostname, parts.port
            self._base = httpx2.URL(base_url)
        except (ValueError, httpx2.InvalidURL) as error:
            raise InputError(f"upstream: {base_url!r} is no address ({error})") from None
        if not host:
            raise InputError(f"upstream: {base_url!r} names no server; https://api.openai.com/v1 does")
        self._path = parts.path.rstrip("/") or _USUAL_PATH
        # For messages: without a password, or a key in the query.
        self.name = f"{parts.scheme}://{host}{f':{port}' if port else ''}{self._path}"
        self._seconds = seconds
        timeout = httpx2.Timeout(connect=CONNECT_SECONDS, read=seconds, write=seconds, pool=None)
        self._extensions = {"timeout": timeout.as_dict()}
        self._client: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._client = httpx2.AsyncClient(
            follow_redirects=False,
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS, keepalive_expiry=_IDLE_SECONDS
            ),
            # What the upstream would have one client keep is not sent along with another's requests.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def ready(self, path: str) -> None:
        """Return at once: whether it answers is seen when it is asked."""

    def room(self, body: Mapping[str, Any], budget: int) -> int:  # noqa: ARG002 - part of the seam
        """Return the budget: how much its model reads is not known."""
        return budget

    async def send(self, sending: Sending) -> Answering:
        """Send a request; see `Upstream`."""
        assert self._client is not None
        query = "&".join(
            quote(part, safe=_IN_QUERIES) for part in (self._base.query, _without_key(sending.query)) if part
        )
        request = httpx2.Request(
            sending.method,
            self._base.copy_with(raw_path=f"{self._path}{sending.path}{'?' if query else ''}{query}".encode()),
            headers=sent_on(sending),
            content=sending.content,
            extensions=self._extensions,
        )
        try:
            response = await self._connected(self._client, request)
        except httpx2.ConnectTimeout:
            raise self._problem(504, f"does not take a connection within {CONNECT_SECONDS:g} s") from None
        except httpx2.TimeoutException:
            raise self._problem(504, f"has not answered within {self._seconds:g} s") from None
        except httpx2.ConnectError as error:
            raise self._problem(502, f"cannot be reached ({_why(error)})") from None
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise self._problem(502, f"did not answer ({_why(error)})") from None
        if 300 <= response.status_code < 400 and response.status_code != 304:
            await response.aclose()
            to = response.headers.get("location", "")[:200]
            raise self._problem(502, f"sends elsewhere ({to!r}), which is not followed; name that server instead")
        return _HttpAnswering(response, self._seconds)

    async def _connected(self, client: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
        for pause in _PAUSES:
            try:
                return await client.send(request, stream=True)
            except httpx2.ConnectError:
                # Nothing was sent.
                await asyncio.sleep(pause)
        return await client.send(request, stream=True)

    def _problem(self, status: int, what: str) -> ProblemError:
        return ProblemError(status, f"upstream: {self.name} {what}", code="upstream")


class _HttpAnswering:
    def __init__(self, response: httpx2.Response, seconds: float) -> None:
        self._response = response
        self._seconds = seconds
        self.status = response.status_code
        self.headers = passed_back(response.headers.raw)

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.aiter_raw():
                yield chunk
        except httpx2.TimeoutException:
            raise UpstreamLostError(f"silent for {self._seconds:g} s") from None
        except httpx2.TransportError as error:
            raise UpstreamLostError(_why(error)) from None

    async def close(self) -> None:
        await self._response.aclose()


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


# -- headers --------------------------------------------------------------------------------------------------

# Of one connection, and not of what is said over it.
_HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"http2-settings"),
    )
)
# Of the request to this server: whom it is addressed to, who may send it, and from where it comes.
_OURS = frozenset(
    (
        *(b"host", b"cookie", b"content-length", b"accept-encoding", b"authorization", b"origin", b"referer"),
        *(b"forwarded", b"via", b"x-real-ip", b"x-request-id"),
    )
)
_OUR_PREFIXES = (b"memory-", b"x-forwarded-", b"sec-", b"access-control-", b"proxy-", b"cf-")
# Of an answer: what holds for the upstream's own host, or is told by this server.
_ITS_OWN = frozenset((b"set-cookie", b"date", b"alt-svc", b"strict-transport-security", b"clear-site-data"))


def sent_on(sending: Sending) -> Headers:
    """Return the headers that go to the upstream."""
    told = [
        (name, value)
        for name, value in _end_to_end(sending.headers)
        if name not in _OURS and not name.startswith(_OUR_PREFIXES) and KEY_PREFIX.encode() not in value
    ]
    # The bytes are handed on as they come; the copy that is remembered has to be read.
    told.append((b"accept-encoding", b"identity"))
    if sending.key is not None:
        told.append((b"authorization", sending.key.encode("latin-1")))
    if sending.request_id is not None:
        told.append((b"x-request-id", sending.request_id.encode("latin-1")))
    if not any(name == b"user-agent" for name, _ in told):
        told.append((b"user-agent", f"latent-memory/{__version__}".encode()))
    return told


def _without_key(query: bytes) -> bytes:
    """Return a query without the parameters that hold a key for this server."""
    return b"&".join(part for part in query.split(b"&") if KEY_PREFIX.encode() not in unquote_to_bytes(part))


def passed_back(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers of an upstream's answer that are for the client."""
    return [
        (name, value)
        for name, value in _end_to_end(headers)
        if name not in _ITS_OWN and not name.startswith((b"memory-", b"access-control-"))
    ]


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    lowered = [(name.lower(), value) for name, value in headers]
    named = {token.strip().lower() for name, value in lowered if name == b"connection" for token in value.split(b",")}
    return [(name, value) for name, value in lowered if name not in _HOP_BY_HOP and name not in named]
