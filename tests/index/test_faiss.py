"""The faiss engine's own: its files, what a kill and damage leave of them, exact search."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filter_kinds
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from index_engines import (
    Engine,
    faiss_engine,
    image_id,
    make_points,
    qdrant_engine,
    unit_vectors,
)
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from rounding import DOT, float32_slack

from edje_qdrant.errors import (
    CollectionLockedError,
    CollectionNotFoundError,
    MissingExtraError,
    StoreError,
)
from edje_qdrant.index import VectorIndex, create_embedded, open_embedded
from edje_qdrant.index.edge.backend import EdgeBackend
from edje_qdrant.index.faiss.backend import FaissBackend
from edje_qdrant.index.faiss.database import Database
from edje_qdrant.types import Point

HERE = Path(__file__).parent
COUNT, DIM = 2500, 32


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = faiss_engine(tmp_path)
    yield engine
    engine.close()


def child(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start another process on `code`, which finds the helpers and `folder`."""
    start = f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom pathlib import Path\n"
    start += "from index_engines import *\nfrom edje_qdrant.errors import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", f"{start}folder = Path({str(folder)!r})\n{code}"],
        stdout=subprocess.PIPE,
        text=True,
    )


def clustered(count: int, dim: int, seed: int, centers: int = 50) -> NDArray[np.float32]:
    """Vectors around centers that are the same for every seed."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(1000).standard_normal((centers, dim))
    vectors = middles[rng.integers(0, centers, count)] + 0.7 * rng.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def points_of(vectors: NDArray[np.float32], start: int = 0) -> list[Point]:
    return [
        Point(image_id(start + n), vector, {"tag": (start + n) % 100})
        for n, vector in enumerate(vectors)
    ]


def recall(
    index: VectorIndex,
    queries: NDArray[np.float32],
    vectors: dict[int, NDArray[np.float32]],
    limit: int,
    filter: Any = None,
) -> float:
    """Return which part of the true top was found; nothing else may be."""
    ids = [image_id(n) for n in vectors]
    cosines = queries @ np.stack([*vectors.values()]).T
    hits = 0
    for found, row in zip(index.nearest(queries, limit, filter=filter), cosines, strict=True):
        best = {ids[n] for n in np.argsort(-row)[:limit]}
        assert len(found) == len(best)
        scores = dict(zip(ids, row, strict=True))
        np.testing.assert_allclose(
            [c.score for c in found],
            [scores[c.image_id] for c in found],
            atol=float32_slack(1, roundings=DOT),
        )
        hits += len(best & {c.image_id for c in found})
    return hits / (len(queries) * min(limit, len(vectors)))


# Crashes


WRITES = """
index = create_embedded(folder / "images", 8, {"encoder": "tiny"}, "faiss")
index.upsert(make_points(unit_vectors(100)))
index.optimize()
index.delete([image_id(0)])
print("begun", flush=True)
turn = 0
while True:
    start = 1000 + 10 * turn
    index.upsert(make_points(unit_vectors(10, seed=turn + 1), start))
    index.set_payload({image_id(start): {"turn": turn}})
    index.delete([image_id(start + 1)])
    index.remove_payload_keys([image_id(start + 2)], ["path", "_edje"])
    if turn % 7 == 3:
        index.optimize()
    turn += 1
    print(turn, flush=True)
"""


def test_what_was_acknowledged_survives_kill(tmp_path: Path) -> None:
    process = child(WRITES, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    for _ in range(25):
        turns = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    turns = [turns, *map(int, process.communicate()[0].split())][-1]
    assert process.returncode == -signal.SIGKILL

    index = open_embedded(tmp_path / "images")
    assert index.metadata == {"encoder": "tiny"}
    assert image_id(0) not in index.existing([image_id(0)])
    for turn in range(turns):
        start = 1000 + 10 * turn
        vectors = unit_vectors(10, seed=turn + 1)
        ids = [image_id(start + n) for n in range(10)]
        assert index.existing(ids) == {*ids} - {ids[1]}
        payloads = index.retrieve(ids)
        assert payloads[ids[0]]["turn"] == turn
        assert payloads[ids[2]] == {}
        assert payloads[ids[9]]["_edje"] == {"record": start + 9, "tokens": "QUJD" * 10}
        nearest = [hits[0].image_id for hits in index.nearest(vectors, 1)]
        assert [nearest[0], *nearest[2:]] == [ids[0], *ids[2:]]
    assert index.count() in range(99 + 9 * turns, 99 + 9 * turns + 11)
    index.upsert(make_points(unit_vectors(1), 5000))
    index.close()


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_folder_of_an_earlier_version_opens(tmp_path: Path, kind: str) -> None:
    """Cells and graphs were files beside the points, which hold all of it."""
    vectors = unit_vectors(50)
    index = create_embedded(tmp_path / "images", 8, {"x": 1}, "faiss")
    index.upsert(make_points(vectors))
    index.delete([image_id(7)])
    index.close()
    folder = tmp_path / "images" / "faiss"
    with sqlite3.connect(folder / "points.sqlite") as connection:
        connection.execute("UPDATE settings SET kind = ?", (kind,))
        connection.execute("INSERT INTO built VALUES (?, 'ff00', ?)", (kind, b"\1" + bytes(7)))
    connection.close()
    (folder / "built-ff00.faiss").write_bytes(b"cells or a graph")
    (folder / "built.new").touch()
    index = open_embedded(tmp_path / "images")
    assert (index.engine, index.metadata, index.count()) == ("faiss", {"x": 1}, 49)
    assert recall(index, vectors, {n: v for n, v in enumerate(vectors) if n != 7}, 20) == 1
    assert [path.name for path in folder.glob("built*")] == []
    index.close()


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    create_embedded(folder, 8, {}, "faiss").close()
    file = folder / "faiss" / "points.sqlite"
    whole = file.read_bytes()

    file.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="file is not a database"):
        open_embedded(folder)
    file.unlink()
    with pytest.raises(StoreError, match=r"points\.sqlite is missing"):
        open_embedded(folder)
    assert not file.exists()
    file.write_bytes(whole)
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(StoreError, match=r"points\.sqlite has format 7, this version reads 1"):
        open_embedded(folder)
    file.write_bytes(whole)
    create_embedded(tmp_path / "wide", 9, {}, "faiss").close()
    (folder / "index.json").write_bytes((tmp_path / "wide" / "index.json").read_bytes())
    with pytest.raises(StoreError, match=r"width 8, but index\.json says 9"):
        open_embedded(folder)


def test_a_write_that_fails_leaves_no_trace(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = engine.create()
    index.upsert(make_points(unit_vectors(20)))
    found = index.nearest(unit_vectors(3, seed=1), 10)

    def full(*args: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(Database, "_put_tokens", full)
        with pytest.raises(StoreError, match="no space left on the device"):
            index.upsert(make_points(unit_vectors(20, seed=5)))
    assert index.nearest(unit_vectors(3, seed=1), 10) == found
    index.upsert(make_points(unit_vectors(1, seed=6), 100))
    assert index.count() == 21
    index.close()
    assert engine.open().count() == 21


@pytest.mark.parametrize("broken_call", [(os, "replace"), (Path, "rename")])
def test_a_create_cut_short_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_call: tuple[object, str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(*broken_call, full)
        with pytest.raises(StoreError, match="no space left"):
            create_embedded(tmp_path / "images", 8, {"try": 1}, "faiss")
    with pytest.raises(CollectionNotFoundError):
        open_embedded(tmp_path / "images")
    create_embedded(tmp_path / "images", 16, {"try": 2}, "faiss").close()
    index = open_embedded(tmp_path / "images")
    assert (index.metadata, index.engine) == ({"try": 2}, "faiss")
    index.close()


# One at a time


def test_another_process_is_refused(tmp_path: Path) -> None:
    index = create_embedded(tmp_path / "images", 8, {}, "faiss")
    code = """
try:
    open_embedded(folder / "images")
except CollectionLockedError as error:
    print(error.location)
"""
    assert child(code, tmp_path).communicate()[0].strip() == str(tmp_path / "images")
    with pytest.raises(CollectionLockedError):
        open_embedded(tmp_path / "images")
    index.close()
    open_embedded(tmp_path / "images").close()


def test_the_folder_of_another_engine(tmp_path: Path) -> None:
    create_embedded(tmp_path / "edge", 8, {}).close()
    create_embedded(tmp_path / "faiss", 8, {}, "faiss").close()
    for backend, other in ((FaissBackend, "edge"), (EdgeBackend, "faiss")):
        with pytest.raises(CollectionNotFoundError) as caught:
            backend.open(tmp_path / other)
        assert caught.value.known == ("edge", "faiss")
        with pytest.raises(StoreError, match="already"):
            backend.create(tmp_path / other, 8, {})


def test_without_faiss_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_embedded(tmp_path / "there", 8, {}, "faiss").close()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[faiss\]"):
        create_embedded(tmp_path / "new", 8, {}, "faiss")
    with pytest.raises(MissingExtraError, match=r"edje-qdrant\[faiss\]"):
        open_embedded(tmp_path / "there")
    assert not (tmp_path / "new").exists()


def test_every_search_is_exact(tmp_path: Path) -> None:
    """With points deleted and written again, through filters, before and after `optimize`."""
    vectors = clustered(COUNT, DIM, 0)
    queries = np.concatenate([clustered(20, DIM, 1), unit_vectors(20, DIM, seed=2)])
    index = create_embedded(tmp_path / "images", DIM, {}, "faiss")
    index.upsert(points_of(vectors[: COUNT - 250]))
    index.upsert(points_of(-vectors[:50]))
    index.upsert(points_of(vectors[:50]))
    index.upsert(points_of(vectors[COUNT - 250 :], COUNT - 250))
    index.delete([image_id(n) for n in range(0, COUNT, 10)])
    left = {n: vectors[n] for n in range(COUNT) if n % 10}

    def below(most: int) -> models.Filter:
        return models.Filter(must=[models.FieldCondition(key="tag", range=models.Range(lt=most))])

    for _ in range(3):
        assert index.count() == len(left)
        assert recall(index, queries, left, 30) == 1
        for most in (3, 50, 90):
            chosen = {n: v for n, v in left.items() if n % 100 < most}
            assert recall(index, queries, chosen, 30, below(most)) == 1
        index.optimize()
        index.delete([image_id(n) for n in range(COUNT) if n % 4 == 1])
        left = {n: v for n, v in left.items() if n % 4 != 1}
    index.close()
    index = open_embedded(tmp_path / "images")
    assert recall(index, queries, left, 30) == 1
    index.close()


def test_a_search_with_more_twins_than_are_asked_for_is_always_the_same(engine: Engine) -> None:
    index = engine.create()
    twin = unit_vectors(1)
    index.upsert(make_points(np.repeat(twin, 15, axis=0)))
    first = index.nearest(twin, 5)
    assert [c.image_id for c in first[0]] == sorted(image_id(n) for n in range(15))[:5]
    index.optimize()
    assert index.nearest(twin, 5) == first
    index.close()
    assert engine.open().nearest(twin, 5) == first


# Filters and threads


def test_slices_are_as_in_memory(engine: Engine) -> None:
    index = engine.create()
    index.upsert(make_points(unit_vectors(50)))
    halves = [
        models.Filter(must=[models.SliceCondition(slice=models.Slice(total=2, index=n))])
        for n in range(2)
    ]
    counts = [index.count(half) for half in halves]
    assert sum(counts) == 50
    assert all(counts)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[VectorIndex, VectorIndex]]:
    client = QdrantClient(":memory:")
    engines = faiss_engine(tmp_path), qdrant_engine(client)
    indexes = engines[0].create(), engines[1].create()
    for index in indexes:
        index.upsert(filter_kinds.make_filter_points(filter_kinds.make_payloads()))
    yield indexes
    for engine in engines:
        engine.close()
    client.close()


def chosen_by(index: VectorIndex, chosen: Any) -> list[str]:
    return [p.id for page in index.scroll(filter=chosen, payload=False) for p in page]


def test_filters_choose_what_they_choose_in_memory(both: tuple[VectorIndex, VectorIndex]) -> None:
    ours, theirs = both

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(filter_kinds.filters)
    def check(chosen: models.Filter) -> None:
        expected = chosen_by(theirs, chosen)
        assert chosen_by(ours, chosen) == expected
        # These two do not look into payloads that lack a text which the filter asks for.
        assert ours.count(chosen) == len(expected)
        found = ours.nearest(unit_vectors(1), 1000, filter=chosen)[0]
        assert {c.image_id for c in found} == {*expected}

    check()


@pytest.mark.parametrize(
    "text", ["x", "", 'a "b"', "back\\slash", "naïve 猫", "new\nline", "\0", "\u2028", "true", "1"]
)
def test_texts_are_found_however_they_are_written(engine: Engine, text: str) -> None:
    index = engine.create()
    payloads: list[dict[str, Any]] = [
        {"a": text},
        {"a": ["other", text]},
        {"a": {"b": text}},
        {"b": text},
        {"a": "other"},
        {"a": text + "!"},
        {"a": True},
        {"a": 1},
    ]
    vectors = unit_vectors(len(payloads))
    index.upsert([Point(image_id(n), vectors[n], payload) for n, payload in enumerate(payloads)])
    for n in (0, 1):
        index.set_payload({image_id(n): {"more": n}})
    match = models.MatchAny(any=[text, "never"])
    alike: list[Any] = [
        {"a": text},
        {"a": [text, "never"]},
        models.Filter(must=models.FieldCondition(key="a", match=match)),
    ]
    for chosen in alike:
        assert index.count(chosen) == 2
        assert chosen_by(index, chosen) == sorted(image_id(n) for n in (0, 1))
    assert index.count({"a.b": text}) == 1
    assert index.count({"a": [True, text]}) == 3
    assert index.count({"a": text, "more": 1}) == 1


def test_hits_match_the_filter_however_payloads_change(engine: Engine) -> None:
    """Each search sees points as they were before a write or after it, none in between."""
    index = engine.create()
    vectors = unit_vectors(40)
    index.upsert(points_of(vectors))
    index.set_payload({image_id(n): {"side": n % 2} for n in range(40)})
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                for side in (0, 1):
                    (found,) = index.nearest(vectors[:1], 30, filter={"side": side})
                    assert len(found) == 20
                    assert {c.payload["side"] for c in found} == {side}
                # Always there, though written again and again.
                assert index.nearest(vectors[3:4], 1)[0][0].image_id == image_id(3)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(40):
        index.set_payload({image_id(n): {"side": (n + turn) % 2} for n in range(40)})
        index.upsert([Point(image_id(n), vectors[n], {"side": (n + turn) % 2}) for n in range(40)])
        if turn % 10 == 5:
            index.optimize()
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
