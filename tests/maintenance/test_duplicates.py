"""Near-duplicates in collections on every engine, with and without their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_places import CONTRACT, encoding_of, ids_of
from index_stand_in import StandIn
from PIL import Image
from qdrant_client import QdrantClient, models
from stored import damage

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, MissingExtraError, StoreError
from edje_qdrant.images import image_file_id
from edje_qdrant.images.perceptual_hash import can_hash
from edje_qdrant.maintenance import DuplicateRule, DuplicatesReport, duplicates, find_duplicates
from edje_qdrant.maintenance.duplicate_sheet import draw_duplicates
from edje_qdrant.types import ImageEncoding

WIDTH = 32
CODES = dataclasses.replace(CONTRACT, embedding_dim=WIDTH)
needs_hash = pytest.mark.skipif(not can_hash(), reason="needs the extra duplicates")


def alike(
    looks: Sequence[int], *, noise: float = 0.01, tokens: Sequence[int] | None = None
) -> ImageEncoding:
    """Encodings of images whose looks, and tokens, are as numbered."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(looks) + 1, WIDTH))
    vectors = centres[[*looks]] + noise * rng.standard_normal((len(looks), WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = ids_of(max(tokens or looks) + 1)
    own = encoding_of(ids).tokens[[*(tokens or looks)]]
    return ImageEncoding(vectors.astype(np.float32), own)


def groups_of(report: DuplicatesReport) -> list[list[str]]:
    return [[image.image_id for image in group.images] for group in report.groups]


PAYLOADS: list[dict[str, Any]] = [
    {"width": 10, "height": 10, "file_size": 5, "path": "a"},
    {"width": 20, "height": 10, "file_size": 1, "path": "b"},  # most pixels
    {"width": 10, "height": 10, "file_size": 9, "path": "c"},
    {},  # of the second look
    {"width": 10, "height": 10, "taken_at": "2024-05-17T12:00:00+02:00"},
    {"width": 10, "height": 10, "taken_at": "2024-05-17T10:30:00Z"},  # half an hour later
    {"width": 10, "height": 10, "taken_at": "soon"},
    {"width": True, "height": "9", "path": 4},  # of a look of its own
]
LOOKS = [0, 0, 0, 1, 1, 1, 1, 2]


@pytest.fixture(
    params=[
        "edge-payload",
        "rest",
        *(pytest.param(place, marks=pytest.mark.slow) for place in ("edge-file", "faiss")),
    ]
)
def collection(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageCollection]:
    options: dict[str, Any] = {"tokens": "payload" if request.param == "edge-payload" else "file"}
    if request.param == "rest":
        with StandIn() as server, ImageCollection.create(server.url, "images", CODES) as made:
            yield made
        return
    if request.param == "faiss":
        options["engine"] = "faiss"
    with ImageCollection.create(tmp_path, "images", CODES, **options) as made:
        yield made


def test_the_best_of_a_group_is_kept_and_the_others_are_listed(
    collection: ImageCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_of(8)
    collection.add(ids, alike(LOOKS), PAYLOADS)
    report = find_duplicates(collection, hashes=False)
    assert [group[0] for group in groups_of(report)] == [ids[4], ids[1]]
    assert [{*group} for group in groups_of(report)] == [{*ids[3:7]}, {*ids[:3]}]
    assert (report.images, report.hashed, report.unread, report.without_tokens) == (8, False, 0, 0)
    assert sorted(report.extra_ids) == sorted({*ids[:7]} - {ids[1], ids[4]})
    assert report.extra_bytes == 14
    for group in report.groups:
        assert [image.likeness for image in group.extra] == sorted(
            (image.likeness for image in group.extra), reverse=True
        )
        assert all(0.98 <= i.likeness <= 1 and i.token_likeness > 0.99 for i in group.extra)
        assert all(image.hash_distance is None for image in group.images)
    kept = report.groups[1].images[0]
    assert (kept.path, kept.width, kept.height, kept.file_size) == ("b", 20, 10, 1)
    written = report.as_dict()
    assert [[image["image_id"] for image in g] for g in written["groups"]] == groups_of(report)
    assert (written["extra"], written["extra_ids"]) == (5, report.extra_ids)

    # The same in pages of any size, and with the images in another order of pages.
    for page in (1, 3):
        monkeypatch.setattr(duplicates, "PAGE", page)
        assert groups_of(find_duplicates(collection, hashes=False)) == groups_of(report)
    some = models.Filter(must_not=[models.HasIdCondition(has_id=[ids[1], ids[5]])])
    report = find_duplicates(collection, hashes=False, filter=some)
    assert report.images == 6
    # Now the larger file is kept, as neither has a time.
    assert [group[0] for group in groups_of(report)] == [ids[4], ids[2]]


def test_images_with_other_tokens_are_no_duplicates(tmp_path: Path) -> None:
    ids = ids_of(6)
    with ImageCollection.create(tmp_path, "images", CODES) as collection:
        tokens = [0, 0, 5, 1, 1, 1]
        collection.add(ids, alike([0, 0, 0, 1, 1, 1], tokens=tokens), [{}] * 6)
        report = find_duplicates(collection, hashes=False)
        assert sorted(map(sorted, groups_of(report))) == [ids[:2], ids[3:]]
        damage(collection, ids[4])
        report = find_duplicates(collection, hashes=False)
        assert sorted(map(sorted, groups_of(report))) == [ids[:2], [ids[3], ids[5]]]
        assert report.without_tokens == 1


def test_chains_are_cut(tmp_path: Path) -> None:
    """Every image of a group is like its first one."""
    angles = np.radians(np.arange(0, 50, 5))
    vectors = np.zeros((10, WIDTH), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    tokens = np.repeat(encoding_of(ids_of(1)).tokens, 10, axis=0)
    ids = ids_of(10)
    with ImageCollection.create(tmp_path, "images", CODES) as collection:
        collection.add(ids, ImageEncoding(vectors, tokens), [{} for _ in ids])
        mean = collection.likeness.mean
        least = (np.cos(np.radians(7)) - mean) / (1 - mean)
        report = find_duplicates(
            collection, hashes=False, rule=DuplicateRule(embeddings_alone=float(least))
        )
    assert groups_of(report) == [ids[n : n + 2] for n in range(0, 10, 2)]


def test_more_images_than_neighbours_are_one_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "PAGE", 32)
    count = 150
    ids = ids_of(count + 2)
    asked: list[int] = []
    with ImageCollection.create(tmp_path, "images", CODES, engine="faiss") as collection:
        collection.add(ids, alike([*[0] * count, 1, 1]), [{}] * len(ids))
        nearest = collection.nearest

        def counted(queries: Any, number: int, **options: Any) -> Any:
            asked.append(len(queries) * number)
            return nearest(queries, number, **options)

        monkeypatch.setattr(collection, "nearest", counted)
        report = find_duplicates(collection, hashes=False)
    assert [*map(sorted, groups_of(report))] == [ids[:count], ids[count:]]
    assert sum(asked) < 20 * count  # not the square


def test_points_of_other_programs_are_left_out() -> None:
    ids = ids_of(2)
    with StandIn() as server, ImageCollection.create(server.url, "images", CODES) as collection:
        encoding = alike([0, 0])
        collection.add(ids, encoding, [{}, {}])
        with_ids: list[Any] = [7, 8, str(ids_of(1, 900)[0])]
        points = [
            models.PointStruct(id=i, vector=encoding.embeddings[0].tolist(), payload={})
            for i in with_ids
        ]
        other = QdrantClient(url=server.url, check_compatibility=False)
        other.upsert("images", points, wait=True)
        other.close()
        report = find_duplicates(collection, hashes=False)
    assert (report.images, [*map(sorted, groups_of(report))]) == (2, [ids])


# With files


@pytest.fixture
def library(tmp_path: Path) -> Iterator[tuple[ImageCollection, Callable[[str], str]]]:
    """Drawn pictures and copies, with embeddings that are only fairly alike."""
    rng = np.random.default_rng(5)
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    for number in range(3):
        colours = rng.integers(0, 255, (7, 9, 3), dtype=np.uint8)
        picture = Image.fromarray(colours).resize((180, 140), Image.Resampling.BICUBIC)
        copies = {
            f"{number}.png": picture,
            f"{number}-small.png": picture.resize((90, 70)),
            f"{number}-mirrored.png": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            f"{number}-crop.png": picture.crop((4, 3, 178, 138)),
        }
        for name, copy in copies.items():
            copy.save(tmp_path / name)
            names.append(name)
            sizes.append(copy.size)
    ids = [image_file_id(tmp_path / name) for name in names]
    payloads = [
        {"path": str(tmp_path / name), "width": width, "height": height}
        for name, (width, height) in zip(names, sizes, strict=True)
    ]
    # The pictures 0 and 1 look alike to the embeddings.
    looks = [0] * 8 + [2] * 4
    collection = ImageCollection.create(tmp_path / "index", "images", CODES, engine="faiss")
    with collection:
        collection.add(ids, alike(looks, noise=0.2), payloads)
        yield collection, dict(zip(names, ids, strict=True)).__getitem__


def colours_of(path: Path) -> tuple[set[Any], tuple[int, int]]:
    with Image.open(path) as image:
        return {colour for _, colour in image.getcolors(1 << 24) or []}, image.size


@needs_hash
def test_hashes_tell_copies_from_other_images(library: Any, tmp_path: Path) -> None:
    collection, id_of = library
    report = find_duplicates(collection)
    found = {group[0]: {*group} for group in groups_of(report)}
    for number in range(3):
        names = [f"{number}{kind}.png" for kind in ("", "-small", "-mirrored", "-crop")]
        kept = min(id_of(names[0]), id_of(names[2]))  # they are as large
        assert found[kept] == {id_of(name) for name in names}
    assert (report.hashed, report.unread) == (True, 0)
    assert all(i.hash_distance is not None for g in report.groups for i in g.extra)
    # Without files the embeddings have to be far more alike.
    assert groups_of(find_duplicates(collection, hashes=False)) == []
    strict = find_duplicates(collection, rule=DuplicateRule(hash_bits=0))
    assert len(strict.extra_ids) < len(report.extra_ids)

    (tmp_path / "2-small.png").unlink()
    (tmp_path / "2-crop.png").write_bytes((tmp_path / "1.png").read_bytes())
    report = find_duplicates(collection, hashes=True)
    assert report.unread == 2
    assert {len(group) for group in groups_of(report)} == {4, 2}

    sheet = tmp_path / "sheet.png"
    draw_duplicates(report, sheet)
    colours, (width, height) = colours_of(sheet)
    assert (24, 158, 84) in colours  # the frame of what is kept
    assert width > 1000
    assert height > 3 * 124
    gone = dataclasses.replace(report.groups[0].images[0], path=str(tmp_path / "none.png"))
    group = dataclasses.replace(report.groups[0], images=(gone,) * 8)
    draw_duplicates(dataclasses.replace(report, groups=(group,)), sheet)
    assert (224, 224, 222) in colours_of(sheet)[0]
    draw_duplicates(dataclasses.replace(report, groups=()), sheet)
    with pytest.raises(StoreError):
        draw_duplicates(report, tmp_path / "missing" / "sheet.png")


def test_a_missing_extra_is_named(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    collection, _ = library
    monkeypatch.setattr(duplicates, "can_hash", lambda: False)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[duplicates\]"):
        find_duplicates(collection, hashes=True)
    assert not find_duplicates(collection).hashed


def test_wrong_arguments_are_refused(library: Any) -> None:
    collection, _ = library
    wrong: list[dict[str, Any]] = [
        {"embeddings": 0}, {"tokens": 1.1}, {"embeddings_alone": "high"}, {"hash_bits": -1},
        {"embeddings": True}, {"tokens": float("nan")}, {"hash_bits": 2.5},
    ]  # fmt: skip
    for given in wrong:
        with pytest.raises(ConfigError, match=next(iter(given))):
            DuplicateRule(**given)
    for name in ("hashes", "progress"):
        with pytest.raises(ConfigError, match=name):
            find_duplicates(collection, **{name: "yes"})
    with pytest.raises(ConfigError, match="collection"):
        find_duplicates("images")  # type: ignore[arg-type]
