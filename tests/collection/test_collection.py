from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_places import (
    CONTRACT,
    KINDS,
    encoding_of,
    fill,
    ids_of,
    make_place,
    payloads_of,
    side_file,
)
from qdrant_client import QdrantClient
from rounding import DOT, float32_slack

from edje_qdrant.collection.collection import ImageCollection, user_payload
from edje_qdrant.errors import (
    CollectionExistsError,
    CollectionLockedError,
    CollectionNotFoundError,
    ConfigError,
    ContractMismatchError,
    EngineUnavailableError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.image_to_text.caption_collection import CaptionCollection
from edje_qdrant.index import create_embedded
from edje_qdrant.index.edge.backend import EdgeBackend
from edje_qdrant.index.qdrant.backend import QdrantBackend
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.tokens.manifest import Manifest
from edje_qdrant.types import Candidate, Point


@pytest.fixture(params=KINDS)
def place(request, tmp_path):
    place = make_place(request.param, tmp_path)
    yield place
    if isinstance(place.location, QdrantClient):
        place.location.close()


@pytest.fixture
def edge_file(tmp_path):
    return make_place("edge-file", tmp_path)


def test_what_goes_in_comes_out(place):
    ids = ids_of(30)
    with place.create() as collection:
        assert len(collection) == 0
        first, second = fill(collection, ids[:20]), fill(collection, ids[20:])
        tokens = np.concatenate([first.tokens, second.tokens])
        embeddings = np.concatenate([first.embeddings, second.embeddings])
        collection.optimize()
        assert len(collection) == collection.count() == 30
        assert collection.existing(ids_of(40)) == set(ids)
        assert collection.contract == CONTRACT
        assert collection.name == "images"

        (found,) = collection.nearest(embeddings[7:8], 30)
        assert found[0].image_id == ids[7]
        assert found[0].score == pytest.approx(1, abs=float32_slack(1, roundings=DOT))
        assert [c.rank for c in found] == list(range(1, 31))
        back = collection.tokens(found)
        assert back.dtype == np.float16
        assert back.tobytes() == tokens[[ids.index(c.image_id) for c in found]].tobytes()


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_a_smaller_codec_is_kept_with_the_collection(place, codec):
    ids = ids_of(9)
    with ImageCollection.create(
        place.location, "images", CONTRACT, tokens=place.tokens,
        tokens_folder=place.tokens_folder, codec=codec,
    ) as collection:  # fmt: skip
        encoding = fill(collection, ids)
        nbytes = collection.bytes_per_image()
    with place.open() as collection:
        assert collection.contract == CONTRACT.with_codec(codec)
        collection.require(CONTRACT)  # the model's contract does not say how tokens are stored
        (found,) = collection.nearest(encoding.embeddings[:1], 9)
        order = [ids.index(c.image_id) for c in found]
        exact = codec_for(codec, 4, 6)
        expected = exact.decode(exact.encode(encoding.tokens[order]))
        assert np.array_equal(collection.tokens(found), expected)
        assert collection.bytes_per_image() == nbytes
    record = 4 * (2 + (6 if codec == "int8" else 3))
    assert nbytes == (record if place.tokens == "file" else 4 * ((record + 2) // 3))


def test_survives_reopening_and_goes_on(place):
    ids = ids_of(12)
    with place.create() as collection:
        fill(collection, ids[:8])
    with place.open() as collection:
        assert collection.contract == CONTRACT
        assert len(collection) == 8
        fill(collection, ids[8:])
    with place.open() as collection:
        (found,) = collection.nearest(encoding_of(ids[:1]).embeddings, 100)
        assert {c.image_id for c in found} == set(ids)
        expected = encoding_of([c.image_id for c in found]).tokens
        assert collection.tokens(found).tobytes() == expected.tobytes()


def test_candidates_of_several_queries_are_read_at_once(place):
    ids = ids_of(10)
    with place.create() as collection:
        encoding = fill(collection, ids)
        lists = collection.nearest(encoding.embeddings[:3], 6)
        flat = [candidate for found in lists for candidate in found]
        assert len({c.image_id for c in flat}) < len(flat) == 18
        expected = encoding_of([c.image_id for c in flat]).tokens
        assert collection.tokens(flat).tobytes() == expected.tobytes()
        assert collection.tokens([]).shape == (0, 4, 6)


def test_embeddings_and_tokens_are_read_back_by_id(place):
    with place.create() as collection:
        encoding = fill(collection, ids_of(5))
        a, b, c, _, e = ids_of(5)
        back = collection.encodings([e, b, b, a])
        np.testing.assert_allclose(
            back.embeddings,
            encoding.embeddings[[4, 1, 1, 0]],
            atol=float32_slack(1, roundings=DOT),
        )
        assert (back.tokens == encoding.tokens[[4, 1, 1, 0]]).all()
        assert (back.embeddings.dtype, back.tokens.dtype) == (np.float32, np.float16)
        none = collection.encodings([])
        assert (none.embeddings.shape, none.tokens.shape) == ((0, 8), (0, 4, 6))
        collection.delete([c])
        with pytest.raises(TokensNotFoundError, match="not in the collection") as caught:
            collection.encodings([a, c, b])
        assert caught.value.image_ids == (c,)


def test_engines_and_stores_give_the_same_candidates_and_tokens(tmp_path):
    ids = ids_of(40)
    queries = encoding_of(ids_of(5, start=100)).embeddings
    answers = []
    for kind in KINDS:
        with make_place(kind, tmp_path / kind).create() as collection:
            fill(collection, ids)
            lists = collection.nearest(queries, 15)
            found = [candidate for each in lists for candidate in each]
            answers.append(
                (
                    [c.image_id for c in found],
                    [round(c.score, 5) for c in found],
                    [user_payload(c.payload) for c in found],
                    collection.tokens(found).tobytes(),
                )
            )
    assert all(answer == answers[0] for answer in answers[1:])


def test_adding_again_replaces(place):
    ids = ids_of(4)
    with place.create() as collection:
        fill(collection, ids)
        new = fill(collection, ids[1:2], seed=9)
        assert len(collection) == 4
        (found,) = collection.nearest(new.embeddings, 1)
        assert found[0].image_id == ids[1]
        assert collection.tokens(found).tobytes() == new.tokens.tobytes()


def test_deleting(place):
    ids = ids_of(6)
    with place.create() as collection:
        encoding = fill(collection, ids)
        collection.delete([ids[2], ids_of(1, start=50)[0]])
        assert collection.existing(ids) == {*ids} - {ids[2]}
        (found,) = collection.nearest(encoding.embeddings[2:3], 10)
        assert ids[2] not in {c.image_id for c in found}
        expected = encoding_of([c.image_id for c in found]).tokens
        assert collection.tokens(found).tobytes() == expected.tobytes()


def test_deleting_by_payload(place):
    ids = ids_of(8)
    with place.create() as collection:
        encoding = encoding_of(ids)
        payloads = [{"album": {"name": "a" if n < 3 else "b"}, "year": n} for n in range(8)]
        collection.add(ids, encoding, payloads)
        assert collection.count({"album.name": "b"}) == 5
        assert collection.count({"album.name": "b", "year": [0, 3, 4]}) == 2
        assert collection.count({"album.name": "c"}) == 0
        collection.delete_matching({"album.name": "b", "year": [0, 3, 4]})
        assert collection.existing(ids) == {*ids} - {ids[3], ids[4]}
        collection.delete_matching({"album.name": "c"})
        assert len(collection) == 6
        for nothing in ({}, None):
            with pytest.raises(ConfigError, match="delete everything"):
                collection.delete_matching(nothing)
        for use in (collection.delete_matching, collection.count):
            with pytest.raises(ConfigError, match="reserved"):
                use({"_edje.codec": "float16"})
        collection.flush()
    with place.open() as collection:
        assert collection.count() == collection.count({}) == collection.count(None) == 6
        (found,) = collection.nearest(encoding.embeddings[:1], 10)
        order = [ids.index(c.image_id) for c in found]
        assert collection.tokens(found).tobytes() == encoding.tokens[order].tobytes()


def test_fields_are_set_and_all_else_stays(place):
    ids = ids_of(4)
    with place.create() as collection:
        encoding = fill(collection, ids)
        vectors = collection.index.vectors(ids)
        changed = {
            ids[0]: {"title": "ä", "nested": {"a": None}},
            ids[1]: {},
            ids_of(1, start=90)[0]: {"title": "nobody"},
        }
        collection.update_payload(changed)
        collection.update_payload({})
        collection.flush()
    with place.open() as collection:
        assert len(collection) == 4
        stored = collection.index.retrieve(ids, tokens=False)
        path = {"path": f"{ids[0]}.png"}
        assert user_payload(stored[ids[0]]) == {**path, "title": "ä", "nested": {"a": None}}
        assert [user_payload(stored[i]) for i in ids[1:]] == payloads_of(ids[1:])
        back = collection.encodings(ids)
        assert back.tokens.tobytes() == encoding.tokens.tobytes()
        assert all((back.embeddings[row] == vectors[i]).all() for row, i in enumerate(ids))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"_edje": {}}, "'_edje', which is reserved"),
        ({"title": "x", "_edje": None}, "'_edje', which is reserved"),
        ({"title": None}, "'title' to None"),
        ({"title": float("nan")}, "JSON"),
        ({"title": Path("x")}, "JSON"),
    ],
)
def test_fields_that_cannot_be_set_change_nothing(place, payload, message):
    ids = ids_of(3)
    with place.create() as collection:
        fill(collection, ids)
        with pytest.raises(ConfigError, match=message):
            collection.update_payload({ids[0]: {"title": "fine"}, ids[1]: payload})
        with pytest.raises(ConfigError, match="not a UUID"):
            collection.update_payload({ids[0]: {"title": "fine"}, "x": {}})
        stored = collection.index.retrieve(ids, tokens=False)
        assert [user_payload(stored[i]) for i in ids] == payloads_of(ids)
        assert len(collection.encodings(ids)) == 3


def test_codes_are_added_as_they_are(place):
    ids = ids_of(5)
    codec = codec_for("int8", 4, 6)
    encoding = encoding_of(ids)
    codes = codec.encode(encoding.tokens)
    with ImageCollection.create(
        place.location, "images", CONTRACT, tokens=place.tokens,
        tokens_folder=place.tokens_folder, codec=codec,
    ) as collection:  # fmt: skip
        collection.add_codes([], encoding.embeddings[:0], codes[:0], [])
        assert len(collection) == 0
        collection.add_codes(ids, encoding.embeddings, codes, payloads_of(ids))
        back = collection.encodings(ids)
        assert back.tokens.tobytes() == codec.decode(codes).tobytes()
        for wrong in (codes[:4], codes[:, 1:], codes.astype(np.uint16)):
            with pytest.raises(ConfigError, match="codes must be uint8"):
                collection.add_codes(ids, encoding.embeddings, wrong, payloads_of(ids))
        with pytest.raises(ConfigError, match="reserved"):
            collection.add_codes(ids, encoding.embeddings, codes, [{"_edje": 1}] * 5)
        with pytest.raises(ConfigError, match="embeddings must be float32"):
            collection.add_codes(ids, encoding.embeddings[:, 1:], codes, payloads_of(ids))


def test_embeddings_of_unit_length_are_kept_to_the_last_bit(edge_file):
    ids = ids_of(300)
    with edge_file.create() as collection:
        given = fill(collection, ids)
        back = collection.encodings(ids)
        assert back.embeddings.tobytes() == given.embeddings.tobytes()
        collection.add(ids, back, payloads_of(ids))
        assert collection.encodings(ids).embeddings.tobytes() == given.embeddings.tobytes()


def test_another_codec_from_now_on(place):
    ids = ids_of(6)
    int8 = codec_for("int8", 4, 6)
    with place.create() as collection:
        fill(collection, ids[:3])
        collection.set_codec(int8)
        assert collection.contract == CONTRACT.with_codec("int8")
        fill(collection, ids[3:])
    with place.open() as collection:
        assert collection.contract == CONTRACT.with_codec("int8")
        collection.set_codec(int8)  # again, which changes nothing
        exact = encoding_of(ids).tokens
        expected = np.concatenate([exact[:3], int8.decode(int8.encode(exact[3:]))])
        assert collection.encodings(ids).tokens.tobytes() == expected.tobytes()
        parts = collection.codes(collection.nearest(encoding_of(ids).embeddings[:1], 6)[0])
        assert {part.codec.name: len(part.rows) for part in parts} == {"float16": 3, "int8": 3}
        with pytest.raises(ConfigError, match="has to be fitted"):
            collection.set_codec(codec_for("pq32", 4, 6))
        with pytest.raises(ConfigError, match="4 x 5 tokens"):
            collection.set_codec(codec_for("int8", 4, 5))
        assert collection.codec.name == "int8"


def test_nothing_to_add(place):
    with place.create() as collection:
        collection.add([], encoding_of([]), [])
        assert len(collection) == 0


def test_bytes_per_image(place):
    with place.create() as collection:
        expected = {"file": 48, "payload": 64}
        assert collection.bytes_per_image() == expected[place.tokens]


def test_the_reserved_key_stays_inside(place):
    ids = ids_of(1)
    with place.create() as collection:
        encoding = fill(collection, ids)
        ((candidate,),) = collection.nearest(encoding.embeddings, 1)
        assert "tokens" not in candidate.payload["_edje"]
        assert user_payload(candidate.payload) == payloads_of(ids)[0]


def spoilt(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[1, ..., 0] = value
    return array


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i, e, p: (i, replace(e, tokens=e.tokens[:, :3]), p), "tokens must be float16"),
        (lambda i, e, p: (i, replace(e, tokens=e.tokens[:2]), p), "tokens must be float16"),
        (
            lambda i, e, p: (i, replace(e, tokens=e.tokens.astype(np.float32)), p),
            "tokens must be float16",
        ),
        (
            lambda i, e, p: (i, replace(e, embeddings=e.embeddings[:, :7]), p),
            "embeddings must be float32",
        ),
        (
            lambda i, e, p: (i, replace(e, embeddings=e.embeddings.astype(np.float64)), p),
            "embeddings must be float32",
        ),
        (
            lambda i, e, p: (i, replace(e, tokens=spoilt(e.tokens, np.inf)), p),
            f"tokens of image {ids_of(2)[1]} hold NaN",
        ),
        (
            lambda i, e, p: (i, replace(e, tokens=spoilt(e.tokens, np.nan)), p),
            f"tokens of image {ids_of(2)[1]} hold NaN",
        ),
        (
            lambda i, e, p: (i, replace(e, embeddings=spoilt(e.embeddings, np.nan)), p),
            f"embeddings of image {ids_of(2)[1]} hold NaN",
        ),
        (lambda i, e, p: (i, replace(e, embeddings=e.embeddings * 0), p), "zero"),
        (lambda i, e, p: (i, e, p[:2]), "2 payloads for 3 ids"),
        (lambda i, e, p: (i, e, [{}, {}, {"_edje": {}}]), "'_edje', which is reserved"),
        (lambda i, e, p: (i, e, [{}, {}, {"path": Path("x")}]), "JSON"),
        (lambda i, e, p: (["x", *i[1:]], e, p), "'x' is not a UUID"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(edge_file, spoil, message):
    ids = ids_of(3)
    with edge_file.create() as collection:
        with pytest.raises(ConfigError, match=message):
            collection.add(*spoil(ids, encoding_of(ids), payloads_of(ids)))
        assert len(collection) == 0
        assert [*edge_file.location.rglob("tokens-*.bin")] == []


def test_tokens_are_flushed_before_points_are_written(place, monkeypatch):
    events: list[str] = []

    def spy(owner: object, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any) -> Any:
            events.append(f"{type(owner).__name__}.{name}")
            return real(*args)

        monkeypatch.setattr(owner, name, call)

    with place.create() as collection:
        store, index = collection._store, collection._index
        spy(store, "put")
        spy(store, "flush")
        spy(index, "upsert")
        collection.add(ids_of(2), encoding_of(ids_of(2)), payloads_of(ids_of(2)))
    kinds = type(store).__name__, type(index).__name__
    assert events == [f"{kinds[0]}.put", f"{kinds[0]}.flush", f"{kinds[1]}.upsert"]


def test_an_upsert_that_fails_leaves_tokens_without_points_only(place, monkeypatch):
    ids = ids_of(6)
    with place.create() as collection:
        fill(collection, ids[:2])

        def fail(points: object) -> None:
            raise EngineUnavailableError("gone", location="here")

        with monkeypatch.context() as patch:
            patch.setattr(collection._index, "upsert", fail)
            with pytest.raises(EngineUnavailableError):
                collection.add(ids[2:4], encoding_of(ids[2:4]), payloads_of(ids[2:4]))
        assert collection.existing(ids) == {*ids[:2]}
        fill(collection, ids[4:])
        fill(collection, ids[2:4])
    with place.open() as collection:
        (found,) = collection.nearest(encoding_of(ids[:1]).embeddings, 10)
        assert {c.image_id for c in found} == {*ids}
        expected = encoding_of([c.image_id for c in found]).tokens
        assert collection.tokens(found).tobytes() == expected.tobytes()


def test_a_flush_of_tokens_that_fails_writes_no_point(edge_file, monkeypatch):
    ids = ids_of(4)
    with edge_file.create() as collection:
        fill(collection, ids[:2])

        def fail() -> None:
            raise StoreError("the disk refused")

        with monkeypatch.context() as patch:
            patch.setattr(collection._store, "flush", fail)
            with pytest.raises(StoreError, match="the disk refused"):
                collection.add(ids[2:], encoding_of(ids[2:]), payloads_of(ids[2:]))
        assert collection.existing(ids) == {*ids[:2]}


_INGEST = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from collection_places import ids_of, make_place, encoding_of, payloads_of
collection = make_place(sys.argv[2], Path(sys.argv[3])).open()
for start in range(0, 20_000, 5):
    ids = ids_of(5, start)
    collection.add(ids, encoding_of(ids), payloads_of(ids))
    if start % 20 == 15:
        collection.flush()
        print(start + 5, flush=True)
"""


@pytest.mark.parametrize("kind", ["edge-file", "edge-payload"])
def test_after_a_kill_every_point_has_its_tokens(tmp_path, kind):
    place = make_place(kind, tmp_path)
    place.create().close()
    flushed = 0
    for kill_after in (1, 5):
        command = [sys.executable, "-c", _INGEST, str(Path(__file__).parent), kind, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(kill_after):
                flushed = max(flushed, int(child.stdout.readline()))
            child.kill()
            assert child.wait() == -signal.SIGKILL
        with place.open() as collection:
            points = collection.count()
            assert points >= flushed
            (found,) = collection.nearest(encoding_of(ids_of(1)).embeddings, points)
            assert len(found) == points
            expected = encoding_of([c.image_id for c in found]).tokens
            assert collection.tokens(found).tobytes() == expected.tobytes()
            assert collection.existing(ids_of(flushed)) == {*ids_of(flushed)}
            ids = ids_of(3, start=50_000)
            fill(collection, ids)
            assert collection.existing(ids) == {*ids}


def test_flipped_bytes_raise_and_name_the_picture(edge_file):
    ids = ids_of(5)
    with edge_file.create() as collection:
        encoding = fill(collection, ids)
        with side_file(edge_file.location).open("r+b") as file:
            file.seek(4096 + 3 * 48 + 11)
            file.write(b"\x5a\xa5")
        (found,) = collection.nearest(encoding.embeddings[:1], 5)
        with pytest.raises(TokensCorruptError) as caught:
            collection.tokens(found)
        assert caught.value.image_ids == (ids[3],)
        whole = [c for c in found if c.image_id != ids[3]]
        assert len(collection.tokens(whole)) == 4


def test_payload_tokens_changed_on_the_server_raise(tmp_path):
    place = make_place("memory-payload", tmp_path)
    ids = ids_of(3)
    with place.create() as collection:
        encoding = fill(collection, ids)
        (record,) = place.location.retrieve("images", [ids[1]])
        text = record.payload["_edje"]["tokens"]
        changed = ("A" if text[0] != "A" else "B") + text[1:]
        place.location.set_payload("images", {"tokens": changed}, [ids[1]], key="_edje")
        (found,) = collection.nearest(encoding.embeddings[:1], 5)
        with pytest.raises(TokensCorruptError) as caught:
            collection.tokens(found)
        assert caught.value.image_ids == (ids[1],)


def test_a_picture_deleted_since_it_was_found_is_named(tmp_path):
    ids = ids_of(3)
    with make_place("edge-payload", tmp_path).create() as collection:
        encoding = fill(collection, ids)
        (found,) = collection.nearest(encoding.embeddings[:1], 5)
        collection.delete([ids[2]])
        with pytest.raises(TokensNotFoundError, match="deleted since") as caught:
            collection.tokens(found)
        assert caught.value.image_ids == (ids[2],)


def test_a_point_without_a_record_is_no_candidate_where_other_programs_can_write(place):
    ids = ids_of(1)
    with place.create() as collection:
        collection._index.upsert([Point(ids[0], encoding_of(ids).embeddings[0], {})])
        (found,) = collection.nearest(encoding_of(ids).embeddings, 1)
        if collection.index.shared:
            assert [*found] == []
        else:
            with pytest.raises(TokensNotFoundError) as caught:
                collection.tokens(found)
            assert caught.value.image_ids == (ids[0],)


@pytest.mark.parametrize("payload", [{"_edje": {}}, {"_edje": 7}])
def test_a_candidate_without_a_reference_is_named(place, payload):
    ids = ids_of(1)
    with place.create() as collection:
        collection._index.upsert([Point(ids[0], encoding_of(ids).embeddings[0], payload)])
        (found,) = collection.nearest(encoding_of(ids).embeddings, 1)
        if not payload and collection.index.shared:  # another program may have written it
            assert len(found) == 0
            found = [Candidate(ids[0], 1.0, 1, payload)]
        with pytest.raises(TokensNotFoundError) as caught:
            collection.tokens(found)
        assert caught.value.image_ids == (ids[0],)


def test_a_candidate_of_another_collection_raises(tmp_path):
    place = make_place("edge-file", tmp_path)
    with place.create(name="a") as collection:
        encoding = fill(collection, ids_of(2))
        (found,) = collection.nearest(encoding.embeddings[:1], 2)
    with place.create(name="b") as collection:
        fill(collection, ids_of(2, start=9))
        with pytest.raises(TokensNotFoundError, match="not in the collection") as caught:
            collection.tokens(found)
        assert {*caught.value.image_ids} == {*ids_of(2)}


def test_a_side_file_gone_is_said_at_open(edge_file):
    with edge_file.create() as collection:
        fill(collection, ids_of(2))
    side_file(edge_file.location).unlink()
    with pytest.raises(TokensNotFoundError, match="is gone"):
        edge_file.open()
    with pytest.raises(TokensNotFoundError, match="is gone"):
        edge_file.open()  # the engine was closed


def test_token_folders_swapped_between_collections_do_not_open(edge_file):
    for name in ("a", "b"):
        with edge_file.create(name=name) as collection:
            fill(collection, ids_of(2))
    root = edge_file.location
    (root / "a" / "tokens").rename(root / "c")
    (root / "b" / "tokens").rename(root / "a" / "tokens")
    (root / "c").rename(root / "b" / "tokens")
    for name in ("a", "b"):
        with pytest.raises(TokensCorruptError, match="belongs to another collection"):
            edge_file.open(name)


def test_a_manifest_with_another_contract_is_refused_with_both_sides(edge_file):
    edge_file.create().close()
    folder = edge_file.location / "images" / "tokens"
    manifest = Manifest.read(folder)
    replace(manifest, contract=replace(manifest.contract, adapter_hash="a9")).write(folder)
    with pytest.raises(ContractMismatchError, match=r"expected 'a0', found 'a9'") as caught:
        edge_file.open()
    assert caught.value.expected == {"adapter_hash": "a0"}
    assert caught.value.found == {"adapter_hash": "a9"}


def test_require(place):
    with place.create() as collection:
        collection.require(replace(CONTRACT, model="elsewhere", library_version="9"))
        collection.require(CONTRACT.with_codec("int8"))  # the codec is the collection's affair
        other = replace(CONTRACT, encoder_revision="e1", adapter_hash="a1")
        with pytest.raises(
            ContractMismatchError, match="adapter_hash: expected 'a1', found 'a0'"
        ) as c:
            collection.require(other)
        assert c.value.expected == {"encoder_revision": "e1", "adapter_hash": "a1"}
        assert c.value.found == {"encoder_revision": "e0", "adapter_hash": "a0"}


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", ".hidden", "é", "a" * 201, "a\n"])
def test_names(edge_file, name):
    with pytest.raises(ConfigError, match="cannot be used"):
        edge_file.create(name=name)
    with pytest.raises(ConfigError, match="cannot be used"):
        edge_file.open(name)


def test_a_missing_collection_is_reported_with_the_known_ones(place):
    for name in ("one", "two"):
        place.create(name=name).close()
    with pytest.raises(CollectionNotFoundError) as caught:
        place.open("three")
    assert caught.value.name == "three"
    assert caught.value.known == ("one", "two")


def test_opening_where_nothing_is_makes_nothing(tmp_path):
    with pytest.raises(CollectionNotFoundError):
        ImageCollection.open(tmp_path / "nowhere", "images")
    assert os.listdir(tmp_path) == []


def test_create_refuses_a_second_time_and_spares_the_first(place):
    ids = ids_of(3)
    with place.create() as collection:
        fill(collection, ids)
    with pytest.raises(StoreError, match="open"):
        place.create()
    with place.open() as collection:
        (found,) = collection.nearest(encoding_of(ids[:1]).embeddings, 3)
        assert len(collection.tokens(found)) == 3


def test_create_beside_other_files(edge_file):
    (edge_file.location / "images").mkdir(parents=True)
    with pytest.raises(StoreError, match="there is something at"):
        edge_file.create()


def test_create_that_fails_half_way_leaves_nothing(place, monkeypatch, tmp_path):
    def fail(*args: object, **more: object) -> None:
        raise StoreError("the engine failed")

    with monkeypatch.context() as patch:
        patch.setattr(EdgeBackend, "create", fail)
        patch.setattr(QdrantBackend, "create", fail)
        with pytest.raises(StoreError, match="the engine failed"):
            place.create()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    with pytest.raises(CollectionNotFoundError):
        place.open()
    with place.create() as collection:
        fill(collection, ids_of(2))


_CREATE_AND_DIE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from collection_places import make_place
Path.rename = lambda old, new: os._exit(9) if new.name == "images" else os.rename(old, new)
make_place("edge-file", Path(sys.argv[2])).create()
"""


def test_create_that_was_killed_leaves_nothing_to_open(tmp_path, edge_file):
    command = [sys.executable, "-c", _CREATE_AND_DIE, str(Path(__file__).parent), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 9
    with pytest.raises(CollectionNotFoundError) as caught:
        edge_file.open()
    assert caught.value.known == ()
    with edge_file.create() as collection:
        fill(collection, ids_of(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"location": ":memory:", "tokens": "file"}, "needs tokens_folder"),
        ({"location": ":memory:", "tokens_folder": "x"}, "leave it out"),
        ({"location": ":memory:", "tokens": "lmdb"}, "'lmdb'"),
        ({"location": ":memory:", "codec": "zip"}, "known: float16"),
        ({"location": ":memory:", "contract": replace(CONTRACT, dtype="float32")}, "float32"),
        ({"location": ""}, "location is empty"),
        ({"location": "ftp://x"}, "ftp://x"),
        ({"location": 7}, "location is a int"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ImageCollection.create(**{"name": "images", "contract": CONTRACT, **arguments})


def test_defaults_of_the_token_place(tmp_path):
    with ImageCollection.create(str(tmp_path / "p"), "images", CONTRACT) as collection:
        assert collection.bytes_per_image() == 48
        assert collection.location == str(tmp_path / "p")
    with ImageCollection.create(":memory:", "images", CONTRACT) as collection:
        assert collection.bytes_per_image() == 64
        assert collection.location == ":memory:"


def test_a_collection_may_be_moved(tmp_path, edge_file):
    ids = ids_of(2)
    with edge_file.create() as collection:
        fill(collection, ids)
    edge_file.location.rename(tmp_path / "moved")
    with ImageCollection.open(tmp_path / "moved", "images") as collection:
        (found,) = collection.nearest(encoding_of(ids[:1]).embeddings, 2)
        assert len(collection.tokens(found)) == 2


@pytest.mark.parametrize("engine", ["edge", "memory"])
def test_tokens_kept_elsewhere_may_be_moved(tmp_path, engine):
    place = make_place(f"{engine}-file", tmp_path)
    place.tokens_folder = tmp_path / "side"
    ids = ids_of(2)
    with place.create() as collection:
        fill(collection, ids)
    assert side_file(tmp_path / "side" / "images").exists()
    (tmp_path / "side").rename(tmp_path / "other")
    with pytest.raises(TokensNotFoundError, match="tokens_folder"):
        place.open()
    with ImageCollection.open(
        place.location, "images", tokens_folder=tmp_path / "other"
    ) as collection:
        (found,) = collection.nearest(encoding_of(ids[:1]).embeddings, 2)
        assert len(collection.tokens(found)) == 2


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not say what wrote it"),
        ({"format": 1}, "does not say what wrote it"),
        ({"format": 2}, "format 2"),
        (
            {
                "format": 1,
                "contract": CONTRACT.as_dict(),
                "tokens": "lmdb",
                "store_id": None,
                "tokens_folder": None,
            },
            "does not say what wrote it",
        ),
    ],
)
def test_an_index_that_something_else_wrote(tmp_path, metadata, message):
    create_embedded(tmp_path / "images", 8, metadata).close()
    with pytest.raises(StoreError, match=message):
        ImageCollection.open(tmp_path, "images")
    with pytest.raises(StoreError, match=message):
        ImageCollection.open(tmp_path, "images")  # the engine was closed


def test_a_folder_is_open_once(edge_file):
    with edge_file.create(), pytest.raises(CollectionLockedError):
        edge_file.open()
    edge_file.open().close()


def test_many_read_a_servers_side_file_and_one_writes(tmp_path):
    place = make_place("memory-file", tmp_path)
    ids = ids_of(6)
    with place.create() as writer, place.open() as reader:
        fill(writer, ids[:3])
        (found,) = reader.nearest(encoding_of(ids[:1]).embeddings, 10)
        assert len(reader.tokens(found)) == 3
        with pytest.raises(CollectionLockedError):
            fill(reader, ids[3:])
        fill(writer, ids[3:])
        (found,) = reader.nearest(encoding_of(ids[:1]).embeddings, 10)
        expected = encoding_of([c.image_id for c in found]).tokens
        assert reader.tokens(found).tobytes() == expected.tobytes()
        assert len(found) == 6


def test_a_closed_collection_says_so(place):
    ids = ids_of(1)
    collection = place.create()
    encoding = fill(collection, ids)
    (found,) = collection.nearest(encoding.embeddings, 1)
    collection.close()
    collection.close()
    for use in (
        collection.count,
        lambda: collection.nearest(encoding.embeddings, 1),
        lambda: collection.tokens(found),
        lambda: fill(collection, ids),
    ):
        with pytest.raises(StoreError, match="closed"):
            use()


def test_a_location_under_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create a collection at"):
        ImageCollection.create(tmp_path / "file", "images", CONTRACT)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="no permission"):
            ImageCollection.create(tmp_path, "images", CONTRACT)
    finally:
        tmp_path.chmod(0o700)


def test_importing_loads_neither_engine_nor_torch():
    code = (
        "import sys, edje_qdrant.collection.collection; "
        "print([m for m in ('torch', 'qdrant_edge', 'qdrant_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("captions", [False, True])
def test_two_that_create_one_collection_at_once(tmp_path, monkeypatch, captions):
    """The second finds the first's at the last moment; it is told so, and nothing is left over."""
    kind: Any = CaptionCollection if captions else ImageCollection
    rename = Path.rename

    def rename_second(path: Path, final: Path) -> Path:
        if path.name == "new":
            with monkeypatch.context() as patch:
                patch.setattr(Path, "rename", rename)
                kind.create(tmp_path, "images", CONTRACT).close()
        return rename(path, final)

    monkeypatch.setattr(Path, "rename", rename_second)
    with pytest.raises(CollectionExistsError, match="open it, or choose another name") as caught:
        kind.create(tmp_path, "images", CONTRACT)
    assert (caught.value.location, caught.value.name) == (str(tmp_path), "images")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    with kind.open(tmp_path, "images") as collection:
        assert len(collection) == 0
