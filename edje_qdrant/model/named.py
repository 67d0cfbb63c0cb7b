"""Load the model that a collection's contract names."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model.edje import EDJEModel

__all__ = ["WrittenByModel", "load_named_model", "model_for", "model_note"]

_DEMO = "demo"


class WrittenByModel(Protocol):
    """A collection, as far as it says which model wrote it."""

    @property
    def contract(self) -> TokenContract:
        """Return the contract it was written with."""

    @property
    def location(self) -> str:
        """Return its folder or server address."""

    @property
    def name(self) -> str:
        """Return its name."""


def model_for(
    collection: WrittenByModel,
    model: EDJEModel | str | Path | None,
    *,
    device: str | torch.device | None = None,
) -> EDJEModel:
    """Return the given model, or else the one that a collection's contract names.

    Args:
        collection: The collection to use the model with.
        model: A model, or what `EDJEModel.from_pretrained` takes.
        device: For a model that is loaded here; defaults to CUDA if available.

    Raises:
        ConfigError: No model is given, and the contract names none.
        CheckpointError: The model cannot be loaded.
    """
    if isinstance(model, EDJEModel):
        return model
    if model is None:
        return load_named_model(collection, device=device)
    return EDJEModel.from_pretrained(model, device=device)


def load_named_model(
    collection: WrittenByModel, *, device: str | torch.device | None = None
) -> EDJEModel:
    """Load the model that a collection's contract names.

    Raises:
        ConfigError: The contract names none.
        CheckpointError: The model cannot be loaded.
    """
    name = collection.contract.model
    what = f"the collection {collection.name!r} at {collection.location}"
    if name is None:
        raise ConfigError(
            f"{what} does not name the model that wrote it; pass it with model= (--model)"
        )
    try:
        return EDJEModel.from_pretrained(name, device=device)
    except CheckpointError as error:
        raise CheckpointError(
            f"{what} was written with the model {name!r}, which cannot be loaded ({error}); "
            "if it has moved, pass its place with model= (--model)",
            path=error.path,
            missing=error.missing,
            mismatched=error.mismatched,
        ) from error


def model_note(name_or_path: str | None) -> str | None:
    """Return what a model cannot do, if its name tells: the bundled one knows no photographs.

    Args:
        name_or_path: What `from_pretrained` was given.
    """
    if name_or_path != _DEMO:
        return None
    return f"the model {_DEMO!r} knows only drawn shapes"
