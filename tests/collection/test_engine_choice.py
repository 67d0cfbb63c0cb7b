"""Which engine keeps a collection in a folder: asked for when it is made, found out afterwards."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from collection_places import CONTRACT, encoding_of, fill, ids_of
from command_line import run
from qdrant_client import QdrantClient

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.demo.run import draw_images
from edje_qdrant.errors import (
    CollectionLockedError,
    CollectionNotFoundError,
    ConfigError,
    MissingExtraError,
    StoreError,
)
from edje_qdrant.index import Engine
from edje_qdrant.ingest.ingest import ingest_images
from edje_qdrant.maintenance import (
    compact,
    copy_collection,
    export_collection,
    fit_codec,
    import_collection,
    transcode,
    verify,
)
from edje_qdrant.maintenance.repair import repair
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.tokens.file_store import FileTokenStore

ENGINES = get_args(Engine)
FAISS: list[Any] = [engine for engine in ENGINES if engine != "edge"]


def everything(collection: ImageCollection) -> dict[str, Any]:
    ids = sorted(point.id for page in collection.index.scroll(payload=False) for point in page)
    encoding = collection.encodings(ids)
    payloads = collection.index.retrieve(ids, tokens=False)
    return {
        image_id: (
            encoding.embeddings[row].tobytes(),
            encoding.tokens[row].tobytes(),
            payloads[image_id]["path"],
        )
        for row, image_id in enumerate(ids)
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tokens", ["file", "payload"])
def test_open_finds_out_by_itself(tmp_path: Path, engine: Engine, tokens: Any) -> None:
    created = ImageCollection.create(tmp_path, "images", CONTRACT, engine=engine, tokens=tokens)
    encoding = fill(created, ids_of(20))
    created.optimize()
    with pytest.raises(CollectionLockedError):
        ImageCollection.open(tmp_path, "images")
    with pytest.raises(StoreError, match="already"):
        ImageCollection.create(tmp_path, "images", CONTRACT)
    created.close()
    with ImageCollection.open(tmp_path, "images") as opened:
        assert opened.index.engine == engine
        found = opened.nearest(encoding.embeddings[:5], 3)
        assert [hits[0].image_id for hits in found] == ids_of(5)
        np.testing.assert_array_equal(
            opened.tokens([hits[0] for hits in found]), encoding.tokens[:5]
        )
    with pytest.raises(CollectionNotFoundError, match="it holds images"):
        ImageCollection.open(tmp_path, "others")


def test_edge_is_what_a_folder_has_by_default(tmp_path: Path) -> None:
    with ImageCollection.create(tmp_path, "images", CONTRACT) as collection:
        assert collection.index.engine == "edge"


def test_engines_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'faiss-pq'; give one of edge, faiss$"):
        ImageCollection.create(tmp_path, "images", CONTRACT, engine="faiss-pq")  # type: ignore
    with pytest.raises(ConfigError, match="'faiss-ivf', which this version no longer has; use"):
        ImageCollection.create(tmp_path, "images", CONTRACT, engine="faiss-ivf")  # type: ignore
    client = QdrantClient(":memory:")
    for location in (client, ":memory:", "http://localhost:1"):
        with pytest.raises(ConfigError, match="a Qdrant server is its own engine; leave it out"):
            ImageCollection.create(location, "images", CONTRACT, engine="faiss")
    client.close()
    assert [*tmp_path.iterdir()] == []


def test_without_faiss_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[faiss\]"):
        ImageCollection.create(tmp_path / "photos", "images", CONTRACT, engine="faiss")
    assert [*(tmp_path / "photos").iterdir()] == []


@pytest.mark.parametrize("engine", FAISS)
def test_copies_and_archives_there_and_back(tmp_path: Path, engine: Engine) -> None:
    with ImageCollection.create(tmp_path / "a", "images", CONTRACT) as source:
        fill(source, ids_of(40))
        there = everything(source)
        target = ImageCollection.create(tmp_path / "b", "images", CONTRACT, engine=engine)
        assert copy_collection(source, target).copied == 40
    with target:
        assert everything(target) == there
        export_collection(target, tmp_path / "archive")
        back = ImageCollection.create(tmp_path / "c", "images", CONTRACT)
        copy_collection(target, back)
    with back:
        assert everything(back) == there
    for expected in (40, 0):  # the second goes on where the first ended
        report = import_collection(tmp_path / "archive", tmp_path / "d", "images", engine=engine)
        assert report.copied == expected
    with ImageCollection.open(tmp_path / "d", "images") as opened:
        assert opened.index.engine == engine
        assert everything(opened) == there
    import_collection(tmp_path / "archive", tmp_path / "e", "images")
    with ImageCollection.open(tmp_path / "e", "images") as opened:
        assert opened.index.engine == "edge"


@pytest.mark.parametrize("tokens", ["file", "payload"])
def test_compact_transcode_and_verify(tmp_path: Path, tokens: Any) -> None:
    with ImageCollection.create(
        tmp_path, "images", CONTRACT, engine="faiss", tokens=tokens
    ) as collection:
        fill(collection, ids_of(100))
        collection.delete(ids_of(20))
        collection.delete_matching({"path": f"{ids_of(1, 99)[0]}.png"})
        before = everything(collection)
        assert len(before) == 79
        report = compact(collection)
        assert (report.bytes_after < report.bytes_before) == (tokens == "file")
        assert everything(collection) == before
        assert transcode(collection, fit_codec(collection, "pq16")).moved == 79
        assert verify(collection).clean
        collection.update_payload({ids_of(1, 30)[0]: {"album": "2024"}})
    with ImageCollection.open(tmp_path, "images") as collection:
        assert collection.count() == 79
        assert collection.count({"album": "2024"}) == 1
        assert verify(collection).clean
        wanted = encoding_of(ids_of(79, 20)).embeddings
        found = collection.nearest(wanted, 1)
        assert [hits[0].image_id for hits in found] == ids_of(79, 20)


def test_pictures_in_answers_out_and_lost_tokens_mended(
    tmp_path: Path, tiny_model: Any, write_images: Any
) -> None:
    write_images(tmp_path / "pictures", 12)
    answers = []
    for engine in ("edge", "faiss"):
        collection = ImageCollection.create(
            tmp_path / engine, "images", tiny_model.contract(), engine=engine
        )
        with collection:
            assert ingest_images(tmp_path / "pictures", collection, tiny_model).added == 12
            assert ingest_images(tmp_path / "pictures", collection, tiny_model).skipped == 12
            result = TwoStageRetriever(collection, tiny_model).search("a red cat", top_k=12)
            answers.append([(hit.image_id, hit.score, hit.payload) for hit in result])
    assert answers[0] == answers[1]

    with ImageCollection.open(tmp_path / "faiss", "images") as collection:
        assert isinstance(collection.store, FileTokenStore)
        (side,) = collection.store.folder.glob("tokens-*.bin")
    side.unlink()
    with ImageCollection.open(tmp_path / "faiss", "images", for_repair=True) as collection:
        assert len(verify(collection).findings) == 12
        assert len(repair(collection, tiny_model).encoded) == 12
        assert verify(collection).clean
        result = TwoStageRetriever(collection, tiny_model).search("a red cat", top_k=12)
        assert [(hit.image_id, hit.score, hit.payload) for hit in result] == answers[0]


def test_the_pages_python_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "first-stages.md"
    (snippet,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    draw_images(tmp_path / "pictures", 20, 5, progress=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, str(page), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]


def test_commands(tmp_path: Path, tiny_folder: Path, write_images: Any) -> None:
    write_images(tmp_path / "pictures", 4)
    index = str(tmp_path / "index")
    ingest = ["ingest", str(tmp_path / "pictures"), "--index", index, "--model", str(tiny_folder)]

    refused = run(*ingest, "--engine", "lucene")
    assert refused.exit_code == 2
    assert "give one of edge, faiss" in refused.stderr
    for _ in range(2):
        done = run(*ingest, "--engine", "faiss", "--json")
        assert done.exit_code == 0, done.stderr
    about = run("info", "--index", index, "--json")
    assert json.loads(about.stdout.splitlines()[-1])["engine"] == "faiss"
    assert run(*ingest).exit_code == 0  # the engine need not be named again
    refused = run(*ingest, "--engine", "edge")
    assert refused.exit_code == 2
    assert "is kept by faiss, not edge" in refused.stderr
    copied = run("copy", index, str(tmp_path / "copy"), "--engine", "edge")
    assert copied.exit_code == 0, copied.stderr
    about = run("info", "--index", str(tmp_path / "copy"), "--json")
    data = json.loads(about.stdout.splitlines()[-1])
    assert (data["engine"], data["points"]) == ("edge", 4)
    refused = run("copy", index, "http://localhost:1", "--engine", "faiss")
    assert refused.exit_code == 2
    assert "is its own engine" in refused.stderr
