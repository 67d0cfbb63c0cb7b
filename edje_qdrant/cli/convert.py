"""Command `convert`: turn a published checkpoint into a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edje_qdrant.cli.loading import print_result, silence_libraries
from edje_qdrant.cli.options import Json

__all__ = ["convert"]


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The published pytorch_model.pth.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the model to.")],
    siglip: Annotated[
        str, typer.Option(metavar="PATH", help="Folder or hub id of the SigLIP it was trained on.")
    ],
    language_model: Annotated[
        str, typer.Option(metavar="PATH", help="Folder or hub id of its language model.")
    ],
    as_json: Json = False,
) -> None:
    """Convert a checkpoint in the published layout into a folder that --model accepts."""
    silence_libraries()
    from edje_qdrant.model import EDJEModel

    model = EDJEModel.from_official_checkpoint(
        checkpoint, siglip_path=siglip, language_model_path=language_model, device="cpu"
    )
    model.save_pretrained(out)
    data = {"model": str(out), **model.config.as_dict()}
    text = f"wrote {out}; use it with: edje-qdrant ingest IMAGES --index FOLDER --model {out}"
    print_result(data, [text], as_json)
