"""The image formats that are read; files of any other format are refused by name, undecoded."""

from __future__ import annotations

import contextlib
import importlib
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from edje_qdrant.errors import ImageReadError

__all__ = ["FORMATS", "open_listed"]

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


#: Pillow's names of the formats that are read.
FORMATS = _register()

_READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM and ICO are"
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
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_PREFIX = 16  # as many bytes as Pillow shows to its plugins


def open_listed(file: str | BinaryIO, name: str) -> ImageFile.ImageFile:
    """Open an image in one of `FORMATS`; read its header, but do not decode it.

    Raises:
        ImageReadError: The file is in another format, or no image.
        OSError: The file cannot be read. Headers that are damaged raise errors of other types, too.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageReadError(name, _refusal(_first_bytes(file))) from error


def _first_bytes(file: str | BinaryIO) -> bytes:
    if isinstance(file, str):
        with open(file, "rb") as opened:
            return opened.read(_PREFIX)
    file.seek(0)
    return file.read(_PREFIX)


def _refusal(prefix: bytes) -> str:
    found = _named(prefix)
    if found is None:
        return "not an image, or in a format that cannot be read here"
    if found in FORMATS:
        return f"a damaged {found} file, or of a kind that cannot be read here"
    return f"a file in the format {found}, which is not read ({_READ}); convert it"


def _named(prefix: bytes) -> str | None:
    """Return the name of the format that begins with these bytes; nothing is decoded."""
    for begin, name in _OTHERS:
        if prefix.startswith(begin):
            return name
    if prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF:
        return "HEIF"
    Image.init()  # registers the other plugins
    # Those that are read come first: one of the others may accept nearly anything.
    for name in (*FORMATS, *(other for other in Image.ID if other not in FORMATS)):
        accept = Image.OPEN[name][1]
        with contextlib.suppress(Exception):  # some plugins expect more bytes
            if accept is not None and accept(prefix):
                return name
    return None
