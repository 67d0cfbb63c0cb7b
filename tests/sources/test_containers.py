"""Images in tar files, Parquet files and data sets: listed, ingested once, and read back."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from image_server import ImageServer
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.ingest.ingest import fit_codec_to_source, ingest_images
from edje_qdrant.maintenance.verify import verify
from edje_qdrant.model import EDJEModel
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.sources.open import open_source
from edje_qdrant.sources.protocol import ListedImage
from edje_qdrant.sources.read import read_image, stored_id
from edje_qdrant.types import FailedImage, IngestReport

NUMBER = 6


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (40 * number, 90, 30)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, numbers: range = range(NUMBER)) -> None:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            sidecar = json.dumps({"n": number}).encode()
            for name, data in (
                (f"a/{number:03}.png", png(number)), (f"a/{number:03}.json", sidecar),
                (f"a/{number:03}.txt", f"image {number}\n".encode()),
            ):  # fmt: skip
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_parquet(path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [{"bytes": png(number), "path": f"{number}.png"} for number in range(NUMBER)]
    table = pa.table({
        "n": [*range(NUMBER)], "caption": [f"image {number}" for number in range(NUMBER)],
        "thumbnail": [b""] * NUMBER, "image": images,
    })  # fmt: skip
    pq.write_table(table, path, row_group_size=4)


def write_dataset(path: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "n": datasets.Value("int64"),
            "kind": datasets.ClassLabel(names=["even", "odd"]),
        }
    )
    rows = {
        "image": [{"bytes": png(number), "path": None} for number in range(NUMBER)],
        "n": [*range(NUMBER)],
        "kind": [number % 2 for number in range(NUMBER)],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(path)
    return made


WRITE: dict[str, Callable[[Path], Any]] = {
    "images.tar": write_tar,
    "images.parquet": write_parquet,
    "saved": write_dataset,
}


@pytest.fixture
def collection(tmp_path: Path, tiny_model: EDJEModel) -> Iterator[ImageCollection]:
    with ImageCollection.create(tmp_path / "index", "images", tiny_model.contract()) as made:
        yield made


@pytest.fixture
def ingest(collection: ImageCollection, tiny_model: EDJEModel) -> Callable[..., IngestReport]:
    def run(source: Any, **options: Any) -> IngestReport:
        return ingest_images(source, collection, tiny_model, progress=False, workers=2, **options)

    return run


def payloads(collection: ImageCollection) -> dict[int, dict[str, Any]]:
    return {payload["n"]: payload for payload in collection.payloads([*collection.ids()])}


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the paths of images are added when they are read."""
    from edje_qdrant.ingest import decode, pipeline

    paths: list[str] = []
    real = decode.read_listed

    def noted(item: ListedImage) -> ListedImage:
        if item.reader is not None:
            paths.append(item.path)
        return real(item)

    monkeypatch.setattr(decode, "read_listed", noted)
    monkeypatch.setattr(pipeline, "read_listed", noted)
    return paths


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", [*WRITE])
def test_their_images_are_read_once_found_again_and_read_back(
    tmp_path: Path,
    tiny_model: EDJEModel,
    collection: ImageCollection,
    ingest: Callable[..., IngestReport],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    WRITE[name](tmp_path / name)
    reads = count_reads(monkeypatch)
    source = open_source(tmp_path / name)
    assert [item.path for item in source.images()] == [item.path for item in source.images()]
    assert source.count() == NUMBER
    report = ingest(tmp_path / name)
    assert (report.added, report.failed) == (NUMBER, ())
    assert len(reads) == NUMBER
    stored = payloads(collection)
    assert sorted(stored) == [*range(NUMBER)]
    for number, payload in stored.items():
        assert payload["path"].startswith(f"{tmp_path / name}#")
        assert payload["file_size"] == len(png(number))
        content = read_image(payload["path"])
        assert content == png(number)
        (same,) = (i for i in collection.ids({"n": number}))
        assert stored_id(payload["path"], content) == same
    if name == "images.tar":
        assert stored[2]["path"].endswith("#member=a/002.png")
        assert stored[2]["caption"] == "image 2"
    if name == "images.parquet":
        assert stored[5]["path"].endswith("#row=5&column=image")
        assert (stored[5]["caption"], stored[5]["file_name"]) == ("image 5", "5.png")
    if name == "saved":
        assert stored[5]["kind"] == "odd"

    reads.clear()
    assert ingest(tmp_path / name).known == NUMBER
    assert reads == []
    explanation = TwoStageRetriever(collection, tiny_model).explain(
        "a dog", next(collection.ids({"n": 3}))
    )
    assert explanation.heat.shape
    assert verify(collection).clean


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", [*WRITE])
def test_worker_processes_and_codecs_take_them(
    tmp_path: Path, tiny_model: EDJEModel, name: str
) -> None:
    WRITE[name](tmp_path / name)
    with pytest.raises(ConfigError, match="images"):  # too few to fit, and so they were decoded
        fit_codec_to_source(tmp_path / name, tiny_model, "pq16", progress=False)


@pytest.mark.parametrize("name", ["images.tar", "images.parquet"])
def test_pruning_keeps_what_is_in_the_file(
    tmp_path: Path,
    collection: ImageCollection,
    ingest: Callable[..., IngestReport],
    name: str,
) -> None:
    WRITE[name](tmp_path / name)
    ingest(tmp_path / name)
    ingest([(png(20), {"n": 20})])
    write_tar(tmp_path / "images.tar", range(2))
    if name == "images.tar":
        report = ingest(tmp_path / name, prune=True)
        assert (report.known, report.pruned) == (2, NUMBER - 2)
        assert sorted(payloads(collection)) == [0, 1, 20]
    else:
        assert ingest(tmp_path / name, prune=True).pruned == 0


def test_a_folder_of_shards_and_patterns(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"s-{number:02}.tar", range(2 * number, 2 * number + 2))
    everything = [item.path for item in open_source(tmp_path).images()]
    assert len(everything) == 6
    for pattern in ("s-{00..02}.tar", "s-*.tar"):
        assert [item.path for item in open_source(tmp_path / pattern).images()] == everything
    with pytest.raises(ConfigError, match="there is no file"):
        open_source(tmp_path / "s-{00..03}.tar")


def test_damaged_and_compressed_tar_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(png(3)) + 40])
    *images, failed = open_source(path).images()
    assert len(images) > 1
    assert isinstance(failed, FailedImage)
    assert failed.path == str(path)
    path.write_bytes(b"\x1f\x8b" + data)
    with pytest.raises(ConfigError, match="decompress it with gunzip"):
        open_source(path)
    path.write_bytes(b"hello" * 300)
    with pytest.raises(ConfigError, match="is not a tar file"):
        open_source(path)
    write_tar(path)
    with pytest.raises(ImageReadError, match="has no member x"):
        read_image(f"{path}#member=x")


def test_hidden_members_masks_and_sidecars(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in {
            "1.jpg": b"x", "1.seg.png": b"x", "._1.jpg": b"x", "__MACOSX/1.jpg": b"x",
            "2.jpg": b"x", "2.json": b"[1]", "b c#d.jpg": b"x",
        }.items():  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    first, second, third = open_source(path).images()
    assert first.path == f"{path}#member=1.jpg"
    assert isinstance(second, FailedImage)
    assert "the .json is no object" in second.reason
    assert third.path == f"{path}#member=b%20c%23d.jpg"
    assert read_image(third.path) == b"x"


def test_columns_of_images_are_found_or_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [b"1"], "y": [b"2"], "n": [1]}), path)
    with pytest.raises(ConfigError, match=r"several columns of images: x, y; .*#column=x"):
        open_source(path)
    (item,) = open_source(f"{path}#column=y").images()
    assert item.path == f"{path}#row=0&column=y"
    assert read_image(item.path) == b"2"
    with pytest.raises(ConfigError, match=r"the column 'n' of .* holds no images; it has x, y, n"):
        open_source(f"{path}#column=n")
    with pytest.raises(ImageReadError, match="has 1 rows"):
        read_image(f"{path}#row=1&column=y")
    pq.write_table(pa.table({"n": [1]}), path)
    with pytest.raises(ConfigError, match="has no column of images"):
        open_source(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_data_sets_of_a_program(
    tmp_path: Path, collection: ImageCollection, ingest: Callable[..., IngestReport]
) -> None:
    dataset = write_dataset(tmp_path / "saved")
    assert ingest(dataset).added == NUMBER
    assert ingest(dataset).known == NUMBER
    path = payloads(collection)[0]["path"]
    assert path.startswith("datasets:")
    with pytest.raises(ImageReadError, match="or in a data set, and is in no file"):
        read_image(path)
    stream = dataset.to_iterable_dataset()
    assert open_source(stream).count() is None
    assert ingest(stream).known == NUMBER
    with pytest.raises(ConfigError, match="prune"):
        ingest(stream, prune=True)


@pytest.mark.parametrize("name", ["images.tar", "images.parquet"])
def test_containers_on_a_server_are_read_in_parts_and_once(
    tmp_path: Path,
    collection: ImageCollection,
    ingest: Callable[..., IngestReport],
    name: str,
) -> None:
    WRITE[name](tmp_path / name)
    with ImageServer() as server:
        server.files[f"/{name}"] = (tmp_path / name).read_bytes()
        url = f"{server.url}/{name}"
        assert (ingest(url).added, open_source(url).name) == (NUMBER, url)
        stored = payloads(collection)
        assert stored[1]["path"].startswith(f"{url}#")
        assert stored[1]["etag"]
        assert read_image(stored[1]["path"]) == png(1)
        assert ingest(url).known == NUMBER
        server.ranges = False
        (failure,) = ingest(url).failed
        assert "sends no parts of files" in failure.reason
