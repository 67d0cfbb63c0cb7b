"""Text fields of whole collections: kept by every writer, added later, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_places import CONTRACT, KINDS, encoding_of, ids_of, make_place
from index_stand_in import StandIn
from served import SERVERS, served

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.index import ByWords, TextFields
from edje_qdrant.maintenance import (
    add_text_fields,
    compact,
    copy_collection,
    drop_text_fields,
    export_collection,
    import_collection,
    transcode,
    verify,
)
from edje_qdrant.maintenance.repair import repair

FIELDS = ["caption", "path"]
COUNT = 24


def payload_of(number: int) -> dict[str, Any]:
    caption = {"caption": f"a tram in Lisbon {number}"} if number % 6 == 5 else {}
    return {"path": f"trip/IMG_{number}.jpg", **caption}


def filled(collection: ImageCollection, count: int = COUNT) -> ImageCollection:
    ids = ids_of(count)
    collection.add(ids, encoding_of(ids), [payload_of(n) for n in range(count)])
    return collection


def made(
    location: Any, *, fields: list[str] | None = FIELDS, name: str = "images", **more: Any
) -> ImageCollection:
    return ImageCollection.create(location, name, CONTRACT, text_fields=fields, **more)


def by_words(collection: ImageCollection, text: str) -> set[int]:
    """Return the numbers of the images that have words of a text."""
    asked = collection.index.require_words().query(text)
    numbers = {image_id: number for number, image_id in enumerate(ids_of(100))}
    stored = collection.index.words([*collection.ids()])
    return {numbers[i] for i, words in stored.items() if {*asked.indices} & {*words.indices}}


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_found_in_every_kind_of_place(kind: str, tmp_path: Path) -> None:
    place = make_place(kind, tmp_path)
    with made(place.location, tokens=place.tokens, tokens_folder=place.tokens_folder) as own:
        filled(own)
        assert own.text_fields == ("caption", "path")
        assert own.text_language == "english"
        (hits,) = own.nearest(encoding_of(ids_of(1)).embeddings, 6, words=ByWords(["Lisbon"], 3.0))
        assert {hit.payload["path"] for hit in hits} & {"trip/IMG_5.jpg", "trip/IMG_11.jpg"}
        assert verify(own).clean
    with place.open() as again:
        assert again.text_fields == ("caption", "path")
        assert by_words(again, "lisbon") == {5, 11, 17, 23}
    if not kind.startswith("edge"):
        place.location.close()


def test_every_writer_keeps_the_words(tmp_path: Path) -> None:
    with filled(made(tmp_path / "a")) as own:
        own.update_payload({ids_of(3)[2]: {"caption": "harbour"}})
        own.add_new(ids_of(1, 24), encoding_of(ids_of(1, 24)), [{"caption": "harbour at night"}])
        own.set_codec("int8")
        assert own.text_fields == ("caption", "path")
        transcode(own, "int8")
        own.add_codec_history(["pq16"])
        compact(own)
        assert by_words(own, "harbour") == {2, 24}
        own.add_codes(
            ids_of(1, 25), encoding_of(ids_of(1, 25)).embeddings,
            np.zeros((1, own.codec.nbytes), np.uint8), [{"caption": "harbour"}],
        )  # fmt: skip
        own.delete(ids_of(1, 5))
        assert by_words(own, "harbour") == {2, 24, 25}
        assert verify(own).clean
        export_collection(own, tmp_path / "a.tar")
        with made(tmp_path / "b", fields=None, codec="int8") as copy:
            copy_collection(own, copy)
            assert copy.text_fields == own.text_fields
            assert verify(copy).clean
            copy_collection(own, copy)
    import_collection(tmp_path / "a.tar", tmp_path / "c", "images")
    with ImageCollection.open(tmp_path / "c", "images") as imported:
        assert imported.text_fields == ("caption", "path")
        assert by_words(imported, "harbour") == {2, 24, 25}
        assert verify(imported).clean


def test_an_archive_goes_to_faiss_without_words(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    with filled(made(tmp_path / "a")) as own:
        export_collection(own, tmp_path / "a.tar")
    import_collection(tmp_path / "a.tar", tmp_path / "b", "images", engine="faiss")
    with ImageCollection.open(tmp_path / "b", "images") as imported:
        assert imported.text_fields == ()
        with pytest.raises(ConfigError, match="faiss keeps no words"):
            add_text_fields(imported, FIELDS)
    with pytest.raises(ConfigError, match="faiss keeps no words"):
        made(tmp_path / "c", engine="faiss")


def test_a_collection_without_text_fields_is_as_before(tmp_path: Path) -> None:
    with filled(made(tmp_path / "a", fields=None)) as own:
        assert "words" not in own.index.metadata
        assert own.text_fields == ()
        with pytest.raises(ConfigError, match="no text fields"):
            own.nearest(encoding_of(ids_of(1)).embeddings, 5, words=ByWords(["Lisbon"]))


def test_open_or_create_compares_text_fields(tmp_path: Path) -> None:
    def opened(**more: Any) -> ImageCollection:
        return ImageCollection.open_or_create(tmp_path, "images", CONTRACT, **more)

    opened(text_fields=["caption", "path"], text_language="german").close()
    opened().close()
    opened(text_fields=["path", "caption"]).close()
    for fields, language in ((["path"], None), (["path", "caption"], "english")):
        with pytest.raises(ConfigError, match=r"german, not path.*text-fields"):
            opened(text_fields=fields, text_language=language)
    ImageCollection.create(tmp_path, "plain", CONTRACT).close()
    with pytest.raises(ConfigError, match="has no text fields, not path"):
        ImageCollection.open_or_create(tmp_path, "plain", CONTRACT, text_fields=["path"])
    for wrong in ("caption", [], ["_edje.tokens"]):
        with pytest.raises(ConfigError):
            ImageCollection.create(tmp_path, "wrong", CONTRACT, text_fields=wrong)
        assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_text_fields_are_added_to_a_collection(kind: str, tmp_path: Path) -> None:
    place = make_place(kind, tmp_path)
    with place.create() as own:
        filled(own)
        report = add_text_fields(own, ["caption"])
        assert (report.images, report.with_words, report.written) == (24, 4, 4)
        assert by_words(own, "Lisbon") == {5, 11, 17, 23}
        assert verify(own).clean
        # Again, and others.
        assert add_text_fields(own, ["caption"]).written == 0
        assert add_text_fields(own, ["path"], language="none").written == 24
        assert by_words(own, "Lisbon") == set()
        assert own.text_language == "none"
    with place.open() as again:
        assert by_words(again, "IMG_7") == {*range(24)}
        own.close()
    if not kind.startswith("edge"):
        place.location.close()


def test_wrong_text_fields_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with filled(made(tmp_path, fields=None)) as own:
        for wrong, words in (
            ("caption", "list"), ([], "empty"), (["captions"], "'caption'"), (None, "None"),
            (["_edje"], "reserved"), (["caption", "caption"], "twice"),
        ):  # fmt: skip
            with pytest.raises(ConfigError, match=words):
                add_text_fields(own, wrong)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(ConfigError, match="klingon"):
            add_text_fields(own, ["caption"], language="klingon")
        with pytest.raises(ConfigError, match="collection is a str"):
            add_text_fields("images", ["caption"])  # type: ignore[arg-type]  # wrong on purpose
        assert own.text_fields == ()
        add_text_fields(own, ["ocr"])  # of images that come later
        own.update_payload({ids_of(1)[0]: {"ocr": ["STOP", "sign"]}})
        assert by_words(own, "stop") == {0}


def test_other_writers_on_a_server_keep_the_words(tmp_path: Path) -> None:
    """One that was opened before the text fields were added."""
    with StandIn() as server:
        with made(server.url, fields=None) as own, ImageCollection.open(server.url, "images") as b:
            filled(own)
            add_text_fields(own, FIELDS)
            b.add(ids_of(1, 24), encoding_of(ids_of(1, 24)), [{"caption": "harbour"}])
            b.update_payload({ids_of(1)[0]: {"caption": "harbour"}})
            assert by_words(own, "harbour") == {0, 24}
            b.add_codec_history(["pq16"])
            assert own.index.reload_metadata()["words"]["filled"] is True
            assert verify(own).clean
        server.version = "1.17.0"
        with ImageCollection.create(server.url, "old", CONTRACT) as old:
            with pytest.raises(ConfigError, match=r"1\.18.*edje-qdrant copy --text-fields"):
                add_text_fields(old, ["caption"])
            assert old.text_fields == ()


def test_words_that_differ_are_found_and_repaired(tmp_path: Path) -> None:
    with filled(made(tmp_path)) as own:
        own.index.set_words({ids_of(6)[5]: own.index.require_words().query("zebra")})
        (finding,) = verify(own).findings
        assert (finding.kind, finding.image_id) == ("other words", ids_of(6)[5])
        report = repair(own)
        assert report.words == (ids_of(6)[5],)
        assert verify(own).clean
        assert by_words(own, "zebra") == set()


KILLED = """
import os, signal, sys
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.index.edge.backend import EdgeBackend
from edje_qdrant.maintenance import add_text_fields, text_fields

name, number, after, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "after", sys.argv[4]
text_fields.PAGE = 8
original, calls = getattr(EdgeBackend, name), []

def killing(self, *arguments):
    calls.append(name)
    if len(calls) == number and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, *arguments)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)

setattr(EdgeBackend, name, killing)
with ImageCollection.open(folder, "images") as own:
    if name == "set_payload":
        own.update_payload({own_id: {"caption": "harbour"} for own_id in sys.argv[5:]})
    elif name == "write":
        sys.path[:0] = sys.argv[5:]
        from test_text_fields import added
        added(own)
    else:
        add_text_fields(own, ["caption", "path"])
"""


def killed(*arguments: object) -> None:
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "number", "when"),
    [
        ("set_words", 2, "after"),
        pytest.param("create_words", 1, "before", marks=pytest.mark.slow),
        pytest.param("create_words", 1, "after", marks=pytest.mark.slow),
        pytest.param("set_metadata", 1, "before", marks=pytest.mark.slow),
        pytest.param("set_metadata", 1, "after", marks=pytest.mark.slow),
        pytest.param("set_metadata", 2, "before", marks=pytest.mark.slow),
        pytest.param("set_words", 1, "before", marks=pytest.mark.slow),
        pytest.param("set_words", 3, "before", marks=pytest.mark.slow),
        pytest.param("flush", 1, "before", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_is_continued(name: str, number: int, when: str, tmp_path: Path) -> None:
    filled(made(tmp_path, fields=None)).close()
    killed(name, number, when, tmp_path)
    with ImageCollection.open(tmp_path, "images") as own:
        with pytest.raises(ConfigError, match=r"not complete|no text fields"):
            own.index.require_words()
        own.update_payload({ids_of(1)[0]: {"caption": "harbour"}})  # in between
        add_text_fields(own, FIELDS)
        assert by_words(own, "Lisbon") == {5, 11, 17, 23}
        assert by_words(own, "harbour") == {0}
        assert by_words(own, "trip") == {*range(COUNT)}
        assert verify(own).clean


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_update_is_right_once_it_is_repeated(when: str, tmp_path: Path) -> None:
    with filled(made(tmp_path)) as own:
        add_text_fields(own, FIELDS)
    ids = ids_of(3)
    killed("set_payload", 1, when, tmp_path, *ids)
    with ImageCollection.open(tmp_path, "images") as own:
        for image_id in ids:  # as an ingest does: what is there already is not written again
            if own.payloads([image_id])[0].get("caption") != "harbour":
                own.update_payload({image_id: {"caption": "harbour"}})
        assert by_words(own, "harbour") == {0, 1, 2}
        assert verify(own).clean


def added(collection: ImageCollection) -> None:
    """Add images as an ingest does, in batches, and only those that are not stored."""
    for start in range(0, COUNT, 4):
        ids = ids_of(4, start)
        collection.add_new(ids, encoding_of(ids), [payload_of(start + n) for n in range(4)])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "when"), [(1, "after"), (3, "before"), (4, "after")])
def test_a_killed_ingest_is_continued(number: int, when: str, tmp_path: Path) -> None:
    made(tmp_path).close()
    folder = Path(__file__).parent
    killed(
        "write",
        number,
        when,
        tmp_path,
        folder,
        *(folder.parent / each for each in ("collection", "index")),
    )
    with ImageCollection.open(tmp_path, "images") as own:
        added(own)
        assert len(own) == COUNT
        assert by_words(own, "Lisbon") == {5, 11, 17, 23}
        assert by_words(own, "trip") == {*range(COUNT)}
        assert verify(own).clean


def test_repair_completes_an_interrupted_run(tmp_path: Path) -> None:
    with filled(made(tmp_path, fields=None)) as own:
        own.begin_words(TextFields(("caption", "path")))
        assert {f.kind for f in verify(own).findings} == {"other words"}
        repair(own)
        assert by_words(own, "Lisbon") == {5, 11, 17, 23}


@pytest.mark.parametrize("kind", KINDS)
def test_text_fields_are_dropped(kind: str, tmp_path: Path) -> None:
    place = make_place(kind, tmp_path)
    with place.create() as own:
        filled(own)
        assert drop_text_fields(own) == ()
        add_text_fields(own, FIELDS)
        before = {p.id: p.payload for page in own.index.scroll() for p in page}
        assert drop_text_fields(own) == ("caption", "path")
        assert (own.text_fields, own.text_language) == ((), "none")
        assert "words" not in own.index.metadata
        assert {p.id: p.payload for page in own.index.scroll() for p in page} == before
        with pytest.raises(ConfigError, match="no text fields"):
            own.nearest(encoding_of(ids_of(1)).embeddings, 5, words=ByWords(["Lisbon"]))
        (hits,) = own.nearest(encoding_of(ids_of(1)).embeddings, 1)
        assert [hit.image_id for hit in hits] == ids_of(1)
        own.update_payload({ids_of(1)[0]: {"caption": "harbour"}})
        own.add(ids_of(1, 24), encoding_of(ids_of(1, 24)), [{"caption": "harbour"}])
        assert verify(own).clean
    with place.open() as again:
        assert again.text_fields == ()
        assert len(again) == 25
        assert add_text_fields(again, ["caption"]).written == 6
        assert by_words(again, "harbour") == {0, 24}
        assert verify(again).clean
        own.close()
    if not kind.startswith("edge"):
        place.location.close()


def test_a_drop_that_was_interrupted_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(made(tmp_path)) as own:

        def killed() -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(own.index, "drop_words", killed)
            with pytest.raises(KeyboardInterrupt):
                drop_text_fields(own)
    with ImageCollection.open(tmp_path, "images") as again:
        assert again.text_fields == ()
        assert verify(again).clean
        assert drop_text_fields(again) == ()
        with pytest.raises(StoreError, match="words"):
            again.index.words(ids_of(1))  # there is no room for them any more
        for wrong in ({"collection": "images"}, {"collection": again, "wait": -1}):
            with pytest.raises(ConfigError):
                drop_text_fields(**wrong)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("kind", SERVERS)
def test_text_fields_are_dropped_on_a_server(kind: str) -> None:
    for server in served(kind):
        with (
            filled(made(server.client, name=server.name("images"))) as own,
            ImageCollection.open(server.client, server.name("images")) as other,
        ):
            assert by_words(own, "lisbon") == {5, 11, 17, 23}
            assert drop_text_fields(own) == ("caption", "path")
            # Another writer sees it before it writes.
            other.add(ids_of(1, 24), encoding_of(ids_of(1, 24)), [{"caption": "harbour"}])
            assert verify(own).clean
            assert add_text_fields(own, ["caption"]).written == 5
            assert by_words(own, "harbour") == {24}


def test_words_that_an_old_server_cannot_delete_stay() -> None:
    with StandIn("1.17.0") as server, filled(made(server.url)) as own:
        with pytest.raises(ConfigError, match=r"Qdrant 1\.18 or later.*the words stay"):
            drop_text_fields(own)
        assert own.text_fields == ("caption", "path")
        assert by_words(own, "lisbon") == {5, 11, 17, 23}
