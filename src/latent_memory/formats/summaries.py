"""Summaries alone, as keyword memories are kept: JSON, YAML, or a table of an SQLite database.

    {"conversation_id", "title", "timestamp", "type", "summary"}

Each becomes a conversation without turns. Only `summary` is needed (and in a table `conversation_id`); what else
stands beside it is metadata. A time is read as people write it (see `times.read_time`), and where that is not ISO 8601
what was written is kept in the metadata, as `timestamp_as_written`. docs/summaries.md shows every shape.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

from latent_memory import json_stream, messages
from latent_memory.errors import InputError
from latent_memory.files import written
from latent_memory.formats import SUMMARY_SUFFIXES, plain_yaml, summary_table
from latent_memory.formats.plain_yaml import Object, typed
from latent_memory.records import Conversation
from latent_memory.times import read_time

KINDS = ("json", "yaml", "sqlite")
FIELDS = ("conversation_id", "title", "timestamp", "type", "summary")
TABLE = "conversation_summaries"
AS_WRITTEN = "timestamp_as_written"

OnBad = Callable[[InputError], None]

# Keys under which a file may have the list of its memories.
LISTS = ("conversations", "memories", "summaries", TABLE)
# What cannot stand beside the five fields, because it would be read as something else.
_TAKEN = {*FIELDS, "metadata", "messages"}
# The first line of a JSON file is looked at to tell one object from one a line.
_LONGEST_LINE = 1 << 24
_BLANK = b"\xef\xbb\xbf \t\r\n"
_COLUMNS = ("conversation_id TEXT PRIMARY KEY", "title TEXT", "timestamp TEXT", "type TEXT", "summary TEXT")


def read(
    path: Path,
    *,
    kind: str | None = None,
    table: str = TABLE,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    on_bad: OnBad | None = None,
) -> Iterator[Conversation]:
    """Read the summaries of a file, one at a time.

    JSON arrays, lists in YAML and tables are read in bounded memory, whatever their length.

    Args:
        path: the file; it is never changed.
        kind: one of KINDS; by default the content tells, and where it does not the suffix.
        table: the table's name, in an SQLite database.
        columns: for fields that have another name in the file, that name: {"summary": "text"}.
        name: what messages call the file.
        on_bad: called with the error of each entry that cannot be used, which is then left out; without it the first
            such error is raised. What follows a mistake in the JSON or YAML is left out with it.

    Raises:
        MissingExtraError: for YAML, if PyYAML is not installed.
        InputError: if the file cannot be read, has no such table or column, or an entry cannot be used; the message
            says where.
    """
    name = name or str(path)
    names = _names(columns)
    try:
        near = datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(microsecond=0)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    try:
        kind = _told_kind(path, kind)
        with ExitStack() as stack:
            if kind == "sqlite":
                needed = {"conversation_id", "summary", *(columns or ())}
                rows = stack.enter_context(closing(summary_table.rows(path, table, names, needed)))
                found = _numbered("row", rows)
            else:
                found = _json(path, names) if kind == "json" else _yaml(path, names)
            places = stack.enter_context(closing(_Places()))
            yield from _read(found, names, near, places, name, on_bad)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from None


def write(path: Path, conversations: Iterable[Conversation], *, kind: str | None = None, table: str = TABLE) -> None:
    """Put a file with the summaries of conversations in the place of what is there, as a whole or not at all.

    JSON and YAML carry metadata beside the five fields; a table has the five. A time is written as it was written
    where it came from, if that is known and says the same today; else in ISO 8601. Turns are not written.

    Args:
        path: of the file.
        conversations: any iterable; it is passed through in bounded memory.
        kind: one of KINDS; by default the suffix tells.
        table: the table's name, in an SQLite database.

    Raises:
        MissingExtraError: for YAML, if PyYAML is not installed.
        InputError: if a conversation has no summary, two have the same id, nothing tells the kind, or the file is a
            database that holds other tables.
        StoreError, StoreFullError: if it cannot be written. Whatever is raised, the file is as it was.
    """
    kind = _checked(kind) or SUMMARY_SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: its suffix does not say what it is; use one of {', '.join(SUMMARY_SUFFIXES)}")
    with closing(_Places()) as places:
        records = _records(conversations, places)
        if kind == "sqlite":
            summary_table.write(path, table, _COLUMNS, (tuple(map(_cell, five.values())) for five, _ in records))
            return
        with written(path) as file:
            if kind == "yaml":
                put, empty = plain_yaml.writer(file), True
                for five, rest in records:
                    put(five | rest)
                    empty = False
                file.write(b"[]\n" if empty else b"")
                return
            file.write(b"[")
            for number, (five, rest) in enumerate(records):
                file.write(b",\n" if number else b"\n")
                file.write(json.dumps(five | rest, ensure_ascii=False).encode())
            file.write(b"\n]\n")


# -- reading: what a file holds -----------------------------------------------------------------------------


def _names(columns: Mapping[str, str] | None) -> dict[str, str]:
    for field, column in (columns or {}).items():
        if field not in FIELDS:
            raise InputError(f"--column: there is no field {field!r}; the fields are {', '.join(FIELDS)}")
        if not column:
            raise InputError(f"--column: {field} is taken from nothing; name the column, as in {field}=NAME")
    return {field: field for field in FIELDS} | dict(columns or {})


def _checked(kind: str | None) -> str | None:
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind: {kind!r} is unknown; use one of {', '.join(KINDS)}")
    return kind


def _told_kind(path: Path, kind: str | None) -> str:
    if _checked(kind) is not None:
        return str(kind)
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(summary_table.HEADER):
        return "sqlite"
    told = SUMMARY_SUFFIXES.get(path.suffix.lower())
    return told or ("json" if start.lstrip(_BLANK)[:1] in (b"[", b"{") else "yaml")


def _numbered(what: str, values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{what} {number}", value) for number, value in enumerate(values, start=1))


def _json(path: Path, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        if not _is_object(file):
            yield from _numbered("entry", json_stream.values(file))
            return
        try:
            whole = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=Object)
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 (byte {error.start})") from None
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
            raise InputError(f"not JSON ({reason})") from None
        yield from _of_object(whole, names)


def _is_object(file: IO[bytes]) -> bool:
    """Tell whether a file is one JSON object, and neither an array nor an object a line; goes back to its beginning."""
    begins = file.read(4096).lstrip(_BLANK)[:1]
    file.seek(0)
    if begins != b"{":
        return False
    lines = iter(partial(file.readline, _LONGEST_LINE), b"")
    first = next((line for line in lines if line.strip(_BLANK)), b"")
    more = file.read(1024).strip()
    file.seek(0)
    try:
        json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return True
    return not more


def _yaml(path: Path, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for line, value in plain_yaml.documents(file):
            # A document that is one mapping may hold many; a list's elements are one each.
            several = isinstance(value, dict) and _form(value, names) in ("list", "by id")
            for where, entry in _of_object(value, names) if several else [(f"line {line}", value)]:
                yield where, _as_data(entry, names)


def _as_data(entry: Any, names: Mapping[str, str]) -> Any:
    """Return an entry of a YAML file as JSON has it; what its five fields say stays as it is written."""
    if not isinstance(entry, dict):
        return typed(entry)
    fields = set(names.values())

    def data(key: str, value: Any) -> Any:
        as_written = isinstance(value, str) and key in fields and not plain_yaml.is_null(value)
        return str(value) if as_written else typed(value)

    return {key: data(key, value) for key, value in entry.items()}


def _form(value: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Tell what an object is: one memory ("one"), a "list" of them under a key, or memories "by id"."""
    if isinstance(value.get(names["summary"]), str):
        return "one"
    if any(isinstance(value.get(key), (list, dict)) for key in LISTS):
        return "list"
    if any(name in value for name in names.values()):
        return "one"
    each = list(value.values())
    if all(isinstance(inner, dict) for inner in each) or all(isinstance(inner, str) for inner in each):
        return "by id"
    return "none"


def _of_object(value: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    form = _form(value, names)
    if form == "one":
        yield "", value
    elif form == "list":
        key = next(key for key in LISTS if isinstance(value.get(key), (list, dict)))
        if isinstance(value[key], dict):
            yield from _by_id(value[key], names)
        else:
            yield from ((f"{key}[{number}]", entry) for number, entry in enumerate(value[key]))
    elif form == "by id":
        yield from _by_id(value, names)
    else:
        raise InputError(
            f'no summaries: an object with a "{names["summary"]}" was expected, a list of such objects, or an object '
            "of them by id"
        )


def _by_id(value: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    twice = set(value.twice) if isinstance(value, Object) else set()
    for key, entry in value.items():
        where = repr(key if len(key) <= 40 else key[:37] + "...")
        if key in twice:
            yield where, InputError("stands twice in the object, and only the last of the two can be read")
        elif isinstance(entry, dict):
            yield where, {names["conversation_id"]: key} | entry
        elif isinstance(entry, str):
            yield where, {names["conversation_id"]: key, names["summary"]: entry}
        else:
            yield where, entry


# -- reading: one entry -------------------------------------------------------------------------------------


def _read(
    found: Iterator[tuple[str, Any]],
    names: Mapping[str, str],
    near: datetime,
    places: _Places,
    name: str,
    on_bad: OnBad | None,
) -> Iterator[Conversation]:
    while True:
        where = ""
        try:
            where, entry = next(found)
            conversation = _conversation(entry, names, near)
            places.take(conversation.conversation_id, where)
        except StopIteration:
            return
        except InputError as error:
            located = InputError(f"{name}, {where}: {error}" if where else f"{name}: {error}")
            # A table that is not there is a mistake of the call, and leaves nothing.
            if on_bad is None or isinstance(error, summary_table.NotThereError):
                raise located from None
            on_bad(located)
            continue
        yield conversation


def _conversation(entry: Any, names: Mapping[str, str], near: datetime) -> Conversation:
    if isinstance(entry, InputError):
        raise entry
    if not isinstance(entry, dict):
        raise InputError(f"an object was expected, not {_word(entry)}")
    if entry.get("messages"):
        raise InputError('it has "messages", so it is a conversation and no summary alone; add it with --from jsonl')
    texts = {field: _text(entry.get(names[field]), names[field]) for field in FIELDS if field != "timestamp"}
    summary = texts["summary"]
    if summary is None or not summary.strip():
        has = "empty" if summary is not None else "null" if names["summary"] in entry else "none"
        raise InputError(f'"{names["summary"]}": a text was expected, not {has}')
    own = entry.get("metadata")
    if own is not None and not isinstance(own, dict):
        raise InputError(f'"metadata": an object was expected, not {_word(own)}')
    used = {"metadata", "messages", *names.values()}
    metadata = {key: value for key, value in entry.items() if key not in used and value is not None} | (own or {})
    timestamp, generated, as_written = _time(entry.get(names["timestamp"]), near)
    if as_written is not None:
        metadata[AS_WRITTEN] = as_written
    return Conversation(
        texts["conversation_id"],
        title=texts["title"],
        timestamp=timestamp,
        type=texts["type"],
        summary=summary,
        metadata=metadata,
        generated=generated,
    )


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    what = "bytes, or a text that is not UTF-8" if isinstance(value, bytes) else _word(value)
    raise InputError(f'"{name}": a text was expected, not {what}')


def _word(value: Any) -> str:
    return messages.kind(dict(value) if isinstance(value, dict) else value)


def _time(value: Any, near: datetime) -> tuple[datetime, frozenset[str], Any]:
    """Return when it was, the mark of what the file's time was needed for, and what was written if that says more."""
    if isinstance(value, bytes):
        raise InputError('"timestamp": a text or a number was expected, not bytes, or a text that is not UTF-8')
    if value is None or (isinstance(value, str) and not value.strip()):
        return near, frozenset({"timestamp:file"}), None
    told = read_time(value)
    if told is not None:
        return told, frozenset(), None if value == told.isoformat() else value
    # Without a year, or no time at all: as good as the file's own, and so is its mark.
    return read_time(value, near) or near, frozenset({"timestamp:file"}), value


# -- writing ------------------------------------------------------------------------------------------------


def _records(conversations: Iterable[Conversation], places: _Places) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the five fields of each conversation, and what stands beside them."""
    now = datetime.now(UTC)
    for number, conversation in enumerate(conversations, start=1):
        where = f"conversation {number}"
        if not conversation.summary:
            raise InputError(
                f"{where} ({conversation.conversation_id!r}): has no summary; a memory that it is added to makes one"
            )
        try:
            places.take(conversation.conversation_id, where)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        five: dict[str, Any] = {field: getattr(conversation, field) for field in FIELDS}
        rest = dict(conversation.metadata)
        if conversation.timestamp is not None:
            five["timestamp"] = conversation.timestamp.isoformat()
            if _says(rest.get(AS_WRITTEN), conversation, now):
                five["timestamp"] = rest.pop(AS_WRITTEN)
        inner = {key: value for key, value in rest.items() if key in _TAKEN or value is None}
        beside = {key: value for key, value in rest.items() if key not in inner}
        yield five, beside | ({"metadata": inner} if inner else {})


def _says(as_written: Any, conversation: Conversation, now: datetime) -> bool:
    """Tell whether what was written once would be read today as the conversation's time."""
    if isinstance(as_written, bool) or not isinstance(as_written, (str, int, float)):
        return False
    told = read_time(as_written, now)
    if told is None:
        return any(mark.startswith("timestamp:") for mark in conversation.generated)
    return told == conversation.timestamp


def _cell(value: Any) -> Any:
    # SQLite's whole numbers have 64 bits.
    return str(value) if isinstance(value, int) and abs(value) >= 1 << 63 else value


class _Places:
    """Where each id stands, to tell when one comes again. On disk, so that a million take no memory."""

    def __init__(self) -> None:
        # A name of nothing is a temporary database, which its own cache keeps in memory while it is small.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE places (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def take(self, identifier: str | None, where: str) -> None:
        """Keep the place of an id.

        Raises:
            InputError: if it has one; the message says which.
        """
        if identifier is None:
            return
        try:
            self._database.execute("INSERT INTO places VALUES (?, ?)", (identifier, where))
        except sqlite3.IntegrityError:
            (place,) = self._database.execute("SELECT place FROM places WHERE id = ?", (identifier,)).fetchone()
            shown = repr(identifier if len(identifier) <= 60 else identifier[:57] + "...")
            raise InputError(f'"conversation_id": {shown} is that of {place} too') from None

    def close(self) -> None:
        """Forget them."""
        self._database.close()
