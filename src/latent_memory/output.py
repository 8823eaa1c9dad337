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
from typing import TYPE_CHECKING, Any

import click

from latent_memory.records import AddReport, Context, Conversation, ConversationInfo, Hit, Passage

if TYPE_CHECKING:
    from latent_memory.checking import CheckReport, Finding
    from latent_memory.tuning import Half, TuneReport


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


# What each signal tells of a turn, in as many words as a line has room for.
SIGNALS = {
    "meaning": "how near it is to the question in meaning",
    "words": "the question's words in it",
    "exchange": "the question's words in it and the turn before it",
    "tokens": "for each token of the question, the nearest of its own",
    "neighbours": "what the turns before and after it have of these",
    "answer": "what a question has that it answers",
    "conversation": "the question's words in its conversation",
    "companion": "the best turn of its conversation",
    "asking": "taken off, because it asks and does not tell",
    "time": "how well it fits the time that the question tells",
    "reranker": "what the model named with --rerank says of it",
}


def say_hits(hits: Iterable[Hit], *, explain: bool = False) -> None:
    """Print hits for people, best first, each with its place and its signals; as a table, to `explain` the score."""
    for rank, hit in enumerate(hits, start=1):
        passage = hit.passage
        where = "summary" if passage.turn is None else f"turn {passage.turn}"
        who = passage.name or passage.role or "summary"
        told = " ".join(passage.text.split())
        signals = (
            _table_of(hit)
            if explain
            else "  ".join(f"{name} {value:.2f}" for name, value in hit.signals.items() if abs(value) >= 0.005)
        )
        say(
            f"{rank:>2}  {hit.score:.2f}  {who}: {_cut(told, 300)}\n"
            f"          {_cut(passage.title, 60)} · {passage.conversation_id} · {where} · {minute(passage.timestamp)}\n"
            f"          {signals}"
        )


def _table_of(hit: Hit) -> str:
    """Return a hit's signals, a row each, with their sum, and the share that each has of it."""
    wide = max(map(len, [*hit.signals, "score"]))
    # What rounds to nothing has no sign.
    rows = [
        (name, value if abs(value) >= 0.005 else 0.0) for name, value in [*hit.signals.items(), ("score", hit.score)]
    ]
    shares = [f"{value / hit.score:>5.0%}" if hit.score > 0 else "" for _, value in rows]
    return f"\n{' ' * 10}".join(
        f"{name:<{wide}}  {value:>6.2f}  {share}".rstrip() for (name, value), share in zip(rows, shares, strict=True)
    )


def say_tuning(report: TuneReport) -> None:
    """Print what one `tune` came to: both halves before and after, the weights, and whether they were kept."""
    if report.fitted and report.held_out:
        say(f"{'':<12} {'questions':>9}  {'reciprocal rank':>16}  {'found in 10':>16}")
        for name, half in (("fitted to", report.fitted), ("held out", report.held_out)):
            ranks = f"{half.before.reciprocal_rank:.3f} -> {half.after.reciprocal_rank:.3f}"
            found = f"{half.before.found:.1%} -> {half.after.found:.1%}"
            say(f"{name:<12} {half.questions:>9,}  {ranks:>16}  {found:>16}")
        say("")
        wide = max(map(len, report.before))
        for name, old in report.before.items():
            new = report.after[name]
            say(f"{name:<{wide}}  {old:>7.2f}{f' -> {new:.2f}' if new != old else ''}")
        say("")
    say(f"{'kept' if report.kept else 'not kept; the weights stay as they were'}: {report.reason}")


def tuning_json(report: TuneReport) -> dict[str, Any]:
    """Return what one `tune` came to, as docs/cli.md describes it."""

    def told(half: Half | None) -> dict[str, Any] | None:
        if half is None:
            return None
        return {
            "questions": half.questions,
            "before": half.before._asdict(),
            "after": half.after._asdict(),
        }

    return {
        **{name: getattr(report, name) for name in ("kept", "reason", "source", "questions", "tried")},
        **{"fitted": told(report.fitted), "held_out": told(report.held_out)},
        **{"before": dict(report.before), "after": dict(report.after)},
    }


def say_check(report: CheckReport) -> None:
    """Print what a check has found: what is wrong first, and a line that sums it up."""
    for finding in report.problems:
        say(f"{finding.where}: {finding.detail}\n    {finding.advice}")
    for kind, count in report.more.items():
        say(f"and {many(count, 'more problem')} of the kind {kind!r}")
    for finding in report.notes:
        say(f"note: {finding.where}: {finding.detail}\n    {finding.advice}")
    looked = ", ".join(many(getattr(report, f"{noun}s"), noun) for noun in ("conversation", "turn", "passage"))
    wrong = len(report.problems) + sum(report.more.values())
    say(f"{many(wrong, 'problem') if wrong else 'sound'}: {looked}")


def check_json(report: CheckReport) -> dict[str, Any]:
    """Return what a check has found, as docs/cli.md describes it."""

    def told(findings: Iterable[Finding]) -> list[dict[str, str]]:
        return [{name: getattr(each, name) for name in ("kind", "where", "detail", "advice")} for each in findings]

    return {
        **{name: getattr(report, name) for name in ("sound", "scope", "conversations", "turns", "passages")},
        **{"problems": told(report.problems), "more": dict(report.more), "notes": told(report.notes)},
    }


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
