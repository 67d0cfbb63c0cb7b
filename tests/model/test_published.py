from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from rounding import float32_slack
from tiny import CAPTIONS, CLS, SEP, Published, pictures, publish, tokenizer

from edje_qdrant.encoders import clean_caption
from edje_qdrant.errors import CheckpointError
from edje_qdrant.model import EDJEModel

KINDS = {
    "compressed": {},
    "compressed, keys of transformers 4": {"deeper_vision_keys": True},
    "compressed, two different towers": {"equal_towers": False},
    "local, 640 positions": {"local": True, "positions": 640, "image_size": 96, "patch_size": 4},
    "local, 512 positions saved": {"local": True, "image_size": 96, "patch_size": 4},
}


def load(published: Published, path: Path) -> EDJEModel:
    return EDJEModel.from_official_checkpoint(
        path,
        siglip_path=published.siglip,
        language_model_path=published.language_model,
        device="cpu",
    )


def word_pieces(caption: str) -> list[int]:
    return tokenizer()(clean_caption(caption), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_embeddings_and_logits_are_the_reference_s(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    published = publish(tmp_path, **KINDS[kind])
    model = load(published, published.write(dtype))
    state, z = published.as_float32(dtype), published.sizes
    images = pictures(len(CAPTIONS))
    pixels = model.preprocess(images)

    encoding = model.encode_images(images, batch_size=len(images))
    expected_tokens = torch.stack([reference.tokens(state, p, z) for p in pixels])
    with torch.no_grad():
        tokens = model.adapter(model.encoder.encode_pixels(pixels)[1])
    torch.testing.assert_close(tokens, expected_tokens, atol=float32_slack(expected_tokens), rtol=0)
    assert encoding.tokens.dtype == np.float16
    np.testing.assert_array_equal(encoding.tokens, tokens.half().numpy())

    expected = torch.stack([reference.image_embedding(state, p, z) for p in pixels])
    np.testing.assert_allclose(encoding.embeddings, expected, atol=float32_slack(expected))
    cleaned = [clean_caption(c) for c in CAPTIONS]
    ids = tokenizer()(
        cleaned, padding="max_length", truncation=True, max_length=12, return_tensors="pt"
    )["input_ids"]
    expected = torch.stack([reference.text_embedding(state, row, z) for row in ids])
    np.testing.assert_allclose(model.encode_texts(CAPTIONS), expected, atol=float32_slack(expected))
    np.testing.assert_allclose(
        model.encode_texts(CAPTIONS[:1]), expected[:1], atol=float32_slack(expected)
    )

    # Captions of different lengths in one batch: padding, and one caption that is cut.
    pieces = [word_pieces(c) for c in CAPTIONS]
    assert len(set(map(len, pieces))) > 2
    assert max(map(len, pieces)) > 61
    expected_scores = [
        reference.score(state, p, CLS, SEP, t, z)
        for p, t in zip(pieces, expected_tokens, strict=True)
    ]
    assert np.std(expected_scores) > 0.01
    scores = model.score_pairs(CAPTIONS, expected_tokens)
    slack = float32_slack(expected_scores)
    np.testing.assert_allclose(scores, expected_scores, atol=slack)
    one = model.score(CAPTIONS[1], expected_tokens.numpy())
    np.testing.assert_allclose(
        one,
        [reference.score(state, pieces[1], CLS, SEP, t, z) for t in expected_tokens],
        atol=slack,
    )


def test_word_logits_and_caption_features_are_the_reference_s(published: Published) -> None:
    model = load(published, published.write())
    state, z = published.state, published.sizes
    picture = torch.randn(1, 5, 36, generator=torch.Generator().manual_seed(0))
    ids, mask = model.tokenize(CAPTIONS)
    with torch.no_grad():
        logits = model.joint_encoder.mlm_logits(ids, mask, picture.expand(len(ids), -1, -1))
        features = model.joint_encoder.caption_features(ids, mask)
    for i, caption in enumerate(CAPTIONS):
        pieces = word_pieces(caption)
        expected = reference.word_logits(state, pieces, CLS, SEP, picture[0], z)
        torch.testing.assert_close(
            logits[i, : len(expected)], expected, atol=float32_slack(expected), rtol=0
        )
        expected = reference.caption_features(state, pieces, CLS, SEP, z)
        torch.testing.assert_close(features[i], expected, atol=float32_slack(expected), rtol=0)


def test_embedding_and_tokens_come_from_their_own_towers(tmp_path: Path) -> None:
    published = publish(tmp_path, equal_towers=False)
    model = load(published, published.write())
    assert model.config.separate_token_tower
    model.save_pretrained(tmp_path / "saved")
    again = EDJEModel.from_pretrained(tmp_path / "saved", device="cpu")
    images = pictures(2)
    np.testing.assert_array_equal(
        again.encode_images(images).tokens, model.encode_images(images).tokens
    )


def test_equal_towers_are_kept_once(published: Published) -> None:
    model = load(published, published.write())
    assert not model.config.separate_token_tower
    assert not any("token_tower" in name for name in model.state_dict())


REDUNDANT = (
    "text_embeddings.weight",
    "language_model.cls.predictions.decoder.weight",
    "language_model.cls.predictions.decoder.bias",
)


def test_redundant_tensors_may_be_missing_and_buffers_present(
    published: Published, tmp_path: Path
) -> None:
    state = {k: v for k, v in published.state.items() if k not in REDUNDANT}
    state["language_model.bert.embeddings.position_ids"] = torch.arange(512)[None]
    state["clip.vision_model.embeddings.position_ids"] = torch.arange(16)[None]
    lean = load(published, replace(published, state=state, folder=tmp_path).write())
    whole = load(published, published.write())
    tokens = whole.encode_images(pictures(2)).tokens
    np.testing.assert_array_equal(lean.score("red", tokens), whole.score("red", tokens))


@pytest.mark.parametrize(
    "key",
    [
        "vision_projection.query",
        "vision_projection.mlp.fc1.weight",
        "vision_projection.projection.bias",
        "vision_encoder.encoder.layers.1.mlp.fc2.weight",
        "clip.text_model.head.weight",
        "clip.vision_model.head.probe",
        "language_model.bert.embeddings.word_embeddings.weight",
        "language_model.bert.embeddings.position_embeddings.weight",
        "language_model.bert.encoder.layer.0.attention.self.query.bias",
        "classification_head.0.dense.weight",
        "classification_head.1.bias",
        "text_projection.weight",
    ],
)
def test_missing_key_is_named(published: Published, tmp_path: Path, key: str) -> None:
    state = {k: v for k, v in published.state.items() if k != key}
    path = replace(published, state=state, folder=tmp_path).write()
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")) as caught:
        load(published, path)
    assert key in caught.value.missing


def test_missing_key_is_named_as_the_file_spells_it(tmp_path: Path) -> None:
    published = publish(tmp_path, deeper_vision_keys=True)
    key = "vision_encoder.vision_model.post_layernorm.weight"
    del published.state[key]
    with pytest.raises(CheckpointError) as caught:
        load(published, published.write())
    assert caught.value.missing == (key,)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("vision_projection.key.weight", (32, 31)),
        ("vision_projection.query", (1, 5, 31)),
        ("vision_encoder.embeddings.position_embedding.weight", (17, 32)),
        ("clip.vision_model.embeddings.patch_embedding.weight", (32, 3, 4, 4)),
        ("language_model.bert.encoder.layer.1.intermediate.dense.weight", (45, 36)),
        ("language_model.bert.embeddings.position_embeddings.weight", (100, 36)),
        ("classification_head.1.weight", (2, 36)),
    ],
)
def test_wrong_shape_is_named_with_both_shapes(
    published: Published, tmp_path: Path, key: str, shape: tuple[int, ...]
) -> None:
    right = tuple(published.state[key].shape)
    state = {**published.state, key: torch.zeros(shape)}
    with pytest.raises(CheckpointError) as caught:
        load(published, replace(published, state=state, folder=tmp_path).write())
    assert caught.value.mismatched[key] == (right, shape)
    assert key in str(caught.value)
    assert str(shape) in str(caught.value)
    assert str(right) in str(caught.value)


def test_wrong_number_of_axes_is_refused(published: Published, tmp_path: Path) -> None:
    state = {**published.state, "vision_projection.query": torch.zeros(5, 32)}
    with pytest.raises(CheckpointError, match=r"vision_projection\.query has shape \(5, 32\)"):
        load(published, replace(published, state=state, folder=tmp_path).write())


def test_word_table_shorter_than_the_tokenizer_is_refused(
    published: Published, tmp_path: Path
) -> None:
    words = "language_model.bert.embeddings.word_embeddings.weight"
    state = {k: v for k, v in published.state.items() if k not in REDUNDANT}
    state[words] = state[words][:-3]
    with pytest.raises(CheckpointError) as caught:
        load(published, replace(published, state=state, folder=tmp_path).write())
    assert words in caught.value.mismatched


def test_two_different_word_tables_are_refused(published: Published, tmp_path: Path) -> None:
    changed = published.state["text_embeddings.weight"] + 1
    state = {**published.state, "text_embeddings.weight": changed}
    with pytest.raises(CheckpointError, match=r"text_embeddings\.weight"):
        load(published, replace(published, state=state, folder=tmp_path).write())


def test_files_that_are_no_checkpoints_are_refused(published: Published, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pth"
    whole = published.write().read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], whole[:100]):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad\.pth"):
            load(published, bad)
    for content in ([1, 2], {"state_dict": {}}, {"model": {"a": 1}}):
        torch.save(content, bad)
        with pytest.raises(CheckpointError, match="no dictionary of tensors under 'model'"):
            load(published, bad)
    torch.save({"model": {"a": torch.zeros(1)}}, bad)
    with pytest.raises(CheckpointError, match="published layout"):
        load(published, bad)
    with pytest.raises(CheckpointError, match="no file"):
        load(published, tmp_path / "nowhere.pth")


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("harm-was-done"),))


def test_code_in_a_checkpoint_is_not_run(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = replace(published, folder=tmp_path).write(config=Harmful())
    with pytest.raises(CheckpointError):
        load(published, path)
    assert not Path("harm-was-done").exists()


def test_checkpoint_in_torch_s_old_file_format_is_read(
    published: Published, tmp_path: Path
) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model": published.state}, path, _use_new_zipfile_serialization=False)
    assert load(published, path).config.num_tokens == 5


def test_wrong_folders_of_settings_are_refused(published: Published, tmp_path: Path) -> None:
    path = published.write()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="siglip model"):
        load(replace(published, siglip=tmp_path / "empty"), path)
    with pytest.raises(CheckpointError, match="bert model"):
        load(replace(published, language_model=tmp_path / "empty"), path)
