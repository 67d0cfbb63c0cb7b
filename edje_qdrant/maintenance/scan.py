"""Walk through a collection's points and read what can be read of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import readable, reference_of
from edje_qdrant.errors import StoreError
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.protocol import StoredCodes
from edje_qdrant.types import Point

__all__ = ["PAGE", "pages", "recoded", "records_in_use", "stored_codes"]

#: Points read, and tokens held in memory, at a time.
PAGE = 256


def pages(
    collection: ImageCollection, what: str, *, vectors: bool = False, progress: bool = False
) -> Iterator[list[Point]]:
    """Yield all points in pages, with references that carry tokens where the payload has them.

    Points that are rewritten or deleted while their page is looked at do no harm.
    """
    collection.reload()
    with tqdm(total=collection.count(), desc=what, unit=" images", disable=not progress) as shown:
        for page in collection.index.scroll(
            batch_size=PAGE, tokens=collection.store.in_payload, vectors=vectors
        ):
            yield page
            shown.update(len(page))


def stored_codes(
    collection: ImageCollection, points: Sequence[Point]
) -> tuple[list[Point], list[StoredCodes], dict[str, StoreError]]:
    """Read the stored tokens of points.

    Returns:
        The points whose tokens can be read, these tokens (their rows count readable points), and
        id -> error of the others. Points that were deleted meanwhile may be in neither.

    Raises:
        StoreError: The store itself cannot be read.
    """
    found = _read(collection, points)
    if not found[2]:
        return found
    # Compacted, transcoded or deleted since their page was read, perhaps.
    collection.reload()
    now = collection.index.retrieve([*found[2]], tokens=collection.store.in_payload)
    left = [point for point in points if point.id not in found[2] or point.id in now]
    return _read(
        collection, [replace(point, payload=now.get(point.id, point.payload)) for point in left]
    )


def _read(
    collection: ImageCollection, points: Sequence[Point]
) -> tuple[list[Point], list[StoredCodes], dict[str, StoreError]]:
    return readable(
        points,
        lambda point: point.id,
        lambda left: collection.store.codes(
            [point.id for point in left], [reference_of(point.payload) for point in left]
        ),
    )


def recoded(codec: Codec, parts: Sequence[StoredCodes], count: int) -> NDArray[np.uint8]:
    """Return `(count, nbytes)` codes of a codec; those that are its own are not touched."""
    codes = np.empty((count, codec.nbytes), np.uint8)
    for part in parts:
        same = part.codec.key == codec.key
        codes[part.rows] = part.codes if same else codec.encode(part.codec.decode(part.codes))
    return codes


def records_in_use(points: Sequence[Point]) -> Iterator[tuple[str, str, int]]:
    """Yield id, segment and record number of each point that has them."""
    for point in points:
        reference = reference_of(point.payload)
        segment, record = reference.get("segment"), reference.get("record")
        if isinstance(segment, str) and type(record) is int:
            yield point.id, segment, record
