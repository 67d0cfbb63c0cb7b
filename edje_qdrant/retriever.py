"""Search in two stages: the index finds candidates, the joint encoder ranks them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edje_qdrant.collection import ImageCollection, user_payload
from edje_qdrant.collection_reading import readable
from edje_qdrant.decoding import TokenDecoder
from edje_qdrant.encoders import clean_caption
from edje_qdrant.errors import (
    CheckpointError,
    ConfigError,
    StoreError,
)
from edje_qdrant.model import EDJEModel
from edje_qdrant.reranker import Reranker
from edje_qdrant.tokens.protocol import StoredCodes
from edje_qdrant.types import Candidate, SearchHit, SearchResult, Timings

__all__ = ["OnMissing", "TwoStageRetriever", "load_named_model"]

#: What becomes of candidates whose tokens are missing or damaged.
OnMissing = Literal["error", "first_stage"]

# Bounds on what one step of a batch holds in memory.
_QUERIES = 256
_TOKEN_BYTES = 256 << 20


class TwoStageRetriever:
    """Find pictures by text.

    Args:
        collection: Where to search; `close` closes it.
        model: The one that wrote the collection.
        reranker: Scores candidates; one of the model's with default settings where none is given.

    Raises:
        ContractMismatchError: Another model wrote the collection.

    Example:
        >>> with TwoStageRetriever.open("photos") as retriever:
        ...     for hit in retriever.search("a red kite over a frozen lake", top_k=5):
        ...         print(hit.rank, hit.retrieval_rank, hit.payload["path"])
    """

    def __init__(
        self, collection: ImageCollection, model: EDJEModel, *, reranker: Reranker | None = None
    ) -> None:
        collection.require(model.contract())
        self._collection = collection
        self._model = model
        self._reranker = reranker or Reranker(model)
        contract = collection.contract
        self._decoders: dict[str, TokenDecoder] = {}
        self._pairs_at_once = max(1, _TOKEN_BYTES // (2 * contract.num_tokens * contract.token_dim))

    @classmethod
    def open(
        cls,
        location: Any,
        name: str = "images",
        *,
        model: EDJEModel | str | Path | None = None,
        device: str | torch.device | None = None,
        tokens_folder: str | Path | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        timeout: int = 30,
    ) -> TwoStageRetriever:
        """Open a collection with the model that wrote it.

        Args:
            location: A folder, `"http://..."`, `"https://..."` or a `QdrantClient`.
            name: The collection's.
            model: A model, or what `EDJEModel.from_pretrained` takes; by default what the
                collection's contract names.
            device: Where a model that is loaded here goes; CUDA where there is one, by default.
            tokens_folder: Where side files outside the collection's folder have moved to.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            timeout: Seconds to wait for one answer of a server.

        Raises:
            CollectionNotFoundError: There is no such collection.
            CollectionLockedError: Another process has the folder open.
            ContractMismatchError: The model is not the one that wrote the collection.
            CheckpointError: The model cannot be loaded.
            ConfigError: An argument cannot be used, or no model is named.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        collection = ImageCollection.open(
            location,
            name,
            tokens_folder=tokens_folder,
            api_key=api_key,
            prefer_grpc=prefer_grpc,
            timeout=timeout,
        )
        try:
            if model is None:
                model = load_named_model(collection, device=device)
            elif not isinstance(model, EDJEModel):
                model = EDJEModel.from_pretrained(model, device=device)
            return cls(collection, model)
        except BaseException:
            collection.close()
            raise

    @property
    def collection(self) -> ImageCollection:
        """Return the collection searched."""
        return self._collection

    @property
    def model(self) -> EDJEModel:
        """Return the model that encodes and scores."""
        return self._model

    def search(
        self,
        text: str,
        *,
        top_k: int = 10,
        num_candidates: int = 100,
        on_missing: OnMissing = "error",
    ) -> SearchResult:
        """Find the pictures that a text fits best.

        Args:
            text: What the picture shows.
            top_k: Hits to return; fewer where the collection holds fewer pictures.
            num_candidates: Pictures of the first stage to rerank.
            on_missing: What becomes of candidates whose tokens are missing or damaged, which are
                never scored: `"error"` raises; with `"first_stage"` they keep their first-stage
                place, with no score, and the result is `degraded` and says why.

        Returns:
            Hits, best first, equal scores in the first stage's order; none where the collection
            is empty.

        Raises:
            ConfigError: The text has no word in it, `top_k` is below 1, or `num_candidates` is
                below `top_k`.
            TokensNotFoundError: Candidates' tokens are gone; names the ids.
            TokensCorruptError: Candidates' tokens are damaged; names the ids.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        return self.search_batch(
            [text], top_k=top_k, num_candidates=num_candidates, on_missing=on_missing
        )[0]

    def search_batch(
        self,
        texts: Sequence[str],
        *,
        top_k: int = 10,
        num_candidates: int = 100,
        on_missing: OnMissing = "error",
    ) -> list[SearchResult]:
        """Do many searches at once, which is faster than one after another.

        Args:
            texts: Any number of texts.
            top_k: Hits a text.
            num_candidates: Pictures of the first stage to rerank for each text.
            on_missing: As `search`.

        Returns:
            One result a text, in order; stages done together are shared out in its timings.

        Raises:
            ConfigError: As `search`, for any of the texts; nothing was searched.
            StoreError: As `search`.
            EngineUnavailableError: As `search`.
        """
        _check(texts, top_k, num_candidates, on_missing)
        results: list[SearchResult] = []
        for start in range(0, len(texts), _QUERIES):
            part = texts[start : start + _QUERIES]
            results += self._search(part, top_k, num_candidates, on_missing)
        return results

    def close(self) -> None:
        """Close the collection; a second call does nothing."""
        self._collection.close()

    def __enter__(self) -> TwoStageRetriever:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _search(
        self, texts: Sequence[str], top_k: int, num_candidates: int, on_missing: OnMissing
    ) -> list[SearchResult]:
        began = time.perf_counter()
        embeddings = self._model.encode_texts(texts)
        encoded = time.perf_counter()
        found = self._collection.search(embeddings, num_candidates)
        retrieved = time.perf_counter()
        scores, failed, fetching = self._score(texts, found, on_missing)
        reranked = time.perf_counter()
        share = 1000 / len(texts)
        timings = Timings(
            encode=(encoded - began) * share,
            retrieve=(retrieved - encoded) * share,
            fetch=fetching * share,
            rerank=(reranked - retrieved - fetching) * share,
        )
        results = []
        for text, candidates in zip(texts, found, strict=True):
            own, scores = scores[: len(candidates)], scores[len(candidates) :]
            missing = [c.image_id for c in candidates if c.image_id in failed]
            reason = _reason(missing, len(candidates), failed) if missing else None
            hits = _ranked(candidates, own, top_k)
            results.append(SearchResult(text, hits, timings, bool(missing), reason))
        return results

    def _score(
        self,
        texts: Sequence[str],
        found: Sequence[Sequence[Candidate]],
        on_missing: OnMissing,
    ) -> tuple[NDArray[np.float32], dict[str, StoreError], float]:
        """Score every query's candidates, end to end.

        Returns:
            Scores, NaN where there is none; id -> error of pictures without; and the seconds that
            fetching took.
        """
        asked = [text for text, candidates in zip(texts, found, strict=True) for _ in candidates]
        flat = [candidate for candidates in found for candidate in candidates]
        scores = np.full(len(flat), np.nan, np.float32)
        failed: dict[str, StoreError] = {}
        fetching = 0.0
        for start in range(0, len(flat), self._pairs_at_once):
            part = flat[start : start + self._pairs_at_once]
            began = time.perf_counter()
            read, tokens = self._tokens(part, on_missing, failed)
            fetching += time.perf_counter() - began
            rows = [start + row for row in read]
            scores[rows] = self._reranker.score_pairs([asked[row] for row in rows], tokens)
        return scores, failed, fetching

    def _tokens(
        self, candidates: Sequence[Candidate], on_missing: OnMissing, failed: dict[str, StoreError]
    ) -> tuple[list[int], torch.Tensor]:
        """Return which candidates' tokens can be read, and these tokens, on the model's device."""
        rows = [row for row, c in enumerate(candidates) if c.image_id not in failed]

        def read(left: list[int]) -> list[StoredCodes]:
            return self._collection.codes([candidates[row] for row in left])

        if on_missing == "error":
            return rows, self._decoded(read(rows), len(rows))
        rows, parts, unread = readable(rows, lambda row: candidates[row].image_id, read)
        failed.update(unread)
        return rows, self._decoded(parts, len(rows))

    def _decoded(self, parts: Sequence[StoredCodes], count: int) -> torch.Tensor:
        """Decode on the model's device, so that only codes are copied to it."""
        device = self._model.device
        for part in parts:
            if part.codec.key not in self._decoders:
                self._decoders[part.codec.key] = TokenDecoder(part.codec, device)
        if len(parts) == 1:
            return self._decoders[parts[0].codec.key](parts[0].codes)
        contract = self._collection.contract
        shape = (count, contract.num_tokens, contract.token_dim)
        tokens = torch.empty(shape, dtype=torch.float16, device=device)
        for part in parts:
            tokens[torch.from_numpy(part.rows).to(device)] = self._decoders[part.codec.key](
                part.codes
            )
        return tokens


def _ranked(
    candidates: Sequence[Candidate], scores: NDArray[np.float32], top_k: int
) -> tuple[SearchHit, ...]:
    """Rank by score, equal ones in the first stage's order; what has none stays where it was."""
    scored = iter([row for row in np.argsort(-scores, kind="stable") if not np.isnan(scores[row])])
    order = [row if np.isnan(scores[row]) else int(next(scored)) for row in range(len(scores))]
    return tuple(
        SearchHit(
            image_id=candidates[row].image_id,
            score=None if np.isnan(scores[row]) else float(scores[row]),
            rank=rank,
            retrieval_score=candidates[row].score,
            retrieval_rank=candidates[row].rank,
            payload=user_payload(candidates[row].payload),
        )
        for rank, row in enumerate(order[:top_k], start=1)
    )


def _reason(missing: Sequence[str], count: int, failed: Mapping[str, StoreError]) -> str:
    return (
        f"{len(missing)} of {count} candidates could not be scored and keep their first-stage "
        f"place: {failed[missing[0]]}"
    )


def _check(texts: Sequence[str], top_k: int, num_candidates: int, on_missing: OnMissing) -> None:
    """Refuse what cannot be searched for, before anything is done."""
    if isinstance(texts, str):
        raise ConfigError("search_batch takes a list of texts; for one text use search")
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"a query is text, not {type(text).__name__}")
        if not clean_caption(text):
            raise ConfigError(f"the query {text!r} holds no word; say what the picture shows")
    for name, number in (("top_k", top_k), ("num_candidates", num_candidates)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise ConfigError(f"{name} is {number!r}; give a whole number")
    if on_missing not in ("error", "first_stage"):
        raise ConfigError(f'on_missing is {on_missing!r}; give "error" or "first_stage"')
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; ask for 1 picture or more")
    if num_candidates < top_k:
        raise ConfigError(
            f"num_candidates is {num_candidates} and top_k {top_k}; hits are chosen among the "
            "candidates, so raise num_candidates or lower top_k"
        )


def load_named_model(
    collection: ImageCollection, *, device: str | torch.device | None = None
) -> EDJEModel:
    """Load the model that a collection's contract names.

    Raises:
        ConfigError: It names none.
        CheckpointError: The model cannot be loaded.
    """
    name = collection.contract.model
    what = f"the collection {collection.name!r} at {collection.location}"
    if name is None:
        raise ConfigError(
            f"{what} does not say where the model that wrote it is; pass it with model= (--model)"
        )
    try:
        return EDJEModel.from_pretrained(name, device=device)
    except CheckpointError as error:
        raise CheckpointError(
            f"{what} was written with the model {name!r}, which cannot be loaded ({error}); "
            "if it has moved, say where it is with model= (--model)",
            path=error.path,
            missing=error.missing,
            mismatched=error.mismatched,
        ) from error
