"""Time reading the tokens of 100 candidates, against a plain copy of as many bytes.

Run: python benchmarks/token_fetch.py [--records 5000]

Prints one JSON object. The ratios, taken in one run on one machine, are what to compare; the
milliseconds are the machine's. The page cache is warm: every record was read once before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from edje_qdrant.contract import TokenContract
from edje_qdrant.tokens.checksum import checksums
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.payload_store import PayloadTokenStore

CANDIDATES, NUM_TOKENS, TOKEN_DIM = 100, 64, 384


def median_ms(call: Callable[[], object], repeats: int = 50) -> float:
    """Return the median wall-clock milliseconds of a call, after three unmeasured ones."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def measure(records: int, folder: Path) -> dict[str, float]:
    """Fill a store with random tokens and time each way of reading 100 of them."""
    contract = TokenContract("random", "0", "0", 8, "0", num_tokens=NUM_TOKENS, token_dim=TOKEN_DIM)
    rng = np.random.default_rng(0)
    ids = [str(i) for i in range(records)]
    with closing(FileTokenStore.create(folder / "tokens", contract)) as store:
        references = []
        for start in range(0, records, 500):
            n = min(500, records - start)
            tokens = rng.standard_normal((n, NUM_TOKENS, TOKEN_DIM), dtype=np.float32)
            references += store.put(ids[start : start + n], tokens.astype(np.float16))
        store.flush()
        store.get(ids, references)

        picks = rng.integers(0, records, (53, CANDIDATES)).tolist()
        wanted = [([ids[i] for i in pick], [references[i] for i in pick]) for pick in picks]
        turn = iter(wanted)
        fetch = median_ms(lambda: store.get(*next(turn)))

        tokens = store.get(*wanted[0])
        codes = tokens.view(np.uint8).reshape(CANDIDATES, -1)
        carried = PayloadTokenStore(contract)
        in_payload = carried.put(wanted[0][0], tokens)
        in_memory = np.zeros((records, codes.shape[1]), dtype=np.uint8)
        in_memory[:] = codes[0]
        turn_in_memory = iter(picks)
        return {
            "memcpy": median_ms(lambda: codes.copy()),
            "gather from memory": median_ms(lambda: in_memory[next(turn_in_memory)]),
            "side file": fetch,
            "of which checksums": median_ms(lambda: checksums(codes)),
            "crc32 of as much": median_ms(lambda: [zlib.crc32(row) for row in codes]),
            "payload, decoding only": median_ms(lambda: carried.get(wanted[0][0], in_payload)),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=5000, help="records in the side file")
    with tempfile.TemporaryDirectory() as folder:
        times = measure(parser.parse_args().records, Path(folder))
    report = {
        "candidates": CANDIDATES,
        "bytes": CANDIDATES * NUM_TOKENS * TOKEN_DIM * 2,
        "ms": {name: round(ms, 3) for name, ms in times.items()},
        "ratio to memcpy": {name: round(ms / times["memcpy"], 1) for name, ms in times.items()},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
