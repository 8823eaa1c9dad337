"""The file that holds a store's keys: a small SQLite database, made by the first key and not before.

Knows nothing of what a key opens; keys.py does.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from latent_memory.database import BUSY_SECONDS, switch_to_wal, transaction, translated
from latent_memory.errors import StoreDamagedError, StoreError, StoreVersionError
from latent_memory.files import as_ours, flush_directory

FILE_NAME = "keys.sqlite"
WHAT_TO_DO = (
    "Restore the file from a backup, or move it away and create new keys before a server runs again: without the file "
    "nobody needs a key"
)

_FULL = "No key was created or revoked; free some space and call again"
# "LtMk"
_APPLICATION_ID = 0x4C744D6B
_VERSION = 1
# Times are microseconds since 1970; scopes and prefixes are JSON, so that a request costs the reading of one row.
_SCHEMA = """
CREATE TABLE keys (
    key_id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    name TEXT,
    scopes TEXT NOT NULL,
    prefixes TEXT NOT NULL,
    every_scope INTEGER NOT NULL,
    read_only INTEGER NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER,
    last_used INTEGER,
    revoked INTEGER
) WITHOUT ROWID
"""

Place = tuple[int, int]


class KeyFile:
    """The database in a directory; several threads and processes may use it at once.

    Connections are None as long as there are no keys.
    """

    def __init__(self, directory: Path) -> None:
        # Wherever the process goes: a file that is not found would open the door.
        self._directory = directory.absolute()
        self.path = self._directory / FILE_NAME
        self._closed = False
        self._begin_process()

    def _begin_process(self) -> None:
        self._process = os.getpid()
        self._reading = _Kept()
        self._noting = _Kept()

    def place(self) -> Place | None:
        """Return what tells the file from another one that is put in its place; None if there is none.

        Raises:
            StoreError: if it cannot be told.
        """
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot look into {str(self.path)[:80]}: {error.args[-1]}") from error
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Close it; it cannot be used afterwards."""
        self._closed = True
        if self._process == os.getpid():
            for kept in (self._reading, self._noting):
                with kept.lock:
                    kept.drop()

    def reading(self) -> AbstractContextManager[sqlite3.Connection | None]:
        """Lend the connection that requests read with."""
        self._check_process()
        return self._lent(self._reading)

    def noting(self) -> AbstractContextManager[sqlite3.Connection | None]:
        """Lend a connection for what may be lost.

        It waits neither for other processes that write nor for the disk: a power cut may take what was written with it
        last, and nothing else.
        """
        self._check_process()
        return self._lent(self._noting, busy_seconds=0, synchronous="NORMAL")

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection | None]:
        """Open a connection for what may take longer than a request should wait for."""
        with translated(self.path, damaged=WHAT_TO_DO, full=_FULL):
            connection = self._connect()
            if connection is None:
                yield None
                return
            with closing(connection):
                yield connection

    @contextmanager
    def filling(self) -> Iterator[sqlite3.Connection]:
        """Make the file if there is none, and run one write transaction in it."""
        with translated(self.path, damaged=WHAT_TO_DO, full=_FULL):
            self._make()
            connection = self._connect(new=True)
            if connection is None:
                raise StoreError(f"cannot write {self.path}: it is a link that leads nowhere, or was just removed")
            with closing(connection), transaction(connection):
                # Under the lock: another process may have made the table in between.
                if not connection.execute("PRAGMA user_version").fetchone()[0]:
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                yield connection

    def _check_process(self) -> None:
        if self._process != os.getpid():
            # Closing what the parent opened would take its locks away; see database.Database.
            _INHERITED.append((self._reading, self._noting))
            self._begin_process()

    @contextmanager
    def _lent(
        self, kept: _Kept, *, busy_seconds: float | None = None, synchronous: str = "FULL"
    ) -> Iterator[sqlite3.Connection | None]:
        with translated(self.path, damaged=WHAT_TO_DO, full=_FULL), kept.lock:
            place = self.place()
            # Where a backup was put back, or the file was removed, the old one must not go on answering.
            if kept.connection is None or place != kept.place or self._closed:
                kept.drop()
                kept.connection = self._connect(busy_seconds=busy_seconds, synchronous=synchronous)
                kept.place = place
            yield kept.connection

    def _connect(
        self, *, new: bool = False, busy_seconds: float | None = None, synchronous: str = "FULL"
    ) -> sqlite3.Connection | None:
        """Open the database; one that is still empty only to fill it."""
        if self._closed:
            raise StoreError(f"the keys at {self.path} were closed; open them again")
        if self.place() is None:
            return None
        path = self.path.as_posix()
        # Looking makes no file: that would shut the door, see KeyRing.required.
        address = f"file://{'' if path.startswith('/') else '/'}{quote(os.fsencode(path))}?mode=rw"
        with _OPENING:
            connection = sqlite3.connect(
                address,
                uri=True,
                timeout=BUSY_SECONDS if busy_seconds is None else busy_seconds,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            # In one statement, so that one which another process is just making is seen whole or not at all.
            ours, version, tables = connection.execute(
                "SELECT (SELECT application_id FROM pragma_application_id), "
                "(SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_master)"
            ).fetchone()
            if ours != _APPLICATION_ID and (ours or tables):
                raise StoreDamagedError(f"{self.path} is another program's database, and holds no keys. {WHAT_TO_DO}")
            if version > _VERSION:
                raise StoreVersionError(
                    f"{self.path} was written by a newer version of latent-memory (version {version}; this one knows "
                    f"up to {_VERSION}). Upgrade with: pip install -U latent-memory"
                )
            if not (ours or new):
                connection.close()
                return None
            switch_to_wal(connection)
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            # On macOS a plain fsync leaves data in the drive's cache.
            connection.execute("PRAGMA fullfsync = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make(self) -> None:
        """Make the file for its owner alone, unless it is there; what SQLite puts beside it gets the same mode."""
        with as_ours(self.path):
            self._directory.mkdir(parents=True, exist_ok=True)
            # Closing a file takes this process's locks on it away, SQLite's too: no thread may open it meanwhile.
            with _OPENING:
                try:
                    # With its mode from the start: one that is set afterwards comes too late.
                    os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                except FileExistsError:
                    return
            flush_directory(self._directory)


@dataclass(slots=True)
class _Kept:
    """A connection that stays open, for one thread at a time, and which file it is of."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    connection: sqlite3.Connection | None = None
    place: Place | None = None

    def drop(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


# Connections of a parent process; see KeyFile._check_process.
_INHERITED: list[object] = []
_OPENING = threading.Lock()
