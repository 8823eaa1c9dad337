"""Any cross-encoder of the sentence-transformers library, by name or path."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from latent_memory.errors import MissingExtraError, RerankerError


class SentenceTransformersReranker:
    """A cross-encoder run by the sentence-transformers package.

    Args:
        model: a path, or a name on the Hugging Face hub.

    Raises:
        MissingExtraError: at first use, if the package is not installed.
        RerankerError: at first use, if the model cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        self.name = f"sentence-transformers:{model}"
        self._model_name = model
        self._lock = threading.Lock()
        self._model: Any = None

    def score(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """Return the model's score of each text, higher for better."""
        if len(texts) == 0:
            return []
        with self._lock:
            if self._model is None:
                self._model = self._load()
        made: list[float] = self._model.predict(
            [(query, text) for text in texts], convert_to_numpy=True, show_progress_bar=False
        ).tolist()
        return made

    def _load(self) -> Any:
        try:
            from sentence_transformers import CrossEncoder
        except ImportError:
            raise MissingExtraError(
                f"{self.name} needs sentence-transformers. Install it with: "
                "pip install 'latent-memory[sentence-transformers]'"
            ) from None
        try:
            return CrossEncoder(self._model_name)
        except (OSError, ValueError) as error:
            raise RerankerError(f"cannot load the reranker {self.name}: {error}") from error
