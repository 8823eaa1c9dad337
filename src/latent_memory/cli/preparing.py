"""The command `prepare`, which computes for a model ahead of time what `chat --mode kv` would compute when asked."""

from __future__ import annotations

from pathlib import Path

import click

from latent_memory.cli.ending import PROGRAM, leave, note
from latent_memory.cli.opening import open_memory, telling_if_stopped
from latent_memory.cli.options import DEVICE, DTYPE, JSON, MODEL, SCOPE, STORE, Command, options
from latent_memory.errors import InputError
from latent_memory.output import many, progress, say, say_json


@click.command(cls=Command, short_help="Compute a model's keys and values of a memory ahead of time.")
@options(MODEL, STORE, SCOPE)
@click.option(
    "--limit",
    metavar="GB",
    type=click.FloatRange(min=0, min_open=True),
    help="The most that all stored keys and values may take on the disk, from now on. Default: what was set, else 4.",
)
@options(DEVICE, DTYPE, JSON)
def prepare(
    model: str,
    store: Path | None,
    scope: str,
    limit: float | None,
    device: str | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Compute a model's keys and values of a scope's conversations, newest first, for `chat --mode kv`.

    May be interrupted and run again: only what is missing is computed. `forget` removes them with the conversations.
    """
    from latent_memory import block_files
    from latent_memory.inference.kv_cache import BlockCache
    from latent_memory.inference.local_model import LocalModel

    with open_memory(store) as memory:
        if memory.in_file:
            raise InputError(
                f"{store}: a memory in a file has no room for keys and values; convert it to a store first"
            )
        ids = memory.conversation_ids(scope=scope)
        if not ids:
            note(f"no conversations in scope {scope!r}")
            leave(found=False)
        loaded = LocalModel.load(model, device=device, dtype=dtype)
        if limit is not None:
            block_files.keep_limit(memory.block_directory, int(limit * 1e9))
        blocks = BlockCache(
            loaded,
            memory.block_directory,
            lambda each: memory.get(each, scope=scope),
            scope=scope,
        )
        with (
            telling_if_stopped(lambda: "what was computed is stored; run it again to go on"),
            progress("computing", len(ids)) as at,
        ):
            read = blocks.prepare(ids, at)
        took = blocks.bytes
        full, most = blocks.full, block_files.limit_of(memory.block_directory) / 1e9
    if as_json:
        say_json({"conversations": len(ids), "tokens": read, "bytes": took, "full": full})
        return
    say(f"{many(read, 'token')} of {many(len(ids), 'conversation')} computed; all blocks take {took / 1e6:,.0f} MB")
    if full:
        note(f"the limit of {most:g} GB is reached: older conversations are computed when they are asked for (--limit)")
    say(f"use them with: {PROGRAM} chat --mode kv --model {model} --scope {scope}")
