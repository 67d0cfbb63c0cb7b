"""Measure latency, opening time, memory and disk size of collections of increasing size.

    python benchmarks/growth.py [--sizes 10000 100000] [--out docs/results/growth.json]
        [--plot docs/results/growth.png] [--keep FOLDER]

Embeddings are synthetic, of 256 dimensions, in clusters of 100. Codes are random bytes for a pq16
codec of 64 x 384 tokens whose codebook is fitted to random tokens: 1,024 bytes an image. They are
written with `ImageCollection.add_codes` to the embedded engine and side files; then `optimize`
builds the graph.

A new process opens the collection and measures the time to open it, to run the first stage for 100
candidates, and to read and decode their tokens (medians over random queries). It also measures its
resident memory, its mapped files, and the memory that reading side files takes. Times are
processor times of all threads, except for `optimize`; wall-clock times of searches are reported as
well.

1,000,000 images need about 8 GB of disk and an hour on two cores: ask for them with --sizes. With
--keep, collections stay in a folder and later runs measure them without building them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from demo_world import conditions, untrained_model
from numpy.typing import NDArray

from edje_qdrant import ImageCollection, Reranker, TokenContract
from edje_qdrant.collection.references import reference_of
from edje_qdrant.rerank.token_loader import TokenReader
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.types import Candidate

DIM, NUM_TOKENS, TOKEN_DIM, CODEC, CANDIDATES = 256, 64, 384, "pq16", 100
PAGE, CENTERS_EACH = 1000, 100

# Numbers of queries: timed as the first ones, then untimed for warm-up, then timed; whole searches.
FIRST, WARM, QUERIES, WHOLE = 20, 1500, 60, 12

# Disk space that an image needs while the graph is built, and space to leave free.
BYTES_EACH, SPARE = 12_000, 2 << 30


def main() -> None:
    """Measure each size in a separate process, and print the results."""
    options = _options()
    if options.measure:
        print(json.dumps(_measured(options.measure)))
        return
    rows: list[dict[str, Any]] = []
    report = {
        "dim": DIM,
        "tokens": [NUM_TOKENS, TOKEN_DIM],
        "codec": CODEC,
        "candidates": CANDIDATES,
        **conditions(),
        "rows": rows,
    }
    for size in options.sizes:
        with ExitStack() as stack:
            if options.keep:
                folder = options.keep / f"growth-{size}"
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            filled = folder / "filled.json"
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
                folder.mkdir(parents=True)
                free = shutil.disk_usage(folder).free
                if free < size * BYTES_EACH + SPARE:
                    print(f"{size:,} images skipped: they need more disk space than {free:,} bytes")
                    continue
                filled.write_text(json.dumps(_filled(folder / "photos", size)), encoding="utf-8")
            if options.only_build:
                continue
            command = [sys.executable, __file__, "--measure", str(folder / "photos")]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            row = {"size": size, **json.loads(filled.read_text(encoding="utf-8")), **measured}
        rows.append(row)
        print(_line(row), flush=True)
        if options.out:
            options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        _plot(rows, options.plot)


def _filled(folder: Path, size: int) -> dict[str, Any]:
    rng, tokens, centers = _drawn(size)
    codec = codec_for(CODEC, NUM_TOKENS, TOKEN_DIM).fit(tokens)
    contract = TokenContract(
        "synthetic", "0", "0", DIM, "0", num_tokens=NUM_TOKENS, token_dim=TOKEN_DIM
    )
    with ImageCollection.create(folder, "images", contract, codec=codec) as collection:
        began = time.process_time()
        for start in range(0, size, PAGE):
            numbers = range(start, min(start + PAGE, size))
            near = centers[rng.integers(0, len(centers), len(numbers))]
            vectors = near + 0.7 * _directions(len(numbers), rng)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            codes = rng.integers(0, 256, (len(numbers), codec.nbytes), dtype=np.uint8)
            collection.add_codes(
                [str(uuid.UUID(int=number + 1)) for number in numbers],
                vectors.astype(np.float32),
                codes,
                [{"path": f"/pictures/{n:08}.jpg", "width": 640, "height": 480} for n in numbers],
            )
        collection.flush()
        written = time.process_time() - began
        began = time.perf_counter()
        collection.optimize()
        optimized = time.perf_counter() - began
    side = sum(512 * path.stat().st_blocks for path in folder.rglob("tokens-*.bin"))
    whole = sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())
    return {
        "write_s": round(written, 2),
        "optimize_s": round(optimized, 2),
        "side_bytes": side,
        "index_bytes": whole - side,
    }


def _measured(folder: Path) -> dict[str, Any]:
    """Measure opening and searching in a new process."""
    import qdrant_edge  # noqa: F401 - so that the library is not counted as the collection's memory

    torch.set_num_threads(1)
    before = _resident()
    process, wall = time.process_time(), time.perf_counter()
    collection = ImageCollection.open(folder, "images")
    opened = (time.process_time() - process, time.perf_counter() - wall)
    reader = TokenReader("cpu")
    after_open = _resident()
    queries = _queries(FIRST + WARM + QUERIES, len(collection))
    first, steady = queries[:FIRST], queries[FIRST + WARM :]
    with collection:
        cold = _medians(lambda n: collection.nearest(first[n : n + 1], CANDIDATES), FIRST)
        for query in queries[FIRST : FIRST + WARM]:
            reader.tokens(collection, collection.nearest(query[None], CANDIDATES)[0])
        found = []
        search = _medians(
            lambda n: found.append(collection.nearest(steady[n : n + 1], CANDIDATES)[0])
        )
        fetch = _medians(lambda n: collection.codes(found[n]))
        decode = _medians(lambda n: reader.tokens(collection, found[n]))
        after = _resident()
        recall = _recall(collection, steady, found)
        # Memory to read the side files alone, without mapped files.
        with closing(FileTokenStore.open(folder / "images" / "tokens")) as store:
            for part in found:
                ids = [candidate.image_id for candidate in part]
                store.codes(ids, [reference_of(candidate.payload) for candidate in part])
            store_memory = _resident()["RssAnon"] - after["RssAnon"]
        reranker = Reranker(
            untrained_model(hidden_size=96, num_hidden_layers=1, image_size=32, patch_size=4)
        )

        def whole(n: int) -> None:
            candidates = collection.nearest(steady[n : n + 1], CANDIDATES)[0]
            reranker.score("a word or two of every query", reader.tokens(collection, candidates))

        whole(0)
        together = _medians(whole, WHOLE)
    return {
        "open_s": round(opened[0], 4),
        "open_wall_s": round(opened[1], 4),
        "first_search_ms": round(cold[0], 3),
        "search_ms": round(search[0], 3),
        "search_wall_ms": round(search[1], 3),
        "recall": round(recall, 4),
        "fetch_ms": round(fetch[0], 3),
        "fetch_wall_ms": round(fetch[1], 3),
        "fetch_and_decode_ms": round(decode[0], 3),
        "whole_ms": round(together[0], 2),
        "whole_wall_ms": round(together[1], 2),
        "own_memory_bytes": after["RssAnon"] - before["RssAnon"],
        "own_memory_after_open_bytes": after_open["RssAnon"] - before["RssAnon"],
        "mapped_files_bytes": after["RssFile"] - before["RssFile"],
        "store_memory_bytes": max(store_memory, 0),
    }


def _queries(count: int, size: int) -> NDArray[np.float32]:
    """Return `(count, DIM)` unit vectors near the stored ones, shifted in one common direction."""
    _, _, centers = _drawn(size)
    rng = np.random.default_rng(1)
    aside = _directions(1, rng)
    near = centers[rng.integers(0, len(centers), count)] + 0.7 * _directions(count, rng) + aside
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    return near.astype(np.float32)


def _recall(
    collection: ImageCollection,
    queries: NDArray[np.float32],
    found: Sequence[Sequence[Candidate]],
) -> float:
    """Return the mean share of the true nearest neighbours that was found."""
    from qdrant_edge import Query, QueryRequest, SearchParams

    shard, shares = cast("Any", collection.index)._backend._engine, []
    for query, candidates in zip(queries, found, strict=True):
        exact = shard.query(
            QueryRequest(
                limit=CANDIDATES,
                query=Query.Nearest(query.tolist()),
                with_payload=False,
                params=SearchParams(exact=True),
            )
        )
        nearest = {str(hit.id) for hit in exact}
        shares.append(len(nearest & {c.image_id for c in candidates}) / len(nearest))
    return float(np.mean(shares))


def _medians(call: Callable[[int], Any], turns: int = QUERIES) -> tuple[float, float]:
    """Return the medians of processor and wall-clock time, in milliseconds."""
    times = []
    for turn in range(turns):
        process, wall = time.process_time(), time.perf_counter()
        call(turn)
        times.append((time.process_time() - process, time.perf_counter() - wall))
    middle = 1000 * np.median(times, axis=0)
    return float(middle[0]), float(middle[1])


def _resident() -> dict[str, int]:
    """Return the resident bytes of the process: anonymous memory and mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile")}


def _drawn(
    size: int,
) -> tuple[np.random.Generator, NDArray[np.float16], NDArray[np.float32]]:
    """Return a generator, tokens to fit the codec to, and cluster centers, with a fixed seed."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((64, NUM_TOKENS, TOKEN_DIM), dtype=np.float32)
    return rng, tokens.astype(np.float16), _directions(max(size // CENTERS_EACH, 1), rng)


def _directions(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    vectors = rng.standard_normal((count, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['size']:>9,}  open {row['open_s']:.3f} s  first stage {row['search_ms']:.2f} ms "
        f"(recall {row['recall']:.1%})  whole search {row['whole_ms']:.0f} ms  "
        f"tokens {row['fetch_ms']:.2f} ms (decoded {row['fetch_and_decode_ms']:.2f})  "
        f"memory {row['own_memory_bytes'] / 1e6:.1f} MB + mapped "
        f"{row['mapped_files_bytes'] / 1e6:.1f} MB  side file {row['side_bytes'] / 1e6:.1f} MB  "
        f"index {row['index_bytes'] / 1e6:.1f} MB"
    )


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    sizes = [row["size"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for key, label in (
        ("search_ms", "first stage, 100 candidates"),
        ("fetch_ms", "reading their tokens"),
    ):
        left.plot(sizes, [row[key] for row in rows], "o-", label=label)
    left.plot(sizes, [row["whole_ms"] for row in rows], "o-", label="with the joint encoder")
    left.plot(sizes, [1000 * row["open_s"] for row in rows], "s--", label="opening the collection")
    for key, label in (
        ("side_bytes", "side files on disk"),
        ("index_bytes", "index on disk"),
        ("own_memory_bytes", "memory of the process"),
        ("mapped_files_bytes", "mapped files in memory"),
    ):
        right.plot(sizes, [max(row[key], 1) / 1e6 for row in rows], "o-", label=label)
    left.set_ylabel("processor time, ms")
    right.set_ylabel("MB")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("images")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to draw (extra train)")
    parser.add_argument("--keep", type=Path, help="folder in which to keep the collections")
    parser.add_argument(
        "--only-build", action="store_true", help="with --keep: only build the collections"
    )
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
