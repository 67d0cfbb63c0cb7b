"""The vision cache: the frozen encoder's output for all images of a source, in files.

Each image is encoded once. A run that was stopped continues with the next image. A source's
output lies in a folder of its own: `tokens.npy`, `embeddings.npy`, and `progress.json` while
images are being encoded or `failures.json` once all of them are.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from tqdm import tqdm

from edje_qdrant.data.pairs import PairSource
from edje_qdrant.encoders.protocol import Encoder
from edje_qdrant.errors import (
    CollectionLockedError,
    ConfigError,
    EdjeError,
    ImageReadError,
    StoreError,
)
from edje_qdrant.files import lock_file, os_errors_as_store_errors, write_atomically
from edje_qdrant.images import ignore_decoder_warnings
from edje_qdrant.text import printable
from edje_qdrant.threads import batches, in_threads
from edje_qdrant.training.vision import VisionBatch, check_counts, encode_frozen, read_pixels
from edje_qdrant.types import FailedImage

__all__ = ["CachedVision", "VisionCache", "cache_folder", "encode_source", "open_cache"]

# Seconds of work that a power cut may cost.
SAVE_EVERY = 15.0

_TOKENS, _EMBEDDINGS = "tokens.npy", "embeddings.npy"
_PROGRESS, _WHOLE = "progress.json", "failures.json"


class NamedRows(Protocol):
    """A numbered set of images, such as a `PairSource`."""

    @property
    def name(self) -> str:
        """Return the name for messages."""

    @property
    def fingerprint(self) -> str:
        """Return hexadecimal digits that change with the images."""

    def __len__(self) -> int:
        """Return the number of images."""


@dataclass(frozen=True, slots=True)
class VisionCache:
    """Hold the encoder's output for `n` images, memory-mapped.

    Attributes:
        tokens: `(n, patches, d_v)` float16; zeros where an image could not be read.
        embeddings: `(n, d)` float32, unit length; likewise.
        failures: By row, the images that could not be read.
    """

    tokens: NDArray[np.float16]
    embeddings: NDArray[np.float32]
    failures: dict[int, FailedImage]

    @property
    def usable(self) -> NDArray[np.int64]:
        """Return the rows of the images that were read."""
        good = np.ones(len(self.embeddings), bool)
        good[list(self.failures)] = False
        return np.flatnonzero(good)


class CachedVision:
    """Give vision tokens from the cache; images that are not in it are encoded first.

    A cache that an earlier run wrote is reused without opening an image.

    Args:
        encoder: Frozen, on `device`.
        sources: Where the images are.
        folder: Parent folder of the caches of all sources.
        device: Where batches go.
        batch_size: Images encoded at a time.
        workers: Threads that read and decode while the encoder runs.
        progress: Show a bar on stderr.
        main: Whether this process encodes. Other processes wait for it and then call `open`.

    Attributes:
        failed: Images that cannot be read.
        usable: By source, the rows of the images that can be read.

    Raises:
        ConfigError: The folder holds something else, or another process is encoding into it.
        StoreError: The folder cannot be written; images encoded so far are kept.
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
        self._caches: list[VisionCache] = []
        self.failed: list[FailedImage] = []
        self.usable: list[NDArray[np.int64]] = []
        if not main:
            return
        for source in self._sources:
            encode_source(
                encoder,
                source,
                self._folder,
                partial(read_pixels, encoder, source),
                device=device,
                batch_size=batch_size,
                workers=workers,
                progress=progress,
            )
        self.open()

    def open(self) -> None:
        """Open the caches that the main process wrote.

        Raises:
            EdjeError: A cache does not hold all images yet.
        """
        caches = []
        for source in self._sources:
            cache = open_cache(self._encoder, source, self._folder)
            if cache is None:
                here = cache_folder(self._encoder, source, self._folder)
                raise EdjeError(
                    f"the images of {source.name} are not all encoded in {here}; wait until the "
                    "main process has encoded them, and check that it reads the same files"
                )
            caches.append(cache)
        self._caches = caches
        self.usable = [cache.usable for cache in caches]
        self.failed = [failure for cache in caches for failure in cache.failures.values()]

    def embeddings(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the cached embeddings of `rows`, `(n, 2)` int64: `(n, d)`, unit length."""
        found = np.empty((len(rows), self._encoder.embedding_dim), np.float32)
        for number in np.unique(rows[:, 0]):
            mine = np.flatnonzero(rows[:, 0] == number)
            found[mine] = self._caches[number].embeddings[rows[mine, 1]]
        return found

    def prefetch(self, rows: NDArray[np.int64], step: int) -> None:
        """Do nothing: the operating system reads ahead."""

    def batch(self, rows: NDArray[np.int64], step: int) -> VisionBatch:  # noqa: ARG002
        """Return the cached output for `rows`, `(b, 2)` int64; `step` does not matter.

        Raises:
            ImageReadError: A row is not among the usable ones.
        """
        shape = (len(rows), self._encoder.num_patches, self._encoder.hidden_size)
        tokens = np.empty(shape, np.float16)  # (b, n, d_v)
        for number in np.unique(rows[:, 0]):
            mine = np.flatnonzero(rows[:, 0] == number)
            mine = mine[np.argsort(rows[mine, 1])]  # read the file front to back
            cache, wanted = self._caches[number], rows[mine, 1]
            for row in wanted:
                if failure := cache.failures.get(int(row)):
                    raise ImageReadError(failure.path, failure.reason)
            tokens[mine] = cache.tokens[wanted]
        return VisionBatch(
            torch.from_numpy(tokens).to(self._device).float(),
            torch.from_numpy(self.embeddings(rows)).to(self._device),
            rows.copy(),
        )


def cache_folder(encoder: Encoder, source: NamedRows, folder: Path) -> Path:
    """Return the folder within `folder` for a source's output of an encoder."""
    return folder / f"{source.fingerprint}-{encoder.revision[:12]}"


def open_cache(encoder: Encoder, source: NamedRows, folder: Path) -> VisionCache | None:
    """Open what `encode_source` wrote; None unless it holds all images.

    Raises:
        ConfigError: The files belong to another source or other settings, or are damaged.
    """
    here = cache_folder(encoder, source, folder)
    whole = _read_progress(here / _WHOLE, _facts(encoder, source))
    if whole is None:
        return None
    try:
        tokens = np.load(here / _TOKENS, mmap_mode="r")
        embeddings = np.load(here / _EMBEDDINGS, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the vision cache {here} ({error}); delete it") from error
    failures = {row: FailedImage(path, reason) for row, path, reason in whole.failures}
    return VisionCache(tokens, embeddings, failures)


def encode_source(
    encoder: Encoder,
    source: NamedRows,
    folder: Path,
    read: Callable[[int], Tensor | FailedImage],
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    progress: bool,
) -> None:
    """Encode every image of a source that is not in the cache yet.

    Args:
        encoder: Frozen, on `device`.
        source: The images.
        folder: Parent folder of the cache.
        read: Row -> pixels `(1, 3, H, W)`, or the reason why there are none; runs in threads.
        device: Where the encoder is.
        batch_size: Images encoded at a time.
        workers: Threads that read.
        progress: Show a bar on stderr.

    Raises:
        ConfigError: Another process is encoding into this folder, the files belong to other
            settings, or the device has too little memory.
        StoreError: The files cannot be written; images encoded so far are kept.
    """
    here = cache_folder(encoder, source, folder)
    with os_errors_as_store_errors("write the vision cache", here), ExitStack() as stack:
        here.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_locked(here))
        stack.enter_context(warnings.catch_warnings())
        ignore_decoder_warnings()
        state = _Progress(_facts(encoder, source))
        if _read_progress(here / _WHOLE, state.facts) is not None:
            return
        state = _read_progress(here / _PROGRESS, state.facts) or state
        files = _open_files(here, encoder, len(source), create=state.done == 0)
        for file in files:
            stack.enter_context(closing(file))
        saved = time.monotonic()
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        bar = stack.enter_context(
            tqdm(
                total=len(source),
                initial=state.done,
                desc=printable(f"encoding {source.name}"),
                unit=" images",
                disable=not progress,
            )
        )
        pixels = in_threads(pool, read, range(state.done, len(source)), 2 * batch_size)
        try:
            for batch in batches(pixels, batch_size):
                _encode_batch(encoder, batch, device, files, state)
                bar.update(len(batch))
                if time.monotonic() - saved >= SAVE_EVERY:
                    _save(files, state, here)
                    saved = time.monotonic()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            _save(files, state, here)
        state.write(here / _WHOLE)
        (here / _PROGRESS).unlink()


@dataclass(slots=True)
class _Progress:
    """State how many rows are encoded.

    Attributes:
        facts: Of encoder and source; files with other facts are not continued.
        done: Rows whose output is in the files.
        failures: Row, image and reason of those that could not be read.
    """

    facts: dict[str, Any]
    done: int = 0
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        content = {"facts": self.facts, "done": self.done, "failures": self.failures}
        write_atomically(path, json.dumps(content).encode())


class _RowFile:
    """An array's rows in a `.npy` file, written without a memory map.

    On a full disk a write to a file raises, while one to a memory map kills the process.
    """

    def __init__(
        self, path: Path, kind: DTypeLike, shape: tuple[int, ...], *, create: bool
    ) -> None:
        mode: Literal["w+", "r+"] = "w+" if create else "r+"
        try:
            self._offset: int = np.lib.format.open_memmap(path, mode, kind, shape).offset
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot continue the vision cache {path.parent} ({error}); delete it"
            ) from error
        self._file = path.open("r+b")

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Write rows from number `first` on."""
        self._file.seek(self._offset + first * rows[0].nbytes)
        self._file.write(rows.data)

    def sync(self) -> None:
        """Bring what was written to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _open_files(here: Path, encoder: Encoder, count: int, *, create: bool) -> list[_RowFile]:
    """Open the files of tokens and embeddings, after a check of the free space for new ones."""
    kinds: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {
        _TOKENS: (np.float16, (count, encoder.num_patches, encoder.hidden_size)),
        _EMBEDDINGS: (np.float32, (count, encoder.embedding_dim)),
    }
    needed = sum(math.prod(shape) * np.dtype(kind).itemsize for kind, shape in kinds.values())
    free = shutil.disk_usage(here).free
    if create and needed > free:
        raise StoreError(
            f"the vision cache of {count} images takes {needed / 1e9:.1f} GB, and {here} has "
            f"{free / 1e9:.1f} GB left; free some space, choose another folder, or train "
            "without a cache"
        )
    return [_RowFile(here / name, *kind, create=create) for name, kind in kinds.items()]


def _encode_batch(
    encoder: Encoder,
    batch: list[Tensor | FailedImage],
    device: torch.device,
    files: list[_RowFile],
    state: _Progress,
) -> None:
    """Encode the next rows and write them; the rows of failed images are zeros."""
    good = [number for number, item in enumerate(batch) if isinstance(item, Tensor)]
    if good:
        pixels = torch.cat([item for item in batch if isinstance(item, Tensor)])  # (g, 3, H, W)
        tokens, embeddings = encode_frozen(encoder, pixels, device)  # (g, n, d_v), (g, d)
        arrays = (tokens.to("cpu", torch.float16).numpy(), embeddings.cpu().numpy())
        for file, values in zip(files, arrays, strict=True):
            rows = np.zeros((len(batch), *values.shape[1:]), values.dtype)
            rows[good] = values
            file.write(state.done, rows)
    state.failures += [
        (state.done + number, item.path, item.reason)
        for number, item in enumerate(batch)
        if isinstance(item, FailedImage)
    ]
    state.done += len(batch)


def _save(files: list[_RowFile], state: _Progress, here: Path) -> None:
    """Bring all rows to the disk, then record how many there are."""
    for file in files:
        file.sync()
    state.write(here / _PROGRESS)


def _facts(encoder: Encoder, source: NamedRows) -> dict[str, Any]:
    return {
        "encoder": encoder.revision,
        "preprocessing": encoder.preprocessing,
        "pictures": len(source),
        "tokens": [encoder.num_patches, encoder.hidden_size],
        "embedding": encoder.embedding_dim,
    }


def _read_progress(path: Path, facts: dict[str, Any]) -> _Progress | None:
    try:
        content = json.loads(path.read_bytes())
        found = _Progress(content["facts"], content["done"], content["failures"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"cannot read {path} ({error}); delete {path.parent} to encode its images again"
        ) from error
    if found.facts != facts:
        raise ConfigError(
            f"{path.parent} was encoded with other settings ({found.facts}, now {facts}); "
            "delete it, or choose another folder"
        )
    return found


@contextmanager
def _locked(here: Path) -> Iterator[None]:
    try:
        lock = lock_file(here / "lock", f"{here}")
    except CollectionLockedError as error:
        raise ConfigError(
            f"another process is encoding images into {here}; wait until it is done"
        ) from error
    with closing(lock):
        yield
