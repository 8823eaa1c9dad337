"""Embedders by name. A name is resolved here and its module imported only then."""

from __future__ import annotations

from latent_memory.embedders.base import Embedder, embedded, identity
from latent_memory.errors import InputError

DEFAULT = "minilm"
# Kinds that send texts to a server, or load a model that the name says: not to be used because a file says so.
FROM_OUTSIDE = ("openai", "sentence-transformers")

__all__ = ["DEFAULT", "FROM_OUTSIDE", "Embedder", "embedded", "identity", "load"]


def load(name: str = DEFAULT) -> Embedder:
    """Return an embedder by name; its model is loaded when it is first used.

    Args:
        name: "minilm" (the default, all-MiniLM-L6-v2 in int8), "hashing" (hashed words; for tests),
            "sentence-transformers:MODEL", or "openai:MODEL" for any server with `/v1/embeddings`. The `name`
            of an embedder, as a store keeps it, is understood as well.

    Raises:
        InputError: for a name that is none of these.
        MissingExtraError: if the embedder's package is not installed.
    """
    kind, _, model = name.partition(":")
    if name in (DEFAULT, "all-MiniLM-L6-v2-int8"):
        from latent_memory.embedders.onnx import OnnxEmbedder

        return OnnxEmbedder()
    if name == "hashing":
        from latent_memory.embedders.hashing import HashingEmbedder

        return HashingEmbedder()
    if kind == "sentence-transformers" and model:
        from latent_memory.embedders.sentence_transformers import SentenceTransformersEmbedder

        return SentenceTransformersEmbedder(model)
    if kind == "openai" and model:
        from latent_memory.embedders.openai import OpenAIEmbedder

        return OpenAIEmbedder(model)
    raise InputError(f"embedder {name!r} is unknown; use minilm, hashing, sentence-transformers:MODEL or openai:MODEL")
