"""Messages of other libraries that do not concern users."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_messages"]


@contextmanager
def without_messages(logger: str, part: str) -> Iterator[None]:
    """Drop a logger's messages that contain `part`."""

    def kept(record: logging.LogRecord) -> bool:
        return part not in record.getMessage()

    source = logging.getLogger(logger)
    source.addFilter(kept)
    try:
        yield
    finally:
        source.removeFilter(kept)
