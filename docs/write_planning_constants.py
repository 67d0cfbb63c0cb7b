"""Write `edje_qdrant/planning/constants.json`, the constants of `edje-qdrant plan`.

Most come from `docs/results/`; a test fails when the file is stale. The others were measured by
hand or are targets, and are marked as such.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from result_tables import read

TARGET = Path(__file__).parent.parent / "edje_qdrant" / "planning" / "constants.json"

BY_HAND = "measured by hand before the first version; no command of this repository repeats it"
GPU_INGEST = "ingest_images, 2,000 JPEG files of 640 x 480, default settings"
TWO_CORES = "x86_64 with AVX-512 and bf16, 2 cores, no GPU"


def constants() -> dict[str, Any]:
    """Return the up-to-date constants."""
    fetch, growth, gpu = read("token_fetch"), read("growth"), read("gpu")
    ingest = read("ingest_rate_large")
    # Processor time, since other programs ran on the machine during the measurement.
    image_seconds = {
        name: seconds / ingest["pictures"] for name, seconds in ingest["processor_seconds"].items()
    }
    of_ingest = {
        "date": ingest["date"],
        "machine": f"{ingest['machine']}, processor time",
        "command": "python benchmarks/ingest_rate.py --model large --photographs --images "
        f"{ingest['pictures']} --batch-size {ingest['batch_size']} --rounds {ingest['rounds']}",
        "measured": True,
    }
    gpu_rates = {row["what"]: row["value"] for row in gpu["rows"]}
    reads = {r["codec"]: r for r in fetch["rows"] if r["place"] == "side file"}
    largest = max(growth["rows"], key=lambda row: row["size"])
    of_fetch = {
        "date": fetch["date"],
        "machine": fetch["machine"] + ", one thread",
        "command": "python benchmarks/token_fetch.py --out docs/results/token_fetch.json",
        "measured": True,
    }
    of_growth = {
        "date": growth["date"],
        "machine": growth["machine"] + ", processor time",
        "command": f"python benchmarks/growth.py --sizes {largest['size']} --out growth.json",
        "measured": True,
    }
    return {
        "first_stage_ms": {
            "value": largest["search_ms"],
            "what": f"one query of {growth['candidates']} candidates among {largest['size']:,} "
            f"images, vectors {growth['dim']} wide, embedded engine",
            "pictures": largest["size"],
            "candidates": growth["candidates"],
            **of_growth,
        },
        "index_bytes_besides_vectors": {
            "value": round(largest["index_bytes"] / largest["size"] - 4 * growth["dim"]),
            "what": "graph, ids and a payload of three fields, an image",
            **of_growth,
        },
        "fetch_ms": {
            "value": {codec: row["fetch_ms"] for codec, row in reads.items()},
            "what": f"reading and checking the codes of {fetch['candidates']} candidates of "
            "64 x 384 tokens from side files in the page cache",
            "candidates": fetch["candidates"],
            **of_fetch,
        },
        "decode_ms": {
            "value": {codec: row["decode_ms"] for codec, row in reads.items()},
            "what": f"decoding the codes of {fetch['candidates']} candidates on the CPU",
            "candidates": fetch["candidates"],
            **of_fetch,
        },
        "cpu_pairs_per_second_and_core": {
            "value": 43,
            "what": "joint encoder of 12 layers x 384, 64 tokens and 16 words, bf16, batch 64: 86 "
            "pairs a second on two cores",
            "date": "2026-11-21",
            "machine": TWO_CORES,
            "command": BY_HAND,
            "measured": True,
        },
        "gpu_pairs_per_second": {
            "value": round(gpu_rates["joint encoder, batch 2,048"]),
            "what": "the same in batches of 2,048 on one GPU, tokens on the device",
            "date": gpu["date"],
            "machine": f"one {gpu['device']}",
            "command": "python benchmarks/gpu.py",
            "measured": True,
        },
        "images_per_second_two_cores": {
            "value": float(f"{2 / image_seconds['ingest_2_workers']:.2g}"),
            "what": "first ingest of JPEG files of 12 megapixels on two cores, SigLIP2 ViT-L/16 at "
            "384 pixels, float32",
            **of_ingest,
        },
        "decode_photograph_ms": {
            "value": round(1000 * image_seconds["all_but"]),
            "what": "reading, decoding and resizing a JPEG file of 12 megapixels on one core",
            **of_ingest,
        },
        "images_per_second_gpu": {
            "value": round(gpu_rates[GPU_INGEST]),
            "what": "first ingest of JPEG files of 640 x 480 on one GPU with "
            f"{gpu['cores']} cores, SigLIP2 ViT-L/16 at 384 pixels, bf16",
            "cores": gpu["cores"],
            "date": gpu["date"],
            "machine": f"one {gpu['device']}",
            "command": "python benchmarks/gpu.py",
            "measured": True,
        },
    }


def text() -> str:
    """Return the up-to-date text of the file."""
    return json.dumps(constants(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
