"""Which points a filter lets through, told from their payloads."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.index.faiss.database import Database, Row

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["Matching", "lets_through"]

# Filters whose answers are kept, each 8 bytes for a point that it lets through.
_KEPT = 8

# Texts looked for at once, where any of them will do.
_SOUGHT = 16

# The points' only vector, as the client calls it in `HasVectorCondition`.
_VECTORS = {"": True}


def lets_through(chosen: models.Filter | None, row: Row) -> bool:
    """Return whether the client's own filter, as it works in memory, lets a point through."""
    from qdrant_client.local.payload_filters import check_filter

    return chosen is None or check_filter(chosen, row.payload, row.id, _VECTORS)


def required_texts(chosen: models.Filter) -> list[list[str]]:
    """Return lists of texts: of each list, a payload that is let through holds one at least."""
    must = chosen.must if isinstance(chosen.must, list) else [chosen.must]
    required = []
    for condition in must:
        match: Any = getattr(condition, "match", None)
        kind = type(match).__name__
        texts = [match.value] if kind == "MatchValue" else match.any if kind == "MatchAny" else []
        if 0 < len(texts) <= _SOUGHT and all(isinstance(text, str) for text in texts):
            required.append([*texts])
    return required


class Matching:
    """Go through payloads for a filter, and keep the answer until something is written.

    Those that lack a text which the filter asks for are not looked into.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._answers: OrderedDict[str, NDArray[np.int64]] = OrderedDict()
        self._turn = Lock()
        self._writes = 0

    def forget(self) -> None:
        """Forget all answers: call this before each write, and after it."""
        with self._turn:
            self._writes += 1
            self._answers.clear()

    def rows(self, chosen: models.Filter) -> NDArray[np.int64]:
        """Return the rows of the points that the filter lets through, ascending."""
        key = chosen.model_dump_json()
        with self._turn:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
            before = self._writes
        pages = self._database.by_row(required_texts(chosen))
        found = [row.row for page in pages for row in page if lets_through(chosen, row)]
        rows = np.array(found, np.int64)
        with self._turn:
            # Odd: something is being written. Another number: something was, meanwhile.
            if self._writes == before and before % 2 == 0:
                self._answers[key] = rows
                if len(self._answers) > _KEPT:
                    self._answers.popitem(last=False)
        return rows

    @property
    def moment(self) -> int:
        """Return a number that stays the same, and even, as long as nothing is written."""
        return self._writes
