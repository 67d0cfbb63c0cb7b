"""What several commands do: open a collection, load a model, print a result.

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import typer

from edje_qdrant.cli_options import api_key
from edje_qdrant.errors import CollectionNotFoundError, ConfigError

if TYPE_CHECKING:
    from edje_qdrant.collection import ImageCollection
    from edje_qdrant.model import EDJEModel

__all__ = [
    "check_device",
    "load_model",
    "note_demo_model",
    "open_collection",
    "open_or_create",
    "print_result",
    "silence_libraries",
]


def open_collection(where: str, name: str) -> ImageCollection:
    """Open a collection, with the key that the environment has for a server."""
    from edje_qdrant.collection import ImageCollection

    return ImageCollection.open(where, name, api_key=api_key())


def open_or_create(
    where: str, name: str, model: str | None, device: str | None, codec: str | None = None
) -> tuple[ImageCollection, EDJEModel]:
    """Open a collection, or create it for the model asked for; load its model.

    Raises:
        ConfigError: The collection is there, with another codec than the one asked for.
    """
    from edje_qdrant.collection import ImageCollection

    try:
        collection = open_collection(where, name)
    except CollectionNotFoundError:
        loaded = load_model(model, device, None)
        created = ImageCollection.create(
            where, name, loaded.contract(), codec=codec or "float16", api_key=api_key()
        )
        return created, loaded
    try:
        if codec not in (None, collection.contract.codec):
            raise ConfigError(
                f"the collection {name!r} at {where} stores tokens as "
                f"{collection.contract.codec}, not {codec}; leave --codec out, or ingest into a "
                "new collection"
            )
        return collection, load_model(model, device, collection)
    except BaseException:
        collection.close()
        raise


def load_model(
    name: str | None, device: str | None, collection: ImageCollection | None
) -> EDJEModel:
    """Load the model asked for, or else the collection's own, or else the bundled one."""
    check_device(device)
    silence_libraries()
    from edje_qdrant.model import EDJEModel
    from edje_qdrant.retriever import load_named_model

    if name is None and collection is not None and collection.contract.model is not None:
        return load_named_model(collection, device=device)
    return EDJEModel.from_pretrained(name or "demo", device=device)


def note_demo_model(model: EDJEModel) -> None:
    """Say on stderr what the bundled model is not for."""
    if model.name_or_path == "demo":
        typer.echo(
            "note: the model 'demo' knows only drawn shapes; for photographs, convert the "
            "published checkpoint (edje-qdrant convert --help) and pass it with --model",
            err=True,
        )


def check_device(device: str | None) -> None:
    """Refuse a device that torch cannot use here."""
    if device is None:
        return
    import torch

    try:
        torch.empty(0, device=device)
    except Exception as error:  # torch raises this or that, depending on how it was built
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {device} cannot be used here: {reason}") from error


def silence_libraries() -> None:
    """Keep the libraries' bars and advice out of the output."""
    import transformers
    from huggingface_hub.utils.tqdm import disable_progress_bars

    for library in ("huggingface_hub", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    disable_progress_bars()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def print_result(data: dict[str, Any], text: str, as_json: bool) -> None:
    """Print one JSON object in one line, or the text."""
    typer.echo(json.dumps(data) if as_json else text)
