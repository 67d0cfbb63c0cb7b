"""What tests of several modules share: a small model with random weights, and images."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable
from copy import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from httpx._transports import default as transports
from hypothesis import HealthCheck, settings
from PIL import Image
from qdrant_client.embed import schema_parser
from qdrant_client.embed import utils as schema_parser_utils

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

WriteImages = Callable[..., list[Path]]

# One thread for each process that tests run in or start: they run side by side, on all cores.
# torch reads this when it is imported, which nothing here does before a fixture needs it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Collections flush after each write, which a disk takes some milliseconds for, and most tests would
# wait for little else. What tests leave is deleted where they pass, since it takes memory here.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# How long an example takes depends on what else the machine does.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", unhurried)
settings.register_profile("fast", unhurried, max_examples=25)
settings.load_profile("fast")

# Thousands of clients are made here. Each would read the certificates of all authorities again,
# copy what Qdrant's client knows of its schemas object by object, though it only adds to them, and
# convert the same paths: more than most tests take.
transports.create_ssl_context = cache(transports.create_ssl_context)
schema_parser.deepcopy = copy
convert_paths = cache(lambda paths: schema_parser_utils.convert_paths([*paths]))
schema_parser.convert_paths = lambda paths: convert_paths(tuple(paths))

# What was imported stays: to look through it for garbage, over and over, is work for nothing.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# A run in the background begins with SIGINT ignored, and so would every process that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Tests that share what takes long: frameworks to import, a model to export.
TOGETHER = {
    "tests/integrations/": "frameworks",
    "tests/test_one_default.py": "frameworks",
    "tests/model/test_export.py": "exports",
    "tests/model/test_onnx_running.py": "exports",
    "tests/search/test_onnx_retriever.py": "exports",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, let one process run all files that share something."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class FilesTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((TOGETHER[start] for start in TOGETHER if file.startswith(start)), file)

    return FilesTogether(config, log)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `EDJEModel.from_pretrained` takes."""
    from tiny_edje import build_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> EDJEModel:
    from edje_qdrant.model import EDJEModel

    return EDJEModel.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def other_model() -> EDJEModel:
    """A model of the same sizes with other weights."""
    from tiny_edje import build_tiny_model

    return build_tiny_model(seed=1).place("cpu", None)


@pytest.fixture(scope="session")
def exported_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's exported files, which tests leave as they are."""
    from tiny_edje import build_tiny_model

    from edje_qdrant.model.onnx.export import export_onnx
    from edje_qdrant.model.onnx.text_encoder import export_text_encoder

    folder = tmp_path_factory.mktemp("exported")
    model = build_tiny_model().eval()
    export_onnx(model, folder / "joint.onnx")
    export_text_encoder(model, folder / "text_encoder.onnx")
    return folder


@pytest.fixture(autouse=True)
def accelerator(request: pytest.FixtureRequest) -> None:
    """Skip the tests marked `gpu` where there is none."""
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no accelerator")


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
