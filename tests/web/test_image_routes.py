from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_qdrant.images import DecoderPool
from edje_qdrant.sources.image_folder import ImageFolder, Thumbnails


def payload(client, n=0):
    return client.retriever.collection.index.retrieve([client.ids[n]], tokens=False)[client.ids[n]]


def move(client, path, n=0):
    """Let the collection say that an image lies elsewhere."""
    client.retriever.collection.update_payload({client.ids[n]: {"path": str(path)}})


def gone(client, n=0):
    """Check that an image is answered for as one that never was."""
    for kind in ("file", "thumbnail"):
        answer = client.get(f"/v1/images/{client.ids[n]}/{kind}")
        assert answer.status_code == 404
        assert answer.json()["message"] == "there is no such image here"
    return True


def test_a_picture_is_told_of_and_shown(client):
    told = client.get(f"/v1/images/{client.ids[2]}").json()
    assert told["payload"]["path"] == "picture-0002.png"
    assert told["payload"]["page"] == 2
    assert "_edje" not in told["payload"]
    sent = client.get(told["file"])
    assert sent.headers["content-type"] == "image/png"
    assert sent.content == Path(payload(client, 2)["path"]).read_bytes()
    small = client.get(told["thumbnail"], params={"size": "160"})
    assert small.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(small.content)) as image:
        assert image.size == (50, 40)
    again = client.get(told["thumbnail"], headers={"If-None-Match": sent.headers["etag"]})
    assert again.status_code == 200
    tag = {"If-None-Match": sent.headers["etag"]}
    assert client.get(told["file"], headers=tag).status_code == 304


def test_some_pictures_are_listed(client):
    listed = client.get("/v1/images", params={"limit": 5}).json()["pictures"]
    assert len(listed) == 5
    assert {picture["image_id"] for picture in listed} <= {*client.ids}


def pages(client, **asked):
    """Return the ids of every page, and the last answer."""
    found, cursor = [], None
    while True:
        answer = client.get(
            "/v1/images", params={**asked, **({"cursor": cursor} if cursor else {})}
        )
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += [picture["image_id"] for picture in page["pictures"]]
        cursor = page["cursor"]
        if cursor is None:
            return found, page


def test_pictures_are_listed_by_id_without_an_index_of_dates(client):
    found, last = pages(client, limit=7)
    assert sorted(client.ids) == found
    assert last["order"] == "id"
    assert "--payload-index taken_at=datetime" in last["reason"]


def test_pictures_are_listed_newest_first(client):
    collection = client.retriever.collection
    days = {each: {"taken_at": f"2024-01-{n + 1:02}"} for n, each in enumerate(client.ids[:9])}
    collection.update_payload({**days, client.ids[9]: {"modified_at": "2024-01-04T12:00:00Z"}})
    for field in ("taken_at", "modified_at"):
        collection.create_payload_index(field, "datetime")
    ids = client.ids
    found, last = pages(client, limit=4)
    assert found == [*ids[8:3:-1], ids[9], *ids[3::-1], *sorted(ids[10:])]
    assert last["order"] == "newest"
    assert last["reason"] is None
    found, _ = pages(client, limit=4, filter=json.dumps({"page": [1, 2, 11]}))
    assert found == [ids[2], ids[1], ids[11]]


@pytest.mark.parametrize("cursor", ["AAAA", "bm9uZQ", "W1sicGFnZSJdLFtbXSxudWxsXV0", "W1tdLDdd"])
def test_cursors_of_other_lists(client, cursor):
    answer = client.get("/v1/images", params={"cursor": cursor})
    assert answer.status_code == 400
    assert "first page" in answer.json()["message"]


def test_files_outside_the_folder_are_not_there(client, folder):
    secret = folder / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    for path in (secret, "../secret.png", folder / "pictures" / ".." / "secret.png", "/etc/passwd"):
        move(client, path)
        assert gone(client)
        told = client.get(f"/v1/images/{client.ids[0]}").json()
        assert told["file"] is None
        assert str(folder) not in json.dumps(told)


def test_links_out_of_the_folder_are_not_followed(client, folder):
    secret = folder / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    link = folder / "pictures" / "link.png"
    link.symlink_to(secret)
    move(client, link)
    assert gone(client)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "in.png").write_bytes(secret.read_bytes())
    (folder / "pictures" / "sub").symlink_to(folder / "elsewhere")
    move(client, folder / "pictures" / "sub" / "in.png")
    assert gone(client)


def test_a_link_within_the_folder_is_followed(client, folder):
    (folder / "pictures" / "link.png").symlink_to(folder / "pictures" / "picture-0001.png")
    move(client, folder / "pictures" / "link.png")
    assert client.get(f"/v1/images/{client.ids[0]}/file").status_code == 200


def test_a_folder_beside_with_a_longer_name_is_outside(client, folder):
    beside = folder / "pictures-private"
    beside.mkdir()
    Image.new("RGB", (4, 4)).save(beside / "a.png")
    move(client, beside / "a.png")
    assert gone(client)


@pytest.mark.parametrize("path", ["a\0b.png", "", ".", "x" * 5000, "picture-0000.png/x"])
def test_odd_paths_are_not_there(client, path):
    move(client, path)
    assert gone(client)


def test_what_is_no_picture_is_not_sent(client, folder):
    (folder / "pictures" / "notes.png").write_text("<script>alert(1)</script>")
    move(client, folder / "pictures" / "notes.png")
    assert gone(client)


def test_a_pipe_is_not_waited_on(client, folder):
    os.mkfifo(folder / "pictures" / "pipe.png")
    move(client, folder / "pictures" / "pipe.png")
    assert gone(client)


def test_without_a_folder_nothing_is_shown(serve):
    client = serve(images=None)
    assert gone(client)
    assert client.get(f"/v1/images/{client.ids[0]}").json()["payload"]["path"] == "picture-0000.png"


@pytest.mark.parametrize(
    "image_id",
    ["nothing", "00000000-0000-4000-8000-000000000000", "..%2F..%2Fetc%2Fpasswd", "%00", "1" * 300],
)
def test_unknown_ids_are_not_there(client, image_id):
    assert client.get(f"/v1/images/{image_id}").status_code == 404
    assert client.get(f"/v1/images/{image_id}/file").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd"],
)
def test_the_pages_files_alone_are_sent(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"] == "NotFound"


@pytest.fixture
def decoders():
    with DecoderPool(1, max_pixels=10_000) as pool:
        yield pool


def test_thumbnails_are_kept_within_bounds_and_not_longer_than_their_picture(tmp_path, decoders):
    folder = ImageFolder(tmp_path, decoders)
    thumbnails = Thumbnails(folder, max_bytes=3 * 4096 + 1000)
    for n in range(6):
        Image.new("RGB", (20, 20), (n, 0, 0)).save(tmp_path / f"{n}.png")
        assert thumbnails.get(str(n), {"path": f"{n}.png"}, 160)
    assert len(thumbnails._cache) <= 3
    (tmp_path / "5.png").unlink()
    assert thumbnails.get("5", {"path": "5.png"}, 160) is None


def test_thumbnails_show_what_the_model_sees(tmp_path, decoders):
    drawing = Image.new("RGBA", (20, 20), (0, 0, 0, 0))  # black on transparent ground
    drawing.paste((0, 0, 0, 255), (0, 0, 10, 20))
    drawing.save(tmp_path / "drawing.png")
    deep = np.full((20, 20), 4095, dtype=np.uint16)  # 12 bits in 16
    deep[:, :10] = 0
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    thumbnails = Thumbnails(ImageFolder(tmp_path, decoders), max_bytes=1 << 20)
    for name in ("drawing.png", "deep.tif"):
        small = thumbnails.get(name, {"path": name}, 160)
        with Image.open(io.BytesIO(small)) as image:
            assert image.mode == "RGB"
            assert max(image.getpixel((3, 10))) < 10
            assert min(image.getpixel((17, 10))) > 245


def test_pictures_too_large_to_show_are_not_decoded(tmp_path, decoders):
    Image.new("L", (101, 100)).save(tmp_path / "a.png")
    folder = ImageFolder(tmp_path, decoders)
    assert folder.decode({"path": "a.png"}) is None
    assert folder.read({"path": "a.png"}) is not None
