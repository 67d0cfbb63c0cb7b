"""A class with the methods of sentence-transformers' `CrossEncoder` that ranks images by a text.

sentence-transformers itself is not needed.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edje_qdrant.checks import check_kind, check_list, check_number, check_texts
from edje_qdrant.errors import ConfigError
from edje_qdrant.images import ignore_decoder_warnings
from edje_qdrant.integrations.hits import ImageScorer
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.model.queries import read_pixels
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.threads import batches

__all__ = ["EDJECrossEncoder", "RankableImage"]

# Pairs scored at a time, to bound the memory for their tokens.
_PAIRS = 1024

#: A file path, an image opened with Pillow, or the id of an image in a collection.
RankableImage: TypeAlias = "str | Path | Image.Image | int"


class EDJECrossEncoder:
    """Score texts against images, which need not be in a collection.

    Images that are not in a collection are encoded at every call, which takes most of the time;
    the tokens of those in a collection are read from it.

    Args:
        model: A model, or the argument of `EDJEModel.from_pretrained`.
        collection: A `TwoStageRetriever` or `AttachedCollection` with the same model; images may
            then be given by their ids: UUIDs as text, or integers.
        device: The device for a model that is loaded here; by default CUDA if available.
        precision: Precision of the joint encoder, see `Reranker`; `collection` has its own.

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
        precision: Precision = "auto",
    ) -> None:
        if not isinstance(model, EDJEModel):
            model = EDJEModel.from_pretrained(model, device=device)
        self._model = model
        self._collection = collection
        self._reranker = Reranker(model, precision=precision)

    @property
    def precision(self) -> str:
        """Return the precision of the joint encoder; see `Reranker.precision`."""
        return self._reranker.precision

    def rank(
        self,
        query: str,
        documents: Sequence[RankableImage],
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
    ) -> list[dict[str, Any]]:
        """Rank images by how well they match a text.

        Args:
            query: The text.
            documents: `n` images.
            top_k: Number of images to return; all by default.
            return_documents: Also return the images themselves.
            batch_size: Images encoded at a time.

        Returns:
            `{"corpus_id": index in documents, "score": logit}`, best first, with `"document"` if
            `return_documents` is set.

        Raises:
            ConfigError: The text contains no word, or an argument is invalid.
            ImageReadError: An image cannot be read.
            TokensNotFoundError: The collection does not contain an image.
        """
        check_number("top_k", top_k, optional=True)
        check_texts("query", [query])
        check_list("documents", documents)
        scores = self._scores([(query, image) for image in documents], batch_size)
        order = np.argsort(-scores, kind="stable")[:top_k]
        ranked: list[dict[str, Any]] = []
        for place in map(int, order):
            ranked.append({"corpus_id": place, "score": float(scores[place])})
            if return_documents:
                ranked[-1]["document"] = documents[place]
        return ranked

    def predict(
        self, pairs: Sequence[tuple[str, RankableImage]], batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Score pairs of a text and an image.

        Args:
            pairs: `n` pairs; an image that occurs several times is encoded once.
            batch_size: Images encoded at a time.

        Returns:
            `(n,)` logits, in the order of `pairs`; higher is better.

        Raises:
            ConfigError: As `rank`.
            ImageReadError: As `rank`.
            TokensNotFoundError: As `rank`.
        """
        return self._scores(pairs, batch_size)

    def _scores(
        self, pairs: Sequence[tuple[str, RankableImage]], batch_size: int
    ) -> NDArray[np.float32]:
        check_number("batch_size", batch_size)
        check_list("pairs", pairs)
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ConfigError(f"pairs holds a {type(pair).__name__}; give (text, image)")
            check_kind("a pair's text", pair[0], str, "a text")
        check_texts("pairs", list(dict.fromkeys(text for text, _ in pairs)))
        scores = np.empty(len(pairs), np.float32)
        stored: dict[str, list[int]] = {}  # text -> rows of pairs
        unstored: dict[Any, list[int]] = {}  # image -> rows of pairs
        for row, (text, image) in enumerate(pairs):
            if self._is_id(image):
                stored.setdefault(text, []).append(row)
            else:
                key = id(image) if isinstance(image, Image.Image) else str(image)
                unstored.setdefault(key, []).append(row)
        for text, rows in stored.items():
            assert self._collection is not None
            scores[rows] = self._collection.score(text, [pairs[row][1] for row in rows])
        for batch in batches(unstored.values(), batch_size):
            self._score_unstored(pairs, batch, scores)
        return scores

    def _score_unstored(
        self,
        pairs: Sequence[tuple[str, Any]],
        images: Sequence[Sequence[int]],
        scores: NDArray[np.float32],
    ) -> None:
        """Encode images, each given by the rows of its pairs, and fill in the scores of these."""
        with warnings.catch_warnings():
            ignore_decoder_warnings()
            pixels = [read_pixels(self._model, pairs[rows[0]][1]) for rows in images]
        tokens = self._model.encode_pixels(torch.cat(pixels)).tokens  # (images, m, d_text)
        places_and_rows = [(place, row) for place, rows in enumerate(images) for row in rows]
        for part in batches(places_and_rows, _PAIRS):
            places, rows = zip(*part, strict=True)
            texts = [pairs[row][0] for row in rows]
            scores[[*rows]] = self._reranker.score_pairs(texts, tokens[[*places]])

    def _is_id(self, image: RankableImage) -> bool:
        if isinstance(image, int) and not isinstance(image, bool):
            if self._collection is None:
                raise ConfigError(
                    f"{image!r} is an id, but there is no collection to look it up in; pass "
                    "collection="
                )
            return True
        if not isinstance(image, str | Path | Image.Image):
            raise ConfigError(
                f"an image must be a path, a Pillow image or an id, not a {type(image).__name__}"
            )
        return self._collection is not None and isinstance(image, str) and _is_uuid(image)


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
