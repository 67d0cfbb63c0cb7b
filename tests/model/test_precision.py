"""What `auto` stands for, and where a precision can be given."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from searching import make_collection, random_images

from edje_qdrant import CaptionRetriever, EDJEModel, Reranker, TwoStageRetriever
from edje_qdrant.attach.attached_collection import AttachedCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.integrations.cross_encoder import EDJECrossEncoder
from edje_qdrant.model import FastJointEncoder
from edje_qdrant.model.inference import packed_linear, precision
from edje_qdrant.model.inference.precision import choose_precision
from edje_qdrant.search.results import SearchResult

CPU = torch.device("cpu")

CHOICES = """
import torch
from edje_qdrant.model.inference.precision import choose_precision
torch.set_num_threads({threads})
print(choose_precision(384, torch.float32, torch.device("cpu")))
"""


@pytest.fixture
def bf16_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "_known", {"bfloat16": True, "float32": True})


@pytest.mark.usefixtures("bf16_works")
def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, chosen in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(precision, "_has_instructions", lambda has=has: has)
        assert choose_precision(384, torch.float32, CPU) == chosen
        assert choose_precision(128, torch.float32, CPU) == "float32"  # narrow models stay exact
    assert not hasattr(precision, "time")  # no measurement


@pytest.mark.usefixtures("bf16_works")
@pytest.mark.parametrize(
    ("dtype", "chosen"),
    [
        (torch.float32, "float32"),
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "float32"),  # float16 is for GPUs
    ],
)
@pytest.mark.parametrize("has", [True, False])
def test_an_explicit_dtype_stands(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chosen: str, has: bool
) -> None:
    monkeypatch.setattr(precision, "_has_instructions", lambda: has)
    assert choose_precision(384, dtype, CPU, explicit=True) == chosen


def test_on_a_gpu_it_is_the_weights_own() -> None:
    assert choose_precision(384, torch.float16, torch.device("cuda")) == "float16"


@pytest.mark.usefixtures("bf16_works")
def test_a_model_remembers_whether_its_dtype_was_asked_for(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_has_instructions", lambda: True)
    monkeypatch.setattr(precision, "_NARROWEST", 1)
    model = EDJEModel.from_pretrained(tiny_folder, device="cpu")
    assert Reranker(model).precision == "bfloat16"
    asked = EDJEModel.from_pretrained(tiny_folder, device="cpu", dtype=torch.float32)
    assert Reranker(asked).precision == "float32"
    assert FastJointEncoder(asked.joint_encoder).kernel() == "float32"
    assert Reranker(asked, precision="bfloat16").precision == "bfloat16"
    assert Reranker(asked.place("cpu", None)).precision == "bfloat16"


@pytest.mark.slow
def test_every_process_makes_the_same_choice() -> None:
    def chosen(threads: int) -> str:
        run = [sys.executable, "-c", CHOICES.format(threads=threads)]
        return subprocess.run(run, check=True, capture_output=True, text=True).stdout

    assert len({chosen(1 + n % 2) for n in range(6)}) == 1


def test_a_result_names_its_precision(tmp_path: Path, tiny_model: EDJEModel) -> None:
    make_collection(tmp_path, tiny_model).close()
    for asked in ("float32", "bfloat16"):
        with TwoStageRetriever.open(tmp_path, model=tiny_model, precision=asked) as retriever:
            assert retriever.precision == asked
            result = retriever.search("a red square", top_k=2)
            assert result.precision == asked
            assert result.as_dict()["precision"] == asked
            assert result.next(1).precision == asked
            assert result.cursor is not None
            assert retriever.resume(result.cursor).precision == asked
            assert retriever.search_by_image(random_images(1)[0]).precision is None
    with pytest.raises(ConfigError, match="precision is 'half'"):
        TwoStageRetriever.open(tmp_path, model=tiny_model, precision="half")  # type: ignore[arg-type]
    TwoStageRetriever.open(tmp_path, model=tiny_model).close()  # the refusal left nothing open


def test_cursors_of_older_versions_are_read(tmp_path: Path, tiny_model: EDJEModel) -> None:
    from edje_qdrant.search import results

    with make_collection(tmp_path, tiny_model) as collection:
        result = TwoStageRetriever(collection, tiny_model).search("a red square", top_k=2)
    head = [name for name in results._HEAD if name != "precision"]
    with pytest.MonkeyPatch.context() as older:
        older.setattr(results, "_HEAD", head)
        cursor = result.cursor
    assert cursor is not None
    assert SearchResult.from_cursor(cursor).precision is None


@pytest.mark.parametrize(
    "takes",
    [
        TwoStageRetriever.open,
        AttachedCollection.open,
        CaptionRetriever.open,
        EDJECrossEncoder.__init__,
    ],
)
def test_it_can_be_given_wherever_a_model_is_loaded_to_score(takes: Any) -> None:
    assert inspect.signature(takes).parameters["precision"].default == "auto"


def test_the_cross_encoder_takes_it(tiny_model: EDJEModel) -> None:
    assert EDJECrossEncoder(tiny_model, precision="bfloat16").precision == "bfloat16"
