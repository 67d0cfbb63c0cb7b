"""Open images upright and within a size limit, convert them to RGB, name them by content."""

from __future__ import annotations

from edje_qdrant.images.content_ids import (
    MAX_FILE_BYTES,
    image_bytes_id,
    image_file_id,
    part_id,
    read_image_file,
)
from edje_qdrant.images.decoder_pool import (
    DECODE_MEMORY,
    DECODE_SECONDS,
    DecodedFile,
    DecodeLimits,
    DecoderPool,
    default_workers,
)
from edje_qdrant.images.exif import Exif
from edje_qdrant.images.formats import FORMATS, open_listed
from edje_qdrant.images.open import (
    MAX_PIXELS,
    error_reason,
    ignore_decoder_warnings,
    image_name,
    open_upright,
)
from edje_qdrant.images.parts import Part, Survey, part_of, size_and_time
from edje_qdrant.images.rgb import to_rgb

__all__ = [
    "DECODE_MEMORY",
    "DECODE_SECONDS",
    "FORMATS",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "DecodeLimits",
    "DecodedFile",
    "DecoderPool",
    "Exif",
    "Part",
    "Survey",
    "default_workers",
    "error_reason",
    "ignore_decoder_warnings",
    "image_bytes_id",
    "image_file_id",
    "image_name",
    "open_listed",
    "open_upright",
    "part_id",
    "part_of",
    "read_image_file",
    "size_and_time",
    "to_rgb",
]
