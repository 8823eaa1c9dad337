"""A copy of a store in which questions can be tried: without the turns that the questions were taken from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from latent_memory.errors import InputError
from latent_memory.records import Conversation
from latent_memory.store import Change, Store
from latent_memory.tuning import MOST_PASSAGES, Asked


def has(store: Store, scope: str, place: tuple[str, int]) -> bool:
    """Tell whether a scope has a turn: a conversation's id, and the turn's place in it."""
    scope_id = store.scope_id(scope)
    return scope_id is not None and bool(store.turn_passages(scope_id, place[0], place[1], place[1]))


def conversations(store: Store) -> Iterator[tuple[str, Conversation]]:
    """Yield all conversations of a store, each with its scope.

    Raises:
        InputError: if there is more than can be copied and looked through.
    """
    if (passages := store.counts(None)[2]) > MOST_PASSAGES:
        raise InputError(
            f"{store.directory}: {passages:,} passages are too many to look through for questions (at most "
            f"{MOST_PASSAGES:,}); hand some in: --questions FILE"
        )
    for scope in store.scopes():
        scope_id = store.scope_id(scope)
        for info in store.conversations(scope_id, passages, 0) if scope_id is not None else ():
            conversation = store.get(scope_id or 0, info.conversation_id)
            if conversation is not None:
                yield scope, conversation


def copy_without(store: Store, asked: Iterable[Asked], directory: Path) -> None:
    """Make a copy of a store without the passages of the turns that questions were taken from."""
    store.copy_to(directory)
    taken: dict[str, dict[str, list[int]]] = {}
    for pair in asked:
        if pair.taken_from is not None:
            conversation_id, turn = pair.taken_from
            taken.setdefault(pair.scope, {}).setdefault(conversation_id, []).append(turn)
    copy = Store(directory, durable=False)
    try:
        known = copy.embedder()
        assert known is not None
        for scope, turns in taken.items():
            states = copy.states(copy.scope_id(scope) or 0, list(turns))
            changes = [
                Change(state.record, (state.conversation_key, state.version), drop=turns[conversation_id])
                for conversation_id, state in states.items()
            ]
            copy.write(scope, changes, known)
    finally:
        copy.close()
