from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from searching import COUNT, TEXTS, encoding_of, engine_places, make_collection, numbered_id

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.rerank.token_cache import DeviceTokenCache, token_keys
from edje_qdrant.search import device_index as device_index_module
from edje_qdrant.search.batcher import SearchBatcher
from edje_qdrant.search.device_index import DeviceIndex
from edje_qdrant.search.results import SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.types import Candidate, ImageEncoding

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FILTERS: list[Any] = [
    {"album": "2024"},
    {"number": [3, 5, 8, 39]},
    {"album": "nowhere"},
    models.Filter(must=[models.FieldCondition(key="number", range=models.Range(gte=30))]),
]


@pytest.fixture(params=["edge", "faiss"])
def collection(
    request: pytest.FixtureRequest, tiny_model: EDJEModel, tmp_path: Path
) -> Iterator[ImageCollection]:
    with make_collection(engine_places(tmp_path)[request.param], tiny_model) as made:
        yield made


@pytest.fixture(params=DEVICES)
def index(request: pytest.FixtureRequest, collection: ImageCollection) -> Iterator[DeviceIndex]:
    made = DeviceIndex(collection, request.param)
    yield made
    made.close()


def queries(model: EDJEModel, count: int = 5) -> NDArray[np.float32]:
    rng = np.random.default_rng(7)
    vectors = encoding_of(model).embeddings[:count]
    return vectors + 0.3 * rng.standard_normal(vectors.shape).astype(np.float32)


def require_same(found: Any, expected: Any, bound: float = 1e-5, *, payloads: bool = True) -> None:
    """Check that two first stages found the same: order, scores within a bound, payloads."""
    assert len(found) == len(expected)
    for own, others in zip(found, expected, strict=True):
        assert [c.image_id for c in own] == [c.image_id for c in others]
        assert [c.rank for c in own] == [*range(1, len(own) + 1)]
        np.testing.assert_allclose(
            [c.score for c in own], [c.score for c in others], rtol=0, atol=bound
        )
        if payloads:
            assert [c.payload for c in own] == [c.payload for c in others]


@pytest.mark.parametrize("wanted", [1, 7, COUNT, 1000])
def test_it_finds_what_the_engine_finds(
    collection: ImageCollection, index: DeviceIndex, tiny_model: EDJEModel, wanted: int
) -> None:
    vectors = queries(tiny_model)
    expected = collection.nearest(vectors, wanted)
    assert len(index) == COUNT
    require_same(index.nearest(vectors, wanted), expected)
    on_device = torch.from_numpy(vectors).to(index.device)
    require_same(index.nearest(on_device, wanted), expected)
    # One query after the other gives the same numbers as all together.
    alone = [index.nearest(vector[np.newaxis], wanted)[0] for vector in vectors]
    assert [c.scores for c in alone] == [c.scores for c in index.nearest(vectors, wanted)]


def test_queries_are_compared_in_parts(
    collection: ImageCollection,
    index: DeviceIndex,
    tiny_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_index_module, "_CPU_CELLS", 3000)
    monkeypatch.setattr(device_index_module, "_GPU_CELLS", 3000)
    vectors = queries(tiny_model, 9)
    require_same(index.nearest(vectors, 8), collection.nearest(vectors, 8))


@pytest.mark.parametrize("filter", FILTERS)
def test_filters(
    collection: ImageCollection, index: DeviceIndex, tiny_model: EDJEModel, filter: Any
) -> None:
    vectors = queries(tiny_model)
    expected = collection.nearest(vectors, 6, filter=filter)
    for _ in range(3):  # by the engine, then by the filter's matches, then by the kept ones
        require_same(index.nearest(vectors, 6, filter=filter), expected)
    require_same(index.nearest(vectors, 6, filter={}), collection.nearest(vectors, 6))


def test_matches_are_kept_until_the_next_write(
    collection: ImageCollection,
    index: DeviceIndex,
    tiny_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors, filter = queries(tiny_model), {"album": "2024"}
    expected = collection.nearest(vectors, 6, filter=filter)
    for _ in range(2):
        index.nearest(vectors, 6, filter=filter)
    with monkeypatch.context() as patch:
        patch.setattr(collection.index, "scroll", None)
        patch.setattr(collection.index, "nearest", None)
        require_same(index.nearest(vectors, 6, filter=filter), expected)
    changed = expected[0][0].image_id
    collection.update_payload({changed: {"album": "2023"}})
    for _ in range(3):
        found = index.nearest(vectors, 6, filter=filter)
        assert changed not in {c.image_id for own in found for c in own}
        require_same(found, collection.nearest(vectors, 6, filter=filter))


def test_a_filter_that_many_points_match_is_left_to_the_engine(
    collection: ImageCollection,
    index: DeviceIndex,
    tiny_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_index_module, "_MOST_MATCHES", 19)
    monkeypatch.setattr(device_index_module, "_KEPT_FILTERS", 1)
    monkeypatch.setattr(index, "_search", None)
    vectors = queries(tiny_model)
    for filter in ({"album": "2024"}, {"album": "2023"}, {"album": "2024"}):
        for _ in range(2):
            expected = collection.nearest(vectors, 6, filter=filter)
            require_same(index.nearest(vectors, 6, filter=filter), expected)
    assert len(index._filters) == 1


def test_writes_after_opening_are_followed(
    collection: ImageCollection, index: DeviceIndex, tiny_model: EDJEModel
) -> None:
    rng = np.random.default_rng(3)
    encoding = encoding_of(tiny_model)
    width = encoding.embeddings.shape[1]

    def same() -> None:
        vectors = np.concatenate([queries(tiny_model), rng.standard_normal((3, width))])
        vectors = vectors.astype(np.float32)
        require_same(index.nearest(vectors, 12), collection.nearest(vectors, 12))
        assert len(index) == len(collection)

    def add(numbers: range, *, seed: int) -> None:
        vectors = np.random.default_rng(seed).standard_normal((len(numbers), width))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        tokens = np.repeat(encoding.tokens[:1], len(numbers), axis=0)
        ids = [numbered_id(number) for number in numbers]
        payloads = [{"number": number} for number in numbers]
        collection.add(ids, ImageEncoding(vectors.astype(np.float32), tokens), payloads)

    same()
    add(range(100, 103), seed=1)
    same()
    collection.delete([numbered_id(n) for n in (0, 5, 101, COUNT - 1)])
    same()
    collection.delete([numbered_id(n) for n in (102, 100)])  # the last rows
    same()
    add(range(200, 300), seed=2)  # more than there is room for
    add(range(8), seed=3)  # some of them again, with other embeddings
    collection.update_payload({numbered_id(7): {"album": "new"}})
    same()
    collection.delete_matching({"album": "2023"})
    same()
    collection.index.remove_payload_keys([numbered_id(7)], ["album"])
    same()
    collection.delete([numbered_id(n) for n in range(310)])
    same()
    assert len(index) == 0
    add(range(3), seed=4)
    same()


def test_an_empty_collection(tiny_model: EDJEModel, tmp_path: Path) -> None:
    with ImageCollection.create(tmp_path, "images", tiny_model.contract()) as collection:
        index = DeviceIndex(collection, "cpu")
        vectors = queries(tiny_model)
        assert index.nearest(vectors, 5) == [[]] * 5
        assert index.nearest(vectors[:0], 5) == []
        with TwoStageRetriever(collection, tiny_model, first_stage="device") as retriever:
            assert len(retriever.search(TEXTS[0])) == 0
            collection.add([numbered_id(1)], encoding_one(tiny_model), [{}])
            assert len(retriever.search(TEXTS[0])) == 1


def encoding_one(model: EDJEModel) -> ImageEncoding:
    encoding = encoding_of(model)
    return ImageEncoding(encoding.embeddings[:1], encoding.tokens[:1])


@pytest.mark.parametrize("device", DEVICES)
def test_equal_embeddings_go_by_id(tiny_model: EDJEModel, tmp_path: Path, device: str) -> None:
    encoding = encoding_of(tiny_model)
    rows = [0, 1] * 15
    copies = ImageEncoding(encoding.embeddings[rows], encoding.tokens[rows])
    ids = [numbered_id(number) for number in np.random.default_rng(0).permutation(30).tolist()]
    with ImageCollection.create(tmp_path, "images", tiny_model.contract()) as collection:
        collection.add(ids, copies, [{}] * 30)
        index = DeviceIndex(collection, device)
        vectors = encoding.embeddings[:2]
        found = index.nearest(vectors, 15)
        require_same(found, collection.nearest(vectors, 15))
        for own in found:
            assert [c.image_id for c in own] == sorted(c.image_id for c in own)
            assert len({c.score for c in own}) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_stays_within_its_bound(
    tiny_model: EDJEModel, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceIndex, "_dtype_for", lambda *_: torch.float16)
    rng = np.random.default_rng(5)
    width = tiny_model.config.embedding_dim
    vectors = rng.standard_normal((400, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tokens = np.repeat(encoding_of(tiny_model).tokens[:1], 400, axis=0)
    with ImageCollection.create(tmp_path, "images", tiny_model.contract()) as collection:
        ids = [numbered_id(number) for number in range(400)]
        collection.add(ids, ImageEncoding(vectors, tokens), [{}] * 400)
        index = DeviceIndex(collection, device)
        assert index.dtype is torch.float16
        asked = vectors[:20] + 0.1 * rng.standard_normal((20, width)).astype(np.float32)
        for found, exact in zip(
            index.nearest(asked, 30), collection.nearest(asked, 400), strict=True
        ):
            cosine = {c.image_id: c.score for c in exact}
            assert max(abs(c.score - cosine[c.image_id]) for c in found) < 5e-4
            # What was left out is not better than the last one found by more than the bound.
            left_out = {*cosine} - {c.image_id for c in found}
            assert max(cosine[i] for i in left_out) < found[-1].score + 1e-3


def test_an_image_that_another_process_deletes_is_left_out(tiny_model: EDJEModel) -> None:
    client = QdrantClient(":memory:")
    vectors = queries(tiny_model)[:2]
    with make_collection(client, tiny_model) as theirs:
        ours = ImageCollection.open(client, "images")
        cache = DeviceTokenCache(1 << 20)
        cache.preload(ours)
        retriever = TwoStageRetriever(ours, tiny_model, token_cache=cache, first_stage="device")
        index = DeviceIndex(ours, "cpu")
        expected = theirs.nearest(vectors, 6)
        found = index.nearest(vectors, 6)
        gone = expected[0][2].image_id
        theirs.delete([gone])
        assert found[0].absent() == {2}
        assert found[0][2].payload == {}
        require_same(index.nearest(vectors, 6), theirs.nearest(vectors, 6))
        assert len(index) == COUNT - 1
        first = retriever.search(TEXTS[0], top_k=COUNT)
        assert gone not in {hit.image_id for hit in first}
        assert (first.candidates, len(first)) == (COUNT - 1, COUNT - 1)
        assert retriever.search(TEXTS[0], top_k=COUNT).candidates == COUNT - 1


def result_of(result: SearchResult) -> list[Any]:
    shown = [*result, *result.remaining]
    return [(h.image_id, h.rank, h.retrieval_rank, h.payload, h.group) for h in shown]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 3, "num_candidates": 12},
    {"filter": {"album": "2024"}, "num_candidates": 10},
    {"group_by": "video", "num_candidates": 12, "top_k": 5},
    {"fusion": "rrf"},
    {"collapse_duplicates": 0.5},
    {"on_missing": "first_stage"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cached", [False, True])
def test_a_search_gives_the_same_on_both(
    collection: ImageCollection, tiny_model: EDJEModel, options: dict[str, Any], cached: bool
) -> None:
    plain = TwoStageRetriever(collection, tiny_model, first_stage="engine")
    cache = DeviceTokenCache(1 << 20) if cached else None
    own = TwoStageRetriever(collection, tiny_model, token_cache=cache, first_stage="device")
    assert (plain.first_stage, own.first_stage) == ("engine", "device")
    for _ in range(2):
        expected = plain.search_batch(TEXTS, **options)
        for found, other in zip(own.search_batch(TEXTS, **options), expected, strict=True):
            assert result_of(found) == result_of(other)
            np.testing.assert_allclose(
                [h.retrieval_score for h in found], [h.retrieval_score for h in other], atol=1e-5
            )
            assert (found.candidates, found.scored, found.degraded) == (
                other.candidates, other.scored, other.degraded,
            )  # fmt: skip


def test_other_searches_use_it_too(
    collection: ImageCollection, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = TwoStageRetriever(collection, tiny_model, first_stage="engine")
    own = TwoStageRetriever(collection, tiny_model, first_stage="device")
    image = ImageEncoding(
        encoding_of(tiny_model).embeddings[3:4], encoding_of(tiny_model).tokens[3:4]
    )
    by_image = plain.search_by_image(image)
    awaited = asyncio.run(plain.asearch(TEXTS[1]))
    *_, streamed = plain.search_stream(TEXTS[2])
    monkeypatch.setattr(collection, "nearest", None)
    monkeypatch.setattr(collection, "nearest_async", None)
    assert result_of(own.search_by_image(image)) == result_of(by_image)
    assert result_of(asyncio.run(own.asearch(TEXTS[1]))) == result_of(awaited)
    assert result_of([*own.search_stream(TEXTS[2])][-1]) == result_of(streamed)


@pytest.mark.parametrize("place", ["edge", "faiss", "memory"])
def test_tokens_in_a_cache_are_found_without_payloads(
    place: str, tiny_model: EDJEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = make_collection(engine_places(tmp_path)[place], tiny_model)
    cache = DeviceTokenCache(1 << 20)
    assert cache.preload(collection) == COUNT
    retriever = TwoStageRetriever(collection, tiny_model, token_cache=cache, first_stage="device")
    events: list[str] = []
    retrieve, fetch = collection.index.retrieve, cache.fetch
    logits = Reranker._logits

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            events.append(name)
            return function(*args, **options)

        return call

    monkeypatch.setattr(collection.index, "retrieve", noted("payloads", retrieve))
    monkeypatch.setattr(Reranker, "_logits", noted("scored", logits))
    retriever.search_batch(TEXTS, num_candidates=20)
    # On a server payloads are read once for all queries, after the device's work was queued.
    assert events == ["scored"] + ["payloads"] * (place == "memory")
    assert cache.stats.misses == 0
    (found,) = DeviceIndex(collection, "cpu").nearest(queries(tiny_model)[:1], 9)
    stored = [(c.image_id, c.payload) for c in collection.nearest(queries(tiny_model)[:1], 9)[0]]
    assert found.token_keys == token_keys(collection, stored)
    assert fetch(collection, found).shape[0] == 9
    collection.close()


def test_a_reranker_of_ones_own_needs_no_new_argument(
    collection: ImageCollection, tiny_model: EDJEModel
) -> None:
    class Own(Reranker):
        def score_pairs(self, texts: Any, tokens: Any) -> NDArray[np.float32]:  # type: ignore[override]  # as code written for earlier versions
            return super().score_pairs(texts, tokens)

    expected = TwoStageRetriever(collection, tiny_model).search(TEXTS[0])
    retriever = TwoStageRetriever(
        collection, tiny_model, reranker=Own(tiny_model), first_stage="device",
        token_cache=DeviceTokenCache(1 << 20),
    )  # fmt: skip
    assert result_of(retriever.search(TEXTS[0])) == result_of(expected)


def test_lost_tokens_keep_their_place(collection: ImageCollection, tiny_model: EDJEModel) -> None:
    plain = TwoStageRetriever(collection, tiny_model, first_stage="engine")
    own = TwoStageRetriever(
        collection, tiny_model, first_stage="device", token_cache=DeviceTokenCache(1 << 20)
    )
    collection.index.remove_payload_keys([numbered_id(4)], ["_edje"])
    for on_missing in ("first_stage", "error"):
        options: dict[str, Any] = {"on_missing": on_missing}
        try:
            expected = plain.search(TEXTS[0], **options)
        except StoreError as error:
            with pytest.raises(type(error)):
                own.search(TEXTS[0], **options)
        else:
            assert result_of(own.search(TEXTS[0], **options)) == result_of(expected)


def test_what_cannot_be_used_is_refused(
    collection: ImageCollection, index: DeviceIndex, tiny_model: EDJEModel
) -> None:
    vectors = torch.from_numpy(queries(tiny_model))
    with pytest.raises(ConfigError, match="use the model"):
        index.nearest(vectors[:, 1:], 5)
    with pytest.raises(ConfigError, match="use the model"):
        index.nearest(vectors[:, 1:].numpy(), 5)
    for bad in (0.0, torch.nan, torch.inf):
        vectors[1] = bad
        with pytest.raises(ConfigError, match="no direction"):
            index.nearest(vectors, 5)
        with pytest.raises(ConfigError, match="no direction"):
            index.nearest(vectors.numpy(), 5)
    with pytest.raises(ConfigError, match="limit"):
        index.nearest(vectors[:1], 0)
    for _ in range(2):
        with pytest.raises(ConfigError, match="filter"):
            index.nearest(vectors[:1], 5, filter={"number": object()})
    with pytest.raises(ConfigError, match="first_stage"):
        TwoStageRetriever(collection, tiny_model, first_stage="gpu")  # type: ignore[arg-type]  # that is tested


def test_auto_is_the_device_if_a_gpu_has_room(
    collection: ImageCollection, tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TwoStageRetriever(collection, tiny_model).first_stage == "engine"
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 2 * free))
    free = 3 * 2 * COUNT * tiny_model.config.embedding_dim
    assert DeviceIndex.fits(collection, cuda)
    free -= 3
    assert not DeviceIndex.fits(collection, cuda)
    assert not DeviceIndex.fits(collection, torch.device("cpu"))
    monkeypatch.setattr(DeviceIndex, "fits", lambda *_: True)
    assert TwoStageRetriever(collection, tiny_model).first_stage == "device"
    assert TwoStageRetriever(collection, tiny_model, first_stage="engine").first_stage == "engine"
    with make_collection(":memory:", tiny_model) as server:  # others may write to a server's
        assert TwoStageRetriever(server, tiny_model).first_stage == "engine"


def test_without_memory_the_engine_is_searched(
    collection: ImageCollection,
    index: DeviceIndex,
    tiny_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vectors = queries(tiny_model)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(DeviceIndex, "_allocated", full)
        added = numbered_id(77)
        collection.add([added], encoding_one(tiny_model), [{"number": 77}])
        require_same(index.nearest(vectors, 6), collection.nearest(vectors, 6))
        assert "no memory left" in caplog.text
        with pytest.raises(ConfigError, match="first_stage='engine'"):
            DeviceIndex(collection, "cpu")
    require_same(index.nearest(vectors, 6), collection.nearest(vectors, 6))
    assert len(index) == COUNT + 1


def test_a_write_is_read_again_if_the_engine_failed(
    collection: ImageCollection,
    index: DeviceIndex,
    tiny_model: EDJEModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise StoreError("the engine failed")

    collection.delete([numbered_id(1)])
    collection.delete_matching({"number": 2})
    with monkeypatch.context() as patch:
        patch.setattr(collection.index, "scroll", fail)
        with pytest.raises(StoreError, match="the engine failed"):
            index.nearest(queries(tiny_model), 3)
    vectors = queries(tiny_model)
    require_same(index.nearest(vectors, 50), collection.nearest(vectors, 50))
    assert len(index) == COUNT - 2


def test_writes_of_other_processes_to_a_server(
    tiny_model: EDJEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = QdrantClient(":memory:")
    clock = [100.0]
    monkeypatch.setattr(device_index_module.time, "monotonic", lambda: clock[0])
    vectors = queries(tiny_model)
    with make_collection(client, tiny_model) as theirs:
        ours = ImageCollection.open(client, "images")
        index = DeviceIndex(ours, "cpu")
        theirs.delete([numbered_id(3)])
        theirs.add([numbered_id(90)], encoding_one(tiny_model), [{"number": 90}])
        theirs.delete([numbered_id(4)])
        clock[0] += 1
        assert len(index.nearest(vectors, 3)[0]) == 3
        assert len(index) == COUNT
        clock[0] += 1.5
        require_same(index.nearest(vectors, 50), theirs.nearest(vectors, 50))
        # A payload that others change takes effect at once, also in filters.
        theirs.update_payload({numbered_id(5): {"album": "new"}})
        for _ in range(3):
            (found,) = index.nearest(vectors[:1], 50, filter={"album": "new"})
            assert [c.image_id for c in found] == [numbered_id(5)]
        assert [c.payload["album"] for c in index.nearest(vectors[:1], 50)[0]
                if c.image_id == numbered_id(5)] == ["new"]  # fmt: skip
        # A replaced embedding is seen by `reload`.
        other = ImageEncoding(-encoding_one(tiny_model).embeddings, encoding_one(tiny_model).tokens)
        theirs.add([numbered_id(90)], other, [{}])
        clock[0] += 10
        before = {c.image_id: c.score for c in index.nearest(vectors[:1], 50)[0]}
        index.reload()
        after = {c.image_id: c.score for c in index.nearest(vectors[:1], 50)[0]}
        assert after[numbered_id(90)] == pytest.approx(-before[numbered_id(90)], abs=1e-5)
        index.close()


def test_closing_ends_the_notes(collection: ImageCollection, tiny_model: EDJEModel) -> None:
    watched: Any = collection.index
    index = DeviceIndex(collection, "cpu")
    assert len(watched._observers) == 1
    index.close()
    index.close()
    assert not watched._observers
    assert len(index) == 0
    retriever = TwoStageRetriever(collection, tiny_model, first_stage="device")
    assert len(watched._observers) == 1
    del retriever  # without closing it
    assert not watched._observers
    retriever = TwoStageRetriever(collection, tiny_model, first_stage="device")
    retriever.close()
    assert not watched._observers


def test_threads_write_and_search(collection: ImageCollection, tiny_model: EDJEModel) -> None:
    index = DeviceIndex(collection, "cpu")
    encoding = encoding_of(tiny_model)
    ids = [numbered_id(500 + number) for number in range(10)]
    own = ImageEncoding(encoding.embeddings[:10], encoding.tokens[:10])
    failures: list[BaseException] = []

    def write() -> None:
        for _ in range(5):
            collection.add(ids, own, [{"number": 1}] * 10)
            collection.delete(ids[:7])

    def search() -> None:
        try:
            for _ in range(30):
                for found in index.nearest(encoding.embeddings[:3], 8):
                    assert len(found) == 8
                    assert found.scores == sorted(found.scores, reverse=True)
                    found.absent()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for work in (write, search, search)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    vectors = encoding.embeddings[:4]
    require_same(index.nearest(vectors, 60), collection.nearest(vectors, 60))


def test_candidates_made_before_a_write_stay_the_same(
    collection: ImageCollection, index: DeviceIndex, tiny_model: EDJEModel
) -> None:
    vectors = queries(tiny_model)
    expected = collection.nearest(vectors, 8)
    found = index.nearest(vectors, 8)
    collection.delete([numbered_id(n) for n in range(0, COUNT, 2)])
    index.nearest(vectors, 8)  # rows have moved now
    for own, others in zip(found, expected, strict=True):
        made: list[Candidate] = [*own]
        assert [c.image_id for c in made] == [c.image_id for c in others]
        assert [c.payload for c in made] == [c.payload for c in others]
        assert not own.absent()


@pytest.mark.gpu
@pytest.mark.parametrize("cached", [False, True])
def test_a_whole_search_on_a_gpu(tiny_folder: Path, tmp_path: Path, cached: bool) -> None:
    model = EDJEModel.from_pretrained(tiny_folder, device="cuda", dtype=torch.float32)
    with make_collection(tmp_path, model) as collection:
        cache = None
        if cached:
            cache = DeviceTokenCache(1 << 20, device="cuda", keep="tokens")
            cache.preload(collection)
        plain = TwoStageRetriever(collection, model, first_stage="engine")
        own = TwoStageRetriever(collection, model, token_cache=cache)
        assert own.first_stage == "device"
        for options in OPTIONS:
            for texts in (TEXTS, TEXTS[:1], TEXTS * 20):
                expected = plain.search_batch(texts, **options)
                for found, other in zip(own.search_batch(texts, **options), expected, strict=True):
                    assert result_of(found) == result_of(other)
        with SearchBatcher(own) as batcher:
            futures = [batcher.submit(text) for text in TEXTS * 20]
            expected = plain.search_batch(TEXTS * 20)
            for future, other in zip(futures, expected, strict=True):
                assert result_of(future.result()) == result_of(other)
        collection.delete([numbered_id(n) for n in range(0, COUNT, 3)])
        assert result_of(own.search(TEXTS[1])) == result_of(plain.search(TEXTS[1]))
