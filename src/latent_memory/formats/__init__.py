"""The four storage logics: files that hold a whole memory.

One module a layout, each with

    read(path) -> Snapshot       the file is checked whole against its SHA-256 first, then streamed
    write(path, snapshot)        the file changes as a whole or not at all
    recover(path)                what a killed process has begun is finished, or cleared away

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
ALL_FILES = (*DIRECTORIES, "metadata.json", "latent_memory.json")
NAMES = (*DIRECTORIES.values(), *dict.fromkeys(SUFFIXES.values()))
# The format beside these: a store in a directory, which many processes may share.
STORE = "sqlite"

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Layout(Protocol):
    """What a layout's module is."""

    def read(self, path: Path) -> Snapshot:
        """Check the file whole, and return what it holds."""
        ...

    def recover(self, path: Path) -> None:
        """Finish or clear away what a killed process has begun, if there is any; for who has the file to itself."""
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
    check_regular(path)
    found = STORE if path.is_dir() and exists(path) else detect(path)
    if found and wanted and found != wanted:
        raise InputError(f"{path}: is of the format {found}, not {wanted}; leave the format out, or name another place")
    layout = found or wanted or by_suffix(path) or STORE
    if not found:
        check_suffix(path, layout)
    if path.is_dir() and not is_directory(layout):
        raise InputError(f"{path}: is a directory, and {layout} is one file; name another place")
    if path.is_file() and is_directory(layout):
        what = "nothing that is known as a memory" if wanted is None else f"a file, and {layout} is a directory"
        raise InputError(f"{path}: is {what}; name another place, or add what it holds with: latent-memory add {path}")
    return layout


def check_suffix(path: Path, layout: str) -> None:
    """Raise InputError if the path's name says that it is of another format than this."""
    suffix = path.suffix.lower()
    told = SUFFIXES.get(suffix) or ("summaries" if suffix in SUMMARY_SUFFIXES else None)
    if told not in (layout, None):
        raise InputError(f"{path}: a name that ends in {path.suffix} is for the format {told}, not {layout}")


def is_directory(layout: str) -> bool:
    """Tell whether a memory of this format is a directory."""
    return layout == STORE or bool(files_of(layout))


def check_regular(path: Path) -> None:
    """Raise InputError if there is something that is neither a file nor a directory: a pipe, a device."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: is neither a file nor a directory; name another place")


def check_name(name: str | None) -> None:
    """Raise InputError unless it is one of NAMES, STORE, or None."""
    if name not in (*NAMES, STORE, None):
        raise InputError(f"format: {name!r} is unknown; use one of {', '.join((*NAMES, STORE))}")
