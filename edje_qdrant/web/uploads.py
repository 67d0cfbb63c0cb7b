"""Uploaded images: check them, store them, add them to the collection."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import image_file_id, open_listed, open_upright
from edje_qdrant.index import TOKENS_KEY
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.types import IngestReport
from edje_qdrant.web.schemas import FailedUpload, Ingested
from edje_qdrant.web.strict_json import read_json

__all__ = ["Upload", "ingest_uploads", "payload_fields", "uploaded_image"]

_SUFFIXES = {
    "AVIF": ".avif", "BMP": ".bmp", "GIF": ".gif", "ICO": ".ico", "JPEG": ".jpg",
    "JPEG2000": ".jp2", "MPO": ".jpg", "PNG": ".png", "PPM": ".ppm", "TIFF": ".tiff",
    "WEBP": ".webp",
}  # fmt: skip
_RESERVED = ("path", "width", "height", "name", TOKENS_KEY)
_AT_ONCE = 8
_NAME = 200


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file; its name is only displayed, never used as a path."""

    name: str
    data: bytes


def uploaded_image(upload: Upload, *, max_pixels: int) -> Image.Image:
    """Decode an uploaded image, upright.

    Raises:
        ImageReadError: The file is not an image, or too large.
    """
    if not upload.data:
        raise ImageReadError(upload.name, "the file is empty")
    return open_upright(io.BytesIO(upload.data), upload.name, max_pixels=max_pixels)


def payload_fields(text: str | None) -> dict[str, Any]:
    """Parse the payload fields for uploaded images.

    Raises:
        ConfigError: The text is not a JSON object, or has a field that the service sets.
    """
    if not text:
        return {}
    try:
        fields = read_json(text)
    except ValueError as error:
        raise ConfigError(f"fields cannot be read as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError('fields must be a JSON object, such as {"album": "winter"}')
    for name in _RESERVED:
        if name in fields:
            raise ConfigError(f"the field {name!r} is set by the service; choose another name")
    return fields


def ingest_uploads(
    uploads: Sequence[Upload],
    folder: Path,
    collection: ImageCollection,
    model: EDJEModel,
    *,
    fields: Mapping[str, Any],
    max_pixels: int,
) -> Ingested:
    """Store images in a folder, named by content, and add them to the collection.

    Files that cannot be decoded are not stored.

    Args:
        uploads: Uploaded files.
        folder: Folder to store the images in.
        collection: Collection to add the images to.
        model: The collection's model.
        fields: Payload fields of every new image.
        max_pixels: Pixel limit of an image.

    Raises:
        StoreError: The collection cannot be written.
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed: list[FailedUpload] = []
    kept: dict[str, tuple[Path, str]] = {}
    known: list[str] = []
    skipped = 0
    for upload in uploads:
        try:
            image_id, suffix, part = _written(upload, folder, max_pixels)
        except ImageReadError as error:
            failed.append(FailedUpload(name=upload.name, reason=error.reason))
            continue
        if image_id in kept or collection.existing([image_id]):
            part.unlink()
            skipped += 1
        else:
            path = folder / f"{image_id}{suffix}"
            part.replace(path)
            kept[image_id] = (path, upload.name)
        known.append(image_id)
    added = 0
    if kept:
        report = _ingest(kept, collection, model, fields, max_pixels)
        added, skipped = report.added, skipped + report.skipped
        names = {str(path): (image_id, name) for image_id, (path, name) in kept.items()}
        for failure in report.failed:
            image_id, name = names[failure.path]
            Path(failure.path).unlink(missing_ok=True)
            failed.append(FailedUpload(name=name, reason=failure.reason))
            known = [other for other in known if other != image_id]
    return Ingested(added=added, skipped=skipped, failed=failed, image_ids=[*dict.fromkeys(known)])


def _ingest(
    kept: Mapping[str, tuple[Path, str]],
    collection: ImageCollection,
    model: EDJEModel,
    fields: Mapping[str, Any],
    max_pixels: int,
) -> IngestReport:
    lines = [
        json.dumps({**fields, "name": name[-_NAME:], "path": str(path)})
        for path, name in kept.values()
    ]
    with tempfile.TemporaryDirectory() as place:
        manifest = Path(place) / "uploads.jsonl"
        manifest.write_text("\n".join(lines), encoding="utf-8")
        return ingest_images(
            manifest, collection, model, batch_size=_AT_ONCE, workers=1, progress=False,
            max_pixels=max_pixels,
        )  # fmt: skip


def _written(upload: Upload, folder: Path, max_pixels: int) -> tuple[str, str, Path]:
    """Write an image to a temporary file; return its id, its suffix and the file's path."""
    uploaded_image(upload, max_pixels=max_pixels)
    with open_listed(io.BytesIO(upload.data), upload.name) as image:
        suffix = _SUFFIXES.get(image.format or "")
    if suffix is None:
        raise ImageReadError(upload.name, "this image format is not accepted")
    number, name = tempfile.mkstemp(prefix=".part-", dir=folder)
    part = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(upload.data)
            file.flush()
            os.fsync(file.fileno())
        return image_file_id(name), suffix, part
    except BaseException:
        part.unlink(missing_ok=True)
        raise
