from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from latent_memory import embedders
from latent_memory.embedders import Embedder, identity
from latent_memory.errors import InputError, LatentMemoryError

_ODD = [
    "a\0b",
    "🎉🎉",
    "日本語のテキストです。",
    "naïve Ærøskøbing",
    "\u202eright to left",
    "x" * 5_000,
    "word " * 20_000,
]
_TEXTS = [
    "Where did I park the car?",
    "I parked the car behind the station.",
    "Yes.",
    "The invoice is due on 14 March, and the bank holiday is the week after.",
    *_ODD,
    *(f"Note {i}: " + "we talked about the garden " * (i % 7) for i in range(30)),
]


def _static_model(directory: Path) -> str:
    """Save a small sentence-transformers model, a fixed random vector a token, and return its path."""
    from sentence_transformers import SentenceTransformer
    from tokenizers import BertWordPieceTokenizer

    try:
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    except ImportError:  # before 6
        from sentence_transformers.models import StaticEmbedding

    vocabulary = Path(embedders.__file__).parent / "minilm" / "vocab.txt"
    tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    weights = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 48)).astype(np.float32)
    module = StaticEmbedding(tokenizer._tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save(str(directory))
    return str(directory)


@pytest.fixture(scope="module", params=["hashing", "minilm", "sentence-transformers"])
def name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    kind: str = request.param
    if kind == "sentence-transformers":
        if importlib.util.find_spec("sentence_transformers") is None:
            pytest.skip("sentence-transformers is not installed")
        return f"{kind}:{_static_model(tmp_path_factory.mktemp('static'))}"
    return kind


@pytest.fixture(scope="module")
def embedder(name: str) -> Embedder:
    return embedders.load(name)


@pytest.mark.parametrize("count", [1, 2, 9, len(_TEXTS)])
@pytest.mark.parametrize("query", [False, True])
def test_shape_and_type(embedder: Embedder, count: int, query: bool) -> None:
    made = embedder.embed(_TEXTS[:count], query=query)
    assert isinstance(made, np.ndarray)
    assert made.shape == (count, embedder.dimension)
    assert made.dtype == np.float32
    assert made.flags.c_contiguous


def test_unit_length(embedder: Embedder) -> None:
    made = embedder.embed(_TEXTS)
    assert np.isfinite(made).all()
    said = [any(character.isalnum() for character in text) for text in _TEXTS]
    lengths = np.linalg.norm(made, axis=1)
    np.testing.assert_allclose(lengths[said], 1.0, atol=1e-5)
    # A text without words may have no direction.
    assert all(length == 0 or abs(length - 1) < 1e-5 for length in lengths)


@pytest.mark.parametrize("query", [False, True])
def test_order_is_kept_under_batching(embedder: Embedder, query: bool) -> None:
    together = embedder.embed(_TEXTS, query=query)
    backwards = embedder.embed(_TEXTS[::-1], query=query)
    alone = np.concatenate([embedder.embed([text], query=query) for text in _TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(backwards[::-1], alone, atol=1e-4)


def test_a_query_of_one_is_a_batch_of_one(embedder: Embedder) -> None:
    for text in _TEXTS[:8]:
        np.testing.assert_allclose(embedder.embed([text], query=True), embedder.embed([text]), atol=1e-5)


def test_the_same_text_gives_the_same_vector(embedder: Embedder) -> None:
    np.testing.assert_array_equal(embedder.embed(_TEXTS), embedder.embed(_TEXTS))


@pytest.mark.parametrize("query", [False, True])
def test_no_texts(embedder: Embedder, query: bool) -> None:
    made = embedder.embed([], query=query)
    assert made.shape == (0, embedder.dimension)
    assert made.dtype == np.float32


@pytest.mark.parametrize("text", ["", " ", *_ODD], ids=lambda text: repr(text[:12]))
def test_odd_texts(embedder: Embedder, text: str) -> None:
    made = embedder.embed([text, "something else", text])
    assert np.isfinite(made).all()
    np.testing.assert_allclose(made[0], made[2], atol=1e-5)
    np.testing.assert_allclose(made[:1], embedder.embed([text]), atol=1e-4)


def test_texts_may_come_in_any_sequence(embedder: Embedder) -> None:
    np.testing.assert_array_equal(embedder.embed(tuple(_TEXTS[:5])), embedder.embed(_TEXTS[:5]))


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("Where did I park the car?", "I parked the car behind the station.", "Bake the bread for forty minutes."),
        ("The cat sat on the mat.", "A cat was on the mat.", "Quarterly invoices are payable in March."),
        ("How many eggs does the cake need?", "The cake needs three eggs.", "My train leaves at noon from platform 4."),
    ],
)
def test_near_texts_are_nearer_than_far_ones(embedder: Embedder, text: str, near: str, far: str) -> None:
    question = embedder.embed([text], query=True)[0]
    to_near, to_far = embedder.embed([near, far]) @ question
    assert to_near > to_far + 0.1


def test_threads_get_the_same_vectors(name: str) -> None:
    fresh = embedders.load(name)
    jobs: list[list[str]] = [_TEXTS[i:] + _TEXTS[:i] for i in range(4)] + [[text] for text in _TEXTS[:4]]

    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(fresh.embed, jobs * 2))
    for job, made in zip(jobs * 2, at_once, strict=True):
        np.testing.assert_allclose(made, fresh.embed(job), atol=1e-5)


def test_its_name_resolves_to_the_same_embedder(embedder: Embedder) -> None:
    again = embedders.load(embedder.name)
    assert type(again) is type(embedder)
    assert identity(again) == identity(embedder)
    np.testing.assert_allclose(again.embed(_TEXTS[:2]), embedder.embed(_TEXTS[:2]), atol=1e-6)


def test_it_is_an_embedder(embedder: Embedder) -> None:
    assert isinstance(embedder, Embedder)
    known = identity(embedder)
    assert known.name == embedder.name
    assert known.dimension == embedder.dimension > 0
    assert isinstance(known.fingerprint, str)


def test_the_default() -> None:
    assert embedders.load().name == embedders.load(embedders.DEFAULT).name == "all-MiniLM-L6-v2-int8"


@pytest.mark.parametrize(
    "unknown",
    ["", "unknown", "Hashing", "hashing:3", "minilm:large", "sentence-transformers", "sentence-transformers:", "openai",
     "openai:", "openAI:model", " minilm"],
)  # fmt: skip
def test_unknown_names(unknown: str) -> None:
    with pytest.raises(InputError) as caught:
        embedders.load(unknown)
    assert isinstance(caught.value, LatentMemoryError)
    for part in (repr(unknown), "minilm", "hashing", "sentence-transformers:MODEL", "openai:MODEL"):
        assert part in str(caught.value)


@pytest.mark.parametrize("make", [lambda: embedders.load("openai:text-embedding-3-small")])
def test_names_of_servers_resolve_without_asking_them(make: Callable[[], Embedder]) -> None:
    assert make().name == "openai:text-embedding-3-small"
