"""LangChain: what was said as documents, and a vector store of texts that were never said.

Needs langchain-core alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from latent_memory import block_files, generated
from latent_memory.embedders import embedded
from latent_memory.enrichment import turns as turns_of
from latent_memory.errors import InputError
from latent_memory.integrations.base import NOTHING, needed, place, told
from latent_memory.memory import DEFAULT_SCOPE, LatentMemory
from latent_memory.query import check_scope
from latent_memory.records import ROLES, Conversation, Hit, Turn
from latent_memory.rerankers import Reranker
from latent_memory.vectors import Vectors

with needed("langchain_core", "langchain-core"):
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.messages import (
        AIMessage,
        BaseMessage,
        ChatMessage,
        FunctionMessage,
        RemoveMessage,
        SystemMessage,
        ToolMessage,
    )
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance

# What a document is called in the memory, so that it is no conversation's id.
TYPE = "langchain-document"
_PREFIX = f"{TYPE}:"

_SUMMARY = 200
# By class, since a piece of a streamed message has another `type` than the message.
_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
    (FunctionMessage, "function"),
)
_SPEAKERS = {"ai": "assistant"}

Filter = Mapping[str, Any] | Callable[[Document], bool]


class LangChainEmbedder:
    """LangChain's embeddings as an embedder of a memory: `LatentMemory.open(path, embedder=LangChainEmbedder(...))`.

    Args:
        embeddings: any of LangChain's.
        name: stored with the memory, which is only opened again with an embedder of the same name. By default the
            class's name, and that of the model where there is one.
    """

    def __init__(self, embeddings: Embeddings, name: str | None = None) -> None:
        self.embeddings = embeddings
        model = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
        parts = ["langchain", type(embeddings).__name__, *([model] if isinstance(model, str) else [])]
        self.name = name or ":".join(parts)

    @cached_property
    def dimension(self) -> int:
        """How many numbers a vector has; one text is embedded to find out."""
        return len(self.embeddings.embed_query("dimension"))

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        """Return (len(texts), dimension) float32; questions go where LangChain sends questions."""
        if not query:
            return np.array(self.embeddings.embed_documents(list(texts)), np.float32)
        return np.array([self.embeddings.embed_query(text) for text in texts], np.float32)


def turns(messages: Iterable[BaseMessage]) -> list[Turn]:
    """Return LangChain's messages as turns, to be added to a memory; those that say nothing are left out.

    A text that is too long for a turn makes several; pieces of a streamed message make a turn each.

    >>> memory.add(Conversation("thread-1", turns(state["messages"])))  # doctest: +SKIP
    """
    found: list[Turn] = []
    for message in messages:
        if not isinstance(message, RemoveMessage):
            name = message.name.encode("utf-8", "replace").decode() if message.name else None
            found += turns_of(_role(message), str(message.text), name)
    return found


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role if message.role in ROLES else _SPEAKERS.get(message.role, "user")
    return next((role for kind, role in _ROLES if isinstance(message, kind)), "user")


class LatentMemoryRetriever(BaseRetriever):
    """Recalls turns as documents, best first.

    A document's text is the passage; its metadata are `conversation_id`, `turn`, `role`, `name`, `timestamp`, `title`
    and `score`. Everything but the memory can be given to `invoke` as well.

    Attributes:
        memory: where to look.
        scope, k, since, until, roles, conversation_ids, during, rerank: as of `LatentMemory.recall`.
    """

    memory: LatentMemory
    scope: str = DEFAULT_SCOPE
    k: int = 10
    since: datetime | str | float | None = None
    until: datetime | str | float | None = None
    roles: str | Sequence[str] | None = None
    conversation_ids: str | Sequence[str] | None = None
    during: str | None = None
    rerank: Any = None

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - part of the seam
        **options: Any,
    ) -> list[Document]:
        asked: dict[str, Any] = {
            "k": self.k,
            "scope": self.scope,
            "since": self.since,
            "until": self.until,
            "roles": self.roles,
            "conversation_ids": self.conversation_ids,
            "during": self.during,
            "rerank": self.rerank,
        }
        unknown = options.keys() - {*asked, "now", "rerank_among"}
        if unknown:
            raise InputError(f"{min(unknown)}: no option of recall; there are {', '.join(sorted(asked))}")
        if not query.strip():
            return []
        hits = self.memory.recall(query, **{**asked, **options})
        return [Document(id=place(hit), page_content=hit.passage.text, metadata=told(hit)) for hit in hits]


class LatentMemoryVectorStore(VectorStore):
    """Documents in a memory: each is a conversation of its own, of the type "langchain-document".

    Conversations in the same scope are never found by it. What `add_documents` has returned from is on disk.

    Args:
        memory: an open memory; or a directory or file, which is opened, and made if it is not there.
        embedding: what makes the vectors, where `memory` is a path; an open memory has an embedder already (see
            `LangChainEmbedder`). By default the memory's own.
        scope: the wall that the documents live behind.

    Raises:
        InputError: if an embedding is given for a memory that is open.
    """

    def __init__(
        self, memory: LatentMemory | str | Path, embedding: Embeddings | None = None, *, scope: str = DEFAULT_SCOPE
    ) -> None:
        check_scope(scope)
        self.scope = scope
        if isinstance(memory, LatentMemory):
            if embedding is not None:
                raise InputError(
                    "embedding: the memory is open and has its embedder; give the embedding to LatentMemory.open("
                    "path, embedder=LangChainEmbedder(embedding)), or hand in the path"
                )
            self.memory = memory
        else:
            embedder = None if embedding is None else LangChainEmbedder(embedding)
            self.memory = LatentMemory.open(memory, embedder=embedder)

    @property
    def embeddings(self) -> Embeddings | None:
        """LangChain's embeddings, if they make the vectors."""
        embedder = self.memory.embedder
        return embedder.embeddings if isinstance(embedder, LangChainEmbedder) else None

    # -- what is kept -------------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,  # noqa: ARG002 - part of the seam
    ) -> list[str]:
        """Add texts, or put them in the place of those with the same ids, of which nothing is left then.

        Args:
            texts: of the documents; an empty one is kept as well.
            metadatas: one for each text, as JSON data.
            ids: one for each text; None makes one up.

        Returns:
            The ids.

        Raises:
            InputError: if the numbers differ, a text or its metadata cannot be kept, or an id is that of a conversation
                that is no document; nothing was added then.
        """
        texts = list(texts)
        for name, given in (("metadatas", metadatas), ("ids", ids)):
            if given is not None and len(given) != len(texts):
                raise InputError(f"{name}: {len(given)} for {len(texts)} texts; give one for each")
        made = [known or str(uuid.uuid4()) for known in ids or [None] * len(texts)]
        # All are made before any is added. Of several with one id the last stays.
        given = metadatas or [{} for _ in texts]
        documents = {each[0]: _conversation(*each) for each in zip(made, texts, given, strict=True)}
        new: list[Conversation] = []
        changed: list[Conversation] = []
        for known, document in documents.items():
            stored = self.memory.get(_PREFIX + known, scope=self.scope)
            if stored is None:
                new.append(document)
            elif replace(_instead(document, stored), timestamp=stored.timestamp, generated=stored.generated) != stored:
                changed.append(document)
        # Of several that are replaced only the last empties the log, of what all of them said: that takes as long as
        # adding thirty.
        self.memory.add([*new, *changed[:-1]], self.scope)
        if changed:
            last, following = str(changed[-1].conversation_id), partial(_instead, changed[-1])
            self.memory.extend(last, following, self.scope, whole=True)
            gone = [str(document.conversation_id) for document in changed]
            block_files.drop(self.memory.block_directory, self.scope, gone)
        return made

    def delete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> bool:  # noqa: ARG002 - part of the seam
        """Forget documents; without ids, all of them. Ids that are not there are passed over."""
        wanted = self._ids() if ids is None else [_PREFIX + each for each in ids]
        # Not a conversation that has a document's id.
        gone = [each for each in wanted if self._type(each) == TYPE]
        if gone:
            self.memory.forget(gone, scope=self.scope)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return those of the documents that there are, in the order of the ids."""
        found = (self._document(_PREFIX + each) for each in dict.fromkeys(ids))
        return [document for document in found if document is not None]

    # -- what is found ------------------------------------------------------------------------------------

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the `k` documents that fit a query best, best first; see `similarity_search_with_score`."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Return the `k` documents that fit a query best with their scores, best first.

        Args:
            query: what is asked.
            k: how many at most.
            filter: what a document's metadata must hold, key by key; or a function that admits a document.
            kwargs: `rerank`, as of `LatentMemory.recall`.

        Returns:
            Scores are those of `recall`: made of meaning and words, higher is better, comparable within one search.
        """
        return [(document, hit.score) for document, hit in self._search(query, k, filter, **kwargs)]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return `k` of the `fetch_k` documents that fit best, so chosen that they say different things."""
        found = list(self._search(query, fetch_k, filter, **kwargs))
        if not found:
            return []
        vectors = self._vectors([hit for _, hit in found])
        chosen = maximal_marginal_relevance(self._asked(query), list(vectors), lambda_mult, k)
        return [found[i][0] for i in chosen]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, with how near the document is in meaning: the cosine, at least 0."""
        found = list(self._search(query, k, **kwargs))
        if not found:
            return []
        cosines = np.clip(self._vectors([hit for _, hit in found]) @ self._asked(query), 0, 1)
        return [(document, float(cosine)) for (document, _), cosine in zip(found, cosines, strict=True)]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        memory: LatentMemory | str | Path | None = None,
        scope: str = DEFAULT_SCOPE,
        **kwargs: Any,
    ) -> Self:
        """Return a store with texts in it.

        Args:
            texts, metadatas, ids: as of `add_texts`.
            embedding, memory, scope: as of the class; `memory` is needed, since what is remembered lies on disk.
        """
        if memory is None:
            raise InputError("memory: say where the documents are kept: memory=PATH, or an open LatentMemory")
        store = cls(memory, embedding, scope=scope)
        try:
            store.add_texts(texts, metadatas, ids=ids, **kwargs)
        except BaseException:
            if not isinstance(memory, LatentMemory):
                store.memory.close()
            raise
        return store

    def _search(
        self, query: str, k: int, filter: Filter | None = None, rerank: str | Reranker | None = None
    ) -> Iterator[tuple[Document, Hit]]:
        ids: list[str] | None = self._ids(filter) if query.strip() and k > 0 else []
        if not ids:
            return
        if filter is None and len(ids) == self.memory.scopes().get(self.scope):
            # There is nothing else: to look in all of the scope is faster.
            ids = None
        # One hit a document: each has one turn.
        for hit in self.memory.recall(query, k, scope=self.scope, conversation_ids=ids, rerank=rerank):
            document = self._document(hit.passage.conversation_id)
            # Another process may have deleted it meanwhile, or added a conversation.
            if document is not None:
                yield document, hit

    def _ids(self, filter: Filter | None = None) -> list[str]:
        """Return the ids, as the memory knows them, of the documents that a filter admits."""
        if filter is None:
            return self.memory.conversation_ids(scope=self.scope, prefix=_PREFIX)
        if isinstance(filter, Mapping):
            headings = self.memory.headings(scope=self.scope, prefix=_PREFIX)
            return [str(h.conversation_id) for h in headings if h.type == TYPE and _holds(h.metadata, filter)]
        documents = ((known, self._document(known)) for known in self._ids())
        return [known for known, document in documents if document is not None and filter(document)]

    def _type(self, conversation_id: str) -> str | None:
        # The shortest of the ids that begin so.
        found = self.memory.headings(scope=self.scope, prefix=conversation_id, limit=1)
        return found[0].type if found and found[0].conversation_id == conversation_id else None

    def _document(self, conversation_id: str) -> Document | None:
        found = self.memory.get(conversation_id, scope=self.scope)
        if found is None or found.type != TYPE:
            return None
        return Document(
            id=conversation_id.removeprefix(_PREFIX),
            page_content=found.metadata.get("text", found.turns[0].text),
            metadata=dict(found.metadata["metadata"]),
        )

    def _asked(self, query: str) -> Vectors:
        vector: Vectors = embedded(self.memory.embedder, [query], query=True).vectors[0]
        return vector

    def _vectors(self, hits: Sequence[Hit]) -> Vectors:
        return self.memory.vectors_of([hit.passage for hit in hits], scope=self.scope).vectors


def _conversation(known: str, text: str, metadata: Mapping[str, Any]) -> Conversation:
    kept: dict[str, Any] = {"metadata": dict(metadata)}
    title = metadata.get("title")
    if not text.strip():
        kept["text"] = text
    try:
        turn = Turn("tool", text if text.strip() else NOTHING)
        return Conversation(
            _PREFIX + known,
            [turn],
            # Given, so that that of a document in whose place it is put does not stay.
            title=title if isinstance(title, str) and title.strip() else generated.title([turn], None),
            type=TYPE,
            # Given, so that no language model is asked for one.
            summary=text[:_SUMMARY].strip() or NOTHING,
            metadata=kept,
        )
    except InputError as error:
        raise InputError(f"document {known!r}: {error}") from None


def _instead(document: Conversation, stored: Conversation | None) -> Conversation:
    """Return what is to be stored in the place of what is."""
    if stored is not None and stored.type != TYPE:
        raise InputError(
            f"document {str(document.conversation_id).removeprefix(_PREFIX)!r}: a conversation has the id "
            f"{stored.conversation_id!r}; forget it, or give another"
        )
    return document


def _holds(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    known = metadata["metadata"]
    return all(key in known and known[key] == value for key, value in wanted.items())
