"""What a process of an ingest does: decode and encode batches of images, and send them back."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from edje_qdrant.images import ignore_decoder_warnings
from edje_qdrant.ingest.decode import DecodedImage, KnownImage, decode_image
from edje_qdrant.types import FailedImage, ImageEncoding, Payload

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["EncodedBatch", "OutOfMemory", "Ready", "Trouble", "WorkerSettings", "work"]


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Hold what came of a batch of images.

    Attributes:
        image_ids: Those that were encoded.
        payloads: Theirs, in the same order.
        encoding: Theirs, in the same order; None where none could be read.
        failed: The others.
    """

    image_ids: list[str] = field(default_factory=list)
    payloads: list[Payload] = field(default_factory=list)
    encoding: ImageEncoding | None = None
    failed: list[FailedImage] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Say what a worker works with.

    Attributes:
        model_file: The model, pickled by `torch.save`, alone in a folder of its own.
        device: Where this worker encodes.
        torch_threads: Threads of one torch operation.
        decoders: Threads that read and decode beside the encoding.
        max_pixels: Images with more are refused before they are decoded.
    """

    model_file: str
    device: str
    torch_threads: int
    decoders: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Tell that a worker waits for batches."""


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """Tell that the device has no memory for so many images."""

    pictures: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Tell that a worker cannot go on, and why, as a traceback."""

    text: str


_Waiting = list["Future[DecodedImage | FailedImage]"]


def work(connection: Connection, settings: WorkerSettings) -> None:
    """Serve until the other end of the connection is closed, or its process is gone.

    Receives `(number, images)`; sends `Ready` once, then `(number, EncodedBatch)` for each, in
    order, or, as the last thing, `OutOfMemory` or `Trouble`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this one ends it
    torch.set_num_threads(settings.torch_threads)
    ignore_decoder_warnings()
    received: queue.SimpleQueue[tuple[int, _Waiting]] = queue.SimpleQueue()
    pictures: _Waiting = []
    try:
        model = _load(settings)
        threading.Thread(
            target=_receive, args=(connection, settings, model, received), daemon=True
        ).start()
        _send(connection, settings, Ready())
        while True:
            number, pictures = received.get()
            encoded = _encode(model, [item.result() for item in pictures])
            _send(connection, settings, (number, encoded))
    except Exception as error:
        if pictures and isinstance(error, torch.OutOfMemoryError):
            _send(connection, settings, OutOfMemory(len(pictures)))
        else:
            _send(connection, settings, Trouble(traceback.format_exc()))


def _load(settings: WorkerSettings) -> EDJEModel:
    # A map: what several workers on a CPU read of the file lies in memory once. The file was
    # written by the process that started this one, and so holds nothing foreign.
    model: EDJEModel = torch.load(
        settings.model_file, map_location="cpu", mmap=True, weights_only=False
    )
    for part in (model.encoder, model.adapter):  # the joint encoder has nothing to do here
        if isinstance(part, torch.nn.Module):
            part.to(settings.device)
    return model


def _receive(
    connection: Connection,
    settings: WorkerSettings,
    model: EDJEModel,
    received: queue.SimpleQueue[tuple[int, _Waiting]],
) -> None:
    """Take batches as they come, so that the sender never waits, and have them decoded."""

    def decode(picture: KnownImage) -> DecodedImage | FailedImage:
        return decode_image(picture, model, settings.max_pixels)

    with ThreadPoolExecutor(settings.decoders) as pool:
        while True:
            try:
                number, pictures = connection.recv()
            except (EOFError, OSError):
                _leave(settings)
            received.put((number, [pool.submit(decode, picture) for picture in pictures]))


def _send(connection: Connection, settings: WorkerSettings, message: object) -> None:
    try:
        connection.send(message)
    except OSError:
        _leave(settings)


def _leave(settings: WorkerSettings) -> NoReturn:
    """End, as nobody listens any more; who was killed could not tidy up, so this does."""
    shutil.rmtree(Path(settings.model_file).parent, ignore_errors=True)
    os._exit(0)


def _encode(model: EDJEModel, items: list[DecodedImage | FailedImage]) -> EncodedBatch:
    failed = [item for item in items if isinstance(item, FailedImage)]
    decoded = [item for item in items if isinstance(item, DecodedImage)]
    if not decoded:
        return EncodedBatch(failed=failed)
    encoding = model.encode_pixels(torch.cat([picture.pixels for picture in decoded]))
    return EncodedBatch(
        [picture.image_id for picture in decoded],
        [picture.payload for picture in decoded],
        # Copies: an array that torch made may be a view of more than is to be sent.
        ImageEncoding(np.array(encoding.embeddings), np.array(encoding.tokens)),
        failed,
    )
