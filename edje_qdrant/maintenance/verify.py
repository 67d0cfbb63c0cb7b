"""Check that every picture of a collection can be ranked by what was written for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection import ImageCollection
from edje_qdrant.errors import ImageReadError, StoreError, TokensNotFoundError
from edje_qdrant.maintenance.points import pages, records_in_use, stored_codes
from edje_qdrant.maintenance.reports import Finding, FindingKind, VerifyReport
from edje_qdrant.pictures import picture_id
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.segment import segment_path
from edje_qdrant.types import Point

__all__ = ["path_of", "verify"]


def verify(
    collection: ImageCollection, *, pictures: bool = False, progress: bool = False
) -> VerifyReport:
    """Read every point's tokens, and compare the side files with what the points refer to.

    Open the collection with `mend=True` to check also one that does not open otherwise.

    Args:
        collection: Open; searches may go on.
        pictures: Read also the picture files that payloads name, and compare their content with
            the ids.
        progress: Show a bar on stderr.

    Raises:
        StoreError: The index or the store cannot be read at all.
        EngineUnavailableError: The server cannot be reached.
    """
    findings: list[Finding] = []
    used: dict[str, NDArray[np.bool_]] = {}
    points = 0
    for page in pages(collection, "verifying", progress=progress):
        points += len(page)
        _, parts, failed = stored_codes(collection, page)
        findings += [_unreadable(point, failed[point.id]) for point in page if point.id in failed]
        findings += _used_twice(page, used)
        key = collection.codec.key
        if any(part.codec.key != key for part in parts):
            good = [point for point in page if point.id not in failed]
            findings += [
                _finding("other codec", good[row], f"{part.codec.key}, not {key}: transcode it")
                for part in parts
                if part.codec.key != key
                for row in part.rows.tolist()
            ]
        if pictures:
            findings += _pictures(page)
    orphans, orphan_bytes, unlisted = _orphans(collection, used)
    return VerifyReport(points, tuple(findings), orphans, orphan_bytes, unlisted)


def path_of(point: Point) -> str | None:
    """Return the picture file that a point's payload names."""
    path = point.payload.get("path")
    return path if isinstance(path, str) else None


def _finding(kind: FindingKind, point: Point, detail: str) -> Finding:
    return Finding(kind, point.id, path_of(point), detail)


def _unreadable(point: Point, error: StoreError) -> Finding:
    missing = isinstance(error, TokensNotFoundError)
    return _finding("tokens missing" if missing else "tokens damaged", point, str(error))


def _used_twice(page: Sequence[Point], used: dict[str, NDArray[np.bool_]]) -> Iterator[Finding]:
    """Mark the records that points refer to; yield the points that refer to a marked one."""
    by_id = {point.id: point for point in page}
    for image_id, segment, record in records_in_use(page):
        if not 0 <= record < 2**32:
            continue  # found unreadable already
        marks = used.get(segment, np.zeros(0, np.bool_))
        if record >= len(marks):
            marks = np.concatenate([marks, np.zeros(record + 1024, np.bool_)])
            used[segment] = marks
        if marks[record]:
            yield _finding(
                "record used twice", by_id[image_id], f"record {record} of tokens-{segment}.bin"
            )
        marks[record] = True


def _pictures(page: Sequence[Point]) -> Iterator[Finding]:
    for point in page:
        path = path_of(point)
        if path is None:
            continue
        try:
            found = picture_id(path)
        except ImageReadError as error:
            yield _finding("picture gone", point, error.reason)
        else:
            if found != point.id:
                yield _finding("picture changed", point, "its content is another one's by now")


def _orphans(
    collection: ImageCollection, used: dict[str, NDArray[np.bool_]]
) -> tuple[int, int, tuple[str, ...]]:
    """Return records nobody refers to, their bytes, and side files that are not listed."""
    store = collection.store
    if not isinstance(store, FileTokenStore):
        return 0, 0, ()
    unlisted = store.unlisted()
    count = nbytes = 0
    for segment in [*store.segments(), *unlisted]:
        marks = used.get(segment.id, np.zeros(0, np.bool_))
        orphans = segment.num_records - int(marks[: segment.num_records].sum())
        count += orphans
        nbytes += orphans * segment.record_bytes
    return count, nbytes, tuple(segment_path(store.folder, s.id).name for s in unlisted)
