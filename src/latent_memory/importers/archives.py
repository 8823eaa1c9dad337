"""Archives: the files in a zip or in a directory, as streams. Nothing is ever extracted to disk.

A zip comes from anywhere and is not trusted. Refused are names that are absolute, climb with "..", or occur twice;
symbolic links; encrypted members; and what unpacks to far more than it is (a zip bomb), counted while it is read,
whatever its header says. In a directory, symbolic links that lead out of it are passed over.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from latent_memory.errors import InputError

# Chat exports unpack to 3 to 20 times their size; DEFLATE can reach 1,032 times.
MOST_RATIO = 100
# Below this, any ratio is harmless: a short file of one repeated letter is no attack.
FREE_BYTES = 1 << 26
# Other methods unpack a few kilobytes to hundreds of megabytes at once, before anything can be counted.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


class ArchiveError(InputError):
    """An archive cannot be used at all, which leaves nothing to pass over."""


class Archive(NamedTuple):
    """The files in a zip or in a directory.

    Attributes:
        names: of the files, sorted, with "/" between folders.
        open: takes one of the names and returns a stream of its bytes. What it raises while it is read is an
            ArchiveError, or in a directory an OSError.
    """

    names: tuple[str, ...]
    open: Callable[[str], BinaryIO]


def is_archive(path: Path) -> bool:
    """Tell whether a path is a directory or a zip.

    Raises:
        OSError: if it cannot be read.
    """
    if path.is_dir():
        return True
    with path.open("rb") as stream:
        # The second is what an empty zip begins with.
        return stream.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


@contextmanager
def opened(path: Path, name: str | None = None) -> Iterator[Archive]:
    """Open a zip or a directory.

    Args:
        path: of the zip or directory.
        name: what error messages call it.

    Raises:
        ArchiveError: if it is no zip that can be used; the message says why.
        OSError: if it cannot be read.
    """
    name = name or str(path)
    if path.is_dir():
        yield _directory(path, name)
        return
    try:
        archive = zipfile.ZipFile(path)
    # What zipfile raises: NotImplementedError for a version or compression that it does not know.
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ArchiveError(f"{name}: a zip that cannot be read ({error}); download it again") from None
    with archive:
        yield _zip(archive, name, budget=max(FREE_BYTES, MOST_RATIO * path.stat().st_size))


# -- zip ----------------------------------------------------------------------------------------------------


def _zip(archive: zipfile.ZipFile, name: str, budget: int) -> Archive:
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        _check(info, name)
        if info.filename in infos:
            raise ArchiveError(f"{name}: the zip holds {_shown(info.filename)} twice; which one counts is not known")
        infos[info.filename] = info
    left = [budget]

    def open_member(member: str) -> BinaryIO:
        info = infos[member]
        if info.file_size > left[0]:
            raise ArchiveError(_bomb(name, member))
        try:
            stream = archive.open(info)
        # RuntimeError: it is encrypted.
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
            raise ArchiveError(f"{name}, {_shown(member)}: cannot be unpacked ({error})") from None
        return cast(BinaryIO, io.BufferedReader(_Counted(stream, name, member, left), 1 << 16))

    return Archive(tuple(sorted(n for n, info in infos.items() if not info.is_dir())), open_member)


def _check(info: zipfile.ZipInfo, name: str) -> None:
    parts = info.filename.replace("\\", "/").split("/")
    if not parts[0] or ":" in parts[0] or ".." in parts:
        raise ArchiveError(f"{name}: {_shown(info.filename)} in the zip leads out of it; it is not to be trusted")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ArchiveError(f"{name}: {_shown(info.filename)} in the zip is a symbolic link; it is not to be trusted")
    if info.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"{name}: {_shown(info.filename)} in the zip is encrypted; unpack it, and add what is in it")
    if info.compress_type not in _METHODS:
        raise ArchiveError(
            f"{name}: {_shown(info.filename)} in the zip is packed by method {info.compress_type}; "
            "unpack it, and add what is in it"
        )


def _shown(member: str) -> str:
    return repr(member if len(member) <= 80 else member[:77] + "...")


def _bomb(name: str, member: str) -> str:
    return (
        f"{name}, {_shown(member)}: unpacks to more than {MOST_RATIO} times the size of the zip, as an attack does; "
        "if you trust it, unpack it, and add what is in it"
    )


class _Counted(io.RawIOBase):
    """A member's bytes, counted as they come out; what all members may still unpack to is in `left`."""

    def __init__(self, stream: Any, name: str, member: str, left: list[int]) -> None:
        self._stream = stream
        self._name = name
        self._member = member
        self._left = left

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; see io.RawIOBase."""
        try:
            data = self._stream.read(len(buffer))
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            told = str(error) or "it ends too early"
            raise ArchiveError(f"{self._name}, {_shown(self._member)}: cannot be unpacked ({told})") from None
        self._left[0] -= len(data)
        if self._left[0] < 0:
            raise ArchiveError(_bomb(self._name, self._member))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the member."""
        self._stream.close()
        super().close()


# -- directory ----------------------------------------------------------------------------------------------


def _directory(path: Path, name: str) -> Archive:
    root = path.resolve()

    def inside(file: Path) -> bool:
        try:
            # A pipe or a device among the files would be waited for.
            return file.resolve().is_relative_to(root) and stat.S_ISREG(file.stat().st_mode)
        except (OSError, RuntimeError):
            return False

    def open_member(member: str) -> BinaryIO:
        file = path / member
        if not inside(file):
            raise ArchiveError(f"{name}: {_shown(member)} is not a file in it any more")
        return file.open("rb")

    found = []
    for folder, _, files in os.walk(path):
        found += [file for file in (Path(folder) / each for each in files) if inside(file)]
    return Archive(tuple(sorted(file.relative_to(path).as_posix() for file in found)), open_member)
