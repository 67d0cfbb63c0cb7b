from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edje_qdrant.data.pairs import AnnotatedPairs
from edje_qdrant.errors import ConfigError, EdjeError, ImageReadError, StoreError
from edje_qdrant.training import vision_cache
from edje_qdrant.training.vision import LiveVision, _crop_box
from edje_qdrant.training.vision_cache import CachedVision

CPU = torch.device("cpu")


@pytest.fixture
def encoder(tiny_model):
    return tiny_model.encoder


@pytest.fixture
def sources(tmp_path, write_images):
    """Two sources of 7 and 5 images; the first's third is broken."""
    made = []
    for number, count in enumerate((7, 5)):
        folder = tmp_path / f"pictures-{number}"
        paths = write_images(folder, count, seed=number)
        items = [{"image": path.name, "caption": path.stem} for path in paths]
        (folder / "pairs.json").write_text(json.dumps(items))
        if number == 0:
            paths[2].write_bytes(b"broken")
        made.append(AnnotatedPairs(folder / "pairs.json"))
    return made


def rows(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, np.int64)


def cached(encoder, sources, folder, **more):
    return CachedVision(encoder, sources, folder, device=CPU, progress=False, **more)


def live(encoder, sources, **more):
    return LiveVision(encoder, sources, device=CPU, **more)


def by_hand(encoder, image):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embedding, tokens = encoder.encode_pixels(encoder.preprocess([image]))
    return tokens[0].float(), embedding[0].float()


# The cache.


def test_each_row_gets_its_own_pictures_tokens(tmp_path, encoder, sources):
    vision = cached(encoder, sources, tmp_path / "cache", batch_size=3)
    wanted = rows((1, 4), (0, 6), (1, 0), (0, 0), (1, 4))
    batch = vision.batch(wanted, step=0)
    assert batch.tokens.shape == (5, encoder.num_patches, encoder.hidden_size)
    assert batch.tokens.dtype == batch.embeddings.dtype == torch.float32
    assert np.array_equal(batch.rows, wanted)
    for number, (source, row) in enumerate(wanted.tolist()):
        tokens, embedding = by_hand(encoder, sources[source].open(row))
        # bfloat16, in batches of other sizes
        torch.testing.assert_close(batch.tokens[number], tokens, rtol=0.05, atol=0.1)
        torch.testing.assert_close(batch.embeddings[number], embedding, rtol=0.05, atol=0.02)
    assert torch.equal(batch.tokens[0], batch.tokens[4])
    assert not torch.equal(batch.tokens[0], batch.tokens[1])


def test_broken_pictures_are_counted_and_not_usable(tmp_path, encoder, sources):
    vision = cached(encoder, sources, tmp_path / "cache", batch_size=2)
    assert [usable.tolist() for usable in vision.usable] == [[0, 1, 3, 4, 5, 6], [0, 1, 2, 3, 4]]
    (failure,) = vision.failed
    assert failure.path == sources[0].key(2)
    assert failure.reason.startswith("not an image")
    with pytest.raises(ImageReadError, match="not an image"):
        vision.batch(rows((0, 1), (0, 2)), step=0)


def test_its_tensors_can_be_trained_on(tmp_path, encoder, sources):
    for vision in (cached(encoder, sources, tmp_path / "cache"), live(encoder, sources)):
        batch = vision.batch(rows((0, 0), (1, 1)), step=0)
        weight = torch.ones(batch.tokens.shape[-1], requires_grad=True)
        ((batch.tokens * weight).sum() + (batch.embeddings * weight.sum()).sum()).backward()
        assert weight.grad is not None
        batch.tokens.add_(1)  # plain memory, not the file's


def test_a_second_run_opens_no_picture(tmp_path, encoder, sources):
    first = cached(encoder, sources, tmp_path / "cache").batch(rows((0, 1), (1, 2)), 0)
    for source in sources:
        source.open = None  # calling it would fail
    vision = cached(encoder, sources, tmp_path / "cache")
    assert torch.equal(vision.batch(rows((0, 1), (1, 2)), 0).tokens, first.tokens)
    assert len(vision.failed) == 1


def test_a_changed_picture_is_encoded_anew(tmp_path, encoder, sources, write_images):
    before = cached(encoder, sources[1:], tmp_path / "cache").batch(rows((0, 0)), 0)
    write_images(tmp_path / "pictures-1", 5, seed=9)
    again = [AnnotatedPairs(tmp_path / "pictures-1" / "pairs.json")]
    after = cached(encoder, again, tmp_path / "cache").batch(rows((0, 0)), 0)
    assert not torch.equal(before.tokens, after.tokens)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_another_encoders_tokens_are_not_taken(tmp_path, encoder, other_model, sources):
    mine = cached(encoder, sources[1:], tmp_path / "cache").batch(rows((0, 0)), 0)
    other = cached(other_model.encoder, sources[1:], tmp_path / "cache").batch(rows((0, 0)), 0)
    assert not torch.equal(mine.tokens, other.tokens)


STOPPED = """
import sys, time, torch
from pathlib import Path
from edje_qdrant.model import EDJEModel
from edje_qdrant.data.pairs import AnnotatedPairs
from edje_qdrant.training import vision_cache
from edje_qdrant.training.vision_cache import CachedVision

class Stopping(AnnotatedPairs):
    def open(self, row):
        if row == 5:
            print("here", flush=True)
            time.sleep(600)
        return super().open(row)

model, pairs, cache = sys.argv[1:]
vision_cache.SAVE_EVERY = 0.0
encoder = EDJEModel.from_pretrained(model, device="cpu").encoder
CachedVision(encoder, [Stopping(pairs)], cache, device=torch.device("cpu"), batch_size=2,
             workers=1, progress=False)
"""


def kept_rows(cache: Path) -> int:
    for progress in cache.glob("*/progress.json"):
        return json.loads(progress.read_text())["done"]
    return 0


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def files(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("*/*") if path.name != "lock"}


@pytest.mark.slow
def test_an_encode_that_is_killed_goes_on_where_it_was(tmp_path, tiny_folder, encoder, sources):
    pairs, cache = tmp_path / "pictures-0" / "pairs.json", tmp_path / "cache"
    command = [sys.executable, "-c", textwrap.dedent(STOPPED), str(tiny_folder), str(pairs)]
    with subprocess.Popen([*command, str(cache)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        wait_for(lambda: kept_rows(cache) > 0)
        process.send_signal(signal.SIGKILL)
    kept = kept_rows(cache)
    assert 0 < kept < 5
    opened: list[int] = []
    source = AnnotatedPairs(pairs)
    open_row = source.open
    source.open = lambda row: (opened.append(row), open_row(row))[1]
    resumed = cached(encoder, [source], cache, batch_size=2)
    assert sorted(opened) == list(range(kept, 7))
    whole = cached(encoder, sources[:1], tmp_path / "whole", batch_size=2)
    assert files(cache) == files(tmp_path / "whole")
    assert resumed.failed == whole.failed
    assert files(cache).keys() == {"tokens.npy", "embeddings.npy", "failures.json"}


def test_what_was_encoded_before_an_error_is_kept(tmp_path, encoder, sources, monkeypatch):
    encode, calls = encoder.encode_pixels, []

    def exhaust(pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return encode(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "encode_pixels", exhaust)
        with pytest.raises(ConfigError, match="no memory to encode 2 images"):
            cached(encoder, sources[:1], tmp_path / "cache", batch_size=2)
    assert kept_rows(tmp_path / "cache") == 4
    opened: list[int] = []
    open_row = sources[0].open
    sources[0].open = lambda row: (opened.append(row), open_row(row))[1]
    cached(encoder, sources[:1], tmp_path / "cache", batch_size=2)
    assert sorted(opened) == [4, 5, 6]
    assert len(open_failures(tmp_path / "cache")) == 1


def open_failures(cache: Path) -> list[object]:
    (whole,) = cache.glob("*/failures.json")
    return json.loads(whole.read_text())["failures"]


def test_other_processes_open_what_the_main_one_made(tmp_path, encoder, sources):
    other = cached(encoder, sources, tmp_path / "cache", main=False)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(EdjeError, match="not all encoded"):
        other.open()
    main = cached(encoder, sources, tmp_path / "cache")
    other.open()
    batch = rows((0, 3), (1, 1))
    assert torch.equal(other.batch(batch, 0).tokens, main.batch(batch, 0).tokens)
    assert other.failed == main.failed


def test_two_processes_do_not_encode_into_one_folder(tmp_path, encoder, sources):
    here = vision_cache.cache_folder(encoder, sources[0], tmp_path / "cache")
    here.mkdir(parents=True)
    with (
        vision_cache._locked(here),
        pytest.raises(ConfigError, match="another process is encoding"),
    ):
        cached(encoder, sources[:1], tmp_path / "cache")


def test_a_cache_of_other_settings_or_damaged_is_refused(tmp_path, encoder, sources):
    cached(encoder, sources[:1], tmp_path / "cache")
    (whole,) = (tmp_path / "cache").glob("*/failures.json")
    content = json.loads(whole.read_text())
    content["facts"]["preprocessing"] = "another"
    whole.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="other settings"):
        cached(encoder, sources[:1], tmp_path / "cache")
    whole.write_text("{")
    with pytest.raises(ConfigError, match="delete"):
        cached(encoder, sources[:1], tmp_path / "cache")


def test_a_disk_that_is_too_small_is_told_before_anything_is_encoded(
    tmp_path, encoder, sources, monkeypatch
):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(vision_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match="GB left"):
        cached(encoder, sources, tmp_path / "cache")


# The encoder at work.


def test_without_augmentation_it_gives_what_the_cache_gives(tmp_path, encoder, sources):
    wanted = rows((0, 1), (1, 3), (0, 4))
    from_disk = cached(encoder, sources, tmp_path / "cache").batch(wanted, 0)
    fresh = live(encoder, sources, augment=False).batch(wanted, 0)
    torch.testing.assert_close(fresh.tokens, from_disk.tokens, rtol=0.05, atol=0.1)
    torch.testing.assert_close(fresh.embeddings, from_disk.embeddings, rtol=0.05, atol=0.02)
    assert fresh.tokens.dtype == fresh.embeddings.dtype == torch.float32


def test_crops_follow_from_seed_step_and_row_alone(encoder, sources):
    batch = rows((1, 0), (1, 1))
    first = live(encoder, sources).batch(batch, 3).tokens
    vision = live(encoder, sources, workers=1)
    vision.batch(rows((1, 4), (0, 0)), 2)
    assert torch.equal(vision.batch(batch, 3).tokens, first)
    assert not torch.equal(vision.batch(batch, 4).tokens, first)
    assert not torch.equal(live(encoder, sources, seed=1).batch(batch, 3).tokens, first)


@pytest.mark.parametrize("size", [(100, 80), (30, 400), (1, 1), (1, 50)])
def test_a_crop_lies_within_the_picture(size):
    width, height = size
    for seed in range(200):
        left, top, right, bottom = _crop_box(width, height, np.random.default_rng(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if size == (100, 80):
            part = (right - left) * (bottom - top) / (width * height)
            assert 0.48 <= part <= 1
            assert 0.73 <= (right - left) / (bottom - top) <= 1.36


def test_a_picture_is_never_mirrored(tmp_path, encoder):
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (80, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    (tmp_path / "pairs.json").write_text(json.dumps([{"image": "ramp.png", "caption": "a"}]))
    vision = live(encoder, [AnnotatedPairs(tmp_path / "pairs.json")])
    for step in range(20):
        pixels = vision._read(0, 0, step)
        assert isinstance(pixels, torch.Tensor)
        assert pixels[..., -8:].mean() > pixels[..., :8].mean()


def test_a_broken_picture_is_replaced_by_the_next_good_one_and_counted_once(encoder, sources):
    vision = live(encoder, sources, augment=False)
    for step in range(2):
        batch = vision.batch(rows((1, 0), (0, 2), (1, 1), (0, 2)), step)
        assert batch.rows.tolist() == [[1, 0], [1, 1], [1, 1], [1, 0]]
        assert torch.equal(batch.tokens[1], batch.tokens[2])
        assert torch.equal(batch.embeddings[3], batch.embeddings[0])
    assert [failure.path for failure in vision.failed] == [sources[0].key(2)]
    assert [len(usable) for usable in vision.usable] == [7, 5]


def test_a_batch_without_any_good_picture_names_the_first(encoder, sources):
    with pytest.raises(ImageReadError, match="nor can any of the 2") as caught:
        live(encoder, sources).batch(rows((0, 2), (0, 2)), 0)
    assert caught.value.path == sources[0].key(2)


def test_a_picture_the_image_processor_refuses_is_counted(encoder, sources, monkeypatch):
    preprocess = encoder.preprocess

    def refuse(images):
        if images[0].getpixel((0, 0)) == refused:
            raise ValueError("odd\nshape")
        return preprocess(images)

    refused = sources[1].open(0).getpixel((0, 0))
    monkeypatch.setattr(encoder, "preprocess", refuse)
    vision = live(encoder, sources, augment=False)
    assert vision.batch(rows((1, 0), (1, 1)), 0).rows.tolist() == [[1, 1], [1, 1]]
    assert (vision.failed[0].path, vision.failed[0].reason) == (sources[1].key(0), "odd shape")


def test_what_is_prefetched_is_read_once_and_the_same(encoder, sources):
    opened: list[int] = []
    open_row = sources[1].open
    sources[1].open = lambda row: (opened.append(row), open_row(row))[1]
    vision = live(encoder, sources)
    plain = vision.batch(rows((1, 0), (1, 1)), 5).tokens
    opened.clear()
    vision.prefetch(rows((1, 0), (1, 1)), 5)
    vision.prefetch(rows((1, 2), (1, 3)), 6)
    assert torch.equal(vision.batch(rows((1, 0), (1, 1)), 5).tokens, plain)
    vision.batch(rows((1, 2), (1, 3)), 6)
    assert sorted(opened) == [0, 1, 2, 3]
    vision.close()


def test_what_is_prefetched_and_not_asked_for_is_dropped(encoder, sources):
    opened: list[int] = []
    release = threading.Event()
    open_row = sources[1].open

    def wait(row):
        opened.append(row)
        assert release.wait(60)
        return open_row(row)

    sources[1].open = wait
    vision = live(encoder, sources, workers=1)
    for row in (0, 1, 2, 3, 4):
        vision.prefetch(rows((1, row)), row)
    release.set()
    vision.batch(rows((1, 4)), 4)
    assert set(opened) <= {0, 3, 4}  # the first was at work already
    vision.close()


@pytest.mark.parametrize("workers", [0, 1.5])
def test_senseless_counts_are_refused(tmp_path, encoder, sources, workers):
    for make in (
        lambda: live(encoder, sources, workers=workers),
        lambda: cached(encoder, sources, tmp_path / "cache", workers=workers),
    ):
        with pytest.raises(ConfigError, match="whole number"):
            make()
