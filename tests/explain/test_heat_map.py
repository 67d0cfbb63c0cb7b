from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rounding import float32_slack

from edje_qdrant import Explanation, draw_explanation, draw_heat
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.explain.heat_map import _ramp


def explanation(words: tuple[str, ...] = ("a", "red", "star")) -> Explanation:
    heat = np.zeros((4, 6), np.float32)
    heat[1, 4] = 1
    word_heat = np.zeros((len(words), 4, 6), np.float32)
    word_heat[:, 3, 0] = 1
    return Explanation(
        text=" ".join(words),
        score=1.25,
        heat=heat,
        words=words,
        word_weights=np.linspace(-3, 3, len(words), dtype=np.float32),
        word_heat=word_heat,
        tokens=np.ones(2, np.float32),
    )


def peak(heat: np.ndarray) -> tuple[int, int]:
    """Return x and y of the hottest pixel."""
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    return int(x), int(y)


def test_resizing_keeps_the_hot_place_and_the_sum() -> None:
    large = explanation().resize(301, 100)
    assert large.shape == (100, 301)
    assert large.dtype == np.float32
    assert large.min() >= 0
    assert large.sum() == pytest.approx(1, abs=float32_slack(1, roundings=large.size))
    x, y = peak(large)
    assert abs(x - 4.5 / 6 * 301) < 2
    assert abs(y - 1.5 / 4 * 100) < 2
    # The spline reaches one and a half patches far, and no farther.
    assert not large[:, : int(3.0 / 6 * 301)].any()
    assert not large[76:].any()


def test_even_heat_stays_even() -> None:
    even = replace(explanation(), heat=np.full((4, 6), 1 / 24, np.float32))
    np.testing.assert_allclose(even.resize(50, 30), 1 / 1500, rtol=1e-5)


def test_a_word_s_heat_is_resized_alone() -> None:
    x, y = peak(explanation().resize(60, 40, word=1))
    assert x < 10
    assert y >= 30


def test_a_crop_s_heat_lies_in_the_middle() -> None:
    # An image twice as wide as high, of which the middle square was seen.
    cropped = replace(explanation(), area=(0.25, 0.0, 0.75, 1.0))
    large = cropped.resize(200, 100)
    assert not large[:, :50].any()
    assert not large[:, 150:].any()
    assert large.sum() == pytest.approx(1, abs=float32_slack(1, roundings=large.size))
    x, y = peak(large)
    assert abs(x - (50 + 4.5 / 6 * 100)) < 2
    assert abs(y - 37.5) < 2


def test_a_filled_picture_s_heat_is_cut_to_it() -> None:
    filled = replace(explanation(), area=(0.0, -0.5, 1.0, 1.5))
    _, y = peak(filled.resize(100, 100))
    assert abs(y - (-50 + 1.5 / 4 * 200)) < 2


def test_no_heat_stays_none() -> None:
    none = replace(explanation(), heat=np.zeros((4, 6), np.float32))
    assert not none.resize(20, 10).any()
    picture = Image.new("RGB", (30, 20), (200, 100, 50))
    assert len(np.unique(np.asarray(draw_heat(picture, none)).reshape(-1, 3), axis=0)) == 1


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one pixel, not 0 x 5"):
        explanation().resize(0, 5)
    for word in (-1, 3):
        with pytest.raises(ConfigError, match=f"no word {word}: the text has 3"):
            explanation().resize(5, 5, word=word)
    with pytest.raises(ConfigError, match="no word 3"):
        draw_heat(Image.new("RGB", (9, 9)), explanation(), word=3)


def test_the_short_form_is_one_line() -> None:
    assert repr(explanation()) == (
        "Explanation('a red star', score=1.250, words: star +3.0, red +0.0, a -3.0; heat 4 x 6)"
    )
    assert len(repr(explanation(("long",) * 90))) < 160


def test_it_is_json() -> None:
    data = json.loads(json.dumps(explanation().as_dict()))
    assert data["words"] == ["a", "red", "star"]
    assert np.array(data["heat"]).shape == (4, 6)
    assert np.array(data["word_heat"]).shape == (3, 4, 6)
    assert data["area"] == [0, 0, 1, 1]


def test_the_hot_place_is_bright_and_the_picture_shines_through() -> None:
    ramp = np.linspace(0, 255, 300, dtype=np.uint8)
    picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (200, 300, 3)).copy())
    drawn = draw_heat(picture, explanation())
    assert drawn.size == picture.size
    assert drawn.mode == "RGB"
    pixels = np.asarray(drawn, dtype=float)
    assert pixels[75, 225].sum() > 1.4 * pixels[190, 225].sum()
    assert (np.diff(pixels[190, ::30].sum(-1)) > 0).all()  # the cold part keeps its contrasts


def test_hotter_is_lighter_all_along_the_ramp() -> None:
    linear = (_ramp() / 255) ** 2.2
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert luminance[-1] > 10 * luminance[0]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_every_mode_is_drawn(mode: str) -> None:
    sheet = draw_explanation(Image.new("RGB", (90, 60), (9, 200, 9)).convert(mode), explanation())
    assert sheet.mode == "RGB"


@pytest.mark.parametrize("size", [(256, 256), (400, 40), (30, 900), (1, 1)])
def test_a_sheet_has_a_panel_for_each_word_that_stands_for_something(size) -> None:
    picture = Image.new("RGB", size, (0, 0, 255))
    heights = {}
    for count in (1, 6, 7, 20):
        words = ("the", *(f"word{n}" for n in range(count)))
        sheet = draw_explanation(picture, explanation(words))
        assert sheet.width == 1068
        heights[count] = sheet.height
    assert heights[1] == heights[6] < heights[7] == heights[20]  # six a row, twelve at most
    # Where nothing but empty words was asked for, they are shown.
    assert draw_explanation(picture, explanation(("the", "of"))).height == heights[1]


def test_long_texts_are_cut_to_their_line() -> None:
    picture = Image.new("RGB", (64, 64), (0, 0, 255))
    long = draw_explanation(picture, explanation(("extraordinarily" * 9, "red " * 90)))
    margin = np.asarray(long)[:, -20:]
    assert (margin == margin[0, 0]).all()


def test_a_file_may_be_drawn_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), (0, 0, 255)).save(path)
    assert draw_heat(path, explanation()).size == (40, 30)
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ImageReadError, match=r"picture\.png"):
        draw_explanation(str(path), explanation())
    with pytest.raises(ImageReadError, match="nowhere"):
        draw_heat(tmp_path / "nowhere.png", explanation())
