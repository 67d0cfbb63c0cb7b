"""A collection of images: vectors and payloads in an index, tokens in a store, one contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.base import BaseCollection
from edje_qdrant.collection.checks import check_points, check_reserved, check_tokens, fitted_codec
from edje_qdrant.collection.metadata import CollectionRecord, TokenPlace
from edje_qdrant.collection.opening import Parts, create_parts, open_parts
from edje_qdrant.collection.references import in_order, reference_of, repeated, user_payload
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.index import (
    TOKENS_KEY,
    Engine,
    Filter,
    PayloadKind,
    QdrantOptions,
    QdrantSettings,
    Strategy,
    check_indexes,
)
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.payload_store import PayloadTokenStore
from edje_qdrant.tokens.protocol import (
    EmptyCodes,
    StoredCodes,
    TokenReference,
    TokenStore,
    decoded,
    empty_codes,
)
from edje_qdrant.types import Candidate, ImageEncoding, Payload, Point

__all__ = ["ImageCollection", "user_payload"]


class ImageCollection(BaseCollection):
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
        super().__init__(parts.index, name, parts.location)
        self._store, self._record = parts.store, parts.record
        self._codec_lock = RLock()

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

    @property
    def contract(self) -> TokenContract:
        """Return the contract of the model that wrote the collection, codec included."""
        return self._record.contract

    @property
    def codec(self) -> Codec:
        """Return how tokens that are added become bytes."""
        return self._store.codec

    @property
    def store(self) -> TokenStore:
        """Return where tokens are kept, for maintenance."""
        return self._store

    @property
    def identity(self) -> str:
        """Return what tells the collection's rankings from others', for cursors."""
        return f"{self._name} {self.contract.adapter_hash[:12]}"

    @property
    def token_place(self) -> TokenPlace:
        """Return where the tokens are: in a side file, or in the points' payload."""
        return "payload" if self._store.in_payload else "file"

    def reload(self) -> None:
        """Learn of codecs that another process has chosen since, for tokens in the payload.

        Side files say themselves what encoded them.

        Raises:
            ContractMismatchError: Another model's collection has taken this one's place.
            StoreError: The collection cannot be read.
        """
        with self._codec_lock:
            if self._store.in_payload:
                record = CollectionRecord.read(self._index.reload_metadata(), self._name)
                self.require(record.contract)
                self._store = PayloadTokenStore(record.contract, record.codebooks)
                self._record = record

    def recommend(
        self,
        liked: Sequence[str],
        disliked: Sequence[str],
        num_candidates: int,
        *,
        filter: Filter | None = None,
        strategy: Strategy = "average_vector",
    ) -> list[Candidate]:
        """Find images like some and unlike others, none of them among those found.

        Args:
            liked: Ids of images to come near to; `best_score` can do without.
            disliked: Ids of images to keep away from.
            num_candidates: Images to find, at most.
            filter: Which images to look among; None or `{}` for all.
            strategy: How examples are put together, `average_vector` or `best_score`.

        Raises:
            ConfigError: An id is unknown, or an argument cannot be used.
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.
        """
        return self._index.recommend(
            liked, disliked, num_candidates, filter=filter, strategy=strategy
        )

    def payload_indexes(self) -> dict[str, str]:
        """Return field -> kind of every payload index; none where the engine keeps none."""
        return self._index.payload_indexes()

    def tokens(self, candidates: Sequence[Candidate]) -> NDArray[np.float16]:
        """Read the candidates' tokens, `(n, m, d_text)` float16, in order; see `codes`."""
        contract = self.contract
        shape = (len(candidates), contract.num_tokens, contract.token_dim)
        return decoded(self.codes(candidates), shape)

    def codes(
        self, candidates: Sequence[Candidate], *, empty: EmptyCodes = empty_codes
    ) -> list[StoredCodes]:
        """Read the candidates' tokens as they are stored, one part for each codec.

        Candidates of several queries may be read in one call, the same image more than once.

        Args:
            candidates: As the first stage found them.
            empty: Makes the arrays that records of side files are copied to; pinned ones, say.

        Raises:
            TokensNotFoundError: Some have none; names the ids.
            TokensCorruptError: Stored bytes are not what was written; names the ids.
        """
        found = {candidate.image_id: candidate.payload for candidate in candidates}
        parts = self._codes(found, empty)
        if len(found) == len(candidates):
            return parts
        return repeated(parts, [*found], [candidate.image_id for candidate in candidates])

    def encodings(self, image_ids: Sequence[str]) -> ImageEncoding:
        """Read images back as the model encoded them, in order, each as often as it is named.

        Raises:
            TokensNotFoundError: Some are not in the collection; names the ids.
            TokensCorruptError: Stored bytes are not what was written; names the ids.
        """
        payloads = in_order(image_ids, self._index.retrieve(image_ids, tokens=False))
        vectors = in_order(image_ids, self._index.vectors(image_ids))
        embeddings = np.empty((len(image_ids), self.contract.embedding_dim), np.float32)
        for row, vector in enumerate(vectors):
            embeddings[row] = vector
        rows = zip(image_ids, payloads, strict=True)
        return ImageEncoding(
            embeddings,
            self.tokens([Candidate(image_id, 0, 0, payload) for image_id, payload in rows]),
        )

    def bytes_per_image(self) -> int:
        """Return the bytes one image's tokens take as stored, the vector not counted."""
        return self._store.nbytes_per_image()

    def close(self) -> None:
        """Flush and let go of files and connections; a second call does nothing."""
        try:
            self._index.close()
        finally:
            self._store.close()

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
            with self.write_lock:
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
            with self.write_lock:
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
        with self.write_lock:
            self._index.set_payload(payloads)

    def set_codec(self, codec: Codec) -> None:
        """Encode tokens that are added from now on with another codec; what is there stays.

        `maintenance.transcode` changes those too.

        Raises:
            ConfigError: It is not fitted, or does not fit the contract.
            CollectionLockedError: Another process is writing tokens.
            StoreError: It cannot be kept.
        """
        codec = fitted_codec(self.contract, codec)
        with self.write_lock, self._codec_lock:
            self.reload()  # or codebooks that another process has added would be lost
            record = self._record.with_codec(codec)
            # Stored before it is used, so that readers of new points find the codebook.
            store = self._store.with_codec(codec)
            self._index.set_metadata(record.as_metadata())
            self._store, self._record = store, record

    def flush(self) -> None:
        """Make everything added so far survive a killed process; call it at checkpoints."""
        self._store.flush()
        self._index.flush()

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
        with self.write_lock:
            self._index.create_payload_index(field, kind)

    def delete_matching(self, filter: Filter) -> None:
        """Remove the images whose payload matches, as `delete` does.

        Args:
            filter: `{"album": "2024", "year": [2023, 2024]}`: every field must equal its value, or
                one of its list.

        Raises:
            ConfigError: The filter is empty, or has what a filter cannot have.
        """
        with self.write_lock:
            self._index.delete_matching(filter)

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

    def _codes(self, found: Mapping[str, Payload], empty: EmptyCodes) -> list[StoredCodes]:
        """Read the tokens of images that were found with these payloads, in their order."""
        image_ids = [*found]
        try:
            if self._store.in_payload:
                found = self._index.retrieve(image_ids)
            references = [reference_of(payload) for payload in in_order(image_ids, found)]
            return self._store.codes(image_ids, references, empty)
        except (TokensNotFoundError, TokensCorruptError):
            # Compacted or transcoded since they were found, perhaps: look where the points say
            # their tokens are by now, and with the codecs that there are by now.
            self.reload()
            again = in_order(image_ids, self._index.retrieve(image_ids))
            return self._store.codes(image_ids, [reference_of(payload) for payload in again])
