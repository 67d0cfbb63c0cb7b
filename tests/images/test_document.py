"""Pages of PDF documents: as they are printed, on white paper, upright."""

from __future__ import annotations

from pathlib import Path

import pytest
from document_files import GREEN, RED, Page, write_document
from PIL import Image

from edje_qdrant.errors import ImageReadError
from edje_qdrant.images.document import LONG_SIDE, Document
from edje_qdrant.images.parts import Survey

pytest.importorskip("pypdfium2")

WHITE = (255, 255, 255)


def page(path: Path, number: int = 1) -> Image.Image:
    with path.open("rb") as file, Document(file, str(path)) as document:
        return document.page(number)


def refusal(path: Path, number: int = 1) -> str:
    with pytest.raises(ImageReadError) as caught:
        page(path, number)
    return caught.value.reason


def test_pages_are_counted_and_drawn(tmp_path: Path) -> None:
    path = write_document(tmp_path / "a.pdf")
    with path.open("rb") as file, Document(file, "a") as document:
        assert document.survey() == Survey(pages=3)
    for number, colour in ((1, (255, 0, 0)), (2, (0, 255, 0)), (3, (0, 0, 255))):
        image = page(path, number)
        assert (image.mode, image.size) == ("RGB", (LONG_SIDE, LONG_SIDE // 2))
        assert image.getpixel((400, 400)) == colour
        assert image.getpixel((1200, 400)) == WHITE


@pytest.mark.parametrize(
    ("size", "pixels"),
    [((200, 100), (1600, 800)), ((0.5, 1), (800, 1600)), ((14400, 14400), (1600, 1600)),
     ((14400, 3), (1600, 1))],
)  # fmt: skip
def test_pages_of_any_size_have_images_of_one(
    tmp_path: Path, size: tuple[float, float], pixels: tuple[int, int]
) -> None:
    assert page(write_document(tmp_path / "a.pdf", [Page(b"", size)])).size == pixels


def test_pages_are_upright(tmp_path: Path) -> None:
    image = page(write_document(tmp_path / "a.pdf", [Page(RED, more=b"/Rotate 90")]))
    assert image.size == (800, 1600)
    assert image.getpixel((400, 400)) == (255, 0, 0)  # the left half is above now
    assert image.getpixel((400, 1200)) == WHITE


def test_transparent_colours_show_the_paper(tmp_path: Path) -> None:
    half = Page(b"/A gs " + RED, resources=b"<</ExtGState<</A<</ca 0.5>>>>>>")
    image = page(write_document(tmp_path / "a.pdf", [half]))
    assert image.getpixel((400, 400)) == pytest.approx((255, 128, 128), abs=2)


def test_annotations_and_filled_in_forms_are_drawn(tmp_path: Path) -> None:
    drawing = b"<</Type/XObject/Subtype/Form/BBox[0 0 50 50]/Length 23>>stream\n" + (
        b"0 0 1 rg 0 0 50 50 re f\nendstream"
    )
    square = b"<</Type/Annot/Subtype/Stamp/Rect[140 10 190 60]/F 4/AP<</N 3 0 R>>>>"
    field = b"<</Type/Annot/Subtype/Widget/FT/Tx/T(a)/V(b)/Rect[10 10 60 60]/F 4/AP<</N 3 0 R>>>>"
    path = write_document(
        tmp_path / "a.pdf", [Page(b"", more=b"/Annots[4 0 R 5 0 R]")],
        objects=[drawing, square, field], catalog=b"/AcroForm<</Fields[5 0 R]>>",
    )  # fmt: skip
    image = page(path)
    assert image.getpixel((1320, 520)) == (0, 0, 255)
    red, green, blue = image.getpixel((280, 520))  # PDFium may tint the field
    assert blue > 150
    assert red < 200
    assert green < 200
    assert image.getpixel((800, 100)) == WHITE


def test_why_documents_are_refused(tmp_path: Path) -> None:
    assert refusal(write_document(tmp_path / "a.pdf", encrypted=True)) == (
        "an encrypted PDF document, which needs a password; save it without one"
    )
    damaged = "not a PDF document, or a damaged one, or one without pages"
    assert refusal(write_document(tmp_path / "b.pdf", [])) == damaged
    assert refusal(write_document(tmp_path / "c.pdf"), 4) == "the document has 3 pages"
    (tmp_path / "d.pdf").write_bytes(b"no document")
    assert refusal(tmp_path / "d.pdf") == damaged


def test_a_damaged_page_costs_itself(tmp_path: Path) -> None:
    path = write_document(tmp_path / "a.pdf", [RED, GREEN, RED])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"5 0 obj<</Type/Page", b"5 0 obj<(Nope)/Page"))
    assert refusal(path, 2) == "a damaged page"
    for number in (1, 3):
        assert page(path, number).getpixel((400, 400)) == (255, 0, 0)
