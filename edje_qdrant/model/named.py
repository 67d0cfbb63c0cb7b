"""The model that a collection's contract names."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model.edje import EDJEModel

__all__ = ["WrittenByModel", "load_named_model", "model_for"]


class WrittenByModel(Protocol):
    """Say which model wrote something, and where that is."""

    @property
    def contract(self) -> TokenContract:
        """Return the model's contract."""

    @property
    def location(self) -> str:
        """Return the folder or address."""

    @property
    def name(self) -> str:
        """Return what it is called there."""


def model_for(
    collection: WrittenByModel,
    model: EDJEModel | str | Path | None,
    *,
    device: str | torch.device | None = None,
) -> EDJEModel:
    """Return the model asked for, or else the one that a collection's contract names.

    Args:
        collection: What the model is for.
        model: A model, or what `EDJEModel.from_pretrained` takes.
        device: Where a model that is loaded here goes; CUDA where there is one, by default.

    Raises:
        ConfigError: None is asked for, and the contract names none.
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
        ConfigError: It names none.
        CheckpointError: The model cannot be loaded.
    """
    name = collection.contract.model
    what = f"the collection {collection.name!r} at {collection.location}"
    if name is None:
        raise ConfigError(
            f"{what} does not say where the model that wrote it is; pass it with model= (--model)"
        )
    try:
        return EDJEModel.from_pretrained(name, device=device)
    except CheckpointError as error:
        raise CheckpointError(
            f"{what} was written with the model {name!r}, which cannot be loaded ({error}); "
            "if it has moved, say where it is with model= (--model)",
            path=error.path,
            missing=error.missing,
            mismatched=error.mismatched,
        ) from error
