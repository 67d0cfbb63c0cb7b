"""Exported models score and embed as the model does that they were exported from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_edje import build_tiny_model

from edje_qdrant.errors import (
    CheckpointError,
    ConfigError,
    ContractMismatchError,
    MissingExtraError,
)
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.onnx import text_encoder as exporting
from edje_qdrant.model.onnx.running import OnnxModel, OnnxTextEncoder
from edje_qdrant.model.onnx.text_encoder import export_text_encoder

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEXTS = ["dogs &amp; cats", "a", "snow " * 60, "Two_dogs, in the SNOW!", "don\u2019t"]


@pytest.fixture(scope="module")
def model() -> EDJEModel:
    return build_tiny_model().eval()


@pytest.fixture(scope="module")
def folder(exported_tiny: Path) -> Path:
    return exported_tiny


def tokens_for(model: EDJEModel, count: int) -> np.ndarray:
    shape = (count, model.config.num_tokens, model.config.token_dim)
    return np.random.default_rng(0).normal(size=shape).astype(np.float16)


def test_texts_are_embedded_as_by_the_model(model: EDJEModel, folder: Path) -> None:
    found = OnnxModel.from_files(folder).encode_texts(TEXTS * 20)
    np.testing.assert_allclose(found, model.encode_texts(TEXTS * 20), atol=1e-5)
    assert OnnxModel.from_files(folder).encode_texts([]).shape == (0, model.config.embedding_dim)


def test_pairs_are_scored_as_by_the_model(model: EDJEModel, folder: Path) -> None:
    texts = (TEXTS * 40)[:167]  # more than a batch, of mixed lengths
    tokens = tokens_for(model, len(texts))
    found = OnnxModel.from_files(folder).score_pairs(texts, tokens)
    np.testing.assert_allclose(found, model.score_pairs(texts, tokens), atol=1e-4)
    assert OnnxModel.from_files(folder).score_pairs([], tokens[:0]).shape == (0,)


def test_long_texts_are_reported_as_by_the_model(model: EDJEModel, folder: Path) -> None:
    assert OnnxModel.from_files(folder).cut_texts(TEXTS) == model.cut_texts(TEXTS)


def test_what_the_file_says_of_its_model(model: EDJEModel, folder: Path) -> None:
    loaded = OnnxModel.from_files(folder / "joint.onnx", threads=1)
    loaded.contract().require_match(model.contract(), where="the file")
    assert loaded.calibration is None
    assert loaded.precision == "float32"


@pytest.mark.slow
def test_weights_that_do_not_fit_in_a_file_get_one_of_their_own(
    model: EDJEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_LARGEST_FILE", 1000)
    written = export_text_encoder(model, tmp_path / "text_encoder.onnx")
    assert written.weights == str(tmp_path / "text_encoder.onnx.data")
    found = OnnxTextEncoder(written.path).encode_texts(["two dogs"])
    np.testing.assert_allclose(found, model.encode_texts(["two dogs"]), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("joint.onnx", None, "there is no file .*export-onnx"),
        ("text_encoder.onnx", None, "there is no file .*--text-encoder"),
        ("joint.onnx", b"no model", "cannot be run by onnxruntime"),
        ("tokenizer.json", b"{}", "cannot read the tokenizer"),
        ("text_tokenizer.json", None, "cannot read the tokenizer"),
    ],
)
def test_files_that_are_missing_or_damaged(
    folder: Path, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        OnnxModel.from_files(broken)


def test_another_kind_of_onnx_file_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "text_encoder.onnx", tmp_path / "joint.onnx")
    with pytest.raises(CheckpointError, match=r"no joint encoder that edje-qdrant export-onnx"):
        OnnxModel.from_files(tmp_path, text_encoder=OnnxTextEncoder(folder / "text_encoder.onnx"))


@pytest.mark.slow
def test_another_models_text_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    other = build_tiny_model(1).eval()
    export_text_encoder(other, tmp_path / "text_encoder.onnx")
    encoder = OnnxTextEncoder(tmp_path / "text_encoder.onnx")
    with pytest.raises(ContractMismatchError, match="adapter_hash"):
        OnnxModel.from_files(folder, text_encoder=encoder)


def test_bad_arguments(model: EDJEModel, folder: Path) -> None:
    loaded = OnnxModel.from_files(folder)
    with pytest.raises(ConfigError, match="shape"):
        loaded.score_pairs(["a"], tokens_for(model, 2))
    with pytest.raises(ConfigError, match="word"):
        loaded.score_pairs(["!"], tokens_for(model, 1))
    with pytest.raises(ConfigError, match="word"):
        loaded.encode_texts(["!"])
    with pytest.raises(ConfigError, match="threads"):
        OnnxModel.from_files(folder, threads=0)


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_without_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} .*edje-qdrant\[onnx\]"):
        OnnxModel.from_files(folder)


def test_neither_torch_nor_transformers_is_imported(folder: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from edje_qdrant.model.onnx.running import OnnxModel\n"
        f"print(OnnxModel.from_files({str(folder)!r}).encode_texts(['two dogs']).shape)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "(1, 24)\n"


def test_names_that_need_torch_say_so() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from edje_qdrant import ImageCollection\n"
        "from edje_qdrant.errors import MissingExtraError\n"
        "try:\n"
        "    from edje_qdrant import EDJEModel\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "torch is not installed; run: pip install 'edje-qdrant[torch]'\n"
