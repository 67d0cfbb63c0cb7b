"""Score candidates with the joint encoder: all of them, or best first within a time budget."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.references import readable
from edje_qdrant.errors import (
    EdjeError,
    EngineUnavailableError,
    ImagesDeletedError,
    StoreError,
    TokensCorruptError,
    TokensNotFoundError,
)
from edje_qdrant.model.calibration import FIRST_LOOK, STEP, Calibration
from edje_qdrant.rerank.collector import paused_collector
from edje_qdrant.rerank.deadline import Deadline, Pace
from edje_qdrant.rerank.joined_candidates import JoinedCandidates
from edje_qdrant.rerank.read_ahead import ReadAhead, Tokens
from edje_qdrant.rerank.stopwatch import Stopwatch
from edje_qdrant.types import Candidate

__all__ = [
    "CandidateScorer",
    "FindAgain",
    "OnDeleted",
    "OnMissing",
    "PairScorer",
    "ReadTokens",
    "ScoredQuery",
    "best_first",
]

#: What to do with candidates whose tokens are missing or damaged.
OnMissing = Literal["error", "first_stage"]

#: What to do with candidates that were deleted since they were found: raise ImagesDeletedError, or
#: leave them out.
OnDeleted = Literal["error", "leave_out"]

#: Searches again for the candidates of every query, as those with these ids were deleted.
FindAgain = Callable[[Sequence[str]], Sequence[Sequence[Candidate]]]

#: Reads the tokens of `n` candidates.
ReadTokens: TypeAlias = Callable[[Sequence[Candidate]], Tokens]

_log = logging.getLogger(__name__)

# Threads that read ahead, for searches of several threads.
_READERS = 4

# Minimum pairs per slice under a budget; smaller slices are not faster.
_SMALLEST = 4

# Share of the remaining time that a slice is planned to take, as a slice can be slower than the
# estimate.
_PLANNED = 0.8


@dataclass(slots=True, eq=False)
class ScoredQuery:
    """Hold one query, its candidates and their scores so far.

    Attributes:
        text: The query.
        candidates: `n` candidates, in first-stage order.
        logits: `(n,)` float32; NaN where there is no score.
        processed: Number of candidates, from the first, that were processed.
        failed: id -> error of processed candidates whose tokens could not be read.
        deleted: Rows of processed candidates that were deleted since they were found.
        stop_reason: Why scoring stopped before the requested end; None if it did not.
    """

    text: str
    candidates: Sequence[Candidate]
    logits: NDArray[np.float32] = field(init=False)
    processed: int = 0
    failed: dict[str, StoreError] = field(default_factory=dict)
    deleted: frozenset[int] = frozenset()
    stop_reason: str | None = None

    def __post_init__(self) -> None:
        self.logits = np.full(len(self.candidates), np.nan, np.float32)

    @property
    def is_complete(self) -> bool:
        """Return whether all candidates were processed."""
        return self.processed >= len(self.candidates)

    def is_settled(self, calibration: Calibration | None, top_k: int) -> bool:
        """Return whether the remaining candidates are unlikely to change the `top_k` best."""
        known = self.logits[: self.processed]
        known = known[~np.isnan(known)]
        if calibration is None or len(known) < top_k:
            return False
        last_shown = float(np.partition(known, -top_k)[-top_k])
        gap = self.candidates[0].score - self.candidates[self.processed].score
        return calibration.settled(last_shown, gap)


class PairScorer(Protocol):
    """What scores texts against the tokens of images."""

    @property
    def pairs_at_once(self) -> int:
        """Return the number of pairs scored in one batch, at most."""

    @property
    def score_pairs(self) -> Callable[..., NDArray[np.float32]]:
        """Return the function that scores `n` texts against `(n, m, d_text)` tokens: `(n,)`.

        If it has an argument `queued`, that is called once the work is queued on a device.
        """


class _Span(NamedTuple):
    """Candidates `start` to `stop` of a query."""

    query: ScoredQuery
    start: int
    stop: int


class CandidateScorer:
    """Read the tokens of candidates and score them; safe in several threads.

    Args:
        reranker: Scores: a `Reranker`, or an exported model.
        read: Reads tokens.
        pairs_at_once: Candidates whose tokens are in memory at a time, at most.
        read_ahead: Read the tokens of one query's candidates in parts, the next ones while the ones
            before are scored; for tokens on a server. Close the scorer then.
    """

    def __init__(
        self,
        reranker: PairScorer,
        read: ReadTokens,
        pairs_at_once: int,
        *,
        read_ahead: bool = False,
    ) -> None:
        self._reranker, self._read = reranker, read
        self._pool: ThreadPoolExecutor | None = None
        if read_ahead:
            self._pool = ThreadPoolExecutor(_READERS, "edje-read-ahead")
        self.pairs_at_once = pairs_at_once
        self._pace = Pace()

    def close(self) -> None:
        """Wait for the tokens that are being read ahead; a second call does nothing."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def score_candidates(
        self,
        texts: Sequence[str],
        found: Sequence[Sequence[Candidate]],
        *,
        deadline: Deadline | None = None,
        on_missing: OnMissing = "error",
        on_deleted: OnDeleted = "error",
        find_again: FindAgain | None = None,
        stop_early: Calibration | None = None,
        top_k: int = 1,
        watch: Stopwatch | None = None,
    ) -> list[ScoredQuery]:
        """Score the candidates of every query.

        Without a deadline and `stop_early`, all are scored. Otherwise they are scored in slices,
        best of the first stage first. If the reranker fails, the remaining candidates stay without
        a score and `stop_reason` says why.

        Args:
            texts: `q` queries.
            found: Candidates of each query.
            deadline: When to stop; no limit by default.
            on_missing: What to do with candidates whose tokens cannot be read.
            on_deleted: What to do with candidates that were deleted since they were found.
            find_again: Called, once at most, if some were deleted and none is scored yet: its
                candidates are scored instead. By default there is no second search.
            stop_early: Stops a query once its remaining candidates are unlikely to matter.
            top_k: Number of hits that will be returned for each query.
            watch: Measures the stages `fetch` and `rerank`.

        Returns:
            One `ScoredQuery` for each query, in order.

        Raises:
            TokensNotFoundError: Tokens are missing; names the ids.
            TokensCorruptError: Tokens are damaged; names the ids.
        """
        *_, queries = self.score_in_slices(
            texts,
            found,
            deadline=deadline,
            on_missing=on_missing,
            on_deleted=on_deleted,
            find_again=find_again,
            stop_early=stop_early,
            top_k=top_k,
            watch=watch,
        )
        return queries

    def score_in_slices(
        self,
        texts: Sequence[str],
        found: Sequence[Sequence[Candidate]],
        *,
        first: float | None = None,
        deadline: Deadline | None = None,
        on_missing: OnMissing = "error",
        on_deleted: OnDeleted = "error",
        find_again: FindAgain | None = None,
        stop_early: Calibration | None = None,
        top_k: int = 1,
        watch: Stopwatch | None = None,
    ) -> Iterator[list[ScoredQuery]]:
        """Score the candidates of every query as `score_candidates` does; yield in between.

        Args:
            texts: As in `score_candidates`, like all arguments but `first`.
            found: Candidates of each query.
            first: Seconds that the first slice is planned to take, by the measured time of earlier
                ones; each further slice has at most twice the candidates of the one before, or as
                many as that time allows. None yields only at the end.
            deadline: When to stop.
            on_missing: What to do with candidates whose tokens cannot be read.
            on_deleted: What to do with candidates that were deleted since they were found.
            find_again: Called, once at most, if some were deleted and none is scored yet: its
                candidates are scored instead. By default there is no second search.
            stop_early: Stops a query once its remaining candidates are unlikely to matter.
            top_k: Number of hits that will be returned for each query.
            watch: Measures the stages.

        Yields:
            The same list of one `ScoredQuery` for each query, after every slice and at the end.

        Raises:
            TokensNotFoundError: Tokens are missing; names the ids.
            TokensCorruptError: Tokens are damaged; names the ids.
        """
        deadline, watch = deadline or Deadline(None), watch or Stopwatch()
        queries = [ScoredQuery(text, own) for text, own in zip(texts, found, strict=True)]
        failed: dict[str, StoreError] = {}
        active = [query for query in queries if not query.is_complete]
        ahead: ReadAhead | None = None
        most_at_once = self.pairs_at_once
        if self._pool is not None and len(active) == len(queries) == 1:
            ahead = ReadAhead(active[0].candidates, self._read, self._pool)
            most_at_once = min(most_at_once, self._reranker.pairs_at_once)
        limit = max(FIRST_LOOK, top_k) if stop_early else most_at_once
        watch.start("rerank")
        count, begun = 0, False
        try:
            while active:
                most = limit
                if first is not None:  # fewer, larger slices later bound what slices cost
                    most = min(limit, max(self._within(first, len(active)), 2 * count))
                count = self._affordable(len(active), deadline, most)
                if count == 0:
                    _stop(active, f"the budget of {deadline.milliseconds:g} ms ended")
                    break
                following = STEP if stop_early else min(2 * count, most_at_once)
                for spans in _slices(active, count, self.pairs_at_once):
                    begun = begun or any(query.processed for query in queries)
                    again = find_again is not None and not begun
                    self._score_slice(
                        spans,
                        failed,
                        on_missing,
                        "error" if again else on_deleted,
                        watch,
                        ahead,
                        following,
                    )
                active = [
                    query
                    for query in active
                    if not query.is_complete and not query.is_settled(stop_early, top_k)
                ]
                limit = STEP if stop_early else limit
                if active and first is not None:
                    if failed:
                        _assign_failures(queries, failed)
                    yield queries
        except ImagesDeletedError as error:
            if find_again is None or begun:
                raise
            watch.start("retrieve")
            yield from self.score_in_slices(
                texts,
                find_again(error.image_ids),
                first=first,
                deadline=deadline,
                on_missing=on_missing,
                on_deleted=on_deleted,
                stop_early=stop_early,
                top_k=top_k,
                watch=watch,
            )
            return
        except EngineUnavailableError:
            if deadline.milliseconds is None or deadline.left > 0:
                raise
            _stop(active, f"the budget of {deadline.milliseconds:g} ms ended")
        except EdjeError:
            raise
        except Exception as error:
            _log.warning("scoring failed; the first stage's order stands", exc_info=True)
            _stop(active, f"the reranker failed: {type(error).__name__}: {_first_line(error)}")
        finally:
            if ahead is not None:
                ahead.drop()
        if failed:
            _assign_failures(queries, failed)
        yield queries

    def _within(self, seconds: float, queries: int) -> int:
        """Return how many candidates of each active query are scored in that time, at least one."""
        possible = self._pace.pairs_in(seconds) or 0
        return max(possible, _SMALLEST, queries) // queries

    def _affordable(self, queries: int, deadline: Deadline, limit: int) -> int:
        """Return how many more candidates of each active query to score now; 0 ends scoring."""
        if deadline.milliseconds is None:
            return limit
        left = deadline.left
        if left <= 0:
            return 0
        smallest = max(1, _SMALLEST // queries)
        possible = self._pace.pairs_in(_PLANNED * left)
        if possible is None:
            return min(limit, smallest)
        if possible // queries >= smallest:
            return min(limit, possible // queries)
        if (self._pace.pairs_in(left) or 0) >= smallest * queries:
            return min(limit, smallest)
        self._pace.relax()
        return 0

    def _score_slice(
        self,
        spans: Sequence[_Span],
        failed: dict[str, StoreError],
        on_missing: OnMissing,
        on_deleted: OnDeleted,
        watch: Stopwatch,
        ahead: ReadAhead | None,
        following: int,
    ) -> None:
        """Score candidates in place; add those whose tokens cannot be read to `failed`."""
        began = time.perf_counter()
        watch.start("fetch")
        candidates = JoinedCandidates([(q.candidates, start, stop) for q, start, stop in spans])
        texts = [query.text for query, start, stop in spans for _ in range(start, stop)]
        read = partial(self._read, candidates)
        if ahead is not None:
            read = partial(ahead.take, spans[0].start, spans[-1].stop)
        whole = _tokens_of_all(read, failed, on_missing, on_deleted)
        if ahead is not None and whole is not None:
            ahead.begin(spans[-1].stop, spans[-1].stop + following)
        if whole is not None:
            watch.start("rerank")
            # If payloads are not read yet, they are read while the device scores. Only some
            # rerankers have the argument.
            later: dict[str, Any] = {}
            if not candidates.has_payloads and _takes_queued(self._reranker):
                later["queued"] = candidates.read_payloads
            logits = self._reranker.score_pairs(texts, whole, **later)
        else:
            ids = [candidate.image_id for candidate in candidates]
            known, tokens, more = readable(
                [at for at, image_id in enumerate(ids) if image_id not in failed],
                ids.__getitem__,
                lambda places: self._read([candidates[at] for at in places]),
            )
            for error in more.values():
                _check_allowed(error, on_missing, on_deleted)
            failed.update(more)
            watch.start("rerank")
            logits = np.full(len(texts), np.nan, np.float32)
            logits[known] = self._reranker.score_pairs([texts[at] for at in known], tokens)
        at = 0
        for query, start, stop in spans:
            query.logits[start:stop] = logits[at : at + stop - start]
            query.processed = stop
            at += stop - start
        self._pace.observe(len(texts), time.perf_counter() - began)


def _tokens_of_all(
    read: Callable[[], Tokens],
    failed: dict[str, StoreError],
    on_missing: OnMissing,
    on_deleted: OnDeleted,
) -> Tokens | None:
    """Read the tokens of all candidates; None if some have to be left out."""
    if failed:
        return None
    try:
        with paused_collector():  # thousands of candidates are made here
            return read()
    except (TokensNotFoundError, TokensCorruptError) as error:
        _check_allowed(error, on_missing, on_deleted)
        return None


def _check_allowed(error: StoreError, on_missing: OnMissing, on_deleted: OnDeleted) -> None:
    """Raise an error about some candidates, unless they may do without a score."""
    if isinstance(error, ImagesDeletedError):
        if on_deleted == "error":
            raise error
    elif on_missing == "error":
        raise error


def _takes_queued(reranker: PairScorer) -> bool:
    return "queued" in inspect.signature(reranker.score_pairs).parameters


def best_first(keys: NDArray[np.floating[Any]]) -> list[int]:
    """Sort rows by `(n,)` keys, highest first, equal keys in order; NaN rows keep their place."""
    # NaN sorts behind all numbers.
    best: list[int] = np.argsort(-keys, kind="stable").tolist()
    missing = np.isnan(keys)
    if not missing.any():
        return best
    known = iter(best)
    return [row if gone else next(known) for row, gone in enumerate(missing.tolist())]


def _slices(active: Sequence[ScoredQuery], count: int, most: int) -> Iterator[list[_Span]]:
    """Yield the next `count` candidates of each query, in slices of at most `most` candidates."""
    spans: list[_Span] = []
    room = most
    for query in active:
        start, end = query.processed, min(query.processed + count, len(query.candidates))
        while start < end:
            stop = min(start + room, end)
            spans.append(_Span(query, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield spans
                spans, room = [], most
    if spans:
        yield spans


def _stop(active: Sequence[ScoredQuery], reason: str) -> None:
    for query in active:
        if not query.is_complete:
            query.stop_reason = reason


def _assign_failures(queries: Sequence[ScoredQuery], failed: dict[str, StoreError]) -> None:
    """Record at each query which of its processed candidates failed, or were deleted."""
    deleted = {i for i, error in failed.items() if isinstance(error, ImagesDeletedError)}
    for query in queries:
        ids = [candidate.image_id for candidate in query.candidates[: query.processed]]
        query.deleted = frozenset(row for row, each in enumerate(ids) if each in deleted)
        query.failed = {i: failed[i] for i in ids if i in failed and i not in deleted}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
