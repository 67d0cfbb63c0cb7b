"""Checks of arguments, before anything is read or written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError

__all__ = ["check_collections", "check_flags", "check_path"]


def check_collections(**collections: Any) -> None:
    """Check that arguments are open image collections; given by name.

    Raises:
        ConfigError: One is something else.
        StoreError: One is closed.
    """
    for name, collection in collections.items():
        if not isinstance(collection, ImageCollection):
            raise ConfigError(
                f"{name} is a {type(collection).__name__}; give an ImageCollection, which "
                "ImageCollection.open returns"
            )
        collection.index.require_open()


def check_flags(**flags: Any) -> None:
    """Check that arguments are True or False; given by name.

    Raises:
        ConfigError: One is neither.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ConfigError(f"{name} is {flag!r}; give True or False")


def check_path(name: str, path: Any) -> Path:
    """Return a path with `~` expanded.

    Raises:
        ConfigError: It is no path, or empty.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigError(f"{name} is {path!r}; give a path")
    return Path(path).expanduser()
