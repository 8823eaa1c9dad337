"""Store <-> Snapshot: every row of a memory as plain data, and back.

An entry has, besides `conversation_id`, `summary` (the passage's text) and `timestamp`, which every reader knows:
`title`, `type`, `role`, `name`, `turn`, `piece`, `start` and `scope`; the whole `text` of a turn of several pieces,
with the first of them; and what else is known of a conversation, as `conversation`, with its first row.
Rows stand in the order in which they were added.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from latent_memory.database import Database
from latent_memory.records import UNKNOWN, EmbedderIdentity
from latent_memory.snapshot import BLOCK_ROWS, Block, Entry, Snapshot
from latent_memory.store import SUMMARY
from latent_memory.vectors import Ids, from_bytes

# -- store -> snapshot --------------------------------------------------------------------------------------


def snapshot_of(database: Database, name: str) -> Snapshot:
    """Return all that a store holds. Use it within `database.snapshot()`, if others may write meanwhile."""
    row = database.row("SELECT value FROM meta WHERE key = 'embedder'")
    known = EmbedderIdentity(*json.loads(row[0])) if row else None
    (count,) = database.row("SELECT count(*) FROM passages")
    return Snapshot(
        rows=count,
        dimension=known.dimension if known else 0,
        embedder=None if known is None or known.name == UNKNOWN else known,
        blocks=lambda: blocks_after(database, 0, known.dimension if known else 0),
        name=name,
    )


def blocks_after(database: Database, after: int, dimension: int) -> Iterator[Block]:
    """Yield the rows of passages with ids beyond `after`, in their order."""
    while rows := database.rows(
        _ROWS.format(where="p.passage_id > ? ORDER BY p.passage_id LIMIT ?"), after, BLOCK_ROWS
    ):
        keys = list({row[1] for row in rows})
        firsts = dict(
            database.rows_among(
                "SELECT conversation_key, min(passage_id) FROM passages WHERE conversation_key IN ({ids}) "
                "GROUP BY conversation_key",
                keys,
            )
        )
        yield Block(from_bytes([row[-1] for row in rows], dimension), [_entry(row, firsts[row[1]]) for row in rows])
        after = rows[-1][0]


def _entries_of(database: Database, key: int, *, whole: bool) -> dict[int, Entry]:
    """Return the entries of a conversation by passage id: all, or the one that heads it."""
    first = "(SELECT min(passage_id) FROM passages WHERE conversation_key = ?)"
    where = "p.conversation_key = ?" if whole else f"p.passage_id = {first}"
    (head,) = database.row(f"SELECT {first}", key)
    return {row[0]: _entry(row, head) for row in database.rows(_ROWS.format(where=where), key)}


_ROWS = (
    "SELECT p.passage_id, p.conversation_key, s.name, conversation_id, p.position, piece, start, t.role, t.name, "
    "p.text, t.text, t.timestamp, title, type, c.timestamp, summary, metadata, generated, vector "
    "FROM passages p JOIN vectors v ON v.passage_id = p.passage_id "
    "JOIN conversations c ON c.conversation_key = p.conversation_key JOIN scopes s ON s.scope_id = p.scope_id "
    "LEFT JOIN turns t ON t.conversation_key = p.conversation_key AND t.position = p.position WHERE {where}"
)


def _entry(row: Any, first: int) -> Entry:
    passage_id, _, scope, conversation_id, position, piece, start, role, name, text, whole, said = row[:12]
    title, kind, begun, summary, metadata, marks = row[12:18]
    entry: Entry = {
        "conversation_id": conversation_id,
        "summary": text if text is not None else summary if whole is None else whole,
        "timestamp": said or begun,
        "title": title,
        "type": kind,
        "role": role,
        "name": name,
        "turn": None if position == SUMMARY else position,
        "piece": piece,
        "start": start,
        "scope": scope,
    }
    if whole is not None and said is None:
        entry["timestamp_of"] = "conversation"
    if whole is not None and text is not None and piece == 0:
        entry["text"] = whole
    if passage_id == first:
        entry["conversation"] = {
            "timestamp": begun,
            "summary": summary,
            "metadata": json.loads(metadata),
            "generated": json.loads(marks),
        }
    return entry


# -- what has changed since a snapshot was written ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """A state of a store that somewhere a file holds: row i of the file is the passage ids[i]."""

    ids: Ids
    deletions: int
    generation: str


@dataclass(frozen=True, slots=True)
class Growth:
    """What was added since a mark: new rows, and new entries for rows that are there."""

    blocks: Iterator[Block]
    changed: dict[int, Entry]


def watch(database: Database) -> None:
    """Begin to take note of changes to conversations; for a store that belongs to one process."""
    with database.writing() as connection:
        # What stands in every row of a conversation (whole), and what stands in its first one.
        connection.execute("CREATE TABLE touched (conversation_key INTEGER PRIMARY KEY, whole INTEGER NOT NULL)")
        connection.execute(
            "CREATE TRIGGER touch AFTER UPDATE ON conversations BEGIN INSERT INTO touched VALUES "
            "(new.conversation_key, old.title <> new.title OR old.type <> new.type) "
            "ON CONFLICT (conversation_key) DO UPDATE SET whole = max(whole, excluded.whole); END"
        )


def mark(database: Database, connection: sqlite3.Connection, since: Mark | None = None) -> Mark:
    """Return the state of a store, inside a write, and forget which conversations were changed before it.

    With a mark `since`, only what was added after it is read, if nothing was deleted.
    """
    connection.execute("DELETE FROM touched")
    deletions, generation = _deletions(database), _generation(database)
    stands = since is not None and (since.deletions, since.generation) == (deletions, generation)
    ids = since.ids if since is not None and stands else np.zeros(0, np.int64)
    last = int(ids[-1]) if len(ids) else 0
    rows = database.rows("SELECT passage_id FROM passages WHERE passage_id > ? ORDER BY passage_id", last)
    return Mark(np.concatenate([ids, np.array(rows, np.int64).ravel()]), deletions, generation)


def growth(database: Database, since: Mark) -> Growth | None:
    """Return what was added since a mark; None if something that was there has gone or has another vector."""
    if _deletions(database) != since.deletions or _generation(database) != since.generation:
        return None
    last = int(since.ids[-1]) if len(since.ids) else 0
    row = database.row("SELECT value FROM meta WHERE key = 'embedder'")
    if row is None or not last:
        return None
    changed: dict[int, Entry] = {}
    for key, whole in database.rows("SELECT conversation_key, whole FROM touched"):
        for i, entry in _entries_of(database, key, whole=whole).items():
            if i <= last:
                changed[int(np.searchsorted(since.ids, i))] = entry
    return Growth(blocks_after(database, last, json.loads(row[0])[1]), changed)


def _deletions(database: Database) -> int:
    row = database.row("SELECT seq FROM sqlite_sequence WHERE name = 'deletions'")
    return row[0] if row else 0


def _generation(database: Database) -> str:
    row = database.row("SELECT group_concat(value, '/') FROM meta WHERE key IN ('embedder', 'generation')")
    return row[0] or ""
