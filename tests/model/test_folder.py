from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from tiny import Published, pictures, publish

from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.checkpoints import published as official
from edje_qdrant.model.config import EDJEConfig

CPU = {"device": "cpu"}


def test_folder_is_self_contained(tmp_path: Path) -> None:
    published = publish(tmp_path / "published")
    model = EDJEModel.from_official_checkpoint(
        published.write(), siglip_path=published.siglip,
        language_model_path=published.language_model, **CPU,
    )  # fmt: skip
    expected = model.encode_images(pictures(2))
    scores = model.score("a red circle", expected.tokens)
    texts = model.encode_texts(["a red circle"])
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "published")
    shutil.move(tmp_path / "saved", tmp_path / "moved")

    again = EDJEModel.from_pretrained(tmp_path / "moved", **CPU)
    found = again.encode_images(pictures(2))
    np.testing.assert_array_equal(found.embeddings, expected.embeddings)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(again.score("a red circle", found.tokens), scores)
    np.testing.assert_array_equal(again.encode_texts(["a red circle"]), texts)
    assert again.contract().adapter_hash == model.contract().adapter_hash
    assert again.contract().encoder_revision == model.contract().encoder_revision
    assert again.name_or_path == str((tmp_path / "moved").resolve())
    assert not any(m.training for m in again.modules())
    suffixes = {p.suffix for p in (tmp_path / "moved").rglob("*") if p.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_contract_is_the_same_in_every_precision(model: EDJEModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    full = EDJEModel.from_pretrained(tmp_path / "m", **CPU)
    half = EDJEModel.from_pretrained(tmp_path / "m", dtype=torch.bfloat16, **CPU)
    assert next(half.parameters()).dtype == torch.bfloat16
    assert half.contract() == full.contract() == model.contract()
    tokens = full.encode_images(pictures(2)).tokens
    np.testing.assert_allclose(half.score("red", tokens), full.score("red", tokens), atol=0.05)
    # The hash on file is that of the weights on file.
    for part in (full.encoder, full.adapter):
        kept = part.weights_hash
        part._known = None
        assert part.weights_hash == kept


def test_saving_in_half_precision_halves_the_file(model: EDJEModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "full")
    full = EDJEModel.from_pretrained(tmp_path / "full", **CPU)
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    half = EDJEModel.from_pretrained(tmp_path / "half", **CPU)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert next(half.parameters()).dtype == torch.float32
    tokens = full.encode_images(pictures(2)).tokens
    np.testing.assert_allclose(half.score("red", tokens), full.score("red", tokens), atol=0.01)
    kept = half.contract()
    assert kept.adapter_hash != full.contract().adapter_hash
    half.adapter._known = half.encoder._known = None
    assert half.contract() == kept


def test_local_model_is_saved_and_loaded(tmp_path: Path) -> None:
    published = publish(tmp_path, local=True, image_size=96, patch_size=4)
    model = EDJEModel.from_official_checkpoint(
        published.write(), siglip_path=published.siglip,
        language_model_path=published.language_model, **CPU,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "saved")
    again = EDJEModel.from_pretrained(tmp_path / "saved", **CPU)
    assert again.config.adapter == "local"
    tokens = again.encode_images(pictures(1)).tokens
    long = "red " * 80
    np.testing.assert_array_equal(again.score(long, tokens), model.score(long, tokens))


def test_whoever_may_read_the_settings_may_read_the_weights(
    model: EDJEModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.glob("*.*")}
    assert len(modes) == 1


def test_saving_over_a_model_replaces_it(model: EDJEModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    before = EDJEModel.from_pretrained(tmp_path / "m", **CPU).contract()
    with torch.no_grad():
        model.adapter.query.add_(1)
    model.save_pretrained(tmp_path / "m")
    after = EDJEModel.from_pretrained(tmp_path / "m", **CPU)
    torch.testing.assert_close(after.adapter.query, model.adapter.query)
    assert after.contract().adapter_hash != before.adapter_hash
    assert not list((tmp_path / "m").rglob("*.part"))


def test_folder_that_cannot_be_written(model: EDJEModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write the model"):
        model.save_pretrained(tmp_path / "file")


def test_damaged_folders_are_refused(model: EDJEModel, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        folder = tmp_path / name.replace("/", "-")
        model.save_pretrained(folder)
        return folder

    for name in ("config.json", "model.safetensors"):
        folder = damaged(name)
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=name):
            EDJEModel.from_pretrained(folder, **CPU)
    for name in ("encoder/config.json", "encoder/tokenizer.json", "language_model/config.json"):
        folder = damaged(name)
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=folder.name):
            EDJEModel.from_pretrained(folder, **CPU)
    for name in ("config.json", "model.safetensors"):
        folder = damaged("torn " + name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match="cannot read"):
            EDJEModel.from_pretrained(folder, **CPU)
    folder = damaged("other size")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_tokens": 6}))
    with pytest.raises(CheckpointError) as caught:
        EDJEModel.from_pretrained(folder, **CPU)
    assert caught.value.mismatched == {"adapter.query": ((1, 6, 32), (1, 5, 32))}
    for change in ({"token_dim": 35}, {"embedding_dim": 31}, {"adapter_hash": ""}):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match="does not agree"):
            EDJEModel.from_pretrained(folder, **CPU)


def no_hub(*args: object, **kwargs: object) -> str:
    raise LocalEntryNotFoundError("no network")


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_hub)
    for name in (str(tmp_path / "nowhere"), "someone/something", official.PUBLISHED_ID):
        with pytest.raises(CheckpointError, match="save_pretrained"):
            EDJEModel.from_pretrained(name, **CPU)
    with pytest.raises(CheckpointError, match="lacks config"):
        EDJEModel.from_pretrained(tmp_path, **CPU)
    (tmp_path / "a.pth").touch()
    with pytest.raises(CheckpointError, match="from_official_checkpoint"):
        EDJEModel.from_pretrained(tmp_path / "a.pth", **CPU)


def test_names_the_hub_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    # No request is made: such a name can be no repository's.
    with pytest.raises(CheckpointError, match=r"there is no folder .*a/b/c/d; check the path"):
        EDJEModel.from_pretrained("a/b/c/d", **CPU)


def test_hub_id_of_a_saved_model(
    model: EDJEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "m")

    def snapshot(repo_id: str, *, allow_patterns: list[str], **options: object) -> str:
        assert repo_id == "someone/edje"
        assert "model.safetensors" in allow_patterns
        return str(tmp_path / "m")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = EDJEModel.from_pretrained("someone/edje", **CPU)
    assert found.name_or_path == found.contract().model == "someone/edje"
    assert found.contract().adapter_hash == model.contract().adapter_hash


def test_hub_id_of_the_published_checkpoint(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {
        "google/siglip2-large-patch16-384": published.siglip,
        "microsoft/MiniLM-L12-H384-uncased": published.language_model,
    }

    written = published.write(torch.bfloat16)
    written.rename(written.with_name("pytorch_model.pth"))

    def snapshot(repo_id: str, *, allow_patterns: list[str], **options: object) -> str:
        if repo_id == "shahafw/edje-vl-image-retrieval-reranker":
            assert allow_patterns == ["pytorch_model.pth"]
            return str(written.parent)
        assert not any("safetensors" in p or "bin" in p for p in allow_patterns)
        return str(folders[repo_id])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = EDJEModel.from_pretrained("shahafw/edje-vl-image-retrieval-reranker", **CPU)
    same = EDJEModel.from_official_checkpoint(
        published.write(torch.bfloat16), siglip_path=published.siglip,
        language_model_path=published.language_model, **CPU,
    )  # fmt: skip
    assert model.name_or_path == "shahafw/edje-vl-image-retrieval-reranker"
    assert model.contract().encoder == "siglip2-large-patch16-384"
    assert model.contract().adapter_hash == same.contract().adapter_hash
    tokens = same.encode_images(pictures(2)).tokens
    np.testing.assert_array_equal(model.encode_images(pictures(2)).tokens, tokens)
    np.testing.assert_array_equal(model.score("red", tokens), same.score("red", tokens))


def test_bf16_load_of_a_checkpoint_keeps_the_contract(published: Published) -> None:
    path = published.write()
    full, half = (
        EDJEModel.from_official_checkpoint(
            path, siglip_path=published.siglip, language_model_path=published.language_model,
            dtype=dtype, **CPU,
        )
        for dtype in (torch.float32, torch.bfloat16)
    )  # fmt: skip
    assert half.contract() == full.contract()


@pytest.mark.slow
def test_the_bundled_model_loads_without_a_word() -> None:
    code = "from edje_qdrant import EDJEModel; EDJEModel.from_pretrained('demo', device='cpu')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_data_types_by_name(model: EDJEModel, tmp_path: Path, published: Published) -> None:
    model.save_pretrained(tmp_path / "half", dtype="float16")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for dtype in ("bfloat16", "torch.bfloat16", torch.bfloat16):
        found = EDJEModel.from_pretrained(tmp_path / "half", dtype=dtype, **CPU)
        assert found.adapter.query.dtype == torch.bfloat16
        assert found.joint_encoder.dtype_is_explicit
        assert found.place("cpu", "float32").adapter.query.dtype == torch.float32
    converted = EDJEModel.from_official_checkpoint(
        published.write(), siglip_path=published.siglip, dtype="bfloat16",
        language_model_path=published.language_model, **CPU,
    )  # fmt: skip
    assert converted.adapter.query.dtype == torch.bfloat16
    for wrong in ("bf16", "int8", torch.int8, "", 16, np.float32):
        for call in (
            lambda dtype: EDJEModel.from_pretrained("someone/edje", dtype=dtype),
            lambda dtype: model.save_pretrained(tmp_path / "other", dtype=dtype),
            lambda dtype: model.place("cpu", dtype),
        ):
            with pytest.raises(ConfigError, match=r"dtype is .*float16, float32, float64"):
                call(wrong)
    assert not (tmp_path / "other").exists()


def test_a_config_says_what_kind_of_model_it_is(model: EDJEModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    assert config["model_type"] == "edje"
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "model_type"}))
    before = EDJEModel.from_pretrained(tmp_path / "m", **CPU)  # a folder of an earlier version
    assert before.config == EDJEConfig.from_dict(config)
    bundled = files("edje_qdrant") / "demo" / "model" / "config.json"
    assert json.loads(bundled.read_text(encoding="utf-8"))["model_type"] == "edje"


def test_paths_that_are_no_model_say_what_they_are(
    model: EDJEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "pytorch_model.pth").touch()
    (tmp_path / "notes.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    missing = re.escape(str(tmp_path / "nope"))
    cases: list[tuple[str | Path, str]] = [
        ("./nope", f"there is no folder {missing}; check the path"),
        (Path("nope"), f"there is no folder {missing}; check the path"),
        ("../nope/", f"there is no folder {re.escape(str(tmp_path.parent))}/nope; check"),
        ("~/nope-at-all", f"there is no folder {re.escape(os.path.expanduser('~'))}/nope-at-all;"),
        (str(tmp_path / "nope"), f"there is no folder {missing}; check the path"),
        ("runs\\model", "there is no folder .*check the path"),
        ("empty", "empty is empty: it lacks config.json and model.safetensors"),
        ("theirs", "from_official_checkpoint"),
        ("run", r"has one in it: pass run/model"),
        ("run/model/encoder", "holds a model of another kind, siglip"),
        ("run/model/language_model", "holds a model of another kind, bert"),
        ("run/model/config.json", "is a file, not a folder; pass its folder, run/model"),
        ("run/model/model.safetensors", "is a file, not a folder; pass its folder, run/model"),
        ("notes.txt", "notes.txt is a file, not a folder; read a published checkpoint"),
        ("pipe", "pipe is neither a file nor a folder"),
    ]
    for name, message in cases:
        with pytest.raises(CheckpointError, match=message):
            EDJEModel.from_pretrained(name, **CPU)
    for name in ("", None, 3):
        with pytest.raises(ConfigError, match="the name of a model is"):
            EDJEModel.from_pretrained(name, **CPU)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=f"there is no folder {missing}"):
        SiglipEncoder.from_pretrained("./nope")
    with pytest.raises(CheckpointError, match=r"notes\.txt is not a folder"):
        SiglipEncoder.from_pretrained("./notes.txt")
