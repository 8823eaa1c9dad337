"""Hashed words: needs no model and no time, for tests and for trying things out.

Texts that share words are near each other and others are not, so a ranking test built on it can fail. It
knows nothing of meaning: "car" and "automobile" are as far apart as any two words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from latent_memory.vectors import Vectors, unit

_WORD = re.compile(r"\w+")


class HashingEmbedder:
    """Feature hashing (Weinberger et al. 2009): each word adds +1 or -1 to one of `dimension` places."""

    name = "hashing"

    def __init__(self, dimension: int = 256) -> None:
        self.dimension = dimension

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:  # noqa: ARG002 - part of the seam
        """Return (len(texts), dimension) float32, unit length; a text without words gets a vector of zeros."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in _WORD.findall(text.lower()):
                number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
                row[number % self.dimension] += 1.0 if number >> 63 else -1.0
        return unit(vectors)
