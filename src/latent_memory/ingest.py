"""Conversations -> store: what is new is told from what is known, embedded, and written.

Adding is idempotent and incremental. Turns are compared with what is stored by their place: an unchanged one
costs a comparison, a new one is appended, a changed one replaces the old. A turn that is stored but not handed
in again stays: only `forget` takes something away, and `extend` if it is asked to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from latent_memory import generated
from latent_memory.embedders import Embedder, embedded, identity
from latent_memory.errors import EmbedderMismatchError, InputError
from latent_memory.late import Codes
from latent_memory.passages import Piece, asks, pieces, spoken
from latent_memory.records import AddReport, Conversation, Turn
from latent_memory.store import SUMMARY, Change, NewPassage, Store, StoredState, mismatch
from latent_memory.times import epoch
from latent_memory.vectors import Vectors

# A batch is embedded and committed together: large enough that texts of similar length meet, small enough that
# little is lost when the process is killed, and bounded however many conversations come.
BATCH_CHARACTERS = 60_000
BATCH_CONVERSATIONS = 500
# Of those that are embedded again, so many passages at a time.
REEMBED_PASSAGES = 512

Summariser = Callable[[Conversation], str]
Progress = Callable[[AddReport], None]


def add(
    store: Store,
    embedder: Embedder,
    conversations: Iterable[Conversation],
    scope: str,
    *,
    summariser: Summariser | None = None,
    progress: Progress | None = None,
) -> AddReport:
    """Add conversations to a scope, a batch at a time.

    Knows two states of a conversation, as it is stored and as it is handed in, and reads the first in one snapshot;
    what another process changes after that is noticed when it is written.

    When this returns, or calls `progress`, what it reports is on disk. If the iterator or the embedder raises,
    the batches before are kept and the one at hand is not.
    """
    total = AddReport()
    batch: dict[str, _Incoming] = {}
    size = 0

    def flush() -> None:
        nonlocal total, batch, size
        if batch:
            total += _add_batch(store, embedder, list(batch.values()), scope, summariser)
            batch, size = {}, 0
            if progress is not None:
                progress(total)

    for conversation in conversations:
        if not isinstance(conversation, Conversation):
            raise InputError(f"a Conversation was expected, not {type(conversation).__name__}")
        incoming = _Incoming.of(conversation)
        if incoming.id in batch:
            # The second comes on top of the first, as it would in two calls.
            flush()
        batch[incoming.id] = incoming
        size += sum(len(turn.text) for turn in conversation.turns)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_CONVERSATIONS:
            flush()
    flush()
    return total


@dataclass(frozen=True, slots=True)
class _Incoming:
    id: str
    conversation: Conversation
    digests: list[bytes]
    # Whether stored turns beyond these are to go.
    whole: bool = False

    @classmethod
    def of(cls, conversation: Conversation, *, whole: bool = False) -> _Incoming:
        digests = [generated.turn_digest(turn) for turn in conversation.turns]
        made = conversation.conversation_id or generated.conversation_id(digests, conversation.summary)
        return cls(made, conversation, digests, whole)

    def given(self, name: str) -> Any:
        """Return a field that somebody gave; None if it is missing or was generated."""
        made = any(mark.split(":")[0] == name for mark in self.conversation.generated)
        return None if made else getattr(self.conversation, name)


@dataclass(slots=True)
class _Plan:
    """What adding one conversation comes to, before anything is embedded."""

    incoming: _Incoming
    state: StoredState | None
    turns: Sequence[Turn]  # as they will be stored, all of them
    new: list[int]
    changed: list[int]
    gone: list[int]
    pieces: list[tuple[int, int, Piece]] = field(default_factory=list)  # position, number, piece
    vectors: Vectors | None = None
    codes: Sequence[Codes] = ()
    # Of the passages that stay, by position and piece; read only where a summary needs them.
    kept: Mapping[tuple[int, int], Vectors] = field(default_factory=dict)

    @property
    def touched(self) -> list[int]:
        return sorted([*self.new, *self.changed])

    def texts(self) -> list[str]:
        return [
            piece.text if position == SUMMARY else spoken(self.turns[position].name, piece.text)
            for position, _, piece in self.pieces
        ]


def extend(
    store: Store,
    embedder: Embedder,
    conversation_id: str,
    follow: Callable[[Conversation | None], Conversation | None],
    scope: str,
    *,
    whole: bool = False,
    summariser: Summariser | None = None,
) -> AddReport:
    """Add to a conversation what follows from what is stored of it, with nobody else's change in between.

    Args:
        follow: makes the conversation as it is to be from what is stored, or None where nothing is to be done. It is
            called again if another process has written to the conversation meanwhile.
        whole: remove the turns that it leaves out at the end.
    """

    def made(scope_id: int | None) -> list[_Incoming]:
        following = follow(None if scope_id is None else store.get(scope_id, conversation_id))
        if following is None:
            return []
        if whole and not following.turns:
            raise InputError("extend: a conversation without turns was returned; to remove all of it, use forget")
        return [_Incoming.of(replace(following, conversation_id=conversation_id), whole=whole)]

    while True:
        report, stale = _attempt(store, embedder, made, scope, summariser)
        if not stale:
            return report


def _add_batch(
    store: Store, embedder: Embedder, batch: list[_Incoming], scope: str, summariser: Summariser | None
) -> AddReport:
    report = AddReport()

    def incoming_of(_: int | None) -> list[_Incoming]:
        return batch

    while batch:
        added, stale = _attempt(store, embedder, incoming_of, scope, summariser)
        report += added
        # Another process wrote these in between: compare them again with what is there now.
        batch = [incoming for incoming in batch if incoming.id in stale]
    return report


def _attempt(
    store: Store,
    embedder: Embedder,
    incoming_of: Callable[[int | None], list[_Incoming]],
    scope: str,
    summariser: Summariser | None,
) -> tuple[AddReport, set[str]]:
    """Add a batch as far as nobody else writes to its conversations meanwhile.

    Args:
        incoming_of: makes the batch for a scope's id, inside the snapshot that it is compared with.

    Returns:
        What was added, and the ids of the conversations that somebody else has written to.
    """
    made_by = identity(embedder)
    # Before anything is embedded, which may cost time or money.
    known = store.embedder()
    if known is not None and known != made_by:
        raise EmbedderMismatchError(mismatch(store.directory, known, made_by.name, made_by.dimension))
    with store.database.snapshot():
        scope_id = store.scope_id(scope)
        batch = incoming_of(scope_id)
        states = {} if scope_id is None else store.states(scope_id, [incoming.id for incoming in batch])
        plans = [_plan(store, scope_id, incoming, states.get(incoming.id)) for incoming in batch]
        for plan in plans:
            if plan.state is not None and summariser is None and _wants_summary(plan):
                plan.kept = store.conversation_vectors(plan.state.conversation_key, embedder.dimension)
    texts = [text for plan in plans for text in plan.texts()]
    if texts:
        vectors, codes = embedded(embedder, texts)
        start = 0
        for plan in plans:
            plan.vectors = vectors[start : start + len(plan.pieces)]
            plan.codes = codes[start : start + len(plan.pieces)]
            start += len(plan.pieces)
    changes = {plan.incoming.id: change for plan in plans if (change := _change(plan, summariser)) is not None}
    stale = set(store.write(scope, list(changes.values()), made_by) if changes else ())
    done = [_reported(plan, plan.incoming.id in changes) for plan in plans if plan.incoming.id not in stale]
    return sum(done, AddReport()), stale


def _plan(store: Store, scope_id: int | None, incoming: _Incoming, state: StoredState | None) -> _Plan:
    stored = state.digests if state else {}
    positions = range(len(incoming.digests))
    new = [i for i in positions if i not in stored]
    changed = [i for i in positions if i in stored and stored[i] != incoming.digests[i]]
    turns: Sequence[Turn] = incoming.conversation.turns
    gone = sorted(i for i in stored if i >= len(turns)) if incoming.whole else []
    if (
        not incoming.whole
        and scope_id is not None
        and len(stored) > len(turns)
        and (before := store.get(scope_id, incoming.id))
    ):
        turns = [*turns, *before.turns[len(turns) :]]
    plan = _Plan(incoming, state, turns, new, changed, gone)
    for position in plan.touched:
        plan.pieces += [(position, n, piece) for n, piece in enumerate(pieces(turns[position].text))]
    summary = incoming.conversation.summary
    if not turns and summary and (state is None or state.record.summary != summary):
        plan.pieces += [(SUMMARY, n, piece) for n, piece in enumerate(pieces(summary))]
    return plan


def _reported(plan: _Plan, written: bool) -> AddReport:
    known = plan.state is not None
    return AddReport(
        added=int(written and not known),
        changed=int(written and known),
        unchanged=int(not written),
        turns_added=len(plan.new),
        turns_changed=len(plan.changed),
        turns_unchanged=len(plan.incoming.digests) - len(plan.new) - len(plan.changed),
    )


def _change(plan: _Plan, summariser: Summariser | None) -> Change | None:
    """Return what has to be written for a plan; None if nothing has."""
    state = plan.state
    record = _record(plan, summariser)
    if state is not None and not plan.pieces and not plan.gone and record == state.record:
        return None
    assert record.timestamp is not None
    begun = epoch(record.timestamp)

    def when(position: int) -> float:
        own = plan.turns[position].timestamp if position != SUMMARY else None
        return epoch(own) if own else begun

    assert plan.vectors is not None or not plan.pieces
    codes: Sequence[Codes | None] = plan.codes or [None] * len(plan.pieces)
    passages = [
        NewPassage(
            position=position,
            piece=number,
            start=piece.start,
            text=None if _is_whole(plan, position, piece) else piece.text,
            words=piece.words,
            role="system" if position == SUMMARY else plan.turns[position].role,
            epoch=when(position),
            vector=vector,
            asks=asks(piece.text),
            codes=code,
        )
        for (position, number, piece), vector, code in zip(
            plan.pieces,
            plan.vectors if plan.vectors is not None else (),
            codes,
            strict=True,
        )
    ]
    return Change(
        record=record,
        expected=(state.conversation_key, state.version) if state else None,
        turns=[(i, plan.turns[i], plan.incoming.digests[i]) for i in plan.touched],
        passages=passages,
        # A conversation of a summary alone has become one of turns.
        drop=[SUMMARY] if state is not None and not state.digests and plan.turns else plan.gone,
        reissue=_reissued(plan, record, when),
        cut=len(plan.turns) if plan.gone else None,
    )


def _is_whole(plan: _Plan, position: int, piece: Piece) -> bool:
    whole = plan.incoming.conversation.summary if position == SUMMARY else plan.turns[position].text
    return piece.text == whole


def _reissued(plan: _Plan, record: Conversation, when: Callable[[int], float]) -> dict[int, float | None]:
    """Return the unchanged positions of which an index has to make something new."""
    if plan.state is None:
        return {}
    untouched = set(plan.state.digests) - {*plan.touched, *plan.gone}
    if not plan.turns and not plan.pieces:
        untouched = {SUMMARY}
    before = plan.state.record
    # Its exchange with the turn before it has changed.
    reissued: dict[int, float | None] = {i + 1: None for i in plan.changed if i + 1 in untouched}
    if record.timestamp != before.timestamp:
        reissued |= {i: when(i) for i in untouched if i == SUMMARY or plan.turns[i].timestamp is None}
    heading, known = ((r.title, r.summary, r.generated) for r in (record, before))
    if heading != known and not plan.pieces and not reissued and untouched:
        # One passage of the conversation tells the indexes that its heading has changed.
        reissued[min(untouched)] = None
    return reissued


def _record(plan: _Plan, summariser: Summariser | None) -> Conversation:
    """Return the conversation's row: what was given, else what was known, else what can be generated."""
    incoming, state = plan.incoming, plan.state
    before = state.record if state else None
    made: set[str] = set()
    marks = incoming.conversation.generated | (before.generated if before else frozenset())
    if incoming.conversation.conversation_id is None or "conversation_id" in marks:
        made.add("conversation_id")

    def settle(name: str, generate: Callable[[], str], again: bool) -> str:
        value = incoming.given(name)
        if value is not None:
            return str(value)
        if before is not None and (name not in before.generated or not again):
            if name in before.generated:
                made.add(name)
            return str(getattr(before, name))
        made.add(name)
        return generate()

    title = settle(
        "title",
        lambda: generated.title(plan.turns, incoming.conversation.summary),
        again=bool(plan.touched or plan.gone),
    )
    summary = settle("summary", lambda: _summary(plan, title, summariser), again=_wants_summary(plan))
    kind = settle("type", lambda: generated.DEFAULT_TYPE, again=False)
    timestamp, origin = _timestamp(plan)
    if origin:
        made.add(f"timestamp:{origin}")
    return Conversation(
        conversation_id=incoming.id,
        title=title,
        timestamp=timestamp,
        type=kind,
        summary=summary,
        metadata=dict(incoming.conversation.metadata) or (dict(before.metadata) if before else {}),
        generated=frozenset(made),
    )


def _timestamp(plan: _Plan) -> tuple[datetime, str | None]:
    """Return when the conversation began and, if nobody said so, where that was taken from."""
    given = plan.incoming.given("timestamp")
    if given is not None:
        return given, None
    before = plan.state.record if plan.state else None
    known = _origin(before.generated) if before else None
    if before is not None and before.timestamp and known is None:
        return before.timestamp, None
    if plan.turns and plan.turns[0].timestamp:
        return plan.turns[0].timestamp, "turn"
    if before is not None and before.timestamp:
        return before.timestamp, known
    # Generated before it came here: by a reader that took the file's time, or in another memory.
    if plan.incoming.conversation.timestamp:
        return plan.incoming.conversation.timestamp, _origin(plan.incoming.conversation.generated)
    return datetime.now(UTC).replace(microsecond=0), "now"


def _origin(marks: Iterable[str]) -> str | None:
    return next((mark.partition(":")[2] for mark in marks if mark.startswith("timestamp:")), None)


def _wants_summary(plan: _Plan) -> bool:
    """Tell whether a summary has to be made, if it is one that is made here.

    For each new turn while a conversation is short, and then each time it has grown by a tenth: what a long chat is
    about does not change with every turn, and finding it takes all of them.
    """
    if plan.incoming.given("summary") is not None or not (plan.touched or plan.gone):
        return False
    if plan.state is None or plan.changed or plan.gone:
        return True
    before, now = len(plan.state.digests), len(plan.turns)
    return before == 0 or int(math.log(now, 1.1)) > int(math.log(before, 1.1))


def _summary(plan: _Plan, title: str, summariser: Summariser | None) -> str:
    if summariser is not None:
        told = summariser(replace(plan.incoming.conversation, turns=tuple(plan.turns), title=title))
        if not isinstance(told, str) or not told.strip():
            raise InputError(f"the summariser returned {told!r} for {plan.incoming.id!r}; a text was expected")
        return told.strip()
    by_turn: dict[int, list[Vectors]] = {}
    for (position, _), vector in sorted(plan.kept.items(), key=lambda item: item[0]):
        if position not in plan.touched:
            by_turn.setdefault(position, []).append(vector)
    new = plan.vectors if plan.vectors is not None else ()
    for (position, _, _), vector in zip(plan.pieces, new, strict=True):
        by_turn.setdefault(position, []).append(vector)
    return generated.summary(plan.turns, {position: np.stack(rows) for position, rows in by_turn.items()})


def reembed(store: Store, embedder: Embedder, progress: Callable[[int, int], None] | None = None) -> int:
    """Make all vectors of a store again with another embedder, and switch over when all are made.

    Returns:
        How many passages have new vectors.
    """
    made_by = identity(embedder)
    done, total = store.begin_reembedding(made_by)
    last = 0
    while batch := store.not_reembedded(last, REEMBED_PASSAGES):
        texts = [text if speaker is None else spoken(speaker, text) for _, speaker, text in batch]
        vectors, codes = embedded(embedder, texts)
        store.keep_reembedded(made_by, [i for i, _, _ in batch], vectors, codes)
        done, last = done + len(batch), batch[-1][0]
        if progress is not None:
            progress(done, total)
    count = store.finish_reembedding(made_by)
    # None: others added something in the last moment.
    return reembed(store, embedder, progress) if count is None else count
