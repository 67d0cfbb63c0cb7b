from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from collection_places import make_place
from PIL import Image
from rounding import float16_slack, float32_slack
from stored import (
    damage,
    flip,
    held,
    make,
    references,
    segment_of,
    side_files,
    tokens_folder,
)

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    CollectionLockedError,
    ContractMismatchError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.images import image_file_id, open_upright
from edje_qdrant.ingest.ingest import fit_codec_to_source, ingest_images
from edje_qdrant.maintenance import repair as repair_module
from edje_qdrant.maintenance import verify
from edje_qdrant.maintenance.repair import repair
from edje_qdrant.model import pixels as pixels_module
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.tokens.file_store import FileTokenStore
from edje_qdrant.tokens.manifest import MANIFEST_NAME
from edje_qdrant.tokens.segment import HEADER_BYTES

COUNT, PER_FILE = 12, 5
RECORD = 4 * 16 * 2


def rotten(collection, ids):
    """Return what to do to files once the collection is closed."""
    folder = tokens_folder(collection)
    of = {image_id: segment_of(collection, image_id) for image_id in ids}
    first, last = of[ids[0]], of[ids[-1]]
    manifest = folder / MANIFEST_NAME

    def cut(path, records):
        with path.open("r+b") as file:
            file.truncate(HEADER_BYTES + records * RECORD + 7)

    return {
        "flipped": lambda: flip(first, HEADER_BYTES + RECORD + 9),
        "first cut": lambda: cut(first, 2),
        "last cut": lambda: cut(last, 1),
        "last emptied": lambda: last.write_bytes(b""),
        "last cut within its header": lambda: last.write_bytes(last.read_bytes()[:100]),
        "first gone": first.unlink,
        "last gone": last.unlink,
        "first header": lambda: flip(first, 17),
        "last header": lambda: flip(last, HEADER_BYTES - 1),
        "all gone": lambda: [path.unlink() for path in {*of.values()}],
        "manifest gone": manifest.unlink,
        "manifest damaged": lambda: flip(manifest, 300),
        "manifest and last gone": lambda: (manifest.unlink(), last.unlink()),
        "manifest gone and last cut": lambda: (manifest.unlink(), cut(last, 1)),
    }


@pytest.fixture
def pictures(tmp_path, write_images):
    return write_images(tmp_path / "pictures", COUNT)


_ENCODED = {}


def filled(place, model, pictures, **more):
    """Make a collection of the images; return their ids, in the order in which they came.

    As an ingest does, but each content is encoded once for all tests.
    """
    collection = make(place, per_file=PER_FILE, contract=model.contract(), **more)
    ids = [image_file_id(str(path)) for path in pictures]
    if (*ids,) not in _ENCODED:
        _ENCODED[(*ids,)] = model.encode_images([open_upright(str(p), p.name) for p in pictures])
    collection.add(ids, _ENCODED[(*ids,)], [{"path": str(path), "n": 1} for path in pictures])
    collection.flush()
    return collection, ids


def mended(place):
    return ImageCollection.open(place.location, "images", for_repair=True)


def nearly(ours, theirs):
    """Compare what was encoded in other batches."""

    def close(one, other, slack):
        return np.allclose(one, other, rtol=0, atol=slack(other))

    rows = zip(ours.values(), theirs.values(), strict=True)
    return [*ours] == [*theirs] and all(
        close(np.frombuffer(a, "f4"), np.frombuffer(b, "f4"), float32_slack)
        and close(np.frombuffer(t, "f2"), np.frombuffer(u, "f2"), float16_slack)
        and p == q
        for (a, t, p), (b, u, q) in rows
    )


def rankings(collection, model):
    found = TwoStageRetriever(collection, model).search_batch(["a red square", "b"], top_k=COUNT)
    return [[hit.image_id for hit in result] for result in found]


@pytest.mark.parametrize("what", [
    "flipped", "first cut", "last cut", "last emptied", "last cut within its header",
    "first gone", "last gone", "first header", "last header", "all gone", "manifest gone",
    "manifest damaged", "manifest and last gone", "manifest gone and last cut",
])  # fmt: skip
def test_damage_is_mended_and_the_collection_goes_on(
    file_place, tiny_model, pictures, write_images, tmp_path, what
):
    collection, ids = filled(file_place, tiny_model, pictures)
    before, ranked = held(collection), rankings(collection, tiny_model)
    damages = rotten(collection, ids)
    collection.close()
    damages[what]()
    with mended(file_place) as collection:
        broken = {f.image_id for f in verify(collection).findings}
        assert broken or what.startswith("manifest")
        report = repair(collection, tiny_model)
        assert {*report.encoded} == broken
        assert len(report.encoded) == len(broken)
        assert report.left == ()
        assert report.compacted.unreadable == ()
        found = verify(collection)
        assert (found.findings, found.orphan_records, found.unlisted_files) == ((), 0, ())
        assert nearly(held(collection), before)
    with file_place.open() as collection:  # nothing has to be overlooked any more
        assert nearly(held(collection), before)
        assert rankings(collection, tiny_model) == ranked
        more = write_images(tmp_path / "more", 7, seed=3)
        assert ingest_images(more, collection, tiny_model, progress=False).added == 7
        assert verify(collection).clean
    with file_place.open() as collection:
        assert verify(collection).clean
        assert len(collection) == COUNT + 7


@pytest.mark.parametrize("what", ["damaged", "no reference", "no tokens", "another codec"])
def test_tokens_in_the_payload_are_mended(tmp_path, tiny_model, pictures, what):
    for kind in ("edge-payload", "memory-payload"):
        collection, ids = filled(make_place(kind, tmp_path / kind), tiny_model, pictures)
        with collection:
            before = held(collection)
            if what == "damaged":
                damage(collection, ids[3])
            else:
                reference = dict(collection.index.retrieve([ids[3]])[ids[3]]["_edje"])
                change = {
                    "no reference": {},
                    "no tokens": {"codec": "float16", "checksum": reference["checksum"]},
                    "another codec": {**reference, "codec": "pq32-00000000"},
                }
                collection.index.set_payload({ids[3]: {"_edje": change[what]}})
            report = repair(collection, tiny_model)
            assert (report.encoded, report.left) == ((ids[3],), ())
            assert verify(collection).clean
            assert nearly(held(collection), before)


def test_a_record_used_twice_is_mended(file_place, tiny_model, pictures):
    collection, ids = filled(file_place, tiny_model, pictures)
    with collection:
        before = held(collection)
        wrong = references(collection, ids[:1])[ids[0]]
        collection.index.set_payload({ids[5]: {"_edje": wrong}})
        report = repair(collection, tiny_model)
        assert {*report.encoded} <= {ids[0], ids[5]}
        assert len(report.encoded) == 1
        assert verify(collection).clean
        # One of the two was written anew; which of them owns the record cannot be told.
        if report.encoded == (ids[5],):
            assert nearly(held(collection), before)


def test_pictures_in_a_codec_with_a_codebook(file_place, tiny_model, write_images, tmp_path):
    pictures = write_images(tmp_path / "pictures", 70)
    codec = fit_codec_to_source(pictures, tiny_model, "pq16", progress=False)
    collection, ids = filled(file_place, tiny_model, pictures, codec=codec)
    with collection:
        before = held(collection)
        for image_id in ids[10:30]:
            damage(collection, image_id)
        assert len(repair(collection, tiny_model, batch_size=8).encoded) == 20
        assert verify(collection).clean
        same = [i for i in ids if held(collection)[i][1] == before[i][1]]
        assert len(same) >= 65  # a last bit of the model's may tip the nearest centroid


@pytest.mark.parametrize("how", ["gone", "changed", "undecodable", "no path"])
def test_what_cannot_be_mended_is_listed_and_left(
    file_place, tiny_model, pictures, monkeypatch, how
):
    collection, ids = filled(file_place, tiny_model, pictures)
    with collection:
        damage(collection, ids[1])
        damage(collection, ids[2])
        before = references(collection, ids)
        if how == "gone":
            pictures[1].unlink()
        elif how == "changed":
            pictures[1].write_bytes(pictures[0].read_bytes())
        elif how == "no path":
            collection.index.remove_payload_keys([ids[1]], ["path"])
        else:  # its content is the same, and yet it cannot be decoded here
            real = pixels_module.read_file

            def fails(model, decoders, file, name):
                if name == str(pictures[1]):
                    raise repair_module.ImageReadError(name, "no decoder")
                return real(model, decoders, file, name)

            monkeypatch.setattr(pixels_module, "read_file", fails)
        report = repair(collection, tiny_model)
        assert report.encoded == (ids[2],)
        assert [(f.kind, f.image_id) for f in report.left] == [("tokens damaged", ids[1])]
        assert len(collection) == COUNT
        assert references(collection, [ids[1]])[ids[1]] == before[ids[1]]
        assert report.compacted.unreadable == (ids[1],)
        again = repair(collection, tiny_model)
        assert (again.encoded, [f.image_id for f in again.left]) == ((), [ids[1]])


def test_a_file_that_changes_while_it_is_read_is_not_stored_under_the_old_id(
    file_place, tiny_model, pictures, monkeypatch
):
    collection, ids = filled(file_place, tiny_model, pictures)
    with collection:
        damage(collection, ids[1])
        real = repair_module.verify

        def changing(*args, **more):
            report = real(*args, **more)
            pictures[1].write_bytes(pictures[0].read_bytes())
            return report

        monkeypatch.setattr(repair_module, "verify", changing)
        report = repair(collection, tiny_model)
        assert (report.encoded, [f.image_id for f in report.left]) == ((), [ids[1]])


def test_a_copy_elsewhere_is_read_where_the_file_is_gone(
    file_place, tiny_model, pictures, tmp_path
):
    collection, ids = filled(file_place, tiny_model, pictures)
    with collection:
        copy = pictures[1].rename(tmp_path / "copy.png")
        other = {"other_paths": [str(pictures[0]), str(copy)]}
        collection.update_payload({ids[1]: other})
        before = held(collection)
        damage(collection, ids[1])
        report = repair(collection, tiny_model)
        assert (report.encoded, report.left) == ((ids[1],), ())
        assert nearly(held(collection), before)


def test_put_back_what_was_gone_and_it_is_mended(file_place, tiny_model, pictures):
    collection, ids = filled(file_place, tiny_model, pictures)
    with collection:
        before = held(collection)
        damage(collection, ids[1])
        content = pictures[1].read_bytes()
        pictures[1].unlink()
        assert len(repair(collection, tiny_model).left) == 1
        pictures[1].write_bytes(content)
        assert repair(collection, tiny_model).encoded == (ids[1],)
        assert nearly(held(collection), before)
        assert verify(collection).orphan_records == 0


@pytest.mark.parametrize("what", ["last cut", "last header", "last gone", "last emptied"])
def test_behind_a_loss_that_stays_nothing_is_written(
    file_place, tiny_model, pictures, write_images, tmp_path, what
):
    """The last side file is damaged, and the images it held are gone: new ones still come in."""
    collection, ids = filled(file_place, tiny_model, pictures)
    damages = rotten(collection, ids)
    collection.close()
    damages[what]()
    for path in pictures:
        path.unlink()
    more = write_images(tmp_path / "more", 7, seed=3)
    with mended(file_place) as collection:
        with pytest.raises(TokensCorruptError, match="edje-qdrant repair"):
            ingest_images(more, collection, tiny_model, progress=False)
        left = repair(collection, tiny_model).left
        assert 0 < len(left) < COUNT
    with mended(file_place) as collection:
        assert ingest_images(more, collection, tiny_model, progress=False).added == 7
        assert {f.image_id for f in verify(collection).findings} == {f.image_id for f in left}
        collection.delete([finding.image_id for finding in left])
        repair(collection, tiny_model)
    with file_place.open() as collection:
        found = verify(collection)
        assert (found.clean, found.orphan_records) == (True, 0)
        assert len(collection) == COUNT + 7 - len(left)


def test_a_loss_that_concerned_no_picture_does_not_end_writing(
    file_place, tiny_model, pictures, write_images, tmp_path
):
    collection, ids = filled(file_place, tiny_model, pictures)
    damages = rotten(collection, ids)
    collection.delete(ids[PER_FILE * 2 :])
    collection.close()
    damages["last cut"]()
    more = write_images(tmp_path / "more", 7, seed=3)
    repair_first = pytest.raises(TokensCorruptError, match="edje-qdrant repair")
    with file_place.open() as collection, repair_first:
        ingest_images(more, collection, tiny_model, progress=False)
    with mended(file_place) as collection:
        assert verify(collection).clean
        repair(collection, tiny_model)
    with file_place.open() as collection:
        assert ingest_images(more, collection, tiny_model, progress=False).added == 7
        assert verify(collection).clean


def test_another_model_is_refused_before_anything_changes(place, tiny_model, other_model, pictures):
    collection, ids = filled(place, tiny_model, pictures)
    with collection:
        damage(collection, ids[0])
        before = references(collection, ids)
        files = side_files(collection) if place.tokens == "file" else {}
        with pytest.raises(ContractMismatchError) as caught:
            repair(collection, other_model)
        assert "adapter_hash" in caught.value.expected
        assert references(collection, ids) == before
        assert not files or side_files(collection) == files


def test_without_a_model_orphans_go_and_nothing_is_encoded(file_place, tiny_model, pictures):
    collection, ids = filled(file_place, tiny_model, pictures)
    with collection:
        damage(collection, ids[0])
        collection.delete([ids[7]])
        report = repair(collection)
        assert report.encoded == ()
        assert [f.image_id for f in report.left] == [ids[0]]
        assert report.compacted.moved == PER_FILE - 1
        assert verify(collection).orphan_records == 0


def test_where_nothing_is_wrong_nothing_is_done(place, tiny_model, pictures):
    collection, _ = filled(place, tiny_model, pictures)
    with collection:
        before = held(collection)
        files = side_files(collection) if place.tokens == "file" else {}
        report = repair(collection, tiny_model)
        assert (report.encoded, report.left, report.compacted.moved) == ((), (), 0)
        assert held(collection) == before
        assert not files or side_files(collection) == files
    with place.open() as collection:
        assert held(collection) == before


def test_a_picture_that_was_deleted_meanwhile_does_not_come_back(
    place, tiny_model, pictures, monkeypatch
):
    collection, ids = filled(place, tiny_model, pictures)
    with collection:
        for image_id in ids[:3]:
            damage(collection, image_id)
        real, encode = pixels_module.read_file, tiny_model.encode_pixels

        def read(*args):
            collection.delete([ids[0]])
            return real(*args)

        def encode_late(*args):
            collection.delete([ids[2]])
            return encode(*args)

        monkeypatch.setattr(pixels_module, "read_file", read)
        monkeypatch.setattr(tiny_model, "encode_pixels", encode_late)
        report = repair(collection, tiny_model)
        assert report.encoded == (ids[1],)
        assert collection.existing(ids) == {ids[1], *ids[3:]}


def test_fields_that_were_set_since_stay(place, tiny_model, pictures, monkeypatch):
    collection, ids = filled(place, tiny_model, pictures)
    with collection:
        collection.update_payload({ids[0]: {"album": {"name": "2024", "of": [None]}}})
        before = held(collection)
        damage(collection, ids[0])
        encode = tiny_model.encode_pixels

        def encode_late(*args):  # another process sets a field while the image is encoded
            collection.update_payload({ids[0]: {"n": 2}})
            return encode(*args)

        monkeypatch.setattr(tiny_model, "encode_pixels", encode_late)
        repair(collection, tiny_model)
        assert held(collection)[ids[0]][2] == {**before[ids[0]][2], "n": 2}


def test_a_picture_with_an_orientation_is_encoded_as_it_was(tmp_path, tiny_model):
    exif = Image.Exif()
    exif[274] = 6
    blocks = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = tmp_path / "turned.jpg"
    Image.fromarray(blocks).resize((60, 40)).save(path, exif=exif)
    collection, ids = filled(make_place("edge-file", tmp_path), tiny_model, [path])
    with collection:
        before = held(collection)
        damage(collection, ids[0])
        assert repair(collection, tiny_model).encoded == (ids[0],)
        assert nearly(held(collection), before)


def test_while_another_writes_it_is_refused(shared_file, tiny_model, pictures):
    collection, ids = filled(shared_file, tiny_model, pictures)
    with collection, mended(shared_file) as other:
        damage(other, ids[0])
        with pytest.raises(CollectionLockedError):
            repair(other, tiny_model)


def test_a_store_that_is_another_collections_is_not_written_over(file_place, tiny_model, pictures):
    """A folder in the wrong place is no damage: mending it would end what lies there."""
    collection, _ = filled(file_place, tiny_model, pictures)
    with collection:
        folder = tokens_folder(collection)
    make(file_place, per_file=PER_FILE, contract=tiny_model.contract(), name="other").close()
    with file_place.open("other") as other:
        theirs = tokens_folder(other)
        ingest_images(pictures[:3], other, tiny_model, progress=False)
        expected = held(other)
    aside = folder.with_name("aside")
    folder.rename(aside)
    theirs.rename(folder)
    with pytest.raises(TokensCorruptError, match="another collection"):
        mended(file_place)
    folder.rename(theirs)
    with pytest.raises((TokensNotFoundError, StoreError)):
        mended(file_place)
    with file_place.open("other") as other:
        assert held(other) == expected
    aside.rename(folder)
    with closing(FileTokenStore.open(folder)) as store:
        assert len(store.segments()) == 3
