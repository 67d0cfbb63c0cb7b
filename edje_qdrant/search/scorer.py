"""Score candidates with the joint encoder: all of them, or best first until a bound is met."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import readable
from edje_qdrant.errors import EdjeError, StoreError
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.calibration import FIRST_LOOK, STEP, Calibration
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.rerank.token_cache import DeviceTokenCache
from edje_qdrant.rerank.token_loader import TokenReader
from edje_qdrant.search.deadline import Deadline, Pace
from edje_qdrant.search.options import OnMissing
from edje_qdrant.types import Candidate

__all__ = ["CandidateScorer", "Scored"]

_log = logging.getLogger(__name__)

# Token bytes held in memory at a time.
_TOKEN_BYTES = 256 << 20

# Pairs of the smallest slice: fewer take hardly less time.
_SMALLEST = 4

# Share of the time left that a slice is planned to take: it may well be slower than the last one.
_PLANNED = 0.8


@dataclass(slots=True)
class Scored:
    """Hold what became of one query's candidates.

    Attributes:
        logits: `(n,)` float32, NaN where there is none.
        reached: How many of the candidates, from the first, were read; the others were left out.
        failed: id -> error of those reached whose tokens could not be read.
        cut: Why scoring ended early against the caller's wish; None where it did not.
    """

    logits: NDArray[np.float32]
    reached: int = 0
    failed: dict[str, StoreError] = field(default_factory=dict)
    cut: str | None = None


class CandidateScorer:
    """Read candidates' tokens and score them; used by one thread at a time or several.

    Args:
        collection: Where tokens are.
        model: Decides device and sizes.
        reranker: Scores.
        token_cache: Keeps tokens of hot images.

    Raises:
        ConfigError: The cache is too small for an image.
    """

    def __init__(
        self,
        collection: ImageCollection,
        model: EDJEModel,
        reranker: Reranker,
        token_cache: DeviceTokenCache | None = None,
    ) -> None:
        if token_cache is not None:
            token_cache.require(collection)
        self._collection = collection
        self._model = model
        self._reranker = reranker
        self._cache = token_cache
        self._reader = TokenReader(model.device)
        contract = collection.contract
        self.pairs_at_once = max(1, _TOKEN_BYTES // (2 * contract.num_tokens * contract.token_dim))
        self._pace = Pace()  # what a budget allows is planned with it

    def score(
        self,
        texts: Sequence[str],
        found: Sequence[Sequence[Candidate]],
        *,
        deadline: Deadline,
        on_missing: OnMissing,
        stop_early: Calibration | None,
        top_k: int,
    ) -> tuple[list[Scored], float]:
        """Score every query's candidates, end to end, or best first where there is a bound.

        Args:
            texts: `q` queries.
            found: Candidates of each.
            deadline: When to end; what is not scored by then stays without a score.
            on_missing: What becomes of candidates without readable tokens.
            stop_early: Ends a query once nothing further back can matter.
            top_k: How many images of each query will be shown.

        Returns:
            What became of each query's candidates, and the seconds that fetching took.
        """
        queries = [Scored(np.full(len(c), np.nan, np.float32)) for c in found]
        fetching = 0.0
        active = [q for q, candidates in enumerate(found) if candidates]
        look = max(FIRST_LOOK, top_k) if stop_early else self.pairs_at_once
        while active:
            share = self._share(len(active), deadline, look)
            if share == 0:
                _cut(queries, found, active, _out_of_time(deadline))
                break
            pairs = [
                (q, row)
                for q in active
                for row in range(queries[q].reached, min(queries[q].reached + share, len(found[q])))
            ]
            for start in range(0, len(pairs), self.pairs_at_once):
                part = pairs[start : start + self.pairs_at_once]
                try:
                    fetching += self._score_part(texts, found, queries, part, on_missing)
                except EdjeError:
                    raise
                except Exception as error:
                    _log.warning("scoring failed; the first stage's order stands", exc_info=True)
                    reason = f"the reranker failed: {type(error).__name__}: {_first_line(error)}"
                    _cut(queries, found, active, reason)
                    return queries, fetching
            active = [q for q in active if not _is_done(queries[q], found[q], stop_early, top_k)]
            look = STEP if stop_early else look
        return queries, fetching

    def tokens(self, candidates: Sequence[Candidate]) -> torch.Tensor:
        """Read and decode `(n, m, d_text)` float16 tokens, on the model's device.

        Raises:
            TokensNotFoundError: Some have none; names the ids.
            TokensCorruptError: Some are damaged; names the ids.
        """
        if self._cache is not None:
            return self._cache.fetch(self._collection, candidates, device=self._model.device)
        return self._reader.tokens(self._collection, candidates)

    def _share(self, queries: int, deadline: Deadline, most: int) -> int:
        """Return how many further candidates of each active query to score now, `most` at most."""
        if deadline.milliseconds is None:
            return most
        left = deadline.left
        if left <= 0:
            return 0
        smallest = max(1, _SMALLEST // queries)
        possible = self._pace.pairs_in(_PLANNED * left)
        if possible is None:
            return min(most, smallest)
        share = possible // queries
        if share < smallest and (self._pace.pairs_in(left) or 0) >= smallest * queries:
            share = smallest
        if share < smallest:
            # Or one slow moment would keep later searches, of the same budget, from ever trying.
            self._pace.forgive()
            return 0
        return min(most, share)

    def _score_part(
        self,
        texts: Sequence[str],
        found: Sequence[Sequence[Candidate]],
        queries: Sequence[Scored],
        pairs: Sequence[tuple[int, int]],
        on_missing: OnMissing,
    ) -> float:
        """Score pairs of query and candidate in place; return the seconds that fetching took."""
        began = time.perf_counter()
        # An image that one query could not read, none can.
        failed = {image_id: error for query in queries for image_id, error in query.failed.items()}
        wanted = pairs
        if failed:
            wanted = [(q, row) for q, row in pairs if found[q][row].image_id not in failed]
        read, tokens, more = self._read(wanted, found, on_missing)
        failed.update(more)
        fetched = time.perf_counter()
        logits = self._reranker.score_pairs([texts[q] for q, _ in read], tokens)
        for (q, row), logit in zip(read, logits.tolist(), strict=True):
            queries[q].logits[row] = logit
        for q, row in pairs:
            query = queries[q]
            query.reached = max(query.reached, row + 1)
            if failed and (image_id := found[q][row].image_id) in failed:
                query.failed[image_id] = failed[image_id]
        self._pace.observe(len(pairs), time.perf_counter() - began)
        return fetched - began

    def _read(
        self,
        pairs: Sequence[tuple[int, int]],
        found: Sequence[Sequence[Candidate]],
        on_missing: OnMissing,
    ) -> tuple[list[tuple[int, int]], torch.Tensor, dict[str, StoreError]]:
        """Return which pairs' tokens can be read, these tokens, and id -> error of the others."""

        def read(left: list[tuple[int, int]]) -> torch.Tensor:
            return self.tokens([found[q][row] for q, row in left])

        if on_missing == "error":
            return [*pairs], read([*pairs]), {}
        return readable(pairs, lambda pair: found[pair[0]][pair[1]].image_id, read)


def _is_done(
    query: Scored, candidates: Sequence[Candidate], stop_early: Calibration | None, top_k: int
) -> bool:
    """Return whether nothing is left of a query to score, or nothing that could matter."""
    if query.reached >= len(candidates):
        return True
    known = query.logits[: query.reached]
    known = known[~np.isnan(known)]
    if stop_early is None or len(known) < top_k:
        return False
    last_shown = float(np.partition(known, -top_k)[-top_k])
    gap = candidates[0].score - candidates[query.reached].score
    return stop_early.settled(last_shown, gap)


def _cut(
    queries: Sequence[Scored],
    found: Sequence[Sequence[Candidate]],
    active: Sequence[int],
    reason: str,
) -> None:
    for q in active:
        if queries[q].reached < len(found[q]):
            queries[q].cut = reason


def _out_of_time(deadline: Deadline) -> str:
    return f"the budget of {deadline.milliseconds:g} ms ended"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no further word").splitlines()[0]
