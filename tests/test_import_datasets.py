"""Forms that data sets and frameworks use: ShareGPT, LangChain's messages, and JSON Lines as one document.

ShareGPT's form is that of https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered, LangChain's that
of libs/core/langchain_core/messages/utils.py at https://github.com/langchain-ai/langchain; parts of messages are those
of Anthropic's https://docs.anthropic.com/en/api/messages and of OpenAI's chat completions. The talk is made up.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from latent_memory import Conversation, LatentMemory, importers
from latent_memory.errors import InputError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talk.json"


def read(path: Path, content: str, **options: Any) -> tuple[list[Conversation], Counter[str]]:
    skipped: Counter[str] = Counter()
    path.write_text(content)
    return list(importers.read(path, on_skip=lambda what: skipped.update([what]), **options)), skipped


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def spoken(found: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in found.turns]


# -- ShareGPT -----------------------------------------------------------------------------------------------

FIRST = {
    "id": "dsOTKpn_0",
    "conversations": [{"from": "human", "value": "Why does dir list *.*?"}, {"from": "gpt", "value": "History."}],
}
SECOND = {
    "id": 7,
    "system": "You help.",
    "tools": "[]",
    "conversations": [
        {"from": "user", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather"}'},
        {"from": "observation", "value": "Rain"},
        {"from": "bard", "value": "It rains."},
        {"from": "human", "value": ""},
    ],
}


@pytest.mark.parametrize(
    "content",
    [json.dumps([FIRST, SECOND]), json.dumps([FIRST, SECOND], indent=2), lines(FIRST, SECOND), "\ufeff" + lines(FIRST)],
    ids=["array", "pretty", "lines", "with a mark"],
)
def test_sharegpt(path: Path, content: str) -> None:
    found, skipped = read(path, content)
    assert importers.recognise(path) == "sharegpt"
    assert found[0].conversation_id == "dsOTKpn_0"
    assert spoken(found[0]) == [("user", "Why does dir list *.*?"), ("assistant", "History.")]
    if len(found) == 2:
        assert found[1].conversation_id == "7"
        assert found[1].metadata == {"tools": "[]"}
        assert spoken(found[1]) == [
            ("system", "You help."),
            ("user", "Weather?"),
            ("assistant", '{"name": "weather"}'),
            ("tool", "Rain"),
            ("assistant", "It rains."),
        ]
        assert skipped == {"an empty message": 1}


def test_sharegpt_with_roles(path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    (found,), _ = read(path, json.dumps([{"id": "a", "conversations": messages}]))
    assert importers.recognise(path) == "sharegpt"
    assert spoken(found) == [("user", "Hello"), ("assistant", "Hi")]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (5, "an object was expected, not a number"),
        ({"id": "a"}, '"conversations": a list of messages was expected, not none'),
        ({"conversations": 5}, '"conversations": a list of messages was expected, not a number'),
        ({"conversations": [5]}, "conversations[0]: an object was expected, not a number"),
        ({"conversations": [{"from": "ghost", "value": "Boo"}]}, "conversations[0]: \"from\": 'ghost' is unknown"),
        ({"conversations": [{"from": "human", "value": 5}]}, "conversations[0].value: a text or a list of parts"),
        ({"conversations": [{"role": "ghost", "content": "Boo"}]}, "conversations[0].role: 'ghost' is unknown"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("form", ["array", "lines"])
def test_bad_sharegpt(path: Path, entry: object, told: str, form: str) -> None:
    content = json.dumps([FIRST, entry, SECOND]) if form == "array" else lines(FIRST, entry, SECOND)
    with pytest.raises(InputError) as caught:
        read(path, content)
    assert str(caught.value).startswith(f"{path}, {'entry' if form == 'array' else 'line'} 2: ")
    assert told in str(caught.value)
    bad: list[InputError] = []
    found, _ = read(path, content, on_bad=bad.append)
    assert (len(found), len(bad)) == (2, 1)


# -- LangChain ----------------------------------------------------------------------------------------------


def message(kind: str, content: object, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "data": {"content": content, "additional_kwargs": {}, "name": None, **fields}}


def dumped(what: str, content: object, **fields: Any) -> dict[str, Any]:
    place = ["langchain", "schema", "messages", what]
    return {"lc": 1, "type": "constructor", "id": place, "kwargs": {"content": content, **fields}}


CALL = {"name": "weather", "args": {"city": "Oslo"}, "id": "c1", "type": "tool_call"}
DICTS = [
    message("system", "You help."),
    message("human", "Weather?", name="Ana"),
    message("ai", "", tool_calls=[CALL]),
    message("tool", "Rain", tool_call_id="c1", name="weather"),
    message("AIMessageChunk", [{"type": "text", "text": "It rains."}]),
    message("chat", "Good.", role="user"),
]
DUMPED = [
    dumped("SystemMessage", "You help."),
    dumped("HumanMessage", "Weather?", name="Ana", type="human"),
    dumped("AIMessage", "", tool_calls=[CALL]),
    dumped("ToolMessage", "Rain", tool_call_id="c1", name="weather"),
    dumped("AIMessageChunk", [{"type": "text", "text": "It rains."}]),
    dumped("ChatMessage", "Good.", role="human"),
]
FLAT = [{**each["data"], "type": each["type"]} for each in DICTS]
SAID = [
    ("system", "You help."),
    ("user", "Weather?"),
    ("assistant", 'weather({"city": "Oslo"})'),
    ("tool", "Rain"),
    ("assistant", "It rains."),
    ("user", "Good."),
]
HELLO = [message("human", "Hello")]


@pytest.mark.parametrize("messages", [DICTS, DUMPED, FLAT], ids=["messages_to_dict", "dumps", "fields"])
@pytest.mark.parametrize(
    ("write", "ids"),
    [
        (json.dumps, [None]),
        (lambda messages: json.dumps(messages, indent=2), [None]),
        (lambda messages: lines(*messages), [None]),
        (lambda messages: json.dumps([messages, HELLO]), [None, None]),
        (lambda messages: lines(messages, HELLO), [None, None]),
        (lambda messages: json.dumps({"session 1": messages, "session 2": HELLO}), ["session 1", "session 2"]),
        (lambda messages: json.dumps({"messages": messages, "thread_id": "t1"}), ["t1"]),
        (lambda messages: lines({"session_id": "a", "messages": messages}, {"messages": HELLO}), ["a", None]),
    ],
    ids=["list", "pretty", "lines of messages", "lists", "lines of lists", "sessions", "state", "lines of states"],
)
def test_langchain(path: Path, messages: list[Any], write: Any, ids: list[str | None]) -> None:
    found, skipped = read(path, write(messages))
    assert importers.recognise(path) == "langchain"
    assert [each.conversation_id for each in found] == ids
    assert spoken(found[0]) == SAID
    assert [turn.name for turn in found[0].turns] == [None, "Ana", None, "weather", None, None]
    assert not skipped


def test_calls_as_openai_writes_them(path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    (found,), _ = read(path, json.dumps([message("ai", "", additional_kwargs={"tool_calls": [call]})]))
    assert spoken(found) == [("assistant", 'weather({"city": "Oslo"})')]


def test_what_is_left_out_of_langchain(path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    messages = [message("human", [picture, "What is it?"]), message("remove", ""), message("ai", "")]
    (found,), skipped = read(path, json.dumps(messages))
    assert spoken(found) == [("user", "What is it?")]
    assert skipped == {"an image": 1, "a removed message": 1, "an empty message": 1}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (5, "a message or a list of messages was expected, not a number"),
        ({"a": 5}, "a message or a list of messages was expected, not an object"),
        ([5], "[0]: no message of LangChain's but a number"),
        ({"messages": [{"type": "human"}]}, "messages[0]: no message of LangChain's but an object"),
        ({"s": HELLO, "t": 5}, "t: a list of messages was expected, not a number"),
        ([message("chat", "Boo", role="ghost")], "has no role that is known"),
        ([dumped("GhostMessage", "Boo")], "a message of the type 'ghost' has no role that is known"),
        ([message("human", 5)], "a text or a list of parts was expected, not a number"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_langchain(path: Path, entry: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path, lines(HELLO, entry))
    assert str(caught.value).startswith(f"{path}, line 2")
    assert told in str(caught.value)


# -- JSON Lines, as one document ----------------------------------------------------------------------------

TALK = {"conversation_id": "c1", "messages": [{"role": "user", "content": "Hello"}], "extra": 1}


@pytest.mark.parametrize(
    "content",
    [lines(TALK, TALK), json.dumps([TALK]), json.dumps([TALK], indent=1), json.dumps(TALK), json.dumps(TALK, indent=1)],
)
def test_conversations_of_messages_in_any_json(path: Path, content: str, memory: LatentMemory) -> None:
    (found, *_), _ = read(path, content)
    assert importers.recognise(path) == "jsonl"
    assert (found.conversation_id, spoken(found), found.metadata) == ("c1", [("user", "Hello")], {"extra": 1})
    assert memory.add(importers.read(path)).added == 1


def test_a_bad_entry_in_an_array_of_conversations(path: Path) -> None:
    with pytest.raises(InputError, match=r"entry 2: messages\[0\]: no \"role\""):
        read(path, json.dumps([TALK, {"messages": [{}]}]))


def part(what: str, **fields: Any) -> dict[str, Any]:
    return {"type": what, **fields}


PICTURE = part("image_url", image_url={"url": "data:"})


def test_messages_that_say_nothing_are_left_out(path: Path) -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [PICTURE]},
        {"role": "user", "content": [PICTURE, part("text", text="What is it?")]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "see", "arguments": "{}"}},
        {"role": "tool", "content": [part("text", text="A cat")]},
    ]
    for content in (lines({"messages": messages}), json.dumps([{"messages": messages}]), json.dumps(messages)):
        (found,), skipped = read(path, content)
        assert spoken(found) == [
            ("user", "Hello"),
            ("user", "What is it?"),
            ("assistant", "look({})"),
            ("assistant", "see({})"),
            ("tool", "A cat"),
        ]
        assert skipped == {"an empty message": 2, "an image": 2}


def test_parts_as_anthropic_writes_them(path: Path) -> None:
    result = part("tool_result", tool_use_id="t1", content=[part("text", text="Rain"), part("image", source={})])
    messages = [
        {"role": "user", "content": [part("image", source={}), part("document", source={}), "Weather?"]},
        {
            "role": "assistant",
            "content": [part("thinking", thinking="Hm"), part("tool_use", name="w", input={"at": "Oslo"})],
        },
        {"role": "user", "content": [result, part("text", text="And tomorrow?")]},
        {"role": "assistant", "content": [part("text", text="I look."), part("tool_use", name="w", input={})]},
        {"role": "user", "content": [part("tool_result", content="Sun"), part("tool_result", content="x" * 1_000_001)]},
    ]
    (found,), skipped = read(path, lines({"messages": messages}))
    assert spoken(found) == [
        ("user", "Weather?"),
        ("assistant", 'w({"at": "Oslo"})'),
        ("tool", "Rain"),
        ("user", "And tomorrow?"),
        ("assistant", "I look."),
        ("tool", "Sun"),
    ]
    assert skipped == {"an image": 2, "an attachment": 1, "a thought": 1, "a tool call": 1, "an overlong text": 1}


def test_a_conversation_of_pictures_alone_is_left_out_and_one_of_nothing_is_broken(path: Path) -> None:
    pictures = {"messages": [{"role": "user", "content": [PICTURE]}]}
    (found,), skipped = read(path, lines(pictures, TALK))
    assert found.conversation_id == "c1"
    assert skipped == {"an image": 1, "an empty message": 1, "an empty conversation": 1}
    with pytest.raises(InputError, match=r"line 2: messages\[0\]\.content: empty"):
        read(path, lines(TALK, {"messages": [{"role": "user", "content": " "}]}))


MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi", "timestamp": "2024-05-01"}]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_messages_is_one_conversation(path: Path, indent: int | None, memory: LatentMemory) -> None:
    (found,), skipped = read(path, json.dumps(MESSAGES, indent=indent))
    assert importers.recognise(path) == "jsonl"
    assert (found.conversation_id, spoken(found)) == (None, [("user", "Hello"), ("assistant", "Hi")])
    assert (dict(found.metadata), found.generated, skipped) == ({}, frozenset({"timestamp:file"}), Counter())
    assert memory.add(importers.read(path)).added == 1
    assert memory.add(importers.read(path)).unchanged == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (json.dumps([*MESSAGES, 5]), "messages[2]: an object was expected, not a number"),
        (json.dumps([*MESSAGES, {"role": "ghost", "content": "Boo"}]), "messages[2].role: 'ghost' is unknown"),
        (json.dumps([*MESSAGES, TALK]), 'messages[2]: no "role"'),
        (json.dumps(MESSAGES, indent=1)[:-9], "not JSON"),
    ],
)
def test_a_bad_message_makes_an_array_of_messages_bad(path: Path, content: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path, content)
    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)
    bad: list[InputError] = []
    assert read(path, content, on_bad=bad.append)[0] == []
    assert [told in str(error) for error in bad] == [True]
