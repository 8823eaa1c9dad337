"""JSON Lines: one conversation a line.

Two shapes, told apart by what is there: ours,

    {"conversation_id", "title", "timestamp", "type", "summary",
     "messages": [{"role", "content", "timestamp", "name"}, ...]}

and the plain `{"messages": [...]}` of chat fine-tuning files. Only `messages`, and in each message `role` and
`content`, are needed. What else stands beside `messages` is kept as the conversation's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.importers.base import (
    MOST_LINE_BYTES,
    Member,
    OnBad,
    Reading,
    Sample,
    is_json,
    json_values,
    members,
    shape_of,
)
from latent_memory.messages import kind, turn_of
from latent_memory.records import Conversation

_FIELDS = ("conversation_id", "title", "timestamp", "type", "summary", "messages", "metadata")

DESCRIPTION = "conversations of messages (JSON Lines with role and content)"


def recognises(sample: Sample) -> bool:
    """Tell whether a file begins with a conversation of `messages`."""
    messages = sample.first.get("messages") if isinstance(sample.first, dict) else None
    if not isinstance(messages, list):
        return False
    return not messages or (isinstance(messages[0], dict) and "role" in messages[0])


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield the conversations of a file: JSON Lines, or the same records as one JSON document.

    Raises:
        InputError: for a line that cannot be used, unless `reading.on_bad` takes it.
    """
    for member in members(path, reading, lambda name: name.endswith((".json", ".jsonl")), "JSON Lines file"):
        if _is_document(member):
            for where, record in json_values(member, reading):
                try:
                    yield _of_record(record, reading.written)
                except InputError as error:
                    reading.bad(where, error)
        else:
            name = f"{reading.name}, {member.name}" if member.name else reading.name
            with member.open() as stream:
                single = iter(partial(stream.readline, MOST_LINE_BYTES), b"")
                yield from read_lines(single, name, reading.written, on_bad=reading.on_bad)


def _is_document(member: Member) -> bool:
    """Tell whether a file is one JSON document over several lines, or an array."""
    with member.open() as stream:
        shape = shape_of(stream)
    if shape != "object":
        return shape == "array"
    with member.open() as stream:
        return not is_json(stream.readline(MOST_LINE_BYTES)) and bool(stream.readline(MOST_LINE_BYTES).strip())


def read(path: Path, *, name: str | None = None, on_bad: OnBad | None = None) -> Iterator[Conversation]:
    """Read the conversations of a file, one at a time.

    Args:
        path: the file, UTF-8.
        name: what error messages call it.
        on_bad: called with the error of each line that cannot be used, which is then left out; without it the
            first such error is raised.

    Raises:
        InputError: if the file cannot be read, or a line cannot be used; the message names file and line.
    """
    try:
        with path.open("rb") as lines:
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(microsecond=0)
            yield from read_lines(lines, name or str(path), written, on_bad=on_bad)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def read_lines(
    lines: Iterable[bytes], name: str, written: datetime | None = None, *, on_bad: OnBad | None = None
) -> Iterator[Conversation]:
    """Read conversations from lines of bytes; `written` dates those that tell no time themselves."""
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            conversation = _conversation(line, written)
        except InputError as error:
            located = InputError(f"{name}, line {number}: {error}")
            if on_bad is None:
                raise located from None
            on_bad(located)
            continue
        yield conversation


def _conversation(line: bytes, written: datetime | None) -> Conversation:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        hint = ""
        if line.lstrip()[:1] == b"[" or line.strip() == b"{":
            hint = "; one JSON object a line is expected, not one JSON document over several lines"
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise InputError(f"not JSON ({reason}){hint}") from None
    return _of_record(record, written)


def _of_record(record: object, written: datetime | None) -> Conversation:
    if not isinstance(record, dict):
        raise InputError(f"a JSON object was expected, not {kind(record)}")
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        has = "none" if "messages" not in record else "empty" if messages == [] else kind(messages)
        raise InputError(f'"messages": a list of messages was expected, not {has}')
    turns = tuple(turn_of(message, f"messages[{i}]") for i, message in enumerate(messages))
    given: dict[str, Any] = {name: record.get(name) for name in ("title", "type", "summary", "timestamp")}
    identifier: Any = record.get("conversation_id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    generated: frozenset[str] = frozenset()
    if given["timestamp"] in (None, "") and turns[0].timestamp is None and written is not None:
        given["timestamp"], generated = written, frozenset({"timestamp:file"})
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InputError(f'"metadata": an object was expected, not {kind(metadata)}')
    metadata = {key: value for key, value in record.items() if key not in _FIELDS} | metadata
    return Conversation(identifier, turns, metadata=metadata, generated=generated, **given)
