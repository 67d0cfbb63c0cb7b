"""Evaluation of models: ingest of missing images, measurement, comparison and result files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.data.annotations import Annotation, group_by_image
from edje_qdrant.errors import ConfigError
from edje_qdrant.evaluation.bootstrap import RESAMPLES
from edje_qdrant.evaluation.gallery import Gallery, build_gallery
from edje_qdrant.evaluation.measure import Contender, measure
from edje_qdrant.evaluation.metrics_table import Measured, compare_systems
from edje_qdrant.evaluation.protocol import PROTOCOLS, choose
from edje_qdrant.evaluation.rankings import Direction
from edje_qdrant.evaluation.report import Evaluation
from edje_qdrant.evaluation.write_files import write_files
from edje_qdrant.files import kind_of, os_errors_as_store_errors, write_atomically
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.tokens.codecs import codec_for

__all__ = ["Contender", "Settings", "evaluate", "ingest_gallery"]

_DIRECTIONS: dict[str, tuple[Direction, ...]] = {
    "t2i": ("t2i",),
    "i2t": ("i2t",),
    "both": ("t2i", "i2t"),
}

# Maximum number of images to fit a codec to; fitting uses no more tokens than these have.
_FITTED_TO = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """Configure an evaluation.

    Attributes:
        protocol: `karpathy` or `full`.
        split: Split of a Karpathy file; by default `test` with the Karpathy protocol.
        direction: `t2i`, `i2t` or `both`.
        num_candidates: Numbers of candidates; empty for the protocol's default.
        in_memory: Use exact cosines and large batches in memory instead of the vector engine.
        limit: Use only this number of images, the first of the pool; None for all.
        resamples: Number of resamples of the bootstrap.
        seed: Random seed of the bootstrap.
        progress: Show bars on stderr.
    """

    protocol: str = "karpathy"
    split: str | None = None
    direction: Literal["t2i", "i2t", "both"] = "both"
    num_candidates: tuple[int, ...] = ()
    in_memory: bool = False
    limit: int | None = None
    resamples: int = RESAMPLES
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ConfigError(f"protocol is {self.protocol!r}; give {' or '.join(PROTOCOLS)}")
        if self.direction not in _DIRECTIONS:
            raise ConfigError(f"direction is {self.direction!r}; give {', '.join(_DIRECTIONS)}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; take 1 image or more")
        for number in self.num_candidates:
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"num_candidates holds {number!r}; give whole numbers, 1 or more")


def evaluate(
    annotations: Sequence[Annotation],
    contenders: Sequence[Contender],
    out: str | Path,
    settings: Settings | None = None,
    *,
    data: str = "",
) -> Evaluation:
    """Evaluate models on annotated images and write the report, query results, sheets and plots.

    Args:
        annotations: The result of `read_annotations`, with all splits.
        contenders: The models; all are compared with the first, on the same queries.
        out: Folder for `eval.json`, `cases-*.jsonl`, `worst-*.png`, plots and collections.
        settings: Settings of the evaluation.
        data: Names the annotations in the report.

    Returns:
        The results. Without matplotlib, no plots are written.

    Raises:
        ConfigError: There are no models, no images or no queries, or a setting is invalid.
        ContractMismatchError: A model's collection was written by another model.
        StoreError: A collection or the folder cannot be read or written.
        EngineUnavailableError: The server cannot be reached.
    """
    started = time.perf_counter()
    settings = settings or Settings()
    labels = [contender.label for contender in contenders]
    if not labels or len(set(labels)) < len(labels):
        raise ConfigError(f"give at least one model, each with its own label, not {labels}")
    protocol = PROTOCOLS[settings.protocol]
    pool, asked, split = choose(annotations, protocol, settings.split)
    if settings.limit is not None:
        pool = group_by_image(pool)[: settings.limit]
    gallery = whole = build_gallery(pool, asked=asked)
    folder = Path(out)
    with os_errors_as_store_errors("write to", folder):
        folder.mkdir(parents=True, exist_ok=True)
    for contender in contenders:
        with _collection(contender, whole, folder, settings) as collection:
            gallery = gallery.without(
                ingest_gallery(whole, collection, contender.model, progress=settings.progress)
            )
    numbers = settings.num_candidates or (protocol.num_candidates,)
    strangers = 0
    measured: dict[Direction, list[Measured]] = {d: [] for d in _DIRECTIONS[settings.direction]}
    for contender in contenders:
        with _collection(contender, whole, folder, settings) as collection:
            strangers = max(strangers, collection.count() - len(gallery))
            found = measure(
                contender,
                collection,
                gallery,
                [*measured],
                numbers,
                in_memory=settings.in_memory,
                progress=settings.progress,
            )
        for direction, one in found.items():
            measured[direction].append(one)
    systems = [
        system
        for ones in measured.values()
        for system in compare_systems(
            ones, numbers, resamples=settings.resamples, seed=settings.seed
        )
    ]
    evaluation = Evaluation(
        data=data,
        split=split,
        protocol=protocol,
        in_memory=settings.in_memory,
        images=len(gallery),
        captions=len(gallery.captions),
        failed=gallery.failed,
        lost_captions=gallery.lost_captions,
        twins=gallery.twins,
        strangers=strangers,
        systems=tuple(systems),
        files=write_files(measured, systems, folder),
        seconds=time.perf_counter() - started,
    )
    report = folder / "eval.json"
    with os_errors_as_store_errors("write", report):
        write_atomically(report, json.dumps(evaluation.as_dict(), indent=2).encode())
    return evaluation


@contextmanager
def _collection(
    contender: Contender, gallery: Gallery, folder: Path, settings: Settings
) -> Iterator[ImageCollection]:
    """Yield the contender's collection, or open or create one for this model and these images."""
    if contender.collection is not None:
        yield contender.collection
        return
    contract = contender.model.contract()
    weights = f"{contract.encoder_revision[:6]}{contract.adapter_hash[:6]}"
    place = folder / "collections" / f"{gallery.digest()}-{weights}-{contender.codec}"
    if kind_of(place / "images") is not None:
        collection = ImageCollection.open(place, "images")
    else:
        codec = codec_for(contender.codec, contract.num_tokens, contract.token_dim)
        if not codec.fitted:
            exact = replace(contender, codec="float16")
            with _collection(exact, gallery, folder, settings) as collection:
                left = gallery.without(
                    ingest_gallery(gallery, collection, contender.model, progress=settings.progress)
                )
                step = -(-len(left) // _FITTED_TO)
                codec = codec.fit(collection.encodings(left.image_ids[::step]).tokens)
        collection = ImageCollection.create(place, "images", contract, codec=codec)
    with collection:
        yield collection


def ingest_gallery(
    gallery: Gallery, collection: ImageCollection, model: EDJEModel, *, progress: bool = False
) -> dict[str, str]:
    """Ingest missing images; return path -> reason of those that could not be added."""
    report = ingest_images([*gallery.paths], collection, model, progress=progress)
    failed = {failure.path: failure.reason for failure in report.failed}
    existing = collection.existing(gallery.image_ids)
    for image_id, path in zip(gallery.image_ids, gallery.paths, strict=True):
        if image_id not in existing:
            failed.setdefault(path, "the file changed while it was read")
    return failed
