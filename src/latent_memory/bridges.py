"""Training a bridge for soft tokens on a memory's scope, and knowing what it has seen, as for adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from latent_memory import adapters, embedders
from latent_memory.adapters import Manifest
from latent_memory.embedders.base import embedded
from latent_memory.errors import DerivedError, InputError
from latent_memory.files import as_ours, sha256_of
from latent_memory.inference.local_model import LocalModel
from latent_memory.inference.stretches import passages_of
from latent_memory.late import TokenVectors
from latent_memory.memory import DEFAULT_SCOPE, LatentMemory
from latent_memory.passages import spoken
from latent_memory.records import Passage

if TYPE_CHECKING:
    from latent_memory.inference.bridge_training import Progress, Report

FILE = "bridge.safetensors"


def name_of(scope: str) -> str:
    """Return the name of a scope's bridge in a store, beside its adapters."""
    return f"bridge-{adapters.named(scope)}"


def embedder_of(memory: LatentMemory) -> str:
    """Return name and fingerprint of a memory's embedder, as a bridge keeps them."""
    made_by = embedders.identity(memory.embedder)
    return f"{made_by.name} {made_by.fingerprint}"


def train(
    memory: LatentMemory,
    model: LocalModel,
    directory: str | Path,
    *,
    scope: str = DEFAULT_SCOPE,
    progress: Callable[[Progress], None] | None = None,
    fresh: bool = False,
    **settings: Any,
) -> Report:
    """Train a bridge on a scope, or go on with a training that was stopped.

    Args:
        memory: what is trained on.
        model: reads the soft tokens; it stays as it is.
        directory: where the bridge goes, with a note of every turn that it has seen.
        scope: whose memory.
        progress: called after each step.
        fresh: begin anew, in the place of what is there.
        settings: see `inference.bridge_training.train`.

    Raises:
        InputError: for too few passages, a setting that is none, and where something else is.
        DerivedError: if a checkpoint is damaged, or of another model.
        ModelMemoryError: if memory runs out.
    """
    from latent_memory.inference import bridge_training

    directory = Path(directory).expanduser()
    # Summaries of conversations without turns are left out: what is seen is told by turns.
    told = [conversation for conversation in memory.whole(scope=scope) if conversation.turns]
    passages = [passage for conversation in told for passage in passages_of(conversation, scope)]
    if len(passages) < bridge_training.LEAST:
        raise InputError(
            f"scope {scope!r}: {len(passages)} passages are too few to train on; add conversations until there are "
            f"{bridge_training.LEAST}"
        )
    path = directory / FILE
    manifest = Manifest(
        scope=scope,
        model={"name": model.name, "dtype": model.dtype, "fingerprint": model.fingerprint},
        settings={"kind": "bridge", **settings},
        finished=False,
        files={},
        losses={},
        seen=adapters.seen_of(told, {c.conversation_id or "": range(len(c.turns)) for c in told}),
    )
    with as_ours(directory):
        directory.mkdir(parents=True, exist_ok=True)
    if (directory / adapters.WEIGHTS).exists():
        raise InputError(f"{directory}: holds an adapter; give another directory")
    try:
        with filelock.FileLock(directory / "training.lock", timeout=0):
            if fresh:
                for each in (path, bridge_training.checkpoint_of(path)):
                    each.unlink(missing_ok=True)
            elif (directory / adapters.MANIFEST).exists():
                _check_same(directory, manifest)
            # Before anything is learnt: from now on it may be in the weights.
            manifest.write(directory)
            report = bridge_training.train(
                model,
                passages,
                partial(memory.vectors_of, scope=scope),
                path,
                embedder=embedder_of(memory),
                embed=partial(_embed, memory),
                progress=progress,
                **settings,
            )
            files = {FILE: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}}
            measured = {"before": report.before, "after": report.after}
            losses = {name: None if math.isnan(loss) else loss for name, loss in measured.items()}
            replace(manifest, finished=True, files=files, losses=losses).write(directory)
            return report
    except filelock.Timeout:
        raise InputError(f"{directory}: another process is training this bridge; wait for it to end") from None


def _check_same(directory: Path, wanted: Manifest) -> None:
    """Refuse to train over another bridge: what it has seen would be told no more.

    Raises:
        InputError: if what is there is finished, or another one.
    """
    anew = "give another directory (--out), or put a new one in its place (fresh, --fresh)"
    try:
        found = Manifest.read(directory)
    except DerivedError as error:
        raise InputError(f"{error}; {anew}") from None
    if found.finished:
        raise InputError(f"{directory}: a trained bridge is there; use it, {anew}")
    if any(getattr(found, name) != getattr(wanted, name) for name in ("scope", "model", "settings", "seen")):
        raise InputError(f"{directory}: a training of another scope, model, or state of the memory is there; {anew}")


def _embed(memory: LatentMemory, passages: Sequence[Passage]) -> TokenVectors:
    return embedded(memory.embedder, [spoken(passage.name, passage.text) for passage in passages])
