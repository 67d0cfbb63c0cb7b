"""What is read from a collection: candidates, their tokens, and what it says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.metadata import CollectionRecord, TokenPlace
from edje_qdrant.collection.opening import Parts
from edje_qdrant.collection.references import in_order, reference_of, repeated
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import TokensCorruptError, TokensNotFoundError
from edje_qdrant.index import Filter, QdrantIndex, Strategy, VectorIndex
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.payload_store import PayloadTokenStore
from edje_qdrant.tokens.protocol import StoredCodes, decoded
from edje_qdrant.tokens.references import EmptyCodes
from edje_qdrant.types import Candidate, ImageEncoding, Payload

__all__ = ["CollectionReader"]


class CollectionReader:
    """Read an open collection; what writes it is in `ImageCollection`."""

    def __init__(self, parts: Parts, name: str) -> None:
        self._index, self._store = parts.index, parts.store
        self._record, self._location = parts.record, parts.location
        self._name = name
        self._codec_turn = RLock()

    @property
    def contract(self) -> TokenContract:
        """Return the contract of the model that wrote the collection, codec included."""
        return self._record.contract

    @property
    def codec(self) -> Codec:
        """Return how tokens that are added become bytes."""
        return self._store.codec

    @property
    def index(self) -> VectorIndex:
        """Return the first stage, for maintenance."""
        return self._index

    @property
    def store(self) -> FileTokenStore | PayloadTokenStore:
        """Return where tokens are kept, for maintenance."""
        return self._store

    @property
    def location(self) -> str:
        """Return the folder or address."""
        return self._location

    @property
    def name(self) -> str:
        """Return the collection's name."""
        return self._name

    @property
    def identity(self) -> str:
        """Return what tells the collection's rankings from others', for cursors."""
        return f"{self._name} {self.contract.adapter_hash[:12]}"

    @property
    def token_place(self) -> TokenPlace:
        """Return where the tokens are: in a side file, or in the points' payload."""
        return "payload" if self._store.in_payload else "file"

    def require(self, contract: TokenContract) -> None:
        """Check that a model with this contract may read and write here, whatever the codec.

        Raises:
            ContractMismatchError: It may not; names each field that differs on both sides.
        """
        ours = contract.with_codec(self.contract.codec, self.contract.codec_hash)
        ours.require_match(
            self.contract, where=f"the collection {self._name!r} at {self._location}"
        )

    def reload(self) -> None:
        """Learn of codecs that another process has chosen since, for tokens in the payload.

        Side files say themselves what encoded them.

        Raises:
            ContractMismatchError: Another model's collection has taken this one's place.
            StoreError: The collection cannot be read.
        """
        with self._codec_turn:
            if self._store.in_payload:
                record = CollectionRecord.read(self._index.reload_metadata(), self._name)
                self.require(record.contract)
                self._store = PayloadTokenStore(record.contract, record.codebooks)
                self._record = record

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are in the collection."""
        return self._index.existing(image_ids)

    def search(
        self,
        embeddings: NDArray[np.float32],
        num_candidates: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> list[list[Candidate]]:
        """Find the images nearest to each of `(q, d)` embeddings, best first.

        Args:
            embeddings: `(q, d)` float32.
            num_candidates: Images to find for each, at most.
            filter: Which images to look among; None or `{}` for all.
            timeout: Seconds after which a server is not asked again.

        Raises:
            ConfigError: The embeddings do not fit the contract, `num_candidates` is below 1, or the
                filter cannot be used.
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.
        """
        return self._index.search(embeddings, num_candidates, filter=filter, timeout=timeout)

    async def search_async(
        self,
        embeddings: NDArray[np.float32],
        num_candidates: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> list[list[Candidate]]:
        """Do as `search` does, while the event loop goes on.

        A server is asked through `AsyncQdrantClient`; an engine of this process works in another
        thread, but holds the interpreter's lock for the milliseconds it takes.

        Raises:
            ConfigError: As `search`.
            StoreError: As `search`.
            EngineUnavailableError: As `search`.
        """
        if isinstance(self._index, QdrantIndex):
            return await self._index.search_async(
                embeddings, num_candidates, filter=filter, timeout=timeout
            )
        return await asyncio.to_thread(
            self.search, embeddings, num_candidates, filter=filter, timeout=timeout
        )

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
        self, candidates: Sequence[Candidate], *, empty: EmptyCodes | None = None
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

    def count(self, filter: Filter | None = None) -> int:
        """Return the number of images, of those that match where a filter is given."""
        return self._index.count(filter)

    def __len__(self) -> int:
        return self.count()

    def bytes_per_image(self) -> int:
        """Return the bytes one image's tokens take as stored, the vector not counted."""
        return self._store.nbytes_per_image()

    def close(self) -> None:
        """Flush and let go of files and connections; a second call does nothing."""
        try:
            self._index.close()
        finally:
            self._store.close()

    def _codes(self, found: Mapping[str, Payload], empty: EmptyCodes | None) -> list[StoredCodes]:
        """Read the tokens of images that were found with these payloads, in their order."""
        image_ids = [*found]
        in_payload = self._store.in_payload
        try:
            if in_payload:
                found = self._index.retrieve(image_ids)
            references = [reference_of(payload) for payload in in_order(image_ids, found)]
            if empty is not None and isinstance(self._store, FileTokenStore):
                return self._store.codes(image_ids, references, empty)
            return self._store.codes(image_ids, references)
        except (TokensNotFoundError, TokensCorruptError):
            # Compacted or transcoded since they were found, perhaps: look where the points say
            # their tokens are by now, and with the codecs that there are by now.
            self.reload()
            again = in_order(image_ids, self._index.retrieve(image_ids))
            return self._store.codes(image_ids, [reference_of(payload) for payload in again])
