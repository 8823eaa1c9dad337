from __future__ import annotations

import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_memory.passages import (
    MOST_CHARACTERS,
    MOST_TOKENS,
    Piece,
    asks,
    count_tokens,
    count_words,
    pieces,
    sentences,
    spoken,
)

_BITS = st.one_of(
    st.text(min_size=1, max_size=12),
    st.sampled_from(
        ["\0", "字", "日本。", "x", "word ", "Yes. ", 'He said "no." ', "\n\n", "\u2028", "🎉", "한", "e\u0301"]
    ),
)
_TEXTS = st.lists(st.tuples(_BITS, st.integers(1, 900)), max_size=5).map(
    lambda parts: "".join(bit * times for bit, times in parts)
)
_VOCABULARY = [
    *("the", "river", "a", "of", "house", "garden", "morning", "people", "train", "letter", "summer", "kitchen"),
    *("walked", "talked", "opened", "bright", "because", "small", "old", "friend", "never", "always", "between"),
    *("question", "answer", "window"),
]


def _prose(chance: random.Random, most_words: int) -> str:
    told: list[str] = []
    words = 0
    goal = chance.randint(MOST_TOKENS + 10, most_words)
    while words < goal:
        length = chance.randint(5, 25)
        told.append(" ".join(chance.choices(_VOCABULARY, k=length)).capitalize() + chance.choice([".", "?", ".", "!"]))
        words += length + 1
    return " ".join(told)


def _balance(made: list[Piece]) -> float:
    lengths = [count_tokens(piece.text) for piece in made]
    return min(lengths) / max(lengths)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End an endless loop by an error, counted in processor time; pytest's own timeout comes once a test only."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _check(text: str) -> list[Piece]:
    with _at_most(60):
        made = pieces(text)
    assert "".join(piece.text for piece in made) == text
    start = 0
    for piece in made:
        assert piece.start == start
        assert piece.words == count_words(piece.text)
        assert len(piece.text) <= MOST_CHARACTERS
        assert count_tokens(piece.text) <= MOST_TOKENS
        start += len(piece.text)
    return made


@given(st.text())
def test_any_short_text_is_pieces_of_itself(text: str) -> None:
    _check(text)


@settings(max_examples=150, deadline=None)
@given(_TEXTS)
def test_any_long_text_is_pieces_of_itself(text: str) -> None:
    made = _check(text)
    if text:
        assert all(piece.text for piece in made)


@pytest.mark.parametrize("text", ["", " ", "Yes.", "One. Two. Three.", "字" * MOST_TOKENS, "x" * MOST_CHARACTERS])
def test_a_text_that_fits_is_one_piece(text: str) -> None:
    assert pieces(text) == [Piece(0, text, count_words(text))]


def test_a_long_text_is_cut_where_sentences_end() -> None:
    text = _prose(random.Random(5), 900)
    made = _check(text)
    assert len(made) > 1
    for piece in made[:-1]:
        assert re.search(r"[.!?] $", piece.text), piece.text[-20:]


def test_a_long_text_is_cut_where_paragraphs_end() -> None:
    paragraph = " ".join(_VOCABULARY * 3)
    made = _check("\n\n".join([paragraph] * 6))
    assert [piece.text.split("\n\n")[:2] for piece in made] == [[paragraph, paragraph]] * 3


def test_a_long_sentence_is_cut_at_spaces() -> None:
    for piece in _check("harbour " * 700)[:-1]:
        assert piece.text.endswith("harbour ")


def test_prose_is_cut_into_even_pieces() -> None:
    chance = random.Random(11)
    uneven = []
    for _ in range(300):
        made = _check(_prose(chance, 3_000))
        if _balance(made) < 0.25:
            uneven.append([count_tokens(piece.text) for piece in made])
    assert not uneven


def test_chinese_prose_is_cut_into_even_pieces() -> None:
    chance = random.Random(12)
    uneven = []
    for _ in range(100):
        text = "".join("字" * chance.randint(6, 25) + "。" for _ in range(chance.randint(20, 120)))
        made = _check(text)
        if _balance(made) < 0.25:
            uneven.append([count_tokens(piece.text) for piece in made])
    assert not uneven


@pytest.mark.parametrize("words", [161, 165, 170, 330, 500])
def test_speech_without_marks_is_cut_into_even_pieces(words: int) -> None:
    chance = random.Random(words)
    made = _check(" ".join(chance.choices(_VOCABULARY, k=words)))
    assert _balance(made) >= 0.25, [piece.words for piece in made]


@pytest.mark.parametrize(
    "text",
    [
        " " * 5_000,
        "\n" * 5_000,
        " " * 1_700 + "x",
        "x" + "\n" * 1_700,
        "word " * 300 + "\t" * 5_000 + "word " * 10,
        "x" * 5_000 + " " + "字" * 500,
        "word " * 300 + "x" * 4_000,
    ],
    ids=lambda text: repr(text[:6] + "…" + text[-6:]),
)
def test_texts_of_little_but_white_space_or_one_word(text: str) -> None:
    _check(text)


@pytest.mark.parametrize("character", ["x", "字", ".", "\n", "\0", "🎉"])
def test_a_million_characters_without_spaces_come_to_an_end(character: str) -> None:
    text = character * 1_000_000
    with _at_most(60):
        made = pieces(text)
    assert sum(len(piece.text) for piece in made) == 1_000_000
    assert max(len(piece.text) for piece in made) <= MOST_CHARACTERS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n ", []),
        ("One. Two!  Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "Go." She went.', ['He said "Go."', "She went."]),
        ("Costs 3.50 EUR. Or v1.2", ["Costs 3.50 EUR.", "Or v1.2"]),
        ("Well… perhaps.", ["Well…", "perhaps."]),
        ("first line\n\n  second line", ["first line", "second line"]),
        ("今日は。明日は!", ["今日は。", "明日は!"]),
        ("本当？はい！行く", ["本当？", "はい！", "行く"]),
        ("(It rained.) So we left.", ["(It rained.)", "So we left."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.text(alphabet=st.sampled_from(list("aB .!?。\n\"')")), max_size=60))
def test_sentences_lose_only_white_space(text: str) -> None:
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in found)


@pytest.mark.parametrize(
    ("text", "words", "tokens"),
    [
        ("", 0, 0),
        ("Hello, world!", 2, 4),
        ("日本語 and Korean 한국", 7, 7),
        ("don't", 2, 3),
        ("snake_case 3.14", 3, 4),
        ("🎉", 0, 1),
        ("a\0b", 2, 3),
    ],
)
def test_counts(text: str, words: int, tokens: int) -> None:
    assert (count_words(text), count_tokens(text)) == (words, tokens)


def test_spoken_begins_with_the_speaker() -> None:
    assert spoken("Ana", "I moved.") == "Ana: I moved."
    assert spoken(None, "I moved.") == "I moved."
    assert spoken("", "I moved.") == "I moved."


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("What are you allergic to?", True),
        ("I moved. And you?", True),
        ("How about you? 😊", True),
        ('She said: "why?"', True),
        ("Which one? [shared a photo: a photo of two lamps]", True),
        ("元気ですか？", True),
        ("كيف حالك؟", True),
        ("Why? Because it rains.", False),
        ("I do not know.", False),
        ("", False),
        ("a? " + "b " * 500, False),
    ],
)
def test_a_text_that_ends_with_a_question_asks(text: str, asked: bool) -> None:
    assert asks(text) is asked
