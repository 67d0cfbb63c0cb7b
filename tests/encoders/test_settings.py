from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.settings import settings_folder
from edje_qdrant.errors import CheckpointError


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_missing_file_is_named(siglip: SiglipEncoder, tmp_path: Path, name: str) -> None:
    siglip.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        SiglipEncoder.from_config(tmp_path, name="tiny")


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_damaged_config_is_refused(siglip: SiglipEncoder, tmp_path: Path, content: str) -> None:
    siglip.save(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot read"):
        settings_folder(tmp_path, model_type="siglip")


def test_settings_of_another_model_are_refused(siglip: SiglipEncoder, tmp_path: Path) -> None:
    siglip.save(tmp_path)
    with pytest.raises(CheckpointError, match="a siglip model where those of a bert model"):
        settings_folder(tmp_path, model_type="bert")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": 3}))
    with pytest.raises(CheckpointError, match="SigLIP's settings"):
        SiglipEncoder.from_config(tmp_path, name="tiny")


def test_settings_come_from_the_hub_without_weights(
    siglip: SiglipEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    siglip.save(tmp_path)

    def snapshot(repo_id: str, *, allow_patterns: list[str], **options: object) -> str:
        if repo_id != "google/siglip":
            raise LocalEntryNotFoundError("not cached")
        assert allow_patterns == ["*.json", "*.txt", "*.model"]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert settings_folder("google/siglip", model_type="siglip") == tmp_path
    with pytest.raises(CheckpointError, match="there is no such folder"):
        settings_folder("google/nothing", model_type="siglip")
