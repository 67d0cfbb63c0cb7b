from __future__ import annotations

import copy
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rounding import DOT, float32_slack

from edje_qdrant.demo.captions import describe
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.errors import CheckpointError, ConfigError, MissingExtraError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.onnx import export as exporting
from edje_qdrant.model.onnx.export import OnnxExport, export_onnx
from edje_qdrant.model.onnx.graph import PortableJointEncoder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
tokenizers = pytest.importorskip("tokenizers")

SCENES = 40


@pytest.fixture(scope="module")
def demo() -> EDJEModel:
    return EDJEModel.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def exported(demo: EDJEModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxExport:
    return export_onnx(demo, tmp_path_factory.mktemp("exported") / "joint.onnx")


@pytest.fixture(scope="module")
def pairs(demo: EDJEModel) -> tuple[list[str], NDArray[np.float16]]:
    """A caption of each scene, of many lengths, and the scenes' tokens."""
    scenes = [*draw_scenes("test", 0, SCENES)]
    random = np.random.default_rng(0)
    texts = [describe(scene, random).text for scene in scenes]
    texts[:2] = ["circle", "a red circle and a blue square " * 15]
    return texts, demo.encode_images([draw(scene) for scene in scenes]).tokens


def run(path: str, texts: list[str], tokens: NDArray[Any]) -> list[NDArray[np.float32]]:
    """Score pairs without torch or this package."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(path).with_name("tokenizer.json")))
    read = tokenizer.encode_batch(texts)
    feeds = {
        "input_ids": np.array([row.ids for row in read]),
        "attention_mask": np.array([row.attention_mask for row in read]),
        "tokens": tokens.astype(np.float32),
    }
    outputs: list[NDArray[np.float32]] = session.run(None, feeds)
    return outputs


def kendall(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Return the share of pairs in the same order, less that of the others."""
    rows, columns = np.triu_indices(len(ours), 1)
    agree = np.sign(ours[rows] - ours[columns]) * np.sign(theirs[rows] - theirs[columns])
    return float(agree.mean())


@pytest.mark.parametrize("count", [1, 2, SCENES])
def test_it_scores_real_pairs_as_the_model_does(
    demo: EDJEModel, exported: OnnxExport, pairs: tuple[list[str], NDArray[np.float16]], count: int
) -> None:
    texts, tokens = pairs[0][:count], pairs[1][:count]
    logits, probabilities = run(exported.path, texts, tokens)
    expected = demo.score_pairs(texts, tokens)
    assert (logits.shape, logits.dtype) == ((count,), np.float32)
    np.testing.assert_allclose(logits, expected, atol=float32_slack(expected))
    assert demo.calibration is not None
    # A sigmoid rises by a quarter of what its argument does, at most.
    slack = float32_slack(expected) * demo.calibration.slope / 4 + float32_slack(1, roundings=DOT)
    np.testing.assert_allclose(probabilities, demo.calibration.probability(expected), atol=slack)


def test_it_ranks_pictures_as_the_model_does(
    demo: EDJEModel, exported: OnnxExport, pairs: tuple[list[str], NDArray[np.float16]]
) -> None:
    for text in pairs[0][2:6]:
        logits, _ = run(exported.path, [text] * SCENES, pairs[1])
        expected = demo.score(text, pairs[1])
        assert np.ptp(expected) > 1
        np.testing.assert_array_equal(np.argsort(-logits), np.argsort(-expected))


@pytest.mark.slow
def test_int8_keeps_the_order_nearly(
    demo: EDJEModel, pairs: tuple[list[str], NDArray[np.float16]], tmp_path: Path
) -> None:
    exported = export_onnx(demo, tmp_path / "joint.onnx", int8=True)
    assert exported.precision == "int8"
    assert 0 < exported.max_difference < 1
    agreed = []
    for text in pairs[0][2:22]:
        logits, _ = run(exported.path, [text] * SCENES, pairs[1])
        agreed.append(kendall(logits, demo.score(text, pairs[1])))
    # Measured with AVX-512 VNNI: 0.984 on average, 0.964 at least.
    assert np.mean(agreed) > 0.96
    assert min(agreed) > 0.92


def test_the_file_says_what_it_is(demo: EDJEModel, exported: OnnxExport) -> None:
    read = onnx.load(exported.path)
    onnx.checker.check_model(read, full_check=True)
    told = {item.key: item.value for item in read.metadata_props}
    assert json.loads(told["edje.contract"]) == demo.contract().as_dict()
    assert demo.calibration is not None
    assert json.loads(told["edje.calibration"]) == asdict(demo.calibration)
    assert (told["edje.max_words"], told["edje.precision"]) == ("63", "float32")
    shapes = {
        item.name: [size.dim_param or size.dim_value for size in item.type.tensor_type.shape.dim]
        for item in (*read.graph.input, *read.graph.output)
    }
    assert shapes == {
        "input_ids": ["batch", "words"],
        "attention_mask": ["batch", "words"],
        "tokens": ["batch", 16, 128],
        "logits": ["batch"],
        "probabilities": ["batch"],
    }
    assert exported.outputs == ("logits", "probabilities")
    assert exported.nbytes == Path(exported.path).stat().st_size
    assert b"portable_form.py" not in Path(exported.path).read_bytes()


def test_its_tokenizer_reads_plain_texts_as_the_model_does(
    demo: EDJEModel, exported: OnnxExport
) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(exported.tokenizer)
    texts = [
        "A red_circle, left of [SEP] <image> the BLUE square!",
        "[MASK]\tdogs' (photo) #1   ~`^\\",
        "Ünïcode É 狗",
        "circle " * 100,
        "x",
    ]
    ids, mask = demo.tokenize(texts)
    read = tokenizer.encode_batch(texts)
    assert [row.ids for row in read] == ids.tolist()
    assert [row.attention_mask for row in read] == mask.tolist()


@pytest.mark.slow
def test_a_model_without_calibration_gives_logits_alone(
    tiny_model: EDJEModel, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    exported = export_onnx(tiny_model, tmp_path / "joint.onnx")
    assert exported.outputs == ("logits",)
    tokens = np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float16)
    texts = ["a", "two dogs", "three red cats"]
    (logits,) = run(exported.path, texts, tokens)
    expected = tiny_model.score_pairs(texts, tokens)
    np.testing.assert_allclose(logits, expected, atol=float32_slack(expected))
    told = {item.key: item.value for item in onnx.load(exported.path).metadata_props}
    assert json.loads(told["edje.contract"])["model"] is None  # a folder of this machine
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["joint.onnx", "tokenizer.json"]


@pytest.mark.slow
def test_a_file_that_scores_otherwise_is_not_written(
    tiny_model: EDJEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "joint.onnx").write_bytes(b"the one before")
    forward = PortableJointEncoder.forward

    def wrong(
        form: PortableJointEncoder,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        tokens: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        return (forward(form, input_ids, attention_mask, tokens)[0] * 1.1,)

    monkeypatch.setattr(PortableJointEncoder, "forward", wrong)
    with pytest.raises(CheckpointError, match="logits differ from the model's by up to"):
        export_onnx(tiny_model, tmp_path / "joint.onnx")
    assert (tmp_path / "joint.onnx").read_bytes() == b"the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["joint.onnx"]


def test_a_file_that_cannot_be_run_is_not_written(
    tiny_model: EDJEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_graph", lambda *_: onnx.ModelProto())
    with pytest.raises(CheckpointError, match="cannot be run"):
        export_onnx(tiny_model, tmp_path / "joint.onnx")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("name", "words"), [("joint.pt", "something.onnx"), ("nowhere/joint.onnx", "no folder")]
)
def test_names_that_will_not_do(
    tiny_model: EDJEModel, tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        export_onnx(tiny_model, tmp_path / name)


def test_another_models_tokenizer_is_not_overwritten(tiny_model: EDJEModel, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="belongs to another model"):
        export_onnx(tiny_model, tmp_path / "joint.onnx")
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_another_kind_of_joint_encoder_is_refused(tiny_model: EDJEModel, tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_model)
    layer: Any = model.joint_encoder.language_model.bert.encoder.layer[0]
    layer.output.dense = torch.nn.Sequential(layer.output.dense)
    with pytest.raises(ConfigError, match="not plain BERT"):
        export_onnx(model, tmp_path / "joint.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_its_extra(
    tiny_model: EDJEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} .*edje-qdrant\[onnx-export\]"):
        export_onnx(tiny_model, tmp_path / "joint.onnx")
