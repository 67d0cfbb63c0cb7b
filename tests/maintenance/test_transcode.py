from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from collection_places import CONTRACT, encoding_of, fill, ids_of, make_place, payloads_of
from PIL import Image
from rounding import float32_slack
from stored import (
    damage,
    failing_after,
    held,
    make,
    meanwhile,
    references,
    side_files,
    tokens_folder,
)

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    CollectionLockedError,
    ConfigError,
    ContractMismatchError,
    EngineUnavailableError,
    StoreError,
    TokensCorruptError,
)
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance import CompactReport, export_collection, transcode, verify
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.tokens.file_store import FileTokenStore

INT8 = codec_for("int8", 4, 6)
FLOAT16 = codec_for("float16", 4, 6)
GONE = EngineUnavailableError("gone", location="here")


def coded(codec, ids, tokens=None):
    """Return what a codec makes of images' tokens, as bytes."""
    tokens = encoding_of(ids).tokens if tokens is None else tokens
    return codec.decode(codec.encode(tokens))


def tokens_of(collection, ids):
    return collection.encodings(ids).tokens


def codebooks(collection):
    return sorted(p.name for p in tokens_folder(collection).glob("codec-*"))


def test_from_codec_to_codec(place, fitted):
    ids = ids_of(30)
    expected = encoding_of(ids).tokens
    collection = make(place, 30, per_file=8)
    try:
        before = held(collection)
        for codec in (INT8, fitted("pq32"), fitted("pq16"), FLOAT16):
            expected = coded(codec, ids, expected)
            report = transcode(collection, codec, from_lossy=True)
            assert (report.moved, report.unreadable) == (30, ())
            collection.close()
            collection = place.open()
            assert collection.contract == CONTRACT.with_codec(codec.name, codec.hash)
            assert collection.codec.key == codec.key
            assert collection.index.metadata["contract"] == collection.contract.as_dict()
            assert tokens_of(collection, ids).tobytes() == expected.tobytes()
            assert verify(collection).as_dict()["counts"] == {}
            for (embedding, _, payload), old in zip(
                held(collection).values(), before.values(), strict=True
            ):
                assert (embedding, payload) == (old[0], old[2])
            if place.tokens == "file":
                sizes = [len(content) - 4096 for content in side_files(collection).values()]
                assert sum(sizes) == 30 * codec.nbytes
                assert report.bytes_after == sum(sizes) + 4096 * len(sizes)
                assert codebooks(collection) == (
                    [f"codec-{codec.key}.safetensors"] if codec.hash else []
                )
                assert collection.bytes_per_image() == codec.nbytes
    finally:
        collection.close()


def test_a_second_one_does_nothing(place, fitted):
    with make(place, 20) as collection:
        transcode(collection, fitted("pq32"))
        before, pointed = held(collection), references(collection, ids_of(20))
        report = transcode(collection, fitted("pq32"))
        assert (report.moved, report.unreadable) == (0, ())
        assert report.bytes_after == report.bytes_before
        assert held(collection) == before
        assert references(collection, ids_of(20)) == pointed


def test_an_empty_collection(place):
    with make(place) as collection:
        assert transcode(collection, INT8).moved == 0
        fill(collection, ids_of(2))
        assert tokens_of(collection, ids_of(2)).tobytes() == coded(INT8, ids_of(2)).tobytes()
    with place.open() as collection:
        assert collection.codec.name == "int8"


def test_a_codec_that_loses_nothing_leaves_rankings_as_they_were(
    tmp_path, tiny_model, write_images
):
    paths = write_images(tmp_path / "pictures", 25)
    contract = tiny_model.contract()
    shape = contract.num_tokens, contract.token_dim
    for kind in ("edge-file", "memory-payload"):
        collection = make(make_place(kind, tmp_path), codec="int8", contract=contract)
        with TwoStageRetriever(collection, tiny_model) as retriever:
            ingest_images(paths, collection, tiny_model, progress=False)
            rankings = [
                [(hit.image_id, hit.score) for hit in result]
                for result in retriever.search_batch(["a red square", "b"], num_candidates=25)
            ]
            assert transcode(collection, codec_for("float16", *shape), from_lossy=True).moved == 25
            assert collection.codec.name == "float16"
            again = retriever.search_batch(["a red square", "b"], num_candidates=25)
            assert [[(hit.image_id, hit.score) for hit in result] for result in again] == rankings


def interrupt(collection, codec, monkeypatch, pages):
    """Transcode `pages` pages and be interrupted."""
    with monkeypatch.context() as patch:
        failing = failing_after(pages, collection.index.set_payload, GONE)
        patch.setattr(collection.index, "set_payload", failing)
        with pytest.raises(EngineUnavailableError):
            transcode(collection, codec)


@pytest.mark.parametrize("pages", [0, 1, 3])
@pytest.mark.parametrize("name", ["int8", "pq32"])
def test_half_way_every_picture_is_read_by_what_encoded_it(
    place, fitted, monkeypatch, small_pages, name, pages
):
    ids = ids_of(30)
    codec = INT8 if name == "int8" else fitted(name)
    collection = make(place, 30, per_file=8)
    interrupt(collection, codec, monkeypatch, pages)
    done, left = ids[: 8 * pages], ids[8 * pages :]
    for reopened in (False, True):
        if reopened:
            collection.close()
            collection = place.open()
        assert collection.codec.key == codec.key
        assert tokens_of(collection, done).tobytes() == coded(codec, done).tobytes()
        assert tokens_of(collection, left).tobytes() == encoding_of(left).tokens.tobytes()
        (found,) = collection.nearest(encoding_of(ids[:1]).embeddings, 30)
        expected = np.concatenate([coded(codec, done), encoding_of(left).tokens])
        order = [ids.index(c.image_id) for c in found]
        assert collection.tokens(found).tobytes() == expected[order].tobytes()
        report = verify(collection)
        assert {f.image_id for f in report.findings} == {*left}
        assert report.counts() == {"other codec": len(left)}
        assert all(f"float16, not {codec.key}" in f.detail for f in report.findings)
    with collection:
        more = ids_of(3, start=40)  # what is added now is of the new codec
        fill(collection, more)
        assert tokens_of(collection, more).tobytes() == coded(codec, more).tobytes()
        report = transcode(collection, codec)
        assert (report.moved, report.unreadable) == (len(left), ())
        assert tokens_of(collection, ids).tobytes() == coded(codec, ids).tobytes()
        assert verify(collection).clean
        if place.tokens == "file":
            assert verify(collection).unlisted_files == ()
            assert all(s.codec == codec.key for s in collection.store.segments())


def test_half_way_scores_are_those_of_each_pictures_own_codec(
    tmp_path, tiny_model, write_images, monkeypatch, small_pages
):
    paths = write_images(tmp_path / "pictures", 20)
    contract = tiny_model.contract()
    int4 = codec_for("int4", contract.num_tokens, contract.token_dim)
    collection = make(make_place("edge-file", tmp_path), contract=contract)
    with TwoStageRetriever(collection, tiny_model) as retriever:
        ingest_images(paths, collection, tiny_model, progress=False)
        interrupt(collection, int4, monkeypatch, 1)
        ids = sorted(held(collection))
        encoding = tiny_model.encode_images([Image.open(p) for p in paths])
        by_path = dict(zip(map(str, paths), encoding.tokens, strict=True))
        result = retriever.search("a red square", top_k=20)
        assert not result.degraded
        for hit in result:
            tokens = by_path[hit.payload["path"]][None]
            lossy = int4.decode(int4.encode(tokens))
            exact_score, lossy_score = (
                tiny_model.score("a red square", t)[0] for t in (tokens, lossy)
            )
            expected = lossy_score if hit.image_id in ids[:8] else exact_score
            assert hit.score == pytest.approx(expected, abs=2e-2)
        # The two differ more than that for some, or the line above would show nothing.
        assert any(
            abs(
                tiny_model.score("a red square", t[None])
                - tiny_model.score("a red square", int4.decode(int4.encode(t[None])))
            )
            > 0.05
            for t in encoding.tokens
        )


def test_another_codec_half_way(place, fitted, monkeypatch, small_pages):
    """Three codecs at once, two with codebooks."""
    ids = ids_of(30)
    a, b = fitted("pq32"), fitted("pq16")
    with make(place, 30, per_file=8) as collection:
        interrupt(collection, a, monkeypatch, 2)
        interrupt(collection, b, monkeypatch, 1)
        parts = [(ids[:8], coded(b, [], coded(a, ids[:8])))]
        parts += [(ids[8:16], coded(a, ids[8:16])), (ids[16:], encoding_of(ids[16:]).tokens)]
        for some, expected in parts:
            assert tokens_of(collection, some).tobytes() == expected.tobytes()
    with place.open() as collection:
        for some, expected in parts:
            assert tokens_of(collection, some).tobytes() == expected.tobytes()
        assert transcode(collection, INT8).moved == 30
        for some, expected in parts:
            assert tokens_of(collection, some).tobytes() == coded(INT8, [], expected).tobytes()


def test_a_picture_added_by_another_thread_meanwhile_is_of_the_new_codec(
    place, monkeypatch, small_pages
):
    ids, more = ids_of(20), ids_of(3, start=40)
    with make(place, 20) as collection:
        real = collection.index.set_payload
        threads = []

        def repointing(payloads):
            if not threads:
                adding = (more, encoding_of(more), payloads_of(more))
                thread = threading.Thread(target=ImageCollection.add, args=(collection, *adding))
                threads.append(thread)
                thread.start()
            real(payloads)

        monkeypatch.setattr(collection.index, "set_payload", repointing)
        transcode(collection, INT8)
        threads[0].join()
        assert verify(collection).clean
        everything = [*ids, *more]
        assert tokens_of(collection, everything).tobytes() == coded(INT8, everything).tobytes()


def test_searches_go_on_and_each_score_is_of_one_codec_or_the_other(
    tmp_path, tiny_model, write_images, small_pages
):
    paths = write_images(tmp_path / "pictures", 30)
    contract = tiny_model.contract()
    int4 = codec_for("int4", contract.num_tokens, contract.token_dim)
    for kind in ("edge-file", "edge-payload", "memory-payload"):
        collection = make(make_place(kind, tmp_path / kind), per_file=9, contract=contract)
        with TwoStageRetriever(collection, tiny_model) as retriever:
            ingest_images(paths, collection, tiny_model, progress=False)

            def scores(retriever=retriever):
                return {hit.image_id: hit.score for hit in retriever.search("b", top_k=30)}

            exact, seen = scores(), []
            with meanwhile(lambda seen=seen, scores=scores: seen.append(scores())):
                transcode(collection, int4)
            lossy = scores()
            assert lossy != exact
            for found in seen:
                assert found.keys() == exact.keys()
                for image_id, score in found.items():
                    either = exact[image_id], lossy[image_id]
                    assert min(abs(score - each) for each in either) < float32_slack(either)


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        (codec_for("pq32", 4, 6), "has to be fitted"),
        (codec_for("int8", 5, 6), "5 x 6 tokens"),
        (codec_for("int8", 4, 7), "4 x 7 tokens"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_changes(place, codec, words):
    with make(place, 5) as collection:
        before = held(collection)
        with pytest.raises(ConfigError, match=words):
            transcode(collection, codec)
        assert collection.contract == CONTRACT
        assert held(collection) == before
        fill(collection, ids_of(2, start=9))
    with place.open() as collection:
        assert collection.contract == CONTRACT
        with pytest.raises(ConfigError, match=words):
            make(place, codec=codec, name="other")


def test_what_cannot_be_read_stays_and_is_named(place, fitted):
    ids = ids_of(20)
    with make(place, 20, codec=fitted("pq32"), per_file=8) as collection:
        first = tokens_of(collection, ids)
        damage(collection, ids[3])
        before = references(collection, [ids[3]])
        report = transcode(collection, INT8)
        assert (report.moved, report.unreadable) == (19, (ids[3],))
        assert references(collection, [ids[3]]) == before
        rest = [image_id for image_id in ids if image_id != ids[3]]
        expected = coded(INT8, [], np.delete(first, 3, axis=0))
        assert tokens_of(collection, rest).tobytes() == expected.tobytes()
        with pytest.raises(TokensCorruptError) as caught:
            tokens_of(collection, ids)
        assert caught.value.image_ids == (ids[3],)
    with place.open() as collection:  # the old codebook is still there
        assert tokens_of(collection, rest).tobytes() == expected.tobytes()
        if place.tokens == "file":
            assert codebooks(collection) == [f"codec-{fitted('pq32').key}.safetensors"]
        collection.delete([ids[3]])
        assert transcode(collection, INT8).unreadable == ()
        assert verify(collection).clean
        if place.tokens == "file":
            assert codebooks(collection) == []
            assert len(side_files(collection)) == len(collection.store.segments())


def test_a_picture_without_a_reference_is_named(place):
    ids = ids_of(5)
    with make(place, 5) as collection:
        collection.index.set_payload({ids[2]: {"_edje": {}}})
        report = transcode(collection, INT8)
        assert (report.moved, report.unreadable) == (4, (ids[2],))


def test_a_crash_between_side_file_and_metadata_is_made_good(tmp_path, monkeypatch, fitted):
    place = make_place("edge-file", tmp_path)
    codec = fitted("pq32")
    with make(place, 12) as collection, monkeypatch.context() as patch:
        patch.setattr(collection.index, "set_metadata", failing_after(0, print, GONE))
        with pytest.raises(EngineUnavailableError):
            transcode(collection, codec)
    with place.open() as collection:
        assert collection.codec.key == codec.key  # what the side file says holds
        assert tokens_of(collection, ids_of(12)).tobytes() == (
            encoding_of(ids_of(12)).tokens.tobytes()
        )
        assert collection.index.metadata["contract"]["codec"] == "float16"
        assert transcode(collection, codec).moved == 12
        assert collection.index.metadata["contract"]["codec"] == "pq32"
    with place.open() as collection:
        assert collection.contract.codec_hash == codec.hash


def test_a_process_that_opened_the_payload_before_reads_on(shared_payload, fitted):
    ids = ids_of(20)
    a, b = fitted("pq32"), fitted("pq16")
    with make(shared_payload, 20) as writer, shared_payload.open() as early:
        transcode(writer, a)
        expected = coded(a, ids)
        (found,) = early.nearest(encoding_of(ids[:1]).embeddings, 20)
        order = [ids.index(c.image_id) for c in found]
        assert early.tokens(found).tobytes() == expected[order].tobytes()
        transcode(writer, b)
        expected = coded(b, [], expected)
        assert tokens_of(early, ids).tobytes() == expected.tobytes()
        assert early.codec.key == b.key
        transcode(writer, a, from_lossy=True)
        assert verify(early).clean


def test_codebooks_that_another_process_added_are_kept(
    shared_payload, fitted, monkeypatch, small_pages
):
    """One that knows nothing of a codec must not write the metadata without its codebook."""
    ids = ids_of(20)
    with make(shared_payload, 20) as writer, shared_payload.open() as early:
        transcode(writer, fitted("pq32"))
        interrupt(early, fitted("pq16"), monkeypatch, 1)
        with shared_payload.open() as late:
            half = coded(fitted("pq32"), ids)
            done = coded(fitted("pq16"), [], half[:8])
            assert tokens_of(late, ids).tobytes() == np.concatenate([done, half[8:]]).tobytes()


def test_an_export_by_a_process_that_opened_the_payload_before(shared_payload, fitted, tmp_path):
    with make(shared_payload, 20) as writer, shared_payload.open() as early:
        transcode(writer, fitted("pq32"))
        export_collection(early, tmp_path / "early")
        export_collection(writer, tmp_path / "late")
    assert (tmp_path / "early").read_bytes() == (tmp_path / "late").read_bytes()


def test_a_collection_that_took_anothers_place_is_noticed(shared_payload, fitted):
    """A search that looks again must not go on with another model's tokens."""
    ids = ids_of(3)
    with make(shared_payload, 3) as early:
        (found,) = early.nearest(encoding_of(ids[:1]).embeddings, 3)
        shared_payload.location.delete_collection("images")
        other = replace(CONTRACT, adapter_hash="a9")
        with (
            make(shared_payload, 3, codec=fitted("pq32"), contract=other),
            pytest.raises(ContractMismatchError, match="adapter_hash"),
        ):
            early.tokens(found)


def test_a_process_that_opened_the_side_files_before_reads_on(shared_file, fitted):
    ids = ids_of(20)
    codec = fitted("pq32")
    with make(shared_file, 20, per_file=8) as writer, shared_file.open() as early:
        (found,) = early.nearest(encoding_of(ids[:1]).embeddings, 20)
        transcode(writer, codec)
        order = [ids.index(c.image_id) for c in found]
        # It has the files open that were found in, and looks into the new ones when told of them.
        assert early.tokens(found).tobytes() == encoding_of(ids).tokens[order].tobytes()
        assert tokens_of(early, ids).tobytes() == coded(codec, ids).tobytes()
        with closing(FileTokenStore.open(tokens_folder(early))) as late:
            assert late.codec.key == codec.key


def test_one_that_was_opened_before_does_not_write_in_the_old_codec(shared_file, fitted):
    """Codes of one codebook among those of another would be wrong, and their checksums right."""
    ids, more = ids_of(20), ids_of(3, start=40)
    first, second = fitted("pq32"), fitted("pq32", seed=1)
    assert first.key != second.key
    assert first.nbytes == second.nbytes
    with make(shared_file, 20, codec=first) as collection:
        held(collection)
    with shared_file.open() as early:
        with shared_file.open() as writer:
            transcode(writer, second)
        with pytest.raises(StoreError, match="open the collection again"):
            fill(early, more)
        with pytest.raises(StoreError, match="open the collection again"):
            transcode(early, INT8)
        assert early.existing(more) == set()
        assert len(tokens_of(early, ids)) == 20
    with shared_file.open() as again:
        fill(again, more)
        assert tokens_of(again, more).tobytes() == coded(second, more).tobytes()


def test_while_another_writes_it_is_refused(shared_file):
    with make(shared_file, 4), shared_file.open() as other:
        with pytest.raises(CollectionLockedError):
            transcode(other, INT8)
        assert other.contract == CONTRACT
        assert other.index.reload_metadata()["contract"]["codec"] == "float16"


def test_what_is_reported(tmp_path):
    with make(make_place("edge-file", tmp_path), 10) as collection:
        assert transcode(collection, INT8) == CompactReport(
            10, (), 4096 + 10 * 48, 4096 + 10 * INT8.nbytes
        )
    with make(make_place("edge-payload", tmp_path), 10, name="other") as collection:
        assert transcode(collection, INT8) == CompactReport(10, (), 0, 0)
