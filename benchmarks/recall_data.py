"""What is asked, and of whom: three kinds of files -> conversations by scope, and questions with their evidence.

The kind is recognised by the content:

- LoCoMo's file (Maharana et al. 2024): each sample is a scope, each session a conversation with its date, each turn's
  name its speaker; a shared photo's caption is appended to the text.
- A directory of chats as BEAM has them (Tavakoli et al. 2025), `DIR/*/chat.json` and `DIR/*/q.json`: each chat is a
  scope, each of its batches a conversation. Summarization is no question of finding turns and is left out.
- JSON Lines of `{"scope", "question", "evidence": [[conversation_id, turn], ...]}`, with "category", "answer" and
  "messages" (a live conversation, which is asked instead of the question) where there are any, and beside it a file of
  conversations in the project's own JSON Lines. A conversation's own key "scope" says where it belongs; without one it
  belongs to the scope that all questions name.

Knows nothing of memories. Turns count from 0. Questions without evidence that exists are left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from latent_memory import Conversation, Turn
from latent_memory.errors import InputError
from latent_memory.importers import jsonl

Place = tuple[str, int]

LOCOMO = "LoCoMo"
BEAM = "BEAM"
# By number in LoCoMo's file.
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
# Where BEAM's kinds of questions keep what should be answered.
_ANSWERS = ("answer", "ideal_answer", "ideal_response")
# What BEAM's chats have after each message of the user: `->-> 3,14`.
_MARKER = re.compile(r"\s*->->[\d,\s]*$")


class Question(NamedTuple):
    """One question.

    Attributes:
        key: tells it from all others of its set, in every run.
        evidence: the turns that hold the answer.
        messages: the live conversation that is asked instead of the text, if there is one.
    """

    key: str
    scope: str
    text: str
    evidence: frozenset[Place]
    category: str = ""
    answer: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()

    @property
    def asked(self) -> str | list[Mapping[str, Any]]:
        """What `recall` is given."""
        return list(self.messages) or self.text


class Dataset(NamedTuple):
    """Conversations by scope, in the order of the file, and what is asked of them."""

    name: str
    kind: str
    scopes: dict[str, list[Conversation]]
    questions: list[Question]


def load(path: Path, conversations: Path | None = None) -> Dataset:
    """Read a file or directory of one of the three kinds.

    Args:
        path: what holds the questions.
        conversations: the file of conversations, for questions in JSON Lines.

    Raises:
        InputError: for what is none of the three, or cannot be used.
    """
    if path.is_dir():
        return beam(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    first = whole[0] if isinstance(whole, list) and whole else None
    if isinstance(first, dict) and {"conversation", "qa"} <= first.keys():
        return locomo(whole)
    if conversations is None:
        raise InputError(
            f"{path}: neither LoCoMo's file nor a directory of chats; for questions in JSON Lines give their "
            "conversations, too: --conversations FILE"
        )
    return lines(text, conversations, path)


def load_all(paths: Sequence[Path], conversations: Path | None = None) -> list[Dataset]:
    """Read several; where two have the same name, the file's is added."""
    loaded = [load(path, conversations) for path in paths]
    count = Counter(dataset.name for dataset in loaded)
    return [
        dataset._replace(name=f"{dataset.name} {path.stem}") if count[dataset.name] > 1 else dataset
        for dataset, path in zip(loaded, paths, strict=True)
    ]


def halves(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Return the scopes to choose weights on, the first half rounded up, and those to report them on."""
    scopes = list(dataset.scopes)
    middle = -(-len(scopes) // 2)
    return scopes[:middle], scopes[middle:]


def only(dataset: Dataset, scopes: Sequence[str]) -> Dataset:
    """Return what the dataset has of these scopes."""
    kept = {scope: dataset.scopes[scope] for scope in scopes}
    return dataset._replace(scopes=kept, questions=[q for q in dataset.questions if q.scope in kept])


def unnamed(scopes: Mapping[str, list[Conversation]]) -> dict[str, list[Conversation]]:
    """Return the same conversations without the speakers' names."""
    return {
        scope: [replace(c, turns=[replace(turn, name=None) for turn in c.turns]) for c in conversations]
        for scope, conversations in scopes.items()
    }


# -- LoCoMo -----------------------------------------------------------------------------------------------


def locomo(samples: Sequence[Mapping[str, Any]]) -> Dataset:
    """Read LoCoMo's samples."""
    scopes: dict[str, list[Conversation]] = {}
    questions: list[Question] = []
    for number, sample in enumerate(samples):
        scope = str(sample.get("sample_id", number))
        places: dict[str, Place] = {}
        scopes[scope] = list(_sessions(sample["conversation"], places))
        for at, asked in enumerate(sample["qa"]):
            # Some entries hold several ids, and a few name turns that do not exist.
            ids = (identifier for entry in asked.get("evidence", ()) for identifier in re.split(r"[;\s]+", entry))
            evidence = frozenset(places[identifier] for identifier in ids if identifier in places)
            category = CATEGORIES.get(asked.get("category"), "")
            if evidence:
                answer = str(asked.get("answer", ""))
                questions.append(Question(f"{scope}/{at}", scope, asked["question"], evidence, category, answer))
    return Dataset(LOCOMO, LOCOMO, scopes, questions)


def _sessions(conversation: Mapping[str, Any], places: dict[str, Place]) -> Iterator[Conversation]:
    numbers = sorted(int(m[1]) for key in conversation if (m := re.fullmatch(r"session_(\d+)", key)))
    for number in numbers:
        name = f"session_{number}"
        turns: list[Turn] = []
        for said in conversation[name]:
            places[said["dia_id"]] = (name, len(turns))
            caption = said.get("blip_caption")
            text = f"{said['text']} [shared a photo: {caption}]" if caption else said["text"]
            turns.append(Turn("user", text, name=said["speaker"]))
        when = datetime.strptime(conversation[f"{name}_date_time"], "%I:%M %p on %d %B, %Y")
        if turns:
            yield Conversation(name, turns, timestamp=when)


# -- BEAM -------------------------------------------------------------------------------------------------


def beam(directory: Path) -> Dataset:
    """Read a directory of chats.

    Raises:
        InputError: if there is none.
    """
    scopes: dict[str, list[Conversation]] = {}
    questions: list[Question] = []
    for chat in sorted(directory.glob("*/chat.json")):
        scope = chat.parent.name
        places: dict[int, Place] = {}
        scopes[scope] = list(_batches(json.loads(chat.read_text(encoding="utf-8")), places))
        asked = json.loads((chat.parent / "q.json").read_text(encoding="utf-8"))
        for kind, found in asked.items():
            for at, question in enumerate(found if kind != "summarization" else ()):
                evidence = frozenset(places[n] for n in numbers_in(question.get("source_chat_ids")) if n in places)
                answer = next((str(question[name]) for name in _ANSWERS if name in question), "")
                if evidence:
                    key, category = f"{scope}/{kind}/{at}", kind.replace("_", " ")
                    questions.append(Question(key, scope, question["question"], evidence, category, answer))
    if not scopes:
        raise InputError(f"{directory}: no chats in it; DIR/*/chat.json and DIR/*/q.json were expected")
    return Dataset(BEAM, BEAM, scopes, questions)


def _batches(batches: Sequence[Mapping[str, Any]], places: dict[int, Place]) -> Iterator[Conversation]:
    # A chat whose time is not told must not be dated by the day of the run.
    when = datetime(2024, 1, 1)
    for number, batch in enumerate(batches, start=1):
        name = f"batch-{number}"
        messages = [message for group in batch["turns"] for message in group]
        told = [anchor for item in (batch, *messages) if (anchor := item.get("time_anchor"))]
        when = datetime.strptime(told[0], "%B-%d-%Y") if told else when + timedelta(days=1)
        turns: list[Turn] = []
        for message in messages:
            text = message["content"]
            if message["role"] == "user":
                text = _MARKER.sub("", text)
            if text.strip():
                places[int(message["id"])] = (name, len(turns))
                turns.append(Turn(message["role"], text))
        if turns:
            yield Conversation(name, turns, timestamp=when)


def numbers_in(nested: object) -> Iterator[int]:
    """Yield the whole numbers in lists and mappings nested anyhow."""
    if isinstance(nested, int) and not isinstance(nested, bool):
        yield nested
    elif isinstance(nested, Mapping):
        yield from numbers_in(list(nested.values()))
    elif isinstance(nested, list):
        for item in nested:
            yield from numbers_in(item)


# -- JSON Lines -------------------------------------------------------------------------------------------


def lines(text: str, conversations: Path, path: Path) -> Dataset:
    """Read questions, one a line, and the conversations that they are asked of.

    Raises:
        InputError: for a line that is no question, and evidence that does not exist.
    """
    questions: list[Question] = []
    places: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            question = _question(line, where)
            if question.evidence:
                questions.append(question._replace(key=f"{question.scope}/{number}"))
                places[questions[-1].key] = where
    scopes: dict[str, list[Conversation]] = {question.scope: [] for question in questions}
    shared = next(iter(scopes)) if len(scopes) == 1 else None
    for conversation in jsonl.read(conversations):
        scope = conversation.metadata.get("scope", shared)
        if not isinstance(scope, str):
            raise InputError(
                f'{conversations}: conversation {conversation.conversation_id!r} has no "scope", and the questions '
                "name several; say which it belongs to"
            )
        scopes.setdefault(scope, []).append(conversation)
    length = {(scope, c.conversation_id): len(c.turns) for scope, told in scopes.items() for c in told}
    for question in questions:
        for name, turn in sorted(question.evidence):
            if not 0 <= turn < length.get((question.scope, name), 0):
                raise InputError(f"{places[question.key]}: evidence {[name, turn]} is no turn of its scope")
    return Dataset(path.stem, "JSON Lines", scopes, questions)


def _question(line: str, where: str) -> Question:
    try:
        told = json.loads(line)
        evidence = frozenset((str(name), int(turn)) for name, turn in told["evidence"])
        text = told["question"]
        messages = tuple(told.get("messages") or ())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        shape = '{"scope", "question", "evidence": [[conversation_id, turn], ...]}'
        raise InputError(f"{where}: not a question ({error!r}); {shape} was expected") from None
    scope, category = str(told.get("scope", "default")), str(told.get("category", ""))
    return Question("", scope, text, evidence, category, str(told.get("answer", "")), messages)
