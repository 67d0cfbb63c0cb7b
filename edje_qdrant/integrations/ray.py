"""Ingest of a Ray data set into a collection on a Qdrant server, distributed over a cluster."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edje_qdrant.checks import check_number, check_seconds
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    ConfigError,
    EdjeError,
    EngineUnavailableError,
    MissingExtraError,
    StoreError,
    WorkerDiedError,
)
from edje_qdrant.images import MAX_PIXELS, DecoderPool
from edje_qdrant.index import TOKENS_KEY, QdrantSettings
from edje_qdrant.ingest.copies import Copies
from edje_qdrant.ingest.decode import KnownImage, decode_image
from edje_qdrant.ingest.file_fields import FileFields
from edje_qdrant.ingest.pipeline import IngestRun
from edje_qdrant.ingest.update_fields import FieldUpdater
from edje_qdrant.integrations.ray_tally import Tally
from edje_qdrant.model import EDJEModel
from edje_qdrant.sources.protocol import ListedImage
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.types import FailedImage, IngestReport

try:
    import ray.data
    from ray.exceptions import RayError
except ImportError as error:
    raise MissingExtraError("ray[data]", "ray") from error

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ingest_dataset"]

_ONE_PROCESS = (
    "a Ray cluster writes from many processes and machines; give the address of a Qdrant server "
    'that all of them can reach, such as "http://qdrant:6333". To ingest into a collection in a '
    "folder, use ingest_images on one machine"
)


def ingest_dataset(
    dataset: ray.data.Dataset,
    location: str,
    name: str,
    model: str | Path = "demo",
    *,
    concurrency: int = 2,
    batch_size: int = 32,
    num_cpus: int = 1,
    num_gpus: float = 0,
    max_retries: int = 3,
    max_pixels: int = MAX_PIXELS,
    create: bool = False,
    codec: str | Codec = "float16",
    qdrant: QdrantSettings | None = None,
    api_key: str | None = None,
    prefer_grpc: bool = False,
    grpc_port: int | None = None,
    timeout: int = 30,
    wait: float = 300,
    exif: bool = True,
    gps: bool = False,
) -> IngestReport:
    """Ingest the images of a Ray data set into a collection with tokens in the payload.

    Each row has the column `path` and, unless every machine can read that file, its content in
    `bytes`, as returned by `ray.data.read_binary_files(..., include_paths=True)`. Other columns
    become fields of the payload, and win over those that `exif` and `gps` take from the files. Each
    actor loads its own model and opens its own connection.

    Images that are in the collection already are skipped before they are decoded, because an
    image's id is derived from its file's bytes; so a run that was stopped can be continued by
    running it again. Columns that differ from the fields stored with such an image are updated, and
    null removes a field; if several rows hold one image, any of them may win. Files that cannot be
    read are listed in the report and do not stop the run.
    If an actor dies, the images it wrote are counted as skipped when its batch is repeated. Of
    copies of an image that several actors process at the same time one is counted as added.

    Args:
        dataset: The images.
        location: Address of a Qdrant server that every machine of the cluster can reach.
        name: Name of the collection.
        model: The argument of `EDJEModel.from_pretrained`; a folder must be on every machine.
        concurrency: Maximum number of actors.
        batch_size: Images that an actor looks up, encodes and writes at a time.
        num_cpus: Cores of an actor, which is also its number of processes that read and decode.
        num_gpus: GPUs of an actor; with 0 it encodes on the CPU.
        max_retries: How often a batch is repeated whose actor died, or whose requests to the
            server failed, where `wait` is 0 also those that it did not answer. After that, the run
            ends.
        max_pixels: Larger images are refused before they are decoded.
        create: Create the collection if it does not exist.
        codec: Codec of a collection that is created: a name, or a fitted codec.
        qdrant: Server-side settings of a collection that is created.
        api_key: Sent with every request to the server; Ray transfers it to the actors.
        prefer_grpc: Use gRPC for large transfers.
        grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
        timeout: Seconds to wait for one answer of the server.
        exif: Store what the files know, as `ingest_images` does.
        gps: Store where images were taken, as `ingest_images` does.
        wait: Seconds for which an actor waits for a server that is away, before the run ends; a
            line in its log says so.

    Returns:
        The numbers of images added, updated and skipped, and the failures.

    Raises:
        ConfigError: An argument or a column cannot be used, or the collection keeps its tokens in
            side files, which only one process at a time can write.
        CollectionNotFoundError: The collection does not exist; pass `create=True`.
        ContractMismatchError: Another model wrote the collection.
        CheckpointError: The model cannot be loaded.
        StoreError: The server failed; images added before are kept.
        EngineUnavailableError: The server cannot be reached; images added before are kept.
        WorkerDiedError: The actors of a batch died more often than allowed, or Ray failed; images
            added before are kept.

    Example:
        >>> files = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
        >>> ingest_dataset(files, "http://qdrant:6333", "images", concurrency=8, num_gpus=1)
    """
    started = time.perf_counter()
    numbers = {
        "concurrency": (concurrency, 1), "batch_size": (batch_size, 1), "num_cpus": (num_cpus, 1),
        "max_retries": (max_retries, 0), "max_pixels": (max_pixels, 1),
    }  # fmt: skip
    for what, (value, least) in numbers.items():
        check_number(what, value, least=least)
    check_seconds("wait", wait)
    if not isinstance(num_gpus, int | float) or num_gpus < 0:
        raise ConfigError(f"num_gpus is {num_gpus!r}; give a number, 0 or more")
    if not isinstance(dataset, ray.data.Dataset):
        raise ConfigError(f"dataset is a {type(dataset).__name__}; give a ray.data.Dataset")
    if not isinstance(location, str) or not location.startswith(("http://", "https://")):
        raise ConfigError(f"location is {location!r}, but {_ONE_PROCESS}")
    if not isinstance(model, str | os.PathLike):
        raise ConfigError(
            f"model is a {type(model).__name__}; give a name or a folder, from which each actor "
            "loads the model"
        )
    server = {
        "api_key": api_key, "prefer_grpc": prefer_grpc, "grpc_port": grpc_port, "timeout": timeout,
    }  # fmt: skip
    # Absolute, because an actor has another working directory.
    chosen = os.path.abspath(model) if os.path.isdir(model) else str(model)
    job = _Job(
        location, name, chosen, None if num_gpus else "cpu", max_retries, max_pixels, num_cpus,
        server, wait, FileFields(exif, gps),
    )  # fmt: skip
    # All actors write to one collection, also if the name is an alias that is moved.
    job = replace(job, name=_prepare(job, {"codec": codec, "qdrant": qdrant} if create else None))
    tally = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tally).remote()
    reports = dataset.map_batches(
        _Worker,
        fn_constructor_args=(job, tally),
        batch_size=batch_size,
        batch_format="pyarrow",
        # Start with one actor: on a small cluster, `concurrency` actors could take every core and
        # leave none for the tasks that read the images, so that both would wait forever.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=concurrency),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    try:
        report, error = _sum_up(reports)
    except RayError as ray_error:
        raise WorkerDiedError(
            f"Ray ended the ingest into {name!r} at {location}: {_first_line(ray_error)}; what was "
            "added is kept. Read Ray's logs, then run again"
        ) from ray_error
    if error is not None:
        raise error
    return replace(report, seconds=time.perf_counter() - started)


def _sum_up(reports: ray.data.Dataset) -> tuple[IngestReport, EdjeError | None]:
    """Run the batches until one returns an error; return what was done, and that error.

    The error is not raised here, because its traceback would keep the data set running.
    """
    added = updated = skipped = twice = 0
    failed: list[FailedImage] = []
    error: EdjeError | None = None
    for row in reports.iter_rows():
        if row["error"]:
            error = pickle.loads(row["error"])
            break
        added += row["added"]
        updated += row["updated"]
        skipped += row["skipped"]
        twice += row["twice"]
        failed += [FailedImage(path, reason) for path, reason in json.loads(row["failed"])]
    return IngestReport(added, skipped, tuple(failed), updated=updated, twice=twice), error


@dataclass(frozen=True, slots=True)
class _Job:
    """Configure an actor."""

    location: str
    name: str
    model: str
    device: str | None
    max_retries: int
    max_pixels: int
    threads: int
    server: dict[str, Any] = field(repr=False)
    wait: float = 0
    file_fields: FileFields = FileFields()  # noqa: RUF009 - frozen

    def open(self) -> ImageCollection:
        return ImageCollection.open(self.location, self.name, **self.server)

    def open_patiently(self) -> ImageCollection:
        """Open the collection; wait for a server that is away, as the driver has reached it."""
        until = time.monotonic() + self.wait
        while True:
            try:
                return self.open()
            except EngineUnavailableError:  # noqa: PERF203 - retries need a loop
                if time.monotonic() >= until:
                    raise


class _Worker:
    """Ingest batches in an actor, which keeps its model and its connection between batches."""

    def __init__(self, job: _Job, tally: Any) -> None:
        self._job = job
        self._tally = tally
        self._model: EDJEModel | None = None
        self._collection: ImageCollection | None = None
        self._threads = ThreadPoolExecutor(job.threads)
        self._decoders = DecoderPool(job.threads, max_pixels=job.max_pixels)

    def __call__(self, rows: pa.Table) -> dict[str, list[Any]]:
        """Ingest a batch; return one row with the counts, the failures and the error.

        Errors are returned rather than raised, as Ray would wrap them and start further batches.
        """
        try:
            images = [*_listed(rows)]
            batch = _batch_name(images)
            if ray.get(self._tally.begin.remote(batch)) > self._job.max_retries + 1:
                raise WorkerDiedError(
                    f"{self._job.max_retries + 1} actors died of a batch of {len(images)} "
                    f"images, {images[0].path} to {images[-1].path}; what was added before "
                    "is kept. Read the actors' logs: remove an image that kills the process that "
                    "decodes it; if memory ran out, lower batch_size or raise num_cpus"
                )
            report = self._add_with_retries(images)
            ray.get(self._tally.end.remote(batch))
        except EdjeError as error:
            return _row(error=pickle.dumps(error))
        return _row(report)

    def _add_with_retries(self, images: Sequence[ListedImage | FailedImage]) -> IngestReport:
        retries = 0
        while True:
            try:
                return self._add(images)
            except (EngineUnavailableError, StoreError) as error:  # noqa: PERF203
                # Subclasses of StoreError report what would fail again; StoreError itself reports a
                # failure of the server. No pause, as the connection pauses between its own retries.
                waited = isinstance(error, EngineUnavailableError) and self._job.wait > 0
                temporary = type(error) in (EngineUnavailableError, StoreError) and not waited
                if not temporary or retries == self._job.max_retries:
                    raise
                retries += 1

    def _add(self, images: Sequence[ListedImage | FailedImage]) -> IngestReport:
        model, collection = self._parts()
        with collection.patient(self._job.wait):
            return self._ingested(model, collection, images)

    def _ingested(
        self,
        model: EDJEModel,
        collection: ImageCollection,
        images: Sequence[ListedImage | FailedImage],
    ) -> IngestReport:
        run = IngestRun(collection, model)
        run.copies = []
        decode = partial(
            decode_image,
            model=model,
            decoders=self._decoders,
            file_fields=self._job.file_fields,
        )
        update, copies = FieldUpdater(collection), Copies(collection)

        def follow_source(batch: Sequence[KnownImage], existing: set[str]) -> set[str]:
            copies.keep_known(batch, existing)
            return update(batch, existing)

        missing = run.missing(images, self._threads, follow_source)
        run.decode_and_write(missing, decode, self._threads, max(1, len(images)))
        copies.keep(run.copies)
        return IngestReport(
            run.added, run.skipped, tuple(run.failed), updated=run.updated, twice=run.twice
        )

    def _parts(self) -> tuple[EDJEModel, ImageCollection]:
        # Not in the constructor, as Ray would wrap an error raised there.
        if self._model is None:
            self._model = EDJEModel.from_pretrained(self._job.model, device=self._job.device)
        if self._collection is None:
            collection = self._job.open_patiently()
            collection.require(self._model.contract())
            self._collection = collection
        return self._model, self._collection


def _prepare(job: _Job, wanted: dict[str, Any] | None) -> str:
    """Open or create the collection once, before any actor is started; return its own name."""
    try:
        collection = job.open()
    except CollectionNotFoundError:
        if wanted is None:
            raise
        contract = EDJEModel.from_pretrained(job.model, device="cpu").contract()
        try:
            collection = ImageCollection.create(
                job.location, job.name, contract, tokens="payload", **wanted, **job.server
            )
        except CollectionExistsError:  # another process was quicker
            collection = job.open()
    with collection:
        if collection.token_place != "payload":
            raise ConfigError(
                f"the collection {job.name!r} at {job.location} keeps its tokens in side files, "
                "which only one process at a time can write; ingest into a collection with tokens "
                "in the payload, or use ingest_images"
            )
        return collection.resolved_name


def _listed(rows: pa.Table) -> Iterator[ListedImage | FailedImage]:
    """Convert the rows of a batch.

    Raises:
        ConfigError: A column is missing or reserved.
    """
    if "path" not in rows.column_names:
        raise ConfigError(
            f"the data set has the columns {', '.join(rows.column_names)} and no `path`; add "
            "one (read_binary_files does with include_paths=True)"
        )
    if TOKENS_KEY in rows.column_names:
        raise ConfigError(f"the column {TOKENS_KEY!r} is reserved; rename it")
    for row in rows.to_pylist():
        path, content = row["path"], row.pop("bytes", None)
        if not isinstance(path, str) or not path:
            yield FailedImage(str(path), "its path is not a text, or empty")
        elif content is not None and not isinstance(content, bytes):
            yield FailedImage(path, f"its bytes are {type(content).__name__}")
        elif content is None and not os.path.isabs(path):
            yield FailedImage(path, "a relative path may be another file on each machine")
        else:
            yield ListedImage(path, row, content)


def _batch_name(images: Sequence[ListedImage | FailedImage]) -> str:
    """Return a name that a batch keeps when Ray repeats it, unlike that of any other batch.

    Ray repeats a batch in the actor that died, restarted with the same id.
    """
    paths = "\0".join(image.path for image in images)
    digest = hashlib.sha256(paths.encode(errors="surrogatepass")).hexdigest()
    return f"{ray.get_runtime_context().get_actor_id()} {digest}"


def _row(report: IngestReport | None = None, error: bytes = b"") -> dict[str, list[Any]]:
    report = report or IngestReport(0, 0)
    failed = json.dumps([[each.path, each.reason] for each in report.failed])
    return {
        "added": [report.added],
        "updated": [report.updated],
        "skipped": [report.skipped],
        "twice": [report.twice],
        "failed": [failed],
        "error": [error],
    }


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
