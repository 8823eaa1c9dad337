"""A file that is changed in place, page by page: all pages of a change, or none. And the sum of a file by blocks.

Knows nothing of HDF5, but that it leaves the first 512 bytes to us.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.files import flush, flush_directory, like

USER_BLOCK = 512
_SUMMED = 1 << 20
_PAGE = 1 << 12
_MARK = b'{"format": "latent-memory"'
_JOURNAL = b"latent-memory journal 1\n"
_MOST_RESERVED = 1 << 30


@dataclass(frozen=True, slots=True)
class Sums:
    """The SHA-256 of each MiB of a file beyond its first 512 bytes, and how many bytes there are beyond them."""

    length: int
    blocks: tuple[bytes, ...]

    def user_block(self) -> bytes:
        """Return the first 512 bytes: one line that says what the file is, and its sum."""
        told = {
            "format": "latent-memory",
            "layout": "hdf5",
            "bytes": self.length,
            "sha256 of the sha256s of each MiB from byte 512": hashlib.sha256(b"".join(self.blocks)).hexdigest(),
        }
        return json.dumps(told).encode().ljust(USER_BLOCK - 1) + b"\n"


def sums_of(path: Path) -> Sums:
    """Read a file, and return its sums."""
    with path.open("rb") as file:
        file.seek(USER_BLOCK)
        blocks = tuple(iter(lambda: _sum_of(file.read(_SUMMED)), _sum_of(b"")))
    return Sums(path.stat().st_size - USER_BLOCK, blocks)


def _sum_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def user_block(path: Path) -> bytes | None:
    """Return the first 512 bytes of a file, if they are ours."""
    with path.open("rb") as file:
        found = file.read(USER_BLOCK)
    return found if found.startswith(_MARK) else None


class Pages(io.RawIOBase):
    """A file to read and write, of which nothing is changed: what is written stays in memory, in pages."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._at = 0
        self.length = self._there = file.seek(0, os.SEEK_END)
        # What the file has from here on was cut off.
        self._kept = self._there
        self.pages: dict[int, bytearray] = {}

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.length}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def truncate(self, size: int | None = None) -> int:
        """Set the length."""
        size = self._at if size is None else size
        if size < self.length:
            for number in [number for number in self.pages if number * _PAGE >= size]:
                del self.pages[number]
            number, within = divmod(size, _PAGE)
            if number in self.pages:
                self.pages[number][within:] = bytes(_PAGE - within)
            self._kept = min(self._kept, size)
        self.length = size
        return size

    def readinto(self, buffer: Any) -> int:
        """Read from the place on."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.length - self._at))
        self.read_at(self._at, view[:count])
        self._at += count
        return count

    def read_at(self, start: int, view: memoryview) -> None:
        """Fill the view with what stands from `start` on."""
        self._file.seek(start)
        got = self._file.readinto(view[: max(0, self._kept - start)]) or 0
        view[got:] = bytes(len(view) - got)
        for number in range(start // _PAGE, (start + len(view) - 1) // _PAGE + 1) if self.pages and len(view) else ():
            page = self.pages.get(number)
            if page is not None:
                low, high = max(start, number * _PAGE), min(start + len(view), (number + 1) * _PAGE)
                view[low - start : high - start] = page[low - number * _PAGE : high - number * _PAGE]

    def write(self, data: Any) -> int:
        """Write from the place on."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            number, within = divmod(self._at + done, _PAGE)
            count = min(_PAGE - within, len(view) - done)
            self._page(number)[within : within + count] = view[done : done + count]
            done += count
        self._at += done
        self.length = max(self.length, self._at)
        return done

    def _page(self, number: int) -> bytearray:
        page = self.pages.get(number)
        if page is None:
            page = bytearray(_PAGE)
            self.read_at(number * _PAGE, memoryview(page))
            self.pages[number] = page
        return page

    def settle(self) -> None:
        """Keep those pages that differ from the file's: HDF5 writes the whole of a chunk of which it changes a row."""
        # What was cut off and then passed over has become zeros.
        for number in range(self._kept // _PAGE, -(-min(self.length, self._there) // _PAGE)):
            self._page(number)
        for number in list(self.pages):
            self._file.seek(number * _PAGE)
            if (number + 1) * _PAGE <= self._there and self._file.read(_PAGE) == self.pages[number]:
                del self.pages[number]
        self._kept = self._there

    def stretches(self) -> Iterator[tuple[int, bytes]]:
        """Yield what was written, as stretches of pages: where each begins, and its bytes."""
        run: list[int] = []
        for number in [*sorted(self.pages), None]:
            if run and (number is None or number != run[-1] + 1):
                start = run[0] * _PAGE
                data = b"".join(self.pages[n] for n in run)
                yield start, data[: self.length - start]
                run = []
            if number is not None and number * _PAGE < self.length:
                run.append(number)


class Careful(io.RawIOBase):
    """A new file for HDF5, which ends the process (measured: 2.0) when a file does not take what it writes.

    What the disk does not take stays in memory, and its error is told to us alone: call `check` now and then.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file: io.FileIO | Pages = file
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the error of the first write that failed, if there was one."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def truncate(self, size: int | None = None) -> int:
        """Set the length."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            return self._give_up(error).truncate(size)

    def readinto(self, buffer: Any) -> int:
        """Read from the place on."""
        return self._file.readinto(buffer) or 0

    def write(self, data: Any) -> int:
        """Write from the place on."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            try:
                done += self._file.write(view[done:]) or 0
            except OSError as error:
                self._give_up(error)
        return done

    def _give_up(self, error: OSError) -> Pages:
        assert isinstance(self._file, io.FileIO)
        self._error = error
        at = self._file.tell()
        self._file = Pages(self._file)
        self._file.seek(at)
        return self._file


@contextmanager
def opened_pages(path: Path) -> Iterator[Pages]:
    """Open a file of which nothing changes before `commit`."""
    with path.open("rb", buffering=0) as file:
        yield Pages(file)


def commit(path: Path, pages: Pages, sums: Sums) -> Sums:
    """Bring what was written to the file.

    Args:
        path: the file.
        pages: what was written.
        sums: those of the file before.

    Returns:
        The sums of the file as it is now.
    """
    pages.settle()
    touched: set[int] = set()
    for start, data in pages.stretches():
        touched.update(range(max(0, start - USER_BLOCK) // _SUMMED, (start + len(data) - USER_BLOCK) // _SUMMED + 1))
    count = -(-(pages.length - USER_BLOCK) // _SUMMED)
    touched.update(range(min(len(sums.blocks), count) - 1, count))
    blocks = list(sums.blocks[:count]) + [b""] * (count - len(sums.blocks))
    for number in touched:
        if 0 <= number < count:
            start = USER_BLOCK + number * _SUMMED
            block = bytearray(min(_SUMMED, pages.length - start))
            pages.read_at(start, memoryview(block))
            blocks[number] = _sum_of(bytes(block))
    now = Sums(pages.length - USER_BLOCK, tuple(blocks))

    stretches = list(pages.stretches())
    parts = [sums.user_block(), now.user_block(), struct.pack("<QQ", pages.length, len(stretches))]
    for start, data in stretches:
        parts += [struct.pack("<QQ", start, len(data)), data]
    whole = b"".join(parts)
    journal = _journal(path)
    try:
        # Made anew: one that stands there may be a link to anywhere.
        journal.unlink(missing_ok=True)
        with journal.open("xb") as file:
            like(path, journal)
            file.write(_JOURNAL + hashlib.sha256(whole).digest() + whole)
            flush(file)
        flush_directory(path.parent)
        _reserve(path, USER_BLOCK + sums.length, pages.length)
    except BaseException:
        journal.unlink(missing_ok=True)
        raise
    recover(path)
    return now


def _reserve(path: Path, length: int, wanted: int) -> None:
    """Have the disk give its room for a longer file, so that it cannot be full once the change has begun."""
    if wanted <= length:
        return
    with path.open("r+b") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), length, wanted - length)
            else:
                file.seek(length)
                file.write(bytes(wanted - length))
                file.flush()
        except BaseException:
            file.truncate(length)
            raise


def recover(path: Path) -> None:
    """Finish a change that was begun, if there is one; a change whose journal is not whole never began."""
    path = path.resolve()
    journal = _journal(path)
    if journal.is_symlink() or (journal.exists() and not journal.is_file()):
        raise InputError(f"{journal}: is no file of this library; remove it")
    if not journal.exists():
        return
    told = journal.read_bytes()
    head = len(_JOURNAL) + 32
    whole = memoryview(told)[head:]
    if told.startswith(_JOURNAL) and hashlib.sha256(whole).digest() == told[len(_JOURNAL) : head]:
        old, new = bytes(whole[:USER_BLOCK]), bytes(whole[USER_BLOCK : 2 * USER_BLOCK])
        length, stretches = _stretches(whole[2 * USER_BLOCK :], path.stat().st_size)
        found = user_block(path)
        # Somebody may have put another file in its place since. Or it was stopped within these bytes, the last.
        if stretches and any(found == new[:n] + old[n:] for n in range(USER_BLOCK + 1)):
            with path.open("r+b") as file:
                for start, data in stretches:
                    file.seek(max(start, USER_BLOCK))
                    file.write(data[max(0, USER_BLOCK - start) :])
                file.truncate(length)
                flush(file)
                # Last, and within one sector: it tells an old state from a new one.
                file.seek(0)
                file.write(new)
                flush(file)
    journal.unlink()


def _stretches(told: memoryview, size: int) -> tuple[int, list[tuple[int, memoryview]]]:
    """Return what a journal tells: how long the file becomes, and what is written where; nothing if it is not ours."""
    stretches: list[tuple[int, memoryview]] = []
    try:
        length, count = struct.unpack_from("<QQ", told)
        at = 16
        for _ in range(count):
            start, bytes_ = struct.unpack_from("<QQ", told, at)
            data = told[at + 16 : at + 16 + bytes_]
            if len(data) != bytes_ or start + bytes_ > length:
                return 0, []
            stretches.append((start, data))
            at += 16 + bytes_
    except struct.error:
        return 0, []
    # More than was written, HDF5 does not grow by.
    return (length, stretches) if length <= size + len(told) + _MOST_RESERVED else (0, [])


def discard_journal(path: Path) -> None:
    """Remove the journal of a file that another has taken the place of."""
    _journal(path).unlink(missing_ok=True)


def _journal(path: Path) -> Path:
    return path.with_name(f".{path.name}.journal")
