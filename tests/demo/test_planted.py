from __future__ import annotations

import numpy as np
import pytest

from edje_qdrant.demo.captions import describe
from edje_qdrant.demo.planted import aim, cover, mentioned, phrase, unmistakable, word_objects
from edje_qdrant.demo.scenes import COLOURS, SHAPES, Scene, SceneObject, draw_scenes


def item(x: float, y: float, *, shape: str = "star", colour: str = "red") -> SceneObject:
    return SceneObject(SHAPES.index(shape), COLOURS.index(colour), 0, x, y, 64, 0, 0.0)


def test_a_box_covers_whole_patches_and_parts_of_them() -> None:
    whole = np.zeros((8, 8))
    whole[1:3, 4:6] = 1  # 128 to 192 px across, 32 to 96 px down
    np.testing.assert_allclose(cover(item(160, 64), 8, 8), whole)
    moved = cover(item(168, 64), 8, 8)  # a quarter of a patch to the right
    np.testing.assert_allclose(moved[1, 3:8], [0, 0.75, 1, 0.25, 0])
    wide = cover(item(160, 64), 4, 8)
    assert wide.shape == (4, 8)
    assert wide.mean() == pytest.approx(64 * 64 / 256 / 256)


def test_aim_knows_a_hit_from_a_miss() -> None:
    star, ring = item(160, 64), item(48, 200, shape="ring")
    scene = Scene((star, ring), 0)
    heat = np.zeros((8, 8))
    heat[2, 5], heat[7, 7] = 3, 1
    found = aim(heat, scene, [star])
    assert (found.share, found.points, found.ahead) == (0.75, True, True)
    assert found.area == pytest.approx(1 / 16)
    missed = aim(heat, scene, [ring])
    assert (missed.share, missed.points, missed.ahead) == (0, False, False)
    both = aim(heat, scene, [star, ring])
    assert (both.share, both.points) == (0.75, True)
    assert both.area == pytest.approx(2 / 16)
    nothing = aim(np.zeros((8, 8)), scene, [star])
    assert (nothing.share, nothing.points, nothing.ahead) == (0, False, False)
    assert not aim(heat.T, scene, [star]).points


def test_words_are_traced_to_their_objects() -> None:
    rng = np.random.default_rng(0)
    traced = 0
    for scene in filter(unmistakable, draw_scenes("test", 9, 60)):
        caption = describe(scene, rng)
        words = caption.text.replace(",", "").split()
        found = word_objects(caption, scene, words)
        for at, kind, owner in found:
            size, colour, shape = owner.name.split()
            synonyms = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
            wanted = {"colour": (colour,), "shape": (shape,), "size": synonyms[size]}
            assert words[at] in wanted[kind]
        owners = [owner for _, kind, owner in found if kind == "shape"]
        assert owners == mentioned(caption, scene)
        assert sum(kind == "size" for _, kind, _ in found) == sum(
            mention.size >= 0 for mention in caption.mentions
        )
        traced += len(found)
    assert traced > 200


def test_phrases_and_twins() -> None:
    star, ring = item(1, 1), item(9, 9, shape="ring", colour="orange")
    assert phrase(star) == "a red star"
    assert phrase(ring) == "an orange ring"
    assert unmistakable(Scene((star, ring), 0))
    assert not unmistakable(Scene((star, ring, item(99, 99)), 0))
