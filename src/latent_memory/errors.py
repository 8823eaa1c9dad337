"""Every error this package raises on purpose.

LatentMemoryError
├── InputError (ValueError)            what was handed in cannot be used
├── MissingExtraError (ImportError)    an optional part is not installed
├── EmbedderError
│   ├── EmbedderUnavailableError       model file missing or altered, server not answering
│   └── EmbedderMismatchError          the store's vectors were made by another embedder
├── RerankerError                      a reranker's model or server cannot be used, or returned no scores
├── ModelError                         a local language model cannot be loaded, or used in the way that was asked for
│   └── ModelMemoryError               it needs more memory than there is
├── DerivedError                       a stored block, bridge or adapter is damaged, or was made with another model
└── StoreError
    ├── StoreVersionError              written by a newer version of this package
    ├── StoreBusyError                 another process held the write lock for too long
    ├── StoreFullError                 the disk is full; the batch at hand was not kept
    └── StoreDamagedError              the database file is not readable as one

Each message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations


class LatentMemoryError(Exception):
    """Root of the tree; catch it to catch everything above."""


class InputError(LatentMemoryError, ValueError):
    """Something handed in cannot be used; nothing of it was kept."""


class MissingExtraError(LatentMemoryError, ImportError):
    """An optional part is not installed; the message holds the `pip install` line."""


class EmbedderError(LatentMemoryError):
    """Root of what goes wrong with an embedder."""


class EmbedderUnavailableError(EmbedderError):
    """The embedder's model or server cannot be used."""


class EmbedderMismatchError(EmbedderError):
    """The store's vectors were made by another embedder than the one given."""


class RerankerError(LatentMemoryError):
    """A reranker's model or server cannot be used, or what it returned are no scores."""


class ModelError(LatentMemoryError):
    """A local language model cannot be loaded, or not be used in the way that was asked for."""


class ModelMemoryError(ModelError):
    """A local language model needs more memory than there is."""


class DerivedError(LatentMemoryError):
    """Stored keys and values, a bridge or an adapter cannot be used: damaged, or made with another model."""


class StoreError(LatentMemoryError):
    """Root of what goes wrong with a store on disk."""


class StoreVersionError(StoreError):
    """The store was written by a newer version of this package."""


class StoreBusyError(StoreError):
    """Another process held the write lock for longer than the busy timeout."""


class StoreFullError(StoreError):
    """The disk is full; of the batch at hand nothing was kept, and everything before it is safe."""


class StoreDamagedError(StoreError):
    """The database file cannot be read as a Latent Memory store."""
