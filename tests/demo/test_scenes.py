from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from edje_qdrant.demo.scenes import CANVAS, MIN_OFFSET, SPLITS, draw_scenes
from edje_qdrant.errors import ConfigError


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others():
    assert list(draw_scenes("test", 1, 50)) == list(draw_scenes("test", 1, 50))
    assert list(draw_scenes("test", 1, 50)) != list(draw_scenes("test", 2, 50))


@pytest.mark.slow
def test_no_content_is_in_two_splits():
    contents = {
        split: {scene.content for seed in (1, 2) for scene in draw_scenes(split, seed, 1500)}
        for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert contents[one] & contents[other] == set()


@pytest.mark.parametrize("split", SPLITS)
def test_every_scene_belongs_to_the_split_it_was_drawn_for(split):
    assert {scene.split for scene in draw_scenes(split, 3, 200)} == {split}


def test_objects_lie_inside_and_apart():
    for scene in draw_scenes("train", 5, 500):
        assert len(scene.objects) in (2, 3, 4)
        for item in scene.objects:
            assert item.diameter / 2 <= min(item.x, item.y)
            assert max(item.x, item.y) <= CANVAS - item.diameter / 2
        for a, b in combinations(scene.objects, 2):
            assert np.hypot(a.x - b.x, a.y - b.y) > (a.diameter + b.diameter) / 2
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > MIN_OFFSET


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="train, validation, test"):
        next(draw_scenes("dev", 1))  # type: ignore[arg-type]
