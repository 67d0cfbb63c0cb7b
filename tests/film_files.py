"""Films for the tests, written with PyAV: each frame is grey, and its level tells its number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Levels of two frames differ by this much, more than the codecs change them.
_STEP, _LEVELS = 5, 50


def grey(number: int, size: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """Return frame `number`, as frame `number + 50`: grey, with a red corner at the upper left."""
    image = np.full((size[1], size[0], 3), _STEP * (number % _LEVELS), np.uint8)
    image[: size[1] // 4, : size[0] // 4] = (255, 0, 0)
    return image


def number_of(image: Image.Image | NDArray[np.uint8]) -> float:
    """Return which frame of `grey` an image is, from 0 to 49, about."""
    array = np.asarray(image)
    return float(array[array.shape[0] // 2, array.shape[1] // 2].mean() / _STEP)


@contextmanager
def _own_scheduling() -> Iterator[None]:
    """Undo that an encoder gives the thread that uses it the highest real-time priority.

    SVT-AV1 does so for root, and child processes inherit it: any of them that computes on every
    core keeps all others from running.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write_film(
    path: Path,
    images: Sequence[NDArray[np.uint8]] | int = 100,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    fps: int = 25,
    times: Sequence[float] | None = None,
    every_key: int = 30,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    setup: Callable[[Any], None] = lambda stream: None,
    frame: Callable[[NDArray[np.uint8]], Any] | None = None,
    container_format: str | None = None,
) -> Path:
    """Write a film.

    Args:
        path: Its suffix decides the container.
        images: `(H, W, 3)` each, or how many of `grey`.
        codec: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the layout of pixels.
        fps: Frames a second.
        times: Seconds at which each frame begins; by default evenly.
        every_key: Frames from one key frame to the next.
        options: Of the encoder.
        container_options: Of the container.
        metadata: Of the film.
        setup: Called with the stream.
        frame: Makes a frame of an image.
        container_format: FFmpeg's name, where the suffix does not tell.
    """
    import av

    frames = [grey(number) for number in range(images)] if isinstance(images, int) else images
    with (
        _own_scheduling(),
        av.open(
            str(path), "w", format=container_format, options=container_options or {}
        ) as container,
    ):
        container.metadata.update(metadata or {})
        lossless = {"qp": "0"} if codec == "libx264" and options is None else {}
        stream: Any = container.add_stream(
            codec, rate=fps, options={"g": str(every_key), **lossless, **(options or {})}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        setup(stream)
        for number, image in enumerate(frames):
            made: Any = (
                av.VideoFrame.from_ndarray(image, format="rgb24") if frame is None else frame(image)
            )
            if times is not None:
                made.pts, made.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(made))
        container.mux(stream.encode(None))
    return path
