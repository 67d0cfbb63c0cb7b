"""Measure searches by words and looks together against searches by looks alone.

    OMP_NUM_THREADS=1 python benchmarks/hybrid.py --out docs/results/hybrid.json

Three sets of images and queries:

- captions: drawn scenes, of which a tenth have a caption. Queries are other captions of the same
  scenes; those of scenes with a caption and of scenes without one are counted apart.
- folders: the same scenes in folders with the names of places; queries name the place as well.
- signs: scenes, and among them pictures of a sign with a word, which RapidOCR has read. Queries
  name the word.

Figures are the share of queries whose image is among the candidates, and R@1 after reranking, each
with its difference to the search by looks alone, paired, with the 95 % interval of a bootstrap over
images. Weights are those of the words where candidates are chosen (`words_weight`) and in the final
order (`fusion_weights`); 0 there is the joint encoder's score alone. RapidOCR reads each sign once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from demo_world import BATCH, conditions
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from second_look import Scores, World
from tqdm import tqdm

from edje_qdrant import EDJEModel, ImageCollection
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.run import scene_captions
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.evaluation.bootstrap import difference, resampled_means
from edje_qdrant.index import WORDS_WEIGHT, ByWords
from edje_qdrant.ingest.ocr import RapidOcrReader
from edje_qdrant.search.fusion import DEFAULT_WEIGHTS
from edje_qdrant.types import ImageEncoding

CANDIDATES = (10, 50)
#: Weights where candidates are chosen, and in the final order.
CHOOSING, ORDERING = (0.1, 0.25, 0.5, 1.0), (0.0, 0.25, 0.5, 1.0)
#: The defaults, with which the other weight is varied.
DEFAULT = (WORDS_WEIGHT, DEFAULT_WEIGHTS["words"][0])
_PLACES = (
    "Lisbon Porto Faro Evora Braga Coimbra Sintra Tavira Lagos Nazare Obidos Tomar Aveiro Beja "
    "Elvas Leiria Viseu Guarda Chaves Silves Sagres Loule Fatima Batalha Mafra Cascais Setubal "
    "Sesimbra Palmela Almada"
)
_WORDS = (
    "harbour station museum bakery hotel pharmacy library school market theatre garden castle "
    "bridge tunnel airport ferry parking exit entrance toilets kitchen office police hospital "
    "church temple palace stadium cinema gallery butcher florist tailor barber laundry garage "
    "workshop factory brewery vineyard orchard meadow valley summit glacier waterfall lagoon island"
)
_RUNS = 20  # of each latency


@dataclass(frozen=True, slots=True)
class Task:
    """Queries of one kind.

    Attributes:
        name: What they are.
        rows: Which queries of the world.
    """

    name: str
    rows: NDArray[np.int64]


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--signs", type=int, default=150)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = EDJEModel.from_pretrained(options.model)
    scenes = list(draw_scenes("test", 3, options.scenes))
    encoded = encode(model, [draw(scene) for scene in scenes])
    texts, others = ([c.text for c in scene_captions(scenes, seed)] for seed in (3, 4))
    rng = np.random.default_rng(0)
    order = rng.permutation(len(scenes))
    count = len(scenes) // 10
    with_caption, without = order[:count], order[count:]
    places = rng.choice(_PLACES.split(), len(scenes))
    asked = np.concatenate([with_caption[: options.queries], without[: options.queries]])
    rows: list[dict[str, Any]] = []

    captioned = {*with_caption.tolist()}
    payloads = [{"caption": others[n]} if n in captioned else {} for n in range(len(scenes))]
    world = world_of(model, encoded, [texts[n] for n in asked], asked)
    near = np.isin(asked, with_caption)
    tasks = [
        Task("captions: images with one", np.flatnonzero(near)),
        Task("captions: images without", np.flatnonzero(~near)),
    ]
    rows += measure(model, world, payloads, ["caption"], tasks)
    latency = measured_latency(model, world, payloads)

    asked = order[: options.queries]
    payloads = [{"path": f"photos/{places[n]}/IMG_{n:05}.jpg"} for n in range(len(scenes))]
    world = world_of(model, encoded, [f"{texts[n]} in {places[n]}" for n in asked], asked)
    tasks = [Task("folders", np.arange(len(asked)))]
    rows += measure(model, world, payloads, ["path"], tasks)

    words, pictures = signs(options.signs)
    reader = RapidOcrReader()
    read = [reader.read(picture) for picture in tqdm(pictures, desc="reading", mininterval=5)]
    exact = np.mean([w.casefold() == r.casefold() for w, r in zip(words, read, strict=True)])
    both = joined(encoded, encode(model, pictures))
    asked = np.arange(len(scenes), len(scenes) + len(pictures))
    payloads = [{} for _ in scenes] + [{"ocr": text} for text in read]
    world = world_of(model, both, [f"a sign that says {word}" for word in words], asked)
    rows += measure(model, world, payloads, ["ocr"], [Task("signs", np.arange(len(asked)))])

    result = {
        "model": options.model, "scenes": len(scenes), "signs": len(pictures),
        "signs_read_exactly": round(float(exact), 3), "rows": rows, "latency_ms": latency,
        **conditions(),
    }  # fmt: skip
    for row in rows:
        print(row)
    print(latency, result["signs_read_exactly"])
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


# ------------------------------------------------------------------------------------ worlds


def encode(model: EDJEModel, images: Sequence[Image.Image]) -> ImageEncoding:
    """Encode images."""
    parts = [
        model.encode_images(images[start : start + BATCH])
        for start in tqdm(range(0, len(images), BATCH), desc="encoding", mininterval=5)
    ]
    return ImageEncoding(
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.tokens for part in parts]),
    )


def joined(one: ImageEncoding, other: ImageEncoding) -> ImageEncoding:
    """Return the encodings of two lists of images as those of one."""
    return ImageEncoding(
        np.concatenate([one.embeddings, other.embeddings]),
        np.concatenate([one.tokens, other.tokens]),
    )


def world_of(
    model: EDJEModel, encoded: ImageEncoding, texts: Sequence[str], right: NDArray[np.int64]
) -> World:
    """Return images with queries, of which each has one right image."""
    matrix = np.zeros((len(texts), len(encoded)), bool)
    matrix[np.arange(len(texts)), right] = True
    queries = model.encode_texts(texts)
    return World(encoded.embeddings, encoded.tokens, list(texts), queries, matrix, right)


def signs(number: int) -> tuple[list[str], list[Image.Image]]:
    """Draw signs, each with a word and a number of its own, in various colours and sizes."""
    rng = np.random.default_rng(5)
    known, words, drawn = _WORDS.split(), [], []
    for n in range(number):
        word = f"{known[n % len(known)]} {n + 10}"
        paper, board = rng.integers(120, 256, 3), rng.integers(150, 256, 3)
        picture = Image.new("RGB", (256, 256), tuple(paper.tolist()))
        pen = ImageDraw.Draw(picture)
        font = ImageFont.load_default(int(rng.integers(18, 30)))
        left, top, right, bottom = pen.textbbox((0, 0), word, font=font)
        x = int(rng.integers(6, max(7, 250 - (right - left))))
        y = int(rng.integers(10, 200))
        box = (x - 5, y + top - 6, x + right + 5, y + bottom + 6)
        pen.rectangle(box, fill=tuple(board.tolist()), outline="black")
        pen.text((x, y), word, fill="black", font=font)
        words.append(word)
        drawn.append(picture)
    return words, drawn


def image_id(number: int) -> str:
    """Return the id of an image."""
    return f"00000000-0000-4000-8000-{number:012d}"


def collection_of(
    folder: str, model: EDJEModel, world: World, payloads: Sequence[dict[str, Any]],
    fields: Sequence[str],
) -> ImageCollection:  # fmt: skip
    """Put a world's images into a collection with text fields."""
    made = ImageCollection.create(folder, "images", model.contract(), text_fields=fields)
    for start in range(0, len(payloads), 500):
        part = slice(start, start + 500)
        ids = [image_id(n) for n in range(len(payloads))[part]]
        made.add(ids, ImageEncoding(world.embeddings[part], world.tokens[part]), payloads[part])
    return made


# ----------------------------------------------------------------------------------- measures


def measure(
    model: EDJEModel, world: World, payloads: Sequence[dict[str, Any]], fields: Sequence[str],
    tasks: Sequence[Task],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return a row for each kind of query, number of candidates and pair of weights."""
    scores = Scores(model, world)
    found: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        collection_of(folder, model, world, payloads, fields) as collection,
    ):
        for count in CANDIDATES:
            alone = searched(collection, world, count, None)
            plain = outcomes(world, scores, *alone, 0.0)
            found += [row_of(world, task, count, None, plain, plain) for task in tasks]
            chosen = {weight: searched(collection, world, count, weight) for weight in CHOOSING}
            for choosing, ordering in itertools.product(CHOOSING, ORDERING):
                if DEFAULT[0] != choosing and DEFAULT[1] != ordering:
                    continue
                own = outcomes(world, scores, *chosen[choosing], ordering)
                weights = choosing, ordering
                found += [row_of(world, task, count, weights, own, plain) for task in tasks]
    return found


def searched(
    collection: ImageCollection, world: World, count: int, weight: float | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the candidates of each query, `(q, count)`, and the BM25 score of each."""
    rows, matched = [], []
    for start in range(0, len(world.texts), 50):
        part = slice(start, start + 50)
        words = None if weight is None else ByWords(world.texts[part], weight)
        for candidates in collection.nearest(world.queries[part], count, words=words):
            rows.append([int(candidate.image_id[-12:]) for candidate in candidates])
            matched.append([candidate.words for candidate in candidates])
    return np.array(rows), np.array(matched)


def outcomes(
    world: World, scores: Scores, rows: NDArray[np.int64], matched: NDArray[np.float64],
    ordering: float,
) -> NDArray[np.float64]:  # fmt: skip
    """Return for each query whether its image was found, and whether it is the first: `(q, 2)`."""
    final = scores.of(rows) + ordering * matched
    best = np.take_along_axis(rows, final.argmax(1)[:, None], 1)  # (q, 1)
    first = np.take_along_axis(world.right, best, 1)[:, 0]
    there = np.take_along_axis(world.right, rows, 1).any(1)
    return np.stack([there, first], 1).astype(np.float64)


def row_of(
    world: World, task: Task, count: int, weights: tuple[float, float] | None,
    own: NDArray[np.float64], plain: NDArray[np.float64],
) -> dict[str, Any]:  # fmt: skip
    """Return the figures of one way to search."""
    row: dict[str, Any] = {
        "task": task.name, "queries": len(task.rows), "candidates": count,
        "words_weight": None if weights is None else weights[0],
        "fusion_weight": None if weights is None else weights[1],
    }  # fmt: skip
    images = world.clusters[task.rows]
    for place, name in enumerate(("found", "R@1")):
        mine, before = own[task.rows, place], plain[task.rows, place]
        row[name] = round(float(mine.mean()), 4)
        if weights is not None:
            means = resampled_means(np.stack([mine, before], 1), images)
            gap = difference(float(mine.mean() - before.mean()), means[:, 0], means[:, 1])
            row[f"{name} difference"] = gap.as_dict()
    return row


def measured_latency(
    model: EDJEModel, world: World, payloads: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Return the median milliseconds of the first stage of one query, both ways in turn."""
    times: dict[str, list[float]] = {"looks": [], "looks and words": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        collection_of(folder, model, world, payloads, ["caption"]) as collection,
    ):
        for number in range(_RUNS):
            query = world.queries[number : number + 1]
            for name, words in (
                ("looks", None),
                ("looks and words", ByWords([world.texts[number]])),
            ):
                began = time.perf_counter()
                collection.nearest(query, 100, words=words)
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: round(float(np.median(own)), 2) for name, own in times.items()}


if __name__ == "__main__":
    main()
