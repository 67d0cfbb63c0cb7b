"""Search in two stages: the index finds candidates, the joint encoder ranks them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Unpack

from edje_qdrant.checks import check_kind, check_list, check_number, check_texts
from edje_qdrant.collection.base import BaseCollection
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.collection.references import in_order, user_payload
from edje_qdrant.errors import ConfigError, ImageReadError, StoreError
from edje_qdrant.images import open_upright
from edje_qdrant.index import (
    WORDS_WEIGHT,
    ByWords,
    Filter,
    InferenceImage,
    Strategy,
    TextQuery,
    field_value,
    image_of,
    text_of,
)
from edje_qdrant.model.onnx.running import OnnxModel, is_exported
from edje_qdrant.rerank.collector import paused_collector
from edje_qdrant.rerank.deadline import Deadline
from edje_qdrant.rerank.scorer import OnMissing, ScoredQuery
from edje_qdrant.rerank.stopwatch import Stopwatch
from edje_qdrant.search.duplicates import Looks
from edje_qdrant.search.groups import diversified
from edje_qdrant.search.options import (
    NUM_CANDIDATES,
    TOP_K,
    SearchOptions,
    check_choice,
    check_milliseconds,
    with_defaults,
)
from edje_qdrant.search.ranking import candidates_as_hits, degraded_reason, rank_candidates
from edje_qdrant.search.results import SearchHit, SearchResult
from edje_qdrant.search.stages import Embeddings, onnx_stages
from edje_qdrant.sources.read import read_image, stored_id
from edje_qdrant.types import Candidate, Candidates, Timings

if TYPE_CHECKING:
    import torch

    from edje_qdrant.explain.explanation import Explanation
    from edje_qdrant.model import EDJEModel
    from edje_qdrant.model.inference.precision import Precision
    from edje_qdrant.model.queries import ImageQuery
    from edje_qdrant.rerank.reranker import Reranker
    from edje_qdrant.rerank.token_cache import DeviceTokenCache

__all__ = ["FirstStage", "TwoStageRetriever"]

#: What the first stage searches.
FirstStage = Literal["auto", "engine", "device"]

# Maximum number of texts encoded and searched at a time.
_QUERIES = 256

# Images that `score` reads within the time limit of one search.
_PER_LIMIT = 1000

# Minimum number of candidates of a search by image, so that there are further pages.
_MIN_CANDIDATES = 100


class TwoStageRetriever:
    """Find images by text.

    Args:
        collection: The collection to search; `close` closes it.
        model: The model that wrote the collection.
        reranker: Scores candidates; by default one with the model and default settings.
        token_cache: Keeps the tokens of frequently found images in memory; several collections can
            share it. `"auto"` makes one if the model is on a GPU, for the whole collection or for
            what a third of the free memory holds (`DeviceTokenCache.automatic`); None for none.
        first_stage: `"engine"` searches the engine. `"device"` reads all embeddings into the memory
            of the model's device and compares them there: exact, and faster on a GPU (see
            `DeviceIndex`). `"auto"` does so if the model is on a GPU with room for them and the
            collection is in a folder.

    Raises:
        ContractMismatchError: Another model wrote the collection.
        ConfigError: The cache is too small for an image of the collection, `first_stage` is
            unknown, or the device has no room for the embeddings.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from edje_qdrant import EDJEModel, ImageCollection, TwoStageRetriever, ingest_images
        >>> folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        >>> for colour in ("red", "blue", "green"):
        ...     Image.new("RGB", (64, 64), colour).save(f"{folder.name}/{colour}.png")
        >>> model = EDJEModel.from_pretrained("demo", device="cpu")
        >>> index = f"{folder.name}/index"
        >>> with ImageCollection.create(index, "images", model.contract()) as collection:
        ...     ingest_images(folder.name, collection, model, progress=False).added
        3
        >>> with TwoStageRetriever.open(index, model=model) as retriever:
        ...     result = retriever.search("a red star above a blue ring", top_k=2)
        >>> [hit.rank for hit in result], result.candidates
        ([1, 2], 3)
        >>> sorted(result[0].payload)
        ['file_size', 'height', 'modified_at', 'path', 'width']
        >>> folder.cleanup()
    """

    def __init__(
        self,
        collection: ImageCollection,
        model: EDJEModel | OnnxModel,
        *,
        reranker: Reranker | None = None,
        token_cache: DeviceTokenCache | Literal["auto"] | None = "auto",
        first_stage: FirstStage = "auto",
    ) -> None:
        check_kind("collection", collection, BaseCollection, "an ImageCollection")
        check_choice("first_stage", first_stage, get_args(FirstStage))
        given: Any = {
            "reranker": reranker,
            "token_cache": token_cache,
            "first_stage": first_stage,
        }
        if isinstance(model, OnnxModel):
            self._stages = onnx_stages(collection, model, **given)
        else:  # the only kind that needs torch
            from edje_qdrant.search.torch_stages import torch_stages

            self._stages = torch_stages(collection, model, **given)
        self._collection, self._scorer = collection, self._stages.scorer

    @classmethod
    def open(
        cls,
        location: Any,
        name: str = "images",
        *,
        model: EDJEModel | OnnxModel | str | Path | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        token_cache: DeviceTokenCache | Literal["auto"] | None = "auto",
        first_stage: FirstStage = "auto",
        tokens_folder: str | Path | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: int = 30,
        compress_reads: bool = False,
    ) -> TwoStageRetriever:
        """Open a collection with the model that wrote it.

        Args:
            location: A folder, `"http://..."`, `"https://..."` or a `QdrantClient`.
            name: Name of the collection.
            model: A model, or what `EDJEModel.from_pretrained` takes; by default the one that the
                collection's contract names.
            device: Device of a model that is loaded here; by default CUDA if available.
            precision: Precision of the joint encoder; see `Reranker`.
            token_cache: Keeps the tokens of frequently found images in memory; see the class.
            first_stage: Where the first stage searches; see the class.
            tokens_folder: New folder of side files that were moved out of the collection's folder.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
            timeout: Seconds to wait for one answer of a server, and for all answers of one search
                together, with retries and pauses.
            compress_reads: Let a server compress what it sends; for networks below 100 MB/s.

        Raises:
            CollectionNotFoundError: There is no such collection.
            CollectionLockedError: Another process has the folder open.
            ContractMismatchError: The model is not the one that wrote the collection.
            CheckpointError: The model cannot be loaded.
            ConfigError: An argument is invalid, or no model is named.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        collection = ImageCollection.open(
            location,
            name,
            tokens_folder=tokens_folder,
            api_key=api_key,
            prefer_grpc=prefer_grpc,
            grpc_port=grpc_port,
            timeout=timeout,
            compress_reads=compress_reads,
        )
        try:
            if isinstance(model, str | Path) and is_exported(model):
                model = OnnxModel.from_files(model)
            reranker = None
            if not isinstance(model, OnnxModel):
                from edje_qdrant.model.named import model_for
                from edje_qdrant.rerank.reranker import Reranker

                model = model_for(collection, model, device=device)
                reranker = Reranker(model, precision=precision)
            elif device is not None or precision not in ("auto", model.precision):
                raise ConfigError(
                    f"device {device!r} and precision {precision!r} are for an EDJEModel; an "
                    f"OnnxModel runs on the CPU, in the precision of its file ({model.precision})"
                )
            return cls(
                collection,
                model,
                reranker=reranker,
                token_cache=token_cache,
                first_stage=first_stage,
            )
        except BaseException:
            collection.close()
            raise

    def __repr__(self) -> str:
        return (
            f"TwoStageRetriever({self._collection!r}, model={self._stages.model_name!r}, "
            f"first_stage={self.first_stage!r}, precision={self.precision!r})"
        )

    @property
    def collection(self) -> ImageCollection:
        """Return the collection searched."""
        return self._collection

    @property
    def model(self) -> EDJEModel:
        """Return the model that encodes and scores.

        Raises:
            ConfigError: The retriever searches with an `OnnxModel`.
        """
        if self._stages.model is None:
            raise ConfigError(
                f"{self._stages.model_name} is exported and only searches and scores; to encode "
                "or explain images, open the collection with the model itself "
                "(EDJEModel.from_pretrained)"
            )
        return self._stages.model

    @property
    def uses_gpu(self) -> bool:
        """Return whether the model is on a GPU."""
        return self._stages.model is not None and self._stages.model.device.type == "cuda"

    @property
    def reranker(self) -> Reranker:
        """Return what scores texts against tokens.

        Raises:
            ConfigError: The retriever searches with an `OnnxModel`.
        """
        _ = self.model
        assert self._stages.reranker is not None
        return self._stages.reranker

    @property
    def precision(self) -> str:
        """Return the precision of the joint encoder; see `Reranker.precision`."""
        return self._stages.precision()

    @property
    def first_stage(self) -> Literal["engine", "device"]:
        """Return where the first stage searches."""
        return "engine" if self._stages.device_index is None else "device"

    def search(self, text: TextQuery, **options: Unpack[SearchOptions]) -> SearchResult:
        """Find the images that fit a text best.

        Images that are deleted while a search runs do not end it: candidates that are gone are
        searched for again, once, or left out.

        If the reranker fails, or memory does not suffice for a single pair, the result is
        `degraded`: images that were not scored follow the scored ones in first-stage order.

        Args:
            text: Description of the image; or a `qdrant_client.models.Document` that holds one and
                names the collection's encoder, which embeds it here.
            options: See `SearchOptions`.

        Returns:
            Hits, best first, equal scores in first-stage order; no hits if the collection is empty
            or no image matches the filter.

        Raises:
            ConfigError: The text contains no word, or an option is invalid.
            TokensNotFoundError: Candidates have no tokens; names the ids.
            TokensCorruptError: Candidates' tokens are damaged; names the ids.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached, or not within the budget.
            CheckpointError: The joint encoder returns scores that are not numbers.
        """
        return self.search_batch(self._texts("text", [text]), **options)[0]

    def search_batch(
        self, texts: Sequence[TextQuery], **options: Unpack[SearchOptions]
    ) -> list[SearchResult]:
        """Search for several texts together, which is faster than one after another.

        The texts are encoded in one batch, sent to the engine in one request, and their candidates
        are scored in common batches.

        Args:
            texts: Any number of texts.
            options: See `SearchOptions`; they apply to every text, `budget_ms` to all together.

        Returns:
            One result for each text, in order; each has an equal share of the timings.

        Raises:
            ConfigError: A text or an option is invalid; nothing was searched.
            StoreError: As `search`.
            EngineUnavailableError: As `search`.
        """
        texts = self._texts("texts", texts)
        settings = self.check_options(**options)
        deadline = Deadline(settings["budget_ms"])
        results: list[SearchResult] = []
        for start in range(0, len(texts), _QUERIES):
            part, watch = texts[start : start + _QUERIES], Stopwatch()
            watch.start("encode")
            embeddings = self._stages.encode(part)  # (q, d)
            watch.start("retrieve")
            with self._limit(deadline, len(part)):
                with paused_collector():
                    found = self._nearest(
                        embeddings,
                        settings["num_candidates"],
                        filter=settings["filter"],
                        timeout=deadline.timeout,
                        words=_words(part, settings),
                    )
                results += self._rank(part, embeddings, found, settings, deadline, watch)
        return results

    def search_stream(
        self, text: TextQuery, *, first_ms: float = 100, **options: Unpack[SearchOptions]
    ) -> Iterator[SearchResult]:
        """Search as `search` does, and yield the ranking so far while candidates are scored.

        Candidates are scored best of the first stage first, in slices. The measured speed of the
        model decides the size of the first one; further ones are up to twice as large each. After
        each slice, the scored candidates are ranked, and the others follow in first-stage order,
        with `score=None`. The last result is that of `search`.

        Args:
            text: Description of the image.
            first_ms: Milliseconds that the first slice is planned to take; it has at least four
                candidates.
            options: See `SearchOptions`.

        Yields:
            The ranking so far; `scored` says how many of the `candidates` have a score. The last
            one is `degraded` if the budget ended or the reranker failed.

        Raises:
            ConfigError: As `search`, or `first_ms` is not above 0; before anything is searched.
            StoreError: As `search`, while the results are read.
            EngineUnavailableError: Likewise.
            CheckpointError: Likewise.
        """
        (text,) = self._texts("text", [text])
        settings = self.check_options(**options)
        check_milliseconds("first_ms", first_ms)
        return self._stream(text, first_ms / 1000, settings)

    def _stream(self, text: str, first: float, settings: SearchOptions) -> Iterator[SearchResult]:
        deadline, watch = Deadline(settings["budget_ms"]), Stopwatch()
        watch.start("encode")
        embeddings = self._stages.encode([text])  # (1, d)
        watch.start("retrieve")
        limit = self._limit(deadline)
        with limit:
            (found,) = self._nearest(
                embeddings,
                settings["num_candidates"],
                filter=settings["filter"],
                timeout=deadline.timeout,
                words=_words([text], settings),
            )
            looks = self._looks(settings)
            scored = self._scored(
                [text], embeddings, [found], settings, deadline, watch, looks, first=first
            )
        (cut,) = self._stages.cut_texts([text])
        for (query,) in _each_within(limit, scored):
            yield self._result(query, settings, watch.timings(), cut, looks)

    async def asearch(self, text: TextQuery, **options: Unpack[SearchOptions]) -> SearchResult:
        """Search without blocking the event loop; see `search`.

        The model runs in another thread; a server is queried through `AsyncQdrantClient`. An
        embedded engine holds the interpreter's lock for the milliseconds that a query takes.

        Args:
            text: Description of the image.
            options: See `SearchOptions`.

        Raises:
            ConfigError: As `search`.
            StoreError: As `search`.
            EngineUnavailableError: As `search`.
        """
        (text,) = self._texts("text", [text])
        settings = self.check_options(**options)
        deadline, watch = Deadline(settings["budget_ms"]), Stopwatch()
        watch.start("encode")
        embeddings = await asyncio.to_thread(self._stages.encode, [text])  # (1, d)
        watch.start("retrieve")
        given: Any = {
            "filter": settings["filter"],
            "timeout": deadline.timeout,
            "words": _words([text], settings),
        }
        count = settings["num_candidates"]
        with self._limit(deadline):
            if not isinstance(embeddings, np.ndarray):
                found = await asyncio.to_thread(self._nearest, embeddings, count, **given)
            else:
                found = await self._collection.nearest_async(embeddings, count, **given)
            (result,) = await asyncio.to_thread(
                self._rank, [text], embeddings, found, settings, deadline, watch
            )
        return result

    def check_options(self, **options: Unpack[SearchOptions]) -> SearchOptions:
        """Return all options of a search, with defaults, without searching.

        Raises:
            ConfigError: An option is invalid, or needs a calibration that the model lacks, or text
                fields that the collection lacks.
        """
        settings = with_defaults(options)
        if settings["hybrid"]:
            self._collection.index.require_words()
        if self._stages.calibration() is None:
            for name, asked in (
                ("adaptive=True", settings["adaptive"]),
                ('min_score="auto"', settings["min_score"] == "auto"),
            ):
                if asked:
                    raise ConfigError(
                        f"{name} needs a calibration, and the model "
                        f"{self._stages.model_name} has none; run edje-qdrant calibrate "
                        "with images and captions like those that will be searched"
                    )
        return settings

    def search_by_image(
        self,
        image: ImageQuery | InferenceImage,
        *,
        top_k: int = TOP_K,
        filter: Filter | None = None,
        group_by: str | None = None,
        collapse_duplicates: bool | float = False,
    ) -> SearchResult:
        """Find the images most similar to an image, with the first stage alone.

        Args:
            image: A Pillow image, a path, or an `ImageEncoding` of one image; it need not be in the
                collection. Or a `qdrant_client.models.Image` that holds a Pillow image, a path or
                base64, and names the collection's encoder.
            top_k: Number of hits to return.
            filter: As in `SearchOptions`.
            group_by: As in `SearchOptions`.
            collapse_duplicates: As in `SearchOptions`.

        Returns:
            Hits without `score`, by cosine.

        Raises:
            ImageReadError: The file is not a readable image.
            ConfigError: An option is invalid.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        check_number("top_k", top_k)
        number = max(top_k, _MIN_CANDIDATES)
        settings = with_defaults(
            {
                "top_k": top_k,
                "num_candidates": number,
                "filter": filter,
                "group_by": group_by,
                "collapse_duplicates": collapse_duplicates,
            }
        )
        model = self.model
        from edje_qdrant.model.queries import encode_query

        held = image_of(image, self._collection.contract.encoder)
        if isinstance(held, bytes):
            held = open_upright(io.BytesIO(held), "in base64")
        watch = Stopwatch()
        watch.start("encode")
        embeddings = encode_query(model, held).embeddings  # (1, d)
        watch.start("retrieve")
        with self._limit():
            found = self._nearest(embeddings, number, filter=filter)[0]
            candidates = self._diversified(embeddings, found, settings)
            looks = self._looks(settings)
            if looks is not None:
                looks.read([candidates])
        name = str(held) if isinstance(held, str | Path) else "an image"
        return self._first_stage_result(name, candidates, settings, watch.timings(), looks)

    def recommend(
        self,
        liked: Sequence[str],
        disliked: Sequence[str] = (),
        *,
        text: str | None = None,
        top_k: int | None = None,
        num_candidates: int = NUM_CANDIDATES,
        filter: Filter | None = None,
        strategy: Strategy = "average_vector",
        on_missing: OnMissing = "error",
        collapse_duplicates: bool | float = False,
    ) -> SearchResult:
        """Find images similar to some images of the collection and different from others.

        Args:
            liked: Ids of similar images; for more like one image, `recommend([image_id])`.
            disliked: Ids of images to stay away from.
            text: Description of the images: the joint encoder ranks the candidates by it. Without
                it the first stage ranks them, and they have no `score`.
            top_k: Number of hits to return; the examples are not among them. By default 10, or
                `num_candidates` if that is less.
            num_candidates: Number of first-stage images to take, and to rerank by the text.
            filter: As in `SearchOptions`.
            strategy: `"average_vector"` searches near the average of the liked images, moved away
                from the disliked ones; `"best_score"` compares with each example, and also works
                with disliked images alone.
            on_missing: As in `SearchOptions`.
            collapse_duplicates: As in `SearchOptions`. Near-duplicates of the examples are hits.

        Raises:
            ImagesNotFoundError: An id is not in the collection.
            ConfigError: An id is both liked and disliked, or an option is invalid.
            StoreError: As `search`.
            EngineUnavailableError: As `search`.
        """
        options: SearchOptions = {
            "num_candidates": num_candidates,
            "filter": filter,
            "on_missing": on_missing,
            "collapse_duplicates": collapse_duplicates,
        }
        settings = with_defaults(options if top_k is None else {**options, "top_k": top_k})
        check_list("liked", liked)
        check_list("disliked", disliked)
        if text is not None:
            check_texts("text", [text])
        watch = Stopwatch()
        watch.start("retrieve")
        looks = self._looks(settings)

        def find() -> Candidates:
            found = self._collection.recommend(
                liked, disliked, num_candidates, filter=filter, strategy=strategy
            )
            if looks is not None:
                looks.read([found])
            return found

        with self._limit():
            candidates = find()
            if text is None:
                return self._first_stage_result("", candidates, settings, watch.timings(), looks)
            (query,) = self._scorer.score_candidates(
                [text],
                [candidates],
                on_missing=on_missing,
                on_deleted="leave_out",
                find_again=lambda _: [find()],
                watch=watch,
            )
        (cut,) = self._stages.cut_texts([text])
        return self._result(query, settings, watch.timings(), cut, looks)

    def score(self, text: str, image_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score a text against images of the collection, without the first stage.

        Args:
            text: Description of the images.
            image_ids: `n` ids.

        Returns:
            `(n,)` logits, in order; higher is better.

        Raises:
            ConfigError: The text contains no word, or an id is invalid.
            TokensNotFoundError: Images are not in the collection, or have no tokens; names them.
            TokensCorruptError: Images' tokens are damaged; names the ids.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        check_texts("text", [text])
        check_list("image_ids", image_ids)
        with self._limit(queries=1 + len(image_ids) // _PER_LIMIT):
            payloads = self._collection.index.retrieve([*dict.fromkeys(image_ids)], tokens=False)
            candidates = [
                Candidate(image_id, 0.0, 1, payload)
                for image_id, payload in zip(image_ids, in_order(image_ids, payloads), strict=True)
            ]
            (query,) = self._scorer.score_candidates([text], [candidates])
        if query.stop_reason is not None:
            raise StoreError(f"not all images could be scored: {query.stop_reason}")
        return query.logits

    def explain(
        self,
        text: str,
        image_id: str | SearchHit,
        *,
        image: Image.Image | str | Path | None = None,
    ) -> Explanation:
        """Show which regions of an image, and which words of a text, carry their match.

        The image itself is needed, as stored tokens do not contain positions in it.

        Args:
            text: The query.
            image_id: An image of the collection: a hit of a search, or an id.
            image: The image; by default the file that `path` in its payload names.

        Returns:
            Heat over the image, for the whole text and for each word; see `Explanation`. Its
            `score` is computed from exact tokens; the collection's codec may have rounded them.

        Raises:
            TokensNotFoundError: The image is not in the collection.
            ImageReadError: Its file is missing, cannot be read, or contains another image now.
            ConfigError: The text contains no word, or the encoder cannot be explained.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        check_texts("text", [text])
        model = self.model
        from edje_qdrant.explain.match import explain_match

        if isinstance(image_id, SearchHit):
            image_id = image_id.image_id
        check_kind("image_id", image_id, str, "a hit of a search, or the id of an image")
        payloads = self._collection.index.retrieve([image_id], tokens=False)
        (payload,) = in_order([image_id], payloads)
        if image is None:
            image = payload.get("path")
            if not isinstance(image, str):
                raise ImageReadError(
                    image_id, "its payload names no file under 'path'; pass the image with image="
                )
            content = read_image(image)  # once: it may change
            if stored_id(image, content) != image_id:
                raise ImageReadError(
                    image,
                    f"the file contains another image than {image_id} now; ingest it again, or "
                    "pass the image with image=",
                )
            image = open_upright(io.BytesIO(content), image)
        return explain_match(model, text, image)

    def resume(self, cursor: str, *, top_k: int = TOP_K) -> SearchResult:
        """Return the next page of an earlier search, possibly of another process.

        Nothing is searched or scored again. Images that were deleted since are left out,
        with the near-duplicates that they stood for.

        Args:
            cursor: The `cursor` of the search's result, or of its last page.
            top_k: Maximum number of hits on the page.

        Raises:
            ConfigError: The cursor is damaged, or of another collection; or `top_k` is below 1.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        check_number("top_k", top_k)
        earlier, watch = SearchResult.from_cursor(cursor), Stopwatch()
        if earlier.source != self._collection.identity:
            raise ConfigError(
                f"the cursor is of the collection {earlier.source.split(' ')[0]!r}, and this is "
                f"{self._collection.resolved_name!r}, or was written by another model: search again"
            )
        watch.start("retrieve")
        ids = [hit.image_id for hit in earlier.remaining]
        with self._limit():
            payloads = self._collection.index.retrieve(ids, tokens=False)
            others = {each for hit in earlier.remaining for each in hit.duplicates}
            left = self._collection.existing(sorted(others)) if others else others
        known = [hit for hit in earlier.remaining if hit.image_id in payloads]
        hits: list[SearchHit] = []
        first = earlier.remaining[0].rank if earlier.remaining else 1
        for rank, hit in enumerate(known, start=first):
            payload = user_payload(payloads[hit.image_id])
            group = None if earlier.group_by is None else field_value(payload, earlier.group_by)
            duplicates = tuple(each for each in hit.duplicates if each in left)
            hits.append(
                replace(hit, rank=rank, payload=payload, group=group, duplicates=duplicates)
            )
        return replace(
            earlier,
            hits=tuple(hits[:top_k]),
            remaining=tuple(hits[top_k:]),
            timings=watch.timings(),
        )

    def close(self) -> None:
        """Close the collection; a second call does nothing."""
        if self._stages.device_index is not None:
            self._stages.device_index.close()
        if self._stages.own_cache is not None:
            self._stages.own_cache.clear()
        self._scorer.close()
        self._collection.close()

    def __enter__(self) -> TwoStageRetriever:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _texts(self, name: str, queries: Sequence[TextQuery]) -> list[str]:
        """Return the texts of queries; raise ConfigError for one that is none."""
        texts: Any = queries
        if not isinstance(queries, str) and isinstance(queries, Sequence):
            encoder = self._collection.contract.encoder
            texts = [text_of(query, encoder) for query in queries]
        check_texts(name, texts)
        return cast("list[str]", texts)

    def _limit(
        self, deadline: Deadline | None = None, queries: int = 1
    ) -> AbstractContextManager[Any]:
        """Limit the time of what a server is asked for a search, its budget included."""
        left = None
        if deadline is not None and deadline.milliseconds is not None:
            left = partial(getattr, deadline, "left")
        return self._collection.index.limit(queries, left)

    def _nearest(
        self,
        embeddings: Embeddings,
        num_candidates: int,
        *,
        filter: Filter | None,
        timeout: float | None = None,
        words: ByWords | None = None,
    ) -> list[Candidates]:
        """Find the candidates of `q` queries with `(q, d)` embeddings, and with words if given."""
        if self._stages.device_index is not None:
            if words is None:
                return self._stages.device_index.nearest(
                    embeddings, num_candidates, filter=filter, timeout=timeout
                )
            if not isinstance(embeddings, np.ndarray):  # the engine has the words
                embeddings = embeddings.float().cpu().numpy()
        # Without a device index, `encode` leaves them in host memory.
        embeddings = cast("NDArray[np.float32]", embeddings)
        return self._collection.nearest(
            embeddings, num_candidates, filter=filter, timeout=timeout, words=words
        )

    def _rank(
        self,
        texts: Sequence[str],
        embeddings: Embeddings,
        found: Sequence[Sequence[Candidate]],
        settings: SearchOptions,
        deadline: Deadline,
        watch: Stopwatch,
    ) -> list[SearchResult]:
        """Score and rank the candidates of `q` queries with `(q, d)` embeddings."""
        looks = self._looks(settings)
        *_, queries = self._scored(texts, embeddings, found, settings, deadline, watch, looks)
        timings = watch.timings(len(queries))
        cuts = self._stages.cut_texts(texts)
        with paused_collector():
            return [
                self._result(query, settings, timings, cut, looks)
                for query, cut in zip(queries, cuts, strict=True)
            ]

    def _scored(
        self,
        texts: Sequence[str],
        embeddings: Embeddings,
        found: Sequence[Sequence[Candidate]],
        settings: SearchOptions,
        deadline: Deadline,
        watch: Stopwatch,
        looks: Looks | None,
        *,
        first: float | None = None,
    ) -> Iterator[list[ScoredQuery]]:
        """Score the candidates of `q` queries; see `CandidateScorer.score_in_slices`.

        If candidates were deleted since they were found, the first stage is searched again, once.
        Within a budget, or if some are scored already, the deleted ones are left out. With `looks`,
        the candidates' embeddings are read.
        """

        def chosen(found: Sequence[Sequence[Candidate]]) -> Sequence[Sequence[Candidate]]:
            if settings["group_by"] is not None:
                found = [
                    self._diversified(
                        embeddings[row : row + 1], candidates, settings, texts[row : row + 1]
                    )
                    for row, candidates in enumerate(found)
                ]
            if looks is not None:
                looks.read(found)
            return found

        def find_again(deleted: Sequence[str]) -> Sequence[Sequence[Candidate]]:
            if self._stages.device_index is not None:
                self._stages.device_index.forget(deleted)
            count, filter = settings["num_candidates"], settings["filter"]
            words = _words(texts, settings)
            return chosen(self._nearest(embeddings, count, filter=filter, words=words))

        return self._scorer.score_in_slices(
            texts,
            chosen(found),
            first=first,
            deadline=deadline,
            on_missing=settings["on_missing"],
            on_deleted="leave_out",
            find_again=find_again if deadline.milliseconds is None else None,
            stop_early=self._stages.calibration() if settings["adaptive"] else None,
            top_k=settings["top_k"],
            watch=watch,
        )

    def _diversified(
        self,
        embedding: Embeddings,
        candidates: Sequence[Candidate],
        settings: SearchOptions,
        texts: Sequence[str] = (),
    ) -> Sequence[Candidate]:
        """Return candidates of enough groups; unchanged without `group_by`."""
        if settings["group_by"] is None:
            return candidates
        words = _words(texts, settings)
        return diversified(
            candidates,
            field=settings["group_by"],
            groups=settings["top_k"],
            num_candidates=settings["num_candidates"],
            filter=settings["filter"],
            nearest=lambda filter, count: self._nearest(
                embedding, count, filter=filter, words=words
            )[0],
            by_score=words is None,
        )

    def _looks(self, settings: SearchOptions) -> Looks | None:
        """Return what finds near-duplicates among the candidates of a search, if it is to."""
        likeness = settings["collapse_duplicates"]
        return None if likeness is False else Looks(self._collection, likeness)

    def _result(
        self,
        query: ScoredQuery,
        settings: SearchOptions,
        timings: Timings,
        cut: str | None,
        looks: Looks | None,
    ) -> SearchResult:
        hits = rank_candidates(query, settings, self._stages.calibration(), looks)
        reason, top_k = degraded_reason(query), settings["top_k"]
        return SearchResult(
            query=query.text,
            hits=tuple(hits[:top_k]),
            timings=timings,
            degraded=reason is not None,
            reason="; ".join(why for why in (reason, cut) if why) or None,
            candidates=len(query.candidates) - len(query.deleted),
            scored=int(np.count_nonzero(~np.isnan(query.logits))),
            remaining=hits[top_k:],
            group_by=settings["group_by"],
            source=self._collection.identity,
            precision=self.precision,
            truncated=cut is not None,
        )

    def _first_stage_result(
        self,
        text: str,
        candidates: Sequence[Candidate],
        settings: SearchOptions,
        timings: Timings,
        looks: Looks | None,
    ) -> SearchResult:
        top_k = settings["top_k"]
        order = range(len(candidates))
        hits = candidates_as_hits(candidates, order, settings["group_by"], looks)
        return SearchResult(
            query=text,
            hits=tuple(hits[:top_k]),
            timings=timings,
            candidates=len(candidates),
            remaining=hits[top_k:],
            group_by=settings["group_by"],
            source=self._collection.identity,
        )


def _words(texts: Sequence[str], settings: SearchOptions) -> ByWords | None:
    """Return the words to search for; None for a search by looks alone."""
    if not settings["hybrid"]:
        return None
    weight = settings["words_weight"]
    return ByWords(texts, WORDS_WEIGHT if weight is None else float(weight))


def _each_within(
    limit: AbstractContextManager[Any], items: Iterator[list[ScoredQuery]]
) -> Iterator[list[ScoredQuery]]:
    """Yield items that are made inside a time limit; what uses them is outside of it."""
    while True:
        with limit:
            item = next(items, None)
        if item is None:
            return
        yield item
