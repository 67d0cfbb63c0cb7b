"""Tokens in a side file: fixed-size records, appended to, read through a memory map."""

from __future__ import annotations

import mmap
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.contract import TokenContract
from edje_qdrant.durable import (
    lock_file,
    os_errors_as_store_errors,
    sync_folder,
)
from edje_qdrant.errors import (
    ConfigError,
    EdjeError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.tokens.checksum import checksums, named, require_checksums
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.tokens.manifest import HEADER_BYTES, MANIFEST_NAME, Manifest
from edje_qdrant.tokens.protocol import TokenReference

__all__ = ["FileTokenStore"]

_MAX_RECORDS = 2**40
_LOCK = "writer.lock"  # the file whose lock a writer holds

# Why no record that a point refers to is ever overwritten
#
# A point is written only after `flush()` returned, and `flush()` returns only after the records are
# on the disk and then a manifest that counts them is. So a point refers to a record below the
# manifest's count, whatever happened. A writer never goes below that count: it begins behind the
# last *whole* record in the file, and refuses to begin where the file is shorter than its manifest
# says. Whole records past the count (put, never flushed) stay as orphans: they cost space, and
# keep even a manifest older than its file, restored from a copy, from sending a writer over live
# records. What is cut off is less than one record, bytes for which no reference was given out. A
# put that failed half way, on a full disk say, gave out none either, so the next may write there.


class FileTokenStore:
    """Keep tokens in one append-only file beside a manifest; one process writes, many read.

    References are `{"record": number, "file": short id, "checksum": text}`. The writer's lock is
    taken at the first `put` and held until `close`. Threads may share a store.
    """

    in_payload = False

    def __init__(self, folder: Path, manifest: Manifest, side_file: BinaryIO) -> None:
        """Wrap an open side file; use `create` or `open`."""
        contract = manifest.contract
        self._folder = folder
        self._manifest = manifest
        self._codec = codec_for(contract.codec, contract.num_tokens, contract.token_dim)
        self._reader: BinaryIO | None = side_file
        self._writer: BinaryIO | None = None
        self._lock: BinaryIO | None = None
        self._next_record = 0
        self._records = np.empty((0, manifest.record_bytes), dtype=np.uint8)
        self._mutex = Lock()

    @classmethod
    def create(cls, folder: str | Path, contract: TokenContract) -> FileTokenStore:
        """Make an empty store; the manifest comes last, so that half of one never opens.

        Raises:
            ConfigError: The contract's codec is unknown.
            StoreError: The folder holds a store already, or cannot be written.
        """
        folder = Path(folder)
        codec = codec_for(contract.codec, contract.num_tokens, contract.token_dim)
        manifest = Manifest(uuid.uuid4().hex, codec.nbytes, 0, contract)
        with os_errors_as_store_errors("create a token store in", folder):
            folder.mkdir(parents=True, exist_ok=True)
            with _lock(folder):
                if (folder / MANIFEST_NAME).exists():
                    raise StoreError(
                        f"{folder} holds a token store already; open the collection it belongs to, "
                        "or remove that folder if there is none"
                    )
                with (folder / manifest.side_file).open("xb") as file:
                    file.write(manifest.header)
                    file.flush()
                    os.fsync(file.fileno())
                sync_folder(folder)
                manifest.write(folder)
                sync_folder(folder.parent)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> FileTokenStore:
        """Open a store; nothing is written and no lock is taken before the first `put`.

        Raises:
            TokensNotFoundError: There is no store, or its side file is gone.
            TokensCorruptError: The manifest is damaged, or the side file is not the one it names.
            StoreError: It cannot be read, or another version wrote it.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        path = folder / manifest.side_file
        with os_errors_as_store_errors("read", path):
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError as error:
                raise TokensNotFoundError(
                    f"the side file {path} is gone; restore it from a copy"
                ) from error
        try:
            with os_errors_as_store_errors("read", path):
                header = file.read(HEADER_BYTES)
            store = cls(folder, manifest, file)
            if header != manifest.header or manifest.record_bytes != store._codec.nbytes:
                raise TokensCorruptError(
                    f"the side file {path} is damaged or belongs to another collection: its header "
                    "is not what the manifest beside it says; restore the folder from a copy"
                )
        except EdjeError:
            file.close()
            raise
        return store

    @property
    def contract(self) -> TokenContract:
        """Return the contract of what wrote the store."""
        return self._manifest.contract

    @property
    def store_id(self) -> str:
        """Return the store's random identity, 32 hexadecimal digits."""
        return self._manifest.store_id

    def put(self, image_ids: Sequence[str], tokens: NDArray[np.float16]) -> list[TokenReference]:
        """Append `(n, m, d_text)` tokens; return one reference a picture, in order.

        Raises:
            ConfigError: The tokens do not fit the contract, or the ids' number the tokens'.
            CollectionLockedError: Another process is writing.
            TokensCorruptError: The side file has lost records; nothing was written.
            StoreError: The file cannot be written; no reference was given out.
        """
        codes = self._codec.encode(tokens)
        if len(image_ids) != len(codes):
            raise ConfigError(f"{len(image_ids)} ids for the tokens of {len(codes)} pictures")
        with self._mutex, os_errors_as_store_errors("write to the side file in", self._folder):
            writer = self._begin_writing()
            first = self._next_record
            writer.seek(HEADER_BYTES + first * self._manifest.record_bytes)
            left = memoryview(codes.tobytes())
            while left:
                left = left[writer.write(left) :]
            self._next_record += len(codes)
        return [
            {"record": first + i, "file": self._manifest.short_id, "checksum": checksum}
            for i, checksum in enumerate(checksums(codes))
        ]

    def flush(self) -> None:
        """Put what was appended on the disk, then the manifest that counts it.

        Raises:
            StoreError: The disk refused. What was put since the last flush counts as lost, and the
                store closes itself: the system may forget which pages it failed to write, so that a
                second attempt would succeed without cause.
        """
        with self._mutex:
            self._require_open()
            if self._writer is None or self._next_record == self._manifest.num_records:
                return
            manifest = replace(self._manifest, num_records=self._next_record)
            try:
                with os_errors_as_store_errors("flush the side file in", self._folder):
                    os.fsync(self._writer.fileno())
                manifest.write(self._folder)
            except StoreError:
                self._let_go()
                raise
            self._manifest = manifest

    def get(
        self, image_ids: Sequence[str], references: Sequence[TokenReference]
    ) -> NDArray[np.float16]:
        """Read tokens back as `(n, m, d_text)`, in order, each checked against its reference.

        Raises:
            TokensNotFoundError: A reference names no record, or one past the file's end.
            TokensCorruptError: A reference is of another side file, or bytes differ from what was
                written; names the ids.
        """
        unknown: list[str] = []
        foreign: list[str] = []
        numbers: list[int] = []
        for image_id, reference in zip(image_ids, references, strict=True):
            number = reference.get("record")
            if number is None:
                unknown.append(image_id)
            elif (
                reference.get("file") != self._manifest.short_id
                or not isinstance(number, int)
                or not 0 <= number < _MAX_RECORDS
            ):
                foreign.append(image_id)
            else:
                numbers.append(number)
        if unknown:
            raise TokensNotFoundError(
                f"nothing says where the tokens of {named(unknown)} are; ingest them again", unknown
            )
        if foreign:
            raise TokensCorruptError(
                f"the tokens of {named(foreign)} were not written to the side file in "
                f"{self._folder}; open the collection with the folder it was written with",
                foreign,
            )
        wanted = np.array(numbers, dtype=np.int64)
        records = self._records_up_to(int(wanted.max(initial=-1)) + 1)
        lost = [image_ids[int(i)] for i in np.flatnonzero(wanted >= len(records))]
        if lost:
            raise TokensNotFoundError(
                f"the side file in {self._folder} ends before the tokens of {named(lost)}; "
                "restore it from a copy, or delete these pictures and ingest them again",
                lost,
            )
        codes = records[wanted]
        require_checksums(image_ids, references, codes, where=str(self._folder))
        return self._codec.decode(codes)

    def nbytes_per_image(self) -> int:
        """Return the bytes of a record."""
        return self._manifest.record_bytes

    def close(self) -> None:
        """Let go of the files and of the writer's lock; a second call does nothing.

        What was put and not flushed may be lost; no point refers to it.
        """
        with self._mutex:
            self._let_go()

    def remove(self) -> None:
        """Close the store and delete its files; the folder too, if nothing else is in it."""
        self.close()
        with os_errors_as_store_errors("delete the token store in", self._folder):
            with _lock(self._folder):
                for name in (MANIFEST_NAME, self._manifest.side_file, _LOCK):
                    (self._folder / name).unlink(missing_ok=True)
            with suppress(OSError):
                self._folder.rmdir()

    def _let_go(self) -> None:
        for file in (self._writer, self._reader, self._lock):
            if file is not None:
                file.close()
        self._writer = self._reader = self._lock = None
        # The map lives on for as long as a reading thread holds it.
        self._records = self._records[:0]

    def _require_open(self) -> BinaryIO:
        if self._reader is None:
            raise StoreError(f"the token store in {self._folder} is closed; open it again")
        return self._reader

    def _begin_writing(self) -> BinaryIO:
        """Take the lock and find where to append, see the note above."""
        self._require_open()
        if self._writer is not None:
            return self._writer
        lock = _lock(self._folder)
        try:
            # Another writer may have come and gone since this store was opened.
            manifest = Manifest.read(self._folder)
            path = self._folder / self._manifest.side_file
            if manifest.store_id != self._manifest.store_id:
                raise StoreError(f"the token store in {self._folder} was replaced; open it again")
            writer = path.open("r+b", buffering=0)
            try:
                size = os.fstat(writer.fileno()).st_size
                whole = (size - HEADER_BYTES) // manifest.record_bytes
                if whole < manifest.num_records:
                    raise TokensCorruptError(
                        f"the side file {path} holds {max(whole, 0)} of {manifest.num_records} "
                        "records; restore it from a copy, or ingest into a new collection"
                    )
                writer.truncate(HEADER_BYTES + whole * manifest.record_bytes)
            except BaseException:
                writer.close()
                raise
        except BaseException:
            lock.close()
            raise
        self._lock, self._writer = lock, writer
        self._manifest, self._next_record = manifest, whole
        return writer

    def _records_up_to(self, count: int) -> NDArray[np.uint8]:
        """Return the mapped records, `count` of them or more where the file has them."""
        with self._mutex:
            size = os.fstat(self._require_open().fileno()).st_size
            whole = max(size - HEADER_BYTES, 0) // self._manifest.record_bytes
            # Looked at each time: a map that reaches past the end of a file cut short kills the
            # process that touches it, and one made before an append misses the new records.
            if not min(count, whole) <= len(self._records) <= whole:
                self._records = self._map(whole)
            return self._records

    def _map(self, count: int) -> NDArray[np.uint8]:
        width = self._manifest.record_bytes
        if count == 0:
            return np.empty((0, width), dtype=np.uint8)
        with os_errors_as_store_errors("map the side file in", self._folder):
            view = mmap.mmap(
                self._require_open().fileno(), HEADER_BYTES + count * width, access=mmap.ACCESS_READ
            )
        return np.frombuffer(view, dtype=np.uint8, offset=HEADER_BYTES).reshape(count, width)


def _lock(folder: Path) -> BinaryIO:
    """Take the folder's writer lock.

    Raises:
        CollectionLockedError: Another writer holds it.
    """
    return lock_file(folder / _LOCK, str(folder))
