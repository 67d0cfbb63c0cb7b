"""Uploaded images: check them, store them, add them to the collection."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.files import hidden_file
from edje_qdrant.images import DecodedFile, DecoderPool
from edje_qdrant.index import TOKENS_KEY
from edje_qdrant.ingest.decode import DecodedImage
from edje_qdrant.ingest.encode import encode_batch
from edje_qdrant.ingest.file_fields import FileFields
from edje_qdrant.ingest.update_fields import update_fields
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.pixels import Pixels, read_file
from edje_qdrant.sources.read import OTHER_PATHS
from edje_qdrant.sources.stamp import file_stamp
from edje_qdrant.threads import batches
from edje_qdrant.web.schemas import FailedUpload, Ingested
from edje_qdrant.web.strict_json import read_json

__all__ = ["ReadUpload", "Upload", "ingest_uploads", "payload_fields", "read_upload"]

_SUFFIXES = {
    "AVIF": ".avif", "BMP": ".bmp", "GIF": ".gif", "HEIF": ".heic", "ICO": ".ico", "JPEG": ".jpg",
    "JPEG2000": ".jp2", "MPO": ".jpg", "PNG": ".png", "PPM": ".ppm", "TIFF": ".tiff",
    "WEBP": ".webp",
}  # fmt: skip
_RESERVED = ("path", OTHER_PATHS, "width", "height", "name", TOKENS_KEY)
_AT_ONCE = 8
_NAME = 200
# A folder of its own, so that looking for what a killed service left is fast.
_PARTS = ".parts"


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file; its name is only displayed, never used as a path."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class ReadUpload:
    """An upload that was decoded, or why it cannot be.

    Attributes:
        upload: The file.
        failed: Why the image cannot be read; None if it was.
        decoded: Its id, format and upright size.
        pixels: Its pixels for the model.
    """

    upload: Upload
    failed: str | None = None
    decoded: DecodedFile | None = None
    pixels: Pixels | None = None


def read_upload(upload: Upload, model: EDJEModel, decoders: DecoderPool) -> ReadUpload:
    """Decode an upload in a decoder process; safe in threads."""
    try:
        decoded, pixels = read_file(model, decoders, upload.data, upload.name)
    except ImageReadError as error:
        return ReadUpload(upload, error.reason)
    if decoded.format not in _SUFFIXES:
        return ReadUpload(upload, "this image format is not accepted")
    return ReadUpload(upload, None, decoded, pixels)


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
    uploads: Sequence[ReadUpload],
    folder: Path,
    collection: ImageCollection,
    model: EDJEModel,
    *,
    fields: Mapping[str, Any],
) -> Ingested:
    """Store images in a folder, named by content, and add them to the collection.

    Files that could not be decoded are not stored. The payload has what `ingest_images` takes from
    files by default; `modified_at` is the time of the upload. Of an image that the collection has
    already, fields with other values are updated.

    Args:
        uploads: What `read_upload` returned.
        folder: Folder to store the images in.
        collection: Collection to add the images to.
        model: The collection's model.
        fields: Payload fields of every image.

    Raises:
        StoreError: The collection cannot be written.
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed: list[FailedUpload] = []
    new: dict[str, DecodedImage] = {}
    known: list[str] = []
    stored: dict[str, Mapping[str, Any]] = {}
    since: str | None = None
    skipped = 0
    for each in uploads:
        if each.decoded is None or each.pixels is None:
            failed.append(FailedUpload(name=each.upload.name, reason=str(each.failed)))
            continue
        image_id = each.decoded.image_id
        known.append(image_id)
        if image_id in new or collection.existing([image_id]):
            if image_id not in new:
                stored[image_id] = fields
            skipped += 1
            continue
        path = folder / f"{image_id}{_SUFFIXES[each.decoded.format]}"
        _write(path, each.upload.data)
        stamp = file_stamp(str(path))
        since = since or stamp.get("modified_at")
        payload = {
            **FileFields().of(each.decoded, stamp),
            **fields,
            "name": each.upload.name[-_NAME:],
            "path": str(path),
            "width": each.decoded.width,
            "height": each.decoded.height,
        }
        new[image_id] = DecodedImage(image_id, payload, each.pixels)
    added: set[str] = set()
    for batch in batches(new.values(), _AT_ONCE):
        encoding = encode_batch(model, [image.pixels for image in batch])
        ids = [image.image_id for image in batch]
        added |= collection.add_new(ids, encoding, [image.payload for image in batch])
    updated = len(update_fields(collection, stored)) if fields else 0
    if new or updated:
        collection.flush()
    skipped += len(new) - len(added)  # another process was quicker
    return Ingested(
        added=len(added),
        updated=updated,
        skipped=skipped - updated,
        failed=failed,
        image_ids=[*dict.fromkeys(known)],
        since=since,
    )


def _write(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there, also after a crash."""
    parts = path.parent / _PARTS
    parts.mkdir(exist_ok=True)
    with hidden_file(parts / "upload") as part:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    with suppress(OSError):
        parts.rmdir()
