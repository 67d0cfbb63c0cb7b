"""Training from a recipe: from data files to a saved model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edje_qdrant.data.pairs import PairSource, open_pairs
from edje_qdrant.encoders import Encoder
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.files import os_errors_as_store_errors, write_atomically
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.adapter import CompressedAdapter
from edje_qdrant.training.batches import Batches
from edje_qdrant.training.build import attention_for_training, build_model, freeze
from edje_qdrant.training.grouping import Grouping, RowOrder
from edje_qdrant.training.initialise import look_at_regions
from edje_qdrant.training.loop import accelerator_for, fit
from edje_qdrant.training.mixture import Mixture
from edje_qdrant.training.objectives import TrainedParts
from edje_qdrant.training.recipe import Pairs, Recipe, read_recipe
from edje_qdrant.training.tower import new_language_model, train_tower
from edje_qdrant.training.validation import search_validation
from edje_qdrant.training.vision import LiveVision, VisionSource
from edje_qdrant.training.vision_cache import CachedVision

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["train"]

_SAMPLE = 256  # images for the initialisation of a new adapter


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    encoder: Encoder | None = None,
    sources: Sequence[PairSource] | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a model and save it to `out/model`; a stopped run resumes.

    Processes started by `accelerate launch` or `torchrun` train together, and negatives come from
    all of their batches. A recipe with a section `tower` trains its encoder first, in `out/tower`.
    `out` also gets `recipe.json` with every setting, `training.pt` to resume
    from, and logs (`training.jsonl`, `tensorboard/`).

    Args:
        recipe: All settings.
        out: Folder; created if missing.
        encoder: Replaces the recipe's encoder. Any encoder can be trained with; only this
            package's can be saved and loaded with the model.
        sources: Replace the recipe's training files, one for each, for example a `DatasetPairs` of
            a data set that is already loaded.
        device: `cpu` to not use a GPU.
        progress: Show bars on stderr.

    Returns:
        The best validation's figures, `seconds`, unreadable images, and the folder `model`.

    Raises:
        CheckpointError: A model cannot be loaded, or `out` holds another recipe's run.
        ConfigError: The data cannot be read (the message names file and line), or the number of
            `sources` is not the recipe's.
        EdjeError: A loss is not finite; the last checkpoint is kept.
        MissingExtraError: The extra `train` is not installed.
    """
    out = Path(out)
    accelerator = accelerator_for(device)
    _keep_recipe(recipe, out, accelerator)
    if sources is None:
        sources = [_open(pairs) for pairs in recipe.data.train]
    if len(sources) != len(recipe.data.train):
        raise ConfigError(
            f"{len(sources)} sources were given and the recipe names {len(recipe.data.train)} "
            "training files; give one source for each"
        )
    held = _open(recipe.data.validation)
    language_model = None
    if recipe.tower is not None and encoder is None:
        encoder = train_tower(recipe, sources, held, out / "tower", accelerator, progress=progress)
        if recipe.language_model is not None:
            torch.manual_seed(recipe.seed)
            bert = new_language_model(recipe.language_model, encoder.tokenizer)
            language_model = (bert, encoder.tokenizer)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, encoder=encoder, language_model=language_model)
    model.to(accelerator.device)
    freeze(model, language_model=recipe.model.freeze_language_model)
    teacher = _teacher(recipe, accelerator)
    vision = _vision(model, sources, recipe, accelerator, progress=progress)
    held_folder = Path(recipe.data.cache_vision or out / "vision")
    held_vision = _cached(model, [held], held_folder, recipe, accelerator, progress=progress)
    if recipe.model.start_from is None and recipe.model.look_at_regions:
        _look(model, vision)
    mixture = Mixture(
        [len(source) for source in sources],
        [pairs.weight for pairs in recipe.data.train],
        seed=recipe.seed,
        usable=vision.usable,
    )
    loop = recipe.optimisation.loop(mixture.rows_per_epoch, accelerator.num_processes, recipe.seed)
    order = _order(mixture, vision, recipe)
    batches = Batches(model, sources, order, vision, recipe, loop.steps, accelerator)
    parts = TrainedParts(model, recipe.objectives.objectives(), teacher=teacher)
    with attention_for_training(model):
        figures = fit(
            parts.to(accelerator.device),
            batches,
            loop,
            folder=out,
            name="training",
            validate=_validation(model, held, held_vision, recipe),
            best_by="R@1",
            accelerator=accelerator,
            progress=progress,
        )
    report = {
        **figures,
        "pictures": sum(len(source) for source in sources),
        "unreadable": [asdict(failure) for failure in vision.failed],
        "model": str(out / "model"),
    }
    if accelerator.is_main_process:
        model.to("cpu").save_pretrained(out / "model")
    accelerator.wait_for_everyone()
    return report


def _keep_recipe(recipe: Recipe, out: Path, accelerator: Accelerator) -> None:
    """Save the recipe; refuse a folder with another recipe's run."""
    path, text = out / "recipe.json", recipe.model_dump_json(indent=2) + "\n"
    if accelerator.is_main_process:
        with os_errors_as_store_errors("write", path):
            out.mkdir(parents=True, exist_ok=True)
            begun = (out / "training.pt").exists() or (out / "tower" / "tower.pt").exists()
            if begun and path.exists() and read_recipe(path) != recipe:
                raise CheckpointError(
                    f"{out} holds a run of another recipe (see {path}); choose another folder, or "
                    "delete it to start from the beginning",
                    path=str(out),
                )
            write_atomically(path, text.encode())
    accelerator.wait_for_everyone()


def _teacher(recipe: Recipe, accelerator: Accelerator) -> EDJEModel | None:
    if recipe.objectives.teacher is None:
        return None
    teacher = EDJEModel.from_pretrained(
        recipe.objectives.teacher, device=accelerator.device, dtype=torch.float32
    )
    return teacher.requires_grad_(False)


def _open(pairs: Pairs) -> PairSource:
    return open_pairs(pairs.path, images=pairs.images, split=pairs.split)


def _vision(
    model: EDJEModel, sources: Sequence[PairSource], recipe: Recipe, accelerator: Accelerator,
    *, progress: bool,
) -> VisionSource:  # fmt: skip
    data = recipe.data
    if data.cache_vision is not None:
        folder = Path(data.cache_vision)
        return _cached(model, sources, folder, recipe, accelerator, progress=progress)
    return LiveVision(
        model.encoder, sources, device=accelerator.device, workers=data.workers,
        augment=data.augment, seed=recipe.seed,
    )  # fmt: skip


def _cached(
    model: EDJEModel, sources: Sequence[PairSource], folder: Path, recipe: Recipe,
    accelerator: Accelerator, *, progress: bool,
) -> CachedVision:  # fmt: skip
    main = accelerator.is_main_process
    vision = CachedVision(
        model.encoder, sources, folder, device=accelerator.device, workers=recipe.data.workers,
        progress=progress, main=main,
    )  # fmt: skip
    accelerator.wait_for_everyone()
    if not main:
        vision.open()
    return vision


def _order(mixture: Mixture, vision: VisionSource, recipe: Recipe) -> RowOrder:
    count = recipe.data.grouped_batches
    if count == 1:
        return mixture
    assert isinstance(vision, CachedVision)  # the recipe checks it
    return Grouping(mixture, vision.embeddings, count=count, seed=recipe.seed)


def _look(model: EDJEModel, vision: VisionSource) -> None:
    """Initialise a new compressed adapter's attention from a sample of the images."""
    if not isinstance(model.adapter, CompressedAdapter):
        return
    usable = vision.usable[0]
    rows = np.stack([np.zeros(min(_SAMPLE, len(usable)), np.int64), usable[:_SAMPLE]], axis=1)
    look_at_regions(model.adapter, vision.batch(rows, 0).tokens.to(model.device))


def _validation(
    model: EDJEModel, source: PairSource, vision: CachedVision, recipe: Recipe
) -> Callable[[], dict[str, float]]:
    """Return the validation function: text-to-image search with reranking."""
    usable = vision.usable[0][: recipe.data.validation_pictures]
    if len(usable) < 2:
        raise ConfigError(
            f"{source.name} has {len(usable)} readable images; validation needs 2 or more"
        )
    rows = np.stack([np.zeros(len(usable), np.int64), usable], axis=1)
    queries = [(c, n) for n, row in enumerate(usable) for c in source.captions(int(row))]
    parts = np.array_split(rows, max(1, len(rows) // 64))
    return search_validation(
        model,
        [text for text, _ in queries],
        np.array([owner for _, owner in queries]),
        np.concatenate([vision.batch(p, 0).embeddings.cpu().numpy() for p in parts]),
        lambda: (vision.batch(p, 0).tokens for p in parts),
        num_candidates=recipe.data.num_candidates,
    )
