"""The truth: every conversation, turn, passage and vector, in one SQLite database (WAL, full sync).

What a method has committed survives a killed process and a power cut; a conversation lands whole or not at all.
Many processes may have one store open: writers queue for the write lock, readers never wait.

Knows nothing about models, ranking or indexes; those read through feed.py. More than 500 lines: whatever writes to the
schema stands here, so that it can be checked in one piece.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from latent_memory.database import FILE_NAME, Database
from latent_memory.errors import EmbedderMismatchError, StoreError
from latent_memory.late import Codes, codes_of, codes_to_bytes
from latent_memory.records import ROLES, Conversation, ConversationInfo, EmbedderIdentity, Passage, Turn
from latent_memory.times import epoch
from latent_memory.vectors import STORED, Vectors, from_bytes, to_bytes

# A passage with this position is the summary of a conversation that has no turns.
SUMMARY = -1


@dataclass(frozen=True, slots=True)
class NewPassage:
    """A passage to be written, with its vector (d,); `text` is None where it is the whole turn.

    `asks` tells whether it ends with a question; `codes` are its tokens' (t, c), None where its embedder makes none.
    """

    position: int
    piece: int
    start: int
    text: str | None
    words: int
    role: str
    epoch: float
    vector: Vectors
    asks: bool = False
    codes: Codes | None = None


@dataclass(frozen=True, slots=True)
class StoredState:
    """What `add` compares a conversation with: its row, and the digest of each stored turn."""

    conversation_key: int
    version: int
    record: Conversation  # without its turns
    digests: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Change:
    """What one conversation's `add` comes to.

    Attributes:
        record: the row to write, with every field filled in; its turns are not looked at.
        expected: key and version of the stored conversation that the change was computed from; None for a new one.
        turns: (position, turn, digest) to insert or replace.
        passages: new passages; those of the same positions are removed first.
        drop: positions whose passages are removed.
        reissue: positions whose passages get new ids with their vectors kept, so that the indexes read them again.
            Maps a position to its new epoch, or None to keep it.
        cut: turns at this position and beyond are removed; None to remove none. Their passages are in `drop`.
    """

    record: Conversation
    expected: tuple[int, int] | None
    turns: Sequence[tuple[int, Turn, bytes]] = ()
    passages: Sequence[NewPassage] = ()
    drop: Sequence[int] = ()
    reissue: dict[int, float | None] = field(default_factory=dict)
    cut: int | None = None


class Store:
    """The truth in a directory. Safe to use from several threads.

    Without `durable`, what was written need not survive a power cut: for a store whose truth is elsewhere.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self.directory = directory
        self.database = Database(directory, durable=durable)

    def close(self) -> None:
        """Close it; it cannot be used afterwards."""
        self.database.close()

    def copy_to(self, directory: Path) -> None:
        """Write a copy of it, as it is now, to a directory that is not there yet; indexes are not copied."""
        directory.mkdir()
        self.database.rows("VACUUM INTO ?", str(directory / FILE_NAME))

    # -- what people read ---------------------------------------------------------------------------------

    def scope_id(self, scope: str) -> int | None:
        """Return the scope's number, or None if nothing was ever added to it."""
        row = self.database.row("SELECT scope_id FROM scopes WHERE name = ?", scope)
        return row[0] if row else None

    def scopes(self) -> dict[str, int]:
        """Return the number of conversations by scope, for scopes that hold any."""
        return dict(
            self.database.rows(
                "SELECT name, count(*) FROM scopes JOIN conversations USING (scope_id) GROUP BY name ORDER BY name"
            )
        )

    def passages(self, scope_id: int, passage_ids: Sequence[int]) -> dict[int, Passage]:
        """Return the scope's passages by id, for those that (still) exist."""
        rows = self.database.rows_among(
            "SELECT passage_id, scopes.name, conversation_id, position, role, said.name, text, timestamp, title, start "
            "FROM said JOIN scopes USING (scope_id) WHERE scope_id = ? AND passage_id IN ({ids})",
            passage_ids,
            scope_id,
        )
        return {row[0]: _passage(row) for row in rows}

    def passage_ids(self, scope_id: int, passages: Sequence[Passage]) -> list[int | None]:
        """Return the ids of the scope's passages, None for those that are not there (any more)."""
        known: dict[tuple[str, int, int], int] = {}
        for conversation_id in {passage.conversation_id for passage in passages}:
            rows = self.database.rows(
                "SELECT position, start, passage_id FROM said WHERE scope_id = ? AND conversation_id = ?",
                scope_id,
                conversation_id,
            )
            known |= {(conversation_id, position, start): passage_id for position, start, passage_id in rows}
        return [known.get((p.conversation_id, SUMMARY if p.turn is None else p.turn, p.start)) for p in passages]

    def turn_passages(self, scope_id: int, conversation_id: str, first: int, last: int) -> list[Passage]:
        """Return whole turns of one conversation as passages, from one position to another, in order."""
        rows = self.database.rows(
            "SELECT 0, scopes.name, conversation_id, position, role, turns.name, text, "
            "coalesce(turns.timestamp, conversations.timestamp), title, 0 "
            "FROM turns JOIN conversations USING (conversation_key) JOIN scopes USING (scope_id) "
            "WHERE scope_id = ? AND conversation_id = ? AND position BETWEEN ? AND ? ORDER BY position",
            scope_id,
            conversation_id,
            first,
            last,
        )
        return [_passage(row) for row in rows]

    def get(self, scope_id: int, conversation_id: str) -> Conversation | None:
        """Return a whole conversation, or None."""
        with self.database.snapshot():
            row = self.database.row(
                f"SELECT {_RECORD} FROM conversations WHERE scope_id = ? AND conversation_id = ?",
                scope_id,
                conversation_id,
            )
            if row is None:
                return None
            turns = self.database.rows(
                "SELECT role, text, timestamp, name FROM turns WHERE conversation_key = ? ORDER BY position", row[0]
            )
        return _record(row, tuple(Turn(*turn) for turn in turns))

    def conversations(self, scope_id: int, limit: int, offset: int) -> list[ConversationInfo]:
        """Return a page of the scope's conversations, newest first."""
        rows = self.database.rows(
            "SELECT conversation_id, title, timestamp, type, summary, "
            "(SELECT count(*) FROM turns WHERE turns.conversation_key = conversations.conversation_key) "
            "FROM conversations WHERE scope_id = ? ORDER BY epoch DESC, conversation_key DESC LIMIT ? OFFSET ?",
            scope_id,
            limit,
            offset,
        )
        return [ConversationInfo(r[0], r[1], datetime.fromisoformat(r[2]), *r[3:]) for r in rows]

    def page(self, scope_id: int, limit: int, after: tuple[float, str] | None) -> list[ConversationInfo]:
        """Return the scope's conversations that follow a time and an id, newest first, then by id."""
        where, values = ("", ()) if after is None else (" AND (epoch, conversation_id) < (?, ?)", after)
        # Turns are counted for the page alone, also where thousands of conversations have one time.
        rows = self.database.rows(
            "WITH page AS (SELECT conversation_key, epoch, conversation_id, title, timestamp, type, summary "
            f"FROM conversations WHERE scope_id = ?{where} ORDER BY epoch DESC, conversation_id DESC LIMIT ?) "
            "SELECT conversation_id, title, timestamp, type, summary, "
            "(SELECT count(*) FROM turns WHERE turns.conversation_key = page.conversation_key) "
            "FROM page ORDER BY epoch DESC, conversation_id DESC",
            scope_id,
            *values,
            limit,
        )
        return [ConversationInfo(r[0], r[1], datetime.fromisoformat(r[2]), *r[3:]) for r in rows]

    def conversation_ids(self, scope_id: int, prefix: str) -> list[str]:
        """Return the ids of the scope's conversations that begin with a prefix, newest first."""
        where, values = _begins(prefix)
        rows = self.database.rows(
            f"SELECT conversation_id FROM conversations WHERE scope_id = ?{where} "
            "ORDER BY epoch DESC, conversation_key DESC",
            scope_id,
            *values,
        )
        return [row[0] for row in rows]

    def known(self, scope_id: int, conversation_ids: Sequence[str]) -> set[str]:
        """Return those of some ids of which the scope has a conversation."""
        query = "SELECT conversation_id FROM conversations WHERE scope_id = ? AND conversation_id IN ({ids})"
        return {row[0] for row in self.database.rows_among(query, conversation_ids, scope_id)}

    def headings(self, scope_id: int, prefix: str, limit: int | None) -> list[Conversation]:
        """Return the scope's conversations whose ids begin with a prefix, without their turns, in the order of ids."""
        where, values = _begins(prefix)
        rows = self.database.rows(
            f"SELECT {_RECORD} FROM conversations WHERE scope_id = ?{where} ORDER BY conversation_id LIMIT ?",
            scope_id,
            *values,
            -1 if limit is None else limit,
        )
        return [_record(row, ()) for row in rows]

    def counts(self, scope: str | None) -> tuple[int, int, int, datetime | None, datetime | None]:
        """Return conversations, turns, passages, first and last time; of one scope, or of all (None)."""
        where, values = (
            ("scope_id = (SELECT scope_id FROM scopes WHERE name = ?)", (scope,)) if scope is not None else ("1", ())
        )
        with self.database.snapshot():
            conversations, first, last = self.database.row(
                f"SELECT count(*), min(epoch), max(epoch) FROM conversations WHERE {where}", *values
            )
            turns, passages = (
                self.database.row(f"SELECT count(*) FROM {counted} WHERE {where}", *values)[0]
                for counted in ("turns JOIN conversations USING (conversation_key)", "passages")
            )
            ends = [
                self.database.row(f"SELECT timestamp FROM conversations WHERE {where} AND epoch = ?", *values, end)
                for end in (first, last)
            ]
        begun, ended = (datetime.fromisoformat(row[0]) if row else None for row in ends)
        return conversations, turns, passages, begun, ended

    # -- the embedder's identity --------------------------------------------------------------------------

    def embedder(self) -> EmbedderIdentity | None:
        """Return the embedder that made the vectors; None while there are none."""
        row = self.database.row("SELECT value FROM meta WHERE key = 'embedder'")
        return EmbedderIdentity(*json.loads(row[0])) if row else None

    def adopt(self, identity: EmbedderIdentity) -> None:
        """Say which embedder made the vectors, for a store that did not know."""
        with self.database.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('embedder', ?)", (json.dumps(identity),))

    # -- tuned weights ------------------------------------------------------------------------------------

    def tuned_weights(self) -> object:
        """Return what `keep_tuned_weights` was given last (see tuning.py); None if there is nothing."""
        row = self.database.row("SELECT value FROM meta WHERE key = 'weights'")
        return row[0] if row else None

    def keep_tuned_weights(self, written: str | None) -> None:
        """Keep weights for every later opening, as a text; None to keep none."""
        with self.database.writing() as connection:
            if written is None:
                connection.execute("DELETE FROM meta WHERE key = 'weights'")
            else:
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('weights', ?)", (written,))

    def _claim(self, connection: sqlite3.Connection, identity: EmbedderIdentity) -> None:
        """Inside a write: record the embedder on the first write, refuse another one ever after."""
        found = self.embedder()
        if found is None:
            connection.execute("INSERT INTO meta VALUES ('embedder', ?)", (json.dumps(identity),))
        elif found != identity:
            raise EmbedderMismatchError(mismatch(self.directory, found, identity.name, identity.dimension))

    # -- writing ------------------------------------------------------------------------------------------

    def states(self, scope_id: int, conversation_ids: Sequence[str]) -> dict[str, StoredState]:
        """Return the stored state of those of the conversations that exist, by id."""
        states: dict[str, StoredState] = {}
        with self.database.snapshot():
            for row in self.database.rows_among(
                f"SELECT {_RECORD}, version FROM conversations WHERE scope_id = ? AND conversation_id IN ({{ids}})",
                conversation_ids,
                scope_id,
            ):
                digests = self.database.rows("SELECT position, digest FROM turns WHERE conversation_key = ?", row[0])
                states[row[1]] = StoredState(row[0], row[-1], _record(row, ()), dict(digests))
        return states

    def conversation_vectors(self, conversation_key: int, dimension: int) -> dict[tuple[int, int], Vectors]:
        """Return the vectors (d,) of a conversation's passages by (position, piece)."""
        rows = self.database.rows(
            "SELECT position, piece, vector FROM passages JOIN vectors USING (passage_id) WHERE conversation_key = ?",
            conversation_key,
        )
        return {(row[0], row[1]): from_bytes([row[2]], dimension)[0] for row in rows}

    def write(self, scope: str, changes: Sequence[Change], identity: EmbedderIdentity) -> list[str]:
        """Write changes in one transaction.

        Returns:
            The ids of those conversations that another writer changed since they were read: they were left as they
            are, and their changes have to be computed again.

        Raises:
            EmbedderMismatchError: if the store's vectors are another embedder's; nothing was written.
        """
        stale: list[str] = []
        with self.database.writing() as connection:
            self._claim(connection, identity)
            scope_id = self.scope_id(scope)
            if scope_id is None:
                scope_id = connection.execute("INSERT INTO scopes (name) VALUES (?)", (scope,)).lastrowid
                assert scope_id is not None
            for change in changes:
                if not _write_one(connection, scope_id, change):
                    stale.append(change.record.conversation_id or "")
            _advance(connection, scope_id)
        return stale

    def forget(
        self, scope_id: int, conversation_ids: Sequence[str] | None, check: Callable[[], None] | None = None
    ) -> int:
        """Delete conversations of a scope (None: all) with everything kept of them, in one transaction.

        `check` is called in it first: nobody else writes then, and if it raises, nothing is deleted.

        Returns:
            How many conversations are gone.
        """
        with self.database.writing() as connection:
            if check is not None:
                check()
            if conversation_ids is None:
                rows = self.database.rows("SELECT conversation_key FROM conversations WHERE scope_id = ?", scope_id)
            else:
                rows = self.database.rows_among(
                    "SELECT conversation_key FROM conversations WHERE scope_id = ? AND conversation_id IN ({ids})",
                    conversation_ids,
                    scope_id,
                )
            for (key,) in rows:
                _delete_passages(connection, scope_id, key)
                connection.execute("DELETE FROM turns WHERE conversation_key = ?", (key,))
                connection.execute("DELETE FROM conversations WHERE conversation_key = ?", (key,))
            _advance(connection, scope_id)
            if not connection.execute("SELECT 1 FROM conversations WHERE scope_id = ?", (scope_id,)).fetchone():
                # An empty scope's name is somebody's, too.
                connection.execute("DELETE FROM deletions WHERE scope_id = ?", (scope_id,))
                connection.execute("DELETE FROM scopes WHERE scope_id = ?", (scope_id,))
        self.database.empty_log()
        return len(rows)

    # -- exchanging all vectors ---------------------------------------------------------------------------

    def begin_reembedding(self, identity: EmbedderIdentity) -> tuple[int, int]:
        """Prepare for new vectors beside the old; what an earlier try for the same embedder made is kept.

        Returns:
            How many passages have a new vector, and how many there are.
        """
        wanted = json.dumps(identity)
        with self.database.writing() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = 'reembedding'").fetchone()
            if not row or row[0] != wanted:
                for table in ("new_vectors", "new_tokens"):
                    connection.execute(f"DROP TABLE IF EXISTS {table}")
                connection.execute(
                    "CREATE TABLE new_vectors (passage_id INTEGER PRIMARY KEY REFERENCES passages ON DELETE CASCADE, "
                    "vector BLOB NOT NULL)"
                )
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('reembedding', ?)", (wanted,))
            # One that an older version has begun has none.
            connection.execute(
                "CREATE TABLE IF NOT EXISTS new_tokens (passage_id INTEGER PRIMARY KEY REFERENCES passages "
                "ON DELETE CASCADE, codes BLOB NOT NULL)"
            )
            made, of = (
                connection.execute(f"SELECT count(passage_id) FROM {table}").fetchone()[0]
                for table in ("new_vectors", "passages")
            )
        return made, of

    def not_reembedded(self, after: int, limit: int) -> list[tuple[int, str | None, str]]:
        """Return (passage_id, speaker's name, text) of passages beyond `after` that have no new vector yet."""
        return self.database.rows(
            "SELECT passage_id, name, text FROM said WHERE passage_id > ? "
            "AND NOT EXISTS (SELECT 1 FROM new_vectors n WHERE n.passage_id = said.passage_id) "
            "ORDER BY passage_id LIMIT ?",
            after,
            limit,
        )

    def keep_reembedded(
        self, identity: EmbedderIdentity, passage_ids: Sequence[int], vectors: Vectors, codes: Sequence[Codes] = ()
    ) -> None:
        """Keep new vectors (n, d), and n codes if there are any, of those passages that still exist.

        Raises:
            StoreError: if another process has begun to re-embed with another embedder, or has finished.
        """
        with self.database.writing() as connection:
            _still_reembedding(connection, identity)
            connection.executemany(
                "INSERT OR REPLACE INTO new_vectors SELECT passage_id, ? FROM passages WHERE passage_id = ?",
                ((to_bytes(vector), i) for i, vector in zip(passage_ids, vectors, strict=True)),
            )
            connection.executemany(
                "INSERT OR REPLACE INTO new_tokens SELECT passage_id, ? FROM passages WHERE passage_id = ?",
                ((codes_to_bytes(code), i) for i, code in zip(passage_ids, codes, strict=False)),
            )

    def finish_reembedding(self, identity: EmbedderIdentity) -> int | None:
        """Put the new vectors in the place of the old, in one transaction.

        Returns:
            How many there are; None, with nothing changed, if some passage has no new vector yet.

        Raises:
            StoreError: if another process has begun to re-embed with another embedder, or has finished.
        """
        with self.database.writing() as connection:
            _still_reembedding(connection, identity)
            if self.not_reembedded(0, 1):
                return None
            for table in ("vectors", "tokens"):
                connection.execute(f"DROP TABLE {table}")
                connection.execute(f"ALTER TABLE new_{table} RENAME TO {table}")
            connection.execute("DELETE FROM meta WHERE key = 'reembedding'")
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('embedder', ?)", (json.dumps(identity),))
            # Tells every index, in every process, to begin anew.
            connection.execute(
                "INSERT INTO meta VALUES ('generation', '1') "
                "ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
            )
            return int(connection.execute("SELECT count(passage_id) FROM vectors").fetchone()[0])


def _still_reembedding(connection: sqlite3.Connection, identity: EmbedderIdentity) -> None:
    row = connection.execute("SELECT value FROM meta WHERE key = 'reembedding'").fetchone()
    if not row or row[0] != json.dumps(identity):
        raise StoreError("another process re-embeds this memory, or has just done so; look at it, and try again")


def mismatch(directory: Path, stored: EmbedderIdentity, given: str, dimension: int | None = None) -> str:
    """Say that a store's vectors are another embedder's, and what to do."""
    if stored.name == given:
        made = f"{dimension} numbers" if dimension not in (None, stored.dimension) else "other weights"
        return (
            f"the memory at {directory} was made with {given!r} when it had {stored.dimension} numbers a passage; now "
            f"it has {made}. Bring the old model back, or exchange the vectors with: "
            f"latent-memory reembed --store {directory} --embedder {given}"
        )
    return (
        f"the memory at {directory} was made with the embedder {stored.name!r} ({stored.dimension} numbers a passage) "
        f"and cannot be used with {given!r}. Open it with {stored.name!r}, or exchange its vectors with: "
        f"latent-memory reembed --store {directory} --embedder {given}"
    )


def _write_one(connection: sqlite3.Connection, scope_id: int, change: Change) -> bool:
    """Write one change, unless the conversation is not as it was when the change was computed."""
    record = change.record
    found = connection.execute(
        "SELECT conversation_key, version FROM conversations WHERE scope_id = ? AND conversation_id = ?",
        (scope_id, record.conversation_id),
    ).fetchone()
    # The key as well: a conversation that was forgotten and added again counts its versions anew.
    if found != change.expected:
        return False
    assert record.timestamp is not None
    values = (
        record.title,
        record.timestamp.isoformat(),
        epoch(record.timestamp),
        record.type,
        record.summary,
        json.dumps(dict(record.metadata)),
        json.dumps(sorted(record.generated)),
    )
    if found is None:
        key = connection.execute(
            "INSERT INTO conversations (title, timestamp, epoch, type, summary, metadata, generated, scope_id, "
            "conversation_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, scope_id, record.conversation_id),
        ).lastrowid
        assert key is not None
    else:
        key = found[0]
        connection.execute(
            "UPDATE conversations SET title = ?, timestamp = ?, epoch = ?, type = ?, summary = ?, metadata = ?, "
            "generated = ?, version = version + 1 WHERE conversation_key = ?",
            (*values, key),
        )
    connection.executemany(
        "INSERT OR REPLACE INTO turns (conversation_key, position, role, name, text, timestamp, digest) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            (key, position, t.role, t.name, t.text, t.timestamp and t.timestamp.isoformat(), digest)
            for position, t, digest in change.turns
        ),
    )
    if change.cut is not None:
        connection.execute("DELETE FROM turns WHERE conversation_key = ? AND position >= ?", (key, change.cut))
    reissued = _taken(connection, key, change.reissue) if found else []
    if found:
        _delete_passages(
            connection, scope_id, key, {p.position for p in change.passages} | {*change.reissue, *change.drop}
        )
    for p in sorted([*change.passages, *reissued], key=lambda p: (p.position, p.piece)):
        cursor = connection.execute(
            "INSERT INTO passages (scope_id, conversation_key, position, piece, start, text, words, role, epoch, asks) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (scope_id, key, p.position, p.piece, p.start, p.text, p.words, ROLES.index(p.role), p.epoch, p.asks),
        )
        connection.execute("INSERT INTO vectors VALUES (?, ?)", (cursor.lastrowid, to_bytes(p.vector)))
        if p.codes is not None:
            connection.execute("INSERT INTO tokens VALUES (?, ?)", (cursor.lastrowid, codes_to_bytes(p.codes)))
    return True


def _taken(connection: sqlite3.Connection, key: int, positions: dict[int, float | None]) -> list[NewPassage]:
    """Return stored passages as new ones, with their vectors, and with a new time where one is given."""
    taken: list[NewPassage] = []
    for position, new_epoch in positions.items():
        for piece, start, text, words, role, old_epoch, asks, vector, codes in connection.execute(
            "SELECT piece, start, text, words, role, epoch, asks, vector, codes FROM passages JOIN vectors "
            "USING (passage_id) LEFT JOIN tokens USING (passage_id) WHERE conversation_key = ? AND position = ?",
            (key, position),
        ):
            begun = old_epoch if new_epoch is None else new_epoch
            kept = np.frombuffer(vector, dtype=STORED)
            tokens = None if codes is None else codes_of(codes)
            taken.append(NewPassage(position, piece, start, text, words, ROLES[role], begun, kept, bool(asks), tokens))
    return taken


def _delete_passages(
    connection: sqlite3.Connection, scope_id: int, key: int, positions: Iterable[int] | None = None
) -> None:
    """Delete the passages at these positions (None: all) and leave word of it for the indexes."""
    rows = connection.execute("SELECT passage_id, position FROM passages WHERE conversation_key = ?", (key,))
    among = None if positions is None else set(positions)
    ids = [passage_id for passage_id, position in rows if among is None or position in among]
    connection.executemany(
        "INSERT INTO deletions (scope_id, passage_id, conversation_key) VALUES (?, ?, ?)",
        ((scope_id, i, key) for i in ids),
    )
    # Vectors go with their passages.
    connection.executemany("DELETE FROM passages WHERE passage_id = ?", ((i,) for i in ids))


def _advance(connection: sqlite3.Connection, scope_id: int) -> None:
    connection.execute(
        "UPDATE scopes SET "
        "added = max(added, coalesce((SELECT max(passage_id) FROM passages WHERE scope_id = ?1), 0)), "
        "deleted = max(deleted, coalesce((SELECT max(deletion_id) FROM deletions WHERE scope_id = ?1), 0)) "
        "WHERE scope_id = ?1",
        (scope_id,),
    )


def _begins(prefix: str) -> tuple[str, tuple[str, ...]]:
    """Return a condition, with its values, that an id begins with a prefix; an index on ids serves it."""
    # Ids are compared by their UTF-8, whose order is that of the characters. There are no surrogates in it.
    stem = prefix.rstrip(chr(0x10FFFF))
    if not stem:
        return " AND conversation_id >= ?", (prefix,)
    following = chr(0xE000 if stem[-1] == chr(0xD7FF) else ord(stem[-1]) + 1)
    return " AND conversation_id >= ? AND conversation_id < ?", (prefix, stem[:-1] + following)


_RECORD = "conversation_key, conversation_id, title, timestamp, type, summary, metadata, generated"


def _passage(row: Any) -> Passage:
    turn = None if row[3] == SUMMARY else row[3]
    text, start = row[6], row[9]
    return Passage(
        *(row[1], row[2], turn, row[4], row[5], text, datetime.fromisoformat(row[7]), row[8]),
        start=start,
        end=start + len(text),
    )


def _record(row: Any, turns: tuple[Turn, ...]) -> Conversation:
    return Conversation(
        conversation_id=row[1],
        turns=turns,
        title=row[2],
        timestamp=datetime.fromisoformat(row[3]),
        type=row[4],
        summary=row[5],
        metadata=json.loads(row[6]),
        generated=frozenset(json.loads(row[7])),
    )
