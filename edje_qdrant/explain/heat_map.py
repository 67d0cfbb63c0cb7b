"""Drawings of an explanation: heat over the image, and a sheet with a panel per word."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edje_qdrant.checks import check_kind, check_number
from edje_qdrant.explain.explanation import Explanation
from edje_qdrant.images import open_upright, to_rgb
from edje_qdrant.sources.read import read_image
from edje_qdrant.text import shorten_text

__all__ = ["draw_explanation", "draw_heat"]

_LARGE, _SMALL, _GAP, _MARGIN = 504, 160, 12, 24  # px
_INNER = 2 * _LARGE + _GAP
_HEAD, _CAPTION, _ROW_WORDS, _MAX_WORDS = 76, 30, 6, 12
_FOOT = (
    "Beside each word: how much likelier the image makes it, in nats; below zero it speaks "
    "against it."
)
_INK, _SOFT, _PAPER = (28, 30, 36), (112, 116, 126), (250, 250, 248)
_FOR, _AGAINST = (24, 128, 72), (188, 44, 44)
# Below this weight (nats), a word counts as unrelated to the image.
_TELLING = 0.5
# Words that name nothing in an image; all others get a panel.
_EMPTY = frozenset({
    "a", "an", "the", "some", "this", "that", "these", "those", "it", "its", "we",
    "of", "to", "in", "on", "at", "by", "for", "from", "with", "as", "than", "and", "or", "also",
    "is", "are", "was", "be", "there", "here", "see", "show", "shows", "showing",
    "picture", "photo", "image",
})  # fmt: skip


def draw_heat(
    image: Image.Image | str | Path, explanation: Explanation, *, word: int | None = None
) -> Image.Image:
    """Overlay an image with heat; cold regions fade.

    Args:
        image: The explained image, a thumbnail of it, or its path, as an ingest stored it.
        explanation: The result of `explain_match`.
        word: Index of a word; by default the heat of the whole text.

    Returns:
        An RGB image of the same size.

    Raises:
        ImageReadError: The image cannot be read.
        ConfigError: There is no such word.
    """
    check_kind("explanation", explanation, Explanation, "what explain_match returns")
    check_number("word", word, least=0, optional=True)
    return _heated(_rgb(image), explanation, word, strength=1.0)


def draw_explanation(image: Image.Image | str | Path, explanation: Explanation) -> Image.Image:
    """Draw a sheet: the image, the heat of the whole text, and a small panel for each word.

    Every map is scaled to its own maximum. Each word is shown with its weight; the heat of words
    unrelated to the image is faint. Words such as "the" have no panel.

    Args:
        image: The explained image, or its path, as an ingest stored it.
        explanation: The result of `explain_match`.

    Returns:
        An RGB image, 1,068 pixels wide.

    Raises:
        ImageReadError: The image cannot be read.
    """
    check_kind("explanation", explanation, Explanation, "what explain_match returns")
    rgb = _rgb(image)
    shown = _content_words(explanation)
    large, small = _fitted(rgb, _LARGE), _fitted(rgb, _SMALL)
    rows = -(-len(shown) // _ROW_WORDS)
    height = _HEAD + large.height + _CAPTION + rows * (small.height + _CAPTION + _GAP) + 2 * _MARGIN
    sheet = Image.new("RGB", (_INNER + 2 * _MARGIN, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    title, plain, fine = (ImageFont.load_default(size) for size in (22, 17, 14))
    score = f"score {explanation.score:+.2f}"
    room = _INNER - pen.textlength(score, plain) - 2 * _GAP
    pen.text((_MARGIN, 20), _shortened(f"“{explanation.text}”", pen, title, room), _INK, title)
    pen.text((_MARGIN + _INNER, 24), score, _INK, plain, anchor="ra")

    at, indent = _MARGIN + _LARGE + _GAP, (_LARGE - large.width) // 2
    sheet.paste(large, (_MARGIN + indent, _HEAD))
    sheet.paste(_heated(large, explanation, None, strength=1.0), (at + indent, _HEAD))
    under = _HEAD + large.height + 6
    pen.text((_MARGIN, under), "the image", _SOFT, fine)
    pen.text((at, under), "what the match rests on", _SOFT, fine)
    _legend(sheet, pen, at + _LARGE, under, fine)

    top = _HEAD + large.height + _CAPTION + _GAP
    for number, word in enumerate(shown):
        row, column = divmod(number, _ROW_WORDS)
        x, y = _MARGIN + column * (_SMALL + _GAP), top + row * (small.height + _CAPTION + _GAP)
        weight = float(explanation.word_weights[word])
        strength = 1.0 if weight >= _TELLING else 0.3
        panel = _heated(small, explanation, word, strength=strength)
        sheet.paste(panel, (x + (_SMALL - small.width) // 2, y))
        shown_weight = f"{weight:+.1f}" if abs(weight) >= 0.05 else "0"
        colour = _FOR if weight >= _TELLING else _AGAINST if weight <= -_TELLING else _SOFT
        room = _SMALL - pen.textlength(shown_weight, fine) - _GAP / 2
        caption = _shortened(explanation.words[word], pen, plain, room)
        pen.text((x, y + small.height + 4), caption, _INK, plain)
        pen.text((x + _SMALL, y + small.height + 7), shown_weight, colour, fine, anchor="ra")
    pen.text((_MARGIN, height - _MARGIN), _FOOT, _SOFT, fine, anchor="ls")
    return sheet


def _rgb(image: Image.Image | str | Path) -> Image.Image:
    """Return an image, or the one that a path names as an ingest stores it, in RGB."""
    if not isinstance(image, Image.Image):
        image = open_upright(io.BytesIO(read_image(str(image))), str(image))
    return to_rgb(image)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Resize an image so that its longer side is `side` pixels."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _heated(
    image: Image.Image, explanation: Explanation, word: int | None, *, strength: float
) -> Image.Image:
    heat = explanation.resize(*image.size, word=word)
    level = np.sqrt(heat / heat.max()) if heat.max() > 0 else heat  # lifts medium heat
    level = level[..., None]
    pixels = np.asarray(image, dtype=np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    cold = 0.6 * (0.5 * pixels + 0.5 * grey[..., None])
    # Hot regions keep the image's colours under a transparent layer.
    base = cold + (pixels - cold) * level * strength
    veil = 0.5 * level * strength
    mixed = base * (1 - veil) + _ramp()[np.rint(level[..., 0] * 255).astype(int)] * veil
    return Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def _ramp() -> NDArray[np.float32]:
    """Return the colour ramp `(256, 3)` in sRGB, from dark violet over red to light yellow.

    Lightness grows linearly in OKLab, so that hotter always looks brighter, in greyscale too.
    """
    share = np.linspace(0, 1, 256)
    lightness, chroma = 0.25 + 0.7 * share, 0.06 + 0.14 * np.sin(np.pi * (0.15 + 0.75 * share))
    hue = np.radians(300 + 165 * share)  # violet, red, orange, yellow
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack([
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    ], axis=-1).clip(0, 1)  # fmt: skip
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * srgb).astype(np.float32)


def _content_words(explanation: Explanation) -> list[int]:
    """Return the words that get a panel, in text order: content words of the largest weights."""
    words = [n for n, word in enumerate(explanation.words) if word.lower() not in _EMPTY]
    words = words or list(range(len(explanation.words)))
    weightiest = sorted(words, key=lambda n: -abs(explanation.word_weights[n]))
    return sorted(weightiest[:_MAX_WORDS])


def _legend(sheet: Image.Image, pen: ImageDraw.ImageDraw, right: int, top: int, font: Any) -> None:
    """Draw the colour ramp with labels, right-aligned at `right`."""
    bar = Image.fromarray(np.broadcast_to(_ramp().astype(np.uint8), (10, 256, 3)).copy())
    pen.text((right, top), "hot", _SOFT, font, anchor="ra")
    left = right - round(pen.textlength("hot", font)) - 6 - 80
    sheet.paste(bar.resize((80, 10)), (left, top + 4))
    pen.text((left - 6, top), "cold", _SOFT, font, anchor="ra")


def _shortened(text: str, pen: ImageDraw.ImageDraw, font: Any, room: float) -> str:
    return shorten_text(text, lambda shown: pen.textlength(shown, font) <= room)
