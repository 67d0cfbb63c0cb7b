"""Measure whether the joint encoder's scores can improve the first stage.

    OMP_NUM_THREADS=1 python benchmarks/second_look.py --out docs/results/second-look.json
    python benchmarks/second_look.py --model MODEL --annotations FILE --images FOLDER \
        --taught-by FILE --out RESULT

Reranking orders what the first stage found. Three ways to find more, each with as many images
reranked as without it:

- feedback: half of the images are reranked, then the engine's own query with relevance feedback
  (Qdrant 1.17, the embedded engine) looks for the other half, with the scores of the first half;
- Rocchio: likewise, with the query's embedding moved towards the best and away from the worst;
- adapter: a linear map of the query's embedding, taught once by the joint encoder's scores for
  other captions and images. No image is encoded again.

Coefficients are chosen on a third of the queries, and figures are those of the other two thirds:
the share of queries with a right image among the reranked, and R@1 after reranking, each with its
difference to the first stage alone, paired, with the 95 % interval of a bootstrap over images.

Without `--annotations`, the queries are captions of drawn scenes, and the adapter is taught by
scenes with another seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
import torch
from demo_world import BATCH, conditions
from numpy.typing import NDArray
from tqdm import tqdm

from edje_qdrant import EDJEModel, Reranker
from edje_qdrant.data.annotations import group_by_image, read_annotations
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.run import scene_captions
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.evaluation.bootstrap import difference, resampled_means
from edje_qdrant.images import open_upright
from edje_qdrant.text import clean_caption

#: Images reranked for a query.
BUDGETS = (10, 20, 40)
FEEDBACK = tuple(itertools.product((1.0,), (0.5, 1.0, 2.0), (0.02, 0.1, 0.3)))
ROCCHIO = tuple(itertools.product((0.1, 0.3, 0.6), (0.0, 0.1, 0.3)))
_ENDS = 3  # of the reranked, those that count as best and as worst
_DEPTH, _STEPS = 20, 300  # candidates that teach the adapter, and its steps
_TEACHING = 2000  # captions that teach it
_PAIRS = 1024


@dataclass(frozen=True, slots=True)
class World:
    """Images and queries.

    Attributes:
        embeddings: `(n, d)` of the images, unit length.
        tokens: `(n, m, d_text)` float16.
        texts: `q` queries.
        queries: `(q, d)` of the texts, unit length.
        right: `(q, n)` bool, which images are right for each query.
        clusters: `(q,)` numbers; queries with the same number are not independent.
    """

    embeddings: NDArray[np.float32]
    tokens: NDArray[np.float16]
    texts: list[str]
    queries: NDArray[np.float32]
    right: NDArray[np.bool_]
    clusters: NDArray[np.int64]


Rows = NDArray[np.int64]


class Scores:
    """The joint encoder's scores of a world's queries and images, each computed once."""

    def __init__(self, model: EDJEModel, world: World) -> None:
        self._reranker, self._world = Reranker(model), world
        self._known = np.full((len(world.texts), len(world.embeddings)), np.nan, np.float32)

    def of(self, rows: Rows) -> NDArray[np.float32]:
        """Return the logits of `(q, k)` images, one row for each query."""
        numbers = np.arange(len(rows))[:, None].repeat(rows.shape[1], 1)
        missing = np.isnan(self._known[numbers, rows])
        queries, images = numbers[missing], rows[missing]
        for start in tqdm(
            range(0, len(queries), _PAIRS), desc="scoring", leave=False, mininterval=5
        ):
            part = slice(start, start + _PAIRS)
            found = self._reranker.score_pairs(
                [self._world.texts[number] for number in queries[part]],
                self._world.tokens[images[part]],
            )
            self._known[queries[part], images[part]] = found
        return self._known[numbers, rows]


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--images", type=Path, help="folder of the annotations' image paths")
    parser.add_argument("--taught-by", type=Path, help="annotations that teach the adapter")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--queries", type=int, default=1500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = EDJEModel.from_pretrained(options.model)
    if options.annotations is None:
        data, world = f"{options.scenes:,} scenes", scenes(model, 0, options.scenes)
        teaching = scenes(model, 7, _TEACHING)
    else:
        data, world = options.annotations.name, annotated(model, options.annotations, options)
        teaching = (
            annotated(model, options.taught_by, options) if options.taught_by is not None else None
        )
    world = with_queries(world, options.queries)
    if teaching is not None:
        teaching = with_queries(teaching, _TEACHING)
    rows = measure(model, world, teaching)
    result = {
        "data": data, "model": options.model, "images": len(world.embeddings),
        "queries": len(world.texts), "rows": rows, **conditions(),
    }  # fmt: skip
    for row in rows:
        print(row)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


# ------------------------------------------------------------------------------------ worlds


def scenes(model: EDJEModel, seed: int, number: int) -> World:
    """Draw scenes, with one caption each."""
    drawn = list(draw_scenes("test", seed, number))
    captions = [caption.text for caption in scene_captions(drawn, seed)]
    right = np.eye(number, dtype=bool)
    return encoded(model, lambda row: draw(drawn[row]), captions, right, np.arange(number))


def annotated(model: EDJEModel, path: Path, options: argparse.Namespace) -> World:
    """Read an annotation file; each caption is a query, and all images that have it are right."""
    rows = group_by_image(read_annotations(path, images=options.images))
    spelling: dict[str, str] = {}
    owners: defaultdict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        for caption in row.captions:
            owners[spelling.setdefault(clean_caption(caption), caption)].append(number)
    right = np.zeros((len(owners), len(rows)), bool)
    for query, numbers in enumerate(owners.values()):
        right[query, numbers] = True
    first = np.array([numbers[0] for numbers in owners.values()])
    return encoded(model, lambda row: open_upright(rows[row].image), [*owners], right, first)


def encoded(
    model: EDJEModel, image: Callable[[int], Any], texts: Sequence[str],
    right: NDArray[np.bool_], clusters: NDArray[np.int64],
) -> World:  # fmt: skip
    """Encode all images and texts."""
    count = right.shape[1]
    parts = [
        model.encode_images([image(row) for row in range(start, min(start + BATCH, count))])
        for start in tqdm(range(0, count, BATCH), desc="encoding", unit=" batches", mininterval=5)
    ]
    embeddings = np.concatenate([part.embeddings for part in parts])
    tokens = np.concatenate([part.tokens for part in parts]).astype(np.float16)
    return World(embeddings, tokens, list(texts), model.encode_texts(texts), right, clusters)


def with_queries(world: World, number: int) -> World:
    """Keep some of the queries, chosen at random, and all images."""
    kept = np.sort(np.random.default_rng(0).permutation(len(world.texts))[:number])
    return replace(
        world,
        texts=[world.texts[row] for row in kept],
        queries=world.queries[kept],
        right=world.right[kept],
        clusters=world.clusters[kept],
    )


# ------------------------------------------------------------------------------- ways to look


def measure(model: EDJEModel, world: World, teaching: World | None) -> list[dict[str, Any]]:
    """Return a row for each budget and way."""
    scores = Scores(model, world)
    tuned = np.zeros(len(world.texts), bool)
    tuned[::3] = True
    adapted = None if teaching is None else adapter(model, teaching)(world.queries)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        shard = engine(folder, world)
        for budget in BUDGETS:
            alone = nearest(shard, world.queries, budget)
            first = alone[:, : budget // 2]
            known = scores.of(first)
            ways: dict[str, list[tuple[str, Rows]]] = {
                "feedback": [
                    (f"a={a:g} b={b:g} c={c:g}", followed(
                        first, with_feedback(shard, world, first, known, (a, b, c), budget), budget
                    ))
                    for a, b, c in FEEDBACK
                ],
                "Rocchio": [
                    (f"towards {more:g}, away {less:g}", followed(
                        first, nearest(shard, moved(world, first, known, (more, less)), budget),
                        budget,
                    ))
                    for more, less in ROCCHIO
                ],
            }  # fmt: skip
            if adapted is not None:
                ways["adapter"] = [("", nearest(shard, adapted, budget))]
            found.append(
                row_of(world, scores, budget, "first stage alone", "", alone, alone, tuned)
            )
            for way, tries in ways.items():
                named, rows = max(tries, key=lambda each: recall(world, each[1])[tuned].mean())
                found.append(row_of(world, scores, budget, way, named, rows, alone, tuned))
        shard.close()
    return found


def row_of(
    world: World, scores: Scores, budget: int, way: str, chosen: str, rows: Rows, alone: Rows,
    tuned: NDArray[np.bool_],
) -> dict[str, Any]:  # fmt: skip
    """Return the figures of one way on the queries that did not choose its coefficients."""
    row: dict[str, Any] = {"reranked": budget, "way": way, "coefficients": chosen}
    for name, of in (
        ("found", lambda each: recall(world, each)),
        ("R@1", lambda each: first_is_right(world, scores, each)),
    ):
        own, before = of(rows)[~tuned], of(alone)[~tuned]
        row[name] = round(float(own.mean()), 4)
        if rows is not alone:
            means = resampled_means(np.stack([own, before], 1), world.clusters[~tuned])
            gap = difference(float(own.mean() - before.mean()), means[:, 0], means[:, 1])
            row[f"{name} difference"] = gap.as_dict()
    return row


def recall(world: World, rows: Rows) -> NDArray[np.float64]:
    """Return for each query whether a right image is among `(q, k)` images."""
    return np.take_along_axis(world.right, rows, 1).any(1).astype(np.float64)


def first_is_right(world: World, scores: Scores, rows: Rows) -> NDArray[np.float64]:
    """Return for each query whether the image with the highest score is a right one."""
    best = np.take_along_axis(rows, scores.of(rows).argmax(1)[:, None], 1)  # (q, 1)
    return np.take_along_axis(world.right, best, 1)[:, 0].astype(np.float64)


def engine(folder: str, world: World) -> edge.EdgeShard:
    """Put the embeddings into the embedded engine, which scans them all."""
    config = edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(world.embeddings.shape[1], edge.Distance.Cosine),
        hnsw_config=edge.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=1_000_000),
    )
    shard = edge.EdgeShard.create(folder, config)
    points = [edge.Point(n, vector.tolist(), {}) for n, vector in enumerate(world.embeddings)]
    for start in range(0, len(points), 500):
        shard.update(edge.UpdateOperation.upsert_points(points[start : start + 500]))
    return shard


def nearest(shard: edge.EdgeShard, queries: NDArray[np.float32], limit: int) -> Rows:
    """Return each query's nearest images, `(q, limit)`."""
    asked = (edge.Query.Nearest(query.tolist()) for query in queries)
    return np.array([ids_of(shard, query, limit) for query in asked])


def with_feedback(
    shard: edge.EdgeShard, world: World, first: Rows, known: NDArray[np.float32],
    coefficients: tuple[float, float, float], limit: int,
) -> Rows:  # fmt: skip
    """Return what the engine finds with the scores of the first images, `(q, limit)`."""
    strategy = edge.NaiveFeedbackStrategy(*coefficients)
    found = []
    for query, rows, logits in zip(world.queries, first, known, strict=True):
        chances = 1 / (1 + np.exp(-logits))
        feedback = [
            edge.FeedbackItem(world.embeddings[row].tolist(), float(chance))
            for row, chance in zip(rows, chances, strict=True)
        ]
        asked = edge.FeedbackNaiveQuery(query.tolist(), feedback, strategy)
        found.append(ids_of(shard, edge.Query.FeedbackNaive(asked), limit))
    return np.array(found)


def ids_of(shard: edge.EdgeShard, query: edge.Query, limit: int) -> list[int]:
    """Return the ids of a query's points, best first."""
    request = edge.QueryRequest(limit=limit, query=query)
    return [int(point.id) for point in shard.query(request)]


def moved(
    world: World, first: Rows, known: NDArray[np.float32], weights: tuple[float, float]
) -> NDArray[np.float32]:
    """Return the queries, moved towards the best images and away from the worst, unit length."""
    order = np.argsort(-known, axis=1, kind="stable")
    best = np.take_along_axis(first, order[:, :_ENDS], 1)
    worst = np.take_along_axis(first, order[:, -_ENDS:], 1)
    more, less = weights
    shift = more * world.embeddings[best].mean(1) - less * world.embeddings[worst].mean(1)
    return unit(world.queries + shift)


def followed(first: Rows, second: Rows, budget: int) -> Rows:
    """Return the first images and then the second's others, `(q, budget)`."""
    rows = [
        [*own, *(row for row in others if row not in set(own))][:budget]
        for own, others in zip(first.tolist(), second.tolist(), strict=True)
    ]
    return np.array(rows)


def adapter(model: EDJEModel, world: World) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Teach a linear map of text embeddings by the joint encoder's scores of the nearest images."""
    rows = np.argsort(-(world.queries @ world.embeddings.T), axis=1, kind="stable")[:, :_DEPTH]
    target = torch.from_numpy(Scores(model, world).of(rows)).softmax(1)  # (q, depth)
    texts, shown = torch.from_numpy(world.queries), torch.from_numpy(world.embeddings[rows])
    torch.manual_seed(0)
    matrix = torch.eye(texts.shape[1], requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    optimizer = torch.optim.AdamW([matrix, scale], lr=1e-3, weight_decay=0.0)
    start = torch.eye(len(matrix))
    for _ in range(_STEPS):
        asked = torch.nn.functional.normalize(texts @ matrix, dim=1)  # (q, d)
        logits = torch.einsum("qd,qkd->qk", asked, shown) * scale.exp()  # (q, depth)
        loss = -(target * logits.log_softmax(1)).sum(1).mean()
        total = loss + 1e-3 * (matrix - start).square().sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    final = matrix.detach().numpy()
    return lambda queries: unit(queries @ final)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors of unit length."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
