"""Rotary positions: which models' keys can be moved, and moving them.

A rotary model turns each pair of numbers of a key by its position times the pair's frequency (Su et al. 2021,
RoFormer), and attends by differences of positions alone. So a key that was computed at one place is moved to another,
exactly, by turning it on. Whether that holds for a model is tried, not looked up: the same tokens are read at two
places, and each layer's keys must agree after they are moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latent_memory.errors import ModelError
from latent_memory.inference.extra import needed

if TYPE_CHECKING:
    import torch

    from latent_memory.inference.local_model import LocalModel

# Frequencies that depend on how long the prompt is: a stored key would be turned by other ones.
_CHANGING = ("dynamic", "longrope")
# How far keys may differ that should be equal, as a share of their length, by the numbers they are computed in.
_TOLERANCE = {"fp32": 1e-3, "int8": 1e-3, "fp16": 0.03, "bf16": 0.15}
_TRIED, _FAR = 12, 37


class Rotary:
    """Moves keys of one model.

    Args:
        model: the model.

    Raises:
        ModelError: if its keys cannot be moved; the message names the way that works (prompt).
    """

    def __init__(self, model: LocalModel) -> None:
        self._name = model.name
        found = [
            module
            for module in model.model.modules()
            if type(module).__name__.endswith("RotaryEmbedding") and hasattr(module, "inv_freq")
        ]
        if not found:
            raise self._refused("it has no rotary positions")
        if len(found) > 1:
            raise self._refused("its layers have different rotary positions")
        if getattr(found[0], "rope_type", "default") in _CHANGING:
            raise self._refused(f"its rotary positions change with the prompt's length ({found[0].rope_type})")
        self._frequencies: torch.Tensor = found[0].inv_freq.detach().float()
        self._try(model)

    def turn(self, keys: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        """Return the keys, each moved by so many positions.

        Args:
            keys: (..., tokens, head dimension).
            by: (tokens,), whole numbers; negative ones move back.
        """
        torch = needed("torch")
        angles = by.to(keys.device)[:, None].float() * self._frequencies.to(keys.device)
        cos, sin = angles.cos(), angles.sin()
        half = cos.shape[-1]
        # Some models turn a part of the numbers only.
        first, second, rest = keys.float().split((half, half, keys.shape[-1] - 2 * half), -1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)
        return turned.to(keys.dtype)

    def _try(self, model: LocalModel) -> None:
        torch, transformers = needed("torch"), needed("transformers")
        cache = transformers.DynamicCache(config=model.model.config)
        layers = getattr(cache, "layers", ())
        if any(getattr(layer, "is_sliding", False) for layer in layers):
            raise self._refused("its attention looks through sliding windows")
        tokens = list(range(3, 3 + _TRIED))
        kept: list[tuple[Any, Any]] = []
        with torch.inference_mode():
            for start in (0, _FAR):
                cache = transformers.DynamicCache()
                positions = torch.arange(start, start + _TRIED, device=model.device)[None]
                ids = torch.tensor([tokens], device=model.device)
                model.run({"input_ids": ids}, cache, positions)
                kept.append(stacked(cache, model))
        (keys, values), (far_keys, far_values) = kept
        moved = self.turn(keys, torch.full((_TRIED,), _FAR))
        tolerance = _TOLERANCE[model.dtype]
        for there, here in ((far_keys, moved), (far_values, values)):
            if float((there.float() - here.float()).norm() / there.float().norm()) > tolerance:
                raise self._refused("its keys do not move as those of rotary positions do")

    def _refused(self, why: str) -> ModelError:
        return ModelError(
            f"{self._name}: its keys and values cannot be stored as blocks: {why}. Use the way that works with every "
            "model: mode prompt"
        )


def stacked(cache: Any, model: LocalModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a cache's keys and values, each (layers, key-value heads, tokens, head dimension).

    Raises:
        ModelError: if the cache is laid out in another way.
    """
    torch = needed("torch")
    layers = getattr(cache, "layers", ())
    shapes = {
        tuple(part.shape) if isinstance(part, torch.Tensor) else None
        for layer in layers
        for part in (getattr(layer, "keys", None), getattr(layer, "values", None))
    }
    if len(layers) != model.model.config.num_hidden_layers or len(shapes) != 1 or None in shapes:
        raise ModelError(
            f"{model.name}: its cache is not one pair of keys and values of the same shape for each layer, and cannot "
            "be stored. Use the way that works with every model: mode prompt"
        )
    return torch.stack([layer.keys[0] for layer in layers]), torch.stack([layer.values[0] for layer in layers])


def cache_of(keys: torch.Tensor, values: torch.Tensor) -> Any:
    """Return a new cache that holds copies of keys and values; nothing that is done to it reaches them."""
    transformers = needed("transformers")
    cache = transformers.DynamicCache()
    for number in range(len(keys)):
        # The cache joins what it is given to what it has, which makes a copy.
        cache.update(keys[number][None], values[number][None], number)
    return cache
