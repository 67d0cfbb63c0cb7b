"""What a retriever searches with: the steps that depend on the kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.model.calibration import Calibration
from edje_qdrant.model.onnx.running import OnnxModel
from edje_qdrant.rerank.scorer import CandidateScorer

if TYPE_CHECKING:
    from torch import Tensor

    from edje_qdrant.model import EDJEModel
    from edje_qdrant.rerank.reranker import Reranker
    from edje_qdrant.rerank.token_cache import DeviceTokenCache
    from edje_qdrant.search.device_index import DeviceIndex

__all__ = ["Embeddings", "Stages", "onnx_stages", "reads_from_server"]

#: `(q, d)` float32, in host memory or on a device.
Embeddings: TypeAlias = "NDArray[np.float32] | Tensor"

# Candidates whose tokens are in memory at a time: 64 tokens of 384 numbers take 96 MiB in float32.
_PAIRS = 1024


@dataclass(frozen=True, slots=True)
class Stages:
    """The steps of a search by one model.

    Attributes:
        encode: Embeds texts for the first stage.
        scorer: Scores candidates.
        precision: Returns the precision of the joint encoder.
        cut_texts: Says which texts are not read whole.
        calibration: Returns what the logits mean, if that was fitted.
        model_name: Name of the model in messages.
        model: The model, if it is one that also encodes images.
        reranker: Its reranker.
        device_index: The embeddings in the memory of a device, if the first stage searches there.
        own_cache: A token cache to be cleared at the end.
    """

    encode: Callable[[Sequence[str]], Embeddings]
    scorer: CandidateScorer
    precision: Callable[[], str]
    cut_texts: Callable[[Sequence[str]], list[str | None]]
    calibration: Callable[[], Calibration | None]
    model_name: str
    model: EDJEModel | None = None
    reranker: Reranker | None = None
    device_index: DeviceIndex | None = None
    own_cache: DeviceTokenCache | None = None


def reads_from_server(collection: ImageCollection) -> bool:
    """Return whether tokens come from a server, in a request of their own."""
    return collection.index.shared and collection.token_place == "payload"


def onnx_stages(
    collection: ImageCollection,
    model: OnnxModel,
    *,
    reranker: object,
    token_cache: object,
    first_stage: str,
) -> Stages:
    """Return the steps of a search by exported models, on the CPU.

    Raises:
        ContractMismatchError: Another model wrote the collection.
        ConfigError: An argument is for models of torch.
    """
    collection.require(model.contract())
    for name, given, without in (
        ("reranker", reranker, reranker is None),
        ("token_cache", token_cache, token_cache in (None, "auto")),
        ("first_stage", first_stage, first_stage != "device"),
    ):
        if not without:
            raise ConfigError(
                f"{name} is {given!r}, which is for an EDJEModel; leave it out for an OnnxModel"
            )
    return Stages(
        encode=model.encode_texts,
        scorer=CandidateScorer(
            model, collection.tokens, _PAIRS, read_ahead=reads_from_server(collection)
        ),
        precision=lambda: model.precision,
        cut_texts=model.cut_texts,
        calibration=lambda: model.calibration,
        model_name=model.name_or_path,
    )
