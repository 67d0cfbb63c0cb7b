"""Rerank the results of searches in an existing Qdrant collection; see `attach_tokens`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edje_qdrant.attach.points import AttachablePoint, AttachablePoints, PointId
from edje_qdrant.checks import check_likeness, check_list, check_number, check_texts
from edje_qdrant.collection.likeness import (
    NEAR_DUPLICATE_TOKENS,
    leaders,
    mean_cosine,
    token_vectors,
)
from edje_qdrant.collection.metadata import CollectionRecord, resolve
from edje_qdrant.collection.references import another_model, readable
from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import ConfigError, ImagesDeletedError, StoreError, TokensNotFoundError
from edje_qdrant.index import QdrantOptions
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.calibration import MatchWord, match_word
from edje_qdrant.model.inference.precision import Precision
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.rerank.scorer import CandidateScorer, OnDeleted, OnMissing, best_first
from edje_qdrant.rerank.token_loader import TokenReader, pairs_at_once
from edje_qdrant.tokens.protocol import EmptyCodes, StoredCodes, TokenStore, decoded, empty_codes
from edje_qdrant.types import Candidate

if TYPE_CHECKING:
    from edje_qdrant.attach.points import ScoredPoint

__all__ = ["AttachedCollection", "RankedPoint", "is_attached", "read_attachment", "require"]


# Points that are read within the time limit of one search.
_PER_LIMIT = 1000

# Points of which tokens are read at a time, and of a sample whose tokens give the mean cosine.
_SAMPLE = 256


@dataclass(frozen=True, slots=True)
class RankedPoint:
    """Hold a reranked point of the caller's search.

    Attributes:
        point: The point as it was passed in, with the first stage's `score`.
        score: The joint encoder's logit; higher is better. None if it has no readable tokens.
        rank: Place in the new order, from 1.
        retrieval_rank: Place among the points passed in, from 1.
        probability: Probability that text and image match; None if the model has no calibration.
        duplicates: Ids of the near-duplicates that this point stands for, best first; empty without
            `collapse_duplicates`.
    """

    point: ScoredPoint
    score: float | None
    rank: int
    retrieval_rank: int
    probability: float | None = None
    duplicates: tuple[PointId, ...] = ()

    @property
    def match(self) -> MatchWord | None:
        """Return `"good"`, `"possible"` or `"weak"`, by the probability; None without one."""
        return match_word(self.probability)


class AttachedCollection:
    """Score images of an existing Qdrant collection to which tokens were attached.

    The caller searches with its own client, with any vectors, filters and options.

    Example:
        >>> from PIL import Image, ImageDraw
        >>> from qdrant_client import QdrantClient, models
        >>> from edje_qdrant import AttachedCollection, EDJEModel, attach_tokens
        >>> model = EDJEModel.from_pretrained("demo", device="cpu")
        >>> images = {}
        >>> for colour in ("red", "blue", "green"):
        ...     images[colour] = Image.new("RGB", (256, 256), "lightgrey")
        ...     ImageDraw.Draw(images[colour]).ellipse((80, 80, 176, 176), fill=colour)
        >>> vectors = model.encode_images([*images.values()]).embeddings
        >>> client = QdrantClient(":memory:")
        >>> vector_params = models.VectorParams(size=vectors.shape[1], distance="Cosine")
        >>> _ = client.create_collection("products", vectors_config=vector_params)
        >>> payloads = [{"colour": colour} for colour in images]
        >>> client.upload_collection("products", vectors, payloads, ids=[1, 2, 3])
        >>> options = {"path_field": "colour", "locate": images.get, "progress": False}
        >>> report = attach_tokens(client, "products", model, **options)
        >>> text = "a blue circle"
        >>> query = model.encode_texts([text])[0]
        >>> points = client.query_points("products", query, limit=3).points
        >>> with AttachedCollection.open(client, "products", model=model) as attached:
        ...     for ranked in attached.rerank_points(text, points, top_k=1):
        ...         print(ranked.rank, ranked.point.id, ranked.point.payload["colour"])
        1 2 blue
    """

    def __init__(
        self,
        points: AttachablePoints,
        store: TokenStore,
        record: CollectionRecord,
        name: str,
        model: EDJEModel,
        *,
        reranker: Reranker | None = None,
    ) -> None:
        """Assemble the opened parts; use `open`."""
        self._points, self._store, self._record = points, store, record
        self._name, self._model = name, model
        self._token_mean: float | None = None  # of two points' tokens
        read = partial(TokenReader(model.device).tokens, self)
        self._reranker = reranker or Reranker(model)
        count = pairs_at_once(model.contract(), model.device)
        self._scorer = CandidateScorer(self._reranker, read, count)

    def __repr__(self) -> str:
        return f"AttachedCollection({self._name!r}, model={self._model.name_or_path!r})"

    @classmethod
    def open(
        cls,
        location: Any,
        name: str,
        *,
        model: EDJEModel | str | Path | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        reranker: Reranker | None = None,
        tokens_folder: str | Path | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: int = 30,
        compress_reads: bool = False,
    ) -> AttachedCollection:
        """Open a collection with the model whose tokens were attached.

        Args:
            location: `"http://..."`, `"https://..."` or a `QdrantClient`, which stays open.
            name: Name of the collection.
            model: A model, or what `EDJEModel.from_pretrained` takes; by default the one that was
                recorded when tokens were attached.
            device: Device of a model that is loaded here; by default CUDA if available.
            precision: Precision of the joint encoder; see `Reranker`.
            reranker: Scores, instead of one with the model and `precision`.
            tokens_folder: New folder of side files that were moved.
            api_key: Sent with every request to a server.
            prefer_grpc: Use gRPC for large transfers.
            grpc_port: Port of gRPC; has to be given if the address names a port other than 6333.
            timeout: Seconds to wait for one answer of a server, and for all answers of one call of
                `rerank_points` together, with retries and pauses.
            compress_reads: Let a server compress what it sends; for networks below 100 MB/s.

        Raises:
            CollectionNotFoundError: There is no such collection.
            ContractMismatchError: The model is not the one whose tokens were attached.
            CheckpointError: The model cannot be loaded.
            ConfigError: Nothing was attached, an argument cannot be used, or no model is named.
            StoreError: Side files cannot be read.
            EngineUnavailableError: The server cannot be reached.
        """
        if reranker is not None and precision != "auto":
            raise ConfigError("give precision or reranker, which has its own, not both")
        options = QdrantOptions(
            api_key, prefer_grpc, grpc_port, timeout, compress_reads=compress_reads
        )
        where = resolve(location)
        points = AttachablePoints(where, name, options=options)
        try:
            found = read_attachment(points, name)
            if found is None:
                raise ConfigError(
                    f"nothing is attached to the collection {name!r} at {points.address}; run "
                    f"`edje-qdrant attach --collection {name}`, or attach_tokens, first"
                )
            record, path_field = found
            points.read_field(path_field)
            if not isinstance(model, EDJEModel):
                model = _load(model or record.contract.model, name, device)
            require(model.contract(), record, name, points.address)
            scorer = reranker or Reranker(model, precision=precision)
            store = record.open_store(where, name, tokens_folder)
        except BaseException:
            points.close()
            raise
        return cls(points, store, record, name, model, reranker=scorer)

    @property
    def contract(self) -> TokenContract:
        """Return the contract of the model whose tokens were attached, codec included."""
        return self._record.contract

    @property
    def location(self) -> str:
        """Return the address of the server."""
        return self._points.address

    @property
    def name(self) -> str:
        """Return the collection's name."""
        return self._name

    @property
    def model(self) -> EDJEModel:
        """Return the model that scores."""
        return self._model

    @property
    def precision(self) -> str:
        """Return the precision of the joint encoder; see `Reranker.precision`."""
        return self._reranker.precision

    def rerank_points(
        self,
        text: str,
        points: Sequence[ScoredPoint],
        *,
        top_k: int | None = None,
        on_missing: OnMissing = "error",
        collapse_duplicates: bool | float = False,
    ) -> list[RankedPoint]:
        """Rank the points of a search by the joint encoder's score.

        Args:
            text: Description of the images.
            points: Points as `client.query_points(...).points` returns them; vectors and payloads
                are not needed.
            top_k: Number of points to return; all by default.
            on_missing: What to do with points without readable tokens: `"error"` raises; with
                `"first_stage"` they keep their place, without a score.
            collapse_duplicates: Return one of each: of points whose images are near-duplicates of
                each other, only the best, with the ids of the others; `top_k` counts what is left.
                The tokens are compared, which are read once more for it. A number from 0 to 1 is
                the likeness of tokens from which on images are near-duplicates, instead of the
                default of 0.9.

        Returns:
            Points, best first, equal scores in the order passed in. Those that were deleted since
            they were found are left out.

        Raises:
            ConfigError: The text contains no word, or an option is invalid.
            TokensNotFoundError: Points have no tokens, or another image than when these were
                attached; names the ids.
            TokensCorruptError: Tokens are damaged; names the ids.
            StoreError: Tokens cannot be read, or the device failed.
            EngineUnavailableError: The server cannot be reached.
            CheckpointError: The joint encoder gives scores that are not numbers.
        """
        check_number("top_k", top_k, optional=True)
        if on_missing not in ("error", "first_stage"):
            raise ConfigError(f'on_missing is {on_missing!r}; give "error" or "first_stage"')
        check_likeness("collapse_duplicates", collapse_duplicates)
        check_list("points", points)
        if odd := [point for point in points if not hasattr(point, "id")]:
            raise ConfigError(
                f"points holds a {type(odd[0]).__name__}; give what query_points(...).points holds"
            )
        ids = [point.id for point in points]
        logits, deleted = self._logits(text, ids, on_missing, "leave_out")
        calibration = self._model.calibration
        order = [row for row in best_first(logits) if ids[row] not in deleted]
        duplicates: dict[int, tuple[PointId, ...]] = {}
        if collapse_duplicates is not False:
            least = NEAR_DUPLICATE_TOKENS if collapse_duplicates is True else collapse_duplicates
            with self._points.limit(1 + len(order) // _PER_LIMIT):
                duplicates = self._collapsed(ids, order, logits, least)
            order = [*duplicates]
        ranked: list[RankedPoint] = []
        for row in order:
            logit = None if np.isnan(logits[row]) else float(logits[row])
            probability = None
            if calibration is not None and logit is not None and calibration.covers(text):
                probability = float(calibration.probability(logits[row : row + 1])[0])
            others = duplicates.get(row, ())
            rank = len(ranked) + 1
            ranked.append(RankedPoint(points[row], logit, rank, row + 1, probability, others))
        return ranked[:top_k]

    async def arerank_points(
        self,
        text: str,
        points: Sequence[ScoredPoint],
        *,
        top_k: int | None = None,
        on_missing: OnMissing = "error",
        collapse_duplicates: bool | float = False,
    ) -> list[RankedPoint]:
        """Run `rerank_points` in another thread, without blocking the event loop.

        Args:
            text: As `rerank_points`.
            points: As `rerank_points`.
            top_k: As `rerank_points`.
            on_missing: As `rerank_points`.
            collapse_duplicates: As `rerank_points`.

        Raises:
            ConfigError: As `rerank_points`.
            StoreError: As `rerank_points`.
            EngineUnavailableError: As `rerank_points`.
        """
        return await asyncio.to_thread(
            self.rerank_points,
            text,
            points,
            top_k=top_k,
            on_missing=on_missing,
            collapse_duplicates=collapse_duplicates,
        )

    def score(self, text: str, image_ids: Sequence[PointId]) -> NDArray[np.float32]:
        """Score a text against the images of points.

        Args:
            text: Description of the images.
            image_ids: `n` ids of points.

        Returns:
            `(n,)` logits, in order; higher is better.

        Raises:
            ConfigError: As `rerank_points`.
            TokensNotFoundError: As `rerank_points`.
            TokensCorruptError: As `rerank_points`.
            StoreError: As `rerank_points`.
            EngineUnavailableError: As `rerank_points`.
        """
        check_list("image_ids", image_ids)
        logits, _ = self._logits(text, image_ids, "error", "error")
        return logits

    def close(self) -> None:
        """Close files and connections; a client that was passed in stays open."""
        try:
            self._points.close()
        finally:
            self._store.close()

    def __enter__(self) -> AttachedCollection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def codes(
        self, candidates: Sequence[Candidate], *, empty: EmptyCodes = empty_codes
    ) -> list[StoredCodes]:
        """Read encoded tokens of points, one part for each codec.

        Args:
            candidates: Different points, their ids under `id` in the payload.
            empty: Allocates the arrays that records of side files are copied to.

        Raises:
            ImagesDeletedError: Points are not in the collection; names the ids.
            TokensNotFoundError: Points have no tokens, or another image than when these were
                attached; names the ids.
            TokensCorruptError: Tokens are damaged; names the ids.
        """
        ids = [candidate.payload["id"] for candidate in candidates]
        found = self._points.retrieve(ids, tokens=self._store.in_payload)
        deleted = [str(point_id) for point_id in ids if point_id not in found]
        if deleted:
            raise ImagesDeletedError(
                f"points {', '.join(deleted[:3])} ({len(deleted)} in all) are not in "
                f"{self._name!r}; "
                "if an earlier search found them, they have been deleted since",
                deleted,
            )
        gone = [str(point_id) for point_id in ids if not is_attached(found.get(point_id))]
        if gone:
            raise TokensNotFoundError(
                f"points {', '.join(gone[:3])} ({len(gone)} in all) of {self._name!r} have no "
                "tokens, or name another image than when these were attached; run "
                f"`edje-qdrant attach --collection {self._name}` again",
                gone,
            )
        named = [candidate.image_id for candidate in candidates]
        references = [found[point_id].reference or {} for point_id in ids]
        remedy = f"attach them again with `edje-qdrant attach --collection {self._name}`"
        where = f"{self._name!r} at {self._points.address}"
        if error := another_model(self.contract, named, references, where, remedy):
            raise error
        return self._store.codes(named, references, empty)

    def _collapsed(
        self,
        ids: Sequence[PointId],
        order: Sequence[int],
        logits: NDArray[np.float32],
        likeness: float,
    ) -> dict[int, tuple[PointId, ...]]:
        """Return the rows to show, best first, each with the ids that it stands for.

        Points without readable tokens stand for themselves.
        """
        known = [row for row in order if not np.isnan(logits[row])]
        vectors = self._token_vectors([*dict.fromkeys(ids[row] for row in known)])
        if self._token_mean is None:
            page = next(iter(self._points.scroll(_SAMPLE)), [])
            sample = self._token_vectors([point.id for point in page if is_attached(point)])
            self._token_mean = mean_cosine(np.array([*sample.values()], np.float32))
        mean = self._token_mean
        width = self.contract.num_tokens * self.contract.token_dim
        ranked = np.zeros((len(order), width), np.float32)
        for place, row in enumerate(order):
            if ids[row] in vectors:
                ranked[place] = vectors[ids[row]]
        shown: dict[int, list[PointId]] = {}
        for place, leader in enumerate(leaders(ranked, mean + likeness * (1 - mean))):
            if place == leader:
                shown[order[place]] = []
            else:
                shown[order[leader]].append(ids[order[place]])
        return {row: tuple(others) for row, others in shown.items()}

    def _token_vectors(self, ids: Sequence[PointId]) -> dict[PointId, NDArray[np.float32]]:
        """Return `(m * d_text,)` for each of different points whose tokens can be read."""
        contract, found = self.contract, dict[PointId, NDArray[np.float32]]()
        for start in range(0, len(ids), _SAMPLE):
            part = [Candidate(str(i), 0.0, 1, {"id": i}) for i in ids[start : start + _SAMPLE]]
            known, codes, _ = readable(part, lambda candidate: candidate.image_id, self.codes)
            if known:
                shape = (len(known), contract.num_tokens, contract.token_dim)
                vectors = token_vectors(decoded(codes, shape))
                found.update(
                    (each.payload["id"], v) for each, v in zip(known, vectors, strict=True)
                )
        return found

    def _logits(
        self, text: str, ids: Sequence[PointId], on_missing: OnMissing, on_deleted: OnDeleted
    ) -> tuple[NDArray[np.float32], set[PointId]]:
        """Return `(n,)` logits and the ids of deleted points.

        Logits are NaN for points without readable tokens, if that is allowed, and for deleted ones.
        """
        check_texts("text", [text])
        distinct = [*dict.fromkeys(ids)]
        candidates = [Candidate(str(i), 0.0, 1, {"id": i}) for i in distinct]
        with self._points.limit(1 + len(candidates) // _PER_LIMIT):
            (query,) = self._scorer.score_candidates(
                [text], [candidates], on_missing=on_missing, on_deleted=on_deleted
            )
        if query.stop_reason is not None:
            raise StoreError(f"not all points could be scored: {query.stop_reason}")
        row_of = {point_id: row for row, point_id in enumerate(distinct)}
        deleted = {distinct[row] for row in query.deleted}
        return query.logits[[row_of[point_id] for point_id in ids]], deleted


def read_attachment(points: AttachablePoints, name: str) -> tuple[CollectionRecord, str] | None:
    """Read the record of the attached tokens and the payload field that names the images.

    Raises:
        StoreError: The record is damaged, or of another version.
    """
    metadata = points.metadata()
    if metadata is None:
        return None
    record = CollectionRecord.read(metadata, f"{name!r} at {points.address}")
    path_field = metadata.get("path_field")
    if not isinstance(path_field, str):
        raise StoreError(
            f"the metadata of the tokens attached to {name!r} is damaged; detach them "
            f"(`edje-qdrant detach --collection {name}`) and attach them again"
        )
    return record, path_field


def require(contract: TokenContract, record: CollectionRecord, name: str, address: str) -> None:
    """Check that a model made the attached tokens; their codec is not compared.

    Raises:
        ContractMismatchError: Another model made them; names each field that differs.
    """
    where = f"the tokens attached to {name!r} at {address}"
    contract.require_same_model(record.contract, where=where)


def is_attached(point: AttachablePoint | None) -> bool:
    """Return whether a point has tokens of the image that its payload names now, of any model."""
    return (
        point is not None
        and point.reference is not None
        and point.reference.get("path") == point.field
    )


def _load(
    name_or_path: str | Path | None, name: str, device: str | torch.device | None
) -> EDJEModel:
    if name_or_path is None:
        raise ConfigError(
            f"the metadata of the tokens attached to {name!r} names no model; pass one with model="
        )
    return EDJEModel.from_pretrained(name_or_path, device=device)
