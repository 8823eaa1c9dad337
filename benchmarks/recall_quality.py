"""How many of the turns that hold the answer are recalled: LoCoMo's questions with their gold evidence turns.

    python benchmarks/recall_quality.py locomo10.json

Each sample is a scope, each session a conversation with its date, each turn's name its speaker; a shared photo's
caption is appended to the text. Turn recall@k is the mean over questions with evidence of the share of gold evidence
turns among the first k turns; session recall@k likewise over the first k distinct sessions. No language model.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from common import Report, parser
from latent_memory import Conversation, Hit, LatentMemory, Turn
from latent_memory.ranking import Weights

Place = tuple[str, int]
NOTHING = Weights(meaning=0, words=0, exchange=0, neighbours=0, conversation=0)
MEANING = NOTHING._replace(meaning=1)
WORDS = NOTHING._replace(words=1)
BOTH = NOTHING._replace(meaning=1, words=1)
NEIGHBOURS = BOTH._replace(neighbours=Weights().neighbours)
CONVERSATION = NEIGHBOURS._replace(conversation=Weights().conversation)
DEEP = 200


class Question(NamedTuple):
    scope: str
    text: str
    evidence: frozenset[Place]


class Score(NamedTuple):
    turns_at_5: float
    turns_at_10: float
    sessions_at_10: float


def load(
    path: Path, samples: int | None, *, names: bool = True
) -> tuple[dict[str, list[Conversation]], list[Question]]:
    """Read a LoCoMo file: conversations by scope, and the questions whose evidence exists."""
    scopes: dict[str, list[Conversation]] = {}
    questions: list[Question] = []
    for number, sample in enumerate(json.loads(path.read_text(encoding="utf-8"))[:samples]):
        scope = str(sample.get("sample_id", number))
        places: dict[str, Place] = {}
        scopes[scope] = list(_sessions(sample["conversation"], places, names=names))
        for asked in sample["qa"]:
            # Some entries hold several ids, and a few name turns that do not exist.
            ids = (identifier for entry in asked.get("evidence", ()) for identifier in re.split(r"[;\s]+", entry))
            evidence = frozenset(places[identifier] for identifier in ids if identifier in places)
            if evidence:
                questions.append(Question(scope, asked["question"], evidence))
    return scopes, questions


def _sessions(conversation: dict[str, Any], places: dict[str, Place], *, names: bool) -> Iterator[Conversation]:
    numbers = sorted(int(m[1]) for key in conversation if (m := re.fullmatch(r"session_(\d+)", key)))
    for number in numbers:
        name = f"session_{number}"
        turns: list[Turn] = []
        for said in conversation[name]:
            places[said["dia_id"]] = (name, len(turns))
            caption = said.get("blip_caption")
            text = f"{said['text']} [shared a photo: {caption}]" if caption else said["text"]
            turns.append(Turn("user", text, name=said["speaker"] if names else None))
        when = datetime.strptime(conversation[f"{name}_date_time"], "%I:%M %p on %d %B, %Y")
        if turns:
            yield Conversation(name, turns, timestamp=when)


def score(question: Question, ranked: Sequence[Place]) -> Score:
    gold = question.evidence
    sessions = {session for session, _ in gold}
    first = list(dict.fromkeys(session for session, _ in ranked))[:10]
    return Score(
        len(gold & set(ranked[:5])) / len(gold),
        len(gold & set(ranked[:10])) / len(gold),
        len(sessions & set(first)) / len(sessions),
    )


def recalled(memory: LatentMemory, question: Question, weights: Weights) -> list[Place]:
    memory.weights = weights
    return [_place(hit) for hit in memory.recall(question.text, k=DEEP, scope=question.scope)]


def _place(hit: Hit) -> Place:
    return hit.passage.conversation_id, hit.passage.turn if hit.passage.turn is not None else -1


def by_reciprocal_ranks(memory: LatentMemory, question: Question) -> list[Place]:
    """Fuse two rankings as Cormack et al. (2009) do, with their constant 60."""
    fused: dict[Place, float] = {}
    for weights in (MEANING, WORDS):
        for rank, place in enumerate(recalled(memory, question, weights), start=1):
            fused[place] = fused.get(place, 0.0) + 1 / (60 + rank)
    return sorted(fused, key=lambda place: -fused[place])


def evaluate(
    report: Report, name: str, questions: list[Question], rank: Callable[[Question], list[Place]], bars: bool = False
) -> None:
    scores = [score(question, rank(question)) for question in questions]
    report.add(f"{name}: turn recall@5", 100 * mean(s.turns_at_5 for s in scores), "%", "higher")
    report.add(
        f"{name}: turn recall@10", 100 * mean(s.turns_at_10 for s in scores), "%", "higher", 77 if bars else None
    )
    sessions = 100 * mean(s.sessions_at_10 for s in scores)
    report.add(f"{name}: session recall@10", sessions, "%", "higher", 94 if bars else None)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("locomo", type=Path, help="a file in LoCoMo's format")
    given = options.parse_args()
    report = Report(given.json)
    samples = 1 if given.quick else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        with LatentMemory.open(Path(place) / "unnamed") as memory:
            scopes, questions = load(given.locomo, samples, names=False)
            fill(memory, scopes)
            evaluate(report, "embedding of the turn", questions, lambda q: recalled(memory, q, MEANING))
        with LatentMemory.open(Path(place) / "named") as memory:
            scopes, questions = load(given.locomo, samples)
            fill(memory, scopes)
            turns = memory.stats().turns
            print(f"{turns} turns, {len(questions)} questions with evidence", file=sys.stderr)
            for name, weights in (
                ("+ the speaker's name", MEANING),
                ("BM25 alone", WORDS),
                ("embedding + BM25", BOTH),
                ("+ neighbours", NEIGHBOURS),
                ("+ conversation", CONVERSATION),
            ):
                evaluate(report, name, questions, partial(recalled, memory, weights=weights))
            evaluate(report, "embedding + BM25, reciprocal ranks", questions, lambda q: by_reciprocal_ranks(memory, q))
            evaluate(report, "whole", questions, lambda q: recalled(memory, q, Weights()), bars=True)
            memory.weights = Weights()
            times: list[float] = []
            for question in questions:
                began = time.perf_counter()
                memory.recall(question.text, scope=question.scope)
                times.append(1000 * (time.perf_counter() - began))
            report.add("recall, median", median(times), "ms", "lower")
    report.write()


def fill(memory: LatentMemory, scopes: dict[str, list[Conversation]]) -> None:
    for scope, conversations in scopes.items():
        memory.add(conversations, scope=scope)


if __name__ == "__main__":
    main()
