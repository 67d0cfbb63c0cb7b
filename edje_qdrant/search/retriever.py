"""Search in two stages: the index finds candidates, the joint encoder ranks them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Unpack

from edje_qdrant.checks import check_number, check_texts
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.explain.explanation import Explanation
from edje_qdrant.explain.match import explain_match
from edje_qdrant.index import Filter, Strategy
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.named import model_for
from edje_qdrant.model.queries import ImageQuery
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.rerank.token_cache import DeviceTokenCache
from edje_qdrant.search.cursor import decode_cursor
from edje_qdrant.search.deadline import Deadline
from edje_qdrant.search.options import Fusion, MinScore, OnMissing, SearchOptions, SearchSettings
from edje_qdrant.search.pipeline import SearchSteps
from edje_qdrant.search.results import SearchResult

__all__ = ["OnMissing", "TwoStageRetriever"]

# Texts encoded and searched for at a time.
_QUERIES = 256

# Images that a search by image finds at least, for further pages.
_BEHIND = 100


class TwoStageRetriever:
    """Find images by text.

    Args:
        collection: Where to search; `close` closes it.
        model: The one that wrote the collection.
        reranker: Scores candidates; one of the model's with default settings where none is given.
        token_cache: Keeps tokens of hot images in memory, of this collection and others.

    Raises:
        ContractMismatchError: Another model wrote the collection.
        ConfigError: The cache is too small for an image of the collection.

    Examples:
        >>> with TwoStageRetriever.open("photos") as retriever:
        ...     for hit in retriever.search("a red kite over a frozen lake", top_k=5):
        ...         print(hit.rank, hit.retrieval_rank, hit.payload["path"])
    """

    def __init__(
        self,
        collection: ImageCollection,
        model: EDJEModel,
        *,
        reranker: Reranker | None = None,
        token_cache: DeviceTokenCache | None = None,
    ) -> None:
        collection.require(model.contract())
        self._collection = collection
        self._model = model
        self._steps = SearchSteps(collection, model, reranker or Reranker(model), token_cache)

    @classmethod
    def open(
        cls,
        location: Any,
        name: str = "images",
        *,
        model: EDJEModel | str | Path | None = None,
        device: str | torch.device | None = None,
        token_cache: DeviceTokenCache | None = None,
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
            token_cache: Keeps tokens of hot images in memory.
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
            model = model_for(collection, model, device=device)
            return cls(collection, model, token_cache=token_cache)
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
        filter: Filter | None = None,
        fusion: Fusion = "rerank",
        fusion_weights: tuple[float, float] | None = None,
        group_by: str | None = None,
        budget_ms: float | None = None,
        adaptive: bool = False,
        min_score: MinScore | None = None,
        on_missing: OnMissing = "error",
    ) -> SearchResult:
        """Find the images that a text fits best.

        Where the reranker fails, or memory does not suffice for a single pair, the result is
        `degraded`: what was not scored follows what was, in the first stage's order.

        Args:
            text: What the image shows.
            top_k: Hits to return; fewer where the collection holds fewer images. The result's
                `next` and `cursor` go on to the other candidates.
            num_candidates: Images of the first stage to rerank.
            filter: Which images to look among: `{"album": "2024", "year": [2023, 2024]}`, or a
                `qdrant_client.models.Filter`.
            fusion: What ranks images: `"rerank"`, the joint encoder's score alone; `"rrf"`, the
                reciprocal ranks of both stages; `"blend"`, the mean of both stages' standardised
                scores.
            fusion_weights: Of the first stage and of the joint encoder, for `"rrf"` and `"blend"`.
            group_by: A payload field, such as a video's or a book's name: of the images that
                share its value only the best is returned, and no group crowds out the others.
            budget_ms: Milliseconds for the whole search. Candidates are scored best first until
                they end; what was not scored by then follows in the first stage's order, and the
                result is `degraded`.
            adaptive: Stop scoring once candidates further back can hardly matter any more, as the
                model's calibration tells; these follow in the first stage's order.
            min_score: Leave out hits with a lower logit, and what has none; `"auto"` for the cutoff
                of the model's calibration.
            on_missing: What becomes of candidates whose tokens are missing or damaged, which are
                never scored: `"error"` raises; with `"first_stage"` they keep their first-stage
                place, with no score, and the result is `degraded` and says why.

        Returns:
            Hits, best first, equal scores in the first stage's order; none where the collection
            is empty, or holds nothing that the filter lets through.

        Raises:
            ConfigError: The text has no word in it, or an option cannot be used.
            TokensNotFoundError: Candidates' tokens are gone; names the ids.
            TokensCorruptError: Candidates' tokens are damaged; names the ids.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached, or not within the budget.
            CheckpointError: The joint encoder gives scores that are not numbers.
        """
        return self.search_batch(
            [text],
            top_k=top_k,
            num_candidates=num_candidates,
            filter=filter,
            fusion=fusion,
            fusion_weights=fusion_weights,
            group_by=group_by,
            budget_ms=budget_ms,
            adaptive=adaptive,
            min_score=min_score,
            on_missing=on_missing,
        )[0]

    def search_batch(
        self, texts: Sequence[str], **options: Unpack[SearchOptions]
    ) -> list[SearchResult]:
        """Do many searches at once, which is faster than one after another.

        The texts are encoded together, asked of the engine in one request, and their candidates
        scored together.

        Args:
            texts: Any number of texts.
            options: As `search`, for every text; a budget is for them all.

        Returns:
            One result a text, in order; stages done together are shared out in its timings.

        Raises:
            ConfigError: As `search`, for any of the texts; nothing was searched.
            StoreError: As `search`.
            EngineUnavailableError: As `search`.
        """
        check_texts("texts", texts)
        settings = self._steps.settings(options)
        deadline = Deadline(settings.budget_ms)
        results: list[SearchResult] = []
        for start in range(0, len(texts), _QUERIES):
            results += self._steps.search(texts[start : start + _QUERIES], settings, deadline)
        return results

    def check_options(self, **options: Unpack[SearchOptions]) -> SearchSettings:
        """Return the options of a search with all defaults, without searching.

        Raises:
            ConfigError: One cannot be used, as `search` would say.
        """
        return self._steps.settings(options)

    async def asearch(self, text: str, **options: Unpack[SearchOptions]) -> SearchResult:
        """Do as `search` does, while the event loop goes on.

        The model works in another thread; a server is asked through `AsyncQdrantClient`. The
        embedded engine holds the interpreter's lock for the milliseconds that it takes.

        Args:
            text: What the image shows.
            options: As `search`.

        Raises:
            ConfigError: As `search`.
            StoreError: As `search`.
            EngineUnavailableError: As `search`.
        """
        check_texts("the query", [text])
        settings = self._steps.settings(options)
        return await self._steps.search_async(text, settings, Deadline(settings.budget_ms))

    def search_by_image(
        self,
        image: ImageQuery,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        group_by: str | None = None,
    ) -> SearchResult:
        """Find the images that look most like one, by the first stage alone.

        Args:
            image: An image that Pillow opened, a path, or an `ImageEncoding` of one image; it
                need not be in the collection.
            top_k: Hits to return.
            filter: As `search`.
            group_by: As `search`.

        Returns:
            Hits with no `score`, by cosine.

        Raises:
            ImageReadError: The file is no image that can be read.
            ConfigError: An option cannot be used.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        settings = SearchSettings(
            top_k=top_k, num_candidates=max(top_k, _BEHIND), filter=filter, group_by=group_by
        )
        return self._steps.search_by_image(image, settings)

    def recommend(
        self,
        liked: Sequence[str],
        disliked: Sequence[str] = (),
        *,
        text: str | None = None,
        top_k: int = 10,
        num_candidates: int = 100,
        filter: Filter | None = None,
        strategy: Strategy = "average_vector",
        on_missing: OnMissing = "error",
    ) -> SearchResult:
        """Find more images like some of the collection's, and unlike others.

        Args:
            liked: Ids to come near to; more like one image is `recommend([image_id])`.
            disliked: Ids to keep away from.
            text: What the images should show as well: the joint encoder ranks the candidates by
                it. Without it the first stage ranks them, and they have no `score`.
            top_k: Hits to return; the examples are not among them.
            num_candidates: Images of the first stage to take, and to rerank by the text.
            filter: As `search`.
            strategy: `"average_vector"` looks near the average of what is liked, pushed away from
                what is disliked; `"best_score"` compares with each example, and takes disliked ones
                alone too.
            on_missing: As `search`.

        Raises:
            ConfigError: An id is not in the collection, or both liked and disliked; or an option
                cannot be used.
            StoreError: As `search`.
            EngineUnavailableError: As `search`.
        """
        settings = SearchSettings(
            top_k=top_k, num_candidates=num_candidates, filter=filter, on_missing=on_missing
        )
        if text is not None:
            check_texts("the query", [text])
        return self._steps.recommend(liked, disliked, text, strategy, settings)

    def score(self, text: str, image_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score a text against images of the collection, whatever the first stage thinks of them.

        Args:
            text: What the images may show.
            image_ids: `n` ids.

        Returns:
            `(n,)` logits, in order; higher is better.

        Raises:
            ConfigError: The text has no word in it, or an id is none.
            TokensNotFoundError: Images are not in the collection, or have no tokens; names them.
            TokensCorruptError: Images' tokens are damaged; names the ids.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        check_texts("the query", [text])
        if isinstance(image_ids, str):
            raise ConfigError(f"image_ids is the text {image_ids!r}; give a list of ids")
        return self._steps.score(text, image_ids)

    def explain(
        self, text: str, image_id: str, *, image: Image.Image | str | Path | None = None
    ) -> Explanation:
        """Say which regions of an image, and which words of the text, carry their match.

        The image itself is needed, as stored tokens do not say where in it they come from.

        Args:
            text: What was searched for.
            image_id: An image of the collection.
            image: The image; by default the file that its payload's `path` names.

        Returns:
            Heat over the image, for the whole text and for each word; see `Explanation`. Its
            `score` is that of exact tokens, which a codec may have rounded in the collection.

        Raises:
            TokensNotFoundError: The image is not in the collection.
            ImageReadError: Its file is gone, cannot be read, or holds another image by now.
            ConfigError: The text has no word in it, or the encoder cannot be explained.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        check_texts("the query", [text])
        return explain_match(self._model, text, self._steps.picture(image_id, image))

    def resume(self, cursor: str, *, top_k: int = 10) -> SearchResult:
        """Return the next page of an earlier search, perhaps another process's.

        Nothing is searched or scored again. Images deleted since are left out.

        Args:
            cursor: The `cursor` of that search's result, or of its last page.
            top_k: Hits of the page, at most.

        Raises:
            ConfigError: The cursor is damaged, or of another collection; or `top_k` is below 1.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        check_number("top_k", top_k)
        return self._steps.page(decode_cursor(cursor), top_k)

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
