from __future__ import annotations

import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rounding import float16_slack, float32_slack

from edje_qdrant.demo.captions import truth_matrix
from edje_qdrant.demo.data import captions_for
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.model import EDJEModel
from edje_qdrant.pair_scoring import keep_top as pair_keeping
from edje_qdrant.pair_scoring import score as pair_scoring
from edje_qdrant.pair_scoring.score import score_pairs_file

WriteImages = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages) -> Path:
    """Twelve images with 30 captions, one that is damaged and one that is missing."""
    folder = tmp_path_factory.mktemp("pairs")
    names = [path.name for path in write_images(folder / "images", 12)]
    (folder / "images" / "broken.png").write_bytes(b"no image")
    lines: list[dict[str, Any]] = [
        {"image": name, "caption": [f"Caption {row} of {name}.", "the same for all"]}
        for row, name in enumerate(names)
    ]
    lines += [{"image": name, "caption": f"more of {name}", "id": 7} for name in names[:3]]
    lines.insert(4, {"image": "broken.png", "caption": ["never", "seen"]})
    lines.insert(9, {"image": "gone.png", "caption": "not there"})
    lines.insert(10, {"image": names[0], "caption": "?!"})
    write(folder / "pairs.jsonl", lines)
    return folder


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def score(data: Path, out: Path, model: EDJEModel, **more: Any) -> pair_scoring.PairReport:
    return score_pairs_file(
        data / "pairs.jsonl", out, model, images=data / "images", progress=False, **more
    )


def test_every_pair_gets_a_line_with_what_both_stages_say(
    tmp_path: Path, data: Path, tiny_model: EDJEModel
) -> None:
    report = score(data, tmp_path / "scores.jsonl", tiny_model)
    lines = lines_of(tmp_path / "scores.jsonl")
    asked = [
        (str(data / "images" / line["image"]), caption)
        for line in lines_of(data / "pairs.jsonl")
        for caption in ([line["caption"]] if isinstance(line["caption"], str) else line["caption"])
    ]
    assert [(line["image"], line["caption"]) for line in lines] == asked
    for line in lines:
        assert list(line) == ["image", "caption", "score", "cosine", "keep", "error"]
        assert line["keep"] is None
        name = Path(line["image"]).name
        if name in ("broken.png", "gone.png") or line["caption"] == "?!":
            assert line["score"] is line["cosine"] is None
            assert {"broken.png": "not an image", "gone.png": "No such file"}.get(
                name, "the caption has no word"
            ) in line["error"]
            continue
        encoding = tiny_model.encode_images([Image.open(line["image"])])
        (logit,) = tiny_model.score(line["caption"], encoding.tokens)
        (cosine,) = tiny_model.encode_texts([line["caption"]]) @ encoding.embeddings[0]
        assert line["score"] == pytest.approx(logit, abs=float16_slack(logit))
        assert line["cosine"] == pytest.approx(cosine, abs=float32_slack(cosine))
        assert line["error"] is None
    assert (report.pairs, report.scored, report.failed, report.resumed) == (31, 27, 4, 0)
    assert (report.kept, report.threshold, report.kept_out) == (None, None, None)
    assert [Path(f.path).name for f in report.failures] == ["broken.png", "gone.png", lines[0][
        "image"].rpartition("/")[2]]  # fmt: skip
    assert json.loads(json.dumps(report.as_dict()))["failed"] == 4


def test_a_threshold_says_what_to_keep(tmp_path: Path, data: Path, tiny_model: EDJEModel) -> None:
    score(data, tmp_path / "all.jsonl", tiny_model)
    scores = [line["score"] for line in lines_of(tmp_path / "all.jsonl")]
    threshold = float(np.median([s for s in scores if s is not None]))  # one of them, as 27 is odd
    report = score(data, tmp_path / "some.jsonl", tiny_model, threshold=threshold)
    keep = [line["keep"] for line in lines_of(tmp_path / "some.jsonl")]
    assert keep == [s is not None and s >= threshold for s in scores]
    assert (report.kept, report.threshold) == (14, threshold)


def test_a_share_is_kept_in_a_second_file_without_scoring_again(
    tmp_path: Path, data: Path, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores.jsonl"
    report = score(data, out, tiny_model, keep_top=0.3)
    kept = tmp_path / "scores.top0.3.jsonl"
    assert report.kept_out == kept
    assert report.kept == 8  # of 27
    lines, marked = lines_of(out), lines_of(kept)
    best = sorted((line["score"] for line in lines if line["score"] is not None), reverse=True)[:8]
    assert report.threshold == best[-1]
    assert marked == [{**line, "keep": line["score"] in best} for line in lines]

    monkeypatch.setattr(tiny_model, "start_encoding", None)
    again = score(data, out, tiny_model, keep_top=1.0)
    assert (again.kept, again.resumed, again.pairs) == (27, 31, 31)
    assert again.kept_out == tmp_path / "scores.top1.jsonl"


def test_each_picture_is_read_once_for_the_captions_that_follow_each_other(
    tmp_path: Path, data: Path, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = pair_scoring.read_pixels

    def counted(model: EDJEModel, path: str) -> Any:
        read.append(Path(path).name)
        return original(model, path)

    monkeypatch.setattr(pair_scoring, "read_pixels", counted)
    score(data, tmp_path / "whole.jsonl", tiny_model, workers=1)
    assert len(read) == len(set(read)) == 14
    read.clear()
    monkeypatch.setattr(pair_scoring, "_PAIRS", 3)
    score(data, tmp_path / "cut.jsonl", tiny_model, workers=1)
    assert all(ours != following for ours, following in pairwise(read))
    for ours, theirs in zip(
        lines_of(tmp_path / "whole.jsonl"), lines_of(tmp_path / "cut.jsonl"), strict=True
    ):
        assert ours["score"] == pytest.approx(
            theirs["score"], abs=float16_slack(theirs["score"] or 0)
        )


_KILLED = """
import os, signal, sys
from edje_qdrant.model import EDJEModel
from edje_qdrant.pair_scoring import score
from edje_qdrant.pair_scoring.score_file import ScoreFile

score._PAIRS = 4
pairs, out, images, model, chunks = sys.argv[1:]
original, written = ScoreFile.write, []

def write(self, scored):
    if len(written) == int(chunks):
        half = b"".join(pair.line() for pair in scored)
        self._file.write(half[: len(half) // 2 + 3])
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(original(self, scored))

ScoreFile.write = write
score.score_pairs_file(
    pairs, out, EDJEModel.from_pretrained(model, device="cpu"), images=images,
    threshold=0.0, progress=False,
)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_what_it_would_have_been(
    tmp_path: Path, data: Path, tiny_folder: Path, tiny_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pair_scoring, "_PAIRS", 4)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "scores.jsonl"
    expected = score(data, whole, tiny_model, threshold=0.0)
    arguments = [data / "pairs.jsonl", out, data / "images", tiny_folder, 3]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, *map(str, arguments)], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    torn = out.read_bytes()
    assert not torn.endswith(b"\n")
    assert 12 < torn.count(b"\n") < 20

    report = score(data, out, tiny_model, threshold=0.0)

    assert out.read_bytes() == whole.read_bytes()
    assert 12 <= report.resumed < 18
    for name in ("pairs", "scored", "kept", "failures"):
        assert getattr(report, name) == getattr(expected, name)


def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, data: Path, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_scoring, "_PAIRS", 4)
    out = tmp_path / "scores.jsonl"
    score(data, out, tiny_model)
    whole = out.read_bytes()
    for cut in np.random.default_rng(0).integers(0, len(whole), 8).tolist():
        out.write_bytes(whole[:cut])
        score(data, out, tiny_model)
        assert out.read_bytes() == whole
    out.unlink()  # and its header is still there
    score(data, out, tiny_model)
    assert out.read_bytes() == whole


def test_a_run_of_something_else_does_not_go_on(
    tmp_path: Path, data: Path, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    out = tmp_path / "scores.jsonl"
    score(data, out, tiny_model)
    whole = out.read_bytes()
    with pytest.raises(ConfigError, match=r"threshold: was none, now 1\.5"):
        score(data, out, tiny_model, threshold=1.5)
    with pytest.raises(ConfigError, match="joint_encoder: was"):
        score(data, out, other_model)
    with pytest.raises(ConfigError, match="digest: was"):
        score_pairs_file(data / "pairs.jsonl", out, tiny_model, progress=False)
    fewer = write(data / "fewer.jsonl", lines_of(data / "pairs.jsonl")[:-1])
    with pytest.raises(ConfigError, match="pairs: was 31, now 30"):
        score_pairs_file(fewer, out, tiny_model, images=data / "images", progress=False)
    assert out.read_bytes() == whole
    with out.open("ab") as file:
        file.write(whole.splitlines(keepends=True)[0])
    with pytest.raises(StoreError, match="more lines than there are pairs"):
        score(data, out, tiny_model)


def test_wrong_lines_are_named_before_anything_is_scored(
    tmp_path: Path, tiny_model: EDJEModel
) -> None:
    out = tmp_path / "scores.jsonl"
    good = {"image": "a.png", "caption": "b"}
    for wrong, message in [
        ({"image": "a.png"}, '"caption" is missing'),
        ({"image": 3, "caption": "b"}, '"image" must be text, not 3'),
        ({"image": "a.png", "caption": ["b", " "]}, "which is not a caption"),
    ]:
        pairs = write(tmp_path / "pairs.jsonl", [good, wrong])
        with pytest.raises(ConfigError, match=rf"pairs\.jsonl:2: .*{message}"):
            score_pairs_file(pairs, out, tiny_model, progress=False)
    pairs.write_text("\n")
    with pytest.raises(ConfigError, match="holds no pairs"):
        score_pairs_file(pairs, out, tiny_model, progress=False)
    with pytest.raises(ConfigError, match=r"cannot read the annotations .*gone"):
        score_pairs_file(tmp_path / "gone.jsonl", out, tiny_model, progress=False)
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"threshold": 0.0, "keep_top": 0.5}, "not both"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"keep_top": 0.0}, r"keep_top is 0\.0"),
        ({"keep_top": 30}, "keep_top is 30"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": None}, "workers is None"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    tmp_path: Path, data: Path, tiny_model: EDJEModel, more: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        score(data, tmp_path / "scores.jsonl", tiny_model, **more)
    with pytest.raises(ConfigError, match="would overwrite the input"):
        score(data, data / "pairs.jsonl", tiny_model)


def test_memory_does_not_grow_with_the_input(
    tmp_path: Path, data: Path, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times the pairs, whose captions alone are 3 MB, take no more at the peak."""
    monkeypatch.setattr(pair_scoring, "_PAIRS", 8)
    monkeypatch.setattr(pair_keeping, "_LINES", 8)
    monkeypatch.setattr(
        pair_scoring._Scorer, "score",
        lambda self, chunk, pool: [
            pair_scoring.ScoredPair(p.image, p.caption, 0.5, 0.5, None, None) for p in chunk
        ],
    )  # fmt: skip
    peaks = []
    for count in (150, 1500):
        pairs = tmp_path / f"{count}.jsonl"
        write(pairs, [{"image": f"{n}.png", "caption": f"{n} " * 500} for n in range(count)])
        tracemalloc.start()
        score_pairs_file(
            pairs, tmp_path / f"{count}-out.jsonl", tiny_model, keep_top=0.5, progress=False
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert pairs.stat().st_size > 3_000_000
    assert peaks[1] - peaks[0] < 500_000


def test_true_captions_are_kept_far_more_often_than_swapped_ones(tmp_path: Path) -> None:
    model = EDJEModel.from_pretrained("demo", device="cpu")
    scenes = list(draw_scenes("test", 4, 25))
    captions = captions_for(scenes, 4)
    swapped = [*captions[1:], captions[0]]
    true = truth_matrix([*captions, *swapped], scenes)
    for number, scene in enumerate(scenes):
        draw(scene).save(tmp_path / f"{number}.png")
    pairs = write(
        tmp_path / "pairs.jsonl",
        [
            {"image": f"{number}.png", "caption": [captions[number].text, swapped[number].text]}
            for number in range(len(scenes))
        ],
    )
    report = score_pairs_file(
        pairs, tmp_path / "scores.jsonl", model, threshold=0.0, progress=False
    )
    assert report.scored == 50
    keep = [line["keep"] for line in lines_of(tmp_path / "scores.jsonl")]
    assert sum(keep[::2]) >= 22  # of 25 true ones
    false = [k for n, k in enumerate(keep[1::2]) if not true[len(scenes) + n, n]]
    assert len(false) >= 22
    assert sum(false) <= 2
