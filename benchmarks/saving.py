"""Measure what can be saved of the joint encoder's work without training another model.

    OMP_NUM_THREADS=1 python benchmarks/saving.py [--images 1000 4000]
        [--out docs/results/saving.json]

The bundled model on held-out scenes, one caption for each of the first thousand, against the full
form: every candidate of the first stage through all layers. Among more images, the first stage is
less sure. Shortcuts:

fewer candidates   Only the best of the first stage are scored.
adaptive           `search(adaptive=True, top_k=1)`, by the model's calibration.
early score        All candidates pass the first layers; a linear probe on their states scores them,
                   and only the best go through the remaining layers. The probe is fitted by least
                   squares to the logits of validation scenes.
fewer tokens       After the first layers, only the tokens remain that get the most attention in
                   the last of these layers, from `[CLS]` or from all rows of the caption.
shared text        Queries, keys and values of the caption's rows in the first layer are the same
                   for all candidates and computed once. Exact, so only its time is measured, at
                   the published size with random weights.

R@1 has a paired bootstrap interval over the queries. The time is that of the joint encoder alone,
for one query's candidates; variants alternate with the full form, and the median of the ratios of
processor time is reported. A shortcut is worth it if it is at least 1.5 times as fast and the
interval of what it loses ends at half a point.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_world import BATCH, conditions
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

from edje_qdrant import EDJEModel
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.run import scene_captions
from edje_qdrant.demo.scenes import Split, draw_scenes
from edje_qdrant.evaluation.bootstrap import difference, resampled_means
from edje_qdrant.evaluation.nearest import nearest
from edje_qdrant.model import JointEncoder
from edje_qdrant.model.calibration import adaptive_stops
from edje_qdrant.model.flat_modules import FlatModules
from edje_qdrant.model.inference.packed_weights import pack, signature

PAIRS_AT_ONCE = 32  # as the product does, so that activations stay in the processor's caches
PROBE_SCENES, PROBE_CANDIDATES = 600, 40
RIDGE = 1e-3
FASTER, LOST = 1.5, 0.005  # what a shortcut must reach
QUERIES = 1000

CANDIDATES = (50, 30, 20)
EARLY = ((1, 50), (1, 30), (1, 20), (2, 30), (2, 20), (2, 10), (3, 20), (3, 10))  # layers, kept
TOKENS = (
    (1, 8, "[CLS]"), (1, 8, "the caption"), (2, 8, "the caption"), (2, 12, "the caption"),
    (3, 4, "the caption"), (3, 8, "the caption"),
)  # fmt: skip


class Steps:
    """The inference form of the joint encoder, one layer at a time, for captions of one length."""

    def __init__(self, joint_encoder: JointEncoder) -> None:
        self.head = joint_encoder
        self.packed = pack(
            joint_encoder, "float32", signature(joint_encoder, "float32", FlatModules())
        )
        self.layers = len(self.packed.layers) + 1

    def start(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """Return the first layer's input `(n, s, d)` for ids `(t,)` and tokens `(n, m, d)`."""
        p, (n, m, _), t = self.packed, tokens.shape, len(ids)
        words = (p.words[ids] + p.caption_places[:t]).expand(n, -1, -1)
        image = tokens + p.image_places[t : t + m]
        sep = (p.sep + p.image_places[t + m]).expand(n, 1, -1)
        return p.embedding_norm(torch.cat([words, image, sep], dim=1))

    def layer(self, number: int, x: Tensor, *, text: int = 0) -> tuple[Tensor, Tensor | None]:
        """Run one layer but the last.

        Args:
            number: From 0.
            x: `(n, s, d)`.
            text: If given, also return the attention that each row gets from the first `text`
                rows, `(n, s)`.
        """
        layer = self.packed.layers[number]
        q, k, v = self._heads(layer.qkv(x.flatten(0, 1)), x.shape[:2])
        given = None
        if text:
            weights = (q[:, :, :text] @ k.transpose(-1, -2)).softmax(-1)  # (n, h, text, s)
            given = weights.mean(dim=(1, 2))
        return self._after(number, x, q, k, v), given

    def first_layer_with_shared_text(self, x: Tensor, text: int) -> Tensor:
        """Run layer 0 with the first `text` rows' queries, keys and values computed once."""
        n, s, d = x.shape
        qkv = self.packed.layers[0].qkv
        shared = qkv(x[0, :text]).expand(n, -1, -1)  # (n, text, 3 d)
        own = qkv(x[:, text:].reshape(-1, d)).view(n, s - text, -1)
        q, k, v = self._heads(torch.cat([shared, own], dim=1).flatten(0, 1), x.shape[:2])
        return self._after(0, x, q, k, v)

    def finish(self, x: Tensor) -> Tensor:
        """Run the last layer, for the first row alone, and the classifier: `(n,)` logits."""
        last, (n, s, d), h = self.packed.last, x.shape, self.packed.heads
        first = x[:, 0].contiguous()
        k, v = last.key_value(x.flatten(0, 1)).view(n, s, 2, h, -1).permute(2, 0, 3, 1, 4)
        q = last.query(first).view(n, h, 1, -1)
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=1.0).reshape(n, d)
        pooled = torch.tanh(self.head.pooler(last.after(mixed, first)))
        logits: Tensor = self.head.classifier(pooled)[:, 0]
        return logits

    def through(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Run layers `start` to `stop`, `(n, s, d)`."""
        for number in range(start, stop):
            x, _ = self.layer(number, x)
        return x

    def score(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of the full form, `(n,)`."""
        return torch.cat(
            [
                self.finish(self.through(self.start(ids, part), 0, self.layers - 1))
                for part in tokens.split(PAIRS_AT_ONCE)
            ]
        )

    def _heads(self, qkv: Tensor, shape: tuple[int, ...]) -> Tensor:
        return qkv.view(*shape, 3, self.packed.heads, -1).permute(2, 0, 3, 1, 4)

    def _after(self, number: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        mixed = mixed.transpose(1, 2).reshape(-1, x.shape[-1])
        return self.packed.layers[number].after(mixed, x.flatten(0, 1)).view(x.shape)


@dataclass
class World:
    """Captions, and the first stage's candidates of each.

    Attributes:
        ids: Token ids of each caption, `(t,)`.
        found: `(q, n)` rows of the candidates' images, best first.
        cosines: `(q, n)`.
        tokens: `(images, m, d)` float32.
    """

    ids: list[Tensor]
    found: NDArray[np.int64]
    cosines: NDArray[np.float32]
    tokens: Tensor

    def queries(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield number, ids and candidates' tokens of each query."""
        for number, ids in enumerate(self.ids):
            yield number, ids, self.tokens[torch.from_numpy(self.found[number])]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Return `(q, n)`: whether a candidate is the image that the caption was written for."""
        return self.found == np.arange(len(self.found))[:, None]


def make_world(model: EDJEModel, split: Split, seed: int, images: int, candidates: int) -> World:
    """Draw scenes, encode them and search for one caption of each of the first ones."""
    drawn = list(draw_scenes(split, seed, images))
    captions = [caption.text for caption in scene_captions(drawn, seed)][:QUERIES]
    parts = [
        model.encode_images([draw(scene) for scene in drawn[start : start + BATCH]])
        for start in range(0, images, BATCH)
    ]
    embeddings = np.concatenate([part.embeddings for part in parts])
    tokens = np.concatenate([part.tokens for part in parts])
    found, cosines = nearest(model.encode_texts(captions), embeddings, candidates)
    ids = []
    for caption in captions:
        own, mask = model.tokenize([caption])
        ids.append(own[0, : int(mask.sum())])
    return World(ids, found, cosines, torch.from_numpy(tokens).float())


def features(x: Tensor, text: int, cosines: Tensor) -> Tensor:
    """Return what a probe sees: `[CLS]`, the means of caption and tokens, the cosine, a one."""
    means = [x[:, 0], x[:, 1:text].mean(1), x[:, text:].mean(1)]
    return torch.cat([*means, cosines[:, None], torch.ones(len(x), 1)], dim=1)


def fit_probes(steps: Steps, world: World) -> list[Tensor]:
    """Fit a probe for each layer but the last: least squares to the logits."""
    seen: list[list[Tensor]] = [[] for _ in range(steps.layers - 1)]
    logits = []
    for number, ids, tokens in world.queries():
        cosines = torch.from_numpy(world.cosines[number])
        x = steps.start(ids, tokens)
        for layer in range(steps.layers - 1):
            x, _ = steps.layer(layer, x)
            seen[layer].append(features(x, len(ids), cosines))
        logits.append(steps.finish(x))
    target = torch.cat(logits).double()
    probes = []
    for parts in seen:
        a = torch.cat(parts).double()
        gram = a.T @ a
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        probes.append(torch.linalg.solve(gram, a.T @ target).float())
    return probes


class Shortcut:
    """One way to save work: a name, and how it scores a query's candidates.

    `score` takes ids `(t,)`, tokens `(n, m, d)` and cosines `(n,)`, and returns `(n,)` logits, with
    minus infinity for candidates that were not scored to the end.
    """

    def __init__(self, name: str, score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self.name, self.score = name, score


def first_candidates(steps: Steps, count: int) -> Shortcut:
    """Score the best candidates of the first stage alone."""

    def score(ids: Tensor, tokens: Tensor, _: Tensor) -> Tensor:
        logits = torch.full((len(tokens),), -torch.inf)
        logits[:count] = steps.score(ids, tokens[:count])
        return logits

    return Shortcut(f"fewer candidates: {count}", score)


def early_score(steps: Steps, probe: Tensor, depth: int, kept: int) -> Shortcut:
    """Send all candidates through `depth` layers, and the best by the probe through all."""

    def score(ids: Tensor, tokens: Tensor, cosines: Tensor) -> Tensor:
        states = torch.cat(
            [
                steps.through(steps.start(ids, part), 0, depth)
                for part in tokens.split(PAIRS_AT_ONCE)
            ]
        )
        best = (features(states, len(ids), cosines) @ probe).topk(min(kept, len(tokens))).indices
        logits = torch.full((len(tokens),), -torch.inf)
        logits[best] = torch.cat(
            [
                steps.finish(steps.through(part, depth, steps.layers - 1))
                for part in states[best].split(PAIRS_AT_ONCE)
            ]
        )
        return logits

    return Shortcut(f"early score: {depth} of {steps.layers} layers, {kept} candidates on", score)


def fewer_tokens(steps: Steps, depth: int, kept: int, by: str) -> Shortcut:
    """Keep the tokens that get the most attention in layer `depth` for the layers after it."""

    def score(ids: Tensor, tokens: Tensor, _: Tensor) -> Tensor:
        t, found = len(ids), []
        for part in tokens.split(PAIRS_AT_ONCE):
            x = steps.through(steps.start(ids, part), 0, depth - 1)
            x, given = steps.layer(depth - 1, x, text=1 if by == "[CLS]" else t)
            assert given is not None
            chosen = t + given[:, t:-1].topk(kept, dim=1).indices.sort(dim=1).values  # (n, kept)
            own = x.gather(1, chosen[:, :, None].expand(-1, -1, x.shape[-1]))
            x = torch.cat([x[:, :t], own, x[:, -1:]], dim=1)
            found.append(steps.finish(steps.through(x, depth, steps.layers - 1)))
        return torch.cat(found)

    return Shortcut(f"fewer tokens: {kept} of 16 after layer {depth}, by {by}", score)


def ratio(full: Callable[[], Any], short: Callable[[], Any], rounds: int) -> float:
    """Return the median of processor time of `full` over that of `short`, taken in turns."""
    found = []
    for _ in range(rounds + 1):
        times = []
        for call in (full, short):
            began = time.process_time()
            call()
            times.append(time.process_time() - began)
        found.append(times[0] / times[1])
    return statistics.median(found[1:])


def shared_text(layers: int, width: int, candidates: int, rounds: int) -> dict[str, Any]:
    """Measure sharing the caption's rows in the first layer, at the published size."""
    torch.manual_seed(0)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=64, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=width // 32, intermediate_size=4 * width,
        )
    )  # fmt: skip
    joint = JointEncoder(bert, sep_token_id=3, embedding_dim=8).eval()
    steps = Steps(joint)
    ids, tokens = torch.randint(5, 60, (18,)), torch.randn(candidates, 64, width)

    def short() -> Tensor:
        found = []
        for part in tokens.split(PAIRS_AT_ONCE):
            x = steps.first_layer_with_shared_text(steps.start(ids, part), len(ids))
            found.append(steps.finish(steps.through(x, 1, steps.layers - 1)))
        return torch.cat(found)

    gap = float((short() - steps.score(ids, tokens)).abs().max())
    return {
        "layers": layers, "width": width, "candidates": candidates, "largest_difference": gap,
        "times": round(ratio(lambda: steps.score(ids, tokens), short, rounds), 3),
    }  # fmt: skip


def main() -> None:
    """Measure, print a table, and write the results."""
    options = _options()
    model = EDJEModel.from_pretrained("demo", device="cpu")
    with torch.inference_mode():
        report = _measure(model, options)
    print(_table(report))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _measure(model: EDJEModel, options: argparse.Namespace) -> dict[str, Any]:
    steps = Steps(model.joint_encoder)
    probes = fit_probes(steps, make_world(model, "validation", 3, PROBE_SCENES, PROBE_CANDIDATES))
    runs = []
    for number, images in enumerate(options.images):
        world = make_world(model, "test", 1, images, options.candidates)
        print(f"{images} images", flush=True)
        rows = _rows(model, steps, probes, world, options, tokens=TOKENS if number == 0 else ())
        runs.append({"images": images, "rows": rows})
    return {
        "candidates": options.candidates, "runs": runs,
        "shared_text": shared_text(12, 384, 32, options.rounds), **conditions(),
    }  # fmt: skip


def _rows(
    model: EDJEModel,
    steps: Steps,
    probes: list[Tensor],
    world: World,
    options: argparse.Namespace,
    tokens: Sequence[tuple[int, int, str]],
) -> list[dict[str, Any]]:
    """Measure every shortcut in one world; those with fewer tokens as `tokens` says."""
    full = Shortcut("full", lambda ids, tokens, _: steps.score(ids, tokens))
    logits, early = _all_scores(steps, probes, world)
    _check(model, world, logits)
    queries = np.arange(len(logits))
    rows: list[dict[str, Any]] = []
    timed = [*world.queries()][:: max(1, len(world.ids) // options.timed)]

    def times(shortcut: Shortcut) -> float:
        def run(way: Shortcut) -> None:
            for number, ids, tokens in timed:
                way.score(ids, tokens, torch.from_numpy(world.cosines[number]))

        return ratio(lambda: run(full), lambda: run(shortcut), options.rounds)

    def add(name: str, scores: NDArray[np.float32], faster: float) -> None:
        """Compare the best by `scores`, of all queries or the first ones, with the full form's."""
        own, asked = world.right[: len(scores)], queries[: len(scores)]
        hits = own[asked, scores.argmax(1)].astype(float)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        base = own[asked, logits[: len(scores)].argmax(1)].astype(float)
        means = resampled_means(np.stack([hits, base], axis=1), asked)
        gap = difference(float(hits.mean() - base.mean()), means[:, 0], means[:, 1])
        rows.append(
            {
                "shortcut": name, "queries": len(hits), "R@1": round(float(hits.mean()), 4),
                "R@10": round(float(np.take_along_axis(own, best, 1).any(1).mean()), 4),
                "difference": gap.as_dict(), "times": round(float(faster), 2),
                "worth_it": bool(faster >= FASTER and gap.low >= -LOST),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)

    def masked(seen: NDArray[np.bool_]) -> NDArray[np.float32]:
        return np.where(seen, logits, -np.inf).astype(np.float32)

    add("full", logits, 1.0)
    place = np.arange(options.candidates)
    for count in CANDIDATES:
        add(f"fewer candidates: {count}", masked(np.broadcast_to(place < count, logits.shape)),
            times(first_candidates(steps, count)))  # fmt: skip
    assert model.calibration is not None
    for top_k in (1, 10):
        stops = adaptive_stops(model.calibration, world.cosines, logits, top_k=top_k)
        add(f"adaptive, {top_k} hit{'s' * (top_k > 1)}", masked(place < stops[:, None]),
            options.candidates / stops.mean())  # fmt: skip
    for depth, kept in EARLY:
        ranks = (-early[depth - 1]).argsort(1).argsort(1)  # (q, n)
        add(f"early score: {depth} of {steps.layers} layers, {kept} candidates on",
            masked(ranks < kept),
            times(early_score(steps, probes[depth - 1], depth, kept)))  # fmt: skip
    for depth, kept, by in tokens:
        shortcut = fewer_tokens(steps, depth, kept, by)
        some = [
            shortcut.score(ids, tokens, torch.empty(0)).numpy()
            for _, ids, tokens in islice(world.queries(), options.pruned)
        ]
        add(f"fewer tokens: {kept} of 16 after layer {depth}, by {by}", np.stack(some),
            times(shortcut))  # fmt: skip
    return rows


def _check(model: EDJEModel, world: World, logits: NDArray[np.float32]) -> None:
    """Compare the first query's logits with those of the training form."""
    for number, ids, tokens in islice(world.queries(), 1):
        captions = ids.expand(len(tokens), -1)
        plain = model.joint_encoder(captions, torch.ones_like(captions), tokens).numpy()
        np.testing.assert_allclose(logits[number], plain, rtol=0, atol=1e-3)


def _all_scores(
    steps: Steps, probes: list[Tensor], world: World
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits `(q, n)`, and the early scores after each layer `(layers - 1, q, n)`."""
    shape = world.found.shape
    logits = np.empty(shape, np.float32)
    early = np.empty((len(probes), *shape), np.float32)
    for number, ids, tokens in world.queries():
        x, cosines = steps.start(ids, tokens), torch.from_numpy(world.cosines[number])
        for layer, probe in enumerate(probes):
            x, _ = steps.layer(layer, x)
            early[layer, number] = (features(x, len(ids), cosines) @ probe).numpy()
        logits[number] = steps.finish(x).numpy()
    return logits, early


def _table(report: dict[str, Any]) -> str:
    heads = "| images | shortcut | R@1 | difference, 95 % | R@10 | times as fast | worth it |"
    lines = [heads, "| --- " * 7 + "|"]
    for run in report["runs"]:
        for row in run["rows"]:
            gap = row["difference"]
            lines.append(
                f"| {run['images']:,} | {row['shortcut']} | {row['R@1']:.1%} | {gap['mean']:+.1%} "
                f"({gap['low']:+.1%} to {gap['high']:+.1%}) | {row['R@10']:.1%} | "
                f"{row['times']:.2f} | {'yes' if row['worth_it'] else 'no'} |"
            )
    shared = report["shared_text"]
    lines.append(
        f"shared text in layer 1 of {shared['layers']} x {shared['width']}: {shared['times']:.3f} "
        f"times as fast, scores differ by {shared['largest_difference']:.1g} at most"
    )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--timed", type=int, default=10, help="queries whose time is taken")
    parser.add_argument("--pruned", type=int, default=200, help="queries scored with fewer tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
