from __future__ import annotations

import json
import threading

import pytest
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.run import draw_images, run_demo
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.errors import ConfigError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, images=60, progress=False)


def test_reranking_lifts_the_right_picture_of_held_out_scenes(demo):
    _, report = demo
    assert report.images == report.queries == 60
    assert report.reranked["R@1"] >= report.first_stage["R@1"]
    assert report.reranked["R@1"] >= 0.8


def test_the_report_holds_what_json_users_need(demo):
    _, report = demo
    data = json.loads(json.dumps(report.as_dict()))
    assert data.keys() >= {
        "pictures", "queries", "first_stage", "reranked", "bytes_per_picture", "timings_ms",
        "contact_sheet",
    }  # fmt: skip
    assert data["first_stage"].keys() == data["reranked"].keys() == {"R@1", "R@5", "R@10"}
    assert data["bytes_per_picture"] == 16 * 128 * 2
    stages = data["timings_ms"]
    assert min(stages.values()) > 0
    total = sum(v for k, v in stages.items() if k != "total")
    assert stages["total"] == pytest.approx(total, abs=0.05)


def test_the_text_names_the_figures_the_sheet_and_what_to_try_next(demo):
    _, report = demo
    text = report.text()
    assert f"{report.reranked['R@1']:.1%}" in text
    assert str(report.contact_sheet) in text
    assert "edje-qdrant search" in text
    for example in report.examples:
        assert example.query in text
        assert example.first_rank != example.final_rank


def test_the_sheet_is_a_picture_of_all_examples(demo):
    _, report = demo
    with Image.open(report.contact_sheet) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 1500
        assert sheet.height > 190 * len(report.examples)


@pytest.mark.slow
def test_a_second_run_reuses_everything_and_finds_the_same(demo):
    folder, report = demo
    written = {p: p.stat().st_mtime_ns for p in (folder / "pictures").iterdir()}
    # The page suggests captions, and they say what the images show.
    with ImageCollection.open(folder / "index-60-1", "images") as collection:
        (page,) = collection.index.scroll()
        assert all(point.payload["caption"].strip() for point in page)
    again = run_demo(folder, images=60, progress=False)
    assert (again.ingest.added, again.ingest.skipped) == (0, 60)
    assert written == {p: p.stat().st_mtime_ns for p in (folder / "pictures").iterdir()}
    assert (again.first_stage, again.reranked) == (report.first_stage, report.reranked)


def test_fewer_pictures_next_time_leave_none_of_the_old_ones(tmp_path):
    draw_images(tmp_path, 30, 1, progress=False)
    captions = draw_images(tmp_path, 20, 1, progress=False)
    assert len(captions) == len(list(tmp_path.iterdir())) == 20


def test_scenes_are_drawn_side_by_side_and_files_hold_their_pixels(tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=120)
    drawn = []

    def draw_beside_another(scene):
        drawn.append(scene)
        if len(drawn) <= 2:
            both.wait()  # fails unless a second scene is drawn at the same time
        return draw(scene)

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("edje_qdrant.demo.run.draw", draw_beside_another)
    draw_images(tmp_path, 20, 1, progress=False)
    for number, scene in enumerate(draw_scenes("test", 1, 20)):
        with Image.open(tmp_path / f"scene-{number:04d}.png") as image:
            assert image.tobytes() == draw(scene).tobytes()


def test_too_few_pictures_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 20"):
        run_demo(tmp_path, images=3, progress=False)


def test_too_few_candidates_are_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(ConfigError, match="at least 10 candidates"):
        run_demo(tmp_path, images=20, num_candidates=5, progress=False)
    assert list(tmp_path.iterdir()) == []
