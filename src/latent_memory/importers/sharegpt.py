"""ShareGPT: `{"id", "conversations": [{"from": "human", "value": ...}, ...]}`, in an array or one a line.

The form of many fine-tuning sets. A text beside it called `system` comes first, as a system turn; what else stands
beside `conversations` is kept as the conversation's metadata. Messages with `role` and `content` are read too.

Source: https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered; the names of roles are those of
https://github.com/hiyouga/LLaMA-Factory (data/README.md) and https://github.com/axolotl-ai-cloud/axolotl.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.importers.base import Reading, Sample, json_records, members, parts_text
from latent_memory.messages import kind, turn_of
from latent_memory.records import Conversation, Turn

DESCRIPTION = "ShareGPT (JSON or JSON Lines with from and value)"

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(
        ("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot", "ai", "function_call"), "assistant"
    ),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
}


def recognises(sample: Sample) -> bool:
    """Tell whether a file begins with a conversation of `from` and `value`."""
    said = sample.first.get("conversations") if isinstance(sample.first, dict) else None
    if not isinstance(said, list) or not said or not isinstance(said[0], dict):
        return False
    return {"from", "value"} <= said[0].keys() or {"role", "content"} <= said[0].keys()


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield the conversations of a file.

    Raises:
        InputError: for what cannot be used, unless `reading.on_bad` takes it.
    """
    for member in members(path, reading, lambda name: name.endswith((".json", ".jsonl")), "JSON file"):
        for where, entry in json_records(member, reading):
            try:
                found = _conversation(entry, where, reading)
            except InputError as error:
                reading.bad(where, error)
                continue
            if found is not None:
                yield found


def _conversation(entry: object, where: str, reading: Reading) -> Conversation | None:
    if not isinstance(entry, dict):
        raise InputError(f"an object was expected, not {kind(entry)}")
    said = entry.get("conversations")
    if not isinstance(said, list):
        has = "none" if "conversations" not in entry else kind(said)
        raise InputError(f'"conversations": a list of messages was expected, not {has}')
    turns: list[Turn | None] = []
    system = entry.get("system")
    if isinstance(system, str) and system.strip():
        turns.append(reading.turn(where, "system", system))
    for number, message in enumerate(said):
        turns.append(_turn(message, f"conversations[{number}]", where, reading))
    return reading.conversation(
        where,
        entry.get("id"),
        [turn for turn in turns if turn is not None],
        title=entry.get("title"),
        metadata={key: value for key, value in entry.items() if key not in ("id", "conversations", "system", "title")},
    )


def _turn(message: object, place: str, where: str, reading: Reading) -> Turn | None:
    """Read one message; one that cannot be used makes the whole conversation bad, as a hole would change its sense."""
    if not isinstance(message, Mapping):
        raise InputError(f"{place}: an object was expected, not {kind(message)}")
    if "from" not in message and "role" in message:
        return turn_of(message, place)
    role = _ROLES.get(str(message.get("from")).strip().lower())
    if role is None:
        raise InputError(f'{place}: "from": {str(message.get("from"))[:40]!r} is unknown; use human or gpt')
    value: Any = message.get("value")
    try:
        return reading.turn(f"{where}, {place}", role, parts_text(value, reading), message.get("timestamp"))
    except InputError as error:
        raise InputError(f"{place}.value: {error}") from None
