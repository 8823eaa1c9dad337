"""REST under /v1/memory: the verbs of `LatentMemory`, described in /openapi.json.

Bodies are checked here and not by the framework: once, within limits, and with our own words. Answers are written as
they are and not checked again, which would cost more than a small recall; tests check them against their description.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace
from datetime import datetime
from typing import Annotated, Any, NoReturn

import orjson
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.convertors import Convertor, register_url_convertor

from latent_memory.errors import InputError, StoreError
from latent_memory.output import SIGNALS, check_json, context_json, conversation_json, hit_json, iso
from latent_memory.records import Conversation, ConversationInfo, Hit
from latent_memory.server import schemas
from latent_memory.server.access import SCOPE_HEADER, caller_of, header
from latent_memory.server.adding import Incoming, StreamedAdd
from latent_memory.server.bodies import JSON, NDJSON, json_of, media_type, model_of, wrong_type
from latent_memory.server.descriptions import described, operation
from latent_memory.server.observing import Observer
from latent_memory.server.problems import ProblemError
from latent_memory.server.relaying import while_there
from latent_memory.server.service import Service
from latent_memory.server.writing import written

PREFIX = "/v1/memory"
# How much of an export is read at a time.
_SLICE_BYTES = 1 << 17


def install(app: FastAPI, service: Service, observer: Observer) -> AbstractAsyncContextManager[object]:
    """Add the routes; see app.Install."""
    del observer
    app.include_router(_Rest(service).router)
    described(app)
    return contextlib.nullcontext()


class _Anything(Convertor[str]):
    """An id in a path, which may hold slashes and line ends."""

    regex = r"(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", _Anything())
_ONE = "/conversations/{conversation_id:anything}"


class _Rest:
    """The routes, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._memory = service.memory
        self._one_check = asyncio.Lock()
        self.router = APIRouter(prefix=PREFIX, tags=["memory"], default_response_class=Response)
        for method, path, endpoint in (
            ("POST", "/add", self.add),
            ("POST", "/recall", self.recall),
            ("POST", "/context", self.context),
            ("POST", "/forget", self.forget),
            ("GET", "/conversations", self.conversations),
            ("GET", _ONE, self.get_conversation),
            ("PUT", _ONE, self.put_conversation),
            ("DELETE", _ONE, self.delete_conversation),
            ("GET", "/export", self.export),
            ("GET", "/scopes", self.scopes),
            ("GET", "/stats", self.stats),
            ("GET", "/check", self.check),
        ):
            self.router.add_api_route(path, endpoint, methods=[method], **operation(endpoint.__name__))

    # -- the verbs ----------------------------------------------------------------------------------------

    async def add(self, request: Request) -> Response:
        caller_of(request).check_may_write()
        kind, skip_bad = media_type(request.headers), _flag(request, "skip_bad")
        if kind == NDJSON:
            return StreamedAdd(request, self._service, self._scope(request), skip_bad=skip_bad)
        if kind != JSON:
            raise wrong_type(JSON, NDJSON)
        incoming = Incoming.of(await json_of(request, self._service))
        scope = self._scope(request, incoming.scope)
        return _json(await self._service.write(incoming.add, self._memory, scope))

    async def recall(self, request: Request) -> Response:
        asked = model_of(schemas.RecallRequest, await json_of(request, self._service))
        scope = self._scope(request, asked.scope)

        def found() -> bytes:
            hits = self._memory.recall(asked.query, asked.k, scope=scope, **asked.filters())
            return orjson.dumps(self._explained(hits) if asked.explain else {"hits": [hit_json(hit) for hit in hits]})

        return Response(await while_there(request.receive, self._service.search(found)), media_type=JSON)

    def _explained(self, hits: list[Hit]) -> dict[str, Any]:
        names = dict.fromkeys(name for hit in hits for name in hit.signals)
        weights = self._memory.weights._asdict()
        signals = {name: {"told": SIGNALS.get(name, name), "weight": weights.get(name)} for name in names}
        return {"hits": [hit_json(hit) for hit in hits], "signals": signals}

    async def context(self, request: Request) -> Response:
        asked = model_of(schemas.ContextRequest, await json_of(request, self._service))
        scope = self._scope(request, asked.scope)

        def found() -> bytes:
            block = self._memory.context(asked.query, asked.budget, scope=scope, **asked.filters())
            return orjson.dumps(context_json(block))

        return Response(await while_there(request.receive, self._service.search(found)), media_type=JSON)

    async def forget(self, request: Request) -> Response:
        caller_of(request).check_may_write()
        asked = model_of(schemas.ForgetRequest, await json_of(request, self._service))
        scope = self._scope(request, asked.scope)
        if (asked.conversation_ids is None) != asked.everything:
            raise ProblemError(422, 'body: give either conversation_ids, or "everything": true', code="input")
        return _json(await self._service.write(self._forgotten, scope, asked.conversation_ids))

    def _forgotten(self, scope: str, ids: list[str] | None) -> dict[str, Any]:
        memory = self._memory
        missing = memory.missing(ids or (), scope=scope)
        gone = memory.forget(ids, scope=scope, everything=ids is None)
        told = {"forgotten": gone, "not_found": missing}
        # What was forgotten is forgotten, whether or not this can be told.
        with contextlib.suppress(StoreError):
            # By name: where they lie, and what others have trained, is not for everybody.
            if stale := [info.path.name for info in memory.stale_adapters() if info.scope == scope]:
                told["retrain"] = stale
        return told

    # -- conversations ------------------------------------------------------------------------------------

    async def conversations(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=schemas.MOST_PAGE, description="How many at most.")] = 50,
        cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    ) -> Response:
        scope = self._scope(request)
        after = None if cursor is None else _place(cursor)
        page = await self._service.run(self._memory.page, scope=scope, limit=limit, after=after)
        listed = [{**asdict(info), "timestamp": info.timestamp.isoformat()} for info in page]
        return _json({"conversations": listed, "next": _cursor(page[-1]) if len(page) == limit else None})

    async def get_conversation(self, request: Request, conversation_id: str) -> Response:
        scope = self._scope(request)
        found = await self._service.run(self._memory.get, conversation_id, scope=scope)
        if found is None:
            raise _missing(conversation_id, scope)
        body = _body(found)
        etag = _etag(body)
        if _among(etag, request.headers.get("if-none-match"), weak=True):
            return Response(status_code=304, headers={"ETag": etag})
        return Response(body, media_type=JSON, headers={"ETag": etag})

    async def put_conversation(self, request: Request, conversation_id: str) -> Response:
        caller_of(request).check_may_write()
        incoming = Incoming.one(await json_of(request, self._service))
        scope = self._scope(request, incoming.scope)
        if not incoming.conversations:
            raise ProblemError(422, "messages: none says anything; a conversation needs one that does", code="input")
        (given,) = incoming.conversations
        if given.conversation_id not in (None, conversation_id):
            wrong = f"conversation_id: {given.conversation_id!r} is not the one in the path; leave it out"
            raise ProblemError(422, wrong, code="input")
        given = replace(given, conversation_id=conversation_id)
        condition = _Condition(request)

        def put() -> tuple[dict[str, Any], str | None]:
            def follow(stored: Conversation | None) -> Conversation:
                condition.check(stored)
                if stored is not None and stored.turns and not given.turns:
                    raise InputError("messages: empty, and the conversation has some; delete it first")
                return given

            report = self._memory.extend(conversation_id, follow, scope, whole=bool(given.turns))
            now = self._memory.get(conversation_id, scope=scope)
            # What somebody else has made of it meanwhile, the client has not seen.
            ours = now is not None and now.turns == given.turns and _is_as_given(now, given)
            told = asdict(report) | {"conversation_ids": [conversation_id], "skipped": dict(incoming.skipped)}
            return told, _etag(_body(now)) if ours and now is not None else None

        told, etag = await self._service.write(put)
        return _json(told, 201 if told["added"] else 200, {"ETag": etag} if etag else {})

    async def delete_conversation(self, request: Request, conversation_id: str) -> Response:
        caller_of(request).check_may_write()
        scope = self._scope(request)
        condition = _Condition(request)

        def delete() -> int:
            def check() -> None:
                if condition:
                    condition.check(self._memory.get(conversation_id, scope=scope))

            return self._memory.forget(conversation_id, scope=scope, check=check)

        if not await self._service.write(delete):
            raise _missing(conversation_id, scope)
        return Response(status_code=204)

    async def export(self, request: Request) -> Response:
        conversations = self._memory.whole(scope=self._scope(request))

        def more() -> bytes:
            lines, size = [], 0
            for conversation in conversations:
                lines.append(_body(conversation) + b"\n")
                size += len(lines[-1])
                if size >= _SLICE_BYTES:
                    break
            return b"".join(lines)

        # The first of it before the answer begins: what goes wrong then can still be told.
        first = await self._service.run(more)

        async def whole() -> AsyncIterator[bytes]:
            part = first
            while part:
                yield part
                part = await self._service.run(more)

        return StreamingResponse(whole(), media_type=NDJSON)

    # -- what one wants to know ---------------------------------------------------------------------------

    async def scopes(self, request: Request) -> Response:
        caller = caller_of(request)
        found = await self._service.run(self._memory.scopes)
        return _json({name: count for name, count in found.items() if caller.opens(name)})

    async def stats(self, request: Request) -> Response:
        scope = self._scope(request)
        found = await self._service.run(self._memory.stats, scope=scope)
        told = {name: getattr(found, name) for name in ("conversations", "turns", "passages", "embedder", "dimension")}
        return _json({"scope": scope, **told, "first": iso(found.first), "last": iso(found.last)})

    async def check(self, request: Request) -> Response:
        scope = self._scope(request)
        # One at a time: it reads everything.
        async with self._one_check:
            report = await self._service.run(self._memory.check, scope=scope)
        return _json(check_json(report))

    def _scope(self, request: Request, named: str | None = None) -> str:
        """Return the scope that a request is for: the body's, else the query's, else the header's."""
        if named is None:
            named = request.query_params.get("scope")
        if named is None:
            named = header(request.headers, SCOPE_HEADER)
        return caller_of(request).scope_of(named)


# -- answers ------------------------------------------------------------------------------------------------


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, JSON)


def _body(conversation: Conversation) -> bytes:
    told = conversation_json(conversation, range(len(conversation.turns)))
    # Not orjson: metadata may hold whole numbers of any size.
    return written(told)


def _flag(request: Request, name: str) -> bool:
    told = request.query_params.get(name, "false").lower()
    if told not in ("true", "false"):
        raise ProblemError(422, f"{name}: {told[:20]!r} is neither true nor false", code="input")
    return told == "true"


def _missing(conversation_id: str, scope: str) -> ProblemError:
    return ProblemError(404, f"there is no conversation {conversation_id[:200]!r} in scope {scope!r}", code="missing")


# -- pages --------------------------------------------------------------------------------------------------


def _cursor(last: ConversationInfo) -> str:
    """Return where a page has ended: a time and an id, which stay what they are whatever is added or forgotten."""
    return base64.urlsafe_b64encode(orjson.dumps([last.timestamp.isoformat(), last.conversation_id])).decode()


def _place(cursor: str) -> tuple[datetime, str]:
    try:
        timestamp, conversation_id = orjson.loads(base64.b64decode(cursor, b"-_", validate=True))
        if not isinstance(conversation_id, str):
            raise ValueError("no id")
        return datetime.fromisoformat(timestamp), conversation_id
    except (binascii.Error, ValueError, TypeError):
        raise ProblemError(
            422, "cursor: not one of this server's; begin without, and take next of each answer", code="input"
        ) from None


# -- conditions ---------------------------------------------------------------------------------------------


def _etag(body: bytes) -> str:
    return f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'


_TAG = re.compile(r'(W/)?("[^"]*")')


def _among(etag: str, told: str | None, *, weak: bool = False) -> bool:
    """Tell whether a header names an entity tag; * names any. A weak one counts where that is enough."""
    if told is None:
        return False
    return told.strip() == "*" or any(tag == etag and (weak or not is_weak) for is_weak, tag in _TAG.findall(told))


class _Condition:
    """What a conversation must be, so that a request is carried out: If-Match and If-None-Match."""

    def __init__(self, request: Request) -> None:
        self._match = request.headers.get("if-match")
        self._none_match = request.headers.get("if-none-match")

    def __bool__(self) -> bool:
        return self._match is not None or self._none_match is not None

    def check(self, stored: Conversation | None) -> None:
        """Raise ProblemError if it is not."""
        if not self:
            return
        etag = None if stored is None else _etag(_body(stored))
        if self._match is not None and (etag is None or not _among(etag, self._match)):
            self._fail("is not what If-Match says" if etag else "is not there, and If-Match says that it is")
        if etag is not None and _among(etag, self._none_match, weak=True):
            self._fail("is there, and If-None-Match says that it is not")

    def _fail(self, what: str) -> NoReturn:
        raise ProblemError(412, f"the conversation {what}; read it again, and decide anew", code="changed")


def _is_as_given(now: Conversation, given: Conversation) -> bool:
    """Tell whether what was given of a conversation is what is stored."""
    return all(
        getattr(given, name) in (None, getattr(now, name)) or name in given.generated
        for name in ("title", "timestamp", "type", "summary")
    ) and (not given.metadata or dict(now.metadata) == dict(given.metadata))
