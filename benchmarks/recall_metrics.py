"""Ranks of the evidence -> metrics, and the difference of two runs with an interval.

All that is kept of a question's ranking is where its evidence stood; every metric follows from that, so two runs can be
compared by metrics that neither printed.

Pure functions; knows nothing of memories or files of questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from latent_memory.errors import InputError
from recall_data import Place

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

# A rank beyond this is none.
DEEPEST = 50
RESAMPLES = 10_000
# Name of a metric -> its unit. Higher is better for all of them.
METRICS = {
    "turn recall@5": "%",
    "turn recall@10": "%",
    "turn recall@20": "%",
    "turn recall@50": "%",
    "all evidence found@10": "%",
    "session recall@5": "%",
    "session recall@10": "%",
    "MRR": "",
}


class Ranks(NamedTuple):
    """Where a question's evidence stood, counted from 1; None for what was not among the first `DEEPEST` turns.

    Attributes:
        turns: of each evidence turn, in the order of their places.
        sessions: of each evidence session among the distinct sessions.
    """

    turns: tuple[int | None, ...]
    sessions: tuple[int | None, ...]


@dataclass
class Run:
    """What was measured of one question.

    Attributes:
        ranks: by the name of what ranked.
        numbers: anything else, by its name; percentages from 0 to 100, times in ms.
    """

    dataset: str
    key: str
    scope: str
    category: str
    question: str
    ranks: dict[str, Ranks] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


def ranks_of(evidence: Iterable[Place], ranked: Sequence[Place]) -> Ranks:
    """Return where the evidence stands in a ranking of turns, best first."""
    ranked = list(ranked[:DEEPEST])
    distinct = list(dict.fromkeys(session for session, _ in ranked))
    gold = sorted(evidence)
    sessions = sorted({session for session, _ in gold})
    return Ranks(tuple(_rank(place, ranked) for place in gold), tuple(_rank(s, distinct) for s in sessions))


def _rank(item: object, ranked: Sequence[object]) -> int | None:
    return ranked.index(item) + 1 if item in ranked else None


def metrics_of(ranks: Ranks) -> dict[str, float]:
    """Return a question's metrics by their names in `METRICS`."""
    first = min((rank for rank in ranks.turns if rank is not None), default=None)
    return {
        **{f"turn recall@{k}": _share(ranks.turns, k) for k in (5, 10, 20, 50)},
        "all evidence found@10": 100.0 * (_share(ranks.turns, 10) == 100.0),
        **{f"session recall@{k}": _share(ranks.sessions, k) for k in (5, 10)},
        "MRR": 0.0 if first is None else 1 / first,
    }


def _share(ranks: Sequence[int | None], k: int) -> float:
    return 100.0 * sum(rank is not None and rank <= k for rank in ranks) / len(ranks)


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the questions."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def by_reciprocal_ranks(rankings: Iterable[Sequence[Place]]) -> list[Place]:
    """Fuse rankings as Cormack et al. (2009) do, with their constant 60."""
    fused: dict[Place, float] = {}
    for ranking in rankings:
        for rank, place in enumerate(ranking, start=1):
            fused[place] = fused.get(place, 0.0) + 1 / (60 + rank)
    return sorted(fused, key=lambda place: -fused[place])


# -- two runs ---------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """A mean difference with its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def told_from_noise(self) -> bool:
        """Whether the interval has no zero in it."""
        return self.low > 0 or self.high < 0


def differences(pairs: Floats, resamples: int = RESAMPLES, seed: int = 0) -> list[Difference]:
    """Return each metric's mean difference, with a percentile interval from a paired bootstrap over the questions.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    Args:
        pairs: (questions, metrics), what the second run has more than the first.
        resamples: how many times as many questions are drawn, with replacement. All metrics share the draws.
        seed: of the draws.
    """
    count = len(pairs)
    chance = np.random.default_rng(seed)
    # How often each question is drawn is all that a mean needs.
    shares = np.full(count, 1 / count)
    parts = [
        chance.multinomial(count, shares, size=min(500, resamples - start)) @ pairs / count
        for start in range(0, resamples, 500)
    ]
    low, high = np.percentile(np.concatenate(parts), (2.5, 97.5), axis=0)
    middle = pairs.mean(axis=0)
    return [Difference(float(m), float(a), float(b)) for m, a, b in zip(middle, low, high, strict=True)]


def write_runs(path: Path, runs: Iterable[Run]) -> None:
    """Write what was measured, one question a line."""
    with path.open("w", encoding="utf-8") as out:
        for run in runs:
            out.write(json.dumps(vars(run)) + "\n")


def read_runs(path: Path) -> dict[tuple[str, str], Run]:
    """Read what `write_runs` wrote, by dataset and key.

    Raises:
        InputError: for a file of anything else.
    """
    runs: dict[tuple[str, str], Run] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            run = Run(**json.loads(line))
            run.ranks = {name: Ranks(tuple(turns), tuple(met)) for name, (turns, met) in run.ranks.items()}
            runs[run.dataset, run.key] = run
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a file that --runs wrote ({error})") from None
    return runs
