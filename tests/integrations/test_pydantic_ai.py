"""Memory in runs of real Pydantic AI agents, with its own models for tests; nothing is sent."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, BinaryContent, ModelRetry, RunContext, TextContent
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.models.test import TestModel

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.errors import InputError, MissingExtraError
from latent_memory.integrations.pydantic_ai import (
    MemoryCapability,
    memory_toolset,
    message_history,
    record_run,
    said,
)

Scoped = Agent[dict[str, str], str]


class Script:
    """A model that answers in order, and the requests it got."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[list[ModelMessage]] = []

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.requests.append(list(messages))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, ModelResponse) else ModelResponse([TextPart(answer)])

    async def stream(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        for word in str(self.answer(messages, info).parts[0].content).split(" "):  # type: ignore[union-attr]
            yield f"{word} "

    @property
    def model(self) -> FunctionModel:
        return FunctionModel(self.answer, stream_function=self.stream)

    def asked(self, request: int = -1) -> str:
        """Return the user's last prompt of a request."""
        prompts = [
            part for message in self.requests[request] for part in message.parts if part.part_kind == "user-prompt"
        ]
        content = prompts[-1].content
        assert isinstance(content, str)
        return content


def text(memory: LatentMemory, conversation_id: str, scope: str = "default") -> list[tuple[str, str]]:
    conversation = memory.get(conversation_id, scope=scope)
    assert conversation is not None
    return [(turn.role, turn.text) for turn in conversation.turns]


@pytest.fixture
def walnuts(memory: LatentMemory) -> LatentMemory:
    memory.add(Conversation("old", [Turn("user", "I am allergic to walnuts.")]), scope="ana")
    memory.add(Conversation("hers", [Turn("user", "I am allergic to pollen.")]), scope="bea")
    return memory


@pytest.fixture
def loop() -> Iterator[None]:
    """A loop for `run_sync`, which leaves its own open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()


def scoped(deps: dict[str, str]) -> str:
    return deps["user"]


def agent(script: Script, capability: MemoryCapability, **more: Any) -> Scoped:
    return Agent(script.model, deps_type=dict[str, str], instructions="Cook.", capabilities=[capability], **more)


QUESTION = "What am I allergic to?"
ANA = {"user": "ana"}


# -- the capability ------------------------------------------------------------------------------------------


def check_ana(script: Script, memory: LatentMemory, answer: str) -> None:
    assert "walnuts" in script.asked()
    assert "pollen" not in script.asked()
    assert script.asked().endswith(f"\n\n{QUESTION}")
    first = script.requests[-1][0]
    assert isinstance(first, ModelRequest)
    assert first.instructions == "Cook."
    assert text(memory, "dinner", "ana") == [("user", QUESTION), ("assistant", answer)]
    assert memory.recall("allergic", scope="default") == []


@pytest.mark.usefixtures("loop")
def test_a_run(walnuts: LatentMemory) -> None:
    script = Script("No walnuts for you.")
    result = agent(script, MemoryCapability(walnuts, scope=scoped)).run_sync(
        QUESTION, deps=ANA, conversation_id="dinner"
    )
    assert result.output == "No walnuts for you."
    check_ana(script, walnuts, "No walnuts for you.")
    # What the run tells of itself is what was said, and what it says of its instructions is whole.
    assert said(result.all_messages())[0].text == QUESTION
    assert message_history(walnuts, "dinner", scope="ana") == result.all_messages()
    first = result.all_messages()[0]
    assert isinstance(first, ModelRequest)
    assert first.instructions == "Cook."


def test_a_run_in_a_loop(walnuts: LatentMemory) -> None:
    script = Script("No walnuts.")
    asyncio.run(
        agent(script, MemoryCapability(walnuts, scope=scoped)).run(QUESTION, deps=ANA, conversation_id="dinner")
    )
    check_ana(script, walnuts, "No walnuts.")


def test_a_streamed_run(walnuts: LatentMemory) -> None:
    script = Script("No walnuts for you.")

    async def go() -> list[ModelMessage]:
        cook = agent(script, MemoryCapability(walnuts, scope=scoped))
        async with cook.run_stream(QUESTION, deps=ANA, conversation_id="dinner") as result:
            assert [part async for part in result.stream_text(delta=True, debounce_by=None)] == [
                "No ",
                "walnuts ",
                "for ",
                "you. ",
            ]
            return result.all_messages()

    messages = asyncio.run(go())
    check_ana(script, walnuts, "No walnuts for you. ")
    assert message_history(walnuts, "dinner", scope="ana") == messages


def test_a_run_of_events(walnuts: LatentMemory) -> None:
    script = Script("No walnuts.")

    async def go() -> None:
        cook = agent(script, MemoryCapability(walnuts, scope=scoped))
        async with cook.run_stream_events(QUESTION, deps=ANA, conversation_id="dinner") as events:
            async for _ in events:
                pass

    asyncio.run(go())
    check_ana(script, walnuts, "No walnuts. ")


def test_a_run_that_was_left_early_is_not_kept(walnuts: LatentMemory) -> None:
    script = Script("No walnuts for you.", RuntimeError("overloaded"))

    async def go() -> None:
        cook = agent(script, MemoryCapability(walnuts, scope=scoped))
        async with cook.run_stream(QUESTION, deps=ANA, conversation_id="dinner") as result:
            async for _ in result.stream_text(delta=True):
                break
        with pytest.raises(RuntimeError, match="overloaded"):
            await cook.run(QUESTION, deps=ANA, conversation_id="dinner")

    asyncio.run(go())
    assert walnuts.get("dinner", scope="ana") is None


def test_requests_after_a_tool_call_have_the_same_words(walnuts: LatentMemory) -> None:
    script = Script(ModelResponse([ToolCallPart("look", {"at": "menu"}, "c1")]), "Soup.", "Bread.")
    cook = agent(script, MemoryCapability(walnuts, scope=scoped))

    @cook.tool_plain
    def look(at: str) -> str:
        # What comes in meanwhile would be recalled otherwise.
        walnuts.add(Conversation("new", [Turn("user", "I am allergic to celery, too.")]), scope="ana")
        return f"{at}: soup"

    asyncio.run(cook.run(QUESTION, deps=ANA, conversation_id="dinner"))
    assert script.requests[1][: len(script.requests[0])] == script.requests[0]
    assert isinstance(script.requests[1][-1].parts[0], ToolReturnPart)
    # The next run finds it.
    asyncio.run(cook.run(QUESTION, deps=ANA, conversation_id="supper"))
    assert "celery" in script.asked()


def test_runs_at_the_same_time_do_not_share_what_they_find(walnuts: LatentMemory) -> None:
    script = Script("One.", "Two.")
    cook = agent(script, MemoryCapability(walnuts, scope=scoped))

    async def go() -> None:
        await asyncio.gather(cook.run(QUESTION, deps=ANA), cook.run(QUESTION, deps={"user": "bea"}))

    asyncio.run(go())
    told = {script.asked(0), script.asked(1)}
    assert sorted("walnuts" in each for each in told) == [False, True]
    assert all(("walnuts" in each) != ("pollen" in each) for each in told)


def test_a_prompt_of_parts(walnuts: LatentMemory) -> None:
    picture = BinaryContent(b"\x00\xff\x10", media_type="application/pdf")
    script = Script("No.")
    result = asyncio.run(
        agent(script, MemoryCapability(walnuts, scope=scoped)).run(
            [picture, TextContent(QUESTION)], deps=ANA, conversation_id="dinner"
        )
    )
    part = script.requests[0][0].parts[0]
    assert isinstance(part, UserPromptPart)
    assert part.content[0] == picture
    assert "walnuts" in str(part.content[1])
    assert part.content[2] == TextContent(QUESTION)
    assert text(walnuts, "dinner", "ana") == [("user", QUESTION), ("assistant", "No.")]
    assert message_history(walnuts, "dinner", scope="ana") == result.all_messages()


def test_nothing_is_recalled_where_nobody_asks(walnuts: LatentMemory) -> None:
    script = Script("Nice.")
    picture = BinaryContent(b"\x00", media_type="image/png")
    asyncio.run(agent(script, MemoryCapability(walnuts, scope=scoped)).run([picture], deps=ANA))
    part = script.requests[0][0].parts[0]
    assert isinstance(part, UserPromptPart)
    assert part.content == [picture]


def test_recall_and_record_can_be_left_out(walnuts: LatentMemory) -> None:
    script = Script("One.", "Two.")
    asyncio.run(agent(script, MemoryCapability(walnuts, scope=scoped, recall=False)).run(QUESTION, deps=ANA))
    assert script.asked() == QUESTION
    before = walnuts.stats().turns
    asyncio.run(agent(script, MemoryCapability(walnuts, scope=scoped, record=False)).run(QUESTION, deps=ANA))
    assert "walnuts" in script.asked()
    assert walnuts.stats().turns == before


def test_a_memory_that_fails_leaves_the_run_alone(walnuts: LatentMemory, caplog: pytest.LogCaptureFixture) -> None:
    walnuts.close()
    script = Script("Hello.")
    with caplog.at_level(logging.WARNING, "latent_memory"):
        result = asyncio.run(agent(script, MemoryCapability(walnuts, scope=scoped)).run(QUESTION, deps=ANA))
    assert result.output == "Hello."
    assert "without memory" in caplog.text
    assert "not kept" in caplog.text


# -- histories -----------------------------------------------------------------------------------------------


def test_a_conversation_goes_on_from_what_was_kept(memory: LatentMemory) -> None:
    script = Script(
        ModelResponse([ThinkingPart("Hm.", signature="s"), ToolCallPart("look", '{"at": "menu"}', "c1")]),
        "Soup.",
        "Yes, warm.",
    )
    cook: Agent[None, str] = Agent(script.model, system_prompt="Cook.")

    @cook.tool_plain
    def look(at: str) -> dict[str, Any]:
        return {"at": at, "dishes": ["soup", "ünïcode\u2028\n"]}

    async def go() -> None:
        first = await cook.run("What is there?", conversation_id="dinner")
        assert record_run(memory, first) == "dinner"
        history = message_history(memory, "dinner")
        assert history == first.all_messages()
        second = await cook.run("Warm?", message_history=history)
        assert record_run(memory, second) == "dinner"
        record_run(memory, second)
        assert message_history(memory, "dinner") == second.all_messages()

    asyncio.run(go())
    assert text(memory, "dinner") == [
        ("user", "What is there?"),
        ("assistant", "Soup."),
        ("user", "Warm?"),
        ("assistant", "Yes, warm."),
    ]
    (system,) = [p for message in script.requests[-1] for p in message.parts if isinstance(p, SystemPromptPart)]
    assert system.content == "Cook."


def test_a_history_from_elsewhere_is_kept_with_the_first_run(memory: LatentMemory) -> None:
    script = Script("Hello.", "Again.", "And again.")
    greeter: Agent[None, str] = Agent(script.model)

    async def go() -> None:
        first = await greeter.run("Hello?")
        second = await greeter.run("Again?", message_history=first.all_messages())
        record_run(memory, second, conversation_id="greetings")
        # Only a window of what is kept was sent, and all of it stays.
        third = await greeter.run("And again?", message_history=second.all_messages()[-1:])
        record_run(memory, third, conversation_id="greetings")
        assert message_history(memory, "greetings") == [*second.all_messages(), *third.new_messages()]

    asyncio.run(go())
    assert [said for _, said in text(memory, "greetings")] == [
        *("Hello?", "Hello.", "Again?", "Again.", "And again?", "And again."),
    ]


def test_a_run_is_kept_once_whichever_it_is(memory: LatentMemory) -> None:
    script = Script("Hello.", "Again.", "And again.", "Hell")
    greeter: Agent[None, str] = Agent(script.model)

    async def go() -> None:
        runs = [await greeter.run("Hello?", conversation_id="greetings")]
        for asked in ("Again?", "And again?"):
            runs.append(await greeter.run(asked, message_history=runs[-1].all_messages()))
        for run in runs:
            record_run(memory, run)
        kept = message_history(memory, "greetings")
        assert kept == runs[-1].all_messages()
        for run in (runs[0], runs[1], runs[2], runs[0]):
            record_run(memory, run)
        assert message_history(memory, "greetings") == kept

    asyncio.run(go())
    assert len(text(memory, "greetings")) == 6


def test_nothing_was_kept(memory: LatentMemory) -> None:
    memory.add(Conversation("other", [Turn("user", "hello")]))
    assert message_history(memory, "dinner") == []
    assert message_history(memory, "other") == []


def test_what_is_no_text_is_refused_whole(memory: LatentMemory) -> None:
    result = asyncio.run(Agent(Script("Half: \ud83d").model).run("Hello?", conversation_id="dinner"))
    with pytest.raises(InputError, match="nothing was kept"):
        record_run(memory, result)
    assert memory.get("dinner") is None


# -- tools ---------------------------------------------------------------------------------------------------


def tool_answers(messages: list[ModelMessage]) -> list[str]:
    return [
        str(part.content)
        for message in messages
        for part in message.parts
        if part.part_kind in ("tool-return", "retry-prompt")
    ]


def test_tools(walnuts: LatentMemory) -> None:
    script = Script(
        ModelResponse(
            [
                ToolCallPart("recall", {"query": "allergic"}),
                ToolCallPart("recall", {"query": "allergic", "during": "May 2021"}),
                ToolCallPart("recall", {"query": " "}),
                ToolCallPart("remember", {"note": "Likes soup."}),
            ]
        ),
        ModelResponse([ToolCallPart("remember", {"note": "Dislikes bread."}), ToolCallPart("remember", {"note": " "})]),
        "Done.",
    )
    cook: Scoped = Agent(
        script.model, deps_type=dict[str, str], toolsets=[memory_toolset(walnuts, scope=scoped)], retries=3
    )
    result = asyncio.run(cook.run(QUESTION, deps=ANA))
    answers = tool_answers(result.all_messages())
    assert "walnuts" in answers[0]
    assert "pollen" not in answers[0]
    assert answers[1] == "Nothing was found."
    assert "query: empty" in answers[2]
    assert answers[3:5] == ["Kept.", "Kept."]
    assert "note: empty" in answers[5]
    assert text(walnuts, "notes", "ana") == [("assistant", "Likes soup."), ("assistant", "Dislikes bread.")]
    notes = walnuts.get("notes", scope="ana")
    assert notes is not None
    assert (notes.title, notes.type) == ("Notes", "notes")
    assert walnuts.recall("soup", scope="ana")[0].passage.conversation_id == "notes"


def test_the_capability_brings_the_tools_along(walnuts: LatentMemory) -> None:
    model = TestModel(call_tools=["recall", "remember"])
    capability = MemoryCapability(walnuts, scope=scoped, tools=True, record=False)
    cook: Scoped = Agent(model, deps_type=dict[str, str], capabilities=[capability])
    result = asyncio.run(cook.run("allergic", deps=ANA))
    parameters = model.last_model_request_parameters
    assert parameters is not None
    tools = {tool.name: tool for tool in parameters.function_tools}
    assert set(tools) == {"recall", "remember"}
    assert tools["recall"].description == "Look up what was said in earlier conversations with this user."
    assert "scope" not in tools["recall"].parameters_json_schema["properties"]
    assert all(one["description"] for one in tools["recall"].parameters_json_schema["properties"].values())
    assert "Kept." in tool_answers(result.all_messages())


def test_a_memory_that_fails_is_told_to_the_model(walnuts: LatentMemory) -> None:
    walnuts.close()
    script = Script(ModelResponse([ToolCallPart("recall", {"query": "allergic"})]), "No idea.")
    cook: Scoped = Agent(script.model, deps_type=dict[str, str], toolsets=[memory_toolset(walnuts, scope=scoped)])
    result = asyncio.run(cook.run(QUESTION, deps=ANA))
    assert result.output == "No idea."
    (answer,) = tool_answers(result.all_messages())
    assert "recall failed" in answer
    assert "closed" in answer


def test_other_capabilities_go_on_working(walnuts: LatentMemory) -> None:
    script = Script("soup", "bread")
    cook = agent(script, MemoryCapability(walnuts, scope=scoped))

    @cook.output_validator
    def no_soup(ctx: RunContext[dict[str, str]], output: str) -> str:
        if output == "soup":
            raise ModelRetry("something else")
        return output

    result = asyncio.run(cook.run(QUESTION, deps=ANA, conversation_id="dinner"))
    assert result.output == "bread"
    assert message_history(walnuts, "dinner", scope="ana") == result.all_messages()


def test_the_default_embedder_recalls_a_run_by_meaning(store: Path) -> None:
    with LatentMemory.open(store) as memory:
        script = Script("Noted.", "It is in June.")
        capability = MemoryCapability(memory)
        friend: Agent[None, str] = Agent(script.model, capabilities=[capability])
        asyncio.run(friend.run("My daughter's birthday party is on the second of June.", conversation_id="one"))
        asyncio.run(friend.run("When do we celebrate with the girl?", conversation_id="two"))
        assert "second of June" in script.asked()


def test_without_pydantic_ai_it_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "latent_memory.integrations.pydantic_ai"
    monkeypatch.setitem(sys.modules, "pydantic_ai", None)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingExtraError, match="pip install pydantic-ai-slim"):
        importlib.import_module(module)
