from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from edje_qdrant.encoders.siglip_pixels import SiglipPixels
from edje_qdrant.errors import CheckpointError

SQUARE = {"height": 32, "width": 32}

# Older versions have this processor behind torchvision only, or without the settings compared here.
published = pytest.mark.skipif(
    not hasattr(transformers, "SiglipImageProcessorPil"),
    reason="this version of transformers has no processor on Pillow",
)


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = ((48, 64), (3, 20), (32, 32), (1, 1), (70, 33))
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def write(folder: Path, data: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(data))
    return folder


CROPS: tuple[dict[str, Any], ...] = (
    {},
    {"do_center_crop": False},
    {"do_center_crop": True, "crop_size": {"height": 24, "width": 40}},
    {"do_center_crop": True, "crop_size": 30},
)
SIZES = ({"height": 32, "width": 48}, {"height": 24, "width": 24}, {"shortest_edge": 32}, 20)
NORMALISATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    {"image_mean": 0.4, "image_std": 0.3},
    {"do_normalize": False},
    {"do_rescale": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5},
)


@published
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", CROPS)
def test_pixels_and_files_are_those_of_transformers(
    tmp_path: Path, size: int | dict[str, int], crop: dict[str, Any]
) -> None:
    for resample, more in product(range(6), NORMALISATIONS):
        settings = {"size": size, "resample": resample, **crop, **more}
        processor = transformers.SiglipImageProcessorPil(**settings)
        processor.save_pretrained(tmp_path)
        text = (tmp_path / "preprocessor_config.json").read_text()
        ours = SiglipPixels.from_folder(tmp_path)
        assert ours == SiglipPixels.from_dict(json.loads(text))
        assert ours.hash() == SiglipPixels.from_dict(settings).hash()
        ours.save(tmp_path)
        assert (tmp_path / "preprocessor_config.json").read_text() == text
        for image in images():
            expected = processor(images=[image], return_tensors="pt")["pixel_values"].float()
            assert torch.equal(ours.process([image]), expected), settings


@published
def test_an_image_that_is_not_resized(tmp_path: Path) -> None:
    processor = transformers.SiglipImageProcessorPil(do_resize=False)
    expected = processor(images=images()[:1], return_tensors="pt")["pixel_values"]
    assert torch.equal(SiglipPixels(do_resize=False).process(images()[:1]), expected)


def test_the_hash_is_the_one_that_collections_know() -> None:
    assert SiglipPixels().hash() == "8980ca76a2506124932d770e11262f0f"
    cropped = SiglipPixels.from_dict({"do_center_crop": True, "crop_size": 30, "resample": 2})
    assert cropped.hash() == "f1ade651e6545de2f5f48b17e5c009cc"


def test_null_is_the_default(tmp_path: Path) -> None:
    folder = write(tmp_path, {"size": SQUARE, "do_convert_rgb": None, "do_rescale": None})
    assert SiglipPixels.from_folder(folder) == SiglipPixels(SQUARE)


def test_nested_settings_come_first(tmp_path: Path) -> None:
    write(tmp_path, {"size": {"height": 64, "width": 64}})
    write(tmp_path, {"processor_class": "SiglipProcessor"}, "processor_config.json")
    assert SiglipPixels.from_folder(tmp_path).size["height"] == 64
    write(tmp_path, {"image_processor": {"size": SQUARE}}, "processor_config.json")
    assert SiglipPixels.from_folder(tmp_path) == SiglipPixels(SQUARE)


@pytest.mark.parametrize(
    "kind", ["SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil"]
)
def test_every_kind_of_siglip_s_processor_is_read(tmp_path: Path, kind: str) -> None:
    assert SiglipPixels.from_folder(write(tmp_path, {"image_processor_type": kind}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "only SiglipImageProcessor is supp"),
        ({"size": {"max_height": 3}}, "cannot read SigLIP's image processing in .*KeyError"),
        ({"size": "large"}, "cannot read"),
        ({"resample": 17}, "cannot read"),
        ({"image_std": [0.5, 0.5]}, "cannot read"),
        ({"do_center_crop": True}, "do_center_crop without crop_size"),
        ([], "cannot read"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        SiglipPixels.from_folder(write(tmp_path, data))
    assert raised.value.path == str(tmp_path / "preprocessor_config.json")


def test_broken_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"processor_config\.json"):
        SiglipPixels.from_folder(tmp_path)
