from __future__ import annotations

import pytest
import torch
from rounding import float32_slack
from tiny import CLS, SEP, bert_config
from transformers import BertForMaskedLM

from edje_qdrant.model import JointEncoder, extend_positions

M, WIDTH = 3, 36


@pytest.fixture
def joint_encoder() -> JointEncoder:
    torch.manual_seed(0)
    language_model = BertForMaskedLM(bert_config(initializer_range=1.0))
    return JointEncoder(language_model, sep_token_id=SEP, embedding_dim=8).eval()


def caption(length: int) -> list[int]:
    return [CLS, *(8 + i % 12 for i in range(length)), SEP]


def padded(captions: list[list[int]], to: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([c + [0] * (to - len(c)) for c in captions])
    mask = torch.tensor([[1] * len(c) + [0] * (to - len(c)) for c in captions])
    return ids, mask


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_nothing(joint_encoder: JointEncoder, attention: str) -> None:
    joint_encoder.language_model.set_attn_implementation(attention)
    captions = [caption(n) for n in (1, 4, 9)]
    tokens = torch.randn(3, M, WIDTH)
    with torch.no_grad():
        together = joint_encoder(*padded(captions, 20), tokens)
        for i, c in enumerate(captions):
            alone = joint_encoder(*padded([c], len(c)), tokens[i : i + 1])
            torch.testing.assert_close(alone[0], together[i], atol=float32_slack(together), rtol=0)
    assert together.std() > 0.01


def test_what_stands_in_the_padding_is_not_read(joint_encoder: JointEncoder) -> None:
    ids, mask = padded([caption(2), caption(6)], 10)
    other = torch.where(mask.bool(), ids, 9)
    tokens = torch.randn(2, M, WIDTH)
    with torch.no_grad():
        assert torch.equal(joint_encoder(ids, mask, tokens), joint_encoder(other, mask, tokens))


def test_long_captions_lose_their_end_and_keep_the_separator(joint_encoder: JointEncoder) -> None:
    tokens = torch.randn(2, M, WIDTH)
    with torch.no_grad():
        scores = joint_encoder(*padded([caption(90), caption(62)], 92), tokens)
        expected = joint_encoder(*padded([caption(61), caption(61)], 63), tokens)
        whole = joint_encoder(*padded([caption(61), caption(60)], 63), tokens)
        hidden = joint_encoder.hidden_states(*padded([caption(90)], 92), tokens[:1])
    torch.testing.assert_close(scores, expected)
    assert not torch.isclose(scores[1], whole[1])
    assert hidden.shape == (1, 64 + M, WIDTH)


def test_input_is_left_as_it_was(joint_encoder: JointEncoder) -> None:
    ids, mask = padded([caption(80)], 82)
    before = ids.clone()
    joint_encoder(ids, mask, torch.randn(1, M, WIDTH))
    assert torch.equal(ids, before)


def test_word_logits_of_chosen_places(joint_encoder: JointEncoder) -> None:
    ids, mask = padded([caption(3), caption(80)], 82)
    tokens = torch.randn(2, M, WIDTH)
    where = mask.bool() & (ids != CLS) & (ids != SEP)
    with torch.no_grad():
        everywhere = joint_encoder.mlm_logits(ids, mask, tokens)
        chosen = joint_encoder.mlm_logits(ids, mask, tokens, where)
    assert everywhere.shape == (2, 63, 26)
    torch.testing.assert_close(chosen, everywhere[where[:, :63]])


def test_gradients_reach_every_part_from_each_objective(joint_encoder: JointEncoder) -> None:
    joint_encoder.train()
    ids, mask = padded([caption(2), caption(6)], 8)
    tokens = torch.randn(2, M, WIDTH, requires_grad=True)
    joint_encoder(ids, mask, tokens).sum().backward()
    assert tokens.grad is not None
    assert bool((tokens.grad.abs().sum(dim=(1, 2)) > 0).all())
    joint_encoder.mlm_logits(ids, mask, tokens).square().sum().backward()
    joint_encoder.caption_features(ids, mask).square().sum().backward()
    assert [n for n, p in joint_encoder.named_parameters() if p.grad is None] == []


def test_positions_are_extended_by_the_last_one() -> None:
    model = BertForMaskedLM(bert_config(max_position_embeddings=10))
    before = model.bert.embeddings.position_embeddings.weight.detach().clone()
    extend_positions(model, 14)
    after = model.bert.embeddings.position_embeddings.weight
    torch.testing.assert_close(after[:10], before)
    torch.testing.assert_close(after[10:], before[-1:].expand(4, -1))
    assert model.config.max_position_embeddings == 14
    assert after.requires_grad
    assert model(torch.full((1, 14), 8)).logits.shape == (1, 14, 26)
    extend_positions(model, 5)
    assert len(model.bert.embeddings.position_embeddings.weight) == 14


def test_states_of_a_layer_are_those_of_a_model_that_ends_there(
    joint_encoder: JointEncoder,
) -> None:
    pairs = (*padded([caption(3), caption(7)], 12), torch.randn(2, M, WIDTH))
    layers = joint_encoder.language_model.bert.encoder.layer
    with torch.no_grad():
        first = joint_encoder.hidden_states(*pairs, layer=1)
        last = joint_encoder.hidden_states(*pairs, layer=len(layers))
        assert torch.equal(last, joint_encoder.hidden_states(*pairs))
        joint_encoder.language_model.bert.encoder.layer = layers[:1]
        torch.testing.assert_close(first, joint_encoder.hidden_states(*pairs))
    assert not torch.allclose(first, last)
