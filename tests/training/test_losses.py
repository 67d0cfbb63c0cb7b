from __future__ import annotations

import math

import pytest
import torch
from rounding import DOT, float32_slack

from edje_qdrant.training.losses import (
    image_text_matching,
    sigmoid_contrastive,
    text_recovery,
    word_loss,
)


def unit(*shape: int, seed: int) -> torch.Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def test_sigmoid_contrastive_is_the_sum_over_pairs():
    images, texts = unit(4, 8, seed=1), unit(4, 8, seed=2)
    scale, bias = torch.tensor(1.3), torch.tensor(-0.7)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            logit = float(texts[i] @ images[j]) * math.exp(1.3) - 0.7
            sign = 1 if i == j else -1
            expected += math.log1p(math.exp(-sign * logit)) / 4
    assert sigmoid_contrastive(images, texts, scale, bias).item() == pytest.approx(expected)


def test_sigmoid_contrastive_leaves_out_ignored_pairs_but_never_the_pair_itself():
    images, texts = unit(3, 8, seed=1), unit(3, 8, seed=2)
    scale, bias = torch.tensor(1.0), torch.tensor(0.0)
    everything = torch.ones(3, 3, dtype=torch.bool)
    own = -torch.nn.functional.logsigmoid((texts * images).sum(-1) * math.e).mean()
    found = sigmoid_contrastive(images, texts, scale, bias, ignore=everything)
    assert found.item() == pytest.approx(own.item())


def test_matching_is_cross_entropy_with_the_positive_first_averaged_over_kinds():
    positive = torch.tensor([2.0, 0.0])
    images, captions = torch.tensor([[1.0], [0.0]]), torch.tensor([[-1.0], [3.0]])

    def entropy(p: float, n: float) -> float:
        return math.log(1 + math.exp(n - p))

    expected = (entropy(2, 1) + entropy(0, 0)) / 2 / 2 + (entropy(2, -1) + entropy(0, 3)) / 2 / 2
    assert image_text_matching(positive, images, captions).item() == pytest.approx(expected)


def test_a_pair_without_a_negative_costs_nothing():
    loss = image_text_matching(torch.tensor([0.5]), torch.tensor([[-torch.inf]]))
    assert loss.item() == 0.0


def test_word_loss_is_cross_entropy_in_float32():
    logits = torch.zeros(3, 10, dtype=torch.bfloat16)
    loss = word_loss(logits, torch.tensor([1, 2, 3]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(10))


def test_text_recovery_is_one_less_the_cosine():
    target = unit(4, 8, seed=1)
    assert text_recovery(3 * target, target).item() == pytest.approx(
        0, abs=float32_slack(1, roundings=DOT)
    )
    assert text_recovery(-target, target).item() == pytest.approx(2)
