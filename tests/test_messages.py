from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory import Turn
from latent_memory.errors import InputError
from latent_memory.messages import content_text, kind, turn_of
from latent_memory.records import ROLES


class Message(Mapping[str, Any]):
    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def test_a_message_becomes_a_turn() -> None:
    message = {"role": "user", "content": "Hi", "timestamp": "2025-03-28T11:00", "name": "Ana", "id": 7}
    assert turn_of(message, "m") == Turn("user", "Hi", datetime(2025, 3, 28, 11), "Ana")


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_read(role: str) -> None:
    assert turn_of({"role": role, "content": "Hi"}, "m").role == role


def test_any_mapping_is_a_message() -> None:
    assert turn_of(Message(role="user", content="Hi"), "m") == Turn("user", "Hi")


def test_the_text_is_kept_to_the_last_white_space() -> None:
    assert turn_of({"role": "user", "content": "  Hi\r\n\t "}, "m").text == "  Hi\r\n\t "


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "said"}, "said"),
        ({"content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}, "one\ntwo"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "a cat"}]}, "a cat"),
        ({"content": [{"type": "text", "text": None}, "loose", 5, {"type": "text", "text": "kept"}]}, "kept"),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}, 'f({"a": 1})'),
        ({"tool_calls": [{"function": {"name": n, "arguments": "1"}} for n in ("f", "g")]}, "f(1)\ng(1)"),
        ({"content": "said", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}, "said"),
        ({"content": "", "tool_calls": [{"function": {"name": "f", "arguments": "1"}}]}, "f(1)"),
        ({"content": [], "tool_calls": [{"function": {"name": "f", "arguments": "1"}}]}, "f(1)"),
        ({"content": "", "tool_calls": None}, ""),
        ({"content": "", "tool_calls": ["f", {}, {"function": None}]}, ""),
        ({"content": "", "tool_calls": {"function": "f"}}, ""),
        ({"content": None}, ""),
        ({}, ""),
    ],
)
def test_what_a_message_says(message: dict[str, Any], text: str) -> None:
    assert content_text(message) == text


@pytest.mark.parametrize("calls", [5, True, 1.5, "f"])
def test_tool_calls_that_are_no_list_say_nothing(calls: object) -> None:
    assert content_text({"content": "", "tool_calls": calls}) == ""


@pytest.mark.parametrize(("content", "told"), [(5, "a number"), (1.5, "a number"), ({}, "an object"), (True, "true")])
def test_content_that_is_no_text_is_refused(content: object, told: str) -> None:
    with pytest.raises(InputError, match=rf"^messages\[3\]\.content: a text was expected, not {told}"):
        turn_of({"role": "user", "content": content}, "messages[3]")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (None, "m: an object was expected, not null"),
        ("hello", "m: an object was expected, not a text"),
        (["user", "hello"], "m: an object was expected, not a list"),
        (5, "m: an object was expected, not a number"),
        ({"content": "Hi"}, 'm: no "role"'),
        ({"role": None, "content": "Hi"}, 'm: no "role"'),
        ({"role": 5, "content": "Hi"}, 'm: no "role"'),
        ({"role": "human", "content": "Hi"}, "m.role: 'human' is unknown; use one of user, assistant, "),
        ({"role": "User", "content": "Hi"}, "m.role: 'User' is unknown"),
        ({"role": "user"}, "m.content: empty"),
        ({"role": "user", "content": ""}, "m.content: empty"),
        ({"role": "user", "content": " \n\t"}, "m.content: empty"),
        ({"role": "user", "content": []}, "m.content: empty"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "m.content: empty"),
        ({"role": "user", "content": "x" * 10_000_000}, "m.content: 10,000,000 characters"),
        ({"role": "user", "content": "cut \ud83d"}, "m.content: character 4 is half of a surrogate pair"),
        ({"role": "user", "content": [{"text": "\ude00"}]}, "m.content: character 0 is half of a surrogate pair"),
        ({"role": "user", "content": "Hi", "name": "\ud83d"}, "m.name: character 0 is half of a surrogate pair"),
        ({"role": "user", "content": "Hi", "name": 5}, "m.name: text was expected"),
        ({"role": "user", "content": "Hi", "timestamp": "soon"}, "m.timestamp: 'soon' is no time"),
        ({"role": "user", "content": "Hi", "timestamp": {}}, "m.timestamp: {} is no time"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_what_is_no_message_is_refused_with_its_place(message: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        turn_of(message, "m")
    assert str(caught.value).startswith(told)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("value", "told"),
    [({}, "an object"), ([], "a list"), ("", "a text"), (False, "true or false"), (None, "null"), (0, "a number")],
)
def test_json_values_have_words(value: object, told: str) -> None:
    assert kind(value) == told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(ROLES) | JSON,
            "content": JSON | st.lists(st.dictionaries(st.sampled_from(["type", "text"]), JSON)),
            "timestamp": JSON,
            "name": JSON,
            "tool_calls": JSON | st.lists(st.dictionaries(st.just("function"), JSON)),
        },
    )
)
def test_any_json_object_is_a_turn_or_an_input_error(message: dict[str, Any]) -> None:
    try:
        turn = turn_of(message, "m")
    except InputError:
        return
    assert turn.text.strip()
