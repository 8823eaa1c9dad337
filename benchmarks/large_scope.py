"""How long a recall takes in a scope of a million passages: p50 and p95, the query's embedding included.

    python benchmarks/large_scope.py                 makes a store of 1,000,000 passages first (ten minutes, 5 GB)
    python benchmarks/large_scope.py --keep DIR      keeps it there, or uses the one that is there

Texts are shuffled sentences of the examples. What is stored of them is made up, vectors in clusters and tokens, so that
the embedder's hours are not in it; queries are embedded by the real one, with all signals at work.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import QUESTIONS, Report, chat, parser
from latent_memory import LatentMemory
from latent_memory.embedders.onnx import OnnxEmbedder
from latent_memory.late import TokenVectors
from latent_memory.vectors import unit

_TOPICS = 2_000
_WIDTH = 48


class Invented(OnnxEmbedder):
    """Embeds queries, and makes up what it is asked to store: a topic's vector with noise, and a token a word."""

    def __init__(self) -> None:
        super().__init__()
        self._chance = np.random.default_rng(1)
        self._topics = unit(self._chance.standard_normal((_TOPICS, self.dimension), dtype=np.float32))

    def embed_tokens(self, texts: Sequence[str], *, query: bool = False) -> TokenVectors:
        if query:
            return super().embed_tokens(texts, query=True)
        topics = self._topics[self._chance.integers(0, _TOPICS, len(texts))]
        noise = unit(self._chance.standard_normal(topics.shape, dtype=np.float32))
        lengths = [len(text.split()) for text in texts]
        codes = self._chance.integers(-40, 41, (sum(lengths), _WIDTH), dtype=np.int8)
        return TokenVectors(unit(topics + 0.7 * noise), np.split(codes, np.cumsum(lengths)[:-1]))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--passages", type=int, default=1_000_000)
    options.add_argument("--keep", type=Path, help="the store's directory")
    given = options.parse_args()
    passages = 20_000 if given.quick else given.passages
    report = Report(given.json)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        with LatentMemory.open(given.keep or Path(temporary) / "memory", embedder=Invented()) as memory:
            began = time.perf_counter()
            if memory.stats().passages == 0:
                told = (
                    (lambda r: print(f"\r{r.turns_added:,}", end="", file=sys.stderr)) if sys.stderr.isatty() else None
                )
                memory.add(chat(passages), progress=told)
                report.add(f"{passages:,} passages: add", time.perf_counter() - began, "s", "lower")
            began = time.perf_counter()
            memory.recall(QUESTIONS[0])
            report.add(f"{passages:,} passages: first recall", time.perf_counter() - began, "s", "lower")
            recalls: list[float] = []
            embeddings: list[float] = []
            for number in range(50 if given.quick else 300):
                # Other words each time, so that nothing is found ready.
                asked = " ".join(np.random.default_rng(number).permutation(QUESTIONS[number % len(QUESTIONS)].split()))
                began = time.perf_counter()
                memory.embedder.embed([asked], query=True)
                embeddings.append(1000 * (time.perf_counter() - began))
                began = time.perf_counter()
                memory.recall(asked)
                recalls.append(1000 * (time.perf_counter() - began))
        p50, p95 = np.percentile(recalls, (50, 95))
        report.add(f"{passages:,} passages: recall, p50", float(p50), "ms", "lower")
        report.add(f"{passages:,} passages: recall, p95", float(p95), "ms", "lower", 60)
        ratio = float(p50 / np.median(embeddings))
        report.add(f"{passages:,} passages: recall / embedding the query alone", ratio, "x", "lower")
    report.write()


if __name__ == "__main__":
    main()
