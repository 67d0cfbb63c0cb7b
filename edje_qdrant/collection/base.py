"""Base class of image and caption collections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import RLock
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from edje_qdrant.checks import check_kind, check_seconds
from edje_qdrant.collection.metadata import Holds, read_contract
from edje_qdrant.collection.moved import is_closing, moved_to, read_moved
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import EdjeError, StoreError
from edje_qdrant.index import Filter, VectorIndex
from edje_qdrant.index.payload_fields import (
    FieldSample,
    FilterProblem,
    filter_problems,
    sample_fields,
)
from edje_qdrant.types import Candidates, Payload

__all__ = ["BaseCollection"]


class BaseCollection(ABC):
    """Hold a vector index, its name and its location; close it at the end of a `with` block.

    On a server, an alias is resolved when the collection is opened; reads and writes go to that
    collection, also if the alias is moved. Before each request that writes points, the contract in
    the collection's metadata is read again: a collection that another model's has replaced raises
    ContractMismatchError, and nothing is written to it.

    Attributes:
        write_lock: Keeps other threads of this process from writing; searches continue.
    """

    holds: ClassVar[Holds]

    def __init__(self, index: VectorIndex, name: str, location: str) -> None:
        self._index, self._name, self._location = index, name, location
        self.write_lock = RLock()
        index.check_before_writes(self.require_writes_allowed)

    def __repr__(self) -> str:
        contract = self.contract
        return (
            f"{type(self).__name__}({self._name!r}, location={self._location!r}, "
            f"engine={self._index.engine!r}, model={contract.model!r}, codec={contract.codec!r})"
        )

    @property
    @abstractmethod
    def contract(self) -> TokenContract:
        """Return the contract of the model that wrote the collection, codec included."""

    @property
    def index(self) -> VectorIndex:
        """Return the vector index, for maintenance and payload indexes."""
        return self._index

    @property
    def location(self) -> str:
        """Return the folder or address."""
        return self._location

    @property
    def name(self) -> str:
        """Return the collection's name, or the alias, as it was given."""
        return self._name

    @property
    def resolved_name(self) -> str:
        """Return the name of the collection itself, where an alias was given."""
        return self._index.resolved_name or self._name

    @property
    def read_only(self) -> bool:
        """Return whether this user may not write to the collection's folder; then writes raise."""
        return self._index.read_only

    def require_writable(self) -> None:
        """Check that the collection can be written to.

        Raises:
            StoreError: It is closed, or open read-only.
        """
        self._index.require_writable()

    def require(self, contract: TokenContract) -> None:
        """Check that a model with this contract may read and write here, whatever the codec.

        Raises:
            ContractMismatchError: It may not; names each field that differs, with both values.
        """
        check_kind("contract", contract, TokenContract, "a TokenContract, such as model.contract()")
        contract.require_same_model(self.contract, where=self._what())

    def require_unchanged(self) -> None:
        """Read the contract in the collection's metadata again, and check its model.

        Raises:
            ContractMismatchError: The collection was replaced by another model's; names each field
                that differs.
            CollectionNotFoundError: It was deleted.
            StoreError: Its metadata cannot be read, or it holds something else now.
            EngineUnavailableError: The server cannot be reached.
        """
        self._require_same_model(self._index.reload_metadata())

    def require_writes_allowed(self) -> None:
        """Read the metadata again, and check that nothing keeps this object from writing.

        Raises:
            StoreError: A migration's cut-over is under way; for other reasons see
                `require_unchanged`.
            ContractMismatchError: As `require_unchanged`.
            CollectionNotFoundError: As `require_unchanged`.
            EngineUnavailableError: As `require_unchanged`.
        """
        self.require_unchanged()
        if is_closing(self._index.metadata):
            raise StoreError(
                f"{self._what()} is being changed over to another model, and takes no writes until "
                "that is done; try again in a minute, with the new model. If the cut-over was "
                "interrupted, run edje-qdrant migrate --cut-over or --rollback"
            )

    def probe(self, *, points: bool = False) -> None:
        """Check that the collection can be read, and is the one opened; see `VectorIndex.probe`.

        During the grace time of a migration's cut-over, the model before may still search.

        Args:
            points: Whether to read points, too.

        Raises:
            ContractMismatchError: It was replaced by another model's.
            CollectionNotFoundError: It was deleted.
            ConfigError: The server refuses the key.
            StoreError: It is closed, cannot be read, or holds something else now.
            EngineUnavailableError: No answer within two seconds.
        """
        metadata = self._index.probe(points=points)
        if moved_to(metadata) is not None:
            moved = read_moved(metadata, self._what())
            if moved.state == "settling" and moved.before:
                # Searches go on until the old side's points are signed; writes are refused.
                metadata = dict(moved.before)
        self._require_same_model(metadata)

    def named_now(self) -> tuple[str, str]:
        """Return which collection the given name stands for now, and the key of its model.

        They differ from `resolved_name` and `contract.model_key` if the name is an alias that was
        moved since, if the collection was replaced, or after a migration's cut-over.

        Raises:
            ConfigError: The collection is in a folder.
            CollectionNotFoundError: The name stands for no collection.
            StoreError: It stands for one that this package did not make, or that holds others.
            EngineUnavailableError: No answer within two seconds.
        """
        resolved, metadata = self._index.named_now(self._name)
        seen = {resolved}
        while (to := moved_to(metadata)) is not None and to not in seen:
            seen.add(to)
            resolved, metadata = self._index.named_now(to)
        contract = read_contract(metadata, f"{resolved!r} at {self._location}", self.holds)
        return resolved, contract.model_key

    def _require_same_model(self, metadata: Mapping[str, Any]) -> None:
        found = read_contract(metadata, self._what(), self.holds)
        self.contract.require_same_model(
            found, where=f"{self._what()}, replaced since it was opened,"
        )

    def _what(self) -> str:
        """Return the collection's name and place for messages."""
        given, found = self._name, self.resolved_name
        alias = "" if given == found else f" (alias {given!r})"
        return f"the collection {found!r}{alias} at {self._location}"

    def patient(self, seconds: float) -> AbstractContextManager[None]:
        """Let the calls inside, from any thread, wait for a server that is away; see `VectorIndex`.

        Raises:
            ConfigError: `seconds` is no number of seconds.
        """
        check_seconds("wait", seconds)
        return self._index.patient(seconds)

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Return the ids that are in the collection."""
        return self._index.existing(ids)

    def nearest(
        self,
        embeddings: NDArray[np.float32],
        num_candidates: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> list[Candidates]:
        """Find the points nearest to each of `(q, d)` embeddings, best first.

        Args:
            embeddings: `(q, d)` float32, by the model that wrote the collection.
            num_candidates: Maximum number of candidates for each embedding.
            filter: Search only points whose payload matches; None or `{}` for all.
            timeout: Seconds for a server, retries and pauses included.

        Returns:
            One list of candidates for each embedding.

        Raises:
            ConfigError: The embeddings do not fit the contract, `num_candidates` is below 1, or the
                filter cannot be used.
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.
        """
        return self._index.nearest(embeddings, num_candidates, filter=filter, timeout=timeout)

    async def nearest_async(
        self,
        embeddings: NDArray[np.float32],
        num_candidates: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> list[Candidates]:
        """Find the same as `nearest` without blocking the event loop; raises the same errors.

        A server is queried through `AsyncQdrantClient`; an embedded engine runs in another thread,
        but holds the interpreter's lock for the milliseconds that a query takes.
        """
        return await self._index.nearest_async(
            embeddings, num_candidates, filter=filter, timeout=timeout
        )

    def payload_fields(self) -> FieldSample:
        """Look at the payloads of some points, and return their fields with kinds and values.

        Of a large collection up to 500 points are read, so that a rare field may be missing.

        Raises:
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.
        """
        return sample_fields(self._index, keep=self._is_own)

    def filter_problems(
        self, filter: Filter | None, sample: FieldSample | None = None
    ) -> list[FilterProblem]:
        """Return the conditions of a filter by which nothing can be found, with the reason.

        Args:
            filter: The filter.
            sample: From `payload_fields`; None looks at the payloads first.

        Returns:
            Fields that no point has, with the most similar name, and fields that hold values of
            another type. Empty for a filter that may find something.

        Raises:
            ConfigError: The filter cannot be used.
            StoreError: The engine failed.
            EngineUnavailableError: The server cannot be reached.

        Example:
            >>> from edje_qdrant import EDJEModel, ImageCollection
            >>> model = EDJEModel.from_pretrained("demo", device="cpu")
            >>> with ImageCollection.create(":memory:", "images", model.contract()) as images:
            ...     images.filter_problems({"yaer": 2024})
            []
        """
        chosen = self.payload_fields() if sample is None else sample
        return filter_problems(self._index, filter, chosen)

    def _is_own(self, point_id: str, payload: Payload) -> bool:  # noqa: ARG002 - of others, none
        """Return whether the point is one of the collection's own."""
        return True

    def delete(self, ids: Sequence[str]) -> None:
        """Delete points; unknown ids are ignored.

        Their tokens in side files take disk space until `maintenance.compact`.
        """
        with self.write_lock:
            self._index.delete(ids)

    def count(self, filter: Filter | None = None) -> int:
        """Return the number of points; with a filter, of those that match."""
        return self._index.count(filter)

    def __len__(self) -> int:
        return self.count()

    def flush(self) -> None:
        """Make everything added so far survive a killed process; call it at checkpoints."""
        self._index.flush()

    def optimize(self) -> None:
        """Build the search graph if the engine does so on request; call it after adding."""
        self._index.optimize()

    def close(self, because: Callable[[], EdjeError] | None = None) -> None:
        """Flush, and close files and connections; a second call does nothing.

        Args:
            because: Returns the error that later calls raise; by default that it is closed.
        """
        self._index.close(because)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
