"""A search with exported models finds what a search with the model itself finds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from searching import TEXTS, make_collection
from tiny_edje import build_tiny_model

from edje_qdrant import SearchBatcher, TwoStageRetriever
from edje_qdrant.errors import ConfigError, ContractMismatchError, MissingExtraError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.onnx.fastembed import FastEmbedTextEncoder
from edje_qdrant.model.onnx.running import OnnxModel
from edje_qdrant.rerank.reranker import Reranker

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model() -> EDJEModel:
    return build_tiny_model().eval()


@pytest.fixture(scope="module")
def exported(exported_tiny: Path) -> Path:
    return exported_tiny


@pytest.fixture(scope="module")
def index(model: EDJEModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("index")
    make_collection(index, model, codec="int8").close()
    return index


@pytest.fixture
def retriever(index: Path, exported: Path) -> Iterator[TwoStageRetriever]:
    with TwoStageRetriever.open(index, model=exported) as retriever:
        yield retriever


def test_the_ranking_is_that_of_the_model(
    model: EDJEModel, index: Path, retriever: TwoStageRetriever
) -> None:
    options = {"top_k": 20, "filter": {"album": "2024"}, "group_by": "video"}
    found = retriever.search_batch(TEXTS, **options)
    retriever.close()
    with TwoStageRetriever.open(index, model=model, precision="float32") as torchs:
        expected = torchs.search_batch(TEXTS, **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert [hit.image_id for hit in ours] == [hit.image_id for hit in theirs]
        np.testing.assert_allclose(
            [hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-4
        )
        assert ours.precision == "float32"
        assert not ours.degraded


def test_every_way_to_search_by_text(retriever: TwoStageRetriever) -> None:
    hits = [hit.image_id for hit in retriever.search("two dogs")]
    *_, last = retriever.search_stream("two dogs", first_ms=1)
    assert [hit.image_id for hit in last] == hits
    scores = retriever.score("two dogs", hits)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    with SearchBatcher(retriever) as batcher:
        assert [hit.image_id for hit in batcher.search("two dogs")] == hits
    assert hits[0] not in [hit.image_id for hit in retriever.recommend([hits[0]], text="a boat")]
    assert retriever.search("two dogs " * 60).truncated
    assert retriever.search("two dogs", budget_ms=0.001).degraded


def test_what_needs_the_model_itself_says_so(retriever: TwoStageRetriever, tmp_path: Path) -> None:
    (hit,) = retriever.search("two dogs", top_k=1)
    for use in (
        lambda: retriever.explain("two dogs", hit.image_id),
        lambda: retriever.search_by_image(tmp_path / "a.png"),
        lambda: retriever.model,
    ):
        with pytest.raises(ConfigError, match=r"only searches and scores.*from_pretrained"):
            use()
    with pytest.raises(ConfigError, match=r"needs a calibration.*joint.onnx has none"):
        retriever.search("two dogs", adaptive=True)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "int8"},
        {"device": "cpu"},
        {"first_stage": "device"},
    ],
)
def test_arguments_of_other_models(index: Path, exported: Path, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="for an EDJEModel"):
        TwoStageRetriever.open(index, model=exported, **options)


def test_a_reranker_of_torch_is_refused(model: EDJEModel, index: Path, exported: Path) -> None:
    with (
        make_collection(":memory:", model) as collection,
        pytest.raises(ConfigError, match=r"reranker is .*for an EDJEModel"),
    ):
        TwoStageRetriever(collection, OnnxModel.from_files(exported), reranker=Reranker(model))


def test_another_models_collection_is_refused(exported: Path, tmp_path: Path) -> None:
    make_collection(tmp_path, build_tiny_model(1).eval()).close()
    with pytest.raises(ContractMismatchError, match="adapter_hash"):
        TwoStageRetriever.open(tmp_path, model=exported)


def test_it_searches_without_torch(index: Path, exported: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from edje_qdrant import TwoStageRetriever\n"
        f"with TwoStageRetriever.open({str(index)!r}, model={str(exported)!r}) as retriever:\n"
        "    print(len(retriever.search('two dogs', top_k=3).hits))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "3\n"


def test_the_command_searches_with_exported_models(
    index: Path, exported: Path, retriever: TwoStageRetriever
) -> None:
    expected = [hit.image_id for hit in retriever.search("two dogs")]
    retriever.close()
    given = ["search", "two dogs", "--index", index, "--model", exported]
    result = run(*given, "--json")
    assert result.exit_code == 0, result.output
    hits = json.loads(result.stdout.splitlines()[-1])["hits"]
    assert [hit["image_id"] for hit in hits] == expected
    refused = run(*given, "--precision", "int8")
    assert refused.exit_code == 2
    assert "for models of torch" in refused.stderr


def test_fastembed_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastembed", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[fastembed\]"):
        FastEmbedTextEncoder()
