"""The training of an adapter: steps, validation, checkpoints.

What every step does follows from the settings and the step's number; a checkpoint holds the rest (weights, the
optimiser's state, the model's own texts), as safetensors. So a training that was stopped ends in the same weights as
one that was not.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_memory.adapters import CONFIG, WEIGHTS, Manifest, count
from latent_memory.errors import InputError
from latent_memory.files import sha256_of, uninterrupted, written
from latent_memory.inference import prompt, tensor_files
from latent_memory.inference.extra import needed
from latent_memory.inference.local_model import LocalModel
from latent_memory.inference.lora_layers import layers_of
from latent_memory.inference.lora_rows import Batch, Rows
from latent_memory.training_text import Stretch

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = "losses.jsonl"
CHECKPOINT = "checkpoint.safetensors"
# Another number for another way of training: what was begun in the old one does not go on in the new one.
METHOD = 1

_WARM_UP = 10
_LEAST_RATE = 0.05
_LARGEST_GRADIENT = 1.0
# The model's own texts: so many from each opening, of so many tokens; so many at once.
_OWN_TEXTS, _OWN_TOKENS, _OWN_AT_ONCE = 10, 128, 3


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained.

    Attributes:
        rank: of the adapter; a higher one holds more, and takes more room.
        passes: how often the record is gone through.
        questions: the share of the questions made of the memory that is asked in a pass.
        rate: the highest learning rate.
        own: at this share of the steps, the adapter is held to the model on the model's own texts; 0 for never.
        hold: how much that counts against what is learnt in the step.
        strength: the share of what it was trained to at which the adapter is kept, from 0 to 1. At half of it nearly
            all of what it has learnt is there, and hardly anything of what it has done to other texts.
        validation: the share of the stretches that is held out.
        batch: about how many tokens a step has.
        seed: everything random follows from it.

    Raises:
        InputError: for a number out of bounds.
    """

    rank: int = 16
    passes: int = 2
    questions: float = 0.25
    rate: float = 5e-4
    own: float = 0.25
    hold: float = 1.0
    strength: float = 0.5
    validation: float = 0.05
    batch: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            **{"rank": (1, 1024), "passes": (1, 1000), "questions": (0, 1), "rate": (1e-7, 1), "own": (0, 1)},
            **{"hold": (0, 1000), "strength": (0.01, 1)},
            **{"validation": (0, 0.5), "batch": (32, 1 << 20), "seed": (0, 1 << 62)},
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value <= most:
                raise InputError(f"{name}: {value!r} is not between {least:,} and {most:,}")
            if isinstance(Settings.__dataclass_fields__[name].default, int) and type(value) is not int:
                raise InputError(f"{name}: {value!r} is not a whole number")


class Step(NamedTuple):
    """How far a training has come.

    Attributes:
        step, steps: this one, from 1, and how many there are.
        loss: of what was learnt in this step, in nats a token; None before the first.
        validation: of what was held out, by what it is ("record", "questions"), where it was just measured.
    """

    step: int
    steps: int
    loss: float | None
    validation: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training came to.

    Attributes:
        directory: where the adapter is.
        steps: how many there were.
        resumed_at: the step that it went on from; 0 if it began anew.
        seconds: that this call took.
        turns: how many it was trained on.
        held_out: how many were kept for validation.
        losses: the training loss by step.
        validation: (step, losses) each time that they were measured, the adapter at full strength; the first is without
            it.
        held_out_loss: at the strength that it is kept at; empty if nothing was held out.
        drift: how far it moves the model on the model's own texts, at that strength, in nats a token; None without any.
    """

    directory: Path
    steps: int
    resumed_at: int
    seconds: float
    turns: int
    held_out: int
    losses: tuple[float, ...]
    validation: tuple[tuple[int, dict[str, float]], ...]
    held_out_loss: dict[str, float]
    drift: float | None


Progress = Callable[[Step], None]


class Training:
    """One run, from the beginning or from a checkpoint."""

    def __init__(
        self,
        model: LocalModel,
        kept: Sequence[Stretch],
        held_out: Sequence[Stretch],
        directory: Path,
        manifest: Manifest,
        settings: Settings,
        progress: Progress | None,
    ) -> None:
        torch = needed("torch")
        self._model, self._directory, self._manifest, self._settings = model, directory, manifest, settings
        self._progress = progress or (lambda _: None)
        rows = self._rows = Rows(model, settings.batch)
        seed = settings.seed
        self._batches = [
            batch
            for at in range(settings.passes)
            for batch in rows.batches(rows.passed(kept, f"{seed}/{at}", settings.questions), f"{seed}/{at}")
        ]
        self._ends = self._ends_of_passes(kept)
        self._held_out = {
            "record": [row for stretch in held_out for row in rows.record(stretch)],
            "questions": [rows.questions([(q, a)], prompt.INSTRUCTION) for s in held_out for _, q, a in s.questions],
        }
        self._layers, self._config = layers_of(model, settings.rank, seed)
        self._weights = self._layers.weights()
        self._optimiser = torch.optim.AdamW(
            list(self._weights.values()), lr=settings.rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self._step = 0
        self._own: Tensor | None = None
        self._losses: list[float] = []
        self._validation: list[tuple[int, dict[str, float]]] = []

    def _ends_of_passes(self, kept: Sequence[Stretch]) -> set[int]:
        rows, seed, ends, total = self._rows, self._settings.seed, set(), 0
        for at in range(self._settings.passes):
            total += len(rows.batches(rows.passed(kept, f"{seed}/{at}", self._settings.questions), f"{seed}/{at}"))
            ends.add(total)
        return ends

    def run(self, every: float) -> TrainReport:
        """Train to the end."""
        began = kept_at = time.monotonic()
        self._resume()
        resumed_at = self._step
        if self._own is None and self._settings.own:
            self._own = self._sampled()
        try:
            self._validate()
            while self._step < len(self._batches):
                self._learn()
                self._progress(Step(self._step, len(self._batches), self._losses[-1]))
                self._validate()
                if time.monotonic() - kept_at > every:
                    self._keep()
                    kept_at = time.monotonic()
        except BaseException:
            # Ctrl-C for one; whatever else it was, what was learnt is worth keeping.
            with uninterrupted():
                self._keep()
            raise
        finally:
            self._layers.off()
        with uninterrupted():
            self._keep()
        self._layers.scale(self._settings.strength)
        held_out_loss, drift = self._measured(adapted=True), self._drift()
        with uninterrupted():
            self._finish(held_out_loss, drift)
        return TrainReport(
            self._directory,
            len(self._batches),
            resumed_at,
            time.monotonic() - began,
            count(self._manifest.seen),
            count(self._manifest.held_out),
            tuple(self._losses),
            tuple(self._validation),
            held_out_loss,
            drift,
        )

    # -- a step ---------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        torch = needed("torch")
        at = self._step
        with self._layers.switched(True):
            loss = self._loss(self._rows.padded(self._batches[at]))
            loss.backward()
            own = self._chosen(at)
            if own is not None:
                (self._settings.hold * self._apart(own)).backward()
        with uninterrupted():
            # All of it or none: a step that was broken off would be neither.
            for group in self._optimiser.param_groups:
                group["lr"] = self._settings.rate * _schedule(at, len(self._batches))
            torch.nn.utils.clip_grad_norm_(self._weights.values(), _LARGEST_GRADIENT)
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)
            self._losses.append(float(loss.detach()))
            self._step += 1

    def _loss(self, batch: Batch, *, summed: bool = False) -> Tensor:
        """Return the mean loss of a batch's wanted tokens, or their sum."""
        torch = needed("torch")
        wanted = batch.wanted[:, 1:]
        # Logits of what is not wanted in any row are not computed.
        columns = wanted.any(0).nonzero()[:, 0]
        with self._mixed():
            logits = self._model.model(
                input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False, logits_to_keep=columns
            ).logits
        chosen = wanted[:, columns]
        made: Tensor = torch.nn.functional.cross_entropy(
            logits[chosen].float(), batch.tokens[:, 1:][:, columns][chosen], reduction="sum" if summed else "mean"
        )
        return made

    def _mixed(self) -> Any:
        """Let matrices be multiplied in bf16 where the machine does that faster; weights and losses stay in fp32."""
        torch = needed("torch")
        device = self._model.device.partition(":")[0]
        faster = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        if self._model.dtype != "fp32" or not (
            torch.cuda.is_bf16_supported() if device == "cuda" else device == "cpu" and faster and faster()
        ):
            return contextlib.nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)

    def _chosen(self, at: int) -> Tensor | None:
        """Return those of the model's own texts that a step takes; most take none."""
        chance = random.Random(f"{self._settings.seed}/own/{at}")
        if self._own is None or chance.random() >= self._settings.own:
            return None
        return self._own[chance.sample(range(len(self._own)), min(_OWN_AT_ONCE, len(self._own)))]

    def _apart(self, texts: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence of the model with the adapter from that without, in nats a token."""
        torch = needed("torch")
        with torch.no_grad(), self._mixed(), self._layers.switched(False):
            before = self._model.model(input_ids=texts, use_cache=False).logits.float().log_softmax(-1)
        with self._mixed(), self._layers.switched(True):
            after = self._model.model(input_ids=texts, use_cache=False).logits.float().log_softmax(-1)
        made: Tensor = (before.exp() * (before - after)).sum(-1).mean()
        return made

    def _sampled(self) -> Tensor:
        """Return texts that the model writes by itself, (texts, tokens)."""
        torch, transformers = needed("torch"), needed("transformers")
        chance = torch.Generator().manual_seed(self._settings.seed)
        length = min(_OWN_TOKENS, self._model.window)
        made = []
        for opening in self._rows.openings():
            tokens = torch.tensor([opening[: length - 1]] * _OWN_TEXTS, device=self._model.device)
            cache, given = transformers.DynamicCache(), tokens
            with torch.no_grad():
                while tokens.shape[1] < length:
                    read = self._model.model(
                        input_ids=given, **{self._model._cache: cache}, use_cache=True, logits_to_keep=1
                    )
                    given = (
                        read.logits[:, -1]
                        .float()
                        .cpu()
                        .softmax(-1)
                        .multinomial(1, generator=chance)
                        .to(self._model.device)
                    )
                    tokens = torch.cat([tokens, given], 1)
            made.append(tokens)
        return torch.cat(made)

    # -- what is measured -----------------------------------------------------------------------------------

    def _validate(self) -> None:
        """Measure the loss of what is held out, at the beginning and after each pass."""
        if (self._step and self._step not in self._ends) or self._step in dict(self._validation):
            return
        if found := self._measured(adapted=self._step > 0):
            self._validation.append((self._step, found))
            self._progress(Step(self._step, len(self._batches), self._losses[-1] if self._losses else None, found))

    def _measured(self, *, adapted: bool) -> dict[str, float]:
        """Return the loss of what is held out, in nats a token."""
        torch = needed("torch")
        found: dict[str, float] = {}
        with torch.no_grad(), self._layers.switched(adapted):
            for name, rows in self._held_out.items():
                total = sum(sum(row.wanted) for row in rows)
                if total:
                    batches = self._rows.batches(rows, "")
                    found[name] = sum(float(self._loss(self._rows.padded(b), summed=True)) for b in batches) / total
        return found

    def _drift(self) -> float | None:
        torch = needed("torch")
        if self._own is None:
            return None
        with torch.no_grad():
            parts = self._own.split(_OWN_AT_ONCE)
            return sum(float(self._apart(part)) * len(part) for part in parts) / len(self._own)

    # -- what is kept ---------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Write a checkpoint: weights, the optimiser's state, the model's own texts, and the losses so far."""
        tensors = {f"weights/{name}": parameter.detach() for name, parameter in self._weights.items()}
        for name, parameter in self._weights.items():
            for part, value in self._optimiser.state.get(parameter, {}).items():
                tensors[f"{part}/{name}"] = value
        if self._own is not None:
            tensors["own"] = self._own
        told = {"step": self._step, "losses": self._losses, "validation": self._validation}
        tensor_files.save(self._directory / CHECKPOINT, tensors, {"told": json.dumps(told)})
        self._write_losses()

    def _resume(self) -> None:
        """Go on from the checkpoint, if there is one that is whole."""
        path = self._directory / CHECKPOINT
        if not path.exists():
            return
        tensors, kept = tensor_files.load(path, "delete it to begin this training anew (or use fresh, --fresh)")
        told = json.loads(kept["told"])
        self._layers.load({n.removeprefix("weights/"): t for n, t in tensors.items() if n.startswith("weights/")}, path)
        for name, parameter in self._weights.items():
            if f"exp_avg/{name}" in tensors:
                self._optimiser.state[parameter] = {
                    "step": tensors[f"step/{name}"],
                    **{part: tensors[f"{part}/{name}"].to(parameter.device) for part in ("exp_avg", "exp_avg_sq")},
                }
        if "own" in tensors:
            self._own = tensors["own"].to(self._model.device)
        self._step = told["step"]
        self._losses = list(told["losses"])
        self._validation = [(step, losses) for step, losses in told["validation"]]

    def _finish(self, held_out_loss: dict[str, float], drift: float | None) -> None:
        """Write the adapter, and say that it is finished."""
        safetensors = needed("safetensors.torch")
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self._weights.items()}
        with written(self._directory / WEIGHTS) as file:
            file.write(safetensors.save(tensors, {"format": "pt"}))
        config = {key: value for key, value in self._config.to_dict().items() if key != "runtime_config"}
        config |= {"inference_mode": True, "lora_alpha": config["lora_alpha"] * self._settings.strength}
        with written(self._directory / CONFIG) as file:
            file.write(json.dumps(config, indent=1, default=_listed, sort_keys=True).encode() + b"\n")
        self._write_losses()
        manifest = Manifest(
            **{
                **{name: getattr(self._manifest, name) for name in Manifest.__dataclass_fields__},
                "finished": True,
                "files": {
                    name: {
                        "bytes": (self._directory / name).stat().st_size,
                        "sha256": sha256_of(self._directory / name),
                    }
                    for name in (WEIGHTS, CONFIG)
                },
                "losses": {
                    "steps": len(self._batches),
                    "training": self._losses,
                    "validation": self._validation,
                    "held_out": held_out_loss,
                    "drift": drift,
                },
            }
        )
        manifest.write(self._directory)
        (self._directory / CHECKPOINT).unlink(missing_ok=True)

    def _write_losses(self) -> None:
        measured = dict(self._validation)
        with written(self._directory / LOSSES) as file:
            for step in range(len(self._losses) + 1):
                line: dict[str, Any] = {"step": step}
                if step:
                    line["loss"] = self._losses[step - 1]
                if step in measured:
                    line["validation"] = measured[step]
                if len(line) > 1:
                    file.write(json.dumps(line).encode() + b"\n")


def _schedule(at: int, steps: int) -> float:
    """Return the share of the highest rate for a step: up in the first few, then down along a cosine."""
    falling = _LEAST_RATE + (1 - _LEAST_RATE) * (1 + math.cos(math.pi * at / steps)) / 2
    return min(1.0, (at + 1) / max(1, min(_WARM_UP, steps // 10))) * falling


def _listed(value: object) -> object:
    """Return what JSON has no form for as a list, or as text."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))
