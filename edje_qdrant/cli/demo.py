"""Command `demo`: draw, ingest, search and rerank scenes with the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edje_qdrant.cli.loading import bar_shown, print_result, silence_libraries
from edje_qdrant.cli.options import Json, Progress

__all__ = ["demo"]


def demo(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for images, index and results.")
    ] = Path("edje-demo"),
    scenes: Annotated[int, typer.Option(metavar="N", help="Scenes to draw, 20 or more.")] = 1000,
    num_candidates: Annotated[
        int, typer.Option(metavar="N", help="Images of the first stage to rerank, 10 or more.")
    ] = 50,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Draw scenes, ingest and search them; show what reranking improves."""
    silence_libraries()
    from edje_qdrant.demo.run import run_demo

    report = run_demo(
        out, images=scenes, num_candidates=num_candidates, progress=bar_shown(progress)
    )
    print_result(report.as_dict(), report.text().split("\n"), as_json)
