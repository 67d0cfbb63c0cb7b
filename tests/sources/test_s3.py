"""Images in buckets, from a real S3 server."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("s3fs", reason="needs the extra s3")
pytest.importorskip("moto.server", reason="needs moto")

from moto.server import ThreadedMotoServer

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.sources import remote
from edje_qdrant.sources.buckets import BucketStore
from edje_qdrant.sources.open import open_source
from edje_qdrant.sources.read import read_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (40 * number, 90, 30)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def files(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A new bucket `photos` with five images; `s3://` leads to it."""
    for name, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "_stores", {})
    monkeypatch.setattr(remote, "_away", {})
    import s3fs

    made = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    made.mkdir("photos")
    for number, name in enumerate(
        ["b.png", "a.PNG", "2024/c.png", "2024/.hidden.png", "2024-2/d.png", "notes.txt"]
    ):
        made.pipe(f"photos/{name}", png(number))
    yield made
    made.rm("photos", recursive=True)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the objects that are downloaded."""
    names: list[str] = []
    real = BucketStore.read

    def noted(store: BucketStore, uri: str, *args: Any) -> Any:
        names.append(uri.rpartition("/")[2])
        return real(store, uri, *args)

    monkeypatch.setattr(BucketStore, "read", noted)
    return names


def test_a_prefix_is_listed_downloaded_once_and_pruned(
    tmp_path: Path, tiny_model: EDJEModel, files: Any, read: list[str]
) -> None:
    names = ["2024-2/d.png", "2024/c.png", "a.PNG", "b.png"]
    source = open_source("s3://photos/")
    assert [item.path for item in source.images()] == [f"s3://photos/{name}" for name in names]
    assert source.left_out
    assert [item.path for item in open_source("s3://photos/2024").images()] == [
        "s3://photos/2024/c.png"
    ]
    assert [item.path for item in open_source("s3://photos/2024*/*.png").images()] == [
        "s3://photos/2024-2/d.png", "s3://photos/2024/c.png",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="there is no image at s3://photos/nothing/"):
        open_source("s3://photos/nothing/")
    with pytest.raises(ConfigError, match="s3://elsewhere"):
        open_source("s3://elsewhere/")

    with ImageCollection.create(tmp_path / "i", "images", tiny_model.contract()) as collection:

        def ingest(place: str, **options: Any) -> Any:
            return ingest_images(place, collection, tiny_model, progress=False, **options)

        report = ingest("s3://photos/")
        assert (report.added, report.failed) == (4, ())
        assert sorted(read) == ["a.PNG", "b.png", "c.png", "d.png"]
        (payload, *_) = collection.payloads([*collection.ids()])
        assert payload["etag"]
        assert read_image(payload["path"]).startswith(b"\x89PNG")

        read.clear()
        assert ingest("s3://photos/").known == 4
        assert read == []

        files.pipe("photos/b.png", png(7))
        files.rm("photos/2024/c.png")
        report = ingest("s3://photos/", prune=True)
        assert (report.added, report.known, report.pruned) == (1, 2, 2)
        assert read == ["b.png"]
        files.rm("photos/2024-2/d.png")
        files.pipe("photos/2024/e.png", png(6))
        report = ingest("s3://photos/2024/", prune=True)
        assert (report.added, report.pruned) == (1, 0)  # d.png is of another folder


def test_a_server_that_is_away_is_told(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    monkeypatch.setattr(remote, "_stores", {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="cannot list s3://photos/: s3://photos cannot be read"):
        open_source("s3://photos/")
