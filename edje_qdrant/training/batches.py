"""Training batches, each determined by its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from edje_qdrant.data.pairs import PairSource
from edje_qdrant.encoders import clean_caption
from edje_qdrant.model import EDJEModel
from edje_qdrant.training.grouping import RowOrder
from edje_qdrant.training.objectives import Batch
from edje_qdrant.training.recipe import Recipe
from edje_qdrant.training.vision import VisionSource

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Batches", "captions_true_of", "number_of"]


class Batches:
    """Create the batches of a run: batch number -> this process's pairs.

    Every process draws the same global batch and uses its part of it.

    Args:
        model: Encodes and tokenizes the captions.
        sources: Images and captions.
        order: The sources' rows of each batch.
        vision: The frozen encoder's output for the images.
        recipe: Batch size, shares and seed.
        steps: Optimiser steps of the whole run.
        accelerator: Knows the number of this process and of all.
    """

    def __init__(
        self, model: EDJEModel, sources: Sequence[PairSource], order: RowOrder,
        vision: VisionSource, recipe: Recipe, steps: int, accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self._model, self._sources, self._vision = model, sources, vision
        size, processes = recipe.optimisation.batch_size, accelerator.num_processes
        first = size * accelerator.process_index
        self._rows, self._size = slice(first, first + size), size * processes
        self._seed, self._alone = recipe.seed, processes == 1
        batches = steps * recipe.optimisation.accumulate
        self._matching_from = recipe.objectives.matching_from * batches
        self._hard_from = recipe.objectives.hard_from * batches
        self._last = batches - 1
        self._order = order

    def __call__(self, number: int) -> Batch:
        """Return the batch of this number.

        Raises:
            ImageReadError: No image of the batch can be read.
        """
        seen = self._vision.batch(self._drawn(number), number)
        if number < self._last:
            self._vision.prefetch(self._drawn(number + 1), number + 1)
        captions = self._captions(seen.rows, number)
        model = self._model
        ids, mask = model.tokenize(captions)
        device = ids.device
        own = [self._sources[source].captions(row) for source, row in seen.rows.tolist()]
        true = torch.from_numpy(captions_true_of(captions, own)).to(device)
        keys = [f"{source} {self._sources[source].key(row)}" for source, row in seen.rows.tolist()]
        return Batch(
            vision_tokens=seen.tokens.to(device),
            image_embeddings=seen.embeddings.to(device),
            # Copied via numpy: autograd does not accept tensors created in inference mode.
            text_embeddings=torch.from_numpy(model.encode_texts(captions)).to(device),
            input_ids=ids,
            attention_mask=mask,
            image_ids=torch.tensor([number_of(k) for k in keys], device=device),
            caption_ids=torch.tensor([number_of(clean_caption(c)) for c in captions]).to(device),
            seed=self._seed * 1_000_003 + number,
            matching=number >= self._matching_from,
            hard=number >= self._hard_from,
            true_pairs=true if self._alone else None,
        )

    def _drawn(self, number: int) -> NDArray[np.int64]:
        return self._order.batch(number, self._size)[self._rows]

    def _captions(self, rows: NDArray[np.int64], number: int) -> list[str]:
        """Draw one caption of each image."""
        draws = np.random.default_rng([self._seed, number]).random(self._size)[self._rows]
        chosen = []
        for (source, row), draw in zip(rows.tolist(), draws, strict=True):
            captions = self._sources[source].captions(row)
            chosen.append(captions[int(draw * len(captions))])
        return chosen


def captions_true_of(texts: Sequence[str], captions: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """Return which texts are captions of which images: `(b, b)`, texts by images.

    Args:
        texts: One caption of each of `b` images.
        captions: All captions of each image.
    """
    cleaned = [clean_caption(text) for text in texts]
    every = [{clean_caption(caption) for caption in own} for own in captions]
    return np.array([[text in own for own in every] for text in cleaned], dtype=np.bool_)


def number_of(text: str) -> int:
    """Hash a text to an int64; collisions are practically impossible."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
