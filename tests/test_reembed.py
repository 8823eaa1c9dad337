"""Another embedder: refused, then switched to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.errors import EmbedderMismatchError
from latent_memory.vectors import Vectors


class Other(HashingEmbedder):
    name = "other"

    def __init__(self) -> None:
        super().__init__(dimension=64)


def filled(store: Path, count: int = 30) -> LatentMemory:
    memory = LatentMemory.open(store, embedder="hashing")
    memory.add(Conversation(f"c{i}", [Turn("user", f"message about topic{i}", name="Ana")]) for i in range(count))
    return memory


def test_another_embedder_is_refused_with_the_command_that_helps(store: Path) -> None:
    filled(store).close()
    with pytest.raises(EmbedderMismatchError, match=r"reembed --store .* --embedder all-MiniLM-L6-v2-int8"):
        LatentMemory.open(store, embedder="minilm")
    with LatentMemory.open(store) as memory:
        assert memory.embedder.name == "hashing"


def test_the_same_name_with_another_dimension_is_refused_before_anything_is_written(store: Path) -> None:
    filled(store).close()
    with LatentMemory.open(store, embedder=HashingEmbedder(dimension=32)) as memory:
        with pytest.raises(EmbedderMismatchError):
            memory.recall("topic3")
        with pytest.raises(EmbedderMismatchError):
            memory.add(Conversation("new", [Turn("user", "hello there")]))
        assert memory.stats().conversations == 30


def test_reembedding_switches_over(store: Path) -> None:
    with filled(store) as memory:
        assert memory.reembed(Other()) == 30
        assert memory.recall("topic7", k=1)[0].passage.conversation_id == "c7"
        assert memory.stats().dimension == 64
        memory.add(Conversation("new", [Turn("user", "a newcomer")]))
        assert memory.recall("newcomer", k=1)[0].passage.conversation_id == "new"
    with LatentMemory.open(store, embedder=Other()) as memory:
        assert memory.recall("topic7", k=1)[0].passage.conversation_id == "c7"
    with pytest.raises(EmbedderMismatchError):
        LatentMemory.open(store, embedder="hashing")


def test_an_interrupted_reembedding_goes_on_where_it_stopped(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_memory.ingest.REEMBED_PASSAGES", 10)
    embedded = 0

    class Breaking(Other):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
            nonlocal embedded
            embedded += len(texts)
            if embedded == 20:
                raise KeyboardInterrupt
            return super().embed(texts, query=query)

    with filled(store) as memory:
        with pytest.raises(KeyboardInterrupt):
            memory.reembed(Breaking())
        # Nothing has changed for those who use it, and what is added meanwhile is not lost.
        assert memory.recall("topic7", k=1)[0].passage.conversation_id == "c7"
        memory.add(Conversation("late", [Turn("user", "a latecomer")]))
        memory.forget("c0")
        done: list[tuple[int, int]] = []
        embedded = 100
        assert memory.reembed(Breaking(), progress=lambda a, b: done.append((a, b))) == 30
        assert embedded == 121  # 31 less the 10 that were kept
        assert done[-1] == (30, 30)
        assert memory.recall("latecomer", k=1)[0].passage.conversation_id == "late"


def test_a_process_that_still_has_the_old_embedder_is_told(store: Path) -> None:
    with filled(store) as old, LatentMemory.open(store) as other:
        assert old.recall("topic7")
        other.reembed(Other())
        with pytest.raises(EmbedderMismatchError, match="made with the embedder 'other'"):
            old.recall("topic7")
        with pytest.raises(EmbedderMismatchError):
            old.add(Conversation("x", [Turn("user", "hello there")]))
