"""Command `train`: train a model by a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edje_qdrant.cli.loading import bar_shown, check_device, print_result, silence_libraries
from edje_qdrant.cli.options import Device, Json, Progress
from edje_qdrant.errors import ConfigError

__all__ = ["train"]


def train(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the model.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Recipe (.toml), or recipe.json of an earlier run; see examples/recipes. "
            "'demo' is the recipe of the bundled model.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of the recipe: --set optimisation.steps=500; repeat it for "
            "more.",
        ),
    ] = None,
    cache_vision: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Encode each image once into this folder, and train from there.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for drawings and checkpoints of recipes with scenes; OUT.work by default.",
        ),
    ] = None,
    device: Device = None,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Train a model; an interrupted run continues where it stopped."""
    if recipe is None:
        raise ConfigError(
            "no recipe is given: add --recipe FILE. Recipes to begin with are in examples/recipes: "
            "pretraining.toml, finetuning-coco.toml, finetuning-flickr.toml, distillation.toml, "
            "emoji.toml, emoji-continued.toml, emoji-wide.toml, emoji-wide-continued.toml; 'demo' "
            "trains the bundled model, in about one and a half hours on 2 cores"
        )
    check_device(device)
    silence_libraries()
    from edje_qdrant.demo.recipe import DEMO_RECIPE, read_demo_recipe, train_demo
    from edje_qdrant.training.distributed import rank
    from edje_qdrant.training.recipe import read_recipe, read_settings
    from edje_qdrant.training.run import train as run

    path = DEMO_RECIPE if recipe == "demo" else Path(recipe)
    changed = dict(_change(text) for text in changes or [])
    if "scenes" in read_settings(path):
        if cache_vision is not None:
            raise ConfigError(
                "a recipe with scenes keeps its vision cache in --work; leave out --cache-vision"
            )
        place = work or out.with_name(f"{out.name}.work")
        report = train_demo(
            out, place, read_demo_recipe(path, changed), device=device, progress=bar_shown(progress)
        )
        model = out
    else:
        if work is not None:
            raise ConfigError(
                "--work is only for recipes with scenes; leave it out, this run writes to --out"
            )
        if cache_vision is not None:
            changed["data.cache_vision"] = str(cache_vision)
        report = run(read_recipe(path, changed), out, device=device, progress=bar_shown(progress))
        model = Path(report["model"])
    if rank() == 0:
        print_result(report, [f"wrote {model}; use it with --model {model}"], as_json)


def _change(text: str) -> tuple[str, Any]:
    """Read `name=value`; the value is read as JSON, else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set takes NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
