from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rounding import float16_slack, float32_slack

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.data.annotations import Annotation, read_annotations
from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.demo.run import run_demo
from edje_qdrant.errors import ConfigError, ContractMismatchError
from edje_qdrant.evaluation.gallery import build_gallery
from edje_qdrant.evaluation.measure import Contender, measure
from edje_qdrant.evaluation.rankings import places
from edje_qdrant.evaluation.run import Settings, evaluate
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel

WriteImages = Callable[..., list[Path]]
WORDS = ["red", "green", "blue", "small", "large", "round", "kite", "boat", "dog", "lake"]
QUICK = Settings(resamples=50)


@pytest.fixture(scope="module")
def annotations(
    tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages
) -> list[Annotation]:
    """Thirty images with one to three captions each."""
    paths = write_images(tmp_path_factory.mktemp("pictures"), 30)
    rng = np.random.default_rng(0)
    return [
        Annotation(
            str(path),
            tuple(" ".join(rng.choice(WORDS, 4)) for _ in range(1 + number % 3)),
            f"d.jsonl:{number + 1}",
        )
        for number, path in enumerate(paths)
    ]


def test_the_collection_and_memory_agree_on_scenes(tmp_path: Path) -> None:
    gallery = build_gallery(read_annotations(write_scenes(tmp_path, count=30, progress=False)))
    model = EDJEModel.from_pretrained("demo", device="cpu")
    contender = Contender("demo", model)
    with ImageCollection.create(tmp_path / "index", "images", model.contract()) as collection:
        ingest_images([*gallery.paths], collection, model, progress=False)
        for direction in ("t2i", "i2t"):
            slow, fast = (
                measure(contender, collection, gallery, [direction], [5, 20], in_memory=in_memory)[
                    direction
                ]
                for in_memory in (False, True)
            )
            assert set(slow.milliseconds) == ({5, 20} if direction == "t2i" else set())
            one, other = slow.rankings, fast.rankings
            assert (one.candidates == other.candidates).all()
            np.testing.assert_allclose(one.first, other.first, atol=float32_slack(other.first))
            np.testing.assert_allclose(one.joint, other.joint, atol=float16_slack(other.joint))
            for number in (0, 5, 20):
                assert places(one.right_after(number)) == places(other.right_after(number))
            assert one.pool == other.pool == 30
            assert [*one.queries] == [*other.queries]


@pytest.mark.slow
def test_it_reproduces_the_demos_figures(tmp_path: Path) -> None:
    demo = run_demo(tmp_path / "demo", images=40, num_candidates=20, progress=False)
    scenes = read_annotations(write_scenes(tmp_path / "eval", count=40, progress=False))
    model = EDJEModel.from_pretrained("demo", device="cpu")
    settings = replace(QUICK, direction="t2i", num_candidates=(20,))
    (system,) = evaluate(
        scenes, [Contender("demo", model)], tmp_path / "eval", settings, data="scenes"
    ).systems
    for cut in ("R@1", "R@5", "R@10"):
        assert system.first_stage[cut] == pytest.approx(demo.first_stage[cut])
        assert system.reranked[cut] == pytest.approx(demo.reranked[cut])
    assert system.bytes_per_image == demo.bytes_per_image
    assert system.ms_per_query is not None
    assert system.ms_per_query > 0


def test_text_to_image_asks_the_users_own_search(
    tmp_path: Path, annotations: list[Annotation], tiny_model: EDJEModel
) -> None:
    gallery = build_gallery(annotations)
    with ImageCollection.create(tmp_path, "images", tiny_model.contract()) as collection:
        ingest_images([*gallery.paths], collection, tiny_model, progress=False)
        contender = Contender("tiny", tiny_model, collection)
        rankings = measure(contender, collection, gallery, ["t2i"], [8])["t2i"].rankings
        from edje_qdrant.search.retriever import TwoStageRetriever

        result = TwoStageRetriever(collection, tiny_model).search(
            gallery.captions[3], top_k=8, num_candidates=8
        )
    order = rankings.order(8)[3, :8]
    assert [h.payload["path"] for h in result] == [
        gallery.paths[row] for row in rankings.candidates[3, order]
    ]
    assert [hit.retrieval_rank for hit in result] == [place + 1 for place in order]


def test_image_to_text_ranks_captions_by_both_stages(
    tmp_path: Path, annotations: list[Annotation], tiny_model: EDJEModel
) -> None:
    gallery = build_gallery(annotations)
    with ImageCollection.create(tmp_path, "images", tiny_model.contract()) as collection:
        ingest_images([*gallery.paths], collection, tiny_model, progress=False)
        contender = Contender("tiny", tiny_model, collection)
        rankings = measure(contender, collection, gallery, ["i2t"], [8])["i2t"].rankings
        stored = collection.encodings([gallery.image_ids[7]])
    cosines = tiny_model.encode_texts(gallery.captions) @ stored.embeddings[0]
    np.testing.assert_allclose(
        rankings.first[7], np.sort(cosines)[::-1][:20], atol=float32_slack(cosines)
    )
    logits = tiny_model.score_pairs(
        [gallery.captions[row] for row in rankings.candidates[7]],
        np.repeat(stored.tokens, 20, axis=0),
    )
    np.testing.assert_allclose(rankings.joint[7], logits, atol=float32_slack(logits))
    assert rankings.rights[7] == tuple(np.flatnonzero(gallery.owner == 7))
    assert rankings.num_right.tolist() == [1, 2, 3] * 10


@pytest.mark.slow
def test_two_models_get_a_collection_each_and_are_compared(
    tmp_path: Path, annotations: list[Annotation], tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    contenders = [Contender("one", tiny_model), Contender("other/two", other_model)]
    settings = replace(QUICK, num_candidates=(5, 10))
    report = evaluate(annotations, contenders, tmp_path, settings, data="d.jsonl")
    assert len(report.systems) == 2 * 2 * 2
    assert len([*(tmp_path / "collections").iterdir()]) == 2
    names = [(s.model, s.direction, s.num_candidates) for s in report.systems]
    assert names == [
        (model, direction, number)
        for direction in ("t2i", "i2t")
        for model in ("one", "other/two")
        for number in (5, 10)
    ]
    last = report.systems[-1]
    assert [(c.model, c.num_candidates) for c in last.against] == [("one", 10), ("other/two", 5)]
    for kind in ("cases", "plots"):
        assert all(Path(path).is_file() for path in report.files[kind])
    assert {Path(path).name for path in report.files["cases"]} == {
        "cases-t2i-1-one.jsonl", "cases-t2i-2-two.jsonl",
        "cases-i2t-1-one.jsonl", "cases-i2t-2-two.jsonl",
    }  # fmt: skip
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written == json.loads(json.dumps(report.as_dict()))

    again = evaluate(annotations, contenders, tmp_path, settings, data="d.jsonl")
    assert [s.reranked for s in again.systems] == [s.reranked for s in report.systems]
    assert len([*(tmp_path / "collections").iterdir()]) == 2


@pytest.mark.slow
def test_a_codec_that_needs_it_is_fitted_to_the_gallery(
    tmp_path: Path, write_images: WriteImages, tiny_model: EDJEModel
) -> None:
    paths = write_images(tmp_path / "pictures", 70)  # of four tokens each
    some = [Annotation(str(path), ("red kite",), "d.jsonl") for path in paths]
    contenders = [
        Contender("exact", tiny_model),
        Contender("coded", tiny_model, codec="pq16"),
    ]
    settings = replace(QUICK, direction="t2i", in_memory=True)
    exact, coded = evaluate(some, contenders, tmp_path, settings).systems
    assert (exact.bytes_per_image, coded.bytes_per_image) == (4 * 16 * 2, 4 * 16)
    assert coded.first_stage == exact.first_stage
    (place,) = (tmp_path / "collections").glob("*-pq16")
    with ImageCollection.open(place, "images") as collection:
        ids = build_gallery(some).image_ids
        codec, coded_tokens = collection.codec, collection.encodings(ids).tokens
    (place,) = (tmp_path / "collections").glob("*-float16")
    with ImageCollection.open(place, "images") as collection:
        tokens = collection.encodings(ids).tokens
    assert codec.hash == codec.fit(tokens).hash
    # Another batch size may have changed the model's last bits.
    np.testing.assert_allclose(coded_tokens, codec.decode(codec.encode(tokens)), atol=0.05)

    # The next run finds the collection and fits nothing.
    (again,) = evaluate(some, contenders[1:], tmp_path, settings).systems
    assert again.reranked == coded.reranked
    with pytest.raises(ConfigError, match="give 64 images or more"):
        evaluate(some[:63], contenders, tmp_path / "few", settings)


@pytest.mark.slow
def test_another_gallery_in_the_same_folder_has_no_strangers(
    tmp_path: Path, annotations: list[Annotation], tiny_model: EDJEModel
) -> None:
    contenders = [Contender("tiny", tiny_model)]
    settings = replace(QUICK, direction="t2i")
    assert evaluate(annotations, contenders, tmp_path, settings).images == 30
    fewer = evaluate(annotations, contenders, tmp_path, replace(settings, limit=12))
    assert (fewer.images, fewer.strangers, fewer.systems[0].pool) == (12, 0, 12)
    assert fewer.captions == sum(len(a.captions) for a in annotations[:12])
    assert fewer.systems[0].num_candidates == 10


def test_pictures_that_nobody_annotated_take_part_and_are_counted(
    tmp_path: Path, annotations: list[Annotation], tiny_model: EDJEModel
) -> None:
    with ImageCollection.create(tmp_path, "images", tiny_model.contract()) as collection:
        everything = [annotation.image for annotation in annotations]
        ingest_images(everything, collection, tiny_model, progress=False)
        contenders = [Contender("tiny", tiny_model, collection)]
        report = evaluate(annotations[:9], contenders, tmp_path / "out", QUICK)
        assert collection.count() == 30  # still open
    assert (report.images, report.strangers) == (9, 21)
    assert [system.pool for system in report.systems] == [30, report.captions]
    assert "21 images that no annotation names" in report.text()


def test_broken_pictures_leave_with_their_captions_and_are_listed(
    tmp_path: Path, annotations: list[Annotation], tiny_model: EDJEModel
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    shutil.copy(annotations[0].image, tmp_path / "twin.png")
    more = [
        Annotation(str(tmp_path / "broken.png"), ("a", "b"), "d.jsonl:31"),
        Annotation(str(tmp_path / "gone.png"), ("c",), "d.jsonl:32"),
        Annotation(str(tmp_path / "twin.png"), ("d",), "d.jsonl:33"),
    ]
    report = evaluate([*annotations, *more], [Contender("tiny", tiny_model)], tmp_path, QUICK)
    assert sorted(Path(f.path).name for f in report.failed) == ["broken.png", "gone.png"]
    assert (report.images, report.lost_captions, report.twins) == (30, 3, 1)
    assert report.captions == sum(len(a.captions) for a in annotations) + 1


@pytest.mark.slow
def test_the_full_pool_with_the_questions_of_one_split(
    tmp_path: Path, annotations: list[Annotation], tiny_model: EDJEModel
) -> None:
    parts = [replace(a, part="test" if n < 10 else "train") for n, a in enumerate(annotations)]
    contenders = [Contender("tiny", tiny_model)]
    settings = replace(QUICK, protocol="full", in_memory=True)
    whole = evaluate(parts, contenders, tmp_path, settings)
    assert [(s.queries, s.pool) for s in whole.systems] == [(60, 30), (30, 60)]
    some = evaluate(parts, contenders, tmp_path, replace(settings, split="test"))
    assert [(s.queries, s.pool) for s in some.systems] == [(19, 30), (10, 60)]
    karpathy = evaluate(parts, contenders, tmp_path, replace(settings, protocol="karpathy"))
    assert karpathy.split == "test"
    assert [(s.queries, s.pool) for s in karpathy.systems] == [(19, 10), (10, 19)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocol": "other"}, "protocol is 'other'"),
        ({"direction": "i2i"}, "direction is 'i2i'"),
        ({"num_candidates": (5, 0)}, "num_candidates holds 0"),
        ({"num_candidates": (2.5,)}, "whole numbers"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Settings(**settings)


def test_models_alike_and_other_models_collections_are_refused(
    tmp_path: Path, annotations: list[Annotation], tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    with pytest.raises(ConfigError, match="each with its own label"):
        evaluate(annotations, [Contender("a", tiny_model)] * 2, tmp_path)
    with pytest.raises(ConfigError, match="at least one model"):
        evaluate(annotations, [], tmp_path)
    with (
        ImageCollection.create(tmp_path, "images", other_model.contract()) as collection,
        pytest.raises(ContractMismatchError),
    ):
        evaluate(annotations, [Contender("a", tiny_model, collection)], tmp_path)
