from __future__ import annotations

import os
import pickle
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from index_stand_in import StandIn
from lazy import Lazy
from PIL import Image
from qdrant_client import QdrantClient
from ray_cluster import WARNINGS, local_cluster

from edje_qdrant import errors
from edje_qdrant.collection.collection import ImageCollection, user_payload
from edje_qdrant.images import image_file_id
from edje_qdrant.index.qdrant import connection
from edje_qdrant.integrations import ray as plug
from edje_qdrant.integrations.ray import ingest_dataset
from edje_qdrant.model import EDJEModel
from edje_qdrant.sources.protocol import ListedImage
from edje_qdrant.types import IngestReport

if find_spec("ray") is None:
    pytest.skip("needs the extra ray", allow_module_level=True)

pa = Lazy("pyarrow")
ray = Lazy("ray")

WriteImages = Callable[..., list[Path]]

pytestmark = pytest.mark.filterwarnings(WARNINGS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers, and a core for what reads."""
    with local_cluster(num_cpus=3):
        yield


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


def job_for(url: str, model: Path | str, max_retries: int = 3) -> plug._Job:
    return plug._Job(url, "images", str(model), "cpu", max_retries, 10**6, 1, {})


def dying(flag: Path | None, word: str) -> type[plug._Worker]:
    """Return a worker that kills its process once it has written a batch with a certain image.

    With a flag it does so until the flag is there.
    """

    class Dying(plug._Worker):
        def _add(self, pictures):  # type: ignore
            done = super()._add(pictures)
            named = any(word in picture.path for picture in pictures)
            if named and (flag is None or not flag.exists()):
                if flag is not None:
                    flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return done

    return Dying


def check_a_killed_worker(
    url: str, tmp_path: Path, model: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"edje-ray-{uuid.uuid4().hex[:8]}"
    broken, copy = paths[0].with_name("broken.png"), paths[0].with_name("copy.png")
    broken.write_bytes(b"no image")
    copy.write_bytes(paths[0].read_bytes())
    rows = [{"path": str(p), "shelf": n, "note": None} for n, p in enumerate([*paths, copy])]
    dataset = ray.data.from_items([*rows, {"path": str(broken)}], override_num_blocks=6)
    flag = tmp_path / "died"
    monkeypatch.setattr(plug, "_Worker", dying(flag, paths[len(paths) // 2].name))
    try:
        report = ingest_dataset(dataset, url, name, model, batch_size=4, create=True)
        assert flag.exists()
        ids = {image_file_id(str(path)): (str(path), n) for n, path in enumerate(paths)}
        with ImageCollection.open(url, name) as collection:
            points = [point for page in collection.index.scroll() for point in page]
            stored = collection.encodings([*ids])
        assert len(points) == len(paths)
        assert {point.id for point in points} == set(ids)
        assert all(tokens.any() for tokens in stored.tokens)
        for point in points:
            path, shelf = ids[point.id]
            if shelf:  # the first one's copy is as good
                assert (point.payload["path"], point.payload["shelf"]) == (path, shelf)
        # What had been written by the one that died was there already.
        assert [failure.path for failure in report.failed] == [str(broken)]
        assert "not an image" in report.failed[0].reason
        assert report.added + report.updated + report.skipped == len(paths) + 1
        assert report.added >= len(paths) - 4

        files = ray.data.read_binary_files(str(paths[0].parent), include_paths=True)
        again = ingest_dataset(files, url, name, model, batch_size=16, concurrency=1)
        assert (again.added, again.skipped) == (0, len(paths) + 1)
        assert [failure.path for failure in again.failed] == [str(broken)]
        moved = [{"path": str(path), "shelf": n + 100} for n, path in enumerate(paths)]
        moved[0]["shelf"] = None
        again = ingest_dataset(ray.data.from_items(moved), url, name, model, batch_size=8)
        assert (again.added, again.updated, again.skipped) == (0, len(paths), 0)
        with ImageCollection.open(url, name) as collection:
            found = {
                p.payload["path"]: p.payload for page in collection.index.scroll() for p in page
            }
        assert found[str(paths[1])]["shelf"] == 101
        assert sum("shelf" not in payload for payload in found.values()) == 1
    finally:
        client = QdrantClient(url=url, check_compatibility=False)
        if url == os.environ.get("EDJE_QDRANT_URL"):
            client.delete_collection(name)
        client.close()


@pytest.mark.slow
def test_every_picture_is_there_once_though_a_worker_was_killed(
    cluster: None,
    stand_in: StandIn,
    tmp_path: Path,
    tiny_folder: Path,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = write_images(tmp_path / "pictures", 24)
    check_a_killed_worker(stand_in.url, tmp_path, tiny_folder, paths, monkeypatch)


@pytest.mark.qdrant_server
def test_the_same_on_a_server(
    cluster: None,
    tmp_path: Path,
    tiny_folder: Path,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = os.environ.get("EDJE_QDRANT_URL")
    if not url:
        pytest.skip("EDJE_QDRANT_URL names no server")
    paths = write_images(tmp_path / "pictures", 24)
    check_a_killed_worker(url, tmp_path, tiny_folder, paths, monkeypatch)


@pytest.mark.slow
def test_a_batch_that_kills_every_worker_ends_the_run(
    cluster: None,
    stand_in: StandIn,
    tmp_path: Path,
    tiny_folder: Path,
    write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = write_images(tmp_path / "pictures", 6)
    dataset = ray.data.from_items([{"path": str(path)} for path in paths], override_num_blocks=1)
    monkeypatch.setattr(plug, "_Worker", dying(None, paths[2].name))
    with pytest.raises(errors.WorkerDiedError, match=r"2 actors died of a batch of 2.*0002\.png"):
        ingest_dataset(
            dataset, stand_in.url, "images", tiny_folder, batch_size=2, max_retries=1, create=True,
            concurrency=1,
        )  # fmt: skip
    assert stand_in.client.count("images").count >= 4


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_ends_it_before_it_starts(
    cluster: None, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", pauses.append)
    stand_in.answers_left = 0
    dataset = ray.data.from_items([{"path": "/a.png"}])
    with pytest.raises(errors.EngineUnavailableError) as caught:
        ingest_dataset(dataset, stand_in.url, "images", "no such model")
    assert stand_in.url in str(caught.value)
    assert 0 < sum(pauses) < 15


def test_what_cannot_be_used_is_refused_before_anything_is_done(
    cluster: None, tmp_path: Path, stand_in: StandIn, tiny_folder: Path, tiny_model: EDJEModel
) -> None:
    dataset = ray.data.from_items([{"path": "/a.png"}])
    for location in (str(tmp_path), ":memory:", tmp_path, stand_in.client):
        with pytest.raises(errors.ConfigError, match=r"address of a Qdrant server.*ingest_images"):
            ingest_dataset(dataset, location, "images")  # type: ignore
    with pytest.raises(errors.ConfigError, match="which each actor loads"):
        ingest_dataset(dataset, stand_in.url, "images", tiny_model)  # type: ignore
    with pytest.raises(errors.ConfigError, match=r"give a ray\.data\.Dataset"):
        ingest_dataset([{"path": "/a.png"}], stand_in.url, "images")  # type: ignore
    for name in ("concurrency", "batch_size", "num_cpus"):
        with pytest.raises(errors.ConfigError, match=f"{name} is 0"):
            ingest_dataset(dataset, stand_in.url, "images", **{name: 0})  # type: ignore
    with pytest.raises(errors.ConfigError, match="num_gpus is -1"):
        ingest_dataset(dataset, stand_in.url, "images", num_gpus=-1)
    assert not stand_in.seen
    with pytest.raises(errors.CollectionNotFoundError):
        ingest_dataset(dataset, stand_in.url, "images", tiny_folder)
    folder = tmp_path / "tokens"
    ImageCollection.create(
        stand_in.url, "filed", tiny_model.contract(), tokens="file", tokens_folder=folder
    ).close()
    with pytest.raises(errors.ConfigError, match="side files"):
        ingest_dataset(dataset, stand_in.url, "filed", tiny_folder)


def test_calls_that_fail_are_done_again_so_many_times(
    stand_in: StandIn, tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    pictures = [ListedImage(str(path), {}) for path in write_images(tmp_path / "p", 3)]
    plug._prepare(job_for(stand_in.url, tiny_folder), {"codec": "int8"})
    worker = plug._Worker(job_for(stand_in.url, tiny_folder, max_retries=2), None)
    worker._add([])  # the model is loaded, and the collection is open
    stand_in.failures.extend([(500, {})] * 2)
    assert worker._add_with_retries(pictures) == IngestReport(3, 0)
    stand_in.failures.extend([(500, {})] * 3)
    with pytest.raises(errors.StoreError):
        worker._add_with_retries(pictures)
    assert not stand_in.failures
    assert worker._add_with_retries(pictures) == IngestReport(0, 3)


def test_a_worker_waits_for_the_server(
    stand_in: StandIn, tmp_path: Path, tiny_folder: Path, write_images: WriteImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also where it opens its connection while the server is away."""
    monkeypatch.setattr(connection.Connection, "_pause", lambda *_: 0.001)
    pictures = [ListedImage(str(path), {}) for path in write_images(tmp_path / "p", 3)]
    plug._prepare(job_for(stand_in.url, tiny_folder), {"codec": "int8"})
    worker = plug._Worker(replace(job_for(stand_in.url, tiny_folder), wait=60), None)
    stand_in.failures.extend([(503, {})] * 12)
    assert worker._add_with_retries(pictures) == IngestReport(3, 0)
    stand_in.failures.extend([(503, {})] * 12)
    assert worker._add_with_retries(pictures) == IngestReport(0, 3)
    assert not stand_in.failures
    hasty = plug._Worker(replace(job_for(stand_in.url, tiny_folder), wait=0.01), None)
    stand_in.failures.extend([(503, {})] * 1000)
    with pytest.raises(errors.EngineUnavailableError):  # once, not max_retries times
        hasty._add_with_retries(pictures)
    assert len(stand_in.failures) > 960


def test_what_would_fail_again_is_tried_once(
    stand_in: StandIn, tiny_folder: Path, other_model: EDJEModel
) -> None:
    ImageCollection.create(stand_in.url, "images", other_model.contract()).close()
    worker = plug._Worker(job_for(stand_in.url, tiny_folder), None)
    seen = len(stand_in.seen)
    with pytest.raises(errors.ContractMismatchError) as caught:
        worker._add_with_retries([])
    assert stand_in.seen[seen:].count("GET /collections/images") == 1
    # As it comes to the one who started the run.
    there = pickle.loads(pickle.dumps(caught.value))
    assert (type(there), str(there)) == (type(caught.value), str(caught.value))
    assert (there.expected, there.found) == (caught.value.expected, caught.value.found)


def test_rows_that_say_too_little_are_listed() -> None:
    with pytest.raises(errors.ConfigError, match=r"columns bytes, n and no `path`"):
        [*plug._listed(pa.table({"bytes": [b"x"], "n": [1]}))]
    with pytest.raises(errors.ConfigError, match="reserved"):
        [*plug._listed(pa.table({"path": ["/a"], "_edje": [1]}))]
    paths, contents = ["/a.png", "b.png", None, "s3://b/c.png"], [None, None, b"x", b"y"]
    rows = pa.table({"path": paths, "bytes": contents})
    first, relative, nameless, read = plug._listed(rows)
    assert first == ListedImage("/a.png", {"path": "/a.png"})
    assert "relative" in relative.reason
    assert "path" in nameless.reason
    assert (read.path, read.content) == ("s3://b/c.png", b"y")


def test_bytes_have_the_id_of_their_file(
    stand_in: StandIn, tmp_path: Path, tiny_folder: Path, write_images: WriteImages
) -> None:
    (path,) = write_images(tmp_path / "p", 1)
    plug._prepare(job_for(stand_in.url, tiny_folder), {})
    worker = plug._Worker(job_for(stand_in.url, tiny_folder), None)
    read = ListedImage("s3://bucket/a.png", {"shelf": 1}, path.read_bytes())
    empty = ListedImage("s3://bucket/b.png", {}, b"")
    report = worker._add([read, empty])
    assert (report.added, report.updated, report.skipped) == (1, 0, 0)
    assert [(f.path, f.reason) for f in report.failed] == [
        ("s3://bucket/b.png", "the file is empty")
    ]
    assert worker._add([ListedImage(str(path), {})]) == IngestReport(0, 1)
    changed = worker._add([ListedImage(str(path), {"shelf": 2})])
    assert changed == IngestReport(0, 0, updated=1)
    with ImageCollection.open(stand_in.url, "images") as collection:
        (stored,) = collection.index.retrieve([image_file_id(str(path))]).values()
    with Image.open(path) as picture:
        width, height = picture.size
    assert user_payload(stored) == {
        "path": "s3://bucket/a.png",
        "other_paths": [str(path)],
        "shelf": 2,
        "file_size": path.stat().st_size,
        "width": width,
        "height": height,
    }


def test_an_alias_is_resolved_once_for_all_actors() -> None:
    contract = EDJEModel.from_pretrained("demo", device="cpu").contract()
    with StandIn() as server:
        ImageCollection.create(server.url, "v1", contract).close()
        made = {"collection_name": "v1", "alias_name": "live"}
        server.answer("POST", ["collections", "aliases"], {"actions": [{"create_alias": made}]})
        job = plug._Job(server.url, "live", "demo", "cpu", 0, 1, 1, {})
        assert plug._prepare(job, None) == "v1"
