"""Letta's agent files and message lists.

The forms are those of `letta/schemas/agent_file.py`, `letta/serialize_schemas/pydantic_agent_schema.py`,
`letta/schemas/letta_message.py` and `letta/system.py` in letta-ai/letta; the text is made up.
"""

from __future__ import annotations

import contextlib
import copy
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn, importers
from latent_memory.errors import InputError


def said(role: str, text: str, minute: int, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": text}] if text else []
    return {"role": role, "content": content, "created_at": f"2025-04-01T03:{minute:02}:00", **more}


def call(name: str, **arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": "c1", "type": "function", "function": function}


def event(kind: str, **more: str) -> str:
    return json.dumps({"type": kind, "time": "2025-03-31 08:47:27 PM PDT-0700", **more})


MESSAGES = [
    said("system", "You are Letta.", 0),
    said("user", event("login", last_login="Never (first login)"), 1),
    said("user", event("user_message", message="My dog is called Biscuit.", name="Ana"), 2),
    said(
        "assistant", "She has a dog. Save it.", 3, tool_calls=[call("core_memory_append", label="human", content="x")]
    ),
    said("tool", '{"status": "OK"}', 4, tool_call_id="c1"),
    said("user", event("heartbeat", reason="Function called"), 5),
    said("assistant", "Greet the dog.", 6, tool_calls=[call("send_message", message="Hello to Biscuit!")]),
    said("user", event("system_alert", message="Note: prior messages were summarised."), 7),
    said("user", "And plainly?", 8),
    {
        "role": "assistant",
        "content": [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Plainly too."}],
        "created_at": "2025-04-01T03:09:00",
    },
]
TURNS = (
    Turn("user", "My dog is called Biscuit.", datetime(2025, 4, 1, 3, 2), "Ana"),
    Turn("assistant", "Hello to Biscuit!", datetime(2025, 4, 1, 3, 6)),
    Turn("system", "Note: prior messages were summarised.", datetime(2025, 4, 1, 3, 7)),
    Turn("user", "And plainly?", datetime(2025, 4, 1, 3, 8)),
    Turn("assistant", "Plainly too.", datetime(2025, 4, 1, 3, 9)),
)
SKIPPED = [
    *("a system prompt", "a login", "a tool call", "a thought", "a tool's answer", "a heartbeat", "a thought"),
    "a thought",
]
NEW: dict[str, Any] = {
    "agents": [
        {
            "id": "agent-0",
            "name": "Sam",
            "system": "You are Letta.",
            "messages": MESSAGES,
            "in_context_message_ids": ["message-0"],
            "block_ids": ["block-0"],
        }
    ],
    "groups": [],
    "blocks": [
        {"id": "block-0", "label": "human", "value": "\nThe user has a dog.\n", "limit": 5000},
        {"id": "block-1", "label": "shared", "value": "The office is closed on Mondays.", "limit": 5000},
    ],
    "files": [],
    "sources": [],
    "tools": [],
    "created_at": "2025-10-31T22:56:56.879513+00:00",
}
OLD: dict[str, Any] = {
    "agent_type": "memgpt_agent",
    "name": "Sam",
    "created_at": "2025-04-01T03:47:27",
    "core_memory": [
        {"label": "human", "value": "The user has a dog.", "updated_at": "2025-04-01T03:47:27"},
        {"label": "persona", "value": "", "updated_at": "2025-04-01T03:47:27"},
    ],
    "in_context_message_indices": [0],
    "messages": MESSAGES,
    "version": "0.6.47",
}
API: list[dict[str, Any]] = [
    {"id": "message-1", "date": "2025-05-01T10:00:00+00:00", "message_type": "system_message", "content": "You are."},
    {
        "id": "message-2",
        "date": "2025-05-01T10:01:00+00:00",
        "message_type": "user_message",
        "content": "Hi, I am Ana.",
    },
    {"id": "message-3", "date": "2025-05-01T10:02:00+00:00", "message_type": "reasoning_message", "reasoning": "Ana."},
    {
        "id": "message-3",
        "date": "2025-05-01T10:02:00+00:00",
        "message_type": "assistant_message",
        "content": [{"type": "text", "text": "Hello Ana."}],
    },
    {
        "id": "message-4",
        "date": "2025-05-01T10:03:00+00:00",
        "message_type": "tool_call_message",
        "tool_call": {"name": "send_message", "arguments": '{"message": "Anything else?"}', "tool_call_id": "c"},
    },
    {
        "id": "message-5",
        "date": "2025-05-01T10:03:00+00:00",
        "message_type": "tool_return_message",
        "tool_return": "None",
        "status": "success",
    },
]


def read(path: Path, value: object, **options: Any) -> list[Conversation]:
    path.write_text(json.dumps(value))
    return list(importers.read(path, source="letta", **options))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sam.af"


def test_an_agent_file(path: Path) -> None:
    skipped: list[str] = []
    talk, human, shared = read(path, NEW, on_skip=skipped.append)
    assert importers.recognise(path) == "letta"
    assert talk.conversation_id == "Sam-2025-04-01T03:00:00"
    assert talk.turns == TURNS
    assert (talk.type, talk.metadata) == ("agent", {"agent": "Sam"})
    assert skipped == SKIPPED
    assert (human.conversation_id, human.summary) == ("Sam-2025-04-01T03:00:00/human", "The user has a dog.")
    assert (human.turns, human.title, human.type, human.generated) == (
        (),
        "human",
        "memory block",
        frozenset({"timestamp:file"}),
    )
    assert (shared.conversation_id, shared.summary) == ("letta/shared", "The office is closed on Mondays.")


def test_an_agent_file_of_the_older_kind(path: Path) -> None:
    skipped: list[str] = []
    talk, human = read(path, OLD, on_skip=skipped.append)
    assert importers.recognise(path) == "letta"
    assert (talk.conversation_id, talk.turns) == ("Sam-2025-04-01T03:47:27", TURNS)
    assert (human.conversation_id, human.timestamp) == (
        "Sam-2025-04-01T03:47:27/human",
        datetime(2025, 4, 1, 3, 47, 27),
    )
    assert skipped == [*SKIPPED, "an empty memory block"]


def test_a_list_of_messages_either_way_round(path: Path) -> None:
    (found,) = read(path, API)
    assert importers.recognise(path) == "letta"
    assert found.conversation_id == "letta-message-2"
    assert [(turn.role, turn.text) for turn in found.turns] == [
        ("user", "Hi, I am Ana."),
        ("assistant", "Hello Ana."),
        ("assistant", "Anything else?"),
    ]
    assert read(path, API[::-1]) == [found]
    assert read(path, {"messages": API}) == [found]


def test_the_names_that_memgpt_had(path: Path) -> None:
    (found,) = read(
        path,
        [
            {"id": "1", "date": "2024-10-01T10:00:00", "message_type": "user_message", "message": "Hello?"},
            {
                "id": "2",
                "date": "2024-10-01T10:00:01",
                "message_type": "internal_monologue",
                "internal_monologue": "Oh",
            },
            {
                "id": "2",
                "date": "2024-10-01T10:00:01",
                "message_type": "function_call",
                "function_call": {"name": "send_message", "arguments": '{"message": "Hello."}'},
            },
            {"id": "3", "date": "2024-10-01T10:00:02", "message_type": "function_return", "function_return": "None"},
        ],
    )
    assert [turn.text for turn in found.turns] == ["Hello?", "Hello."]


@pytest.mark.parametrize("file", [NEW, OLD], ids=["new", "old"])
def test_adding_twice_changes_nothing_and_a_longer_file_adds(
    path: Path, memory: LatentMemory, file: dict[str, Any]
) -> None:
    first = read(path, file)
    assert memory.add(first).added == len(first)
    assert memory.add(read(path, file)).unchanged == len(first)
    longer = copy.deepcopy(file)
    agent = longer["agents"][0] if "agents" in longer else longer
    agent["messages"] = [*MESSAGES, said("user", "Biscuit likes cheese.", 10)]
    longer["created_at"] = file["created_at"] if "core_memory" in file else "2025-11-01T00:00:00+00:00"
    block = (longer.get("core_memory") or longer["blocks"])[0]
    block["value"] = "The user has a dog that likes cheese."
    report = memory.add(read(path, longer))
    assert (report.added, report.changed, report.turns_added, report.turns_changed) == (0, 2, 1, 0)


def test_a_longer_list_of_messages_adds(path: Path, memory: LatentMemory) -> None:
    memory.add(read(path, API))
    more = {"id": "message-9", "date": "2025-05-02T09:00:00+00:00", "message_type": "user_message", "content": "Back."}
    report = memory.add(read(path, [more, *API[::-1]]))
    assert (report.added, report.turns_added, report.turns_changed) == (0, 1, 0)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (NEW | {"agents": ["x"]}, "agents[0]: an object was expected, not a text"),
        (NEW | {"blocks": [{"label": "x"}]}, 'blocks[0]: a memory block needs a "label" and a "value"'),
        (OLD | {"messages": [said("narrator", "x", 1)]}, "messages[0]: a message of an unknown kind: 'narrator'"),
        (OLD | {"messages": [5]}, "messages[0]: an object was expected, not a number"),
        (OLD | {"messages": [said("user", "x", 1) | {"created_at": "soon"}]}, "timestamp: 'soon' is no time"),
        (
            OLD | {"messages": [said("assistant", "", 1, tool_calls=[call("send_message", text="x")])]},
            "messages[0]: send_message: its arguments hold no message",
        ),
        ({"hello": 1}, "no agent and no message"),
        ("x", "an object was expected, not a text"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_broken_is_told_and_left_out(path: Path, value: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path, value)
    assert told in str(caught.value)
    errors: list[InputError] = []
    read(path, value, on_bad=errors.append)
    assert len(errors) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("content", "created_at", "date", "name", "id", "tool_calls", "tool_call", "function_call", "message")
MESSAGE = st.fixed_dictionaries(
    {"message_type": st.sampled_from(["user_message", "assistant_message", "tool_call_message", 5, []])},
    optional=dict.fromkeys(FIELDS, JSON),
)
LIST = st.lists(MESSAGE | JSON, max_size=3) | JSON
AGENT = st.fixed_dictionaries({"messages": LIST}, optional={"name": JSON, "block_ids": JSON, "created_at": JSON})
FILE = st.fixed_dictionaries({"agents": st.lists(AGENT | JSON, max_size=2)}, optional={"blocks": LIST})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=LIST | FILE | st.fixed_dictionaries({"core_memory": LIST, "messages": LIST}, optional={"name": JSON}))
def test_any_json_is_read_or_refused(path: Path, value: object) -> None:
    read(path, value, on_bad=lambda _: None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    # What begins as a zip and is none is refused as a whole.
    with contextlib.suppress(InputError):
        list(importers.read(path, source="letta", on_bad=lambda _: None))
