"""Options that several commands have, and what all commands are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

# An installed package has no docs/ beside it. The mark before it keeps the line from being broken.
MORE = "\b\nDocumentation: https://github.com/latent-memory/latent-memory/tree/main/docs"
STORE_VARIABLE = "LATENT_MEMORY_STORE"
SCOPE_VARIABLE = "LATENT_MEMORY_SCOPE"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

STORE = click.option(
    "--store",
    metavar="PATH",
    envvar=STORE_VARIABLE,
    type=click.Path(path_type=Path),
    help="The memory: a store's directory, or a file of another format. "
    f"Default: ${STORE_VARIABLE}, else a store of your own where the system keeps such data.",
)


def scope_option(told: str) -> Callable[[Decorated], Decorated]:
    """Return the option that names a scope, with a help of its own."""
    return click.option("--scope", envvar=SCOPE_VARIABLE, default="default", show_default=True, help=told)


SCOPE = scope_option("Whose memory: a user, a tenant, a project.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
EMBEDDER = click.option(
    "--embedder",
    metavar="NAME",
    help="minilm, hashing, sentence-transformers:MODEL or openai:MODEL. Default: what the memory was made with; minilm "
    "for a new one.",
)
MODEL = click.option(
    "--model",
    metavar="NAME",
    default="smollm2",
    show_default=True,
    help="A directory with safetensors, a GGUF file, a name on the Hugging Face hub, or smollm2.",
)
DEVICE = click.option("--device", metavar="NAME", help="cpu, cuda or mps. Default: the fastest there is.")
DTYPE = click.option(
    "--dtype", metavar="NAME", help="fp32, bf16, fp16 or int8. Default: fp32 on a CPU, else bf16 or fp16."
)
# Weights of 8 bits cannot be trained on.
TRAINED_DTYPE = click.option(
    "--dtype", metavar="NAME", help="fp32, bf16 or fp16. Default: fp32 on a CPU, else bf16 or fp16."
)
SEED = click.option(
    "--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of all that is random."
)
FORMAT = click.option(
    "--format",
    "layout",
    metavar="NAME",
    help="What to make where the path does not say it: csv_json, npy_json, hdf5, pickle or sqlite (a store).",
)
RERANK = (
    click.option(
        "--rerank",
        metavar="NAME",
        help="Let a model look at the first turns again: sentence-transformers:MODEL, onnx:DIRECTORY or openai:MODEL "
        "(which sends them to OPENAI_BASE_URL).",
    ),
    click.option(
        "--rerank-among",
        "among",
        metavar="N",
        type=click.IntRange(min=1),
        default=50,
        show_default=True,
        help="How many turns it looks at.",
    ),
)
FILTERS = (
    click.option("--since", metavar="TIME", help="Only turns said then or later (ISO 8601)."),
    click.option("--until", metavar="TIME", help="Only turns said before then (ISO 8601)."),
    click.option("--during", metavar="TIME", help='Only turns said in this time, in words: "last March", "May 2023".'),
    click.option("--role", "roles", multiple=True, help="Only turns of this role; repeatable."),
    click.option("--conversation", "conversations", metavar="ID", multiple=True, help="Only this one; repeatable."),
)


class From(click.Option):
    """Names the importers in its help, and loads them only for that."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help; see click.Option."""
        from latent_memory.importers import NAMES

        self.help = f"What the files are, instead of looking: {', '.join(NAMES)}."
        return super().get_help_record(ctx)


def options(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Give a command several options at once, in this order."""

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Command(click.Command):
    """A command whose help ends with where to read more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"epilog": MORE} | kwargs))
