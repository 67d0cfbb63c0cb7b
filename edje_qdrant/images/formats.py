"""The image formats that are read; files of any other format are refused by name, undecoded."""

from __future__ import annotations

import contextlib
import importlib
import threading
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from edje_qdrant.errors import ImageReadError, MissingExtraError
from edje_qdrant.images.raw import is_raw, open_preview

__all__ = ["FORMATS", "HEIF", "open_listed"]

# Pillow's plugin and its name of the format. Pillow reads many more, some with another program
# (EPS with Ghostscript, which executes what the file says), most untested for decades.
_PLUGINS = {
    "JpegImagePlugin": "JPEG",
    "MpoImagePlugin": "MPO",
    "PngImagePlugin": "PNG",
    "WebPImagePlugin": "WEBP",
    "GifImagePlugin": "GIF",
    "BmpImagePlugin": "BMP",
    "TiffImagePlugin": "TIFF",
    "AvifImagePlugin": "AVIF",
    "PpmImagePlugin": "PPM",
    "IcoImagePlugin": "ICO",
    "Jpeg2KImagePlugin": "JPEG2000",
}


def _register() -> tuple[str, ...]:
    for plugin in _PLUGINS:
        with contextlib.suppress(ImportError):  # Pillow before 11.3 has no plugin for AVIF
            importlib.import_module(f"PIL.{plugin}")
    return tuple(name for name in _PLUGINS.values() if name in Image.OPEN)


#: Pillow's names of the formats that are read without an extra.
FORMATS = _register()
#: The name of the format that the extra `heif` adds.
HEIF = "HEIF"

_READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIF, JPEG 2000, PPM, ICO and cameras' RAW are"
# First bytes of formats that Pillow does not know, or not by its first bytes.
_OTHERS = (
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"<!DOCTYPE", "HTML"),
    (b"<html", "HTML"),
    (b"PK\x03\x04", "ZIP"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "FPX, MIC or of an office program"),
)
# Brands of HEIF files with HEVC, and those of any codec.
_HEVC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_ANY_CODEC = frozenset({b"mif1", b"msf1"})
_AV1 = frozenset({b"avif", b"avis"})
_SHOWN = 16  # as many bytes as Pillow shows to its plugins
_PREFIX = 256  # with the brands of a HEIF file
_registering = threading.Lock()


def open_listed(file: str | BinaryIO, name: str) -> ImageFile.ImageFile:
    """Open an image in one of `FORMATS` or `HEIF`, or a RAW file's preview; do not decode it.

    Raises:
        ImageReadError: The file is in another format, or no image, or the extra that reads its
            format is not installed.
        OSError: The file cannot be read. Headers that are damaged raise errors of other types, too.
    """
    prefix = _first_bytes(file)
    formats = FORMATS
    if is_raw(prefix, file):
        return open_preview(file, name)
    if _is_heif(prefix):
        _register_heif(name)
        formats = (HEIF,)
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        raise ImageReadError(name, _refusal(prefix)) from error


def _first_bytes(file: str | BinaryIO) -> bytes:
    if isinstance(file, str):
        with open(file, "rb") as opened:
            return opened.read(_PREFIX)
    file.seek(0)
    return file.read(_PREFIX)


def _is_heif(prefix: bytes) -> bool:
    """Return whether a file is HEIF; AVIF, which has the same container, is not."""
    if prefix[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(prefix[:4], "big"), len(prefix))
    first = prefix[8:12]
    brands = {first, *(prefix[at : at + 4] for at in range(16, end, 4))}
    return first in _HEVC or (first in _ANY_CODEC and (not brands & _AV1 or bool(brands & _HEVC)))


def _register_heif(name: str) -> None:
    """Let Pillow open HEIF files.

    Raises:
        ImageReadError: The extra `heif` is not installed.
    """
    with _registering:
        if HEIF in Image.OPEN:
            return
        try:
            from pi_heif import register_heif_opener

            register_heif_opener()
        except ImportError as error:
            missing = MissingExtraError("pi-heif", "heif")
            raise ImageReadError(name, f"a file in the format HEIF, but {missing}") from error


def _refusal(prefix: bytes) -> str:
    found = _named(prefix)
    if found is None:
        return "not an image, or in a format that cannot be read here"
    if found in (*FORMATS, HEIF):
        return f"a damaged {found} file, or of a kind that cannot be read here"
    return f"a file in the format {found}, which is not read ({_READ}); convert it"


def _named(prefix: bytes) -> str | None:
    """Return the name of the format that begins with these bytes; nothing is decoded."""
    for begin, name in _OTHERS:
        if prefix.startswith(begin):
            return name
    if _is_heif(prefix):
        return HEIF
    Image.init()  # registers the other plugins
    # Those that are read come first: one of the others may accept nearly anything.
    for name in (*FORMATS, *(other for other in Image.ID if other not in FORMATS)):
        accept = Image.OPEN[name][1]
        with contextlib.suppress(Exception):  # some plugins expect more bytes
            if accept is not None and accept(prefix[:_SHOWN]):
                return name
    return None
