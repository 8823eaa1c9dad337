"""One contract for every layout: what goes in comes out, plain tools read it, and what is broken is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn, formats
from latent_memory.embedders import load as embedder_named
from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.errors import EmbedderMismatchError, InputError, LatentMemoryError, StoreDamagedError
from latent_memory.records import EmbedderIdentity
from latent_memory.snapshot import Snapshot
from latent_memory.snapshots import snapshot_of
from latent_memory.vectors import unit

LAYOUTS = formats.NAMES
DIRECTORIES = ("csv_json", "npy_json")
MADE_BY = EmbedderIdentity("hashing", 4, "")

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def place(directory: Path, layout: str, name: str = "memory") -> Path:
    return directory / (name + {"hdf5": ".h5", "pickle": ".pkl"}.get(layout, ""))


@contextmanager
def somewhere() -> Iterator[Path]:
    """Give hypothesis a directory for each example."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def files_in(path: Path) -> list[Path]:
    return sorted(path.rglob("*")) if path.is_dir() else [path]


def contents(directory: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(directory.rglob("*")) if file.is_file()}


# -- at the level of files ----------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"))
STRANGE = "a\0b\u2028c\u0301\U0001f9d1\u200d\U0001f680\r\n\ufeff\x1f\x7f\x85\ufffe"
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**60), 10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("conversation_id", "summary", "timestamp", "title", "role", "turn", "piece", "start", "scope", "more", "text")
ENTRIES = st.lists(st.dictionaries(st.sampled_from(FIELDS) | TEXT, JSON, max_size=6), max_size=5)


def written_and_read(path: Path, layout: str, snapshot: Snapshot) -> Snapshot:
    module = formats.load(layout)
    module.write(path, snapshot)
    return module.read(path)


def as_json(entries: Sequence[Any]) -> str:
    return json.dumps(entries, sort_keys=True)


@every_layout
@settings(max_examples=60, deadline=None)
@given(entries=ENTRIES, data=st.data())
def test_any_entries_and_any_numbers_come_back_bit_for_bit(
    layout: str, entries: list[Any], data: st.DataObject
) -> None:
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    flat = data.draw(st.lists(number, min_size=3 * len(entries), max_size=3 * len(entries)))
    vectors = np.array(flat, np.float32).reshape(len(entries), 3)
    with somewhere() as directory:
        made_by = MADE_BY._replace(dimension=3)
        back = written_and_read(place(directory, layout), layout, Snapshot.of(vectors, entries, made_by))
        assert as_json(back.entries) == as_json(entries)
        assert back.vectors.tobytes() == vectors.tobytes()
        assert (back.rows, back.dimension, back.embedder, back.summed) == (len(entries), 3, made_by, True)


@every_layout
def test_the_ends_of_float32_come_back_bit_for_bit(layout: str, tmp_path: Path) -> None:
    info = np.finfo(np.float32)
    ends = [info.max, info.min, info.tiny, info.smallest_subnormal, -info.smallest_subnormal, -0.0, 0.0, 1 / 3]
    bits = np.random.default_rng(0).integers(0, 1 << 32, 9_000, dtype=np.uint32).view(np.float32)
    # Their shortest decimals lie so near the middle between two float32s that by way of a double they become the other.
    middles = np.array([0x15AE43FD, 0x95AE43FD], np.uint32).view(np.float32)
    values = np.array([*ends, *middles, *bits[np.isfinite(bits)][:7990]], np.float32).reshape(-1, 8)
    entries = [{"conversation_id": str(i)} for i in range(len(values))]
    back = written_and_read(place(tmp_path, layout), layout, Snapshot.of(values, entries))
    assert back.vectors.tobytes() == values.tobytes()
    assert back.embedder is None
    if layout == "csv_json":
        plainly = pd.read_csv(place(tmp_path, layout) / "embeddings.csv").values
        assert plainly.astype(np.float32).tobytes() == values.tobytes()


@every_layout
@pytest.mark.parametrize("rows", [0, 1, 4095, 4096, 4097, 9000])
def test_any_number_of_rows_comes_back(layout: str, rows: int, tmp_path: Path) -> None:
    vectors = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    entries = [{"conversation_id": f"c{i}", "summary": STRANGE, "timestamp": None} for i in range(rows)]
    made_by = MADE_BY._replace(dimension=2)
    back = written_and_read(place(tmp_path, layout), layout, Snapshot.of(vectors, entries, made_by))
    assert back.vectors.tobytes() == vectors.tobytes()
    assert back.entries == entries


@every_layout
def test_writing_the_same_again_makes_the_same_file(layout: str, tmp_path: Path) -> None:
    snapshot = Snapshot.of(
        np.eye(3, 4, dtype=np.float32), [{"conversation_id": c, "summary": c} for c in "abc"], MADE_BY
    )
    for name in ("one", "two"):
        formats.load(layout).write(place(tmp_path, layout, name), snapshot)
    one, two = (
        [file.read_bytes() for file in files_in(place(tmp_path, layout, name)) if file.name != "latent_memory.json"]
        for name in ("one", "two")
    )
    assert one == two


# -- at the level of memories -------------------------------------------------------------------------------

LONG = " ".join(f"Sentence number{i} of this long story tells of topic{i % 7}." for i in range(60))
BERLIN = timezone(timedelta(hours=1))
NOON = datetime(2025, 3, 28, 12, 0, 0, 123456, tzinfo=BERLIN)

TRIP = Conversation(
    "trip",
    [
        Turn("user", "We fly to Osaka on the third of May.", NOON, "Ana"),
        Turn("assistant", "Shall I look for a hotel near the station?"),
        Turn("tool", LONG, datetime(2025, 3, 28, 11)),
    ],
    title=STRANGE,
    timestamp=datetime(2025, 3, 1, 9),
    type="chat\0",
    metadata={"nested": [{"big": 10**40, "float": 0.1, "none": None, "": STRANGE}], "summary": "not this one"},
)


def fill(memory: LatentMemory) -> None:
    """Add what a memory may hold, in an order that leaves the rows of one conversation apart."""
    memory.add([TRIP, Conversation(None, [Turn("user", STRANGE, NOON), Turn("user", LONG[::-1], name="B\0b")])])
    memory.add(Conversation("note", summary=LONG, timestamp=NOON))
    memory.add(Conversation("trip", [Turn("user", "Another wall.", NOON)]), scope="work \u2028")
    memory.add([Conversation(f"c{i}", [Turn("user", f"word{i} was said")], timestamp=NOON) for i in range(20)], "third")
    memory.add(Conversation("trip", [*TRIP.turns, Turn("assistant", "Booked: four nights.", NOON)], title="Japan"))
    changed = [TRIP.turns[0], Turn("system", "Changed."), *TRIP.turns[2:]]
    memory.add(Conversation("trip", changed, metadata={"new": 1.5}))
    memory.add(Conversation("blank", [Turn("user", "a" + " " * 5_000 + "b", NOON), Turn("user", "... !?")]))
    memory.add(Conversation("blank note", summary="a" + " " * 5_000 + "b", timestamp=NOON))
    memory.forget("c3", scope="third")
    memory.add(Conversation("c3", [Turn("user", "word3 came back")], timestamp=NOON), "third")
    memory.add(
        Conversation("c4", [Turn("developer", "word4 was said otherwise")], timestamp=datetime(1, 1, 1)), "third"
    )


def state(memory: LatentMemory) -> tuple[list[Any], bytes, dict[str, list[Conversation | None]]]:
    """Return everything: entries, the bits of the vectors, and the conversations of each scope."""
    snapshot = snapshot_of(memory._store.database, "memory")
    records = {
        scope: [memory.get(info.conversation_id, scope=scope) for info in memory.conversations(scope=scope, limit=999)]
        for scope in memory.scopes()
    }
    return snapshot.entries, snapshot.vectors.tobytes(), records


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LatentMemory]:
    with LatentMemory.open(tmp_path_factory.mktemp("original") / "store", embedder="hashing") as memory:
        fill(memory)
        memory.add(Conversation("now", [Turn("user", "Nobody says when this was said.")]))
        yield memory


@every_layout
@pytest.mark.parametrize("then", LAYOUTS)
def test_a_memory_passes_through_two_layouts_and_a_store_unchanged(
    layout: str, then: str, original: LatentMemory, tmp_path: Path
) -> None:
    original.save(place(tmp_path, layout, "first"), layout)
    expected = state(original)
    with LatentMemory.open(place(tmp_path, layout, "first")) as first:
        assert state(first) == expected
        assert first.notes == ()
        first.save(tmp_path / "store", "sqlite")
    with LatentMemory.open(tmp_path / "store") as store:
        assert state(store) == expected
        store.save(place(tmp_path, then, "second"), then)
        hits = [(hit.passage, hit.score) for hit in store.recall("a hotel in Osaka", k=5)]
    with LatentMemory.open(place(tmp_path, then, "second")) as second:
        assert state(second) == expected
        assert [(hit.passage, hit.score) for hit in second.recall("a hotel in Osaka", k=5)] == hits
        assert second.add(Conversation("note", summary=LONG, timestamp=NOON)).unchanged == 1


@every_layout
@pytest.mark.parametrize("then", LAYOUTS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_memory_passes_through_two_layouts_and_a_store_bit_for_bit(
    layout: str, then: str, data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.tuples(TEXT.filter(str.strip), TEXT, METADATA, TIMES), min_size=1, max_size=4))
    number = st.floats(-(2.0**60), 2.0**60, width=32)
    rows = data.draw(st.lists(st.lists(number, min_size=3, max_size=3).filter(any), min_size=4, max_size=4))
    with somewhere() as directory:
        with LatentMemory.open(directory / "source", embedder=HashingEmbedder(3)) as source:
            source.add(
                Conversation(f"c{i}", [Turn("user", text, time, name or None)], title=name, metadata=metadata)
                for i, (text, name, metadata, time) in enumerate(texts)
            )
            entries = snapshot_of(source._store.database, "").entries
        # Whatever numbers an embedder makes; brought to length one, they stay.
        vectors = unit(np.array(rows[: len(entries)]) / np.abs(rows[: len(entries)]).max(axis=1, keepdims=True))
        formats.load(layout).write(
            place(directory, layout), Snapshot.of(vectors, entries, MADE_BY._replace(dimension=3))
        )
        with LatentMemory.open(place(directory, layout)) as first:
            expected = state(first)
            assert expected[1] == vectors.tobytes()
            assert as_json(expected[0]) == as_json(entries)
            first.save(directory / "store", "sqlite")
        with LatentMemory.open(directory / "store") as store:
            store.save(place(directory, then, "second"), then)
        with LatentMemory.open(place(directory, then, "second")) as second:
            assert state(second) == expected
            assert as_json(state(second)[0]) == as_json(entries)


@every_layout
def test_a_memory_that_lives_in_a_file_becomes_what_one_in_a_store_does(layout: str, tmp_path: Path) -> None:
    for path in (tmp_path / "store", place(tmp_path, layout)):
        kind = "sqlite" if path.name == "store" else layout
        with LatentMemory.open(path, embedder="hashing", format=kind) as memory:
            fill(memory)
    with LatentMemory.open(tmp_path / "store") as store, LatentMemory.open(place(tmp_path, layout)) as memory:
        assert state(memory) == state(store)


# Of a zone, its whole minutes: what ISO 8601 holds.
MINUTES = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
ZONES: Any = st.none() | st.just(UTC) | MINUTES
TIMES = st.none() | st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=ZONES)
TURNS = st.lists(
    st.builds(
        Turn,
        role=st.sampled_from(("user", "assistant", "tool")),
        text=TEXT.filter(str.strip) | st.text("abc. \n\u3000", min_size=1_500, max_size=2_500).filter(str.strip),
        timestamp=TIMES,
        name=st.none() | TEXT,
    ),
    max_size=3,
)
METADATA = st.dictionaries(TEXT, JSON, max_size=2)


@every_layout
@settings(max_examples=12, deadline=None)
@given(conversations=st.lists(st.tuples(TURNS, TEXT, TEXT, METADATA), min_size=1, max_size=3))
def test_any_conversations_come_back_word_for_word(layout: str, conversations: list[Any]) -> None:
    with somewhere() as directory:
        path = place(directory, layout)
        with LatentMemory.open(directory / "store", embedder=HashingEmbedder(8)) as memory:
            memory.add(
                Conversation(f"c{i}\0{title}", turns, title=title, summary=f"{summary}.", metadata=metadata)
                for i, (turns, title, summary, metadata) in enumerate(conversations)
            )
            expected = state(memory)
            memory.save(path, layout)
        with LatentMemory.open(path, embedder=HashingEmbedder(8)) as memory:
            assert state(memory) == expected


# -- plain tools read our files -----------------------------------------------------------------------------


def plainly_read(path: Path, layout: str) -> tuple[Any, list[dict[str, Any]]]:
    """Read a file the way that somebody does who has never heard of us."""
    if layout == "hdf5":
        with h5py.File(path, "r") as file:
            names = ("conversation_id", "summary", "timestamp")
            rows = file["metadata"]
            return file["embeddings"][:], [{n: rows[i][n].decode() for n in names} for i in range(len(rows))]
    if layout == "pickle":
        with path.open("rb") as file:
            found = pickle.load(file)
        return found["embeddings"], found["metadata"]
    entries = json.loads((path / "metadata.json").read_text("utf-8"))
    if layout == "npy_json":
        return np.load(path / "embeddings.npy"), entries
    return pd.read_csv(path / "embeddings.csv").values, entries


@every_layout
def test_plain_tools_read_the_vectors_and_what_belongs_to_them(
    layout: str, original: LatentMemory, tmp_path: Path
) -> None:
    original.save(place(tmp_path, layout), layout)
    vectors, entries = plainly_read(place(tmp_path, layout), layout)
    expected, bits, _ = state(original)
    assert vectors.astype(np.float32).tobytes() == bits
    assert vectors.shape == (len(expected), 256)
    for entry, known in zip(entries, expected, strict=True):
        for name in ("conversation_id", "summary", "timestamp"):
            # HDF5's own texts hold no NUL.
            assert entry[name] == ("" if layout == "hdf5" and "\0" in known[name] else known[name])


@every_layout
def test_faiss_finds_the_same_neighbours_in_a_plainly_read_file(layout: str, tmp_path: Path) -> None:
    words = [f"word{i % 13} topic{i % 7} said{i % 5} thing{i}" for i in range(60)]
    with LatentMemory.open(tmp_path / "store", embedder="hashing") as memory:
        memory.add(Conversation(f"c{i}", [Turn("user", text)]) for i, text in enumerate(words))
        memory.save(place(tmp_path, layout), layout)
        memory.weights = memory.weights._replace(tokens=0)
        meaning = {
            hit.passage.conversation_id: hit.signals["meaning"] for hit in memory.recall("word3 topic2 thing16", k=60)
        }
    vectors, entries = plainly_read(place(tmp_path, layout), layout)
    index = faiss.IndexFlatIP(256)
    index.add(np.ascontiguousarray(vectors, np.float32))
    query = HashingEmbedder().embed(["word3 topic2 thing16"], query=True)
    scores, found = index.search(query, 60)
    np.testing.assert_allclose(scores[0], np.sort(np.maximum(vectors @ query[0], -1))[::-1], atol=1e-6)
    for score, i in zip(scores[0], found[0], strict=True):
        told = meaning.get(entries[i]["conversation_id"], 0.0)
        assert told == pytest.approx(max(0.0, score / scores[0][0]), abs=1e-5)


# -- we read the files of plain tools -----------------------------------------------------------------------

PLAIN = [
    {"conversation_id": "tea", "summary": "We talked about green tea.", "timestamp": "2025-03-28T11:00:00"},
    {"conversation_id": "übung", "summary": "Piano practice: Etüde no. 3 🎹", "timestamp": "2025-03-29T11:00:00+01:00"},
    {"conversation_id": "tax", "summary": "The tax return is due in May.", "timestamp": "2025-04-01"},
]


def hashed(entries: Sequence[Mapping[str, Any]] = PLAIN) -> Any:
    return HashingEmbedder().embed([entry["summary"] for entry in entries])


def write_plainly(path: Path, layout: str, vectors: Any, entries: Any, text: Any = None) -> Path:
    """Write a file the way that somebody does who has never heard of us; HDF5 with `text` for a type of its texts."""
    if layout == "hdf5":
        names = list(dict.fromkeys(name for entry in entries for name in entry))
        kind = text or h5py.string_dtype()
        rows = np.empty(len(entries), [(name, kind) for name in names])
        for i, entry in enumerate(entries):
            for name in names:
                value = entry.get(name, "")
                rows[i][name] = value.encode() if text else value
        with h5py.File(path, "w") as file:
            file["embeddings"] = vectors
            file["metadata"] = rows
    elif layout == "pickle":
        path.write_bytes(pickle.dumps({"embeddings": vectors, "metadata": entries}))
    else:
        path.mkdir()
        (path / "metadata.json").write_text(json.dumps(entries, indent=2), "utf-8")
        if layout == "npy_json":
            np.save(path / "embeddings.npy", vectors)
        else:
            pd.DataFrame(vectors).to_csv(path / "embeddings.csv", index=False)
    return path


@every_layout
@pytest.mark.parametrize("text", [None, "S64"])
def test_a_plain_file_with_the_three_fields_opens(layout: str, text: Any, tmp_path: Path) -> None:
    if text and layout != "hdf5":
        pytest.skip("only HDF5 has types of text")
    path = write_plainly(place(tmp_path, layout), layout, hashed(), PLAIN, text)
    before = contents(tmp_path)
    with LatentMemory.open(path) as memory:
        assert [memory.get(entry["conversation_id"]) for entry in PLAIN] == [
            Conversation(
                entry["conversation_id"],
                title=entry["summary"],
                type="conversation",
                summary=entry["summary"],
                timestamp=datetime.fromisoformat(entry["timestamp"]),
                generated=frozenset({"title", "type"}),
            )
            for entry in PLAIN
        ]
        assert any("does not say which model" in note for note in memory.notes)
        assert any("no checksum" in note for note in memory.notes)
        assert state(memory)[1] == hashed().tobytes()
    assert contents(tmp_path) == before
    with LatentMemory.open(path, embedder="hashing") as memory:
        assert memory.recall("green tea")[0].passage.text == "We talked about green tea."
        memory.add(Conversation("new", [Turn("user", "Coffee as well.")]))
    with LatentMemory.open(path) as memory:
        assert memory.embedder.name == "hashing"
        assert memory.notes == ()
        assert memory.recall("coffee")[0].passage.conversation_id == "new"
        assert memory.recall("green tea")[0].passage.conversation_id == "tea"


@every_layout
def test_vectors_of_an_unknown_model_can_be_made_anew(layout: str, tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(3, 16)))
    path = write_plainly(place(tmp_path, layout), layout, vectors, PLAIN)
    with LatentMemory.open(path) as memory:
        assert "16 numbers" in " ".join(memory.notes)
        with pytest.raises(EmbedderMismatchError, match="latent-memory reembed --store"):
            memory.recall("green tea")
        with pytest.raises(EmbedderMismatchError, match="reembed"):
            memory.add(Conversation("new", [Turn("user", "hello")]))
        memory.reembed("hashing")
        assert memory.recall("green tea")[0].passage.conversation_id == "tea"
    read = formats.load(layout).read(path)
    assert read.embedder == EmbedderIdentity("hashing", 256, "")
    np.testing.assert_allclose(read.vectors, hashed(), atol=1e-6)
    with LatentMemory.open(path) as memory:
        assert memory.recall("green tea")[0].passage.conversation_id == "tea"
    with pytest.raises(EmbedderMismatchError, match="reembed"):
        LatentMemory.open(path, embedder="minilm")


@every_layout
def test_a_model_that_did_not_make_the_vectors_is_refused_and_nothing_stays_locked(layout: str, tmp_path: Path) -> None:
    path = write_plainly(place(tmp_path, layout), layout, unit(np.random.default_rng(0).normal(size=(3, 256))), PLAIN)
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(EmbedderMismatchError, match=r"not 'hashing'.*reembed"):
            LatentMemory.open(path, embedder="hashing")
    assert contents(tmp_path) == before


@every_layout
def test_the_default_model_is_recognised_by_its_vectors(layout: str, tmp_path: Path) -> None:
    made = embedder_named("minilm").embed([entry["summary"] for entry in PLAIN])
    path = write_plainly(place(tmp_path, layout), layout, made, PLAIN)
    with LatentMemory.open(path) as memory:
        assert memory.recall("When do I have to pay the state?")[0].passage.conversation_id == "tax"
        assert memory.embedder.dimension == 384


@every_layout
def test_vectors_that_are_not_of_length_one_are_scaled_and_it_is_said(layout: str, tmp_path: Path) -> None:
    sizes = np.array([[3.0], [1.0], [1e30]], np.float32)
    path = write_plainly(place(tmp_path, layout), layout, hashed() * sizes, PLAIN)
    with LatentMemory.open(path, embedder="hashing") as memory:
        assert any("2 of 3 vectors were not of length one" in note for note in memory.notes)
        np.testing.assert_allclose(np.frombuffer(state(memory)[1], np.float32).reshape(3, -1), hashed(), atol=1e-6)
        assert memory.recall("tax return")[0].passage.conversation_id == "tax"


@every_layout
@pytest.mark.parametrize("kind", ["<f8", ">f8", "<f2", ">f4", "<i4", ">i8", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_plain_numbers_will_do(layout: str, kind: str, order: Any, tmp_path: Path) -> None:
    if layout == "csv_json" and (kind[0] == ">" or order == "F"):
        pytest.skip("text has neither byte order nor memory order")
    numbers = np.array([[3, 4, 0], [0, 1, 0], [2, 3, 6]]).astype(kind).copy(order)
    path = write_plainly(place(tmp_path, layout), layout, numbers, PLAIN)
    with LatentMemory.open(path) as memory:
        found = np.frombuffer(state(memory)[1], np.float32).reshape(3, -1)
        expected = np.array([[0.6, 0.8, 0.0], [0.0, 1.0, 0.0], [2 / 7, 3 / 7, 6 / 7]])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_csv_without_a_header_and_one_with_names_open(tmp_path: Path) -> None:
    for name, options in {"plain": {"header": False}, "named": {"header": ["x", "y z", "w"]}, "nl": {}}.items():
        path = write_plainly(tmp_path / name, "csv_json", np.eye(3), PLAIN)
        ending = "\r\n" if name == "nl" else "\n"
        pd.DataFrame(np.eye(3)).to_csv(path / "embeddings.csv", index=False, lineterminator=ending, **options)  # type: ignore[arg-type]
        with LatentMemory.open(path) as memory:
            assert state(memory)[1] == np.eye(3, dtype=np.float32).tobytes()
            assert memory.stats().passages == 3


def test_plain_entries_keep_what_else_they_say_as_metadata(tmp_path: Path) -> None:
    more = [{**entry, "mood": ["calm", i], "metadata": {"deep": i}} for i, entry in enumerate(PLAIN)]
    path = write_plainly(tmp_path / "memory", "npy_json", hashed(), more)
    with LatentMemory.open(path) as memory:
        found = memory.get("tax")
        assert found is not None
        assert found.metadata == {"mood": ["calm", 2], "deep": 2}


# -- what is damaged is refused -----------------------------------------------------------------------------


def small(path: Path, layout: str) -> Path:
    entries = [{"conversation_id": c, "summary": f"text {c}", "timestamp": "2025-01-01"} for c in "ab"]
    formats.load(layout).write(path, Snapshot.of(np.eye(2, 4, dtype=np.float32), entries, MADE_BY))
    return path


def some(length: int, most: int) -> Iterator[int]:
    """Every position, or the first and last of them and some in between."""
    if length <= most:
        yield from range(length)
    else:
        yield from range(most // 3)
        yield from sorted(np.random.default_rng(0).integers(0, length, most // 3).tolist())
        yield from range(length - most // 3, length)


@every_layout
def test_a_flipped_bit_is_refused(layout: str, tmp_path: Path) -> None:
    path = small(place(tmp_path, layout), layout)
    for file in files_in(path):
        whole = file.read_bytes()
        for at in some(len(whole), 1_500):
            broken = bytearray(whole)
            broken[at] ^= 1 << (at % 8)
            file.write_bytes(broken)
            with pytest.raises(LatentMemoryError) as told:
                formats.load(layout).read(path)
            assert str(file) in str(told.value)
        file.write_bytes(whole)
    with LatentMemory.open(path, embedder=HashingEmbedder(4)) as memory:
        assert memory.stats().passages == 2


@every_layout
def test_a_file_that_was_cut_is_refused(layout: str, tmp_path: Path) -> None:
    path = small(place(tmp_path, layout), layout)
    for file in files_in(path):
        whole = file.read_bytes()
        for length in some(len(whole), 400):
            file.write_bytes(whole[:length])
            with pytest.raises(LatentMemoryError) as told:
                formats.load(layout).read(path)
            assert str(file) in str(told.value)
        file.write_bytes(whole + b"\0")
        with pytest.raises(StoreDamagedError):
            formats.load(layout).read(path)
        file.write_bytes(whole)


@every_layout
def test_what_is_damaged_does_not_open_and_stays_as_it_is(layout: str, tmp_path: Path) -> None:
    path = small(place(tmp_path, layout), layout)
    for file in files_in(path):
        whole = file.read_bytes()
        for broken in (b"", whole[:-1], whole[: len(whole) // 2], whole[:-20] + b"x" + whole[-19:]):
            file.write_bytes(broken)
            before = contents(tmp_path)
            with pytest.raises(LatentMemoryError) as told:
                LatentMemory.open(path, embedder="hashing")
            assert str(file) in str(told.value)
            assert contents(tmp_path) == before
        file.write_bytes(whole)


@pytest.mark.parametrize("layout", DIRECTORIES)
def test_a_directory_without_its_header_opens_as_vectors_of_an_unknown_model(layout: str, tmp_path: Path) -> None:
    path = small(tmp_path / "memory", layout)
    (path / "latent_memory.json").unlink()
    with LatentMemory.open(path) as memory:
        assert memory.stats().embedder == "unknown"
        assert len(memory.notes) == 2


@pytest.mark.parametrize("layout", DIRECTORIES)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("summed", [True, False])
def test_a_missing_file_is_named(layout: str, which: int, summed: bool, tmp_path: Path) -> None:
    path = small(tmp_path / "memory", layout)
    gone = path / formats.files_of(layout)[which]
    gone.unlink()
    if not summed:
        (path / "latent_memory.json").unlink()
    with pytest.raises(LatentMemoryError, match=gone.name):
        LatentMemory.open(path, format=layout)


# -- bad input ----------------------------------------------------------------------------------------------


def refused(path: Path, *patterns: str) -> None:
    """Check that a file is not opened, why, and that it is as it was."""
    before = contents(path.parent)
    with pytest.raises(LatentMemoryError) as told:
        LatentMemory.open(path, embedder="hashing")
    for pattern in (str(path), *patterns):
        assert pattern in str(told.value)
    assert len(str(told.value)) < 500
    assert contents(path.parent) == before


def rest(path: Path, ids: Sequence[str], *errors: str) -> None:
    """Check that with `on_bad` these conversations come, in their order, and what is said of the rest."""
    before = contents(path.parent)
    said: list[str] = []
    with LatentMemory.open(path, on_bad=lambda error: said.append(str(error))) as memory:
        entries = snapshot_of(memory._store.database, "").entries
        assert [entry["conversation_id"] for entry in entries] == list(ids)
    assert len(said) == len(errors)
    for message, pattern in zip(said, errors, strict=True):
        assert str(path) in message
        assert pattern in message
    assert contents(path.parent) == before


def entries_of(count: int) -> list[dict[str, Any]]:
    return [
        {"conversation_id": f"c{i}", "summary": f"word{i} was said", "timestamp": "2025-01-01"} for i in range(count)
    ]


@every_layout
@pytest.mark.parametrize(("vectors", "entries"), [(501, 500), (500, 501)])
def test_vectors_and_entries_that_do_not_match_in_number(
    layout: str, vectors: int, entries: int, tmp_path: Path
) -> None:
    rows = unit(np.random.default_rng(0).normal(size=(vectors, 4)))
    path = write_plainly(place(tmp_path, layout), layout, rows, entries_of(entries))
    refused(path, f"{vectors} vectors in", f"{entries} entries in")
    rest(path, [f"c{i}" for i in range(500)], f"{vectors} vectors")


@every_layout
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite(layout: str, number: float, tmp_path: Path) -> None:
    rows = np.eye(3)
    rows[1, 2] = number
    path = write_plainly(place(tmp_path, layout), layout, rows, PLAIN)
    refused(path, "entry 1")
    rest(path, ["tea", "tax"], "entry 1")


@every_layout
def test_a_number_too_large_for_single_precision(layout: str, tmp_path: Path) -> None:
    rows = np.eye(3)
    rows[1, 2] = 1e200
    path = write_plainly(place(tmp_path, layout), layout, rows, PLAIN)
    refused(path, "entry 1", "infinite")


BAD_ENTRIES: dict[str, tuple[Any, str]] = {
    "no object": (["tea"], "object"),
    "a number": (7, "object"),
    "null": (None, "object"),
    "no id": ({"summary": "x", "timestamp": "2025-01-01"}, "conversation_id"),
    "no summary": ({"conversation_id": "x", "timestamp": "2025-01-01"}, "summary"),
    "an empty summary": ({"conversation_id": "x", "summary": " \n", "timestamp": "2025-01-01"}, "summary: empty"),
    "a summary that is no text": ({"conversation_id": "x", "summary": ["a"], "timestamp": None}, "summary"),
    "an id that is an object": ({"conversation_id": {}, "summary": "x", "timestamp": None}, "conversation_id"),
    "a time that is none": ({"conversation_id": "x", "summary": "x", "timestamp": {}}, "timestamp"),
    "half a surrogate pair": ({"conversation_id": "x", "summary": "a\ud800", "timestamp": None}, "surrogate"),
    "an id twice": (PLAIN[0], "'tea' already exists"),
    "a role that is none": ({**PLAIN[2], "turn": 0, "role": "king"}, "role"),
    "a turn that is none": ({**PLAIN[2], "turn": -1}, "turn"),
    "a piece of nothing": ({**PLAIN[2], "turn": 3, "piece": 1}, "piece"),
    "a scope that is no name": ({**PLAIN[2], "scope": "  "}, "scope"),
    "marks that are no list": ({**PLAIN[2], "conversation": {"summary": "x", "generated": 5}}, "generated"),
    "marks that are no texts": ({**PLAIN[2], "conversation": {"summary": "x", "generated": [[1]]}}, "generated"),
    "a start beyond all": ({**PLAIN[2], "turn": 0, "text": "other", "start": 2}, "start"),
    "metadata that JSON cannot hold": ({**PLAIN[2], "x": float("nan")}, "metadata"),
}


@pytest.mark.parametrize("layout", ["csv_json", "npy_json", "pickle"])
@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_a_bad_entry(layout: str, case: str, tmp_path: Path) -> None:
    bad, message = BAD_ENTRIES[case]
    path = write_plainly(place(tmp_path, layout), layout, np.eye(4), [PLAIN[0], PLAIN[1], bad, PLAIN[2]])
    refused(path, "entry 2", message)
    rest(path, ["tea", "übung", "tax"], message)


@pytest.mark.parametrize("case", ["no id", "no summary", "an empty summary", "an id twice"])
def test_a_bad_entry_in_hdf5(case: str, tmp_path: Path) -> None:
    bad, message = BAD_ENTRIES[case]
    path = write_plainly(tmp_path / "memory.h5", "hdf5", np.eye(4), [PLAIN[0], PLAIN[1], bad, PLAIN[2]])
    refused(path, "entry 2", message.split(":")[0])
    rest(path, ["tea", "übung", "tax"], message.split(":")[0])


def test_an_hdf5_text_cut_in_the_middle_of_a_character(tmp_path: Path) -> None:
    path = write_plainly(tmp_path / "memory.h5", "hdf5", np.eye(3), PLAIN, "S19")
    cut = PLAIN[1]["summary"].encode()[:19]
    with pytest.raises(UnicodeDecodeError):
        cut.decode()
    refused(path, "entry 1", "summary: not UTF-8")
    rest(path, ["tea", "tax"], "fixed width")


@pytest.mark.parametrize("field", ["summary", "timestamp", "scope", "title", "type", "text", "role", "turn", "new"])
@pytest.mark.parametrize("value", [np.zeros(2), b"bytes", {1, 2}, [np.zeros(1)], {"a": b""}], ids=repr)
def test_a_pickled_entry_that_holds_what_json_does_not(field: str, value: Any, tmp_path: Path) -> None:
    bad = {**PLAIN[2], "turn": 0, field: value}
    path = write_plainly(tmp_path / "memory.pkl", "pickle", np.eye(3), [PLAIN[0], bad, PLAIN[1]])
    refused(path, "entry 1", "texts, numbers, lists and")
    rest(path, ["tea", "übung"], "texts, numbers, lists and")


def test_blank_lines_at_the_end_of_a_csv_are_none(tmp_path: Path) -> None:
    for rows in (3, 4094, 4095, 4096, 4097):
        path = write_plainly(tmp_path / f"memory{rows}", "csv_json", np.ones((rows, 1)), entries_of(rows))
        with (path / "embeddings.csv").open("a") as file:
            file.write("\n \n\n")
        assert len(formats.load("csv_json").read(path).entries) == rows


@every_layout
def test_an_empty_memory_is_one_that_plain_tools_read(layout: str, tmp_path: Path) -> None:
    with LatentMemory.open(tmp_path / "store") as memory:
        assert memory.save(place(tmp_path, layout), layout) == 0
    vectors, entries = plainly_read(place(tmp_path, layout), layout)
    assert (len(vectors), len(entries)) == (0, 0)
    with LatentMemory.open(place(tmp_path, layout), embedder="hashing") as memory:
        memory.add(Conversation("a", [Turn("user", "hello")]))
    with LatentMemory.open(place(tmp_path, layout)) as memory:
        assert memory.recall("hello")[0].passage.conversation_id == "a"


@every_layout
def test_what_another_tool_says_besides_is_kept(layout: str, tmp_path: Path) -> None:
    if layout == "hdf5":
        pytest.skip("a compound has texts and numbers only")
    entries: list[dict[str, Any]] = [
        {**PLAIN[0], "mood": "calm", "metadata": "free text", "role": "assistant", "text": "in full"},
        {"conversation_id": "talk", "summary": "hello", "timestamp": None, "turn": 0, "mood": "glad"},
        {"conversation_id": "talk", "summary": "good day", "timestamp": None, "turn": 1, "mood": "calm", "stars": 3},
    ]
    path = write_plainly(place(tmp_path, layout), layout, hashed(entries), entries)
    with LatentMemory.open(path, embedder="hashing") as memory:
        memory.add(Conversation("new", [Turn("user", "Coffee as well.")]))
    with LatentMemory.open(path) as memory:
        tea, talk = memory.get("tea"), memory.get("talk")
        assert tea is not None
        assert talk is not None
        assert tea.metadata == {"mood": "calm", "metadata": "free text", "role": "assistant", "text": "in full"}
        assert talk.metadata == {"mood": "glad", "turn_metadata": {"1": {"mood": "calm", "stars": 3}}}


def test_what_else_a_file_holds_is_told(tmp_path: Path) -> None:
    (tmp_path / "memory.pkl").write_bytes(pickle.dumps({"embeddings": hashed(), "metadata": PLAIN, "labels": [1, 2]}))
    write_plainly(tmp_path / "memory.h5", "hdf5", hashed(), PLAIN)
    with h5py.File(tmp_path / "memory.h5", "a") as file:
        file["labels"] = [1, 2]
        file.attrs["model"] = "mine"
    for name, others in (("memory.pkl", "'labels'"), ("memory.h5", "labels, model")):
        with LatentMemory.open(tmp_path / name) as memory:
            assert any(f"also holds {others}, which" in note for note in memory.notes)


CSV_TEXTS: dict[str, tuple[str, list[str]]] = {
    "a column missing in a row": ("0,1,2\n1,0,0\n0,1\n0,0,1\n", ["entry 1", "line 3", "2 columns where line 1 has 3"]),
    "a column too many": ("0,1,2\n1,0,0\n0,1,0,0\n0,0,1\n", ["entry 1", "line 3: 4 columns where line 1 has 3"]),
    "decimals with commas, quoted": (
        '0,1,2\n"1,0","0,0","0,0"\n"0,1","1,0","0,3"\n"0,12","0,3","1"\n',
        ["entry 0", "line 2", "decimals written with commas"],
    ),
    "decimals with commas": ("0;1;2\n1,0;0,0;0,0\n0,1;1,0;0,0\n0,0;0,12;0,3\n", ["line 1", "commas"]),
    "tabulators": ("0\t1\t2\n1\t0\t0\n", ["line 1", "commas"]),
    "row numbers": (",0,1,2\n0,1,0,0\n1,0,1,0\n2,0,0,1\n", ["line 1", "index=False"]),
    "a word": ("0,1,2\n1,0,0\n0,one,0\n0,0,1\n", ["entry 1", "line 3, column 1", "'one' is no number"]),
    "an empty field": ("0,1,2\n1,0,0\n0,,0\n0,0,1\n", ["entry 1", "line 3, column 1"]),
    "a line left empty": ("0,1,2\n1,0,0\n\n0,0,1\n", ["line 3"]),
    "nothing": ("", ["embeddings.csv"]),
}


@pytest.mark.parametrize("case", CSV_TEXTS)
def test_a_bad_csv(case: str, tmp_path: Path) -> None:
    text, patterns = CSV_TEXTS[case]
    path = write_plainly(tmp_path / "memory", "csv_json", np.eye(3), PLAIN)
    (path / "embeddings.csv").write_text(text)
    refused(path, *patterns)
    if patterns[0] == "entry 1":
        rest(path, ["tea", "tax"], patterns[1])


@pytest.mark.parametrize("layout", DIRECTORIES)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tea": {}}', "not an object"),
        ("", "not nothing"),
        ("[{}", "ends within the list"),
        ('[{"a": 1},\n{"b" 2}]', "line 2"),
        ("[{}]\n[]", "something follows"),
        ('["\xff"]', "not UTF-8"),
        ("hello", "array"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5_000 + "]", "digits"),
    ],
)
def test_a_metadata_file_that_is_no_list_of_objects(layout: str, text: str, message: str, tmp_path: Path) -> None:
    path = write_plainly(tmp_path / "memory", layout, np.eye(3), PLAIN)
    (path / "metadata.json").write_bytes(text.encode("latin-1"))
    refused(path, "metadata.json", message)


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros(3),
        np.zeros((3, 2, 2)),
        np.array([["a", "b"]] * 3),
        np.zeros((3, 2), complex),
        np.zeros((3, 2), "M8[s]"),
    ],
    ids=["one dimension", "three", "texts", "complex", "times"],
)
@pytest.mark.parametrize("layout", ["npy_json", "hdf5", "pickle"])
def test_vectors_that_are_no_rows_of_numbers(layout: str, vectors: Any, tmp_path: Path) -> None:
    if layout == "hdf5" and vectors.dtype.kind in "UM":
        pytest.skip("HDF5 has no such type")
    path = write_plainly(place(tmp_path, layout), layout, vectors, PLAIN)
    refused(path, "numbers")


def test_an_npy_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    path = write_plainly(tmp_path / "memory", "npy_json", np.array([[print, print]] * 3, object), PLAIN)
    refused(path, "embeddings.npy", "object")


def test_an_npy_that_was_cut(tmp_path: Path) -> None:
    path = write_plainly(tmp_path / "memory", "npy_json", np.eye(3), PLAIN)
    whole = (path / "embeddings.npy").read_bytes()
    for length in range(len(whole)):
        (path / "embeddings.npy").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"embeddings\.npy"):
            formats.load("npy_json").read(path)
    (path / "embeddings.npy").write_bytes(whole[:-1])
    refused(path, "the file was cut")


def test_an_hdf5_file_without_the_datasets(tmp_path: Path) -> None:
    path = tmp_path / "memory.h5"
    with h5py.File(path, "w") as file:
        file["vectors"] = np.eye(3)
        file.create_group("embeddings")
    refused(path, '"embeddings"', "embeddings, vectors")
    with h5py.File(path, "w") as file:
        file["embeddings"] = np.eye(3)
    refused(path, '"metadata"')


def secret(tmp_path: Path) -> Path:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    return write_plainly(elsewhere / "secret.h5", "hdf5", np.eye(3), PLAIN)


def linked(file: h5py.File, other: Path) -> None:
    file["metadata"] = h5py.ExternalLink(str(other), "metadata")


def soft(file: h5py.File, other: Path) -> None:
    file["out"] = h5py.ExternalLink(str(other), "/")
    file["metadata"] = h5py.SoftLink("/out/metadata")


def virtual(file: h5py.File, other: Path) -> None:
    with h5py.File(other) as there:
        source = h5py.VirtualSource(there["metadata"])
        layout = h5py.VirtualLayout(source.shape, there["metadata"].dtype)
    layout[:] = source
    file.create_virtual_dataset("metadata", layout)


def external(file: h5py.File, other: Path) -> None:
    kind = np.dtype([("conversation_id", "S8"), ("summary", "S8"), ("timestamp", "S8")])
    file.create_dataset("metadata", (3,), kind, external=[(str(other), 0, h5py.h5f.UNLIMITED)])


@pytest.mark.parametrize("point", [linked, soft, virtual, external])
def test_an_hdf5_file_that_points_at_another_file_is_refused(point: Callable[..., None], tmp_path: Path) -> None:
    other = secret(tmp_path)
    path = tmp_path / "memory.h5"
    with h5py.File(path, "w") as file:
        file["embeddings"] = np.eye(3)
        point(file, other)
    refused(path, '"metadata" within the file was expected')


def test_an_hdf5_file_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("embeddings", (1 << 30, 1 << 10), "f4", chunks=(1 << 10, 1 << 10))
        file["metadata"] = np.zeros(3, [("conversation_id", "S8")])
    refused(path, "promises")


@pytest.mark.parametrize("layout", ["hdf5", "pickle"])
def test_a_file_that_is_something_else(layout: str, tmp_path: Path) -> None:
    path = place(tmp_path, layout)
    for data in (b"", b"hello", b"\x89HDF\r\n\x1a\n" + bytes(2_000), b"PK\3\4", b"\x80\x04.", pickle.dumps([1, 2])):
        path.write_bytes(data)
        refused(path)


def test_a_directory_with_both_kinds_of_vectors_and_no_header(tmp_path: Path) -> None:
    path = write_plainly(tmp_path / "memory", "npy_json", np.eye(3), PLAIN)
    (path / "embeddings.csv").write_text("0,1,2\n0,0,1\n0,1,0\n1,0,0\n")
    refused(path, "embeddings.csv", "embeddings.npy")


# -- links, and files that change ---------------------------------------------------------------------------


@every_layout
def test_a_symbolic_link_is_followed_and_stays_one(layout: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = write_plainly(place(tmp_path / "real", layout), layout, hashed(), PLAIN)
    link = place(tmp_path, layout)
    link.symlink_to(real)
    with LatentMemory.open(link, embedder="hashing") as memory:
        memory.add(Conversation("new", [Turn("user", "Coffee as well.")]))
    assert link.is_symlink()
    assert not real.is_symlink()
    with LatentMemory.open(real) as memory:
        assert memory.stats().conversations == 4
        memory.save(tmp_path / "copy.h5")
    with LatentMemory.open(tmp_path / "copy.h5") as memory:
        memory.save(link, layout)
    assert link.is_symlink()


@every_layout
def test_a_link_to_nothing(layout: str, tmp_path: Path) -> None:
    link = place(tmp_path, layout)
    link.symlink_to(place(tmp_path, layout, "nowhere"))
    with pytest.raises(LatentMemoryError) as told:
        LatentMemory.open(link, embedder="hashing", format=layout, create=False)
    assert str(link) in str(told.value)
    assert not place(tmp_path, layout, "nowhere").exists()


@every_layout
def test_a_file_that_changes_while_it_is_read_is_refused(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small(place(tmp_path, layout), layout)
    if layout == "pickle":
        plain = Path.read_bytes

        def read_bytes(file: Path) -> bytes:
            data = plain(file)
            if file == path:
                file.write_bytes(data + b" ")
            return data

        monkeypatch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(InputError, match="changed while it was read"):
            formats.load(layout).read(path)
        return
    snapshot = formats.load(layout).read(path)
    blocks = snapshot.blocks()
    next(blocks)
    for file in files_in(path):
        with file.open("ab") as more:
            more.write(b" ")
    with pytest.raises(InputError, match="changed while it was read"):
        list(blocks)


def test_the_csv_is_one_that_the_csv_module_reads(tmp_path: Path) -> None:
    path = small(tmp_path / "memory", "csv_json")
    with (path / "embeddings.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [list("0123"), ["1.0", "0.0", "0.0", "0.0"], ["0.0", "1.0", "0.0", "0.0"]]


# -- what a stranger could have made ------------------------------------------------------------------------


def forged(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a directory's header, and give it the sum that belongs to it."""
    header = json.loads((directory / "latent_memory.json").read_text())
    del header["sha256"]
    change(header)
    whole = hashlib.sha256(json.dumps(header, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
    text = json.dumps(header | {"sha256": whole}, ensure_ascii=False, indent=1) + "\n"
    (directory / "latent_memory.json").write_text(text)


@pytest.mark.parametrize("layout", DIRECTORIES)
def test_a_header_reaches_no_other_files(layout: str, tmp_path: Path) -> None:
    path = small(tmp_path / "memory", layout)
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    told = {"bytes": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    for name in ("../victim.txt", str(victim), "victim.txt"):
        forged(path, lambda header, name=name: header["files"].update({name: told}))  # type: ignore[misc]
        refused(path, "latent_memory.json", "not what this library writes")
        assert victim.read_text() == "mine"


@pytest.mark.parametrize("layout", DIRECTORIES)
@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": "x"},
        {"files": None},
        {"files": {"metadata.json": {}}},
        {"files": {"metadata.json": "x"}},
        {"version": "1"},
        {"version": None},
        {"version": [1]},
        {"layout": None},
        {"layout": "pickle"},
        {"dimension": "4"},
        {"embedder": "hashing"},
        {"embedder": {"name": "hashing"}},
        {"embedder": {"name": ["x"], "dimension": 4, "fingerprint": ""}},
        {"embedder": {"name": "hashing", "dimension": 99, "fingerprint": ""}},
    ],
    ids=repr,
)
def test_a_header_of_another_shape_is_refused(layout: str, change: dict[str, Any], tmp_path: Path) -> None:
    path = small(tmp_path / "memory", layout)
    forged(path, lambda header: header.update(change))
    refused(path, "latent_memory.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in directories")
@pytest.mark.parametrize("layout", DIRECTORIES)
def test_a_header_that_is_no_file_is_refused(layout: str, tmp_path: Path) -> None:
    path = small(tmp_path / "memory", layout)
    (path / "latent_memory.json").unlink()
    os.mkfifo(path / "latent_memory.json")
    with pytest.raises(InputError, match=r"latent_memory\.json: is no file"):
        LatentMemory.open(path)


def test_links_in_a_directory_lead_nothing_out_of_it(tmp_path: Path) -> None:
    path = write_plainly(tmp_path / "memory", "npy_json", hashed(), PLAIN)
    (path / "latent_memory.json").symlink_to(tmp_path / "made.json")
    with LatentMemory.open(path, embedder="hashing") as memory:
        memory.add(Conversation("new", [Turn("user", "Coffee as well.")]))
    assert not (tmp_path / "made.json").exists()
    assert len(formats.load("npy_json").read(path).entries) == 4


@pytest.mark.parametrize(
    "header",
    ["(" * 150, "-" * 9_000 + "1", "{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4), }", "x" * 60_000],
)
def test_an_npy_header_that_was_made_to_hurt(header: str, tmp_path: Path) -> None:
    path = write_plainly(tmp_path / "memory", "npy_json", np.eye(3), PLAIN)
    told = header.encode() + b"\n"
    (path / "embeddings.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(told).to_bytes(2, "little") + told + bytes(48))
    refused(path, "embeddings.npy")
    (path / "embeddings.npy").write_bytes(b"\x93NUMPY\x02\x00" + b"\xff" * 4 + told)
    refused(path, "embeddings.npy", "bytes")


def test_vectors_wider_than_any_are_refused_before_room_is_made_for_them(tmp_path: Path) -> None:
    path = write_plainly(tmp_path / "memory", "csv_json", np.eye(3), PLAIN)
    (path / "embeddings.csv").write_text(",".join(["c"] * 300_000) + "\n" + "1\n" * 3)
    refused(path, "vectors of 300,000 numbers")


def many_of_one_text(path: Path) -> None:
    """Write a file in which the references of all rows point at one text of 1 MB."""
    text = h5py.string_dtype()
    rows = np.empty(1_000, [("conversation_id", text), ("summary", text), ("timestamp", text)])
    for i in range(1_000):
        rows[i] = (f"c{i}", "x" * 1_000_000 if i == 0 else "y", "2025-01-01")
    with h5py.File(path, "w") as file:
        file["embeddings"] = np.ones((1_000, 2), np.float32)
        file["metadata"] = rows
        offset = file["metadata"].id.get_offset()
        size = file["metadata"].id.get_storage_size() // 1_000
    whole = bytearray(path.read_bytes())
    for i in range(1_000):
        whole[offset + i * size + 16 : offset + i * size + 32] = whole[offset + 16 : offset + 32]
    path.write_bytes(whole)


def test_an_hdf5_text_that_all_rows_refer_to_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "memory.h5"
    many_of_one_text(path)
    refused(path, "far more than a file of")


def test_hdf5_chunks_that_unpack_to_much_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("embeddings", (8, 2), "f4", data=np.ones((8, 2)))
        kind = np.dtype([("conversation_id", "S9"), ("summary", "S40000000"), ("timestamp", "S9")])
        rows = file.create_dataset("metadata", (8,), kind, chunks=(8,), compression="gzip")
        rows[0:1] = np.array([(b"a", b"b", b"c")], kind)
    refused(path, "chunks of")


@pytest.mark.parametrize(
    "told",
    ["[]", "7", '{"version": 1}', '{"version": "1", "embedder": null}', '{"version": 1, "embedder": {"name": 1}}', "x"],
)
def test_an_hdf5_header_of_another_shape_is_refused(told: str, tmp_path: Path) -> None:
    path = write_plainly(tmp_path / "memory.h5", "hdf5", np.eye(3), PLAIN)
    with h5py.File(path, "a") as file:
        file.attrs["latent_memory"] = told
    refused(path)


@pytest.mark.parametrize(
    "told",
    [
        {"version": np.zeros(2), "embedder": None},
        {"version": 1, "embedder": np.zeros(2)},
        {"version": 1, "embedder": {"name": ["x"], "dimension": 3, "fingerprint": ""}},
        {"version": 1, "embedder": {"name": "hashing", "dimension": 99, "fingerprint": ""}},
        {"version": "1", "embedder": None},
        {"version": 1},
        7,
    ],
    ids=repr,
)
def test_a_pickle_header_of_another_shape_is_refused(told: Any, tmp_path: Path) -> None:
    data = pickle.dumps({"embeddings": np.eye(3), "metadata": PLAIN, "latent_memory": told})
    (tmp_path / "memory.pkl").write_bytes(data + b"\n# sha256 " + hashlib.sha256(data).hexdigest().encode() + b"\n")
    refused(tmp_path / "memory.pkl")
