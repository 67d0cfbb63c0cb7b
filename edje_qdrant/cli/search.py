"""Command `search`: by text, image, example or cursor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edje_qdrant.cli.help import note
from edje_qdrant.cli.loading import (
    load_model,
    make_reranker,
    note_filter_problems,
    open_collection,
    print_result,
)
from edje_qdrant.cli.options import (
    Collection,
    Device,
    Grpc,
    GrpcPort,
    Index,
    Json,
    Model,
    Precision,
    Timeout,
    Url,
    Where,
    place_of,
)
from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from edje_qdrant.index import Strategy
    from edje_qdrant.search.options import Fusion, MinScore
    from edje_qdrant.search.results import SearchResult
    from edje_qdrant.search.retriever import TwoStageRetriever

__all__ = ["search"]


def search(
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="Description of the image.", show_default=False),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Search by an image file, with the first stage alone."),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Find images like this one of the collection; repeat it for more. With TEXT, the "
            "joint encoder ranks the hits by it.",
        ),
    ] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Find images unlike this one; repeat it for more."),
    ] = None,
    cursor: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR", help="Return the next page, from the cursor that --json printed."
        ),
    ] = None,
    index: Index = None,
    url: Url = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    collection: Collection = "images",
    model: Model = None,
    device: Device = None,
    precision: Precision = "auto",
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            metavar="N",
            help="Images to return; 10 by default, or --num-candidates if that is less.",
        ),
    ] = None,
    num_candidates: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="First-stage images to rerank; 100 by default, or --top-k if that is larger.",
        ),
    ] = None,
    where: Where = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Return only the best of the images with the same value of this payload field.",
        ),
    ] = None,
    collapse_duplicates: Annotated[
        bool,
        typer.Option(
            "--collapse-duplicates",
            help="Show one of each: of near-duplicates, such as copies, crops or a burst, only the "
            "best.",
        ),
    ] = False,
    likeness: Annotated[
        float | None,
        typer.Option(
            metavar="0-1",
            help="From which likeness on --collapse-duplicates takes images as near-duplicates; by "
            "default 0.96.",
        ),
    ] = None,
    hybrid: Annotated[
        bool,
        typer.Option(
            "--hybrid",
            help="Search by words of the collection's text fields, too: captions, file names.",
        ),
    ] = False,
    words_weight: Annotated[
        float | None,
        typer.Option(
            metavar="WEIGHT",
            help="How much words count with --hybrid, next to looks, where candidates are chosen; "
            "0.25 by default.",
        ),
    ] = None,
    fusion: Annotated[
        str,
        typer.Option(
            metavar="auto|rerank|words|rrf|blend",
            help="Ranking by the joint encoder alone, with words added, by reciprocal ranks of "
            "both stages, or by a blend of both scores; auto: words with --hybrid, else rerank.",
        ),
    ] = "auto",
    budget_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Time budget in milliseconds; candidates not scored in time follow in first-stage "
            "order.",
        ),
    ] = None,
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive",
            help="Stop scoring once the rest is unlikely to matter; see edje-qdrant calibrate.",
        ),
    ] = False,
    min_score: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE|auto",
            help="Leave out hits with a lower score; auto: the cutoff of the model's calibration.",
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Draw into FOLDER which regions and words contributed to each match.",
        ),
    ] = None,
    on_missing: Annotated[
        str,
        typer.Option(
            metavar="error|first_stage",
            help="For images whose tokens are missing or damaged: raise an error, or keep their "
            "first-stage place.",
        ),
    ] = "error",
    as_json: Json = False,
) -> None:
    """Find the images that fit a text best, or that are like others."""
    ways = [image is not None, bool(like or unlike), cursor is not None]
    if sum(ways) > 1 or (text is not None and (ways[0] or ways[2])):
        raise ConfigError(
            "give one of TEXT, --image, --like and --cursor; only --like and --unlike take a TEXT"
        )
    if text is None and not any(ways):
        raise ConfigError(
            "nothing to search for; give TEXT, --image FILE, --like ID or --cursor CURSOR"
        )
    if explain is not None and text is None:
        raise ConfigError("--explain draws how images match a TEXT; give one")
    if likeness is not None and not collapse_duplicates:
        raise ConfigError("--likeness is for --collapse-duplicates; give it too")
    if hybrid and any(ways):
        raise ConfigError("--hybrid searches for the words of a TEXT alone; leave the others out")
    threshold = _min_score(min_score)
    # With "first_stage", damaged side files do not prevent opening the collection.
    lenient = on_missing != "error"
    place = place_of(index, url, grpc, grpc_port, timeout)
    with open_collection(place, collection, for_repair=lenient) as opened:
        from edje_qdrant.index.where import filter_of
        from edje_qdrant.model.onnx.running import OnnxModel, is_exported
        from edje_qdrant.search.options import DEFAULTS
        from edje_qdrant.search.retriever import TwoStageRetriever

        if model is not None and is_exported(model):
            if device is not None or precision != "auto":
                raise ConfigError(
                    "--device and --precision are for models of torch; exported models run on the "
                    "CPU in the precision of their file"
                )
            retriever = TwoStageRetriever(opened, OnnxModel.from_files(model))
        else:
            loaded = load_model(model, device, opened)
            reranker = make_reranker(loaded, precision)
            # One search does not pay for reading all embeddings.
            retriever = TwoStageRetriever(opened, loaded, reranker=reranker, first_stage="engine")
        filter = filter_of(where or []) or None
        if top_k is None:
            top_k = (
                DEFAULTS["top_k"]
                if num_candidates is None
                else min(DEFAULTS["top_k"], num_candidates)
            )
        common: dict[str, Any] = {
            "top_k": top_k,
            "num_candidates": max(DEFAULTS["num_candidates"], top_k)
            if num_candidates is None
            else num_candidates,
            "filter": filter,
            "on_missing": on_missing,
            "collapse_duplicates": collapse_duplicates if likeness is None else likeness,
        }
        if cursor is not None:
            result = retriever.resume(cursor, top_k=top_k)
        elif image is not None:
            result = retriever.search_by_image(
                image,
                top_k=top_k,
                filter=filter,
                group_by=group_by,
                collapse_duplicates=common["collapse_duplicates"],
            )
        elif like or unlike:
            # Disliked images alone have no average to search near.
            strategy: Strategy = "average_vector" if like else "best_score"
            result = retriever.recommend(
                like or [], unlike or [], text=text, strategy=strategy, **common
            )
        else:
            assert text is not None
            result = retriever.search(
                text,
                **common,
                group_by=group_by,
                hybrid=hybrid,
                words_weight=words_weight,
                fusion=cast("Fusion", fusion),
                budget_ms=budget_ms,
                adaptive=adaptive,
                min_score=threshold,
            )
        if len(result.hits) < top_k:
            note_filter_problems(opened, filter)
        if group_by is not None and result.hits and all(hit.group is None for hit in result):
            note(f"--group-by: no image that was found has the field {group_by!r}")
        drawn = {} if explain is None else _explained(retriever, result, explain)
    data, lines = result.as_dict(), _as_lines(result)
    if explain is not None:
        data["explanations"] = drawn
        lines.append(f"{len(drawn)} explanations drawn in {explain}")
    print_result(data, lines, as_json)


def _explained(
    retriever: TwoStageRetriever, result: SearchResult, folder: Path
) -> dict[str, dict[str, Any]]:
    """Draw each hit's explanation; return id -> file, weights of words and heat.

    Raises:
        StoreError: The folder cannot be written.
    """
    from edje_qdrant.explain.heat_map import draw_explanation
    from edje_qdrant.files import os_errors_as_store_errors

    explained = {}
    for hit in result:
        explanation = retriever.explain(result.query, hit.image_id)
        path = folder / f"{hit.rank:03d}-{hit.image_id}.png"
        with os_errors_as_store_errors("write", path):
            folder.mkdir(parents=True, exist_ok=True)
            draw_explanation(hit.payload["path"], explanation).save(path)
        explained[hit.image_id] = {"file": str(path), **explanation.as_dict()}
    return explained


def _min_score(text: str | None) -> MinScore | None:
    if text is None or text == "auto":
        return cast("MinScore | None", text)
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--min-score takes a number or auto, not {text!r}") from error


def _as_lines(result: SearchResult) -> list[str]:
    if not result.hits:
        return ["nothing found"]
    sure = any(hit.probability is not None for hit in result)
    head = f"{'rank':>4}  {'score':>8}  {'match':>13}  " if sure else f"{'rank':>4}  {'score':>8}  "
    lines = [f"{head}{'first stage':>11}  image"]
    for hit in result:
        moved = hit.retrieval_rank - hit.rank
        arrow = "↑" if moved > 0 else "↓" if moved < 0 else "="
        shown = hit.payload.get("path", hit.image_id)
        score = "-" if hit.score is None else f"{hit.score:.3f}"
        match = "-" if hit.probability is None else f"{hit.match} {hit.probability:>4.0%}"
        middle = f"{match:>13}  " if sure else ""
        group = "" if hit.group is None else f"  ({hit.group})"
        group += f"  (+{len(hit.duplicates)} near-duplicates)" if hit.duplicates else ""
        lines.append(
            f"{hit.rank:>4}  {score:>8}  {middle}{hit.retrieval_rank:>9} {arrow}  {shown}{group}"
        )
    if result.reason:
        lines.append(f"{'degraded' if result.degraded else 'note'}: {result.reason}")
    stages = result.timings.as_dict()
    lines.append(", ".join(f"{name} {ms:.1f} ms" for name, ms in stages.items()))
    return lines
