"""A model on this machine in the place of a server: chat completions, one at a time, with the memory put into it.

It runs in a thread of its own; others wait for their turn. PyTorch is imported when the model is loaded.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from latent_memory import enrichment
from latent_memory.errors import InputError, LatentMemoryError, ModelError, ModelMemoryError
from latent_memory.inference import extra
from latent_memory.memory import LatentMemory
from latent_memory.records import Context
from latent_memory.server.problems import ProblemError
from latent_memory.server.upstream import Answering, Headers, Sending, UpstreamLostError
from latent_memory.server.wishes import WAYS
from latent_memory.server.writing import written

if TYPE_CHECKING:
    from latent_memory.context import Tokenizer
    from latent_memory.inference.local_model import LocalModel, Prefilled, Sampling
    from latent_memory.inference.ways import Way

log = logging.getLogger(__name__)

# Answers that wait for the one that is being made; those beyond are told to come back.
MOST_WAITING = 8
# Of an answer that names no limit.
MOST_TOKENS = 1024
_WAYS = 64
_USUAL_WAY = "prompt"
_SYSTEM = ("system", "developer")
# What changes nothing if it is left out, as most that is not named here; these would change the answer.
_UNABLE = (
    *("tools", "functions", "logprobs", "top_logprobs", "audio", "logit_bias", "presence_penalty"),
    *("frequency_penalty", "prediction", "web_search_options"),
)


class LocalUpstream:
    """A local model.

    Args:
        name: of the model, as `LocalModel.load` takes it.
        memory: has the conversations that keys and values are made of.

    Raises:
        InputError: for no name.
        MissingExtraError: if the extra `llm` is not installed.
    """

    def __init__(self, name: str, memory: LatentMemory) -> None:
        if not name.strip():
            raise InputError("upstream: local: names no model; local:smollm2 does")
        # Now, and not when the first chat comes.
        extra.check()
        self._source = name
        self.ways = WAYS
        self.name = Path(name).name or name
        self._memory = memory
        self._thread = ThreadPoolExecutor(1, "model")
        self._loading: asyncio.Future[LocalModel] | None = None
        self._model: LocalModel | None = None
        self._ways: OrderedDict[tuple[str, str], Way] = OrderedDict()
        self._jobs: set[_Job] = set()
        self._since = int(time.time())

    async def __aenter__(self) -> Self:
        self._loading = asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        self._loading.add_done_callback(self._loaded)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self._jobs:
            job.stopped.set()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _load(self) -> LocalModel:
        from latent_memory.inference.local_model import LocalModel

        model = LocalModel.load(self._source)
        # The first text that is counted may set its tokenizer up, which two threads must not do at once.
        model.count_tokens("hello")
        return model

    def _loaded(self, loading: asyncio.Future[LocalModel]) -> None:
        if loading.cancelled():
            return
        error = loading.exception()
        if error is not None:
            log.error("cannot load the model", extra={"told": {"error": f"{type(error).__name__}: {error}"}})
            return
        self._model = loading.result()
        log.info("the model is loaded", extra={"told": {"model": self.name, "device": self._model.device}})

    async def ready(self, path: str) -> None:
        """Wait until the model is loaded.

        Raises:
            ProblemError: if it cannot be, or does not answer there.
        """
        if path == "/responses":
            raise ProblemError(
                501, "a local model answers /v1/chat/completions alone; use that, or another upstream", code="path"
            )
        assert self._loading is not None
        try:
            await asyncio.shield(self._loading)
        except LatentMemoryError as error:
            problem = ProblemError.of(error)
            raise ProblemError(503 if problem.status == 500 else problem.status, str(error), code="model") from None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Counts tokens as the model does."""
        return self._model.count_tokens if self._model is not None else None

    def room(self, body: Mapping[str, Any], budget: int) -> int:
        """Return how many tokens of memory the model's window has room for, beside the messages and the answer."""
        from latent_memory.inference import prompt

        asked = _asked(body)
        model = self._its_model()
        taken = len(prompt.tokens(model, asked.messages))
        return max(0, min(budget, model.window - taken - asked.most))

    def _its_model(self) -> LocalModel:
        assert self._model is not None
        return self._model

    async def send(self, sending: Sending) -> Answering:
        """Answer a request; see `Upstream`."""
        if sending.path == "/models":
            return _Ready(200, {"object": "list", "data": [self._described()]})
        if sending.path == f"/models/{self.name}":
            return _Ready(200, self._described())
        if sending.path != "/chat/completions":
            raise ProblemError(404, f"model: there is none but {self.name!r}", code="model_not_found")
        if len(self._jobs) > MOST_WAITING:
            raise ProblemError(
                503,
                f"{len(self._jobs) - 1} others wait for the model; come back in a while",
                code="busy",
                headers={"Retry-After": "5"},
            )
        asked = _asked(sending.body)
        job = _Job(asyncio.get_running_loop())
        self._jobs.add(job)
        work = partial(self._answer, job, asked, sending.context, sending.scope, sending.way or _USUAL_WAY)
        self._thread.submit(work).add_done_callback(lambda _: job.tell(None))
        answering = _Generated(job, asked, self.name, self._jobs.discard)
        try:
            await answering.begin()
        except BaseException:
            await answering.close()
            raise
        return answering

    def _described(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self._since, "owned_by": "local"}

    # -- in the model's thread --------------------------------------------------------------------------------

    def _answer(self, job: _Job, asked: _Asked, context: Context | None, scope: str, way: str) -> None:
        try:
            if job.stopped.is_set():
                return
            model = self._its_model()
            prefilled = self._read(asked, context, scope, way)
            job.read = prefilled.length
            job.room = model.window - prefilled.length
            job.tell("")
            for piece in model.answer(
                prefilled, most=asked.most, sampling=asked.sampling(), stop=asked.stop, each=job.made
            ):
                job.tell(piece)
        except _StoppedError:
            pass
        except LatentMemoryError as error:
            job.tell(error)
        except Exception as error:
            log.error("a bug in a local model, please report it", exc_info=error)
            job.tell(error)

    def _read(self, asked: _Asked, context: Context | None, scope: str, name: str) -> Prefilled:
        from latent_memory.inference import prompt

        model = self._its_model()
        if context:
            return self._way(name, scope).read(context, asked.messages)
        if asked.messages[0]["role"] != "system":
            # As the application has it: without a word of ours.
            return model.prefill(model.encode(model.template(asked.messages)))
        return model.prefill(prompt.tokens(model, asked.messages))

    def _way(self, name: str, scope: str) -> Way:
        from latent_memory.inference import ways

        key = (name, scope)
        if key not in self._ways:
            memory = self._memory
            self._ways[key] = ways.load(
                name,
                self._its_model(),
                scope=scope,
                conversation=partial(memory.get, scope=scope),
                blocks=None if memory.in_file else memory.block_directory,
            )
            if len(self._ways) > _WAYS:
                self._ways.popitem(last=False)
        self._ways.move_to_end(key)
        return self._ways[key]


# -- what is asked ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, as far as a local model understands it."""

    messages: list[dict[str, str]]
    most: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    streamed: bool
    usage: bool

    def sampling(self) -> Sampling:
        from latent_memory.inference.local_model import Sampling

        return Sampling(self.temperature, self.top_p, self.seed)


def _asked(body: Mapping[str, Any]) -> _Asked:
    """Read a request.

    Raises:
        ProblemError: for what a local model cannot do.
    """
    for name in _UNABLE:
        if body.get(name):
            raise _wrong(f"{name}: not with a local model; leave it out")
    if body.get("response_format") not in (None, {"type": "text"}):
        raise _wrong("response_format: a local model answers in text; leave it out")
    if body.get("modalities") not in (None, ["text"]):
        raise _wrong("modalities: a local model answers in text; leave it out")
    if body.get("n") not in (None, 1):
        raise _wrong("n: a local model gives one answer; leave it out")
    most = body.get("max_completion_tokens")
    options = body.get("stream_options")
    seed = _number(body, "seed", None, -(2**63), 2**63 - 1, whole=True)
    return _Asked(
        messages=_messages(body.get("messages")),
        most=int(
            _number(
                body, "max_tokens" if most is None else "max_completion_tokens", MOST_TOKENS, 1, 1 << 30, whole=True
            )
        ),
        temperature=float(_number(body, "temperature", 0.0, 0.0, 2.0)),
        top_p=float(_number(body, "top_p", 1.0, 0.0, 1.0)),
        seed=None if seed is None else int(seed) % 2**63,
        stop=_stops(body.get("stop")),
        streamed=body.get("stream") is True,
        usage=isinstance(options, Mapping) and options.get("include_usage") is True,
    )


def _number(
    body: Mapping[str, Any], name: str, default: float | None, least: float, most: float, *, whole: bool = False
) -> Any:
    value = body.get(name)
    if value is None:
        return default
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise _wrong(f"{name}: {str(value)[:60]!r}; {kind} from {least:g} to {most:g} was expected")
    return value


def _stops(given: object) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops) or len(stops) > 16:
        raise _wrong("stop: a text, or a list of up to 16, was expected")
    return tuple(stops)


def _messages(given: object) -> list[dict[str, str]]:
    """Return the messages as chat templates take them: a system message or none, and the others in turn."""
    if not isinstance(given, list) or not given:
        raise _wrong("messages: a list was expected, with at least what the user says")
    system: list[str] = []
    told: list[dict[str, str]] = []
    for place, message in enumerate(given):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role in _SYSTEM:
            system.append(_text(message, place))
        elif role in ("user", "assistant"):
            text = _text(message, place)
            if told and told[-1]["role"] == role:
                told[-1]["content"] += f"\n\n{text}"
            else:
                told.append({"role": role, "content": text})
        else:
            raise _wrong(f"messages[{place}]: a local model knows system, user and assistant, not {str(role)[:60]!r}")
    # Some templates want the user to begin.
    told = list(itertools.dropwhile(lambda message: message["role"] != "user", told))
    if not told:
        raise _wrong("messages: the user says nothing")
    return [{"role": "system", "content": "\n\n".join(system)}, *told] if any(system) else told


def _text(message: Mapping[str, Any], place: int) -> str:
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise _wrong(f"messages[{place}].content: a local model reads text alone")
    elif not isinstance(content, str):
        raise _wrong(f"messages[{place}].content: a text was expected")
    # Half of a surrogate pair is no text for a tokenizer.
    return enrichment.content_text(content).encode("utf-8", "replace").decode()


def _wrong(told: str) -> ProblemError:
    return ProblemError(400, told, code="input")


# -- what is answered -------------------------------------------------------------------------------------------


class _StoppedError(Exception):
    """Nobody waits for the answer any more."""


class _Job:
    """An answer that is being made, and the way from the model's thread to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # An answer has few tokens: a client that reads slowly does not hold up the model for others.
        self.pieces: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.stopped = threading.Event()
        self.read = 0
        self.room = 0
        self.tokens = 0

    def made(self, _: int) -> None:
        if self.stopped.is_set():
            raise _StoppedError
        self.tokens += 1

    def tell(self, piece: str | Exception | None) -> None:
        """Hand on a piece, an error, or that this is the end."""
        self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


@dataclass(slots=True)
class _Ready:
    """An answer that is known."""

    status: int
    told: Any
    headers: Headers = field(init=False)

    def __post_init__(self) -> None:
        self.headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(written(self.told))).encode()),
        ]

    async def chunks(self) -> AsyncIterator[bytes]:
        yield written(self.told)

    async def close(self) -> None:
        pass


class _Generated:
    """The answer of a job, as the API tells it."""

    status = 200

    def __init__(self, job: _Job, asked: _Asked, model: str, done: Any) -> None:
        self._job = job
        self._asked = asked
        self._done = done
        self._told = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._whole = b""
        self._begun = False
        self.headers: Headers = []

    async def begin(self) -> None:
        """Wait until the model has read the request; if it is not streamed, until the answer is complete."""
        first = await self._job.pieces.get()
        if isinstance(first, Exception):
            raise _as_problem(first)
        if first is None:
            raise ProblemError(503, "the server is about to end", code="model", headers={"Retry-After": "5"})
        if self._asked.streamed:
            self.headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            return
        try:
            text = "".join([piece async for piece in self._pieces()])
        except _FailedError as failed:
            raise _as_problem(failed.error) from None
        message = {"role": "assistant", "content": text.rstrip(), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason()}
        self._whole = written({**self._told, "object": "chat.completion", "choices": [choice], "usage": self._usage()})
        self.headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self._whole)).encode()),
        ]

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield its bytes as they come."""
        if not self._asked.streamed:
            yield self._whole
            return
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            async for piece in self._pieces():
                yield self._chunk({"content": piece})
        except _FailedError as failed:
            problem = _as_problem(failed.error)
            yield _event({"error": {"message": problem.detail, "type": "server_error", "param": None, "code": "model"}})
            raise UpstreamLostError(problem.detail) from None
        yield self._chunk({}, self._reason())
        if self._asked.usage:
            yield self._chunk(None)
        yield b"data: [DONE]\n\n"

    async def close(self) -> None:
        """Let the model stop at the next token."""
        self._job.stopped.set()
        self._done(self._job)

    async def _pieces(self) -> AsyncIterator[str]:
        while (piece := await self._job.pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise _FailedError(piece)
            # Some models begin with a line break.
            shown = piece if self._begun else piece.lstrip()
            if shown:
                self._begun = True
                yield shown

    def _chunk(self, delta: Mapping[str, Any] | None, reason: str | None = None) -> bytes:
        """Return a chunk with a piece of the answer, or, for None, what it took."""
        choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        told: dict[str, Any] = {**self._told, "object": "chat.completion.chunk", "choices": choices}
        if self._asked.usage:
            told["usage"] = self._usage() if delta is None else None
        return _event(told)

    def _reason(self) -> str:
        return "length" if self._job.tokens >= min(self._asked.most, self._job.room + 1) else "stop"

    def _usage(self) -> dict[str, int]:
        job = self._job
        return {"prompt_tokens": job.read, "completion_tokens": job.tokens, "total_tokens": job.read + job.tokens}


class _FailedError(Exception):
    """Making an answer failed after it had begun."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _event(told: Any) -> bytes:
    return b"data: " + json.dumps(told, separators=(",", ":")).encode() + b"\n\n"


def _as_problem(error: Exception) -> ProblemError:
    if isinstance(error, InputError):
        # The window, the chat template, a way that this memory does not have.
        return ProblemError(400, str(error), code="input")
    if isinstance(error, ModelMemoryError):
        return ProblemError(503, str(error), code="model")
    if isinstance(error, ModelError):
        return ProblemError(501, str(error), code="model")
    return ProblemError(500, "the model failed; the server's log tells what", code="model")
