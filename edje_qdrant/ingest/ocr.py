"""Text that stands in images: read once for each image, and stored in the payload."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from edje_qdrant.checks import check_kind, check_number, check_seconds
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, ImageReadError, MissingExtraError
from edje_qdrant.images import open_upright
from edje_qdrant.images.rgb import to_rgb
from edje_qdrant.sources.read import read_image, stored_id
from edje_qdrant.types import FailedImage, Point

__all__ = ["OCR_FIELD", "RapidOcrReader", "TextReader", "TextsReport", "read_texts"]

#: The payload field of the text that was read in an image.
OCR_FIELD = "ocr"

# Images looked at between two writes.
_PAGE = 32

# Longest side of an image that is read: text of a usual size is read at this one as well.
_SIDE = 2000


class TextReader(Protocol):
    """Reads the text that stands in an image, such as on signs."""

    def read(self, image: Image.Image) -> str:
        """Return the text, in lines; empty if there is none.

        Args:
            image: RGB, upright, 2,000 pixels long at most.
        """


@dataclass(frozen=True, slots=True)
class TextsReport:
    """Report the texts that were read.

    Attributes:
        read: Number of images that were read.
        with_text: Number of them in which there is text.
        known: Number of images that had been read before.
        failed: Images that could not be read, each with the reason; the next run tries them again.
    """

    read: int
    with_text: int
    known: int
    failed: tuple[FailedImage, ...] = ()


class RapidOcrReader:
    """Read text with RapidOCR, whose models come with its package: Latin letters and Chinese.

    It runs on the CPU, on one image at a time, and downloads nothing.

    Args:
        least: Lines that are less certain than this are left out, from 0 to 1.

    Raises:
        MissingExtraError: RapidOCR is not installed.
        ConfigError: `least` is not a number from 0 to 1.
    """

    def __init__(self, *, least: float = 0.5) -> None:
        if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1:
            raise ConfigError(f"least is {least!r}; give a number from 0 to 1")
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise MissingExtraError("RapidOCR", "ocr") from error
        logger = logging.getLogger("RapidOCR")
        level = logger.level
        self._engine: Any = RapidOCR(params={"Global.log_level": "error"})
        logger.setLevel(max(level, logging.ERROR))
        self._least = least

    def read(self, image: Image.Image) -> str:
        """Return the lines of text; see `TextReader`."""
        pixels = np.asarray(to_rgb(image))[:, :, ::-1]  # (h, w, 3), BGR
        found = self._engine(np.ascontiguousarray(pixels))
        lines = zip(found.txts or (), found.scores or (), strict=True)
        return "\n".join(text for text, score in lines if score >= self._least)


def read_texts(
    collection: ImageCollection,
    reader: TextReader,
    *,
    max_pixels: int = 178_956_970,
    progress: bool = False,
    wait: float = 300,
) -> TextsReport:
    """Read the text in all images that were not read yet, and store it as `ocr` in the payload.

    An image is read once: one without text gets an empty `ocr`. A run that was interrupted is
    continued by the next one. With `ocr` among the collection's text fields, words of the text can
    be searched at once.

    Args:
        collection: An open collection of images whose files can be read at their `path`.
        reader: Reads the text, such as a `RapidOcrReader`.
        max_pixels: Larger images are listed as failed.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: An argument is invalid, or the reader returned something else than a text.
        StoreError: The collection cannot be read or written; texts stored before are kept.
        EngineUnavailableError: The server cannot be reached any more; likewise.
    """
    check_kind("collection", collection, ImageCollection, "an ImageCollection")
    if not callable(getattr(reader, "read", None)):
        raise ConfigError(
            f"reader is a {type(reader).__name__}; give an object with a method read(image), such "
            "as a RapidOcrReader"
        )
    check_number("max_pixels", max_pixels)
    check_seconds("wait", wait)
    collection.require_writable()
    read = with_text = known = 0
    failed: list[FailedImage] = []
    with (
        collection.patient(wait),
        tqdm(
            total=collection.count(), desc="reading text", unit=" images", disable=not progress
        ) as shown,
    ):
        for page in collection.index.scroll(batch_size=_PAGE):
            texts: dict[str, str] = {}
            for point in _own(collection, page):
                if isinstance(point.payload.get(OCR_FIELD), str):
                    known += 1
                    continue
                try:
                    texts[point.id] = _text_in(point, reader, max_pixels)
                except ImageReadError as error:
                    failed.append(FailedImage(_path(point), error.reason))
            collection.update_payload({each: {OCR_FIELD: text} for each, text in texts.items()})
            read += len(texts)
            with_text += sum(bool(text) for text in texts.values())
            shown.update(len(page))
        collection.flush()
    return TextsReport(read, with_text, known, tuple(failed))


def _own(collection: ImageCollection, page: Sequence[Point]) -> list[Point]:
    others = {point.id for point in collection.of_other_programs(page)}
    return [point for point in page if point.id not in others]


def _path(point: Point) -> str:
    path = point.payload.get("path")
    return path if isinstance(path, str) else point.id


def _text_in(point: Point, reader: TextReader, max_pixels: int) -> str:
    """Return the text in an image.

    Raises:
        ImageReadError: Its file is gone, damaged or too large, or contains another image now; or
            the reader failed.
        ConfigError: The reader returned something else.
    """
    path = point.payload.get("path")
    if not isinstance(path, str):
        raise ImageReadError(point.id, "its payload names no file under 'path'")
    content = read_image(path)
    if stored_id(path, content) != point.id:
        raise ImageReadError(path, "its file contains another image now; ingest it again")
    image = open_upright(io.BytesIO(content), path, max_pixels=max_pixels)
    image.thumbnail((_SIDE, _SIDE))
    try:
        text = reader.read(image)
    except Exception as error:  # of a library; the other images are read all the same
        reason = f"its text cannot be read: {type(error).__name__}: {error}"
        raise ImageReadError(path, reason) from error
    if not isinstance(text, str):
        raise ConfigError(
            f"reader.read returned a {type(text).__name__} for {path}; let it return a text"
        )
    return text
