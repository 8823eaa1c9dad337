"""How a reranker's scores should join those of recall: LoCoMo's questions, with rerankers of known strength.

    python benchmarks/rerankers.py locomo10.json
    python benchmarks/rerankers.py locomo10.json --rerank onnx:models/reranker

Scores are drawn for the turns that recall finds first: normally distributed with a standard deviation of 1, with a mean
of 0, or of 1.5 or 3 for the turns that answer. A weak one is real: the cosine of the default embedder, which recall
knows already. With --rerank, a real one is measured instead, as recall uses it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from common import Report, parser
from latent_memory import Hit, LatentMemory
from latent_memory.embedders import Embedder
from latent_memory.rerankers import AMONG
from recall_data import Question, load

Scorer = Callable[[Question, Sequence[Hit]], Sequence[float]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
QUICK = 80


def found(question: Question, hits: Sequence[Hit], k: int) -> float:
    places = {(hit.passage.conversation_id, hit.passage.turn) for hit in hits[:k]}
    return len(places.intersection(question.evidence)) / len(question.evidence)


def drawn(strength: float) -> Scorer:
    chance = np.random.default_rng(0)

    def score(question: Question, hits: Sequence[Hit]) -> Sequence[float]:
        answers = [(hit.passage.conversation_id, hit.passage.turn) in question.evidence for hit in hits]
        return [float(value) for value in chance.normal(size=len(hits)) + strength * np.array(answers)]

    return score


def cosine(embedder: Embedder) -> Scorer:
    def score(question: Question, hits: Sequence[Hit]) -> Sequence[float]:
        texts = [f"{hit.passage.name}: {hit.passage.text}" for hit in hits]
        query = embedder.embed([question.text], query=True)[0]
        return [float(value) for value in embedder.embed(texts) @ query]

    return score


def spread(scores: Sequence[float]) -> Floats:
    made: Floats = np.array(scores, np.float64)
    distance = made.max() - made.min()
    stretched: Floats = (made - made.min()) / (distance or 1.0)
    return stretched


def joined(hits: Sequence[Hit], scores: Sequence[float], how: str) -> list[Hit]:
    """Order the hits by both: "alone" (the reranker's), "ranks" (reciprocal), or its weight beside theirs."""
    second = spread(scores)
    if how == "alone":
        both = second
    elif how == "ranks":
        both = 1 / (61 + np.arange(len(hits))) + 1 / (61 + np.argsort(np.argsort(-second, kind="stable")))
    else:
        both = spread([hit.score for hit in hits]) + float(how) * second
    return [hits[i] for i in np.argsort(-both, kind="stable")]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("file", type=Path, help="LoCoMo's file, or another that recall_quality.py reads")
    options.add_argument("--rerank", metavar="NAME", help="measure this reranker")
    given = options.parse_args()
    report = Report(given.json)
    dataset = load(given.file)
    questions = dataset.questions[:QUICK] if given.quick else dataset.questions
    with tempfile.TemporaryDirectory() as directory, LatentMemory.open(directory) as memory:
        for scope in dict.fromkeys(question.scope for question in questions):
            memory.add(dataset.scopes[scope], scope)

        def add(name: str, ranked: Sequence[Sequence[Hit]]) -> None:
            for k in (5, 10):
                shares = [found(question, hits, k) for question, hits in zip(questions, ranked, strict=True)]
                report.add(f"{name}: turn recall@{k}", 100 * float(np.mean(shares)), "%", "higher")

        plain = [memory.recall(question.text, AMONG, scope=question.scope) for question in questions]
        add("no reranker", plain)
        if given.rerank is not None:
            add(
                given.rerank,
                [memory.recall(q.text, AMONG, scope=q.scope, rerank=given.rerank) for q in questions],
            )
        else:
            kinds = {"weak (cosine)": cosine(memory.embedder), "1.5": drawn(1.5), "3": drawn(3)}
            for kind, scorer in kinds.items():
                scores = [scorer(question, hits) for question, hits in zip(questions, plain, strict=True)]
                for how in ("alone", "ranks", "0.5", "1", "2"):
                    ranked = [joined(hits, second, how) for hits, second in zip(plain, scores, strict=True)]
                    add(f"{kind}, {how}", ranked)
    report.write()


if __name__ == "__main__":
    main()
