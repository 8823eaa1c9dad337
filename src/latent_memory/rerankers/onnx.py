"""A cross-encoder from a directory, on onnxruntime: no torch, no download."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latent_memory import onnx_runtime
from latent_memory.embedders.onnx import cores
from latent_memory.errors import RerankerError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"

_MOST_TOKENS = 512
# Texts of similar length share a batch, so that little is padding.
_BATCH = 8
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxReranker:
    """A model that reads a question and a text as one sequence and returns one number, or two: no, and yes.

    What such models are exported as: `model.onnx` (inputs `input_ids`, `attention_mask` and perhaps `token_type_ids`,
    all (n, length) int64; output (n,), (n, 1) or (n, 2)) beside `tokenizer.json`. At most 512 tokens, or as many as the
    tokenizer's own limit says; what is longer is cut.

    Args:
        directory: where the two files lie.

    Raises:
        RerankerError: at first use, if a file is missing or is no such model.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory).expanduser()
        self.name = f"onnx:{directory}"
        self._lock = threading.Lock()
        self._loaded: tuple[Tokenizer, Any] | None = None

    def score(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """Return the model's score of each text, higher for better."""
        if len(texts) == 0:
            return []
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
        tokenizer, session = self._loaded
        encodings = tokenizer.encode_batch([(query, text) for text in texts])
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        scores = np.empty(len(texts), np.float64)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            scores[batch] = self._run(tokenizer, session, [encodings[i] for i in batch])
        made: list[float] = scores.tolist()
        return made

    def _run(self, tokenizer: Tokenizer, session: Any, encodings: list[Encoding]) -> Any:
        inputs = session.get_inputs()
        # Some models are exported for one length alone.
        fixed = next((each.shape[1] for each in inputs if len(each.shape) == 2 and isinstance(each.shape[1], int)), 0)
        longest = fixed or max(len(encoding.ids) for encoding in encodings)
        padding = next((i for i in map(tokenizer.token_to_id, ("[PAD]", "<pad>")) if i is not None), 0)
        shape = (len(encodings), longest)
        feed = dict(zip(_INPUTS, (np.full(shape, padding, np.int64), *np.zeros((2, *shape), np.int64)), strict=True))
        for row, encoding in enumerate(encodings):
            length = min(longest, len(encoding.ids))
            for name, values in zip(_INPUTS, (encoding.ids, encoding.attention_mask, encoding.type_ids), strict=True):
                feed[name][row, :length] = values[:length]
        try:
            made = np.asarray(session.run(None, {each.name: feed[each.name] for each in inputs})[0], np.float64)
        except Exception as error:
            raise RerankerError(f"reranker {self.name}: the model cannot be run ({_line(error)})") from error
        if made.shape == (len(encodings), 2):
            return made[:, 1] - made[:, 0]
        if made.size != len(encodings):
            raise RerankerError(
                f"reranker {self.name}: the model returns the shape {made.shape} for {len(encodings)} texts; a "
                "cross-encoder returns one number a text, or two"
            )
        return made.reshape(len(encodings))

    def _load(self) -> tuple[Tokenizer, Any]:
        from tokenizers import Tokenizer

        onnxruntime = onnx_runtime.load()
        for file in (MODEL, TOKENIZER):
            if not (self._directory / file).is_file():
                raise RerankerError(f"reranker {self.name}: no {file} in the directory {self._directory}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        options.log_severity_level = 3
        try:
            tokenizer = Tokenizer.from_file(str(self._directory / TOKENIZER))
            session = onnxruntime.InferenceSession(
                str(self._directory / MODEL), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise RerankerError(f"cannot load the reranker {self.name}: {_line(error)}") from error
        if unknown := [each.name for each in session.get_inputs() if each.name not in _INPUTS]:
            raise RerankerError(
                f"reranker {self.name}: the model wants the input {unknown[0]!r}; a cross-encoder has "
                f"{', '.join(_INPUTS)}"
            )
        own = tokenizer.truncation
        tokenizer.enable_truncation(min(_MOST_TOKENS, own["max_length"]) if own else _MOST_TOKENS)
        # Padded here, a batch at a time.
        tokenizer.no_padding()
        return tokenizer, session


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
