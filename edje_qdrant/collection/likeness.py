"""How alike images of a collection look, on a scale that carries over between models."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.references import is_ours
from edje_qdrant.index import VectorIndex

__all__ = [
    "NEAR_DUPLICATES",
    "NEAR_DUPLICATE_TOKENS",
    "TIE",
    "Likeness",
    "leaders",
    "mean_cosine",
    "token_vectors",
]

#: Likeness from which on two images count as near-duplicates by their embeddings alone; chosen by
#: benchmarks/duplicates.py, see docs/duplicates.md.
NEAR_DUPLICATES = 0.96

#: The same by their tokens alone.
NEAR_DUPLICATE_TOKENS = 0.9

#: Cosines closer than this count as equal: engines and batches sum float32 in different orders.
TIE = 1e-6

# Images whose embeddings give the mean cosine: some 32,000 pairs, which settles it to about 0.01.
_SAMPLE = 256

# Images that are alike to none, counted in with those of the collection: where there are only a
# few images, all of these may be duplicates of each other.
_UNLIKE = 32

# Seconds after which the sample is read again where other processes can write.
_LOOK_EVERY = 30.0

# Embeddings that are compared with earlier ones at a time.
_BLOCK = 256


class Likeness:
    """Compare embeddings of images by their likeness instead of their cosine.

    What a cosine means depends on the model: of two unrelated photographs it is 0.1 with some and
    0.6 with others. So it is read relative to `mean`, the mean cosine of two images of the
    collection: `likeness = (cosine - mean) / (1 - mean)`. It is 1 for the same image and about 0
    for two images chosen by chance.

    The mean is that of the 256 images with the lowest ids. Ids are hashes of the images, so this is
    a random sample, and the same in every process. In a collection of few images the mean is drawn
    towards 0. It is read at the first use, and again after writes that concern the sample; where
    other processes can write, after 30 seconds at most. Threads may share an object.

    Args:
        index: The collection's index.
    """

    def __init__(self, index: VectorIndex) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._mean: float | None = None
        self._last: str | None = None  # of the sampled ids; None if all images are sampled
        self._read_at = 0.0
        index.observe(self._written)

    @property
    def mean(self) -> float:
        """Return the mean cosine of two images of the collection, at least 0 and below 1.

        Raises:
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        with self._lock:
            old = self._index.shared and time.monotonic() - self._read_at > _LOOK_EVERY
            if self._mean is None or old:
                vectors = self._sample()
                self._mean, self._read_at = mean_cosine(vectors), time.monotonic()
            return self._mean

    def cosine(self, likeness: float) -> float:
        """Return the cosine that a likeness stands for; raises the errors of `mean`."""
        mean = self.mean
        return mean + likeness * (1 - mean)

    def of(self, cosine: float) -> float:
        """Return the likeness that a cosine stands for; raises the errors of `mean`."""
        mean = self.mean
        return (cosine - mean) / (1 - mean)

    def _sample(self) -> NDArray[np.float32]:
        """Read the embeddings of the sample: `(n, d)`."""
        vectors: list[NDArray[np.float32]] = []
        self._last = None
        shared = self._index.shared  # a folder holds no points of other programs
        for page in self._index.scroll(batch_size=_SAMPLE, payload=shared, vectors=True):
            own = [point for point in page if not shared or is_ours(point.id, point.payload)]
            for point in own[: _SAMPLE - len(vectors)]:
                vectors.append(point.vector)
                self._last = point.id
            if len(vectors) == _SAMPLE:
                break
        else:
            self._last = None
        return np.array(vectors, np.float32)

    def _written(self, image_ids: Sequence[str] | None) -> None:
        """Forget the mean if a write concerned the sample; called by the index."""
        with self._lock:
            last = self._last
            if image_ids is None or last is None or any(i.lower() <= last for i in image_ids):
                self._mean = None


def mean_cosine(vectors: NDArray[np.float32]) -> float:
    """Return the mean cosine of two different images, at least 0 and below 1.

    Args:
        vectors: `(n, d)`, unit length.
    """
    count = len(vectors)
    if count < 2:
        return 0.0
    total = vectors.sum(axis=0, dtype=np.float64)
    mean = (float(total @ total) - count) / (count * (count - 1))
    return max(0.0, min(1.0, mean) * count / (count + _UNLIKE))


def token_vectors(tokens: NDArray[Any]) -> NDArray[np.float32]:
    """Return `(n, m * d_text)` whose products are mean cosines of tokens at the same places.

    Args:
        tokens: `(n, m, d_text)`.
    """
    exact = np.asarray(tokens, np.float32)
    norms = np.linalg.norm(exact, axis=2, keepdims=True)  # (n, m, 1)
    unit = np.divide(exact, norms, out=np.zeros_like(exact), where=norms > 0)
    flat: NDArray[np.float32] = unit.reshape(len(unit), -1) / math.sqrt(max(1, unit.shape[1]))
    return flat


def leaders(vectors: NDArray[np.float32], least: float) -> list[int]:
    """Return for each of `(n, d)` embeddings the row of the image that stands for it.

    An image is stood for by the first earlier one that stands for itself and whose cosine with it
    is `least` or more; without one, it stands for itself. So images are alike to what stands for
    them, and chains of images, each a little unlike the one before, are cut.

    Args:
        vectors: Unit length; zeros for an image that is like no other.
        least: Above 0.
    """
    bound = least - TIE
    found = np.arange(len(vectors))
    kept: list[int] = []
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        free = np.ones(len(block), np.bool_)
        if kept:
            alike = block @ vectors[kept].T >= bound  # (b, k)
            free = ~alike.any(axis=1)
            found[start : start + len(block)][~free] = np.array(kept)[alike.argmax(axis=1)[~free]]
        alike = block @ block.T >= bound  # (b, b)
        for row in range(len(block)):
            if not free[row]:
                continue
            kept.append(start + row)
            same = free & alike[row]
            same[: row + 1] = False
            found[start : start + len(block)][same] = start + row
            free &= ~same
    rows: list[int] = found.tolist()
    return rows
