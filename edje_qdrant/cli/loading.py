"""What several commands do: open a collection, load a model, print a result.

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from edje_qdrant.cli.options import api_key
from edje_qdrant.errors import CollectionNotFoundError, ConfigError

if TYPE_CHECKING:
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.contract import TokenContract
    from edje_qdrant.index import Engine, QdrantSettings
    from edje_qdrant.model import EDJEModel
    from edje_qdrant.tokens.codecs import Codec as FittedCodec

__all__ = [
    "bar_shown",
    "check_codec_file",
    "check_device",
    "load_model",
    "named_codec",
    "note_demo_model",
    "open_collection",
    "open_or_create",
    "print_result",
    "silence_libraries",
]


def open_collection(where: str, name: str, *, mend: bool = False) -> ImageCollection:
    """Open a collection, with the key that the environment has for a server."""
    from edje_qdrant.collection.collection import ImageCollection

    return ImageCollection.open(where, name, api_key=api_key(), mend=mend)


def open_or_create(
    where: str,
    name: str,
    model: str | None,
    device: str | None,
    codec: str | None = None,
    fit: Callable[[EDJEModel, str], FittedCodec] | None = None,
    engine: str | None = None,
    qdrant: QdrantSettings | None = None,
) -> tuple[ImageCollection, EDJEModel]:
    """Open a collection, or create it for the model asked for; load its model.

    Args:
        where: Folder or address.
        name: The collection's.
        model: Name or path of a model.
        device: Where the model goes.
        codec: A codec's name, or a file of fit-codec.
        fit: Fits a codec of a name, where that is needed, for a collection that is created.
        engine: What is to keep the vectors in a folder.
        qdrant: How a server is to keep a collection that is created.

    Raises:
        ConfigError: The collection is there, with another codec or engine than the one asked for.
    """
    from edje_qdrant.collection.collection import ImageCollection
    from edje_qdrant.index.engines import check_engine, engine_of
    from edje_qdrant.index.qdrant.settings import check_settings

    check_engine(engine, folder="://" not in where)  # before a model is loaded for nothing
    check_settings(qdrant, folder="://" not in where)

    try:
        collection = open_collection(where, name)
    except CollectionNotFoundError:
        loaded = load_model(model, device, None)
        contract = loaded.contract()
        chosen = named_codec(codec or "float16", contract)
        if not chosen.fitted and fit is not None:
            chosen = fit(loaded, chosen.name)
        created = ImageCollection.create(
            where, name, contract, codec=chosen, engine=cast("Engine | None", engine),
            qdrant=qdrant, api_key=api_key(),
        )  # fmt: skip
        return created, loaded
    try:
        if engine not in (None, found := engine_of(collection.index)):
            raise ConfigError(
                f"the collection {name!r} at {where} is kept by {found}, not {engine}; leave "
                "--engine out, or copy it to a new one: `edje-qdrant copy --engine`"
            )
        same = codec in (None, collection.contract.codec)
        if not same and named_codec(str(codec), collection.contract).key != collection.codec.key:
            raise ConfigError(
                f"the collection {name!r} at {where} stores tokens as "
                f"{collection.contract.codec}, not {codec}; leave --codec out, or change it with "
                "`edje-qdrant transcode`"
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
    from edje_qdrant.model.named import load_named_model

    if name is None and collection is not None and collection.contract.model is not None:
        return load_named_model(collection, device=device)
    return EDJEModel.from_pretrained(name or "demo", device=device)


def named_codec(name: str, contract: TokenContract) -> FittedCodec:
    """Return the codec of a name, or of a file that fit-codec wrote."""
    from edje_qdrant.tokens.codec_file import read_codec
    from edje_qdrant.tokens.codecs import codec_for

    shape = (contract.num_tokens, contract.token_dim)
    if name.endswith(".safetensors"):
        return read_codec(Path(name), *shape, adapter_hash=contract.adapter_hash)
    return codec_for(name, *shape)


def check_codec_file(name: str, path: Path) -> None:
    """Check, before anything is fitted, that a codec of that name can be written to a file.

    Raises:
        ConfigError: There is nothing to write, or the file's name would not be known for one.
    """
    from edje_qdrant.tokens.codecs import codec_for

    if codec_for(name, 1, 1).fitted:
        raise ConfigError(f"{name} has no codebook to fit; use its name with --codec")
    if path.suffix != ".safetensors":
        raise ConfigError(f"name the file something.safetensors, not {path.name}")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}; make it, or choose another")


def bar_shown(progress: bool | None) -> bool:
    """Return whether to show a bar: as asked for, or else on a terminal."""
    return sys.stderr.isatty() if progress is None else progress


def note_demo_model(model: EDJEModel) -> None:
    """Say on stderr what the bundled model is not for."""
    if model.name_or_path == "demo":
        typer.echo(
            "note: the model 'demo' knows only drawn shapes; for photographs, say --model "
            "shahafw/edje-vl-image-retrieval-reranker, which is downloaded, or name a folder that "
            "edje-qdrant convert wrote",
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
