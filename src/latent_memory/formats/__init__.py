"""The four storage logics: files that hold a whole memory.

One module a layout, each with

    read(path) -> Snapshot       the file is checked whole against its SHA-256 first, then streamed
    write(path, snapshot)        the file changes as a whole or not at all

Knows nothing of the store, of embedders or of what an entry says: rows are vectors and JSON data (see snapshot.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, cast

from latent_memory.database import exists
from latent_memory.errors import InputError
from latent_memory.snapshot import Snapshot

# By the suffix of a file; the other two are directories.
SUFFIXES: Mapping[str, str] = MappingProxyType({".h5": "hdf5", ".hdf5": "hdf5", ".pkl": "pickle", ".pickle": "pickle"})
# Summaries alone, without vectors; see summaries.py.
SUMMARY_SUFFIXES: Mapping[str, str] = MappingProxyType(
    {".json": "json", ".yaml": "yaml", ".yml": "yaml", ".db": "sqlite", ".sqlite": "sqlite", ".sqlite3": "sqlite"}
)
# By the file that a directory of this layout has beside metadata.json.
DIRECTORIES: Mapping[str, str] = MappingProxyType({"embeddings.csv": "csv_json", "embeddings.npy": "npy_json"})
NAMES = (*DIRECTORIES.values(), *dict.fromkeys(SUFFIXES.values()))
# The format beside these: a store in a directory, which many processes may share.
STORE = "sqlite"

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Layout(Protocol):
    """What a layout's module is."""

    def read(self, path: Path) -> Snapshot:
        """Check the file whole, and return what it holds."""
        ...

    def write(self, path: Path, snapshot: Snapshot) -> None:
        """Put a file that holds the snapshot in the place of what is there."""
        ...


def load(name: str) -> Layout:
    """Return the layout of that name, one of NAMES."""
    if name not in NAMES:
        raise InputError(f"format: {name!r} is unknown; use one of {', '.join(NAMES)}")
    return cast(Layout, importlib.import_module(f"latent_memory.formats.{name}"))


def by_suffix(path: Path) -> str | None:
    """Return the layout that a file's name says it has, or None."""
    return SUFFIXES.get(path.suffix.lower())


def files_of(name: str) -> tuple[str, ...]:
    """Return the names of the files in a directory of this layout; none for a layout that is one file."""
    return next(((file, "metadata.json", "latent_memory.json") for file, n in DIRECTORIES.items() if n == name), ())


def detect(path: Path) -> str | None:
    """Return the layout of what is there, told by its content; None if there is nothing, or it is none of the four.

    Raises:
        InputError: if a directory holds two layouts at once and does not say which one counts.
    """
    if path.is_dir():
        from latent_memory.formats.directory import told_layout

        found = [name for file, name in DIRECTORIES.items() if (path / file).exists()]
        if (told := told_layout(path)) is not None:
            return told
        if len(found) > 1:
            raise InputError(
                f"{path}: holds both {' and '.join(DIRECTORIES)}; move one of them away, or name the format"
            )
        return found[0] if found else None
    if not path.is_file():
        return None
    if path.stat().st_size == 0:
        return by_suffix(path)
    with path.open("rb") as file:
        start = file.read(1 << 16)
    # An HDF5 file may begin with a block of the user's own, of 512 bytes or a power of two times that.
    if any(start[at : at + 8] == _HDF5_SIGNATURE for at in (0, *(512 << n for n in range(7)))):
        return "hdf5"
    return by_suffix(path) or ("pickle" if start[:1] == b"\x80" and start[1:2] <= b"\x05" else None)


def layout_of(path: Path, wanted: str | None = None) -> str:
    """Return the format of what is there, or of what is to be made there: one of NAMES, or STORE.

    Raises:
        InputError: if the format that is wanted is unknown, or is not the one that is there.
    """
    check_name(wanted)
    found = STORE if path.is_dir() and exists(path) else detect(path)
    if found and wanted and found != wanted:
        raise InputError(f"{path}: is of the format {found}, not {wanted}; leave the format out, or name another place")
    return found or wanted or by_suffix(path) or STORE


def check_name(name: str | None) -> None:
    """Raise InputError unless it is one of NAMES, STORE, or None."""
    if name not in (*NAMES, STORE, None):
        raise InputError(f"format: {name!r} is unknown; use one of {', '.join((*NAMES, STORE))}")
