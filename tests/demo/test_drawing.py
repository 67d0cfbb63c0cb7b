from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from edje_qdrant.demo.drawing import draw, thinned
from edje_qdrant.demo.scenes import CANVAS, COLOURS, SHAPES, Scene, SceneObject, draw_scenes


def picture(shape: str, colour: str) -> np.ndarray:
    item = SceneObject(SHAPES.index(shape), COLOURS.index(colour), 1, 128, 128, 100, 0, 0.0)
    return np.asarray(draw(Scene((item,), 0))).astype(int)


def test_the_same_scene_gives_the_same_pixels():
    (scene,) = draw_scenes("train", 1, 1)
    assert draw(scene).size == (CANVAS, CANVAS)
    assert np.array_equal(np.asarray(draw(scene)), np.asarray(draw(scene)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_drawn_in_its_colour_where_it_stands(shape):
    red, blue = picture(shape, "red"), picture(shape, "blue")
    changed = np.abs(red - blue).sum(axis=2) > 60
    rows, columns = np.nonzero(changed)
    assert changed.sum() > 1200
    assert min(rows.min(), columns.min()) >= 70
    assert max(rows.max(), columns.max()) <= 186
    assert (red - blue)[changed][:, 0].mean() > 60
    assert (blue - red)[changed][:, 2].mean() > 60


def test_no_two_shapes_and_no_two_colours_look_alike():
    shapes = [picture(s, "red") for s in SHAPES]
    colours = [picture("square", c) for c in COLOURS]
    for pictures in (shapes, colours):
        for i, one in enumerate(pictures):
            for other in pictures[:i]:
                assert (np.abs(one - other).sum(axis=2) > 60).sum() > 400


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (61, 37), (90, 90)])
def test_thinning_gives_the_pixels_of_the_rank_filter(size):
    values = np.random.default_rng(3).integers(0, 256, size[::-1], np.uint8)
    values[size[1] // 3 :, : size[0] // 2] = 255
    mask = Image.fromarray(values)
    expected = np.asarray(mask.filter(ImageFilter.MinFilter(9)))
    assert np.array_equal(np.asarray(thinned(mask, 4)), expected)


def test_edges_are_antialiased():
    red, blue = picture("diamond", "red"), picture("diamond", "blue")
    difference = np.abs(red - blue).sum(axis=2)
    partly = (difference > 30) & (difference < 0.5 * difference.max())
    assert partly.sum() > 50
