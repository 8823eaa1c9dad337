"""Pickle: `{"embeddings": array (n, d) float32, "metadata": [dict, ...], "latent_memory": {...}}`.

After the pickle's end stands a line with its SHA-256, which `pickle.load` does not look at. Read by an unpickler that
makes nothing but arrays of numbers and plain containers (see unpickling.py). Held in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from latent_memory.errors import InputError, StoreDamagedError, StoreVersionError
from latent_memory.files import Summed, unchanged, written
from latent_memory.snapshot import BLOCK_ROWS, JSON_TYPES, Block, Entry, Snapshot, maker, paired
from latent_memory.unpickling import takes, unpickled
from latent_memory.vectors import Vectors

VERSION = 1

_MARK = b"\n# sha256 "
_TRAILER = len(_MARK) + 64 + 1
# What our reader refuses, since a stranger's file could be made to hurt by it, stands as JSON under this key.
_AS_JSON = "latent_memory_json"
# Within the dict, the list and the entry.
_DEPTH = 3
# Every NumPy since 1.16 and every Python since 3.4 reads it.
_PROTOCOL = 4


def read(path: Path) -> Snapshot:
    """Read a pickle, of ours or of anybody who keeps to the shape above.

    Raises:
        InputError: if it holds something else, or asks for anything beyond arrays and plain containers: nothing of it
            was run.
        StoreDamagedError: if it is not what was written.
    """
    with unchanged(path):
        data = path.read_bytes()
        modified = path.stat().st_mtime
    summed = data[-_TRAILER:].startswith(_MARK)
    if summed:
        told, data = data[-65:], data[:-_TRAILER]
        if told != _sum(data):
            raise _damaged(path)
    found = unpickled(data, str(path))
    if not isinstance(found, dict) or not {"embeddings", "metadata"} <= found.keys():
        raise InputError(f'{path}: a dict with "embeddings" and "metadata" was expected, not {type(found).__name__}')
    header = found.get("latent_memory")
    if header is not None and not summed:
        raise _damaged(path)
    vectors = _vectors(found["embeddings"], path)
    entries = found["metadata"]
    if not isinstance(entries, (list, tuple)):
        raise InputError(f'{path}: "metadata": a list of dicts was expected, not {type(entries).__name__}')
    embedder = None
    if header is not None:
        try:
            newer = bool(header["version"] > VERSION)
            embedder = maker(header["embedder"], str(path), vectors.shape[1] if len(vectors) else None)
        except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f'{path}: "latent_memory" is not what this library writes; take it out') from None
        if newer:
            raise StoreVersionError(
                f"{path} was written by a newer version of latent-memory. Upgrade with: pip install -U latent-memory"
            )

    def rows() -> Iterator[tuple[Vectors, Mapping[int, InputError]]]:
        for start in range(0, len(vectors), BLOCK_ROWS):
            yield vectors[start : start + BLOCK_ROWS], {}

    def blocks() -> Iterator[Block]:
        own = header is not None
        parts = (
            [_as_data(_entry(entry) if own else entry) for entry in part]
            for part in (entries[start : start + BLOCK_ROWS] for start in range(0, len(entries), BLOCK_ROWS))
        )
        return paired(rows(), parts, '"embeddings"', '"metadata"')

    return Snapshot(
        rows=len(vectors),
        dimension=vectors.shape[1],
        embedder=embedder,
        blocks=blocks,
        name=str(path),
        written=datetime.fromtimestamp(modified, UTC).replace(microsecond=0),
        summed=summed,
        beside=tuple(sorted(map(repr, found.keys() - {"embeddings", "metadata", "latent_memory"}))),
    )


def recover(path: Path) -> None:
    """Nothing is to be recovered: a pickle is replaced as a whole."""


def write(path: Path, snapshot: Snapshot) -> None:
    """Write a pickle."""
    whole: dict[str, Any] = {
        "embeddings": snapshot.vectors,
        "metadata": [_plain(entry) for entry in snapshot.entries],
        "latent_memory": {
            "format": "latent-memory",
            "version": VERSION,
            "embedder": snapshot.embedder._asdict() if snapshot.embedder else None,
        },
    }
    with written(path) as file:
        summed = Summed(file)
        pickle.dump(whole, summed, protocol=_PROTOCOL)
        file.write(_MARK + summed.sha256.encode() + b"\n")


def _plain(entry: Entry) -> Entry:
    refused = {
        key: value for key, value in entry.items() if isinstance(value, (dict, list, int)) and not takes(value, _DEPTH)
    }
    if not refused:
        return entry
    kept = {key: value for key, value in entry.items() if key not in refused}
    return kept | {_AS_JSON: json.dumps(refused, ensure_ascii=False)}


def _entry(entry: Any) -> Any:
    if not isinstance(entry, dict) or _AS_JSON not in entry:
        return entry
    return {key: value for key, value in entry.items() if key != _AS_JSON} | json.loads(entry[_AS_JSON])


def _as_data(value: Any) -> Any:
    """Return an entry, or an error for one that holds what JSON does not: bytes, sets, arrays."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if type(found) not in JSON_TYPES:
            return InputError(f"holds {_ARTICLES.get(type(found).__name__, 'what is no JSON data')}; {_AS_TEXT}")
        if isinstance(found, dict):
            waiting += found.values()
        elif isinstance(found, (list, tuple)):
            waiting += found
    return value


_ARTICLES = {"bytes": "bytes", "set": "a set", "ndarray": "an array"}
_AS_TEXT = "texts, numbers, lists and dicts can be kept"


def _sum(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode() + b"\n"


def _vectors(found: Any, path: Path) -> Vectors:
    try:
        with np.errstate(over="ignore"):
            array = found if isinstance(found, np.ndarray) else np.array(found, np.float32)
            if array.ndim == 2 and array.dtype.kind in "fiu":
                return np.ascontiguousarray(array, dtype=np.float32)
        shown = f"{array.dtype} {array.shape}"
    except (TypeError, ValueError, OverflowError) as error:
        shown = f"{type(found).__name__} ({error})"
    raise InputError(f'{path}: "embeddings": numbers of shape (rows, dimension) were expected, not {shown}')


def _damaged(path: Path) -> StoreDamagedError:
    return StoreDamagedError(
        f"{path}: not what was written (its SHA-256 is wrong, or was cut off). Restore the file from a backup"
    )
