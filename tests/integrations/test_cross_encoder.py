from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_checks import TEXT, Gallery
from numpy.typing import NDArray
from PIL import Image
from rounding import float16_slack

from edje_qdrant.errors import ConfigError, ImageReadError, TokensNotFoundError
from edje_qdrant.integrations import cross_encoder
from edje_qdrant.integrations.cross_encoder import EDJECrossEncoder
from edje_qdrant.search.retriever import TwoStageRetriever

OTHER = "kites over the lake"


@pytest.fixture
def expected(gallery: Gallery) -> NDArray[np.float32]:
    tokens = gallery.model.encode_images([Image.open(path) for path in gallery.paths]).tokens
    return np.stack([gallery.model.score(text, tokens) for text in (TEXT, OTHER)])


def test_pictures_are_ranked(gallery: Gallery, expected: NDArray[np.float32]) -> None:
    encoder = EDJECrossEncoder(gallery.model)
    pictures: list[Any] = [*gallery.paths]
    pictures[1], pictures[2] = str(pictures[1]), Image.open(pictures[2])
    ranked = encoder.rank(TEXT, pictures, batch_size=5)
    order = np.argsort(-expected[0], kind="stable")
    assert [found["corpus_id"] for found in ranked] == order.tolist()
    assert [found["score"] for found in ranked] == pytest.approx(
        expected[0][order], abs=float16_slack(expected)
    )
    assert all(set(found) == {"corpus_id", "score"} for found in ranked)
    shown = encoder.rank(TEXT, pictures, top_k=3, return_documents=True)
    assert [found["document"] for found in shown] == [pictures[row] for row in order[:3]]
    assert encoder.rank(TEXT, []) == []


def test_pairs_are_scored_in_order_and_a_picture_encoded_once(
    gallery: Gallery, expected: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, seen = gallery.model.encode_pixels, []
    monkeypatch.setattr(
        gallery.model, "encode_pixels", lambda p: (seen.append(len(p)), encode(p))[1]
    )
    monkeypatch.setattr(cross_encoder, "_PAIRS", 3)
    pairs = [(text, path) for path in gallery.paths for text in (OTHER, TEXT)]
    scores = EDJECrossEncoder(gallery.model).predict([*pairs, pairs[4]], batch_size=8)
    assert scores.dtype == np.float32
    wanted = [*expected[::-1].T.ravel(), expected[1, 2]]
    assert scores == pytest.approx(wanted, abs=float16_slack(wanted))
    assert seen == [8, 4]
    assert EDJECrossEncoder(gallery.model).predict([]).shape == (0,)


def test_pictures_of_a_collection_are_not_encoded_again(
    gallery: Gallery,
    retriever: TwoStageRetriever,
    expected: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = {hit.payload["path"]: hit.image_id for hit in retriever.search(TEXT, top_k=12)}
    encoder = EDJECrossEncoder(gallery.model, collection=retriever)
    mixed: list[Any] = [ids[str(path)] for path in gallery.paths]
    mixed[3] = gallery.paths[3]
    scores = encoder.predict([(TEXT, p) for p in mixed])
    assert scores == pytest.approx(expected[0], abs=float16_slack(expected))
    monkeypatch.setattr(gallery.model, "start_encoding", None)
    del mixed[3]
    assert len(encoder.rank(OTHER, mixed)) == 11
    with pytest.raises(TokensNotFoundError):
        encoder.rank(TEXT, ["00000000-0000-4000-8000-000000000000"])


def test_what_cannot_be_scored_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    encoder = EDJECrossEncoder(gallery.model)
    for call, message in (
        (lambda: encoder.rank("!", gallery.paths), "no word"),
        (lambda: encoder.rank(TEXT, gallery.paths, top_k=0), "top_k is 0"),
        (lambda: encoder.rank(TEXT, gallery.paths, batch_size=0), "batch_size is 0"),
        (lambda: encoder.rank(TEXT, [3]), "no collection"),
        (lambda: encoder.rank(TEXT, [None]), "not a NoneType"),  # type: ignore[list-item]
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(ImageReadError, match=r"none\.png"):
        encoder.rank(TEXT, [tmp_path / "none.png"])
    # Without a collection an id is nothing but a name that no file has.
    with pytest.raises(ImageReadError):
        encoder.rank(TEXT, ["00000000-0000-4000-8000-000000000000"])


def test_a_model_is_loaded_by_name(tiny_folder: Path, gallery: Gallery) -> None:
    encoder = EDJECrossEncoder(tiny_folder, device="cpu")
    assert len(encoder.rank(TEXT, gallery.paths)) == 12
