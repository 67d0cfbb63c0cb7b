from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collection_places import KINDS, Place, encoding_of, fill, ids_of, make_place, side_file
from gpu_waits import never_waiting_for_the_gpu
from qdrant_client import QdrantClient
from searching import TEXTS, make_collection

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import in_order
from edje_qdrant.errors import ConfigError, TokensCorruptError, TokensNotFoundError
from edje_qdrant.maintenance import compact, transcode
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.token_cache import DeviceTokenCache, _share
from edje_qdrant.rerank.token_loader import TokenReader
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.tokens.codecs import codec_for
from edje_qdrant.types import Candidate

BYTES = 4 * 6 * 2  # of an image's tokens


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = make_place(request.param, tmp_path)
    yield place
    if isinstance(place.location, QdrantClient):
        place.location.close()


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[ImageCollection]:
    with make_place("edge-file", tmp_path).create() as created:
        fill(created, ids_of(12))
        yield created


def found(collection: ImageCollection, ids: list[str]) -> list[Candidate]:
    payloads = in_order(ids, collection.index.retrieve(ids, tokens=False))
    return [Candidate(i, 0.0, 1, payload) for i, payload in zip(ids, payloads, strict=True)]


def fetched(cache: DeviceTokenCache, collection: ImageCollection, ids: list[str]) -> Any:
    return cache.fetch(collection, found(collection, ids)).numpy()


@pytest.mark.parametrize("keep", ["codes", "tokens"])
def test_what_comes_back_is_what_was_written_read_or_kept(place: Place, keep: Any) -> None:
    ids = ids_of(8)
    cache = DeviceTokenCache(100 * BYTES, keep=keep)
    with place.create() as collection:
        tokens = fill(collection, ids).tokens
        order = [ids[n] for n in (3, 1, 3, 7, 0, 1)]
        rows = [3, 1, 3, 7, 0, 1]
        for turn in range(2):
            np.testing.assert_array_equal(fetched(cache, collection, order), tokens[rows])
            assert (cache.stats.hits, cache.stats.misses) == (4 * turn, 4)
        # Some kept, some read.
        np.testing.assert_array_equal(fetched(cache, collection, ids), tokens)
        assert (cache.stats.hits, cache.stats.misses) == (8, 8)


def test_what_is_kept_is_not_read_again(tmp_path: Path) -> None:
    place = make_place("edge-file", tmp_path)
    cache = DeviceTokenCache(100 * BYTES)
    with place.create() as collection:
        ids = ids_of(4)
        tokens = fill(collection, ids).tokens
        candidates = found(collection, ids)
        assert cache.fetch(collection, candidates).shape == (4, 4, 6)
        collection.store.close()  # now nothing can be read
        np.testing.assert_array_equal(cache.fetch(collection, candidates).numpy(), tokens)


def test_a_picture_that_was_replaced_comes_back_as_it_is_now(place: Place) -> None:
    ids = ids_of(5)
    cache = DeviceTokenCache(100 * BYTES)
    with place.create() as collection:
        fill(collection, ids)
        fetched(cache, collection, ids)
        new = fill(collection, ids[:2], seed=1).tokens
        np.testing.assert_array_equal(fetched(cache, collection, ids[:2]), new)
        old = encoding_of(ids).tokens
        np.testing.assert_array_equal(fetched(cache, collection, ids[2:]), old[2:])


def test_a_picture_replaced_between_search_and_reading_is_not_kept_as_the_old_one(
    place: Place,
) -> None:
    ids = ids_of(3)
    cache = DeviceTokenCache(100 * BYTES)
    with place.create() as collection:
        fill(collection, ids)
        stale = found(collection, ids)
        new = fill(collection, ids, seed=1).tokens
        compact(collection)  # the old record is gone, so reading looks where the points are now
        np.testing.assert_array_equal(cache.fetch(collection, stale).numpy(), new)
        assert cache.stats.images == 0
        np.testing.assert_array_equal(fetched(cache, collection, ids), new)
        assert cache.stats.images == 3


def test_a_deleted_picture_is_not_returned_once_it_is_written_again_otherwise(
    place: Place,
) -> None:
    ids = ids_of(3)
    cache = DeviceTokenCache(100 * BYTES)
    with place.create() as collection:
        fill(collection, ids)
        fetched(cache, collection, ids)
        collection.delete(ids[:1])
        with pytest.raises(TokensNotFoundError):
            fetched(cache, collection, ids)
        with pytest.raises(TokensNotFoundError):
            cache.preload(collection, ids)
        new = fill(collection, ids[:1], seed=2).tokens
        np.testing.assert_array_equal(fetched(cache, collection, ids[:1]), new)


def test_compacting_and_transcoding_change_nothing_but_the_codec(place: Place) -> None:
    ids = ids_of(10)
    cache = DeviceTokenCache(100 * BYTES)
    reader = TokenReader("cpu")
    with place.create() as collection:
        tokens = fill(collection, ids).tokens
        fetched(cache, collection, ids)
        collection.delete(ids[:5])
        compact(collection)
        np.testing.assert_array_equal(fetched(cache, collection, ids[5:]), tokens[5:])
        transcode(collection, codec_for("int4", 4, 6))
        coarse = reader.tokens(collection, found(collection, ids[5:])).numpy()
        assert not np.array_equal(coarse, tokens[5:])
        for _ in range(2):
            np.testing.assert_array_equal(fetched(cache, collection, ids[5:]), coarse)


def test_pictures_of_two_codecs_are_kept_side_by_side(tmp_path: Path) -> None:
    with make_place("edge-file", tmp_path).create() as collection:
        ids = ids_of(6)
        fill(collection, ids[:3])
        collection.set_codec(codec_for("int8", 4, 6))
        fill(collection, ids[3:])
        expected = collection.tokens(found(collection, ids))
        cache = DeviceTokenCache(100 * BYTES)
        for _ in range(4):
            np.testing.assert_array_equal(fetched(cache, collection, ids), expected)
        assert cache.stats.images == 6
        assert cache.stats.bytes <= 100 * BYTES
        rows = [0, 5, 0, 3, 5, 4]
        order = [ids[row] for row in rows]
        fresh = DeviceTokenCache(100 * BYTES)
        for _ in range(2):  # read, then kept
            np.testing.assert_array_equal(fetched(fresh, collection, order), expected[rows])


def test_the_least_recently_used_goes_first_and_the_budget_holds(
    collection: ImageCollection,
) -> None:
    ids = ids_of(12)
    cache = DeviceTokenCache(4 * BYTES + 5)
    fetched(cache, collection, ids[:4])
    fetched(cache, collection, ids[:1])  # the first is used again
    fetched(cache, collection, ids[4:6])  # the second and the third go
    assert cache.stats.images == 4
    assert cache.stats.bytes == 4 * BYTES
    before = cache.stats
    fetched(cache, collection, [ids[n] for n in (0, 3, 4, 5)])
    assert cache.stats.hits == before.hits + 4
    # More than fit in at once are returned all the same.
    everything = fetched(cache, collection, ids)
    np.testing.assert_array_equal(everything, encoding_of(ids).tokens)
    assert cache.stats.images == 4


def test_preload_takes_what_fits_the_first_ones_first(collection: ImageCollection) -> None:
    ids = ids_of(12)
    cache = DeviceTokenCache(5 * BYTES)
    wanted = [ids[n] for n in (9, 2, 4, 2, 7, 1, 0, 3)]
    assert cache.preload(collection, wanted) == 5
    fetched(cache, collection, [ids[n] for n in (9, 2, 4, 7, 1)])
    assert (cache.stats.hits, cache.stats.misses) == (5, 0)
    whole = DeviceTokenCache(100 * BYTES)
    assert whole.preload(collection) == 12
    assert whole.preload(collection) == 12  # those that are there count
    assert whole.stats.images == 12
    np.testing.assert_array_equal(fetched(whole, collection, ids), encoding_of(ids).tokens)
    assert whole.stats.misses == 0
    whole.clear()
    assert whole.stats.bytes == 0


def test_two_collections_with_the_same_ids_share_a_cache_and_nothing_else(tmp_path: Path) -> None:
    ids = ids_of(3)
    cache = DeviceTokenCache(100 * BYTES)
    place = make_place("edge-file", tmp_path)
    with place.create() as one, place.create(name="others") as two:
        fill(one, ids)
        fill(two, ids, seed=1)
        for _ in range(2):
            np.testing.assert_array_equal(fetched(cache, one, ids), encoding_of(ids).tokens)
            np.testing.assert_array_equal(fetched(cache, two, ids), encoding_of(ids, 1).tokens)


def test_damage_raises_as_without_a_cache_and_is_not_kept(
    collection: ImageCollection, tmp_path: Path
) -> None:
    path = side_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)
    cache = DeviceTokenCache(100 * BYTES)
    with pytest.raises(TokensCorruptError) as caught:
        fetched(cache, collection, ids_of(12))
    assert caught.value.image_ids == (ids_of(12)[11],)
    assert cache.stats.images == 0


def test_a_candidate_that_says_nonsense_is_read_where_its_point_says_and_not_kept(
    collection: ImageCollection,
) -> None:
    cache = DeviceTokenCache(100 * BYTES)
    ids = ids_of(1)
    for payload in ({"_edje": {"segment": [1], "record": {}}}, {"_edje": 7}, {}):
        tokens = cache.fetch(collection, [Candidate(ids[0], 0.0, 1, payload)])
        np.testing.assert_array_equal(tokens.numpy(), encoding_of(ids).tokens)
    assert cache.stats.images == 0
    with pytest.raises(TokensNotFoundError):
        cache.fetch(collection, [Candidate(str(uuid.UUID(int=999)), 0.0, 1, {})])


def test_threads_that_evict_each_others_pictures_get_their_own(
    collection: ImageCollection,
) -> None:
    ids = ids_of(12)
    tokens = encoding_of(ids).tokens
    cache = DeviceTokenCache(5 * BYTES)
    candidates = found(collection, ids)

    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            rows = rng.integers(0, 12, 4)
            got = cache.fetch(collection, [candidates[row] for row in rows]).numpy()
            if not np.array_equal(got, tokens[rows]):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert 0 < cache.stats.hits < 4 * 60 * 4
    assert cache.stats.images == 5


@pytest.mark.parametrize("keep", ["codes", "tokens"])
def test_searches_with_a_cache_rank_as_without(
    tiny_model: EDJEModel, tmp_path: Path, keep: Any
) -> None:
    contract = tiny_model.contract()
    cache = DeviceTokenCache(30 * contract.num_tokens * contract.token_dim * 2, keep=keep)
    with make_collection(tmp_path, tiny_model) as collection:
        plain = TwoStageRetriever(collection, tiny_model)
        cached = TwoStageRetriever(collection, tiny_model, token_cache=cache)
        for _ in range(2):
            for on_missing in ("error", "first_stage"):
                results = cached.search_batch(TEXTS, num_candidates=20, on_missing=on_missing)
                expected = plain.search_batch(TEXTS, num_candidates=20, on_missing=on_missing)
                for one, other in zip(results, expected, strict=True):
                    assert [h.image_id for h in one] == [h.image_id for h in other]
                    assert [h.score for h in one] == [h.score for h in other]
        assert cache.stats.hits > 0


@pytest.mark.parametrize("budget", [0, -1, 2.5, True, None])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    with pytest.raises(ConfigError, match="budget_bytes"):
        DeviceTokenCache(budget)


def test_other_arguments_that_cannot_be_used_are_refused(
    collection: ImageCollection, tiny_model: EDJEModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="keep"):
        DeviceTokenCache(1, keep="both")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nowhere"):
        DeviceTokenCache(1, device="nowhere")
    with pytest.raises(ConfigError, match="list of ids"):
        DeviceTokenCache(1000).preload(collection, "abc")
    small = DeviceTokenCache(BYTES - 1)
    with pytest.raises(ConfigError, match="one image"):
        small.preload(collection)
    with (
        make_collection(tmp_path / "more", tiny_model) as other,
        pytest.raises(ConfigError, match="one image"),
    ):
        TwoStageRetriever(other, tiny_model, token_cache=DeviceTokenCache(1))
    with pytest.raises(ConfigError, match="does not have"):
        fetched(DeviceTokenCache(1 << 62), collection, ids_of(1))


def test_an_automatic_cache_has_room_for_the_whole_collection_or_for_what_fits(
    tmp_path: Path,
) -> None:
    with make_place("edge-file", tmp_path).create() as collection:
        collection.set_codec(codec_for("int4", 4, 6))
        fill(collection, ids_of(12))
        assert DeviceTokenCache.automatic(collection, torch.device("cpu")) is None
        images, code = 12 + 3 + 1000, collection.codec.nbytes
        assert code < BYTES
        assert _share(collection, 1 << 30) == (images * BYTES, "tokens")
        assert _share(collection, images * BYTES) == (images * BYTES, "tokens")
        assert _share(collection, images * BYTES - 1) == (images * code, "codes")
        assert _share(collection, code) == (code, "codes")
        assert _share(collection, code - 1)[1] is None


def test_an_automatic_cache_without_memory_keeps_nothing(
    collection: ImageCollection, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DeviceTokenCache(1 << 62)
    cache._optional = True
    ids = ids_of(3)
    for _ in range(2):
        np.testing.assert_array_equal(fetched(cache, collection, ids), encoding_of(ids).tokens)
    assert (cache.stats.images, cache.stats.bytes) == (0, 0)
    assert caplog.text.count("no memory for a token cache") == 1


def test_what_is_no_token_cache_is_refused(tiny_model: EDJEModel, tmp_path: Path) -> None:
    collection = make_collection(tmp_path, tiny_model)
    with pytest.raises(ConfigError, match="token_cache"):
        TwoStageRetriever(collection, tiny_model, token_cache="yes")  # type: ignore[arg-type]
    with TwoStageRetriever(collection, tiny_model) as retriever:
        assert retriever._stages.own_cache is None  # on a CPU


@pytest.mark.gpu
def test_a_retriever_on_a_gpu_keeps_tokens_there_by_default(
    tiny_folder: Path, tiny_model: EDJEModel, tmp_path: Path
) -> None:
    model = EDJEModel.from_pretrained(tiny_folder, device="cuda", dtype=torch.float32)
    collection = make_collection(tmp_path, tiny_model)
    plain = TwoStageRetriever(collection, model, token_cache=None).search_batch(TEXTS)
    with TwoStageRetriever(collection, model) as retriever:
        cache = retriever._stages.own_cache
        assert cache is not None
        for _ in range(2):
            for result, other in zip(retriever.search_batch(TEXTS), plain, strict=True):
                assert [hit.image_id for hit in result] == [hit.image_id for hit in other]
        assert cache.stats.hits > 0
        assert cache.device.type == "cuda"
    assert cache.stats.bytes == 0


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("keep", ["codes", "tokens"])
def test_tokens_are_kept_beside_a_gpu_or_on_it(
    collection: ImageCollection, place: str, keep: Any
) -> None:
    ids = ids_of(12)
    cache = DeviceTokenCache(6 * BYTES, device=place, keep=keep)
    expected = encoding_of(ids).tokens
    for rows in ([0, 1, 2], [2, 1, 5, 7], [*range(12)], [0, 1, 2, 2]):
        candidates = found(collection, [ids[row] for row in rows])
        got = cache.fetch(collection, candidates, device="cuda")
        assert got.device.type == "cuda"
        np.testing.assert_array_equal(got.cpu().numpy(), expected[rows])


@pytest.mark.gpu
@pytest.mark.parametrize("keep", ["codes", "tokens"])
def test_tokens_on_a_gpu_are_gathered_without_waiting_for_it(
    collection: ImageCollection, keep: Any
) -> None:
    ids = ids_of(12)
    cache = DeviceTokenCache(12 * BYTES, device="cuda", keep=keep)
    assert cache.preload(collection) == 12
    rows = [3, 1, 3, 7, 0, 1]
    candidates = found(collection, [ids[row] for row in rows])
    cache.fetch(collection, candidates)
    with never_waiting_for_the_gpu():
        got = cache.fetch(collection, candidates)
    np.testing.assert_array_equal(got.cpu().numpy(), encoding_of(ids).tokens[rows])


@pytest.mark.gpu
def test_threads_with_their_own_streams_share_a_cache_on_a_gpu(
    collection: ImageCollection,
) -> None:
    ids = ids_of(12)
    cache = DeviceTokenCache(6 * BYTES, device="cuda")
    expected = encoding_of(ids).tokens

    def fetch(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            for _ in range(50):
                rows = rng.integers(0, 12, 5)
                got = cache.fetch(collection, found(collection, [ids[row] for row in rows]))
                np.testing.assert_array_equal(got.cpu().numpy(), expected[rows])

    with ThreadPoolExecutor(4) as pool:
        [*pool.map(fetch, range(4))]
