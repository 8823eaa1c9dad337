"""One scope's derived state, kept in step with the store: a table of its passages, and both indexes.

Everything here can be thrown away and made again from the store. Before each search one row of the store tells
whether there is news; if so, only the news is read. So what any process has committed is found by the next
search in every other, and what was forgotten is not.
"""

from __future__ import annotations

import shutil
import threading
from typing import NamedTuple

import numpy as np

from latent_memory.dense import DenseIndex
from latent_memory.errors import EmbedderMismatchError
from latent_memory.feed import Feed, PassageColumns, PassageText, Watermark
from latent_memory.lexical import LexicalIndex, words
from latent_memory.ranking import Candidates, Weights, rank
from latent_memory.records import ROLES
from latent_memory.times import in_words
from latent_memory.vectors import Ids, Scores, Vectors

# How many candidates each signal brings; their neighbours come on top.
CANDIDATES = 200
# How many documents may wait in memory before they are committed to an index on disk.
PENDING = 1_000
# What one catching-up reads at a time: bounds the memory of a rebuild.
_SLICE = 20_000

_NOTHING: Ids = np.zeros(0, np.int64)


class Filters(NamedTuple):
    """What a hit must be: times are epochs (since <= time < until); None admits everything."""

    since: float | None = None
    until: float | None = None
    roles: frozenset[str] | None = None
    conversation_ids: frozenset[str] | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in self)


class Found(NamedTuple):
    """A passage found, with what each signal adds to its score."""

    passage_id: int
    score: float
    signals: dict[str, float]


class ScopeIndex:
    """Searches one scope. Safe to use from several threads; they take turns."""

    def __init__(self, feed: Feed, scope_id: int) -> None:
        self._feed = feed
        self._scope_id = scope_id
        self._lock = threading.RLock()
        self._directory = feed.directory / "indexes" / str(scope_id)
        self._passages = LexicalIndex(self._directory / "passages", ("passage", "exchange"))
        self._conversations = LexicalIndex(self._directory / "conversations", ("conversation",))
        self.discard_memory()

    def _reset(self, generation: int) -> None:
        """Begin anew: the first time, or after the store's vectors were exchanged."""
        self._table = _Table()
        self._dimension = self._feed.dimension()
        self._dense = DenseIndex(self._dimension, self._directory / "dense.faiss", self._fetch)
        self._read = Watermark(generation, 0, 0)

    def _fetch(self, ids: Ids) -> Vectors:
        return self._feed.vectors(ids, self._dimension)

    # -- keeping in step ----------------------------------------------------------------------------------

    @property
    def loaded(self) -> bool:
        """Whether it has read the store before."""
        return self._read.generation >= 0

    def discard_memory(self) -> None:
        """Forget what is held in memory; the next search reads it again."""
        with self._lock:
            self._reset(-1)
            self._read_words = Watermark(-1, 0, 0)
            self._tried = 0

    def refresh(self) -> None:
        """Read what the store has that was not read yet."""
        with self._lock:
            # Nearly always nothing is new, and one row tells so.
            if self._feed.watermark(self._scope_id) == self._read == self._read_words:
                return
        with self._lock, self._feed.snapshot():
            mark = self._feed.watermark(self._scope_id)
            if mark != self._read:
                self._refresh_vectors(mark)
            if mark != self._read_words:
                self._refresh_words(mark)

    def _refresh_vectors(self, mark: Watermark) -> None:
        first = mark.generation != self._read.generation
        if first:
            self._reset(mark.generation)
        gone = [] if first else self._feed.deletions(self._scope_id, self._read.deleted)
        self._table.update(self._feed.columns(self._scope_id, self._read.added), {i for i, _ in gone})
        if first:
            known = self._dense.load(mark.generation)
            gone = self._feed.deletions(self._scope_id, known) if len(self._dense) else []
        self._dense.remove(np.array(sorted(i for i, _ in gone), np.int64))
        last = self._dense.last
        ids = self._table.ids[self._table.ids > last]
        if len(ids):
            self._dense.add(ids, self._feed.vectors_after(self._scope_id, last, self._dimension))
            self._dense.save(mark.generation, mark.deleted)
        self._read = mark

    def _refresh_words(self, mark: Watermark) -> None:
        if mark.generation != self._read_words.generation:
            for index in (self._passages, self._conversations):
                index.open(mark.generation)
            # The two are committed one after the other; what only one has read, the other reads again.
            states = self._passages.state, self._conversations.state
            added, deleted = min(s.added for s in states), min(s.deleted for s in states)
        else:
            _, added, deleted = self._read_words
        gone = self._feed.deletions(self._scope_id, deleted)
        self._passages.remove(passage_id for passage_id, _ in gone)
        changed = {key for _, key in gone}
        while True:
            texts = self._feed.passage_texts(self._scope_id, added, _SLICE)
            self._put_passages(texts)
            self._put_conversations(changed | {text.conversation_key for text in texts})
            changed = set()
            if len(texts) < _SLICE:
                break
            added = texts[-1].passage_id
            self._commit_words(added, mark.deleted)
        self._read_words = mark

    def _put_passages(self, texts: list[PassageText]) -> None:
        documents: dict[int, tuple[list[str], list[str]]] = {}
        for text in texts:
            own = _words(text.speaker, text.text) + words(in_words(text.timestamp))
            documents[text.passage_id] = (own, _words(text.predecessor_speaker, text.predecessor) + own)
        self._passages.put(documents)

    def _put_conversations(self, keys: set[int]) -> None:
        gone = set(keys)
        for told in self._feed.conversation_texts(sorted(keys)):
            document = words(told.heading)
            for speaker, text, timestamp in told.passages:
                document += _words(speaker, text) + words(in_words(timestamp))
            self._conversations.put({told.conversation_key: (document,)})
            gone.discard(told.conversation_key)
        self._conversations.remove(gone)

    def _commit_words(self, added: int, deleted: int) -> bool:
        done = [index.commit(added, deleted) for index in (self._passages, self._conversations)]
        return all(done)

    def commit(self, at_least: int = PENDING, *, deletions: bool = False) -> None:
        """Write the word indexes to disk, if it is worth it and no other process is at it.

        Args:
            at_least: how many documents must wait for it.
            deletions: write also when deleted documents are still in the index on disk.
        """
        with self._lock:
            with self._feed.snapshot():
                mark = self._feed.watermark(self._scope_id)
                if mark != self._read_words:
                    self._refresh_words(mark)
            indexes = (self._passages, self._conversations)
            stale = deletions and any(index.hidden for index in indexes)
            # After a refusal more must have come: trying costs time as well.
            if not stale and self._passages.pending < max(at_least, self._tried, 1):
                return
            self._tried = 0
            if not self._commit_words(mark.added, mark.deleted):
                # Another process is committing, or has committed more than this one had read: read what it made.
                self._read_words = Watermark(-1, 0, 0)
                with self._feed.snapshot():
                    self._refresh_words(self._feed.watermark(self._scope_id))
                self._tried = self._passages.pending + PENDING

    def discard(self) -> None:
        """Remove everything on disk, too; it is made again when it is needed."""
        with self._lock:
            shutil.rmtree(self._directory, ignore_errors=True)
            self.discard_memory()

    # -- searching ----------------------------------------------------------------------------------------

    def search(
        self, vector: Vectors, text: str, count: int, filters: Filters | None = None, weights: Weights | None = None
    ) -> list[Found]:
        """Return the best `count` turns, best first; each turn by its best passage.

        Args:
            vector: the query's (d,) unit vector.
            text: the query's words.

        Raises:
            EmbedderMismatchError: if the vector is not of the store's dimension.
        """
        with self._lock:
            self.refresh()
            if self._passages.pending >= PENDING:
                self.commit()
            if self._dimension != len(vector):
                raise EmbedderMismatchError(
                    f"the query has {len(vector)} numbers and the memory's passages {self._dimension}: it was given "
                    "another embedder in this moment. Open it again"
                )
            return self._search(vector, text, count, filters, weights) if len(self._table) else []

    def _search(
        self, vector: Vectors, text: str, count: int, filters: Filters | None, weights: Weights | None
    ) -> list[Found]:
        table = self._table
        wanted = max(CANDIDATES, 4 * count)
        allowed = self._allowed(filters) if filters else None
        if allowed is not None and len(allowed) == 0:
            return []
        query = words(text)
        by_passage = self._passages.search("passage", query, wanted, allowed)
        by_exchange = self._passages.search("exchange", query, wanted, allowed)
        by_conversation = self._conversations.search("conversation", query, wanted)
        near = self._dense.near(vector, wanted, allowed)

        rows = table.rows(np.concatenate([near.ids, by_passage.keys, by_exchange.keys]))
        # Neighbours lend their scores and are candidates themselves, also where they could not be hits.
        # One place more than there are rows, so that "none", -1, has one of its own.
        among = np.zeros(len(table) + 1, bool)
        among[rows] = among[table.before[rows]] = among[table.after[rows]] = True
        rows = np.flatnonzero(among[:-1])
        place = np.full(len(table) + 1, -1, np.int64)
        place[rows] = np.arange(len(rows))
        signals = rank(
            Candidates(
                meaning=near.score(table.ids[rows]),
                words=_spread(by_passage.keys, by_passage.scores, table.ids[rows]),
                exchange=_spread(by_exchange.keys, by_exchange.scores, table.ids[rows]),
                conversation=_spread(by_conversation.keys, by_conversation.scores, table.conversation[rows]),
                before=place[table.before[rows]],
                after=place[table.after[rows]],
                length=table.words[rows],
            ),
            weights,
        )
        score = np.sum(list(signals.values()), axis=0)
        # Newer first where scores are equal.
        order = np.lexsort((-table.ids[rows], -score))
        if allowed is not None:
            order = order[np.isin(table.ids[rows][order], allowed)]
        found: list[Found] = []
        seen: set[tuple[int, int]] = set()
        for i in order:
            turn = (int(table.conversation[rows[i]]), int(table.position[rows[i]]))
            if turn in seen:
                continue
            seen.add(turn)
            told = {name: float(values[i]) for name, values in signals.items()}
            found.append(Found(int(table.ids[rows[i]]), float(score[i]), told))
            if len(found) == count:
                break
        return found

    def _allowed(self, filters: Filters) -> Ids:
        """Return the ids, ascending, of the passages that the filters admit."""
        table = self._table
        admitted = np.ones(len(table), bool)
        if filters.since is not None:
            admitted &= table.epoch >= filters.since
        if filters.until is not None:
            admitted &= table.epoch < filters.until
        if filters.roles is not None:
            admitted &= np.isin(table.role, [ROLES.index(role) for role in filters.roles])
        if filters.conversation_ids is not None:
            keys = self._feed.conversation_keys(self._scope_id, filters.conversation_ids)
            admitted &= np.isin(table.conversation, keys)
        return table.ids[admitted]


class _Table:
    """The scope's passages as columns, in the order of their ids, with links to the neighbours' rows."""

    def __init__(self) -> None:
        self.ids = self.conversation = self.position = self.piece = self.words = self.role = _NOTHING
        self.epoch = np.zeros(0, np.float64)
        self.before = self.after = _NOTHING

    def __len__(self) -> int:
        return len(self.ids)

    def update(self, new: PassageColumns, deleted: set[int]) -> None:
        """Append passages with higher ids than all there are, and take others out."""
        kept = np.ones(len(self), bool)
        if deleted and len(self):
            kept = ~np.isin(self.ids, np.fromiter(deleted, np.int64, len(deleted)))
        elif not len(new.passage_id):
            return
        columns = (self.ids, self.conversation, self.position, self.piece, self.words, self.role, self.epoch)
        joined = [np.concatenate([old[kept], more]) for old, more in zip(columns, new, strict=True)]
        self.ids, self.conversation, self.position, self.piece, self.words, self.role, self.epoch = joined
        order = np.lexsort((self.piece, self.position, self.conversation))
        told = self.conversation[order]
        together = told[1:] == told[:-1]
        self.before = np.full(len(self), -1, np.int64)
        self.after = np.full(len(self), -1, np.int64)
        self.before[order[1:][together]] = order[:-1][together]
        self.after[order[:-1][together]] = order[1:][together]

    def rows(self, ids: Ids) -> Ids:
        """Return the rows of those of the ids that are there."""
        rows = np.searchsorted(self.ids, ids)
        rows[rows == len(self)] = 0
        return np.asarray(rows[self.ids[rows] == ids])


def _words(speaker: str, text: str) -> list[str]:
    return words(f"{speaker} {text}")


def _spread(keys: Ids, scores: Scores, over: Ids) -> Scores:
    """Return, for each of `over`, the score of that key; 0 where it has none."""
    if len(keys) == 0:
        return np.zeros(len(over), np.float32)
    order = np.argsort(keys)
    at = np.searchsorted(keys, over, sorter=order)
    at[at == len(keys)] = 0
    at = order[at]
    return np.where(keys[at] == over, scores[at], np.float32(0)).astype(np.float32)
