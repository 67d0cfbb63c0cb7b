from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from deadly_encoder import DeadlyEncoder, with_encoder
from decoder_finishes import Fragile
from PIL import Image
from qdrant_client import QdrantClient
from rounding import float16_slack

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.protocol import split_pixels
from edje_qdrant.errors import ConfigError, ContractMismatchError, MissingExtraError, StoreError
from edje_qdrant.images import DecoderPool, image_bytes_id, image_file_id, open_upright
from edje_qdrant.ingest.decode import decode_image
from edje_qdrant.ingest.ingest import fit_codec_to_source, ingest_images
from edje_qdrant.ingest.pipeline import IngestRun
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.pixels import read_file, stack_pixels
from edje_qdrant.sources.open import open_source
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.types import ImageEncoding, IngestReport

WriteImages = Callable[..., list[Path]]
ORIENTATION = 274


@pytest.fixture
def collection(tmp_path: Path, tiny_model: EDJEModel) -> Iterator[ImageCollection]:
    with ImageCollection.create(tmp_path / "index", "images", tiny_model.contract()) as opened:
        yield opened


def ingest(source: Any, collection: ImageCollection, model: EDJEModel, **more: Any) -> IngestReport:
    return ingest_images(source, collection, model, progress=False, **more)


def stored(collection: ImageCollection, model: EDJEModel) -> dict[str, dict[str, Any]]:
    """Return file name -> payload of everything in the collection."""
    count = collection.count()
    if count == 0:
        return {}
    query = np.eye(1, model.config.embedding_dim, dtype=np.float32)
    (found,) = collection.nearest(query, count)
    return {Path(c.payload["path"]).name: dict(c.payload) for c in found}


def one_embedding(collection: ImageCollection, model: EDJEModel, picture: Image.Image) -> float:
    """Return the cosine of the only image in the collection with `image`."""
    ((candidate,),) = collection.nearest(model.encode_images([picture]).embeddings, 1)
    return candidate.score


def break_pictures(folder: Path, template: bytes) -> list[Path]:
    """Write 20 files that are no images, of several kinds, several with the same content."""
    contents = {
        **{f"empty-{i}.png": b"" for i in range(3)},
        **{f"text-{i}.jpg": b"this is not an image" for i in range(4)},
        **{f"truncated-{i}.png": template[: len(template) // 2 + i] for i in range(5)},
        **{f"header-{i}.png": template[: 8 + i] for i in range(3)},
        "noise.webp": np.random.default_rng(0).bytes(4000),
        "html.gif": b"<html><body>404</body></html>",
        "zip.tif": b"PK\x03\x04" + bytes(100),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "folder.bmp.png").symlink_to(folder)
    broken = [*contents, "dangling.jpg"]
    whole = bytearray(template)
    whole[len(whole) // 2] ^= 0xFF  # the pixels' checksum no longer holds
    (folder / "flipped.png").write_bytes(whole)
    return [folder / name for name in [*broken, "flipped.png"]]


def test_a_folder_with_broken_files_gives_the_whole_ones_and_lists_the_rest(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
) -> None:
    folder = tmp_path / "pictures"
    write_images(folder, 90)
    write_images(folder / "more", 90, seed=1, suffix=".jpg")
    large = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "template.png")
    broken = break_pictures(folder, (tmp_path / "template.png").read_bytes())
    assert len(broken) == 20

    report = ingest(folder, collection, tiny_model, batch_size=16)

    assert (report.added, report.skipped) == (180, 0)
    assert {failure.path for failure in report.failed} == {str(path) for path in broken}
    reasons = {Path(failure.path).stem: failure.reason for failure in report.failed}
    assert reasons["empty-0"] == "the file is empty"
    assert reasons["text-3"].startswith("not an image")
    assert reasons["dangling"] == "No such file or directory"
    assert all(reason and "\n" not in reason for reason in reasons.values())
    assert collection.count() == 180
    assert report.seconds > 0

    again = ingest(folder, collection, tiny_model)
    assert (again.added, again.skipped, len(again.failed)) == (0, 180, 20)
    assert collection.count() == 180


def test_a_rerun_decodes_nothing(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = write_images(tmp_path / "pictures", 5)
    ingest(paths, collection, tiny_model)

    def refuse(*_: Any) -> Any:
        raise AssertionError("decoded again")

    # An item, since older versions of pytest leave an attribute where there was none.
    monkeypatch.setitem(vars(tiny_model.encoder), "preprocess", refuse)
    assert ingest(paths, collection, tiny_model).skipped == 5


def test_the_same_content_is_added_once_wherever_it_lies(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
) -> None:
    paths = write_images(tmp_path / "pictures", 6)
    for path in paths[:3]:
        (tmp_path / "pictures" / f"copy-{path.name}").write_bytes(path.read_bytes())
    report = ingest(tmp_path / "pictures", collection, tiny_model, batch_size=2)
    assert (report.added, report.skipped, report.failed) == (6, 3, ())
    again = ingest([*paths, *paths], collection, tiny_model, batch_size=4)
    assert (again.added, again.skipped) == (0, 12)
    paths[0].write_bytes(paths[0].read_bytes() + b"changed")
    assert ingest(paths, collection, tiny_model).added == 1


def test_ids_are_the_same_in_every_version(
    tmp_path: Path, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    path = tmp_path / "black.ppm"
    path.write_bytes(b"P6 2 2 255\n" + bytes(12))
    ingest([path], collection, tiny_model)
    known = "9bc2c897-6ff4-5c1f-bd27-f8b785727c85"
    assert collection.existing([known]) == {known}


def test_the_payload_says_where_and_how_large(
    tmp_path: Path, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    manifest = folder / "list.jsonl"
    fields = {"path": "a.png", "title": "Ä red one", "year": 1999, "width": 1}
    manifest.write_text(json.dumps(fields) + "\n{broken\n" + '{"path": "gone.png"}\n')
    report = ingest(manifest, collection, tiny_model)
    payload = stored(collection, tiny_model)["a.png"]
    del payload["_edje"]
    assert payload == {
        "path": str(folder / "a.png"),
        "width": 40,
        "height": 30,
        "title": "Ä red one",
        "year": 1999,
        "file_size": (folder / "a.png").stat().st_size,
        "modified_at": payload["modified_at"],  # test_file_fields.py has its form
    }
    failed = {failure.path: failure.reason for failure in report.failed}
    assert set(failed) == {f"{manifest}:2", str(folder / "gone.png")}


def test_fields_that_are_no_json_fail_alone(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
) -> None:
    write_images(tmp_path, 2)
    lines = ['{"path": "picture-0000.png", "weight": NaN}', '{"path": "picture-0001.png"}']
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    report = ingest(tmp_path / "list.jsonl", collection, tiny_model)
    assert report.added == 1
    assert "payload" in report.failed[0].reason


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_no_text_fails_alone(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
) -> None:
    first, _ = write_images(tmp_path / "pictures", 2)
    first.rename(first.with_name("caf\udce9.png"))
    report = ingest(tmp_path / "pictures", collection, tiny_model)
    assert report.added == 1
    assert [Path(failure.path).name for failure in report.failed] == ["caf\udce9.png"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(
    tmp_path: Path, orientation: int, suffix: str, tiny_model: EDJEModel
) -> None:
    # A camera stores the scene turned; undoing each of the eight ways must give the scene again.
    turned_by = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    blocks = np.random.default_rng(3).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    scene = Image.fromarray(blocks).resize((60, 40), Image.Resampling.NEAREST)
    turn = turned_by[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned{suffix}"
    (scene if turn is None else scene.transpose(turn)).save(
        path, exif=exif, quality=95, lossless=True
    )
    with ImageCollection.create(":memory:", "images", tiny_model.contract()) as collection:
        assert ingest([path], collection, tiny_model).added == 1
        payload = stored(collection, tiny_model)[path.name]
        assert (payload["width"], payload["height"]) == (60, 40)
        assert one_embedding(collection, tiny_model, scene) > 0.99


def test_a_picture_with_damaged_exif_data_is_read(
    tmp_path: Path, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    for name, exif in {
        "garbage": b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        "short": b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00\x12\x01\x03\x00",
    }.items():
        Image.new("RGB", (40, 30), (len(name), 0, 0)).save(tmp_path / f"{name}.jpg", exif=exif)
    assert ingest(tmp_path, collection, tiny_model).added == 2


def write_png(path: Path, width: int, height: int, depth: int, rows: bytes) -> None:
    """Write an RGB PNG of a kind that Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + bytes([depth, 2, 0, 0, 0]))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_pictures_of_every_mode_are_read(
    tmp_path: Path, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    blocks = np.random.default_rng(4).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    scene = Image.fromarray(blocks).resize((40, 40), Image.Resampling.BILINEAR)
    scene.convert("P").save(folder / "palette.gif")
    scene.convert("P").save(folder / "palette.png", transparency=bytes(range(256)))
    scene.convert("1").save(folder / "bilevel.png")
    scene.convert("L").save(folder / "grey.jpg")
    scene.convert("LA").save(folder / "grey-alpha.png")
    scene.convert("RGBA").save(folder / "alpha.webp")
    scene.convert("CMYK").save(folder / "print.jpg")
    # Pillow before 13 does not read back what it writes here without compression.
    compression = None if int(PIL.__version__.split(".")[0]) >= 13 else "tiff_lzw"
    scene.convert("YCbCr").save(folder / "video.tif", compression=compression)
    scene.convert("LAB").save(folder / "lab.tif")
    deep = np.asarray(scene.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep.astype(np.int32)).save(folder / "integers.tif")
    Image.fromarray(deep.astype(np.float32)).save(folder / "floats.tif")
    colours = b"".join(b"\x00" + b"\x80\x00\x40\x00\x20\x00" * 8 for _ in range(8))
    write_png(folder / "deep-colour.png", 8, 8, 16, colours)
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (3000, 1)).save(folder / "line.png")
    frames = [scene.rotate(angle) for angle in (0, 90)]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = ingest(folder, collection, tiny_model)
    assert (report.failed, report.added) == ((), 16)


def test_bombs_are_refused_before_they_are_decoded(
    tmp_path: Path, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "fits.png")
    Image.new("RGB", (41, 30)).save(tmp_path / "over.png")
    # Pillow itself would warn of the first and refuse the second.
    write_png(tmp_path / "warned.png", 11_000, 11_000, 8, b"")
    write_png(tmp_path / "refused.png", 20_000, 20_000, 8, b"")
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        report = ingest(tmp_path, collection, tiny_model, max_pixels=1200)
    assert leaked == []
    assert report.added == 1
    reasons = {Path(failure.path).stem: failure.reason for failure in report.failed}
    assert set(reasons) == {"over", "warned", "refused"}
    assert "41 x 30" in reasons["over"]
    assert "11000 x 11000" in reasons["warned"]
    assert "pixels" in reasons["refused"]


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_a_pipe_is_not_waited_for(
    tmp_path: Path, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    report = ingest(tmp_path, collection, tiny_model)
    assert [failure.reason for failure in report.failed] == ["not a file"]


def test_pictures_are_encoded_as_the_model_encodes_them(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
) -> None:
    paths = write_images(tmp_path / "pictures", 7)
    ingest(paths, collection, tiny_model, batch_size=3)
    expected = tiny_model.encode_images([Image.open(path) for path in paths])
    for row, path in enumerate(paths):
        ((candidate,),) = collection.nearest(expected.embeddings[row : row + 1], 1)
        assert candidate.payload["path"] == str(path)
        tokens = collection.tokens([candidate])[0]
        np.testing.assert_allclose(
            tokens, expected.tokens[row], atol=float16_slack(expected.tokens)
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"workers": 0},
        {"max_pixels": -1},
        {"checkpoint_every": 0},
        {"batch_size": 2.5},
        {"processes": -1},
    ],
)
def test_numbers_below_one_are_refused(
    tmp_path: Path, collection: ImageCollection, tiny_model: EDJEModel, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ingest([tmp_path / "a.png"], collection, tiny_model, **wrong)


def test_a_missing_source_is_refused(
    tmp_path: Path, collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        ingest(tmp_path / "nowhere", collection, tiny_model)


def test_another_model_is_refused(
    tmp_path: Path,
    collection: ImageCollection,
    other_model: EDJEModel,
    write_images: WriteImages,
) -> None:
    paths = write_images(tmp_path / "pictures", 1)
    with pytest.raises(ContractMismatchError, match="encoder_revision"):
        ingest(paths, collection, other_model)
    assert collection.count() == 0


def test_the_bar_counts_every_picture_on_stderr(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_images(tmp_path / "pictures", 5)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"x")
    ingest(tmp_path / "pictures", collection, tiny_model)
    assert capfd.readouterr() == ("", "")
    ingest_images(tmp_path / "pictures", collection, tiny_model)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "6/6" in captured.err
    assert "images/s" in captured.err


class Faulty(ImageCollection):
    """Fail, or be interrupted, on the third batch."""

    error: BaseException
    batches = 0

    def add_new(self, image_ids: Any, encoding: ImageEncoding, payloads: Any) -> set[str]:
        self.batches += 1
        if self.batches == 3:
            raise self.error
        return super().add_new(image_ids, encoding, payloads)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StoreError("disk full; free some")])
def test_an_interrupted_run_keeps_what_was_written_and_ends_its_threads(
    tmp_path: Path,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    error: BaseException,
) -> None:
    paths = write_images(tmp_path / "pictures", 100)
    ImageCollection.create(tmp_path / "index", "images", tiny_model.contract()).close()
    threads = threading.active_count()
    with Faulty.open(tmp_path / "index", "images") as faulty:
        assert isinstance(faulty, Faulty)
        faulty.error = error
        with pytest.raises(type(error)):
            ingest(paths, faulty, tiny_model, batch_size=4)
        assert threading.active_count() == threads
    with ImageCollection.open(tmp_path / "index", "images") as collection:
        assert collection.count() == 8
        report = ingest(paths, collection, tiny_model)
        assert (report.added, report.skipped) == (92, 8)


def test_too_large_a_batch_is_named(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhaust(_: torch.Tensor) -> ImageEncoding:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny_model, "start_encoding", exhaust)
    with pytest.raises(ConfigError, match="lower batch_size"):
        ingest(write_images(tmp_path / "pictures", 3), collection, tiny_model)


class Replacing(ImageCollection):
    """Replace a file between naming and decoding it, as a sync under way does."""

    path: Path
    later: bytes

    def existing(self, image_ids: Any) -> set[str]:
        found = super().existing(image_ids)
        self.path.write_bytes(self.later)
        return found


@pytest.mark.parametrize("more", [{}, {"prune": True}])
def test_a_file_that_changes_after_it_was_named_is_stored_as_what_was_decoded(
    tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages, more: dict[str, Any]
) -> None:
    path, other = write_images(tmp_path / "pictures", 2)
    later = other.read_bytes()
    before = path.read_bytes()
    other.unlink()
    ImageCollection.create(tmp_path / "index", "images", tiny_model.contract()).close()
    with Replacing.open(tmp_path / "index", "images") as collection:
        assert isinstance(collection, Replacing)
        collection.path, collection.later = path, later
        assert ingest(tmp_path / "pictures", collection, tiny_model, **more).added == 1
        new, old = image_bytes_id(later, "new"), image_bytes_id(before, "old")
        assert collection.existing([new, old]) == {new}
        expected = tiny_model.encode_images([open_upright(io.BytesIO(later))])
        assert one_embedding(collection, tiny_model, open_upright(io.BytesIO(later))) > 0.999
        tokens = collection.encodings([new]).tokens
        np.testing.assert_allclose(tokens, expected.tokens, atol=float16_slack(tokens))
        collection.later = before  # put back, it is another image
        path.write_bytes(before)
        assert ingest(tmp_path / "pictures", collection, tiny_model, **more).added == 1
        assert old in collection.existing([old])


class FragileEncoder(SiglipEncoder):
    @property
    def resize(self) -> Any:
        return Fragile(super().resize)


@pytest.mark.slow
def test_decoders_that_hang_die_or_fill_memory_cost_their_images_only(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
) -> None:
    write_images(tmp_path / "pictures", 6)
    for width in (101, 102, 103):
        Image.new("RGB", (width, 50)).save(tmp_path / "pictures" / f"{width}.png")
    (tmp_path / "pictures" / "endless.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n{} loop\n")
    fragile = with_encoder(tiny_model, FragileEncoder)
    report = ingest(tmp_path / "pictures", collection, fragile, decode_seconds=4)
    assert report.added == 6
    reasons = {Path(failure.path).stem: failure.reason for failure in report.failed}
    assert set(reasons) == {"101", "102", "103", "endless"}
    assert "took more than 4 s" in reasons["101"]
    assert "killed by SIGKILL" in reasons["102"]
    assert "far more memory" in reasons["103"]
    assert "EPS, which is not read" in reasons["endless"]


def test_pixels_are_resized_in_the_processes_and_have_the_values_of_preprocess(
    tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages
) -> None:
    paths = write_images(tmp_path / "pictures", 3)
    expected = tiny_model.preprocess([open_upright(path) for path in paths])
    with DecoderPool(1) as decoders:
        pixels = [read_file(tiny_model, decoders, str(path))[1] for path in paths]
    batch = stack_pixels(pixels, tiny_model.device)
    assert batch.dtype == torch.uint8
    assert isinstance(tiny_model.encoder, SiglipEncoder)
    assert torch.equal(tiny_model.encoder.normalise(batch), expected)
    (one, many) = tiny_model.encode_pixels(batch), tiny_model.encode_pixels(expected)
    np.testing.assert_array_equal(one.tokens, many.tokens)


def test_an_encoder_with_its_own_preprocess_gets_whole_images(tiny_model: EDJEModel) -> None:
    assert split_pixels(tiny_model.encoder) is tiny_model.encoder
    assert split_pixels(with_encoder(tiny_model, DeadlyEncoder).encoder) is None
    assert split_pixels(with_encoder(tiny_model, FragileEncoder).encoder) is not None
    assert split_pixels(object()) is None


_CHILD = """
import sys, time
from edje_qdrant import EDJEModel, ImageCollection, ingest_images

model = EDJEModel.from_pretrained(sys.argv[1], device="cpu")
encode = model.encode_pixels
def slowly(pixels):
    time.sleep(0.05)
    return encode(pixels)
model.encode_pixels = slowly
with ImageCollection.create(sys.argv[3], "images", model.contract()) as collection:
    add = collection.add_new
    def announced(image_ids, encoding, payloads):
        written = add(image_ids, encoding, payloads)
        print(collection.count(), flush=True)
        if collection.count() >= 40:
            time.sleep(600)  # until it is killed
        return written
    collection.add_new = announced
    ingest_images(
        sys.argv[2], collection, model, batch_size=4, checkpoint_every=8, progress=False
    )
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_is_completed_by_the_next(
    tmp_path: Path, tiny_folder: Path, tiny_model: EDJEModel, write_images: WriteImages
) -> None:
    write_images(tmp_path / "pictures", 60)
    command = [sys.executable, "-c", _CHILD]
    command += [str(p) for p in (tiny_folder, tmp_path / "pictures", tmp_path / "index")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 16:
                break
        child.send_signal(signal.SIGKILL)
        child.wait()
    with ImageCollection.open(tmp_path / "index", "images") as collection:
        kept = collection.count()
        assert 16 - 8 <= kept <= 40
        report = ingest(tmp_path / "pictures", collection, tiny_model)
        assert (report.added, report.skipped, report.failed) == (60 - kept, kept, ())
        found = collection.nearest(np.eye(1, 24, dtype=np.float32), 60)[0]
        assert len(found) == 60
        assert collection.tokens(found).shape == (60, 4, 16)  # none torn, none missing


def test_memory_holds_a_window_of_the_source_only(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = write_images(tmp_path / "pictures", 80)
    decoded = added = most = 0
    preprocess, lock = tiny_model.encoder.preprocess, threading.Lock()

    def counted(images: Any) -> torch.Tensor:
        nonlocal decoded, most
        with lock:
            decoded += 1
            most = max(most, decoded - added)
        return preprocess(images)

    class Slow(ImageCollection):
        def add_new(self, image_ids: Any, encoding: ImageEncoding, payloads: Any) -> set[str]:
            nonlocal added
            time.sleep(0.02)  # decoding is quicker than this, and must wait
            written = super().add_new(image_ids, encoding, payloads)
            with lock:
                added += len(image_ids)
            return written

    # An item, since older versions of pytest leave an attribute where there was none.
    monkeypatch.setitem(vars(tiny_model.encoder), "preprocess", counted)
    collection.close()
    with Slow.open(tmp_path / "index", "images") as slow:
        assert ingest(paths, slow, tiny_model, batch_size=4).added == 80
    # One batch each is written, encoded, prepared and decoded.
    assert most <= 4 * 4 + 1


def test_both_engines_hold_the_same_after_an_ingest(
    tmp_path: Path,
    collection: ImageCollection,
    tiny_model: EDJEModel,
    write_images: WriteImages,
) -> None:
    write_images(tmp_path / "pictures", 30)
    client = QdrantClient(":memory:")
    with ImageCollection.create(client, "images", tiny_model.contract()) as other:
        for each in (collection, other):
            assert ingest(tmp_path / "pictures", each, tiny_model).added == 30
        query = tiny_model.encode_texts(["a red square", "dogs"])
        for ours, theirs in zip(
            collection.nearest(query, 30), other.nearest(query, 30), strict=True
        ):
            assert [c.image_id for c in ours] == [c.image_id for c in theirs]
            np.testing.assert_array_equal(collection.tokens(ours), other.tokens(theirs))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages) -> Path:
    """A folder of 70 images, 4 tokens each, and files that are not images."""
    folder = tmp_path_factory.mktemp("many")
    write_images(folder, 70)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_a_codec_is_fitted_to_the_source(many: Path, tiny_model: EDJEModel) -> None:
    codec = fit_codec_to_source(many, tiny_model, "pq16", progress=False)
    assert codec.fitted
    assert codec.key == fit_codec_to_source(many, tiny_model, "pq16", progress=False).key
    assert codec.key != fit_codec_to_source(many, tiny_model, "pq16", seed=1, progress=False).key
    pictures = [Image.open(path) for path in sorted(many.glob("picture-*"))]
    tokens = tiny_model.encode_images(pictures).tokens
    error = np.abs(codec.decode(codec.encode(tokens)) - tokens).mean()
    spread = np.abs(tokens - tokens.mean(axis=(0, 1))).mean()
    assert 0 < error < spread / 4


def test_an_ingest_with_a_fitted_codec(many: Path, tmp_path: Path, tiny_model: EDJEModel) -> None:
    codec = fit_codec_to_source(many, tiny_model, "pq16", progress=False)
    contract = tiny_model.contract()
    with ImageCollection.create(tmp_path, "images", contract, codec=codec) as collection:
        report = ingest(many, collection, tiny_model)
        assert (report.added, len(report.failed)) == (70, 1)
        assert collection.bytes_per_image() == 4 * 16


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("pq16", {"sample": 60}, "64 images or more"),
        ("pq16", {"sample": 0}, "sample 0"),
        ("pq16", {"batch_size": 0}, "batch_size 0"),
        ("zip", {}, "known: float16"),
    ],
)
def test_a_codec_that_cannot_be_fitted(
    many: Path, tiny_model: EDJEModel, name: str, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        fit_codec_to_source(many, tiny_model, name, progress=False, **more)


def test_fitting_to_too_few_pictures(
    tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages
) -> None:
    write_images(tmp_path, 3)
    with pytest.raises(ConfigError, match="3 images have 12; give 64 images or more"):
        fit_codec_to_source(tmp_path, tiny_model, "pq16", progress=False)
    for path in tmp_path.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ConfigError, match="0 images have 0; give 64"):
        fit_codec_to_source(tmp_path, tiny_model, "pq16", progress=False)
    with pytest.raises(ConfigError, match="does not exist"):
        fit_codec_to_source(tmp_path / "nowhere", tiny_model, "pq16", progress=False)


def test_a_codec_without_a_codebook_needs_no_picture(tmp_path: Path, tiny_model: EDJEModel) -> None:
    found = fit_codec_to_source(tmp_path / "nowhere", tiny_model, "int4", progress=False)
    assert found == codec_for("int4", 4, 16)


def test_fitting_without_its_extra(
    many: Path, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[faiss\]"):
        fit_codec_to_source(many, tiny_model, "pq16", progress=False)


@pytest.mark.gpu
def test_an_ingest_on_a_gpu_stores_what_the_model_encodes(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    model = EDJEModel.from_pretrained(tiny_folder, device="cuda", dtype=torch.float32)
    paths = write_images(tmp_path / "pictures", 11)
    expected = model.encode_images([open_upright(path) for path in paths])
    with ImageCollection.create(tmp_path / "index", "images", model.contract()) as collection:
        assert ingest(paths, collection, model, batch_size=3).added == 11
        found = collection.encodings([image_file_id(str(path)) for path in paths])
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-3)
    np.testing.assert_allclose(found.tokens, expected.tokens, atol=1e-2)


@pytest.mark.gpu
def test_pixels_are_normalised_to_the_same_values_on_a_gpu(tiny_model: EDJEModel) -> None:
    assert isinstance(tiny_model.encoder, SiglipEncoder)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, -1, -1, 3)
    here = tiny_model.encoder.normalise(levels.contiguous())
    assert torch.equal(tiny_model.encoder.normalise(levels.cuda()).cpu(), here)


def test_batches_that_a_device_works_on_are_all_written(
    tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages
) -> None:
    write_images(tmp_path / "pictures", 11)

    class Started(IngestRun):
        """Encode as on a GPU: a batch ahead."""

        def _encoded(self, decoded: Any) -> Any:
            model = self._model
            self._model = SimpleNamespace(
                encoding_device=SimpleNamespace(type="other"), start_encoding=model.start_encoding
            )
            return super()._encoded(decoded)

    found = []
    for kind in (IngestRun, Started):
        folder = tmp_path / kind.__name__
        with (
            ImageCollection.create(folder, "images", tiny_model.contract()) as made,
            DecoderPool(1) as decoders,
            ThreadPoolExecutor(1) as threads,
        ):
            run = kind(made, tiny_model)
            listed = open_source(tmp_path / "pictures").images()
            decode = partial(decode_image, model=tiny_model, decoders=decoders)
            run.decode_and_write(run.missing(listed, threads), decode, threads, 3)
            assert run.added == 11
            payloads = stored(made, tiny_model).values()
            found.append({payload["path"]: payload["_edje"]["checksum"] for payload in payloads})
    assert found[0] == found[1]
