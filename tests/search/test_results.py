"""What people do with a result: tables, notebooks, short reprs."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from searching import make_collection

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.image_to_text.caption_collection import CaptionCollection
from edje_qdrant.image_to_text.caption_retriever import CaptionRetriever
from edje_qdrant.images import image_file_id
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.search import html
from edje_qdrant.search.results import SearchHit, SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.types import Timings

WriteImages = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def retriever(tiny_model: EDJEModel) -> Any:
    with TwoStageRetriever(make_collection(":memory:", tiny_model), tiny_model) as opened:
        yield opened


def hit_of(path: str | None, image_id: str = "0", **more: Any) -> SearchHit:
    payload = {} if path is None else {"path": path}
    return SearchHit(image_id, 1.23456, 1, 0.5, 4, {**payload, **more})


def result_of(*hits: SearchHit, query: str = "a cat") -> SearchResult:
    return SearchResult(query, hits, Timings(1, 2, 3, 4), candidates=40, scored=40)


@pytest.mark.parametrize(
    ("probability", "word"),
    [
        (None, None), (1.0, "good"), (0.5, "good"), (0.49, "possible"), (0.19, "possible"),
        (0.1, "possible"), (0.0999, "weak"), (0.0, "weak"),
    ],
)  # fmt: skip
def test_a_hit_says_its_probability_in_a_word(probability: float | None, word: str | None) -> None:
    hit = replace(hit_of("a.png"), probability=probability)
    assert hit.match == hit.as_dict()["match"] == word
    (row,) = result_of(hit).to_dicts()
    assert (row["match"], row["probability"]) == (word, probability)


def test_fewer_candidates_than_the_usual_hits_are_all_returned(
    retriever: TwoStageRetriever, tiny_model: EDJEModel
) -> None:
    assert len(retriever.search("a cat", num_candidates=5)) == 5
    assert len(retriever.search("a cat", num_candidates=20)) == 10
    (result,) = retriever.search_batch(["a cat"], num_candidates=3)
    assert len(result) == 3
    liked = [result[0].image_id]
    assert len(retriever.recommend(liked, num_candidates=4)) == 4
    with pytest.raises(ConfigError, match="num_candidates is 5 and top_k 10"):
        retriever.search("a cat", num_candidates=5, top_k=10)
    captions = CaptionCollection.create(":memory:", "captions", tiny_model.contract())
    with CaptionRetriever(captions, tiny_model) as other:
        other.add([f"a cat {number}" for number in range(12)])
        image = Image.new("RGB", (32, 32))
        assert len(other.search(image)) == 10
        assert len(other.search(image, num_candidates=4)) == 4
        assert repr(other.search(image)).startswith("<CaptionResult: 10 captions, ")
        assert repr(other).startswith("CaptionRetriever(CaptionCollection('captions', ")


def test_a_hit_can_be_explained(
    tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages
) -> None:
    with ImageCollection.create(tmp_path / "i", "images", tiny_model.contract()) as collection:
        ingest_images(write_images(tmp_path, 3), collection, tiny_model, progress=False)
        retriever = TwoStageRetriever(collection, tiny_model)
        (hit, *_) = retriever.search("a cat")
        by_hit, by_id = retriever.explain("a cat", hit), retriever.explain("a cat", hit.image_id)
        assert (by_hit.heat == by_id.heat).all()
        wrong: Any = 7
        with pytest.raises(ConfigError, match="a hit of a search"):
            retriever.explain("a cat", wrong)


def test_hits_become_dicts_that_share_nothing() -> None:
    hit = hit_of("a.png", tags=["x"])
    (row,) = result_of(hit).to_dicts()
    assert row == hit.as_dict()
    row["payload"]["tags"].append("y")
    assert hit.payload["tags"] == ["x"]
    assert result_of().to_dicts() == []


def test_hits_become_a_data_frame(retriever: TwoStageRetriever) -> None:
    pytest.importorskip("pandas", reason="needs the extra pandas")
    result = retriever.search("a cat", top_k=3)
    frame = result.to_pandas()
    assert frame["rank"].tolist() == [1, 2, 3]
    assert frame["image_id"].tolist() == [hit.image_id for hit in result]
    assert frame["payload.path"].tolist() == [hit.payload["path"] for hit in result]
    makers = [hit.payload["camera"]["maker"] for hit in result]
    assert frame["payload.camera.maker"].tolist() == makers
    empty = result_of().to_pandas()
    assert len(empty) == 0
    assert {*empty.columns} < {*frame.columns}


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[pandas\]"):
        result_of().to_pandas()


def test_reprs_are_short(retriever: TwoStageRetriever, tiny_model: EDJEModel) -> None:
    hit = hit_of("a.png")
    assert repr(hit) == "SearchHit(rank=1, score=1.235, retrieval_rank=4, path='a.png')"
    assert "score=None" in repr(replace(hit, score=None))
    assert "image_id='0'" in repr(hit_of(None))
    long = repr(hit_of("/photos/" + "x" * 300 + "/end.png"))
    assert long.endswith("xxx/end.png')")
    assert len(long) < 130
    assert repr(result_of(hit)) == "<SearchResult 'a cat': 1 hit of 40 candidates, 10.0 ms>"
    assert len(repr(result_of(hit, query="cat " * 300))) < 130
    degraded = replace(result_of(hit), degraded=True, reason="no time")
    assert repr(degraded).endswith("10.0 ms, degraded: no time>")
    assert "\n" not in repr(tiny_model)
    assert repr(tiny_model).startswith("EDJEModel(")
    assert "device='cpu', dtype='float32'" in repr(tiny_model)
    assert repr(retriever).startswith("TwoStageRetriever(ImageCollection('images', ")
    assert "first_stage='engine', precision='float32'" in repr(retriever)


def pictures_in(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


def test_a_notebook_shows_a_table_with_small_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a & b.png"
    Image.new("RGB", (640, 320), "red").save(path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    image_id = image_file_id(str(path))
    hits = [
        hit_of(str(path), image_id),
        hit_of(str(path), "another image's id"),
        hit_of(str(tmp_path / "broken.png"), image_file_id(str(tmp_path / "broken.png"))),
        hit_of(str(tmp_path / "missing.png")),
        hit_of(str(tmp_path)),
        hit_of("a\0.png"),
        hit_of(None),
        replace(hit_of("<img src=x onerror=alert(1)>"), score=None),
    ]
    shown = result_of(*hits, query="<script>alert(1)</script>")._repr_html_()
    assert shown.count("<tr>") == len(hits) + 1
    (picture,) = pictures_in(shown)
    assert picture.size == (128, 64)
    assert "a &amp; b.png" in shown
    assert "not scored" in shown
    assert "<script" not in shown
    assert "<img src" not in shown
    many = result_of(*[hits[0]] * (html.MOST_PICTURES + 3))._repr_html_()
    assert len(pictures_in(many)) == html.MOST_PICTURES
    monkeypatch.setattr(html, "_MOST_PIXELS", 640 * 320 - 1)
    assert not pictures_in(result_of(hits[0])._repr_html_())
    monkeypatch.undo()
    monkeypatch.setattr(html, "_LARGEST_FILE", path.stat().st_size - 1)
    assert not pictures_in(result_of(hits[0])._repr_html_())


def test_type_checkers_find_the_packages_types() -> None:
    assert (files("edje_qdrant") / "py.typed").is_file()
