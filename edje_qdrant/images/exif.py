"""What a camera wrote into an image's file: when, where and with what it was taken."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from PIL import Image

__all__ = ["Exif", "read_exif"]

# EXIF tags (CIPA DC-008).
_MAKE, _MODEL, _OWN_IFD, _GPS_IFD = 271, 272, 34665, 34853
_LENS_MODEL = 42036
# The date and its offset from UTC: of the exposure, else of the digitisation.
_DATES = ((36867, 36881), (36868, 36882))
_LATITUDE, _LONGITUDE = (1, 2, "NS", 90.0), (3, 4, "EW", 180.0)

_TIFF = (b"II*\0", b"MM\0*")

_DATE = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)")
_OFFSET = re.compile(r"([+-])(\d\d):(\d\d)|Z")
_MOST_CHARACTERS = 200
_DECIMALS = 6  # of degrees: 0.1 m
# The furthest that a time zone is from UTC.
_FURTHEST = timedelta(hours=15)


@dataclass(frozen=True, slots=True)
class Exif:
    """Hold what a file says about its photograph; None where it says nothing usable.

    Attributes:
        taken_at: RFC 3339 text of the exposure, with the file's offset from UTC; without an offset
            the camera's clock counts as UTC.
        lat: Degrees north, -90 to 90.
        lon: Degrees east, -180 to 180.
        camera: Maker and model.
        lens: Model of the lens.
    """

    taken_at: str | None = None
    lat: float | None = None
    lon: float | None = None
    camera: str | None = None
    lens: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the values that are known, by the names of the attributes."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: object) -> Exif:
        """Return what `to_json` was called on; values of other kinds are left out.

        The process that read a hostile file may send anything.
        """
        known = value if isinstance(value, Mapping) else {}
        lat, lon = _degrees(known.get("lat"), 90.0), _degrees(known.get("lon"), 180.0)
        taken_at = known.get("taken_at")
        return cls(
            taken_at=taken_at if isinstance(taken_at, str) and _is_moment(taken_at) else None,
            lat=None if lon is None else lat,
            lon=None if lat is None else lon,
            camera=_text(known.get("camera")),
            lens=_text(known.get("lens")),
        )


def read_exif(image: Image.Image, tiff: bytes = b"") -> Exif:
    """Read an image's EXIF data; damaged ones count as missing, value by value.

    Args:
        image: Opened by Pillow. A PNG must be decoded, as its EXIF data may follow the pixels.
        tiff: The file's bytes, if it is a TIFF or a RAW file: the former's tags are gone when it is
            decoded, and the image of the latter is its preview only.
    """
    tags = Image.Exif()
    try:
        if tiff.startswith(_TIFF):
            tags.load_from_fp(io.BytesIO(tiff))
        else:
            tags = image.getexif()
    except Exception:  # damaged data raise any type of error
        return Exif()
    own, gps = _ifd(tags, _OWN_IFD), _ifd(tags, _GPS_IFD)
    lat, lon = _coordinate(gps, *_LATITUDE), _coordinate(gps, *_LONGITUDE)
    if lat is None or lon is None or (lat, lon) == (0.0, 0.0):  # what cameras without a fix write
        lat = lon = None
    taken = (_moment(own.get(date), own.get(offset)) for date, offset in _DATES)
    return Exif(
        taken_at=next((text for text in taken if text is not None), None),
        lat=lat,
        lon=lon,
        camera=_camera(_text(_value(tags, _MAKE)), _text(_value(tags, _MODEL))),
        lens=_text(own.get(_LENS_MODEL)),
    )


def _value(tags: Mapping[int, Any], tag: int) -> Any:
    try:
        return tags.get(tag)
    except Exception:  # Pillow decodes a tag when it is asked for
        return None


def _ifd(tags: Any, tag: int) -> Mapping[int, Any]:
    try:
        return dict(tags.get_ifd(tag))
    except Exception:  # damaged data raise any type of error
        return {}


def _text(value: object) -> str | None:
    """Return a text in one line without control characters; None for other values."""
    if not isinstance(value, str):
        return None
    line = " ".join(value.replace("\0", " ").split())
    line = "".join(each for each in line if each.isprintable())[:_MOST_CHARACTERS].strip()
    return line or None


def _camera(make: str | None, model: str | None) -> str | None:
    """Return maker and model; makers repeat their name in models: Canon, Canon EOS R5."""
    if make is None or model is None:
        return model or make
    return model if model.lower().startswith(make.split()[0].lower()) else f"{make} {model}"


def _moment(date: object, offset: object) -> str | None:
    """Return the RFC 3339 text of an EXIF date and its offset; None if it is no date."""
    found = _DATE.fullmatch(date.strip("\0 ")) if isinstance(date, str) else None
    if found is None:
        return None
    zone = offset.strip("\0 ") if isinstance(offset, str) else ""
    year, month, day, hour, minute, second = found.groups()
    clock = f"{year}-{month}-{day}T{hour}:{minute}:{second}"
    text = f"{clock}{zone if _OFFSET.fullmatch(zone) else 'Z'}"
    if _is_moment(text):
        return text
    return f"{clock}Z" if _is_moment(f"{clock}Z") else None


def _is_moment(text: str) -> bool:
    """Return whether a text is an RFC 3339 moment that all engines can compare."""
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")
        utc = moment.utcoffset() or timedelta()
        return len(text) <= len("2024-05-07T09:33:04+08:00") and (
            abs(utc) <= _FURTHEST and 2 <= moment.year <= 9998
        )
    except (ValueError, OverflowError):
        return False


def _coordinate(
    gps: Mapping[int, Any], reference: int, tag: int, sides: str, most: float
) -> float | None:
    """Return degrees north or east of three numbers and a letter; None if they are none."""
    side, parts = gps.get(reference), gps.get(tag)
    side = side.strip("\0 ").upper() if isinstance(side, str) else ""
    if len(side) != 1 or side not in sides or not isinstance(parts, tuple):
        return None
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError, ArithmeticError):
        return None
    if not 1 <= len(numbers) <= 3 or not all(number >= 0 for number in numbers):
        return None
    degrees = sum(number / 60**place for place, number in enumerate(numbers))
    return _degrees(degrees if side == sides[0] else -degrees, most)


def _degrees(value: object, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(float(value), _DECIMALS) if abs(value) <= most else None
