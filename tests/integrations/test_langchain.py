"""LangChain's own tests of vector stores and retrievers, and what they do not ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests

from conversations import BREAD, TRIP
from latent_memory import Conversation, LatentMemory, Turn, block_files
from latent_memory.embedders import embedded
from latent_memory.errors import EmbedderMismatchError, InputError
from latent_memory.integrations.langchain import (
    LangChainEmbedder,
    LatentMemoryRetriever,
    LatentMemoryVectorStore,
    turns,
)


class TestTheirsOfVectorStores(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, store: Path) -> Iterator[VectorStore]:
        made = LatentMemoryVectorStore(store, self.get_embeddings())
        yield made
        made.memory.close()


class TestTheirsOfVectorStoresWithTheDefaultEmbedder(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, store: Path) -> Iterator[VectorStore]:
        with LatentMemory.open(store) as memory:
            # What else is in the scope must not show.
            memory.add([TRIP, BREAD])
            yield LatentMemoryVectorStore(memory)


class TestTheirsOfRetrievers(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _filled(self, memory: LatentMemory) -> None:
        memory.add([TRIP, BREAD])
        self.memory = memory

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return LatentMemoryRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"memory": self.memory}

    @property
    def retriever_query_example(self) -> str:
        return "where do we fly?"


# -- the retriever ------------------------------------------------------------------------------------------------


def test_a_retriever_tells_where_a_turn_was_said(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    (found,) = LatentMemoryRetriever(memory=memory, k=1).invoke("when do we fly to Osaka?")
    (hit,) = memory.recall("when do we fly to Osaka?", 1)
    assert found.page_content == "We fly to Osaka on the third of May."
    assert found.id == "trip#0"
    assert found.metadata == {
        "conversation_id": "trip",
        "turn": 0,
        "role": "user",
        "name": "Ana",
        "timestamp": "2025-03-01T09:00:00+00:00",
        "title": "Japan",
        "score": hit.score,
    }


def test_a_retriever_finds_what_recall_finds(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    query = "the water for the hotel"
    options: list[dict[str, Any]] = [
        {"roles": "user"},
        {"since": "2025-01-01"},
        {"until": datetime(2025, 1, 1, tzinfo=UTC)},
        {"conversation_ids": ["bread"]},
        {"during": "March 2024"},
        {"k": 2},
    ]
    for option in options:
        expected = [hit.passage.text for hit in memory.recall(query, **option)]
        assert expected
        told = LatentMemoryRetriever(memory=memory, **option).invoke(query)
        asked = LatentMemoryRetriever(memory=memory).invoke(query, **option)
        assert [each.page_content for each in told] == [each.page_content for each in asked] == expected
    with pytest.raises(InputError, match="top_k"):
        LatentMemoryRetriever(memory=memory).invoke(query, top_k=3)


async def test_a_retriever_stays_in_its_scope(memory: LatentMemory) -> None:
    memory.add(TRIP, "ana")
    memory.add(BREAD, "ben")
    retriever = LatentMemoryRetriever(memory=memory, scope="ben")
    assert {each.metadata["conversation_id"] for each in retriever.invoke("Osaka")} == {"bread"}
    assert {each.metadata["conversation_id"] for each in await retriever.ainvoke("Osaka")} == {"bread"}


def joined(documents: list[Document]) -> str:
    return "\n".join(each.page_content for each in documents)


def shown(prompt: PromptValue) -> str:
    return prompt.to_string()


def test_a_retriever_in_a_chain(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    chain = (
        {
            "context": LatentMemoryRetriever(memory=memory, k=1) | RunnableLambda(joined),
            "question": RunnablePassthrough(),
        }
        | ChatPromptTemplate.from_template("{context}\n\n{question}")
        | RunnableLambda(shown)
        | StrOutputParser()
    )
    assert chain.invoke("How much water?") == "Human: My sourdough needs 350 grams of water.\n\nHow much water?"


def test_messages_become_turns(memory: LatentMemory) -> None:
    messages = [
        SystemMessage("Be kind."),
        HumanMessage("I am vegetarian.", name="Ana"),
        AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}]),
        ToolMessage("three recipes", tool_call_id="1"),
        AIMessage([{"type": "text", "text": "Lentils, "}, {"type": "text", "text": "then."}]),
        ChatMessage(content="Fine.", role="human"),
        RemoveMessage(id="1"),
    ]
    assert turns(messages) == [
        Turn("system", "Be kind."),
        Turn("user", "I am vegetarian.", name="Ana"),
        Turn("tool", "three recipes"),
        Turn("assistant", "Lentils, then."),
        Turn("user", "Fine."),
    ]
    memory.add(Conversation("thread", turns(messages)))
    assert LatentMemoryRetriever(memory=memory, k=1).invoke("vegetarian")[0].page_content == "I am vegetarian."


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (HumanMessage("x"), "user"),
        (HumanMessageChunk(content="x"), "user"),
        (AIMessage("x"), "assistant"),
        (AIMessageChunk(content="x"), "assistant"),
        (SystemMessage("x"), "system"),
        (SystemMessageChunk(content="x"), "system"),
        (ToolMessage("x", tool_call_id="1"), "tool"),
        (ToolMessageChunk(content="x", tool_call_id="1"), "tool"),
        (FunctionMessage(content="x", name="look"), "function"),
        (FunctionMessageChunk(content="x", name="look"), "function"),
        (ChatMessage(content="x", role="developer"), "developer"),
        (ChatMessageChunk(content="x", role="ai"), "assistant"),
        (ChatMessageChunk(content="x", role="critic"), "user"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, BaseMessage) else given,
)
def test_the_role_of_a_message_and_of_a_piece_of_one(message: BaseMessage, role: str) -> None:
    assert [(turn.role, turn.text) for turn in turns([message])] == [(role, "x")]


def test_messages_that_no_turn_could_hold() -> None:
    cut, long = turns([HumanMessage("a\ud83d", name="b\ud83d")]), turns([AIMessage("x" * 1_000_001)])
    assert cut == [Turn("user", "a?", name="b?")]
    assert [(turn.role, len(turn.text)) for turn in long] == [("assistant", 1_000_000), ("assistant", 1)]


def test_nothing_is_asked(memory: LatentMemory) -> None:
    memory.add(TRIP)
    vectors = LatentMemoryVectorStore(memory)
    vectors.add_texts(["the red apple"])
    for query in ("", " \n"):
        assert LatentMemoryRetriever(memory=memory).invoke(query) == []
        assert vectors.similarity_search(query) == []
        assert vectors.similarity_search_with_score(query) == []
        assert vectors.similarity_search_with_relevance_scores(query) == []
        assert vectors.max_marginal_relevance_search(query) == []
        for kind in ("similarity", "mmr"):
            assert vectors.as_retriever(search_type=kind).invoke(query) == []


# -- the vector store ---------------------------------------------------------------------------------------------


@pytest.fixture
def vectors(memory: LatentMemory) -> LatentMemoryVectorStore:
    memory.add([TRIP, BREAD])
    made = LatentMemoryVectorStore(memory)
    made.add_texts(
        ["the red apple", "the green apple", "the red car", "a blue boat"],
        [{"kind": "fruit"}, {"kind": "fruit", "tags": ["sour"]}, {"kind": "machine"}, {}],
        ids=["red", "green", "car", "boat"],
    )
    return made


def test_documents_and_conversations_do_not_mix(memory: LatentMemory, vectors: LatentMemoryVectorStore) -> None:
    assert {each.id for each in vectors.similarity_search("hotel Osaka water", k=50)} == {"red", "green", "car", "boat"}
    assert vectors.get_by_ids(["trip", "red"]) == [
        Document(id="red", page_content="the red apple", metadata={"kind": "fruit"})
    ]
    memory.add(Conversation("red", [Turn("user", "another red thing altogether")]))
    assert [each.page_content for each in vectors.get_by_ids(["red"])] == ["the red apple"]
    # Not even one that has a document's id.
    memory.add(Conversation("langchain-document:plum", [Turn("user", "the red apple and the plum")]))
    assert vectors.get_by_ids(["plum"]) == []
    assert {each.id for each in vectors.similarity_search("the red apple", k=50)} == {"red", "green", "car", "boat"}
    memory.forget("langchain-document:plum")
    assert vectors.delete()
    assert vectors.similarity_search("apple") == []
    assert sorted(memory.conversation_ids()) == ["bread", "red", "trip"]


def test_a_conversation_that_has_a_document_s_id_stays(memory: LatentMemory, vectors: LatentMemoryVectorStore) -> None:
    memory.add(Conversation("langchain-document:plum", [Turn("user", "the plum"), Turn("user", "the tree")]))
    before = memory.get("langchain-document:plum")
    with pytest.raises(InputError, match="document 'plum'"):
        vectors.add_texts(["one", "two"], ids=["new", "plum"])
    assert vectors.get_by_ids(["new"]) == []
    assert vectors.delete(["plum", "red"])
    assert vectors.delete()
    assert memory.get("langchain-document:plum") == before
    assert sorted(memory.conversation_ids()) == ["bread", "langchain-document:plum", "trip"]


@pytest.mark.parametrize("others", [0, 1])
def test_a_search_where_there_is_nothing_but_documents(
    memory: LatentMemory, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    vectors = LatentMemoryVectorStore(memory, scope="manuals")
    vectors.add_texts([f"the {what} apple" for what in ("red", "green", "blue")], ids=["r", "g", "b"])
    memory.add([TRIP, BREAD][:others], "manuals")
    # Of other scopes nothing counts.
    memory.add([TRIP, BREAD])
    asked: list[Any] = []
    recall = memory.recall

    def recalling(*given: Any, **options: Any) -> Any:
        asked.append(options["conversation_ids"])
        return recall(*given, **options)

    monkeypatch.setattr(memory, "recall", recalling)
    ids = [f"langchain-document:{each}" for each in "rgb"]
    expected = [(hit.passage.text, hit.score) for hit in recall("apple", 9, scope="manuals", conversation_ids=ids)]
    found = vectors.similarity_search_with_score("apple", 9)
    assert [(document.page_content, score) for document, score in found] == expected
    assert [known if known is None else sorted(known) for known in asked] == [sorted(ids) if others else None]


def test_what_is_replaced_is_gone(store: Path, memory: LatentMemory) -> None:
    def left() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file())

    vectors = LatentMemoryVectorStore(memory)
    old = ["zyxwquark is in the tea", "zyxwquark is in the soup"]
    vectors.add_texts(old, [{"title": "zyxwtitle"}, {}], ids=["1", "2"])
    memory.recall("zyxwquark")
    assert b"zyxwquark" in left()
    assert b"zyxwtitle" in left()
    # What a language model has computed of it.
    blocks = [block_files.place(memory.block_directory, "default", f"langchain-document:{each}") for each in "12"]
    for block in blocks:
        block.mkdir(parents=True)
    vectors.add_texts(
        ["The beet is in the garden now.", "new", "The tree is behind the house."], [{}, {}, {}], ids=["1", "3", "2"]
    )
    # In the log and the indexes too, while the memory is open.
    assert not any(block.exists() for block in blocks)
    assert b"zyxwquark" not in left()
    assert b"zyxwtitle" not in left()
    assert "zyxw" not in memory.context("the beet in the garden").text
    assert [info.title for info in memory.conversations()] == [
        *("new", "The tree is behind the house.", "The beet is in the garden now."),
    ]
    # What is as it was is not written again.
    before = left()
    vectors.add_texts(["The beet is in the garden now.", "new"], ids=["1", "3"])
    assert left() == before


def test_of_several_documents_with_one_id_the_last_stays(vectors: LatentMemoryVectorStore) -> None:
    assert vectors.add_texts(["one", "two"], [{"a": 1}, {}], ids=["same", "same"]) == ["same", "same"]
    assert vectors.get_by_ids(["same"]) == [Document(id="same", page_content="two", metadata={})]


def test_documents_stay_in_their_scope(memory: LatentMemory) -> None:
    ana, ben = (LatentMemoryVectorStore(memory, scope=scope) for scope in ("ana", "ben"))
    ana.add_texts(["a secret"], ids=["1"])
    ben.add_texts(["a recipe"], ids=["1"])
    assert [each.page_content for each in ben.similarity_search("secret", k=9)] == ["a recipe"]
    ben.delete()
    assert [each.page_content for each in ana.get_by_ids(["1"])] == ["a secret"]


def test_filters(vectors: LatentMemoryVectorStore) -> None:
    def found(**options: Any) -> list[str | None]:
        return [each.id for each in vectors.similarity_search("the red apple", k=9, **options)]

    assert found()[0] == "red"
    assert set(found()) == {"red", "green", "car", "boat"}
    assert found(filter={"kind": "fruit"}) == ["red", "green"]
    assert found(filter={"kind": "fruit", "tags": ["sour"]}) == ["green"]
    assert found(filter={"kind": "planet"}) == found(filter={"other": None}) == []
    assert found(filter=lambda document: "red" in document.page_content) == ["red", "car"]
    retriever = vectors.as_retriever(search_kwargs={"k": 1, "filter": {"kind": "machine"}})
    assert [each.id for each in retriever.invoke("apple")] == ["car"]


def test_scores_are_those_of_recall(memory: LatentMemory, vectors: LatentMemoryVectorStore) -> None:
    ids = [f"langchain-document:{each}" for each in ("red", "green", "car", "boat")]
    hits = memory.recall("red apple", 3, conversation_ids=ids)
    assert [score for _, score in vectors.similarity_search_with_score("red apple", 3)] == [hit.score for hit in hits]
    assert vectors.similarity_search("red apple", k=0) == []


def test_relevance_is_the_cosine(memory: LatentMemory, vectors: LatentMemoryVectorStore) -> None:
    found = vectors.similarity_search_with_relevance_scores("red apple", 4)
    query = embedded(memory.embedder, ["red apple"]).vectors[0]
    cosines = embedded(memory.embedder, [each.page_content for each, _ in found]).vectors @ query
    assert [score for _, score in found] == pytest.approx(np.clip(cosines, 0, 1), abs=1e-6)
    threshold = vectors.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.8, "k": 4}
    )
    assert [each.id for each in threshold.invoke("red apple")] == ["red"]


async def test_marginal_relevance_takes_what_differs(vectors: LatentMemoryVectorStore) -> None:
    vectors.add_texts(["the red apple", "the red apple"], ids=["again", "once more"])
    plain = [each.page_content for each in vectors.similarity_search("the red apple", k=3)]
    assert plain == ["the red apple"] * 3
    varied = vectors.max_marginal_relevance_search("the red apple", k=3, fetch_k=6, lambda_mult=0.3)
    assert len({each.page_content for each in varied}) == 3
    assert await vectors.amax_marginal_relevance_search("the red apple", k=3, fetch_k=6, lambda_mult=0.3) == varied
    assert vectors.max_marginal_relevance_search("x", filter={"kind": "planet"}) == []


def test_what_is_given_is_kept_to_the_last(vectors: LatentMemoryVectorStore) -> None:
    metadata = {"page": 3, "nested": {"a": [1, None, True]}, "language": "日本語"}
    text = "A long text. " * 900 + "\u0000 the end \U0001f600"
    blank = " \n"
    assert vectors.add_texts([text, blank, ""], [metadata, {"page": 4}, {}], ids=["long", "blank", None])[:2] == [
        "long",
        "blank",
    ]
    assert vectors.get_by_ids(["blank", "long", "blank"]) == [
        Document(id="blank", page_content=blank, metadata={"page": 4}),
        Document(id="long", page_content=text, metadata=metadata),
    ]
    assert vectors.similarity_search("a long text the end", k=1)[0].page_content == text
    # Metadata are put in the place of the old ones, not beside them.
    vectors.add_texts(["short"], ids=["long"])
    assert vectors.get_by_ids(["long"]) == [Document(id="long", page_content="short", metadata={})]


def test_what_cannot_be_kept_is_refused_whole(vectors: LatentMemoryVectorStore) -> None:
    with pytest.raises(InputError, match="document '2': metadata"):
        vectors.add_texts(["one", "two"], [{}, {"when": datetime.now(UTC)}], ids=["1", "2"])
    with pytest.raises(InputError, match="1 for 2 texts"):
        vectors.add_texts(["one", "two"], ids=["1"])
    with pytest.raises(InputError, match="1 for 2 texts"):
        vectors.add_texts(["one", "two"], [{}])
    assert vectors.get_by_ids(["1", "2"]) == []


def test_documents_are_on_disk(store: Path) -> None:
    embeddings = DeterministicFakeEmbedding(size=8)
    made = LatentMemoryVectorStore.from_documents(
        [Document("kept", id="1", metadata={"a": 1})], embeddings, memory=store, scope="ana"
    )
    assert made.embeddings is embeddings
    made.memory.close()
    again = LatentMemoryVectorStore(store, embeddings, scope="ana")
    assert again.similarity_search("kept") == [Document("kept", id="1", metadata={"a": 1})]
    again.memory.close()
    other = LatentMemoryVectorStore(store, DeterministicFakeEmbedding(size=9), scope="ana")
    with pytest.raises(EmbedderMismatchError):
        other.similarity_search("kept")
    other.memory.close()


def test_where_documents_lie_has_to_be_said(memory: LatentMemory) -> None:
    embeddings = DeterministicFakeEmbedding(size=8)
    with pytest.raises(InputError, match="memory=PATH"):
        LatentMemoryVectorStore.from_texts(["a"], embeddings)
    with pytest.raises(InputError, match="LangChainEmbedder"):
        LatentMemoryVectorStore(memory, embeddings)
    assert LatentMemoryVectorStore.from_texts(["a"], memory=memory).embeddings is None


async def test_from_texts_without_waiting(store: Path) -> None:
    made = await LatentMemoryVectorStore.afrom_texts(
        ["one", "two"], DeterministicFakeEmbedding(size=8), ids=["1", "2"], memory=store
    )
    await asyncio.gather(*(made.aadd_texts([f"text {i}"], ids=[f"t{i}"]) for i in range(8)))
    assert len(await made.asimilarity_search("text", k=20)) == 10
    assert await made.adelete(["1"])
    assert await made.aget_by_ids(["1", "2"]) == [Document("two", id="2")]
    made.memory.close()


# -- embeddings ---------------------------------------------------------------------------------------------------


class Named(Embeddings):
    """Tells questions from documents."""

    model = "two-tower"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0, 2.0, 0.0] for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return [0.0, 0.0, 3.0]


def test_langchain_s_embeddings_are_an_embedder() -> None:
    embedder = LangChainEmbedder(Named())
    assert (embedder.name, embedder.dimension) == ("langchain:Named:two-tower", 3)
    assert embedded(embedder, ["a", "b"]).vectors.shape == (2, 3)
    assert embedded(embedder, ["a"]).vectors[0] == pytest.approx([5**-0.5, 2 * 5**-0.5, 0])
    assert embedded(embedder, ["a"], query=True).vectors.tolist() == [[0, 0, 1]]
    assert LangChainEmbedder(Named(), name="mine").name == "mine"
