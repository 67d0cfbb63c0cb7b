"""Ingest of images into a collection, and fitting of a codec to a sample of a source."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edje_qdrant.checks import check_kind, check_number, check_seconds
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.images import (
    DECODE_MEMORY,
    DECODE_SECONDS,
    MAX_PIXELS,
    DecodeLimits,
    DecoderPool,
    default_workers,
)
from edje_qdrant.ingest.copies import Copies
from edje_qdrant.ingest.decode import DecodedImage, KnownImage, decode_image
from edje_qdrant.ingest.encode import encode_batch
from edje_qdrant.ingest.file_fields import FileFields
from edje_qdrant.ingest.known_paths import KnownPaths
from edje_qdrant.ingest.pipeline import Checkpoints, IngestRun
from edje_qdrant.ingest.process_pool import EncodingPool, check_devices
from edje_qdrant.ingest.prune import Agree, Pruned, count_old_versions, prune_collection
from edje_qdrant.ingest.update_fields import FieldUpdater
from edje_qdrant.model.pixels import default_batch_size
from edje_qdrant.sources.open import Source, open_source
from edje_qdrant.sources.parts import join_failures
from edje_qdrant.sources.protocol import ImageSource, ListedImage
from edje_qdrant.threads import batches, in_threads
from edje_qdrant.tokens.codecs import Codec, codec_for
from edje_qdrant.types import IngestReport

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["MAX_PIXELS", "fit_codec_to_source", "ingest_images"]


def ingest_images(
    source: Source,
    collection: ImageCollection,
    model: EDJEModel,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
    decode_memory: int = DECODE_MEMORY,
    decode_seconds: float = DECODE_SECONDS,
    checkpoint_every: int = 1024,
    prune: bool | Agree = False,
    processes: int = 0,
    devices: Sequence[str] | None = None,
    exif: bool = True,
    gps: bool = False,
    frames_every: str | float | None = None,
    pdf_pages: bool = False,
    wait: float = 300,
) -> IngestReport:
    """Ingest images into a collection.

    Images that are in the collection already are skipped before they are decoded, because an
    image's id is derived from its file's bytes. An image that is stored with the same `path`,
    `file_size` and `modified_at`, or `etag`, is not even read. So a rerun is fast and adds nothing,
    and a run that was interrupted can be continued by a rerun. Files that cannot be read are
    listed in the report and do not stop the run. Of each image of the source some 100 bytes stay
    in memory, and 200 if it has fields or another path than the stored one.

    The payload contains the image's absolute `path`, its upright `width` and `height` in pixels,
    and the fields of its manifest line or list item, except that fields with these three names are
    overwritten.
    With `exif` it also contains what the file knows: `taken_at`, `camera`, `lens`, `file_size` and
    `modified_at`, and with `gps` its `place`, except that fields of the manifest line or list item
    with these names win. Images that are stored already do not get them; damaged EXIF data are
    ignored.
    An image is stored once, whatever number of files has its content: the other paths at which
    ingests found it are its `other_paths`. An image that was moved and ingested again keeps its old
    path, unless `prune` is set. A file
    that was edited is a new image; its old version stays in the collection, and is counted in the
    report, unless `prune` is set.

    Fields of a manifest line or list item that differ from those stored with the image are updated,
    without encoding the image again; null removes a field. Fields that the line does not name stay.
    If a source has an image twice, its first occurrence counts.

    Args:
        source: Where the images are; all kinds are described in `docs/where-images-are.md`. A
            folder (searched recursively; hidden files, and folders of thumbnails and of systems,
            such as `@eaDir` and `__MACOSX`, are left out and counted), one image, an address
            (`https://`, `s3://`, `gs://`, `hf://`), a manifest, tar files, Parquet files, a data
            set of the Hugging Face library, or a list. A manifest is a `.jsonl` file, each line an
            object with `path` (relative to the manifest's folder) and any further fields, or a
            `.txt` file of paths. A list holds paths, addresses, bytes of files or Pillow images,
            pairs of one of these and its fields, `(path, {"album": "2024"})`, or dicts
            `{"path": ..., "album": "2024"}`; a dict of paths to fields is taken as such pairs.
        collection: The collection to add to.
        model: The model that the collection was created for.
        batch_size: Images encoded and written at a time; by default 32 on a CPU, 64 on a GPU.
        workers: Processes that read and decode in parallel with the encoding, for each process
            that encodes; by default the number of cores, 16 at most. A decoder that hangs or
            crashes costs its image only.
        progress: Show a bar on stderr.
        max_pixels: Larger images are refused before they are decoded.
        decode_memory: Bytes of memory for all decodes in progress, for each process that encodes.
            Large images wait for each other; one that needs more in total is refused.
        decode_seconds: An image that takes longer to be decoded is listed as failed.
        checkpoint_every: Images added between two flushes. If the process is killed, at most this
            many are lost; the next run adds them again.
        prune: After reading the whole source, delete images that are no longer in it: for a
            folder, the images whose `path` lies in it; otherwise all images that the source does
            not name. Images that could not be read are kept. Images that were moved get their new
            `path`, and images of which another ingest found a copy elsewhere get the path of the
            copy. A function is called with the number of images that would be deleted and the
            paths of three, if there are any; if it returns False, none are deleted.
        processes: Number of processes that decode and encode, each with a copy of the model; only
            this process writes. With 0, this process encodes, or one process for each of
            `devices`. Processes are started with `spawn`, so a script must have its entry point
            under `if __name__ == "__main__":`. An image that kills the processes that read it is
            listed as failed.
        devices: Devices for these processes, assigned in turn, such as `["cuda:0", "cuda:1"]`; by
            default the model's device.
        exif: Store what the files know: date, camera and lens of EXIF, size and time of change.
        gps: Store where images were taken, from EXIF, which tells where people live.
        frames_every: Ingest the frames of films, so far apart: `2s`, `500ms`, `1m`, or a number of
            seconds. Their payload has `video` and `time`. Without it, films in a folder are left
            out. Needs the extra `video`.
        pdf_pages: Ingest the pages of the PDF documents in a folder; those of documents that are
            named themselves are ingested anyway. Their payload has `document` and `page`. Needs
            the extra `pdf`.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Returns:
        The numbers of images added, updated, skipped and pruned, and the failures. Images that
        occur twice in the source count as skipped (`twice`), and so do images that are in the
        collection already (`known`), also if another process wrote them to a server's collection
        while this one encoded them: of several ingests, one adds an image (see
        `ImageCollection.add_new`).

    Raises:
        ConfigError: The source is missing, unreadable or empty, a number is below 1, a device
            cannot be used, or `gps` is asked for without `exif`.
        WorkerDiedError: Processes die one after another; images added before are kept.
        ContractMismatchError: Another model wrote the collection.
        StoreError: The collection cannot be written; images added before are kept.
        EngineUnavailableError: The server cannot be reached any more; images added before are
            kept.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from edje_qdrant import EDJEModel, ImageCollection, ingest_images
        >>> model = EDJEModel.from_pretrained("demo", device="cpu")
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     for colour in ("red", "blue", "green"):
        ...         Image.new("RGB", (256, 256), colour).save(folder / f"{colour}.png")
        ...     _ = (folder / "broken.png").write_bytes(b"not an image")
        ...     contract = model.contract()
        ...     with ImageCollection.create(folder / "index", "images", contract) as collection:
        ...         first = ingest_images(folder, collection, model, progress=False)
        ...         second = ingest_images(folder, collection, model, progress=False)
        >>> first.added, first.skipped, len(first.failed)
        (3, 0, 1)
        >>> second.added, second.skipped, len(second.failed)
        (0, 3, 1)
    """
    started = time.perf_counter()
    check_kind("collection", collection, ImageCollection, "an ImageCollection")
    if not hasattr(model, "encode_images"):
        raise ConfigError(
            f"model is {model!r}; give an EDJEModel, such as EDJEModel.from_pretrained(NAME)"
        )
    batch_size = default_batch_size(model.device) if batch_size is None else batch_size
    workers = default_workers() if workers is None else workers
    check_number("batch_size", batch_size)
    check_number("workers", workers)
    check_number("max_pixels", max_pixels)
    check_number("decode_memory", decode_memory)
    check_number("checkpoint_every", checkpoint_every)
    limits = DecodeLimits(workers, decode_memory, decode_seconds, max_pixels)
    check_number("processes", processes, least=0)
    check_seconds("wait", wait)
    if not isinstance(prune, bool) and not callable(prune):
        raise ConfigError(f"prune is {prune!r}; give True, False, or a function that is asked")
    file_fields = FileFields(exif, gps)
    worker_devices = check_devices(processes, devices, model.device)
    source = open_source(source, frames_every=frames_every, pdf_pages=pdf_pages)
    if prune and source.scope == ():
        raise ConfigError(
            f"with prune, all images but {source.name} would be deleted; leave prune out"
        )
    collection.require(model.contract())
    collection.require_writable()
    with collection.patient(wait):
        run = IngestRun(
            collection, model, total=source.count(), progress=progress,
            give_up=collection.index.give_up,
        )  # fmt: skip
        run.paths = set() if not prune and collection.count() else None
        run.copies = []
        update = FieldUpdater(collection)
        scope = ("",) if source.scope is None else source.scope
        copies = Copies(collection, moved_in=scope if prune else None)

        def follow_source(batch: Sequence[KnownImage], existing: set[str]) -> set[str]:
            updated = update(batch, existing)
            copies.keep_known(batch, existing)
            return updated

        checkpoints = Checkpoints(collection.flush, checkpoint_every)
        with (
            run.bar,
            ThreadPoolExecutor(workers) as threads,
            ExitStack() as stack,
            checkpoints.kept(threads, stack),
        ):
            missing = run.missing(source.images(), threads, follow_source, KnownPaths(collection))
            if worker_devices:
                pool = stack.enter_context(EncodingPool(model, worker_devices, limits, file_fields))
                missing = run.with_content(missing, threads, batch_size)
                for batch in pool.encode(batches(missing, batch_size)):
                    checkpoints.wrote(run.write_encoded(batch))
            else:
                decoders = stack.enter_context(limits.pool())
                decode = partial(
                    decode_image, model=model, decoders=decoders, file_fields=file_fields
                )
                run.decode_and_write(missing, decode, threads, batch_size, checkpoints.wrote)
        for found in batches(run.copies, batch_size):
            copies.keep(found)
        pruned = Pruned()
        if prune:
            agree = prune if callable(prune) else None
            pruned = prune_collection(collection, source, run.seen, copies.seen, run.failed, agree)
        old_versions = count_old_versions(collection, run.paths or set(), run.seen)
        collection.flush()
        collection.optimize()
        seconds = time.perf_counter() - started
        return IngestReport(
            run.added, run.skipped, tuple(join_failures(run.failed)), seconds, pruned.deleted,
            run.updated, run.twice, left_out=dict(source.left_out), old_versions=old_versions,
            kept_elsewhere=pruned.kept,
        )  # fmt: skip


def fit_codec_to_source(
    source: Source, model: EDJEModel, name: str, *, sample: int = 2048, batch_size: int = 32,
    seed: int = 0, progress: bool = True,
) -> Codec:  # fmt: skip
    """Fit a codec to a random sample of a source; the encodings are not kept.

    Of a source that would have to be read to be counted, such as a bucket or a stream, the first
    images are taken.

    Args:
        source: As for `ingest_images`.
        model: Encodes the sample.
        name: The codec's name; a codec without a codebook is returned unchanged.
        sample: Size of the sample; images that cannot be read are left out.
        batch_size: Images encoded at a time.
        seed: Random seed of the sample and of the fit.
        progress: Show a bar on stderr.

    Raises:
        ConfigError: The source cannot be used, there is no such codec, there are too few images,
            or a number is below 1.
        MissingExtraError: The library that fits codebooks is not installed.
    """
    if sample < 1 or batch_size < 1:
        raise ConfigError(f"sample {sample} and batch_size {batch_size} must be 1 or more")
    contract = model.contract()
    codec = codec_for(name, contract.num_tokens, contract.token_dim)
    if codec.fitted:
        return codec
    images = open_source(source)
    chosen = [KnownImage("", item) for item in _sampled(images, sample, seed)]
    tokens: list[NDArray[np.float16]] = []
    workers = default_workers()
    bar = tqdm(total=len(chosen), desc=f"fitting {name}", unit=" images", disable=not progress)
    with bar, ThreadPoolExecutor(workers) as threads, DecoderPool(workers) as decoders:
        decode = partial(decode_image, model=model, decoders=decoders)
        for batch in batches(in_threads(threads, decode, chosen, batch_size), batch_size):
            pixels = [item.pixels for item in batch if isinstance(item, DecodedImage)]
            if pixels:
                tokens.append(encode_batch(model, pixels).tokens)
            bar.update(len(batch))
    shape = (0, contract.num_tokens, contract.token_dim)
    return codec.fit(np.concatenate([np.empty(shape, np.float16), *tokens]), seed=seed)


def _sampled(source: ImageSource, sample: int, seed: int) -> list[ListedImage]:
    """Return a random sample of a source; of one that is a stream, the first images."""

    def listed() -> Iterator[ListedImage]:
        return (item for item in source.images() if isinstance(item, ListedImage))

    if source.count() is None:
        return [*islice(listed(), sample)]
    total = sum(1 for _ in listed())
    rows = np.random.default_rng(seed).permutation(total)[:sample].tolist()
    wanted = {*rows}
    chosen = {row: item for row, item in enumerate(listed()) if row in wanted}
    return [chosen[row] for row in rows if row in chosen]
