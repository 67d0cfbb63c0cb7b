"""Tests of `attach_tokens` and `AttachedCollection` on an existing Qdrant collection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from index_stand_in import StandIn
from PIL import Image
from qdrant_client import QdrantClient, models
from rounding import float16_slack

from edje_qdrant.attach.attach_tokens import attach_tokens, detach_tokens
from edje_qdrant.attach.attached_collection import AttachedCollection, RankedPoint
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    CollectionNotFoundError,
    ConfigError,
    ContractMismatchError,
    EngineUnavailableError,
    ImagesDeletedError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.index.qdrant.patience import Patience
from edje_qdrant.model import EDJEModel

WriteImages = Callable[..., list[Path]]

NAME = "products"
TEXT = "two dogs on a boat"
COUNT = 12


@dataclass
class Shop:
    """An existing collection: two named vectors, ids of both kinds, a nested path field."""

    client: QdrantClient
    location: Any
    folder: Path
    paths: list[Path]

    def attach(self, model: EDJEModel, **options: Any) -> Any:
        options = {"path_field": "picture.file", "images": self.folder, **options}
        return attach_tokens(self.location, NAME, model, progress=False, **options)

    def everything(self) -> list[models.Record]:
        return self.client.scroll(NAME, limit=100, with_vectors=True)[0]

    def search(self, limit: int = COUNT) -> list[models.ScoredPoint]:
        return self.client.query_points(NAME, query=[1.0, 0, 0], using="clip", limit=limit).points


def point_id(number: int) -> int | str:
    return number if number % 2 else f"00000000-0000-4000-8000-{number:012d}"


@pytest.fixture(params=["memory", "http"])
def shop(
    request: pytest.FixtureRequest, tmp_path: Path, write_images: WriteImages
) -> Iterator[Shop]:
    server = StandIn()
    paths = write_images(tmp_path / "pictures", COUNT)
    client = server.client
    client.create_collection(
        NAME,
        vectors_config={
            "clip": models.VectorParams(size=3, distance=models.Distance.DOT),
            "color": models.VectorParams(size=2, distance=models.Distance.EUCLID),
        },
        metadata={"owner": "shop"},
    )
    rng = np.random.default_rng(0)
    client.upsert(
        NAME,
        [
            models.PointStruct(
                id=point_id(number),
                vector={"clip": rng.normal(size=3).tolist(), "color": [number, 1.0]},
                payload={"picture": {"file": path.name, "by": "me"}, "price": number},
            )
            for number, path in enumerate(paths)
        ],
    )
    with server:
        location = client if request.param == "memory" else server.url
        yield Shop(client, location, tmp_path / "pictures", paths)


@pytest.fixture
def expected(shop: Shop, tiny_model: EDJEModel) -> dict[int | str, float]:
    """What the model says of each image, asked without any collection."""
    tokens = tiny_model.encode_images([Image.open(path) for path in shop.paths]).tokens
    scores = tiny_model.score(TEXT, tokens)
    return {point_id(number): float(score) for number, score in enumerate(scores)}


def attached(shop: Shop, model: EDJEModel, **options: Any) -> AttachedCollection:
    return AttachedCollection.open(shop.location, NAME, model=model, **options)


def check_ranking(
    ranked: list[RankedPoint], found: list[models.ScoredPoint], expected: dict[int | str, float]
) -> None:
    order = sorted(found, key=lambda point: -expected[point.id])
    assert [item.point for item in ranked] == order
    assert [item.rank for item in ranked] == [*range(1, len(found) + 1)]
    assert [found[item.retrieval_rank - 1] for item in ranked] == order
    scores = [item.score for item in ranked]
    wanted = [expected[point.id] for point in order]
    assert scores == pytest.approx(wanted, abs=float16_slack(wanted))


@pytest.mark.parametrize("place", ["payload", "file"])
def test_a_search_is_reranked_by_what_the_model_says(
    shop: Shop, tiny_model: EDJEModel, expected: dict[int | str, float], tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "tokens" if place == "file" else None
    report = shop.attach(tiny_model, tokens_folder=folder, batch_size=5)
    assert (report.added, report.skipped, report.failed) == (COUNT, 0, ())
    found = shop.search()
    with attached(shop, tiny_model) as opened:
        ranked = opened.rerank_points(TEXT, found)
        assert ranked[0].score is not None
        check_ranking(ranked, found, expected)
        assert opened.rerank_points(TEXT, found, top_k=3) == ranked[:3]
        assert asyncio.run(opened.arerank_points(TEXT, found, top_k=3)) == ranked[:3]
        assert opened.rerank_points(TEXT, []) == []
        ids = [point.id for point in found]
        scores = opened.score(TEXT, [*ids, ids[0]])
        wanted = [expected[i] for i in [*ids, ids[0]]]
        assert scores == pytest.approx(wanted, abs=float16_slack(wanted))
    assert (folder is not None) == ("tokens" not in shop.everything()[0].payload["_edje"])


def test_of_near_duplicates_one_is_returned(shop: Shop, tiny_model: EDJEModel) -> None:
    shop.attach(tiny_model)
    points = shop.search()
    with AttachedCollection.open(shop.location, NAME, model=tiny_model) as attached:
        plain = attached.rerank_points(TEXT, points)
        assert all(ranked.duplicates == () for ranked in plain)
        for least in (True, 0.3, 1e-3):
            found = attached.rerank_points(TEXT, points, collapse_duplicates=least)
            # Every point is a hit or a duplicate of one that is before it.
            places = {ranked.point.id: place for place, ranked in enumerate(plain)}
            listed = [i for r in found for i in (r.point.id, *r.duplicates)]
            assert sorted(map(str, listed)) == sorted(map(str, places))
            assert [ranked.rank for ranked in found] == list(range(1, len(found) + 1))
            kept = [places[ranked.point.id] for ranked in found]
            assert kept == sorted(kept)
            for ranked in found:
                own = [places[i] for i in (ranked.point.id, *ranked.duplicates)]
                assert own == sorted(own)
        assert any(ranked.duplicates for ranked in found)
        first = attached.rerank_points(TEXT, points, top_k=1, collapse_duplicates=1e-3)
        assert first == found[:1]
        awaited = asyncio.run(attached.arerank_points(TEXT, points, collapse_duplicates=1e-3))
        assert awaited == found
        with pytest.raises(ConfigError, match="collapse_duplicates"):
            attached.rerank_points(TEXT, points, collapse_duplicates=2)


def test_equal_pictures_are_near_duplicates(shop: Shop, tiny_model: EDJEModel) -> None:
    shop.paths[5].write_bytes(shop.paths[2].read_bytes())
    shop.attach(tiny_model)
    with AttachedCollection.open(shop.location, NAME, model=tiny_model) as attached:
        found = attached.rerank_points(TEXT, shop.search(), collapse_duplicates=True)
    pairs = [{r.point.id, *r.duplicates} for r in found if r.duplicates]
    assert {point_id(2), point_id(5)} in pairs


def test_vectors_payload_and_metadata_of_others_are_not_touched(
    shop: Shop, tiny_model: EDJEModel
) -> None:
    before = shop.everything()
    shop.attach(tiny_model)
    after = shop.everything()
    assert [record.vector for record in after] == [record.vector for record in before]
    stripped = [{k: v for k, v in r.payload.items() if k != "_edje"} for r in after]
    assert stripped == [record.payload for record in before]
    assert all("_edje" in record.payload for record in after)
    metadata = shop.client.get_collection(NAME).config.metadata
    assert metadata["owner"] == "shop"
    kept = metadata["edje_qdrant_attached"]["contract"]
    assert kept["adapter_hash"] == tiny_model.contract().adapter_hash

    asked: list[tuple[int, list[str]]] = []

    def refuse(count: int, ids: list[str]) -> bool:
        asked.append((count, ids))
        return False

    assert not detach_tokens(shop.location, NAME, agree=refuse)
    assert shop.everything() == after
    assert asked == [(len(after), [str(record.id) for record in after[:3]])]
    assert detach_tokens(shop.location, NAME, agree=lambda *_: True)
    assert not detach_tokens(shop.location, NAME, agree=refuse)  # it is not asked any more
    assert len(asked) == 1
    assert shop.everything() == before
    attached_again = shop.attach(tiny_model)
    assert attached_again.added == len(before)
    assert detach_tokens(shop.location, NAME)
    assert shop.everything() == before
    assert not shop.client.get_collection(NAME).config.metadata.get("edje_qdrant_attached")
    with pytest.raises(ConfigError, match="nothing is attached"):
        attached(shop, tiny_model)


def test_unreadable_images_are_reported_and_do_not_stop_the_run(
    shop: Shop, tiny_model: EDJEModel
) -> None:
    shop.paths[3].write_bytes(b"no image")
    shop.paths[4].unlink()
    shop.client.upsert(
        NAME, [models.PointStruct(id=77, vector={"clip": [9.0, 0, 0]}, payload={"price": 1})]
    )
    shop.client.set_payload(NAME, {"picture": {"file": 5}}, points=[point_id(5)])
    report = shop.attach(tiny_model)
    assert report.added == COUNT - 3
    reasons = {failure.path: failure.reason for failure in report.failed}
    assert len(reasons) == 4
    assert "not an image" in reasons[f"{shop.paths[3].name} (point 3)"]
    assert "No such file" in reasons[f"{shop.paths[4].name} (point {point_id(4)})"]
    assert reasons["5 (point 5)"] == "5 is not a path"
    assert reasons["point 77"] == "its payload has no 'picture.file'"

    found = shop.search(COUNT + 1)
    with attached(shop, tiny_model) as opened:
        with pytest.raises(TokensNotFoundError, match="attach") as error:
            opened.rerank_points(TEXT, found)
        lost = {"3", str(point_id(4)), "5", "77"}
        assert set(error.value.image_ids) == lost
        ranked = opened.rerank_points(TEXT, found, on_missing="first_stage")
    for place, item in enumerate(ranked, start=1):
        assert (item.score is None) == (str(item.point.id) in lost)
        if item.score is None:
            assert item.rank == item.retrieval_rank == place
    scores = [item.score for item in ranked if item.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == COUNT - 3


def test_a_run_goes_on_where_it_stopped(
    shop: Shop,
    tiny_model: EDJEModel,
    expected: dict[int | str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode, calls = tiny_model.start_encoding, []

    def stop_at_the_third(pixels: Any) -> Any:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "start_encoding", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            shop.attach(tiny_model, batch_size=4)
    assert calls == [4, 4, 4]
    assert sum("_edje" in record.payload for record in shop.everything()) == 8
    report = shop.attach(tiny_model, batch_size=4)
    assert (report.added, report.skipped) == (4, 8)
    assert shop.attach(tiny_model).skipped == COUNT
    found = shop.search()
    with attached(shop, tiny_model) as opened:
        check_ranking(opened.rerank_points(TEXT, found), found, expected)


def test_a_point_that_names_another_picture_is_not_scored_by_the_old_one(
    shop: Shop, tiny_model: EDJEModel, expected: dict[int | str, float]
) -> None:
    shop.attach(tiny_model)
    shop.client.set_payload(NAME, {"picture": {"file": shop.paths[0].name}}, points=[1])
    with attached(shop, tiny_model) as opened:
        with pytest.raises(TokensNotFoundError, match="another image") as error:
            opened.rerank_points(TEXT, shop.search())
        assert error.value.image_ids == ("1",)
        report = shop.attach(tiny_model)
        assert (report.added, report.skipped) == (1, COUNT - 1)
        both = opened.score(TEXT, [1, point_id(0)])
    slack = float16_slack([*expected.values()])
    assert both == pytest.approx([expected[point_id(0)]] * 2, abs=slack)


def test_points_deleted_since_they_were_found_are_left_out(
    shop: Shop, tiny_model: EDJEModel
) -> None:
    shop.attach(tiny_model)
    found = shop.search(COUNT)
    gone = [found[0].id, found[2].id]
    with attached(shop, tiny_model) as opened:
        before = [(hit.point.id, hit.score) for hit in opened.rerank_points(TEXT, found)]
        shop.client.delete(NAME, models.PointIdsList(points=gone))
        for on_missing in ("error", "first_stage"):
            after = opened.rerank_points(TEXT, found, on_missing=on_missing)
            assert [hit.rank for hit in after] == [*range(1, COUNT - 1)]
            kept = [(point_id, score) for point_id, score in before if point_id not in gone]
            assert [hit.point.id for hit in after] == [point_id for point_id, _ in kept]
            assert [hit.score for hit in after] == pytest.approx(
                [score for _, score in kept], abs=1e-5
            )
        with pytest.raises(ImagesDeletedError, match=str(gone[0])):
            opened.score(TEXT, gone)


def test_a_point_that_is_gone_is_named(shop: Shop, tiny_model: EDJEModel) -> None:
    shop.attach(tiny_model)
    with attached(shop, tiny_model) as opened, pytest.raises(TokensNotFoundError, match="999"):
        opened.score(TEXT, [1, 999])


def test_damaged_tokens_are_never_scored(shop: Shop, tiny_model: EDJEModel) -> None:
    shop.attach(tiny_model)
    (record,) = shop.client.retrieve(NAME, [3])
    mark = record.payload["_edje"]
    other = "A" if mark["tokens"][10] != "A" else "B"
    damaged = {**mark, "tokens": mark["tokens"][:10] + other + mark["tokens"][11:]}
    shop.client.set_payload(NAME, {"_edje": damaged}, points=[3])
    with attached(shop, tiny_model) as opened:
        with pytest.raises(TokensCorruptError) as error:
            opened.score(TEXT, [1, 3])
        assert error.value.image_ids == ("3",)


def test_another_model_is_refused(
    shop: Shop, tiny_model: EDJEModel, other_model: EDJEModel
) -> None:
    shop.attach(tiny_model)
    with pytest.raises(ContractMismatchError, match="adapter_hash"):
        shop.attach(other_model)
    with pytest.raises(ContractMismatchError, match="adapter_hash"):
        attached(shop, other_model)


def test_the_model_is_found_by_the_name_that_was_noted(
    shop: Shop, tiny_model: EDJEModel, tiny_folder: Path, expected: dict[int | str, float]
) -> None:
    shop.attach(tiny_model)
    found = shop.search()
    with AttachedCollection.open(shop.location, NAME, device="cpu") as opened:
        assert opened.contract.model == str(tiny_folder)
        check_ranking(opened.rerank_points(TEXT, found), found, expected)


def test_pictures_can_be_found_in_other_ways(
    shop: Shop, tiny_model: EDJEModel, expected: dict[int | str, float]
) -> None:
    def locate(value: Any) -> Any:
        path = shop.folder / value
        number = shop.paths.index(path)
        if number == 0:
            raise RuntimeError("the bucket is closed")
        return Image.open(path) if number % 2 else path

    report = shop.attach(tiny_model, locate=locate, codec="int8")
    (failure,) = report.failed
    assert failure.reason == "the bucket is closed"
    with attached(shop, tiny_model) as opened:
        assert opened.contract.codec == "int8"
        scores = opened.score(TEXT, [1, point_id(2)])
    assert scores == pytest.approx([expected[1], expected[point_id(2)]], abs=0.2)


def test_what_cannot_be_done_is_refused_before_anything_is_written(
    shop: Shop, tiny_model: EDJEModel, tmp_path: Path
) -> None:
    for options, message in (
        ({"path_field": "file"}, "no payload field 'file'.*picture, price"),
        ({"path_field": "_edje"}, "reserved"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"images": tmp_path / "none"}, "no folder"),
        ({"codec": "pq16"}, "fitted"),
    ):
        with pytest.raises(ConfigError, match=message):
            shop.attach(tiny_model, **options)
    with pytest.raises(CollectionNotFoundError, match=NAME):
        attach_tokens(shop.location, "nothing", tiny_model)
    assert shop.client.get_collection(NAME).config.metadata == {"owner": "shop"}

    shop.attach(tiny_model)
    for options, message in (
        ({"path_field": "picture.by"}, r"another path_field \('picture.file'\)"),
        ({"codec": "int4"}, r"another codec \(float16\)"),
        ({"tokens_folder": tmp_path / "tokens"}, r"another tokens_folder \(the payload\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            shop.attach(tiny_model, **options)
    with attached(shop, tiny_model) as opened:
        for arguments, message in (
            (("!", []), "no word"),
            ((TEXT, [], 0), "top_k is 0"),
        ):
            with pytest.raises(ConfigError, match=message):
                opened.rerank_points(*arguments[:2], top_k=(*arguments, None)[2])
        with pytest.raises(ConfigError, match="on_missing"):
            opened.rerank_points(TEXT, [], on_missing="guess")  # type: ignore[arg-type]


def test_a_collection_of_this_package_is_refused(tiny_model: EDJEModel) -> None:
    client = QdrantClient(":memory:")
    ImageCollection.create(client, NAME, tiny_model.contract()).close()
    with pytest.raises(ConfigError, match="TwoStageRetriever"):
        attach_tokens(client, NAME, tiny_model)


def test_damaged_notes_are_refused(shop: Shop, tiny_model: EDJEModel) -> None:
    shop.attach(tiny_model)
    noted = shop.client.get_collection(NAME).config.metadata["edje_qdrant_attached"]
    for damaged in ({**noted, "path_field": 3}, {**noted, "contract": 3}):
        shop.client.update_collection(NAME, metadata={"edje_qdrant_attached": damaged})
        with pytest.raises(StoreError, match="damaged"):
            attached(shop, tiny_model)


def test_a_server_that_goes_away_loses_nothing(
    tmp_path: Path, write_images: WriteImages, tiny_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(Patience, "pause", lambda *_: None)
    paths = write_images(tmp_path, 6)
    with StandIn() as server:
        server.client.create_collection(
            NAME, vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT)
        )
        points = [
            models.PointStruct(id=n, vector=[1.0], payload={"path": str(path)})
            for n, path in enumerate(paths)
        ]
        server.client.upsert(NAME, points)
        answers, skipped = 0, 0
        while True:
            server.answers_left = answers
            try:
                report = attach_tokens(
                    server.url, NAME, tiny_model, batch_size=2, progress=False, wait=0
                )
                break
            except EngineUnavailableError:
                server.answers_left = None
                marked = [r for r in server.client.scroll(NAME)[0] if "_edje" in (r.payload or {})]
                assert len(marked) >= skipped
                skipped = len(marked)
                answers += 1
        server.answers_left = None
        assert 0 < skipped < 6  # written by runs that failed
        assert (report.added, report.skipped) == (6 - skipped, skipped)
        assert answers >= 6  # places at which it hung up
        with AttachedCollection.open(server.url, NAME, model=tiny_model) as opened:
            assert len(opened.score(TEXT, [*range(6)])) == 6


def test_the_commands(
    tmp_path: Path, write_images: WriteImages, tiny_folder: Path, tiny_model: EDJEModel
) -> None:
    paths = write_images(tmp_path, 3)
    paths[2].write_bytes(b"x")
    with StandIn() as server:
        server.client.create_collection(
            NAME, vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT)
        )
        points = [
            models.PointStruct(id=n, vector=[1.0], payload={"file": path.name})
            for n, path in enumerate(paths)
        ]
        server.client.upsert(NAME, points)
        where = ["--url", server.url, "--collection", NAME]
        attach = ["attach", *where, "--path-field", "file", "--images", tmp_path,
                  "--model", tiny_folder, "--device", "cpu"]  # fmt: skip
        result = run(*attach, "--codec", "int8", "--json")
        assert result.exit_code == 0, result.output
        data = json.loads(result.stdout.splitlines()[-1])
        assert (data["added"], data["skipped"], data["name"]) == (2, 0, NAME)
        assert data["failed"][0]["path"] == f"{paths[2].name} (point 2)"
        lines = run(*attach).stdout.splitlines()
        assert lines[0].startswith("0 images have tokens now, 2 had them already, 1 failed")
        assert lines[1].startswith(f"  {paths[2].name} (point 2): ")
        with AttachedCollection.open(server.url, NAME, model=tiny_model) as opened:
            assert opened.contract.codec == "int8"
            assert len(opened.score(TEXT, [0, 1])) == 2
        refused = run("attach", "--collection", NAME, "--path-field", "file")
        assert refused.exit_code == 2
        assert "--url" in refused.stderr
        result = run("detach", *where, "--yes", "--json")
        assert result.exit_code == 0, result.output
        assert all("_edje" not in r.payload for r in server.client.scroll(NAME)[0])


def test_tokens_of_another_model_raise_and_are_replaced(shop: Shop, tiny_model: EDJEModel) -> None:
    shop.attach(tiny_model)
    (record,) = shop.client.retrieve(NAME, [3])
    mark = record.payload["_edje"]
    key = tiny_model.contract().model_key
    assert mark["contract"] == key
    shop.client.set_payload(NAME, {"_edje": {**mark, "contract": "0123abcd"}}, [3])
    with attached(shop, tiny_model) as opened:
        assert opened.score(TEXT, [1, 5]).shape == (2,)
        with pytest.raises(ContractMismatchError, match=r"images 3 .*edje-qdrant attach") as caught:
            opened.score(TEXT, [1, 3])
        assert caught.value.expected == {"contract": key}
        assert caught.value.found == {"contract": "0123abcd"}
        report = shop.attach(tiny_model)
        assert (report.added, report.skipped) == (1, COUNT - 1)
        assert opened.score(TEXT, [1, 3]).shape == (2,)


@pytest.mark.parametrize("what", ["another model", "detached"])
def test_an_attachment_that_was_replaced_is_not_written_to(
    shop: Shop, tiny_model: EDJEModel, what: str
) -> None:
    """As by another process that attaches, while this one encodes."""
    seen: list[str] = []

    def locate(value: str) -> Path:
        seen.append(value)
        if len(seen) == 3:
            metadata = shop.client.get_collection(NAME).config.metadata["edje_qdrant_attached"]
            contract = {**metadata["contract"], "adapter_hash": "other", "model": "other"}
            written = {**metadata, "contract": contract} if what == "another model" else {}
            shop.client.update_collection(NAME, metadata={"edje_qdrant_attached": written})
        return shop.folder / value

    error = ContractMismatchError if what == "another model" else StoreError
    with pytest.raises(error, match="replaced"):
        attach_tokens(
            shop.location, NAME, tiny_model, path_field="picture.file", locate=locate,
            batch_size=COUNT, progress=False,
        )  # fmt: skip
    assert not any("_edje" in record.payload for record in shop.everything())


def test_attached_by_an_alias(
    tmp_path: Path, write_images: WriteImages, tiny_model: EDJEModel
) -> None:
    """An alias that is moved after it was resolved changes nothing."""
    paths = write_images(tmp_path, 4)
    with StandIn() as server:
        params = models.VectorParams(size=1, distance=models.Distance.DOT)
        for name in ("v1", "v2"):
            server.client.create_collection(name, vectors_config=params)
            points = [
                models.PointStruct(id=n, vector=[1.0], payload={"path": str(path)})
                for n, path in enumerate(paths)
            ]
            server.client.upsert(name, points)

        def point(to: str) -> None:
            made = {"collection_name": to, "alias_name": "live"}
            server.answer("POST", ["collections", "aliases"], {"actions": [{"create_alias": made}]})

        def locate(value: str) -> Path:
            point("v2")
            return Path(value)

        point("v1")
        report = attach_tokens(server.url, "live", tiny_model, locate=locate, progress=False)
        assert report.added == 4
        assert all("_edje" in r.payload for r in server.client.scroll("v1")[0])
        assert not any("_edje" in r.payload for r in server.client.scroll("v2")[0])
        point("v1")
        with AttachedCollection.open(server.url, "live", model=tiny_model) as opened:
            point("v2")
            assert opened.score(TEXT, [0, 1]).shape == (2,)
