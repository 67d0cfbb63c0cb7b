"""Pages of PDF documents as images. Decoder processes call this; see `decoder_worker`."""

from __future__ import annotations

from typing import Any, BinaryIO

from PIL import Image

from edje_qdrant.errors import ImageReadError, MissingExtraError
from edje_qdrant.images.parts import Survey

__all__ = ["DOCUMENT", "LONG_SIDE", "Document"]

#: The name of these files' format.
DOCUMENT = "PDF"
#: Pixels of the longer side of a page's image.
LONG_SIDE = 1600

# The bitmap, its copies, and the images and fonts of a page.
_PAGE_MEMORY = 512 << 20
_WRONG_PASSWORD, _UNKNOWN_SECURITY = 4, 5  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY
_WHITE = (255, 255, 255, 255)


class Document:
    """A PDF document that is open; a context manager that closes it.

    Args:
        file: Open for reading bytes, and seekable.
        name: Names the document in errors.

    Raises:
        ImageReadError: The file is no PDF, damaged, or encrypted, or the extra `pdf` is missing.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        try:
            import pypdfium2
            import pypdfium2.raw
        except ImportError as error:
            reason = f"a PDF document, but {MissingExtraError('pypdfium2', 'pdf')}"
            raise ImageReadError(name, reason) from error
        self._error = pypdfium2.PdfiumError
        # PDFium keeps an error until the next one; a document without pages leaves it.
        pypdfium2.raw.FPDF_LoadMemDocument64(b"", 0, None)
        try:
            self._pdf: Any = pypdfium2.PdfDocument(file)
        except pypdfium2.PdfiumError as error:
            code = getattr(error, "err_code", None)
            if code in (_WRONG_PASSWORD, _UNKNOWN_SECURITY):
                reason = "an encrypted PDF document, which needs a password; save it without one"
            else:
                reason = "not a PDF document, or a damaged one, or one without pages"
            raise ImageReadError(name, reason) from error
        try:
            self._pdf.init_forms()  # so that what was filled in is drawn
        except pypdfium2.PdfiumError:  # forms of a kind that this PDFium does not draw
            return

    def __enter__(self) -> Document:
        return self

    def __exit__(self, *_: object) -> None:
        self._pdf.close()

    def memory(self) -> int:
        """Return the bytes for which a page asks; what it holds is not known before."""
        return _PAGE_MEMORY

    def survey(self) -> Survey:
        """Count the pages."""
        return Survey(pages=len(self._pdf))

    def page(self, number: int) -> Image.Image:
        """Return a page as it is printed on white paper, with forms and annotations.

        Args:
            number: Of the page, from 1.

        Returns:
            An RGB image whose longer side has `LONG_SIDE` pixels.

        Raises:
            ImageReadError: There is no such page, or it is damaged.
        """
        if not 1 <= number <= len(self._pdf):
            reason = f"the document has {len(self._pdf)} pages"
            raise ImageReadError(self._name, reason)
        try:
            page = self._pdf[number - 1]
        except self._error as error:
            raise ImageReadError(self._name, "a damaged page") from error
        try:
            width, height = page.get_size()
            if not (width > 0 and height > 0):
                raise ImageReadError(self._name, "a page without an area")
            scale = LONG_SIDE / max(width, height)
            image: Image.Image = page.render(scale=scale, fill_color=_WHITE).to_pil()
            return image.convert("RGB")
        finally:
            page.close()
