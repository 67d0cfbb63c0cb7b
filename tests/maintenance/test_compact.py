from __future__ import annotations

import os
import threading
from contextlib import closing

import pytest
from collection_places import encoding_of, fill, ids_of, make_place, payloads_of
from stored import (
    damage,
    failing_after,
    held,
    make,
    meanwhile,
    references,
    same_but_rounded,
    segment_of,
    side_files,
    tokens_folder,
)

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    CollectionLockedError,
    EngineUnavailableError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance import CompactReport, compact, verify
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.manifest import MANIFEST_NAME, Segment
from edje_qdrant.tokens.segment import HEADER_BYTES, new_segment_file

RECORD = 4 * 6 * 2


def disk_bytes(collection):
    """Return the side files' size as the system sees it."""
    return sum(len(content) for content in side_files(collection).values())


def with_every_kind_of_hole(place):
    """Make 30 images in side files of 10; 9 of the first and third are left where they were."""
    ids = ids_of(30)
    collection = make(place, 30, per_file=10)
    collection.delete([ids[0]])  # a hole in the first
    fill(collection, [ids[25]], seed=1)  # a hole in the third, and a fourth begins
    collection.store.put(ids[:2], encoding_of(ids[:2]).tokens)  # points of these never came
    collection.store.flush()
    return collection


def test_holes_go_and_everything_else_stays(file_place):
    with with_every_kind_of_hole(file_place) as collection:
        before, size = held(collection), disk_bytes(collection)
        assert verify(collection).orphan_records == 4
        report = compact(collection)
        assert report == CompactReport(19, (), size, disk_bytes(collection))
        # 10 in the second file, 19 moved, which fill one and begin another
        assert disk_bytes(collection) == 3 * HEADER_BYTES + 29 * RECORD
        assert held(collection) == before
        found = verify(collection)
        assert (found.clean, found.orphan_records, found.unlisted_files) == (True, 0, ())
    with file_place.open() as collection:
        assert held(collection) == before
        assert disk_bytes(collection) == 3 * HEADER_BYTES + 29 * RECORD
        fill(collection, ids_of(3, start=50))
        assert len(held(collection)) == 32


def test_the_replaced_and_the_moved_are_told_apart(file_place):
    with with_every_kind_of_hole(file_place) as collection:
        compact(collection)
        new = encoding_of([ids_of(30)[25]], seed=1)
        assert collection.encodings([ids_of(30)[25]]).tokens.tobytes() == new.tokens.tobytes()


def test_side_files_without_holes_are_left_alone(file_place):
    ids = ids_of(30)
    with make(file_place, 30, per_file=10) as collection:
        collection.delete([ids[0]])
        holed = segment_of(collection, ids[1]).name
        before, pointed = side_files(collection), references(collection, ids[10:])
        assert compact(collection).moved == 9
        after = side_files(collection)
        del before[holed]
        assert holed not in after
        assert {name: after[name] for name in before} == before
        assert references(collection, ids[10:]) == pointed


def test_a_second_one_does_nothing(file_place):
    with with_every_kind_of_hole(file_place) as collection:
        compact(collection)
        before = side_files(collection)
        pointed = references(collection, ids_of(30)[1:])
        size = disk_bytes(collection)
        assert compact(collection) == CompactReport(0, (), size, size)
        assert side_files(collection) == before
    with file_place.open() as collection:
        assert compact(collection) == CompactReport(0, (), size, size)
        assert side_files(collection) == before
        assert references(collection, ids_of(30)[1:]) == pointed


@pytest.mark.parametrize("reopened", [False, True])
def test_where_everything_was_deleted_nothing_is_left(file_place, reopened):
    collection = make(file_place, 12, per_file=5)
    collection.delete(ids_of(12))
    if reopened:
        collection.close()
        collection = file_place.open()
    with collection:
        report = compact(collection)
        assert report == CompactReport(0, (), 3 * HEADER_BYTES + 12 * RECORD, 0)
        assert side_files(collection) == {}
        fill(collection, ids_of(4))
        assert len(held(collection)) == 4
    with file_place.open() as collection:
        assert len(held(collection)) == 4


def test_an_empty_collection(place):
    with make(place) as collection:
        assert compact(collection) == CompactReport(0, (), 0, 0)


def test_the_last_file_that_was_emptied_goes_and_writing_goes_on_in_the_one_before(file_place):
    ids = ids_of(14)
    with make(file_place, 14, per_file=10) as collection:
        collection.delete(ids[10:])
        assert compact(collection).bytes_after == HEADER_BYTES + 10 * RECORD
        fill(collection, ids[10:])
        assert verify(collection).clean
        assert len(held(collection)) == 14
    with file_place.open() as collection:
        assert verify(collection).clean


def test_who_opened_the_files_before_reads_on(shared_file):
    ids = ids_of(30)
    with (
        with_every_kind_of_hole(shared_file) as collection,
        closing(FileTokenStore.open(tokens_folder(collection))) as early,
        shared_file.open() as reader,
    ):
        kept = [ids[3], ids[28]]
        old = [references(collection, kept)[image_id] for image_id in kept]
        expected = encoding_of(kept).tokens.tobytes()
        assert early.get(kept, old).tobytes() == expected
        (found,) = reader.nearest(encoding_of(kept[:1]).embeddings, 30)
        whole = reader.tokens(found).tobytes()

        compact(collection)

        new = [references(collection, kept)[image_id] for image_id in kept]
        assert {r["segment"] for r in new}.isdisjoint(r["segment"] for r in old)
        # The same store reads what it had open, and what has come since.
        assert early.get(kept, old).tobytes() == expected
        assert early.get(kept, new).tobytes() == expected
        # Another collection looks again where what it found has gone.
        assert reader.tokens(found).tobytes() == whole
        with closing(FileTokenStore.open(tokens_folder(collection))) as late:
            assert late.get(kept, new).tobytes() == expected
            with pytest.raises(TokensNotFoundError, match="search again"):
                late.get(kept, old)


@pytest.mark.parametrize("kind", ["edge-file", "memory-file"])
def test_searches_go_on_and_give_the_same(tmp_path, tiny_model, write_images, kind, small_pages):
    place = make_place(kind, tmp_path)
    paths = write_images(tmp_path / "pictures", 40)
    collection = make(place, per_file=7, contract=tiny_model.contract())
    ingest_images(paths, collection, tiny_model, progress=False)
    before = held(collection)
    ids = [*before]
    encodings = {image_id: collection.encodings([image_id]) for image_id in ids}
    with TwoStageRetriever(collection, tiny_model) as retriever:

        def rankings():
            found = retriever.search_batch(["a red square", "two dogs", "b"], num_candidates=40)
            return [[(hit.image_id, hit.score) for hit in result] for result in found]

        expected, seen, moved = rankings(), [], 0
        with meanwhile(lambda: seen.append(rankings())):
            for start in range(6):
                # Written anew, which leaves holes all over.
                for image_id in ids[start::10]:
                    collection.add([image_id], encodings[image_id], [before[image_id][2]])
                moved += compact(collection).moved
        assert all(found == expected for found in seen)
        assert moved > 40
        assert same_but_rounded(held(collection), before)
        found = verify(collection)
        assert (found.clean, found.orphan_records) == (True, 0)


def test_files_that_are_not_listed(file_place):
    ids = ids_of(20)
    collection = make(file_place, 12, per_file=5)
    folder = tokens_folder(collection)
    collection.flush()
    old = (folder / MANIFEST_NAME).read_bytes()
    fill(collection, ids[12:])
    store, codec = collection.store, collection.codec
    with new_segment_file(folder, store.store_id, Segment("0badcafe", codec.key, RECORD)) as file:
        file.write(codec.encode(encoding_of(ids[:3]).tokens).tobytes())
    collection.close()
    # A manifest from a copy knows less than the files; a killed writer's file is in none.
    (folder / MANIFEST_NAME).write_bytes(old)
    with file_place.open() as collection:
        before = held(collection)
        found = verify(collection)
        assert found.clean
        assert len(found.unlisted_files) >= 2
        assert "tokens-0badcafe.bin" in found.unlisted_files
        report = compact(collection)
        assert report.moved > 0
        assert held(collection) == before
        assert verify(collection).unlisted_files == ()
        assert disk_bytes(collection) == report.bytes_after
        assert report.bytes_after == len(side_files(collection)) * HEADER_BYTES + 20 * RECORD
    with file_place.open() as collection:
        assert held(collection) == before


def test_other_files_in_the_folder_are_not_touched(file_place):
    with with_every_kind_of_hole(file_place) as collection:
        folder = tokens_folder(collection)
        others = {"tokens-00000000.bin": b"no header", "tokens-notes.bin": b"", "mine.txt": b"x"}
        for name, content in others.items():
            (folder / name).write_bytes(content)
        compact(collection)
        assert {name: (folder / name).read_bytes() for name in others} == others


def test_what_cannot_be_read_stays_and_is_named(file_place):
    ids = ids_of(20)
    with make(file_place, 20, per_file=10) as collection:
        collection.delete([ids[0]])
        damage(collection, ids[4])
        before = references(collection, [ids[4]])
        kept = segment_of(collection, ids[4])
        content = kept.read_bytes()
        report = compact(collection)
        assert (report.moved, report.unreadable) == (8, (ids[4],))
        assert references(collection, [ids[4]]) == before
        assert kept.read_bytes() == content
        with pytest.raises(TokensCorruptError) as caught:
            collection.encodings(ids[1:])
        assert caught.value.image_ids == (ids[4],)
        rest = [image_id for image_id in ids[1:] if image_id != ids[4]]
        assert collection.encodings(rest).tokens.tobytes() == encoding_of(rest).tokens.tobytes()
        # Again: the holes in that file stay with it, and nothing else changes.
        files = side_files(collection)
        again = compact(collection)
        assert (again.moved, again.unreadable) == (0, (ids[4],))
        assert side_files(collection) == files
        collection.delete([ids[4]])
        compact(collection)
        assert not kept.exists()


def test_tokens_in_the_payload_are_left_to_the_engine(tmp_path):
    for kind in ("edge-payload", "memory-payload"):
        with make(make_place(kind, tmp_path), 5) as collection:
            collection.delete(ids_of(1))
            before = held(collection)
            assert compact(collection) == CompactReport(0, (), 0, 0)
            assert held(collection) == before


def test_while_another_writes_it_is_refused_before_it_looks(shared_file):
    with make(shared_file, 8) as writer, shared_file.open() as other:
        files = side_files(writer)
        with pytest.raises(CollectionLockedError):
            compact(other)
        writer.delete(ids_of(8))  # nothing refers to the file for now, but its writer goes on
        with pytest.raises(CollectionLockedError):
            compact(other)
        assert side_files(writer) == files
        fill(writer, ids_of(3))
    with shared_file.open() as other:
        compact(other)
        assert len(held(other)) == 3


def test_what_another_wrote_since_is_seen(shared_file):
    with make(shared_file, 8, per_file=5) as early:
        before = held(early)
    with shared_file.open() as early:
        with shared_file.open() as writer:
            fill(writer, ids_of(8, start=20))
        report = compact(early)
        assert report.moved == 0  # the other's files are listed, and have no holes
        assert len(held(early)) == 16
        assert before.items() <= held(early).items()


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_one_that_was_interrupted_is_taken_up(file_place, monkeypatch, small_pages, calls):
    ids = ids_of(40)
    with make(file_place, 40, per_file=10) as collection:
        collection.delete(ids[::9])
        before = held(collection)
        gone = EngineUnavailableError("gone", location="here")
        with monkeypatch.context() as patch:
            failing = failing_after(calls, collection.index.set_payload, gone)
            patch.setattr(collection.index, "set_payload", failing)
            with pytest.raises(EngineUnavailableError):
                compact(collection)
        assert held(collection) == before
        assert verify(collection).clean
    with file_place.open() as collection:
        assert held(collection) == before
        compact(collection)
        assert held(collection) == before
        assert verify(collection).orphan_records == 0
        files = side_files(collection)
        assert disk_bytes(collection) == len(files) * HEADER_BYTES + 35 * RECORD


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_a_folder_that_cannot_be_written(file_place):
    with make(file_place, 5) as collection:
        collection.delete(ids_of(2))
        folder = tokens_folder(collection)
    with file_place.open() as collection:
        before = held(collection)
        folder.chmod(0o500)
        try:
            with pytest.raises(StoreError, match="no permission"):
                compact(collection)
            assert held(collection) == before
        finally:
            folder.chmod(0o700)


def test_adding_waits_and_finds_its_place(file_place, monkeypatch, small_pages):
    """An image added by another thread half way is neither lost nor in a file that goes."""
    ids = ids_of(40)
    with make(file_place, 30, per_file=10) as collection:
        collection.delete(ids[:30:10])
        real = collection.index.set_payload
        threads = []

        def repointing(payloads):
            if not threads:
                encoding = encoding_of(ids[30:])
                adding = (ids[30:], encoding, payloads_of(ids[30:]))
                threads.append(
                    threading.Thread(target=ImageCollection.add, args=(collection, *adding))
                )
                threads[0].start()
            real(payloads)

        monkeypatch.setattr(collection.index, "set_payload", repointing)
        compact(collection)
        threads[0].join()
        assert verify(collection).clean
        assert len(held(collection)) == 37
        expected = encoding_of(ids[30:]).tokens.tobytes()
        assert collection.encodings(ids[30:]).tokens.tobytes() == expected
