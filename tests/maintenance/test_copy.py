from __future__ import annotations

from dataclasses import replace

import pytest
from collection_places import CONTRACT, KINDS, encoding_of, fill, ids_of, make_place
from stored import damage, failing_after, held, make, same_but_rounded

from edje_qdrant.errors import (
    ContractMismatchError,
    EngineUnavailableError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.maintenance import CopyReport, copy_collection, verify
from edje_qdrant.types import Point


@pytest.mark.parametrize("to", KINDS)
def test_a_copy_is_the_same_bit_for_bit(place, tmp_path, fitted, to, small_pages):
    codec = fitted("pq16")
    target = make_place(to, tmp_path / "to")
    with (
        make(place, 20, codec=codec, per_file=8) as source,
        make(target, codec=codec) as copy,
    ):
        source.update_payload({ids_of(1)[0]: {"deep": {"a": [None]}}})
        before = held(source)
        assert copy_collection(source, copy) == CopyReport(20, 0, 20 * codec.nbytes)
        assert held(source) == before
        assert verify(copy).clean
        if to.startswith("edge"):
            assert held(copy) == before
        else:
            assert same_but_rounded(held(copy), before)
    with target.open() as copy:
        assert [*held(copy)] == ids_of(20)


def test_from_the_embedded_engine_to_itself_through_several_pages(tmp_path):
    with (
        make(make_place("edge-file", tmp_path / "a"), 600) as source,
        make(make_place("edge-payload", tmp_path / "b")) as copy,
    ):
        assert copy_collection(source, copy).copied == 600
        assert held(copy) == held(source)


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_one_that_was_interrupted_goes_on(place, tmp_path, monkeypatch, small_pages, parts):
    gone = EngineUnavailableError("gone", location="here")
    with (
        make(make_place("edge-file", tmp_path / "from"), 20) as source,
        make(place) as copy,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(copy.index, "insert", failing_after(parts, copy.index.insert, gone))
            with pytest.raises(EngineUnavailableError):
                copy_collection(source, copy)
        assert len(copy) == 8 * parts
        assert copy_collection(source, copy) == CopyReport(20 - 8 * parts, 8 * parts, 20 * 48)
        assert same_but_rounded(held(copy), held(source))
        assert copy_collection(source, copy) == CopyReport(0, 20, 20 * 48)
        # What came to the source since comes too; what was deleted there stays in the copy.
        source.delete(ids_of(2))
        fill(source, ids_of(3, start=50))
        assert copy_collection(source, copy) == CopyReport(3, 18, 21 * 48)
        assert len(copy) == 23


@pytest.mark.parametrize(
    ("contract", "codec", "field"),
    [
        (replace(CONTRACT, encoder_revision="e9"), "float16", "encoder_revision"),
        (CONTRACT, "int4", "codec"),
    ],
)
def test_to_a_collection_of_another_model_or_codec(tmp_path, contract, codec, field):
    with (
        make(make_place("edge-file", tmp_path / "from"), 3) as source,
        make(make_place("memory-payload", tmp_path), contract=contract, codec=codec) as copy,
    ):
        with pytest.raises(ContractMismatchError) as caught:
            copy_collection(source, copy)
        assert field in caught.value.expected
        assert len(copy) == 0


def test_damaged_tokens_are_not_copied(place, tmp_path):
    ids = ids_of(20)
    with make(place, 20) as source, make(make_place("edge-file", tmp_path / "to")) as copy:
        damage(source, ids[5])
        damage(source, ids[7])
        with pytest.raises(TokensCorruptError) as caught:
            copy_collection(source, copy)
        assert {*caught.value.image_ids} == {ids[5], ids[7]}
        assert ids[5] in str(caught.value)
        assert len(copy) == 0
        source.delete([ids[5], ids[7]])
        assert copy_collection(source, copy).copied == 18


def test_points_that_something_else_wrote_are_named(place, tmp_path):
    ids = ids_of(4)
    with make(place, 3) as source, make(make_place("edge-file", tmp_path / "to")) as copy:
        source.index.upsert([Point(ids[3], encoding_of(ids).embeddings[3], {"path": "a.png"})])
        if source.index.shared:  # by another program
            report = copy_collection(source, copy)
            assert (report.copied, report.left_out) == (3, (ids[3],))
            return
        with pytest.raises(TokensNotFoundError) as caught:
            copy_collection(source, copy)
        assert caught.value.image_ids == (ids[3],)


def test_what_was_put_beside_the_reference_by_hand_is_not_carried_over(place, tmp_path):
    ids = ids_of(2)
    with make(place, 2) as source, make(make_place("edge-file", tmp_path / "to")) as copy:
        reference = dict(source.index.retrieve(ids)[ids[0]]["_edje"])
        source.index.set_payload({ids[0]: {"_edje": {**reference, "note": "mine"}, "_other": 1}})
        assert copy_collection(source, copy).copied == 2
        stored = copy.index.retrieve(ids)[ids[0]]
        assert set(stored["_edje"]) == {"segment", "record", "checksum", "contract"}
        assert stored["_other"] == 1
        assert verify(copy).clean
