"""From what the user gave to a source of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from edje_qdrant.data.webdataset import expand_braces, expand_shards
from edje_qdrant.errors import ConfigError
from edje_qdrant.files import kind_of
from edje_qdrant.sources.bucket_listing import PATTERN_SIGNS, BucketSource, OneAddress
from edje_qdrant.sources.datasets import DatasetSource, is_dataset, is_saved_dataset
from edje_qdrant.sources.folder import IMAGE_SUFFIXES, FolderSource, OneImage
from edje_qdrant.sources.listed import ListItem, ListSource
from edje_qdrant.sources.manifest import MANIFEST_SUFFIXES, ManifestSource
from edje_qdrant.sources.parquet import PARQUET_SUFFIXES, ParquetSource
from edje_qdrant.sources.parts import (
    DOCUMENT_SUFFIXES,
    FILM_SUFFIXES,
    PartsSource,
    interval_of,
)
from edje_qdrant.sources.protocol import ImageSource, ListedImage
from edje_qdrant.sources.remote import objects
from edje_qdrant.sources.tar import TAR_SUFFIXES, TarSource
from edje_qdrant.sources.uris import is_uri, suffix_of
from edje_qdrant.types import Payload

__all__ = ["Source", "open_files", "open_source"]

#: A folder, an image, a manifest, an address of one of them, a list of images, path -> fields, or a
#: source.
Source: TypeAlias = "str | Path | Sequence[ListItem] | Mapping[str, Payload] | ImageSource"


def open_source(
    source: Source,
    *,
    frames_every: str | float | None = None,
    pdf_pages: bool = False,
    may_be_empty: bool = False,
) -> ImageSource:
    """Return the source that a path, a list or a dict stands for; a source is returned unchanged.

    Args:
        source: What the user gave.
        frames_every: List the frames of films, so far apart: `2s`, `500ms`, `1m` or seconds.
        pdf_pages: List the pages of the PDF documents in a folder. Those of documents that are
            named themselves, as the source or in a list or a manifest, are listed anyway.
        may_be_empty: Whether a folder may hold no image yet.

    Raises:
        ConfigError: The source is missing, unreadable or empty, or `frames_every` is no interval.
    """
    every = None if frames_every is None else interval_of(frames_every)
    if isinstance(source, ImageSource):
        return source
    if not isinstance(source, str | os.PathLike):
        if not isinstance(source, Iterable):
            raise ConfigError(
                f"source is {source!r}; give a folder, a file, a manifest or a list of paths"
            )
        if hasattr(source, "iterrows"):  # its iterator gives the names of its columns
            raise ConfigError('source is a data frame; give its rows: df.to_dict("records")')
        if is_dataset(source):
            return DatasetSource(source)
        one = isinstance(source, bytes | bytearray | Image.Image)
        listed = ListSource([source] if one else source)
        return PartsSource(listed, every, pages=True)
    text, _, column = os.fspath(source).partition("#column=")
    if is_uri(text):
        return _remote(text, column or None)
    path = Path(source if Path(source).exists() else text).expanduser()
    if path.suffix.lower() in TAR_SUFFIXES:
        return _not_empty(TarSource(_named(path)), f"{path} holds no image")
    if path.suffix.lower() in PARQUET_SUFFIXES:
        tables = ParquetSource(_named(path), column or None)
        return _not_empty(tables, f"{path} has no row")
    suffix = path.suffix.lower()
    kind = kind_of(path, ConfigError)
    if kind == "folder" and is_saved_dataset(path):
        return _not_empty(DatasetSource(path, column or None), f"{path} has no row")
    if kind == "folder" and (shards := _shards_in(path)):
        kind_of_shards = TarSource if shards[0].lower().endswith(".tar") else ParquetSource
        return _not_empty(kind_of_shards(shards), f"{path} holds no image")
    if kind == "folder":
        films = FILM_SUFFIXES if every is not None else frozenset()
        documents = DOCUMENT_SUFFIXES if pdf_pages else frozenset()
        suffixes = IMAGE_SUFFIXES | films | documents
        folder: ImageSource = FolderSource(path, suffixes)
        if not may_be_empty:
            _not_empty(folder, f"the folder {path} holds no image", suffixes)
        return PartsSource(folder, every, pages=pdf_pages) if films or documents else folder
    if kind == "file" and suffix in MANIFEST_SUFFIXES:
        manifest = ManifestSource(path)
        _not_empty(manifest, f"the manifest {path} holds no line")
        manifest.check()
        return PartsSource(manifest, every, pages=True)
    if kind == "file" and suffix in FILM_SUFFIXES and every is None:
        raise ConfigError(
            f"{path} is a film; give the time from one frame to the next as --frames-every 2s "
            '(frames_every="2s")'
        )
    if kind == "file" and suffix in IMAGE_SUFFIXES:
        return OneImage(path)
    if kind == "file" and suffix in FILM_SUFFIXES | DOCUMENT_SUFFIXES:
        return PartsSource(OneImage(path), every, pages=True)
    what = "is no folder, image or manifest" if kind is not None else "does not exist"
    raise ConfigError(
        f"{path} {what}; give a folder of images, an address, or a .jsonl file, each line an "
        'object with "path"'
    )


def open_files(paths: Sequence[str]) -> ImageSource:
    """Return the source of several tar or Parquet files, which a shell writes for a pattern.

    Raises:
        ConfigError: They are no tar or Parquet files alone, one is missing, or they hold no image.
    """
    suffixes = {suffix_of(path) if is_uri(path) else Path(path).suffix.lower() for path in paths}
    what = f"{paths[0]} and {len(paths) - 1} more"
    remote = any(map(is_uri, paths))
    if not remote and suffixes <= TAR_SUFFIXES:
        return _not_empty(TarSource(_all_named(paths)), f"none of {what} holds an image")
    if not remote and suffixes <= PARQUET_SUFFIXES:
        return _not_empty(ParquetSource(_all_named(paths), None), f"none of {what} has a row")
    raise ConfigError(
        f"{len(paths)} sources are given, {what} (a shell writes all files that match a pattern in "
        "its place); several may be tar files, or Parquet files. Give the folder that holds the "
        "images, or a manifest of their paths, or ingest one source after the other"
    )


def _all_named(paths: Sequence[str]) -> list[str]:
    return [*dict.fromkeys(file for path in paths for file in _named(Path(path).expanduser()))]


def _named(path: Path) -> list[str]:
    """Return the files that a path, a pattern or a brace pattern names."""
    return [str(path)] if path.is_file() else expand_shards([path])


def _shards_in(folder: Path) -> list[str]:
    """Return the tar or Parquet files of a folder that holds no images beside them."""
    if next(FolderSource(folder).images(), None) is not None:
        return []
    for suffixes in (TAR_SUFFIXES, PARQUET_SUFFIXES):
        found = FolderSource(folder, suffixes).images()
        if shards := [item.path for item in found if isinstance(item, ListedImage)]:
            return shards
    return []


def _remote(uri: str, column: str | None) -> ImageSource:
    """Return the source at an address.

    Raises:
        ConfigError: It cannot be read or listed, or is empty.
    """
    suffix = suffix_of(uri)
    if suffix in MANIFEST_SUFFIXES:
        manifest = ManifestSource(uri)
        _not_empty(manifest, f"the manifest {uri} holds no line")
        manifest.check()
        return manifest
    pattern = any(sign in uri for sign in PATTERN_SIGNS)
    if suffix in TAR_SUFFIXES | PARQUET_SUFFIXES:
        files = [
            file
            for each in expand_braces(uri)
            for file in (
                [found.uri for found in objects(each)]
                if any(sign in each for sign in PATTERN_SIGNS)
                else [each]
            )
        ]
        if suffix in TAR_SUFFIXES:
            return _not_empty(TarSource(files), f"{uri} holds no image")
        return _not_empty(ParquetSource(files, column), f"{uri} has no row")
    if uri.startswith(("http://", "https://")) or (suffix in IMAGE_SUFFIXES and not pattern):
        return OneAddress(uri)
    return _not_empty(BucketSource(uri), f"there is no image at {uri}")


def _not_empty(
    source: ImageSource, otherwise: str, suffixes: AbstractSet[str] = IMAGE_SUFFIXES
) -> ImageSource:
    if next(source.images(), None) is None:
        known = " ".join(sorted(suffixes))
        kinds = [f"{number} x {kind}" for kind, number in source.left_out.items()]
        beside = f", only {', '.join(kinds[:6])}{' ...' * (len(kinds) > 6)}" if kinds else ""
        raise ConfigError(
            f"{otherwise}{beside}{_hints(source)}; give a source with images ({known})"
        )
    return source


def _hints(source: ImageSource) -> str:
    """Return which options read what a source has left out."""
    text = ""
    for kind, suffixes, option in (
        ("films", FILM_SUFFIXES, "--frames-every 2s (frames_every)"),
        ("PDF documents", DOCUMENT_SUFFIXES, "--pdf-pages (pdf_pages)"),
    ):
        if any(f"({suffix})" in left for left in source.left_out for suffix in suffixes):
            text += f"; its {kind} are read with {option}"
    return text
