from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from edje_qdrant.model.adapter import CompressedAdapter
from edje_qdrant.model.joint_encoder import JointEncoder
from edje_qdrant.training.losses import image_text_matching, text_recovery
from edje_qdrant.training.objectives import Batch, ObjectiveWeights, mask_words, pretraining_losses

SPECIAL = torch.tensor([0, 2, 3, 4])  # [PAD] [CLS] [SEP] [MASK]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    joint = JointEncoder(BertForMaskedLM(config), sep_token_id=3, embedding_dim=12)
    adapter = CompressedAdapter(
        num_tokens=3,
        vision_hidden_size=8,
        token_dim=16,
        hidden_size=16,
        num_heads=2,
        activation="gelu",
        layer_norm_eps=1e-6,
    )
    ids = torch.tensor(
        [[2, 10, 11, 12, 3], [2, 13, 14, 3, 0], [2, 15, 16, 17, 3], [2, 18, 3, 0, 0]]
    )
    text = torch.nn.functional.normalize(torch.randn(4, 12), dim=-1)
    batch = Batch(
        vision_tokens=torch.randn(4, 9, 8),
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        text_embeddings=text,
        similarity=torch.randn(4, 4),
        forbidden=torch.eye(4, dtype=torch.bool),
    )
    return adapter, joint, batch


def losses(parts, weights=None, **settings):
    adapter, joint, batch = parts
    return pretraining_losses(
        adapter, joint, batch, weights or ObjectiveWeights(), mask_token_id=4, special_ids=SPECIAL,
        **settings,
    )  # fmt: skip


def test_matching_scores_the_mined_pairs(parts):
    adapter, joint, batch = parts
    found = losses(parts, ObjectiveWeights(words=0, recovery=0))
    tokens = adapter(batch.vision_tokens)
    open_pairs = batch.similarity.masked_fill(batch.forbidden, -torch.inf)

    def score(caption: int, picture: int) -> torch.Tensor:
        ids = batch.input_ids[caption : caption + 1, : int(batch.attention_mask[caption].sum())]
        return joint(ids, torch.ones_like(ids), tokens[picture : picture + 1])[0]

    positive = torch.stack([score(i, i) for i in range(4)])
    images = torch.stack([score(i, int(open_pairs[i].argmax())) for i in range(4)])
    captions = torch.stack([score(int(open_pairs[:, i].argmax()), i) for i in range(4)])
    expected = image_text_matching(positive, images[:, None], captions[:, None])
    assert found.keys() == {"matching", "_match_accuracy"}
    assert found["matching"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_contradictions_are_a_third_kind_of_negatives(parts):
    adapter, joint, batch = parts
    ids = torch.tensor([[2, 30, 11, 12, 3], [2, 31, 14, 3, 0], [2, 32, 3, 0, 0], [2, 33, 3, 0, 0]])
    contradicted = torch.tensor([True, True, False, True])
    with_them = replace(
        batch,
        contradictions=ids,
        contradictions_mask=(ids != 0).long(),
        contradicted=contradicted[:, None],
    )
    weights = ObjectiveWeights(words=0, recovery=0)
    two_kinds = losses(parts, weights)["matching"]
    found = losses((adapter, joint, with_them), weights)["matching"]
    tokens = adapter(batch.vision_tokens)
    positive = joint(batch.input_ids, batch.attention_mask, tokens)
    false = joint(ids, (ids != 0).long(), tokens)
    third = torch.log1p((false - positive).exp())[contradicted].sum() / 4
    assert found.item() == pytest.approx(((2 * two_kinds + third) / 3).item(), abs=1e-5)


def test_recovery_reads_the_caption_alone(parts):
    _adapter, joint, batch = parts
    found = losses(parts, ObjectiveWeights(words=0, matching=0, recovery=2.0))
    features = joint.caption_features(batch.input_ids, batch.attention_mask)
    expected = 2 * text_recovery(features, batch.text_embeddings)
    assert found["recovery"].item() == pytest.approx(expected.item(), abs=1e-6)


def test_words_are_predicted_with_the_picture_in_view(parts):
    adapter, _joint, _batch = parts
    torch.manual_seed(1)
    loss = losses(parts, ObjectiveWeights(matching=0, recovery=0))["words"]
    loss.backward()
    assert adapter.query.grad.abs().sum() > 0


def test_every_trained_part_learns_and_the_embeddings_get_no_gradient(parts):
    adapter, joint, _batch = parts
    sum(v for k, v in losses(parts).items() if not k.startswith("_")).backward()
    silent = [
        n
        for part in (adapter, joint)
        for n, p in part.named_parameters()
        if p.grad is None or p.grad.abs().sum() == 0
    ]
    assert silent == []


def test_half_of_the_words_are_masked_and_nothing_else():
    torch.manual_seed(0)
    ids = torch.tensor([[2, *range(10, 20), 3], [2, 10, 11, 12, 3, *[0] * 7], [2, 10, 3, *[0] * 9]])
    counts = []
    for _ in range(50):
        masked, where = mask_words(ids, SPECIAL, 4)
        assert torch.equal(masked[~where], ids[~where])
        assert (masked[where] == 4).all()
        assert not torch.isin(ids[where], SPECIAL).any()
        counts.append(where)
    assert {tuple(w.sum(dim=1).tolist()) for w in counts} == {(5, 2, 1)}
    assert torch.stack(counts).float().mean(dim=0)[0, 1:11].min() > 0.2  # every word has its turn
