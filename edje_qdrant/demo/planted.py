"""Evaluation of heat maps on scenes, where the position of every object is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.demo.captions import Caption
from edje_qdrant.demo.scenes import CANVAS, COLOURS, SHAPES, SIZES, Scene, SceneObject

__all__ = ["Aim", "aim", "cover", "mentioned", "phrase", "unmistakable", "word_objects"]


@dataclass(frozen=True, slots=True)
class Aim:
    """How well a heat map covers the objects that it should cover.

    Attributes:
        share: Share of the heat inside their boxes.
        area: Share of the image inside their boxes, which is the `share` of uniform heat and the
            hit rate of a random point.
        points: Whether the centre of the hottest patch is in one of the boxes.
        ahead: Whether each of them has a higher mean heat in its box than every other object.
    """

    share: float
    area: float
    points: bool
    ahead: bool


def aim(heat: NDArray[np.floating], scene: Scene, wanted: Sequence[SceneObject]) -> Aim:
    """Measure a heat map `(h, w)` of a whole scene against the objects it should cover."""
    rows, columns = heat.shape
    boxes = [cover(item, rows, columns) for item in scene.objects]
    inside = np.clip(sum(cover(item, rows, columns) for item in wanted), 0, 1)
    means = [float((heat * box).sum() / box.sum()) for box in boxes]
    named = [mean for mean, item in zip(means, scene.objects, strict=True) if item in wanted]
    others = [mean for mean, item in zip(means, scene.objects, strict=True) if item not in wanted]
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    x, y = (column + 0.5) * CANVAS / columns, (row + 0.5) * CANVAS / rows
    hit = any(max(abs(x - item.x), abs(y - item.y)) <= item.diameter / 2 for item in wanted)
    total = float(heat.sum())
    return Aim(
        share=float((heat * inside).sum()) / total if total > 0 else 0.0,
        area=float(inside.mean()),
        points=bool(hit and total > 0),
        ahead=total > 0 and min(named) > max(others, default=0.0),
    )


def cover(item: SceneObject, rows: int, columns: int) -> NDArray[np.float64]:
    """Return the share of each patch inside an object's box: `(rows, columns)`."""

    def along(middle: float, cells: int) -> NDArray[np.float64]:
        edges = np.arange(cells + 1) * CANVAS / cells
        low = np.maximum(edges[:-1], middle - item.diameter / 2)
        high = np.minimum(edges[1:], middle + item.diameter / 2)
        share: NDArray[np.float64] = np.clip(high - low, 0, None) * cells / CANVAS
        return share

    return np.outer(along(item.y, rows), along(item.x, columns))


def unmistakable(scene: Scene) -> bool:
    """Return whether no two objects of a scene have the same colour and shape."""
    return len({(item.colour, item.shape) for item in scene.objects}) == len(scene.objects)


def phrase(item: SceneObject) -> str:
    """Return, for example, `a red circle`."""
    article = "an" if COLOURS[item.colour][0] in "aeiou" else "a"
    return f"{article} {COLOURS[item.colour]} {SHAPES[item.shape]}"


def mentioned(caption: Caption, scene: Scene) -> list[SceneObject]:
    """Return the objects that a caption names, in its order; the scene must be unmistakable."""
    found = {(item.shape, item.colour): item for item in scene.objects}
    return [found[m.shape, m.colour] for m in caption.mentions]


def word_objects(
    caption: Caption, scene: Scene, words: Sequence[str]
) -> list[tuple[int, str, SceneObject]]:
    """Return the words that describe an object, with the object.

    Args:
        caption: True of the scene.
        scene: Unmistakable.
        words: The caption's.

    Returns:
        Index of the word, `size`, `colour` or `shape`, and the object, in the order of the text.
    """
    found: list[tuple[int, str, SceneObject]] = []
    start = 0
    for mention, item in zip(caption.mentions, mentioned(caption, scene), strict=True):
        pair = [COLOURS[item.colour], SHAPES[item.shape]]
        at = next(n for n in range(start, len(words)) if list(words[n : n + 2]) == pair)
        if 0 <= mention.size < len(SIZES):
            found.append((at - 1, "size", item))
        found += [(at, "colour", item), (at + 1, "shape", item)]
        start = at + 2
    return found
