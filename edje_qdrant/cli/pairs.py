"""Commands on images and texts without a collection: `match`, `classify`, `score-pairs`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from edje_qdrant.cli.help import MODEL, READING
from edje_qdrant.cli.loading import (
    bar_shown,
    load_model,
    make_reranker,
    note_demo_model,
    print_result,
)
from edje_qdrant.cli.options import Device, Json, Precision, Progress

if TYPE_CHECKING:
    from edje_qdrant.model.inference.precision import Precision as PrecisionName
    from edje_qdrant.pair_scoring.score import PairReport

__all__ = ["classify", "match", "score_pairs"]

_TEMPLATE = "a photo of {}"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME_OR_PATH",
        rich_help_panel=MODEL,
        help="A name, a folder or a hub id.",
    ),
]
ImagePath = Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")]


def match(
    image: ImagePath,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="Texts to rank.")],
    model: Model = "demo",
    device: Device = None,
    precision: Precision = "auto",
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="N", help="Texts to return; all by default.")
    ] = None,
    num_candidates: Annotated[
        int | None,
        typer.Option(metavar="N", help="First-stage texts to rerank; all by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank texts by how well they fit an image."""
    loaded = load_model(model, device, None)
    from edje_qdrant.image_to_text.classify import match_texts

    note_demo_model(loaded)
    reranker = make_reranker(loaded, precision)
    matches = match_texts(
        loaded, image, texts, top_k=top_k, num_candidates=num_candidates, reranker=reranker
    )
    cut = loaded.cut_texts([found.text for found in matches])
    lines = [f"{'rank':>4}  {'score':>8}  {'first stage':>11}  text"]
    for found in matches:
        score = "-" if found.score is None else f"{found.score:.3f}"
        lines.append(f"{found.rank:>4}  {score:>8}  {found.retrieval_rank:>11}  {found.text}")
    lines += [f"note on rank {row}: {why}" for row, why in enumerate(cut, start=1) if why]
    data = {
        "image": str(image),
        "model": model,
        "precision": reranker.precision,
        "matches": [
            {**asdict(found), "truncated": why is not None}
            for found, why in zip(matches, cut, strict=True)
        ],
    }
    print_result(data, lines, as_json)


def classify(
    image: ImagePath,
    labels: Annotated[list[str], typer.Argument(metavar="LABEL", help="Labels to choose from.")],
    model: Model = "demo",
    device: Device = None,
    precision: Precision = "auto",
    template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help=f"Sentence with {{}} in place of the label, '{_TEMPLATE}' by default; repeat it "
            "to average the scores of several.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify an image by labels, without training for them."""
    loaded = load_model(model, device, None)
    from edje_qdrant.image_to_text.classify import classify as classify_image

    note_demo_model(loaded)
    reranker = make_reranker(loaded, precision)
    found = classify_image(loaded, image, labels, template=template or _TEMPLATE, reranker=reranker)
    lines = [f"{'probability':>11}  {'score':>8}  label"]
    lines += [f"{label.probability:>11.1%}  {label.score:>8.3f}  {label.label}" for label in found]
    data = {
        "image": str(image),
        "model": model,
        "precision": reranker.precision,
        "labels": [asdict(label) for label in found],
    }
    print_result(data, lines, as_json)


def score_pairs(
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS", help='A .jsonl file, each line {"image": path, "caption": text}.'
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="File for the scores; an interrupted run continues from it."
        ),
    ],
    model: Model = "demo",
    device: Device = None,
    precision: Precision = "auto",
    threshold: Annotated[
        float | None,
        typer.Option(metavar="SCORE", help="Keep pairs with this score (a logit) or more."),
    ] = None,
    keep_top: Annotated[
        float | None,
        typer.Option(
            "--keep-top",
            metavar="SHARE",
            help="Keep this share of the pairs, best first, such as 0.3; written to a second file.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that relative image paths start from; the folder of PAIRS by default.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=MODEL, help="Images encoded at a time.")
    ] = 32,
    workers: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=READING, help="Threads that read and decode."),
    ] = 2,
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Score each caption of a data set against its image.

    With --threshold or --keep-top, the pairs to keep are selected.
    """
    loaded = load_model(model, device, None)
    from edje_qdrant.pair_scoring.score import score_pairs_file

    note_demo_model(loaded)
    report = score_pairs_file(
        pairs,
        out,
        loaded,
        images=images,
        threshold=threshold,
        keep_top=keep_top,
        batch_size=batch_size,
        workers=workers,
        precision=cast("PrecisionName", precision),
        progress=bar_shown(progress),
    )
    print_result({**report.as_dict(), "model": model}, _report_lines(report), as_json)


def _report_lines(report: PairReport) -> list[str]:
    before = f", {report.resumed} of them before" if report.resumed else ""
    lines = [
        f"{report.pairs} pairs scored{before}, {report.failed} without a score, in "
        f"{report.seconds:.1f} s: {report.out}"
    ]
    if report.kept is not None:
        least = "" if report.threshold is None else f", score {report.threshold:g} or more"
        lines.append(f"{report.kept} kept{least}: {report.kept_out or report.out}")
    lines += [f"  {failure.path}: {failure.reason}" for failure in report.failures]
    return lines
