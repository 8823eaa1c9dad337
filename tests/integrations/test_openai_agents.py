"""The session and recall in runs of the real Agents SDK, with a model that follows a script; nothing is sent."""

from __future__ import annotations

import asyncio
import importlib
import logging
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import agents
import pytest
from agents import Agent, RunConfig, Runner, SessionSettings, SQLiteSession, function_tool
from agents.memory import Session
from agents.testing import ScriptedModel, assistant_message, function_call
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.embedders.hashing import HashingEmbedder
from latent_memory.errors import InputError, MissingExtraError, StoreError
from latent_memory.integrations.openai_agents import LatentMemorySession, memory_filter, recall_tool
from latent_memory.vectors import Vectors

# Without this the SDK sends what a run does to OpenAI.
agents.set_tracing_disabled(True)
agents.set_trace_processors([])

ITEMS: list[Any] = [
    {"role": "user", "content": "When does the ferry to Naoshima leave?"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAA=="},
    {"type": "function_call", "call_id": "c1", "name": "timetable", "arguments": '{"from": "Uno"}', "id": "fc_1"},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "08:22\n09:22"}]},
    {
        "type": "message",
        "role": "assistant",
        "id": "msg_1",
        "status": "completed",
        "content": [{"type": "output_text", "text": "At 8:22 from Uno.", "annotations": [], "logprobs": []}],
    },
]


def said(memory: LatentMemory, session_id: str = "thread", scope: str = "default") -> list[tuple[str, str]]:
    conversation = memory.get(session_id, scope=scope)
    assert conversation is not None
    return [(turn.role, turn.text) for turn in conversation.turns]


def run(agent: Agent[Any], text: str, **more: Any) -> Any:
    return asyncio.run(Runner.run(agent, text, **more)).final_output


# -- the session ---------------------------------------------------------------------------------------------


def test_items_come_back_as_they_were_and_what_they_say_can_be_recalled(memory: LatentMemory) -> None:
    async def go() -> None:
        session = LatentMemorySession("thread", memory, scope="ana")
        assert isinstance(session, Session)
        assert await session.get_items() == []
        await session.add_items(ITEMS[:2])
        await session.add_items(ITEMS[2:])
        await session.add_items([])
        assert await session.get_items() == ITEMS
        assert await session.get_items(2) == ITEMS[-2:]

    asyncio.run(go())
    assert said(memory, scope="ana") == [
        ("user", "When does the ferry to Naoshima leave?"),
        ("assistant", "At 8:22 from Uno."),
    ]
    (hit, *_) = memory.recall("ferry to Naoshima", scope="ana")
    assert (hit.passage.conversation_id, hit.passage.turn) == ("thread", 0)
    assert memory.recall("ferry to Naoshima") == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": st.text() | JSON}
)
PARTS = st.fixed_dictionaries(
    {
        "type": st.just("message"),
        "role": st.sampled_from(["user", "assistant"]),
        "content": st.lists(
            st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text", "refusal"]), "text": JSON})
        ),
    }
)
ITEM = MESSAGE | PARTS | st.dictionaries(st.sampled_from(["type", "role", "content", "name", "id"]) | st.text(), JSON)
STEP = (
    st.tuples(st.just("add_items"), st.lists(ITEM, max_size=4))
    | st.tuples(st.just("pop_item"), st.none())
    | st.tuples(st.just("clear_session"), st.none())
    | st.tuples(st.just("get_items"), st.none() | st.integers(-2, 6))
)


@given(steps=st.lists(STEP, max_size=12), limit=st.none() | st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_it_does_what_the_sdks_own_session_does(steps: list[tuple[str, Any]], limit: int | None) -> None:
    async def go(memory: LatentMemory, path: Path) -> None:
        theirs = SQLiteSession("thread", path, session_settings=SessionSettings(limit=limit))
        ours = LatentMemorySession("thread", memory, session_settings={"limit": limit})
        try:
            for verb, argument in steps:
                arguments = [] if verb in ("pop_item", "clear_session") else [argument]
                expected = await getattr(theirs, verb)(*arguments)
                assert await getattr(ours, verb)(*arguments) == expected
                everything = await theirs.get_items(-1)
                assert await ours.get_items(-1) == everything
                assert await LatentMemorySession("thread", memory).get_items() == everything
        finally:
            theirs.close()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        path = Path(directory)
        with LatentMemory.open(path / "store", embedder="hashing") as memory:
            asyncio.run(go(memory, path / "theirs.sqlite"))


def test_what_is_popped_is_forgotten(memory: LatentMemory, store: Path) -> None:
    secret: Any = {"role": "user", "content": "My locker opens with the zebrafinch word."}

    async def go() -> None:
        session = LatentMemorySession("thread", memory)
        await session.add_items([*ITEMS, secret])
        assert memory.recall("zebrafinch", k=1)[0].passage.text == secret["content"]
        assert await session.pop_item() == secret
        assert await session.get_items() == ITEMS
        # Nothing to say goodbye to: the turn before stays.
        await session.add_items([ITEMS[1]])
        assert await session.pop_item() == ITEMS[1]

    asyncio.run(go())
    assert said(memory) == [("user", ITEMS[0]["content"]), ("assistant", "At 8:22 from Uno.")]
    assert all("zebrafinch" not in hit.passage.text for hit in memory.recall("zebrafinch"))
    conversation = memory.get("thread")
    assert conversation is not None
    assert "zebrafinch" not in f"{conversation.title}{conversation.summary}{conversation.metadata}"
    for path in [path for path in store.rglob("*") if path.is_file()]:
        assert b"zebrafinch" not in path.read_bytes(), path


def test_popped_to_the_end_and_filled_again(memory: LatentMemory) -> None:
    async def go() -> None:
        session = LatentMemorySession("thread", memory)
        await session.add_items([ITEMS[0]])
        assert await session.pop_item() == ITEMS[0]
        assert await session.pop_item() is None
        assert await session.get_items() == []
        assert all("Naoshima" not in hit.passage.text for hit in memory.recall("Naoshima"))
        await session.add_items([ITEMS[4]])
        assert await session.get_items() == [ITEMS[4]]

    asyncio.run(go())
    assert said(memory) == [("assistant", "At 8:22 from Uno.")]


def test_a_session_of_items_that_say_nothing(memory: LatentMemory) -> None:
    async def go() -> None:
        session = LatentMemorySession("thread", memory)
        await session.add_items(ITEMS[1:4])
        assert await session.get_items() == ITEMS[1:4]
        await session.add_items(ITEMS[4:])
        assert await session.get_items() == ITEMS[1:]

    asyncio.run(go())
    assert said(memory) == [("assistant", "At 8:22 from Uno.")]


def test_clearing_forgets_the_conversation(memory: LatentMemory) -> None:
    async def go() -> None:
        session, other = LatentMemorySession("thread", memory), LatentMemorySession("other", memory)
        for each in (session, other):
            await each.add_items(ITEMS)
        await session.clear_session()
        await session.clear_session()
        assert await session.get_items() == []
        assert await other.get_items() == ITEMS

    asyncio.run(go())
    assert memory.get("thread") is None
    assert {hit.passage.conversation_id for hit in memory.recall("ferry to Naoshima")} == {"other"}


def test_an_item_that_cannot_be_kept_keeps_none_of_them(memory: LatentMemory) -> None:
    session = LatentMemorySession("thread", memory)
    bad: list[Any] = [ITEMS[0], {"role": "user", "content": {"a set"}}]
    with pytest.raises(InputError, match=r"items\[1\].*nothing was added"):
        asyncio.run(session.add_items(bad))
    assert memory.get("thread") is None


def test_long_and_broken_texts(memory: LatentMemory) -> None:
    items: list[Any] = [
        {"role": "user", "content": "a" * 1_200_000},
        {"role": "assistant", "content": "cut here: \ud83d"},
        {"role": "user", "content": "lines\nand\u2028others\x00"},
    ]

    async def go() -> None:
        session = LatentMemorySession("thread", memory)
        await session.add_items(items)
        assert await session.get_items() == items
        assert [await session.pop_item() for _ in items] == items[::-1]

    asyncio.run(go())


def test_what_was_acknowledged_survives_a_killed_process(store: Path) -> None:
    program = """
import asyncio, os, sys
from latent_memory import LatentMemory
from latent_memory.integrations.openai_agents import LatentMemorySession
async def main():
    session = LatentMemorySession("thread", LatentMemory.open(sys.argv[1], embedder="hashing"))
    await session.add_items([{"role": "user", "content": "The key is under the pot."}, {"type": "x", "n": [1, None]}])
    os._exit(9)
asyncio.run(main())
"""
    killed = subprocess.run([sys.executable, "-c", program, store], timeout=120)
    assert killed.returncode == 9
    with LatentMemory.open(store) as memory:
        items = asyncio.run(LatentMemorySession("thread", memory).get_items())
        assert items == [{"role": "user", "content": "The key is under the pot."}, {"type": "x", "n": [1, None]}]
        assert memory.recall("key", k=1)[0].passage.conversation_id == "thread"


def test_several_write_to_one_session_at_once(store: Path) -> None:
    async def add(memory: LatentMemory, who: int) -> None:
        session = LatentMemorySession("thread", memory)
        for number in range(5):
            items: list[Any] = [{"role": "user", "content": f"{who} says {number}"}, {"type": "mark", "of": who}]
            await session.add_items(items)

    async def all_at_once(*memories: LatentMemory) -> None:
        await asyncio.gather(*(add(memory, who) for who, memory in enumerate([*memories, *memories])))

    # Two that know nothing of each other, as two processes would.
    with LatentMemory.open(store, embedder="hashing") as one, LatentMemory.open(store, embedder="hashing") as two:
        asyncio.run(all_at_once(one, two))
        items: list[Any] = asyncio.run(LatentMemorySession("thread", two).get_items())
        texts = [item["content"] for item in items if "content" in item]
        assert sorted(texts) == sorted(f"{who} says {number}" for who in range(4) for number in range(5))
        for who in range(4):
            own = [text for text in texts if text.startswith(f"{who} ")]
            assert own == [f"{who} says {number}" for number in range(5)]
        # Each mark stands behind what it was added with.
        assert all(
            after == {"type": "mark", "of": int(item["content"][0])}
            for item, after in zip(items[::2], items[1::2], strict=True)
        )
        assert [text for _, text in said(one)] == texts


class Held(HashingEmbedder):
    """Embeds when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = threading.Event(), threading.Event()

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        self.asked.set()
        assert self.go_on.wait(60)
        return super().embed(texts, query=query)


def test_cancelled_while_it_writes_it_ends_first_and_the_loop_goes_on(store: Path) -> None:
    embedder = Held()

    async def go(memory: LatentMemory) -> None:
        session = LatentMemorySession("thread", memory)
        adding = asyncio.ensure_future(session.add_items(ITEMS))
        # While it is held, this loop runs; else the next line would never end.
        assert await asyncio.to_thread(embedder.asked.wait, 60)
        adding.cancel()
        await asyncio.sleep(0)
        assert not adding.done()
        embedder.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert await session.get_items() == ITEMS

    with LatentMemory.open(store, embedder=embedder) as memory:
        asyncio.run(go(memory))


@pytest.mark.parametrize("name", ["memory.h5", "memory.pkl"])
def test_a_session_in_a_file_and_in_its_copy(tmp_path: Path, name: str) -> None:
    async def fill(memory: LatentMemory) -> None:
        session = LatentMemorySession("thread", memory)
        await session.add_items([*ITEMS, ITEMS[0]])
        await session.pop_item()

    with LatentMemory.open(tmp_path / name, embedder="hashing") as memory:
        asyncio.run(fill(memory))
    with LatentMemory.open(tmp_path / name) as memory:
        assert asyncio.run(LatentMemorySession("thread", memory).get_items()) == ITEMS
        memory.save(tmp_path / "copy", "npy_json")
    with LatentMemory.open(tmp_path / "copy") as memory:
        assert asyncio.run(LatentMemorySession("thread", memory).get_items()) == ITEMS
        assert memory.get("thread") is not None


def test_turns_that_came_from_elsewhere_stay(memory: LatentMemory) -> None:
    async def go() -> None:
        session = LatentMemorySession("thread", memory)
        await session.add_items([ITEMS[0]])
        memory.add(Conversation("thread", [*_turns(memory), Turn("user", "Said in another app.")]))
        await session.add_items([ITEMS[4], ITEMS[4]])
        assert await session.pop_item() == ITEMS[4]

    def _turns(memory: LatentMemory) -> Sequence[Turn]:
        conversation = memory.get("thread")
        assert conversation is not None
        return conversation.turns

    asyncio.run(go())
    assert [text for _, text in said(memory)] == [ITEMS[0]["content"], "Said in another app.", "At 8:22 from Uno."]


def test_metadata_of_others_is_kept_and_told_apart(memory: LatentMemory) -> None:
    memory.add(Conversation("thread", [Turn("user", "hello")], metadata={"colour": "blue"}))
    memory.add(Conversation("taken", [Turn("user", "hello")], metadata={"openai_agents": 7}))
    asyncio.run(LatentMemorySession("thread", memory).add_items(ITEMS))
    conversation = memory.get("thread")
    assert conversation is not None
    assert conversation.metadata["colour"] == "blue"
    with pytest.raises(InputError, match="something else under 'openai_agents'"):
        asyncio.run(LatentMemorySession("taken", memory).add_items(ITEMS))


@pytest.mark.parametrize("session_id", ["", "  ", 7])
def test_a_session_needs_an_id(memory: LatentMemory, session_id: Any) -> None:
    with pytest.raises(InputError, match="session_id"):
        LatentMemorySession(session_id, memory)


# -- in a run -------------------------------------------------------------------------------------------------


def test_runs_go_on_where_the_last_one_ended(memory: LatentMemory) -> None:
    @function_tool
    def timetable(port: str) -> str:
        return f"08:22 from {port}"

    model = ScriptedModel(
        [
            [function_call("timetable", {"port": "Uno"}, call_id="c1")],
            [assistant_message("It leaves at 8:22.")],
            [assistant_message("You are welcome.")],
        ]
    )
    agent = Agent("guide", instructions="Help.", model=model, tools=[timetable])
    session = LatentMemorySession("thread", memory, scope="ana")
    assert run(agent, "When does the ferry leave?", session=session) == "It leaves at 8:22."
    assert run(agent, "Thank you", session=LatentMemorySession("thread", memory, scope="ana")) == "You are welcome."
    kinds = [item.get("type") or item.get("role") for item in model.calls[-1].input]
    assert kinds == ["user", "function_call", "function_call_output", "message", "user"]
    assert said(memory, scope="ana") == [
        ("user", "When does the ferry leave?"),
        ("assistant", "It leaves at 8:22."),
        ("user", "Thank you"),
        ("assistant", "You are welcome."),
    ]


def test_runs_leave_the_same_items_as_in_the_sdks_own_session(memory: LatentMemory, tmp_path: Path) -> None:
    @function_tool
    def timetable(port: str) -> str:
        return f"08:22 from {port}"

    def items(session: Any) -> list[Any]:
        model = ScriptedModel(
            [
                [function_call("timetable", {"port": "Uno"}, call_id="c1")],
                [assistant_message("At 8:22.")],
                RuntimeError("overloaded"),
                [assistant_message("Yes.")],
            ]
        )
        agent = Agent("guide", model=model, tools=[timetable])
        run(agent, "When?", session=session)
        with pytest.raises(RuntimeError, match="overloaded"):
            run(agent, "Sure?", session=session)

        async def streamed() -> None:
            result = Runner.run_streamed(agent, "Really?", session=session)
            async for _ in result.stream_events():
                pass

        asyncio.run(streamed())
        found: list[Any] = asyncio.run(session.get_items())
        return found

    theirs = SQLiteSession("thread", tmp_path / "theirs.sqlite")
    expected = items(theirs)
    theirs.close()
    assert items(LatentMemorySession("thread", memory)) == expected
    assert len(expected) > 5


def test_run_config_limits_the_history(memory: LatentMemory) -> None:
    model = ScriptedModel([[assistant_message("Yes.")]])
    session = LatentMemorySession("thread", memory)
    asyncio.run(session.add_items(ITEMS))
    run(
        Agent("guide", model=model),
        "Sure?",
        session=session,
        run_config=RunConfig(session_settings=SessionSettings(limit=1)),
    )
    assert model.calls[0].input == [ITEMS[4], {"role": "user", "content": "Sure?"}]


def test_the_filter_puts_other_conversations_before_what_is_asked(memory: LatentMemory) -> None:
    memory.add(Conversation("old", [Turn("user", "I am allergic to walnuts.")]), scope="ana")
    memory.add(Conversation("hers", [Turn("user", "I am allergic to pollen.")]), scope="bea")
    model = ScriptedModel(
        [[assistant_message("No walnuts for you.")], [assistant_message("Unknown.")], [assistant_message("Streamed.")]]
    )
    agent: Agent[dict[str, str]] = Agent("cook", instructions="Cook.", model=model)
    config = RunConfig(call_model_input_filter=memory_filter(memory, scope=lambda context: context["user"]))
    session = LatentMemorySession("thread", memory, scope="ana")
    question = "What am I allergic to?"
    run(agent, question, session=session, run_config=config, context={"user": "ana"})
    run(agent, question, run_config=config, context={"user": "nobody"})

    call = model.calls[0]
    assert call.system_instructions == "Cook."
    (asked,) = call.input
    assert "walnuts" in asked["content"]
    assert "pollen" not in asked["content"]
    assert asked["content"].endswith(f"\n\n{question}")
    # What the session keeps, and recall finds, is what was really said.
    assert said(memory, scope="ana") == [("user", question), ("assistant", "No walnuts for you.")]
    assert model.calls[1].input == [{"role": "user", "content": question}]

    async def streamed() -> None:
        result = Runner.run_streamed(agent, question, run_config=config, context={"user": "ana"})
        async for _ in result.stream_events():
            pass

    asyncio.run(streamed())
    assert "walnuts" in model.calls[2].input[0]["content"]


def test_the_filter_asks_without_memory_when_that_fails(memory: LatentMemory, caplog: pytest.LogCaptureFixture) -> None:
    memory.close()
    model = ScriptedModel([[assistant_message("Hello.")]])
    config = RunConfig(call_model_input_filter=memory_filter(memory))
    with caplog.at_level(logging.WARNING, "latent_memory"):
        assert run(Agent("guide", model=model), "Hello?", run_config=config) == "Hello."
    assert "without memory" in caplog.text
    assert model.calls[0].input == [{"role": "user", "content": "Hello?"}]


def test_the_filter_leaves_a_call_alone_in_which_nobody_asks(memory: LatentMemory) -> None:
    memory.add(Conversation("old", [Turn("user", "I am allergic to walnuts.")]))
    model = ScriptedModel([[assistant_message("Hello.")]])
    picture: list[Any] = [
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:,", "detail": "auto"}]}
    ]
    config = RunConfig(call_model_input_filter=memory_filter(memory))
    asyncio.run(Runner.run(Agent("guide", model=model), picture, run_config=config))
    assert model.calls[0].input == picture


def test_the_tool_looks_into_its_own_scope(memory: LatentMemory) -> None:
    memory.add(
        Conversation("old", [Turn("user", "I am allergic to walnuts.", datetime(2024, 5, 3, tzinfo=UTC))]), scope="ana"
    )
    memory.add(Conversation("hers", [Turn("user", "I am allergic to pollen.")]), scope="bea")
    calls: list[dict[str, Any]] = [
        {"query": "allergic", "during": None},
        {"query": "allergic", "during": "May 2021"},
        {"query": " ", "during": None},
        {"query": "allergic", "during": "the colour of the sky"},
    ]
    model = ScriptedModel(
        [
            [function_call("recall", arguments, call_id=f"c{number}") for number, arguments in enumerate(calls)],
            [assistant_message("Walnuts.")],
        ]
    )
    tool = recall_tool(memory, scope=lambda context: context["user"])
    agent: Agent[dict[str, str]] = Agent("cook", model=model, tools=[tool])
    assert run(agent, "What am I allergic to?", context={"user": "ana"}) == "Walnuts."
    answers = [item["output"] for item in model.calls[1].input if item.get("type") == "function_call_output"]
    assert "walnuts" in answers[0]
    assert "pollen" not in answers[0]
    assert answers[1] == "Nothing was found."
    assert "query: empty" in answers[2]
    assert "tells no time" in answers[3]


@pytest.mark.parametrize("arguments", ["", "[]", "{", '{"query": 7}'])
def test_the_tool_answers_to_arguments_that_are_none(memory: LatentMemory, arguments: str) -> None:
    from agents.tool_context import ToolContext

    context: ToolContext[Any] = ToolContext(None, tool_name="recall", tool_call_id="c", tool_arguments=arguments)

    async def invoke() -> str:
        return str(await recall_tool(memory).on_invoke_tool(context, arguments))

    answer = asyncio.run(invoke())
    assert answer.startswith(("recall failed", "Nothing was found"))


def test_the_default_embedder_recalls_a_session_by_meaning(store: Path) -> None:
    with LatentMemory.open(store) as memory:
        session = LatentMemorySession("thread", memory)
        talk: list[Any] = [
            {"role": "user", "content": "My daughter's birthday party is on the second of June."},
            {"role": "assistant", "content": "Noted. Shall I look for a cake?"},
            {"role": "user", "content": "The car has to go to the garage."},
        ]
        asyncio.run(session.add_items(talk))
        hit = memory.recall("When do we celebrate with the girl?", k=1)[0]
        assert hit.passage.text == talk[0]["content"]


def test_a_closed_memory_says_so(memory: LatentMemory) -> None:
    memory.close()
    with pytest.raises(StoreError, match="closed"):
        asyncio.run(LatentMemorySession("thread", memory).add_items(ITEMS))


def test_without_the_sdk_it_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "latent_memory.integrations.openai_agents"
    monkeypatch.setitem(sys.modules, "agents", None)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingExtraError, match="pip install openai-agents"):
        importlib.import_module(module)
