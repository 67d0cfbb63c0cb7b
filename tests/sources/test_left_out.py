from __future__ import annotations

import json
from pathlib import Path

import pytest

from edje_qdrant.errors import ConfigError
from edje_qdrant.sources.left_out import file_kind, folder_kind
from edje_qdrant.sources.open import open_source


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_what_a_folder_holds_beside_images_is_counted_by_kind(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "trip/b.NEF", "trip/c.mov", "trip/d.MOV", "trip/notes.txt", "README")
    touch(tmp_path, "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "trip/@eaDir/b.jpg", "__MACOSX/._a.jpg")
    touch(tmp_path, ".DS_Store", "trip/._a.jpg", ".thumbnails/1.png", "trip/Thumbs.db")
    touch(tmp_path, "Lightroom Previews.lrdata/1/a.jpg", "a.xmp", "b.psd", "c.3fr", "d.pdf")
    touch(tmp_path.parent / f"{tmp_path.name}-other", "e.jpg")
    (tmp_path / "link").symlink_to(f"{tmp_path}-other", target_is_directory=True)
    source = open_source(tmp_path)
    for _ in range(2):
        assert [Path(image.path).name for image in source.images()] == ["a.jpg", "b.NEF"]
        assert source.left_out == {
            "video (.mov)": 2,
            "no image (.txt)": 1,
            "no image (without suffix)": 1,
            "folder of thumbnails (@eaDir)": 2,
            "folder of thumbnails (Lightroom Previews.lrdata)": 1,
            "folder of the system (__MACOSX)": 1,
            "hidden file": 2,
            "hidden folder": 1,
            "file of the system (Thumbs.db)": 1,
            "note beside an image (.xmp)": 1,
            "image in a format that is not read (.psd)": 1,
            "camera's RAW file that is not read (.3fr)": 1,
            "document (.pdf)": 1,
            "link to a folder (link)": 1,
        }


def test_of_photo_libraries_the_originals_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "P.photoslibrary/originals/0/a.heic", "P.photoslibrary/resources/t/a.jpg")
    touch(tmp_path, "P.photoslibrary/database/x.db", "iPhoto Library/Masters/2011/b.jpg")
    touch(tmp_path, "iPhoto Library/Previews/2011/b.jpg", "resources/c.jpg")
    source = open_source(tmp_path)
    assert [Path(image.path).name for image in source.images()] == ["a.heic", "b.jpg", "c.jpg"]
    kind = "folder of a photo library beside its originals"
    assert source.left_out == {
        f"{kind} ({name})": 1 for name in ("database", "resources", "Previews")
    }
    inside = open_source(tmp_path / "P.photoslibrary")
    assert [Path(image.path).name for image in inside.images()] == ["a.heic"]


@pytest.mark.parametrize("name", ["thumbs", "@eaDir", ".hidden"])
def test_a_folder_that_is_named_is_listed_whatever_its_name(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/a.png")
    with pytest.raises(ConfigError, match=r"holds no image, only 1 x .*folder"):
        open_source(tmp_path)
    assert open_source(tmp_path / name).count() == 1


def test_names_are_compared_without_case() -> None:
    assert folder_kind("$Recycle.Bin", "") == "folder of the system ($Recycle.Bin)"
    assert folder_kind("System Volume Information", "") is not None
    assert folder_kind("CaptureOne", "2024") == "folder of thumbnails (CaptureOne)"
    assert folder_kind("eaDir", "2024") is None
    assert file_kind("THUMBS.DB") == "file of the system (THUMBS.DB)"
    assert file_kind("Icon\r") == "file of the system (Icon)"
    assert file_kind("a.b.MP4") == "video (.mp4)"


def test_a_manifest_of_which_no_line_has_a_path_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    lines = [{"filename": f"{number}.jpg", "text": "a cat"} for number in range(3)]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ConfigError) as caught:
        open_source(path)
    message = str(caught.value)
    assert f"no line of the manifest {path} names an image" in message
    assert f"{path}:1" in message
    assert "its fields are 'filename', 'text'" in message
    path.write_text('{"filename": "a.jpg"}\n{"path": "b.jpg"}\n')
    assert open_source(path).count() == 2
