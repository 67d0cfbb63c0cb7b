"""Folders that this user may read and not write to, or not even read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collection_places import CONTRACT, fill, ids_of, make_place

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import CollectionLockedError, StoreError
from edje_qdrant.index import folder as index_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="users and modes of POSIX")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user of the machine may read, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="edje-test-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def filled(folder: Path, engine: Any) -> None:
    with ImageCollection.create(folder, "images", CONTRACT, engine=engine) as collection:
        fill(collection, ids_of(20))


def read_as_another_user(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("reading_only.py")), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_folder_that_may_only_be_read(shared):
    for engine in ("edge", "faiss"):
        filled(shared / engine, engine)
    shutil.copytree(shared / "edge", shared / "closed")
    for path in (shared / "edge", shared / "faiss"):
        for inner in (*path.rglob("*"), path):
            inner.chmod(0o555 if inner.is_dir() else 0o444)
    (shared / "closed" / "images").chmod(0)
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*")}
    came = read_as_another_user(shared)
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*")} == before
    for engine in ("edge", "faiss"):
        found = came[engine]
        assert found.pop("read_only") == "True"
        assert found.pop("nearest") == "[True, False, False]"
        assert found.pop("tokens") == "(3, 4, 6)"
        assert found.pop("count") == "20"
        assert found.pop("clean") == "True"
        assert found.pop("exported") == "20"
        assert found.pop("copies") == ("2" if engine == "edge" else "0")
        assert found.pop("flush") == "None"
        assert found.pop("migration") == "None"
        for call, refused in found.items():
            assert refused.startswith("StoreError: the index at "), call
            assert "is open read-only" in refused, call
    assert sorted(came["left"]) == ["edge", "faiss"]
    assert came["closed"].startswith(f"StoreError: cannot read {shared / 'closed' / 'images'}")
    assert "no permission" in came["closed"]
    assert came["create"].startswith("ConfigError: collection name")


def test_readers_share_the_lock_and_keep_writers_away(tmp_path, monkeypatch):
    filled(tmp_path, "edge")

    def refuse(path: Path, holds: str, *, shared: bool = False) -> Any:
        if not shared:
            raise PermissionError(13, "Permission denied", str(path))
        return lock_file(path, holds, shared=True)

    lock_file = index_folder.lock_file
    with monkeypatch.context() as patch:
        patch.setattr(index_folder, "lock_file", refuse)
        first = ImageCollection.open(tmp_path, "images")
        second = ImageCollection.open(tmp_path, "images")
    assert (first.read_only, second.read_only) == (True, True)
    with pytest.raises(CollectionLockedError):
        ImageCollection.open(tmp_path, "images")
    first.close()
    second.close()
    with ImageCollection.open(tmp_path, "images") as writer, monkeypatch.context() as patch:
        assert not writer.read_only
        patch.setattr(index_folder, "lock_file", refuse)
        with pytest.raises(CollectionLockedError):
            ImageCollection.open(tmp_path, "images")


def test_a_database_whose_writer_was_killed_cannot_only_be_read(tmp_path, monkeypatch):
    filled(tmp_path, "faiss")
    log = tmp_path / "images" / "faiss" / "points.sqlite-wal"
    log.write_bytes(b"what the writer had not written back")

    def refuse(path: Path, holds: str, *, shared: bool = False) -> Any:
        if not shared:
            raise PermissionError(13, "Permission denied", str(path))
        return lock_file(path, holds, shared=True)

    lock_file = index_folder.lock_file
    monkeypatch.setattr(index_folder, "lock_file", refuse)
    with pytest.raises(StoreError, match="not closed by its last writer"):
        ImageCollection.open(tmp_path, "images")


@pytest.mark.parametrize("kind", ["edge-file", "edge-payload"])
def test_names_that_are_too_long(tmp_path, kind):
    place = make_place(kind, tmp_path / ("x" * 300))
    for act in (place.open, place.create):
        with pytest.raises(StoreError, match="name is too long for the file system"):
            act()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Service runtime error: No space left on device (os error 28)", "no space left"),
        ("failed to open mmap: Permission denied (os error 13)", "no permission"),
        ("Read-only file system (os error 30)", "the file system is read-only"),
    ],
)
def test_a_refusal_of_the_system_is_not_called_damage(tmp_path, text, words):
    """The engine passes the system's words on."""
    refused = pytest.raises(StoreError, match=f"cannot use .*: {words}")
    with refused as caught, index_folder.reporting(tmp_path):
        raise Exception(text)
    assert "damage" not in str(caught.value)


def test_other_errors_of_the_engine_are(tmp_path):
    with pytest.raises(StoreError, match="the files are damaged"), index_folder.reporting(tmp_path):
        raise Exception("wal: bad checksum")


@pytest.mark.parametrize("name", ["index.json", "tokens/tokens.json"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, name):
    filled(tmp_path, "edge")
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path == tmp_path / "images" / name:
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(
        StoreError, match=f"cannot read .*{Path(name).name}: no permission"
    ) as caught:
        ImageCollection.open(tmp_path, "images")
    assert "damage" not in str(caught.value)
