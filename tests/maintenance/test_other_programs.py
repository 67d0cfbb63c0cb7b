"""Points that other programs, or another model, wrote to a server's collection."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_places import CONTRACT, encoding_of, fill, ids_of
from qdrant_client import models
from served import SERVERS, Server, served

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.images import image_file_id, open_upright
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance import (
    copy_collection,
    export_collection,
    fit_codec,
    import_collection,
    transcode,
    verify,
)
from edje_qdrant.maintenance.repair import repair

OTHERS = ("7", "8", str(uuid.UUID(int=10**6)))


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from served(request.param)


def put_others(server: Server, dim: int = 8, **payload: Any) -> None:
    """Write three points as another program would: two integers as ids, and a UUID."""
    vectors = np.random.default_rng(3).standard_normal((len(OTHERS), dim)).tolist()
    ids: list[int | str] = [int(i) if i.isdecimal() else i for i in OTHERS]
    payloads: list[dict[str, Any]] = [payload, {"_edje": {"codec": "float16"}, **payload}, payload]
    points = [
        models.PointStruct(id=i, vector=v, payload=p)
        for i, v, p in zip(ids, vectors, payloads, strict=True)
    ]
    server.client.upsert(server.name("v1"), points, wait=True)


def mixed(server: Server, **payload: Any) -> ImageCollection:
    collection = server.create("v1")
    fill(collection, ids_of(5))
    put_others(server, **payload)
    return collection


def test_verify_names_them_and_goes_on(server: Server) -> None:
    with mixed(server, path="/a.png") as collection:
        report = verify(collection, images=True)
        of_others = [f for f in report.findings if f.kind == "other program"]
        assert {f.image_id for f in of_others} == {*OTHERS}
        assert {f.path for f in of_others} == {"/a.png"}
        assert report.points == 8
        # Their files are not looked for; those of the images are not there.
        assert report.counts() == {"other program": 3, "picture gone": 5}
        assert len(collection) == 8


def test_repair_deletes_them_if_told_to(server: Server) -> None:
    with mixed(server) as collection:
        report = repair(collection)
        assert {f.image_id for f in report.left} == {*OTHERS}
        assert report.deleted == ()
        assert {*server.stored("v1")} == {*ids_of(5), *OTHERS}
        report = repair(collection, delete_others=True)
        assert {*report.deleted} == {*OTHERS}
        assert report.left == ()
        assert {*server.stored("v1")} == {*ids_of(5)}
        assert verify(collection).clean
        with pytest.raises(ConfigError, match="delete_others is 1"):
            repair(collection, delete_others=1)  # type: ignore[arg-type]  # as a user may


def test_copies_leave_them_out_by_name(server: Server, tmp_path: Path) -> None:
    with mixed(server) as collection:
        with server.create("v2") as copy:
            report = copy_collection(collection, copy)
            assert (report.copied, {*report.left_out}) == (5, {*OTHERS})
            assert {*server.stored("v2")} == {*ids_of(5)}
        report = export_collection(collection, tmp_path / "a.tar")
        assert (report.copied, {*report.left_out}) == (5, {*OTHERS})
        report = import_collection(tmp_path / "a.tar", server.client, server.name("v3"))
        assert (report.copied, report.left_out) == (5, ())
        assert {*server.stored("v3")} == {*ids_of(5)}


def test_transcoding_leaves_them_as_they_are(server: Server) -> None:
    with mixed(server) as collection:
        before = server.stored("v1")
        report = transcode(collection, "int8")
        assert (report.moved, report.unreadable, {*report.left_out}) == (5, (), {*OTHERS})
        after = server.stored("v1")
        assert all(after[other] == before[other] for other in OTHERS)
        assert collection.tokens(
            [*collection.nearest(encoding_of(ids_of(1)).embeddings, 1)[0]]
        ).any()


def test_codecs_are_fitted_without_them(server: Server) -> None:
    with server.create("v1") as collection:
        fill(collection, ids_of(70))
        put_others(server)
        assert fit_codec(collection, "pq24", sample=73).fitted


def test_pruning_leaves_them(
    server: Server, tiny_model: Any, write_images: Any, tmp_path: Path
) -> None:
    paths = write_images(tmp_path / "pictures", 3)
    contract = tiny_model.contract()
    with server.create("v1", contract) as collection:
        ingest_images(tmp_path / "pictures", collection, tiny_model, progress=False)
        put_others(server, contract.embedding_dim, path=str(tmp_path / "pictures" / "gone.png"))
        paths[0].unlink()
        report = ingest_images(
            tmp_path / "pictures", collection, tiny_model, prune=True, progress=False
        )
        assert report.pruned == 1
        assert {*server.stored("v1")} == {*map(image_file_id, map(str, paths[1:])), *OTHERS}


def test_repair_encodes_what_another_model_wrote(
    server: Server, tiny_model: Any, write_images: Any, tmp_path: Path
) -> None:
    """So it does with an image whose reference another program removed."""
    paths = write_images(tmp_path, 3)
    ids = [image_file_id(str(path)) for path in paths]
    with server.create("v1", tiny_model.contract()) as collection:
        ingest_images(tmp_path, collection, tiny_model, progress=False)
        first = collection.encodings(ids)
        payloads = server.stored("v1")
        wrong = {**payloads[ids[0]]["_edje"], "contract": CONTRACT.model_key}
        server.client.set_payload(server.name("v1"), {"_edje": wrong}, [ids[0]])
        named = models.Filter(must=[models.HasIdCondition(has_id=[ids[1]])])
        server.client.delete_payload(server.name("v1"), ["_edje"], named)
        assert verify(collection).counts() == {"other model": 1, "other program": 1}
        report = repair(collection, tiny_model, delete_others=True)
        assert {*report.encoded} == {*ids[:2]}
        assert (report.left, report.deleted) == ((), ())
        assert verify(collection).clean
        again = collection.encodings(ids)
        assert np.allclose(again.embeddings, first.embeddings, atol=1e-5)
        assert open_upright(str(paths[0]), "a").size == (50, 40)
