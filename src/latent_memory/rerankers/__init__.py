"""Rerankers by name: a second, slower look at the first hits. A name is resolved here, its module imported only then.

Off unless asked for. Whatever reads question and text together belongs here: cross-encoders, language models.
"""

from __future__ import annotations

from latent_memory.errors import InputError
from latent_memory.rerankers.base import AMONG, Reranker, reordered

__all__ = ["AMONG", "Reranker", "load", "reordered"]


def load(name: str) -> Reranker:
    """Return a reranker by name; its model is loaded when it is first used.

    Args:
        name: "sentence-transformers:MODEL" (a cross-encoder), "onnx:DIRECTORY" (a cross-encoder as `model.onnx` and
            `tokenizer.json`), or "openai:MODEL" for any server with `/v1/chat/completions`.

    Raises:
        InputError: for a name that is none of these.
    """
    kind, _, model = name.partition(":")
    if kind == "sentence-transformers" and model:
        from latent_memory.rerankers.sentence_transformers import SentenceTransformersReranker

        return SentenceTransformersReranker(model)
    if kind == "onnx" and model:
        from latent_memory.rerankers.onnx import OnnxReranker

        return OnnxReranker(model)
    if kind == "openai" and model:
        from latent_memory.rerankers.openai import OpenAIReranker

        return OpenAIReranker(model)
    raise InputError(
        f"reranker {name[:80]!r} is unknown; use sentence-transformers:MODEL, onnx:DIRECTORY or openai:MODEL"
    )
