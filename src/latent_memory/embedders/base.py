"""The seam: what an embedder is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from latent_memory.records import EmbedderIdentity
from latent_memory.vectors import Vectors


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors.

    Attributes:
        name: stored with the memory; a memory is only opened with an embedder of the same name.
        dimension: how many numbers a vector has.

    An embedder may also have `fingerprint`, a text that changes when its weights do, and `warm()`, which
    starts loading in the background and returns at once.
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


def identity(embedder: Embedder) -> EmbedderIdentity:
    """Return what a store remembers of an embedder."""
    return EmbedderIdentity(embedder.name, embedder.dimension, getattr(embedder, "fingerprint", ""))
