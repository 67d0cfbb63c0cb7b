"""Encoding of a batch of decoded images, for ingests, attach runs and pair scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edje_qdrant.errors import ConfigError
from edje_qdrant.model.pixels import Pixels, stack_pixels
from edje_qdrant.types import FailedImage, ImageEncoding, Payload

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["EncodedBatch", "encode_batch", "start_batch"]


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Hold the outcome of a batch of images that a worker process decoded and encoded.

    Attributes:
        image_ids: Ids of the images that were encoded.
        payloads: Their payloads, in the same order.
        encoding: Their encodings, in the same order; None where no image could be read.
        failed: The images that could not be read.
    """

    image_ids: list[str] = field(default_factory=list)
    payloads: list[Payload] = field(default_factory=list)
    encoding: ImageEncoding | None = None
    failed: list[FailedImage] = field(default_factory=list)

    def rows(self, rows: Sequence[int]) -> ImageEncoding:
        """Return the encodings of some of the images, given by their places in `image_ids`."""
        assert self.encoding is not None
        return ImageEncoding(self.encoding.embeddings[[*rows]], self.encoding.tokens[[*rows]])


def encode_batch(
    model: EDJEModel, pixels: Sequence[Pixels], *, device: str = "the device"
) -> ImageEncoding:
    """Encode images in one batch.

    Args:
        model: The model that encodes.
        pixels: The pixels of each image, as `read_file` returns them.
        device: Names the device in errors.

    Raises:
        ConfigError: The device has not enough memory for the batch.
    """
    return start_batch(model, stack_pixels(pixels, model.encoding_device), device=device)()


def start_batch(
    model: EDJEModel, pixels: Tensor, *, device: str = "the device"
) -> Callable[[], ImageEncoding]:
    """Start to encode images in one batch; return a function that returns the encodings.

    On a GPU, the function waits for them.

    Args:
        model: The model that encodes.
        pixels: A batch from `stack_pixels`.
        device: Names the device in errors.

    Raises:
        ConfigError: The device has not enough memory for the batch; the function may raise it, too.
    """
    with _memory_errors(len(pixels), device):
        started = model.start_encoding(pixels)

    def wait() -> ImageEncoding:
        with _memory_errors(len(pixels), device):
            return started()

    return wait


@contextmanager
def _memory_errors(count: int, device: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{device} has no memory for {count} images at a time; lower batch_size and run "
            "again: what was finished before is kept"
        ) from error
