from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.siglip_pixels import SiglipPixels
from edje_qdrant.errors import CheckpointError, ConfigError


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (40, 30 + i, 3), dtype=np.uint8)) for i in range(count)
    ]


def test_sizes(siglip: SiglipEncoder) -> None:
    assert siglip.name == "tiny"
    assert (siglip.embedding_dim, siglip.hidden_size, siglip.num_patches) == (32, 32, 16)
    assert siglip.patch_grid == (4, 4)
    assert (siglip.num_heads, siglip.layer_norm_eps) == (4, 1e-6)


def test_the_whole_picture_is_seen_unless_the_processor_crops(
    siglip: SiglipEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert siglip.seen_area(640, 480) == (0, 0, 1, 1)
    side = {"height": 32, "width": 32}
    monkeypatch.setattr(
        siglip, "image_processor", SiglipPixels(side, do_center_crop=True, crop_size=side)
    )
    with pytest.raises(ConfigError, match="image processor of tiny crops images"):
        siglip.seen_area(640, 480)


def test_pixels_are_resized_and_normalised(siglip: SiglipEncoder) -> None:
    pixels = siglip.preprocess([Image.new("RGB", (99, 50), "white"), Image.new("L", (3, 3))])
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[0], torch.ones(3, 32, 32))
    torch.testing.assert_close(pixels[1], -torch.ones(3, 32, 32))


def test_preprocessing_in_threads_gives_the_same_pixels(siglip: SiglipEncoder) -> None:
    images = pictures(24)
    with ThreadPoolExecutor(4) as pool:
        apart = torch.cat(list(pool.map(lambda image: siglip.preprocess([image]), images)))
    assert torch.equal(apart, siglip.preprocess(images))


def test_text_is_padded_to_the_full_length_without_a_mask(siglip: SiglipEncoder) -> None:
    ids = siglip.tokenize(["red", "a blue circle " * 9])
    assert ids.shape == (2, 12)
    assert ids[0].tolist() == [2, 6, 3] + [0] * 9
    with torch.no_grad():
        expected = siglip.siglip.get_text_features(input_ids=ids).pooler_output
        found = siglip.encode_texts(["red", "a blue circle " * 9])
        # One text's embedding does not depend on its company.
        alone = siglip.encode_texts(["red"])
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1))
    torch.testing.assert_close(found[:1], alone)


def test_embedding_and_tokens_are_siglip_s(siglip: SiglipEncoder) -> None:
    pixels = siglip.preprocess(pictures(2))
    with torch.no_grad():
        embeddings, tokens = siglip.encode_pixels(pixels)
        output = siglip.siglip.get_image_features(pixel_values=pixels)
    torch.testing.assert_close(tokens, output.last_hidden_state)
    torch.testing.assert_close(
        embeddings, torch.nn.functional.normalize(output.pooler_output, dim=-1)
    )


def test_second_tower_gives_the_tokens_alone(siglip: SiglipEncoder) -> None:
    pixels = siglip.preprocess(pictures(2))
    with torch.no_grad():
        embeddings, tokens = siglip.encode_pixels(pixels)
        siglip.token_tower = copy.deepcopy(siglip.siglip.vision_model)
        siglip.token_tower.post_layernorm.bias.add_(1)
        moved_embeddings, moved_tokens = siglip.encode_pixels(pixels)
    torch.testing.assert_close(moved_embeddings, embeddings)
    torch.testing.assert_close(moved_tokens, tokens + 1)


def test_preprocessing_hash_follows_the_settings(siglip: SiglipEncoder, tmp_path: Path) -> None:
    before = siglip.preprocessing
    siglip.save(tmp_path)
    assert SiglipEncoder.from_config(tmp_path, name="again").preprocessing == before
    siglip.image_processor = SiglipPixels(size={"height": 32, "width": 32}, resample=2)
    assert siglip.preprocessing != before


def test_settings_are_saved_and_read_back(siglip: SiglipEncoder, tmp_path: Path) -> None:
    siglip.save(tmp_path)
    again = SiglipEncoder.from_config(tmp_path, name="tiny", separate_token_tower=True)
    again.load_state_dict(siglip.state_dict(), strict=False)
    assert torch.equal(again.tokenize(["a red circle"]), siglip.tokenize(["a red circle"]))
    assert torch.equal(again.preprocess(pictures(2)), siglip.preprocess(pictures(2)))
    assert again.token_tower is not None


def test_a_folder_with_weights_is_loaded(siglip: SiglipEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "siglip-tiny"
    siglip.save(folder)
    with pytest.raises(CheckpointError, match="weights"):
        SiglipEncoder.from_pretrained(folder)
    siglip.siglip.save_pretrained(folder)
    again = SiglipEncoder.from_pretrained(folder)
    assert again.name == "siglip-tiny"
    assert again.revision == siglip.revision


def test_any_fast_tokenizer_will_do(siglip: SiglipEncoder, tmp_path: Path) -> None:
    inner = siglip.tokenizer.backend_tokenizer
    siglip.tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]")
    siglip.save(tmp_path)
    again = SiglipEncoder.from_config(tmp_path, name="tiny")
    assert torch.equal(again.tokenize(["a red circle"]), siglip.tokenize(["a red circle"]))
