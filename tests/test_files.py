from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edje_qdrant.errors import CollectionLockedError, StoreError
from edje_qdrant.files import lock_file, os_errors_as_store_errors, write_atomically


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


def test_the_lock_has_one_holder(tmp_path):
    first = lock_file(tmp_path / "lock", "here")
    with pytest.raises(CollectionLockedError, match="another process") as caught:
        lock_file(tmp_path / "lock", "here")
    assert caught.value.location == "here"
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
