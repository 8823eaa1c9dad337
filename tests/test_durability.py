"""What happens to a memory besides being killed: forks, copies, backups, writers at the wrong moment."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.errors import EmbedderMismatchError, StoreError
from latent_memory.feed import Feed
from latent_memory.ranking import Weights
from latent_memory.scope_index import ScopeIndex
from latent_memory.vectors import Vectors


def many(prefix: str, count: int, start: int = 0) -> list[Conversation]:
    return [Conversation(f"{prefix}{i}", [Turn("user", f"{prefix}{i} was said")]) for i in range(start, start + count)]


def first(memory: LatentMemory, query: str, scope: str = "default") -> str:
    return memory.recall(query, k=1, scope=scope)[0].passage.conversation_id


class Interfering(HashingEmbedder):
    """Lets something happen once, while the first batch is embedded."""

    def __init__(self, happening: Callable[[], object]) -> None:
        super().__init__()
        self._happening = happening

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        happening, self._happening = self._happening, lambda: None
        happening()
        return super().embed(texts, query=query)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_keeps_what_it_adds(store: Path) -> None:
    # In a process of its own: pytest's threads and forks do not go together.
    program = """
import os, sys
from latent_memory import Conversation, LatentMemory, Turn
memory = LatentMemory.open(sys.argv[1], embedder="hashing")
memory.add(Conversation("parent", [Turn("user", "the parent speaks")]))
memory.recall("parent")
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.read(read, 1)
    memory.add([Conversation(f"child{i}", [Turn("user", f"child {i} speaks")]) for i in range(20)])
    assert memory.recall("child 7", k=1)[0].passage.conversation_id == "child7"
    os._exit(0)
memory.close()
os.write(write, b"x")
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program, store], check=True, timeout=60)
    with LatentMemory.open(store) as memory:
        assert memory.stats().conversations == 21


def test_indexes_that_were_left_behind_by_another_store_are_not_read(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(many("zebra", 1_200))
        assert first(memory, "zebra7") == "zebra7"
    assert (store / "indexes").exists()
    for file in store.glob("memory.sqlite*"):
        file.unlink()
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(many("walrus", 50))
        for i in (0, 7, 49):
            hit = memory.recall(f"walrus{i}", k=1)[0]
            assert (hit.passage.conversation_id, hit.signals["words"]) == (f"walrus{i}", Weights().words)


@pytest.mark.parametrize("more", [50, 1_500])
def test_a_restored_backup_does_not_read_indexes_of_its_lost_future(store: Path, tmp_path: Path, more: int) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(many("early", 1_200))
    shutil.copy(store / "memory.sqlite", tmp_path / "backup")
    with LatentMemory.open(store) as memory:
        memory.add(many("lost", 1_200))
        assert first(memory, "lost7") == "lost7"
    shutil.copy(tmp_path / "backup", store / "memory.sqlite")
    with LatentMemory.open(store) as memory:
        memory.add(many("new", more))
    with LatentMemory.open(store) as memory:
        for query in ("early7", "new7", f"new{more - 1}"):
            hit = memory.recall(query, k=1)[0]
            assert (hit.passage.conversation_id, hit.signals["words"]) == (query, Weights().words)
        assert all("lost" not in hit.passage.text for hit in memory.recall("lost7", k=50))
    with LatentMemory.open(store) as memory:
        memory.recall("early7")
        (index,) = memory._indexes.values()
        # The index of the lost future does not stand in the way of a new one.
        assert index._passages.pending < 1_000


def test_a_conversation_that_is_forgotten_and_added_again_while_it_is_embedded(store: Path) -> None:
    turns = [Turn("user", f"turn {i} of the talk") for i in range(6)]
    with LatentMemory.open(store, embedder="hashing") as other:
        other.add(Conversation("talk", turns[:5]))

        def forget_and_add() -> None:
            other.forget("talk")
            other.add(Conversation("talk", turns[:1]))

        with LatentMemory.open(store, embedder=Interfering(forget_and_add)) as memory:
            report = memory.add(Conversation("talk", turns))
            assert (report.turns_added, report.turns_unchanged) == (5, 1)
            stored = memory.get("talk")
            assert stored is not None
            assert list(stored.turns) == turns


def test_a_conversation_that_is_forgotten_while_it_is_embedded(store: Path) -> None:
    turns = [Turn("user", f"turn {i} of the talk") for i in range(6)]
    with LatentMemory.open(store, embedder="hashing") as other:
        other.add(Conversation("talk", turns[:5]))
        with LatentMemory.open(store, embedder=Interfering(lambda: other.forget("talk"))) as memory:
            assert memory.add(Conversation("talk", turns)).turns_added == 6
            stored = memory.get("talk")
            assert stored is not None
            assert list(stored.turns) == turns


def test_two_reembeddings_at_once_do_not_mix(store: Path) -> None:
    class Small(HashingEmbedder):
        name = "small"

    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(many("word", 700))

        def another() -> None:
            with LatentMemory.open(store) as other:
                identity = ("smaller", 32, "")
                other._store.begin_reembedding(type(other._store.embedder())(*identity))  # type: ignore[misc]

        class Disturbed(Small):
            def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
                another()
                return super().embed(texts, query=query)

        with pytest.raises(StoreError, match="another process re-embeds"):
            memory.reembed(Disturbed(64))
        assert first(memory, "word7") == "word7"
        assert memory.reembed(Small(64)) == 700
        assert first(memory, "word7") == "word7"


def test_a_recall_that_overlaps_a_switch_of_embedders_is_refused(store: Path) -> None:
    class Twin(HashingEmbedder):
        name = "twin"

    with LatentMemory.open(store, embedder="hashing") as other:
        other.add(many("word", 20))
        with LatentMemory.open(store, embedder=Interfering(lambda: other.reembed(Twin()))) as memory:
            with pytest.raises(EmbedderMismatchError):
                memory.recall("word7")
            with pytest.raises(EmbedderMismatchError):
                memory.add(many("more", 1))


def test_an_interrupted_first_read_is_begun_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(many("word", 300))
    with LatentMemory.open(store) as memory:
        with monkeypatch.context() as broken:

            def interrupt(*_: object) -> None:
                raise KeyboardInterrupt

            broken.setattr(Feed, "vectors_after", interrupt)
            with pytest.raises(KeyboardInterrupt):
                memory.recall("word7")
        assert [hit.passage.conversation_id for hit in memory.recall("word7 was said", k=300)].count("word7") == 1
        assert len(memory.recall("word7 was said", k=1_000)) == 300


def test_a_large_scope_that_becomes_small_is_searched_exactly_again(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latent_memory.memory.EXACT_LIMIT", 1_000)
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(many("word", 1_500))
        assert first(memory, "word7") == "word7"
        index = next(iter(memory._indexes.values()))
        assert index._dense.approximate
        file = store / "indexes" / "1" / "dense.faiss"
        assert file.exists()
        memory.forget([f"word{i}" for i in range(100, 1_500)])
        assert len(memory.recall("word was said", k=200)) == 100
        assert not index._dense.approximate
        assert not file.exists()
    with LatentMemory.open(store) as memory:
        assert len(memory.recall("word was said", k=200)) == 100


def test_the_vector_index_of_a_large_scope_lives_across_processes(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_memory.dense.DenseIndex.__init__.__defaults__", (1_000,))
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(many("word", 1_500))
        assert first(memory, "word7") == "word7"
    with LatentMemory.open(store) as memory:
        memory.add(many("late", 20))
        memory.forget("word8")
        monkeypatch.setattr("latent_memory.dense.DenseIndex._invert", None)
        for query in ("word7", "late7", "word1499"):
            assert first(memory, query) == query
        assert first(memory, "word8") != "word8"


def test_forgetting_leaves_nothing_in_the_store(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory, LatentMemory.open(store) as other:
        memory.add(many("xylophone", 1_500), scope="secretive")
        memory.recall("xylophone", scope="secretive")
        assert other.stats().conversations == 1_500
        memory.forget(everything=True, scope="secretive")
        for file in store.rglob("*"):
            if file.is_file():
                data = file.read_bytes()
                assert b"xylophone" not in data, file
                assert b"secretive" not in data, file
        assert memory.recall("xylophone", scope="secretive") == []
        assert other.recall("xylophone", scope="secretive") == []
        memory.add(many("again", 3), scope="secretive")
        assert first(other, "again1", "secretive") == "again1"


def test_a_summary_gives_way_to_turns(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(Conversation("note", summary="Penguins live in Antarctica.", timestamp="2020-01-01"))  # type: ignore[arg-type]
        memory.add(Conversation("note", [Turn("user", "Let us plan the taxes.")], timestamp="2025-01-01"))  # type: ignore[arg-type]
        assert [hit.passage.turn for hit in memory.recall("penguins", k=10)] == [0]
        assert memory.recall("penguins", until="2021-01-01") == []


def test_readers_do_not_wait_for_a_writer_of_another_process(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(many("word", 10))
        foreign = sqlite3.connect(store / "memory.sqlite", isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        waiting = threading.Thread(target=lambda: memory.add(many("more", 1)))
        waiting.start()
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.append(first(memory, "word7")))
        reader.start()
        reader.join(timeout=10)
        assert found == ["word7"]
        assert waiting.is_alive()
        foreign.execute("ROLLBACK")
        foreign.close()
        waiting.join(timeout=30)
        assert first(memory, "more0") == "more0"


def test_connections_end_with_their_threads(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(many("word", 3))
        for _ in range(50):
            thread = threading.Thread(target=lambda: memory.recall("word"))
            thread.start()
            thread.join()
        assert len(memory._store.database._open) <= 3


def test_a_failing_index_does_not_keep_the_store_open(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = LatentMemory.open(store, embedder="hashing")
    memory.add(many("word", 3))

    def fail(*_: object, **__: object) -> None:
        raise StoreError("no")

    monkeypatch.setattr(ScopeIndex, "commit", fail)
    with pytest.raises(StoreError, match="no"):
        memory.close()
    with pytest.raises(StoreError, match="was closed"):
        memory.stats()


def test_a_long_chat_that_grows_a_turn_at_a_time_is_found_to_the_end(store: Path) -> None:
    turns = [Turn("user", f"remark{i} about the voyage") for i in range(60)]
    with LatentMemory.open(store, embedder="hashing") as memory:
        for length in range(1, len(turns) + 1):
            memory.add(Conversation("chat", turns[:length]))
            hit = memory.recall(f"remark{length - 1}", k=1)[0]
            assert hit.passage.turn == length - 1
            assert hit.signals["conversation"] == pytest.approx(Weights().conversation)
        whole = [(hit.passage.turn, hit.score) for hit in memory.recall("remark3 voyage", k=60)]
    with LatentMemory.open(store) as memory:
        again = [(hit.passage.turn, hit.score) for hit in memory.recall("remark3 voyage", k=60)]
    assert [turn for turn, _ in whole] == [turn for turn, _ in again]
    np.testing.assert_allclose([score for _, score in whole], [score for _, score in again], rtol=1e-6)


@pytest.mark.parametrize("busy", [True, False])
def test_a_conversation_read_in_several_slices_is_counted_once(
    store: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    turns = [Turn("user", f"remark{i} about the voyage") for i in range(40)]
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add([Conversation("chat", turns), Conversation("short", turns[:2]), *many("other", 20)])
        expected = [(hit.passage, hit.signals) for hit in memory.recall("remark3 voyage", k=100)]
    with monkeypatch.context() as patched:
        patched.setattr("latent_memory.scope_index._SLICE", 7)
        if busy:
            patched.setattr("latent_memory.lexical.LexicalIndex.commit", lambda *_: False)
        with LatentMemory.open(store) as memory:
            found = [(hit.passage, hit.signals) for hit in memory.recall("remark3 voyage", k=100)]
    assert len(found) == len(expected)
    by_passage = dict(found)
    for passage, signals in expected:
        # Tantivy keeps a document's length in a byte.
        assert by_passage[passage] == pytest.approx(signals, abs=0.02)
