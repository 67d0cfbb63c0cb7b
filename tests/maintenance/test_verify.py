from __future__ import annotations

import json
import tracemalloc

import pytest
from collection_places import encoding_of, fill, ids_of, make_place
from PIL import Image
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
from edje_qdrant.errors import ConfigError, StoreError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.images import image_file_id
from edje_qdrant.maintenance import (
    Finding,
    VerifyReport,
    compact,
    copy_collection,
    transcode,
    verify,
)
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.tokens.manifest import MANIFEST_NAME, Segment
from edje_qdrant.tokens.segment import HEADER_BYTES, new_segment_file
from edje_qdrant.types import ImageEncoding

RECORD = 48


def test_a_collection_that_lived_a_normal_life_is_clean(place, tmp_path, fitted):
    ids = ids_of(40)
    with make(place) as collection:
        assert verify(collection) == VerifyReport(0, (), 0, 0, ())
        fill(collection, ids[:30])
        assert verify(collection) == VerifyReport(30, (), 0, 0, ())
        fill(collection, ids[5:9], seed=1)
        collection.delete(ids[:2])
        collection.update_payload({ids[3]: {"album": "2024"}})
        collection.delete_matching({"album": "2024"})
    with place.open() as collection:
        holes = 7 if place.tokens == "file" else 0
        expected = VerifyReport(27, (), holes, holes * RECORD, ())
        assert verify(collection) == expected
        assert expected.clean
        transcode(collection, fitted("pq16"))
        compact(collection)
        fill(collection, ids[30:])
        assert verify(collection) == VerifyReport(37, (), 0, 0, ())
        with make(make_place("edge-file", tmp_path / "to"), codec=fitted("pq16")) as copy:
            copy_collection(collection, copy)
            assert verify(copy) == VerifyReport(37, (), 0, 0, ())


def test_damaged_tokens(place, small_pages):
    ids = ids_of(20)
    with make(place, 20) as collection:
        for image_id in (ids[3], ids[4], ids[17]):
            damage(collection, image_id)
        report = verify(collection)
        assert not report.clean
        assert report.counts() == {"tokens damaged": 3}
        assert [f.image_id for f in report.findings] == [ids[3], ids[4], ids[17]]
        assert report.findings[0].path == f"{ids[3]}.png"
        assert ids[3] in report.findings[0].detail
        assert report.orphan_records == 0  # a damaged record is one that is referred to


@pytest.mark.parametrize("reference", [{}, {"codec": "float16"}, 7, None])
def test_missing_references(place, reference):
    ids = ids_of(5)
    with make(place, 5) as collection:
        payload = {"path": "a.png"} if reference is None else {"path": "a.png", "_edje": reference}
        collection.index.remove_payload_keys([ids[2]], ["_edje"])
        collection.index.set_payload({ids[2]: payload})
        report = verify(collection)
        # In a folder no other program writes, so a point without a reference has lost it.
        others = reference is None and collection.index.shared
        kind = "other program" if others else "tokens missing"
        found = [(f.kind, f.image_id, f.path) for f in report.findings]
        assert found == [(kind, ids[2], "a.png")]
        assert report.orphan_records == (1 if place.tokens == "file" else 0)


@pytest.mark.parametrize(
    "reference",
    [
        {"segment": "../../x", "record": 0, "checksum": "0"},
        {"segment": "01234567", "record": -1, "checksum": "0"},
        {"segment": "01234567", "record": 2**40, "checksum": "0"},
        {"segment": "01234567", "record": 2**33, "checksum": "0"},
        {"segment": "01234567", "record": 4_000_000_000, "checksum": "0"},
        {"segment": "01234567", "record": "1", "checksum": "0"},
        {"segment": 1, "record": 1, "checksum": "0"},
        {"segment": "THIS", "record": 4_000_000_000, "checksum": "0"},
        {"segment": "THIS", "record": 1.5, "checksum": "0"},
        {"segment": "THIS", "record": True, "checksum": "0"},
    ],
)
def test_references_that_cannot_be(file_place, reference):
    ids = ids_of(5)
    with make(file_place, 5) as collection:
        (segment,) = {r["segment"] for r in references(collection, ids).values()}
        if reference["segment"] == "THIS":
            reference = {**reference, "segment": segment}
        collection.index.set_payload({ids[2]: {"_edje": reference}})
        report = verify(collection)
        assert [f.image_id for f in report.findings] == [ids[2]]
        assert report.findings[0].kind in ("tokens missing", "tokens damaged")
        with pytest.raises((TokensNotFoundError, TokensCorruptError)) as caught:
            collection.encodings([ids[2]])
        assert caught.value.image_ids == (ids[2],)
        assert report.orphan_records == 1


def test_a_record_used_twice(file_place, small_pages):
    ids = ids_of(20)
    with make(file_place, 20) as collection:
        collection.index.set_payload({ids[12]: {"_edje": references(collection, [ids[3]])[ids[3]]}})
        report = verify(collection)
        assert [(f.kind, f.image_id) for f in report.findings] == [("record used twice", ids[12])]
        assert "record 3 of tokens-" in report.findings[0].detail
        assert report.orphan_records == 1


def test_a_record_that_another_points_to_wrongly_is_still_its_owners(file_place, small_pages):
    ids = ids_of(20)
    with make(file_place, 20) as collection:
        wrong = {**references(collection, [ids[12]])[ids[12]], "checksum": "0" * 16}
        collection.index.set_payload({ids[3]: {"_edje": wrong}})
        report = verify(collection)
        assert [(f.kind, f.image_id) for f in report.findings] == [("tokens damaged", ids[3])]


def test_a_truncated_side_file(file_place):
    ids = ids_of(20)
    with make(file_place, 20, per_file=10) as collection:
        last = segment_of(collection, ids[19])
    with last.open("r+b") as file:
        file.truncate(HEADER_BYTES + 6 * RECORD + 13)
    with file_place.open() as collection:
        report = verify(collection)
        assert report.counts() == {"tokens missing": 4}
        assert [f.image_id for f in report.findings] == ids[16:]
        assert (report.orphan_records, report.unlisted_files) == (0, ())


@pytest.mark.parametrize("how", ["gone", "header", "empty"])
def test_a_side_file_that_is_lost(file_place, how):
    ids = ids_of(20)
    with make(file_place, 20, per_file=10) as collection:
        first = segment_of(collection, ids[0])
    if how == "gone":
        first.unlink()
    elif how == "header":
        flip(first, 40)
    else:
        first.write_bytes(b"")
    with pytest.raises((TokensCorruptError, TokensNotFoundError)):
        file_place.open()
    with opened_to_mend(file_place) as collection:
        report = verify(collection)
        kind = "tokens missing" if how == "gone" else "tokens damaged"
        assert report.counts() == {kind: 10}
        assert [f.image_id for f in report.findings] == ids[:10]
        assert report.orphan_records == 0


def opened_to_mend(place):
    return ImageCollection.open(place.location, "images", for_repair=True)


@pytest.mark.parametrize("how", ["gone", "damaged", "cut"])
def test_a_lost_manifest_is_written_anew(file_place, how):
    with make(file_place, 20, per_file=8) as collection:
        manifest = tokens_folder(collection) / MANIFEST_NAME
        before = held(collection)
    if how == "gone":
        manifest.unlink()
    elif how == "damaged":
        flip(manifest, manifest.stat().st_size // 2)
    else:
        manifest.write_bytes(manifest.read_bytes()[:-9])
    with pytest.raises(StoreError, match="edje-qdrant repair"):
        file_place.open()
    with opened_to_mend(file_place) as collection:
        assert verify(collection) == VerifyReport(20, (), 0, 0, ())
        assert held(collection) == before
    with file_place.open() as collection:
        fill(collection, ids_of(5, start=50))
        assert verify(collection).clean


def test_a_codebook_of_an_earlier_codec_that_is_lost(file_place, fitted, monkeypatch, small_pages):
    ids = ids_of(20)
    with make(file_place, 8, codec=fitted("pq16")) as collection:
        collection.set_codec(codec_for("int8", 4, 6))
        fill(collection, ids[8:])
        codebook = tokens_folder(collection) / f"codec-{fitted('pq16').key}.safetensors"
        content = codebook.read_bytes()
    for spoil, kind in ((codebook.unlink, "missing"), (lambda: flip(codebook, 900), "damaged")):
        codebook.write_bytes(content)
        spoil()
        with opened_to_mend(file_place) as collection:
            report = verify(collection)
            assert report.counts() == {f"tokens {kind}": 8}
            assert [f.image_id for f in report.findings] == ids[:8]
            assert "codec-pq16" in report.findings[0].detail
            expected = codec_for("int8", 4, 6)
            tokens = collection.encodings(ids[8:]).tokens
            assert tokens.tobytes() == (
                expected.decode(expected.encode(encoding_of(ids[8:]).tokens)).tobytes()
            )


def test_the_codebook_that_is_lost(file_place, fitted):
    with make(file_place, 8, codec=fitted("pq16")) as collection:
        codebook = tokens_folder(collection) / f"codec-{fitted('pq16').key}.safetensors"
    codebook.unlink()
    for open_it in (file_place.open, lambda: opened_to_mend(file_place)):
        with pytest.raises(TokensNotFoundError, match=r"codebook .* is gone"):
            open_it()


def test_pictures_in_another_codec(place, fitted):
    ids = ids_of(12)
    with make(place, 8) as collection:
        collection.set_codec(fitted("pq16"))
        fill(collection, ids[8:])
        damage_first = ids[0]
        if place.tokens == "file":
            flip(segment_of(collection, damage_first), HEADER_BYTES + 3)
        else:
            damage(collection, damage_first)
        report = verify(collection)
        assert report.counts() == {"tokens damaged": 1, "other codec": 7}
        other = [f.image_id for f in report.findings if f.kind == "other codec"]
        assert other == ids[1:8]
        assert report.findings[-1].detail == f"float16, not {fitted('pq16').key}: transcode it"
        assert not report.clean


def test_orphans_and_files_that_are_not_listed(file_place):
    ids = ids_of(20)
    with make(file_place, 20, per_file=8) as collection:
        store, codec = collection.store, collection.codec
        store.put(ids[:3], encoding_of(ids[:3]).tokens)
        store.flush()
        collection.delete(ids[5:7])
        segment = Segment("0badcafe", codec.key, RECORD)
        with new_segment_file(tokens_folder(collection), store.store_id, segment) as file:
            file.write(codec.encode(encoding_of(ids[:4]).tokens).tobytes() + b"torn")
        report = verify(collection)
        assert report == VerifyReport(18, (), 9, 9 * RECORD, ("tokens-0badcafe.bin",))
        assert report.clean


def test_pictures_added_meanwhile_are_no_orphans(file_place, monkeypatch, small_pages):
    ids = ids_of(20)
    with make(file_place, 20, per_file=8) as collection:
        real = collection.index.scroll
        added = []

        def scroll(**more):
            for page in real(**more):
                if not added:
                    added.append(True)
                    fill(collection, ids_of(9, start=0xFFFF))
                    fill(collection, ids[:2], seed=1)
                yield page

        monkeypatch.setattr(collection.index, "scroll", scroll)
        report = verify(collection)
        assert report.clean
        # The two that were replaced were seen as they were before, or else their holes.
        assert report.orphan_records <= 2
        monkeypatch.undo()
        assert verify(collection).orphan_records == 2


def test_what_is_compacted_deleted_or_transcoded_meanwhile_is_no_finding(
    place, monkeypatch, small_pages
):
    ids = ids_of(30)
    int8 = codec_for("int8", 4, 6)
    for change in (compact, lambda c: transcode(c, int8), lambda c: c.delete(ids[2:5])):
        with make(place, 30, per_file=8, name=f"n{id(change)}") as collection:
            collection.delete(ids[:1])
            real = collection.index.scroll
            changed = []

            def scroll(real=real, changed=changed, collection=collection, change=change, **more):
                for page in real(**more):
                    if not changed:
                        changed.append(True)
                        change(collection)
                    yield page

            monkeypatch.setattr(collection.index, "scroll", scroll)
            assert {f.kind for f in verify(collection).findings} <= {"other codec"}
            monkeypatch.undo()


@pytest.fixture
def with_files(tmp_path):
    """A collection of four images' files; their content is their id."""
    folder = tmp_path / "files"
    folder.mkdir()
    paths = []
    for number in range(4):
        paths.append(folder / f"{number}.png")
        Image.new("RGB", (8, 8), (number, 0, 0)).save(paths[-1])
    ids = [image_file_id(str(path)) for path in paths]
    with make(make_place("edge-file", tmp_path)) as collection:
        encoding = encoding_of(ids_of(4))
        collection.add(ids, encoding, [{"path": str(path)} for path in paths])
        yield collection, ids, paths


def test_the_pictures_files_are_compared_where_that_is_asked_for(with_files):
    collection, ids, paths = with_files
    assert verify(collection, images=True).clean
    paths[0].unlink()
    paths[1].write_bytes(paths[2].read_bytes())
    collection.index.remove_payload_keys([ids[3]], ["path"])  # none is named, so none is missed
    assert verify(collection).clean
    report = verify(collection, images=True)
    found = {f.image_id: f for f in report.findings}
    assert found == {
        ids[0]: Finding("picture gone", ids[0], str(paths[0]), "No such file or directory"),
        ids[1]: Finding(
            "picture changed",
            ids[1],
            str(paths[1]),
            "its content has changed since it was ingested",
        ),
    }
    assert not report.clean


def test_a_copy_of_a_picture_that_is_gone_is_named(with_files, tmp_path):
    collection, ids, paths = with_files
    copy = tmp_path / "copy.png"
    copy.write_bytes(paths[0].read_bytes())
    both = {image_id: {"other_paths": ["/nowhere.png", str(copy)]} for image_id in ids[:2]}
    collection.update_payload(both)
    paths[0].unlink()
    paths[1].unlink()
    details = {f.image_id: f.detail for f in verify(collection, images=True).findings}
    assert str(copy) not in details[ids[1]]  # it holds another image
    assert details[ids[0]].endswith(
        f"; a copy is at {copy}, and takes its place when the image's folder is ingested with "
        "--prune"
    )


@pytest.mark.parametrize("codec", ["float16", "int4"])
def test_a_sample_is_encoded_again_where_that_is_asked_for(
    tmp_path, tiny_model, write_images, codec
):
    paths = write_images(tmp_path / "pictures", 8)
    ids = [image_file_id(str(path)) for path in paths]
    encoding = tiny_model.encode_images([Image.open(path) for path in paths])
    swapped = [1, 0, *range(2, 8)]  # as by a file that changed while it was read, then changed back
    payloads = [{"path": str(path)} for path in paths]
    contract = tiny_model.contract()
    for wrong in (False, True):
        rows = swapped if wrong else [*range(8)]
        stored = ImageEncoding(encoding.embeddings[rows], encoding.tokens[rows])
        where = tmp_path / str(wrong)
        with ImageCollection.create(where, "images", contract, codec=codec) as collection:
            collection.add(ids, stored, payloads)
            assert verify(collection, images=True).clean
            report = verify(collection, images=True, model=tiny_model)
            assert report.counts() == ({"encoded otherwise": 2} if wrong else {})
            assert {finding.image_id for finding in report.findings} <= {*ids[:2]}
            assert verify(collection, images=True, model=tiny_model, sample=0).clean
            few = verify(collection, images=True, model=tiny_model, sample=7)
            assert len(few.findings) <= 2
            with pytest.raises(ConfigError, match="images=True"):
                verify(collection, model=tiny_model)


def test_as_json(file_place):
    ids = ids_of(5)
    with make(file_place, 5) as collection:
        damage(collection, ids[0])
        collection.delete([ids[4]])
        data = json.loads(json.dumps(verify(collection).as_dict()))
    (finding,) = data.pop("findings")
    assert set(finding) == {"kind", "image_id", "path", "detail"}
    assert (finding["kind"], finding["image_id"]) == ("tokens damaged", ids[0])
    assert data == {
        "clean": False,
        "points": 4,
        "counts": {"tokens damaged": 1},
        "orphan_records": 1,
        "orphan_bytes": RECORD,
        "unlisted_files": [],
    }


def test_nothing_is_changed(place):
    ids = ids_of(10)
    with make(place, 10) as collection:
        damage(collection, ids[3])
        collection.delete(ids[:1])
        rest = [*ids[1:3], *ids[4:]]
        before = references(collection, ids[1:])
        files = side_files(collection) if place.tokens == "file" else {}
        tokens = collection.encodings(rest).tokens
        verify(collection)
        assert references(collection, ids[1:]) == before
        assert collection.encodings(rest).tokens.tobytes() == tokens.tobytes()
        if files:
            assert side_files(collection) == files


def test_a_record_number_that_cannot_be_takes_no_memory(file_place):
    ids = ids_of(3)
    with make(file_place, 3) as collection:
        segment = references(collection, ids)[ids[0]]["segment"]
        far = {"segment": segment, "record": 2**31, "checksum": "0"}
        collection.index.set_payload({ids[1]: {"_edje": far}})
        tracemalloc.start()
        assert verify(collection).counts() == {"tokens missing": 1}
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
        tracemalloc.stop()
