"""Files that change in place: all of a change or nothing, and the bytes of the change alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.errors import InputError, StoreDamagedError, StoreFullError
from latent_memory.formats import hdf5, pages
from latent_memory.formats.pages import USER_BLOCK, Sums, commit, opened_pages, recover, sums_of
from latent_memory.snapshot import Block, Entry, Snapshot
from latent_memory.vectors import unit


def entry(number: int, text: str = "was said") -> Entry:
    return {"conversation_id": f"c{number}", "summary": f"word{number} {text}", "timestamp": "2025-01-01", "turn": 0}


def rows(start: int, count: int, dimension: int = 8) -> Block:
    vectors = unit(np.random.default_rng(start).normal(size=(count, dimension)))
    return Block(vectors, [entry(i) for i in range(start, start + count)])


def made(path: Path, count: int, dimension: int = 8) -> Path:
    vectors, entries = rows(0, count, dimension)
    hdf5.write(path, Snapshot.of(vectors, entries))  # type: ignore[arg-type]
    return path


def ids(path: Path) -> list[str]:
    return [found["conversation_id"] for found in hdf5.read(path).entries]


# -- Pages is a file ----------------------------------------------------------------------------------------

PLACES = st.integers(0, 20_000)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), PLACES, st.integers(1, 9_000)),
        st.tuples(st.just("truncate"), PLACES, st.just(0)),
        st.tuples(st.just("read"), PLACES, st.integers(0, 9_000)),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(length=st.integers(USER_BLOCK, 20_000), steps=STEPS)
def test_pages_read_and_write_as_a_plain_file_does(
    length: int, steps: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("pages") / "file"
    model = bytearray(os.urandom(length))
    path.write_bytes(model)
    model[:USER_BLOCK] = sums_of(path).user_block()
    path.write_bytes(model)
    before = bytes(model)
    with opened_pages(path) as file:
        for number, (what, at, size) in enumerate(steps):
            if what == "write":
                # HDF5 leaves alone what is ours.
                at = max(at, USER_BLOCK)
                data = bytes([number + 1]) * size
                assert (file.seek(at), file.write(data), file.tell()) == (at, size, at + size)
                model.extend(bytes(max(0, at + size - len(model))))
                model[at : at + size] = data
            elif what == "truncate":
                at = max(at, USER_BLOCK)
                assert file.truncate(at) == at
                model = model[:at].ljust(at, b"\0")
            else:
                file.seek(at)
                assert file.read(size) == model[at : at + size]
        assert (file.length, path.read_bytes()) == (len(model), before)
        sums = commit(path, file, sums_of(path))
    whole = path.read_bytes()
    assert whole[USER_BLOCK:] == model[USER_BLOCK:]
    assert whole[:USER_BLOCK] == sums.user_block()
    assert sums == sums_of(path)


# -- appending ----------------------------------------------------------------------------------------------


def test_rows_are_appended_in_place_and_the_sums_are_those_of_the_whole(tmp_path: Path) -> None:
    path = made(tmp_path / "memory.h5", 1_500, 384)
    inode, count = path.stat().st_ino, 1_500
    sums: Sums | None = None
    for size in (1, 2, 255, 256, 257, 1, 900, 1):
        changed = {count // 2: entry(count // 2, f"was said {size} times, \0 and more")}
        sums = hdf5.append(path, [rows(count, size, 384)], changed, sums)
        count += size
        assert sums == sums_of(path)
        assert path.stat().st_ino == inode
        read = hdf5.read(path)
        entries = read.entries
        assert (read.rows, len(entries)) == (count, count)
        assert entries[next(iter(changed))]["summary"] == next(iter(changed.values()))["summary"]
        np.testing.assert_array_equal(read.vectors[-size:], rows(count - size, size, 384).vectors)
    assert [found["conversation_id"] for found in entries] == [f"c{i}" for i in range(count)]
    with h5py.File(path) as file:
        assert file["embeddings"].shape == (count, 384)
    assert list(tmp_path.iterdir()) == [path]


def written_bytes() -> int:
    """Return how many bytes this process has handed to the system so far."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["wchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system does not count what a process writes")
def test_appending_writes_about_as_much_as_was_added(tmp_path: Path) -> None:
    path = made(tmp_path / "memory.h5", 6_000, 384)
    size = path.stat().st_size
    sums = hdf5.append(path, [rows(6_000, 1, 384)], {}, None)
    costs = []
    for i in range(6_001, 6_011):
        before = written_bytes()
        sums = hdf5.append(path, [rows(i, 1, 384)], {}, sums)
        costs.append(written_bytes() - before)
    # The pages that differ, twice: once in the journal.
    assert np.median(costs) < 100_000 < size / 60
    assert len(ids(path)) == 6_011


def test_a_file_that_is_not_ours_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "memory.h5"
    with h5py.File(path, "w") as file:
        file["embeddings"] = np.eye(3)
        file["metadata"] = np.zeros(3, [("conversation_id", "S8")])
    before = path.read_bytes()
    assert hdf5.append(path, [rows(3, 1, 3)], {}, None) is None
    assert path.read_bytes() == before


# -- stopped on the way -------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, bytes, bytes, bytes]]:
    """Give a file whose change stands in its journal only: the file, its bytes before and after, and the journal's."""
    path = made(tmp_path / "memory.h5", 40)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(pages, "recover", lambda path: None)
        hdf5.append(path, [rows(40, 300)], {3: entry(3, "is changed")}, None)
    journal = tmp_path / ".memory.h5.journal"
    told = journal.read_bytes()
    # What was reserved for it is zeros.
    assert path.read_bytes()[: len(before)] == before
    recover(path)
    after = path.read_bytes()
    assert not journal.exists()
    path.write_bytes(before)
    yield path, before, after, told
    assert not journal.exists()


Stopped = tuple[Path, bytes, bytes, bytes]


def test_a_whole_journal_is_applied(stopped: Stopped) -> None:
    path, before, after, told = stopped
    path.with_name(".memory.h5.journal").write_bytes(told)
    assert len(ids(path)) == 340
    assert path.read_bytes() == after != before


def told_anew(told: bytes, length: int, count: int, stretches: bytes) -> bytes:
    """Return a journal that says something else, with the sum that belongs to it."""
    head = len(b"latent-memory journal 1\n") + 32
    whole = told[head : head + 1024] + struct.pack("<QQ", length, count) + stretches
    return told[: head - 32] + hashlib.sha256(whole).digest() + whole


@pytest.mark.parametrize(
    ("length", "count", "stretches"),
    [
        (10_000, 1 << 40, b""),
        (10_000, 1, b"short"),
        (10_000, 1, struct.pack("<QQ", 600, 1_000) + b"cut"),
        (1 << 63, 1, struct.pack("<QQ", 600, 3) + b"abc"),
        (8 << 40, 1, struct.pack("<QQ", 600, 3) + b"abc"),
        (10_000, 1, struct.pack("<QQ", 1 << 62, 3) + b"abc"),
    ],
)
def test_a_journal_that_was_made_to_hurt_is_thrown_away(
    length: int, count: int, stretches: bytes, stopped: Stopped
) -> None:
    path, before, _, told = stopped
    path.with_name(".memory.h5.journal").write_bytes(told_anew(told, length, count, stretches))
    assert len(ids(path)) == 40
    assert path.read_bytes() == before


def test_a_link_in_the_journals_place_leads_nowhere(tmp_path: Path) -> None:
    path = made(tmp_path / "memory.h5", 4)
    journal, target = tmp_path / ".memory.h5.journal", tmp_path / "target"
    journal.symlink_to(target)
    with pytest.raises(InputError, match=r"\.memory\.h5\.journal: is no file of this library"):
        hdf5.read(path)
    # Also if it comes there after the look.
    hdf5.append(path, [rows(4, 2)], {}, None)
    assert not target.exists()
    assert not journal.is_symlink()
    assert len(ids(path)) == 6


def test_a_journal_that_is_not_whole_never_was(stopped: Stopped) -> None:
    path, before, _, told = stopped
    journal = path.with_name(".memory.h5.journal")
    for length in (*range(600), *range(600, len(told), 997), len(told) - 1):
        journal.write_bytes(told[:length])
        recover(path)
        assert path.read_bytes() == before
        assert not journal.exists()
    for at in range(0, len(told), 499):
        broken = bytearray(told)
        broken[at] ^= 1
        journal.write_bytes(broken)
        recover(path)
        assert path.read_bytes() == before
    assert len(ids(path)) == 40


class Stop(BaseException):
    pass


class Limited:
    """A file that takes so many bytes, and then the process is gone."""

    def __init__(self, file: Any, left: int) -> None:
        self._file = file
        self._left = left

    def write(self, data: Any) -> int:
        data = bytes(data)
        done: int = self._file.write(data[: self._left])
        self._left -= len(data)
        if self._left < 0:
            self._file.close()
            raise Stop
        return done

    def __enter__(self) -> Limited:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_journal_that_was_applied_in_part_is_applied_again(stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before, after, told = stopped
    journal = path.with_name(".memory.h5.journal")
    plain = Path.open
    whole = len(told)
    for most in (0, 1, 511, 512, 513, *range(1_000, whole, 7_919), whole - USER_BLOCK * 3):
        path.write_bytes(before)
        journal.write_bytes(told)
        with monkeypatch.context() as patched:

            def limited(file: Path, mode: str = "r", *rest: Any, most: int = most, **options: Any) -> Any:
                opened = plain(file, mode, *rest, **options)
                return Limited(opened, most) if mode == "r+b" else opened

            patched.setattr(Path, "open", limited)
            with pytest.raises(Stop):
                recover(path)
        assert journal.exists()
        recover(path)
        assert path.read_bytes() == after


@pytest.mark.parametrize("what", ["replaced", "gone", "stranger"])
def test_a_journal_beside_another_file_is_not_applied(what: str, stopped: Stopped) -> None:
    path, _, _, told = stopped
    journal = path.with_name(".memory.h5.journal")
    path.unlink()
    if what == "replaced":
        made(path, 7)
    elif what == "stranger":
        path.write_bytes(b"a text")
    before = path.read_bytes() if path.exists() else None
    journal.write_bytes(told)
    recover(path) if before is not None else made(path, 7)
    if before is None:
        before = path.read_bytes()
        recover(path)
    assert path.read_bytes() == before


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "memory.h5", 40)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for where in ("flush", "_reserve"):
        with monkeypatch.context() as patched:
            patched.setattr(pages, where, full)
            with pytest.raises(StoreFullError, match="as it was"):
                hdf5.append(path, [rows(40, 300)], {}, None)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(StoreFullError, match="as it was"):
            hdf5.append(path, [rows(40, 300)], {}, None)
    assert path.read_bytes() == before
    hdf5.append(path, [rows(40, 300)], {}, None)
    assert len(ids(path)) == 340


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.formats import pages
# A shell that runs this in the background has it ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
calls, most, memory = 0, 0, LatentMemory.open(sys.argv[1], embedder="hashing")
def interrupting(plain):
    def write(self, data):
        global calls
        calls += 1
        if calls == most:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, data)
    return write
pages.Pages.write, pages.Careful.write = interrupting(pages.Pages.write), interrupting(pages.Careful.write)
interrupts = 0
for most in (1, 2, 3, 5, 8, 13, 21, 34):
    calls = 0
    try:
        memory.add(Conversation(str(most), [Turn("user", f"word{most}")]))
    except KeyboardInterrupt:
        interrupts += 1
memory.close()
print(interrupts)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_an_interrupt_waits_while_hdf5_is_at_work(tmp_path: Path) -> None:
    # In a process of its own: HDF5 ends the one in which an exception passes through it.
    path = tmp_path / "memory.h5"
    run = subprocess.run([sys.executable, "-c", INTERRUPTED, path], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) >= 3
    assert ids(path) == ["1", "2", "3", "5", "8", "13", "21", "34"]


def test_a_change_in_the_middle_of_a_large_file_is_noticed(tmp_path: Path) -> None:
    path = made(tmp_path / "memory.h5", 2_000, 384)
    hdf5.append(path, [rows(2_000, 5, 384)], {}, None)
    for at in range(0, path.stat().st_size, 500_001):
        with path.open("r+b") as file:
            file.seek(at)
            was = file.read(1)
            file.seek(at)
            file.write(bytes([was[0] ^ 4]))
        with pytest.raises(StoreDamagedError, match="SHA-256"):
            hdf5.read(path)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(was)
    assert len(ids(path)) == 2_005


def test_a_journal_moves_with_its_file_or_not_at_all(stopped: Stopped, tmp_path: Path) -> None:
    path, _, after, told = stopped
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(path, elsewhere / "other.h5")
    assert len(ids(elsewhere / "other.h5")) == 40
    path.with_name(".memory.h5.journal").write_bytes(told)
    link = elsewhere / "link.h5"
    link.symlink_to(path)
    assert len(ids(link)) == 340
    assert path.read_bytes() == after


def test_a_memory_that_grows_stays_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "memory.h5"
    with LatentMemory.open(path, embedder="hashing") as memory:
        memory.add(Conversation("first", [Turn("user", "the first word")]))
        inode = path.stat().st_ino
        for i in range(12):
            memory.add(Conversation(f"c{i % 6}", [Turn("user", f"word{j}") for j in range(i // 6 + 1)], title=f"t{i}"))
            assert path.stat().st_ino == inode
        expected = [memory.get(f"c{i}") for i in range(6)]
        memory.forget("c3")
        assert path.stat().st_ino != inode
    with LatentMemory.open(path) as memory:
        assert [memory.get(f"c{i}") for i in range(6)] == [*expected[:3], None, *expected[4:]]
