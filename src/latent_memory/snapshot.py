"""Snapshot: a whole memory as plain data, which is what the file formats hold.

Vectors, and one entry (a dict) for each: row i of the vectors belongs to entry i. Both come in blocks, so that a memory
of any size passes through in bounded memory. What an entry says is told in docs/formats.md, and read and written by
snapshots.py; here, and in the formats, entries are JSON data and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from latent_memory.errors import InputError
from latent_memory.records import EmbedderIdentity
from latent_memory.vectors import Vectors

Entry: TypeAlias = dict[str, Any]

# Rows that are in memory at once: 6 MB of 384 numbers each.
BLOCK_ROWS = 4096


# What an entry's values may be, a tuple for a list.
JSON_TYPES = frozenset({str, int, float, bool, type(None), list, tuple, dict})
# The widest embeddings in use have 12,288.
MOST_DIMENSION = 1 << 14


class Block(NamedTuple):
    """Some consecutive rows: vectors (m, d) float32, and m entries; an error in place of one that cannot be used."""

    vectors: Vectors
    entries: list[Entry | InputError]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole memory as plain data.

    Attributes:
        rows: n, how many there are.
        dimension: d, how many numbers a vector has; 0 if nothing tells it.
        embedder: what made the vectors; None if the source does not say.
        blocks: returns the rows from the first to the last, a block at a time; may be called again.
        name: what messages call the source.
        written: when the source was written; dates what tells no time itself.
        summed: whether the source carried checksums, which were right.
        beside: what else the source holds that is no part of a memory, by name.
    """

    rows: int
    dimension: int
    embedder: EmbedderIdentity | None
    blocks: Callable[[], Iterator[Block]]
    name: str = "memory"
    written: datetime | None = None
    summed: bool = False
    beside: tuple[str, ...] = ()

    @classmethod
    def of(cls, vectors: Vectors, entries: Sequence[Entry], embedder: EmbedderIdentity | None = None) -> Snapshot:
        """Return the snapshot of vectors (n, d) and n entries that are in memory."""
        if len(vectors) != len(entries):
            raise InputError(f"{len(vectors):,} vectors and {len(entries):,} entries; each vector needs one entry")

        def blocks() -> Iterator[Block]:
            for start in range(0, len(entries), BLOCK_ROWS):
                end = start + BLOCK_ROWS
                yield Block(vectors[start:end], list(entries[start:end]))

        return cls(len(entries), vectors.shape[1], embedder, blocks)

    @property
    def vectors(self) -> Vectors:
        """All vectors, (n, d) float32."""
        return stacked((block.vectors for block in self.blocks()), self.dimension)

    @property
    def entries(self) -> list[Entry]:
        """All entries.

        Raises:
            InputError: if one cannot be used.
        """
        found: list[Entry] = []
        for entry in (entry for block in self.blocks() for entry in block.entries):
            if isinstance(entry, InputError):
                raise InputError(f"{self.name}, entry {len(found)}: {entry}")
            found.append(entry)
        return found


def maker(told: Any, name: str, dimension: int | None) -> EmbedderIdentity | None:
    """Return what a file of ours tells of the embedder that made its vectors; None if it tells nothing.

    Args:
        told: what stands there.
        name: what messages call the file.
        dimension: how many numbers its vectors have; None if it has none.

    Raises:
        InputError: if it is not what this library writes.
    """
    if told is None:
        return None
    try:
        made_by = EmbedderIdentity(**told)
    except TypeError:
        made_by = None
    if (
        made_by is None
        or [type(part) for part in made_by] != [str, int, str]
        or dimension not in (made_by.dimension, None)
    ):
        raise InputError(f"{name}: what it tells of its embedder is not what this library writes: {repr(told)[:60]}")
    return made_by


def stacked(blocks: Iterable[Vectors], dimension: int) -> Vectors:
    """Return blocks of vectors as one array (n, d) float32."""
    found = list(blocks)
    return np.concatenate(found) if found else np.zeros((0, dimension), np.float32)


def paired(
    rows: Iterable[tuple[Vectors, Mapping[int, InputError]]],
    entries: Iterable[Sequence[Any]],
    rows_from: str,
    entries_from: str,
) -> Iterator[Block]:
    """Bring vectors and entries together, row by row; both come in blocks of BLOCK_ROWS.

    A row of which the one or the other cannot be used has an InputError in place of its entry; so has one more row at
    the end, if there are not as many of both.

    Args:
        rows: arrays (m, d), with the errors of those rows that could not be read.
        entries: lists of JSON values.
        rows_from, entries_from: what messages call the two.
    """
    nothing: tuple[Vectors, Mapping[int, InputError]] = (np.zeros((0, 0), np.float32), {})
    row_blocks, entry_blocks = iter(rows), iter(entries)
    vectors_seen = entries_seen = 0
    while True:
        vectors, errors = next(row_blocks, nothing)
        values = next(entry_blocks, ())
        vectors_seen += len(vectors)
        entries_seen += len(values)
        both = min(len(vectors), len(values))
        if both:
            usable = [errors.get(i) or _entry(value) for i, value in enumerate(values[:both])]
            yield Block(vectors[:both], usable)
        if not len(vectors) and not values:
            break
    if vectors_seen != entries_seen:
        error = InputError(
            f"{vectors_seen:,} vectors in {rows_from} and {entries_seen:,} entries in {entries_from}; row i of the one "
            "belongs to entry i of the other, and what is left over belongs to nothing"
        )
        yield Block(np.zeros((1, 0), np.float32), [error])


def _entry(value: Any) -> Entry | InputError:
    if isinstance(value, InputError):
        return value
    if isinstance(value, dict):
        for key, told in value.items():
            if type(key) is not str or type(told) not in JSON_TYPES:
                kind = type(told).__name__ if type(key) is str else f"key that is no text, but a {type(key).__name__}"
                return InputError(f"{str(key)[:40]}: a {kind}; texts, numbers, lists and objects were expected")
        return value
    return InputError(f"an object was expected, not {repr(value)[:60]}")
