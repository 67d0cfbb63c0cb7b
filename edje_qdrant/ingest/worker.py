"""Main function of a worker process, which decodes and encodes batches of images."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from edje_qdrant.errors import ConfigError
from edje_qdrant.images import DecodeLimits
from edje_qdrant.ingest.decode import DecodedImage, decode_image
from edje_qdrant.ingest.encode import EncodedBatch, encode_batch
from edje_qdrant.ingest.file_fields import FileFields
from edje_qdrant.types import FailedImage, ImageEncoding

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["Failure", "Ready", "WorkerSettings", "work"]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Configure a worker.

    Attributes:
        model_file: The model, pickled by `torch.save`, in a temporary folder that holds nothing
            else.
        device: The device this worker encodes on.
        torch_threads: Threads of one torch operation.
        limits: Of the processes that read and decode in parallel with the encoding.
        file_fields: The fields of payloads that are taken from the files.
    """

    model_file: str
    device: str
    torch_threads: int
    limits: DecodeLimits
    file_fields: FileFields


@dataclass(frozen=True, slots=True)
class Ready:
    """Report that a worker has loaded its model and waits for batches."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Report that a worker cannot continue.

    Attributes:
        traceback: Of the error.
        refused: The message of a `ConfigError` in encoding; None for any other error.
    """

    traceback: str
    refused: str | None


_Waiting = list["Future[DecodedImage | FailedImage]"]


def work(connection: Connection, settings: WorkerSettings) -> None:
    """Process batches until the connection is closed or the parent process has ended.

    Receives `(number, images)`. Sends `Ready` once, then `(number, EncodedBatch)` for each batch,
    in order; after an error it sends `Failure` and returns.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
    torch.set_num_threads(settings.torch_threads)
    received: queue.SimpleQueue[tuple[int, _Waiting]] = queue.SimpleQueue()
    try:
        model = _load(settings)
        threading.Thread(
            target=_receive, args=(connection, settings, model, received), daemon=True
        ).start()
        _send(connection, settings, Ready())
        while True:
            number, images = received.get()
            encoded = _encode(model, [image.result() for image in images], settings.device)
            _send(connection, settings, (number, encoded))
    except Exception as error:
        refused = str(error) if isinstance(error, ConfigError) else None
        _send(connection, settings, Failure(traceback.format_exc(), refused))


def _load(settings: WorkerSettings) -> EDJEModel:
    # Memory-mapped, so that several workers on a CPU share the file's pages. Unpickling is safe:
    # the parent process wrote the file.
    model: EDJEModel = torch.load(
        settings.model_file, map_location="cpu", mmap=True, weights_only=False
    )
    for part in (model.encoder, model.adapter):  # the joint encoder is not used here
        if isinstance(part, torch.nn.Module):
            part.to(settings.device)
    return model


def _receive(
    connection: Connection,
    settings: WorkerSettings,
    model: EDJEModel,
    received: queue.SimpleQueue[tuple[int, _Waiting]],
) -> None:
    """Receive batches at once, so that the sender is not blocked, and start decoding them."""
    decode = partial(
        decode_image,
        model=model,
        decoders=settings.limits.pool(),
        file_fields=settings.file_fields,
    )
    with ThreadPoolExecutor(settings.limits.workers) as pool:
        while True:
            try:
                number, images = connection.recv()
            except (EOFError, OSError):
                _leave(settings)
            received.put((number, [pool.submit(decode, image) for image in images]))


def _send(connection: Connection, settings: WorkerSettings, message: object) -> None:
    try:
        connection.send(message)
    except OSError:
        _leave(settings)


def _leave(settings: WorkerSettings) -> NoReturn:
    """End this process and delete the model file, as a killed parent process cannot do so."""
    shutil.rmtree(Path(settings.model_file).parent, ignore_errors=True)
    os._exit(0)


def _encode(model: EDJEModel, items: list[DecodedImage | FailedImage], device: str) -> EncodedBatch:
    failed = [item for item in items if isinstance(item, FailedImage)]
    decoded = [item for item in items if isinstance(item, DecodedImage)]
    if not decoded:
        return EncodedBatch(failed=failed)
    encoding = encode_batch(model, [image.pixels for image in decoded], device=device)
    return EncodedBatch(
        [image.image_id for image in decoded],
        [image.payload for image in decoded],
        # Copies: an array made by torch may be a view of a larger buffer, which would be sent too.
        ImageEncoding(np.array(encoding.embeddings), np.array(encoding.tokens)),
        failed,
    )
