"""Measure the time to read the stored tokens of 100 candidates, relative to a memory copy.

    python benchmarks/token_fetch.py [--records 2000] [--out docs/results/token_fetch.json]

Tokens are random, 64 x 384, in the embedded engine's payload or in side files, in several codecs.
`fetch` is the step of a search from references to verified bytes. `decode` converts these to the
joint encoder's input on the CPU. Values are medians of one run: `warm` is repeated fetching; `in
turn` is fetching between a copy and a decoding, which evict its data from the processor's caches as
the joint encoder does between two searches. To compare machines, use the ratio of the latter to a
copy of the same bytes. The page cache is warm in both cases.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edje_qdrant import ImageCollection, ImageEncoding, TokenContract
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
        ids = [str(uuid.UUID(int=i + 1)) for i in range(records)]
        for start in range(0, records, 250):
            part = ids[start : start + 250]
            vectors = rng.standard_normal((len(part), EMBEDDING_DIM)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            payloads = [{"path": f"/pictures/{i}.jpg", "width": 640, "height": 480} for i in part]
            encoding = ImageEncoding(vectors, _tokens(len(part), rng))
            collection.add(part, encoding, payloads)
        collection.flush()
        collection.optimize()
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


def _medians(calls: list[Callable[[int], None]], repeats: int = 60) -> list[float]:
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
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
