"""Any server with an OpenAI-compatible `/v1/embeddings`: hosted, or local (llama.cpp, Ollama, vLLM, TEI)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latent_memory.errors import EmbedderUnavailableError
from latent_memory.openai_api import post
from latent_memory.vectors import Vectors, checked

_BATCH = 128


class OpenAIEmbedder:
    """A model behind `/v1/embeddings`.

    Args:
        model: the model's name on the server.
        base_url, api_key: by default the environment variables OPENAI_BASE_URL and OPENAI_API_KEY.

    Raises:
        EmbedderUnavailableError: at first use, if the server does not answer or refuses.
    """

    def __init__(self, model: str, *, base_url: str | None = None, api_key: str | None = None) -> None:
        self.name = f"openai:{model}"
        self._model = model
        self._base_url = base_url
        self._api_key = api_key
        self._dimension: int | None = None

    @property
    def dimension(self) -> int:
        """How many numbers the model's vectors have; asked of the server once."""
        if self._dimension is None:
            self._dimension = len(self._ask(["dimension"])[0])
        return self._dimension

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:  # noqa: ARG002 - part of the seam
        """Return (len(texts), dimension) float32, unit length."""
        parts = [self._ask(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        rows = [row for part in parts for row in part]
        if rows and self._dimension is None:
            self._dimension = len(rows[0])
        if not rows:
            return np.zeros((0, self.dimension), np.float32)
        if len({len(row) for row in rows}) > 1:
            raise EmbedderUnavailableError(f"{self.name}: the server sent vectors of different lengths")
        return checked(rows, rows=len(texts), dimension=self.dimension, made_by=self.name)

    def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        answer = post("/embeddings", body, base_url=self._base_url, api_key=self._api_key)
        try:
            # The order is told by `index`; most servers keep it, the protocol does not promise it.
            items = sorted(answer["data"], key=lambda item: item["index"])
            if len(items) != len(texts):
                raise EmbedderUnavailableError(
                    f"{self.name}: the server sent {len(items)} embeddings for {len(texts)} texts"
                )
            if [item["index"] for item in items] != list(range(len(texts))):
                raise ValueError("not one embedding for each text")
            if not all(isinstance(item["embedding"], list) and item["embedding"] for item in items):
                raise ValueError("an embedding that is no list of numbers")
            rows = [[float(number) for number in item["embedding"]] for item in items]
        except (TypeError, KeyError, ValueError) as error:
            raise EmbedderUnavailableError(
                f"{self.name}: the server's answer has no usable embeddings ({type(error).__name__}: {error})"
            ) from None
        return rows
