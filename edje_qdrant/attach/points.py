"""Access to the points of an existing Qdrant collection: payload field and token references."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from edje_qdrant.errors import CollectionNotFoundError, ConfigError, StoreError
from edje_qdrant.index.batches import in_batches, in_runs
from edje_qdrant.index.filters.field_paths import TOKENS_KEY, nested_path
from edje_qdrant.index.filters.groups import field_value
from edje_qdrant.index.qdrant import requests as qdrant_requests
from edje_qdrant.index.qdrant.aliases import collection_of
from edje_qdrant.index.qdrant.connection import Connection, QdrantOptions
from edje_qdrant.index.qdrant.metadata import read_version
from edje_qdrant.index.qdrant.strict_mode import exact_count, least, read_limits
from edje_qdrant.index.validate import check_batch_size, check_name

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models
    from qdrant_client.models import ScoredPoint as ScoredPoint  # for annotations elsewhere

__all__ = ["AttachablePoint", "AttachablePoints", "PointId"]

#: Id of a point, as Qdrant defines it: an integer or a UUID.
PointId: TypeAlias = "int | str | UUID"

# Keys in the collection's metadata: of attached tokens, and of collections that this package made.
# They differ, so that the two kinds of collections cannot be confused.
_METADATA_KEY = "edje_qdrant_attached"
_OUR_KEY = "edje_qdrant"

_DEFAULTS = QdrantOptions()
_OPERATION_BYTES = 200


@dataclass(frozen=True, slots=True)
class AttachablePoint:
    """Hold the parts of a point that attachment needs.

    Attributes:
        id: Id in the collection.
        field: Value of the payload field; None if the payload does not have it.
        reference: Token reference under the reserved key; None if the point has no tokens.
    """

    id: PointId
    field: Any
    reference: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Mark:
    id: PointId
    payload: dict[str, Any]
    nbytes: int


class AttachablePoints:
    """Read one payload field of existing points, and write token references next to it.

    An alias is resolved here, once: an alias that is moved later changes nothing. References are
    written under the reserved payload key. Vectors and other parts of payloads are
    neither read nor written. Data about all attached tokens is stored in the collection's metadata.

    Args:
        location: `"http://..."`, `"https://..."` or a `QdrantClient`, which is not closed here.
        name: Name of the collection.
        field: Name of the payload field, `"a.b"` for a nested one; None to read none.
        options: Connection to the server.

    Raises:
        CollectionNotFoundError: There is no such collection; the message lists existing ones.
        ConfigError: The collection was made by this package, or an argument is invalid.
        EngineUnavailableError: The server cannot be reached.
        StoreError: The server is older than Qdrant 1.16.
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
            read_version(self._connection, name)
            self._name = collection_of(self._connection, name)
            if not self._connection.call(name, self._client.collection_exists, self._name):
                raise CollectionNotFoundError(self.address, name, self._connection.known())
            info = self._info()
            self._limits = read_limits(info)
            if _OUR_KEY in (info.config.metadata or {}):
                raise ConfigError(
                    f"the collection {name!r} at {self.address} was made by edje-qdrant and "
                    "contains tokens; search it with TwoStageRetriever"
                )
        except BaseException:
            self.close()
            raise

    @property
    def resolved_name(self) -> str:
        """Return the name of the collection itself, where an alias was given."""
        return self._name

    @property
    def address(self) -> str:
        """Return the name of the server for error messages."""
        return self._connection.address

    def patient(self, seconds: float) -> AbstractContextManager[None]:
        """Let the calls inside, from any thread, wait for a server that is away.

        Args:
            seconds: To wait at most, from the first failure until the next answer.
        """
        return self._connection.patient(seconds)

    def limit(self, queries: int = 1) -> AbstractContextManager[Any]:
        """Limit the time of the calls inside to the `timeout` of the options, all together.

        Args:
            queries: An answer may take this many times as long.
        """
        return self._connection.limit(queries=queries)

    def give_up(self) -> None:
        """End the waiting of every thread inside `patient`, as the job has ended."""
        self._connection.give_up()

    def read_field(self, field: str | None) -> None:
        """Set the payload field to read.

        Raises:
            ConfigError: It is not a valid name of a field.
        """
        self._path = None if field is None else nested_path(field, "path_field")
        self._field = field

    def metadata(self) -> dict[str, Any] | None:
        """Read the metadata of the attached tokens; None if no tokens are attached."""
        return self._all_metadata().get(_METADATA_KEY) or None

    def set_metadata(self, metadata: dict[str, Any] | None) -> None:
        """Write the metadata of the attached tokens, or remove it; other keys are kept.

        Raises:
            StoreError: The server does not store metadata.
            EngineUnavailableError: The server cannot be reached.
        """
        # A server can read None as "do not change"; an empty object counts as removed.
        update = {_METADATA_KEY: metadata or {}}
        self._connection.call(
            self._name, self._client.update_collection, self._name, metadata=update
        )
        for tries in range(self._options.retries + 1):
            if self.metadata() == (metadata or None):
                return
            if tries < self._options.retries:  # the response can come from a node that lags behind
                self._connection.pause(tries)
        raise StoreError(
            f"the server at {self.address} does not store the metadata of {self._name!r}; it is "
            "older than Qdrant 1.16: upgrade it, then attach again"
        )

    def count(self) -> int:
        """Return the number of points."""
        return exact_count(self._connection, self._name, None, self._limits)

    def scroll(self, batch_size: int = 256) -> Iterator[list[AttachablePoint]]:
        """Yield all points in pages, without token bytes.

        Raises:
            EngineUnavailableError: The server cannot be reached; can be raised before any page.
        """
        check_batch_size(batch_size)
        start: Any = None
        while True:
            records, start = self._connection.call(
                self._name,
                self._client.scroll,
                self._name,
                limit=least(batch_size, self._limits.points_found),
                offset=start,
                with_payload=self._shown(tokens=False),
                with_vectors=False,
            )
            if records:
                yield [self._point(record) for record in records]
            if start is None:
                return

    def some_fields(self) -> list[str]:
        """Return the names of the payload fields of the first points."""
        records, _ = self._connection.call(
            self._name,
            self._client.scroll,
            self._name,
            limit=least(16, self._limits.points_found),
            with_payload=qdrant_requests.selected(payload=True, tokens=False),
        )
        names = dict.fromkeys(key for record in records for key in record.payload or {})
        return [name for name in names if name != TOKENS_KEY]

    def retrieve(self, ids: Sequence[PointId], *, tokens: bool) -> dict[PointId, AttachablePoint]:
        """Return id -> point; unknown ids are left out.

        Args:
            ids: Any number of different ids.
            tokens: Whether to read token bytes that are stored in references.

        Raises:
            ConfigError: Qdrant does not accept an id.
            EngineUnavailableError: The server cannot be reached.
        """
        step = self._options.batch_size if tokens else 4096
        found: dict[PointId, AttachablePoint] = {}
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

    def mark(
        self,
        references: Mapping[PointId, Mapping[str, Any]],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Write references under the reserved key, and wait until the server has stored them.

        Points that no longer exist are left out. The operation is idempotent, so requests without
        a response are retried.

        Args:
            references: Id of a point -> reference.
            check: Called before each request; an error prevents it.

        Raises:
            EngineUnavailableError: The server cannot be reached; earlier batches may have been
                written.
        """
        marks = []
        for point_id, reference in references.items():
            payload = {TOKENS_KEY: dict(reference)}
            marks.append(_Mark(point_id, payload, len(json.dumps(payload)) + _OPERATION_BYTES))
        for batch in in_batches(marks, self._options.batch_size):
            check()
            self._connection.call(self._name, self._mark, batch)

    def unmark(self) -> None:
        """Remove the reserved key from all points.

        Raises:
            EngineUnavailableError: The server cannot be reached; the key may remain on some points.
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

    def _info(self) -> models.CollectionInfo:
        return self._connection.call(self._name, self._client.get_collection, self._name)

    def _all_metadata(self) -> dict[str, Any]:
        return self._info().config.metadata or {}

    def _shown(self, *, tokens: bool) -> Any:
        """Return a selector of the payload field and the reserved key."""
        from qdrant_client import models

        # All fields of a reference but the bytes: a selector cannot both include and exclude.
        inside = ("path", "codec", "segment", "record", "checksum", "contract")
        ours = [TOKENS_KEY] if tokens else [f"{TOKENS_KEY}.{name}" for name in inside]
        field = [] if self._path is None else [self._path]
        return models.PayloadSelectorInclude(include=[*field, *ours])

    def _point(self, record: Any) -> AttachablePoint:
        payload = record.payload or {}
        reference = payload.get(TOKENS_KEY)
        return AttachablePoint(
            record.id,
            None if self._field is None else field_value(payload, self._field),
            reference if isinstance(reference, Mapping) else None,
        )

    def _mark(self, batch: Sequence[_Mark]) -> None:
        from qdrant_client import models

        local = self._connection.is_local
        if local:  # local mode scans all points to apply a filter
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
            else:  # a list of ids raises an error for ids that do not exist
                has_id = models.HasIdCondition(has_id=[mark.id])
                setting.filter = models.Filter(must=[has_id])
            operations.append(models.SetPayloadOperation(set_payload=setting))
        if operations:
            self._client.batch_update_points(self._name, operations, wait=True)
