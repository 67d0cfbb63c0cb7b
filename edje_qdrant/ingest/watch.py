"""Keep a collection the same as a folder: images that are added, edited, moved and deleted.

What has to be done is found by comparing the folder with what was there at the last look, never by
the system's events alone: events are lost, where thousands come at once and on network disks. They
only say when to look.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, EdjeError, MissingExtraError
from edje_qdrant.files import kind_of
from edje_qdrant.images import DecodeLimits, default_workers, error_reason, part_of
from edje_qdrant.ingest.copies import (
    Place,
    follow_copies,
    is_gone,
    is_surely_gone,
    next_place,
    set_places,
)
from edje_qdrant.ingest.decode import KnownImage, decode_image
from edje_qdrant.ingest.file_fields import FileFields
from edje_qdrant.ingest.known_paths import KnownPaths
from edje_qdrant.ingest.pipeline import IngestRun
from edje_qdrant.ingest.prune import points_at
from edje_qdrant.sources.folder import IMAGE_SUFFIXES, FolderSource
from edje_qdrant.sources.listed import ListSource
from edje_qdrant.sources.parts import (
    DOCUMENT_SUFFIXES,
    FILM_SUFFIXES,
    PartsSource,
    file_of,
    interval_of,
    join_failures,
)
from edje_qdrant.sources.read import OTHER_PATHS, other_paths
from edje_qdrant.threads import batches
from edje_qdrant.types import FailedImage, Point

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["FolderWatch", "WatchReport", "check_watched"]

T = TypeVar("T")

# Paths that are ingested before a report and the next look for a stop.
_AT_ONCE = 256
# Seconds between two looks without an event; on network disks there are none.
_EVERY, _EVERY_WITHOUT_EVENTS = 60.0, 10.0
# A look takes at most this part of the time.
_SHARE = 0.1
# So many images that are gone at once, and more than half, are not deleted.
_MANY = 10
# Seconds after which images that were deleted before the start are deleted, even if some files are
# still being written.
_CATCH_UP = 60.0


@dataclass(frozen=True, slots=True)
class WatchReport:
    """Report what was done after one look at a folder.

    Attributes:
        added: Images added to the collection.
        moved: Images whose file was moved, or is gone and has a copy; their `path` was updated.
        deleted: Images deleted: their file is gone, or holds another image now.
        failed: Files that could not be read, each with the reason.
        kept: Images whose files are gone, so many at once that none was deleted.
        away: Why the folder cannot be read, so that nothing was done; None if it can.
    """

    added: int = 0
    moved: int = 0
    deleted: int = 0
    failed: tuple[FailedImage, ...] = ()
    kept: int = 0
    away: str | None = None

    def __str__(self) -> str:
        """Return the report in one line."""
        if self.away is not None:
            return f"{self.away}; nothing is deleted, and the folder is looked at again"
        parts = [
            *([f"{self.added} added"] if self.added else []),
            *([f"{self.moved} moved"] if self.moved else []),
            *([f"{self.deleted} deleted"] if self.deleted else []),
            *([f"{len(self.failed)} failed"] if self.failed else []),
        ]
        if self.kept:
            parts.append(
                f"{self.kept} images are gone at once and were kept, as a disk may be away; to "
                "delete them, stop this and run ingest with --prune"
            )
        return ", ".join(parts)


# Size, time of change and time of any change to the file's entry.
_Stamp = tuple[int, int, int]


@dataclass(slots=True)
class _File:
    """A file as it was ingested, and the ids of its images; none if it could not be read."""

    stamp: _Stamp
    device: int
    image_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Listing:
    files: dict[str, tuple[_Stamp, int]]
    unreadable: tuple[FailedImage, ...]


class FolderWatch:
    """Keep a collection the same as a folder; a context manager that ends its processes.

    A file is ingested when its size and times have stayed the same for `settle` seconds, so that it
    is whole, and its image deleted when the file has been gone for twice as long, so that a file
    that is moved or replaced keeps its image. An image of which there is another copy in the folder
    stays, and so does one of which an ingest found a copy elsewhere. Images whose `path` lies
    outside the folder are never deleted, nor are frames of films or pages of documents if they are
    not watched.

    If the folder cannot be read or holds nothing, or if more than half, and at least 10, images are
    gone at once, no image is deleted, as a disk may be away: the report says how many were kept.
    Nor is any deleted below a folder that is on another disk than the files were.

    Args:
        folder: The folder, searched as `ingest_images` does.
        collection: The collection, open.
        model: The model that the collection was created for.
        limits: Of the processes that decode; by default as in `ingest_images`.
        file_fields: The fields of payloads that are taken from the files.
        batch_size: Images encoded and written at a time.
        frames_every: Keep the frames of films, so far apart, too; see `ingest_images`.
        pdf_pages: Keep the pages of PDF documents, too.
        settle: Seconds; see above.
        wait: Seconds to wait for a server that is away, before it is an error.
        except_below: A folder whose images are neither added nor deleted; None for none.
        clock: Returns seconds.

    Raises:
        ConfigError: There is no such folder.
        MissingExtraError: The extra `watch` is not installed.
        ContractMismatchError: Another model wrote the collection.
        StoreError: The collection cannot be written.

    Example:
        >>> def follow(folder, collection, model):  # until Ctrl-C
        ...     with FolderWatch(folder, collection, model) as watch:
        ...         watch.run(lambda report: print(report))
    """

    def __init__(
        self,
        folder: str | Path,
        collection: ImageCollection,
        model: EDJEModel,
        *,
        limits: DecodeLimits | None = None,
        file_fields: FileFields = FileFields(),  # noqa: B008 - frozen
        batch_size: int = 8,
        frames_every: str | float | None = None,
        pdf_pages: bool = False,
        settle: float = 2.0,
        wait: float = 300,
        except_below: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = Path(os.path.abspath(Path(folder).expanduser()))
        check_watched(self.folder)
        collection.require(model.contract())
        collection.require_writable()
        self._collection, self._model = collection, model
        self._file_fields, self._batch_size = file_fields, batch_size
        self._settle, self._wait, self._clock = settle, wait, clock
        self._every = None if frames_every is None else interval_of(frames_every)
        self._pages = pdf_pages
        self._suffixes = IMAGE_SUFFIXES
        if self._every is not None:
            self._suffixes |= FILM_SUFFIXES
        if pdf_pages:
            self._suffixes |= DOCUMENT_SUFFIXES
        limits = DecodeLimits(default_workers()) if limits is None else limits
        self._threads = ThreadPoolExecutor(limits.workers)
        self._decoders = limits.pool()
        # No path begins with a null character.
        self._except = "\0" if except_below is None else os.path.join(except_below.absolute(), "")
        self._files: dict[str, _File] = {}
        self._pending: dict[str, tuple[_Stamp, float]] = {}
        self._gone: dict[str, float] = {}
        self._kept: set[str] = set()
        self._unreadable: set[FailedImage] = set()
        self._away: str | None = None
        self._listing_seconds = 0.0
        self._looked = self._caught_up = False
        self._began = clock()
        self._known: KnownPaths | None = None
        self._stop = threading.Event()

    def __enter__(self) -> FolderWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that decode."""
        self._stop.set()
        self._decoders.close()
        self._threads.shutdown(cancel_futures=True)

    def stop(self) -> None:
        """Let `run` end after the batch that it encodes; safe in any thread."""
        self._stop.set()

    def run(self, told: Callable[[WatchReport], None]) -> None:
        """Keep the collection the same as the folder until `stop` is called.

        Args:
            told: Called with each report in which something was done, or has to be known.

        Raises:
            StoreError: The collection cannot be read or written.
            EngineUnavailableError: The server cannot be reached any more.
        """
        changed = True
        earliest = latest = self._clock()
        for event in _ticks(self.folder, self._stop):
            changed = changed or event is True
            waits = bool(self._pending) or len(self._gone) > len(self._kept)
            now = self._clock()
            if now < earliest or not (changed or waits or now >= latest):
                continue
            changed = False
            for report in self.look():
                told(report)
            now = self._clock()
            earliest = now + self._listing_seconds / _SHARE
            latest = max(earliest, now + (_EVERY_WITHOUT_EVENTS if event is None else _EVERY))

    def look(self) -> Iterator[WatchReport]:
        """Look at the folder once, and do what can be done; yield what was done, in parts.

        Raises:
            StoreError: The collection cannot be read or written.
            EngineUnavailableError: The server cannot be reached.
        """
        started = self._clock()
        listing = self._list()
        self._listing_seconds = self._clock() - started
        if isinstance(listing, str):
            if self._away != listing:
                self._away = listing
                yield WatchReport(away=listing)
            return
        self._away = None
        new = tuple(one for one in listing.unreadable if one not in self._unreadable)
        self._unreadable = {*listing.unreadable}
        if new:
            yield WatchReport(failed=new)
        for batch in batches(self._settled(listing), _AT_ONCE):
            report = self._ingest(batch, listing)
            if report != WatchReport():
                yield report
            if self._stop.is_set():
                return
        yield from self._delete_gone(listing)
        self._looked = True
        # Not earlier: an image may have been moved to a file that has not settled yet.
        if not self._caught_up and (not self._pending or started - self._began > _CATCH_UP):
            yield from self._delete_older(listing)
            self._caught_up, self._known = True, None

    def _list(self) -> _Listing | str:
        """List the folder; return why, if it cannot be read."""
        files: dict[str, tuple[_Stamp, int]] = {}
        unreadable = []
        try:
            for item in FolderSource(self.folder, self._suffixes).images():
                if isinstance(item, FailedImage):
                    unreadable.append(item)
                    continue
                if item.path.startswith(self._except):
                    continue
                try:
                    found = os.stat(item.path)
                except FileNotFoundError:
                    continue  # deleted since it was listed, or a link to nothing
                except OSError as error:  # it may be there
                    unreadable.append(FailedImage(item.path, error_reason(error)))
                    continue
                stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                files[item.path] = (stamp, found.st_dev)
        except ConfigError as error:
            return str(error)
        return _Listing(files, tuple(unreadable))

    def _settled(self, listing: _Listing) -> list[str]:
        """Return the paths of new and changed files that have stayed the same for long enough."""
        now = self._clock()
        changed: dict[str, tuple[_Stamp, float]] = {}
        for path, (stamp, device) in listing.files.items():
            known = self._files.get(path)
            if known is not None and known.stamp == stamp:
                known.device = device  # a disk may have another number after it was away
                continue
            before = self._pending.get(path)
            if before is not None and before[0] == stamp:
                changed[path] = before
            elif self._looked or time.time() - stamp[2] / 1e9 < self._settle:
                changed[path] = (stamp, now)
            else:
                changed[path] = (stamp, now - self._settle)
        self._pending = changed
        return [path for path, (_, since) in changed.items() if now - since >= self._settle]

    def _ingest(self, paths: Sequence[str], listing: _Listing) -> WatchReport:
        """Ingest files, and delete the old versions of those that were edited."""
        ids: dict[str, set[str]] = {path: set() for path in paths}
        moved: set[str] = set()

        def looked_up(batch: Sequence[KnownImage], existing: set[str]) -> set[str]:
            for image in batch:
                ids.setdefault(file_of(image.listed.path), set()).add(image.image_id)
            copies = [
                (image.image_id, image.listed.path)
                for image in batch
                if image.image_id in existing and not image.at_path
            ]
            moved.update(self._follow_copies(copies))
            return set()

        run = IngestRun(self._collection, self._model, give_up=self._give_up)
        run.copies = []
        decode = partial(
            decode_image,
            model=self._model,
            decoders=self._decoders,
            file_fields=self._file_fields,
        )
        listed = PartsSource(ListSource(paths), self._every, pages=True).images()
        # Later, the times of files are compared more exactly than they are stored.
        known_paths = None if self._caught_up else self._known_paths()
        try:
            with self._patience(), run.bar:
                missing = run.missing(
                    self._until_stopped(listed), self._threads, looked_up, known_paths
                )
                run.decode_and_write(
                    self._until_stopped(missing), decode, self._threads, self._batch_size
                )
                moved.update(self._follow_copies(run.copies))
        except BaseException:
            self._decoders.close()  # no thread waits for a decoder any more
            with suppress(EdjeError):
                self._collection.flush()
            raise
        self._collection.flush()
        if self._stop.is_set():
            return WatchReport(run.added, len(moved))
        failed = {file_of(failure.path) for failure in run.failed}
        for path in paths:
            before = self._files.get(path)
            if path in failed:  # what was read from it before stays
                ids[path] = set() if before is None else {*before.image_ids}
            self._files[path] = _File(*listing.files[path], frozenset(ids[path]))
            del self._pending[path]
        deleted, renamed = self._follow(paths) if self._caught_up else (0, 0)
        failures = tuple(join_failures(run.failed))
        return WatchReport(run.added, len(moved) + renamed, deleted, failures)

    def _delete_gone(self, listing: _Listing) -> Iterator[WatchReport]:
        """Delete the images of files that have been gone for long enough."""
        now = self._clock()
        below = tuple(os.path.join(one.path, "") for one in listing.unreadable)
        unreadable = {one.path for one in listing.unreadable}
        self._gone = {
            path: self._gone.get(path, now)
            for path in self._files
            if path not in listing.files and path not in unreadable and not path.startswith(below)
        }
        self._kept &= self._gone.keys()
        due = [
            path
            for path, since in self._gone.items()
            if path not in self._kept and now - since >= 2 * self._settle
        ]
        if not due:
            return
        there = {
            key
            for path, file in self._files.items()
            if path not in self._gone
            for key in file.image_ids
        }
        lost = {
            path
            for path in self._gone.keys() - self._kept
            if not self._files[path].image_ids <= there
        }
        if not _too_many(len(lost), len(there) + len(lost)):
            devices: dict[str, int] = {}
            lost = {path for path in lost if _device(path, devices) != self._files[path].device}
        if lost:
            self._kept |= lost
            kept = {key for path in lost for key in self._files[path].image_ids}
            yield WatchReport(kept=len(kept))
        gone = [path for path in due if path not in lost]
        for path in gone:
            del self._files[path], self._gone[path]
        deleted, moved = self._follow(gone)
        if deleted or moved:
            yield WatchReport(moved=moved, deleted=deleted)

    def _delete_older(self, listing: _Listing) -> Iterator[WatchReport]:
        """Delete images of the folder whose files were deleted or edited while this did not run."""
        below = tuple(os.path.join(one.path, "") for one in listing.unreadable)
        unreadable = {one.path for one in listing.unreadable} | self._pending.keys()
        inside = os.path.join(self.folder, "")

        def is_older(image_id: str, path: str) -> bool:
            return (
                path.startswith(inside)
                and self._is_watched(path)
                and file_of(path) not in unreadable
                and not path.startswith((*below, self._except))
                and self._is_older(image_id, path)
            )

        older: list[Point] = []
        places: dict[str, Place] = {}
        for page in self._collection.index.scroll():
            others = {point.id for point in self._collection.of_other_programs(page)}
            for point in page:
                if point.id in others:
                    continue
                path, copies = str(point.payload.get("path", "")), other_paths(point.payload)
                left = [each for each in copies if not is_older(point.id, each)]
                if is_older(point.id, path):
                    older.append(Point(point.id, point.vector, {"path": path, OTHER_PATHS: left}))
                elif left != copies:
                    places[point.id] = Place(None, left)
        with self._patience():
            for ids in batches(places, _AT_ONCE):
                set_places(self._collection, {image_id: places[image_id] for image_id in ids})
        gone = [point for point in older if file_of(point.payload["path"]) not in self._files]
        if _too_many(len(gone), len(self._files) + len(gone)):
            yield WatchReport(kept=len(gone))
            older = [point for point in older if file_of(point.payload["path"]) in self._files]
        deleted, moved = self._replace(older)
        if deleted or moved:
            yield WatchReport(moved=moved, deleted=deleted)

    def _follow_copies(self, copies: Sequence[tuple[str, str]]) -> set[str]:
        return follow_copies(self._collection, copies, moved_in=(os.path.join(self.folder, ""),))

    def _has(self, image_id: str, path: str) -> bool:
        """Return whether a path is outside the folder, or may hold an image."""
        if not path.startswith(os.path.join(self.folder, "")):
            return True
        file = self._files.get(file_of(path))
        return not is_gone(path) if file is None else image_id in file.image_ids

    def _is_older(self, image_id: str, path: str) -> bool:
        """Return whether the file at the path of a stored image does not hold it any more."""
        file = self._files.get(file_of(path))
        return file is None or (bool(file.image_ids) and image_id not in file.image_ids)

    def _is_watched(self, path: str) -> bool:
        """Return whether a path names a file, or a part of one whose parts are watched."""
        return os.path.splitext(file_of(path))[1].lower() in self._suffixes

    def _follow(self, paths: Sequence[str]) -> tuple[int, int]:
        """Delete, or give another path, images at paths that hold another image now, or none.

        Returns:
            The numbers of images deleted, and of those that have another path now.
        """
        points = points_at(self._collection, {*paths})
        for field, suffixes in (("video", FILM_SUFFIXES), ("document", DOCUMENT_SUFFIXES)):
            files = {path for path in paths if os.path.splitext(path)[1].lower() in suffixes}
            points += points_at(self._collection, files, field)
        return self._replace([p for p in points if self._is_older(p.id, p.payload["path"])])

    def _replace(self, older: Sequence[Point]) -> tuple[int, int]:
        if not older:
            return 0, 0
        copies = {key: path for path, file in self._files.items() for key in file.image_ids}
        moved: dict[str, Place] = {}
        gone: list[str] = []
        for point in older:
            others = [each for each in other_paths(point.payload) if self._has(point.id, each)]
            if point.id in copies:
                path = _in_file(point.payload["path"], copies[point.id])
                others = [each for each in others if each != path and not is_surely_gone(each)]
                moved[point.id] = Place(path, others)
            elif place := next_place(others):
                moved[point.id] = place
            else:
                gone.append(point.id)
        with self._patience():
            set_places(self._collection, moved)
            for ids in batches(gone, _AT_ONCE):
                self._collection.delete(ids)
            self._collection.flush()
        return len(gone), len(moved)

    def _known_paths(self) -> KnownPaths:
        if self._known is None:
            with self._patience():
                self._known = KnownPaths(self._collection)
        return self._known

    def _until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        return takewhile(lambda _: not self._stop.is_set(), items)

    def _patience(self) -> AbstractContextManager[None]:
        # Not for no time at all: other threads that use the collection would wait, too.
        return self._collection.patient(self._wait) if self._wait else nullcontext()

    def _give_up(self) -> None:
        if self._wait:
            self._collection.index.give_up()


def check_watched(folder: Path) -> None:
    """Check that a folder can be watched.

    Raises:
        ConfigError: It is no folder.
        MissingExtraError: The extra `watch` is not installed.
    """
    if kind_of(folder, ConfigError) != "folder":
        raise ConfigError(f"{folder} is no folder; only folders can be watched")
    try:
        import watchfiles
    except ImportError as error:
        raise MissingExtraError("watchfiles", "watch") from error
    del watchfiles


def _in_file(path: str, file: str) -> str:
    """Return the path of the same part of another file."""
    part = part_of(path)
    return file if part is None else replace(part, path=file).name


def _too_many(gone: int, there: int) -> bool:
    """Return whether so many of the images that were there are gone that a disk may be away."""
    return gone > 1 and (gone == there or (gone >= _MANY and 2 * gone > there))


def _device(path: str, known: dict[str, int]) -> int:
    """Return the device of the nearest folder above a path that is there."""
    folder = os.path.dirname(path)
    if folder not in known:
        try:
            known[folder] = os.stat(folder).st_dev
        except OSError:
            known[folder] = _device(folder, known) if os.path.dirname(folder) != folder else -1
    return known[folder]


def _ticks(folder: Path, stop: threading.Event) -> Iterator[bool | None]:
    """Yield every second, and as soon as something changes, until a stop.

    Yields:
        Whether something has changed; None where the system tells of no changes: the folder is
        away, or more folders are watched than the system allows.
    """
    from watchfiles import watch

    while not stop.is_set():
        with suppress(OSError, RuntimeError):  # watchfiles raises both
            root = os.stat(folder)
            for changes in watch(
                folder, watch_filter=None, stop_event=stop, rust_timeout=1000,
                yield_on_timeout=True, ignore_permission_denied=True,
            ):  # fmt: skip
                yield bool(changes)
                if not os.path.samestat(os.stat(folder), root):
                    break
            continue
        for _ in range(10):
            yield None
            if stop.wait(1):
                return
