from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_waits import never_waiting_for_the_gpu
from numpy.typing import NDArray
from rounding import float32_slack
from tiny_edje import build_tiny_model

from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model import EDJEModel, FastJointEncoder, Precision
from edje_qdrant.rerank.reranker import Reranker, _gpu_batch_size
from edje_qdrant.rerank.token_feed import TokenFeed

TEXTS = ["a cat", "two very small dogs on a red boat", "b", "a cat", "Seven, kites!", "b"] * 4


@pytest.fixture
def tokens() -> NDArray[np.float16]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((len(TEXTS), 4, 16)).astype(np.float16)


@pytest.mark.parametrize("batch_size", [1, 5, 128])
def test_pairs_score_as_they_do_alone_whatever_the_batch(
    tiny_model: EDJEModel, tokens: NDArray[np.float16], batch_size: int
) -> None:
    scores = Reranker(tiny_model, batch_size=batch_size).score_pairs(TEXTS, tokens)
    alone = [tiny_model.score(t, tokens[i : i + 1])[0] for i, t in enumerate(TEXTS)]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, alone, atol=float32_slack(alone))
    assert np.ptp(scores) > 0.1  # or any order would pass


def test_one_text_scores_as_the_model_scores_it(
    tiny_model: EDJEModel, tokens: NDArray[np.float16]
) -> None:
    scores = Reranker(tiny_model).score("two dogs", tokens)
    expected = tiny_model.score("two dogs", tokens)
    np.testing.assert_allclose(scores, expected, atol=float32_slack(expected))


def test_batches_are_full_and_hold_no_padding(
    tiny_model: EDJEModel, tokens: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[list[tuple[int, ...]]] = []
    forward = FastJointEncoder.__call__

    def recorded(self: Any, captions: list[torch.Tensor], part: torch.Tensor) -> torch.Tensor:
        shapes.append([tuple(ids.shape) for ids in captions])
        return forward(self, captions, part)

    monkeypatch.setattr(FastJointEncoder, "__call__", recorded)
    Reranker(tiny_model, batch_size=8).score_pairs(TEXTS, tokens)
    b, cat, kites, dogs = (
        tiny_model.tokenize([text])[0].shape[1] for text in ("b", "a cat", TEXTS[4], TEXTS[1])
    )
    assert shapes == [[(8, b)], [(8, cat)], [(4, kites), (4, dogs)]]


@pytest.mark.parametrize("precision", ["float32", "model"])
def test_the_forms_agree(
    tiny_model: EDJEModel, tokens: NDArray[np.float16], precision: Precision
) -> None:
    reranker = Reranker(tiny_model, batch_size=7, precision=precision)
    assert reranker.precision == "float32"
    found, expected = (scorer.score_pairs(TEXTS, tokens) for scorer in (reranker, tiny_model))
    np.testing.assert_allclose(found, expected, atol=float32_slack(expected))


def test_what_is_not_plain_bert_is_scored_by_its_own_forward(
    tokens: NDArray[np.float16],
) -> None:
    model = build_tiny_model().place("cpu", None)
    query = model.joint_encoder.language_model.bert.encoder.layer[0].attention.self
    query.query = torch.nn.Sequential(query.query, torch.nn.ReLU())  # an adapter, say
    np.testing.assert_array_equal(
        Reranker(model).score_pairs(TEXTS[:6], tokens[:6]),
        Reranker(model, precision="model").score_pairs(TEXTS[:6], tokens[:6]),
    )
    with pytest.raises(ConfigError, match="plain BERT"):
        Reranker(model, precision="float32")


def test_dropout_and_gradients_stay_out_of_scores_while_training(
    tiny_model: EDJEModel, tokens: NDArray[np.float16]
) -> None:
    expected = Reranker(tiny_model).score("a cat", tokens)
    tiny_model.train()
    try:
        np.testing.assert_array_equal(Reranker(tiny_model).score("a cat", tokens), expected)
        assert tiny_model.joint_encoder.training
    finally:
        tiny_model.eval()


def test_no_pairs_give_no_scores(tiny_model: EDJEModel, tokens: NDArray[np.float16]) -> None:
    assert Reranker(tiny_model).score_pairs([], tokens[:0]).shape == (0,)
    assert Reranker(tiny_model).score("a cat", tokens[:0]).shape == (0,)


def test_what_does_not_fit_is_refused(tiny_model: EDJEModel, tokens: NDArray[np.float16]) -> None:
    reranker = Reranker(tiny_model)
    with pytest.raises(ConfigError, match="2 images"):
        reranker.score_pairs(["a", "b"], tokens[:3])
    with pytest.raises(ConfigError, match=r"\(1, 4, 16\)"):
        reranker.score("a", np.zeros((1, 4, 8), np.float16))
    with pytest.raises(ConfigError):
        reranker.score_pairs(["a", "..."], tokens[:2])
    with pytest.raises(ConfigError, match="batch_size"):
        Reranker(tiny_model, batch_size=0)
    with pytest.raises(ConfigError, match="int8"):
        Reranker(tiny_model, precision="int4")  # type: ignore[arg-type]


def test_scores_that_are_no_numbers_are_never_returned(
    tiny_model: EDJEModel, tokens: NDArray[np.float16]
) -> None:
    tokens[3, 0, 0] = np.nan
    with pytest.raises(CheckpointError, match="not numbers"):
        Reranker(tiny_model).score("a cat", tokens)


@pytest.mark.parametrize("batch_size", [3, 128])
def test_tokens_that_are_on_the_device_already_score_the_same(
    tiny_model: EDJEModel, tokens: NDArray[np.float16], batch_size: int
) -> None:
    reranker = Reranker(tiny_model, batch_size=batch_size)
    before = tokens.copy()
    there = torch.from_numpy(tokens)
    np.testing.assert_array_equal(
        reranker.score_pairs(TEXTS, there), reranker.score_pairs(TEXTS, tokens)
    )
    np.testing.assert_array_equal(reranker.score("b", there), reranker.score("b", tokens))
    np.testing.assert_array_equal(tokens, before)
    assert reranker.score_pairs([], there[:0]).shape == (0,)
    with pytest.raises(ConfigError, match="2 images"):
        reranker.score_pairs(["a", "b"], there[:3])


def test_tokens_that_cannot_be_written_to_or_lie_backwards_score_alike(
    tiny_model: EDJEModel, tokens: NDArray[np.float16]
) -> None:
    scores = Reranker(tiny_model).score("two dogs", tokens)
    fixed = tokens.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(Reranker(tiny_model).score("two dogs", fixed), scores)
    backwards = Reranker(tiny_model).score("two dogs", tokens[::-1])
    np.testing.assert_allclose(backwards, scores[::-1], atol=float32_slack(scores))


def test_captions_are_tokenized_once_and_without_padding(
    tiny_model: EDJEModel, tokens: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    caption_ids = tiny_model.caption_ids

    def recorded(texts: list[str]) -> list[list[int]]:
        asked.append([*texts])
        return caption_ids(texts)

    monkeypatch.setattr(tiny_model, "caption_ids", recorded)
    Reranker(tiny_model, batch_size=5).score_pairs(TEXTS, tokens)
    assert asked == [[*dict.fromkeys(TEXTS)]]
    ids, mask = tiny_model.tokenize(TEXTS)
    for own, row, read in zip(caption_ids(TEXTS), ids, mask, strict=True):
        assert own == row[read.bool()].tolist()


@pytest.mark.parametrize("precision", ["float32", "model"])
def test_scores_are_copied_back_once_when_all_batches_are_queued(
    tiny_model: EDJEModel,
    tokens: NDArray[np.float16],
    precision: Precision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reranker = Reranker(tiny_model, batch_size=5, precision=precision)
    expected = reranker.score_pairs(TEXTS, tokens)
    steps: list[str] = []
    score, cpu = reranker._fast or reranker._padded_form, torch.Tensor.cpu

    def scored(groups: list[torch.Tensor], part: torch.Tensor) -> torch.Tensor:
        steps.append("batch")
        return score(groups, part)

    def copied(self: torch.Tensor) -> torch.Tensor:
        steps.append("copy")
        return cpu(self)

    monkeypatch.setattr(reranker, "_fast", scored)
    monkeypatch.setattr(torch.Tensor, "cpu", copied)
    np.testing.assert_array_equal(reranker.score_pairs(TEXTS, tokens), expected)
    assert steps == [*["batch"] * 5, "copy"]


def test_a_gpu_of_little_memory_takes_smaller_batches(tiny_model: EDJEModel) -> None:
    sizes = [_gpu_batch_size(tiny_model, memory) for memory in (1 << 20, 1 << 28, 1 << 37)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (32, 2048)
    assert all(size & (size - 1) == 0 for size in sizes)


@pytest.fixture
def on_gpu(tiny_folder: Path) -> EDJEModel:
    return EDJEModel.from_pretrained(tiny_folder, device="cuda", dtype=torch.float32)


LONG = [*TEXTS, " ".join(["dogs"] * 200)]


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 7, None])
@pytest.mark.parametrize("texts", [LONG, LONG[:1], ["b"] * 25], ids=["mixed", "one", "alike"])
@pytest.mark.parametrize("source", ["array", "read-only", "backwards", "host", "pinned", "device"])
def test_a_gpu_scores_tokens_wherever_they_lie(
    tiny_model: EDJEModel, on_gpu: EDJEModel, source: str, texts: list[str], batch_size: int | None
) -> None:
    rng = np.random.default_rng(0)
    given: Any = rng.standard_normal((len(texts), 4, 16)).astype(np.float16)
    expected = Reranker(tiny_model).score_pairs(texts, given)
    if source == "read-only":
        given.flags.writeable = False
    elif source == "backwards":
        given = given[::-1].copy()[::-1]
    elif source != "array":
        given = torch.from_numpy(given)
        given = given.pin_memory() if source == "pinned" else given
        given = given.cuda() if source == "device" else given
    reranker = Reranker(on_gpu, batch_size=batch_size)
    for _ in range(3):  # CUDA graphs are recorded in between
        scores = reranker.score_pairs(texts, given)
        np.testing.assert_allclose(scores, expected, atol=1e-3)


@pytest.mark.gpu
def test_a_gpu_is_waited_for_only_once(on_gpu: EDJEModel) -> None:
    tokens = torch.randn(400, 4, 16, device="cuda", dtype=torch.float16)
    texts = [TEXTS[row % len(TEXTS)] for row in range(400)]
    reranker = Reranker(on_gpu, batch_size=64)
    for _ in range(3):  # CUDA graphs are recorded in between
        expected = reranker.score_pairs(texts, tokens)
    with never_waiting_for_the_gpu():
        captions = reranker._captions(texts)
        feed = TokenFeed(tokens, captions.order, tokens.device)
        logits = reranker._logits(captions, feed)
    assert captions.order is not None
    np.testing.assert_allclose(logits.cpu().numpy(), expected[captions.order], atol=1e-3)


@pytest.mark.gpu
def test_a_gpu_without_memory_for_a_batch_takes_smaller_ones(
    on_gpu: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.random.default_rng(0).normal(size=(300, 4, 16)).astype(np.float16)
    expected = Reranker(on_gpu).score("a cat", tokens)
    forward = FastJointEncoder.__call__

    def large(self: Any, captions: Any, part: torch.Tensor) -> torch.Tensor:
        if len(part) > 40:
            torch.empty(1 << 45, dtype=torch.uint8, device="cuda")  # 32 TiB
        return forward(self, captions, part)

    monkeypatch.setattr(FastJointEncoder, "__call__", large)
    np.testing.assert_allclose(Reranker(on_gpu).score("a cat", tokens), expected, atol=1e-3)
