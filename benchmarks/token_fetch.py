"""Measure the time to read the stored tokens of 100 candidates, relative to a memory copy.

    python benchmarks/token_fetch.py [--records 2000] [--out docs/results/token_fetch.json]
    python benchmarks/token_fetch.py --url http://localhost:6333 [--grpc-port 6334]
        [--codecs float16 int8 pq16] [--searches 15]

Tokens are random, 64 x 384, in the embedded engine's payload or in side files, in several codecs.
`fetch` is the step of a search from references to verified bytes. `decode` converts these to the
joint encoder's input on the CPU. Values are medians of one run: `warm` is repeated fetching; `in
turn` is fetching between a copy and a decoding, which evict its data from the processor's caches as
the joint encoder does between two searches. To compare machines, use the ratio of the latter to a
copy of the same bytes. The page cache is warm in both cases.

With --url the tokens are in the payload of a new collection on a server, which is deleted at the
end, and the same in side files of a folder. They are read over REST, with --grpc-port over gRPC
too, as they are and compressed. `fetch` is as above, `first stage` finds the 100 candidates,
`search` is a whole search by a model of random weights whose joint encoder has the size of
MiniLM-L12. All of them alternate, so that other work on the machine concerns all; times are medians
of wall-clock time, and the last column is the ratio to the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_world import conditions, untrained_model
from qdrant_client import QdrantClient

from edje_qdrant import (
    EDJEModel,
    ImageCollection,
    ImageEncoding,
    TokenContract,
    TwoStageRetriever,
)
from edje_qdrant.rerank.token_decoder import TokenDecoder
from edje_qdrant.tokens.codecs import codec_for

CANDIDATES, NUM_TOKENS, TOKEN_DIM, EMBEDDING_DIM = 100, 64, 384, 256
PLACES = {
    "side file": ("file", ("float16", "int8", "int4", "pq48", "pq32", "pq24", "pq16")),
    "payload": ("payload", ("int4", "pq48", "pq32", "pq24", "pq16")),
}


def main() -> None:
    """Measure, and print and write the results."""
    options = _options()
    if options.url:
        _measure_server(options)
        return
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for place, (tokens, codecs) in PLACES.items():
            for codec in codecs:
                rows.append(_measure(Path(folder), place, tokens, codec, options.records, rng))
                print(_line(rows[-1]), flush=True)
    report = {
        "candidates": CANDIDATES,
        "tokens": [NUM_TOKENS, TOKEN_DIM],
        "records": options.records,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, CPU",
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def _measure_server(options: argparse.Namespace) -> None:
    """Measure reads from a server and from a folder, and print and write the results."""
    vision = {"hidden_size": EMBEDDING_DIM, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = untrained_model(**vision, image_size=32, patch_size=4)
    key = os.environ.get("EDJE_QDRANT_API_KEY")
    server = {"api_key": key, "timeout": 120}
    ways: dict[str, dict[str, Any]] = {
        "REST": {},
        "REST, compressed": {"compress_reads": True},
    }
    if options.grpc_port:
        grpc = {"prefer_grpc": True, "grpc_port": options.grpc_port}
        ways |= {"gRPC": grpc, "gRPC, compressed": {**grpc, "compress_reads": True}}
    rows: list[dict[str, Any]] = []
    warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
    for name in options.codecs:
        collection_name = f"edje-benchmark-{uuid.uuid4().hex[:8]}"
        with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            client = stack.enter_context(
                closing(QdrantClient(url=options.url, api_key=key, check_compatibility=False))
            )
            stack.callback(client.delete_collection, collection_name)
            places: dict[str, TwoStageRetriever] = {}
            for way, more in {"folder": {}, **ways}.items():
                location, given = (folder, {}) if way == "folder" else (options.url, server)
                if way in ("folder", "REST"):
                    _filled(
                        location, collection_name, model, name, options.records, {**given, **more}
                    ).close()
                opened = ImageCollection.open(location, collection_name, **given, **more)
                places[way] = stack.enter_context(TwoStageRetriever(opened, model))
            rows += _compared(places, name, options.searches)
    report = {**conditions(), "candidates": CANDIDATES, "records": options.records, "rows": rows}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def _compared(
    places: dict[str, TwoStageRetriever], codec: str, searches: int
) -> list[dict[str, Any]]:
    """Measure each place with the same queries; return one row for each."""
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((searches + 1, EMBEDDING_DIM)).astype(np.float32)
    folder = places["folder"]
    found = folder.collection.nearest(queries, CANDIDATES)
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [" ".join(rng.choice([*letters], 12)) for _ in queries]
    calls: list[Callable[[int], object]] = []
    for place in places.values():
        collection = place.collection
        own = found if place is folder else collection.nearest(queries, CANDIDATES)
        calls += [
            lambda n, collection=collection: collection.nearest(queries[n : n + 1], CANDIDATES),
            lambda n, collection=collection, own=own: collection.codes(own[n]),
            lambda n, place=place: place.search(texts[n], num_candidates=CANDIDATES),
        ]
    for call in calls:
        call(searches)  # warm up
    ms = np.reshape(_medians(calls, searches), (-1, 3))
    rows = []
    for way, (nearest, fetch, search) in zip(places, ms.tolist(), strict=True):
        rows.append(
            {
                "place": way,
                "codec": codec,
                "first_stage_ms": round(nearest, 2),
                "fetch_ms": round(fetch, 2),
                "search_ms": round(search, 1),
                "to_folder": round(search / float(ms[0, 2]), 3),
            }
        )
        print(
            f"{codec:<8} {way:<17} first stage {nearest:6.2f} ms  fetch {fetch:7.2f} ms  "
            f"search {search:7.1f} ms, {rows[-1]['to_folder']:.3f} x folder",
            flush=True,
        )
    return rows


def _filled(
    location: str, name: str, model: EDJEModel, codec_name: str, records: int, given: dict[str, Any]
) -> ImageCollection:
    """Create a collection of random images."""
    rng = np.random.default_rng(0)
    codec = codec_for(codec_name, NUM_TOKENS, TOKEN_DIM)
    if not codec.fitted:
        codec = codec.fit(_tokens(64, rng))
    collection = ImageCollection.create(location, name, model.contract(), codec=codec, **given)
    _fill(collection, records, rng)
    return collection


def _fill(collection: ImageCollection, records: int, rng: np.random.Generator) -> None:
    """Add random images to a collection."""
    ids = [str(uuid.UUID(int=i + 1)) for i in range(records)]
    for start in range(0, records, 250):
        part = ids[start : start + 250]
        vectors = rng.standard_normal((len(part), EMBEDDING_DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        payloads = [{"path": f"/pictures/{i}.jpg", "width": 640, "height": 480} for i in part]
        collection.add(part, ImageEncoding(vectors, _tokens(len(part), rng)), payloads)
    collection.flush()
    collection.optimize()


def _measure(
    folder: Path, place: str, tokens: Any, name: str, records: int, rng: np.random.Generator
) -> dict[str, Any]:
    contract = TokenContract(
        "random", "0", "0", EMBEDDING_DIM, "0", num_tokens=NUM_TOKENS, token_dim=TOKEN_DIM
    )
    codec = codec_for(name, NUM_TOKENS, TOKEN_DIM)
    if not codec.fitted:
        codec = codec.fit(_tokens(64, rng))
    collection = ImageCollection.create(
        folder / f"{tokens}-{name}", "images", contract, tokens=tokens, codec=codec
    )
    with collection:
        _fill(collection, records, rng)
        queries = rng.standard_normal((60, EMBEDDING_DIM)).astype(np.float32)
        found = collection.nearest(queries, CANDIDATES)
        decoder = TokenDecoder(codec, "cpu")
        codes = [collection.codes(candidates)[0].codes for candidates in found]
        source = np.concatenate(codes[:20])
        target = np.empty_like(codes[0])

        def copy(turn: int) -> None:
            at = turn % 20 * CANDIDATES
            np.copyto(target, source[at : at + CANDIDATES])

        def fetch(turn: int) -> None:
            collection.codes(found[turn])

        def decode(turn: int) -> None:
            decoder(codes[turn])

        warm = _medians([fetch])[0]
        ms = _medians([copy, fetch, decode])
    return {
        "place": place,
        "codec": name,
        "bytes_per_picture": codec.nbytes,
        "stored_bytes_per_picture": collection.bytes_per_image(),
        "memcpy_ms": round(ms[0], 4),
        "warm_fetch_ms": round(warm, 3),
        "fetch_ms": round(ms[1], 3),
        "fetch_to_memcpy": round(ms[1] / ms[0], 1),
        "decode_ms": round(ms[2], 3),
    }


def _medians(calls: list[Callable[[int], object]], repeats: int = 60) -> list[float]:
    """Return the median milliseconds of each call; calls alternate, so that noise affects all."""
    times = np.empty((repeats, len(calls)))
    for turn in range(repeats):
        for place, call in enumerate(calls):
            began = time.perf_counter()
            call(turn)
            times[turn, place] = time.perf_counter() - began
    medians: list[float] = (np.median(times, axis=0) * 1e3).tolist()
    return medians


def _tokens(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((count, NUM_TOKENS, TOKEN_DIM), dtype=np.float32).astype(np.float16)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['place']:<10} {row['codec']:<8} {row['bytes_per_picture']:>6,} B  "
        f"fetch {row['warm_fetch_ms']:.3f} ms warm, {row['fetch_ms']:.3f} in turn, "
        f"{row['fetch_to_memcpy']:.1f} x memcpy; "
        f"decode {row['decode_ms']:.3f} ms"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=2000, help="images in each collection")
    parser.add_argument("--url", help="server to measure instead, such as http://localhost:6333")
    parser.add_argument("--grpc-port", type=int, help="the server's port of gRPC, to measure too")
    parser.add_argument(
        "--codecs", nargs="+", default=["float16", "int8", "pq16"], help="codecs with --url"
    )
    parser.add_argument("--searches", type=int, default=15, help="searches with --url")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
