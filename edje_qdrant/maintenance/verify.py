"""Verification of a collection: tokens, side files, and image files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from edje_qdrant.checks import check_number
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    ConfigError,
    ContractMismatchError,
    ImageReadError,
    StoreError,
    TokensNotFoundError,
)
from edje_qdrant.maintenance.arguments import check_collections, check_flags
from edje_qdrant.maintenance.encode_sample import differing_encodings
from edje_qdrant.maintenance.reports import Finding, FindingKind, VerifyReport
from edje_qdrant.maintenance.scan import own_points, pages, records_in_use, stored_codes
from edje_qdrant.sources.read import id_now, other_paths
from edje_qdrant.tokens.file_store import files_of
from edje_qdrant.tokens.manifest import Segment
from edje_qdrant.types import Point

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["path_of", "verify"]


def verify(
    collection: ImageCollection,
    *,
    images: bool = False,
    model: EDJEModel | None = None,
    sample: int = 64,
    progress: bool = False,
    wait: float = 300,
) -> VerifyReport:
    """Read the tokens of every point, and compare side files with the points' references.

    A point that another model wrote, or another program, is a finding of its own kind; its tokens
    are not read.

    Open the collection with `for_repair=True` to verify one that is too damaged to open otherwise.

    Args:
        collection: An open collection; searches continue.
        images: Also read the image files that payloads name, and compare their content with the
            ids.
        model: With `images`, encodes a sample of the images again, whose embeddings and tokens are
            compared with the stored ones; None compares none.
        sample: Size of the sample, drawn at random but the same at every call.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: An argument is invalid.
        ContractMismatchError: Another model wrote the collection.
        StoreError: The index or the store cannot be read.
        EngineUnavailableError: The server cannot be reached.
    """
    check_collections(collection=collection)
    check_flags(images=images, progress=progress)
    check_number("sample", sample, least=0)
    if model is not None:
        if not images:
            raise ConfigError("with a model, verify encodes images again; give images=True too")
        collection.require(model.contract())
    with collection.patient(wait):
        findings: list[Finding] = []
        files = files_of(collection.store)
        unlisted = [] if files is None else files.unlisted()
        records = _Records([] if files is None else [*files.segments(), *unlisted])
        points = 0
        unchanged = _Sample(sample if model is not None else 0)
        for page in pages(collection, "verifying", progress=progress):
            points += len(page)
            others = collection.of_other_programs(page)
            findings += [_finding("other program", point, _OTHER_PROGRAM) for point in others]
            page = own_points(page, others)
            found = stored_codes(collection, page)
            failed = found.failed
            findings += [
                _unreadable(point, failed[point.id]) for point in page if point.id in failed
            ]
            findings += records.mark_used(page, failed)
            findings += _other_words(collection, page)
            key = collection.codec.key
            findings += [
                _finding(
                    "other codec", found.points[row], f"{part.codec.key}, not {key}: transcode it"
                )
                for part in found.parts
                if part.codec.key != key
                for row in part.rows.tolist()
            ]
            if images:
                findings += _image_findings(page, failed, unchanged)
        if model is not None:
            chosen = {point.id: point for point in unchanged.points}
            files_of_ids = [(point.id, str(path_of(point))) for point in chosen.values()]
            findings += [
                _finding(
                    "encoded otherwise", chosen[image_id],
                    f"{words}; delete it and ingest the file again",
                )
                for image_id, words in differing_encodings(collection, model, files_of_ids)
            ]  # fmt: skip
        orphans = records.orphans()
        return VerifyReport(
            points,
            tuple(findings),
            sum(orphans.values()),
            sum(count * segment.record_bytes for segment, count in orphans.items()),
            tuple(f"tokens-{segment.id}.bin" for segment in unlisted),
        )


# What a finding says of a point that this package did not write.
_OTHER_PROGRAM = (
    "another program wrote it: it has no token reference, or its id is an integer; searches cannot "
    "rank it. repair deletes it if told to"
)


class _Sample:
    """A random sample of points that arrive one by one, the same for the same points."""

    def __init__(self, size: int) -> None:
        self._size, self._seen, self._random = size, 0, np.random.default_rng(0)
        self.points: list[Point] = []

    def add(self, point: Point) -> None:
        """Keep a point, or not."""
        self._seen += 1
        if len(self.points) < self._size:
            self.points.append(point)
        elif (place := int(self._random.integers(self._seen))) < self._size:
            self.points[place] = point


class _Records:
    """Marks for the records of side files that points refer to.

    Files and records written after the start are ignored: their points may not be scanned.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        # 1 for a record that a point refers to, 2 if it holds that point's tokens.
        self._marks = {s.id: np.zeros(s.num_records, np.uint8) for s in segments}

    def mark_used(
        self, page: Sequence[Point], failed: Mapping[str, StoreError]
    ) -> Iterator[Finding]:
        """Mark the records of points; yield points whose record belongs to another one too."""
        for used in records_in_use(page):
            marks = self._marks.get(used.segment)
            if marks is None or not 0 <= used.number < len(marks):
                continue
            if used.point.id in failed:
                marks[used.number] = max(marks[used.number], 1)
                continue
            if marks[used.number] == 2:
                where = f"record {used.number} of tokens-{used.segment}.bin"
                yield _finding("record used twice", used.point, where)
            marks[used.number] = 2

    def orphans(self) -> dict[Segment, int]:
        """Return the number of records in each segment that no point refers to."""
        return {s: int((self._marks[s.id] == 0).sum()) for s in self._segments}


def path_of(point: Point) -> str | None:
    """Return the image file that a point's payload names."""
    path = point.payload.get("path")
    return path if isinstance(path, str) else None


def _finding(kind: FindingKind, point: Point, detail: str) -> Finding:
    return Finding(kind, point.id, path_of(point), detail)


def _unreadable(point: Point, error: StoreError) -> Finding:
    if isinstance(error, ContractMismatchError):
        detail = (
            f"written by the contract {error.found['contract']}, the collection's is "
            f"{error.expected['contract']}: its embedding and its tokens are another model's; "
            "repair encodes it again"
        )
        return _finding("other model", point, detail)
    missing = isinstance(error, TokensNotFoundError)
    return _finding("tokens missing" if missing else "tokens damaged", point, str(error))


def _other_words(collection: ImageCollection, page: Sequence[Point]) -> Iterator[Finding]:
    """Yield points whose stored words are not those of their text fields."""
    differ = collection.other_words({point.id: point.payload for point in page})
    if differ:  # or their payloads have changed since the page was read
        differ = collection.other_words(collection.index.retrieve([*differ], tokens=False))
    for point in page:
        if point.id in differ:
            detail = "its words are not those of its text fields; repair writes them"
            yield _finding("other words", point, detail)


def _image_findings(
    page: Sequence[Point], failed: Mapping[str, StoreError], unchanged: _Sample
) -> Iterator[Finding]:
    for point in page:
        path = path_of(point)
        if path is None:
            continue
        try:
            found = id_now(path)
        except ImageReadError as error:
            yield _finding("picture gone", point, f"{error.reason}{_copy_of(point)}")
        else:
            if found != point.id:
                detail = f"its content has changed since it was ingested{_copy_of(point)}"
                yield _finding("picture changed", point, detail)
            elif point.id not in failed:
                unchanged.add(point)


def _copy_of(point: Point) -> str:
    """Return what a finding says of a copy of an image whose file is not there any more."""
    for path in other_paths(point.payload):
        with suppress(ImageReadError):
            if id_now(path) == point.id:
                return (
                    f"; a copy is at {path}, and takes its place when the image's folder is "
                    "ingested with --prune"
                )
    return ""
