"""An adapter's layers: on, they stand in the place of the model's own; off, the model is exactly what it was."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_memory.adapters import CONFIG
from latent_memory.errors import DerivedError, InputError, ModelError
from latent_memory.inference.extra import in_memory, needed
from latent_memory.inference.local_model import LocalModel

if TYPE_CHECKING:
    import torch

_NAME = "default"
# As peft writes them, so that others read our files.
_PREFIX = "base_model.model."


class Layers:
    """An adapter's layers beside the model's own, which take turns.

    Args:
        model: they are made for; it is as before when this returns.
        config: peft's LoraConfig.
        seed: the first numbers follow from it.

    Attributes:
        is_on: whether the model computes with the adapter.

    Raises:
        InputError: if another adapter is on.
        ModelError: if the model has no layers that can be adapted.
    """

    def __init__(self, model: LocalModel, config: Any, seed: int = 0) -> None:
        torch = needed("torch")
        functional, lora = needed("peft.functional"), needed("peft.tuners.lora")
        if model.dtype == "int8":
            raise ModelError(f"{model.name}: an adapter needs the weights in fp32, bf16 or fp16, not in int8")
        if any(isinstance(module, lora.LoraLayer) for module in model.model.modules()):
            raise InputError("another adapter of the model is on; switch it off first")
        # Taken of the model as it is, and kept.
        model.fingerprint  # noqa: B018
        devices = [torch.cuda.current_device()] if model.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings(), in_memory("making an adapter"):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            try:
                functional.inject_adapter_in_model(config, model.model, adapter_name=_NAME)
            except ValueError as error:
                raise ModelError(f"{model.name}: its layers cannot be adapted: {str(error)[:300]}") from error
        del model.model.peft_config
        self._local = model
        self._model = model.model
        self._layers = {
            name: module for name, module in model.model.named_modules() if isinstance(module, lora.LoraLayer)
        }
        self._own = {name: layer.base_layer for name, layer in self._layers.items()}
        self.is_on = True
        self.off()

    def on(self) -> None:
        """Let the model compute with the adapter.

        Raises:
            InputError: if another one is on.
        """
        if self.is_on:
            return
        if any(self._model.get_submodule(name) is not module for name, module in self._own.items()):
            raise InputError("another adapter of the model is on; switch it off first")
        self._put(self._layers)
        self.is_on = self._local.adapted = True

    def off(self) -> None:
        """Let the model compute as if there were no adapter."""
        if self.is_on:
            self._put(self._own)
            self.is_on = self._local.adapted = False

    @contextlib.contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        """Switch for a while."""
        before = self.is_on
        (self.on if on else self.off)()
        try:
            yield
        finally:
            (self.on if before else self.off)()

    def scale(self, strength: float) -> None:
        """Let the adapter count for a share of what it was made to."""
        for layer in self._layers.values():
            layer.scaling[_NAME] = strength * layer.lora_alpha[_NAME] / layer.r[_NAME]

    def weights(self) -> dict[str, torch.nn.Parameter]:
        """Return the adapter's weights by the names they have in peft's files."""
        return {
            f"{_PREFIX}{name}.lora_{part}.weight": getattr(layer, f"lora_{part}")[_NAME].weight
            for name, layer in self._layers.items()
            for part in "AB"
        }

    def load(self, tensors: dict[str, torch.Tensor], where: Path) -> None:
        """Take weights.

        Raises:
            DerivedError: if they are not this adapter's in name and shape.
        """
        torch = needed("torch")
        own = self.weights()
        if {n: tuple(t.shape) for n, t in tensors.items()} != {n: tuple(t.shape) for n, t in own.items()}:
            raise DerivedError(f"{where}: its weights do not fit the layers that {CONFIG} names. Train it anew")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    def _put(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            parent, _, last = name.rpartition(".")
            setattr(self._model.get_submodule(parent), last, module)


def layers_of(model: LocalModel, rank: int, seed: int) -> tuple[Layers, Any]:
    """Return a new adapter on all linear layers but the last, with its configuration; it changes nothing yet."""
    peft = needed("peft")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name,
    )
    return Layers(model, config, seed), config
