"""Segments: files of fixed-size records, read through memory maps."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import StoreError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.files import os_errors_as_store_errors, sync_folder
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.manifest import FORMAT, MAGIC, Manifest, Segment, another_stores

__all__ = [
    "HEADER_BYTES",
    "SegmentReader",
    "drop_unfinished",
    "found_segments",
    "is_segment_id",
    "new_segment_file",
    "segment_header",
    "segment_path",
    "segments_without_manifest",
    "whole_records",
    "write_whole",
]

#: One memory page, so that records of whole pages start on a page.
HEADER_BYTES = 4096

_ID = re.compile(r"[0-9a-f]{8}")


def is_segment_id(value: object) -> bool:
    """Return whether `value` is 8 hexadecimal digits; other values must not be used in paths."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def segment_path(folder: Path, segment_id: str) -> Path:
    """Return the path of a segment's file."""
    return folder / f"tokens-{segment_id}.bin"


def whole_records(size: int, record_bytes: int) -> int:
    """Return the number of whole records in a file of `size` bytes."""
    return max(size - HEADER_BYTES, 0) // record_bytes


def segment_header(store_id: str, segment: Segment) -> bytes:
    """Return a segment's first page."""
    text = json.dumps(
        {
            "magic": MAGIC,
            "format": FORMAT,
            "store_id": store_id,
            "segment": segment.id,
            "codec": segment.codec,
            "record_bytes": segment.record_bytes,
        }
    )
    return text.encode().ljust(HEADER_BYTES - 1) + b"\n"


def new_segment_file(folder: Path, store_id: str, segment: Segment) -> BinaryIO:
    """Create a segment's file, durable with its name on return, open for appending.

    Raises:
        OSError: The file cannot be created; nothing is left of it.
    """
    path = segment_path(folder, segment.id)
    file = path.open("x+b", buffering=0)
    try:
        write_whole(file, segment_header(store_id, segment))
        os.fsync(file.fileno())
        sync_folder(folder)
    except BaseException:
        file.close()
        with suppress(OSError):
            path.unlink()
        raise
    return file


def write_whole(file: BinaryIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file, in several writes if needed.

    Raises:
        OSError: A write failed.
    """
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


class SegmentReader:
    """Read the records of one segment; threads may share it."""

    def __init__(self, path: Path, file: BinaryIO, codec: Codec, record_bytes: int) -> None:
        """Take an open file; use `open` instead."""
        self.codec = codec
        self._path = path
        self._file = file
        self._record_bytes = record_bytes
        self._records = np.empty((0, record_bytes), dtype=np.uint8)

    @classmethod
    def open(
        cls, folder: Path, store_id: str, segment_id: str, codec: Callable[[str], Codec]
    ) -> SegmentReader:
        """Open a segment.

        Args:
            folder: Folder of the store.
            store_id: Identity of the store.
            segment_id: Id of the segment.
            codec: Returns the codec of a key.

        Raises:
            TokensNotFoundError: The segment does not exist.
            TokensCorruptError: Its header is damaged, or belongs to another store.
            StoreError: The segment cannot be read.
        """
        path = segment_path(folder, segment_id)
        with os_errors_as_store_errors("read", path):
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError as error:
                raise TokensNotFoundError(
                    f"the side file {path} is gone; if the collection was compacted since these "
                    "images were found, search again, or else restore it from a copy"
                ) from error
        try:
            with os_errors_as_store_errors("read", path):
                header = file.read(HEADER_BYTES)
            segment = _parsed(header, segment_id)
            if segment is None or header != segment_header(store_id, segment):
                raise TokensCorruptError(
                    f"the side file {path} is damaged or belongs to another collection; restore "
                    "it from a copy, or run `edje-qdrant repair`"
                )
            own = codec(segment.codec)
            if own.nbytes != segment.record_bytes:
                raise TokensCorruptError(
                    f"the side file {path} has records of {segment.record_bytes} bytes, "
                    f"not the {own.nbytes} of {own.name}; restore it from a copy"
                )
        except BaseException:
            file.close()
            raise
        return cls(path, file, own, segment.record_bytes)

    def records(self, count: int) -> NDArray[np.uint8]:
        """Return the mapped records: at least `count`, if the file has as many.

        Not thread-safe; returned arrays stay readable after `close`.

        Raises:
            StoreError: The file cannot be read.
        """
        with os_errors_as_store_errors("read", self._path):
            whole = whole_records(os.fstat(self._file.fileno()).st_size, self._record_bytes)
            # Checked each time: access to a map past the end of a truncated file kills the
            # process, and a map older than an append misses the new records.
            if not min(count, whole) <= len(self._records) <= whole:
                self._records = self._mapped(whole)
        return self._records

    def close(self) -> None:
        """Close the file; maps stay valid while a reading thread holds them."""
        self._file.close()
        self._records = self._records[:0]

    def _mapped(self, count: int) -> NDArray[np.uint8]:
        width = self._record_bytes
        if count == 0:
            return np.empty((0, width), dtype=np.uint8)
        size = HEADER_BYTES + count * width
        view = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
        return np.frombuffer(view, dtype=np.uint8, offset=HEADER_BYTES).reshape(count, width)


def found_segments(folder: Path, store_id: str) -> list[Segment]:
    """Return the segments of a store in a folder, oldest first, listed in the manifest or not.

    Raises:
        StoreError: The folder cannot be read.
    """
    segments: list[tuple[float, Segment]] = []
    with os_errors_as_store_errors("read", folder):
        for path in folder.glob("tokens-*.bin"):
            with closing(path.open("rb", buffering=0)) as file:
                header, status = file.read(HEADER_BYTES), os.fstat(file.fileno())
            segment_id = path.stem.removeprefix("tokens-")
            segment = _parsed(header, segment_id) if is_segment_id(segment_id) else None
            if segment is not None and header == segment_header(store_id, segment):
                count = whole_records(status.st_size, segment.record_bytes)
                kept = Segment(segment.id, segment.codec, segment.record_bytes, count)
                segments.append((status.st_mtime, kept))
    return [segment for _, segment in sorted(segments, key=lambda item: (item[0], item[1].id))]


def segments_without_manifest(folder: Path, store_id: str) -> tuple[Segment, ...]:
    """Return the segments of a store whose manifest is lost, damaged or of another store.

    Raises:
        TokensCorruptError: The folder belongs to the other store, and must not be written to.
        StoreError: The folder cannot be read.
    """
    segments = tuple(found_segments(folder, store_id))
    try:
        theirs = Manifest.read(folder).store_id
    except (TokensNotFoundError, TokensCorruptError):
        return segments
    if theirs != store_id and (not segments or found_segments(folder, theirs)):
        raise another_stores(folder)
    return segments


def drop_unfinished(folder: Path, listed: Collection[str]) -> None:
    """Delete unlisted files with an incomplete header, which a crash left.

    Raises:
        OSError: A file cannot be deleted.
    """
    for path in folder.glob("tokens-*.bin"):
        segment_id = path.stem.removeprefix("tokens-")
        named = is_segment_id(segment_id) and segment_id not in listed
        if named and path.stat().st_size < HEADER_BYTES:
            path.unlink()


def _parsed(header: bytes, segment_id: str) -> Segment | None:
    """Return the segment that a header describes, or None if it cannot be parsed.

    Raises:
        StoreError: Another version wrote the header.
    """
    try:
        data = json.loads(header)
        if data["magic"] == MAGIC and data["format"] != FORMAT:
            raise StoreError(
                f"the side file tokens-{segment_id}.bin has format {data['format']!r}, this "
                f"version reads {FORMAT}; use the version of the package that wrote it"
            )
        codec, record_bytes = data["codec"], data["record_bytes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(codec, str) or not isinstance(record_bytes, int) or record_bytes < 1:
        return None
    return Segment(segment_id, codec, record_bytes)
