"""Add tokens to the points of a Qdrant collection that something else made; resumable."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from PIL import Image

from edje_qdrant.attach.attached_collection import is_attached, read_attachment, require
from edje_qdrant.attach.points import ForeignPoint, ForeignPoints
from edje_qdrant.checks import check_number
from edje_qdrant.collection.checks import check_tokens, fitted_codec
from edje_qdrant.collection.metadata import CollectionRecord, absolute, new_store, resolve
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import error_reason, ignore_decoder_warnings, open_upright
from edje_qdrant.index import QdrantOptions
from edje_qdrant.ingest.decode import DecodedImage
from edje_qdrant.ingest.pipeline import IngestRun
from edje_qdrant.model import EDJEModel
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.protocol import TokenStore
from edje_qdrant.types import FailedImage, ImageEncoding, IngestReport, Payload

__all__ = ["Locate", "attach_tokens", "detach_tokens"]

#: Turns a payload field's value into an image: a path, an open file, or an image of Pillow's.
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
    batch_size: int = 32,
    workers: int = 2,
    progress: bool = True,
    api_key: str | None = None,
    prefer_grpc: bool = False,
    timeout: int = 30,
) -> IngestReport:
    """Add tokens to every point whose payload names an image, for `AttachedCollection`.

    Only the reserved payload key `_edje` and a key of the collection's metadata are written;
    vectors and the rest of the payload are not touched. Points that have tokens already are
    skipped, so a run that was interrupted goes on where it stopped, and a later one adds what is
    new. A point that names another image by then gets its tokens anew; a file that was changed
    under the same name is not noticed. Memory does not grow with the collection.

    Args:
        location: `"http://..."`, `"https://..."` or a `QdrantClient`, which stays open.
        name: The collection's.
        model: Makes the tokens, and scores them later.
        path_field: The payload field that names the image; dots part nested ones.
        images: Folder that relative paths start from; the working folder by default.
        locate: What finds the image of the field's value, where that is no path of a file here.
        codec: How tokens become bytes, `"float16"` by default: a name, or a fitted codec. Later
            runs keep to that of the first.
        tokens_folder: Keep tokens in side files in this folder, which every machine that reranks
            must read; in the payload by default.
        batch_size: Images encoded and written at a time.
        workers: Threads that read and decode beside the encoding.
        progress: Show a bar on stderr.
        api_key: Sent with every request to a server.
        prefer_grpc: Use gRPC for large transfers.
        timeout: Seconds to wait for one answer of a server.

    Returns:
        What was added, skipped, and not read.

    Raises:
        CollectionNotFoundError: There is no such collection.
        ConfigError: No point has the field, an argument cannot be used, or is not that of the first
            run; or this package made the collection.
        ContractMismatchError: Another model's tokens are attached.
        StoreError: Tokens cannot be written; what was added before is kept.
        EngineUnavailableError: The server went away; the same holds.
    """
    started = time.perf_counter()
    check_number("batch_size", batch_size)
    check_number("workers", workers)
    locate = locate or _files(images)
    options = QdrantOptions(api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout)
    where = resolve(location)
    points = ForeignPoints(where, name, path_field, options)
    try:
        store = _store(points, where, name, model, path_field, codec, tokens_folder)
        try:
            run = IngestRun(
                _Target(points, store, model.contract()), model, total=points.count(),
                progress=progress, action="attaching", unit="points",
            )  # fmt: skip
            decode = partial(_decode, model=model, path_field=path_field, locate=locate)
            with warnings.catch_warnings(), run.bar, ThreadPoolExecutor(workers) as pool:
                ignore_decoder_warnings()
                try:
                    missing = _without_tokens(points, run)
                    for _ in run.decode_and_write(missing, decode, pool, batch_size):
                        pass
                except BaseException:
                    pool.shutdown(cancel_futures=True)
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
    api_key: str | None = None,
    prefer_grpc: bool = False,
    timeout: int = 30,
) -> None:
    """Remove everything that `attach_tokens` wrote to a collection; side files stay.

    Args:
        location: As `attach_tokens`.
        name: The collection's.
        api_key: Sent with every request to a server.
        prefer_grpc: Use gRPC for large transfers.
        timeout: Seconds to wait for one answer of a server.

    Raises:
        CollectionNotFoundError: There is no such collection.
        ConfigError: This package made the collection, or an argument cannot be used.
        EngineUnavailableError: The server went away; run it again.
    """
    options = QdrantOptions(api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout)
    points = ForeignPoints(resolve(location), name, options=options)
    try:
        points.unmark()
        # Last, so that what a crash leaves behind is found as attached, and detached by a rerun.
        points.set_metadata(None)
    finally:
        points.close()


def _store(
    points: ForeignPoints,
    where: Any,
    name: str,
    model: EDJEModel,
    path_field: str,
    codec: str | Codec | None,
    tokens_folder: str | Path | None,
) -> TokenStore:
    """Open the store of an earlier run, or note what this one attaches and make its store."""
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
                f"{name!r} has tokens attached already, with another {what} ({kept}); keep to "
                "that, or detach them first (`edje-qdrant detach`)"
            )
    return record.open_store(where, name, tokens_folder)


class _Target:
    """Add tokens to points: first to the store, then references to them at the points."""

    def __init__(
        self,
        points: ForeignPoints,
        store: TokenStore,
        contract: TokenContract,
    ) -> None:
        self._points, self._store, self._contract = points, store, contract

    def existing(self, image_ids: Sequence[str]) -> set[str]:  # noqa: ARG002 - IngestTarget's
        return set()  # points with tokens were skipped when they were listed

    def add(
        self, image_ids: Sequence[str], encoding: ImageEncoding, payloads: Sequence[Payload]
    ) -> None:
        check_tokens(self._contract, image_ids, encoding.tokens)
        references = self._store.put(image_ids, encoding.tokens)
        self._store.flush()
        self._points.mark(
            {
                payload["id"]: {**reference, "path": payload["path"]}
                for payload, reference in zip(payloads, references, strict=True)
            }
        )


def _without_tokens(points: ForeignPoints, run: IngestRun) -> Iterator[ForeignPoint]:
    for page in points.scroll():
        for point in page:
            if is_attached(point):
                run.skip()
            else:
                yield point


def _decode(
    point: ForeignPoint, model: EDJEModel, path_field: str, locate: Locate
) -> DecodedImage | FailedImage:
    if point.field is None:
        return FailedImage(f"point {point.id}", f"its payload has no {path_field!r}")
    shown = f"{point.field} (point {point.id})"
    try:
        pixels = model.preprocess([open_upright(locate(point.field), shown)])
        return DecodedImage(str(point.id), {"id": point.id, "path": point.field}, pixels)
    except ImageReadError as error:
        return FailedImage(shown, error.reason)
    except Exception as error:  # image processors and `locate` raise any type of error
        return FailedImage(shown, error_reason(error))


def _files(images: str | Path | None) -> Locate:
    """Return what finds files by their path."""
    around = Path("." if images is None else images).expanduser()
    if not around.is_dir():
        raise ConfigError(f"there is no folder {around}; say where the images are (--images)")

    def locate(value: Any) -> Path:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is no path")
        return around / value.removeprefix("file://")

    return locate
