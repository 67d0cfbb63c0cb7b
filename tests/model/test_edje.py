from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from rounding import DOT, float16_slack, float32_slack
from tiny import bert_config, pictures, siglip_config, tokenizer
from transformers import BertForMaskedLM, SiglipModel

from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.siglip_pixels import SiglipPixels
from edje_qdrant.errors import ConfigError
from edje_qdrant.model import EDJEModel
from edje_qdrant.text import clean_captions


def test_shapes_and_dtypes(model: EDJEModel) -> None:
    encoding = model.encode_images(pictures(5), batch_size=2)
    assert encoding.embeddings.shape == (5, 32)
    assert encoding.embeddings.dtype == np.float32
    assert encoding.tokens.shape == (5, 5, 36)
    assert encoding.tokens.dtype == np.float16
    one = float32_slack(1, roundings=DOT)
    np.testing.assert_allclose(np.linalg.norm(encoding.embeddings, axis=1), 1, atol=one)
    texts = model.encode_texts(["a red circle", "the cat"])
    assert texts.shape == (2, 32)
    assert texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=one)
    scores = model.score("a red circle", encoding.tokens)
    assert scores.shape == (5,)
    assert scores.dtype == np.float32


def test_batch_size_changes_nothing(model: EDJEModel) -> None:
    images, captions = pictures(5), ["red", "a blue star", "the cat", "the the the dog", "a"]
    one, many = (model.encode_images(images, batch_size=n) for n in (1, 5))
    np.testing.assert_allclose(one.embeddings, many.embeddings, atol=float32_slack(1))
    np.testing.assert_allclose(one.tokens, many.tokens, atol=float16_slack(many.tokens))
    pairs = model.score_pairs(captions, many.tokens)
    np.testing.assert_allclose(
        model.score_pairs(captions, many.tokens, batch_size=2), pairs, atol=float32_slack(pairs)
    )
    scores = model.score(captions[1], many.tokens, batch_size=2)
    np.testing.assert_allclose(scores[1], pairs[1], atol=float32_slack(pairs))


def test_tokens_may_be_numpy_or_torch_and_read_only(model: EDJEModel) -> None:
    tokens = model.encode_images(pictures(3)).tokens
    expected = model.score("a star", tokens)
    np.testing.assert_allclose(model.score("a star", torch.from_numpy(tokens)), expected)
    np.testing.assert_allclose(model.score("a star", tokens.astype(np.float32)), expected)
    tokens.flags.writeable = False
    np.testing.assert_allclose(model.score("a star", tokens), expected)


def test_nothing_in_nothing_out(model: EDJEModel) -> None:
    encoding = model.encode_images([])
    assert encoding.embeddings.shape == (0, 32)
    assert encoding.tokens.shape == (0, 5, 36)
    assert model.encode_texts([]).shape == (0, 32)
    assert model.score("red", encoding.tokens).shape == (0,)
    assert model.score_pairs([], encoding.tokens).shape == (0,)


def test_texts_are_cleaned_up(model: EDJEModel) -> None:
    tokens = model.encode_images(pictures(2)).tokens
    messy, clean = "  A_Red&nbsp;CIRCLE!?", "a red circle"
    np.testing.assert_array_equal(model.encode_texts([messy]), model.encode_texts([clean]))
    np.testing.assert_array_equal(model.score(messy, tokens), model.score(clean, tokens))


@pytest.mark.parametrize("text", ["", "   ", "?!", "_", "&nbsp;"])
def test_text_without_a_word_is_refused(model: EDJEModel, text: str) -> None:
    tokens = np.zeros((1, 5, 36), np.float16)
    with pytest.raises(ConfigError, match="at least one word"):
        model.encode_texts(["red", text])
    with pytest.raises(ConfigError, match="at least one word"):
        model.score(text, tokens)
    with pytest.raises(ConfigError, match="at least one word"):
        model.score_pairs([text], tokens)


@pytest.mark.parametrize("shape", [(5, 36), (2, 4, 36), (2, 5, 35), (2, 180)])
def test_tokens_of_a_wrong_shape_are_refused(model: EDJEModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"\(n, 5, 36\)"):
        model.score("red", np.zeros(shape, np.float16))


def test_one_text_for_each_picture(model: EDJEModel) -> None:
    with pytest.raises(ConfigError, match="1 texts and the tokens of 2 images"):
        model.score_pairs(["red"], np.zeros((2, 5, 36), np.float16))
    with pytest.raises(ConfigError, match="list of texts"):
        model.encode_texts("red")


def test_training_mode_does_not_touch_inference(model: EDJEModel) -> None:
    model.eval()
    tokens = model.encode_images(pictures(2)).tokens
    expected = model.score("a red circle", tokens)
    model.train()
    np.testing.assert_array_equal(model.score("a red circle", tokens), expected)
    np.testing.assert_array_equal(model.encode_images(pictures(2)).tokens, tokens)
    assert all(module.training for module in model.modules())
    model.eval()
    model.joint_encoder.train()
    np.testing.assert_array_equal(model.score("a red circle", tokens), expected)
    assert model.joint_encoder.training
    assert not model.encoder.training


def test_inference_switches_off_dropout_of_modules_added_since(model: EDJEModel) -> None:
    model.encode_texts(["a"])
    classifier = model.joint_encoder.classifier
    try:
        model.joint_encoder.classifier = torch.nn.Sequential(classifier, torch.nn.Dropout())
        with model.inference():
            assert not any(module.training for module in model.modules())
        assert model.joint_encoder.classifier[1].training
    finally:
        model.joint_encoder.classifier = classifier


def test_inference_does_not_walk_through_the_modules(
    model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model.inference():
        pass
    monkeypatch.delattr(torch.nn.Module, "named_modules")
    with model.inference():
        assert torch.is_inference_mode_enabled()


def test_captions_are_tokenized_as_the_tokenizer_does_whatever_was_asked_of_it_before(
    model: EDJEModel,
) -> None:
    texts = ["red", "a blue star", "the cat " * 100, "Seven, kites!"]
    limit = model.joint_encoder.max_caption_length
    expected = model.tokenizer(
        clean_captions(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
    )
    for asked in ({}, {"padding": True}, {"truncation": True, "max_length": 3}):
        model.tokenizer(texts, **asked)
        ids, mask = model.tokenize(texts)
        assert torch.equal(ids, expected["input_ids"])
        assert torch.equal(mask, expected["attention_mask"])
        model.tokenizer(texts, **asked)
        rows = zip(ids.tolist(), mask.sum(dim=1).tolist(), strict=True)
        assert model.caption_ids(texts) == [row[:length] for row, length in rows]


def test_training_reaches_the_adapter_through_the_joint_encoder(model: EDJEModel) -> None:
    pixels = model.preprocess(pictures(2))
    ids, mask = model.tokenize(["red", "a blue star"])
    vision_tokens = model.encoder.encode_pixels(pixels)[1].detach()
    model.joint_encoder(ids, mask, model.adapter(vision_tokens)).sum().backward()
    assert [n for n, p in model.adapter.named_parameters() if p.grad is None] == []


def test_local_model_has_one_token_a_patch_and_room_for_them() -> None:
    config = siglip_config(image_size=96, patch_size=4)
    processor = SiglipPixels(size={"height": 96, "width": 96})
    encoder = SiglipEncoder(SiglipModel(config), processor, tokenizer(), name="tiny")
    model = EDJEModel.build(
        encoder, BertForMaskedLM(bert_config()), tokenizer(), adapter="local", num_tokens=3
    )
    tokens = model.encode_images(pictures(2)).tokens
    assert tokens.shape == (2, 576, 36)
    assert model.score("red " * 70, tokens).shape == (2,)
    assert model.joint_encoder.language_model.config.max_position_embeddings == 640


def test_special_token_of_pictures_is_known(model: EDJEModel) -> None:
    ids = model.tokenizer("<image>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 1
    assert model.joint_encoder.language_model.config.vocab_size == ids[0] + 1


def test_contract_follows_the_weights_but_not_device_dtype_or_mode(model: EDJEModel) -> None:
    first = model.contract()
    assert (first.num_tokens, first.token_dim, first.embedding_dim) == (5, 36, 32)
    assert first.encoder == "tiny"
    assert model.eval().to(torch.bfloat16).contract() == first
    model.float()
    adapter = torch.optim.SGD(model.adapter.parameters(), lr=0.1)
    model.adapter(torch.randn(1, 16, 32)).sum().backward()
    adapter.step()
    second = model.contract()
    assert second.adapter_hash != first.adapter_hash
    assert second.encoder_revision == first.encoder_revision
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1)
    assert model.contract().encoder_revision != first.encoder_revision
    assert model.contract().preprocessing == first.preprocessing


def test_pictures_of_any_mode_and_size(model: EDJEModel) -> None:
    images = [
        Image.new(mode, size) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F")
        for size in ((1, 1), (300, 7))
    ]  # fmt: skip
    assert model.encode_images(images).embeddings.shape == (16, 32)
