from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edje_qdrant.data.annotations import Annotation
from edje_qdrant.errors import ConfigError
from edje_qdrant.evaluation.gallery import build_gallery
from edje_qdrant.images import image_file_id

WriteImages = Callable[..., list[Path]]


@pytest.fixture
def annotations(tmp_path: Path, write_images: WriteImages) -> list[Annotation]:
    """Four images; the last is the first one's bytes, the third does not exist."""
    paths = [str(path) for path in write_images(tmp_path, 2)]
    paths += [str(tmp_path / "gone.png"), str(tmp_path / "copy.png")]
    shutil.copy(paths[0], paths[3])
    captions = [("one", "two"), ("three",), ("four", "five"), ("six",)]
    return [
        Annotation(path, texts, f"d.jsonl:{n}")
        for n, (path, texts) in enumerate(zip(paths, captions, strict=True), start=1)
    ]


def test_equal_bytes_are_one_picture_with_all_captions(annotations: list[Annotation]) -> None:
    gallery = build_gallery(annotations)
    assert gallery.paths == (annotations[0].image, annotations[1].image)
    assert gallery.image_ids == tuple(image_file_id(path) for path in gallery.paths)
    assert gallery.captions == ("one", "two", "six", "three")
    assert gallery.owner.tolist() == [0, 0, 0, 1]
    assert gallery.twins == 1
    assert [Path(f.path).name for f in gallery.failed] == ["gone.png"]
    assert gallery.lost_captions == 2


def test_a_twin_is_asked_if_either_is(annotations: list[Annotation]) -> None:
    assert build_gallery(annotations).asked.tolist() == [True, True]
    assert build_gallery(annotations, asked=annotations[3:]).asked.tolist() == [True, False]
    assert build_gallery(annotations, asked=annotations[1:2]).asked.tolist() == [False, True]


def test_pictures_that_fail_later_leave_with_their_captions(annotations: list[Annotation]) -> None:
    gallery = build_gallery(annotations)
    fewer = gallery.without({gallery.paths[0]: "broken"})
    assert (len(fewer), fewer.captions, fewer.owner.tolist()) == (1, ("three",), [0])
    assert [f.reason for f in fewer.failed][1:] == ["broken"]
    assert fewer.lost_captions == 5
    assert gallery.without({}) is gallery
    assert fewer.digest() != gallery.digest()
    with pytest.raises(ConfigError, match="no image is left to evaluate"):
        gallery.without(dict.fromkeys(gallery.paths, "broken"))


def test_a_caption_without_a_word_names_file_and_line(annotations: list[Annotation]) -> None:
    odd = Annotation(annotations[0].image, ("?!",), "d.jsonl:9")
    with pytest.raises(ConfigError, match=r"^d\.jsonl:9: the caption '\?!'"):
        build_gallery([*annotations, odd])


def test_a_wrong_folder_is_an_error_and_no_empty_table(annotations: list[Annotation]) -> None:
    with pytest.raises(ConfigError, match=r"1 cannot be read \(.*gone\.png: .*--images"):
        build_gallery(annotations[2:3])


def test_a_pipe_or_an_empty_file_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    found = [
        Annotation(str(tmp_path / name), ("a",), "d:1") for name in ("empty.png", "n\0ull.png", "")
    ]
    with pytest.raises(ConfigError, match="3 cannot be read"):
        build_gallery(found)


def test_the_digest_does_not_mind_the_order(annotations: list[Annotation]) -> None:
    assert build_gallery(annotations).digest() == build_gallery(annotations[::-1]).digest()
    assert np.issubdtype(build_gallery(annotations).owner.dtype, np.integer)
