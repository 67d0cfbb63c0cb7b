"""Several processes that ingest the same images into one collection of a server at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from collection_places import CONTRACT, encoding_of, ids_of, payloads_of
from index_stand_in import StandIn
from qdrant_client import models
from served import SERVERS, Server, served

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import CollectionExistsError, StoreError
from edje_qdrant.image_to_text.caption_collection import CaptionCollection
from edje_qdrant.index.qdrant import backend as backend_module
from edje_qdrant.maintenance import copy_collection, verify
from edje_qdrant.types import Point

WRITERS, COUNT = 4, 60


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from served(request.param)


class Together(ImageCollection):
    """Let all writers look the ids up before one of them writes."""

    looked: threading.Barrier

    def existing(self, ids: Any) -> set[str]:
        found = super().existing(ids)
        self.looked.wait(30)
        return found


def test_each_image_is_added_by_one_of_several_writers(server: Server) -> None:
    Together.looked = threading.Barrier(WRITERS)
    ids = ids_of(20)
    server.create("v1").close()
    opened = [Together.open(server.client, server.name("v1")) for _ in range(WRITERS)]
    with ThreadPoolExecutor(WRITERS) as threads:
        added = [*threads.map(lambda c: c.add_new(ids, encoding_of(ids), payloads_of(ids)), opened)]
    assert sorted(image_id for one in added for image_id in one) == ids
    assert verify(opened[0]).clean
    Together.looked = threading.Barrier(1)
    assert opened[0].add_new(ids, encoding_of(ids), payloads_of(ids)) == set()
    more = ids_of(22)
    assert opened[0].add_new(more, encoding_of(more), payloads_of(more)) == {*more[20:]}


def test_what_is_there_stays_as_it_is(server: Server) -> None:
    """Also if it was written between the lookup and the write."""
    (image_id,) = ids = ids_of(1)
    with server.create("v1") as first:

        class Late(ImageCollection):
            def existing(self, ids: Any) -> set[str]:
                found = super().existing(ids)
                first.add(ids, encoding_of([*ids]), [{"by": "first"}])
                return found

        with Late.open(server.client, server.name("v1")) as second:
            assert second.add_new(ids, encoding_of(ids, seed=1), [{"by": "second"}]) == set()
        assert server.stored("v1")[image_id]["by"] == "first"


def test_a_copy_leaves_what_another_process_added_since(server: Server) -> None:
    (image_id, other) = ids = ids_of(2)
    with server.create("v1") as source, server.create("v2") as target:
        source.add(ids, encoding_of(ids), [{"by": "copy"}] * 2)

        class Late(ImageCollection):
            def existing(self, ids: Any) -> set[str]:
                found = super().existing(ids)
                target.add([image_id], encoding_of([image_id]), [{"by": "first"}])
                return found

        with Late.open(server.client, server.name("v2")) as late:
            report = copy_collection(source, late)
        assert (report.copied, report.skipped) == (1, 1)
        stored = server.stored("v2")
        assert (stored[image_id]["by"], stored[other]["by"]) == ("first", "copy")
        assert verify(target).clean


def test_a_caption_that_another_process_added_since_stays(server: Server) -> None:
    texts, vectors = ["a red kite", "two cats"], encoding_of(ids_of(2)).embeddings
    name = server.name("captions")
    with CaptionCollection.create(server.client, name, CONTRACT) as first:

        class Late(CaptionCollection):
            def existing(self, ids: Any) -> set[str]:
                found = super().existing(ids)
                first.add(["A red kite!"], vectors[:1], [{"by": "first"}])
                return found

        with Late.open(server.client, name) as second:
            ids = second.add(texts, vectors, [{"by": "second"}] * 2)
        stored = server.stored("captions")
        assert {key: stored[key]["by"] for key in ids} == {ids[0]: "first", ids[1]: "second"}
        assert stored[ids[0]]["text"] == "A red kite!"


def test_an_image_that_another_process_deleted_since_stays_deleted(server: Server) -> None:
    ids = ids_of(3)
    with server.create("v1") as collection:
        collection.add(ids, encoding_of(ids), payloads_of(ids))
        put = collection.store.put

        def put_late(*args: Any) -> Any:
            server.client.delete(server.name("v1"), [ids[1]])
            return put(*args)

        collection._store.put = put_late  # type: ignore[method-assign]
        new = encoding_of(ids, seed=1)
        assert collection.replace_encodings(ids, new) == {ids[0], ids[2]}
        assert [*server.stored("v1")] == [ids[0], ids[2]]
        left = collection.encodings([ids[0], ids[2]])
        assert left.tokens.tobytes() == new.tokens[[0, 2]].tobytes()
        payloads = collection.payloads([ids[0], ids[2]])
        assert payloads == [payloads_of(ids)[row] for row in (0, 2)]
        assert verify(collection).clean


def test_words_of_images_that_another_process_deleted_since(server: Server) -> None:
    ids = ids_of(4)
    with server.create("v1", text_fields=["caption"]) as collection:
        collection.add(ids, encoding_of(ids), [{"caption": "a red kite"}] * 4)
        backend: Any = collection.index._backend
        set_words, gone = backend.set_words, [ids[1], ids[2]]

        def set_late(words: Any) -> None:
            if gone:
                server.client.delete(server.name("v1"), [gone.pop()])
            set_words(words)

        backend.set_words = set_late
        collection.update_payload({image_id: {"caption": "two cats"} for image_id in ids})
        left = [ids[0], ids[3]]
        assert [*server.stored("v1")] == left
        assert [fields["caption"] for fields in collection.payloads(left)] == ["two cats"] * 2
        assert (
            collection.other_words({image_id: {"caption": "two cats"} for image_id in left}) == {}
        )
        gone.append(left[0])
        server.client.set_payload(server.name("v1"), {"caption": "a dog"}, left)
        collection.fill_words(left)
        assert [*server.stored("v1")] == [left[1]]
        assert collection.other_words({left[1]: {"caption": "a dog"}}) == {}
        backend.set_words = failing
        with pytest.raises(StoreError, match="the disk is full"):
            collection.update_payload({left[1]: {"caption": "two cats"}})


def failing(*_: Any) -> None:
    raise StoreError("the disk is full")


def test_older_servers_are_not_asked_for_what_they_do_not_know() -> None:
    ids = ids_of(3)
    with StandIn("1.16.3") as stand_in:
        with ImageCollection.create(stand_in.url, "images", CONTRACT) as collection:
            assert collection.add_new(ids, encoding_of(ids), payloads_of(ids)) == {*ids}
            assert collection.add_new(ids, encoding_of(ids), payloads_of(ids)) == set()
        assert stand_in.modes == [None]
        stand_in.version = "1.17.0"
        with ImageCollection.open(stand_in.url, "images") as collection:
            collection.add_new(ids_of(4), encoding_of(ids_of(4)), payloads_of(ids_of(4)))
            collection.add(ids, encoding_of(ids), payloads_of(ids))
            collection.replace_encodings(ids_of(5), encoding_of(ids_of(5)))
        added = [None, models.UpdateMode.INSERT_ONLY, None]
        assert stand_in.modes == [*added, models.UpdateMode.UPDATE_ONLY]
        stand_in.version = "1.16.3"
        with ImageCollection.open(stand_in.url, "images") as collection:
            assert collection.replace_encodings(ids_of(5), encoding_of(ids_of(5))) == {*ids_of(4)}
            collection.index.update([Point(ids_of(9)[-1], encoding_of(ids).embeddings[0], {})])
            assert collection.count() == 4
        assert stand_in.modes[4:] == [None]


def test_a_folder_needs_no_marks(tmp_path: Path) -> None:
    ids = ids_of(3)
    with ImageCollection.create(tmp_path / "index", "images", CONTRACT) as collection:
        assert collection.add_new(ids[:2], encoding_of(ids[:2]), payloads_of(ids[:2])) == {*ids[:2]}
        assert collection.add_new(ids, encoding_of(ids), payloads_of(ids)) == {ids[2]}
        payloads = collection.index.retrieve(ids).values()
        assert not any("run" in payload["_edje"] for payload in payloads)
        assert verify(collection).clean


def test_a_collection_that_a_server_is_still_creating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process asked for it first, and it is not there yet."""
    with StandIn() as stand_in:
        ImageCollection.create(stand_in.url, "images", CONTRACT).close()
        monkeypatch.setattr(backend_module, "require_absent", lambda *_: None)
        monkeypatch.setattr(backend_module, "was_made", lambda *_: False)
        monkeypatch.setattr("edje_qdrant.collection.opening.require_absent", lambda *_: None)
        with pytest.raises(CollectionExistsError):
            ImageCollection.create(stand_in.url, "images", CONTRACT)


_INGEST = """
import sys
from edje_qdrant.cli.app import main
from edje_qdrant.model import EDJEModel
EDJEModel.from_pretrained(sys.argv[sys.argv.index("--model") + 1], device="cpu")
print("ready", flush=True)
sys.stdin.readline()
main()
"""


@pytest.mark.slow
def test_four_ingests_of_a_new_collection_at_once(
    tmp_path: Path, tiny_folder: Path, write_images: Any
) -> None:
    write_images(tmp_path / "pictures", COUNT)
    with StandIn() as stand_in:
        command = [
            sys.executable, "-c", _INGEST, "ingest", str(tmp_path / "pictures"), "--url",
            stand_in.url, "--model", str(tiny_folder), "--device", "cpu", "--batch-size", "8",
            "--workers", "1", "--codec", "int8", "--json",
        ]  # fmt: skip
        pipe = subprocess.PIPE
        started = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            for _ in range(WRITERS)
        ]
        try:
            for process in started:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in started:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            said = [process.communicate(timeout=240) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        assert [process.returncode for process in started] == [0] * WRITERS, said
        reports = [json.loads(out.splitlines()[-1]) for out, _ in said]
        assert sum(report["added"] for report in reports) == COUNT
        assert all(report["added"] + report["skipped"] == COUNT for report in reports)
        with ImageCollection.open(stand_in.url, "images") as collection:
            assert len(collection) == COUNT
            assert verify(collection).clean
