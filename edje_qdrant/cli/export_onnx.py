"""Command `export-onnx`: write the joint encoder for other runtimes and languages."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edje_qdrant.cli.loading import load_model, print_result
from edje_qdrant.cli.options import Json

__all__ = ["export_model"]


def export_model(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, .onnx.")],
    model: Annotated[
        str | None, typer.Option(metavar="NAME_OR_PATH", help="Model; 'demo' by default.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantize: a smaller file, slightly less exact.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the joint encoder as an ONNX file, with its tokenizer.json beside it (extra: onnx)."""
    from edje_qdrant.model.onnx.export import export_onnx

    written = export_onnx(load_model(model, "cpu", None), out, int8=int8)
    text = (
        f"wrote {written.path} ({written.nbytes / 1e6:.1f} MB, {written.precision}) and "
        f"{written.tokenizer}; on random input its logits differ from torch's by at most "
        f"{written.max_difference:.2g}"
    )
    print_result(asdict(written), [text], as_json)
