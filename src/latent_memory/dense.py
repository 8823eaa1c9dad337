"""Nearest passages by vector: FAISS, derived from the store and rebuilt from it at will.

A scope of up to `EXACT_LIMIT` passages is searched exactly, from memory. A larger one gets an inverted file
with 8-bit vectors (a quarter of the memory, a few percent of the work), kept in a file, and its candidates
are scored again with the stored vectors. Either way a score is the cosine of the vectors as they were stored.

The only module that sees faiss. Knows nothing of texts, scopes or the database: vectors come from `fetch`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latent_memory.vectors import Ids, Scores, Vectors

EXACT_LIMIT = 100_000

# FAISS's guidance is 4 to 16 times the square root of n lists; 39 to 256 training vectors a list.
_LISTS_PER_ROOT = 4
_TRAINING_PER_LIST = 40
# The share of lists that a search looks into: at 1/24, 97% or more of the exact first hundred are found
# (tests/test_dense.py measures it on clustered vectors).
_PROBED = 24

_log = logging.getLogger(__name__)
Fetch = Callable[[Ids], Vectors]


class Near(NamedTuple):
    """The nearest passages' ids, nearest first, and the exact cosine of any ids (n,) that are there, as (n,)."""

    ids: Ids
    score: Callable[[Ids], Scores]


class DenseIndex:
    """Vectors by passage id. Ids are handed in ascending, and never twice.

    Args:
        dimension: how many numbers a vector has.
        file: where a large scope's index is kept between runs; None keeps none.
        fetch: returns stored vectors by id; asked for exact scores in a large scope.
    """

    def __init__(self, dimension: int, file: Path | None, fetch: Fetch, exact_limit: int = EXACT_LIMIT) -> None:
        self.dimension = dimension
        self._file = file
        self._fetch = fetch
        self._exact_limit = exact_limit
        self._ids: Ids = np.zeros(0, np.int64)  # of every row, ascending
        self._flat: Any = None
        self._inverted: Any = None
        self._saved = 0

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def last(self) -> int:
        """The highest id it has; 0 if none."""
        return int(self._ids[-1]) if len(self._ids) else 0

    @property
    def approximate(self) -> bool:
        """Whether candidates come from an inverted file instead of a full scan."""
        return self._inverted is not None

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add vectors (n, d) of unit length under ids beyond `last`."""
        if len(ids) == 0:
            return
        import faiss

        if self._inverted is not None:
            self._inverted.add_with_ids(vectors, ids)
        else:
            if self._flat is None:
                self._flat = faiss.IndexFlatIP(self.dimension)
            self._flat.add(vectors)
        self._ids = np.concatenate([self._ids, ids])
        if self._inverted is None and len(self._ids) > self._exact_limit:
            self._invert()

    def remove(self, ids: Ids) -> None:
        """Remove the vectors of those of the ids that are there."""
        gone = np.isin(self._ids, ids)
        if not gone.any():
            return
        import faiss

        if self._inverted is not None:
            self._inverted.remove_ids(np.ascontiguousarray(self._ids[gone]))
        else:
            self._flat.remove_ids(faiss.IDSelectorBatch(np.flatnonzero(gone)))
        self._ids = self._ids[~gone]
        self._flatten_if_small()

    def near(self, query: Vectors, count: int, allowed: Ids | None = None) -> Near:
        """Find about the `count` nearest passages.

        Args:
            query: (d,) unit length.
            allowed: if given, only these ids (ascending) are looked at.
        """
        if len(self._ids) == 0:
            return Near(self._ids, lambda ids: np.zeros(len(ids), np.float32))
        if self._inverted is None:
            scores = self._all_scores(query)
            places = np.arange(len(scores)) if allowed is None else np.flatnonzero(np.isin(self._ids, allowed))
            if len(places) > count:
                places = places[np.argpartition(-scores[places], count)[:count]]
            places = places[np.argsort(-scores[places], kind="stable")]
            return Near(self._ids[places], lambda ids: scores[np.searchsorted(self._ids, ids)])
        return Near(self._approximate(query, count, allowed), lambda ids: np.einsum("nd,d->n", self._fetch(ids), query))

    def _all_scores(self, query: Vectors) -> Scores:
        """Return the cosine of every row with the query.

        FAISS's kernel on one thread, not `rows @ query`: so small a product is no work for a BLAS, whose threads then
        spin and take the cores from the embedding of the next query (recall on 2 cores: 16 ms instead of 5).
        """
        import faiss

        query = np.ascontiguousarray(query, np.float32)
        scores = np.empty(len(self._ids), np.float32)
        faiss.fvec_inner_products_ny(
            faiss.swig_ptr(scores), faiss.swig_ptr(query), self._flat.get_xb(), self.dimension, len(scores)
        )
        return scores

    def _approximate(self, query: Vectors, count: int, allowed: Ids | None) -> Ids:
        import faiss

        probes = max(8, self._inverted.nlist // _PROBED)
        selector = None
        if allowed is not None:
            if len(allowed) == 0:
                return allowed
            # The fewer are allowed, the more lists it takes to meet them; those not allowed cost next to nothing.
            probes = min(self._inverted.nlist, 2 * probes * len(self._ids) // len(allowed))
            selector = faiss.IDSelectorBatch(allowed)
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        _, found = self._inverted.search(query.reshape(1, -1), min(count, len(self._ids)), params=parameters)
        return np.asarray(found[0][found[0] >= 0], np.int64)

    def _rows(self) -> Vectors:
        """Return the flat index's own memory as an (n, d) array."""
        import faiss

        rows = faiss.rev_swig_ptr(self._flat.get_xb(), self._flat.ntotal * self.dimension)
        return np.asarray(rows).reshape(self._flat.ntotal, self.dimension)

    def _invert(self) -> None:
        import faiss

        vectors = self._rows()
        lists = int(_LISTS_PER_ROOT * len(vectors) ** 0.5)
        inverted = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(self.dimension),
            self.dimension,
            lists,
            faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT,
        )
        # Fixed seeds: the same memory gives the same index.
        sample = np.random.default_rng(0).permutation(len(vectors))[: _TRAINING_PER_LIST * lists]
        inverted.cp.niter = 10
        inverted.cp.seed = 0
        inverted.train(vectors[np.sort(sample)])
        inverted.add_with_ids(vectors, self._ids)
        self._inverted, self._flat = inverted, None

    def _flatten_if_small(self) -> None:
        """Search exactly again when a large scope has become small; at 0.8 of the limit, so as not to do it often."""
        if self._inverted is None or len(self._ids) > 0.8 * self._exact_limit:
            return
        import faiss

        self._inverted, self._saved = None, 0
        self._flat = faiss.IndexFlatIP(self.dimension)
        if len(self._ids):
            self._flat.add(self._fetch(self._ids))
        self._delete_file()

    def _delete_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)

    # -- the file of a large scope ------------------------------------------------------------------------

    def load(self, stands: Callable[[str, int, int, str], bool]) -> int:
        """Read the file, if there is one that stands; anything wrong with it means that there is none.

        Args:
            stands: tells of a generation, a highest id, a number of deletions and an anchor whether they are this
                store's.

        Returns:
            The number of deletions that the file already knows; the store tells what came after.
        """
        if self._file is None or not self._file.exists():
            return 0
        import faiss

        try:
            head, _, body = self._file.read_bytes().partition(b"\n")
            state = json.loads(head)
            if state.pop("sha256") != _digest(state, body):
                raise ValueError("altered")
            inverted = faiss.deserialize_index(np.frombuffer(body, np.uint8))
            lists = [
                faiss.rev_swig_ptr(inverted.invlists.get_ids(i), inverted.invlists.list_size(i)).copy()
                for i in range(inverted.nlist)
                if inverted.invlists.list_size(i)
            ]
            ids = np.sort(np.concatenate([np.zeros(0, np.int64), *lists]))
            if inverted.d != self.dimension:
                raise ValueError(f"of dimension {inverted.d}")
            if not stands(state["generation"], int(state["added"]), int(state["deleted"]), state["anchor"]):
                raise ValueError("made from another state of the store")
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            _log.warning("the vector index %s is rebuilt: %s", self._file, error)
            return 0
        self._inverted, self._ids, self._saved = inverted, ids.astype(np.int64), len(ids)
        return int(state["deleted"])

    def save(self, generation: str, added: int, deleted: int, anchor: str, *, always: bool = False) -> None:
        """Write the file of a large scope when it has grown by a tenth since it was last written, or always."""
        if self._file is None or self._inverted is None or (len(self._ids) < 1.1 * self._saved and not always):
            return
        import faiss

        body = faiss.serialize_index(self._inverted).tobytes()
        state: dict[str, object] = {"generation": generation, "added": added, "deleted": deleted, "anchor": anchor}
        head = json.dumps(state | {"sha256": _digest(state, body)}).encode()
        temporary = self._file.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(head + b"\n")
                file.write(body)
            temporary.replace(self._file)
        except OSError as error:
            # The file only saves time; the store has everything.
            _log.warning("the vector index %s could not be written: %s", self._file, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        self._saved = len(self._ids)


def _digest(state: Mapping[str, object], body: bytes) -> str:
    whole = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    whole.update(body)
    return whole.hexdigest()
