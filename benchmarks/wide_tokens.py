"""Measure what is lost at 64 tokens of 384 by codecs, precisions, and fewer tokens or layers.

    OMP_NUM_THREADS=1 python benchmarks/wide_tokens.py --data emoji-en \
        --model runs/emoji-wide-continued/model --other runs/emoji-wide/model \
        --out docs/results/wide_tokens.json

with an `--other` for each of the models in `docs/results.md`, "At the published width".

`examples/emoji/README.md` says how to make the data and to train the models. Queries are English
names of combinations that no training image shows. As in `emoji.py`, all images with a name are
right for it. Per codec, the tokens of all images are encoded and decoded; codecs with a codebook
are fitted to the same images, as a collection fits them. float8 is computed in float32 from rounded
numbers: it shows the agreement that a GPU's float8 products would have, not their speed. Every
difference is paired, with its 95% interval; tau compares the order of the candidates. Run it in the
folder in which the models were trained: their recipes name each other by paths below it.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_world import conditions
from emoji import Pool, encoded, owners_of
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from edje_qdrant import EDJEModel, Reranker
from edje_qdrant.data.annotations import Annotation, read_annotations
from edje_qdrant.evaluation.bootstrap import difference, interval, resampled_means
from edje_qdrant.evaluation.nearest import nearest
from edje_qdrant.metrics import kendall_tau
from edje_qdrant.model import Precision
from edje_qdrant.search.fusion import DEFAULT_WEIGHTS, blend
from edje_qdrant.tokens.codecs import codec_for

FILE = "combinations.en.jsonl"
CODECS = ("float16", "int8", "int4", "pq48", "pq32", "pq24", "pq16")
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "int8")
_BATCH = 10  # texts scored between two steps of the bar
_LARGEST = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True, slots=True)
class Search:
    """Texts with the candidates of the first stage.

    Attributes:
        texts: `q` names.
        candidates: `(q, k)` int64 rows of the images.
        cosines: `(q, k)` float32, the first stage's scores.
        right: `(q, k)` bool.
    """

    texts: list[str]
    candidates: NDArray[np.int64]
    cosines: NDArray[np.float32]
    right: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.texts)

    def hits(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return `(q,)`: 1 where the candidate with the highest score is right."""
        best = scores.argmax(axis=1)
        return np.asarray(self.right[np.arange(len(self)), best], dtype=np.float64)

    def blended(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return `(q, k)`: the mean of both stages' scores, by the weights of `fusion="blend"`."""
        both = zip(self.cosines, scores, strict=True)
        return np.array([blend(*each, DEFAULT_WEIGHTS["blend"]) for each in both])


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="measured in all ways")
    parser.add_argument("--other", action="append", default=[], help="to compare it with")
    parser.add_argument("--data", type=Path, required=True, help="what make_data.py wrote")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--num-candidates", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of names")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = EDJEModel.from_pretrained(options.model)
    annotated = read_annotations(options.data / FILE)
    pool = encoded(model, sorted({a.image for a in annotated}))
    search = asked(model, pool, annotated, options)
    reference = scored(Reranker(model), search, pool.tokens, "float16")
    report: dict[str, Any] = {
        "images": len(pool.paths), "texts": len(search), "num_candidates": options.num_candidates,
        "first stage": share(search.right[:, 0].astype(np.float64)),
        "among the candidates": round(float(search.right.any(1).mean()), 4),
        "models": [described(model, options.model, search, reference)],
        "codecs": codecs(model, search, pool, reference),
        "precisions": precisions(model, search, pool),
    }  # fmt: skip
    for folder in options.other:
        other = EDJEModel.from_pretrained(folder)
        tokens = encoded(other, pool.paths).tokens
        scores = scored(Reranker(other), search, tokens, Path(folder).parent.name)
        report["models"].append(
            {**described(other, folder, search, scores), **compared(search, scores, reference)}
        )
    report |= {"seed": options.seed, **conditions()}
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def asked(
    model: EDJEModel, pool: Pool, annotated: list[Annotation], options: argparse.Namespace
) -> Search:
    """Choose names, and find their candidates."""
    owners = owners_of(annotated, pool)
    names = sorted(owners)
    kept = np.random.default_rng(options.seed).permutation(len(names))[: options.texts]
    texts = [names[number] for number in np.sort(kept)]
    depth = min(options.num_candidates, len(pool.paths))
    found, cosines = nearest(model.encode_texts(texts), pool.embeddings, depth, names=pool.paths)
    right = np.array([np.isin(rows, owners[t]) for rows, t in zip(found, texts, strict=True)])
    return Search(texts, found, cosines, right)


def scored(
    reranker: Reranker, search: Search, tokens: NDArray[np.float16], name: str
) -> NDArray[np.float32]:
    """Return `(q, k)` joint scores of all candidates."""
    parts = []
    for start in tqdm(range(0, len(search), _BATCH), desc=name, mininterval=5):
        rows = search.candidates[start : start + _BATCH]
        said = [text for text in search.texts[start : start + _BATCH] for _ in rows[0]]
        parts.append(reranker.score_pairs(said, tokens[rows.ravel()]).reshape(rows.shape))
    return np.concatenate(parts)


def codecs(
    model: EDJEModel, search: Search, pool: Pool, reference: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """Return a row for each codec, compared with exact tokens."""
    reranker, rows = Reranker(model), []
    for name in CODECS:
        codec = codec_for(name, *pool.tokens.shape[1:])
        codec = codec if codec.fitted else codec.fit(pool.tokens)
        tokens = codec.decode(codec.encode(pool.tokens))
        scores = reference if name == "float16" else scored(reranker, search, tokens, name)
        error = np.linalg.norm(tokens.astype(np.float32) - pool.tokens, axis=-1)
        lengths = np.linalg.norm(pool.tokens.astype(np.float32), axis=-1)
        rows.append({
            "codec": name, "bytes": codec.nbytes,
            "error": round(float((error / lengths).mean()), 4),
            "R@1": share(search.hits(scores)), **compared(search, scores, reference),
        })  # fmt: skip
    return rows


def precisions(model: EDJEModel, search: Search, pool: Pool) -> list[dict[str, Any]]:
    """Return a row for each precision, compared with float32, on every fourth text."""
    part = replace(
        search, texts=search.texts[::4], candidates=search.candidates[::4],
        cosines=search.cosines[::4], right=search.right[::4],
    )  # fmt: skip
    exact = scored(Reranker(model, precision="float32"), part, pool.tokens, "float32")
    rows = [{"precision": "float32", "texts": len(part), "R@1": share(part.hits(exact))}]
    found = {
        name: scored(Reranker(model, precision=name), part, pool.tokens, name)
        for name in PRECISIONS
    }
    found["float8"] = scored_in_float8(model, part, pool.tokens)
    for name, scores in found.items():
        rows.append({
            "precision": name, "texts": len(part), "R@1": share(part.hits(scores)),
            **compared(part, scores, exact),
        })  # fmt: skip
    return rows


def scored_in_float8(
    model: EDJEModel, search: Search, tokens: NDArray[np.float16]
) -> NDArray[np.float32]:
    """Return `(q, k)` joint scores, with the operands of the layers' products rounded to float8."""
    rounded = copy.deepcopy(model).float().eval()
    for layer in rounded.joint_encoder.language_model.bert.encoder.layer:
        for module in list(layer.modules()):
            if isinstance(module, nn.Linear):
                module.weight.data = in_float8(module.weight.data)  # a scale for each output
                module.register_forward_pre_hook(lambda _, given: (in_float8(given[0]),))
    scores = []
    with torch.inference_mode():
        for text, rows in zip(
            tqdm(search.texts, desc="float8", mininterval=5), search.candidates, strict=True
        ):
            ids, mask = rounded.tokenize([text] * len(rows))
            given = torch.from_numpy(tokens[rows].astype(np.float32))  # (k, m, d)
            scores.append(rounded.joint_encoder(ids, mask, given).numpy())
    return np.stack(scores)


def in_float8(x: Tensor) -> Tensor:
    """Round `(..., d)` to float8 (e4m3) with a scale for each row, and return it in float32."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / _LARGEST
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def described(
    model: EDJEModel, folder: str, search: Search, scores: NDArray[np.float32]
) -> dict[str, Any]:
    """Return a model's size, its trainings, and its R@1."""
    config = model.joint_encoder.language_model.config
    first, mixed = search.hits(search.cosines), search.hits(search.blended(scores))
    return {
        "tokens": model.config.num_tokens, "width": config.hidden_size,
        "layers": config.num_hidden_layers, "trainings": trainings(folder),
        "R@1": share(search.hits(scores)), "R@1 blended": share(mixed),
        "R@1 gained": paired(search.hits(scores), first),
        "R@1 gained, blended": paired(mixed, first),
    }  # fmt: skip


def trainings(folder: str) -> list[dict[str, int]]:
    """Return the trainings of the joint encoder of a model, the first one first."""
    recipe = json.loads((Path(folder).parent / "recipe.json").read_text())
    earlier = recipe["model"]["start_from"]
    step = recipe["optimisation"]
    own = {
        "steps": step["steps"], "batch": step["batch_size"], "seed": recipe["seed"],
        "grouped_batches": recipe["data"].get("grouped_batches", 1),
    }  # fmt: skip
    return [*(trainings(earlier) if earlier else []), own]


def compared(
    search: Search, scores: NDArray[np.float32], reference: NDArray[np.float32]
) -> dict[str, Any]:
    """Return the paired difference of R@1, and the mean of Kendall's tau."""
    return {
        "R@1 changed": paired(search.hits(scores), search.hits(reference)),
        "tau": round(float(kendall_tau(scores, reference).mean()), 4),
    }


def paired(hits: NDArray[np.float64], others: NDArray[np.float64]) -> dict[str, float]:
    """Return the mean difference of the same texts' hits, with its interval."""
    means = resampled_means(np.stack([hits, others], axis=1), np.arange(len(hits)))
    gap = float(hits.mean() - others.mean())
    return difference(gap, means[:, 0], means[:, 1]).as_dict()


def share(hits: NDArray[np.float64]) -> list[float]:
    """Return the mean and the ends of its 95% interval."""
    means = resampled_means(hits[:, None], np.arange(len(hits)))
    return [round(float(hits.mean()), 4), *(round(end, 4) for end in interval(means[:, 0]))]


if __name__ == "__main__":
    main()
