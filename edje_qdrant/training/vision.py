"""Where a training step's vision tokens come from: a cache on disk, or the encoder at work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edje_qdrant.data.pairs import PairSource
from edje_qdrant.encoders import Encoder
from edje_qdrant.errors import EdjeError, ImageReadError
from edje_qdrant.images import ignore_decoder_warnings
from edje_qdrant.training.frozen import check_counts, encode_frozen, read_pixels
from edje_qdrant.training.vision_cache import (
    EncodedSource,
    encode_source,
    encoded_folder,
    open_encoded,
)
from edje_qdrant.types import FailedImage

__all__ = ["CachedVision", "LiveVision", "VisionBatch", "VisionSource"]

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


class CachedVision:
    """Encode each image once, and read its tokens from disk ever after.

    What was encoded before, by whatever run, is reused without opening an image. Broken images
    are listed in `failed` and not in `usable`.

    Args:
        encoder: Frozen, on `device`.
        sources: Where the images are.
        folder: Of all caches; each source's lies in one named by its fingerprint and the encoder.
        device: Where batches go.
        batch_size: Images encoded at a time.
        workers: Threads that read and decode beside the encoding.
        progress: Show a bar on stderr.
        main: Whether this process encodes. The others wait until it is done and call `open`.

    Attributes:
        failed: Images that cannot be read.
        usable: By source, the rows of those that can.

    Raises:
        ConfigError: The folder holds something else, or another process is encoding into it.
        StoreError: The folder cannot be written; what was encoded is kept.
    """

    def __init__(
        self,
        encoder: Encoder,
        sources: Sequence[PairSource],
        folder: str | Path,
        *,
        device: torch.device,
        batch_size: int = 64,
        workers: int = 4,
        progress: bool = True,
        main: bool = True,
    ) -> None:
        check_counts(batch_size=batch_size, workers=workers)
        self._encoder, self._sources, self._folder = encoder, list(sources), Path(folder)
        self._device = device
        self._encoded: list[EncodedSource] = []
        self.failed: list[FailedImage] = []
        self.usable: list[NDArray[np.int64]] = []
        if main:
            for source in self._sources:
                encode_source(
                    encoder,
                    source,
                    self._folder,
                    device=device,
                    batch_size=batch_size,
                    workers=workers,
                    progress=progress,
                )
            self.open()

    def open(self) -> None:
        """Open the caches that the main process made.

        Raises:
            EdjeError: They are not whole.
        """
        encoded = []
        for source in self._sources:
            found = open_encoded(self._encoder, source, self._folder)
            if found is None:
                here = encoded_folder(self._encoder, source, self._folder)
                raise EdjeError(
                    f"the images of {source.name} are not all encoded in {here}; the main "
                    "process does that, from the same files, before the others open them"
                )
            encoded.append(found)
        self._encoded = encoded
        self.usable = [found.usable for found in encoded]
        self.failed = [failure for found in encoded for failure in found.failures.values()]

    def prefetch(self, rows: NDArray[np.int64], step: int) -> None:
        """Do nothing: the system reads the files ahead."""

    def batch(self, rows: NDArray[np.int64], step: int) -> VisionBatch:  # noqa: ARG002
        """Return what was encoded of `rows`, `(b, 2)` int64; `step` does not matter.

        Raises:
            ImageReadError: A row is not among the usable ones.
        """
        shape = (len(rows), self._encoder.num_patches, self._encoder.hidden_size)
        tokens = np.empty(shape, np.float16)
        embeddings = np.empty((len(rows), self._encoder.embedding_dim), np.float32)
        for number in np.unique(rows[:, 0]):
            mine = np.flatnonzero(rows[:, 0] == number)
            mine = mine[np.argsort(rows[mine, 1])]  # in the order of the file
            found, wanted = self._encoded[number], rows[mine, 1]
            for row in wanted:
                if failure := found.failures.get(int(row)):
                    raise ImageReadError(failure.path, failure.reason)
            tokens[mine] = found.cache.tokens[wanted]
            embeddings[mine] = found.cache.embeddings[wanted]
        return VisionBatch(
            torch.from_numpy(tokens).to(self._device).float(),
            torch.from_numpy(embeddings).to(self._device),
            rows.copy(),
        )


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
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
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
