"""Vectors: float32, unit length. The only place that normalises, so that a dot product is a cosine."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_memory.errors import EmbedderError

Vectors: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]
Scores: TypeAlias = NDArray[np.float32]

# Stored bytes are little-endian on every machine.
STORED = np.dtype("<f4")


def unit(vectors: ArrayLike) -> Vectors:
    """Scale each row to length one; a row of zeros stays zeros.

    Args:
        vectors: (n, d) numbers.

    Returns:
        (n, d) float32, C-contiguous.
    """
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(array, axis=-1, keepdims=True)
    unit_vectors: Vectors = np.divide(array, norms, out=np.zeros_like(array), where=norms > 0)
    return unit_vectors


def checked(vectors: Any, *, rows: int, dimension: int, made_by: str) -> Vectors:
    """Return what an embedder made as unit vectors, after checking its shape and that every number is finite.

    Raises:
        EmbedderError: if the shape is not (rows, dimension), or a number is NaN or infinite.
    """
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise EmbedderError(f"embedder {made_by!r} returned no array of numbers ({error})") from None
    if array.shape != (rows, dimension):
        raise EmbedderError(
            f"embedder {made_by!r} returned vectors of shape {array.shape} for {rows} texts; "
            f"({rows}, {dimension}) was expected"
        )
    if not np.isfinite(array).all():
        raise EmbedderError(f"embedder {made_by!r} returned a vector with NaN or infinite numbers")
    return unit(array)


def to_bytes(vector: Vectors) -> bytes:
    """Return one vector as little-endian float32 bytes."""
    return vector.astype(STORED, copy=False).tobytes()


def from_bytes(rows: list[bytes], dimension: int) -> Vectors:
    """Return stored vectors as an (n, d) float32 array."""
    flat = np.frombuffer(b"".join(rows), dtype=STORED)
    return flat.reshape(len(rows), dimension).astype(np.float32, copy=False)
