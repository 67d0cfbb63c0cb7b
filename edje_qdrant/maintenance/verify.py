"""Check that every image of a collection can be ranked by what was written for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ImageReadError, StoreError, TokensNotFoundError
from edje_qdrant.images import image_file_id
from edje_qdrant.maintenance.reports import Finding, FindingKind, VerifyReport
from edje_qdrant.maintenance.scan import pages, records_in_use, stored_codes
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.manifest import Segment
from edje_qdrant.types import Point

__all__ = ["path_of", "verify"]


def verify(
    collection: ImageCollection, *, pictures: bool = False, progress: bool = False
) -> VerifyReport:
    """Read every point's tokens, and compare the side files with what the points refer to.

    Open the collection with `mend=True` to check also one that does not open otherwise.

    Args:
        collection: Open; searches may go on.
        pictures: Read also the image files that payloads name, and compare their content with
            the ids.
        progress: Show a bar on stderr.

    Raises:
        StoreError: The index or the store cannot be read at all.
        EngineUnavailableError: The server cannot be reached.
    """
    findings: list[Finding] = []
    store = collection.store
    listed = store.segments() if isinstance(store, FileTokenStore) else []
    unlisted = store.unlisted() if isinstance(store, FileTokenStore) else []
    records = _Records([*listed, *unlisted])
    points = 0
    for page in pages(collection, "verifying", progress=progress):
        points += len(page)
        read, parts, failed = stored_codes(collection, page)
        findings += [_unreadable(point, failed[point.id]) for point in page if point.id in failed]
        findings += records.used_by(page, failed)
        key = collection.codec.key
        findings += [
            _finding("other codec", read[row], f"{part.codec.key}, not {key}: transcode it")
            for part in parts
            if part.codec.key != key
            for row in part.rows.tolist()
        ]
        if pictures:
            findings += _pictures(page)
    names = tuple(f"tokens-{segment.id}.bin" for segment in unlisted)
    return VerifyReport(points, tuple(findings), *records.orphans(), names)


class _Records:
    """Mark the records of side files that points refer to.

    Files and records that have come since are left out: their points may not be seen.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        # 1 where a point refers to the record, 2 where it is that point's tokens.
        self._marks = {s.id: np.zeros(s.num_records, np.uint8) for s in segments}

    def used_by(self, page: Sequence[Point], failed: Mapping[str, StoreError]) -> Iterator[Finding]:
        """Mark what points refer to; yield those whose tokens are another point's too."""
        points = {point.id: point for point in page}
        for image_id, segment, record in records_in_use(page):
            marks = self._marks.get(segment)
            if marks is None or not 0 <= record < len(marks):
                continue
            if image_id in failed:
                marks[record] = max(marks[record], 1)
                continue
            if marks[record] == 2:
                where = f"record {record} of tokens-{segment}.bin"
                yield _finding("record used twice", points[image_id], where)
            marks[record] = 2

    def orphans(self) -> tuple[int, int]:
        """Return how many records nothing refers to, and their bytes."""
        counts = [(s, int((self._marks[s.id] == 0).sum())) for s in self._segments]
        return sum(n for _, n in counts), sum(n * s.record_bytes for s, n in counts)


def path_of(point: Point) -> str | None:
    """Return the image file that a point's payload names."""
    path = point.payload.get("path")
    return path if isinstance(path, str) else None


def _finding(kind: FindingKind, point: Point, detail: str) -> Finding:
    return Finding(kind, point.id, path_of(point), detail)


def _unreadable(point: Point, error: StoreError) -> Finding:
    missing = isinstance(error, TokensNotFoundError)
    return _finding("tokens missing" if missing else "tokens damaged", point, str(error))


def _pictures(page: Sequence[Point]) -> Iterator[Finding]:
    for point in page:
        path = path_of(point)
        if path is None:
            continue
        try:
            found = image_file_id(path)
        except ImageReadError as error:
            yield _finding("picture gone", point, error.reason)
        else:
            if found != point.id:
                yield _finding("picture changed", point, "its content is another one's by now")
