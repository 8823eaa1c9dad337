"""NumPy + JSON: `embeddings.npy` (n, d) float32, and `metadata.json`, an array of n objects."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from latent_memory.errors import InputError
from latent_memory.formats.directory import read_directory, settle, write_directory
from latent_memory.snapshot import BLOCK_ROWS, Snapshot
from latent_memory.vectors import STORED, Vectors

FILE = "embeddings.npy"
# NumPy's own limit for headers that it does not trust.
_MOST_HEADER = 10_000


def read(path: Path) -> Snapshot:
    """Read a directory with `embeddings.npy` and `metadata.json`.

    Any plain numbers will do: they become float32.

    Raises:
        InputError: if it is no such directory, or a file is not what its name says.
        StoreDamagedError: if a file is not what was written.
    """
    return read_directory(path, FILE, _measure, _rows)


def write(path: Path, snapshot: Snapshot) -> None:
    """Write a directory with `embeddings.npy` and `metadata.json`."""
    write_directory(path, snapshot, "npy_json", FILE, _begin, _encode)


def recover(path: Path) -> None:
    """Finish a change that was made, or clear away one that was not."""
    settle(path)


def _begin(rows: int, dimension: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": STORED.str, "fortran_order": False, "shape": (rows, dimension)}
    )
    return header.getvalue()


def _encode(rows: Vectors) -> bytes:
    return rows.astype(STORED).tobytes()


def _header(file: IO[bytes], path: Path) -> tuple[tuple[int, int], bool, np.dtype[Any]]:
    """Read the file's header; what follows is the data."""
    try:
        version = np.lib.format.read_magic(file)
        length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
        if length > _MOST_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        file.seek(len(np.lib.format.magic(1, 0)))
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    except (ValueError, SyntaxError, EOFError, TypeError, TokenError, RecursionError, MemoryError) as error:
        told = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not a NumPy array of numbers ({told})") from None
    if len(shape) != 2 or dtype.kind not in "fiu" or dtype.hasobject:
        raise InputError(f"{path}: an array of numbers of shape (rows, dimension) was expected, not {dtype} {shape}")
    there = path.stat().st_size - file.tell()
    if there != shape[0] * shape[1] * dtype.itemsize:
        raise InputError(
            f"{path}: {there:,} bytes of data where {shape[0] * shape[1] * dtype.itemsize:,} belong to its shape "
            f"{shape}; the file was cut, or is not whole yet"
        )
    return (shape[0], shape[1]), fortran, dtype


def _measure(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        return _header(file, path)[0]


def _rows(path: Path) -> Iterator[tuple[Vectors, Mapping[int, InputError]]]:
    with path.open("rb") as file:
        (n, d), fortran, dtype = _header(file, path)
        begin = file.tell()
        for start in range(0, n, BLOCK_ROWS):
            m = min(BLOCK_ROWS, n - start)
            if fortran:
                columns = []
                for column in range(d):
                    file.seek(begin + (column * n + start) * dtype.itemsize)
                    columns.append(np.frombuffer(file.read(m * dtype.itemsize), dtype))
                block = np.stack(columns, axis=1)
            else:
                block = np.frombuffer(file.read(m * d * dtype.itemsize), dtype).reshape(m, d)
            with np.errstate(over="ignore"):
                block = np.ascontiguousarray(block, dtype=np.float32)
            yield block, {}
