"""What the command line prints: for people, and as JSON."""

from __future__ import annotations

import json
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from typing import Any

import click

from latent_memory.records import AddReport, Context, Conversation, ConversationInfo, Hit, Passage


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while something long runs; nothing if that is not a terminal."""
    if not sys.stderr.isatty() or not total:
        yield lambda _: None
        return
    with click.progressbar(length=total, label=what, file=sys.stderr, show_pos=True) as bar:
        yield lambda done: bar.update(done - bar.pos)


@contextmanager
def counter(what: str, noun: str) -> Iterator[Callable[[int], None]]:
    """Show on standard error how far something has come whose end is not known; nothing if that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    shown = 0.0

    def at(count: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= 0.1:
            shown = now
            print(f"\r\x1b[K{harmless(what, sys.stderr)}: {many(count, noun)}", end="", file=sys.stderr, flush=True)

    try:
        yield at
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def handled(report: AddReport) -> int:
    """Return how many turns an `add` has dealt with so far."""
    return report.turns_added + report.turns_changed + report.turns_unchanged


def say(text: str) -> None:
    """Print for people; what goes to a terminal cannot steer it."""
    print(harmless(text, sys.stdout))


def harmless(text: str, stream: Any) -> str:
    """Return the text without what could steer a terminal, if the stream is one."""
    if not stream.isatty():
        return text
    return "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def say_hits(hits: Iterable[Hit]) -> None:
    """Print hits for people, best first, each with its place and its signals."""
    for rank, hit in enumerate(hits, start=1):
        passage = hit.passage
        where = "summary" if passage.turn is None else f"turn {passage.turn}"
        who = passage.name or passage.role or "summary"
        told = " ".join(passage.text.split())
        signals = "  ".join(f"{name} {value:.2f}" for name, value in hit.signals.items() if value >= 0.005)
        say(
            f"{rank:>2}  {hit.score:.2f}  {who}: {_cut(told, 300)}\n"
            f"          {_cut(passage.title, 60)} · {passage.conversation_id} · {where} · {minute(passage.timestamp)}\n"
            f"          {signals}"
        )


def say_list(page: Iterable[ConversationInfo]) -> None:
    """Print a listing for people, a line a conversation."""
    page = list(page)
    # As wide as the ids are: most are UUIDs, those of branches are two.
    wide = max((len(item.conversation_id) for item in page), default=0)
    for item in page:
        title = " ".join(item.title.split())
        say(f"{minute(item.timestamp):<16}  {item.conversation_id:<{wide}} {item.turns:>5}  {title}")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def hit_json(hit: Hit) -> dict[str, Any]:
    """Return a hit as docs/cli.md describes it."""
    return {"score": hit.score, "signals": dict(hit.signals), **_passage_json(hit.passage)}


def _passage_json(passage: Passage) -> dict[str, Any]:
    told = {field.name: getattr(passage, field.name) for field in fields(passage)}
    return told | {"timestamp": passage.timestamp.isoformat()}


def context_json(block: Context) -> dict[str, Any]:
    """Return a context as docs/cli.md describes it."""
    return {
        "text": block.text,
        "tokens": block.tokens,
        "budget": block.budget,
        "passages": [_passage_json(passage) for passage in block.passages],
    }


def conversation_json(found: Conversation, shown: Iterable[int]) -> dict[str, Any]:
    """Return a conversation, with those of its turns that are shown, as docs/cli.md describes it."""
    return {
        "conversation_id": found.conversation_id,
        "title": found.title,
        "timestamp": found.timestamp and found.timestamp.isoformat(),
        "type": found.type,
        "summary": found.summary,
        "metadata": dict(found.metadata),
        "generated": sorted(found.generated),
        "messages": [
            {
                "turn": i,
                "role": found.turns[i].role,
                "content": found.turns[i].text,
                "timestamp": iso(found.turns[i].timestamp),
                "name": found.turns[i].name,
            }
            for i in shown
        ],
    }


def iso(time: datetime | None) -> str | None:
    """Return a time as ISO 8601."""
    return time.isoformat() if time else None


def minute(time: datetime | None) -> str:
    """Return a time to the minute."""
    return f"{time:%Y-%m-%d %H:%M}" if time else ""


def many(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def many_of(count: int, phrase: str) -> str:
    """Return a count with what was counted, given as a few words: 3 and "an empty message" make "3 empty messages".

    Of 2 and "a photo or a file" it makes "2 photos or files".
    """
    words = bare(phrase)
    if count == 1:
        return f"1 {words}"
    # What is counted stands before "of", "in", "that" and the like, or at the end.
    match = _HEAD.match(words)
    head, rest = match.groups() if match else (words, "")
    return f"{count:,} {' or '.join(map(_several, head.split(' or ')))}{rest}"


def _several(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def bare(phrase: str) -> str:
    """Return a few words without the articles before them."""
    return re.sub(r"(^|\bor )(?:an?|the|one) ", r"\1", phrase)


_HEAD = re.compile(r"(.+?)( (?:of|in|from|with|without|that|which|by|on|for|to|made|whose)\b.*)")


def say_json(value: object) -> None:
    """Print a value as JSON."""
    # Where the output cannot hold every character, escapes keep the content exact.
    exact = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not exact, indent=2))
