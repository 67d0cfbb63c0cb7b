"""Encode a source's images once, into files; a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from edje_qdrant.data.pairs import PairSource
from edje_qdrant.encoders import Encoder
from edje_qdrant.errors import CollectionLockedError, ConfigError, StoreError
from edje_qdrant.files import lock_file, os_errors_as_store_errors, write_atomically
from edje_qdrant.images import ignore_decoder_warnings
from edje_qdrant.threads import batches, in_threads
from edje_qdrant.training.encode_arrays import VisionCache
from edje_qdrant.training.frozen import encode_frozen, read_pixels
from edje_qdrant.types import FailedImage

__all__ = ["EncodedSource", "encode_source", "encoded_folder", "open_encoded"]

# Seconds of work that a power cut may cost.
SAVE_EVERY = 15.0

_TOKENS, _EMBEDDINGS = "tokens.npy", "embeddings.npy"
_PROGRESS, _WHOLE = "progress.json", "failures.json"


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """Hold a source's vision tokens and embeddings.

    Attributes:
        cache: Both, by row; zeros where an image could not be read.
        failures: By row, the images that could not be read.
    """

    cache: VisionCache
    failures: dict[int, FailedImage]

    @property
    def usable(self) -> NDArray[np.int64]:
        """Return the rows of the images that were read."""
        good = np.ones(len(self.cache.embeddings), bool)
        good[list(self.failures)] = False
        return np.flatnonzero(good)


@dataclass(slots=True)
class _Progress:
    """Say how far the encoding came.

    Attributes:
        facts: Of encoder and source; files of other facts are not gone on with.
        done: Rows whose output is in the files.
        failures: Row, image and reason of those that could not be read.
    """

    facts: dict[str, Any]
    done: int = 0
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        content = {"facts": self.facts, "done": self.done, "failures": self.failures}
        write_atomically(path, json.dumps(content).encode())


def encoded_folder(encoder: Encoder, source: PairSource, folder: Path) -> Path:
    """Return where a source's output of an encoder lies within `folder`."""
    return folder / f"{source.fingerprint}-{encoder.revision[:12]}"


def open_encoded(encoder: Encoder, source: PairSource, folder: Path) -> EncodedSource | None:
    """Open what `encode_source` left, memory-mapped; None unless it is whole.

    Raises:
        ConfigError: The files belong to another source or other settings, or are damaged.
    """
    here = encoded_folder(encoder, source, folder)
    whole = _read_progress(here / _WHOLE, _facts(encoder, source))
    if whole is None:
        return None
    try:
        tokens = np.load(here / _TOKENS, mmap_mode="r")
        embeddings = np.load(here / _EMBEDDINGS, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the vision cache {here} ({error}); delete it") from error
    failures = {row: FailedImage(path, reason) for row, path, reason in whole.failures}
    return EncodedSource(VisionCache(tokens, embeddings), failures)


def encode_source(
    encoder: Encoder,
    source: PairSource,
    folder: Path,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    progress: bool,
) -> None:
    """Encode every image of a source that is not in the files yet.

    Raises:
        ConfigError: Another process is at it, the files belong to other settings, or the device
            has too little memory.
        StoreError: The files cannot be written; what was encoded is kept.
    """
    here = encoded_folder(encoder, source, folder)
    with os_errors_as_store_errors("write the vision cache", here):
        here.mkdir(parents=True, exist_ok=True)
        with _locked(here), warnings.catch_warnings():
            ignore_decoder_warnings()
            state = _Progress(_facts(encoder, source))
            if _read_progress(here / _WHOLE, state.facts) is not None:
                return
            state = _read_progress(here / _PROGRESS, state.facts) or state
            offsets = _files(here, encoder, len(source), fresh=state.done == 0)
            with (
                (here / _TOKENS).open("r+b") as tokens,
                (here / _EMBEDDINGS).open("r+b") as embeddings,
                ThreadPoolExecutor(workers) as pool,
                tqdm(
                    total=len(source),
                    initial=state.done,
                    desc=f"encoding {source.name}",
                    unit=" images",
                    disable=not progress,
                ) as bar,
            ):
                run = _Run(encoder, here, state, device, (tokens, embeddings), offsets)
                pixels = in_threads(
                    pool,
                    lambda row: read_pixels(encoder, source, row),
                    range(state.done, len(source)),
                    2 * batch_size,
                )
                try:
                    for batch in batches(pixels, batch_size):
                        run.write(batch)
                        bar.update(len(batch))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
                finally:
                    run.save()
            state.write(here / _WHOLE)
            (here / _PROGRESS).unlink()


class _Run:
    """Write batches into the files, and now and then how far they came."""

    def __init__(
        self,
        encoder: Encoder,
        folder: Path,
        state: _Progress,
        device: torch.device,
        files: tuple[BinaryIO, BinaryIO],
        offsets: tuple[int, int],
    ) -> None:
        self._encoder, self._folder, self._state = encoder, folder, state
        self._device, self._files, self._offsets = device, files, offsets
        self._saved = time.monotonic()

    def write(self, batch: list[Tensor | FailedImage]) -> None:
        """Encode and write the next rows."""
        first = self._state.done
        good = [number for number, item in enumerate(batch) if isinstance(item, Tensor)]
        if good:
            pixels = torch.cat([item for item in batch if isinstance(item, Tensor)])
            states, unit = encode_frozen(self._encoder, pixels, self._device)
            arrays = (states.to("cpu", torch.float16).numpy(), unit.cpu().numpy())
            for file, offset, values in zip(self._files, self._offsets, arrays, strict=True):
                rows = np.zeros((len(batch), *values.shape[1:]), values.dtype)
                rows[good] = values
                file.seek(offset + first * rows[0].nbytes)
                file.write(rows.data)
        self._state.failures += [
            (first + number, item.path, item.reason)
            for number, item in enumerate(batch)
            if isinstance(item, FailedImage)
        ]
        self._state.done += len(batch)
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Bring all rows to the disk, then say so."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        self._state.write(self._folder / _PROGRESS)
        self._saved = time.monotonic()


def _facts(encoder: Encoder, source: PairSource) -> dict[str, Any]:
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
            f"cannot read {path} ({error}); delete {path.parent} to encode its images anew"
        ) from error
    if found.facts != facts:
        raise ConfigError(
            f"{path.parent} was encoded with other settings ({found.facts}, now {facts}); "
            "delete it, or choose another folder"
        )
    return found


def _files(here: Path, encoder: Encoder, count: int, *, fresh: bool) -> tuple[int, int]:
    """Make the files if they are to be begun; return where the first row of each starts."""
    kinds: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        _TOKENS: (np.float16, (count, encoder.num_patches, encoder.hidden_size)),
        _EMBEDDINGS: (np.float32, (count, encoder.embedding_dim)),
    }
    needed = sum(math.prod(shape) * np.dtype(kind).itemsize for kind, shape in kinds.values())
    if fresh:
        free = shutil.disk_usage(here).free
        if needed > free:
            raise StoreError(
                f"the vision cache of {count} images takes {needed / 1e9:.1f} GB, and {here} has "
                f"{free / 1e9:.1f} GB left; free some space, choose another folder, or train "
                "without a cache"
            )
    offsets = []
    for name, (kind, shape) in kinds.items():
        mode: Any = "w+" if fresh else "r+"
        try:
            array = np.lib.format.open_memmap(here / name, mode, kind, shape)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot go on with {here} ({error}); delete it") from error
        offsets.append(array.offset)
    return offsets[0], offsets[1]


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
