"""What is asked, and of what: texts, live messages and filters, as callers hand them in, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from latent_memory.errors import InputError
from latent_memory.messages import content_text, turn_of
from latent_memory.passages import count_words
from latent_memory.records import MOST_TURN_CHARACTERS, ROLES, Turn, check_text
from latent_memory.times import epoch, parse_time

Messages = Sequence[Turn | Mapping[str, Any]]
Query = str | Messages

# Longer queries are cut to their end: a model reads 256 tokens, and words beyond a few hundred only cost time.
_QUERY_CHARACTERS = 4_000
# A last message of fewer words ("and the second one?") is asked together with what was said before it.
_TELLING_WORDS = 5


class Filters(NamedTuple):
    """What a hit must be: times are epochs (since <= time < until); None admits everything."""

    since: float | None = None
    until: float | None = None
    roles: frozenset[str] | None = None
    conversation_ids: frozenset[str] | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in self)


def turns_of(messages: Messages) -> list[Turn]:
    """Read live messages; one that says nothing (a tool call in flight, say) is nothing to recall by."""
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if isinstance(message, Turn):
            turns.append(message)
        elif not isinstance(message, Mapping):
            turns.append(turn_of(message, where))
        elif text := content_text(message).strip():
            # A pasted file is cut to its end; only what was said last is asked.
            turns.append(turn_of({**message, "content": text[-MOST_TURN_CHARACTERS:]}, where))
    return turns


def query_text(query: Query) -> str:
    """Return what is asked: the text, or the last thing the user said, with what it leans on."""
    if isinstance(query, str):
        check_text(query, "query")
        text = query
    else:
        turns = turns_of(query)
        asked = [i for i, turn in enumerate(turns) if turn.role == "user"] or list(range(len(turns)))
        text = turns[asked[-1]].text if asked else ""
        if asked and count_words(text) < _TELLING_WORDS:
            text = "\n".join(turn.text for turn in turns[max(0, asked[-1] - 2) : asked[-1] + 1])
    if not text.strip():
        raise InputError("query: empty; ask for something")
    return text[-_QUERY_CHARACTERS:]


def filters_of(since: Any, until: Any, roles: Any, conversation_ids: Any) -> Filters:
    """Read the filters as `LatentMemory.recall` takes them.

    Raises:
        InputError: for a time that is none, or an unknown role.
    """
    begin, end = parse_time(since, "since"), parse_time(until, "until")
    wanted = None if roles is None else frozenset([roles] if isinstance(roles, str) else roles)
    for role in wanted or ():
        if role not in ROLES:
            raise InputError(f"roles: {role!r} is unknown; use {', '.join(ROLES)}")
    ids = None if conversation_ids is None else checked_texts(conversation_ids, "conversation_ids")
    return Filters(
        since=None if begin is None else epoch(begin),
        until=None if end is None else epoch(end),
        roles=wanted,
        conversation_ids=None if ids is None else frozenset(ids),
    )


def checked_texts(given: str | Iterable[str], where: str) -> list[str]:
    """Return one text or several as a list, checked."""
    texts = [given] if isinstance(given, str) else list(given)
    for text in texts:
        check_text(text, where)
    return texts


def check_scope(scope: object) -> None:
    """Raise InputError if `scope` is no name."""
    check_text(scope, "scope")
    if not str(scope).strip():
        raise InputError(f"scope: {scope!r} is no name; give a text such as a user's id")
