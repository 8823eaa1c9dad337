"""LlamaIndex: what was said in one session is known in the next, in engines and agents alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import InsertMethod, Memory, StaticMemoryBlock
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore

from conversations import BREAD, TRIP
from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.errors import InputError
from latent_memory.integrations.llama_index import (
    LatentMemoryBlock,
    LatentMemoryChatStore,
    LatentMemoryRetriever,
    chat_memory,
)


@pytest.fixture
def _loop() -> Iterator[None]:
    """LlamaIndex's methods that wait run in the thread's event loop, which nobody makes or closes."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


# -- the retriever ------------------------------------------------------------------------------------------------


def test_a_retriever_tells_where_a_turn_was_said(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    (found,) = LatentMemoryRetriever(memory, k=1).retrieve("when do we fly to Osaka?")
    (hit,) = memory.recall("when do we fly to Osaka?", 1)
    assert found.text == "We fly to Osaka on the third of May."
    assert found.score == hit.score
    assert found.node.node_id == "trip#0"
    assert found.metadata == {
        "conversation_id": "trip",
        "turn": 0,
        "role": "user",
        "name": "Ana",
        "timestamp": "2025-03-01T09:00:00+00:00",
        "title": "Japan",
        "score": hit.score,
    }


async def test_a_retriever_finds_what_recall_finds(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    memory.add(Conversation("other", [Turn("user", "water and hotels")]), "ben")
    query = "the water for the hotel"
    options: list[dict[str, Any]] = [
        {},
        {"roles": iter(["user"])},
        {"since": "2025-01-01"},
        {"until": datetime(2025, 1, 1, tzinfo=UTC)},
        {"conversation_ids": iter(["bread"])},
        {"during": "March 2024"},
        {"scope": "ben"},
    ]
    plain: list[dict[str, Any]] = [*options]
    plain[1], plain[4] = {"roles": "user"}, {"conversation_ids": "bread"}
    for given, option in zip(options, plain, strict=True):
        expected = [hit.passage.text for hit in memory.recall(query, **option)]
        assert expected
        retriever = LatentMemoryRetriever(memory, **given)
        assert [each.text for each in retriever.retrieve(query)] == expected
        assert [each.text for each in await retriever.aretrieve(query)] == expected


def test_a_retriever_in_a_query_engine(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    engine = RetrieverQueryEngine(LatentMemoryRetriever(memory, k=1), get_response_synthesizer(llm=MockLLM()))
    response = str(engine.query("How much water does the sourdough need?"))
    # The model that repeats what it is shown: who said it and when, and no ids.
    assert "My sourdough needs 350 grams of water." in response
    assert "role: user" in response
    assert "conversation_id" not in response


# -- a chat that remembers ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_loop")
def test_a_chat_engine_remembers_in_the_next_session(store: Path) -> None:
    llm = MockLLM()
    with LatentMemory.open(store, embedder="hashing") as memory:
        engine = SimpleChatEngine.from_defaults(llm=llm, memory=chat_memory(memory, "monday", scope="ana"))
        assert "Miso" not in str(engine.chat("What is my cat called?"))
        engine.chat("My cat is called Miso, and she is black.")
    with LatentMemory.open(store) as memory:
        engine = SimpleChatEngine.from_defaults(llm=llm, memory=chat_memory(memory, "tuesday", scope="ana"))
        answer = str(engine.chat("Tell me about the cat, what is she called?"))
        assert "<latent_memory>" in answer
        assert "user: My cat is called Miso, and she is black." in answer
        other = SimpleChatEngine.from_defaults(llm=llm, memory=chat_memory(memory, "tuesday", scope="ben"))
        assert "Miso" not in str(other.chat("Tell me about the cat, what is she called?"))
        # Monday's session goes on where it was.
        again = SimpleChatEngine.from_defaults(llm=llm, memory=chat_memory(memory, "monday", scope="ana"))
        assert [message.content for message in again.chat_history][::2] == [
            "What is my cat called?",
            "My cat is called Miso, and she is black.",
        ]


async def test_a_chat_engine_that_does_not_wait(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    engine = ContextChatEngine.from_defaults(
        retriever=LatentMemoryRetriever(memory, k=1),
        llm=MockLLM(),
        memory=chat_memory(memory, "now", insert_method=InsertMethod.USER, budget=200),
    )
    answer = str(await engine.achat("Where do we fly to?"))
    assert "We fly to Osaka on the third of May." in answer
    kept = memory.get("now")
    assert kept is not None
    assert (kept.turns[0].role, kept.turns[0].text) == ("user", "Where do we fly to?")
    assert kept.turns[1].role == "assistant"
    assert kept.turns[0].timestamp is not None


def doubled(number: int) -> int:
    """Double a number."""
    return 2 * number


# LlamaIndex looks at all attributes of an agent, also at those that pydantic has given up.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")
async def test_an_agent_remembers(memory: LatentMemory) -> None:
    seen: list[list[ChatMessage]] = []

    def reply(messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
        seen.append(list(messages))
        if messages[-1].content == "My lucky number is 21, double it.":
            return ChatMessage(
                role="assistant",
                blocks=[ToolCallBlock(tool_call_id="1", tool_name="doubled", tool_kwargs={"number": 21})],
            )
        return ChatMessage(role="assistant", content="It is 42.")

    agent = FunctionAgent(tools=[doubled], llm=MockFunctionCallingLLM(response_generator=reply))
    await agent.run("My lucky number is 21, double it.", memory=chat_memory(memory, "monday"))
    await agent.run("What was my lucky number?", memory=chat_memory(memory, "tuesday"))
    asked = [message for messages in seen for message in messages if message.content == "What was my lucky number?"]
    assert asked
    shown = [message.content or "" for message in seen[-1] if message.role == MessageRole.SYSTEM]
    assert any("My lucky number is 21, double it." in text for text in shown)
    # The session has the call and the tool's answer; only what was said can be recalled.
    roles = [message.role.value for message in await chat_memory(memory, "monday").aget_all()]
    assert roles == ["user", "assistant", "tool", "assistant"]
    monday = memory.get("monday")
    assert monday is not None
    assert [(turn.role, turn.text) for turn in monday.turns] == [
        ("user", "My lucky number is 21, double it."),
        ("assistant", "It is 42."),
    ]


async def test_found_by_meaning_with_the_default_embedder(store: Path) -> None:
    with LatentMemory.open(store) as memory:
        memory.add([TRIP, BREAD])
        live = [ChatMessage(role="user", content="When does our journey to Japan begin?")]
        block = LatentMemoryBlock(memory=memory, budget=100)
        assert "third of May" in await block.aget(live)


# -- the block ----------------------------------------------------------------------------------------------------


async def test_a_block_recalls_for_what_is_said_now(memory: LatentMemory) -> None:
    memory.add([TRIP, BREAD])
    block = LatentMemoryBlock(memory=memory, budget=300)
    live = [
        ChatMessage(role="system", content="sourdough"),
        ChatMessage(role="user", content="We fly to Osaka on the third of May."),
        ChatMessage(role="user", content="Which hotel was it?"),
    ]
    told = await block.aget(live)
    assert told == memory.context([Turn("user", message.content or "") for message in live[1:]], 300).text
    assert "blue roof" in told
    # What the chat says anyway is left out.
    assert "third of May" not in told
    assert await block.aget([]) == await block.aget(live[:1]) == await block.aget() == ""
    small = LatentMemoryBlock(memory=memory, budget=300, tokenizer=lambda text: 100 * len(text))
    assert await small.aget(live) == ""


async def test_a_block_keeps_what_a_long_chat_lets_go(memory: LatentMemory) -> None:
    block = LatentMemoryBlock(memory=memory)
    short = Memory.from_defaults(session_id="long", token_limit=60, token_flush_size=20, memory_blocks=[block])
    for i in range(12):
        await short.aput(ChatMessage(role="user", content=f"note {i}: the tea is number {i}"))
        await short.aput(ChatMessage(role="assistant", content=f"noted {i}"))
    kept = memory.get("long")
    live = await short.sql_store.get_messages("long")
    assert kept is not None
    assert [turn.text for turn in kept.turns] + [message.content for message in live] == [
        text for i in range(12) for text in (f"note {i}: the tea is number {i}", f"noted {i}")
    ]
    assert "note 0" in await block.aget([ChatMessage(role="user", content="what was note 0?")])
    await close(short.sql_store)


async def test_a_block_without_a_session(memory: LatentMemory) -> None:
    block = LatentMemoryBlock(memory=memory)
    await block.aput([ChatMessage(role="user", content="one"), ChatMessage(role="tool", content="unsaid")])
    await block.aput([ChatMessage(role="assistant", content="two")])
    (conversation,) = memory.whole()
    assert [turn.text for turn in conversation.turns] == ["one", "two"]
    await LatentMemoryBlock(memory=memory, accept_short_term_memory=False).aput(
        [ChatMessage(role="user", content="three")], from_short_term_memory=True
    )
    assert memory.stats().turns == 2


async def test_a_long_chat_says_nothing_twice(memory: LatentMemory) -> None:
    chat = chat_memory(memory, "long", token_limit=60, token_flush_size=20)
    for i in range(8):
        await chat.aput(ChatMessage(role="user", content=f"note {i}: the tea is number {i}"))
        await chat.aput(ChatMessage(role="assistant", content=f"noted {i}"))
    kept = memory.get("long")
    assert kept is not None
    said = [text for i in range(8) for text in (f"note {i}: the tea is number {i}", f"noted {i}")]
    assert [turn.text for turn in kept.turns] == said
    assert [message.content for message in await chat.aget_all()] == said
    assert 0 < len(await chat.aget_all(MessageStatus.ACTIVE)) < 16


def test_further_blocks(memory: LatentMemory) -> None:
    made = chat_memory(
        memory, "s", memory_blocks=[StaticMemoryBlock(static_content=[TextBlock(text="x")])], token_limit=500
    )
    assert [block.name for block in made.memory_blocks] == ["latent_memory", "StaticContent"]
    assert made.token_limit == 500
    assert "memory" not in made.memory_blocks[0].model_dump()


# -- the chat store: the same answers as LlamaIndex's own ---------------------------------------------------------


async def close(store: AsyncDBChatStore) -> None:
    assert isinstance(store, SQLAlchemyChatStore)
    if store._async_engine is not None:
        await store._async_engine.dispose()


MESSAGES = [
    ChatMessage(role="user", content="one"),
    ChatMessage(role="assistant", content=""),
    ChatMessage(
        role="assistant",
        blocks=[TextBlock(text="look:"), ToolCallBlock(tool_call_id="1", tool_name="look", tool_kwargs={"a": [1]})],
    ),
    ChatMessage(role="tool", content="found\nit", additional_kwargs={"tool_call_id": "1"}),
    ChatMessage(role="user", blocks=[TextBlock(text="日本 \x00"), ImageBlock(url="https://example.org/a.png")]),
    ChatMessage(role="system", content="be kind"),
]


async def test_the_same_answers_as_sqlalchemy(memory: LatentMemory) -> None:
    theirs = SQLAlchemyChatStore(table_name="chat")
    ours = LatentMemoryChatStore(memory=memory)

    async def both(method: str, *args: Any) -> Any:
        results = [await getattr(store, method)(*args) for store in (ours, theirs)]
        assert results[0] == results[1], method
        for status in (None, MessageStatus.ACTIVE, MessageStatus.ARCHIVED):
            for key in ("a", "b", "nobody"):
                states = [await store.get_messages(key, status) for store in (ours, theirs)]
                assert states[0] == states[1], (method, status)
                assert await ours.count_messages(key, status) == await theirs.count_messages(key, status)
        assert sorted(await ours.get_keys()) == sorted(await theirs.get_keys())
        return results[0]

    await both("add_message", "a", MESSAGES[0])
    await both("add_messages", "a", MESSAGES[1:])
    await both("add_messages", "b", MESSAGES[:2], MessageStatus.ARCHIVED)
    assert len(await both("archive_oldest_messages", "a", 2)) == 2
    assert await both("get_messages", "a", None, 2, 1) == MESSAGES[1:3]
    assert await both("get_messages", "a", MessageStatus.ACTIVE, None, None) == MESSAGES[2:]
    assert (await both("delete_oldest_messages", "a", 1)) == [MESSAGES[2]]
    assert await both("delete_message", "a", 99) is None
    assert await both("delete_message", "a", 4) == MESSAGES[3]
    await both("add_message", "a", MESSAGES[0])
    await both("delete_messages", "a", MessageStatus.ARCHIVED)
    await both("archive_oldest_messages", "a", 50)
    await both("delete_oldest_messages", "a", 50)
    await both("set_messages", "a", MESSAGES[:3])
    await both("set_messages", "b", MESSAGES)
    await both("delete_messages", "b")
    await both("delete_messages", "nobody")
    await close(theirs)


async def test_what_a_session_says_is_what_is_recalled(memory: LatentMemory) -> None:
    chats = LatentMemoryChatStore(memory=memory)

    def said() -> list[str]:
        found = memory.get("a")
        return [] if found is None else [turn.text for turn in found.turns]

    await chats.add_messages("a", MESSAGES[1:2])
    assert said() == ["…"]
    await chats.add_messages("a", [])
    await chats.add_messages("a", MESSAGES)
    assert said() == ["one", "look:", "日本 \x00"]
    await chats.archive_oldest_messages("a", 3)
    assert said() == ["one", "look:", "日本 \x00"]
    await chats.delete_message("a", 4)
    assert said() == ["one", "日本 \x00"]
    assert memory.recall("look")[0].passage.text != "look:"
    before = memory.get("a")
    await chats.set_messages("a", [MESSAGES[1], MESSAGES[0], ChatMessage(role="user", content="three")])
    assert said() == ["one", "three"]
    await chats.set_messages("a", [MESSAGES[1], MESSAGES[0]])
    after = memory.get("a")
    assert before is not None
    assert after is not None
    # A message that was there before keeps its time.
    assert after.turns[0].timestamp == before.turns[0].timestamp
    await chats.delete_oldest_messages("a", 9)
    assert await chats.get_keys() == []
    assert memory.conversation_ids() == []


@pytest.mark.parametrize("status", [None, MessageStatus.ACTIVE, MessageStatus.ARCHIVED])
async def test_a_session_without_messages_is_forgotten(memory: LatentMemory, status: MessageStatus | None) -> None:
    chats = LatentMemoryChatStore(memory=memory)
    await chats.add_messages("a", MESSAGES[:2], status or MessageStatus.ACTIVE)
    await chats.delete_messages("a", status)
    assert memory.conversation_ids() == []
    await chats.add_message("a", MESSAGES[0])
    assert await chats.delete_message("a", 1) == MESSAGES[0]
    assert memory.conversation_ids() == []


async def test_a_message_that_comes_while_the_last_is_deleted_stays(
    memory: LatentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = LatentMemoryChatStore(memory=memory)
    await chats.add_message("a", MESSAGES[0])
    forget = memory.forget
    came = False

    def forgetting(*given: Any, **options: Any) -> int:
        nonlocal came
        if not came:
            came = True
            asyncio.run(chats.add_message("a", MESSAGES[3], MessageStatus.ARCHIVED))
        return forget(*given, **options)

    monkeypatch.setattr(memory, "forget", forgetting)
    await chats.delete_messages("a", MessageStatus.ACTIVE)
    assert came
    assert await chats.get_messages("a", None) == [MESSAGES[3]]
    # What is returned is what was deleted, once.
    assert await chats.delete_message("a", 2) == MESSAGES[3]
    assert memory.conversation_ids() == []


async def test_a_retriever_that_is_asked_nothing(memory: LatentMemory) -> None:
    memory.add(TRIP)
    retriever = LatentMemoryRetriever(memory)
    assert retriever.retrieve(" ") == await retriever.aretrieve("") == []


async def test_sessions_are_on_disk_and_nobody_s_message_is_lost(store: Path) -> None:
    with LatentMemory.open(store, embedder="hashing") as one, LatentMemory.open(store, embedder="hashing") as two:
        stores = [LatentMemoryChatStore(memory=one), LatentMemoryChatStore(memory=two)]
        await asyncio.gather(
            *(stores[i % 2].add_message("a", ChatMessage(role="user", content=f"said {i}")) for i in range(20))
        )
    with LatentMemory.open(store) as memory:
        found = await LatentMemoryChatStore(memory=memory).get_messages("a")
        assert {message.content for message in found} == {f"said {i}" for i in range(20)}
        kept = memory.get("a")
        assert kept is not None
        assert {turn.text for turn in kept.turns} == {f"said {i}" for i in range(20)}


async def test_a_conversation_of_somebody_else_is_not_touched(memory: LatentMemory) -> None:
    memory.add(TRIP)
    chats = LatentMemoryChatStore(memory=memory)
    for attempt in (
        chats.add_message("trip", MESSAGES[0]),
        chats.get_messages("trip"),
        chats.set_messages("trip", MESSAGES),
    ):
        with pytest.raises(InputError, match="session 'trip'"):
            await attempt
    kept = memory.get("trip")
    assert kept is not None
    assert kept.turns == TRIP.turns
    assert await chats.get_keys() == []
    with pytest.raises(InputError, match="session_id"):
        chat_memory(memory, None)  # type: ignore[arg-type]
