"""MCP as clients reach it: over stdio, a process that they start, and over HTTP, with keys."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.keys import KeyRing
from mcp_answers import text_of, told
from served import Served

Serve = Callable[..., Served]
Connect = Callable[..., AbstractAsyncContextManager[Client]]

PAGE = Path(__file__).parents[2] / "docs" / "mcp.md"
COMMAND = str(Path(sys.executable).with_name("latent-memory"))
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
_SECONDS = 60
TRIP = Conversation("trip", [Turn("user", "We fly to Osaka on 3 May.", name="Ana")], title="A trip to Osaka")
CAT = Conversation("cat", [Turn("user", "My cat Biscoito refuses the new food.")], title="The cat")


@asynccontextmanager
async def over_stdio(*arguments: object, mode: str = "auto", log: Path | None = None) -> AsyncIterator[Client]:
    parameters = StdioServerParameters(command=COMMAND, args=["mcp", *map(str, arguments)], env=ENVIRONMENT)
    with (log or Path(os.devnull)).open("w", encoding="utf-8") as errors:
        async with Client(stdio_client(parameters, errors), mode=mode) as client:
            yield client


@asynccontextmanager
async def over_http(
    url: str, key: str | None = None, *, mode: str = "auto", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Client]:
    shown = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx2.AsyncClient(headers={**shown, **(headers or {})}, timeout=_SECONDS) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


@pytest.fixture(params=["stdio", "http"])
def connect(request: pytest.FixtureRequest, store: Path, serve: Serve) -> Connect:
    """Return what connects a client to the store, both ways."""
    if request.param == "stdio":
        return lambda **more: over_stdio("--store", store, "--embedder", "hashing", **more)
    server = serve(store)
    return lambda **more: over_http(server.url, **more)


# -- both ways ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_add_recall_forget(connect: Connect, mode: str) -> None:
    """With the newest protocol, which has no handshake, and with the one that most clients speak."""
    async with connect(mode=mode) as client:
        assert (client.protocol_version >= "2026") == (mode == "auto")
        assert [tool.name for tool in (await client.list_tools()).tools] == [
            "recall",
            "context",
            "add",
            "forget",
            "list",
        ]
        added = await told(client, "add", text="Ana's cat is called Biscoito.", conversation_id="a/cat")
        assert added == {"conversation_id": "a/cat", "uri": "memory://conversations/a%2Fcat", "turns_added": 1}
        (turn,) = (await told(client, "recall", query="What is Ana's cat called?"))["turns"]
        assert (turn["text"], turn["conversation_id"]) == ("Ana's cat is called Biscoito.", "a/cat")
        assert "Biscoito" in (await told(client, "context", query="Ana's cat"))["text"]
        (resource,) = (await client.list_resources()).resources
        (contents,) = (await client.read_resource(resource.uri)).contents
        assert isinstance(contents, types.TextResourceContents)
        assert "Biscoito" in contents.text
        (message,) = (await client.get_prompt("with_memory", {"question": "Ana's cat?"})).messages
        assert isinstance(message.content, types.TextContent)
        assert re.fullmatch(r"<memory>\n.*Biscoito.*</memory>\n\nAna's cat\?", message.content.text, re.DOTALL)
        ref = types.ResourceTemplateReference(uri="memory://conversations/{id}")
        assert (await client.complete(ref, {"name": "id", "value": "a"})).completion.values == ["a/cat"]
        assert await told(client, "forget", conversation_ids=["a/cat"]) == {"forgotten": 1, "not_found": []}
        assert (await told(client, "recall", query="What is Ana's cat called?"))["turns"] == []
        with pytest.raises(MCPError, match="resource not found"):
            await client.read_resource(resource.uri)
        bad = await client.call_tool("recall", {"query": "cat", "k": 1000})
        assert bad.is_error
        assert "less than or equal to 50" in text_of(bad)


async def test_twenty_at_once(connect: Connect, store: Path) -> None:
    async with connect() as client:
        answers = await asyncio.gather(
            *(told(client, "add", text=f"Fact number {i} is true.", conversation_id="facts") for i in range(10)),
            *(told(client, "recall", query="Which fact is true?") for _ in range(5)),
            *(told(client, "list") for _ in range(5)),
        )
        assert sum(each.get("turns_added", 0) for each in answers) == 10
    with LatentMemory.open(store, embedder="hashing") as memory:
        found = memory.get("facts")
    assert found is not None
    assert sorted(turn.text for turn in found.turns) == [f"Fact number {i} is true." for i in range(10)]


async def test_what_one_client_adds_another_finds(store: Path, serve: Serve) -> None:
    server = serve(store)
    async with over_http(server.url) as first, over_stdio("--store", store) as second:
        await told(first, "add", text="We deploy on Tuesdays.")
        assert (await told(second, "recall", query="When do we deploy?"))["turns"][0][
            "text"
        ] == "We deploy on Tuesdays."
        await told(second, "add", text="The key is under the mat.")
        assert (await told(first, "recall", query="Where is the key?"))["turns"][0][
            "text"
        ] == "The key is under the mat."


# -- over HTTP: who sees what ---------------------------------------------------------------------------------


@pytest.fixture
def ring(store: Path) -> Iterator[KeyRing]:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(TRIP, scope="ana")
        memory.add(CAT, scope="bo")
    with KeyRing(store) as opened:
        yield opened


async def seen(client: Client) -> set[str]:
    """Return the ids of all that a client can get at, by every way there is."""
    listed = await told(client, "list")
    found = {each["conversation_id"] for each in listed["conversations"]}
    for query in ("the trip to Osaka", "Biscoito the cat"):
        found |= {turn["conversation_id"] for turn in (await told(client, "recall", query=query, k=50))["turns"]}
        found |= set((await told(client, "context", query=query))["conversation_ids"])
    found |= {resource.name for resource in (await client.list_resources()).resources}
    ref = types.ResourceTemplateReference(uri="memory://conversations/{id}")
    found |= set((await client.complete(ref, {"name": "id", "value": ""})).completion.values)
    for name in ("trip", "cat"):
        with suppress(MCPError):
            await client.read_resource(f"memory://conversations/{name}")
            found.add(name)
    return found


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_key_opens_its_scope_alone(ring: KeyRing, store: Path, serve: Serve, mode: str) -> None:
    ana, bo = ring.create("ana")[0], ring.create("bo")[0]
    server = serve(store)
    async with over_http(server.url, ana, mode=mode) as first, over_http(server.url, bo, mode=mode) as second:
        assert await seen(first) == {"trip"}
        assert await seen(second) == {"cat"}
        assert (await told(second, "forget", conversation_ids=["trip"]))["not_found"] == ["trip"]
        await told(second, "add", text="Bo was here.", conversation_id="trip")
        (message,) = (await second.get_prompt("with_memory", {"question": "the trip to Osaka"})).messages
        assert isinstance(message.content, types.TextContent)
        assert "3 May" not in message.content.text
    with LatentMemory.open(store, embedder="hashing") as memory:
        theirs = memory.get("trip", scope="ana")
        assert theirs is not None
        assert [turn.text for turn in theirs.turns] == ["We fly to Osaka on 3 May."]


async def test_without_a_key_nothing_opens(ring: KeyRing, store: Path, serve: Serve) -> None:
    key, info = ring.create("ana")
    expired = ring.create("ana", expires=datetime.now(UTC) + timedelta(seconds=0.01))[0]
    url = f"{serve(store).url}/mcp"
    for headers in ({}, {"Authorization": "Bearer lmem_" + "a" * 54}, {"Authorization": f"Bearer {expired}"}):
        answer = httpx2.post(url, json=CALL, headers={**ACCEPT, **headers})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx2.post(url, json=CALL, headers={**ACCEPT, "Memory-Key": key}).status_code == 200
    async with over_http(url.removesuffix("/mcp"), key) as client:
        assert await told(client, "list")
        ring.revoke(info.key_id)
        # From the next request on, though the client is still connected.
        with pytest.raises(MCPError):
            await client.call_tool("list", {})
    assert httpx2.post(url, json=CALL, headers={**ACCEPT, "Memory-Key": key}).status_code == 401


async def test_the_header_names_the_scope_among_those_that_a_key_opens(
    ring: KeyRing, store: Path, serve: Serve
) -> None:
    key = ring.create(["ana", "bo"])[0]
    server = serve(store)
    async with over_http(server.url, key, headers={"Memory-Scope": "ana"}) as client:
        assert await seen(client) == {"trip"}
    async with over_http(server.url, key, headers={"Memory-Scope": "bo"}) as client:
        assert await seen(client) == {"cat"}
    for headers in ({}, {"Memory-Scope": "eve"}):
        answer = httpx2.post(
            f"{server.url}/mcp", json=CALL, headers={**ACCEPT, "Authorization": f"Bearer {key}", **headers}
        )
        assert answer.status_code == 403
        assert answer.json()["code"] == "scope"


async def test_a_key_that_may_only_read(ring: KeyRing, store: Path, serve: Serve) -> None:
    key = ring.create("ana", read_only=True)[0]
    server = serve(store)
    async with over_http(server.url, key) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["recall", "context", "list"]
        for tool, arguments in (("add", {"text": "Mine."}), ("forget", {"conversation_ids": ["trip"]})):
            answer = await client.call_tool(tool, arguments)
            assert answer.is_error
            assert "only be read" in text_of(answer)
        assert await seen(client) == {"trip"}


ACCEPT = {"Accept": "application/json, text/event-stream"}
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list", "arguments": {}}}
HELLO = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


def test_a_session_of_one_key_serves_no_other(ring: KeyRing, store: Path, serve: Serve) -> None:
    """There are none to take over: what a request sees is what its own key opens, whatever session it names."""
    ana, bo = ring.create("ana")[0], ring.create("bo")[0]
    url = f"{serve(store).url}/mcp"

    def post(message: dict[str, Any], key: str, **headers: str) -> httpx2.Response:
        return httpx2.post(url, json=message, headers={**ACCEPT, "Authorization": f"Bearer {key}", **headers})

    opened = post(HELLO, ana)
    assert opened.status_code == 200
    assert "mcp-session-id" not in opened.headers
    for session in ("1", "a" * 32, opened.headers["x-request-id"]):
        theirs = {"Mcp-Session-Id": session, "MCP-Protocol-Version": "2025-06-18"}
        assert post({"jsonrpc": "2.0", "method": "notifications/initialized"}, ana, **theirs).status_code == 202
        for key, own in ((ana, "trip"), (bo, "cat"), (ana, "trip")):
            answer = post(CALL, key, **theirs).json()["result"]["structuredContent"]
            assert [each["conversation_id"] for each in answer["conversations"]] == [own]
    deleted = httpx2.delete(url, headers={"Authorization": f"Bearer {bo}", "Mcp-Session-Id": "1"})
    assert deleted.status_code == 405


def test_what_is_no_request_of_mcp(serve: Serve) -> None:
    url = f"{serve().url}/mcp"
    # A stream that nothing is ever sent on would only take room.
    answer = httpx2.get(url, headers={"Accept": "text/event-stream"})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    for content, status in (
        (b"{", 400),
        (b"[]", 400),
        (b'{"jsonrpc": "2.0"}', 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b" " * (33 << 20), 413),
    ):
        headers = {**ACCEPT, "Content-Type": "application/json"}
        assert httpx2.post(url, content=content, headers=headers).status_code == status, content[:20]
    assert httpx2.post(url, json=CALL, headers={"Accept": "text/html"}).status_code == 406
    assert httpx2.post(url, content=b"{}", headers={**ACCEPT, "Content-Type": "text/plain"}).status_code == 400
    unknown = httpx2.post(url, json={**CALL, "method": "tools/eat"}, headers=ACCEPT).json()
    assert unknown["error"]["code"] == types.METHOD_NOT_FOUND


def test_hosts_and_pages_are_checked_once(serve: Serve) -> None:
    """By the server, for all doors alike; the SDK's own check, which knows other names, does not come on top."""
    server = serve(args=["--allow-host", "memory.example", "--allow-origin", "https://chat.example"])

    def post(**headers: str) -> httpx2.Response:
        return httpx2.post(f"{server.url}/mcp", json=CALL, headers={**ACCEPT, **headers})

    assert post(Host="memory.example").status_code == 200
    assert post(Host="Memory.Example:8443").status_code == 200
    assert post(Host="evil.example").status_code == 421
    allowed = post(Origin="https://chat.example")
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
    assert post(Origin="https://evil.example").status_code == 403


def test_the_log_tells_the_tool_and_not_the_words(serve: Serve) -> None:
    server = serve()
    call = {**CALL, "params": {"name": "add", "arguments": {"text": "The safe opens with 4711."}}}
    for message in (HELLO, call, {**call, "params": {"name": "steal 4711", "arguments": {}}}):
        assert httpx2.post(f"{server.url}/mcp", json=message, headers=ACCEPT).status_code == 200
    odd = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"4711": 1}}
    assert httpx2.post(f"{server.url}/mcp", json=odd, headers=ACCEPT).status_code == 202
    metrics = httpx2.get(f"{server.url}/metrics").text
    server.stop()
    log = server.log()
    assert "4711" not in log
    # What the SDK logs is JSON too; only the greeting is for people.
    lines = [json.loads(line) for line in log.splitlines() if not line.startswith(("serving", "  http"))]
    assert "mcp.server.runner" in {line["logger"] for line in lines}
    told_of = [(line["route"], line.get("mcp"), line.get("tool")) for line in lines if line.get("route") == "/mcp"]
    assert ("/mcp", "tools/call", "add") in told_of
    assert 'latent_memory_requests_total{method="POST",route="/mcp",status="200"} 3.0' in metrics


# -- over stdio: the process ----------------------------------------------------------------------------------


class Raw:
    """A process that speaks MCP, without a client's help."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._errors: list[bytes] = []
        self._draining = threading.Thread(target=self._drain, daemon=True)
        self._draining.start()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        self._errors.append(self.process.stderr.read())

    def send(self, *messages: dict[str, Any] | bytes) -> None:
        assert self.process.stdin is not None
        for each in messages:
            self.process.stdin.write((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        message: dict[str, Any] = json.loads(self.process.stdout.readline())
        return message

    def end(self) -> tuple[int, list[dict[str, Any]], str]:
        """Close its input, wait, and return its exit code, what else it has said, and its standard error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        rest = [json.loads(line) for line in self.process.stdout.read().splitlines()]
        return self.process.wait(_SECONDS), rest, self.errors()

    def errors(self) -> str:
        """Return what it has written to standard error; waits for its end."""
        self._draining.join(_SECONDS)
        return b"".join(self._errors).decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.errors()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            # What was not read by a process that has gone.
            with suppress(OSError):
                stream.close()


@contextmanager
def raw(*command: object) -> Iterator[Raw]:
    process = Raw(*command)
    try:
        yield process
    finally:
        process.close()


def call(number: int, tool: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


READY = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def test_what_was_asked_is_answered_when_the_input_ends(store: Path) -> None:
    """All lines at once, and no more: what was asked is answered, and written, before the process ends."""
    with raw(COMMAND, "mcp", "--store", store, "--embedder", "hashing") as server:
        notes = [call(i, "add", text=f"Fact number {i} is true.", conversation_id="facts") for i in range(1, 6)]
        server.send(HELLO, READY, *notes, b"", call(9, "list"))
        code, said, errors = server.end()
    assert (code, errors) == (0, "")
    assert said[0]["result"]["serverInfo"]["name"] == "latent-memory"
    assert sorted(message["id"] for message in said) == [0, 1, 2, 3, 4, 5, 9]
    assert all(message["jsonrpc"] == "2.0" and "error" not in message for message in said)
    with LatentMemory.open(store, embedder="hashing", create=False) as memory:
        found = memory.get("facts")
    assert found is not None
    assert len(found.turns) == 5


def test_nothing_was_asked(store: Path) -> None:
    with raw(COMMAND, "mcp", "--store", store) as server:
        assert server.end() == (0, [], "")


@pytest.mark.skipif(sys.platform == "win32", reason="ends there at once, whatever the program wants")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_though_the_input_goes_on(store: Path, number: str) -> None:
    with raw(COMMAND, "mcp", "--store", store, "--embedder", "hashing") as server:
        server.send(HELLO, READY, call(1, "add", text="A fact."))
        assert [server.read()["id"], server.read()["id"]] == [0, 1]
        server.process.send_signal(getattr(signal, number))
        assert server.process.wait(_SECONDS) == 0
        assert server.end() == (0, [], "")
    with LatentMemory.open(store, embedder="hashing", create=False) as memory:
        assert memory.stats().turns == 1


def test_a_client_that_is_gone_ends_it(store: Path) -> None:
    with raw(COMMAND, "mcp", "--store", store, "--embedder", "hashing") as server:
        server.send(HELLO, READY)
        server.read()
        assert server.process.stdout is not None
        server.process.stdout.close()
        server.send(call(1, "list"))
        assert server.process.wait(_SECONDS) == 0


def test_what_is_no_message_is_told_and_passed_over(store: Path) -> None:
    with raw(COMMAND, "mcp", "--store", store, "--embedder", "hashing") as server:
        server.send(HELLO, b"hello?", b"\xff\xfe", b"[1]", b'{"jsonrpc": "2.0", "id": 3', READY, call(1, "list"))
        code, said, errors = server.end()
    assert code == 0
    told_of = [message.get("error", {}).get("code") for message in said if message.get("id") is None]
    assert told_of == [types.PARSE_ERROR] * 4
    assert {message["id"] for message in said} == {None, 0, 1}
    assert "hello?" not in errors


def test_a_long_message_is_one_line(store: Path) -> None:
    text = "word " * 150_000
    with raw(COMMAND, "mcp", "--store", store, "--embedder", "hashing") as server:
        server.send(HELLO, READY, call(1, "add", text=text, conversation_id="long"))
        server.read()
        assert server.read()["result"]["structuredContent"]["turns_added"] == 1
        read = {"jsonrpc": "2.0", "id": 2, "method": "resources/read", "params": {"uri": "memory://conversations/long"}}
        server.send(read)
        assert text.strip() in server.read()["result"]["contents"][0]["text"]
        assert server.end()[0] == 0


# Opens a memory when a file appears, and prints meanwhile.
SLOW = """
import os, sys, time
from pathlib import Path
from latent_memory.server import stdio
def opening():
    print("loading")
    os.write(1, b"a library's own words\\n")
    os.system("echo a child")
    print("nothing to read:", repr(sys.stdin.read()))
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    from latent_memory import LatentMemory
    return LatentMemory.open(sys.argv[1], embedder="hashing")
stdio.serve(opening, "default")
print("afterwards")
"""


def test_the_first_answer_does_not_wait_for_the_memory_and_output_is_the_protocols(store: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with raw(sys.executable, "-c", SLOW, store, go) as server:
        server.send(HELLO, READY, call(1, "add", text="A fact."), {"jsonrpc": "2.0", "id": 2, "method": "tools/list"})
        # The memory is not there yet, and two of three are answered.
        assert [server.read()["id"], server.read()["id"]] == [0, 2]
        go.touch()
        assert server.read()["result"]["structuredContent"]["turns_added"] == 1
        assert server.process.stdin is not None
        assert server.process.stdout is not None
        server.process.stdin.close()
        assert server.process.stdout.read().decode().splitlines() == ["afterwards"]
        assert server.process.wait(_SECONDS) == 0
        errors = server.errors()
    for noise in ("loading", "a library's own words", "a child", "nothing to read: ''"):
        assert noise in errors


def test_a_memory_that_cannot_be_opened(store: Path, tmp_path: Path) -> None:
    """Both are told: who reads standard error, and a client that has asked already."""
    with raw(COMMAND, "mcp", "--store", store, "--read-only") as server:
        server.send(HELLO, READY, call(1, "list"))
        code, said, errors = server.end()
    assert code == 2
    assert errors.count("\n") == 1
    assert f"no memory at {store}" in errors
    (answer,) = (message for message in said if message["id"] == 1)
    assert answer["result"]["isError"]
    assert f"no memory at {store}" in answer["result"]["content"][0]["text"]
    assert not store.exists()
    with raw(COMMAND, "mcp", "--store", store, "--scope", " ") as server:
        code, _, errors = server.end()
    assert (code, "scope: ' ' is no name" in errors) == (2, True)


async def test_scopes_over_stdio(ring: KeyRing, store: Path) -> None:
    async with over_stdio("--store", store, "--scope", "bo") as client:
        assert await seen(client) == {"cat"}
    async with over_stdio("--store", store, "--scope", "ana", "--read-only") as client:
        assert await seen(client) == {"trip"}
        assert [tool.name for tool in (await client.list_tools()).tools] == ["recall", "context", "list"]
        assert (await client.call_tool("forget", {"conversation_ids": ["trip"]})).is_error
        assert await seen(client) == {"trip"}


async def test_a_memory_in_a_file(tmp_path: Path) -> None:
    place = tmp_path / "memory.pkl"
    async with over_stdio("--store", place, "--embedder", "hashing") as client:
        assert (await told(client, "add", text="A fact about volcanoes."))["turns_added"] == 1
    with LatentMemory.open(place, embedder="hashing", create=False) as memory:
        assert memory.stats().turns == 1


async def test_with_the_default_embedder(store: Path) -> None:
    """By meaning: not one word of the question is in the answer."""
    async with over_stdio("--store", store) as client:
        for text in ("We moved to Lisbon in the spring.", "Green tea after lunch.", "The car needs new brakes."):
            await told(client, "add", text=text)
        found = await told(client, "recall", query="Which town do they live in?", k=1)
        assert found["turns"][0]["text"] == "We moved to Lisbon in the spring."


def test_without_the_extra(store: Path) -> None:
    program = f"import sys; sys.modules['mcp'] = None; sys.argv = ['latent-memory', 'mcp', '--store', {str(store)!r}]\n"
    program += "from latent_memory.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=_SECONDS, input="")
    assert run.returncode == 2
    assert run.stderr == ("latent-memory: mcp needs mcp. Install it with: pip install 'latent-memory[mcp]'\n")


def test_stdio_needs_nothing_of_the_server() -> None:
    program = (
        "import sys\n"
        "for name in ('fastapi', 'prometheus_client', 'uvloop', 'numpy', 'faiss'): sys.modules[name] = None\n"
        "import latent_memory.server.mcp, latent_memory.server.stdio"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=_SECONDS)


def test_there_is_no_protocol_without_files(cli: Callable[..., subprocess.CompletedProcess[str]], store: Path) -> None:
    result = cli("mcp", "--store", store)
    assert (result.returncode, result.stdout) == (2, "")
    assert "a client starts this command" in result.stderr


# -- what the page tells clients to do ------------------------------------------------------------------------


def configured() -> list[dict[str, Any]]:
    """Return the servers that the page's configurations name."""
    found = []
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        if language in ("json", "toml"):
            content = json.loads(block) if language == "json" else tomllib.loads(block)
            (servers,) = (value for key, value in content.items() if key != "inputs")
            found += servers.values()
    return found


def commands() -> list[list[str]]:
    """Return the commands, in configurations and after `--` in shell lines, that start a server."""
    lines = re.findall(
        r"^claude mcp add .* -- (.*)$|`codex mcp add \S+ -- ([^`]*)`", PAGE.read_text("utf-8"), re.MULTILINE
    )
    found = [shlex.split(first or second) for first, second in lines]
    return found + [[each["command"], *each["args"]] for each in configured() if "command" in each]


def test_the_page_has_configurations_for_both_ways() -> None:
    assert len(commands()) >= 7
    assert sum("command" not in each for each in configured()) >= 6


@pytest.mark.parametrize("command", sorted({tuple(command) for command in commands()}))
async def test_commands_of_the_page_start_a_server(command: tuple[str, ...], tmp_path: Path) -> None:
    program, *arguments = command
    assert program == "latent-memory"
    parameters = StdioServerParameters(
        command=COMMAND, args=arguments, env={**ENVIRONMENT, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    )
    async with Client(parameters) as client:
        assert (await told(client, "list"))["conversations"] == []


async def test_addresses_of_the_page_lead_to_the_server(ring: KeyRing, store: Path, serve: Serve) -> None:
    key = ring.create("me")[0]
    server = serve(store)
    shown = re.findall(r"--transport http memory (\S+) --header \"(\S+): (.*)\"", PAGE.read_text("utf-8"))
    assert shown
    remote = [{"url": url, "headers": {name: value}} for url, name, value in shown]
    remote += [each for each in configured() if "command" not in each]
    for each in remote:
        (address,) = (each[name] for name in ("url", "serverUrl", "httpUrl") if name in each)
        assert address == "http://127.0.0.1:8765/mcp"
        headers = dict(each.get("headers", each.get("http_headers", {})))
        if "bearer_token_env_var" in each:
            headers["Authorization"] = f"Bearer ${each['bearer_token_env_var']}"
        kind, value = headers["Authorization"].split()
        assert re.fullmatch(r"lmem_…|\$MEMORY_KEY|\$\{env:MEMORY_KEY\}|\$\{input:memory-key\}", value)
        headers["Authorization"] = f"{kind} {key}"
        async with over_http(server.url, headers=headers) as client:
            assert (await told(client, "list"))["conversations"] == []
