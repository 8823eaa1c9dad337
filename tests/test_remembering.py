"""Memory in the real clients of OpenAI and Anthropic, which talk to a server that is played here."""

from __future__ import annotations

import asyncio
import gc
import gzip
import http.server
import json
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from pydantic import BaseModel

import latent_memory
from latent_memory import Conversation, LatentMemory, Turn, remember
from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.errors import InputError
from latent_memory.store import Store

ANSWER = "Then I leave the walnuts out."
QUESTION = "What am I allergic to?"
FACT = "I am allergic to walnuts."


def event(data: Any, name: str | None = None) -> bytes:
    return (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(data)}\n\n".encode()


class Server:
    """Answers as OpenAI and Anthropic do, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer = ANSWER
        self.status = 200
        # After so many events the connection breaks.
        self.breaks: int | None = None
        self.calls: list[dict[str, Any]] | None = None
        self.zipped = False

    def respond(self, path: str, content: bytes) -> tuple[int, str, list[bytes]]:
        if not path.endswith(("/chat/completions", "/responses", "/messages")):
            return 200, "application/json", [json.dumps({"object": "list", "data": []}).encode()]
        body = json.loads(content)
        self.asked.append(body)
        if self.status != 200:
            return self.status, "application/json", [b'{"error": {"message": "refused", "type": "server_error"}}']
        kind = path.rsplit("/", 1)[-1]
        if body.get("stream"):
            return 200, "text/event-stream", list(getattr(self, f"stream_{kind}")())
        return 200, "application/json", [json.dumps(getattr(self, f"whole_{kind}")()).encode()]

    def words(self) -> list[str]:
        return [word if i == 0 else f" {word}" for i, word in enumerate(self.answer.split(" "))]

    def whole_completions(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.answer}
        if self.calls:
            message = {"role": "assistant", "content": None, "tool_calls": self.calls}  # type: ignore[dict-item]
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}

    def stream_completions(self) -> Iterator[bytes]:
        for word in self.words():
            choice: dict[str, Any] = {
                "index": 0,
                "delta": {"content": word, "role": "assistant"},
                "finish_reason": None,
            }
            yield event(
                {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            )
        choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield event({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})
        yield b"data: [DONE]\n\n"

    def whole_responses(self, text: str | None = None, status: str = "completed") -> dict[str, Any]:
        part = {"type": "output_text", "text": self.answer if text is None else text, "annotations": []}
        message = {"type": "message", "id": "m1", "role": "assistant", "status": status, "content": [part]}
        return {
            **{"id": f"resp_{len(self.asked)}", "object": "response", "created_at": 1, "model": "m"},
            **{"status": status, "output": [message] if status == "completed" else [], "tools": []},
            **{"parallel_tool_calls": True, "tool_choice": "auto"},
        }

    def stream_responses(self) -> Iterator[bytes]:
        def told(kind: str, number: int, **more: Any) -> bytes:
            return event({"type": kind, "sequence_number": number, **more}, kind)

        place = {"output_index": 0, "item_id": "m1"}
        item = {"type": "message", "id": "m1", "role": "assistant", "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        yield told("response.created", 0, response=self.whole_responses(status="in_progress"))
        yield told("response.output_item.added", 1, output_index=0, item=item)
        yield told("response.content_part.added", 2, content_index=0, part=part, **place)
        for number, word in enumerate(self.words(), 3):
            yield told("response.output_text.delta", number, content_index=0, delta=word, logprobs=[], **place)
        yield told("response.output_text.done", 90, content_index=0, text=self.answer, logprobs=[], **place)
        yield told("response.completed", 91, response=self.whole_responses())

    def whole_messages(self, text: str | None = None) -> dict[str, Any]:
        content = [{"type": "text", "text": self.answer if text is None else text}]
        return {
            **{"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": content},
            **{"stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}},
        }

    def stream_messages(self) -> Iterator[bytes]:
        start = {**self.whole_messages(), "content": [], "stop_reason": None}
        yield event({"type": "message_start", "message": start}, "message_start")
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        yield event(block, "content_block_start")
        yield event({"type": "ping"}, "ping")
        for word in self.words():
            delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            yield event(delta, "content_block_delta")
        yield event({"type": "content_block_stop", "index": 0}, "content_block_stop")
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        yield event({"type": "message_delta", "delta": end, "usage": {"output_tokens": 9}}, "message_delta")
        yield event({"type": "message_stop"}, "message_stop")

    # -- as the clients' transport

    def chunks(self, parts: list[bytes]) -> Iterator[bytes]:
        if self.zipped:
            # In pieces of seven bytes, the last of which decodes to the end of the answer.
            whole = gzip.compress(b"".join(parts))
            parts = [whole[i : i + 7] for i in range(0, len(whole), 7)]
        for number, part in enumerate(parts):
            if number == self.breaks:
                raise httpx2.ReadError("the connection broke")
            yield part

    def _headers(self, kind: str) -> dict[str, str]:
        return {"content-type": kind, **({"content-encoding": "gzip"} if self.zipped else {})}

    def sync(self, request: httpx2.Request) -> httpx2.Response:
        status, kind, parts = self.respond(request.url.path, request.content)
        return httpx2.Response(status, headers=self._headers(kind), content=self.chunks(parts))

    async def asynchronous(self, request: httpx2.Request) -> httpx2.Response:
        status, kind, parts = self.respond(request.url.path, request.content)

        async def content() -> AsyncIterator[bytes]:
            for chunk in self.chunks(parts):
                await asyncio.sleep(0)
                yield chunk

        return httpx2.Response(status, headers=self._headers(kind), content=content())

    def sync_openai(self) -> openai.OpenAI:
        http = httpx2.Client(transport=httpx2.MockTransport(self.sync))
        return openai.OpenAI(api_key="k", base_url="http://localhost/v1", http_client=http, max_retries=0)

    def async_openai(self) -> openai.AsyncOpenAI:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(self.asynchronous))
        return openai.AsyncOpenAI(api_key="k", base_url="http://localhost/v1", http_client=http, max_retries=0)

    def sync_anthropic(self) -> anthropic.Anthropic:
        http = httpx2.Client(transport=httpx2.MockTransport(self.sync))
        return anthropic.Anthropic(api_key="k", base_url="http://localhost", http_client=http, max_retries=0)

    def async_anthropic(self) -> anthropic.AsyncAnthropic:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(self.asynchronous))
        return anthropic.AsyncAnthropic(api_key="k", base_url="http://localhost", http_client=http, max_retries=0)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def walnuts(memory: LatentMemory) -> LatentMemory:
    memory.add(Conversation("old", [Turn("user", FACT)]), scope="ana")
    memory.add(Conversation("hers", [Turn("user", "I am allergic to pollen.")]), scope="bea")
    return memory


def kept(memory: LatentMemory, scope: str = "ana") -> dict[str, list[tuple[str, str]]]:
    """Return what was said in a scope since it was filled, by conversation."""
    return {
        conversation.conversation_id or "": [(turn.role, turn.text) for turn in conversation.turns]
        for conversation in memory.whole(scope=scope)
        if conversation.conversation_id not in ("old", "hers")
    }


def last_said(body: dict[str, Any]) -> str:
    said = body.get("messages") or body["input"]
    if isinstance(said, str):
        return said
    content = said[-1]["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


# -- all the ways of asking --------------------------------------------------------------------------------------


class Shape(BaseModel):
    nuts: str


SAID: list[Any] = [{"role": "user", "content": QUESTION}]
CHAT: dict[str, Any] = {"model": "m", "messages": SAID}
RESPONSE: dict[str, Any] = {"model": "m", "input": QUESTION}
MESSAGE: dict[str, Any] = {"model": "m", "messages": SAID, "max_tokens": 99}


def delta(chunk: Any) -> str:
    return str(chunk.choices[0].delta.content or "")


def part(chunk: Any) -> str:
    return str(chunk.delta) if chunk.type == "response.output_text.delta" else ""


def piece(chunk: Any) -> str:
    return str(chunk.delta.text) if chunk.type == "content_block_delta" else ""


def chat_create(client: Any, **more: Any) -> str:
    return str(client.chat.completions.create(**CHAT, **more).choices[0].message.content)


def chat_stream(client: Any, **more: Any) -> str:
    return "".join(map(delta, client.chat.completions.create(**CHAT, stream=True, **more)))


def chat_helper(client: Any, **more: Any) -> str:
    with client.chat.completions.stream(**CHAT, **more) as stream:
        return str(stream.get_final_completion().choices[0].message.content)


def chat_raw(client: Any, **more: Any) -> str:
    return str(client.chat.completions.with_raw_response.create(**CHAT, **more).parse().choices[0].message.content)


def chat_raw_stream(client: Any, **more: Any) -> str:
    return "".join(map(delta, client.chat.completions.with_raw_response.create(**CHAT, stream=True, **more).parse()))


def chat_streaming(client: Any, **more: Any) -> str:
    with client.chat.completions.with_streaming_response.create(**CHAT, **more) as response:
        return str(response.parse().choices[0].message.content)


def chat_streaming_lines(client: Any, **more: Any) -> str:
    with client.chat.completions.with_streaming_response.create(**CHAT, stream=True, **more) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)


def chat_streaming_bytes(client: Any, **more: Any) -> str:
    with client.chat.completions.with_streaming_response.create(**CHAT, **more) as response:
        return str(json.loads(b"".join(response.iter_bytes(64)))["choices"][0]["message"]["content"])


def response_create(client: Any, **more: Any) -> str:
    return str(client.responses.create(**RESPONSE, **more).output_text)


def response_messages(client: Any, **more: Any) -> str:
    return str(client.responses.create(model="m", input=SAID, **more).output_text)


def response_stream(client: Any, **more: Any) -> str:
    return "".join(map(part, client.responses.create(**RESPONSE, stream=True, **more)))


def response_helper(client: Any, **more: Any) -> str:
    with client.responses.stream(**RESPONSE, **more) as stream:
        return "".join(map(part, stream))


def response_raw(client: Any, **more: Any) -> str:
    return str(client.responses.with_raw_response.create(**RESPONSE, **more).parse().output_text)


def message_create(client: Any, **more: Any) -> str:
    return str(client.messages.create(**MESSAGE, **more).content[0].text)


def message_parts(client: Any, **more: Any) -> str:
    said: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    return str(client.messages.create(model="m", max_tokens=9, messages=said, **more).content[0].text)


def message_stream(client: Any, **more: Any) -> str:
    return "".join(map(piece, client.messages.create(**MESSAGE, stream=True, **more)))


def message_helper(client: Any, **more: Any) -> str:
    with client.messages.stream(**MESSAGE, **more) as stream:
        return "".join(stream.text_stream)


def message_beta(client: Any, **more: Any) -> str:
    return str(client.beta.messages.create(**MESSAGE, **more).content[0].text)


def message_raw(client: Any, **more: Any) -> str:
    return str(client.messages.with_raw_response.create(**MESSAGE, **more).parse().content[0].text)


def message_streaming(client: Any, **more: Any) -> str:
    with client.messages.with_streaming_response.create(**MESSAGE, **more) as response:
        return str(json.loads(response.read())["content"][0]["text"])


OPENAI = [
    *(chat_create, chat_stream, chat_helper, chat_raw, chat_raw_stream, chat_streaming, chat_streaming_lines),
    chat_streaming_bytes,
    *(response_create, response_messages, response_stream, response_helper, response_raw),
]
ANTHROPIC = [
    *(message_create, message_parts, message_stream, message_helper, message_beta, message_raw, message_streaming),
]
Ask = Callable[..., str]


async def joined(told: Callable[[Any], str], stream: Any) -> str:
    return "".join([told(chunk) async for chunk in stream])


async def achat_create(client: Any, **more: Any) -> str:
    return str((await client.chat.completions.create(**CHAT, **more)).choices[0].message.content)


async def achat_stream(client: Any, **more: Any) -> str:
    return await joined(delta, await client.chat.completions.create(**CHAT, stream=True, **more))


async def achat_helper(client: Any, **more: Any) -> str:
    async with client.chat.completions.stream(**CHAT, **more) as stream:
        return str((await stream.get_final_completion()).choices[0].message.content)


async def achat_raw(client: Any, **more: Any) -> str:
    raw = await client.chat.completions.with_raw_response.create(**CHAT, **more)
    return str(raw.parse().choices[0].message.content)


async def achat_streaming_lines(client: Any, **more: Any) -> str:
    async with client.chat.completions.with_streaming_response.create(**CHAT, stream=True, **more) as response:
        lines = [line.removeprefix("data: ") async for line in response.iter_lines() if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)


async def achat_streaming_bytes(client: Any, **more: Any) -> str:
    async with client.chat.completions.with_streaming_response.create(**CHAT, **more) as response:
        content = b"".join([chunk async for chunk in response.iter_bytes(64)])
    return str(json.loads(content)["choices"][0]["message"]["content"])


async def aresponse_create(client: Any, **more: Any) -> str:
    return str((await client.responses.create(**RESPONSE, **more)).output_text)


async def aresponse_stream(client: Any, **more: Any) -> str:
    return await joined(part, await client.responses.create(**RESPONSE, stream=True, **more))


async def aresponse_helper(client: Any, **more: Any) -> str:
    async with client.responses.stream(**RESPONSE, **more) as stream:
        return await joined(part, stream)


async def amessage_create(client: Any, **more: Any) -> str:
    return str((await client.messages.create(**MESSAGE, **more)).content[0].text)


async def amessage_stream(client: Any, **more: Any) -> str:
    return await joined(piece, await client.messages.create(**MESSAGE, stream=True, **more))


async def amessage_helper(client: Any, **more: Any) -> str:
    async with client.messages.stream(**MESSAGE, **more) as stream:
        return "".join([text async for text in stream.text_stream])


async def amessage_streaming(client: Any, **more: Any) -> str:
    async with client.messages.with_streaming_response.create(**MESSAGE, **more) as response:
        return str(json.loads(await response.read())["content"][0]["text"])


ASYNC_OPENAI = [
    *(achat_create, achat_stream, achat_helper, achat_raw, achat_streaming_lines, achat_streaming_bytes),
    *(aresponse_create, aresponse_stream, aresponse_helper),
]
ASYNC_ANTHROPIC = [amessage_create, amessage_stream, amessage_helper, amessage_streaming]
AsyncAsk = Callable[..., Awaitable[str]]


def check(server: Server, memory: LatentMemory) -> None:
    (body,) = server.asked
    asked = last_said(body)
    assert FACT in asked
    assert "pollen" not in asked
    assert asked.endswith(QUESTION)
    assert "memory" not in body
    (turns,) = kept(memory).values()
    assert turns == [("user", QUESTION), ("assistant", ANSWER)]
    assert kept(memory, "bea") == {}


@pytest.mark.parametrize("zipped", [False, True], ids=["", "zipped"])
@pytest.mark.parametrize("ask", [*OPENAI, *ANTHROPIC])
def test_a_call_is_enriched_and_kept(server: Server, walnuts: LatentMemory, ask: Ask, zipped: bool) -> None:
    server.zipped = zipped
    with server.sync_openai() if ask in OPENAI else server.sync_anthropic() as client:
        assert ask(remember(client, walnuts, scope="ana")) == ANSWER
    check(server, walnuts)


@pytest.mark.parametrize("zipped", [False, True], ids=["", "zipped"])
@pytest.mark.parametrize("ask", [*ASYNC_OPENAI, *ASYNC_ANTHROPIC])
def test_an_asynchronous_call_is(server: Server, walnuts: LatentMemory, ask: AsyncAsk, zipped: bool) -> None:
    server.zipped = zipped

    async def go() -> None:
        async with server.async_openai() if ask in ASYNC_OPENAI else server.async_anthropic() as client:
            assert await ask(remember(client, walnuts, scope="ana")) == ANSWER

    asyncio.run(go())
    check(server, walnuts)


def test_parsed_answers(server: Server, walnuts: LatentMemory) -> None:
    server.answer = '{"nuts": "walnuts"}'
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana")
        chat = client.chat.completions.parse(**CHAT, response_format=Shape)
        assert chat.choices[0].message.parsed == Shape(nuts="walnuts")
        response = client.responses.parse(model="m", input="And for tea?", text_format=Shape)
        assert response.output_parsed == Shape(nuts="walnuts")
    assert list(kept(walnuts).values()) == [
        [("user", QUESTION), ("assistant", server.answer)],
        [("user", "And for tea?"), ("assistant", server.answer)],
    ]


# -- a client like the one given ---------------------------------------------------------------------------------


def test_the_client_given_stays_as_it_is(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        made_before = plain.chat.completions
        client = remember(plain, walnuts, scope="ana")
        assert type(client) is openai.OpenAI
        assert made_before is plain.chat.completions
        assert chat_create(plain) == ANSWER
        assert last_said(server.asked[0]) == QUESTION
        assert kept(walnuts) == {}
        assert chat_create(client) == ANSWER
        assert FACT in last_said(server.asked[1])
        assert client.models.list().data == []
        assert (client.base_url, client.api_key, client.max_retries) == (plain.base_url, "k", 0)


def test_options_keep_the_memory(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana").with_options(max_retries=3).copy(timeout=9)
        assert (client.max_retries, client.timeout) == (3, 9)
        assert chat_create(client) == ANSWER
    check(server, walnuts)


def test_other_settings_for_a_client_that_has_some(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        first = remember(plain, walnuts, scope="ana")
        assert chat_create(remember(first, walnuts, scope="bea")) == ANSWER
        assert "pollen" in last_said(server.asked[0])
        # Once.
        assert last_said(server.asked[0]).count("<memory>") == 1
        assert kept(walnuts) == {}
        assert chat_create(first) == ANSWER
        assert FACT in last_said(server.asked[1])


def test_azure(server: Server, walnuts: LatentMemory) -> None:
    http = httpx2.Client(transport=httpx2.MockTransport(server.sync))
    with openai.AzureOpenAI(
        api_key="k", azure_endpoint="http://localhost", api_version="2024-10-21", http_client=http
    ) as plain:
        client = remember(plain, walnuts, scope="ana")
        assert isinstance(client, openai.AzureOpenAI)
        assert chat_create(client) == ANSWER
    check(server, walnuts)


@pytest.mark.parametrize("wrong", [openai, object(), "client", LatentMemory])
def test_no_client(memory: LatentMemory, wrong: Any) -> None:
    with pytest.raises(InputError, match="an OpenAI or Anthropic client was expected"):
        remember(wrong, memory)


@pytest.mark.parametrize("settings", [{"scope": " "}, {"budget": -1}, {"budget": True}, {"conversation_id": ""}])
def test_settings_that_are_none(server: Server, memory: LatentMemory, settings: dict[str, Any]) -> None:
    with server.sync_openai() as plain, pytest.raises(InputError):
        remember(plain, memory, **settings)


# -- settings of a call ------------------------------------------------------------------------------------------


def test_a_call_has_settings_of_its_own(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana", conversation_id="mine")
        extra = {"memory": {"scope": "bea", "conversation": "tea"}, "top_k": 5}
        assert chat_create(client, extra_body=extra) == ANSWER
        # What was handed in is as it was, and what is for the server got there.
        assert extra["memory"] == {"scope": "bea", "conversation": "tea"}
        assert server.asked[0]["top_k"] == 5
        assert "memory" not in server.asked[0]
        assert "pollen" in last_said(server.asked[0])
        assert kept(walnuts, "bea") == {"tea": [("user", QUESTION), ("assistant", ANSWER)]}
        assert chat_create(client) == ANSWER
        assert list(kept(walnuts)) == ["mine"]


@pytest.mark.parametrize(
    ("mode", "recalls", "records"), [("on", 1, 1), ("off", 0, 0), ("recall", 1, 0), ("record", 0, 1)]
)
def test_modes(server: Server, walnuts: LatentMemory, mode: str, recalls: int, records: int) -> None:
    with server.sync_openai() as plain:
        for client in (
            remember(plain, walnuts, scope="ana"),
            remember(plain, walnuts, scope="ana", recall=False, record=False),
        ):
            server.asked.clear()
            walnuts.forget(list(kept(walnuts)), scope="ana")
            assert chat_stream(client, extra_body={"memory": {"mode": mode}}) == ANSWER
            assert last_said(server.asked[0]).count(FACT) == recalls
            assert len(kept(walnuts)) == records
            assert "memory" not in server.asked[0]


def test_settings_by_default(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        assert chat_create(remember(plain, walnuts, scope="ana", recall=False)) == ANSWER
        assert last_said(server.asked[0]) == QUESTION
        assert len(kept(walnuts)) == 1
        assert chat_create(remember(plain, walnuts, scope="ana", record=False)) == ANSWER
        assert FACT in last_said(server.asked[1])
        # A budget that nothing fits into, and none.
        client = remember(plain, walnuts, scope="ana")
        for budget in (5, 0):
            assert chat_create(client, extra_body={"memory": {"budget": budget}}) == ANSWER
            assert last_said(server.asked[-1]) == QUESTION
        # What is null is not said; a mode is a word.
        assert chat_create(client, extra_body={"memory": {"scope": None, "budget": None, "mode": " Recall"}}) == ANSWER
        assert FACT in last_said(server.asked[-1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("on", "an object was expected"),
        ({"mode": "of"}, "the mode 'of' is unknown"),
        ({"scop": "ana"}, "'scop' is unknown"),
        ({"scope": 7}, "scope: text was expected"),
        ({"budget": "many"}, "not a number of tokens"),
        ({"conversation": 7}, "conversation: text was expected"),
    ],
)
def test_settings_of_a_call_that_are_none(server: Server, memory: LatentMemory, given: Any, message: str) -> None:
    with server.sync_openai() as plain, pytest.raises(InputError, match=message):
        chat_create(remember(plain, memory), extra_body={"memory": given})
    assert server.asked == []


# -- conversations -----------------------------------------------------------------------------------------------


def test_a_conversation_grows_as_it_is_sent_again(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana")
        said: list[Any] = [
            {"role": "system", "content": "Cook."},
            {"role": "user", "content": "A cake, please, with any nuts."},
        ]
        for question in ("And for my sister, who likes it sweet?", "And for the neighbours upstairs?"):
            answer = client.chat.completions.create(model="m", messages=said).choices[0].message.content
            said += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
        client.chat.completions.create(model="m", messages=said)
    (turns,) = kept(walnuts).values()
    assert [text for role, text in turns if role == "user"] == [m["content"] for m in said if m["role"] == "user"]
    assert len(turns) == 6
    # What is recalled is never part of what is said.
    assert all("<memory>" not in text for _, text in turns)
    assert all(body["messages"][0] == {"role": "system", "content": "Cook."} for body in server.asked)


def test_a_response_that_names_the_one_before_it(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana")
        first = client.responses.create(**RESPONSE)
        second = client.with_options(timeout=5).responses.create(
            model="m", input="And what am I not?", previous_response_id=first.id
        )
        for _ in client.responses.create(model="m", input="Sure?", previous_response_id=second.id, stream=True):
            pass
        # Another's conversation is not gone on with.
        client.responses.create(
            model="m", input="Mine?", previous_response_id=first.id, extra_body={"memory": {"scope": "bea"}}
        )
        client.responses.create(model="m", input="By name?", conversation="conv_1")
        client.responses.create(model="m", input="By its id?", conversation={"id": "conv_1"})
    ours = kept(walnuts)
    assert sorted([text for role, text in turns if role == "user"] for turns in ours.values()) == [
        ["By name?", "By its id?"],
        [QUESTION, "And what am I not?", "Sure?"],
    ]
    assert [text for role, text in ours["conv_1"] if role == "user"] == ["By name?", "By its id?"]
    (hers,) = kept(walnuts, "bea").values()
    assert [text for role, text in hers if role == "user"] == ["Mine?"]


def test_tools(server: Server, walnuts: LatentMemory) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana", conversation_id="cake")
        server.calls = [call]
        answer = client.chat.completions.create(**CHAT).choices[0].message
        assert answer.tool_calls
        assert answer.tool_calls[0].id == "c1"
        # With the answer, which goes on from what the tool returns.
        assert kept(walnuts) == {}
        server.calls = None
        said: Any = [*SAID, answer, {"role": "tool", "tool_call_id": "c1", "content": "flour, walnuts"}]
        client.chat.completions.create(model="m", messages=said)
    assert kept(walnuts) == {"cake": [("user", QUESTION), ("assistant", ANSWER)]}
    messages = server.asked[1]["messages"]
    assert FACT in messages[0]["content"]
    assert messages[1]["tool_calls"] == [call]
    assert messages[2] == said[2]


def test_tools_whose_question_is_not_sent_again(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana")
        server.answer = ""
        first = client.responses.create(**RESPONSE)
        returned: Any = [{"type": "function_call_output", "call_id": "c1", "output": "flour"}]
        second = client.responses.create(model="m", input=returned, previous_response_id=first.id)
        assert kept(walnuts) == {}
        server.answer = ANSWER
        third = client.responses.create(model="m", input=returned, previous_response_id=second.id)
        client.responses.create(model="m", input="And what am I not?", previous_response_id=third.id)
    assert server.asked[1]["input"] == returned
    (turns,) = kept(walnuts).values()
    assert [text for _, text in turns] == [QUESTION, ANSWER, "And what am I not?", ANSWER]


def test_a_client_for_each_request(server: Server, walnuts: LatentMemory) -> None:
    previous: dict[str, Any] = {}
    with server.sync_openai() as plain:
        for asked in ("What is in the cake?", "And in the tea?", "And in the soup?"):
            client = remember(plain, walnuts, scope="ana")
            previous = {"previous_response_id": client.responses.create(model="m", input=asked, **previous).id}
        # The end of a chat is enough as well.
        window: list[Any] = []
        for number in range(5):
            window.append({"role": "user", "content": f"Tell me of the house number {number} of our street, please."})
            server.answer = f"In the house number {number} there lives a family that likes to cook."
            remember(plain, walnuts, scope="ana").chat.completions.create(model="m", messages=window[-3:])
            window.append({"role": "assistant", "content": server.answer})
    assert sorted(len(turns) for turns in kept(walnuts).values()) == [6, 10]


def test_an_answer_of_another_process_is_gone_on_with_where_the_conversation_is_named(
    server: Server, walnuts: LatentMemory
) -> None:
    walnuts.add(Conversation("cake", [Turn("user", "A cake, please."), Turn("assistant", ANSWER)]), scope="ana")
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana", conversation_id="cake")
        server.answer = "Another one?"
        # The same is asked again, and that is new.
        client.responses.create(model="m", input="A cake, please.", previous_response_id="resp_of_yesterday")
    assert [text for _, text in kept(walnuts)["cake"]] == [
        *("A cake, please.", ANSWER, "A cake, please.", "Another one?"),
    ]
    # What the server has is not recalled.
    assert last_said(server.asked[0]).count("A cake, please.") == 1


def test_what_the_server_has_is_not_recalled(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana")
        first = client.responses.create(model="m", input="My neighbour Ben is allergic to celery.")
        client.responses.create(model="m", input="Is he allergic to walnuts as well?", previous_response_id=first.id)
        client.responses.create(model="m", input="Is Ben allergic to celery?")
    assert FACT in last_said(server.asked[1])
    assert "celery" not in last_said(server.asked[1])
    assert "neighbour Ben is allergic to celery" in last_said(server.asked[2])


def test_a_response_in_the_background_is_not_kept(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        remember(plain, walnuts, scope="ana").responses.create(**RESPONSE, background=True)
    assert FACT in last_said(server.asked[0])
    assert kept(walnuts) == {}


def test_a_call_in_which_nobody_asks(server: Server, walnuts: LatentMemory) -> None:
    picture: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana", conversation_id="picture")
        client.chat.completions.create(model="m", messages=picture)
    assert server.asked[0]["messages"] == picture
    assert kept(walnuts) == {"picture": [("assistant", "Then I leave the walnuts out.")]}


# -- streams that do not end well --------------------------------------------------------------------------------


def first_word(stream: Any, told: Callable[[Any], str]) -> str:
    for chunk in stream:
        if word := told(chunk):
            return word
    return ""


def chat_closed(client: Any) -> str:
    with client.chat.completions.create(**CHAT, stream=True) as stream:
        return first_word(stream, delta)


def chat_helper_closed(client: Any) -> str:
    with client.chat.completions.stream(**CHAT) as stream:
        return first_word(stream, lambda told: told.delta if told.type == "content.delta" else "")


def response_closed(client: Any) -> str:
    with client.responses.stream(**RESPONSE) as stream:
        return first_word(stream, part)


def message_closed(client: Any) -> str:
    with client.messages.stream(**MESSAGE) as stream:
        return first_word(stream, piece)


@pytest.mark.parametrize("ask", [chat_closed, chat_helper_closed, response_closed, message_closed])
def test_a_stream_that_is_closed_early(server: Server, walnuts: LatentMemory, ask: Ask) -> None:
    with server.sync_anthropic() if "message" in ask.__name__ else server.sync_openai() as plain:
        assert ask(remember(plain, walnuts, scope="ana")) == "Then"
    (turns,) = kept(walnuts).values()
    assert turns == [("user", QUESTION), ("assistant", "Then")]


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("api", ["chat", "message"])
def test_a_stream_that_nobody_closes_is_kept_by_the_next_call(
    server: Server, walnuts: LatentMemory, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write

    def collecting(self: Store, *given: Any) -> Any:
        # In the midst of a transaction, where nothing else can be kept.
        with self.database.writing():
            gc.collect()
        return write(self, *given)

    monkeypatch.setattr(Store, "write", collecting)
    plain: Any = server.sync_openai() if api == "chat" else server.sync_anthropic()
    with plain:
        client = remember(plain, walnuts, scope="ana")
        if api == "chat":
            assert first_word(client.chat.completions.create(**CHAT, stream=True), delta) == "Then"
        else:
            assert first_word(client.messages.create(**MESSAGE, stream=True), piece) == "Then"
        for _ in range(2):
            # The first of them collects it.
            (chat_create if api == "chat" else message_create)(client, extra_body={"memory": {"scope": "bea"}})
    assert list(kept(walnuts).values()) == [[("user", QUESTION), ("assistant", "Then")]]


@pytest.mark.usefixtures("uncollected")
def test_a_stream_that_goes_with_its_client_is_kept_by_another_s_call(server: Server, walnuts: LatentMemory) -> None:
    def left(plain: openai.OpenAI) -> None:
        stream = remember(plain, walnuts, scope="ana").chat.completions.create(**CHAT, stream=True)
        chunks = iter(stream)
        assert delta(next(chunks)) == "Then"
        circle: list[Any] = [stream, chunks]
        circle.append(circle)

    with server.sync_openai() as plain:
        left(plain)
        gc.collect()
        assert kept(walnuts) == {}
        chat_create(remember(plain, walnuts, scope="bea"))
    assert list(kept(walnuts).values()) == [[("user", QUESTION), ("assistant", "Then")]]


def test_a_stream_that_nobody_closes_is_kept_when_the_program_ends(store: Path) -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[2])
from latent_memory import LatentMemory, remember
from test_remembering import CHAT, Server
client = remember(Server().sync_openai(), LatentMemory.open(sys.argv[1], embedder="hashing"), scope="ana")
stream = client.chat.completions.create(**CHAT, stream=True)
next(stream)
del stream
import gc; gc.collect()
"""
    subprocess.run([sys.executable, "-c", program, store, Path(__file__).parent], check=True, timeout=120)
    with LatentMemory.open(store) as memory:
        assert list(kept(memory).values()) == [[("user", QUESTION), ("assistant", "Then")]]


@pytest.mark.parametrize("api", ["chat", "message"])
def test_an_asynchronous_stream_that_is_closed_early(server: Server, walnuts: LatentMemory, api: str) -> None:
    async def go() -> None:
        made: Any = server.async_openai() if api == "chat" else server.async_anthropic()
        async with made as plain:
            client = remember(plain, walnuts, scope="ana")
            if api == "chat":
                async with await client.chat.completions.create(**CHAT, stream=True) as stream:
                    async for chunk in stream:
                        if delta(chunk):
                            break
            else:
                async with client.messages.stream(**MESSAGE) as stream:
                    async for _ in stream.text_stream:
                        break

    asyncio.run(go())
    (turns,) = kept(walnuts).values()
    assert turns == [("user", QUESTION), ("assistant", "Then")]


def test_a_task_that_is_cancelled_keeps_what_it_has_read(server: Server, walnuts: LatentMemory) -> None:
    async def go() -> None:
        async with server.async_openai() as plain:
            client = remember(plain, walnuts, scope="ana")
            read = asyncio.Event()

            async def reading() -> None:
                async with await client.chat.completions.create(**CHAT, stream=True) as stream:
                    async for _ in stream:
                        read.set()
                        await asyncio.Event().wait()

            task = asyncio.create_task(reading())
            await read.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(go())
    (turns,) = kept(walnuts).values()
    assert turns == [("user", QUESTION), ("assistant", "Then")]


def test_a_stream_that_breaks(server: Server, walnuts: LatentMemory) -> None:
    server.breaks = 3
    with server.sync_openai() as plain, pytest.raises((openai.APIConnectionError, httpx2.ReadError)):
        chat_stream(remember(plain, walnuts, scope="ana"))
    (turns,) = kept(walnuts).values()
    assert turns == [("user", QUESTION), ("assistant", "Then I leave")]


def test_a_call_that_is_refused_is_not_kept(server: Server, walnuts: LatentMemory) -> None:
    server.status = 500
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana")
        with pytest.raises(openai.InternalServerError, match="refused"):
            chat_create(client)
        with pytest.raises(openai.InternalServerError, match="refused"):
            chat_stream(client)
        assert kept(walnuts) == {}
        # Tried again by the client itself, it gets one memory.
        server.asked.clear()
        with pytest.raises(openai.InternalServerError):
            chat_create(client.with_options(max_retries=1))
    assert [last_said(body).count("<memory>") for body in server.asked] == [1, 1]


# -- a memory that fails -----------------------------------------------------------------------------------------


class Failing(HashingEmbedder):
    """Fails as an embedder behind a network may."""

    def embed(self, texts: Any, *, query: bool = False) -> Any:
        raise ConnectionError("no route to the embedder")


@pytest.mark.parametrize("ask", [chat_create, chat_stream, response_stream, message_helper])
def test_a_memory_that_fails_leaves_the_answer(
    server: Server, walnuts: LatentMemory, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    walnuts.embedder = Failing()
    errors: list[Exception] = []
    with server.sync_anthropic() if ask in ANTHROPIC else server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana", on_error=errors.append)
        with caplog.at_level(logging.WARNING, "latent_memory"):
            assert ask(client) == ANSWER
    assert last_said(server.asked[0]) == QUESTION
    assert [type(error) for error in errors] == [ConnectionError, ConnectionError]
    assert "asked without memory" in caplog.text
    assert "not kept" in caplog.text
    assert "no route to the embedder" in caplog.text


def test_what_could_not_be_kept_is_kept_with_the_next_call(server: Server, walnuts: LatentMemory) -> None:
    embedder = walnuts.embedder
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana", conversation_id="cake")
        walnuts.embedder = Failing()
        assert chat_create(client) == ANSWER
        walnuts.embedder = embedder
        said: Any = [*SAID, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "And in tea?"}]
        client.chat.completions.create(model="m", messages=said)
    assert [text for _, text in kept(walnuts)["cake"]] == [QUESTION, ANSWER, "And in tea?", ANSWER]


class Held(HashingEmbedder):
    """Embeds only when another thread, the one of the event loop, lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.go_on = threading.Event(), threading.Event()

    def embed(self, texts: Any, *, query: bool = False) -> Any:
        self.waiting.set()
        assert self.go_on.wait(60)
        return super().embed(texts, query=query)


@pytest.mark.parametrize("ask", [achat_create, achat_stream])
def test_the_event_loop_goes_on(server: Server, store: Path, ask: AsyncAsk) -> None:
    embedder = Held()

    async def go(memory: LatentMemory) -> None:
        async with server.async_openai() as plain:
            answer = asyncio.ensure_future(ask(remember(plain, memory)))
            while not embedder.waiting.is_set():
                await asyncio.sleep(0.001)
            # This runs in the loop while the memory embeds: else it would wait for ever.
            embedder.go_on.set()
            assert await answer == ANSWER

    with LatentMemory.open(store, embedder=embedder) as memory:
        asyncio.run(go(memory))
        assert len(kept(memory, "default")) == 1


# -- over a real connection --------------------------------------------------------------------------------------


@pytest.fixture
def address(server: Server) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            status, kind, parts = server.respond(self.path, content)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.end_headers()
            for sent in parts:
                self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("ask", [*OPENAI, *ANTHROPIC])
def test_over_a_socket(server: Server, address: str, walnuts: LatentMemory, ask: Ask) -> None:
    plain: Any = (
        openai.OpenAI(api_key="k", base_url=f"{address}/v1")
        if ask in OPENAI
        else anthropic.Anthropic(api_key="k", base_url=address)
    )
    with plain:
        assert ask(remember(plain, walnuts, scope="ana")) == ANSWER
    check(server, walnuts)


@pytest.mark.parametrize("ask", [achat_create, achat_stream, aresponse_stream, amessage_helper])
def test_over_a_socket_asynchronously(server: Server, address: str, walnuts: LatentMemory, ask: AsyncAsk) -> None:
    async def go() -> None:
        plain: Any = (
            openai.AsyncOpenAI(api_key="k", base_url=f"{address}/v1")
            if ask in ASYNC_OPENAI
            else anthropic.AsyncAnthropic(api_key="k", base_url=address)
        )
        async with plain:
            assert await ask(remember(plain, walnuts, scope="ana")) == ANSWER

    asyncio.run(go())
    check(server, walnuts)


def test_many_threads_share_a_client(server: Server, walnuts: LatentMemory) -> None:
    with server.sync_openai() as plain:
        client = remember(plain, walnuts, scope="ana")

        def ask(number: int) -> None:
            chat_stream(client, extra_body={"memory": {"conversation": f"c{number}"}})

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert kept(walnuts) == {f"c{n}": [("user", QUESTION), ("assistant", ANSWER)] for n in range(8)}


def test_the_default_embedder_recalls_by_meaning(server: Server, store: Path) -> None:
    with LatentMemory.open(store) as memory, server.sync_openai() as plain:
        client = remember(plain, memory)
        server.answer = "Noted."
        told: Any = [{"role": "user", "content": "My daughter's birthday party is on the second of June."}]
        client.chat.completions.create(model="m", messages=told)
        asked: Any = [{"role": "user", "content": "When do we celebrate with the girl?"}]
        client.chat.completions.create(model="m", messages=asked)
        assert "second of June" in last_said(server.asked[1])


def test_it_is_found_in_the_package() -> None:
    assert latent_memory.remember is remember
