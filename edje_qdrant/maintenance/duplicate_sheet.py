"""Contact sheet of near-duplicates: one row for each group, the image to keep first."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from edje_qdrant.errors import ImageReadError
from edje_qdrant.files import os_errors_as_store_errors
from edje_qdrant.images import DecoderPool, to_rgb
from edje_qdrant.images.thumbnail import Thumbnail
from edje_qdrant.maintenance.reports import DuplicateImage, DuplicatesReport
from edje_qdrant.sources.read import read_image, stored_id
from edje_qdrant.text import shorten_text

__all__ = ["draw_duplicates"]

_THUMB, _GAP, _MARGIN, _HEAD, _LINE = 160, 14, 24, 84, 18
_SHOWN, _MOST_GROUPS = 6, 100
_INK, _SOFT, _PAPER, _KEPT = (28, 30, 36), (112, 116, 126), (250, 250, 248), (24, 158, 84)
_GONE = (224, 224, 222)


def draw_duplicates(report: DuplicatesReport, path: Path) -> None:
    """Write the 100 largest groups as a PNG, six images of each, the one to keep in a frame.

    Images that cannot be read any more are grey.

    Raises:
        StoreError: The file cannot be written.
    """
    groups = report.groups[:_MOST_GROUPS]
    shown = [image for group in groups for image in group.images[:_SHOWN]]
    thumbs = dict(zip([image.image_id for image in shown], _thumbs(shown), strict=True))
    heights = [
        max(thumbs[image.image_id].height for image in group.images[:_SHOWN]) for group in groups
    ]
    width = 2 * _MARGIN + _SHOWN * (_THUMB + _GAP) - _GAP + 60
    height = _HEAD + sum(heights) + len(groups) * (2 * _LINE + 28) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(24), ImageFont.load_default(14)
    which = f"the {len(groups)} largest of " if len(groups) < len(report.groups) else ""
    title = f"{which}{len(report.groups):,} groups of near-duplicates"
    pen.text((_MARGIN, 16), title, font=large, fill=_INK)
    how = (
        f"of {report.images:,} images. The first of each group would be kept; below the others: "
        "likeness of embeddings / of tokens, differing bits of the hash."
    )
    pen.text((_MARGIN, 50), how, font=small, fill=_SOFT)
    top = _HEAD
    for group, high in zip(groups, heights, strict=True):
        for place, image in enumerate(group.images[:_SHOWN]):
            left = _MARGIN + place * (_THUMB + _GAP)
            thumb = thumbs[image.image_id]
            at = (left + (_THUMB - thumb.width) // 2, top + high - thumb.height)
            sheet.paste(thumb, at)
            if place == 0:
                frame = (at[0] - 4, at[1] - 4, at[0] + thumb.width + 3, at[1] + thumb.height + 3)
                pen.rectangle(frame, outline=_KEPT, width=4)
            for line, text in enumerate(_captions(image, keep=place == 0)):
                fits = shorten_text(text, lambda part: pen.textlength(part, small) <= _THUMB, "…")
                colour = _KEPT if place == 0 and line == 1 else _SOFT
                pen.text((left, top + high + 6 + line * _LINE), fits, font=small, fill=colour)
        if (more := len(group.images) - _SHOWN) > 0:
            left = _MARGIN + _SHOWN * (_THUMB + _GAP)
            pen.text((left, top + high // 2), f"+{more:,}", font=small, fill=_SOFT)
        top += high + 2 * _LINE + 28
    with os_errors_as_store_errors("write", path):
        sheet.save(path, "PNG")


def _captions(image: DuplicateImage, *, keep: bool) -> tuple[str, str]:
    size = f"{image.width} x {image.height}" if image.width and image.height else ""
    if image.file_size:
        size += f", {image.file_size / 1000:,.0f} kB"
    if keep:
        return size, "keep"
    bits = "" if image.hash_distance is None else f", {image.hash_distance} bits"
    return size, f"{image.likeness:.3f} / {image.token_likeness:.3f}{bits}"


def _thumbs(images: Sequence[DuplicateImage]) -> list[Image.Image]:
    """Return a small picture of each image, grey if its file cannot be read or has changed."""
    finish = Thumbnail(_THUMB, "JPEG")
    with DecoderPool() as decoders, ThreadPoolExecutor(decoders.workers) as threads:

        def thumb(image: DuplicateImage) -> Image.Image:
            try:
                content = read_image(image.path or "")
                if stored_id(image.path or "", content) == image.image_id:
                    small = decoders.decode(content, image.path, finish).data
                    return to_rgb(Image.open(io.BytesIO(small)))
            except ImageReadError:
                pass
            return Image.new("RGB", (_THUMB, _THUMB), _GONE)

        return [*threads.map(thumb, images)]
