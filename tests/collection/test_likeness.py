from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_stand_in import StandIn
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from edje_qdrant.collection import likeness as likeness_module
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.likeness import TIE, leaders, mean_cosine
from edje_qdrant.model import EDJEModel
from edje_qdrant.types import ImageEncoding


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def one_by_one(vectors: NDArray[np.float32], least: float) -> list[int]:
    found: list[int] = []
    for row, vector in enumerate(vectors):
        earlier = (k for k in sorted({*found}) if vector @ vectors[k] >= least - TIE)
        found.append(next(earlier, row))
    return found


@pytest.mark.parametrize("least", [0.2, 0.5, 0.8, 0.99])
def test_an_image_is_stood_for_by_the_first_leader_that_it_is_like(
    least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    vectors = unit(np.repeat(rng.standard_normal((40, 8)), 5, 0) + rng.standard_normal((200, 8)))
    vectors = vectors[rng.permutation(200)]
    vectors[17] = 0
    expected = one_by_one(vectors, least)
    for block in (256, 64, 7, 1):
        monkeypatch.setattr(likeness_module, "_BLOCK", block)
        assert leaders(vectors, least) == expected
    assert expected[17] == 17
    assert leaders(vectors[:0], least) == []


def test_chains_are_cut() -> None:
    angles = np.radians([0, 10, 20, 30, 40])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Each is like the next one, but only two are like the first of a group.
    assert leaders(vectors, float(np.cos(np.radians(11)))) == [0, 0, 2, 2, 4]


def test_the_mean_cosine_is_of_different_images() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((500, 6)) + 1)
    cosines = vectors @ vectors.T
    pairs = cosines[np.triu_indices(500, 1)]
    assert mean_cosine(vectors) == pytest.approx(float(pairs.mean()) * 500 / 532, abs=1e-5)
    assert mean_cosine(vectors[:1]) == mean_cosine(vectors[:0]) == 0
    assert mean_cosine(np.eye(6, dtype=np.float32) * [[1], [-1], [1], [1], [1], [1]]) == 0
    # Two copies of one image do not say that all images are alike.
    assert mean_cosine(vectors[[0, 0]]) < 0.06


def add(collection: ImageCollection, ids: list[str], vectors: NDArray[np.float32]) -> None:
    contract = collection.contract
    tokens = np.ones((len(ids), contract.num_tokens, contract.token_dim), np.float16)
    collection.add(ids, ImageEncoding(vectors, tokens), [{} for _ in ids])


def an_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


@pytest.mark.parametrize("engine", ["edge", "faiss"])
def test_the_mean_is_that_of_the_images_with_the_lowest_ids(
    engine: Any, tmp_path: Path, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeness_module, "_SAMPLE", 20)
    rng = np.random.default_rng(0)
    with ImageCollection.create(
        tmp_path, "images", tiny_model.contract(), engine=engine
    ) as collection:
        vectors = unit(rng.standard_normal((60, collection.contract.embedding_dim)) + 1)
        assert collection.likeness.mean == 0
        add(collection, [an_id(n) for n in range(10, 60)], vectors[10:])
        scale = collection.likeness
        assert scale.mean == pytest.approx(mean_cosine(vectors[10:30]))
        assert scale.cosine(1) == 1
        assert scale.cosine(0.5) == pytest.approx((1 + scale.mean) / 2)
        reads: list[Any] = []
        scroll = collection.index.scroll

        def counted(**options: Any) -> Any:
            reads.append(options)
            return scroll(**options)

        monkeypatch.setattr(collection.index, "scroll", counted)
        add(collection, [an_id(70)], vectors[:1])  # behind the sample
        assert scale.mean == pytest.approx(mean_cosine(vectors[10:30]))
        assert not reads
        add(collection, [an_id(n) for n in range(5)], vectors[:5])
        expected = np.concatenate([vectors[:5], vectors[10:25]])
        assert scale.mean == pytest.approx(mean_cosine(expected))
        collection.delete([an_id(0)])
        expected = np.concatenate([vectors[1:5], vectors[10:26]])
        assert scale.mean == pytest.approx(mean_cosine(expected))
        assert len(reads) == 2


def test_points_of_other_programs_are_no_images(
    tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    with (
        StandIn() as server,
        ImageCollection.create(server.url, "images", tiny_model.contract()) as collection,
    ):
        width = collection.contract.embedding_dim
        vectors = unit(rng.standard_normal((30, width)) + 0.3)
        add(collection, [an_id(n) for n in range(30)], vectors)
        other = QdrantClient(url=server.url, check_compatibility=False)
        points = [models.PointStruct(id=n, vector=[1.0] * width, payload={}) for n in range(300)]
        other.upsert("images", points, wait=True)
        other.close()
        assert collection.likeness.mean == pytest.approx(mean_cosine(vectors), abs=1e-6)
        # Other processes write without notice.
        monkeypatch.setattr(likeness_module, "_LOOK_EVERY", 0.0)
        collection.index.delete([])
        add(collection, [an_id(99)], vectors[:1])
        more = np.concatenate([vectors, vectors[:1]])
        assert collection.likeness.mean == pytest.approx(mean_cosine(more), abs=1e-6)
