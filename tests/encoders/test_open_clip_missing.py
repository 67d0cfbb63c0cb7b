"""What of open_clip can be said without the package."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
from tiny_edje import build_tiny_model

from edje_qdrant.encoders import OpenClipEncoder, pretrained_encoder
from edje_qdrant.encoders.open_clip_pixels import PixelSettings
from edje_qdrant.errors import CheckpointError, ConfigError, MissingExtraError
from edje_qdrant.model import EDJEModel

PIXELS = PixelSettings((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).as_dict()
SETTINGS = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}


@pytest.fixture
def no_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)


def write(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.usefixtures("no_open_clip")
def test_without_the_package_the_extra_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {"model_cfg": SETTINGS, "preprocess_cfg": PIXELS})
    for call in (
        lambda: OpenClipEncoder.from_pretrained("ViT-B-32", "openai"),
        lambda: OpenClipEncoder.untrained("ViT-B-32"),
        lambda: OpenClipEncoder.from_config(folder, name="tiny"),
        lambda: pretrained_encoder("open_clip:ViT-B-32@openai"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'edje-qdrant\[open-clip\]'") as e:
            call()
        assert e.value.extra == "open-clip"


def test_a_folder_of_that_name_is_not_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    # What Python makes of a folder without __init__.py on its path.
    monkeypatch.setitem(sys.modules, "open_clip", types.ModuleType("open_clip"))
    with pytest.raises(MissingExtraError):
        OpenClipEncoder.untrained("ViT-B-32")


@pytest.mark.usefixtures("no_open_clip")
def test_a_model_s_folder_says_that_it_needs_open_clip(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build_tiny_model().save_pretrained(folder)
    write(folder / "encoder", {"model_cfg": SETTINGS, "preprocess_cfg": PIXELS})
    with pytest.raises(MissingExtraError, match="open-clip-torch is not installed"):
        EDJEModel.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"model_cfg": SETTINGS},
        {"model_cfg": {"embed_dim": 8}, "preprocess_cfg": PIXELS},
        {"model_cfg": SETTINGS, "preprocess_cfg": {"size": 8}},
    ],
)
def test_broken_settings_are_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match=r"open_clip_config\.json"):
        OpenClipEncoder.from_config(write(tmp_path, content), name="tiny")


def test_a_name_must_name_a_model() -> None:
    with pytest.raises(ConfigError, match="names no model"):
        pretrained_encoder("open_clip:@openai")
