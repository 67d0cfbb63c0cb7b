"""An encoder that kills the process it runs in, as a broken decoder does."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.model import EDJEModel

#: Images of this size end the process.
DEADLY = (13, 17)


class DeadlyEncoder(SiglipEncoder):
    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        if any(image.size == DEADLY for image in images):
            os._exit(7)
        return super().preprocess(images)


class UnwillingEncoder(SiglipEncoder):
    def encode_pixels(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no kernel image is available")


class GreedyEncoder(SiglipEncoder):
    def encode_pixels(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")


class UnloadableEncoder(SiglipEncoder):
    def __setstate__(self, state: dict[str, Any]) -> None:
        raise ValueError("no such device")


class StillbornEncoder(SiglipEncoder):
    def __setstate__(self, state: dict[str, Any]) -> None:
        os._exit(3)


def with_encoder(model: EDJEModel, kind: type[SiglipEncoder]) -> EDJEModel:
    """Return the same model with an encoder of another kind."""
    copied = copy.deepcopy(model)
    assert isinstance(copied.encoder, SiglipEncoder)
    copied.encoder.__class__ = kind
    return copied
