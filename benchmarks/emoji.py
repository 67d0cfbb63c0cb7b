"""Measure a model on emoji that it was not trained on, in each language.

    OMP_NUM_THREADS=1 python benchmarks/emoji.py --model runs/emoji-continued/model --data emoji \
        --out docs/results/emoji.json --sheet docs/results/emoji.png

`examples/emoji/README.md` says how to make the data and to train the model. A query is a name of
an emoji in one language. All images of the split with this name in this language are right: a name
that four artists drew has four right images, and R@k is whether one of them is among the first k.
Intervals are those of a bootstrap over the names.

A wrong first hit is of one of these kinds, by how it differs from the right image it resembles
most: skin tone, gender, hair or direction alone, two of these, another emoji, another flag.

The contact sheet shows names in several languages that no image of the sheet was trained with, and
only artists whose licences allow it without a condition on the rest of a page: Noto (Apache 2.0),
Twemoji (CC BY 4.0), Fluent (MIT).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from demo_world import BATCH, conditions
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from edje_qdrant import EDJEModel, Reranker
from edje_qdrant.data.annotations import Annotation, read_annotations
from edje_qdrant.evaluation.bootstrap import difference, interval, resampled_means
from edje_qdrant.evaluation.contact_sheet import SheetRow, draw_contact_sheet
from edje_qdrant.evaluation.nearest import nearest
from edje_qdrant.evaluation.rankings import DEEPEST, Rankings, figures, places
from edje_qdrant.images import open_upright
from edje_qdrant.search.fusion import DEFAULT_WEIGHTS, blend
from edje_qdrant.text import clean_caption

SPLITS = ("artist", "combinations", "flags")
METRICS = ("R@1", "R@5", "R@10")  # the first of `figures`
SHEET_ARTISTS = ("noto", "twemoji", "fluent-emoji-flat")
#: The sheet's queries: two names of one language each, one of unseen emoji, one of combinations.
SHEET_LANGUAGES = ("de", "ru", "zh", "ar", "ja")

TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
GENDERS = {"\N{MALE SIGN}", "\N{FEMALE SIGN}", "\N{MAN}", "\N{WOMAN}", "\N{ADULT}"}
HAIR = {chr(code) for code in range(0x1F9B0, 0x1F9B4)}
DIRECTION = {"\N{BLACK RIGHTWARDS ARROW}"}
_SHEET_WIDTH = 1200  # pixels
_REGIONAL = range(0x1F1E6, 0x1F200)
_JOINERS = {"\N{ZERO WIDTH JOINER}", "\N{VARIATION SELECTOR-16}"}


@dataclass(frozen=True, slots=True)
class Pool:
    """Encoded images.

    Attributes:
        paths: `n` paths.
        embeddings: `(n, d)`, unit length.
        tokens: `(n, m, d_text)` float16.
    """

    paths: list[str]
    embeddings: NDArray[np.float32]
    tokens: NDArray[np.float16]


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help="what make_data.py wrote")
    parser.add_argument("--texts", type=int, default=400, help="names of a split and language")
    parser.add_argument("--num-candidates", type=int, default=DEEPEST)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of names")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheet", type=Path, help="contact sheet, a PNG")
    options = parser.parse_args()
    model = EDJEModel.from_pretrained(options.model)
    rows = [row for split in SPLITS for row in measure(model, split, options)]
    for row in rows:
        print({name: value for name, value in row.items() if name != "wrong"})
    config = model.joint_encoder.language_model.config
    result = {
        "model": {
            "tokens": model.config.num_tokens, "width": config.hidden_size,
            "layers": config.num_hidden_layers, "word_pieces": config.vocab_size,
        },
        "num_candidates": options.num_candidates, "seed": options.seed, "rows": rows,
        **conditions(),
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if options.sheet:
        draw_sheet(model, options)


def measure(model: EDJEModel, split: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each language of a split."""
    files = sorted(options.data.glob(f"{split}.*.jsonl"))
    annotated = {path.name.split(".")[1]: read_annotations(path) for path in files}
    pool = encoded(model, sorted({a.image for each in annotated.values() for a in each}))
    found = []
    for language, images in annotated.items():
        owners = owners_of(images, pool)
        texts = sorted(owners)
        kept = np.random.default_rng(options.seed).permutation(len(texts))[: options.texts]
        chosen = [texts[number] for number in np.sort(kept)]
        rankings = ranked(model, pool, chosen, [owners[text] for text in chosen], options)
        found.append({
            "split": split, "language": language, "images": len(pool.paths), "names": len(texts),
            "texts": len(chosen), **figures_of(rankings, options.num_candidates),
        })  # fmt: skip
    return found


def owners_of(images: Sequence[Annotation], pool: Pool) -> dict[str, tuple[int, ...]]:
    """Return for each name the rows of all images that have it, in whatever spelling."""
    number = {path: row for row, path in enumerate(pool.paths)}
    spelling: dict[str, str] = {}
    owners: defaultdict[str, set[int]] = defaultdict(set)
    for image in images:
        for caption in image.captions:
            name = spelling.setdefault(clean_caption(caption), caption)
            owners[name].add(number[image.image])
    return {name: tuple(sorted(rows)) for name, rows in owners.items()}


def encoded(model: EDJEModel, paths: list[str]) -> Pool:
    """Encode images."""
    starts = tqdm(range(0, len(paths), BATCH), desc="encoding", unit=" batches", mininterval=5)
    parts = [
        model.encode_images([open_upright(path) for path in paths[start : start + BATCH]])
        for start in starts
    ]
    return Pool(
        paths,
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.tokens for part in parts]).astype(np.float16),
    )


def ranked(
    model: EDJEModel, pool: Pool, texts: Sequence[str], rights: Sequence[tuple[int, ...]],
    options: argparse.Namespace,
) -> Rankings:  # fmt: skip
    """Rank a pool for texts, with the joint encoder's scores of all candidates."""
    depth = min(max(options.num_candidates, DEEPEST), len(pool.paths))
    candidates, first = nearest(
        model.encode_texts(texts), pool.embeddings, depth, names=pool.paths
    )  # (q, depth) each
    reranker, logits = Reranker(model), []
    for start in tqdm(range(0, len(texts), BATCH), desc="scoring", mininterval=5):
        rows = candidates[start : start + BATCH]
        asked = [text for text in texts[start : start + BATCH] for _ in range(depth)]
        logits.append(reranker.score_pairs(asked, pool.tokens[rows.ravel()]).reshape(rows.shape))
    right = np.array([np.isin(rows, own) for rows, own in zip(candidates, rights, strict=True)])
    return Rankings(
        direction="t2i", queries=texts, answers=pool.paths, candidates=candidates, first=first,
        joint=np.concatenate(logits), right=right, rights=rights, clusters=np.arange(len(texts)),
        pool=len(pool.paths),
    )  # fmt: skip


# ------------------------------------------------------------------------------------ figures


def figures_of(rankings: Rankings, num_candidates: int) -> dict[str, Any]:
    """Return the figures before and after reranking, and the kinds of wrong first hits."""
    before = figures(rankings.right, rankings.num_right)
    after = figures(rankings.right_after(num_candidates), rankings.num_right)
    mixed = blended(rankings, num_candidates)
    both = figures(mixed.right_after(num_candidates), rankings.num_right)
    means = resampled_means(np.concatenate([before, after, both], 1), rankings.clusters)
    columns = before.shape[1]
    row: dict[str, Any] = {}
    stages = [("first stage", before), ("reranked", after), ("blended", both)]
    for number, (name, values) in enumerate(stages):
        offset = number * columns
        row[name] = {
            metric: [round(float(values[:, n].mean()), 4),
                     *(round(end, 4) for end in interval(means[:, offset + n]))]
            for n, metric in enumerate(METRICS)
        }  # fmt: skip
        if number:
            gap = float(values[:, 0].mean() - before[:, 0].mean())
            row[f"R@1 gained, {name}"] = difference(gap, means[:, offset], means[:, 0]).as_dict()
    row["among the candidates"] = round(float(rankings.right[:, :num_candidates].any(1).mean()), 4)
    row["wrong"] = {
        "first stage": wrong_hits(rankings, 0),
        "reranked": wrong_hits(rankings, num_candidates),
        "blended": wrong_hits(mixed, num_candidates),
    }
    lost = (before[:, 0] > after[:, 0]).sum()
    won = (before[:, 0] < after[:, 0]).sum()
    row["first hits"] = {"put right": int(won), "put wrong": int(lost)}
    return row


def blended(rankings: Rankings, num_candidates: int) -> Rankings:
    """Return the rankings with both stages' scores blended, by the weights that a search has."""
    weights = DEFAULT_WEIGHTS["blend"]
    joint = rankings.joint.copy()
    joint[:, :num_candidates] = [
        blend(cosines[:num_candidates], logits[:num_candidates], weights)
        for cosines, logits in zip(rankings.first, rankings.joint, strict=True)
    ]
    return replace(rankings, joint=joint)


def wrong_hits(rankings: Rankings, num_candidates: int) -> dict[str, int]:
    """Count the wrong first hits by kind."""
    order = rankings.order(num_candidates)
    counted: Counter[str] = Counter()
    for query, rights in enumerate(rankings.rights):
        best = rankings.candidates[query, order[query, 0]]
        if best not in rights:
            shown = emoji_of(rankings.answers[best])
            kinds = [kind_of(shown, emoji_of(rankings.answers[right])) for right in rights]
            nearer = [(kind.startswith("another"), kind.count(" and "), kind) for kind in kinds]
            counted[min(nearer)[2]] += 1
    return dict(counted.most_common())


def emoji_of(path: str) -> str:
    """Return the emoji that an image shows, from its file name."""
    return "".join(chr(int(code, 16)) for code in Path(path).stem.split("-"))


def kind_of(shown: str, right: str) -> str:
    """Return in what an emoji differs from the right one."""
    if ord(right[0]) in _REGIONAL and ord(shown[0]) in _REGIONAL:
        return "another flag"
    names = {"skin tone": TONES, "gender": GENDERS, "hair": HAIR, "direction": DIRECTION}
    both = [[c for c in emoji if c not in _JOINERS] for emoji in (shown, right)]
    rest = [[c for c in emoji if not any(c in of for of in names.values())] for emoji in both]
    if rest[0] != rest[1]:
        return "another emoji"
    unlike = [
        name for name, of in names.items()
        if [c for c in both[0] if c in of] != [c for c in both[1] if c in of]
    ]  # fmt: skip
    return " and ".join(unlike) or "the same emoji with another name"


# -------------------------------------------------------------------------------- contact sheet


def draw_sheet(model: EDJEModel, options: argparse.Namespace) -> None:
    """Draw names with their first hits before and after reranking."""
    held = read_annotations(options.data / "val.jsonl")
    combined = {
        language: read_annotations(options.data / f"combinations.{language}.jsonl")
        for language in SHEET_LANGUAGES
    }
    every = {a.image for a in (*held, *combined[SHEET_LANGUAGES[0]])}
    pool = encoded(model, sorted(p for p in every if Path(p).parent.name in SHEET_ARTISTS))
    shown = set(pool.paths)
    rng = np.random.default_rng(options.seed)
    # Names in the order of the languages: an unseen emoji and a combination in turn.
    unseen = owners_of([a for a in held if a.image in shown], pool)
    queries: list[tuple[str, tuple[int, ...]]] = []
    for language in SHEET_LANGUAGES:
        own = owners_of([a for a in combined[language] if a.image in shown], pool)
        for owners in (unseen, own):
            text = sorted(owners)[int(rng.integers(len(owners)))]
            queries.append((text, owners[text]))
    texts, rights = [text for text, _ in queries], [rows for _, rows in queries]
    rankings = ranked(model, pool, texts, rights, options)
    number = options.num_candidates
    order = rankings.order(number)
    before, after = places(rankings.right), places(rankings.right_after(number))
    rows = [
        SheetRow(
            query=text,
            right=[Path(pool.paths[row]) for row in rights[query]],
            first_stage=[Path(pool.paths[row]) for row in rankings.candidates[query, :5]],
            reranked=[
                Path(pool.paths[rankings.candidates[query, place]]) for place in order[query, :5]
            ],
            first_rank=before[query],
            final_rank=after[query],
        )
        for query, text in enumerate(texts)
    ]
    title = f"{len(texts)} names drawn at random, {len(pool.paths):,} images by three artists"
    draw_contact_sheet(rows, title, options.sheet)
    with Image.open(options.sheet) as sheet:
        small = ImageOps.contain(sheet.convert("RGB"), (_SHEET_WIDTH, sheet.height))
    # 256 colours are a third of the size.
    small.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3).save(
        options.sheet, optimize=True
    )


if __name__ == "__main__":
    main()
