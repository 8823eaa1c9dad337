"""The extra `llm`, or an error that says how to get it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from latent_memory.errors import MissingExtraError, ModelMemoryError

INSTALL = "pip install 'latent-memory[llm]'"


def needed(name: str) -> ModuleType:
    """Import a module of the extra.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise _missing(name) from None


def check() -> None:
    """Look whether the extra is installed, without the seconds that importing it takes.

    Raises:
        MissingExtraError: if it is not.
    """
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise _missing(name)


def _missing(name: str) -> MissingExtraError:
    return MissingExtraError(f"local models need the package {name}. Install it with: {INSTALL}")


@contextmanager
def in_memory(doing: str) -> Iterator[None]:
    """Turn PyTorch's errors for memory that ran out into ours.

    Raises:
        ModelMemoryError: if it did.
    """
    torch = needed("torch")
    try:
        yield
    except torch.OutOfMemoryError as error:
        place = "the GPU's memory"
        reason: BaseException = error
    except MemoryError as error:
        place, reason = "memory", error
    except RuntimeError as error:
        # On CPUs PyTorch has no type of its own for it.
        if "DefaultCPUAllocator" not in str(error) and "not enough memory" not in str(error):
            raise
        place, reason = "memory", error
    else:
        return
    raise ModelMemoryError(
        f"{doing}: {place} ran out. Take less memory into the prompt (a smaller budget), a smaller model, or "
        "dtype bf16 or int8"
    ) from reason
