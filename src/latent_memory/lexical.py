"""Documents by their words: BM25, with tantivy for what is settled and plain memory for what is new.

A tantivy commit costs 10 ms and only one process at a time may make one, so documents are first kept as an
overlay in memory, scored with the same formula and the joined statistics of both parts, and committed in
batches by whoever finds the writer free. A small scope never gets an index on disk at all.

What the index has read is kept as a document inside it, so that it is committed together with what it speaks
of. Words are analysed here, once, for documents and queries alike: tantivy's query language is never used, so
quotes, colons and AND are plain text.

Knows nothing of the database: documents come in as lists of words under an integer key.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tantivy

from latent_memory.vectors import Ids, Scores

# Lucene's and tantivy's constants (Robertson & Zaragoza 2009).
K1, B = 1.2, 0.75

# Keys of documents begin at 1.
_STATE_KEY = 0
# Bumped when documents are made in another way, so that older indexes are rebuilt.
_FORMAT = 2
_HEAP = 30_000_000
# Up to so many keys are looked up by the index; of more, the results are sifted.
_MOST_TERMS = 4096

# From so many documents on, a common word costs more than it tells: at a million passages, three searches take 21 ms
# with such words and 5 ms without.
_LARGE = 200_000

_log = logging.getLogger(__name__)

# A CJK character is a word; anything else between spaces and marks is one.
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}"
_ANALYZER = (
    tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(rf"[{_CJK}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{_CJK}]]+"))
    .filter(tantivy.Filter.remove_long(80))
    .filter(tantivy.Filter.lowercase())
    .filter(tantivy.Filter.ascii_fold())
    .filter(tantivy.Filter.stemmer("english"))
    .build()
)

Words = Sequence[str]


def words(text: str) -> list[str]:
    """Return a text's words as they are indexed: lower case, without accents, English endings cut."""
    # An accent may be written as a mark of its own.
    return _ANALYZER.analyze(text if text.isascii() else unicodedata.normalize("NFC", text))


class State(NamedTuple):
    """How far an index has read the store."""

    generation: str = ""
    added: int = 0
    deleted: int = 0
    anchor: str = ""
    # What was ever committed, replaced documents included: their ratio is the mean length.
    documents: int = 0
    words: tuple[int, ...] = ()  # by field


# What opening an index raises if its files are damaged, or were made in another way.
_UNUSABLE = (ValueError, OSError, KeyError, TypeError, IndexError)


class Found(NamedTuple):
    """Documents found, best first: keys (n,) and BM25 scores (n,)."""

    keys: Ids
    scores: Scores


class LexicalIndex:
    """BM25 over documents that have an integer key and the same one or more fields.

    Args:
        directory: where the settled part is kept; None keeps everything in memory.
        fields: the fields' names.
    """

    def __init__(self, directory: Path | None, fields: tuple[str, ...]) -> None:
        self._directory = directory
        self._fields = fields
        self._index: tantivy.Index | None = None
        self._searcher: tantivy.Searcher | None = None
        self.state = State(words=(0,) * len(fields))
        self._stands: Callable[[State], bool] = lambda _: True
        self._overlay = _Overlay(len(fields))
        self._hidden: set[int] = set()  # committed, but deleted or replaced since

    @property
    def pending(self) -> int:
        """How many documents are not committed yet."""
        return len(self._overlay)

    @property
    def hidden(self) -> int:
        """How many committed documents are deleted or replaced, which the index on disk does not know yet."""
        return len(self._hidden)

    # -- the settled part ---------------------------------------------------------------------------------

    def open(self, generation: str, stands: Callable[[State], bool]) -> None:
        """Read what is on disk, if it stands; forget what is in memory."""
        self._overlay = _Overlay(len(self._fields))
        self._hidden = set()
        self._index = self._searcher = None
        self.state = State(generation, words=(0,) * len(self._fields))
        self._stands = stands
        if self._directory is not None:
            index, searcher, state = self._read(self._directory)
            if state is not None and stands(state):
                self._index, self._searcher, self.state = index, searcher, state

    def commit(self, added: int, deleted: int, anchor: str = "") -> bool:
        """Move the overlay into the settled part, together with how far the store has been read.

        Args:
            added, deleted: the sequence numbers that were read.
            anchor: by which it can be told later whether they are this store's.

        Returns:
            False if another process is writing the index (the overlay stays and serves), or if it could not
            be written.
        """
        if self._directory is None:
            return False
        # Here and not above: a process that only recalls need not wait for it.
        from filelock import FileLock, Timeout

        try:
            self._directory.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._directory.with_suffix(".lock"), timeout=0):
                return self._commit(self._directory, added, deleted, anchor)
        except Timeout:
            return False
        except (ValueError, OSError) as error:
            # The index only saves time; the overlay and the store have everything.
            _log.warning("the word index %s could not be written: %s", self._directory, error)
            return False

    def _commit(self, directory: Path, added: int, deleted: int, anchor: str) -> bool:
        # Read anew, under the lock: another process may have committed, and its segments must not be lost.
        index, _, there = self._read(directory)
        if index is not None and there == self.state:
            state = self._write(index, added, deleted, anchor)
        elif self.state.documents or (there is not None and self._stands(there)):
            # What was committed here is gone, and the overlay alone must not take its place; or another process has
            # committed in between.
            return False
        else:
            # Made elsewhere and moved into place whole: nobody ever opens half an index. The old one is moved away
            # before it is deleted, since whoever has it open may still be writing there.
            new, old = directory.with_suffix(".new"), directory.with_suffix(".old")
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
            new.mkdir()
            # Windows renames no directory of which a file is open.
            index = None
            state = self._write(tantivy.Index(self._schema(), path=str(new)), added, deleted, anchor)
            if directory.is_dir():
                directory.rename(old)
            new.rename(directory)
            shutil.rmtree(old, ignore_errors=True)
        self.open(state.generation, lambda found: found == state)
        return self.state == state

    def _write(self, index: tantivy.Index, added: int, deleted: int, anchor: str) -> State:
        counted = list(self.state.words)
        writer = index.writer(heap_size=_HEAP, num_threads=1)
        try:
            # By query: delete_documents_by_term finds nothing in an unsigned field, silently (tantivy-py 0.27).
            gone = [_STATE_KEY, *self._hidden]
            writer.delete_documents_by_query(tantivy.Query.term_set_query(self._schema(), "key", gone))
            for key, fields in self._overlay.documents.items():
                document = tantivy.Document()
                document.add_unsigned("key", key)
                for i, (name, text) in enumerate(zip(self._fields, fields, strict=True)):
                    # BM25 counts words; their order is of no interest.
                    document.add_text(name, " ".join(text.elements()))
                    counted[i] += text.total()
                writer.add_document(document)
            documents = self.state.documents + len(self._overlay)
            state = State(self.state.generation, added, deleted, anchor, documents, tuple(counted))
            document = tantivy.Document()
            document.add_unsigned("key", _STATE_KEY)
            document.add_json("state", {"format": _FORMAT, "state": json.dumps(state)})
            writer.add_document(document)
            writer.commit()
        finally:
            writer.wait_merging_threads()
        return state

    def _read(self, directory: Path) -> tuple[tantivy.Index | None, tantivy.Searcher | None, State | None]:
        """Return what lies in a directory; nothing, if it cannot be read or was made in another way."""
        if not (directory / "meta.json").exists():
            return None, None, None
        try:
            return self._opened(directory)
        except _UNUSABLE as error:
            _log.warning("the word index %s is rebuilt: %s", directory, error)
            return None, None, None

    def _opened(self, directory: Path) -> tuple[tantivy.Index, tantivy.Searcher, State]:
        """Open what lies in a directory; raise one of _UNUSABLE if it cannot be used."""
        _check_files(directory)
        index = tantivy.Index(self._schema(), path=str(directory), reuse=True)
        searcher = index.searcher()
        query = tantivy.Query.term_query(index.schema, "key", _STATE_KEY)
        hits = searcher.search(query, 1).hits
        kept = searcher.doc(hits[0][1]).to_dict()["state"][0]
        if kept["format"] != _FORMAT:
            raise ValueError(f"it has format {kept['format']}")
        generation, added, deleted, anchor, documents, counted = json.loads(kept["state"])
        return index, searcher, State(generation, added, deleted, anchor, documents, tuple(counted))

    def look(self) -> tuple[State, int] | str:
        """Return how far what is on disk has read the store, and how many documents it has; else why it is useless.

        Raises:
            ValueError: if it is kept in memory.
        """
        if self._directory is None:
            raise ValueError("an index in memory has nothing on disk")
        try:
            _, searcher, state = self._opened(self._directory)
        except _UNUSABLE as error:
            return str(error) or type(error).__name__
        # One of them holds the state.
        return state, searcher.num_docs - 1

    def _schema(self) -> tantivy.Schema:
        schema = tantivy.SchemaBuilder().add_unsigned_field("key", indexed=True, fast=True)
        schema = schema.add_json_field("state", stored=True)
        for name in self._fields:
            # Words come analysed and are only told apart here; positions would be paid for and never used.
            schema = schema.add_text_field(name, tokenizer_name="whitespace", index_option="freq")
        return schema.build()

    # -- what is new --------------------------------------------------------------------------------------

    def put(self, documents: Mapping[int, tuple[Words, ...]]) -> None:
        """Add documents, or replace those of the same keys."""
        for key, fields in documents.items():
            self._overlay.put(key, fields)
            self._hide(key)

    def extend(self, key: int, fields: tuple[Words, ...]) -> bool:
        """Add words to a document that is not committed yet; return False, and do nothing, if it is not there."""
        there = self._overlay.documents.get(key)
        if there is None:
            return False
        self._overlay.extend(key, fields)
        return True

    def remove(self, keys: Iterable[int]) -> None:
        """Remove documents; none of them is found again."""
        for key in keys:
            self._overlay.remove(key)
            self._hide(key)

    def _hide(self, key: int) -> None:
        if self._searcher is not None and self._searcher.doc_freq("key", key):
            self._hidden.add(key)

    def release(self) -> None:
        """Let go of the files, so that they can be deleted; forget what is in memory."""
        self._index = self._searcher = None
        self._overlay = _Overlay(len(self._fields))
        self._hidden = set()

    # -- searching ----------------------------------------------------------------------------------------

    def search(self, field: str, query: Words, count: int, allowed: Ids | None = None) -> Found:
        """Return about the `count` best documents for a query, by one field.

        Args:
            query: words from `words`; their order does not matter.
            allowed: if given, only documents of these keys are looked at.
        """
        terms = self._telling(field, list(dict.fromkeys(query)))
        if not terms:
            return Found(np.zeros(0, np.int64), np.zeros(0, np.float32))
        settled = self._settled(field, terms, count, allowed)
        if not self._overlay.documents:
            return settled
        place = self._fields.index(field)
        total, documents, length = len(self._overlay), len(self._overlay), self._overlay.lengths[place]
        frequency = {term: self._overlay.frequency(place, term) for term in terms}
        if self._searcher is not None:
            total += self._searcher.num_docs
            documents += self.state.documents
            length += self.state.words[place]
            frequency = {t: n + self._searcher.doc_freq(field, t) for t, n in frequency.items()}
        new = self._overlay.search(place, frequency, total, length / max(1, documents), allowed)
        keys, scores = np.concatenate([settled.keys, new.keys]), np.concatenate([settled.scores, new.scores])
        best = np.argsort(-scores, kind="stable")[:count]
        return Found(keys[best], scores[best])

    def _telling(self, field: str, terms: list[str]) -> list[str]:
        """Leave out, in a large index, words that a tenth of all documents have: they cost most and tell least."""
        if self._searcher is None or self._searcher.num_docs < _LARGE:
            return terms
        most = self._searcher.num_docs // 10
        rare = [term for term in terms if self._searcher.doc_freq(field, term) <= most]
        return rare if len(rare) > 1 else terms

    def _settled(self, field: str, terms: Words, count: int, allowed: Ids | None) -> Found:
        if self._searcher is None or self._index is None:
            return Found(np.zeros(0, np.int64), np.zeros(0, np.float32))
        schema = self._index.schema
        query = tantivy.Query.boolean_query(
            [(tantivy.Occur.Should, tantivy.Query.term_query(schema, field, term, "freq")) for term in terms]
        )
        among: frozenset[int] | None = None
        if allowed is not None and len(allowed) <= _MOST_TERMS:
            only = tantivy.Query.const_score_query(tantivy.Query.term_set_query(schema, "key", allowed.tolist()), 0.0)
            query = tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, only)])
        elif allowed is not None:
            among = frozenset(allowed.tolist())
        limit = count
        while True:
            hits = self._searcher.search(query, limit, count=False).hits
            addresses = [address for _, address in hits]
            keys = np.array(self._searcher.fast_field_values("key", addresses), np.int64)
            scores = np.array([score for score, _ in hits], np.float32)
            if self._hidden or among is not None:
                kept = [key not in self._hidden and (among is None or key in among) for key in keys.tolist()]
                keys, scores = keys[kept], scores[kept]
            if len(keys) >= count or len(hits) < limit:
                return Found(keys, scores)
            # Deeper, past what is hidden or not allowed.
            limit *= 4


def _check_files(directory: Path) -> None:
    """Compare each file of an index with the CRC-32 in its footer, which tantivy writes but does not look at.

    A damaged file would otherwise give wrong results, or end in a Rust panic. The footer is JSON, its length, and a
    magic number (tantivy, directory/footer.rs). A megabyte takes about a millisecond.

    Raises:
        ValueError: if a file is not as it was written.
    """
    for segment in json.loads((directory / "meta.json").read_bytes())["segments"]:
        for file in directory.glob(f"{segment['segment_id'].replace('-', '')}.*"):
            data = file.read_bytes()
            length = int.from_bytes(data[-8:-4], "little")
            end = len(data) - 8 - length
            if end < 0 or json.loads(data[end:-8])["crc"] != zlib.crc32(memoryview(data)[:end]):
                raise ValueError(f"{file.name} is damaged")


class _Overlay:
    """Documents in memory, each field as its words' counts, with the postings that BM25 needs."""

    def __init__(self, fields: int) -> None:
        self.documents: dict[int, tuple[Counter[str], ...]] = {}
        self.lengths = [0] * fields
        self._lengths: dict[int, list[int]] = {}
        self._postings: list[dict[str, set[int]]] = [{} for _ in range(fields)]
        # Documents that no search has asked for: in a bulk they go to the index on disk, and never need postings.
        self._unposted: set[int] = set()
        self._arrays = _Arrays(self.documents, self._lengths)

    def __len__(self) -> int:
        return len(self.documents)

    def put(self, key: int, fields: tuple[Words, ...]) -> None:
        self.remove(key)
        self.documents[key] = tuple(Counter() for _ in fields)
        self._lengths[key] = [0] * len(fields)
        self._unposted.add(key)
        self.extend(key, fields)

    def extend(self, key: int, fields: tuple[Words, ...]) -> None:
        for i, text in enumerate(fields):
            self.lengths[i] += len(text)
            self._lengths[key][i] += len(text)
            self.documents[key][i].update(text)
            if key not in self._unposted:
                self._post(i, key, set(text))
        self._arrays.stale = True

    def _post(self, field: int, key: int, words: Iterable[str]) -> None:
        postings = self._postings[field]
        for word in words:
            postings.setdefault(word, set()).add(key)

    def remove(self, key: int) -> None:
        for i, counts in enumerate(self.documents.pop(key, ())):
            self.lengths[i] -= self._lengths[key][i]
            for word in counts if key not in self._unposted else ():
                self._postings[i][word].discard(key)
        self._unposted.discard(key)
        self._lengths.pop(key, None)
        self._arrays.stale = True

    def frequency(self, field: int, term: str) -> int:
        for key in self._unposted:
            for i, counts in enumerate(self.documents[key]):
                self._post(i, key, counts)
        self._unposted.clear()
        return len(self._postings[field].get(term, ()))

    def search(
        self, field: int, frequency: Mapping[str, int], total: int, mean_length: float, allowed: Ids | None
    ) -> Found:
        arrays = self._arrays.fresh()
        norm = K1 * (1 - B + B * arrays.lengths[:, field] / mean_length)
        scores = np.zeros(len(arrays.keys))
        for term, documents in frequency.items():
            places, times = arrays.posting(field, term, self._postings[field].get(term, ()))
            rarity = math.log(1 + (total - documents + 0.5) / (documents + 0.5))
            scores[places] += rarity * times * (K1 + 1) / (times + norm[places])
        found = scores > 0
        if allowed is not None:
            found &= np.isin(arrays.keys, allowed)
        return Found(arrays.keys[found], scores[found].astype(np.float32))


class _Arrays:
    """An overlay's documents and postings as arrays, made when they are first asked for after a change."""

    def __init__(self, documents: dict[int, tuple[Counter[str], ...]], lengths: dict[int, list[int]]) -> None:
        self._documents = documents
        self._lengths = lengths
        self.stale = True

    def fresh(self) -> _Arrays:
        if self.stale:
            self.keys: Ids = np.fromiter(self._documents, np.int64, len(self._documents))
            self.lengths = np.array([self._lengths[key] for key in self._documents], np.float64)
            self._place = {key: place for place, key in enumerate(self._documents)}
            self._postings: dict[tuple[int, str], tuple[Ids, Ids]] = {}
            self.stale = False
        return self

    def posting(self, field: int, term: str, keys: Collection[int]) -> tuple[Ids, Ids]:
        """Return the places of the documents that have the term, and how often each has it."""
        found = self._postings.get((field, term))
        if found is None:
            places = np.fromiter((self._place[key] for key in keys), np.int64, len(keys))
            times = np.fromiter((self._documents[key][field][term] for key in keys), np.int64, len(keys))
            found = self._postings[field, term] = (places, times)
        return found
