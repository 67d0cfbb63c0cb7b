"""Iteration over a collection's points, and reading of their stored tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import another_model, readable, reference_of
from edje_qdrant.errors import StoreError
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.protocol import StoredCodes
from edje_qdrant.types import Point

__all__ = [
    "PAGE",
    "PointCodes",
    "RecordInUse",
    "own_points",
    "pages",
    "records_in_use",
    "stored_codes",
]

#: Number of points read, and of images whose tokens are in memory, at a time.
PAGE = 256


@dataclass(frozen=True, slots=True)
class PointCodes:
    """Hold the stored tokens of points.

    Attributes:
        points: The `n` points whose tokens can be read.
        parts: These tokens; rows count `points`.
        failed: Id -> error of the other points; ContractMismatchError for those that another model
            wrote.
    """

    points: list[Point]
    parts: list[StoredCodes]
    failed: dict[str, StoreError]

    def encoded_with(self, codec: Codec) -> NDArray[np.uint8]:
        """Return `(n, codec.nbytes)` codes; those of another codec are decoded and encoded."""
        codes = np.empty((len(self.points), codec.nbytes), np.uint8)
        for part in self.parts:
            same = part.codec.key == codec.key
            codes[part.rows] = part.codes if same else codec.encode(part.codec.decode(part.codes))
        return codes


@dataclass(frozen=True, slots=True)
class RecordInUse:
    """Name the record of a side file that a point refers to."""

    point: Point
    segment: str
    number: int


def pages(
    collection: ImageCollection, what: str, *, vectors: bool = False, progress: bool = False
) -> Iterator[list[Point]]:
    """Yield all points in pages; references contain tokens if the payload stores them.

    Points may be rewritten or deleted while their page is processed.
    """
    collection.reload()
    with tqdm(total=collection.count(), desc=what, unit=" images", disable=not progress) as shown:
        for page in collection.index.scroll(
            batch_size=PAGE, tokens=collection.store.in_payload, vectors=vectors
        ):
            yield page
            shown.update(len(page))


def own_points(page: Sequence[Point], others: Sequence[Point]) -> list[Point]:
    """Return a page without the points of other programs."""
    left_out = {point.id for point in others}
    return [point for point in page if point.id not in left_out]


def stored_codes(collection: ImageCollection, points: Sequence[Point]) -> PointCodes:
    """Read the stored tokens of points; points deleted since then may be left out.

    Args:
        collection: The collection.
        points: Points that this package wrote.

    Raises:
        StoreError: The store itself cannot be read.
    """
    found = _read(collection, points)
    if not found.failed:
        return found
    # They may have been compacted, transcoded or deleted since their page was read.
    collection.reload()
    now = collection.index.retrieve([*found.failed], tokens=collection.store.in_payload)
    left = [point for point in points if point.id not in found.failed or point.id in now]
    return _read(
        collection, [replace(point, payload=now.get(point.id, point.payload)) for point in left]
    )


def _read(collection: ImageCollection, points: Sequence[Point]) -> PointCodes:
    where = f"the collection {collection.name!r} at {collection.location}"
    wrong: dict[str, StoreError] = {}
    for point in points:
        reference = reference_of(point.payload)
        if error := another_model(collection.contract, [point.id], [reference], where):
            wrong[point.id] = error
    left, parts, failed = readable(
        [point for point in points if point.id not in wrong],
        lambda point: point.id,
        lambda own: collection.store.codes(
            [point.id for point in own], [reference_of(point.payload) for point in own]
        ),
    )
    return PointCodes(left, parts, {**failed, **wrong})


def records_in_use(points: Sequence[Point]) -> Iterator[RecordInUse]:
    """Yield the record of each point that refers to one."""
    for point in points:
        reference = reference_of(point.payload)
        segment, number = reference.get("segment"), reference.get("record")
        if isinstance(segment, str) and type(number) is int:
            yield RecordInUse(point, segment, number)
