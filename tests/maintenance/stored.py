"""What tests of maintenance share: collections in small side files, what they hold, and damage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from collection_places import CONTRACT, Place, fill, ids_of
from rounding import DOT, float32_slack

from edje_qdrant.collection.collection import ImageCollection, user_payload
from edje_qdrant.contract import TokenContract
from edje_qdrant.tokens.codecs import Codec
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.manifest import Manifest
from edje_qdrant.tokens.segment import HEADER_BYTES, segment_path

Snapshot = dict[str, tuple[bytes, bytes, dict[str, Any]]]


def make(
    place: Place,
    n: int = 0,
    *,
    codec: str | Codec = "float16",
    per_file: int | None = None,
    contract: TokenContract = CONTRACT,
    name: str = "images",
) -> ImageCollection:
    """Make a collection of `n` images, `per_file` of them in each side file."""
    collection = ImageCollection.create(
        place.location,
        name,
        contract,
        tokens=place.tokens,
        tokens_folder=place.tokens_folder,
        codec=codec,
    )
    if per_file is not None and isinstance(collection.store, FileTokenStore):
        folder = collection.store.folder
        manifest = Manifest.read(folder)
        segment_bytes = per_file * collection.codec.nbytes
        collection.close()
        replace(manifest, segment_bytes=segment_bytes).write(folder)
        collection = place.open(name)
    if n:
        fill(collection, ids_of(n))
    return collection


def held(collection: ImageCollection) -> Snapshot:
    """Return id -> bytes of the embedding, bytes of the tokens, and payload."""
    ids = sorted(point.id for page in collection.index.scroll(payload=False) for point in page)
    encoding = collection.encodings(ids)
    payloads = collection.index.retrieve(ids, tokens=False)
    return {
        image_id: (
            encoding.embeddings[row].tobytes(),
            encoding.tokens[row].tobytes(),
            user_payload(payloads[image_id]),
        )
        for row, image_id in enumerate(ids)
    }


def same_but_rounded(ours: Snapshot, theirs: Snapshot) -> bool:
    """Compare exactly, but for embeddings, which the client in memory normalises once more."""
    last_digits = float32_slack(1, roundings=DOT)
    rows = zip(ours.values(), theirs.values(), strict=True)
    return [*ours] == [*theirs] and all(
        np.allclose(np.frombuffer(a, "f4"), np.frombuffer(b, "f4"), rtol=0, atol=last_digits)
        and rest == other
        for (a, *rest), (b, *other) in rows
    )


def references(collection: ImageCollection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what points say of their tokens, without the tokens."""
    payloads = collection.index.retrieve(ids, tokens=False)
    return {image_id: dict(payloads[image_id]["_edje"]) for image_id in ids}


def tokens_folder(collection: ImageCollection) -> Path:
    assert isinstance(collection.store, FileTokenStore)
    return collection.store.folder


def side_files(collection: ImageCollection) -> dict[str, bytes]:
    """Return name -> content of a collection's side files."""
    return {p.name: p.read_bytes() for p in sorted(tokens_folder(collection).glob("tokens-*.bin"))}


def segment_of(collection: ImageCollection, image_id: str) -> Path:
    """Return the side file that holds an image's tokens."""
    segment = references(collection, [image_id])[image_id]["segment"]
    return segment_path(tokens_folder(collection), segment)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x5A]))


def damage(collection: ImageCollection, image_id: str) -> None:
    """Change a byte of an image's tokens, wherever they are."""
    if not collection.store.in_payload:
        record = references(collection, [image_id])[image_id]["record"]
        offset = HEADER_BYTES + record * collection.codec.nbytes + 5
        flip(segment_of(collection, image_id), offset)
        return
    reference = dict(collection.index.retrieve([image_id])[image_id]["_edje"])
    text = reference["tokens"]
    reference["tokens"] = ("A" if text[0] != "A" else "B") + text[1:]
    collection.index.set_payload({image_id: {"_edje": reference}})


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do something over and over in another thread, once at least; raise what it raised."""
    stop = threading.Event()

    def repeat() -> None:
        action()
        while not stop.is_set():
            action()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(repeat)
        try:
            yield
        finally:
            stop.set()
        running.result()


def failing_after(calls: int, real: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return what does as `real` for some calls and fails from then on."""
    left = calls

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if left == 0:
            raise error
        left -= 1
        return real(*args, **kwargs)

    return call
