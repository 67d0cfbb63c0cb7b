"""Text in images: read once, stored, and found by its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.ingest.ocr import RapidOcrReader, read_texts
from edje_qdrant.maintenance import verify
from edje_qdrant.model import EDJEModel

WORDS = ["harbour", "", "station", "museum"]


def sign(text: str, number: int = 0) -> Image.Image:
    image = Image.new("RGB", (240, 120), (200, 220, 240 - number))
    if text:
        font = ImageFont.load_default(34)
        ImageDraw.Draw(image).text((20, 40), text, fill="black", font=font)
    return image


class FakeReader:
    """Reads the text by the blue of the background."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def read(self, image: Image.Image) -> str:
        assert image.mode == "RGB"
        self.seen.append(image.size)
        number = 240 - image.getpixel((1, 1))[2]  # type: ignore[index]  # of RGB
        return WORDS[number]


@pytest.fixture
def collection(tiny_model: EDJEModel, tmp_path: Path) -> Any:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, word in enumerate(WORDS):
        sign(word, number).save(folder / f"{number}.png")
    with ImageCollection.create(
        tmp_path / "index", "images", tiny_model.contract(), text_fields=["ocr"]
    ) as made:
        ingest_images(folder, made, tiny_model, progress=False)
        yield made


def found(collection: ImageCollection, text: str) -> set[str]:
    fields = collection.index.require_words()
    stored = collection.index.words([*collection.ids()])
    ids = [i for i, w in stored.items() if {*w.indices} & {*fields.query(text).indices}]
    return {Path(payload["path"]).stem for payload in collection.payloads(ids)}


def test_text_is_read_once_and_its_words_are_found(
    collection: ImageCollection, tiny_model: EDJEModel, tmp_path: Path
) -> None:
    reader = FakeReader()
    report = read_texts(collection, reader)
    assert (report.read, report.with_text, report.known, report.failed) == (4, 3, 0, ())
    assert found(collection, "the harbour") == {"0"}
    texts = {p["path"][-5]: p["ocr"] for p in collection.payloads([*collection.ids()])}
    assert texts == {"0": "harbour", "1": "", "2": "station", "3": "museum"}
    again = read_texts(collection, reader)
    assert (again.read, again.known, len(reader.seen)) == (0, 4, 4)
    # Another ingest keeps the texts.
    sign("harbour", 0).resize((200, 100)).save(tmp_path / "images" / "4.png")
    ingest_images(tmp_path / "images", collection, tiny_model, progress=False)
    assert read_texts(collection, reader).read == 1
    assert found(collection, "harbour") == {"0", "4"}
    assert verify(collection).clean


def test_images_that_cannot_be_read_are_listed_and_tried_again(
    collection: ImageCollection, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    (images / "0.png").unlink()
    (images / "1.png").write_bytes(b"not an image")
    sign("other", 1).save(images / "2.png")

    class Failing(FakeReader):
        def read(self, image: Image.Image) -> str:
            raise ValueError("no memory")

    report = read_texts(collection, Failing())
    assert report.read == 0
    reasons = {Path(each.path).name: each.reason for each in report.failed}
    assert "another image" in reasons["1.png"]
    assert "another image" in reasons["2.png"]
    assert "ValueError: no memory" in reasons["3.png"]
    assert reasons.keys() == {"0.png", "1.png", "2.png", "3.png"}
    report = read_texts(collection, FakeReader())
    assert (report.read, len(report.failed)) == (1, 3)
    assert read_texts(collection, FakeReader(), max_pixels=100).known == 1


def test_an_interrupted_run_is_continued(collection: ImageCollection) -> None:
    class Interrupted(FakeReader):
        def read(self, image: Image.Image) -> str:
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().read(image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edje_qdrant.ingest.ocr._PAGE", 1)
        with pytest.raises(KeyboardInterrupt):
            read_texts(collection, Interrupted())
        assert read_texts(collection, FakeReader()).known == 2
    assert found(collection, "museum station harbour") == {"0", "2", "3"}


def test_wrong_arguments_are_refused(collection: ImageCollection) -> None:
    class Wrong:
        def read(self, image: Image.Image) -> int:
            return 3

    for reader, words in ((None, "read"), ("ocr", "read"), (Wrong(), "a int")):
        with pytest.raises(ConfigError, match=words):
            read_texts(collection, reader)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ConfigError, match="ImageCollection"):
        read_texts("images", FakeReader())  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ConfigError, match="0 to 1"):
        RapidOcrReader(least=2)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rapidocr", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[ocr\]"):
        RapidOcrReader()


@pytest.mark.slow
def test_rapidocr_reads_signs() -> None:
    pytest.importorskip("rapidocr")
    reader = RapidOcrReader()
    assert reader.read(sign("Lisbon 42")).casefold() == "lisbon 42"
    assert reader.read(sign("")) == ""
