"""Vision tokens for a training step from the frozen encoder, encoded when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edje_qdrant.data.pairs import PairSource
from edje_qdrant.encoders.protocol import Encoder
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import error_reason, ignore_decoder_warnings
from edje_qdrant.training.loop import autocast
from edje_qdrant.types import FailedImage

__all__ = [
    "LiveVision",
    "VisionBatch",
    "VisionSource",
    "check_counts",
    "encode_frozen",
    "read_pixels",
]

_AHEAD = 2  # prefetched batches that are kept; older ones are dropped
# Random crops: share of the area, ratio of width to height.
_AREA, _ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
_TRIES = 10


@dataclass(frozen=True, slots=True)
class VisionBatch:
    """The frozen encoder's output for `b` images.

    Attributes:
        tokens: `(b, n, d_v)` float32, on the encoder's device.
        embeddings: `(b, d)` float32, unit length, on the encoder's device.
        rows: `(b, 2)` int64, source and row of each image that was used.
    """

    tokens: Tensor
    embeddings: Tensor
    rows: NDArray[np.int64]


class VisionSource(Protocol):
    """Give the frozen encoder's output for rows of sources.

    Attributes:
        failed: Images that could not be read so far.
        usable: By source, the readable rows; all rows if that is not known.
    """

    failed: list[FailedImage]
    usable: list[NDArray[np.int64]]

    def prefetch(self, rows: NDArray[np.int64], step: int) -> None:
        """Start to read the images for a later call of `batch` with the same arguments."""

    def batch(self, rows: NDArray[np.int64], step: int) -> VisionBatch:
        """Return the output for `rows`, `(b, 2)` int64, source and row, at a step.

        Raises:
            ImageReadError: None of the images can be read.
        """


class LiveVision:
    """Read and encode images on demand, with a random crop each time.

    A crop depends on seed, step and row alone. Images are not mirrored, because captions say left
    and right. An unreadable image is replaced by the next readable one of its batch; as equal
    images are not negatives of each other, this teaches nothing wrong. Creating an instance
    silences Pillow's warnings.

    Args:
        encoder: Frozen, on `device`.
        sources: Where the images are.
        device: Where batches go.
        workers: Threads that read and decode.
        augment: Crop at random: 0.5 to 1 of the area, ratios from 3:4 to 4:3.
        seed: Of the crops.

    Attributes:
        failed: Unreadable images so far, each once.
        usable: By source, all rows.
    """

    def __init__(
        self,
        encoder: Encoder,
        sources: Sequence[PairSource],
        *,
        device: torch.device,
        workers: int = 4,
        augment: bool = True,
        seed: int = 0,
    ) -> None:
        check_counts(workers=workers)
        ignore_decoder_warnings()
        self._encoder, self._sources, self._device = encoder, list(sources), device
        self._augment, self._seed = augment, seed
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
        self._waiting: dict[tuple[int, bytes], list[Future[Tensor | FailedImage]]] = {}
        self._seen_failures: set[tuple[int, int]] = set()
        self.failed: list[FailedImage] = []
        self.usable = [np.arange(len(source)) for source in self._sources]

    def prefetch(self, rows: NDArray[np.int64], step: int) -> None:
        """Start to read and decode images for a later call of `batch` with the same arguments."""
        key = (step, rows.tobytes())
        if key in self._waiting:
            return
        self._waiting[key] = [
            self._pool.submit(self._read, int(source), int(row), step) for source, row in rows
        ]
        while len(self._waiting) > _AHEAD:
            for future in self._waiting.pop(next(iter(self._waiting))):
                future.cancel()

    def batch(self, rows: NDArray[np.int64], step: int) -> VisionBatch:
        """Read and encode `rows`, `(b, 2)` int64; wait for them if they are being prefetched.

        Raises:
            ImageReadError: None of the images can be read; with the first image's error.
            ConfigError: The device has too little memory.
        """
        self.prefetch(rows, step)
        read = [future.result() for future in self._waiting.pop((step, rows.tobytes()))]
        good = [number for number, item in enumerate(read) if isinstance(item, Tensor)]
        for (source, row), item in zip(rows.tolist(), read, strict=True):
            if isinstance(item, FailedImage) and (source, row) not in self._seen_failures:
                self._seen_failures.add((source, row))
                self.failed.append(item)
        if not good:
            first = next(item for item in read if isinstance(item, FailedImage))
            raise ImageReadError(
                first.path, f"{first.reason}; nor can any of the {len(rows)} images of its batch"
            )
        pixels = torch.cat([item for item in read if isinstance(item, Tensor)])  # (g, 3, H, W)
        tokens, embeddings = encode_frozen(self._encoder, pixels, self._device)
        # Each image or the next readable one. Indexing makes copies, which autograd accepts.
        chosen = np.searchsorted(good, np.arange(len(rows))) % len(good)
        index = torch.from_numpy(chosen).to(tokens.device)
        return VisionBatch(tokens[index].float(), embeddings[index], rows[np.array(good)[chosen]])

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _read(self, source: int, row: int, step: int) -> Tensor | FailedImage:
        def crop(image: Image.Image) -> Image.Image:
            rng = np.random.default_rng([self._seed, step, source, row])
            return image.crop(_crop_box(image.width, image.height, rng))

        return read_pixels(
            self._encoder, self._sources[source], row, crop if self._augment else None
        )


def _crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a crop: left, top, right, bottom; the whole image if no crop of that shape fits."""
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*_AREA)
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def read_pixels(
    encoder: Encoder,
    source: PairSource,
    row: int,
    change: Callable[[Image.Image], Image.Image] | None = None,
) -> Tensor | FailedImage:
    """Read an image: pixels `(1, 3, H, W)` float32, or the failure; thread-safe.

    Args:
        encoder: Preprocesses the image.
        source: Where the image is.
        row: Its row.
        change: Applied to the upright RGB image before `preprocess`.
    """
    try:
        image = source.open(row)
        return encoder.preprocess([image if change is None else change(image)])
    except ImageReadError as error:
        return FailedImage(error.path, error.reason)
    except Exception as error:  # image processors refuse odd shapes in their own ways
        return FailedImage(source.key(row), error_reason(error))


def encode_frozen(encoder: Encoder, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Encode pixels in inference mode: vision tokens `(b, n, d_v)`, embeddings `(b, d)` float32.

    Raises:
        ConfigError: The device has too little memory for the batch.
    """
    try:
        with torch.inference_mode(), autocast(device):
            embeddings, tokens = encoder.encode_pixels(pixels.to(device))
            return tokens, embeddings.float()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the device has no memory to encode {len(pixels)} images at a time; "
            "lower the batch size and run again"
        ) from error


def check_counts(**counts: int) -> None:
    """Check that settings are whole numbers of 1 or more.

    Raises:
        ConfigError: A setting is not.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; give a whole number, 1 or more")
