from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.generated import (
    SUMMARY_CHARACTERS,
    TITLE_CHARACTERS,
    conversation_id,
    shorten,
    summary,
    title,
    turn_digest,
)
from latent_memory.passages import pieces, sentences
from latent_memory.records import Turn
from latent_memory.vectors import Vectors, unit

_TALK = [
    Turn("user", "Hi there! I need help with my sourdough starter, it does not rise. What am I doing wrong?"),
    Turn("assistant", "A starter that does not rise is often too cold. Keep the starter at 26 degrees for a few days."),
    Turn("user", "The kitchen is cold in winter, true. I will put the starter on the boiler then."),
    Turn("assistant", "Good idea. Feed the starter twice a day, and discard half of it before each feeding."),
    Turn("user", "How long until the starter doubles after a feeding?"),
    Turn("tool", '{"temperature": 18, "unit": "C"}'),
    Turn("assistant", "A healthy starter doubles within four to six hours at that temperature."),
]


def _vectors(turns: Sequence[Turn]) -> dict[int, Vectors]:
    embedder = HashingEmbedder(64)
    return {i: embedder.embed([piece.text for piece in pieces(turn.text)]) for i, turn in enumerate(turns)}


def _id(*turns: Turn, told: str | None = None) -> str:
    return conversation_id([turn_digest(turn) for turn in turns], told)


def test_ids_stay_the_same_over_releases() -> None:
    turns = [
        Turn("user", "We fly to Osaka on 3 May.", datetime(2025, 3, 28, 11, tzinfo=UTC), "Ana"),
        Turn("assistant", "Noted — 日本!"),
    ]
    assert turn_digest(turns[0]).hex() == "cfd749f8f49dde3f47688c35ec99f590"
    assert _id(*turns) == "gen-0895e6b0d1845c2a"
    assert _id(*turns, told="A trip.") == "gen-95e700d0edb18a11"


@pytest.mark.parametrize(
    "other",
    [
        Turn("assistant", "Hello", datetime(2025, 1, 1), "Ana"),
        Turn("user", "Hello ", datetime(2025, 1, 1), "Ana"),
        Turn("user", "Hello", datetime(2025, 1, 2), "Ana"),
        Turn("user", "Hello", datetime(2025, 1, 1, tzinfo=UTC), "Ana"),
        Turn("user", "Hello", None, "Ana"),
        Turn("user", "Hello", datetime(2025, 1, 1), "Bea"),
        Turn("user", "Hello", datetime(2025, 1, 1)),
    ],
)
def test_ids_differ_when_anything_of_a_turn_differs(other: Turn) -> None:
    turn = Turn("user", "Hello", datetime(2025, 1, 1), "Ana")
    assert turn_digest(turn) == turn_digest(Turn("user", "Hello", datetime(2025, 1, 1), "Ana"))
    assert turn_digest(other) != turn_digest(turn)
    assert _id(other) != _id(turn)


def test_ids_differ_with_order_number_and_summary() -> None:
    a, b = Turn("user", "a"), Turn("user", "b")
    ids = [_id(a), _id(b), _id(a, b), _id(b, a), _id(a, a), _id(a, told="a"), _id(told="a"), _id(told="b")]
    assert len(set(ids)) == len(ids)
    assert all(len(i) == 20 and i.startswith("gen-") for i in ids)


def test_an_absent_name_is_not_a_name() -> None:
    assert turn_digest(Turn("user", "x", None, "null")) != turn_digest(Turn("user", "x"))
    assert turn_digest(Turn("user", "x", None, "None")) != turn_digest(Turn("user", "x"))


@pytest.mark.parametrize(
    ("turns", "told", "expected"),
    [
        (_TALK, None, "I need help with my sourdough starter, it does not rise."),
        ([Turn("assistant", "Welcome to the help desk today."), Turn("user", "My invoice is wrong.")], None,
         "My invoice is wrong."),
        ([Turn("user", "Hi."), Turn("user", "Good morning!"), Turn("user", "Where can I find the boiler?")], None,
         "Where can I find the boiler?"),
        ([Turn("user", "Hi."), Turn("assistant", "Hello, how can I help?")], None, "Hi."),
        ([Turn("assistant", "The build failed again last night.")], None, "The build failed again last night."),
        ([Turn("user", "🎉")], None, "🎉"),
        ([Turn("user", "Please  read\tthis list:\nmilk")], None, "Please read this list:"),
        ([], "A trip to Osaka in May.", "A trip to Osaka in May."),
    ],
)  # fmt: skip
def test_title(turns: list[Turn], told: str | None, expected: str) -> None:
    assert title(turns, told) == expected


@given(st.lists(st.text(min_size=1).filter(lambda text: text.strip() != ""), min_size=1, max_size=4))
def test_title_is_one_short_line(texts: list[str]) -> None:
    made = title([Turn("user", text) for text in texts], None)
    assert 0 < len(made) <= TITLE_CHARACTERS
    assert made == " ".join(made.split())


def test_summary_is_sentences_of_the_turns_in_the_order_they_were_said() -> None:
    said = [sentence for turn in _TALK if turn.role != "tool" for sentence in sentences(turn.text)]
    made = sentences(summary(_TALK, _vectors(_TALK)))
    assert len(made) >= 2
    places = [said.index(sentence) for sentence in made]
    assert places == sorted(set(places))


def test_summary_takes_the_turns_nearest_the_centroid_while_there_is_room() -> None:
    turns = [Turn("user", f"Sentence number {word} is here.") for word in ("one", "two", "three")]
    turns.append(Turn("user", "Another " + "very " * 45 + "long one."))
    # The centroid points to (0.94, 0.35): nearest are the last, the second and the third, and the first is far.
    vectors = {i: unit([vector]) for i, vector in enumerate([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.9, 0.1]])}
    assert summary(turns, vectors) == f"{turns[1].text} {turns[3].text}"


def test_summary_takes_the_mean_of_a_turn_in_pieces() -> None:
    turns = [Turn("user", f"{name} " + "turn " * 40) for name in ("first", "second", "third")]
    # The first turn's mean is nearest the centroid, its pieces are not; a second one does not fit.
    vectors = {0: unit([[1.0, 0.0], [0.0, 1.0]]), 1: unit([[1.0, 0.2]]), 2: unit([[0.2, 1.0]])}
    assert summary(turns, vectors) == turns[0].text.strip()


def test_summary_leaves_machines_out_unless_there_is_nothing_else() -> None:
    machine = Turn("tool", "The temperature is 18 degrees in the kitchen.")
    turns = [machine, Turn("user", "Is it warm enough for bread?")]
    assert summary(turns, _vectors(turns)) == "Is it warm enough for bread?"
    assert summary([machine], _vectors([machine])) == machine.text


def test_summary_of_short_turns_is_the_one_nearest_the_centroid() -> None:
    turns = [Turn("user", "Yes."), Turn("user", "Osaka, May"), Turn("user", "No.")]
    vectors = {0: unit([[1.0, 0.0]]), 1: unit([[0.7, 0.7]]), 2: unit([[0.0, 1.0]])}
    assert summary(turns, vectors) == "Osaka, May"


def test_summary_of_one_endless_sentence_is_its_beginning() -> None:
    turn = Turn("user", "and then we walked " * 60)
    made = summary([turn], _vectors([turn]))
    assert len(made) <= SUMMARY_CHARACTERS
    assert turn.text.startswith(made.removesuffix("…"))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "assistant", "tool", "system"]),
            st.text(min_size=1, max_size=120).filter(lambda text: text.strip() != "")
            | st.lists(st.sampled_from(["We", "met", "Ana.", "Then", "in", "Osaka!", "\n"]), min_size=1, max_size=90)
            .map(" ".join)
            .filter(lambda text: text.strip() != ""),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_summary_is_short_and_said(said: list[tuple[str, str]]) -> None:
    turns = [Turn(role, text) for role, text in said]
    vectors = _vectors(turns)
    made = summary(turns, vectors)
    assert made == summary(turns, vectors)
    assert len(made) <= SUMMARY_CHARACTERS
    everything = " ".join(" ".join(turn.text.split()) for turn in turns)
    words = iter(everything.split())
    assert all(word in words for word in made.removesuffix("…").split()[:-1])


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("short", 10, "short"),
        ("exactly ten", 11, "exactly ten"),
        ("  two\n lines ", 20, "two lines"),
        ("one two three four", 12, "one two…"),
        ("one two, three", 10, "one two…"),
        ("abcdefghijklmnop", 8, "abcdefg…"),
        ("a bcdefghijklmnop", 8, "a bcdef…"),
        ("", 5, ""),
    ],
)
def test_shorten(text: str, most: int, expected: str) -> None:
    assert shorten(text, most) == expected


@given(st.text(), st.integers(1, 80))
def test_shorten_is_a_beginning_of_the_line(text: str, most: int) -> None:
    line = " ".join(text.split())
    made = shorten(text, most)
    assert len(made) <= most
    assert made == line if len(line) <= most else line.startswith(made.removesuffix("…"))


def test_vectors_of_the_wrong_turn_are_not_asked_for() -> None:
    turns = [Turn("user", "We talk about the garden today."), Turn("tool", "42")]
    assert summary(turns, {0: np.ones((1, 2), np.float32)}) == turns[0].text
