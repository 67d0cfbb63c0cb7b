"""Sources of images with captions: annotation files, tar shards, Hugging Face data sets."""

from __future__ import annotations

import glob
import os
from functools import cached_property
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from edje_qdrant.data.annotations import group_by_image, read_annotations
from edje_qdrant.data.hf_datasets import DatasetPairs
from edje_qdrant.data.webdataset import TarPairs
from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.files import kind_of
from edje_qdrant.images import MAX_PIXELS, open_upright

__all__ = ["AnnotatedPairs", "DatasetPairs", "PairSource", "TarPairs", "open_pairs"]

_ANNOTATION_SUFFIXES = (".json", ".jsonl")


class PairSource(Protocol):
    """Images and their captions by row; thread-safe."""

    @property
    def name(self) -> str:
        """Return the source's name for messages and logs."""

    @property
    def fingerprint(self) -> str:
        """Return hexadecimal digits that change with the images, not with the captions."""

    def __len__(self) -> int:
        """Return the number of images."""

    def captions(self, row: int) -> tuple[str, ...]:
        """Return at least one caption, none blank."""

    def key(self, row: int) -> str:
        """Return the image's key; equal images have equal keys."""

    def open(self, row: int) -> Image.Image:
        """Return the image upright and in RGB.

        Raises:
            ImageReadError: It cannot be read; the error names the file, member or row.
        """


class AnnotatedPairs:
    """Read image files, with captions from an annotation file.

    An image that occurs more than once is one row with all its captions.

    Args:
        path: Annotation file, as for `read_annotations`.
        images: Folder of relative paths; the annotation file's folder by default.
        split: Part of a Karpathy file.
        max_pixels: Larger images are refused.

    Raises:
        ConfigError: The annotation file is invalid; images are not checked.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        images: str | Path | None = None,
        split: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"{path}" if split is None else f"{path} ({split})"
        self._rows = group_by_image(read_annotations(path, images=images, split=split))
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of every image's path, size and modification time."""
        digest = blake2b(digest_size=16)
        for row in self._rows:
            try:
                status = os.stat(row.image)
                seen = (status.st_size, status.st_mtime_ns)
            except (OSError, ValueError):
                seen = (-1, -1)
            digest.update(repr((row.image, *seen)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def captions(self, row: int) -> tuple[str, ...]:
        """Return the image's captions."""
        return self._rows[row].captions

    def key(self, row: int) -> str:
        """Return the image's path."""
        return self._rows[row].image

    def open(self, row: int) -> Image.Image:
        """Return the image upright and in RGB.

        Raises:
            ImageReadError: It cannot be read.
        """
        path = self._rows[row].image
        return open_upright(path, max_pixels=self._max_pixels)


def open_pairs(
    path: str | Path,
    *,
    images: str | Path | None = None,
    split: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    max_pixels: int = MAX_PIXELS,
) -> PairSource:
    """Open a source; its kind follows from the path.

    Args:
        path: An annotation file (`.json`, `.jsonl`); a tar shard or a pattern of several
            (`shard-{000..009}.tar`, `shards/*.tar`); or a folder that `datasets` saved.
        images: Folder of relative paths in an annotation file.
        split: Split of a Karpathy file or of a `datasets` folder with several.
        image_column: Of a `datasets` folder.
        caption_column: Of a `datasets` folder.
        max_pixels: Larger images are refused.

    Raises:
        ConfigError: The path is none of these, or its content is invalid.
        MissingExtraError: It is a `datasets` folder, and `datasets` is not installed.
    """
    folder = Path(path)
    kind = kind_of(folder, ConfigError)
    if kind == "folder":
        dataset = _load_dataset(folder, split)
        _refuse(path, "a datasets folder", images=images)
        return DatasetPairs(
            dataset,
            image_column=image_column,
            caption_column=caption_column,
            max_pixels=max_pixels,
            name=f"{path}" if split is None else f"{path} ({split})",
        )
    if folder.suffix.lower() in _ANNOTATION_SUFFIXES:
        return AnnotatedPairs(path, images=images, split=split, max_pixels=max_pixels)
    if (
        ".tar" in folder.name.lower()
        or folder.suffix.lower() == ".tgz"
        or glob.has_magic(f"{path}")
    ):
        _refuse(path, "a tar shard", images=images, split=split)
        return TarPairs(path, max_pixels=max_pixels)
    what = "is of an unknown kind" if kind is not None else "does not exist"
    raise ConfigError(
        f"the training data {path} {what}; give a .json or .jsonl file of images and captions, "
        ".tar shards, or a folder written by datasets.save_to_disk"
    )


def _refuse(path: str | Path, kind: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"{path} is {kind}, which {name}={str(value)!r} does not fit")


def _load_dataset(folder: Path, split: str | None) -> Any:
    splits = (folder / "dataset_dict.json").is_file()
    if not splits and not (folder / "dataset_info.json").is_file():
        raise ConfigError(
            f"the folder {folder} was not written by datasets.save_to_disk; for tar shards give "
            f"a pattern ({folder / '*.tar'}), for images in files a .json or .jsonl file"
        )
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise MissingExtraError("datasets", "train") from error
    try:
        loaded = datasets.load_from_disk(os.fspath(folder))
    except Exception as error:  # pyarrow and datasets raise whatever their parsers raise
        raise ConfigError(f"cannot read the data set {folder}: {error}") from error
    if not splits:
        _refuse(folder, "a data set without splits", split=split)
        return loaded
    known = ", ".join(loaded)
    if split is None or split not in loaded:
        asked = "" if split is None else f", not {split!r}"
        raise ConfigError(f"the data set {folder} has the splits {known}{asked}; choose one")
    return loaded[split]
