"""Routes in the shapes that other services' clients speak: rerank, embeddings, models."""

from __future__ import annotations

import asyncio
import base64
import os
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray

from edje_qdrant.image_to_text.classify import match_texts
from edje_qdrant.model import EDJEModel
from edje_qdrant.rerank.scorer import best_first
from edje_qdrant.sources.folder import IMAGE_SUFFIXES
from edje_qdrant.types import ImageEncoding
from edje_qdrant.web.client_schemas import (
    Embedded,
    Embedding,
    EmbeddingsRequest,
    Item,
    ModelInfo,
    ModelList,
    Reranked,
    RerankedDocument,
    RerankRequest,
    RerankResult,
    TextRank,
    Usage,
)
from edje_qdrant.web.errors import RequestError
from edje_qdrant.web.schemas import ErrorBody
from edje_qdrant.web.sent_images import SentImages, is_address
from edje_qdrant.web.service import Service
from edje_qdrant.web.strict_json import StrictRoute

__all__ = ["RERANK_PATHS", "client_routes"]

T = TypeVar("T")

#: The paths of the same route: of Jina, Cohere v1 and vLLM; of TEI and vLLM; of Cohere v2.
RERANK_PATHS = ("/v1/rerank", "/rerank", "/v2/rerank")

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_LONGEST_PATH = 4096
_TEXTS_AT_ONCE = 64


@dataclass(slots=True)
class _Scored:
    """Documents of a request with their logits.

    Attributes:
        logits: `(n,)` float32.
        shown: What is returned of each document.
        pieces: Word pieces and image tokens that the joint encoder read.
        reason: Why a text is not read whole; None if all are.
    """

    logits: NDArray[np.float32]
    shown: list[RerankedDocument]
    pieces: int
    reason: str | None


def client_routes(service: Service, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """Create the routes of a service for clients of other services."""
    router = APIRouter(tags=["clients"], responses=responses, route_class=StrictRoute)
    images = SentImages(service)

    async def rerank(body: RerankRequest, request: Request) -> Reranked | list[TextRank]:
        """Rank images by a text, or texts by an image, in the shapes of rerank services.

        The requests of Jina, Cohere v1 and v2, vLLM and Text Embeddings Inference are read; unknown
        fields are ignored. Images are ids or paths of the collection, or are sent.
        """
        items = body.documents or body.texts or []
        name = "texts" if body.documents is None else "documents"
        if len(items) > service.settings.max_candidates:
            most = service.settings.max_candidates
            raise RequestError(400, "LimitExceeded", f"{name} may hold at most {most} of them")
        rank = _rank_images if body.query.text is not None else _rank_texts
        scored = await _in_time(service, rank(service, images, body.query, items, name))
        relevance = _relevance(service.retriever.model, scored.logits)
        order = best_first(scored.logits)[: body.top_n or body.top_k]
        if body.texts is not None:
            scores = scored.logits if body.raw_scores else relevance
            return [
                TextRank(
                    index=row,
                    score=float(scores[row]),
                    text=_sent_text(scored.shown[row]) if body.return_text else None,
                )
                for row in order
            ]
        return Reranked(
            id=request.scope["request_id"],
            model=_model_name(service),
            results=[
                RerankResult(
                    index=row,
                    relevance_score=float(relevance[row]),
                    score=float(scored.logits[row]),
                    document=scored.shown[row] if body.return_documents else None,
                )
                for row in order
            ],
            usage=Usage(prompt_tokens=scored.pieces, total_tokens=scored.pieces),
            truncated=scored.reason is not None,
            reason=scored.reason,
        )

    for path in RERANK_PATHS:
        router.add_api_route(path, rerank, methods=["POST"])

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsRequest) -> Embedded:
        """Encode texts and images into the first stage's space, in the shape of OpenAI."""
        return await _in_time(service, _embed(service, images, body))

    @router.get("/v1/models")
    async def models() -> ModelList:
        """Return the service's one model, in the shape of OpenAI."""
        return ModelList(data=[ModelInfo(id=_model_name(service))])

    @router.get("/v1/models/{model:path}", responses={404: {"model": ErrorBody}})
    async def model(model: str) -> ModelInfo:
        """Return the service's model by its id."""
        if model != _model_name(service):
            message = f"the only model here is {_model_name(service)}"
            raise RequestError(404, "NotFound", message)
        return ModelInfo(id=model)

    return router


async def _rank_images(
    service: Service, images: SentImages, query: Item, items: Sequence[Item], name: str
) -> _Scored:
    """Score images, of the collection or sent, by a text."""
    text = query.text or ""
    service.check_text(text)
    retriever = service.retriever
    ids, sent = await _where_they_are(service, items, name)
    places = {f"{name}.{row}": source for row, source in sent.items()}
    encoded = await images.encode(retriever.model, places)
    logits = np.empty(len(items), np.float32)
    if ids:
        own = [*ids.values()]
        logits[[*ids]] = await service.score(lambda: retriever.score(text, own))
    if sent:
        tokens = np.stack([image.tokens for image in encoded])  # (n, m, d_text)
        logits[[*sent]] = await service.score(
            lambda: retriever.reranker.score(text, tokens), index=False
        )
    shown = [RerankedDocument(text=item.text or "") for item in items]
    for row, image_id in ids.items():
        shown[row].id = image_id
    for (row, source), image in zip(sent.items(), encoded, strict=True):
        address = source if is_address(source) else None
        shown[row] = RerankedDocument(text="", id=image.image_id, image=address)
    (reason,), (pieces,) = await service.score(
        lambda: _read_texts(retriever.model, [text]), index=False
    )
    read = len(items) * (pieces + retriever.model.config.num_tokens)
    return _Scored(logits, shown, read, reason)


async def _rank_texts(
    service: Service, images: SentImages, query: Item, items: Sequence[Item], name: str
) -> _Scored:
    """Score texts by an image, of the collection or sent."""
    texts = [item.text for item in items if item.text is not None]
    if len(texts) < len(items):
        row = next(row for row, item in enumerate(items) if item.text is None)
        raise RequestError(
            400,
            "ImageDocuments",
            f"{name}.{row} is an image, and so is the query; rank texts by an image, or images by "
            "a text. POST /v1/search/image finds images like another one",
        )
    for text in texts:
        service.check_text(text)
    retriever, source = service.retriever, query.image or ""
    encoding: ImageEncoding
    if _UUID.fullmatch(source):
        collection = retriever.collection
        encoding = await service.read(lambda: collection.encodings([source.lower()]))
    else:
        (image,) = await images.encode(retriever.model, {"query": source})
        encoding = image.encoding
    matches = await service.score(
        lambda: match_texts(retriever.model, encoding, texts, reranker=retriever.reranker),
        index=False,
    )
    logits = np.empty(len(texts), np.float32)
    for match in matches:
        logits[match.index] = match.score
    reasons, pieces = await service.score(lambda: _read_texts(retriever.model, texts), index=False)
    cut = [(row, reason) for row, reason in enumerate(reasons) if reason is not None]
    reason = f"{name}.{cut[0][0]}: {cut[0][1]}" if cut else None
    read = sum(pieces) + len(texts) * retriever.model.config.num_tokens
    return _Scored(logits, [RerankedDocument(text=text) for text in texts], read, reason)


async def _where_they_are(
    service: Service, items: Sequence[Item], name: str
) -> tuple[dict[int, str], dict[int, str]]:
    """Return the ids of images of the collection, and the sources of images that were sent.

    Returns:
        Row of the document -> id; row -> address, data URI or base64.

    Raises:
        RequestError: Documents are texts that name no image.
    """
    ids: dict[int, str] = {}
    sent: dict[int, str] = {}
    named: dict[int, str] = {}
    for row, item in enumerate(items):
        value = item.image if item.text is None else item.text
        assert value is not None  # an item is one of both
        if _UUID.fullmatch(value):
            ids[row] = value.lower()
        elif item.text is None or value[:8].lower().startswith(("http://", "https://")):
            sent[row] = value
        else:
            named[row] = value
    paths = [text for text in named.values() if _may_be_path(text)]
    found = await service.read(lambda: _ids_of_paths(service, paths)) if paths else {}
    unknown = [row for row, text in named.items() if text not in found]
    if unknown:
        others = f", and so are {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise RequestError(
            400,
            "TextDocuments",
            f"{name}.{unknown[0]} is a text{others}, and this model scores texts against images; "
            "send images: ids or paths of the collection, data URIs, base64 or addresses in "
            '{"image": ...}, or parts of type image_url. To rank texts by an image, send the '
            "image as the query",
        )
    ids.update((row, found[text]) for row, text in named.items())
    return ids, sent


def _may_be_path(text: str) -> bool:
    return len(text) <= _LONGEST_PATH and os.path.splitext(text)[1].lower() in IMAGE_SUFFIXES


def _ids_of_paths(service: Service, texts: Sequence[str]) -> dict[str, str]:
    """Return the ids of images by their paths, as they are stored or as the service shows them.

    Of several images with one path, the first by id is taken.
    """
    text_of: dict[str, str] = {}
    for text in texts:
        for path in service.folder.stored_paths(text):
            text_of.setdefault(path, text)
    found: dict[str, str] = {}
    index = service.retriever.collection.index
    for page in index.scroll(filter={"path": [*text_of]}):
        for point in page:
            found.setdefault(text_of[point.payload["path"]], point.id)
    return found


async def _embed(service: Service, images: SentImages, body: EmbeddingsRequest) -> Embedded:
    retriever = service.retriever
    model, items = retriever.model, body.items
    width = model.config.embedding_dim
    if body.dimensions not in (None, width):
        message = f"this model's embeddings have {width} dimensions and cannot be shortened"
        raise RequestError(400, "BadRequest", f"{message}; leave dimensions out")
    if len(items) > service.settings.max_candidates:
        most = service.settings.max_candidates
        raise RequestError(400, "LimitExceeded", f"input may hold at most {most} of them")
    texts = {row: item.text for row, item in enumerate(items) if item.text is not None}
    for text in texts.values():
        service.check_text(text)
    sent = {row: item.image for row, item in enumerate(items) if item.image is not None}
    vectors = np.empty((len(items), width), np.float32)
    places = {f"input.{row}": source for row, source in sent.items()}
    encoded = await images.encode(model, places)
    for row, image in zip(sent, encoded, strict=True):
        vectors[row] = image.embedding
    rows, pieces, reason = [*texts], 0, None
    for start in range(0, len(rows), _TEXTS_AT_ONCE):  # other requests come in between
        part = rows[start : start + _TEXTS_AT_ONCE]
        own = [texts[row] for row in part]
        vectors[part] = await service.score(partial(model.encode_texts, own), index=False)
        reasons, counts = await service.score(partial(_read_texts, model, own), index=False)
        pieces += sum(counts)
        for row, cut in zip(part, reasons, strict=True):
            reason = reason or (f"input.{row}: {cut}" if cut else None)
    pieces += len(sent) * model.config.num_tokens
    return Embedded(
        data=[
            Embedding(index=row, embedding=_written(vector, body.encoding_format))
            for row, vector in enumerate(vectors)
        ],
        model=_model_name(service),
        usage=Usage(prompt_tokens=pieces, total_tokens=pieces),
        truncated=reason is not None,
        reason=reason,
    )


def _written(vector: NDArray[np.float32], encoding_format: str | None) -> list[float] | str:
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    numbers: list[float] = vector.tolist()
    return numbers


def _read_texts(model: EDJEModel, texts: Sequence[str]) -> tuple[list[str | None], list[int]]:
    """Return why each text is cut, if it is, and the word pieces read of each."""
    reasons = model.cut_texts(texts)
    return reasons, [*map(len, model.caption_ids(texts))]


def _relevance(model: EDJEModel, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    if model.calibration is not None:
        return model.calibration.probability(logits)
    relevance: NDArray[np.float64] = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return relevance


def _sent_text(document: RerankedDocument) -> str:
    return document.text or document.image or ""


def _model_name(service: Service) -> str:
    """Return the model's name; of a folder, only the last part."""
    name = service.retriever.model.name_or_path or "edje"
    return os.path.basename(os.path.normpath(name)) if os.path.isabs(name) else name


async def _in_time(service: Service, work: Awaitable[T]) -> T:
    """Wait for work of several steps, within the time limit of a request.

    Raises:
        RequestError: The time limit was reached.
    """
    try:
        return await asyncio.wait_for(work, service.settings.timeout)
    except asyncio.TimeoutError as error:
        message = (
            "no answer in time; send fewer images at a time. Those that were encoded are kept for "
            "the next request"
        )
        raise RequestError(504, "Timeout", message) from error
