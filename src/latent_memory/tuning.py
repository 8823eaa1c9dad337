"""Weights fitted to one memory: questions with the turns that answer them in, other weights out, if they are better.

The questions are somebody's own, or are found in the memory: a turn that asks, answered by the next one, of somebody
else. Such a turn would find itself, and lend its words to the answer beside it; so what was asked is taken out of the
memory that is searched. Where few turns ask, the rarest words of other turns stand in.

Knows nothing of stores or indexes: it is handed a function that ranks.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from latent_memory.embedders import Embedder
from latent_memory.errors import InputError
from latent_memory.passages import asks, count_words
from latent_memory.query import check_scope
from latent_memory.ranking import Weights
from latent_memory.records import Conversation, Turn, check_text

# Fewer pairs than this tell chance from gain too badly.
LEAST_PAIRS = 48
_LEAST_HELD_OUT = 16
# More make a search slow without making it much surer.
MOST_PAIRS = 400
# A copy of a larger memory would take longer than the search.
MOST_PASSAGES = 100_000
# How many turns are looked at for those that answer.
DEPTH = 20
_FOUND_IN = 10
# A change of a weight must gain so much where it is fitted.
_WORTH = 0.002
_RESAMPLES = 2_000
_SURE = 0.95

# Questions asked in the memory cannot judge these, which stay as they are: what reads the turn before has nothing to
# read where that was taken out, and who asks in a conversation does not tell when the answer was given.
_NOT_JUDGED = ("exchange", "neighbours", "answer", "time")
# Nor are they just what a memory is asked later: whatever they say, no weight moves further than by this factor.
_LEASH = 2.0
# Other weights are relative to this one: a score's scale does not matter.
_UNIT = "meaning"
_ASKING_WORDS = 5
_ANSWERING_WORDS = 5
_STATEMENT_WORDS = 10
_RARE_WORDS = 6
_VERSION = 1
_MOST_WEIGHT = 1e6

_log = logging.getLogger(__name__)

Place: TypeAlias = tuple[str, int]


class Asked(NamedTuple):
    """A question, the turns that answer it, and the turn that it was taken from, if it was."""

    scope: str
    text: str
    evidence: frozenset[Place]
    taken_from: Place | None = None


Rank: TypeAlias = Callable[[Asked, Weights], Sequence[Place]]


class Quality(NamedTuple):
    """How well questions are answered, from 0 to 1.

    Attributes:
        reciprocal_rank: the mean of 1 / the place of the first turn that answers (0 beyond the 20th).
        found: the mean share of the turns that answer which are among the first ten.
    """

    reciprocal_rank: float
    found: float

    @property
    def both(self) -> float:
        """Their mean, which is what is fitted and compared: the first place, and a place in the first ten."""
        return (self.reciprocal_rank + self.found) / 2


@dataclass(frozen=True, slots=True)
class Half:
    """One half of the questions, before and after."""

    questions: int
    before: Quality
    after: Quality


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What one `tune` came to.

    Attributes:
        kept: whether the new weights are in use, now and at every later opening.
        reason: why, or why not.
        source: "questions" that were handed in, or those "asked in the memory".
        fitted, held_out: the half that the weights were fitted to, and the one that decided; None if there was too
            little to go by.
        before, after: the weights.
        tried: how many sets of weights were tried.
    """

    kept: bool
    reason: str
    source: str
    questions: int
    fitted: Half | None
    held_out: Half | None
    before: Mapping[str, float]
    after: Mapping[str, float]
    tried: int


# -- what is asked ----------------------------------------------------------------------------------------


def given(questions: Iterable[Mapping[str, Any]], scope: str, exists: Callable[[str, Place], bool]) -> list[Asked]:
    """Read questions as `LatentMemory.tune` takes them.

    Args:
        scope: of those that name none.
        exists: tells whether a scope has a turn.

    Raises:
        InputError: for one that cannot be used, or names a turn that is not there; with its number, from 1.
    """
    found: list[Asked] = []
    for number, question in enumerate(questions, start=1):
        where = f"question {number}"
        if not isinstance(question, Mapping):
            raise InputError(f'{where}: an object with "question" and "evidence" was expected')
        text, evidence = question.get("question"), question.get("evidence")
        own = question.get("scope", scope)
        check_text(text, f"{where}: question")
        check_scope(own)
        if not str(text).strip():
            raise InputError(f"{where}: question: empty; ask for something")
        if isinstance(evidence, str | Mapping) or not isinstance(evidence, Iterable):
            raise InputError(f"{where}: evidence: a list of [conversation_id, turn] was expected")
        places = frozenset(_place(each, where) for each in evidence)
        if not places:
            raise InputError(f"{where}: evidence: empty; name the turns that answer, as [conversation_id, turn]")
        for place in sorted(places):
            if not exists(str(own), place):
                raise InputError(f"{where}: evidence: no turn {place[1]} in {place[0][:80]!r} of scope {own!r}")
        found.append(Asked(str(own), str(text), places))
    return found


def _place(told: object, where: str) -> Place:
    if isinstance(told, Sequence) and not isinstance(told, str) and len(told) == 2:
        conversation_id, turn = told
        if isinstance(conversation_id, str) and type(turn) is int and turn >= 0:
            return conversation_id, turn
    raise InputError(f'{where}: evidence: {str(told)[:80]} is no [conversation_id, turn], as in ["trip", 0]')


def found_in(conversations: Iterable[tuple[str, Conversation]]) -> list[Asked]:
    """Return questions that were asked in conversations, each with the turn that answers it.

    No two take the same turn, none takes one that answers another, and no more than an eighth of a conversation's
    turns are taken: what is left must be the memory that it was.

    Args:
        conversations: (scope, conversation); gone through once.
    """
    told = [(scope, c) for scope, c in conversations if c.conversation_id is not None]
    # Within a scope: nothing of another's is looked at when it is searched.
    repeats: dict[str, Counter[str]] = {}
    spread: dict[str, Counter[str]] = {}
    for scope, conversation in told:
        texts = [_plain(turn.text) for turn in conversation.turns]
        repeats.setdefault(scope, Counter()).update(texts)
        spread.setdefault(scope, Counter()).update(word for text in texts for word in set(text.split()))
    asked = [pair for scope, c in told for pair in _pairs(scope, c, repeats[scope], _as_asked)]
    if len(asked) < MOST_PAIRS // 4:
        taken = {(pair.scope, conversation_id) for pair in asked for conversation_id, _ in pair.evidence}
        # From other conversations, where there are some: then no rule above is broken.
        asked += [
            pair
            for scope, c in told
            if (scope, c.conversation_id) not in taken
            for pair in _pairs(scope, c, repeats[scope], partial(_in_rare_words, spread[scope]))
        ]
    return sorted(asked, key=_by_chance)[:MOST_PAIRS]


def _pairs(
    scope: str, conversation: Conversation, repeats: Counter[str], asking: Callable[[Turn], str | None]
) -> Iterator[Asked]:
    turns = conversation.turns
    most = max(1, len(turns) // 8)
    # Not always those at the beginning, where people greet each other.
    order = sorted(range(len(turns) - 1), key=lambda i: _digest(f"{conversation.conversation_id}/{i}"))
    taken: set[int] = set()
    answering: set[int] = set()
    for i in order:
        question, answer = turns[i], turns[i + 1]
        if len(taken) >= most:
            return
        if i in answering or i + 1 in taken or (question.name or question.role) == (answer.name or answer.role):
            continue
        # One that was said twice would still be there when it is taken out.
        if repeats[_plain(question.text)] > 1 or repeats[_plain(answer.text)] > 1:
            continue
        text = asking(question)
        if text is None or count_words(answer.text) < _ANSWERING_WORDS:
            continue
        taken.add(i)
        answering.add(i + 1)
        key = conversation.conversation_id or ""
        yield Asked(scope, text, frozenset({(key, i + 1)}), (key, i))


def _as_asked(turn: Turn) -> str | None:
    return turn.text if asks(turn.text) and count_words(turn.text) >= _ASKING_WORDS else None


def _in_rare_words(spread: Counter[str], turn: Turn) -> str | None:
    """Return the rarest of a turn's words that others have as well, in their order."""
    words = list(dict.fromkeys(_plain(turn.text).split()))
    known = sorted((word for word in words if spread[word] > 1), key=lambda word: spread[word])[:_RARE_WORDS]
    if count_words(turn.text) < _STATEMENT_WORDS or len(known) < _RARE_WORDS:
        return None
    return " ".join(word for word in words if word in known)


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def _by_chance(pair: Asked) -> bytes:
    return _digest(f"{pair.scope}/{sorted(pair.evidence)}/{pair.text}")


def halves(asked: Sequence[Asked]) -> tuple[list[Asked], list[Asked]]:
    """Return the questions to fit to, and those held out; all of a conversation's on one side, always the same."""
    groups: dict[tuple[str, str], list[Asked]] = {}
    for pair in asked:
        groups.setdefault((pair.scope, min(pair.evidence)[0]), []).append(pair)
    fitted: list[Asked] = []
    held_out: list[Asked] = []
    for key in sorted(groups, key=lambda key: _digest("/".join(key))):
        (fitted if len(fitted) <= len(held_out) else held_out).extend(groups[key])
    return fitted, held_out


# -- fitting ----------------------------------------------------------------------------------------------


class _TimeUpError(Exception):
    pass


def fit(
    asked: Sequence[Asked],
    rank: Rank,
    before: Weights,
    *,
    source: str,
    seconds: float,
    progress: Callable[[int], None] | None = None,
) -> TuneReport:
    """Search for weights that answer the questions better.

    One weight at a time is doubled, halved and left out, then moved by less, as long as one half of the
    questions gains by it. The other half decides: the new weights are better if they are in 95% of
    2,000 samples of it, drawn with replacement (a paired bootstrap), and find no less in the first ten.

    Args:
        asked: the questions.
        rank: returns the best turns for a question with some weights, best first.
        before: where to start.
        source: what the report says of the questions.
        seconds: after this the search ends with what it has.
        progress: called with how many sets of weights were tried.
    """
    end = time.monotonic() + seconds
    fitted, held_out = halves(asked)
    none = TuneReport(False, "", source, len(asked), None, None, before._asdict(), before._asdict(), 0)
    if len(asked) < LEAST_PAIRS or len(held_out) < _LEAST_HELD_OUT:
        few = f"{len(asked)} questions with an answer" if len(asked) != 1 else "1 question with an answer"
        of = "" if len(asked) < LEAST_PAIRS else ", nearly all in one conversation"
        return _because(none, f"{few}{of}; {LEAST_PAIRS} in several conversations are needed to tell gain from chance")
    scores_before = [_scores(half, rank, before) for half in (fitted, held_out)]
    of_the_memory = any(pair.taken_from for pair in asked)
    still = (_UNIT, *_NOT_JUDGED) if of_the_memory else (_UNIT,)
    leash = _LEASH if of_the_memory else math.inf
    names = [name for name in Weights._fields if name not in still]
    start = _quality(scores_before[0]).both
    best, tried, in_time = _search(fitted, rank, before, names, leash, start, end, progress)
    scores_after = scores_before if best == before else [_scores(half, rank, best) for half in (fitted, held_out)]
    told = [
        Half(len(half), _quality(old), _quality(new))
        for half, old, new in zip((fitted, held_out), scores_before, scores_after, strict=True)
    ]
    report = TuneReport(False, "", source, len(asked), told[0], told[1], before._asdict(), best._asdict(), tried)
    if best == before:
        return _because(
            report, "no other weights answer better" + ("" if in_time else " of those tried in the time given")
        )
    sure = _share_better(scores_before[1], scores_after[1])
    if sure < _SURE:
        return _because(report, f"better in {sure:.0%} of the samples of the held-out questions, not in {_SURE:.0%}")
    if told[1].after.found < told[1].before.found:
        return _because(report, f"fewer of the held-out questions find their answers in the first {_FOUND_IN}")
    return _because(report, f"better in {sure:.0%} of the samples of the held-out questions", kept=True)


def _because(report: TuneReport, reason: str, *, kept: bool = False) -> TuneReport:
    return replace(report, reason=reason, kept=kept)


def _search(
    asked: Sequence[Asked],
    rank: Rank,
    before: Weights,
    names: Sequence[str],
    leash: float,
    best_quality: float,
    end: float,
    progress: Callable[[int], None] | None,
) -> tuple[Weights, int, bool]:
    best, tried = before, 0
    try:
        for step in (2.0, math.sqrt(2)):
            moved = True
            while moved:
                moved = False
                for name in names:
                    for value in _others(getattr(best, name), step):
                        if not _within(leash, getattr(before, name), value):
                            continue
                        weights = best._replace(**{name: value})
                        quality = _quality(_scores(asked, rank, weights, end)).both
                        tried += 1
                        if progress is not None:
                            progress(tried)
                        if quality > best_quality + _WORTH:
                            best, best_quality, moved = weights, quality, True
    except _TimeUpError:
        return best, tried, False
    return best, tried, True


def _within(leash: float, before: float, value: float) -> bool:
    # A little more, for what was moved there and back in steps.
    return leash == math.inf or abs(before) / leash / 1.01 <= abs(value) <= abs(before) * leash * 1.01


def _others(value: float, step: float) -> tuple[float, ...]:
    if value == 0:
        return (0.1, 0.3) if step == 2 else ()
    return (value * step, value / step, *((0.0,) if step == 2 else ()))


def _scores(asked: Sequence[Asked], rank: Rank, weights: Weights, end: float = math.inf) -> list[Quality]:
    scores: list[Quality] = []
    for pair in asked:
        if time.monotonic() > end:
            raise _TimeUpError
        ranked = list(rank(pair, weights))[:DEPTH]
        first = next((1 / place for place, each in enumerate(ranked, start=1) if each in pair.evidence), 0.0)
        scores.append(Quality(first, len(pair.evidence.intersection(ranked[:_FOUND_IN])) / len(pair.evidence)))
    return scores


def _quality(scores: Sequence[Quality]) -> Quality:
    count = max(1, len(scores))
    return Quality(sum(s.reciprocal_rank for s in scores) / count, sum(s.found for s in scores) / count)


def _share_better(before: Sequence[Quality], after: Sequence[Quality]) -> float:
    gains = np.array([b.both - a.both for a, b in zip(before, after, strict=True)])
    drawn = np.random.default_rng(0).integers(len(gains), size=(_RESAMPLES, len(gains)))
    return float((gains[drawn].mean(axis=1) > 0).mean())


# -- keeping ----------------------------------------------------------------------------------------------


def written(weights: Weights) -> str:
    """Return weights as a store keeps them."""
    return json.dumps({"version": _VERSION, "weights": weights._asdict()})


def read(kept: object, where: object) -> Weights | None:
    """Return the weights that a store keeps; None, with a warning, if they are not to be understood.

    A weight that was not there yet when the others were fitted has its default.
    """
    if kept is None:
        return None
    try:
        if not isinstance(kept, str):
            raise ValueError("no text")
        told = json.loads(kept)
        if not isinstance(told, dict) or told.get("version") != _VERSION or not isinstance(told.get("weights"), dict):
            raise ValueError("of another version")
        weights = told["weights"]
        if unknown := sorted(set(weights) - set(Weights._fields)):
            raise ValueError(f"there is no weight {unknown[0][:40]!r} here")
        for name, value in weights.items():
            if type(value) not in (int, float) or not abs(value) <= _MOST_WEIGHT:
                raise ValueError(f"{name} is {str(value)[:40]}")
        return Weights(**{name: float(value) for name, value in weights.items()})
    except (ValueError, RecursionError) as error:
        _log.warning(
            "%s: the tuned weights cannot be used (%s); the defaults are. Run: latent-memory tune, with or without "
            "--reset",
            where,
            error,
        )
        return None


class _Remembering:
    """An embedder that makes what it is asked for again only once; else the one it is made of."""

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner
        self._made: dict[tuple[str, tuple[str, ...], bool], Any] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial(self._once, name, found) if name in ("embed", "embed_tokens") else found

    def _once(self, name: str, make: Callable[..., Any], texts: Sequence[str], *, query: bool = False) -> Any:
        key = (name, tuple(texts), query)
        if key not in self._made:
            self._made[key] = make(texts, query=query)
        return self._made[key]


def remembering(embedder: Embedder) -> Embedder:
    """Return an embedder that embeds the same question only once."""
    return cast(Embedder, _Remembering(embedder))
