"""Mem0: memories as `get_all` and `search` return them, saved as JSON.

    {"results": [{"id", "memory", "hash", "metadata", "created_at", "updated_at", "user_id", "agent_id", "run_id"}]}

A file is such an object, a list of them (pages), a list of memories (as older versions returned), or JSON Lines of
either. A memory is not something that was said: each becomes a conversation without turns whose summary is the memory,
of the type "memory", with the id that Mem0 gave it; a memory that Mem0 has since changed replaces what it was.
Everything else that stands beside it is its metadata, but for the score, which belongs to one search.

The structured exports of Mem0's platform have the schema that their owner wrote, so there is no reading them; save
what `get_all` returns.

Source: Mem0's documentation ("Export Stored Memories", "Get Memories") and `MemoryItem` in its `mem0/configs/base.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from latent_memory import generated, json_stream
from latent_memory.errors import InputError
from latent_memory.importers.base import (
    Member,
    Reading,
    Sample,
    identifier_of,
    json_records,
    members,
    shape_of,
    until_broken,
)
from latent_memory.messages import kind
from latent_memory.records import Conversation
from latent_memory.times import parse_time

DESCRIPTION = 'Mem0 memories, as get_all returns them ({"results": [...]})'

_LISTS = ("results", "memories")
_FIELDS = ("id", "memory", "created_at", "metadata", "score", "event")


def recognises(sample: Sample) -> bool:
    """Tell whether a file holds memories with Mem0's fields."""
    if sample.members or not isinstance(sample.first, dict):
        return False
    page = next((sample.first[name] for name in _LISTS if isinstance(sample.first.get(name), list)), None)
    return _is_memory(page[0] if page else sample.first)


def _is_memory(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("memory"), str)
        and any(name in value for name in ("hash", "user_id", "created_at"))
    )


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield a file's memories, each as a conversation of a summary alone."""
    for member in members(path, reading, lambda name: name.endswith((".json", ".jsonl")), "JSON file"):
        for place, entry in _records(member, reading):
            try:
                conversation = _conversation(entry, reading)
            except InputError as error:
                reading.bad(place, error)
                continue
            if conversation is not None:
                yield conversation


def _records(member: Member, reading: Reading) -> Iterator[tuple[str, object]]:
    with member.open() as stream:
        shape = shape_of(stream)
    if shape != "object":
        for where, value in json_records(member, reading):
            yield from _entries(value, where)
        return
    with member.open() as stream:
        # One page may hold all memories there are.
        for number, place, value in until_broken(json_stream.listed(stream, _LISTS), member, reading):
            where = member.where(f"entry {number}")
            yield from [(f"{where}, {place}", value)] if place else _entries(value, where)


def _entries(value: object, where: str) -> Iterator[tuple[str, object]]:
    """Yield the memories of a page; of a memory itself."""
    page = isinstance(value, dict) and "memory" not in value
    for name in _LISTS if page else ():
        assert isinstance(value, dict)
        if isinstance(value.get(name), list):
            for number, entry in enumerate(value[name]):
                yield f"{where}, {name}[{number}]", entry
            return
    yield where, value


def _conversation(entry: object, reading: Reading) -> Conversation | None:
    if not isinstance(entry, Mapping):
        raise InputError(f"an object was expected, not {kind(entry)}")
    if entry.get("event") == "DELETE":
        reading.on_skip("a memory that was deleted")
        return None
    memory = entry.get("memory")
    if not isinstance(memory, str):
        has = "none" if "memory" not in entry else kind(memory)
        raise InputError(f'"memory": a text was expected, not {has}; Mem0\'s get_all returns memories that have one')
    if not memory.strip():
        reading.on_skip("an empty memory")
        return None
    own = entry.get("metadata")
    if own is not None and not isinstance(own, Mapping):
        raise InputError(f'"metadata": an object was expected, not {kind(own)}')
    when = parse_time(entry.get("created_at"), "created_at") or parse_time(entry.get("updated_at"), "updated_at")
    metadata = {key: value for key, value in entry.items() if key not in _FIELDS and value is not None}
    return Conversation(
        identifier_of(entry.get("id")),
        summary=memory,
        # Given, so that it changes when the memory does.
        title=generated.title((), memory),
        type="memory",
        timestamp=when or reading.written,
        metadata=metadata | dict(own or {}),
        generated=frozenset() if when else frozenset({"timestamp:file"}),
    )
