"""What tells, without reading it, that a file is the one that was ingested before."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from edje_qdrant.errors import ImageReadError
from edje_qdrant.index.moments import moment_text
from edje_qdrant.sources.protocol import ListedImage

__all__ = ["file_stamp", "stamped"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def file_stamp(path: str, size: int | None = None) -> dict[str, Any]:
    """Return size and time of change of a local file, as payload fields; empty if it is gone.

    Args:
        path: The file.
        size: In bytes, of a part of the file; by default of the file.
    """
    try:
        about = os.stat(path)
        # To the microsecond, so that a file that is changed twice in a second is not taken for
        # unchanged; engines compare no finer times.
        changed = moment_text(_EPOCH + timedelta(microseconds=about.st_mtime_ns // 1000))
    except (OSError, ValueError, OverflowError):  # or of a year beyond 9999
        return {}
    return {"file_size": about.st_size if size is None else size, "modified_at": changed}


def stamped(item: ListedImage, *, ask: bool) -> ListedImage:
    """Return a local file with its stamp; other images unchanged.

    Args:
        item: The image.
        ask: Whether to ask a server for the stamp of a remote image.
    """
    if item.stamp or item.content is not None:
        return item
    if item.look is not None and ask:
        with suppress(ImageReadError):  # the reader will tell why
            return replace(item, stamp=item.look())
    return item if item.reader is not None else replace(item, stamp=file_stamp(item.path))
