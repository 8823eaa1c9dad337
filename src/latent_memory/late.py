"""Late interaction: each token of the query looks for the token of a passage that is most like it.

The sum over the query's tokens of these best cosines is MaxSim (Khattab & Zaharia 2020, ColBERT), here with the token
vectors that the embedder makes anyway on its way to one vector a text: no training, no second model. They are stored
small, as codes: projected to few dimensions, of length one, a byte a number. On LoCoMo 48 dimensions in a byte each
find as much as all 384 in single precision, within 0.5 points.

Knows nothing of models or stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from latent_memory.vectors import Scores, Vectors, unit

Codes: TypeAlias = NDArray[np.int8]

# A vector of length one has no number beyond 1, and nearly none of 48 beyond a half.
_SCALE = 254.0
_MOST = 127
_ROWS = 12


class TokenVectors(NamedTuple):
    """What an embedder makes of n texts.

    Attributes:
        vectors: (n, d) float32, unit length.
        codes: for each text (t, c) int8, its t tokens; without the marks that a model puts around a text.
    """

    vectors: Vectors
    codes: list[Codes]


def encode(tokens: Vectors, projection: Vectors) -> Codes:
    """Return token vectors (t, d) as codes (t, c).

    Args:
        tokens: of any length; only their direction counts.
        projection: (d, c), onto c directions at right angles to each other.
    """
    # A few rows a product, which one thread does: a BLAS with threads of its own would take the cores from the model
    # (measured: adding took a third longer).
    padded = np.zeros((-(-len(tokens) // _ROWS) * _ROWS, tokens.shape[1]), np.float32)
    padded[: len(tokens)] = tokens
    projected = unit((padded.reshape(-1, _ROWS, tokens.shape[1]) @ projection).reshape(len(padded), -1)[: len(tokens)])
    codes: Codes = np.clip(np.rint(projected * _SCALE), -_MOST, _MOST).astype(np.int8)
    return codes


def codes_to_bytes(codes: Codes) -> bytes:
    """Return codes as bytes: c as two bytes, little-endian, and then a byte a number."""
    width: int = codes.shape[1]
    return width.to_bytes(2, "little") + np.ascontiguousarray(codes).tobytes()


def codes_of(stored: bytes) -> Codes:
    """Return the codes (t, c) that bytes hold."""
    return np.frombuffer(stored, np.int8, offset=2).reshape(-1, max(1, int.from_bytes(stored[:2], "little")))


def max_similarity(query: Codes, passages: Sequence[Codes]) -> Scores:
    """Return how well each passage answers the query's tokens.

    A token counts by how much its best match stands out: one that every passage matches about equally, as "the" or a
    name that everybody has, tells nothing. (On LoCoMo about as good as weighing tokens by their rarity in the scope,
    which would have to be counted.)

    Args:
        query: (q, c) codes.
        passages: n arrays (t, c) of codes; one without tokens gets 0.

    Returns:
        (n,) float32: weighted means of cosines.
    """
    lengths = np.array([len(codes) for codes in passages], np.int64)
    full = np.flatnonzero(lengths)
    scores = np.zeros(len(passages), np.float32)
    if len(full) == 0 or len(query) == 0:
        return scores
    tokens = np.concatenate([passages[i] for i in full.tolist()]).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(lengths[full])[:-1]])
    best = np.stack([np.maximum.reduceat(_products(tokens, row), starts) for row in query.astype(np.float32)])
    best /= _SCALE * _SCALE  # (q, n)
    weights = best.max(axis=1) - best.mean(axis=1)
    if weights.sum() <= 0:
        weights = np.ones(len(best), np.float32)
    scores[full] = (best * weights[:, None]).sum(axis=0) / weights.sum()
    return scores


def _products(rows: Vectors, query: Any) -> Scores:
    """Return rows @ query; by FAISS, as in dense.py: no work for a BLAS and its threads."""
    import faiss

    scores = np.empty(len(rows), np.float32)
    query = np.ascontiguousarray(query)
    faiss.fvec_inner_products_ny(
        faiss.swig_ptr(scores), faiss.swig_ptr(query), faiss.swig_ptr(rows), rows.shape[1], len(rows)
    )
    return scores
