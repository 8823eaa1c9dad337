"""A memory that lives in a file: written back as a whole or not at all, by one process at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_memory import Conversation, LatentMemory, Turn, formats, portable
from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.errors import (
    EmbedderMismatchError,
    InputError,
    LatentMemoryError,
    MissingExtraError,
    StoreBusyError,
    StoreError,
    StoreFullError,
)
from latent_memory.records import EmbedderIdentity
from latent_memory.snapshot import Snapshot
from latent_memory.vectors import Vectors, unit

LAYOUTS = formats.NAMES
DIRECTORIES = ("csv_json", "npy_json")
PLACES = {"csv_json": "csv", "npy_json": "npy", "hdf5": "memory.h5", "pickle": "memory.pkl"}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(layout: str, tmp_path: Path) -> Path:
    return tmp_path / "home" / PLACES[layout]


def talk(name: str, *texts: str) -> Conversation:
    return Conversation(name, [Turn("user", text) for text in texts or (f"{name} was said",)])


def opened(path: Path, layout: str, **options: Any) -> LatentMemory:
    return LatentMemory.open(path, embedder="hashing", format=layout, **options)


def ids(path: Path, layout: str) -> list[str]:
    """Return what the file says by itself, whoever has it open."""
    return [entry["conversation_id"] for entry in formats.load(layout).read(path).entries]


def contents(directory: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(directory.rglob("*")) if file.is_file()}


def names(path: Path, layout: str) -> set[str]:
    """Return the names of what belongs to the memory and stands beside it."""
    return {file.name for file in (path if layout in DIRECTORIES else path.parent).iterdir()}


def told(path: Path, layout: str) -> dict[str, int]:
    """Return when the files were written."""
    files = [path / name for name in formats.files_of(layout)] or [path]
    return {file.name: file.stat().st_mtime_ns for file in files}


def clean(path: Path, layout: str) -> bool:
    return names(path, layout) == (set(formats.files_of(layout)) or {path.name})


# -- living in a file ---------------------------------------------------------------------------------------


def test_each_change_is_written_back(path: Path, layout: str) -> None:
    with opened(path, layout) as memory:
        memory.add(talk("tea", "Green tea at seventy degrees."))
        assert ids(path, layout) == ["tea"]
        memory.add([talk("tax", "The tax return is due in May."), talk("tea", "Green tea at seventy degrees.", "Yes.")])
        assert sorted(ids(path, layout)) == ["tax", "tea", "tea"]
        assert memory.recall("when is the tax due?")[0].passage.conversation_id == "tax"
        assert "seventy" in memory.context("green tea").text
        before = told(path, layout)
        memory.add(talk("tax", "The tax return is due in May."))
        assert told(path, layout) == before
        assert memory.forget("tea") == 1
        assert ids(path, layout) == ["tax"]
        memory.reembed(HashingEmbedder(32))
        assert formats.load(layout).read(path).dimension == 32
        memory.forget(everything=True)
        assert ids(path, layout) == []
        memory.add(talk("again"))
    assert clean(path, layout)
    with LatentMemory.open(path, embedder=HashingEmbedder(32)) as memory:
        assert memory.stats().conversations == 1
        assert memory.recall("again")[0].passage.conversation_id == "again"
        assert memory.stats().bytes < 400_000


def test_without_autosave_a_file_is_written_on_save_and_on_closing(path: Path, layout: str) -> None:
    with opened(path, layout, autosave=False) as memory:
        memory.add(talk("one"))
        assert not path.exists() or formats.detect(path) is None
        memory.save()
        assert ids(path, layout) == ["one"]
        memory.add(talk("two"))
        assert ids(path, layout) == ["one"]
    assert ids(path, layout) == ["one", "two"]
    assert clean(path, layout)


def test_a_memory_that_was_only_looked_at_is_not_written(path: Path, layout: str, tmp_path: Path) -> None:
    with opened(path, layout) as memory:
        memory.add([talk("one"), talk("two")])
    before = {file: (data, file.stat().st_mtime_ns) for file, data in contents(tmp_path).items()}
    with LatentMemory.open(path) as memory:
        assert len(memory.recall("two was said")) == 2
        assert memory.conversations(limit=5)
        memory.save()
    assert {file: (data, file.stat().st_mtime_ns) for file, data in contents(tmp_path).items()} == before


def test_the_format_makes_a_file_of_any_name(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with opened(path, layout) as memory:
        memory.add(talk("one"))
    with LatentMemory.open(path) as memory:
        assert memory.stats().conversations == 1
    other = next(name for name in LAYOUTS if name != layout)
    with pytest.raises(InputError, match=f"is of the format {layout}, not {other}"):
        opened(path, other)
    with pytest.raises(InputError, match="unknown"):
        opened(path, "xml")


def test_a_memory_can_be_saved_to_every_other_format_and_onto_itself(path: Path, layout: str, tmp_path: Path) -> None:
    with opened(path, layout) as memory:
        memory.add([talk("one"), talk("two")])
        memory.save(path)
        for other in LAYOUTS:
            copy = tmp_path / "copies" / PLACES[other]
            for _ in range(2):
                memory.save(copy, other)
                assert ids(copy, other) == ["one", "two"]
                assert {
                    file.name for file in copy.parent.rglob("*") if file.suffix in (".lock", ".tmp", ".new")
                } == set()
    assert clean(path, layout)


def test_places_that_are_taken_by_something_else(path: Path, layout: str, tmp_path: Path) -> None:
    file, directory, store = tmp_path / "file", tmp_path / "directory", tmp_path / "store"
    file.write_bytes(b"mine")
    directory.mkdir()
    (directory / "letter").write_bytes(b"mine")
    with opened(path, layout) as memory, LatentMemory.open(store, embedder="hashing") as there:
        memory.add(talk("one"))
        there.add(talk("two"))
        for place, kinds in (
            (file, (*DIRECTORIES, "sqlite")),
            (directory, ("hdf5", "pickle", "sqlite")),
            (store, (*LAYOUTS, "sqlite")),
            (tmp_path / "x.h5", ("pickle", "csv_json", "sqlite")),
            (tmp_path / "nowhere", (None,)),
        ):
            for kind in kinds:
                with pytest.raises(InputError, match=place.name):
                    memory.save(place, kind)
    assert contents(directory) == {directory / "letter": b"mine"}
    assert file.read_bytes() == b"mine"


def test_rows_that_were_left_out_are_never_lost_from_the_file(path: Path, layout: str, tmp_path: Path) -> None:
    entries = [{"conversation_id": name, "summary": name, "timestamp": "2025-01-01"} for name in ("a", "a", "b")]
    vectors = unit(np.eye(3, 256))
    path.parent.mkdir()
    formats.load(layout).write(path, Snapshot.of(vectors, entries, EmbedderIdentity("hashing", 256, "")))
    before = contents(tmp_path)
    said: list[InputError] = []
    with LatentMemory.open(path, on_bad=said.append) as memory:
        for change in (lambda: memory.add(talk("new")), lambda: memory.forget("a"), lambda: memory.reembed("hashing")):
            with pytest.raises(StoreError, match="1 of its rows were left out"):
                change()
        memory.save()
        assert memory.stats().conversations == 2
        memory.save(tmp_path / "rest" / "rest.pkl")
    assert len(said) == 1
    unsaved = LatentMemory.open(path, on_bad=said.append, autosave=False)
    unsaved.add(talk("new"))
    for save in (unsaved.save, lambda: unsaved.save(path), unsaved.close):
        with pytest.raises(StoreError, match="1 of its rows were left out"):
            save()
    assert {file: data for file, data in contents(tmp_path).items() if "rest" not in str(file)} == before
    assert ids(tmp_path / "rest" / "rest.pkl", "pickle") == ["a", "b"]
    with LatentMemory.open(tmp_path / "rest" / "rest.pkl", on_bad=said.append) as memory:
        memory.add(talk("new"))
    assert ids(tmp_path / "rest" / "rest.pkl", "pickle") == ["a", "b", "new"]


# -- one process at a time ----------------------------------------------------------------------------------

OPENER = """
import sys
from latent_memory import LatentMemory
from latent_memory.errors import StoreBusyError
try:
    LatentMemory.open(sys.argv[1], embedder="hashing").close()
except StoreBusyError as error:
    print(error)
"""


@pytest.mark.parametrize("layout", ["csv_json", "hdf5"])
def test_a_second_process_is_refused(path: Path, layout: str) -> None:
    with opened(path, layout) as memory:
        memory.add(talk("one"))
        told = subprocess.run([sys.executable, "-c", OPENER, path], capture_output=True, text=True, timeout=60)
        assert f"{path}: is open in another process" in told.stdout, told.stderr
        memory.add(talk("two"))
    told = subprocess.run([sys.executable, "-c", OPENER, path], capture_output=True, text=True, timeout=60)
    assert (told.stdout, told.stderr) == ("", "")
    assert ids(path, layout) == ["one", "two"]


def test_a_second_opening_in_the_same_process_is_refused(
    path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "_WAIT_SECONDS", 0.05)
    with opened(path, layout) as memory:
        memory.add(talk("one"))
        with pytest.raises(StoreBusyError, match="is open"):
            opened(path, layout)
        with LatentMemory.open(path.parent / "elsewhere", embedder="hashing") as other:
            other.add(talk("two"))
            with pytest.raises(StoreBusyError, match="is open"):
                other.save(path, layout)
        memory.add(talk("three"))
    assert ids(path, layout) == ["one", "three"]


ADDER = """
import sys
from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.errors import StoreBusyError
path, layout, prefix, rounds, batch = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
done = 0
while done < rounds:
    try:
        with LatentMemory.open(path, embedder="hashing", format=layout) as memory:
            for done in range(done + 1, rounds + 1):
                names = [f"{prefix}-{done}-{i}" for i in range(batch)]
                memory.add(Conversation(name, [Turn("user", f"{name} was said")]) for name in names)
                print("\\n".join(names), flush=True)
                if batch == 1:
                    break
    except StoreBusyError:
        pass
"""


def adder(path: Path, layout: str, prefix: str, rounds: int, batch: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", ADDER, str(path), layout, prefix, str(rounds), str(batch)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_open_and_close_a_file_in_turn_lose_nothing(path: Path, layout: str) -> None:
    processes = [adder(path, layout, f"p{number}", 6, 1) for number in range(3)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    assert sorted(ids(path, layout)) == sorted(f"p{n}-{i}-0" for n in range(3) for i in range(1, 7))
    assert clean(path, layout)


def test_what_was_reported_survives_kill_9(path: Path, layout: str) -> None:
    """Processes add until they are killed in the middle of it; nothing that they reported may be missing."""
    reported: list[str] = []
    for round_, (batch, lines) in enumerate(((3, 3), (2, 21), (40, 90), (7, 40))):
        process = adder(path, layout, f"r{round_}", 100_000, batch)
        assert process.stdout is not None
        reported += [process.stdout.readline() for _ in range(lines)]
        # One that ended by itself has reported nothing more.
        ended = process.poll()
        process.kill()
        out, err = process.communicate()
        assert (ended, err) == (None, "")
        reported += [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
        assert {line.strip() for line in reported} <= set(ids(path, layout))
    with LatentMemory.open(path) as memory:
        for name in {line.strip() for line in reported}:
            found = memory.get(name)
            assert found is not None
            assert found.turns[0].text == f"{name} was said"
        name = reported[-1].strip()
        assert memory.recall(f"{name} was said", k=1)[0].passage.text == f"{name} was said"
        stats = memory.stats()
        assert stats.turns == stats.passages == stats.conversations
    assert clean(path, layout)


def test_what_a_killed_process_has_left_is_cleared_away(path: Path, layout: str) -> None:
    with opened(path, layout) as memory:
        memory.add(talk("one"))
    working = path / ".working" if layout in DIRECTORIES else path.with_name(f".{path.name}.working")
    working.mkdir()
    (working / "memory.sqlite").write_bytes(b"half a database")
    written = path / "latent_memory.json" if layout in DIRECTORIES else path
    written.with_name(f".{written.name}.0123abcd.tmp").write_bytes(b"half a file")
    mine = written.with_name(f".{written.name}.mine.tmp")
    mine.write_bytes(b"mine")
    with LatentMemory.open(path) as memory:
        memory.add(talk("two"))
    assert ids(path, layout) == ["one", "two"]
    mine.unlink()
    assert clean(path, layout)


def test_threads_add_at_once(path: Path, layout: str) -> None:
    with opened(path, layout) as memory:

        def add(number: int) -> None:
            for i in range(6):
                memory.add(talk(f"t{number}-{i}"))

        threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ids(path, layout)) == [f"t{number}-{i}" for number in range(4) for i in range(6)]
    assert clean(path, layout)


# -- what can go wrong --------------------------------------------------------------------------------------


def test_a_file_that_another_program_has_changed_is_left_alone(path: Path, layout: str, tmp_path: Path) -> None:
    memory = opened(path, layout)
    memory.add(talk("one"))
    other = unit(np.eye(1, 256))
    entries = [{"conversation_id": "theirs", "summary": "theirs", "timestamp": "2025-01-01"}]
    formats.load(layout).write(path, Snapshot.of(other, entries))
    for _ in range(2):
        # The second time it is there already, and nowhere on disk.
        with pytest.raises(StoreError, match="another program has changed it"):
            memory.add(talk("two"))
    assert ids(path, layout) == ["theirs"]
    memory.save(tmp_path / "saved" / "rescue.pkl")
    assert ids(tmp_path / "saved" / "rescue.pkl", "pickle") == ["one", "two"]
    with pytest.raises(StoreError, match="another program has changed it"):
        memory.close()
    assert ids(path, layout) == ["theirs"]
    with LatentMemory.open(path) as memory:
        assert memory.stats().conversations == 1


def test_where_nothing_can_be_written_a_memory_is_read(
    path: Path, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path, layout) as memory:
        memory.add([talk("one"), talk("two")])
    before = contents(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # As root, whom no permission stops, tests would write anyway.
    monkeypatch.setattr("latent_memory.portable.FileLock.acquire", refuse)
    with LatentMemory.open(path) as memory:
        assert memory.recall("two was said", k=1)[0].passage.conversation_id == "two"
        with pytest.raises(StoreError, match="nothing can be written there"):
            memory.add(talk("three"))
        assert memory.get("three") is None
    unsaved = LatentMemory.open(path, autosave=False)
    unsaved.add(talk("three"))
    with pytest.raises(StoreError, match="nothing can be written there"):
        unsaved.close()
    assert contents(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_that_is_read_only(path: Path, layout: str) -> None:
    with opened(path, layout) as memory:
        memory.add([talk("one"), talk("two")])
    directory = path if layout in DIRECTORIES else path.parent
    directory.chmod(0o500)
    try:
        with LatentMemory.open(path) as memory:
            assert memory.recall("two was said", k=1)[0].passage.conversation_id == "two"
    finally:
        directory.chmod(0o700)


def test_a_full_disk_leaves_the_file_as_it_was(path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path, layout) as memory:
        memory.add(talk("one"))
        before = contents(path.parent)
        plain = os.fsync

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        for name in ("two", "three"):
            with pytest.raises(StoreFullError, match="as it was"):
                memory.add(talk(name))
            after = contents(path.parent)
            assert {file: after[file] for file in before if "working" not in str(file)} == {
                file: data for file, data in before.items() if "working" not in str(file)
            }
            assert not [file for file in after if file.suffix in (".new", ".tmp", ".journal")]
        monkeypatch.setattr(os, "fsync", plain)
        # What could not be written is, as soon as there is room.
        memory.add(talk("four"))
        assert ids(path, layout) == ["one", "two", "three", "four"]
    assert clean(path, layout)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from latent_memory import formats
from latent_memory.errors import StoreError
from latent_memory.snapshot import Snapshot
entries = [{"conversation_id": str(i), "summary": "said " * 20} for i in range(1_000)]
module = formats.load(sys.argv[2])
for limit in range(5_000, 400_000, 40_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        module.write(Path(sys.argv[1]), Snapshot.of(np.ones((1_000, 384), np.float32), entries))
    except StoreError as error:
        assert "File too large" in str(error), error
        print("refused")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit to a file's size")
def test_a_disk_that_fails_in_the_middle_of_a_file_leaves_the_old_one(path: Path, layout: str) -> None:
    # In a process of its own: HDF5 ends the one in which a file fails under it, if it is let.
    path.parent.mkdir()
    old = snapshot("old", 3)
    formats.load(layout).write(path, old)
    run = subprocess.run([sys.executable, "-c", LIMITED, path, layout], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "refused\n" * 10)
    assert whole(path, layout) == (old.entries, old.vectors.tobytes())
    assert clean(path, layout)


def test_an_interrupted_add_keeps_what_it_reported(path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_memory.ingest.BATCH_CONVERSATIONS", 5)
    reported = 0

    def interrupted() -> Iterator[Conversation]:
        for i in range(13):
            yield talk(f"c{i}")
        raise KeyboardInterrupt

    def progress(report: Any) -> None:
        nonlocal reported
        reported = report.added

    with opened(path, layout) as memory:
        with pytest.raises(KeyboardInterrupt):
            memory.add(interrupted(), progress=progress)
        assert reported == 10
        assert ids(path, layout) == [f"c{i}" for i in range(10)]
    assert clean(path, layout)


class Gone(BaseException):
    """The process was stopped."""


class Steps:
    """Counts the steps that change a disk; from one of them on, none is done any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int, forever: bool) -> None:
        self.done = 0
        self.after = after
        self.forever = forever
        for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "rename"), (Path, "rmdir"), (os, "fsync")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        plain = Path.open

        def opened(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if mode != "rb":
                self.step()
            return plain(path, mode, *rest, **options)

        monkeypatch.setattr(Path, "open", opened)

    def step(self) -> None:
        self.done += 1
        if self.done > self.after if self.forever else self.done == self.after + 1:
            raise Gone

    def _counted(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.step()
            return plain(*arguments, **options)

        return counted


def snapshot(word: str, count: int) -> Snapshot:
    entries = [{"conversation_id": f"{word}{i}", "summary": word, "timestamp": "2025-01-01"} for i in range(count)]
    return Snapshot.of(unit(np.random.default_rng(count).normal(size=(count, 4))), entries)


def whole(path: Path, layout: str) -> tuple[list[Any], bytes]:
    read = formats.load(layout).read(path)
    return read.entries, read.vectors.tobytes()


# Whether a process is gone, or goes on to clear up after an exception.
@pytest.mark.parametrize("forever", [True, False])
@pytest.mark.parametrize("before", ["ours", "plain", "nothing", "another layout"])
def test_stopped_at_any_step_the_old_state_is_there_or_the_new(
    path: Path, layout: str, before: str, forever: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before in ("plain", "another layout") and layout not in DIRECTORIES:
        pytest.skip("one file has no header beside it, and no other vectors")
    module = formats.load(layout)
    new = snapshot("new", 5)
    new_state = (new.entries, new.vectors.tobytes())
    first = next(name for name in DIRECTORIES if name != layout) if before == "another layout" else layout
    seen: set[str] = set()
    for after in range(100):
        place = tmp_path / str(after) / path.name
        place.parent.mkdir()
        old_state = None
        if before != "nothing":
            formats.load(first).write(place, snapshot("old", 3))
            old_state = whole(place, first)
        if before == "plain":
            (place / "latent_memory.json").unlink()
        with monkeypatch.context() as patched:
            steps = Steps(patched, after, forever)
            try:
                module.write(place, new)
            except Gone:
                finished = False
            else:
                finished = True
        found = formats.detect(place)
        state = None if found is None else whole(place, found)
        assert state in (old_state, new_state)
        seen.add("new" if state == new_state else "old")
        # Whatever was left does not stand in the way.
        third = snapshot("third", 4)
        module.write(place, third)
        assert whole(place, layout) == (third.entries, third.vectors.tobytes())
        assert formats.detect(place) == layout
        if layout in DIRECTORIES:
            left = {name for name in names(place, layout) if not name.endswith(".tmp")}
            assert left - {"embeddings.csv", "embeddings.npy"} == {"metadata.json", "latent_memory.json"}
        if finished:
            assert steps.done <= after
            break
    assert seen == {"old", "new"}


def test_an_interrupted_save_is_made_good_by_the_next(
    path: Path, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for after in range(40):
        place = tmp_path / str(after) / path.name
        with opened(place, layout) as memory:
            memory.add([talk("one"), talk("two")])
            memory.add(talk("three"))
            with monkeypatch.context() as patched:
                Steps(patched, after, False)
                try:
                    memory.add(talk("four"))
                except Gone:
                    finished = False
                else:
                    finished = True
            # Elsewhere: whoever reads finishes what was begun, and a memory has its file to itself.
            copy = tmp_path / f"copy{after}"
            shutil.copytree(place.parent, copy, ignore=shutil.ignore_patterns(".*lock", ".*working"))
            assert ids(copy / place.name, layout) in (["one", "two", "three"], ["one", "two", "three", "four"])
            memory.add(talk("five"))
            assert ids(place, layout) == ["one", "two", "three", "four", "five"]
        assert ids(place, layout) == ["one", "two", "three", "four", "five"]
        assert clean(place, layout)
        if finished:
            break
    assert finished


def test_what_is_added_while_a_file_is_written_is_written_after_it(
    path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second add ends between the moment when the first one's file is whole and the moment when that is noted."""
    with opened(path, layout) as memory:
        memory.add(talk("one"))
        home = memory._home
        assert home is not None
        plain = home._look
        waiting: list[threading.Thread] = []

        def look() -> dict[str, Any]:
            if not waiting and "two" in ids(path, layout):
                waiting.append(threading.Thread(target=lambda: memory.add(talk("three"))))
                waiting[0].start()
            return plain()

        monkeypatch.setattr(home, "_look", look)
        memory.add(talk("two"))
        waiting[0].join()
        assert ids(path, layout) == ["one", "two", "three"]


class Naming(HashingEmbedder):
    name = "naming"

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        return super().embed(texts, query=query)


def test_an_embedder_of_ones_own_is_named_in_the_file(path: Path, layout: str) -> None:
    with LatentMemory.open(path, embedder=Naming(16), format=layout) as memory:
        memory.add(talk("one"))
    with LatentMemory.open(path) as memory, pytest.raises(LatentMemoryError, match="embedder of your own, 'naming'"):
        memory.recall("one")
    with LatentMemory.open(path, embedder=Naming(16)) as memory:
        assert memory.recall("one")[0].passage.conversation_id == "one"


# -- places that could be mistaken --------------------------------------------------------------------------


def test_another_tools_files_in_a_directory_are_not_replaced(tmp_path: Path) -> None:
    with LatentMemory.open(tmp_path / "store", embedder="hashing") as memory:
        memory.add(talk("one"))
        for layout in DIRECTORIES:
            for number, there in enumerate(
                (["metadata.json"], ["embeddings.csv", "metadata.json"], ["embeddings.npy"])
            ):
                place = tmp_path / f"{layout}{number}"
                place.mkdir()
                for name in there:
                    (place / name).write_text('{"my": "project"}')
                if formats.detect(place) == layout:
                    continue
                before = contents(place)
                with pytest.raises(InputError, match=r"already exists, and is (no memory|a memory of the format)"):
                    memory.save(place, layout)
                assert contents(place) == before
        for layout in ("pickle", "hdf5"):
            place = tmp_path / "letter"
            place.write_bytes(b"Dear Ana,")
            with pytest.raises(InputError, match="is no memory"):
                memory.save(place, layout)
            assert place.read_bytes() == b"Dear Ana,"
        memory.save(tmp_path / "ours", "npy_json")
        with pytest.raises(InputError, match="a memory of the format npy_json"):
            memory.save(tmp_path / "ours", "csv_json")
        assert ids(tmp_path / "ours", "npy_json") == ["one"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in directories")
def test_what_is_neither_a_file_nor_a_directory_is_left_alone(tmp_path: Path) -> None:
    with LatentMemory.open(tmp_path / "store", embedder="hashing") as memory:
        memory.add(talk("one"))
        for name in ("memory.pkl", "memory.h5", "memory.json"):
            os.mkfifo(tmp_path / name)
            with pytest.raises(InputError, match="neither a file nor a directory"):
                memory.save(tmp_path / name)
            with pytest.raises(InputError, match="neither a file nor a directory"):
                LatentMemory.open(tmp_path / name)
            assert (tmp_path / name).is_fifo()


def test_a_memory_is_not_written_over_itself_in_another_format(path: Path, layout: str) -> None:
    with opened(path, layout) as memory:
        memory.add(talk("one"))
        before = told(path, layout)
        for other in {*LAYOUTS, "sqlite"} - {layout}:
            with pytest.raises(InputError, match=f"lives there, as {layout}"):
                memory.save(path, other)
        assert memory.save(path, layout) == 1
        assert told(path, layout) == before


def test_a_name_that_says_another_format(tmp_path: Path) -> None:
    for name, layout in (("x.pkl", "csv_json"), ("x.h5", "pickle"), ("x.pkl", "sqlite"), ("x.db", "sqlite")):
        with pytest.raises(InputError, match=r"a name that ends in \.\w+ is for the format"):
            opened(tmp_path / name, layout)
    for name in ("d.pkl", "d.h5"):
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match="is a directory, and"):
            LatentMemory.open(tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["d.h5", "d.pkl"]


def test_a_relative_path_means_where_it_was_opened(
    path: Path, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    monkeypatch.chdir(path.parent)
    with opened(Path(path.name), layout) as memory:
        memory.add(talk("one"))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert memory.save(path) == 1
        assert memory.stats().bytes > 0
        memory.add(talk("two"))
        memory.save(path.name, layout)
    for place in (path, tmp_path / "elsewhere" / path.name):
        assert ids(place, layout) == ["one", "two"]


# -- permissions, forks, missing parts ----------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
def test_permissions_stay(path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path, layout) as memory:
        memory.add([talk("one"), talk("two")])
        files = [path / name for name in formats.files_of(layout)] or [path]
        for file in files:
            file.chmod(0o600)
    with opened(path, layout) as memory:
        memory.add(talk("three"))
        memory.forget("one")
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
        plain = os.access
        monkeypatch.setattr(os, "access", lambda file, mode: mode != os.W_OK and plain(file, mode))
        before = {file: file.read_bytes() for file in files}
        with pytest.raises(StoreError, match="may not be written"):
            memory.forget("two")
        assert {file: file.read_bytes() for file in files} == before
        monkeypatch.undo()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.parametrize("autosave", [True, False])
def test_a_forked_child_changes_nothing(path: Path, layout: str, autosave: bool) -> None:
    with opened(path, layout, autosave=autosave) as memory:
        memory.add(talk("one"))
        child = os.fork()
        if not child:
            code = 1
            try:
                for change in (lambda: memory.add(talk("child")), lambda: memory.forget("one")):
                    with pytest.raises(StoreError, match="belongs to the process that opened it"):
                        change()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        memory.add(talk("two"))
    assert ids(path, layout) == ["one", "two"]


def test_hdf5_without_h5py_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r'pip install "latent-memory\[formats\]"'):
        LatentMemory.open(tmp_path / "new.h5")
    assert list(tmp_path.iterdir()) == []


# -- what was left, what has changed, what is not ours ------------------------------------------------------


@pytest.mark.parametrize("layout", DIRECTORIES)
def test_a_change_that_was_stopped_halfway_is_finished_when_the_directory_is_opened(
    path: Path, layout: str, tmp_path: Path
) -> None:
    with opened(path, layout) as memory:
        memory.add([talk("secret"), talk("two")])
    old = (path / "metadata.json").read_bytes()
    with opened(path, layout) as memory:
        memory.forget("secret")
    # As if the process had been killed between the two renames.
    (path / "metadata.json").rename(path / "metadata.json.new")
    (path / "metadata.json").write_bytes(old)
    LatentMemory.open(path).close()
    assert clean(path, layout)
    assert b"secret" not in (path / "metadata.json").read_bytes()
    assert ids(path, layout) == ["two"]


@pytest.mark.parametrize("layout", ["csv_json", "npy_json", "hdf5"])
def test_a_change_between_the_check_and_the_reading_is_noticed(path: Path, layout: str) -> None:
    with opened(path, layout) as memory:
        memory.add([talk("one"), talk("two")])
    read = formats.load(layout).read(path)
    file = path if layout == "hdf5" else path / formats.files_of(layout)[0]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="changed while it was read"):
        list(read.blocks())


def test_metadata_that_a_pickle_reader_would_refuse_comes_back(path: Path, layout: str) -> None:
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    told = {"deep": deep, "digits": 10**4299, "negative": -(10**4299), "plain": [1, {"a": None}]}
    with opened(path, layout) as memory:
        memory.add(Conversation("a", [Turn("user", "hello")], metadata=told))
        memory.add(talk("b"))
    with LatentMemory.open(path) as memory:
        found = memory.get("a")
        assert found is not None
        assert found.metadata == told


def test_what_a_file_says_of_its_model_is_not_enough_to_use_it(path: Path, layout: str) -> None:
    path.parent.mkdir()
    entries = [{"conversation_id": "a", "summary": "a", "timestamp": "2025-01-01"}]
    for name in ("openai:any-model", "sentence-transformers:someone/else"):
        made_by = EmbedderIdentity(name, 4, "")
        formats.load(layout).write(path, Snapshot.of(unit(np.eye(1, 4)), entries, made_by))
        with LatentMemory.open(path) as memory:
            for ask in (lambda: memory.recall("my PIN"), lambda: memory.add(talk("diary"))):
                with pytest.raises(EmbedderMismatchError, match=f"made with '{name}'.*--embedder"):
                    ask()


def test_a_bulk_is_written_back_less_often_the_larger_the_file_is(
    path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latent_memory.memory._BULK", 10)
    monkeypatch.setattr("latent_memory.ingest.BATCH_CONVERSATIONS", 10)
    with opened(path, layout) as memory:
        memory.add(talk(f"a{i}") for i in range(200))
        written: list[int] = []
        assert memory._home is not None
        plain = memory._home.save

        def save() -> None:
            written.append(1)
            plain()

        monkeypatch.setattr(memory._home, "save", save)
        memory.add(talk(f"b{i}") for i in range(200))
        assert len(written) == (21 if layout == "hdf5" else 3)
    assert len(ids(path, layout)) == 400
