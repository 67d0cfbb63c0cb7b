"""Measure the product on a CUDA device, from the joint encoder to whole searches and ingests.

    python benchmarks/gpu.py [--out docs/results/gpu.json] [--profile FOLDER] [--tiny]

All weights and vectors are random, as speed does not depend on them. The joint encoder has
MiniLM-L12's size (12 layers of 384), captions 16 words, images 64 tokens; the towers have SigLIP2
L/16-384's size. The collection has 10,000 images of 1,024 dimensions in the embedded engine, their
float16 tokens in a side file. Before anything is timed, scores are compared with those of the
training form in float32.

`peak` is the rate of a large bfloat16 matrix product: in a short run, and sustained for a second or
so, since under a long load a GPU lowers its clock to keep within its power. Shares are of the short
run. Beside the product, in the same run: transformers' forward with fused attention, and a
`CrossEncoder` of sentence-transformers that reads texts of the same length.

`--profile` writes a profile of the joint encoder, a batch of searches, and single searches.
`--tiny` tries the script in small sizes, on a CPU too; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_world import conditions, untrained_model
from PIL import Image

from edje_qdrant import EDJEModel, ImageCollection, Reranker, TwoStageRetriever, ingest_images
from edje_qdrant.model import FastJointEncoder
from edje_qdrant.rerank.token_cache import DeviceTokenCache
from edje_qdrant.search.batcher import SearchBatcher
from edje_qdrant.types import ImageEncoding

LAYERS, WIDTH, HEADS, INNER, WORDS, TOKENS = 12, 384, 12, 1536, 16, 64
LENGTH = WORDS + TOKENS + 3  # [CLS], and [SEP] twice
# Multiplications and additions for one pair, all layers computed in full.
FLOPS = LAYERS * (LENGTH * (8 * WIDTH**2 + 4 * WIDTH * INNER) + 4 * LENGTH**2 * WIDTH)

# Bound of the difference of logits from float32's: this many times that of the training form in
# bfloat16.
SLACK = 4


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    images: int = 10_000
    pairs: int = 16 * 2048
    batch: int = 2048
    texts: int = 64
    clients: int = 32
    files: int = 3000
    vision_batch: int = 64
    large: int = 8192
    searches: int = 30
    layers: int = 24
    quick: bool = False


TINY = Sizes(12, 8, 4, 2, 2, 6, 1, 128, 1, 1, True)


@dataclass
class Run:
    """What is measured so far, and where."""

    device: torch.device
    sizes: Sizes
    profile: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    peak: float = 0.0

    def add(self, what: str, unit: str, value: float, *, pairs_per_s: float | None = None) -> None:
        """Add a row; `pairs_per_s` gives its share of the peak."""
        row: dict[str, Any] = {"what": what, "unit": unit, "value": float(f"{value:.4g}")}
        if pairs_per_s is not None:
            row["share"] = round(pairs_per_s * FLOPS / self.peak, 3)
        self.rows.append(row)
        print(f"  {what:<70} {row['value']:>12,} {unit:<10} {row.get('share', '')}", flush=True)

    def wait(self) -> None:
        """Wait until the device has done all work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], rounds: int = 5, warm_up: int = 3) -> float:
        """Return the median wall-clock seconds of a call, its work on the device included."""
        if self.sizes.quick:
            rounds, warm_up = 1, 0
        times = []
        for turn in range(warm_up + rounds):
            self.wait()
            began = time.perf_counter()
            call()
            self.wait()
            if turn >= warm_up:
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    @contextmanager
    def profiled(self, name: str) -> Iterator[None]:
        """Write a profile of the body, if profiles were asked for."""
        if self.profile is None:
            yield
            return
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        with profile(activities=kinds) as profiler:
            yield
            self.wait()
        averages = profiler.key_averages()
        keys = ["self_cpu_time_total"]
        if self.device.type == "cuda":
            keys.insert(0, "self_device_time_total")
        text = "\n".join(averages.table(sort_by=key, row_limit=25) for key in keys)
        file = name.replace(",", "").replace(" ", "_")
        (self.profile / f"{file}.txt").write_text(text, encoding="utf-8")


def main() -> None:
    """Measure, and print and write the results."""
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.tiny:
        raise SystemExit("no CUDA device here; --tiny tries the script on a CPU")
    if options.profile:
        options.profile.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    run = Run(device, TINY if options.tiny else Sizes(), options.profile)
    torch.manual_seed(0)
    peak, sustained = _peaks(run)
    with torch.device(device):
        model = _model(run.sizes)
    model.place(device, torch.bfloat16)
    checked = _check(run, model)
    parts: dict[str, Callable[[Run, EDJEModel], None]] = {
        "joint encoder": _joint_encoder, "others": _others, "reranker": _reranker,
        "encoding": _encoding, "searches": _searches, "ingest": _ingest,
    }  # fmt: skip
    for name, part in parts.items():
        if not options.parts or name in options.parts:
            part(run, model)
    report = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        **conditions(),
        "also": {name: _version(name) for name in ("transformers", "triton")},
        "cores": len(os.sched_getaffinity(0)),
        "peak_tflops": round(peak / 1e12),
        "sustained_tflops": round(sustained / 1e12),
        "difference": checked,
        "rows": run.rows,
        "seconds": round(time.perf_counter() - began),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in report.items() if key != "rows"}))


def _model(sizes: Sizes) -> EDJEModel:
    tower = {
        "hidden_size": 1024, "num_hidden_layers": sizes.layers, "num_attention_heads": 16,
        "intermediate_size": 4096,
    }  # fmt: skip
    return untrained_model(text=tower, **tower, image_size=384, patch_size=16)


def _peaks(run: Run) -> tuple[float, float]:
    """Return the floating-point operations a second of a product: short run, and sustained."""
    side = run.sizes.large
    a, b = (torch.randn(side, side, device=run.device).bfloat16() for _ in range(2))
    flops = 2 * side**3
    run.peak = flops / run.seconds(lambda: a @ b, rounds=10)
    many = 1 if side < 1000 else 400
    sustained = flops * many / run.seconds(lambda: [a @ b for _ in range(many)], 3, 1)
    print(f"peak {run.peak / 1e12:.0f} TFLOP/s, sustained {sustained / 1e12:.0f}", flush=True)
    return run.peak, sustained


def _check(run: Run, model: EDJEModel) -> dict[str, float]:
    """Compare scores with those of the training form in float32, on captions of mixed lengths."""
    groups = [_captions(run, 5, t) for t in (3, 18, 18, 33, 63)]
    tokens = _tokens(run, 25)
    parts = tokens.split([len(ids) for ids in groups])

    def training_form() -> torch.Tensor:
        with torch.inference_mode():
            logits = [
                model.joint_encoder(ids, torch.ones_like(ids), part)
                for ids, part in zip(groups, parts, strict=True)
            ]
        return torch.cat(logits).float()

    fast = FastJointEncoder(model.joint_encoder)
    found = torch.stack([fast(groups, tokens).float() for _ in range(4)])  # graphs from the third
    rounded = training_form()
    model.joint_encoder.float()
    exact = training_form()
    model.joint_encoder.bfloat16()
    ours, theirs = (float((logits - exact).abs().max()) for logits in (found, rounded))
    print(f"largest difference from float32 {ours:.2g}, training form {theirs:.2g}", flush=True)
    if not ours <= SLACK * theirs:
        raise SystemExit("the scores differ from float32's by more than rounding explains")
    return {
        "inference_form": float(f"{ours:.2g}"),
        "training_form": float(f"{theirs:.2g}"),
        "spread": float(f"{float(exact.std()):.2g}"),
    }


def _joint_encoder(run: Run, model: EDJEModel) -> None:
    sizes, fast = run.sizes, FastJointEncoder(model.joint_encoder)
    tokens, ids = _tokens(run, sizes.pairs), _captions(run, 1, WORDS + 2)
    for batch in (64, 256, 1024, sizes.batch, 4 * sizes.batch):
        if batch > sizes.pairs:
            continue
        starts = range(0, sizes.pairs if batch >= sizes.batch else 8 * batch, batch)

        def all_pairs(batch: int = batch, starts: range = starts) -> None:
            for start in starts:
                fast([ids.expand(batch, -1)], tokens[start : start + batch])

        rate = len(starts) * batch / run.seconds(all_pairs)
        run.add(f"joint encoder, batch {batch:,}", "pairs/s", rate, pairs_per_s=rate)
    for count in (100, 1000):
        count = min(count, sizes.pairs)

        def one(count: int = count) -> None:
            fast([ids.expand(count, -1)], tokens[:count]).cpu()

        run.add(f"joint encoder, {count:,} candidates, scores copied back", "ms",
                1e3 * run.seconds(one, 20))  # fmt: skip
    with run.profiled("joint_encoder"):
        fast([ids.expand(sizes.batch, -1)], tokens[: sizes.batch])


def _others(run: Run, model: EDJEModel) -> None:
    sizes = run.sizes
    ids, tokens = _captions(run, 1, WORDS + 2).expand(sizes.batch, -1), _tokens(run, sizes.batch)
    mask = torch.ones_like(ids)

    def transformers() -> None:
        with torch.inference_mode():
            model.joint_encoder(ids, mask, tokens)

    rate = sizes.batch / run.seconds(transformers)
    run.add(
        f"transformers, fused attention, batch {sizes.batch:,}", "pairs/s", rate, pairs_per_s=rate
    )
    if find_spec("sentence_transformers") is None:
        print("  sentence-transformers is not installed: not compared", flush=True)
        return
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    words = [f"w{n}" for n in range(1000)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    config = BertConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, vocab_size=len(pieces), num_labels=1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    query, *texts = (
        " ".join(rng.choice(words, count)) for count in (WORDS, *[TOKENS] * sizes.pairs)
    )
    with tempfile.TemporaryDirectory() as folder:
        BertForSequenceClassification(config).save_pretrained(folder)
        BertTokenizer({piece: n for n, piece in enumerate(pieces)}).save_pretrained(folder)
        other = CrossEncoder(folder, device=str(run.device), model_kwargs={"dtype": torch.bfloat16})
        pairs = [(query, text) for text in texts[: sizes.pairs // 4]]
        batch = min(512, len(pairs))
        rate = len(pairs) / run.seconds(
            lambda: other.predict(pairs, batch_size=batch, show_progress_bar=False), 2, 1
        )
    run.add(
        f"sentence-transformers CrossEncoder, texts of the same length, batch {batch}", "pairs/s",
        rate, pairs_per_s=rate,
    )  # fmt: skip


def _reranker(run: Run, model: EDJEModel) -> None:
    reranker, count = Reranker(model), min(10_000, run.sizes.pairs)
    resident = _tokens(run, count)
    host = resident.cpu().numpy()
    for name, tokens in (("on the device", resident), ("in the host's memory", host)):
        rate = count / run.seconds(lambda tokens=tokens: reranker.score(_text(0), tokens))
        run.add(f"Reranker.score, {count:,} pairs, tokens {name}", "pairs/s", rate,
                pairs_per_s=rate)  # fmt: skip


def _encoding(run: Run, model: EDJEModel) -> None:
    batch = run.sizes.vision_batch
    pixels = torch.randn(batch, 3, 384, 384)
    on_device = pixels.to(run.device, torch.bfloat16)
    vision: Any = model.encoder

    def tower() -> None:
        with torch.inference_mode():
            vision.encode_pixels(on_device)

    run.add(f"vision tower, batch {batch}, pixels on the device", "images/s",
            batch / run.seconds(tower))  # fmt: skip
    run.add(f"EDJEModel.encode_pixels, batch {batch}, from the host and back", "images/s",
            batch / run.seconds(lambda: model.encode_pixels(pixels)))  # fmt: skip
    with run.profiled("encoding"):
        tower()


def _searches(run: Run, model: EDJEModel) -> None:
    sizes = run.sizes
    with tempfile.TemporaryDirectory() as folder:
        collection = ImageCollection.create(folder, "images", model.contract())
        rng = np.random.default_rng(0)
        for start in range(0, sizes.images, 1000):
            count = min(1000, sizes.images - start)
            vectors = rng.standard_normal((count, 1024), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            tokens = rng.standard_normal((count, TOKENS, WIDTH), dtype=np.float32)
            ids = [str(uuid.UUID(int=start + n)) for n in range(count)]
            payloads = [
                {"path": f"{start + n}.jpg", "width": 640, "height": 480} for n in range(count)
            ]
            collection.add(ids, ImageEncoding(vectors, tokens.astype(np.float16)), payloads)
        collection.flush()
        collection.optimize()
        cache = DeviceTokenCache(2 * 49_152 * sizes.images, device=run.device)
        cache.preload(collection)
        with collection:
            _search(run, TwoStageRetriever(collection, model, token_cache=None), "no cache")
            with TwoStageRetriever(collection, model, token_cache=cache) as retriever:
                _search(run, retriever, "token cache on the device")


def _search(run: Run, retriever: TwoStageRetriever, name: str) -> None:
    sizes, depth = run.sizes, min(100, run.sizes.images)
    texts = [_text(n) for n in range(sizes.texts)]

    def batch() -> None:
        retriever.search_batch(texts, num_candidates=depth)

    rate = sizes.texts * depth / run.seconds(batch)
    run.add(f"search_batch, {sizes.texts} texts x {depth}, {name}", "pairs/s", rate,
            pairs_per_s=rate)  # fmt: skip
    with run.profiled(f"search_batch, {name}"):
        batch()
    with SearchBatcher(retriever) as batcher, ThreadPoolExecutor(sizes.clients) as pool:
        each = 1 if sizes.quick else 8

        def client(number: int) -> None:
            for n in range(each):
                batcher.search(_text(number + 100 * n), num_candidates=depth)

        def clients() -> None:
            for _ in pool.map(client, range(sizes.clients)):
                pass

        rate = each * sizes.clients * depth / run.seconds(clients, 3, 1)
    run.add(f"{sizes.clients} clients through SearchBatcher, {depth} candidates, {name}",
            "pairs/s", rate, pairs_per_s=rate)  # fmt: skip
    for count in (100, 1000):
        count = min(count, sizes.images)
        times: list[float] = []
        stages: list[Any] = []
        warm_up = 0 if sizes.quick else 10
        for n in range(sizes.searches + warm_up):
            began = time.perf_counter()
            result = retriever.search(_text(n), num_candidates=count)
            if n >= warm_up:
                times.append(time.perf_counter() - began)
                stages.append(result.timings)
        ms = 1e3 * statistics.median(times)
        run.add(f"search, {count:,} candidates, p50, {name}", "ms", ms)
        print(f"    {stages[-1]}", flush=True)
    with run.profiled(f"search, {name}"):
        for n in range(5):
            retriever.search(_text(n), num_candidates=depth)


def _ingest(run: Run, model: EDJEModel) -> None:
    sizes, rng = run.sizes, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "images")
        folder.mkdir()

        def write(number: int) -> None:
            # Smooth colours and some noise: about the bytes of a photograph.
            small = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
            image = np.asarray(Image.fromarray(small).resize((640, 480), 3), np.int16)
            noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{number:05}.jpg", quality=90)

        noise = rng.integers(-12, 13, (480, 640, 1), np.int16)
        with ThreadPoolExecutor() as pool:
            list(pool.map(write, range(sizes.files)))
        files = sorted(folder.iterdir())
        for turn, own in (
            ("first", files[: sizes.files // 3]),
            ("then", files[sizes.files // 3 :]),
        ):
            with ImageCollection.create(name, turn, model.contract()) as collection:
                began = time.perf_counter()
                report = ingest_images(own, collection, model, progress=False)
                rate = len(own) / (time.perf_counter() - began)
                assert report.added == len(own), report
        run.add(f"ingest_images, {len(own):,} JPEG files of 640 x 480, default settings",
                "images/s", rate)  # fmt: skip


def _captions(run: Run, n: int, length: int) -> torch.Tensor:
    """Return `(n, length)` word pieces, `[CLS] ... [SEP]`."""
    ids = torch.randint(5, 57, (n, length), device=run.device)
    ids[:, 0], ids[:, -1] = 2, 3
    return ids


def _tokens(run: Run, n: int) -> torch.Tensor:
    return torch.randn(n, TOKENS, WIDTH, device=run.device).half()


def _text(number: int) -> str:
    """Return 16 words of one word piece each; another text for each number."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join(letters[(number // 26**n + n) % 26] for n in range(WORDS))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--profile", type=Path, help="folder for profiles")
    parser.add_argument("--parts", nargs="+", help="measure these parts alone")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
