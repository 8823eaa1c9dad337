"""A server that behaves like OpenAI's, in a thread: it notes what it is asked, and answers as it is told."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Asked:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    query: str
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    @property
    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body["messages"]
        return found

    @property
    def text(self) -> str:
        """All of what was said to the model."""
        return json.dumps(self.body.get("messages", self.body.get("input")), ensure_ascii=False)


@dataclass
class FakeOpenAI:
    """The server.

    Attributes:
        reply: what it says to a request.
        words: a streamed answer comes word by word.
        gate: if it is set to an event, a stream waits for it before its last word.
        broken: a stream breaks off before its last word.
        answers: instead of the usual answer, by path: status, headers, body.
        asked: what came in.
        left: is set when a client left in the middle of a stream.
        sent: the bytes of the last stream, as they were sent.
    """

    reply: Callable[[Asked], str] = lambda asked: "Certainly, the answer is forty two."
    gate: threading.Event | None = None
    broken: bool = False
    tool_calls: bool = False
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    sent: bytes = b""
    url: str = ""

    @property
    def last(self) -> Asked:
        return self.asked[-1]

    def __enter__(self) -> Self:
        paths = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/models", "/v1/models/{model:path}")
        app = Starlette(routes=[Route(path, self._answer, methods=["GET", "POST"]) for path in paths])
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.gate is not None:
            self.gate.set()
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        asked = Asked(
            request.method, path, dict(request.headers), request.scope["query_string"].decode(), await request.body()
        )
        self.asked.append(asked)
        if path in self.answers:
            status, headers, body = self.answers[path]
            return Response(body, status, headers)
        if path == "/v1/models":
            return _json(
                {"object": "list", "data": [{"id": "gpt-4o", "object": "model", "created": 1, "owned_by": "x"}]}
            )
        if path.startswith("/v1/models/"):
            return _json(_model(path.removeprefix("/v1/models/")))
        if path == "/v1/embeddings":
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
            return _json({"object": "list", "data": data, "model": asked.body.get("model"), "usage": usage})
        text = self.reply(asked)
        events = self._chat if path.endswith("completions") else self._response
        if asked.body.get("stream"):
            return StreamingResponse(
                self._noted(events(text)),
                media_type="text/event-stream",
                headers={"x-request-id": "req_of_upstream", "openai-processing-ms": "7"},
            )
        return _json(self._whole_chat(text) if path.endswith("completions") else _whole_response(text))

    async def _noted(self, events: AsyncIterator[str]) -> AsyncIterator[bytes]:
        self.sent = b""
        try:
            async for event in events:
                chunk = event.encode()
                self.sent += chunk
                yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise

    async def _wait(self) -> None:
        if self.gate is not None:
            while not self.gate.is_set():
                await asyncio.sleep(0.01)

    async def _chat(self, text: str) -> AsyncIterator[str]:
        def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
            choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
            told = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
            return f"data: {json.dumps({**told, 'choices': choices}, ensure_ascii=False)}\n\n"

        yield ": a comment\n\n"
        if self.tool_calls:
            call = {"index": 0, **_CALL}
            yield chunk({"role": "assistant", "content": None, "tool_calls": [call]})
            yield chunk({}, "tool_calls")
            yield "data: [DONE]\n\n"
            return
        yield chunk({"role": "assistant", "content": ""})
        *first, last = [word + " " for word in text.split()]
        for word in first:
            yield chunk({"content": word})
        await self._wait()
        if self.broken:
            raise ConnectionAbortedError
        yield chunk({"content": last.strip()})
        yield chunk({}, "stop")
        yield "data: [DONE]\n\n"

    def _whole_chat(self, text: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.tool_calls:
            message |= {"content": None, "tool_calls": [_CALL]}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o",
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": "tool_calls" if self.tool_calls else "stop",
                }
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16},
        }

    async def _response(self, text: str) -> AsyncIterator[str]:
        number = 0

        def event(kind: str, **more: Any) -> str:
            nonlocal number
            number += 1
            return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': number, **more})}\n\n"

        whole = _whole_response(text)
        (item,) = whole["output"]
        (part,) = item["content"]
        yield event("response.created", response={**whole, "output": [], "status": "in_progress"})
        yield event("response.output_item.added", output_index=0, item={**item, "content": [], "status": "in_progress"})
        place = {"output_index": 0, "content_index": 0, "item_id": "msg_1"}
        yield event("response.content_part.added", part={**part, "text": ""}, **place)
        *first, last = [word + " " for word in text.split()]
        for word in first:
            yield event("response.output_text.delta", delta=word, logprobs=[], **place)
        await self._wait()
        yield event("response.output_text.delta", delta=last.strip(), logprobs=[], **place)
        yield event("response.output_text.done", text=text, logprobs=[], **place)
        yield event("response.content_part.done", part=part, **place)
        yield event("response.output_item.done", output_index=0, item=item)
        yield event("response.completed", response=whole)


_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Osaka"}'}}
_numbers = iter(range(1, 1 << 30))


def _whole_response(text: str) -> dict[str, Any]:
    return {
        "id": f"resp_{next(_numbers)}",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "gpt-4o",
        "output": [
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _json(told: Any) -> Response:
    return Response(json.dumps(told), media_type="application/json", headers={"x-request-id": "req_of_upstream"})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1, "owned_by": "x"}
