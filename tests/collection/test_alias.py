"""Aliases that are moved, and collections that another model's replace, while they are open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from collection_places import CONTRACT, encoding_of, fill, ids_of, payloads_of
from index_stand_in import RefusalError, StandIn
from qdrant_client import QdrantClient, models
from served import OTHER, SERVERS, Server, served

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import is_ours
from edje_qdrant.errors import CollectionNotFoundError, ContractMismatchError, StoreError
from edje_qdrant.image_to_text.caption_collection import CaptionCollection
from edje_qdrant.maintenance import copy_collection, transcode, verify
from edje_qdrant.types import Candidate


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from served(request.param)


def found(collection: ImageCollection, n: int = 3) -> list[Candidate]:
    (candidates,) = collection.nearest(encoding_of(ids_of(1)).embeddings, n)
    return [*candidates]


def test_a_moved_alias_changes_nothing_for_who_has_opened_it(server: Server) -> None:
    ids = ids_of(6)
    with server.create("v1") as old, server.create("v2", OTHER) as new:
        fill(old, ids[:3])
        fill(new, ids[3:], seed=1)
    server.point("live", "v1")
    with server.open("live") as opened:
        assert opened.name == server.name("live")
        assert opened.resolved_name == server.name("v1")
        before = found(opened)
        server.point("live", "v2")
        assert [each.image_id for each in found(opened)] == [each.image_id for each in before]
        assert {each.image_id for each in before} == {*ids[:3]}
        assert opened.tokens(before).shape == (3, 4, 6)
        fill(opened, ids_of(1, start=9))
        opened.update_payload({ids[0]: {"seen": True}})
        opened.delete([ids[1]])
        assert len(opened) == 3
    assert {*server.stored("v1")} == {ids[0], ids[2], *ids_of(1, start=9)}
    assert {*server.stored("v2")} == {*ids[3:]}
    with server.open("live") as opened:
        assert opened.contract.adapter_hash == OTHER.adapter_hash
        assert opened.resolved_name == server.name("v2")


def test_cursors_name_the_collection_itself(server: Server) -> None:
    server.create("v1").close()
    server.create("v2").close()  # of the same model
    server.point("live", "v1")
    with server.open("live") as first, server.open("v1") as same:
        server.point("live", "v2")
        with server.open("live") as second:
            assert first.identity == same.identity != second.identity


def test_points_name_the_model_that_wrote_them(server: Server) -> None:
    ids = ids_of(2)
    with server.create("v1", codec="int8") as collection:
        fill(collection, ids)
        keys = {payload["_edje"]["contract"] for payload in server.stored("v1").values()}
        assert keys == {CONTRACT.model_key}
        assert len(CONTRACT.model_key) == 8
        transcode(collection, "int4")
        keys = {payload["_edje"]["contract"] for payload in server.stored("v1").values()}
        assert keys == {CONTRACT.model_key}
        with server.create("v2", codec="int4") as copy:
            copy_collection(collection, copy)
        assert {p["_edje"]["contract"] for p in server.stored("v2").values()} == keys


def test_the_key_of_a_model() -> None:
    same = replace(CONTRACT.with_codec("int4", "c0"), model="elsewhere", library_version="9")
    assert same.model_key == CONTRACT.model_key
    for change in (
        {"encoder": "x"}, {"encoder_revision": "x"}, {"preprocessing": "x"}, {"embedding_dim": 9},
        {"adapter_hash": "x"}, {"num_tokens": 9}, {"token_dim": 9}, {"dtype": "float32"},
    ):  # fmt: skip
        assert replace(CONTRACT, **change).model_key != CONTRACT.model_key, change
    assert CONTRACT.model_key == "12784428"  # stored in points, so it must not change


def test_points_that_name_no_model_are_read_as_before(server: Server) -> None:
    ids = ids_of(2)
    with server.create("v1") as collection:
        fill(collection, ids)
        for image_id, payload in server.stored("v1").items():
            reference = {k: v for k, v in payload["_edje"].items() if k != "contract"}
            server.client.set_payload(server.name("v1"), {"_edje": reference}, [image_id])
        assert collection.tokens(found(collection)).shape == (2, 4, 6)
        assert verify(collection).clean


WRITES: dict[str, Callable[[ImageCollection], Any]] = {
    "add": lambda c: c.add(ids_of(2), encoding_of(ids_of(2)), payloads_of(ids_of(2))),
    "add_new": lambda c: c.add_new(ids_of(7), encoding_of(ids_of(7)), payloads_of(ids_of(7))),
    "add_codes": lambda c: c.add_codes(
        ids_of(7), encoding_of(ids_of(7)).embeddings,
        c.codec.encode(encoding_of(ids_of(7)).tokens), payloads_of(ids_of(7)),
    ),
    "replace_encodings": lambda c: c.replace_encodings(ids_of(2), encoding_of(ids_of(2))),
    "update": lambda c: c.update_payload({ids_of(1)[0]: {"a": 1}}),
    "remove keys": lambda c: c.index.remove_payload_keys(ids_of(1), ["path"]),
    "delete": lambda c: c.delete(ids_of(1)),
    "delete_matching": lambda c: c.delete_matching({"path": f"{ids_of(1)[0]}.png"}),
    "set_codec": lambda c: c.set_codec("int8"),
    "transcode": lambda c: transcode(c, "int8"),
}  # fmt: skip


@pytest.mark.parametrize("how", WRITES)
def test_nothing_is_written_to_a_collection_that_replaced_the_one_opened(
    server: Server, how: str
) -> None:
    with server.create("v1") as opened:
        fill(opened, ids_of(2))
        server.replace("v1")
        with server.open("v1") as other:
            fill(other, ids_of(3), seed=1)
        before = server.stored("v1")
        with pytest.raises(ContractMismatchError) as caught:
            WRITES[how](opened)
        assert caught.value.expected == {"adapter_hash": "a0"}
        assert caught.value.found == {"adapter_hash": "a1"}
        assert "replaced since it was opened" in str(caught.value)
        assert "(other)" in str(caught.value)  # the model to open it with
        assert server.stored("v1") == before
        assert server.open("v1").codec.name == "float16"


READS: dict[str, Callable[[ImageCollection], Any]] = {
    "nearest": found,
    "recommend": lambda c: c.recommend(ids_of(1), [], 2),
    "tokens": lambda c: c.tokens([Candidate(i, 0.0, 1, {}) for i in ids_of(2)]),
    "encodings": lambda c: c.encodings(ids_of(2)),
}


@pytest.mark.parametrize("how", READS)
def test_nothing_is_read_from_a_collection_that_replaced_the_one_opened(
    server: Server, how: str
) -> None:
    with server.create("v1") as opened:
        fill(opened, ids_of(3))
        server.replace("v1")
        with server.open("v1") as other:
            fill(other, ids_of(3), seed=1)
        with pytest.raises(ContractMismatchError, match="replaced since it was opened"):
            READS[how](opened)


def test_a_collection_of_other_vectors_is_named_too(server: Server) -> None:
    wider = replace(OTHER, embedding_dim=12)
    with server.create("v1") as opened:
        fill(opened, ids_of(3))
        server.replace("v1", wider)
        for ask in (found, *WRITES.values()):
            with pytest.raises(ContractMismatchError, match="replaced since it was opened"):
                ask(opened)


def test_a_collection_that_an_alias_stood_for_is_gone(server: Server) -> None:
    server.create("v1").close()
    server.create("v2", OTHER).close()
    server.point("live", "v1")
    with server.open("live") as opened:
        server.point("live", "v2")
        server.client.delete_collection(server.name("v1"))
        for ask in (found, WRITES["add"]):
            with pytest.raises(CollectionNotFoundError, match="stood for it when") as caught:
                ask(opened)
            assert "open the alias again" in str(caught.value)
            assert caught.value.name == server.name("v1")


def test_captions_are_not_written_to_another_models_collection(server: Server) -> None:
    captions, name = encoding_of(ids_of(1)).embeddings, server.name("captions")
    with CaptionCollection.create(server.client, name, CONTRACT) as opened:
        server.client.delete_collection(name)
        CaptionCollection.create(server.client, name, OTHER).close()
        with pytest.raises(ContractMismatchError, match="replaced since it was opened"):
            opened.add(["a cat"], captions)
        server.client.delete_collection(name)
        ImageCollection.create(server.client, name, CONTRACT).close()
        with pytest.raises(StoreError, match="holds images, not captions"):
            opened.add(["a cat"], captions)
    assert not server.stored("captions")


class NoAliases(StandIn):
    """Refuse to list aliases, as a server does for some keys."""

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        if path == ["aliases"]:
            raise RefusalError(403, "Forbidden: Global manage access is required")
        return super().answer(method, path, body)


def test_a_key_that_lists_no_aliases() -> None:
    """Then the alias cannot be pinned, but its switch is found at the next read or write."""
    ids = ids_of(3)
    with NoAliases() as stand_in:
        client = QdrantClient(url=stand_in.url, check_compatibility=False)
        server = Server(client, "")
        for name, contract in (("v1", CONTRACT), ("v2", OTHER)):
            with server.create(name, contract) as collection:
                fill(collection, ids)
        stand_in.answer(
            "POST", ["collections", "aliases"],
            {"actions": [{"create_alias": {"collection_name": "v1", "alias_name": "live"}}]},
        )  # fmt: skip
        with server.open("live") as opened:
            assert opened.resolved_name == "live"
            candidates = found(opened)
            stand_in.answer(
                "POST", ["collections", "aliases"],
                {"actions": [{"create_alias": {"collection_name": "v2", "alias_name": "live"}}]},
            )  # fmt: skip
            for ask in (found, lambda c: c.tokens(candidates), *WRITES.values()):
                with pytest.raises(ContractMismatchError, match="replaced since it was opened"):
                    ask(opened)
        client.close()


def mixed(server: Server) -> list[str]:
    """Make a collection of 4 images of which another model wrote the last; return the ids."""
    ids = ids_of(4)
    with server.create("v1") as collection, server.create("v2", OTHER) as other:
        fill(collection, ids[:3])
        fill(other, ids[3:], seed=1)
    (record,) = server.client.retrieve(server.name("v2"), ids[3:], with_vectors=True)
    point = models.PointStruct(id=ids[3], vector=record.vector, payload=record.payload)
    server.client.upsert(server.name("v1"), [point])
    return ids


def test_images_of_another_model_are_named(server: Server) -> None:
    ids = mixed(server)
    with server.open("v1") as collection:
        with pytest.raises(ContractMismatchError) as caught:
            found(collection, 4)
        assert ids[3] in str(caught.value)
        assert "edje-qdrant repair" in str(caught.value)
        assert caught.value.expected == {"contract": CONTRACT.model_key}
        assert caught.value.found == {"contract": OTHER.model_key}
        (finding,) = verify(collection).findings
        assert (finding.kind, finding.image_id) == ("other model", ids[3])
        assert OTHER.model_key in finding.detail
        assert "transcode" not in finding.detail
        report = transcode(collection, "int8")
        assert (report.moved, report.unreadable) == (3, (ids[3],))
        assert server.stored("v1")[ids[3]]["_edje"]["codec"] == "float16"
        assert [f.kind for f in verify(collection).findings] == ["other model"]
        with server.create("v3", codec="int8") as copy, pytest.raises(ContractMismatchError):
            copy_collection(collection, copy)


@pytest.mark.parametrize(
    ("point_id", "payload", "ours"),
    [
        (ids_of(1)[0], {"_edje": {}}, True),
        (ids_of(1)[0], {"path": "a"}, False),
        ("7", {"_edje": {"codec": "float16"}}, False),
        ("7", {}, False),
    ],
)
def test_whose_a_point_is(point_id: str, payload: dict[str, Any], ours: bool) -> None:
    assert is_ours(point_id, payload) is ours
