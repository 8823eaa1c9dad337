"""Files that change as a whole or not at all, and the sums that tell whether they are whole."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

from latent_memory.errors import InputError, StoreError, StoreFullError

_CHUNK = 1 << 20


class Seen(NamedTuple):
    """What tells one state of a file from the next, without reading it."""

    bytes: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Seen | None:
        """Look at a file; None if there is none."""
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


@contextmanager
def unchanged(*paths: Path, since: Sequence[Seen | None] | None = None) -> Iterator[None]:
    """Refuse what is read inside if one of the files changes meanwhile.

    Args:
        paths: the files.
        since: what they looked like when they were checked; by default, what they look like now.

    Raises:
        InputError: at the end, if a file is not what it was at the beginning.
    """
    before = [Seen.of(path) for path in paths] if since is None else since
    try:
        yield
    finally:
        # Also when the reading has failed: then this is why.
        for path, seen in zip(paths, before, strict=True):
            if Seen.of(path) != seen:
                raise InputError(f"{path}: changed while it was read; wait until it is written, and try again")


@contextmanager
def as_ours(path: Path) -> Iterator[None]:
    """Turn the system's errors into ours, each with the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (28, 122):  # no space left, quota exceeded
            raise StoreFullError(
                f"{path}: the disk is full. The file is as it was; free some space and call again"
            ) from error
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def written(path: Path, *, follow: bool = True) -> Iterator[IO[bytes]]:
    """Write a new version of a file: it is there in full when the block ends, or as it was if the block raises.

    A symbolic link stays one: what it points to is replaced, unless not to `follow` it is asked for. The permissions
    stay, too; a file that may not be written is not replaced.
    """
    path = path.resolve() if follow else path.parent.resolve() / path.name
    temporary = beside(path)
    with as_ours(path):
        try:
            with temporary.open("xb") as file:
                like(path, temporary)
                yield file
                flush(file)
            temporary.replace(path)
            flush_directory(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def like(path: Path, new: Path) -> None:
    """Give a new file, while it is empty, the permissions of the one whose place it will take, if there is one.

    Raises:
        PermissionError: if that one may not be written.
    """
    if path.exists():
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "it may not be written", str(path))
        shutil.copymode(path, new)


def beside(path: Path) -> Path:
    """Return a name for a temporary file in the same directory, so that it can be renamed into place."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def clear_beside(path: Path) -> None:
    """Remove the temporary files that killed processes have left; for a file that nobody else writes meanwhile."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if re.fullmatch(r"[0-9a-f]{8}", file.name[len(path.name) + 2 : -len(".tmp")]) and file.is_file():
            with contextlib.suppress(OSError):
                file.unlink()


def flush(file: IO[bytes]) -> None:
    """Make sure that what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_directory(directory: Path) -> None:
    """Make sure that the names in a directory are on the disk; Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # Some network file systems know no such thing either.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block ends; for code of others that calls ours back and does not survive its errors."""
    kept: list[tuple[int, FrameType | None]] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: kept.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if kept:
            before(*kept[0])


class Summed:
    """A file that is being written, with the SHA-256 of what was written so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Write, and count it in."""
        self._sum.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        """The sum, in hexadecimal."""
        return self._sum.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(directory: Path) -> int:
    """Return how many bytes the files in a directory have, or a file."""
    if directory.is_file():
        return directory.stat().st_size
    total = 0
    for file in directory.rglob("*"):
        # Another process may put a new index in an old one's place meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if file.is_file():
                total += file.stat().st_size
    return total
