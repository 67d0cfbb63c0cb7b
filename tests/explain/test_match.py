from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rounding import DOT, float32_slack
from tiny_edje import build_tiny_model

from edje_qdrant import EDJEModel, explain_match
from edje_qdrant.demo.captions import describe
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.planted import aim, mentioned, phrase, unmistakable, word_objects
from edje_qdrant.demo.scenes import COLOURS, SHAPES, Scene, draw_scenes
from edje_qdrant.errors import ConfigError, ImageReadError

HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def demo() -> EDJEModel:
    return EDJEModel.from_pretrained("demo", device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (40, 61, 3), dtype=np.uint8))


def held_out(seed: int, count: int) -> list[Scene]:
    scenes = (scene for scene in draw_scenes("test", seed) if unmistakable(scene))
    return [next(scenes) for _ in range(count)]


@pytest.mark.slow
def test_the_heat_of_a_phrase_lies_on_the_object_it_names(demo: EDJEModel) -> None:
    rng = np.random.default_rng(0)
    found = []
    for scene in held_out(40, 20):
        item = scene.objects[rng.integers(len(scene.objects))]
        found.append(aim(explain_match(demo, phrase(item), draw(scene)).heat, scene, [item]))
    # Chance is 0.09 of the heat and 0.09 of the pointing; docs/results/heat_maps.json has more.
    assert np.mean([f.area for f in found]) < 0.12
    assert np.mean([f.share for f in found]) > 0.7
    assert sum(f.points for f in found) >= 18
    assert sum(f.ahead for f in found) >= 18


@pytest.mark.slow
def test_the_heat_of_a_caption_and_of_its_words_lies_on_what_they_name(demo: EDJEModel) -> None:
    rng = np.random.default_rng(0)
    whole, colours, shapes, telling, empty = [], [], [], [], []
    for scene in held_out(41, 3):
        caption = describe(scene, rng)
        explanation = explain_match(demo, caption.text, draw(scene))
        assert explanation.words == tuple(caption.text.replace(",", "").split())
        whole.append(aim(explanation.heat, scene, mentioned(caption, scene)))
        for word, kind, item in word_objects(caption, scene, explanation.words):
            measured = aim(explanation.word_heat[word], scene, [item])
            if kind != "size":
                (colours if kind == "colour" else shapes).append(measured)
                telling.append(explanation.word_weights[word])
        empty += [
            weight
            for word, weight in zip(explanation.words, explanation.word_weights, strict=True)
            if word in ("a", "an", "the", "of", "and", "with", "is")
        ]
    assert np.mean([a.share for a in whole]) > 0.75
    assert all(a.points for a in whole)
    for words in (colours, shapes):
        assert len(words) >= 6
        assert np.mean([a.share for a in words]) > 0.6
        assert sum(a.points for a in words) >= len(words) - 2
        assert sum(a.ahead for a in words) >= len(words) - 2
    assert np.mean(telling) > 2
    assert np.abs(empty).max() < 1


def test_a_word_that_the_picture_contradicts_weighs_least(demo: EDJEModel) -> None:
    for scene in held_out(42, 3):
        first, second = scene.objects[:2]
        absent = {"circle", "ring"} - {SHAPES[item.shape] for item in scene.objects}
        wrong = min(absent)
        text = f"a {COLOURS[first.colour]} {wrong} and {phrase(second)}"
        explanation = explain_match(demo, text, draw(scene))
        lowest = int(explanation.word_weights.argmin())
        assert explanation.words[lowest] == wrong
        assert explanation.word_weights[lowest] < -1


@pytest.mark.parametrize("adapter", ["compressed", "local"])
def test_shapes_and_sums(adapter, picture: Image.Image) -> None:
    model = build_tiny_model(adapter=adapter, dropout=0.0).place("cpu", None)
    explanation = explain_match(model, "Red, or not!", picture)
    assert explanation.text == "Red, or not!"
    assert explanation.words == ("Red", "or", "not")
    assert explanation.heat.shape == (4, 4)
    assert explanation.word_heat.shape == (3, 4, 4)
    assert explanation.word_weights.shape == (3,)
    assert explanation.tokens.shape == (model.config.num_tokens,)
    assert explanation.area == (0, 0, 1, 1)
    arrays = (explanation.heat, explanation.word_heat, explanation.word_weights, explanation.tokens)
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in arrays)
    assert explanation.heat.min() >= 0
    assert explanation.heat.sum() == pytest.approx(1, abs=float32_slack(1, roundings=DOT))
    np.testing.assert_allclose(
        explanation.word_heat.sum((1, 2)), 1, atol=float32_slack(1, roundings=DOT)
    )


def test_the_local_adapter_s_tokens_are_its_patches(picture: Image.Image) -> None:
    model = build_tiny_model(adapter="local", dropout=0.0).place("cpu", None)
    explanation = explain_match(model, "red", picture)
    # One token a patch, by two sums along the same path that differ in their rounding alone.
    positive = explanation.tokens.clip(min=0)
    np.testing.assert_allclose(
        explanation.heat.ravel(), positive / positive.sum(), atol=0.1 * explanation.heat.max()
    )


def test_the_score_is_the_model_s(demo: EDJEModel) -> None:
    (scene,) = held_out(43, 1)
    text, picture = phrase(scene.objects[0]), draw(scene)
    tokens = demo.encode_images([picture]).tokens
    explanation = explain_match(demo, text, picture)
    assert explanation.score == demo.score(text, tokens)[0]
    # What the tokens add is the score less that of the image's mean colour alone.
    mean = tuple(np.asarray(picture).mean((0, 1)).round().astype(int).tolist())
    plain = demo.encode_images([Image.new("RGB", picture.size, mean)]).tokens
    gained = explanation.score - float(demo.score(text, plain)[0])
    assert explanation.tokens.sum() == pytest.approx(gained, abs=0.1 * abs(gained))


def test_explaining_leaves_no_trace(picture: Image.Image) -> None:
    model = build_tiny_model(dropout=0.4)
    model.train()
    model.adapter.eval()
    modes = [module.training for module in model.modules()]
    first = explain_match(model, "a red star", picture)
    again = explain_match(model, "a red star", picture)
    np.testing.assert_array_equal(first.heat, again.heat)  # dropout would tell them apart
    np.testing.assert_array_equal(first.word_heat, again.word_heat)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_caller_s_modes_do_not_matter(picture: Image.Image, tiny_model: EDJEModel) -> None:
    plain = explain_match(tiny_model, "a red star", picture)
    with torch.inference_mode():
        inferring = explain_match(tiny_model, "a red star", picture)
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        without = explain_match(tiny_model, "a red star", picture)
    np.testing.assert_array_equal(inferring.heat, plain.heat)
    np.testing.assert_array_equal(without.heat, plain.heat)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_gives_the_same_picture(
    dtype, tiny_folder: Path, tiny_model: EDJEModel, picture: Image.Image
) -> None:
    model = EDJEModel.from_pretrained(tiny_folder, device="cpu", dtype=dtype)
    exact, half = (explain_match(m, "a red star", picture) for m in (tiny_model, model))
    assert half.heat.dtype == np.float32
    assert np.corrcoef(exact.heat.ravel(), half.heat.ravel())[0, 1] > 0.95
    assert half.score == pytest.approx(exact.score, abs=0.1)
    tokens = model.encode_images([picture]).tokens
    assert half.score == model.score("a red star", tokens)[0]


def test_a_picture_of_one_colour_has_no_heat(demo: EDJEModel) -> None:
    explanation = explain_match(demo, "a red star", Image.new("RGB", (64, 48), (90, 160, 70)))
    assert not explanation.heat.any()
    assert not explanation.word_heat.any()
    np.testing.assert_allclose(explanation.word_weights, 0, atol=1e-3)


def test_words_are_shown_as_they_were_written(tiny_model: EDJEModel, picture: Image.Image) -> None:
    def words(text: str) -> tuple[str, ...]:
        explanation = explain_match(tiny_model, text, picture)
        assert len(explanation.word_weights) == len(explanation.word_heat)
        return explanation.words

    assert words('  The "Red" STAR -- don\'t  (ask)') == ("The", "Red", "STAR", "don't", "ask")
    # The model reads two words there, so both are shown, as it reads them.
    assert words("Red_star, now") == ("red", "star", "now")


def test_words_past_what_the_model_reads_have_no_weight(
    tiny_model: EDJEModel, picture: Image.Image
) -> None:
    # One piece a letter, and 40 pieces are read.
    explanation = explain_match(tiny_model, "abcdefghi " * 4 + "abcdefghi no", picture)
    assert len(explanation.words) == 6
    assert explanation.word_weights[5] == 0
    assert not explanation.word_heat[5].any()
    np.testing.assert_allclose(
        explanation.word_heat[:5].sum((1, 2)), 1, atol=float32_slack(1, roundings=DOT)
    )


@pytest.mark.parametrize("text", ["", "  ", "?!", "&nbsp;"])
def test_a_text_without_words_is_refused(
    text: str, tiny_model: EDJEModel, picture: Image.Image
) -> None:
    with pytest.raises(ConfigError, match="at least one word"):
        explain_match(tiny_model, text, picture)


def test_broken_pictures_are_refused(tiny_model: EDJEModel, tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="nowhere"):
        explain_match(tiny_model, "red", tmp_path / "nowhere.png")
    whole = tmp_path / "whole.png"
    Image.effect_noise((60, 60), 90).save(whole)
    torn = tmp_path / "torn.png"
    torn.write_bytes(whole.read_bytes()[:700])
    with pytest.raises(ImageReadError, match=r"torn\.png"):
        explain_match(tiny_model, "red", torn)
    with Image.open(torn) as opened, pytest.raises(ImageReadError, match=r"torn\.png"):
        explain_match(tiny_model, "red", opened)


def test_a_file_is_turned_upright(tiny_model: EDJEModel, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 61, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "lying.png", exif=exif)
    upright = explain_match(tiny_model, "red", picture.transpose(Image.Transpose.ROTATE_270))
    read = explain_match(tiny_model, "red", str(tmp_path / "lying.png"))
    np.testing.assert_array_equal(read.heat, upright.heat)


def test_an_encoder_that_does_not_know_its_grid_is_refused_by_name(picture: Image.Image) -> None:
    model = build_tiny_model().place("cpu", None)

    class Gridless(type(model.encoder)):
        patch_grid = property()

    class WithClassToken(type(model.encoder)):
        patch_grid = (3, 5)

    model.encoder.__class__ = Gridless
    with pytest.raises(ConfigError, match="encoder tiny has no patch_grid"):
        explain_match(model, "red", picture)
    model.encoder.__class__ = WithClassToken
    with pytest.raises(ConfigError, match=r"tiny makes 16 vision tokens, .* is 3 x 5"):
        explain_match(model, "red", picture)


def test_a_model_loaded_in_inference_mode_is_refused(
    tiny_folder: Path, picture: Image.Image
) -> None:
    with torch.inference_mode():
        model = EDJEModel.from_pretrained(tiny_folder, device="cpu", dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="load it outside"):
        explain_match(model, "red", picture)


def test_drawing_needs_no_torch() -> None:
    code = "import sys, edje_qdrant; edje_qdrant.draw_explanation, edje_qdrant.Explanation\n"
    code += "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
