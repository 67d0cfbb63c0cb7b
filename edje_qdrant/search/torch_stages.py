"""The steps of a search by an `EDJEModel`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from edje_qdrant.checks import check_kind
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.model import EDJEModel
from edje_qdrant.model.inference.text_graphs import TextGraphs
from edje_qdrant.rerank.reranker import Reranker
from edje_qdrant.rerank.scorer import CandidateScorer
from edje_qdrant.rerank.token_cache import DeviceTokenCache
from edje_qdrant.rerank.token_loader import TokenReader, pairs_at_once
from edje_qdrant.search.device_index import DeviceIndex
from edje_qdrant.search.stages import Embeddings, Stages, reads_from_server

__all__ = ["torch_stages"]


def torch_stages(
    collection: ImageCollection,
    model: EDJEModel,
    *,
    reranker: Reranker | None,
    token_cache: DeviceTokenCache | Literal["auto"] | None,
    first_stage: str,
) -> Stages:
    """Return the steps of a search; the arguments are those of `TwoStageRetriever`.

    Raises:
        ContractMismatchError: Another model wrote the collection.
        ConfigError: The model or the cache is of another type, the cache is too small for an image
            of the collection, or the device has no room for the embeddings.
    """
    check_kind("model", model, EDJEModel, "an EDJEModel, or use TwoStageRetriever.open")
    collection.require(model.contract())
    if token_cache is not None and token_cache != "auto":
        wanted = 'a DeviceTokenCache, "auto" or None'
        check_kind("token_cache", token_cache, DeviceTokenCache, wanted)
        token_cache.require(collection)
    device_index: DeviceIndex | None = None
    if first_stage == "device" or (
        first_stage == "auto"
        # Another process may write to a server's collection.
        and collection.index.engine != "qdrant"
        and DeviceIndex.fits(collection, model.device)
    ):
        device_index = DeviceIndex(collection, model.device)
    reranker = reranker or Reranker(model)
    own_cache: DeviceTokenCache | None = None
    if token_cache == "auto":  # takes its share of what the embeddings left
        token_cache = own_cache = DeviceTokenCache.automatic(collection, model.device)
    if token_cache is None:
        read = partial(TokenReader(model.device).tokens, collection)
    else:
        read = partial(token_cache.fetch, collection, device=model.device)
    count = pairs_at_once(model.contract(), model.device)
    texts = TextGraphs(model)

    def encode(given: Sequence[str]) -> Embeddings:
        if device_index is None and model.device.type != "cuda":
            return model.encode_texts(given)
        embeddings = texts(given)
        return embeddings.cpu().numpy() if device_index is None else embeddings

    return Stages(
        encode=encode,
        scorer=CandidateScorer(
            reranker,
            read,
            count,
            # A GPU scores in less time than a request takes.
            read_ahead=reads_from_server(collection) and model.device.type != "cuda",
        ),
        precision=lambda: reranker.precision,
        cut_texts=model.cut_texts,
        calibration=lambda: model.calibration,
        model_name=str(model.name_or_path or ""),
        model=model,
        reranker=reranker,
        device_index=device_index,
        own_cache=own_cache,
    )
