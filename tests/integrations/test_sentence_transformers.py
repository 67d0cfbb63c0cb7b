"""The real `CrossEncoder` with our module, and sentence-transformers' evaluators on our class."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from gallery_checks import TEXT, Gallery
from hub_stand_in import HubStandIn, Repository, use_hub
from PIL import Image
from rounding import float16_slack

pytest.importorskip("sentence_transformers", reason="needs the extra sentence-transformers")

import datasets
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderNanoBEIREvaluator,
    CrossEncoderRerankingEvaluator,
)

from edje_qdrant.errors import ConfigError
from edje_qdrant.integrations.cross_encoder import EDJECrossEncoder
from edje_qdrant.integrations.sentence_transformers import EDJEModule

OTHER = "kites over the lake"


@pytest.fixture
def folder(tmp_path: Path, gallery: Gallery) -> Path:
    name = gallery.model.name_or_path
    EDJECrossEncoder(gallery.model, prompts={"kites": "kites over "}).save_pretrained(
        tmp_path / "saved"
    )
    gallery.model.name_or_path = name  # the model is shared with other tests
    return tmp_path / "saved"


@pytest.fixture
def real(folder: Path) -> CrossEncoder:
    return CrossEncoder(str(folder), device="cpu", trust_remote_code=True, local_files_only=True)


def test_the_real_class_has_our_scores(
    real: CrossEncoder, gallery: Gallery, tmp_path: Path
) -> None:
    ours = EDJECrossEncoder(gallery.model, prompts={"kites": "kites over "})
    images: list[Any] = [str(path) for path in gallery.paths]
    images[1], images[2] = Image.open(images[1]), {"image": Image.open(images[2])}
    images[3] = np.asarray(Image.open(images[3]).convert("RGB"))
    pairs = [(text, image) for image in images for text in (TEXT, OTHER)]
    for options in (
        {},
        {"batch_size": 5},
        {"activation_fn": torch.nn.Sigmoid()},
        {"convert_to_tensor": True},
        {"prompt_name": "kites"},
        {"prompt": "two "},
        {"apply_softmax": True},
        {"show_progress_bar": True},
    ):
        expected, found = ours.predict(pairs, **options), real.predict(pairs, **options)
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype
        slack = float16_slack(expected.tolist())
        assert found.tolist() == pytest.approx(expected.tolist(), abs=slack)
    assert real.predict([(TEXT, images[0])]) == ours.predict([(TEXT, images[0])])
    assert real.predict([]).shape == ours.predict([]).shape
    assert real.predict((TEXT, images[0])) == ours.predict((TEXT, images[0]))
    for options in ({}, {"top_k": 3}, {"return_documents": True}, {"prompt_name": "kites"}):
        expected, found = ours.rank(TEXT, images, **options), real.rank(TEXT, images, **options)
        assert [each.keys() for each in found] == [each.keys() for each in expected]
        assert [each["corpus_id"] for each in found] == [each["corpus_id"] for each in expected]
        scores = [each["score"] for each in expected]
        assert [each["score"] for each in found] == pytest.approx(scores, abs=float16_slack(scores))
    assert real.num_labels == ours.num_labels == 1
    assert real.prompts == ours.prompts


def test_what_the_real_class_writes_is_read_back(
    real: CrossEncoder, gallery: Gallery, tmp_path: Path
) -> None:
    real.save_pretrained(str(tmp_path / "again"))
    pairs = [(TEXT, str(path)) for path in gallery.paths]
    expected = real.predict(pairs)
    again = CrossEncoder(
        str(tmp_path / "again"), device="cpu", trust_remote_code=True, local_files_only=True
    )
    assert again.predict(pairs).tolist() == expected.tolist()
    assert EDJECrossEncoder(tmp_path / "again").predict(pairs).tolist() == expected.tolist()
    wrapped = CrossEncoder(
        modules=[EDJEModule(gallery.model)], device="cpu", activation_fn=torch.nn.Identity()
    )
    assert wrapped.predict(pairs).tolist() == expected.tolist()


def test_the_real_class_loads_from_the_hub(
    folder: Path, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    with HubStandIn() as hub:
        use_hub(hub.url, tmp_path / "cache", monkeypatch)
        commit = 40 * "a"
        hub.repositories["someone/edje"] = Repository(False, {"main": commit}, {commit: files})
        hub.large = {hashlib.sha256(each).hexdigest(): each for each in files.values()}
        real = CrossEncoder("someone/edje", trust_remote_code=True, device="cpu")
        huggingface_hub.close_session()
    pairs = [(TEXT, str(path)) for path in gallery.paths]
    expected = EDJECrossEncoder(gallery.model).predict(pairs)
    assert real.predict(pairs).tolist() == expected.tolist()


def test_what_the_module_does_not_do_is_said(real: CrossEncoder, folder: Path) -> None:
    with pytest.raises(ConfigError, match="processing_kwargs"):
        real.predict([(TEXT, "a.png")], processing_kwargs={})
    with pytest.raises(ConfigError, match="attn_implementation"):
        CrossEncoder(
            str(folder), trust_remote_code=True, model_kwargs={"attn_implementation": "sdpa"}
        )
    with pytest.raises(ConfigError, match="addresses are not fetched"):
        real.predict([(TEXT, "https://images.example.com/a.png")])
    real.train()
    with pytest.raises(ConfigError, match="cannot train"):
        real({"texts": [], "places": [], "pixel_values": torch.empty(0, 3, 32, 32)})
    half = CrossEncoder(
        str(folder), device="cpu", trust_remote_code=True, model_kwargs={"dtype": torch.bfloat16}
    )
    assert next(half.parameters()).dtype == torch.bfloat16


def test_the_reranking_evaluator_runs_on_our_class(gallery: Gallery, tmp_path: Path) -> None:
    encoder = EDJECrossEncoder(gallery.model)
    paths = [str(path) for path in gallery.paths]
    samples = [
        {"query": TEXT, "positive": paths[:2], "documents": paths},
        {"query": OTHER, "positive": [paths[4]], "documents": paths[::-1]},
    ]
    evaluator = CrossEncoderRerankingEvaluator(samples, name="gallery", at_k=5)
    figures = encoder.evaluate(evaluator, str(tmp_path))
    ranks = []
    for sample in samples:
        ranked = [paths[found["corpus_id"]] for found in encoder.rank(sample["query"], paths)]
        first = min(ranked.index(path) for path in sample["positive"])
        ranks.append(1 / (first + 1) if first < 5 else 0)
    assert figures["gallery_mrr@5"] == pytest.approx(np.mean(ranks))
    assert encoder.model_card_data.figures["gallery"]
    assert (tmp_path / "CrossEncoderRerankingEvaluator_gallery_results_@5.csv").is_file()


def test_the_other_evaluators_run_on_our_class(gallery: Gallery) -> None:
    encoder = EDJECrossEncoder(gallery.model)
    pairs = [[TEXT, str(path)] for path in gallery.paths]
    scores = encoder.predict(pairs)
    above = (scores > np.median(scores)).astype(int).tolist()
    classified = CrossEncoderClassificationEvaluator(pairs, above)(encoder)
    assert (classified["accuracy"], classified["average_precision"]) == (1, pytest.approx(1))
    correlated = CrossEncoderCorrelationEvaluator(pairs, scores.tolist())(encoder)
    assert correlated["spearman"] == pytest.approx(1)


def test_the_nano_evaluator_runs_on_our_class(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(path) for path in gallery.paths]
    subsets = {
        "corpus": {"_id": [f"d{n}" for n in range(12)], "text": paths},
        "queries": {"_id": ["q0", "q1"], "text": [TEXT, OTHER]},
        "qrels": {"query-id": ["q0", "q1"], "corpus-id": ["d3", "d5"]},
        "bm25": {
            "query-id": ["q0", "q1"],
            "corpus-ids": [[f"d{n}" for n in range(12)], [f"d{n}" for n in range(11, -1, -1)]],
        },
    }
    monkeypatch.setattr(  # instead of the hub
        datasets,
        "load_dataset",
        lambda _, subset, split: datasets.Dataset.from_dict(subsets[subset]),
    )
    evaluator = CrossEncoderNanoBEIREvaluator(["msmarco"], write_csv=False)
    figures = evaluator(EDJECrossEncoder(gallery.model))
    assert 0 < figures[evaluator.primary_metric] <= 1


def test_our_arguments_are_those_of_the_real_class() -> None:
    for name in ("predict", "rank"):
        theirs = inspect.signature(getattr(CrossEncoder, name)).parameters
        ours = inspect.signature(getattr(EDJECrossEncoder, name)).parameters
        assert [*ours] == [each for each in theirs if each != "kwargs"]
        for key in ours:
            assert ours[key].default == theirs[key].default, (name, key)
