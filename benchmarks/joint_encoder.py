"""Compare implementations of the joint encoder: pairs per second, and effect of lower precision.

    python benchmarks/joint_encoder.py [--parts cpu blip quality] [--quick]
        [--out docs/results/joint_encoder.json]

The joint encoder has MiniLM-L12's size (12 layers of 384) and random weights (speed does not depend
on them); pairs have 64 tokens and 16 words. Variants alternate in rounds, so that other work on the
machine affects all of them equally. Ratios to `eager` are computed within each round, and their
median is reported. `wall` is wall-clock time; `processor` is the time of all cores together, which
is hardly affected by other work.

The parts are:

cpu        The joint encoder's implementations, at two batch sizes, with one and two threads.
blip       BLIP's and BLIP-2's complete image-text matching, vision tower included, for each pair.
quality    Order and R@1 of 20 candidates for each of 1,000 held-out scenes, with the bundled model.

A part replaces the same part of an existing `--out` file. `--quick` is for trying the script: one
round, and a tenth of the scenes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import BertConfig, BertForMaskedLM

from edje_qdrant import EDJEModel
from edje_qdrant.demo.annotated import write_scenes
from edje_qdrant.evaluation.nearest import nearest
from edje_qdrant.metrics import kendall_tau
from edje_qdrant.model import FastJointEncoder, JointEncoder, Precision
from edje_qdrant.model.inference.packed_linear import (
    has_int8_kernels,
    has_packed_kernels,
    pack_linear,
)
from edje_qdrant.model.inference.precision import choose_precision
from edje_qdrant.rerank.reranker import Reranker

LAYERS, WIDTH, HEADS, INNER, WORDS, TOKENS = 12, 384, 12, 1536, 16, 64
LENGTH = WORDS + TOKENS + 3  # [CLS], and [SEP] twice
# Multiplications and additions for one pair, all layers computed in full.
FLOPS = LAYERS * (LENGTH * (8 * WIDTH**2 + 4 * WIDTH * INNER) + 4 * LENGTH**2 * WIDTH)

# Memory of BLIP-2's 1.2 billion float32 weights and its activations.
BLIP2_BYTES = 7e9

Call = Callable[[], Any]


def main() -> None:
    """Measure, and print and write the results."""
    options = _options()
    report: dict[str, Any] = {}
    if options.out and options.out.exists():
        report = json.loads(options.out.read_text(encoding="utf-8"))
    for part in options.parts:
        began, before = time.perf_counter(), os.getloadavg()[0]
        print(f"{part}:", flush=True)
        found = PARTS[part](options.quick)
        if found is not None:
            found |= {
                "date": datetime.now(timezone.utc).date().isoformat(),
                "machine": f"{_processor()}, {os.cpu_count()} cores",
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "load": [round(before, 1), round(os.getloadavg()[0], 1)],
                "seconds": round(time.perf_counter() - began),
                "quick": options.quick,
            }
        elif report.get(part):
            continue  # keep the result of an earlier run on another machine
        report[part] = found
        if options.out:
            options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def cpu(quick: bool) -> dict[str, Any]:
    """Compare implementations at two batch sizes, with one thread and with two."""
    encoder = _encoder("eager")
    sdpa = _encoder("sdpa")
    fast: dict[str, FastJointEncoder] = {
        name: FastJointEncoder(encoder, name) for name in _precisions()
    }
    rows, products = [], []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        products.append({"threads": threads} | _products())
        print(f"  {products[-1]}", flush=True)
        for batch, rounds in ((64, 4), (10, 9)):
            ids, mask, tokens = _input(batch)
            calls: dict[str, Call] = {
                "eager": lambda i=ids, m=mask, t=tokens: encoder(i, m, t),
                "sdpa": lambda i=ids, m=mask, t=tokens: sdpa(i, m, t),
            }
            for name, form in fast.items():
                calls[name] = lambda f=form, i=ids, t=tokens: f([i], t)
            for name, figures in _compare(calls, 1 if quick else rounds).items():
                rate = batch / figures["wall_s"]
                row = {"threads": threads, "batch": batch, "form": name}
                row |= {"pairs_per_s": round(rate, 1), "gflops": round(rate * FLOPS / 1e9)}
                row |= {key: round(figure, 4) for key, figure in figures.items()}
                rows.append(row)
                print(f"  {row}", flush=True)
    chosen = choose_precision(WIDTH, torch.float32, torch.device("cpu"))
    return {"auto": chosen, "gflop_per_pair": round(FLOPS / 1e9, 2), "products": products} | {
        "rows": rows
    }


def blip(quick: bool) -> dict[str, Any]:
    """Compare the joint encoder with BLIP's and BLIP-2's image-text matching, with two threads."""
    torch.set_num_threads(2)
    fast = FastJointEncoder(_encoder("sdpa"))
    ids, _, tokens = _input(64)
    edje: Call = lambda: fast([ids], tokens)  # noqa: E731
    found = _compare({"edje": edje, "blip": _blip(4)}, 1 if quick else 3)
    rates = {"edje": 64 / found["edje"]["wall_s"], "blip": 4 / found["blip"]["wall_s"]}
    ratios = {"blip": 64 / 4 / found["blip"]["wall_ratio"]}
    print(f"  {rates}", flush=True)
    note, free = None, _available()
    if free < BLIP2_BYTES:
        note = f"BLIP-2 needs {BLIP2_BYTES / 1e9:.0f} GB, and {free / 1e9:.1f} GB were free"
    else:
        found = _compare({"edje": edje, "blip2": _blip2()}, 1 if quick else 2)
        rates["blip2"] = 1 / found["blip2"]["wall_s"]
        ratios["blip2"] = 64 / found["blip2"]["wall_ratio"]
    print(f"  {rates} {ratios} {note}", flush=True)
    return {
        "pairs_per_s": {name: round(rate, 3) for name, rate in rates.items()},
        "edje_times": {name: round(ratio, 1) for name, ratio in ratios.items()},
        "precision": fast.kernel(),
        "note": note,
    }


def quality(quick: bool) -> dict[str, Any]:
    """Compare order and R@1 on demo scenes with those of the training form in float32."""
    torch.set_num_threads(2)
    scenes, depth = 100 if quick else 1000, 20
    model = EDJEModel.from_pretrained("demo", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = write_scenes(folder, count=scenes, progress=False)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        images = model.encode_images([Image.open(Path(folder) / x["image"]) for x in lines])
    captions = [line["caption"] for line in lines]
    found, _ = nearest(model.encode_texts(captions), images.embeddings, depth)
    right = found == np.arange(scenes)[:, None]
    scores: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    for name in ("model", *_precisions()):
        reranker = Reranker(model, precision=name)
        began = time.process_time()
        said = [caption for caption in captions for _ in range(depth)]
        joint = reranker.score_pairs(said, images.tokens[found.ravel()])
        scores[name] = joint.reshape(scenes, depth)
        seconds[name] = time.process_time() - began
    rows = []
    for name, joint in scores.items():
        best = right[np.arange(scenes), joint.argmax(axis=1)]
        taus = kendall_tau(joint, scores["model"])
        rows.append(
            {
                "form": name,
                "R@1": round(float(best.mean()), 4),
                "tau": round(float(taus.mean()), 4),
                "tau_lowest": round(float(taus.min()), 4),
                "pairs_per_processor_s": round(joint.size / seconds[name]),
            }
        )
        print(f"  {rows[-1]}", flush=True)
    return {"scenes": scenes, "candidates": depth, "rows": rows}


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "cpu": cpu, "blip": blip, "quality": quality,
}  # fmt: skip


def _precisions() -> list[Precision]:
    names: list[Precision] = ["float32"]
    if has_packed_kernels(torch.bfloat16):
        names.append("bfloat16")
    if has_int8_kernels():
        names.append("int8")
    return names


def _encoder(attention: str) -> JointEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, attn_implementation=attention,
    )  # fmt: skip
    return JointEncoder(BertForMaskedLM(config), sep_token_id=102, embedding_dim=WIDTH).eval()


def _input(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(1000, 20000, (1, WORDS + 2)).expand(batch, -1)
    return ids, torch.ones_like(ids), torch.randn(batch, TOKENS, WIDTH).half()


def _compare(calls: dict[str, Call], rounds: int) -> dict[str, dict[str, float]]:
    """Alternate calls; return medians of their times, and of the first call's time over each."""
    times: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in calls} for clock in ("wall", "processor")
    }
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, call in calls.items():
                began, spent = time.perf_counter(), time.process_time()
                call()
                if turn:  # the first round is the warm-up
                    times["processor"][name].append(time.process_time() - spent)
                    times["wall"][name].append(time.perf_counter() - began)
    found: dict[str, dict[str, float]] = {name: {} for name in calls}
    for clock, measured in times.items():
        first = next(iter(measured.values()))
        for name, seconds in measured.items():
            found[name][f"{clock}_s"] = statistics.median(seconds)
            found[name][f"{clock}_ratio"] = statistics.median(
                a / b for a, b in zip(first, seconds, strict=True)
            )
    return found


def _products() -> dict[str, float]:
    """Return GFLOP/s of the joint encoder's widest matrix product, by precision."""
    rows = 32 * LENGTH
    x, weight, bias = torch.randn(rows, WIDTH), torch.randn(INNER, WIDTH), torch.randn(INNER)
    calls: dict[str, Call] = {"eager": lambda: torch.nn.functional.linear(x, weight, bias)}
    for name in _precisions():
        linear = pack_linear(weight, bias, name)  # type: ignore[arg-type]
        given = x if name == "float32" else x.bfloat16()
        calls[name] = lambda f=linear, g=given: f(g)
    flops = 10 * 2 * rows * WIDTH * INNER
    found = _compare({name: _many(call) for name, call in calls.items()}, 7)
    return {name: round(flops / figures["wall_s"] / 1e9) for name, figures in found.items()}


def _many(call: Call) -> Call:
    return lambda: [call() for _ in range(10)]


def _blip(batch: int) -> Call:
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipTextConfig, BlipVisionConfig

    vision = BlipVisionConfig(image_size=384)  # otherwise as published: ViT-B/16
    text = BlipTextConfig(encoder_hidden_size=vision.hidden_size)
    model = BlipForImageTextRetrieval(
        BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    ).eval()
    pixels = torch.randn(batch, 3, 384, 384)
    ids = torch.randint(1000, 20000, (batch, WORDS + 2))
    mask = torch.ones_like(ids)
    return lambda: (
        model(input_ids=ids, pixel_values=pixels, attention_mask=mask, use_itm_head=True).itm_score
    )


def _blip2() -> Call:
    from transformers import (
        Blip2Config,
        Blip2ForImageTextRetrieval,
        Blip2QFormerConfig,
        Blip2VisionConfig,
    )

    config = Blip2Config(
        vision_config=Blip2VisionConfig(image_size=364).to_dict(),  # ViT-g/14, as published
        qformer_config=Blip2QFormerConfig(
            vocab_size=30523, use_qformer_text_input=True, encoder_hidden_size=1408
        ).to_dict(),
        image_text_hidden_size=256,
        num_query_tokens=32,
    )
    with torch.device("meta"):
        model = Blip2ForImageTextRetrieval(config)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():  # random values for a billion weights would take too long
        for weight in model.parameters():
            weight.fill_(0.01)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name == "position_ids":
                    buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    pixels, ids = torch.randn(1, 3, 364, 364), torch.randint(1000, 20000, (1, WORDS + 2))
    mask = torch.ones_like(ids)
    return lambda: (
        model(
            pixel_values=pixels,
            input_ids=ids,
            attention_mask=mask,
            use_image_text_matching_head=True,
        ).logits_per_image
    )


def _available() -> float:
    """Return the available memory in bytes; 0 if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return 1024.0 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--quick", action="store_true", help="try the script: one round, fewer scenes"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
