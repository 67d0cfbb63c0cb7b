from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from index_stand_in import StandIn
from numpy.typing import NDArray
from qdrant_client import QdrantClient
from searching import COUNT, encoding_of, make_collection, numbered_id
from torch import Tensor

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import TokensNotFoundError
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.read_ahead import ReadAhead
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.rerank.scorer import CandidateScorer
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.types import Candidate

TEXT = "a red square"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def numbered(count: int) -> list[Candidate]:
    return [Candidate(str(number), 1 - number / 100, number + 1, {}) for number in range(count)]


class Reader:
    """Reads the number of each candidate, but for those that are lost."""

    def __init__(self, lost: Sequence[int] = ()) -> None:
        self.lost = {str(number) for number in lost}
        self.calls: list[list[str]] = []

    def __call__(self, candidates: Sequence[Candidate]) -> Tensor:
        ids = [candidate.image_id for candidate in candidates]
        self.calls.append(ids)
        if gone := self.lost & {*ids}:
            raise TokensNotFoundError("lost", [*gone])
        return torch.tensor([float(each) for each in ids])


@pytest.mark.parametrize(
    "steps",
    [
        [(0, 4, 8), (4, 12, 4), (12, 16, 4)],  # what was read ahead is what is taken
        [(0, 2, 6), (2, 3, 10), (3, 5, 1), (5, 12, 4), (12, 20, 50)],  # fewer, then more
        [(0, 1, 1), (1, 9, 8), (9, 30, 0)],
    ],
)
def test_tokens_come_in_order_however_many_are_taken(
    pool: ThreadPoolExecutor, steps: list[tuple[int, int, int]]
) -> None:
    read = Reader()
    ahead = ReadAhead(numbered(30), read, pool)
    for start, stop, following in steps:
        assert ahead.take(start, stop).tolist() == [*range(start, stop)]
        ahead.begin(stop, stop + following)
    pool.shutdown()
    asked = [each for call in read.calls for each in call]
    assert len(asked) == len({*asked})  # nothing is read twice


def test_a_loss_is_reported_when_it_is_reached(pool: ThreadPoolExecutor) -> None:
    ahead = ReadAhead(numbered(10), Reader(lost=[6]), pool)
    assert ahead.take(0, 2).tolist() == [0, 1]
    ahead.begin(2, 10)
    assert ahead.take(2, 5).tolist() == [2, 3, 4]
    with pytest.raises(TokensNotFoundError):
        ahead.take(5, 8)
    assert ahead.take(8, 10).tolist() == [8, 9]


def test_a_place_that_was_skipped(pool: ThreadPoolExecutor) -> None:
    ahead = ReadAhead(numbered(10), Reader(), pool)
    ahead.begin(0, 4)
    assert ahead.take(6, 8).tolist() == [6, 7]


class Waiting(Reranker):
    """Scores only once the next candidates are being read."""

    def __init__(self, model: EDJEModel, reading: Sequence[Event]) -> None:
        super().__init__(model, batch_size=8)
        self._reading = iter(reading)

    def score_pairs(self, texts: Any, tokens: Any, **more: Any) -> NDArray[np.float32]:
        assert next(self._reading).wait(60)
        return super().score_pairs(texts, tokens, **more)


def test_the_next_candidates_are_read_while_the_first_are_scored(tiny_model: EDJEModel) -> None:
    reading = [Event() for _ in range(4)]
    reading[3].set()
    calls = 0
    config = tiny_model.config

    def read(candidates: Sequence[Candidate]) -> Tensor:
        nonlocal calls
        if calls:
            reading[calls - 1].set()
        calls += 1
        return torch.zeros(len(candidates), config.num_tokens, config.token_dim).half()

    scorer = CandidateScorer(Waiting(tiny_model, reading), read, 1000, read_ahead=True)
    (query,) = scorer.score_candidates([TEXT], [numbered(30)])
    scorer.close()
    assert calls == 4
    assert not np.isnan(query.logits).any()


@pytest.mark.parametrize(
    "options", [{}, {"budget_ms": 1e6}, {"on_missing": "first_stage"}, {"fusion": "rrf"}]
)
def test_a_search_over_a_server_is_that_of_a_folder(
    tmp_path: Any, tiny_model: EDJEModel, options: dict[str, Any]
) -> None:
    options = {"num_candidates": 30, "top_k": 30, **options}
    found = []
    with StandIn() as server:
        for location in (tmp_path, server.url):
            collection = make_collection(location, tiny_model)
            reranker = Reranker(tiny_model, batch_size=8)
            with TwoStageRetriever(collection, tiny_model, reranker=reranker) as retriever:
                server.seen.clear()
                results = [retriever.search(TEXT, **options)]
                whole = len(server.seen)
                results += [*retriever.search_stream(TEXT, first_ms=1e-6, **options)][-1:]
                results += retriever.search_batch([TEXT, "b"], **options)
                found.append([[(h.image_id, h.rank, h.score) for h in r] for r in results])
                assert all(result.scored == 30 for result in results)
        if "budget_ms" not in options:
            assert whole == 5  # the candidates, and their tokens in four parts
    for (one, one_rank, one_score), (other, rank, score) in zip(
        [hit for result in found[0] for hit in result],
        [hit for result in found[1] for hit in result],
        strict=True,
    ):
        assert (one, one_rank) == (other, rank)
        assert score == pytest.approx(one_score, abs=1e-5)


@pytest.mark.qdrant_server
@pytest.mark.parametrize("over_grpc", [False, True])
def test_on_a_real_server(tmp_path: Any, tiny_model: EDJEModel, over_grpc: bool) -> None:
    url, port = os.environ["EDJE_QDRANT_URL"], os.environ.get("EDJE_QDRANT_GRPC_PORT")
    if over_grpc and not port:
        pytest.skip("EDJE_QDRANT_GRPC_PORT names no server")
    grpc: dict[str, Any] = (
        {"prefer_grpc": True, "grpc_port": int(port)} if over_grpc and port else {}
    )
    name = f"edje-test-{uuid.uuid4().hex[:8]}"
    encoding = encoding_of(tiny_model)
    ids = [numbered_id(number) for number in range(COUNT)]
    found = []
    with closing(QdrantClient(url=url, check_compatibility=False)) as other:
        try:
            for location, more in ((tmp_path, {}), (url, grpc)):
                collection = ImageCollection.create(location, name, tiny_model.contract(), **more)
                collection.add(ids, encoding, [{} for _ in ids])
                reranker = Reranker(tiny_model, batch_size=8)
                with TwoStageRetriever(collection, tiny_model, reranker=reranker) as retriever:
                    result = retriever.search(TEXT, num_candidates=30, top_k=30)
                    found.append([(hit.image_id, hit.rank) for hit in result])
        finally:
            other.delete_collection(name)
    assert found[0] == found[1]


@pytest.mark.parametrize("lost", [2, 20])
def test_lost_tokens_on_a_server(tiny_model: EDJEModel, lost: int) -> None:
    with StandIn() as server:
        collection = make_collection(server.url, tiny_model)
        reranker = Reranker(tiny_model, batch_size=8)
        with TwoStageRetriever(collection, tiny_model, reranker=reranker) as retriever:
            (candidates,) = collection.nearest(tiny_model.encode_texts([TEXT]), COUNT)
            image_id = candidates[lost].image_id
            before = retriever.search(TEXT, top_k=COUNT)
            collection.index.set_payload({image_id: {"_edje": {"codec": "float16"}}})
            with pytest.raises(TokensNotFoundError, match=image_id):
                retriever.search(TEXT)
            found = retriever.search(TEXT, top_k=COUNT, on_missing="first_stage")
            assert found.degraded
            assert found.scored == COUNT - 1
            scores = {hit.image_id: hit.score for hit in before}
            for hit in found:
                if hit.image_id != image_id:
                    assert hit.score == pytest.approx(scores[hit.image_id], abs=1e-5)
    assert numbered_id(0) in scores
