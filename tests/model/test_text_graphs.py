from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tiny_edje import build_tiny_model
from torch import Tensor

from edje_qdrant.errors import ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference import text_graphs as module
from edje_qdrant.model.inference.text_graphs import TextGraphs

TEXTS = [f"a text of {number} words" for number in range(12)]


class Replayed:
    """Stand in for a recorded graph: compute its outputs from its inputs when replayed."""

    def __init__(self, encoder: Any, ids: Tensor) -> None:
        self.encoder, self.ids, self.replays = encoder, ids, 0
        self.embeddings = encoder.encode_ids(ids).float()

    def replay(self) -> None:
        self.replays += 1
        self.embeddings.copy_(self.encoder.encode_ids(self.ids).float())


@pytest.fixture
def model() -> EDJEModel:
    return build_tiny_model().place("cpu", None)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Replayed]:
    """Let a CPU pass for a GPU; return what was recorded."""
    made: list[Replayed] = []

    def record(_: TextGraphs, encoder: Any, ids: Tensor, size: int) -> Any:
        own = torch.zeros((size, ids.shape[1]), dtype=ids.dtype)
        made.append(Replayed(encoder, own))
        return module._Recorded(made[-1], own, made[-1].embeddings)

    monkeypatch.setattr(TextGraphs, "_record", record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Mock())
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    monkeypatch.setattr(EDJEModel, "device", Cuda())
    return made


class Cuda:
    """A device that is named cuda and holds its tensors on the CPU."""

    type = "cuda"


def test_a_cpu_needs_no_graph(model: EDJEModel) -> None:
    encode = TextGraphs(model)
    for _ in range(3):
        torch.testing.assert_close(encode(TEXTS[:2]), model.embed_texts(TEXTS[:2]), rtol=0, atol=0)
    assert encode([]).shape == (0, model.config.embedding_dim)
    assert not encode._recorded


def test_graphs_give_what_the_tower_gives(model: EDJEModel, recorded: list[Replayed]) -> None:
    encode = TextGraphs(model)
    for _ in range(3):
        for count in (1, 2, 3, 4, 7, 8, 9):
            texts = TEXTS[:count]
            torch.testing.assert_close(encode(texts), model.embed_texts(texts))
    assert [len(each.ids) for each in recorded] == [4, 8, 1, 2, 16]  # sizes met twice first
    first = encode(TEXTS[:1])
    encode(TEXTS[1:2])  # does not change what was returned
    torch.testing.assert_close(first, model.embed_texts(TEXTS[:1]))
    with pytest.raises(ConfigError, match="word"):
        encode(["!"])


def test_weights_that_are_written_are_used_and_replaced_ones_are_recorded_again(
    model: EDJEModel, recorded: list[Replayed]
) -> None:
    encode, tower = TextGraphs(model), model.encoder.text_tower  # type: ignore[attr-defined]  # SigLIP's
    for _ in range(2):
        encode(TEXTS[:1])
    assert len(recorded) == 1
    with torch.no_grad():
        tower.head.weight.mul_(-1)
    torch.testing.assert_close(encode(TEXTS[:1]), model.embed_texts(TEXTS[:1]))
    assert len(recorded) == 1
    tower.head.weight = torch.nn.Parameter(-tower.head.weight.detach())
    for _ in range(2):
        torch.testing.assert_close(encode(TEXTS[:1]), model.embed_texts(TEXTS[:1]))
    assert len(recorded) == 2
    tower.head = torch.nn.Linear(tower.head.in_features, tower.head.out_features)
    for _ in range(2):
        torch.testing.assert_close(encode(TEXTS[:1]), model.embed_texts(TEXTS[:1]))
    assert len(recorded) == 3


def test_a_tower_that_cannot_be_recorded_runs_without_a_graph(
    model: EDJEModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(EDJEModel, "device", Cuda())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)

    def fail() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "Stream", fail)
    encode = TextGraphs(model)
    for _ in range(3):
        torch.testing.assert_close(encode(TEXTS[:1]), model.embed_texts(TEXTS[:1]))
    assert caplog.text.count("cannot be recorded") == 2 - 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_graphs_on_a_gpu(dtype: torch.dtype) -> None:
    model = build_tiny_model().place("cuda", dtype)
    encode = TextGraphs(model)
    bound = 1e-5 if dtype is torch.float32 else 3e-2

    def same(count: int) -> None:
        for _ in range(3):
            found, expected = encode(TEXTS[:count]), model.embed_texts(TEXTS[:count])
            torch.testing.assert_close(found, expected, rtol=0, atol=bound)

    for count in (1, 2, 3, 5, 8, 9):
        same(count)
    assert sorted(encode._recorded) == [1, 2, 4, 8, 16]
    with torch.no_grad():
        model.encoder.text_tower.head.weight.mul_(-1)  # type: ignore[attr-defined]  # SigLIP's
    same(2)
    model.float()
    same(2)
