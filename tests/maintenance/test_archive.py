from __future__ import annotations

import errno
import io
import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from collection_places import CONTRACT, KINDS, Place, encoding_of, fill, ids_of, make_place
from qdrant_client import QdrantClient
from stored import damage, failing_after, held, make, meanwhile, same_but_rounded

from edje_qdrant import files
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import (
    CollectionNotFoundError,
    ConfigError,
    ContractMismatchError,
    EngineUnavailableError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.maintenance import (
    CopyReport,
    compact,
    export_collection,
    import_collection,
    transcode,
    verify,
)
from edje_qdrant.tokens.codecs import codec_for

ODD = {
    "nothing": None,
    "deep": {"nothing": None, "list": [1, None, {"a": []}]},
    "text": 'Ä "quoted" \\ \u2028 🐈',
    'a.b[0] "c"': "a key with dots, brackets and quotes",
    "large": 2**53 + 1,
    "negative": -(2**63),
    "fraction": 0.1 + 0.2,
    "tiny": 5e-324,
    "truth": True,
    "": "an empty key",
    "path": "/pictures/a.png",
}


def bring(path, place, name="images", **more):
    """Import an archive to a place, with tokens where the place has them."""
    return import_collection(
        path,
        place.location,
        name,
        tokens=place.tokens,
        tokens_folder=place.tokens_folder,
        **more,
    )


@pytest.fixture
def archive(tmp_path):
    """An archive of 20 images."""
    with make(make_place("edge-file", tmp_path / "source"), 20) as collection:
        export_collection(collection, tmp_path / "pictures.tar")
    return tmp_path / "pictures.tar"


@pytest.fixture
def memory():
    client = QdrantClient(":memory:")
    yield Place(client, "payload", None)
    client.close()


@pytest.mark.parametrize(
    ("kind", "name"), [*((kind, "pq16") for kind in KINDS), ("edge-file", "float16")]
)
def test_what_was_exported_is_imported_bit_for_bit(tmp_path, fitted, kind, name, small_pages):
    codec = fitted(name) if name == "pq16" else codec_for(name, 4, 6)
    place = make_place(kind, tmp_path)
    with make(place, 20, codec=codec) as source:
        source.update_payload({ids_of(1)[0]: {"album": "2024", "deep": {"a": [1, None]}}})
        before = held(source)
        made = export_collection(source, tmp_path / "a")
        assert held(source) == before
    assert made == CopyReport(20, 0, 20 * codec.nbytes)
    for to in KINDS:
        target = make_place(to, tmp_path / to)
        assert bring(tmp_path / "a", target) == CopyReport(20, 0, 20 * codec.nbytes)
        with target.open() as collection:
            assert collection.contract == CONTRACT.with_codec(codec.name, codec.hash)
            assert collection.codec.key == codec.key
            assert collection.token_place == target.tokens
            assert verify(collection).clean
            if to.startswith("edge"):
                assert held(collection) == before
            else:
                assert same_but_rounded(held(collection), before)
            (found,) = collection.nearest(encoding_of(ids_of(1)).embeddings, 20)
            assert found[0].image_id == ids_of(1)[0]
            fill(collection, ids_of(2, start=50))


def test_an_archive_of_an_archive_is_the_same_file(tmp_path, archive):
    bring(archive, make_place("edge-payload", tmp_path))
    with make_place("edge-payload", tmp_path).open() as collection:
        export_collection(collection, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_an_empty_collection(place, tmp_path):
    with make(place) as source:
        assert export_collection(source, tmp_path / "a") == CopyReport(0, 0, 0)
    assert bring(tmp_path / "a", make_place("edge-file", tmp_path / "to")) == CopyReport(0, 0, 0)
    with make_place("edge-file", tmp_path / "to").open() as collection:
        assert (collection.contract, len(collection)) == (CONTRACT, 0)


def test_payloads_of_every_shape(tmp_path):
    ids = ids_of(3)
    with make(make_place("edge-file", tmp_path)) as source:
        source.add(ids, encoding_of(ids), [ODD, {}, {"path": 7}])
        before = held(source)
        assert before[ids[0]][2] == ODD
        export_collection(source, tmp_path / "a")
    for kind in ("edge-payload", "memory-payload"):
        target = make_place(kind, tmp_path / "to")
        bring(tmp_path / "a", target)
        with target.open() as collection:
            assert [payload for *_, payload in held(collection).values()] == [ODD, {}, {"path": 7}]


def test_a_codec_changed_since_some_were_written(tmp_path, monkeypatch, small_pages, fitted):
    """Images still in an old codec are carried over in the new one."""
    codec = fitted("pq16")
    with make(make_place("edge-file", tmp_path), 20) as source:
        with monkeypatch.context() as patch:
            gone = EngineUnavailableError("gone", location="here")
            patch.setattr(
                source.index, "set_payload", failing_after(1, source.index.set_payload, gone)
            )
            with pytest.raises(EngineUnavailableError):
                transcode(source, codec)
        export_collection(source, tmp_path / "a")
    target = make_place("edge-payload", tmp_path / "to")
    bring(tmp_path / "a", target)
    with target.open() as collection:
        assert verify(collection).clean
        expected = codec.decode(codec.encode(encoding_of(ids_of(20)).tokens))
        assert collection.encodings(ids_of(20)).tokens.tobytes() == expected.tobytes()


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_an_import_that_was_interrupted_goes_on(
    archive, memory, tmp_path, monkeypatch, small_pages, parts
):
    with make_place("edge-file", tmp_path / "source").open() as source:
        (tmp_path / "small").mkdir()
        small = tmp_path / "small" / "pictures.tar"
        export_collection(source, small)
        before = held(source)
    for target in (make_place("edge-file", tmp_path), memory):
        with monkeypatch.context() as patch:
            failing = failing_after(
                parts, ImageCollection.add_codes, StoreError("the disk is full")
            )
            patch.setattr(ImageCollection, "add_codes", lambda *args, f=failing: f(*args))
            with pytest.raises(StoreError, match="disk is full"):
                bring(small, target)
        with target.open() as collection:
            assert len(collection) == 8 * parts
        assert bring(small, target) == CopyReport(20 - 8 * parts, 8 * parts, 20 * 48)
        with target.open() as collection:
            assert same_but_rounded(held(collection), before)
        assert bring(small, target) == CopyReport(0, 20, 20 * 48)


def test_pictures_that_are_there_are_left_alone(archive, memory):
    ids = ids_of(5)
    with make(memory) as collection:
        collection.add(ids, encoding_of(ids, seed=1), [{"mine": True}] * 5)
    assert bring(archive, memory).skipped == 5
    with memory.open() as collection:
        everything = held(collection)
        assert [everything[image_id][2] for image_id in ids] == [{"mine": True}] * 5
        assert collection.encodings(ids).tokens.tobytes() == (
            encoding_of(ids, seed=1).tokens.tobytes()
        )
        assert len(everything) == 20


def test_nothing_is_overwritten(tmp_path):
    with make(make_place("edge-file", tmp_path), 3) as source:
        for there in ("file", "folder"):
            path = tmp_path / there
            path.mkdir() if there == "folder" else path.write_text("mine")
            with pytest.raises(ConfigError, match="already"):
                export_collection(source, path)
        assert (tmp_path / "file").read_text() == "mine"
        beside = tmp_path / "a.tar.new"
        beside.write_text("mine")
        export_collection(source, tmp_path / "a.tar")
        assert beside.read_text() == "mine"
        export_collection(source, tmp_path / "new" / "folder" / "a.tar")
    assert (tmp_path / "new" / "folder" / "a.tar").read_bytes() == (tmp_path / "a.tar").read_bytes()


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch, small_pages):
    ids = ids_of(20)
    (tmp_path / "out").mkdir()
    with make(make_place("edge-file", tmp_path), 20) as source:
        damage(source, ids[17])
        with pytest.raises(TokensCorruptError) as caught:
            export_collection(source, tmp_path / "out" / "a")
        assert caught.value.image_ids == (ids[17],)
        assert ids[17] in str(caught.value)
        assert os.listdir(tmp_path / "out") == []
        source.index.set_payload({ids[3]: {"_edje": {}}})
        with pytest.raises(TokensNotFoundError) as missing:
            export_collection(source, tmp_path / "out" / "a")
        assert missing.value.image_ids == (ids[3],)
        assert os.listdir(tmp_path / "out") == []
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="cannot write"):
            export_collection(source, tmp_path / "file" / "a")


def test_searches_and_new_pictures_while_exporting(place, tmp_path, small_pages):
    ids, more = ids_of(60), ids_of(40, start=200)
    batches = iter([more[start : start + 2] for start in range(0, 40, 2)])
    with make(place, 60, per_file=16) as source:
        before = held(source)

        def search():
            (found,) = source.nearest(encoding_of(ids[:1]).embeddings, 20)
            expected = encoding_of([c.image_id for c in found]).tokens
            assert source.tokens(found).tobytes() == expected.tobytes()

        def add():
            fill(source, next(batches, []))

        with meanwhile(search), meanwhile(add):
            export_collection(source, tmp_path / "a")
    target = make_place("edge-payload", tmp_path / "to")
    bring(tmp_path / "a", target)
    with target.open() as collection:
        assert verify(collection).clean
        imported = held(collection)
        assert imported.keys() <= {*ids, *more}
        assert same_but_rounded({i: imported[i] for i in ids}, before)
        for image_id in imported.keys() - {*ids}:
            assert imported[image_id][1] == encoding_of([image_id]).tokens.tobytes()


def test_a_codec_that_changes_while_exporting(place, tmp_path, monkeypatch, small_pages):
    ids = ids_of(20)
    int8 = codec_for("int8", 4, 6)
    with make(place, 20) as source:
        real, pages = source.index.scroll, []

        def scroll(**more):
            for page in real(**more):
                if more.get("vectors"):  # the export's own
                    pages.append(page)
                    if len(pages) == 2:
                        transcode(source, int8)
                yield page

        monkeypatch.setattr(source.index, "scroll", scroll)
        export_collection(source, tmp_path / "a")
    target = make_place("edge-file", tmp_path / "to")
    bring(tmp_path / "a", target)
    with target.open() as collection:
        assert collection.codec.name == "float16"
        tokens = collection.encodings(ids).tokens
        exact = encoding_of(ids).tokens
        lossy = int8.decode(int8.encode(exact))
        assert tokens[:8].tobytes() == exact[:8].tobytes()
        for row in range(8, 20):
            assert tokens[row].tobytes() in (exact[row].tobytes(), lossy[row].tobytes())


def test_pictures_deleted_and_files_compacted_while_exporting(
    file_place, tmp_path, monkeypatch, small_pages
):
    """What a page said of its images may have changed by the time they are read."""
    ids = ids_of(40)
    with make(file_place, 40, per_file=10) as source:
        source.delete(ids[:1])
        real = source.index.scroll
        pages = 0

        def scroll(**more):
            nonlocal pages
            for page in real(**more):
                if more.get("vectors"):  # the export's own
                    pages += 1
                    if pages == 1:
                        source.delete(ids[2:4])
                        compact(source)
                yield page

        monkeypatch.setattr(source.index, "scroll", scroll)
        assert export_collection(source, tmp_path / "a").copied == 37
    target = make_place("edge-file", tmp_path / "to")
    bring(tmp_path / "a", target)
    with target.open() as collection:
        assert [*held(collection)] == [ids[1], *ids[4:]]
        expected = encoding_of(ids[4:]).tokens.tobytes()
        assert collection.encodings(ids[4:]).tokens.tobytes() == expected


def small_archive(tmp_path, fitted):
    """Write a small archive with every kind of member; return its bytes, and what it holds."""
    with make(make_place("edge-file", tmp_path / "s"), 3, codec=fitted("pq16")) as source:
        export_collection(source, tmp_path / "a")
        return (tmp_path / "a").read_bytes(), held(source)


def import_of(data, path, client, name):
    """Import bytes as an archive; return the error, and what was written."""
    path.write_bytes(data)
    place = Place(client, "payload", None)
    error = None
    try:
        bring(path, place, name)
    except Exception as caught:
        error = caught
    try:
        with place.open(name) as collection:
            return error, held(collection)
    except CollectionNotFoundError:
        return error, None


def test_one_flipped_byte_is_noticed_or_does_no_harm(tmp_path, fitted):
    data, before = small_archive(tmp_path, fitted)
    rng = np.random.default_rng(0)
    client = QdrantClient(":memory:")
    refused = 0
    for number, start in enumerate(range(0, len(data), 24)):
        spoilt = bytearray(data)
        at = min(start + int(rng.integers(24)), len(data) - 1)
        spoilt[at] ^= int(rng.integers(1, 256))
        error, written = import_of(bytes(spoilt), tmp_path / "b", client, f"c{number}")
        if error is None:
            assert same_but_rounded(written, before), at
        else:
            refused += 1
            assert isinstance(error, TokensCorruptError | StoreError), (at, error)
            assert "archive" in str(error) or str(tmp_path / "b") in str(error)
            # What came before the damage may be there, whole.
            assert written is None or written == {} or same_but_rounded(written, before), at
        client.delete_collection(f"c{number}")
    # All but what fills up blocks.
    assert refused > len(data) / 24 / 2
    client.close()


def test_wherever_it_is_cut_it_is_noticed(tmp_path, fitted):
    data, before = small_archive(tmp_path, fitted)
    rng = np.random.default_rng(1)
    client = QdrantClient(":memory:")
    with tarfile.open(tmp_path / "a") as opened:
        *_, end = opened.getmembers()
    whole = end.offset_data + end.size
    cuts = {0, 1, 511, 512, 513, whole - 1, whole, len(data) - 1}
    cuts |= {int(cut) for cut in rng.integers(0, len(data), 60)}
    cuts |= {int(cut) for cut in rng.integers(end.offset - 600, whole, 20)}
    for number, cut in enumerate(sorted(cuts)):
        error, written = import_of(data[:cut], tmp_path / "b", client, f"c{number}")
        if cut < whole:
            assert isinstance(error, TokensCorruptError), (cut, error)
            assert written is None or written == {} or same_but_rounded(written, before)
        else:
            assert error is None
            assert same_but_rounded(written, before)
    client.close()


def test_runs_of_other_bytes_are_noticed(tmp_path, fitted):
    data, before = small_archive(tmp_path, fitted)
    rng = np.random.default_rng(2)
    client = QdrantClient(":memory:")
    for number in range(60):
        spoilt = bytearray(data)
        start, length = int(rng.integers(len(data))), int(rng.integers(1, 2000))
        what = [rng.bytes(length), bytes(length), bytes(data[:length])][number % 3]
        spoilt[start : start + length] = what[: len(data) - start]
        if spoilt == data:
            continue
        error, written = import_of(bytes(spoilt), tmp_path / "b", client, f"c{number}")
        assert error is None or isinstance(error, StoreError)
        assert written is None or written == {} or same_but_rounded(written, before)
        assert error is not None or written
    client.close()


def rewritten(path, change):
    """Write an archive anew; `change` takes a list of names and contents and returns another."""
    with tarfile.open(path) as archive:
        members = [(m.name, archive.extractfile(m).read()) for m in archive.getmembers()]
    with tarfile.open(path, "w") as archive:
        for name, content in change(members):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def named(stem, content, suffix):
    return f"{stem}-{xxhash.xxh3_64_hexdigest(content)}{suffix}", content


def with_head(members, **more):
    head = {**json.loads(members[0][1]), **more}
    return [named("archive", json.dumps(head).encode(), ".json"), *members[1:]]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda m: [*m[:2], *m[3:]], TokensCorruptError, "lacks parts"),
        (lambda m: [*m[:3], m[2], *m[3:]], TokensCorruptError, "lacks parts"),
        (lambda m: m[:-1], TokensCorruptError, "cut short"),
        (lambda m: m[1:], StoreError, "format None"),
        (lambda m: [], TokensCorruptError, "archive"),
        (lambda m: with_head(m, format=2), StoreError, "format 2"),
        (lambda m: with_head(m, magic="another"), StoreError, "'another'"),
        (lambda m: with_head(m, contract={}), StoreError, "contract"),
        (lambda m: with_head(m, contract=7), StoreError, "archive"),
        (
            lambda m: [named("archive", b"[1]", ".json"), *m[1:]],
            StoreError,
            "archive",
        ),
        (
            lambda m: [*m[:2], named("part00000", b'{"a": 1}', ".safetensors"), m[3]],
            TokensCorruptError,
            "damaged",
        ),
        (
            lambda m: [*m[:3], named("end", b"{", ".json")],
            TokensCorruptError,
            "damaged",
        ),
        (lambda m: [m[0], m[2], m[1], m[3]], TokensCorruptError, "."),
    ],
)
def test_archives_put_together_wrongly(tmp_path, fitted, memory, change, kind, words):
    small_archive(tmp_path, fitted)
    rewritten(tmp_path / "a", change)
    with pytest.raises(kind, match=words):
        bring(tmp_path / "a", memory)


def test_a_codebook_that_is_not_its_own(tmp_path, fitted, memory):
    small_archive(tmp_path, fitted)
    other = fitted("pq16", seed=1).parameters()
    rewritten(tmp_path / "a", lambda m: [m[0], named("codec", other, ".safetensors"), *m[2:]])
    with pytest.raises(TokensCorruptError, match="not its contract's"):
        bring(tmp_path / "a", memory)
    with pytest.raises(CollectionNotFoundError):
        memory.open()


def test_what_is_no_archive(tmp_path, memory):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("no archive" * 100)
    (tmp_path / "zeros").write_bytes(bytes(20_000))
    for name in ("empty", "text", "zeros"):
        with pytest.raises(TokensCorruptError, match="archive"):
            bring(tmp_path / name, memory)
    for name in ("nowhere", "."):
        with pytest.raises(ConfigError, match="there is no archive"):
            bring(tmp_path / name, memory)
    with pytest.raises(CollectionNotFoundError):
        memory.open()


@pytest.mark.parametrize(
    ("contract", "codec", "field"),
    [
        (replace(CONTRACT, adapter_hash="a9"), "float16", "adapter_hash"),
        (CONTRACT, "int8", "codec"),
        (replace(CONTRACT, embedding_dim=9), "float16", "embedding_dim"),
    ],
)
def test_into_a_collection_of_another_model_or_codec(
    archive, tmp_path, memory, contract, codec, field
):
    for place in (make_place("edge-file", tmp_path / "to"), memory):
        make(place, contract=contract, codec=codec).close()
        with pytest.raises(ContractMismatchError) as caught:
            bring(archive, place)
        assert field in caught.value.expected
        with place.open() as collection:  # its lock was released
            assert len(collection) == 0


def test_a_target_whose_codec_changes_meanwhile(tmp_path, memory, fitted, monkeypatch, small_pages):
    """Codes of one codebook must not be written as another's, whose size is the same."""
    first, second = fitted("pq16"), fitted("pq16", seed=1)
    with make(make_place("edge-file", tmp_path), 20, codec=first) as source:
        export_collection(source, tmp_path / "a")
    real = ImageCollection.add_codes

    def add_codes(self, *args):
        added = real(self, *args)
        self.set_codec(second)
        return added

    monkeypatch.setattr(ImageCollection, "add_codes", add_codes)
    with pytest.raises(StoreError, match="was changed to"):
        bring(tmp_path / "a", memory)
    with memory.open() as collection:
        ids = [*held(collection)]
        assert len(ids) == 8
        expected = first.decode(first.encode(encoding_of(ids).tokens))
        assert collection.encodings(ids).tokens.tobytes() == expected.tobytes()


def test_an_export_leaves_nothing_that_blocks_the_next(tmp_path, monkeypatch):
    """The folder cannot be synced, and what was written cannot be deleted."""
    path = tmp_path / "a.tar"

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with make(make_place("memory-payload", tmp_path), 5) as collection:
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync_folder", refuse)
            patch.setattr(Path, "unlink", refuse)
            with pytest.raises(StoreError, match=re.escape(f"cannot write {path}: ")):
                export_collection(collection, path)
        stray = tmp_path / ".a.tar.0123abcd.new"
        stray.write_bytes(b"of a run that was killed early")
        assert export_collection(collection, path).copied == 5
        assert sorted(each.name for each in tmp_path.iterdir() if each.is_file()) == ["a.tar"]
        with pytest.raises(ConfigError, match=r"whole archive .*; delete it to write it again"):
            export_collection(collection, path)
        os.truncate(path, 2000)
        with pytest.raises(ConfigError, match=r"something at .*; choose another name"):
            export_collection(collection, path)
