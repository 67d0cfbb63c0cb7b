"""Contact sheet of queries, each with its top five images before and after reranking."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont, ImageOps

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import open_upright
from edje_qdrant.text import shorten_text

__all__ = ["SheetRow", "draw_contact_sheet"]

_THUMB, _GAP, _MARGIN, _MIDDLE = 148, 8, 24, 56
_CAPTION, _HEAD, _SHOWN = 38, 92, 5
_INK, _SOFT, _PAPER, _RIGHT = (28, 30, 36), (112, 116, 126), (250, 250, 248), (24, 158, 84)
_GONE = (224, 224, 222)

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class SheetRow:
    """Hold one query of the sheet.

    Attributes:
        query: The text.
        right: The right images, one or more.
        first_stage: Images as ranked by the vector search, best first.
        reranked: Images as ranked by the joint encoder, best first.
        first_rank: Rank of the first right image in the first stage, from 1; None if not retrieved.
        final_rank: Its rank after reranking.
    """

    query: str
    right: Sequence[Path]
    first_stage: Sequence[Path]
    reranked: Sequence[Path]
    first_rank: int | None
    final_rank: int | None


def draw_contact_sheet(rows: Sequence[SheetRow], title: str, path: Path) -> None:
    """Write the sheet as a PNG, with frames around the right images of each query.

    Images that cannot be read any more are grey; long queries are truncated. Letters that Pillow's
    own font does not have are drawn in a font of the system, if fontconfig finds one.
    """
    half = _SHOWN * (_THUMB + _GAP) - _GAP
    width = 2 * _MARGIN + 2 * half + _MIDDLE
    height = _HEAD + len(rows) * (_CAPTION + _THUMB + 2 * _GAP) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(24), ImageFont.load_default(16)
    pen.text((_MARGIN, 18), title, font=large, fill=_INK)
    second = _MARGIN + half + _MIDDLE
    pen.text((_MARGIN, 60), "first stage: nearest embeddings", font=small, fill=_SOFT)
    pen.text((second, 60), "reranked by the joint encoder", font=small, fill=_SOFT)
    top = _HEAD
    for row in rows:
        moved = f"right image: {_place(row.first_rank)} -> {_place(row.final_rank)}"
        room = width - 2 * _MARGIN - pen.textlength(moved, font=small) - _GAP
        plain = _font_for(row.query, 18)
        query = _shortened(f"“{row.query}”", pen, plain, room)
        pen.text((_MARGIN, top + 8), query, font=plain, fill=_INK)
        pen.text((width - _MARGIN, top + 10), moved, font=small, fill=_RIGHT, anchor="ra")
        top += _CAPTION
        for left, shown in ((_MARGIN, row.first_stage), (second, row.reranked)):
            for number, image in enumerate(shown[:_SHOWN]):
                x = left + number * (_THUMB + _GAP)
                sheet.paste(_thumb(image), (x, top))
                if image in row.right:
                    frame = (x - 4, top - 4, x + _THUMB + 3, top + _THUMB + 3)
                    pen.rectangle(frame, outline=_RIGHT, width=5)
        _arrow(pen, _MARGIN + half + _MIDDLE // 2, top + _THUMB // 2)
        top += _THUMB + 2 * _GAP
    sheet.save(path)


def _thumb(image: Path) -> Image.Image:
    """Return the image upright, cropped to a square; grey if it cannot be read any more."""
    try:
        upright = open_upright(image)
    except ImageReadError:
        return Image.new("RGB", (_THUMB, _THUMB), _GONE)
    return ImageOps.fit(upright, (_THUMB, _THUMB))


def _font_for(text: str, size: int) -> _Font:
    """Return Pillow's own font, or one of the system if that lacks a letter of the text."""
    own = ImageFont.load_default(size)
    letters = {letter for letter in text if not letter.isspace()}
    missing = _glyph(own, "\uffff")
    if all(_glyph(own, letter) != missing for letter in letters):
        return own
    program = shutil.which("fc-match")
    if program is None:
        return own
    codes = " ".join(f"{ord(letter):x}" for letter in sorted(letters))
    command = [program, "--format=%{index} %{file}", f":charset={codes}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    index, _, file = found.partition(" ")
    try:
        # The upper half of the index names an instance of a variable font.
        return ImageFont.truetype(file, size, index=int(index) & 0xFFFF)
    except (OSError, ValueError):
        return own


def _glyph(font: _Font, letter: str) -> bytes:
    return bytes(font.getmask(letter))


def _shortened(text: str, pen: ImageDraw.ImageDraw, font: _Font, room: float) -> str:
    return shorten_text(text, lambda shown: pen.textlength(shown, font) <= room, "…”")


def _place(rank: int | None) -> str:
    return "not retrieved" if rank is None else f"#{rank}"


def _arrow(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.line((x - 14, y, x + 8, y), fill=_SOFT, width=3)
    pen.polygon([(x + 6, y - 8), (x + 16, y), (x + 6, y + 8)], fill=_SOFT)
