"""Procedural scenes: two to four coloured shapes on a soft background.

The split of a scene follows from a hash of its content (sizes, colours and shapes, without
positions), so that no content of a held-out scene occurs in training, for any seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edje_qdrant.errors import ConfigError

__all__ = [
    "CANVAS",
    "COLOURS",
    "MIN_OFFSET",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Scene",
    "SceneObject",
    "Split",
    "draw_scenes",
]

CANVAS = 256  # px, both sides
SHAPES = (
    "circle", "square", "triangle", "diamond", "star",
    "heart", "cross", "ring", "moon", "arrow",
)  # fmt: skip
COLOURS = (
    "red", "orange", "yellow", "green", "blue",
    "purple", "pink", "brown", "black", "white",
)  # fmt: skip
SIZES = ("small", "large")
# Diameters in px, inclusive; small and large differ clearly.
DIAMETERS = ((54, 62), (88, 102))
# Minimum offset of two centres along an axis (px) for a relation along that axis.
MIN_OFFSET = 24.0

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_BUCKETS = 16  # of hashes: the last is for testing, the one before it for validation


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape and its place.

    Attributes:
        shape: Index into `SHAPES`.
        colour: Index into `COLOURS`.
        size: Index into `SIZES`.
        x: Centre, px from the left.
        y: Centre, px from the top.
        diameter: px.
        angle: Degrees, a slight tilt.
        tint: -1 to 1, a shade darker or lighter.
    """

    shape: int
    colour: int
    size: int
    x: float
    y: float
    diameter: int
    angle: int
    tint: float

    @property
    def name(self) -> str:
        """Return, for example, `small red circle`."""
        return f"{SIZES[self.size]} {COLOURS[self.colour]} {SHAPES[self.shape]}"


@dataclass(frozen=True, slots=True)
class Scene:
    """The objects of one image, and the number of its background."""

    objects: tuple[SceneObject, ...]
    background: int

    @property
    def content(self) -> tuple[tuple[int, int, int], ...]:
        """Return the scene's content without positions: sorted (size, colour, shape)."""
        return tuple(sorted((o.size, o.colour, o.shape) for o in self.objects))

    @property
    def split(self) -> Split:
        """Return the split that this scene's content belongs to."""
        digest = hashlib.blake2b(repr(self.content).encode(), digest_size=8).digest()
        bucket = int.from_bytes(digest, "little") % _BUCKETS
        if bucket == _BUCKETS - 1:
            return "test"
        return "validation" if bucket == _BUCKETS - 2 else "train"


def draw_scenes(split: Split, seed: int, count: int | None = None) -> Iterator[Scene]:
    """Yield random scenes of one split, infinitely many if `count` is not given.

    Args:
        split: Split of the scenes' content.
        seed: The same seed gives the same scenes.
        count: Number of scenes.

    Raises:
        ConfigError: There is no such split.
    """
    if split not in SPLITS:
        raise ConfigError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
    # The split is part of the seed, so that positions differ between splits.
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    drawn = 0
    while count is None or drawn < count:
        scene = _random_scene(rng, split)
        if scene is not None:
            drawn += 1
            yield scene


def _random_scene(rng: np.random.Generator, split: Split) -> Scene | None:
    """Draw one scene; None if its content is of another split or its objects do not fit."""
    count = int(rng.choice((2, 3, 4), p=(0.1, 0.4, 0.5)))
    objects: list[SceneObject] = []
    attributes = rng.integers((len(SHAPES), len(COLOURS), len(SIZES)), size=(count, 3)).tolist()
    bare = [SceneObject(s, c, z, 0, 0, 0, 0, 0) for s, c, z in attributes]
    if Scene(tuple(bare), 0).split != split:
        return None
    for shape, colour, size in attributes:
        low, high = DIAMETERS[size]
        diameter = 2 * int(rng.integers(low // 2, high // 2 + 1))
        for x, y in rng.uniform(diameter / 2 + 6, CANVAS - diameter / 2 - 6, size=(30, 2)).tolist():
            if all(
                np.hypot(o.x - x, o.y - y) > (o.diameter + diameter) / 2 + 4
                and max(abs(o.x - x), abs(o.y - y)) > 2 * MIN_OFFSET
                for o in objects
            ):
                break
        else:
            return None
        angle = 4 * int(rng.integers(-3, 4))
        tint = float(rng.uniform(-1, 1))
        objects.append(SceneObject(shape, colour, size, x, y, diameter, angle, tint))
    return Scene(tuple(objects), int(rng.integers(1 << 30)))
