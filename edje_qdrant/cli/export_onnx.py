"""Command `export-onnx`: write the joint encoder for other runtimes and languages."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edje_qdrant.cli.confirm import Yes, check_replaced
from edje_qdrant.cli.help import MODEL
from edje_qdrant.cli.loading import load_model, print_result
from edje_qdrant.cli.options import Json

__all__ = ["export_model"]


def export_model(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, .onnx.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_PATH", rich_help_panel=MODEL, help="Model; 'demo' by default."
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantize: a smaller file, slightly less exact.")
    ] = False,
    text_encoder: Annotated[
        bool,
        typer.Option(
            "--text-encoder",
            help="Write the first stage's text encoder beside it too, for searches without torch.",
        ),
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Write the joint encoder as an ONNX file, with its tokenizer beside it.

    It needs the extra onnx-export. With --text-encoder, `search --model FOLDER` and
    TwoStageRetriever search with both files without torch.
    """
    from edje_qdrant.model.onnx.export import export_onnx
    from edje_qdrant.model.onnx.names import TEXT_FILE
    from edje_qdrant.model.onnx.text_encoder import export_text_encoder

    check_replaced(out, yes=yes)
    loaded = load_model(model, "cpu", None)
    written = export_onnx(loaded, out, int8=int8)
    text = (
        f"wrote {written.path} ({written.nbytes / 1e6:.1f} MB, {written.precision}) and "
        f"{written.tokenizer}; on random input its logits differ from torch's by at most "
        f"{written.max_difference:.2g}"
    )
    lines, told = [text], asdict(written)
    if text_encoder:
        beside = export_text_encoder(loaded, out.with_name(TEXT_FILE))
        told["text_encoder"] = asdict(beside)
        lines.append(
            f"wrote {beside.path} ({beside.nbytes / 1e6:.1f} MB, float32) and {beside.tokenizer}; "
            f"its embeddings differ from torch's by at most {beside.max_difference:.2g}"
        )
    print_result(told, lines, as_json)
