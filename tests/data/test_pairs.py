from __future__ import annotations

import io
import json
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_qdrant.data.pairs import AnnotatedPairs, DatasetPairs, TarPairs, open_pairs
from edje_qdrant.errors import ConfigError, ImageReadError, MissingExtraError


def pixels(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed: int, **more: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "PNG", **more)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes | str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def same(image: Image.Image, seed: int) -> bool:
    return image.mode == "RGB" and np.array_equal(np.asarray(image), pixels(seed))


# Annotation files.


def annotated(folder: Path, items: list[dict[str, object]]) -> Path:
    path = folder / "pairs.json"
    path.write_text(json.dumps(items))
    return path


def test_captions_of_a_picture_named_twice_are_gathered(tmp_path):
    for seed in range(2):
        (tmp_path / f"{seed}.png").write_bytes(png(seed))
    items = [("0.png", "one"), ("1.png", ["two", "three"]), ("0.png", "four")]
    source = open_pairs(annotated(tmp_path, [{"image": i, "caption": c} for i, c in items]))
    assert isinstance(source, AnnotatedPairs)
    assert [source.captions(row) for row in range(len(source))] == [
        ("one", "four"),
        ("two", "three"),
    ]
    assert same(source.open(1), 1)
    assert source.key(0) == str(tmp_path / "0.png")


def test_pictures_are_upright_and_in_rgb(tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    (tmp_path / "turned.png").write_bytes(png(0, exif=exif))
    Image.fromarray(pixels(1)[..., 0]).save(tmp_path / "grey.png")
    items = [{"image": name, "caption": "a"} for name in ("turned.png", "grey.png")]
    source = AnnotatedPairs(annotated(tmp_path, items))
    assert np.array_equal(np.asarray(source.open(0)), pixels(0)[::-1, ::-1])
    assert source.open(1).mode == "RGB"


def test_a_broken_picture_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(png(0)[:50])
    items = [{"image": name, "caption": "a"} for name in ("broken.png", "missing.png")]
    source = AnnotatedPairs(annotated(tmp_path, items))
    for row, name in enumerate(("broken.png", "missing.png")):
        with pytest.raises(ImageReadError) as caught:
            source.open(row)
        assert caught.value.path == str(tmp_path / name)


def test_a_larger_picture_than_allowed_is_refused(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    path = annotated(tmp_path, [{"image": "0.png", "caption": "a"}])
    with pytest.raises(ImageReadError, match="no more than 40"):
        open_pairs(path, max_pixels=40).open(0)


def test_the_fingerprint_follows_the_pictures_and_not_their_captions(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))

    def fingerprint(caption: str) -> str:
        items = [{"image": name, "caption": caption} for name in ("0.png", "missing.png")]
        return AnnotatedPairs(annotated(tmp_path, items)).fingerprint

    first = fingerprint("a")
    assert int(first, 16) >= 0
    assert fingerprint("b") == first
    (tmp_path / "0.png").write_bytes(png(1) + b"longer")
    changed = fingerprint("a")
    assert changed != first
    (tmp_path / "missing.png").write_bytes(png(2))
    assert fingerprint("a") not in (first, changed)


def test_a_karpathy_split_is_chosen(tmp_path):
    images = [
        {"filename": f"{i}.png", "split": split, "sentences": [{"raw": f"image {i}"}]}
        for i, split in enumerate(["train", "val", "restval", "test"])
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images}))
    source = open_pairs(path, split="train", images=tmp_path / "pictures")
    assert [source.captions(row) for row in range(len(source))] == [("image 0",), ("image 2",)]
    assert source.key(0) == str(tmp_path / "pictures" / "0.png")
    assert "train" in source.name
    assert len(open_pairs(path, split="val")) == 1


# Tar shards.


def test_samples_are_read_from_shards_in_any_order(tmp_path):
    for shard in range(2):
        members: dict[str, bytes | str] = {}
        for i in range(3):
            seed = 3 * shard + i
            members[f"part/{seed:04d}.png"] = png(seed)
            members[f"part/{seed:04d}.txt"] = f" caption {seed}\n"
        write_tar(tmp_path / f"shard-{shard:03d}.tar", members)
    source = open_pairs(tmp_path / "shard-{000..001}.tar")
    assert isinstance(source, TarPairs)
    assert (len(source), source.skipped) == (6, ())
    for row in (5, 0, 3):
        assert source.captions(row) == (f"caption {row}",)
        assert same(source.open(row), row)
    assert source.key(4) == f"{tmp_path / 'shard-001.tar'}:part/0004"
    assert len({source.key(row) for row in range(6)}) == 6


def test_threads_read_at_once(tmp_path):
    members = {f"{i}.png": png(i) for i in range(8)} | {f"{i}.txt": "a" for i in range(8)}
    source = TarPairs(write_tar(tmp_path / "a.tar", members))
    with ThreadPoolExecutor(4) as pool:
        rows = [i % 8 for i in range(64)]
        assert all(pool.map(lambda row: same(source.open(row), row), rows))


def test_json_captions_may_be_a_text_or_a_list(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        {
            "0.jpeg": png(0),
            "0.json": json.dumps({"caption": ["one", "two", " ", 3]}),
            "1.webp": png(1),
            "1.json": json.dumps({"caption": "three"}),
            "2.JPG": png(2),
            "2.txt": " ",
            "2.json": json.dumps({"caption": "four"}),
        },
    )
    source = TarPairs(path)
    assert [source.captions(row) for row in range(3)] == [("one", "two"), ("three",), ("four",)]
    assert same(source.open(2), 2)


def test_samples_without_picture_or_caption_are_skipped_and_counted(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        {
            "no-picture.txt": "a",
            "no-caption.png": png(0),
            "blank.png": png(0),
            "blank.txt": "\n",
            "binary.png": png(0),
            "binary.txt": b"\xff\xfe\xff",
            "broken.png": png(0),
            "broken.json": "{",
            "odd.png": png(0),
            "odd.json": "[1]",
            "README": "no dot, no member",
            "._mac.png": "hidden",
            "good.png": png(1),
            "good.txt": "good",
        },
    )
    source = TarPairs(path)
    assert len(source) == 1
    assert source.captions(0) == ("good",)
    skipped = {failure.path.rpartition(":")[2]: failure.reason for failure in source.skipped}
    assert skipped.keys() == {"no-picture", "no-caption", "blank", "binary", "broken", "odd"}
    assert "txt" in skipped["no-picture"]
    assert "cannot be read" in skipped["broken"]


def test_a_broken_member_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"x.png": png(0)[:40], "x.txt": "a"})
    with pytest.raises(ImageReadError) as caught:
        TarPairs(path).open(0)
    assert caught.value.path == f"{path}:x.png"


def whole_tar(folder: Path) -> Path:
    members: dict[str, bytes | str] = {}
    for i in range(4):
        members |= {f"{i}.txt": f"{i}", f"{i}.png": png(i)}
    return write_tar(folder / "a.tar", members)


@pytest.mark.parametrize("lost", ["data", "header"])
def test_a_damaged_shard_gives_what_comes_before_and_says_so(tmp_path, lost):
    path = whole_tar(tmp_path)
    with tarfile.open(path) as tar:
        last = tar.getmember("3.png")
    content = bytearray(path.read_bytes())
    if lost == "data":
        path.write_bytes(content[: last.offset_data + 10])
    else:
        content[last.offset : last.offset + 20] = b"\xff" * 20
        path.write_bytes(content)
    source = TarPairs(path)
    assert len(source) == 3
    reasons = {failure.path: failure.reason for failure in source.skipped}
    assert reasons.keys() == {f"{path}:3", str(path)}
    assert "lost" in reasons[str(path)]


def test_a_shard_that_shrinks_after_it_was_opened_is_an_error_of_the_picture(tmp_path):
    path = whole_tar(tmp_path)
    source = TarPairs(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageReadError, match="shorter"):
        source.open(3)


@pytest.mark.parametrize(
    ("mode", "name"), [("w:gz", "a.tar.gz"), ("w:bz2", "a.tar"), ("w:xz", "a.tgz")]
)
def test_compressed_shards_are_refused(tmp_path, mode, name):
    path = write_tar(tmp_path / name, {"x.png": png(0), "x.txt": "a"}, mode)
    with pytest.raises(ConfigError, match=r"compressed.*decompress it with"):
        open_pairs(path)


@pytest.mark.parametrize("content", [b"", b"text" * 300])
def test_what_is_no_tar_file_is_refused(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ConfigError, match="not a tar file"):
        TarPairs(tmp_path / "a.tar")


def test_a_shard_without_samples_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"x.txt": "a"})
    with pytest.raises(ConfigError, match=r"no image with a caption .* no image among"):
        TarPairs(path)


def test_globs_lists_and_braces_name_shards(tmp_path):
    for name in ("a-8", "a-9", "a-10", "b-08", "b-09", "b-10"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.png": png(0), f"{name}.txt": name})

    def names(*patterns: str) -> list[str]:
        source = TarPairs([tmp_path / pattern for pattern in patterns])
        return [source.captions(row)[0] for row in range(len(source))]

    assert names("a-*.tar") == ["a-10", "a-8", "a-9"]
    assert names("a-{8..10}.tar") == ["a-8", "a-9", "a-10"]
    assert names("b-{08..10}.tar") == ["b-08", "b-09", "b-10"]
    assert names("{a-8,b-09}.tar") == ["a-8", "b-09"]
    assert names("b-10.tar", "*-10.tar") == ["b-10", "a-10"]
    for missing in ("a-{8..11}.tar", "c-*.tar", "c.tar"):
        with pytest.raises(ConfigError, match="there is no file"):
            names(missing)


def test_the_fingerprint_follows_the_shards(tmp_path):
    path = whole_tar(tmp_path)
    first = TarPairs(path).fingerprint
    assert TarPairs(path).fingerprint == first
    write_tar(path, {"0.png": png(0), "0.txt": "a"})
    assert TarPairs(path).fingerprint != first


# Hugging Face data sets.


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    module = pytest.importorskip("datasets")
    module.disable_progress_bars()
    return module


def hugging(datasets, rows):
    """Make a data set of encoded images and captions."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.List(datasets.Value("string")),
            "image_id": datasets.Value("int64"),
        }
    )
    columns = {
        "image": [{"bytes": data, "path": None} for data, _ in rows],
        "caption": [captions for _, captions in rows],
        "image_id": [i // 2 for i in range(len(rows))],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def test_rows_of_a_data_set_are_read(datasets):
    rows = [(png(0), ["zero", " "]), (png(1), []), (b"broken", ["two"]), (png(3), ["three", "3"])]
    source = DatasetPairs(hugging(datasets, rows), name="small")
    assert [source.captions(row) for row in range(len(source))] == [
        ("zero",),
        ("two",),
        ("three", "3"),
    ]
    assert same(source.open(0), 0)
    assert same(source.open(2), 3)
    with pytest.raises(ImageReadError, match="not an image") as caught:
        source.open(1)
    assert caught.value.path == "small, row 2"
    assert [failure.path for failure in source.skipped] == ["small, row 1"]
    assert len({source.key(row) for row in range(3)}) == 3


def test_a_key_column_names_equal_pictures(datasets):
    rows = [(png(i // 2), [f"{i}"]) for i in range(4)]
    source = DatasetPairs(hugging(datasets, rows), key_column="image_id")
    keys = [source.key(row) for row in range(4)]
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_decoded_pictures_paths_and_formats_are_read_too(datasets, tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    paths = datasets.Dataset.from_dict({"file": [str(tmp_path / "0.png")], "text": ["a"]})
    source = DatasetPairs(paths.with_format("numpy"), image_column="file", caption_column="text")
    assert same(source.open(0), 0)
    assert source.captions(0) == ("a",)

    class Rows(list):
        column_names = ("image", "caption")

        def __getitem__(self, index):
            if isinstance(index, slice):
                return {
                    name: [row[name] for row in list(self)[index]] for name in self.column_names
                }
            return super().__getitem__(index)

    plain = DatasetPairs(
        Rows(
            [
                {"image": Image.fromarray(pixels(1)), "caption": "b"},
                {"image": 7, "caption": "c"},
            ]
        )
    )
    assert same(plain.open(0), 1)
    with pytest.raises(ImageReadError, match="int is not an image"):
        plain.open(1)
    assert int(plain.fingerprint, 16) >= 0


def test_missing_columns_and_streams_are_refused(datasets):
    data = hugging(datasets, [(png(0), ["a"])])
    with pytest.raises(ConfigError, match="no column 'text'; it has image, caption, image_id"):
        DatasetPairs(data, caption_column="text")
    with pytest.raises(ConfigError, match="without streaming"):
        DatasetPairs(data.to_iterable_dataset())
    with pytest.raises(ConfigError, match="no row"):
        DatasetPairs(hugging(datasets, [(png(0), [])]))


def test_the_fingerprint_follows_the_data_set(datasets):
    data = hugging(datasets, [(png(i), [f"{i}"]) for i in range(3)])
    first = DatasetPairs(data).fingerprint
    assert DatasetPairs(data).fingerprint == first
    assert DatasetPairs(data.select([0, 2])).fingerprint != first


def test_a_saved_data_set_is_opened_and_a_split_chosen(datasets, tmp_path):
    data = hugging(datasets, [(png(0), ["a"])])
    data.save_to_disk(tmp_path / "one")
    source = open_pairs(tmp_path / "one")
    assert isinstance(source, DatasetPairs)
    assert same(source.open(0), 0)
    assert open_pairs(tmp_path / "one").fingerprint == source.fingerprint
    with pytest.raises(ConfigError, match="without splits"):
        open_pairs(tmp_path / "one", split="train")
    with pytest.raises(ConfigError, match="images="):
        open_pairs(tmp_path / "one", images=tmp_path)

    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    assert len(open_pairs(tmp_path / "two", split="test")) == 1
    for split in (None, "val"):
        with pytest.raises(ConfigError, match="splits train, test"):
            open_pairs(tmp_path / "two", split=split)

    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read the data set"):
        open_pairs(tmp_path / "one")


def test_a_saved_data_set_needs_the_extra(tmp_path, monkeypatch):
    (tmp_path / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[train\]"):
        open_pairs(tmp_path)


def test_what_is_no_training_data_is_refused_with_what_would_be(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(ConfigError, match=r"of an unknown kind; give a \.json"):
        open_pairs(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match="does not exist"):
        open_pairs(tmp_path / "b.csv")
    with pytest.raises(ConfigError, match=r"not written by datasets.*\*\.tar"):
        open_pairs(tmp_path)
    path = write_tar(tmp_path / "a.tar", {"x.png": png(0), "x.txt": "a"})
    with pytest.raises(ConfigError, match="tar shard, which split='train'"):
        open_pairs(path, split="train")
