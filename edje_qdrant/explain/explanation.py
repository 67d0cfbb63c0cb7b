"""`Explanation`: a heat map for a match, and a weight and a heat map for every word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.errors import ConfigError
from edje_qdrant.text import shorten_text

__all__ = ["Explanation"]

#: What the short form has of the text, in characters, and how many of the words that weigh most.
_SHOWN_TEXT = 60
_SHOWN_WORDS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """The regions of an image and the words of a text that a match rests on.

    A heat map is non-negative and sums to one, or is all zeros if nothing supports the match. Its
    cells are the encoder's patches, row by row.

    Attributes:
        text: The text as given.
        score: The joint encoder's logit.
        heat: `(h, w)` float32, where the image raises the score.
        words: The text's words as written, without those that clean-up removes, such as a lone
            dash.
        word_weights: `(len(words),)` float32: the gain of each word's log-probability by the image,
            in nats. About zero: the image says nothing about the word; below zero: the image
            contradicts it.
        word_heat: `(len(words), h, w)` float32, where the image supports each word. Words of low
            weight have a map as well. Words beyond those that the model reads have weight zero and
            no heat.
        tokens: `(m,)` float32, contribution of each compressed token to the score; the sum is the
            score minus that of an image of one colour.
        area: Part of the image that the maps cover: left, top, right and bottom as shares of its
            width and height. `(0, 0, 1, 1)` is the whole image; the area is smaller for an encoder
            that crops, and extends beyond the image for one that pads.
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
        """Return a heat map at the size of an image, interpolated between patches.

        Args:
            width: Of the image or a thumbnail of it, in pixels.
            height: Likewise.
            word: Index of a word; by default the heat of the whole text.

        Returns:
            `(height, width)`, zero outside `area`; it sums to one, or is all zeros.

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

    def __repr__(self) -> str:
        best = np.argsort(-self.word_weights, kind="stable")[:_SHOWN_WORDS]
        words = ", ".join(f"{self.words[at]} {self.word_weights[at]:+.1f}" for at in best)
        text = shorten_text(self.text, lambda shown: len(shown) <= _SHOWN_TEXT)
        rows, columns = self.heat.shape
        return (
            f"Explanation({text!r}, score={self.score:.3f}, words: {words}; "
            f"heat {rows} x {columns})"
        )

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
    """Return interpolation weights `(pixels, cells)`, by a quadratic B-spline.

    The spline is smooth and non-negative, as heat is; cubic interpolation would undershoot.
    """
    place = (np.arange(pixels) + 0.5) / pixels  # shares of the image
    place = (place - start) / (end - start) * cells - 0.5  # in cells, from the first one's centre
    distance = np.abs(place[:, None] - np.arange(cells))
    near = 0.75 - distance**2
    far = 0.5 * np.clip(1.5 - distance, 0, None) ** 2
    weights = np.where(distance < 0.5, near, far)
    inside = (place >= -0.5) & (place <= cells - 0.5)
    total = np.where(inside, weights.sum(axis=1), 1.0)  # below 1 at the borders
    spread: NDArray[np.float64] = weights * inside[:, None] / total[:, None]
    return spread
