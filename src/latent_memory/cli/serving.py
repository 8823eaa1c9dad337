"""The commands that let others in: `serve`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from latent_memory.cli.ending import note
from latent_memory.cli.opening import open_memory
from latent_memory.cli.options import EMBEDDER, STORE, Command, options, scope_option
from latent_memory.errors import InputError, MissingExtraError

UPSTREAM_KEY_VARIABLE = "LATENT_MEMORY_UPSTREAM_KEY"

_A_FILE = click.Path(path_type=Path)


@click.command(cls=Command, short_help="Serve the memory: OpenAI-compatible, REST and MCP.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; elsewhere keys are needed.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes a free one.")
@click.option(
    "--upstream",
    metavar="URL",
    help="Where chats are sent on to: an OpenAI-compatible server (https://api.openai.com/v1), or local:smollm2 for "
    "a model on this machine. Without it there are no chats; everything else works.",
)
@click.option(
    "--upstream-key-file",
    metavar="FILE",
    type=_A_FILE,
    help=f"Holds the upstream's key, for requests that bring none. Default: ${UPSTREAM_KEY_VARIABLE}.",
)
@click.option(
    "--upstream-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=300,
    show_default=True,
    help="How long the upstream may be silent.",
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="The most tokens of memory that a chat gets, unless it says otherwise.",
)
@click.option(
    "--allow-host",
    "hosts",
    metavar="NAME",
    multiple=True,
    help="A name that the server is called by, beside those of this machine; repeatable.",
)
@click.option(
    "--allow-origin",
    "origins",
    metavar="ORIGIN",
    multiple=True,
    help="Web pages that may use it, as in https://chat.example; repeatable. Default: none.",
)
@click.option("--tls-cert", metavar="FILE", type=_A_FILE, help="A certificate (PEM), for https.")
@click.option("--tls-key", metavar="FILE", type=_A_FILE, help="Its private key (PEM).")
@click.option(
    "--rate",
    metavar="N",
    type=click.FloatRange(min=0),
    default=500,
    show_default=True,
    help="Requests a second for each key; 0 for no limit.",
)
@click.option(
    "--max-concurrent",
    "most_at_once",
    metavar="N",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Requests that are answered at a time, half of them for one key; those beyond are told to come back.",
)
@click.option(
    "--max-body",
    "mebibytes",
    metavar="MIB",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="The largest body of a request, and the longest line of a stream of them.",
)
@click.option("--log-text", is_flag=True, help="Write what is said into the log.")
@options(STORE, scope_option("Of requests that name none, unless their key opens just one."), EMBEDDER)
def serve(
    host: str,
    port: int,
    upstream: str | None,
    upstream_key_file: Path | None,
    upstream_timeout: float,
    budget: int,
    hosts: Sequence[str],
    origins: Sequence[str],
    tls_cert: Path | None,
    tls_key: Path | None,
    mebibytes: int,
    store: Path | None,
    scope: str,
    embedder: str | None,
    **limits: Any,
) -> None:
    """Serve the memory to applications, until Ctrl-C.

    One process, and several doors: an OpenAI-compatible proxy that lets any model remember (/v1/chat/completions), REST
    (/v1/memory/…, described in /openapi.json) and MCP (/mcp).
    """
    try:
        import fastapi  # noqa: F401
        import httpx2  # noqa: F401
        import mcp  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"serve needs {error.name}. Install it with: pip install 'latent-memory[server]'"
        ) from None
    from latent_memory.keys import KeyRing
    from latent_memory.server.app import create_app
    from latent_memory.server.observing import log_to
    from latent_memory.server.running import address, listen
    from latent_memory.server.running import serve as answer
    from latent_memory.server.settings import MEBIBYTE, Settings

    settings = Settings(
        host=host,
        port=port,
        scope=scope,
        upstream=upstream,
        upstream_key=_upstream_key(upstream_key_file),
        upstream_seconds=upstream_timeout,
        budget=budget,
        hosts=tuple(hosts),
        origins=tuple(origins),
        certificate=tls_cert,
        private_key=tls_key,
        most_bytes=mebibytes * MEBIBYTE,
        **limits,
    )
    with open_memory(store, embedder, create=True) as memory:
        keys = None if memory.in_file else KeyRing(memory.path)
        app = create_app(memory, settings, keys)
        listening = listen(settings)
        where = address(settings, listening)

        def started() -> None:
            note(f"serving {memory.path} at {where} (Ctrl-C to stop)")
            told = f"chats go on to {upstream}" if upstream else "no chats without --upstream"
            note(f"  {where}/v1  for clients of the OpenAI API; {told}")
            note(f"  {where}/v1/memory  REST, see {where}/openapi.json")
            note(f"  {where}/mcp  MCP")

        log_to()
        answer(app, settings, listening, started)


def _upstream_key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(UPSTREAM_KEY_VARIABLE) or None
    try:
        key = file.expanduser().read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    if not (key and key.isascii() and key.isprintable()):
        raise InputError(f"{file}: holds no key; it is one line of ASCII")
    return key
