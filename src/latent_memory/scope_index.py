"""One scope's derived state, kept in step with the store: a table of its passages, and both indexes.

Everything here can be thrown away and made again from the store. Before each search one row of the store tells
whether there is news; if so, only the news is read. So what any process has committed is found by the next
search in every other, and what was forgotten is not.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latent_memory.dense import EXACT_LIMIT, DenseIndex
from latent_memory.errors import EmbedderMismatchError
from latent_memory.feed import Feed, PassageColumns, PassageText, Watermark
from latent_memory.late import Codes, max_similarity
from latent_memory.lexical import LexicalIndex, words
from latent_memory.query import Filters
from latent_memory.ranking import Candidates, Weights, rank
from latent_memory.records import ROLES, EmbedderIdentity
from latent_memory.store import mismatch
from latent_memory.times import in_words
from latent_memory.vectors import Ids, Scores, Vectors
from latent_memory.when import When

# How many candidates each signal brings; their neighbours come on top.
CANDIDATES = 200
# Of so many of the best candidates the tokens are compared. 128 or 400 find about the same.
_COMPARED = 256
# So many passages' codes stay in memory: some 30 MB.
_MOST_CODES = 20_000
# If fewer of the candidates have codes, vectors stand in for them.
_ENOUGH = 0.8
# How many documents may wait in memory before they are committed to an index on disk.
PENDING = 1_000
# The word indexes of a scope, by the directory that each is in, with their fields.
WORD_INDEXES = {"passages": ("passage", "exchange"), "conversations": ("conversation",)}
# What one catching-up reads at a time: bounds the memory of a rebuild.
_SLICE = 20_000

_log = logging.getLogger(__name__)

_NOTHING: Ids = np.zeros(0, np.int64)


class Found(NamedTuple):
    """A passage found, with what each signal adds to its score."""

    passage_id: int
    score: float
    signals: dict[str, float]


class ScopeIndex:
    """Searches one scope. Safe to use from several threads; they take turns.

    Up to `exact_limit` passages are searched exactly.
    """

    def __init__(self, feed: Feed, scope_id: int, exact_limit: int = EXACT_LIMIT) -> None:
        self._feed = feed
        self._exact_limit = exact_limit
        self._scope_id = scope_id
        self._lock = threading.RLock()
        self._directory = feed.directory / "indexes" / str(scope_id)
        self._read: Watermark | None = None
        self._read_words: Watermark | None = None
        self._passages = _word_index(self._directory, "passages")
        self._conversations = _word_index(self._directory, "conversations")
        self.discard_memory()

    def _reset(self, generation: str | None) -> None:
        """Begin anew: the first time, or after the store's vectors were exchanged."""
        self._table = _Table()
        self._embedder = self._feed.embedder()
        dimension = self._embedder.dimension if self._embedder else 0
        fetch = partial(self._feed.vectors, dimension=dimension)
        self._dense = DenseIndex(dimension, self._directory / "dense.faiss", fetch, self._exact_limit)
        self._codes: dict[int, Codes] = {}
        self._read = None if generation is None else Watermark(generation, 0, 0)

    # -- keeping in step ----------------------------------------------------------------------------------

    @property
    def loaded(self) -> bool:
        """Whether it has read the store before."""
        return self._read is not None

    def discard_memory(self) -> None:
        """Forget what is held in memory; the next search reads it again."""
        with self._lock:
            self._reset(None)
            self._passages.release()
            self._conversations.release()
            self._read_words = None
            self._tried = 0

    def refresh(self) -> None:
        """Read what the store has that was not read yet."""
        with self._lock, self._feed.snapshot():
            mark = self._feed.watermark(self._scope_id)
            # Nearly always nothing is new.
            if mark == self._read == self._read_words:
                return
            with self._all_or_nothing():
                self._refresh_vectors(mark)
                self._refresh_words(mark)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # Half of the news must not be taken for all of it.
            self.discard_memory()
            raise

    def _refresh_vectors(self, mark: Watermark) -> None:
        if mark == self._read:
            return
        removed: set[int] = set()
        if self._read is None or mark.generation != self._read.generation:
            self._reset(mark.generation)
            known = self._dense.load(partial(self._stands, mark))
            added = 0
            gone = self._feed.deletions(self._scope_id, known) if len(self._dense) else []
        else:
            _, added, deleted = self._read
            gone = self._feed.deletions(self._scope_id, deleted)
            removed = {passage_id for passage_id, _ in gone}
        self._dense.remove(np.array(sorted(passage_id for passage_id, _ in gone), np.int64))
        self._table.remove(removed)
        while True:
            columns = self._feed.columns(self._scope_id, added, _SLICE)
            self._table.append(columns)
            if len(columns.passage_id) < _SLICE:
                break
            added = int(columns.passage_id[-1])
        self._table.link()
        while True:
            ids, vectors = self._feed.vectors_after(self._scope_id, self._dense.last, _SLICE, self._dense.dimension)
            self._dense.add(ids, vectors)
            if len(ids) < _SLICE:
                break
        self._read = mark
        self._save_dense(mark)

    def _save_dense(self, mark: Watermark, *, always: bool = False) -> None:
        if self._dense.approximate:
            self._dense.save(*mark, self._feed.anchor(self._scope_id, mark.added), always=always)

    def _stands(self, mark: Watermark, generation: str, added: int, deleted: int, anchor: str) -> bool:
        return self._feed.stands(self._scope_id, mark, Watermark(generation, added, deleted), anchor)

    def _refresh_words(self, mark: Watermark) -> None:
        if mark == self._read_words:
            return
        if self._read_words is None or mark.generation != self._read_words.generation:
            for index in (self._passages, self._conversations):
                index.open(mark.generation, lambda s: self._stands(mark, s.generation, s.added, s.deleted, s.anchor))
            # The two are committed one after the other; what only one has read, the other reads again.
            states = self._passages.state, self._conversations.state
            added, deleted = min(s.added for s in states), min(s.deleted for s in states)
        else:
            _, added, deleted = self._read_words
        gone = self._feed.deletions(self._scope_id, deleted)
        self._passages.remove(passage_id for passage_id, _ in gone)
        changed = {key for _, key in gone}
        whole: set[int] = set()
        while True:
            texts = self._feed.passage_texts(self._scope_id, added, _SLICE)
            # A text is its own passage, its successor's predecessor and a part of its conversation: it is cut once.
            cut = cache(_words)
            said = self._put_passages(texts, cut)
            # What only grew is extended, as long as it waits in memory: a long chat grows a turn at a time. What was
            # put whole has its later turns already.
            grown = {
                key
                for key, document in said.items()
                if key not in changed | whole and self._conversations.extend(key, (document,))
            }
            put = (changed | said.keys()) - grown - whole
            self._put_conversations(put, cut)
            whole |= put
            changed = set()
            if len(texts) < _SLICE:
                break
            added = texts[-1].passage_id
            self._commit_words(Watermark(mark.generation, added, mark.deleted))
        self._read_words = mark

    def _put_passages(self, texts: list[PassageText], cut: _Cut) -> dict[int, list[str]]:
        """Index passages; return their words by conversation."""
        documents: dict[int, tuple[list[str], list[str]]] = {}
        said: dict[int, list[str]] = {}
        for text in texts:
            own = cut(text.speaker, text.text) + cut("", in_words(text.timestamp))
            documents[text.passage_id] = (own, cut(text.predecessor_speaker, text.predecessor) + own)
            said.setdefault(text.conversation_key, []).extend(own)
        self._passages.put(documents)
        return said

    def _put_conversations(self, keys: set[int], cut: _Cut) -> None:
        gone = set(keys)
        for told in self._feed.conversation_texts(sorted(keys)):
            document = words(told.heading)
            for speaker, text, timestamp in told.passages:
                document += cut(speaker, text) + cut("", in_words(timestamp))
            self._conversations.put({told.conversation_key: (document,)})
            gone.discard(told.conversation_key)
        self._conversations.remove(gone)

    def _commit_words(self, mark: Watermark) -> bool:
        anchor = self._feed.anchor(self._scope_id, mark.added)
        done = [index.commit(mark.added, mark.deleted, anchor) for index in (self._passages, self._conversations)]
        return all(done)

    def commit(self, at_least: int = PENDING) -> None:
        """Write the word indexes to disk, if it is worth it and no other process is at it.

        Args:
            at_least: how many documents must wait for it.
        """
        with self._lock, self._feed.snapshot(), self._all_or_nothing():
            self._refresh_words(self._feed.watermark(self._scope_id))
            # After a refusal more must have come: trying costs time as well.
            if self._passages.pending >= max(at_least, self._tried, 1):
                self._commit()

    def commit_deletions(self) -> None:
        """Take what was deleted out of the indexes on disk, if they have it and no other process is at them."""
        with self._lock, self._feed.snapshot(), self._all_or_nothing():
            mark = self._feed.watermark(self._scope_id)
            self._refresh_words(mark)
            if any(index.hidden for index in (self._passages, self._conversations)):
                self._commit()
            if (self._directory / "dense.faiss").exists():
                self._refresh_vectors(mark)
                self._save_dense(mark, always=True)

    def _commit(self) -> None:
        assert self._read_words is not None
        self._tried = 0
        if not self._commit_words(self._read_words):
            # Another process is committing, or has committed more than this one had read: read what it made.
            self._read_words = None
            self._refresh_words(self._feed.watermark(self._scope_id))
            self._tried = self._passages.pending + PENDING

    def discard(self) -> None:
        """Remove everything on disk, too; it is made again when it is needed."""
        with self._lock:
            # Windows deletes no file that is open.
            self.discard_memory()
            shutil.rmtree(self._directory, ignore_errors=True)
            if self._directory.exists():
                _log.warning("the indexes in %s are in use by another process; delete them later", self._directory)

    # -- searching ----------------------------------------------------------------------------------------

    def search(
        self,
        vector: Vectors,
        made_by: EmbedderIdentity,
        text: str,
        count: int,
        filters: Filters | None = None,
        weights: Weights | None = None,
        codes: Codes | None = None,
        when: When | None = None,
    ) -> list[Found]:
        """Return the best `count` turns, best first; each turn by its best passage.

        Args:
            vector: the query's (d,) unit vector.
            made_by: the embedder that made it.
            text: the query's words.
            codes: of the query's tokens, if the embedder makes any.
            when: the time that the query tells, if it tells one.

        Raises:
            EmbedderMismatchError: if the passages' vectors were made by another embedder.
        """
        with self._lock:
            if self._passages.pending >= PENDING:
                self.commit()
            # One snapshot for all, so that nothing that is scored is forgotten meanwhile.
            with self._feed.snapshot():
                self.refresh()
                if not len(self._table) or self._embedder is None:
                    return []
                if self._embedder != made_by:
                    told = mismatch(self._feed.directory, self._embedder, made_by.name, made_by.dimension)
                    raise EmbedderMismatchError(told)
                return self._search(vector, text, count, filters, weights, codes, when)

    def _search(
        self,
        vector: Vectors,
        text: str,
        count: int,
        filters: Filters | None,
        weights: Weights | None,
        codes: Codes | None,
        when: When | None,
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
        candidates = Candidates(
            meaning=near.score(table.ids[rows]),
            words=_spread(by_passage.keys, by_passage.scores, table.ids[rows]),
            exchange=_spread(by_exchange.keys, by_exchange.scores, table.ids[rows]),
            conversation=_spread(by_conversation.keys, by_conversation.scores, table.conversation[rows]),
            before=place[table.before[rows]],
            after=place[table.after[rows]],
            length=table.words[rows],
            key=table.conversation[rows],
            asks=table.asks[rows] > 0,
            time=None if when is None else when.fit(table.epoch[rows], table.epoch),
            said_at=table.epoch[rows] if when is not None and when.newest else None,
        )
        signals = rank(candidates, weights)
        if codes is not None and (weights is None or weights.tokens):
            first = np.argsort(-np.sum(list(signals.values()), axis=0), kind="stable")[: max(_COMPARED, 2 * count)]
            tokens = self._compared(codes, table.ids[rows], first)
            if tokens is not None:
                signals = rank(candidates._replace(tokens=tokens), weights)
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

    def _compared(self, query: Codes, ids: Ids, places: Ids) -> Scores | None:
        """Return the similarity of tokens for passages at these places, NaN for the others; None if few have any."""
        wanted = ids[places].tolist()
        missing = [i for i in wanted if i not in self._codes]
        if missing:
            if len(self._codes) > _MOST_CODES:
                self._codes.clear()
            self._codes.update(self._feed.codes(missing))
        usable = [i in self._codes and self._codes[i].shape[1] == query.shape[1] for i in wanted]
        if np.mean(usable) < _ENOUGH:
            return None
        scores = np.full(len(ids), np.nan, np.float32)
        known = places[usable]
        scores[known] = max_similarity(query, [self._codes[i] for i in ids[known].tolist()])
        # Of what was stored by an older version, nothing is known: neither better nor worse than others.
        scores[places[~np.array(usable)]] = np.median(scores[known])
        return scores

    def _allowed(self, filters: Filters) -> Ids:
        """Return the ids, ascending, of the passages that the filters admit."""
        table = self._table
        admitted = np.ones(len(table), bool)
        if filters.since is not None:
            admitted &= table.epoch >= filters.since
        if filters.until is not None:
            admitted &= table.epoch < filters.until
        if filters.during is not None:
            admitted &= filters.during.within(table.epoch)
        if filters.roles is not None:
            admitted &= np.isin(table.role, [ROLES.index(role) for role in filters.roles])
        if filters.conversation_ids is not None:
            keys = self._feed.conversation_keys(self._scope_id, filters.conversation_ids)
            admitted &= np.isin(table.conversation, keys)
        return table.ids[admitted]


class _Table:
    """The scope's passages as columns, in the order of their ids, with links to the neighbours' rows."""

    def __init__(self) -> None:
        self.ids = self.conversation = self.position = self.piece = self.words = self.role = self.asks = _NOTHING
        self.epoch = np.zeros(0, np.float64)
        self.before = self.after = _NOTHING

    def __len__(self) -> int:
        return len(self.ids)

    def remove(self, ids: set[int]) -> None:
        """Take passages out; `link` has to be called afterwards."""
        if ids and len(self):
            kept = ~np.isin(self.ids, np.fromiter(ids, np.int64, len(ids)))
            self._set([column[kept] for column in self._columns()])

    def append(self, new: PassageColumns) -> None:
        """Append passages with higher ids than all there are; `link` has to be called afterwards."""
        if len(new.passage_id):
            self._set([np.concatenate([old, more]) for old, more in zip(self._columns(), new, strict=True)])

    def _columns(self) -> tuple[np.ndarray[Any, Any], ...]:
        return self.ids, self.conversation, self.position, self.piece, self.words, self.role, self.asks, self.epoch

    def _set(self, columns: list[np.ndarray[Any, Any]]) -> None:
        self.ids, self.conversation, self.position, self.piece, self.words, self.role, self.asks, self.epoch = columns

    def link(self) -> None:
        """Find each row's neighbours anew."""
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


def _word_index(directory: Path, name: str) -> LexicalIndex:
    return LexicalIndex(directory / name, WORD_INDEXES[name])


_Cut = Callable[[str, str], list[str]]


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
