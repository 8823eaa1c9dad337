"""Any sentence-transformers model, by name or path."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from latent_memory.errors import EmbedderUnavailableError, MissingExtraError
from latent_memory.vectors import Vectors, checked


class SentenceTransformersEmbedder:
    """A model run by the sentence-transformers package; its query and document prompts are used.

    Args:
        model: a path, or a name on the Hugging Face hub.

    Raises:
        MissingExtraError: at first use, if the package is not installed.
        EmbedderUnavailableError: at first use, if the model cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        self.name = f"sentence-transformers:{model}"
        self._model_name = model

    @cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtraError(
                f"{self.name} needs sentence-transformers. Install it with: "
                "pip install 'latent-memory[sentence-transformers]'"
            ) from None
        try:
            return SentenceTransformer(self._model_name)
        except (OSError, ValueError) as error:
            raise EmbedderUnavailableError(f"cannot load {self.name}: {error}") from error

    @cached_property
    def dimension(self) -> int:
        """How many numbers the model's vectors have."""
        get = getattr(self._model, "get_embedding_dimension", None)
        return int(get() if get else self._model.get_sentence_embedding_dimension())

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        """Return (len(texts), dimension) float32, unit length."""
        if len(texts) == 0:
            return np.zeros((0, self.dimension), np.float32)
        encode = self._model.encode_query if query else self._model.encode_document
        vectors = encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return checked(vectors, rows=len(texts), dimension=self.dimension, made_by=self.name)
