"""The commands that change a memory as a whole: `forget`, `reembed` and `tune`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from latent_memory import adapters
from latent_memory.cli.ending import leave, note
from latent_memory.cli.opening import open_memory, telling_if_stopped
from latent_memory.cli.options import EMBEDDER, JSON, SCOPE, STORE, Command, options, scope_option
from latent_memory.errors import InputError, StoreError
from latent_memory.output import counter, many, progress, say, say_json, say_tuning, tuning_json


@click.command(cls=Command, short_help="Remove conversations for good.")
@click.argument("conversations", metavar="[CONVERSATION]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Forget the whole scope.")
@options(STORE, SCOPE, JSON)
def forget(conversations: Sequence[str], everything: bool, store: Path | None, scope: str, as_json: bool) -> None:
    """Remove conversations with all that was kept of them, at once and for good."""
    if bool(conversations) == everything:
        raise click.UsageError("Name either conversations to forget, or --all for the whole scope")
    with open_memory(store) as memory:
        missing = memory.missing(conversations, scope=scope)
        gone = memory.forget(conversations or None, scope=scope, everything=everything)
        try:
            stale = memory.stale_adapters()
        except StoreError as error:
            # What was forgotten is forgotten all the same.
            note(f"cannot tell which adapters have seen it: {error}")
            stale = []
    if as_json:
        retrain = {"retrain": [str(info.path) for info in stale]} if stale else {}
        say_json({"forgotten": gone, "not_found": missing, **retrain})
    else:
        for each in missing:
            note(f"no conversation {each!r} in scope {scope!r}")
        for info in stale:
            note(adapters.note(info))
        say(f"{many(gone, 'conversation')} forgotten")
    leave(found=bool(gone))


@click.command(cls=Command, short_help="Exchange all vectors for another embedder's.")
@click.option("--embedder", metavar="NAME", required=True, help="The new embedder.")
@options(STORE, JSON)
def reembed(embedder: str, store: Path | None, as_json: bool) -> None:
    """Exchange all vectors for another embedder's.

    May be interrupted and run again; switches over at the end.
    """
    with (
        telling_if_stopped(lambda: "the memory still has its old vectors; run it again to finish"),
        open_memory(store) as memory,
        progress("embedding", memory.stats().passages) as at,
    ):
        count = memory.reembed(embedder, progress=lambda done, _: at(done))
    if as_json:
        say_json({"passages": count, "embedder": embedder})
    else:
        say(f"{many(count, 'passage')} embedded with {embedder}")


@click.command(cls=Command, short_help="Fit the weights of the signals to this memory.")
@click.option(
    "--questions",
    metavar="FILE",
    help='JSON Lines: {"question": "…", "evidence": [["CONVERSATION", TURN]], "scope": "…"}; - is standard input. '
    "Default: what was asked in the memory, and answered in the next turn.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=120, show_default=True, help="How long to search."
)
@click.option("--reset", is_flag=True, help="Go back to the default weights.")
@options(
    STORE,
    scope_option("Of questions that name none. Without --questions all scopes are looked through."),
    EMBEDDER,
    JSON,
)
def tune(
    questions: str | None,
    seconds: float,
    reset: bool,
    store: Path | None,
    scope: str,
    embedder: str | None,
    as_json: bool,
) -> None:
    """Fit the weights of the signals to this memory; they are kept only if they answer better.

    One half of the questions is fitted to; the other half, of other conversations, decides. Nothing is sent anywhere,
    and without a gain nothing is changed.
    """
    if reset and questions is not None:
        raise click.UsageError("--reset: goes without --questions")
    asked = None if questions is None else _questions(questions)
    with (
        telling_if_stopped(lambda: "the weights are as they were"),
        open_memory(store, embedder) as memory,
    ):
        if reset:
            had = memory.reset_tuning()
            if as_json:
                return say_json({"reset": had})
            return say("the default weights are in use again" if had else "the default weights were in use")
        with counter("tuning", "set of weights") as at:
            report = memory.tune(asked, scope=scope, seconds=seconds, progress=at)
    if as_json:
        say_json(tuning_json(report))
    else:
        say_tuning(report)
    return leave(found=report.held_out is not None)


def _questions(name: str) -> list[Any]:
    """Return the questions of a file of JSON Lines, or of standard input; what they hold is checked elsewhere."""
    from latent_memory import inputs

    questions: list[Any] = []
    try:
        told = inputs.standard_input().read() if name == "-" else Path(name).expanduser().read_bytes()
        lines = told.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name[:200]}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                questions.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name}, line {number}: not JSON ({error})") from None
    return questions
