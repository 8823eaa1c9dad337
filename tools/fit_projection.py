"""Makes src/latent_memory/embedders/minilm/projection.npy: onto which 48 directions token vectors are projected.

    python tools/fit_projection.py

The directions in which the token vectors of the example conversations are largest (their uncentred principal axes), so
that dot products change least. Nothing else is fitted, and no benchmark's data has part in it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latent_memory.embedders.onnx import OnnxEmbedder
from latent_memory.importers import jsonl
from latent_memory.passages import spoken
from latent_memory.vectors import Vectors, unit

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "conversations.jsonl"
PROJECTION = ROOT / "src" / "latent_memory" / "embedders" / "minilm" / "projection.npy"
DIMENSIONS = 48


def fitted(tokens: Vectors) -> Vectors:
    """Return (d, DIMENSIONS): the leading eigenvectors of the tokens' (n, d) second moments."""
    _, axes = np.linalg.eigh(tokens.T.astype(np.float64) @ tokens)
    largest = axes[:, ::-1][:, :DIMENSIONS]
    # Which way an axis points is free: its largest number is positive.
    signs = np.sign(largest[np.abs(largest).argmax(axis=0), np.arange(DIMENSIONS)])
    found: Vectors = (largest * signs).astype(np.float32)
    return found


def main() -> None:
    texts = [spoken(turn.name, turn.text) for talk in jsonl.read(EXAMPLES) for turn in talk.turns]
    hidden = np.concatenate(OnnxEmbedder().hidden(texts))
    np.save(PROJECTION, fitted(unit(hidden)).astype(np.float16))


if __name__ == "__main__":
    main()
