"""One search, step by step: encode, find candidates, score them, rank them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edje_qdrant.collection.collection import ImageCollection, user_payload
from edje_qdrant.collection.references import in_order
from edje_qdrant.errors import ConfigError, ImageReadError, StoreError
from edje_qdrant.images import image_file_id
from edje_qdrant.index import Strategy, check_group_field, field_value
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.queries import ImageQuery, encode_query
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.rerank.token_cache import DeviceTokenCache
from edje_qdrant.search.cursor import Cursor
from edje_qdrant.search.deadline import Deadline
from edje_qdrant.search.groups import grouped
from edje_qdrant.search.options import SearchOptions, SearchSettings
from edje_qdrant.search.ranking import hits_of, in_first_stage_order, why_degraded
from edje_qdrant.search.results import SearchHit, SearchResult
from edje_qdrant.search.scorer import CandidateScorer, Scored
from edje_qdrant.types import Candidate, Timings

__all__ = ["SearchSteps"]


class SearchSteps:
    """Carry out searches whose arguments have been checked; `TwoStageRetriever` documents them.

    Args:
        collection: Where to search.
        model: Encodes.
        reranker: Scores candidates.
        token_cache: Keeps tokens of hot images.
    """

    def __init__(
        self,
        collection: ImageCollection,
        model: EDJEModel,
        reranker: Reranker,
        token_cache: DeviceTokenCache | None = None,
    ) -> None:
        self._collection = collection
        self._model = model
        self.scorer = CandidateScorer(collection, model, reranker, token_cache)

    def settings(self, options: SearchOptions) -> SearchSettings:
        """Check options, also against what the model can do.

        Raises:
            ConfigError: One cannot be used.
        """
        settings = SearchSettings(**options)
        if settings.group_by is not None:
            check_group_field(settings.group_by)
        if self._model.calibration is None:
            for name, asked in (
                ("adaptive=True", settings.adaptive),
                ('min_score="auto"', settings.min_score == "auto"),
            ):
                if asked:
                    raise ConfigError(
                        f"{name} needs a calibration, and the model "
                        f"{self._model.name_or_path or ''} has none; run edje-qdrant calibrate "
                        "with images and captions like those that will be searched"
                    )
        return settings

    def search(
        self, texts: Sequence[str], settings: SearchSettings, deadline: Deadline
    ) -> list[SearchResult]:
        """Search for texts, all at once."""
        began = time.perf_counter()
        embeddings = self._model.encode_texts(texts)
        encoded = time.perf_counter()
        found = self._collection.nearest(
            embeddings,
            settings.num_candidates,
            filter=settings.filter,
            timeout=_seconds(deadline),
        )
        spent = (encoded - began, time.perf_counter() - encoded)
        return self._ranked(texts, embeddings, found, settings, deadline, spent)

    async def search_async(
        self, text: str, settings: SearchSettings, deadline: Deadline
    ) -> SearchResult:
        """Search for a text while the event loop goes on."""
        began = time.perf_counter()
        embeddings = await asyncio.to_thread(self._model.encode_texts, [text])
        encoded = time.perf_counter()
        found = await self._collection.nearest_async(
            embeddings,
            settings.num_candidates,
            filter=settings.filter,
            timeout=_seconds(deadline),
        )
        spent = (encoded - began, time.perf_counter() - encoded)
        (result,) = await asyncio.to_thread(
            self._ranked, [text], embeddings, found, settings, deadline, spent
        )
        return result

    def search_by_image(self, image: ImageQuery, settings: SearchSettings) -> SearchResult:
        """Search for what looks like an image, by the first stage alone."""
        began = time.perf_counter()
        embeddings = encode_query(self._model, image).embeddings
        encoded = time.perf_counter()
        found = self._collection.nearest(
            embeddings, settings.num_candidates, filter=settings.filter
        )
        candidates = self._grouped(embeddings, found[0], settings)
        spent = (encoded - began, time.perf_counter() - encoded)
        name = str(image) if isinstance(image, str | Path) else "an image"
        return self._first_stage(name, candidates, settings, spent)

    def recommend(
        self,
        liked: Sequence[str],
        disliked: Sequence[str],
        text: str | None,
        strategy: Strategy,
        settings: SearchSettings,
    ) -> SearchResult:
        """Search for what is like some images and unlike others, and rank it by a text."""
        began = time.perf_counter()
        candidates = self._collection.recommend(
            liked, disliked, settings.num_candidates, filter=settings.filter, strategy=strategy
        )
        found = time.perf_counter()
        spent = (0.0, found - began)
        if text is None:
            return self._first_stage("", candidates, settings, spent)
        scored, fetching = self._score([text], [candidates], settings, Deadline(None))
        behind = time.perf_counter() - found
        return self._result(text, candidates, scored[0], settings, (*spent, fetching, behind))

    def score(self, text: str, image_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score known images, `(n,)` logits."""
        payloads = self._collection.index.retrieve([*dict.fromkeys(image_ids)], tokens=False)
        rows = zip(image_ids, in_order(image_ids, payloads), strict=True)
        candidates = [Candidate(image_id, 0.0, 1, payload) for image_id, payload in rows]
        scored, _ = self._score([text], [candidates], SearchSettings(), Deadline(None))
        if scored[0].cut is not None:
            raise StoreError(f"not all images could be scored: {scored[0].cut}")
        return scored[0].logits

    def picture(
        self, image_id: str, image: Image.Image | str | Path | None
    ) -> Image.Image | str | Path:
        """Return an image of the collection, or where it is: what was given, or its own file."""
        payloads = self._collection.index.retrieve([image_id], tokens=False)
        (payload,) = in_order([image_id], payloads)
        if image is not None:
            return image
        path = payload.get("path")
        if not isinstance(path, str):
            raise ImageReadError(
                image_id, "its payload names no file under 'path'; pass the image with image="
            )
        if image_file_id(path) != image_id:
            raise ImageReadError(
                path,
                f"the file holds another image than {image_id} by now; ingest it again, or pass "
                "the image with image=",
            )
        return path

    def page(self, cursor: Cursor, top_k: int) -> SearchResult:
        """Go on where an earlier result ended."""
        began = time.perf_counter()
        if cursor.source != self._collection.identity:
            raise ConfigError(
                f"the cursor is of the collection {cursor.source.split(' ')[0]!r}, and this is "
                f"{self._collection.name!r}, or was written by another model: search again"
            )
        image_ids = [place.image_id for place in cursor.places]
        payloads = self._collection.index.retrieve(image_ids, tokens=False)
        left = [place for place in cursor.places if place.image_id in payloads]
        hits = []
        for rank, place in enumerate(left, start=cursor.rank):
            payload = user_payload(payloads[place.image_id])
            group = None if cursor.group_by is None else field_value(payload, cursor.group_by)
            hits.append(
                SearchHit(
                    image_id=place.image_id,
                    score=place.score,
                    rank=rank,
                    retrieval_score=place.retrieval_score,
                    retrieval_rank=place.retrieval_rank,
                    payload=payload,
                    probability=place.probability,
                    fusion_score=place.fusion_score,
                    group=group,
                )
            )
        return SearchResult(
            query=cursor.query,
            hits=tuple(hits[:top_k]),
            remaining=tuple(hits[top_k:]),
            timings=Timings(0, 1000 * (time.perf_counter() - began), 0, 0),
            degraded=cursor.degraded,
            reason=cursor.reason,
            candidates=cursor.candidates,
            scored=cursor.scored,
            group_by=cursor.group_by,
            source=cursor.source,
        )

    def _ranked(
        self,
        texts: Sequence[str],
        embeddings: NDArray[np.float32],
        found: Sequence[Sequence[Candidate]],
        settings: SearchSettings,
        deadline: Deadline,
        spent: tuple[float, float],
    ) -> list[SearchResult]:
        """Score and rank every query's candidates.

        Args:
            texts: `q` queries.
            embeddings: `(q, d)`, theirs.
            found: Candidates of each.
            settings: What was asked for.
            deadline: When to end.
            spent: Seconds that encoding and the first stage took so far.
        """
        began = time.perf_counter()
        if settings.group_by is not None:
            found = [
                self._grouped(embeddings[row : row + 1], candidates, settings)
                for row, candidates in enumerate(found)
            ]
        regrouped = time.perf_counter()
        scored, fetching = self._score(texts, found, settings, deadline)
        share = 1 / len(texts)
        seconds = (
            spent[0] * share,
            (spent[1] + regrouped - began) * share,
            fetching * share,
            (time.perf_counter() - regrouped) * share,
        )
        return [
            self._result(text, candidates, own, settings, seconds)
            for text, candidates, own in zip(texts, found, scored, strict=True)
        ]

    def _score(
        self,
        texts: Sequence[str],
        found: Sequence[Sequence[Candidate]],
        settings: SearchSettings,
        deadline: Deadline,
    ) -> tuple[list[Scored], float]:
        return self.scorer.score(
            texts,
            found,
            deadline=deadline,
            on_missing=settings.on_missing,
            stop_early=self._model.calibration if settings.adaptive else None,
            top_k=settings.top_k,
        )

    def _grouped(
        self,
        embedding: NDArray[np.float32],
        candidates: Sequence[Candidate],
        settings: SearchSettings,
    ) -> list[Candidate]:
        """Return candidates of enough groups; those given, where nothing groups them."""
        if settings.group_by is None:
            return [*candidates]
        return grouped(
            candidates,
            field=check_group_field(settings.group_by),
            groups=settings.top_k,
            num_candidates=settings.num_candidates,
            filter=settings.filter,
            again=lambda filter, count: self._collection.nearest(embedding, count, filter=filter)[
                0
            ],
        )

    def _result(
        self,
        text: str,
        candidates: Sequence[Candidate],
        scored: Scored,
        settings: SearchSettings,
        seconds: tuple[float, float, float, float],
    ) -> SearchResult:
        """Rank; `seconds` are those of encoding, first stage, fetching, and all after the first."""
        hits = hits_of(candidates, scored, settings, self._model.calibration)
        encode, retrieve, fetch, behind = (1000 * s for s in seconds)
        reason = why_degraded(scored, len(candidates))
        return SearchResult(
            query=text,
            hits=hits[: settings.top_k],
            remaining=hits[settings.top_k :],
            timings=Timings(encode, retrieve, fetch, behind - fetch),
            degraded=reason is not None,
            reason=reason,
            candidates=len(candidates),
            scored=int(np.count_nonzero(~np.isnan(scored.logits))),
            group_by=settings.group_by,
            source=self._collection.identity,
        )

    def _first_stage(
        self,
        query: str,
        candidates: Sequence[Candidate],
        settings: SearchSettings,
        spent: tuple[float, float],
    ) -> SearchResult:
        """Return candidates as hits, as the first stage ranks them."""
        hits = in_first_stage_order(candidates, settings.group_by)
        return SearchResult(
            query=query,
            hits=hits[: settings.top_k],
            remaining=hits[settings.top_k :],
            timings=Timings(1000 * spent[0], 1000 * spent[1], 0, 0),
            candidates=len(candidates),
            group_by=settings.group_by,
            source=self._collection.identity,
        )


def _seconds(deadline: Deadline) -> float | None:
    return None if deadline.milliseconds is None else max(deadline.left, 0.0)
