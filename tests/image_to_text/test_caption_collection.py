from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient
from rounding import DOT, float32_slack

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import (
    CollectionLockedError,
    CollectionNotFoundError,
    ConfigError,
    ContractMismatchError,
    StoreError,
)
from edje_qdrant.image_to_text.caption_collection import CaptionCollection, caption_ids
from edje_qdrant.index import open_embedded, open_on_server

CONTRACT = TokenContract(
    encoder="tiny", encoder_revision="e0", preprocessing="p0", embedding_dim=8, adapter_hash="a0",
    num_tokens=4, token_dim=6, model="demo", library_version="0.1.0",
)  # fmt: skip
TEXTS = ["A dog in the snow.", "Two cats", "a red kite!", "kites over a lake", "nothing much"]


def embeddings_of(n: int, seed: int = 0) -> NDArray[np.float32]:
    numbers = np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)
    return numbers / np.linalg.norm(numbers, axis=1, keepdims=True)


@dataclass
class Place:
    location: Any

    def create(self, name: str = "captions") -> CaptionCollection:
        return CaptionCollection.create(self.location, name, CONTRACT)

    def open(self, name: str = "captions") -> CaptionCollection:
        return CaptionCollection.open(self.location, name)


@pytest.fixture(params=["edge", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path / "photos" if request.param == "edge" else QdrantClient(":memory:"))


def test_captions_are_found_by_a_pictures_embedding(place: Place) -> None:
    vectors = embeddings_of(5)
    payloads = [{"language": "en" if n % 2 else "de", "number": n} for n in range(5)]
    with place.create() as collection:
        ids = collection.add(TEXTS, vectors, payloads)
        collection.flush()
        assert ids == caption_ids(TEXTS)
    with place.open() as collection:
        assert (collection.count(), len(collection)) == (5, 5)
        assert collection.contract == CONTRACT
        asked = embeddings_of(2, seed=1)
        for query, found in zip(asked, collection.nearest(asked, 3), strict=True):
            order = np.argsort(-(vectors @ query))[:3].tolist()
            assert [candidate.image_id for candidate in found] == [ids[row] for row in order]
            assert [c.payload for c in found] == [{**payloads[r], "text": TEXTS[r]} for r in order]
            assert [candidate.rank for candidate in found] == [1, 2, 3]
        (found,) = collection.nearest(asked[:1], 5, filter={"language": "en"})
        assert {candidate.payload["text"] for candidate in found} == {TEXTS[1], TEXTS[3]}
        assert collection.count({"language": "de"}) == 3


def test_adding_twice_adds_nothing_and_the_first_spelling_stays(place: Place) -> None:
    with place.create() as collection:
        ids = collection.add(TEXTS[:2], embeddings_of(2), [{"n": 1}, {"n": 2}])
        again = ["two cats!", "Two Cats", "new", "New."]
        more = collection.add(again, embeddings_of(4, seed=1), [{"n": n} for n in range(4)])
        assert more[0] == more[1] == ids[1]
        assert more[2] == more[3]
        assert collection.count() == 3
        kept = collection.index.retrieve([ids[1], more[2]])
        assert kept[ids[1]] == {"n": 2, "text": "Two cats"}
        assert kept[more[2]] == {"n": 2, "text": "new"}
        stored = collection.index.vectors([ids[1]])[ids[1]]
        np.testing.assert_allclose(
            stored, embeddings_of(2)[1], atol=float32_slack(1, roundings=DOT)
        )
        assert collection.add([], embeddings_of(0)) == []


def test_ids_stay_the_same_for_ever() -> None:
    assert caption_ids(["A dog!"]) == caption_ids(["a  dog"])
    assert caption_ids(["a dog"]) == ["f399a2dd-2deb-578b-ba7f-fe622a5e6875"]
    assert uuid.UUID(caption_ids(["a dog"])[0]).version == 5


def test_deleted_captions_are_gone(place: Place) -> None:
    with place.create() as collection:
        ids = collection.add(TEXTS, embeddings_of(5))
        collection.delete([ids[0], ids[2], str(uuid.uuid4())])
        assert collection.existing(ids) == {ids[1], ids[3], ids[4]}
        assert collection.count() == 3
        collection.add(TEXTS[:1], embeddings_of(1))
        assert collection.count() == 4


def test_what_cannot_be_added_is_refused_and_nothing_is_written(place: Place) -> None:
    good = embeddings_of(2)
    bad = good.copy()
    bad[1, 3] = np.nan
    with place.create() as collection:
        for texts, embeddings, payloads, message in [
            ("a dog", good, None, "give a list of texts"),
            (["a dog", 7], good, None, "texts holds 7; give texts"),
            (["a dog", "?!"], good, None, "has none"),
            (["a dog", "b"], good[:1], None, "for 2 ids"),
            (["a dog", "b"], bad, None, f"embeddings of caption {caption_ids(['b'])[0]} hold NaN"),
            (["a dog", "b"], good, [{}], "1 payloads for 2 captions"),
            (["a dog", "b"], good, [{}, {"text": 1}], "the payload of 'b' has the key 'text'"),
            (["a dog", "b"], good, [{}, {"_edje": 1}], "which is reserved"),
            (["a dog", "b"], good, [{}, {"x": object()}], "cannot be written as JSON"),
        ]:
            with pytest.raises(ConfigError, match=message):
                collection.add(texts, embeddings, payloads)  # type: ignore[arg-type]
        assert collection.count() == 0


def test_captions_and_pictures_are_not_taken_for_each_other(place: Place) -> None:
    place.create("captions").close()
    ImageCollection.create(place.location, "images", CONTRACT, tokens="payload").close()
    with pytest.raises(StoreError, match=r"'images' at .* holds images, not captions; .*Image"):
        place.open("images")
    with pytest.raises(StoreError, match=r"'captions' at .* holds captions, not images; .*Capt"):
        ImageCollection.open(place.location, "captions")
    # Neither refusal keeps anything locked.
    place.open("captions").close()
    ImageCollection.open(place.location, "images").close()


def test_a_record_that_cannot_be_read_is_refused(place: Place) -> None:
    with place.create() as collection:
        record = dict(collection.index.metadata)
    for change, message in [
        ({"holds": "songs"}, "does not say what wrote it"),
        ({"holds": ["captions"]}, "does not say what wrote it"),
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"contract": 3}, "does not say what wrote it"),
    ]:
        with place.open() as collection:
            collection.index.set_metadata({**record, **change})
        for kind in (CaptionCollection, ImageCollection):
            with pytest.raises(StoreError):
                kind.open(place.location, "captions")
        with pytest.raises(StoreError, match=message):
            place.open()
        if isinstance(place.location, Path):
            index: Any = open_embedded(place.location / "captions")
        else:
            index = open_on_server(place.location, "captions")
        index.set_metadata(record)
        index.close()
    place.open().close()


def test_another_model_is_refused(place: Place) -> None:
    with place.create() as collection:
        collection.require(CONTRACT.with_codec("int8"))  # codecs concern tokens alone
        with pytest.raises(ContractMismatchError, match="encoder_revision: expected 'e1'"):
            collection.require(replace(CONTRACT, encoder_revision="e1"))


def test_a_name_is_taken_once_and_unknown_ones_are_named(place: Place) -> None:
    place.create().close()
    with pytest.raises(StoreError, match="already"):
        place.create()
    with pytest.raises(CollectionNotFoundError, match="it holds captions"):
        place.open("others")
    with pytest.raises(ConfigError, match="cannot be used"):
        place.create("a/b")


def test_the_first_call_creates_and_the_second_opens(place: Place) -> None:
    with CaptionCollection.open_or_create(place.location, "captions", CONTRACT) as collection:
        collection.add(TEXTS, embeddings_of(5))
    with CaptionCollection.open_or_create(place.location, "captions", CONTRACT) as collection:
        assert len(collection) == 5
    other = replace(CONTRACT, encoder_revision="e1")
    with pytest.raises(ContractMismatchError, match="encoder_revision: expected 'e1'"):
        CaptionCollection.open_or_create(place.location, "captions", other)
    place.open().close()  # its lock was released
    with pytest.raises(ConfigError, match="contract"):
        CaptionCollection.open_or_create(place.location, "new", "demo")  # type: ignore[arg-type]
    with pytest.raises(CollectionNotFoundError):
        place.open("new")


def test_one_that_another_process_creates_at_the_same_time_is_opened(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = CaptionCollection.create

    def late(*args: Any, **more: Any) -> CaptionCollection:
        create(*args, **more).close()
        return create(*args, **more)

    monkeypatch.setattr(CaptionCollection, "create", late)
    with CaptionCollection.open_or_create(place.location, "captions", CONTRACT) as collection:
        assert len(collection) == 0


def test_a_folder_is_open_once(tmp_path: Path) -> None:
    with Place(tmp_path).create(), pytest.raises(CollectionLockedError):
        Place(tmp_path).open()


def test_in_memory_nothing_is_left() -> None:
    with CaptionCollection.create(":memory:", "captions", CONTRACT) as collection:
        collection.add(TEXTS, embeddings_of(5))
        collection.optimize()
        assert collection.count() == 5
    with pytest.raises(StoreError, match="is closed"):
        collection.count()
