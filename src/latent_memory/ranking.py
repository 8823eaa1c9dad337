"""Signals -> one score.

A turn alone says little ("Yes, last Tuesday!"). What was said before and after it, and what the whole
conversation is about, says the rest. The weights were chosen on three conversations of LoCoMo and checked on two others
(docs/recall.md holds the table); what is borrowed fades for long passages, which say what they mean by themselves.

Pure functions of arrays; knows nothing of stores or indexes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from latent_memory.vectors import Ids, Scores

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

# Where there are no tokens to compare, vectors say a part of what those would have said (chosen as the others were).
_INSTEAD_OF_TOKENS = 0.25


# What has this share of the best score may be what is meant.
_MAY_ANSWER = 0.6


class Weights(NamedTuple):
    """How much each signal counts; docs/recall.md tells what each is."""

    meaning: float = 1.0
    words: float = 0.7
    exchange: float = 0.4
    tokens: float = 2.0
    neighbours: float = 0.25
    answer: float = 0.25
    conversation: float = 0.8
    companion: float = 0.4
    asking: float = 0.15
    time: float = 0.6
    # A passage of up to so many words borrows in full from what is around it; a longer one, in proportion less.
    borrowing_words: float = 80.0
    # A question of up to so many words asks and no more; a longer one tells something besides.
    asking_words: float = 20.0


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
        key: a number for the conversation it belongs to.
        asks: whether it ends with a question.
        tokens: similarity of its tokens to the query's, NaN where that is not known; None if it is known of too few.
        time: how well it fits the time that the query tells, from 0 to 1; None if it tells none.
        said_at: when it was said, if the query asks for the latest; None otherwise.
    """

    meaning: Scores
    words: Scores
    exchange: Scores
    conversation: Scores
    before: Ids
    after: Ids
    length: Ids
    key: Ids
    asks: np.ndarray[Any, np.dtype[np.bool_]]
    tokens: Scores | None = None
    time: Scores | None = None
    said_at: Floats | None = None


def rank(candidates: Candidates, weights: Weights | None = None) -> dict[str, Floats]:
    """Return what each signal adds to each candidate's score, by the signal's name; their sum is the score.

    Each signal is divided by its best among the candidates, so that 1 is the best there is; a cosine below zero counts
    as zero. Similarities of tokens lie close together, and are spread from 0 to 1.
    """
    weights = weights or Weights()
    c = candidates
    borrows = np.minimum(1.0, weights.borrowing_words / np.maximum(1.0, c.length))
    meaning = weights.meaning * _to_best(c.meaning)
    if c.tokens is None:
        meaning = meaning + weights.tokens * _INSTEAD_OF_TOKENS * _spread(c.meaning)
        tokens = np.zeros(len(meaning))
    else:
        tokens = weights.tokens * _spread(c.tokens)
    words = weights.words * _to_best(c.words)
    exchange = weights.exchange * borrows * _to_best(c.exchange)
    said = meaning + words + exchange
    # Place -1 reads the zero at the end.
    padded = np.append(said, 0.0)
    asked = np.append(c.asks, False)[c.before]
    signals = {
        "meaning": meaning,
        "words": words,
        "exchange": exchange,
        "tokens": tokens,
        "neighbours": weights.neighbours * borrows * (padded[c.before] + padded[c.after]),
        # What a question says, its answer is about.
        "answer": weights.answer * borrows * np.where(asked, padded[c.before], 0.0),
        "conversation": weights.conversation * borrows * _to_best(c.conversation),
        "companion": weights.companion * borrows * _best_of_each(said + tokens, c.key),
    }
    short = np.minimum(1.0, weights.asking_words / np.maximum(1.0, c.length)) ** 2
    signals["asking"] = -weights.asking * c.asks * short * np.sum(list(signals.values()), axis=0)
    if c.time is not None or c.said_at is not None:
        fit = np.zeros(len(meaning)) if c.time is None else c.time.astype(np.float64)
        if c.said_at is not None:
            fit = np.maximum(fit, _lateness(np.sum(list(signals.values()), axis=0), c.said_at))
        signals["time"] = weights.time * fit
    return signals


def _lateness(scores: Floats, said_at: Floats) -> Floats:
    """Return, from 0 for the first to 1 for the latest, when what may answer was said; 0 for what may not.

    Whoever asks for the latest has something in mind of which there are several.
    """
    may = scores >= _MAY_ANSWER * scores.max(initial=0.0)
    times = np.unique(said_at[may])
    if len(times) < 2:
        return np.zeros(len(scores))
    lateness: Floats = np.where(may, np.searchsorted(times, said_at) / (len(times) - 1), 0.0)
    return lateness


def _to_best(scores: Scores) -> Floats:
    positive = np.maximum(scores, 0.0).astype(np.float64)
    best = positive.max(initial=0.0)
    return positive / best if best > 0 else positive


def _spread(scores: Scores) -> Floats:
    """Spread scores from 0 to 1; what is not known is 0."""
    known = scores[~np.isnan(scores)].astype(np.float64)
    lowest, highest = known.min(initial=np.inf), known.max(initial=-np.inf)
    if not highest > lowest:
        return np.zeros(len(scores))
    spread: Floats = np.nan_to_num((scores.astype(np.float64) - lowest) / (highest - lowest))
    return spread


def _best_of_each(scores: Floats, key: Ids) -> Floats:
    """Return, for each candidate, the best score of its conversation, spread from 0 to 1."""
    if len(scores) == 0:
        return scores
    _, place = np.unique(key, return_inverse=True)
    best = np.full(place.max() + 1, -np.inf)
    np.maximum.at(best, place, scores)
    found: Floats = _spread(best.astype(np.float32))[place]
    return found
