"""What is said to a model and answered -> the memory, one exchange after the other.

Applications send the whole conversation with each request, or the end of it, or what they have made of it. What is new
is told from what is stored; nothing that is stored is changed or taken away.
"""

from __future__ import annotations

import difflib
import hashlib
import secrets
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from latent_memory.enrichment import conversation_in
from latent_memory.memory import DEFAULT_SCOPE, LatentMemory
from latent_memory.passages import count_words
from latent_memory.records import Conversation, Turn

TYPE = "chat"
# The end of a conversation that has so many words is said once; "Yes, please." and "Done." are said in many.
_TELLING_WORDS = 12
# Where a conversation never has so many in so many turns, its last turns have to do.
_TELLING_TURNS = 16
_FEW_TURNS = (6, 4, 3, 2)
# So many questions wait for what their tools return, of so many characters together.
_UNANSWERED = 1_000
_UNANSWERED_CHARACTERS = 4_000_000
# Of a conversation that an application has changed, so much of the end is compared turn by turn.
_COMPARED = 300

Key = tuple[str, str]
Value = TypeVar("Value")
Following = Callable[[Conversation | None, str], Conversation | None]


class Recorder:
    """Adds exchanges to a memory, each to its conversation. Safe to use from several threads.

    What it knows beside the memory itself is lost with the process: which conversation the end of one belongs to, and
    which were forgotten since. Where an application names its conversations, none of that is needed but the last.

    Args:
        memory: the memory.
    """

    def __init__(self, memory: LatentMemory) -> None:
        # Whoever keeps the memory's own recorder must not keep the memory.
        self._weakly = weakref.ref(memory)
        # Digests: of what conversations end with, and the ids that servers gave to answers -> the conversation.
        self._links = _Recent[str](50_000)
        # Digests of those that were kept.
        self._kept = _Recent[bool](200_000)
        self._unanswered: OrderedDict[tuple[str, str], tuple[str | None, Sequence[Turn]]] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, memory: LatentMemory) -> Self:
        """Return the recorder that all have in common who add exchanges to a memory in this process."""
        with _MAKING:
            return _OF.setdefault(memory, cls(memory))  # type: ignore[return-value]

    @property
    def _memory(self) -> LatentMemory:
        memory = self._weakly()
        assert memory is not None, "whoever has the recorder has the memory"
        return memory

    def keep(
        self,
        live: Sequence[Turn],
        answer: Sequence[Turn],
        *,
        scope: str = DEFAULT_SCOPE,
        conversation_id: str | None = None,
        continues: bool = False,
        answer_id: str | None = None,
    ) -> str | None:
        """Add an exchange to the memory: what of it is new.

        Args:
            live: what the request said, in order, with as much of what went before as the application sends.
            answer: what the model answered to it, or as much of it as came.
            scope: whose memory it is.
            conversation_id: of the conversation. By default the one that it continues is found by what was said; where
                nothing was answered there is too little to find it by, and nothing is kept.
            continues: the request says nothing of what went before, since the model's server has it.
            answer_id: that the model's server gave to the answer, and another request may go on with. An answer that
                only calls a tool has one too: then what was asked is kept with what is answered in the end.

        Returns:
            The conversation's id; None if nothing was kept.

        Raises:
            LatentMemoryError: see `LatentMemory.add`.
        """
        if not answer and answer_id is not None:
            self._wait(scope, answer_id, conversation_id, live)
            return None
        if not answer and not (live and conversation_id):
            return None
        now = datetime.now().astimezone()
        find_new = _unless_repeated if continues else unsaid

        def following(stored: Conversation | None, name: str) -> Conversation | None:
            # What was forgotten since it was kept here must not come back because the application still sends it.
            forgotten = stored is None and self._kept.get(_digest(scope, name)) is not None
            before = stored.turns if stored else ()
            said = live[_last_asked(live) :] if forgotten else live
            new = [turn if turn.timestamp else replace(turn, timestamp=now) for turn in find_new(before, said, answer)]
            return Conversation(turns=[*before, *new], type=None if stored else TYPE) if new else None

        if conversation_id is None:
            name = self._find(live, answer, following, scope)
        else:
            name = conversation_id
            self._memory.extend(name, lambda stored: following(stored, name), scope)
        self._kept.put(_digest(scope, name), True)
        self._link_end(live, answer, scope, name)
        if answer_id is not None:
            self._link(scope, _answer(answer_id), name)
        return name

    def continued(
        self, scope: str, body: Mapping[str, Any], live: Sequence[Turn]
    ) -> tuple[str | None, list[Turn], bool]:
        """Return what a request of the responses API goes on with.

        Args:
            scope: whose memory it is.
            body: the request.
            live: what it says.

        Returns:
            The id of the conversation, None if none is named that is known; what is said, with a question whose answer
            called a tool; and whether the model's server has what went before.
        """
        named, previous = conversation_in(body), body.get("previous_response_id")
        if named is not None or not isinstance(previous, str):
            return named, list(live), named is not None
        with self._lock:
            waiting = self._unanswered.get((scope, previous))
        if waiting is not None:
            named, before = waiting
            return named, [*before, *live], True
        return self._linked(scope, _answer(previous)), list(live), True

    def _link(self, scope: str, key: Hashable, conversation_id: str) -> None:
        """Remember which conversation something belongs to."""
        self._links.put(_digest(scope, repr(key)), conversation_id)

    def _linked(self, scope: str, key: Hashable) -> str | None:
        """Return the conversation that something was linked to, if it is still known."""
        return self._links.get(_digest(scope, repr(key)))

    def _wait(self, scope: str, answer_id: str, conversation_id: str | None, live: Sequence[Turn]) -> None:
        """Remember what was asked where the answer calls a tool and says nothing.

        What the tool returns is sent with the next request, and the question is not.
        """
        with self._lock:
            self._drop(scope, answer_id)
            self._unanswered[scope, answer_id] = conversation_id, live
            self._characters += _characters(live)
            while len(self._unanswered) > _UNANSWERED or (
                self._characters > _UNANSWERED_CHARACTERS and len(self._unanswered) > 1
            ):
                self._drop(*next(iter(self._unanswered)))

    def _drop(self, scope: str, answer_id: str) -> None:
        _, live = self._unanswered.pop((scope, answer_id), (None, ()))
        self._characters -= _characters(live)

    # -- whose exchange it is -----------------------------------------------------------------------------

    def _find(self, live: Sequence[Turn], answer: Sequence[Turn], following: Following, scope: str) -> str:
        """Add an exchange to the conversation that it continues, or to a new one; return its id.

        It continues one that it has all of; else the one that ended as the request does before what is asked now, as
        when an application leaves out the beginning, or lets the user change what was asked.
        """
        whole = list(map(_key, [*live, *answer]))
        continued = self._ended_with(live[: _last_asked(live)], scope)
        free: str | None = None
        for name in _ids(whole):
            taken = there = False

            def if_it_fits(stored: Conversation | None) -> Conversation | None:
                nonlocal taken, there
                known = list(map(_key, stored.turns)) if stored else []
                there = bool(known)
                taken = there and (_has(whole, known) or known[: len(whole)] == whole)
                return following(stored, name) if taken else None  # noqa: B023 - called before the next

            self._memory.extend(name, if_it_fits, scope)
            if taken:
                return name
            if not there:
                free = name
                break
        # A random one, if others begin with all of this and go on differently.
        name = continued or free or f"{TYPE}-{secrets.token_hex(12)}"
        self._memory.extend(name, lambda stored: following(stored, name), scope)
        return name

    def _link_end(self, live: Sequence[Turn], answer: Sequence[Turn], scope: str, name: str) -> None:
        """Remember what a conversation ends with now."""
        if not answer:
            return
        turns = [*live, *answer]
        if telling := _telling_end(turns):
            self._link(scope, telling, name)
        for count in _FEW_TURNS:
            # A conversation that is no more than this may be one of many: "Hi!", "Hello! How can I help?"
            if count < len(turns):
                self._link(scope, _end(turns, count), name)

    def _ended_with(self, turns: Sequence[Turn], scope: str) -> str | None:
        """Return the conversation that ended with these turns."""
        keys = [telling] if (telling := _telling_end(turns)) else []
        keys += [_end(turns, count) for count in _FEW_TURNS if count <= len(turns)]
        return next((name for key in keys if (name := self._linked(scope, key)) is not None), None)


class _Recent(Generic[Value]):
    """What was put in last, by digests; so many at most. Safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[bytes, Value] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: bytes, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self._most:
                self._values.popitem(last=False)

    def get(self, key: bytes) -> Value | None:
        with self._lock:
            return self._values.get(key)


_OF: weakref.WeakKeyDictionary[LatentMemory, Recorder] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def unsaid(stored: Sequence[Turn], live: Sequence[Turn], answer: Sequence[Turn]) -> list[Turn]:
    """Return what of a request and its answer is not stored yet, in order.

    Args:
        stored: the conversation so far.
        live: the request: all of the conversation, or a part, or parts that the application has changed.
        answer: what was answered to it.
    """
    known, told, answered = (list(map(_key, turns)) for turns in (stored, live, answer))
    whole = [*told, *answered]
    if known[: len(whole)] == whole:
        return []
    # Behind the last thing the user said, more than one answer to it may be stored.
    last = next((i for i in range(len(known) - 1, -1, -1) if known[i][0] == "user"), 0)
    new, end = _aligned(known, told, last)
    if new < len(told) or end <= last:
        # What is asked now is new, even if the same was asked before.
        return [*live[min(new, max(0, len(told) - 1)) :], *answer]
    if _has(known[end:], answered):
        # The request was sent once more.
        return []
    if len(told) == 1 and not _is_begun(known[end:], answered):
        # Nothing but this message is sent each time, and it is said once more: "next", "yes".
        return [*live, *answer]
    # It was sent once more, for another answer.
    return list(answer)


def _unless_repeated(stored: Sequence[Turn], live: Sequence[Turn], answer: Sequence[Turn]) -> list[Turn]:
    """Return a request that says nothing of what went before, and its answer; nothing if it was sent once more."""
    whole = [*live, *answer]
    return [] if list(map(_key, stored[-len(whole) :])) == list(map(_key, whole)) else whole


def _aligned(known: Sequence[Key], told: Sequence[Key], last: int) -> tuple[int, int]:
    """Return how far a request is known, and how far what is known is part of it.

    Args:
        known: the conversation as it is stored.
        told: the request.
        last: the place of the last thing that the user said of what is known.
    """
    for end in range(len(known), max(last, len(told) - 1), -1):
        if _ends_with(known[:end], told, len(told)):
            return len(told), end
    overlap = next((n for n in range(min(len(known), len(told)), 0, -1) if _ends_with(known, told, n)), 0)
    # The usual cases: the request begins with all that is stored, or with the end of it, and one message is new.
    if overlap and overlap in (len(known), len(told) - 1):
        return overlap, len(known)
    if known and told and told[-1] == known[last]:
        return len(told), last + 1
    # The application has left something out, or changed it: what was said last of what is known.
    before_known, before_told = max(0, len(known) - _COMPARED), max(0, len(told) - _COMPARED)
    matcher = difflib.SequenceMatcher(None, known[before_known:], told[before_told:], autojunk=False)
    blocks = [block for block in matcher.get_matching_blocks() if block.size]
    new, end = max(((block.b + block.size, block.a + block.size) for block in blocks), default=(0, 0))
    return (new + before_told, end + before_known) if blocks else (0, 0)


def _ends_with(known: Sequence[Key], told: Sequence[Key], count: int) -> bool:
    """Tell whether what is known ends with the first so many of a request."""
    # Nearly always the first or the last one tells.
    if count and (len(known) < count or known[-count] != told[0] or known[-1] != told[count - 1]):
        return False
    return known[len(known) - count :] == told[:count]


def _has(whole: Sequence[Key], part: Sequence[Key]) -> bool:
    return not part or any(
        whole[i] == part[0] and whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1)
    )


def _is_begun(known: Sequence[Key], answered: Sequence[Key]) -> bool:
    """Tell whether what is stored as the answer is the beginning of an answer, as of one that was interrupted."""
    stored, now = ("\n".join(text for _, text in turns) for turns in (known, answered))
    return now.startswith(stored)


def _last_asked(turns: Sequence[Turn]) -> int:
    return next((i for i in range(len(turns) - 1, -1, -1) if turns[i].role == "user"), 0)


def _ids(whole: Sequence[Key]) -> Iterator[str]:
    """Yield ids for a conversation that nobody has named: made from how it begins, each from more of it."""
    first = next((i for i, (role, _) in enumerate(whole) if role == "assistant"), len(whole) - 1)
    digest = hashlib.sha256()
    for i, (role, text) in enumerate(whole):
        digest.update(f"{role}\0{text}\0".encode())
        if i >= first:
            yield f"{TYPE}-{digest.hexdigest()[:24]}"


def _answer(answer_id: str) -> tuple[str, str]:
    return "response", answer_id


def _telling_end(turns: Sequence[Turn]) -> tuple[Key, ...]:
    """Return the fewest of the last turns that have enough words to be said once."""
    words = 0
    for count, turn in enumerate(reversed(turns[-_TELLING_TURNS:]), start=1):
        words += count_words(turn.text)
        if count > 1 and words >= _TELLING_WORDS:
            return _end(turns, count)
    return ()


def _end(turns: Sequence[Turn], count: int) -> tuple[Key, ...]:
    return tuple(map(_key, turns[-count:]))


def _key(turn: Turn) -> Key:
    # Clients trim what they show and send back.
    return turn.role, turn.text.strip()


def _characters(turns: Sequence[Turn]) -> int:
    return sum(len(turn.text) for turn in turns)


def _digest(scope: str, key: str) -> bytes:
    return hashlib.blake2b(f"{len(scope)}:{scope}{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
