"""Contact sheet of queries, each with its top five images before and after reranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import open_upright
from edje_qdrant.text import shorten_text

__all__ = ["SheetRow", "draw_contact_sheet"]

_THUMB, _GAP, _MARGIN, _MIDDLE = 148, 8, 24, 56
_CAPTION, _HEAD, _SHOWN = 38, 92, 5
_INK, _SOFT, _PAPER, _RIGHT = (28, 30, 36), (112, 116, 126), (250, 250, 248), (24, 158, 84)
_GONE = (224, 224, 222)


@dataclass(frozen=True, slots=True)
class SheetRow:
    """Hold one query of the sheet.

    Attributes:
        query: The text.
        right: The right image.
        first_stage: Images as ranked by the vector search, best first.
        reranked: Images as ranked by the joint encoder, best first.
        first_rank: Rank of the right image in the first stage, from 1; None if not retrieved.
        final_rank: Its rank after reranking.
    """

    query: str
    right: Path
    first_stage: Sequence[Path]
    reranked: Sequence[Path]
    first_rank: int | None
    final_rank: int | None


def draw_contact_sheet(rows: Sequence[SheetRow], title: str, path: Path) -> None:
    """Write the sheet as a PNG, with a frame around the right image of each query.

    Images that cannot be read any more are grey; long queries are truncated.
    """
    half = _SHOWN * (_THUMB + _GAP) - _GAP
    width = 2 * _MARGIN + 2 * half + _MIDDLE
    height = _HEAD + len(rows) * (_CAPTION + _THUMB + 2 * _GAP) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    large, plain, small = (ImageFont.load_default(size) for size in (24, 18, 16))
    pen.text((_MARGIN, 18), title, font=large, fill=_INK)
    second = _MARGIN + half + _MIDDLE
    pen.text((_MARGIN, 60), "first stage: nearest embeddings", font=small, fill=_SOFT)
    pen.text((second, 60), "reranked by the joint encoder", font=small, fill=_SOFT)
    top = _HEAD
    for row in rows:
        moved = f"right image: {_place(row.first_rank)} -> {_place(row.final_rank)}"
        room = width - 2 * _MARGIN - pen.textlength(moved, font=small) - _GAP
        query = _shortened(f"“{row.query}”", pen, plain, room)
        pen.text((_MARGIN, top + 8), query, font=plain, fill=_INK)
        pen.text((width - _MARGIN, top + 10), moved, font=small, fill=_RIGHT, anchor="ra")
        top += _CAPTION
        for left, shown in ((_MARGIN, row.first_stage), (second, row.reranked)):
            for number, image in enumerate(shown[:_SHOWN]):
                x = left + number * (_THUMB + _GAP)
                sheet.paste(_thumb(image), (x, top))
                if image == row.right:
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


def _shortened(text: str, pen: ImageDraw.ImageDraw, font: Any, room: float) -> str:
    return shorten_text(text, lambda shown: pen.textlength(shown, font) <= room, "…”")


def _place(rank: int | None) -> str:
    return "not retrieved" if rank is None else f"#{rank}"


def _arrow(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.line((x - 14, y, x + 8, y), fill=_SOFT, width=3)
    pen.polygon([(x + 6, y - 8), (x + 16, y), (x + 6, y + 8)], fill=_SOFT)
