from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from grpc_stand_in import GrpcStandIn
from index_engines import Engine, image_id, qdrant_engine, unit_vectors
from index_stand_in import StandIn

from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.index import ByWords, TextFields, VectorIndex, check_text_fields
from edje_qdrant.index.words import WordVector, split_name
from edje_qdrant.types import Point

FIELDS = TextFields(("caption", "path", "camera.maker"))
METADATA = {"words": FIELDS.as_metadata()}
COUNT = 30
VECTORS = unit_vectors(COUNT, seed=3)


def points() -> list[Point]:
    """Return images of which every seventh has a caption."""
    return [
        Point(
            image_id(n),
            VECTORS[n],
            {
                "path": f"trips/IMG_{n:03}.jpg",
                "kind": "even" if n % 2 == 0 else "odd",
                **({"caption": f"Sunset in Lisbon, number {n}"} if n % 7 == 3 else {}),
                "_edje": {"record": n, "tokens": "QUJD"},
            },
        )
        for n in range(COUNT)
    ]


@pytest.fixture
def words_engine(engine: Engine, request: pytest.FixtureRequest) -> Engine:
    if "faiss" in request.node.name:
        pytest.skip("faiss keeps no words")
    return engine


@pytest.fixture
def index(words_engine: Engine) -> VectorIndex:
    made = words_engine.create(metadata=METADATA)
    made.upsert(points())
    return made


def found(index: VectorIndex, text: str, weight: float = 5.0, **more: Any) -> list[int]:
    """Return the numbers of the images found for a text, beside the embedding of image 0."""
    (hits,) = index.nearest(VECTORS[:1], 5, words=ByWords([text], weight), **more)
    return [NUMBERS[hit.image_id] for hit in hits]


NUMBERS = {image_id(n): n for n in range(100)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("IMG_2023-lisbon_sunsetBeach.jpg", "IMG 2023 lisbon sunset Beach"),
        ("Portugal/2019Lisbon/DSC00123.JPG", "Portugal 2019 Lisbon DSC 00123"),
        ("s3://photos/HDRImage.tiff", "photos HDR Image"),
        ("films/tram.mp4#t=12", "films tram t 12"),
        ("Été à Paris/Ça.heic", "Été à Paris Ça"),
        ("नमस्ते दुनिया.png", "नमस्ते दुनिया"),
        ("写真2023.png", "写真 2023"),
        ("", ""),
        (".jpg", ""),
    ],
)
def test_names_are_split_into_words(name: str, words: str) -> None:
    assert split_name(name) == words


def test_words_stay_the_same_from_version_to_version() -> None:
    """Stored words would not be found any more if they changed."""
    made = TextFields(("caption", "path")).words_of(
        {"caption": "Sunsets in Lisbon", "path": "a/IMG_7.jpg"}
    )
    known = {161811960: "sunset", 1855357694: "lisbon"}
    assert known.keys() <= {*made.indices}
    assert len(made) == 4  # "in" and "a" are left out
    assert made.values == pytest.approx([made.values[0]] * 4)


@pytest.mark.parametrize(
    ("query", "caption"),
    [
        ("beach", "Beaches"), ("MUNCHEN", "München"), ("strasse", "Straße"),
        ("写真", "富士山の写真"), ("山", "富士山"), ("서울", "서울의 밤"),
        ("เชียงใหม่", "วัดในเชียงใหม่"),
        ("DSC00123", "dsc00123"), ("sunset beach", "sunset_beach"),
    ],
)  # fmt: skip
def test_a_query_finds_a_caption(query: str, caption: str) -> None:
    fields = TextFields(("caption",))
    assert {*fields.query(query).indices} & {*fields.words_of({"caption": caption}).indices}


def test_a_file_is_found_by_its_name_and_by_parts_of_it() -> None:
    fields = TextFields(("path",))
    stored = {*fields.words_of({"path": "2019/DSC00123-sunsetBeach.jpg"}).indices}
    for query in ("DSC00123", "DSC00123-sunsetBeach.jpg", "sunsetBeach", "beach", "dsc 00123"):
        assert {*fields.query(query).indices} & stored, query


def test_texts_and_lists_of_texts_count_and_nothing_else() -> None:
    fields = TextFields(("tags", "year", "camera.maker"))
    payload = {"tags": ["tram", 7, "river"], "year": 2019, "camera": {"maker": "Leica"}}
    assert len(fields.words_of(payload)) == 3
    assert not fields.words_of({"tags": None, "year": True, "camera": "Leica"})


@pytest.mark.parametrize("text", ["!!! ...", "of the", "-", "🙂"])
def test_a_text_without_words_has_none(text: str) -> None:
    assert not FIELDS.query(text)


def test_without_a_language_every_word_counts() -> None:
    fields = TextFields(("caption",), "none")
    assert len(fields.words_of({"caption": "the beach, beaches"})) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("caption", r"\['caption'\]"), ([], "empty"), (7, "7"), ([7], "field's name"),
        (["caption", "caption"], "twice"), (["_edje"], "reserved"), (["a..b"], "empty name"),
        (["tags[]"], "bracket"), ({"caption": 1}, "list of field names"),
    ],
)  # fmt: skip
def test_wrong_text_fields_are_refused(fields: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_text_fields(fields)


@pytest.mark.parametrize("language", ["klingon", None, 7])
def test_an_unknown_language_is_refused(language: Any) -> None:
    with pytest.raises(ConfigError, match="english"):
        check_text_fields(["caption"], language)


@pytest.mark.parametrize("recorded", [{}, [], {**FIELDS.as_metadata(), "fields": None}, "caption"])
def test_damaged_text_fields_are_named(recorded: Any) -> None:
    with pytest.raises(StoreError, match="text-fields"):
        TextFields.read({"words": recorded})


def test_fields_of_a_later_version_are_refused() -> None:
    with pytest.raises(StoreError, match="version 2"):
        TextFields.read({"words": {**FIELDS.as_metadata(), "version": 2}})


def test_faiss_keeps_no_words(tmp_path: Any) -> None:
    pytest.importorskip("faiss")
    from edje_qdrant.index import create_embedded

    with pytest.raises(ConfigError, match="edge"):
        create_embedded(tmp_path / "index", 8, METADATA, "faiss")
    assert not (tmp_path / "index" / "faiss").exists()
    index = create_embedded(tmp_path / "plain", 8, {}, "faiss")
    with pytest.raises(ConfigError, match="edge"):
        index.begin_words(FIELDS)
    index.close()


def test_images_are_found_by_looks_and_by_words(index: VectorIndex) -> None:
    (hits,) = index.nearest(VECTORS[:1], 8, words=ByWords(["Lisbon"], 1.0))
    numbers = [NUMBERS[hit.image_id] for hit in hits]
    assert 0 in numbers[:3]  # the nearest
    assert len({*numbers} & {3, 10, 17, 24}) > 2
    assert [hit.words > 0 for hit in hits] == [number % 7 == 3 for number in numbers]
    cosines = VECTORS @ VECTORS[0]
    np.testing.assert_allclose([hit.score for hit in hits], cosines[numbers], atol=1e-5)
    assert [hit.rank for hit in hits] == [*range(1, 9)]
    assert hits[0].payload["path"] == f"trips/IMG_{numbers[0]:03}.jpg"
    assert "tokens" not in hits[0].payload["_edje"]


def test_the_rarest_word_decides(index: VectorIndex) -> None:
    assert 17 in found(index, "IMG trips Lisbon 017", 0.5)
    assert 17 in found(index, "IMG_017.jpg", 0.5)


def test_a_filter_applies_to_words_too(index: VectorIndex) -> None:
    assert {*found(index, "Lisbon", filter={"kind": "odd"})} >= {3, 17}
    assert not {*found(index, "Lisbon", filter={"kind": "odd"})} & {0, 10, 24}
    assert found(index, "Lisbon", filter={"kind": "none"}) == []


def test_queries_without_words_are_searched_for_by_looks(index: VectorIndex) -> None:
    plain = index.nearest(VECTORS[:3], 6)
    mixed = index.nearest(VECTORS[:3], 6, words=ByWords(["!!", "Lisbon", "..."]))
    for row in (0, 2):
        assert [hit.image_id for hit in mixed[row]] == [hit.image_id for hit in plain[row]]
    assert [hit.image_id for hit in mixed[1]] != [hit.image_id for hit in plain[1]]
    unknown = index.nearest(VECTORS[:1], 6, words=ByWords(["zebra"]))
    assert [hit.image_id for hit in unknown[0]] == [hit.image_id for hit in plain[0]]


def test_the_same_is_found_without_blocking(index: VectorIndex) -> None:
    words = ByWords(["Lisbon 17", "!"])
    blocking = index.nearest(VECTORS[:2], 6, words=words)
    assert asyncio.run(index.nearest_async(VECTORS[:2], 6, words=words)) == blocking


def test_words_follow_the_payload(index: VectorIndex) -> None:
    assert 5 not in found(index, "Porto")
    index.set_payload({image_id(5): {"caption": "Porto"}, image_id(99): {"caption": "Porto"}})
    assert 5 in found(index, "Porto")
    index.set_payload({image_id(5): {"stars": 3}})
    assert 5 in found(index, "Porto")
    index.set_payload({image_id(6): {"camera": {"maker": "Leica"}}})
    assert 6 in found(index, "Leica")
    index.remove_payload_keys([image_id(5), image_id(99)], ["caption", "none"])
    assert 5 not in found(index, "Porto", 100)
    index.upsert([Point(image_id(6), VECTORS[6], {"path": "harbour.jpg"})])
    assert 6 in found(index, "harbour")
    assert found(index, "Leica", 100) == found(index, "!")
    index.upsert([Point(image_id(6), VECTORS[6], {})])
    assert found(index, "harbour", 100) == found(index, "!")
    index.delete([image_id(3)])
    assert 3 not in found(index, "Lisbon", 100)


def test_vectors_are_read_without_words(index: VectorIndex) -> None:
    np.testing.assert_allclose(index.vectors([image_id(3)])[image_id(3)], VECTORS[3], atol=1e-6)
    (page,) = index.scroll(vectors=True, batch_size=100)
    assert {point.vector.shape for point in page} == {(8,)}
    assert len(index.words([image_id(3), image_id(98)])) == 1


def test_words_are_kept_when_the_index_is_opened_again(
    index: VectorIndex, words_engine: Engine
) -> None:
    before = found(index, "Lisbon")
    index.flush()
    index.optimize()
    index.close()
    again = words_engine.open()
    assert again.text_fields == FIELDS
    assert found(again, "Lisbon") == before
    again.insert([Point(image_id(30), VECTORS[29], {"caption": "harbour"})])
    assert 30 in found(again, "harbour")


def test_words_are_added_later(words_engine: Engine) -> None:
    index = words_engine.create(metadata={"other": 1})
    index.upsert(points())
    with pytest.raises(ConfigError, match="no text fields"):
        found(index, "Lisbon")
    began = TextFields(FIELDS.fields, filled=False)
    index.begin_words(began)
    index.begin_words(began)  # after an interruption
    with pytest.raises(ConfigError, match="not complete"):
        found(index, "Lisbon")
    index.upsert([Point(image_id(40), VECTORS[0], {"caption": "harbour"})])
    assert len(index.words([image_id(40), image_id(3)])) == 1
    index.set_words({p.id: FIELDS.words_of(p.payload) for p in points()})
    index.set_metadata({**index.metadata, "words": FIELDS.as_metadata()})
    assert index.metadata["other"] == 1
    assert {3, 10, 17, 24} & {*found(index, "Lisbon")}
    assert all(FIELDS.words_of(p.payload).is_like(index.words([p.id]).get(p.id)) for p in points())


def test_stored_words_are_compared() -> None:
    words = WordVector([3, 5], [1.5, 2.0])
    assert words.is_like(WordVector([5, 3], [2.0000001, 1.5]))
    assert not words.is_like(WordVector([5, 3], [2.0, 1.4]))
    assert not words.is_like(WordVector([5], [2.0]))
    assert not words.is_like(None)
    assert WordVector([], []).is_like(None)


@pytest.fixture
def old_server() -> Iterator[StandIn]:
    with StandIn("1.17.1") as server:
        yield server


def test_an_older_server_adds_no_words_to_a_collection(old_server: StandIn) -> None:
    engine = qdrant_engine(old_server.url)
    index = engine.create()
    with pytest.raises(ConfigError, match=r"Qdrant 1\.18 or later.*edje-qdrant copy"):
        index.begin_words(FIELDS)
    assert index.text_fields is None
    made = engine.create("made", metadata=METADATA)  # a new one may have them
    made.upsert(points())
    assert {3, 10} & {*found(made, "Lisbon")}
    engine.close()


def test_a_server_of_1_16_does_not_weigh_ranks(old_server: StandIn) -> None:
    old_server.version = "1.16.3"
    engine = qdrant_engine(old_server.url)
    index = engine.create(metadata=METADATA)
    index.upsert(points())
    with pytest.raises(ConfigError, match=r"Qdrant 1\.17 or later"):
        found(index, "Lisbon")
    assert found(index, "!!") == found(index, "!!")
    engine.close()


def test_a_server_is_asked_once_for_both(stand_in: StandIn) -> None:
    engine = qdrant_engine(stand_in.url)
    index = engine.create(metadata=METADATA)
    index.upsert(points())
    del stand_in.seen[:], stand_in.params[:]
    found(index, "Lisbon")
    assert [each for each in stand_in.seen if "query" in each] == [
        "POST /collections/images/points/query/batch"
    ]
    assert {params.hnsw_ef is not None for params in stand_in.params} == {True}
    engine.close()


def test_limits_of_strict_mode_hold_for_both_searches(stand_in: StandIn) -> None:
    from qdrant_client import QdrantClient, models

    engine = qdrant_engine(stand_in.url)
    index = engine.create(metadata=METADATA)
    index.upsert(points())
    client = QdrantClient(url=stand_in.url, check_compatibility=False)
    limits = models.StrictModeConfig(enabled=True, max_query_limit=12, search_max_batchsize=1)
    client.update_collection("images", strict_mode_config=limits)
    client.close()
    again = engine.open()
    assert len(again.nearest(VECTORS[:1], 12, words=ByWords(["Lisbon"]))[0]) == 12
    with pytest.raises(ConfigError, match="max_query_limit"):
        again.nearest(VECTORS[:1], 13, words=ByWords(["Lisbon"]))
    engine.close()


def test_grpc_carries_words(grpc_stand_in: GrpcStandIn) -> None:
    client = grpc_stand_in.client(timeout=120)
    engine = qdrant_engine(client)
    index = engine.create()
    index.upsert(points())
    index.begin_words(FIELDS)
    index.set_words({p.id: FIELDS.words_of(p.payload) for p in points()})
    assert 17 in found(index, "Lisbon 17")
    index.set_payload({image_id(5): {"caption": "Porto"}})
    assert 5 in found(index, "Porto")
    np.testing.assert_allclose(index.vectors([image_id(5)])[image_id(5)], VECTORS[5], atol=1e-6)
    assert "Points/CreateVectorName" in grpc_stand_in.seen
    engine.close()
    client.close()
