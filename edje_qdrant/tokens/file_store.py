"""Token store in side files: append-only fixed-size records, read through memory maps."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, StoreError, TokensNotFoundError
from edje_qdrant.files import os_errors_as_store_errors, sync_folder
from edje_qdrant.tokens.checksum import checksums
from edje_qdrant.tokens.codebooks import drop_codebooks, keep_codebook, stored_codec
from edje_qdrant.tokens.codecs import Codec, codec_for
from edje_qdrant.tokens.file_writer import WRITER_LOCK, FileWriter, lock_store
from edje_qdrant.tokens.manifest import MANIFEST_NAME, Manifest, Segment, another_stores
from edje_qdrant.tokens.protocol import (
    EmptyCodes,
    StoredCodes,
    TokenReference,
    TokenStore,
    empty_codes,
)
from edje_qdrant.tokens.references import Problems, WantedRecords, gathered, located
from edje_qdrant.tokens.segment import (
    HEADER_BYTES,
    SegmentReader,
    found_segments,
    segment_path,
    segments_without_manifest,
    whole_records,
)

__all__ = ["FileTokenStore", "files_of"]

_SEGMENT_BYTES = 1 << 30
_OPEN_SEGMENTS = 128


class FileTokenStore(TokenStore):
    """Store tokens in append-only files with a manifest; one process writes, many read.

    References are `{"segment": id, "record": number, "checksum": text}`. A segment is a file of at
    most a gigabyte; the next one begins when it is full, or when the codec changes. The writer's
    lock is acquired at the first `put` and held until `close`. Thread-safe.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Take a manifest; use `create` or `open` instead."""
        self._folder = folder
        self._manifest = manifest
        self._codecs: dict[str, Codec] = {}
        self._readers: OrderedDict[str, SegmentReader] = OrderedDict()
        self._closed = False
        self._mutex = Lock()
        self._writer: FileWriter | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        contract: TokenContract,
        codec: Codec | None = None,
        *,
        segment_bytes: int = _SEGMENT_BYTES,
    ) -> FileTokenStore:
        """Create an empty store; the manifest is written last, so an incomplete store never opens.

        Args:
            folder: The store's folder, created if it is missing.
            contract: Of the model that will write.
            codec: The contract's codec; required if it has a codebook.
            segment_bytes: Maximum size of a side file.

        Raises:
            ConfigError: The contract's codec is unknown, or differs from `codec`.
            StoreError: The folder contains a store already, or cannot be written.
        """
        folder = Path(folder)
        codec = codec or codec_for(contract.codec, contract.num_tokens, contract.token_dim)
        if codec.key != contract.codec_key:
            raise ConfigError(f"the contract's codec is {contract.codec_key}, not {codec.key}")
        manifest = Manifest(uuid.uuid4().hex, segment_bytes, contract)
        with os_errors_as_store_errors("create a token store in", folder):
            folder.mkdir(parents=True, exist_ok=True)
            with lock_store(folder):
                if (folder / MANIFEST_NAME).exists():
                    raise StoreError(
                        f"{folder} holds a token store already; open the collection it belongs to, "
                        "or remove that folder if there is none"
                    )
                keep_codebook(folder, codec, contract)
                manifest.write(folder)
                sync_folder(folder.parent)
        return cls.open(folder)

    @classmethod
    def open(
        cls, folder: str | Path, *, store_id: str | None = None, lenient: bool = False
    ) -> FileTokenStore:
        """Open a store; nothing is written and no lock is acquired before the first `put`.

        Args:
            folder: The store's folder.
            store_id: Recorded by the collection's index; a store of another id is refused.
            lenient: Check side files only when they are read.

        Raises:
            TokensNotFoundError: The store, or a side file, is missing.
            TokensCorruptError: The manifest is damaged or of another collection, or a side file is
                not the one it names.
            StoreError: The store cannot be read, or another version wrote it.
        """
        folder = Path(folder)
        while True:
            store = cls(folder, Manifest.read(folder))
            if store_id not in (None, store.store_id):
                raise another_stores(folder)
            try:
                store._codec_of(store.contract.codec_key)
                for segment in () if lenient else store._manifest.segments:
                    store._reader(segment.id)
                return store
            except BaseException as error:
                store.close()
                # Another process may have deleted files since: then the manifest has changed too.
                if not isinstance(error, TokensNotFoundError) or (
                    Manifest.read(folder) == store._manifest
                ):
                    raise

    @classmethod
    def rebuild(cls, folder: str | Path, contract: TokenContract, store_id: str) -> None:
        """Rebuild a lost or damaged manifest from the headers of the side files.

        Args:
            folder: The store's folder.
            contract: Recorded by the collection's index.
            store_id: Recorded by the collection's index.

        Raises:
            TokensNotFoundError: The codebook that the contract names is missing.
            TokensCorruptError: The codebook is damaged, or the folder is another collection's.
            CollectionLockedError: Another process is writing.
            StoreError: The folder cannot be read or written.
        """
        folder = Path(folder)
        with os_errors_as_store_errors("repair the token store in", folder), lock_store(folder):
            stored_codec(folder, contract, contract.codec_key)
            segments = segments_without_manifest(folder, store_id)
            Manifest(store_id, _SEGMENT_BYTES, contract, segments).write(folder)

    @property
    def contract(self) -> TokenContract:
        """Return the contract of the model that wrote the tokens, codec included."""
        return self._manifest.contract

    @property
    def codec(self) -> Codec:
        """Return the codec that encodes new tokens."""
        return self._codec_of(self.contract.codec_key)

    @property
    def in_payload(self) -> bool:
        """Return False: references name places in the files."""
        return False

    @property
    def folder(self) -> Path:
        """Return the store's folder."""
        return self._folder

    @property
    def store_id(self) -> str:
        """Return the store's random id, 32 hexadecimal digits."""
        return self._manifest.store_id

    def put_codes(self, codes: NDArray[np.uint8]) -> list[TokenReference]:
        """Append `(n, codec.nbytes)` uint8 encoded by `codec`; return references, in order.

        Raises:
            ConfigError: The codes have another size than the codec's.
            CollectionLockedError: Another process is writing.
            TokensCorruptError: The last side file is damaged; nothing was written.
            StoreError: The file cannot be written, or another process has changed the codec since
                the store was opened; no reference was returned.
        """
        if codes.shape[1:] != (self.codec.nbytes,):
            raise ConfigError(f"codes of shape {codes.shape} are not codes of {self.codec.name}")
        with self._mutex, os_errors_as_store_errors("write to the side file in", self._folder):
            places = self._writing().append(codes, self.codec)
        return [
            {**place, "checksum": checksum}
            for place, checksum in zip(places, checksums(codes), strict=True)
        ]

    def with_codec(self, codec: Codec) -> FileTokenStore:
        """Return this store, which encodes with `codec` from now on, in a new side file."""
        if codec.key != self.codec.key:
            self.begin_segment(codec)
        return self

    def flush(self) -> None:
        """Write appended records to the disk, then the manifest that counts them.

        Raises:
            StoreError: The disk refused. Records since the last flush count as lost, and the store
                closes itself: the system may forget which pages it failed to write, so a second
                attempt could report success wrongly.
        """
        with self._mutex:
            self._require_open()
            if self._writer is None:
                return
            try:
                self._writer.flush()
            except StoreError:
                self._close_files()
                raise
            self._manifest = self._writer.manifest

    def codes(
        self,
        image_ids: Sequence[str],
        references: Sequence[TokenReference],
        empty: EmptyCodes = empty_codes,
    ) -> list[StoredCodes]:
        """Read tokens as they are stored; see `TokenStore.codes`."""
        problems = Problems(self._folder)
        found: dict[str, list[WantedRecords]] = {}  # codec key -> records
        for segment, wanted in located(image_ids, references, problems).items():
            try:
                with self._mutex:
                    reader = self._reader(segment)
                    wanted.records = reader.records(max(wanted.numbers) + 1)
            except StoreError as error:
                problems.unreadable(error, [image_ids[row] for row in wanted.rows])
                continue
            problems.lost += [image_ids[row] for row in wanted.drop_lost()]
            found.setdefault(reader.codec.key, []).append(wanted)
        stored: list[StoredCodes] = []
        for key, parts in found.items():
            stored.append(gathered(self._codecs[key], parts, empty))
            problems.check(image_ids, references, stored[-1])
        problems.raise_first()
        return stored

    def segments(self) -> list[Segment]:
        """Return the listed side files, with their current numbers of whole records.

        Raises:
            StoreError: A side file cannot be read; a missing one counts as empty.
        """
        listed: list[Segment] = []
        writer = self._writer
        for segment in self._manifest.segments if writer is None else writer.segments:
            path = segment_path(self._folder, segment.id)
            with os_errors_as_store_errors("read", path):
                size = path.stat().st_size if path.exists() else 0
            listed.append(replace(segment, num_records=whole_records(size, segment.record_bytes)))
        return listed

    def unlisted(self) -> list[Segment]:
        """Return side files that the manifest does not list, left by a crash."""
        listed = {segment.id for segment in self.segments()}
        return [s for s in found_segments(self._folder, self.store_id) if s.id not in listed]

    def disk_bytes(self) -> int:
        """Return the size in bytes of the store's side files, listed or not."""
        found = found_segments(self._folder, self.store_id)
        return sum(HEADER_BYTES + s.num_records * s.record_bytes for s in found)

    def begin_writing(self, *, replace_damaged: bool = False) -> None:
        """Acquire the writer's lock now, not at the first `put`, and read the current manifest.

        Args:
            replace_damaged: If the last side file is damaged, begin another one: records are never
                appended to a damaged file.

        Raises:
            CollectionLockedError: Another process is writing.
            StoreError: Another process has changed the codec since the store was opened, or the
                folder cannot be written.
        """
        with self._mutex, os_errors_as_store_errors("write to the side file in", self._folder):
            writer = self._writing()
            intact = not replace_damaged or writer.is_intact()
        if not intact:
            self.begin_segment()

    def begin_segment(self, codec: Codec | None = None) -> None:
        """Begin a side file for new tokens, with another codec if one is given.

        Raises:
            CollectionLockedError: Another process is writing.
            StoreError: The file cannot be created.
        """
        with self._mutex, os_errors_as_store_errors("write to the side file in", self._folder):
            writer = self._writing()
            contract = None
            if codec is not None:
                contract = self.contract.with_codec(codec.name, codec.hash)
                keep_codebook(self._folder, codec, contract)
            writer.begin_segment(codec or self.codec, contract)
        self.flush()

    def drop_segments(self, segment_ids: Collection[str]) -> None:
        """Delete side files that no point refers to, and codebooks that no side file needs.

        Readers that have the files open can still read them.

        Raises:
            CollectionLockedError: Another process is writing.
            StoreError: A file cannot be deleted.
        """
        with self._mutex, os_errors_as_store_errors("delete side files in", self._folder):
            writer = self._writing()
            writer.drop(segment_ids)
            self._manifest = writer.manifest
            for segment_id in segment_ids:
                reader = self._readers.pop(segment_id, None)
                if reader is not None:
                    reader.close()
            needed = {s.codec for s in found_segments(self._folder, self.store_id)}
            needed.add(self.contract.codec_key)
            drop_codebooks(self._folder, needed)

    def nbytes_per_image(self) -> int:
        """Return the size of a record in bytes."""
        return self.codec.nbytes

    def close(self) -> None:
        """Close the files and release the writer's lock; a second call does nothing.

        Records that were not flushed may be lost; no point refers to them.
        """
        with self._mutex:
            self._close_files()

    def remove(self) -> None:
        """Close the store and delete its files, and its folder if that is then empty."""
        self.close()
        with os_errors_as_store_errors("delete the token store in", self._folder):
            with lock_store(self._folder):
                (self._folder / MANIFEST_NAME).unlink(missing_ok=True)
                for segment in found_segments(self._folder, self.store_id):
                    segment_path(self._folder, segment.id).unlink(missing_ok=True)
                drop_codebooks(self._folder)
                (self._folder / WRITER_LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                self._folder.rmdir()

    def _close_files(self) -> None:
        for file in (self._writer, *self._readers.values()):
            if file is not None:
                file.close()
        self._readers.clear()
        self._writer = None
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError(f"the token store in {self._folder} is closed; open it again")

    def _codec_of(self, key: str) -> Codec:
        if key not in self._codecs:
            self._codecs[key] = stored_codec(self._folder, self.contract, key)
        return self._codecs[key]

    def _reader(self, segment_id: str) -> SegmentReader:
        self._require_open()
        reader = self._readers.get(segment_id)
        if reader is None:
            reader = SegmentReader.open(
                self._folder, self.store_id, segment_id, codec=self._codec_of
            )
            self._readers[segment_id] = reader
            if len(self._readers) > _OPEN_SEGMENTS:
                self._readers.popitem(last=False)[1].close()
        self._readers.move_to_end(segment_id)
        return reader

    def _writing(self) -> FileWriter:
        """Return the writer; create it at the first call.

        Raises:
            CollectionLockedError: Another process is writing.
            StoreError: Another process has changed the codec since the store was opened.
        """
        self._require_open()
        if self._writer is None:
            writer = FileWriter(self._folder, self.store_id)
            key = writer.manifest.contract.codec_key
            if key != self.contract.codec_key:
                writer.close()
                # Codes of the old codec must not be appended to records of the new one.
                raise StoreError(
                    f"the codec of the token store in {self._folder} is now {key}, not "
                    f"{self.contract.codec_key}; open the collection again"
                )
            self._writer, self._manifest = writer, writer.manifest
        return self._writer


def files_of(store: TokenStore) -> FileTokenStore | None:
    """Return a store as one of side files, for maintenance of these files; None if it is not."""
    return store if isinstance(store, FileTokenStore) else None
