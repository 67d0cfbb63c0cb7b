"""From what the user gave to a source of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from edje_qdrant.errors import ConfigError
from edje_qdrant.files import kind_of
from edje_qdrant.sources.folder import IMAGE_SUFFIXES, FolderSource, OneImage
from edje_qdrant.sources.listed import ListItem, ListSource
from edje_qdrant.sources.manifest import MANIFEST_SUFFIXES, ManifestSource
from edje_qdrant.sources.protocol import ImageSource
from edje_qdrant.types import Payload

__all__ = ["Source", "open_source"]

#: A folder, an image, a JSONL manifest, a list of images, path -> fields, or a source.
Source: TypeAlias = "str | Path | Sequence[ListItem] | Mapping[str, Payload] | ImageSource"


def open_source(source: Source) -> ImageSource:
    """Return the source that a path, a list or a dict stands for; a source is returned unchanged.

    Raises:
        ConfigError: The source is missing, unreadable or empty.
    """
    if isinstance(source, ImageSource):
        return source
    if not isinstance(source, str | os.PathLike):
        if not isinstance(source, Iterable):
            raise ConfigError(
                f"source is {source!r}; give a folder, a file, a manifest or a list of paths"
            )
        return ListSource([source] if isinstance(source, bytes) else source)
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    kind = kind_of(path, ConfigError)
    if kind == "folder":
        return _not_empty(FolderSource(path), f"the folder {path} holds no image")
    if kind == "file" and suffix in MANIFEST_SUFFIXES:
        manifest = ManifestSource(path)
        _not_empty(manifest, f"the manifest {path} holds no line")
        manifest.check()
        return manifest
    if kind == "file" and suffix in IMAGE_SUFFIXES:
        return OneImage(path)
    what = "is no folder, image or manifest" if kind is not None else "does not exist"
    raise ConfigError(
        f'{path} {what}; give a folder of images, or a .jsonl file, each line an object with "path"'
    )


def _not_empty(source: ImageSource, otherwise: str) -> ImageSource:
    if next(source.images(), None) is None:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        kinds = [f"{number} x {kind}" for kind, number in source.left_out.items()]
        beside = f", only {', '.join(kinds[:6])}{' ...' * (len(kinds) > 6)}" if kinds else ""
        raise ConfigError(f"{otherwise}{beside}; give a source with images ({known})")
    return source
