"""LoCoMo: two people's talk over many sessions, as the benchmark of that name has it.

    [{"sample_id", "conversation": {"speaker_a", "speaker_b",
                                    "session_1_date_time": "1:56 pm on 8 May, 2023",
                                    "session_1": [{"speaker", "dia_id", "text", "blip_caption", "img_url"}, ...]}}]

A file is a list of such samples, one of them, or the inner object alone. A session is a conversation, in the order
of their numbers; the speakers are people, so both have the role "user", with their names. What a photo shows is told
as "[shared a photo: ...]". `dia_id`, by which the benchmark's questions name their evidence, is kept in
`metadata["dia_ids"]`, one for each turn.

What was made for the benchmark (questions, observations, events, summaries) is left out: a memory that held it would
be tested on its answers.

Source: Maharana et al. 2024, "Evaluating Very Long-Term Conversational Memory of LLM Agents", its data file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.importers.base import Reading, Sample, json_records, members
from latent_memory.messages import kind
from latent_memory.records import Conversation, Turn
from latent_memory.times import parse_time

DESCRIPTION = "LoCoMo sessions (session_1, session_1_date_time, ...)"

_SESSION = re.compile(r"session_(\d{1,6})")
_WHEN = re.compile(r"\s*(\d{1,2}):(\d{2})\s*([ap])\.?m\.?\s+on\s+(\d{1,2})\s+([a-z]{3})[a-z]*\.?,?\s+(\d{4})\s*", re.I)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def recognises(sample: Sample) -> bool:
    """Tell whether a file holds numbered sessions."""
    return not sample.members and isinstance(sample.first, dict) and bool(_sessions(_talk(sample.first)))


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield the sessions of a file, sample by sample.

    Their ids are "SAMPLE/session_N", SAMPLE being the sample's own id, or else the speakers' names.
    """
    seen: Counter[str] = Counter()
    for member in members(path, reading, lambda name: name.endswith(".json"), "JSON file"):
        for where, sample in json_records(member, reading):
            yield from _sample(sample, where, seen, reading)


def _sample(sample: object, where: str, seen: Counter[str], reading: Reading) -> Iterator[Conversation]:
    talk = _talk(sample) if isinstance(sample, dict) else {}
    numbers = _sessions(talk)
    if not isinstance(sample, dict) or not numbers:
        reading.bad(where, 'no sessions; "session_1" with a list of what was said was expected')
        return
    label = _label(sample, talk)
    seen[label] += 1
    if seen[label] > 1:
        # Samples without an id may be of the same two people; their order in the file tells them apart.
        label = f"{label}-{seen[label]}"
    for number in numbers:
        place = f"{where}, session_{number}"
        try:
            conversation = _session(talk, number, label, place, reading)
        except InputError as error:
            reading.bad(place, error)
            continue
        if conversation is not None:
            yield conversation


def _talk(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = sample.get("conversation")
    return inner if isinstance(inner, dict) else sample


def _sessions(talk: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the sessions, in order."""
    numbers = {int(match[1]) for key in talk if (match := _SESSION.fullmatch(key))}
    return sorted(number for number in numbers if isinstance(talk.get(f"session_{number}"), list))


def _label(sample: Mapping[str, Any], talk: Mapping[str, Any]) -> str:
    given = sample.get("sample_id")
    if isinstance(given, (str, int)) and not isinstance(given, bool) and str(given).strip():
        return str(given)
    names = [talk.get(key) for key in ("speaker_a", "speaker_b")]
    return "-".join(name for name in names if isinstance(name, str) and name.strip()) or "locomo"


def _session(talk: Mapping[str, Any], number: int, label: str, where: str, reading: Reading) -> Conversation | None:
    turns: list[Turn] = []
    ids: list[str] = []
    for place, said in enumerate(talk[f"session_{number}"]):
        try:
            turn = _turn(said)
        except InputError as error:
            reading.bad(f"{where}[{place}]", error)
            continue
        if turn is None:
            reading.on_skip("an empty message")
            continue
        turns.append(turn)
        ids.append(str(said.get("dia_id") or ""))
    if not turns:
        return None
    when = _when(talk.get(f"session_{number}_date_time"))
    return Conversation(
        f"{label}/session_{number}",
        turns,
        timestamp=when or reading.written,
        metadata={"session": number} | ({"dia_ids": ids} if any(ids) else {}),
        generated=frozenset() if when else frozenset({"timestamp:file"}),
    )


def _turn(said: object) -> Turn | None:
    if not isinstance(said, dict):
        raise InputError(f"an object was expected, not {kind(said)}")
    text, caption, speaker = (said.get(key) for key in ("text", "blip_caption", "speaker"))
    for key, value in (("text", text), ("blip_caption", caption), ("speaker", speaker)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{key}: a text was expected, not {kind(value)}")
    parts = [text, f"[shared a photo: {caption}]" if caption else None]
    told = " ".join(part for part in parts if part and part.strip())
    return Turn("user", told, name=speaker) if told else None


def _when(text: object) -> datetime | None:
    """Read "1:56 pm on 8 May, 2023", or a time as anywhere else."""
    match = _WHEN.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[5].lower() not in _MONTHS:
        return parse_time(text, "date_time")
    hour = int(match[1]) % 12 + (12 if match[3].lower() == "p" else 0)
    try:
        return datetime(int(match[6]), _MONTHS.index(match[5].lower()) + 1, int(match[4]), hour, int(match[2]))
    except ValueError:
        raise InputError(f"date_time: {text!r} is no time") from None
