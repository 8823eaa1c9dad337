"""`remember(client, memory)`: an OpenAI or Anthropic client whose chats have a memory.

The client's own `request` is the one place that every call goes through: `create`, `parse`, `stream`, raw and streamed
responses, beta variants, and those of Azure, Bedrock and Vertex. There the request gets what is recalled, and the bytes
of the answer are read along as the application reads them. Knows nothing of servers; see server/ for the proxy.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import gc
import inspect
import json
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from latent_memory.enrichment import Answer, Api, ResponsesAnswer, answer_of, asks, said, turns, with_memory
from latent_memory.errors import InputError
from latent_memory.memory import DEFAULT_SCOPE, LatentMemory
from latent_memory.query import check_scope
from latent_memory.recording import Recorder
from latent_memory.records import Turn, check_text
from latent_memory.sse import Events

C = TypeVar("C")
OnError = Callable[[Exception], object]

_log = logging.getLogger(__name__)

_APIS: dict[str, Api] = {"/chat/completions": "chat", "/responses": "responses", "/v1/messages": "anthropic"}
_MODES = {"on": (True, True), "off": (False, False), "recall": (True, False), "record": (False, True)}
# What this module puts on a copy of a client.
_OURS = ("request", "copy", "with_options")


def remember(
    client: C,
    memory: LatentMemory,
    *,
    scope: str = DEFAULT_SCOPE,
    conversation_id: str | None = None,
    budget: int = 1024,
    recall: bool = True,
    record: bool = True,
    on_error: OnError | None = None,
) -> C:
    """Return a client like the one given, whose chats recall from a memory and are kept in it.

    Chat completions, responses and Anthropic's messages get what matters now before what the user said last, and what
    was said and answered is added to the memory when the answer, or a stream of it, has ended; of a stream that is
    closed early or fails, what came until then. Everything else passes unchanged. One call has settings of its own
    with `extra_body={"memory": {...}}`: "scope", "conversation", "budget" and "mode" ("on", "off", "recall" or
    "record"); it is not sent.

    If the memory fails, the call goes on without it: a warning is logged, and `on_error` is called with the error.

    Args:
        client: an `OpenAI`, `AsyncOpenAI`, `Anthropic`, `AsyncAnthropic`, or one of their kinds (Azure, Bedrock, ...).
            It stays as it is; both share their connections, so that closing one closes the other.
        memory: that is recalled from, and added to.
        scope: whose memory it is.
        conversation_id: of the conversation that calls belong to. By default the conversation that a call goes on with
            is found by its content, or by the response or conversation that the call names.
        budget: the most tokens of what is recalled.
        recall: whether calls get what is recalled.
        record: whether calls are kept.
        on_error: called when the memory fails.

    Raises:
        InputError: if it is no such client, or a setting cannot be used; also by a call with such settings.
    """
    if not any(base.__name__ in ("SyncAPIClient", "AsyncAPIClient") for base in type(client).__mro__):
        raise InputError(
            f"client: an OpenAI or Anthropic client was expected, not {type(client).__name__}; "
            "make one, such as openai.OpenAI(), and hand it in"
        )
    settings = _Settings(scope, conversation_id, budget, recall, record)
    settings.check()
    remembering = _Remembering(memory, settings, on_error)
    if _collected not in gc.callbacks:
        gc.callbacks.append(_collected)
        atexit.register(_keep_dropped)
    return _wrapped(client, remembering)


def _wrapped(client: C, remembering: _Remembering) -> C:
    clone = copy.copy(client)
    state = vars(clone)
    for name in list(state):
        # Resources are bound to the client that made them; these are made anew.
        if isinstance(inspect.getattr_static(type(clone), name, None), functools.cached_property):
            del state[name]
    for name in _OURS:
        # The client may be one of ours; then it gets other settings.
        state.pop(name, None)
    original = cast(Any, clone)
    request = original.request
    asynchronous = inspect.iscoroutinefunction(request)
    state["request"] = remembering.asynchronous(request) if asynchronous else remembering.synchronous(request)
    for name in ("copy", "with_options"):
        made = getattr(original, name)

        def copied(*args: Any, made: Callable[..., Any] = made, **kwargs: Any) -> Any:
            return _wrapped(made(*args, **kwargs), remembering)

        state[name] = functools.wraps(made)(copied)
    return clone


@dataclass(frozen=True, slots=True)
class _Settings:
    scope: str
    conversation: str | None
    budget: int
    recall: bool
    record: bool

    def check(self) -> None:
        check_scope(self.scope)
        if self.conversation is not None:
            check_text(self.conversation, "conversation")
            if not self.conversation.strip():
                raise InputError("conversation: empty; leave it out to have it found by its content")
        if not isinstance(self.budget, int) or isinstance(self.budget, bool) or self.budget < 0:
            raise InputError(f"budget: {self.budget!r} is not a number of tokens; give 0 or more")

    def of_call(self, given: object) -> _Settings:
        """Return the settings of a call that says "memory" in its body."""
        if not isinstance(given, Mapping):
            raise InputError(f"memory: an object was expected, not {type(given).__name__}")
        unknown = sorted(map(str, set(given) - {"scope", "conversation", "budget", "mode"}))
        if unknown:
            raise InputError(f"memory: {unknown[0]!r} is unknown; use scope, conversation, budget or mode")
        told = {name: value for name, value in given.items() if value is not None}
        mode = told.pop("mode", None)
        if mode is not None:
            recall_and_record = _MODES.get(mode.strip().lower()) if isinstance(mode, str) else None
            if recall_and_record is None:
                raise InputError(f"memory: the mode {mode!r} is unknown; use {', '.join(_MODES)}")
            told["recall"], told["record"] = recall_and_record
        settings = replace(self, **told)
        settings.check()
        return settings


@dataclass(slots=True)
class _Exchange:
    """What a call says, and what is answered as far as it has come."""

    api: Api
    settings: _Settings
    live: list[Turn]
    # Whether the server has what was said before in the conversation, so that the call does not say it.
    continues: bool
    answer: Answer
    events: Events | None = None
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False

    def take(self, chunk: bytes) -> None:
        if self.events is None:
            self.body += chunk
        else:
            self._take(self.events.feed(chunk))

    def end(self) -> None:
        if self.events is not None:
            self._take(self.events.end())
        elif self.body:
            with contextlib.suppress(ValueError):
                self.answer.whole(json.loads(self.body))

    def _take(self, events: Sequence[str]) -> None:
        for data in events:
            # "[DONE]" is none.
            with contextlib.suppress(ValueError):
                self.answer.event(json.loads(data))


class _Remembering:
    """What the clients that one `remember` has made have in common."""

    def __init__(self, memory: LatentMemory, settings: _Settings, on_error: OnError | None) -> None:
        self._memory = memory
        self._settings = settings
        self._on_error = on_error
        self._recorder = Recorder.of(memory)
        self._lock = threading.Lock()

    # -- a client's request -----------------------------------------------------------------------------------

    def synchronous(self, request: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a client sends with, from what it sent with before."""

        @functools.wraps(request)
        def remembered(cast_to: Any, options: Any, **kwargs: Any) -> Any:
            exchange = self._exchange(options, bool(kwargs.get("stream")))
            if exchange is None:
                return request(cast_to, options, **kwargs)
            self._enrich(exchange, options)
            result = request(cast_to, options, **kwargs)
            if exchange.settings.record and self._begin(exchange, result):
                response = _response_of(result)
                if response is None or response.is_closed:
                    self.end(exchange)
                else:
                    _read_along(response, exchange, lambda: self._end_or_drop(exchange))
            return result

        return remembered

    def asynchronous(self, request: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Return what a client sends with, from what it sent with before; the memory works in other threads."""

        @functools.wraps(request)
        async def remembered(cast_to: Any, options: Any, **kwargs: Any) -> Any:
            exchange = self._exchange(options, bool(kwargs.get("stream")))
            if exchange is None:
                return await request(cast_to, options, **kwargs)
            await _in_a_thread(self._enrich, exchange, options)
            result = await request(cast_to, options, **kwargs)
            if exchange.settings.record and self._begin(exchange, result):
                response = _response_of(result)
                if response is None or response.is_closed:
                    await _in_a_thread(self.end, exchange)
                else:
                    _read_along_async(response, exchange, lambda: _in_a_thread(self.end, exchange))
            return result

        return remembered

    # -- what is done with it ---------------------------------------------------------------------------------

    def _exchange(self, options: Any, streamed: bool) -> _Exchange | None:
        """Return the exchange that a call begins; None for a call that is no chat, or has no use for memory."""
        api = _APIS.get(options.url.partition("?")[0]) if options.method.lower() == "post" else None
        if api is None or not isinstance(options.json_data, Mapping):
            return None
        settings, extra = self._settings, options.extra_json
        if isinstance(extra, Mapping) and "memory" in extra:
            settings = settings.of_call(extra["memory"])
            options.extra_json = {name: value for name, value in extra.items() if name != "memory"} or None
        if not (settings.recall or settings.record):
            return None
        with self._spared("the call is not remembered"):
            body = options.json_data
            live, continues = said(api, body), False
            if api == "responses":
                if body.get("background"):
                    # What runs in the background is answered later, to another call.
                    settings = replace(settings, record=False)
                settings, live, continues = self._continued(settings, body, live)
            return _Exchange(api, settings, live, continues, answer_of(api), Events() if streamed else None)
        return None

    def _continued(
        self, settings: _Settings, body: Mapping[str, Any], live: list[Turn]
    ) -> tuple[_Settings, list[Turn], bool]:
        """Return settings and what is said, for a call that names what it goes on with; and whether it does."""
        named, live, continues = self._recorder.continued(settings.scope, body, live)
        if settings.conversation is None and named is not None:
            settings = replace(settings, conversation=named)
        return settings, live, continues

    def _enrich(self, exchange: _Exchange, options: Any) -> None:
        """Put what is recalled into a request."""
        _keep_dropped()
        settings = exchange.settings
        if settings.recall and settings.budget and asks(exchange.api, options.json_data):
            with self._spared("the model is asked without memory"):
                live: Sequence[Turn] = exchange.live
                if exchange.continues and settings.conversation is not None:
                    stored = self._memory.get(settings.conversation, scope=settings.scope)
                    live = [*(stored.turns if stored else ()), *live]
                found = self._memory.context(live, settings.budget, scope=settings.scope)
                options.json_data = with_memory(exchange.api, options.json_data, found.text)

    def _begin(self, exchange: _Exchange, result: Any) -> bool:
        """Take what is known of an answer at once; tell whether it is one that can be kept."""
        with self._spared("the answer is not kept"):
            response = _response_of(result)
            if response is not None:
                if response.is_closed:
                    exchange.take(response.content)
            elif isinstance(result, Mapping):
                exchange.answer.whole(result)
            elif hasattr(result, "model_dump"):
                exchange.answer.whole(result.model_dump(mode="json", warnings=False))
            else:
                return False
            return True
        return False

    def _end_or_drop(self, exchange: _Exchange) -> None:
        """Keep an exchange; later, if nobody has closed its stream and the garbage collector does.

        It does so anywhere, also while this thread holds a lock that keeping it would wait for.
        """
        if getattr(_collecting, "now", False):
            _DROPPED.append((self, exchange))
        else:
            self.end(exchange)

    def end(self, exchange: _Exchange) -> None:
        """Keep an exchange, once."""
        with self._lock:
            if exchange.ended:
                return
            exchange.ended = True
        with self._spared("the exchange is not kept"):
            exchange.end()
            answer, settings = exchange.answer, exchange.settings
            answered = list(turns("assistant", answer.text))
            answer_id = answer.response_id if isinstance(answer, ResponsesAnswer) else None
            if answered or answer_id is not None:
                self._recorder.keep(
                    exchange.live,
                    answered,
                    scope=settings.scope,
                    conversation_id=settings.conversation,
                    continues=exchange.continues,
                    answer_id=answer_id,
                )

    @contextlib.contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """Let no failure of the memory take the answer away."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - an embedder, and what it raises, may be anybody's
            _log.warning("%s: %s: %s", what, type(error).__name__, error)
            if self._on_error is not None:
                self._on_error(error)


# Whose streams nobody has closed; of all clients, since one of them may be gone with its stream.
_DROPPED: deque[tuple[_Remembering, _Exchange]] = deque()
# Whether the garbage collector runs in this thread. Nothing else tells a stream that it closes from one that the
# application closes: both times it is the generator, or the client, that closes the response. And to wait with every
# stream that is closed early until the next call would have them in the memory too late.
_collecting = threading.local()


def _collected(phase: str, _: object) -> None:
    _collecting.now = phase == "start"


def _keep_dropped() -> None:
    """Keep the exchanges whose streams nobody has closed."""
    with contextlib.suppress(IndexError):
        while True:
            remembering, exchange = _DROPPED.popleft()
            remembering.end(exchange)


# -- answers, read along ------------------------------------------------------------------------------------------


def _response_of(result: Any) -> Any:
    """Return the HTTP response whose bytes are an answer; None if the answer was read and parsed already."""
    if hasattr(result, "iter_bytes") and hasattr(result, "is_closed") and hasattr(result, "request"):
        return result
    # Raw responses; then streams, of which only the response is read along.
    return getattr(result, "http_response", None) or (
        getattr(result, "response", None) if hasattr(result, "__next__") or hasattr(result, "__anext__") else None
    )


def _read_along(response: Any, exchange: _Exchange, end: Callable[[], None]) -> None:
    """Let an exchange see the bytes of a response as they are read, and `end` be called when there are no more."""
    read, close = response.iter_bytes, response.close
    reading = False

    def iter_bytes(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        nonlocal reading
        try:
            reading = True
            for chunk in read(*args, **kwargs):
                reading = False
                exchange.take(chunk)
                yield chunk
                reading = True
        finally:
            reading = False
            if response.is_closed:
                end()

    def closed() -> None:
        close()
        # At its end a response closes itself before it hands out the last bytes.
        if not reading:
            end()

    response.iter_bytes, response.close = iter_bytes, closed


def _read_along_async(response: Any, exchange: _Exchange, end: Callable[[], Awaitable[None]]) -> None:
    read, close = response.aiter_bytes, response.aclose
    reading = False

    async def aiter_bytes(*args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        nonlocal reading
        try:
            reading = True
            async with contextlib.aclosing(read(*args, **kwargs)) as chunks:
                async for chunk in chunks:
                    reading = False
                    exchange.take(chunk)
                    yield chunk
                    reading = True
        finally:
            reading = False
            if response.is_closed:
                await end()

    async def aclosed() -> None:
        await close()
        if not reading:
            await end()

    response.aiter_bytes, response.aclose = aiter_bytes, aclosed


async def _in_a_thread(function: Callable[..., None], *args: Any) -> None:
    # It comes with every client that is asynchronous, and works in the event loops that these do.
    import anyio
    import anyio.to_thread

    # A call that is cancelled has still been said.
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(function, *args)
