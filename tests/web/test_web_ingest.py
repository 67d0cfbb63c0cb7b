from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from edje_qdrant.web import uploads


def picture(colour=(200, 30, 30), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, kind)
    return buffer.getvalue()


def send(client, *files, **data):
    return client.post("/v1/ingest", files=[("files", file) for file in files], data=data)


@pytest.fixture
def taking(serve):
    return serve(ingest=True, max_files=3)


def test_an_uploaded_picture_is_kept_and_found(taking, folder):
    answer = send(taking, ("../../red.png", picture()), fields='{"album": "new"}')
    done = answer.json()
    assert (done["added"], done["skipped"], done["failed"]) == (1, 0, [])
    (image_id,) = done["image_ids"]
    told = taking.get(f"/v1/images/{image_id}").json()
    assert told["payload"]["path"] == f"uploads/{image_id}.png"
    assert told["payload"]["name"] == "../../red.png"
    assert taking.get(told["file"]).content == picture()
    found = taking.post("/v1/search", json={"text": "red", "filter": {"album": "new"}}).json()
    assert [hit["image_id"] for hit in found["hits"]] == [image_id]
    assert [path.name for path in (folder / "pictures" / "uploads").iterdir()] == [
        f"{image_id}.png"
    ]
    assert not (folder / "red.png").exists()


def test_the_same_picture_with_other_fields_is_updated(taking):
    (image_id,) = send(taking, ("red.png", picture()), fields='{"album": "a", "n": 1}').json()[
        "image_ids"
    ]

    def again(fields):
        done = send(taking, ("other.png", picture()), fields=fields).json()
        assert done["image_ids"] == [image_id]
        return done["added"], done["updated"], done["skipped"]

    assert again('{"album": "a"}') == (0, 0, 1)
    assert again("") == (0, 0, 1)
    assert again('{"album": "b", "n": null}') == (0, 1, 0)
    payload = taking.get(f"/v1/images/{image_id}").json()["payload"]
    assert (payload["album"], payload.get("n"), payload["name"]) == ("b", None, "red.png")
    done = send(taking, ("a.png", picture()), ("b.png", picture()), fields='{"n": 2}').json()
    assert (done["added"], done["updated"], done["skipped"]) == (0, 1, 1)
    new = picture((1, 2, 3))
    done = send(taking, ("a.png", new), ("b.png", new), fields='{"n": 2}').json()
    assert (done["added"], done["updated"], done["skipped"]) == (1, 0, 1)


def test_what_is_there_is_skipped_and_what_is_broken_is_named(taking, folder):
    send(taking, ("red.png", picture()))
    broken = picture((1, 2, 3))[:-40]
    done = send(
        taking, ("again.png", picture()), ("page.html", b"<html>"), ("cut.png", broken)
    ).json()
    assert (done["added"], done["skipped"]) == (0, 1)
    assert [failure["name"] for failure in done["failed"]] == ["page.html", "cut.png"]
    assert len([*(folder / "pictures" / "uploads").iterdir()]) == 1


def test_the_name_says_nothing_of_the_kind(taking):
    done = send(taking, ("photo.png", picture(kind="JPEG"))).json()
    (image_id,) = done["image_ids"]
    sent = taking.get(f"/v1/images/{image_id}/file")
    assert sent.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    "fields",
    [
        "[]",
        "{",
        '{"path": "/etc/passwd"}',
        '{"other_paths": ["/etc/passwd"]}',
        '{"_edje": 1}',
        "NaN",
        '{"n": 18446744073709551617}',
    ],
)
def test_fields_are_checked_before_anything_is_kept(taking, folder, fields):
    answer = send(taking, ("red.png", picture()), fields=fields)
    assert (answer.status_code, answer.json()["error"]) == (400, "ConfigError")
    assert not (folder / "pictures" / "uploads").exists()


def test_no_more_files_than_may_be(taking):
    files = [(f"{n}.png", picture((n, 0, 0))) for n in range(4)]
    answer = send(taking, *files)
    assert (answer.status_code, answer.json()["error"]) == (413, "TooLarge")


def test_nothing_is_taken_unless_it_was_asked_for(client):
    answer = send(client, ("red.png", picture()))
    assert (answer.status_code, answer.json()["error"]) == (403, "IngestOff")


def test_an_uploaded_photograph_of_a_phone_keeps_its_date_but_not_its_place(taking):
    pytest.importorskip("pi_heif")
    content = (Path(__file__).parents[1] / "images/heif/photograph.heic").read_bytes()
    done = send(taking, ("IMG_1.HEIC", content), fields='{"lens": "mine"}').json()
    assert (done["added"], done["failed"]) == (1, [])
    (image_id,) = done["image_ids"]
    payload = taking.get(f"/v1/images/{image_id}").json()["payload"]
    assert payload.pop("modified_at") == done["since"]
    assert payload == {
        "path": f"uploads/{image_id}.heic",
        "name": "IMG_1.HEIC",
        "width": 64,
        "height": 48,
        "taken_at": "2024-07-14T18:30:05+01:00",
        "camera": "Fairphone FP5",
        "lens": "mine",
        "file_size": len(content),
    }


def test_uploads_have_the_time_of_their_upload(taking):
    """So that they come first where images without a date of their own are shown newest first."""
    first = send(taking, ("red.png", picture())).json()
    second = send(taking, ("red.png", picture()), ("blue.png", picture((0, 0, 200)))).json()
    assert first["since"] < second["since"]
    listed = taking.get("/v1/images", params={"where": f"modified_at>={second['since']}"}).json()
    (shown,) = listed["pictures"]
    assert shown["image_id"] == second["image_ids"][1]
    assert send(taking, ("red.png", picture())).json()["since"] is None


def test_uploads_are_counted(taking):
    send(taking, ("red.png", picture()), ("x.png", b"x"))
    metrics = taking.get("/metrics").text
    assert 'edje_ingested_pictures_total{outcome="added"} 1.0' in metrics
    assert 'edje_ingested_pictures_total{outcome="failed"} 1.0' in metrics


def test_what_a_killed_upload_left_goes_with_the_next(tmp_path):
    left = tmp_path / ".parts" / ".upload.0123abcd.new"
    left.parent.mkdir()
    left.write_bytes(b"half")
    uploads._write(tmp_path / "a.png", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"whole"
