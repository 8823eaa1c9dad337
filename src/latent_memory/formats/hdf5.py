"""HDF5: one file with the datasets `embeddings` (n, d) float32 and `metadata` (n,), a compound of text and numbers.

Text is UTF-8 of variable length. What a compound's fields cannot hold (other keys, a NUL in a text) stands as JSON in
its last field, `more`. HDF5 leaves the first 512 bytes of a file to its user: ours hold the file's sum, which is the
SHA-256 of the SHA-256s of each MiB that follows. So a few rows more cost a few blocks, not a reading of the whole.

Rows are appended in place: the pages that change are written to a journal beside the file first, so that a process or a
machine that stops in between leaves the file as it was, or as it was to be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latent_memory.errors import InputError, MissingExtraError, StoreDamagedError, StoreVersionError
from latent_memory.files import Seen, as_ours, beside, flush, flush_directory, like, unchanged, uninterrupted
from latent_memory.formats import pages
from latent_memory.formats.pages import (
    USER_BLOCK,
    Careful,
    Sums,
    commit,
    discard_journal,
    opened_pages,
    sums_of,
    user_block,
)
from latent_memory.snapshot import BLOCK_ROWS, Block, Entry, Snapshot, maker, paired
from latent_memory.vectors import STORED, Vectors

if TYPE_CHECKING:
    import h5py

VERSION = 1

_TEXTS = ("conversation_id", "summary", "timestamp", "title", "type", "role", "name", "scope")
_NUMBERS = ("turn", "piece", "start")
_MORE = "more"
_ATTRIBUTE = "latent_memory"

# What deflate can make of nothing; a file that promises more data than that was made to fill the memory.
_MOST_DEFLATED = 1100
_MOST_IN_A_CHUNK = 1 << 28
_ROWS_PER_CHUNK = 64
# Many rows may refer to one text, and each gets a copy of it: so few rows are read at once that they fit, and what all
# of them hold has a budget, of so many times the file.
_AT_ONCE = 1 << 28
_FEWEST_ROWS, _MOST_TIMES_THE_FILE = 32, 100


def read(path: Path) -> Snapshot:
    """Read an HDF5 file, of ours or of anybody who keeps to the two datasets.

    Fields of `metadata` may be text of fixed or variable length, or numbers; any number type will do for `embeddings`.

    Raises:
        InputError: if it is no such file, or refers to other files.
        StoreDamagedError: if it is not what was written.
        MissingExtraError: if h5py is not installed.
    """
    recover(path)
    seen = Seen.of(path)
    with unchanged(path, since=[seen]):
        told = user_block(path)
        if told is not None and sums_of(path).user_block() != told:
            raise _damaged(path)
        with _file(path) as file:
            rows, metadata = _datasets(file, path)
            (n, d), header = rows.shape, _header(file, path)
            count = metadata.shape[0]
            others = () if header is not None else _beside(file)
        if header is not None and told is None:
            raise _damaged(path)

    def blocks() -> Iterator[Block]:
        with unchanged(path, since=[seen]), _file(path) as file:
            rows, metadata = _datasets(file, path)
            entries = _entries(metadata, count, header is not None, path.stat().st_size)
            yield from paired(_rows(rows, n), entries, "embeddings", "metadata")

    return Snapshot(
        rows=n,
        dimension=d,
        embedder=maker(header["embedder"], str(path), d if n else None) if header else None,
        blocks=blocks,
        name=str(path),
        written=datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(microsecond=0),
        summed=header is not None,
        beside=others,
    )


def recover(path: Path) -> None:
    """Finish an append that was begun.

    Raises:
        MissingExtraError: if h5py is not installed.
    """
    _h5py()
    with as_ours(path):
        pages.recover(path)


def write(path: Path, snapshot: Snapshot) -> None:
    """Write an HDF5 file."""
    h5 = _h5py()
    path = path.resolve()
    temporary = beside(path)
    with as_ours(path):
        try:
            with temporary.open("x+b", buffering=0) as raw, uninterrupted():
                like(path, temporary)
                careful = Careful(raw)
                with h5.File(careful, "w", userblock_size=USER_BLOCK, libver=("v110", "v110")) as file:
                    d = snapshot.dimension
                    # An empty memory's vectors have no columns yet, and HDF5 has no chunks of nothing.
                    layout = {"maxshape": (None, d), "chunks": (_ROWS_PER_CHUNK, d)} if d else {}
                    rows = file.create_dataset("embeddings", (snapshot.rows, d), STORED, **layout)
                    metadata = file.create_dataset(
                        "metadata", (snapshot.rows,), _compound(h5), maxshape=(None,), chunks=(4 * _ROWS_PER_CHUNK,)
                    )
                    start = 0
                    for block in snapshot.blocks():
                        end = start + len(block.entries)
                        if end <= snapshot.rows:
                            rows[start:end] = block.vectors
                            metadata[start:end] = _compounds(block.entries, metadata.dtype)
                        careful.check()
                        start = end
                    if start != snapshot.rows:
                        raise InputError(f"{snapshot.name}: {start:,} rows came where {snapshot.rows:,} were announced")
                    header = {
                        "format": "latent-memory",
                        "version": VERSION,
                        "embedder": snapshot.embedder._asdict() if snapshot.embedder else None,
                    }
                    file.attrs[_ATTRIBUTE] = json.dumps(header, ensure_ascii=False)
                careful.check()
            with temporary.open("r+b") as raw:
                raw.write(sums_of(temporary).user_block())
                flush(raw)
            temporary.replace(path)
            flush_directory(path.parent)
            # It belonged to the file that is gone.
            discard_journal(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def append(path: Path, blocks: Iterable[Block], changed: Mapping[int, Entry], sums: Sums | None) -> Sums | None:
    """Append rows in place, and put entries in the place of others.

    Args:
        path: a file that nobody else writes meanwhile.
        blocks: the new rows.
        changed: entries by row, which replace those that are there.
        sums: those of the file as it is, which an earlier call returned; without them they are read.

    Returns:
        The sums of the file as it is now; None, with nothing done, if the file is not of our making. When this returns,
        the change is on disk; if it raises, nothing is.
    """
    h5 = _h5py()
    path = path.resolve()
    if user_block(path) is None:
        return None
    sums = sums or sums_of(path)
    with as_ours(path), opened_pages(path) as changed_pages:
        with uninterrupted(), h5.File(changed_pages, "r+", libver=("v110", "v110")) as file:
            rows, metadata = _datasets(file, path)
            for row, entry in sorted(changed.items()):
                metadata[row : row + 1] = _compounds([entry], metadata.dtype)
            for block in blocks:
                start = rows.shape[0]
                end = start + len(block.entries)
                rows.resize(end, axis=0)
                metadata.resize(end, axis=0)
                rows[start:end] = block.vectors
                metadata[start:end] = _compounds(block.entries, metadata.dtype)
        return commit(path, changed_pages, sums)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingExtraError('HDF5 files need h5py: pip install "latent-memory[formats]"') from None
    return h5py


@contextmanager
def _file(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; what HDF5 says of a file that it cannot read becomes one of our errors."""
    h5 = _h5py()
    try:
        with h5.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())[:160]
        raise StoreDamagedError(f"{path}: not readable as HDF5 ({told}). Restore the file from a backup") from error


def _datasets(file: h5py.File, path: Path) -> tuple[h5py.Dataset, h5py.Dataset]:
    h5 = _h5py()
    found = []
    for name in ("embeddings", "metadata"):
        # A file from a stranger may point at other files of this machine.
        link = file.get(name, getlink=True)
        dataset = file[name] if isinstance(link, h5.HardLink) else None
        if not isinstance(dataset, h5.Dataset) or dataset.is_virtual or dataset.external:
            there = ", ".join(sorted(map(str, file))[:10]) or "nothing"
            raise InputError(
                f'{path}: a dataset "{name}" within the file was expected; at its top there is: {there}. '
                'A memory has "embeddings" (rows, dimension) and "metadata" (rows)'
            )
        stored = dataset.id.get_storage_size()
        if dataset.nbytes > _MOST_DEFLATED * stored + (1 << 20):
            raise InputError(f"{path}: {name} promises {dataset.nbytes:,} bytes and holds {stored:,}; refused")
        # A chunk is unpacked as a whole.
        if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > _MOST_IN_A_CHUNK:
            raise InputError(f"{path}: {name} has chunks of {dataset.chunks} rows; refused")
        found.append(dataset)
    rows, metadata = found
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: embeddings: numbers of shape (rows, dimension) were expected, not {rows.dtype} {rows.shape}"
        )
    if metadata.ndim != 1:
        raise InputError(f"{path}: metadata: one entry a row was expected, not shape {metadata.shape}")
    return rows, metadata


def _beside(file: h5py.File) -> tuple[str, ...]:
    """Return the names of what another tool's file holds besides the two datasets."""
    return (*sorted(set(map(str, file)) - {"embeddings", "metadata"}), *sorted(map(str, file.attrs)))


def _header(file: h5py.File, path: Path) -> dict[str, Any] | None:
    if _ATTRIBUTE not in file.attrs:
        return None
    header = json.loads(file.attrs[_ATTRIBUTE])
    if not isinstance(header, dict) or "embedder" not in header:
        raise ValueError(f"its attribute {_ATTRIBUTE} is not what this library writes")
    if header["version"] > VERSION:
        raise StoreVersionError(
            f"{path} was written by a newer version of latent-memory. Upgrade with: pip install -U latent-memory"
        )
    found: dict[str, Any] = header
    return found


def _rows(dataset: h5py.Dataset, n: int) -> Iterator[tuple[Vectors, Mapping[int, InputError]]]:
    for start in range(0, n, BLOCK_ROWS):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(dataset[start : start + BLOCK_ROWS], dtype=np.float32)
        yield block, {}


def _compound(h5: Any) -> np.dtype[Any]:
    text = h5.string_dtype()
    return np.dtype(
        [*((name, text) for name in _TEXTS), *((name, np.dtype("<i4")) for name in _NUMBERS), (_MORE, text)]
    )


def _compounds(entries: Iterable[Entry | InputError], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    columns: dict[str, list[Any]] = {name: [] for name in (*_TEXTS, *_NUMBERS, _MORE)}
    for entry in entries:
        assert isinstance(entry, dict)
        more = {key: value for key, value in entry.items() if key not in columns or key == _MORE}
        for name in _TEXTS:
            value = entry.get(name)
            fits = isinstance(value, str) and value != "" and "\0" not in value
            columns[name].append(value if fits else "")
            if not fits and value is not None:
                more[name] = value
        for name in _NUMBERS:
            value = entry.get(name)
            fits = type(value) is int and 0 <= value < 1 << 31
            columns[name].append(value if fits else -1)
            if not fits and value is not None:
                more[name] = value
        absent = [name for name in (*_TEXTS, *_NUMBERS) if name not in entry]
        told = json.dumps([more, absent] if absent else [more]) if more or absent else ""
        columns[_MORE].append(told)
    block = np.empty(len(columns[_MORE]), dtype)
    for name, values in columns.items():
        block[name] = values
    return block


def _entries(dataset: h5py.Dataset, count: int, ours: bool, size: int) -> Iterator[list[Any]]:
    """Yield the entries in blocks; one that cannot be read is an InputError."""
    names = dataset.dtype.names
    at_once = min(BLOCK_ROWS, max(_FEWEST_ROWS, _AT_ONCE // (size + dataset.dtype.itemsize)))
    left = max(_AT_ONCE, _MOST_TIMES_THE_FILE * size)
    for start in range(0, count, BLOCK_ROWS):
        rows: list[Any] = []
        end = min(count, start + BLOCK_ROWS)
        for first in range(start, end, at_once):
            some = dataset[first : min(end, first + at_once)].tolist()
            for row in some:
                left -= sum(len(v) for v in (row if isinstance(row, tuple) else (row,)) if isinstance(v, (bytes, str)))
            if left < 0:
                raise InputError(f"{dataset.file.filename}: its texts are far more than a file of {size:,} bytes holds")
            rows += some
        if names is None:
            yield [_from_json(value) for value in rows]
        else:
            yield [_entry(names, row, ours) for row in rows]


def _entry(names: tuple[str, ...], row: tuple[Any, ...], ours: bool) -> Entry | InputError:
    entry: Entry = {}
    for name, value in zip(names, row, strict=True):
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError as error:
                return InputError(
                    f"{name}: not UTF-8 (byte {error.start} of {len(value)}); was the text cut to a fixed width?"
                )
        entry[name] = value
    if not ours or _MORE not in entry:
        return entry
    told = entry.pop(_MORE)
    for name in _TEXTS:
        entry[name] = entry[name] or None
    for name in _NUMBERS:
        entry[name] = None if entry[name] < 0 else entry[name]
    if told:
        more, *absent = json.loads(told)
        for name in absent[0] if absent else ():
            del entry[name]
        entry |= more
    return entry


def _from_json(value: Any) -> Any:
    """Return the entry that a dataset of JSON texts holds."""
    try:
        return json.loads(value)
    except (ValueError, TypeError, RecursionError):
        return value


def _damaged(path: Path) -> StoreDamagedError:
    return StoreDamagedError(
        f"{path}: not what was written (its SHA-256 is wrong). Restore the file from a backup; if another program has "
        "changed it on purpose, let it write a copy of the two datasets to a new file, and open that"
    )
