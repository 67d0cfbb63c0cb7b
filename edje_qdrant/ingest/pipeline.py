"""The steps that every ingest shares: identify, look up, decode, encode, write and count."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from torch import Tensor
from tqdm import tqdm

from edje_qdrant.errors import EdjeError, ImageReadError
from edje_qdrant.ingest.decode import (
    DecodedImage,
    KnownImage,
    LocatedImage,
    StoredStamp,
    identify_image,
    read_listed,
)
from edje_qdrant.ingest.encode import EncodedBatch, start_batch
from edje_qdrant.model.pixels import stack_pixels
from edje_qdrant.sources.protocol import ListedImage
from edje_qdrant.threads import batches, in_threads
from edje_qdrant.types import FailedImage, ImageEncoding, Payload

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["Checkpoints", "IngestRun", "IngestTarget"]

T = TypeVar("T")

#: Returns the stored images that have some of the paths.
FindStored: TypeAlias = Callable[[Sequence[str]], Mapping[str, Sequence[StoredStamp]]]

# Ids looked up in one call, before anything is decoded; bytes of images that are held for it.
_LOOKUP, _LOOKUP_BYTES = 256, 32 << 20
# An image whose bytes are held in memory counts as so many files when it is read ahead.
_HELD = 16


class IngestTarget(Protocol):
    """Stores what an ingest encodes, such as an `ImageCollection`."""

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are stored already."""

    def add_new(
        self, image_ids: Sequence[str], encoding: ImageEncoding, payloads: Sequence[Payload]
    ) -> set[str]:
        """Store images that are not stored yet; return the ids of those that this call stored."""


class Checkpoints:
    """Flush a collection after every so many images written, and when writing fails.

    Args:
        flush: Flushes the collection.
        every: Number of images.
    """

    def __init__(self, flush: Callable[[], None], every: int) -> None:
        self._flush, self._every = flush, every
        self._unflushed = 0

    def wrote(self, count: int) -> None:
        """Count images that were written."""
        self._unflushed += count
        if self._unflushed >= self._every:
            self._flush()
            self._unflushed = 0

    @contextmanager
    def kept(self, threads: ThreadPoolExecutor, stack: ExitStack) -> Iterator[None]:
        """Flush if the block fails.

        Args:
            threads: Their waiting tasks are cancelled then.
            stack: Closed then, before that: it holds the decoders that threads may wait for.
        """
        try:
            yield
        except BaseException:
            stack.close()
            threads.shutdown(cancel_futures=True)
            # If that fails too, the first error is more useful.
            with suppress(EdjeError):
                self._flush()
            raise


class IngestRun:
    """Run the steps of one ingest and count the outcomes.

    Args:
        target: Stores the images.
        model: Encodes them.
        total: Number of images, for the progress bar.
        progress: Show a bar on stderr.
        action: Labels the bar.
        unit: Names what the bar counts.
        give_up: Ends the waiting of threads for a server, called when the run fails or is
            interrupted.

    Attributes:
        added: Images written by this run; see `ImageCollection.add_new`.
        known: Images that were stored already, or that another process wrote while this one
            encoded them, and whose fields were not updated.
        updated: Images that were stored already and whose fields were updated.
        twice: Images whose content occurred before in this run.
        failed: Images that could not be read.
        bar: The progress bar; a context manager.
        seen: The 16 bytes of the id of every image that is stored, or was decoded.
        paths: If it is a set, the paths of the images written by this run are added.
        copies: If it is a list, id and path of images that were decoded, but not written, as their
            content is stored, or occurred before, are added.
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
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._give_up = give_up
        self._target = target
        self._model = model
        self.bar: tqdm[Any] = tqdm(total=total, desc=action, unit=f" {unit}", disable=not progress)
        self.added = self.known = self.updated = self.twice = 0
        self.failed: list[FailedImage] = []
        self.seen: set[bytes] = set()
        self.paths: set[str] | None = None
        self.copies: list[tuple[str, str]] | None = None
        self._count_lock = threading.Lock()  # two threads count

    @property
    def skipped(self) -> int:
        """Return the number of images that were not written, and stayed as they were."""
        return self.known + self.twice

    def missing(
        self,
        items: Iterable[ListedImage | FailedImage],
        threads: ThreadPoolExecutor,
        looked_up: Callable[[Sequence[KnownImage], set[str]], set[str]] | None = None,
        known_paths: FindStored | None = None,
    ) -> Iterator[KnownImage]:
        """Identify images and yield those that are not stored yet; nothing is decoded.

        An image that is stored with its path and stamp is not read.

        Args:
            items: Images of the source.
            threads: Read the files.
            looked_up: Called with each batch that was looked up and the ids that are stored;
                returns the ids of those that it updated.
            known_paths: Returns the stored images by their paths; see `KnownPaths`.
        """
        located = items if known_paths is None else _located(items, known_paths)
        identified = in_threads(threads, identify_image, located, 2 * _LOOKUP, _weight)
        for batch in batches(self._successes(identified), _LOOKUP, _size, _LOOKUP_BYTES):
            existing = self._target.existing([image.image_id for image in batch])
            updated = set() if looked_up is None else looked_up(batch, existing)
            for image in batch:
                if image.image_id not in existing:
                    yield image
                elif image.image_id in updated:
                    updated.remove(image.image_id)
                    self._see(image.image_id)
                    self._advance()
                    self.updated += 1
                elif self._see(image.image_id):
                    self.skip()
                else:
                    self._skip_twice()

    def with_content(
        self, images: Iterable[KnownImage], threads: ThreadPoolExecutor, ahead: int
    ) -> Iterator[KnownImage]:
        """Yield images that can be sent to other processes: those of readers with their bytes.

        Args:
            images: Images from `missing`.
            threads: Read.
            ahead: Images read ahead.
        """
        return self._successes(in_threads(threads, _with_content, images, ahead))

    def decode_and_write(
        self,
        items: Iterable[T],
        decode: Callable[[T], DecodedImage | FailedImage],
        threads: ThreadPoolExecutor,
        batch_size: int,
        wrote: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Decode, encode and write images: one batch is encoded while the next is decoded.

        A thread writes each batch while the next is encoded.

        Args:
            items: What `decode` takes.
            decode: Returns an image ready to be encoded, or why there is none.
            threads: Run `decode` one batch ahead.
            batch_size: Images encoded and written at a time.
            wrote: Called by the thread that writes after each batch, with the number of images.
        """
        decoded = self._successes(in_threads(threads, decode, items, batch_size))
        with (
            ThreadPoolExecutor(1, thread_name_prefix="edje-writing") as writer,
            self._given_up_on_errors(),
        ):
            writing: Future[int] | None = None
            for images, encoding in self._encoded(batches(decoded, batch_size)):
                if writing is not None:
                    writing.result()
                writing = writer.submit(
                    self._write, [image.image_id for image in images],
                    [image.payload for image in images], encoding, wrote,
                )  # fmt: skip
            if writing is not None:
                writing.result()

    def _encoded(
        self, decoded: Iterable[list[DecodedImage]]
    ) -> Iterator[tuple[list[DecodedImage], ImageEncoding]]:
        """Yield the new images of each batch with their encodings.

        A thread prepares each batch while the one before is encoded. A GPU is given a batch before
        the one before is ready.
        """
        on_cpu = self._model.encoding_device.type == "cpu"
        started: tuple[list[DecodedImage], Callable[[], ImageEncoding]] | None = None
        with (
            ThreadPoolExecutor(1, thread_name_prefix="edje-preparing") as thread,
            self._given_up_on_errors(),
        ):
            for images, pixels in in_threads(thread, self._prepared, decoded, 1):
                if pixels is None:
                    continue
                following = images, start_batch(self._model, pixels)
                if on_cpu:
                    yield images, following[1]()
                    continue
                if started is not None:
                    yield started[0], started[1]()
                started = following
            if started is not None:
                yield started[0], started[1]()

    @contextmanager
    def _given_up_on_errors(self) -> Iterator[None]:
        """End the waiting of threads on an error, before they are waited for."""
        try:
            yield
        except BaseException:
            self._give_up()
            raise

    def _prepared(self, batch: list[DecodedImage]) -> tuple[list[DecodedImage], Tensor | None]:
        """Return a batch's new images and their pixels, None if all images are known."""
        rows = self._new_rows(
            [image.image_id for image in batch], [image.payload for image in batch]
        )
        images = [batch[row] for row in rows]
        if not images:
            return images, None
        pixels = stack_pixels([image.pixels for image in images], self._model.encoding_device)
        return images, pixels

    def write_encoded(self, batch: EncodedBatch) -> int:
        """Write a batch that a worker process encoded; return the number of images added."""
        self.failed += batch.failed
        self._advance(len(batch.failed))
        rows = self._new_rows(batch.image_ids, batch.payloads)
        if not rows:
            return 0
        return self._write(
            [batch.image_ids[row] for row in rows], [batch.payloads[row] for row in rows],
            batch.rows(rows),
        )  # fmt: skip

    def skip(self, count: int = 1) -> None:
        """Count images that are stored already."""
        with self._count_lock:
            self.known += count
            self.bar.update(count)

    def _skip_twice(self) -> None:
        with self._count_lock:
            self.twice += 1
            self.bar.update(1)

    def _see(self, image_id: str) -> bool:
        """Return whether an image occurs for the first time."""
        try:
            key = uuid.UUID(image_id).bytes
        except ValueError:  # points of other programs may have integers as ids
            key = image_id.encode()
        first = key not in self.seen
        self.seen.add(key)
        return first

    def _new_rows(self, image_ids: Sequence[str], payloads: Sequence[Payload]) -> list[int]:
        """Return the rows of images to add: each once, and none that is stored or being written.

        Looked up a second time: the same content may have occurred since the first time, and a file
        that changed since then is another image now.
        """
        first_rows: dict[str, int] = {}
        for row, image_id in enumerate(image_ids):
            if self._see(image_id):
                first_rows[image_id] = row
            else:
                self._skip_twice()
                self._copied(image_id, payloads[row])
        stored = self._target.existing([*first_rows])
        for image_id in stored:
            self._copied(image_id, payloads[first_rows.pop(image_id)])
        self.skip(len(stored))
        return [*first_rows.values()]

    def _write(
        self,
        image_ids: Sequence[str],
        payloads: Sequence[Payload],
        encoding: ImageEncoding,
        wrote: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Write images; return the number of those that this run added."""
        new = self._target.add_new(image_ids, encoding, payloads)
        added = len(new)
        if self.paths is not None:
            rows = zip(image_ids, payloads, strict=True)
            self.paths.update(str(fields.get("path")) for key, fields in rows if key in new)
        for image_id, payload in zip(image_ids, payloads, strict=True):
            if image_id not in new:
                self._copied(image_id, payload)
        self.added += added
        self._advance(added)
        if added < len(image_ids):
            self.skip(len(image_ids) - added)
        wrote(added)
        return added

    def _copied(self, image_id: str, payload: Payload) -> None:
        if self.copies is not None:
            self.copies.append((image_id, str(payload.get("path"))))

    def _advance(self, count: int = 1) -> None:
        with self._count_lock:
            self.bar.update(count)

    def _successes(self, items: Iterable[T | FailedImage]) -> Iterator[T]:
        for item in items:
            if isinstance(item, FailedImage):
                self.failed.append(item)
                self._advance()
            else:
                yield item


def _located(
    items: Iterable[ListedImage | FailedImage], known_paths: FindStored
) -> Iterator[LocatedImage | FailedImage]:
    """Yield the images with what is stored at their paths."""
    for batch in batches(items, _LOOKUP, _held_bytes, _LOOKUP_BYTES):
        paths = [item.path for item in batch if isinstance(item, ListedImage)]
        stored = known_paths(paths)
        for item in batch:
            if isinstance(item, ListedImage):
                yield LocatedImage(item, stored.get(item.path, ()))
            else:
                yield item


def _with_content(image: KnownImage) -> KnownImage | FailedImage:
    try:
        return replace(image, listed=read_listed(image.listed))
    except ImageReadError as error:
        return FailedImage(image.listed.path, error.reason)


def _weight(item: LocatedImage | ListedImage | FailedImage) -> int:
    item = item.listed if isinstance(item, LocatedImage) else item
    held = isinstance(item, ListedImage) and (item.content is not None or item.reader is not None)
    return _HELD if held else 1


def _size(image: KnownImage) -> int:
    return _held_bytes(image.listed)


def _held_bytes(item: ListedImage | FailedImage) -> int:
    return 0 if isinstance(item, FailedImage) else len(item.content or b"")
