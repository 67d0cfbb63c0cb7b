"""Images that a program passes as bytes or as Pillow images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import image_bytes_id
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance.repair import repair
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.sources.open import open_source
from edje_qdrant.tokens.segment import HEADER_BYTES


@pytest.fixture
def image() -> Image.Image:
    rng = np.random.default_rng(7)
    return Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_they_are_named_by_content_and_cannot_be_read_back(
    tmp_path: Path, tiny_model: EDJEModel, image: Image.Image
) -> None:
    data, other = png(image), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    with ImageCollection.create(tmp_path / "i", "images", tiny_model.contract()) as collection:
        items = [(data, {"album": "2024"}), (other, {"album": "2025"}), image.rotate(180)]
        report = ingest_images(items, collection, tiny_model, progress=False)
        assert (report.added, report.failed) == (3, ())
        again = ingest_images(items, collection, tiny_model, progress=False)
        assert (again.added, again.known) == (0, 3)
        ids = [*collection.ids()]
        payloads = {payload["path"]: payload for payload in collection.payloads(ids)}
        assert set(payloads) == {f"memory:{image_id}" for image_id in ids}
        of_bytes = payloads[f"memory:{image_bytes_id(data, '')}"]
        assert (of_bytes["album"], of_bytes["file_size"]) == ("2024", len(data))
        (of_pillow,) = [p for p in payloads.values() if p.get("album") == "2025"]
        assert (of_pillow["width"], of_pillow["height"]) == (32, 24)
        assert "file_size" not in of_pillow

        retriever = TwoStageRetriever(collection, tiny_model)
        with pytest.raises(ImageReadError, match="as bytes, as a Pillow image or in a data set"):
            retriever.explain("a dog", ids[0])
        retriever.explain("a dog", image_bytes_id(data, ""), image=image)


def test_the_path_may_be_given(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(image))
    (listed,) = open_source([(png(image), {"path": str(path)})]).images()
    assert listed.path == str(path)


def test_the_id_of_a_pillow_image_depends_on_its_pixels_alone(image: Image.Image) -> None:
    opened = Image.open(io.BytesIO(png(image)))
    first, second = open_source([image, opened]).images()
    assert first.path == second.path
    # Pinned: with another id, a rerun would add every image a second time.
    white = next(open_source([Image.new("RGB", (2, 1), "white")]).images())
    assert white.path == "memory:f4c7cd2b-8b14-575c-b0e2-74fabe3571b5"


def test_one_that_cannot_be_read_is_listed_by_its_number() -> None:
    broken = Image.open(io.BytesIO(png(Image.new("RGB", (64, 64)))[:60]))
    (failed,) = open_source([broken]).images()
    assert failed.path == "item 0 of the list of images"
    with pytest.raises(ConfigError, match="has a path that is no text"):
        open_source([(b"x", {"path": 7})])


def test_repair_says_that_their_bytes_are_nowhere(
    tmp_path: Path, tiny_model: EDJEModel, image: Image.Image
) -> None:
    place = tmp_path / "i"
    with ImageCollection.create(place, "images", tiny_model.contract()) as collection:
        ingest_images([image], collection, tiny_model, progress=False)
    segment = next(path for path in place.rglob("tokens-*.bin"))
    data = bytearray(segment.read_bytes())
    data[HEADER_BYTES] ^= 1
    segment.write_bytes(data)
    with ImageCollection.open(place, "images", for_repair=True) as collection:
        (finding,) = repair(collection, tiny_model).left
    assert "and is in no file" in finding.detail


def test_a_data_frame_says_how_to_give_its_rows() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ConfigError, match=r'data frame; give its rows: df.to_dict\("records"\)'):
        open_source(pandas.DataFrame({"path": ["a.png"]}))
