"""The steps that every ingest shares: identify, look up, decode, encode, write and count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tqdm import tqdm

from edje_qdrant.ingest.decode import DecodedImage, KnownImage, identify_image
from edje_qdrant.ingest.encode import EncodedBatch, encode_batch
from edje_qdrant.ingest.sources import ListedImage
from edje_qdrant.threads import batches, in_threads
from edje_qdrant.types import FailedImage, ImageEncoding, Payload

if TYPE_CHECKING:
    from torch import Tensor

    from edje_qdrant.model import EDJEModel

__all__ = ["IngestRun", "IngestTarget"]

T = TypeVar("T")

# Ids looked up in one call, before anything is decoded.
_LOOKUP = 256


class IngestTarget(Protocol):
    """Stores what an ingest encodes, such as an `ImageCollection`."""

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are stored already."""

    def add(
        self, image_ids: Sequence[str], encoding: ImageEncoding, payloads: Sequence[Payload]
    ) -> None:
        """Store images, in the order of their ids."""


class IngestRun:
    """Run the steps of one ingest and count the outcomes.

    Args:
        target: Stores the images.
        model: Encodes them.
        total: Number of images, for the progress bar.
        progress: Show a bar on stderr.
        action: Labels the bar.
        unit: Names what the bar counts.

    Attributes:
        added: Images written.
        skipped: Images that were stored already, or that occurred before.
        failed: Images that could not be read.
        bar: The progress bar; a context manager.
    """

    def __init__(
        self,
        target: IngestTarget,
        model: EDJEModel,
        *,
        total: int | None = None,
        progress: bool = False,
        action: str = "ingesting",
        unit: str = "images",
    ) -> None:
        self._target = target
        self._model = model
        self.bar: tqdm[Any] = tqdm(total=total, desc=action, unit=f" {unit}", disable=not progress)
        self.added = 0
        self.skipped = 0
        self.failed: list[FailedImage] = []

    def missing(
        self,
        items: Iterable[ListedImage | FailedImage],
        threads: ThreadPoolExecutor,
        looked_up: Callable[[Sequence[KnownImage], set[str]], None] | None = None,
    ) -> Iterator[KnownImage]:
        """Identify images and yield those that are not stored yet; nothing is decoded.

        Args:
            items: Images of the source.
            threads: Read the files.
            looked_up: Called with each batch that was looked up and the ids that are stored.
        """
        identified = in_threads(threads, identify_image, items, 2 * _LOOKUP)
        for batch in batches(self._successes(identified), _LOOKUP):
            existing = self._target.existing([image.image_id for image in batch])
            if looked_up is not None:
                looked_up(batch, existing)
            for image in batch:
                if image.image_id in existing:
                    self.skip()
                else:
                    yield image

    def decode_and_write(
        self,
        items: Iterable[T],
        decode: Callable[[T], DecodedImage | FailedImage],
        threads: ThreadPoolExecutor,
        batch_size: int,
    ) -> Iterator[int]:
        """Decode, encode and write images; yield the number of images added by each batch.

        Args:
            items: What `decode` takes.
            decode: Returns an image ready to be encoded, or why there is none.
            threads: Run `decode` up to two batches ahead.
            batch_size: Images encoded and written at a time.
        """
        decoded = self._successes(in_threads(threads, decode, items, 2 * batch_size))
        for batch in batches(decoded, batch_size):
            pixels = [image.pixels for image in batch]
            yield self._write(
                [image.image_id for image in batch],
                [image.payload for image in batch],
                partial(self._encode, pixels),
            )

    def write_encoded(self, batch: EncodedBatch) -> int:
        """Write a batch that a worker process encoded; return the number of images added."""
        self.failed += batch.failed
        self.bar.update(len(batch.failed))
        return self._write(batch.image_ids, batch.payloads, batch.rows)

    def skip(self, count: int = 1) -> None:
        """Count images that are stored already."""
        self.skipped += count
        self.bar.update(count)

    def _encode(self, pixels: Sequence[Tensor], rows: Sequence[int]) -> ImageEncoding:
        return encode_batch(self._model, [pixels[row] for row in rows])

    def _write(
        self,
        image_ids: Sequence[str],
        payloads: Sequence[Payload],
        encode: Callable[[list[int]], ImageEncoding],
    ) -> int:
        # Looked up a second time: the same content may have occurred twice since the first time.
        first_rows: dict[str, int] = {}
        for row, image_id in enumerate(image_ids):
            first_rows.setdefault(image_id, row)
        for image_id in self._target.existing([*first_rows]):
            del first_rows[image_id]
        rows = [*first_rows.values()]
        self.skip(len(image_ids) - len(rows))
        if rows:
            self._target.add([*first_rows], encode(rows), [payloads[row] for row in rows])
            self.added += len(rows)
            self.bar.update(len(rows))
        return len(rows)

    def _successes(self, items: Iterable[T | FailedImage]) -> Iterator[T]:
        for item in items:
            if isinstance(item, FailedImage):
                self.failed.append(item)
                self.bar.update()
            else:
                yield item
