"""Filters in Qdrant's own JSON, from a request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edje_qdrant.errors import ConfigError
from edje_qdrant.index.filters.validate import check_conditions

if TYPE_CHECKING:
    from qdrant_client import models

__all__ = ["filter_from_json", "filter_schema"]

_DEEPEST = 16
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def filter_from_json(value: Mapping[str, Any], *, deepest: int = _DEEPEST) -> models.Filter:
    """Parse a filter from a JSON object such as `{"must": [{"key": "page", ...}]}`.

    Args:
        value: The object.
        deepest: Number of levels that it may be nested.

    Raises:
        ConfigError: It is not a filter, or is nested too deep; names the first invalid place.
    """
    from pydantic import ValidationError
    from qdrant_client import models

    if _depth(value, deepest) > deepest:
        raise ConfigError(f"a filter may be nested {deepest} deep; write it flatter")
    _check_dates(value)
    try:
        # From text, as only there a strict validation builds the objects in the filter.
        filter = models.Filter.model_validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = _place(value, first["loc"])
        raise ConfigError(f"{place} cannot be read: {first['msg']}") from error
    check_conditions(filter)
    return filter


def _place(value: Any, names: Sequence[int | str]) -> str:
    """Return where in the JSON an error is; pydantic's names include those of Python types."""
    place = "filter"
    for name in names:
        if isinstance(value, Mapping) and name in value:
            place, value = f"{place}.{name}", value[name]
        elif isinstance(value, list) and isinstance(name, int) and name < len(value):
            place, value = f"{place}[{name}]", value[name]
    return place


def _check_dates(value: Any) -> None:
    """Check that a range's bounds that are texts are dates; "2" would be read as a second."""
    if isinstance(value, Mapping):
        bounds = value.get("range")
        for name, bound in bounds.items() if isinstance(bounds, Mapping) else ():
            if isinstance(bound, str) and not _DATE.match(bound):
                raise ConfigError(
                    f"the filter has a range with {name} {bound!r}; give a number, or a date such "
                    "as 2024-05-17T10:00:00Z"
                )
    if isinstance(value, Mapping | list):
        for child in value.values() if isinstance(value, Mapping) else value:
            _check_dates(child)


def filter_schema() -> dict[str, Any]:
    """Return the JSON schema of what `filter_from_json` reads, one level deep.

    The conditions themselves are described by Qdrant's own documentation.
    """
    conditions = {
        "anyOf": [
            {"type": "object"},
            {"type": "array", "items": {"type": "object"}},
            {"type": "null"},
        ]
    }
    least = {
        "type": "object",
        "properties": {
            "conditions": {"type": "array", "items": {"type": "object"}, "minItems": 1},
            "min_count": {"type": "integer", "minimum": 1},
        },
        "required": ["conditions", "min_count"],
        "additionalProperties": False,
    }
    clauses = dict.fromkeys(("must", "should", "must_not"), conditions)
    return {
        "type": "object",
        "properties": {**clauses, "min_should": {"anyOf": [least, {"type": "null"}]}},
        "additionalProperties": False,
    }


def _depth(value: Any, deepest: int) -> int:
    depth, level = 0, [value]
    while level and depth <= deepest:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, Mapping | list)
            for child in (item.values() if isinstance(item, Mapping) else item)
        ]
    return depth
