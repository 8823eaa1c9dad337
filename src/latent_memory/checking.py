"""Is everything that a memory holds as it was written? What `fsck` is to a disk.

Reads and changes nothing. What must fit together is compared in one snapshot of the database, in slices, so that others
may write meanwhile; indexes and blocks lie beside it, and are looked at before the state that they are compared with.
A vector of length one whose numbers are others cannot be told from a right one; a changed text can, by its digest.

More than 500 lines, so that all that is looked at can be read in one place.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from latent_memory import adapters as trained
from latent_memory import block_files
from latent_memory.dense import DenseIndex
from latent_memory.errors import LatentMemoryError, StoreBusyError, StoreError
from latent_memory.feed import Feed, Watermark
from latent_memory.generated import digest_of
from latent_memory.keys import KeyRing
from latent_memory.lexical import LexicalIndex
from latent_memory.records import ROLES
from latent_memory.scope_index import WORD_INDEXES
from latent_memory.store import SUMMARY, Store
from latent_memory.times import epoch
from latent_memory.vectors import STORED

Progress = Callable[[int, int], None]

_CONVERSATIONS = 200
_VECTORS = 4_000
# Single precision leaves a length of one within a few millionths; files of others are scaled as they are read.
_UNIT_TOLERANCE = 1e-3
# Of each kind, so many are told one by one.
MOST_TOLD = 20

_RESTORE = (
    "restore the store from a backup; without one, what is whole can be copied with: latent-memory convert STORE NEW "
    "--format sqlite"
)
_AGAIN = "add the conversation again, from where it came; if that does not help, forget it first"
_REEMBED = "make the vectors again: latent-memory reembed --embedder NAME (the name is in latent-memory stats)"
_RETRAIN = "retrain it, or delete it"
_REBUILT = "nothing to do: the next recall makes it anew"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: "database", "conversation", "turn", "passage", "vector", "index", "adapter", "block", "keys" or "access".
        where: the file, or the conversation and the turn.
        detail: what is wrong.
        advice: what to do.
    """

    kind: str
    where: str
    detail: str
    advice: str

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}; {self.advice}"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check has found.

    Attributes:
        scope: that was checked; None for the whole memory.
        conversations, turns, passages: how many were looked at.
        problems: what somebody has to mend.
        notes: what mends itself, or is worth knowing.
        more: how many more problems there are beyond those told, by kind.
    """

    scope: str | None
    conversations: int = 0
    turns: int = 0
    passages: int = 0
    problems: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()
    more: Mapping[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def unreadable(where: str, error: LatentMemoryError, scope: str | None = None) -> CheckReport:
    """Return the report of a memory that cannot even be opened."""
    return CheckReport(scope, problems=(Finding("database", where, str(error), _RESTORE),))


def check(
    store: Store,
    scope: str | None = None,
    *,
    file: Path | None = None,
    notes: Iterable[str] = (),
    adapters: Callable[[], list[trained.AdapterInfo]] = list,
    progress: Progress | None = None,
) -> CheckReport:
    """Check a store, or one of its scopes.

    Args:
        store: it is only read.
        scope: look at what belongs to it alone, and not at the database, files and permissions that all scopes share.
        file: that the memory lives in, if `store` is only its working copy.
        notes: what was noticed when it was read.
        adapters: returns those that were trained on it.
        progress: called with how many rows were looked at, and how many there are.
    """
    checking = _Checking(store, scope, progress)
    checking.notes += [Finding("database", str(file), told, "see docs/formats.md") for told in notes]
    checking.rows(shared=file is None and scope is None)
    if file is None:
        checking.indexes()
        checking.blocks()
        checking.adapters(adapters)
    if scope is None:
        checking.access([file] if file is not None else _files(store.directory))
        if file is None:
            checking.keys()
    return checking.report()


class _Checking:
    """One check, and what it has found so far."""

    def __init__(self, store: Store, scope: str | None, progress: Progress | None) -> None:
        self._store = store
        self._database = store.database
        self._scope = scope
        self._progress = progress or (lambda _done, _of: None)
        self._problems: list[Finding] = []
        self._kinds: Counter[str] = Counter()
        self.notes: list[Finding] = []
        self._counts = Counter[str]()
        self._done = self._of = 0

    def report(self) -> CheckReport:
        more = {kind: count - MOST_TOLD for kind, count in self._kinds.items() if count > MOST_TOLD}
        counts = {name: self._counts[name] for name in ("conversations", "turns", "passages")}
        return CheckReport(self._scope, **counts, problems=tuple(self._problems), notes=tuple(self.notes), more=more)

    def _problem(self, kind: str, where: str, detail: str, advice: str) -> None:
        self._kinds[kind] += 1
        if self._kinds[kind] <= MOST_TOLD:
            self._problems.append(Finding(kind, where, detail, advice))

    def _note(self, kind: str, where: str, detail: str, advice: str) -> None:
        self.notes.append(Finding(kind, where, detail, advice))

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Take it for a problem if something cannot be read; the rest is looked at all the same."""
        try:
            yield
        except StoreBusyError:
            raise
        except StoreError as error:
            # SQLite's own words: ours begin with the path, and a path is not for everybody.
            told = str(error.__cause__ or error)
            self._problem("database", self._database.path.name, f"{what} cannot be read ({told[:200]})", _RESTORE)

    def _did(self, rows: int) -> None:
        self._done += rows
        self._progress(self._done, max(self._of, self._done))

    # -- the database -------------------------------------------------------------------------------------

    def rows(self, *, shared: bool) -> None:
        """Look at every row, in one snapshot."""
        with self._reading("the database"), self._database.snapshot():
            scope_id = None if self._scope is None else self._store.scope_id(self._scope)
            if self._scope is not None and scope_id is None:
                return
            if shared:
                self._integrity()
            of, values = ("", ()) if scope_id is None else (" WHERE scope_id = ?", (scope_id,))
            with self._reading("the number of passages"):
                self._of = self._database.row(f"SELECT count(*) FROM passages{of}", *values)[0] * 2
            with self._reading("the conversations"):
                self._conversations(scope_id)
            with self._reading("the vectors"):
                self._vectors(scope_id)
            with self._reading("the scopes"):
                self._marks(scope_id)

    def _integrity(self) -> None:
        where = self._database.path.name
        with self._reading("its pages"):
            for (told,) in self._database.rows("PRAGMA integrity_check"):
                if told != "ok":
                    self._problem("database", where, told, _RESTORE)
        with self._reading("its references"):
            found = Counter((row[0], row[2]) for row in self._database.rows("PRAGMA foreign_key_check"))
            for (table, parent), count in found.items():
                detail = f"{count:,} rows of {table} belong to {parent} that are not there"
                self._problem("database", where, detail, _RESTORE)

    def _conversations(self, scope_id: int | None) -> None:
        """Look at each conversation with its turns and passages."""
        sql = (
            "SELECT conversation_key, conversations.scope_id, CAST(name AS BLOB), CAST(conversation_id AS BLOB), "
            "CAST(title AS BLOB), CAST(timestamp AS BLOB), epoch, CAST(type AS BLOB), CAST(summary AS BLOB), "
            "CAST(metadata AS BLOB), CAST(generated AS BLOB) FROM conversations LEFT JOIN scopes USING (scope_id) "
            f"WHERE conversation_key > ? {'' if scope_id is None else 'AND conversations.scope_id = ?'} "
            "ORDER BY conversation_key LIMIT ?"
        )
        last = 0
        while batch := self._database.rows(sql, last, *(() if scope_id is None else (scope_id,)), _CONVERSATIONS):
            last = batch[-1][0]
            keys = [row[0] for row in batch]
            turns = _by_key(
                self._database.rows_among(
                    "SELECT conversation_key, position, CAST(role AS BLOB), CAST(name AS BLOB), CAST(text AS BLOB), "
                    "CAST(timestamp AS BLOB), digest FROM turns WHERE conversation_key IN ({ids}) "
                    "ORDER BY conversation_key, position",
                    keys,
                )
            )
            passages = _by_key(
                self._database.rows_among(
                    "SELECT conversation_key, position, piece, start, CAST(text AS BLOB), role, scope_id FROM passages "
                    "WHERE conversation_key IN ({ids}) ORDER BY conversation_key, position, piece",
                    keys,
                )
            )
            for row in batch:
                self._conversation(row, turns.get(row[0], []), passages.get(row[0], []))
            self._did(sum(map(len, passages.values())))

    def _conversation(self, row: Any, turns: list[Any], passages: list[Any]) -> None:
        self._counts["conversations"] += 1
        self._counts["turns"] += len(turns)
        self._counts["passages"] += len(passages)
        where = self._named(row[2], row[3])
        try:
            _title, timestamp, _kind, _summary = (row[i].decode() for i in (4, 5, 7, 8))
            metadata, marks = json.loads(row[9]), json.loads(row[10])
            if not (isinstance(metadata, dict) and isinstance(marks, list)):
                raise ValueError("its metadata are no object")
            if epoch(datetime.fromisoformat(timestamp)) != row[6]:
                raise ValueError("its two times differ")
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            self._problem("conversation", where, f"its description is damaged ({error})", _AGAIN)
        for place, turn in enumerate(turns):
            if turn[1] != place:
                self._problem("turn", where, f"turn {place} is missing, of {turns[-1][1] + 1:,}", _AGAIN)
                break
        if any(passage[6] != row[1] for passage in passages):
            self._problem("passage", where, "its passages belong to another scope", _AGAIN)
        pieces = {position: list(rows) for position, rows in groupby(passages, itemgetter(1))}
        for turn in turns:
            self._turn(f"{where}, turn {turn[1]}", turn, pieces.pop(turn[1], []))
        if not turns and SUMMARY not in pieces:
            self._problem("passage", where, "it has neither turns nor a summary that can be found", _AGAIN)
        pieces.pop(SUMMARY, None)
        for position in pieces:
            self._problem("turn", f"{where}, turn {position}", "its passages are there, and the turn is not", _AGAIN)

    def _turn(self, where: str, row: Any, pieces: list[Any]) -> None:
        try:
            role, name, text, said = (None if part is None else part.decode() for part in row[2:6])
        except UnicodeDecodeError:
            self._problem("turn", where, "its text is damaged", _AGAIN)
            return
        if role not in ROLES or not isinstance(text, str) or row[6] != digest_of(role, name, text, said):
            self._problem("turn", where, "its text is not what was added", _AGAIN)
        elif not pieces:
            self._problem("passage", where, "it has no passage, so that it cannot be found", _AGAIN)
        elif len(pieces) == 1 and pieces[0][2:5] == (0, 0, None):
            if pieces[0][5] != ROLES.index(role):
                self._problem("passage", where, "its passage has another role", _AGAIN)
        else:
            self._pieces(where, text, pieces)

    def _pieces(self, where: str, text: str, pieces: Sequence[Any]) -> None:
        joined = ""
        for number, piece in enumerate(pieces):
            try:
                part = None if piece[4] is None else piece[4].decode()
            except UnicodeDecodeError:
                part = None
            if piece[2] != number or piece[3] != len(joined) or part is None:
                break
            joined += part
        if joined != text:
            self._problem("passage", where, "its passages do not make up its text", _AGAIN)

    def _vectors(self, scope_id: int | None) -> None:
        """Look at the vector and the codes of each passage."""
        known = self._store.embedder()
        if known is None:
            if self._counts["passages"]:
                detail = "it does not say which model made its vectors"
                self._problem("vector", self._database.path.name, detail, _REEMBED)
            return
        sql = (
            "SELECT p.passage_id, vector, length(codes), substr(codes, 1, 2) FROM passages p "
            "LEFT JOIN vectors USING (passage_id) LEFT JOIN tokens USING (passage_id) "
            f"WHERE p.passage_id > ? {'' if scope_id is None else 'AND p.scope_id = ?'} ORDER BY p.passage_id LIMIT ?"
        )
        last, zeros = 0, 0
        size = known.dimension * STORED.itemsize
        while batch := self._database.rows(sql, last, *(() if scope_id is None else (scope_id,)), _VECTORS):
            last = batch[-1][0]
            wrong: dict[int, str] = {}
            whole = []
            for row in batch:
                if row[1] is None:
                    wrong[row[0]] = "it has no vector"
                elif not isinstance(row[1], bytes) or len(row[1]) != size:
                    wrong[row[0]] = f"its vector has {len(row[1]) / STORED.itemsize:g} numbers, not {known.dimension}"
                else:
                    whole.append(row)
                    if row[2] is not None and not _are_codes(row[2], row[3]):
                        wrong[row[0]] = "the codes of its tokens are damaged"
            if whole:
                vectors = np.frombuffer(b"".join(row[1] for row in whole), STORED).reshape(len(whole), -1)
                with np.errstate(over="ignore", invalid="ignore"):
                    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
                zeros += int((norms == 0).sum())
                # Not "norms > tolerance": NaN is neither more nor less than anything.
                for i in np.flatnonzero(~((np.abs(norms - 1) <= _UNIT_TOLERANCE) | (norms == 0))):
                    told = f"its vector has length {norms[i]:.3g}, not 1" if np.isfinite(norms[i]) else _NO_NUMBERS
                    wrong[whole[i][0]] = told
            self._wrong_vectors(wrong)
            self._did(len(batch))
        if zeros:
            detail = f"{zeros:,} vectors are nothing but zeros, as of texts without a word; only words find those"
            self._note("vector", self._database.path.name, detail, "nothing to do")
        if self._scope is None and self._database.row("SELECT 1 FROM meta WHERE key = 'reembedding'"):
            detail = "a reembed was begun and not finished"
            self._note("vector", self._database.path.name, detail, "run it again to finish")

    def _wrong_vectors(self, wrong: Mapping[int, str]) -> None:
        told = sorted(wrong)[: MOST_TOLD + 1]
        rows = self._database.rows_among(
            "SELECT passage_id, CAST(name AS BLOB), CAST(conversation_id AS BLOB), position FROM passages p "
            "JOIN conversations USING (conversation_key) LEFT JOIN scopes ON scopes.scope_id = p.scope_id "
            "WHERE passage_id IN ({ids})",
            told,
        )
        places = {
            row[0]: f"{self._named(row[1], row[2])}, {'summary' if row[3] == SUMMARY else f'turn {row[3]}'}"
            for row in rows
        }
        for passage_id in wrong:
            self._problem("vector", places.get(passage_id, f"passage {passage_id}"), wrong[passage_id], _REEMBED)

    def _marks(self, scope_id: int | None) -> None:
        """Look whether each scope's row tells the indexes all that there is."""
        sql = (
            "SELECT CAST(name AS BLOB), added, deleted, "
            "(SELECT max(passage_id) FROM passages WHERE passages.scope_id = scopes.scope_id), "
            "(SELECT max(deletion_id) FROM deletions WHERE deletions.scope_id = scopes.scope_id) FROM scopes"
        )
        of, values = ("", ()) if scope_id is None else (" WHERE scope_id = ?", (scope_id,))
        rows = self._database.rows(sql + of, *values)
        for name, added, deleted, last, gone in rows:
            if added < (last or 0) or deleted < (gone or 0):
                detail = "the indexes are not told of all that was added and forgotten"
                self._problem("index", f"scope {_shown(name)}", detail, "add something to the scope, anything")

    def _named(self, scope: bytes | None, conversation_id: bytes) -> str:
        of = f" of scope {_shown(scope)}" if self._scope is None else ""
        return f"conversation {_shown(conversation_id)}{of}"

    # -- what is derived from it --------------------------------------------------------------------------

    def indexes(self) -> None:
        """Compare what each index on disk has read with what there is."""
        directory = self._store.directory / "indexes"
        scopes: dict[int, bytes] = {}
        with self._reading("the scopes"):
            scopes = dict(self._database.rows("SELECT scope_id, CAST(name AS BLOB) FROM scopes"))
        there = [path for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
        for path in sorted(there):
            scope_id = int(path.name) if path.name.isdecimal() else -1
            if scope_id in scopes and self._scope in (None, _decoded(scopes[scope_id])):
                with self._reading("what the indexes have read"):
                    for name in WORD_INDEXES:
                        self._words(path / name, scope_id)
                    self._dense(path / "dense.faiss", scope_id)
            elif self._scope is None and not self._is_scope(scope_id) and path.is_dir():
                detail = "belongs to no scope, and holds words of what was forgotten"
                self._problem("index", _beside(path, self._store.directory), detail, "delete the directory")

    def _is_scope(self, scope_id: int) -> bool:
        # Asked anew: it may have been made a moment ago.
        return bool(self._database.row("SELECT 1 FROM scopes WHERE scope_id = ?", scope_id))

    def _words(self, directory: Path, scope_id: int) -> None:
        if not (directory / "meta.json").exists():
            return
        found = LexicalIndex(directory, WORD_INDEXES[directory.name]).look()
        if isinstance(found, str):
            self._note("index", _beside(directory, self._store.directory), f"is damaged ({found})", _REBUILT)
            return
        state, documents = found
        read = Watermark(state.generation, state.added, state.deleted)
        # A conversation is one document, however many passages it has.
        counted = documents if directory.name == "passages" else None
        self._compare(directory, scope_id, read, state.anchor, counted)

    def _dense(self, file: Path, scope_id: int) -> None:
        known = self._store.embedder()
        if not file.exists() or known is None:
            return
        seen: list[tuple[Watermark, str]] = []

        def look(generation: str, added: int, deleted: int, anchor: str) -> bool:
            seen.append((Watermark(generation, added, deleted), anchor))
            return True

        index = DenseIndex(known.dimension, file, _nothing)
        index.load(look)
        if not seen:
            self._note("index", _beside(file, self._store.directory), "is damaged", _REBUILT)
        else:
            self._compare(file, scope_id, *seen[0], len(index))

    def _compare(self, path: Path, scope_id: int, read: Watermark, anchor: str, counted: int | None) -> None:
        where = _beside(path, self._store.directory)
        feed = Feed(self._database)
        # Read after the index was, so that whatever the index knows is there.
        with self._database.snapshot():
            mark = feed.watermark(scope_id)
            stands = feed.stands(scope_id, mark, read, anchor)
            expected = self._database.row(
                "SELECT (SELECT count(*) FROM passages WHERE scope_id = ?1 AND passage_id <= ?2) + "
                "(SELECT count(*) FROM deletions WHERE scope_id = ?1 AND deletion_id > ?3 AND passage_id <= ?2)",
                *(scope_id, read.added, read.deleted),
            )[0]
        if not stands:
            self._note("index", where, "was made from another state of the store", _REBUILT)
        elif counted is not None and counted != expected:
            advice = "delete it; the next recall makes it anew"
            self._problem("index", where, f"has {counted:,} passages, and {expected:,} were added", advice)
        elif read.deleted < mark.deleted:
            detail = "still has words of what was forgotten, which no search finds"
            self._note("index", where, detail, "delete it, or add or forget something: that takes them out")

    def blocks(self) -> None:
        """Look for stored keys and values of what is not there any more."""
        directory = self._store.directory / block_files.NAME
        if self._scope is not None:
            scopes = [block_files.place(directory, self._scope)]
        else:
            scopes = [path for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
        there = {path: [each for each in path.iterdir() if each.is_dir()] for path in sorted(scopes) if path.is_dir()}
        if not there:
            return
        known: dict[str, set[str]] = {}
        # After the directories: a block is made later than its conversation.
        with self._reading("the conversations"):
            for scope, conversation_id in self._database.rows(
                "SELECT name, conversation_id FROM conversations JOIN scopes USING (scope_id)"
                + ("" if self._scope is None else " WHERE name = ?"),
                *(() if self._scope is None else (self._scope,)),
            ):
                place = block_files.place(directory, scope, conversation_id)
                known.setdefault(place.parent.name, set()).add(place.name)
        for path, conversations in there.items():
            if path.name not in known:
                left = [path]
            else:
                kept = {*known[path.name], "prefixes"}
                left = [each for each in conversations if each.name not in kept]
            # Forgotten while this looked, they are gone by now.
            for each in left:
                if each.is_dir() and any(each.rglob("*")):
                    detail = "holds keys and values of a conversation that is not there any more"
                    where = _beside(each, self._store.directory)
                    self._problem("block", where, detail, "delete the directory, or forget the conversation once more")

    def adapters(self, find: Callable[[], list[trained.AdapterInfo]]) -> None:
        """Look for adapters that have seen what is not there any more."""
        try:
            found = find()
        except (LatentMemoryError, ValueError) as error:
            # Whose they are cannot be told, so that this is nothing for those who ask of one scope.
            if self._scope is None:
                self._problem("adapter", trained.REGISTRY, f"cannot be told what they have seen ({error})", _RESTORE)
            return
        for info in found:
            where = f"adapter {info.path.name!r}"
            if info.problem and self._scope is None:
                self._problem("adapter", where, f"cannot be told what it has seen ({info.problem})", _RETRAIN)
            elif not info.problem and info.stale and self._scope in (None, info.scope):
                gone = f"{info.gone + info.altered:,} turns that are forgotten, or changed since"
                self._problem("adapter", where, f"has seen {gone}", _RETRAIN)

    # -- files --------------------------------------------------------------------------------------------

    def access(self, paths: Iterable[Path]) -> None:
        """Look who may read and write the files."""
        open_to: list[Path] = []
        for path in paths:
            try:
                mode = path.stat().st_mode
            except OSError:
                continue
            if not os.access(path, os.R_OK | os.W_OK):
                self._note("access", str(path), "cannot be written by this user", "as the owner, chmod u+w")
            if os.name == "nt" or not _reachable(path):
                continue
            if mode & stat.S_IWOTH and not (path.is_dir() and mode & stat.S_ISVTX):
                self._problem("access", str(path), "anybody on this machine may change it", f"chmod o-w {path}")
            elif mode & stat.S_IROTH:
                open_to.append(path)
        if open_to:
            detail = "other users of this machine can read it"
            self._note("access", str(open_to[0]), detail, f"if they should not: chmod -R o= {open_to[0]}")

    def keys(self) -> None:
        """Look whether the keys can be read."""
        try:
            with KeyRing(self._store.directory) as ring:
                ring.list()
        except StoreBusyError:
            raise
        except (StoreError, ValueError) as error:
            self._problem("keys", "keys.sqlite", str(error), "until then a server lets nobody in")


_NO_NUMBERS = "its vector has NaN or infinite numbers"


def _nothing(_: object) -> Any:
    raise AssertionError("nothing is searched")


def _by_key(rows: Iterable[Any]) -> dict[int, list[Any]]:
    return {key: list(found) for key, found in groupby(rows, itemgetter(0))}


def _are_codes(length: int, width: bytes) -> bool:
    per_token = int.from_bytes(width, "little") if isinstance(width, bytes) else 0
    return length >= 2 and (length - 2) % max(1, per_token) == 0


def _decoded(text: bytes | None) -> str:
    return (text or b"").decode(errors="replace")


def _shown(text: bytes | None) -> str:
    shown = _decoded(text)
    return repr(shown if len(shown) <= 80 else f"{shown[:79]}…")


def _beside(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix()


def _files(directory: Path) -> list[Path]:
    inside = sorted(path for path in directory.iterdir() if path.is_file()) if directory.is_dir() else []
    return [directory, *inside]


def _reachable(path: Path) -> bool:
    """Tell whether others come as far as a path; a directory that is closed to them protects all that is in it."""
    try:
        return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)
    except OSError:
        return False
