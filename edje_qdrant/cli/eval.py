"""Commands `eval` and `calibrate`: measure models on annotated images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edje_qdrant.cli.help import COLLECTION, MODEL, EdjeCommand
from edje_qdrant.cli.loading import (
    bar_shown,
    load_model,
    note_demo_model,
    open_or_create,
    print_result,
    silence_libraries,
)
from edje_qdrant.cli.options import (
    Collection,
    Device,
    Grpc,
    GrpcPort,
    Index,
    Json,
    Place,
    Precision,
    Progress,
    Timeout,
    place_of,
)
from edje_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from edje_qdrant.evaluation.measure import Contender
    from edje_qdrant.model.inference.precision import Precision as PrecisionName

__all__ = ["EvalCommand", "calibrate", "evaluate", "gather_numbers"]

_NUMBERS = "--num-candidates"

Images = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder that image paths start from; the annotation file's own by default.",
    ),
]


class EvalCommand(EdjeCommand):
    """Command that accepts several numbers after `--num-candidates`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parsed: list[str] = super().parse_args(ctx, gather_numbers(args))
        return parsed


def gather_numbers(args: Sequence[str]) -> list[str]:
    """Rewrite `--num-candidates 5 10 20` as `--num-candidates=5,10,20`, in any position."""
    rest: list[str] = []
    numbers: list[str] = []
    waiting = [*args]
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if argument == "--":
            rest += [argument, *waiting]
            break
        if name != _NUMBERS:
            rest.append(argument)
        elif equals:
            numbers.append(value)
        elif not waiting or waiting[0].startswith("--"):
            rest.append(argument)  # the parser reports the missing value
        else:
            numbers.append(waiting.pop(0))
            while waiting and re.fullmatch(r"[0-9,]+", waiting[0]):
                numbers.append(waiting.pop(0))
    return [f"{_NUMBERS}={','.join(numbers)}", *rest] if numbers else rest


def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Annotations: .jsonl or .json with image and caption, or a Karpathy file; "
            "'scenes' draws the demo's images.",
        ),
    ],
    images: Images = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Split of a Karpathy file; 'test' by default under the Karpathy protocol.",
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="karpathy|full",
            help="karpathy: the pool is one split; full: the pool is all splits.",
        ),
    ] = "karpathy",
    direction: Annotated[
        str,
        typer.Option(
            metavar="t2i|i2t|both", help="t2i (text to image), i2t (image to text) or both."
        ),
    ] = "both",
    num_candidates: Annotated[
        str | None,
        typer.Option(
            _NUMBERS,
            metavar="N...",
            help="Number of candidates to rerank, or several: 5 10 20 50 100. By default 10 under "
            "the Karpathy protocol and 50 with the full pool.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME_OR_PATH",
            rich_help_panel=MODEL,
            help="Model; repeat it to compare more with the first. By default the model that wrote "
            "the collection, else 'demo'.",
        ),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(
            "--codec",
            metavar="NAME",
            help="Codec of the collections that are created here: float16 (default), int8, int4, "
            "pq16, pq24, pq32 or pq48 (fitted to these images). Each model is measured with each.",
        ),
    ] = None,
    index: Index = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            rich_help_panel=COLLECTION,
            help="Address of a Qdrant server. Images are added to it, so the address is never "
            "taken from the environment. An API key is read from EDJE_QDRANT_API_KEY.",
        ),
    ] = None,
    grpc: Grpc = False,
    grpc_port: GrpcPort = None,
    timeout: Timeout = 30,
    collection: Collection = "images",
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Folder for results, and for collections if neither --index nor --url is given.",
        ),
    ] = Path("edje-eval"),
    in_memory: Annotated[
        bool,
        typer.Option(
            "--in-memory",
            help="Compute exact cosines in memory instead of using the vector engine.",
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Use only the first N images.")
    ] = None,
    device: Device = None,
    precision: Precision = "auto",
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Measure how often the right image or text is ranked first.

    Images that are not in the collection are added to it.
    """
    numbers = _parsed(num_candidates)
    place = None
    if index is not None or url is not None:
        place = place_of(index, url, grpc, grpc_port, timeout)
    elif grpc or grpc_port is not None:
        raise ConfigError("--grpc and --grpc-port are about a server; give --url too")
    silence_libraries()
    from edje_qdrant.data.annotations import read_annotations
    from edje_qdrant.evaluation.run import Settings
    from edje_qdrant.evaluation.run import evaluate as run

    shown = bar_shown(progress)
    settings = Settings(
        protocol=protocol,
        split=split,
        direction=direction,  # type: ignore[arg-type]
        num_candidates=numbers,
        in_memory=in_memory,
        limit=limit,
        progress=shown,
    )
    path = _scenes(out, limit, images, shown) if data == "scenes" else Path(data)
    annotations = read_annotations(path, images=images)
    with ExitStack() as stack:
        contenders = _contenders(
            stack, model or [], codec or [], place, collection, device, precision
        )
        if data != "scenes":
            for contender in contenders:
                note_demo_model(contender.model)
        report = run(annotations, contenders, out, settings, data=data)
    print_result(report.as_dict(), report.text().split("\n"), as_json)


def calibrate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Images and captions like those to be searched, in the formats of eval, or "
            "'scenes' for drawn ones.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="NAME_OR_PATH", rich_help_panel=MODEL, help="Model to calibrate."
        ),
    ] = "demo",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the model with its calibration; by default the calibration is written "
            "into the model's own folder.",
        ),
    ] = None,
    images: Images = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of a Karpathy file; 'val' by default.")
    ] = None,
    num_candidates: Annotated[
        int, typer.Option(metavar="N", help="First-stage images to score.")
    ] = 100,
    limit: Annotated[int, typer.Option(metavar="N", help="Use only the first N images.")] = 2000,
    cutoff: Annotated[
        float,
        typer.Option(metavar="SHARE", help='Least probability of a match for min_score="auto".'),
    ] = 0.5,
    winners_lost: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of queries whose best image adaptive=True may miss."
        ),
    ] = 0.002,
    device: Device = None,
    precision: Precision = "auto",
    progress: Progress = None,
    as_json: Json = False,
) -> None:
    """Fit a model's calibration to annotated images.

    --min-score auto, --adaptive and probabilities need it.
    """
    silence_libraries()
    import tempfile

    import torch

    from edje_qdrant.data.annotations import read_annotations
    from edje_qdrant.demo.annotated import CALIBRATION_SEED, SCENES, scene_matches, write_scenes
    from edje_qdrant.evaluation.calibrate import calibrate as run
    from edje_qdrant.evaluation.protocol import PROTOCOLS, choose
    from edje_qdrant.model import EDJEModel

    loaded = load_model(model, device, None)
    folder = Path(loaded.name_or_path or "")
    if out is None and not folder.is_dir():
        raise ConfigError(
            f"the model {model!r} is not a local folder that can be written to; give --out FOLDER"
        )
    shown = bar_shown(progress)
    with tempfile.TemporaryDirectory() as scratch:
        path, matches = Path(data), None
        if data == "scenes":
            count = max(20, min(limit, SCENES))
            path = write_scenes(Path(scratch), count=count, seed=CALIBRATION_SEED, progress=shown)
            matches = scene_matches(Path(scratch), count=count, seed=CALIBRATION_SEED)
        annotations = read_annotations(path, images=images)
        if split is None and any(one.part for one in annotations):
            split = "val"
        annotations, _, _ = choose(annotations, PROTOCOLS["karpathy"], split)
        report = run(
            loaded,
            annotations,
            data=data,
            matches=matches,
            num_candidates=num_candidates,
            limit=limit,
            cutoff_probability=cutoff,
            winners_lost=winners_lost,
            precision=cast("PrecisionName", precision),
            progress=shown,
        )
    if out is None:
        report.calibration.save(folder)
    else:
        # Load again: the weights in use may have another precision than the stored ones.
        stored = EDJEModel.from_pretrained(model, device="cpu", dtype=torch.float32)
        stored.calibration = report.calibration
        stored.save_pretrained(out)
    where = str(out or folder)
    print_result(
        {**report.as_dict(), "model": where},
        [*report.text().split("\n"), f"written to {where}"],
        as_json,
    )


def _parsed(numbers: str | None) -> tuple[int, ...]:
    if numbers is None:
        return ()
    parts = [part for part in numbers.split(",") if part]
    if not parts or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise ConfigError(f"{_NUMBERS} takes whole numbers, as in 5 10 20, not {numbers!r}")
    return tuple(int(part) for part in parts)


def _scenes(out: Path, limit: int | None, images: Path | None, progress: bool) -> Path:
    from edje_qdrant.demo.annotated import SCENES, write_scenes

    if images is not None:
        raise ConfigError(
            "--images does not apply to 'scenes', which are drawn into --out; leave it out"
        )
    # The demo draws at least 20; `limit` is applied to them later.
    return write_scenes(out, count=max(20, limit or SCENES), progress=progress)


def _contenders(
    stack: ExitStack,
    models: Sequence[str],
    codecs: Sequence[str],
    place: Place | None,
    collection: str,
    device: str | None,
    precision: str,
) -> list[Contender]:
    from edje_qdrant.evaluation.measure import Contender

    chosen = cast("PrecisionName", precision)

    if place is None:
        contenders = []
        for named in models or ["demo"]:
            loaded = load_model(named, device, None)
            for codec in codecs or ["float16"]:
                label = f"{named} {codec}" if codecs else named
                contenders.append(Contender(label, loaded, codec=codec, precision=chosen))
        return contenders
    if codecs:
        raise ConfigError(
            "--codec applies to collections that are created here; with --index or --url, "
            "leave it out"
        )
    if len(models) > 1:
        raise ConfigError(
            "a collection belongs to one model; to compare several models, leave out --index and "
            "--url: each model then gets its own collection in --out"
        )
    name = models[0] if models else None
    opened, loaded = open_or_create(place, collection, name, device)
    stack.enter_context(opened)
    label = name or loaded.name_or_path or "model"
    return [Contender(label, loaded, opened, precision=chosen)]
