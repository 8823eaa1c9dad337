"""Keys and values as files: safetensors, in full or in 8 or 4 bits, with a checksum and the model's fingerprint.

8 and 4 bits as in KIVI (Liu et al. 2024): keys have channels that are large in every token, so their scales are by
channel; values have none, so theirs are by token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_memory.errors import DerivedError, InputError
from latent_memory.inference import tensor_files
from latent_memory.inference.extra import needed

if TYPE_CHECKING:
    import torch

# The layout below, and how blocks are computed; blocks of another version are of another model, so to say.
VERSION = 1
BITS = (4, 8, 16, 32)
# In 4 bits: so many numbers share a scale.
_GROUP = 32


class Block(NamedTuple):
    """Keys and values, each (layers, key-value heads, tokens, head dimension)."""

    keys: torch.Tensor
    values: torch.Tensor


def save(path: Path, block: Block, bits: int, about: Mapping[str, str]) -> int:
    """Write a block, whole or not at all.

    Args:
        path: where.
        block: what; in floating point.
        bits: of each number: 32 or 16 (floating point), 8 or 4.
        about: what `load` will compare, such as the model's fingerprint.

    Returns:
        How many bytes it takes.

    Raises:
        InputError: for another number of bits.
        StoreError: if it cannot be written.
    """
    if bits not in BITS:
        raise InputError(f"bits: {bits!r} is not a size of numbers; use one of {', '.join(map(str, BITS))}")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor, axis in (("keys", block.keys, -2), ("values", block.values, -1)):
        tensors |= {f"{name}.{part}": t.contiguous() for part, t in _packed(tensor, bits, axis).items()}
    told = {
        "version": str(VERSION),
        "bits": str(bits),
        "tokens": str(block.keys.shape[-2]),
        "dimension": str(block.values.shape[-1]),
    }
    return tensor_files.save(path, tensors, told | dict(about))


def load(path: Path, about: Mapping[str, str], dtype: torch.dtype, rows: Any = None) -> Block:
    """Read a block, mapped into memory and not held in it.

    Args:
        path: where.
        about: what must be as it was when the block was written.
        dtype: of the keys and values that are returned.
        rows: the tokens that are wanted, a tensor of indices; None for all.

    Raises:
        FileNotFoundError: if it is not there.
        DerivedError: if it is damaged, or was written about something else.
    """
    tensors, told = tensor_files.load(path, "delete it, and it will be computed again")
    expected = {"version": str(VERSION)} | dict(about)
    wrong = [name for name, value in expected.items() if told.get(name) != value]
    if wrong:
        raise DerivedError(
            f"{path}: was made with another {' and '.join(wrong)} than this; it cannot be used, and has to be computed "
            "again"
        )
    parts: dict[str, dict[str, torch.Tensor]] = {"keys": {}, "values": {}}
    for name, tensor in tensors.items():
        which, _, part = name.partition(".")
        parts[which][part] = tensor
    bits, tokens, dimension = (int(told[name]) for name in ("bits", "tokens", "dimension"))
    return Block(
        _unpacked(parts["keys"], bits, -2, tokens, dtype, rows),
        _unpacked(parts["values"], bits, -1, dimension, dtype, rows),
    )


def _packed(tensor: torch.Tensor, bits: int, axis: int) -> dict[str, torch.Tensor]:
    """Return a tensor's parts as they are stored. `axis` is the one that shares a scale: -2 tokens, -1 channels."""
    torch = needed("torch")
    tensor = tensor.detach().cpu()
    if bits >= 16:
        # bf16 stays what it is; it has the range that fp16 lacks.
        kept = tensor if tensor.dtype == torch.bfloat16 and bits == 16 else None
        return {"data": tensor.to(torch.float16 if bits == 16 else torch.float32) if kept is None else kept}
    tensor = tensor.float()
    if bits == 8:
        scale = tensor.abs().amax(axis, keepdim=True).clamp(min=1e-8) / 127
        return {"data": (tensor / scale).round().to(torch.int8), "scale": scale}
    # The groups run along the axis; its last group may be short and is filled with what it ends with.
    moved = tensor.movedim(axis, -1)
    short = -moved.shape[-1] % _GROUP
    if short:
        moved = torch.cat((moved, moved[..., -1:].expand(*moved.shape[:-1], short)), -1)
    grouped = moved.reshape(*moved.shape[:-1], -1, _GROUP)
    low = grouped.amin(-1, keepdim=True)
    step = ((grouped.amax(-1, keepdim=True) - low) / 15).clamp(min=1e-8)
    codes = ((grouped - low) / step).round().clamp(0, 15).to(torch.uint8)
    return {
        "data": codes[..., ::2] | codes[..., 1::2] << 4,
        "low": low[..., 0].to(torch.float16),
        "step": step[..., 0].to(torch.float16),
    }


def _unpacked(
    parts: Mapping[str, torch.Tensor], bits: int, axis: int, length: int, dtype: torch.dtype, rows: Any
) -> torch.Tensor:
    """Return what was packed, of `length` along the axis; of its tokens those in `rows`."""
    torch = needed("torch")
    if rows is not None and (bits >= 8 or axis == -1):
        # Scales by channel have one row, which is for all tokens.
        parts = {name: t[:, :, rows] if name == "data" or axis == -1 else t for name, t in parts.items()}
        rows = None
    data = parts["data"]
    if bits >= 16:
        return data.to(dtype)
    if bits == 8:
        return (data.float() * parts["scale"]).to(dtype)
    codes = torch.stack((data & 15, data >> 4), -1).flatten(-2)
    grouped = codes.float() * parts["step"].float()[..., None] + parts["low"].float()[..., None]
    whole = grouped.flatten(-2)[..., :length].movedim(-1, axis)
    return (whole if rows is None else whole[:, :, rows]).to(dtype)
