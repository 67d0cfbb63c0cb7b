from __future__ import annotations

from dataclasses import replace

import pytest
import reference
import torch
from rounding import float32_slack
from tiny import CAPTIONS, CLS, SEP, Published, pictures, publish, tokenizer

from edje_qdrant.encoders import clean_caption
from edje_qdrant.encoders.siglip_pixels import SiglipPixels
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model import EDJEModelForIndexing, EDJEModelForRanking


def halves(published: Published) -> tuple[EDJEModelForIndexing, EDJEModelForRanking]:
    """Follow the published card's snippet."""
    indexing = EDJEModelForIndexing(
        siglip_path=published.siglip,
        language_model_path=published.language_model,
        num_compressed_tokens=published.num_tokens,
    )
    ranking = EDJEModelForRanking(
        language_model_path=published.language_model,
        num_compressed_tokens=published.num_tokens,
    )
    checkpoint = torch.load(published.write(), map_location="cpu", weights_only=True)
    indexing.load_state_dict(checkpoint["model"], strict=False)
    ranking.load_state_dict(checkpoint["model"], strict=False)
    return indexing.eval(), ranking.eval()


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"deeper_vision_keys": True},
        {"equal_towers": False},
        {"local": True, "image_size": 96, "patch_size": 4},
    ],
    ids=["compressed", "keys of transformers 4", "two towers", "local"],
)
def test_the_card_s_snippet_gives_the_reference_s_scores(tmp_path, kind) -> None:
    published = publish(tmp_path, **kind)
    indexing, ranking = halves(published)
    pixels = SiglipPixels.from_folder(published.siglip).process(pictures(1))
    captions = [clean_caption(c) for c in CAPTIONS]
    inputs = tokenizer()(
        captions, padding=True, truncation=True, max_length=64, return_tensors="pt"
    )
    with torch.no_grad():
        tokens = indexing(pixels)
        scores = ranking(
            compressed_tokens=tokens.expand(len(captions), -1, -1),
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
        )
    state, z = published.state, published.sizes
    expected = reference.tokens(state, pixels[0], z)
    torch.testing.assert_close(tokens[0], expected, atol=float32_slack(expected), rtol=0)
    pieces = [tokenizer()(c, add_special_tokens=False)["input_ids"] for c in captions]
    expected_scores = torch.tensor(
        [reference.score(state, p, CLS, SEP, expected, z) for p in pieces]
    )
    assert scores.shape == (len(captions),)
    torch.testing.assert_close(scores, expected_scores, atol=float32_slack(expected_scores), rtol=0)


@pytest.mark.parametrize(
    ("half", "key"),
    [
        (0, "vision_encoder.post_layernorm.bias"),
        (0, "vision_projection.query"),
        (0, "vision_projection.attention.in_proj_weight"),
        (1, "classification_head.0.dense.bias"),
        (1, "language_model.bert.embeddings.word_embeddings.weight"),
        (1, "language_model.bert.encoder.layer.1.output.LayerNorm.weight"),
    ],
)
def test_missing_key_is_an_error_even_when_not_strict(
    published: Published, half: int, key: str
) -> None:
    part = halves(published)[half]
    state = {k: v for k, v in published.state.items() if k != key}
    with pytest.raises(CheckpointError) as caught:
        part.load_state_dict(state, strict=False)
    assert key in caught.value.missing


@pytest.mark.parametrize("half", [0, 1])
def test_a_state_with_nothing_of_use_is_an_error(published: Published, half: int) -> None:
    for state in ({}, {"weight": torch.zeros(3)}):
        with pytest.raises(CheckpointError):
            halves(published)[half].load_state_dict(state, strict=False)


def test_wrong_shape_is_an_error(published: Published) -> None:
    indexing, ranking = halves(published)
    key = "classification_head.0.dense.weight"
    with pytest.raises(CheckpointError) as caught:
        ranking.load_state_dict({**published.state, key: torch.zeros(36, 35)}, strict=False)
    assert caught.value.mismatched == {key: ((36, 36), (36, 35))}
    key = "vision_encoder.embeddings.position_embedding.weight"
    with pytest.raises(CheckpointError) as caught:
        indexing.load_state_dict({**published.state, key: torch.zeros(9, 32)}, strict=False)
    assert caught.value.mismatched == {key: ((16, 32), (9, 32))}


def test_ranking_needs_only_its_own_part(published: Published) -> None:
    kept = ("language_model.bert.", "classification_head.")
    state = {k: v for k, v in published.state.items() if k.startswith(kept)}
    _, ranking = halves(published)
    fresh = EDJEModelForRanking(published.language_model, published.num_tokens)
    fresh.load_state_dict(state)
    for name, tensor in ranking.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], tensor)


def test_another_number_of_tokens_is_refused(published: Published) -> None:
    half = EDJEModelForIndexing(published.siglip, published.language_model, 7)
    with pytest.raises(CheckpointError, match="num_compressed_tokens=5, not 7"):
        half.load_state_dict(published.state, strict=False)
    _, ranking = halves(published)
    ids = torch.tensor([[CLS, 8, SEP]])
    with pytest.raises(ConfigError, match="compressed_tokens"):
        ranking(torch.zeros(1, 7, 36), ids, torch.ones_like(ids))


def test_own_state_is_loaded_back_and_device_and_dtype_are_kept(published: Published) -> None:
    indexing, _ = halves(published)
    other = EDJEModelForIndexing(published.siglip, published.language_model, 5).to(torch.bfloat16)
    other.load_state_dict(published.state, strict=False)
    assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
    again = EDJEModelForIndexing(published.siglip, published.language_model, 5)
    again.load_state_dict(published.state, strict=False)
    again.load_state_dict(indexing.state_dict())
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again.eval()(pixels), indexing(pixels))


def test_missing_settings_are_refused(published: Published, tmp_path) -> None:
    empty = replace(published, siglip=tmp_path)
    with pytest.raises(CheckpointError, match="siglip model"):
        EDJEModelForIndexing(empty.siglip, empty.language_model, 5)
    with pytest.raises(CheckpointError, match="bert model"):
        EDJEModelForRanking(tmp_path, 5)
