"""Summaries alone, as keyword memories are kept: JSON, YAML, or a table of an SQLite database.

    {"conversation_id", "title", "timestamp", "type", "summary"}

Each becomes a conversation without turns. formats/summaries.py reads them, and writes them; docs/summaries.md shows
every shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from latent_memory.formats import summaries, summary_table
from latent_memory.importers.base import Reading, Sample
from latent_memory.records import Conversation

DESCRIPTION = "summaries of conversations (JSON, YAML or an SQLite table)"

# What has turns is another's, and so is what says nothing of a conversation.
_OTHERS = ("messages", "mapping", "chat_messages", "turns", "memory")
_KEY = re.compile(rb"^[ \t]*(?:- +|\? +)?[\"']?(\w+)[\"']?[ \t]*:(?:[ \t]|\r?$)", re.MULTILINE)
# In braces too: - {conversation_id: "0328711", summary: ...}
_SUMMARY = re.compile(rb"(?:^|[\s{,\"'])summary[\"']?[ \t]*:(?:[ \t]|\r?$)", re.MULTILINE)
# What Markdown may begin with: fields between two lines of dashes.
_FRONT_MATTER = re.compile(rb"\A(?:\xef\xbb\xbf)?---[ \t]*\r?\n.*?^---[ \t]*\r?$(?=\s*\S)", re.MULTILINE | re.DOTALL)
_TOLD = {b"conversation_id", b"title", b"timestamp", b"type"}


def recognises(sample: Sample) -> bool:
    """Tell whether a file holds summaries and no messages; an SQLite database is no other importer's.

    Where the fields have other names (`--column`), only `--from summaries` tells.
    """
    if sample.members:
        return False
    if sample.start.startswith(summary_table.HEADER):
        return True
    if sample.shape != "text":
        return _holds_summaries(sample.first)
    keys = set(_KEY.findall(sample.start))
    if sample.path.suffix.lower() in (".yaml", ".yml"):
        # Other YAML is settings, or whatever else people keep in it.
        return _SUMMARY.search(sample.start) is not None and b"messages" not in keys
    if (fields := _FRONT_MATTER.match(sample.start)) and b"summary" not in _KEY.findall(sample.start, fields.end()):
        return False
    return b"summary" in keys and bool(keys & _TOLD) and b"messages" not in keys


def _holds_summaries(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    if "summary" in value:
        # Alone it says nothing of what was summed up.
        return _is_summary(value) and (len(value) == 1 or any(f in value for f in summaries.FIELDS if f != "summary"))
    inner = next((value[key] for key in summaries.LISTS if isinstance(value.get(key), (list, dict))), value)
    each = list(inner.values() if isinstance(inner, dict) else inner)
    return bool(each) and all(map(_is_summary, each))


def _is_summary(entry: object) -> bool:
    told = isinstance(entry, dict) and isinstance(entry.get("summary"), str)
    return told and not any(entry.get(key) for key in _OTHERS)  # type: ignore[attr-defined]


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield a file's summaries, each as a conversation without turns.

    Raises:
        InputError: for an entry that cannot be used, unless `reading.on_bad` takes it; for a table that is not there.
    """
    return summaries.read(
        path,
        table=reading.table or summaries.TABLE,
        columns=reading.columns,
        name=reading.name,
        on_bad=reading.on_bad,
    )
