"""The command `ingest`, told to end while a decoder hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection

pytestmark = pytest.mark.slow

# What `python` runs first in every process: images of 101 pixels across never end.
SITE = """
import sys
if any("decoder_worker" in argument for argument in sys.orig_argv):
    from decoder_finishes import Hanging
    from edje_qdrant.images import resize
    call = resize.SiglipResize.__call__
    def hang(self, image):
        return Hanging({said!r})(image) if image.width == 101 else call(self, image)
    resize.SiglipResize.__call__ = hang
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_ingest_ends_at_once_and_keeps_what_it_wrote(
    tmp_path: Path, tiny_folder: Path, number: signal.Signals
) -> None:
    pictures, site, said = tmp_path / "pictures", tmp_path / "site", tmp_path / "said"
    pictures.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE.format(said=str(said)))
    for n in range(40):
        Image.new("RGB", (101 if n == 30 else 60, 40), (n, 0, 0)).save(pictures / f"{n:02}.png")
    here = Path(__file__).parent.parent
    path = [site, here, here.parent, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    command = [
        sys.executable, "-m", "edje_qdrant", "ingest", pictures, "--index", tmp_path / "index",
        "--model", tiny_folder, "--batch-size", "4", "--decode-seconds", "900",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(each) for each in path if each)}
    with subprocess.Popen(
        [str(each) for each in command], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        while not said.exists() or not said.read_text():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        decoder = int(said.read_text())
        side_file = tmp_path / "index" / "images" / "tokens"
        while sum(path.stat().st_size for path in side_file.glob("*.bin")) < 12 * 128:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)  # until batches before it are written
        process.send_signal(number)
        process.wait(200)
        errors = process.stderr.read() if process.stderr else ""
    if number == signal.SIGINT:
        assert process.returncode == 130, errors
        assert "interrupted" in errors
        assert "Traceback" not in errors
    until = time.monotonic() + 60
    while Path(f"/proc/{decoder}").exists():
        assert time.monotonic() < until, "the decoder still runs"
        time.sleep(0.05)
    with ImageCollection.open(tmp_path / "index", "images") as collection:
        assert collection.count() > 0
