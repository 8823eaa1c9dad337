"""The proxy as people use it: `latent-memory serve`, the OpenAI client, curl, and what happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest

from chats import CHAT, KEY, QUESTION, asked, told, until
from fake_openai import FakeOpenAI
from latent_memory import LatentMemory
from served import Served

Serve = Callable[..., Served]


@pytest.fixture
def served(serve: Serve, upstream: FakeOpenAI) -> Served:
    return serve(args=["--upstream", upstream.url])


def test_the_openai_client(served: Served, upstream: FakeOpenAI) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="sk-mine", max_retries=0) as client:
        first = client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "My dog is called Biscuit, and she is a beagle."}]
        )
        assert first.choices[0].message.content == "Certainly, the answer is forty two."
        assert first._request_id == "req_of_upstream"
        stream = client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": QUESTION}], stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == "Certainly, the answer is forty two."
        assert "Biscuit" in upstream.last.text
        assert upstream.last.headers["authorization"] == "Bearer sk-mine"

        # The stream has ended for this client at [DONE]; what it said is found all the same.
        client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "Which questions did I ask about my dog?"}]
        )
        assert QUESTION in upstream.last.text

        upstream.tool_calls = True
        called = client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": "The weather in Osaka?"}],
            tools=[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        )
        assert called.choices[0].message.tool_calls is not None
        upstream.tool_calls = False

        response = client.responses.create(model="gpt-4o", input=QUESTION)
        assert response.output_text == "Certainly, the answer is forty two."
        with client.responses.stream(model="gpt-4o", input="Hello", previous_response_id=response.id) as events:
            assert events.get_final_response().output_text == "Certainly, the answer is forty two."
        assert len(client.embeddings.create(model="latent-memory", input=["one", "two"]).data[1].embedding) == 256
        assert [model.id for model in client.models.list()] == ["gpt-4o"]
        assert client.models.retrieve("gpt-4o").id == "gpt-4o"
        upstream.answers[CHAT] = (
            429,
            {"Content-Type": "application/json"},
            b'{"error": {"message": "slow down", "type": "tokens", "param": null, "code": "rate_limit_exceeded"}}',
        )
        with pytest.raises(openai.RateLimitError, match="slow down"):
            client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])
        with pytest.raises(openai.BadRequestError, match="Memory-Mode"):
            client.chat.completions.create(
                model="gpt-4o",
                messages=[{"role": "user", "content": "Hi"}],
                extra_headers={"Memory-Mode": "loud"},
            )


async def test_the_asynchronous_client(served: Served, upstream: FakeOpenAI) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="sk-mine", max_retries=0) as client:

        async def ask(number: int) -> str:
            stream = await client.chat.completions.create(
                model="gpt-4o",
                messages=[{"role": "user", "content": f"Question number {number} of quite a few"}],
                stream=True,
                extra_body={"memory": {"scope": f"user-{number}", "conversation": "talk"}},
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert set(await asyncio.gather(*map(ask, range(12)))) == {"Certainly, the answer is forty two."}
        embedded = await client.embeddings.create(model="latent-memory", input="one")
        assert len(embedded.data[0].embedding) == 256
    assert served.stop() == 0
    with LatentMemory.open(served.store) as memory:
        assert memory.scopes() == {f"user-{number}": 1 for number in range(12)}


def test_a_stream_comes_byte_for_byte_and_at_once(served: Served, upstream: FakeOpenAI) -> None:
    upstream.reply = lambda asked: "Ein Wort — 大阪 🎉, und noch eines zum Schluss."
    upstream.gate = threading.Event()
    with (
        httpx2.Client(base_url=served.url, timeout=30) as client,
        client.stream("POST", CHAT, json=asked(stream=True), headers=KEY) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        got = b""
        chunks = answer.iter_raw()
        while b"zum " not in got:
            got += next(chunks)
        # The upstream has not sent its last word yet.
        assert b"Schluss" not in upstream.sent
        upstream.gate.set()
        got += b"".join(chunks)
    assert got == upstream.sent
    assert got.endswith(b"data: [DONE]\n\n")
    with LatentMemory.open(served.store, embedder="hashing") as memory:
        assert told(memory) == [[QUESTION, "Ein Wort — 大阪 🎉, und noch eines zum Schluss."]]


def test_a_client_that_hangs_up(served: Served, upstream: FakeOpenAI) -> None:
    upstream.gate = threading.Event()
    with (
        httpx2.Client(base_url=served.url, timeout=30) as client,
        client.stream("POST", CHAT, json=asked(stream=True), headers=KEY) as answer,
    ):
        got = b""
        for chunk in answer.iter_raw():
            got += chunk
            if b"forty" in got:
                break
    assert upstream.left.wait(10), "the upstream still works for nobody"
    assert not upstream.gate.is_set()
    with LatentMemory.open(served.store, embedder="hashing") as memory:
        until(lambda: bool(told(memory)))
        assert told(memory) == [[QUESTION, "Certainly, the answer is forty "]]


def test_a_client_that_hangs_up_before_the_answer_begins(served: Served, upstream: FakeOpenAI) -> None:
    reached = threading.Event()
    go_on = threading.Event()

    def slow(_: object) -> str:
        reached.set()
        return "late"

    upstream.reply = slow
    upstream.gate = go_on
    body = json.dumps(asked(stream=True)).encode()
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert reached.wait(10)
    assert upstream.left.wait(10)
    until(lambda: "latent_memory_requests_going_on 1.0" in httpx2.get(f"{served.url}/metrics").text)


def test_an_upstream_that_breaks_off(served: Served, upstream: FakeOpenAI) -> None:
    upstream.broken = True
    with (
        httpx2.Client(base_url=served.url, timeout=30) as client,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        client.post(CHAT, json=asked(stream=True), headers=KEY)
    with LatentMemory.open(served.store, embedder="hashing") as memory:
        until(lambda: bool(told(memory)))
        assert told(memory) == [[QUESTION, "Certainly, the answer is forty "]]
    assert "Traceback" not in served.log()


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be asked to end there")
def test_a_server_that_is_stopped_finishes_what_it_has_begun(served: Served, upstream: FakeOpenAI) -> None:
    upstream.gate = threading.Event()
    with (
        httpx2.Client(base_url=served.url, timeout=30) as client,
        client.stream("POST", CHAT, json=asked(stream=True), headers=KEY) as answer,
    ):
        chunks = answer.iter_raw()
        got = next(chunks)
        served.process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                httpx2.get(f"{served.url}/healthz")
            except httpx2.TransportError:
                return True
            return False

        until(refused)
        upstream.gate.set()
        got += b"".join(chunks)
    assert got == upstream.sent
    assert served.wait() == 0
    assert "Traceback" not in served.log()
    with LatentMemory.open(served.store, embedder="hashing") as memory:
        assert told(memory) == [[QUESTION, "Certainly, the answer is forty two."]]


def test_curl(served: Served, upstream: FakeOpenAI, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl")
    (tmp_path / "body.json").write_text(json.dumps(asked(stream=True)), encoding="utf-8")
    result = subprocess.run(
        [
            *(
                curl,
                "-sS",
                "-N",
                "--noproxy",
                "*",
                "-H",
                "Content-Type: application/json",
                "-H",
                "Authorization: Bearer k",
            ),
            *("--data-binary", f"@{tmp_path / 'body.json'}", f"{served.url}{CHAT}"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert result.stdout == upstream.sent
    assert b"forty" in result.stdout


def test_with_the_default_embedder(serve: Serve, upstream: FakeOpenAI) -> None:
    served = serve(args=["--upstream", upstream.url], embedder=None)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="sk-mine", max_retries=0) as client:
        for text in ("My puppy Biscuit turned three yesterday.", "The rent is due on the first of each month."):
            client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": text}])
        client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": "How old is my dog?"}],
            extra_headers={"Memory-Budget": "80"},
        )
        assert "Biscuit turned three" in upstream.last.text
        made = client.embeddings.create(model="latent-memory", input=["puppy", "young dog", "rent"])
        a, b, c = (np.array(item.embedding) for item in made.data)
        assert a @ b > a @ c


class _Flood:
    """An upstream that sends as fast as it is read; counts what it has sent."""

    def __init__(self, most: int) -> None:
        self.sent = 0
        self._most = most
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._socket.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head)
            event = b"data: " + json.dumps({"choices": [{"delta": {"content": "x" * 60_000}}]}).encode() + b"\n\n"
            while self.sent < self._most:
                connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
                self.sent += len(event)

    def close(self) -> None:
        self._socket.close()
        self._thread.join(20)


def test_an_upstream_is_read_no_faster_than_its_client_reads(serve: Serve) -> None:
    flood = _Flood(1 << 28)
    with contextlib.closing(flood):
        served = serve(args=["--upstream", flood.url])
        with (
            httpx2.Client(base_url=served.url, timeout=30) as client,
            client.stream("POST", CHAT, json=asked(stream=True), headers=KEY) as answer,
        ):
            next(answer.iter_raw())
            before = -1
            # It goes on until the buffers of four sockets are full.
            while flood.sent != before:
                before = flood.sent
                time.sleep(0.5)
            assert before < 1 << 26
    with LatentMemory.open(served.store, embedder="hashing") as memory:
        until(lambda: bool(told(memory)))
        # Of an answer without end, as much is kept as may be kept.
        assert sum(len(text) for text in told(memory)[0][1:]) <= 4_000_000


def test_text_is_in_the_log_where_that_is_asked_for(serve: Serve, upstream: FakeOpenAI) -> None:
    served = serve(args=["--upstream", upstream.url, "--log-text"])
    httpx2.post(f"{served.url}{CHAT}", json=asked("A secret about Biscuit"), headers=KEY)
    served.stop()
    (line,) = (json.loads(line) for line in served.log().splitlines() if '"/v1/chat' in line)
    assert line["said"] == "A secret about Biscuit"
    assert line["answered"] == "Certainly, the answer is forty two."
    assert "sk-of-the-client" not in served.log()


def test_text_is_not_in_the_log(served: Served) -> None:
    httpx2.post(f"{served.url}{CHAT}", json=asked("A secret about Biscuit"), headers=KEY)
    served.stop()
    assert "Biscuit" not in served.log()
    assert "sk-of-the-client" not in served.log()
