"""LatentMemory: the facade. `add`, `recall`, `context`, `forget`, `save`, and what one wants to know of a memory.

More than 500 lines, half of them docstrings: whoever uses the library reads this one class.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from latent_memory import adapters as trained
from latent_memory import block_files, embedders, tuning
from latent_memory import context as contexts
from latent_memory.database import exists
from latent_memory.dense import EXACT_LIMIT
from latent_memory.embedders import Embedder
from latent_memory.errors import EmbedderMismatchError, InputError, StoreError
from latent_memory.feed import Feed
from latent_memory.files import size_of
from latent_memory.formats import STORE, SUMMARY_SUFFIXES, layout_of
from latent_memory.late import Codes, TokenVectors
from latent_memory.passages import count_words
from latent_memory.query import Filters, Query, check_scope, checked_texts, filters_of, period, query_text, turns_of
from latent_memory.query import reference as reference_of
from latent_memory.ranking import Weights
from latent_memory.records import (
    UNKNOWN,
    AddReport,
    Context,
    Conversation,
    ConversationInfo,
    Hit,
    Passage,
    Stats,
    check_text,
)
from latent_memory.scope_index import Found, ScopeIndex
from latent_memory.store import Store, mismatch
from latent_memory.summarisers import summariser_by_name
from latent_memory.times import epoch
from latent_memory.when import When, at_event
from latent_memory.when import told as told_time

if TYPE_CHECKING:
    from latent_memory import checking, ingest
    from latent_memory.portable import Home
    from latent_memory.rerankers import Reranker

DEFAULT_SCOPE = "default"


class LatentMemory:
    """A conversation memory in a directory. Use `LatentMemory.open`.

    Safe to use from several threads, and several processes may have the same directory open: what one has
    added, the next `recall` of another finds.

    Attributes:
        weights: how much each signal counts in a hit's score; what `tune` has kept, else the defaults.
        reranker: looks at the first hits of every recall again; None for no reranker.
    """

    def __init__(
        self, store: Store, embedder: Embedder | None = None, summariser: ingest.Summariser | None = None
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._tuned = tuning.read(store.tuned_weights(), store.directory)
        self.weights = self._tuned or Weights()
        self.reranker: Reranker | None = None
        self._rerankers: dict[str, Reranker] = {}
        self._summariser = summariser
        self._indexes: dict[int, ScopeIndex] = {}
        self._written: set[int] = set()
        self._home: Home | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        embedder: str | Embedder | None = None,
        summariser: str | ingest.Summariser | None = None,
        reranker: str | Reranker | None = None,
        create: bool = True,
        format: str | None = None,
        autosave: bool = True,
        on_bad: Callable[[InputError], None] | None = None,
    ) -> Self:
        """Open a memory: a store in a directory, or a file of one of the four layouts (docs/formats.md).

        A file is written back after each change and on closing, as a whole or not at all; one process at a time may
        have it open.

        Args:
            path: the directory or the file.
            embedder: a name (see `embedders.load`) or an object with `name`, `dimension` and `embed`. By default the
                one that the memory was made with; for a new memory all-MiniLM-L6-v2.
            summariser: makes the summaries that conversations lack: any callable that takes a Conversation, or
                "openai:MODEL". By default sentences are extracted.
            reranker: looks at the first hits of every recall again: a name (see `rerankers.load`) or an object with
                `name` and `score`. By default there is none.
            create: make the memory if it is not there; otherwise that is an error.
            format: what to make where the path does not say it: "sqlite" (a store, the default), "csv_json",
                "npy_json", "hdf5" or "pickle".
            autosave: write a file back after each change; otherwise on `save()` and on closing only.
            on_bad: called with the error of each row of a file that cannot be used, which is then left out; the file
                is not written back then. Without it such a row is an error.

        Raises:
            InputError: for a name that is unknown, or a file that cannot be used; nothing was made.
            StoreError: if the path cannot hold a memory, or holds one that cannot be read.
            StoreBusyError: if another process has the file open.
            EmbedderMismatchError: if the memory was made with another embedder.
        """
        path = Path(path).expanduser()
        try:
            layout = layout_of(path, format)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise StoreError(f"cannot look into {str(path)[:80]}: {error.args[-1]}") from None
        if isinstance(embedder, str):
            embedder = embedders.load(embedder)
        if isinstance(summariser, str):
            summariser = summariser_by_name(summariser)
        home: Home | None = None
        there = exists(path) if layout == STORE else path.exists()
        if not create and not there:
            raise StoreError(f"no memory at {path}; add conversations to it first, or name another with --store")
        if layout == STORE:
            store = Store(path)
        else:
            from latent_memory.portable import Home

            home = Home(path, layout, autosave=autosave, on_bad=on_bad)
            store = home.store
        memory = cls(store, embedder, summariser)
        memory._home = home
        try:
            memory.reranker = memory._reranker(reranker)
            known = store.embedder()
            if embedder is not None and known is not None and known.name != embedder.name:
                memory._adopt(embedder)
        except BaseException:
            memory.close()
            raise
        return memory

    @property
    def path(self) -> Path:
        """The directory or file that it lives in."""
        return self._path

    @property
    def in_file(self) -> bool:
        """Whether the memory lives in a file of one of the layouts, instead of a store."""
        return self._home is not None

    @property
    def block_directory(self) -> Path:
        """Where keys and values of its conversations belong (inference.kv_cache), so that `forget` removes them."""
        return self._store.directory / block_files.NAME

    @property
    def embedder(self) -> Embedder:
        """What turns texts into vectors; unless one was given, the memory's own, looked up when it is first needed."""
        if self._embedder is None:
            known = self._store.embedder()
            if known is not None and known.name == UNKNOWN:
                default = embedders.load(embedders.DEFAULT)
                self._adopt(default)
                return default
            kind = known.name.partition(":")[0] if known else ""
            if self._home is not None and known is not None and kind in embedders.FROM_OUTSIDE:
                # A file may be anybody's.
                raise EmbedderMismatchError(
                    f"{self._path}: its vectors were made with {known.name[:80]!r}, which is not used because a file "
                    "says so: it may send texts to a server, or load a model. If you trust it, name it: --embedder, "
                    "or LatentMemory.open(path, embedder=...)"
                )
            try:
                self._embedder = embedders.load(known.name if known else embedders.DEFAULT)
            except InputError:
                raise EmbedderMismatchError(
                    f"the memory at {self._path} was made with an embedder of your own, "
                    f"{known and known.name!r}; hand it in: LatentMemory.open(path, embedder=...)"
                ) from None
        return self._embedder

    @embedder.setter
    def embedder(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def warm(self) -> None:
        """Start loading the embedder's model in the background, if it has one, so that the first recall waits less."""
        getattr(self.embedder, "warm", lambda: None)()

    def close(self) -> None:
        """Write what the indexes still hold in memory, or the file that the memory lives in, and close it.

        What was added to a store is safe either way.
        """
        try:
            for scope_id in self._written if self._home is None else ():
                self._index(scope_id).commit(at_least=_WORTH_A_COMMIT)
        finally:
            self._written.clear()
            self._indexes.clear()
            if self._home is None:
                self._store.close()
            else:
                self._home.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the verbs ----------------------------------------------------------------------------------------

    def add(
        self,
        conversations: Conversation | Iterable[Conversation],
        scope: str = DEFAULT_SCOPE,
        *,
        progress: ingest.Progress | None = None,
    ) -> AddReport:
        """Add conversations to a scope; adding one again adds what is new in it.

        Turns are compared with what is stored by their place in the conversation: unchanged ones cost nothing,
        new ones are appended, changed ones replace the old. Turns that are stored and not handed in stay.

        Args:
            conversations: one, or any iterable; a long one is taken in batches of bounded size.
            scope: the wall they live behind.
            progress: called with the report so far, after each batch is on disk. In a memory that lives in a file,
                a batch is in the file when `add` returns, and every 10,000 turns.

        Returns:
            What was added, changed and unchanged. When this returns, it is on disk.

        Raises:
            InputError: if something handed in cannot be used.
            EmbedderMismatchError: if the memory's vectors are another embedder's.
            StoreFullError, StoreBusyError: the disk is full, or another process has written for a minute.

        Whatever is raised, also by the iterable: the batch at hand is not kept, and those before it are.
        """
        # Here and not above: a process that only recalls need not wait for it.
        from latent_memory import ingest

        check_scope(scope)
        if isinstance(conversations, Conversation):
            conversations = [conversations]
        pending = 0
        bulk = _BULK
        if self._home is not None:
            self._home.check_change()
            bulk = max(bulk, self._home.worth_writing)

        def done(report: AddReport) -> None:
            nonlocal pending
            total = report.turns_added + report.turns_changed
            scope_id = self._store.scope_id(scope)
            if scope_id is not None and total:
                self._written.add(scope_id)
                if total - pending >= bulk:
                    # So that what waits in memory for an index stays bounded, however many come.
                    self._index(scope_id).commit()
                    pending = total
                    self._changed()
            if progress is not None:
                progress(report)

        before = self._store.database.changes()
        try:
            return ingest.add(
                self._store, self.embedder, conversations, scope, summariser=self._summariser, progress=done
            )
        finally:
            # Also what could not be written the last time: who calls again after an error must find it on disk.
            if self._store.database.changes() != before or (self._home is not None and self._home.behind):
                self._changed()

    def extend(
        self,
        conversation_id: str,
        follow: Callable[[Conversation | None], Conversation | None],
        scope: str = DEFAULT_SCOPE,
        *,
        whole: bool = False,
    ) -> AddReport:
        """Add to a conversation what follows from what is stored of it; nothing is lost if others add to it as well.

        Between reading it and writing it, nobody else's turns can come in: if they do, `follow` is called again.

        Args:
            conversation_id: the conversation's; it need not exist.
            follow: takes the conversation as it is stored, None if it is not, and returns it as it is to be, or None
                if there is nothing to add. It must do nothing else.
            scope: the wall it lives behind.
            whole: what `follow` returns is the whole conversation: turns that it leaves out at the end are removed,
                as `forget` removes them.

        Returns:
            What was added, on disk; see `add`, also for what is raised.
        """
        from latent_memory import ingest

        check_scope(scope)
        check_text(conversation_id, "conversation_id")
        if not conversation_id.strip():
            raise InputError("conversation_id: empty; a conversation that grows needs one")
        if self._home is not None:
            self._home.check_change()
        before = self._store.database.changes()
        try:
            report = ingest.extend(
                self._store, self.embedder, conversation_id, follow, scope, whole=whole, summariser=self._summariser
            )
            scope_id = self._store.scope_id(scope)
            if scope_id is not None and report.turns_added + report.turns_changed:
                self._written.add(scope_id)
            if whole and scope_id is not None and report.changed:
                self._store.database.empty_log()
                self._index(scope_id).commit_deletions()
                block_files.drop(self.block_directory, scope, [conversation_id])
            return report
        finally:
            if self._store.database.changes() != before or (self._home is not None and self._home.behind):
                self._changed()

    def recall(
        self,
        query: Query,
        k: int = 10,
        *,
        scope: str = DEFAULT_SCOPE,
        since: datetime | str | float | None = None,
        until: datetime | str | float | None = None,
        roles: str | Iterable[str] | None = None,
        conversation_ids: str | Iterable[str] | None = None,
        during: str | None = None,
        now: datetime | str | float | None = None,
        rerank: str | Reranker | None = None,
        rerank_among: int = 50,
    ) -> list[Hit]:
        """Find the turns that matter to a question or to a live conversation.

        Args:
            query: a text, or the live messages (turns, or mappings with "role" and "content"), of which the
                last one the user said is asked.
            k: how many turns at most.
            scope: only its turns are looked at.
            since, until: only turns said in this time (until is exclusive); those without a time of their own
                count with their conversation's.
            roles, conversation_ids: only turns of these.
            during: only turns said in this time, in words: "last March", "the week of 8 May 2023". A time that the
                query itself tells is preferred, and no more.
            now: what "last March" is counted from; by default the last live message's time, else the present.
            rerank: a reranker, or the name of one (see `rerankers.load`), for this recall instead of `self.reranker`.
            rerank_among: how many of the first hits it looks at.

        Returns:
            Hits, best first, each of another turn.

        Raises:
            InputError: for an empty query, a `k` below 1, a filter that is none, or an unknown reranker.
            EmbedderMismatchError: if the memory's vectors are another embedder's.
            RerankerError: if the reranker cannot be used, or what it returns are no scores.
        """
        check_scope(scope)
        text = query_text(query)
        if not isinstance(k, int) or k < 1:
            raise InputError(f"k: {k!r} is not a number of turns; give 1 or more")
        reference = reference_of(now, query)
        filters = filters_of(since, until, roles, conversation_ids, period(during, reference))
        if not isinstance(rerank_among, int) or rerank_among < 1:
            raise InputError(f"rerank_among: {rerank_among!r} is not a number of hits; give 1 or more")
        reranker = self.reranker if rerank is None else self._reranker(rerank)
        scope_id = self._store.scope_id(scope)
        if scope_id is None:
            return []
        index = self._index(scope_id)
        if not index.loaded:
            # The first time, the model is loaded while the indexes are read.
            self.warm()
            index.refresh()
        wanted = k if reranker is None else max(k, rerank_among)
        search = partial(self._search, index, filters=filters)
        when = told_time(text, reference) if self.weights.time else None
        if when is not None and when.event:
            # "Before we moved": when that was, the memory itself knows best.
            event = self._store.passages(scope_id, [item.passage_id for item in search(when.event, 1)])
            times = [epoch(passage.timestamp) for passage in event.values()]
            # Of the rest, so that the move itself does not come before all that it is to date.
            text = when.rest if count_words(when.rest) > 1 else text
            when = at_event(when, times[0]) if times else None
        found = search(text, wanted, when=when)
        passages = self._store.passages(scope_id, [item.passage_id for item in found])
        # Another process may have forgotten one in between.
        hits = [
            Hit(passages[item.passage_id], item.score, item.signals) for item in found if item.passage_id in passages
        ]
        if reranker is None:
            return hits
        from latent_memory.rerankers import reordered

        return reordered(reranker, text, hits, partial(self._before, scope_id), rerank_among)[:k]

    def _search(
        self, index: ScopeIndex, text: str, count: int, *, filters: Filters, when: When | None = None
    ) -> list[Found]:
        vectors, codes = embedders.embedded(self.embedder, [text], query=True)
        made_by = embedders.identity(self.embedder)
        tokens = codes[0] if codes else None
        return index.search(vectors[0], made_by, text, count, filters, self.weights, tokens, when)

    def context(
        self,
        query: Query,
        budget: int = 1024,
        *,
        scope: str = DEFAULT_SCOPE,
        tokenizer: contexts.Tokenizer | None = None,
        since: datetime | str | float | None = None,
        until: datetime | str | float | None = None,
        roles: str | Iterable[str] | None = None,
        conversation_ids: str | Iterable[str] | None = None,
        during: str | None = None,
        now: datetime | str | float | None = None,
    ) -> Context:
        """Recall, and write what fits into a budget as a block for a prompt.

        Args:
            query: as in `recall`; what the live messages say anyway is left out.
            budget: the most tokens that the block may have.
            tokenizer: of the model that will read it: a callable that counts a text's tokens, or an object
                with `encode(text)`. Without it, tokens are estimated on the safe side.
            scope, since, until, roles, conversation_ids, during, now: as in `recall`.

        Returns:
            A Context; its `text` is empty if nothing was found or nothing fits.
        """
        if not isinstance(budget, int) or budget < 1:
            raise InputError(f"budget: {budget!r} is not a number of tokens; give 1 or more")
        # A chat turn has 20 to 40 tokens: enough turns to fill the budget, and some to choose from.
        k = min(400, max(20, budget // 15))
        hits = self.recall(
            query,
            k,
            scope=scope,
            since=since,
            until=until,
            roles=roles,
            conversation_ids=conversation_ids,
            during=during,
            now=now,
        )
        live = [] if isinstance(query, str) else [turn.text for turn in turns_of(query)]
        scope_id = self._store.scope_id(scope)

        def turns(passage: Passage, first: int, last: int) -> list[Passage]:
            return self._store.turn_passages(scope_id or 0, passage.conversation_id, first, last)

        return contexts.build(
            hits,
            budget,
            contexts.counter(tokenizer),
            live=live,
            before=lambda passage: turns(passage, (passage.turn or 0) - 1, (passage.turn or 0) - 1),
            title=lambda passage: contexts.telling_title(passage.title, turns(passage, 0, contexts.OPENING_TURNS - 1)),
        )

    def forget(
        self,
        conversation_id: str | Iterable[str] | None = None,
        *,
        scope: str = DEFAULT_SCOPE,
        everything: bool = False,
        check: Callable[[], None] | None = None,
    ) -> int:
        """Remove conversations with all that was kept of them; at once, here and in every other process.

        Not from adapters that were trained on them: see `stale_adapters`.

        Args:
            conversation_id: one or several.
            everything: remove the whole scope; then no id is given.
            check: called when nobody else can write any more; if it raises, nothing is removed. It may read.

        Returns:
            How many conversations were there and are gone.

        Raises:
            StoreError: also if stored keys and values cannot be deleted; all else is gone then.
        """
        check_scope(scope)
        if (conversation_id is None) != everything:
            raise InputError("forget: give either a conversation_id, or everything=True for the whole scope")
        ids = None if conversation_id is None else checked_texts(conversation_id, "conversation_id")
        if self._home is not None:
            self._home.check_change()
        scope_id = self._store.scope_id(scope)
        gone = 0 if scope_id is None else self._store.forget(scope_id, ids, check)
        if gone and scope_id is not None:
            index = self._index(scope_id)
            if self._store.scope_id(scope) != scope_id:
                index.discard()
                self._indexes.pop(scope_id, None)
            else:
                index.commit_deletions()
            self._changed()
        # Last, since it may fail. Also of what was not there: a killed process may have left a block behind.
        block_files.drop(self.block_directory, scope, ids)
        return gone

    # -- what one wants to know ---------------------------------------------------------------------------

    def get(self, conversation_id: str, *, scope: str = DEFAULT_SCOPE) -> Conversation | None:
        """Return a whole conversation, word for word, or None."""
        check_scope(scope)
        check_text(conversation_id, "conversation_id")
        scope_id = self._store.scope_id(scope)
        return None if scope_id is None else self._store.get(scope_id, conversation_id)

    def neighbours(
        self, conversation_id: str, turn: int, *, before: int = 1, after: int = 1, scope: str = DEFAULT_SCOPE
    ) -> list[Passage]:
        """Return what was said around a turn: up to `before` turns before and `after` after it, in order."""
        if before < 0 or after < 0:
            raise InputError("neighbours: before and after are numbers of turns; give 0 or more")
        check_scope(scope)
        check_text(conversation_id, "conversation_id")
        scope_id = self._store.scope_id(scope)
        if scope_id is None:
            return []
        around = self._store.turn_passages(scope_id, conversation_id, turn - before, turn + after)
        return [passage for passage in around if passage.turn != turn]

    def conversations(self, *, scope: str = DEFAULT_SCOPE, limit: int = 50, offset: int = 0) -> list[ConversationInfo]:
        """Return a page of a scope's conversations, newest first."""
        if limit < 0 or offset < 0:
            raise InputError("conversations: limit and offset are numbers; give 0 or more")
        check_scope(scope)
        scope_id = self._store.scope_id(scope)
        return [] if scope_id is None else self._store.conversations(scope_id, limit, offset)

    def page(
        self, *, scope: str = DEFAULT_SCOPE, limit: int = 50, after: tuple[datetime, str] | None = None
    ) -> list[ConversationInfo]:
        """Return the conversations that follow one, newest first, those of one time by id.

        What is added or forgotten meanwhile moves no page, as it does with `offset`.

        Args:
            scope: the wall they live behind.
            limit: how many at most.
            after: the time and the id of the last one of the page before.
        """
        if limit < 0:
            raise InputError("page: limit is a number; give 0 or more")
        check_scope(scope)
        if after is not None:
            check_text(after[1], "after")
        scope_id = self._store.scope_id(scope)
        begin = None if after is None else (epoch(after[0]), after[1])
        return [] if scope_id is None else self._store.page(scope_id, limit, begin)

    def scopes(self) -> dict[str, int]:
        """Return the number of conversations by scope."""
        return self._store.scopes()

    def conversation_ids(self, *, scope: str = DEFAULT_SCOPE, prefix: str = "") -> list[str]:
        """Return the ids of all of a scope's conversations, newest first; with a prefix, of those that begin so."""
        check_scope(scope)
        check_text(prefix, "prefix")
        scope_id = self._store.scope_id(scope)
        return [] if scope_id is None else self._store.conversation_ids(scope_id, prefix)

    def missing(self, conversation_ids: Iterable[str], *, scope: str = DEFAULT_SCOPE) -> list[str]:
        """Return those of some ids, each once, of which there is no conversation."""
        check_scope(scope)
        ids = list(dict.fromkeys(checked_texts(conversation_ids, "conversation_ids")))
        scope_id = self._store.scope_id(scope)
        known = set() if scope_id is None else self._store.known(scope_id, ids)
        return [each for each in ids if each not in known]

    def headings(self, *, scope: str = DEFAULT_SCOPE, prefix: str = "", limit: int | None = None) -> list[Conversation]:
        """Return a scope's conversations as `get` does but without their turns, in the order of their ids.

        Args:
            scope: the wall they live behind.
            prefix: only those whose ids begin so.
            limit: how many at most.
        """
        if limit is not None and limit < 0:
            raise InputError("headings: limit is a number; give 0 or more")
        check_scope(scope)
        check_text(prefix, "prefix")
        scope_id = self._store.scope_id(scope)
        return [] if scope_id is None else self._store.headings(scope_id, prefix, limit)

    def whole(self, *, scope: str = DEFAULT_SCOPE) -> Iterator[Conversation]:
        """Yield a scope's conversations with all their turns, oldest first."""
        # Their ids first: what is added or forgotten meanwhile moves no page.
        for conversation_id in reversed(self.conversation_ids(scope=scope)):
            found = self.get(conversation_id, scope=scope)
            if found is not None:
                yield found

    def vectors_of(self, passages: Sequence[Passage], *, scope: str = DEFAULT_SCOPE) -> TokenVectors:
        """Return what is stored of passages beside their text: their vectors, and the codes of their tokens.

        Args:
            passages: as `recall` and `context` return them.
            scope: that they are of.

        Returns:
            A row for each; codes of no tokens where the embedder makes none.

        Raises:
            InputError: if one is not there any more.
        """
        check_scope(scope)
        ids = self._store.passage_ids(self._store.scope_id(scope) or 0, passages)
        gone = next((p for p, i in zip(passages, ids, strict=True) if i is None), None)
        if gone is not None:
            raise InputError(
                f"conversation {gone.conversation_id!r} has no passage at turn {gone.turn} any more; it was changed or "
                "forgotten since it was recalled. Recall again"
            )
        feed = Feed(self._store.database)
        codes = feed.codes(i for i in ids if i is not None)
        none: Codes = np.zeros((0, 1), np.int8)
        return TokenVectors(
            feed.vectors(np.array(ids, np.int64), embedders.identity(self.embedder).dimension).copy(),
            [codes.get(i or 0, none) for i in ids],
        )

    # -- adapters that were trained on it -----------------------------------------------------------------

    def adapter_directory(self, name: str) -> Path:
        """Return where an adapter of a name belongs, in the store's own directory.

        Raises:
            InputError: for a name that is none of a directory, and for a memory that lives in a file.
        """
        if self._home is not None:
            raise InputError(
                f"{self._path}: a memory in this format has no room for adapters; say where it goes (--out DIRECTORY)"
            )
        return trained.home(self._store.directory, name)

    def note_adapter(self, directory: str | Path) -> bool:
        """Remember that an adapter is trained on this memory, so that `adapters` finds it wherever it is.

        Returns:
            Whether it is remembered. It is not if the memory lives in a file, which has no room for that.
        """
        if self._home is not None:
            return False
        trained.register(self._store.directory, Path(directory).expanduser())
        return True

    def adapters(self) -> list[trained.AdapterInfo]:
        """Return the adapters that were trained on this memory, with what they have seen and it no longer holds."""
        if self._home is not None:
            return []
        return [trained.told(path, self._stored) for path in trained.find(self._store.directory)]

    def stale_adapters(self) -> list[trained.AdapterInfo]:
        """Return the adapters that have seen turns which are forgotten, or changed since.

        Forgetting cannot reach into trained weights: these are to be trained anew, or deleted.
        """
        return [info for info in self.adapters() if info.stale]

    def _stored(self, scope: str, conversation_id: str) -> Conversation | None:
        scope_id = self._store.scope_id(scope)
        return None if scope_id is None else self._store.get(scope_id, conversation_id)

    def stats(self, *, scope: str | None = None) -> Stats:
        """Return how much the memory holds: one scope, or all of it."""
        if scope is not None:
            check_scope(scope)
        conversations, turns, passages, first, last = self._store.counts(scope)
        known = self._store.embedder()
        return Stats(
            scopes=len(self.scopes()) if scope is None else int(conversations > 0),
            conversations=conversations,
            turns=turns,
            passages=passages,
            first=first,
            last=last,
            embedder=known.name if known else self.embedder.name,
            dimension=known.dimension if known else self.embedder.dimension,
            bytes=size_of(self._home.real if self._home is not None else self._path),
        )

    def check(
        self, *, scope: str | None = None, progress: Callable[[int, int], None] | None = None
    ) -> checking.CheckReport:
        """Look whether everything is as it was written; nothing is changed.

        Args:
            scope: look at this one alone, and not at what all scopes share: the database file, permissions, keys.
            progress: called with how many rows were looked at, and how many there are.

        Returns:
            What is wrong and what to do about each, and whether the memory is sound. 100,000 passages take about two
            seconds.
        """
        from latent_memory import checking

        if scope is not None:
            check_scope(scope)
        file = None if self._home is None else self._home.real
        return checking.check(
            self._store, scope, file=file, notes=self.notes, adapters=self.adapters, progress=progress
        )

    def reembed(self, embedder: str | Embedder, *, progress: Callable[[int, int], None] | None = None) -> int:
        """Make all vectors again with another embedder, and switch over at once when all are made.

        May be interrupted and called again: what was made is kept. Until the switch every process goes on
        with the old vectors; after it they have to be opened anew.

        Args:
            embedder: a name or an object.
            progress: called with how many passages are done, and how many there are.

        Returns:
            How many passages have new vectors.
        """
        from latent_memory import ingest

        if self._home is not None:
            self._home.check_change()
        new = embedders.load(embedder) if isinstance(embedder, str) else embedder
        count = ingest.reembed(self._store, new, progress)
        self.embedder = new
        self._indexes.clear()
        shutil.rmtree(self._store.directory / "indexes", ignore_errors=True)
        self._changed()
        return count

    @property
    def tuned(self) -> bool:
        """Whether weights that `tune` has kept are in use."""
        return self._tuned is not None and self.weights == self._tuned

    def tune(
        self,
        questions: Iterable[Mapping[str, Any]] | None = None,
        *,
        scope: str = DEFAULT_SCOPE,
        seconds: float = 120,
        progress: Callable[[int], None] | None = None,
    ) -> tuning.TuneReport:
        """Fit the weights to this memory, and keep them if questions that were held out are answered better.

        Kept weights are in use at once, and at every later opening of this store. No language model takes part, and
        nothing is sent anywhere, unless the embedder does so with a question.

        Args:
            questions: mappings with "question", "evidence" (a list of [conversation_id, turn]) and perhaps "scope".
                By default what was asked in the memory's conversations, in all its scopes, and answered in the next
                turn; these turns are taken out of the copy of the memory that is searched.
            scope: of the questions that name none.
            seconds: how long the search may go on; making ready comes on top.
            progress: called with how many sets of weights were tried.

        Returns:
            What was found, and whether it was kept. With fewer than 48 questions nothing is tried.

        Raises:
            InputError: for a question that cannot be used, and for a memory that lives in a file, or is too large to
                be copied.
        """
        if self._home is not None:
            raise InputError(
                f"{self._path}: tuned weights are kept in a store, not in a file; make one with: latent-memory convert"
            )
        check_scope(scope)
        if not isinstance(seconds, int | float) or not seconds > 0:
            raise InputError(f"seconds: {seconds!r} is no time; give more than 0")
        from latent_memory import trial

        embedder = tuning.remembering(self.embedder)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            if questions is not None:
                source, place = "questions", self._store.directory
                asked = tuning.given(questions, scope, partial(trial.has, self._store))
            else:
                source, place = "asked in the memory", Path(temporary) / "memory"
                asked = tuning.found_in(trial.conversations(self._store))
                if len(asked) >= tuning.LEAST_PAIRS:
                    trial.copy_without(self._store, asked, place)
            # Its weights change all the time, and those of this memory must not.
            with type(self).open(place, embedder=embedder) as searched:

                def rank(pair: tuning.Asked, weights: Weights) -> list[tuple[str, int]]:
                    searched.weights = weights
                    hits = [hit.passage for hit in searched.recall(pair.text, tuning.DEPTH, scope=pair.scope)]
                    return [(passage.conversation_id, -1 if passage.turn is None else passage.turn) for passage in hits]

                report = tuning.fit(asked, rank, self.weights, source=source, seconds=seconds, progress=progress)
        if report.kept:
            weights = Weights(**report.after)
            self._store.keep_tuned_weights(tuning.written(weights))
            self._tuned = self.weights = weights
        return report

    def reset_tuning(self) -> bool:
        """Go back to the default weights, now and at every later opening; tell whether there were others."""
        had = self._store.tuned_weights() is not None
        if had:
            self._store.keep_tuned_weights(None)
        self._tuned = None
        self.weights = Weights()
        return had

    def save(
        self,
        path: str | Path | None = None,
        format: str | None = None,
        *,
        scope: str = DEFAULT_SCOPE,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write the memory to a file of one of the four layouts, or to a new store; a copy of all its scopes.

        Without a path: write back the file that it lives in, if it lives in one (a store is always saved).

        Args:
            path: the file or directory; what is there of the same layout is replaced, as a whole or not at all. One
                that ends in .json, .yaml, .db or .sqlite gets the conversations' summaries alone (docs/summaries.md).
            format: "csv_json", "npy_json", "hdf5", "pickle" or "sqlite" (a store), where the suffix does not say it.
            scope: whose summaries, if these are what is written.
            progress: called with how many of what is counted are written.

        Returns:
            How many passages were written; if only summaries, how many conversations.

        Raises:
            InputError: if neither says what to write, something else is there, or the memory lives there in another
                format.
            StoreBusyError: if another process has the file open.
            StoreFullError: if the disk is full; what was there is as it was.
        """
        from latent_memory.portable import export, export_summaries

        here = self._home.real if self._home is not None else self._store.directory.resolve()
        path = None if path is None else Path(path).expanduser()
        if path is None or path.resolve() == here:
            layout = self._home.layout if self._home is not None else STORE
            if format not in (None, layout):
                raise InputError(f"{path}: the memory itself lives there, as {layout}; name another place")
            if self._home is not None:
                self._home.save()
            return self._store.counts(None)[2]
        if format is None and path.suffix.lower() in SUMMARY_SUFFIXES and not path.is_dir():
            return export_summaries(self._store, path, scope, progress)
        return export(self._store, path, format, progress)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the file that the memory was read from."""
        return tuple(self._home.notes) if self._home is not None else ()

    def _changed(self) -> None:
        if self._home is not None:
            self._home.changed()

    def _adopt(self, embedder: Embedder) -> None:
        """Take an embedder for the one that made vectors which do not say what made them, if it was.

        Raises:
            EmbedderMismatchError: if it was not.
        """
        known = self._store.embedder()
        if known is not None and known.name != UNKNOWN:
            raise EmbedderMismatchError(mismatch(self._path, known, embedder.name))
        from latent_memory.portable import adopt

        adopt(self._store, embedder, self._path)
        self._embedder = embedder

    @property
    def _path(self) -> Path:
        return self._home.path if self._home is not None else self._store.directory

    def _reranker(self, given: str | Reranker | None) -> Reranker | None:
        if not isinstance(given, str):
            return given
        if given not in self._rerankers:
            from latent_memory import rerankers

            self._rerankers[given] = rerankers.load(given)
        return self._rerankers[given]

    def _before(self, scope_id: int, passage: Passage) -> list[Passage]:
        place = (passage.turn or 0) - 1
        return self._store.turn_passages(scope_id, passage.conversation_id, place, place)

    def _index(self, scope_id: int) -> ScopeIndex:
        index = self._indexes.get(scope_id)
        if index is None:
            # Of a file, an index would be made at each opening, and costs more than all the searches it makes faster.
            limit = EXACT_LIMIT if self._home is None else _EXACT_IN_A_FILE
            index = self._indexes.setdefault(scope_id, ScopeIndex(Feed(self._store.database), scope_id, limit))
        return index


# A bulk add brings its indexes up to date every so many turns.
_BULK = 10_000
# A search looks at so many vectors in about 0.1 s.
_EXACT_IN_A_FILE = 1_000_000
# On closing, fewer documents than this are left to be read from the store next time: that is faster.
_WORTH_A_COMMIT = 200
