from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client.models import PointStruct
from rounding import float32_slack

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.model import EDJEModel
from edje_qdrant.types import ImageEncoding, IngestReport, Point

WriteImages = Callable[..., list[Path]]


@pytest.fixture(params=["edge", "memory"])
def collection(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_model: EDJEModel
) -> Iterator[ImageCollection]:
    place = tmp_path / "index" if request.param == "edge" else QdrantClient(":memory:")
    with ImageCollection.create(place, "images", tiny_model.contract()) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path, write_images: WriteImages) -> Path:
    """Two images in a folder, and two in one below."""
    write_images(tmp_path / "pictures", 2)
    write_images(tmp_path / "pictures" / "below", 2, seed=1)
    return tmp_path / "pictures"


@pytest.fixture
def follow(collection: ImageCollection, tiny_model: EDJEModel) -> Callable[..., IngestReport]:
    def run(source: Any, *, prune: bool = True, **more: Any) -> IngestReport:
        return ingest_images(source, collection, tiny_model, progress=False, prune=prune, **more)

    return run


def counts(report: IngestReport) -> tuple[int, int, int, int]:
    return report.added, report.skipped, report.pruned, len(report.failed)


def payloads(collection: ImageCollection) -> list[dict[str, Any]]:
    pages = collection.index.scroll()
    return [{k: v for k, v in p.payload.items() if k != "_edje"} for page in pages for p in page]


def paths(collection: ImageCollection) -> set[str]:
    return {payload["path"] for payload in payloads(collection)}


def named(*pictures: Path) -> set[str]:
    return {str(picture) for picture in pictures}


def test_what_is_gone_from_the_folder_is_deleted(
    collection: ImageCollection, folder: Path, follow: Callable[..., IngestReport]
) -> None:
    assert counts(follow(folder)) == (4, 0, 0, 0)
    kept = folder / "picture-0001.png"
    (folder / "picture-0000.png").unlink()
    shutil.rmtree(folder / "below")
    assert counts(follow(folder, prune=False)) == (0, 1, 0, 0)
    assert len(collection) == 4
    assert counts(follow(folder)) == (0, 1, 3, 0)
    assert paths(collection) == named(kept)
    assert counts(follow(folder)) == (0, 1, 0, 0)  # once is enough
    assert len(collection) == 1


def test_pictures_elsewhere_stay(
    collection: ImageCollection,
    folder: Path,
    tmp_path: Path,
    write_images: WriteImages,
    follow: Callable[..., IngestReport],
) -> None:
    # A folder whose name begins like the other's is another folder.
    others = write_images(tmp_path / "pictures-2", 2, seed=7)
    others += write_images(tmp_path / "elsewhere", 2, seed=8)
    follow(tmp_path / "pictures-2")
    follow(tmp_path / "elsewhere")
    follow(folder)
    assert len(collection) == 8
    for path in (others[0], others[2], folder / "picture-0000.png"):
        path.unlink()
    assert counts(follow(folder)) == (0, 3, 1, 0)
    assert named(*others) < paths(collection)
    assert counts(follow(folder / "below")) == (0, 2, 0, 0)
    assert str(folder / "picture-0001.png") in paths(collection)
    assert counts(follow(tmp_path / "elsewhere")) == (0, 1, 1, 0)
    assert counts(follow(tmp_path / "pictures-2")) == (0, 1, 1, 0)
    assert len(collection) == 5


@pytest.mark.parametrize("written", ["pictures", "pictures/", "./pictures", "below/../pictures"])
def test_however_the_folder_is_written(
    collection: ImageCollection,
    folder: Path,
    tmp_path: Path,
    follow: Callable[..., IngestReport],
    monkeypatch: pytest.MonkeyPatch,
    written: str,
) -> None:
    follow(folder)
    (folder / "picture-0000.png").unlink()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    assert counts(follow(written)) == (0, 3, 1, 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    (folder / "picture-0001.png").unlink()
    assert counts(follow("~/pictures")) == (0, 2, 1, 0)


def manifest(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return path


def test_a_manifest_names_all_that_stay(
    collection: ImageCollection,
    folder: Path,
    tmp_path: Path,
    write_images: WriteImages,
    follow: Callable[..., IngestReport],
) -> None:
    (other,) = write_images(tmp_path / "elsewhere", 1, seed=9)
    follow(folder)
    follow(other, prune=False)
    source = manifest(
        folder / "list.jsonl",
        {"path": "picture-0000.png"},
        {"path": "below/picture-0001.png", "title": "new"},
    )
    report = follow(source)
    assert (*counts(report), report.updated) == (0, 1, 3, 0, 1)
    assert paths(collection) == named(
        folder / "picture-0000.png", folder / "below" / "picture-0001.png"
    )
    # Those that were there get the fields of their lines.
    assert sorted(str(payload.get("title")) for payload in payloads(collection)) == ["None", "new"]


def test_a_list_names_all_that_stay(
    collection: ImageCollection, folder: Path, follow: Callable[..., IngestReport]
) -> None:
    follow(folder)
    source = [folder / "below" / "picture-0000.png", folder / "picture-0001.png"]
    assert counts(follow(source)) == (0, 2, 2, 0)
    assert paths(collection) == named(*source)


@pytest.mark.parametrize("source", [[], ["/nowhere/a.png"]])
def test_a_list_that_names_nothing_would_delete_everything(
    collection: ImageCollection,
    folder: Path,
    follow: Callable[..., IngestReport],
    source: list[str],
) -> None:
    follow(folder)
    with pytest.raises(ConfigError, match="nothing was pruned"):
        follow(source)
    assert len(collection) == 4


def test_a_single_picture_is_no_source_to_follow(
    collection: ImageCollection, folder: Path, follow: Callable[..., IngestReport]
) -> None:
    follow(folder)
    for picture in (folder / "picture-0000.png", str(folder / "picture-0000.png")):
        with pytest.raises(ConfigError, match="leave prune out"):
            follow(picture)
    assert len(collection) == 4
    assert counts(follow(folder / "picture-0000.png", prune=False)) == (0, 1, 0, 0)


def test_a_folder_that_is_empty_or_gone_deletes_nothing(
    collection: ImageCollection,
    folder: Path,
    tmp_path: Path,
    follow: Callable[..., IngestReport],
) -> None:
    """As one does where a disk is not mounted."""
    follow(folder)
    folder.rename(tmp_path / "unmounted")
    with pytest.raises(ConfigError, match="does not exist"):
        follow(folder)
    folder.mkdir()
    with pytest.raises(ConfigError, match="holds no image"):
        follow(folder)
    assert len(collection) == 4


def test_pictures_that_cannot_be_read_this_time_stay(
    collection: ImageCollection, folder: Path, follow: Callable[..., IngestReport]
) -> None:
    follow(folder)
    cut = folder / "picture-0000.png"
    cut.write_bytes(b"")
    gone = folder / "below" / "picture-0000.png"
    gone.unlink()
    gone.symlink_to(folder / "nowhere.png")
    report = follow(folder)
    assert counts(report) == (0, 2, 0, 2)
    assert named(cut, gone) < paths(collection)
    # One that is no image any more, but was read, is another content: the old one goes.
    cut.write_bytes(b"no image")
    report = follow(folder)
    assert [Path(f.path).name for f in report.failed] == ["picture-0000.png", "picture-0000.png"]
    assert report.pruned == 0  # its path is among those that failed
    gone.unlink()
    assert counts(follow(folder)) == (0, 2, 1, 1)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_pictures_below_a_folder_that_cannot_be_read_stay(
    collection: ImageCollection, folder: Path, follow: Callable[..., IngestReport]
) -> None:
    follow(folder)
    (folder / "below").chmod(0)
    try:
        assert counts(follow(folder)) == (0, 2, 0, 1)
    finally:
        (folder / "below").chmod(0o700)
    assert len(collection) == 4


def test_pictures_below_a_folder_that_failed_stay(
    collection: ImageCollection,
    folder: Path,
    follow: Callable[..., IngestReport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    follow(folder)
    real = os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path) == str(folder / "below"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert counts(follow(folder)) == (0, 2, 0, 1)
    assert len(collection) == 4


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("{broken", "list.jsonl"),
        ("{broken", "./list.jsonl"),
        ("{broken", "ABSOLUTE"),
        ("{broken", "~/list.jsonl"),
        ("[]", "ABSOLUTE"),
        ('{"path": ""}', "ABSOLUTE"),
        ('{"paht": "a.png"}', "ABSOLUTE"),
        ('{"path": "a.png", "_edje": 1}', "ABSOLUTE"),
    ],
)
def test_a_manifest_with_a_line_that_cannot_be_read_deletes_nothing(
    collection: ImageCollection,
    folder: Path,
    follow: Callable[..., IngestReport],
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    written: str,
) -> None:
    follow(folder)
    source = manifest(folder / "list.jsonl", {"path": "picture-0000.png"}, line, line)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    with pytest.raises(ConfigError, match=r"2 lines of .*list\.jsonl cannot be read, line 2 first"):
        follow(source if written == "ABSOLUTE" else written)
    assert len(collection) == 4
    assert counts(follow(source, prune=False)) == (0, 1, 0, 2)


def test_a_manifest_that_names_a_picture_that_is_gone(
    collection: ImageCollection, folder: Path, follow: Callable[..., IngestReport]
) -> None:
    follow(folder)
    (folder / "picture-0000.png").unlink()
    source = manifest(
        folder / "list.jsonl", {"path": "picture-0000.png"}, {"path": "picture-0001.png"}
    )
    assert counts(follow(source)) == (0, 1, 2, 1)
    assert str(folder / "picture-0000.png") in paths(collection)  # named, and perhaps unmounted


def test_moved_pictures_get_their_new_path(
    collection: ImageCollection,
    folder: Path,
    tiny_model: EDJEModel,
    follow: Callable[..., IngestReport],
) -> None:
    source = manifest(
        folder / "list.jsonl",
        *({"path": name, "title": name} for name in ("picture-0000.png", "picture-0001.png")),
    )
    follow(source)
    follow(folder)
    query = np.eye(1, tiny_model.config.embedding_dim, dtype=np.float32)
    before = {c.image_id: c.score for c in collection.nearest(query, 4)[0]}
    (folder / "picture-0000.png").rename(folder / "below" / "renamed.png")
    assert counts(follow(folder, prune=False)) == (0, 4, 0, 0)
    assert str(folder / "picture-0000.png") in paths(collection)  # as it was added
    assert counts(follow(folder)) == (0, 4, 0, 0)
    moved = {p["path"]: p for p in payloads(collection)}
    assert str(folder / "picture-0000.png") not in moved
    assert moved[str(folder / "below" / "renamed.png")] == {
        "path": str(folder / "below" / "renamed.png"),
        "title": "picture-0000.png",
        "width": 50,
        "height": 40,
        "file_size": (folder / "below" / "renamed.png").stat().st_size,
        "modified_at": moved[str(folder / "below" / "renamed.png")]["modified_at"],
    }
    after = {c.image_id: c.score for c in collection.nearest(query, 4)[0]}
    assert after == pytest.approx(before, rel=0, abs=float32_slack(*before.values()))
    assert len(collection.tokens(collection.nearest(query, 4)[0])) == 4


def test_copies_do_not_make_a_picture_move(
    collection: ImageCollection, folder: Path, follow: Callable[..., IngestReport]
) -> None:
    follow(folder)
    first = folder / "picture-0000.png"
    shutil.copy(first, folder / "a-copy.png")
    shutil.copy(first, folder / "z-copy.png")
    assert counts(follow(folder)) == (0, 6, 0, 0)
    assert str(first) in paths(collection)
    first.unlink()
    assert counts(follow(folder)) == (0, 5, 0, 0)
    assert paths(collection) & named(folder / "a-copy.png", folder / "z-copy.png")
    assert len(collection) == 4


def test_a_picture_that_moved_to_a_folder_that_is_followed_is_not_lost(
    collection: ImageCollection,
    folder: Path,
    tmp_path: Path,
    write_images: WriteImages,
    follow: Callable[..., IngestReport],
) -> None:
    write_images(tmp_path / "elsewhere", 1, seed=9)
    follow(folder)
    follow(tmp_path / "elsewhere")
    (folder / "picture-0000.png").rename(tmp_path / "elsewhere" / "moved.png")
    assert counts(follow(tmp_path / "elsewhere")) == (0, 2, 0, 0)
    assert counts(follow(folder)) == (0, 3, 0, 0)
    assert len(collection) == 5


def test_of_a_changed_picture_the_old_goes_and_the_new_comes(
    collection: ImageCollection,
    folder: Path,
    tmp_path: Path,
    write_images: WriteImages,
    follow: Callable[..., IngestReport],
) -> None:
    follow(folder)
    before = {p.id for page in collection.index.scroll() for p in page}
    (new,) = write_images(tmp_path / "new", 1, seed=5)
    (folder / "picture-0000.png").write_bytes(new.read_bytes())
    assert counts(follow(folder, prune=False)) == (1, 3, 0, 0)
    assert len(collection) == 5
    assert counts(follow(folder)) == (0, 4, 1, 0)
    after = {p.id for page in collection.index.scroll() for p in page}
    assert len(after - before) == len(before - after) == 1
    assert len(payloads(collection)) == 4


def test_points_without_a_path(
    collection: ImageCollection,
    folder: Path,
    tiny_model: EDJEModel,
    follow: Callable[..., IngestReport],
) -> None:
    """They lie in no folder, and are named by no list."""
    follow(folder)
    image_id = "00000000-0000-4000-8000-000000000000"
    encoding = ImageEncoding(
        np.eye(1, tiny_model.config.embedding_dim, dtype=np.float32),
        np.zeros((1, 4, 16), np.float16),
    )
    collection.add([image_id], encoding, [{"title": "made by hand"}])
    assert follow(folder).pruned == 0
    assert follow([folder / "picture-0000.png"]).pruned == 4
    assert collection.existing([image_id]) == set()


def test_points_that_something_else_wrote_stay(folder: Path, tiny_model: EDJEModel) -> None:
    client = QdrantClient(":memory:")
    with ImageCollection.create(client, "images", tiny_model.contract()) as collection:
        vector = np.eye(1, tiny_model.config.embedding_dim)[0].tolist()
        client.upsert("images", [PointStruct(id=7, vector=vector, payload={"path": "x"})])
        source = [folder / "picture-0000.png"]
        report = ingest_images(source, collection, tiny_model, progress=False, prune=True)
        assert counts(report) == (1, 0, 0, 0)
        assert len(collection) == 2


def test_many_pages(
    collection: ImageCollection,
    tmp_path: Path,
    tiny_model: EDJEModel,
    follow: Callable[..., IngestReport],
    write_images: WriteImages,
) -> None:
    """Points are deleted while they are gone through."""
    (kept,) = write_images(tmp_path / "pictures", 1)
    rng = np.random.default_rng(0)
    ids = [str(uuid.UUID(int=int(n) + 1)) for n in rng.permutation(600)]
    embeddings = rng.standard_normal((600, tiny_model.config.embedding_dim)).astype(np.float32)
    encoding = ImageEncoding(embeddings, np.zeros((600, 4, 16), np.float16))
    gone = tmp_path / "pictures" / "gone.png"
    collection.add(ids, encoding, [{"path": str(gone)}] * 600)
    assert counts(follow(tmp_path / "pictures")) == (1, 0, 600, 0)
    assert paths(collection) == named(kept)


def test_an_interrupted_run_prunes_nothing(
    collection: ImageCollection,
    folder: Path,
    tmp_path: Path,
    write_images: WriteImages,
    tiny_model: EDJEModel,
    follow: Callable[..., IngestReport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    follow(folder)
    (folder / "picture-0000.png").unlink()
    write_images(folder / "more", 3, seed=4)

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "start_encoding", stop)
        with pytest.raises(KeyboardInterrupt):
            follow(folder)
    assert len(collection) == 4
    assert counts(follow(folder)) == (3, 3, 1, 0)


def test_a_picture_deleted_by_another_meanwhile(
    collection: ImageCollection,
    folder: Path,
    follow: Callable[..., IngestReport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    follow(folder)
    ids = [p.id for page in collection.index.scroll() for p in page]
    real = collection.index.existing

    def existing(image_ids: Any) -> set[str]:
        found = real(image_ids)
        collection.index.delete(ids[:1])
        return found

    monkeypatch.setattr(collection.index, "existing", existing)
    assert follow(folder).pruned == 0
    assert len(collection) == 3


def test_without_prune_nothing_is_remembered(
    collection: ImageCollection, folder: Path, follow: Callable[..., IngestReport]
) -> None:
    follow(folder)
    collection.index.upsert(
        [Point("00000000-0000-4000-8000-000000000001", np.ones(24, np.float32), {"path": "x"})]
    )
    assert counts(follow(folder, prune=False)) == (0, 4, 0, 0)
    assert len(collection) == 5


@pytest.fixture
def elsewhere(folder: Path, tmp_path: Path) -> Path:
    """Another folder, with a copy of an image and of nothing else."""
    copy = tmp_path / "elsewhere" / "copy.png"
    copy.parent.mkdir()
    shutil.copy(folder / "picture-0000.png", copy)
    return copy


def others(collection: ImageCollection) -> list[list[str]]:
    return [payload["other_paths"] for payload in payloads(collection) if "other_paths" in payload]


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_copy_that_was_ingested_from_elsewhere_keeps_its_image(
    collection: ImageCollection,
    folder: Path,
    elsewhere: Path,
    follow: Callable[..., IngestReport],
    processes: int,
) -> None:
    first = folder / "picture-0000.png"
    follow(folder, processes=processes)
    for _ in range(2):  # the second time changes nothing
        report = follow(elsewhere.parent, prune=False, processes=processes)
        assert (*counts(report), report.updated) == (0, 1, 0, 0, 0)
        assert others(collection) == [[str(elsewhere)]]
    first.unlink()
    report = follow(folder)
    assert (*counts(report), report.kept_elsewhere) == (0, 3, 0, 0, 1)
    assert named(elsewhere) < paths(collection)
    assert len(collection) == 4
    assert others(collection) == []
    # The last one goes as all others do.
    elsewhere.write_bytes((folder / "picture-0001.png").read_bytes())
    report = follow(elsewhere.parent)
    assert (*counts(report), report.kept_elsewhere) == (0, 1, 1, 0, 0)
    assert others(collection) == [[str(elsewhere)]]
    assert len(collection) == 3


def test_of_two_copies_in_one_ingest_both_are_known(
    collection: ImageCollection,
    folder: Path,
    elsewhere: Path,
    tmp_path: Path,
    follow: Callable[..., IngestReport],
) -> None:
    assert counts(follow(tmp_path)) == (4, 1, 0, 0)
    stored = {path for path in paths(collection) if "0000" in path or "copy" in path}
    assert len(stored & named(elsewhere, folder / "picture-0000.png")) == 1
    for one in (folder, elsewhere.parent):
        # Whichever is stored, the other one keeps it.
        gone = folder / "picture-0000.png" if one == folder else elsewhere
        content = gone.read_bytes()
        gone.unlink()
        if one == folder:
            assert counts(follow(one)) == (0, 3, 0, 0)
            assert named(elsewhere) < paths(collection)
            gone.write_bytes(content)
            assert counts(follow(one)) == (0, 4, 0, 0)
            assert others(collection) == [[str(gone)]]
        else:
            with pytest.raises(ConfigError, match="holds no image"):
                follow(one)
            assert counts(follow(tmp_path)) == (0, 4, 0, 0)
            assert named(folder / "picture-0000.png") < paths(collection)
            assert others(collection) == []


def test_a_copy_that_is_gone_from_its_folder_is_forgotten(
    collection: ImageCollection,
    folder: Path,
    elsewhere: Path,
    write_images: WriteImages,
    follow: Callable[..., IngestReport],
) -> None:
    write_images(elsewhere.parent, 1, seed=11)
    follow(folder)
    follow(elsewhere.parent)
    assert others(collection) == [[str(elsewhere)]]
    elsewhere.unlink()
    report = follow(elsewhere.parent)
    assert (report.pruned, report.kept_elsewhere) == (0, 0)
    assert others(collection) == []
    (folder / "picture-0000.png").unlink()
    assert follow(folder).pruned == 1


@pytest.mark.parametrize("away", ["missing", "empty"])
def test_a_copy_on_a_disk_that_is_away_keeps_its_image(
    collection: ImageCollection,
    folder: Path,
    elsewhere: Path,
    follow: Callable[..., IngestReport],
    away: str,
) -> None:
    follow(folder)
    follow(elsewhere.parent)
    shutil.rmtree(elsewhere.parent)
    if away == "empty":
        elsewhere.parent.mkdir()
    (folder / "picture-0000.png").unlink()
    report = follow(folder)
    assert (report.pruned, report.kept_elsewhere) == (0, 1)
    assert named(elsewhere) < paths(collection)


def test_a_copy_that_is_surely_gone_keeps_nothing(
    collection: ImageCollection,
    folder: Path,
    elsewhere: Path,
    follow: Callable[..., IngestReport],
) -> None:
    follow(folder)
    follow(elsewhere.parent)
    elsewhere.rename(elsewhere.with_name("notes.txt"))
    (folder / "picture-0000.png").unlink()
    asked: list[int] = []

    def agree(number: int, _: list[str]) -> bool:
        asked.append(number)
        return False

    before = payloads(collection)
    assert follow(folder, prune=agree).pruned == 0
    assert (asked, payloads(collection)) == ([1], before)
    assert follow(folder).pruned == 1


def test_a_disk_that_is_away_while_a_copy_is_ingested(
    collection: ImageCollection,
    folder: Path,
    elsewhere: Path,
    tmp_path: Path,
    follow: Callable[..., IngestReport],
) -> None:
    """The path on it is not lost when the copy takes its place."""
    follow(folder)
    folder.rename(tmp_path / "unmounted")
    assert counts(follow(elsewhere.parent)) == (0, 1, 0, 0)
    assert named(elsewhere) < paths(collection)
    (tmp_path / "unmounted").rename(folder)
    elsewhere.write_bytes((folder / "picture-0001.png").read_bytes())
    assert counts(follow(elsewhere.parent)) == (0, 1, 0, 0)
    assert paths(collection) >= named(folder / "picture-0000.png", folder / "picture-0001.png")


def test_a_list_that_names_all_forgets_other_copies(
    collection: ImageCollection,
    folder: Path,
    elsewhere: Path,
    follow: Callable[..., IngestReport],
) -> None:
    follow(folder)
    follow(elsewhere.parent)
    assert counts(follow([folder / "picture-0001.png"])) == (0, 1, 3, 0)
    follow(folder)
    follow(elsewhere.parent)
    assert counts(follow([folder / "picture-0000.png"])) == (0, 1, 3, 0)
    assert others(collection) == []


def test_a_field_of_that_name_in_a_manifest_changes_nothing(
    collection: ImageCollection,
    folder: Path,
    elsewhere: Path,
    follow: Callable[..., IngestReport],
) -> None:
    follow(folder)
    follow(elsewhere.parent)
    line = {"path": "picture-0000.png", "other_paths": None, "title": "a"}
    assert follow(manifest(folder / "list.jsonl", line), prune=False).updated == 1
    assert others(collection) == [[str(elsewhere)]]
