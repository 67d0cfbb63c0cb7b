"""How far the rankings of the old and the new model agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edje_qdrant.checks import check_kind, check_list, check_number
from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError
from edje_qdrant.metrics import kendall_tau
from edje_qdrant.migration.reports import Agreement
from edje_qdrant.search.retriever import TwoStageRetriever

if TYPE_CHECKING:
    from edje_qdrant.model import EDJEModel

__all__ = ["compare_rankings", "sample_texts"]

# Payload fields that hold what people write about an image.
_FIELDS = ("caption", "captions", "text", "title", "description")


def sample_texts(collection: ImageCollection, count: int = 50) -> list[str]:
    """Return some captions of a collection's images, from its payloads; empty if there are none.

    They are the texts of the fields `caption`, `captions`, `text`, `title` and `description`.

    Args:
        collection: An open collection.
        count: Texts to return, at most.

    Raises:
        ConfigError: `count` is below 1.
        StoreError: The collection cannot be read.
    """
    check_number("count", count)
    texts: dict[str, None] = {}
    for page in collection.index.scroll():
        for point in page:
            for field in _FIELDS:
                value = point.payload.get(field)
                given = value if isinstance(value, list) else [value]
                texts.update(dict.fromkeys(t for t in given if isinstance(t, str) and t.strip()))
        if len(texts) >= count:
            break
    return [*texts][:count]


def compare_rankings(
    collection: ImageCollection,
    old_model: EDJEModel,
    new_model: EDJEModel,
    texts: Sequence[str],
    *,
    depth: int = 10,
) -> Agreement:
    """Search with both models during a migration, and compare the first hits.

    Images that are not encoded yet cannot be found with the new model, so that it says most after
    `migrate` is done.

    Args:
        collection: An open collection with a migration under way, of the old model.
        old_model: The model that wrote it.
        new_model: The model that it is migrated to.
        texts: What to search for.
        depth: Hits to compare for each text.

    Raises:
        ConfigError: No migration is under way, or there are no texts.
        ContractMismatchError: A model is not the one that wrote its side.
        StoreError: A side cannot be read.
        EngineUnavailableError: The server cannot be reached.
    """
    check_kind("collection", collection, ImageCollection, "an ImageCollection")
    check_list("texts", texts)
    check_number("depth", depth)
    under_way = collection.migration_now()
    if under_way is None:
        raise ConfigError(f"no migration of the collection {collection.name!r} is under way")
    if not texts:
        raise ConfigError("there are no texts to compare rankings for; give some")
    with collection.open_side(under_way.to) as side:
        rankings = [
            [
                [hit.image_id for hit in result]
                for result in TwoStageRetriever(
                    each, model, token_cache=None, first_stage="engine"
                ).search_batch([*texts], top_k=depth)
            ]
            for each, model in ((collection, old_model), (side, new_model))
        ]
    rows = [*zip(*rankings, strict=True)]
    taus = [tau for old, new in rows if (tau := _tau(old, new)) is not None]
    return Agreement(
        len(texts),
        depth,
        float(np.mean([len({*old} & {*new}) / max(len(old), len(new), 1) for old, new in rows])),
        float(np.mean([old[:1] == new[:1] for old, new in rows])),
        float(np.mean(taus)) if taus else None,
    )


def _tau(old: Sequence[str], new: Sequence[str]) -> float | None:
    """Return Kendall's tau of the order of what both found; None if that is fewer than two."""
    both = [image_id for image_id in old if image_id in new]
    if len(both) < 2:
        return None
    places = np.array([[-old.index(each) for each in both], [-new.index(each) for each in both]])
    return float(kendall_tau(places[:1], places[1:])[0])
