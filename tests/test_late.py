"""Late interaction: codes of tokens, compared as cosines are, whatever the texts' lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.embedders import load
from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.embedders.onnx import OnnxEmbedder
from latent_memory.errors import EmbedderError
from latent_memory.late import TokenVectors, codes_of, codes_to_bytes, encode, max_similarity
from latent_memory.vectors import unit


def codes(chance: np.random.Generator, count: int, width: int = 6) -> Any:
    return chance.integers(-127, 128, (count, width), dtype=np.int8)


@given(st.integers(0, 10_000), st.integers(1, 6), st.lists(st.integers(0, 9), max_size=8))
def test_similarity_is_that_of_a_plain_loop(seed: int, asked: int, lengths: list[int]) -> None:
    chance = np.random.default_rng(seed)
    query, passages = codes(chance, asked), [codes(chance, length) for length in lengths]
    found = max_similarity(query, passages)
    assert found.shape == (len(lengths),)
    full = [i for i, length in enumerate(lengths) if length]
    best = [
        [max(float(np.dot(t.astype(float), q.astype(float))) for t in passages[i]) / 254**2 for i in full]
        for q in query
    ]
    weights = [max(row) - sum(row) / len(row) for row in best] if full else []
    if sum(weights) <= 1e-9:
        return
    for place, i in enumerate(full):
        expected = sum(w * row[place] for w, row in zip(weights, best, strict=True)) / sum(weights)
        assert found[i] == pytest.approx(expected, abs=1e-4)
    assert all(found[i] == 0 for i in range(len(lengths)) if i not in full)


def test_one_passage_counts_all_tokens_alike() -> None:
    query = np.array([[100, 0], [0, 100]], np.int8)
    found = max_similarity(query, [np.array([[100, 0], [0, 50]], np.int8)])
    np.testing.assert_allclose(found, [(100 * 100 + 100 * 50) / 2 / 254**2], rtol=1e-6)


def test_codes_are_nearly_the_cosines() -> None:
    chance = np.random.default_rng(0)
    axes = np.linalg.qr(chance.normal(size=(64, 64)))[0][:, :48].astype(np.float32)
    tokens = unit(chance.normal(size=(50, 48)) @ axes.T) * 7.0
    made = encode(tokens, axes)
    assert made.dtype == np.int8
    assert made.shape == (50, 48)
    np.testing.assert_allclose(made.astype(float) @ made.T / 254**2, unit(tokens) @ unit(tokens).T, atol=0.02)


@given(st.integers(0, 5), st.integers(1, 64))
def test_codes_are_stored_and_read_again(count: int, width: int) -> None:
    made = codes(np.random.default_rng(count), count, width)
    back = codes_of(codes_to_bytes(made))
    assert back.shape == made.shape
    np.testing.assert_array_equal(back, made)


# -- of the default embedder --------------------------------------------------------------------------------

TEXTS = ["The dough needs less water.", "Ana: yes!", "", "a " * 400, "Übung macht den Meister 🎹"]


def test_the_default_embedder_makes_codes_in_the_same_run() -> None:
    embedder = load("minilm")
    assert isinstance(embedder, OnnxEmbedder)
    made = embedder.embed_tokens(TEXTS)
    np.testing.assert_allclose(made.vectors, embedder.embed(TEXTS), atol=2e-2)
    assert [code.shape[1] for code in made.codes] == [48] * len(TEXTS)
    # Without the marks that the model puts around a text, and 256 tokens at most with them.
    assert [len(code) for code in made.codes][1:4] == [4, 0, 254]
    alone = embedder.embed_tokens(TEXTS[:1], query=True)
    cosines = (alone.codes[0].astype(float) * made.codes[0].astype(float)).sum(axis=1) / 254**2
    assert cosines.min() > 0.95
    assert embedder.embed_tokens([]).codes == []


def test_a_passage_is_found_by_a_word_that_its_vector_drowns(tmp_path: Any) -> None:
    """A long turn's one vector says little of its one sentence about the piano; its tokens do."""
    chat = " ".join(f"We talked about the weather and the news of day {i}." for i in range(9))
    long = f"{chat} I have begun to learn the piano. {chat}"
    with LatentMemory.open(tmp_path / "store") as memory:
        memory.add([Conversation("piano", [Turn("user", long)]), Conversation("other", [Turn("user", chat * 2)])])
        with_tokens = {h.passage.conversation_id: h.signals["tokens"] for h in memory.recall("which instrument?", k=2)}
        assert with_tokens["piano"] > with_tokens["other"]


# -- of embedders of one's own ------------------------------------------------------------------------------


class Words(HashingEmbedder):
    """Hashes words, and each word by itself."""

    name = "words"

    def __init__(self, width: int = 16) -> None:
        super().__init__(64)
        self.width = width
        self.asked: list[bool] = []

    def embed_tokens(self, texts: Sequence[str], *, query: bool = False) -> TokenVectors:
        self.asked.append(query)
        made = []
        for text in texts:
            words = [hash_of(word, self.width) for word in text.lower().split()]
            made.append(np.array(words, np.int8).reshape(len(words), self.width))
        return TokenVectors(self.embed(texts, query=query), made)


def hash_of(word: str, width: int) -> list[int]:
    return [100 if ord(word[0]) % width == i else 0 for i in range(width)]


def test_tokens_of_an_own_embedder_are_stored_compared_and_forgotten(tmp_path: Any) -> None:
    embedder = Words()
    with LatentMemory.open(tmp_path / "store", embedder=embedder) as memory:
        memory.add([Conversation(f"c{i}", [Turn("user", text)]) for i, text in enumerate(("alpha", "beta", "gamma"))])
        # The same first letter, and no word in common.
        hits = memory.recall("great", k=3)
        assert hits[0].passage.text == "gamma"
        assert hits[0].signals["tokens"] == 2.0
        assert embedder.asked == [False, True]
        count = "SELECT count(*) FROM tokens"
        assert memory._store.database.row(count) == (3,)
        memory.forget("c2")
        assert memory._store.database.row(count) == (2,)
        memory.reembed(Words(8))
        assert memory._store.database.row(count) == (2,)
        # Another width is another projection: not compared with what was stored.
        memory.embedder = Words(4)
        assert memory.recall("great", k=1)[0].signals["tokens"] == 0
        memory.reembed("hashing")
        assert memory._store.database.row(count) == (0,)
        assert memory.recall("alpha", k=1)[0].signals["tokens"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        [np.zeros((1, 4), np.int8)],
        [np.zeros((1, 4), np.float32)] * 2,
        [np.zeros(4, np.int8)] * 2,
        [[1, 2]] * 2,
    ],
)
def test_what_are_no_codes_is_refused(wrong: Any, tmp_path: Any) -> None:
    class Wrong(HashingEmbedder):
        name = "wrong"

        def embed_tokens(self, texts: Sequence[str], *, query: bool = False) -> TokenVectors:
            return TokenVectors(self.embed(texts), wrong)

    talk = Conversation("a", [Turn("user", "one"), Turn("user", "two")])
    with LatentMemory.open(tmp_path / "store", embedder=Wrong(8)) as memory:
        with pytest.raises(EmbedderError, match="no codes"):
            memory.add(talk)
        assert memory.stats().turns == 0
