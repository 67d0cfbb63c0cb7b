"""HTML of a search result for notebooks: a table, and small pictures in the page itself."""

from __future__ import annotations

import base64
import html
import io
import os
import stat
from collections.abc import Iterable, Sequence

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images import open_upright
from edje_qdrant.images.thumbnail import Thumbnail
from edje_qdrant.sources.read import read_image, stored_id

__all__ = ["MOST_PICTURES", "html_table", "small_picture"]

#: Pictures of a table: a notebook stores what it shows, and its reader waits for all of them.
MOST_PICTURES = 20

_LARGEST_FILE = 16 << 20
_MOST_PIXELS = 50_000_000
_SMALL = Thumbnail(128, "JPEG")


def html_table(title: str, note: str, head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a title; all texts are escaped but the second cell of each row.

    Args:
        title: Set in bold.
        note: Follows the title.
        head: Names of the columns.
        rows: Cells; the second one is HTML that `small_picture` made.
    """
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines: list[str] = []
    for first, picture, *others in rows:
        cells = [html.escape(first), picture, *map(html.escape, others)]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        f"<div><b>{html.escape(title)}</b>: {html.escape(note)}</div>"
        f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def small_picture(path: object, image_id: str) -> str:
    """Return an `img` of an image's file, 128 pixels on the longest side.

    Empty if the path is not that of a file, the file has more than 16 MB or 50 megapixels, cannot
    be read, or contains another image than the one with this id now.
    """
    if not isinstance(path, str):
        return ""
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST_FILE:
            return ""
        content = read_image(path)
        if stored_id(path, content) != image_id:
            return ""
        image = open_upright(io.BytesIO(content), path, max_pixels=_MOST_PIXELS)
    except (ImageReadError, OSError, ValueError):  # a path with a null byte is a ValueError
        return ""
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(_SMALL(image)).decode()}">'
