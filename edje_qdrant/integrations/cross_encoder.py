"""Rank images by a text with the calls of sentence-transformers' cross-encoders.

Nothing but this package is needed.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edje_qdrant.checks import check_number, check_texts
from edje_qdrant.errors import ConfigError
from edje_qdrant.images import ignore_decoder_warnings, open_upright
from edje_qdrant.integrations.hits import ImageScorer
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.queries import read_pixels
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.threads import batches

__all__ = ["EDJECrossEncoder", "Picture"]

# Pairs whose tokens are in memory at a time.
_PAIRS = 1024

#: A file's path, an image that Pillow opened, or the id of an image in a collection.
Picture: TypeAlias = "str | Path | Image.Image | int"


class EDJECrossEncoder:
    """Score texts against images that need not be in any collection.

    Images that are not in a collection go through the vision tower at every call, which takes
    most of the time; those of a collection have their tokens already.

    Args:
        model: A model, or what `EDJEModel.from_pretrained` takes.
        collection: `TwoStageRetriever` or `AttachedCollection`, where images may be given by
            their ids: UUIDs as text, or whole numbers. Its model must be `model`.
        device: Where a model that is loaded here goes; CUDA where there is one, by default.

    Examples:
        >>> encoder = EDJECrossEncoder("demo")
        >>> encoder.rank("a red star", ["one.png", "two.png"], top_k=1)
        [{'corpus_id': 1, 'score': 3.2}]
    """

    def __init__(
        self,
        model: EDJEModel | str | Path,
        *,
        collection: ImageScorer | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if not isinstance(model, EDJEModel):
            model = EDJEModel.from_pretrained(model, device=device)
        self._model = model
        self._collection = collection
        self._reranker = Reranker(model)

    def rank(
        self,
        query: str,
        documents: Sequence[Picture],
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
    ) -> list[dict[str, Any]]:
        """Rank images by how well they fit a text.

        Args:
            query: The text.
            documents: `n` images.
            top_k: How many to return; all by default.
            return_documents: Also return the images themselves.
            batch_size: Images encoded at a time.

        Returns:
            `{"corpus_id": place in documents, "score": logit}`, best first, with `"document"` where
            that was asked for.

        Raises:
            ConfigError: The text has no word in it, or an argument cannot be used.
            ImageReadError: An image cannot be read.
            TokensNotFoundError: The collection has no such image.
        """
        check_number("top_k", top_k, optional=True)
        scores = self._scores([(query, picture) for picture in documents], batch_size)
        order = np.argsort(-scores, kind="stable")[:top_k]
        ranked: list[dict[str, Any]] = []
        for place in map(int, order):
            ranked.append({"corpus_id": place, "score": float(scores[place])})
            if return_documents:
                ranked[-1]["document"] = documents[place]
        return ranked

    def predict(
        self, pairs: Sequence[tuple[str, Picture]], batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Score pairs of a text and an image.

        Args:
            pairs: `n` pairs; an image that comes several times is encoded once.
            batch_size: Images encoded at a time.

        Returns:
            `(n,)` logits, in order; higher is better.

        Raises:
            ConfigError: As `rank`.
            ImageReadError: As `rank`.
            TokensNotFoundError: As `rank`.
        """
        return self._scores(pairs, batch_size)

    def _scores(self, pairs: Sequence[tuple[str, Picture]], batch_size: int) -> NDArray[np.float32]:
        check_number("batch_size", batch_size)
        check_texts("pairs", list(dict.fromkeys(text for text, _ in pairs)))
        scores = np.empty(len(pairs), np.float32)
        stored: dict[str, list[int]] = {}  # text -> rows
        fresh: dict[Any, list[int]] = {}  # image -> rows
        for row, (text, picture) in enumerate(pairs):
            if self._is_id(picture):
                stored.setdefault(text, []).append(row)
            else:
                key = id(picture) if isinstance(picture, Image.Image) else str(picture)
                fresh.setdefault(key, []).append(row)
        for text, rows in stored.items():
            assert self._collection is not None
            scores[rows] = self._collection.score(text, [pairs[row][1] for row in rows])
        pictures = [*fresh.values()]
        for start in range(0, len(pictures), batch_size):
            self._score_pictures(pairs, pictures[start : start + batch_size], scores)
        return scores

    def _score_pictures(
        self,
        pairs: Sequence[tuple[str, Picture]],
        pictures: Sequence[Sequence[int]],
        scores: NDArray[np.float32],
    ) -> None:
        """Encode images, each given by the rows of its pairs, and score these in place."""
        with warnings.catch_warnings():
            ignore_decoder_warnings()
            pixels = [self._pixels(pairs[rows[0]][1]) for rows in pictures]
        tokens = self._model.encode_pixels(torch.cat(pixels)).tokens
        todo = [(place, row) for place, rows in enumerate(pictures) for row in rows]
        for part in batches(todo, _PAIRS):
            places, rows = zip(*part, strict=True)
            texts = [pairs[row][0] for row in rows]
            scores[[*rows]] = self._reranker.score_pairs(texts, tokens[[*places]])

    def _pixels(self, picture: Picture) -> Tensor:
        if isinstance(picture, Image.Image):
            name = str(getattr(picture, "filename", "") or "that was passed")
            return self._model.preprocess([open_upright(picture, name)])
        assert isinstance(picture, str | Path)
        return read_pixels(self._model, os.fspath(picture))

    def _is_id(self, picture: Picture) -> bool:
        if isinstance(picture, int) and not isinstance(picture, bool):
            if self._collection is None:
                raise ConfigError(
                    f"{picture!r} is an id, and there is no collection to look it up in; pass "
                    "collection="
                )
            return True
        if not isinstance(picture, str | Path | Image.Image):
            raise ConfigError(
                f"an image is a path, one that Pillow opened or an id, not a "
                f"{type(picture).__name__}"
            )
        return self._collection is not None and isinstance(picture, str) and _is_uuid(picture)


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
