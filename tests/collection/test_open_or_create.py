"""Opening or creating a collection in one call, and listing what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from collection_places import CONTRACT, KINDS, Place, encoding_of, ids_of, make_place
from index_stand_in import StandIn
from qdrant_client import QdrantClient, models

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    CollectionExistsError,
    CollectionLockedError,
    ConfigError,
    ContractMismatchError,
    TokensNotFoundError,
)
from edje_qdrant.tokens.codecs import Codec, codec_for


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = make_place(request.param, tmp_path)
    yield place
    if isinstance(place.location, QdrantClient):
        place.location.close()


def fill(collection: ImageCollection, ids: list[str]) -> None:
    collection.add(ids, encoding_of(ids), [{"path": f"{n}.png", "n": n} for n in range(len(ids))])


def test_the_first_call_creates_and_the_second_opens(place: Place) -> None:
    options: Any = {"tokens": place.tokens, "tokens_folder": place.tokens_folder}
    given = (place.location, "images", CONTRACT)
    with ImageCollection.open_or_create(*given, codec="int8", **options) as collection:
        fill(collection, ids_of(3))
    with ImageCollection.open_or_create(*given, **options) as collection:
        assert len(collection) == 3
        assert collection.codec.name == "int8"
        assert collection.token_place == place.tokens


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codec": "float16"}, "stores tokens as int8, not float16; leave the codec out"),
        ({"codec": codec_for("float16", 4, 6)}, "not float16"),
        ({"codec": "cake"}, "unknown codec 'cake'"),
        ({"engine": "faiss"}, "is kept by edge, not faiss; leave the engine out"),
        ({"engine": "cake"}, "engine is 'cake'"),
        ({"tokens": "payload"}, 'keeps its tokens in "file", not "payload"'),
        ({"payload_indexes": {"n": "cake"}}, "cake"),
    ],
)
def test_another_kind_of_collection_is_refused(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    ImageCollection.create(tmp_path, "images", CONTRACT, codec="int8").close()
    with pytest.raises(ConfigError, match=words):
        ImageCollection.open_or_create(tmp_path, "images", CONTRACT, **options)
    ImageCollection.open(tmp_path, "images").close()  # it was closed


def test_another_model_is_refused_with_both_values(tmp_path: Path) -> None:
    ImageCollection.create(tmp_path, "images", CONTRACT).close()
    with pytest.raises(ContractMismatchError) as caught:
        ImageCollection.open_or_create(tmp_path, "images", replace(CONTRACT, adapter_hash="other"))
    assert caught.value.found["adapter_hash"] != caught.value.expected["adapter_hash"]


def test_a_function_is_asked_for_the_contract_of_a_new_collection_alone(tmp_path: Path) -> None:
    asked = []

    def contract() -> Any:
        asked.append(1)
        return CONTRACT

    for _ in range(2):
        ImageCollection.open_or_create(tmp_path, "images", contract).close()
    assert len(asked) == 1


def test_a_codec_with_a_codebook_is_fitted_once(tmp_path: Path) -> None:
    contract = replace(CONTRACT, num_tokens=8, token_dim=32)
    given = (tmp_path, "images", contract)
    fitted = []

    def fit(codec: Codec) -> Codec:
        import numpy as np

        rng = np.random.default_rng(0)
        fitted.append(codec.fit(rng.standard_normal((64, 8, 32)).astype(np.float16)))
        return fitted[-1]

    with pytest.raises(ConfigError, match="has a codebook"):
        ImageCollection.open_or_create(*given, codec="pq16")
    for _ in range(2):
        with ImageCollection.open_or_create(*given, codec="pq16", fit=fit) as collection:
            assert collection.codec.key == fitted[0].key
    assert len(fitted) == 1
    ImageCollection.open_or_create(*given, codec=fitted[0]).close()


def test_payload_indexes_that_are_missing_are_created(tmp_path: Path) -> None:
    given = (tmp_path, "images", CONTRACT)
    ImageCollection.open_or_create(*given, payload_indexes={"album": "keyword"}).close()
    more: Any = {"album": "keyword", "year": "integer"}
    with ImageCollection.open_or_create(*given, payload_indexes=more) as collection:
        assert collection.payload_indexes() == more


def test_the_loser_of_a_race_to_create_opens_the_winners(monkeypatch: pytest.MonkeyPatch) -> None:
    create = ImageCollection.create

    def beaten(*args: Any, **options: Any) -> ImageCollection:
        create(*args, **options).close()
        raise CollectionExistsError(str(args[0]), args[1])

    with StandIn() as server:
        monkeypatch.setattr(ImageCollection, "create", beaten)
        with ImageCollection.open_or_create(server.url, "images", CONTRACT) as collection:
            assert collection.name == "images"


def test_a_second_open_in_this_process_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ImageCollection.create(tmp_path, "images", CONTRACT).close()
    with ImageCollection.open(tmp_path, "images"):
        with pytest.raises(CollectionLockedError, match="this process already") as caught:
            ImageCollection.open_or_create(tmp_path, "images", CONTRACT)
        assert caught.value.same_process
        monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a forked process
        with pytest.raises(CollectionLockedError, match="open in another process"):
            ImageCollection.open(tmp_path, "images")
        monkeypatch.undo()
    ImageCollection.open(tmp_path, "images").close()


def test_ids_and_payloads_are_listed(place: Place) -> None:
    ids = ids_of(5)
    with place.create() as collection:
        fill(collection, ids)
        assert [*collection.ids()] == sorted(ids)
        assert {*collection.ids({"n": [1, 3]})} == {ids[1], ids[3]}
        asked = [ids[2], ids[0], ids[2]]
        assert collection.payloads(asked) == [{"path": f"{n}.png", "n": n} for n in (2, 0, 2)]
        assert collection.payloads([]) == []
        every = collection.payloads(collection.ids())
        assert sorted(payload["n"] for payload in every) == [*range(5)]
        with pytest.raises(TokensNotFoundError, match="not in the collection") as caught:
            collection.payloads([*ids, *ids_of(1, start=77)])
        assert caught.value.image_ids == (*ids_of(1, start=77),)
        with pytest.raises(ConfigError, match="image_ids"):
            collection.payloads(ids[0])
        with pytest.raises(ConfigError):
            collection.ids({"n": []})


def test_points_of_other_programs_are_not_among_the_ids() -> None:
    with (
        StandIn() as server,
        ImageCollection.open_or_create(server.url, "images", CONTRACT) as collection,
    ):
        fill(collection, ids_of(2))
        other = models.PointStruct(id=7, vector=[1.0] + [0.0] * (CONTRACT.embedding_dim - 1))
        server.client.upsert("images", [other])
        assert [*collection.ids()] == sorted(ids_of(2))


def test_the_repr_is_one_line_and_asks_nothing(tmp_path: Path) -> None:
    collection = ImageCollection.create(tmp_path, "images", CONTRACT, codec="int8")
    collection.close()
    assert repr(collection) == (
        f"ImageCollection('images', location={str(tmp_path)!r}, engine='edge', "
        f"model={CONTRACT.model!r}, codec='int8')"
    )
