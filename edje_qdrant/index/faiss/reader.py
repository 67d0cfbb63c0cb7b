"""What is read from a faiss index: searches, payloads, vectors, counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import StoreError
from edje_qdrant.index.faiss.database import Database, Row
from edje_qdrant.index.faiss.matching import Matching, lets_through
from edje_qdrant.index.faiss.snapshot import Snapshot
from edje_qdrant.index.filters.filter import Filter, qdrant_filter
from edje_qdrant.index.folder import reporting
from edje_qdrant.index.ranking import SLACK, rank
from edje_qdrant.index.recommend import Strategy, average, check_examples, example_vectors
from edje_qdrant.index.validate import check_batch_size, check_ids, check_limit, check_vectors
from edje_qdrant.types import Candidate, Point

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["FaissReader"]

_Found = list[list[tuple[int, float]]]


class FaissReader:
    """Read an open index; what writes it is in `FaissIndex`."""

    def __init__(self, folder: Path, database: Database, snapshot: Snapshot) -> None:
        self._folder = folder
        self._dim = database.dim
        self._database: Database | None = database
        self._snapshot = snapshot
        self._matching = Matching(database)
        self._writes = RLock()

    def existing(self, image_ids: Sequence[str]) -> set[str]:
        ids = check_ids(image_ids)
        with self._engine() as database:
            return {*database.rows_of(ids)}

    def search(
        self,
        vectors: NDArray[np.float32],
        limit: int,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,  # noqa: ARG002 - nobody else is asked
    ) -> list[list[Candidate]]:
        """Find the nearest points of each of `(q, d)` vectors, best first, `limit` at most.

        A filter goes through every payload the first time; its answer is kept until something is
        written.

        Raises:
            ConfigError: The vectors do not fit the index, `limit` is below 1, or the filter cannot
                be used.
            StoreError: The index is closed, or the engine failed.
        """
        check_limit(limit)
        queries = check_vectors(vectors, self._dim)
        chosen = qdrant_filter(filter)
        with self._engine() as database:

            def look(among: NDArray[np.int64] | None) -> _Found:
                nobody = np.empty(0, np.int64)
                return self._snapshot.nearest(queries, limit + SLACK, among, nobody)

            return self._ranked(database, look, limit, chosen)

    def recommend(
        self,
        positive_ids: Sequence[str],
        negative_ids: Sequence[str],
        limit: int,
        *,
        filter: Filter | None = None,
        strategy: Strategy = "average_vector",
    ) -> list[Candidate]:
        """Find points like the positive examples and unlike the negative ones, best first.

        With `best_score` every vector is read from the disk and compared.

        Raises:
            ConfigError: An id is unknown, examples, limit or strategy do not fit, or the filter
                cannot be used.
            StoreError: The index is closed, or the engine failed.
        """
        check_limit(limit)
        ids = check_examples(positive_ids, negative_ids, strategy)
        chosen = qdrant_filter(filter)
        named = [*ids.positive, *ids.negative]
        positive, negative = example_vectors(self.vectors(named), ids)
        middle = average(positive, negative, strategy)
        with self._engine() as database:

            def look(among: NDArray[np.int64] | None) -> _Found:
                excluded = np.array([*database.rows_of(named).values()], np.int64)
                if middle is None:
                    return [_best(database, positive, negative, limit + SLACK, among, excluded)]
                query = check_vectors(middle[np.newaxis], self._dim)
                return self._snapshot.nearest(query, limit + SLACK, among, excluded)

            return self._ranked(database, look, limit, chosen)[0]

    def retrieve(
        self, image_ids: Sequence[str], *, tokens: bool = True
    ) -> dict[str, Mapping[str, Any]]:
        ids = check_ids(image_ids)
        with self._engine() as database:
            return {**database.payloads(ids, tokens=tokens)}

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        ids = check_ids(image_ids)
        with self._engine() as database:
            return database.vectors(ids)

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

        Other threads may write between pages, as the caller may; see `VectorIndex.scroll`.

        Raises:
            ConfigError: `batch_size` is below 1, or the filter cannot be used.
            StoreError: The index is closed, at once or before a page, or the engine failed.
        """
        check_batch_size(batch_size)
        chosen = qdrant_filter(filter)
        with self._engine():
            return self._pages(batch_size, chosen, payload, tokens, vectors)

    def count(self, filter: Filter | None = None) -> int:
        chosen = qdrant_filter(filter)
        with self._engine():
            return self._snapshot.count if chosen is None else len(self._matching.rows(chosen))

    def payload_indexes(self) -> dict[str, str]:
        """Return nothing, as there are none: every filter goes through all payloads."""
        with self._engine():
            return {}

    def _ranked(
        self, database: Database, look: Any, limit: int, chosen: models.Filter | None
    ) -> list[list[Candidate]]:
        """Rank what `look` finds among the rows it is given.

        What is written meanwhile may take points out of what was found, or out of what the filter
        lets through. Then it is done again while nobody may write.
        """
        for turn in (nullcontext(), self._writes):
            with turn:
                moment = self._matching.moment
                found: _Found = look(None if chosen is None else self._matching.rows(chosen))
                rows = {row for hits in found for row, _ in hits}
                points = database.points([*rows])
                quiet = moment % 2 == 0 and moment == self._matching.moment
                if len(points) == len(rows) and (chosen is None or quiet):
                    break
        return [
            rank(
                ((points[row][0], score, points[row][1]) for row, score in hits if row in points),
                limit,
            )
            for hits in found
        ]

    def _pages(
        self,
        batch_size: int,
        chosen: models.Filter | None,
        payload: bool,
        tokens: bool,
        vectors: bool,
    ) -> Iterator[list[Point]]:
        last = ""
        while True:
            with self._engine() as database:
                page: list[Row] = []
                while len(page) < batch_size and (
                    more := database.after_id(last, batch_size - len(page))
                ):
                    last = more[-1].id
                    page += [row for row in more if lets_through(chosen, row)]
                ids = [row.id for row in page]
                whole = database.payloads(ids, tokens=True) if payload and tokens else {}
                wide = database.vectors(ids) if vectors else {}
            nothing = np.empty(0, np.float32)
            points = [
                Point(
                    row.id,
                    wide[row.id] if vectors else nothing,
                    (whole[row.id] if tokens else row.payload) if payload else {},
                )
                for row in page
                # Another thread may have deleted it between these readings.
                if not (vectors and row.id not in wide)
                and not (payload and tokens and row.id not in whole)
            ]
            if points:
                yield points
            if len(page) < batch_size:
                return

    @contextmanager
    def _engine(self) -> Iterator[Database]:
        database = self._database
        closed = f"the index at {self._folder} is closed; open it again"
        if database is None:
            raise StoreError(closed)
        try:
            with reporting(self._folder):
                yield database
        except StoreError as error:
            if self._database is None:  # another thread closed it meanwhile
                raise StoreError(closed) from error
            raise


def _best(
    database: Database,
    positive: NDArray[np.float32],
    negative: NDArray[np.float32],
    wanted: int,
    among: NDArray[np.int64] | None,
    excluded: NDArray[np.int64],
) -> list[tuple[int, float]]:
    """Find the points that fit best by `best_score`, as Qdrant has it."""
    best: list[tuple[int, float]] = []
    for rows, vectors in database.vectors_after(0):
        kept = ~np.isin(rows, excluded)
        if among is not None:
            kept &= np.isin(rows, among)
        nearest = _nearest(vectors, positive)
        avoided = _nearest(vectors, negative)
        scores = np.where(nearest > avoided, _squeezed(nearest), -_squeezed(avoided))
        best += zip(rows[kept].tolist(), scores[kept].tolist(), strict=True)
        best = sorted(best, key=lambda item: -item[1])[:wanted]
    return best


def _nearest(vectors: NDArray[np.float32], examples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each vector's cosine with the nearest example, minus infinity without any."""
    if not len(examples):
        return np.full(len(vectors), -np.inf)
    cosines: NDArray[np.float64] = (vectors @ examples.T).max(axis=1).astype(np.float64)
    return cosines


def _squeezed(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return numbers between 0 and 1 in the order of the cosines."""
    with np.errstate(invalid="ignore"):  # where there is no example
        squeezed: NDArray[np.float64] = (cosines / (1 + np.abs(cosines)) + 1) / 2
    return squeezed
