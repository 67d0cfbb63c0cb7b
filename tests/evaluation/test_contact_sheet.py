from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from edje_qdrant.evaluation.contact_sheet import SheetRow, _font_for, draw_contact_sheet


def squares(folder: Path, count: int) -> list[Path]:
    paths = []
    for number in range(count):
        paths.append(folder / f"{number}.png")
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(paths[-1])
    return paths


def test_the_right_picture_is_framed_on_both_sides(tmp_path: Path) -> None:
    paths = squares(tmp_path, 6)
    sheet = tmp_path / "sheet.png"
    row = SheetRow("a query", paths[1:2], paths[:5], [paths[1], *paths[2:6]], 2, 1)

    def frames() -> list[int]:
        draw_contact_sheet([row], "title", sheet)
        pixels = np.asarray(Image.open(sheet)).astype(int)
        band = (np.abs(pixels - (24, 158, 84)).sum(axis=2) == 0)[150:250]  # beside the thumbnails
        return np.flatnonzero(band.all(axis=0)).tolist()

    left, right = (
        [c for c in frames() if c < 820],
        [c for c in frames() if c >= 820],
    )
    assert len(left) == len(right) == 10  # two sides, five pixels each


def test_every_right_picture_is_framed(tmp_path: Path) -> None:
    paths = squares(tmp_path, 5)
    draw_contact_sheet([SheetRow("q", paths[:3], paths, [], 1, 1)], "title", tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    frames = (np.abs(pixels - (24, 158, 84)).sum(axis=2) == 0)[150:250].all(axis=0)
    assert frames.sum() == 3 * 10


@pytest.mark.skipif(shutil.which("fc-match") is None, reason="needs fontconfig")
def test_letters_that_pillows_own_font_lacks_are_drawn_in_another(tmp_path: Path) -> None:
    shown = []
    for text in ("щука", "чайка"):
        draw_contact_sheet([SheetRow(text, [], [], [], 1, 1)], "title", tmp_path / "sheet.png")
        shown.append(np.asarray(Image.open(tmp_path / "sheet.png"))[92:130, :400])
    own = ImageFont.load_default(18)
    if _font_for("щ", 18).getname() == own.getname():
        pytest.skip("no font of the system has Cyrillic letters")
    assert _font_for("pike", 18).getname() == own.getname()
    assert (shown[0] != shown[1]).any()


def test_without_fontconfig_the_sheet_is_drawn_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    draw_contact_sheet([SheetRow("щука", [], [], [], 1, 1)], "title", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()


def test_pictures_are_shown_upright_and_those_that_are_gone_are_grey(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (60, 60), (255, 0, 0))
    sideways.paste((0, 0, 255), (0, 0, 60, 30))  # blue above red
    exif = Image.Exif()
    exif[274] = 3  # upside down
    sideways.save(tmp_path / "turned.png", exif=exif)
    row = SheetRow(
        "q", [tmp_path / "x"], [tmp_path / "turned.png", tmp_path / "gone.png"], [], 1, 1
    )
    draw_contact_sheet([row], "title", tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    top, bottom = pixels[150, 60], pixels[260, 60]
    assert top[0] > 200 > 50 > top[2]
    assert bottom[2] > 200 > 50 > bottom[0]
    assert len({*pixels[200, 200].tolist()}) <= 2  # grey


def test_a_long_query_ends_before_the_ranks(tmp_path: Path) -> None:
    paths = squares(tmp_path, 1)
    rows = [SheetRow(f"a {'very ' * 90}long query", paths, paths, paths, 1, 1)]
    draw_contact_sheet(rows, "title", tmp_path / "long.png")
    rows = [SheetRow("short", paths, paths, paths, 1, 1)]
    draw_contact_sheet(rows, "title", tmp_path / "short.png")
    long, short = (
        np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("long", "short")
    )
    assert long.shape == short.shape
    ranks = slice(long.shape[1] - 24 - 150, None)
    assert (long[92:130, ranks] == short[92:130, ranks]).all()
    assert (long[92:130] != short[92:130]).any()
