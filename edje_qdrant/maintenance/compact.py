"""Rewriting of stored tokens: side files without holes, or another codec, while searches continue.

Both functions copy tokens to new side files, update the points page by page, and delete the old
side files last. So every point refers to tokens on the disk at any moment: a killed run only takes
disk space until the next run, and readers never wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from edje_qdrant.collection.checks import fitted_codec
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import reference_of, signed
from edje_qdrant.errors import ConfigError
from edje_qdrant.index import TOKENS_KEY
from edje_qdrant.maintenance.arguments import check_collections, check_flags
from edje_qdrant.maintenance.reports import CompactReport
from edje_qdrant.maintenance.scan import own_points, pages, records_in_use, stored_codes
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.file_store import FileTokenStore, files_of
from edje_qdrant.types import Point

__all__ = ["compact", "transcode"]


def compact(
    collection: ImageCollection, *, progress: bool = False, wait: float = 300
) -> CompactReport:
    """Rewrite side files that have unused records, and delete those that no point refers to.

    Deleted and replaced images and crashed ingests leave unused records. While it runs, the records
    that are moved take their disk space twice; they are stored in the collection's codec. Tokens in
    the payload have no unused records: `compact` then calls `collection.optimize`.

    Args:
        collection: An open collection; nothing else writes to it.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        CollectionLockedError: Another process is writing tokens.
        StoreError: The disk or the engine refused; run it again.
        EngineUnavailableError: The connection to the server was lost; run it again.
    """
    check_collections(collection=collection)
    check_flags(progress=progress)
    with collection.patient(wait):
        collection.require_writable()
        files = files_of(collection.store)
        report = CompactReport(0, ())
        if files is None:
            collection.optimize()
            return report
        with collection.write_lock:
            # Before the scan, or another process could write to a file that is to be deleted.
            files.begin_writing()
            before = files.disk_bytes()
            used: Counter[str] = Counter()
            for page in pages(collection, "scanning", progress=progress):
                used.update(record.segment for record in records_in_use(page))
            listed = files.segments()
            with_holes = {s.id for s in listed if used[s.id] < s.num_records}
            # An empty last segment stays: the writer appends to it, behind a damaged one.
            with_holes |= {s.id for s in listed[:-1] if not s.num_records}
            with_holes |= {s.id for s in files.unlisted()}
            if any(used[segment] for segment in with_holes):
                report = _move(
                    collection,
                    lambda point: reference_of(point.payload).get("segment") in with_holes,
                    before_first=files.begin_segment,
                    progress=progress,
                )
            _drop_unused(collection, files, with_holes)
            return replace(report, bytes_before=before, bytes_after=files.disk_bytes())


def transcode(
    collection: ImageCollection,
    codec: str | Codec,
    *,
    from_lossy: bool = False,
    progress: bool = False,
    wait: float = 300,
) -> CompactReport:
    """Convert all stored tokens to another codec, without encoding an image again.

    Information that a lossy codec dropped cannot be recovered: from `int4` to `float16` files grow
    and rankings do not improve, so that has to be asked for with `from_lossy`. The collection
    records what its tokens went through (`collection.codec_history`). The next run with the same
    codec continues an interrupted one; until then the collection can be searched, each image
    decoded with the codec that encoded it.

    Images that another model wrote are left as they are and count as unreadable; points of other
    programs are left out.

    Args:
        collection: An open collection; nothing else writes to it.
        codec: The new codec, fitted, or the name of one that needs no fitting.
        from_lossy: Convert from a lossy codec to one that takes more bytes, too.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: The codec is unknown, not fitted, or does not fit the contract, or it takes
            more bytes than the collection's, which is lossy; nothing was written.
        CollectionLockedError: Another process is writing tokens.
        StoreError: The disk or the engine refused; run it again.
        EngineUnavailableError: The connection to the server was lost; run it again.
    """
    check_collections(collection=collection)
    check_flags(progress=progress, from_lossy=from_lossy)
    codec = fitted_codec(collection.contract, codec)
    with collection.patient(wait):
        collection.require_writable()
        with collection.write_lock:
            if not from_lossy:
                _require_no_loss(collection, codec)
            files = files_of(collection.store)
            if files is None:
                collection.set_codec(codec)
                return _move(
                    collection,
                    lambda point: reference_of(point.payload).get("codec") != codec.key,
                    progress=progress,
                )
            files.begin_writing()
            before = files.disk_bytes()
            # Even if it is the codec already: a killed run may have changed the side file alone.
            collection.set_codec(codec)
            found = [*files.segments(), *files.unlisted()]
            done = {s.id for s in found if s.codec == codec.key}
            report = _move(
                collection,
                lambda point: reference_of(point.payload).get("segment") not in done,
                progress=progress,
            )
            _drop_unused(collection, files, {s.id for s in found} - done)
            return replace(report, bytes_before=before, bytes_after=files.disk_bytes())


def _require_no_loss(collection: ImageCollection, codec: Codec) -> None:
    """Check that tokens of a lossy codec are not to be stored in more bytes.

    Raises:
        ConfigError: They are; nothing would be won.
    """
    now = collection.codec
    if now.name != "float16" and codec.nbytes > now.nbytes and collection.count():
        raise ConfigError(
            f"the tokens of {collection.name!r} are stored as {now.name}, and what that dropped is "
            f"gone: as {codec.name} they take {codec.nbytes:,} bytes an image in place of "
            f"{now.nbytes:,}, and rankings do not improve. To improve them, ingest the images into "
            f"a new collection; to store them as {codec.name} all the same, give from_lossy=True "
            "(--from-lossy)"
        )


def _move(
    collection: ImageCollection,
    selected: Callable[[Point], bool],
    *,
    before_first: Callable[[], None] | None = None,
    progress: bool,
) -> CompactReport:
    """Write the tokens of the selected points again, and update their references.

    `before_first` is called once, before the first tokens are written.
    """
    moved = 0
    unreadable: list[str] = []
    left_out: list[str] = []
    for page in pages(collection, "moving", progress=progress):
        others = collection.of_other_programs(page)
        left_out += [point.id for point in others]
        own = own_points(page, others)
        found = stored_codes(collection, [point for point in own if selected(point)])
        unreadable += found.failed
        if not found.points:
            continue
        if before_first is not None and not moved:
            before_first()
        references = collection.store.put_codes(found.encoded_with(collection.codec))
        collection.store.flush()
        collection.index.set_payload(
            {
                point.id: {TOKENS_KEY: signed(reference, collection.contract)}
                for point, reference in zip(found.points, references, strict=True)
            }
        )
        moved += len(found.points)
    collection.flush()
    return CompactReport(moved, tuple(unreadable), left_out=tuple(left_out))


def _drop_unused(collection: ImageCollection, files: FileTokenStore, segments: set[str]) -> None:
    """Delete those of the segments that no point refers to by now."""
    if not segments:
        return
    used = {
        record.segment for page in pages(collection, "scanning") for record in records_in_use(page)
    }
    if segments - used:
        collection.flush()  # or a kill could restore deleted points, but not their tokens
        files.drop_segments(segments - used)
