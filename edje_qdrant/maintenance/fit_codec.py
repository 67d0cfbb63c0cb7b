"""Fit a codec's codebook to tokens of a collection."""

from __future__ import annotations

import numpy as np

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.tokens.codecs import Codec, codec_for

__all__ = ["SAMPLE", "fit_codec"]

#: Images whose tokens a codebook is fitted to; more changed nothing that could be measured.
SAMPLE = 2048


def fit_codec(
    collection: ImageCollection, name: str, *, sample: int = SAMPLE, seed: int = 0
) -> Codec:
    """Fit a codec to tokens of images drawn at random from a collection.

    Args:
        collection: Whose tokens.
        name: The codec's; one without a codebook is returned as it is.
        sample: Images to draw.
        seed: Of the draw and of the fit.

    Raises:
        ConfigError: There is no such codec, too few images, or `sample` is below 1.
        TokensCorruptError: A drawn image's tokens are damaged; names the ids.
        MissingExtraError: The library that fits codebooks is not installed.
        StoreError: The collection cannot be read.
    """
    if sample < 1:
        raise ConfigError(f"sample is {sample}; draw 1 image or more, 2048 are enough")
    contract = collection.contract
    codec = codec_for(name, contract.num_tokens, contract.token_dim)
    if codec.fitted:
        return codec
    ids = np.array([p.id for page in collection.index.scroll(payload=False) for p in page])
    if not len(ids):
        raise ConfigError(f"the collection {collection.name!r} is empty; ingest images first")
    drawn = np.random.default_rng(seed).choice(ids, min(sample, len(ids)), replace=False)
    return codec.fit(collection.encodings([str(image_id) for image_id in drawn]).tokens, seed=seed)
