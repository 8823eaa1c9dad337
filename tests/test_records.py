from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from latent_memory import AddReport, Context, Conversation, LatentMemory, Turn
from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.records import MOST_TURN_CHARACTERS, ROLES

HELLO = Turn("user", "Hello there, how are you?")


@pytest.mark.parametrize("role", ROLES)
def test_a_turn_has_a_role_and_a_text(role: str) -> None:
    turn = Turn(role, "Hi")
    assert (turn.role, turn.text, turn.timestamp, turn.name) == (role, "Hi", None, None)


@pytest.mark.parametrize("role", ["", "User", "human", "user ", "\ud800"])
def test_an_unknown_role_is_refused(role: str) -> None:
    with pytest.raises(InputError, match=r"^role: .* is unknown; use one of user, assistant, system"):
        Turn(role, "Hi")


@pytest.mark.parametrize("role", [None, 5, ["user"], {}])
def test_a_role_that_is_no_text_is_refused(role: Any) -> None:
    with pytest.raises(InputError, match=r"^role: "):
        Turn(role, "Hi")


@pytest.mark.parametrize("text", ["", " ", "\n\t\r ", "\u2003\u3000"])
def test_an_empty_text_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^text: empty"):
        Turn("user", text)


@pytest.mark.parametrize("text", ["\0", "\x1b[2J", "\u200b", "🦊", "مرحبا", "你好", "a\0b"])
def test_anything_but_white_space_is_a_text(text: str) -> None:
    assert Turn("user", text).text == text


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["Hi"]])
def test_a_text_that_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(InputError, match=r"^text: text was expected, not "):
        Turn("user", text)


def test_half_a_surrogate_pair_is_refused_with_its_place() -> None:
    with pytest.raises(InputError, match=r"^text: character 3 is half of a surrogate pair"):
        Turn("user", "abc\ud83d")
    with pytest.raises(InputError, match=r"^name: character 0 is half of a surrogate pair"):
        Turn("user", "abc", name="\ude00")


def test_the_longest_text_that_is_taken() -> None:
    assert len(Turn("user", "x" * MOST_TURN_CHARACTERS).text) == MOST_TURN_CHARACTERS
    with pytest.raises(InputError, match=r"^text: 1,000,001 characters; a turn may have 1,000,000"):
        Turn("user", "x" * (MOST_TURN_CHARACTERS + 1))


def test_a_turn_reads_its_time() -> None:
    given: Any = "2025-03-28T11:00:00Z"
    assert Turn("user", "Hi", given).timestamp == datetime(2025, 3, 28, 11, tzinfo=UTC)
    bad: Any = "soon"
    with pytest.raises(InputError, match=r"^timestamp: 'soon' is no time"):
        Turn("user", "Hi", bad)


def test_an_empty_name_is_none() -> None:
    assert Turn("user", "Hi", name="").name is None


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HELLO.text = "changed"  # type: ignore[misc]
    conversation = Conversation("a", [HELLO])
    with pytest.raises(dataclasses.FrozenInstanceError):
        conversation.title = "changed"  # type: ignore[misc]


def test_turns_become_a_tuple() -> None:
    turns = [HELLO]
    conversation = Conversation("a", turns)
    turns.append(HELLO)
    assert conversation.turns == (HELLO,)


def test_metadata_that_was_checked_stays_checked() -> None:
    metadata: dict[str, Any] = {"a": 1}
    conversation = Conversation("a", [HELLO], metadata=metadata)
    metadata["b"] = object()
    assert dict(conversation.metadata) == {"a": 1}


@pytest.mark.parametrize("name", ["conversation_id", "title", "type", "summary"])
def test_a_blank_field_is_one_to_be_generated(name: str) -> None:
    fields: dict[str, Any] = {name: " \n"}
    assert getattr(Conversation(turns=[HELLO], **fields), name) is None


@pytest.mark.parametrize("name", ["conversation_id", "title", "type", "summary"])
@pytest.mark.parametrize("value", [5, b"x", ["x"], "\ud800"], ids=repr)
def test_a_field_that_is_no_text_is_refused(name: str, value: object) -> None:
    fields: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=rf"^{name}: "):
        Conversation(turns=[HELLO], **fields)


def test_a_conversation_needs_turns_or_a_summary() -> None:
    with pytest.raises(InputError, match=r"^turns: empty"):
        Conversation("a")
    with pytest.raises(InputError, match=r"^turns: empty"):
        Conversation("a", summary="  ")
    assert Conversation("a", summary="They met in Osaka.").turns == ()


def test_what_is_no_turn_is_refused_with_its_place() -> None:
    turns: Any = [HELLO, {"role": "user", "content": "Hi"}]
    with pytest.raises(InputError, match=r"^turns\[1\]: a Turn was expected, not dict"):
        Conversation("a", turns)


def _circle() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    return circle


def _deep() -> dict[str, Any]:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"in": deep}
    return deep


@pytest.mark.parametrize(
    "metadata",
    [
        {"a": object()},
        {"a": {1, 2}},
        {"a": b"x"},
        {("a", "b"): 1},
        {"a": datetime(2025, 3, 28)},
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": "\ud800"},
        {"\ud800": "a"},
        _circle(),
        None,
        5,
        ["a"],
    ],
    ids=lambda value: repr(value)[:16],
)
def test_metadata_that_is_no_json_is_refused(metadata: Any) -> None:
    with pytest.raises(InputError, match=r"^metadata: ") as caught:
        Conversation("a", [HELLO], metadata=metadata)
    assert "\n" not in str(caught.value)


def test_metadata_nested_too_deep_is_refused() -> None:
    with pytest.raises(InputError, match=r"^metadata: "):
        Conversation("a", [HELLO], metadata=_deep())


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"a": [1, 2.5, None, True, "x", {"b": []}]},
        {"a": (1, 2)},
        {1: "one", None: "none"},
        {"größe": "🦊\0"},
    ],
    ids=repr,
)
def test_adding_the_same_metadata_again_changes_nothing(metadata: dict[Any, Any], memory: LatentMemory) -> None:
    conversation = Conversation("a", [HELLO], metadata=metadata)
    assert memory.add(conversation).added == 1
    assert memory.add(conversation).unchanged == 1


def test_a_context_is_false_when_it_is_empty() -> None:
    assert not Context("", (), 0, 10)
    assert Context("text", (), 1, 10)


def test_reports_add_up() -> None:
    assert AddReport(1, 2, 3, 4, 5, 6) + AddReport(1, 1, 1, 1, 1, 1) == AddReport(2, 3, 4, 5, 6, 7)


def test_an_input_error_is_a_value_error_and_one_of_ours() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(InputError, LatentMemoryError)


def test_texts_come_back_to_the_last_code_point(store: Path) -> None:
    texts = [
        "a\0b\x01\x1b[31m\x7f",
        "🦊👩‍👩‍👧‍👦\U0010ffff",
        "مرحبا \u202eabc\u202c שלום",
        "你好，世界。",
        "e\u0301\u200b\ufeff",
        "a\r\nb\rc\u2028d",
    ]
    turns = [Turn("user", text, name=text) for text in texts]
    long = [Turn("assistant", text * 900) for text in texts]
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add([Conversation("short", turns, title=texts[0], summary=texts[1]), Conversation("long", long)])
    with LatentMemory.open(store) as memory:
        short = memory.get("short")
        assert short is not None
        assert tuple(short.turns) == tuple(turns)
        assert (short.title, short.summary) == (texts[0], texts[1])
        found = memory.get("long")
        assert found is not None
        assert tuple(found.turns) == tuple(long)


@pytest.mark.parametrize("text", ["a\0b. ", "🦊 ", "مرحبا بالعالم. ", "你好，世界。", "x\0", "a\r\nb\x1b "], ids=ascii)
def test_a_long_turn_is_cut_into_passages_and_each_is_what_was_said(text: str, memory: LatentMemory) -> None:
    said = f"{text * (6_000 // len(text))} zebra {text * (6_000 // len(text))}"
    memory.add(Conversation("a", [Turn("user", "Tell me."), Turn("assistant", said)]))
    assert memory.stats().passages > 4
    hit = memory.recall("zebra", k=1)[0].passage
    assert hit.turn == 1
    assert 0 < hit.start < hit.end < len(said)
    assert "zebra" in hit.text
    assert hit.text == said[hit.start : hit.end]
