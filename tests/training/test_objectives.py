from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rounding import float32_slack
from tiny_edje import build_tiny_model

from edje_qdrant.errors import ConfigError
from edje_qdrant.training.losses import image_text_matching, text_recovery
from edje_qdrant.training.objectives import Batch, Objectives, TrainedParts, mask_words

MATCHING = Objectives(words=0, recovery=0)
CAPTIONS = ["a red kite", "two dogs", "some old blue boats", "a dog"]


@pytest.fixture(scope="module")
def model():
    return build_tiny_model(dropout=0.0).train()


def make_batch(model, captions=CAPTIONS, seed=3):
    generator = torch.Generator().manual_seed(seed)
    size = len(captions)
    ids, mask = model.tokenize(captions)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    return Batch(
        vision_tokens=torch.randn(
            size, model.encoder.num_patches, model.encoder.hidden_size, generator=generator
        ),
        image_embeddings=unit(size, 24),
        text_embeddings=unit(size, 24),
        input_ids=ids,
        attention_mask=mask,
        image_ids=torch.arange(size),
        caption_ids=torch.arange(size),
    )


@pytest.fixture
def batch(model):
    return make_batch(model)


def score(model, batch, caption, picture):
    """Score one pair by itself, without padding."""
    ids = batch.input_ids[caption : caption + 1, : int(batch.attention_mask[caption].sum())]
    tokens = model.adapter(batch.vision_tokens)[picture : picture + 1]
    return model.joint_encoder(ids, torch.ones_like(ids), tokens)[0]


def test_matching_scores_the_mined_pairs(model, batch):
    found = TrainedParts(model, MATCHING)(batch)
    similarity = (batch.text_embeddings @ batch.image_embeddings.T).fill_diagonal_(-2.0)
    positive = torch.stack([score(model, batch, i, i) for i in range(4)])
    images = torch.stack([score(model, batch, i, int(similarity[i].argmax())) for i in range(4)])
    captions = torch.stack(
        [score(model, batch, int(similarity[:, i].argmax()), i) for i in range(4)]
    )
    expected = image_text_matching(positive, images[:, None], captions[:, None])
    assert found.keys() == {"matching", "_match_accuracy"}
    assert found["matching"].item() == pytest.approx(expected.item(), abs=float32_slack(expected))


def test_equal_pictures_equal_captions_and_true_pairs_are_no_negatives(model, batch):
    own = torch.arange(4)
    everything = torch.ones(4, 4, dtype=torch.bool)
    for change in (
        {"image_ids": own * 0},
        {"caption_ids": own * 0},
        {"true_pairs": everything},
    ):
        assert TrainedParts(model, MATCHING)(replace(batch, **change))["matching"].item() == 0.0


def test_several_negatives_of_each_kind_are_scored_together(model, batch):
    found = TrainedParts(model, replace(MATCHING, num_negatives=3))(batch)
    table = torch.stack(
        [torch.stack([score(model, batch, c, p) for p in range(4)]) for c in range(4)]
    )
    positive = table.diagonal()
    others = ~torch.eye(4, dtype=torch.bool)
    expected = image_text_matching(positive, table[others].view(4, 3), table.T[others.T].view(4, 3))
    assert found["matching"].item() == pytest.approx(expected.item(), abs=float32_slack(expected))


def test_random_negatives_follow_from_the_seed_alone(model, batch):
    parts = TrainedParts(model, MATCHING)

    def loss(seed):
        return parts(replace(batch, hard=False, seed=seed))["matching"].item()

    assert loss(1) == loss(1)
    assert len({loss(seed) for seed in range(6)}) > 2


def test_contradictions_are_a_third_kind_of_negatives(model, batch):
    ids, mask = model.tokenize(["a blue kite", "two cats", "old", "no dog at all"])
    contradicted = torch.tensor([True, True, False, True])
    with_them = replace(
        batch,
        contradictions=ids,
        contradictions_mask=mask,
        contradicted=contradicted[:, None],
    )
    parts = TrainedParts(model, MATCHING)
    two_kinds, found = parts(batch)["matching"], parts(with_them)["matching"]
    tokens = model.adapter(batch.vision_tokens)
    positive = model.joint_encoder(batch.input_ids, batch.attention_mask, tokens)
    false = model.joint_encoder(ids, mask, tokens)
    third = torch.nn.functional.softplus(false - positive)[contradicted].sum() / 4
    expected = (2 * two_kinds + third) / 3
    assert found.item() == pytest.approx(expected.item(), abs=float32_slack(expected))


def test_recovery_reads_the_caption_alone(model, batch):
    found = TrainedParts(model, Objectives(matching=0, words=0, recovery=2.0))(batch)
    features = model.joint_encoder.caption_features(batch.input_ids, batch.attention_mask)
    expected = 2 * text_recovery(features, batch.text_embeddings)
    assert found["recovery"].item() == pytest.approx(expected.item(), abs=float32_slack(expected))


def test_words_are_predicted_with_the_picture_in_view(model, batch):
    model.zero_grad()
    TrainedParts(model, Objectives(matching=0, recovery=0))(batch)["words"].backward()
    assert model.adapter.query.grad.abs().sum() > 0


def test_every_trained_part_learns_and_the_encoder_does_not(model, batch):
    model.zero_grad()
    losses = TrainedParts(model, Objectives())(batch)
    sum(v for k, v in losses.items() if not k.startswith("_")).backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert silent == {n for n, _ in model.named_parameters() if n.startswith("encoder.")}


def test_distillation_asks_for_the_teacher_s_scores(model, batch):
    teacher = build_tiny_model(1, adapter="local", dropout=0.0)
    teacher.encoder = model.encoder
    settings = Objectives(matching=0, words=0, recovery=0, distillation=2.0)
    parts = TrainedParts(model, settings, teacher=teacher)
    found = parts(batch)
    similarity = (batch.text_embeddings @ batch.image_embeddings.T).fill_diagonal_(-2.0)
    own = range(4)
    pairs = [(i, i) for i in own] + [(i, int(similarity[i].argmax())) for i in own]
    pairs += [(int(similarity[:, i].argmax()), i) for i in own]
    logits = torch.stack([score(model, batch, *pair) for pair in pairs])
    soft = torch.stack([score(teacher, batch, *pair) for pair in pairs]).sigmoid()
    expected = -(soft * logits.sigmoid().log() + (1 - soft) * (1 - logits.sigmoid()).log()).mean()
    assert found.keys() == {"distillation", "_match_accuracy"}
    assert found["distillation"].item() == pytest.approx(
        2 * expected.item(), abs=float32_slack(2 * expected)
    )
    assert not [n for n, _ in parts.named_parameters() if "teacher" in n]
    found["distillation"].backward()
    assert all(p.grad is None for p in teacher.adapter.parameters())


def test_a_teacher_on_another_encoder_is_refused(model):
    settings = Objectives(distillation=1.0)
    with pytest.raises(ConfigError, match="same encoder"):
        TrainedParts(model, settings, teacher=build_tiny_model(7))
    with pytest.raises(ConfigError, match="needs a teacher"):
        TrainedParts(model, settings)
    with pytest.raises(ConfigError, match="needs a weight"):
        TrainedParts(model, Objectives(), teacher=model)


@pytest.mark.parametrize(
    "wrong",
    [
        {"matching": -1.0},
        {"matching": 0, "words": 0, "recovery": 0},
        {"num_negatives": 0},
        {"masked_share": 0.0},
    ],
)
def test_senseless_objectives_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        Objectives(**wrong)


def test_more_negatives_than_the_batch_holds_are_refused(model, batch):
    with pytest.raises(ConfigError, match="num_negatives must be 1 to 3"):
        TrainedParts(model, replace(MATCHING, num_negatives=4))(batch)


def test_half_of_the_words_are_masked_and_nothing_else():
    special = torch.tensor([0, 2, 3, 4])  # [PAD] [CLS] [SEP] [MASK]
    ids = torch.tensor([[2, *range(10, 20), 3], [2, 10, 11, 12, 3, *[0] * 7], [2, 10, 3, *[0] * 9]])
    counts = []
    for seed in range(50):
        noise = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
        masked, where = mask_words(ids, special, 4, noise)
        assert torch.equal(masked[~where], ids[~where])
        assert (masked[where] == 4).all()
        assert not torch.isin(ids[where], special).any()
        counts.append(where)
    assert {tuple(w.sum(dim=1).tolist()) for w in counts} == {(5, 2, 1)}
    assert torch.stack(counts).float().mean(dim=0)[0, 1:11].min() > 0.2  # every word has its turn
