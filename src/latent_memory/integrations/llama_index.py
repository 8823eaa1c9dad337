"""LlamaIndex: a chat memory that remembers across sessions, its parts, and a retriever of what was said.

`chat_memory` puts together what a chat engine or an agent needs: LlamaIndex's own `Memory`, with its messages in the
memory, and a block that recalls.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from latent_memory.enrichment import turns
from latent_memory.errors import InputError
from latent_memory.integrations.base import needed, place, told
from latent_memory.integrations.exact import conversation, finished, spoken
from latent_memory.memory import DEFAULT_SCOPE, LatentMemory
from latent_memory.query import check_scope
from latent_memory.records import Conversation, Turn, check_text

with needed("llama_index", "llama-index-core"):
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.llms.types import ChatMessage, MessageRole
    from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.memory import BaseMemoryBlock, Memory
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus

_FRAMEWORK = "llama_index"
# Instructions, and what tools were asked and answered, are kept and not recalled.
_SPEAKERS = {
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


def chat_memory(
    memory: LatentMemory,
    session_id: str,
    *,
    scope: str = DEFAULT_SCOPE,
    budget: int = 1024,
    memory_blocks: Iterable[BaseMemoryBlock[Any]] = (),
    **options: Any,
) -> Memory:
    """Return a memory for a chat engine or an agent, which goes on with a session, and recalls the others.

    Args:
        memory: an open memory; what is said is kept in it at once.
        session_id: the conversation's id.
        scope: the wall that its sessions live behind.
        budget: the most tokens that recalled turns may take of a request.
        memory_blocks: further ones of yours.
        options: as of `Memory.from_defaults`, such as `token_limit` or `insert_method`.
    """
    check_text(session_id, "session_id")
    block = LatentMemoryBlock(memory=memory, scope=scope, budget=budget, accept_short_term_memory=False)
    return Memory.from_defaults(
        session_id=session_id,
        chat_store=LatentMemoryChatStore(memory=memory, scope=scope),
        memory_blocks=[block, *memory_blocks],
        **options,
    )


class LatentMemoryRetriever(BaseRetriever):
    """Recalls turns as nodes, best first.

    A node's text is the passage; its metadata are `conversation_id`, `turn`, `role`, `name`, `timestamp`, `title` and
    `score`, of which a language model is shown who said it, when, and the title.

    Args:
        memory: where to look.
        scope, k, since, until, roles, conversation_ids, during, rerank: as of `LatentMemory.recall`.
        callback_manager: as of every retriever.
    """

    def __init__(
        self,
        memory: LatentMemory,
        *,
        scope: str = DEFAULT_SCOPE,
        k: int = 10,
        since: datetime | str | float | None = None,
        until: datetime | str | float | None = None,
        roles: str | Iterable[str] | None = None,
        conversation_ids: str | Iterable[str] | None = None,
        during: str | None = None,
        rerank: Any = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        check_scope(scope)
        super().__init__(callback_manager=callback_manager)
        self.memory = memory
        self.options: dict[str, Any] = {
            "k": k,
            "scope": scope,
            "since": since,
            "until": until,
            "roles": roles if roles is None or isinstance(roles, str) else tuple(roles),
            "conversation_ids": (
                conversation_ids
                if conversation_ids is None or isinstance(conversation_ids, str)
                else tuple(conversation_ids)
            ),
            "during": during,
            "rerank": rerank,
        }

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if not query_bundle.query_str.strip():
            return []
        hits = self.memory.recall(query_bundle.query_str, **self.options)
        return [
            NodeWithScore(
                node=TextNode(
                    id_=place(hit),
                    text=hit.passage.text,
                    metadata=told(hit),
                    excluded_llm_metadata_keys=["conversation_id", "turn", "score"],
                ),
                score=hit.score,
            )
            for hit in hits
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await finished(self._retrieve, query_bundle)


class LatentMemoryBlock(BaseMemoryBlock[str]):
    """A block of LlamaIndex's `Memory`: recalls, from all sessions of a scope, what matters to what is said now.

    What `Memory` hands on as it grows too long is kept as the session's conversation. To keep everything at once, use
    `chat_memory`, or `LatentMemoryChatStore` with `accept_short_term_memory=False` here.

    Attributes:
        memory: an open memory.
        scope: the wall that its sessions live behind.
        budget: the most tokens that recalled turns may take.
        tokenizer: of the model that reads them; see `LatentMemory.context`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str = "latent_memory"
    memory: LatentMemory = Field(exclude=True)
    scope: str = DEFAULT_SCOPE
    budget: int = 1024
    tokenizer: Any = Field(default=None, exclude=True)
    _nameless: str = PrivateAttr(default_factory=lambda: str(uuid.uuid4()))

    async def _aget(
        self,
        messages: list[ChatMessage] | None = None,
        **block_kwargs: Any,  # noqa: ARG002 - part of the seam
    ) -> str:
        live = [turn for message in messages or [] for turn in _turns(message)]
        if not live:
            return ""
        context = await finished(self.memory.context, live, self.budget, scope=self.scope, tokenizer=self.tokenizer)
        return context.text

    async def _aput(self, messages: list[ChatMessage]) -> None:
        now = datetime.now().astimezone()
        said: dict[str, list[Turn]] = {}
        for message in messages:
            session = message.additional_kwargs.pop("session_id", None) or self._nameless
            said.setdefault(str(session), []).extend(_turns(message, now))
        for session, new in said.items():
            if new:
                await finished(self.memory.extend, session, _following(new), self.scope)


def _following(new: Sequence[Turn]) -> Callable[[Conversation | None], Conversation]:
    def follow(stored: Conversation | None) -> Conversation:
        return Conversation(turns=[*(stored.turns if stored else ()), *new], type=None if stored else "chat")

    return follow


def _turns(message: ChatMessage, now: datetime | None = None) -> list[Turn]:
    """Return what somebody says in a message."""
    role = _SPEAKERS.get(message.role)
    said = turns(role, message.content or "") if role else ()
    return [replace(turn, timestamp=now) for turn in said]


class LatentMemoryChatStore(AsyncDBChatStore):
    """Keeps the messages of LlamaIndex's `Memory`: each session is a conversation of the memory.

    Messages come back exactly as they were added. What the user and the model say in them can be recalled from other
    sessions. What a method has returned from is on disk; several processes may add to one session. Deleting messages
    (`Memory.reset` deletes all of a session) forgets what they say; a session without any left is forgotten.

    Attributes:
        memory: an open memory.
        scope: the wall that the sessions live behind.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    memory: LatentMemory = Field(exclude=True)
    scope: str = DEFAULT_SCOPE

    # -- reading ------------------------------------------------------------------------------------------

    async def get_messages(
        self,
        key: str,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[ChatMessage]:
        """Return a session's messages of a status (None: of any), in order."""
        kept = [each for each in await finished(self._read, key) if status is None or each["status"] == status.value]
        end = None if limit is None else (offset or 0) + limit
        return [ChatMessage.model_validate(each["message"]) for each in kept[offset or 0 : end]]

    async def count_messages(self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        """Return how many messages of a status (None: of any) a session has."""
        return len(await self.get_messages(key, status))

    async def get_keys(self) -> list[str]:
        """Return the ids of the sessions that have messages."""
        headings = await finished(self.memory.headings, scope=self.scope)
        return [str(heading.conversation_id) for heading in headings if heading.metadata.get(_FRAMEWORK)]

    # -- writing ------------------------------------------------------------------------------------------

    async def add_message(self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE) -> None:
        """Add a message to a session."""
        await self.add_messages(key, [message], status)

    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Add messages to a session, all of them or none."""
        made = _made(messages, status)
        if not made:
            return
        new = [turn for each in made for turn in _said(each)]

        def follow(stored: Conversation | None) -> Conversation:
            # Only what is new is written out: a long session grows a message at a time.
            lines = _lines(key, stored)
            first = json.loads(lines[lines.rfind("\n") + 1 :])["id"] + 1 if lines else 1
            numbered = _written({**each, "id": first + i} for i, each in enumerate(made))
            lines = f"{lines}\n{numbered}" if lines else numbered
            return conversation(stored, [*spoken(stored), *new], _FRAMEWORK, lines)

        await finished(self.memory.extend, key, follow, self.scope)

    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Put messages in the place of all that a session has; those that were there keep their time."""
        made = _made(messages, status)
        if not made:
            return await self.delete_messages(key)

        def change(before: list[dict[str, Any]]) -> list[dict[str, Any]]:
            kept = [*before, *({} for _ in made)]
            times = [
                known["at"] if known.get("message") == each["message"] else each["at"]
                for each, known in zip(made, kept, strict=False)
            ]
            return [{**each, "id": i, "at": at} for i, (each, at) in enumerate(zip(made, times, strict=True), 1)]

        return await finished(self._change, key, change)

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Delete the message with a number, as counted from 1 when they were added; return it."""
        return next(iter(await self._removed(key, lambda kept: [each for each in kept if each["id"] == idx])), None)

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        """Delete a session's messages of a status (None: of any)."""
        if status is None:
            await finished(self.memory.forget, key, scope=self.scope)
        else:
            await self._removed(key, lambda kept: [each for each in kept if each["status"] == status.value])

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Delete the first `n` active messages of a session, and return them."""
        return await self._removed(key, lambda kept: _active(kept)[:n])

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Archive the first `n` active messages of a session, and return them; they can be recalled as before."""
        archived: list[dict[str, Any]] = []

        def change(kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
            archived[:] = _active(kept)[:n]
            ids = {each["id"] for each in archived}
            return [{**each, "status": MessageStatus.ARCHIVED.value} if each["id"] in ids else each for each in kept]

        await finished(self._change, key, change)
        return [ChatMessage.model_validate(each["message"]) for each in archived]

    @classmethod
    def class_name(cls) -> str:
        """Return the class's name."""
        return "LatentMemoryChatStore"

    async def _removed(
        self, key: str, choose: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
    ) -> list[ChatMessage]:
        removed: list[dict[str, Any]] = []

        def change(kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
            removed[:] = choose(kept)
            return [each for each in kept if each not in removed]

        await finished(self._change, key, change)
        return [ChatMessage.model_validate(each["message"]) for each in removed]

    def _read(self, key: str) -> list[dict[str, Any]]:
        return _records(_lines(key, self.memory.get(key, scope=self.scope)))

    def _change(self, key: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        emptied = False

        def follow(stored: Conversation | None) -> Conversation | None:
            nonlocal emptied
            before = _records(_lines(key, stored))
            after = change(before)
            emptied = bool(before) and not after
            if after == before or emptied:
                return None
            said = [turn for each in after for turn in _said(each)]
            return conversation(stored, said, _FRAMEWORK, _written(after))

        def check() -> None:
            # Somebody may have added a message in between.
            if change(self._read(key)):
                raise _NotEmptyError

        while True:
            self.memory.extend(key, follow, self.scope, whole=True)
            if not emptied:
                return
            with contextlib.suppress(_NotEmptyError):
                self.memory.forget(key, scope=self.scope, check=check)
                return


class _NotEmptyError(Exception):
    pass


def _made(messages: Sequence[ChatMessage], status: MessageStatus) -> list[dict[str, Any]]:
    now = datetime.now().astimezone().isoformat()
    return [
        {"id": 0, "status": status.value, "at": now, "message": message.model_dump(mode="json")} for message in messages
    ]


def _said(record: dict[str, Any]) -> list[Turn]:
    return _turns(ChatMessage.model_validate(record["message"]), datetime.fromisoformat(record["at"]))


def _active(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in records if each["status"] == MessageStatus.ACTIVE.value]


def _written(records: Iterable[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(each) for each in records)


def _records(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.split("\n")] if lines else []


def _lines(key: str, stored: Conversation | None) -> str:
    if stored is None:
        return ""
    lines = stored.metadata.get(_FRAMEWORK)
    if not isinstance(lines, str):
        raise InputError(f"session {key!r}: a conversation that LlamaIndex has not kept has this id; use another")
    return lines
