from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import plain_kernels
import pytest
import torch
from joint_pairs import captions, plain
from rounding import float32_slack
from tiny import SEP, bert_config
from torch import Tensor
from transformers import BertForMaskedLM

from edje_qdrant.model import FastJointEncoder, JointEncoder
from edje_qdrant.model.flat_modules import FlatModules
from edje_qdrant.model.inference.fused_forward import PackedPairs, first_states, pack_pairs
from edje_qdrant.model.inference.packed_weights import PackedWeights, pack, signature

WIDTH, HEADS = 128, 4
MIXED = [(3, 2), (5, 4), (1, 9), (20, 17)]


def build(**changes: Any) -> JointEncoder:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 256,
        "max_position_embeddings": 512, "initializer_range": 0.1,
    }  # fmt: skip
    language_model = BertForMaskedLM(bert_config(**{**sizes, **changes}))
    encoder = JointEncoder(
        language_model, sep_token_id=SEP, embedding_dim=8, max_caption_tokens=400
    ).eval()
    with torch.no_grad():
        encoder.pooler.weight.normal_(std=0.1)
        encoder.classifier.weight.normal_(std=0.5)
    return encoder


def packed_with(kernels: ModuleType, encoder: JointEncoder) -> PackedWeights:
    """Pack the weights as on a GPU that has `kernels`."""
    packed = pack(encoder, "float32", signature(encoder, "float32", FlatModules()))

    def fused(after: Any) -> Any:
        return replace(
            after,
            attention_norm=replace(after.attention_norm, add_norm=kernels.add_norm),
            norm=replace(after.norm, add_norm=kernels.add_norm),
        )

    return replace(
        packed,
        kernels=kernels,
        layers=tuple(replace(layer, after=fused(layer.after)) for layer in packed.layers),
        last=replace(packed.last, after=fused(packed.last.after)),
    )


def logits(encoder: JointEncoder, first: Tensor) -> Tensor:
    return encoder.classifier(torch.tanh(encoder.pooler(first)))[:, 0]


@pytest.mark.parametrize("shapes", [[(1, 1)], [(7, 3)], MIXED])
def test_pairs_end_to_end_score_as_the_training_form_does(shapes: list[tuple[int, int]]) -> None:
    encoder = build()
    groups = [captions(n, length) for n, length in shapes]
    tokens = torch.randn(sum(n for n, _ in shapes), 5, WIDTH)
    with torch.inference_mode():
        first = first_states(packed_with(plain_kernels, encoder), pack_pairs(groups, tokens))
        found = logits(encoder, first)
    expected = plain(encoder, groups, tokens)
    torch.testing.assert_close(found, expected, atol=float32_slack(expected), rtol=0)


def test_empty_sequences_and_rows_behind_the_last_change_nothing() -> None:
    encoder = build()
    groups = [captions(n, length) for n, length in MIXED]
    n = sum(n for n, _ in MIXED)
    tokens = torch.randn(n, 5, WIDTH)
    pairs = pack_pairs(groups, tokens)
    more = PackedPairs(
        ids=torch.cat([pairs.ids, torch.zeros(100, dtype=torch.int64)]),
        bounds=torch.cat([pairs.bounds, pairs.bounds[:, -1:].expand(2, 6)], dim=1),
        tokens=torch.cat([tokens, torch.full((6, 5, WIDTH), torch.nan)]),
        rows=pairs.rows + 40,
        longest=pairs.longest + 8,
    )
    packed = packed_with(plain_kernels, encoder)
    with torch.inference_mode():
        # A product of more rows may be computed in another order.
        torch.testing.assert_close(
            first_states(packed, more)[:n], first_states(packed, pairs), atol=1e-4, rtol=0
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [2, 4, 8])
@pytest.mark.parametrize(
    ("m", "shapes"),
    [
        (1, [(1, 1)]), (3, [(300, 4)]), (5, MIXED), (64, [(1, 16)]), (64, [(100, 16)]),
        (64, [(3, 2), (64, 16), (1, 31), (5, 40), (2, 61)]), (64, [(9, 62), (3, 63)]),
        (64, [(4, 150), (2, 3)]), (64, [(2, 189), (1, 190)]), (64, [(3, 250)]), (70, [(2100, 9)]),
    ],
)  # fmt: skip
def test_kernels_score_as_the_training_form_does(
    dtype: torch.dtype, heads: int, m: int, shapes: list[tuple[int, int]]
) -> None:
    encoder = build(num_attention_heads=heads).cuda()
    groups = [captions(n, length).cuda() for n, length in shapes]
    tokens = torch.randn(sum(n for n, _ in shapes), m, WIDTH, device="cuda")
    expected = plain(encoder, groups, tokens)
    rounded = build(num_attention_heads=heads).to("cuda", dtype)
    fast = FastJointEncoder(rounded)
    # The training form in the same precision is as far from float32 as rounding takes it.
    slack = 4 * (plain(rounded, groups, tokens.to(dtype)) - expected).abs().max()
    slack += 4 * torch.finfo(dtype).eps  # one pair's difference may be small by chance
    for _ in range(4):  # met, recorded, replayed twice
        found = fast(groups, tokens.to(dtype)).float()
        assert (found - expected).abs().max() <= slack
    assert len(found) < 3 or expected.std() > slack  # or any order would pass


@pytest.mark.gpu
def test_a_graph_serves_all_batches_of_its_bucket_and_follows_the_weights() -> None:
    encoder = build().to("cuda", torch.bfloat16)
    fast = FastJointEncoder(encoder)
    tokens = torch.randn(40, 20, WIDTH, device="cuda", dtype=torch.bfloat16)
    for turn in range(6):
        for shapes in ([(29, 4)], [(15, 4), (16, 5)], [(30, 3)], [(1, 9), (28, 4)]):
            groups = [captions(n, length).cuda() for n, length in shapes]
            own = tokens[: sum(n for n, _ in shapes)]
            expected = plain(encoder, groups, own).float()
            slack = 4 * torch.finfo(torch.bfloat16).eps * expected.abs().max()
            assert (fast(groups, own).float() - expected).abs().max() < slack
        if turn == 3:
            with torch.no_grad():
                encoder.classifier.weight.mul_(-1)


@pytest.mark.gpu
def test_a_gpu_without_the_kernels_scores_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from edje_qdrant.model.inference import fused_kernels

    encoder = build().to("cuda", torch.bfloat16)
    groups = [captions(n, length).cuda() for n, length in MIXED]
    tokens = torch.randn(29, 5, WIDTH, device="cuda", dtype=torch.bfloat16)
    found = FastJointEncoder(encoder)(groups, tokens)
    monkeypatch.setattr(fused_kernels, "_kernels", lambda: None)
    other = FastJointEncoder(encoder)
    slack = 4 * torch.finfo(torch.bfloat16).eps * float(found.abs().max())
    torch.testing.assert_close(other(groups, tokens), found, atol=slack, rtol=0)
    assert other._current().kernels is None
