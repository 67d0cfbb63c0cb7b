"""Command `convert`: turn a published checkpoint into a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edje_qdrant.cli.confirm import Yes, check_replaced
from edje_qdrant.cli.help import chosen_out
from edje_qdrant.cli.loading import print_result, silence_libraries
from edje_qdrant.cli.options import Json, OutArgument

__all__ = ["convert"]


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The published pytorch_model.pth.")
    ],
    siglip: Annotated[
        str, typer.Option(metavar="PATH", help="Folder or hub id of the SigLIP it was trained on.")
    ],
    language_model: Annotated[
        str, typer.Option(metavar="PATH", help="Folder or hub id of its language model.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder to write the model to.", show_default=False),
    ] = None,
    out_argument: OutArgument = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Convert a published checkpoint into a folder that --model accepts."""
    out = chosen_out(out, out_argument)
    check_replaced(out, yes=yes)
    silence_libraries()
    from edje_qdrant.model import EDJEModel

    model = EDJEModel.from_official_checkpoint(
        checkpoint, siglip_path=siglip, language_model_path=language_model, device="cpu"
    )
    model.save_pretrained(out)
    data = {"model": str(out), **model.config.as_dict()}
    text = f"wrote {out}; use it with: edje-qdrant ingest IMAGES --index FOLDER --model {out}"
    print_result(data, [text], as_json)
