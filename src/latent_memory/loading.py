"""Snapshot -> store: an empty store is filled with what a file holds, each entry checked.

An entry that says only `conversation_id`, `summary` and `timestamp` is a conversation without turns; what snapshots.py
writes comes back as it was.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from latent_memory import generated
from latent_memory.database import Database
from latent_memory.errors import InputError
from latent_memory.passages import asks, count_words
from latent_memory.records import ROLES, UNKNOWN, Conversation, EmbedderIdentity, Turn, as_json, check_text
from latent_memory.snapshot import MOST_DIMENSION, Block, Entry, Snapshot
from latent_memory.store import SUMMARY
from latent_memory.times import epoch, parse_time, read_time
from latent_memory.vectors import Vectors, from_bytes, to_bytes, unit

# A vector whose length differs from one by more than this was not made to be compared by its dot product.
_UNIT_TOLERANCE = 1e-3

_OURS = frozenset(
    (
        *(
            "conversation_id",
            "summary",
            "timestamp",
            "title",
            "type",
            "role",
            "name",
            "turn",
            "piece",
            "start",
            "scope",
        ),
        *("timestamp_of", "text", "conversation", "metadata"),
    )
)

# Where a conversation's metadata has what another tool says of its turns, by their places; of the first one it is the
# conversation's own.
_OF_TURNS = "turn_metadata"

OnBad = Callable[[InputError], None]


@dataclass(slots=True)
class Loaded:
    """What came of loading a snapshot, in rows."""

    rows: int = 0
    left_out: int = 0
    scaled: int = 0  # vectors that were not of unit length
    zeros: int = 0  # vectors that are nothing but zeros, as of a text without a word


def load(
    database: Database,
    snapshot: Snapshot,
    *,
    on_bad: OnBad | None = None,
    progress: Callable[[int], None] | None = None,
) -> Loaded:
    """Fill an empty store with a snapshot.

    Args:
        database: the store's.
        snapshot: what it gets; vectors that are not of unit length are scaled.
        on_bad: called with the error of each row that cannot be used, which is then left out; without it that error
            is raised.
        progress: called with how many rows are done, after each block.

    Raises:
        InputError: if a row cannot be used; throw the store away then.
    """
    if snapshot.dimension > MOST_DIMENSION:
        raise InputError(
            f"{snapshot.name}: vectors of {snapshot.dimension:,} numbers; at most {MOST_DIMENSION:,} are read"
        )
    loader = _Loader(snapshot, on_bad)
    for block in snapshot.blocks():
        with database.writing() as connection:
            loader.load(connection, block)
        if progress is not None:
            progress(loader.done.rows)
    with database.writing() as connection:
        loader.finish(connection)
        known = snapshot.embedder or EmbedderIdentity(UNKNOWN, snapshot.dimension, "")
        if loader.done.rows or snapshot.embedder:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('embedder', ?)", (json.dumps(known),))
    return loader.done


@dataclass(frozen=True, slots=True)
class _Row:
    """An entry that was checked."""

    scope: str
    conversation_id: str
    position: int
    piece: int
    start: int
    text: str
    turn: Turn | None  # of piece 0 of a turn
    time: datetime | None
    written: str | None  # the time's own words, where it was not written as ISO 8601 or a number


class _Loader:
    def __init__(self, snapshot: Snapshot, on_bad: OnBad | None) -> None:
        self._snapshot = snapshot
        self._on_bad = on_bad
        self._row = 0
        self._scopes: dict[str, int] = {}
        self._last: tuple[tuple[int, str], int] | None = None
        self._to_describe: list[int] = []
        self._of_turns: dict[int, dict[str, Any]] = {}
        self._written = snapshot.written or datetime.now(UTC).replace(microsecond=0)
        self.done = Loaded()

    def load(self, connection: sqlite3.Connection, block: Block) -> None:
        finite: Any = np.isfinite(block.vectors).all(axis=1)
        norms = np.sqrt(np.einsum("nd,nd->n", block.vectors, block.vectors, dtype=np.float64))
        off: Any = finite & (np.abs(norms - 1) > _UNIT_TOLERANCE) & (norms > 0)
        vectors: Vectors = block.vectors
        if off.any():
            vectors = vectors.copy()
            # By its largest number first: the squares of large numbers do not fit into single precision.
            wide = vectors[off].astype(np.float64)
            vectors[off] = unit(wide / np.abs(wide).max(axis=1, keepdims=True))
        for i, entry in enumerate(block.entries):
            try:
                if isinstance(entry, InputError):
                    raise entry
                if not finite[i]:
                    raise InputError("the vector has NaN or infinite numbers")
                self._add(connection, entry, vectors[i])
                self.done.rows += 1
                self.done.scaled += int(off[i])
                self.done.zeros += int(norms[i] == 0)
            except InputError as error:
                located = InputError(f"{self._snapshot.name}, entry {self._row}{_named(entry)}: {error}")
                if self._on_bad is None:
                    raise located from None
                self.done.left_out += 1
                self._on_bad(located)
            self._row += 1
        for key, by_turn in self._of_turns.items():
            (known,) = connection.execute(
                "SELECT metadata FROM conversations WHERE conversation_key = ?", (key,)
            ).fetchone()
            metadata = json.loads(known)
            before = metadata.get(_OF_TURNS)
            told = (before if isinstance(before, dict) else {}) | by_turn
            connection.execute(
                "UPDATE conversations SET metadata = ? WHERE conversation_key = ?",
                (json.dumps(metadata | {_OF_TURNS: told}), key),
            )
        self._of_turns.clear()

    def _add(self, connection: sqlite3.Connection, entry: Entry, vector: Vectors) -> None:
        row = _checked(entry, self._written)
        scope_id = self._scope(connection, row.scope)
        key, new = self._conversation(connection, scope_id, row, entry)
        whole = row.text
        if row.turn is not None:
            whole = row.turn.text
        elif row.position != SUMMARY:
            found = connection.execute(
                "SELECT text, role FROM turns WHERE conversation_key = ? AND position = ?", (key, row.position)
            ).fetchone()
            if found is None:
                raise InputError(f"piece: {row.piece} of turn {row.position}, whose piece 0 did not come before it")
            whole = found[0]
        if row.position != SUMMARY and whole[row.start : row.start + len(row.text)] != row.text:
            raise InputError(f"start: the summary does not stand at {row.start} in the turn's text")
        if row.position == SUMMARY:
            kept = connection.execute("SELECT summary FROM conversations WHERE conversation_key = ?", (key,)).fetchone()
            whole = kept[0]
        said, begun = (row.turn.timestamp if row.turn else None), ""
        role = row.turn.role if row.turn else "system" if row.position == SUMMARY else found[1]
        if said is None:
            (begun,) = connection.execute(
                "SELECT coalesce((SELECT timestamp FROM turns WHERE conversation_key = ?1 AND position = ?2), "
                "timestamp) FROM conversations WHERE conversation_key = ?1",
                (key, row.position),
            ).fetchone()
        try:
            passage_id = connection.execute(
                "INSERT INTO passages "
                "(scope_id, conversation_key, position, piece, start, text, words, role, epoch, asks) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(scope_id, key, row.position, row.piece, row.start, None if row.text == whole else row.text),
                    *(
                        count_words(row.text),
                        ROLES.index(role),
                        epoch(said or datetime.fromisoformat(begun)),
                        asks(row.text),
                    ),
                ),
            ).lastrowid
        except sqlite3.IntegrityError:
            what = "" if row.position == SUMMARY else f", turn {row.position}, piece {row.piece}"
            raise InputError(
                f"conversation_id: {row.conversation_id!r}{what} already exists; each entry needs one of its own"
            ) from None
        connection.execute("INSERT INTO vectors VALUES (?, ?)", (passage_id, to_bytes(vector)))
        if row.turn is not None:
            t = row.turn
            if not new and (beside := as_json(_beside(entry))):
                self._of_turns.setdefault(key, {})[str(row.position)] = beside
            connection.execute(
                "INSERT INTO turns (conversation_key, position, role, name, text, timestamp, digest) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(key, row.position, t.role, t.name, t.text, said.isoformat() if said else None),
                    generated.turn_digest(t),
                ),
            )

    def _scope(self, connection: sqlite3.Connection, name: str) -> int:
        if name not in self._scopes:
            number = connection.execute("INSERT INTO scopes (name) VALUES (?)", (name,)).lastrowid
            assert number is not None
            self._scopes[name] = number
        return self._scopes[name]

    def _conversation(self, connection: sqlite3.Connection, scope_id: int, row: _Row, entry: Entry) -> tuple[int, bool]:
        """Return the key of an entry's conversation, and whether this entry is the first of it."""
        identity = (scope_id, row.conversation_id)
        if self._last is not None and self._last[0] == identity:
            return self._last[1], False
        found = connection.execute(
            "SELECT conversation_key FROM conversations WHERE scope_id = ? AND conversation_id = ?", identity
        ).fetchone()
        if found:
            key = found[0]
        else:
            record, described = _record(row, entry, self._written)
            assert record.timestamp is not None
            key = connection.execute(
                "INSERT INTO conversations (title, timestamp, epoch, type, summary, metadata, generated, scope_id, "
                "conversation_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(record.title, record.timestamp.isoformat(), epoch(record.timestamp), record.type, record.summary),
                    *(json.dumps(dict(record.metadata)), json.dumps(sorted(record.generated)), *identity),
                ),
            ).lastrowid
            assert key is not None
            if not described:
                self._to_describe.append(key)
        self._last = (identity, key)
        return int(key), not found

    def finish(self, connection: sqlite3.Connection) -> None:
        """Close gaps, describe conversations that were not, and tell the indexes how far each scope has got."""
        for (key,) in connection.execute(
            "SELECT conversation_key FROM turns GROUP BY conversation_key HAVING max(position) + 1 <> count(*)"
        ).fetchall():
            places = connection.execute(
                "SELECT position FROM turns WHERE conversation_key = ? ORDER BY position", (key,)
            ).fetchall()
            for place, (position,) in enumerate(places):
                for table in ("turns", "passages"):
                    connection.execute(
                        f"UPDATE {table} SET position = ? WHERE conversation_key = ? AND position = ?",
                        (place, key, position),
                    )
        for key in self._to_describe:
            _describe(connection, key)
        connection.execute(
            "UPDATE scopes SET added = coalesce((SELECT max(passage_id) FROM passages "
            "WHERE passages.scope_id = scopes.scope_id), 0)"
        )
        connection.execute("DELETE FROM scopes WHERE scope_id NOT IN (SELECT scope_id FROM conversations)")


def _named(entry: Entry | InputError) -> str:
    told = entry.get("conversation_id") if isinstance(entry, dict) else None
    return f" ({told[:60]!r})" if isinstance(told, str) else ""


def _checked(entry: Entry, near: datetime) -> _Row:
    """Check what every entry has, and make its turn."""
    identifier = entry.get("conversation_id")
    if isinstance(identifier, (int, float)) and not isinstance(identifier, bool):
        identifier = f"{identifier:.15g}" if isinstance(identifier, float) else str(identifier)
    for name, value in (("conversation_id", identifier), ("summary", entry.get("summary"))):
        if value is None:
            raise InputError(f"{name}: missing; every entry needs conversation_id, summary and timestamp")
        check_text(value, name)
    text: str = entry["summary"]
    assert isinstance(identifier, str)
    # A piece of a long text may be white space alone; then the whole of it is told elsewhere.
    is_piece = bool(entry.get("piece") or entry.get("text") or entry.get("conversation"))
    if not identifier.strip() or not (text.strip() or (text and is_piece)):
        raise InputError(f"{'summary' if identifier.strip() else 'conversation_id'}: empty")
    scope = entry.get("scope") or "default"
    check_text(scope, "scope")
    if not scope.strip():
        raise InputError(f"scope: {scope!r} is no name")
    numbers = {name: entry.get(name) for name in ("turn", "piece", "start")}
    for name, number in numbers.items():
        if number is not None and (type(number) is not int or not 0 <= number < 1 << 31):
            raise InputError(f"{name}: {number!r} is no place; give 0 or more")
    position, piece, start = numbers["turn"], numbers["piece"] or 0, numbers["start"] or 0
    time, written = _time(entry.get("timestamp"), near)
    turn = None
    if position is not None and piece == 0:
        said = None if entry.get("timestamp_of") == "conversation" else time
        turn = Turn(entry.get("role") or "user", entry.get("text") or text, said, entry.get("name"))
    return _Row(scope, identifier, SUMMARY if position is None else position, piece, start, text, turn, time, written)


def _time(value: Any, near: datetime) -> tuple[datetime | None, str | None]:
    """Return the time that an entry tells, if it can be understood, and its words, if they are not the time itself."""
    try:
        return parse_time(value), None
    except InputError:
        if not isinstance(value, str):
            raise
        check_text(value, "timestamp")
        return read_time(value, near), value


def _record(row: _Row, entry: Entry, file_time: datetime) -> tuple[Conversation, bool]:
    """Return the conversation that an entry heads, and whether the entry described it in full."""
    told = entry.get("conversation")
    if isinstance(told, dict) and isinstance(told.get("summary"), str):
        marks = told.get("generated") or []
        if not isinstance(marks, list) or not all(isinstance(mark, str) for mark in marks):
            raise InputError(f"conversation.generated: a list of names was expected, not {repr(marks)[:60]}")
        # Not `or`: what is written there is what was stored.
        record = Conversation(
            row.conversation_id,
            (),
            entry.get("title"),
            told.get("timestamp"),
            entry.get("type"),
            told["summary"],
            told.get("metadata") or {},
            frozenset(marks),
        )
        if record.title and record.type and record.timestamp:
            return record, True
    metadata = _beside(entry)
    made: set[str] = set()
    if row.written is not None:
        metadata["timestamp_as_written"] = row.written
    time = row.time or file_time
    if row.time is None:
        made.add("timestamp:file")
    elif row.turn is not None:
        made.add("timestamp:turn")
    title, kind = entry.get("title"), entry.get("type")
    if not title:
        title = generated.title([row.turn] if row.turn else [], row.text)
        made.add("title")
    if not kind:
        kind = generated.DEFAULT_TYPE
        made.add("type")
    if row.position != SUMMARY:
        made.add("summary")
    return Conversation(row.conversation_id, (), title, time, kind, row.text, metadata, frozenset(made)), (
        row.position == SUMMARY
    )


def _beside(entry: Entry) -> dict[str, Any]:
    """Return what an entry says that has no place of its own: another tool's keys, and ours where they mean nothing."""
    ours = _OURS if isinstance(entry.get("turn"), int) else _OURS - {"role", "name", "text"}
    found = {key: value for key, value in entry.items() if key not in ours and value is not None}
    found = {key: value for key, value in found.items() if key not in _OURS or value != ""}
    own = entry.get("metadata")
    return found | (own if isinstance(own, dict) else {} if own is None else {"metadata": own})


def _describe(connection: sqlite3.Connection, key: int) -> None:
    """Give a conversation of turns the summary that its file did not tell."""
    turns = [
        Turn(*row)
        for row in connection.execute(
            "SELECT role, text, timestamp, name FROM turns WHERE conversation_key = ? ORDER BY position", (key,)
        )
    ]
    vectors: dict[int, list[bytes]] = {}
    for position, vector in connection.execute(
        "SELECT position, vector FROM passages JOIN vectors USING (passage_id) "
        "WHERE conversation_key = ? AND position >= 0 ORDER BY position, piece",
        (key,),
    ):
        vectors.setdefault(position, []).append(vector)
    if not turns:
        return
    dimension = len(next(iter(vectors.values()))[0]) // 4
    told = generated.summary(turns, {p: from_bytes(rows, dimension) for p, rows in vectors.items()})
    connection.execute("UPDATE conversations SET summary = ? WHERE conversation_key = ?", (told, key))
