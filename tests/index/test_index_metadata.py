"""Metadata replaced in one step, alike on every engine, and safe from damage."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from index_engines import FAST, Engine, make_points, unit_vectors
from index_stand_in import StandIn
from qdrant_client import QdrantClient

from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.index import create_embedded, create_on_server, open_embedded, open_on_server
from edje_qdrant.index.folder import read_metadata, write_metadata

OLD = {"encoder": "tiny", "nested": {"gone": 1, "kept": [1, {"x": 2}]}, "stale": True}
NEW = {"nested": {"kept": [], "none": None, "é": 0.1}, "nothing": None, "new": -1}


def test_metadata_is_replaced_whole(engine: Engine) -> None:
    index = engine.create(metadata=OLD)
    index.upsert(make_points(unit_vectors(3)))
    index.set_metadata(NEW)
    assert index.metadata == NEW
    assert index.reload_metadata() == NEW
    index.close()
    index = engine.open()
    assert index.metadata == NEW
    assert index.count() == 3
    assert index.nearest(unit_vectors(1), 1)[0][0].payload["path"] == "0.png"
    index.set_metadata({})
    assert index.metadata == {}
    index.close()
    assert engine.open().metadata == {}


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": b"bytes"}])
def test_metadata_that_is_no_json_changes_nothing(engine: Engine, bad: dict[str, Any]) -> None:
    index = engine.create(metadata=OLD)
    with pytest.raises(ConfigError, match="metadata"):
        index.set_metadata(bad)
    assert index.metadata == OLD
    assert index.reload_metadata() == OLD


def test_metadata_is_a_copy(engine: Engine) -> None:
    index = engine.create()
    given = {"list": [1]}
    index.set_metadata(given)
    given["list"].append(2)
    assert index.metadata == {"list": [1]}
    assert index.reload_metadata() == {"list": [1]}


@pytest.fixture(params=["memory", "http"])
def location(
    request: pytest.FixtureRequest, memory: QdrantClient, stand_in: StandIn
) -> str | QdrantClient:
    return memory if request.param == "memory" else stand_in.url


def test_another_index_sees_it_when_it_looks_again(location: str | QdrantClient) -> None:
    first = create_on_server(location, "images", 8, OLD, FAST)
    second = open_on_server(location, "images", FAST)
    first.set_metadata(NEW)
    assert second.metadata == OLD
    assert second.reload_metadata() == NEW
    assert second.metadata == NEW
    first.close()
    second.close()


def test_what_others_keep_with_the_collection_stays(location: str | QdrantClient) -> None:
    index = create_on_server(location, "images", 8, OLD, FAST)
    backend: Any = index._backend
    client = location if isinstance(location, QdrantClient) else backend._client
    client.update_collection("images", metadata={"theirs": {"a": 1}})
    index.set_metadata(NEW)
    assert client.get_collection("images").config.metadata == {
        "edje_qdrant": NEW,
        "theirs": {"a": 1},
    }
    index.close()


def test_a_server_that_mixes_old_and_new_is_found_out(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = create_on_server(stand_in.url, "images", 8, OLD, FAST)
    update = stand_in.client.update_collection

    def merge_deep(name: str, *, metadata: dict[str, Any]) -> bool:
        return update(name, metadata={"edje_qdrant": {**OLD, **metadata["edje_qdrant"]}})

    monkeypatch.setattr(stand_in.client, "update_collection", merge_deep)
    with pytest.raises(StoreError, match="other metadata than was just written"):
        index.set_metadata(NEW)
    assert index.metadata == {**OLD, **NEW}
    index.close()


def test_a_node_that_lags_behind_is_asked_again(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = create_on_server(stand_in.url, "images", 8, OLD, FAST)
    stale = [stand_in.client.get_collection("images")] * 2
    look = stand_in.client.get_collection
    monkeypatch.setattr(
        stand_in.client, "get_collection", lambda name: stale.pop() if stale else look(name)
    )
    index.set_metadata(NEW)
    assert stale == []
    assert index.metadata == NEW
    index.close()


def test_an_embedded_index_reads_its_file_again(tmp_path: Path) -> None:
    index = create_embedded(tmp_path, 8, OLD)
    write_metadata(tmp_path, 8, NEW)
    assert index.metadata == OLD
    assert index.reload_metadata() == NEW
    (tmp_path / "index.json").unlink()
    with pytest.raises(StoreError, match="missing or damaged"):
        index.reload_metadata()
    assert index.metadata == NEW
    index.close()


def test_a_full_disk_leaves_the_old_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = create_embedded(tmp_path, 8, OLD)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        with pytest.raises(StoreError, match="no space left"):
            index.set_metadata(NEW)
    assert index.metadata == OLD
    assert index.reload_metadata() == OLD
    index.close()


def test_metadata_is_whole_after_kill(tmp_path: Path) -> None:
    code = """
import sys
from edje_qdrant.index import create_embedded
index = create_embedded(sys.argv[1], 8, {"turn": 0, "twice": [0, 0]})
for turn in range(1, 1_000_000):
    index.set_metadata({"turn": turn, "twice": [turn, turn], "long": "x" * (turn % 1000)})
    print(turn, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(30):
            acknowledged = int(process.stdout.readline())
        process.kill()
    index = open_embedded(tmp_path)
    turn = index.metadata["turn"]
    assert turn >= acknowledged
    assert index.metadata == {"turn": turn, "twice": [turn, turn], "long": "x" * (turn % 1000)}
    index.close()


def damaged(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        for bit in (0, place % 8, 7):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        yield data[:place]
        yield data[:place] + data[place + 1 :]
        yield data[:place] + b" " + data[place:]
        if place:
            yield (
                data[: place - 1]
                + data[place : place + 1]
                + data[place - 1 : place]
                + data[place + 1 :]
            )
    for more in (b" ", b"\n", b"\0", b"}"):
        yield data + more


def test_any_changed_byte_of_the_metadata_is_found_out(tmp_path: Path) -> None:
    metadata = {"a": [1, 1.5, -0.0, 1e300], "é": "猫", "on": True, "none": None, "z": {"": {}}}
    write_metadata(tmp_path, 8, metadata)
    assert read_metadata(tmp_path) == (8, metadata)
    path = tmp_path / "index.json"
    written = path.read_bytes()
    tried = 0
    for data in damaged(written):
        if data == written:  # two equal bytes changed places
            continue
        path.write_bytes(data)
        with pytest.raises(StoreError, match=r"index\.json (is missing or damaged|has format)"):
            read_metadata(tmp_path)
        tried += 1
    assert tried > 1000
    path.write_bytes(written)
    assert read_metadata(tmp_path) == (8, metadata)


def test_metadata_written_otherwise_is_not_taken(tmp_path: Path) -> None:
    create_embedded(tmp_path, 8, OLD).close()
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace("tiny", "huge"))
    for _ in range(2):
        with pytest.raises(StoreError, match="checksum does not fit"):
            open_embedded(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(StoreError, match="missing or damaged"):
        open_embedded(tmp_path)
