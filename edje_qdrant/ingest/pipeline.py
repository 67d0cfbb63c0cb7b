"""The steps of one ingest: look up, encode here or in processes, write, and count."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.ingest.decode import (
    DecodedImage,
    KnownImage,
    decode_image,
    identify_image,
    readable_ones,
)
from edje_qdrant.ingest.prune import follow_moved
from edje_qdrant.ingest.sources import ListedImage
from edje_qdrant.ingest.worker import EncodedBatch
from edje_qdrant.threads import batches, in_threads
from edje_qdrant.types import FailedImage, ImageEncoding, Payload

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["IngestRun"]

# Ids looked up in one call, before anything is decoded.
_LOOKUP = 256


class IngestRun:
    """Do the steps of one ingest and count what comes of them."""

    def __init__(
        self,
        collection: ImageCollection,
        model: EDJEModel,
        max_pixels: int,
        *,
        total: int,
        progress: bool,
        seen: set[bytes] | None,
    ) -> None:
        self._collection = collection
        self._model = model
        self._max_pixels = max_pixels
        self.bar: tqdm[Any] = tqdm(
            total=total, desc="ingesting", unit=" images", disable=not progress
        )
        self.added = 0
        self.skipped = 0
        self.failed: list[FailedImage] = []
        self.seen = seen

    def fresh(
        self, items: Iterable[ListedImage | FailedImage], pool: ThreadPoolExecutor
    ) -> Iterator[KnownImage]:
        """Yield the images that are not in the collection, read but not decoded."""
        identified = readable_ones(
            in_threads(pool, identify_image, items, 2 * _LOOKUP), self.failed, self.bar
        )
        for batch in batches(identified, _LOOKUP):
            yield from self._missing(batch)

    def decoded(
        self, fresh: Iterable[KnownImage], pool: ThreadPoolExecutor, *, ahead: int
    ) -> Iterator[DecodedImage]:
        """Yield images ready to be encoded, `ahead` of them decoded before use."""
        return readable_ones(in_threads(pool, self._decode, fresh, ahead), self.failed, self.bar)

    def write(self, pictures: Sequence[DecodedImage]) -> int:
        """Encode and write a batch; return how many of them were new."""
        rows = self._new_rows([picture.image_id for picture in pictures])
        if not rows:
            return 0
        fresh = [pictures[row] for row in rows]
        pixels = torch.cat([picture.pixels for picture in fresh])
        try:
            encoding = self._model.encode_pixels(pixels)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"the device has no memory for {len(pixels)} images at a time; "
                "lower batch_size and run again: what was added is kept"
            ) from error
        ids = [picture.image_id for picture in fresh]
        return self._add(ids, encoding, [picture.payload for picture in fresh])

    def write_encoded(self, batch: EncodedBatch) -> int:
        """Write what a process encoded; return how many of them were new."""
        self.failed += batch.failed
        self.bar.update(len(batch.failed))
        rows = self._new_rows(batch.image_ids)
        if batch.encoding is None or not rows:
            return 0
        encoding = ImageEncoding(batch.encoding.embeddings[rows], batch.encoding.tokens[rows])
        ids = [batch.image_ids[row] for row in rows]
        return self._add(ids, encoding, [batch.payloads[row] for row in rows])

    def _new_rows(self, image_ids: Sequence[str]) -> list[int]:
        """Return the places of new images, once each; the others count as skipped."""
        # Looked up again: the same content may have come twice since the first look.
        first: dict[str, int] = {}
        for row, image_id in enumerate(image_ids):
            first.setdefault(image_id, row)
        for image_id in self._collection.existing([*first]):
            del first[image_id]
        self._skip(len(image_ids) - len(first))
        return [*first.values()]

    def _add(
        self, image_ids: Sequence[str], encoding: ImageEncoding, payloads: Sequence[Payload]
    ) -> int:
        self._collection.add(image_ids, encoding, payloads)
        self.added += len(image_ids)
        self.bar.update(len(image_ids))
        return len(image_ids)

    def _missing(self, batch: Sequence[KnownImage]) -> Iterator[KnownImage]:
        existing = self._collection.existing([picture.image_id for picture in batch])
        if self.seen is not None:
            self.seen.update(uuid.UUID(picture.image_id).bytes for picture in batch)
            follow_moved(
                self._collection,
                {p.image_id: p.listed.path for p in batch if p.image_id in existing},
            )
        for picture in batch:
            if picture.image_id in existing:
                self._skip(1)
            else:
                yield picture

    def _decode(self, picture: KnownImage) -> DecodedImage | FailedImage:
        return decode_image(picture, self._model, self._max_pixels)

    def _skip(self, count: int) -> None:
        self.skipped += count
        self.bar.update(count)
