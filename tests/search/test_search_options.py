"""Filters, groups, fusion, cutoffs, pages: what a search can be asked for, on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models
from rounding import float16_slack, float32_slack
from searching import (
    COUNT,
    TEXTS,
    engine_places,
    full_scores,
    make_collection,
    numbered_id,
    numbers,
    payload_of,
    random_images,
)

from edje_qdrant.errors import ConfigError, ImageReadError, TokensNotFoundError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.sources.read import stored_id

CALIBRATION = Calibration(
    slope=2.0, intercept=0.5, cutoff=-0.25, gap_slope=0.0, gap_intercept=-1e6, spread=1.0,
    margin=0.0, queries=20, pairs=100, data="a test",
)  # fmt: skip


@pytest.fixture(scope="module", params=["edge", "memory", "faiss"])
def retriever(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: EDJEModel
) -> Iterator[TwoStageRetriever]:
    place = engine_places(tmp_path_factory.mktemp("search"))[request.param]
    with TwoStageRetriever(make_collection(place, tiny_model), tiny_model) as opened:
        yield opened


@pytest.fixture
def calibrated(tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    monkeypatch.setattr(tiny_model, "calibration", CALIBRATION)
    return CALIBRATION


@pytest.mark.parametrize(
    ("filter", "passes"),
    [
        ({"album": "2024"}, lambda p: p["album"] == "2024"),
        ({"camera.maker": ["a", "c"]}, lambda p: p["camera"]["maker"] in "ac"),
        (
            models.Filter(
                must=[models.FieldCondition(key="number", range=models.Range(gte=5, lt=17))]
            ),
            lambda p: 5 <= p["number"] < 17,
        ),
        ({"album": "1999"}, lambda p: False),
    ],
)
def test_a_filter_chooses_among_whom_both_stages_rank(
    retriever: TwoStageRetriever, tiny_model: EDJEModel, filter: Any, passes: Any
) -> None:
    cosines, logits = full_scores(tiny_model, TEXTS[0])
    allowed = np.array([n for n in range(COUNT) if passes(payload_of(n))], int)
    candidates = allowed[np.argsort(-cosines[allowed])][:10]
    expected = candidates[np.argsort(-logits[candidates])][:5]
    result = retriever.search(TEXTS[0], top_k=5, num_candidates=10, filter=filter)
    assert numbers(result) == expected.tolist()
    assert result.candidates == result.scored == len(candidates)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_pages_are_the_whole_ranking_cut(retriever: TwoStageRetriever, size: int) -> None:
    whole = retriever.search(TEXTS[1], top_k=30, num_candidates=30)
    page = retriever.search(TEXTS[1], top_k=min(size, 30), num_candidates=30)
    seen = [*page]
    while page.cursor is not None:
        resumed = retriever.resume(page.cursor, top_k=size)
        page = page.next(size)
        assert [*resumed] == [*page]
        assert resumed.query == page.query
        assert (resumed.candidates, resumed.scored) == (page.candidates, page.scored)
        seen += page
    # Another search, of which the last digits may differ.
    assert [hit.image_id for hit in seen] == [hit.image_id for hit in whole]
    assert [hit.rank for hit in seen] == list(range(1, 31))
    assert len(page.next(5)) == 0


def test_a_page_leaves_out_what_was_deleted_since(tmp_path: Path, tiny_model: EDJEModel) -> None:
    with TwoStageRetriever(make_collection(tmp_path, tiny_model), tiny_model) as retriever:
        first = retriever.search(TEXTS[0], top_k=5, num_candidates=20)
        rest = [hit.image_id for hit in first.next(15)]
        retriever.collection.delete(rest[2:4])
        assert first.cursor is not None
        second = retriever.resume(first.cursor, top_k=6)
        assert [hit.image_id for hit in second] == [*rest[:2], *rest[4:8]]
        assert second.cursor is not None
        third = retriever.resume(second.cursor, top_k=50)
        assert [hit.image_id for hit in third] == rest[8:]
        assert third.cursor is None


def test_cursors_that_are_none_are_refused(
    retriever: TwoStageRetriever, tmp_path: Path, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    cursor = retriever.search(TEXTS[0], top_k=3).cursor
    assert cursor is not None
    changed = ("A" if cursor[30] != "A" else "B").join([cursor[:30], cursor[31:]])
    for wrong in ("", "abc", "*", cursor[:-5], changed, cursor + "AAAA", 3):
        with pytest.raises(ConfigError, match="cursor"):
            retriever.resume(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="top_k"):
        retriever.resume(cursor, top_k=0)
    with pytest.raises(ConfigError, match="count"):
        retriever.search(TEXTS[0], top_k=3).next(0)
    with (
        TwoStageRetriever(make_collection(tmp_path, other_model), other_model) as other,
        pytest.raises(ConfigError, match="another model"),
    ):
        other.resume(cursor)


def test_a_group_shows_its_best_picture_alone(
    retriever: TwoStageRetriever, tiny_model: EDJEModel
) -> None:
    _, logits = full_scores(tiny_model, TEXTS[0])
    result = retriever.search(TEXTS[0], top_k=40, num_candidates=40, group_by="camera.maker")
    best = [max(range(n, COUNT, 3), key=lambda i: logits[i]) for n in range(3)]
    assert numbers(result) == sorted(best, key=lambda i: -logits[i])
    assert [hit.group for hit in result] == [
        payload_of(n)["camera"]["maker"] for n in numbers(result)
    ]
    assert [hit.rank for hit in result] == [1, 2, 3]


def test_pictures_without_the_field_stand_for_themselves(retriever: TwoStageRetriever) -> None:
    result = retriever.search(TEXTS[0], top_k=40, num_candidates=40, group_by="video")
    alone = [hit for hit in result if hit.group is None]
    assert sorted(hit.payload["number"] for hit in alone) == [9, 19, 29, 39]
    groups = [hit.group for hit in result if hit.group is not None]
    assert sorted(groups) == ["long", "v0", "v1", "v2", "v3", "v4"][: len(groups)]


def test_one_long_video_does_not_crowd_out_the_others(
    retriever: TwoStageRetriever, tiny_model: EDJEModel
) -> None:
    # Half of all images are frames of one video; of 8 candidates it may have 8 // 4.
    for text in TEXTS:
        cosines, _ = full_scores(tiny_model, text)
        ranked = np.argsort(-cosines).tolist()
        kept: list[int] = []
        taken: dict[str, int] = {}
        for number in ranked:
            video = payload_of(number).get("video")
            if video is not None:
                if taken.get(video, 0) == 2:
                    continue
                taken[video] = taken.get(video, 0) + 1
            kept.append(number)
        result = retriever.search(text, top_k=4, num_candidates=8, group_by="video")
        shown = [*result, *result.remaining]
        assert result.candidates == 8
        assert {hit.payload["number"] for hit in shown} <= {*kept[:8]}
        assert max(hit.retrieval_rank for hit in shown) <= 8
        plain = retriever.search(text, top_k=8, num_candidates=8)
        if sum(payload_of(n).get("video") == "long" for n in numbers(plain)) > 4:
            assert len({hit.group for hit in shown}) > len(
                {hit.payload.get("video") for hit in plain}
            )


def test_groups_keep_to_the_filter(retriever: TwoStageRetriever) -> None:
    result = retriever.search(
        TEXTS[0], top_k=3, num_candidates=6, group_by="video", filter={"album": "2023"}
    )
    shown = [*result, *result.remaining]
    assert shown
    assert all(hit.payload["album"] == "2023" for hit in shown)


@pytest.mark.parametrize("weights", [None, (1.0, 0.0), (0.0, 1.0), (0.7, 0.3)])
def test_fusion_weighs_both_stages(
    retriever: TwoStageRetriever, tiny_model: EDJEModel, weights: tuple[float, float] | None
) -> None:
    from edje_qdrant.search.fusion import DEFAULT_WEIGHTS

    cosines, logits = full_scores(tiny_model, TEXTS[2])
    rows = np.argsort(-cosines)[:20]
    for fusion in ("rrf", "blend"):
        first, second = weights or DEFAULT_WEIGHTS[fusion]
        if fusion == "rrf":
            places = [np.argsort(np.argsort(-s[rows])) + 1 for s in (cosines, logits)]
            expected = first / (60 + places[0]) + second / (60 + places[1])
            slack = 0.0
        else:
            a, b = ((s[rows] - s[rows].mean()) / s[rows].std() for s in (cosines, logits))
            expected = (first * a + second * b) / (first + second)
            # Dividing by the spread divides the roundings as well.
            x, y = (float32_slack(s[rows]) / s[rows].std() for s in (cosines, logits))
            slack = (first * x + second * y) / (first + second)
        result = retriever.search(
            TEXTS[2], top_k=20, num_candidates=20, fusion=fusion, fusion_weights=weights
        )
        scores = {int(n): float(s) for n, s in zip(rows, expected, strict=True)}
        got = [hit.fusion_score for hit in result]
        assert got == sorted(got, reverse=True)
        np.testing.assert_allclose(got, [scores[n] for n in numbers(result)], atol=slack)
        np.testing.assert_allclose(
            [hit.score for hit in result], logits[numbers(result)], atol=float32_slack(logits)
        )
    assert all(hit.fusion_score is None for hit in retriever.search(TEXTS[2]))


def test_min_score_leaves_out_what_scores_lower(
    retriever: TwoStageRetriever, calibrated: Calibration
) -> None:
    whole = retriever.search(TEXTS[0], top_k=40, num_candidates=40)
    scores = [hit.score for hit in whole]
    middle = scores[12]
    cut = retriever.search(TEXTS[0], top_k=5, num_candidates=40, min_score=middle)
    assert [hit.image_id for hit in [*cut, *cut.remaining]] == [h.image_id for h in whole[:13]]
    assert not retriever.search(TEXTS[0], min_score=1e9).hits
    auto = retriever.search(TEXTS[0], top_k=40, num_candidates=40, min_score="auto")
    assert len(auto) == sum(s >= calibrated.cutoff for s in scores if s is not None)
    for hit in whole:
        assert hit.score is not None
        assert hit.probability == pytest.approx(1 / (1 + np.exp(-2 * hit.score - 0.5)))


def test_a_text_shorter_than_those_of_the_calibration_has_no_probability(
    retriever: TwoStageRetriever, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model, "calibration", replace(CALIBRATION, least_words=4))
    short, long = retriever.search("a red star"), retriever.search("a big red star")
    assert {(hit.probability, hit.match) for hit in short} == {(None, None)}
    assert all(hit.probability is not None and hit.match is not None for hit in long)
    assert retriever.resume(short.cursor or "")[0].match is None


def test_without_calibration_there_is_no_probability(retriever: TwoStageRetriever) -> None:
    assert all(hit.probability is None for hit in retriever.search(TEXTS[0]))
    for wrong in ({"min_score": "auto"}, {"adaptive": True}):
        with pytest.raises(ConfigError, match="calibrate"):
            retriever.search(TEXTS[0], **wrong)  # type: ignore[arg-type]


def test_adaptive_scores_no_more_than_it_must(
    retriever: TwoStageRetriever, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    whole = retriever.search(TEXTS[0], top_k=3, num_candidates=40)
    for margin, scored in ((0.0, 8), (1e7, 40), (None, 40)):
        monkeypatch.setattr(tiny_model, "calibration", replace(CALIBRATION, margin=margin))
        result = retriever.search(TEXTS[0], top_k=3, num_candidates=40, adaptive=True)
        assert result.scored == scored
        assert result.candidates == 40
        assert not result.degraded
        shown = [*result, *result.remaining]
        assert [hit.score is None for hit in shown] == [False] * scored + [True] * (40 - scored)
        behind = [hit.retrieval_rank for hit in shown[scored:]]
        assert behind == list(range(scored + 1, 41))
        if scored == 40:
            assert [hit.image_id for hit in result] == [hit.image_id for hit in whole]
    result = retriever.search(TEXTS[0], top_k=20, num_candidates=40, adaptive=True)
    assert result.scored >= 20
    monkeypatch.setattr(tiny_model, "calibration", CALIBRATION)
    batch = retriever.search_batch(TEXTS, top_k=3, num_candidates=40, adaptive=True)
    for text, together in zip(TEXTS, batch, strict=True):
        alone = retriever.search(text, top_k=3, num_candidates=40, adaptive=True)
        assert [h.image_id for h in together] == [h.image_id for h in alone]


def test_a_picture_finds_itself_and_its_like(
    retriever: TwoStageRetriever, tiny_model: EDJEModel, tmp_path: Path
) -> None:
    pictures = random_images()
    embeddings = tiny_model.encode_images(pictures).embeddings
    expected = np.argsort(-(embeddings @ embeddings[7]))[:6].tolist()
    path = tmp_path / "seven.png"
    pictures[7].save(path)
    for image in (pictures[7], path, str(path)):
        result = retriever.search_by_image(image, top_k=6)
        assert numbers(result) == expected
        assert expected[0] == 7
        assert {hit.score for hit in result} == {None}
        assert [hit.rank for hit in result] == [hit.retrieval_rank for hit in result]
    page = retriever.search_by_image(path, top_k=2).next(4)
    assert numbers(page) == expected[2:]
    odd = retriever.search_by_image(path, top_k=6, filter={"album": "2024"})
    assert all(number % 2 == 1 for number in numbers(odd))
    makers = retriever.search_by_image(path, top_k=6, group_by="camera.maker")
    assert sorted(hit.group for hit in makers) == ["a", "b", "c"]
    (tmp_path / "broken.png").write_bytes(b"not an image")
    for wrong in (tmp_path / "broken.png", tmp_path / "none.png"):
        with pytest.raises(ImageReadError):
            retriever.search_by_image(wrong)


def test_more_like_these_and_less_like_those(
    retriever: TwoStageRetriever, tiny_model: EDJEModel
) -> None:
    embeddings = tiny_model.encode_images(random_images()).embeddings
    liked, disliked = [3, 8], [11]
    middle = 2 * embeddings[liked].mean(axis=0) - embeddings[disliked].mean(axis=0)
    near = [n for n in np.argsort(-(embeddings @ middle)).tolist() if n not in (3, 8, 11)]
    ids = [numbered_id(n) for n in liked]
    result = retriever.recommend(ids, [numbered_id(11)], top_k=5)
    assert numbers(result) == near[:5]
    assert {hit.score for hit in result} == {None}
    assert numbers(result.next(5)) == near[5:10]
    one = retriever.recommend([numbered_id(3)], top_k=4)
    assert 3 not in numbers(one)
    by_text = retriever.recommend(ids, text=TEXTS[0], top_k=5, num_candidates=12)
    plain = retriever.recommend(ids, top_k=12, num_candidates=12)
    _, logits = full_scores(tiny_model, TEXTS[0])
    assert numbers(by_text) == sorted(numbers(plain), key=lambda n: -logits[n])[:5]
    away = retriever.recommend([], [numbered_id(11)], strategy="best_score", top_k=3)
    assert 11 not in numbers(away)
    for wrong in (
        ([], []),
        ([numbered_id(999)], []),
        (ids, ids),
        ("no list", []),
    ):
        with pytest.raises(ConfigError):
            retriever.recommend(*wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="word"):
        retriever.recommend(ids, text="...")


def test_known_pictures_are_scored_whatever_their_place(
    retriever: TwoStageRetriever, tiny_model: EDJEModel
) -> None:
    _, logits = full_scores(tiny_model, TEXTS[3])
    wanted = [30, 2, 17, 2]
    scores = retriever.score(TEXTS[3], [numbered_id(n) for n in wanted])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, logits[wanted], atol=float32_slack(logits))
    assert retriever.score(TEXTS[3], []).shape == (0,)
    with pytest.raises(TokensNotFoundError, match=numbered_id(77)):
        retriever.score(TEXTS[3], [numbered_id(77)])
    for text, ids in ((TEXTS[3], numbered_id(1)), ("?!", [numbered_id(1)])):
        with pytest.raises(ConfigError):
            retriever.score(text, ids)


@pytest.mark.parametrize(
    "options",
    [
        {"filter": "album"},
        {"filter": {"album": None}},
        {"filter": {"_edje": 1}},
        {"fusion": "sum"},
        {"fusion": None},
        {"fusion_weights": (1, 1)},
        {"fusion": "rrf", "fusion_weights": (0, 0)},
        {"fusion": "rrf", "fusion_weights": (-1, 2)},
        {"fusion": "blend", "fusion_weights": (1, 2, 3)},
        {"fusion": "blend", "fusion_weights": "ab"},
        {"group_by": ""},
        {"group_by": 3},
        {"group_by": "_edje"},
        {"group_by": "frames[].id"},
        {"budget_ms": 0},
        {"budget_ms": -5},
        {"budget_ms": float("nan")},
        {"budget_ms": "fast"},
        {"budget_ms": True},
        {"adaptive": 1},
        {"min_score": "high"},
        {"min_score": float("inf")},
        {"min_score": True},
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(
    retriever: TwoStageRetriever, options: dict[str, Any]
) -> None:
    (last,) = [*options][-1:]
    with pytest.raises(ConfigError, match="filter" if last == "filter" else last):
        retriever.search("a cat", **options)
    with pytest.raises(ConfigError):
        retriever.search_batch(["a cat"], **options)  # type: ignore[misc]


def test_unknown_options_are_refused(retriever: TwoStageRetriever) -> None:
    with pytest.raises(TypeError, match="limit"):
        retriever.search_batch(["a cat"], limit=3)  # type: ignore[call-arg]


def test_a_found_picture_is_explained(
    tmp_path: Path, tiny_model: EDJEModel, write_images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.ingest.ingest import ingest_images

    paths = write_images(tmp_path / "pictures", 3)
    with TwoStageRetriever(
        ImageCollection.create(tmp_path, "images", tiny_model.contract()), tiny_model
    ) as retriever:
        ingest_images(paths, retriever.collection, tiny_model, progress=False)
        hit = retriever.search("a cat")[0]
        found = retriever.explain("a cat", hit.image_id)
        assert found.score == pytest.approx(hit.score, abs=float16_slack(hit.score))
        assert found.words == ("a", "cat")
        path = Path(hit.payload["path"])
        same = retriever.explain("a cat", hit.image_id, image=path)
        np.testing.assert_array_equal(same.heat, found.heat)
        for wrong in ("", "..."):
            with pytest.raises(ConfigError):
                retriever.explain(wrong, hit.image_id)
        with pytest.raises(TokensNotFoundError):
            retriever.explain("a cat", numbered_id(1))
        content = path.read_bytes()
        other = next(p for p in paths if p != path)
        path.write_bytes(other.read_bytes())
        with pytest.raises(ImageReadError, match="another image"):
            retriever.explain("a cat", hit.image_id)
        path.unlink()
        with pytest.raises(ImageReadError):
            retriever.explain("a cat", hit.image_id)
        path.write_bytes(content)
        with monkeypatch.context() as patch:  # a file that changes while it is read

            def named(path_of_it: str, read: bytes) -> str:
                path.write_bytes(other.read_bytes())
                return stored_id(path_of_it, read)

            patch.setattr("edje_qdrant.search.retriever.stored_id", named)
            same = retriever.explain("a cat", hit.image_id)
        np.testing.assert_array_equal(same.heat, found.heat)
        retriever.collection.update_payload({hit.image_id: {"path": 3}})
        with pytest.raises(ImageReadError, match="image="):
            retriever.explain("a cat", hit.image_id)
