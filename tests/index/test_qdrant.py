from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import uuid
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from grpc_stand_in import GrpcStandIn
from index_engines import FAST, image_id, make_points, unit_vectors
from index_stand_in import StandIn
from qdrant_client import QdrantClient, models

from edje_qdrant.errors import (
    CollectionNotFoundError,
    ConfigError,
    EngineUnavailableError,
    RateLimitedError,
    StoreError,
)
from edje_qdrant.index import QdrantOptions, VectorIndex, create_on_server, open_on_server
from edje_qdrant.types import Point


@pytest.fixture
def index(stand_in: StandIn) -> Iterator[VectorIndex]:
    index = create_on_server(stand_in.url, "images", 8, {}, FAST)
    stand_in.seen.clear()
    yield index
    index.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record pauses instead of waiting."""
    waited: list[float] = []
    monkeypatch.setattr("edje_qdrant.index.qdrant.connection.time.sleep", waited.append)
    return waited


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_each_memory_is_a_new_engine() -> None:
    index = create_on_server(":memory:", "images", 8, {})
    with pytest.raises(CollectionNotFoundError, match="it holds none"):
        open_on_server(":memory:", "images")
    index.close()


def test_a_client_passed_in_stays_open(memory: QdrantClient) -> None:
    create_on_server(memory, "images", 8, {}).close()
    assert memory.collection_exists("images")


@pytest.mark.parametrize("location", ["localhost:6333", "./photos", "", 6333, None])
def test_bad_locations(location: str) -> None:
    with pytest.raises(ConfigError, match='give "http://host:6333"'):
        open_on_server(location, "images")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0b", "x" * 256])
def test_bad_names(memory: QdrantClient, name: str) -> None:
    with pytest.raises(ConfigError, match="collection name"):
        create_on_server(memory, name, 8, {})


@pytest.mark.parametrize(
    "bad", [{"timeout": 0}, {"batch_size": 0}, {"retries": -1}, {"backoff": -0.1}]
)
def test_bad_options(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        QdrantOptions(**bad)


@pytest.mark.parametrize(
    "params",
    [
        models.VectorParams(size=8, distance=models.Distance.COSINE),
        models.VectorParams(size=8, distance=models.Distance.EUCLID),
        {"image": models.VectorParams(size=8, distance=models.Distance.COSINE)},
    ],
)
@pytest.mark.parametrize("metadata", [None, {"owner": "someone else"}])
def test_foreign_collections_are_refused(
    memory: QdrantClient, params: models.VectorParams, metadata: dict[str, str] | None
) -> None:
    memory.create_collection("theirs", vectors_config=params, metadata=metadata)
    with pytest.raises(StoreError, match="made by something else"):
        open_on_server(memory, "theirs")


@pytest.mark.parametrize("prefer_grpc", [False, True])
def test_unreachable_server(closed_port: int, prefer_grpc: bool) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    options = QdrantOptions(
        prefer_grpc=prefer_grpc, grpc_port=closed_port if prefer_grpc else None,
        timeout=1, retries=1, backoff=0.01,
    )  # fmt: skip
    for use in (
        lambda: open_on_server(url, "images", options),
        lambda: create_on_server(url, "images", 8, {}, options),
    ):
        with pytest.raises(EngineUnavailableError, match="after 2 tries") as caught:
            use()
        assert caught.value.location == url
        assert (f"(gRPC: port {closed_port})" in str(caught.value)) == prefer_grpc
        assert caught.value.__cause__ is not None


def test_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EngineUnavailableError, match="timed out"):
            open_on_server(url, "images", QdrantOptions(timeout=1, retries=0))


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_failures_are_tried_again(
    stand_in: StandIn, index: VectorIndex, pauses: list[float], status: int
) -> None:
    stand_in.failures.extend([(status, {}), (status, {})])
    index.upsert(make_points(unit_vectors(3)))
    assert stand_in.seen == ["PUT /collections/images/points"] * 3
    assert index.count() == 3
    # 0.01 s, then 0.02 s, each give or take half.
    assert 0.005 <= pauses[0] <= 0.015
    assert 0.01 <= pauses[1] <= 0.03


CHANGES = {
    "set_payload": lambda index: index.set_payload({image_id(n): {"n": n} for n in range(3)}),
    "remove_payload_keys": lambda index: index.remove_payload_keys([image_id(0)], ["path"]),
    "delete_matching": lambda index: index.delete_matching({"path": ["0.png", "1.png"]}),
    "set_metadata": lambda index: index.set_metadata({"n": 1}),
}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_tried_again(
    stand_in: StandIn, index: VectorIndex, pauses: list[float], change: str, status: int
) -> None:
    index.upsert(make_points(unit_vectors(3)))
    stand_in.seen.clear()
    stand_in.failures.extend([(status, {}), (status, {})])
    CHANGES[change](index)
    assert stand_in.seen[0] == stand_in.seen[1] == stand_in.seen[2]
    assert len(pauses) == 2
    after = index.retrieve([image_id(n) for n in range(3)], tokens=False)
    if change == "set_payload":
        assert [after[image_id(n)]["n"] for n in range(3)] == [0, 1, 2]
    elif change == "remove_payload_keys":
        assert ["path" in after[image_id(n)] for n in range(3)] == [False, True, True]
    elif change == "delete_matching":
        assert [*after] == [image_id(2)]
    else:
        assert index.reload_metadata() == {"n": 1}


@pytest.mark.parametrize("change", CHANGES)
def test_an_answer_that_got_lost(
    stand_in: StandIn,
    index: VectorIndex,
    pauses: list[float],
    change: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index.upsert(make_points(unit_vectors(3)))
    answer, lost = stand_in.answer, []

    def lose_the_first(*request: object) -> object:
        result = answer(*request)
        if not lost:
            lost.append(request)
            raise TimeoutError  # to the server, a reason to hang up
        return result

    monkeypatch.setattr(stand_in, "answer", lose_the_first)
    CHANGES[change](index)
    assert len(lost) == 1
    assert index.count() == (1 if change == "delete_matching" else 3)


def test_scroll_tries_again(stand_in: StandIn, index: VectorIndex, pauses: list[float]) -> None:
    index.upsert(make_points(unit_vectors(10)))
    pages = index.scroll(batch_size=4)
    seen = [point.id for point in next(pages)]
    stand_in.failures.extend([(503, {}), (429, {})])
    seen += [point.id for page in pages for point in page]
    assert seen == sorted(image_id(n) for n in range(10))
    assert len(pauses) == 2


def test_payloads_set_before_the_server_went_away_are_kept(
    stand_in: StandIn, index: VectorIndex, pauses: list[float]
) -> None:
    index.upsert(make_points(unit_vectors(120)))
    stand_in.seen.clear()
    stand_in.answers_left = 2  # of three batches
    payloads = {image_id(n): {"n": n} for n in range(120)}
    with pytest.raises(EngineUnavailableError, match="What it acknowledged before is kept"):
        index.set_payload(payloads)
    assert stand_in.seen == ["POST /collections/images/points/batch"] * 6  # two, and four tries
    stand_in.answers_left = None
    after = index.retrieve([*payloads])
    assert [after[key].get("n") for key in payloads] == [*range(100)] + [None] * 20
    index.set_payload(payloads)
    after = index.retrieve([*payloads])
    assert [after[key].get("n") for key in payloads] == [*range(120)]


def test_a_server_that_went_away_deletes_nothing_by_filter(
    stand_in: StandIn, index: VectorIndex, pauses: list[float]
) -> None:
    index.upsert(make_points(unit_vectors(10)))
    pages = index.scroll(batch_size=4)
    next(pages)
    stand_in.answers_left = 0
    for use in (
        lambda: index.delete_matching({"path": "0.png"}),
        lambda: index.count({"path": "0.png"}),
        lambda: index.set_metadata({"n": 1}),
        lambda: next(pages),
    ):
        with pytest.raises(EngineUnavailableError, match="after 4 tries"):
            use()
    stand_in.answers_left = None
    assert index.count({"path": "0.png"}) == 1
    assert index.reload_metadata() == {}


def test_the_server_says_how_long_to_wait(
    stand_in: StandIn, index: VectorIndex, pauses: list[float]
) -> None:
    stand_in.failures.extend([(429, {"Retry-After": "7"}), (429, {"Retry-After": "3600"})])
    with pytest.raises(RateLimitedError, match="try again in 3600 s"):  # longer than its timeout
        index.count()
    assert pauses == [7.0]


def test_tries_come_to_an_end(stand_in: StandIn, index: VectorIndex, pauses: list[float]) -> None:
    stand_in.failures.extend([(503, {})] * 10)
    with pytest.raises(EngineUnavailableError, match="after 4 tries") as caught:
        index.nearest(unit_vectors(1), 5)
    assert "503" in str(caught.value)
    assert len(stand_in.seen) == 4
    stand_in.failures.clear()
    assert index.nearest(unit_vectors(1), 5) == [[]]


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (400, ConfigError, "refused a request"),
        (401, ConfigError, "API key"),
        (403, ConfigError, "API key"),
        (500, StoreError, "see the server's log"),
    ],
)
def test_lasting_failures_are_not_tried_again(
    stand_in: StandIn, index: VectorIndex, status: int, kind: type[Exception], words: str
) -> None:
    stand_in.failures.append((status, {}))
    with pytest.raises(kind, match=words):
        index.upsert(make_points(unit_vectors(3)))
    assert len(stand_in.seen) == 1


def test_collection_deleted_meanwhile(stand_in: StandIn, index: VectorIndex) -> None:
    stand_in.client.delete_collection("images")
    stand_in.client.create_collection("other", vectors_config={})
    for use in (
        index.count,
        lambda: index.upsert(make_points(unit_vectors(3))),
        lambda: index.nearest(unit_vectors(1), 5),
        lambda: index.retrieve([image_id(0)]),
    ):
        with pytest.raises(CollectionNotFoundError) as caught:
            use()
        assert caught.value.known == ("other",)


def test_collection_deleted_meanwhile_in_memory(memory: QdrantClient) -> None:
    index = create_on_server(memory, "images", 8, {})
    memory.delete_collection("images")
    with pytest.raises(CollectionNotFoundError):
        index.count()


def test_something_else_answers(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "answer", lambda *request: ["not", "Qdrant"])
    with pytest.raises(StoreError, match="see the server's log"):
        open_on_server(stand_in.url, "images", FAST)


def test_a_server_that_drops_metadata_is_refused_at_create(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = stand_in.client.create_collection
    monkeypatch.setattr(
        stand_in.client,
        "create_collection",
        lambda name, *, vectors_config, metadata: create(name, vectors_config=vectors_config),
    )
    with pytest.raises(StoreError, match=r"older than Qdrant 1\.16"):
        create_on_server(stand_in.url, "images", 8, {}, FAST)


def test_upserts_travel_in_batches(
    stand_in: StandIn, index: VectorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.upsert(make_points(unit_vectors(120)))
    assert len(stand_in.seen) == 3
    stand_in.seen.clear()
    monkeypatch.setattr("edje_qdrant.index.batches._REQUEST_BYTES", 16_000)
    heavy = {"_edje": {"tokens": "A" * 6_000}}
    index.upsert([Point(image_id(n), v, heavy) for n, v in enumerate(unit_vectors(5))])
    assert len(stand_in.seen) == 3  # two, two and one


def test_payloads_travel_in_batches(
    stand_in: StandIn, index: VectorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.upsert(make_points(unit_vectors(120)))
    stand_in.seen.clear()
    index.set_payload({image_id(n): {"n": n} for n in range(120)})
    assert stand_in.seen == ["POST /collections/images/points/batch"] * 3
    stand_in.seen.clear()
    monkeypatch.setattr("edje_qdrant.index.batches._REQUEST_BYTES", 16_000)
    index.set_payload({image_id(n): {"_edje": {"tokens": f"{n}" * 6_000}} for n in range(5)})
    assert len(stand_in.seen) == 3  # two, two and one


def test_many_queries_travel_in_one_request(stand_in: StandIn, index: VectorIndex) -> None:
    index.upsert(make_points(unit_vectors(20)))
    stand_in.seen.clear()
    found = index.nearest(unit_vectors(50, seed=1), 5)
    assert [len(hits) for hits in found] == [5] * 50
    assert stand_in.seen == ["POST /collections/images/points/query/batch"]


@pytest.mark.parametrize("compressed", [False, True])
def test_answers_are_compressed_only_if_asked_for(stand_in: StandIn, compressed: bool) -> None:
    options = dataclasses.replace(FAST, compress_reads=compressed)
    index = create_on_server(stand_in.url, "images", 8, {}, options)
    index.upsert(make_points(unit_vectors(3)))
    index.retrieve([image_id(0)])
    asyncio.run(index.nearest_async(unit_vectors(1), 5))
    assert {headers["accept-encoding"] == "identity" for headers in stand_in.headers} == {
        not compressed
    }
    index.close()


@pytest.mark.parametrize("compressed", [False, True])
def test_answers_over_grpc_too(grpc_stand_in: GrpcStandIn, compressed: bool) -> None:
    options = dataclasses.replace(
        FAST, prefer_grpc=True, grpc_port=grpc_stand_in.port, compress_reads=compressed
    )
    index = create_on_server(grpc_stand_in.url, "images", 8, {}, options)
    index.upsert(make_points(unit_vectors(3)))
    index.retrieve([image_id(0)])
    asyncio.run(index.nearest_async(unit_vectors(1), 5))  # another connection
    index.close()
    assert len(grpc_stand_in.encodings) > 1
    assert {"gzip" in accepted for accepted in grpc_stand_in.encodings} == {compressed}


def test_a_client_passed_in_keeps_its_settings(stand_in: StandIn) -> None:
    with closing(QdrantClient(url=stand_in.url, check_compatibility=False)) as client:
        create_on_server(client, "images", 8, {}, FAST).close()
    assert "identity" not in {headers["accept-encoding"] for headers in stand_in.headers}


def test_api_key(stand_in: StandIn) -> None:
    options = QdrantOptions(api_key="secret", retries=0)
    assert "secret" not in repr(options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        index = create_on_server(stand_in.url, "images", 8, {}, options)
    index.close()
    assert {headers["api-key"] for headers in stand_in.headers} == {"secret"}


def test_a_rate_limit_is_an_error_of_its_own(
    stand_in: StandIn, index: VectorIndex, pauses: list[float]
) -> None:
    stand_in.failures.extend([(429, {"Retry-After": "60"})] * (FAST.retries + 1))
    with pytest.raises(RateLimitedError, match="try again in 60 s") as caught:
        index.count()
    assert caught.value.retry_after == 60
    assert caught.value.location == stand_in.url
    stand_in.failures.extend([(429, {})] * (FAST.retries + 1))
    with pytest.raises(RateLimitedError, match="try again later") as caught:
        index.count()
    assert caught.value.retry_after is None


@pytest.mark.qdrant_server
@pytest.mark.parametrize("compressed", [False, True])
def test_a_real_server_sends_as_it_is_asked(compressed: bool) -> None:
    url = os.environ["EDJE_QDRANT_URL"]
    name = f"edje-test-{uuid.uuid4().hex[:8]}"
    options = QdrantOptions(compress_reads=compressed)
    index = create_on_server(url, name, 8, {}, options)
    client = index._backend._client  # type: ignore[attr-defined]
    try:
        payload = {"_edje": {"tokens": "QUJD" * 10_000}}
        index.upsert([Point(image_id(0), unit_vectors(1)[0], payload)])
        sent: list[bool] = []

        def note(request: Any, send: Any) -> Any:
            answer = send(request)
            sent.append("content-encoding" in answer.headers)
            return answer

        client.http.client.add_middleware(note)
        assert index.retrieve([image_id(0)]) == {image_id(0): payload}
        assert sent == [compressed]
    finally:
        client.delete_collection(name)
        index.close()
