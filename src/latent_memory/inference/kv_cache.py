"""Memory as keys and values: computed once, stored, and put before the question, which alone is read.

Two ways:

- `PrefixCache`: a whole prompt up to its memory, at its own positions. Exact: logits are those of reading it all.
- `BlockCache`: one block for each stretch of conversation, computed behind a common beginning (the head), stored with
  its positions turned back. What was recalled is picked out of its blocks, and its keys are turned to where they now
  stand. What blocks do not know is each other; docs/in-the-model.md measures what that costs, and what else does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_memory import block_files, files
from latent_memory.errors import DerivedError, InputError, LatentMemoryError, StoreError
from latent_memory.inference import block_store, prompt
from latent_memory.inference.block_store import Block
from latent_memory.inference.extra import in_memory, needed
from latent_memory.inference.local_model import LocalModel, Messages, Prefilled
from latent_memory.inference.recompute import recomputed
from latent_memory.inference.rotary import Rotary, cache_of, stacked
from latent_memory.inference.stretches import STRETCH_TOKENS, Place, Stretch, place_of, stretches_of
from latent_memory.records import Context, Conversation

if TYPE_CHECKING:
    import torch

# Block files: 8 bits lose nothing that can be measured, 4 bits little (docs/in-the-model.md).
BITS = 8
# Kept in memory: heads (of system messages), and conversations that are cut into stretches.
_HEADS, _CONVERSATIONS = 8, 64

Conversations = Callable[[str], Conversation | None]


def check_unadapted(model: LocalModel) -> None:
    """Refuse a model with an adapter on: what it computes is not what the model itself would.

    Raises:
        InputError: if one is on.
    """
    if model.adapted:
        raise InputError("an adapter of the model is on; switch it off before stored keys and values are used")


class PrefixCache:
    """Whole prompts up to the end of their memory, stored as they were computed.

    For memory that stands in every prompt: a profile, pinned conversations, a context that is asked about again.

    Args:
        model: the model.
        directory: where they are stored, a store's `blocks`.
        scope: whose memory it is.
        limit: the most bytes that the directory may take; by default what was kept for it
            (`block_files.keep_limit`).
        conversation: returns a stored conversation by its id, or None; `LatentMemory.get`. With it, nothing is stored
            of a conversation that is forgotten while its context is read.
    """

    def __init__(
        self,
        model: LocalModel,
        directory: str | Path,
        *,
        scope: str = "default",
        limit: int | None = None,
        conversation: Conversations | None = None,
    ) -> None:
        self._model = model
        self._directory = Path(directory)
        self._scope = scope
        self._limit = block_files.limit_of(self._directory) if limit is None else limit
        self._conversation = conversation

    def read(self, context: Context, question: str | Messages) -> Prefilled:
        """Return the model after a context, loaded or read, and a question, read.

        One that is damaged is read, and stored again.

        Raises:
            InputError: if it is longer than the model's window, or an adapter is on.
            ModelError: if the model's cache cannot be stored.
        """
        if not context:
            return self._model.prefill(prompt.tokens(self._model, question))
        layout = prompt.layout(self._model, question)
        tokens = layout.head + self._model.encode(prompt.body(context))
        self._model.check_window(len(tokens) + len(layout.tail))
        try:
            block = self.load(tokens)
        except DerivedError:
            block = None
        read = 0
        if block is None:
            block = self.keep(tokens)
            read = len(tokens)
            get = self._conversation
            if get is not None and any(get(p.conversation_id) is None for p in context.passages):
                # Forgotten meanwhile.
                self.path(tokens).unlink(missing_ok=True)
        made = self._model.prefill(layout.tail, self.cache(block), len(tokens))
        return made._replace(read=made.read + read)

    def path(self, tokens: Sequence[int]) -> Path:
        """Return where the keys and values of these tokens are stored, if they are."""
        name = block_files.digest(self._model.fingerprint, ",".join(map(str, tokens)))
        return block_files.prefixes(self._directory, self._scope) / f"{block_files.PREFIX}{name}{block_files.SUFFIX}"

    def keep(self, tokens: Sequence[int]) -> Block:
        """Read these tokens, and store their keys and values in full."""
        model = self._model
        check_unadapted(model)
        block = Block(*stacked(model.prefill(tokens).cache, model))
        # In the numbers they were computed in.
        bits = 8 * block.keys.element_size()
        with suppress(StoreError):
            # On a full disk, say; it is read again the next time.
            block_store.save(self.path(tokens), block, bits, {"model": model.fingerprint})
            block_files.evict(self._directory, self._limit)
        return block

    def load(self, tokens: Sequence[int]) -> Block | None:
        """Return what was stored of these tokens, or None.

        Raises:
            DerivedError: if it is damaged.
            InputError: if an adapter is on.
        """
        check_unadapted(self._model)
        path = self.path(tokens)
        try:
            block = block_store.load(path, {"model": self._model.fingerprint}, self._model.model.dtype)
        except FileNotFoundError:
            return None
        block_files.use(path)
        return block

    def cache(self, block: Block) -> Any:
        """Return a new cache with a copy of the block, for one answer."""
        return cache_of(block.keys.to(self._model.device), block.values.to(self._model.device))


class Background:
    """Prepares blocks in a thread of its own, while nobody waits for an answer.

    Args:
        blocks: whose blocks.
        conversation_ids: of which conversations, the most needed first.
    """

    def __init__(self, blocks: BlockCache, conversation_ids: Iterable[str]) -> None:
        self._free = threading.Event()
        self._free.set()
        self._ended = False
        #: What ended it too early, such as a full disk; other blocks are computed when they are needed.
        self.error: LatentMemoryError | None = None
        # A daemon: a block that is being computed is not worth waiting for at the end of the program.
        self._thread = threading.Thread(target=self._run, args=(blocks, list(conversation_ids)), daemon=True)
        self._thread.start()

    def _run(self, blocks: BlockCache, conversation_ids: list[str]) -> None:
        def go_on() -> bool:
            self._free.wait()
            return not self._ended

        try:
            blocks.prepare(conversation_ids, go_on=go_on)
        except LatentMemoryError as error:
            self.error = error

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it rest after the block that it is at, until the work inside is done."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def close(self) -> None:
        """End it, after the block that it is at."""
        self._ended = True
        self._free.set()
        self._thread.join()


class Joined(NamedTuple):
    """A memory put together from blocks.

    Attributes:
        keys, values: of the head and the memory, (layers, key-value heads, tokens, head dimension), the keys without
            positions.
        tokens: the same, as text reads them.
        head: how many of them are the head.
        computed: how many tokens had to be read for it, since their block was not stored.
    """

    keys: torch.Tensor
    values: torch.Tensor
    tokens: list[int]
    head: int
    computed: int


class BlockCache:
    """Blocks of a scope's conversations, stored, and joined for each question.

    Args:
        model: the model.
        directory: where blocks are stored, a store's `blocks`; nothing else should be in it.
        conversation: returns a stored conversation by its id, or None; `LatentMemory.get`.
        scope: whose conversations these are.
        bits: of each stored number: 4, 8, 16 or 32.
        limit: the most bytes that all blocks may take, the least recently used go first; by default what was kept for
            the directory (`block_files.keep_limit`), else 4 GB.
        size: of a stretch, in tokens.
        recompute: the share of the memory's tokens, 0 to 1, that are read anew behind all others (CacheBlend, Yao et
            al. 2025): those whose keys and values, by the first layers, change most.
        whole: put whole stretches in, instead of the recalled passages of them.
        nearest: put the most relevant stretch last; otherwise the oldest comes first.

    Raises:
        ModelError: if the model's keys cannot be moved; the message names the way that works.
    """

    def __init__(
        self,
        model: LocalModel,
        directory: str | Path,
        conversation: Conversations,
        *,
        scope: str = "default",
        bits: int = BITS,
        limit: int | None = None,
        size: int = STRETCH_TOKENS,
        recompute: float = 0.0,
        whole: bool = False,
        nearest: bool = True,
    ) -> None:
        if not 0 <= recompute <= 1:
            raise InputError(f"recompute: {recompute!r} is not a share; give a number from 0 to 1")
        if bits not in block_store.BITS:
            raise InputError(f"bits: {bits!r}; use one of {', '.join(map(str, block_store.BITS))}")
        self._model = model
        self._directory = Path(directory)
        self._conversation = conversation
        self._scope = scope
        self._bits = bits
        self._limit = block_files.limit_of(self._directory) if limit is None else limit
        self._size = size
        self.recompute = recompute
        self.whole = whole
        self.nearest = nearest
        self._rotary = Rotary(model)
        # The same for all blocks, whatever instruction an application gives: they are read behind this one.
        # And whatever the day: some templates tell it.
        self._head = prompt.layout(model, "?", dated=False).head
        self._heads: dict[tuple[int, ...], Block] = {}
        self._stretches: dict[str, tuple[Conversation, list[Stretch]]] = {}
        self._computing = threading.Lock()
        #: How many files were damaged, and have been computed again.
        self.damaged = 0
        #: Whether `prepare` has ended since there was no room for more.
        self.full = False

    # -- answering ----------------------------------------------------------------------------------------

    def read(self, context: Context, question: str | Messages) -> Prefilled:
        """Return the model after a context from its blocks and a question, which is read.

        Blocks that are not stored are computed, and stored.

        Raises:
            InputError: if it is longer than the model's window, or an adapter is on.
            DerivedError: if the memory does not hold what the context shows (any more).
            ModelMemoryError: if memory runs out.
        """
        if not context:
            return self._model.prefill(prompt.tokens(self._model, question))
        layout = prompt.layout(self._model, question)
        joined = self.join(context, layout.head)
        self._model.check_window(len(joined.tokens) + len(layout.tail))
        with in_memory("joining blocks"):
            if self.recompute:
                # It looks into the model's layers, which nobody else may use meanwhile.
                with self._computing:
                    made = recomputed(self._model, self._rotary, joined, layout.tail, self.recompute)
            else:
                made = self._model.prefill(layout.tail, self._placed(joined), len(joined.tokens))
        return made._replace(read=made.read + joined.computed)

    def join(self, context: Context, head: Sequence[int]) -> Joined:
        """Put the context's passages together from their blocks, behind a head."""
        torch = needed("torch")
        check_unadapted(self._model)
        first, computed = self._of_head(head)
        keys, values, tokens = [first.keys], [first.values], list(head)
        for stretch, places in self._picked(context):
            rows: list[int] = []
            start = 0
            for part in stretch.parts:
                if self.whole or part.place is None or part.place in places:
                    rows += range(start, start + len(part.tokens))
                    tokens += part.tokens
                start += len(part.tokens)
            block, read = self._block(stretch, None if len(rows) == start else torch.tensor(rows))
            computed += read
            keys.append(block.keys.to(self._model.device))
            values.append(block.values.to(self._model.device))
        return Joined(torch.cat(keys, 2), torch.cat(values, 2), tokens, len(head), computed)

    def _placed(self, joined: Joined) -> Any:
        torch = needed("torch")
        places = torch.arange(len(joined.tokens), device=self._model.device)
        return cache_of(self._rotary.turn(joined.keys, places), joined.values)

    def _picked(self, context: Context) -> list[tuple[Stretch, set[Place]]]:
        """Return the stretches that hold the context's passages, with these passages, in the order they are put in."""
        # By stretch: its passages, how relevant the best of them is, and where in the context the first stands.
        picked: dict[str, tuple[Stretch, set[Place], float, int]] = {}
        relevance = context.relevance or (0.0,) * len(context.passages)
        for number, (passage, score) in enumerate(zip(context.passages, relevance, strict=True)):
            place = place_of(passage)
            stretch = next((s for s in self._of(passage.conversation_id) if s.has(place)), None)
            if stretch is None:
                raise DerivedError(
                    f"conversation {passage.conversation_id!r} has no passage at turn {passage.turn} any more; it was "
                    "changed or forgotten since the context was made. Recall again"
                )
            key = f"{passage.conversation_id}/{stretch.digest}"
            _, places, best, at = picked.get(key, (stretch, set(), score, number))
            picked[key] = (stretch, places | {place}, max(best, score), at)
        ordered = sorted(picked.values(), key=lambda p: (p[2], p[3]) if self.nearest else (0.0, p[3]))
        return [(stretch, places) for stretch, places, _, _ in ordered]

    # -- computing ----------------------------------------------------------------------------------------

    def prepare(
        self,
        conversation_ids: Iterable[str],
        progress: Callable[[int], None] | None = None,
        go_on: Callable[[], bool] = lambda: True,
    ) -> int:
        """Compute and store the blocks of conversations that are not stored yet.

        May be interrupted: each block is stored when it is computed. Blocks of turns that have changed since are
        removed. Where there is no room, other models' blocks give way; then it ends (`full`): this model's were needed,
        or come first.

        Args:
            conversation_ids: of which conversations.
            progress: called with how many conversations are done.
            go_on: called before each conversation and block; whether to go on, or stop. May wait.

        Returns:
            How many tokens were read.

        Raises:
            InputError: if an adapter is on.
            StoreError: if a block cannot be stored.
        """
        check_unadapted(self._model)
        read = last = 0
        for done, conversation_id in enumerate(conversation_ids, start=1):
            if not go_on():
                return read
            stretches = self._of(conversation_id)
            current = {self._path(stretch) for stretch in stretches}
            # Those of other models and settings stay.
            ours = f"{self._prefix}*{self._suffix}"
            for path in block_files.place(self._directory, self._scope, conversation_id).glob(ours):
                if path not in current:
                    path.unlink(missing_ok=True)
            for stretch in stretches:
                if not self._path(stretch).exists():
                    if not go_on():
                        return read
                    room = self._limit - last
                    spare = (self._prefix, block_files.PREFIX)
                    if self.bytes > room and block_files.evict(self._directory, room, spare) > room:
                        self.full = True
                        return read
                    block, took = self._compute(stretch)
                    read += took
                    last = self._keep(stretch, block)
            if progress is not None:
                progress(done)
        return read

    @property
    def bytes(self) -> int:
        """What all blocks in the directory take."""
        return files.size_of(self._directory) if self._directory.exists() else 0

    def missing(self, context: Context) -> int:
        """Return how many tokens would have to be read for this context since their blocks are not stored."""
        return sum(len(stretch.tokens) for stretch, _ in self._picked(context) if not self._path(stretch).exists())

    def _of(self, conversation_id: str) -> list[Stretch]:
        conversation = self._conversation(conversation_id)
        if conversation is None:
            self._stretches.pop(conversation_id, None)
            return []
        known = self._stretches.get(conversation_id)
        if known is None or known[0] != conversation:
            known = (conversation, stretches_of(self._model, conversation, self._scope, self._size))
            self._stretches[conversation_id] = known
            while len(self._stretches) > _CONVERSATIONS:
                self._stretches.pop(next(iter(self._stretches)), None)
        return known[1]

    @property
    def _prefix(self) -> str:
        """What the names of this model's blocks begin with."""
        return block_files.digest(self._model.fingerprint, ",".join(map(str, self._head)))[:8]

    def _path(self, stretch: Stretch) -> Path:
        name = f"{self._prefix}{stretch.digest}{self._suffix}"
        return block_files.place(self._directory, self._scope, stretch.conversation_id) / name

    @property
    def _suffix(self) -> str:
        return f"-{self._size}-{self._bits}{block_files.SUFFIX}"

    @property
    def _about(self) -> dict[str, str]:
        return {"model": self._model.fingerprint, "head": block_files.digest(",".join(map(str, self._head)))}

    def _block(self, stretch: Stretch, rows: Any) -> tuple[Block, int]:
        """Return a stretch's block, or some rows of it, and how many tokens had to be read for it."""
        path = self._path(stretch)
        block, read = self._load(stretch, rows), 0
        if block is None:
            made, read = self._compute(stretch)
            with suppress(StoreError):
                # On a full disk, say; it is computed again the next time.
                self._keep(stretch, made)
                block_files.evict(self._directory, self._limit)
            # As it was stored, so that the first answer is no other than the next; unless it is gone already.
            block = self._load(stretch, rows)
            if block is None:
                block = made if rows is None else Block(made.keys[:, :, rows], made.values[:, :, rows])
        block_files.use(path)
        return block, read

    def _load(self, stretch: Stretch, rows: Any) -> Block | None:
        path = self._path(stretch)
        try:
            return block_store.load(path, self._about, self._model.model.dtype, rows)
        except FileNotFoundError:
            return None
        except DerivedError:
            # It is derived: what is lost is the time to compute it again.
            self.damaged += 1
            path.unlink(missing_ok=True)
            return None

    def _compute(self, stretch: Stretch) -> tuple[Block, int]:
        torch = needed("torch")
        model = self._model
        with self._computing:
            head, read = self._of_head(self._head)
            count = len(self._head)
            places = torch.arange(count + len(stretch.tokens), device=model.device)
            cache = cache_of(self._rotary.turn(head.keys, places[:count]), head.values)
            keys, values = stacked(model.prefill(stretch.tokens, cache, count).cache, model)
            block = Block(self._rotary.turn(keys[:, :, count:], -places[count:]), values[:, :, count:].contiguous())
        return block, read + len(stretch.tokens)

    def _keep(self, stretch: Stretch, block: Block) -> int:
        """Store a block; return how many bytes it takes."""
        path = self._path(stretch)
        size = block_store.save(path, block, self._bits, self._about)
        # It may have been forgotten, or changed, while it was computed.
        if not any(each.digest == stretch.digest for each in self._of(stretch.conversation_id)):
            path.unlink(missing_ok=True)
        return size

    def _of_head(self, head: Sequence[int]) -> tuple[Block, int]:
        """Return a head's keys, without positions, and values, and how many tokens had to be read for it."""
        torch = needed("torch")
        known = self._heads.get(tuple(head))
        if known is not None:
            return known, 0
        keys, values = stacked(self._model.prefill(head).cache, self._model)
        turned = self._rotary.turn(keys, -torch.arange(len(head), device=self._model.device))
        self._heads[tuple(head)] = Block(turned, values)
        while len(self._heads) > _HEADS:
            self._heads.pop(next(iter(self._heads)), None)
        return Block(turned, values), len(head)
