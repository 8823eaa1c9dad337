"""What adapters have seen, and what a memory and the command line say of it after forgetting; no model takes part."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from latent_memory import Conversation, LatentMemory, Turn, adapters
from latent_memory.errors import DerivedError, InputError, StoreError

Run = Callable[..., CompletedProcess[str]]


def talk(conversation_id: str, *texts: str) -> Conversation:
    turns = [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    return Conversation(conversation_id, turns, timestamp=datetime(2024, 5, 8, tzinfo=UTC))


TALKS = [talk("dog", "The dog is called Bruno.", "A fine name.", "He is three."), talk("car", "The car is red.", "Oh.")]


def adapter(memory: LatentMemory, directory: Path, held_out: int = 0) -> Path:
    """Leave what a training leaves, without the weights."""
    told = list(memory.whole())
    seen = adapters.seen_of(told, {c.conversation_id or "": range(held_out, len(c.turns)) for c in told})
    directory.mkdir(parents=True)
    model = {"name": "tiny", "dtype": "fp32", "fingerprint": "0" * 32}
    adapters.Manifest("default", model, {"rank": 4}, True, {}, {}, seen).write(directory)
    memory.note_adapter(directory)
    return directory


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    seen = (adapters.Seen("a", (0, 1, 2, 5), ("w", "x", "y", "z")),)
    model = {"name": "m", "dtype": "fp32", "fingerprint": "f"}
    manifest = adapters.Manifest("ana", model, {"rate": 0.1}, True, {}, {"steps": 2}, seen, seen)
    manifest.write(tmp_path)
    assert adapters.Manifest.read(tmp_path) == manifest
    told = json.loads((tmp_path / adapters.MANIFEST).read_text())
    assert told["seen"][0]["turns"] == [[0, 2], [5, 5]]


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DerivedError, match="no adapter at"):
        adapters.Manifest.read(tmp_path)
    model = {"name": "m", "dtype": "fp32", "fingerprint": "f"}
    adapters.Manifest("ana", model, {}, True, {}, {}, ()).write(tmp_path)
    path = tmp_path / adapters.MANIFEST
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole.replace(b'"ana"', b'"anb"'), b"[]", b""):
        path.write_bytes(damaged)
        with pytest.raises(DerivedError, match="damaged"):
            adapters.Manifest.read(tmp_path)
    path.write_bytes(whole.replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(DerivedError, match="newer"):
        adapters.Manifest.read(tmp_path)


def test_forgetting_and_changing_make_adapters_stale(memory: LatentMemory, tmp_path: Path) -> None:
    memory.add(TALKS)
    inside = adapter(memory, memory.adapter_directory("evening"))
    outside = adapter(memory, tmp_path / "elsewhere")
    assert {info.path for info in memory.adapters()} == {inside, outside}
    assert memory.stale_adapters() == []
    memory.add(talk("dog", "The dog is called Bruno.", "A fine name.", "He is four.", "And new."))
    for info in memory.stale_adapters():
        assert (info.forgotten, info.changed, info.turns) == ((), (("dog", (2,)),), 5)
    assert memory.forget("car") == 1
    stale = memory.stale_adapters()
    assert len(stale) == 2
    assert {info.forgotten for info in stale} == {(("car", (0, 1)),)}
    assert "has seen 2 turns that are forgotten and 1 turn that is changed since" in adapters.note(stale[0])
    # What it never saw does not make it stale.
    assert memory.forget(everything=True) == 1
    assert {info.gone for info in memory.stale_adapters()} == {5}


def test_what_is_held_out_makes_no_adapter_stale(memory: LatentMemory) -> None:
    memory.add(TALKS)
    adapter(memory, memory.adapter_directory("a"), held_out=1)
    memory.add(talk("car", "The car is green now."))
    assert memory.stale_adapters() == []
    memory.forget("car")
    assert memory.stale_adapters()[0].forgotten == (("car", (1,)),)


def test_deleted_adapters_are_no_longer_told(memory: LatentMemory, tmp_path: Path) -> None:
    memory.add(TALKS)
    place = adapter(memory, tmp_path / "elsewhere")
    (place / adapters.MANIFEST).unlink()
    memory.forget("dog")
    # It may have seen anything.
    assert "it cannot be told" in adapters.note(memory.stale_adapters()[0])
    place.rmdir()
    assert memory.adapters() == []


def test_a_damaged_registry_is_told(memory: LatentMemory, store: Path, cli: Run) -> None:
    memory.add(TALKS)
    (store / adapters.REGISTRY).write_text("{")
    with pytest.raises(StoreError, match=r"adapters\.json: damaged"):
        memory.adapters()
    done = cli("forget", "car", "--store", store)
    assert (done.returncode, done.stdout) == (0, "1 conversation forgotten\n")
    assert "cannot tell which adapters have seen it" in done.stderr


@pytest.mark.parametrize("name", ["", " ", "../x", "a/b", ".hidden", "a:b", "x" * 101])
def test_names_that_are_no_directory_are_refused(memory: LatentMemory, name: str) -> None:
    with pytest.raises(InputError, match="name"):
        memory.adapter_directory(name)


def test_a_memory_in_a_file_has_no_room_for_adapters(tmp_path: Path) -> None:
    with LatentMemory.open(tmp_path / "memory", embedder="hashing", format="csv_json") as memory:
        memory.add(TALKS)
        with pytest.raises(InputError, match="--out"):
            memory.adapter_directory("evening")
        assert not memory.note_adapter(tmp_path / "adapter")
        assert memory.forget("dog") == 1
        assert memory.adapters() == memory.stale_adapters() == []


def test_whole_conversations_come_oldest_first(memory: LatentMemory) -> None:
    late = Conversation("late", [Turn("user", "Later.")], timestamp=datetime(2025, 1, 1, tzinfo=UTC))
    memory.add([late, *TALKS])
    memory.add(talk("other", "Behind another wall."), scope="other")
    found = list(memory.whole())
    assert [c.conversation_id for c in found][-1] == "late"
    assert {c.conversation_id for c in found} == {"dog", "car", "late"}
    assert [t.text for t in next(c for c in found if c.conversation_id == "car").turns] == ["The car is red.", "Oh."]
    assert list(memory.whole(scope="nobody")) == []


def test_forget_tells_which_adapters_are_to_be_retrained(memory: LatentMemory, store: Path, cli: Run) -> None:
    memory.add(TALKS)
    place = adapter(memory, memory.adapter_directory("evening"))
    done = cli("forget", "car", "--store", store)
    assert done.returncode == 0
    assert done.stdout == "1 conversation forgotten\n"
    assert f"adapter evening at {place} has seen 2 turns that are forgotten; retrain or delete it" in done.stderr
    told = json.loads(cli("forget", "dog", "--store", store, "--json").stdout)
    assert told["forgotten"] == 1
    assert told["retrain"] == [str(place)]
