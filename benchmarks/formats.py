"""What it costs to keep a memory in each format: bytes, write, open, first recall, append of 1,000. SQLite beside them.

    python benchmarks/formats.py              1,000, 10,000 and 100,000 passages (some minutes)
    python benchmarks/formats.py --million    a file of 1,000,000 passages, in bounded memory: HDF5 and NumPy

Texts are shuffled sentences of the examples; vectors are random, so that the formats are measured and not the embedder.
"open" is until `LatentMemory.open` returns; "first recall" comes on top of it, in a process that has just begun. An
append is one `add` of 1,000 turns, with what is written back.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from common import Report, chat, parser
from latent_memory import Conversation, LatentMemory, formats
from latent_memory.files import size_of
from latent_memory.formats import STORE
from latent_memory.snapshot import BLOCK_ROWS, Block, Snapshot
from latent_memory.vectors import Vectors, unit

DIMENSION = 384
FILES = {STORE: "store", "hdf5": "memory.h5", "npy_json": "npy", "csv_json": "csv", "pickle": "memory.pkl"}

T = TypeVar("T")


class RandomEmbedder:
    """Vectors of no meaning, at no cost."""

    name = "random"
    dimension = DIMENSION

    def __init__(self) -> None:
        self._chance = np.random.default_rng(7)

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:  # noqa: ARG002
        return unit(self._chance.standard_normal((len(texts), DIMENSION), dtype=np.float32))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


def renamed(turns: int, prefix: str) -> Iterator[Conversation]:
    for conversation in chat(turns, seed=1):
        yield Conversation(f"{prefix}-{conversation.conversation_id}", conversation.turns)


def used(path: Path) -> dict[str, float]:
    """Open a memory, recall, and append to it; return seconds."""
    opening, memory = timed(lambda: LatentMemory.open(path, embedder=RandomEmbedder()))
    with memory:
        recalling, _ = timed(lambda: memory.recall("what did I say about bread?"))
        appending, _ = timed(lambda: memory.add(renamed(1_000, "more")))
    return {"open": opening, "first recall": recalling, "append 1,000": appending}


def compare(report: Report, passages: int, place: Path) -> None:
    with LatentMemory.open(place / "source", embedder=RandomEmbedder()) as memory:
        memory.add(chat(passages))
        told: dict[str, dict[str, float]] = {}
        for layout, name in FILES.items():
            writing, _ = timed(lambda name=name, layout=layout: memory.save(place / name, layout))  # type: ignore[misc]
            told[layout] = {"MB": size_of(place / name) / 1e6, "write": writing}
    for layout, name in FILES.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            told[layout] |= fresh.submit(used, place / name).result()
        for what, value in told[layout].items():
            report.add(f"{passages:,} passages, {layout}: {what}", value, "MB" if what == "MB" else "s", "lower")
    raw = passages * DIMENSION * 4 / 1e6
    for layout in FILES:
        report.add(f"{passages:,} passages, {layout}: bytes / bytes of vectors", told[layout]["MB"] / raw, "x", "lower")


def large(layout: str, rows: int, place: Path) -> dict[str, float]:
    """Write and read rows through a format; return seconds and the most memory the process has used, in MB."""
    chance = np.random.default_rng(1)
    block = unit(chance.standard_normal((BLOCK_ROWS, DIMENSION), dtype=np.float32))

    def entry(i: int) -> dict[str, object]:
        return {
            "conversation_id": f"chat-{i // 20}",
            "summary": f"This is what was said at turn {i}: that the bread was better with less water, and why.",
            "timestamp": "2024-01-01T09:00:00",
            "title": "Bread and water",
            "type": "conversation",
            "role": "user",
            "name": "Ana",
            "turn": i % 20,
            "piece": 0,
            "start": 0,
            "scope": "default",
        }

    def blocks() -> Iterator[Block]:
        for start in range(0, rows, BLOCK_ROWS):
            m = min(BLOCK_ROWS, rows - start)
            yield Block(block[:m], [entry(i) for i in range(start, start + m)])

    path = place / FILES[layout]
    before = _most_kilobytes()
    snapshot = Snapshot(rows, DIMENSION, None, blocks)
    told = {"write": timed(lambda: formats.load(layout).write(path, snapshot))[0]}
    told["check and read"], count = timed(lambda: sum(len(b.entries) for b in formats.load(layout).read(path).blocks()))
    assert count == rows
    if layout == "hdf5":
        from latent_memory.formats.hdf5 import append

        more = Block(block[:1000], [entry(i) for i in range(rows, rows + 1000)])
        inode = path.stat().st_ino
        told["append 1,000, its sums to be read first"], sums = timed(lambda: append(path, [more], {}, None))
        written = _bytes_written()
        told["append 1,000"], _ = timed(lambda: append(path, [more], {}, sums))
        told["append 1,000: MB written"] = (_bytes_written() - written) / 1e6
        assert path.stat().st_ino == inode
    told["MB"] = size_of(path) / 1e6
    told["memory beyond the start's, MB"] = (_most_kilobytes() - before) / 1e3
    return told


def _most_kilobytes() -> float:
    """Return the most memory that this process has used; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)


def _bytes_written() -> int:
    """Return how many bytes this process has written, as Linux counts them; 0 elsewhere."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--million", action="store_true", help="the file of 1,000,000 passages instead")
    options.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()), help="where files are written")
    given = options.parse_args()
    report = Report(given.json)
    place = Path(tempfile.mkdtemp(dir=given.place))
    try:
        if given.million:
            rows = 20_000 if given.quick else 1_000_000
            for layout in ("hdf5", "npy_json"):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                    for what, value in fresh.submit(large, layout, rows, place).result().items():
                        report.add(f"{rows:,} rows, {layout}: {what}", value, "MB" if "MB" in what else "s", "lower")
        else:
            for passages in (1_000, 10_000) if given.quick else (1_000, 10_000, 100_000):
                (place / str(passages)).mkdir()
                compare(report, passages, place / str(passages))
                shutil.rmtree(place / str(passages))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    report.write()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
