"""Latent Memory: a conversation memory for language models.

>>> from latent_memory import LatentMemory, Conversation, Turn
>>> with LatentMemory.open("memory/") as memory:  # doctest: +SKIP
...     memory.add(Conversation("trip", [Turn("user", "We fly to Osaka on 3 May.", name="Ana")]), scope="ana")
...     hits = memory.recall("when do we leave?", scope="ana")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latent_memory.errors import LatentMemoryError
from latent_memory.records import (
    AddReport,
    Context,
    Conversation,
    ConversationInfo,
    Hit,
    Passage,
    Stats,
    Turn,
)

if TYPE_CHECKING:
    from latent_memory.embedders import Embedder
    from latent_memory.memory import LatentMemory
    from latent_memory.remembering import remember

__version__ = "0.1.0"

__all__ = [
    "AddReport",
    "Context",
    "Conversation",
    "ConversationInfo",
    "Embedder",
    "Hit",
    "LatentMemory",
    "LatentMemoryError",
    "Passage",
    "Stats",
    "Turn",
    "remember",
]


def __getattr__(name: str) -> object:
    # These bring NumPy and more; records and errors alone import in a few milliseconds.
    if name == "LatentMemory":
        from latent_memory.memory import LatentMemory

        return LatentMemory
    if name == "Embedder":
        from latent_memory.embedders import Embedder

        return Embedder
    if name == "remember":
        from latent_memory.remembering import remember

        return remember
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
