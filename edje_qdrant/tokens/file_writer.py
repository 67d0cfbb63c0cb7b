"""Single writer of a token store: appends records, begins side files, writes the manifest."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import StoreError, TokensCorruptError
from edje_qdrant.files import lock_file, os_errors_as_store_errors
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.manifest import Manifest, Segment
from edje_qdrant.tokens.protocol import TokenReference
from edje_qdrant.tokens.segment import (
    HEADER_BYTES,
    drop_unfinished,
    new_segment_file,
    segment_header,
    segment_path,
    whole_records,
    write_whole,
)

__all__ = ["WRITER_LOCK", "FileWriter", "lock_store"]

#: The file whose lock a writer holds.
WRITER_LOCK = "writer.lock"

# Why no record that a point refers to is ever overwritten
#
# A point is written only after `flush()` has returned, and `flush()` returns only when the records
# and then a manifest that counts them are on the disk. So a point always refers to a record below
# the manifest's count. A writer never writes below that count: it starts after the last *whole*
# record of the last segment, and refuses to start if that file is shorter than the manifest says.
# Whole records past the count (put, never flushed) stay as orphans. They take disk space, but
# protect live records if an old manifest is restored from a copy. The writer truncates less than
# one record, for which no reference was returned. A put that failed, on a full disk for example,
# returned no reference either, so the next put may overwrite its bytes.
#
# The header of a segment contains its store's id and its codec, so readers need no newer manifest
# than the one they opened, and a lost manifest can be rebuilt.


class FileWriter:
    """Hold a store's lock and append to it; not thread-safe.

    Attributes:
        manifest: The manifest as last written.
        segments: Current segments, including records appended since then.
    """

    def __init__(self, folder: Path, store_id: str) -> None:
        """Acquire the writer's lock, and read the manifest.

        Raises:
            CollectionLockedError: Another process is writing.
            TokensCorruptError: The manifest is damaged.
            StoreError: The store is not the one that was opened, or cannot be read.
        """
        lock = lock_store(folder)
        try:
            # Another process may have written since the store was opened.
            self.manifest = Manifest.read(folder)
            if self.manifest.store_id != store_id:
                raise StoreError(f"the token store in {folder} was replaced; open it again")
            drop_unfinished(folder, {segment.id for segment in self.manifest.segments})
        except BaseException:
            lock.close()
            raise
        self.segments = list(self.manifest.segments)
        self._folder = folder
        self._lock = lock
        self._file: BinaryIO | None = None  # the last segment's
        self._filled: list[BinaryIO] = []  # filled since the last flush

    def is_intact(self) -> bool:
        """Return whether the last side file, if any, can be appended to."""
        try:
            if self._file is None and self.segments:
                self._opened_last().close()
        except TokensCorruptError:
            return False
        return True

    def append(self, codes: NDArray[np.uint8], codec: Codec) -> list[TokenReference]:
        """Append `(n, codec.nbytes)` records; return the segment and record number of each.

        Raises:
            OSError: The disk refused; no reference was returned.
            TokensCorruptError: The last side file is damaged; nothing was written.
        """
        self._open_for_append(codec)
        places: list[TokenReference] = []
        full = max(1, self.manifest.segment_bytes // codec.nbytes)
        left = np.ascontiguousarray(codes)
        while len(left):
            if self.segments[-1].num_records >= full:
                self.begin_segment(codec)
            last = self.segments[-1]
            part = left[: full - last.num_records]
            self._write(part, last)
            places += [
                {"segment": last.id, "record": last.num_records + i} for i in range(len(part))
            ]
            left = left[len(part) :]
        return places

    def begin_segment(self, codec: Codec, contract: TokenContract | None = None) -> None:
        """Begin a side file; the manifest then contains the contract, if one is given.

        Raises:
            OSError: The file cannot be created.
        """
        segment = Segment(uuid.uuid4().hex[:8], codec.key, codec.nbytes)
        file = new_segment_file(self._folder, self.manifest.store_id, segment)
        if contract is not None:  # not earlier: the next flush would write it even if this failed
            self.manifest = replace(self.manifest, contract=contract)
        if self._file is not None:
            self._filled.append(self._file)
        self.segments.append(segment)
        self._file = file

    def flush(self) -> None:
        """Write appended records to the disk, then the manifest that counts them.

        Raises:
            StoreError: The disk refused; this writer must not be used any more.
        """
        if self._file is None or tuple(self.segments) == self.manifest.segments:
            return
        with os_errors_as_store_errors("flush the side file in", self._folder):
            for file in (*self._filled, self._file):
                os.fsync(file.fileno())
        self._write_manifest()
        while self._filled:
            self._filled.pop().close()

    def drop(self, segment_ids: Collection[str]) -> None:
        """Delete side files, listed or not, including the one being appended to.

        Raises:
            OSError: A file cannot be deleted.
            StoreError: The manifest cannot be written.
        """
        if self._file is not None and self.segments[-1].id in segment_ids:
            self._filled.append(self._file)
            self._file = None
        self.segments = [s for s in self.segments if s.id not in segment_ids]
        self._write_manifest()
        for segment_id in segment_ids:
            segment_path(self._folder, segment_id).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files and release the lock."""
        for file in (*self._filled, self._file, self._lock):
            if file is not None:
                file.close()

    def _write_manifest(self) -> None:
        manifest = replace(self.manifest, segments=tuple(self.segments))
        manifest.write(self._folder)
        self.manifest = manifest

    def _open_for_append(self, codec: Codec) -> None:
        """Open the last side file after its last whole record; see the note above."""
        if self._file is not None and self.segments[-1].codec == codec.key:
            return
        last = self.segments[-1] if self.segments else None
        if last is None or last.codec != codec.key:
            self.begin_segment(codec)
            return
        file = self._opened_last()
        try:
            whole = whole_records(os.fstat(file.fileno()).st_size, last.record_bytes)
            file.truncate(HEADER_BYTES + whole * last.record_bytes)
        except BaseException:
            file.close()
            raise
        self.segments[-1] = replace(last, num_records=whole)
        self._file = file

    def _opened_last(self) -> BinaryIO:
        """Open the last side file for writing.

        Raises:
            OSError: The file cannot be opened.
            TokensCorruptError: The file is missing, truncated, or its header is damaged.
        """
        last = self.segments[-1]
        path = segment_path(self._folder, last.id)
        advice = "run `edje-qdrant repair`, or restore it from a copy"
        try:
            file = path.open("r+b", buffering=0)
        except FileNotFoundError as error:
            raise TokensCorruptError(f"the side file {path} is gone; {advice}") from error
        try:
            if file.read(HEADER_BYTES) != segment_header(self.manifest.store_id, last):
                raise TokensCorruptError(f"the side file {path} has a damaged header; {advice}")
            whole = whole_records(os.fstat(file.fileno()).st_size, last.record_bytes)
            if whole < last.num_records:
                raise TokensCorruptError(
                    f"the side file {path} holds {whole} of {last.num_records} records; {advice}"
                )
        except BaseException:
            file.close()
            raise
        return file

    def _write(self, codes: NDArray[np.uint8], last: Segment) -> None:
        file = self._file
        assert file is not None
        file.seek(HEADER_BYTES + last.num_records * last.record_bytes)
        write_whole(file, codes.tobytes())
        self.segments[-1] = replace(last, num_records=last.num_records + len(codes))


def lock_store(folder: Path) -> BinaryIO:
    """Acquire a store's writer lock, held until the returned file is closed.

    Raises:
        CollectionLockedError: Another writer holds it.
    """
    return lock_file(folder / WRITER_LOCK, str(folder))
