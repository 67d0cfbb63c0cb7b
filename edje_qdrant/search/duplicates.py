"""Near-duplicates among the candidates of a search: one of each is a hit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.likeness import NEAR_DUPLICATES, leaders
from edje_qdrant.types import Candidate

__all__ = ["Looks"]


class Looks:
    """Compare candidates by their embeddings, which are read once.

    Args:
        collection: The collection searched.
        likeness: From which likeness on two images are near-duplicates; see `Likeness`. True for
            the default.
    """

    def __init__(self, collection: ImageCollection, likeness: bool | float) -> None:
        self._collection = collection
        self._likeness = NEAR_DUPLICATES if likeness is True else likeness
        self._least: float | None = None
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def read(self, found: Iterable[Sequence[Candidate]]) -> None:
        """Read the embeddings of the candidates of several queries.

        Raises:
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        ids = {candidate.image_id for candidates in found for candidate in candidates}
        missing = sorted(ids - self._vectors.keys())
        if missing:
            self._vectors.update(self._collection.index.vectors(missing))
        if self._least is None:
            self._least = self._collection.likeness.cosine(self._likeness)

    def collapsed(
        self, candidates: Sequence[Candidate], order: Sequence[int]
    ) -> Mapping[int, tuple[str, ...]]:
        """Return the rows to show, in order, each with the ids of the images that it stands for.

        An image is left out if one that is shown before it is its near-duplicate; the first such
        image stands for it. A candidate whose embedding was not read stands for itself.

        Args:
            candidates: Whose embeddings were read.
            order: Rows of the candidates, best first.
        """
        if not order:
            return {}
        assert self._least is not None  # read
        ids = [candidates[row].image_id for row in order]
        width = self._collection.contract.embedding_dim
        vectors = np.zeros((len(ids), width), np.float32)
        for place, image_id in enumerate(ids):
            if image_id in self._vectors:  # it was not deleted in between
                vectors[place] = self._vectors[image_id]
        shown: dict[int, list[str]] = {}
        for place, leader in enumerate(leaders(vectors, self._least)):
            if leader == place:
                shown[order[place]] = []
            else:
                shown[order[leader]].append(ids[place])
        return {row: tuple(others) for row, others in shown.items()}
