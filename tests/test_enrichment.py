"""Shapes of requests and answers: memory goes in where it should, and nothing else changes, whatever is sent."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory import Turn
from latent_memory.enrichment import (
    AnthropicAnswer,
    Api,
    ChatAnswer,
    ResponsesAnswer,
    answer_of,
    asks,
    content_text,
    said,
    turns,
    with_memory,
)
from latent_memory.records import MOST_TURN_CHARACTERS

BLOCK = "<memory>\nremembered\n</memory>"
APIS: tuple[Api, ...] = get_args(Api)
FIELD = {"chat": "messages", "responses": "input", "anthropic": "messages"}
PART = {"chat": "text", "responses": "input_text", "anthropic": "text"}


# -- requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
def test_memory_goes_before_the_last_thing_the_user_said(api: Api) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is my dog called?"},
        {"role": "assistant", "content": "Let me see"},
    ]
    body = {FIELD[api]: messages, "model": "m"}
    before = copy.deepcopy(body)
    made = with_memory(api, body, BLOCK)
    assert body == before
    changed = made[FIELD[api]]
    assert changed[3] == {"role": "user", "content": f"{BLOCK}\n\nWhat is my dog called?"}
    assert [*changed[:3], changed[4]] == [*messages[:3], messages[4]]
    assert made["model"] == "m"


@pytest.mark.parametrize("api", APIS)
def test_memory_is_a_part_of_its_own_before_the_first_text(api: Api) -> None:
    parts = [{"type": "tool_result", "content": "x"}, {"type": PART[api], "text": "Hello"}, {"type": "image"}]
    made = with_memory(api, {FIELD[api]: [{"role": "user", "content": parts, "id": 7}]}, BLOCK)
    (message,) = made[FIELD[api]]
    assert message == {
        "role": "user",
        "content": [parts[0], {"type": PART[api], "text": f"{BLOCK}\n"}, parts[1], parts[2]],
        "id": 7,
    }


def test_what_is_said_may_be_a_text_alone() -> None:
    assert with_memory("responses", {"input": "Hello"}, BLOCK) == {"input": f"{BLOCK}\n\nHello"}
    assert with_memory("responses", {"input": "  "}, BLOCK) == {"input": "  "}
    assert said("responses", {"input": "Hello"}) == [Turn("user", "Hello")]
    assert asks("responses", {"input": "Hello"})
    assert not asks("responses", {"input": " "})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": None},
        {"messages": []},
        {"messages": [{"role": "system", "content": "Be brief."}]},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [{"role": "assistant", "content": "Hello"}, "user", 7]},
        {"messages": {"role": "user", "content": "Hello"}},
    ],
)
def test_where_the_user_says_nothing_nothing_is_put(body: dict[str, Any]) -> None:
    assert with_memory("chat", body, BLOCK) == body
    assert not asks("chat", body)


def test_without_memory_a_request_is_as_it_was() -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    assert with_memory("chat", body, "") == body


def test_what_was_said() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello", "name": "Ana"},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "tool", "content": "Sunny"},
        {"role": "assistant", "content": [{"type": "text", "text": "It is sunny"}, {"type": "refusal"}]},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}], "name": "\n"},
    ]
    assert said("chat", {"messages": messages}) == [
        Turn("user", "Hello", name="Ana"),
        Turn("assistant", "It is sunny"),
        Turn("user", "One\nTwo"),
    ]


def test_a_text_that_is_too_long_makes_several_turns() -> None:
    text = "x" * (2 * MOST_TURN_CHARACTERS + 5)
    assert [len(turn.text) for turn in turns("user", text)] == [MOST_TURN_CHARACTERS, MOST_TURN_CHARACTERS, 5]
    assert list(turns("user", " \n ")) == []


def test_half_of_a_surrogate_pair_is_a_question_mark() -> None:
    assert [turn.text for turn in turns("user", "a\ud800b")] == ["a?b"]


# -- answers ----------------------------------------------------------------------------------------------


def test_a_chat_answer_in_pieces_and_whole() -> None:
    pieces = ChatAnswer()
    for delta, reason in (({"role": "assistant"}, None), ({"content": "Hello"}, None), ({"content": " "}, None)):
        pieces.event({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
    pieces.event({"choices": [{"index": 1, "delta": {"content": "another"}}]})
    assert not pieces.finished
    pieces.event({"choices": [{"index": 0, "delta": {"content": "you"}, "finish_reason": "stop"}]})
    pieces.event({"choices": [], "usage": {}})
    assert (pieces.text, pieces.finished, pieces.characters) == ("Hello you", True, 9)
    whole = ChatAnswer()
    choices = [{"index": i, "message": {"content": text}, "finish_reason": "stop"} for i, text in enumerate("ab")]
    whole.whole({"choices": choices})
    assert (whole.text, whole.finished) == ("a", True)


def test_an_answer_of_responses_in_pieces_and_whole() -> None:
    def delta(text: str, place: int) -> dict[str, Any]:
        return {"type": "response.output_text.delta", "delta": text, "output_index": place, "content_index": 0}

    message = {"type": "message", "content": [{"type": "output_text", "text": "Hello you"}]}
    whole = {"id": "resp_1", "output": [{"type": "reasoning"}, message, message]}
    answer = ResponsesAnswer()
    answer.event({"type": "response.created", "response": {"id": "resp_1", "output": []}})
    for event in (delta("Hel", 1), delta("lo", 1), delta("you", 2)):
        answer.event(event)
    assert (answer.text, answer.response_id, answer.finished) == ("Hello\nyou", "resp_1", False)
    answer.event({"type": "response.completed", "response": {**whole, "output": []}})
    assert (answer.text, answer.finished) == ("Hello\nyou", True)
    answer.event({"type": "response.completed", "response": whole})
    assert answer.text == "Hello you\nHello you"
    other = ResponsesAnswer()
    other.whole(whole)
    assert (other.text, other.response_id, other.finished) == ("Hello you\nHello you", "resp_1", True)


def test_an_answer_of_anthropic_in_pieces_and_whole() -> None:
    answer = AnthropicAnswer()
    for index, text in ((0, "Hel"), (0, "lo"), (2, "you")):
        answer.event({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}})
    answer.event({"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta"}})
    assert (answer.text, answer.finished) == ("Hello\nyou", False)
    answer.event({"type": "message_stop"})
    assert answer.finished
    whole = AnthropicAnswer()
    whole.whole({"content": [{"type": "tool_use"}, {"type": "text", "text": "Hello"}]})
    assert (whole.text, whole.finished) == ("Hello", True)


def test_very_many_pieces_take_little_time() -> None:
    for answer, event in (
        (ChatAnswer(), {"choices": [{"delta": {"content": "word "}}]}),
        (ResponsesAnswer(), {"type": "response.output_text.delta", "delta": "word "}),
        (AnthropicAnswer(), {"type": "content_block_delta", "delta": {"text": "word "}}),
    ):
        for _ in range(200_000):
            answer.event(event)
        assert answer.characters == len(answer.text) == 1_000_000


# -- whatever is sent -------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "input_text", "output_text", "image_url"]) | JSON},
    optional={"text": st.text(st.characters()) | JSON},
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("message") | JSON,
        "role": st.sampled_from(["user", "assistant", "system", "tool"]) | JSON,
        "content": st.text(st.characters()) | st.lists(PARTS | JSON, max_size=4) | JSON,
        "name": st.text(st.characters()) | JSON,
    },
)
SAID = st.lists(MESSAGES | JSON, max_size=5) | st.text(st.characters()) | JSON
BODIES = st.fixed_dictionaries({}, optional={"messages": SAID, "input": SAID, "model": JSON})


@given(st.sampled_from(APIS), BODIES)
def test_any_request_is_read_and_only_what_was_asked_changes(api: Api, body: dict[str, Any]) -> None:
    before = repr(body)
    made = with_memory(api, body, BLOCK)
    assert repr(body) == before
    name = FIELD[api]
    told = said(api, body)
    assert all(turn.text.strip() for turn in told)
    assert asks(api, body) == (repr(made) != before)
    assert {key: repr(value) for key, value in made.items() if key != name} == {
        key: repr(value) for key, value in body.items() if key != name
    }
    if not asks(api, body):
        return
    assert any(turn.role == "user" for turn in told)
    if isinstance(body[name], str):
        assert made[name] == f"{BLOCK}\n\n{body[name]}"
        return
    changed = [i for i, pair in enumerate(zip(body[name], made[name], strict=True)) if repr(pair[0]) != repr(pair[1])]
    (at,) = changed
    assert content_text(made[name][at]["content"]).startswith(BLOCK)
    # Nothing that the user said was lost.
    assert content_text(made[name][at]["content"]).endswith(content_text(body[name][at]["content"]))


CHOICES = st.fixed_dictionaries({}, optional={"index": JSON, "delta": MESSAGES | JSON, "message": MESSAGES | JSON})
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["response.output_text.delta", "response.completed", "content_block_delta", "message_stop"]
        )
        | JSON,
        "choices": st.lists(CHOICES | JSON, max_size=3) | JSON,
        "delta": JSON | st.fixed_dictionaries({}, optional={"text": st.text() | JSON}),
        "response": JSON | st.fixed_dictionaries({}, optional={"id": JSON, "output": st.lists(MESSAGES, max_size=3)}),
        "output_index": JSON,
        "content_index": JSON,
        "index": JSON,
        "content": JSON | st.lists(PARTS, max_size=3),
        "output": JSON | st.lists(MESSAGES, max_size=3),
    },
)


@given(st.sampled_from(APIS), st.lists(EVENTS | JSON, max_size=6), EVENTS | JSON)
def test_any_answer_is_read(api: Api, events: list[Any], whole: Any) -> None:
    answer = answer_of(api)
    for event in events:
        answer.event(event)
    answer.whole(whole)
    assert isinstance(answer.text, str)
    assert answer.characters <= len(answer.text)
    list(turns("assistant", answer.text))
