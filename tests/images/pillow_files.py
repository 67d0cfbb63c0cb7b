"""The image files of Pillow's own tests, more than a thousand, many of them odd or damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import PIL
import pytest

VARIABLE = "EDJE_PILLOW_IMAGES"


@cache
def pillow_files() -> Path:
    """Return their folder: the one named by the environment variable, or one downloaded with pip.

    Skips the test if neither is to be had.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given)
    kept = Path(tempfile.gettempdir()) / f"edje-pillow-{PIL.__version__}"
    if not (kept / "images").is_dir():
        _download(kept)
    return kept / "images"


def _download(kept: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--no-binary", "pillow", "--dest", folder, f"pillow=={PIL.__version__}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(folder).glob("*.tar.gz"))
        if not archives:
            last = (done.stderr.strip() or "no archive").splitlines()[-1]
            pytest.skip(
                f"pip could not download Pillow's source, and {VARIABLE} is not set: {last}"
            )
        unpacked = Path(folder) / "unpacked"
        with tarfile.open(archives[0]) as archive:
            archive.extractall(unpacked, filter="data")
        (images,) = unpacked.glob("*/Tests/images")
        kept.mkdir(exist_ok=True)
        images.rename(kept / "images")
