"""JSON Lines: one conversation a line.

Two shapes, told apart by what is there: ours,

    {"conversation_id", "title", "timestamp", "type", "summary",
     "messages": [{"role", "content", "timestamp", "name"}, ...]}

and the plain `{"messages": [...]}` of chat fine-tuning files. Only `messages`, and in each message `role` and
`content`, are needed. What else stands beside `messages` is kept as the conversation's metadata. A JSON array of
messages alone, `[{"role", "content"}, ...]`, is one conversation.

A conversation may also be known by its `summary` alone; then `messages` is an empty list. `generated` lists the fields
that were generated, as the JSON of `show` and of the server's export has it.

Content is a text or a list of parts, OpenAI's or Anthropic's. Their texts are kept, and what a tool returned, as a turn
of the tool's; tool calls, if the message says nothing else. Left out are images and other files, thoughts, and messages
that say nothing; a conversation of which no message has anything at all is broken.

Source: OpenAI's "Chat completions" format and Anthropic's "Messages" (https://docs.anthropic.com/en/api/messages: the
parts text, image, document, thinking, tool_use and tool_result).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.importers.base import (
    MOST_LINE_BYTES,
    Member,
    OnBad,
    OnSkip,
    Reading,
    Sample,
    call_text,
    is_json,
    json_values,
    medium,
    members,
    shape_of,
)
from latent_memory.messages import content_text, kind, turn_of
from latent_memory.records import MOST_TURN_CHARACTERS, ROLES, Conversation, Turn

FIELDS = ("conversation_id", "title", "timestamp", "type", "summary", "messages", "metadata", "generated")
_GENERATED = frozenset(
    ("conversation_id", "title", "type", "summary", *(f"timestamp:{origin}" for origin in ("turn", "file", "now")))
)

DESCRIPTION = "conversations of messages (JSON Lines with role and content)"


def recognises(sample: Sample) -> bool:
    """Tell whether a file begins with a conversation of `messages`, or is an array of messages."""
    if sample.shape == "array" and _is_message(sample.first):
        return True
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
            yield from _of_document(member, reading)
        else:
            name = f"{reading.name}, {member.name}" if member.name else reading.name
            with member.open() as stream:
                single = iter(partial(stream.readline, MOST_LINE_BYTES), b"")
                yield from read_lines(single, name, reading.written, on_bad=reading.on_bad, on_skip=reading.on_skip)


def _of_document(member: Member, reading: Reading) -> Iterator[Conversation]:
    """Yield the conversations of an array or an object; an array of messages is one."""
    broken: list[InputError] = []

    def on_bad(error: InputError) -> None:
        broken.append(error)
        if reading.on_bad is None:
            raise error
        reading.on_bad(error)

    messages: list[Any] | None = None
    for number, (where, record) in enumerate(json_values(member, replace(reading, on_bad=on_bad))):
        if number == 0 and _is_message(record):
            messages = []
        if messages is not None:
            messages.append(record)
            continue
        yield from _taken(record, where, reading)
    # The beginning of a conversation is not the conversation.
    if messages is not None and not broken:
        yield from _taken({"messages": messages}, member.name, reading)


def _taken(record: object, where: str, reading: Reading) -> Iterator[Conversation]:
    try:
        found = conversation_of(record, reading.written, reading.on_skip)
    except InputError as error:
        reading.bad(where, error)
        return
    if found is not None:
        yield found


def _is_message(value: object) -> bool:
    """Tell whether a value is a message by itself, and not a conversation that has a role."""
    return isinstance(value, dict) and value.get("role") in ROLES and "content" in value and "messages" not in value


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
    lines: Iterable[bytes],
    name: str,
    written: datetime | None = None,
    *,
    on_bad: OnBad | None = None,
    on_skip: OnSkip | None = None,
) -> Iterator[Conversation]:
    """Read conversations from lines of bytes; `written` dates those that tell no time themselves.

    Without `on_skip`, to which what is left out could be told, a message that says nothing cannot be used.
    """
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            conversation = _conversation(line, written, on_skip)
        except InputError as error:
            located = InputError(f"{name}, line {number}: {error}")
            if on_bad is None:
                raise located from None
            on_bad(located)
            continue
        if conversation is not None:
            yield conversation


def _conversation(line: bytes, written: datetime | None, on_skip: OnSkip | None) -> Conversation | None:
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
    return conversation_of(record, written, on_skip)


def conversation_of(
    record: object, written: datetime | None = None, on_skip: OnSkip | None = None
) -> Conversation | None:
    """Return the conversation that a JSON object is; None for one that says nothing to us, which `on_skip` is told.

    Args:
        record: the object, as JSON reads it.
        written: dates a conversation that tells no time itself.
        on_skip: as of a Reading; without it, a message that says nothing cannot be used.

    Raises:
        InputError: if it is none.
    """
    if not isinstance(record, dict):
        raise InputError(f"a JSON object was expected, not {kind(record)}")
    messages = record.get("messages")
    if messages == [] and record.get("summary"):
        return _described(record, [], None)
    if not isinstance(messages, list) or not messages:
        has = "none" if "messages" not in record else "empty" if messages == [] else kind(messages)
        raise InputError(f'"messages": a list of messages was expected, not {has}')
    turns = [turn for i, message in enumerate(messages) for turn in _turns(message, f"messages[{i}]", on_skip)]
    if not turns:
        if not any(_parts(message) for message in messages):
            # Not one that says nothing to us, but one that says nothing: this tells so, and where.
            turn_of(messages[0], "messages[0]")
        if on_skip is not None:
            on_skip("an empty conversation")
        return None
    return _described(record, turns, written)


def _described(record: dict[str, Any], turns: list[Turn], written: datetime | None) -> Conversation:
    given: dict[str, Any] = {name: record.get(name) for name in ("title", "type", "summary", "timestamp")}
    identifier: Any = record.get("conversation_id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    marks = record.get("generated")
    ours = isinstance(marks, list) and all(isinstance(mark, str) and mark in _GENERATED for mark in marks)
    generated = frozenset(marks) if ours and isinstance(marks, list) else frozenset()
    if given["timestamp"] in (None, "") and written is not None and turns and turns[0].timestamp is None:
        given["timestamp"], generated = written, generated | {"timestamp:file"}
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InputError(f'"metadata": an object was expected, not {kind(metadata)}')
    # Somebody else's "generated" is somebody else's.
    known = FIELDS if ours else FIELDS[:-1]
    metadata = {key: value for key, value in record.items() if key not in known} | metadata
    return Conversation(identifier, turns, metadata=metadata, generated=generated, **given)


# -- messages -----------------------------------------------------------------------------------------------


def _parts(message: object) -> list[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, list) else []


def _turns(message: object, where: str, on_skip: OnSkip | None) -> Iterator[Turn]:
    """Yield what tools returned in a message, then what it says itself.

    Raises:
        InputError: if it is no message; without `on_skip`, also if it says nothing.
    """
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        yield turn_of(message, where)
        return
    skip: OnSkip = on_skip or (lambda _: None)
    said, calls, results = _read(_parts(message), skip)
    for text in results:
        yield turn_of({"role": "tool", "content": text, "timestamp": message.get("timestamp")}, where)
    text = "\n".join(said)
    if not text.strip():
        text = _called(message, calls, where)
    else:
        for _ in calls:
            skip("a tool call")
    if not text.strip() and (results or on_skip is not None):
        if not results:
            skip("an empty message")
        return
    yield turn_of({**message, "content": text}, where)


def _called(message: Mapping[str, Any], calls: list[str], where: str) -> str:
    """Return the text of a message whose parts say nothing: its content, or the tools that it calls."""
    try:
        text = content_text({**message, "content": None} if _parts(message) else message)
    except InputError as error:
        raise InputError(f"{where}.{error}") from None
    if text.strip() or calls:
        return text if text.strip() else "\n".join(calls)
    call = message.get("function_call")
    return call_text(call.get("name"), call.get("arguments")) if isinstance(call, Mapping) else ""


def _read(parts: list[Any], skip: OnSkip) -> tuple[list[str], list[str], list[str]]:
    """Return what a message's parts say, the tools that they call, and what tools returned."""
    said: list[str] = []
    calls: list[str] = []
    results: list[str] = []
    for part in parts:
        block = part if isinstance(part, Mapping) else {"text": part}
        what, text = block.get("type"), block.get("text")
        if what == "tool_use":
            calls.append(call_text(block.get("name"), block.get("input")))
        elif what == "tool_result":
            content = block.get("content")
            inner = _read(content, skip)[0] if isinstance(content, list) else [content]
            result = "\n".join(each for each in inner if isinstance(each, str))
            if len(result) > MOST_TURN_CHARACTERS:
                skip("an overlong text")
            else:
                results.append(result)
        elif what in ("thinking", "redacted_thinking", "reasoning"):
            skip("a thought")
        elif isinstance(text, str):
            said.append(text)
        else:
            skip(medium(str(what)))
    return said, [call for call in calls if call], [result for result in results if result.strip()]
