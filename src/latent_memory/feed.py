"""What the indexes read of the truth, by sequence number.

Passages are read by `passage_id` and deletions by `deletion_id`, both handed out in the order of commits, so that
an index that has read up to a number has read everything that was committed with a lower one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from latent_memory.database import Database
from latent_memory.late import Codes, codes_of
from latent_memory.records import EmbedderIdentity
from latent_memory.vectors import Ids, Vectors, from_bytes


class Watermark(NamedTuple):
    """How far a scope has got, or how far something has read it.

    The generation names the store and counts the exchanges of all its vectors; "" stands for a scope that is not there.
    """

    generation: str
    added: int
    deleted: int


class PassageColumns(NamedTuple):
    """Passages as columns, in the order of their ids; the arrays have the length n."""

    passage_id: Ids
    conversation_key: Ids
    position: Ids
    piece: Ids
    words: Ids
    role: Ids
    asks: Ids
    epoch: np.ndarray[Any, np.dtype[np.float64]]


class PassageText(NamedTuple):
    """What the word index needs of a passage; its predecessor in the conversation is "" where there is none."""

    passage_id: int
    conversation_key: int
    speaker: str
    text: str
    timestamp: datetime
    predecessor_speaker: str
    predecessor: str


class ConversationText(NamedTuple):
    """A conversation as (speaker, text, time) a passage, headed by the title and summary that somebody gave it."""

    conversation_key: int
    heading: str
    passages: list[tuple[str, str, datetime]]


class Feed:
    """Reads of one database, for the indexes. Arrays of vectors are (n, d) float32."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.snapshot = database.snapshot
        self.directory = database.directory

    def embedder(self) -> EmbedderIdentity | None:
        """Return the embedder that made the vectors; None while there are none."""
        row = self._database.row("SELECT value FROM meta WHERE key = 'embedder'")
        return EmbedderIdentity(*json.loads(row[0])) if row else None

    def watermark(self, scope_id: int) -> Watermark:
        """Return how far the scope has got."""
        row = self._database.row(
            "SELECT (SELECT group_concat(value, '/') FROM meta WHERE key IN ('store', 'generation')), added, deleted "
            "FROM scopes WHERE scope_id = ?",
            scope_id,
        )
        return Watermark(*row) if row else Watermark("", 0, 0)

    def anchor(self, scope_id: int, passage_id: int) -> str:
        """Return a digest by which the passage can be told from another that got the same id in a copy of the store."""
        row = self._database.row(
            "SELECT conversation_key, position, piece, words, epoch, vector FROM passages JOIN vectors "
            "USING (passage_id) WHERE scope_id = ? AND passage_id = ?",
            scope_id,
            passage_id,
        )
        return hashlib.blake2b(repr(row).encode(), digest_size=8).hexdigest() if row else ""

    def stands(self, scope_id: int, mark: Watermark, read: Watermark, anchor: str) -> bool:
        """Tell whether something that was read up to `read` is of this store, and of this past of it.

        A store that was restored from a backup hands out the same ids again, for other passages.
        """
        if read.generation != mark.generation or read.added > mark.added or read.deleted > mark.deleted:
            return False
        found = self.anchor(scope_id, read.added)
        if found:
            return found == anchor
        gone = self._database.row("SELECT 1 FROM deletions WHERE scope_id = ? AND passage_id = ?", scope_id, read.added)
        return bool(gone) or read.added == 0

    def columns(self, scope_id: int, after: int, limit: int) -> PassageColumns:
        """Return up to `limit` of the scope's passages with ids beyond `after`."""
        rows = self._database.rows(
            "SELECT passage_id, conversation_key, position, piece, words, role, asks, epoch FROM passages "
            "WHERE scope_id = ? AND passage_id > ? ORDER BY passage_id LIMIT ?",
            scope_id,
            after,
            limit,
        )
        table = np.array(rows, dtype=np.float64).reshape(len(rows), 8)  # whole numbers stay exact below 2**53
        ids, key, position, piece, words, role, asks = (table[:, i].astype(np.int64) for i in range(7))
        return PassageColumns(ids, key, position, piece, words, role, asks, table[:, 7].copy())

    def deletions(self, scope_id: int, after: int) -> list[tuple[int, int]]:
        """Return (passage_id, conversation_key) of what was deleted beyond `after`, oldest first."""
        return self._database.rows(
            "SELECT passage_id, conversation_key FROM deletions WHERE scope_id = ? AND deletion_id > ? "
            "ORDER BY deletion_id",
            scope_id,
            after,
        )

    def vectors(self, passage_ids: Ids, dimension: int) -> Vectors:
        """Return the vectors of passages that exist, in the order of the ids given."""
        ids = passage_ids.tolist()
        rows = dict(
            self._database.rows_among("SELECT passage_id, vector FROM vectors WHERE passage_id IN ({ids})", ids)
        )
        return from_bytes([rows[i] for i in ids], dimension)

    def codes(self, passage_ids: Iterable[int]) -> dict[int, Codes]:
        """Return the codes of those of the passages that have any."""
        rows = self._database.rows_among(
            "SELECT passage_id, codes FROM tokens WHERE passage_id IN ({ids})", list(passage_ids)
        )
        return {row[0]: codes_of(row[1]) for row in rows}

    def vectors_after(self, scope_id: int, after: int, limit: int, dimension: int) -> tuple[Ids, Vectors]:
        """Return ids and vectors of up to `limit` of the scope's passages with ids beyond `after`, in their order."""
        rows = self._database.rows(
            "SELECT passage_id, vector FROM passages JOIN vectors USING (passage_id) "
            "WHERE scope_id = ? AND passage_id > ? ORDER BY passage_id LIMIT ?",
            scope_id,
            after,
            limit,
        )
        return np.array([row[0] for row in rows], np.int64), from_bytes([row[1] for row in rows], dimension)

    def passage_texts(self, scope_id: int, after: int, limit: int) -> list[PassageText]:
        """Return up to `limit` of the scope's passages beyond `after`, in the order of ids."""
        rows = self._database.rows(
            "SELECT passage_id, conversation_key, speaker, text, timestamp, "
            "(SELECT p.passage_id FROM passages p WHERE p.conversation_key = said.conversation_key "
            " AND (p.position, p.piece) < (said.position, said.piece) "
            " ORDER BY p.position DESC, p.piece DESC LIMIT 1) "
            "FROM said WHERE scope_id = ? AND passage_id > ? ORDER BY passage_id LIMIT ?",
            scope_id,
            after,
            limit,
        )
        known = {row[0]: (row[2], row[3]) for row in rows}
        missing = [row[5] for row in rows if row[5] is not None and row[5] not in known]
        for row in self._database.rows_among(
            "SELECT passage_id, speaker, text FROM said WHERE passage_id IN ({ids})", missing
        ):
            known[row[0]] = row[1:3]
        texts: list[PassageText] = []
        for passage_id, key, speaker, text, timestamp, predecessor in rows:
            before = known.get(predecessor, ("", ""))
            texts.append(PassageText(passage_id, key, speaker, text, datetime.fromisoformat(timestamp), *before))
        return texts

    def conversation_texts(self, keys: Iterable[int]) -> Iterator[ConversationText]:
        """Return whole conversations as texts, for those of `keys` that exist."""
        for key in keys:
            row = self._database.row(
                "SELECT title, summary, generated FROM conversations WHERE conversation_key = ?", key
            )
            if row is None:
                continue
            generated = json.loads(row[2])
            given = [part for part, name in ((row[0], "title"), (row[1], "summary")) if name not in generated]
            passages = self._database.rows(
                "SELECT speaker, text, timestamp FROM said WHERE conversation_key = ? ORDER BY position, piece", key
            )
            yield ConversationText(key, " ".join(given), [(a, b, datetime.fromisoformat(c)) for a, b, c in passages])

    def conversation_keys(self, scope_id: int, conversation_ids: Iterable[str]) -> list[int]:
        """Return the keys of those of the conversations that exist in the scope."""
        rows = self._database.rows_among(
            "SELECT conversation_key FROM conversations WHERE scope_id = ? AND conversation_id IN ({ids})",
            list(conversation_ids),
            scope_id,
        )
        return [row[0] for row in rows]
