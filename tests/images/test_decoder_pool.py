from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import decoder_finishes
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edje_qdrant.errors import ConfigError, ImageReadError, WorkerDiedError
from edje_qdrant.images import DecoderPool, image_bytes_id, open_upright
from edje_qdrant.images.resize import OpenClipResize, SiglipResize

SCENE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encoded(kind: str = "PNG", image: Any = SCENE, **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **more)
    return buffer.getvalue()


def large_png(side: int) -> bytes:
    """Return a grey PNG of `side` x `side` pixels in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(bytes((side + 1) * side), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool(1, max_bytes=1 << 20) as opened:
        yield opened


def exists(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0]
    except OSError:
        return False
    # The first thread of a process that was killed may end before the others.
    return state != "Z" or len([*Path(f"/proc/{process}/task").glob("*")]) > 1


def wait_until_gone(process: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while exists(process):
        assert time.monotonic() < until, f"process {process} still runs"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_pixels_and_ids_are_those_of_this_process(pool: DecoderPool, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    content = encoded(kind, **({} if kind == "GIF" else {"exif": exif}))
    expected = open_upright(io.BytesIO(content), "a")
    decoded = pool.decode(content, "a")
    np.testing.assert_array_equal(decoded.array, np.asarray(expected))
    assert decoded.image_id == image_bytes_id(content, "a")
    assert (decoded.width, decoded.height) == expected.size
    assert decoded.format == kind
    for resize in (
        SiglipResize((8, 6)),
        SiglipResize(shortest_edge=7, crop=(7, 7)),
        OpenClipResize((8, 8), 3, "longest"),
    ):
        resized = pool.decode(content, "a", resize)
        np.testing.assert_array_equal(resized.array, resize(expected))
        assert (resized.width, resized.height) == expected.size


def test_a_path_is_read_once_in_the_process(pool: DecoderPool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    assert pool.decode(str(path)).image_id == image_bytes_id(encoded(), "a")
    with pytest.raises(ImageReadError, match="No such file") as caught:
        pool.decode(str(tmp_path / "gone.png"))
    assert caught.value.path == str(tmp_path / "gone.png")
    with pytest.raises(ImageReadError, match="not a file"):
        pool.decode(str(tmp_path))
    with pytest.raises(ImageReadError, match="the file is empty"):
        pool.decode(b"", "upload")


def test_long_texts_in_a_png_are_no_fault(pool: DecoderPool) -> None:
    notes = PngInfo()
    notes.add_text("history", "edited " * 300_000, zip=True)  # 2 MB
    file = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(file, "PNG", pnginfo=notes)
    assert pool.decode(file.getvalue(), "notes.png").width == 20


def test_the_process_starts_without_torch_and_is_used_again(pool: DecoderPool) -> None:
    first, second = (pool.decode(encoded(), "a", decoder_finishes.process).data for _ in "ab")
    assert first == second
    assert first.endswith(b"False")
    with DecoderPool(1) as other:  # also by another pool
        assert other.decode(encoded(), "a", decoder_finishes.process).data == first


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (decoder_finishes.be_killed, "was killed by SIGKILL"),
        (decoder_finishes.fill_memory, "far more memory"),
        (decoder_finishes.write_and_fail, r"bad strip \(its decoder wrote: TIFFReadDirectory"),
    ],
)
def test_a_decoder_that_fails_costs_one_image(
    pool: DecoderPool, finish: Any, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ImageReadError, match=reason) as caught:
        pool.decode(encoded(), "bad.png", finish)
    assert caught.value.path == "bad.png"
    assert "\x1b" not in caught.value.reason
    assert "\n" not in caught.value.reason
    assert pool.decode(encoded(), "good.png").width == 20
    assert capfd.readouterr() == ("", "")


def test_what_a_decoder_writes_goes_with_its_image_only(pool: DecoderPool) -> None:
    first = pool.decode(encoded(), "a", decoder_finishes.write)
    assert (first.data, first.written) == (b"done", "on stdout on stderr")
    assert pool.decode(encoded(), "a").written == ""


def test_libtiff_s_messages_go_with_the_file(
    pool: DecoderPool, capfd: pytest.CaptureFixture[str]
) -> None:
    content = encoded("TIFF", compression="tiff_lzw")
    strip = content.index(b"\x80")  # as LZW data begin
    damaged = content[:strip] + b"\xff" * 40 + content[strip + 40 :]
    with pytest.raises(ImageReadError, match=r"its decoder wrote: .*code not yet in table"):
        pool.decode(damaged, "a.tif")
    assert capfd.readouterr() == ("", "")


def test_a_decoder_that_takes_long_is_ended() -> None:
    slow = large_png(9000)  # 81 megapixels
    with DecoderPool(1, seconds=0.05) as quick, pytest.raises(ImageReadError, match=r"0\.05 s"):
        quick.decode(slow, "slow.png")
    with DecoderPool(1, seconds=0.5) as quick:
        with pytest.raises(ImageReadError, match=r"more than 0\.5 s"):
            quick.decode(encoded(), "endless.png", decoder_finishes.hang)
        quick._seconds = 60.0
        assert quick.decode(encoded(), "a").width == 20  # another process answers


def test_limits_are_named(pool: DecoderPool, tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    path.write_bytes(encoded() + bytes(1 << 20))
    with pytest.raises(ImageReadError, match=r"bytes; no more than 1048576 are read"):
        pool.decode(str(path))
    few = "20 x 12 pixels; no more than 239"
    with DecoderPool(1, max_pixels=239) as small, pytest.raises(ImageReadError, match=few):
        small.decode(encoded(), "a")
    with DecoderPool(1, memory=64 << 20) as small:
        with pytest.raises(ImageReadError, match=r"4000 x 4000 pixels need .*decode_memory"):
            small.decode(large_png(4000), "a")
        assert small.decode(encoded(), "a").width == 20


def test_large_images_wait_for_each_other() -> None:
    content = large_png(4000)  # 100 MB
    with DecoderPool(2, memory=160 << 20) as pool, ThreadPoolExecutor(3) as threads:
        large = [
            threads.submit(pool.decode, content, "a", decoder_finishes.Span(0.1)) for _ in range(2)
        ]
        small = threads.submit(pool.decode, encoded(), "b")
        spans = sorted(
            tuple(float(each) for each in future.result().data.split()) for future in large
        )
        assert small.result().width == 20
    assert spans[0][1] <= spans[1][0]


def test_close_ends_a_decoder_that_hangs(tmp_path: Path) -> None:
    said = tmp_path / "process"
    pool = DecoderPool(1)
    with ThreadPoolExecutor(2) as threads:
        hanging = threads.submit(pool.decode, encoded(), "a", decoder_finishes.Hanging(str(said)))
        while not said.exists() or not said.read_text():
            time.sleep(0.01)
        waiting = threads.submit(pool.decode, encoded(), "b")
        pool.close()
        for future in (hanging, waiting):
            with pytest.raises(ImageReadError, match="was ended before"):
                future.result()
    wait_until_gone(int(said.read_text()))
    with pytest.raises(ImageReadError, match="was ended before"):
        pool.decode(encoded(), "c")


def test_an_idle_process_that_was_killed_is_replaced(pool: DecoderPool) -> None:
    process = int(pool.decode(encoded(), "a", decoder_finishes.process).data.split()[0])
    os.kill(process, signal.SIGKILL)
    wait_until_gone(process)
    assert pool.decode(encoded(), "a").width == 20


_PARENT = """
import sys
from pathlib import Path
import decoder_finishes
from edje_qdrant.images import DecoderPool

DecoderPool(1).decode(sys.argv[1], None, decoder_finishes.Hanging(sys.argv[2]))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_decoder_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    said = tmp_path / "process"
    command = [sys.executable, "-c", _PARENT, str(tmp_path / "a.png"), str(said)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as parent:
        while not said.exists() or not said.read_text():
            assert parent.poll() is None, parent.communicate()
            time.sleep(0.02)
        parent.send_signal(number)
        assert parent.wait(60) != 0
    wait_until_gone(int(said.read_text()))


def test_a_finish_that_cannot_be_sent_is_refused(pool: DecoderPool) -> None:
    with pytest.raises(ConfigError, match="cannot be sent"):
        pool.decode(encoded(), "a", lambda image: b"")
    with pytest.raises(ImageReadError, match="invalid literal"):
        pool.decode(encoded(), "a", decoder_finishes.foreign)  # type: ignore[arg-type] # the test
    assert pool.decode(encoded(), "a").width == 20


def test_a_process_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from edje_qdrant.images import decoder_pool

    monkeypatch.setattr(decoder_pool, "_MAIN", "raise SystemExit(5)")
    monkeypatch.setattr(decoder_pool, "_idle", [])
    with DecoderPool(1) as pool, pytest.raises(WorkerDiedError, match="exit code 5"):
        pool.decode(encoded(), "a")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with DecoderPool(1) as pool, pytest.raises(WorkerDiedError, match="cannot start"):
        pool.decode(encoded(), "a")


def test_many_threads_share_few_processes() -> None:
    with DecoderPool(2) as pool, ThreadPoolExecutor(8) as threads:
        images = [np.full((5, 5, 3), number, np.uint8) for number in range(40)]
        answers = threads.map(lambda image: pool.decode(encoded(image=image), "a").array, images)
        for image, answer in zip(images, answers, strict=True):
            np.testing.assert_array_equal(answer, image)


def test_a_relative_path_is_that_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "here.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path.parent / "there.png")
    with DecoderPool(1) as pool:
        monkeypatch.chdir(tmp_path)
        assert pool.decode("here.png").width == 8
        monkeypatch.chdir(tmp_path.parent)  # the process keeps the folder that it was started in
        assert pool.decode("there.png").width == 8
