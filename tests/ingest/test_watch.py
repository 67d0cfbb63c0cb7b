from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from document_files import write_document
from film_files import write_film
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, MissingExtraError
from edje_qdrant.images import DecodeLimits
from edje_qdrant.ingest import watch
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.ingest.watch import FolderWatch, WatchReport, check_watched
from edje_qdrant.model import EDJEModel

WriteImages = Callable[..., list[Path]]


class Watched:
    """A folder, its collection, and a watch of which the clock is the test's."""

    def __init__(self, folder: Path, collection: ImageCollection, model: EDJEModel) -> None:
        self.folder, self.collection, self.model = folder, collection, model
        self.now = 0.0
        self.watch = self.start()

    def start(self, **options: Any) -> FolderWatch:
        self.watch = FolderWatch(
            self.folder,
            self.collection,
            self.model,
            limits=DecodeLimits(1, 1 << 30, 60.0, 1 << 28),
            wait=0,
            clock=lambda: self.now,
            **options,
        )
        return self.watch

    def restart(self, **options: Any) -> None:
        self.watch.close()
        self.start(**options)

    def look(self, *, after: float = 0.0) -> list[WatchReport]:
        self.now += after
        return [*self.watch.look()]

    def settled(self) -> WatchReport:
        """Look until everything has settled; return the sum of the reports."""
        reports = [report for _ in range(5) for report in self.look(after=1.0)]
        return WatchReport(
            sum(report.added for report in reports),
            sum(report.moved for report in reports),
            sum(report.deleted for report in reports),
            tuple(failure for report in reports for failure in report.failed),
            sum(report.kept for report in reports),
            next((report.away for report in reports if report.away), None),
        )

    def names(self) -> list[str]:
        points = (point for page in self.collection.index.scroll() for point in page)
        return sorted(os.path.relpath(point.payload["path"], self.folder) for point in points)


@pytest.fixture
def watched(tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages) -> Iterator[Watched]:
    write_images(tmp_path / "photos", 4)
    with ImageCollection.create(tmp_path / "index", "images", tiny_model.contract()) as collection:
        made = Watched(tmp_path / "photos", collection, tiny_model)
        assert made.settled() == WatchReport(added=4)
        yield made
        made.watch.close()


FOUR = [f"picture-000{number}.png" for number in range(4)]


def test_nothing_is_done_without_a_change(watched: Watched) -> None:
    assert watched.settled() == WatchReport()
    watched.restart()
    assert watched.settled() == WatchReport()
    assert watched.names() == FOUR


def test_added_edited_moved_and_deleted_files(watched: Watched) -> None:
    folder = watched.folder
    new = folder / "new.png"
    Image.new("RGB", (40, 30), "red").save(new)
    assert watched.settled() == WatchReport(added=1)
    Image.new("RGB", (40, 30), "blue").save(new)  # edited in place
    assert watched.settled() == WatchReport(added=1, deleted=1)
    (folder / "2024").mkdir()
    (folder / FOUR[0]).rename(folder / "2024" / "moved.png")
    assert watched.settled() == WatchReport(moved=1)
    (folder / FOUR[1]).unlink()
    assert watched.settled() == WatchReport(deleted=1)
    assert watched.names() == ["2024/moved.png", "new.png", *FOUR[2:]]
    (folder / "2024").rename(folder / "2025")  # of files below, nothing is told
    assert watched.settled() == WatchReport(moved=1)
    assert watched.names() == ["2025/moved.png", "new.png", *FOUR[2:]]
    shutil.rmtree(folder / "2025")
    assert watched.settled() == WatchReport(deleted=1)


def test_an_image_stays_while_a_copy_of_its_file_does(watched: Watched) -> None:
    first = watched.folder / FOUR[0]
    shutil.copy(first, watched.folder / "copy.png")
    assert watched.settled() == WatchReport()
    first.unlink()
    assert watched.settled() == WatchReport(moved=1)
    assert watched.names() == ["copy.png", *FOUR[1:]]
    Image.new("RGB", (40, 30), "red").save(watched.folder / "copy.png")
    assert watched.settled() == WatchReport(added=1, deleted=1)


def test_a_file_is_read_when_it_has_stayed_the_same(watched: Watched, tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 80).save(whole)
    data, path = whole.read_bytes(), watched.folder / "slow.png"
    for end in range(0, len(data), len(data) // 3):
        path.write_bytes(data[:end])
        assert watched.look(after=1.5) == []
    path.write_bytes(data)
    assert watched.look(after=1.5) == []
    assert watched.look(after=2.0) == [WatchReport(added=1)]


def test_a_file_that_was_read_too_early_is_read_again(watched: Watched, tmp_path: Path) -> None:
    path = watched.folder / "half.png"
    path.write_bytes((watched.folder / FOUR[0]).read_bytes()[:60])
    (failed,) = watched.settled().failed
    assert failed.path == str(path)
    assert watched.settled() == WatchReport()  # told once
    Image.new("RGB", (40, 30), "red").save(path)
    assert watched.settled() == WatchReport(added=1)
    path.write_bytes(b"damaged")  # the image that was there stays
    assert len(watched.settled().failed) == 1
    assert "half.png" in watched.names()


def test_an_editor_that_replaces_the_file(watched: Watched) -> None:
    path = watched.folder / FOUR[0]
    hidden = path.with_name(".picture.tmp")
    Image.new("RGB", (40, 30), "red").save(hidden, "PNG")
    path.rename(path.with_name(f"{path.name}~"))
    assert watched.look(after=1.0) == []  # gone for a moment
    hidden.rename(path)
    assert watched.settled() == WatchReport(added=1, deleted=1)
    assert watched.names() == FOUR


def test_an_emptied_folder_deletes_nothing(watched: Watched) -> None:
    away = watched.folder.with_name("away")
    watched.folder.rename(away)
    report = watched.settled()
    assert "cannot read the folder" in str(report.away)
    assert watched.settled() == WatchReport()  # told once
    watched.folder.mkdir()  # as an unmounted disk's folder
    assert watched.settled() == WatchReport(kept=4)
    assert watched.settled() == WatchReport()
    (Image.new("RGB", (40, 30), "red")).save(watched.folder / "new.png")
    assert watched.settled() == WatchReport(added=1)
    assert watched.names() == sorted(["new.png", *FOUR])
    (watched.folder / "new.png").unlink()
    watched.restart()
    assert watched.settled() == WatchReport(kept=5)
    shutil.rmtree(watched.folder)
    away.rename(watched.folder)
    watched.restart()
    assert watched.settled() == WatchReport(deleted=1)  # new.png alone
    assert watched.names() == FOUR


def test_most_of_many_images_gone_at_once_are_kept(
    watched: Watched, write_images: WriteImages
) -> None:
    paths = write_images(watched.folder / "disk", 40)
    assert watched.settled().added == 36
    shutil.rmtree(watched.folder / "disk")
    assert watched.settled() == WatchReport(kept=36)
    assert len(watched.names()) == 40
    watched.restart()
    assert watched.settled() == WatchReport(kept=36)
    assert "36 images are gone at once and were kept" in str(WatchReport(kept=36))
    ingest_images(watched.folder, watched.collection, watched.model, prune=True, progress=False)
    assert watched.names() == FOUR
    assert len(paths) == 40


def test_a_folder_reorganised_is_no_loss(watched: Watched, write_images: WriteImages) -> None:
    for path in write_images(watched.folder / "all", 40)[4:]:
        (watched.folder / path.name).write_bytes(path.read_bytes())
    shutil.rmtree(watched.folder / "all")
    assert watched.settled().added == 36
    (watched.folder / "2024").mkdir()
    files = sorted(watched.folder.glob("*.png"))
    for path in files[:30]:
        path.rename(watched.folder / "2024" / path.name)
    files[30].unlink()
    assert watched.settled() == WatchReport(moved=30, deleted=1)


def test_images_below_a_folder_on_another_disk_are_kept(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    (watched.folder / FOUR[0]).unlink()
    monkeypatch.setattr(watch, "_device", lambda path, known: -5)
    assert watched.settled() == WatchReport(kept=1)
    assert watched.names() == FOUR


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user"
)
def test_images_in_a_folder_that_cannot_be_read_are_kept(watched: Watched) -> None:
    closed = watched.folder / "closed"
    closed.mkdir()
    Image.new("RGB", (40, 30), "red").save(closed / "red.png")
    assert watched.settled() == WatchReport(added=1)
    closed.chmod(0)
    try:
        assert [failure.path for failure in watched.settled().failed] == [str(closed)]
        assert "closed/red.png" in watched.names()
    finally:
        closed.chmod(0o755)
    assert watched.settled() == WatchReport()


def test_a_restart_catches_up(watched: Watched) -> None:
    watched.watch.close()
    (watched.folder / FOUR[0]).unlink()
    Image.new("RGB", (40, 30), "red").save(watched.folder / FOUR[1])
    (watched.folder / FOUR[2]).rename(watched.folder / "moved.png")
    Image.new("RGB", (40, 30), "blue").save(watched.folder / "new.png")
    outside = watched.folder.parent / "outside.png"
    Image.new("RGB", (40, 30), "green").save(outside)
    ingest_images([outside], watched.collection, watched.model, progress=False)
    watched.start()
    assert watched.settled() == WatchReport(added=2, moved=1, deleted=2)
    expected = ["../outside.png", "moved.png", "new.png", FOUR[1], FOUR[3]]
    assert watched.names() == sorted(expected)


def test_what_is_not_ingested_is_not_watched(watched: Watched) -> None:
    for name in ("@eaDir/a.png", ".hidden.png", "notes.txt"):
        (watched.folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(watched.folder / name, "PNG")
    assert watched.settled() == WatchReport()


def test_films_and_documents(watched: Watched) -> None:
    pytest.importorskip("av")
    pytest.importorskip("pypdfium2")
    film, paper = watched.folder / "a.mp4", watched.folder / "paper.pdf"
    frames = [f"a.mp4#t={second}" for second in range(4)]
    pages = [f"paper.pdf#page={number}" for number in (1, 2, 3)]
    write_film(film, 100)
    write_document(paper)
    assert watched.settled() == WatchReport()  # they are not asked for
    watched.restart(frames_every=1, pdf_pages=True)
    assert watched.settled() == WatchReport(added=7)
    assert watched.names() == sorted([*frames, *pages, *FOUR])
    film.rename(watched.folder / "b.mp4")
    assert watched.settled() == WatchReport(moved=4)
    shutil.copy(paper, watched.folder / "copy.pdf")
    assert watched.settled() == WatchReport()
    paper.unlink()
    assert watched.settled() == WatchReport(moved=3)
    moved = [f"b.mp4#t={second}" for second in range(4)]
    copied = [f"copy.pdf#page={number}" for number in (1, 2, 3)]
    assert watched.names() == sorted([*moved, *copied, *FOUR])
    points = [p.payload for page in watched.collection.index.scroll() for p in page]
    assert {p["document"] for p in points if "document" in p} == {str(watched.folder / "copy.pdf")}
    watched.restart()  # without them: they stay
    (watched.folder / "copy.pdf").unlink()
    assert watched.settled() == WatchReport()
    watched.restart(frames_every=2, pdf_pages=True)
    assert watched.settled() == WatchReport(deleted=5)
    assert watched.names() == sorted(["b.mp4#t=0", "b.mp4#t=2", *FOUR])
    write_film(watched.folder / "b.mp4", 50)
    assert watched.settled() == WatchReport(added=1, deleted=2)
    (watched.folder / "b.mp4").unlink()
    assert watched.settled() == WatchReport(deleted=1)
    assert watched.names() == FOUR


def test_a_failure_in_between_is_made_up_for(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 30), "red").save(watched.folder / "red.png")

    def broken(*_: object, **__: object) -> None:
        raise ConfigError("no")

    with monkeypatch.context() as patch:
        patch.setattr(watched.collection, "add_new", broken)
        with pytest.raises(ConfigError):
            watched.settled()
    watched.restart()  # as the service does
    assert watched.settled() == WatchReport(added=1)


def test_folders_alone_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="only folders can be watched"):
        check_watched(tmp_path / "none")
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[watch\]"):
        check_watched(tmp_path)


def test_a_system_that_tells_of_no_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watchfiles = pytest.importorskip("watchfiles")

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return self.is_set()

    def refused(*_: object, **__: object) -> Iterator[set[object]]:
        raise OSError("OS file watch limit reached")

    stop = Stop()
    ticks = watch._ticks(tmp_path, stop)
    with monkeypatch.context() as patch:
        patch.setattr(watchfiles, "watch", refused)
        assert [next(ticks) for _ in range(25)] == [None] * 25
    stop.set()
    assert [*ticks] == []
    stop = Stop()
    ticks = watch._ticks(tmp_path / "none", stop)
    assert next(ticks) is None  # until the folder is there
    (tmp_path / "none").mkdir()
    assert next(tick for tick in ticks if tick is not None) is False
    stop.set()
    assert [*ticks] == []


def test_a_watch_runs_until_it_is_stopped(
    tmp_path: Path, tiny_model: EDJEModel, write_images: WriteImages
) -> None:
    pytest.importorskip("watchfiles")
    write_images(tmp_path / "photos", 2)
    reports: list[WatchReport] = []
    with (
        ImageCollection.create(tmp_path / "index", "images", tiny_model.contract()) as collection,
        FolderWatch(
            tmp_path / "photos", collection, tiny_model, settle=0.1, wait=0,
            limits=DecodeLimits(1, 1 << 30, 60.0, 1 << 28),
        ) as made,
    ):  # fmt: skip
        thread = threading.Thread(target=made.run, args=(reports.append,))
        thread.start()
        until = time.monotonic() + 60
        while len(collection) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / "new.png")
        while len(collection) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        made.stop()
        thread.join(30)
        assert not thread.is_alive()
        assert sum(report.added for report in reports) == len(collection) == 3


def test_a_copy_elsewhere_keeps_its_image(watched: Watched) -> None:
    copy = watched.folder.parent / "elsewhere" / "copy.png"
    copy.parent.mkdir()
    for name in FOUR[:2]:
        shutil.copy(watched.folder / name, copy.with_name(name))
    assert watched.settled() == WatchReport()
    ingest_images(copy.parent, watched.collection, watched.model, progress=False)
    (watched.folder / FOUR[0]).unlink()
    assert watched.settled() == WatchReport(moved=1)
    assert watched.names() == sorted([f"../elsewhere/{FOUR[0]}", *FOUR[1:]])
    # And while nothing watches; what the folder forgets is no copy any more.
    shutil.copy(watched.folder / FOUR[2], watched.folder / "twin.png")
    assert watched.settled() == WatchReport()
    watched.watch.close()
    (watched.folder / FOUR[1]).unlink()
    (watched.folder / "twin.png").unlink()
    watched.start()
    assert watched.settled() == WatchReport(moved=1)
    assert watched.names() == sorted(
        [f"../elsewhere/{FOUR[0]}", f"../elsewhere/{FOUR[1]}", *FOUR[2:]]
    )
    points = [point for page in watched.collection.index.scroll() for point in page]
    assert not any("other_paths" in point.payload for point in points)
