"""A collection of pictures: vectors and payloads in an index, tokens in a store, one contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection_checks import check_contract, check_pictures
from edje_qdrant.collection_record import (
    CollectionRecord,
    TokenPlace,
    absolute,
    check_name,
    describe,
    new_store,
    resolve,
    scratch_folder,
)
from edje_qdrant.contract import TokenContract
from edje_qdrant.durable import sync_folder
from edje_qdrant.errors import ConfigError, TokensNotFoundError
from edje_qdrant.index import TOKENS_KEY, EdgeIndex, QdrantIndex, QdrantOptions, VectorIndex
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.payload_store import PayloadTokenStore
from edje_qdrant.types import Candidate, ImageEncoding, Payload, Point

__all__ = ["ImageCollection", "user_payload"]

T = TypeVar("T")


def user_payload(payload: Payload) -> dict[str, Any]:
    """Return what the user stored with a picture, without the reserved key `_edje`."""
    return {key: value for key, value in payload.items() if key != TOKENS_KEY}


class ImageCollection:
    """Keep pictures' embeddings, payloads and tokens, all written by one model.

    This is the only place that knows the order of writes: tokens are put and flushed before the
    points that refer to them are written, and points are deleted before their tokens. A crash can
    leave tokens that nobody refers to, never a point without tokens.

    `location` is a folder (the embedded engine; one process at a time), `"http://..."` or
    `"https://..."` (a Qdrant server), `":memory:"` (gone when closed), or a `QdrantClient`.
    `api_key`, `prefer_grpc` and `timeout` (seconds) concern servers only.

    Example:
        >>> with ImageCollection.create("photos", "images", contract) as collection:
        ...     collection.add(image_ids, model.encode_images(pictures), payloads)
        ...     collection.flush()
    """

    def __init__(
        self,
        index: VectorIndex,
        store: FileTokenStore | PayloadTokenStore,
        contract: TokenContract,
        *,
        location: str,
        name: str,
    ) -> None:
        """Put together an open index and an open store; use `create` or `open`."""
        self._index = index
        self._store = store
        self._contract = contract
        self._location = location
        self._name = name

    @classmethod
    def create(
        cls,
        location: Any,
        name: str,
        contract: TokenContract,
        *,
        tokens: TokenPlace | None = None,
        codec: str = "float16",
        tokens_folder: str | Path | None = None,
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
            codec: How tokens become bytes.
            tokens_folder: The folder for side files, each collection's in one of its own name.
                Needed for `"file"` on a server; for a folder the default is inside it.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            timeout: Seconds to wait for one answer of a server.

        Raises:
            ConfigError: An argument cannot be used.
            StoreError: There is such a collection already, or it cannot be written.
            EngineUnavailableError: The server cannot be reached.
        """
        where = resolve(location)
        check_name(name)
        contract = contract.with_codec(codec)
        check_contract(contract)
        place = tokens or ("file" if isinstance(where, Path) else "payload")
        if place not in ("file", "payload"):
            raise ConfigError(f'tokens is {place!r}; give "file" or "payload"')
        if place == "payload" and tokens_folder is not None:
            raise ConfigError('tokens_folder is for tokens="file"; leave it out for "payload"')
        if place == "file" and tokens_folder is None and not isinstance(where, Path):
            raise ConfigError(
                f'tokens="file" at {describe(where)} needs tokens_folder, a folder that every '
                'machine searching the collection can read; or choose tokens="payload"'
            )
        outside = None if tokens_folder is None else absolute(tokens_folder) / name

        if not isinstance(where, Path):
            options = QdrantOptions(api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout)
            with new_store(outside, contract) as store:
                metadata = CollectionRecord.of(store, contract, tokens_folder).as_metadata()
                index = QdrantIndex.create(where, name, contract.embedding_dim, metadata, options)
            return cls(index, store, contract, location=describe(where), name=name)

        final = where / name
        with scratch_folder(final) as scratch:
            inside = scratch / "tokens" if place == "file" else None
            with new_store(outside or inside, contract) as store:
                metadata = CollectionRecord.of(store, contract, tokens_folder).as_metadata()
                EdgeIndex.create(scratch, contract.embedding_dim, metadata).close()
                store.close()
                # From here on there is a collection, whole; before, there is none.
                scratch.rename(final)
            sync_folder(where)
        return cls.open(where, name)

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
        where = resolve(location)
        check_name(name)
        index: VectorIndex
        if isinstance(where, Path):
            index = EdgeIndex.open(where / name)
        else:
            options = QdrantOptions(api_key=api_key, prefer_grpc=prefer_grpc, timeout=timeout)
            index = QdrantIndex.open(where, name, options)
        try:
            record = CollectionRecord.read(index.metadata, f"{name!r} at {describe(where)}")
            store = record.open_store(where, name, tokens_folder)
        except BaseException:
            index.close()
            raise
        return cls(index, store, record.contract, location=describe(where), name=name)

    @property
    def contract(self) -> TokenContract:
        """Return the contract of the model that wrote the collection, codec included."""
        return self._contract

    @property
    def location(self) -> str:
        """Return the folder or address."""
        return self._location

    @property
    def name(self) -> str:
        """Return the collection's name."""
        return self._name

    @property
    def token_place(self) -> TokenPlace:
        """Return where the tokens are: in a side file, or in the points' payload."""
        return "payload" if self._store.in_payload else "file"

    def require(self, contract: TokenContract) -> None:
        """Check that a model with this contract may read and write here, whatever the codec.

        Raises:
            ContractMismatchError: It may not; names each field that differs on both sides.
        """
        ours = contract.with_codec(self._contract.codec)
        ours.require_match(
            self._contract, where=f"the collection {self._name!r} at {self._location}"
        )

    def add(
        self, image_ids: Sequence[str], encoding: ImageEncoding, payloads: Sequence[Payload]
    ) -> None:
        """Write `n` pictures, replacing those with the same id: tokens first, then points.

        Args:
            image_ids: `n` UUID strings.
            encoding: What the model made of the pictures.
            payloads: `n` JSON objects to return with hits; the key `_edje` is reserved.

        Raises:
            ConfigError: Numbers, shapes or dtypes do not fit the contract, an embedding or a token
                is not finite, or an id or a payload cannot be stored; nothing was written.
            CollectionLockedError: Another process is writing tokens.
            StoreError: The disk or the engine refused; points that were written have their tokens.
            EngineUnavailableError: The server went away; the same holds.
        """
        check_pictures(self._contract, image_ids, encoding, payloads)
        if not image_ids:
            return
        references = self._store.put(image_ids, encoding.tokens)
        self._store.flush()
        self._index.upsert(
            [
                Point(image_id, embedding, {**payload, TOKENS_KEY: dict(reference)})
                for image_id, embedding, payload, reference in zip(
                    image_ids, encoding.embeddings, payloads, references, strict=True
                )
            ]
        )

    def flush(self) -> None:
        """Make everything added so far survive a killed process; call it at checkpoints."""
        self._store.flush()
        self._index.flush()

    def optimize(self) -> None:
        """Build the search graph where the engine does so on request; call it after an ingest."""
        self._index.optimize()

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are in the collection."""
        return self._index.existing(image_ids)

    def search(self, embeddings: NDArray[np.float32], num_candidates: int) -> list[list[Candidate]]:
        """Find the pictures nearest to each of `(q, d)` embeddings, best first.

        Raises:
            ConfigError: The embeddings do not fit the contract, or `num_candidates` is below 1.
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.
        """
        return self._index.search(embeddings, num_candidates)

    def tokens(self, candidates: Sequence[Candidate]) -> NDArray[np.float16]:
        """Read the candidates' tokens, `(n, m, d_text)` float16, in order.

        Candidates of several queries may be read in one call, the same picture more than once.

        Raises:
            TokensNotFoundError: Some have none; names the ids.
            TokensCorruptError: Stored bytes are not what was written; names the ids.
        """
        if not self._store.in_payload:
            return self._store.get(
                [c.image_id for c in candidates], [_reference(c.payload) for c in candidates]
            )
        places: dict[str, int] = {}
        for candidate in candidates:
            places.setdefault(candidate.image_id, len(places))
        payloads = _in_order([*places], self._index.retrieve([*places]))
        tokens = self._store.get([*places], [_reference(p) for p in payloads])
        if len(places) == len(candidates):
            return tokens
        return tokens[[places[candidate.image_id] for candidate in candidates]]

    def encodings(self, image_ids: Sequence[str]) -> ImageEncoding:
        """Read pictures back as the model encoded them, in order, each as often as it is named.

        Raises:
            TokensNotFoundError: Some are not in the collection; names the ids.
            TokensCorruptError: Stored bytes are not what was written; names the ids.
        """
        payloads = _in_order(image_ids, self._index.retrieve(image_ids))
        vectors = _in_order(image_ids, self._index.vectors(image_ids))
        embeddings = np.empty((len(image_ids), self._contract.embedding_dim), np.float32)
        for row, vector in enumerate(vectors):
            embeddings[row] = vector
        return ImageEncoding(
            embeddings, self._store.get(image_ids, [_reference(p) for p in payloads])
        )

    def delete(self, image_ids: Sequence[str]) -> None:
        """Remove pictures; unknown ids are ignored. Tokens in a side file stay as dead weight."""
        self._index.delete(image_ids)

    def count(self) -> int:
        """Return the number of pictures."""
        return self._index.count()

    def __len__(self) -> int:
        return self.count()

    def bytes_per_image(self) -> int:
        """Return the bytes one picture's tokens take as stored, the vector not counted."""
        return self._store.nbytes_per_image()

    def close(self) -> None:
        """Flush and let go of files and connections; a second call does nothing."""
        try:
            self._index.close()
        finally:
            self._store.close()

    def __enter__(self) -> ImageCollection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _in_order(image_ids: Sequence[str], found: Mapping[str, T]) -> list[T]:
    gone = [image_id for image_id in image_ids if image_id not in found]
    if gone:
        raise TokensNotFoundError(
            f"pictures {', '.join(gone[:3])} ({len(gone)} in all) are not in the collection; "
            "if they were found before, they have been deleted since: search again",
            gone,
        )
    return [found[image_id] for image_id in image_ids]


def _reference(payload: Payload) -> Mapping[str, Any]:
    reference = payload.get(TOKENS_KEY)
    return reference if isinstance(reference, Mapping) else {}
