"""What the benchmarks share: the options, the report, and texts to work on.

Every script takes `--quick` (under a minute) and `--json FILE`: a list of {"name", "value", "unit", "better", "bar"}.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from latent_memory import Conversation, Turn
from latent_memory.importers import jsonl
from latent_memory.passages import sentences

EXAMPLES = Path(__file__).parent.parent / "examples" / "conversations.jsonl"


@dataclass(frozen=True)
class Result:
    name: str
    value: float
    unit: str
    better: Literal["higher", "lower"]
    bar: float | None = None


class Report:
    """Prints results as they come and writes them as JSON at the end."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._results: list[Result] = []

    def add(
        self, name: str, value: float, unit: str, better: Literal["higher", "lower"], bar: float | None = None
    ) -> None:
        self._results.append(Result(name, round(value, 4), unit, better, bar))
        sign = "≥" if better == "higher" else "≤"
        told = "" if bar is None else f"  (bar {sign} {bar:g})"
        print(f"{name:<58} {value:>10.3f} {unit}{told}", flush=True)

    def keep(
        self, name: str, value: float, unit: str, better: Literal["higher", "lower"], bar: float | None = None
    ) -> None:
        """Add a result that a table has shown already: it goes into the JSON alone."""
        self._results.append(Result(name, round(value, 4), unit, better, bar))

    def write(self) -> None:
        if self._file is not None:
            self._file.write_text(json.dumps([asdict(result) for result in self._results], indent=2) + "\n")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    options.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    return options


def chat(turns: int, seed: int = 0) -> Iterator[Conversation]:
    """Yield conversations of 20 turns made of the examples' sentences, shuffled: real lengths, real words.

    The lengths are those of chat turns (mean about 20 words), and no two turns are the same text.
    """
    chance = random.Random(seed)
    told = [
        line
        for conversation in jsonl.read(EXAMPLES)
        for turn in conversation.turns
        for line in sentences(turn.text)
        if 3 <= len(line.split()) <= 40
    ]
    begun = datetime(2024, 1, 1, 9)
    for number in itertools.count():
        if number * 20 >= turns:
            return
        when = begun + timedelta(hours=7 * number)
        said = [
            Turn(
                ("user", "assistant")[i % 2],
                " ".join(chance.sample(told, chance.choice((1, 1, 2, 2, 3)))),
                when + timedelta(minutes=i),
                ("Ana", "Assistant")[i % 2],
            )
            for i in range(min(20, turns - number * 20))
        ]
        yield Conversation(f"chat-{number}", said)


QUESTIONS = (
    "How fast can I run 10 km now?",
    "What does my home in the Netherlands cost me every month?",
    "When did we decide to postpone the wedding?",
    "Which foods am I allergic to?",
    "How much did the insurer agree to pay for the stolen bicycle?",
    "What was granny's warning about the temperature of the milk?",
    "Why did the hospital database run out of space that night?",
    "Why does a transformer scale down the scores before the softmax?",
)
