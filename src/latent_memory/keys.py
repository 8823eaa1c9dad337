"""API keys of a store: who may come in through a server, to which scopes, and whether only to read.

A key is a text, `lmem_<id>_<secret>`: the id names it in listings, the secret is 32 random bytes. Only its SHA-256 is
kept. A slow hash, as passwords need, would gain nothing: nobody can try 256 random bits, and every request would wait
for it.

They lie in a small database of their own, `keys.sqlite` in the store's directory, so that they can be listed and
revoked also where the memory beside them is damaged. A key that was revoked or has expired stays there for good: a
listing tells of it, and that there was one keeps the door shut. Knows nothing of HTTP.
"""

from __future__ import annotations

import builtins
import hashlib
import hmac
import json
import re
import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from latent_memory.database import transaction
from latent_memory.errors import InputError, StoreDamagedError, StoreError
from latent_memory.formats import STORE, layout_of
from latent_memory.key_file import WHAT_TO_DO, KeyFile
from latent_memory.query import check_scope, checked_texts
from latent_memory.records import check_text
from latent_memory.times import parse_time

PREFIX = "lmem_"

# Letters and digits of base32, which nobody mistakes for one another; the id has none of the secret's "-" and "_".
_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH = 10
_SECRET_BYTES = 32
_ID = re.compile(r"[a-z2-7]{10}")
_KEY = re.compile(r"lmem_([a-z2-7]{10})_[A-Za-z0-9_-]{43}")

_COLUMNS = "key_id, name, scopes, prefixes, every_scope, read_only, created, expires, last_used, revoked"
_Row = tuple[str, str | None, str, str, int, int, int, int | None, int | None, int | None]

# What an unknown id's key is compared with, so that it takes as long as a wrong key of a known one.
_NOBODY = bytes(32)
_MOST_NAMED = 500
_MOST_NAME_CHARACTERS = 200
_TOUCH_SECONDS = 60

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DURATION = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

State = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What is known of a key; the key itself is not.

    Attributes:
        key_id: the part of the key that may be shown.
        name: what its owner calls it.
        scopes: names of the scopes that it opens.
        prefixes: it opens each scope whose name begins with one of these, also one that is not there yet.
        every_scope: it opens all scopes.
        read_only: it opens them for recall only.
        created, expires, last_used, revoked: in UTC; `last_used` to about a minute. None for never.
    """

    key_id: str
    name: str | None
    scopes: frozenset[str]
    prefixes: tuple[str, ...]
    every_scope: bool
    read_only: bool
    created: datetime
    expires: datetime | None = None
    last_used: datetime | None = None
    revoked: datetime | None = None

    def opens(self, scope: str) -> bool:
        """Tell whether it opens a scope, as long as it is active."""
        return self.every_scope or scope in self.scopes or scope.startswith(self.prefixes)

    @property
    def only_scope(self) -> str | None:
        """The one scope that it opens, where a request need not name one; None if it may open others."""
        if self.every_scope or self.prefixes or len(self.scopes) != 1:
            return None
        return next(iter(self.scopes))

    def state(self, now: datetime | None = None) -> State:
        """Tell whether it is active, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and self.expires <= _utc(now):
            return "expired"
        return "active"


class KeyRing:
    """The keys of a store. Safe to use from several threads, and several processes may have the same one open.

    A ring that has no file yet makes one when the first key is created, and not before; what another process creates
    or revokes counts at once.

    Args:
        path: the store's directory; it need not be there yet.

    Raises:
        InputError: if a memory lives there that is no store.
        StoreError: if the path cannot be looked at.
    """

    def __init__(self, path: str | Path) -> None:
        directory = Path(path).expanduser()
        try:
            layout = layout_of(directory)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise StoreError(f"cannot look into {str(path)[:80]}: {error.args[-1]}") from None
        if layout != STORE:
            raise InputError(
                f"{path}: is a memory of the format {layout}, and keys need a store; make one with: "
                f"latent-memory convert {path} DIRECTORY --format {STORE}"
            )
        self._file = KeyFile(directory)
        self._required = self._file.place() is not None
        self._touched: dict[str, int] = {}

    @property
    def path(self) -> Path:
        """The database file, whether or not it is there yet."""
        return self._file.path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; it cannot be used afterwards."""
        self._file.close()

    # -- what a request asks ------------------------------------------------------------------------------

    @property
    def required(self) -> bool:
        """Whether a key must be shown: as soon as one was ever created, and for good.

        What counts is that the file is there. So neither revoking the last key opens the door, nor does a file that
        was cut to nothing; and as long as this ring is open, not even removing the file does.

        Raises:
            StoreError: if the file cannot be looked at.
        """
        if not self._required and self._file.place() is not None:
            self._required = True
        return self._required

    def verify(self, text: str, now: datetime | None = None) -> KeyInfo | None:
        """Return what a key opens, or None if it is none of ours, or is not active.

        Reads one row, and sees at once what other processes have changed.

        Raises:
            StoreError: if the database cannot be read. Nobody may come in then.
        """
        parsed = _KEY.fullmatch(text)
        if parsed is None:
            return None
        digest = hashlib.sha256(text.encode()).digest()
        row: tuple[bytes, _Row] | None = None
        with self._file.reading() as connection:
            if connection is not None:
                query = f"SELECT digest, {_COLUMNS} FROM keys WHERE key_id = ?"
                # To the end, so that no snapshot stays open: the next reading would not see what was revoked.
                for found in connection.execute(query, (parsed[1],)).fetchall():
                    row = found[0], found[1:]
        known = hmac.compare_digest(digest, row[0] if row else _NOBODY)
        if row is None or not known:
            return None
        info = self._info(row[1])
        return info if info.state(now) == "active" else None

    def touch(self, key_id: str, now: datetime | None = None) -> None:
        """Note that a key was used; written at most once a minute for each key and process.

        What cannot be written now, because another process writes or the disk is full, is left out for that minute: no
        request should wait for it, or fail.
        """
        at = _microseconds(_utc(now))
        before = self._touched.get(key_id)
        if before is not None and abs(at - before) < _TOUCH_SECONDS * 1_000_000:
            return
        self._touched[key_id] = at
        try:
            with self._file.noting() as connection:
                if connection is not None:
                    later = "UPDATE keys SET last_used = ? WHERE key_id = ? AND (last_used IS NULL OR last_used < ?)"
                    connection.execute(later, (at, key_id, at))
        except StoreError as error:
            if not isinstance(error.__cause__, sqlite3.OperationalError):
                raise

    # -- what its owner does ------------------------------------------------------------------------------

    def create(
        self,
        scopes: str | Iterable[str] = (),
        prefixes: str | Iterable[str] = (),
        every_scope: bool = False,
        read_only: bool = False,
        expires: datetime | timedelta | str | None = None,
        name: str | None = None,
        now: datetime | None = None,
    ) -> tuple[str, KeyInfo]:
        """Create a key. At least one scope, a prefix, or every scope must be named.

        Args:
            scopes: names of the scopes that it opens.
            prefixes: beginnings of names of scopes that it opens. End one with a mark that no name goes on with:
                "app" opens "apple" too, and "app:" does not.
            every_scope: let it open all scopes; goes without the other two.
            read_only: for recall only.
            expires: when it ends, or in what time: a text such as "90d", "12h", "30m" or "2w". A time without a zone
                counts as UTC.
            name: to tell it from others in a listing.
            now: the present, if it is another than the clock's.

        Returns:
            The key, which cannot be told again, and what is known of it. It is on disk.

        Raises:
            InputError: if the key would open nothing, or end before it begins; nothing was created.
            StoreError: if it cannot be written.
        """
        present = _utc(now)
        info = KeyInfo(
            key_id="".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH)),
            name=_checked_name(name),
            scopes=frozenset(checked_texts(scopes, "scopes")),
            prefixes=tuple(dict.fromkeys(checked_texts(prefixes, "prefixes"))),
            every_scope=bool(every_scope),
            read_only=bool(read_only),
            created=present,
            expires=_expiry(expires, present),
        )
        _check_opens(info)
        text = f"{PREFIX}{info.key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        with self._file.filling() as connection:
            # An id that is there already, once in 10^15, is an error and no key.
            connection.execute(
                f"INSERT INTO keys (digest, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                (
                    hashlib.sha256(text.encode()).digest(),
                    info.key_id,
                    info.name,
                    json.dumps(sorted(info.scopes)),
                    json.dumps(info.prefixes),
                    info.every_scope,
                    info.read_only,
                    _microseconds(info.created),
                    None if info.expires is None else _microseconds(info.expires),
                ),
            )
        self._required = True
        return text, info

    def revoke(self, key_id: str, now: datetime | None = None) -> bool:
        """Let a key open nothing any more, from the next request on; it cannot be taken back.

        Returns:
            Whether there is such a key, also if it was revoked before.
        """
        with self._file.opened() as connection:
            if connection is None:
                return False
            with transaction(connection):
                done = connection.execute(
                    "UPDATE keys SET revoked = coalesce(revoked, ?) WHERE key_id = ?",
                    (_microseconds(_utc(now)), key_id),
                )
                return done.rowcount > 0

    def list(self) -> builtins.list[KeyInfo]:
        """Return all keys there have ever been, the oldest first."""
        with self._file.opened() as connection:
            query = f"SELECT {_COLUMNS} FROM keys ORDER BY created, key_id"
            rows = [] if connection is None else connection.execute(query).fetchall()
        return [self._info(row) for row in rows]

    def _info(self, row: _Row) -> KeyInfo:
        key_id, name, scopes, prefixes, every_scope, read_only, created, expires, last_used, revoked = row
        try:
            return KeyInfo(
                key_id=key_id,
                name=name,
                scopes=frozenset(_texts(scopes)),
                prefixes=tuple(_texts(prefixes)),
                every_scope=bool(every_scope),
                read_only=bool(read_only),
                created=_BEGINNING + created * _MICROSECOND,
                expires=_time(expires),
                last_used=_time(last_used),
                revoked=_time(revoked),
            )
        except (ValueError, TypeError, ArithmeticError) as error:
            raise StoreDamagedError(
                f"{self.path}: what is stored of a key cannot be read ({error}). {WHAT_TO_DO}"
            ) from None


def id_of(text: str) -> str | None:
    """Return the id in a key, or an id itself; None for anything else."""
    parsed = _KEY.fullmatch(text)
    if parsed is not None:
        return parsed[1]
    return text if _ID.fullmatch(text) else None


def _texts(stored: str) -> list[str]:
    texts = json.loads(stored)
    # A text is a sequence of texts, too: "ana" would open "a" and "n".
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("not a list of texts")
    return texts


def _check_opens(info: KeyInfo) -> None:
    """Raise InputError unless a key opens something, and each thing once."""
    named = [*info.scopes, *info.prefixes]
    if info.every_scope and named:
        raise InputError("every scope: goes without scopes and prefixes; either all of them, or those that are named")
    if not info.every_scope and not named:
        raise InputError("scopes: none; name at least one scope or prefix that the key opens, or every scope")
    if len(named) > _MOST_NAMED:
        raise InputError(
            f"scopes: {len(named):,} are named; a key may name {_MOST_NAMED:,}. Give their names a beginning "
            "in common, and the key that as a prefix"
        )
    for scope in info.scopes:
        check_scope(scope)
    for prefix in info.prefixes:
        if not prefix.strip():
            raise InputError(f"prefixes: {prefix!r} begins every name; if that is meant, open every scope")


def _checked_name(name: str | None) -> str | None:
    if name is None:
        return None
    check_text(name, "name")
    if len(name) > _MOST_NAME_CHARACTERS:
        raise InputError(f"name: {len(name):,} characters; a key's name may have {_MOST_NAME_CHARACTERS}")
    return name.strip() or None


def _expiry(value: datetime | timedelta | str | None, now: datetime) -> datetime | None:
    """Return when a key ends; only None means never."""
    if value is None:
        return None
    shown = str(value)[:60]
    try:
        duration = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
        if duration is not None:
            value = timedelta(**{_UNITS[duration[2]]: int(duration[1])})
        time = now + value if isinstance(value, timedelta) else parse_time(value, "expires")
        if time is None:
            raise InputError("expires: empty")
        expires = _utc(time)
    except (InputError, OverflowError):
        raise InputError(
            f"expires: {shown!r} is no time; give ISO 8601 such as 2030-03-28T11:00:00+01:00, or how long from now: "
            "90d, 12h, 30m"
        ) from None
    if expires <= now:
        raise InputError(
            f"expires: {shown!r} is past already; give a time to come, or how long from now: 90d, 12h, 30m"
        )
    return expires


def _utc(time: datetime | None) -> datetime:
    """Return a time in UTC, which one without a zone counts as; None is the present."""
    if time is None:
        return datetime.now(UTC)
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _microseconds(time: datetime) -> int:
    return (time - _BEGINNING) // _MICROSECOND


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _BEGINNING + microseconds * _MICROSECOND
