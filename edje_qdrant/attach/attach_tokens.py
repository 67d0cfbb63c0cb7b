"""Attachment of tokens to the points of an existing Qdrant collection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from PIL import Image

from edje_qdrant.attach.attached_collection import is_attached, read_attachment, require
from edje_qdrant.attach.points import AttachablePoint, AttachablePoints
from edje_qdrant.checks import check_kind, check_number, check_seconds
from edje_qdrant.collection.checks import check_tokens, fitted_codec
from edje_qdrant.collection.metadata import CollectionRecord, absolute, new_store, resolve
from edje_qdrant.collection.references import another_model, signed
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, ImageReadError, StoreError, WorkerDiedError
from edje_qdrant.files import kind_of
from edje_qdrant.images import (
    MAX_FILE_BYTES,
    DecoderPool,
    default_workers,
    error_reason,
    open_upright,
)
from edje_qdrant.index import QdrantOptions
from edje_qdrant.ingest.decode import DecodedImage
from edje_qdrant.ingest.pipeline import IngestRun
from edje_qdrant.ingest.prune import Agree
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.pixels import default_batch_size, image_pixels, read_file
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.protocol import TokenStore
from edje_qdrant.types import FailedImage, ImageEncoding, IngestReport, Payload

__all__ = ["Locate", "attach_tokens", "detach_tokens"]

#: Maps the value of a payload field to an image: a path, an open file, or a Pillow image.
Locate: TypeAlias = "Callable[[Any], str | Path | BinaryIO | Image.Image]"


def attach_tokens(
    location: Any,
    name: str,
    model: EDJEModel,
    *,
    path_field: str = "path",
    images: str | Path | None = None,
    locate: Locate | None = None,
    codec: str | Codec | None = None,
    tokens_folder: str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    api_key: str | None = None,
    prefer_grpc: bool = False,
    grpc_port: int | None = None,
    timeout: int = 30,
    wait: float = 300,
) -> IngestReport:
    """Add tokens to every point whose payload names an image, for `AttachedCollection`.

    Only the reserved payload key `_edje` and one key of the collection's metadata are written;
    vectors and the rest of the payload are not changed. Points that have tokens already are
    skipped, so an interrupted run can be continued by a rerun, and a later run adds tokens to new
    points. If a point's payload names another image than before, its tokens are replaced; a file
    whose content changed under the same path is not detected. Memory use does not grow with the
    collection.

    Args:
        location: `"http://..."`, `"https://..."` or a `QdrantClient`, which stays open.
        name: Name of the collection.
        model: Model that makes the tokens and later scores them.
        path_field: Payload field that names the image; `"a.b"` is field `b` of object `a`.
        images: Folder to which relative paths refer; the working folder by default.
        locate: Function that returns the image for a value of the field, if the value is not the
            path of a local file.
        codec: Codec of the stored tokens: a name, or a fitted codec; `"float16"` by default.
            Later runs must use the codec of the first one, which is then the default.
        tokens_folder: Store tokens in side files in this folder, which every machine that reranks
            must be able to read; by default, tokens are stored in the payload.
        batch_size: Images encoded and written at a time; by default 32 on a CPU, 64 on a GPU.
        workers: Processes that read and decode in parallel with the encoding; by default the
            number of cores, 16 at most.
        progress: Show a bar on stderr.
        api_key: Sent with every request to a server.
        prefer_grpc: Use gRPC for large transfers.
        grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
        timeout: Seconds to wait for one answer of a server.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Returns:
        The numbers of points that got tokens and that were skipped, and the failures.

    Raises:
        CollectionNotFoundError: There is no such collection.
        ConfigError: No point has the field, an argument is invalid or differs from that of the
            first run, or the collection was made by this package.
        ContractMismatchError: Another model's tokens are attached.
        StoreError: Tokens cannot be written; tokens added before are kept.
        EngineUnavailableError: The server cannot be reached; tokens added before are kept.

    Example:
        >>> from PIL import Image
        >>> from qdrant_client import QdrantClient, models
        >>> from edje_qdrant import EDJEModel, attach_tokens
        >>> model = EDJEModel.from_pretrained("demo", device="cpu")
        >>> images = {name: Image.new("RGB", (256, 256), name) for name in ("red", "blue")}
        >>> vectors = model.encode_images([*images.values()]).embeddings
        >>> client = QdrantClient(":memory:")
        >>> vector_params = models.VectorParams(size=vectors.shape[1], distance="Cosine")
        >>> _ = client.create_collection("products", vectors_config=vector_params)
        >>> client.upload_collection("products", vectors, [{"colour": name} for name in images])
        >>> options = {"path_field": "colour", "locate": images.get, "progress": False}
        >>> first = attach_tokens(client, "products", model, **options)
        >>> second = attach_tokens(client, "products", model, **options)
        >>> first.added, first.skipped, len(first.failed)
        (2, 0, 0)
        >>> second.added, second.skipped, len(second.failed)
        (0, 2, 0)
    """
    started = time.perf_counter()
    check_kind("model", model, EDJEModel, "an EDJEModel, such as EDJEModel.from_pretrained(NAME)")
    batch_size = default_batch_size(model.device) if batch_size is None else batch_size
    workers = default_workers() if workers is None else workers
    check_number("batch_size", batch_size)
    check_number("workers", workers)
    check_seconds("wait", wait)
    locate = locate or _files(images)
    options = QdrantOptions(api_key, prefer_grpc, grpc_port, timeout)
    where = resolve(location)
    points = AttachablePoints(where, name, path_field, options)
    try:
        store = _store(points, where, name, model, path_field, codec, tokens_folder)
        try:
            run = IngestRun(
                _Target(points, store, name), model, total=points.count(),
                progress=progress, action="attaching", unit="points", give_up=points.give_up,
            )  # fmt: skip
            decoders = DecoderPool(workers)
            decode = partial(
                _decode, model=model, decoders=decoders, path_field=path_field, locate=locate
            )
            with (
                points.patient(wait),
                run.bar,
                ThreadPoolExecutor(decoders.workers) as threads,
                decoders,
            ):
                try:
                    missing = _without_tokens(points, store.contract, run)
                    run.decode_and_write(missing, decode, threads, batch_size)
                except BaseException:
                    decoders.close()  # no thread waits for a decoder any more
                    threads.shutdown(cancel_futures=True)
                    raise
        finally:
            store.close()
    finally:
        points.close()
    seconds = time.perf_counter() - started
    return IngestReport(run.added, run.skipped, tuple(run.failed), seconds)


def detach_tokens(
    location: Any,
    name: str,
    *,
    agree: Agree | None = None,
    api_key: str | None = None,
    prefer_grpc: bool = False,
    grpc_port: int | None = None,
    timeout: int = 30,
) -> bool:
    """Remove everything that `attach_tokens` wrote to a collection; side files are kept.

    Args:
        location: As `attach_tokens`.
        name: Name of the collection.
        agree: Called with the number of points, at most, that have attached tokens, and the ids of
            three of them, if there are any; returns whether to remove them. All points of the
            collection are counted, as counting those that have some would read every payload.
        api_key: Sent with every request to a server.
        prefer_grpc: Use gRPC for large transfers.
        grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
        timeout: Seconds to wait for one answer of a server.

    Returns:
        Whether tokens were attached, and it was agreed to remove them.

    Raises:
        CollectionNotFoundError: There is no such collection.
        ConfigError: The collection was made by this package, or an argument is invalid.
        EngineUnavailableError: The server cannot be reached; a rerun continues.
    """
    options = QdrantOptions(api_key, prefer_grpc, grpc_port, timeout)
    points = AttachablePoints(resolve(location), name, options=options)
    try:
        attached = points.metadata() is not None
        if agree is not None:
            if not attached:
                return False
            page = next(points.scroll(16), [])
            marked = [str(point.id) for point in page if point.reference is not None]
            if not agree(points.count(), marked[:3]):
                return False
        points.unmark()
        # Last: after a crash, the tokens still count as attached and a rerun removes them.
        points.set_metadata(None)
        return attached
    finally:
        points.close()


def _store(
    points: AttachablePoints,
    where: Any,
    name: str,
    model: EDJEModel,
    path_field: str,
    codec: str | Codec | None,
    tokens_folder: str | Path | None,
) -> TokenStore:
    """Open the token store of an earlier run, or write the metadata and create a store."""
    found = read_attachment(points, name)
    if found is None:
        fields = points.some_fields()
        if fields and path_field.split(".")[0] not in fields:
            raise ConfigError(
                f"the points of {name!r} have no payload field {path_field!r}; name the one with "
                f"the image's path (--path-field), of {', '.join(fields[:10])}"
            )
        chosen = fitted_codec(model.contract(), codec or "float16")
        contract = model.contract().with_codec(chosen.name, chosen.hash)
        folder = None if tokens_folder is None else absolute(tokens_folder) / name
        with new_store(folder, contract, chosen) as store:
            record = CollectionRecord.of(store, contract, tokens_folder)
            points.set_metadata({**record.as_metadata(), "path_field": path_field})
        return store
    record, field = found
    require(model.contract(), record, name, points.address)
    asked = None if codec is None else fitted_codec(model.contract(), codec)
    place = "side files" if record.tokens == "file" else "the payload"
    for what, wrong, kept in (
        ("path_field", field != path_field, repr(field)),
        ("codec", asked is not None and asked.key != record.contract.codec_key,
         record.contract.codec_key),
        ("tokens_folder", tokens_folder is not None and record.tokens != "file", place),
    ):  # fmt: skip
        if wrong:
            raise ConfigError(
                f"tokens are attached to {name!r} already, with another {what} ({kept}); use that "
                "one, or detach the tokens first (`edje-qdrant detach`)"
            )
    return record.open_store(where, name, tokens_folder)


class _Target:
    """Write tokens to the store, then references to them into the points' payloads."""

    def __init__(self, points: AttachablePoints, store: TokenStore, name: str) -> None:
        self._points, self._store, self._name = points, store, name

    def existing(self, image_ids: Sequence[str]) -> set[str]:  # noqa: ARG002 - required by IngestTarget
        return set()  # _without_tokens has skipped points with tokens

    def add_new(
        self, image_ids: Sequence[str], encoding: ImageEncoding, payloads: Sequence[Payload]
    ) -> set[str]:
        contract = self._store.contract
        check_tokens(contract, image_ids, encoding.tokens)
        if not self._store.in_payload:
            self._require_unchanged()  # before tokens go to side files
        references = self._store.put(image_ids, encoding.tokens)
        self._store.flush()
        self._points.mark(
            {
                payload["id"]: {**signed(reference, contract), "path": payload["path"]}
                for payload, reference in zip(payloads, references, strict=True)
            },
            self._require_unchanged,
        )
        return {*image_ids}

    def _require_unchanged(self) -> None:
        """Check that the attached tokens are of the same model and codec as at the start.

        Raises:
            ContractMismatchError: They are not: the collection, or its metadata, was replaced.
            StoreError: Nothing is attached any more.
        """
        found = read_attachment(self._points, self._name)
        where = f"{self._points.resolved_name!r} at {self._points.address}"
        if found is None:
            raise StoreError(
                f"the tokens attached to {where} were detached, or the collection was replaced, "
                "while this ran; run `edje-qdrant attach` again"
            )
        self._store.contract.require_match(
            found[0].contract, where=f"the tokens attached to {where}, replaced since the start,"
        )


def _without_tokens(
    points: AttachablePoints, contract: TokenContract, run: IngestRun
) -> Iterator[AttachablePoint]:
    """Yield points without tokens, or with another model's; count the others as skipped."""
    for page in points.scroll():
        for point in page:
            of_another = another_model(contract, [str(point.id)], [point.reference or {}], "")
            if is_attached(point) and of_another is None:
                run.skip()
            else:
                yield point


def _decode(
    point: AttachablePoint,
    model: EDJEModel,
    decoders: DecoderPool,
    path_field: str,
    locate: Locate,
) -> DecodedImage | FailedImage:
    if point.field is None:
        return FailedImage(f"point {point.id}", f"its payload has no {path_field!r}")
    shown = f"{point.field} (point {point.id})"
    try:
        found = locate(point.field)
        if isinstance(found, Image.Image):
            pixels = image_pixels(model, open_upright(found, shown), shown)
        else:
            if isinstance(found, str | Path):
                file: str | bytes = str(found)
            else:  # bytes() refuses the text of a file that was not opened for reading bytes
                file = bytes(found.read(MAX_FILE_BYTES + 1))
            pixels = read_file(model, decoders, file, shown)[1]
        return DecodedImage(str(point.id), {"id": point.id, "path": point.field}, pixels)
    except ImageReadError as error:
        return FailedImage(shown, error.reason)
    except (ConfigError, WorkerDiedError):
        raise  # not of this image alone
    except Exception as error:  # `locate` can raise any error
        return FailedImage(shown, error_reason(error))


def _files(images: str | Path | None) -> Locate:
    """Return a function that finds files by path, relative to a folder."""
    folder = Path("." if images is None else images).expanduser()
    if kind_of(folder, ConfigError) != "folder":
        raise ConfigError(f"there is no folder {folder}; name the images' folder (--images)")

    def locate(value: Any) -> Path:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a path")
        return folder / value.removeprefix("file://")

    return locate
