"""Images that a service shows: only those below the places that its operator named."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_server import ImageServer
from PIL import Image

from edje_qdrant.errors import ConfigError
from edje_qdrant.images import DecoderPool
from edje_qdrant.sources.image_folder import ImageFolder, Thumbnails
from edje_qdrant.sources.uris import is_below
from edje_qdrant.web.settings import ServiceSettings


@pytest.fixture
def decoders() -> Iterator[DecoderPool]:
    with DecoderPool(1) as pool:
        yield pool


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    folder = tmp_path / "shown"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    with tarfile.open(folder / "a.tar", "w") as file:
        file.add(tmp_path / "a.png", "in/a.png")
    return folder / "a.tar"


def test_the_paths_of_copies_are_not_shown(tmp_path: Path, decoders: DecoderPool) -> None:
    folder = ImageFolder(tmp_path, decoders)
    payload = {"path": str(tmp_path / "a.png"), "other_paths": ["/home/me/secret/a.png"], "n": 1}
    assert folder.shown(payload) == {"path": "a.png", "n": 1}
    assert folder.shown({"other_paths": ["/home/me/secret/a.png"]}) == {}


def test_members_of_tar_files_in_the_folder_are_shown(tar: Path, decoders: DecoderPool) -> None:
    folder = ImageFolder(tar.parent, decoders)
    inside = {"path": f"{tar}#member=in/a.png"}
    assert folder.has(inside)
    assert folder.shown(inside) == {"path": "a.tar#member=in/a.png"}
    served = folder.read(inside)
    assert served is not None
    assert served.media_type == "image/png"
    assert Thumbnails(folder, 1 << 20).get("1", inside, 160)
    assert folder.read({"path": f"{tar}#member=in/b.png"}) is None

    outside = tar.parent.parent / "b.tar"
    outside.write_bytes(tar.read_bytes())
    link = tar.parent / "link.tar"
    link.symlink_to(outside)
    for path in (outside, link, f"{tar.parent}/../b.tar"):
        assert not folder.has({"path": f"{path}#member=in/a.png"})
        assert folder.read({"path": f"{path}#member=in/a.png"}) is None
    if hasattr(os, "mkfifo"):
        os.mkfifo(tar.parent / "pipe.tar")
        assert not folder.has({"path": f"{tar.parent}/pipe.tar#member=in/a.png"})
    assert not ImageFolder(None, decoders).has(inside)


def test_addresses_are_read_only_below_those_that_are_named(
    tmp_path: Path, tar: Path, decoders: DecoderPool
) -> None:
    with ImageServer() as server:
        for path in ("/shown/a.png", "/shown-not/a.png", "/a.png"):
            server.files[path] = (tmp_path / "a.png").read_bytes()
        server.files["/shown/a.tar"] = tar.read_bytes()
        folder = ImageFolder(None, decoders, addresses=[f"{server.url}/shown/"])
        for path in ("/shown/a.png", "/shown/a.tar#member=in/a.png"):
            shown = {"path": server.url + path}
            assert folder.has(shown)
            assert folder.read(shown) is not None
            assert folder.thumbnail(shown, 160)
            assert folder.shown(shown) == shown
        asked = sum(server.asked.values())
        for path in ("/shown-not/a.png", "/a.png", "/shown/../a.png", "/shown/%2e%2e/a.png"):
            hidden = {"path": server.url + path}
            assert not folder.has(hidden)
            assert folder.read(hidden) is None
            assert folder.decode(hidden) is None
            assert folder.shown(hidden) == {"path": "a.png"}
        nowhere = ImageFolder(tmp_path, decoders)
        assert nowhere.read({"path": f"{server.url}/shown/a.png"}) is None
        assert sum(server.asked.values()) == asked
        signed = {"path": f"{server.url}/shown/a.png?signature=secret"}
        assert folder.shown(signed) == {"path": f"{server.url}/shown/a.png"}


@pytest.mark.parametrize(
    ("uri", "prefix", "below"),
    [
        ("s3://bucket/a/b.jpg", "s3://bucket/a/", True),
        ("s3://bucket/a/b.jpg", "s3://bucket/a", True),
        ("s3://bucket/ab.jpg", "s3://bucket/a", False),
        ("https://host.evil/a", "https://host", False),
        ("https://host@evil/a", "https://host", False),
        ("https://host:8/a", "https://host", False),
        ("https://host/a", "https://host", True),
        ("https://host/a/%252e%252e/b", "https://host/a/", False),
        ("https://host/a/..\\b", "https://host/a/", False),
        ("http://host/a", "https://host/", False),
    ],
)
def test_what_lies_below_an_address(uri: str, prefix: str, below: bool) -> None:
    assert is_below(uri, prefix) is below


@pytest.mark.parametrize("address", ["s3://", "ftp://host/", "/folder", "s3:///a"])
def test_other_texts_are_no_addresses(address: str) -> None:
    with pytest.raises(ConfigError):
        ServiceSettings(image_addresses=(address,))
