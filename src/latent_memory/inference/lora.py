"""Memory in the weights: an adapter (LoRA) trained on conversations, that answers with no memory in the prompt.

What an adapter has seen is written down before its training begins (see `latent_memory.adapters`): forgetting cannot
reach into weights. So that it goes on knowing all else, the model's own texts are mixed in, on which the adapter is
held to what the model says without it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

import filelock

from latent_memory import adapters
from latent_memory.adapters import CONFIG, WEIGHTS, Manifest, count
from latent_memory.errors import DerivedError, InputError
from latent_memory.files import as_ours
from latent_memory.inference import prompt
from latent_memory.inference.extra import in_memory, needed
from latent_memory.inference.local_model import LocalModel, Messages, Prefilled
from latent_memory.inference.lora_layers import Layers
from latent_memory.inference.lora_training import (
    CHECKPOINT,
    LOSSES,
    METHOD,
    Progress,
    Settings,
    Step,
    Training,
    TrainReport,
)
from latent_memory.records import Conversation
from latent_memory.training_text import Stretch, stretches

if TYPE_CHECKING:
    from latent_memory.records import Context

__all__ = ["LOSSES", "Adapter", "Settings", "Step", "TrainReport", "train"]

_LOCK = "training.lock"
# Held out only where the rest is many times as much.
_LEAST_STRETCHES = 8


class Adapter:
    """A trained adapter for a model. Use `Adapter.load`.

    With `with adapter:` the model computes with it until the block ends. Reading a prompt switches it on too, and it
    stays on: the answer must be computed with it as well. `off` gives the model back as it was.

    Attributes:
        manifest: what it was trained on, and with.
    """

    def __init__(self, model: LocalModel, layers: Layers, manifest: Manifest) -> None:
        self._model = model
        self._layers = layers
        self.manifest = manifest

    @classmethod
    def load(cls, directory: str | Path, model: LocalModel) -> Self:
        """Load an adapter; it is off at first.

        Raises:
            DerivedError: if there is none, it is damaged or not trained to the end, or is of another model.
            ModelError: if the model's weights are in int8.
        """
        directory = Path(directory).expanduser()
        manifest = Manifest.read(directory)
        manifest.check(directory)
        if WEIGHTS not in manifest.files:
            raise DerivedError(f"{directory}: holds no adapter, but a bridge (--mode soft)")
        if manifest.model["fingerprint"] != model.fingerprint:
            raise DerivedError(
                f"{directory}: trained for {manifest.model['name']} in {manifest.model['dtype']}, and this is "
                f"{model.name} in {model.dtype}, or another version of it. Load that model, or train another adapter"
            )
        peft, safetensors = needed("peft"), needed("safetensors.torch")
        config = peft.LoraConfig.from_pretrained(str(directory))
        layers = Layers(model, config)
        layers.load(safetensors.load_file(directory / WEIGHTS), directory / WEIGHTS)
        for parameter in layers.weights().values():
            parameter.requires_grad_(False)
        return cls(model, layers, manifest)

    @property
    def is_on(self) -> bool:
        """Whether the model computes with it."""
        return self._layers.is_on

    def on(self) -> None:
        """Let the model compute with it.

        Raises:
            InputError: if another adapter is on.
        """
        self._layers.on()

    def off(self) -> None:
        """Let the model compute exactly as before."""
        self._layers.off()

    def __enter__(self) -> Self:
        self.on()
        return self

    def __exit__(self, *_: object) -> None:
        self.off()

    def read(self, context: Context, question: str | Messages) -> Prefilled:  # noqa: ARG002
        """Let the model read a question, with no memory in the prompt: that is in the weights.

        Args:
            context: of no matter here; all ways of bringing memory in take one.
            question: a text, or the live conversation.
        """
        self.on()
        return self._model.prefill(prompt.tokens(self._model, question))


# -- training ---------------------------------------------------------------------------------------------


def train(
    model: LocalModel,
    conversations: Iterable[Conversation],
    directory: str | Path,
    *,
    scope: str = "default",
    settings: Settings | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    every: float = 60.0,
) -> TrainReport:
    """Train an adapter on conversations, or go on with a training that was stopped.

    Stopped by Ctrl-C it keeps what was learnt; killed, it loses a minute at most. The same call goes on from there, and
    ends in the same weights.

    Args:
        model: the base model; it is as before when this returns.
        conversations: as a memory has them.
        directory: where the adapter goes; made if missing.
        scope: that the conversations are of; an adapter knows one scope.
        settings: how to train; by default `Settings()`.
        progress: called after each step, and each time that the validation loss was measured.
        fresh: begin anew, in the place of whatever adapter is there.
        every: seconds after which what was learnt is kept.

    Returns:
        What came of it; at once, if that very training is there in full.

    Raises:
        InputError: if there is nothing to train on, or another adapter is there.
        ModelError: if the model cannot be adapted.
        ModelMemoryError: if memory runs out.
    """
    directory, settings = Path(directory).expanduser(), settings or Settings()
    told = list(conversations)
    if len({conversation.conversation_id for conversation in told} - {None}) < len(told):
        raise InputError("conversations: each needs a conversation_id of its own; take them from a memory")
    memory = [stretch for conversation in told for stretch in stretches(conversation)]
    if not memory:
        raise InputError("nothing to train on: the scope has no turns")
    kept, held_out = _split(memory, settings)
    manifest = Manifest(
        scope=scope,
        model={"name": model.name, "dtype": model.dtype, "fingerprint": model.fingerprint},
        settings={**asdict(settings), "method": METHOD},
        finished=False,
        files={},
        losses={},
        seen=adapters.seen_of(told, _places(kept)),
        held_out=adapters.seen_of(told, _places(held_out)),
    )
    with as_ours(directory):
        directory.mkdir(parents=True, exist_ok=True)
    if (directory / "bridge.safetensors").exists():
        raise InputError(f"{directory}: holds a bridge; give another directory, or name")
    try:
        with filelock.FileLock(directory / _LOCK, timeout=0):
            if not fresh and (done := _there(directory, manifest)):
                return done
            with in_memory(f"training an adapter for {model.name}"):
                training = Training(model, kept, held_out, directory, manifest, settings, progress)
                if fresh:
                    for name in (WEIGHTS, CONFIG, LOSSES, CHECKPOINT):
                        (directory / name).unlink(missing_ok=True)
                # Before anything is learnt: from now on it may be in the weights.
                manifest.write(directory)
                return training.run(every)
    except filelock.Timeout:
        raise InputError(f"{directory}: another process is training this adapter; wait for it to end") from None


def _split(memory: Sequence[Stretch], settings: Settings) -> tuple[list[Stretch], list[Stretch]]:
    """Return the stretches to train on, and those held out, which are the same each time."""
    count = round(len(memory) * settings.validation)
    if settings.validation and len(memory) >= _LEAST_STRETCHES:
        count = max(count, 1)
    chance = random.Random(f"{settings.seed}/held out")
    held_out = set(chance.sample(range(len(memory)), count))
    return (
        [stretch for i, stretch in enumerate(memory) if i not in held_out],
        [stretch for i, stretch in enumerate(memory) if i in held_out],
    )


def _places(memory: Iterable[Stretch]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for stretch in memory:
        found.setdefault(stretch.conversation_id, []).extend(stretch.turns)
    return found


def _there(directory: Path, wanted: Manifest) -> TrainReport | None:
    """Return the report of a training that is there in full; None if it is to be begun, or goes on.

    Raises:
        InputError: if what is there is another one.
    """
    if not (directory / adapters.MANIFEST).exists():
        return None
    try:
        found = Manifest.read(directory)
        if found.finished:
            found.check(directory)
    except DerivedError as error:
        raise InputError(f"{error}; to put a new adapter in its place, train with fresh (--fresh)") from None
    for name, what in (
        ("model", "of another model"),
        ("settings", "trained with other settings"),
        ("scope", "of another scope"),
        ("seen", "trained on other turns"),
    ):
        if getattr(found, name) != getattr(wanted, name):
            raise InputError(
                f"{directory}: the adapter there is {what}. Give another directory, or put a new one in its place "
                "(fresh, --fresh)"
            )
    if not found.finished:
        return None
    losses = found.losses
    return TrainReport(
        directory,
        losses["steps"],
        losses["steps"],
        0.0,
        count(found.seen),
        count(found.held_out),
        tuple(losses["training"]),
        tuple((step, each) for step, each in losses["validation"]),
        losses["held_out"],
        losses["drift"],
    )
