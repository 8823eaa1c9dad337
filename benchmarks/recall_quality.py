"""How many of the turns that hold the answer are recalled, and how many reach a prompt: questions with gold evidence.

    python benchmarks/recall_quality.py locomo10.json
    python benchmarks/recall_quality.py locomo10.json beam/ --tune --weights words=1.2 --whole
    python benchmarks/recall_quality.py questions.jsonl --conversations conversations.jsonl
    python benchmarks/recall_quality.py --compare before.jsonl after.jsonl

recall_data.py tells what is read, and recall_live.py how live conversations are made of LoCoMo's questions. No language
model.

- Turn recall@k is the mean over the questions of the share of gold evidence turns among the first k turns; session
  recall@k likewise over the first k distinct sessions; all evidence found@10 the share of questions all of whose
  evidence is among the first ten turns; MRR the mean of 1 / rank of the first evidence turn. Ranks end at 50: a deeper
  recall would look at more candidates than one of ten turns does.
- The whole is measured in all, for each half of the scopes and for each category; then signal by signal alone, without
  each, and growing from the embedding of the turn.
- Context: the share of gold evidence turns that stand in a block of so many tokens.
- Latency: of `recall` of ten turns, against the time to embed the same query alone, one after the other.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import BertWordPieceTokenizer

import recall_data
from common import Report, Result, parser
from latent_memory import Conversation, Hit, LatentMemory
from latent_memory.embedders import Embedder, load
from latent_memory.embedders import onnx as minilm
from latent_memory.errors import InputError
from latent_memory.query import query_text
from latent_memory.ranking import Weights
from latent_memory.vectors import Vectors
from recall_data import LOCOMO, Dataset, Place, Question
from recall_live import follow_ups
from recall_metrics import (
    DEEPEST,
    METRICS,
    Run,
    by_reciprocal_ranks,
    differences,
    means,
    metrics_of,
    ranks_of,
    read_runs,
    write_runs,
)

WHOLE = "whole"
LIVE = ("last turn alone", "live messages", "name written out")
# In this order the signals are added to the growing rows; those not named here come after, in their own order.
GROWING = ("meaning", "words", "neighbours", "conversation")
BUDGETS = (512, 1024, 2048)
BARS = {"turn recall@5": 73.0, "turn recall@10": 82.0, "session recall@10": 96.0}
CONTEXT_BARS = {1024: 82.0}
LATENCY_BAR = 3.0
# What --compare tells of other rows than the whole's.
HEADLINE = ("turn recall@5", "turn recall@10", "session recall@10")


class Remembering:
    """An embedder that remembers what it made of queries, so that every weighting asks the model once."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._made: dict[tuple[str, tuple[str, ...]], Any] = {}

    @property
    def name(self) -> str:
        return self._embedder.name

    @property
    def dimension(self) -> int:
        return self._embedder.dimension

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        made: Vectors = self._remembered("embed", texts, query=query)
        return made

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._embedder, name)
        return partial(self._remembered, name) if name.startswith("embed") and callable(found) else found

    def _remembered(self, method: str, texts: Sequence[str], **options: Any) -> Any:
        make = getattr(self._embedder, method)
        if not options.get("query"):
            return make(texts, **options)
        key = method, tuple(texts)
        if key not in self._made:
            self._made[key] = make(texts, **options)
        return self._made[key]


class Table(Report):
    """A report that prints many metrics of one thing as one row."""

    def head(self, title: str) -> None:
        short = [
            name.replace("turn recall", "turn").replace("session recall", "session").replace("evidence found", "")
            for name in METRICS
        ]
        print(f"\n{title:<44}{'n':>5}" + "".join(f"{name.replace(' @', '@'):>11}" for name in short), flush=True)

    def row(self, dataset: str, label: str, rows: Sequence[Mapping[str, float]], bars: Mapping[str, float]) -> None:
        values = means(rows)
        if not values:
            return
        for metric, unit in METRICS.items():
            name = f"{dataset}: {label}: {metric}"
            self._results.append(Result(name, round(values[metric], 4), unit, "higher", bars.get(metric)))
        shown = (f"{values[metric]:11.1f}" if unit else f"{values[metric]:11.3f}" for metric, unit in METRICS.items())
        print(f"{label:<44}{len(rows):>5}" + "".join(shown), flush=True)
        for metric, bar in bars.items():
            told = "met" if values[metric] >= bar else "missed"
            print(f"    {metric} {values[metric]:.2f} (bar ≥ {bar:g}: {told})", flush=True)


# -- measuring --------------------------------------------------------------------------------------------


def place_of(hit: Hit) -> Place:
    return hit.passage.conversation_id, -1 if hit.passage.turn is None else hit.passage.turn


def recalled(memory: LatentMemory, question: Question, weights: Weights, k: int = DEEPEST) -> list[Hit]:
    memory.weights = weights
    return memory.recall(question.asked, k=k, scope=question.scope)


def signals_of(memory: LatentMemory, questions: Sequence[Question], whole: Weights) -> tuple[str, ...]:
    """Return the weights that weigh a signal; others, such as `borrowing_words`, stay as they are throughout."""
    given = {name for question in questions[:10] for hit in recalled(memory, question, whole) for name in hit.signals}
    return tuple(name for name in Weights._fields if name in given)


def weights_for(whole: Weights, signals: Sequence[str], chosen: Iterable[str]) -> Weights:
    """Return the weights with all signals but the chosen at nothing."""
    kept = set(chosen)
    return whole._replace(**{name: 0.0 for name in signals if name not in kept})


def weightings(whole: Weights, signals: Sequence[str]) -> dict[str, Weights]:
    """Return the rows of the ablation by their names; rows of equal weights have equal values."""
    rows: dict[str, Weights] = {}
    for name in signals:
        # Alone, a signal's weight says nothing, unless it is zero.
        rows[f"{name} alone"] = weights_for(whole, signals, [name])._replace(**{name: getattr(whole, name) or 1.0})
    for name in signals:
        if getattr(whole, name):
            rows[f"without {name}"] = weights_for(whole, signals, set(signals) - {name})
    ordered = [name for name in GROWING if name in signals] + [name for name in signals if name not in GROWING]
    ordered = [name for name in ordered if getattr(whole, name)]
    for count in range(1, len(ordered) + 1):
        label = ordered[0] if count == 1 else f"+ {ordered[count - 1]}"
        rows[f"growing: {label}"] = weights_for(whole, signals, ordered[:count])
    return rows


def fill(memory: LatentMemory, scopes: Mapping[str, list[Conversation]]) -> None:
    for scope, conversations in scopes.items():
        memory.add(conversations, scope=scope)


def ablate(
    memory: LatentMemory, whole: Weights, questions: Sequence[Question], runs: Mapping[str, Run], place: Path | None
) -> list[str]:
    """Rank with every other weighting, note the ranks, and return the names of the rows.

    Args:
        place: where a memory without the speakers' names lies, if there are names.
    """
    signals = signals_of(memory, questions, whole)
    held = [name for name in Weights._fields if name not in signals]
    print(f"held throughout: {', '.join(held) or 'nothing'}", file=sys.stderr)
    rankings: dict[Weights, list[list[Place]]] = {}
    names: list[str] = []

    def note(name: str, ranked: Sequence[Sequence[Place]]) -> None:
        names.append(name)
        for question, places in zip(questions, ranked, strict=True):
            runs[question.key].ranks[name] = ranks_of(question.evidence, places)

    for name, weights in weightings(whole, signals).items():
        if weights not in rankings:
            if not any(hit.score for question in questions[:10] for hit in recalled(memory, question, weights)):
                print(f"{name}: has nothing to say", file=sys.stderr)
                continue
            rankings[weights] = [[place_of(hit) for hit in recalled(memory, q, weights)] for q in questions]
        note(name, rankings[weights])
    both = [rankings.get(weights_for(whole, signals, [name])) for name in ("meaning", "words")]
    if both[0] and both[1]:
        note("meaning + words, reciprocal ranks", [by_reciprocal_ranks(pair) for pair in zip(*both, strict=True)])
    if place is not None:
        meaning = weights_for(whole, signals, ["meaning"])
        with LatentMemory.open(place, embedder=memory.embedder) as nameless:
            note(
                "meaning alone, of turns without names",
                [[place_of(hit) for hit in recalled(nameless, q, meaning)] for q in questions],
            )
    return names


def token_counter() -> Callable[[str], int]:
    """Return what counts tokens as the default embedder's model cuts them."""
    # Not the embedder's own tokenizer, which ends at 256 tokens.
    tokenizer = BertWordPieceTokenizer(str(minilm._VOCABULARY), lowercase=True)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def share_in_context(
    memory: LatentMemory, question: Question, budget: int, count: Callable[[str], int] | None
) -> float:
    """Return how much of the evidence stands in a context, in percent."""
    block = memory.context(question.asked, budget, scope=question.scope, tokenizer=count)
    shown = {(passage.conversation_id, passage.turn) for passage in block.passages}
    return 100 * len(question.evidence & shown) / len(question.evidence)


def clock(memory: LatentMemory, embedder: Embedder, questions: Sequence[Question], runs: Mapping[str, Run]) -> None:
    """Note how long embedding and recalling take, with nothing remembered."""
    memory.embedder = embedder
    for question in (*questions[:5], *questions):
        text = query_text(question.asked)
        began = time.perf_counter()
        embedder.embed([text], query=True)
        between = time.perf_counter()
        memory.recall(question.asked, scope=question.scope)
        ended = time.perf_counter()
        runs[question.key].numbers |= {"embedding ms": 1000 * (between - began), "recall ms": 1000 * (ended - between)}


# -- reporting --------------------------------------------------------------------------------------------


def rows_of(runs: Iterable[Run], name: str) -> list[dict[str, float]]:
    return [metrics_of(run.ranks[name]) for run in runs if name in run.ranks]


def measure(
    report: Table, dataset: Dataset, parts: Mapping[str, Sequence[str]], given: argparse.Namespace
) -> list[Run]:
    """Measure a dataset and report it.

    Args:
        parts: names of halves, and the scopes that each has.
    """
    plain = load()
    embedder = Remembering(plain)
    questions = dataset.questions
    runs = {q.key: Run(dataset.name, q.key, q.scope, q.category, q.text) for q in questions}
    measured = list(runs.values())
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        LatentMemory.open(Path(directory) / "named", embedder=embedder) as memory,
    ):
        fill(memory, dataset.scopes)
        whole = with_weights(memory.weights, given.weights)
        turns = memory.stats().turns
        report.head(f"{dataset.name}: {turns} turns, {len(dataset.scopes)} scopes")
        for question in questions:
            found = [place_of(hit) for hit in recalled(memory, question, whole)]
            runs[question.key].ranks[WHOLE] = ranks_of(question.evidence, found)
        locomo = dataset.kind == LOCOMO
        report.row(dataset.name, WHOLE, rows_of(measured, WHOLE), BARS if locomo else {})
        for part, scopes in parts.items():
            some = [run for run in measured if run.scope in scopes]
            if len(some) < len(measured):
                report.row(dataset.name, f"{WHOLE}, {part}", rows_of(some, WHOLE), {})
        for category in sorted({run.category for run in measured} - {""}):
            some = [run for run in measured if run.category == category]
            report.row(dataset.name, f"{WHOLE}, {category}", rows_of(some, WHOLE), {})
        if not given.whole:
            nameless = None
            if any(turn.name for talks in dataset.scopes.values() for talk in talks for turn in talk.turns):
                nameless = Path(directory) / "nameless"
                with LatentMemory.open(nameless, embedder=embedder) as other:
                    fill(other, recall_data.unnamed(dataset.scopes))
            for name in ablate(memory, whole, questions, runs, nameless):
                report.row(dataset.name, name, rows_of(measured, name), {})
        memory.weights = whole
        contexts(report, memory, dataset, runs, estimate=given.estimate)
        if locomo:
            measured += live(report, memory, dataset, whole)
        misses(memory, dataset, runs, whole, given.misses)
        clock(memory, plain, questions, runs)
    times = {name: [run.numbers[name] for run in runs.values()] for name in ("embedding ms", "recall ms")}
    print()
    for percent in (50, 95):
        value = float(np.percentile(times["recall ms"], percent))
        report.add(f"{dataset.name}: recall of ten turns, p{percent}", value, "ms", "lower")
    ratio = float(np.median(times["recall ms"]) / np.median(times["embedding ms"]))
    bar = LATENCY_BAR if locomo else None
    report.add(f"{dataset.name}: recall / embedding the query alone", ratio, "x", "lower", bar)
    return measured


def contexts(report: Table, memory: LatentMemory, dataset: Dataset, runs: Mapping[str, Run], *, estimate: bool) -> None:
    count = None if estimate else token_counter()
    print(f"\nTokens are {'estimated, three bytes each' if estimate else 'those of the default embedder'}.")
    for budget in BUDGETS:
        name = f"context of {budget}{' estimated' if estimate else ''} tokens: evidence"
        for question in dataset.questions:
            runs[question.key].numbers[name] = share_in_context(memory, question, budget, count)
        value = sum(run.numbers[name] for run in runs.values()) / len(runs)
        bar = CONTEXT_BARS.get(budget) if dataset.kind == LOCOMO else None
        report.add(f"{dataset.name}: {name}", value, "%", "higher", bar)


def live(report: Table, memory: LatentMemory, dataset: Dataset, whole: Weights) -> list[Run]:
    """Measure the live conversations that are made of a dataset's questions."""
    name = f"{dataset.name}, live"
    runs: list[Run] = []
    for question, written in follow_ups(dataset):
        run = Run(name, question.key, question.scope, question.category, question.text)
        alone = question._replace(messages=())
        for label, asked in zip(LIVE, (alone, question, alone._replace(text=written)), strict=True):
            found = [place_of(hit) for hit in recalled(memory, asked, whole)]
            run.ranks[label] = ranks_of(question.evidence, found)
        runs.append(run)
    report.head(f"{name} conversations, a pronoun for a name")
    for label in LIVE:
        report.row(name, label, rows_of(runs, label), {})
    return runs


def misses(memory: LatentMemory, dataset: Dataset, runs: Mapping[str, Run], whole: Weights, count: int) -> None:
    """Print some of the questions not all of whose evidence is among the first ten turns, for a person to sort."""
    missed = [q for q in dataset.questions if not metrics_of(runs[q.key].ranks[WHOLE])["all evidence found@10"]]
    texts = {
        (scope, talk.conversation_id, at): f"{turn.name or turn.role}: {' '.join(turn.text.split())}"
        for scope, talks in dataset.scopes.items()
        for talk in talks
        for at, turn in enumerate(talk.turns)
    }

    def tell(label: str, place: Place, hit: Hit | None) -> None:
        text = texts.get((question.scope, *place), "")
        print(f"  {label:<8} {place[0]}:{place[1]} {text[:200]}")
        if hit is not None:
            signals = " + ".join(f"{name} {value:.2f}" for name, value in hit.signals.items())
            print(f"  {'':<8} {hit.score:.2f} = {signals}")

    for question in random.Random(0).sample(missed, min(count, len(missed))):
        hits = recalled(memory, question, whole)
        # Deeper, for the signals of what is not among these.
        deep = {place_of(hit): hit for hit in recalled(memory, question, whole, k=400)}
        at = {place_of(hit): (rank, hit) for rank, hit in enumerate(hits, start=1)}
        print(f"\n{dataset.name}, {question.key}, {question.category}: {question.text}")
        print(f"  answer: {question.answer}")
        for place in sorted(question.evidence):
            rank, hit = at.get(place, (0, deep.get(place)))
            tell(f"gold {rank}" if rank else f"gold >{DEEPEST}", place, hit)
        for rank, hit in enumerate(hits[:3], start=1):
            if place_of(hit) not in question.evidence:
                tell(f"at {rank}", place_of(hit), hit)


# -- two runs ---------------------------------------------------------------------------------------------


def compared(run: Run) -> dict[str, float]:
    """Return all that two runs are compared by."""
    values = {
        f"{name}: {metric}": value
        for name, ranks in run.ranks.items()
        for metric, value in metrics_of(ranks).items()
        if name in (WHOLE, *LIVE) or metric in HEADLINE
    }
    values |= run.numbers
    if run.numbers.get("embedding ms"):
        values["recall / embedding"] = run.numbers["recall ms"] / run.numbers["embedding ms"]
    return values


def compare(before: Path, after: Path) -> None:
    """Print how two runs differ in what both measured of the questions that both asked."""
    old, new = read_runs(before), read_runs(after)
    both = [key for key in old if key in new]
    for key in both:
        if old[key].question != new[key].question:
            raise InputError(f"{key}: {before} and {after} do not ask the same; were they made of the same files?")
    if not both:
        raise InputError(f"{before} and {after} have no question in common")
    print(f"{len(both)} questions in both, {len(old) + len(new) - 2 * len(both)} in one only")
    print("Second minus first: mean over the questions, 95% interval of a paired bootstrap.")
    for dataset in dict.fromkeys(name for name, _ in both):
        keys = [key for key in both if key[0] == dataset]
        _compare(dataset, [compared(old[key]) for key in keys], [compared(new[key]) for key in keys])
        for category in sorted({old[key].category for key in keys} - {""}):
            some = [key for key in keys if old[key].category == category]
            left, right = (rows_of((runs[key] for key in some), WHOLE) for runs in (old, new))
            if len(left) == len(right) == len(some):
                _compare(f"{dataset}, {category}: {WHOLE}", left, right)


def _compare(title: str, left: Sequence[Mapping[str, float]], right: Sequence[Mapping[str, float]]) -> None:
    names = [name for name in left[0] if all(name in row for row in (*left, *right))]
    first, second = (np.array([[row[name] for name in names] for row in rows]) for rows in (left, right))
    print(f"\n{title}, {len(left)} questions")
    for at, (name, found) in enumerate(zip(names, differences(second - first), strict=True)):
        verdict = "told from noise" if found.told_from_noise else "not told from noise"
        ends = f"{first[:, at].mean():8.3f} -> {second[:, at].mean():8.3f}"
        print(f"  {name:<52} {ends}  {found.mean:+8.3f} [{found.low:+.3f}, {found.high:+.3f}]  {verdict}")


# -- the script -------------------------------------------------------------------------------------------


def with_weights(weights: Weights, given: str) -> Weights:
    """Return the weights with some replaced, as in "words=1.2,exchange=0".

    Raises:
        InputError: for what is no weight, or no number.
    """
    for part in filter(None, given.split(",")):
        name, _, value = part.partition("=")
        if name not in Weights._fields:
            raise InputError(f"--weights: {name!r} is none; use {', '.join(Weights._fields)}")
        try:
            weights = weights._replace(**{name: float(value)})
        except ValueError:
            raise InputError(f"--weights: {part!r}: a number was expected, as in {name}=1") from None
    return weights


def main() -> None:
    options = parser(__doc__)
    options.add_argument("inputs", type=Path, nargs="*", help="LoCoMo's file, a directory of chats, or JSON Lines")
    options.add_argument("--conversations", type=Path, metavar="FILE", help="what questions in JSON Lines are asked of")
    half = options.add_mutually_exclusive_group()
    half.add_argument("--tune", action="store_true", help="only the half of the scopes to choose weights on")
    half.add_argument("--validate", action="store_true", help="only the other half, to report them on")
    options.add_argument("--weights", default="", metavar="NAME=X,...", help="other weights for the whole")
    options.add_argument("--whole", action="store_true", help="the whole only: nothing alone, left out or growing")
    options.add_argument("--estimate", action="store_true", help="estimate tokens, as context does without a tokenizer")
    options.add_argument("--misses", type=int, default=0, metavar="N", help="print so many questions that missed some")
    options.add_argument("--runs", type=Path, metavar="FILE", help="write what was measured of each question")
    options.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="tell two such files apart")
    given = options.parse_args()
    try:
        if given.compare:
            compare(*given.compare)
        elif given.inputs:
            run(given)
        else:
            options.error("name a file or directory of questions, or two runs to compare")
    except InputError as error:
        sys.exit(str(error))


def run(given: argparse.Namespace) -> None:
    with_weights(Weights(), given.weights)
    report = Table(given.json)
    runs: list[Run] = []
    for dataset in recall_data.load_all(given.inputs, given.conversations):
        parts = dict(zip(("tune", "validate"), recall_data.halves(dataset), strict=True))
        scopes = parts["tune"] if given.tune else parts["validate"] if given.validate else list(dataset.scopes)
        kept = recall_data.only(dataset, scopes[:1] if given.quick else scopes)
        if kept.questions:
            runs += measure(report, kept, parts, given)
        else:
            print(f"{dataset.name}: no questions with evidence in this part", file=sys.stderr)
    report.write()
    if given.runs:
        write_runs(given.runs, runs)


if __name__ == "__main__":
    main()
