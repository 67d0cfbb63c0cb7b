"""Long jobs go on after the server was away in the middle of them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import child
from index_stand_in import RefusalError, StandIn
from qdrant_client import QdrantClient, models
from server_process import ServerProcess

from edje_qdrant.attach.attach_tokens import attach_tokens
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, EngineUnavailableError
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance import (
    compact,
    copy_collection,
    export_collection,
    fit_codec,
    import_collection,
    transcode,
    verify,
)
from edje_qdrant.maintenance.repair import repair
from edje_qdrant.model import EDJEModel

WriteImages = Callable[..., list[Path]]

#: Requests in a row that get no answer: more than a call's own tries.
AWAY = 12


class Outage:
    """A stand-in that is away from a request on, for some requests."""

    def __init__(self, server: StandIn) -> None:
        self.server, self.left, self.after = server, 0, 0
        admit = server.admit

        def admitted(*arguments: Any) -> None:
            if self.after:
                self.after -= 1
            elif self.left:
                self.left -= 1
                raise RefusalError(503, "away")
            admit(*arguments)

        server.admit = admitted  # type: ignore[method-assign]

    def begins(self, after: int) -> None:
        """Be away after a number of requests from now."""
        self.after, self.left = after, AWAY


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    monkeypatch.setattr("edje_qdrant.index.qdrant.connection.Connection._pause", lambda *_: 0.001)
    monkeypatch.setattr("edje_qdrant.index.qdrant.patience._TOLD_AFTER", 0.0)
    with StandIn() as server:
        yield Outage(server)


@pytest.fixture
def pictures(tmp_path: Path, write_images: WriteImages) -> Path:
    write_images(tmp_path / "pictures", 5)
    return tmp_path / "pictures"


def filled(url: str, name: str, pictures: Path, model: EDJEModel, **more: Any) -> ImageCollection:
    collection = ImageCollection.create(url, name, model.contract(), **more)
    ingest_images(pictures, collection, model, progress=False, workers=1)
    return collection


JOBS: dict[str, Callable[..., Any]] = {
    "verify": lambda collection, folder, model, **more: verify(collection, **more),
    "repair": lambda collection, folder, model, **more: repair(collection, model, **more),
    "compact": lambda collection, folder, model, **more: compact(collection, **more),
    "transcode": lambda collection, folder, model, **more: transcode(collection, "int8", **more),
    "fit_codec": lambda collection, folder, model, **more: fit_codec(
        collection, "pq16", sample=5, **more
    ),
    "export": lambda collection, folder, model, **more: export_collection(
        collection, folder / "images.edje", **more
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_on_a_collection_goes_on(
    outage: Outage, tmp_path: Path, pictures: Path, tiny_model: EDJEModel, job: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    place: dict[str, Any] = {"tokens": "file", "tokens_folder": tmp_path / "side"}
    more = place if job == "compact" else {}
    with filled(outage.server.url, "images", pictures, tiny_model, **more) as collection:
        for after in (0, 2):
            outage.begins(after)
            if job == "fit_codec":  # five images are too few for it
                with pytest.raises(ConfigError, match="images"):
                    JOBS[job](collection, tmp_path, tiny_model, wait=60)
            else:
                JOBS[job](collection, tmp_path, tiny_model, wait=60)
            (tmp_path / "images.edje").unlink(missing_ok=True)
            if outage.left == 0:
                err = capsys.readouterr().err
                assert err.count("waiting for it") == err.count("going on") == 1
            outage.left = 0
        outage.begins(0)
        with pytest.raises(EngineUnavailableError):
            JOBS[job](collection, tmp_path, tiny_model, wait=0)
        outage.left = 0
        for seconds in (-1, float("nan"), "5", None, True):
            with pytest.raises(ConfigError, match="wait is"):
                JOBS[job](collection, tmp_path, tiny_model, wait=seconds)
        assert verify(collection).clean


@pytest.mark.parametrize("after", [0, 2, 5])
def test_an_ingest_goes_on(
    outage: Outage, pictures: Path, tiny_model: EDJEModel, after: int
) -> None:
    with ImageCollection.create(outage.server.url, "images", tiny_model.contract()) as collection:
        given: dict[str, Any] = {"progress": False, "workers": 1, "batch_size": 1}
        outage.begins(after)
        with pytest.raises(EngineUnavailableError):
            ingest_images(pictures, collection, tiny_model, wait=0, **given)
        outage.begins(after)
        report = ingest_images(pictures, collection, tiny_model, wait=60, **given)
        assert outage.left == 0
        assert report.added + report.skipped == 5
        assert verify(collection).clean


def test_copies_and_imports_go_on(
    outage: Outage, tmp_path: Path, pictures: Path, tiny_model: EDJEModel
) -> None:
    url = outage.server.url
    with (
        filled(url, "images", pictures, tiny_model) as collection,
        ImageCollection.create(url, "copy", tiny_model.contract()) as copied,
    ):
        outage.begins(3)
        assert copy_collection(collection, copied, wait=60).copied == 5
        assert outage.left == 0
        export_collection(collection, tmp_path / "images.edje")
    ImageCollection.create(url, "imported", tiny_model.contract()).close()
    outage.begins(5)  # once the collection is open
    report = import_collection(tmp_path / "images.edje", url, "imported", wait=60)
    assert report.copied == 5
    assert outage.left == 0


def test_an_attachment_goes_on(outage: Outage, pictures: Path, tiny_model: EDJEModel) -> None:
    client: QdrantClient = outage.server.client
    client.create_collection(
        "theirs", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE)
    )
    points = [
        models.PointStruct(id=n, vector=[1.0, n], payload={"path": str(path)})
        for n, path in enumerate(sorted(pictures.iterdir()))
    ]
    client.upsert("theirs", points)
    outage.begins(12)  # once the job runs
    report = attach_tokens(
        outage.server.url, "theirs", tiny_model, progress=False, workers=1, batch_size=1, wait=60
    )
    assert outage.left == 0
    assert report.added == 5


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("how", ["killed", "paused"])
def test_a_server_away_for_longer_than_its_tries(
    tmp_path: Path, tiny_folder: Path, tiny_model: EDJEModel, write_images: WriteImages,
    how: str, processes: int,
) -> None:  # fmt: skip
    """It is a process, which is killed in the middle of a command's work and started again."""
    write_images(tmp_path / "pictures", 60)
    server = ServerProcess(tmp_path / "data")
    command = child(
        "ingest", tmp_path / "pictures", "--url", server.url, "--model", tiny_folder,
        "--batch-size", 2, "--workers", 1, "--processes", processes, "--timeout", 3, "--progress",
        "--json",
    )  # fmt: skip
    try:
        _until_some_are_there(server.url, 10)
        server.kill() if how == "killed" else server.pause()
        time.sleep(14)
        server.start() if how == "killed" else server.resume()
        out, err = command.communicate(timeout=200)
        assert command.returncode == 0, err
        assert '"added": 60' in out
        assert err.count("waiting for it") == 1
        assert err.count("going on") == 1
        with ImageCollection.open(server.url, "images") as collection:
            assert verify(collection).clean
            assert collection.count() == 60
    finally:
        command.kill()
        command.communicate()
        server.resume()
        server.end()


@pytest.mark.slow
def test_a_command_that_waits_ends_when_it_is_told_to(
    tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path / "pictures", 60)
    server = ServerProcess(tmp_path / "data")
    command = child(
        "ingest", tmp_path / "pictures", "--url", server.url, "--model", tiny_folder,
        "--batch-size", 2, "--workers", 1,
    )  # fmt: skip
    try:
        _until_some_are_there(server.url, 4)
        server.kill()
        threading.Timer(9, command.send_signal, (signal.SIGINT,)).start()
        _, err = command.communicate(timeout=60)
        assert command.returncode != 0
        assert "waiting for it" in err
    finally:
        command.kill()
        command.communicate()


def _until_some_are_there(url: str, count: int) -> None:
    client = QdrantClient(url=url, check_compatibility=False)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if client.collection_exists("images") and client.count("images").count >= count:
            client.close()
            return
        time.sleep(0.05)
    raise AssertionError("the ingest did not begin")
