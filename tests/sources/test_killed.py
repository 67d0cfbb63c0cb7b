"""Ingests that are killed, from every kind of source, and continued."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_server import ImageServer
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

NUMBER, BATCH = 16, 4
BLOCK = 128 << 10  # read at a time from a container on a server

SCRIPT = f"""
import sys
from edje_qdrant import EDJEModel, ImageCollection, ingest_images

if __name__ == "__main__":
    model = EDJEModel.from_pretrained("demo", device="cpu")
    with ImageCollection.open_or_create(sys.argv[2], "images", model.contract()) as collection:
        add_new = collection.add_new

        def add(*args):
            added = add_new(*args)
            collection.flush()
            print("added", len(added), flush=True)
            return added

        collection.add_new = add
        report = ingest_images(
            sys.argv[1], collection, model, batch_size={BATCH}, workers=1, progress=False,
            processes=int(sys.argv[3]),
        )
        print("done", report.added, report.known, len(report.failed), flush=True)
"""


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Images that are larger than what is read at a time from a container."""
    rng = np.random.default_rng(3)
    made = []
    for _ in range(NUMBER):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (320, 320, 3), np.uint8)).save(file, "PNG")
        made.append(file.getvalue())
    assert min(map(len, made)) > 2 * BLOCK
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> Path:
    """A folder with the images, a tar file, a Parquet file and a data set of them."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "images").mkdir()
    for number, data in enumerate(images):
        (folder / "images" / f"{number:02}.png").write_bytes(data)
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / "images", "images")
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": data, "path": None} for data in images]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    made.save_to_disk(folder / "saved")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": images}), folder / "a.parquet", row_group_size=4)
    return folder


@pytest.fixture
def server(place: Path) -> Iterator[ImageServer]:
    with ImageServer() as running:
        for path in (*place.glob("*.*"), *(place / "images").iterdir()):
            running.files[f"/{path.name}"] = path.read_bytes()
        yield running


@pytest.fixture
def s3(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("moto.server", reason="needs moto")
    pytest.importorskip("s3fs", reason="needs the extra s3")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    for name, value in {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*running.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import s3fs

    files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    files.mkdir("killed")
    for path in sorted((place / "images").iterdir()):
        files.pipe(f"killed/{path.name}", path.read_bytes())
    yield "s3://killed/"
    running.stop()


def run(folder: Path, source: str, *, kill: bool, processes: int = 0) -> str:
    """Ingest in another process; kill it after two batches, or return its last line."""
    script = folder / "ingest.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), source, str(folder / "index"), str(processes)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        last = ""
        for number, line in enumerate(process.stdout, start=1):
            last = line.strip()
            if kill and number == 2:
                process.send_signal(signal.SIGKILL)
        process.wait(100)
    assert (process.returncode == -signal.SIGKILL) is kill
    return last


def stored(folder: Path) -> set[str]:
    with ImageCollection.open(folder / "index", "images") as collection:
        return {payload["path"] for payload in collection.payloads([*collection.ids()])}


def continued(folder: Path, source: str, processes: int = 0) -> set[str]:
    """Ingest, be killed, and ingest again; return the paths that were stored before."""
    run(folder, source, kill=True, processes=processes)
    before = stored(folder)
    assert 2 * BATCH <= len(before) < NUMBER
    return before


@pytest.mark.parametrize("kind", ["images", "a.tar", "a.parquet", "saved"])
def test_local_sources_are_continued(tmp_path: Path, place: Path, kind: str) -> None:
    before = continued(tmp_path, str(place / kind))
    last = run(tmp_path, str(place / kind), kill=False)
    assert last == f"done {NUMBER - len(before)} {len(before)} 0"
    assert len(stored(tmp_path)) == NUMBER
    assert before < stored(tmp_path)


@pytest.mark.parametrize("processes", [0, 1])
def test_addresses_are_continued_and_not_downloaded_again(
    tmp_path: Path, server: ImageServer, processes: int
) -> None:
    manifest = tmp_path / "images.jsonl"
    urls = [f"{server.url}/{number:02}.png" for number in range(NUMBER)]
    manifest.write_text("\n".join(json.dumps({"path": url}) for url in urls))
    before = continued(tmp_path, str(manifest), processes)
    server.asked.clear()
    last = run(tmp_path, str(manifest), kill=False, processes=processes)
    assert last == f"done {NUMBER - len(before)} {len(before)} 0"
    for url in urls:
        assert server.got(url.removeprefix(server.url)) == (url not in before)


@pytest.mark.parametrize("kind", ["a.tar", "a.parquet"])
def test_containers_on_a_server_are_continued_and_read_in_part(
    tmp_path: Path, server: ImageServer, images: list[bytes], kind: str
) -> None:
    url = f"{server.url}/{kind}"
    before = continued(tmp_path, url)
    server.sent = 0
    last = run(tmp_path, url, kill=False)
    assert last == f"done {NUMBER - len(before)} {len(before)} 0"
    assert len(stored(tmp_path)) == NUMBER
    missing = sum(map(len, images)) * (NUMBER - len(before)) // NUMBER
    # Of a tar file, headers in blocks; of a table, the row group that was half read.
    assert server.sent < missing + (NUMBER + 4) * 1.1 * BLOCK + 4 * len(images[0])


def test_buckets_are_continued(tmp_path: Path, s3: str) -> None:
    before = continued(tmp_path, s3)
    last = run(tmp_path, s3, kill=False)
    assert last == f"done {NUMBER - len(before)} {len(before)} 0"
    assert len(stored(tmp_path)) == NUMBER
