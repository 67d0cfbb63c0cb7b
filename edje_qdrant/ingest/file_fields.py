"""Payload fields that an ingest takes from the image's file itself."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edje_qdrant.errors import ConfigError
from edje_qdrant.images import DecodedFile
from edje_qdrant.types import Payload

__all__ = ["FileFields"]


@dataclass(frozen=True, slots=True)
class FileFields:
    """Say which fields of the payload are taken from image files; see `docs/images.md`.

    Fields of the user with the same names go before them.

    Attributes:
        exif: Take `taken_at`, `camera`, `lens`, `file_size` and `modified_at`.
        gps: Take `place`, too.

    Raises:
        ConfigError: `gps` is asked for without `exif`.
    """

    exif: bool = True
    gps: bool = False

    def __post_init__(self) -> None:
        if self.gps and not self.exif:
            raise ConfigError("gps takes the place from the EXIF data; leave exif on, or gps off")

    def of(self, decoded: DecodedFile, stamp: Payload = MappingProxyType({})) -> Payload:
        """Return the fields of one image; a value that the file does not have is left out.

        Args:
            decoded: The decoded file.
            stamp: What its source says of the file; an `etag` is stored always.
        """
        if not self.exif:
            return {name: value for name, value in stamp.items() if name == "etag"}
        known = decoded.exif
        fields: dict[str, Any] = {
            "taken_at": known.taken_at,
            "camera": known.camera,
            "lens": known.lens,
            "file_size": decoded.file_bytes,
            **stamp,
        }
        if self.gps and known.lat is not None:
            fields["place"] = {"lon": known.lon, "lat": known.lat}
        return {name: value for name, value in fields.items() if value is not None}
