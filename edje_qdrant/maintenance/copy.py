"""Copies of collections, stored tokens included, without encoding an image again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import user_payload
from edje_qdrant.errors import StoreError
from edje_qdrant.index import TextFields
from edje_qdrant.maintenance.arguments import check_collections, check_flags
from edje_qdrant.maintenance.reports import CopyReport
from edje_qdrant.maintenance.scan import own_points, pages, stored_codes
from edje_qdrant.tokens.codecs import Codec

__all__ = [
    "Part", "add_part", "add_parts", "copy_collection", "stored_parts", "take_text_fields",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """Hold `n` images in their stored form.

    Attributes:
        codec: Key of the codec.
        image_ids: `n` UUID strings.
        embeddings: `(n, d)` float32, unit length.
        codes: `(n, nbytes)` uint8, encoded with that codec.
        payloads: `n` JSON objects, without token references.
    """

    codec: str
    image_ids: list[str]
    embeddings: NDArray[np.float32]
    codes: NDArray[np.uint8]
    payloads: list[dict[str, Any]]


def stored_parts(
    collection: ImageCollection, codec: Codec, left_out: list[str], *, progress: bool = False
) -> Iterator[Part]:
    """Yield a collection's images, verified by checksum and converted to one codec.

    Searches continue; images added during the iteration may or may not be included.

    Args:
        collection: The collection.
        codec: The codec of the parts.
        left_out: Is given the ids of points that other programs wrote; they are not yielded.
        progress: Show a bar on stderr.

    Raises:
        ContractMismatchError: Another model wrote some images; names them.
        TokensNotFoundError: Some images have no tokens; names the ids.
        TokensCorruptError: Some images' tokens are damaged; names the ids.
        StoreError: The collection cannot be read.
    """
    for page in pages(collection, "reading", vectors=True, progress=progress):
        others = collection.of_other_programs(page)
        left_out += [point.id for point in others]
        found = stored_codes(collection, own_points(page, others))
        for error in found.failed.values():
            raise error  # a copy without these images would be incomplete
        if found.points:
            yield Part(
                codec.key,
                [point.id for point in found.points],
                np.stack([point.vector for point in found.points]),
                found.encoded_with(codec),
                [user_payload(point.payload) for point in found.points],
            )


def add_part(target: ImageCollection, part: Part) -> int:
    """Write the images of a part that are not in the collection yet; return their number.

    Raises:
        StoreError: Another process changed the collection's codec, or it cannot be written.
    """
    with target.write_lock:
        if target.codec.key != part.codec:
            raise StoreError(
                f"the codec of the collection {target.name!r} was changed to {target.codec.key} "
                f"while images were copied with {part.codec}; transcode it back, and run this again"
            )
        added = target.add_codes(part.image_ids, part.embeddings, part.codes, part.payloads)
    return len(added)


def add_parts(target: ImageCollection, parts: Iterable[Part]) -> CopyReport:
    """Write the images of all parts that are not in the collection yet; raises as `add_part`."""
    copied = skipped = nbytes = 0
    for part in parts:
        added = add_part(target, part)
        copied += added
        skipped += len(part.image_ids) - added
        nbytes += part.codes.nbytes
    target.flush()
    target.optimize()
    return CopyReport(copied, skipped, nbytes)


def take_text_fields(target: ImageCollection, fields: TextFields | None) -> None:
    """Give an empty collection the text fields of the one it is filled from, if it has none.

    An engine that keeps no words has none afterwards, too.
    """
    if fields is None or target.text_fields or target.index.engine == "faiss" or len(target):
        return
    target.begin_words(fields)
    target.end_words()


def copy_collection(
    source: ImageCollection,
    target: ImageCollection,
    *,
    progress: bool = False,
    wait: float = 300,
) -> CopyReport:
    """Copy all images and payload indexes to a collection of the same contract and codec.

    An empty target without text fields gets those of the source, except with the engine faiss.
    The next run continues an interrupted one: images that the target contains are skipped. Points
    that other programs wrote to the source are left out.

    Args:
        source: An open collection; searches continue.
        target: An open collection, created with the source's contract and codec.
        progress: Show a bar on stderr.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: An argument is no open collection; nothing was written.
        ContractMismatchError: The target is of another model or codec, or another model wrote some
            of the source's images; run `verify`.
        TokensNotFoundError: Some of the source's images have no tokens; run `verify`.
        TokensCorruptError: Some of the source's tokens are damaged; run `verify`.
        StoreError: A collection cannot be read or written.
        EngineUnavailableError: The connection to the server was lost; written images are kept.
    """
    check_collections(source=source, target=target)
    check_flags(progress=progress)
    with source.patient(wait), target.patient(wait):
        source.reload()
        target.contract.require_match(
            source.contract, where=f"the collection {source.name!r} at {source.location}"
        )
        target.require_writable()
        target.create_payload_indexes(source.payload_indexes())
        target.add_codec_history(source.codec_history)
        take_text_fields(target, source.index.text_fields)
        left_out: list[str] = []
        parts = stored_parts(source, target.codec, left_out, progress=progress)
        return replace(add_parts(target, parts), left_out=tuple(left_out))
