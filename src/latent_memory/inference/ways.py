"""The ways of bringing memory into a model, by name; what `latent-memory chat --mode` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from latent_memory.errors import InputError
from latent_memory.inference import prompt
from latent_memory.inference.local_model import LocalModel, Messages, Prefilled
from latent_memory.records import Context, Conversation

if TYPE_CHECKING:
    from latent_memory.inference.soft_tokens import GetVectors

NAMES = ("prompt", "kv", "soft", "lora", "none")


class Way(Protocol):
    """How a model reads a question with its memory."""

    def read(self, context: Context, question: str | Messages) -> Prefilled:
        """Return the model when it has read both, ready to answer."""


class PromptWay:
    """The memory as text in the prompt.

    Args:
        model: the model.
        with_memory: otherwise what was recalled is left out.
    """

    def __init__(self, model: LocalModel, *, with_memory: bool = True) -> None:
        self._model = model
        self._with_memory = with_memory

    def read(self, context: Context, question: str | Messages) -> Prefilled:
        """Return the model when it has read both; see `Way`."""
        return self._model.prefill(prompt.tokens(self._model, question, context if self._with_memory else ""))


def recalls(name: str) -> bool:
    """Tell whether a way takes what was recalled; otherwise nothing need be."""
    return name not in ("none", "lora")


def load(
    name: str,
    model: LocalModel,
    *,
    scope: str,
    conversation: Callable[[str], Conversation | None],
    blocks: Path | None = None,
    embedder: str = "",
    vectors: GetVectors | None = None,
    bridge: Path | None = None,
    adapter: Path | None = None,
) -> Way:
    """Make a way by its name.

    Args:
        name: one of `NAMES`.
        model: the model.
        scope: whose memory it is.
        conversation: returns a stored conversation by its id.
        blocks: of kv, where blocks are kept.
        embedder: of soft, name and fingerprint of what makes the memory's vectors.
        vectors: of soft, returns what is stored of passages.
        bridge: of soft, the trained bridge.
        adapter: of lora, the trained adapter.

    Raises:
        InputError: for an unknown name, and where what a way needs was not given.
        ModelError: if the model cannot be used in this way.
        DerivedError: if the bridge or adapter cannot be used.
    """
    if name == "kv":
        return _kv(model, scope, conversation, blocks)
    if name == "soft":
        return _soft(model, embedder, vectors, bridge)
    if name == "lora":
        return _lora(model, scope, adapter)
    if name in ("prompt", "none"):
        return PromptWay(model, with_memory=name == "prompt")
    raise InputError(f"mode: {name!r} is unknown; use one of {', '.join(NAMES)}")


def _kv(model: LocalModel, scope: str, conversation: Callable[[str], Conversation | None], blocks: Path | None) -> Way:
    from latent_memory.inference.kv_cache import BlockCache

    if blocks is None:
        raise InputError("mode: kv keeps its blocks in a store's directory; use the mode prompt with any other memory")
    return BlockCache(model, blocks, conversation, scope=scope)


def _soft(model: LocalModel, embedder: str, vectors: GetVectors | None, bridge: Path | None) -> Way:
    from latent_memory.inference.soft_tokens import Bridge

    if bridge is None or vectors is None:
        raise InputError("mode: soft needs a trained bridge; name its file (--bridge FILE)")
    return Bridge.load(bridge, model, embedder, vectors)


def _lora(model: LocalModel, scope: str, adapter: Path | None) -> Way:
    from latent_memory.inference.lora import Adapter

    if adapter is None:
        raise InputError("mode: lora needs a trained adapter; name its directory (--adapter DIR)")
    loaded = Adapter.load(adapter, model)
    if loaded.manifest.scope != scope:
        # Whoever talks in one scope must not hear of another.
        raise InputError(f"{adapter}: the adapter was trained on the scope {loaded.manifest.scope!r}, not on {scope!r}")
    return loaded
