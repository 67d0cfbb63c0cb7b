"""Identify and decode one image: the first steps of an ingest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import DecoderPool, error_reason, image_bytes_id, image_file_id
from edje_qdrant.index.moments import with_moments_as_text
from edje_qdrant.ingest.file_fields import FileFields
from edje_qdrant.model.pixels import Pixels, read_file
from edje_qdrant.sources.parts import part_fields, stored_part_id
from edje_qdrant.sources.protocol import ListedImage
from edje_qdrant.sources.stamp import stamped
from edje_qdrant.types import FailedImage, Payload

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = [
    "DecodedImage",
    "KnownImage",
    "LocatedImage",
    "StoredStamp",
    "decode_image",
    "identify_image",
    "read_listed",
]


@dataclass(frozen=True, slots=True)
class KnownImage:
    """Hold an image that was identified, but not decoded.

    Attributes:
        image_id: UUID string, derived from the file's bytes as they were then, or the one that the
            source gave.
        listed: Its path and the user's fields; with the file's bytes, if it had to be read by the
            source's reader to be named.
        at_path: Whether the image is stored with this path.
    """

    image_id: str
    listed: ListedImage
    at_path: bool = False


@dataclass(frozen=True, slots=True)
class StoredStamp:
    """Hold the id of a stored image and what its payload says of its file.

    Attributes:
        image_id: UUID string.
        fields: The fields of the payload that a stamp may have.
    """

    image_id: str
    fields: Payload

    def is_of(self, item: ListedImage) -> bool:
        """Return whether an image has this stamp."""
        return all(self.fields.get(name) == value for name, value in item.stamp.items())


@dataclass(frozen=True, slots=True)
class LocatedImage:
    """Hold an image of a source and the stored images that have its path.

    Attributes:
        listed: The image.
        stored: Usually none or one; several if the file at the path has changed since.
    """

    listed: ListedImage
    stored: Sequence[StoredStamp]


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Hold an image ready to be encoded.

    Attributes:
        image_id: UUID string, derived from the bytes that were decoded, or the source's own.
        payload: Stored with the image: what its file knows, the user's fields, its path and its
            upright size.
        pixels: As `read_file` returns them.
    """

    image_id: str
    payload: Payload
    pixels: Pixels


def identify_image(item: LocatedImage | ListedImage | FailedImage) -> KnownImage | FailedImage:
    """Read an image's file and derive its id; pass earlier failures through.

    An image that is stored with its path and stamp is not read.
    """
    if isinstance(item, FailedImage):
        return item
    stored: Sequence[StoredStamp] = ()
    if isinstance(item, LocatedImage):
        stored, item = item.stored, item.listed
    item = stamped(item, ask=bool(stored))
    try:
        if item.stamp and (same := [each for each in stored if each.is_of(item)]):
            image_id = same[0].image_id
        elif item.image_id is not None:
            image_id = item.image_id
        elif item.part is not None:
            image_id = stored_part_id(item.part)
        else:
            item = read_listed(item)
            if item.content is None:
                image_id = image_file_id(item.path)
            else:
                image_id = image_bytes_id(item.content, item.path)
    except ImageReadError as error:
        return FailedImage(item.path, error.reason)
    try:
        # As text, so that they are compared with what is stored.
        item = replace(item, fields=with_moments_as_text(item.fields))
        json.dumps([item.path, item.fields], allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return FailedImage(item.path, f"its payload cannot be stored: {error_reason(error)}")
    return KnownImage(image_id, item, any(each.image_id == image_id for each in stored))


def read_listed(item: ListedImage) -> ListedImage:
    """Return an image with its content, if its source has a reader for it; else unchanged.

    Raises:
        ImageReadError: It cannot be read.
    """
    if item.content is not None or item.reader is None:
        return item
    try:
        content, stamp = item.reader()
    except ImageReadError as error:
        raise ImageReadError(item.path, error.reason) from error
    return replace(item, content=content, reader=None, look=None, stamp=stamp or item.stamp)


def decode_image(
    image: KnownImage,
    model: EDJEModel,
    decoders: DecoderPool,
    file_fields: FileFields = FileFields(),  # noqa: B008 - frozen
) -> DecodedImage | FailedImage:
    """Decode an image for a model; safe in worker threads.

    The id is derived from the bytes that are decoded, as the file may have changed since it was
    identified.

    Args:
        image: The image.
        model: Decides how the image is resized.
        decoders: Processes that decode.
        file_fields: The fields of the payload that are taken from the file.

    Raises:
        ConfigError: The encoder's `resize` cannot be sent to a process.
        WorkerDiedError: Decoder processes cannot be started.
    """
    path, part = image.listed.path, image.listed.part
    try:
        listed = read_listed(image.listed)
        content = listed.content
        file = part or (path if content is None else content)
        decoded, pixels = read_file(model, decoders, file, path)
    except ImageReadError as error:
        return FailedImage(path, error.reason)
    payload = {
        **file_fields.of(decoded, listed.stamp),
        **image.listed.fields,
        "path": path,
        "width": decoded.width,
        "height": decoded.height,
        **({} if part is None else part_fields(part)),
    }
    own_id = image.image_id if part is not None else image.listed.image_id
    return DecodedImage(own_id or decoded.image_id, payload, pixels)
