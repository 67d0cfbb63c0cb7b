"""A collection of images: vectors and payloads in an index, tokens in a store, one contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.checks import check_points, check_reserved, check_tokens, fitted_codec
from edje_qdrant.collection.metadata import TokenPlace
from edje_qdrant.collection.opening import Parts, create_parts, open_parts
from edje_qdrant.collection.reader import CollectionReader
from edje_qdrant.collection.references import user_payload
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import (
    TOKENS_KEY,
    Engine,
    Filter,
    PayloadKind,
    QdrantOptions,
    QdrantSettings,
    check_indexes,
)
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.payload_store import PayloadTokenStore
from edje_qdrant.tokens.protocol import TokenReference
from edje_qdrant.types import ImageEncoding, Payload, Point

__all__ = ["ImageCollection", "user_payload"]


class ImageCollection(CollectionReader):
    """Keep images' embeddings, payloads and tokens, all written by one model.

    This is the only place that knows the order of writes: tokens are put and flushed before the
    points that refer to them are written, and points are deleted before their tokens. A crash can
    leave tokens that nobody refers to, never a point without tokens.

    `location` is a folder (an embedded engine; one process at a time), `"http://..."` or
    `"https://..."` (a Qdrant server), `":memory:"` (gone when closed), or a `QdrantClient`.
    `api_key`, `prefer_grpc` and `timeout` (seconds) concern servers only.

    Examples:
        >>> with ImageCollection.create("photos", "images", contract) as collection:
        ...     collection.add(image_ids, model.encode_images(images), payloads)
        ...     collection.flush()
    """

    def __init__(self, parts: Parts, name: str) -> None:
        """Put together what is open already; use `create` or `open`."""
        super().__init__(parts, name)
        self._turn = RLock()

    @classmethod
    def create(
        cls,
        location: Any,
        name: str,
        contract: TokenContract,
        *,
        tokens: TokenPlace | None = None,
        codec: str | Codec = "float16",
        tokens_folder: str | Path | None = None,
        payload_indexes: Mapping[str, PayloadKind] | None = None,
        engine: Engine | None = None,
        qdrant: QdrantSettings | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        timeout: int = 30,
    ) -> ImageCollection:
        """Make an empty collection; one that failed half way is not found by `open`.

        Args:
            location: Where; see the class.
            name: Letters, digits, `-` and `_`.
            contract: The model's; its codec is replaced by `codec`.
            tokens: `"file"` (default for a folder) or `"payload"` (default elsewhere).
            codec: How tokens become bytes: a name, or a codec that was fitted to tokens.
            tokens_folder: The folder for side files, each collection's in one of its own name.
                Needed for `"file"` on a server; for a folder the default is inside it.
            payload_indexes: Field -> kind of the payload indexes to make, as in
                `{"album": "keyword"}`; see `create_payload_index`.
            engine: What keeps the vectors in a folder: `"edge"` (default), `"faiss"`,
                `"faiss-ivf"` or `"faiss-hnsw"`; `open` finds out by itself. None for a server.
            qdrant: How a server is to keep the collection: shards, replicas, quantization, what is
                on disk. None for a folder.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            timeout: Seconds to wait for one answer of a server.

        Raises:
            ConfigError: An argument cannot be used.
            StoreError: There is such a collection already, or it cannot be written.
            EngineUnavailableError: The server cannot be reached.
            MissingExtraError: faiss is asked for and not installed.
        """
        options = QdrantOptions(api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout)
        indexes = check_indexes(payload_indexes or {})
        parts = create_parts(
            location, name, contract, codec, tokens, tokens_folder, options, engine, qdrant
        )
        created = cls(parts, name)
        try:
            for field, kind in indexes.items():
                created.create_payload_index(field, kind)
            if indexes:
                created.flush()
        except BaseException:
            created.close()
            raise
        return created

    @classmethod
    def open(
        cls,
        location: Any,
        name: str,
        *,
        tokens_folder: str | Path | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        timeout: int = 30,
        mend: bool = False,
    ) -> ImageCollection:
        """Open a collection.

        Args:
            location: Where; see the class.
            name: As it was created.
            tokens_folder: Where the side files are now, if they were created outside the
                collection's folder and have moved since.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            timeout: Seconds to wait for one answer of a server.
            mend: Open also what is damaged, to verify and repair it: a lost manifest is written
                anew, and side files are looked at only when they are read.

        Raises:
            CollectionNotFoundError: There is none; names those that are there.
            CollectionLockedError: Another process has the folder open.
            ContractMismatchError: Index and side file were written by different models.
            TokensNotFoundError: The side file is not where it should be.
            TokensCorruptError: The side file is damaged, or another collection's.
            StoreError: It cannot be read, or something else wrote it.
            ConfigError: An argument cannot be used.
            EngineUnavailableError: The server cannot be reached.
        """
        options = QdrantOptions(api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout)
        return cls(open_parts(location, name, tokens_folder, options, mend=mend), name)

    def add(
        self, image_ids: Sequence[str], encoding: ImageEncoding, payloads: Sequence[Payload]
    ) -> None:
        """Write `n` images, replacing those with the same id: tokens first, then points.

        Args:
            image_ids: `n` UUID strings.
            encoding: What the model made of the images.
            payloads: `n` JSON objects to return with hits; the key `_edje` is reserved.

        Raises:
            ConfigError: Numbers, shapes or dtypes do not fit the contract, an embedding or a token
                is not finite, or an id or a payload cannot be stored; nothing was written.
            CollectionLockedError: Another process is writing tokens.
            StoreError: The disk or the engine refused; points that were written have their tokens.
            EngineUnavailableError: The server went away; the same holds.
        """
        check_points(self.contract, image_ids, encoding.embeddings, payloads)
        check_tokens(self.contract, image_ids, encoding.tokens)
        if image_ids:
            with self._turn:
                references = self._store.put(image_ids, encoding.tokens)
                self._write(image_ids, encoding.embeddings, payloads, references)

    def add_codes(
        self,
        image_ids: Sequence[str],
        embeddings: NDArray[np.float32],
        codes: NDArray[np.uint8],
        payloads: Sequence[Payload],
    ) -> None:
        """Write `n` images whose tokens this collection's codec has encoded, as `add` does.

        Args:
            image_ids: `n` UUID strings.
            embeddings: `(n, d)` float32, unit length.
            codes: `(n, codec.nbytes)` uint8.
            payloads: `n` JSON objects; the key `_edje` is reserved.

        Raises:
            ConfigError: The codec cannot have made the codes; for the rest see `add`.
        """
        if codes.shape != (len(image_ids), self.codec.nbytes) or codes.dtype != np.uint8:
            raise ConfigError(
                f"codes must be uint8 of shape {(len(image_ids), self.codec.nbytes)} for "
                f"{self.codec.name}, not {codes.dtype} of shape {codes.shape}"
            )
        check_points(self.contract, image_ids, embeddings, payloads)
        if image_ids:
            with self._turn:
                self._write(image_ids, embeddings, payloads, self._store.put_codes(codes))

    def update_payload(self, payloads: Mapping[str, Payload]) -> None:
        """Set fields of images' payloads; other fields, vectors and tokens stay.

        Args:
            payloads: Id -> fields to set, each replaced whole. Unknown ids are ignored.

        Raises:
            ConfigError: A field is reserved or cannot be stored, or an id is none.
            StoreError: The engine refused.
            EngineUnavailableError: The server went away; earlier images may have been changed.
        """
        check_reserved(payloads)
        with self._turn:
            self._index.set_payload(payloads)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep this process's other threads from writing; searches go on."""
        with self._turn:
            yield

    def set_codec(self, codec: Codec) -> None:
        """Encode tokens that are added from now on with another codec; what is there stays.

        `maintenance.transcode` changes those too.

        Raises:
            ConfigError: It is not fitted, or does not fit the contract.
            CollectionLockedError: Another process is writing tokens.
            StoreError: It cannot be kept.
        """
        codec = fitted_codec(self.contract, codec)
        with self._turn, self._codec_turn:
            self.reload()  # or codebooks that another process has added would be lost
            record = self._record.with_codec(codec)
            # Kept before it is used: whoever reads a point finds the codebook.
            if isinstance(self._store, FileTokenStore):
                if codec.key != self._store.codec.key:
                    self._store.begin_segment(codec)
                self._index.set_metadata(record.as_metadata())
            else:
                self._index.set_metadata(record.as_metadata())
                self._store = PayloadTokenStore(record.contract, record.codebooks)
            self._record = record

    def flush(self) -> None:
        """Make everything added so far survive a killed process; call it at checkpoints."""
        self._store.flush()
        self._index.flush()

    def optimize(self) -> None:
        """Build the search graph where the engine does so on request; call it after an ingest."""
        self._index.optimize()

    def create_payload_index(self, field: str, kind: PayloadKind) -> None:
        """Index a payload field, so that filters on it need not read every payload.

        Args:
            field: Its path: `album`, `camera.year`.
            kind: What it holds: keyword, integer, float, bool, datetime, geo, text or uuid.

        Raises:
            ConfigError: The field cannot be indexed, or there is no such kind.
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.
        """
        with self._turn:
            self._index.create_payload_index(field, kind)

    def delete(self, image_ids: Sequence[str]) -> None:
        """Remove images; unknown ids are ignored.

        Their tokens in side files are dead weight until `maintenance.compact`.
        """
        with self._turn:
            self._index.delete(image_ids)

    def delete_matching(self, filter: Filter) -> None:
        """Remove the images whose payload matches, as `delete` does.

        Args:
            filter: `{"album": "2024", "year": [2023, 2024]}`: every field must equal its value, or
                one of its list.

        Raises:
            ConfigError: The filter is empty, or has what a filter cannot have.
        """
        with self._turn:
            self._index.delete_matching(filter)

    def __enter__(self) -> ImageCollection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(
        self,
        image_ids: Sequence[str],
        embeddings: NDArray[np.float32],
        payloads: Sequence[Payload],
        references: Sequence[TokenReference],
    ) -> None:
        self._store.flush()
        rows = zip(image_ids, embeddings, payloads, references, strict=True)
        self._index.upsert([Point(i, e, {**p, TOKENS_KEY: dict(r)}) for i, e, p, r in rows])
