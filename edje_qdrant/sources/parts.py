"""Frames of films and pages of PDF documents, listed in the place of their files."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import (
    DecoderPool,
    Part,
    Survey,
    error_reason,
    image_file_id,
    part_id,
    part_of,
    size_and_time,
)
from edje_qdrant.images.parts import PartKind
from edje_qdrant.sources.left_out import VIDEO_SUFFIXES
from edje_qdrant.sources.protocol import ImageSource, ListedImage, Listing
from edje_qdrant.sources.stamp import file_stamp
from edje_qdrant.threads import in_threads
from edje_qdrant.types import FailedImage, Payload

__all__ = [
    "DOCUMENT_SUFFIXES",
    "FILM_SUFFIXES",
    "PartsSource",
    "file_of",
    "interval_of",
    "join_failures",
    "part_fields",
    "stored_part_id",
]

#: Files that count as films. Whether they are is told by their content. Cameras write LRV files
#: beside films: the same films again, only smaller.
FILM_SUFFIXES = (VIDEO_SUFFIXES - {".lrv"}) | {".asf", ".dv", ".m2v", ".qt", ".ts"}
#: Files that count as documents.
DOCUMENT_SUFFIXES = frozenset({".pdf"})

_INTERVAL = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h)?\s*")
_MILLISECONDS = {"ms": 1, "s": 1000, None: 1000, "m": 60_000, "h": 3_600_000}
_LONGEST = 24 * 3_600_000

_KEPT_IDS = 64


def interval_of(text: str | float) -> int:
    """Return the milliseconds of an interval: `2s`, `500ms`, `1m`, or a number of seconds.

    Raises:
        ConfigError: It is no interval, or not of 1 ms to 24 h in whole milliseconds.
    """
    found = None if isinstance(text, bool) else _INTERVAL.fullmatch(str(text))
    try:
        exact = None if found is None else Decimal(found[1]) * _MILLISECONDS[found[2]]
    except InvalidOperation:
        exact = None
    if exact is None or exact != exact.to_integral_value() or not 1 <= exact <= _LONGEST:
        raise ConfigError(
            f"frames_every is {text!r}; give the time from one frame to the next as 2s, 500ms, 1m "
            "or a number of seconds, from 1ms to 24h, in whole milliseconds"
        )
    return int(exact)


class PartsSource(ImageSource):
    """A source whose films and documents are replaced by their frames and pages.

    Args:
        source: Lists images, films and documents.
        every: Milliseconds from one frame to the next; None lists no frames.
        pages: Whether documents in folders are read.

    Attributes:
        kinds: What is listed of files with several images; see `ImageSource`.
    """

    def __init__(self, source: ImageSource, every: int | None, *, pages: bool) -> None:
        self.name, self.scope = source.name, source.scope
        self._source, self._every = source, every
        frames: frozenset[PartKind] = frozenset({"frame"} if every is not None else ())
        self.kinds = frames | ({"page"} if pages else set())
        self._surveys: dict[tuple[str, tuple[int, int], bool], Survey] = {}

    @property
    def left_out(self) -> Mapping[str, int]:  # type: ignore[override] # of the source, as it is now
        """Return what the source holds beside images."""
        return self._source.left_out

    def images(self) -> Listing:
        """List the source; a film or a document that cannot be read is listed as failed."""
        with DecoderPool(1) as decoders:
            for item in self._source.images():
                kind = _kind(item)
                if isinstance(item, FailedImage) or kind is None:
                    yield item
                else:
                    yield from self._parts(item, kind, decoders)

    def count(self) -> int | None:
        """Return how many images are listed, by what films say of their length."""
        if self._source.count() is None:
            return None
        total = 0

        def with_parts() -> Iterator[ListedImage]:
            nonlocal total
            for item in self._source.images():
                if isinstance(item, ListedImage) and _kind(item) in self.kinds:
                    yield item
                else:
                    total += 1

        with DecoderPool() as decoders, ThreadPoolExecutor(decoders.workers) as threads:
            count = partial(self._count, decoders=decoders)
            counts = in_threads(threads, count, with_parts(), 2 * decoders.workers)
            in_files = sum(counts)
        return total + in_files

    def _count(self, item: ListedImage, decoders: DecoderPool) -> int:
        kind = _kind(item)
        assert kind is not None
        try:
            survey, _ = self._survey(item.path, kind, decoders, quick=True)
        except ImageReadError:
            return 1
        return survey.pages or len(self._times(survey))

    def _times(self, survey: Survey) -> range:
        assert self._every is not None
        return range(0, survey.last + 1, self._every)

    def _parts(self, item: ListedImage, kind: PartKind, decoders: DecoderPool) -> Listing:
        if kind == "frame" and self._every is None:
            reason = "a film; its frames are read with --frames-every 2s (frames_every)"
            yield FailedImage(item.path, reason)
            return
        try:
            survey, opened = self._survey(item.path, kind, decoders)
        except ImageReadError as error:
            yield FailedImage(item.path, error.reason)
            return
        stamp = file_stamp(item.path)
        for at in range(1, survey.pages + 1) if kind == "page" else self._times(survey):
            part = Part(item.path, kind, at, stamp=opened)
            own = part_fields(part)
            fields = {name: value for name, value in item.fields.items() if name not in own}
            yield ListedImage(part.name, fields, stamp=stamp, part=part)
        if survey.whole is not None:
            yield FailedImage(
                item.path,
                f"an incomplete film, which ends after {_clock(survey.last)} of "
                f"{_clock(survey.whole)}; the frames until there were read",
            )

    def _survey(
        self, path: str, kind: PartKind, decoders: DecoderPool, *, quick: bool = False
    ) -> tuple[Survey, tuple[int, int]]:
        try:
            stamp = size_and_time(os.stat(path))
        except (OSError, ValueError) as error:
            raise ImageReadError(path, error_reason(error)) from error
        key = path, stamp, quick
        if key not in self._surveys:  # a source is listed several times
            self._surveys[key] = decoders.survey(path, kind, quick=quick)
        return self._surveys[key], stamp


def _kind(item: ListedImage | FailedImage) -> PartKind | None:
    """Return what a local file of a source holds, by its suffix."""
    if isinstance(item, FailedImage) or item.content is not None or item.reader is not None:
        return None
    suffix = os.path.splitext(item.path)[1].lower()
    if suffix in FILM_SUFFIXES:
        return "frame"
    return "page" if suffix in DOCUMENT_SUFFIXES else None


def part_fields(part: Part) -> Payload:
    """Return what the payload of a frame or a page says beside its path."""
    if part.kind == "page":
        return {"document": part.path, "page": part.at}
    return {"video": part.path, "time": part.at / 1000}


def file_of(path: str) -> str:
    """Return the file that a stored path names: of a frame or a page, the film or the document."""
    part = part_of(path)
    return path if part is None else part.path


def stored_part_id(part: Part) -> str:
    """Return the id that an ingest gives to a frame or a page; the file is read, unless it was.

    Raises:
        ImageReadError: The file cannot be read.
    """
    return part_id(_file_id(part.path), part.fragment)


_ids: dict[tuple[str, tuple[int, int]], str] = {}
_ids_lock = threading.Lock()
_reading: dict[str, threading.Lock] = {}


def _file_id(path: str) -> str:
    """Return `image_file_id`, remembered for the files that were read last, while unchanged."""
    try:
        key = path, size_and_time(os.stat(path))
    except (OSError, ValueError) as error:
        raise ImageReadError(path, error_reason(error)) from error
    with _ids_lock:
        reading = _reading.setdefault(path, threading.Lock())
    with reading:  # the first thread reads it, the others wait
        found = _ids.get(key)
        if found is None:
            found = image_file_id(path)
            with _ids_lock:
                _ids[key] = found
                for old in [*_ids][:-_KEPT_IDS]:
                    del _ids[old]
                    _reading.pop(old[0], None)
    return found


def join_failures(failed: Iterable[FailedImage]) -> list[FailedImage]:
    """Return failures with one for each film and document, in the place of its first."""
    joined: dict[Any, tuple[FailedImage, int]] = {}
    for number, failure in enumerate(failed):
        part = part_of(failure.path)
        key = number if part is None else (part.kind, part.path)
        first, count = joined.get(key, (failure, 0))
        joined[key] = first, count + 1
    return [_with_others(first, count - 1) for first, count in joined.values()]


def _with_others(failure: FailedImage, others: int) -> FailedImage:
    if not others:
        return failure
    part = part_of(failure.path)
    what = "page" if part is not None and part.kind == "page" else "frame"
    plural = "" if others == 1 else "s"
    return FailedImage(failure.path, f"{failure.reason} (and {others} other {what}{plural} of it)")


def _clock(milliseconds: int) -> str:
    seconds = milliseconds // 1000
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
