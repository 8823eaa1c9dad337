"""The OpenAI Agents SDK: a session that is kept in the memory, and ways for a run to recall other conversations.

>>> session = LatentMemorySession("thread-1", memory, scope="ana")  # doctest: +SKIP
>>> await Runner.run(  # doctest: +SKIP
...     agent, "When do we leave?", session=session,
...     run_config=RunConfig(call_model_input_filter=memory_filter(memory, scope="ana")))
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from latent_memory.enrichment import said, with_memory
from latent_memory.errors import InputError, LatentMemoryError
from latent_memory.integrations.base import Scope, needed, scope_for
from latent_memory.integrations.exact import Log, Said, finished, spared
from latent_memory.memory import DEFAULT_SCOPE, LatentMemory
from latent_memory.query import check_scope
from latent_memory.records import Turn, check_text

with needed("agents", "openai-agents"):
    from agents import FunctionTool, SessionSettings, TResponseInputItem
    from agents.run import CallModelData, ModelInputData
    from agents.tool_context import ToolContext

_FRAMEWORK = "openai_agents"


class LatentMemorySession:
    """A session of the Agents SDK, kept as a conversation of the memory.

    Items come back exactly as they were added, in order. What the user and the agent say in them can be recalled from
    other conversations. What `add_items` has returned from is on disk; several processes may add to one session.

    Args:
        session_id: the conversation's id.
        memory: that keeps it.
        scope: whose memory it is.
        session_settings: as of the SDK's other sessions: `limit` is how many items `get_items` returns by default.
    """

    def __init__(
        self,
        session_id: str,
        memory: LatentMemory,
        *,
        scope: str = DEFAULT_SCOPE,
        session_settings: SessionSettings | Mapping[str, Any] | None = None,
    ) -> None:
        check_scope(scope)
        check_text(session_id, "session_id")
        if not session_id.strip():
            raise InputError("session_id: empty; give a text such as a thread's id")
        self.session_id = session_id
        self.session_settings: SessionSettings | None = (
            SessionSettings(**session_settings) if isinstance(session_settings, Mapping) else session_settings
        ) or SessionSettings()
        self._log = Log(memory, session_id, scope, _FRAMEWORK)

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the items, oldest first: the last `limit` of them, all if it is negative or None."""
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        lines = await finished(self._log.read)
        if limit is not None and limit >= 0:
            lines = lines[max(0, len(lines) - limit) :]
        return [json.loads(line) for line in lines]

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add items behind the others; all of them or, if it raises, none.

        Raises:
            InputError: if an item cannot be written as JSON.
            LatentMemoryError: see `LatentMemory.add`.
        """
        kept = [_kept(item, number) for number, item in enumerate(items)]
        await finished(self._log.append, kept)

    async def pop_item(self) -> TResponseInputItem | None:
        """Take the last item away, and what it says out of the memory, and return it; None if there is none."""
        popped = await finished(self._log.pop, lambda line: _turns(json.loads(line)))
        return None if popped is None else json.loads(popped)

    async def clear_session(self) -> None:
        """Forget the conversation."""
        await finished(self._log.clear)


def memory_filter(
    memory: LatentMemory, *, scope: Scope = DEFAULT_SCOPE, budget: int = 1024
) -> Callable[[CallModelData[Any]], Awaitable[ModelInputData]]:
    """Return a `RunConfig.call_model_input_filter` that puts what matters now into the model's input.

    The block stands before what the user said last, in the same message, for this call only: instructions stay as they
    are, and a session keeps what was really said. If the memory fails, the call goes on without it, and a warning is
    logged.

    Args:
        memory: that is recalled from.
        scope: whose: a name, or a function of the run's context object.
        budget: the most tokens that the block may have.
    """

    async def filtered(data: CallModelData[Any]) -> ModelInputData:
        given = data.model_data
        body = {"input": given.input}
        live = said("responses", body)
        if not any(turn.role == "user" for turn in live):
            return given
        with spared("the model is asked without memory"):
            found = await finished(memory.context, live, budget, scope=scope_for(scope, data.context))
            enriched = with_memory("responses", body, found.text)
            return ModelInputData(input=enriched["input"], instructions=given.instructions)
        return given

    return filtered


def recall_tool(
    memory: LatentMemory, *, scope: Scope = DEFAULT_SCOPE, budget: int = 1024, name: str = "recall"
) -> FunctionTool:
    """Return a tool with which an agent looks into the memory by itself.

    Args:
        memory: that is recalled from.
        scope: whose: a name, or a function of the run's context object. The model cannot choose it.
        budget: the most tokens of an answer.
        name: of the tool.
    """

    async def invoke(context: ToolContext[Any], arguments: str) -> str:
        try:
            given = json.loads(arguments or "{}")
            query, during = (given.get("query"), given.get("during")) if isinstance(given, dict) else (None, None)
            found = await finished(
                memory.context, str(query or ""), budget, scope=scope_for(scope, context.context), during=during or None
            )
        except (LatentMemoryError, ValueError) as error:
            # The model reads it, and may ask in another way.
            return f"recall failed: {error}"
        return found.text or "Nothing was found."

    return FunctionTool(
        name=name,
        description=_DESCRIPTION,
        params_json_schema={
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What to look for, as a question or in words."},
                "during": {
                    "type": ["string", "null"],
                    "description": 'When it was said, in words such as "last March" or "May 2023"; null for any time.',
                },
            },
            "required": ["query", "during"],
            "additionalProperties": False,
        },
        on_invoke_tool=invoke,
    )


_DESCRIPTION = "Look up what was said in earlier conversations with this user."


def _kept(item: Any, number: int) -> Said:
    try:
        # In ASCII, which brings back what is no valid text as well.
        line = json.dumps(item)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"items[{number}]: cannot be written as JSON ({error}); nothing was added") from None
    return Said(line, _turns(item))


def _turns(item: Any) -> list[Turn]:
    return said("responses", {"input": [item]})
