"""The command `convert`."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import click

from latent_memory.cli.ending import leave, note
from latent_memory.cli.opening import looking_into, open_memory, telling_if_stopped
from latent_memory.cli.options import FORMAT, JSON, SCOPE_VARIABLE, Command
from latent_memory.errors import InputError
from latent_memory.output import many, progress, say, say_json


@click.command(cls=Command, short_help="Write a memory in another format, or its summaries.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@FORMAT
@click.option("--reembed", is_flag=True, help="Make all vectors anew in the copy, with --embedder.")
@click.option("--embedder", metavar="NAME", help="The embedder for --reembed. Default: minilm.")
@click.option("--skip-bad", is_flag=True, help="Leave out entries that cannot be used, and report each of them.")
@click.option("--overwrite", is_flag=True, help="Replace what the destination holds.")
@click.option(
    "--scope",
    envvar=SCOPE_VARIABLE,
    default="default",
    show_default=True,
    help="Whose summaries, if these are what is written. A whole memory is written with all its scopes.",
)
@JSON
@click.pass_context
def convert(
    asked: click.Context,
    source: Path,
    destination: Path,
    layout: str | None,
    reembed: bool,
    embedder: str | None,
    skip_bad: bool,
    overwrite: bool,
    scope: str,
    as_json: bool,
) -> None:
    """Write the memory at SOURCE, a store or a file, to DESTINATION in another format.

    One that ends in .h5, .hdf5, .pkl or .pickle is a whole memory; one in .json, .yaml or .sqlite gets the summaries
    alone. For a directory, name the --format.
    """
    from latent_memory import embedders, formats
    from latent_memory.database import exists

    source, destination = source.expanduser(), destination.expanduser()
    summaries = layout is None and destination.suffix.lower() in formats.SUMMARY_SUFFIXES and not destination.is_dir()
    if embedder is not None and not reembed:
        raise click.UsageError("--embedder: goes with --reembed alone")
    if summaries and reembed:
        raise click.UsageError(f"--reembed: a file that ends in {destination.suffix} gets summaries, without vectors")
    if not summaries and asked.get_parameter_source("scope") is click.core.ParameterSource.COMMANDLINE:
        # Whoever asks for one scope must not hand on all of them.
        raise click.UsageError("--scope: goes with summaries alone; a whole memory is written with all its scopes")
    with looking_into(destination):
        if destination.exists() and not overwrite:
            raise InputError(f"{destination}: already exists; name another place, or give --overwrite")
        if destination.resolve() == source.resolve():
            raise InputError(f"{destination}: is the memory that is to be converted; name another place")
    with looking_into(source):
        if not source.exists() or (source.is_dir() and not (exists(source) or formats.detect(source))):
            raise InputError(f"no memory at {source}")
    # Before any work is done: it may not be there.
    new = embedders.load(embedder or embedders.DEFAULT) if reembed else None
    bad: list[InputError] = []
    with (
        telling_if_stopped(lambda: f"nothing was written to {destination}; run it again"),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary,
        contextlib.ExitStack() as opened,
    ):
        memory = opened.enter_context(open_memory(source, on_bad=bad.append if skip_bad else None))
        for error in bad:
            note(f"left out: {error}")
        told = memory.stats(scope=scope if summaries else None)
        written: int | None = None
        if new is not None:
            # In a copy, so that what goes wrong leaves the destination as it is.
            copy = Path(temporary) / "memory"
            memory.save(copy, formats.STORE)
            memory = opened.enter_context(open_memory(copy))
            with progress("embedding", told.passages) as at:
                memory.reembed(new, progress=lambda done, _: at(done))
        if told.conversations or not summaries:
            with progress("writing", told.conversations if summaries else told.passages) as at:
                written = memory.save(destination, layout, scope=scope, progress=at)
                at(written)
    if as_json:
        what = "summaries" if summaries else "passages"
        to = None if written is None else str(destination)
        say_json({what: written or 0, "left_out": len(bad), "destination": to})
    elif written is None:
        note(f"no conversations in scope {scope!r}; nothing was written")
    elif summaries:
        noun = "summary" if written == 1 else "summaries"
        say(f"{written:,} {noun} written to {destination} (without turns and vectors)")
    else:
        of = f" of {told.scopes:,} scopes" if told.scopes > 1 else ""
        say(f"{many(written, 'passage')}{of} written to {destination}")
    leave(found=written is not None)
