"""Stage 1 behind one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index.filters.field_paths import TOKENS_KEY
from edje_qdrant.index.filters.filter import Filter
from edje_qdrant.index.payload_indexes import PayloadKind
from edje_qdrant.index.recommend import Strategy
from edje_qdrant.types import Candidate, Payload, Point

__all__ = ["TOKENS_KEY", "VectorIndex"]


class VectorIndex(Protocol):
    """Hold one vector and one payload for each image, and find the nearest by cosine.

    Every method but `metadata` and `close` raises StoreError once the index is closed.
    """

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return the JSON object given at create, or to `set_metadata` since."""

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata in one step: whoever reads it finds the old or the new, whole."""

    def reload_metadata(self) -> Mapping[str, Any]:
        """Read the metadata again, as another process may have replaced it, and return it."""

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points, replacing those with the same id; visible to searches on return."""

    def set_payload(self, payloads: Mapping[str, Payload]) -> None:
        """Set keys of stored payloads, id -> key -> value; visible to searches on return.

        A key's value is replaced whole, however deep it is; other keys and the vector stay as
        they are. Unknown ids are ignored. A value of None at the top is refused.
        """

    def remove_payload_keys(self, image_ids: Sequence[str], keys: Sequence[str]) -> None:
        """Remove top-level keys from stored payloads; unknown ids and keys are ignored.

        A dot is part of the key's name here.
        """

    def flush(self) -> None:
        """Make everything written so far survive a killed process."""

    def optimize(self) -> None:
        """Build the search graph where the engine does so on request."""

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are stored."""

    def search(
        self,
        vectors: NDArray[np.float32],
        limit: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> list[list[Candidate]]:
        """Find the nearest points of each of `(q, d)` vectors, best first, `limit` at most.

        Args:
            vectors: What to look for.
            limit: Points to find for each.
            filter: Which points to look among; None or `{}` for all. A filter on a field without
                an index (see `create_payload_index`) goes through every payload.
            timeout: Seconds after which an engine that is elsewhere is not asked again; one that
                works in this process takes as long as it takes.
        """

    def recommend(
        self,
        positive_ids: Sequence[str],
        negative_ids: Sequence[str],
        limit: int,
        *,
        filter: Filter | None = None,
        strategy: Strategy = "average_vector",
    ) -> list[Candidate]:
        """Find points like some stored ones and unlike others, best first, `limit` at most.

        The examples themselves are not among them. With `best_score` the candidates' scores are no
        cosines: the engines compute them, and only their order means something.

        Args:
            positive_ids: What to come near to; `best_score` can do without.
            negative_ids: What to keep away from; may be empty.
            limit: Points to find.
            filter: Which points to look among; None or `{}` for all.
            strategy: How examples are put together.
        """

    def create_payload_index(self, field: str, kind: PayloadKind) -> None:
        """Index a payload field, so that filters on it need not read payloads.

        What filters let through stays the same as long as the field holds what `kind` says: other
        values are not in the index, and conditions may find them no more, or find them wrongly. An
        index of another kind on the same field is replaced.

        Args:
            field: Its path in Qdrant's writing: `album`, `camera.year`, with a name of other signs
                than letters, digits, _ and - in double quotes. Fields of the objects in a list are
                refused; what a plain list holds is indexed by the list's name.
            kind: What the field holds.
        """

    def payload_indexes(self) -> dict[str, str]:
        """Return field path -> kind of every index; none where the engine keeps none."""

    def retrieve(
        self, image_ids: Sequence[str], *, tokens: bool = True
    ) -> dict[str, Mapping[str, Any]]:
        """Return id -> payload, with or without token bytes; unknown ids are left out."""

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return id -> `(d,)` vector of unit length; unknown ids are left out."""

    def scroll(
        self,
        *,
        batch_size: int = 256,
        filter: Filter | None = None,
        payload: bool = True,
        tokens: bool = False,
        vectors: bool = False,
    ) -> Iterator[list[Point]]:
        """Yield every point that the filter lets through once, in order of id, in pages.

        Points written or deleted meanwhile may or may not be seen; all others are, exactly once.
        So the points of a page may be deleted or changed before the next one is asked for.

        Args:
            batch_size: Points in a page, at most; a page is in memory at a time.
            filter: Which points; None or `{}` for all.
            payload: Whether to read payloads; if not, they are empty.
            tokens: Whether payloads come with `_edje.tokens`.
            vectors: Whether to read vectors, `(d,)` float32; if not, they are of width 0.
        """

    def delete(self, image_ids: Sequence[str]) -> None:
        """Remove points; unknown ids are ignored."""

    def delete_matching(self, filter: Filter) -> None:
        """Remove every point that the filter lets through; an empty one is refused."""

    def count(self, filter: Filter | None = None) -> int:
        """Return the number of points that the filter lets through, of all where there is none."""

    def close(self) -> None:
        """Flush and let go of files and connections; a second call does nothing."""
