"""What a match rests on: a map of heat over the image, a weight and a map for every word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError

__all__ = ["Explanation"]


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Hold which regions of an image and which words of a text carried their match.

    A map of heat is not negative and sums to one, or is all zeros where nothing spoke for the
    match; its cells are the encoder's patches, row by row.

    Attributes:
        text: The text, as it was given.
        score: The joint encoder's logit.
        heat: `(h, w)` float32, where the image raises the score.
        words: The text's words, as a person reads them; what the model drops, such as a lone
            dash, is left out.
        word_weights: `(len(words),)` float32: how much likelier the image makes each word, in
            nats. About zero says that the image tells nothing of it; below zero, that it speaks
            against it.
        word_heat: `(len(words), h, w)` float32, where the image speaks for each word. A weight
            says how much; a word of no weight has a map as well. Words past those that the model
            reads have weight zero and no heat.
        tokens: `(m,)` float32, what each compressed token adds to the score; the sum is the score
            less that of an image of one colour.
        area: What part of the image the maps cover: left, top, right and bottom as shares of its
            width and height. `(0, 0, 1, 1)` is all of it; a cropping encoder's lies inside that,
            and one that fills images up has an area that reaches beyond.
    """

    text: str
    score: float
    heat: NDArray[np.float32]
    words: tuple[str, ...]
    word_weights: NDArray[np.float32]
    word_heat: NDArray[np.float32]
    tokens: NDArray[np.float32]
    area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    def resize(self, width: int, height: int, *, word: int | None = None) -> NDArray[np.float32]:
        """Return the heat at an image's size, smoothed over the borders of the patches.

        Args:
            width: Of the image, in pixels, or of a thumbnail of it.
            height: Likewise.
            word: Index of the word whose heat to return; the whole text's by default.

        Returns:
            `(height, width)`, zero where the encoder did not look; it sums to one, or is all zeros.

        Raises:
            ConfigError: A side is less than one pixel, or there is no such word.
        """
        if width < 1 or height < 1:
            raise ConfigError(f"an image has at least one pixel, not {width} x {height}")
        if word is not None and not 0 <= word < len(self.words):
            raise ConfigError(f"no word {word}: the text has {len(self.words)}, counted from 0")
        heat = self.heat if word is None else self.word_heat[word]
        left, top, right, bottom = self.area
        down = _spread(height, heat.shape[0], top, bottom)  # (height, h)
        across = _spread(width, heat.shape[1], left, right)  # (width, w)
        large = down @ heat.astype(np.float64) @ across.T
        total = large.sum()
        if total > 0:
            large /= total
        resized: NDArray[np.float32] = large.astype(np.float32)
        return resized

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as a JSON object."""
        return {
            "text": self.text,
            "score": self.score,
            "words": list(self.words),
            "word_weights": self.word_weights.tolist(),
            "heat": self.heat.tolist(),
            "word_heat": self.word_heat.tolist(),
            "tokens": self.tokens.tolist(),
            "area": list(self.area),
        }


def _spread(pixels: int, cells: int, start: float, end: float) -> NDArray[np.float64]:
    """Return `(pixels, cells)`: how much of each cell a pixel shows, by a quadratic B-spline.

    The spline is smooth and never negative, as heat is; cubic interpolation undershoots.
    """
    place = (np.arange(pixels) + 0.5) / pixels  # shares of the image
    place = (place - start) / (end - start) * cells - 0.5  # in cells, from the first one's middle
    distance = np.abs(place[:, None] - np.arange(cells))
    near = 0.75 - distance**2
    far = 0.5 * np.clip(1.5 - distance, 0, None) ** 2
    weights = np.where(distance < 0.5, near, far)
    inside = (place >= -0.5) & (place <= cells - 0.5)
    total = np.where(inside, weights.sum(axis=1), 1.0)  # less than one along the borders
    spread: NDArray[np.float64] = weights * inside[:, None] / total[:, None]
    return spread
