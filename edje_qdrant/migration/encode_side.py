"""Encoding of a filled collection with another model, while the old one is searched with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edje_qdrant.checks import check_kind, check_number, check_seconds
from edje_qdrant.collection.checks import fitted_codec, named_codec
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.moved import Migration
from edje_qdrant.collection.references import is_ours
from edje_qdrant.errors import CollectionNotFoundError, ConfigError
from edje_qdrant.images import (
    DECODE_MEMORY,
    DECODE_SECONDS,
    MAX_PIXELS,
    DecodeLimits,
    default_workers,
    part_of,
)
from edje_qdrant.ingest.ingest import fit_codec_to_source
from edje_qdrant.migration.catch_up import CatchUp, Encoding, delete_gone, encode_images
from edje_qdrant.migration.reports import MigrationReport, MissingImage
from edje_qdrant.migration.status import old_side
from edje_qdrant.model.pixels import default_batch_size
from edje_qdrant.sources.uris import is_in_memory
from edje_qdrant.tokens.codecs import Codec

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["encoding_of", "migrate", "opened_side", "still_missing"]

# Passes of one run, at most: each encodes what the old model ingested during the one before.
_PASSES = 5

# Images that a new codebook is fitted to.
_SAMPLE = 2048


def migrate(
    collection: ImageCollection,
    model: EDJEModel,
    *,
    codec: str | Codec | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    decode_memory: int = DECODE_MEMORY,
    decode_seconds: float = DECODE_SECONDS,
    checkpoint_every: int = 1024,
    progress: bool = True,
    wait: float = 300,
) -> MigrationReport:
    """Encode a collection's images with another model, beside the old one.

    The images are read again from their files, as their payload's `path` names them, and go to a
    new side of the collection with vectors and tokens of its own. The collection is searched and
    written with the old model all the while, by this and other processes. The next run continues an
    interrupted one, and catches up with what the old model ingested, changed and deleted since.
    `cut_over` then makes the new side the one that is searched; `rollback` removes it.

    Images whose file is gone, or holds another image now, are named in the report.

    Args:
        collection: An open collection, of the old model.
        model: The new model.
        codec: Encodes the new tokens, as in `ImageCollection.create`; by default the one that the
            collection has. If it needs a codebook, one is fitted to a sample of the images.
        batch_size: Images encoded and written at a time; by default 32 on a CPU, 64 on a GPU.
        workers: Processes that read and decode; by default the number of cores, 16 at most.
        max_pixels: Larger images are refused before they are decoded.
        decode_memory: Bytes of memory for all decodes in progress.
        decode_seconds: An image that takes longer to be decoded counts as missing.
        checkpoint_every: Images encoded between two flushes. If the process is killed, at most this
            many are lost; the next run encodes them again.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: An argument is invalid, the model is the collection's own, or another migration
            is under way, or was not ended by `drop_old`.
        CollectionLockedError: Another process migrates the collection.
        StoreError: The disk or the engine refused; run it again.
        EngineUnavailableError: The server cannot be reached any more; what was encoded is kept.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from PIL import Image
        >>> from edje_qdrant import EDJEModel, ImageCollection, ingest_images
        >>> from edje_qdrant.migration import cut_over, drop_old, migrate
        >>> old = EDJEModel.from_pretrained("demo", device="cpu")
        >>> new = EDJEModel.from_pretrained("demo", device="cpu")
        >>> with torch.no_grad():  # stands for a model that was trained again
        ...     _ = next(new.adapter.parameters()).mul_(1.01)
        >>> folder = tempfile.TemporaryDirectory()
        >>> for colour in ("red", "blue"):
        ...     Image.new("RGB", (64, 64), colour).save(f"{folder.name}/{colour}.png")
        >>> index = Path(folder.name, "index")
        >>> with ImageCollection.create(index, "images", old.contract()) as collection:
        ...     ingest_images(folder.name, collection, old, progress=False).added
        ...     migrate(collection, new, progress=False).done
        ...     cut_over(collection, new, progress=False).images
        2
        2
        2
        >>> with ImageCollection.open(index, "images") as collection:
        ...     drop_old(collection)
        ...     collection.require(new.contract())
        2
        >>> folder.cleanup()
    """
    started = time.perf_counter()
    how = encoding_of(
        collection, model, batch_size, workers, max_pixels, decode_memory, decode_seconds,
        checkpoint_every, progress,
    )  # fmt: skip
    check_seconds("wait", wait)
    done = CatchUp()
    with collection.patient(wait), opened_side(collection, how, codec) as side, side.patient(wait):
        for _ in range(_PASSES):
            before = done.encoded
            done.deleted += delete_gone(collection.index, side)
            encode_images(collection.index, side, how, done, total=collection.count())
            if done.encoded - before <= how.batch_size:
                break
        side.optimize()
        missing = still_missing(collection, side, done)
        return MigrationReport(
            side.name, done.encoded, done.updated, done.deleted,
            collection.count() - done.left_out, side.count(), missing, done.left_out,
            time.perf_counter() - started,
        )  # fmt: skip


def encoding_of(
    collection: ImageCollection,
    model: EDJEModel,
    batch_size: int | None = None,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    decode_memory: int = DECODE_MEMORY,
    decode_seconds: float = DECODE_SECONDS,
    checkpoint_every: int = 1024,
    progress: bool = True,
) -> Encoding:
    """Check arguments, before anything is read or written; see `migrate`.

    Raises:
        ConfigError: One is invalid.
        StoreError: The collection is closed, or may not be written.
    """
    check_kind("collection", collection, ImageCollection, "an ImageCollection")
    if not hasattr(model, "encode_images"):
        raise ConfigError(
            f"model is {model!r}; give an EDJEModel, such as EDJEModel.from_pretrained(NAME)"
        )
    if not isinstance(progress, bool):
        raise ConfigError(f"progress is {progress!r}; give True or False")
    batch_size = default_batch_size(model.device) if batch_size is None else batch_size
    workers = default_workers() if workers is None else workers
    check_number("batch_size", batch_size)
    check_number("workers", workers)
    check_number("max_pixels", max_pixels)
    check_number("decode_memory", decode_memory)
    check_number("checkpoint_every", checkpoint_every)
    if collection.location == ":memory:":
        raise ConfigError(
            "the collection is in :memory:, and gone when it is closed; pass a QdrantClient, a "
            "folder or an address as its location"
        )
    limits = DecodeLimits(workers, decode_memory, decode_seconds, max_pixels)
    collection.require_writable()
    return Encoding(model, batch_size, limits, checkpoint_every, progress)


@contextmanager
def opened_side(
    collection: ImageCollection, how: Encoding, codec: str | Codec | None
) -> Iterator[ImageCollection]:
    """Begin a migration, or continue the one under way; yield the new side.

    Raises:
        ConfigError: The model is the collection's own, or another migration is under way, or was
            not ended.
    """
    side = _begun(collection, how, codec)
    try:
        yield side
    finally:
        side.close()


def _begun(
    collection: ImageCollection, how: Encoding, codec: str | Codec | None
) -> ImageCollection:
    contract, what = how.model.contract(), f"the collection {collection.name!r}"
    if contract.model_key == collection.contract.model_key:
        raise ConfigError(
            f"{what} was written by this model already ({contract.model or 'unnamed'}); give the "
            "model to migrate to"
        )
    if (left := old_side(collection)) is not None:
        raise ConfigError(
            f"{what} still has the side of the model before ({left.other or 'unnamed'}); delete it "
            "with drop_old (edje-qdrant migrate --drop-old) before the next migration"
        )
    under_way = collection.migration_now()
    if under_way is not None and under_way.state == "removing":
        collection.remove_side(under_way.to)
        collection.set_migration(None)
        under_way = None
    if under_way is not None and under_way.contract.model_key != contract.model_key:
        raise ConfigError(
            f"{what} is being migrated to another model, {under_way.contract.model or 'unnamed'}; "
            "finish that with its model, or remove what it made with rollback "
            "(edje-qdrant migrate --rollback)"
        )
    name = f"{collection.origin.front}--{contract.model_key}"
    try:
        side = collection.open_side(name)
    except CollectionNotFoundError:
        chosen = _codec(collection, how, codec)
        of_side = contract.with_codec(chosen.name, chosen.hash)
        # Recorded first, so that a rollback removes what a killed run leaves.
        collection.set_migration(Migration(name, of_side))
        return collection.create_side(name, of_side, chosen)
    try:
        side.require(contract)
        if codec is not None:
            asked = named_codec(codec, contract) if isinstance(codec, str) else codec
            if asked.name != side.codec.name or (asked.fitted and asked.key != side.codec.key):
                raise ConfigError(
                    f"the migration of {what} began with the codec {side.codec.key}, not "
                    f"{asked.name}; leave the codec out, or begin again after a rollback"
                )
        if under_way != (found := Migration(name, side.contract)):
            collection.set_migration(found)
    except BaseException:
        side.close()
        raise
    return side


def _codec(collection: ImageCollection, how: Encoding, codec: str | Codec | None) -> Codec:
    """Return the codec of the new side; fit its codebook to a sample of the images if need be."""
    contract = how.model.contract()
    chosen = collection.codec.name if codec is None else codec
    if isinstance(chosen, str):
        named = named_codec(chosen, contract)
        if not named.fitted:
            paths = _some_paths(collection)
            named = fit_codec_to_source(paths, how.model, named.name, progress=how.progress)
        chosen = named
    return fitted_codec(contract, chosen)


def _some_paths(collection: ImageCollection) -> list[str]:
    """Return the paths of some images that can be read one by one."""
    paths: list[str] = []
    for page in collection.index.scroll():
        found = (point.payload.get("path") for point in page if is_ours(point.id, point.payload))
        paths += [
            path
            for path in found
            if isinstance(path, str) and not is_in_memory(path) and part_of(path) is None
        ]
        if len(paths) >= _SAMPLE:
            break
    return paths[:_SAMPLE]


def still_missing(
    collection: ImageCollection, side: ImageCollection, done: CatchUp
) -> tuple[MissingImage, ...]:
    """Return the images that could not be encoded, and are still in the collection."""
    ids = [*done.missing]
    there = collection.existing(ids) - side.existing(ids)
    return tuple(done.missing[image_id] for image_id in ids if image_id in there)
