"""How fast texts are embedded, stored and recalled, as ratios against a peer or a limit in the same run.

    python benchmarks/speed.py

- embedding: against the same ONNX file fed with batches of 32 in order of arrival, each padded to its longest;
- `add`: against the embedder alone on the same texts;
- `recall` on a store of 6,000 passages: against the time to embed the query alone;
- `latent-memory recall` as a fresh process on that store, and where its time goes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from common import QUESTIONS, Report, chat, parser
from latent_memory import LatentMemory, onnx_runtime
from latent_memory.embedders import load
from latent_memory.embedders.onnx import OnnxEmbedder
from latent_memory.passages import spoken


def clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Plain:
    """The same model as most programs run it: one session with default options, batches as they come."""

    def __init__(self, embedder: OnnxEmbedder) -> None:
        self._session = onnx_runtime.load().InferenceSession(embedder._model(), providers=["CPUExecutionProvider"])
        self._tokenizer = embedder._tokenizer

    def embed(self, texts: Sequence[str], batch: int = 32) -> None:
        for start in range(0, len(texts), batch):
            encodings = self._tokenizer.encode_batch(list(texts[start : start + batch]))
            longest = max(len(e.ids) for e in encodings)
            ids = np.array([e.ids + [0] * (longest - len(e.ids)) for e in encodings], np.int64)
            mask = np.array([e.attention_mask + [0] * (longest - len(e.ids)) for e in encodings], np.int64)
            feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            (hidden,) = self._session.run(None, feed)
            pooled = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def embedding(report: Report, turns: int, rounds: int) -> None:
    embedder = OnnxEmbedder()
    plain = Plain(embedder)
    texts = [spoken(turn.name, turn.text) for conversation in chat(turns) for turn in conversation.turns]
    for warm in (embedder.embed, plain.embed):
        warm(texts[:64])
    # In turn, so that a machine that slows down slows both.
    pairs = [(clock(lambda: embedder.embed(texts)), clock(lambda: plain.embed(texts))) for _ in range(rounds)]
    report.add("embedding: ours", len(texts) / median(ours for ours, _ in pairs), "turns/s", "higher")
    report.add("embedding: batches of 32 as they come", len(texts) / median(b for _, b in pairs), "turns/s", "higher")
    report.add("embedding: ours / batches of 32", median(b / a for a, b in pairs), "x", "higher", 2.0)


def adding(report: Report, place: Path, turns: int, rounds: int) -> None:
    conversations = list(chat(turns, seed=1))
    texts = [spoken(turn.name, turn.text) for conversation in conversations for turn in conversation.turns]
    embedder = load()
    embedder.embed(texts[:64])
    shares: list[float] = []
    seconds: list[float] = []
    for number in range(rounds):
        alone = clock(lambda: embedder.embed(texts))
        memory = LatentMemory.open(place / f"adding-{number}", embedder=embedder)
        took = clock(partial(memory.add, conversations))
        memory.close()
        seconds.append(took)
        shares.append(100 * alone / took)
    report.add("add", len(texts) / median(seconds), "turns/s", "higher")
    report.add("add, share of the embedder's speed", median(shares), "%", "higher", 85)


def recalling(report: Report, store: Path, passages: int, rounds: int) -> None:
    with LatentMemory.open(store) as memory:
        memory.add(chat(passages, seed=2))
        for question in QUESTIONS:
            memory.recall(question)
        alone: list[float] = []
        whole: list[float] = []
        for _ in range(rounds):
            for question in QUESTIONS:
                alone.append(clock(partial(memory.embedder.embed, [question], query=True)))
                whole.append(clock(partial(memory.recall, question)))
    report.add("recall: embedding the query, median", 1000 * median(alone), "ms", "lower")
    report.add(f"recall of 10 among {passages}, median", 1000 * median(whole), "ms", "lower")
    report.add(f"recall of 10 among {passages}, p95", 1000 * float(np.percentile(whole, 95)), "ms", "lower")
    report.add("recall / embedding the query", median(whole) / median(alone), "x", "lower", 3)


# Runs in a fresh process; each line it prints is a part of the time.
_PARTS = """
import sys, time
began = time.perf_counter()
marks = [("", began)]
def mark(name): marks.append((name, time.perf_counter()))
import numpy, sqlite3; mark("import numpy, sqlite3")
from latent_memory.onnx_runtime import load; load(); mark("import onnxruntime")
import faiss; mark("import faiss")
import tantivy, tokenizers; mark("import tantivy, tokenizers")
import latent_memory.cli, latent_memory.memory; mark("import latent_memory")
memory = latent_memory.memory.LatentMemory.open(sys.argv[1]); mark("open the store")
memory.embedder.embed(["warm"], query=True); mark("load the model, embed")
memory._index(1).refresh(); mark("read passages, vectors, word indexes")
memory.recall("When did we decide to postpone the wedding?"); mark("recall")
for (_, a), (name, b) in zip(marks, marks[1:]): print(f"{name}\\t{b - a}")
"""


def fresh(report: Report, store: Path, rounds: int) -> None:
    command = [str(Path(sys.executable).with_name("latent-memory")), "recall", QUESTIONS[0], "--store", str(store)]
    seconds = [clock(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(rounds + 1)][1:]
    report.add("fresh process: latent-memory recall, wall", median(seconds), "s", "lower", 0.8)
    parts: dict[str, list[float]] = {}
    for _ in range(rounds):
        told = subprocess.run([sys.executable, "-c", _PARTS, str(store)], check=True, capture_output=True, text=True)
        for line in told.stdout.splitlines():
            name, took = line.split("\t")
            parts.setdefault(name, []).append(float(took))
    for name, took_each in parts.items():
        report.add(f"fresh process, one after the other: {name}", 1000 * median(took_each), "ms", "lower")


def main() -> None:
    given = parser(__doc__).parse_args()
    report = Report(given.json)
    turns, rounds = (400, 2) if given.quick else (2_000, 5)
    passages = 1_200 if given.quick else 6_000
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        embedding(report, turns, rounds)
        adding(report, Path(place), turns, rounds)
        recalling(report, Path(place) / "recalling", passages, 5 if given.quick else 25)
        fresh(report, Path(place) / "recalling", rounds)
    report.write()


if __name__ == "__main__":
    main()
