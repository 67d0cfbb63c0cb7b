"""One pass over a collection that makes its new side hold the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import is_ours, user_payload
from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import Part, part_of
from edje_qdrant.index import VectorIndex
from edje_qdrant.ingest.decode import DecodedImage
from edje_qdrant.ingest.pipeline import Checkpoints, IngestRun
from edje_qdrant.migration.reports import MissingImage
from edje_qdrant.model.pixels import read_file
from edje_qdrant.sources.parts import stored_part_id
from edje_qdrant.sources.read import read_image, stored_id
from edje_qdrant.sources.uris import is_in_memory, is_uri_of_image
from edje_qdrant.types import FailedImage, Point

if TYPE_CHECKING:
    from edje_qdrant.images import DecodeLimits, DecoderPool
    from edje_qdrant.model import EDJEModel

__all__ = ["CatchUp", "Encoding", "delete_gone", "encode_images"]

# Points of the old side that are read at a time.
_PAGE = 256


@dataclass(frozen=True, slots=True)
class Encoding:
    """Say how images are encoded.

    Attributes:
        model: The new model.
        batch_size: Images encoded at a time.
        limits: Of the processes that decode.
        checkpoint_every: Images between two flushes.
        progress: Whether a bar is shown on stderr.
    """

    model: EDJEModel
    batch_size: int
    limits: DecodeLimits
    checkpoint_every: int
    progress: bool


@dataclass(slots=True)
class CatchUp:
    """Count what passes did.

    Attributes:
        encoded: Images encoded.
        updated: Images whose fields were copied again.
        deleted: Images deleted from the new side.
        left_out: Points of other programs in the last pass.
        missing: Id -> image that could not be encoded; later passes leave it out.
    """

    encoded: int = 0
    updated: int = 0
    deleted: int = 0
    left_out: int = 0
    missing: dict[str, MissingImage] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Return the number of images that were written, changed or deleted."""
        return self.encoded + self.updated + self.deleted


def encode_images(
    old: VectorIndex, target: ImageCollection, how: Encoding, done: CatchUp, *, total: int
) -> None:
    """Encode the images that the new side lacks, and copy the fields that differ there.

    Args:
        old: Index of the old side.
        target: The new side.
        how: How images are encoded.
        done: Is counted up; images in `missing` are not tried again.
        total: Number of images, for the bar.

    Raises:
        StoreError: A side cannot be read or written; what was written is kept.
        EngineUnavailableError: The server cannot be reached; the same holds.
        WorkerDiedError: Processes that decode cannot be started.
    """
    run = IngestRun(
        target, how.model, total=total, progress=how.progress, action="migrating",
        give_up=target.index.give_up,
    )  # fmt: skip
    done.left_out = 0
    checkpoints = Checkpoints(target.flush, how.checkpoint_every)
    with (
        run.bar,
        ThreadPoolExecutor(how.limits.workers) as threads,
        ExitStack() as stack,
        checkpoints.kept(threads, stack),
    ):
        decoders = stack.enter_context(how.limits.pool())

        def decode(point: Point) -> DecodedImage | FailedImage:
            found = _decoded(point, how.model, decoders)
            if isinstance(found, FailedImage):
                path = point.payload.get("path")
                shown = None if path is None else str(path)
                done.missing[point.id] = MissingImage(point.id, shown, found.reason)
            return found

        lacking = _lacking(old, target, run, done)
        run.decode_and_write(lacking, decode, threads, how.batch_size, checkpoints.wrote)
    done.encoded += run.added
    target.flush()


def delete_gone(old: VectorIndex, target: ImageCollection) -> int:
    """Delete the images from the new side that the old one does not hold; return their number."""
    deleted = 0
    for page in target.index.scroll(payload=False):
        ids = [point.id for point in page if not point.id.isdecimal()]
        there = old.existing(ids)
        gone = [image_id for image_id in ids if image_id not in there]
        target.delete(gone)
        deleted += len(gone)
    return deleted


def _lacking(
    old: VectorIndex, target: ImageCollection, run: IngestRun, done: CatchUp
) -> Iterator[Point]:
    """Yield the images that the new side lacks; copy the fields of others that differ."""
    for page in old.scroll(batch_size=_PAGE):
        own = [point for point in page if not old.shared or is_ours(point.id, point.payload)]
        done.left_out += len(page) - len(own)
        there = target.index.retrieve([point.id for point in own], tokens=False)
        for point in own:
            if point.id in there or point.id in done.missing:
                run.skip()
            else:
                yield point
        done.updated += _copy_fields([p for p in own if p.id in there], there, target)


def _copy_fields(points: Sequence[Point], there: dict[str, Any], target: ImageCollection) -> int:
    """Give images of the new side the fields of the old one; return how many differed."""
    changed = 0
    for point in points:
        wanted, found = user_payload(point.payload), user_payload(there[point.id])
        if wanted == found:
            continue
        given = {key: value for key, value in wanted.items() if found.get(key) != value}
        gone = [key for key in found if key not in wanted]
        if given:
            target.update_payload({point.id: given})
        if gone:
            target.index.remove_payload_keys([point.id], gone)
        changed += 1
    return changed


def _decoded(point: Point, model: EDJEModel, decoders: DecoderPool) -> DecodedImage | FailedImage:
    """Read an image's file, and check that it is the image that was ingested."""
    payload = user_payload(point.payload)
    path = payload.get("path")
    file: bytes | Part
    if not isinstance(path, str):
        return FailedImage(point.id, "it was stored without a path")
    try:
        # Frames and pages are decoded where others are, and not as PNG first.
        part = None if is_in_memory(path) or is_uri_of_image(path) else part_of(path)
        if part is None:
            content = read_image(path)
            found, file = stored_id(path, content), content
        else:
            found, file = stored_part_id(part), part
        if found != point.id:
            return FailedImage(path, "its file contains another image now")
        pixels = read_file(model, decoders, file, path)[1]
    except ImageReadError as error:
        return FailedImage(path, error.reason)
    return DecodedImage(point.id, payload, pixels)
