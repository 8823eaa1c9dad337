"""The door for clients of the OpenAI API: each chat is sent on with what the memory holds for it, and added to it.

What the upstream answers goes to the client as it comes, byte for byte. See docs/proxy.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Send

from latent_memory import enrichment
from latent_memory.enrichment import Api
from latent_memory.keys import PREFIX as KEY_PREFIX
from latent_memory.records import Context, Turn
from latent_memory.server import embedding
from latent_memory.server.access import caller_of, upstream_key
from latent_memory.server.bodies import JSON, body_of, media_type, parsed, sized, wrong_type
from latent_memory.server.copying import Copy
from latent_memory.server.exchanges import Exchange, Exchanges, Recalled
from latent_memory.server.observing import Observer
from latent_memory.server.problems import ProblemError
from latent_memory.server.relaying import Relay, pass_on, while_there
from latent_memory.server.service import Service
from latent_memory.server.upstream import Headers, HttpUpstream, Sending, Upstream, UpstreamLostError
from latent_memory.server.wishes import FIELD, NAME_CHARACTERS, Wishes, wishes_of
from latent_memory.server.writing import written

log = logging.getLogger(__name__)

_LOCAL = "local:"
# The end of an answer waits so long for the exchange to be on disk. Where another process writes for longer, nobody
# waits: it is added when that is over.
_KEEP_SECONDS = 1.0
# Unless so many exchanges wait to be added: what is accepted has to be held somewhere.
_MOST_BEHIND = 256


def install(app: FastAPI, service: Service, observer: Observer) -> AbstractAsyncContextManager[object]:
    """Add the door's routes; return what is open as long as the application runs."""
    upstream = _upstream(service)
    door = _Door(service, observer, upstream)
    routes: tuple[tuple[str, str, Callable[..., Awaitable[Response]]], ...] = (
        ("POST", "/v1/chat/completions", door.chat),
        ("POST", "/v1/responses", door.responses),
        ("POST", "/v1/embeddings", door.embeddings),
        ("GET", "/v1/models", door.models),
        ("GET", "/v1/models/{model:path}", door.model),
    )
    for method, path, answer in routes:
        # They are described by those whose API it is.
        app.add_api_route(path, answer, methods=[method], include_in_schema=False, response_model=None)
    return nullcontext() if upstream is None else upstream


def _upstream(service: Service) -> Upstream | None:
    settings = service.settings
    if settings.upstream is None:
        return None
    if settings.upstream.startswith(_LOCAL):
        from latent_memory.server.local_upstream import LocalUpstream

        return LocalUpstream(settings.upstream.removeprefix(_LOCAL), service.memory)
    return HttpUpstream(settings.upstream, settings.upstream_seconds)


class _Door:
    def __init__(self, service: Service, observer: Observer, upstream: Upstream | None) -> None:
        self._service = service
        self._observer = observer
        self._settings = service.settings
        self._given = upstream
        self._exchanges = Exchanges(service, observer)

    # -- chats ------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """Answer a chat completion."""
        return await self._remembered(request, "chat", "/chat/completions")

    async def responses(self, request: Request) -> Response:
        """Answer what the responses API is asked."""
        return await self._remembered(request, "responses", "/responses")

    async def _remembered(self, request: Request, api: Api, path: str) -> Response:
        upstream = self._upstream()
        content, body = await self._body(request)
        caller = caller_of(request)
        wishes = wishes_of(request.headers, body, caller, self._settings.budget)
        if wishes.way is not None and wishes.way not in upstream.ways:
            raise ProblemError(
                400, f"{wishes.way}: this upstream takes memory as {' or '.join(upstream.ways)} alone", code="input"
            )
        changed = FIELD in body
        body.pop(FIELD, None)
        await upstream.ready(path)
        size = len(content)
        live: list[Turn] = []
        if wishes.recalls or wishes.records:
            live = await sized(self._service, size, enrichment.said, api, body)
        if api == "responses":
            wishes, live = self._continuing(wishes, body, live)
        recalled = Recalled()
        if wishes.recalls and enrichment.asks(api, body):
            recall = self._exchanges.recall(upstream, body, live, wishes)
            recalled = await while_there(request.receive, recall)
        if recalled.context:
            content = await sized(self._service, size, _with_memory, api, body, recalled.context.text)
        elif changed:
            content = await sized(self._service, size, written, body)
        request.scope["state"]["told"] = told = _told(recalled)
        if self._settings.log_text:
            told |= {"said": live[-1].text if live else "", "memory": recalled.context.text}
        # What runs in the background is answered later, to another request.
        records = wishes.records and not (api == "responses" and body.get("background") is True)
        exchange = (
            Exchange(api, wishes.scope, wishes.conversation_id, live, wishes.continues)
            if records and wishes.scope
            else None
        )
        sending = self._sending(
            request,
            path,
            content=content,
            body=body,
            context=recalled.context,
            scope=wishes.scope or "",
            way=wishes.way,
        )
        return self._relayed(sending, upstream, _memory_headers(wishes, recalled), exchange)

    def _continuing(self, wishes: Wishes, body: Mapping[str, Any], live: list[Turn]) -> tuple[Wishes, list[Turn]]:
        """Return wishes and what is said, for a request that names what it goes on with."""
        if wishes.scope is None:
            return wishes, live
        named = enrichment.conversation_in(body)
        if named is not None and len(named) > NAME_CHARACTERS:
            raise ProblemError(
                400,
                f"conversation: at most {NAME_CHARACTERS:,} characters were expected, not {len(named):,}",
                code="input",
            )
        named, live, continues = self._service.recorder.continued(wishes.scope, body, live)
        # A name that the request gives us goes before.
        return replace(wishes, conversation_id=wishes.conversation_id or named, continues=continues), live

    # -- what is sent on as it is -----------------------------------------------------------------------------

    async def embeddings(self, request: Request) -> Response:
        """Answer with vectors of the memory's own embedder, or of the upstream's models."""
        content, body = await self._body(request)
        embedder = await self._service.run(lambda: self._service.memory.embedder)
        model = body.get("model")
        if model in (embedding.NAME, embedder.name):
            return await while_there(request.receive, embedding.answer(self._service, embedder, body))
        if self._given is None:
            raise ProblemError(
                404,
                f"model: there is no {str(model)[:100]!r} here; {embedder.name!r} is, also as {embedding.NAME!r}. "
                "Others need an upstream: start the server with --upstream",
                code="model_not_found",
            )
        await self._given.ready("/embeddings")
        return self._relayed(self._sending(request, "/embeddings", content=content, body=body), self._given)

    async def models(self, request: Request) -> Response:
        """List the upstream's models; without one, the embedder."""
        if self._given is None:
            embedder = await self._service.run(lambda: self._service.memory.embedder)
            return embedding.listed(embedder)
        await self._given.ready("/models")
        return self._relayed(self._sending(request, "/models"), self._given)

    async def model(self, request: Request, model: str) -> Response:
        """Tell of one model."""
        if self._given is None:
            embedder = await self._service.run(lambda: self._service.memory.embedder)
            return embedding.described(embedder, model)
        # Whatever is asked for, it is a model: nothing else of the upstream can be reached by it.
        if any(part in ("", ".", "..") for part in model.split("/")) or KEY_PREFIX in model:
            raise ProblemError(404, f"model: there is no {model[:100]!r}", code="model_not_found")
        await self._given.ready("/models")
        return self._relayed(self._sending(request, f"/models/{quote(model, safe='/:@')}"), self._given)

    async def _body(self, request: Request) -> tuple[bytes, dict[str, Any]]:
        """Return a request's body, as it came and as JSON."""
        if media_type(request.headers) != JSON:
            raise wrong_type(JSON)
        content = await body_of(request)
        body = await sized(self._service, len(content), parsed, content, self._settings.most_depth)
        if not isinstance(body, dict):
            raise ProblemError(400, "body: a JSON object was expected", code="input")
        return content, body

    def _upstream(self) -> Upstream:
        if self._given is None:
            raise ProblemError(
                501,
                "there is no upstream, so nobody to chat with: start the server with --upstream URL "
                "(https://api.openai.com/v1), or --upstream local:smollm2 for a model on this machine",
                code="no_upstream",
            )
        return self._given

    # -- to the upstream and back -----------------------------------------------------------------------------

    def _sending(self, request: Request, path: str, **more: Any) -> Sending:
        key = upstream_key(request.headers)
        if key is None and self._settings.upstream_key is not None:
            key = f"Bearer {self._settings.upstream_key}"
        return Sending(
            request.method,
            path,
            headers=request.headers.raw,
            query=request.scope["query_string"],
            key=key,
            request_id=request.scope["state"].get("request_id"),
            **more,
        )

    def _relayed(
        self, sending: Sending, upstream: Upstream, headers: Headers | None = None, exchange: Exchange | None = None
    ) -> Response:
        return Relay(self._service, partial(self._relay, sending, upstream, headers or [], exchange))

    async def _relay(
        self,
        sending: Sending,
        upstream: Upstream,
        headers: Headers,
        exchange: Exchange | None,
        told: dict[str, Any],
        send: Send,
    ) -> None:
        """Hand on an answer as it comes; cancelled when the client leaves."""
        began = time.perf_counter()
        answering = await upstream.send(sending)
        try:
            waited = time.perf_counter() - began
            self._observer.upstream_seconds.observe(waited)
            told |= {"upstream_status": answering.status, "upstream_ms": round(1000 * waited, 1)}
            copy = Copy(exchange.api, answering.headers) if exchange and 200 <= answering.status < 300 else None
            await send(
                {
                    "type": "http.response.start",
                    "status": answering.status,
                    "headers": [*answering.headers, *headers],
                }
            )
            held = b""
            kept: asyncio.Task[None] | None = None
            ended = False
            try:
                held = await pass_on(answering, copy, send)
                ended = True
            except UpstreamLostError as lost:
                told["upstream_lost"] = str(lost)
                log.warning("an answer broke off", extra={"told": {"error": str(lost)}})
            finally:
                # Whatever has come of it was said, also if the client did not wait for the rest.
                if exchange is not None and copy is not None:
                    kept = self._exchanges.keep(exchange, copy)
                    if self._settings.log_text:
                        told["answered"] = copy.text
            if kept is not None:
                # The client's next request is to find it; on its own the task goes on if the client leaves.
                await asyncio.wait({kept}, timeout=_KEEP_SECONDS if self._service.behind <= _MOST_BEHIND else None)
            if ended:
                await send({"type": "http.response.body", "body": held})
            # Otherwise the connection is closed before its end, which is how a client is told.
        finally:
            await answering.close()


def _with_memory(api: Api, body: dict[str, Any], text: str) -> bytes:
    return written(enrichment.with_memory(api, body, text))


# -- what is told of it ------------------------------------------------------------------------------------------

# Of the header that lists what was recalled.
_RECALLED_CHARACTERS = 2_000


def _memory_headers(wishes: Wishes, recalled: Recalled) -> Headers:
    told = {"Memory-Mode": wishes.mode}
    if wishes.scope is not None:
        told["Memory-Scope"] = _quoted(wishes.scope)
    if wishes.conversation_id is not None:
        told["Memory-Conversation"] = _quoted(wishes.conversation_id)
    if recalled.seconds is not None:
        told["Memory-Tokens"] = str(recalled.context.tokens)
        told["Memory-Recalled"] = _places(recalled.context)
        told["Server-Timing"] = f"recall;dur={1000 * recalled.seconds:.1f}"
    if recalled.error is not None:
        told["Memory-Error"] = quote(recalled.error, safe=" ()'\",;:=<>/.", errors="replace")
    return [(name.lower().encode(), value.encode()) for name, value in told.items()]


def _places(context: Context) -> str:
    """Return where the passages of a context stand, as ID:TURN."""
    places: list[str] = []
    left = _RECALLED_CHARACTERS
    for passage in context.passages:
        name = _quoted(passage.conversation_id)
        place = name if passage.turn is None else f"{name}:{passage.turn}"
        left -= len(place) + 1
        if left < 0:
            return ",".join([*places, "..."])
        places.append(place)
    return ",".join(places)


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _told(recalled: Recalled) -> dict[str, Any]:
    if recalled.seconds is None:
        return {}
    return {
        "recalled": len(recalled.context.passages),
        "memory_tokens": recalled.context.tokens,
        "recall_ms": round(1000 * recalled.seconds, 1),
    }
