"""Selective recomputation: a small share of a joined memory is read anew, behind all of it.

As in CacheBlend (Yao et al. 2025): the first two layers are run over the whole memory, which shows the tokens whose
keys and values change most when their blocks see each other; these are then run through all layers together with the
question, under a mask that hides their stale entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latent_memory.errors import ModelError
from latent_memory.inference.extra import needed
from latent_memory.inference.local_model import LocalModel, Prefilled
from latent_memory.inference.rotary import Rotary, cache_of

if TYPE_CHECKING:
    import torch

    from latent_memory.inference.kv_cache import Joined

# By the second layer's keys and values: the first one's know nothing of other tokens.
_LAYER = 1


class _EnoughError(Exception):
    """The layers that were wanted have run."""


def recomputed(model: LocalModel, rotary: Rotary, joined: Joined, tail: list[int], share: float) -> Prefilled:
    """Return the model after a joined memory, of which a share is read anew, and the tail.

    Args:
        model: the model.
        rotary: moves its keys.
        joined: the memory.
        tail: the tokens after it.
        share: of the memory's tokens, 0 to 1.
    """
    torch = needed("torch")
    count = len(joined.tokens)
    places = torch.arange(count, device=model.device)
    keys = rotary.turn(joined.keys, places)
    most = round(share * (count - joined.head))
    chosen = _changed(model, joined, keys, most)
    stays = torch.ones(count, dtype=torch.bool, device=model.device)
    stays[chosen] = False
    cache = cache_of(keys[:, :, stays], joined.values[:, :, stays])
    kept = places[stays]
    positions = torch.cat((chosen, torch.arange(count, count + len(tail), device=model.device)))
    everything = torch.cat((kept, positions))
    # Each sees what stands before it, wherever that lies in the cache.
    mask = (everything[None, :] <= positions[:, None])[None, None]
    tokens = [joined.tokens[int(at)] for at in chosen] + tail
    with torch.inference_mode():
        ids = torch.tensor([tokens], device=model.device)
        logits = model.run({"input_ids": ids}, cache, positions[None], attention_mask=mask, logits_to_keep=1)
    return Prefilled(cache, count + len(tail), logits[-1], len(tokens))


def _changed(model: LocalModel, joined: Joined, keys: torch.Tensor, most: int) -> torch.Tensor:
    """Return the places, in order, of the memory's tokens whose keys and values change most."""
    torch = needed("torch")
    true_keys, true_values = _first_layers(model, joined.tokens)
    change = torch.zeros(len(joined.tokens), device=model.device)
    for true, stale in ((true_keys, keys[_LAYER]), (true_values, joined.values[_LAYER])):
        apart = (true.float() - stale.float()).square().sum((0, 2))
        change += apart / true.float().square().sum((0, 2)).mean()
    return change[joined.head :].topk(most).indices.sort().values + joined.head


def _first_layers(model: LocalModel, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values of layer `_LAYER`, which need the layers before it alone."""
    torch, transformers = needed("torch"), needed("transformers")
    layers: Any = getattr(model.model.get_decoder(), "layers", None)
    if layers is None or len(layers) <= _LAYER + 1:
        raise ModelError(f"{model.name}: has no list of layers to look into; use recompute=0")
    cache = transformers.DynamicCache()

    def stop(*_: object) -> None:
        raise _EnoughError

    hook = layers[_LAYER + 1].register_forward_pre_hook(stop)
    try:
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=model.device)
            model.run({"input_ids": ids}, cache, torch.arange(len(tokens), device=model.device)[None])
    except _EnoughError:
        pass
    finally:
        hook.remove()
    return cache.layers[_LAYER].keys[0], cache.layers[_LAYER].values[0]
