"""LangGraph: a store for what agents note down, kept in a memory.

What LangGraph's own `InMemoryStore` returns this returns as well. What is different: items are on disk, and may expire;
values come back as JSON data, as from LangGraph's stores on databases; an update leaves `created_at` as it was; and a
namespace that holds nothing any more is not listed.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from operator import ge, gt, le, lt
from typing import Any, NamedTuple

from latent_memory.errors import InputError
from latent_memory.integrations.base import NOTHING, needed
from latent_memory.integrations.exact import finished
from latent_memory.memory import DEFAULT_SCOPE, LatentMemory
from latent_memory.query import check_scope
from latent_memory.records import MOST_TURN_CHARACTERS, Conversation, Turn, as_json

with needed("langgraph", "langgraph"):
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        Item,
        ListNamespacesOp,
        MatchCondition,
        Op,
        PutOp,
        Result,
        SearchItem,
        SearchOp,
        TTLConfig,
        get_text_at_path,
    )

# What an item is called in the memory, so that it is no conversation's id.
TYPE = "langgraph-item"
_PREFIX = f"{TYPE}:"
_SUMMARY = 200
# A hundred years.
_MOST_MINUTES = 60 * 24 * 36_525
_WORTH_A_WRITE = 0.99
# Of an item, in the metadata.
_KEPT = {"namespace", "key", "value", "created_at", "updated_at", "namespace_since", "texts"}

Namespace = tuple[str, ...]


class LatentMemoryStore(BaseStore):
    """Items in a memory: each is a conversation of its own, of the type "langgraph-item".

    Conversations in the same scope are never found by it. What `put` has returned from is on disk; an update puts the
    new in the place of the old in one transaction. Safe to use from several threads and processes.

    Args:
        memory: an open memory; its embedder makes the vectors.
        scope: the wall that the items live behind.
        fields: what of an item's value is searched by `query`, as paths in LangGraph's `index`; "$" is all of it. With
            none, only what `put(index=[...])` names is.
        ttl: LangGraph's settings for items that expire: `default_ttl` and `sweep_interval_minutes`, in minutes, and
            `refresh_on_read`. What has expired is never returned, whatever `omit_expired` says.
    """

    supports_ttl = True

    def __init__(
        self,
        memory: LatentMemory,
        *,
        scope: str = DEFAULT_SCOPE,
        fields: Sequence[str] | None = ("$",),
        ttl: TTLConfig | None = None,
    ) -> None:
        check_scope(scope)
        if isinstance(fields, str):
            raise InputError(f"fields: {fields!r} is one text; give a list of paths")
        self.memory = memory
        self.scope = scope
        self.fields = tuple(fields or ())
        self.ttl_config = ttl
        self._clock = _Clock()
        self._swept = self._clock.now()

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Do several things: what is read is as it was before what is written; of several writes the last counts.

        Raises:
            InputError: if a value is no JSON data; nothing was written then.
        """
        results: list[Result] = []
        read: list[_Stored] = []
        puts: dict[tuple[Namespace, str], PutOp] = {}
        for op in ops:
            if isinstance(op, GetOp):
                found = self._get(_id(op.namespace, op.key))
                read += [found] if found and op.refresh_ttl else []
                results.append(Item(**found.fields) if found else None)
            elif isinstance(op, SearchOp):
                chosen, scores = self._search(op)
                read += chosen if op.refresh_ttl else []
                results.append([SearchItem(**each.fields, score=scores.get(each.id)) for each in chosen])
            elif isinstance(op, ListNamespacesOp):
                results.append(self._list(op))
            elif isinstance(op, PutOp):
                puts[op.namespace, op.key] = op
                results.append(None)
            else:
                raise ValueError(f"unknown operation: {type(op).__name__}")
        self._refresh(read)
        self._put(list(puts.values()))
        self._sweep_if_due()
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As `batch`, in a worker thread."""
        return await finished(self.batch, list(ops))

    # -- reading ------------------------------------------------------------------------------------------

    def _get(self, wanted: str, *, expired: bool = False) -> _Stored | None:
        """Return the item with an id; what has expired only if it is asked for."""
        # The shortest of the ids that begin so.
        found = self.memory.headings(scope=self.scope, prefix=wanted, limit=1)
        item = _Stored.of(found[0]) if found and found[0].conversation_id == wanted else None
        return item if item is not None and (expired or not item.expired(self._clock.now())) else None

    def _items(self, prefix: Namespace) -> list[_Stored]:
        """Return the items under a namespace, as InMemoryStore orders them: by namespace, the oldest first."""
        now = self._clock.now()
        items = [item for item in self._stored(prefix) if not item.expired(now)]
        since: dict[Namespace, str] = {}
        for item in items:
            since[item.namespace] = min(item.since, since.get(item.namespace, item.since))
        return sorted(items, key=lambda item: (since[item.namespace], item.namespace, item.created))

    def _stored(self, prefix: Namespace) -> list[_Stored]:
        headings = self.memory.headings(scope=self.scope, prefix=_begins(prefix))
        return [item for each in headings if (item := _Stored.of(each)) is not None]

    def _search(self, op: SearchOp) -> tuple[list[_Stored], dict[str, float]]:
        """Return the items of a page, and the scores of those that have one."""
        items = self._items(op.namespace_prefix)
        if op.filter:
            items = [item for item in items if _matches(item.value, op.filter)]
        scores: dict[str, float] = {}
        if op.query and op.query.strip():
            scores = self._scores(op.query, items, op.offset + op.limit)
            # As they were found: of equal scores the newer first. Those with nothing to search come last, as they are.
            rank = {found: i for i, found in enumerate(scores)}
            items = sorted(items, key=lambda item: rank.get(item.id, len(rank)))
        return items[op.offset : op.offset + op.limit], scores

    def _scores(self, query: str, items: Sequence[_Stored], wanted: int) -> dict[str, float]:
        """Return the scores of the items that fit best, best first; an item's is that of its best text.

        Args:
            wanted: so many at least, if there are.
        """
        texts = {item.id: item.texts for item in items if item.texts}
        total = sum(texts.values())
        # If there is nothing else, to look in all of the scope is faster.
        ids = None if len(texts) == self.memory.scopes().get(self.scope) else texts.keys()
        k = min(total, wanted)
        while k > 0:
            best: dict[str, float] = {}
            for hit in self.memory.recall(query, k, scope=self.scope, conversation_ids=ids):
                # Others may have come meanwhile, where all of the scope is looked at.
                if hit.passage.conversation_id in texts:
                    best.setdefault(hit.passage.conversation_id, hit.score)
            if len(best) >= min(wanted, len(texts)) or k == total:
                return best
            # Several texts of one item took the places of others.
            k = min(total, 4 * k)
        return {}

    def _list(self, op: ListNamespacesOp) -> list[Namespace]:
        return list(itertools.islice(self._namespaces(op), op.offset, op.offset + op.limit))

    def _namespaces(self, op: ListNamespacesOp) -> Iterator[Namespace]:
        """Yield the namespaces that an operation lists, in order; no more of them are looked at than are taken."""
        conditions = op.match_conditions or ()
        # From their ids alone, which takes a tenth of the time.
        ids = self.memory.conversation_ids(scope=self.scope, prefix=_begins(()))
        found = {namespace for each in ids if (namespace := _namespace(each)) is not None}
        last: Namespace | None = None
        for namespace in sorted(each for each in found if all(_fits(condition, each) for condition in conditions)):
            short = namespace if op.max_depth is None else namespace[: op.max_depth]
            if short != last and self._holds_items(namespace):
                last = short
                yield short

    def _holds_items(self, namespace: Namespace) -> bool:
        """Tell whether there is an item in a namespace, and not only conversations that have an item's id."""
        prefix = _id(namespace, "")
        return any(
            _Stored.of(heading) is not None
            for limit in (1, None)
            for heading in self.memory.headings(scope=self.scope, prefix=prefix, limit=limit)
        )

    # -- writing ------------------------------------------------------------------------------------------

    def _put(self, ops: Sequence[PutOp]) -> None:
        # All are looked at before any is written.
        checked = [(op, _checked(op)) for op in ops]
        for op, value in checked:
            if value is not None:
                follow = self._following(op, value)
                self.memory.extend(_id(op.namespace, op.key), follow, self.scope, whole=True)
        deleted = [_id(op.namespace, op.key) for op in ops if op.value is None]
        # Not a conversation that has an item's id.
        gone = [each for each in deleted if self._get(each, expired=True)]
        if gone:
            self.memory.forget(gone, scope=self.scope)

    def _following(self, op: PutOp, value: dict[str, Any]) -> Callable[[Conversation | None], Conversation]:
        """Return what makes an item's conversation from what is stored of it."""
        namespace, now = op.namespace, self._clock.now()
        paths = () if op.index is False else self.fields if op.index is None else op.index
        found = (text for path in paths for text in get_text_at_path(value, path))
        texts = [text[:MOST_TURN_CHARACTERS] for text in dict.fromkeys(found) if text.strip()]

        def follow(stored: Conversation | None) -> Conversation:
            before = None if stored is None else _Stored.of(stored)
            if stored is not None and before is None:
                raise InputError(f"{stored.conversation_id!r} is a conversation's id; forget it, or give it another")
            # What has expired is not there any more.
            kept = before is not None and not before.expired(now)
            # Any other of the namespace; its prefix is no other namespace's.
            others = self.memory.headings(scope=self.scope, prefix=_id(namespace, ""), limit=1)
            other = _Stored.of(others[0]) if others else None
            since = other.since if other is not None else _written(now)
            return Conversation(
                turns=[Turn("tool", text) for text in texts or [NOTHING]],
                title=" / ".join([*namespace, op.key]),
                timestamp=now,
                type=TYPE,
                # Given, so that no language model is asked for one.
                summary=texts[0][:_SUMMARY] if texts else NOTHING,
                metadata={
                    "namespace": list(namespace),
                    "key": op.key,
                    "value": value,
                    "created_at": before.created if before and kept else _written(now),
                    "updated_at": _written(now),
                    "namespace_since": since,
                    "texts": len(texts),
                    **_expiry(op.ttl, now),
                },
            )

        return follow

    # -- what expires -------------------------------------------------------------------------------------

    def sweep_ttl(self) -> int:
        """Forget the items that have expired; return how many."""
        self._swept = self._clock.now()
        return sum(self._forget_expired(item.id) for item in self._stored(()) if item.expired(self._swept))

    def _sweep_if_due(self) -> None:
        minutes = (self.ttl_config or {}).get("sweep_interval_minutes")
        if minutes is not None and self._clock.now() - self._swept >= timedelta(minutes=minutes):
            self.sweep_ttl()

    def _forget_expired(self, wanted: str) -> int:
        def check() -> None:
            item = self._get(wanted, expired=True)
            if item is None or not item.expired(self._clock.now()):
                # Somebody has put it again, or read it.
                raise _StillThereError

        try:
            return self.memory.forget(wanted, scope=self.scope, check=check)
        except _StillThereError:
            return 0

    def _refresh(self, items: Iterable[_Stored]) -> None:
        """Let items that expire, and were read, last as long again."""
        for item in items:
            now = self._clock.now()

            def follow(stored: Conversation | None, now: datetime = now) -> Conversation | None:
                held = _Stored.of(stored) if stored is not None else None
                if stored is None or held is None or held.ttl is None or held.expired(now):
                    return None
                return replace(stored, metadata={**stored.metadata, **_expiry(held.ttl, now)})

            # What would win less than a hundredth is not worth a write.
            if item.ttl is not None and item.left(now) < _WORTH_A_WRITE * item.ttl:
                self.memory.extend(item.id, follow, self.scope)


class _StillThereError(Exception):
    pass


class _Stored(NamedTuple):
    """An item as it is stored; times are texts whose order is theirs."""

    id: str
    namespace: Namespace
    key: str
    value: dict[str, Any]
    created: str
    updated: str
    since: str
    texts: int
    ttl: float | None = None
    expires: str = ""

    @classmethod
    def of(cls, heading: Conversation) -> _Stored | None:
        """Return what is stored of an item; None for a conversation that is none, whatever its id and type."""
        known = heading.metadata
        if heading.type != TYPE or not known.keys() >= _KEPT or not isinstance(known["namespace"], list):
            return None
        if heading.conversation_id != _id(known["namespace"], known["key"]):
            return None
        return cls(
            heading.conversation_id,
            tuple(known["namespace"]),
            known["key"],
            known["value"],
            known["created_at"],
            known["updated_at"],
            known["namespace_since"],
            known["texts"],
            known.get("ttl"),
            known.get("expires_at", ""),
        )

    def expired(self, now: datetime) -> bool:
        return self.ttl is not None and self.left(now) <= 0

    def left(self, now: datetime) -> float:
        """Return for how many minutes an item that expires is still there."""
        return (datetime.fromisoformat(self.expires) - now) / timedelta(minutes=1)

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "namespace": self.namespace,
            "key": self.key,
            "value": self.value,
            "created_at": datetime.fromisoformat(self.created),
            "updated_at": datetime.fromisoformat(self.updated),
        }


class _Clock:
    """Tells the time, and never the same twice: items are put in order by it, and some clocks tick slowly."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = datetime.fromtimestamp(0, UTC)

    def now(self) -> datetime:
        with self._lock:
            self._last = max(datetime.now(UTC), self._last + timedelta(microseconds=1))
            return self._last


def _written(time: datetime) -> str:
    return time.isoformat(timespec="microseconds")


def _expiry(ttl: float | None, now: datetime) -> dict[str, Any]:
    return {} if ttl is None else {"ttl": ttl, "expires_at": _written(now + timedelta(minutes=ttl))}


def _begins(namespace: Sequence[str]) -> str:
    """Return what the ids of all items under a namespace begin with, and no others do."""
    # A label's closing quote is no part of it: quotes inside are escaped.
    return _PREFIX + json.dumps(list(namespace), ensure_ascii=False)[:-1]


def _namespace(conversation_id: str) -> Namespace | None:
    """Return the namespace that an item's id tells; None for an id that is no item's."""
    try:
        labels, _ = json.JSONDecoder().raw_decode(conversation_id, len(_PREFIX))
    except (ValueError, RecursionError):
        return None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return None
    return tuple(labels) if conversation_id.startswith(_id(tuple(labels), "")) else None


def _id(namespace: Sequence[str], key: str) -> str:
    return f"{_begins(namespace)}]{key}"


def _checked(op: PutOp) -> dict[str, Any] | None:
    """Return an operation's value as JSON data; None if it deletes.

    Raises:
        InputError: if it is none, or its time to live is none.
    """
    if op.value is None:
        return None
    if op.ttl is not None and not 0 <= op.ttl <= _MOST_MINUTES:
        raise InputError(f"ttl: {op.ttl!r} is no number of minutes; give 0 or more, or None")
    try:
        return as_json(op.value)
    except InputError as error:
        raise InputError(f"{' / '.join([*op.namespace, op.key])}: its value: {error}") from None


def _fits(condition: MatchCondition, namespace: Namespace) -> bool:
    path = condition.path
    if len(namespace) < len(path):
        return False
    if condition.match_type not in ("prefix", "suffix"):
        raise ValueError(f"match_type: {condition.match_type!r} is unknown; use prefix or suffix")
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))


def _matches(value: Any, wanted: Any) -> bool:
    """Tell whether a value is as a filter wants it: equal, part by part, or as its operators say."""
    if isinstance(wanted, Mapping):
        if any(name.startswith("$") for name in wanted):
            return all(_holds(value, operator, other) for operator, other in wanted.items())
        return isinstance(value, Mapping) and all(_matches(value.get(name), other) for name, other in wanted.items())
    if isinstance(wanted, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(wanted)
            and all(_matches(a, b) for a, b in zip(value, wanted, strict=True))
        )
    return bool(value == wanted)


def _holds(value: Any, operator: str, other: Any) -> bool:
    if operator == "$eq":
        return bool(value == other)
    if operator == "$ne":
        return bool(value != other)
    if operator not in _COMPARISONS:
        raise ValueError(f"filter: {operator!r} is unknown; use $eq, $ne, {', '.join(_COMPARISONS)}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        # An item that lacks the field, say: InMemoryStore raises here, stores on databases pass it over.
        return False
    return _COMPARISONS[operator](number, float(other))


_COMPARISONS: dict[str, Callable[[float, float], bool]] = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}
