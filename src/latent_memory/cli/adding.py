"""The command `add`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from latent_memory.cli.ending import leave, note
from latent_memory.cli.opening import open_memory, telling_if_stopped
from latent_memory.cli.options import EMBEDDER, FORMAT, JSON, SCOPE, STORE, Command, From, options
from latent_memory.output import handled, many, many_of, progress, say, say_json
from latent_memory.records import AddReport


@click.command(cls=Command, short_help="Add conversations from chat exports and other files.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@options(STORE, SCOPE)
@click.option("--from", "source", cls=From, metavar="NAME")
@click.option("--branches", is_flag=True, help="Keep what was said in other branches of an edited conversation.")
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be used, and report each of it.")
@click.option("--table", metavar="NAME", help="Of summaries in SQLite: the table. Default: conversation_summaries.")
@click.option(
    "--column",
    "columns",
    metavar="FIELD=NAME",
    multiple=True,
    help="Of summaries: conversation_id, title, timestamp, type or summary has this name in the file; repeatable.",
)
@EMBEDDER
@FORMAT
@click.option("--summariser", metavar="NAME", help="openai:MODEL writes the summaries that are missing.")
@JSON
def add(
    files: Sequence[str],
    store: Path | None,
    scope: str,
    source: str | None,
    branches: bool,
    skip_bad: bool,
    table: str | None,
    columns: Sequence[str],
    embedder: str | None,
    layout: str | None,
    summariser: str | None,
    as_json: bool,
) -> None:
    """Add conversations from files: chat exports, sessions, JSON Lines; - reads standard input.

    The format of a file is detected from its content (see --from). Adding a file again adds only what is new in it.
    Every file is checked from end to end first: if one entry cannot be used, nothing is added (see --skip-bad).
    """
    from latent_memory import inputs

    mapping = _columns(columns)
    report = AddReport()

    def so_far() -> str:
        changed = f", {report.changed:,} changed" if report.changed else ""
        return f"{many(report.added, 'conversation')} {'was' if report.added == 1 else 'were'} added{changed}; " + (
            "run it again to finish"
        )

    with (
        telling_if_stopped(so_far),
        inputs.opened(files, source, branches=branches, table=table, columns=mapping) as given,
    ):
        given.check(skip_bad=skip_bad)
        found, turns = (sum(counts) for counts in zip(*given.counts, strict=True))
        with contextlib.ExitStack() as stack:
            # Of nothing, no memory is made.
            memory = (
                stack.enter_context(open_memory(store, embedder, create=True, summariser=summariser, layout=layout))
                if found
                else None
            )
            if not as_json:
                for file in given.sources:
                    # Of our own format, that is news to nobody but whoever looks on.
                    if file.format != "jsonl" or sys.stderr.isatty():
                        note(f"{file.name}: {file.description}")
            for told in given.bad:
                note(f"left out: {told}")
            if memory is not None:
                with progress("adding", turns) as at:

                    def done(batch: AddReport) -> None:
                        nonlocal report
                        report = batch
                        at(handled(batch))

                    report = memory.add(given.conversations(skip_bad=skip_bad), scope, progress=done)
    if as_json:
        say_json(
            {**asdict(report), "left_out": len(given.bad), "files": given.files_json(), "skipped": given.skipped_json()}
        )
    else:
        say(
            f"{many(report.added, 'conversation')} added, {report.changed} changed, {report.unchanged} unchanged "
            f"({many(report.turns_added, 'turn')} added, {report.turns_changed} changed)"
        )
        if given.skipped:
            say(f"left out: {', '.join(many_of(count, what) for what, count in given.skipped.most_common())}")
    leave(found=bool(found))


def _columns(told: Sequence[str]) -> dict[str, str]:
    split = [pair.partition("=") for pair in told]
    if bad := next((field for field, equals, _ in split if not equals), None):
        raise click.UsageError(f"--column {bad}: FIELD=NAME was expected, as in summary=text")
    return {field: name for field, _, name in split}
