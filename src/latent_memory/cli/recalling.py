"""The commands that search: `recall` and `context`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from latent_memory.cli.ending import leave
from latent_memory.cli.opening import filters, open_memory, query_of
from latent_memory.cli.options import EMBEDDER, FILTERS, JSON, MORE, RERANK, SCOPE, STORE, Command, options
from latent_memory.output import SIGNALS, context_json, hit_json, many, say, say_hits, say_json


def _signals() -> str:
    """Return what the signals are, for a help; the mark before it keeps its lines from being joined."""
    wide = max(map(len, SIGNALS))
    return "\n".join(
        ["\b", "Signals, of which a score is the sum:", *(f"  {n:<{wide}}  {SIGNALS[n]}" for n in SIGNALS)]
    )


@click.command(cls=Command, short_help="Find the turns that matter to a question.", epilog=f"{_signals()}\n\n{MORE}")
@click.argument("query")
@click.option(
    "-k", "--limit", type=click.IntRange(min=1), default=10, show_default=True, help="How many turns at most."
)
@click.option("--explain", is_flag=True, help="Print a table of each turn's signals.")
@options(STORE, SCOPE, *FILTERS, *RERANK, EMBEDDER, JSON)
def recall(
    query: str,
    limit: int,
    explain: bool,
    store: Path | None,
    scope: str,
    embedder: str | None,
    rerank: str | None,
    among: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Find the turns that matter to QUERY, best first, with the signals that made each score.

    QUERY - is read from standard input.
    """
    with open_memory(store, embedder, warm=True) as memory:
        hits = memory.recall(query_of(query), limit, scope=scope, **filters(**given), rerank=rerank, rerank_among=among)
    if as_json:
        say_json([hit_json(hit) for hit in hits])
    else:
        say_hits(hits, explain=explain)
        if not hits:
            print(f"nothing found in scope {scope!r}", file=sys.stderr)
    leave(found=bool(hits))


@click.command(cls=Command, short_help="Print the block of text for a prompt.")
@click.argument("query")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="The most tokens that the block may have (estimated).",
)
@options(STORE, SCOPE, *FILTERS, RERANK[0], EMBEDDER, JSON)
def context(
    query: str,
    budget: int,
    store: Path | None,
    scope: str,
    embedder: str | None,
    rerank: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Print the block of text that a prompt gets for QUERY; - reads it from standard input."""
    with open_memory(store, embedder, warm=True, reranker=rerank) as memory:
        block = memory.context(query_of(query), budget, scope=scope, **filters(**given))
    if as_json:
        say_json(context_json(block))
    elif block:
        say(block.text)
    elif block.left_out:
        print(f"nothing fits into {many(budget, 'token')}; give a larger --budget", file=sys.stderr)
    else:
        print(f"nothing found in scope {scope!r}", file=sys.stderr)
    leave(found=bool(block))
