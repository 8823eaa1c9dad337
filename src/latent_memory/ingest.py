"""Conversations -> store: what is new is told from what is known, embedded, and written.

Adding is idempotent and incremental. Turns are compared with what is stored by their place: an unchanged one
costs a comparison, a new one is appended, a changed one replaces the old. A turn that is stored but not handed
in again stays: only `forget` takes something away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from latent_memory import generated
from latent_memory.embedders import Embedder, identity
from latent_memory.errors import InputError
from latent_memory.passages import Piece, pieces, spoken
from latent_memory.records import AddReport, Conversation, Turn
from latent_memory.store import SUMMARY, Change, NewPassage, Store, StoredState
from latent_memory.times import epoch
from latent_memory.vectors import Vectors, checked

# A batch is embedded and committed together: large enough that texts of similar length meet, small enough that
# little is lost when the process is killed, and bounded however many conversations come.
BATCH_CHARACTERS = 60_000
BATCH_CONVERSATIONS = 500

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

    @classmethod
    def of(cls, conversation: Conversation) -> _Incoming:
        digests = [generated.turn_digest(turn) for turn in conversation.turns]
        made = conversation.conversation_id or generated.conversation_id(digests, conversation.summary)
        return cls(made, conversation, digests)

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
    pieces: list[tuple[int, int, Piece]] = field(default_factory=list)  # position, number, piece
    vectors: Vectors | None = None

    @property
    def touched(self) -> list[int]:
        return sorted([*self.new, *self.changed])

    def texts(self) -> list[str]:
        return [
            piece.text if position == SUMMARY else spoken(self.turns[position].name, piece.text)
            for position, _, piece in self.pieces
        ]


def _add_batch(
    store: Store, embedder: Embedder, batch: list[_Incoming], scope: str, summariser: Summariser | None
) -> AddReport:
    report = AddReport()
    while batch:
        scope_id = store.scope_id(scope)
        states = {} if scope_id is None else store.states(scope_id, [incoming.id for incoming in batch])
        plans = [_plan(store, scope_id, incoming, states.get(incoming.id)) for incoming in batch]
        texts = [text for plan in plans for text in plan.texts()]
        if texts:
            vectors = checked(
                embedder.embed(texts), rows=len(texts), dimension=embedder.dimension, made_by=embedder.name
            )
            start = 0
            for plan in plans:
                plan.vectors = vectors[start : start + len(plan.pieces)]
                start += len(plan.pieces)
        changes = {
            plan.incoming.id: change
            for plan in plans
            if (change := _change(store, embedder, plan, summariser)) is not None
        }
        stale = set(store.write(scope, list(changes.values()), identity(embedder)) if changes else ())
        for plan in plans:
            if plan.incoming.id not in stale:
                report += _reported(plan, plan.incoming.id in changes)
        # Another process wrote these in between: compare them again with what is there now.
        batch = [incoming for incoming in batch if incoming.id in stale]
    return report


def _plan(store: Store, scope_id: int | None, incoming: _Incoming, state: StoredState | None) -> _Plan:
    stored = state.digests if state else {}
    positions = range(len(incoming.digests))
    new = [i for i in positions if i not in stored]
    changed = [i for i in positions if i in stored and stored[i] != incoming.digests[i]]
    turns: Sequence[Turn] = incoming.conversation.turns
    if scope_id is not None and len(stored) > len(turns) and (before := store.get(scope_id, incoming.id)):
        turns = [*turns, *before.turns[len(turns) :]]
    plan = _Plan(incoming, state, turns, new, changed)
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


def _change(store: Store, embedder: Embedder, plan: _Plan, summariser: Summariser | None) -> Change | None:
    """Return what has to be written for a plan; None if nothing has."""
    state = plan.state
    record = _record(store, embedder, plan, summariser)
    if state is not None and not plan.pieces and record == state.record:
        return None
    assert record.timestamp is not None
    begun = epoch(record.timestamp)

    def when(position: int) -> float:
        own = plan.turns[position].timestamp if position != SUMMARY else None
        return epoch(own) if own else begun

    assert plan.vectors is not None or not plan.pieces
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
        )
        for (position, number, piece), vector in zip(
            plan.pieces, plan.vectors if plan.vectors is not None else (), strict=True
        )
    ]
    return Change(
        record=record,
        expected_version=state.version if state else None,
        turns=[(i, plan.turns[i], plan.incoming.digests[i]) for i in plan.touched],
        passages=passages,
        reissue=_reissued(plan, record, when),
    )


def _is_whole(plan: _Plan, position: int, piece: Piece) -> bool:
    whole = plan.incoming.conversation.summary if position == SUMMARY else plan.turns[position].text
    return piece.text == whole


def _reissued(plan: _Plan, record: Conversation, when: Callable[[int], float]) -> dict[int, float | None]:
    """Return the unchanged positions of which an index has to make something new."""
    if plan.state is None:
        return {}
    untouched = set(plan.state.digests) - set(plan.touched)
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


def _record(store: Store, embedder: Embedder, plan: _Plan, summariser: Summariser | None) -> Conversation:
    """Return the conversation's row: what was given, else what was known, else what can be generated."""
    incoming, state = plan.incoming, plan.state
    before = state.record if state else None
    made: set[str] = set()
    if incoming.conversation.conversation_id is None or "conversation_id" in (before.generated if before else ()):
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
        again=any(i < 3 for i in plan.touched),
    )
    summary = settle("summary", lambda: _summary(store, embedder, plan, title, summariser), again=bool(plan.touched))
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


def _summary(store: Store, embedder: Embedder, plan: _Plan, title: str, summariser: Summariser | None) -> str:
    if summariser is not None:
        told = summariser(replace(plan.incoming.conversation, turns=tuple(plan.turns), title=title))
        if not isinstance(told, str) or not told.strip():
            raise InputError(f"the summariser returned {told!r} for {plan.incoming.id!r}; a text was expected")
        return told.strip()
    by_turn: dict[int, list[Vectors]] = {}
    if plan.state is not None:
        stored = store.conversation_vectors(plan.state.conversation_key, embedder.dimension)
        for (position, _), vector in sorted(stored.items(), key=lambda item: item[0]):
            if position not in plan.touched:
                by_turn.setdefault(position, []).append(vector)
    for (position, _, _), vector in zip(plan.pieces, plan.vectors if plan.vectors is not None else (), strict=True):
        by_turn.setdefault(position, []).append(vector)
    vectors: Mapping[int, Vectors] = {position: np.stack(rows) for position, rows in by_turn.items()}
    return generated.summary(plan.turns, vectors)
