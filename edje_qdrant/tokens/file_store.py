"""Tokens in side files: fixed-size records, appended to, read through memory maps."""

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

__all__ = ["FileTokenStore"]

_SEGMENT_BYTES = 1 << 30
_OPEN_SEGMENTS = 128


class FileTokenStore(TokenStore):
    """Keep tokens in append-only files beside a manifest; one process writes, many read.

    References are `{"segment": id, "record": number, "checksum": text}`. A segment is a file of at
    most a gigabyte; when it is full, or the codec has changed, the next begins. The writer's lock
    is taken at the first `put` and held until `close`. Threads may share a store.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Use `create` or `open`."""
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
        """Make an empty store; the manifest comes last, so that half of one never opens.

        Args:
            folder: Where; made if it is missing.
            contract: Of what will write.
            codec: The contract's; needed where it has a codebook.
            segment_bytes: Size past which no side file grows.

        Raises:
            ConfigError: The contract's codec is unknown, or not the one given.
            StoreError: The folder holds a store already, or cannot be written.
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
        """Open a store; nothing is written and no lock is taken before the first `put`.

        Args:
            folder: The store's.
            store_id: What the collection's index says; another store is refused.
            lenient: Leave damaged and missing side files to be noticed when they are read.

        Raises:
            TokensNotFoundError: There is no store, or a side file is gone.
            TokensCorruptError: The manifest is damaged or another collection's, or a side file is
                not the one it names.
            StoreError: It cannot be read, or another version wrote it.
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
                # What it names may have been dropped just now: then there is another manifest.
                if not isinstance(error, TokensNotFoundError) or (
                    Manifest.read(folder) == store._manifest
                ):
                    raise

    @classmethod
    def rebuild(cls, folder: str | Path, contract: TokenContract, store_id: str) -> None:
        """Write a lost or damaged manifest anew, from the headers of the side files.

        Args:
            folder: The store's.
            contract: What the collection's index says.
            store_id: What the collection's index says.

        Raises:
            TokensNotFoundError: The codebook that the contract names is gone.
            TokensCorruptError: It is damaged, or the folder is another collection's.
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
        """Return the contract of what wrote the store."""
        return self._manifest.contract

    @property
    def codec(self) -> Codec:
        """Return what new tokens are encoded with."""
        return self._codec_of(self.contract.codec_key)

    @property
    def files(self) -> FileTokenStore:
        """Return this store."""
        return self

    @property
    def folder(self) -> Path:
        """Return where the store lies."""
        return self._folder

    @property
    def store_id(self) -> str:
        """Return the store's random identity, 32 hexadecimal digits."""
        return self._manifest.store_id

    def put_codes(self, codes: NDArray[np.uint8]) -> list[TokenReference]:
        """Append `(n, codec.nbytes)` uint8 that `codec` made; return references, in order.

        Raises:
            ConfigError: The codec makes no codes of that size.
            CollectionLockedError: Another process is writing.
            TokensCorruptError: The last side file is damaged; nothing was written.
            StoreError: As `put`.
        """
        if codes.shape[1:] != (self.codec.nbytes,):
            raise ConfigError(f"{self.codec.name} makes no codes of shape {codes.shape}")
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
        """Put what was appended on the disk, then the manifest that counts it.

        Raises:
            StoreError: The disk refused. What was put since the last flush counts as lost, and the
                store closes itself: the system may forget which pages it failed to write, so that a
                second attempt would succeed without cause.
        """
        with self._mutex:
            self._require_open()
            if self._writer is None:
                return
            try:
                self._writer.flush()
            except StoreError:
                self._let_go()
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
        """Return the side files that are listed, with the whole records each holds by now.

        Raises:
            StoreError: One cannot be read; a missing one holds none.
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
        """Return side files of this store that the manifest does not list: a crash left them."""
        listed = {segment.id for segment in self.segments()}
        return [s for s in found_segments(self._folder, self.store_id) if s.id not in listed]

    def disk_bytes(self) -> int:
        """Return the size of the store's side files, listed or not."""
        found = found_segments(self._folder, self.store_id)
        return sum(HEADER_BYTES + s.num_records * s.record_bytes for s in found)

    def begin_writing(self, *, mend: bool = False) -> None:
        """Become the one writer now, not at the first `put`, and learn what others have written.

        Args:
            mend: Where the last side file is damaged, begin another one: nothing is ever written
                behind a loss.

        Raises:
            CollectionLockedError: Another process is writing.
            StoreError: Another process has changed the codec since the store was opened, or the
                folder cannot be written.
        """
        with self._mutex, os_errors_as_store_errors("write to the side file in", self._folder):
            writer = self._writing()
            whole = not mend or writer.is_whole()
        if not whole:
            self.begin_segment()

    def begin_segment(self, codec: Codec | None = None) -> None:
        """Begin a side file, which takes what is put from now on; with another codec if given.

        Raises:
            CollectionLockedError: Another process is writing.
            StoreError: It cannot be made.
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

        Readers that have them open keep reading; what they find anew is elsewhere.

        Raises:
            CollectionLockedError: Another process is writing.
            StoreError: They cannot be deleted.
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
        """Return the bytes of a record."""
        return self.codec.nbytes

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
            with lock_store(self._folder):
                (self._folder / MANIFEST_NAME).unlink(missing_ok=True)
                for segment in found_segments(self._folder, self.store_id):
                    segment_path(self._folder, segment.id).unlink(missing_ok=True)
                drop_codebooks(self._folder)
                (self._folder / WRITER_LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                self._folder.rmdir()

    def _let_go(self) -> None:
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
        """Return the writer, which is begun here.

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
                # What was encoded for the old one must not end up among the new one's codes.
                raise StoreError(
                    f"the codec of the token store in {self._folder} is {key} by now, not "
                    f"{self.contract.codec_key}; open the collection again"
                )
            self._writer, self._manifest = writer, writer.manifest
        return self._writer
