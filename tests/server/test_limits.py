"""What a server bears: busy stores, clients that are slow, large or gone, and an end in the middle of it all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chats import CHAT, KEY, QUESTION, asked, told, until
from fake_openai import FakeOpenAI
from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.keys import KeyRing
from latent_memory.server import connections
from latent_memory.server.app import create_app
from latent_memory.server.running import address, listen, server_of
from latent_memory.server.service import Service
from latent_memory.server.settings import Settings
from latent_memory.server.upstream import HttpUpstream
from served import Served

M = "/v1/memory"
Serve = Callable[..., Served]


class Running:
    """A server in a thread of this process, with any settings, on a real socket."""

    def __init__(self, memory: LatentMemory, keys: KeyRing | None = None, **settings: Any) -> None:
        given = Settings(port=0, **settings)
        listening = listen(given)
        self.url = address(given, listening)
        self.place = listening.getsockname()[:2]
        up = threading.Event()
        self.server = server_of(create_app(memory, given, keys), given, up.set)
        self._thread = threading.Thread(target=self.server.run, args=([listening],), daemon=True)
        self._thread.start()
        assert up.wait(20)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=30, **more)

    def post(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, timeout=30, **more)

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(self.place, timeout=20)
        connection.sendall(sent)
        return connection

    def stop(self, *, forced: bool = False) -> None:
        self.server.should_exit, self.server.force_exit = True, forced
        self._thread.join(60)
        assert not self._thread.is_alive()


Run = Callable[..., Running]


@pytest.fixture
def run(memory: LatentMemory) -> Iterator[Run]:
    with contextlib.ExitStack() as stack:

        def start(keys: KeyRing | None = None, **settings: Any) -> Running:
            running = Running(memory, keys, **settings)
            stack.callback(running.stop)
            return running

        yield start


@contextlib.contextmanager
def writing(store: Path) -> Iterator[None]:
    """Hold the store's write lock, as another process that writes for long."""
    with contextlib.closing(sqlite3.connect(store / "memory.sqlite", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def unfinished(length: int = 100, *, headers: str = "", kind: str = "application/json", path: str = "recall") -> bytes:
    """Return a request whose body does not come."""
    head = f"POST {M}/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
    return f"{head}{headers}\r\n".encode()


def answer_on(connection: socket.socket) -> bytes:
    """Return everything that comes until the connection is closed."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def trickled(connection: socket.socket, data: bytes) -> bool:
    """Send a little now and then; tell whether the connection is closed at last."""
    try:
        for _ in range(1_000):
            connection.sendall(data)
            threading.Event().wait(0.01)
    except ConnectionError:
        return True
    return False


# -- a store that is busy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_chats_and_reads_do_not_wait_for_a_busy_store(
    run: Run, memory: LatentMemory, store: Path, upstream: FakeOpenAI, stream: bool
) -> None:
    memory.add(Conversation("trip/1", [Turn("user", "My dog is called Biscuit.")]))
    running = run(upstream=upstream.url)
    with ThreadPoolExecutor(20) as pool, writing(store):
        added = [
            pool.submit(running.post, f"{M}/add", json={"messages": [{"role": "user", "content": f"Note {i}"}]})
            for i in range(9)
        ]
        began = time.monotonic()
        chats = list(
            pool.map(lambda i: running.post(CHAT, json=asked(f"{i}: {QUESTION}", stream=stream), headers=KEY), range(9))
        )
        assert {chat.status_code for chat in chats} == {200}
        assert "Biscuit" in upstream.last.text
        assert running.get(f"{M}/conversations").json()["conversations"]
        assert running.get(f"{M}/conversations/trip%2F1").status_code == 200
        assert running.post(f"{M}/recall", json={"query": "dog"}).json()["hits"]
        assert time.monotonic() - began < 8
        assert not any(each.done() for each in added)
    assert {each.result().status_code for each in added} == {200}
    until(lambda: len(told(memory)) == 18)


# -- what is not to be read -----------------------------------------------------------------------------------


@pytest.fixture(params=["httptools", "h11"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose what reads HTTP; without httptools, uvicorn takes h11."""
    if request.param == "h11":
        monkeypatch.setattr(connections, "HttpToolsProtocol", None)


@pytest.mark.usefixtures("parser")
def test_headers_that_do_not_end(run: Run) -> None:
    running = run()
    with running.connect(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: ") as connection:
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 64 << 20:
                connection.sendall(b"a" * (1 << 16))
                sent += 1 << 16
        # What lies in the buffers of two sockets was sent, and not read.
        assert sent < 32 << 20
    assert running.get("/healthz", headers={"X-A": "a" * 50_000}).status_code == 200


def test_headers_that_are_too_large(run: Run) -> None:
    running = run()
    refused = (b"HTTP/1.1 431", b"")
    for many in (b"X-A: " + b"a" * 70_000 + b"\r\n", b"X-A: aaaaaaaaaa\r\n" * 6_000):
        with running.connect(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n") as connection:
            assert answer_on(connection)[:12] in refused
    with running.connect(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        assert answer_on(connection)[:12] in refused
    chunked = unfinished().replace(b"Content-Length: 100", b"Transfer-Encoding: chunked")
    for more in (b"1;" + b"x" * 500_000, b"0\r\n" + b"X-A: aaaaaaaaaa\r\n" * 30_000):
        with running.connect() as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(chunked + more)
            answer_on(connection)
    assert running.get("/healthz", headers={"X-A": "a" * 50_000}).status_code == 200


@pytest.mark.usefixtures("parser")
def test_requests_that_do_not_come(run: Run) -> None:
    running = run(head_seconds=0.3)
    began = time.monotonic()
    for sent in (b"", b"GET /hea", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"):
        with running.connect(sent) as connection:
            assert connection.recv(1) == b""
    # Also if a little comes now and then.
    with running.connect() as connection:
        assert trickled(connection, b"A")
    # Neither does what comes after a request that was refused keep it open.
    with running.connect(unfinished(1 << 30)) as connection:
        assert trickled(connection, b" ")
    assert time.monotonic() - began < 10


def test_a_request_that_is_answered_takes_its_time(run: Run, upstream: FakeOpenAI) -> None:
    upstream.gate = threading.Event()
    running = run(upstream=upstream.url, head_seconds=0.2, body_seconds=0.2)
    with (
        httpx2.Client(base_url=running.url, timeout=30) as client,
        client.stream("POST", CHAT, json=asked(stream=True), headers=KEY) as answer,
    ):
        chunks = answer.iter_raw()
        got = next(chunks)
        threading.Event().wait(0.6)
        upstream.gate.set()
        got += b"".join(chunks)
    assert got == upstream.sent


def test_more_connections_than_may_be_open(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LEAST_CONNECTIONS", 4)
    running = run(most_at_once=1)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(running.connect())
        until(lambda: len(running.server.server_state.connections) == 4)
        with running.connect() as connection:
            connection.settimeout(10)
            assert answer_on(connection) == b""
    until(lambda: not running.server.server_state.connections)
    assert running.get("/healthz").status_code == 200


def test_the_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (200, 4096))
    assert connections.most_connections(Settings()) == 150
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert connections.most_connections(Settings()) == 1024
    assert connections.most_connections(Settings(most_at_once=10)) == 512


# -- bodies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [f"{M}/recall", f"{M}/add", CHAT, "/v1/embeddings", "/mcp"])
def test_bodies_that_stop_coming(run: Run, path: str) -> None:
    running = run(body_seconds=0.2, upstream="http://127.0.0.1:9")
    with running.connect(unfinished().replace(f"{M}/recall".encode(), path.encode()) + b'{"query":') as connection:
        answer = answer_on(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"nothing came of it for 0.2 s" in answer


def test_streams_of_conversations_may_be_slow(run: Run, memory: LatentMemory) -> None:
    running = run(body_seconds=0.1, most_at_once=16)
    line = json.dumps({"messages": [{"role": "user", "content": "slow"}]}).encode() + b"\n"
    kind = "application/x-ndjson"
    with running.connect(unfinished(2 * len(line), kind=kind, path="add") + line) as connection:
        until(lambda: memory.scopes() == {"default": 1})
        # One at a time of sixteen requests.
        second = running.post(f"{M}/add", content=line, headers={"Content-Type": kind})
        assert second.status_code == 503
        assert "streams" in second.json()["detail"]
        connection.sendall(line)
        got = b""
        while b'"done": true' not in got:
            got += connection.recv(1 << 16)
    until(lambda: running.post(f"{M}/add", content=line, headers={"Content-Type": kind}).status_code == 200)


def test_one_key_does_not_take_all_places(run: Run, keys: KeyRing) -> None:
    one, other = (keys.create(scopes=[name])[0] for name in ("ana", "ben"))
    running = run(keys, most_at_once=4)
    bearer = [{"Authorization": f"Bearer {key}"} for key in (one, other)]
    stalled = unfinished(headers=f"Authorization: Bearer {one}\r\n")
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(running.connect(stalled))
        until(lambda: running.get(f"{M}/stats", headers=bearer[0]).status_code == 503)
        assert running.get(f"{M}/stats", headers=bearer[1]).status_code == 200
        for path in ("/healthz", "/metrics"):
            assert running.get(path, headers=bearer[0]).status_code == 200
    until(lambda: running.get(f"{M}/stats", headers=bearer[0]).status_code == 200)


@pytest.mark.parametrize("path", [CHAT, f"{M}/recall", "/mcp"])
def test_json_of_too_many_values(run: Run, path: str) -> None:
    running = run(upstream="http://127.0.0.1:9")
    many = b'{"query": "x", "model": "m", "messages": [], "more": [' + b",".join([b"[]"] * 1_000_000) + b"]}"
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    answer = running.post(path, content=many, headers=headers)
    assert answer.status_code == 413
    assert "300,000 values" in answer.text


def test_a_long_text_with_many_commas_is_read(run: Run) -> None:
    text = 'He said, "well, [then] {so} be it", \\, and left. ' * 60_000
    answer = run().post(f"{M}/recall", json={"query": text[:2_000], "now": None})
    assert answer.status_code == 200
    from latent_memory.server.bodies import check_values

    check_values(json.dumps({"messages": [{"role": "user", "content": text}]}).encode())


# -- clients that have left -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [f"{M}/recall", "/v1/embeddings"])
def test_nothing_is_begun_for_clients_that_have_left(
    run: Run, memory: LatentMemory, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    running = run()
    until(lambda: running.get("/readyz").status_code == 200)
    name = "recall" if path.endswith("recall") else "embed"
    kind: Any = type(memory) if name == "recall" else type(memory.embedder)
    work = getattr(kind, name)
    go_on, begun = threading.Event(), list[object]()

    def slow(*args: object, **more: object) -> object:
        begun.append(args)
        assert go_on.wait(20)
        return work(*args, **more)

    monkeypatch.setattr(kind, name, slow)
    body = json.dumps({"query": "x"} if name == "recall" else {"model": "latent-memory", "input": ["x"] * 200}).encode()
    request = unfinished(len(body)).replace(f"{M}/recall".encode(), path.encode()) + body
    for _ in range(30):
        running.connect(request).close()
    until(lambda: "latent_memory_requests_going_on 1.0" in running.get("/metrics").text)
    before = len(begun)
    go_on.set()
    answer = running.post(path, json={"query": "x"} if name == "recall" else {"model": "latent-memory", "input": "x"})
    assert answer.status_code == 200
    assert len(begun) == before + 1 < 30


def test_more_text_than_is_embedded_at_once(run: Run) -> None:
    running = run()
    answer = running.post("/v1/embeddings", json={"model": "latent-memory", "input": ["word " * 100_000] * 5})
    assert answer.status_code == 413
    assert "2,000,000" in answer.json()["error"]["message"]
    texts = [f"text number {i}" for i in range(70)]
    made = running.post("/v1/embeddings", json={"model": "latent-memory", "input": texts}).json()
    alone = running.post("/v1/embeddings", json={"model": "latent-memory", "input": texts[40]}).json()
    assert [each["index"] for each in made["data"]] == list(range(70))
    assert made["data"][40]["embedding"] == alone["data"][0]["embedding"]
    assert made["usage"]["total_tokens"] > 70


# -- the end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forced", [False, True])
def test_an_end_in_the_middle_of_answers(
    run: Run, memory: LatentMemory, upstream: FakeOpenAI, caplog: pytest.LogCaptureFixture, forced: bool
) -> None:
    """What has come of an answer is kept, whether the time for it is over or somebody is in a hurry."""
    upstream.gate = threading.Event()
    running = run(upstream=upstream.url, shutdown_seconds=60 if forced else 0)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(httpx2.Client(base_url=running.url, timeout=30))
        for number in range(3):
            body = asked(f"Question number {number}", stream=True)
            answer = stack.enter_context(client.stream("POST", CHAT, json=body, headers=KEY))
            got, chunks = b"", answer.iter_raw()
            while b"forty" not in got:
                got += next(chunks)
        running.stop(forced=forced)
    assert sorted(told(memory)) == [[f"Question number {n}", "Certainly, the answer is forty "] for n in range(3)]
    assert not [record for record in caplog.records if record.exc_info]
    # Once more, it does nothing.
    running.stop()


@pytest.mark.parametrize("by", ["stop", "lifespan"])
async def test_answers_end_before_what_they_are_made_with(
    memory: LatentMemory, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    events: list[str] = []

    async def closing(*_: object) -> None:
        events.append("upstream closed")

    monkeypatch.setattr(HttpUpstream, "__aexit__", closing)
    app = create_app(memory, Settings(upstream="http://127.0.0.1:9"))
    service: Service = app.state.service

    async def keep() -> None:
        await service.write(events.append, "kept")

    begun = asyncio.Event()

    async def answer() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            service.spawn(keep(), "keeping")
            events.append("ended")

    async def relay() -> None:
        working = asyncio.ensure_future(answer())
        with service.relaying(working):
            await asyncio.wait([working])

    async with app.router.lifespan_context(app):
        relaying = asyncio.create_task(relay())
        await begun.wait()
        if by == "stop":
            await service.stop()
            assert events == ["ended", "kept"]
    await relaying
    assert events.index("ended") < events.index("upstream closed")
    assert "kept" in events


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signal for another process")
def test_ctrl_c_twice(serve: Serve, upstream: FakeOpenAI) -> None:
    served = serve(args=["--upstream", upstream.url])
    upstream.gate = threading.Event()
    with (
        httpx2.Client(base_url=served.url, timeout=30) as client,
        client.stream("POST", CHAT, json=asked(stream=True), headers=KEY) as answer,
    ):
        got, chunks = b"", answer.iter_raw()
        while b"forty" not in got:
            got += next(chunks)
        served.process.send_signal(signal.SIGINT)

        def refused() -> bool:
            with contextlib.suppress(httpx2.TransportError):
                httpx2.get(f"{served.url}/healthz")
                return False
            return True

        until(refused)
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(20) == 0
    served.wait()
    assert "Traceback" not in served.log()
    with LatentMemory.open(served.store, embedder="hashing") as memory:
        assert told(memory) == [[QUESTION, "Certainly, the answer is forty "]]


def test_logs_of_the_server_hold_no_secret(
    run: Run, keys: KeyRing, upstream: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """Through all doors, also of what was refused or went wrong, and by all that writes logs."""
    caplog.set_level(logging.DEBUG)
    key, _ = keys.create(scopes=["secret-scope"])
    gone, info = keys.create(scopes=["secret-scope"])
    keys.revoke(info.key_id)
    running = run(keys, upstream=upstream.url)
    both = {"Memory-Key": key, "Authorization": "Bearer sk-secret"}
    json_only = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    upstream.reply = lambda _: "SECRET answer"
    for stream in (False, True):
        assert running.post(CHAT, json=asked("SECRET question", stream=stream), headers=both).status_code == 200
    for shown in (gone, key + "x", "lmem_wrong-secret", "secret"):
        assert running.get(f"{M}/stats", headers={"Authorization": f"Bearer {shown}"}).status_code == 401
    tool = {"name": "recall", "arguments": "SECRET one"}
    for params in (tool, {"name": ["SECRET two"]}, {"name": "SECRET"}, {"name": "recall", "arguments": {"SECRET": 1}}):
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        running.post("/mcp", json=call, headers=both | json_only)
    running.post("/mcp", content=b"SECRET {", headers=both | json_only)
    for path in (CHAT, f"{M}/add", f"{M}/recall"):
        for body in (b"SECRET", b'{"SECRET": 1}', b'{"messages": [{"role": "SECRET", "content": 7}], "query": 3}'):
            assert running.post(path, content=body, headers=both | json_only).status_code in (200, 400, 422)
    upstream.answers[CHAT] = (200, {"Content-Type": "application/json"}, b"SECRET, and no JSON")
    running.post(CHAT, json=asked("SECRET question"), headers=both)
    running.get(f"{M}/conversations/SECRET?scope=secret-scope&key={key}", headers=both)
    running.get(f"/nowhere/SECRET?{key}", headers=both | {"X-Request-ID": key})
    with running.connect(f"GARBAGE {key} SECRET\r\n\r\n".encode()) as connection:
        answer_on(connection)
    running.stop()
    # Of the libraries, `log_to` writes warnings and errors.
    least = {"latent_memory": logging.DEBUG, "uvicorn": logging.WARNING, "mcp": logging.WARNING}
    ours = [each for each in caplog.records if each.levelno >= least.get(each.name.partition(".")[0], 99)]
    assert {"latent_memory", "uvicorn"} <= {each.name.partition(".")[0] for each in ours}
    everything = repr([vars(each) | {"said": each.getMessage()} for each in ours])
    for secret in (key, key.rpartition("_")[2], gone, "lmem_", "sk-secret", "SECRET", "secret-scope"):
        found = everything.find(secret)
        assert found < 0, everything[max(0, found - 300) : found + 100]
