"""Encoding of a sample of images again, to compare with what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import DecoderPool, part_of
from edje_qdrant.sources.parts import stored_part_id
from edje_qdrant.threads import batches

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["differing_encodings"]

_AT_ONCE = 16
# Another precision or machine changes embeddings by less than 0.0001 of their cosine and tokens by
# 2 % of their length; tokens of different images differ by 65 % at least (bundled model).
_LEAST_COSINE = 0.99
_MOST_DISTANCE = 0.1
_OF_CODEC = 1.5  # times what the codec itself loses


def differing_encodings(
    collection: ImageCollection, model: EDJEModel, paths: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """Encode images again; yield the ids and the words of those that are stored otherwise.

    Files that have changed, or cannot be decoded, are left out.

    Args:
        collection: Holds the images.
        model: The model that wrote it.
        paths: Ids and files.
    """
    from edje_qdrant.model.pixels import read_file, stack_pixels  # imports torch

    with DecoderPool() as decoders:
        for batch in batches(paths, _AT_ONCE):
            ids, pixels = [], []
            for image_id, path in batch:
                part = part_of(path)
                try:
                    decoded, read = read_file(model, decoders, part or path)
                    found = decoded.image_id if part is None else stored_part_id(part)
                except ImageReadError:
                    continue
                if found == image_id:
                    ids.append(image_id)
                    pixels.append(read)
            if not ids:
                continue
            fresh = model.encode_pixels(stack_pixels(pixels, model.encoding_device))
            stored = collection.encodings(ids)
            codec = collection.codec
            lossy = codec.decode(codec.encode(fresh.tokens))
            cosines = _rows_product(stored.embeddings, fresh.embeddings)
            lost = _distances(lossy, fresh.tokens)
            distances = _distances(stored.tokens, fresh.tokens)
            for row, image_id in enumerate(ids):
                if cosines[row] < _LEAST_COSINE:
                    yield (
                        image_id,
                        f"its embedding's cosine with that of its file is {cosines[row]:.3f}",
                    )
                elif distances[row] > _MOST_DISTANCE + _OF_CODEC * lost[row]:
                    yield (
                        image_id,
                        f"its tokens differ by {distances[row]:.0%} from those of its file",
                    )


def _rows_product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of the rows of two matrices, `(n,)`."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: NDArray[np.float32] = (a * b).sum(1) / np.maximum(lengths, 1e-12)
    return cosines


def _distances(tokens: NDArray[np.float16], of: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return how far tokens `(n, m, d)` are from others, in lengths of the others: `(n,)`."""
    reference = of.reshape(len(of), -1).astype(np.float32)
    change = tokens.reshape(len(of), -1).astype(np.float32) - reference
    found: NDArray[np.float32] = np.linalg.norm(change, axis=1) / np.maximum(
        np.linalg.norm(reference, axis=1), 1e-12
    )
    return found
