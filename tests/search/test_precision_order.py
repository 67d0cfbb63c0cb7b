"""What fewer bits change of the order of images: the bundled model on held-out scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rounding import float32_slack

from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.evaluation.nearest import nearest
from edje_qdrant.metrics import kendall_tau
from edje_qdrant.model import EDJEModel, Precision
from edje_qdrant.model.inference.packed_linear import has_int8_kernels
from edje_qdrant.rerank.reranker import Reranker

SCENES, DEPTH = 300, 20


class Judged:
    """The candidates of each scene's caption, and how the training form scores them."""

    def __init__(self, folder: Path) -> None:
        self.model = EDJEModel.from_pretrained("demo", device="cpu")
        path = write_scenes(folder, count=SCENES, progress=False)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self.captions = [line["caption"] for line in lines]
        pictures = self.model.encode_images([Image.open(folder / x["image"]) for x in lines])
        self.tokens = pictures.tokens
        texts = self.model.encode_texts(self.captions)
        self.found, _ = nearest(texts, pictures.embeddings, DEPTH)
        self.expected = self.scores("model")

    def scores(self, precision: Precision) -> NDArray[np.float32]:
        said = [caption for caption in self.captions for _ in range(DEPTH)]
        reranker = Reranker(self.model, precision=precision)
        return reranker.score_pairs(said, self.tokens[self.found.ravel()]).reshape(-1, DEPTH)

    def recall(self, scores: NDArray[np.float32]) -> float:
        best = self.found[np.arange(SCENES), scores.argmax(axis=1)]
        return float(np.mean(best == np.arange(SCENES)))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return Judged(tmp_path_factory.mktemp("scenes"))


@pytest.mark.slow
def test_the_default_keeps_the_order(judged: Judged) -> None:
    scores = judged.scores("auto")
    np.testing.assert_allclose(scores, judged.expected, atol=float32_slack(judged.expected))
    assert kendall_tau(scores, judged.expected).mean() >= 0.999
    assert judged.recall(scores) == judged.recall(judged.expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    [
        "bfloat16",
        pytest.param(
            "int8",
            marks=pytest.mark.skipif(not has_int8_kernels(), reason="no 8-bit dot products here"),
        ),
    ],
)
def test_fewer_bits_keep_it_nearly(judged: Judged, precision: Precision) -> None:
    scores = judged.scores(precision)
    assert not np.array_equal(scores, judged.expected)
    assert kendall_tau(scores, judged.expected).mean() >= 0.99
    assert abs(judged.recall(scores) - judged.recall(judged.expected)) <= 0.003
