"""The card of a model on the hub: what its folder records, written as a README."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edje_qdrant.model.checkpoints.checkpoint import Checkpoint

__all__ = ["model_card"]

_TAGS = ("edje", "image-retrieval", "reranking", "vision-language", "qdrant")
_NOT_RECORDED = "Nothing is recorded with this model."


def model_card(
    checkpoint: Checkpoint,
    repo_id: str,
    *,
    license: str | None,
    tags: Sequence[str] = (),
    folder: Path | None = None,
) -> str:
    """Return the text of a model's `README.md` on the hub.

    Args:
        checkpoint: The model's parts.
        repo_id: Its id on the hub.
        license: The licence's name as the hub writes it, such as `apache-2.0`; None if unknown.
        tags: Tags besides those of every model of this package.
        folder: The folder that the model was loaded from, if there is one: its `training.json`
            and, if training wrote it, the run's `recipe.json` and `training.jsonl`.
    """
    head = ["---", "library_name: edje-qdrant"]
    head += [] if license is None else [f"license: {json.dumps(license)}"]
    head += ["tags:", *(f"- {json.dumps(tag)}" for tag in dict.fromkeys((*_TAGS, *tags))), "---"]
    recipe, figures = _records(folder)
    parts = [
        "\n".join(head),
        f"# {repo_id}",
        "A model for two-stage image search: a text finds candidate images by the embedding of "
        "each, and a joint encoder, which reads the text together with a few stored tokens of each "
        "candidate, ranks them. No vision model runs at query time. The method is EDJE, "
        "*Efficient Discriminative Joint Encoders* ([arXiv 2510.06820]"
        "(https://arxiv.org/abs/2510.06820)).",
        _usage(repo_id),
        f"## Sizes\n\n{_sizes(checkpoint)}",
        f"## Figures\n\n{_figures(checkpoint, figures)}",
        f"## Recipe\n\n{_NOT_RECORDED if recipe is None else _block(recipe)}",
        _limits(checkpoint),
        f"## Licence\n\n{_licence(license)}",
    ]
    return "\n\n".join(parts) + "\n"


def _usage(repo_id: str) -> str:
    return f"""## How to use

```
pip install edje-qdrant
edje-qdrant ingest IMAGES --index ./photos --model {repo_id}
edje-qdrant search "a dog in the snow" --index ./photos
```

```python
from edje_qdrant import EDJEModel, ImageCollection, TwoStageRetriever, ingest_images

model = EDJEModel.from_pretrained("{repo_id}")
with ImageCollection.open_or_create("./photos", "images", model.contract()) as collection:
    ingest_images("IMAGES", collection, model)
with TwoStageRetriever.open("./photos") as retriever:
    for hit in retriever.search("a dog in the snow", top_k=5):
        print(hit.rank, hit.score, hit.payload["path"])
```"""


def _sizes(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    parts = checkpoint.modules()
    nbytes = config.num_tokens * config.token_dim * 2
    rows = {
        "first-stage encoder": config.encoder,
        "embedding": f"{config.embedding_dim} numbers",
        "adapter": f"{config.adapter}, MLP {config.adapter_hidden_size} wide",
        "tokens of an image": f"{config.num_tokens} of {config.token_dim} numbers, "
        f"{nbytes:,} bytes in float16",
        "text": f"{config.max_caption_tokens} word pieces are read",
        "parameters": ", ".join(
            f"{name.replace('_', ' ')} {_count(part):,}" for name, part in parts.items()
        ),
    }
    return _table(("what", "size"), rows)


def _figures(checkpoint: Checkpoint, figures: dict[str, Any] | None) -> str:
    texts = []
    if figures is not None:
        texts.append(
            f"As recorded by the training, on its own validation data:\n\n{_block(figures)}"
        )
    fitted = checkpoint.calibration
    if fitted is not None:
        texts.append(
            f"Calibrated on {fitted.pairs:,} pairs of {fitted.queries:,} queries ({fitted.data}): "
            f"a match has the probability sigmoid({fitted.slope:.3f} x score + "
            f'{fitted.intercept:.3f}); `min_score="auto"` cuts at the score {fitted.cutoff:.2f}.'
        )
    texts = texts or [_NOT_RECORDED]
    texts.append("`edje-qdrant eval` measures the model on your own images and captions.")
    return "\n\n".join(texts)


def _limits(checkpoint: Checkpoint) -> str:
    return f"""## Limits

- The joint encoder ranks the candidates of the first stage; what that misses stays missed.
- Of a text, the first {checkpoint.config.max_caption_tokens} word pieces are read.
- Scores are comparable within one query; across queries only as calibrated probabilities.
- The model knows what its training data shows. On other images, and for texts in other languages
  or of another kind than captions, measure it first."""


def _licence(license: str | None) -> str:
    stated = "Not stated." if license is None else f"`{license}`."
    return f"{stated} The licences of the encoder and the language model it was built on apply too."


def _records(folder: Path | None) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the recipe and the figures that were recorded beside a model; None for each absent."""
    if folder is None:
        return None, None
    told = _json(folder / "training.json")
    if told is not None:
        return told.pop("recipe", None), told
    recipe = _json(folder.parent / "recipe.json") if folder.name == "model" else None
    if recipe is None:
        return None, None
    lines: list[dict[str, Any]] = []
    try:
        text = (folder.parent / "training.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError):
        return recipe, None
    validated = [line for line in lines if isinstance(line, dict) and "R@1" in line]
    return recipe, max(validated, key=lambda line: line["R@1"], default=None)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _block(data: dict[str, Any]) -> str:
    return f"```json\n{json.dumps(data, indent=2)}\n```"


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [f"| {' | '.join(head)} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
