from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
from searching import make_collection

import edje_qdrant
from edje_qdrant import EDJEModel, Reranker, TwoStageRetriever
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.model.inference.precision import Precision

PACKAGE = str(Path(edje_qdrant.__file__).parent)


@pytest.mark.parametrize("precision", ["auto", "model"])
def test_a_search_reaches_the_joint_encoder_in_ten_calls(
    tiny_model: EDJEModel, tmp_path: Path, precision: Precision
) -> None:
    stacks: list[list[str]] = []

    def note(*_: Any) -> None:
        stack = traceback.extract_stack()
        stacks.append([frame.name for frame in stack if frame.filename.startswith(PACKAGE)])

    collection: ImageCollection = make_collection(tmp_path, tiny_model)
    hook = tiny_model.joint_encoder.pooler.register_forward_hook(note)
    try:
        with collection:
            reranker = Reranker(tiny_model, precision=precision)
            TwoStageRetriever(collection, tiny_model, reranker=reranker).search("a red square")
    finally:
        hook.remove()
    assert stacks
    assert stacks[0][0] == "search"
    assert max(map(len, stacks)) <= 10, stacks[0]
