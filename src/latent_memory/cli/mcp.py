"""The command for clients of MCP that start their servers themselves: `mcp`."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from latent_memory.cli.ending import note
from latent_memory.cli.opening import open_memory
from latent_memory.cli.options import EMBEDDER, SCOPE, STORE, Command, options
from latent_memory.errors import MissingExtraError

if TYPE_CHECKING:
    from latent_memory.memory import LatentMemory


@click.command("mcp", cls=Command, short_help="Give a coding agent or a desktop client the memory (MCP).")
@options(STORE, SCOPE)
@click.option("--read-only", is_flag=True, help="Recall and list; neither add nor forget.")
@options(EMBEDDER)
def mcp_(store: Path | None, scope: str, read_only: bool, embedder: str | None) -> None:
    """Speak MCP on standard input and output, as clients expect of a server that they start.

    The client gets tools (recall, context, add, forget, list), the conversations as resources, and a prompt; all of
    one scope. The memory is made if there is none, unless it may only be read. Ends when the client does.
    """
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"mcp needs {error.name}. Install it with: pip install 'latent-memory[mcp]'") from None
    from latent_memory.server import stdio

    if sys.stdin.isatty():
        note("speaking MCP on standard input and output; a client starts this (docs/mcp.md). Ctrl-C to stop")
    stdio.serve(partial(_opened, store, embedder, scope, read_only), scope, read_only=read_only)


def _opened(
    store: Path | None, embedder: str | None, scope: str, read_only: bool
) -> AbstractContextManager[LatentMemory]:
    # In a thread, when the client has its answer: the import alone takes longer than that.
    from latent_memory.query import check_scope

    check_scope(scope)
    return open_memory(store, embedder, create=not read_only)
