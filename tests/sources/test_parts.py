"""Frames and pages, listed in the place of their films and documents."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from document_files import write_document
from film_files import number_of, write_film
from PIL import Image

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.images import DecoderPool, Part, image_file_id, part_id, part_of
from edje_qdrant.sources.open import open_source
from edje_qdrant.sources.parts import file_of, interval_of, join_failures, stored_part_id
from edje_qdrant.sources.protocol import ListedImage
from edje_qdrant.sources.read import read_image, stored_id
from edje_qdrant.types import FailedImage

pytest.importorskip("av")
pytest.importorskip("pypdfium2")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a film of 4 s, a document of 3 pages and an image."""
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "a film.mp4", 100)
    write_document(folder / "paper.pdf")
    Image.new("RGB", (8, 8)).save(folder / "z.png")
    return folder


def names(source: Any, **options: Any) -> list[str]:
    return [os.path.basename(item.path) for item in open_source(source, **options).images()]


FRAMES = ["a film.mp4#t=0", "a film.mp4#t=1.5", "a film.mp4#t=3"]
PAGES = ["paper.pdf#page=1", "paper.pdf#page=2", "paper.pdf#page=3"]


def test_folders_list_what_is_asked_for(films: Path) -> None:
    assert names(films) == ["z.png"]
    assert names(films, frames_every="1500ms") == [*FRAMES, "z.png"]
    assert names(films, pdf_pages=True) == [*PAGES, "z.png"]
    assert names(films, frames_every=1.5, pdf_pages=True) == [*FRAMES, *PAGES, "z.png"]
    assert open_source(films, frames_every=1.5, pdf_pages=True).count() == 7


def test_files_that_are_named_are_listed(films: Path, tmp_path: Path) -> None:
    film, paper = films / "a film.mp4", films / "paper.pdf"
    assert names(film, frames_every=1.5) == FRAMES
    assert names(paper) == PAGES
    fields = {"album": "2024", "video": "mine"}
    listed = [*open_source([(film, fields), (paper, fields)], frames_every=1.5).images()]
    assert [item.path for item in listed] == [str(films / name) for name in (*FRAMES, *PAGES)]
    assert listed[0].fields == {"album": "2024"}  # `video` is the film
    manifest = tmp_path / "a.jsonl"
    manifest.write_text(f'{{"path": "{paper}", "year": 2024}}\n')
    (first, *_) = open_source(manifest).images()
    assert isinstance(first, ListedImage)
    assert first.fields["year"] == 2024


def test_ids_depend_on_bytes_and_place_only(films: Path, tmp_path: Path) -> None:
    def ids(folder: Path, every: str) -> dict[str, str]:
        listed = open_source(folder, frames_every=every, pdf_pages=True).images()
        parts = [item.part for item in listed if isinstance(item, ListedImage)]
        return {os.path.basename(part.name): stored_part_id(part) for part in parts if part}

    known = ids(films, "1500ms")
    assert len(set(known.values())) == 6
    finer = ids(films, "500ms")
    assert {name: finer[name] for name in known} == known
    (tmp_path / "a film.mp4").write_bytes((films / "a film.mp4").read_bytes())
    assert ids(tmp_path, "1500ms") == {name: known[name] for name in FRAMES}
    # They are stored, and must stay the same for ever.
    part = Part("/a.mp4", "frame", 1500)
    assert (
        part_id("0c7e1d34-1111-5111-8111-000000000000", part.fragment)
        == "4a721190-0d0e-5d41-9c7d-2bd97b990ae4"
    )


def test_one_door_reads_frames_and_pages(films: Path, tmp_path: Path) -> None:
    path = f"{films}/a film.mp4#t=1.5"
    content = read_image(path)
    still = tmp_path / "still.png"
    still.write_bytes(content)
    with Image.open(still) as image:
        assert (image.format, image.size) == ("PNG", (64, 48))
        assert round(number_of(image)) == 37
    (_, second, _) = open_source(films / "a film.mp4", frames_every=1.5).images()
    assert stored_id(path, content) == stored_part_id(second.part)
    page = read_image(f"{films}/paper.pdf#page=2")
    assert page.startswith(b"\x89PNG")
    with pytest.raises(ImageReadError, match="the document has 3 pages"):
        read_image(f"{films}/paper.pdf#page=9")


@pytest.mark.parametrize(
    ("path", "file", "kind", "at"),
    [("/a.mp4#t=12", "/a.mp4", "frame", 12_000), ("/a.mp4#t=0.125", "/a.mp4", "frame", 125),
     ("https://host/a.mp4#t=1.5", "https://host/a.mp4", "frame", 1500),
     ("/a#b.pdf#page=3", "/a#b.pdf", "page", 3)],
)  # fmt: skip
def test_stored_paths_name_parts(path: str, file: str, kind: str, at: int) -> None:
    part = part_of(path)
    assert part is not None
    assert (part.path, part.kind, part.at, part.name) == (file, kind, at, path)
    assert file_of(path) == file


def test_a_file_with_such_a_name_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "a.png#t=1"
    assert part_of(str(path)) is not None
    path.write_bytes(b"x")
    assert part_of(str(path)) is None
    for other in ("/a.png", "/a.mp4#t=", "/a.mp4#t=1,2", "/a.pdf#page=0", "/1.tar#member=a.png"):
        assert part_of(other) is None


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("2s", 2000), ("500ms", 500), ("1m", 60_000), ("2", 2000), (2, 2000), (0.04, 40),
     ("1.5 s", 1500), ("1h", 3_600_000)],
)  # fmt: skip
def test_intervals(text: str | float, milliseconds: int) -> None:
    assert interval_of(text) == milliseconds


@pytest.mark.parametrize(
    "text", ["", "0", "-1s", "2 x", "s", "nan", "1e3", "0.0001s", "25h", "١s x", True, "1 2"]
)
def test_what_is_no_interval(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"frames_every is .*; give the time .* as 2s, 500ms, 1m"):
        interval_of(text)


def test_messages_name_the_options(films: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a film.mp4 is a film; give .* --frames-every 2s"):
        open_source(films / "a film.mp4")
    (only,) = open_source([films / "a film.mp4"]).images()
    assert isinstance(only, FailedImage)
    assert only.reason == "a film; its frames are read with --frames-every 2s (frames_every)"
    for name in ("a film.mp4", "paper.pdf"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"films are read with --frames-every.*PDF.*--pdf-pages"):
        open_source(tmp_path)


def test_files_that_cannot_be_read_are_listed_as_failed(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no film")
    write_document(tmp_path / "b.pdf", encrypted=True)
    source = open_source(tmp_path, frames_every="2s", pdf_pages=True)
    reasons = [item.reason for item in source.images() if isinstance(item, FailedImage)]
    assert reasons[0].startswith("not a film, or a damaged one")
    assert reasons[1].startswith("an encrypted PDF document")
    assert source.count() == 2


def test_an_incomplete_film_is_named_once(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", 250, container_options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 4 // 5])
    *listed, last = open_source(path, frames_every="1s").images()
    assert 1 <= len(listed) < 10
    assert all(isinstance(item, ListedImage) for item in listed)
    assert isinstance(last, FailedImage)
    assert re.fullmatch(
        r"an incomplete film, which ends after 0:0\d of 0:10; the frames until there were read",
        last.reason,
    )


def test_failures_of_a_file_become_one() -> None:
    failed = [
        FailedImage("/a.png", "no"), FailedImage("/a.mp4#t=4", "damaged"), FailedImage("/b", "no"),
        FailedImage("/a.mp4#t=6", "damaged"), FailedImage("/a.mp4#t=8", "damaged"),
        FailedImage("/a.pdf#page=2", "no"), FailedImage("/a.pdf#page=3", "no"),
    ]  # fmt: skip
    assert join_failures(failed) == [
        FailedImage("/a.png", "no"),
        FailedImage("/a.mp4#t=4", "damaged (and 2 other frames of it)"),
        FailedImage("/b", "no"),
        FailedImage("/a.pdf#page=2", "no (and 1 other page of it)"),
    ]


def test_a_file_that_changed_meets_no_stale_frame(films: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes((films / "a film.mp4").read_bytes())
    first, *_ = open_source(path, frames_every="1s").images()
    assert isinstance(first, ListedImage)
    assert first.part is not None
    with DecoderPool(1) as decoders:
        assert decoders.decode(first.part).width == 64
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(ImageReadError, match="the file changed while it was read"):
            decoders.decode(first.part)
        assert image_file_id(str(path)) != image_file_id(str(films / "a film.mp4"))
