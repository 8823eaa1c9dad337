"""CSV + JSON: `embeddings.csv`, a header of column numbers and then a row a passage, and `metadata.json`.

Numbers are written with as few digits as bring the same float32 back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, repeat
from pathlib import Path
from typing import IO

import numpy as np
import orjson

from latent_memory.errors import InputError
from latent_memory.formats.directory import read_directory, settle, write_directory
from latent_memory.snapshot import BLOCK_ROWS, Snapshot
from latent_memory.vectors import Vectors

FILE = "embeddings.csv"


def read(path: Path) -> Snapshot:
    """Read a directory with `embeddings.csv` and `metadata.json`; a CSV without a header row is read as well.

    Raises:
        InputError: if it is no such directory, or a file is not what its name says.
        StoreDamagedError: if a file is not what was written.
    """
    return read_directory(path, FILE, _measure, _rows)


def write(path: Path, snapshot: Snapshot) -> None:
    """Write a directory with `embeddings.csv` and `metadata.json`."""
    write_directory(path, snapshot, "csv_json", FILE, _begin, _encode)


def recover(path: Path) -> None:
    """Finish a change that was made, or clear away one that was not."""
    settle(path)


def _begin(_: int, dimension: int) -> bytes:
    # A file without columns is one that other readers refuse.
    return ",".join(map(str, range(max(1, dimension)))).encode() + b"\n"


def _encode(rows: Vectors) -> bytes:
    if not len(rows):
        return b""
    rows = np.ascontiguousarray(rows)
    numbers = orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)
    # Readers go by way of double precision, and one short decimal in 2**28 or so then rounds to the next float32.
    back = np.array(orjson.loads(numbers)).astype(np.float32)
    if (back.view(np.uint32) != rows.view(np.uint32)).any():
        exact = rows.astype(np.float64).tolist()
        return b"".join(",".join(map(repr, row)).encode() + b"\n" for row in exact)
    return numbers[2:-2].replace(b"],[", b"\n") + b"\n"


def _measure(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        d, first = _begun(file, path)
        return sum(1 for line in file if line.strip()) + (first is not None), d


def _begun(file: IO[bytes], path: Path) -> tuple[int, bytes | None]:
    """Read the header; return how many columns there are, and the first row if it was no header."""
    line = file.readline().removeprefix(b"\xef\xbb\xbf")
    fields = [field.strip().strip(b'"') for field in line.strip().split(b",")] if line.strip() else []
    if b";" in line or b"\t" in line:
        raise InputError(f"{path}, line 1: columns are separated by commas, and decimals written with a point")
    if fields and not fields[0]:
        raise InputError(
            f"{path}, line 1: the first column has no name, as when the row numbers were written along; write it "
            "without them (pandas: index=False)"
        )
    if fields == [str(i).encode() for i in range(len(fields))] or not all(map(_is_number, fields)):
        return len(fields), None
    return len(fields), line


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _rows(path: Path) -> Iterator[tuple[Vectors, Mapping[int, InputError]]]:
    with path.open("rb") as file:
        d, first = _begun(file, path)
        number = 1 if first else 2
        lines = [first] if first else []
        following = _without_blank_end(file)
        while True:
            lines += islice(following, BLOCK_ROWS - len(lines))
            if not lines:
                return
            yield _parsed(lines, d, number)
            number += len(lines)
            lines = []


def _without_blank_end(file: IO[bytes]) -> Iterator[bytes]:
    blank = 0
    for line in file:
        if line.strip():
            yield from repeat(b"\n", blank)
            blank = 0
            yield line
        else:
            blank += 1


def _parsed(lines: list[bytes], d: int, number: int) -> tuple[Vectors, Mapping[int, InputError]]:
    """Return rows (m, d) of lines that begin with that line number, and the errors of those that are none."""
    try:
        with np.errstate(over="ignore"):
            rows = np.loadtxt(lines, np.float32, comments=None, delimiter=",", ndmin=2, encoding="latin-1")
        if rows.shape == (len(lines), d):
            return rows, {}
    except ValueError:
        pass
    # Something is wrong somewhere: look at each line by itself.
    rows = np.zeros((len(lines), d), np.float32)
    errors: dict[int, InputError] = {}
    for i, line in enumerate(lines):
        fields = line.strip().split(b",")
        if len(fields) != d:
            hint = "; are decimals written with commas?" if len(fields) == 2 * d or b'"' in line or b";" in line else ""
            errors[i] = InputError(f"line {number + i}: {len(fields)} columns where line 1 has {d}{hint}")
            continue
        for column, field in enumerate(fields):
            try:
                rows[i, column] = float(field)
            except ValueError:
                told = field.decode(errors="replace")[:30]
                errors[i] = InputError(f"line {number + i}, column {column}: {told!r} is no number")
                break
    return rows, errors
