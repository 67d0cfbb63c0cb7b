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

_AHEAD = 2  # batches prefetched and not asked for yet; older ones are dropped
_AREA, _ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
_TRIES = 10


@dataclass(frozen=True, slots=True)
class VisionBatch:
    """Hold what the frozen encoder makes of `b` images.

    Attributes:
        tokens: `(b, n, d_v)` float32, on the encoder's device.
        embeddings: `(b, d)` float32, unit length, there too.
        rows: `(b, 2)` int64, source and row of each image, as they were really used.
    """

    tokens: Tensor
    embeddings: Tensor
    rows: NDArray[np.int64]


class VisionSource(Protocol):
    """Give the frozen encoder's output for rows of sources.

    Attributes:
        failed: Images that could not be read so far.
        usable: By source, the rows known to be good; all of them where that is not known.
    """

    failed: list[FailedImage]
    usable: list[NDArray[np.int64]]

    def prefetch(self, rows: NDArray[np.int64], step: int) -> None:
        """Begin to read what `batch` will be asked for with the same arguments."""

    def batch(self, rows: NDArray[np.int64], step: int) -> VisionBatch:
        """Return the output for `rows`, `(b, 2)` int64 source and row, at a step.

        Raises:
            ImageReadError: None of the images can be read.
        """


class LiveVision:
    """Read and encode images as they are asked for, each time cropped in another way.

    The crop is drawn from seed, step and row alone. Images are never mirrored, for captions say
    left and right. One that cannot be read is replaced by the next good one of its batch: equal
    images are no negatives of each other, so nothing wrong is learnt. Pillow's warnings are
    hidden from here on.

    Args:
        encoder: Frozen, on `device`.
        sources: Where the images are.
        device: Where batches go.
        workers: Threads that read and decode.
        augment: Crop a random part: 0.5 to 1 of the area, 3:4 to 4:3.
        seed: Of the crops.

    Attributes:
        failed: Images that could not be read so far, each once.
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
        """Begin to read and decode what `batch` will be asked for with the same arguments."""
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
        """Read and encode `rows`, `(b, 2)` int64, or wait for those that are prefetched.

        Raises:
            ImageReadError: None of the images can be read; the error is the first one's.
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
        pixels = torch.cat([item for item in read if isinstance(item, Tensor)])
        tokens, embeddings = encode_frozen(self._encoder, pixels, self._device)
        # Each image itself, or the next good one; indexing copies out of inference mode.
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
    """Draw left, top, right and bottom of a part; the whole where none of that shape fits."""
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
    """Return an image as `(1, 3, H, W)` float32, or why there is none; runs in any thread.

    Args:
        encoder: Whose `preprocess` is used.
        source: Where from.
        row: Which image.
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
    """Return vision tokens `(b, n, d_v)` and embeddings `(b, d)` float32, in inference mode.

    Raises:
        ConfigError: The device has no memory for so many images at a time.
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
    """Refuse settings that are no whole numbers from 1 on.

    Raises:
        ConfigError: One is not.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; give a whole number, 1 or more")
