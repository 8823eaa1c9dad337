"""A key opens its scopes and nothing else, on every door, whatever a request says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.keys import KeyRing

MakeClient = Callable[..., TestClient]

SECRET = "The code of Ben's safe is seven-four-one-nine."
MCP = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}


class Visitor:
    """Ana, who has a key for her own scope, and wants to know what Ben said."""

    def __init__(self, client: TestClient, key: str) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {key}"}

    def ask(self, method: str, path: str, *, headers: dict[str, str] | None = None, body: object = None) -> str:
        answer = self._client.request(
            method, path, headers=self._headers | (headers or {}), json=body if body is not None else None
        )
        return f"{answer.status_code} {answer.headers} {answer.text}"


@pytest.fixture
def ben(memory: LatentMemory) -> LatentMemory:
    memory.add(Conversation("safe", [Turn("user", SECRET, name="Ben")]), "ben")
    memory.add(Conversation("mine", [Turn("user", "My own safe is in the cellar.", name="Ana")]), "ana")
    return memory


@pytest.fixture
def ana(ben: LatentMemory, make_client: MakeClient, keys: KeyRing) -> Visitor:
    key, _ = keys.create(scopes=["ana"])
    return Visitor(make_client(keys), key)


HEADER = {"Memory-Scope": "ben"}
MESSAGE = [{"role": "user", "content": "Something new."}]
QUESTION = "What is the code of the safe?"


def tool(name: str, **arguments: object) -> dict[str, object]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


ATTEMPTS: list[tuple[str, str, dict[str, str], object]] = [
    ("POST", "/v1/memory/recall", HEADER, {"query": QUESTION}),
    ("POST", "/v1/memory/recall", {}, {"query": QUESTION, "scope": "ben"}),
    ("POST", "/v1/memory/recall?scope=ben", {}, {"query": QUESTION}),
    ("POST", "/v1/memory/context", {}, {"query": QUESTION, "scope": "ben"}),
    ("POST", "/v1/memory/context", HEADER, {"query": QUESTION}),
    ("GET", "/v1/memory/conversations", HEADER, None),
    ("GET", "/v1/memory/conversations?scope=ben", {}, None),
    ("GET", "/v1/memory/conversations/safe", HEADER, None),
    ("GET", "/v1/memory/conversations/safe?scope=ben", {}, None),
    ("GET", "/v1/memory/conversations/safe", {}, None),
    ("GET", "/v1/memory/scopes", {}, None),
    ("GET", "/v1/memory/scopes?scope=ben", {}, None),
    ("GET", "/v1/memory/stats?scope=ben", {}, None),
    ("GET", "/v1/memory/export?scope=ben", {}, None),
    ("GET", "/v1/memory/export", HEADER, None),
    ("GET", "/v1/memory/export", {}, None),
    ("GET", "/v1/memory/check?scope=ben", {}, None),
    (
        "POST",
        "/v1/memory/add",
        {},
        {"scope": "ben", "conversation_id": "x", "messages": [{"role": "user", "content": "."}]},
    ),
    ("PUT", "/v1/memory/conversations/x?scope=ben", {}, {"messages": [{"role": "user", "content": "."}]}),
    ("POST", "/v1/memory/forget", {}, {"scope": "ben", "everything": True}),
    ("POST", "/v1/memory/forget", HEADER, {"conversation_ids": ["safe"]}),
    ("DELETE", "/v1/memory/conversations/safe", HEADER, None),
    ("DELETE", "/v1/memory/conversations/safe?scope=ben", {}, None),
    ("POST", "/mcp", MCP | HEADER, tool("recall", query=QUESTION)),
    ("POST", "/mcp", MCP | HEADER, tool("context", query=QUESTION)),
    ("POST", "/mcp", MCP | HEADER, tool("list")),
    ("POST", "/mcp", MCP | HEADER, tool("forget", conversation_ids=["safe"])),
    ("POST", "/mcp", MCP, tool("recall", query=QUESTION, scope="ben")),
    ("GET", "/metrics", HEADER, None),
]


@pytest.mark.parametrize(("method", "path", "headers", "body"), ATTEMPTS, ids=lambda value: str(value)[:40])
def test_no_door_opens_another_scope(
    ana: Visitor, ben: LatentMemory, method: str, path: str, headers: dict[str, str], body: object
) -> None:
    told = ana.ask(method, path, headers=headers, body=body)
    assert "seven-four" not in told
    assert not re.search(r"\bben\b", told.replace("'ben' is not open", "")), told
    if "ben" in path or HEADER.items() <= headers.items() or "ben" in json.dumps(body):
        assert told.startswith(("403", "200", "4")), told
    assert ben.recall(QUESTION, 1, scope="ben")[0].passage.text == SECRET
    assert ben.scopes()["ben"] == 1


def test_her_own_is_open(ana: Visitor) -> None:
    for method, path, headers, body in (
        ("POST", "/v1/memory/recall", {}, {"query": QUESTION}),
        ("GET", "/v1/memory/export", {}, None),
        ("GET", f"/v1/memory/conversations/{quote('mine')}", {}, None),
        ("POST", "/mcp", MCP, tool("recall", query=QUESTION)),
    ):
        assert "in the cellar" in ana.ask(method, path, headers=headers, body=body), path


def test_a_key_that_may_only_read_changes_nothing(ben: LatentMemory, make_client: MakeClient, keys: KeyRing) -> None:
    key, _ = keys.create(scopes=["ana"], read_only=True)
    reader = Visitor(make_client(keys), key)
    for method, path, headers, body in (
        ("POST", "/v1/memory/add", {}, {"conversation_id": "mine", "messages": MESSAGE}),
        ("PUT", "/v1/memory/conversations/mine", {}, {"messages": MESSAGE}),
        ("POST", "/v1/memory/forget", {}, {"conversation_ids": ["mine"]}),
        ("POST", "/v1/memory/forget", {}, {"everything": True}),
        ("DELETE", "/v1/memory/conversations/mine", {}, None),
        ("POST", "/mcp", MCP, tool("add", text="Something new.")),
        ("POST", "/mcp", MCP, tool("forget", conversation_ids=["mine"])),
    ):
        reader.ask(method, path, headers=headers, body=body)
        assert [c.conversation_id for c in ben.whole(scope="ana")] == ["mine"], path
        assert [turn.text for turn in next(ben.whole(scope="ana")).turns] == ["My own safe is in the cellar."], path
    assert "in the cellar" in reader.ask("POST", "/v1/memory/recall", body={"query": QUESTION})
