"""PDF documents for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """A page: its content, size in points, and further entries of its dictionary."""

    content: bytes
    size: tuple[float, float] = (200, 100)
    more: bytes = b""
    resources: bytes = b"<<>>"


def filled(red: float, green: float, blue: float) -> bytes:
    """Return content that fills the left half of a page of 200 x 100 points with a colour."""
    return f"{red} {green} {blue} rg 0 0 100 100 re f".encode()


RED, GREEN, BLUE = filled(1, 0, 0), filled(0, 1, 0), filled(0, 0, 1)


def write_document(
    path: Path,
    pages: Sequence[Page | bytes] = (RED, GREEN, BLUE),
    *,
    encrypted: bool = False,
    objects: Sequence[bytes] = (),
    catalog: bytes = b"",
) -> Path:
    """Write a PDF document.

    Args:
        path: Where.
        pages: Its pages.
        encrypted: Let it ask for a password.
        objects: Further objects, the first of them number 3.
        catalog: Further entries of the catalog.
    """
    parts = [b"<</Type/Catalog/Pages 2 0 R" + catalog + b">>", b"", *objects]
    kids = []
    for each in pages:
        page = each if isinstance(each, Page) else Page(each)
        number = len(parts) + 1
        kids.append(f"{number} 0 R")
        box = f"[0 0 {page.size[0]} {page.size[1]}]".encode()
        parts.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox" + box + f"/Contents {number + 1} 0 R".encode()
            + b"/Resources" + page.resources + page.more + b">>"
        )  # fmt: skip
        length = str(len(page.content)).encode()
        parts.append(b"<</Length " + length + b">>stream\n" + page.content + b"\nendstream")
    count = str(len(kids)).encode()
    parts[1] = b"<</Type/Pages/Count " + count + b"/Kids[" + " ".join(kids).encode() + b"]>>"
    out = b"%PDF-1.7\n"
    places = []
    for number, part in enumerate(parts, start=1):
        places.append(len(out))
        out += f"{number} 0 obj".encode() + part + b"endobj\n"
    table = len(out)
    out += f"xref\n0 {len(parts) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{place:010} 00000 n \n".encode() for place in places)
    out += f"trailer<</Size {len(parts) + 1}/Root 1 0 R".encode()
    if encrypted:  # with the hashes of no password
        out += b"/ID[<00><00>]/Encrypt<</Filter/Standard/V 1/R 2/P -4/O<" + b"11" * 32
        out += b">/U<" + b"22" * 32 + b">>>"
    out += b">>\nstartxref\n" + str(table).encode() + b"\n%%EOF\n"
    path.write_bytes(out)
    return path
