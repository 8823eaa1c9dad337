"""Signals -> one score.

A turn alone says little ("Yes, last Tuesday!"). What was said before and after it, and what the whole
conversation is about, says the rest. The weights come from LoCoMo (docs/recall.md holds the table); they were
chosen on short chat turns and then made to fade for long ones, which say what they mean by themselves.

Pure functions of arrays; knows nothing of stores or indexes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from latent_memory.vectors import Ids, Scores

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


class Weights(NamedTuple):
    """How much each signal counts."""

    meaning: float = 1.0
    words: float = 1.0
    exchange: float = 0.4
    neighbours: float = 0.25
    conversation: float = 0.4
    # A passage of up to so many words borrows in full from what is around it; a longer one, in proportion less.
    # BEAM's long answers: turn recall@5 48.6 -> 55.1, @10 59.4 -> 62.2; LoCoMo's short turns: unchanged.
    borrowing_words: float = 80.0


class Candidates(NamedTuple):
    """What is known of n passages before they are ranked; all arrays have the length n.

    Attributes:
        meaning: cosine of the passage's vector with the query's.
        words: BM25 of the passage.
        exchange: BM25 of the passage together with the one before it.
        conversation: BM25 of the whole conversation.
        before, after: place among the candidates of the passage before and after in the conversation; -1 if
            there is none.
        length: the passage's length in words.
    """

    meaning: Scores
    words: Scores
    exchange: Scores
    conversation: Scores
    before: Ids
    after: Ids
    length: Ids


def rank(candidates: Candidates, weights: Weights | None = None) -> dict[str, Floats]:
    """Return what each signal adds to each candidate's score, by the signal's name; their sum is the score.

    Each signal is divided by its best among the candidates, so that 1 is the best there is; a cosine below
    zero counts as zero.
    """
    weights = weights or Weights()
    borrows = np.minimum(1.0, weights.borrowing_words / np.maximum(1.0, candidates.length))
    meaning = weights.meaning * _to_best(candidates.meaning)
    words = weights.words * _to_best(candidates.words)
    exchange = weights.exchange * borrows * _to_best(candidates.exchange)
    said = meaning + words + exchange
    # Place -1 reads the zero at the end.
    padded = np.append(said, 0.0)
    around = padded[candidates.before] + padded[candidates.after]
    return {
        "meaning": meaning,
        "words": words,
        "exchange": exchange,
        "neighbours": weights.neighbours * borrows * around,
        "conversation": weights.conversation * borrows * _to_best(candidates.conversation),
    }


def _to_best(scores: Scores) -> Floats:
    positive = np.maximum(scores, 0.0).astype(np.float64)
    best = positive.max(initial=0.0)
    return positive / best if best > 0 else positive
