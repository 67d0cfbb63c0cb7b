"""The points of a Qdrant collection that something else made: read, and marked with tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from edje_qdrant.errors import CollectionNotFoundError, ConfigError, StoreError
from edje_qdrant.index.batches import in_batches, in_runs
from edje_qdrant.index.filters.field_paths import TOKENS_KEY, nested_path
from edje_qdrant.index.filters.groups import field_value
from edje_qdrant.index.qdrant import requests as qdrant_requests
from edje_qdrant.index.qdrant.connection import Connection, QdrantOptions
from edje_qdrant.index.validate import check_batch_size, check_name

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import ScoredPoint as ScoredPoint  # for annotations elsewhere

__all__ = ["ForeignPoint", "ForeignPoints", "PointId"]

#: Qdrant's own: a whole number, or a UUID as text.
PointId: TypeAlias = "int | str | UUID"

# Of the collection's metadata; another key than that of collections this package makes, so that
# neither is taken for the other.
_METADATA_KEY = "edje_qdrant_attached"
_OUR_KEY = "edje_qdrant"

_DEFAULTS = QdrantOptions()
_OPERATION_BYTES = 200


@dataclass(frozen=True, slots=True)
class ForeignPoint:
    """Hold what is read of a point.

    Attributes:
        id: As the collection has it.
        field: Value of the payload field that was asked for; None where there is none.
        reference: What lies under the reserved key; None where nothing does.
    """

    id: PointId
    field: Any
    reference: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Mark:
    id: PointId
    payload: dict[str, Any]
    nbytes: int


class ForeignPoints:
    """Read one payload field of somebody's points, and write the reserved key beside it.

    Vectors are neither read nor written, nor is any other part of a payload. What concerns the
    whole is kept in the collection's metadata, under a key of its own.

    Args:
        location: `"http://..."`, `"https://..."` or a `QdrantClient`, which is not closed here.
        name: The collection's.
        field: Name of the payload field, names joined by dots for a nested one; None to read none.
        options: How to reach the server.

    Raises:
        CollectionNotFoundError: There is no such collection; names those that are there.
        ConfigError: It was made by this package, or an argument cannot be used.
        EngineUnavailableError: The server cannot be reached.
    """

    def __init__(
        self,
        location: str | QdrantClient,
        name: str,
        field: str | None = None,
        options: QdrantOptions = _DEFAULTS,
    ) -> None:
        self._name = check_name(name)
        self._options = options
        self._connection = Connection(location, options)
        self._client = self._connection.client
        self.read_field(field)
        try:
            if not self._connection.call(name, self._client.collection_exists, name):
                raise CollectionNotFoundError(self.address, name, self._connection.known())
            if _OUR_KEY in self._all_metadata():
                raise ConfigError(
                    f"the collection {name!r} at {self.address} was made by edje-qdrant and has "
                    "tokens of its own; search it with TwoStageRetriever"
                )
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Return what errors call the server."""
        return self._connection.address

    def read_field(self, field: str | None) -> None:
        """Read another payload field from now on.

        Raises:
            ConfigError: It cannot be one.
        """
        self._path = None if field is None else nested_path(field, "path_field")
        self._field = field

    def metadata(self) -> dict[str, Any] | None:
        """Read what is kept about the attached tokens; None where nothing is."""
        return self._all_metadata().get(_METADATA_KEY) or None

    def set_metadata(self, metadata: dict[str, Any] | None) -> None:
        """Keep something about the attached tokens, or nothing any more; other keys stay.

        Raises:
            StoreError: The server keeps no metadata.
            EngineUnavailableError: The server went away.
        """
        # A server may take None for "leave it"; an empty object is as good as nothing.
        update = {_METADATA_KEY: metadata or {}}
        self._connection.call(
            self._name, self._client.update_collection, self._name, metadata=update
        )
        for tries in range(self._options.retries + 1):
            if self.metadata() == (metadata or None):
                return
            if tries < self._options.retries:  # another node may answer, a moment behind
                self._connection.pause(tries)
        raise StoreError(
            f"the server at {self.address} does not keep the metadata of {self._name!r}; it is "
            "older than Qdrant 1.16: upgrade it, then attach again"
        )

    def count(self) -> int:
        """Return the number of points."""
        return self._connection.call(self._name, self._client.count, self._name, exact=True).count

    def scroll(self, batch_size: int = 256) -> Iterator[list[ForeignPoint]]:
        """Yield all points in pages, without token bytes.

        Raises:
            EngineUnavailableError: The server cannot be reached; raised before a page.
        """
        check_batch_size(batch_size)
        start: Any = None
        while True:
            records, start = self._connection.call(
                self._name,
                self._client.scroll,
                self._name,
                limit=batch_size,
                offset=start,
                with_payload=self._shown(tokens=False),
                with_vectors=False,
            )
            if records:
                yield [self._point(record) for record in records]
            if start is None:
                return

    def some_fields(self) -> list[str]:
        """Return the names of the fields that the first points have."""
        records, _ = self._connection.call(
            self._name,
            self._client.scroll,
            self._name,
            limit=16,
            with_payload=qdrant_requests.selected(payload=True, tokens=False),
        )
        names = dict.fromkeys(key for record in records for key in record.payload or {})
        return [name for name in names if name != TOKENS_KEY]

    def retrieve(self, ids: Sequence[PointId], *, tokens: bool) -> dict[PointId, ForeignPoint]:
        """Return id -> point; unknown ids are left out.

        Args:
            ids: Any number, each once.
            tokens: Whether references come with the token bytes they carry.

        Raises:
            ConfigError: An id is none that Qdrant takes.
            EngineUnavailableError: The server cannot be reached.
        """
        step = self._options.batch_size if tokens else 4096
        found: dict[PointId, ForeignPoint] = {}
        for run in in_runs([*ids], step):
            records = self._connection.call(
                self._name,
                self._client.retrieve,
                self._name,
                run,
                with_payload=self._shown(tokens=tokens),
                with_vectors=False,
            )
            found.update((record.id, self._point(record)) for record in records)
        return found

    def mark(self, references: Mapping[PointId, Mapping[str, Any]]) -> None:
        """Write references under the reserved key; acknowledged ones are on the server's disk.

        Points that are gone by now are left out. Marking again changes nothing, so requests that
        got no answer are sent again.

        Raises:
            EngineUnavailableError: The server went away; earlier batches may have been written.
        """
        marks = []
        for point_id, reference in references.items():
            payload = {TOKENS_KEY: dict(reference)}
            marks.append(_Mark(point_id, payload, len(json.dumps(payload)) + _OPERATION_BYTES))
        for batch in in_batches(marks, self._options.batch_size):
            self._connection.call(self._name, self._mark, batch)

    def unmark(self) -> None:
        """Remove the reserved key from all points.

        Raises:
            EngineUnavailableError: The server went away; some may have it still.
        """
        from qdrant_client import models

        self._connection.call(
            self._name,
            self._client.delete_payload,
            self._name,
            [TOKENS_KEY],
            models.Filter(),
            wait=True,
        )

    def close(self) -> None:
        """Close the client, unless it was passed in; a second call does nothing."""
        self._connection.close()

    def _all_metadata(self) -> dict[str, Any]:
        info = self._connection.call(self._name, self._client.get_collection, self._name)
        return info.config.metadata or {}

    def _shown(self, *, tokens: bool) -> Any:
        """Return which part of a payload to read: the field, and the reserved key."""
        from qdrant_client import models

        # What may be in a reference, by name: a selector cannot both include and exclude.
        inside = ("path", "codec", "segment", "record", "checksum")
        ours = [TOKENS_KEY] if tokens else [f"{TOKENS_KEY}.{name}" for name in inside]
        field = [] if self._path is None else [self._path]
        return models.PayloadSelectorInclude(include=[*field, *ours])

    def _point(self, record: Any) -> ForeignPoint:
        payload = record.payload or {}
        reference = payload.get(TOKENS_KEY)
        return ForeignPoint(
            record.id,
            None if self._field is None else field_value(payload, self._field),
            reference if isinstance(reference, Mapping) else None,
        )

    def _mark(self, batch: Sequence[_Mark]) -> None:
        from qdrant_client import models

        local = self._connection.is_local
        if local:  # it goes through every point to find one by a filter
            found = self._client.retrieve(
                self._name, [mark.id for mark in batch], with_payload=False
            )
            known = {record.id for record in found}
            batch = [mark for mark in batch if mark.id in known]
        operations = []
        for mark in batch:
            setting = models.SetPayload(payload=mark.payload)
            if local:
                setting.points = [mark.id]
            else:  # in a plain list, an id that is gone would be an error
                has_id = models.HasIdCondition(has_id=[mark.id])
                setting.filter = models.Filter(must=[has_id])
            operations.append(models.SetPayloadOperation(set_payload=setting))
        if operations:
            self._client.batch_update_points(self._name, operations, wait=True)
