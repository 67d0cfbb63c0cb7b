"""Repair of a collection: encodes images with damaged tokens again, removes orphaned records."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from edje_qdrant.checks import check_number
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import DecoderPool
from edje_qdrant.maintenance.arguments import check_collections, check_flags
from edje_qdrant.maintenance.compact import compact
from edje_qdrant.maintenance.reports import Finding, RepairReport
from edje_qdrant.maintenance.scan import PAGE
from edje_qdrant.maintenance.verify import verify
from edje_qdrant.sources.read import other_paths, read_image, stored_id
from edje_qdrant.threads import batches
from edje_qdrant.tokens.file_store import files_of

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel
    from edje_qdrant.model.pixels import Pixels

__all__ = ["repair"]

_REPAIRABLE = frozenset(
    {"tokens missing", "tokens damaged", "record used twice", "other model", "other program"}
)


def repair(
    collection: ImageCollection,
    model: EDJEModel | None = None,
    *,
    batch_size: int = 32,
    delete_others: bool = False,
    progress: bool = False,
    wait: float = 300,
) -> RepairReport:
    """Encode images with missing or damaged tokens again, then remove orphaned records.

    An image is encoded again if the file at its payload's `path`, or at one of its `other_paths`,
    is unchanged since it was ingested. Images that another model wrote are encoded again too. Other
    damaged images are listed and kept, and so are points that other programs wrote.

    Args:
        collection: Opened with `for_repair=True`.
        model: The model that wrote the collection; without it no image is encoded.
        batch_size: Number of images encoded at a time.
        delete_others: Delete the points that other programs wrote, except those whose id and
            `path` are those of an image file: they are encoded again.
        progress: Show bars on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: An argument is invalid; nothing was written.
        ContractMismatchError: Another model wrote the collection.
        CollectionLockedError: Another process is writing tokens.
        StoreError: The disk or the engine refused; run it again.
        EngineUnavailableError: The connection to the server was lost; run it again.
    """
    check_collections(collection=collection)
    check_number("batch_size", batch_size)
    check_flags(progress=progress, delete_others=delete_others)
    if model is not None:
        if not hasattr(model, "encode_images"):
            raise ConfigError(f"model is a {type(model).__name__}; give an EDJEModel")
        collection.require(model.contract())
    with collection.patient(wait):
        collection.require_writable()
        files = files_of(collection.store)
        if files is not None:
            files.begin_writing(replace_damaged=True)
        found = verify(collection, progress=progress).findings
        broken = {f.image_id: f for f in found if f.kind in _REPAIRABLE}.values()
        repairable: list[Finding] = []
        left: list[Finding] = []
        for finding in broken:
            can_be_read = (
                model is not None and finding.path is not None and not finding.image_id.isdecimal()
            )
            (repairable if can_be_read else left).append(finding)
        encoded: list[str] = []
        if repairable and model is not None:
            with DecoderPool() as decoders:
                for batch in batches(repairable, batch_size):
                    done, failed = _encode_again(collection, model, decoders, batch)
                    encoded += done
                    left += failed
        deleted: list[str] = []
        if delete_others:
            deleted = [finding.image_id for finding in left if finding.kind == "other program"]
            collection.delete_of_other_programs(deleted)
            left = [finding for finding in left if finding.kind != "other program"]
        wordless = [finding.image_id for finding in found if finding.kind == "other words"]
        for batch_of_ids in batches(wordless, PAGE):
            collection.fill_words(batch_of_ids)
        collection.flush()
        collection.end_words()
        compacted = compact(collection, progress=progress)
        return RepairReport(tuple(encoded), tuple(left), compacted, tuple(deleted), tuple(wordless))


def _encode_again(
    collection: ImageCollection,
    model: EDJEModel,
    decoders: DecoderPool,
    findings: Sequence[Finding],
) -> tuple[list[str], list[Finding]]:
    """Encode images again and replace their tokens.

    Returns:
        The ids of the images written, and the findings whose file cannot be decoded or contains
        another image now, with the reason.
    """
    from edje_qdrant.model.pixels import read_file, stack_pixels  # imports torch

    failed: list[Finding] = []
    images: dict[str, Pixels] = {}
    payloads = collection.index.retrieve([f.image_id for f in findings], tokens=False)

    def pixels_of(finding: Finding) -> Pixels | str:
        copies = other_paths(payloads.get(finding.image_id, {}))
        reasons: list[str] = []
        for path in (str(finding.path), *copies):
            try:
                content = read_image(path)
                if stored_id(path, content) == finding.image_id:
                    return read_file(model, decoders, content, path)[1]
                reasons.append("its file contains another image now")
            except ImageReadError as error:  # noqa: PERF203 - of a copy
                reasons.append(error.reason)
        return reasons[0]

    with ThreadPoolExecutor(decoders.workers) as threads:
        for finding, pixels in zip(findings, threads.map(pixels_of, findings), strict=True):
            if isinstance(pixels, str):
                failed.append(replace(finding, detail=f"{finding.detail}; {pixels}"))
            else:
                images[finding.image_id] = pixels
    if not images:
        return [], failed
    batch = stack_pixels([*images.values()], model.encoding_device)
    written = collection.replace_encodings([*images], model.encode_pixels(batch))
    return [image_id for image_id in images if image_id in written], failed  # others were deleted
