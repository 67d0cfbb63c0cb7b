"""Bring images into a collection: read, encode, write; resumable, and broken files are no end."""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, EdjeError
from edje_qdrant.images import MAX_PIXELS, ignore_decoder_warnings
from edje_qdrant.ingest.decode import DecodedImage, KnownImage, decode_image
from edje_qdrant.ingest.encode import encode_batch
from edje_qdrant.ingest.pipeline import IngestRun
from edje_qdrant.ingest.process_pool import EncodingPool, check_devices
from edje_qdrant.ingest.prune import follow_moved, prune_collection
from edje_qdrant.ingest.sources import IMAGE_SUFFIXES, ListedImage, Source, list_images
from edje_qdrant.threads import batches
from edje_qdrant.tokens.codecs import Codec, codec_for
from edje_qdrant.types import FailedImage, IngestReport

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["MAX_PIXELS", "fit_codec_to_source", "ingest_images"]


def ingest_images(
    source: Source,
    collection: ImageCollection,
    model: EDJEModel,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
    checkpoint_every: int = 1024,
    prune: bool = False,
    processes: int = 0,
    devices: Sequence[str] | None = None,
) -> IngestReport:
    """Add images to a collection.

    An image's id is made from its file's bytes, so images that are there already are skipped
    before they are decoded: a rerun is quick and adds nothing, and one that was interrupted goes on
    where it stopped. What cannot be read is listed in the report and never ends the run. Memory
    does not grow with the source.

    The payload is the image's absolute `path`, its upright `width` and `height` in pixels, and
    the fields of its manifest line, of which those three names are overwritten. An image that was
    moved and ingested again keeps the path it was added with.

    Args:
        source: A folder (searched recursively, hidden files and folders left out), one image, a
            list of paths, or a manifest: a `.jsonl` file, each line an object with `path`
            (relative to the manifest's folder) and any further fields.
        collection: Where to.
        model: The one the collection was created for.
        batch_size: Images encoded and written at a time.
        workers: Threads that read and decode beside the encoding; of each process, where there are
            several.
        progress: Show a bar on stderr.
        max_pixels: Images with more are refused before they are decoded; more than
            `MAX_PIXELS` has no effect.
        checkpoint_every: Images added between two flushes; as many, at most, are lost when the
            process is killed, and added again by the next run.
        prune: When all is read, delete images that are gone from the source: of a folder, those
            whose `path` lies in it, and otherwise all that the source does not name. Images that
            could not be read this time stay. Images that were moved get their new `path`. The
            ids of the source are held in memory, about 100 bytes each.
        processes: Processes that decode and encode, each with a copy of the model; this one alone
            writes. 0 encodes in this process, or in one for each of `devices`. They are started
            anew (`spawn`), so that a script must begin under `if __name__ == "__main__":`. A
            image that kills those who read it is listed as failed.
        devices: Where they encode, shared out in turn: `["cuda:0", "cuda:1"]`; where the model is,
            by default. The precision is the model's.

    Returns:
        What was added, skipped, refused and pruned. Images twice in the source count as skipped.

    Raises:
        ConfigError: The source is missing, unreadable or empty, a number is below 1, or a device
            cannot be used.
        WorkerDiedError: Processes die one after another; what was added is kept.
        ContractMismatchError: Another model wrote the collection.
        StoreError: The collection cannot be written; what was added before is kept.
        EngineUnavailableError: The server went away; the same holds.
    """
    started = time.perf_counter()
    numbers = {
        "batch_size": batch_size,
        "workers": workers,
        "max_pixels": max_pixels,
        "checkpoint_every": checkpoint_every,
    }
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; give a whole number, 1 or more")
    if not isinstance(processes, int) or processes < 0:
        raise ConfigError(f"processes is {processes!r}; give a whole number, 0 or more")
    places = check_devices(processes, devices, model.device)
    listing = list_images(source)
    if (
        prune
        and isinstance(source, str | os.PathLike)
        and Path(source).is_file()
        and Path(source).suffix.lower() in IMAGE_SUFFIXES
    ):
        raise ConfigError(
            f"with prune, {source} alone would stay of the whole collection; leave prune out"
        )
    collection.require(model.contract())
    run = IngestRun(collection, model, total=sum(1 for _ in listing()), progress=progress)
    seen: set[bytes] = set()

    def follow_source(batch: Sequence[KnownImage], existing: set[str]) -> None:
        seen.update(uuid.UUID(image.image_id).bytes for image in batch)
        follow_moved(
            collection, {i.image_id: i.listed.path for i in batch if i.image_id in existing}
        )

    def decode(image: KnownImage) -> DecodedImage | FailedImage:
        return decode_image(image, model, max_pixels)

    unflushed = 0
    with warnings.catch_warnings(), run.bar, ExitStack() as ending:
        ignore_decoder_warnings()
        threads = ending.enter_context(ThreadPoolExecutor(workers))
        missing = run.missing(listing(), threads, follow_source if prune else None)
        if places:
            pool = EncodingPool(model, places, decoders=workers, max_pixels=max_pixels)
            encoded = ending.enter_context(pool).encode(batches(missing, batch_size))
            written: Iterator[int] = map(run.write_encoded, encoded)
        else:
            written = run.decode_and_write(missing, decode, threads, batch_size)
        try:
            for count in written:
                unflushed += count
                if unflushed >= checkpoint_every:
                    collection.flush()
                    unflushed = 0
        except BaseException:
            threads.shutdown(cancel_futures=True)
            # Keep what was written; if that fails too, the first error says more.
            with suppress(EdjeError):
                collection.flush()
            raise
    pruned = prune_collection(collection, source, seen, run.failed) if prune else 0
    collection.flush()
    collection.optimize()
    seconds = time.perf_counter() - started
    return IngestReport(run.added, run.skipped, tuple(run.failed), seconds, pruned)


def fit_codec_to_source(
    source: Source, model: EDJEModel, name: str, *, sample: int = 2048, batch_size: int = 32,
    seed: int = 0, progress: bool = True,
) -> Codec:  # fmt: skip
    """Fit a codec to images drawn at random from a source; they are encoded for this alone.

    Args:
        source: As `ingest_images`.
        model: Whose tokens.
        name: The codec's; one without a codebook is returned as it is.
        sample: Images to draw; those that cannot be read are left out.
        batch_size: Images encoded at a time.
        seed: Of the draw and of the fit.
        progress: Show a bar on stderr.

    Raises:
        ConfigError: The source cannot be used, there is no such codec, too few images, or a
            number is below 1.
        MissingExtraError: The library that fits codebooks is not installed.
    """
    if sample < 1 or batch_size < 1:
        raise ConfigError(f"sample {sample} and batch_size {batch_size} must be 1 or more")
    contract = model.contract()
    codec = codec_for(name, contract.num_tokens, contract.token_dim)
    if codec.fitted:
        return codec
    listed = [item for item in list_images(source)() if isinstance(item, ListedImage)]
    rows = np.random.default_rng(seed).permutation(len(listed))[:sample]
    chosen = [KnownImage("", listed[row]) for row in rows]
    tokens: list[NDArray[np.float16]] = []
    with (
        warnings.catch_warnings(),
        tqdm(
            total=len(chosen), desc=f"fitting {name}", unit=" images", disable=not progress
        ) as bar,
    ):
        ignore_decoder_warnings()
        for batch in batches(chosen, batch_size):
            decoded = [decode_image(picture, model, MAX_PIXELS) for picture in batch]
            pixels = [item.pixels for item in decoded if isinstance(item, DecodedImage)]
            if pixels:
                tokens.append(encode_batch(model, pixels).tokens)
            bar.update(len(batch))
    shape = (0, contract.num_tokens, contract.token_dim)
    return codec.fit(np.concatenate([np.empty(shape, np.float16), *tokens]), seed=seed)
