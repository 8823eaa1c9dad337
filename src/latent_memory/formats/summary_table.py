"""Summaries in a table of an SQLite database: read without a trace, written as a whole or not at all.

Knows nothing of what the columns mean; rows go in and come out as mappings from column to value.
"""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError, StoreError, StoreFullError
from latent_memory.files import written

HEADER = b"SQLite format 3\0"

_BUSY_SECONDS = 10.0
# Steps of SQLite's machine. Reading a row of a table takes some twenty of them.
_STEPS, _FREE_STEPS, _STEPS_PER_BYTE = 10_000, 5_000_000, 100
# A summary, or whatever else stands beside it.
_MOST_BYTES = 1 << 26
# In the header, a file of which changes go to a log first says so here.
_WRITES_LOG = slice(18, 20)


class NotThereError(InputError):
    """The database has no such table or column, which leaves nothing to pass over."""


def rows(
    path: Path, table: str, fields: Mapping[str, str], needed: Collection[str]
) -> Generator[dict[str, Any], None, None]:
    """Yield the rows of a table, one at a time, each as a mapping from column to value.

    A column of bytes is left out, unless a field is taken from it; a text that is not UTF-8 comes as bytes.

    Args:
        path: of the database, which stays as it is to the byte, and beside which nothing is written.
        table: its name.
        fields: the columns that fields are taken from. As SQLite does, names are compared without regard to case; in a
            row they are written as here.
        needed: those of the fields of which the column must be there.

    Raises:
        NotThereError: if the table or a column is not there; the message lists those that are.
        InputError: if it is no database that can be read.
    """
    names = {name.lower(): name for name in fields.values()}
    with _opened(path) as connection:
        columns = _columns(connection, table, {field: fields[field] for field in fields if field in needed})
        for row in connection.execute(f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(table)}"):
            yield {
                names.get(column.lower(), column): value
                for column, value in zip(columns, row, strict=True)
                if not isinstance(value, bytes) or column.lower() in names
            }


def tables(path: Path) -> list[str]:
    """Return the names of a database's tables and views.

    Raises:
        InputError: if it is no database that can be read.
    """
    with _opened(path) as connection:
        return _tables(connection)


def write(path: Path, table: str, columns: Sequence[str], records: Iterable[Sequence[Any]]) -> None:
    """Put a database that holds one table in the place of what is there.

    Args:
        path: of the file.
        table: its name.
        columns: names and types; the first is the primary key.
        records: the rows.

    Raises:
        InputError: if the file is a database that holds other tables, or that is in use.
        StoreError, StoreFullError: if it cannot be written; what was there is as it was.
    """
    path = path.resolve()
    _check_replaceable(path, table)
    with written(path) as file:
        try:
            # Of this file nobody knows yet, so it needs no journal.
            with closing(sqlite3.connect(file.name, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = OFF")
                connection.execute("PRAGMA synchronous = OFF")
                connection.execute("BEGIN")
                connection.execute(f"CREATE TABLE {_quoted(table)} ({', '.join(columns)})")
                places = ", ".join("?" * len(columns))
                connection.executemany(f"INSERT INTO {_quoted(table)} VALUES ({places})", records)
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise StoreFullError(
                    f"{path}: the disk is full. The file is as it was; free some space and call again"
                ) from error
            if code == sqlite3.SQLITE_ERROR:
                raise InputError(f"table {table!r}: {error}") from None
            raise StoreError(f"cannot write {path}: {error}") from error


def _check_replaceable(path: Path, table: str) -> None:
    for suffix in ("-wal", "-journal"):
        if path.with_name(path.name + suffix).exists():
            raise InputError(f"{path}: another program has it open, or was killed; close it, or name another file")
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(HEADER)) != HEADER:
            return
    if others := [name for name in tables(path) if name.lower() != table.lower()]:
        raise InputError(f"{path}: holds other tables too ({_listed(others)}); name another file")


# -- opening ------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database so that it can only be read, and turn SQLite's errors into ours."""
    try:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary,
            closing(_connection(path, Path(temporary))) as connection,
        ):
            connection.execute("PRAGMA query_only = ON")
            # Nothing in the file gets a function called that changes anything.
            connection.execute("PRAGMA trusted_schema = OFF")
            # A view may make rows without end, or a text that fills the memory.
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
            most = (_FREE_STEPS + _STEPS_PER_BYTE * path.stat().st_size) // _STEPS
            done = itertools.count(1)
            connection.set_progress_handler(lambda: next(done) > most, _STEPS)
            connection.text_factory = _text
            yield connection
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise InputError(f"another program has been writing for {_BUSY_SECONDS:.0f} s; try again later") from None
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise InputError(
                f"cannot be read as it is ({error}); open it once with the program it belongs to, and close that"
            ) from None
        if code == sqlite3.SQLITE_INTERRUPT:
            raise InputError("takes far more work to read than a database of its size should; refused") from None
        raise InputError(f"not readable as an SQLite database ({error})") from None


def _connection(path: Path, temporary: Path) -> sqlite3.Connection:
    options = "mode=ro"
    with path.open("rb") as file:
        logs = file.read(100)[_WRITES_LOG] == b"\2\2"
    if logs:
        # SQLite would make files beside it, and as a reader not take them away again.
        log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
        if not log.exists():
            # Then nobody has it open, and its pages change only together with the file's time, which importers watch.
            options += "&immutable=1"
        elif not index.exists():
            # A copy, or what a killed program has left.
            for file_ in (path, log):
                shutil.copy(file_, temporary / file_.name)
            path = temporary / path.name
    uri = f"{path.resolve().as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _tables(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
        "ORDER BY name"
    )
    return [str(name) for (name,) in found]


def _columns(connection: sqlite3.Connection, table: str, needed: Mapping[str, str]) -> list[str]:
    """Return the table's columns."""
    there = _tables(connection)
    if table.lower() not in {name.lower() for name in there}:
        has = f"there are {_listed(there)}" if there else "the database has none"
        raise NotThereError(f"there is no table {table!r}; {has}. Name one with --table NAME")
    columns = [str(row[1]) for row in connection.execute(f"PRAGMA table_info({_quoted(table)})")]
    known = {column.lower() for column in columns}
    missing = {field: name for field, name in needed.items() if name.lower() not in known}
    if missing:
        told = ", ".join(repr(name) for name in missing.values())
        raise NotThereError(
            f"table {table!r} has no column {told}; there are {_listed(columns)}. Say which one it is with "
            f"{' '.join(f'--column {field}=NAME' for field in missing)}"
        )
    return columns


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name if len(name) <= 40 else name[:37] + "..." for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _quoted(name: str) -> str:
    if "\0" in name:
        raise InputError(f"{name!r} is no name of a table or column")
    return '"' + name.replace('"', '""') + '"'
