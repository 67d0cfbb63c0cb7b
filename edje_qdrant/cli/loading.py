"""Steps that several commands share: open a collection, load a model, print a result."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any, cast

import typer

from edje_qdrant.cli.help import note
from edje_qdrant.cli.options import Place
from edje_qdrant.errors import ConfigError
from edje_qdrant.files import kind_of
from edje_qdrant.text import printable

if TYPE_CHECKING:
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.contract import TokenContract
    from edje_qdrant.index import Engine, Filter, QdrantSettings
    from edje_qdrant.model import EDJEModel
    from edje_qdrant.model.inference.precision import Precision as PrecisionName
    from edje_qdrant.rerank.reranker import Reranker
    from edje_qdrant.tokens.codecs import Codec as FittedCodec
    from edje_qdrant.types import FailedImage, IngestReport

__all__ = [
    "address_of",
    "all_failed",
    "bar_shown",
    "check_codec_file",
    "check_device",
    "closing_all",
    "failure_lines",
    "load_model",
    "make_reranker",
    "note_demo_model",
    "note_filter_problems",
    "open_collection",
    "open_or_create",
    "print_result",
    "shortened",
    "silence_libraries",
]

_LINES_SHOWN = 20


def open_collection(place: Place, name: str, *, for_repair: bool = False) -> ImageCollection:
    """Open a collection."""
    from edje_qdrant.collection.collection import ImageCollection

    return ImageCollection.open(place.location, name, for_repair=for_repair, **place.server)


def open_or_create(
    place: Place,
    name: str,
    model: str | None,
    device: str | None,
    codec: str | None = None,
    fit: Callable[[EDJEModel, str], FittedCodec] | None = None,
    engine: str | None = None,
    qdrant: QdrantSettings | None = None,
    text_fields: Sequence[str] | None = None,
    text_language: str | None = None,
) -> tuple[ImageCollection, EDJEModel]:
    """Open a collection, or create it for the given model; load the model.

    Args:
        place: Where the collection is.
        name: The collection's name.
        model: The model's name or path.
        device: The model's device.
        codec: A codec's name, or a file that fit-codec wrote.
        fit: Fits the named codec for a new collection, if the codec needs it.
        engine: Engine for a new collection in a folder.
        qdrant: Settings for a new collection on a server.
        text_fields: Payload fields of a new collection whose words can be searched.
        text_language: Their language.

    Raises:
        ConfigError: The collection exists with another codec, engine or text fields than the given
            ones.
    """
    from edje_qdrant.collection.collection import ImageCollection

    loaded: list[EDJEModel] = []

    def contract() -> TokenContract:
        loaded.append(load_model(model, device, None))
        return loaded[0].contract()

    collection = ImageCollection.open_or_create(
        place.location,
        name,
        contract,
        codec=codec,
        fit=None if fit is None else lambda chosen: fit(loaded[0], chosen.name),
        engine=cast("Engine | None", engine),
        qdrant=qdrant,
        text_fields=text_fields,
        text_language=text_language,
        **place.server,
    )
    try:
        return collection, loaded[0] if loaded else load_model(model, device, collection)
    except BaseException:
        collection.close()
        raise


def load_model(
    name: str | None, device: str | None, collection: ImageCollection | None
) -> EDJEModel:
    """Load the given model, else the collection's own, else the bundled one."""
    check_device(device)
    silence_libraries()
    from edje_qdrant.model import EDJEModel
    from edje_qdrant.model.named import load_named_model

    if name is None and collection is not None and collection.contract.model is not None:
        return load_named_model(collection, device=device)
    return EDJEModel.from_pretrained(name or "demo", device=device)


def make_reranker(model: EDJEModel, precision: str) -> Reranker:
    """Return a reranker in the precision that was given on the command line.

    Raises:
        ConfigError: There is no such precision, or the device does not support it.
    """
    from edje_qdrant.rerank.reranker import Reranker

    return Reranker(model, precision=cast("PrecisionName", precision))


def check_codec_file(name: str, path: Path) -> None:
    """Check, before fitting starts, that the named codec can be written to a file.

    Raises:
        ConfigError: The codec has no codebook, or the path cannot hold one.
    """
    from edje_qdrant.tokens.codecs import codec_for

    if codec_for(name, 1, 1).fitted:
        raise ConfigError(f"{name} has no codebook to fit; use its name with --codec")
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path.name} does not end in .safetensors; rename it so")
    if kind_of(path.parent, ConfigError) != "folder":
        raise ConfigError(f"the folder {path.parent} does not exist; create it, or choose another")


@contextmanager
def closing_all(sockets: Iterable[socket]) -> Iterator[None]:
    """Close sockets at the end."""
    try:
        yield
    finally:
        for one in sockets:
            one.close()


def address_of(host: str, port: int) -> str:
    """Return the address at which a service is reached."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def note_filter_problems(opened: ImageCollection, filter: Filter | None) -> None:
    """Say on stderr why nothing can be found by a filter, such as a field that no image has.

    Called when little was found: it reads some payloads.
    """
    from edje_qdrant.errors import EdjeError

    try:
        problems = opened.filter_problems(filter)
    except EdjeError:  # what was found is an answer without it
        return
    for problem in problems:
        note(f"--where: {printable(problem.message)}")


def bar_shown(progress: bool | None) -> bool:
    """Return whether to show a progress bar: as given, else only on a terminal."""
    return sys.stderr.isatty() if progress is None else progress


def note_demo_model(model: EDJEModel) -> None:
    """Warn on stderr that the bundled model knows only drawn shapes."""
    from edje_qdrant.model.named import model_note

    if (note := model_note(model.name_or_path)) is not None:
        typer.echo(
            f"note: {note}; for photographs, say --model "
            "shahafw/edje-vl-image-retrieval-reranker, which is downloaded, or name a folder that "
            "edje-qdrant convert wrote",
            err=True,
        )


def check_device(device: str | None) -> None:
    """Raise ConfigError for a device that torch cannot use here."""
    if device is None:
        return
    import torch

    try:
        torch.empty(0, device=device)
    except Exception as error:  # the class depends on how torch was built
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {device} cannot be used here: {reason}") from error


def silence_libraries() -> None:
    """Hide progress bars and advice of transformers and huggingface_hub."""
    import transformers
    from huggingface_hub.utils.tqdm import disable_progress_bars

    for library in ("huggingface_hub", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    disable_progress_bars()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def print_result(data: dict[str, Any], lines: Iterable[str], as_json: bool) -> None:
    """Print the data as one line of JSON, or lines of text, each of which stays one line."""
    text = json.dumps(data) if as_json else "\n".join(printable(line) for line in lines)
    typer.echo(text)


def all_failed(report: IngestReport) -> bool:
    """Return whether no image of a source could be read."""
    return bool(report.failed) and not (report.added or report.skipped or report.updated)


def failure_lines(failures: Iterable[FailedImage]) -> list[str]:
    """Return a line for each image that failed; no more than some."""
    return shortened(f"{failure.path}: {failure.reason}" for failure in failures)


def shortened(lines: Iterable[str]) -> list[str]:
    """Indent lines; past the twentieth, return only how many more there are."""
    given = [*lines]
    more = len(given) - _LINES_SHOWN
    rest = [f"and {more} more, all listed by --json"] if more > 0 else []
    return [f"  {line}" for line in [*given[:_LINES_SHOWN], *rest]]
