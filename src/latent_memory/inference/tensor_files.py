"""Tensors in a file: safetensors, written whole or not at all, with what is told of them and a checksum of both."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from latent_memory import files
from latent_memory.errors import DerivedError
from latent_memory.inference.extra import needed

if TYPE_CHECKING:
    import torch

_SUM = "sum"


def save(path: Path, tensors: Mapping[str, torch.Tensor], told: Mapping[str, str]) -> int:
    """Write tensors to a file; its directory is made if it is missing.

    Returns:
        How many bytes the file has.

    Raises:
        StoreError: if it cannot be written.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data: bytes = needed("safetensors.torch").save(whole, {**told, _SUM: _sum(whole, told)})
    with files.as_ours(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with files.written(path) as file:
        file.write(data)
    return len(data)


def load(path: Path, remedy: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read what `save` has written: the tensors, mapped into memory, and what is told of them.

    Args:
        path: where.
        remedy: what to do if it is damaged, for the error message.

    Raises:
        FileNotFoundError: if it is not there.
        DerivedError: if it is damaged, or cannot be read.
    """
    safetensors = needed("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            told = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except FileNotFoundError:
        raise
    except (OSError, safetensors.SafetensorError) as error:
        raise DerivedError(f"{path}: damaged ({error}); {remedy}") from None
    if told.pop(_SUM, "") != _sum(tensors, told):
        raise DerivedError(f"{path}: damaged (wrong checksum); {remedy}")
    return tensors, told


def _sum(tensors: Mapping[str, torch.Tensor], told: Mapping[str, str]) -> str:
    torch = needed("torch")
    # CRC-32 and no digest: it is there against damage, and is computed at each answer, of tens of megabytes.
    value = zlib.crc32(json.dumps(sorted(told.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"
