"""Write tokens anew: side files without holes, or in another codec, while readers go on.

Both copy what points refer to behind everything else, repoint the points page by page, and delete
old side files last, when nothing refers to them. So at any moment every point refers to tokens that
are on the disk: a killed run costs space until the next one, and readers never wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import reference_of
from edje_qdrant.index import TOKENS_KEY
from edje_qdrant.maintenance.reports import CompactReport
from edje_qdrant.maintenance.scan import pages, recoded, records_in_use, stored_codes
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.types import Point

__all__ = ["compact", "transcode"]


def compact(collection: ImageCollection, *, progress: bool = False) -> CompactReport:
    """Rewrite side files that have holes, and delete those that nothing refers to.

    Holes are what deleted and replaced images, and crashed ingests, leave. Disk space for the
    records that are moved is needed once more while it runs; they are stored in the collection's
    codec, whatever they were in. Tokens in the payload have no holes: there the engine is asked to
    tidy up.

    Raises:
        CollectionLockedError: Another process is writing tokens.
        StoreError: The disk or the engine refused; run it again.
        EngineUnavailableError: The server went away; run it again.
    """
    store = collection.store
    if not isinstance(store, FileTokenStore):
        collection.optimize()
        return CompactReport(0, (), 0, 0)
    with collection.write_lock:
        store.begin_writing()  # before looking, or another process may write to what is to go
        before = store.disk_bytes()
        used: Counter[str] = Counter()
        for page in pages(collection, "looking", progress=progress):
            used.update(segment for _, segment, _ in records_in_use(page))
        listed = store.segments()
        holed = {s.id for s in listed if used[s.id] < s.num_records}
        # An empty one at the end is where writing goes on behind a damaged one.
        holed |= {s.id for s in listed[:-1] if not s.num_records}
        holed |= {s.id for s in store.unlisted()}
        moved = 0
        unreadable: tuple[str, ...] = ()
        if any(used[segment] for segment in holed):
            moved, unreadable = _move(
                collection,
                lambda point: reference_of(point.payload).get("segment") in holed,
                begin=store.begin_segment,
                progress=progress,
            )
        _drop_unused(collection, store, holed)
        return CompactReport(moved, unreadable, before, store.disk_bytes())


def transcode(
    collection: ImageCollection, codec: Codec, *, progress: bool = False
) -> CompactReport:
    """Store all tokens in another codec, without encoding an image again.

    What a lossy codec left out does not come back: from `int4` to `float16` makes files larger and
    rankings no better. A run that was stopped is taken up by the next one to the same codec;
    meanwhile the collection is searched as ever, each image decoded by what encoded it.

    Args:
        collection: Open, with nothing else writing.
        codec: The new one, fitted.
        progress: Show a bar on stderr.

    Raises:
        ConfigError: The codec is not fitted, or does not fit the contract.
        CollectionLockedError: Another process is writing tokens.
        StoreError: The disk or the engine refused; run it again.
        EngineUnavailableError: The server went away; run it again.
    """
    with collection.write_lock:
        store = collection.store
        before = 0
        if isinstance(store, FileTokenStore):
            store.begin_writing()
            before = store.disk_bytes()
        # Also where it is the codec by now: a killed run may have told the side file alone.
        collection.set_codec(codec)
        store = collection.store
        if not isinstance(store, FileTokenStore):
            moved, unreadable = _move(
                collection,
                lambda point: reference_of(point.payload).get("codec") != codec.key,
                progress=progress,
            )
            return CompactReport(moved, unreadable, 0, 0)
        found = [*store.segments(), *store.unlisted()]
        done = {s.id for s in found if s.codec == codec.key}
        moved, unreadable = _move(
            collection,
            lambda point: reference_of(point.payload).get("segment") not in done,
            progress=progress,
        )
        _drop_unused(collection, store, {s.id for s in found} - done)
        return CompactReport(moved, unreadable, before, store.disk_bytes())


def _move(
    collection: ImageCollection,
    concerned: Callable[[Point], bool],
    *,
    begin: Callable[[], None] | None = None,
    progress: bool,
) -> tuple[int, tuple[str, ...]]:
    """Write the tokens of the points concerned anew; return how many, and which cannot be read.

    `begin` is called once, before the first are written.
    """
    moved = 0
    unreadable: list[str] = []
    for page in pages(collection, "moving", progress=progress):
        points, parts, failed = stored_codes(collection, [p for p in page if concerned(p)])
        unreadable += failed
        if points:
            if begin is not None and not moved:
                begin()
            _repoint(collection, points, recoded(collection.codec, parts, len(points)))
            moved += len(points)
    collection.flush()
    return moved, tuple(unreadable)


def _repoint(
    collection: ImageCollection, points: Sequence[Point], codes: NDArray[np.uint8]
) -> None:
    references = collection.store.put_codes(codes)
    collection.store.flush()
    collection.index.set_payload(
        {
            point.id: {TOKENS_KEY: dict(reference)}
            for point, reference in zip(points, references, strict=True)
        }
    )


def _drop_unused(collection: ImageCollection, store: FileTokenStore, segments: set[str]) -> None:
    """Delete those of the side files that no point refers to, whoever wrote it meanwhile."""
    if not segments:
        return
    used = {
        segment for page in pages(collection, "looking") for _, segment, _ in records_in_use(page)
    }
    if segments - used:
        collection.flush()  # or a kill could bring back what was deleted, without its tokens
        store.drop_segments(segments - used)
