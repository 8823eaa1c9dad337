"""The seam: what a reranker is, what it is shown, and how its scores join those that a hit has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from latent_memory.errors import RerankerError
from latent_memory.passages import count_words, spoken
from latent_memory.records import Hit, Passage

# How many of the first hits are looked at again, unless asked otherwise.
AMONG = 50
# A turn of fewer words ("Yes, the second one!") is shown with the end of the turn before it.
_SHORT = 12
_CONTEXT_CHARACTERS = 300

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Before: TypeAlias = Callable[[Passage], Sequence[Passage]]


@runtime_checkable
class Reranker(Protocol):
    """Anything that reads a question together with texts and tells how well each answers it.

    Attributes:
        name: what errors call it.
    """

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def score(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """Return one score a text, higher for better; any scale will do."""
        ...


def reordered(reranker: Reranker, query: str, hits: Sequence[Hit], before: Before, among: int = AMONG) -> list[Hit]:
    """Return the hits in the order of both: their own scores, and the reranker's for the first `among` of them.

    Of the first `among` hits, the distance between the best and the worst score is what the reranker's best text is
    given as its signal "reranker", its worst gets nothing, and those between in proportion. So both rankings count the
    same, whatever the reranker's scale, and a hit's score stays the sum of its signals.

    Args:
        hits: best first.
        before: returns the turn before a passage's own, as a list of one, or of none.

    Raises:
        RerankerError: if the reranker cannot be used, or what it returns are no scores.
    """
    first, rest = hits[:among], hits[among:]
    if not first:
        return []
    made = checked(reranker.score(query, [_shown(hit.passage, before) for hit in first]), len(first), reranker.name)
    spread = max(0.0, first[0].score - first[-1].score) or 1.0
    added = (spread * _from_worst_to_best(made)).tolist()
    looked_at = [
        replace(hit, score=hit.score + more, signals={**hit.signals, "reranker": more})
        for hit, more in zip(first, added, strict=True)
    ]
    # A stable sort: where both say the same, the first ranking decides.
    return sorted(looked_at, key=lambda hit: -hit.score) + list(rest)


def checked(scores: object, count: int, made_by: str) -> Floats:
    """Return a reranker's scores as an array (count,).

    Raises:
        RerankerError: if they are no numbers, too many, too few, or not finite.
    """
    try:
        made = np.asarray(scores, np.float64)
    except (TypeError, ValueError) as error:
        raise RerankerError(f"reranker {made_by}: returned something else than numbers ({error})") from None
    if made.shape != (count,):
        raise RerankerError(
            f"reranker {made_by}: returned scores of the shape {made.shape} for {count} texts; one number a text was "
            "expected"
        )
    if bad := np.flatnonzero(~np.isfinite(made)).tolist():
        raise RerankerError(f"reranker {made_by}: scored text {bad[0]} of {count} with {made[bad[0]]}")
    return made


def _from_worst_to_best(scores: Floats) -> Floats:
    least, most = scores.min(), scores.max()
    # Halves, because the distance of two very large numbers may be beyond what a float holds.
    half = most / 2 - least / 2
    return (scores / 2 - least / 2) / half if half > 0 else np.zeros_like(scores)


def _shown(passage: Passage, before: Before) -> str:
    told = spoken(passage.name, passage.text)
    if passage.turn and passage.start == 0 and count_words(passage.text) < _SHORT:
        for turn in before(passage):
            context = spoken(turn.name, turn.text)
            cut = context if len(context) <= _CONTEXT_CHARACTERS else "…" + context[1 - _CONTEXT_CHARACTERS :]
            return f"{cut}\n{told}"
    return told
