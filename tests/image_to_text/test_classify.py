from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rounding import float16_slack, float32_slack

from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import COLOURS, SHAPES, Scene, draw_scenes
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.image_to_text.classify import classify, classify_batch, match_texts
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.types import ImageEncoding

WriteImages = Callable[..., list[Path]]
TEXTS = ["a red square", "two dogs on a boat", "Kites over the lake!", "b", "a dog", "cats"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("matching"), 3)


@pytest.fixture(scope="module")
def demo_model() -> EDJEModel:
    return EDJEModel.from_pretrained("demo", device="cpu")


def test_a_match_holds_what_both_stages_say(tiny_model: EDJEModel, pictures: list[Path]) -> None:
    encoding = tiny_model.encode_images([Image.open(pictures[0])])
    cosines = tiny_model.encode_texts(TEXTS) @ encoding.embeddings[0]
    logits = tiny_model.score_pairs(TEXTS, np.repeat(encoding.tokens, len(TEXTS), axis=0))

    matches = match_texts(tiny_model, pictures[0], TEXTS)

    assert [m.index for m in matches] == np.argsort(-logits).tolist()
    assert [m.rank for m in matches] == [1, 2, 3, 4, 5, 6]
    places = np.argsort(-cosines).tolist()
    for match in matches:
        assert match.text == TEXTS[match.index]
        assert match.retrieval_rank == places.index(match.index) + 1
        assert match.score == pytest.approx(logits[match.index], abs=float32_slack(logits))
        assert match.retrieval_score == pytest.approx(
            cosines[match.index], abs=float32_slack(cosines)
        )


def test_texts_behind_the_candidates_follow_without_a_score(
    tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    everything = match_texts(tiny_model, pictures[0], TEXTS)
    matches = match_texts(tiny_model, pictures[0], TEXTS, num_candidates=2)
    assert sorted(m.retrieval_rank for m in matches[:2]) == [1, 2]
    among = [m.index for m in everything if m.retrieval_rank <= 2]
    assert [m.index for m in matches[:2]] == among
    assert [(m.retrieval_rank, m.score) for m in matches[2:]] == [(n, None) for n in (3, 4, 5, 6)]
    assert match_texts(tiny_model, pictures[0], TEXTS, num_candidates=2, top_k=3) == matches[:3]
    assert match_texts(tiny_model, pictures[0], TEXTS, num_candidates=99) == everything


def test_a_path_a_picture_and_its_encoding_are_the_same_picture(
    tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    with Image.open(pictures[1]) as opened:
        encoding = tiny_model.encode_images([opened])
    expected = match_texts(tiny_model, pictures[1], TEXTS)
    for image in (str(pictures[1]), Image.open(pictures[1]), encoding):
        assert match_texts(tiny_model, image, TEXTS) == expected


def test_a_photograph_lying_on_its_side_is_turned(
    tmp_path: Path, tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    upright = Image.open(pictures[0])
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    path = tmp_path / "lying.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    expected = match_texts(tiny_model, upright, TEXTS)
    assert match_texts(tiny_model, path, TEXTS) == expected
    assert match_texts(tiny_model, Image.open(path), TEXTS) == expected


def test_equal_scores_keep_the_first_stages_order(
    tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    class Undecided(Reranker):
        def score_pairs(self, texts: Any, tokens: Any) -> Any:
            return np.zeros(len(texts), np.float32)

    matches = match_texts(tiny_model, pictures[0], TEXTS, reranker=Undecided(tiny_model))
    assert [m.retrieval_rank for m in matches] == [1, 2, 3, 4, 5, 6]


def test_no_texts_match_nothing_and_twice_the_same_is_two_matches(
    tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    assert match_texts(tiny_model, pictures[0], []) == []
    twice = match_texts(tiny_model, pictures[0], ["a dog", "a dog"])
    assert [m.index for m in twice] == [0, 1]
    assert twice[0].score == twice[1].score


def test_what_cannot_be_matched_is_refused(
    tmp_path: Path, tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    def refused(message: str, image: Any = pictures[0], texts: Any = TEXTS, **more: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            match_texts(tiny_model, image, texts, **more)

    refused("texts is the text 'a dog'; give a list", texts="a dog")
    refused(r"texts holds '!\?', which contains no word", texts=["a dog", "!?"])
    refused("texts holds 7", texts=[7])
    refused("top_k is 0", top_k=0)
    refused("num_candidates is True", num_candidates=True)
    refused("not a list", image=[pictures[0]])
    two = tiny_model.encode_images([Image.open(path) for path in pictures[:2]])
    refused(r"pass one row", image=two)
    foreign = ImageEncoding(two.embeddings[:1], np.zeros((1, 3, 16), np.float16))
    refused(r"\(1, 4, 16\), not \(1, 24\) and \(1, 3, 16\)", image=foreign)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for path, reason in (("gone.png", "No such file"), ("broken.png", "not an image")):
        with pytest.raises(ImageReadError, match=f"{path}: {reason}"):
            match_texts(tiny_model, tmp_path / path, TEXTS)


def test_a_labels_score_is_its_mean_logit_and_the_shares_sum_to_one(
    tiny_model: EDJEModel, pictures: list[Path]
) -> None:
    labels, templates = ["cats", "dogs", "a {} b"], ["a photo of {}", "{}, and {} again"]
    encoding = tiny_model.encode_images([Image.open(pictures[0])])
    texts = [[t.replace("{}", label) for t in templates] for label in labels]
    means = [float(np.mean([tiny_model.score(t, encoding.tokens)[0] for t in of])) for of in texts]
    near = [float(np.mean(tiny_model.encode_texts(of) @ encoding.embeddings[0])) for of in texts]

    found = classify(tiny_model, pictures[0], labels, template=templates)

    assert [f.index for f in found] == np.argsort(-np.array(means)).tolist()
    assert [f.rank for f in found] == [1, 2, 3]
    shares, slack = np.exp(means) / np.exp(means).sum(), float32_slack(means)
    for label in found:
        assert label.label == labels[label.index]
        assert label.score == pytest.approx(means[label.index], abs=slack)
        assert label.retrieval_score == pytest.approx(near[label.index], abs=float32_slack(near))
        assert label.probability == pytest.approx(shares[label.index], abs=slack)
    assert sum(label.probability for label in found) == pytest.approx(1)
    assert classify(tiny_model, pictures[0], ["cats"])[0].probability == 1


def test_a_batch_agrees_with_single_pictures_whatever_its_steps(
    tiny_model: EDJEModel, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = [classify(tiny_model, path, TEXTS) for path in pictures]

    def agrees() -> None:
        for ours, theirs in zip(classify_batch(tiny_model, pictures, TEXTS), single, strict=True):
            assert [label.index for label in ours] == [label.index for label in theirs]
            scores = [[label.score for label in found] for found in (ours, theirs)]
            np.testing.assert_allclose(*scores, atol=float16_slack(*scores))

    agrees()
    # Room for the tokens of two images with each label.
    monkeypatch.setattr(
        "edje_qdrant.image_to_text.classify._TOKEN_BYTES", 2 * len(TEXTS) * 4 * 16 * 2
    )
    agrees()
    assert classify_batch(tiny_model, [], TEXTS) == []


def test_a_batch_encodes_the_labels_once(
    tiny_model: EDJEModel, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []

    def counted(texts: list[str]) -> Any:
        encoded.extend(texts)
        return EDJEModel.encode_texts(tiny_model, texts)

    monkeypatch.setattr(tiny_model, "encode_texts", counted)
    classify_batch(tiny_model, pictures, ["cats", "dogs"], template=["{}", "see {}"])
    assert encoded == ["cats", "dogs", "see cats", "see dogs"]


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ([], "{}", "there are no labels"),
        ("cat", "{}", "labels is the text 'cat'"),
        (["cat", "dog", "Cat!"], "{}", "'cat' and 'Cat!' are equal after clean-up"),
        (["cat", "cat"], "{}", "'cat' and 'cat' are equal after clean-up"),
        (["cat", "--"], "{}", "labels holds '--'"),
        (["cat"], "a photo", "the template 'a photo' has no '{}'"),
        (["cat"], ["{}", "a photo"], "the template 'a photo' has no '{}'"),
        (["cat"], [], "there is no template"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    tiny_model: EDJEModel, pictures: list[Path], labels: Any, template: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        classify(tiny_model, pictures[0], labels, template=template)


def test_a_batch_of_one_path_is_no_batch(tiny_model: EDJEModel) -> None:
    with pytest.raises(ConfigError, match="images is the text"):
        classify_batch(tiny_model, "a.png", TEXTS)


@pytest.fixture(scope="module")
def scenes(demo_model: EDJEModel) -> list[tuple[Scene, ImageEncoding]]:
    drawn = list(draw_scenes("test", 1, 30))
    encoded = demo_model.encode_images([draw(scene) for scene in drawn])
    return [
        (scene, ImageEncoding(encoded.embeddings[row : row + 1], encoded.tokens[row : row + 1]))
        for row, scene in enumerate(drawn)
    ]


@pytest.mark.parametrize(("kind", "names"), [("shape", SHAPES), ("colour", COLOURS)])
def test_single_attributes_of_scenes_are_told_far_above_chance(
    demo_model: EDJEModel,
    scenes: list[tuple[Scene, ImageEncoding]],
    kind: str,
    names: tuple[str, ...],
) -> None:
    found = classify_batch(demo_model, [encoding for _, encoding in scenes], names)
    shown = [{names[getattr(o, kind)] for o in scene.objects} for scene, _ in scenes]
    right = np.mean([labels[0].label in there for labels, there in zip(found, shown, strict=True)])
    chance = np.mean([len(there) / len(names) for there in shown])
    assert chance < 0.35
    assert right > 0.8


def test_the_object_of_a_scene_is_told_from_nine_that_are_not_there(
    demo_model: EDJEModel, scenes: list[tuple[Scene, ImageEncoding]]
) -> None:
    rng = np.random.default_rng(0)
    right = 0
    for scene, encoding in scenes:
        there = {f"{COLOURS[o.colour]} {SHAPES[o.shape]}" for o in scene.objects}
        absent = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in there]
        labels = [*sorted(there)[:1], *rng.choice(absent, 9, replace=False).tolist()]
        right += classify(demo_model, encoding, labels)[0].index == 0
    assert right >= 26  # of 30; by chance 3
