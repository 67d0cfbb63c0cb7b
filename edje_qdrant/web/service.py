"""State shared by the routes: retriever, threads, image files, metrics."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

from PIL import Image

from edje_qdrant.collection.collection import user_payload
from edje_qdrant.errors import (
    BusyError,
    CollectionNotFoundError,
    ContractMismatchError,
    EngineUnavailableError,
    ImageReadError,
    KeyRefusedError,
    RateLimitedError,
)
from edje_qdrant.explain.match import can_explain, explain_match
from edje_qdrant.images import DecoderPool, default_workers
from edje_qdrant.index import Filter
from edje_qdrant.index.filters.from_json import filter_from_json
from edje_qdrant.index.where import filter_of
from edje_qdrant.search.batcher import SearchBatcher
from edje_qdrant.search.options import DEFAULTS, NUM_CANDIDATES, SearchOptions
from edje_qdrant.search.results import SearchHit, SearchResult
from edje_qdrant.search.retriever import TwoStageRetriever
from edje_qdrant.sources.image_folder import ImageFolder, Thumbnails
from edje_qdrant.web.availability import Availability
from edje_qdrant.web.errors import RequestError, index_away
from edje_qdrant.web.metrics import Metrics
from edje_qdrant.web.schemas import (
    Answer,
    Explained,
    Hit,
    Picture,
    RecommendRequest,
    SearchRequest,
    Word,
)
from edje_qdrant.web.serving import Served, Serving
from edje_qdrant.web.settings import ServiceSettings
from edje_qdrant.web.uploads import ReadUpload, Upload, read_upload

__all__ = ["Service", "not_found"]

_log = logging.getLogger("edje_qdrant.web")

T = TypeVar("T")

# Errors of the index, not of a request.
_OF_INDEX = (
    EngineUnavailableError,
    CollectionNotFoundError,
    ContractMismatchError,
    KeyRefusedError,
)

_READERS = 4
_DECODERS = 4
_MOST_INGESTS = 4
_LOOK = 0.5  # seconds without an answer after which the index is probed


class Service:
    """Service over one retriever at a time; see `change_to`.

    Args:
        retriever: Answers the searches at first; `close` closes what is served.
        settings: Limits.
    """

    def __init__(self, retriever: TwoStageRetriever, settings: ServiceSettings) -> None:
        self.settings = settings
        self.decoders = DecoderPool(
            min(_DECODERS, default_workers()),
            memory=settings.decode_memory,
            seconds=settings.decode_seconds,
            max_pixels=settings.max_pixels,
        )
        self.folder = ImageFolder(
            settings.images, self.decoders, addresses=settings.image_addresses
        )
        self.thumbnails = Thumbnails(self.folder, settings.thumbnail_bytes)
        self.metrics = Metrics(lambda: self.batcher.waiting)
        self.availability = Availability(self._probe, self.metrics.index_up)
        self.served = Served(self._serving(retriever), self._close_serving)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="edje-reading")
        # Threads of their own: a decoder that hangs takes no reader.
        self._decoding = ThreadPoolExecutor(
            self.decoders.workers, thread_name_prefix="edje-decoding"
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="edje-writing")
        self._writing = 0

    @property
    def retriever(self) -> TwoStageRetriever:
        """Return the retriever of the current request."""
        return self.served.current.retriever

    @property
    def batcher(self) -> SearchBatcher:
        """Return the batcher of the current request."""
        return self.served.current.batcher

    @property
    def can_explain(self) -> bool:
        """Return whether matches can be explained."""
        return self.served.current.can_explain

    def change_to(self, retriever: TwoStageRetriever) -> None:
        """Serve another retriever from the next request on.

        Requests that have begun end on the one before, which is closed after the last of them.
        """
        self.served.change(self._serving(retriever))
        if self._on_server:
            self.availability.look(suspect=True)

    def _serving(self, retriever: TwoStageRetriever) -> Serving:
        settings = self.settings
        batcher = SearchBatcher(
            retriever,
            max_batch=settings.max_batch,
            max_wait_ms=settings.batch_wait_ms,
            max_waiting=settings.max_waiting,
            observe=self.metrics.batch,
        )
        retriever.collection.index.give_up_when(
            self.availability.away, lambda: self.availability.look(suspect=True)
        )
        explains = (settings.images is not None or bool(settings.image_addresses)) and can_explain(
            retriever.model
        )
        return Serving(retriever, batcher, explains)

    def _probe(self, points: bool) -> None:
        """Check that the collection that is served can be read."""
        asked = self.served.current.retriever
        try:
            asked.collection.probe(points=points)
        except Exception:
            if self.served.current.retriever is asked:
                raise
            # It was changed, and the one before closed.
            self.served.current.retriever.collection.probe(points=points)

    def _close_serving(self, serving: Serving) -> None:
        serving.batcher.close(self.settings.timeout)
        serving.retriever.close()

    def close(self) -> None:
        """Finish waiting work, but no decoding, then close the collection."""
        self.availability.close()
        self.decoders.close()
        self._decoding.shutdown(wait=True, cancel_futures=True)
        self.batcher.close(self.settings.timeout)
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self.retriever.close()
        self.served.join()

    async def check_ready(self) -> None:
        """Check that searches can be answered.

        Raises:
            RequestError: A server does not answer within a second, or its collection is gone.
            EdjeError: The index of a folder cannot be read.
        """
        if not self._on_server:
            await self.read(self.retriever.collection.count)
        elif (error := await self.availability.check()) is not None:
            raise index_away(error)

    @property
    def _on_server(self) -> bool:
        # A folder's index cannot go away; while it is written to, a probe may wait for long.
        return self.retriever.collection.index.shared

    async def wait(self, future: Future[T], *, index: bool = True) -> T:
        """Wait for a future, within the time limit.

        Args:
            future: The future.
            index: Whether its job needs the index. If that is on a server, errors of the job, and
                silence, lead to a probe, and it is not waited for while the index is away.

        Raises:
            RequestError: The time limit was reached; a job that has not started is cancelled.
            EdjeError: The index is away, or the job failed.
        """
        index = index and self._on_server
        waiting = asyncio.wrap_future(future)
        until = time.monotonic() + self.settings.timeout
        try:
            while (left := until - time.monotonic()) > 0:
                await asyncio.wait({waiting}, timeout=min(left, _LOOK) if index else left)
                if waiting.done():
                    return self._result(waiting, index=index)
                if index:
                    self.availability.look()
                    self.require_index()
        finally:
            waiting.cancel()
        message = "no answer in time; ask for fewer candidates, or give a budget_ms"
        raise RequestError(504, "Timeout", message)

    def require_index(self) -> None:
        """Refuse a request at once while the index is away.

        Raises:
            RequestError: The index is away.
        """
        if (error := self.availability.error) is not None:
            self.metrics.index_failure(type(error).__name__)
            raise index_away(error)

    def _result(self, done: asyncio.Future[T], *, index: bool) -> T:
        try:
            return done.result()
        except _OF_INDEX as error:
            if not index:
                raise
            self.metrics.index_failure(type(error).__name__)
            if not isinstance(error, RateLimitedError):
                self.availability.look(suspect=True)
            raise

    async def score(self, work: Callable[[], T], *, index: bool = True) -> T:
        """Run work that uses the model, on the search thread.

        Args:
            work: The work.
            index: Whether it reads the index, too.

        Raises:
            RequestError: It reads the index, which is away.
            BusyError: Too many jobs wait.
        """
        self._check_open()
        if index:
            self.require_index()
        return await self.wait(self.served.submit(self.batcher.do, work), index=index)

    def _check_open(self) -> None:
        # Only the event loop's thread closes the batcher, so it is still open at the next call.
        if not self.batcher.alive:
            raise BusyError(self.batcher.waiting)

    async def read(self, work: Callable[[], T]) -> T:
        """Run work that reads the index, and files, on a reader thread."""
        self.require_index()
        return await self.wait(self.served.submit(self._readers.submit, work))

    async def decode(self, work: Callable[[], T]) -> T:
        """Run work that waits for a decoder process."""
        return await self.wait(self.served.submit(self._decoding.submit, work), index=False)

    async def read_upload(self, upload: Upload) -> ReadUpload:
        """Decode an upload in a decoder process."""
        return await self.decode(lambda: read_upload(upload, self.retriever.model, self.decoders))

    async def write(self, work: Callable[[], T]) -> T:
        """Run work that writes to the collection, one job at a time.

        Raises:
            RequestError: The index is away.
            BusyError: Too many jobs wait.
        """
        self.require_index()
        if self._writing >= _MOST_INGESTS:
            raise BusyError(self._writing)
        self._writing += 1
        future = self.served.submit(self._writer.submit, work)
        loop = asyncio.get_running_loop()
        # Counted until it is done, even if its request has timed out.
        future.add_done_callback(lambda _: _in_loop(loop, self._written))
        return await self.wait(future)

    def _written(self) -> None:
        self._writing -= 1

    async def search(self, request: SearchRequest) -> Answer:
        """Search for a text, batched with other requests' searches."""
        top_k, number = self.counts(request)
        own = {name: getattr(request, name) for name in DEFAULTS}
        options = cast("SearchOptions", own)
        options["top_k"], options["num_candidates"] = top_k, number
        options["filter"] = self.filter(request.filter, request.qdrant_filter, request.where)
        self.check_text(request.text)
        self._check_open()
        self.require_index()
        future = self.batcher.submit(request.text, **options)
        result = await self.wait(future)
        self.metrics.search(result, future.waited_ms)
        return self.answer(result, future.waited_ms, first_stage=request.first_stage)

    def counts(self, request: SearchRequest | RecommendRequest) -> tuple[int, int]:
        """Return the numbers of hits and candidates.

        A request that names fewer candidates than the default number of hits, and no number of
        hits, gets all of them.

        Raises:
            RequestError: A number is above the service's limit.
        """
        top_k, num_candidates = request.top_k, request.num_candidates
        if num_candidates is not None and "top_k" not in request.model_fields_set:
            top_k = min(top_k, num_candidates)
        self.check_top_k(top_k)
        most = self.settings.max_candidates
        if num_candidates is None:
            return top_k, min(most, max(NUM_CANDIDATES, top_k))
        if num_candidates > most:
            raise RequestError(400, "LimitExceeded", f"num_candidates may be at most {most}")
        return top_k, num_candidates

    def check_top_k(self, top_k: int) -> None:
        """Raise RequestError if a page is too large."""
        if top_k > self.settings.max_top_k:
            raise RequestError(
                400,
                "LimitExceeded",
                f"top_k may be at most {self.settings.max_top_k}; use the cursor for more",
            )

    def check_text(self, text: str) -> None:
        """Raise RequestError if a text is too long."""
        if len(text) > self.settings.max_text:
            most = self.settings.max_text
            raise RequestError(400, "LimitExceeded", f"a text may have at most {most} characters")

    def filter(
        self,
        plain: Mapping[str, Any] | None,
        qdrant: Mapping[str, Any] | None = None,
        where: Sequence[str] = (),
    ) -> Filter | None:
        """Return the filter of a request, from one of its forms."""
        if sum(map(bool, (plain, qdrant, where))) > 1:
            message = "give one of filter, qdrant_filter and where"
            raise RequestError(400, "BadRequest", message)
        if where:
            return filter_of(where)
        return filter_from_json(qdrant) if qdrant else (plain or None)

    def answer(
        self, result: SearchResult, waited: float = 0.0, *, first_stage: bool = False
    ) -> Answer:
        """Build the response of a search."""
        timings = result.timings.as_dict()
        timings = {"queue": waited, **timings, "total": timings["total"] + waited}
        before = None
        if first_stage:
            ranked = sorted((*result.hits, *result.remaining), key=lambda hit: hit.retrieval_rank)
            before = self._hits(ranked[: len(result.hits)])
        fields = result.as_dict()
        fields["hits"] = self._hits(result.hits)
        fields["timings_ms"] = {stage: round(ms, 3) for stage, ms in timings.items()}
        return Answer(**fields, first_stage=before)

    def _hits(self, hits: Sequence[SearchHit]) -> list[Hit]:
        shown = [{**hit.as_dict(), "payload": self.folder.shown(hit.payload)} for hit in hits]
        for hit, fields in zip(hits, shown, strict=True):
            for name in ("video", "document"):  # a group of frames has the path that is shown
                if hit.group is not None and hit.group == hit.payload.get(name):
                    fields["group"] = fields["payload"][name]
        return [Hit(**fields) for fields in shown]

    def image_info(self, image_id: str, payload: Mapping[str, Any]) -> Picture:
        """Build the description of an image."""
        served = self.folder.has(payload)
        place = f"/v1/images/{image_id}"
        fragment = self.folder.fragment(payload)
        return Picture(
            image_id=image_id,
            payload=self.folder.shown(payload),
            file=f"{place}/file" if served else None,
            thumbnail=f"{place}/thumbnail" if served else None,
            source=f"{place}/source#{fragment}" if served and fragment else None,
        )

    def payload(self, image_id: str) -> dict[str, Any]:
        """Return an image's payload.

        Raises:
            RequestError: There is no such image.
        """
        with_dashes = _as_uuid(image_id)
        if with_dashes is None:
            raise not_found()
        found = self.retriever.collection.index.retrieve([with_dashes], tokens=False)
        if with_dashes not in found:
            raise not_found()
        return dict(user_payload(found[with_dashes]))

    async def explain(self, image_id: str, text: str) -> Explained:
        """Explain where in an image a text is seen.

        Raises:
            RequestError: There is no such image, or the model's matches cannot be explained.
        """
        if not can_explain(self.retriever.model):
            raise RequestError(
                501,
                "NotExplained",
                f"the encoder {self.retriever.model.encoder.name} has no patch grid, so its "
                "matches "
                "cannot be explained",
            )
        payload = await self.read(lambda: self.payload(image_id))
        decoded = await self.decode(lambda: self.folder.decode(payload))
        if decoded is None:
            raise not_found()
        if decoded.image_id != _as_uuid(image_id):
            raise ImageReadError(image_id, "its file contains another image now; ingest it again")
        image = Image.fromarray(decoded.array)
        found = await self.score(
            lambda: explain_match(self.retriever.model, text, image), index=False
        )
        rows = zip(found.words, found.word_weights, found.word_heat, strict=True)
        return Explained(
            image_id=image_id,
            text=text,
            score=found.score,
            heat=found.heat.tolist(),
            words=[
                Word(word=word, weight=float(weight), heat=heat.tolist())
                for word, weight, heat in rows
            ],
            area=found.area,
        )


def not_found() -> RequestError:
    """Return the error for an image that is not served, the same for every reason."""
    return RequestError(404, "NotFound", "there is no such image here")


def _as_uuid(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def _in_loop(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(work)
