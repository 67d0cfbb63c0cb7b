"""Two-stage retrieval of captions for an image: vector search, then the joint encoder.

The image is encoded once: its embedding queries the index, its tokens are scored with every
candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from edje_qdrant.checks import check_kind, check_number
from edje_qdrant.collection.references import user_payload
from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.image_to_text.caption_collection import (
    TEXT_KEY,
    CaptionCollection,
    caption_ids,
    with_texts,
)
from edje_qdrant.index import Filter
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.model.named import model_for
from edje_qdrant.model.queries import ImageQuery, encode_query
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.rerank.stopwatch import Stopwatch
from edje_qdrant.text import clean_caption
from edje_qdrant.types import Candidate, Payload, Timings

__all__ = ["CaptionHit", "CaptionResult", "CaptionRetriever"]

_TEXTS = 256
_TOP_K = 10


@dataclass(frozen=True, slots=True)
class CaptionHit:
    """Hold one caption of a search result.

    Attributes:
        caption_id: UUID string, computed from the cleaned text.
        text: The caption, as it was first added.
        score: Logit of the joint encoder; higher is better. Comparable within one query.
        rank: Rank after reranking, from 1.
        retrieval_score: Cosine of the first stage.
        retrieval_rank: Rank in the first stage, from 1.
        payload: Payload of the caption, without its text.
    """

    caption_id: str
    text: str
    score: float
    rank: int
    retrieval_score: float
    retrieval_rank: int
    payload: Payload


@dataclass(frozen=True, slots=True, repr=False)
class CaptionResult(Sequence[CaptionHit]):
    """Hold the captions found for one image: a sequence of hits, best first.

    Attributes:
        hits: Best first.
        timings: Milliseconds by stage; `fetch` is 0, as candidates include their captions.
    """

    hits: tuple[CaptionHit, ...]
    timings: Timings

    @overload
    def __getitem__(self, index: int) -> CaptionHit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[CaptionHit, ...]: ...
    def __getitem__(self, index: int | slice) -> CaptionHit | tuple[CaptionHit, ...]:
        return self.hits[index]

    def __repr__(self) -> str:
        return f"<CaptionResult: {len(self.hits)} captions, {self.timings.total:.1f} ms>"

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[CaptionHit]:
        return iter(self.hits)


class CaptionRetriever:
    """Find captions by image.

    Args:
        collection: Collection to search; `close` closes it.
        model: Model that wrote the collection.
        reranker: Scores candidates; by default `Reranker(model)`.

    Raises:
        ContractMismatchError: Another model wrote the collection.

    Example:
        >>> from PIL import Image, ImageDraw
        >>> from edje_qdrant import CaptionCollection, CaptionRetriever, EDJEModel
        >>> model = EDJEModel.from_pretrained("demo", device="cpu")
        >>> captions = CaptionCollection.create(":memory:", "captions", model.contract())
        >>> image = Image.new("RGB", (256, 256), "lightgrey")
        >>> ImageDraw.Draw(image).ellipse((80, 80, 176, 176), fill="blue")
        >>> with CaptionRetriever(captions, model) as retriever:
        ...     ids = retriever.add(["a red circle", "a blue circle", "a green star"])
        ...     for hit in retriever.search(image, top_k=1):
        ...         print(hit.rank, hit.retrieval_rank, hit.text)
        1 1 a blue circle
    """

    def __init__(
        self, collection: CaptionCollection, model: EDJEModel, *, reranker: Reranker | None = None
    ) -> None:
        check_kind("collection", collection, CaptionCollection, "a CaptionCollection")
        check_kind("model", model, EDJEModel, "an EDJEModel, or use CaptionRetriever.open")
        collection.require(model.contract())
        self._collection = collection
        self._model = model
        self._reranker = reranker or Reranker(model)

    @classmethod
    def open(
        cls,
        location: Any,
        name: str = "captions",
        *,
        model: EDJEModel | str | Path | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: int = 30,
    ) -> CaptionRetriever:
        """Open a collection with the model that wrote it.

        Args:
            location: A folder, `"http://..."`, `"https://..."` or a `QdrantClient`.
            name: The collection's name.
            model: A model, or an argument for `EDJEModel.from_pretrained`; by default the name in
                the collection's contract.
            device: Device of a model that is loaded here; by default CUDA if available.
            precision: Precision of the joint encoder; see `Reranker`.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
            timeout: Seconds to wait for each response of a server, and for all responses of one
                search together, with retries and pauses.

        Raises:
            CollectionNotFoundError: There is no such collection.
            CollectionLockedError: Another process has the folder open.
            ContractMismatchError: Another model wrote the collection.
            CheckpointError: The model cannot be loaded.
            ConfigError: An argument is invalid, or the contract names no model.
            StoreError: The collection contains images, or cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        collection = CaptionCollection.open(
            location,
            name,
            api_key=api_key,
            prefer_grpc=prefer_grpc,
            grpc_port=grpc_port,
            timeout=timeout,
        )
        try:
            model = model_for(collection, model, device=device)
            return cls(collection, model, reranker=Reranker(model, precision=precision))
        except BaseException:
            collection.close()
            raise

    def __repr__(self) -> str:
        return (
            f"CaptionRetriever({self._collection!r}, model={self._model.name_or_path!r}, "
            f"precision={self.precision!r})"
        )

    @property
    def collection(self) -> CaptionCollection:
        """Return the collection searched."""
        return self._collection

    @property
    def model(self) -> EDJEModel:
        """Return the model that encodes and scores."""
        return self._model

    @property
    def precision(self) -> str:
        """Return the precision of the joint encoder; see `Reranker.precision`."""
        return self._reranker.precision

    def add(self, texts: Sequence[str], payloads: Sequence[Payload] | None = None) -> list[str]:
        """Encode and add captions that the collection does not contain, then flush it.

        Args:
            texts: Any number of captions; see `CaptionCollection.add`.
            payloads: One JSON object for each caption, to return with hits.

        Returns:
            The captions' ids, in order.

        Raises:
            ConfigError: A caption contains no word, or payloads do not fit; nothing was written.
            StoreError: As `CaptionCollection.add`.
            EngineUnavailableError: As `CaptionCollection.add`.
        """
        ids = caption_ids(texts)
        with_texts(texts, payloads)  # raises before anything is encoded
        for start in range(0, len(ids), _TEXTS):
            rows = range(start, min(start + _TEXTS, len(ids)))
            existing = self._collection.existing([ids[row] for row in rows])
            fresh = [row for row in rows if ids[row] not in existing]
            new = [texts[row] for row in fresh]
            kept = None if payloads is None else [payloads[row] for row in fresh]
            if new:
                self._collection.add(new, self._model.encode_texts(new), kept)
        self._collection.flush()
        return ids

    def search(
        self,
        image: ImageQuery,
        *,
        top_k: int | None = None,
        num_candidates: int = 100,
        filter: Filter | None = None,
    ) -> CaptionResult:
        """Find the captions that fit an image best.

        Args:
            image: A path, a Pillow image, or an `ImageEncoding` of one image, for example from
                `ImageCollection.encodings`.
            top_k: Maximum number of hits; by default 10, or `num_candidates` if that is less.
            num_candidates: Number of captions of the first stage to rerank.
            filter: Search only captions whose payload matches: `{"language": "en"}`.

        Returns:
            Hits, best first; equal scores in the order of the first stage.

        Raises:
            ConfigError: The image is invalid, `top_k` is below 1, `num_candidates` is below
                `top_k`, or the filter cannot be used.
            ImageReadError: The image cannot be read.
            StoreError: The collection cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        check_number("num_candidates", num_candidates)
        top_k = min(_TOP_K, num_candidates) if top_k is None else top_k
        check_number("top_k", top_k)
        if num_candidates < top_k:
            raise ConfigError(
                f"num_candidates is {num_candidates} and top_k {top_k}; hits are chosen among the "
                "candidates, so raise num_candidates or lower top_k"
            )
        watch = Stopwatch()
        watch.start("encode")
        query = encode_query(self._model, image)
        watch.start("retrieve")
        found = self._collection.nearest(query.embeddings, num_candidates, filter=filter)[0]
        watch.start("rerank")
        texts = [self._text(candidate) for candidate in found]
        tokens = np.broadcast_to(query.tokens, (len(found), *query.tokens.shape[1:]))
        scores = self._reranker.score_pairs(texts, tokens)
        timings = watch.timings()
        hits = tuple(
            CaptionHit(
                caption_id=found[row].image_id,
                text=texts[row],
                score=float(scores[row]),
                rank=rank,
                retrieval_score=found[row].score,
                retrieval_rank=found[row].rank,
                payload={
                    k: v for k, v in user_payload(found[row].payload).items() if k != TEXT_KEY
                },
            )
            for rank, row in enumerate(np.argsort(-scores, kind="stable")[:top_k].tolist(), start=1)
        )
        return CaptionResult(hits, timings)

    def _text(self, candidate: Candidate) -> str:
        text = candidate.payload.get(TEXT_KEY)
        if not isinstance(text, str) or not clean_caption(text):
            c = self._collection
            raise StoreError(
                f"the caption {candidate.image_id} in {c.name!r} at {c.location} has no text: "
                "another program wrote to the collection; delete it, and add it again"
            )
        return text

    def close(self) -> None:
        """Close the collection; a second call does nothing."""
        self._collection.close()

    def __enter__(self) -> CaptionRetriever:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
