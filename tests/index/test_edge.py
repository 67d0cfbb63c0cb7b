from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_engines import image_id, make_points, unit_vectors
from rounding import DOT, float32_slack

from edje_qdrant.errors import (
    CollectionLockedError,
    CollectionNotFoundError,
    ConfigError,
    StoreError,
)
from edje_qdrant.index import create_embedded, hnsw, open_embedded

HERE = Path(__file__).parent


def child(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start another process on `code`, which finds the helpers and `folder`."""
    start = f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom pathlib import Path\n"
    start += "from index_engines import *\nfrom edje_qdrant.errors import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", f"{start}folder = Path({str(folder)!r})\n{code}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_another_process_is_refused(tmp_path: Path) -> None:
    index = create_embedded(tmp_path / "images", 8, {})
    index.upsert(make_points(unit_vectors(5)))
    code = """
try:
    open_embedded(folder / "images")
except CollectionLockedError as error:
    print(error.location)
"""
    assert child(code, tmp_path).communicate()[0].strip() == str(tmp_path / "images")
    index.close()
    code = 'index = open_embedded(folder / "images"); print(index.count()); index.close()'
    assert child(code, tmp_path).communicate()[0].strip() == "5"


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    index = create_embedded(tmp_path, 8, {})
    with pytest.raises(CollectionLockedError):
        open_embedded(tmp_path)
    index.close()
    open_embedded(tmp_path).close()


def test_a_refused_opener_leaves_unfinished_segments_alone(tmp_path: Path) -> None:
    index = create_embedded(tmp_path, 8, {})
    unfinished = tmp_path / "shard" / "segments" / "11111111-1111-1111-1111-111111111111"
    unfinished.mkdir()
    with pytest.raises(CollectionLockedError):
        open_embedded(tmp_path)
    assert unfinished.exists()
    index.close()


def test_what_was_flushed_survives_kill(tmp_path: Path) -> None:
    code = """
index = create_embedded(folder / "images", 8, {"encoder": "tiny"})
vectors = unit_vectors(1000)
index.upsert(make_points(vectors[:300]))
index.delete([image_id(0)])
index.flush()
index.optimize()
index.upsert(make_points(vectors[300:400], 300))
index.flush()
print("flushed", flush=True)
start = 400
while True:
    index.upsert(make_points(vectors[start % 1000 :][:10], start))
    start += 10
    print(start, flush=True)
"""
    process = child(code, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "flushed\n"
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    index = open_embedded(tmp_path / "images")
    flushed = [image_id(n) for n in range(1, 400)]
    assert index.existing([image_id(0), *flushed]) == set(flushed)
    assert index.metadata == {"encoder": "tiny"}
    vectors = unit_vectors(1000)
    for number in (1, 250, 399):
        (found,) = index.nearest(vectors[number][None], 1)
        assert found[0].score == pytest.approx(1, abs=float32_slack(1, roundings=DOT))
        assert found[0].payload["_edje"] == {"record": number % 1000}
    index.upsert(make_points(unit_vectors(10, seed=1), 5000))
    index.flush()
    index.close()


def test_payloads_that_were_flushed_survive_kill(tmp_path: Path) -> None:
    code = """
index = create_embedded(folder / "images", 8, {})
index.upsert(make_points(unit_vectors(1000)))
index.flush()
index.optimize()
index.set_payload({image_id(n): {"_edje": {"record": -n}, "half": n % 2} for n in range(600)})
index.upsert(make_points(unit_vectors(1)))
index.remove_payload_keys([image_id(n) for n in range(500, 700)], ["path"])
index.delete_matching({"path": ["700.png", "999.png"]})
index.set_metadata({"turn": 1})
index.flush()
print("flushed", flush=True)
while True:
    index.set_payload({image_id(n): {"later": True} for n in range(1000)})
    index.remove_payload_keys([image_id(n) for n in range(1000)], ["later"])
    print("later", flush=True)
"""
    process = child(code, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "flushed\n"
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    index = open_embedded(tmp_path / "images")
    assert index.metadata == {"turn": 1}
    payloads = index.retrieve([image_id(n) for n in range(1000)])
    assert len(payloads) == index.count() == 998
    for number in {*range(1000)} - {700, 999}:
        expected: dict[str, object] = {"path": f"{number}.png"}
        if number in range(1, 600):
            expected |= {"_edje": {"record": -number}, "half": number % 2}
        else:
            expected["_edje"] = {"record": number, "tokens": "QUJD" * 10}
        if number in range(500, 700):
            del expected["path"]
        payload = {**payloads[image_id(number)]}
        payload.pop("later", None)
        assert payload == expected
    (found,) = index.nearest(unit_vectors(1000)[250:251], 1)
    assert found[0].image_id == image_id(250)
    index.set_payload({image_id(1): {"after": 1}})
    assert index.count({"after": 1}) == 1
    index.close()


def test_kill_before_the_first_flush(tmp_path: Path) -> None:
    code = """
index = create_embedded(folder, 8, {"encoder": "tiny"})
index.upsert(make_points(unit_vectors(50)))
print("written", flush=True)
sys.stdin.read()
"""
    process = child(code, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    index = open_embedded(tmp_path)
    assert index.metadata == {"encoder": "tiny"}
    assert index.count() in range(51)
    index.upsert(make_points(unit_vectors(50)))
    assert index.count() == 50
    index.close()


@pytest.mark.parametrize(
    "broken_call", [(os, "replace"), (Path, "rename")], ids=["metadata", "shard"]
)
def test_a_create_cut_short_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_call: tuple[object, str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(*broken_call, full)
        with pytest.raises(StoreError, match="no space left"):
            create_embedded(tmp_path / "images", 8, {"try": 1})
    with pytest.raises(CollectionNotFoundError):
        open_embedded(tmp_path / "images")
    index = create_embedded(tmp_path / "images", 16, {"try": 2})
    index.upsert(make_points(unit_vectors(2, 16)))
    index.close()
    index = open_embedded(tmp_path / "images")
    assert index.metadata == {"try": 2}
    assert index.count() == 2
    index.close()


def test_missing_folder(tmp_path: Path) -> None:
    create_embedded(tmp_path / "cats", 8, {}).close()
    (tmp_path / "notes").mkdir()
    with pytest.raises(CollectionNotFoundError) as caught:
        open_embedded(tmp_path / "dogs")
    assert (caught.value.location, caught.value.name) == (str(tmp_path), "dogs")
    assert caught.value.known == ("cats",)
    assert not (tmp_path / "dogs").exists()
    with pytest.raises(CollectionNotFoundError):
        open_embedded(tmp_path / "notes")
    with pytest.raises(CollectionNotFoundError):
        open_embedded(tmp_path / "nowhere" / "at" / "all")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="a file of that name is in the way"):
        create_embedded(tmp_path / "file", 8, {})
    with pytest.raises(StoreError, match="a part of the path is a file, not a folder"):
        create_embedded(tmp_path / "file" / "images", 8, {})


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def edit_format(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def add_a_space(path: Path) -> None:
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("pattern", "damage", "words"),
    [
        ("index.json", halve, "index.json is missing or damaged"),
        ("index.json", Path.unlink, "index.json is missing or damaged"),
        ("index.json", lambda path: path.write_text("[]"), "index.json is missing or damaged"),
        ("index.json", edit_format, "format 99"),
        ("index.json", add_a_space, "index.json is missing or damaged"),
        ("shard/edge_config.json", halve, "files are damaged"),
        ("shard/segments/*/segment.json", halve, "files are damaged"),
        # The engine panics on this one, which is no Exception to Python.
        ("shard/segments/*/vector_storage/vectors/status.dat", halve, "files are damaged"),
    ],
)
def test_damaged_files(
    tmp_path: Path, pattern: str, damage: Callable[[Path], object], words: str
) -> None:
    index = create_embedded(tmp_path, 8, {})
    index.upsert(make_points(unit_vectors(20)))
    index.close()
    (path,) = tmp_path.glob(pattern)
    damage(path)
    for _ in range(2):  # the first failure must not keep the folder locked
        with pytest.raises(StoreError, match=words) as caught:
            open_embedded(tmp_path)
        assert not isinstance(caught.value, CollectionLockedError)


def test_bad_arguments_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        create_embedded(tmp_path / "images", -1, {})
    assert not (tmp_path / "images").exists()


def test_the_folder_may_move(tmp_path: Path) -> None:
    index = create_embedded(tmp_path / "here", 8, {})
    index.upsert(make_points(unit_vectors(20)))
    index.close()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = open_embedded(tmp_path / "there")
    assert moved.nearest(unit_vectors(1), 1)[0][0].image_id == image_id(0)
    moved.close()


def test_graph_finds_nearly_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hnsw, "SCAN_KILOBYTES", 500)
    vectors = unit_vectors(4000, 128)
    index = create_embedded(tmp_path, 128, {})
    index.upsert(make_points(vectors[:3000]))
    index.flush()
    assert not list(tmp_path.glob("shard/segments/*/vector_index/graph.bin"))
    index.optimize()
    assert list(tmp_path.glob("shard/segments/*/vector_index/graph.bin"))
    index.upsert(make_points(vectors[3000:], 3000))  # found beside the graph
    # Captions lie apart from images: queries off to one side are what the graph must bear.
    queries = unit_vectors(40, 128, seed=1) + 0.3
    for _ in range(2):
        truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
        hits = [
            len({c.image_id for c in found} & {image_id(int(n)) for n in best})
            for found, best in zip(index.nearest(queries, 10), truth, strict=True)
        ]
        assert np.mean(hits) >= 9.8
        index.close()
        index = open_embedded(tmp_path)
        index.optimize()
    index.close()


def test_closed_by_another_thread_in_mid_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = create_embedded(tmp_path, 8, {})
    index.upsert(make_points(unit_vectors(20)))

    def close(limit: int) -> int:
        index.close()
        return limit

    monkeypatch.setattr(hnsw, "search_width", close)
    with pytest.raises(StoreError, match="closed; open it again"):
        index.nearest(unit_vectors(1), 5)


def test_small_indexes_stay_exact(tmp_path: Path) -> None:
    index = create_embedded(tmp_path, 64, {})
    index.upsert(make_points(unit_vectors(4000, 64)))
    index.optimize()
    assert not list(tmp_path.glob("shard/segments/*/vector_index/graph.bin"))
    index.close()


@pytest.mark.parametrize("module", ["edje_qdrant.index", "edje_qdrant.index.index"])
def test_import_loads_no_engine(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in loaded
    assert not {"qdrant_client", "qdrant_edge", "httpx", "grpc", "torch"} & set(loaded)


class WatchedShard:
    """Pass calls on to a shard, and note which ids it was asked for by `retrieve`."""

    def __init__(self, shard: Any) -> None:
        self.shard, self.retrieved = shard, list[list[str]]()
        self.before_retrieve: Callable[[], None] = lambda: None

    def retrieve(self, ids: list[str], *args: Any) -> Any:
        self.retrieved.append(ids)
        self.before_retrieve()
        return self.shard.retrieve(ids, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shard, name)


def test_queries_that_find_the_same_points_read_their_payloads_once(tmp_path: Path) -> None:
    vectors = unit_vectors(30)
    with closing(create_embedded(tmp_path, 8, {})) as index:
        index.upsert(make_points(vectors))
        alone = [index.nearest(query[np.newaxis], 9)[0] for query in vectors[:6]]
        backend: Any = index._backend
        shard = backend._engine = WatchedShard(backend._engine)
        assert index.nearest(vectors[:6], 9) == alone
        (read,) = shard.retrieved
        assert len(read) == len({*read}) <= 30  # not 6 times what each finds

        def delete_one() -> None:
            shard.before_retrieve = lambda: None
            index.delete([alone[0][0].image_id])

        shard.before_retrieve = delete_one
        without = index.nearest(vectors[:6], 9)
        assert alone[0][0].image_id not in {c.image_id for found in without for c in found}
        assert [len(found) for found in without] == [9] * 6
