"""Embeddings and summaries over an OpenAI-compatible server: a real one, on this machine."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from latent_memory import Conversation, LatentMemory, LatentMemoryError, Turn
from latent_memory.embedders import Embedder
from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.embedders.openai import OpenAIEmbedder
from latent_memory.errors import EmbedderError, EmbedderMismatchError, EmbedderUnavailableError, InputError
from latent_memory.summarisers import summariser_by_name

Answer = tuple[int, dict[str, str], bytes]
Cli = Callable[..., CompletedProcess[str]]


class Server(ThreadingHTTPServer):
    """Answers as a well-behaved server does, unless `scripted` holds other answers, which go first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.dimension = 8
        self.shuffled = False
        self.summary: Any = "They talked."
        self.scripted: list[Answer] = []
        self.always: Answer | None = None
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        if self.scripted:
            return self.scripted.pop(0)
        if self.always is not None:
            return self.always
        if path == "/v1/chat/completions":
            return told({"choices": [{"message": {"role": "assistant", "content": self.summary}}]})
        assert path == "/v1/embeddings"
        vectors = HashingEmbedder(self.dimension).embed(body["input"]).tolist()
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        return told({"object": "list", "data": data[::-1] if self.shuffled else data})


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers.items()), body))
        status, headers, content = self.server.answer(self.path, body)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def told(value: object, status: int = 200, **headers: str) -> Answer:
    return status, {name.replace("_", "-"): text for name, text in headers.items()}, json.dumps(value).encode()


def embeddings(*vectors: object) -> Answer:
    return told({"data": [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make pauses take no time; return their lengths."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def embedder(server: Server) -> OpenAIEmbedder:
    return OpenAIEmbedder("test-model")


def one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message
    assert len(message) < 600
    return message


# -- embeddings ---------------------------------------------------------------------------------------------


def test_embed_asks_as_the_protocol_says(server: Server, embedder: OpenAIEmbedder) -> None:
    vectors = embedder.embed(["one", "two"])
    ((path, headers, body),) = server.asked
    assert path == "/v1/embeddings"
    assert body == {"model": "test-model", "input": ["one", "two"], "encoding_format": "float"}
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert vectors.shape == (2, 8)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_it_is_an_embedder(embedder: OpenAIEmbedder) -> None:
    assert isinstance(embedder, Embedder)
    assert embedder.name == "openai:test-model"


def test_the_key_is_sent(server: Server, embedder: OpenAIEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    embedder.embed(["one"])
    OpenAIEmbedder("test-model", api_key="sk-argument").embed(["one"])
    assert [headers["Authorization"] for _, headers, _ in server.asked] == [
        "Bearer sk-environment",
        "Bearer sk-argument",
    ]


@pytest.mark.parametrize("key", ["sk-test\n", " sk-test "])
def test_white_space_around_the_key_is_no_part_of_it(
    server: Server, embedder: OpenAIEmbedder, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    embedder.embed(["one"])
    assert server.asked[0][1]["Authorization"] == "Bearer sk-test"


@pytest.mark.parametrize("key", ["sk\ntest", "sk-größe-你好"])
def test_a_key_that_can_be_none(embedder: OpenAIEmbedder, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(LatentMemoryError, match="OPENAI_API_KEY") as caught:
        embedder.embed(["one"])
    assert "test" not in one_line(caught.value).replace("test-model", "")


def test_a_base_url_may_be_given_and_end_in_a_slash(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/never")
    OpenAIEmbedder("test-model", base_url=f"{server.url}/").embed(["one"])
    assert [path for path, _, _ in server.asked] == ["/v1/embeddings"]


def test_embeddings_come_in_any_order(server: Server, embedder: OpenAIEmbedder) -> None:
    texts = [f"text {number}" for number in range(20)]
    in_order = embedder.embed(texts)
    server.shuffled = True
    assert np.array_equal(embedder.embed(texts), in_order)


def test_many_texts_go_in_several_requests(server: Server, embedder: OpenAIEmbedder) -> None:
    texts = [f"text {number}" for number in range(300)]
    server.shuffled = True
    vectors = embedder.embed(texts)
    asked = [body["input"] for _, _, body in server.asked]
    assert [text for part in asked for text in part] == texts
    assert max(map(len, asked)) <= 128
    assert np.allclose(vectors, HashingEmbedder(8).embed(texts))


def test_no_texts_make_no_vectors(server: Server, embedder: OpenAIEmbedder) -> None:
    assert embedder.embed([]).shape == (0, 8)


def test_the_dimension_is_asked_for_once(server: Server, embedder: OpenAIEmbedder) -> None:
    assert (embedder.dimension, embedder.dimension) == (8, 8)
    assert len(server.asked) == 1
    embedder.embed(["one"])
    assert len(server.asked) == 2


def test_vectors_that_were_seen_tell_the_dimension(server: Server, embedder: OpenAIEmbedder) -> None:
    embedder.embed(["one"])
    assert embedder.dimension == 8
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server: Server, embedder: OpenAIEmbedder) -> None:
    server.scripted = [told({"error": "slow down"}, 429, Retry_After="0")]
    assert embedder.embed(["one"]).shape == (1, 8)
    assert len(server.asked) == 2
    assert server.asked[0][2] == server.asked[1][2]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_recovers(server: Server, embedder: OpenAIEmbedder, unhurried: list[float], status: int) -> None:
    server.scripted = [told({}, status)] * 4
    assert embedder.embed(["one"]).shape == (1, 8)
    assert unhurried == sorted(unhurried)


def test_the_server_says_how_long_to_wait(server: Server, embedder: OpenAIEmbedder, unhurried: list[float]) -> None:
    server.scripted = [told({}, 429, Retry_After="7")]
    embedder.embed(["one"])
    assert unhurried == [7]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_stays_busy(
    server: Server, embedder: OpenAIEmbedder, unhurried: list[float], status: int
) -> None:
    server.always = told({"error": {"message": "try later"}}, status)
    with pytest.raises(EmbedderUnavailableError) as caught:
        embedder.embed(["one"])
    message = one_line(caught.value)
    assert len(server.asked) == 5
    assert f"{server.url}/embeddings answered {status}" in message
    assert "try later" in message
    assert "does not answer" not in message


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_key(server: Server, embedder: OpenAIEmbedder, status: int) -> None:
    server.always = told({"error": {"message": "no key"}}, status)
    with pytest.raises(EmbedderUnavailableError) as caught:
        embedder.embed(["one"])
    message = one_line(caught.value)
    assert message.startswith(f"{server.url}/embeddings answered {status}: ")
    assert "no key" in message
    assert message.endswith("Set OPENAI_API_KEY.")
    assert len(server.asked) == 1


def test_an_error_of_many_lines_is_told_in_one(server: Server, embedder: OpenAIEmbedder) -> None:
    server.always = 401, {}, json.dumps({"error": {"message": "no key", "code": None}}, indent=4).encode()
    with pytest.raises(EmbedderUnavailableError, match="no key") as caught:
        embedder.embed(["one"])
    one_line(caught.value)


def test_the_key_is_not_told(server: Server, embedder: OpenAIEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.always = told({"error": "no"}, 401)
    with pytest.raises(EmbedderUnavailableError) as caught:
        embedder.embed(["one"])
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_server_that_refuses(server: Server, embedder: OpenAIEmbedder, status: int) -> None:
    server.always = told({"error": {"message": "model 'test-model' not found"}}, status)
    with pytest.raises(EmbedderUnavailableError, match=rf"answered {status}: .*'test-model' not found") as caught:
        embedder.embed(["one"])
    assert "OPENAI_API_KEY" not in one_line(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize("content", [b"", b"<html>hello</html>", b"\xff\xfe\0", b"{", b"<p>\n" * 1_000])
def test_an_answer_that_is_not_json(server: Server, embedder: OpenAIEmbedder, content: bytes) -> None:
    server.always = 200, {"Content-Type": "text/html"}, content
    with pytest.raises(EmbedderUnavailableError, match="answered with something else than JSON") as caught:
        embedder.embed(["one"])
    one_line(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        told(None),
        told([]),
        told(5),
        told({}),
        told({"error": {"message": "overloaded"}}),
        told({"data": None}),
        told({"data": 5}),
        told({"data": [None]}),
        told({"data": [{"index": 0}]}),
        told({"data": [{"index": 0, "embedding": None}]}),
        embeddings(5),
        embeddings("AACAPwAAAEA="),
        embeddings({"values": [1, 2]}),
        embeddings([None, 1]),
        embeddings(["a", "b"]),
        embeddings([[1, 2], [3, 4]]),
        embeddings([]),
        embeddings([float("nan"), 1]),
        embeddings([float("inf"), 1]),
    ],
    ids=lambda answer: answer[2].decode()[:50],
)
def test_an_answer_without_embeddings(server: Server, embedder: OpenAIEmbedder, answer: Answer) -> None:
    server.always = answer
    with pytest.raises(EmbedderError, match="openai:test-model") as caught:
        embedder.embed(["one"])
    one_line(caught.value)


@pytest.mark.parametrize("vector", [None, 5, [], {}, "AACAPwAAAEA="], ids=repr)
def test_a_dimension_that_cannot_be_told(server: Server, embedder: OpenAIEmbedder, vector: object) -> None:
    server.always = embeddings(vector)
    with pytest.raises(EmbedderError, match="openai:test-model"):
        _ = embedder.dimension


def test_items_without_an_index_are_not_guessed_at(server: Server, embedder: OpenAIEmbedder) -> None:
    server.always = told({"data": [{"embedding": [1, 0]}, {"embedding": [0, 1]}]})
    with pytest.raises(EmbedderUnavailableError, match="'index'"):
        embedder.embed(["one", "two"])


@pytest.mark.parametrize("indexes", [[0, 0], [1, 2], [None, None], ["0", 1]], ids=str)
def test_indexes_that_name_no_text(server: Server, embedder: OpenAIEmbedder, indexes: list[object]) -> None:
    server.always = told({"data": [{"index": i, "embedding": [1, 0]} for i in indexes]})
    with pytest.raises(EmbedderUnavailableError, match="openai:test-model"):
        embedder.embed(["one", "two"])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_wrong_number_of_embeddings(server: Server, embedder: OpenAIEmbedder, count: int) -> None:
    server.always = embeddings(*[[1, 0]] * count)
    with pytest.raises(EmbedderUnavailableError, match=f"the server sent {count} embeddings for 2 texts"):
        embedder.embed(["one", "two"])


def test_vectors_of_different_lengths(server: Server, embedder: OpenAIEmbedder) -> None:
    server.always = embeddings([1, 0], [1, 0, 0])
    with pytest.raises(EmbedderUnavailableError, match="vectors of different lengths"):
        embedder.embed(["one", "two"])


def test_a_dimension_that_changes(server: Server, embedder: OpenAIEmbedder) -> None:
    embedder.embed(["one"])
    server.dimension = 16
    with pytest.raises(EmbedderError, match=r"\(1, 16\).*\(1, 8\) was expected"):
        embedder.embed(["one"])


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, unhurried: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(EmbedderUnavailableError) as caught:
        OpenAIEmbedder("test-model").embed(["one"])
    message = one_line(caught.value)
    assert message.startswith(f"{url}/embeddings does not answer (")
    assert message.endswith("Is OPENAI_BASE_URL right?")
    assert not re.search(r"object at 0x|Max retries|HTTPConnectionPool", message)


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://127.0.0.1/v1", "http://", "http://[::1", "http://a b/", "127.0.0.1"]
)
def test_a_base_url_that_is_none(monkeypatch: pytest.MonkeyPatch, unhurried: list[float], url: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setattr(socket, "getaddrinfo", _no_such_name)
    with pytest.raises(EmbedderUnavailableError, match="OPENAI_BASE_URL") as caught:
        OpenAIEmbedder("test-model").embed(["one"])
    one_line(caught.value)


def _no_such_name(*_: object, **__: object) -> None:
    raise socket.gaierror("Name or service not known")


# -- summaries ----------------------------------------------------------------------------------------------

TALK = Conversation("c", [Turn("user", "When do we fly?", name="Ana"), Turn("assistant", "On 3 May.")])


def test_a_summary_is_asked_for(server: Server) -> None:
    server.summary = "  They fly on 3 May.\n"
    assert summariser_by_name("openai:chat")(TALK) == "They fly on 3 May."
    ((path, _, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("chat", 0)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "Ana: When do we fly?\nassistant: On 3 May."


def test_a_long_conversation_is_cut_in_its_middle(server: Server) -> None:
    turns = [Turn("user", f"number {i} " + "x" * 1_000) for i in range(100)]
    summariser_by_name("openai:chat")(Conversation("c", turns))
    asked = server.asked[0][2]["messages"][1]["content"]
    assert len(asked) < 25_000
    assert "number 0 " in asked
    assert "number 99 " in asked
    assert "number 50 " not in asked


def test_a_model_name_may_hold_colons(server: Server) -> None:
    summariser_by_name("openai:llama3:8b")(TALK)
    assert server.asked[0][2]["model"] == "llama3:8b"


@pytest.mark.parametrize("name", ["", "openai", "openai:", "minilm", "anthropic:model"])
def test_an_unknown_summariser(name: str) -> None:
    with pytest.raises(InputError, match="is unknown; use openai:MODEL"):
        summariser_by_name(name)


@pytest.mark.parametrize(
    "answer",
    [
        told({}),
        told([]),
        told(None),
        told({"choices": []}),
        told({"choices": None}),
        told({"choices": [{}]}),
        told({"choices": [{"message": None}]}),
        told({"choices": [{"message": {}}]}),
        told({"choices": [{"message": {"content": None}}]}),
        told({"choices": [{"message": {"content": 5}}]}),
        told({"choices": [{"message": {"content": ["x"]}}]}),
    ],
    ids=lambda answer: answer[2].decode()[:50],
)
def test_an_answer_without_a_message(server: Server, answer: Answer) -> None:
    server.always = answer
    with pytest.raises(EmbedderUnavailableError, match="openai:chat: the server's answer has no message") as caught:
        summariser_by_name("openai:chat")(TALK)
    one_line(caught.value)


def test_summaries_are_kept_and_not_asked_for_twice(server: Server, store: Path) -> None:
    server.summary = "They fly on 3 May."
    with LatentMemory.open(store, embedder="hashing", summariser="openai:chat") as memory:
        memory.add([TALK, Conversation("own", [Turn("user", "Hello there")], summary="Mine.")])
        assert memory.add(TALK).unchanged == 1
        found, own = memory.get("c"), memory.get("own")
    assert found is not None
    assert own is not None
    assert (found.summary, own.summary) == ("They fly on 3 May.", "Mine.")
    assert "summary" in found.generated
    assert len(server.asked) == 1


@pytest.mark.parametrize("summary", ["", "  \n", None])
def test_an_empty_summary_keeps_everything_out(server: Server, store: Path, summary: str | None) -> None:
    server.summary = summary
    with LatentMemory.open(store, embedder="hashing", summariser="openai:chat") as memory:
        with pytest.raises(LatentMemoryError):
            memory.add(TALK)
        assert memory.stats().conversations == 0


# -- the full path ------------------------------------------------------------------------------------------

TALKS = [
    Conversation("trip", [Turn("user", "When does our flight to Osaka leave?"), Turn("assistant", "On 3 May.")]),
    Conversation("cat", [Turn("user", "My cat Biscoito refuses the new food.")]),
]


def test_add_recall_and_open_again(server: Server, store: Path) -> None:
    server.dimension = 64
    server.shuffled = True
    with LatentMemory.open(store, embedder="openai:test-model") as memory:
        assert memory.add(TALKS).added == 2
        assert memory.recall("flight Osaka")[0].passage.conversation_id == "trip"
        stats = memory.stats()
        assert (stats.embedder, stats.dimension) == ("openai:test-model", 64)
    with LatentMemory.open(store) as memory:
        assert memory.embedder.name == "openai:test-model"
        assert memory.recall("Biscoito food")[0].passage.conversation_id == "cat"
        assert memory.add(TALKS).unchanged == 2
    assert {body["model"] for _, _, body in server.asked} == {"test-model"}


def test_a_model_that_changed_its_dimension_is_refused(server: Server, store: Path) -> None:
    with LatentMemory.open(store, embedder="openai:test-model") as memory:
        memory.add(TALKS)
    server.dimension = 16
    with LatentMemory.open(store) as memory:
        with pytest.raises(EmbedderMismatchError) as recalled:
            memory.recall("Osaka")
        with pytest.raises(EmbedderMismatchError):
            memory.add(Conversation("new", [Turn("user", "Hello there")]))
        assert memory.stats().conversations == 2
    message = one_line(recalled.value)
    assert "8 numbers" in message
    assert "16" in message.replace(str(store), "")


def test_a_model_that_changed_its_dimension_can_be_moved_to(server: Server, store: Path) -> None:
    with LatentMemory.open(store, embedder="openai:test-model") as memory:
        memory.add(TALKS)
    server.dimension = 16
    with LatentMemory.open(store) as memory:
        assert memory.reembed("openai:test-model") == 3
        assert memory.recall("flight Osaka")[0].passage.conversation_id == "trip"
        assert memory.stats().dimension == 16


def test_a_server_that_fails_leaves_the_memory_as_it_was(server: Server, store: Path) -> None:
    with LatentMemory.open(store, embedder="openai:test-model") as memory:
        memory.add(TALKS)
        server.always = told({"error": "no"}, 401)
        with pytest.raises(EmbedderUnavailableError):
            memory.add(Conversation("new", [Turn("user", "Hello there")]))
        with pytest.raises(EmbedderUnavailableError):
            memory.recall("Osaka")
        with pytest.raises(EmbedderUnavailableError):
            memory.reembed("openai:other-model")
        server.always = None
        assert memory.stats().conversations == 2
        assert memory.recall("flight Osaka")[0].passage.conversation_id == "trip"


def test_what_needs_no_vectors_asks_no_server(server: Server, store: Path) -> None:
    with LatentMemory.open(store, embedder="openai:test-model") as memory:
        memory.add(TALKS)
    server.asked.clear()
    with LatentMemory.open(store) as memory:
        assert memory.get("trip") is not None
        assert len(memory.conversations()) == 2
        assert memory.stats().dimension == 8
        assert memory.forget("cat") == 1
    assert server.asked == []


def test_moving_from_one_embedder_to_a_server(server: Server, store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(TALKS)
        assert memory.reembed("openai:test-model") == 3
        assert memory.stats().embedder == "openai:test-model"
    with LatentMemory.open(store) as memory:
        assert memory.recall("flight Osaka")[0].passage.conversation_id == "trip"


def test_the_command_line_with_a_server(server: Server, store: Path, cli: Cli) -> None:
    line = json.dumps({"conversation_id": "c", "messages": [{"role": "user", "content": "We fly to Osaka"}]}).encode()
    models = ("--embedder", "openai:test-model", "--summariser", "openai:chat")
    assert cli("add", "-", "--store", store, *models, stdin=line).returncode == 0
    assert json.loads(cli("show", "c", "--store", store, "--json").stdout)["summary"] == "They talked."
    hits = json.loads(cli("recall", "Osaka", "--store", store, "--json").stdout)
    assert [hit["conversation_id"] for hit in hits] == ["c"]


def test_the_command_line_tells_a_refusal_in_one_line(server: Server, store: Path, cli: Cli) -> None:
    server.always = 401, {}, json.dumps({"error": {"message": "no key"}}, indent=4).encode()
    line = json.dumps({"messages": [{"role": "user", "content": "We fly to Osaka"}]}).encode()
    result = cli("add", "-", "--store", store, "--embedder", "openai:test-model", stdin=line)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"latent-memory: {server.url}/embeddings answered 401: ")
    assert result.stderr.count("\n") == 1
