"""A scope is a wall: what is said behind one is never seen from another, on any path."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn

TEXT = st.text(st.characters(codec="utf-8"), min_size=1)
SECRET = "the garden key lies under the third stone"


def fill(memory: LatentMemory, conversations: int = 3) -> None:
    for scope in ("ana", "wei"):
        memory.add(
            (
                Conversation(f"c{i}", [Turn("user", f"{SECRET} {scope}"), Turn("assistant", f"noted {scope} {i}")])
                for i in range(conversations)
            ),
            scope=scope,
        )


def test_two_scopes_with_the_same_words(memory: LatentMemory) -> None:
    fill(memory)
    for scope, other in (("ana", "wei"), ("wei", "ana")):
        hits = memory.recall(f"{SECRET} {other}", k=100, scope=scope)
        assert len(hits) == 6
        assert {hit.passage.scope for hit in hits} == {scope}
        assert all(other not in hit.passage.text for hit in hits)
        assert other not in memory.context(f"{SECRET} {other}", scope=scope).text
        assert all(other not in p.text for p in memory.neighbours("c1", 0, scope=scope))
        conversation = memory.get("c1", scope=scope)
        assert conversation is not None
        assert conversation.turns[0].text == f"{SECRET} {scope}"
    assert memory.recall(SECRET, scope="nobody") == []
    assert memory.recall(SECRET) == []
    assert memory.get("c1") is None
    assert not memory.context(SECRET)
    assert memory.neighbours("c1", 0) == []
    assert memory.conversations() == []


def test_scopes_whose_indexes_are_on_disk(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory:
        fill(memory, conversations=700)
    with LatentMemory.open(store) as memory:
        assert {path.name for path in (store / "indexes").iterdir()} == {"1", "2"}
        for scope in ("ana", "wei"):
            hits = memory.recall(SECRET, k=2_000, scope=scope)
            assert len(hits) > 1_000
            assert {hit.passage.scope for hit in hits} == {scope}


def test_forgetting_stays_behind_its_wall(memory: LatentMemory) -> None:
    fill(memory)
    memory.forget("c1", scope="ana")
    assert memory.get("c1", scope="ana") is None
    assert memory.get("c1", scope="wei") is not None
    memory.forget(everything=True, scope="ana")
    assert len(memory.recall(SECRET, k=100, scope="wei")) == 6
    assert memory.forget("c1", scope="nobody") == 0


def test_scores_do_not_depend_on_what_others_store(store: Path) -> None:
    """Word statistics are a scope's own: a shared index would tell how often others use a word."""
    with LatentMemory.open(store, embedder="hashing") as memory:
        fill(memory)
        before = [(hit.passage, hit.score) for hit in memory.recall("garden stone", scope="ana")]
        memory.add((Conversation(f"x{i}", [Turn("user", "garden")]) for i in range(50)), scope="other")
        assert [(hit.passage, hit.score) for hit in memory.recall("garden stone", scope="ana")] == before


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT.filter(str.strip), TEXT)
def test_any_name_is_a_scope_of_its_own(memory: LatentMemory, scope: str, query: str) -> None:
    memory.add(Conversation("a", [Turn("user", "only here " + scope)]), scope=scope)
    hits = memory.recall("only here " + query, k=50, scope=scope)
    assert [hit.passage.scope for hit in hits] == [scope]
