"""Mem0 memories; the form is that of its documentation ("Export Stored Memories") and of `MemoryItem`."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, importers
from latent_memory.errors import InputError

FIRST = {
    "id": "8d3f0c1e-5a51-4d9b-9f7b-2b3f0f0d9a11",
    "memory": "Allergic to hazelnuts",
    "hash": "0a1b",
    "metadata": {"topic": "food"},
    "created_at": "2024-07-26T08:45:00-07:00",
    "updated_at": None,
    "user_id": "ana",
    "score": 0.31,
}
SECOND = {"id": "m2", "memory": "Lives in Lisbon", "user_id": "ana", "categories": ["place"]}
PAGE = {"results": [FIRST, SECOND]}


def read(path: Path, value: object, **options: Any) -> list[Conversation]:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return list(importers.read(path, source="mem0", **options))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memories.json"


@pytest.mark.parametrize(
    "value",
    [
        PAGE,
        PAGE | {"count": 2, "next": None, "relations": []},
        [FIRST, SECOND],
        [{"results": [FIRST]}, {"results": [SECOND]}],
        {"memories": [FIRST, SECOND]},
        f"{json.dumps(FIRST)}\n{json.dumps(SECOND)}\n",
        json.dumps(PAGE, indent=2),
    ],
    ids=lambda value: str(value)[:20],
)
def test_each_memory_is_a_conversation_of_its_summary(path: Path, value: object) -> None:
    first, second = read(path, value)
    assert importers.recognise(path) == "mem0"
    assert first == Conversation(
        "8d3f0c1e-5a51-4d9b-9f7b-2b3f0f0d9a11",
        summary="Allergic to hazelnuts",
        title="Allergic to hazelnuts",
        type="memory",
        timestamp=datetime.fromisoformat("2024-07-26T08:45:00-07:00"),
        metadata={"hash": "0a1b", "user_id": "ana", "topic": "food"},
    )
    assert (second.conversation_id, second.generated) == ("m2", frozenset({"timestamp:file"}))
    assert second.metadata == {"user_id": "ana", "categories": ["place"]}


def test_a_memory_that_changed_replaces_what_it_was(path: Path, memory: LatentMemory) -> None:
    assert memory.add(read(path, PAGE)).added == 2
    assert memory.add(read(path, PAGE)).unchanged == 2
    moved = SECOND | {"memory": "Lives in Oslo", "updated_at": "2025-01-01T00:00:00"}
    new = {"id": 3, "memory": "Plays the cello", "created_at": "2025-01-02"}
    report = memory.add(read(path, {"results": [FIRST, moved, new]}))
    assert (report.added, report.changed, report.unchanged) == (1, 1, 1)
    (hit,) = memory.recall("Lives in Oslo", k=1)
    assert (hit.passage.text, hit.passage.title) == ("Lives in Oslo", "Lives in Oslo")
    assert memory.recall("cello", k=1)[0].passage.conversation_id == "3"


def test_what_was_deleted_or_is_empty_is_left_out(path: Path) -> None:
    skipped: list[str] = []
    value = [SECOND | {"event": "DELETE"}, SECOND | {"memory": " "}, SECOND | {"event": "ADD"}]
    assert len(read(path, value, on_skip=skipped.append)) == 1
    assert skipped == ["a memory that was deleted", "an empty memory"]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"full_name": "Ana", "company": "Acme"}, '"memory": a text was expected, not none'),
        (SECOND | {"memory": None}, '"memory": a text was expected, not null'),
        (5, "an object was expected, not a number"),
        (SECOND | {"created_at": "soon"}, "created_at: 'soon' is no time"),
        (SECOND | {"metadata": "x"}, '"metadata": an object was expected, not a text'),
        (SECOND | {"memory": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_what_is_broken_is_told_and_left_out(path: Path, entry: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path, {"results": [FIRST, entry]})
    assert "results[1]: " in str(caught.value)
    assert told in str(caught.value)
    errors: list[InputError] = []
    assert len(read(path, {"results": [entry, FIRST]}, on_bad=errors.append)) == 1
    assert len(errors) == 1


def test_other_results_are_not_taken_for_memories(path: Path) -> None:
    values: list[object] = [
        {"results": [{"title": "x"}]},
        {"memory": "16 GB"},
        [{"memory": 16, "id": "x"}],
    ]
    for value in values:
        path.write_text(json.dumps(value))
        with pytest.raises(InputError, match="unknown format"):
            importers.recognise(path)


def test_a_page_of_any_length_is_read_in_little_memory(path: Path) -> None:
    path.write_text(json.dumps({"results": [SECOND | {"id": i, "memory": f"{i} " * 9_000} for i in range(200)]}))
    size = path.stat().st_size
    assert size > 5_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in importers.read(path)) == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 4


def test_a_page_that_was_cut_off_is_told(path: Path) -> None:
    path.write_text(json.dumps(PAGE)[:-2])
    with pytest.raises(InputError, match="it ends within the list"):
        list(importers.read(path, source="mem0"))
    told: list[InputError] = []
    assert len(list(importers.read(path, source="mem0", on_bad=told.append))) == 2
    assert len(told) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys((*FIRST, "event"), JSON)) | JSON


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=ENTRY | st.lists(ENTRY, max_size=3) | st.fixed_dictionaries({"results": st.lists(ENTRY, max_size=3)}))
def test_any_json_is_read_or_refused(path: Path, value: object) -> None:
    read(path, [value], on_bad=lambda _: None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    # What begins as a zip and is none is refused as a whole.
    with contextlib.suppress(InputError):
        list(importers.read(path, source="mem0", on_bad=lambda _: None))
