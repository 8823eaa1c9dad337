"""Pydantic AI: a capability that gives an agent a memory, tools for it, and message histories kept as they are.

>>> agent = Agent("openai:gpt-5", capabilities=[MemoryCapability(memory, scope="ana")])  # doctest: +SKIP
>>> result = agent.run_sync("When do we leave?", conversation_id="trip")  # doctest: +SKIP
>>> history = message_history(memory, "trip", scope="ana")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from latent_memory.enrichment import turns as turns_of_text
from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.integrations.base import Scope, needed, scope_for
from latent_memory.integrations.exact import Log, Said, finished, spared
from latent_memory.memory import DEFAULT_SCOPE, LatentMemory
from latent_memory.records import Conversation, Turn

with needed("pydantic_ai", "pydantic-ai-slim"):
    from pydantic_ai import AgentRunResult, FunctionToolset, ModelRetry, RunContext
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.messages import (
        ModelMessage,
        ModelMessagesTypeAdapter,
        ModelRequest,
        ModelResponse,
        TextContent,
        TextPart,
        UserContent,
        UserPromptPart,
    )
    from pydantic_ai.models import ModelRequestContext

_FRAMEWORK = "pydantic_ai"
_NOTES = "notes"


@dataclass
class MemoryCapability(AbstractCapability[Any]):
    """Memory for an agent: what matters now goes into its requests, and its runs are kept.

    What is recalled stands before what the user said last, in the same message, for the request only: instructions and
    system prompts stay as they are, and the run's messages are what was really said. A run that ends is kept as
    `record_run` keeps it; one that fails, or is left early, is not. If the memory fails, the run goes on without it,
    and a warning is logged.

    Attributes:
        memory: that is recalled from, and kept in.
        scope: whose: a name, or a function of the run's dependencies.
        budget: the most tokens of what is recalled.
        recall: put what is recalled into requests.
        record: keep the runs.
        tools: give the model the tools of `memory_toolset` as well.
    """

    memory: LatentMemory
    scope: Scope = DEFAULT_SCOPE
    budget: int = 1024
    recall: bool = True
    record: bool = True
    tools: bool = False
    # What was recalled in this run, by what it was recalled for: a request that goes on after a tool call finds the
    # same words, so that a provider's prefix cache still holds.
    _found: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def get_serialization_name(cls) -> str | None:
        """Return None: a memory cannot be written into an agent's specification."""
        return None

    async def for_run(self, ctx: RunContext[Any]) -> AbstractCapability[Any]:  # noqa: ARG002 - it is the interface
        """Return what serves one run."""
        return replace(self)

    def get_toolset(self) -> FunctionToolset[Any] | None:
        """Return the tools, if the model is to have them."""
        return memory_toolset(self.memory, scope=self.scope, budget=self.budget) if self.tools else None

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Put what matters now into the request."""
        if not self.recall:
            return request_context
        with spared("the model is asked without memory"):
            live = said(request_context.messages)
            asked = next((turn.text for turn in reversed(live) if turn.role == "user"), None)
            if asked is not None:
                if asked not in self._found:
                    found = await finished(
                        self.memory.context, live, self.budget, scope=scope_for(self.scope, ctx.deps)
                    )
                    self._found[asked] = found.text
                # Another list: the run's own messages stay as they are.
                request_context.messages = _with_memory(request_context.messages, self._found[asked])
        return request_context

    async def after_run(self, ctx: RunContext[Any], *, result: AgentRunResult[Any]) -> AgentRunResult[Any]:
        """Keep the run."""
        if self.record:
            with spared("the run is not kept in the memory"):
                await finished(record_run, self.memory, result, scope=scope_for(self.scope, ctx.deps))
        return result


def memory_toolset(
    memory: LatentMemory, *, scope: Scope = DEFAULT_SCOPE, budget: int = 1024, notes: str = _NOTES
) -> FunctionToolset[Any]:
    """Return the tools `recall` and `remember`, with which an agent uses the memory by itself.

    Args:
        memory: that they use.
        scope: whose: a name, or a function of the run's dependencies. The model cannot choose it.
        budget: the most tokens of what `recall` answers.
        notes: the conversation that `remember` adds to.
    """

    async def recall(ctx: RunContext[Any], query: str, during: str | None = None) -> str:
        """Look up what was said in earlier conversations with this user.

        Args:
            query: What to look for, as a question or in words.
            during: When it was said, in words such as "last March" or "May 2023"; null for any time.
        """
        try:
            found = await finished(
                memory.context, query, budget, scope=scope_for(scope, ctx.deps), during=during or None
            )
        except LatentMemoryError as error:
            raise ModelRetry(f"recall failed: {error}") from error
        return found.text or "Nothing was found."

    async def remember(ctx: RunContext[Any], note: str) -> str:
        """Keep something about this user for later conversations.

        Args:
            note: What to keep, in a sentence that can be understood by itself.
        """
        new = [replace(turn, timestamp=datetime.now().astimezone()) for turn in turns_of_text("assistant", note)]
        if not new:
            raise ModelRetry("note: empty; say what is to be kept")

        def following(stored: Conversation | None) -> Conversation:
            if stored is None:
                return Conversation(notes, new, title="Notes", type="notes")
            return Conversation(notes, [*stored.turns, *new])

        try:
            await finished(memory.extend, notes, following, scope_for(scope, ctx.deps))
        except LatentMemoryError as error:
            raise ModelRetry(f"remember failed: {error}") from error
        return "Kept."

    return FunctionToolset([recall, remember])


def record_run(
    memory: LatentMemory,
    result: AgentRunResult[Any],
    *,
    scope: str = DEFAULT_SCOPE,
    conversation_id: str | None = None,
) -> str:
    """Keep a run's messages: what was said as turns, and the messages themselves for `message_history`.

    Of a conversation that the memory does not have yet all messages are kept, the history that the run was given
    included; else those that are new. Keeping the same run again changes nothing.

    Args:
        memory: that keeps them.
        result: of the run; of one that was streamed too.
        scope: whose memory it is.
        conversation_id: by default the run's own.

    Returns:
        The conversation's id.

    Raises:
        InputError: if a message cannot be written as JSON.
        LatentMemoryError: see `LatentMemory.add`.
    """
    made = conversation_id or result.conversation_id
    log = Log(memory, made, scope, _FRAMEWORK)
    new, everything = result.new_messages(), result.all_messages()
    log.append(_kept(new), once=True, first=_kept(everything))
    return made


def message_history(memory: LatentMemory, conversation_id: str, *, scope: str = DEFAULT_SCOPE) -> list[ModelMessage]:
    """Return the messages of a conversation's runs as they were, to go on with: `run(..., message_history=...)`.

    Args:
        memory: that keeps them.
        conversation_id: of the conversation.
        scope: whose memory it is.

    Returns:
        The messages, oldest first; none if no run of that conversation was kept.
    """
    lines = Log(memory, conversation_id, scope, _FRAMEWORK).read()
    return ModelMessagesTypeAdapter.validate_json(f"[{','.join(lines)}]")


def said(messages: Sequence[ModelMessage]) -> list[Turn]:
    """Return what the user and the model say in messages, in order: no instructions, no tools."""
    return [turn for message in messages for turn in _turns(message)]


def _turns(message: ModelMessage) -> list[Turn]:
    found: list[Turn] = []
    for part in message.parts:
        if isinstance(part, UserPromptPart):
            found += [replace(turn, timestamp=part.timestamp) for turn in turns_of_text("user", _text(part))]
    if isinstance(message, ModelResponse):
        text = "".join(part.content for part in message.parts if isinstance(part, TextPart))
        found += [replace(turn, timestamp=message.timestamp) for turn in turns_of_text("assistant", text)]
    return found


def _text(part: UserPromptPart) -> str:
    if isinstance(part.content, str):
        return part.content
    return "\n".join(text for item in part.content if (text := _words(item)))


def _words(item: UserContent) -> str:
    return item if isinstance(item, str) else item.content if isinstance(item, TextContent) else ""


def _kept(messages: Sequence[ModelMessage]) -> list[Said]:
    try:
        # One by one, since each is a line.
        return [
            Said(ModelMessagesTypeAdapter.dump_json([message]).decode()[1:-1], _turns(message)) for message in messages
        ]
    except ValueError as error:
        raise InputError(f"messages: cannot be written as JSON ({error}); nothing was kept") from None


def _with_memory(messages: Sequence[ModelMessage], block: str) -> list[ModelMessage]:
    """Return messages with a block before what the user said last; what is changed is copied."""
    changed = list(messages)
    if not block:
        return changed
    for at in reversed(range(len(changed))):
        message = changed[at]
        if isinstance(message, ModelRequest):
            for place in reversed(range(len(message.parts))):
                part = message.parts[place]
                if isinstance(part, UserPromptPart) and _text(part).strip():
                    parts = [*message.parts[:place], _prefixed(part, block), *message.parts[place + 1 :]]
                    changed[at] = replace(message, parts=parts)
                    return changed
    return changed


def _prefixed(part: UserPromptPart, block: str) -> UserPromptPart:
    if isinstance(part.content, str):
        return replace(part, content=f"{block}\n\n{part.content}")
    first = next(i for i, item in enumerate(part.content) if _words(item).strip())
    return replace(part, content=[*part.content[:first], f"{block}\n", *part.content[first:]])
