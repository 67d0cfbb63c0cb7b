from __future__ import annotations

import errno
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from edje_qdrant import files
from edje_qdrant.errors import CollectionLockedError, StoreError
from edje_qdrant.files import (
    hidden_file,
    hidden_folder,
    lock_file,
    new_file,
    os_errors_as_store_errors,
    replaced_file,
    write_atomically,
)


def test_replaces_whole(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_replacement_leaves_the_old(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_replacement_left_goes_with_the_next(tmp_path):
    path = tmp_path / "a.json"
    (tmp_path / "a.json.new").write_bytes(b"half of a much longer content")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.json"]


def fail_inside(opening):
    with opening as file:
        file.write(b"half")
        raise KeyError


def test_a_block_that_fails_replaces_nothing(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(KeyError):
        fail_inside(replaced_file(path))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def write_new(path: Path, data: bytes = b"whole") -> None:
    with new_file(path) as file:
        file.write(data)


def test_a_new_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.tar"
    with pytest.raises(KeyError):
        fail_inside(new_file(path))
    assert os.listdir(tmp_path) == []
    with new_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("there", ["a file", "a link to nothing"])
def test_a_new_file_replaces_nothing(tmp_path, there):
    path = tmp_path / "a.tar"
    if there == "a file":
        path.write_bytes(b"other")
    else:
        path.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        write_new(path)
    assert os.listdir(tmp_path) == ["a.tar"]


def test_a_new_file_that_another_process_made_first_is_kept(tmp_path):
    path = tmp_path / "a.tar"
    opening = new_file(path)
    opening.__enter__().write(b"ours")
    path.write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        opening.__exit__(None, None, None)
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("point", ["in the middle", "link", "sync_folder", "unlink"])
def test_a_new_file_after_a_kill(tmp_path, point):
    """Whatever a kill leaves, the next run deletes; only what was complete in all stays."""
    path = tmp_path / "a.tar"
    pid = os.fork()
    if pid == 0:

        def die(*_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        if point != "in the middle":
            owner = {"link": os, "sync_folder": files, "unlink": Path}[point]
            setattr(owner, point, die)  # before it; what is done before stays
        with new_file(path) as file:
            file.write(b"killed")
            if point == "in the middle":
                file.flush()
                die()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert os.listdir(tmp_path) != []
    write_new(path)
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without"])
def test_a_new_file_whose_folder_cannot_be_synced(tmp_path, monkeypatch, links):
    path = tmp_path / "a.tar"

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO if links else errno.EPERM, "refused")

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_folder", fail)
        if links:
            patch.setattr(Path, "unlink", fail)  # so that a whole file stays
        else:
            patch.setattr(os, "link", fail)
        with pytest.raises(OSError, match="refused"):
            write_new(path, b"first")
    assert path.exists() == links
    write_new(path)
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["a.tar"]


def test_without_hard_links_a_new_file_is_renamed(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    write_new(tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["a.tar"]


def test_what_a_running_process_needs_is_no_leftover(tmp_path):
    path = tmp_path / "a.tar"
    stray = tmp_path / ".a.tar.0123abcd.new"
    stray.write_bytes(b"of a killed run")
    kept = [tmp_path / name for name in (".a.tar.backup.new", ".b.tar.0123abcd.new", "a.tar.new")]
    for other in kept:
        other.write_bytes(b"not ours")
    with new_file(path) as file:
        assert not stray.exists()
        file.write(b"ours")
        with new_file(tmp_path / "a.tar") as other:
            other.write(b"theirs")
        path.unlink()
    assert path.read_bytes() == b"ours"
    assert sorted(tmp_path.iterdir()) == sorted([path, *kept])


def test_hidden_folders_of_killed_runs_are_deleted(tmp_path):
    final = tmp_path / "images"
    stray = tmp_path / ".images.0123abcd.new" / "collection"
    stray.mkdir(parents=True)
    (stray / "file").write_bytes(b"1")
    with hidden_folder(final) as first:
        assert not stray.parent.exists()
        (first / "file").write_bytes(b"2")
        with hidden_folder(final) as second:
            assert first.exists()
            assert second != first
        first.rename(final)
    assert os.listdir(tmp_path) == ["images"]


def test_names_of_any_length_can_be_new(tmp_path):
    path = tmp_path / ("ä" * 127)
    write_new(path)
    assert path.read_bytes() == b"whole"
    with new_file(tmp_path / "b"):
        (hidden,) = (name for name in os.listdir(tmp_path) if name.startswith("."))
        assert re.fullmatch(r"\.b\.[0-9a-f]{8}\.new", hidden)


def test_the_lock_has_one_holder(tmp_path):
    first = lock_file(tmp_path / "lock", "here")
    with pytest.raises(CollectionLockedError, match="in this process already") as caught:
        lock_file(tmp_path / "lock", "here")
    assert caught.value.location == "here"
    assert caught.value.same_process
    first.close()
    lock_file(tmp_path / "lock", "here").close()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "no permission"),
        (errno.EROFS, "the file system is read-only"),
        (errno.ENOSPC, "no space left"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_os_errors_say_what_to_do(number, advice):
    with (
        pytest.raises(StoreError, match=f"cannot write x: {advice}") as caught,
        os_errors_as_store_errors("write", Path("x")),
    ):
        raise OSError(number, os.strerror(number))
    assert isinstance(caught.value.__cause__, OSError)


def test_hidden_files_of_killed_runs_are_deleted(tmp_path):
    stray = tmp_path / ".upload.0123abcd.new"
    stray.write_bytes(b"half")
    with hidden_file(tmp_path / "upload") as first:
        assert not stray.exists()
        with hidden_file(tmp_path / "upload") as second:
            assert first.exists()
            second.replace(tmp_path / "b")
        first.write_bytes(b"a")
    assert os.listdir(tmp_path) == ["b"]
