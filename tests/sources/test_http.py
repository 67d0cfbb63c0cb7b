"""Images at HTTP addresses, from a real server with faults."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from image_server import ImageServer
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.sources import remote
from edje_qdrant.sources.open import open_source
from edje_qdrant.sources.read import read_image, stored_id
from edje_qdrant.types import IngestReport


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    monkeypatch.setattr(remote, "_away", {})


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        for number in range(4):
            file = io.BytesIO()
            Image.new("RGB", (32, 24), (60 * number, 90, 30)).save(file, "PNG")
            running.files[f"/{number}.png"] = file.getvalue()
        yield running


@pytest.fixture
def collection(tmp_path: Path, tiny_model: EDJEModel) -> Iterator[ImageCollection]:
    with ImageCollection.create(tmp_path / "index", "images", tiny_model.contract()) as made:
        yield made


@pytest.fixture
def ingest(collection: ImageCollection, tiny_model: EDJEModel) -> Callable[..., IngestReport]:
    def run(source: Any, **options: Any) -> IngestReport:
        return ingest_images(source, collection, tiny_model, progress=False, workers=2, **options)

    return run


def payloads(collection: ImageCollection) -> dict[str, dict[str, Any]]:
    stored = collection.payloads([*collection.ids()])
    return {payload["path"]: payload for payload in stored}


@pytest.mark.parametrize("etags", [True, False])
def test_a_manifest_of_addresses_is_downloaded_once(
    tmp_path: Path,
    server: ImageServer,
    collection: ImageCollection,
    ingest: Callable[..., IngestReport],
    etags: bool,
) -> None:
    server.etags = etags
    manifest = tmp_path / "images.jsonl"
    lines = [{"path": f"{server.url}/{number}.png", "n": number} for number in range(4)]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    report = ingest(manifest)
    assert (report.added, report.failed) == (4, ())
    assert sum(server.asked.values()) == 4  # no HEAD for what is not known
    stored = payloads(collection)[f"{server.url}/1.png"]
    assert (stored["n"], stored["width"], stored["height"]) == (1, 32, 24)
    assert ("etag" in stored) == etags
    assert stored["file_size"] == len(server.files["/1.png"])

    report = ingest(manifest)
    assert (report.added, report.known) == (0, 4)
    assert {server.got(path) for path in server.files} == {1}

    if etags:  # a changed file is read, and only that
        server.files["/2.png"] = server.files["/2.png"] + b" "
        report = ingest(manifest)
        assert (report.added, report.known, report.old_versions) == (1, 3, 1)
        assert [server.got(f"/{number}.png") for number in range(4)] == [1, 1, 2, 1]


def test_addresses_without_exif_are_known_by_their_etag(
    server: ImageServer, ingest: Callable[..., IngestReport]
) -> None:
    ingest([f"{server.url}/0.png"], exif=False)
    assert ingest([f"{server.url}/0.png"], exif=False).known == 1
    assert server.got("/0.png") == 1


@pytest.mark.parametrize("fault", [503, 429, 500, "cut"])
def test_faults_that_pass_are_tried_again(
    server: ImageServer, ingest: Callable[..., IngestReport], fault: int | str
) -> None:
    server.faults["/0.png"] = [fault, fault]
    report = ingest([f"{server.url}/0.png"])
    assert (report.added, report.failed) == (1, ())
    assert server.got("/0.png") == 3


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [
        (404, "there is nothing at this address (HTTP status 404)", 1),
        (403, "its server refuses it (HTTP status 403)", 1),
        (401, "its server asks for a login", 1),
        ("loop", "its address has more than 5 redirects", 6),
        (503, "cannot be read now, tried 4 times: HTTP status 503", 4),
        ("cut", "tried 4 times: RemoteProtocolError: peer closed connection", 4),
    ],
)
def test_faults_that_stay_fail_one_image(
    server: ImageServer,
    ingest: Callable[..., IngestReport],
    fault: int | str,
    reason: str,
    requests: int,
) -> None:
    server.faults["/0.png"] = [fault] * 50
    report = ingest([f"{server.url}/{number}.png" for number in range(2)])
    assert report.added == 1
    (failure,) = report.failed
    assert failure.path == f"{server.url}/0.png"
    assert reason in failure.reason
    assert server.got("/0.png") == requests


def test_a_server_that_is_away_is_told_and_not_waited_for_at_each_image(
    ingest: Callable[..., IngestReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImageServer() as gone:
        url = gone.url
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    report = ingest([f"{url}/{number}.png" for number in range(30)])
    assert len(report.failed) == 30
    assert "cannot be read now, tried 4 times: ConnectError" in report.failed[0].reason
    assert len(pauses) <= 2 * 3  # of the threads that began before it was known


def test_files_that_are_too_large_are_refused_unread(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageReadError, match="no more than 10 are read"):
        read_image(f"{server.url}/0.png", 10)
    assert server.sent <= len(server.files["/0.png"])


def test_a_stored_image_is_read_through_the_same_door(
    server: ImageServer, collection: ImageCollection, ingest: Callable[..., IngestReport]
) -> None:
    ingest(f"{server.url}/0.png?size=large")
    ((path, _),) = payloads(collection).items()
    assert path == f"{server.url}/0.png?size=large"
    content = read_image(path)
    assert content == server.files["/0.png"]
    assert [stored_id(path, content)] == [*collection.ids()]


def test_a_manifest_at_an_address_has_paths_relative_to_it(
    server: ImageServer, collection: ImageCollection, ingest: Callable[..., IngestReport]
) -> None:
    server.files["/lists/a.jsonl"] = b'{"path": "../0.png", "n": 1}\n{"file_name": "/1.png"}\n'
    server.files["/b.txt"] = b"2.png\n\n" + f"{server.url}/3.png\n".encode()
    report = ingest(f"{server.url}/lists/a.jsonl")
    assert (report.added, [failure.path for failure in report.failed]) == (
        1,
        [f"{server.url}/lists/a.jsonl:2"],
    )
    assert "absolute path" in report.failed[0].reason
    assert ingest(f"{server.url}/b.txt").added == 2
    assert set(payloads(collection)) == {f"{server.url}/{number}.png" for number in (0, 2, 3)}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ftp://host/a.jpg", "an address of ftp; give one of http://"),
        ("http://host/photos/", "HTTP server, which cannot be listed"),
        (["http://user:secret@host/a.jpg"], "holds a password, which would be stored"),
        (["a.png", "ftp://host/a.jpg"], "item 1 of the list of images: ftp://host/a.jpg is"),
    ],
)
def test_addresses_that_cannot_be_read_are_refused(source: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        open_source(source)
    assert "secret" not in str(caught.value)


def test_pruning_follows_a_list_of_addresses(
    server: ImageServer, collection: ImageCollection, ingest: Callable[..., IngestReport]
) -> None:
    ingest([f"{server.url}/0.png", f"{server.url}/1.png"])
    server.files["/moved.png"] = server.files.pop("/1.png")
    report = ingest([f"{server.url}/moved.png"], prune=True)
    assert (report.known, report.pruned) == (1, 1)
    assert set(payloads(collection)) == {f"{server.url}/moved.png"}
