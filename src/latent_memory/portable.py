"""A memory that lives in a file: read into a working store when it is opened, and written back when it has changed.

The file is the truth. The working store beside it (`.working`, removed on closing) is what the indexes and the rest of
the library work on; one that a killed process has left is thrown away. One process at a time may have a file open.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from latent_memory import formats, loading, snapshots
from latent_memory.database import FILE_NAME, exists
from latent_memory.embedders import Embedder, identity
from latent_memory.errors import EmbedderMismatchError, InputError, StoreBusyError, StoreError
from latent_memory.files import Seen, as_ours, clear_beside, flush, flush_directory
from latent_memory.formats import STORE
from latent_memory.passages import spoken
from latent_memory.records import Conversation
from latent_memory.snapshot import Block, Snapshot
from latent_memory.store import Store
from latent_memory.vectors import checked, from_bytes

if TYPE_CHECKING:
    from latent_memory.formats.pages import Sums

# A process that is just closing is waited for.
_WAIT_SECONDS = 2.0
_SAMPLE = 8
_PAGE = 1000
# An int8 model and the one it was made from differ by up to 0.005; another model is not near.
_SAME_MODEL = 0.97


class Home:
    """The file or directory that a memory lives in.

    Args:
        path: where it is.
        layout: one of `formats.NAMES`.
        autosave: write back after each change.
        on_bad: called with the error of each row that cannot be used, which is then left out; the file itself is never
            written back then. Without it such a row is an error.

    Attributes:
        store: the working store.
        notes: what the user should know of what was read.

    Raises:
        InputError, StoreError: if the file cannot be used; it is as it was.
        StoreBusyError: if another process has it open.
    """

    def __init__(self, path: Path, layout: str, *, autosave: bool = True, on_bad: loading.OnBad | None = None) -> None:
        self.path = path
        self.layout = layout
        self.autosave = autosave
        self.notes: list[str] = []
        self._left_out = 0
        self._process = os.getpid()
        self._saving = threading.Lock()
        self._dirty = False
        self._sums: Sums | None = None
        self._mark: snapshots.Mark | None = None
        self.real = path.resolve()
        self._lock = _lock(self.real, layout)
        try:
            if self._lock is not None:
                formats.load(layout).recover(self.real)
            self._working = self._empty_directory()
            try:
                self.store = Store(self._working, durable=False)
                try:
                    # Before anything is read: what changes from now on is noticed when it is written back.
                    self._seen = self._look()
                    if any(self._seen.values()):
                        self._read(on_bad)
                    snapshots.watch(self.store.database)
                    with self.store.database.writing() as connection:
                        self._mark = snapshots.mark(self.store.database, connection)
                except BaseException:
                    self.store.close()
                    raise
            except BaseException:
                shutil.rmtree(self._working, ignore_errors=True)
                raise
        except BaseException:
            self._unlock()
            raise

    def _empty_directory(self) -> Path:
        if self._lock is None:
            # Nothing can be written there.
            return Path(tempfile.mkdtemp(prefix="latent-memory-"))
        working = _beside(self.real, self.layout, "working")
        with as_ours(working):
            if working.exists():
                shutil.rmtree(working)
            working.mkdir(mode=0o700)
        return working

    def _read(self, on_bad: loading.OnBad | None) -> None:
        try:
            snapshot = formats.load(self.layout).read(self.real)
            done = loading.load(self.store.database, snapshot, on_bad=on_bad)
        except OSError as error:
            raise StoreError(f"cannot read {error.filename or self.path}: {error.strerror or error}") from error
        self._left_out = done.left_out
        if snapshot.beside:
            others = ", ".join(name[:40] for name in snapshot.beside[:10])
            self.notes.append(
                f"{self.path}: also holds {others}, which is no part of a memory and is gone when it is written back; "
                "save the memory to another place if you need it"
            )
        if not snapshot.summed:
            self.notes.append(f"{self.path}: carries no checksum, so it cannot be told whether it is whole")
        if done.scaled:
            self.notes.append(
                f"{self.path}: {done.scaled:,} of {done.rows:,} vectors were not of length one; they were scaled to it"
            )
        if done.zeros and not snapshot.summed:
            self.notes.append(
                f"{self.path}: {done.zeros:,} of {done.rows:,} vectors are nothing but zeros; only words find those"
            )
        if done.rows and snapshot.embedder is None:
            self.notes.append(
                f"{self.path}: does not say which model made its vectors of {snapshot.dimension} numbers. Recall needs "
                f"that model: name it (--embedder), or make new vectors in a copy: {_reembedded_copy(self.path)}"
            )

    def _look(self) -> dict[str, Seen | None]:
        names = formats.files_of(self.layout)
        if not names:
            return {"": Seen.of(self.real)}
        return {name: Seen.of(self.real / name) for name in names}

    @property
    def behind(self) -> bool:
        """Whether the file lacks what the working store has, though it should not."""
        return self._dirty and self.autosave

    @property
    def worth_writing(self) -> int:
        """After how many turns of a bulk a file is written back; one that cannot grow is written as a whole."""
        return 0 if self.layout == "hdf5" or self._mark is None else len(self._mark.ids) // 2

    def check_change(self) -> None:
        """Look whether what is about to change could be written back.

        Raises:
            StoreError: if it could not; nothing has changed then.
        """
        if self._process != os.getpid():
            raise StoreError(f"{self.path}: belongs to the process that opened it; open it again in this one")
        if self.autosave:
            self._check_writable()

    def _check_writable(self) -> None:
        if self._lock is None:
            raise StoreError(f"{self.path}: nothing can be written there; save the memory to another place")
        if self._left_out:
            raise StoreError(
                f"{self.path}: {self._left_out:,} of its rows were left out as it was read, and would be lost if it "
                "were written back; save the memory to another place"
            )

    def changed(self) -> None:
        """Take note that the working store has changed, and write it back if that is wanted now."""
        self._dirty = True
        if self.autosave:
            self.save()

    def save(self) -> None:
        """Write back what has changed.

        Raises:
            StoreError: if another program has changed the file since it was opened, nothing can be written there, or
                rows were left out when it was read.
            StoreFullError: if the disk is full. Whatever is raised, the file is as it was.
        """
        with self._saving:
            if not self._dirty:
                return
            if self._process != os.getpid():
                raise StoreError(f"{self.path}: belongs to the process that opened it; open it again in this one")
            self._check_writable()
            if self._look() != self._seen:
                raise StoreError(
                    f"{self.path}: another program has changed it since it was opened. It was left alone; save this "
                    "memory to another place"
                )
            database = self.store.database
            # Before anything is read: what is added from now on may not be in it.
            self._dirty = False
            try:
                # What other threads add waits, so that it is not taken for written.
                with database.writing() as connection:
                    if not self._append():
                        formats.load(self.layout).write(self.real, snapshots.snapshot_of(database, str(self.path)))
                        self._sums = None
                    self._mark = snapshots.mark(database, connection, self._mark)
                    self._seen = self._look()
            except BaseException:
                self._dirty = True
                if self._look() != self._seen:
                    # Stopped on the way, it is as it was or as it was to be: next time all of it is written.
                    self._mark = self._sums = None
                    self._seen = self._look()
                raise

    def _append(self) -> bool:
        """Write back by appending, where the layout can and nothing else has changed."""
        if self.layout != "hdf5" or self._seen[""] is None or self._mark is None:
            return False
        grown = snapshots.growth(self.store.database, self._mark)
        if grown is None:
            return False
        from latent_memory.formats import hdf5

        self._sums = hdf5.append(self.real, grown.blocks, grown.changed, self._sums)
        return self._sums is not None

    def close(self) -> None:
        """Write back what has changed, and remove the working store."""
        try:
            self.save()
        finally:
            self.store.close()
            if self._process == os.getpid():
                shutil.rmtree(self._working, ignore_errors=True)
                self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            _release(self._lock)


def export(store: Store, path: Path, layout: str | None, progress: Callable[[int], None] | None = None) -> int:
    """Write all that a store holds to a file or directory of another format.

    A memory of the same format that is there is replaced; nothing else is.

    Args:
        store: what is written.
        path: where to.
        layout: one of `formats.NAMES` or STORE; by default the suffix tells, or what is there.
        progress: called with how many passages are written.

    Returns:
        How many passages were written.

    Raises:
        InputError: if neither the format nor the path's suffix says what to write, or something else is there.
        StoreBusyError: if another process has it open.
    """
    formats.check_regular(path)
    layout = layout or formats.by_suffix(path) or (formats.detect(path) if path.is_dir() else None)
    if layout is None:
        raise InputError(
            f"{path}: does not say which format to write; name one (--format, or format= in Python): "
            f"{', '.join((*formats.NAMES, STORE))}; or end the name in {', '.join(formats.SUFFIXES)}, or for summaries "
            f"alone in {', '.join(formats.SUMMARY_SUFFIXES)}"
        )
    formats.check_name(layout)
    formats.check_suffix(path, layout)
    _check_replaceable(path, layout)
    with store.database.snapshot():
        snapshot = _counted(snapshots.snapshot_of(store.database, str(store.directory)), progress)
        if layout == STORE:
            _export_store(snapshot, path)
            return snapshot.rows
        lock = _lock(path.resolve(), layout)
        try:
            formats.load(layout).write(path, snapshot)
        finally:
            if lock is not None:
                _release(lock)
    return snapshot.rows


def _check_replaceable(path: Path, layout: str) -> None:
    """Raise InputError if there is something that is no memory of this format."""
    if path.is_dir() and exists(path):
        raise InputError(f"{path}: is a directory that holds a store; name another place")
    if path.is_dir() and not formats.is_directory(layout):
        raise InputError(f"{path}: is a directory, and {layout} is one file; name another place")
    if path.is_file() and formats.is_directory(layout):
        raise InputError(f"{path}: is a file, and {layout} makes a directory; name another place")
    there = [path / name for name in formats.ALL_FILES if (path / name).exists()] or [path]
    if (path.is_file() and path.stat().st_size) or there != [path]:
        found = formats.detect(path)
        if found != layout:
            what = "no memory" if found is None else f"a memory of the format {found}"
            raise InputError(f"{there[0]}: already exists, and is {what}; name another place, or remove it first")


def _counted(snapshot: Snapshot, progress: Callable[[int], None] | None) -> Snapshot:
    most = 0

    def blocks() -> Iterator[Block]:
        # A layout that holds vectors and entries apart goes through them twice.
        nonlocal most
        done = 0
        for block in snapshot.blocks():
            yield block
            done += len(block.entries)
            if progress is not None and done > most:
                most = done
                progress(done)

    return replace(snapshot, blocks=blocks)


def export_summaries(store: Store, path: Path, scope: str, progress: Callable[[int], None] | None = None) -> int:
    """Write the conversations of a scope as a metadata memory: their ids, titles, times, types and summaries.

    Returns:
        How many conversations were written.
    """
    from latent_memory.formats import summaries

    formats.check_regular(path)
    scope_id = store.scope_id(scope)
    offset = 0

    def conversations() -> Iterator[Conversation]:
        nonlocal offset
        while page := store.conversations(scope_id or 0, _PAGE, offset):
            states = store.states(scope_id or 0, [info.conversation_id for info in page])
            # Newest first is for reading; files are written in the same order every time.
            yield from (states[info.conversation_id].record for info in page)
            offset += len(page)
            if progress is not None:
                progress(offset)

    with store.database.snapshot():
        summaries.write(path, conversations())
    return offset


def _export_store(snapshot: Snapshot, path: Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path}: is not empty; a store needs a directory of its own")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with as_ours(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            new = Store(temporary, durable=False)
            try:
                loading.load(new.database, snapshot)
                new.database.empty_log()
            finally:
                new.close()
            with (temporary / FILE_NAME).open("r+b") as file:
                flush(file)
            flush_directory(temporary)
            if path.is_dir():
                path.rmdir()
            temporary.rename(path)
            flush_directory(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def adopt(store: Store, embedder: Embedder, path: Path) -> None:
    """Take an embedder for the one that made vectors which do not say what made them; some are made again to see.

    Raises:
        EmbedderMismatchError: if it was not.
    """
    known = store.embedder()
    rows = store.database.rows(
        "SELECT name, text, vector FROM said JOIN vectors USING (passage_id) ORDER BY passage_id LIMIT ?", _SAMPLE
    )
    near = -1.0
    if known is not None and known.dimension == embedder.dimension:
        stored = from_bytes([row[2] for row in rows], known.dimension)
        named = [text if name is None else spoken(name, text) for name, text, _ in rows]
        # Others may have embedded the text alone.
        for texts in (named, [text for _, text, _ in rows]):
            made = checked(embedder.embed(texts), rows=len(rows), dimension=known.dimension, made_by=embedder.name)
            near = max(near, float(np.median((made * stored).sum(axis=1))))
    if near < _SAME_MODEL:
        why = "" if known is None or known.dimension == embedder.dimension else f", which makes {embedder.dimension}"
        raise EmbedderMismatchError(
            f"{path}: does not say which model made its vectors of {known and known.dimension} numbers, and it was not "
            f"{embedder.name!r}{why}. Name the one that did (--embedder), or make new vectors in a copy: "
            f"{_reembedded_copy(path)}; or in place: latent-memory reembed --store {path}"
        )
    store.adopt(identity(embedder))


def _reembedded_copy(path: Path) -> str:
    return f"latent-memory convert {path} COPY --format sqlite --reembed"


def _beside(path: Path, layout: str, what: str) -> Path:
    return path / f".{what}" if formats.files_of(layout) else path.with_name(f".{path.name}.{what}")


def _lock(path: Path, layout: str) -> FileLock | None:
    """Keep other processes away; None where nothing can be written."""
    file = _beside(path, layout, "lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        lock.acquire(timeout=_WAIT_SECONDS)
    except Timeout:
        if not file.exists():
            raise StoreError(f"cannot write {path}: no file can be made beside it") from None
        raise StoreBusyError(
            f"{path}: is open in another process, or twice in this one; close it there first. Many processes may share "
            f"a store; once it is closed, make one with: latent-memory convert {path} STORE --format sqlite"
        ) from None
    except PermissionError:
        return None
    except OSError as error:
        if error.errno == 30:  # a read-only file system
            return None
        raise StoreError(f"cannot use {path}: {error.strerror or error}") from None
    for name in (path / name for name in formats.files_of(layout)) if formats.files_of(layout) else (path,):
        clear_beside(name)
    return lock


def _release(lock: FileLock) -> None:
    # While it is held: whoever waits for it notices that its file has gone, and makes a new one. Windows does not let
    # go of a file that is open.
    with contextlib.suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()
