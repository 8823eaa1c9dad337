"""extend(whole=True): a conversation becomes what is returned, and what is left out at its end is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.errors import InputError

Follow = Callable[[Conversation | None], Conversation | None]

TALK = [
    Turn("user", "Where is the boat moored this winter?", datetime(2024, 11, 2, tzinfo=UTC), "Ana"),
    Turn("assistant", "In the harbour of Hinase, behind the breakwater."),
    Turn("user", "And the zebrafinch cage, who looks after that one?", datetime(2024, 11, 3, tzinfo=UTC)),
]


def becomes(turns: Sequence[Turn], **more: Any) -> Follow:
    return lambda stored: Conversation("c", turns, **more)


def state(memory: LatentMemory) -> Any:
    conversation = memory.get("c")
    assert conversation is not None
    hits = memory.recall("boat harbour winter zebrafinch cage", 20)
    told = sorted((hit.passage.turn, hit.passage.text, round(hit.score, 9)) for hit in hits)
    return conversation.turns, conversation.title, conversation.summary, told


TURN = st.builds(
    Turn,
    st.sampled_from(["user", "assistant"]),
    st.sampled_from(["the boat is blue", "a harbour in winter", "zebrafinch", "cage " * 400]),
    st.just("2024-01-01"),
)


@given(before=st.lists(TURN, min_size=1, max_size=6), after=st.lists(TURN, min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_it_is_as_if_it_had_never_been_otherwise(
    tmp_path_factory: pytest.TempPathFactory, before: list[Turn], after: list[Turn]
) -> None:
    path = tmp_path_factory.mktemp("extend")
    with (
        LatentMemory.open(path / "changed", embedder="hashing") as changed,
        LatentMemory.open(path / "fresh", embedder="hashing") as fresh,
    ):
        changed.add(Conversation("c", before))
        state(changed)
        changed.extend("c", becomes(after), whole=True)
        fresh.add(Conversation("c", after))
        assert state(changed)[0] == state(fresh)[0]
        # A conversation that only grows keeps its summary for a while.
        if after[: len(before)] != before:
            assert state(changed) == state(fresh)


def test_what_is_left_out_is_gone_from_the_disk(memory: LatentMemory, store: Path) -> None:
    memory.add(Conversation("c", TALK))
    memory.add(Conversation("other", [Turn("user", f"number {number}") for number in range(300)]))
    assert memory.recall("zebrafinch", 1)[0].passage.turn == 2
    report = memory.extend("c", becomes(TALK[:2]), whole=True)
    assert (report.changed, report.turns_unchanged, report.turns_added) == (1, 2, 0)
    assert memory.stats().turns == 302
    for path in [path for path in store.rglob("*") if path.is_file()]:
        assert b"zebrafinch" not in path.read_bytes(), path


def test_without_whole_the_turns_stay(memory: LatentMemory) -> None:
    memory.add(Conversation("c", TALK))
    memory.extend("c", becomes(TALK[:1]))
    assert state(memory)[0] == tuple(TALK)


def test_a_title_that_was_given_stays_and_one_that_was_made_does_not(memory: LatentMemory) -> None:
    memory.add(Conversation("c", TALK, title="Winter"))
    memory.add(Conversation("d", TALK[1:]))
    memory.extend("c", becomes(TALK[:1]), whole=True)
    memory.extend("d", lambda stored: Conversation("d", TALK[1:2]), whole=True)
    given, made = memory.get("c"), memory.get("d")
    assert given is not None
    assert made is not None
    assert given.title == "Winter"
    assert "zebrafinch" not in f"{given.summary}{made.title}{made.summary}"
    assert made.title
    assert "harbour" in made.title


def test_what_another_added_meanwhile_is_seen(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as one, LatentMemory.open(store) as two:
        one.add(Conversation("c", TALK))
        seen: list[int] = []

        def without_the_last(stored: Conversation | None) -> Conversation:
            assert stored is not None
            seen.append(len(stored.turns))
            if len(seen) == 1:
                # After this was read, and before it is written.
                two.add(Conversation("c", [*TALK, Turn("user", "One more.")]))
            return Conversation("c", stored.turns[:-1])

        one.extend("c", without_the_last, whole=True)
        assert seen == [3, 4]
        assert state(two)[0] == tuple(TALK)


def test_nothing_at_all_is_refused(memory: LatentMemory) -> None:
    memory.add(Conversation("c", TALK))
    with pytest.raises(InputError, match="use forget"):
        memory.extend("c", becomes([], summary="nothing"), whole=True)
    assert memory.extend("c", lambda stored: None, whole=True).changed == 0
    assert state(memory)[0] == tuple(TALK)


@pytest.mark.parametrize("name", ["memory.h5", "memory.pkl"])
def test_in_a_file(tmp_path: Path, name: str) -> None:
    with LatentMemory.open(tmp_path / name, embedder="hashing") as memory:
        memory.add(Conversation("c", TALK))
        memory.extend("c", becomes(TALK[:2]), whole=True)
    assert b"zebrafinch" not in (tmp_path / name).read_bytes()
    with LatentMemory.open(tmp_path / name) as memory:
        assert state(memory)[0] == tuple(TALK[:2])
