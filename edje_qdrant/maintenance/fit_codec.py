"""Fitting of a codec's codebook to tokens of a collection."""

from __future__ import annotations

import numpy as np

from edje_qdrant.checks import check_number
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.maintenance.arguments import check_collections
from edje_qdrant.maintenance.scan import own_points
from edje_qdrant.tokens.codecs import Codec, codec_for

__all__ = ["SAMPLE", "fit_codec"]

#: Number of images in the sample; more made no measurable difference.
SAMPLE = 2048


def fit_codec(
    collection: ImageCollection,
    name: str,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    wait: float = 300,
) -> Codec:
    """Fit a codec to tokens of images drawn at random from a collection.

    Args:
        collection: Collection to draw from.
        name: Name of the codec; a codec without a codebook is returned unchanged.
        sample: Number of images to draw.
        seed: Seed of the draw and of the fit.
        wait: Seconds to wait for a server that is away, before it ends; a line on stderr says so.

    Raises:
        ConfigError: The codec is unknown, there are too few images, or `sample` is below 1.
        TokensCorruptError: Tokens of a drawn image are damaged; names the ids.
        MissingExtraError: The library that fits codebooks is not installed.
        StoreError: The collection cannot be read.
    """
    check_collections(collection=collection)
    check_number("sample", sample)
    check_number("seed", seed, least=0)
    contract = collection.contract
    codec = codec_for(name, contract.num_tokens, contract.token_dim)
    if codec.fitted:
        return codec
    with collection.patient(wait):
        ids = np.array(
            [
                point.id
                for page in collection.index.scroll(payload=collection.index.shared)
                for point in own_points(page, collection.of_other_programs(page))
            ]
        )
        if not len(ids):
            raise ConfigError(f"the collection {collection.name!r} is empty; ingest images first")
        drawn = np.random.default_rng(seed).choice(ids, min(sample, len(ids)), replace=False)
        return codec.fit(
            collection.encodings([str(image_id) for image_id in drawn]).tokens, seed=seed
        )
