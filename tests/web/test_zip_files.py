"""Image files as one zip file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from edje_qdrant.web.zip_files import entry_names


def opened(answer):
    assert answer.status_code == 200, answer.text
    return zipfile.ZipFile(io.BytesIO(answer.content))


def test_the_unchanged_files_come_in_one_zip_file(client):
    ids = [client.ids[3], client.ids[1], client.ids[3]]
    answer = client.post("/v1/images/zip", json={"image_ids": ids})
    assert answer.headers["content-type"] == "application/zip"
    assert "pictures.zip" in answer.headers["content-disposition"]
    with opened(answer) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["picture-0003.png", "picture-0001.png"]
        index = client.retriever.collection.index
        path = index.retrieve([client.ids[3]], tokens=False)[client.ids[3]]["path"]
        assert archive.read("picture-0003.png") == Path(path).read_bytes()


def test_what_is_not_there_is_listed(client, folder):
    outside = folder / "secret.png"
    outside.write_bytes(b"secret")
    client.retriever.collection.update_payload(
        {client.ids[0]: {"path": str(outside)}, client.ids[1]: {"path": "../../etc/passwd"}}
    )
    unknown = "5b0f6d0e-6d0b-5b52-9f0c-2f8f4d6c1a77"
    ids = [client.ids[0], client.ids[1], unknown, client.ids[2]]
    with opened(client.post("/v1/images/zip", json={"image_ids": ids})) as archive:
        assert archive.namelist() == ["picture-0002.png", "not-included.txt"]
        told = archive.read("not-included.txt").decode().splitlines()
        assert told[1:] == ["secret.png", "passwd", unknown]
    answer = client.post("/v1/images/zip", json={"image_ids": ids[:3]})
    assert answer.status_code == 404
    assert answer.json()["message"] == "there is no such image here"


def test_limits_of_a_zip_file(client, monkeypatch):
    settings = client.app.state.service.settings
    object.__setattr__(settings, "max_zip_files", 2)
    answer = client.post("/v1/images/zip", json={"image_ids": client.ids[:3]})
    assert answer.status_code == 413
    assert "may hold 2 images" in answer.json()["message"]
    object.__setattr__(settings, "max_zip_bytes", 10)
    answer = client.post("/v1/images/zip", json={"image_ids": client.ids[:2]})
    assert answer.status_code == 413
    assert "ask for fewer at a time" in answer.json()["message"]
    for wrong in ({}, {"image_ids": []}, {"image_ids": ["x"]}):
        assert client.post("/v1/images/zip", json=wrong).status_code == 422


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/b.jpg", "a/b.jpg", "A/B.JPG"], ["a/b.jpg", "a/b (2).jpg", "A/B (3).JPG"]),
        (["/etc/passwd", "../../x", "C:\\photos\\x.jpg"], ["etc/passwd", "x", "C_/photos/x.jpg"]),
        (["..", "", "./."], ["image", "image (2)", "image (3)"]),
        (["a\nb.png", "nul", "com1.png", "end. "], ["a_b.png", "_nul", "_com1.png", "end"]),
        (["not-included.txt"], ["not-included (2).txt"]),
        (["x" * 400 + ".jpeg"], ["x" * 145 + ".jpeg"]),
    ],
)
def test_names_in_a_zip_file_are_safe_and_unique(paths, names):
    assert entry_names(paths) == names
