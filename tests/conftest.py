"""What tests of several modules share: a small model with random weights, and images."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_edje import build_tiny_model

from edje_qdrant.model import EDJEModel

WriteImages = Callable[..., list[Path]]

# A run in the background begins with SIGINT ignored, and so would every process that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `EDJEModel.from_pretrained` takes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> EDJEModel:
    return EDJEModel.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def other_model() -> EDJEModel:
    """A model of the same sizes with other weights."""
    return build_tiny_model(seed=1).place("cpu", None)


@pytest.fixture(scope="session")
def write_images() -> WriteImages:
    """Write `n` different images into a folder and return their paths, sorted."""

    def write(folder: Path, n: int, *, seed: int = 0, suffix: str = ".png") -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        paths = []
        for number in range(n):
            blocks = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            path = folder / f"picture-{number:04d}{suffix}"
            Image.fromarray(blocks).resize((50, 40), Image.Resampling.BILINEAR).save(path)
            paths.append(path)
        return paths

    return write
