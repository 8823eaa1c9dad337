"""A directory with the vectors in one file and the entries in `metadata.json`, and `latent_memory.json` beside them.

`latent_memory.json` says what made the vectors and carries the SHA-256 of the other two and of itself:

    {"format": "latent-memory", "version": 1, "layout": ..., "rows": n, "dimension": d,
     "embedder": {"name", "dimension", "fingerprint"} or null,
     "files": {NAME: {"bytes", "sha256"}}, "sha256": of this object without this key}

A change is written as NAME.new first. The moment that `latent_memory.json` names the new sums is the moment of the
change: whoever opens the directory takes for each file the one, old name or .new, whose sum it names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

from latent_memory.errors import InputError, StoreDamagedError, StoreVersionError
from latent_memory.files import Seen, Summed, as_ours, flush, flush_directory, like, sha256_of, unchanged, written
from latent_memory.json_stream import elements
from latent_memory.snapshot import BLOCK_ROWS, Block, Snapshot, maker, paired
from latent_memory.vectors import Vectors

HEADER = "latent_memory.json"
METADATA = "metadata.json"
VERSION = 1

_VECTORS = ("embeddings.csv", "embeddings.npy")
# A header has some 600 bytes.
_MOST_HEADER = 1 << 16

Header = dict[str, Any]


def told_layout(directory: Path) -> str | None:
    """Return the layout that the directory's own header names, or None."""
    header = _header(directory)
    return header["layout"] if header else None


def read_directory(
    directory: Path,
    vectors: str,
    measure: Callable[[Path], tuple[int, int]],
    rows: Callable[[Path], Iterator[tuple[Vectors, Mapping[int, InputError]]]],
) -> Snapshot:
    """Read a directory.

    Args:
        directory: where it is.
        vectors: the name of the file of vectors.
        measure: returns n and d of such a file.
        rows: returns the vectors in blocks of BLOCK_ROWS, with the errors of those rows that could not be read.
    """
    header = _header(directory)
    # What the files look like before their sums are taken: what changes later is not what was checked.
    found = {name: _current(directory, name, header) for name in (vectors, METADATA)}
    files = {name: path for name, (path, _) in found.items()}
    if header is not None and vectors not in header["files"]:
        raise InputError(f"{directory}: {HEADER} tells of no {vectors}; open it as {header['layout']}")
    n, d = measure(files[vectors])

    def blocks() -> Iterator[Block]:
        with unchanged(*files.values(), since=[seen for _, seen in found.values()]):
            yield from paired(rows(files[vectors]), _entries(files[METADATA]), vectors, METADATA)

    return Snapshot(
        rows=n,
        dimension=d,
        embedder=maker(header["embedder"], str(directory / HEADER), d if n else None) if header else None,
        blocks=blocks,
        name=str(directory),
        written=datetime.fromtimestamp(files[METADATA].stat().st_mtime, UTC).replace(microsecond=0),
        summed=header is not None,
    )


def write_directory(
    directory: Path,
    snapshot: Snapshot,
    layout: str,
    vectors: str,
    begin: Callable[[int, int], bytes],
    encode: Callable[[Vectors], bytes | memoryview],
) -> None:
    """Write a directory; `begin(n, d)` returns how the file of vectors begins, `encode` a block of rows (m, d)."""
    with as_ours(directory):
        directory.mkdir(parents=True, exist_ok=True)
    before = _header(directory)
    settle(directory)
    names = (vectors, METADATA)
    new = [directory / f"{name}.new" for name in names]
    try:
        with ExitStack() as stack:
            stack.enter_context(as_ours(directory))
            opened: list[IO[bytes]] = [stack.enter_context(path.open("wb")) for path in new]
            for name, path in zip(names, new, strict=True):
                like(directory / name, path)
            rows, entries = (Summed(file) for file in opened)
            rows.write(begin(snapshot.rows, snapshot.dimension))
            entries.write(b"[")
            count = 0
            for block in snapshot.blocks():
                rows.write(encode(block.vectors))
                for entry in block.entries:
                    entries.write(b"\n" if count == 0 else b",\n")
                    entries.write(json.dumps(entry, ensure_ascii=False).encode())
                    count += 1
            entries.write(b"\n]\n" if count else b"]\n")
            if count != snapshot.rows:
                raise InputError(f"{snapshot.name}: {count:,} rows came where {snapshot.rows:,} were announced")
            for file in opened:
                flush(file)
        header = {
            "format": "latent-memory",
            "version": VERSION,
            "layout": layout,
            "rows": count,
            "dimension": snapshot.dimension,
            "embedder": snapshot.embedder._asdict() if snapshot.embedder else None,
            "files": {
                name: {"bytes": file.bytes, "sha256": file.sha256}
                for name, file in zip(names, (rows, entries), strict=True)
            },
        }
        with written(directory / HEADER, follow=False) as told:
            told.write(_text(header | {"sha256": _sum(header)}))
    except BaseException:
        settle(directory)
        raise
    settle(directory)
    # Vectors that the directory held in another layout are of the past.
    for name in set(before["files"] if before else ()) & set(_VECTORS) - set(names):
        (directory / name).unlink(missing_ok=True)


def settle(directory: Path) -> None:
    """Bring a change that was made to its names, and clear away one that was not."""
    if not any(directory.glob("*.new")):
        return
    header = _header(directory)
    with as_ours(directory):
        for path in directory.glob("*.new"):
            told = header["files"].get(path.name.removesuffix(".new")) if header else None
            if told is not None and path.stat().st_size == told["bytes"] and sha256_of(path) == told["sha256"]:
                path.replace(path.with_suffix(""))
            elif path.name.removesuffix(".new") in (*_VECTORS, METADATA):
                path.unlink()
        flush_directory(directory)


def _current(directory: Path, name: str, header: Header | None) -> tuple[Path, Seen | None]:
    """Return the file that counts, after checking its sum, and what it looked like before that."""
    path = directory / name
    if header is None:
        if not path.is_file():
            raise InputError(f"{directory}: {name} is missing; a memory needs its vectors and its {METADATA}")
        return path, Seen.of(path)
    told = header["files"].get(name)
    if told is None:
        return path, Seen.of(path)
    for candidate in (path, path.with_name(f"{name}.new")):
        seen = Seen.of(candidate)
        with unchanged(candidate, since=[seen]):
            if (
                candidate.is_file()
                and candidate.stat().st_size == told["bytes"]
                and sha256_of(candidate) == told["sha256"]
            ):
                return candidate, seen
    if not path.is_file():
        raise StoreDamagedError(f"{path} is missing; restore it from a backup")
    size = path.stat().st_size
    raise StoreDamagedError(
        f"{path}: "
        + (f"{size:,} bytes where {told['bytes']:,} were written" if size != told["bytes"] else "not what was written")
        + f" (its SHA-256 is not the one in {HEADER}). Restore it from a backup; if somebody changed it on purpose, "
        f"delete {HEADER} and open it again"
    )


def _header(directory: Path) -> Header | None:
    path = directory / HEADER
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise InputError(f"{path}: is no file; remove it")
        with path.open("rb") as file:
            text = file.read(_MOST_HEADER)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        header = json.loads(text)
        told = header.pop("sha256")
        whole = told == _sum(header) and header["format"] == "latent-memory"
        # Also of the bytes between the values, so that not one can change.
        whole = whole and text == _text(header | {"sha256": told})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise StoreDamagedError(
            f"{path}: not what was written (its SHA-256 is wrong). Restore it from a backup; without it, the directory "
            "opens as vectors of an unknown model"
        )
    if isinstance(header.get("version"), int) and header["version"] > VERSION:
        raise StoreVersionError(
            f"{path} was written by a newer version of latent-memory. Upgrade with: pip install -U latent-memory"
        )
    if not _is_header(header):
        raise StoreDamagedError(f"{path}: its SHA-256 is right, but it is not what this library writes; remove it")
    found: Header = header
    return found


def _is_header(header: Header) -> bool:
    files = header.get("files")
    return (
        header.get("version") == VERSION
        and header.get("layout") in ("csv_json", "npy_json")
        and type(header.get("dimension")) is int
        and "embedder" in header
        and isinstance(files, dict)
        and files.keys() <= {*_VECTORS, METADATA}
        and all(
            isinstance(told, dict) and type(told.get("bytes")) is int and isinstance(told.get("sha256"), str)
            for told in files.values()
        )
    )


def _text(header: Header) -> bytes:
    return json.dumps(header, ensure_ascii=False, indent=1).encode() + b"\n"


def _sum(header: Header) -> str:
    return hashlib.sha256(json.dumps(header, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _entries(path: Path) -> Iterator[Sequence[Any]]:
    """Yield the entries of a metadata.json in blocks."""
    with path.open("rb") as file:
        found = elements(file)
        try:
            while block := list(islice(found, BLOCK_ROWS)):
                yield block
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
