"""With the package open_clip and random weights; `make test-open-clip` runs this."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rounding import float32_slack
from tiny_edje import build_tiny_model
from transformers import BertTokenizer

from edje_qdrant import ImageCollection, TwoStageRetriever, explain_match, ingest_images
from edje_qdrant.encoders import OpenClipEncoder, pretrained_encoder
from edje_qdrant.encoders.open_clip_models import build_clip, tokenizer_for
from edje_qdrant.encoders.open_clip_pixels import PixelSettings
from edje_qdrant.errors import CheckpointError
from edje_qdrant.model import EDJEModel
from edje_qdrant.training.build import build_model
from edje_qdrant.training.recipe import ModelSection

pytestmark = pytest.mark.open_clip

HALF = (0.5, 0.5, 0.5)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle"]
VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CLIP = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 12, "vocab_size": len(WORDS), "width": 32, "heads": 2, "layers": 2,
        "hf_tokenizer_name": "nobody/nothing", "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"},
    },
}  # fmt: skip
KINDS = {
    "clip": CLIP,
    "siglip": SIGLIP,
    "clipa": {
        **CLIP,
        "vision_cfg": {
            **VISION, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True,
        },
    },
    "resnet": {
        **CLIP,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    },
    "coca": {
        **CLIP,
        "custom_text": True,
        "vision_cfg": {
            **VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
        },
        "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "context_length": 76, "attn_pooler_heads": 2},
    },
}  # fmt: skip
# name -> n, d_v, heads, epsilon
SHAPES = {
    "clip": (16, 64, 4, 1e-5),
    "siglip": (100, 64, 2, 1e-6),
    "clipa": (16, 64, 4, 1e-5),
    "resnet": (4, 256, 4, 1e-5),
    "coca": (16, 64, 4, 1e-5),
}


@pytest.fixture(autouse=True)
def open_clip() -> Any:
    return pytest.importorskip("open_clip")


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def build(kind: str, vocabulary: Path) -> OpenClipEncoder:
    torch.manual_seed(0)
    settings: dict[str, Any] = KINDS[kind]
    size = settings["vision_cfg"]["image_size"]
    mode = "squash" if kind == "siglip" else "shortest"
    return OpenClipEncoder(
        build_clip(settings, weights_follow=False),
        settings,
        PixelSettings((size, size), HALF, HALF, resize_mode=mode),
        tokenizer_for(settings, vocabulary),
        name=f"open_clip:{kind}",
    )


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def encoder(kind: str, vocabulary: Path) -> OpenClipEncoder:
    return build(kind, vocabulary)


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (40 + 7 * i, 61, 3), dtype=np.uint8))
        for i in range(count)
    ]


def agrees(encoder: OpenClipEncoder, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare with open_clip's own passes, and return what the encoder gives."""
    pixels, texts = encoder.preprocess(pictures(count)), ["a red circle", "blue " * 90]
    with torch.inference_mode():
        embeddings, tokens = encoder.encode_pixels(pixels)
        found = encoder.encode_texts(texts)
        own = encoder.clip.encode_image(pixels, normalize=True)
        own_texts = encoder.clip.encode_text(encoder.tokenizer(texts), normalize=True)
    assert embeddings.shape == (count, encoder.embedding_dim)
    assert tokens.shape == (count, encoder.num_patches, encoder.hidden_size)
    torch.testing.assert_close(embeddings, own, atol=float32_slack(own), rtol=0)
    torch.testing.assert_close(found, own_texts, atol=float32_slack(own_texts), rtol=0)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(count))
    assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-6, rtol=0)
    assert not torch.allclose(found[0], found[1], atol=1e-6, rtol=0)
    return embeddings, tokens


def test_sizes_are_the_tower_s(kind: str, encoder: OpenClipEncoder) -> None:
    shape = (encoder.num_patches, encoder.hidden_size, encoder.num_heads, encoder.layer_norm_eps)
    assert shape == SHAPES[kind]


def test_a_match_is_explained(kind: str, encoder: OpenClipEncoder) -> None:
    explanation = explain_match(edje(encoder), "a red circle", pictures(1)[0])  # 61 x 40
    sides = {"siglip": 10, "resnet": 2}
    assert explanation.heat.shape == (sides.get(kind, 4),) * 2
    # With random weights an image may speak against a text everywhere, but not against each word.
    sums = explanation.word_heat.sum((1, 2)).round(4).tolist()
    assert 1 in sums
    assert set(sums) <= {0, 1}
    if encoder.pixel_settings.resize_mode == "shortest":
        left, top, right, bottom = explanation.area
        assert 0.1 < left < 0.25
        assert 0.75 < right < 0.9
        assert (top, bottom) == (0, 1)
    else:
        assert explanation.area == (0, 0, 1, 1)


def test_a_grid_may_have_two_sides(vocabulary: Path) -> None:
    settings = {**CLIP, "vision_cfg": {**VISION, "image_size": [24, 40]}}
    encoder = OpenClipEncoder(
        build_clip(settings, weights_follow=False),
        settings,
        PixelSettings((24, 40), HALF, HALF, resize_mode="squash"),
        tokenizer_for(settings, vocabulary),
        name="wide",
    )
    assert encoder.patch_grid == (3, 5)
    assert encoder.num_patches == 15
    assert explain_match(edje(encoder), "red", pictures(1)[0]).heat.shape == (3, 5)


def test_embeddings_are_open_clip_s(encoder: OpenClipEncoder) -> None:
    agrees(encoder)


def test_tokens_of_clip_are_open_clip_s_without_the_class(vocabulary: Path) -> None:
    encoder = build("clip", vocabulary)
    _, tokens = agrees(encoder)
    visual = encoder.clip.visual
    visual.output_tokens = True
    with torch.inference_mode():
        _, own = visual(encoder.preprocess(pictures(3)))
    torch.testing.assert_close(tokens, own, atol=float32_slack(own), rtol=0)


def test_tokens_of_siglip_are_timm_s_last(vocabulary: Path) -> None:
    encoder = build("siglip", vocabulary)
    _, tokens = agrees(encoder)
    trunk = encoder.clip.visual.trunk
    with torch.inference_mode():
        own = trunk.forward_features(encoder.preprocess(pictures(3)))
    assert trunk.num_prefix_tokens == own.shape[1] - tokens.shape[1]
    own = own[:, trunk.num_prefix_tokens :]
    torch.testing.assert_close(tokens, own, atol=float32_slack(own), rtol=0)


def test_text_is_padded_and_cut(vocabulary: Path) -> None:
    ids = build("clip", vocabulary).tokenize(["a red circle", "blue " * 90])
    assert ids.shape == (2, 77)
    assert ids[0, :5].tolist()[0] == 49406
    assert ids[0, 4:].tolist() == [49407] + [0] * 72
    assert ids[1, -1] == 49407
    ids = build("siglip", vocabulary).tokenize(["a red circle", "blue " * 90])
    assert ids.tolist() == [[2, 5, 6, 8, 3] + [0] * 7, [2] + [7] * 10 + [3]]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (24, 40)])
def test_pixels_are_open_clip_s(
    mode: str, interpolation: str, size: tuple[int, int], open_clip: Any
) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    settings = PixelSettings.from_dict(
        {"size": size, "mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28), "fill_color": 9,
         "interpolation": interpolation, "resize_mode": mode}
    )  # fmt: skip
    transform = image_transform_v2(PreprocessCfg(**settings.as_dict()), is_train=False)
    rng = np.random.default_rng(1)
    one_grey_level = 1 / 255 / min(settings.std)
    for height, width in [(32, 32), (225, 224), (50, 333), (300, 77), (3, 5), (641, 480)]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        torch.testing.assert_close(
            settings.pixels([image])[0], transform(image), atol=one_grey_level, rtol=0
        )


def edje(encoder: OpenClipEncoder) -> EDJEModel:
    tiny = build_tiny_model()
    language_model = copy.deepcopy(tiny.joint_encoder.language_model)
    model = EDJEModel.build(
        encoder, language_model, tiny.tokenizer, num_tokens=4, adapter_hidden_size=32
    )
    return model.place("cpu", None)


def test_a_model_is_saved_and_loaded(encoder: OpenClipEncoder, tmp_path: Path) -> None:
    model = edje(encoder)
    model.save_pretrained(tmp_path / "model")
    again = EDJEModel.from_pretrained(tmp_path / "model", device="cpu")
    assert isinstance(again.encoder, OpenClipEncoder)
    before, after = model.encode_images(pictures(3)), again.encode_images(pictures(3))
    np.testing.assert_array_equal(before.embeddings, after.embeddings)
    np.testing.assert_array_equal(before.tokens, after.tokens)
    texts = ["a red circle", "Blue, it is!"]
    np.testing.assert_array_equal(model.encode_texts(texts), again.encode_texts(texts))
    np.testing.assert_array_equal(
        model.score("red", before.tokens), again.score("red", after.tokens)
    )
    assert again.contract() == model.contract()


def test_the_contract_knows_the_encoder(vocabulary: Path) -> None:
    encoder = build("clip", vocabulary)
    contract = edje(encoder).contract()
    assert contract.encoder == "open_clip:clip"
    assert contract.encoder_revision == encoder.revision
    assert contract.preprocessing == encoder.preprocessing
    assert (contract.embedding_dim, contract.num_tokens, contract.token_dim) == (24, 4, 16)
    other = build("clip", vocabulary)
    assert other.revision == encoder.revision
    with torch.no_grad():
        other.clip.visual.proj.add_(1)
    assert other.revision != encoder.revision


def test_half_precision_keeps_the_revision_and_comes_close(vocabulary: Path) -> None:
    for kind in ("clip", "siglip"):
        encoder = build(kind, vocabulary)
        exact, _ = agrees(encoder)
        revision = encoder.revision
        encoder.to(torch.bfloat16)
        with torch.inference_mode():
            embeddings, tokens = encoder.encode_pixels(encoder.preprocess(pictures(3)))
            texts = encoder.encode_texts(["a red circle"])
        assert (embeddings.dtype, tokens.dtype) == (torch.float32, torch.bfloat16)
        assert texts.dtype == torch.float32
        assert (embeddings * exact).sum(-1).min() > 0.99
        assert encoder.revision == revision


def test_pictures_are_ingested_and_found(
    vocabulary: Path, tmp_path: Path, write_images: Any
) -> None:
    model = edje(build("clip", vocabulary))
    model.save_pretrained(tmp_path / "model")
    model = EDJEModel.from_pretrained(tmp_path / "model", device="cpu")
    write_images(tmp_path / "pictures", 5)
    with ImageCollection.create(tmp_path / "place", "images", model.contract()) as collection:
        report = ingest_images(tmp_path / "pictures", collection, model)
        assert report.added == 5
        result = TwoStageRetriever(collection, model).search("a red circle", top_k=3)
        assert len(result) == 3
    with TwoStageRetriever.open(tmp_path / "place") as retriever:
        assert retriever.search("a red circle", top_k=3)[0].image_id == result[0].image_id


def test_open_clip_reads_the_saved_settings(
    vocabulary: Path, tmp_path: Path, open_clip: Any
) -> None:
    encoder = build("siglip", vocabulary)
    encoder.save(tmp_path)
    from safetensors.torch import save_file

    save_file(encoder.clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    own = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    again = OpenClipEncoder.from_pretrained(f"local-dir:{tmp_path}")
    assert again.preprocessing == encoder.preprocessing
    assert again.revision == encoder.revision
    with torch.inference_mode():
        pixels = encoder.preprocess(pictures(2))
        torch.testing.assert_close(
            again.encode_pixels(pixels)[0], own.encode_image(pixels, normalize=True)
        )
    assert again.tokenize(["a red circle"]).tolist() == encoder.tokenize(["a red circle"]).tolist()
    named = pretrained_encoder(f"open_clip:local-dir:{tmp_path}")
    assert named.revision == encoder.revision
    assert named.name == f"open_clip:local-dir:{tmp_path}"


def test_a_recipe_names_it(vocabulary: Path, tmp_path: Path) -> None:
    encoder = build("clip", vocabulary)
    encoder.save(tmp_path / "clip")
    torch.save(encoder.clip.state_dict(), tmp_path / "clip" / "open_clip_pytorch_model.bin")
    tiny = build_tiny_model()
    tiny.joint_encoder.language_model.save_pretrained(tmp_path / "bert")
    tiny.tokenizer.save_pretrained(tmp_path / "bert")
    model = build_model(
        ModelSection(
            encoder=f"open_clip:local-dir:{tmp_path / 'clip'}",
            language_model=str(tmp_path / "bert"),
            num_tokens=4,
            adapter_hidden_size=32,
        )
    )
    assert model.encoder.revision == encoder.revision
    assert model.encode_images(pictures(2)).tokens.shape == (2, 4, 16)


def test_weights_from_a_file_and_the_real_vit_b_32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = OpenClipEncoder.untrained("ViT-B-32")
    assert encoder.name == "open_clip:ViT-B-32"
    assert (encoder.num_patches, encoder.hidden_size, encoder.embedding_dim) == (49, 768, 512)
    assert (encoder.num_heads, encoder.layer_norm_eps) == (12, 1e-5)
    agrees(encoder, 2)
    weights = tmp_path / "weights.pt"
    torch.save(encoder.clip.state_dict(), weights)
    again = OpenClipEncoder.from_pretrained("ViT-B-32", str(weights))
    assert again.name == "open_clip:ViT-B-32@weights.pt"
    assert again.revision == encoder.revision
    assert again.preprocessing == encoder.preprocessing


def test_the_real_siglip2(vocabulary: Path) -> None:
    torch.manual_seed(0)
    encoder = OpenClipEncoder.untrained("ViT-B-32-SigLIP2-256", tokenizer=vocabulary)
    assert (encoder.num_patches, encoder.hidden_size, encoder.embedding_dim) == (64, 768, 768)
    assert (encoder.num_heads, encoder.layer_norm_eps) == (12, 1e-6)
    assert encoder.tokenize(["a red circle"]).shape == (1, 64)
    agrees(encoder, 2)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ViT-L-14", (256, 1024, 16, 768)),
        ("ViT-L-16-SigLIP2-384", (576, 1024, 16, 1024)),
        ("ViT-SO400M-14-SigLIP2-378", (729, 1152, 16, 1152)),
        ("MobileCLIP-S1", (64, 512, 16, 512)),
        ("convnext_base", (49, 1024, 16, 512)),
        ("RN50", (49, 2048, 32, 1024)),
        ("EVA02-B-16", (196, 768, 12, 512)),
        ("PE-Core-T-16-384", (576, 192, 3, 512)),
    ],
)
def test_other_models(name: str, shape: tuple[int, ...], open_clip: Any) -> None:
    torch.manual_seed(0)
    settings = open_clip.get_model_config(name)
    size = settings["vision_cfg"]["image_size"]
    # The vision tower is what is looked at; a small text tower keeps the memory small.
    settings["text_cfg"] = {**TEXT}
    settings.pop("custom_text", None)
    encoder = OpenClipEncoder(
        build_clip(settings, weights_follow=False),
        settings,
        PixelSettings((size, size), HALF, HALF),
        tokenizer_for(settings),
        name=name,
    )
    found = (encoder.num_patches, encoder.hidden_size, encoder.num_heads, encoder.embedding_dim)
    assert found == shape
    agrees(encoder, 2)


def test_quick_gelu_follows_the_weights(tmp_path: Path, open_clip: Any, monkeypatch: Any) -> None:
    made: dict[str, Any] = {}

    def create_model(name: str, **options: Any) -> None:
        made.update(options)
        raise RuntimeError("no hub here")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for tag, quick in [("openai", True), ("laion2b_s34b_b79k", False)]:
        with pytest.raises(CheckpointError, match="no hub here"):
            OpenClipEncoder.from_pretrained("ViT-B-32", tag)
        assert made["force_quick_gelu"] is quick
        assert made["require_pretrained"] is True


def test_what_is_not_there_is_named(tmp_path: Path, vocabulary: Path) -> None:
    with pytest.raises(CheckpointError, match="no model 'ViT-B-23'; it knows ViT-B-32"):
        OpenClipEncoder.from_pretrained("ViT-B-23", "openai")
    with pytest.raises(CheckpointError, match=r"which weights of ViT-B-32 .* laion2b_s34b_b79k"):
        OpenClipEncoder.from_pretrained("ViT-B-32")
    with pytest.raises(CheckpointError, match="cannot read open_clip's settings"):
        OpenClipEncoder.from_pretrained(f"local-dir:{tmp_path / 'nowhere'}")
    with pytest.raises(CheckpointError, match="pass tokenizer="):
        tokenizer_for(SIGLIP, tmp_path / "nowhere")
    build("siglip", vocabulary).save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        OpenClipEncoder.from_config(tmp_path, name="tiny")


def test_settings_that_fit_no_model_are_refused(vocabulary: Path, tmp_path: Path) -> None:
    build("clip", vocabulary).save(tmp_path)
    path = tmp_path / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["vision_cfg"]["patch_size"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="cannot build"):
        OpenClipEncoder.from_config(tmp_path, name="tiny")
    content["model_cfg"] = CLIP
    content["preprocess_cfg"]["size"] = 64  # of a tower for 32
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="cannot build"):
        OpenClipEncoder.from_config(tmp_path, name="tiny")


def test_a_text_tower_of_transformers_says_what_it_lacks(
    vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="that the hub can be reached"):
        OpenClipEncoder.untrained("roberta-ViT-B-32", tokenizer=vocabulary)


def test_the_documentation_s_example_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "encoders.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})
