"""Each framework with the server that users start: through its doors, or on the store that it serves."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agents
import openai
import pytest
from agents.mcp import MCPServerStreamableHttp
from langchain_core.documents import Document
from llama_index.core.llms import ChatMessage
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from fake_openai import FakeOpenAI
from latent_memory import LatentMemory
from latent_memory.integrations.langchain import LatentMemoryRetriever, LatentMemoryVectorStore
from latent_memory.integrations.langgraph import LatentMemoryStore
from latent_memory.integrations.llama_index import LatentMemoryChatStore
from latent_memory.integrations.llama_index import LatentMemoryRetriever as LlamaRetriever
from latent_memory.integrations.openai_agents import LatentMemorySession
from served import Served

Serve = Callable[..., Served]
FACT = "My dog is called Biscuit and she is a beagle."
QUESTION = "What is my dog called?"
ANSWER = "Certainly, the answer is forty two."
KEY = "sk-of-the-client"


@pytest.fixture(autouse=True)
def _no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    agents.set_tracing_disabled(True)


@pytest.fixture
def served(serve: Serve, store: Path, upstream: FakeOpenAI) -> Served:
    server = serve(store, args=["--upstream", upstream.url])
    ask(server, "add", {"conversation_id": "dog", "messages": [{"role": "user", "content": FACT}]})
    return server


@pytest.fixture
def beside(served: Served, store: Path) -> Iterator[LatentMemory]:
    """Return the store that is served, open in this process as well."""
    with LatentMemory.open(store) as memory:
        yield memory


def ask(server: Served, verb: str, body: object) -> Any:
    request = urllib.request.Request(
        f"{server.url}/v1/memory/{verb}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def recalled(server: Served, question: str) -> str:
    """Return what the server finds first."""
    text: str = ask(server, "recall", {"query": question, "k": 1})["hits"][0]["text"]
    return text


# -- through the doors ------------------------------------------------------------------------------------------------


async def test_the_agents_sdk_chats_through_the_proxy(served: Served, upstream: FakeOpenAI) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
        agent = agents.Agent("friend", model=agents.OpenAIChatCompletionsModel("gpt-4o", client))
        assert (await agents.Runner.run(agent, QUESTION)).final_output == ANSWER
        assert FACT in upstream.last.text
        assert upstream.last.headers["authorization"] == f"Bearer {KEY}"
        streamed = agents.Runner.run_streamed(agent, "And what breed is she?")
        async for _ in streamed.stream_events():
            pass
    assert streamed.final_output == ANSWER
    assert QUESTION in [hit["text"] for hit in ask(served, "recall", {"query": QUESTION, "k": 5})["hits"]]


async def test_the_agents_sdk_uses_the_tools(served: Served) -> None:
    async with MCPServerStreamableHttp({"url": f"{served.url}/mcp"}) as tools:
        assert [tool.name for tool in await tools.list_tools()] == ["recall", "context", "add", "forget", "list"]
        found = await tools.call_tool("recall", {"query": QUESTION})
        assert FACT in str(found.content)


async def test_pydantic_ai_chats_through_the_proxy(served: Served, upstream: FakeOpenAI) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
        agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
        assert (await agent.run(QUESTION)).output == ANSWER
        assert FACT in upstream.last.text
        async with agent.run_stream("And what breed is she?") as result:
            assert await result.get_output() == ANSWER


# -- on the store that is served --------------------------------------------------------------------------------------


async def test_a_session_of_the_agents_sdk(served: Served, beside: LatentMemory) -> None:
    session = LatentMemorySession("thread", beside)
    await session.add_items([{"role": "user", "content": "The spare key lies under the blue flowerpot."}])
    assert "flowerpot" in recalled(served, "where is the spare key?")


def test_langchain(served: Served, beside: LatentMemory) -> None:
    (document,) = LatentMemoryRetriever(memory=beside, k=1).invoke(QUESTION)
    assert document.page_content == FACT
    LatentMemoryVectorStore(beside).add_documents([Document("The boiler was serviced in October.", id="boiler")])
    assert "boiler" in recalled(served, "when was the boiler serviced?")


def test_langgraph(served: Served, beside: LatentMemory) -> None:
    items = LatentMemoryStore(beside)
    items.put(("ana",), "tea", {"text": "Ana drinks rooibos in the evening."})
    assert "rooibos" in recalled(served, "what does Ana drink in the evening?")
    ask(served, "forget", {"everything": True})
    assert items.get(("ana",), "tea") is None


async def test_llama_index(served: Served, beside: LatentMemory) -> None:
    (node,) = LlamaRetriever(beside, k=1).retrieve(QUESTION)
    assert node.text == FACT
    await LatentMemoryChatStore(memory=beside).add_message("chat", ChatMessage("The piano is tuned on Friday."))
    assert "piano" in recalled(served, "when is the piano tuned?")
