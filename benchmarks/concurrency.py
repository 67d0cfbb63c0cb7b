"""Compare concurrent clients, whose searches `SearchBatcher` merges, with one batch of searches.

    python benchmarks/concurrency.py [--clients 32] [--rounds 4] [--out concurrency.json]

The bundled model, 300 drawn scenes in the embedded engine, 20 candidates a search. `offline` is
`search_batch` with one text for each client; `merged` are threads that each search repeatedly
through a `SearchBatcher`; `alone` is one search after another. The three alternate in rounds, and
the ratios are medians over rounds, so that other work on the machine affects all of them equally.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_world import conditions, demo_collection

from edje_qdrant import EDJEModel, SearchBatcher, TwoStageRetriever

IMAGES, CANDIDATES, EACH = 300, 20, 3


def main() -> None:
    """Measure, and print and write the results."""
    options = _options()
    torch.set_num_threads(1)
    model = EDJEModel.from_pretrained("demo", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        collection, captions = demo_collection(Path(folder), model, IMAGES)
        with TwoStageRetriever(collection, model) as retriever:
            report = _measure(retriever, captions, options)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def _measure(
    retriever: TwoStageRetriever, captions: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    clients = options.clients
    asked = [
        [captions[(client * EACH + n) % len(captions)] for n in range(EACH)]
        for client in range(clients)
    ]
    rates: dict[str, list[float]] = {"alone": [], "offline": [], "merged": []}
    with (
        SearchBatcher(retriever, max_batch=clients) as batcher,
        ThreadPoolExecutor(clients) as pool,
    ):

        def offline() -> None:
            for n in range(EACH):
                retriever.search_batch([texts[n] for texts in asked], num_candidates=CANDIDATES)

        def merged() -> None:
            def client(texts: list[str]) -> None:
                for text in texts:
                    batcher.search(text, num_candidates=CANDIDATES)

            for future in [pool.submit(client, texts) for texts in asked]:
                future.result()

        def alone() -> None:
            for texts in asked:
                retriever.search(texts[0], num_candidates=CANDIDATES)

        for call in (merged, offline):
            call()  # warm-up
        for _ in range(options.rounds):
            for name, call, count in (
                ("offline", offline, clients * EACH),
                ("merged", merged, clients * EACH),
                ("alone", alone, clients),
            ):
                began = time.perf_counter()
                call()
                rates[name].append(count / (time.perf_counter() - began))
    return {
        "clients": clients,
        "candidates": CANDIDATES,
        "pictures": IMAGES,
        "rounds": options.rounds,
        **conditions(),
        "searches_per_second": {
            name: round(float(np.median(each)), 2) for name, each in rates.items()
        },
        "merged_to_offline": _ratio(rates["merged"], rates["offline"]),
        "merged_to_alone": _ratio(rates["merged"], rates["alone"]),
    }


def _ratio(one: list[float], other: list[float]) -> float:
    return round(float(np.median(np.array(one) / np.array(other))), 3)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
