"""Ingest a Ray data set into a collection on a Qdrant server, over a cluster."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    CollectionNotFoundError,
    ConfigError,
    EdjeError,
    EngineUnavailableError,
    MissingExtraError,
    StoreError,
    WorkerDiedError,
)
from edje_qdrant.images import MAX_PIXELS, ignore_decoder_warnings
from edje_qdrant.index import TOKENS_KEY, QdrantSettings
from edje_qdrant.ingest.decode import decode_image
from edje_qdrant.ingest.pipeline import IngestRun
from edje_qdrant.ingest.sources import ListedImage
from edje_qdrant.integrations.ray_tally import Tally
from edje_qdrant.model import EDJEModel
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
    "a Ray cluster writes from many processes and machines, so give the address of a Qdrant server "
    'that all of them reach, such as "http://qdrant:6333"; a folder of images goes into a '
    "collection in a folder with ingest_images, on one machine"
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
    timeout: int = 30,
) -> IngestReport:
    """Add the images of a Ray data set to a collection whose tokens are in the payload.

    Rows have `path`, and either a file there that every machine can read, or its content in
    `bytes`, as `ray.data.read_binary_files(..., include_paths=True)` gives it. Other columns become
    fields of the payload. Each actor loads a model of its own and has its own connection.

    An image's id is made from its file's bytes: what is there already is skipped before it is
    decoded, and so a run that was stopped by anything goes on where it stopped. What cannot be
    read is listed in the report and never ends the run. Images that an actor wrote before it died
    are counted as skipped by the one that does its work again; copies of an image that two actors
    meet at the same moment may be counted as added twice, and are in the collection once.

    Args:
        dataset: The images.
        location: The address of a Qdrant server, as every machine of the cluster can reach it.
        name: The collection's.
        model: What `EDJEModel.from_pretrained` takes; a folder must be on every machine.
        concurrency: Actors.
        batch_size: Images that an actor looks up, encodes and writes at a time.
        num_cpus: Cores of an actor; as many threads read and decode.
        num_gpus: GPUs of an actor; with 0 it encodes on the processor.
        max_retries: Times that a batch is done again whose actor died, or whose calls to the server
            failed even after the connection's own tries; then the run ends.
        max_pixels: Images with more are refused before they are decoded.
        create: Create the collection where it is missing.
        codec: How a collection that is created stores tokens: a name, or a codec that was fitted.
        qdrant: How the server is to keep a collection that is created.
        api_key: Sent with every request to the server; it travels to the actors through Ray.
        prefer_grpc: Use gRPC for large transfers.
        timeout: Seconds to wait for one answer of the server.

    Returns:
        What was added, skipped and refused.

    Raises:
        ConfigError: An argument or a column cannot be used, or the collection keeps its tokens in
            side files, which one process at a time may write.
        CollectionNotFoundError: There is none; pass `create=True`.
        ContractMismatchError: Another model wrote the collection.
        CheckpointError: The model cannot be loaded.
        StoreError: The server failed; what was added before is kept.
        EngineUnavailableError: The server cannot be reached; the same holds.
        WorkerDiedError: A batch's actor died more often than allowed, or Ray failed; the same
            holds.

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
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{what} is {value!r}; give a whole number, {least} or more")
    if not isinstance(num_gpus, int | float) or num_gpus < 0:
        raise ConfigError(f"num_gpus is {num_gpus!r}; give a number, 0 or more")
    if not isinstance(dataset, ray.data.Dataset):
        raise ConfigError(f"dataset is a {type(dataset).__name__}; give a ray.data.Dataset")
    if not isinstance(location, str) or not location.startswith(("http://", "https://")):
        raise ConfigError(f"location is {location!r}, but {_ONE_PROCESS}")
    if not isinstance(model, str | os.PathLike):
        raise ConfigError(
            f"model is a {type(model).__name__}; give a name or a folder, which each actor loads"
        )
    server = {"api_key": api_key, "prefer_grpc": prefer_grpc, "timeout": timeout}
    # An actor's current folder is another one.
    chosen = os.path.abspath(model) if os.path.isdir(model) else str(model)
    job = _Job(
        location, name, chosen, None if num_gpus else "cpu", max_retries, max_pixels, num_cpus,
        server,
    )  # fmt: skip
    _prepare(job, {"codec": codec, "qdrant": qdrant} if create else None)
    tally = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tally).remote()
    reports = dataset.map_batches(
        _Worker,
        fn_constructor_args=(job, tally),
        batch_size=batch_size,
        batch_format="pyarrow",
        # From one actor on: as many at once as were asked for could take every core of a small
        # cluster, and wait for ever for what is to read the images.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=concurrency),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    try:
        added, skipped, failed, fault = _summed(reports)
    except RayError as error:
        raise WorkerDiedError(
            f"Ray ended the ingest into {name!r} at {location}: {_first_line(error)}; what was "
            "added is kept, so look at Ray's logs, and run again"
        ) from error
    if fault is not None:
        raise fault
    return IngestReport(added, skipped, tuple(failed), time.perf_counter() - started)


def _summed(
    reports: ray.data.Dataset,
) -> tuple[int, int, list[FailedImage], EdjeError | None]:
    """Do all batches, or those until one ends the run; return what came of them.

    The error is not raised here: its traceback would keep the data set going.
    """
    added = skipped = 0
    failed: list[FailedImage] = []
    for row in reports.iter_rows():
        if row["fault"]:
            return added, skipped, failed, pickle.loads(row["fault"])
        added += row["added"]
        skipped += row["skipped"]
        failed += [FailedImage(path, reason) for path, reason in json.loads(row["failed"])]
    return added, skipped, failed, None


@dataclass(frozen=True, slots=True)
class _Job:
    """Tell an actor what to do."""

    location: str
    name: str
    model: str
    device: str | None
    max_retries: int
    max_pixels: int
    threads: int
    server: dict[str, Any] = field(repr=False)

    def open(self) -> ImageCollection:
        return ImageCollection.open(self.location, self.name, **self.server)


class _Worker:
    """Do batches in an actor, which keeps its model and its connection from one to the next."""

    def __init__(self, job: _Job, tally: Any) -> None:
        self._job = job
        self._tally = tally
        self._model: EDJEModel | None = None
        self._collection: ImageCollection | None = None
        self._pool = ThreadPoolExecutor(job.threads)

    def __call__(self, rows: pa.Table) -> dict[str, list[Any]]:
        """Add a batch; return one row that says what came of it.

        Errors travel in it too, as Ray would wrap them and do other batches meanwhile.
        """
        try:
            images = [*_listed(rows)]
            batch = _name_of(images)
            if ray.get(self._tally.begin.remote(batch)) > self._job.max_retries + 1:
                raise WorkerDiedError(
                    f"{self._job.max_retries + 1} actors died of a batch of {len(images)} "
                    f"images, {images[0].path} to {images[-1].path}; what was added before "
                    "is kept. Look at the actors' logs: an image that kills the process that "
                    "decodes it must be taken out, and where memory ran out, lower batch_size or "
                    "raise num_cpus"
                )
            added, skipped, failed = self._again_and_again(images)
            ray.get(self._tally.end.remote(batch))
        except EdjeError as error:
            return _row(fault=pickle.dumps(error))
        return _row(added, skipped, json.dumps([[each.path, each.reason] for each in failed]))

    def _again_and_again(
        self, images: Sequence[ListedImage | FailedImage]
    ) -> tuple[int, int, list[FailedImage]]:
        tries = 0
        while True:
            try:
                return self._add(images)
            except (EngineUnavailableError, StoreError) as error:  # noqa: PERF203
                # The kinds of StoreError say what would be the same again, the plain one is the
                # server's. No pause, as the connection has paused between tries of its own.
                passing = type(error) in (EngineUnavailableError, StoreError)
                if not passing or tries == self._job.max_retries:
                    raise
                tries += 1

    def _add(
        self, images: Sequence[ListedImage | FailedImage]
    ) -> tuple[int, int, list[FailedImage]]:
        model, collection = self._parts()
        run = IngestRun(collection, model)
        with warnings.catch_warnings():
            ignore_decoder_warnings()
            decode = partial(decode_image, model=model, max_pixels=self._job.max_pixels)
            missing = run.missing(images, self._pool)
            for _ in run.decode_and_write(missing, decode, self._pool, max(1, len(images))):
                pass
        return run.added, run.skipped, run.failed

    def _parts(self) -> tuple[EDJEModel, ImageCollection]:
        # Not in the constructor, as Ray would wrap what is raised there.
        if self._model is None:
            self._model = EDJEModel.from_pretrained(self._job.model, device=self._job.device)
        if self._collection is None:
            collection = self._job.open()
            collection.require(self._model.contract())
            self._collection = collection
        return self._model, self._collection


def _prepare(job: _Job, wanted: dict[str, Any] | None) -> None:
    """Open the collection once, or create it as is wanted, before any actor is started."""
    try:
        collection = job.open()
    except CollectionNotFoundError:
        if wanted is None:
            raise
        contract = EDJEModel.from_pretrained(job.model, device="cpu").contract()
        collection = ImageCollection.create(
            job.location, job.name, contract, tokens="payload", **wanted, **job.server
        )
    with collection:
        if collection.token_place != "payload":
            raise ConfigError(
                f"the collection {job.name!r} at {job.location} keeps its tokens in side files, "
                "which one process at a time may write; ingest into one with tokens in the "
                "payload, or use ingest_images"
            )


def _listed(rows: pa.Table) -> Iterator[ListedImage | FailedImage]:
    """Yield the rows of a batch as images.

    Raises:
        ConfigError: A column is missing or reserved.
    """
    if "path" not in rows.column_names:
        raise ConfigError(
            f"the data set has the columns {', '.join(rows.column_names)} and no `path`; give it "
            "one (read_binary_files does with include_paths=True)"
        )
    if TOKENS_KEY in rows.column_names:
        raise ConfigError(f"the column {TOKENS_KEY!r} is reserved; rename it")
    for row in rows.to_pylist():
        path, content = row["path"], row.pop("bytes", None)
        if not isinstance(path, str) or not path:
            yield FailedImage(str(path), "its path is no text, or empty")
        elif content is not None and not isinstance(content, bytes):
            yield FailedImage(path, f"its bytes are {type(content).__name__}")
        elif content is None and not os.path.isabs(path):
            yield FailedImage(path, "a relative path may be another file on each machine")
        else:
            yield ListedImage(path, row, content)


def _name_of(images: Sequence[ListedImage | FailedImage]) -> str:
    """Return what is the same when Ray does a batch again, and no other batch's meanwhile.

    A batch is done again by the actor that died, under its old id.
    """
    paths = "\0".join(image.path for image in images)
    digest = hashlib.sha256(paths.encode(errors="surrogatepass")).hexdigest()
    return f"{ray.get_runtime_context().get_actor_id()} {digest}"


def _row(
    added: int = 0, skipped: int = 0, failed: str = "[]", fault: bytes = b""
) -> dict[str, list[Any]]:
    return {"added": [added], "skipped": [skipped], "failed": [failed], "fault": [fault]}


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
