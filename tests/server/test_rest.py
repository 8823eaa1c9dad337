"""REST: what each route takes and answers, and that what it has acknowledged is there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gzip
import json
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.adapters import CONFIG, WEIGHTS, Manifest, seen_of
from latent_memory.errors import StoreFullError
from latent_memory.keys import KeyRing
from latent_memory.output import context_json, conversation_json, hit_json
from latent_memory.server import adding
from latent_memory.server.schemas import components
from served import Served

M = "/v1/memory"
NDJSON = {"Content-Type": "application/x-ndjson"}
CURL = shutil.which("curl")
ROOT = Path(__file__).parent.parent.parent

MakeClient = Callable[..., TestClient]
Serve = Callable[..., Served]

TRIP = Conversation(
    "trip",
    [Turn("user", "When do we fly to Lisbon?", name="Ana"), Turn("assistant", "On 8 May, at 7 in the morning.")],
    metadata={"app": "travel", "large": 12345678901234567890123},
)
WELL = Conversation("well", [Turn("user", "The well in the garden has run dry.", datetime(2023, 5, 8, tzinfo=UTC))])
NOTE = Conversation("note", summary="They like green tea.")
ODD = [
    Conversation(each, [Turn("user", f"Of {i}.")]) for i, each in enumerate(("a/b", "/x/", "ä ö\n", "%2F", "?#", "\0"))
]


@pytest.fixture
def client(app_client: TestClient, memory: LatentMemory) -> TestClient:
    memory.add([TRIP, WELL, NOTE])
    return app_client


def quoted(conversation_id: str) -> str:
    return "".join(f"%{byte:02X}" for byte in conversation_id.encode())


def one(conversation_id: str | None, *texts: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]
    return ({} if conversation_id is None else {"conversation_id": conversation_id}) | {"messages": messages} | more


def lines(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def told(response: httpx2.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.splitlines()]


def problem(response: httpx2.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found = response.json()
    assert found["status"] == status
    assert found["request_id"] == response.headers["x-request-id"]
    assert found["detail"]
    return str(found["detail"])


# -- add ------------------------------------------------------------------------------------------------------


def test_add_takes_one(app_client: TestClient, memory: LatentMemory) -> None:
    body = one("trip", "When do we fly?", "On 8 May.", title="Lisbon", metadata={"app": [1]})
    first = app_client.post(f"{M}/add", json=body)
    assert first.status_code == 200
    assert first.json() == {
        **{"added": 1, "changed": 0, "unchanged": 0, "turns_added": 2, "turns_changed": 0, "turns_unchanged": 0},
        **{"conversation_ids": ["trip"], "skipped": {}},
    }
    assert app_client.post(f"{M}/add", json=body).json()["unchanged"] == 1
    found = memory.get("trip")
    assert found is not None
    assert (found.title, found.metadata, len(found.turns)) == ("Lisbon", {"app": [1]}, 2)


def test_add_takes_several_and_tells_their_ids(app_client: TestClient, memory: LatentMemory) -> None:
    parts = [{"type": "text", "text": "Look."}, {"type": "image_url", "image_url": {"url": "x"}}]
    body = {
        "conversations": [
            one(None, "Without an id."),
            one("empty") | {"messages": [{"role": "assistant", "content": ""}, {"role": "user", "content": parts}]},
            one("note") | {"summary": "They like green tea."},
            one(7, "A number will do."),  # type: ignore[arg-type]
        ]
    }
    report = app_client.post(f"{M}/add", json=body, headers={"Memory-Scope": "ana"}).json()
    assert report["added"] == 4
    assert report["skipped"] == {"an empty message": 1, "an image": 1}
    assert report["conversation_ids"][1:] == ["empty", "note", "7"]
    assert set(memory.conversation_ids(scope="ana")) == set(report["conversation_ids"])
    generated = memory.get(report["conversation_ids"][0], scope="ana")
    assert generated is not None
    assert "conversation_id" in generated.generated


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, '"messages": a list of messages was expected, not none'),
        ([], "body: an object was expected, not a list"),
        ({"messages": []}, '"messages": a list of messages was expected, not empty'),
        ({"messages": [{"role": "user"}]}, "messages[0].content: empty"),
        ({"messages": [{"role": "poet", "content": "x"}]}, "messages[0].role: 'poet' is unknown"),
        (one("a", "x", titel="y"), "'titel': unknown; a conversation has"),
        (one("a", "x", timestamp="yesterday"), "timestamp: 'yesterday' is no time"),
        (one("a", "x", title="\ud800"), "half of a surrogate pair"),
        (one("a", "x", metadata={"\udfff": 1}), "half of a surrogate pair"),
        (one("a", "x", scope=5), "scope: a text was expected, not a number"),
        ({"conversations": {}}, "conversations: a list was expected, not an object"),
        ({"conversations": [], "scop": "x"}, "'scop': unknown beside conversations"),
        ({"conversations": [one("a", "x"), one("b", "x", scope="c")]}, "conversations[1]: 'scope': unknown"),
        ({"conversations": [one("a", "x"), {"messages": 5}]}, 'conversations[1]: "messages"'),
    ],
)
def test_what_cannot_be_added_is_told_and_nothing_is(
    app_client: TestClient, memory: LatentMemory, body: object, detail: str
) -> None:
    for response in (
        app_client.post(f"{M}/add", content=json.dumps(body), headers={"Content-Type": "application/json"}),
        app_client.put(f"{M}/conversations/a", content=json.dumps(body), headers={"Content-Type": "application/json"}),
    ):
        if "conversations" not in json.dumps(body) or response.request.method == "POST":
            assert detail in problem(response, 422)
        else:
            assert "'conversations': unknown" in problem(response, 422)
    assert memory.scopes() == {}


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("route", ["add", "recall", "context", "forget"])
@pytest.mark.parametrize(
    ("content", "headers", "status", "detail"),
    [
        (b"", JSON, 400, "not JSON"),
        (b"{", JSON, 400, "not JSON"),
        (b'{"query": NaN}', JSON, 400, "NaN is no number of JSON's"),
        (b'{"query": -Infinity}', JSON, 400, "Infinity"),
        (b'{"query": "\xff"}', JSON, 400, "not UTF-8 (byte 11)"),
        (b"[" * 65 + b"]" * 65, JSON, 400, "nested too deeply; at most 64 levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, JSON, 400, "nested too deeply"),
        (b'{"query": ' + b"9" * 5000 + b"}", JSON, 400, "not JSON"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "Content-Type: application/json"),
        (b"{}", {}, 415, "Content-Type: application/json"),
        (b"query=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        (gzip.compress(b"{}"), {**JSON, "Content-Encoding": "gzip"}, 400, "not UTF-8"),
        (b'"text"', JSON, 422, "body: "),
        (b'{"unheard": 1}', JSON, 422, "unheard"),
        (b'{"query": "x", "\\ud800": 1, "messages": []}', JSON, 422, ""),
        (b"x" * ((1 << 20) + 1), JSON, 413, "larger than 1,048,576 bytes"),
    ],
)
def test_bodies_that_cannot_be_read_are_told(
    make_client: MakeClient, route: str, content: bytes, headers: dict[str, str], status: int, detail: str
) -> None:
    client = make_client(most_bytes=1 << 20)
    assert detail in problem(client.post(f"{M}/{route}", content=content, headers=headers), status)


def test_brackets_in_texts_are_no_levels(app_client: TestClient) -> None:
    assert app_client.post(f"{M}/add", json=one("a", "[{" * 10_000)).status_code == 200
    deep: Any = "x"
    for _ in range(60):
        deep = [deep]
    assert app_client.post(f"{M}/add", json=one("b", "x", metadata={"deep": deep})).status_code == 200


# -- recall and context ---------------------------------------------------------------------------------------


def test_recall_answers_as_the_command_line_does(client: TestClient, memory: LatentMemory) -> None:
    response = client.post(f"{M}/recall", json={"query": "When do we fly?", "k": 2})
    assert response.status_code == 200
    assert response.json() == {"hits": [hit_json(hit) for hit in memory.recall("When do we fly?", 2)]}
    assert response.json()["hits"][0]["conversation_id"] == "trip"


def test_recall_takes_live_messages_and_filters(client: TestClient) -> None:
    def ids(**asked: Any) -> list[str]:
        response = client.post(f"{M}/recall", json={"k": 3} | asked)
        assert response.status_code == 200, response.text
        return [hit["conversation_id"] for hit in response.json()["hits"]]

    live = [{"role": "user", "content": [{"type": "text", "text": "Is there water in the well?"}]}]
    assert ids(query=live)[0] == "well"
    assert ids(query="well", until="2024-01-01") == ["well"]
    assert ids(query="well", since=1.7e9, roles="assistant") == ["trip"]
    assert ids(query="well", during="May 2023") == ["well"]
    assert ids(query="well", during="last May", now="2024-03-01") == ["well"]
    assert ids(query="well", conversation_ids=["trip"], roles=["user"]) == ["trip"]
    assert ids(query="well", scope="nobody") == []


def test_recall_explains(client: TestClient) -> None:
    found = client.post(f"{M}/recall", json={"query": "fly", "explain": True}).json()
    assert found["signals"].keys() == found["hits"][0]["signals"].keys()
    assert found["signals"]["words"] == {"told": "the question's words in it", "weight": 0.7}


@pytest.mark.parametrize(
    ("asked", "detail"),
    [
        ({}, "query: field required"),
        ({"query": 5}, "query: input should be a valid string, or input should be a valid list"),
        ({"query": ""}, "query: empty"),
        ({"query": []}, "query: empty"),
        ({"query": [5]}, "query: "),
        ({"query": [{"role": "user", "content": 5}]}, "content: a text was expected, not a number"),
        ({"query": "x", "k": 0}, "k: input should be greater than or equal to 1"),
        ({"query": "x", "k": "3"}, "k: input should be a valid integer"),
        ({"query": "x", "k": True}, "k: input should be a valid integer"),
        ({"query": "x", "k": 10**30}, "k: "),
        ({"query": "x", "limit": 3}, "limit: unknown; this request takes query, scope, since"),
        ({"query": "x", "since": "then"}, "since: 'then' is no time"),
        ({"query": "x", "since": 10**400}, "since: a number beyond all time is no time"),
        ({"query": "x", "during": "purple"}, "during: 'purple' tells no time"),
        ({"query": "x", "roles": ["king"]}, "roles: "),
        ({"query": "x", "scope": ""}, "scope: '' is no name"),
        ({"query": "x", "scope": "\ud800"}, "scope: "),
        ({"query": "x\udc00"}, "query: "),
        ({"query": "x", "conversation_ids": ["\ud800"]}, "conversation_ids"),
    ],
)
def test_questions_that_cannot_be_asked_are_told(client: TestClient, asked: dict[str, Any], detail: str) -> None:
    body = json.dumps(asked)
    assert detail in problem(client.post(f"{M}/recall", content=body, headers=JSON), 422)
    if "k" not in asked:
        assert detail in problem(client.post(f"{M}/context", content=body, headers=JSON), 422)


def test_context_answers_as_the_command_line_does(client: TestClient, memory: LatentMemory) -> None:
    response = client.post(f"{M}/context", json={"query": "When do we fly?", "budget": 200})
    assert response.json() == context_json(memory.context("When do we fly?", 200))
    assert "8 May" in response.json()["text"]
    assert client.post(f"{M}/context", json={"query": "x", "scope": "nobody"}).json()["text"] == ""
    assert "budget" in problem(client.post(f"{M}/context", json={"query": "x", "budget": 0}), 422)


# -- conversations --------------------------------------------------------------------------------------------


def test_a_conversation_is_read_word_for_word(client: TestClient, memory: LatentMemory) -> None:
    response = client.get(f"{M}/conversations/trip")
    found = memory.get("trip")
    assert found is not None
    assert response.json() == conversation_json(found, range(2))
    assert response.json()["metadata"]["large"] == TRIP.metadata["large"]
    etag = response.headers["etag"]
    for told_etag in (etag, f'"other", W/{etag}', "*"):
        again = client.get(f"{M}/conversations/trip", headers={"If-None-Match": told_etag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(f"{M}/conversations/trip", headers={"If-None-Match": '"other"'}).status_code == 200
    memory.add(replace(TRIP, turns=[*TRIP.turns, Turn("user", "And back?")]))
    assert client.get(f"{M}/conversations/trip", headers={"If-None-Match": etag}).headers["etag"] != etag
    assert "'gone'" in problem(client.get(f"{M}/conversations/gone"), 404)
    assert "'other'" in problem(client.get(f"{M}/conversations/trip", headers={"Memory-Scope": "other"}), 404)


def test_put_makes_it_what_was_sent(client: TestClient, memory: LatentMemory) -> None:
    url = f"{M}/conversations/new"
    made = client.put(url, json=one("new", "One.", "Two.", "Three."))
    assert (made.status_code, made.json()["added"]) == (201, 1)
    assert made.headers["etag"] == client.get(url).headers["etag"]
    same = client.put(url, json=one(None, "One.", "Two.", "Three."))
    assert (same.status_code, same.json()["unchanged"]) == (200, 1)
    assert same.headers["etag"] == made.headers["etag"]
    cut = client.put(url, json=one(None, "One!", title="Less"))
    assert cut.json()["turns_changed"] == 1
    found = memory.get("new")
    assert found is not None
    assert ([turn.text for turn in found.turns], found.title) == (["One!"], "Less")
    assert not any("Three" in hit.passage.text for hit in memory.recall("Three"))
    assert "is not the one in the path" in problem(client.put(url, json=one("other", "x")), 422)
    assert client.put(f"{M}/conversations/tea", json={"messages": [], "summary": "Green tea."}).status_code == 201
    assert "delete it first" in problem(client.put(url, json={"messages": [], "summary": "Nothing."}), 422)


def test_conditions_are_kept(client: TestClient, memory: LatentMemory) -> None:
    url = f"{M}/conversations/trip"
    etag = client.get(url).headers["etag"]

    def put(text: str, **headers: str) -> httpx2.Response:
        return client.put(url, json=one(None, text), headers={name.replace("_", "-"): v for name, v in headers.items()})

    assert "If-None-Match" in problem(put("x", If_None_Match="*"), 412)
    assert "If-Match" in problem(put("x", If_Match='"other"'), 412)
    # A weak one may stand for several states.
    assert "If-Match" in problem(put("x", If_Match=f"W/{etag}"), 412)
    assert len(memory.get("trip").turns) == 2  # type: ignore[union-attr]
    changed = put("Changed.", If_Match=f'"other", {etag}')
    assert changed.status_code == 200
    assert problem(put("Lost.", If_Match=etag), 412)
    assert put("Again.", If_Match=changed.headers["etag"]).status_code == 200
    missing = f"{M}/conversations/missing"
    assert "is not there" in problem(client.put(missing, json=one(None, "x"), headers={"If-Match": "*"}), 412)
    assert client.put(missing, json=one(None, "x"), headers={"If-None-Match": "*"}).status_code == 201
    assert problem(client.delete(url, headers={"If-Match": etag}), 412)
    assert client.delete(url, headers={"If-Match": client.get(url).headers["etag"]}).status_code == 204
    assert problem(client.delete(url), 404)
    assert memory.get("trip") is None


def test_two_writers_do_not_lose_each_others_turns(client: TestClient, memory: LatentMemory) -> None:
    """Each reads, appends and writes if it is still what was read; otherwise it begins anew."""
    url = f"{M}/conversations/shared"
    client.put(url, json=one(None, "Begun."))

    def append(name: str) -> None:
        for number in range(6):
            while True:
                read = client.get(url)
                messages = [{"role": m["role"], "content": m["content"]} for m in read.json()["messages"]]
                body = {"messages": [*messages, {"role": "user", "content": f"{name} {number}"}]}
                if client.put(url, json=body, headers={"If-Match": read.headers["etag"]}).status_code == 200:
                    break

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(append, "abc"))
    found = memory.get("shared")
    assert found is not None
    assert sorted(turn.text for turn in found.turns[1:]) == sorted(f"{n} {i}" for n in "abc" for i in range(6))


def test_ids_may_hold_anything(serve: Serve) -> None:
    """Asked of a server: the client of the others decodes a path twice."""
    with httpx2.Client(base_url=serve().url) as client:
        for conversation in ODD:
            url = f"{M}/conversations/{quoted(conversation.conversation_id or '')}"
            assert client.put(url, json=one(None, "First.")).status_code == 201
            assert client.get(url).json()["conversation_id"] == conversation.conversation_id
            listed = client.get(f"{M}/conversations").json()["conversations"]
            assert [each["conversation_id"] for each in listed] == [conversation.conversation_id]
            assert client.delete(url).status_code == 204
            assert problem(client.get(url), 404)
        assert "empty" in problem(client.put(f"{M}/conversations/", json=one(None, "x")), 422)
        assert problem(client.get(f"{M}/conversations/"), 404)


def test_pages_are_not_moved_by_what_is_added_and_forgotten(app_client: TestClient, memory: LatentMemory) -> None:
    same = datetime(2025, 3, 28, 11, tzinfo=UTC)
    # Many of one time, as those have that were added at once.
    memory.add([Conversation(f"same {i:02}", [Turn("user", "x")], timestamp=same) for i in range(25)])
    memory.add([Conversation(f"day {i:02}", [Turn("user", "x")], timestamp=same.replace(day=i + 1)) for i in range(20)])
    pages: list[list[str]] = []
    cursor: str | None = None
    while True:
        query = {"limit": 7} | ({"cursor": cursor} if cursor else {})
        page = app_client.get(f"{M}/conversations", params=query).json()
        pages.append([each["conversation_id"] for each in page["conversations"]])
        cursor = page["next"]
        memory.add(Conversation(f"later {len(pages)}", [Turn("user", "x")], timestamp=same.replace(year=2026)))
        # The last one of the page before may go.
        memory.forget(pages[-1][-1])
        if cursor is None:
            break
    found = [each for page in pages for each in page]
    assert found == sorted((f"same {i:02}" for i in range(25)), reverse=True) + [
        f"day {i:02}" for i in range(19, -1, -1)
    ]
    assert [len(page) for page in pages] == [7, 7, 7, 7, 7, 7, 3]
    first = app_client.get(f"{M}/conversations", params={"limit": 1}).json()["conversations"][0]
    assert set(first) == {"conversation_id", "title", "timestamp", "type", "summary", "turns"}
    for wrong in ("x", "e30=", "W10=", "WyJ4IiwgIngiXQ==", "ä", "!"):
        assert "cursor" in problem(app_client.get(f"{M}/conversations", params={"cursor": wrong}), 422)
    assert "limit" in problem(app_client.get(f"{M}/conversations", params={"limit": 0}), 422)
    assert "limit" in problem(app_client.get(f"{M}/conversations", params={"limit": "x"}), 422)


# -- forget and the rest --------------------------------------------------------------------------------------


def test_forget(client: TestClient, memory: LatentMemory) -> None:
    body = {"conversation_ids": ["trip", "gone", "gone"]}
    assert client.post(f"{M}/forget", json=body).json() == {"forgotten": 1, "not_found": ["gone"]}
    assert memory.get("trip") is None
    wrongs: list[dict[str, Any]] = [{}, {"conversation_ids": []}, {"everything": False}]
    for wrong in [*wrongs, {"conversation_ids": ["x"], "everything": True}]:
        assert problem(client.post(f"{M}/forget", json=wrong), 422)
    memory.add(TRIP, "other")
    assert client.post(f"{M}/forget", json={"everything": True}).json() == {"forgotten": 2, "not_found": []}
    assert memory.scopes() == {"other": 1}


def test_forget_names_the_scopes_own_adapters(client: TestClient, memory: LatentMemory) -> None:
    for scope in ("default", "ana"):
        memory.add(TRIP, scope)
        directory = memory.adapter_directory(f"of-{scope}")
        directory.mkdir(parents=True)
        model = {"name": "tiny", "dtype": "fp32", "fingerprint": "0"}
        seen = seen_of([TRIP], {"trip": [0]})
        Manifest(scope, model, {}, True, {WEIGHTS: {}, CONFIG: {}}, {}, seen).write(directory)
        memory.forget("trip", scope=scope)
    answer = client.post(f"{M}/forget", json={"conversation_ids": ["well"]}).json()
    assert answer == {"forgotten": 1, "not_found": [], "retrain": ["of-default"]}


def test_stats_scopes_and_check_tell_of_the_scope_alone(client: TestClient, memory: LatentMemory) -> None:
    memory.add(WELL, "other")
    stats = client.get(f"{M}/stats?scope=other").json()
    assert stats["conversations"] == 1
    assert stats["scope"] == "other"
    assert "bytes" not in stats
    assert client.get(f"{M}/stats?scope=nobody").json()["conversations"] == 0
    assert client.get(f"{M}/scopes").json() == {"default": 3, "other": 1}
    report = client.get(f"{M}/check").json()
    assert (report["sound"], report["scope"], report["conversations"]) == (True, "default", 3)
    with memory._store.database.writing() as connection:
        connection.execute("UPDATE turns SET text = 'x' WHERE text LIKE '%Lisbon%'")
    report = client.get(f"{M}/check").json()
    assert not report["sound"]
    assert report["problems"][0]["where"] == "conversation 'trip', turn 0"
    assert client.get(f"{M}/check?scope=other").json()["sound"]


def test_the_body_names_the_scope_before_the_query_and_the_header(client: TestClient, memory: LatentMemory) -> None:
    for query, body, expected in (
        ("", {}, "header"),
        ("?scope=query", {}, "query"),
        ("?scope=query", {"scope": "body"}, "body"),
    ):
        client.post(f"{M}/add{query}", json=one("c", "x") | body, headers={"Memory-Scope": "header"})
        assert memory.conversation_ids(scope=expected) == ["c"]
        client.put(f"{M}/conversations/p{query}", json=one(None, "x") | body, headers={"Memory-Scope": "header"})
        assert "p" in memory.conversation_ids(scope=expected)
    client.post(f"{M}/add", json=one("c", "x"), headers={"Memory-Scope": "%C3%A4%2F"})
    assert memory.conversation_ids(scope="ä/") == ["c"]


# -- keys -----------------------------------------------------------------------------------------------------


@pytest.fixture
def walled(make_client: MakeClient, memory: LatentMemory, keys: KeyRing) -> TestClient:
    for scope in ("ana", "ben", "team-1", "team-2"):
        memory.add(replace(TRIP, title=f"of {scope}"), scope)
    return make_client(keys)


def test_every_route_asks_for_the_scope(walled: TestClient, keys: KeyRing) -> None:
    of_ana = {"Memory-Key": keys.create(scopes=["ana"])[0]}
    assert walled.get(f"{M}/scopes", headers=of_ana).json() == {"ana": 1}
    team = {"Authorization": f"Bearer {keys.create(prefixes=['team-'])[0]}"}
    assert walled.get(f"{M}/scopes", headers=team).json() == {"team-1": 1, "team-2": 1}
    calls: list[tuple[str, str, dict[str, Any] | None]] = [
        ("POST", "add", one("trip", "x")),
        ("POST", "recall", {"query": "fly"}),
        ("POST", "context", {"query": "fly"}),
        ("GET", "conversations", None),
        ("GET", "conversations/trip", None),
        ("PUT", "conversations/trip", one("trip", "x")),
        ("GET", "export", None),
        ("GET", "stats", None),
        ("GET", "check", None),
        ("DELETE", "conversations/trip", None),
        ("POST", "forget", {"conversation_ids": ["trip"]}),
    ]
    for method, path, body in calls:
        # One that opens a single scope need not name it.
        own = walled.request(method, f"{M}/{path}", json=body, headers=of_ana)
        assert own.status_code < 300, (path, own.text)
        assert "of ben" not in own.text
        named = walled.request(method, f"{M}/{path}?scope=ben", json=body, headers=of_ana)
        assert "not open to this key" in problem(named, 403)
        by_header = walled.request(method, f"{M}/{path}", json=body, headers=of_ana | {"Memory-Scope": "ben"})
        assert problem(by_header, 403)
        if body is not None:
            in_body = walled.request(method, f"{M}/{path}", json=body | {"scope": "ben"}, headers=of_ana)
            assert problem(in_body, 403)
        assert problem(walled.request(method, f"{M}/{path}", json=body), 401)
        assert "name one that it opens" in problem(walled.request(method, f"{M}/{path}", json=body, headers=team), 403)
    stream = walled.post(f"{M}/add?scope=ben", content=lines(one("trip", "x")), headers=of_ana | NDJSON)
    assert problem(stream, 403)
    all_of = {"Memory-Key": keys.create(every_scope=True)[0]}
    assert walled.get(f"{M}/conversations/trip?scope=ben", headers=all_of).json()["title"] == "of ben"


def test_a_key_that_may_only_read_reads(walled: TestClient, keys: KeyRing, memory: LatentMemory) -> None:
    reader = {"Memory-Key": keys.create(scopes=["ana"], read_only=True)[0]}
    assert walled.post(f"{M}/recall", json={"query": "fly"}, headers=reader).json()["hits"]
    assert walled.get(f"{M}/export", headers=reader).status_code == 200
    for method, path, body in (
        ("POST", "add", one("a", "x")),
        ("PUT", "conversations/trip", one(None, "x")),
        ("DELETE", "conversations/trip", None),
        ("POST", "forget", {"everything": True}),
    ):
        assert "may only read" in problem(walled.request(method, f"{M}/{path}", json=body, headers=reader), 403)
    assert problem(walled.post(f"{M}/add", content=lines(one("a", "x")), headers=reader | NDJSON), 403)
    assert memory.scopes()["ana"] == 1


# -- streams --------------------------------------------------------------------------------------------------


def test_a_stream_is_added_line_by_line(app_client: TestClient, memory: LatentMemory) -> None:
    body = b"\xef\xbb\xbf" + lines(one("a", "x"), one("b", "y")) + b"\r\n  \n" + lines(one("c", "z", "w")).rstrip()
    response = app_client.post(f"{M}/add", content=body, headers=NDJSON)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert told(response)[-1] == {
        **{"line": 5, "added": 3, "changed": 0, "unchanged": 0},
        **{"turns_added": 4, "turns_changed": 0, "turns_unchanged": 0, "bad": 0, "skipped": {}, "done": True},
    }
    assert sorted(memory.conversation_ids()) == ["a", "b", "c"]
    assert told(app_client.post(f"{M}/add", content=b"", headers=NDJSON))[-1]["done"] is True
    with_charset = {"Content-Type": "application/x-ndjson; charset=utf-8"}
    assert told(app_client.post(f"{M}/add", content=body, headers=with_charset))[-1]["unchanged"] == 3


def test_a_long_stream_reports_what_is_on_disk(app_client: TestClient, memory: LatentMemory) -> None:
    seen: list[int] = []
    add = memory.add

    def watched(*args: Any, **kwargs: Any) -> Any:
        report = add(*args, **kwargs)
        seen.append(memory.stats().conversations)
        return report

    memory.add = watched  # type: ignore[method-assign]
    parts = (lines(one(f"c{i}", "word " * 100)) for i in range(1000))
    response = app_client.post(f"{M}/add", content=parts, headers=NDJSON)
    reports = told(response)
    assert reports[-1]["done"] is True
    assert reports[-1]["added"] == reports[-1]["line"] == 1000
    # A batch has about 60,000 characters.
    assert 8 <= len(seen) <= 11
    assert all(report["added"] in seen for report in reports)


def test_a_bad_line_ends_a_stream(app_client: TestClient, memory: LatentMemory) -> None:
    bad = app_client.post(f"{M}/add", content=lines({"messages": 5}, one("a", "x")), headers=NDJSON)
    # Nothing was added and nothing was said: it is an ordinary answer.
    assert problem(bad, 422).startswith('line 1: "messages"')
    response = app_client.post(
        f"{M}/add", content=lines(one("a", "x"), one("b", "x")) + b"{\n" + lines(one("c", "x")), headers=NDJSON
    )
    assert response.status_code == 200
    (last,) = told(response)
    assert (last["line"], last["added"], last["done"]) == (2, 2, False)
    assert last["error"].startswith("line 3: not JSON")
    assert sorted(memory.conversation_ids()) == ["a", "b"]


def test_bad_lines_may_be_left_out(
    make_client: MakeClient, memory: LatentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "_MOST_ERRORS", 5)
    client = make_client(most_bytes=1 << 16)
    bad = [
        b"{",
        b"[]",
        b'{"messages": []}',
        b'{"messages": [], "other": 1}',
        b"\xff",
        b'{"x": NaN}',
        b"[" * 100 + b"]" * 100,
    ]
    long = lines(one("long", "x" * (1 << 16)))
    body = lines(one("a", "x")) + b"\n".join(bad) + b"\n" + long + lines(one("b", "x"))
    response = client.post(f"{M}/add?skip_bad=true", content=body, headers=NDJSON)
    *errors, last = told(response)
    assert [error["line"] for error in errors] == [2, 3, 4, 5, 6]
    assert all(error["error"].startswith(f"line {error['line']}: ") for error in errors)
    assert (last["line"], last["added"], last["bad"], last["done"]) == (10, 2, 8, True)
    assert memory.get("b") is not None
    too_long = client.post(f"{M}/add", content=(part for part in (long[:5], long[5:])), headers=NDJSON)
    assert "line 1: longer than 65,536 bytes" in problem(too_long, 413)
    assert "skip_bad" in problem(client.post(f"{M}/add?skip_bad=perhaps", content=b"", headers=NDJSON), 422)


def test_a_store_that_cannot_be_written_ends_a_stream(app_client: TestClient, memory: LatentMemory) -> None:
    add, full = memory.add, False

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal full
        if full:
            raise StoreFullError("/secret/memory.sqlite: the disk is full")
        full = True
        return add(*args, **kwargs)

    memory.add = failing  # type: ignore[method-assign]
    response = app_client.post(
        f"{M}/add", content=(lines(one(f"c{i}", "word " * 200)) for i in range(200)), headers=NDJSON
    )
    last = told(response)[-1]
    assert last["done"] is False
    assert last["error"] == "Disk full; the server's log tells why"
    assert last["added"] == last["line"] == memory.stats().conversations > 0
    assert problem(app_client.post(f"{M}/add", content=lines(one("x", "x")), headers=NDJSON), 507)


def test_an_export_is_what_add_takes(client: TestClient, memory: LatentMemory) -> None:
    memory.add(ODD)
    memory.add(Conversation(None, [Turn("tool", "  called\r\n\t"), Turn("user", "\u2028 line\u0085ends", name="Å")]))
    response = client.get(f"{M}/export")
    assert response.headers["content-type"] == "application/x-ndjson"
    # Not splitlines(): a text may hold what Python takes for the end of a line.
    assert response.content.count(b"\n") == memory.stats().conversations
    added = client.post(f"{M}/add?scope=copy", content=response.content, headers=NDJSON)
    assert told(added)[-1]["added"] == memory.stats(scope="default").conversations
    assert list(memory.whole(scope="copy")) == list(memory.whole())
    assert client.get(f"{M}/export?scope=nobody").content == b""


def test_a_large_export_is_read_in_parts(client: TestClient, memory: LatentMemory) -> None:
    memory.add([Conversation(f"c{i}", [Turn("user", f"{i} " + "word " * 500)]) for i in range(300)])
    response = client.get(f"{M}/export")
    assert len(response.content) > 4 * (1 << 17)
    assert response.content.count(b"\n") == 303


# -- description ----------------------------------------------------------------------------------------------


def test_everything_is_described_with_examples(app_client: TestClient) -> None:
    document = app_client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    ours = {path: told for path, told in document["paths"].items() if path.startswith(f"{M}/")}
    operations = {f"{method} {path}": told for path, by in ours.items() for method, told in by.items()}
    assert {told["operationId"] for told in operations.values()} == {
        *("add", "recall", "context", "forget", "list_conversations", "get_conversation", "put_conversation"),
        *("delete_conversation", "export", "scopes", "stats", "check"),
    }
    for name, told_of in operations.items():
        contents = [*told_of.get("requestBody", {}).get("content", {}).values()]
        for status, response in told_of["responses"].items():
            content = response.get("content", {})
            contents += content.values()
            if status.startswith(("4", "5", "d")):
                assert list(content) == ["application/problem+json"], (name, status)
        assert contents
        for content in contents:
            assert "example" in content or "examples" in content, name
            assert content["schema"]
        assert {"401", "403", "422", "429", "500", "503"} <= told_of["responses"].keys()
        assert told_of["security"] == [{"bearer": []}, {"memoryKey": []}, {}]
    assert {"bearer", "memoryKey"} <= document["components"]["securitySchemes"].keys()
    for reference in set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))):
        assert reference in document["components"]["schemas"]
    assert components().keys() <= document["components"]["schemas"].keys()


def test_examples_work(app_client: TestClient, memory: LatentMemory) -> None:
    paths = app_client.get("/openapi.json").json()["paths"]

    def example_of(route: str) -> Any:
        return paths[f"{M}/{route}"]["post"]["requestBody"]["content"]["application/json"]

    for example in example_of("add")["examples"].values():
        assert app_client.post(f"{M}/add", json=example["value"]).status_code == 200
    assert memory.scopes() == {"ana": 1}
    for route in ("recall", "context", "forget"):
        answer = app_client.post(f"{M}/{route}", json=example_of(route)["example"])
        assert answer.status_code == 200
        expected = paths[f"{M}/{route}"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
        assert answer.json().keys() == expected.keys()
    stream = paths[f"{M}/add"]["post"]["requestBody"]["content"]["application/x-ndjson"]["example"]
    assert told(app_client.post(f"{M}/add", content=stream, headers=NDJSON))[-1]["added"] == 2


# -- a server of its own --------------------------------------------------------------------------------------


def curl(*args: object, stdin: bytes = b"") -> bytes:
    command = [CURL or "curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "60", *map(str, args)]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, (done.stderr, done.stdout)
    return done.stdout


@pytest.mark.skipif(CURL is None, reason="there is no curl")
def test_curl_adds_a_thousand_recalls_and_copies(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    where = f"{server.url}{M}"
    file = tmp_path / "thousand.jsonl"
    file.write_bytes(lines(*(one(f"c{i}", f"The number of the house is {i}.", f"Noted, {i}.") for i in range(1000))))
    answer = curl("-T", file, "-X", "POST", "-H", "Content-Type: application/x-ndjson", f"{where}/add")
    assert json.loads(answer.splitlines()[-1])["added"] == 1000
    asked = json.dumps({"query": "the house with the number 731", "k": 1})
    (hit,) = json.loads(curl("-H", "Content-Type: application/json", "-d", asked, f"{where}/recall"))["hits"]
    assert hit["conversation_id"] == "c731"
    exported = curl(f"{where}/export")
    assert exported.count(b"\n") == 1000
    piped = curl(
        "-T", "-", "-X", "POST", "-H", "Content-Type: application/x-ndjson", f"{where}/add?scope=copy", stdin=exported
    )
    assert json.loads(piped.splitlines()[-1])["added"] == 1000
    assert curl(f"{where}/export?scope=copy") == exported
    assert server.stop() == 0


def test_a_client_that_reads_nothing_until_it_has_sent_everything_is_no_deadlock(
    app_client: TestClient, memory: LatentMemory
) -> None:
    """Most clients do. The server must go on reading though it cannot send, and not pile up what it would send."""
    parts = [lines(one(f"c{i}", "word " * 100), {"bad": i}) for i in range(600)]
    sent: list[dict[str, Any]] = []
    everything_read = threading.Event()

    async def receive() -> dict[str, Any]:
        if len(parts) == 1:
            everything_read.set()
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        assert await asyncio.to_thread(everything_read.wait, 60)
        sent.append(message)

    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": f"{M}/add", "raw_path": f"{M}/add".encode(), "query_string": b"skip_bad=true", "root_path": ""},
        **{"headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/x-ndjson")]},
        **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)},
    }
    assert app_client.portal is not None
    app_client.portal.call(app_client.app, scope, receive, send)
    answer = [json.loads(line) for line in b"".join(m.get("body", b"") for m in sent).splitlines()]
    assert (answer[-1]["added"], answer[-1]["bad"], answer[-1]["done"]) == (600, 600, True)
    assert memory.stats().conversations == 600
    # What was overtaken while nothing could be sent is not sent.
    assert sum("error" not in line for line in answer) <= 3


def test_a_slow_stream_is_answered_while_it_goes_on(serve: Serve) -> None:
    server = serve()
    first = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield lines(one("a", "First."))
        # Sent only when the first one is reported.
        assert first.wait(30)
        yield lines(one("b", "Second."))

    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(30)
        head = f"POST {M}/add HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/x-ndjson\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())
        received = b""
        for part in slowly():
            connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            if not first.is_set():
                while b'"added": 1' not in received:
                    received += connection.recv(4096)
                first.set()
        connection.sendall(b"0\r\n\r\n")
        rest = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b'"added": 2' in rest


def test_a_client_that_hangs_up_keeps_what_was_reported(serve: Serve) -> None:
    server = serve()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(30)
        head = f"POST {M}/add HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/x-ndjson\r\n"
        part = lines(one("kept", "Kept."))
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{len(part):x}\r\n".encode() + part + b"\r\n")
        received = b""
        while b'"added": 1' not in received:
            received += connection.recv(4096)
        half = b'{"conversation_id": "half", "messages": [{"role": "user", '
        connection.sendall(f"{len(half):x}\r\n".encode() + half + b"\r\n")
    with httpx2.Client(base_url=server.url) as client:
        assert client.get(f"{M}/conversations/kept").status_code == 200
        assert client.get(f"{M}/conversations/half").status_code == 404
        # Who hangs up on an export stops it; nobody else notices.
        client.post(f"{M}/add", json={"conversations": [one(f"c{i}", "word " * 600) for i in range(600)]}, timeout=60)
        with client.stream("GET", f"{M}/export") as response:
            next(response.iter_bytes())
        assert client.get(f"{M}/stats").json()["conversations"] == 601
    assert server.stop() == 0
    assert "a bug" not in server.log()
    assert "Traceback" not in server.log()


def test_what_sixteen_threads_have_added_is_found_by_all(serve: Serve) -> None:
    server = serve()

    def work(thread: int) -> int:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            for number in range(8):
                word = f"word{thread}x{number}"
                body = one(f"t{thread}-{number}", f"The password of the day is {word}.", "I see.")
                if number % 3 == 2:
                    answer = client.post(f"{M}/add", content=lines(body), headers=NDJSON)
                    assert told(answer)[-1]["added"] == 1
                else:
                    assert client.post(f"{M}/add", json=body).json()["added"] == 1
                hits = client.post(f"{M}/recall", json={"query": f"password {word}", "k": 1}).json()["hits"]
                assert hits[0]["conversation_id"] == f"t{thread}-{number}"
            return number + 1

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        added = sum(pool.map(work, range(16)))
    with httpx2.Client(base_url=server.url) as client:
        assert client.get(f"{M}/stats").json()["conversations"] == added == 128
        assert client.get(f"{M}/check").json()["sound"]
    assert server.stop() == 0


def test_what_was_acknowledged_survives_a_kill(serve: Serve, tmp_path: Path) -> None:
    store = tmp_path / "killed"
    acknowledged: set[str] = set()
    lock = threading.Lock()
    generator = random.Random(0)
    for attempt in range(3):
        server = serve(store)
        enough = threading.Event()

        def one_by_one(
            thread: int, attempt: int = attempt, url: str = server.url, enough: threading.Event = enough
        ) -> None:
            with httpx2.Client(base_url=url, timeout=30) as client:
                for number in range(10_000):
                    name = f"{attempt}-{thread}-{number}"
                    try:
                        answer = client.post(f"{M}/add", json=one(name, f"Said {name}."))
                    except httpx2.HTTPError:
                        return
                    assert answer.json()["added"] == 1
                    with lock:
                        acknowledged.add(name)
                    if number >= 15:
                        enough.set()

        def streaming(attempt: int = attempt, url: str = server.url) -> None:
            body = (lines(one(f"{attempt}-s-{i}", "word " * 200)) for i in range(100_000))
            try:
                with (
                    httpx2.Client(base_url=url, timeout=30) as client,
                    client.stream("POST", f"{M}/add", content=_unhurried(body), headers=NDJSON) as answer,
                ):
                    for line in answer.iter_lines():
                        with lock:
                            acknowledged.update(f"{attempt}-s-{i}" for i in range(json.loads(line)["line"]))
            except httpx2.HTTPError:
                pass

        threads = [threading.Thread(target=one_by_one, args=(i,)) for i in range(3)]
        threads.append(threading.Thread(target=streaming))
        for thread in threads:
            thread.start()
        assert enough.wait(60)
        time.sleep(generator.random() / 5)
        server.process.kill()
        for thread in threads:
            thread.join(60)
    server = serve(store)
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        there = {json.loads(line)["conversation_id"] for line in client.get(f"{M}/export").iter_lines()}
        assert len(acknowledged) > 100
        assert acknowledged <= there
        report = client.get(f"{M}/check").json()
        assert report["sound"], report
        name = next(name for name in acknowledged if "-s-" not in name)
        hits = client.post(f"{M}/recall", json={"query": f"Said {name}.", "k": 3}).json()["hits"]
        assert any(name in hit["text"] for hit in hits)
    assert server.stop() == 0


def _unhurried(parts: Iterator[bytes]) -> Iterator[bytes]:
    for number, part in enumerate(parts):
        yield part
        if number % 50 == 0:
            time.sleep(0.01)


@pytest.mark.skipif(CURL is None or shutil.which("sh") is None, reason="there is no curl, or no shell")
def test_what_the_page_shows_is_what_happens(serve: Serve) -> None:
    server = serve(embedder=None)
    page = (ROOT / "docs" / "rest.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(sh|json)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(found) > 10
    answer = ""
    for language, block in found:
        if language == "sh":
            quiet = block.replace("http://127.0.0.1:8765", server.url).replace("curl ", "curl -sS --max-time 60 ")
            done = subprocess.run(["sh", "-c", quiet], capture_output=True, text=True, encoding="utf-8", check=True)
            assert done.stderr == ""
            answer = done.stdout
            assert '"status": 5' not in answer
        else:
            _assert_same_shape(json.loads(block), json.loads(answer))
    with httpx2.Client(base_url=server.url) as client:
        assert client.get(f"{M}/scopes").json() == {"ana": 1, "copy": 2, "many": 2}
    assert server.stop() == 0


def _assert_same_shape(shown: Any, actual: Any) -> None:
    """Where the values cannot be the same (times, scores), the types are."""
    if isinstance(shown, dict):
        assert shown.keys() == actual.keys()
        for key, value in shown.items():
            _assert_same_shape(value, actual[key])
    elif isinstance(shown, list):
        assert len(shown) == len(actual)
        for one_shown, one_actual in zip(shown, actual, strict=True):
            _assert_same_shape(one_shown, one_actual)
    elif isinstance(shown, str) and re.search(r"^\d{4}-|^[\w=]{24,}$", shown):
        assert isinstance(actual, str)
    elif isinstance(shown, float):
        assert isinstance(actual, float)
    else:
        assert shown == actual
