"""LangGraph's store: the same answers as LangGraph's own store in memory, and what that one cannot do."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchItem,
    SearchOp,
    TTLConfig,
)
from langgraph.store.memory import InMemoryStore

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.errors import InputError
from latent_memory.integrations.langgraph import LatentMemoryStore
from latent_memory.vectors import Vectors


@pytest.fixture
def items(memory: LatentMemory) -> LatentMemoryStore:
    memory.add(Conversation("talk", [Turn("user", "I like green tea."), Turn("assistant", "So do I.")]))
    return LatentMemoryStore(memory)


def keys(found: Iterable[Item]) -> list[str]:
    return [item.key for item in found]


# -- the same answers as InMemoryStore ----------------------------------------------------------------------------

# Labels and keys that begin alike, and that mean something in JSON, SQL or a path.
LABELS = ["a", "ab", 'a","b', "a]", "%", "_", "é", "\\", '"']
NAMESPACES = st.lists(st.sampled_from(LABELS), min_size=1, max_size=3).map(tuple)
KEYS = st.sampled_from(["k", "k2", "", "]", '"', "日本", "a/b", "\x00"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["x", "y", ""])
VALUES = st.fixed_dictionaries(
    {"n": st.integers(-3, 3)},
    optional={
        "tag": SCALARS,
        "list": st.lists(SCALARS, max_size=2),
        "deep": st.fixed_dictionaries({"n": st.integers(0, 2)}, optional={"tag": SCALARS}),
    },
)
OPERATORS = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]
FILTERS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(-3, 3)
        | st.dictionaries(
            st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), st.integers(-3, 3), min_size=1
        ),
        "tag": SCALARS | st.fixed_dictionaries({"$ne": SCALARS}) | st.fixed_dictionaries({"$eq": SCALARS}),
        "list": st.lists(SCALARS, max_size=2),
        "deep": st.fixed_dictionaries({}, optional={"n": st.integers(0, 2), "tag": SCALARS}),
    },
)
PATHS = st.lists(st.sampled_from([*LABELS, "*"]), max_size=2).map(tuple)
PAGES = {"limit": st.integers(0, 4) | st.just(100), "offset": st.integers(0, 3)}
PUTS = st.builds(PutOp, NAMESPACES, KEYS, st.none() | VALUES, index=st.none(), ttl=st.none())
OPS = (
    PUTS
    | PUTS
    | st.builds(GetOp, NAMESPACES, KEYS)
    | st.builds(SearchOp, st.just(()) | NAMESPACES, FILTERS, query=st.none(), **PAGES)
    | st.builds(
        ListNamespacesOp,
        st.lists(st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), PATHS), max_size=2).map(tuple),
        st.none() | st.integers(1, 3),
        **PAGES,
    )
)


def plain(result: Any) -> Any:
    """Return a result without its times and scores."""
    if isinstance(result, Item):
        return result.namespace, result.key, result.value
    return [plain(each) for each in result] if isinstance(result, list) else result


class Theirs:
    """InMemoryStore, which lists a namespace that holds nothing, and one that was only asked for."""

    def __init__(self) -> None:
        self.store = InMemoryStore()

    def batch(self, ops: Sequence[Op]) -> list[Any]:
        results: list[Any] = []
        puts: dict[tuple[tuple[str, ...], str], PutOp] = {}
        # One at a time: asking for an item, or deleting one, is enough to make its namespace, and so its place.
        for op in ops:
            if isinstance(op, PutOp):
                puts[op.namespace, op.key] = op
                results.append(None)
            else:
                results += self.store.batch([op])
                self.tidy()
        for put in sorted(puts.values(), key=lambda put: put.value is None):
            self.store.batch([put])
            self.tidy()
        return results

    def tidy(self) -> None:
        for namespace in [namespace for namespace, held in self.store._data.items() if not held]:
            del self.store._data[namespace]


SHARED: dict[str, LatentMemory] = {}


@pytest.fixture(scope="module", autouse=True)
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    # Hypothesis makes many stores; each is another scope of one memory.
    with LatentMemory.open(tmp_path_factory.mktemp("shared") / "store", embedder="hashing") as SHARED["memory"]:
        yield


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(OPS, min_size=1, max_size=4), min_size=1, max_size=12))
def test_the_same_answers_as_in_memory(batches: list[list[Op]]) -> None:
    memory, scope = SHARED["memory"], str(uuid.uuid4())
    ours, theirs = LatentMemoryStore(memory, scope=scope), Theirs()
    for ops in batches:
        assert plain(ours.batch(ops)) == plain(theirs.batch(ops)), ops
    everything: list[Op] = [SearchOp((), limit=1000), ListNamespacesOp(limit=1000)]
    expected = plain(theirs.batch(everything))
    assert plain(ours.batch(everything)) == expected
    assert plain(asyncio.run(ours.abatch(everything))) == expected
    memory.forget(everything=True, scope=scope)


WORDS = ["tea", "milk", "bread", "water", "train", "Osaka", "roof", "blue"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
# Of one text in two places InMemoryStore makes one vector too few, and raises.
SAID = st.fixed_dictionaries(
    {"said": TEXTS}, optional={"more": st.lists(TEXTS, max_size=3, unique=True), "silent": TEXTS}
).filter(lambda value: value["said"] not in value.get("more", []))
INDEX = st.sampled_from([None, False, ["said"], ["more[*]"], ["said", "more[*]"], ["nothing.there"]])


class Hashing(Embeddings):
    """The memory's embedder, for InMemoryStore."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(x) for x in vector] for vector in SHARED["memory"].embedder.embed(texts)]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@settings(max_examples=40, deadline=None)
@given(
    # Each item is put once: what an update leaves of its old vectors, InMemoryStore goes on to find.
    st.dictionaries(KEYS, st.tuples(SAID, INDEX), min_size=1, max_size=6),
    TEXTS,
)
def test_a_query_finds_the_same_items(puts: dict[str, tuple[dict[str, Any], Any]], query: str) -> None:
    memory, scope = SHARED["memory"], str(uuid.uuid4())
    ours = LatentMemoryStore(memory, scope=scope, fields=["said"])
    theirs = InMemoryStore(index={"dims": 256, "embed": Hashing(), "fields": ["said"]})
    for store in (ours, theirs):
        for key, (value, index) in puts.items():
            store.put(("a",), key, value, index)
    found, expected = (store.search(("a",), query=query, limit=100) for store in (ours, theirs))

    def scored(hits: list[SearchItem]) -> list[bool]:
        return [hit.score is not None for hit in hits]

    # Those that can be searched come first, in an order of one's own; the others follow as they were put in.
    assert scored(found) == scored(expected)
    count = sum(scored(found))
    assert sorted(keys(found[:count])) == sorted(keys(expected[:count]))
    assert keys(found[count:]) == keys(expected[count:])
    assert [hit.score for hit in found[:count]] == sorted((hit.score or 0 for hit in found[:count]), reverse=True)
    # Page by page it is the same.
    pages = [hit for i in range(0, 8, 2) for hit in ours.search(("a",), query=query, limit=2, offset=i)]
    assert keys(pages) == keys(found)
    memory.forget(everything=True, scope=scope)


# -- what a store must do -----------------------------------------------------------------------------------------


def test_put_get_delete(items: LatentMemoryStore) -> None:
    namespace = ("test", "documents")
    assert items.get(namespace, "doc1") is None
    items.put(namespace, "doc1", {"title": "Test", "content": "Hello, World!"})
    item = items.get(namespace, "doc1")
    assert item is not None
    assert (item.namespace, item.key, item.value) == (namespace, "doc1", {"title": "Test", "content": "Hello, World!"})
    assert item.created_at == item.updated_at
    assert item.created_at.tzinfo is not None
    items.put(namespace, "doc1", {"title": "Updated"})
    updated = items.get(namespace, "doc1")
    assert updated is not None
    assert updated.value == {"title": "Updated"}
    assert updated.created_at == item.created_at
    assert updated.updated_at > item.updated_at
    assert items.get(("test", "other"), "doc1") is items.get(("test",), "documents") is None
    items.delete(namespace, "doc1")
    items.delete(namespace, "doc1")
    assert items.get(namespace, "doc1") is None
    items.put(namespace, "doc1", {})
    again = items.get(namespace, "doc1")
    assert again is not None
    assert again.value == {}
    assert again.created_at > item.created_at


def test_what_is_got_is_nobody_else_s(items: LatentMemoryStore) -> None:
    value: dict[str, Any] = {"list": [1]}
    items.put(("a",), "k", value)
    value["list"].append(2)
    got = items.get(("a",), "k")
    assert got is not None
    got.value["list"].append(3)
    assert plain(items.search(("a",))) == [(("a",), "k", {"list": [1]})]


def test_a_batch_reads_what_was_before_it_writes(items: LatentMemoryStore) -> None:
    items.put(("test",), "key", {"data": 1})
    results = items.batch(
        [
            PutOp(("test",), "key", {"data": 2}),
            GetOp(("test",), "key"),
            SearchOp(("test",)),
            PutOp(("test",), "key", {"data": 3}),
            PutOp(("test",), "other", {"data": 4}),
            PutOp(("test",), "other", None),
            ListNamespacesOp(),
        ]
    )
    assert plain(results) == [
        None,
        (("test",), "key", {"data": 1}),
        [(("test",), "key", {"data": 1})],
        *(None, None, None),
        [("test",)],
    ]
    assert plain(items.search(())) == [(("test",), "key", {"data": 3})]
    with pytest.raises(ValueError, match="unknown operation"):
        items.batch(["put"])  # type: ignore[list-item]


def test_namespaces_are_listed(items: LatentMemoryStore) -> None:
    namespaces = [("a", "b", "c"), ("a", "b", "d", "e"), ("a", "b", "d", "i"), ("a", "c", "f"), ("users", "1", "f")]
    for namespace in namespaces:
        items.put(namespace, "k", {})
    assert items.list_namespaces() == namespaces
    assert items.list_namespaces(prefix=("a", "b")) == namespaces[:3]
    assert items.list_namespaces(suffix=("f",)) == namespaces[3:]
    assert items.list_namespaces(prefix=("a", "*"), suffix=("*", "f")) == [("a", "c", "f")]
    assert items.list_namespaces(prefix=("a", "b"), max_depth=3) == [("a", "b", "c"), ("a", "b", "d")]
    assert items.list_namespaces(limit=2, offset=1) == namespaces[1:3]
    assert items.list_namespaces(prefix=("nobody",)) == items.list_namespaces(prefix=("a",) * 9) == []
    with pytest.raises(ValueError, match="middle"):
        items.batch([ListNamespacesOp((MatchCondition("middle", ("a",)),))])  # type: ignore[arg-type]


def test_names_that_are_none(items: LatentMemoryStore) -> None:
    for namespace in ((), ("with.period",), ("some", ""), ("langgraph", "x")):
        with pytest.raises(InvalidNamespaceError):
            items.put(namespace, "k", {})
    # LangGraph's own, which writes past `put`.
    items.batch([PutOp(("langgraph", "x"), "k", {"a": 1}), PutOp(("with.period",), "k", {"a": 2})])
    assert plain(items.get(("langgraph", "x"), "k")) == (("langgraph", "x"), "k", {"a": 1})
    assert items.list_namespaces() == [("langgraph", "x"), ("with.period",)]
    items.put(("a",), 7, {})  # type: ignore[arg-type]
    assert plain(items.get(("a",), "7")) == (("a",), "7", {})


def test_filters(items: LatentMemoryStore) -> None:
    items.put(("docs",), "one", {"score": 4.5, "by": "Ana", "meta": {"level": 1, "kind": "a"}, "tags": ["x", "y"]})
    items.put(("docs",), "two", {"score": "5", "by": "Ben", "meta": {"level": 2}})
    items.put(("docs",), "none", {"by": None})

    def found(**wanted: Any) -> list[str]:
        return keys(items.search(("docs",), filter=wanted))

    assert found(by="Ana") == found(by={"$eq": "Ana"}) == ["one"]
    assert found(by={"$ne": "Ana"}) == ["two", "none"]
    # Items that lack the field, or have no number there, are passed over.
    assert found(score={"$gt": 4.5}) == ["two"]
    assert found(score={"$gte": 4.5, "$lt": 5}) == ["one"]
    assert found(by={"$gt": 0}) == []
    assert found(meta={"level": 1}) == ["one"]
    assert found(meta={"level": {"$lte": 2}}) == ["one", "two"]
    assert found(tags=["x", "y"]) == ["one"]
    assert found(tags=["y", "x"]) == found(tags=["x"]) == []
    assert found(by=None) == ["none"]
    assert found() == ["one", "two", "none"]
    with pytest.raises(ValueError, match=r"\$in"):
        found(by={"$in": ["Ana"]})


def test_an_item_s_best_text_counts(items: LatentMemoryStore) -> None:
    items.put(("a",), "many", {"texts": ["tea with milk", "a train to Osaka", "the blue roof"]}, index=["texts[*]"])
    items.put(("a",), "one", {"texts": "a train or a roof"}, index=["texts"])
    items.put(("a",), "silent", {"texts": "a train to Osaka"}, index=False)
    found = items.search(("a",), query="train to Osaka")
    assert keys(found) == ["many", "one", "silent"]
    assert found[0].score is not None
    assert found[1].score is not None
    assert found[0].score > found[1].score
    assert found[2].score is None
    # All three texts of one item come before the other's.
    assert keys(items.search(("a",), query="tea milk train Osaka blue roof", limit=2)) == ["many", "one"]
    # What it said before is not found any more.
    items.put(("a",), "many", {"texts": ["bread"]}, index=["texts[*]"])
    assert keys(items.search(("a",), query="train to Osaka", limit=1)) == ["one"]
    items.put(("a",), "many", {"texts": ["train to Osaka"]}, index=False)
    assert keys(items.search(("a",), query="train to Osaka", limit=1)) == ["one"]


def test_a_query_with_a_filter_under_a_namespace(items: LatentMemoryStore) -> None:
    for i in range(30):
        items.put(("users", str(i % 3)), f"k{i}", {"text": f"note {i} on tea", "even": i % 2 == 0})
    found = items.search(("users", "1"), query="note on tea", filter={"even": True}, limit=3)
    assert len(found) == 3
    rest = items.search(("users", "1"), query="note on tea", filter={"even": True}, limit=3, offset=3)
    assert {int(key[1:]) for key in [*keys(found), *keys(rest)]} == {4, 10, 16, 22, 28}
    assert keys(items.search(("users",), query=" ", limit=2)) == keys(items.search(("users",), limit=2)) == ["k0", "k3"]


def test_found_by_meaning_with_the_default_embedder(store: Path) -> None:
    with LatentMemory.open(store) as memory:
        items = LatentMemoryStore(memory, scope="ana")
        items.put(("ana", "facts"), "1", {"memory": "Ana eats no meat"})
        items.put(("ana", "facts"), "2", {"memory": "Ana works as a carpenter"})
        items.put(("ana", "facts"), "3", {"memory": "Ana's cat is called Miso"})
        assert keys(items.search(("ana",), query="what is her job?", limit=1)) == ["2"]
        assert keys(items.search(("ana",), query="suggest a vegetarian dinner", limit=1)) == ["1"]
        assert keys(items.search(("ana",), query="pets", limit=1)) == ["3"]


# -- what a memory adds -------------------------------------------------------------------------------------------


def test_items_and_conversations_do_not_mix(memory: LatentMemory, items: LatentMemoryStore) -> None:
    items.put(("talk",), "talk", {"text": "green tea"})
    assert keys(items.search((), query="I like green tea", limit=50)) == ["talk"]
    assert keys(items.search((), limit=50)) == ["talk"]
    assert items.list_namespaces() == [("talk",)]
    talk = memory.get("talk")
    assert talk is not None
    assert [turn.text for turn in talk.turns] == ["I like green tea.", "So do I."]
    # Even one that has an item's id.
    (known,) = (each for each in memory.conversation_ids() if each != "talk")
    items.delete(("talk",), "talk")
    memory.add(Conversation(known, [Turn("user", "green tea")]))
    assert items.get(("talk",), "talk") is None
    assert items.search(()) == []
    with pytest.raises(InputError, match="a conversation's id"):
        items.put(("talk",), "talk", {"text": "black tea"})
    items.delete(("talk",), "talk")
    assert items.sweep_ttl() == 0
    kept = memory.get(known)
    assert kept is not None
    assert [turn.text for turn in kept.turns] == ["green tea"]


def test_scopes_are_walls(memory: LatentMemory) -> None:
    ana, ben = LatentMemoryStore(memory, scope="ana"), LatentMemoryStore(memory, scope="ben")
    ana.put(("facts",), "k", {"text": "a secret"})
    assert ben.get(("facts",), "k") is None
    assert ben.search((), query="secret") == ben.search(()) == ben.list_namespaces() == []
    ben.put(("facts",), "k", {"text": "nothing"})
    ben.delete(("facts",), "k")
    assert ana.get(("facts",), "k") is not None


def test_items_are_on_disk(store: Path) -> None:
    value = {"text": "日本語 \x00 \U0001f600", "n": [1, 2.5, None, True, {"a": "b"}], "long": "tea " * 5000}
    with LatentMemory.open(store, embedder="hashing") as memory:
        items = LatentMemoryStore(memory, scope="ana")
        items.put(("a", "b"), "k", value)
        items.put(("a", "b"), "silent", {"text": "tea"}, index=False)
        before = items.search(())
    with LatentMemory.open(store) as memory:
        items = LatentMemoryStore(memory, scope="ana")
        assert items.search(()) == before
        assert plain(items.get(("a", "b"), "k")) == (("a", "b"), "k", value)
        assert keys(items.search((), query="tea", limit=1)) == ["k"]


def test_an_update_that_fails_leaves_the_old(memory: LatentMemory) -> None:
    items = LatentMemoryStore(memory, fields=["text"])
    items.put(("a",), "k", {"text": "old tea"})
    plain_embedder = memory.embedder

    class Failing:
        name, dimension = plain_embedder.name, plain_embedder.dimension

        def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
            raise RuntimeError("no model")

    memory.embedder = Failing()
    with pytest.raises(RuntimeError, match="no model"):
        items.put(("a",), "k", {"text": "new bread"})
    memory.embedder = plain_embedder
    assert plain(items.search(("a",), query="tea")) == [(("a",), "k", {"text": "old tea"})]


def test_what_cannot_be_kept_is_refused_whole(items: LatentMemoryStore) -> None:
    with pytest.raises(InputError, match="a / 2: its value"):
        items.batch([PutOp(("a",), "1", {"fine": 1}), PutOp(("a",), "2", {"when": datetime.now(UTC)})])
    for minutes in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="ttl"):
            items.put(("a",), "1", {}, ttl=minutes)
    assert items.search(()) == []
    with pytest.raises(InputError, match="list of paths"):
        LatentMemoryStore(items.memory, fields="text")


def test_many_threads(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as memory, LatentMemory.open(store) as other:
        stores = [LatentMemoryStore(memory, fields=["text[*]"]), LatentMemoryStore(other, fields=["text[*]"])]
        stores[0].put(("shared",), "k", {"text": ["begun"]})
        failed: list[BaseException] = []

        def work(number: int) -> None:
            items = stores[number % 2]
            try:
                for i in range(10):
                    items.put(("own", str(number)), f"k{i}", {"text": [f"{number} {i}"]})
                    items.put(("shared",), "k", {"text": [f"{number}x{i}"] * 1 + ["more"] * (i % 3)})
                    assert items.get(("shared",), "k") is not None
            except BaseException as error:  # noqa: BLE001 - told below, in the test's own thread
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        for items in stores:
            assert len(items.search(("own",), limit=100)) == 40
            (last,) = items.search(("shared",))
            # No text of an older value is left over.
            (kept,) = (each for each in memory.headings() if each.metadata["key"] == "k" and each.metadata["texts"])
            whole = memory.get(str(kept.conversation_id))
            assert whole is not None
            assert [turn.text for turn in whole.turns] == list(dict.fromkeys(last.value["text"]))


async def test_without_waiting(items: LatentMemoryStore) -> None:
    await asyncio.gather(*(items.aput(("a",), f"k{i}", {"n": i, "text": "tea"}) for i in range(10)))
    assert {item.value["n"] for item in await items.asearch(("a",), query="tea", limit=20)} == set(range(10))
    assert plain(await items.aget(("a",), "k3")) == (("a",), "k3", {"n": 3, "text": "tea"})
    await items.adelete(("a",), "k3")
    assert await items.aget(("a",), "k3") is None
    assert await items.alist_namespaces(max_depth=1) == [("a",)]


# -- what expires -------------------------------------------------------------------------------------------------


class Clock:
    """A clock for a store, in minutes."""

    def __init__(self) -> None:
        self.minutes = 0.0

    def now(self) -> datetime:
        self.minutes += 1e-6
        return datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=self.minutes)


def expiring(memory: LatentMemory, clock: Clock, monkeypatch: pytest.MonkeyPatch, **config: Any) -> LatentMemoryStore:
    monkeypatch.setattr("latent_memory.integrations.langgraph._Clock", lambda: clock)
    return LatentMemoryStore(memory, ttl=cast(TTLConfig, config) if config else None)


def test_items_expire(memory: LatentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    items = expiring(memory, clock, monkeypatch)
    items.put(("a",), "short", {"text": "tea for five"}, ttl=5)
    items.put(("a",), "long", {"text": "tea for two hours"}, ttl=120)
    items.put(("a",), "for ever", {"text": "tea"})
    first = items.get(("a",), "short", refresh_ttl=False)
    assert first is not None
    assert first.value == {"text": "tea for five"}
    clock.minutes = 4.9
    assert keys(items.search(("a",), refresh_ttl=False)) == ["short", "long", "for ever"]
    clock.minutes = 5.1
    assert items.get(("a",), "short") is None
    assert keys(items.search(("a",))) == ["long", "for ever"]
    assert set(keys(items.search(("a",), query="tea for five"))) == {"long", "for ever"}
    # Nobody has swept: the memory has it still.
    assert len(memory.conversation_ids()) == 3
    assert items.sweep_ttl() == 1
    assert items.sweep_ttl() == 0
    assert len(memory.conversation_ids()) == 2
    clock.minutes = 1000
    assert keys(items.search(())) == ["for ever"]
    # What is put again is another item, whether the old one was swept or not.
    for key in ("short", "long"):
        items.put(("a",), key, {"text": "again"})
        again = items.get(("a",), key)
        assert again is not None
        assert again.created_at == again.updated_at > first.created_at
    assert items.sweep_ttl() == 0


def test_reading_lets_an_item_last_longer(memory: LatentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    items = expiring(memory, clock, monkeypatch)
    for key in ("got", "found", "written", "left"):
        items.put(("a", key), key, {"text": "tea"}, ttl=10)
    clock.minutes = 8
    got = items.get(("a", "got"), "got")
    assert keys(items.search(("a", "found"), query="tea")) == ["found"]
    items.put(("a", "written"), "written", {"text": "milk"}, ttl=10)
    items.get(("a", "left"), "left", refresh_ttl=False)
    items.search((), refresh_ttl=False)
    clock.minutes = 17
    assert keys(items.search((), refresh_ttl=False)) == ["got", "found", "written"]
    assert items.get(("a", "got"), "got", refresh_ttl=False) == got
    clock.minutes = 19
    assert items.search(()) == []
    assert items.sweep_ttl() == 4


def test_a_store_s_own_settings(memory: LatentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    items = expiring(memory, clock, monkeypatch, default_ttl=10, refresh_on_read=False, sweep_interval_minutes=30)
    items.put(("a",), "default", {})
    items.put(("a",), "for ever", {}, ttl=None)
    clock.minutes = 9
    assert len(items.search(())) == 2
    clock.minutes = 11
    assert keys(items.search(())) == ["for ever"]
    assert len(memory.conversation_ids()) == 2
    clock.minutes = 31
    items.search(())
    assert len(memory.conversation_ids()) == 1


def test_a_sweep_leaves_what_was_renewed_meanwhile(memory: LatentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    items, other = (expiring(memory, clock, monkeypatch) for _ in range(2))
    items.put(("a",), "k", {"text": "old"}, ttl=5)
    clock.minutes = 6
    plain_headings = memory.headings

    def headings(**options: Any) -> list[Conversation]:
        found = plain_headings(**options)
        if "limit" not in options:
            monkeypatch.setattr(memory, "headings", plain_headings)
            # Between the look at what has expired and its end.
            other.put(("a",), "k", {"text": "new"}, ttl=5)
        return found

    monkeypatch.setattr(memory, "headings", headings)
    assert items.sweep_ttl() == 0
    assert plain(items.search(())) == [(("a",), "k", {"text": "new"})]


# -- in a graph ---------------------------------------------------------------------------------------------------


class State(TypedDict):
    said: str
    answer: str


class Who(TypedDict):
    user: str


def answer(state: State, runtime: Runtime[Who]) -> dict[str, str]:
    assert runtime.store is not None
    namespace = (runtime.context["user"], "facts")
    found = runtime.store.search(namespace, query=state["said"], limit=1)
    runtime.store.put(namespace, state["said"][:20], {"text": state["said"]})
    return {"answer": found[0].value["text"] if found else "nothing known"}


async def aanswer(state: State, runtime: Runtime[Who]) -> dict[str, str]:
    assert runtime.store is not None
    found = await runtime.store.asearch((runtime.context["user"], "facts"), query=state["said"], limit=1)
    return {"answer": found[0].value["text"]}


def graph(store: BaseStore, node: Any = answer) -> Any:
    builder = StateGraph(State, context_schema=Who)
    builder.add_node("answer", node)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile(store=store, checkpointer=InMemorySaver())


def test_a_graph_remembers_across_threads_and_restarts(store: Path) -> None:
    def ask(compiled: Any, said: str, user: str, thread: str) -> str:
        config = {"configurable": {"thread_id": thread}}
        return str(compiled.invoke({"said": said}, config, context={"user": user})["answer"])

    with LatentMemory.open(store, embedder="hashing") as memory:
        compiled = graph(LatentMemoryStore(memory))
        assert ask(compiled, "My cat is called Miso", "ana", "1") == "nothing known"
        assert ask(compiled, "What is my cat called?", "ana", "2") == "My cat is called Miso"
        assert ask(compiled, "What is my cat called?", "ben", "3") == "nothing known"
    with LatentMemory.open(store) as memory:
        items = LatentMemoryStore(memory)
        items.delete(("ana", "facts"), "What is my cat calle")
        assert ask(graph(items), "cat", "ana", "4") == "My cat is called Miso"


async def test_a_graph_that_does_not_wait(items: LatentMemoryStore) -> None:
    items.put(("ana", "facts"), "1", {"text": "Ana's cat is called Miso"})
    config = {"configurable": {"thread_id": "1"}}
    result = await graph(items, aanswer).ainvoke({"said": "the cat"}, config, context={"user": "ana"})
    assert result["answer"] == "Ana's cat is called Miso"


def test_what_is_no_item_is_not_listed(memory: LatentMemory, items: LatentMemoryStore) -> None:
    items.put(("a", "b"), "k", {"n": 1})
    items.put(("a", "c"), "k", {"n": 1})
    for known in ("[oops", "[1]k", '["a", "d"]k', '["a","e"]k', '["a", "c"]a', f"{'[' * 100_000}", "[]"):
        # One of an item's type as well, that somebody has made.
        for kind in (None, "langgraph-item"):
            memory.add(Conversation(f"langgraph-item:{known}", [Turn("user", "hello")], type=kind))
            assert items.get(("a", "d"), "k") is None
            assert [item.namespace for item in items.search(())] == [("a", "b"), ("a", "c")]
            assert items.sweep_ttl() == 0
    assert items.list_namespaces() == [("a", "b"), ("a", "c")]
    assert items.list_namespaces(max_depth=1) == [("a",)]
    assert items.list_namespaces(limit=1, offset=1) == [("a", "c")]
    items.delete(("a", "c"), "k")
    assert items.list_namespaces() == [("a", "b")]
    with pytest.raises(InputError, match="a conversation's id"):
        items.put(("a", "d"), "k", {"n": 1})
    items.delete(("a", "d"), "k")
    assert memory.get('langgraph-item:["a", "d"]k') is not None
    items.put(("a", "c"), "z", {"n": 1})
    assert items.list_namespaces() == [("a", "b"), ("a", "c")]


def test_a_search_where_there_is_nothing_but_items(memory: LatentMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    items = LatentMemoryStore(memory, scope="notes")
    for key in "abc":
        items.put(("a", key), "k", {"text": f"the tea of {key}"})
    asked: list[Any] = []
    recall = memory.recall

    def recalling(*given: Any, **options: Any) -> Any:
        asked.append(options["conversation_ids"])
        return recall(*given, **options)

    monkeypatch.setattr(memory, "recall", recalling)
    found = items.search((), query="tea")
    assert asked == [None]
    memory.add(Conversation("talk", [Turn("user", "the tea of all teas")]), "notes")
    assert items.search((), query="tea") == found
    assert len(asked[1]) == 3
    assert [item.key for item in items.search(("a", "b"), query="tea")] == ["k"]
    assert len(asked[2]) == 1


def test_an_item_tells_itself_to_a_reader_of_the_memory(memory: LatentMemory, items: LatentMemoryStore) -> None:
    items.put(("users", "ana"), "diet", {"text": "no meat"})
    (found,) = (each for each in memory.headings() if each.type == "langgraph-item")
    assert found.title == "users / ana / diet"
    assert found.metadata["value"] == {"text": "no meat"}
    assert memory.recall("meat", 1)[0].passage.text == json.dumps({"text": "no meat"})
