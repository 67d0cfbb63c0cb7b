"""Images and captions of a Hugging Face `datasets.Dataset`; does not import `datasets`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from PIL import Image

from edje_qdrant.data.caption_filter import captions_of
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import MAX_PIXELS, error_reason, open_upright
from edje_qdrant.types import FailedImage

__all__ = ["DatasetPairs"]

_READ_ROWS = 10_000


class DatasetPairs:
    """Read images and captions from two columns of a data set.

    Args:
        dataset: A `datasets.Dataset` with rows by number, not a stream.
        image_column: Images, encoded images or paths.
        caption_column: A text or a list of texts per row.
        key_column: A column with equal values for equal images, if rows repeat images; by default
            each row counts as a different image.
        max_pixels: Larger images are refused.
        name: For messages and logs.

    Attributes:
        name: For messages and logs.
        skipped: Rows without a caption.

    Raises:
        ConfigError: A column is missing, the data set is a stream, or no row has a caption.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        image_column: str = "image",
        caption_column: str = "caption",
        key_column: str | None = None,
        max_pixels: int = MAX_PIXELS,
        name: str = "data set",
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ConfigError(
                f"the {name} is a {type(dataset).__name__}, whose rows have no numbers; "
                "load it without streaming"
            )
        columns = list(getattr(dataset, "column_names", None) or ())
        for column in (image_column, caption_column, key_column):
            if column is not None and column not in columns:
                raise ConfigError(
                    f"the {name} has no column {column!r}; it has {', '.join(columns) or 'none'}"
                )
        self.name = name
        self._image_column = image_column
        self._max_pixels = max_pixels
        self._given = getattr(dataset, "_fingerprint", None)
        self._images = _encoded_images(dataset, image_column)
        kept, skipped = [], []
        self._captions: list[tuple[str, ...]] = []
        for row, value in enumerate(_column(dataset, caption_column)):
            if captions := captions_of(value):
                kept.append(row)
                self._captions.append(captions)
            else:
                skipped.append(FailedImage(f"{name}, row {row}", f"no text in {caption_column!r}"))
        self._rows = np.array(kept, np.int64)
        self._key_column = key_column
        self._keys = None if key_column is None else list(_column(dataset, key_column))
        self.skipped = tuple(skipped)
        if not kept:
            raise ConfigError(f"no row of the {name} has a text in {caption_column!r}")

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of the data set's own fingerprint, or of its captions if it has none.

        Skipped rows count as well: they shift the others.
        """
        digest = blake2b(repr((self._image_column, self._given)).encode(), digest_size=16)
        if self._given is None:
            digest.update(repr(self._captions).encode("utf-8", "surrogatepass"))
        digest.update(self._rows.tobytes())
        return digest.hexdigest()

    def captions(self, row: int) -> tuple[str, ...]:
        """Return the image's captions."""
        return self._captions[row]

    def key(self, row: int) -> str:
        """Return the key column's value, or else the data set's fingerprint and the row."""
        number = int(self._rows[row])
        if self._keys is not None:
            return f"{self._key_column}:{self._keys[number]}"
        return f"{self._given or self.name}:{number}"

    def open(self, row: int) -> Image.Image:
        """Return the image upright and in RGB.

        Raises:
            ImageReadError: It cannot be read.
        """
        number = int(self._rows[row])
        where = f"{self.name}, row {number}"
        try:
            value = self._images[number][self._image_column]
        except Exception as error:  # decoding on access raises errors of any type
            raise ImageReadError(where, error_reason(error)) from error
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        file = io.BytesIO(value) if isinstance(value, bytes) else value
        if not isinstance(file, str | io.BytesIO | Image.Image):
            raise ImageReadError(where, f"{type(value).__name__} is not an image")
        return open_upright(file, where, max_pixels=self._max_pixels)


def _encoded_images(dataset: Any, column: str) -> Any:
    """Return the data set with undecoded images, so that `open_upright` decodes all of them."""
    if hasattr(dataset, "with_format"):
        dataset = dataset.with_format(None)
    if hasattr(dataset, "select_columns"):
        dataset = dataset.select_columns([column])
    feature: Any = (getattr(dataset, "features", None) or {}).get(column)
    if getattr(feature, "decode", False) and hasattr(dataset, "cast_column"):
        dataset = dataset.cast_column(column, type(feature)(decode=False))
    return dataset


def _column(dataset: Any, column: str) -> Iterator[Any]:
    if hasattr(dataset, "with_format"):
        dataset = dataset.with_format(None)
    if hasattr(dataset, "select_columns"):
        dataset = dataset.select_columns([column])
    for start in range(0, len(dataset), _READ_ROWS):
        yield from dataset[start : start + _READ_ROWS][column]
