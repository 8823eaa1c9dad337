"""The commands that look at what a memory holds: `show`, `list`, `scopes`, `stats` and `demo`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from latent_memory.cli.ending import PROGRAM, leave
from latent_memory.cli.opening import open_memory, place_of
from latent_memory.cli.options import JSON, SCOPE, SCOPE_VARIABLE, STORE, Command, options
from latent_memory.output import conversation_json, iso, many, minute, say, say_json, say_list


@click.command(cls=Command, short_help="Print a conversation, word for word.")
@click.argument("conversation")
@click.option("--turn", type=click.IntRange(min=0), help="Only this turn, with the one before and after.")
@options(STORE, SCOPE, JSON)
def show(conversation: str, turn: int | None, store: Path | None, scope: str, as_json: bool) -> None:
    """Print a whole conversation, word for word."""
    with open_memory(store) as memory:
        found = memory.get(conversation, scope=scope)
    if found is None:
        print(f"no conversation {conversation!r} in scope {scope!r}", file=sys.stderr)
        return leave(found=False)
    if turn is not None and turn >= len(found.turns):
        print(f"conversation {conversation!r} has {many(len(found.turns), 'turn')}, from 0", file=sys.stderr)
        return leave(found=False)
    shown = range(len(found.turns)) if turn is None else range(max(0, turn - 1), min(turn + 2, len(found.turns)))
    if as_json:
        return say_json(conversation_json(found, shown))
    say(f"{found.title}\n{found.conversation_id} · {found.type} · {minute(found.timestamp)}")
    if "summary" not in found.generated:
        # One that was generated repeats what follows.
        say(found.summary or "")
    if shown:
        say("")
    for i in shown:
        said = found.turns[i]
        say(f"{i:>3}  {said.name or said.role}: {said.text}")
    return None


@click.command("list", cls=Command, short_help="List a scope's conversations, newest first.")
@options(STORE, SCOPE)
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many conversations."
)
@click.option("--offset", type=click.IntRange(min=0), default=0, help="How many to pass over.")
@JSON
def list_(store: Path | None, scope: str, limit: int, offset: int, as_json: bool) -> None:
    """List a scope's conversations, newest first."""
    with open_memory(store) as memory:
        page = memory.conversations(scope=scope, limit=limit, offset=offset)
    if as_json:
        say_json([{**asdict(item), "timestamp": item.timestamp.isoformat()} for item in page])
    else:
        say_list(page)
        if not page:
            print(f"no {'more ' if offset else ''}conversations in scope {scope!r}", file=sys.stderr)
    leave(found=bool(page))


@click.command(cls=Command, short_help="List the scopes.")
@options(STORE, JSON)
def scopes(store: Path | None, as_json: bool) -> None:
    """List the scopes with the number of their conversations."""
    with open_memory(store) as memory:
        found = memory.scopes()
    if as_json:
        say_json(found)
    else:
        for name, count in found.items():
            say(f"{count:>8}  {name}")
    leave(found=bool(found))


@click.command(cls=Command, short_help="Tell how much the memory holds.")
@STORE
@click.option("--scope", envvar=SCOPE_VARIABLE, help=f"Only this scope. Default: ${SCOPE_VARIABLE}, else all.")
@JSON
def stats(store: Path | None, scope: str | None, as_json: bool) -> None:
    """Tell where the memory is, and how much it holds."""
    with open_memory(store) as memory:
        found = memory.stats(scope=scope)
        tuned = memory.weights._asdict() if memory.tuned else None
    told: dict[str, Any] = {"store": str(place_of(store))} | asdict(found)
    told |= {"first": iso(found.first), "last": iso(found.last), "tuned": tuned}
    if as_json:
        return say_json(told)
    for name, value in told.items():
        if isinstance(value, dict):
            value = ", ".join(f"{signal} {weight:.4g}" for signal, weight in value.items())
        shown = f"{value:,}" if isinstance(value, int) else value or ("no" if name == "tuned" else "")
        say(f"{name:<14} {shown}".rstrip())
    return None


@click.command(cls=Command, short_help="Show what a memory finds in example conversations.")
@click.option("--keep", metavar="DIR", type=click.Path(path_type=Path), help="Keep the demonstration's memory here.")
def demo(keep: Path | None) -> None:
    """Add the example conversations to a memory of their own, ask it a few questions, and show what it finds."""
    from latent_memory import demonstration

    program = PROGRAM if shutil.which(PROGRAM) else sys.argv[0]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        demonstration.run(keep or Path(temporary) / "memory", program, kept=keep is not None)
