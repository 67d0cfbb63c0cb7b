"""Drawing of a scene: antialiased shapes with outline, sheen and shadow on a soft background."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from edje_qdrant.demo.scenes import CANVAS, SHAPES, Scene

__all__ = ["draw", "thinned"]

_RGB = (
    (214, 40, 46), (242, 132, 28), (246, 210, 40), (44, 152, 66), (38, 92, 208),
    (126, 56, 176), (244, 136, 184), (122, 74, 38), (34, 34, 40), (250, 250, 250),
)  # fmt: skip
_SUPERSAMPLING = 4
_SHADOW = 10  # margin for the shadow on every side, px
_BACKGROUNDS = 64


def draw(scene: Scene) -> Image.Image:
    """Draw one scene as a 256 x 256 RGB image; the same scene always gives the same pixels."""
    image = _background(scene.background % _BACKGROUNDS)
    turn = scene.background // _BACKGROUNDS % 4
    image = image.transpose(Image.Transpose(turn)) if turn else image.copy()
    for item in scene.objects:
        outline, body, sheen, shadow = _masks(item.shape, item.diameter, item.angle)
        left = round(item.x - outline.width / 2)
        top = round(item.y - outline.height / 2)
        base = np.array(_RGB[item.colour], dtype=float) + 14 * item.tint
        lit = base + (255 - base) * 0.55
        image.paste((0, 0, 0), (left + 3, top + 5), shadow)
        image.paste(_rgb(base * 0.55), (left, top), outline)
        image.paste(_rgb(base), (left, top), body)
        image.paste(_rgb(lit), (left, top), sheen)
    return image


def _rgb(colour: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour, 0, 255).astype(int).tolist()
    return red, green, blue


@lru_cache(maxsize=4096)
def _masks(shape: int, diameter: int, angle: int) -> tuple[Image.Image, ...]:
    """Return the masks of outline, body, sheen and shadow, all of one size."""
    side = diameter + 2 * _SHADOW
    big = Image.new("L", (side * _SUPERSAMPLING,) * 2, 0)
    _paint(ImageDraw.Draw(big), SHAPES[shape], side * _SUPERSAMPLING / 2,
           diameter * _SUPERSAMPLING / 2)  # fmt: skip
    big = big.rotate(angle, resample=Image.Resampling.BICUBIC)
    outline = big.resize((side, side), Image.Resampling.BOX)
    body = thinned(big, _SUPERSAMPLING).resize((side, side), Image.Resampling.BOX)
    ramp = np.linspace(1, 0, side)
    light = np.clip(ramp[:, None] * 0.9 + ramp[None, :] * 0.5 - 0.55, 0, 1) * 255
    sheen = ImageChops.multiply(body, Image.fromarray(light.astype(np.uint8)))
    shadow = outline.filter(ImageFilter.GaussianBlur(3)).point(lambda v: int(v * 0.38))
    return outline, body, sheen, shadow


def thinned(mask: Image.Image, reach: int) -> Image.Image:
    """Replace each pixel by the least of the square that reaches `reach` pixels to every side.

    The same pixels as `ImageFilter.MinFilter(2 * reach + 1)`, which sorts each square.
    """
    pixels = np.asarray(mask)
    for _ in range(2):  # rows, then columns
        low = pixels.copy()
        for shift in range(1, reach + 1):
            np.minimum(low[shift:], pixels[:-shift], out=low[shift:])
            np.minimum(low[:-shift], pixels[shift:], out=low[:-shift])
        pixels = low.T
    return Image.fromarray(pixels)


def _paint(pen: ImageDraw.ImageDraw, shape: str, middle: float, radius: float) -> None:
    """Fill one shape of the given radius around (middle, middle)."""

    def box(factor: float, dx: float = 0.0, dy: float = 0.0) -> tuple[float, float, float, float]:
        x, y, r = middle + dx * radius, middle + dy * radius, radius * factor
        return x - r, y - r, x + r, y + r

    def polygon(points: list[tuple[float, float]]) -> None:
        pen.polygon([(middle + x * radius, middle + y * radius) for x, y in points], fill=255)

    if shape == "circle":
        pen.ellipse(box(0.94), fill=255)
    elif shape == "ring":
        pen.ellipse(box(0.98), fill=255)
        pen.ellipse(box(0.52), fill=0)
    elif shape == "moon":
        pen.ellipse(box(0.98), fill=255)
        pen.ellipse(box(0.86, 0.52, -0.12), fill=0)
    elif shape == "square":
        pen.rectangle(box(0.8), fill=255)
    elif shape == "diamond":
        polygon([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])
    elif shape == "triangle":
        polygon([(0, -0.95), (0.98, 0.78), (-0.98, 0.78)])
    elif shape == "star":
        spikes = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2, 0.42, 1.02)
        polygon(list(zip((np.sin(spikes) * reach).tolist(), (-np.cos(spikes) * reach).tolist(),
                         strict=True)))  # fmt: skip
    elif shape == "cross":
        pen.rectangle((*_at(middle, radius, -0.32, -0.95), *_at(middle, radius, 0.32, 0.95)), 255)
        pen.rectangle((*_at(middle, radius, -0.95, -0.32), *_at(middle, radius, 0.95, 0.32)), 255)
    elif shape == "heart":
        t = np.linspace(0, 2 * np.pi, 80)
        x = np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 15.5
        polygon(list(zip(x.tolist(), (y - 0.08).tolist(), strict=True)))
    else:  # arrow, pointing up
        polygon([(0, -1), (0.82, -0.1), (0.34, -0.1), (0.34, 0.95), (-0.34, 0.95),
                 (-0.34, -0.1), (-0.82, -0.1)])  # fmt: skip


def _at(middle: float, radius: float, x: float, y: float) -> tuple[float, float]:
    return middle + x * radius, middle + y * radius


@lru_cache(maxsize=_BACKGROUNDS)
def _background(number: int) -> Image.Image:
    """Draw background `number`: a muted tone with a gradient, blobs, stripes, checks or dots."""
    rng = np.random.default_rng([number, 77])
    tone = rng.uniform(150, 225) + rng.uniform(-26, 26, size=3)
    other = tone + rng.uniform(-1, 1, size=3) * 30
    y, x = np.mgrid[0:CANVAS, 0:CANVAS] / CANVAS
    turn = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    period = rng.uniform(5, 10)
    style = number % 6
    if style == 0:
        blend = np.zeros_like(x)
    elif style == 1:
        blend = (along - along.min()) / np.ptp(along)
    elif style == 2:  # stripes
        blend = 0.5 + 0.5 * np.tanh(6 * np.sin(2 * np.pi * period * along))
        blend *= 0.45
    elif style == 3:  # checks
        blend = 0.5 + 0.5 * np.tanh(30 * np.sin(np.pi * period * x) * np.sin(np.pi * period * y))
        blend *= 0.4
    elif style == 4:  # dots
        dots = np.cos(2 * np.pi * period * x) + np.cos(2 * np.pi * period * y)
        blend = 0.5 * (0.5 + 0.5 * np.tanh(8 * (dots - 1.2)))
    else:  # blobs
        blend = np.zeros_like(x)
        for cx, cy, r in rng.uniform((0, 0, 0.1), (1, 1, 0.35), size=(7, 3)):
            blend += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * r * r))
        blend /= blend.max()
    colour = tone + (other - tone) * blend[..., None]
    colour += rng.normal(0, 1.5, size=(CANVAS, CANVAS, 1))  # paper grain
    return Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
