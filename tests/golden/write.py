"""Write the golden files: what version 1 of the formats looks like, byte for byte.

Run once for each version of a format, from the repository's root:

    python tests/golden/write.py tests/golden/format-1

Files that are there stay as they are: collections in the wild are not rewritten either. When a
format changes, raise its version, keep reading the old one, and write a folder for the new one.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.metadata import CollectionRecord
from edje_qdrant.contract import TokenContract
from edje_qdrant.maintenance import export_collection
from edje_qdrant.tokens.codec_file import read_codec, write_codec
from edje_qdrant.tokens.codecs import Codec, codec_for
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.payload_store import PayloadTokenStore
from edje_qdrant.types import ImageEncoding

NUM_TOKENS, TOKEN_DIM, PICTURES = 3, 7, 5
SHAPE = (NUM_TOKENS, TOKEN_DIM)
CODECS = ("float16", "int8", "int4", "pq16")
CODEC_FILE = "codec.safetensors"
CONTRACT = TokenContract(
    encoder="golden",
    encoder_revision="e0",
    preprocessing="p0",
    embedding_dim=4,
    adapter_hash="a0",
    num_tokens=NUM_TOKENS,
    token_dim=TOKEN_DIM,
    model="nowhere",
    library_version="0.1.0",
)


def ids_of(n: int) -> list[str]:
    return [str(uuid.UUID(int=number + 1)) for number in range(n)]


def tokens_of(n: int) -> NDArray[np.float16]:
    """Make `(n, 3, 7)` tokens; among the first picture's are numbers at float16's ends."""
    tokens = np.random.default_rng(0).standard_normal((n, *SHAPE)).astype(np.float16)
    tokens[0, 0] = [0.0, -0.0, 6e-8, -6e-8, 1.0, -1.0, 0.333]
    tokens[0, 1] = [65504, -65504, 1, 2, 3, 4, 5]
    tokens[0, 2] = 0
    return tokens


def payload_store(codec: Codec) -> PayloadTokenStore:
    parameters = codec.parameters()
    kept = {} if parameters is None else {codec.key: parameters}
    return PayloadTokenStore(CONTRACT.with_codec(codec.name, codec.hash), kept)


@contextmanager
def drawn(seed: int = 0) -> Iterator[None]:
    """Let what draws ids at random draw the same ones each time."""
    random = Random(seed)
    with mock.patch("uuid.uuid4", side_effect=lambda: uuid.UUID(int=random.getrandbits(128))):
        yield


def write(folder: Path, pq: Codec) -> None:
    """Write everything that a version's folder holds, with a codebook that was fitted before."""
    folder.mkdir(parents=True)
    write_codec(pq, folder / CODEC_FILE, contract=CONTRACT)
    pq = read_codec(folder / CODEC_FILE, *SHAPE)
    tokens = tokens_of(PICTURES)
    expected = {name: _decoded(_codec(name, pq), tokens) for name in CODECS}
    references: dict[str, list[dict[str, Any]]] = {}
    with drawn():
        for name in CODECS:
            codec = _codec(name, pq)
            contract = CONTRACT.with_codec(codec.name, codec.hash)
            with closing(FileTokenStore.create(folder / name, contract, codec)) as store:
                references[name] = _put(store, tokens)
            in_payload = payload_store(codec)
            references[f"{name} in the payload"] = [
                dict(reference) for reference in in_payload.put(ids_of(PICTURES), tokens)
            ]
        references["segments"] = _segments(folder / "segments", tokens, pq)
        expected["segments"] = np.concatenate(
            [expected["float16"], expected["int8"], expected["pq16"]]
        )
        _records(folder, pq)
        _archive(folder / "archive.edje", tokens, pq)
    (folder / "references.json").write_text(json.dumps(references, indent=1))
    (folder / "expected").mkdir()
    for name, decoded in {"tokens": tokens, **expected}.items():
        np.save(folder / "expected" / f"{name}.npy", decoded)
    for lock in folder.rglob("writer.lock"):
        lock.unlink()


def _codec(name: str, pq: Codec) -> Codec:
    return pq if name == pq.name else codec_for(name, *SHAPE)


def _decoded(codec: Codec, tokens: NDArray[np.float16]) -> NDArray[np.float16]:
    return codec.decode(codec.encode(tokens))


def _put(store: FileTokenStore, tokens: NDArray[np.float16]) -> list[dict[str, Any]]:
    references = [dict(reference) for reference in store.put(ids_of(len(tokens)), tokens)]
    store.flush()
    return references


def _segments(folder: Path, tokens: NDArray[np.float16], pq: Codec) -> list[dict[str, Any]]:
    """Write a store of several side files, in three codecs, and return all references."""
    with closing(FileTokenStore.create(folder, CONTRACT, segment_bytes=2 * 42)) as store:
        references = _put(store, tokens)
        store.begin_segment(codec_for("int8", *SHAPE))
        references += _put(store, tokens)
        store.begin_segment(pq)
        return references + _put(store, tokens)


def _records(folder: Path, pq: Codec) -> None:
    """Write what an index keeps of a collection, for tokens in a side file and in the payload."""
    contract = CONTRACT.with_codec("int8")
    in_file = CollectionRecord(contract, "file", uuid.uuid4().hex, "/somewhere/else")
    in_payload = CollectionRecord(contract, "payload").with_codec(pq)
    for name, record in (("file", in_file), ("payload", in_payload)):
        text = json.dumps(record.as_metadata(), indent=1)
        (folder / f"record-{name}.json").write_text(text)


def _archive(path: Path, tokens: NDArray[np.float16], pq: Codec) -> None:
    """Write an archive of a collection with a codebook."""
    ids = ids_of(len(tokens))
    embeddings = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    payloads = [
        {"path": f"/{image_id}.png", "Jahr": 2026, "wörter": ["a", None]} for image_id in ids
    ]
    with ImageCollection.create(":memory:", "golden", CONTRACT, codec=pq) as collection:
        collection.add(ids, ImageEncoding(embeddings, tokens), payloads)
        export_collection(collection, path)


def main() -> None:
    folder = Path(sys.argv[1])
    if folder.exists():
        sys.exit(f"{folder} is there already, and golden files are never overwritten")
    sample = np.random.default_rng(1).standard_normal((200, *SHAPE)).astype(np.float16)
    write(folder, codec_for("pq16", *SHAPE).fit(sample))


if __name__ == "__main__":
    main()
