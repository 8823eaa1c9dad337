"""The database file: connections, transactions, and SQLite's errors in our words.

Knows nothing of what the tables mean.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from latent_memory.errors import StoreBusyError, StoreDamagedError, StoreError, StoreFullError
from latent_memory.migrations import APPLICATION_ID, migrate

FILE_NAME = "memory.sqlite"
BUSY_SECONDS = 60.0

_A_FILE = "{} is a file, and a store is a directory; name another place with --store"

# SQLite takes at most 32,766 bound values in one statement; ids go in slices.
_SLICE = 10_000


_DAMAGED = "Restore the file from a backup, or move it away to begin a new store"
_FULL = (
    "The batch at hand was not kept; everything before it is safe. Free some space and call again: what is stored "
    "already costs nothing"
)


@contextmanager
def translated(path: Path, *, damaged: str = _DAMAGED, full: str = _FULL) -> Iterator[None]:
    """Turn SQLite's errors into ours, each with the path and what to do.

    Args:
        path: the database file.
        damaged: what to do where it cannot be read.
        full: what became of the data at hand where the disk is full, and what to do.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            raise StoreBusyError(
                f"{path}: another process has been writing for {BUSY_SECONDS:.0f} s; try again later"
            ) from error
        if code == sqlite3.SQLITE_FULL:
            raise StoreFullError(f"{path}: the disk is full. {full}") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreDamagedError(f"{path}: not readable as a database ({error}). {damaged}") from error
        raise StoreError(f"{path}: {error}") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Run one write transaction on a connection in autocommit mode: all of it, or nothing if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def exists(directory: Path) -> bool:
    """Tell whether there is a store in a directory.

    Raises:
        StoreError: if the path is a file, or cannot be looked at.
    """
    try:
        if directory.is_file():
            raise StoreError(_A_FILE.format(directory))
        return (directory / FILE_NAME).is_file()
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot look into {str(directory)[:80]}: {error.args[-1]}") from None


class Database:
    """The database in a directory. Safe to use from several threads; each gets its own connection.

    A process that was forked from one with an open database gets connections of its own: SQLite's must not be carried
    over.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self.directory = directory
        self._durable = durable
        self.path = directory / FILE_NAME
        self._closed = False
        self._begin_process()
        with self.translated():
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise StoreError(_A_FILE.format(directory)) from None
            except OSError as error:
                raise StoreError(f"cannot create the store {directory}: {error.strerror}") from None
            try:
                with self._using() as connection:
                    migrate(connection, str(self.path))
            except BaseException:
                self.close()
                raise

    def _begin_process(self) -> None:
        self._process = os.getpid()
        self._local = threading.local()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._opening = threading.Lock()
        # Writers in this process wait here, those of others in SQLite.
        self._turn_to_write = threading.RLock()

    # -- connections and transactions ---------------------------------------------------------------------

    @property
    def _held(self) -> _Connection:
        """This thread's connection."""
        if self._process != os.getpid():
            # Closing what the parent opened would take its locks away; so they are left alone, and kept from the
            # garbage collector, which would close them.
            _INHERITED.append((self._local, list(self._open)))
            self._begin_process()
        held: _Connection | None = getattr(self._local, "held", None)
        if held is None:
            if self._closed:
                raise self._was_closed()
            held = self._local.held = _Connection(self._connect())
            with self._opening:
                self._open.add(held)
        return held

    def _was_closed(self) -> StoreError:
        return StoreError(f"the memory at {self.directory} was closed; open it again")

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """Use this thread's connection; it is not closed meanwhile."""
        with self.translated(), self._held.using() as connection:
            if connection is None:
                raise self._was_closed()
            yield connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            # In one statement, so that a store which another process is just making is seen whole or not at all.
            ours, tables = connection.execute(
                "SELECT (SELECT application_id FROM pragma_application_id), (SELECT count(*) FROM sqlite_master)"
            ).fetchone()
            if ours != APPLICATION_ID and (ours or tables):
                raise StoreDamagedError(f"{self.path} is another program's database, not a Latent Memory store")
            switch_to_wal(connection)
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
            # On macOS a plain fsync leaves data in the drive's cache.
            connection.execute("PRAGMA fullfsync = ON")
            connection.execute("PRAGMA foreign_keys = ON")
            # What is forgotten is overwritten with zeros in the file, not only unlinked.
            connection.execute("PRAGMA secure_delete = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close every thread's connection, as soon as it does nothing. The database cannot be used afterwards."""
        self._closed = True
        if self._process != os.getpid():
            return
        with self._opening:
            for held in list(self._open):
                held.close()
            self._open.clear()
            self._local = threading.local()

    def changes(self) -> int:
        """Return a number that differs when this thread has written anything in between."""
        with self._using() as connection:
            return connection.total_changes

    def empty_log(self) -> None:
        """Bring the write-ahead log into the database file and empty it, unless another process is reading it.

        A log keeps what was deleted until it is overwritten.
        """
        with self._using() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def translated(self) -> AbstractContextManager[None]:
        """Turn SQLite's errors into ours, each with the path and what to do."""
        return translated(self.path)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all reads inside see one state of the database."""
        with self._using() as connection:
            if connection.in_transaction:
                yield
                return
            connection.execute("BEGIN")
            try:
                yield
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Run one write transaction: all of it, or nothing if it raises."""
        with self._turn_to_write, self._using() as connection, transaction(connection):
            yield connection

    def rows(self, sql: str, *values: object) -> list[Any]:
        """Run a query and return all its rows."""
        with self._using() as connection:
            return connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: object) -> Any:
        """Run a query and return its first row, or None."""
        with self._using() as connection:
            return connection.execute(sql, values).fetchone()

    def rows_among(self, sql: str, ids: Sequence[Any], *values: object) -> list[Any]:
        """Run a query whose `{ids}` stands for any number of values, which come after the other values."""
        found: list[Any] = []
        for start in range(0, len(ids), _SLICE):
            part = ids[start : start + _SLICE]
            found += self.rows(sql.format(ids=",".join("?" * len(part))), *values, *part)
        return found


# Connections of a parent process; see Database._connection.
_INHERITED: list[object] = []


class _Connection:
    """A thread's connection, which is closed when the thread ends, or by another one when it is not in use."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection: sqlite3.Connection | None = connection
        # SQLite crashes if a connection is closed under a statement that runs.
        self._lock = threading.RLock()

    @contextmanager
    def using(self) -> Iterator[sqlite3.Connection | None]:
        """Keep the connection from being closed meanwhile; None if it is already."""
        with self._lock:
            yield self._connection

    def close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()


def switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging, which SQLite does not wait for by itself while another process has a lock."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
