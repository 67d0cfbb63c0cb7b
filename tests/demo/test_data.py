from __future__ import annotations

import numpy as np
from PIL import Image
from rounding import DOT, float32_slack

from edje_qdrant.demo.data import patch_labels, render
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.recipe import scene_encoder
from edje_qdrant.demo.scenes import COLOURS, SHAPES, SIZES, Scene, SceneObject
from edje_qdrant.demo.tower import GRID, SIDE, new_tower, scene_tokenizer, to_pixels


def test_training_sees_exactly_what_the_image_processor_gives(tmp_path):
    scenes, images = render("validation", 3, 5, SIDE, tmp_path, workers=1)
    tokenizer = scene_tokenizer()
    encoder = scene_encoder(new_tower(len(tokenizer)), tokenizer)
    expected = encoder.preprocess([draw(s) for s in scenes])
    assert np.abs(to_pixels(images).numpy() - expected.numpy()).max() < float32_slack(
        1, roundings=DOT
    )


def test_rendered_scenes_are_reused(tmp_path):
    render("validation", 3, 5, SIDE, tmp_path, workers=1)
    (path,) = tmp_path.glob("*.npy")
    before = path.stat().st_mtime_ns
    _, images = render("validation", 3, 5, SIDE, tmp_path, workers=1)
    assert path.stat().st_mtime_ns == before
    assert images.shape == (5, SIDE, SIDE, 3)


def test_patches_are_labelled_with_what_covers_them():
    corner = SceneObject(3, 4, 0, 32, 32, 60, 0, 0.0)
    middle = SceneObject(5, 6, 1, 176, 144, 104, 0, 0.0)
    labels = patch_labels([Scene((corner, middle), 0)], GRID).reshape(GRID, GRID, 3)
    patch = 256 // GRID
    assert labels[32 // patch, 32 // patch].tolist() == [3, 4, 0]
    assert labels[144 // patch, 176 // patch].tolist() == [5, 6, 1]
    assert labels[GRID - 1, 0].tolist() == [len(SHAPES), len(COLOURS), len(SIZES)]
    # Large things cover more patches than small ones.
    assert (labels[..., 0] == 5).sum() > (labels[..., 0] == 3).sum() >= 1


def test_bicubic_is_what_the_processor_uses():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8))
    tokenizer = scene_tokenizer()
    encoder = scene_encoder(new_tower(len(tokenizer)), tokenizer)
    shrunk = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    expected = encoder.preprocess([picture]).numpy()
    assert np.abs(to_pixels(shrunk[None]).numpy() - expected).max() < float32_slack(
        1, roundings=DOT
    )
