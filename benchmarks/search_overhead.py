"""Measure the time of each step of a search outside the engine and the models.

    python benchmarks/search_overhead.py [--searches 200] [--out docs/results/search_overhead.json]

The bundled model, 500 drawn scenes in the embedded engine, tokens in side files, 100 candidates.
Functions are wrapped by clocks that measure their own time without that of wrapped functions they
call. Reported are medians over searches with different texts, one after another. The same searches
without clocks give `whole`. Processor time is used, so that other work on the machine does not
count; torch uses one thread, so that it equals wall-clock time on an idle machine.

`outside` is everything except the engine's query and the two models. It is also measured `by
itself`, with precomputed results of both models, because the joint encoder evicts code and data of
other steps from the processor's caches. A last measurement has the first stage on the device and a
token cache that contains all images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from demo_world import conditions, demo_collection
from torch import Tensor

from edje_qdrant import DeviceTokenCache, EDJEModel, Reranker, TwoStageRetriever
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.index.edge.backend import EdgeBackend
from edje_qdrant.index.index import VectorIndex
from edje_qdrant.model.inference.fast_joint_encoder import FastJointEncoder
from edje_qdrant.rerank.scorer import CandidateScorer
from edje_qdrant.rerank.token_loader import TokenReader
from edje_qdrant.search import retriever as retriever_module
from edje_qdrant.tokens import file_store as store_module
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.references import Problems

CANDIDATES, IMAGES = 100, 500

# Steps of search() that do not count as outside: the engine and the models.
INSIDE = {"the engine's query", "text tower", "joint encoder"}

# Python steps of the first stage's call, around the engine.
AROUND = ("query into the engine", "candidates out of the engine, in order")


class Clocks:
    """Measure the processor time of functions, without that of clocked functions they call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.order: list[str] = []
        self._below = [0.0]

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """Replace a function, method or class of `owner` by its clocked form."""
        setattr(owner, name, self.clocked(getattr(owner, name), label))

    def clocked(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        """Return a function that calls another one and adds its time under a label."""
        if label not in self.order:
            self.order.append(label)

        def timed(*args: Any, **options: Any) -> Any:
            self._below.append(0.0)
            began = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                spent = time.thread_time() - began
                self.seconds[label] += spent - self._below.pop()
                self._below[-1] += spent

        return timed


class ClockedShard:
    """Wrap the engine's shard to measure its queries."""

    def __init__(self, shard: Any, clocks: Clocks) -> None:
        self._shard = shard
        self.query_batch = clocks.clocked(shard.query_batch, "the engine's query")
        self.count = clocks.clocked(shard.count, "the engine's query")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)


class Precomputed(FastJointEncoder):
    """Return the same logits at once."""

    _zeros = torch.zeros(CANDIDATES)

    def __call__(self, captions: Sequence[Tensor], tokens: Tensor) -> Tensor:  # noqa: ARG002
        return self._zeros[: len(tokens)]


def main() -> None:
    """Measure, and print and write the results."""
    options = _options()
    torch.set_num_threads(1)
    model = EDJEModel.from_pretrained("demo", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        collection, captions = demo_collection(Path(folder), model, IMAGES)
        with collection:
            report = _measure(collection, model, captions, options.searches)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for row in report["rows"]:
        print(f"{row['what']:<44} {row['us']:>9,.0f} us  {row['share']:>6.1%}")
    print(
        f"{'whole, without clocks':<44} {report['whole_us']:>9,.0f} us\n"
        f"outside the engine and the models: {report['outside_us']:,.0f} us, "
        f"{report['outside_share']:.1%} of the whole "
        f"({report['outside_share_of_rerank']:.1%} of engine and joint encoder); "
        f"by itself, {report['outside_by_itself_us']:,.0f} us; with embeddings and tokens in "
        f"memory, their search included, {report['outside_in_memory_us']:,.0f} us"
    )


def _measure(
    collection: ImageCollection, model: EDJEModel, captions: list[str], searches: int
) -> dict[str, Any]:
    plain = TwoStageRetriever(collection, model)
    for text in captions[:10]:
        plain.search(text, num_candidates=CANDIDATES)
    rows: list[dict[str, float]] = []
    whole: list[float] = []
    texts = [captions[n % len(captions)] for n in range(searches)]
    by_itself = _by_itself(collection, model, texts)
    cache = DeviceTokenCache(IMAGES * 2 * model.config.num_tokens * model.config.token_dim)
    cache.preload(collection)
    in_memory = _by_itself(collection, model, texts, first_stage="device", token_cache=cache)
    clocks = Clocks()
    for text in texts:
        began = time.thread_time()
        plain.search(text, num_candidates=CANDIDATES)
        whole.append(time.thread_time() - began)
    # Clocks cannot be removed, so all searches without them run first.
    _put_on(clocks, collection, model)
    clocked = TwoStageRetriever(collection, model)
    for text in texts:
        clocks.seconds.clear()
        began = time.thread_time()
        clocked.search(text, num_candidates=CANDIDATES)
        total = time.thread_time() - began
        rows.append(
            {**clocks.seconds, "search(): arguments, glue": total - sum(clocks.seconds.values())}
        )
    labels = [*clocks.order, "search(): arguments, glue"]
    median = {label: float(np.median([row.get(label, 0.0) for row in rows])) for label in labels}
    total = float(np.median(whole))
    outside = sum(seconds for label, seconds in median.items() if label not in INSIDE)
    counted = sum(median.values())
    stages = median["the engine's query"] + median["joint encoder"]
    return {
        "candidates": CANDIDATES,
        "pictures": IMAGES,
        "searches": searches,
        **conditions(),
        "rows": [
            {
                "what": label,
                "us": round(1e6 * seconds, 1),
                "share": round(seconds / counted, 4),
                "outside": label not in INSIDE,
            }
            for label, seconds in sorted(median.items(), key=lambda item: -item[1])
        ],
        "whole_us": round(1e6 * total, 1),
        "clocked_us": round(1e6 * counted, 1),
        "outside_us": round(1e6 * outside, 1),
        "outside_first_stage_us": round(1e6 * (outside - sum(median[name] for name in AROUND)), 1),
        "outside_by_itself_us": round(1e6 * by_itself, 1),
        "outside_in_memory_us": round(1e6 * in_memory, 1),
        "outside_share": round(outside / counted, 4),
        "outside_share_of_rerank": round(outside / (outside + stages), 4),
    }


def _by_itself(
    collection: ImageCollection, model: EDJEModel, texts: list[str], **options: Any
) -> float:
    """Return the median seconds outside the engine, with precomputed results of both models."""
    given = {text: model.encode_texts([text]) for text in texts}
    reranker, index = Reranker(model), cast("Any", collection.index)
    towers = model.encode_texts, model.embed_texts
    clocks, shard = Clocks(), index._backend._engine
    cast("Any", reranker)._fast = Precomputed(model.joint_encoder)
    cast("Any", model).encode_texts = lambda queries: given[queries[0]]
    cast("Any", model).embed_texts = lambda queries: torch.from_numpy(given[queries[0]])
    index._backend._engine = ClockedShard(shard, clocks)
    seconds = []
    try:
        retriever = TwoStageRetriever(collection, model, reranker=reranker, **options)
        for text in texts:
            clocks.seconds.clear()
            began = time.thread_time()
            retriever.search(text, num_candidates=CANDIDATES)
            seconds.append(time.thread_time() - began - sum(clocks.seconds.values()))
    finally:
        cast("Any", model).encode_texts, cast("Any", model).embed_texts = towers
        index._backend._engine = shard
    return float(np.median(seconds))


def _put_on(clocks: Clocks, collection: ImageCollection, model: EDJEModel) -> None:
    """Clock the engine, the models and the steps of a search."""
    index: Any = collection.index
    backend = index._backend
    backend._engine = ClockedShard(backend._engine, clocks)
    clocks.wrap(VectorIndex, "nearest", "candidates out of the engine, in order")
    clocks.wrap(EdgeBackend, "nearest", "query into the engine")
    clocks.wrap(model, "encode_texts", "text tower")
    clocks.wrap(FileTokenStore, "codes", "tokens: side files")
    clocks.wrap(store_module, "gathered", "tokens: copy")
    clocks.wrap(store_module, "located", "tokens: references")
    clocks.wrap(Problems, "check", "tokens: checksums")
    clocks.wrap(TokenReader, "decode", "tokens: decode")
    clocks.wrap(TokenReader, "read", "tokens: into torch")
    clocks.wrap(ImageCollection, "codes", "tokens: candidates to references")
    clocks.wrap(Reranker, "score_pairs", "joint encoder: batches, tokenizing")
    clocks.wrap(FastJointEncoder, "__call__", "joint encoder")
    clocks.wrap(CandidateScorer, "_score_slice", "scorer")
    clocks.wrap(retriever_module, "rank_candidates", "hits")
    clocks.wrap(retriever_module, "SearchResult", "result")
    clocks.wrap(retriever_module, "check_texts", "query's check")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--searches", type=int, default=200, help="searches to time")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
