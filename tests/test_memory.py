"""The library's front door."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from latent_memory import AddReport, Conversation, LatentMemory, Turn
from latent_memory.errors import EmbedderError, InputError, StoreError, StoreFullError
from latent_memory.vectors import Vectors

TRIP = Conversation(
    "trip",
    [
        Turn("user", "We fly to Osaka on the third of May.", name="Ana"),
        Turn("assistant", "Shall I look for a hotel near the station?"),
        Turn("user", "Yes, the cheap one with the blue roof."),
    ],
    title="Japan",
    timestamp=datetime(2025, 3, 1, 9, tzinfo=UTC),
)
BREAD = Conversation(
    "bread",
    [
        Turn("user", "My sourdough needs 350 grams of water."),
        Turn("assistant", "Then the hydration is seventy percent."),
    ],
    timestamp=datetime(2024, 3, 1, 9, tzinfo=UTC),
)


def places(memory: LatentMemory, query: str, **options: object) -> list[tuple[str, int | None]]:
    return [(h.passage.conversation_id, h.passage.turn) for h in memory.recall(query, **options)]  # type: ignore[arg-type]


def test_the_right_turn_comes_first(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    hit = memory.recall("how much water does the sourdough need?")[0]
    assert (hit.passage.conversation_id, hit.passage.turn) == ("bread", 0)
    assert hit.passage.text == "My sourdough needs 350 grams of water."
    assert hit.score == pytest.approx(sum(hit.signals.values()))
    assert set(hit.signals) == {
        *("meaning", "words", "exchange", "tokens", "neighbours", "answer", "conversation", "companion", "asking")
    }


def test_recall_by_meaning_with_the_default_embedder(tmp_path: Path) -> None:
    with LatentMemory.open(tmp_path / "store") as memory:
        memory.add([TRIP, BREAD])
        assert places(memory, "when does our journey to Japan begin?")[0] == ("trip", 0)
        assert places(memory, "baking")[0][0] == "bread"
        assert memory.embedder.dimension == 384


def test_adding_again_adds_nothing(memory: LatentMemory) -> None:
    assert memory.add([TRIP, BREAD]) == AddReport(added=2, turns_added=5)
    assert memory.add([TRIP, BREAD]) == AddReport(unchanged=2, turns_unchanged=5)
    assert memory.stats().passages == 5


def test_new_turns_are_appended_and_only_they_are_embedded(memory: LatentMemory) -> None:
    memory.add(TRIP)
    embedded: list[str] = []
    plain = memory.embedder

    class Watched:
        name, dimension = plain.name, plain.dimension

        def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
            embedded.extend(texts)
            return plain.embed(texts, query=query)

    memory.embedder = Watched()
    grown = Conversation("trip", [*TRIP.turns, Turn("assistant", "Booked: four nights.")], title="Japan")
    assert memory.add(grown) == AddReport(changed=1, turns_added=1, turns_unchanged=3)
    assert embedded == ["Booked: four nights."]
    memory.embedder = plain
    assert places(memory, "booked four nights")[0] == ("trip", 3)


def test_a_changed_turn_replaces_the_old(memory: LatentMemory) -> None:
    memory.add(TRIP)
    turns = [TRIP.turns[0], Turn("assistant", "Would a ryokan suit you?"), TRIP.turns[2]]
    report = memory.add(Conversation("trip", turns, title="Japan"))
    assert report == AddReport(changed=1, turns_changed=1, turns_unchanged=2)
    assert places(memory, "ryokan")[0] == ("trip", 1)
    assert all("station" not in hit.passage.text for hit in memory.recall("hotel near the station"))
    assert memory.stats().passages == 3
    # The next turn's exchange is with the new one.
    hits = {hit.passage.turn: hit for hit in memory.recall("ryokan")}
    assert hits[2].signals["exchange"] > 0


def test_turns_that_are_not_handed_in_again_stay(memory: LatentMemory) -> None:
    memory.add(TRIP)
    assert memory.add(Conversation("trip", TRIP.turns[:1])) == AddReport(unchanged=1, turns_unchanged=1)
    stored = memory.get("trip")
    assert stored is not None
    assert stored.turns == TRIP.turns


def test_changed_turn_of_a_shorter_copy_keeps_the_rest(memory: LatentMemory) -> None:
    memory.add(TRIP)
    memory.add(Conversation("trip", [Turn("user", "We sail to Kobe instead.", name="Ana")]))
    stored = memory.get("trip")
    assert stored is not None
    assert [turn.text for turn in stored.turns][1:] == [turn.text for turn in TRIP.turns][1:]
    assert stored.turns[0].text == "We sail to Kobe instead."


def test_the_same_id_twice_in_one_call(memory: LatentMemory) -> None:
    grown = Conversation("trip", [*TRIP.turns, Turn("assistant", "Booked.")])
    report = memory.add([TRIP, grown])
    assert report == AddReport(added=1, changed=1, turns_added=4, turns_unchanged=3)


def test_a_conversation_without_an_id_gets_a_stable_one(memory: LatentMemory) -> None:
    nameless = Conversation(turns=TRIP.turns)
    assert memory.add([nameless]).added == 1
    assert memory.add([nameless]).unchanged == 1
    (info,) = memory.conversations()
    assert info.conversation_id.startswith("gen-")
    stored = memory.get(info.conversation_id)
    assert stored is not None
    assert stored.generated == {"conversation_id", "title", "summary", "type", "timestamp:now"}


def test_metadata_is_generated_and_marked(memory: LatentMemory) -> None:
    memory.add(BREAD)
    stored = memory.get("bread")
    assert stored is not None
    assert stored.title == "My sourdough needs 350 grams of water."
    assert stored.type == "conversation"
    assert stored.summary
    assert stored.generated == {"title", "summary", "type"}
    assert stored.timestamp == BREAD.timestamp


def test_the_time_is_the_first_turns_where_it_is_not_given(memory: LatentMemory) -> None:
    when = datetime(2023, 7, 1, 12, tzinfo=UTC)
    memory.add(Conversation("a", [Turn("user", "hello there friend", when)]))
    stored = memory.get("a")
    assert stored is not None
    assert stored.timestamp == when
    assert "timestamp:turn" in stored.generated


def test_given_metadata_changes_and_is_kept(memory: LatentMemory) -> None:
    memory.add(TRIP)
    changed = Conversation("trip", TRIP.turns, title="Osaka", summary="A flight.", metadata={"tags": ["travel"]})
    assert memory.add(changed) == AddReport(changed=1, turns_unchanged=3)
    assert memory.add(Conversation("trip", TRIP.turns)).unchanged == 1
    stored = memory.get("trip")
    assert stored is not None
    assert (stored.title, stored.summary, stored.metadata) == ("Osaka", "A flight.", {"tags": ["travel"]})
    assert stored.timestamp == TRIP.timestamp
    # A given title is searched with the conversation.
    assert memory.recall("osaka")[0].signals["conversation"] > 0


def test_a_changed_time_moves_the_turns(memory: LatentMemory) -> None:
    memory.add(TRIP)
    later = datetime(2026, 1, 1, tzinfo=UTC)
    memory.add(Conversation("trip", TRIP.turns, title="Japan", timestamp=later))
    assert len(memory.recall("osaka", since=later)) == 3
    assert memory.recall("osaka", until=later) == []


def test_a_conversation_of_a_summary_alone(memory: LatentMemory) -> None:
    memory.add(Conversation("note", summary="Ana prefers window seats.", title="Seats"))
    (hit,) = memory.recall("window seats")
    assert (hit.passage.turn, hit.passage.text) == (None, "Ana prefers window seats.")
    assert memory.add(Conversation("note", summary="Ana prefers aisle seats.", title="Seats")).changed == 1
    (hit,) = memory.recall("window seats")
    assert hit.passage.text == "Ana prefers aisle seats."


def test_a_long_turn_is_one_hit(memory: LatentMemory) -> None:
    long = " ".join(f"Paragraph {i} speaks of harbours, ferries and tides in the north." for i in range(200))
    memory.add(Conversation("long", [Turn("user", "Tell me."), Turn("assistant", long)]))
    assert memory.stats().passages > 5
    hits = memory.recall("ferries and tides", k=10)
    assert sorted(hit.passage.turn or 0 for hit in hits) == [0, 1]
    hit = next(hit for hit in hits if hit.passage.turn == 1)
    assert long[hit.passage.start : hit.passage.end] == hit.passage.text


def test_filters(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    assert {c for c, _ in places(memory, "water hotel", since="2025-01-01")} == {"trip"}
    assert {c for c, _ in places(memory, "water hotel", until="2025-01-01")} == {"bread"}
    assert places(memory, "water hotel", roles="assistant", conversation_ids=["bread"]) == [("bread", 1)]
    assert places(memory, "water hotel", conversation_ids="nothing") == []
    with pytest.raises(InputError, match="roles: 'robot' is unknown"):
        memory.recall("x", roles="robot")
    with pytest.raises(InputError, match="since: 'soon' is no time"):
        memory.recall("x", since="soon")


def test_live_messages_as_query(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    messages = [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "Let's talk about baking sourdough with water."},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": "And how much?"},
    ]
    assert places(memory, messages)[0] == ("bread", 0)  # type: ignore[arg-type]
    assert memory.recall([Turn("user", "the flight to Osaka in May")])[0].passage.conversation_id == "trip"
    with pytest.raises(InputError, match=r"messages\[0\]"):
        memory.recall(["hello"])  # type: ignore[list-item]


@pytest.mark.parametrize("query", ["", "  \n", []])
def test_an_empty_query_is_an_error(memory: LatentMemory, query: str) -> None:
    with pytest.raises(InputError, match="query: empty"):
        memory.recall(query)


def test_context_leaves_out_what_is_live(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    block = memory.context("water for sourdough", budget=200)
    assert "350 grams" in block.text
    assert block.tokens <= 200
    live = [Turn("user", "My sourdough needs 350 grams of water."), Turn("user", "What is the hydration then?")]
    assert "user: My sourdough" not in memory.context(live, budget=200).text


def test_context_counts_with_the_given_tokenizer(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    block = memory.context("water for sourdough", budget=60, tokenizer=lambda text: len(text.split()))
    assert block.tokens == len(block.text.split()) <= 60
    assert not memory.context("water", budget=3)


def test_forgetting(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    assert memory.forget("trip") == 1
    assert memory.forget("trip") == 0
    assert memory.get("trip") is None
    assert places(memory, "flight to osaka hotel station blue roof") != []
    assert {c for c, _ in places(memory, "flight to osaka hotel station blue roof")} == {"bread"}
    assert memory.forget(everything=True) == 1
    assert memory.recall("water") == []
    assert memory.stats().passages == 0
    with pytest.raises(InputError, match="forget"):
        memory.forget()


def test_what_was_forgotten_can_be_added_again(memory: LatentMemory) -> None:
    memory.add(TRIP)
    memory.forget("trip")
    assert memory.add(TRIP).added == 1
    assert places(memory, "osaka")[0] == ("trip", 0)


def test_neighbours_and_the_conversation_of_a_turn(memory: LatentMemory) -> None:
    memory.add(TRIP)
    hit = memory.recall("hotel near the station", k=1)[0]
    around = memory.neighbours(hit.passage.conversation_id, hit.passage.turn or 0)
    assert [p.turn for p in around] == [0, 2]
    assert memory.neighbours("trip", 0, before=3, after=0) == []
    parent = memory.get(hit.passage.conversation_id)
    assert parent is not None
    assert parent.turns[1].text == hit.passage.text


def test_conversations_are_paged_newest_first(memory: LatentMemory) -> None:
    begun = datetime(2025, 1, 1, tzinfo=UTC)
    memory.add(
        Conversation(f"c{i}", [Turn("user", f"number {i}")], timestamp=begun + timedelta(days=i)) for i in range(5)
    )
    assert [c.conversation_id for c in memory.conversations(limit=2)] == ["c4", "c3"]
    assert [c.conversation_id for c in memory.conversations(limit=2, offset=4)] == ["c0"]


def test_what_is_added_and_forgotten_moves_no_page(memory: LatentMemory) -> None:
    same = datetime(2025, 1, 1, tzinfo=UTC)
    memory.add(Conversation(f"c{i}", [Turn("user", f"number {i}")], timestamp=same) for i in range(5))
    memory.add(Conversation("older", [Turn("user", "older")], timestamp=same - timedelta(days=1)))
    first = memory.page(limit=2)
    assert [c.conversation_id for c in first] == ["c4", "c3"]
    memory.add(Conversation("newer", [Turn("user", "newer")], timestamp=same + timedelta(days=1)))
    memory.forget("c3")
    rest = memory.page(after=(first[-1].timestamp, first[-1].conversation_id))
    assert [(c.conversation_id, c.turns) for c in rest] == [("c2", 1), ("c1", 1), ("c0", 1), ("older", 1)]
    assert memory.page(limit=0) == []
    with pytest.raises(InputError, match="limit"):
        memory.page(limit=-1)


def test_a_check_may_keep_something_from_being_forgotten(memory: LatentMemory) -> None:
    memory.add(TRIP)

    def refuse() -> None:
        # It sees what is there, and nobody else can write until it is done.
        assert memory.get("trip") is not None
        raise KeyError("changed")

    with pytest.raises(KeyError):
        memory.forget("trip", check=refuse)
    assert memory.get("trip") is not None
    assert memory.recall("osaka")
    assert memory.forget("trip", check=lambda: None) == 1


def test_stats(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD], scope="ana")
    memory.add([TRIP], scope="wei")
    stats = memory.stats()
    assert (stats.scopes, stats.conversations, stats.turns, stats.passages) == (2, 3, 8, 8)
    assert (stats.first, stats.last) == (BREAD.timestamp, TRIP.timestamp)
    assert memory.stats(scope="wei").turns == 3
    assert memory.stats(scope="nobody").turns == 0
    assert memory.scopes() == {"ana": 2, "wei": 1}


def test_an_iterator_is_streamed_in_batches(memory: LatentMemory) -> None:
    taken = 0

    def many() -> Iterator[Conversation]:
        nonlocal taken
        for i in range(1_500):
            taken += 1
            yield Conversation(f"c{i}", [Turn("user", f"message number {i}")])

    seen: list[int] = []

    def progress(report: AddReport) -> None:
        assert memory.stats().conversations == report.added
        seen.append(taken - report.added)

    assert memory.add(many(), progress=progress).added == 1_500
    assert len(seen) >= 3
    assert max(seen) <= 1


def test_batches_before_an_error_are_kept_and_the_one_at_hand_is_not(memory: LatentMemory) -> None:
    def broken() -> Iterator[Conversation]:
        for i in range(700):
            yield Conversation(f"c{i}", [Turn("user", f"message number {i}")])
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        memory.add(broken())
    assert memory.stats().conversations == 500


def test_an_embedder_that_returns_nonsense_changes_nothing(memory: LatentMemory) -> None:
    class Nonsense:
        name, dimension = "hashing", 256

        def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
            return np.full((len(texts), 256), np.nan, np.float32)

    memory.embedder = Nonsense()
    with pytest.raises(EmbedderError, match="NaN"):
        memory.add(TRIP)
    assert memory.stats().conversations == 0


def test_a_summariser_of_ones_own(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing", summariser=lambda c: f"{len(c.turns)} turns on {c.title}") as m:
        m.add([TRIP, Conversation("given", TRIP.turns, summary="Given.")])
        assert {c.conversation_id: c.summary for c in m.conversations()} == {
            "trip": "3 turns on Japan",
            "given": "Given.",
        }


def test_threads_add_and_recall_at_once(memory: LatentMemory) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(20):
                memory.add(Conversation(f"{number}-{i}", [Turn("user", f"worker {number} says unique{number}x{i}")]))
                hits = memory.recall(f"unique{number}x{i}", k=1)
                assert hits[0].passage.conversation_id == f"{number}-{i}"
        except BaseException as error:  # noqa: BLE001 - carried to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert memory.stats().conversations == 120


@pytest.mark.parametrize("_", range(3))
def test_closing_waits_for_what_is_being_written(store: Path, _: int) -> None:
    """SQLite crashes the process if a connection is closed under a statement that runs."""
    memory = LatentMemory.open(store, embedder="hashing")
    acknowledged: list[str] = []
    begun = threading.Event()
    ends: list[str] = []

    def work(number: int) -> None:
        try:
            for i in range(10_000):
                memory.add(Conversation(f"{number}-{i}", [Turn("user", f"said {number} {i}")]))
                acknowledged.append(f"{number}-{i}")
                begun.set()
        except StoreError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    begun.wait(60)
    memory.close()
    for thread in threads:
        thread.join()
    assert ["was closed; open it again" in end for end in ends] == [True] * 4
    with LatentMemory.open(store) as again:
        assert set(acknowledged) <= set(again.conversation_ids())


def test_which_ids_are_missing(memory: LatentMemory) -> None:
    assert memory.missing(["trip", "trip"]) == ["trip"]
    memory.add([TRIP, BREAD])
    memory.add(TRIP, "ben")
    many = [f"none-{i}" for i in range(25_000)]
    assert memory.missing(["bread", *many, "trip"]) == many
    assert memory.missing(["trip", "bread"], scope="ben") == ["bread"]
    assert memory.missing([]) == []


def test_a_full_disk_keeps_what_was_there(memory: LatentMemory) -> None:
    memory.add(TRIP)
    database = memory._store.database
    (pages,) = database.row("PRAGMA page_count")
    database.row(f"PRAGMA max_page_count = {pages + 5}")
    big = [Conversation(f"c{i}", [Turn("user", f"number {i} " + "word " * 150)]) for i in range(200)]
    with pytest.raises(StoreFullError, match=r"the disk is full\. The batch at hand was not kept"):
        memory.add(big)
    assert memory.stats().conversations == 1
    database.row("PRAGMA max_page_count = 1073741823")
    assert memory.add(big).added == 200
    assert places(memory, "osaka")[0] == ("trip", 0)


def test_a_closed_memory_says_so(store: Path) -> None:
    memory = LatentMemory.open(store, embedder="hashing")
    memory.close()
    with pytest.raises(Exception, match="was closed; open it again"):
        memory.add(TRIP)


def test_what_is_stored_of_passages(store: Path) -> None:
    with LatentMemory.open(store) as memory:
        memory.add(Conversation("c", [Turn("user", "My cat is called Biscoito."), Turn("assistant", "word " * 700)]))
        memory.add(Conversation("c", [Turn("user", "Something else.")]), scope="bob")
        passages = [hit.passage for hit in memory.recall("cat words", 10)] + list(memory.neighbours("c", 1))
        made = memory.vectors_of(passages)
        again = memory.embedder.embed([passage.text for passage in passages])
        assert made.vectors.shape == (len(passages), 384)
        np.testing.assert_allclose(np.sum(made.vectors * again, axis=1), 1, atol=1e-3)
        assert all(codes.shape[1] == 48 and len(codes) for codes in made.codes)
        memory.forget("c")
        with pytest.raises(InputError, match="Recall again"):
            memory.vectors_of(passages)


def test_an_embedder_without_tokens_has_no_codes(memory: LatentMemory) -> None:
    memory.add(Conversation("c", [Turn("user", "My cat is called Biscoito.")]))
    made = memory.vectors_of([hit.passage for hit in memory.recall("cat")])
    assert [len(codes) for codes in made.codes] == [0]
    assert memory.vectors_of([]).vectors.shape == (0, memory.embedder.dimension)


def test_headings_and_ids_by_prefix(memory: LatentMemory) -> None:
    last = chr(0x10FFFF)
    ids = ["a", "a:", "a:1", "a:\x00", "a:\ud7ff1", "a:\ue000", f"a:{last}", f"a:{last}x", "a;", "b", f"{last}1"]
    for number, known in enumerate(ids):
        time = datetime(2024, 1, 1 + number, tzinfo=UTC)
        memory.add(Conversation(known, [Turn("user", f"text {number}")], timestamp=time, metadata={"n": number}))
    memory.add(Conversation("a:other", [Turn("user", "elsewhere")]), "other")
    for prefix in ["", "a", "a:", "a:\ud7ff", f"a:{last}", last, "c", "a:1"]:
        expected = [known for known in ids if known.startswith(prefix)]
        assert memory.conversation_ids(prefix=prefix) == expected[::-1], prefix
        found = memory.headings(prefix=prefix)
        assert [each.conversation_id for each in found] == sorted(expected), prefix
        for each in found:
            whole = memory.get(str(each.conversation_id))
            assert whole is not None
            assert replace(whole, turns=()) == each
        assert memory.headings(prefix=prefix, limit=2) == found[:2]
    assert memory.headings(scope="nobody") == []
    assert memory.conversation_ids(scope="nobody", prefix="a") == []
    with pytest.raises(InputError, match="limit"):
        memory.headings(limit=-1)
    with pytest.raises(InputError, match="prefix"):
        memory.headings(prefix="\ud800")
