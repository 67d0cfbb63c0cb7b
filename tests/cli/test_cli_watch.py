from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import child, refused, run
from index_stand_in import StandIn
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.ingest.watch import FolderWatch, WatchReport
from edje_qdrant.types import FailedImage

pytest.importorskip("watchfiles", reason="needs the extra watch")

WriteImages = Callable[..., list[Path]]


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_is_printed_while_a_folder_is_watched(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()  # may be empty at first

    def stand_in(self: FolderWatch, told: Callable[[WatchReport], None]) -> None:
        told(WatchReport(added=2, moved=1, failed=(FailedImage("/a\nb.png", "damaged"),)))
        told(WatchReport(kept=36))
        told(WatchReport(away="cannot read the folder"))
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderWatch, "run", stand_in)
    options = ("--index", tmp_path / "index", "--model", tiny_folder, "--watch")
    result = run("ingest", tmp_path / "photos", *options)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("0 added, 0 there already, 0 failed")
    assert lines[1].endswith(" 2 added, 1 moved, 1 failed; the collection holds 0")
    assert lines[2:4] == ["  1 x damaged", "      /a\\nb.png"]
    assert "36 images are gone at once and were kept" in lines[4]
    assert "cannot read the folder; nothing is deleted" in lines[5]
    assert result.stderr.splitlines()[-1] == "stopped; the collection holds 0 images"
    printed = run("ingest", tmp_path / "photos", *options, "--json").stdout.splitlines()
    data = [json.loads(line) for line in printed]
    assert data[1]["failed"] == [{"path": "/a\nb.png", "reason": "damaged"}]
    assert (data[1]["added"], data[2]["kept"], data[2]["points"]) == (2, 36, 0)


def test_failures_of_the_ingest_are_told_once(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "empty.png").touch()
    failed = FailedImage(str(tmp_path / "photos" / "empty.png"), "the file is empty")

    def stand_in(self: FolderWatch, told: Callable[[WatchReport], None]) -> None:
        told(WatchReport(failed=(failed,)))
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderWatch, "run", stand_in)
    options = ("--index", tmp_path / "index", "--model", tiny_folder, "--watch")
    assert run("ingest", tmp_path / "photos", *options).stdout.count("empty.png") == 1


def test_what_cannot_be_watched_is_refused(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "list.jsonl"
    manifest.write_text('{"path": "a.png"}')
    options = ("--index", tmp_path / "index", "--model", tiny_folder, "--watch")
    assert "only folders can be watched" in refused(run("ingest", manifest, *options))
    (tmp_path / "empty").mkdir()
    line = refused(run("ingest", tmp_path / "empty", *options, "--prune"))
    assert "holds no image" in line  # else it would delete all
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    assert "'edje-qdrant[watch]'" in refused(run("ingest", tmp_path / "empty", *options))
    assert not (tmp_path / "index").exists()


class Watching:
    """`ingest --watch` as a process; its standard output goes to a file."""

    def __init__(self, folder: Path, out: Path, *options: object) -> None:
        self.out = out
        command = ["ingest", folder, "--watch", "--json", *options]
        with out.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edje_qdrant", *map(str, command)],
                stdout=file,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def points(self) -> int:
        lines = self.lines()
        return int(lines[-1]["points"]) if lines else -1

    def end(self, number: int = signal.SIGINT) -> str:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        return errors


@pytest.fixture
def watch() -> Iterator[Callable[..., Watching]]:
    started: list[Watching] = []

    def start(*args: Any) -> Watching:
        started.append(Watching(*args))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.mark.slow
def test_a_folder_is_followed_by_a_process(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages, watch: Callable[..., Watching]
) -> None:
    photos = tmp_path / "photos"
    paths = write_images(photos, 12)
    place = ("--index", tmp_path / "index", "--model", tiny_folder)
    process = watch(photos, tmp_path / "1.jsonl", *place)
    until(lambda: process.points() == 12)
    # Thousands at once, the first of them while the others are being written.
    (photos / "burst").mkdir()
    for number in range(2000):
        Image.new("RGB", (16, 16), (number % 256, number // 256, 99)).save(
            photos / "burst" / f"{number}.png"
        )
    until(lambda: process.points() == 2012, 240)
    # A file that is written slowly.
    data = paths[0].read_bytes() + b"\0" * 7
    with (photos / "slow.png").open("wb") as file:
        for start in range(0, len(data), len(data) // 5):
            file.write(data[start : start + len(data) // 5])
            file.flush()
            os.fsync(file.fileno())
            time.sleep(0.7)
    until(lambda: process.points() == 2013)
    assert not any(line["failed"] for line in process.lines())
    # Edited in place, replaced as editors do, moved, moved out, deleted.
    Image.new("RGB", (40, 30), "red").save(paths[1])
    Image.new("RGB", (40, 30), "blue").save(photos / ".tmp", "PNG")
    (photos / ".tmp").replace(paths[2])
    (photos / "burst").rename(photos / "2024")
    paths[3].rename(tmp_path / "out.png")
    for number in range(500):
        (photos / "2024" / f"{number}.png").unlink()
    until(lambda: process.points() == 1512)
    # All gone at once.
    photos.rename(tmp_path / "away")
    photos.mkdir()
    until(lambda: process.lines()[-1].get("kept", 0) > 0 or process.lines()[-1].get("away"))
    time.sleep(8)
    assert process.points() == 1512
    photos.rmdir()
    (tmp_path / "away").rename(photos)
    assert "stopped; the collection holds 1512 images" in process.end()
    # What happened in between is made up for, and nothing is encoded a second time.
    paths[4].unlink()
    (photos / "2024").rename(photos / "2025")
    again = watch(photos, tmp_path / "2.jsonl", *place)
    until(lambda: again.points() == 1511)
    assert sum(line["added"] for line in again.lines()) == 0
    again.end(signal.SIGTERM)
    with ImageCollection.open(tmp_path / "index", "images") as collection:
        stored = {p.payload["path"] for page in collection.index.scroll() for p in page}
    assert stored == {str(path) for path in photos.rglob("*.png")}
    assert run("verify", *place[:2]).exit_code == 0


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_burst(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages, watch: Callable[..., Watching]
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, 2)
    place = ("--index", tmp_path / "index", "--model", tiny_folder)
    process = watch(photos, tmp_path / "1.jsonl", *place)
    until(lambda: process.points() == 2)
    for number in range(3000):
        Image.new("RGB", (16, 16), (number % 256, number // 256, 99)).save(photos / f"{number}.png")
    until(lambda: process.points() > 2)
    assert "stopped; the collection holds" in process.end()
    again = watch(photos, tmp_path / "2.jsonl", *place)
    until(lambda: again.points() == 3002, 240)
    again.end()
    assert run("verify", *place[:2]).exit_code == 0


@pytest.mark.slow
def test_a_service_and_a_watch_share_a_server(
    tmp_path: Path,
    tiny_folder: Path,
    write_images: WriteImages,
    watch: Callable[..., Watching],
    stand_in: StandIn,
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, 4)
    place = ("--url", stand_in.url, "--model", tiny_folder)
    process = watch(photos, tmp_path / "1.jsonl", *place)
    until(lambda: process.points() == 4)
    with ImageCollection.open(stand_in.url, "images") as collection:  # as a service does
        shutil.copy(photos / "picture-0000.png", photos / "copy.png")
        Image.new("RGB", (40, 30), "red").save(photos / "red.png")
        until(lambda: len(collection) == 5)
        (photos / "red.png").unlink()
        until(lambda: len(collection) == 4)
    process.end()


@pytest.mark.slow
def test_a_folder_that_a_service_has_open_is_watched_by_the_service(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    pytest.importorskip("fastapi", reason="needs the extra web")
    import httpx
    from service_process import ServiceProcess

    photos, index = tmp_path / "photos", tmp_path / "index"
    write_images(photos, 4)
    run("ingest", photos, "--index", index, "--model", tiny_folder)
    service = ServiceProcess(
        "--index", index, "--model", tiny_folder, "--images", photos, "--watch"
    )
    service.wait()

    def count() -> int:
        return int(httpx.get(f"{service.url}/v1/collection").json()["pictures"])

    try:
        Image.new("RGB", (40, 30), "red").save(photos / "red.png")
        until(lambda: count() == 5)
        hits = httpx.post(f"{service.url}/v1/search", json={"text": "red"}).json()["hits"]
        (red,) = (hit for hit in hits if hit["payload"]["path"] == "red.png")
        assert httpx.get(f"{service.url}/v1/images/{red['image_id']}/thumbnail").status_code == 200
        other = child("ingest", photos, "--index", index)  # says what has it open
        assert "open in another process" in other.communicate(timeout=60)[1]
        (photos / "red.png").unlink()
        until(lambda: count() == 4)
    finally:
        service.end()
