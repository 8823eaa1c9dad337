"""The seam: what an embedder is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from latent_memory.errors import EmbedderError
from latent_memory.late import TokenVectors
from latent_memory.records import EmbedderIdentity
from latent_memory.vectors import Vectors, checked


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors.

    Attributes:
        name: stored with the memory; a memory is only opened with an embedder of the same name.
        dimension: how many numbers a vector has.

    An embedder may also have `fingerprint`, a text that changes when its weights do; `warm()`, which starts loading in
    the background and returns at once; and `embed_tokens(texts, *, query=False)`, which returns a `late.TokenVectors`:
    what `embed` does, and the texts' tokens, by which recall then compares as well.
    """

    @property
    def name(self) -> str:
        """The name stored with the memory."""
        ...

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""
        ...

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        """Return (len(texts), dimension) float32; `query` tells a question from what is to be found."""
        ...


def embedded(embedder: Embedder, texts: Sequence[str], *, query: bool = False) -> TokenVectors:
    """Return what an embedder makes of texts, checked; without codes if it makes none.

    Raises:
        EmbedderError: if it is not what an embedder should return.
    """
    embed_tokens = getattr(embedder, "embed_tokens", None)
    made = (
        TokenVectors(embedder.embed(texts, query=query), [])
        if embed_tokens is None
        else embed_tokens(texts, query=query)
    )
    vectors = checked(made.vectors, rows=len(texts), dimension=embedder.dimension, made_by=embedder.name)
    codes = list(made.codes)
    if codes and (
        len(codes) != len(texts)
        or any(not isinstance(code, np.ndarray) or code.ndim != 2 or code.dtype != np.int8 for code in codes)
    ):
        raise EmbedderError(
            f"embedder {embedder.name!r} returned no codes (tokens, numbers) of int8 for {len(texts)} texts"
        )
    return TokenVectors(vectors, codes)


def identity(embedder: Embedder) -> EmbedderIdentity:
    """Return what a store remembers of an embedder."""
    return EmbedderIdentity(embedder.name, embedder.dimension, getattr(embedder, "fingerprint", ""))
