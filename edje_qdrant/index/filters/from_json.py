"""Filters in Qdrant's own JSON, from a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.filters.validate import check_conditions

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["filter_from_json"]

_DEEPEST = 16


def filter_from_json(value: Mapping[str, Any]) -> models.Filter:
    """Parse a filter from a JSON object such as `{"must": [{"key": "page", ...}]}`.

    Raises:
        ConfigError: It is not a filter, or is nested too deep; names the first invalid place.
    """
    from pydantic import ValidationError
    from qdrant_client import models

    if _depth(value) > _DEEPEST:
        raise ConfigError(f"a filter may be nested {_DEEPEST} deep; write it flatter")
    try:
        filter = models.Filter.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the filter cannot be read at {place}: {first['msg']}") from error
    check_conditions(filter)
    return filter


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= _DEEPEST:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, Mapping | list)
            for child in (item.values() if isinstance(item, Mapping) else item)
        ]
    return depth
