"""The commands that train on a memory: `finetune` an adapter, `bridge` for soft tokens, `export` for other trainers."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latent_memory.cli.ending import PROGRAM, leave, note
from latent_memory.cli.opening import open_memory, telling_if_stopped
from latent_memory.cli.options import DEVICE, JSON, MODEL, SCOPE, SEED, STORE, TRAINED_DTYPE, Command, options
from latent_memory.errors import InputError
from latent_memory.output import harmless, many, say, say_json

if TYPE_CHECKING:
    from latent_memory.inference.lora import Step, TrainReport

# As in training_text, which is not imported for --help.
_KINDS = ("talk", "record", "when", "who", "about", "fact")


@click.command(cls=Command, short_help="Train an adapter that holds this memory.")
@options(MODEL, STORE, SCOPE)
@click.option("--name", metavar="NAME", help="Of the adapter, which is kept in the store. Default: the scope.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Keep the adapter there instead.")
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True, help="A higher one holds more.")
@click.option(
    "--passes", type=click.IntRange(min=1), default=2, show_default=True, help="How often the memory is gone through."
)
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), default=5e-4, show_default=True, help="The learning rate."
)
@click.option(
    "--strength",
    type=click.FloatRange(0.01, 1),
    default=0.5,
    show_default=True,
    help="The share of what it was trained to at which the adapter is kept; a lower one leaves other texts alone.",
)
@click.option(
    "--validation",
    type=click.FloatRange(0, 0.5),
    default=0.05,
    show_default=True,
    help="The share of the memory that is held out; 0 to train on all of it.",
)
@SEED
@click.option("--fresh", is_flag=True, help="Begin anew, in the place of the adapter that is there.")
@options(DEVICE, TRAINED_DTYPE, JSON)
def finetune(
    model: str,
    store: Path | None,
    scope: str,
    name: str | None,
    out: Path | None,
    fresh: bool,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train an adapter (LoRA) on one scope, for answers with no memory in the prompt.

    May be interrupted and run again: it goes on from there. Forgetting cannot reach into an adapter; `forget` tells
    which ones must be trained anew.
    """
    if name is not None and out is not None:
        raise click.UsageError("Give either --name or --out")
    from latent_memory import adapters

    with open_memory(store) as memory:
        directory = memory.adapter_directory(name or adapters.named(scope)) if out is None else out
        conversations = list(memory.whole(scope=scope))
        if not conversations:
            note(f"nothing to train on: no conversations in scope {scope!r}")
            leave(found=False)
        # Here, so that what can be told at once does not wait for PyTorch.
        from latent_memory.inference.local_model import LocalModel
        from latent_memory.inference.lora import Settings, train

        chosen = Settings(**settings)
        loaded = LocalModel.load(model, device=device, dtype=dtype)
        if not memory.note_adapter(directory):
            note(f"this memory cannot note that {directory} is trained on it; after forgetting, train it anew")
        with (
            telling_if_stopped(lambda: f"what was learnt is in {directory}; the same command goes on from there"),
            _losses() as at,
        ):
            report = train(loaded, conversations, directory, scope=scope, settings=chosen, progress=at, fresh=fresh)
    if as_json:
        say_json(_report_json(report))
    else:
        _say_report(report)


@contextmanager
def _losses() -> Iterator[Callable[[Step], None]]:
    """Show on standard error how a training goes: one line that changes on a terminal, else one at each validation."""
    live = sys.stderr.isatty()
    began = time.monotonic()
    first: int | None = None
    recent: list[float] = []

    def at(step: Step) -> None:
        nonlocal first
        first = step.step if first is None else first
        if step.validation is None:
            if step.loss is not None:
                recent.append(step.loss)
                del recent[:-20]
            if not live:
                return
        told = f"step {step.step:,} of {step.steps:,}"
        if recent:
            told += f"  loss {sum(recent) / len(recent):.3f}"
        if step.validation:
            told += "  held out: " + ", ".join(f"{name} {value:.3f}" for name, value in step.validation.items())
        elif step.step > first:
            left = (time.monotonic() - began) / (step.step - first) * (step.steps - step.step)
            told += f"  {left / 60:,.0f} min left" if left >= 60 else f"  {left:.0f} s left"
        end = "\n" if step.validation or not live else ""
        print(("\r\x1b[K" if live else "") + harmless(told, sys.stderr), end=end, file=sys.stderr, flush=True)

    try:
        yield at
    finally:
        if live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _say_report(report: TrainReport) -> None:
    held_out = f"; {many(report.held_out, 'turn')} held out" if report.held_out else ""
    say(f"trained on {many(report.turns, 'turn')} in {many(report.steps, 'step')}{held_out}")
    if report.losses:
        count = min(20, len(report.losses))
        begun, ended = sum(report.losses[:count]) / count, sum(report.losses[-count:]) / count
        say(
            f"loss {begun:.3f} -> {ended:.3f} (the first and the last {many(count, 'step')}; losses.jsonl has them all)"
        )
    if report.held_out_loss:
        before, after = report.validation[0][1], report.held_out_loss
        say("held out: " + ", ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in before))
    if report.drift is not None:
        say(f"on the model's own texts it is {report.drift:.4f} nats a token from the model without it")
    say(f"the adapter is at {report.directory}; use it with: {PROGRAM} chat --mode lora --adapter {report.directory}")


def _report_json(report: TrainReport) -> dict[str, Any]:
    return {
        "directory": str(report.directory),
        **{
            n: getattr(report, n)
            for n in ("steps", "resumed_at", "seconds", "turns", "held_out", "held_out_loss", "drift")
        },
        "losses": list(report.losses),
        "validation": [{"step": step, **losses} for step, losses in report.validation],
    }


@click.command(cls=Command, short_help="Train a bridge from stored vectors to soft tokens.")
@options(MODEL, STORE, SCOPE)
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Keep the bridge there. Default: the store."
)
@click.option("--soft", type=click.IntRange(min=1), default=4, show_default=True, help="Soft tokens a passage.")
@click.option(
    "--keywords",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="A passage's rarest words that stay text.",
)
@click.option(
    "--reading", type=click.IntRange(min=1), default=1000, show_default=True, help="Steps of the first stage."
)
@click.option("--answering", type=click.IntRange(min=0), default=150, show_default=True, help="Steps of the second.")
@SEED
@click.option("--fresh", is_flag=True, help="Begin anew, in the place of the bridge that is there.")
@options(DEVICE, TRAINED_DTYPE, JSON)
def bridge(
    model: str,
    store: Path | None,
    scope: str,
    out: Path | None,
    fresh: bool,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a bridge on one scope: from a passage's stored vectors to a few positions that the model reads as tokens.

    The model stays as it is. May be interrupted and run again: it goes on from there. `forget` tells which bridges have
    seen what is forgotten, as it does for adapters.
    """
    with open_memory(store) as memory:
        from latent_memory import bridges
        from latent_memory.inference.local_model import LocalModel

        directory = memory.adapter_directory(bridges.name_of(scope)) if out is None else out
        if not memory.conversation_ids(scope=scope):
            note(f"nothing to train on: no conversations in scope {scope!r}")
            leave(found=False)
        loaded = LocalModel.load(model, device=device, dtype=dtype)
        if not memory.note_adapter(directory):
            note(f"this memory cannot note that {directory} is trained on it; after forgetting, train it anew")
        with (
            telling_if_stopped(lambda: f"what was learnt is in {directory}; the same command goes on from there"),
            _stages() as at,
        ):
            report = bridges.train(memory, loaded, directory, scope=scope, progress=at, fresh=fresh, **settings)
    told = {
        name: None if math.isnan(loss) else loss for name, loss in (("before", report.before), ("after", report.after))
    }
    if as_json:
        say_json({"directory": str(directory), "passages": report.passages, "steps": report.steps, **told})
        return
    say(f"trained on {many(report.passages, 'passage')}")
    if told["after"] is not None:
        say(f"loss of answers about conversations that were kept out: {report.before:.3f} -> {report.after:.3f}")
    say(f"the bridge is at {directory}; use it with: {PROGRAM} chat --mode soft --bridge {directory / bridges.FILE}")


@contextmanager
def _stages() -> Iterator[Callable[[Any], None]]:
    """Show on a terminal how far the training of a bridge is."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    first: dict[str, tuple[int, float]] = {}

    def at(step: Any) -> None:
        begun, seconds = first.setdefault(step.stage, (step.step, step.seconds))
        told = f"{step.stage}: step {step.step:,} of {step.of:,}  loss {step.loss:.3f}"
        if step.step > begun:
            left = (step.seconds - seconds) / (step.step - begun) * (step.of - step.step)
            told += f"  {left / 60:,.0f} min left" if left >= 60 else f"  {left:.0f} s left"
        print(f"\r\x1b[K{told}", end="", file=sys.stderr, flush=True)

    print("\r\x1b[Kembedding…", end="", file=sys.stderr, flush=True)
    try:
        yield at
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@click.command(cls=Command, short_help="Write the memory as training data for other trainers.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["chat-jsonl"]),
    default="chat-jsonl",
    show_default=True,
    help='JSON Lines: {"messages": [{"role": "…", "content": "…"}, …]}.',
)
@options(STORE, SCOPE)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(_KINDS),
    multiple=True,
    help="Which examples, repeatable: talk, the conversations in the roles they had; record, their text, asked for by "
    "its day; when, who, about and fact, questions made by rules from their sentences. Default: all but talk.",
)
@click.option("--system", metavar="TEXT", default="", help="A system message for each example.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Default: standard output.")
def export(
    layout: str,  # noqa: ARG001
    store: Path | None,
    scope: str,
    kinds: Sequence[str],
    system: str,
    out: Path | None,
) -> None:
    """Write one scope as training data for other trainers; it is what `finetune` trains on."""
    from latent_memory.files import written
    from latent_memory.training_text import QUESTIONS, chat_examples

    with open_memory(store) as memory:
        lines = (
            json.dumps(example, ensure_ascii=False).encode() + b"\n"
            for example in chat_examples(memory.whole(scope=scope), kinds or ("record", *QUESTIONS), system=system)
        )
        count = 0
        if out is None:
            for line in lines:
                count += 1
                sys.stdout.buffer.write(line)
        else:
            out = out.expanduser()
            if out.is_dir():
                raise InputError(f"--out: {out} is a directory; name a file in it")
            with written(out) as file:
                for line in lines:
                    count += 1
                    file.write(line)
            note(f"{many(count, 'example')} written to {out}")
    leave(found=bool(count))
